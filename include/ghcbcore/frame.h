/* What everybody thinks about one 4 KiB frame of system memory, in two words.
 *
 * Theory of operation. Every bug of this field is two parties that disagree about a page. So the
 * views are kept apart, and nobody keeps two of them equal but those who do it on hardware:
 *
 *   RMP          who owns the frame: the fields of its entry (rmp.h), as the processor checks them
 *   page table   the guest's page table: not mapped, C-bit clear, C-bit set; size of the leaf
 *   validated    the guest's own record of what it has validated (the RMP has another)
 *   host list    what the hypervisor's software notes: shared, private, or nothing said
 *   content      the key slot under which the content was last written
 *
 * `word` holds the flags and small numbers of all views. `gfn` is the RMP entry's GPA field: of a
 * frame with an ASID, as a distance from the frame's own number (so that a range that is mapped
 * in one piece has one value); else as it is stored, with firmware's tag.
 *
 * A 2 MiB entry is kept in each of its 512 frames: all of a region are part of one, or none is. In
 * memory only the first of them has it; the slots of the others say: assigned, no ASID, rights of
 * VMPL0 (ghcb_frame_own). That is what RMPUPDATE leaves there; firmware's PAGE_UNSMASH also leaves GPA,
 * rights and validated as they were, which nobody reads, so this is not kept. The count of subpages
 * is not kept either: it is counted.
 *
 * Units: frames of 4 KiB. Key slots as a Genoa memory controller has them.
 * Source: Linux asm/sev.h; AMD-ASPFW sev_rmp.h; the rules are in frame_rule.h and frame_access.h.
 */
#ifndef GHCBCORE_FRAME_H
#define GHCBCORE_FRAME_H

#include <ghcbcore/page.h>
#include <ghcbcore/rmp.h>
#include <stdint.h>

/* cffi: begin */
/* The RMP's view: bit numbers of `word`. */
#define FRAME_ASSIGNED 0
#define FRAME_LARGE 1 /* part of a 2 MiB entry */
#define FRAME_IMMUTABLE 2
#define FRAME_VMSA 3
#define FRAME_VALIDATED 4
#define FRAME_LOCK 5
#define FRAME_IN_USE 6 /* hidden: a VMCB or VMSA that a CPU runs */
#define FRAME_ASID_SHIFT 8
#define FRAME_ASID_WIDTH 10
#define FRAME_RIGHTS_SHIFT 18 /* rights of VMPL0, then of the others */
#define FRAME_RIGHTS_WIDTH 5
#define FRAME_UNCOVERED 55 /* the table does not reach this frame: it has no entry */
#define FRAME_RMP_MASK 0x80003fffffffff /* all of the above */
/* The other views. */
#define FRAME_MAPPING_SHIFT 38
#define FRAME_MAPPING_WIDTH 2
#define FRAME_LEAF_SHIFT 40
#define FRAME_LEAF_WIDTH 2
#define FRAME_BELIEVED 42 /* the guest has noted that it validated this page */
#define FRAME_LISTED_SHIFT 43
#define FRAME_LISTED_WIDTH 2
#define FRAME_KEY_SHIFT 45
#define FRAME_KEY_WIDTH 10

#define FRAME_UNMAPPED 0
#define FRAME_SHARED 1  /* C-bit clear */
#define FRAME_PRIVATE 2 /* C-bit set */

#define FRAME_LEAF_4K 0
#define FRAME_LEAF_2M 1
#define FRAME_LEAF_1G 2

#define FRAME_LISTED_NOTHING 0
#define FRAME_LISTED_SHARED 1
#define FRAME_LISTED_PRIVATE 2

#define FRAME_REGION 512 /* frames of a 2 MiB region */
#define FRAME_GFN_MASK 0x7fffffffff /* the width of the GPA field, in frames */

/* The views, as bits of a set; also the order of their histories. */
#define FRAME_VIEW_RMP 0
#define FRAME_VIEW_PAGE_TABLE 1
#define FRAME_VIEW_VALIDATED 2
#define FRAME_VIEW_LISTED 3
#define FRAME_VIEW_CONTENT 4
#define FRAME_N_VIEWS 5

typedef struct {
    uint64_t word;
    uint64_t gfn;
} ghcb_frame_t;
/* cffi: end */

_Static_assert(FRAME_RIGHTS_SHIFT + 4 * FRAME_RIGHTS_WIDTH == FRAME_MAPPING_SHIFT, "no gap");
_Static_assert(FRAME_RMP_MASK == (((1ULL << FRAME_MAPPING_SHIFT) - 1) | 1ULL << FRAME_UNCOVERED), "RMP");
_Static_assert(FRAME_REGION == RMP_LARGE_PAGE_BYTES >> GHCB_PAGE_SHIFT, "one 2 MiB entry");

static inline uint64_t ghcb_frame_get(uint64_t word, unsigned shift, unsigned width)
{
    return word >> shift & ((1ULL << width) - 1);
}

static inline int ghcb_frame_has(uint64_t word, unsigned bit)
{
    return word >> bit & 1;
}

static inline void ghcb_frame_set(uint64_t *word, unsigned shift, unsigned width, uint64_t value)
{
    uint64_t mask = ((1ULL << width) - 1) << shift;

    *word = (*word & ~mask) | (value << shift & mask);
}

static inline uint64_t ghcb_frame_asid(uint64_t word)
{
    return ghcb_frame_get(word, FRAME_ASID_SHIFT, FRAME_ASID_WIDTH);
}

static inline uint64_t ghcb_frame_rights(uint64_t word, unsigned vmpl)
{
    return ghcb_frame_get(word, FRAME_RIGHTS_SHIFT + vmpl * FRAME_RIGHTS_WIDTH, FRAME_RIGHTS_WIDTH);
}

static inline void ghcb_frame_set_rights(uint64_t *word, unsigned vmpl, uint64_t rights)
{
    ghcb_frame_set(word, FRAME_RIGHTS_SHIFT + vmpl * FRAME_RIGHTS_WIDTH, FRAME_RIGHTS_WIDTH, rights);
}

/* The entry in the frame's own slot of the table, which firmware's commands for 4 KiB and RMPREAD see:
 * of a 2 MiB entry that of the first frame alone says what counts. */
static inline ghcb_frame_t ghcb_frame_own(const ghcb_frame_t *frame, int is_first)
{
    ghcb_frame_t own = *frame;

    if (!is_first && ghcb_frame_has(frame->word, FRAME_LARGE)) {
        own.word &= ~(uint64_t)FRAME_RMP_MASK | 1ULL << FRAME_IN_USE;
        own.word |= 1ULL << FRAME_ASSIGNED;
        ghcb_frame_set_rights(&own.word, 0, RMP_RIGHTS_ALL);
        own.gfn = 0;
    }
    return own;
}

/* The GPA field of the entry of frame `pfn`, in frames. */
static inline uint64_t ghcb_frame_gfn(const ghcb_frame_t *frame, uint64_t pfn)
{
    return ghcb_frame_asid(frame->word) ? (frame->gfn + pfn) & FRAME_GFN_MASK : frame->gfn;
}

/* The entry of frame `pfn` taken apart, state and all. Of a frame that is not the first of a 2 MiB
 * entry this is the entry that counts for it, with its own GPA; `subpages` is left 0. */
static inline void ghcb_frame_entry(const ghcb_frame_t *frame, uint64_t pfn, ghcb_rmp_t *out)
{
    ghcb_rmp_t e = {0};
    uint64_t word = frame->word;

    if (ghcb_frame_has(word, FRAME_UNCOVERED)) {
        e.state = RMP_STATE_DEFAULT;
        *out = e;
        return;
    }
    e.assigned = ghcb_frame_has(word, FRAME_ASSIGNED);
    e.page_size = ghcb_frame_has(word, FRAME_LARGE);
    e.immutable = ghcb_frame_has(word, FRAME_IMMUTABLE);
    e.vmsa = ghcb_frame_has(word, FRAME_VMSA);
    e.validated = ghcb_frame_has(word, FRAME_VALIDATED);
    e.lock = ghcb_frame_has(word, FRAME_LOCK);
    e.asid = (uint32_t)ghcb_frame_asid(word);
    e.gpa = ghcb_frame_gfn(frame, pfn) << GHCB_PAGE_SHIFT;
    e.vmpl0 = ghcb_frame_rights(word, 0);
    e.vmpl1 = ghcb_frame_rights(word, 1);
    e.vmpl2 = ghcb_frame_rights(word, 2);
    e.vmpl3 = ghcb_frame_rights(word, 3);
    e.state = ghcb_rmp_state(&e);
    *out = e;
}

/* The entry of frame `pfn` as the table stores it. `subpages` is the count for the region's first
 * frame; a 2 MiB entry has none. */
static inline void ghcb_frame_stored(
    const ghcb_frame_t *frame, uint64_t pfn, int is_first, unsigned subpages, ghcb_rmp_t *out)
{
    ghcb_frame_t own = ghcb_frame_own(frame, is_first);

    ghcb_frame_entry(&own, pfn, out);
    if (is_first && !out->page_size)
        out->subpages = (uint16_t)subpages;
}

/* Read the RMP's view back from an entry; the other views of `frame` stay, and whether it is in use. A
 * bit that the model does not keep (implicit key, ports, migration) is refused, and a 2 MiB entry whose
 * GPA begins in the middle of one. */
static inline int ghcb_frame_take_entry(ghcb_frame_t *frame, uint64_t pfn, const ghcb_rmp_t *e)
{
    uint64_t word = frame->word & (~(uint64_t)FRAME_RMP_MASK | 1ULL << FRAME_IN_USE);
    uint64_t gfn = e->gpa >> GHCB_PAGE_SHIFT;

    if (e->page_size && (!e->assigned || (e->asid && gfn & (FRAME_REGION - 1))))
        return GHCB_E_OUT_OF_RANGE;
    if (e->asid >> FRAME_ASID_WIDTH || gfn & ~(uint64_t)FRAME_GFN_MASK || e->implicit_key || e->root_port
        || e->ide_stream || e->migration
        || (e->assigned | e->page_size | e->immutable | e->vmsa | e->validated | e->lock) > 1
        || (e->vmpl0 | e->vmpl1 | e->vmpl2 | e->vmpl3) & ~RMP_RIGHTS_ALL)
        return GHCB_E_OUT_OF_RANGE;
    word |= (uint64_t)e->assigned << FRAME_ASSIGNED | (uint64_t)e->page_size << FRAME_LARGE
        | (uint64_t)e->immutable << FRAME_IMMUTABLE | (uint64_t)e->vmsa << FRAME_VMSA
        | (uint64_t)e->validated << FRAME_VALIDATED | (uint64_t)e->lock << FRAME_LOCK
        | (uint64_t)e->asid << FRAME_ASID_SHIFT;
    ghcb_frame_set_rights(&word, 0, e->vmpl0);
    ghcb_frame_set_rights(&word, 1, e->vmpl1);
    ghcb_frame_set_rights(&word, 2, e->vmpl2);
    ghcb_frame_set_rights(&word, 3, e->vmpl3);
    frame->word = word;
    frame->gfn = e->asid ? (gfn - pfn) & FRAME_GFN_MASK : gfn;
    return GHCB_OK;
}

#endif
