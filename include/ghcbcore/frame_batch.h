/* Many single frames at once: in the order of memory where that comes to the same.
 *
 * Theory of operation. What is done to one frame says nothing about another's, unless one refuses: then
 * those before it in the array must be done and those after it not. So a long array is sorted by
 * region (stably, because a frame may occur twice) and done in that order, which the caches like; what
 * was changed is noted. If somebody refuses after all, everything is put back and the array is done as
 * it stands.
 *
 * A sequence of operations on the same frames is one step from record to record; a frame that refuses
 * one of them is done operation by operation, so that what came before it has happened.
 */
#ifndef GHCBCORE_FRAME_BATCH_H
#define GHCBCORE_FRAME_BATCH_H

#include <ghcbcore/frame_tree.h>

#define GHCB_BATCH_SORTED 1024 /* elements from which on sorting pays */
#define GHCB_BATCH_DIGIT 12
#define GHCB_BATCH_MOST (1U << 20) /* elements at a time: 40 MiB beside the array */

/* What a changed frame was before. */
typedef struct ghcb_undo {
    uint64_t p;
    uint32_t id;
} ghcb_undo_t;

/* Sort by region; `room` is as long as `frames`. Returns which of the two has the result. */
static inline uint64_t *ghcb_batch_sort(uint64_t *frames, uint64_t *room, uint64_t n, uint64_t n_pages)
{
    uint32_t *starts = malloc(sizeof(*starts) << GHCB_BATCH_DIGIT);
    unsigned shift = GHCB_TREE_REGION_SHIFT;

    if (!starts || n >> 32) {
        free(starts);
        return NULL;
    }
    for (; (n_pages - 1) >> shift; shift += GHCB_BATCH_DIGIT) {
        uint64_t *swap = frames;
        uint32_t sum = 0;

        memset(starts, 0, sizeof(*starts) << GHCB_BATCH_DIGIT);
        for (uint64_t i = 0; i < n; i++)
            starts[frames[i] >> shift & ((1U << GHCB_BATCH_DIGIT) - 1)]++;
        for (unsigned d = 0; d < 1U << GHCB_BATCH_DIGIT; d++) {
            uint32_t count = starts[d];
            starts[d] = sum;
            sum += count;
        }
        for (uint64_t i = 0; i < n; i++)
            room[starts[frames[i] >> shift & ((1U << GHCB_BATCH_DIGIT) - 1)]++] = frames[i];
        frames = room;
        room = swap;
    }
    free(starts);
    return frames;
}

/* The largest leaf of the guest's page table that frames may lie in, or it would have to be split. */
static inline uint64_t ghcb_batch_leaf(const ghcb_tree_t *t, const ghcb_frame_op_t *op)
{
    const ghcb_frame_op_t *ops = t->n_sequence ? t->sequence : op;
    uint64_t largest = FRAME_LEAF_1G;

    for (uint32_t k = 0; k < (t->n_sequence ? t->n_sequence : 1); k++) {
        if (ops[k].kind == FRAME_OP_MAP && ops[k].size < largest)
            largest = ops[k].size;
    }
    return largest;
}

/* Whether what RMPUPDATE is told fits its field for this frame. */
static inline int ghcb_batch_reaches(const ghcb_tree_t *t, const ghcb_frame_op_t *op, uint64_t p)
{
    const ghcb_frame_op_t *ops = t->n_sequence ? t->sequence : op;

    for (uint32_t k = 0; k < (t->n_sequence ? t->n_sequence : 1); k++) {
        if (!ghcb_frame_reach(&ops[k], p, 1))
            return 0;
    }
    return 1;
}

/* Sorted frames. Returns how many were changed and noted; `*stop`: one refused, or there is no memory. */
static inline uint64_t ghcb_batch_sorted(
    ghcb_tree_t *t, const ghcb_frame_op_t *op, const uint64_t *frames, uint64_t n, ghcb_undo_t *undo,
    ghcb_tree_done_t *done, int *stop)
{
    uint64_t n_undo = 0, largest = ghcb_batch_leaf(t, op);
    ghcb_node_t *node = NULL;
    uint64_t r = UINT64_MAX;

    for (uint64_t i = 0; i < n && !*stop; i++) {
        uint64_t p = frames[i], *slot;
        uint32_t id;

        if (p >> GHCB_TREE_NODE_SHIFT != r) {
            if (r != UINT64_MAX)
                ghcb_tree_join(t, r);
            r = p >> GHCB_TREE_NODE_SHIFT;
            node = ghcb_tree_own_node(t, r);
            if (!node) {
                *stop = 1;
                return n_undo;
            }
        }
        if (i + 8 < n && frames[i + 8] >> GHCB_TREE_NODE_SHIFT == r) {
            uint64_t ahead = node->slots[frames[i + 8] >> GHCB_TREE_REGION_SHIFT & (GHCB_TREE_SLOTS - 1)];
            if (!ghcb_slot_is_uniform(ahead))
                __builtin_prefetch(ghcb_slot_chunk(ahead), 1);
        }
        slot = &node->slots[p >> GHCB_TREE_REGION_SHIFT & (GHCB_TREE_SLOTS - 1)];
        id = ghcb_slot_is_uniform(*slot)
            ? ghcb_slot_id(*slot)
            : ghcb_slot_chunk(*slot)->ids[ghcb_chunk_index(ghcb_slot_chunk(*slot), p & (FRAME_REGION - 1))];
        if (!ghcb_batch_reaches(t, op, p)
            || ghcb_frame_get(t->store.records[id].frame.word, FRAME_LEAF_SHIFT, FRAME_LEAF_WIDTH) > largest) {
            *stop = 1; /* it refuses; or a leaf must be split, and others lie in it */
            break;
        }
        undo[n_undo].p = p;
        undo[n_undo].id = id;
        {
            uint64_t before = done->n_changed;
            unsigned a = p & (FRAME_REGION - 1);
            int status = ghcb_tree_region(t, op, slot, a, a + 1, done, stop);

            *stop |= status != GHCB_OK;
            n_undo += done->n_changed != before;
        }
    }
    if (r != UINT64_MAX)
        ghcb_tree_join(t, r);
    return n_undo;
}

/* Whether frames can be taken in another order, as far as the operation goes: no region's facts count. */
static inline int ghcb_batch_may_sort(const ghcb_tree_t *t, const ghcb_frame_op_t *op, uint64_t n)
{
    return n >= GHCB_BATCH_SORTED && !ghcb_tree_needs_facts(op) && op->kind != FRAME_OP_RMPQUERY
        && t->n_pages >> 32 < 1ULL << 8;
}

/* Single frames as ghcb_tree_array does them, `n_each` being 1; all lie in the guest. Returns 1 if it is
 * done; 0 if the array must be done as it stands, nothing having changed. */
static inline int ghcb_batch_array(
    ghcb_tree_t *t, const ghcb_frame_op_t *op, const uint64_t *frames, uint64_t n, ghcb_tree_done_t *done)
{
    size_t bytes = n * (2 * sizeof(uint64_t) + sizeof(ghcb_undo_t));
    uint64_t *a = malloc(bytes), *sorted, n_undo;
    ghcb_undo_t *undo;
    ghcb_tree_done_t before = *done;
    int stop = 0;

    if (!a)
        return 0;
    undo = (ghcb_undo_t *)(a + 2 * n);
    memcpy(a, frames, n * sizeof(*a));
    sorted = ghcb_batch_sort(a, a + n, n, t->n_pages);
    if (!sorted) {
        free(a);
        return 0;
    }
    n_undo = ghcb_batch_sorted(t, op, sorted, n, undo, done, &stop);
    while (stop && n_undo--)
        (void)ghcb_tree_set(t, undo[n_undo].p, undo[n_undo].id);
    free(a);
    if (stop) {
        *done = before;
        ghcb_store_begin(&t->store); /* numbers may have been given anew */
        return 0;
    }
    done->n_done = before.n_done + n;
    return 1;
}

/* As many elements as can be done in another order, a piece of the array after the other; `done` counts
 * them. The rest, if any, must be done as it stands. */
static inline uint64_t ghcb_batch_frames(
    ghcb_tree_t *t, const ghcb_frame_op_t *op, const uint64_t *frames, uint64_t n, ghcb_tree_done_t *done)
{
    uint64_t i = 0;

    while (i < n && ghcb_batch_may_sort(t, op, n - i)) {
        uint64_t piece = n - i < GHCB_BATCH_MOST ? n - i : GHCB_BATCH_MOST;

        if (!ghcb_batch_array(t, op, frames + i, piece, done))
            break;
        i += piece;
    }
    return i;
}

#endif
