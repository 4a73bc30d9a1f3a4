/* Where a ledger keeps its records and the pieces of its tree.
 *
 * Theory of operation. Frames that are alike share one record: what everybody thinks of them, and
 * for each view the event since which it is so. A record is known by a number; 0 is none, 1 stands
 * for frames beyond the end. It lives as long as something refers to it: one that nothing refers to
 * any more is freed when the operation that let it go is over, because the operation may need it
 * again.
 *
 * Pieces of the tree come from blocks of one size class each; a block without a live piece serves
 * any class. That is why this does not leave memory to numpy: pieces change their size all the time,
 * and while all of a large guest changes from one size to another there is no room for both.
 *
 * Nothing here is thread-safe; ghcbcore.ledger holds a lock.
 */
#ifndef GHCBCORE_FRAME_STORE_H
#define GHCBCORE_FRAME_STORE_H

#include <ghcbcore/frame_op.h>
#include <ghcbcore/status.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define GHCB_STORE_BLOCK ((size_t)1 << 18)
#define GHCB_STORE_CLASSES 6
#define GHCB_STORE_SPARE 16 /* empty blocks that are kept */
#define GHCB_STORE_NO_MEMORY (-1)

/* cffi: begin */
#define GHCB_STORE_NONE 0
#define GHCB_STORE_BEYOND 1
#define GHCB_STORE_FREED 0xffffffffffffffff /* n_pages of a number that is not in use */
#define GHCB_SINCE_EARLIER 0x80000000       /* of an event: this one or one before it */
#define GHCB_SINCE_EVENT 0x7fffffff
/* cffi: end */

typedef struct ghcb_record {
    ghcb_frame_t frame;
    uint64_t n_pages; /* in the ledger, snapshots left out */
    uint64_t refs;    /* from the tree, from snapshots */
    uint32_t since[FRAME_N_VIEWS];
    uint32_t next;       /* in its chain of the index */
    uint32_t memo_epoch; /* the operation for which `memo` holds */
    uint32_t memo;       /* what this record becomes by it */
} ghcb_record_t;

_Static_assert(sizeof(ghcb_record_t) == 64, "one cache line");

typedef struct ghcb_store_block {
    struct ghcb_store_block *next, *previous; /* blocks of the class with room, or spare ones */
    void *free;                         /* pieces that were given back */
    uint32_t class;
    uint32_t n_live;
    uint32_t n_cut; /* pieces cut so far */
    uint32_t n_room;
} ghcb_store_block_t;

typedef struct ghcb_store {
    ghcb_record_t *records;
    uint32_t *index; /* heads of chains */
    uint32_t *loose; /* numbers of records that may have to be freed */
    uint32_t n_records, room, n_loose, loose_room, index_mask, first_free, n_used;
    uint32_t epoch;
    ghcb_store_block_t *with_room[GHCB_STORE_CLASSES];
    ghcb_store_block_t *spare;
    uint32_t n_spare;
    size_t bytes;     /* all that is held */
    size_t max_bytes; /* 0: no bound */
} ghcb_store_t;

/* Memory ---------------------------------------------------------------------------------------- */

static inline size_t ghcb_store_piece_bytes(unsigned class)
{
    static const uint16_t bytes[GHCB_STORE_CLASSES] = {88, 160, 360, 2056, 4104, 4104};
    return bytes[class];
}

/* Whether `more` bytes may be taken. */
static inline int ghcb_store_may(const ghcb_store_t *s, size_t more)
{
    return !s->max_bytes || s->bytes + more <= s->max_bytes;
}

static inline void ghcb_store_unlink(ghcb_store_block_t **head, ghcb_store_block_t *block)
{
    if (block->previous)
        block->previous->next = block->next;
    else
        *head = block->next;
    if (block->next)
        block->next->previous = block->previous;
}

static inline void ghcb_store_link(ghcb_store_block_t **head, ghcb_store_block_t *block)
{
    block->previous = NULL;
    block->next = *head;
    if (*head)
        (*head)->previous = block;
    *head = block;
}

static inline ghcb_store_block_t *ghcb_store_new_block(ghcb_store_t *s, unsigned class)
{
    ghcb_store_block_t *block = s->spare;

    if (block) {
        ghcb_store_unlink(&s->spare, block);
        s->n_spare--;
    } else {
        if (!ghcb_store_may(s, GHCB_STORE_BLOCK))
            return NULL;
        block = aligned_alloc(GHCB_STORE_BLOCK, GHCB_STORE_BLOCK);
        if (!block)
            return NULL;
        s->bytes += GHCB_STORE_BLOCK;
    }
    block->free = NULL;
    block->class = class;
    block->n_live = block->n_cut = 0;
    block->n_room = (uint32_t)((GHCB_STORE_BLOCK - sizeof(*block)) / ghcb_store_piece_bytes(class));
    ghcb_store_link(&s->with_room[class], block);
    return block;
}

static inline void *ghcb_store_take(ghcb_store_t *s, unsigned class)
{
    ghcb_store_block_t *block = s->with_room[class];
    void *piece;

    if (!block) {
        block = ghcb_store_new_block(s, class);
        if (!block)
            return NULL;
    }
    if (block->free) {
        piece = block->free;
        memcpy(&block->free, piece, sizeof(void *));
    } else {
        piece = (char *)(block + 1) + block->n_cut++ * ghcb_store_piece_bytes(class);
    }
    if (++block->n_live == block->n_room)
        ghcb_store_unlink(&s->with_room[class], block);
    return piece;
}

static inline void ghcb_store_give(ghcb_store_t *s, void *piece)
{
    ghcb_store_block_t *block = (ghcb_store_block_t *)((uintptr_t)piece & ~(uintptr_t)(GHCB_STORE_BLOCK - 1));

    memcpy(piece, &block->free, sizeof(void *));
    block->free = piece;
    if (block->n_live-- == block->n_room)
        ghcb_store_link(&s->with_room[block->class], block);
    if (block->n_live)
        return;
    ghcb_store_unlink(&s->with_room[block->class], block);
    if (s->n_spare < GHCB_STORE_SPARE) {
        ghcb_store_link(&s->spare, block);
        s->n_spare++;
    } else {
        free(block);
        s->bytes -= GHCB_STORE_BLOCK;
    }
}

/* Records --------------------------------------------------------------------------------------- */

static inline uint32_t ghcb_record_hash(const ghcb_frame_t *frame, const uint32_t *since)
{
    uint64_t h = (frame->word ^ frame->gfn * 0x9e3779b97f4a7c15ULL) * 0xff51afd7ed558ccdULL;

    for (int i = 0; i < FRAME_N_VIEWS; i++)
        h = (h ^ h >> 29 ^ since[i]) * 0x9e3779b97f4a7c15ULL;
    return (uint32_t)(h >> 32);
}

static inline int ghcb_store_grow(ghcb_store_t *s)
{
    uint32_t room = s->room ? 2 * s->room : 64;
    size_t more = (size_t)(room - s->room) * (sizeof(ghcb_record_t) + sizeof(uint32_t));
    ghcb_record_t *records;
    uint32_t *index;

    if (room > 1U << 30 || !ghcb_store_may(s, more))
        return GHCB_STORE_NO_MEMORY;
    index = calloc(room, sizeof(*index));
    if (!index)
        return GHCB_STORE_NO_MEMORY;
    records = aligned_alloc(64, (size_t)room * sizeof(*records));
    if (!records) {
        free(index);
        return GHCB_STORE_NO_MEMORY;
    }
    if (s->records)
        memcpy(records, s->records, (size_t)s->n_records * sizeof(*records));
    for (uint32_t i = 1; i < s->n_records; i++) {
        uint32_t at;

        if (records[i].n_pages == GHCB_STORE_FREED)
            continue;
        at = ghcb_record_hash(&records[i].frame, records[i].since) & (room - 1);
        records[i].next = index[at];
        index[at] = i;
    }
    free(s->records);
    free(s->index);
    s->records = records;
    s->index = index;
    s->index_mask = room - 1;
    s->room = room;
    s->bytes += more;
    return GHCB_OK;
}

/* Note that a record may have to be freed when the operation is over. */
static inline int ghcb_store_loosen(ghcb_store_t *s, uint32_t id)
{
    if (s->n_loose == s->loose_room) {
        uint32_t room = s->loose_room ? 2 * s->loose_room : 256;
        uint32_t *loose = realloc(s->loose, room * sizeof(*loose));

        if (!loose)
            return GHCB_STORE_NO_MEMORY;
        s->bytes += (room - s->loose_room) * sizeof(*loose);
        s->loose = loose;
        s->loose_room = room;
    }
    s->loose[s->n_loose++] = id;
    return GHCB_OK;
}

/* The number of a record; GHCB_STORE_NONE: no memory. */
static inline uint32_t ghcb_store_intern(ghcb_store_t *s, const ghcb_frame_t *frame, const uint32_t *since)
{
    uint32_t hash = ghcb_record_hash(frame, since);
    uint32_t id = s->room ? s->index[hash & s->index_mask] : 0;
    ghcb_record_t *r;

    for (; id; id = s->records[id].next) {
        r = &s->records[id];
        if (r->frame.word == frame->word && r->frame.gfn == frame->gfn
            && !memcmp(r->since, since, sizeof(r->since)))
            return id;
    }
    id = s->first_free;
    if (!id && s->n_records == s->room && ghcb_store_grow(s) != GHCB_OK)
        return GHCB_STORE_NONE;
    if (!id && !s->n_records)
        s->n_records = 1; /* 0 is none */
    if (ghcb_store_loosen(s, id ? id : s->n_records) != GHCB_OK)
        return GHCB_STORE_NONE;
    if (id)
        s->first_free = s->records[id].next;
    else
        id = s->n_records++;
    r = &s->records[id];
    r->frame = *frame;
    r->n_pages = r->refs = 0;
    memcpy(r->since, since, sizeof(r->since));
    r->memo_epoch = 0;
    r->memo = 0;
    r->next = s->index[hash & s->index_mask];
    s->index[hash & s->index_mask] = id;
    s->n_used++;
    return id;
}

static inline void ghcb_store_refer(ghcb_store_t *s, uint32_t id, uint64_t n)
{
    s->records[id].refs += n;
}

/* A note that cannot be made leaves a record in place that nothing refers to: it is found again. */
static inline void ghcb_store_leave(ghcb_store_t *s, uint32_t id, uint64_t n)
{
    s->records[id].refs -= n;
    if (!s->records[id].refs)
        (void)ghcb_store_loosen(s, id);
}

/* Free what nothing refers to any more: the end of an operation. */
static inline void ghcb_store_settle(ghcb_store_t *s)
{
    for (uint32_t i = 0; i < s->n_loose; i++) {
        uint32_t id = s->loose[i];
        ghcb_record_t *r = &s->records[id];
        uint32_t *link;

        if (r->refs || r->n_pages == GHCB_STORE_FREED)
            continue;
        link = &s->index[ghcb_record_hash(&r->frame, r->since) & s->index_mask];
        while (*link != id)
            link = &s->records[*link].next;
        *link = r->next;
        r->n_pages = GHCB_STORE_FREED;
        r->next = s->first_free;
        s->first_free = id;
        s->n_used--;
    }
    s->n_loose = 0;
}

/* Begin an operation: what records remember of the one before no longer holds. */
static inline void ghcb_store_begin(ghcb_store_t *s)
{
    if (++s->epoch)
        return;
    for (uint32_t i = 1; i < s->n_records; i++)
        s->records[i].memo_epoch = 0;
    s->epoch = 1;
}

/* Give all memory back but the blocks, which the tree's owner has emptied. */
static inline void ghcb_store_close(ghcb_store_t *s)
{
    ghcb_store_block_t *lists[GHCB_STORE_CLASSES + 1];

    memcpy(lists, s->with_room, sizeof(s->with_room));
    lists[GHCB_STORE_CLASSES] = s->spare;
    for (unsigned i = 0; i <= GHCB_STORE_CLASSES; i++) {
        while (lists[i]) {
            ghcb_store_block_t *block = lists[i];
            lists[i] = block->next;
            free(block);
        }
    }
    free(s->records);
    free(s->index);
    free(s->loose);
    memset(s, 0, sizeof(*s));
}

#endif
