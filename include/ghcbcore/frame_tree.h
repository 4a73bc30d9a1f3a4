/* The ledger's tree as a whole: ranges and arrays of frames, beginning and end.
 *
 * What is here finds frames, in order; what happens to those of one region is in frame_region.h, how
 * they are kept in frame_chunk.h. An operation stops at the first frame that refuses: those before it
 * are changed, it and those after it are not.
 *
 * Units: frames; positions are frame numbers.
 */
#ifndef GHCBCORE_FRAME_TREE_H
#define GHCBCORE_FRAME_TREE_H

#include <ghcbcore/frame_region.h>

#define GHCB_TREE_AHEAD 12 /* frames of an array that are fetched before their turn */

/* Many frames ----------------------------------------------------------------------------------- */

/* A whole GiB of one record, if nothing has to be looked at closer. Returns 1 if it is done. */
static inline int ghcb_tree_giant(
    ghcb_tree_t *t, const ghcb_frame_op_t *op, uint64_t r, uint64_t a, uint64_t b, ghcb_tree_done_t *done,
    int *stop, int *status)
{
    ghcb_store_t *s = &t->store;
    uint32_t id = ghcb_slot_id(t->root[r]), new;
    ghcb_frame_region_t region, *facts = NULL;

    if (ghcb_frame_is_inside(op, &s->records[id].frame))
        return 0;
    if (ghcb_tree_needs_facts(op)) {
        ghcb_tree_facts(t, t->root[r], &region);
        facts = &region;
        if (ghcb_frame_is_region_op(op)) {
            done->result = ghcb_frame_check(op, &t->rules, &region.first, facts);
            if (ghcb_frame_refused(done->result))
                return *stop = 1;
            if (done->result >> FRAME_RESULT_UNCHANGED & 1) {
                done->n_done += b - a;
                return 1;
            }
        }
    }
    new = ghcb_tree_step(t, op, id, facts, &done->result);
    if (!new) {
        *status = GHCB_STORE_NO_MEMORY;
        return 1;
    }
    if (new == GHCB_TREE_REFUSED)
        return *stop = 1;
    if (new != id) {
        if (b - a < 1ULL << GHCB_TREE_NODE_SHIFT)
            return 0;
        s->records[id].n_pages -= b - a;
        s->records[new].n_pages += b - a;
        ghcb_store_refer(s, new, 1);
        ghcb_store_leave(s, id, 1);
        t->root[r] = ghcb_slot_of(new);
        done->n_changed += b - a;
    }
    done->n_done += b - a;
    return 1;
}

/* Frames `first` to `end`, in order; the caller has checked that they exist. */
static inline int ghcb_tree_range(
    ghcb_tree_t *t, const ghcb_frame_op_t *op, uint64_t first, uint64_t end, ghcb_tree_done_t *done)
{
    uint64_t reach = first + ghcb_frame_reach(op, first, end - first);
    int status = GHCB_OK, stop = 0;

    for (uint64_t p = first; p < reach && status == GHCB_OK && !stop;) {
        uint64_t r = p >> GHCB_TREE_NODE_SHIFT, last = (r + 1) << GHCB_TREE_NODE_SHIFT;
        ghcb_node_t *node;

        if (last > reach)
            last = reach;
        if (ghcb_slot_is_uniform(t->root[r]) && ghcb_tree_giant(t, op, r, p, last, done, &stop, &status)) {
            p = last;
            continue;
        }
        node = ghcb_tree_own_node(t, r);
        if (!node)
            return GHCB_STORE_NO_MEMORY;
        while (p < last && status == GHCB_OK && !stop) {
            uint64_t region_end = (p | (FRAME_REGION - 1)) + 1;
            uint64_t *slot = &node->slots[p >> GHCB_TREE_REGION_SHIFT & (GHCB_TREE_SLOTS - 1)];
            unsigned a = (unsigned)(p & (FRAME_REGION - 1));

            if (region_end > last)
                region_end = last;
            status = ghcb_tree_region(t, op, slot, a, a + (unsigned)(region_end - p), done, &stop);
            p = region_end;
        }
        ghcb_tree_join(t, r);
    }
    if (reach < end && status == GHCB_OK && !stop)
        done->result = ghcb_frame_code(SEV_RMP_FAIL_INPUT);
    return status;
}

/* Bring what an element of an array will need nearer, in two stages. */
static inline void ghcb_tree_fetch(const ghcb_tree_t *t, const uint64_t *frames, uint64_t i, uint64_t n)
{
    uint64_t slot;

    if (i + GHCB_TREE_AHEAD < n && frames[i + GHCB_TREE_AHEAD] < t->n_pages) {
        uint64_t p = frames[i + GHCB_TREE_AHEAD];
        slot = t->root[p >> GHCB_TREE_NODE_SHIFT];
        if (!ghcb_slot_is_uniform(slot))
            __builtin_prefetch(
                &ghcb_slot_node(slot)->slots[p >> GHCB_TREE_REGION_SHIFT & (GHCB_TREE_SLOTS - 1)]);
    }
    if (i + GHCB_TREE_AHEAD / 2 < n && frames[i + GHCB_TREE_AHEAD / 2] < t->n_pages) {
        uint64_t p = frames[i + GHCB_TREE_AHEAD / 2];
        slot = t->root[p >> GHCB_TREE_NODE_SHIFT];
        if (ghcb_slot_is_uniform(slot))
            return;
        slot = ghcb_slot_node(slot)->slots[p >> GHCB_TREE_REGION_SHIFT & (GHCB_TREE_SLOTS - 1)];
        if (!ghcb_slot_is_uniform(slot)) {
            const char *c = (const char *)ghcb_slot_chunk(slot);
            __builtin_prefetch(c);
            __builtin_prefetch(c + 24 + (p & (FRAME_REGION - 1)) / 8);
        }
    }
}

/* The record of a frame, in the ledger or in a snapshot. */
static inline uint32_t ghcb_root_id(const uint64_t *root, uint64_t p)
{
    uint64_t slot = root[p >> GHCB_TREE_NODE_SHIFT];

    if (!ghcb_slot_is_uniform(slot))
        slot = ghcb_slot_node(slot)->slots[p >> GHCB_TREE_REGION_SHIFT & (GHCB_TREE_SLOTS - 1)];
    if (ghcb_slot_is_uniform(slot))
        return ghcb_slot_id(slot);
    return ghcb_slot_chunk(slot)->ids[ghcb_chunk_index(ghcb_slot_chunk(slot), p & (FRAME_REGION - 1))];
}

/* The leaf of the guest's page table that a frame lies in. */
static inline uint64_t ghcb_tree_leaf(const ghcb_tree_t *t, uint64_t p)
{
    uint64_t word = t->store.records[ghcb_root_id(t->root, p)].frame.word;

    return ghcb_frame_get(word, FRAME_LEAF_SHIFT, FRAME_LEAF_WIDTH);
}

/* Split the leaf of the guest's page table that frame `p` lies inside of, as far as is needed for a
 * leaf of another kind to begin there. */
static inline int ghcb_tree_split(ghcb_tree_t *t, uint64_t p)
{
    ghcb_frame_op_t op = {.kind = FRAME_OP_LEAF};
    unsigned shift = GHCB_TREE_NODE_SHIFT;
    uint64_t leaf;

    if (p >= t->n_pages || !(p & (FRAME_REGION - 1) || p & ((1ULL << GHCB_TREE_NODE_SHIFT) - 1)))
        return GHCB_OK;
    leaf = ghcb_frame_get(
        t->store.records[ghcb_root_id(t->root, p)].frame.word, FRAME_LEAF_SHIFT, FRAME_LEAF_WIDTH);
    for (op.size = FRAME_LEAF_2M;; op.size--, shift = GHCB_TREE_REGION_SHIFT) {
        uint64_t first = p >> shift << shift, end = first + (1ULL << shift);

        if (leaf > op.size && p != first) {
            ghcb_tree_done_t done = {0};
            int status;

            ghcb_store_begin(&t->store);
            status = ghcb_tree_range(t, &op, first, end < t->n_pages ? end : t->n_pages, &done);
            ghcb_store_begin(&t->store);
            if (status != GHCB_OK)
                return status;
        }
        if (op.size == FRAME_LEAF_4K)
            return GHCB_OK;
    }
}

/* Before a guest maps frames anew: leaves that reach across the ends are split. */
static inline int ghcb_tree_split_around(ghcb_tree_t *t, const ghcb_frame_op_t *op, uint64_t first, uint64_t end)
{
    int status = op->kind == FRAME_OP_MAP ? ghcb_tree_split(t, first) : GHCB_OK;

    return status == GHCB_OK && op->kind == FRAME_OP_MAP ? ghcb_tree_split(t, end) : status;
}

/* One page after the other, each `n_each` frames long. Stops as a range does; GHCB_E_OUT_OF_RANGE: the
 * next element lies beyond the end. */
static inline int ghcb_tree_array(
    ghcb_tree_t *t, const ghcb_frame_op_t *op, const uint64_t *frames, uint64_t n, uint64_t n_each,
    ghcb_tree_done_t *done)
{
    int stop = 0;
    uint64_t n_frames = 0;

    for (uint64_t i = 0; i < n; i++) {
        uint64_t p = frames[i], r = p >> GHCB_TREE_NODE_SHIFT;
        int status;

        done->n_done = i;
        ghcb_tree_fetch(t, frames, i, n);
        if (p >= t->n_pages || n_each > t->n_pages - p)
            return GHCB_E_OUT_OF_RANGE;
        if (p & (n_each - 1))
            return GHCB_E_UNALIGNED;
        if (op->kind == FRAME_OP_MAP && ghcb_tree_leaf(t, p) > op->size) {
            status = ghcb_tree_split_around(t, op, p, p + n_each);
            if (status != GHCB_OK)
                return status;
        }
        if (n_each == 1 && !ghcb_slot_is_uniform(t->root[r]) && ghcb_slot_node(t->root[r])->refs == 1
            && ghcb_frame_reach(op, p, 1)) {
            unsigned a = (unsigned)(p & (FRAME_REGION - 1));
            uint64_t *slot = &ghcb_slot_node(t->root[r])
                                  ->slots[p >> GHCB_TREE_REGION_SHIFT & (GHCB_TREE_SLOTS - 1)];
            const uint64_t was = *slot;

            status = ghcb_tree_region(t, op, slot, a, a + 1, done, &stop);
            if (*slot != was && ghcb_slot_is_uniform(*slot))
                ghcb_tree_join(t, r);
        } else {
            n_frames = done->n_done;
            status = ghcb_tree_range(t, op, p, p + n_each, done);
            stop = status == GHCB_OK && done->n_done - n_frames < n_each;
        }
        done->n_done = i;
        if (status != GHCB_OK)
            return status;
        if (stop)
            return GHCB_OK;
    }
    done->n_done = n;
    return GHCB_OK;
}

/* Give a frame a record that is known by its number. */
static inline int ghcb_tree_set(ghcb_tree_t *t, uint64_t p, uint32_t id)
{
    uint32_t ids[GHCB_TREE_SLOTS + 1];
    uint16_t entries[GHCB_TREE_SLOTS] = {0};
    unsigned n_ids = 1;
    ghcb_node_t *node = ghcb_tree_own_node(t, p >> GHCB_TREE_NODE_SHIFT);
    uint64_t *slot;

    if (!node)
        return GHCB_STORE_NO_MEMORY;
    slot = &node->slots[p >> GHCB_TREE_REGION_SHIFT & (GHCB_TREE_SLOTS - 1)];
    if (ghcb_slot_is_uniform(*slot)) {
        ids[0] = ghcb_slot_id(*slot);
    } else {
        ghcb_chunk_unpack(ghcb_slot_chunk(*slot), entries);
        n_ids = ghcb_slot_chunk(*slot)->n_entries;
        memcpy(ids, ghcb_slot_chunk(*slot)->ids, n_ids * sizeof(*ids));
    }
    ids[n_ids] = id;
    entries[p & (FRAME_REGION - 1)] = (uint16_t)n_ids;
    if (ghcb_tree_build(t, slot, ids, n_ids + 1, entries) != GHCB_OK)
        return GHCB_STORE_NO_MEMORY;
    ghcb_tree_join(t, p >> GHCB_TREE_NODE_SHIFT);
    return GHCB_OK;
}

/* Give one frame another content as a whole, whatever rules say: for entries that are read in, and for
 * firmware's commands that concern two frames. */
static inline int ghcb_tree_put(ghcb_tree_t *t, uint64_t p, const ghcb_frame_t *frame)
{
    uint32_t old = ghcb_root_id(t->root, p), id, since[FRAME_N_VIEWS];
    unsigned views = ghcb_frame_differ(frame, &t->store.records[old].frame);

    if (!views)
        return GHCB_OK;
    for (unsigned v = 0; v < FRAME_N_VIEWS; v++)
        since[v] = views >> v & 1 ? t->event : t->store.records[old].since[v];
    id = ghcb_store_intern(&t->store, frame, since);
    return id ? ghcb_tree_set(t, p, id) : GHCB_STORE_NO_MEMORY;
}

/* Beginning and end ----------------------------------------------------------------------------- */

/* All frames alike; frames beyond `n_pages` in the last region are nobody's. */
static inline int ghcb_tree_open(ghcb_tree_t *t, uint64_t *root, uint64_t n_pages, const ghcb_frame_t *frame)
{
    static const ghcb_frame_t beyond = {FRAME_BIT(FRAME_UNCOVERED), 0};
    const uint32_t never[FRAME_N_VIEWS] = {0};
    uint32_t id, nobody;
    uint64_t tail = n_pages & ((1ULL << GHCB_TREE_NODE_SHIFT) - 1);

    t->root = root;
    t->n_pages = n_pages;
    t->n_root = (n_pages + (1ULL << GHCB_TREE_NODE_SHIFT) - 1) >> GHCB_TREE_NODE_SHIFT;
    ghcb_store_begin(&t->store);
    nobody = ghcb_store_intern(&t->store, &beyond, (const uint32_t[]){1, 1, 1, 1, 1});
    id = nobody ? ghcb_store_intern(&t->store, frame, never) : 0;
    if (!id) {
        t->n_root = 0;
        return GHCB_STORE_NO_MEMORY;
    }
    ghcb_store_refer(&t->store, nobody, 1); /* for ever: it is known by its number */
    for (uint64_t r = 0; r < t->n_root; r++)
        root[r] = ghcb_slot_of(id);
    ghcb_store_refer(&t->store, id, t->n_root);
    t->store.records[id].n_pages = n_pages;
    if (tail) {
        ghcb_node_t *node = ghcb_tree_own_node(t, t->n_root - 1);
        uint64_t n_whole = tail >> GHCB_TREE_REGION_SHIFT;

        if (!node)
            return GHCB_STORE_NO_MEMORY;
        for (uint64_t i = n_whole; i < GHCB_TREE_SLOTS; i++) {
            ghcb_store_refer(&t->store, nobody, 1);
            ghcb_store_leave(&t->store, id, 1);
            node->slots[i] = ghcb_slot_of(nobody);
        }
        if (tail & (FRAME_REGION - 1)) {
            uint16_t entries[GHCB_TREE_SLOTS] = {0};
            uint32_t ids[2] = {nobody, id};

            for (unsigned i = 0; i < (tail & (FRAME_REGION - 1)); i++)
                entries[i] = 1;
            if (ghcb_tree_build(t, &node->slots[n_whole], ids, 2, entries) != GHCB_OK)
                return GHCB_STORE_NO_MEMORY;
            t->store.records[id].n_pages = n_pages; /* counted already */
            t->store.records[nobody].n_pages = 0;   /* they are not of the guest */
        }
    }
    ghcb_store_settle(&t->store);
    return GHCB_OK;
}

/* Snapshots must have been released. */
static inline void ghcb_tree_close(ghcb_tree_t *t)
{
    ghcb_root_release(&t->store, t->root, t->n_root);
    ghcb_store_close(&t->store);
    t->n_root = 0;
}

#endif
