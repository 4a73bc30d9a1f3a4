/* A frame taken apart, and which of its views disagree.
 *
 * Two views disagree where one party relies on what another holds for untrue. Each way is one bit; what
 * then happens (a fault, noise, nothing yet) is the party's who believes the wrong thing. The guest is
 * the one whose ASID is given: its page tables, its notes, the hypervisor's list of its pages.
 *
 * Left to others: words for people (pysev.tables.frames).
 */
#ifndef GHCBCORE_FRAME_VIEW_H
#define GHCBCORE_FRAME_VIEW_H

#include <ghcbcore/frame_op.h>

/* cffi: begin */
#define FRAME_DIFFER_PRIVATE_NOT_OWNED 0     /* mapped private; assigned to nobody or to another */
#define FRAME_DIFFER_PRIVATE_NOT_VALIDATED 1 /* mapped private and owned, not validated */
#define FRAME_DIFFER_SHARED_ASSIGNED 2       /* mapped shared, assigned all the same */
#define FRAME_DIFFER_BELIEVED 3              /* the guest noted it as validated, the RMP does not */
#define FRAME_DIFFER_NOT_BELIEVED 4          /* the RMP has it validated, the guest's notes do not */
#define FRAME_DIFFER_LISTED_SHARED_ASSIGNED 5
#define FRAME_DIFFER_LISTED_PRIVATE_NOT_OWNED 6
#define FRAME_DIFFER_LISTED_SHARED_MAPPED_PRIVATE 7
#define FRAME_DIFFER_LISTED_PRIVATE_MAPPED_SHARED 8
#define FRAME_DIFFER_CONTENT_PRIVATE 9 /* mapped private, written under another key */
#define FRAME_DIFFER_CONTENT_SHARED 10 /* mapped shared, not written as plain text */
#define FRAME_DIFFER_END 11

/* One frame taken apart. */
typedef struct {
    uint64_t gfn;     /* the RMP entry's GPA field, in frames */
    uint32_t asid;
    uint32_t differ;  /* 1 << FRAME_DIFFER_* */
    uint16_t key;     /* key slot of the content, FRAME_KEY_NONE: never written */
    uint8_t state;    /* RMP_STATE_* */
    uint8_t assigned;
    uint8_t large;
    uint8_t immutable;
    uint8_t vmsa;
    uint8_t validated;
    uint8_t lock;
    uint8_t in_use;
    uint8_t vmpl0;
    uint8_t vmpl1;
    uint8_t vmpl2;
    uint8_t vmpl3;
    uint8_t mapping; /* FRAME_UNMAPPED.. */
    uint8_t leaf;    /* FRAME_LEAF_* */
    uint8_t believed;
    uint8_t listed; /* FRAME_LISTED_* */
} ghcb_frame_view_t;
/* cffi: end */

_Static_assert(sizeof(ghcb_frame_view_t) == 40, "no gaps but at the end");

static inline uint32_t ghcb_frame_disagree(const ghcb_frame_view_t *v, uint64_t asid)
{
    int is_private = v->mapping == FRAME_PRIVATE, is_shared = v->mapping == FRAME_SHARED;
    int is_owned = v->assigned && v->asid == asid;
    int is_written = v->key != FRAME_KEY_NONE;
    uint32_t d = 0;

    d |= (uint32_t)(is_private && !is_owned) << FRAME_DIFFER_PRIVATE_NOT_OWNED;
    d |= (uint32_t)(is_private && is_owned && !v->validated) << FRAME_DIFFER_PRIVATE_NOT_VALIDATED;
    d |= (uint32_t)(is_shared && v->assigned) << FRAME_DIFFER_SHARED_ASSIGNED;
    d |= (uint32_t)(v->believed && !v->validated) << FRAME_DIFFER_BELIEVED;
    d |= (uint32_t)(is_owned && v->validated && !v->believed) << FRAME_DIFFER_NOT_BELIEVED;
    if (v->listed == FRAME_LISTED_SHARED) {
        d |= (uint32_t)v->assigned << FRAME_DIFFER_LISTED_SHARED_ASSIGNED;
        d |= (uint32_t)is_private << FRAME_DIFFER_LISTED_SHARED_MAPPED_PRIVATE;
    }
    if (v->listed == FRAME_LISTED_PRIVATE) {
        d |= (uint32_t)!is_owned << FRAME_DIFFER_LISTED_PRIVATE_NOT_OWNED;
        d |= (uint32_t)is_shared << FRAME_DIFFER_LISTED_PRIVATE_MAPPED_SHARED;
    }
    d |= (uint32_t)(is_private && is_written && v->key != asid) << FRAME_DIFFER_CONTENT_PRIVATE;
    d |= (uint32_t)(is_shared && is_written && v->key != GHCB_KEY_SLOT_NONE) << FRAME_DIFFER_CONTENT_SHARED;
    return d;
}

/* Take frame `pfn` apart; `asid` is the guest's. */
static inline void ghcb_frame_view(
    const ghcb_frame_t *frame, uint64_t pfn, uint64_t asid, ghcb_frame_view_t *out)
{
    ghcb_frame_view_t v = {0};
    ghcb_rmp_t e;
    uint64_t word = frame->word;

    ghcb_frame_entry(frame, pfn, &e);
    v.gfn = e.gpa >> GHCB_PAGE_SHIFT;
    v.asid = e.asid;
    v.state = e.state;
    v.assigned = e.assigned;
    v.large = e.page_size;
    v.immutable = e.immutable;
    v.vmsa = e.vmsa;
    v.validated = e.validated;
    v.lock = e.lock;
    v.in_use = (uint8_t)ghcb_frame_has(word, FRAME_IN_USE);
    v.vmpl0 = e.vmpl0;
    v.vmpl1 = e.vmpl1;
    v.vmpl2 = e.vmpl2;
    v.vmpl3 = e.vmpl3;
    v.mapping = (uint8_t)ghcb_frame_get(word, FRAME_MAPPING_SHIFT, FRAME_MAPPING_WIDTH);
    v.leaf = (uint8_t)ghcb_frame_get(word, FRAME_LEAF_SHIFT, FRAME_LEAF_WIDTH);
    v.believed = (uint8_t)ghcb_frame_has(word, FRAME_BELIEVED);
    v.listed = (uint8_t)ghcb_frame_get(word, FRAME_LISTED_SHIFT, FRAME_LISTED_WIDTH);
    v.key = (uint16_t)ghcb_frame_get(word, FRAME_KEY_SHIFT, FRAME_KEY_WIDTH);
    v.differ = ghcb_frame_disagree(&v, asid);
    *out = v;
}

#endif
