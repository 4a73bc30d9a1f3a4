/* Frames as words of a machine's record: the same rules, on memory small enough to explore.
 *
 * A region is a few frames, two words each, in the global part of the record; together they stand for
 * what a 2 MiB entry covers. An instruction GHCB_OP_FRAME names an operation, a region and a frame of it:
 * both tables belong to the program, the record has nothing but the frames.
 *
 * A frame of a small machine stands for a range of a large one: `run` lets the ledger follow.
 */
#ifndef GHCBCORE_FRAME_RECORD_H
#define GHCBCORE_FRAME_RECORD_H

#include <ghcbcore/frame_rule.h>
#include <ghcbcore/machine.h>

typedef struct ghcb_region {
    uint32_t first; /* word of the global part */
    uint32_t n_frames;
} ghcb_region_t;

typedef struct ghcb_frames {
    const ghcb_frame_op_t *ops;
    const ghcb_region_t *regions;
    ghcb_frame_rules_t rules;
} ghcb_frames_t;

_Static_assert(sizeof(ghcb_frame_t) == 2 * sizeof(uint64_t), "frames are words of a record");

/* Split the leaves of the guest's page table that a new mapping of frame `at` lies in. */
static inline void ghcb_region_split(const ghcb_frame_op_t *op, ghcb_frame_t *frames, uint64_t n)
{
    ghcb_frame_op_t leaf = {.kind = FRAME_OP_LEAF, .size = op->size};
    ghcb_frame_rules_t none = {0};

    for (uint64_t i = 0; i < n; i++)
        ghcb_frame_change(&leaf, &none, &frames[i]);
}

/* Carry one operation out; `which` is an instruction's mask. Returns its result. */
static inline uint64_t ghcb_frames_carry_out(
    const ghcb_frames_t *t, uint64_t *global, uint64_t which, uint64_t at)
{
    const ghcb_frame_op_t *op = &t->ops[which & GHCB_FRAME_OP_MASK];
    const ghcb_region_t *region = &t->regions[which >> GHCB_FRAME_REGION_SHIFT];
    ghcb_frame_t *frames = (ghcb_frame_t *)(global + region->first);

    if (at >= region->n_frames)
        return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    if (op->kind == FRAME_OP_MAP && op->size) { /* a leaf of 2 MiB or more: all of the region */
        if (at)
            return ghcb_frame_code(SEV_RMP_FAIL_INPUT);
        for (uint64_t i = 0; i < region->n_frames; i++)
            ghcb_frame_change(op, &t->rules, &frames[i]);
        return 0;
    }
    if (op->kind == FRAME_OP_MAP)
        ghcb_region_split(op, frames, region->n_frames);
    return ghcb_frame_apply(op, &t->rules, frames, region->n_frames, at, 0);
}

#endif
