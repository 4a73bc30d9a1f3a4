/* From an instruction GHCB_OP_REACH to the rules of the place that it names. */
#ifndef GHCBCORE_PLACES_H
#define GHCBCORE_PLACES_H

#include <ghcbcore/cacheline.h>
#include <ghcbcore/firmware_reach.h>
#include <ghcbcore/machine.h>
#include <ghcbcore/reach.h>

typedef struct ghcb_places {
    const ghcb_reach_op_t *ops;
    const ghcb_place_t *places;
} ghcb_places_t;

/* The words of the record that an instruction can reach; `slices` is a null pointer where only the
 * acting CPU's slice is at hand, which local operations need. */
typedef struct ghcb_reach_from {
    uint64_t *words; /* the global part */
    uint64_t *own; /* slice of the acting CPU; a null pointer for the boot CPU */
    uint64_t *slices;
    uint64_t n_slices;
    uint64_t stride;
} ghcb_reach_from_t;

/* Carry one operation out; `which` is an instruction's mask. Returns its result. */
static inline uint64_t ghcb_places_carry_out(
    const ghcb_places_t *t, const ghcb_reach_from_t *from, uint64_t which, uint64_t value)
{
    const ghcb_reach_op_t *op = &t->ops[which & GHCB_REACH_OP_MASK];
    const ghcb_place_t *place = &t->places[which >> GHCB_REACH_PLACE_SHIFT & GHCB_REACH_PLACE_MASK];
    uint64_t *const words = from->words + place->first;
    ghcb_reach_t at = {
        .place = place,
        .words = words,
        .own = from->own ? from->own + place->slice_first : words,
        .stride = from->stride,
    };

    if (!op->local && from->slices) {
        at.others = from->slices + place->slice_first;
        at.n_others = from->n_slices;
    }
    switch (place->kind) {
    case GHCB_PLACE_LINE:
        return ghcb_line_reach(&at, op, value);
    case GHCB_PLACE_FIRMWARE:
        return ghcb_firmware_reach(&at, op, value);
    default: /* a program with another kind is refused when it is made */
        (void)op;
        (void)value;
        (void)at;
        return 0;
    }
}

#endif
