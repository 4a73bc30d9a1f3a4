/* What an operation makes of the frames of one region of the ledger's tree.
 *
 * Theory of operation. The rule is applied to records, once each, and remembered until the operation is
 * over; then a region is changed by the shortest way that there is: one slot, its palette, two
 * records in place of one, or each frame's index.
 *
 * What happens to a frame is frame_rule.h's affair. In order; it stops at the first that refuses: frames
 * before it are changed, it and those after it are not.
 */
#ifndef GHCBCORE_FRAME_REGION_H
#define GHCBCORE_FRAME_REGION_H

#include <ghcbcore/frame_chunk.h>

#define GHCB_TREE_REFUSED UINT32_MAX

/* How far an operation came. */
typedef struct ghcb_tree_done {
    uint64_t n_done;    /* frames, or elements of an array */
    uint64_t n_changed; /* frames that are not as they were */
    uint64_t result;    /* the refusal; else what the last frame answered */
} ghcb_tree_done_t;

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

#endif
