/* The rules of RMPUPDATE, PSMASH, PVALIDATE, RMPADJUST and RMPQUERY; what all rules have in common.
 *
 * A rule is a check and a change: see frame_rule.h. Where several things are wrong the first test that
 * fails decides.
 *
 * Source: AMD64 APM volume 2; Linux virt/svm/sev.c, kvm/svm/sev.c; verismo rmp. Which cause gives code 1
 * and which code 2 is an assumption where those differ.
 */
#ifndef GHCBCORE_FRAME_INSTRUCTION_H
#define GHCBCORE_FRAME_INSTRUCTION_H

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

#endif
