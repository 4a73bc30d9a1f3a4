/* The rules of firmware's page commands: what each asks of a page, what it makes of it.
 *
 * A rule is a check and a change: see frame_rule.h.
 *
 * Source: AMD-ASPFW sev_rmp.c, sev_mcmd.c (Genoa).
 */
#ifndef GHCBCORE_FRAME_FIRMWARE_H
#define GHCBCORE_FRAME_FIRMWARE_H

#include <ghcbcore/frame_instruction.h>

/* Whether the operand has another size than the page; a page without entry has none. */
static inline int ghcb_frame_size_differs(const ghcb_frame_op_t *op, const ghcb_frame_t *frame)
{
    return !ghcb_frame_has(frame->word, FRAME_UNCOVERED)
        && op->size != (uint64_t)ghcb_frame_has(frame->word, FRAME_LARGE);
}

static inline uint64_t ghcb_frame_check_launch_update(
    const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    if (ghcb_frame_state(&r->first) != RMP_STATE_PRE_GUEST)
        return ghcb_frame_status(SNP_FW_PAGE_STATE);
    if (ghcb_frame_size_differs(op, &r->first)
        || (op->size && op->value & (FRAME_LAUNCH_VMSA | FRAME_LAUNCH_SMALL)))
        return ghcb_frame_status(SNP_FW_PAGE_SIZE);
    if (ghcb_frame_asid(r->first.word) != op->asid)
        return ghcb_frame_status(SNP_FW_PAGE_OWNER);
    return 0;
}

static inline void ghcb_frame_make_mutable(uint64_t *word)
{
    *word &= ~(FRAME_BIT(FRAME_IMMUTABLE) | FRAME_BIT(FRAME_LOCK));
}

static inline void ghcb_frame_launch_update(const ghcb_frame_op_t *op, ghcb_frame_t *frame)
{
    uint64_t word = frame->word;

    word |= FRAME_BIT(FRAME_VALIDATED);
    if (op->value & FRAME_LAUNCH_VMSA)
        word |= FRAME_BIT(FRAME_VMSA);
    for (unsigned vmpl = 1; vmpl < SEV_N_VMPLS; vmpl++)
        ghcb_frame_set_rights(&word, vmpl, op->target >> (8 * (vmpl - 1)) & RMP_RIGHTS_ALL);
    ghcb_frame_set(&word, FRAME_KEY_SHIFT, FRAME_KEY_WIDTH, op->asid);
    ghcb_frame_make_mutable(&word);
    frame->word = word;
}

static inline uint64_t ghcb_frame_check_reclaim(const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    if (ghcb_frame_size_differs(op, &r->first))
        return ghcb_frame_status(SNP_FW_PAGE_SIZE);
    if (!(r->first.word & (FRAME_BIT(FRAME_IMMUTABLE) | FRAME_BIT(FRAME_UNCOVERED))))
        return 0; /* nothing to do, and nothing wrong */
    switch (ghcb_frame_state(&r->first)) {
    case RMP_STATE_METADATA:
    case RMP_STATE_FIRMWARE:
    case RMP_STATE_PRE_GUEST:
    case RMP_STATE_PRE_SWAP:
        return 0;
    default:
        return ghcb_frame_status(SNP_FW_PAGE_STATE);
    }
}

/* Metadata loses its tag; the rest of the GPA field stays. */
static inline void ghcb_frame_reclaim(ghcb_frame_t *frame)
{
    if (!ghcb_frame_has(frame->word, FRAME_IMMUTABLE))
        return;
    ghcb_frame_make_mutable(&frame->word);
    if (!ghcb_frame_asid(frame->word))
        frame->gfn &= (1ULL << RMP_TAG_SHIFT) - 1;
}

/* A frame in one state, of any size. */
static inline uint64_t ghcb_frame_check_state(
    const ghcb_frame_region_t *r, uint8_t state, uint64_t otherwise)
{
    return ghcb_frame_status(ghcb_frame_state(&r->first) == state ? SNP_FW_OK : otherwise);
}

/* The same, and 4 KiB. */
static inline uint64_t ghcb_frame_check_small(const ghcb_frame_region_t *r, uint8_t state, uint64_t size)
{
    uint64_t refusal = ghcb_frame_check_state(r, state, SNP_FW_PAGE_STATE);

    return refusal || !ghcb_frame_has(r->first.word, FRAME_LARGE) ? refusal : ghcb_frame_status(size);
}

static inline uint64_t ghcb_frame_check_unsmash(const ghcb_frame_region_t *r)
{
    uint64_t word = r->first.word;

    if (r->at)
        return ghcb_frame_status(SNP_FW_PARAM);
    if (r->differ || !r->same_gfn || word & (FRAME_BIT(FRAME_LARGE) | FRAME_BIT(FRAME_VMSA))
        || !ghcb_frame_has(word, FRAME_IMMUTABLE) || !ghcb_frame_asid(word)
        || r->first.gfn & (FRAME_REGION - 1))
        return ghcb_frame_status(SNP_FW_PAGE_STATE);
    return 0;
}

/* The GPA field of metadata of the context in frame `gctx`. */
static inline uint64_t ghcb_frame_metadata_gfn(uint64_t gctx)
{
    return (uint64_t)RMP_TAG_METADATA << RMP_TAG_SHIFT | (gctx & ((1ULL << RMP_TAG_SHIFT) - 1));
}

static inline uint64_t ghcb_frame_check_swap(const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    uint8_t state = ghcb_frame_state(&r->first);
    int is_metadata = op->value & FRAME_SWAP_METADATA, is_out = op->kind == FRAME_OP_SWAP_OUT;
    int fits;

    if (ghcb_frame_size_differs(op, &r->first))
        return ghcb_frame_status(SNP_FW_PAGE_SIZE);
    if (is_metadata)
        fits = state == (is_out ? RMP_STATE_METADATA : RMP_STATE_FIRMWARE);
    else
        fits = state == RMP_STATE_PRE_GUEST || (is_out && state == RMP_STATE_PRE_SWAP);
    if (!fits)
        return ghcb_frame_status(SNP_FW_PAGE_STATE);
    if (is_metadata ? is_out && r->first.gfn != ghcb_frame_metadata_gfn(op->gfn)
                    : ghcb_frame_asid(r->first.word) != op->asid)
        return ghcb_frame_status(SNP_FW_PAGE_OWNER);
    return 0;
}

static inline void ghcb_frame_swap_out(const ghcb_frame_op_t *op, ghcb_frame_t *frame)
{
    if (op->value & FRAME_SWAP_METADATA) {
        frame->word &= ~FRAME_BIT(FRAME_VMSA);
        frame->gfn = 0;
    } else {
        frame->word &= ~FRAME_BIT(FRAME_VALIDATED);
    }
}

static inline void ghcb_frame_swap_in(const ghcb_frame_op_t *op, ghcb_frame_t *frame)
{
    if (op->value & FRAME_SWAP_METADATA) {
        frame->gfn = ghcb_frame_metadata_gfn(op->gfn);
        return;
    }
    frame->gfn = op->gfn & FRAME_GFN_MASK;
    ghcb_frame_set(&frame->word, FRAME_VMSA, 1, op->value & FRAME_SWAP_VMSA ? 1 : 0);
    if (op->value & FRAME_SWAP_VALIDATED)
        frame->word |= FRAME_BIT(FRAME_VALIDATED);
    for (unsigned vmpl = 0; vmpl < SEV_N_VMPLS; vmpl++)
        ghcb_frame_set_rights(&frame->word, vmpl, op->target >> 8 * vmpl & RMP_RIGHTS_ALL);
    ghcb_frame_set(&frame->word, FRAME_KEY_SHIFT, FRAME_KEY_WIDTH, op->asid);
}

/* PAGE_MOVE of one 4 KiB or, frame by frame, of one 2 MiB page. Neither frame is changed on refusal.
 * `distance` is the source's number less the destination's. Of frames inside a 2 MiB page a move of
 * 4 KiB sees what ghcb_frame_own says. The source is written first: a page that is moved onto itself
 * ends as the destination. */
static inline uint64_t ghcb_frame_move(
    const ghcb_frame_op_t *op, ghcb_frame_t *source, ghcb_frame_t *destination, uint64_t distance)
{
    uint8_t from = ghcb_frame_state(source), to = ghcb_frame_state(destination);
    uint64_t moved = FRAME_BIT(FRAME_VMSA) | FRAME_BIT(FRAME_VALIDATED)
        | (FRAME_BIT(FRAME_MAPPING_SHIFT) - FRAME_BIT(FRAME_RIGHTS_SHIFT));

    if (ghcb_frame_size_differs(op, source) || ghcb_frame_size_differs(op, destination))
        return ghcb_frame_status(SNP_FW_PAGE_SIZE);
    if (from == RMP_STATE_METADATA && to == RMP_STATE_FIRMWARE) {
        destination->gfn = source->gfn;
        source->gfn = 0;
        source->word &= ~FRAME_BIT(FRAME_VMSA);
        return 0;
    }
    if ((from != RMP_STATE_PRE_GUEST && from != RMP_STATE_PRE_SWAP) || to != RMP_STATE_PRE_GUEST)
        return ghcb_frame_status(SNP_FW_PAGE_STATE);
    if (ghcb_frame_asid(source->word) != op->asid || ghcb_frame_asid(destination->word) != op->asid)
        return ghcb_frame_status(SNP_FW_PAGE_OWNER);
    destination->word = (destination->word & ~moved) | (source->word & moved);
    destination->gfn = (source->gfn + distance) & FRAME_GFN_MASK;
    ghcb_frame_set(&destination->word, FRAME_KEY_SHIFT, FRAME_KEY_WIDTH, op->asid);
    ghcb_frame_make_mutable(&destination->word);
    source->word &= ~FRAME_BIT(FRAME_VALIDATED);
    ghcb_frame_make_mutable(&source->word);
    return 0;
}

/* Firmware writes an entry anew; what software thinks stays, and a page in use is in use. */
static inline void ghcb_frame_fresh(ghcb_frame_t *frame, uint64_t bits, uint64_t gfn)
{
    frame->word = (frame->word & (~(uint64_t)FRAME_RMP_MASK | FRAME_BIT(FRAME_IN_USE))) | bits;
    frame->gfn = gfn;
}

/* SNP_INIT_EX builds the table: the frame has no entry, or is the hypervisor's, fixed, or a page of the
 * table itself. It refuses while a CPU uses any page: that is for whoever gives the command. */
static inline void ghcb_frame_init(const ghcb_frame_op_t *op, ghcb_frame_t *frame)
{
    uint64_t bits = 0;

    if (op->value == RMP_STATE_DEFAULT)
        bits = FRAME_BIT(FRAME_UNCOVERED);
    if (op->value == RMP_STATE_HV_FIXED)
        bits = FRAME_BIT(FRAME_IMMUTABLE);
    if (op->value == RMP_STATE_FIRMWARE)
        bits = FRAME_BIT(FRAME_ASSIGNED) | FRAME_BIT(FRAME_IMMUTABLE) | FRAME_BIT(FRAME_LOCK);
    ghcb_frame_fresh(frame, bits, 0);
}

#endif
