/* The pieces of the ledger's tree: slots, nodes, chunks; who refers to them; how a chunk is built.
 *
 * Theory of operation. Three levels, as page tables have them: a root with a slot for each GiB, nodes
 * with 512 slots of 2 MiB, chunks of 512 frames. A slot holds the number of a record if all frames
 * under it are alike, else the address of what lies below. A chunk has a palette, the few records
 * that occur in it and how often, and for each frame an index into it of 1, 2, 4, 8 or 16 bits. So a
 * uniform guest costs 8 bytes a GiB, one in which every frame differs from its neighbour 88 to 160
 * bytes each 2 MiB, and a change of a range is made to palettes, not to frames.
 *
 * Nodes and chunks are shared with snapshots and copied when they are changed.
 */
#ifndef GHCBCORE_FRAME_CHUNK_H
#define GHCBCORE_FRAME_CHUNK_H

#include <ghcbcore/frame_rule.h>
#include <ghcbcore/frame_store.h>

#define GHCB_TREE_REGION_SHIFT 9 /* frames of a chunk */
#define GHCB_TREE_NODE_SHIFT 18  /* frames of a node */
#define GHCB_TREE_SLOTS 512
#define GHCB_TREE_NODE_CLASS 5

typedef struct ghcb_node {
    uint64_t refs;
    uint64_t slots[GHCB_TREE_SLOTS];
} ghcb_node_t;

typedef struct ghcb_chunk {
    uint32_t refs;
    uint16_t n_entries; /* palette entries in use or free again */
    uint16_t class;     /* indices have 1 << class bits */
    uint32_t ids[];     /* then the counts, then the indices */
} ghcb_chunk_t;

/* How the indices of a byte of one chunk become those of another with fewer entries. */
typedef struct ghcb_remap {
    uint64_t places; /* the new entry of each old one, 4 bits each */
    uint32_t from;   /* classes */
    uint32_t to;
    uint32_t is_valid;
    uint8_t bytes[256];
} ghcb_remap_t;

typedef struct ghcb_tree {
    ghcb_store_t store;
    uint64_t *root;
    uint64_t n_root;
    uint64_t n_pages;
    ghcb_frame_rules_t rules;
    uint32_t event;     /* of the operation under way */
    uint32_t n_blurred; /* regions whose histories were cut for want of memory */
    const ghcb_frame_op_t *sequence; /* operations that are one step, in place of the one given */
    uint32_t n_sequence;
    ghcb_remap_t remap; /* the last one used: neighbours tend to be alike */
} ghcb_tree_t;

/* Slots and chunks ------------------------------------------------------------------------------ */

static inline uint64_t ghcb_slot_of(uint32_t id)
{
    return (uint64_t)id << 1 | 1;
}

static inline int ghcb_slot_is_uniform(uint64_t slot)
{
    return slot & 1;
}

static inline uint32_t ghcb_slot_id(uint64_t slot)
{
    return (uint32_t)(slot >> 1);
}

static inline ghcb_node_t *ghcb_slot_node(uint64_t slot)
{
    return (ghcb_node_t *)(uintptr_t)slot;
}

static inline ghcb_chunk_t *ghcb_slot_chunk(uint64_t slot)
{
    return (ghcb_chunk_t *)(uintptr_t)slot;
}

static inline unsigned ghcb_chunk_room(unsigned class)
{
    static const uint16_t room[] = {2, 4, 16, 256, 512};
    return room[class];
}

static inline uint16_t *ghcb_chunk_counts(ghcb_chunk_t *c)
{
    return (uint16_t *)(c->ids + ghcb_chunk_room(c->class));
}

static inline uint64_t *ghcb_chunk_indices(ghcb_chunk_t *c)
{
    size_t after = sizeof(*c) + 6 * (size_t)ghcb_chunk_room(c->class);

    return (uint64_t *)((char *)c + ((after + 7) & ~(size_t)7));
}

static inline unsigned ghcb_chunk_index(ghcb_chunk_t *c, unsigned i)
{
    unsigned bit = i << c->class;
    uint64_t mask = (1ULL << (1U << c->class)) - 1;

    return (unsigned)(ghcb_chunk_indices(c)[bit >> 6] >> (bit & 63) & mask);
}

static inline void ghcb_chunk_set_index(ghcb_chunk_t *c, unsigned i, unsigned entry)
{
    unsigned bit = i << c->class;
    uint64_t mask = (1ULL << (1U << c->class)) - 1;
    uint64_t *word = ghcb_chunk_indices(c) + (bit >> 6);

    *word = (*word & ~(mask << (bit & 63))) | (uint64_t)entry << (bit & 63);
}

static inline void ghcb_chunk_unpack(ghcb_chunk_t *c, uint16_t *out)
{
    const uint64_t *words = ghcb_chunk_indices(c);
    unsigned width = 1U << c->class, per_word = 64 >> c->class;
    uint64_t mask = (1ULL << width) - 1;

    for (unsigned w = 0; w < GHCB_TREE_SLOTS / per_word; w++) {
        uint64_t word = words[w];
        for (unsigned i = 0; i < per_word; i++, word >>= width)
            *out++ = (uint16_t)(word & mask);
    }
}

static inline void ghcb_chunk_pack(ghcb_chunk_t *c, const uint16_t *entries)
{
    uint64_t *words = ghcb_chunk_indices(c);
    unsigned width = 1U << c->class, per_word = 64 >> c->class;

    for (unsigned w = 0; w < GHCB_TREE_SLOTS / per_word; w++) {
        uint64_t word = 0;
        for (unsigned i = 0; i < per_word; i++)
            word |= (uint64_t)*entries++ << i * width;
        words[w] = word;
    }
}

/* References ------------------------------------------------------------------------------------ */

static inline void ghcb_chunk_release(ghcb_store_t *s, ghcb_chunk_t *c)
{
    uint16_t *counts = ghcb_chunk_counts(c);

    if (--c->refs)
        return;
    for (unsigned e = 0; e < c->n_entries; e++) {
        if (counts[e])
            ghcb_store_leave(s, c->ids[e], 1);
    }
    ghcb_store_give(s, c);
}

static inline void ghcb_slot_release(ghcb_store_t *s, uint64_t slot)
{
    if (ghcb_slot_is_uniform(slot))
        ghcb_store_leave(s, ghcb_slot_id(slot), 1);
    else
        ghcb_chunk_release(s, ghcb_slot_chunk(slot));
}

static inline void ghcb_node_release(ghcb_store_t *s, ghcb_node_t *node)
{
    if (--node->refs)
        return;
    for (unsigned i = 0; i < GHCB_TREE_SLOTS; i++)
        ghcb_slot_release(s, node->slots[i]);
    ghcb_store_give(s, node);
}

static inline void ghcb_root_release(ghcb_store_t *s, const uint64_t *root, uint64_t n_root)
{
    for (uint64_t r = 0; r < n_root; r++) {
        if (ghcb_slot_is_uniform(root[r]))
            ghcb_store_leave(s, ghcb_slot_id(root[r]), 1);
        else
            ghcb_node_release(s, ghcb_slot_node(root[r]));
    }
}

/* A snapshot is a root of its own that shares all that lies below. */
static inline void ghcb_root_share(ghcb_store_t *s, const uint64_t *root, uint64_t *copy, uint64_t n_root)
{
    for (uint64_t r = 0; r < n_root; r++) {
        copy[r] = root[r];
        if (ghcb_slot_is_uniform(root[r]))
            ghcb_store_refer(s, ghcb_slot_id(root[r]), 1);
        else
            ghcb_slot_node(root[r])->refs++;
    }
}

static inline ghcb_chunk_t *ghcb_chunk_copy(ghcb_store_t *s, ghcb_chunk_t *old)
{
    ghcb_chunk_t *c = ghcb_store_take(s, old->class);
    uint16_t *counts;

    if (!c)
        return NULL;
    memcpy(c, old, ghcb_store_piece_bytes(old->class));
    c->refs = 1;
    counts = ghcb_chunk_counts(c);
    for (unsigned e = 0; e < c->n_entries; e++) {
        if (counts[e])
            ghcb_store_refer(s, c->ids[e], 1);
    }
    return c;
}

/* The node of a GiB, to be changed: made of a uniform slot, or copied if a snapshot shares it. */
static inline ghcb_node_t *ghcb_tree_own_node(ghcb_tree_t *t, uint64_t r)
{
    ghcb_store_t *s = &t->store;
    uint64_t slot = t->root[r];
    ghcb_node_t *node;

    if (!ghcb_slot_is_uniform(slot) && ghcb_slot_node(slot)->refs == 1)
        return ghcb_slot_node(slot);
    node = ghcb_store_take(s, GHCB_TREE_NODE_CLASS);
    if (!node)
        return NULL;
    node->refs = 1;
    if (ghcb_slot_is_uniform(slot)) {
        ghcb_store_refer(s, ghcb_slot_id(slot), GHCB_TREE_SLOTS - 1);
        for (unsigned i = 0; i < GHCB_TREE_SLOTS; i++)
            node->slots[i] = slot;
    } else {
        memcpy(node->slots, ghcb_slot_node(slot)->slots, sizeof(node->slots));
        for (unsigned i = 0; i < GHCB_TREE_SLOTS; i++) {
            if (ghcb_slot_is_uniform(node->slots[i]))
                ghcb_store_refer(s, ghcb_slot_id(node->slots[i]), 1);
            else
                ghcb_slot_chunk(node->slots[i])->refs++;
        }
        ghcb_slot_node(slot)->refs--;
    }
    t->root[r] = (uint64_t)(uintptr_t)node;
    return node;
}

/* Make one slot of a node whose 512 slots are alike. */
static inline void ghcb_tree_join(ghcb_tree_t *t, uint64_t r)
{
    ghcb_node_t *node = ghcb_slot_node(t->root[r]);
    uint64_t slot = node->slots[0];

    if (!ghcb_slot_is_uniform(slot))
        return;
    for (unsigned i = 1; i < GHCB_TREE_SLOTS; i++) {
        if (node->slots[i] != slot)
            return;
    }
    ghcb_store_refer(&t->store, ghcb_slot_id(slot), 1);
    t->root[r] = slot;
    ghcb_node_release(&t->store, node);
}

/* Building a chunk ------------------------------------------------------------------------------ */

static inline int ghcb_tree_is_tight(const ghcb_tree_t *t)
{
    return t->store.max_bytes && t->store.bytes > t->store.max_bytes / 8 * 7;
}

/* For want of memory forget which of several events made equal frames what they are; what is kept is
 * "this event or an earlier one". */
static inline void ghcb_tree_blur(ghcb_tree_t *t, uint32_t *ids, unsigned n)
{
    ghcb_store_t *s = &t->store;

    for (unsigned i = 0; i < n; i++) {
        uint32_t since[FRAME_N_VIEWS];
        ghcb_frame_t frame = s->records[ids[i]].frame;
        uint32_t id;
        int differ = 0;

        memcpy(since, s->records[ids[i]].since, sizeof(since));
        for (unsigned j = 0; j < n; j++) {
            const ghcb_record_t *other = &s->records[ids[j]];
            if (other->frame.word != frame.word || other->frame.gfn != frame.gfn)
                continue;
            for (int v = 0; v < FRAME_N_VIEWS; v++) {
                uint32_t a = since[v] & GHCB_SINCE_EVENT, b = other->since[v] & GHCB_SINCE_EVENT;
                if (since[v] == other->since[v])
                    continue;
                since[v] = (a > b ? a : b) | GHCB_SINCE_EARLIER;
                differ = 1;
            }
        }
        if (!differ)
            continue;
        id = ghcb_store_intern(s, &frame, since);
        if (!id)
            return; /* more exact than it could be */
        for (unsigned j = 0; j < n; j++) {
            const ghcb_record_t *other = &s->records[ids[j]];
            if (other->frame.word == frame.word && other->frame.gfn == frame.gfn)
                ids[j] = id;
        }
    }
    t->n_blurred++;
}

/* Count the pages of a slot of a region for its records, or take them off again. */
static inline void ghcb_tree_recount(ghcb_tree_t *t, uint64_t slot, int sign)
{
    ghcb_record_t *records = t->store.records;

    if (ghcb_slot_is_uniform(slot)) {
        records[ghcb_slot_id(slot)].n_pages += (uint64_t)sign * FRAME_REGION;
    } else {
        ghcb_chunk_t *c = ghcb_slot_chunk(slot);
        uint16_t *counts = ghcb_chunk_counts(c);

        for (unsigned e = 0; e < c->n_entries; e++) {
            if (counts[e])
                records[c->ids[e]].n_pages += (uint64_t)((int64_t)sign * counts[e]);
        }
    }
}

/* Replace what a slot of a region holds by a chunk, or by one number, for frames that have
 * `ids[entries[i]]`. `ids` may name a record twice or be longer than is needed. */
static inline int ghcb_tree_build(
    ghcb_tree_t *t, uint64_t *slot, uint32_t *ids, unsigned n_ids, uint16_t *entries)
{
    ghcb_store_t *s = &t->store;
    uint16_t counts[2 * GHCB_TREE_SLOTS] = {0}, place[2 * GHCB_TREE_SLOTS], n_of[GHCB_TREE_SLOTS];
    uint16_t seen[2 * GHCB_TREE_SLOTS] = {0}; /* an open table: one more than the place in `live` */
    uint32_t live[GHCB_TREE_SLOTS] = {0};
    uint64_t old = *slot;
    unsigned n = 0, class = 0;
    ghcb_chunk_t *c;

    if (n_ids > 4 && ghcb_tree_is_tight(t))
        ghcb_tree_blur(t, ids, n_ids);
    for (unsigned i = 0; i < GHCB_TREE_SLOTS; i++)
        counts[entries[i]]++;
    for (unsigned e = 0; e < n_ids; e++) {
        unsigned h;

        if (!counts[e])
            continue;
        h = ids[e] * 0x9e3779b1U >> 22;
        while (seen[h] && live[seen[h] - 1] != ids[e])
            h = (h + 1) & (2 * GHCB_TREE_SLOTS - 1);
        if (!seen[h]) {
            live[n] = ids[e];
            n_of[n] = 0;
            seen[h] = (uint16_t)++n;
        }
        place[e] = (uint16_t)(seen[h] - 1);
        n_of[place[e]] = (uint16_t)(n_of[place[e]] + counts[e]);
    }
    if (n > 1) {
        while (ghcb_chunk_room(class) < n)
            class++;
        c = ghcb_store_take(s, class);
        if (!c)
            return GHCB_STORE_NO_MEMORY;
        c->refs = 1;
        c->class = (uint16_t)class;
        c->n_entries = (uint16_t)n;
        memcpy(c->ids, live, n * sizeof(*live));
        memcpy(ghcb_chunk_counts(c), n_of, n * sizeof(*n_of));
        for (unsigned i = 0; i < GHCB_TREE_SLOTS; i++)
            entries[i] = place[entries[i]];
        ghcb_chunk_pack(c, entries);
        *slot = (uint64_t)(uintptr_t)c;
    } else {
        *slot = ghcb_slot_of(live[0]);
    }
    for (unsigned e = 0; e < n; e++)
        ghcb_store_refer(s, live[e], 1);
    ghcb_tree_recount(t, *slot, 1);
    ghcb_tree_recount(t, old, -1);
    ghcb_slot_release(s, old);
    return GHCB_OK;
}

#endif
