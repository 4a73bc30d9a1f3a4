/* Places: what is in a machine besides vCPUs and frames, and is moved by rules of its own.
 *
 * A place (a cache line, the firmware's platform) has words in the global part of a record and
 * some in the slice of each CPU. The boot CPU has no slice: its words are the first of the global
 * ones. An instruction GHCB_OP_REACH names an operation, a place and the CPU that acts; both
 * tables belong to the program, the record has nothing but the words. An operation that is local
 * sees the words of the acting CPU and the global ones, any other those of every CPU.
 *
 * The functions are those that Python and C callers use as well, pure on what they are handed:
 * one for each kind of place, see `places.h`.
 */
#ifndef GHCBCORE_REACH_H
#define GHCBCORE_REACH_H

#include <stdint.h>

/* cffi: begin */
/* ghcb_place_t.kind */
#define GHCB_PLACE_LINE 0     /* a line of memory and its copies: cacheline.h */
#define GHCB_PLACE_FIRMWARE 1 /* the SEV firmware and what it knows of CPUs: firmware.h */
#define GHCB_PLACE_END 2

#define GHCB_REACH_N_ARGS 3
/* cffi: end */

typedef struct ghcb_place {
    uint32_t kind;
    uint32_t options;     /* the kind's own */
    uint32_t first;       /* word of the global part: the boot CPU's, then those that exist once */
    uint32_t n_words;     /* of these, all in all */
    uint32_t slice_first; /* word of each slice */
    uint32_t n_slice;     /* words in each slice, and of the boot CPU */
} ghcb_place_t;

typedef struct ghcb_reach_op {
    uint32_t code; /* the kind's own */
    uint32_t local;
    uint64_t arg[GHCB_REACH_N_ARGS];
} ghcb_reach_op_t;

/* What a function of a kind of place is handed. */
typedef struct ghcb_reach {
    const ghcb_place_t *place;
    uint64_t *words;   /* in the global part; the first place->n_slice are the boot CPU's */
    uint64_t *own;     /* of the CPU that acts */
    uint64_t *others;  /* of the first other CPU; a null pointer if the operation is local */
    uint64_t n_others; /* 0 if it is local */
    uint64_t stride;   /* words from one CPU to the next */
} ghcb_reach_t;

_Static_assert(sizeof(ghcb_place_t) == 24, "no gaps");
_Static_assert(sizeof(ghcb_reach_op_t) == 32, "no gaps");

#endif
