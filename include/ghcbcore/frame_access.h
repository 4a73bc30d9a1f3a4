/* What a load or a store meets: the RMP's checks, and the fault with its error bits.
 *
 * Theory of operation. The host reads what it likes (ciphertext). Whoever writes without being the
 * SNP guest that owns the page - the host, another guest, a device - must write to a page that is
 * assigned to nobody. An SNP guest's access with the C-bit set must meet an entry that says exactly
 * this: not in use by a CPU, assigned, mutable, this ASID, this GPA, a size that fits, validated, allowed
 * to its VMPL; the first of these that is not so decides the fault. An instruction fetch counts as C=1.
 * Who writes through a mapping of 2 MiB without C-bit must find nobody's pages in all of it.
 *
 * The error bits that the access itself brings (present, write, user, fetch, C-bit, final address) are
 * reported as KVM's handlers expect to see them; a nested fault always has the user bit.
 *
 * Source: Linux kvm/svm/sev.c, mm/fault.c; AMD64 APM volume 2; a page in use
 * that a guest touches: Linux d2062cc1b1c3.
 */
#ifndef GHCBCORE_FRAME_ACCESS_H
#define GHCBCORE_FRAME_ACCESS_H

#include <ghcbcore/fault.h>
#include <ghcbcore/frame_op.h>

/* Of a write: the host's reads are not checked. */
static inline uint64_t ghcb_frame_pf(const ghcb_frame_op_t *op)
{
    uint64_t bits = 1ULL << FAULT_PRESENT | 1ULL << FAULT_WRITE | 1ULL << FAULT_RMP;

    if (op->value & FRAME_ACCESS_USER)
        bits |= 1ULL << FAULT_USER;
    if (op->value & FRAME_ACCESS_FETCH)
        bits |= 1ULL << FAULT_FETCH;
    return ghcb_frame_result(FRAME_RESULT_PF, 0, bits);
}

/* A nested fault on the final address; `more` are the bits that say why. */
static inline uint64_t ghcb_frame_npf(const ghcb_frame_op_t *op, uint64_t more)
{
    uint64_t bits = 1ULL << FAULT_PRESENT | 1ULL << FAULT_USER | 1ULL << FAULT_RMP
        | 1ULL << FAULT_NPF_FINAL | more;
    int is_access = op->kind == FRAME_OP_GUEST_ACCESS;

    if (is_access && op->value & FRAME_ACCESS_WRITE)
        bits |= 1ULL << FAULT_WRITE;
    if (is_access && op->value & FRAME_ACCESS_FETCH)
        bits |= 1ULL << FAULT_FETCH;
    if (!is_access || op->value & (FRAME_ACCESS_C | FRAME_ACCESS_FETCH))
        bits |= 1ULL << FAULT_NPF_ENC;
    return ghcb_frame_result(FRAME_RESULT_NPF, 0, bits);
}

/* The owner's part of the check, which PVALIDATE and RMPADJUST make as well: 0, or the fault. */
static inline uint64_t ghcb_frame_owner(const ghcb_frame_op_t *op, const ghcb_frame_t *frame)
{
    uint64_t word = frame->word;

    if (!ghcb_frame_has(word, FRAME_ASSIGNED) || ghcb_frame_has(word, FRAME_IMMUTABLE)
        || ghcb_frame_asid(word) != op->asid || !op->asid || frame->gfn != op->gfn)
        return ghcb_frame_npf(op, 0);
    return 0;
}

/* The sizes of a nested page and of the entry behind it. */
static inline uint64_t ghcb_frame_sizes(const ghcb_frame_op_t *op, const ghcb_frame_t *frame)
{
    if (!op->backing && ghcb_frame_has(frame->word, FRAME_LARGE))
        return ghcb_frame_npf(op, 1ULL << FAULT_NPF_SIZEM);
    if (op->backing && !ghcb_frame_has(frame->word, FRAME_LARGE))
        return ghcb_frame_npf(op, 0);
    return 0;
}

static inline uint64_t ghcb_frame_right(const ghcb_frame_op_t *op)
{
    if (op->value & FRAME_ACCESS_FETCH)
        return op->value & FRAME_ACCESS_USER ? 1U << RMP_RIGHT_USER_EXECUTE
                                             : 1U << RMP_RIGHT_SUPERVISOR_EXECUTE;
    return op->value & FRAME_ACCESS_WRITE ? 1U << RMP_RIGHT_WRITE : 1U << RMP_RIGHT_READ;
}

/* Code is always fetched as private: what is said of the C-bit in APM2 on SEV. */
static inline int ghcb_frame_is_private(const ghcb_frame_op_t *op)
{
    return op->value & FRAME_ACCESS_SNP && op->value & (FRAME_ACCESS_C | FRAME_ACCESS_FETCH);
}

/* Whether the access looks at more than the frame itself: `region` has the facts of all 2 MiB. */
static inline int ghcb_frame_access_is_wide(const ghcb_frame_op_t *op)
{
    return op->backing
        && (op->kind == FRAME_OP_HOST_ACCESS
            || (op->kind == FRAME_OP_GUEST_ACCESS && !ghcb_frame_is_private(op)));
}

/* Whether a mapping of the access's size has a page that is assigned to somebody. */
static inline int ghcb_frame_meets_assigned(
    const ghcb_frame_op_t *op, const ghcb_frame_t *frame, const ghcb_frame_region_t *region)
{
    return op->backing ? region->n_assigned != 0 : ghcb_frame_has(frame->word, FRAME_ASSIGNED);
}

static inline uint64_t ghcb_frame_guest_access(
    const ghcb_frame_op_t *op, const ghcb_frame_rules_t *rules, const ghcb_frame_t *frame,
    const ghcb_frame_region_t *region)
{
    uint64_t word = frame->word;
    int is_checked = op->value & FRAME_ACCESS_WRITE
        || (op->value & FRAME_ACCESS_SNP && rules->flags >> FRAME_RULE_SHARED_READ & 1);
    uint64_t fault;

    if (!ghcb_frame_is_private(op))
        return is_checked && ghcb_frame_meets_assigned(op, frame, region) ? ghcb_frame_npf(op, 0) : 0;
    if (ghcb_frame_has(word, FRAME_IN_USE))
        return ghcb_frame_npf(op, 0);
    fault = ghcb_frame_owner(op, frame);
    if (!fault)
        fault = ghcb_frame_sizes(op, frame);
    if (fault)
        return fault;
    if (!ghcb_frame_has(word, FRAME_VALIDATED))
        return ghcb_frame_result(FRAME_RESULT_VC, 0, 0);
    if (ghcb_frame_right(op) & ~ghcb_frame_rights(word, (unsigned)op->vmpl))
        return ghcb_frame_npf(op, 1ULL << FAULT_NPF_VMPL);
    return 0;
}

/* Through a huge mapping the first page of a region stands for all of it if a CPU uses it: an erratum,
 * for which Linux avoids such VMSAs. */
static inline uint64_t ghcb_frame_host_access(
    const ghcb_frame_op_t *op, const ghcb_frame_t *frame, const ghcb_frame_region_t *region)
{
    if (!(op->value & FRAME_ACCESS_WRITE))
        return 0;
    if (ghcb_frame_meets_assigned(op, frame, region) || ghcb_frame_has(frame->word, FRAME_IN_USE)
        || (op->backing && ghcb_frame_has(region->first.word, FRAME_IN_USE)))
        return ghcb_frame_pf(op);
    return 0;
}

static inline uint64_t ghcb_frame_dma(const ghcb_frame_op_t *op, const ghcb_frame_t *frame)
{
    if (op->value & FRAME_ACCESS_WRITE && ghcb_frame_has(frame->word, FRAME_ASSIGNED))
        return ghcb_frame_result(
            FRAME_RESULT_DMA, 0, 1ULL << FAULT_PRESENT | 1ULL << FAULT_WRITE | 1ULL << FAULT_RMP);
    return 0;
}

/* The key slot under which a store leaves its content. */
static inline uint64_t ghcb_frame_store_key(const ghcb_frame_op_t *op)
{
    if (!(op->value & FRAME_ACCESS_C))
        return GHCB_KEY_SLOT_NONE;
    return op->kind == FRAME_OP_GUEST_ACCESS ? op->asid : GHCB_KEY_SLOT_SME;
}

#endif
