/* The rules of RMPUPDATE, PSMASH, PVALIDATE, RMPADJUST, RMPQUERY and of firmware's page commands.
 *
 * Theory of operation. A rule is a check and a change. The check sees facts: of one frame, or of the
 * whole region where the operand is a 2 MiB page; what it refuses changes nothing. The change is
 * then made to each frame. `ghcb_frame_apply` is both for one frame; `ghcb_frame_apply_region` for
 * frames that lie side by side in memory. The ledger uses the same check and change.
 *
 * Where several things are wrong the first test that fails decides; the order is: operands, right
 * to change it, in use, overlap. A frame that is assigned to nobody has no size, no rights.
 *
 * Source: spec/snp-host.md 5.4, 5.5 (AMD-ASPFW sev_rmp.c, Linux virt/svm/sev.c, kvm/svm/sev.c,
 * verismo rmp). Which cause gives code 1 and which code 2 is an assumption where those differ.
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
        return op->size != 0;
    default:
        return 0;
    }
}

/* The processor's instructions ------------------------------------------------------------------ */

static inline uint64_t ghcb_frame_check_rmpupdate(
    const ghcb_frame_op_t *op, const ghcb_frame_rules_t *rules, const ghcb_frame_region_t *r)
{
    int assigned = op->value & FRAME_NEW_ASSIGNED;
    uint64_t others = r->n_assigned - ghcb_frame_has(r->first.word, FRAME_ASSIGNED);

    if (r->any & FRAME_BIT(FRAME_UNCOVERED) || op->size > RMP_PAGE_2M || op->asid > rules->max_asid
        || (!assigned && (op->value & FRAME_NEW_IMMUTABLE || op->asid))
        || (op->size && op->asid && op->gfn & (FRAME_REGION - 1)))
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    if (r->any & (FRAME_BIT(FRAME_IMMUTABLE) | FRAME_BIT(FRAME_LOCK)))
        return ghcb_frame_code(SEV_RMP_FAIL_PERMISSION);
    if (r->any & FRAME_BIT(FRAME_IN_USE))
        return ghcb_frame_code(SEV_RMP_FAIL_IN_USE);
    if (op->size ? others && !(r->any & FRAME_BIT(FRAME_LARGE)) : ghcb_frame_has(r->any, FRAME_LARGE))
        return ghcb_frame_code(SEV_RMP_FAIL_OVERLAP);
    return 0;
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
        if (is_same)
            word |= old & kept;
        else
            ghcb_frame_set_rights(&word, 0, RMP_RIGHTS_ALL);
    }
    frame->word = word;
}

static inline uint64_t ghcb_frame_check_psmash(const ghcb_frame_region_t *r)
{
    if (!ghcb_frame_has(r->first.word, FRAME_LARGE))
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    if (r->any & (FRAME_BIT(FRAME_IMMUTABLE) | FRAME_BIT(FRAME_LOCK)))
        return ghcb_frame_code(SEV_RMP_FAIL_PERMISSION);
    if (r->any & FRAME_BIT(FRAME_IN_USE))
        return ghcb_frame_code(SEV_RMP_FAIL_IN_USE);
    return 0;
}

/* What PVALIDATE and RMPADJUST ask of the page that they are pointed at. */
static inline uint64_t ghcb_frame_check_operand(const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    uint64_t fault = ghcb_frame_owner(op, &r->first);

    if (!fault)
        fault = ghcb_frame_sizes(op, &r->first);
    if (fault)
        return fault;
    if (!op->size && ghcb_frame_has(r->first.word, FRAME_LARGE))
        return ghcb_frame_npf(op, FRAME_BIT(FAULT_NPF_SIZEM));
    if (op->size && !ghcb_frame_has(r->first.word, FRAME_LARGE))
        return ghcb_frame_code(SEV_RMP_FAIL_SIZE_MISMATCH);
    return 0;
}

static inline uint64_t ghcb_frame_check_pvalidate(const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    uint64_t refusal;

    if (op->vmpl)
        return ghcb_frame_result(FRAME_RESULT_GP, 0, 0);
    if (op->value > 1 || op->size > RMP_PAGE_2M || (op->size && op->gfn & (FRAME_REGION - 1)))
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    refusal = ghcb_frame_check_operand(op, r);
    if (refusal)
        return refusal;
    if ((uint64_t)ghcb_frame_has(r->first.word, FRAME_VALIDATED) == op->value)
        return FRAME_BIT(FRAME_RESULT_UNCHANGED);
    return 0;
}

static inline uint64_t ghcb_frame_check_rmpadjust(const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    uint64_t rights = op->value & ~(uint64_t)FRAME_ADJUST_VMSA;
    uint64_t refusal;

    if (op->size > RMP_PAGE_2M || (op->size && op->gfn & (FRAME_REGION - 1)) || rights & ~RMP_RIGHTS_ALL
        || op->target >= SEV_N_VMPLS)
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    if (op->target <= op->vmpl)
        return ghcb_frame_code(SEV_RMP_FAIL_PERMISSION);
    refusal = ghcb_frame_check_operand(op, r);
    if (refusal)
        return refusal;
    if (!ghcb_frame_has(r->first.word, FRAME_VALIDATED))
        return ghcb_frame_result(FRAME_RESULT_VC, 0, 0);
    if (rights & ~ghcb_frame_rights(r->first.word, (unsigned)op->vmpl)
        || (op->vmpl && op->value & FRAME_ADJUST_VMSA))
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

/* Details of RMPQUERY are an assumption: rights of a VMPL that is not above the asking one. */
static inline uint64_t ghcb_frame_check_rmpquery(const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    uint64_t fault;

    if (op->target >= SEV_N_VMPLS)
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    if (op->target <= op->vmpl)
        return ghcb_frame_code(SEV_RMP_FAIL_PERMISSION);
    fault = ghcb_frame_owner(op, &r->first);
    if (!fault)
        fault = ghcb_frame_sizes(op, &r->first);
    if (fault)
        return fault;
    return ghcb_frame_result(
        FRAME_RESULT_CODE, SEV_RMP_OK, ghcb_frame_rights(r->first.word, (unsigned)op->target));
}

/* A VMSA must be one; whatever a CPU runs, no other runs. */
static inline uint64_t ghcb_frame_check_vmrun(const ghcb_frame_region_t *r)
{
    uint64_t word = r->first.word;

    if (word & FRAME_BIT(FRAME_ASSIGNED) && !(word & FRAME_BIT(FRAME_VMSA)))
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    return ghcb_frame_code(word & FRAME_BIT(FRAME_IN_USE) ? SEV_RMP_FAIL_IN_USE : SEV_RMP_OK);
}

/* Firmware's page commands ---------------------------------------------------------------------- */

static inline uint64_t ghcb_frame_check_launch_update(
    const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    if (ghcb_frame_state(&r->first) != RMP_STATE_PRE_GUEST)
        return ghcb_frame_status(SNP_FW_PAGE_STATE);
    if (op->size != (uint64_t)ghcb_frame_has(r->first.word, FRAME_LARGE))
        return ghcb_frame_status(SNP_FW_PAGE_SIZE);
    if (op->size && op->value & (FRAME_LAUNCH_VMSA | FRAME_LAUNCH_SMALL))
        return ghcb_frame_status(SNP_FW_PAGE_SIZE);
    if (ghcb_frame_asid(r->first.word) != op->asid)
        return ghcb_frame_status(SNP_FW_PAGE_OWNER);
    return 0;
}

static inline void ghcb_frame_launch_update(const ghcb_frame_op_t *op, ghcb_frame_t *frame)
{
    uint64_t word = frame->word;

    word |= FRAME_BIT(FRAME_VALIDATED);
    word &= ~(FRAME_BIT(FRAME_IMMUTABLE) | FRAME_BIT(FRAME_LOCK));
    ghcb_frame_set(&word, FRAME_VMSA, 1, op->value & FRAME_LAUNCH_VMSA ? 1 : 0);
    for (unsigned vmpl = 1; vmpl < SEV_N_VMPLS; vmpl++)
        ghcb_frame_set_rights(&word, vmpl, op->target >> (8 * (vmpl - 1)) & RMP_RIGHTS_ALL);
    ghcb_frame_set(&word, FRAME_KEY_SHIFT, FRAME_KEY_WIDTH, op->asid);
    frame->word = word;
}

static inline uint64_t ghcb_frame_check_reclaim(const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    if (r->any & FRAME_BIT(FRAME_UNCOVERED))
        return ghcb_frame_status(SNP_FW_PAGE_STATE);
    if (op->size != (uint64_t)ghcb_frame_has(r->first.word, FRAME_LARGE))
        return ghcb_frame_status(SNP_FW_PAGE_SIZE);
    if (!ghcb_frame_has(r->first.word, FRAME_IMMUTABLE))
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

static inline void ghcb_frame_reclaim(ghcb_frame_t *frame)
{
    if (!ghcb_frame_has(frame->word, FRAME_IMMUTABLE))
        return;
    frame->word &= ~FRAME_BIT(FRAME_IMMUTABLE);
    if (!ghcb_frame_asid(frame->word)) {
        frame->word &= ~FRAME_BIT(FRAME_LOCK);
        frame->gfn = 0;
    }
}

/* One frame in one state, 4 KiB. */
static inline uint64_t ghcb_frame_check_state(
    const ghcb_frame_region_t *r, uint8_t state, uint64_t otherwise)
{
    if (ghcb_frame_state(&r->first) != state)
        return ghcb_frame_status(otherwise);
    return ghcb_frame_status(ghcb_frame_has(r->first.word, FRAME_LARGE) ? SNP_FW_PAGE_SIZE : SNP_FW_OK);
}

static inline uint64_t ghcb_frame_check_unsmash(const ghcb_frame_region_t *r)
{
    uint64_t word = r->first.word;

    if (r->differ || !r->same_gfn || word & (FRAME_BIT(FRAME_LARGE) | FRAME_BIT(FRAME_VMSA))
        || !ghcb_frame_has(word, FRAME_IMMUTABLE) || !ghcb_frame_asid(word)
        || r->first.gfn & (FRAME_REGION - 1))
        return ghcb_frame_status(SNP_FW_PAGE_STATE);
    return 0;
}

static inline uint64_t ghcb_frame_check_swap(const ghcb_frame_op_t *op, const ghcb_frame_region_t *r)
{
    uint8_t state = ghcb_frame_state(&r->first);
    int is_metadata = op->kind == FRAME_OP_SWAP_OUT ? state == RMP_STATE_METADATA
                                                    : (op->value & FRAME_SWAP_METADATA) != 0;

    if (is_metadata ? state != (op->kind == FRAME_OP_SWAP_OUT ? RMP_STATE_METADATA : RMP_STATE_FIRMWARE)
                    : state != RMP_STATE_PRE_GUEST
                && (op->kind == FRAME_OP_SWAP_IN || state != RMP_STATE_PRE_SWAP))
        return ghcb_frame_status(SNP_FW_PAGE_STATE);
    if (ghcb_frame_has(r->first.word, FRAME_LARGE) != (int)op->size)
        return ghcb_frame_status(SNP_FW_PAGE_SIZE);
    if (!is_metadata && ghcb_frame_asid(r->first.word) != op->asid)
        return ghcb_frame_status(SNP_FW_PAGE_OWNER);
    return 0;
}

static inline uint64_t ghcb_frame_metadata_gfn(uint64_t gctx)
{
    return (uint64_t)RMP_TAG_METADATA << RMP_TAG_SHIFT | (gctx & ((1ULL << RMP_TAG_SHIFT) - 1));
}

static inline void ghcb_frame_swap(const ghcb_frame_op_t *op, ghcb_frame_t *frame)
{
    if (op->kind == FRAME_OP_SWAP_OUT) {
        if (ghcb_frame_asid(frame->word))
            frame->word &= ~FRAME_BIT(FRAME_VALIDATED);
        else
            frame->gfn = 0; /* METADATA to FIRMWARE */
    } else if (op->value & FRAME_SWAP_METADATA) {
        frame->gfn = ghcb_frame_metadata_gfn(op->gfn);
    } else {
        if (op->value & FRAME_SWAP_VALIDATED)
            frame->word |= FRAME_BIT(FRAME_VALIDATED);
        ghcb_frame_set(&frame->word, FRAME_KEY_SHIFT, FRAME_KEY_WIDTH, op->asid);
    }
}

/* PAGE_MOVE of one 4 KiB or, frame by frame, of one 2 MiB page. Neither frame is changed on refusal.
 * `distance` is the source's number less the destination's. */
static inline uint64_t ghcb_frame_move(
    const ghcb_frame_op_t *op, ghcb_frame_t *source, ghcb_frame_t *destination, uint64_t distance)
{
    uint8_t from = ghcb_frame_state(source), to = ghcb_frame_state(destination);
    int is_guest = from == RMP_STATE_PRE_GUEST || from == RMP_STATE_PRE_SWAP;
    uint64_t moved = FRAME_BIT(FRAME_VMSA) | FRAME_BIT(FRAME_VALIDATED)
        | (FRAME_BIT(FRAME_MAPPING_SHIFT) - FRAME_BIT(FRAME_RIGHTS_SHIFT));

    if ((!is_guest && from != RMP_STATE_METADATA)
        || to != (is_guest ? RMP_STATE_PRE_GUEST : RMP_STATE_FIRMWARE))
        return ghcb_frame_status(SNP_FW_PAGE_STATE);
    if (ghcb_frame_has(source->word, FRAME_LARGE) != (int)op->size
        || ghcb_frame_has(destination->word, FRAME_LARGE) != (int)op->size)
        return ghcb_frame_status(SNP_FW_PAGE_SIZE);
    if (!is_guest) {
        destination->gfn = source->gfn;
        source->gfn = 0;
        return 0;
    }
    if (ghcb_frame_asid(source->word) != op->asid || ghcb_frame_asid(destination->word) != op->asid)
        return ghcb_frame_status(SNP_FW_PAGE_OWNER);
    destination->word = (destination->word & ~(moved | FRAME_BIT(FRAME_IMMUTABLE))) | (source->word & moved);
    destination->gfn = (source->gfn + distance) & FRAME_GFN_MASK;
    ghcb_frame_set(&destination->word, FRAME_KEY_SHIFT, FRAME_KEY_WIDTH, op->asid);
    source->word &= ~(FRAME_BIT(FRAME_VALIDATED) | FRAME_BIT(FRAME_IMMUTABLE) | FRAME_BIT(FRAME_VMSA));
    return 0;
}

/* Any operation --------------------------------------------------------------------------------- */

/* Whether the operation may happen; `r` has the facts of one frame, or of its region for an operand
 * of 2 MiB. Accesses by the host look at the region in any case: see ghcb_frame_host_access. */
static inline uint64_t ghcb_frame_check(
    const ghcb_frame_op_t *op, const ghcb_frame_rules_t *rules, const ghcb_frame_region_t *r)
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
    case FRAME_OP_VMRUN:
        return ghcb_frame_check_vmrun(r);
    case FRAME_OP_HOST_ACCESS:
        return ghcb_frame_host_access(op, &r->first, r);
    case FRAME_OP_GUEST_ACCESS:
        return ghcb_frame_guest_access(op, rules, &r->first);
    case FRAME_OP_DMA:
        return ghcb_frame_dma(op, &r->first);
    case FRAME_OP_GCTX_CREATE:
    case FRAME_OP_MD_INIT:
        return ghcb_frame_check_state(r, RMP_STATE_FIRMWARE, SNP_FW_PAGE_STATE);
    case FRAME_OP_DECOMMISSION:
        return ghcb_frame_check_state(r, RMP_STATE_CONTEXT, SNP_FW_GUEST_INVALID);
    case FRAME_OP_LAUNCH_UPDATE:
        return ghcb_frame_check_launch_update(op, r);
    case FRAME_OP_RECLAIM:
        return ghcb_frame_check_reclaim(op, r);
    case FRAME_OP_SET_STATE:
        return ghcb_frame_status(
            ghcb_frame_state(&r->first) == RMP_STATE_FIRMWARE ? SNP_FW_OK : SNP_FW_PAGE_STATE);
    case FRAME_OP_UNSMASH:
        return ghcb_frame_check_unsmash(r);
    case FRAME_OP_IOMMU_TAKE:
        return ghcb_frame_check_state(r, RMP_STATE_HYPERVISOR, SNP_FW_PAGE_STATE);
    case FRAME_OP_IOMMU_RELEASE:
        return ghcb_frame_check_state(r, RMP_STATE_FIRMWARE_IOMMU, SNP_FW_PAGE_STATE);
    case FRAME_OP_SWAP_OUT:
    case FRAME_OP_SWAP_IN:
        return ghcb_frame_check_swap(op, r);
    default:
        return 0;
    }
}

/* A fresh table: the frame has no entry, or is the hypervisor's, fixed, or firmware's. */
static inline void ghcb_frame_init(const ghcb_frame_op_t *op, ghcb_frame_t *frame)
{
    uint64_t word = frame->word & ~(uint64_t)FRAME_RMP_MASK;

    if (op->value == RMP_STATE_DEFAULT)
        word |= FRAME_BIT(FRAME_UNCOVERED);
    if (op->value == RMP_STATE_FIRMWARE)
        word |= FRAME_BIT(FRAME_ASSIGNED);
    if (op->value == RMP_STATE_FIRMWARE || op->value == RMP_STATE_HV_FIXED)
        word |= FRAME_BIT(FRAME_IMMUTABLE);
    frame->word = word;
    frame->gfn = 0;
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
        frame->word &= ~(FRAME_BIT(FRAME_LARGE) | FRAME_BIT(FRAME_UNSMASHED));
        break;
    case FRAME_OP_PVALIDATE:
        ghcb_frame_set(&frame->word, FRAME_VALIDATED, 1, op->value);
        ghcb_frame_set(&frame->word, FRAME_BELIEVED, 1, op->value);
        break;
    case FRAME_OP_RMPADJUST:
        ghcb_frame_rmpadjust(op, frame);
        break;
    case FRAME_OP_VMRUN:
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
        frame->word = (frame->word & ~(uint64_t)FRAME_RMP_MASK) | FRAME_BIT(FRAME_IMMUTABLE);
        break;
    case FRAME_OP_UNSMASH:
        frame->word |= FRAME_BIT(FRAME_LARGE) | FRAME_BIT(FRAME_UNSMASHED);
        break;
    case FRAME_OP_IOMMU_TAKE:
        frame->word |= FRAME_BIT(FRAME_ASSIGNED) | FRAME_BIT(FRAME_IMMUTABLE);
        frame->gfn = (uint64_t)RMP_TAG_FIRMWARE_IOMMU << RMP_TAG_SHIFT | 1;
        break;
    case FRAME_OP_IOMMU_RELEASE:
        frame->word &= ~FRAME_BIT(FRAME_IMMUTABLE);
        frame->gfn = 0;
        break;
    case FRAME_OP_SWAP_OUT:
    case FRAME_OP_SWAP_IN:
        ghcb_frame_swap(op, frame);
        break;
    case FRAME_OP_INIT:
        ghcb_frame_init(op, frame);
        break;
    }
}

/* One operation on frame `at` of a region of `n` frames that lie side by side. The leaf of a guest's
 * mapping is that of the operation; who else lies in a leaf that is split is the caller's affair. */
static inline uint64_t ghcb_frame_apply(
    const ghcb_frame_op_t *op, const ghcb_frame_rules_t *rules, ghcb_frame_t *frames, uint64_t n,
    uint64_t at)
{
    ghcb_frame_region_t facts = {0};
    int is_region = ghcb_frame_is_region_op(op);
    uint64_t result;

    if (is_region && at)
        return op->kind == FRAME_OP_RMPUPDATE || op->kind == FRAME_OP_PSMASH
                || op->kind == FRAME_OP_PVALIDATE || op->kind == FRAME_OP_RMPADJUST
            ? ghcb_frame_code(SEV_RMP_FAIL_INPUT)
            : ghcb_frame_status(op->kind == FRAME_OP_UNSMASH ? SNP_FW_PARAM : SNP_FW_ADDRESS);
    if (is_region || (op->kind == FRAME_OP_HOST_ACCESS && op->backing)) {
        for (uint64_t i = 0; i < n; i++)
            ghcb_frame_region_add(&facts, &frames[i], 1);
    } else {
        ghcb_frame_region_add(&facts, &frames[at], 1);
    }
    if (op->kind == FRAME_OP_HOST_ACCESS)
        result = ghcb_frame_host_access(op, &frames[at], &facts);
    else
        result = ghcb_frame_check(op, rules, &facts);
    if (ghcb_frame_refused(result) || result >> FRAME_RESULT_UNCHANGED & 1)
        return result;
    if (is_region) {
        for (uint64_t i = 0; i < n; i++)
            ghcb_frame_change(op, rules, &frames[i]);
    } else {
        ghcb_frame_change(op, rules, &frames[at]);
    }
    return result;
}

#endif
