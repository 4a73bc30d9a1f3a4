/* What becomes of the cells of ASIDs: reset, activation, deactivation, WBINVD, DF_FLUSH.
 *
 * Source: AMD-ASPFW sev_mcmd.c, sev_hal_interface.c (Genoa, Aug 2023).
 */
#ifndef GHCBCORE_FIRMWARE_CELLS_H
#define GHCBCORE_FIRMWARE_CELLS_H

#include <ghcbcore/firmware.h>

#define GHCB_FW_EVEN_BITS 0x5555555555555555ULL

/* The set of all CCXs. */
static inline uint64_t ghcb_fw_all_ccxs(const ghcb_fw_t *fw)
{
    return fw->n_ccxs < 64 ? (1ULL << fw->n_ccxs) - 1 : ~0ULL;
}

/* A set of CCXs as the lower bits of their cells. */
static inline uint64_t ghcb_fw_spread(uint64_t ccxs)
{
    uint64_t x = ccxs & 0xffffffff;

    x = (x | x << 16) & 0x0000ffff0000ffffULL;
    x = (x | x << 8) & 0x00ff00ff00ff00ffULL;
    x = (x | x << 4) & 0x0f0f0f0f0f0f0f0fULL;
    x = (x | x << 2) & 0x3333333333333333ULL;
    return (x | x << 1) & GHCB_FW_EVEN_BITS;
}

/* The CCXs of whose cells the lower bits are set in `cells`. */
static inline uint64_t ghcb_fw_gather(uint64_t cells)
{
    uint64_t x = cells & GHCB_FW_EVEN_BITS;

    x = (x | x >> 1) & 0x3333333333333333ULL;
    x = (x | x >> 2) & 0x0f0f0f0f0f0f0f0fULL;
    x = (x | x >> 4) & 0x00ff00ff00ff00ffULL;
    x = (x | x >> 8) & 0x0000ffff0000ffffULL;
    return (x | x >> 16) & 0xffffffff;
}

/* On which CCXs the cells of an ASID's word are in one state. */
static inline uint64_t ghcb_fw_ccxs_in(const ghcb_fw_t *fw, uint64_t cells, uint64_t state)
{
    uint64_t same = ~(cells ^ state * GHCB_FW_EVEN_BITS);

    return ghcb_fw_gather(same & same >> 1) & ghcb_fw_all_ccxs(fw);
}

static inline void ghcb_fw_put_cells(uint64_t *cells, uint64_t ccxs, uint64_t state)
{
    uint64_t at = ghcb_fw_spread(ccxs);

    *cells = (*cells & ~(at * 3)) | at * state;
}

static inline int ghcb_fw_is_asid(const ghcb_fw_t *fw, uint64_t asid)
{
    return asid && asid <= fw->max_asid;
}

static inline uint64_t *ghcb_fw_cells(const ghcb_fw_t *fw, uint64_t asid)
{
    return fw->cells + (asid - 1);
}

static inline void ghcb_fw_all_dirty(const ghcb_fw_t *fw)
{
    uint64_t dirty = ghcb_fw_spread(ghcb_fw_all_ccxs(fw)) * GHCB_FW_DIRTY;

    for (uint64_t i = 0; i < fw->max_asid; i++)
        fw->cells[i] = dirty;
}

static inline void ghcb_fw_invalidate_all(const ghcb_fw_t *fw, uint64_t *thread)
{
    for (uint64_t i = 0; i < fw->n_bitmap; i++) {
        uint64_t left = fw->max_asid + 1 - 64 * i; /* bits of this word and the following */

        thread[1 + i] = (left < 64 ? (1ULL << left) - 1 : ~0ULL) & ~(i ? 0ULL : 1ULL);
    }
}

/* The ASID machine from its beginning: nothing runs, nothing is done, everything may be dirty. */
static inline void ghcb_fw_reset_asids(const ghcb_fw_t *fw)
{
    for (uint64_t i = 0; i < ghcb_fw_n_threads(fw); i++) {
        uint64_t *thread = ghcb_fw_thread(fw, i);

        *thread &= ~(GHCB_FW_BIT(THREAD_DONE) | GHCB_FW_BIT(THREAD_KEPT));
        ghcb_fw_invalidate_all(fw, thread);
    }
    ghcb_fw_all_dirty(fw);
}

/* Let the threads of these CCXs run an ASID, or no longer. */
static inline void ghcb_fw_let_run(const ghcb_fw_t *fw, uint64_t ccxs, uint64_t asid, int may)
{
    uint64_t bit = 1ULL << asid % 64;

    for (uint64_t i = 0; i < ghcb_fw_n_threads(fw); i++) {
        uint64_t *thread = ghcb_fw_thread(fw, i);

        if (!(ccxs >> GHCB_FW_GET(*thread, THREAD_CCX) & 1))
            continue;
        if (may) {
            thread[1 + asid / 64] &= ~bit;
        } else {
            thread[1 + asid / 64] |= bit;
            *thread &= ~GHCB_FW_BIT(THREAD_DONE);
        }
    }
}

/* Give a guest an ASID on these CCXs, or further CCXs of the one it has. */
static inline void ghcb_fw_activate(
    const ghcb_fw_t *fw, uint64_t *guest, uint64_t asid, uint64_t ccxs, int runs)
{
    uint64_t all = ccxs | GHCB_FW_GET(*guest, GUEST_CCXS);

    ghcb_fw_put_cells(ghcb_fw_cells(fw, asid), all, runs ? GHCB_FW_IN_USE : GHCB_FW_ALLOC);
    if (runs)
        ghcb_fw_let_run(fw, all, asid, 1);
    fw->keys[asid / 64] |= 1ULL << asid % 64;
    GHCB_FW_SET(guest, GUEST_ASID, asid);
    GHCB_FW_SET(guest, GUEST_CCXS, all);
    GHCB_FW_SET(guest, GUEST_ACTIVE, runs ? GHCB_FW_ACTIVE : GHCB_FW_PENDING);
}

/* A guest has become RUNNING: if its activation is pending, its ASID is in use from now on. */
static inline void ghcb_fw_begin(const ghcb_fw_t *fw, uint64_t *guest)
{
    uint64_t asid = GHCB_FW_GET(*guest, GUEST_ASID), ccxs = GHCB_FW_GET(*guest, GUEST_CCXS);

    if (GHCB_FW_GET(*guest, GUEST_ACTIVE) != GHCB_FW_PENDING || !ghcb_fw_is_asid(fw, asid))
        return;
    ghcb_fw_put_cells(ghcb_fw_cells(fw, asid), ccxs, GHCB_FW_IN_USE);
    ghcb_fw_let_run(fw, ccxs, asid, 1);
    GHCB_FW_SET(guest, GUEST_ACTIVE, GHCB_FW_ACTIVE);
}

/* Take the ASID away. Where it was in use, WBINVD has to be executed once more. */
static inline void ghcb_fw_deactivate(const ghcb_fw_t *fw, uint64_t *guest)
{
    uint64_t asid = GHCB_FW_GET(*guest, GUEST_ASID), ccxs = GHCB_FW_GET(*guest, GUEST_CCXS);
    uint64_t used, *cells;

    if (GHCB_FW_GET(*guest, GUEST_ACTIVE) == GHCB_FW_INACTIVE || !ghcb_fw_is_asid(fw, asid))
        return;
    cells = ghcb_fw_cells(fw, asid);
    used = ghcb_fw_ccxs_in(fw, *cells, GHCB_FW_IN_USE) & ccxs;
    ghcb_fw_let_run(fw, used, asid, 0);
    ghcb_fw_put_cells(cells, ghcb_fw_ccxs_in(fw, *cells, GHCB_FW_ALLOC) & ccxs, GHCB_FW_CLEAN);
    ghcb_fw_put_cells(cells, used, GHCB_FW_DIRTY);
    GHCB_FW_SET(guest, GUEST_ASID, 0);
    GHCB_FW_SET(guest, GUEST_CCXS, 0);
    GHCB_FW_SET(guest, GUEST_ACTIVE, GHCB_FW_INACTIVE);
}

/* DF_FLUSH: what is done becomes CLEAN, also if it is not all. A CCX without threads holds nothing up. */
static inline uint64_t ghcb_fw_df_flush(const ghcb_fw_t *fw)
{
    uint64_t late = 0, first_seen = 0, first_late = 0, done, promoted;

    for (uint64_t i = 0; i < ghcb_fw_n_threads(fw); i++) {
        uint64_t thread = *ghcb_fw_thread(fw, i), ccx = 1ULL << GHCB_FW_GET(thread, THREAD_CCX);
        int is_late = !GHCB_FW_HAS(thread, THREAD_DONE);

        late |= is_late ? ccx : 0;
        if (GHCB_FW_HAS(thread, THREAD_FIRST)) {
            first_seen |= ccx;
            first_late |= is_late ? ccx : 0;
        }
    }
    done = ~late;
    if (fw->rules & GHCB_FW_RULE_GENOA_2023)
        done |= first_seen & ~first_late;
    promoted = ghcb_fw_spread(done & ghcb_fw_all_ccxs(fw));
    for (uint64_t i = 0; i < fw->max_asid; i++) {
        uint64_t cells = fw->cells[i];

        fw->cells[i] = cells & ~((cells & cells >> 1 & promoted) * 3);
    }
    return late ? SNP_FW_WBINVD_REQUIRED : SNP_FW_OK;
}

static inline int ghcb_fw_all_clean(const ghcb_fw_t *fw)
{
    for (uint64_t i = 0; i < fw->max_asid; i++)
        if (fw->cells[i])
            return 0;
    return 1;
}

/* A thread finishes WBINVD or WBNOINVD. Returns whether it could: an offline one executes nothing. */
static inline uint64_t ghcb_fw_wbinvd(uint64_t *thread, int keeps_lines)
{
    if (GHCB_FW_HAS(*thread, THREAD_OFFLINE))
        return 0;
    *thread |= keeps_lines ? GHCB_FW_BIT(THREAD_KEPT) : GHCB_FW_BIT(THREAD_DONE);
    return 1;
}

/* VMRUN with an ASID. Returns whether the thread is in the guest now: the ASID is valid on it. */
static inline uint64_t ghcb_fw_vmrun(const ghcb_fw_t *fw, uint64_t *thread, uint64_t asid)
{
    if (GHCB_FW_HAS(*thread, THREAD_OFFLINE) || GHCB_FW_GET(*thread, THREAD_RUNS)
        || !ghcb_fw_is_asid(fw, asid) || thread[1 + asid / 64] >> asid % 64 & 1)
        return 0;
    GHCB_FW_SET(thread, THREAD_RUNS, asid);
    return 1;
}

static inline uint64_t ghcb_fw_vmexit(uint64_t *thread)
{
    uint64_t ran = GHCB_FW_GET(*thread, THREAD_RUNS);

    GHCB_FW_SET(thread, THREAD_RUNS, 0);
    return ran;
}

#endif
