/* Questions to a ledger or a snapshot of it: runs, counts, differences, the records of frames.
 *
 * Theory of operation. Who asks gives each record a class, a small number that says what he takes it
 * for (a test in numpy over the few records there are); 0 is what he does not care about. The walk
 * only joins neighbours of one class. What is uniform costs one step whatever its size.
 */
#ifndef GHCBCORE_FRAME_WALK_H
#define GHCBCORE_FRAME_WALK_H

#include <ghcbcore/frame_tree.h>

#define GHCB_WALK_AHEAD 8 /* regions that are fetched before their turn */

/* Where runs go. A walk stops when it would need one more than there is room for. */
typedef struct ghcb_runs {
    uint64_t *first;
    uint64_t *n_pages;
    uint32_t *class;
    uint64_t room;
    uint64_t n;
    uint64_t at;   /* the run that grows: where it began */
    uint32_t open; /* and its class */
} ghcb_runs_t;

/* Frames `p` on are of a class. Returns 0 if there is no room for the run that ends here. */
static inline int ghcb_runs_add(ghcb_runs_t *runs, uint64_t p, uint32_t class)
{
    if (class == runs->open)
        return 1;
    if (runs->open) {
        if (runs->n == runs->room)
            return 0;
        runs->first[runs->n] = runs->at;
        runs->n_pages[runs->n] = p - runs->at;
        runs->class[runs->n++] = runs->open;
    }
    runs->open = class;
    runs->at = p;
    return 1;
}

/* Fetch the chunk of a region a little further on. */
static inline void ghcb_walk_fetch(const uint64_t *root, uint64_t p)
{
    uint64_t node = root[p >> GHCB_TREE_NODE_SHIFT], slot;
    unsigned at = (p >> GHCB_TREE_REGION_SHIFT & (GHCB_TREE_SLOTS - 1)) + GHCB_WALK_AHEAD;

    if (at >= GHCB_TREE_SLOTS)
        return;
    slot = ghcb_slot_node(node)->slots[at];
    if (!ghcb_slot_is_uniform(slot))
        __builtin_prefetch(ghcb_slot_chunk(slot));
}

/* Whether all frames of a chunk have one class; it goes to `*class`. */
static inline int ghcb_chunk_is_one(ghcb_chunk_t *c, const uint32_t *classes, uint32_t *class)
{
    const uint16_t *counts = ghcb_chunk_counts(c);
    int n = 0;

    for (unsigned e = 0; e < c->n_entries; e++) {
        if (!counts[e])
            continue;
        if (n++ && classes[c->ids[e]] != *class)
            return 0;
        *class = classes[c->ids[e]];
    }
    return 1;
}

/* Runs of frames `first` to `end`. Returns where to go on: `end`, or where the run begins for which
 * there was no room. */
static inline uint64_t ghcb_root_runs(
    const uint64_t *root, const uint32_t *classes, uint64_t first, uint64_t end, ghcb_runs_t *runs)
{
    uint16_t entries[GHCB_TREE_SLOTS];
    uint32_t class = 0;

    runs->n = 0;
    runs->open = 0;
    for (uint64_t p = first; p < end;) {
        uint64_t slot = root[p >> GHCB_TREE_NODE_SHIFT];
        uint64_t next = ((p >> GHCB_TREE_NODE_SHIFT) + 1) << GHCB_TREE_NODE_SHIFT;
        ghcb_chunk_t *c;

        if (!ghcb_slot_is_uniform(slot)) {
            slot = ghcb_slot_node(slot)->slots[p >> GHCB_TREE_REGION_SHIFT & (GHCB_TREE_SLOTS - 1)];
            next = (p | (FRAME_REGION - 1)) + 1;
        }
        if (next > end)
            next = end;
        if (ghcb_slot_is_uniform(slot)) {
            if (!ghcb_runs_add(runs, p, classes[ghcb_slot_id(slot)]))
                return runs->at;
            p = next;
            continue;
        }
        c = ghcb_slot_chunk(slot);
        ghcb_walk_fetch(root, p);
        if (ghcb_chunk_is_one(c, classes, &class)) {
            if (!ghcb_runs_add(runs, p, class))
                return runs->at;
            p = next;
            continue;
        }
        ghcb_chunk_unpack(c, entries);
        for (; p < next; p++) {
            if (!ghcb_runs_add(runs, p, classes[c->ids[entries[p & (FRAME_REGION - 1)]]]))
                return runs->at;
        }
    }
    return ghcb_runs_add(runs, end, 0) ? end : runs->at;
}

/* Add the pages of each class among frames `first` to `end` to `out`. */
static inline void ghcb_root_count(
    const uint64_t *root, const uint32_t *classes, uint64_t first, uint64_t end, uint64_t *out)
{
    for (uint64_t p = first; p < end;) {
        uint64_t slot = root[p >> GHCB_TREE_NODE_SHIFT];
        uint64_t next = ((p >> GHCB_TREE_NODE_SHIFT) + 1) << GHCB_TREE_NODE_SHIFT;
        ghcb_chunk_t *c;

        if (!ghcb_slot_is_uniform(slot)) {
            slot = ghcb_slot_node(slot)->slots[p >> GHCB_TREE_REGION_SHIFT & (GHCB_TREE_SLOTS - 1)];
            next = (p | (FRAME_REGION - 1)) + 1;
        }
        if (next > end)
            next = end;
        if (ghcb_slot_is_uniform(slot)) {
            out[classes[ghcb_slot_id(slot)]] += next - p;
            p = next;
            continue;
        }
        c = ghcb_slot_chunk(slot);
        if (next - p == FRAME_REGION) {
            const uint16_t *counts = ghcb_chunk_counts(c);
            for (unsigned e = 0; e < c->n_entries; e++) {
                if (counts[e])
                    out[classes[c->ids[e]]] += counts[e];
            }
            p = next;
        }
        for (; p < next; p++)
            out[classes[c->ids[ghcb_chunk_index(c, p & (FRAME_REGION - 1))]]]++;
    }
}

/* Runs of frames in which two roots of one ledger differ; the class is the set of views that do. */
static inline uint64_t ghcb_root_differences(
    const ghcb_store_t *s, const uint64_t *before, const uint64_t *after, uint64_t first, uint64_t end,
    unsigned views, ghcb_runs_t *runs)
{
    uint32_t last_a = 0, last_b = 0, last_class = 0;

    runs->n = 0;
    runs->open = 0;
    for (uint64_t p = first; p < end;) {
        uint64_t a = before[p >> GHCB_TREE_NODE_SHIFT], b = after[p >> GHCB_TREE_NODE_SHIFT];
        uint64_t next = ((p >> GHCB_TREE_NODE_SHIFT) + 1) << GHCB_TREE_NODE_SHIFT;
        unsigned at = p >> GHCB_TREE_REGION_SHIFT & (GHCB_TREE_SLOTS - 1);

        if (a != b && !(ghcb_slot_is_uniform(a) && ghcb_slot_is_uniform(b))) {
            a = ghcb_slot_is_uniform(a) ? a : ghcb_slot_node(a)->slots[at];
            b = ghcb_slot_is_uniform(b) ? b : ghcb_slot_node(b)->slots[at];
            next = (p | (FRAME_REGION - 1)) + 1;
        }
        if (next > end)
            next = end;
        if (a == b) {
            if (!ghcb_runs_add(runs, p, 0))
                return runs->at;
            p = next;
            continue;
        }
        while (p < next) {
            unsigned i = p & (FRAME_REGION - 1);
            uint32_t ida = ghcb_slot_is_uniform(a) ? ghcb_slot_id(a)
                                                   : ghcb_slot_chunk(a)->ids[ghcb_chunk_index(ghcb_slot_chunk(a), i)];
            uint32_t idb = ghcb_slot_is_uniform(b) ? ghcb_slot_id(b)
                                                   : ghcb_slot_chunk(b)->ids[ghcb_chunk_index(ghcb_slot_chunk(b), i)];

            if (ida != last_a || idb != last_b) {
                last_a = ida;
                last_b = idb;
                last_class = ghcb_frame_differ(&s->records[ida].frame, &s->records[idb].frame) & views;
            }
            if (!ghcb_runs_add(runs, p, last_class))
                return runs->at;
            p = ghcb_slot_is_uniform(a) && ghcb_slot_is_uniform(b) ? next : p + 1;
        }
    }
    return ghcb_runs_add(runs, end, 0) ? end : runs->at;
}

#endif
