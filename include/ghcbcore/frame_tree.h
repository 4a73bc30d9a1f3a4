/* The ledger's tree: which record each frame of a guest has, for guests of 16 TiB.
 *
 * Theory of operation. Three levels, as page tables have them: a root with a slot for each GiB, nodes
 * with 512 slots of 2 MiB, chunks of 512 frames. A slot holds the number of a record if all frames
 * under it are alike, else the address of what lies below. A chunk has a palette, the few records
 * that occur in it and how often, and for each frame an index into it of 1, 2, 4, 8 or 16 bits. So a
 * uniform guest costs 8 bytes a GiB, one in which every frame differs from its neighbour 88 to 160
 * bytes each 2 MiB, and a change of a range is made to palettes, not to frames.
 *
 * Nodes and chunks are shared with snapshots and copied when they are changed.
 *
 * What happens to a frame is frame_rule.h's affair; what is here finds frames, in order. It stops at
 * the first that refuses: those before it are changed, it and those after it are not.
 *
 * Units: frames; positions are frame numbers.
 */
#ifndef GHCBCORE_FRAME_TREE_H
#define GHCBCORE_FRAME_TREE_H

#include <ghcbcore/frame_rule.h>
#include <ghcbcore/frame_store.h>

#define GHCB_TREE_REGION_SHIFT 9 /* frames of a chunk */
#define GHCB_TREE_NODE_SHIFT 18  /* frames of a node */
#define GHCB_TREE_SLOTS 512
#define GHCB_TREE_NODE_CLASS 5
#define GHCB_TREE_REFUSED UINT32_MAX
#define GHCB_TREE_AHEAD 12 /* frames of an array that are fetched before their turn */

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

/* How far an operation came. */
typedef struct ghcb_tree_done {
    uint64_t n_done;    /* frames, or elements of an array */
    uint64_t n_changed; /* frames that are not as they were */
    uint64_t result;    /* the refusal; else what the last frame answered */
} ghcb_tree_done_t;

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

/* One record under one operation ----------------------------------------------------------------- */

/* The number of what a record becomes when it is changed; GHCB_STORE_NONE: no memory. */
static inline uint32_t ghcb_tree_changed(ghcb_tree_t *t, const ghcb_frame_op_t *op, uint32_t id)
{
    ghcb_store_t *s = &t->store;
    ghcb_record_t *r = &s->records[id];
    ghcb_frame_t frame = r->frame;
    uint32_t since[FRAME_N_VIEWS], new;
    unsigned views;

    ghcb_frame_change(op, &t->rules, &frame);
    views = ghcb_frame_differ(&frame, &r->frame);
    if (!views)
        return id;
    for (unsigned v = 0; v < FRAME_N_VIEWS; v++)
        since[v] = views >> v & 1 ? t->event : r->since[v];
    new = ghcb_store_intern(s, &frame, since);
    return new;
}

/* A sequence of operations on frames that have record `id`, each an event of its own. */
static inline uint32_t ghcb_tree_chain(ghcb_tree_t *t, uint32_t id, uint64_t *result)
{
    const ghcb_record_t *r = &t->store.records[id];
    ghcb_frame_t frame = r->frame;
    uint32_t since[FRAME_N_VIEWS], new;

    if (r->memo_epoch == t->store.epoch)
        return r->memo;
    memcpy(since, r->since, sizeof(since));
    for (uint32_t k = 0; k < t->n_sequence; k++) {
        ghcb_frame_region_t one = {0};
        ghcb_frame_t before = frame;
        unsigned views;

        ghcb_frame_region_add(&one, &frame, 1);
        *result = ghcb_frame_check(&t->sequence[k], &t->rules, &frame, &one);
        if (ghcb_frame_refused(*result))
            return GHCB_TREE_REFUSED;
        if (*result >> FRAME_RESULT_UNCHANGED & 1)
            continue;
        ghcb_frame_change(&t->sequence[k], &t->rules, &frame);
        views = ghcb_frame_differ(&before, &frame);
        for (unsigned v = 0; v < FRAME_N_VIEWS; v++)
            since[v] = views >> v & 1 ? t->event + k : since[v];
    }
    new = ghcb_store_intern(&t->store, &frame, since);
    if (new) {
        t->store.records[id].memo = new;
        t->store.records[id].memo_epoch = t->store.epoch;
    }
    return new;
}

/* What becomes of frames that have record `id`. `facts` are those of the region, or NULL where the
 * operation looks at one frame only. GHCB_TREE_REFUSED: `*result` says why. */
static inline uint32_t ghcb_tree_step(
    ghcb_tree_t *t, const ghcb_frame_op_t *op, uint32_t id, const ghcb_frame_region_t *facts,
    uint64_t *result)
{
    ghcb_record_t *r = &t->store.records[id];
    ghcb_frame_region_t one = {0};
    uint32_t new;

    if (t->n_sequence)
        return ghcb_tree_chain(t, id, result);
    if (facts && ghcb_frame_access_is_wide(op)) {
        *result = ghcb_frame_check(op, &t->rules, &r->frame, facts);
        if (ghcb_frame_refused(*result))
            return GHCB_TREE_REFUSED;
    }
    if (r->memo_epoch == t->store.epoch)
        return r->memo;
    if (!facts) {
        ghcb_frame_region_add(&one, &r->frame, 1);
        *result = ghcb_frame_check(op, &t->rules, &r->frame, &one);
        if (ghcb_frame_refused(*result))
            return GHCB_TREE_REFUSED;
        if (*result >> FRAME_RESULT_UNCHANGED & 1)
            return id;
    }
    new = ghcb_tree_changed(t, op, id);
    if (new && op->kind != FRAME_OP_RMPQUERY) {
        r = &t->store.records[id]; /* the table may have moved */
        r->memo = new;
        r->memo_epoch = t->store.epoch;
    }
    return new;
}

static inline int ghcb_tree_needs_facts(const ghcb_frame_op_t *op)
{
    return ghcb_frame_is_region_op(op) || ghcb_frame_access_is_wide(op);
}

static inline void ghcb_tree_facts(ghcb_tree_t *t, uint64_t slot, ghcb_frame_region_t *facts)
{
    memset(facts, 0, sizeof(*facts));
    if (ghcb_slot_is_uniform(slot)) {
        ghcb_frame_region_add(facts, &t->store.records[ghcb_slot_id(slot)].frame, FRAME_REGION);
    } else {
        ghcb_chunk_t *c = ghcb_slot_chunk(slot);
        uint16_t *counts = ghcb_chunk_counts(c);
        unsigned first = ghcb_chunk_index(c, 0);

        ghcb_frame_region_add(facts, &t->store.records[c->ids[first]].frame, counts[first]);
        for (unsigned e = 0; e < c->n_entries; e++) {
            if (counts[e] && e != first)
                ghcb_frame_region_add(facts, &t->store.records[c->ids[e]].frame, counts[e]);
        }
    }
}

/* Frames of one region -------------------------------------------------------------------------- */

/* Frames `a` to `b` of a region, one after the other. */
static inline int ghcb_tree_frames(
    ghcb_tree_t *t, const ghcb_frame_op_t *op, uint64_t *slot, unsigned a, unsigned b,
    const ghcb_frame_region_t *facts, ghcb_tree_done_t *done)
{
    uint16_t entries[GHCB_TREE_SLOTS], to[GHCB_TREE_SLOTS] = {0}; /* one more than where it moves */
    uint32_t ids[2 * GHCB_TREE_SLOTS];
    unsigned n_ids = 1, i, n_changed = 0;
    int status = GHCB_OK;

    if (ghcb_slot_is_uniform(*slot)) {
        memset(entries, 0, sizeof(entries));
        ids[0] = ghcb_slot_id(*slot);
    } else {
        ghcb_chunk_unpack(ghcb_slot_chunk(*slot), entries);
        n_ids = ghcb_slot_chunk(*slot)->n_entries;
        memcpy(ids, ghcb_slot_chunk(*slot)->ids, n_ids * sizeof(*ids));
    }
    for (i = a; i < b && status == GHCB_OK; i++) {
        unsigned e = entries[i];

        if (!to[e]) {
            uint32_t new = ghcb_tree_step(t, op, ids[e], facts, &done->result);
            if (new == GHCB_TREE_REFUSED)
                break;
            if (!new) {
                status = GHCB_STORE_NO_MEMORY;
                break;
            }
            if (new != ids[e])
                ids[n_ids++] = new;
            to[e] = (uint16_t)(new == ids[e] ? e + 1 : n_ids);
        }
        entries[i] = (uint16_t)(to[e] - 1);
        n_changed += entries[i] != e;
    }
    if (n_changed && ghcb_tree_build(t, slot, ids, n_ids, entries) != GHCB_OK)
        return GHCB_STORE_NO_MEMORY; /* nothing of this region has happened */
    done->n_changed += n_changed;
    done->n_done += i - a;
    return status;
}

static inline const uint8_t *ghcb_tree_remap(ghcb_tree_t *t, unsigned from, unsigned to, uint64_t places)
{
    ghcb_remap_t *m = &t->remap;

    if (m->is_valid && m->from == from && m->to == to && m->places == places)
        return m->bytes;
    for (unsigned byte = 0; byte < 256; byte++) {
        unsigned packed = 0;

        for (unsigned i = 0; i < 8U >> from; i++) {
            unsigned entry = byte >> (i << from) & ((1U << (1U << from)) - 1);
            packed |= (unsigned)(places >> 4 * entry & 15) << (i << to);
        }
        m->bytes[byte] = (uint8_t)packed;
    }
    m->is_valid = 1;
    m->from = from;
    m->to = to;
    m->places = places;
    return m->bytes;
}

/* Put a chunk with `n` entries `ids` in the place of one with at most 16: entry e becomes places[e]. */
static inline int ghcb_tree_merge(
    ghcb_tree_t *t, uint64_t *slot, const uint32_t *ids, unsigned n, const uint8_t *places)
{
    ghcb_store_t *s = &t->store;
    ghcb_chunk_t *old = ghcb_slot_chunk(*slot), *c;
    const uint8_t *in = (const uint8_t *)ghcb_chunk_indices(old), *bytes;
    uint64_t packed = 0, *out;
    unsigned class = 0, bits;

    while (ghcb_chunk_room(class) < n)
        class++;
    c = ghcb_store_take(s, class);
    if (!c)
        return GHCB_STORE_NO_MEMORY;
    c->refs = 1;
    c->class = (uint16_t)class;
    c->n_entries = (uint16_t)n;
    memcpy(c->ids, ids, n * sizeof(*ids));
    memset(ghcb_chunk_counts(c), 0, n * sizeof(uint16_t));
    for (unsigned e = 0; e < old->n_entries; e++) {
        packed |= (uint64_t)places[e] << 4 * e;
        if (ghcb_chunk_counts(old)[e])
            ghcb_chunk_counts(c)[places[e]] += ghcb_chunk_counts(old)[e];
    }
    bytes = ghcb_tree_remap(t, old->class, class, packed);
    bits = 8U >> old->class << class; /* that a byte becomes */
    out = ghcb_chunk_indices(c);
    for (unsigned w = 0; w < (unsigned)GHCB_TREE_SLOTS >> (6 - class); w++) {
        uint64_t word = 0;

        for (unsigned i = 0; i < 64; i += bits)
            word |= (uint64_t)bytes[*in++] << i;
        out[w] = word;
    }
    for (unsigned e = 0; e < n; e++)
        ghcb_store_refer(s, ids[e], 1);
    *slot = (uint64_t)(uintptr_t)c;
    ghcb_chunk_release(s, old);
    return GHCB_OK;
}

/* A whole chunk, by its palette. Returns 1 if that was possible: it is small, and nobody refuses. */
static inline int ghcb_tree_palette(
    ghcb_tree_t *t, const ghcb_frame_op_t *op, uint64_t *slot, const ghcb_frame_region_t *facts,
    ghcb_tree_done_t *done)
{
    ghcb_store_t *s = &t->store;
    ghcb_chunk_t *c = ghcb_slot_chunk(*slot);
    uint16_t *counts = ghcb_chunk_counts(c), held[16];
    uint32_t from[16], to[16], live[16];
    uint8_t places[16];
    unsigned n_changed = 0, n_live = 0, n_before = 0, n = c->n_entries;
    uint64_t result = 0;

    if (n > 16)
        return 0;
    for (unsigned e = 0; e < n; e++) {
        unsigned d = 0;

        from[e] = to[e] = c->ids[e];
        held[e] = counts[e];
        places[e] = 0;
        if (!counts[e])
            continue;
        to[e] = ghcb_tree_step(t, op, from[e], facts, &result);
        if (!to[e] || to[e] == GHCB_TREE_REFUSED)
            return 0;
        n_changed += to[e] != from[e] ? counts[e] : 0;
        n_before++;
        while (d < n_live && live[d] != to[e])
            d++;
        if (d == n_live)
            live[n_live++] = to[e];
        places[e] = (uint8_t)d;
    }
    if (n_changed && n_live == 1) {
        ghcb_store_refer(s, live[0], 1);
        *slot = ghcb_slot_of(live[0]);
        ghcb_chunk_release(s, c);
    } else if (n_changed && n_live < n_before) {
        if (ghcb_tree_merge(t, slot, live, n_live, places) != GHCB_OK)
            return 0;
    } else if (n_changed) {
        if (c->refs > 1) {
            ghcb_chunk_t *copy = ghcb_chunk_copy(s, c);
            if (!copy)
                return 0;
            c->refs--;
            c = copy;
            *slot = (uint64_t)(uintptr_t)c;
        }
        for (unsigned e = 0; e < n; e++) {
            if (to[e] == from[e])
                continue;
            ghcb_store_refer(s, to[e], 1);
            ghcb_store_leave(s, from[e], 1);
            c->ids[e] = to[e];
        }
    }
    for (unsigned e = 0; e < n; e++) {
        if (held[e] && to[e] != from[e]) {
            s->records[from[e]].n_pages -= held[e];
            s->records[to[e]].n_pages += held[e];
        }
    }
    done->n_changed += n_changed;
    done->n_done += FRAME_REGION;
    return 1;
}

/* Change one frame of a chunk that belongs to this tree alone; 0: it takes the longer way. */
static inline int ghcb_tree_poke(ghcb_tree_t *t, ghcb_chunk_t *c, unsigned i, uint32_t from, uint32_t to)
{
    ghcb_store_t *s = &t->store;
    uint16_t *counts = ghcb_chunk_counts(c);
    unsigned old = ghcb_chunk_index(c, i), e, free_entry = GHCB_TREE_SLOTS;

    if (c->class > 2)
        return 0;
    for (e = 0; e < c->n_entries; e++) {
        if (counts[e] && c->ids[e] == to)
            break;
        if (!counts[e])
            free_entry = e;
    }
    if (e == c->n_entries) {
        if (free_entry == GHCB_TREE_SLOTS && e < ghcb_chunk_room(c->class)) {
            free_entry = e;
            c->n_entries++;
        }
        if (free_entry == GHCB_TREE_SLOTS) {
            if (counts[old] > 1)
                return 0;
            free_entry = old; /* its last frame: the entry itself becomes the new one */
        }
        e = free_entry;
        if (e == old) {
            c->ids[e] = to;
            ghcb_store_refer(s, to, 1);
            ghcb_store_leave(s, from, 1);
            s->records[from].n_pages--;
            s->records[to].n_pages++;
            return 1;
        }
        c->ids[e] = to;
        counts[e] = 0;
        ghcb_store_refer(s, to, 1);
    }
    if (counts[e] + 1 == GHCB_TREE_SLOTS)
        return 0; /* all alike: no chunk any more */
    counts[e]++;
    if (!--counts[old])
        ghcb_store_leave(s, from, 1);
    ghcb_chunk_set_index(c, i, e);
    s->records[from].n_pages--;
    s->records[to].n_pages++;
    return 1;
}

/* Make a chunk of a uniform region of which frames `a` to `b` become `to`. */
static inline int ghcb_tree_sprout(ghcb_tree_t *t, uint64_t *slot, unsigned a, unsigned b, uint32_t to)
{
    ghcb_store_t *s = &t->store;
    uint32_t from = ghcb_slot_id(*slot);
    ghcb_chunk_t *c = ghcb_store_take(s, 0);
    uint64_t *words;

    if (!c)
        return GHCB_STORE_NO_MEMORY;
    c->refs = 1;
    c->class = 0;
    c->n_entries = 2;
    c->ids[0] = from; /* the slot's reference becomes the palette's */
    c->ids[1] = to;
    ghcb_chunk_counts(c)[0] = (uint16_t)(FRAME_REGION - (b - a));
    ghcb_chunk_counts(c)[1] = (uint16_t)(b - a);
    words = ghcb_chunk_indices(c);
    memset(words, 0, FRAME_REGION / 8);
    for (unsigned i = a; i < b;) {
        unsigned n = 64 - (i & 63) < b - i ? 64 - (i & 63) : b - i;

        words[i >> 6] |= (n == 64 ? ~0ULL : (1ULL << n) - 1) << (i & 63);
        i += n;
    }
    ghcb_store_refer(s, to, 1);
    s->records[from].n_pages -= b - a;
    s->records[to].n_pages += b - a;
    *slot = (uint64_t)(uintptr_t)c;
    return GHCB_OK;
}

/* Frames `a` to `b` of the region whose slot is given, each by itself but for `facts` of the region.
 * `*stop`: somebody refused. */
static inline int ghcb_tree_each(
    ghcb_tree_t *t, const ghcb_frame_op_t *op, uint64_t *slot, unsigned a, unsigned b,
    const ghcb_frame_region_t *facts, ghcb_tree_done_t *done, int *stop)
{
    uint64_t before = done->n_done;
    int status;

    if (ghcb_slot_is_uniform(*slot)) {
        uint32_t id = ghcb_slot_id(*slot), new = ghcb_tree_step(t, op, id, facts, &done->result);

        if (!new)
            return GHCB_STORE_NO_MEMORY;
        if (new == GHCB_TREE_REFUSED) {
            *stop = 1;
            return GHCB_OK;
        }
        if (new == id) {
            done->n_done += b - a;
            return GHCB_OK;
        }
        if (b - a == FRAME_REGION) {
            t->store.records[id].n_pages -= FRAME_REGION;
            t->store.records[new].n_pages += FRAME_REGION;
            ghcb_store_refer(&t->store, new, 1);
            ghcb_store_leave(&t->store, id, 1);
            *slot = ghcb_slot_of(new);
        } else if (ghcb_tree_sprout(t, slot, a, b, new) != GHCB_OK) {
            return GHCB_STORE_NO_MEMORY;
        }
        done->n_done += b - a;
        done->n_changed += b - a;
        return GHCB_OK;
    } else if (b - a == FRAME_REGION && ghcb_tree_palette(t, op, slot, facts, done)) {
        return GHCB_OK;
    } else if (b - a == 1) {
        ghcb_chunk_t *c = ghcb_slot_chunk(*slot);
        uint32_t id = c->ids[ghcb_chunk_index(c, a)];
        uint32_t new = ghcb_tree_step(t, op, id, facts, &done->result);

        if (!new)
            return GHCB_STORE_NO_MEMORY;
        if (new == GHCB_TREE_REFUSED) {
            *stop = 1;
            return GHCB_OK;
        }
        if (new == id || (c->refs == 1 && ghcb_tree_poke(t, c, a, id, new))) {
            done->n_done++;
            done->n_changed += new != id;
            return GHCB_OK;
        }
    }
    status = ghcb_tree_frames(t, op, slot, a, b, facts, done);
    *stop = status == GHCB_OK && done->n_done - before < b - a;
    return status;
}

/* The frame at place `i` of a region. */
static inline ghcb_frame_t ghcb_tree_frame_of(const ghcb_tree_t *t, uint64_t slot, unsigned i)
{
    if (ghcb_slot_is_uniform(slot))
        return t->store.records[ghcb_slot_id(slot)].frame;
    return t->store.records[ghcb_slot_chunk(slot)->ids[ghcb_chunk_index(ghcb_slot_chunk(slot), i)]].frame;
}

/* Frames `a` to `b` of a region that is one 2 MiB entry, by an operation that minds where they lie. All
 * but the first are met alike. */
static inline int ghcb_tree_inside(
    ghcb_tree_t *t, const ghcb_frame_op_t *op, uint64_t *slot, unsigned a, unsigned b,
    ghcb_tree_done_t *done, int *stop)
{
    const ghcb_frame_t head = ghcb_tree_frame_of(t, *slot, 0);

    for (unsigned i = a; i < b; i = i ? b : 1) {
        const ghcb_frame_t frame = ghcb_tree_frame_of(t, *slot, i);
        const ghcb_frame_t met = ghcb_frame_met(op, &head, &frame, !i);
        ghcb_frame_region_t facts = {0};
        ghcb_tree_done_t all = {0};
        int status;

        ghcb_frame_region_add(&facts, &met, 1);
        done->result = ghcb_frame_check(op, &t->rules, &met, &facts);
        if (ghcb_frame_refused(done->result)) {
            *stop = 1;
            return GHCB_OK;
        }
        if (!i) {
            status = ghcb_tree_each(t, op, slot, 0, FRAME_REGION, &facts, &all, stop);
            if (status != GHCB_OK)
                return status;
            done->n_changed += all.n_changed;
        }
        done->n_done += i ? b - i : 1;
    }
    return GHCB_OK;
}

/* Frames `a` to `b` of the region whose slot is given. `*stop`: somebody refused. */
static inline int ghcb_tree_region(
    ghcb_tree_t *t, const ghcb_frame_op_t *op, uint64_t *slot, unsigned a, unsigned b,
    ghcb_tree_done_t *done, int *stop)
{
    ghcb_frame_region_t region;

    if (ghcb_frame_minds_place(op)) {
        const ghcb_frame_t head = ghcb_tree_frame_of(t, *slot, 0);

        if (ghcb_frame_is_inside(op, &head))
            return ghcb_tree_inside(t, op, slot, a, b, done, stop);
    }
    if (!ghcb_tree_needs_facts(op))
        return ghcb_tree_each(t, op, slot, a, b, NULL, done, stop);
    ghcb_tree_facts(t, *slot, &region);
    if (ghcb_frame_is_region_op(op)) {
        done->result = ghcb_frame_check(op, &t->rules, &region.first, &region);
        if (ghcb_frame_refused(done->result)) {
            *stop = 1;
            return GHCB_OK;
        }
        if (done->result >> FRAME_RESULT_UNCHANGED & 1) {
            done->n_done += b - a;
            return GHCB_OK;
        }
    }
    return ghcb_tree_each(t, op, slot, a, b, &region, done, stop);
}

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

/* Give one frame another content as a whole, whatever rules say: for entries that are read in, and for
 * firmware's commands that concern two frames. */
static inline int ghcb_tree_put(ghcb_tree_t *t, uint64_t p, const ghcb_frame_t *frame)
{
    uint32_t old = ghcb_root_id(t->root, p), id, since[FRAME_N_VIEWS], ids[GHCB_TREE_SLOTS + 1];
    unsigned views = ghcb_frame_differ(frame, &t->store.records[old].frame), n_ids = 1;
    uint16_t entries[GHCB_TREE_SLOTS] = {0};
    ghcb_node_t *node;
    uint64_t *slot;

    if (!views)
        return GHCB_OK;
    for (unsigned v = 0; v < FRAME_N_VIEWS; v++)
        since[v] = views >> v & 1 ? t->event : t->store.records[old].since[v];
    id = ghcb_store_intern(&t->store, frame, since);
    node = id ? ghcb_tree_own_node(t, p >> GHCB_TREE_NODE_SHIFT) : NULL;
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
