/* The rules of RMPUPDATE, PSMASH, PVALIDATE, RMPADJUST, RMPQUERY and of firmware's page commands.
 *
 * Theory of operation. A rule is a check and a change. The check sees the frame and facts: of the
 * frame alone, or of the whole region where the operand is a 2 MiB page; what it refuses changes
 * nothing. The change is then made to each frame. `ghcb_frame_apply` is both for frames that lie side by
 * side in memory; the ledger uses the same check and change.
 *
 * Where several things are wrong the first test that fails decides; the order of RMPUPDATE and PSMASH
 * is: operands, right to change it, in use, overlap; that of firmware is AMD-ASPFW's. A command for
 * 4 KiB sees the own slot of a frame that lies inside a 2 MiB entry, and so never changes it; RMPUPDATE
 * meets the entry.
 *
 * Source: spec/snp-host.md 1.4, 5.4, 5.5 (AMD-ASPFW sev_rmp.c and sev_mcmd.c, Linux virt/svm/sev.c,
 * kvm/svm/sev.c, verismo rmp). Which cause gives code 1 and which code 2 is an assumption where those
 * differ, as are RMPQUERY and what a 4 KiB RMPUPDATE meets. An RMPADJUST of a page in use: Linux
 * d2062cc1b1c3.
 */
#ifndef GHCBCORE_FRAME_RULE_H
#define GHCBCORE_FRAME_RULE_H

#include <ghcbcore/frame_access.h>
#include <ghcbcore/psp.h>
#include <ghcbcore/sev.h>

#define FRAME_BIT(name) (1ULL << (name))

static inline uint64_t ghcb_frame_code(uint64_t code)
{
    return ghcb_frame_result(FRAME_RESULT_CODE, code, 0);
}

static inline uint64_t ghcb_frame_status(uint64_t status)
{
    return ghcb_frame_result(FRAME_RESULT_STATUS, status, 0) & -(uint64_t)(status != SNP_FW_OK);
}

/* Firmware's name for the state of a frame. */
static inline uint8_t ghcb_frame_state(const ghcb_frame_t *frame)
{
    ghcb_rmp_t e;

    ghcb_frame_entry(frame, 0, &e);
    return e.state;
}

static inline int ghcb_frame_is_region_op(const ghcb_frame_op_t *op)
{
    switch (op->kind) {
    case FRAME_OP_PSMASH:
    case FRAME_OP_UNSMASH:
        return 1;
    case FRAME_OP_RMPUPDATE:
    case FRAME_OP_PVALIDATE:
    case FRAME_OP_RMPADJUST:
    case FRAME_OP_LAUNCH_UPDATE:
    case FRAME_OP_RECLAIM:
    case FRAME_OP_SWAP_OUT:
    case FRAME_OP_SWAP_IN:
    case FRAME_OP_INIT:
        return op->size != 0;
    default:
        return 0;
    }
}

/* Whether an operation asks what lies in the frame's own slot, or for the entry around it. */
static inline int ghcb_frame_minds_place(const ghcb_frame_op_t *op)
{
    if (op->kind == FRAME_OP_RMPUPDATE)
        return !op->size;
    return op->kind >= FRAME_OP_GCTX_CREATE && op->kind != FRAME_OP_LEAF && op->kind != FRAME_OP_INIT
        && !ghcb_frame_is_region_op(op);
}

/* What such an operation meets in a region that begins with `head`. */
static inline ghcb_frame_t ghcb_frame_met(
    const ghcb_frame_op_t *op, const ghcb_frame_t *head, const ghcb_frame_t *frame, int is_first)
{
    ghcb_frame_t met = *frame;

    if (op->kind != FRAME_OP_RMPUPDATE)
        return ghcb_frame_own(frame, is_first);
    if (ghcb_frame_has(head->word, FRAME_LARGE))
        met.word |= head->word & FRAME_BIT(FRAME_IN_USE);
    return met;
}

/* How many of `n` frames from number `pfn` on RMPUPDATE gives a GPA below 2**48: firmware keeps its tags
 * above. Where the limit lies is an assumption. */
static inline uint64_t ghcb_frame_reach(const ghcb_frame_op_t *op, uint64_t pfn, uint64_t n)
{
    uint64_t gfn = op->asid ? (op->gfn + pfn) & FRAME_GFN_MASK : op->gfn;

    if (op->kind != FRAME_OP_RMPUPDATE || !(op->value & FRAME_NEW_ASSIGNED))
        return n;
    if (gfn >> RMP_TAG_SHIFT)
        return 0;
    return op->asid && n > (1ULL << RMP_TAG_SHIFT) - gfn ? (1ULL << RMP_TAG_SHIFT) - gfn : n;
}

/* The processor's instructions ------------------------------------------------------------------ */

/* Whether a 2 MiB operand's GPA begins in the middle of 2 MiB. */
static inline int ghcb_frame_is_askew(const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    return op->size && (op->gfn + r->at) & (FRAME_REGION - 1);
}

static inline uint64_t ghcb_frame_check_rmpupdate(
    const ghcb_frame_op_t *op, const ghcb_frame_rules_t *rules, const ghcb_frame_region_t *r)
{
    const uint64_t frozen = FRAME_BIT(FRAME_IMMUTABLE) | FRAME_BIT(FRAME_LOCK);
    uint64_t word = r->first.word;
    uint64_t others = r->n_assigned - ghcb_frame_has(word, FRAME_ASSIGNED);

    if (r->any & FRAME_BIT(FRAME_UNCOVERED) || op->asid > rules->max_asid || (op->size && r->at))
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    if (op->value & FRAME_NEW_ASSIGNED ? ghcb_frame_is_askew(op, r)
                                       : op->value & FRAME_NEW_IMMUTABLE || op->asid)
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    if (word & frozen)
        return ghcb_frame_code(SEV_RMP_FAIL_PERMISSION);
    if (word & FRAME_BIT(FRAME_IN_USE))
        return ghcb_frame_code(SEV_RMP_FAIL_IN_USE);
    if (op->size ? others && !ghcb_frame_has(word, FRAME_LARGE) : ghcb_frame_has(word, FRAME_LARGE))
        return ghcb_frame_code(SEV_RMP_FAIL_OVERLAP);
    if (r->any & frozen)
        return ghcb_frame_code(SEV_RMP_FAIL_PERMISSION);
    return ghcb_frame_code(r->any & FRAME_BIT(FRAME_IN_USE) ? SEV_RMP_FAIL_IN_USE : SEV_RMP_OK);
}

static inline void ghcb_frame_rmpupdate(
    const ghcb_frame_op_t *op, const ghcb_frame_rules_t *rules, ghcb_frame_t *frame)
{
    uint64_t old = frame->word;
    uint64_t word = old & ~(uint64_t)FRAME_RMP_MASK;
    uint64_t gfn = op->gfn & FRAME_GFN_MASK;
    uint64_t kept = FRAME_BIT(FRAME_VALIDATED) | FRAME_BIT(FRAME_VMSA)
        | (FRAME_BIT(FRAME_MAPPING_SHIFT) - FRAME_BIT(FRAME_RIGHTS_SHIFT));
    int is_same = rules->flags >> FRAME_RULE_KEEP_VALIDATED & 1 && op->asid
        && ghcb_frame_asid(old) == op->asid && frame->gfn == gfn
        && ghcb_frame_has(old, FRAME_LARGE) == (int)op->size && ghcb_frame_has(old, FRAME_ASSIGNED);

    frame->gfn = 0;
    if (op->value & FRAME_NEW_ASSIGNED) {
        frame->gfn = gfn;
        word |= FRAME_BIT(FRAME_ASSIGNED) | op->size << FRAME_LARGE | op->asid << FRAME_ASID_SHIFT;
        if (op->value & FRAME_NEW_IMMUTABLE)
            word |= FRAME_BIT(FRAME_IMMUTABLE);
    }
    if (is_same)
        word |= old & kept;
    else
        ghcb_frame_set_rights(&word, 0, RMP_RIGHTS_ALL);
    frame->word = word;
}

static inline uint64_t ghcb_frame_check_psmash(const ghcb_frame_region_t *r)
{
    if (r->at || !ghcb_frame_has(r->first.word, FRAME_LARGE))
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    if (r->any & (FRAME_BIT(FRAME_IMMUTABLE) | FRAME_BIT(FRAME_LOCK)))
        return ghcb_frame_code(SEV_RMP_FAIL_PERMISSION);
    if (r->any & FRAME_BIT(FRAME_IN_USE))
        return ghcb_frame_code(SEV_RMP_FAIL_IN_USE);
    return 0;
}

/* What PVALIDATE and RMPADJUST ask of the page that they are pointed at, before its sizes differ. */
static inline uint64_t ghcb_frame_check_operand(const ghcb_frame_op_t *op, const ghcb_frame_t *frame)
{
    uint64_t fault = ghcb_frame_owner(op, frame);

    if (!fault)
        fault = ghcb_frame_sizes(op, frame);
    if (!fault && !op->size && ghcb_frame_has(frame->word, FRAME_LARGE))
        fault = ghcb_frame_npf(op, FRAME_BIT(FAULT_NPF_SIZEM));
    return fault;
}

static inline uint64_t ghcb_frame_check_pvalidate(const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    uint64_t refusal;

    if (op->vmpl)
        return ghcb_frame_result(FRAME_RESULT_GP, 0, 0);
    if (op->value > 1 || ghcb_frame_is_askew(op, r))
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    refusal = ghcb_frame_check_operand(op, &r->first);
    if (refusal)
        return refusal;
    if (op->size && !ghcb_frame_has(r->first.word, FRAME_LARGE))
        return ghcb_frame_code(SEV_RMP_FAIL_SIZE_MISMATCH);
    if ((uint64_t)ghcb_frame_has(r->first.word, FRAME_VALIDATED) == op->value)
        return FRAME_BIT(FRAME_RESULT_UNCHANGED);
    return 0;
}

static inline uint64_t ghcb_frame_check_rmpadjust(const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    uint64_t rights = op->value & ~(uint64_t)FRAME_ADJUST_VMSA;
    uint64_t refusal;

    if (ghcb_frame_is_askew(op, r) || op->target >= SEV_N_VMPLS)
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    if (op->target <= op->vmpl)
        return ghcb_frame_code(SEV_RMP_FAIL_PERMISSION);
    refusal = ghcb_frame_check_operand(op, &r->first);
    if (refusal)
        return refusal;
    if (!ghcb_frame_has(r->first.word, FRAME_VALIDATED))
        return ghcb_frame_result(FRAME_RESULT_VC, 0, 0);
    if (op->size && !ghcb_frame_has(r->first.word, FRAME_LARGE))
        return ghcb_frame_code(SEV_RMP_FAIL_SIZE_MISMATCH);
    if (rights & ~ghcb_frame_rights(r->first.word, (unsigned)op->vmpl))
        return ghcb_frame_code(SEV_RMP_FAIL_PERMISSION);
    if (r->any & FRAME_BIT(FRAME_IN_USE))
        return ghcb_frame_code(SEV_RMP_FAIL_IN_USE);
    return 0;
}

static inline void ghcb_frame_rmpadjust(const ghcb_frame_op_t *op, ghcb_frame_t *frame)
{
    ghcb_frame_set_rights(&frame->word, (unsigned)op->target, op->value & RMP_RIGHTS_ALL);
    if (!op->vmpl)
        ghcb_frame_set(&frame->word, FRAME_VMSA, 1, op->value & FRAME_ADJUST_VMSA ? 1 : 0);
}

/* Details of RMPQUERY are an assumption: rights of the own VMPL or one below it. */
static inline uint64_t ghcb_frame_check_rmpquery(const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    uint64_t fault;

    if (op->target >= SEV_N_VMPLS)
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    if (op->target < op->vmpl)
        return ghcb_frame_code(SEV_RMP_FAIL_PERMISSION);
    fault = ghcb_frame_owner(op, &r->first);
    if (!fault)
        fault = ghcb_frame_sizes(op, &r->first);
    if (fault)
        return fault;
    if (!ghcb_frame_has(r->first.word, FRAME_VALIDATED))
        return ghcb_frame_result(FRAME_RESULT_VC, 0, 0);
    return ghcb_frame_result(
        FRAME_RESULT_CODE, SEV_RMP_OK, ghcb_frame_rights(r->first.word, (unsigned)op->target));
}

/* Firmware's page commands ---------------------------------------------------------------------- */

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

/* Any operation --------------------------------------------------------------------------------- */

/* Whether the operation may happen to `frame`; `r` has the facts of this frame, or of its region if the
 * operand or the mapping is larger. */
static inline uint64_t ghcb_frame_check(
    const ghcb_frame_op_t *op, const ghcb_frame_rules_t *rules, const ghcb_frame_t *frame,
    const ghcb_frame_region_t *r)
{
    switch (op->kind) {
    case FRAME_OP_RMPUPDATE:
        return ghcb_frame_check_rmpupdate(op, rules, r);
    case FRAME_OP_PSMASH:
        return ghcb_frame_check_psmash(r);
    case FRAME_OP_PVALIDATE:
        return ghcb_frame_check_pvalidate(op, r);
    case FRAME_OP_RMPADJUST:
        return ghcb_frame_check_rmpadjust(op, r);
    case FRAME_OP_RMPQUERY:
        return ghcb_frame_check_rmpquery(op, r);
    case FRAME_OP_HOST_ACCESS:
        return ghcb_frame_host_access(op, frame, r);
    case FRAME_OP_GUEST_ACCESS:
        return ghcb_frame_guest_access(op, rules, frame, r);
    case FRAME_OP_DMA:
        return ghcb_frame_dma(op, frame);
    case FRAME_OP_GCTX_CREATE:
        return ghcb_frame_check_small(r, RMP_STATE_FIRMWARE, SNP_FW_PAGE_SIZE);
    case FRAME_OP_MD_INIT: /* of any size, as in AMD-ASPFW */
        return ghcb_frame_check_state(r, RMP_STATE_FIRMWARE, SNP_FW_PAGE_STATE);
    case FRAME_OP_DECOMMISSION:
        return ghcb_frame_check_state(r, RMP_STATE_CONTEXT, SNP_FW_GUEST_INVALID);
    case FRAME_OP_LAUNCH_UPDATE:
        return ghcb_frame_check_launch_update(op, r);
    case FRAME_OP_RECLAIM:
        return ghcb_frame_check_reclaim(op, r);
    case FRAME_OP_SET_STATE: /* passes over what has no entry */
        return ghcb_frame_has(frame->word, FRAME_UNCOVERED)
            ? 0
            : ghcb_frame_check_small(r, RMP_STATE_FIRMWARE, SNP_FW_PAGE_STATE);
    case FRAME_OP_UNSMASH:
        return ghcb_frame_check_unsmash(r);
    case FRAME_OP_IOMMU_TAKE:
        return ghcb_frame_check_state(r, RMP_STATE_HYPERVISOR, SNP_FW_PAGE_STATE);
    case FRAME_OP_IOMMU_RELEASE:
        return ghcb_frame_check_state(r, RMP_STATE_FIRMWARE_IOMMU, SNP_FW_PAGE_STATE);
    case FRAME_OP_SWAP_OUT:
    case FRAME_OP_SWAP_IN:
        return ghcb_frame_check_swap(op, r);
    case FRAME_OP_INIT: /* a 2 MiB entry is written as a whole */
        return ghcb_frame_status(
            !op->size && ghcb_frame_has(frame->word, FRAME_LARGE) ? SNP_FW_PAGE_SIZE : SNP_FW_OK);
    default:
        return 0;
    }
}

/* Change one frame, after a check that refused nothing and did not say "unchanged". */
static inline void ghcb_frame_change(
    const ghcb_frame_op_t *op, const ghcb_frame_rules_t *rules, ghcb_frame_t *frame)
{
    switch (op->kind) {
    case FRAME_OP_MAP:
        ghcb_frame_set(&frame->word, FRAME_MAPPING_SHIFT, FRAME_MAPPING_WIDTH, op->value);
        ghcb_frame_set(
            &frame->word, FRAME_LEAF_SHIFT, FRAME_LEAF_WIDTH, op->value == FRAME_UNMAPPED ? 0 : op->size);
        break;
    case FRAME_OP_LEAF:
        if (ghcb_frame_get(frame->word, FRAME_LEAF_SHIFT, FRAME_LEAF_WIDTH) > op->size)
            ghcb_frame_set(&frame->word, FRAME_LEAF_SHIFT, FRAME_LEAF_WIDTH, op->size);
        break;
    case FRAME_OP_BELIEVE:
        ghcb_frame_set(&frame->word, FRAME_BELIEVED, 1, op->value);
        break;
    case FRAME_OP_LIST:
        ghcb_frame_set(&frame->word, FRAME_LISTED_SHIFT, FRAME_LISTED_WIDTH, op->value);
        break;
    case FRAME_OP_CONTENT:
        ghcb_frame_set(&frame->word, FRAME_KEY_SHIFT, FRAME_KEY_WIDTH, op->value);
        break;
    case FRAME_OP_HOST_ACCESS:
    case FRAME_OP_GUEST_ACCESS:
    case FRAME_OP_DMA:
        if (op->value & FRAME_ACCESS_WRITE && op->value & FRAME_ACCESS_STORE)
            ghcb_frame_set(&frame->word, FRAME_KEY_SHIFT, FRAME_KEY_WIDTH, ghcb_frame_store_key(op));
        break;
    case FRAME_OP_RMPUPDATE:
        ghcb_frame_rmpupdate(op, rules, frame);
        break;
    case FRAME_OP_PSMASH:
        frame->word &= ~FRAME_BIT(FRAME_LARGE);
        break;
    case FRAME_OP_PVALIDATE:
        ghcb_frame_set(&frame->word, FRAME_VALIDATED, 1, op->value);
        ghcb_frame_set(&frame->word, FRAME_BELIEVED, 1, op->value);
        break;
    case FRAME_OP_RMPADJUST:
        ghcb_frame_rmpadjust(op, frame);
        break;
    case FRAME_OP_VMRUN:
        if (!ghcb_frame_has(frame->word, FRAME_UNCOVERED))
            frame->word |= FRAME_BIT(FRAME_IN_USE);
        break;
    case FRAME_OP_VMEXIT:
        frame->word &= ~FRAME_BIT(FRAME_IN_USE);
        break;
    case FRAME_OP_GCTX_CREATE:
        frame->word |= FRAME_BIT(FRAME_VMSA);
        break;
    case FRAME_OP_DECOMMISSION:
        frame->word &= ~FRAME_BIT(FRAME_VMSA);
        break;
    case FRAME_OP_MD_INIT:
        frame->gfn = ghcb_frame_metadata_gfn(op->gfn);
        break;
    case FRAME_OP_LAUNCH_UPDATE:
        ghcb_frame_launch_update(op, frame);
        break;
    case FRAME_OP_RECLAIM:
        ghcb_frame_reclaim(frame);
        break;
    case FRAME_OP_SET_STATE:
        if (!ghcb_frame_has(frame->word, FRAME_UNCOVERED))
            ghcb_frame_fresh(frame, FRAME_BIT(FRAME_IMMUTABLE), 0);
        break;
    case FRAME_OP_UNSMASH:
        frame->word |= FRAME_BIT(FRAME_LARGE);
        break;
    case FRAME_OP_IOMMU_TAKE:
        ghcb_frame_fresh(frame, FRAME_BIT(FRAME_ASSIGNED) | FRAME_BIT(FRAME_IMMUTABLE),
            (uint64_t)RMP_TAG_FIRMWARE_IOMMU << RMP_TAG_SHIFT | 1);
        break;
    case FRAME_OP_IOMMU_RELEASE:
        ghcb_frame_fresh(frame, FRAME_BIT(FRAME_ASSIGNED), 0);
        break;
    case FRAME_OP_SWAP_OUT:
        ghcb_frame_swap_out(op, frame);
        break;
    case FRAME_OP_SWAP_IN:
        ghcb_frame_swap_in(op, frame);
        break;
    case FRAME_OP_INIT:
        ghcb_frame_init(op, frame);
        break;
    }
}

/* Whether a frame's own slot is met that lies inside a 2 MiB entry. What is not refused there leaves it
 * as it is; but what is not refused of the first frame writes the entry, and so all 512. */
static inline int ghcb_frame_is_inside(const ghcb_frame_op_t *op, const ghcb_frame_t *head)
{
    return ghcb_frame_minds_place(op) && ghcb_frame_has(head->word, FRAME_LARGE);
}

/* One operation on frame `at` of a region of `n` frames that lie side by side; number `pfn` is that of
 * the first. The leaf of a guest's mapping is that of the operation; who else lies in a leaf that is
 * split is the caller's affair. */
static inline uint64_t ghcb_frame_apply(
    const ghcb_frame_op_t *op, const ghcb_frame_rules_t *rules, ghcb_frame_t *frames, uint64_t n,
    uint64_t at, uint64_t pfn)
{
    ghcb_frame_region_t facts = {0};
    ghcb_frame_t met = frames[at];
    int is_region = ghcb_frame_is_region_op(op), is_inside = ghcb_frame_is_inside(op, &frames[0]);
    uint64_t result;

    if (!ghcb_frame_reach(op, pfn + at, 1))
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    if (ghcb_frame_minds_place(op) || (is_region && at && op->kind >= FRAME_OP_GCTX_CREATE))
        met = ghcb_frame_met(op, &frames[0], &frames[at], !at);
    if ((is_region && !at) || ghcb_frame_access_is_wide(op)) {
        for (uint64_t i = 0; i < n; i++)
            ghcb_frame_region_add(&facts, &frames[i], 1);
    } else {
        ghcb_frame_region_add(&facts, &met, 1);
        facts.at = at;
    }
    result = ghcb_frame_check(op, rules, &met, &facts);
    if (is_region && at && !ghcb_frame_refused(result))
        return ghcb_frame_status(SNP_FW_ADDRESS); /* no page of 2 MiB begins there */
    if (ghcb_frame_refused(result) || result >> FRAME_RESULT_UNCHANGED & 1 || (is_inside && at))
        return result;
    if (is_region || is_inside) {
        for (uint64_t i = 0; i < n; i++)
            ghcb_frame_change(op, rules, &frames[i]);
    } else {
        ghcb_frame_change(op, rules, &frames[at]);
    }
    return result;
}

#endif
