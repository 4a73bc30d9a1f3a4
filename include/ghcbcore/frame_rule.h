/* The rules of any operation on a frame: instructions, firmware's page commands, accesses, notes.
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
 * Source: AMD-ASPFW sev_rmp.c and sev_mcmd.c, Linux virt/svm/sev.c, kvm/svm/sev.c, verismo rmp. Which
 * cause gives code 1 and which code 2 is an assumption where those differ, as are RMPQUERY and what a 4 KiB RMPUPDATE meets. An RMPADJUST of a page in use: Linux
 * d2062cc1b1c3.
 */
#ifndef GHCBCORE_FRAME_RULE_H
#define GHCBCORE_FRAME_RULE_H

#include <ghcbcore/frame_firmware.h>

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
