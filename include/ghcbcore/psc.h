/* The page-state change buffer: header, entries, the status that comes back.
 *
 * A guest writes the buffer and asks; the hypervisor moves cur_entry on, and cur_page within a
 * 2 MiB entry, so a request that was interrupted can be sent again as it is. end_entry is
 * inclusive. Any bytes decode: what breaks a rule is a flag, and `kvm_status` is what KVM answers.
 *
 * Units: `gfn` counts 4 KiB pages; cur_page counts those of its entry that are done.
 * Left to others: numbers and bit positions (nae.h), one page by MSR (msr.h).
 *
 * Source: GHCB NAE 0x80000010; KVM's order of checks: header, then from cur_entry on each entry's
 * cur_page and alignment. It looks neither at reserved bits nor at the operation.
 */
#ifndef GHCBCORE_PSC_H
#define GHCBCORE_PSC_H

#include <ghcbcore/nae.h>
#include <ghcbcore/status.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* cffi: begin */
/* ghcb_psc_entry_t.flags */
#define GHCB_PSC_FLAG_RESERVED 0x01 /* bits [63:57] are not zero */
#define GHCB_PSC_FLAG_OP 0x02       /* no such operation: 0, or 5 and above */
#define GHCB_PSC_FLAG_CUR_PAGE 0x04 /* cur_page is beyond the entry's pages */
#define GHCB_PSC_FLAG_ALIGN 0x08    /* a 2 MiB entry whose gfn is no multiple of 512 */
#define GHCB_PSC_FLAG_CUT 0x10      /* the buffer ends before the entry does: all zero */
#define GHCB_PSC_FLAG_DONE 0x20     /* no fault: all its pages are done */
#define GHCB_PSC_FLAG_UNUSED 0x40   /* no fault: beyond end_entry, all zero */
#define GHCB_PSC_ENTRY_FAULTS 0x1f

/* ghcb_psc_header_t.flags; the lower bits are the faults of any entry from cur_entry on */
#define GHCB_PSC_FLAG_HEADER_RESERVED 0x100
#define GHCB_PSC_FLAG_END 0x200   /* end_entry is 253 or more */
#define GHCB_PSC_FLAG_EMPTY 0x400 /* no fault in KVM's eyes: cur_entry is above end_entry */

#define GHCB_PSC_NO_ENTRY 0xffff

typedef struct {
    uint64_t gfn;
    uint16_t cur_page;
    uint16_t n_pages; /* 1 or 512 */
    uint16_t flags;
    uint8_t op;
    uint8_t size; /* GHCB_PSC_SIZE_* */
} ghcb_psc_entry_t;

typedef struct {
    uint64_t kvm_status; /* INFO2 as KVM would answer before it changes a page */
    uint32_t reserved;
    uint16_t cur_entry;
    uint16_t end_entry;
    uint16_t n_entries; /* entries that the header names and the buffer can have, 0 to 253 */
    uint16_t first_bad; /* the first entry from cur_entry on with a fault, or GHCB_PSC_NO_ENTRY */
    uint16_t flags;
    uint16_t status; /* GHCB_OK, or GHCB_E_* of the first fault: header before entries */
} ghcb_psc_header_t;
/* cffi: end */

_Static_assert(sizeof(ghcb_psc_entry_t) == 16, "no padding that would stay unwritten");
_Static_assert(sizeof(ghcb_psc_header_t) == 24, "no padding that would stay unwritten");

#define GHCB_PSC_BITS(field) ((UINT64_C(1) << GHCB_PSC_ENTRY_##field##_WIDTH) - 1)
#define GHCB_PSC_MASK(field) (GHCB_PSC_BITS(field) << GHCB_PSC_ENTRY_##field##_SHIFT)
#define GHCB_PSC_RESERVED                                                                          \
    (~(GHCB_PSC_MASK(CUR_PAGE) | GHCB_PSC_MASK(GFN) | GHCB_PSC_MASK(OP) | GHCB_PSC_MASK(SIZE)))
#define GHCB_PSC_STATUS(klass, detail)                                                             \
    ((uint64_t)(klass) << GHCB_PSC_STATUS_CLASS_SHIFT |                                            \
     (uint64_t)(detail) << GHCB_PSC_STATUS_DETAIL_SHIFT)

#define GHCB_PSC_HIGH_SHIFT (GHCB_PSC_ENTRY_SIZE_SHIFT + GHCB_PSC_ENTRY_SIZE_WIDTH)
_Static_assert(GHCB_PSC_RESERVED == UINT64_MAX << GHCB_PSC_HIGH_SHIFT, "what is above the size");
_Static_assert(GHCB_PSC_OP_UNSMASH - GHCB_PSC_OP_PRIVATE == 3, "four operations in a row");
_Static_assert(GHCB_PSC_PAGES_4K == 1 && GHCB_PSC_SIZE_4K == 0 && GHCB_PSC_SIZE_2M == 1,
               "the size is 0 or 1");
_Static_assert(offsetof(ghcb_psc_entry_t, cur_page) == 8, "two words");

/* cffi: begin */
/* Take one entry apart; return its flags. */
static inline int ghcb_psc_entry_decode(uint64_t raw, ghcb_psc_entry_t *out);

/* Put one entry together. GHCB_E_OUT_OF_RANGE: a value does not fit its field, or the operation
 * does not exist, or cur_page is beyond the entry; GHCB_E_UNALIGNED: 2 MiB, gfn not aligned. */
static inline int ghcb_psc_entry_encode(uint64_t gfn, uint64_t op, uint64_t size, uint64_t cur_page,
                                        uint64_t *raw);

/* Take the first n_bytes of a buffer apart, at any address; n_bytes is 8 or more. `entries` has
 * room for GHCB_PSC_MAX_ENTRIES and is written whole. Return header->status. */
static inline int ghcb_psc_decode(const uint8_t *buffer, uint64_t n_bytes,
                                  ghcb_psc_header_t *header, ghcb_psc_entry_t *entries);
/* cffi: end */

#define GHCB_PSC_AT(field) (8 * (offsetof(ghcb_psc_entry_t, field) - 8))

/* The second word of an entry: all but the gfn. Adding, masking and shifting only, so that a
 * compiler makes vectors of a loop over it: comparisons are carries into a bit of their own. */
static inline uint64_t ghcb_psc_entry_rest(uint64_t raw)
{
    uint64_t gfn = raw >> GHCB_PSC_ENTRY_GFN_SHIFT & GHCB_PSC_BITS(GFN);
    uint64_t cur = raw >> GHCB_PSC_ENTRY_CUR_PAGE_SHIFT & GHCB_PSC_BITS(CUR_PAGE);
    uint64_t op = raw >> GHCB_PSC_ENTRY_OP_SHIFT & GHCB_PSC_BITS(OP);
    uint64_t large = raw >> GHCB_PSC_ENTRY_SIZE_SHIFT & GHCB_PSC_BITS(SIZE);
    uint64_t inside = (0 - large) & (GHCB_PSC_PAGES_2M - 1); /* pages of the entry but one */
    uint64_t n = inside + GHCB_PSC_PAGES_4K;
    uint64_t high = raw >> GHCB_PSC_HIGH_SHIFT;
    uint64_t before = (op - GHCB_PSC_OP_PRIVATE) & GHCB_PSC_BITS(OP); /* 0 to 3: it exists */
    uint64_t odd = (high + (UINT64_MAX >> GHCB_PSC_HIGH_SHIFT)) >> (64 - GHCB_PSC_HIGH_SHIFT);
    uint64_t no_op = (before | before >> 1) >> 2 & 1;
    uint64_t beyond = (n - cur) >> 63;
    uint64_t done = ((cur ^ n) - 1) >> 63;
    uint64_t unaligned = ((gfn & inside) + (GHCB_PSC_PAGES_2M - 1)) / GHCB_PSC_PAGES_2M;
    uint64_t flags = GHCB_PSC_FLAG_RESERVED * odd | GHCB_PSC_FLAG_OP * no_op |
                     GHCB_PSC_FLAG_CUR_PAGE * beyond | GHCB_PSC_FLAG_ALIGN * unaligned |
                     GHCB_PSC_FLAG_DONE * done;

    return cur << GHCB_PSC_AT(cur_page) | n << GHCB_PSC_AT(n_pages) |
           flags << GHCB_PSC_AT(flags) | op << GHCB_PSC_AT(op) | large << GHCB_PSC_AT(size);
}

static inline int ghcb_psc_entry_decode(uint64_t raw, ghcb_psc_entry_t *out)
{
    uint64_t rest = ghcb_psc_entry_rest(raw);

    out->gfn = raw >> GHCB_PSC_ENTRY_GFN_SHIFT & GHCB_PSC_BITS(GFN);
    memcpy(&out->cur_page, &rest, sizeof(rest));
    return out->flags;
}

/* A word at any address that may hold anything: what vectors are made of. */
#if defined(__GNUC__)
typedef uint64_t ghcb_psc_word_t __attribute__((may_alias, aligned(1)));

/* The loop over ghcb_psc_entry_decode(), compiled once more for processors with wider vectors.
 * Returns the second words or-ed together: which flags there are at all. */
#define GHCB_PSC_LOOP(name)                                                                        \
    static inline uint64_t name(const uint8_t *raw, ghcb_psc_entry_t *out, uint64_t n)             \
    {                                                                                              \
        const ghcb_psc_word_t *from = (const ghcb_psc_word_t *)raw;                                \
        ghcb_psc_word_t *restrict to = (ghcb_psc_word_t *)out;                                     \
        uint64_t seen = 0;                                                                         \
                                                                                                   \
        for (uint64_t i = 0; i < n; i++) {                                                         \
            uint64_t word = from[i], rest = ghcb_psc_entry_rest(word);                             \
                                                                                                   \
            to[2 * i] = word >> GHCB_PSC_ENTRY_GFN_SHIFT & GHCB_PSC_BITS(GFN);                     \
            to[2 * i + 1] = rest;                                                                  \
            seen |= rest;                                                                          \
        }                                                                                          \
        return seen;                                                                               \
    }
#else
#define GHCB_PSC_LOOP(name)                                                                        \
    static inline uint64_t name(const uint8_t *raw, ghcb_psc_entry_t *out, uint64_t n)             \
    {                                                                                              \
        uint64_t seen = 0;                                                                         \
                                                                                                   \
        for (uint64_t i = 0; i < n; i++) {                                                         \
            uint64_t word;                                                                         \
                                                                                                   \
            memcpy(&word, raw + i * GHCB_PSC_ENTRY_SIZE, sizeof(word));                            \
            ghcb_psc_entry_decode(word, &out[i]);                                                  \
            seen |= ghcb_psc_entry_rest(word);                                                     \
        }                                                                                          \
        return seen;                                                                               \
    }
#endif
GHCB_PSC_LOOP(ghcb_psc_entries_portably)
#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2"))) GHCB_PSC_LOOP(ghcb_psc_entries_avx2)
#endif
#undef GHCB_PSC_LOOP

/* Take n entries apart; return the flags of all of them together. */
static inline unsigned int ghcb_psc_entries_decode(const uint8_t *raw, ghcb_psc_entry_t *out,
                                                   uint64_t n)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx2"))
        return (uint16_t)(ghcb_psc_entries_avx2(raw, out, n) >> GHCB_PSC_AT(flags));
#endif
    return (uint16_t)(ghcb_psc_entries_portably(raw, out, n) >> GHCB_PSC_AT(flags));
}

/* The first entry of i to n with one of these faults, or GHCB_PSC_NO_ENTRY. */
static inline unsigned int ghcb_psc_first(const ghcb_psc_entry_t *entries, unsigned int i,
                                          unsigned int n, unsigned int faults)
{
    for (; i < n; i++)
        if (entries[i].flags & faults)
            return i;
    return GHCB_PSC_NO_ENTRY;
}

static inline int ghcb_psc_entry_encode(uint64_t gfn, uint64_t op, uint64_t size, uint64_t cur_page,
                                        uint64_t *raw)
{
    uint64_t n = size == GHCB_PSC_SIZE_2M ? GHCB_PSC_PAGES_2M : GHCB_PSC_PAGES_4K;

    if (gfn > GHCB_PSC_BITS(GFN) || op < GHCB_PSC_OP_PRIVATE || op > GHCB_PSC_OP_UNSMASH ||
        size > GHCB_PSC_SIZE_2M || cur_page > n)
        return GHCB_E_OUT_OF_RANGE;
    if (gfn & (n - 1))
        return GHCB_E_UNALIGNED;
    *raw = cur_page << GHCB_PSC_ENTRY_CUR_PAGE_SHIFT | gfn << GHCB_PSC_ENTRY_GFN_SHIFT |
           op << GHCB_PSC_ENTRY_OP_SHIFT | size << GHCB_PSC_ENTRY_SIZE_SHIFT;
    return GHCB_OK;
}

static inline int ghcb_psc_status_of(unsigned int flags)
{
    if (flags & (GHCB_PSC_FLAG_END | GHCB_PSC_FLAG_CUT | GHCB_PSC_FLAG_CUR_PAGE | GHCB_PSC_FLAG_OP))
        return GHCB_E_OUT_OF_RANGE;
    if (flags & GHCB_PSC_FLAG_ALIGN)
        return GHCB_E_UNALIGNED;
    return flags & (GHCB_PSC_FLAG_HEADER_RESERVED | GHCB_PSC_FLAG_RESERVED) ? GHCB_E_RESERVED_BITS
                                                                            : GHCB_OK;
}

static inline int ghcb_psc_decode(const uint8_t *buffer, uint64_t n_bytes,
                                  ghcb_psc_header_t *header, ghcb_psc_entry_t *entries)
{
    uint64_t room = (n_bytes - GHCB_PSC_OFF_ENTRIES) / GHCB_PSC_ENTRY_SIZE;
    unsigned int i, n, whole, before, seen, bad = GHCB_PSC_NO_ENTRY, kvm_bad = GHCB_PSC_NO_ENTRY;
    unsigned int flags;

    memcpy(&header->cur_entry, buffer + GHCB_PSC_OFF_CUR_ENTRY, 2);
    memcpy(&header->end_entry, buffer + GHCB_PSC_OFF_END_ENTRY, 2);
    memcpy(&header->reserved, buffer + GHCB_PSC_OFF_RESERVED, 4);
    n = header->end_entry < GHCB_PSC_MAX_ENTRIES ? header->end_entry + 1u : GHCB_PSC_MAX_ENTRIES;
    whole = room < n ? (unsigned int)room : n;
    before = header->cur_entry < whole ? header->cur_entry : whole;
    ghcb_psc_entries_decode(buffer + GHCB_PSC_OFF_ENTRIES, entries, before);
    seen = ghcb_psc_entries_decode(buffer + GHCB_PSC_OFF_ENTRIES +
                                       before * (uint64_t)GHCB_PSC_ENTRY_SIZE,
                                   entries + before, whole - before) &
           GHCB_PSC_ENTRY_FAULTS;
    i = whole;
    if (i < GHCB_PSC_MAX_ENTRIES)
        memset(&entries[i], 0, (GHCB_PSC_MAX_ENTRIES - i) * sizeof(*entries));
    for (; i < GHCB_PSC_MAX_ENTRIES; i++)
        entries[i].flags = i < n ? GHCB_PSC_FLAG_CUT : GHCB_PSC_FLAG_UNUSED;
    if (whole < n && header->cur_entry < n)
        seen |= GHCB_PSC_FLAG_CUT;
    if (seen)
        bad = ghcb_psc_first(entries, header->cur_entry, n, GHCB_PSC_ENTRY_FAULTS);
    if (seen & (GHCB_PSC_FLAG_CUR_PAGE | GHCB_PSC_FLAG_ALIGN))
        kvm_bad = ghcb_psc_first(entries, header->cur_entry, n,
                                 GHCB_PSC_FLAG_CUR_PAGE | GHCB_PSC_FLAG_ALIGN);
    flags = (header->reserved ? GHCB_PSC_FLAG_HEADER_RESERVED : 0) |
            (header->end_entry >= GHCB_PSC_MAX_ENTRIES ? GHCB_PSC_FLAG_END : 0) |
            (header->cur_entry > header->end_entry ? GHCB_PSC_FLAG_EMPTY : 0);
    header->kvm_status = 0;
    if (flags & GHCB_PSC_FLAG_END)
        header->kvm_status = GHCB_PSC_STATUS(GHCB_PSC_CLASS_INVALID, GHCB_PSC_INVALID_HEADER);
    else if (kvm_bad != GHCB_PSC_NO_ENTRY)
        header->kvm_status = GHCB_PSC_STATUS(GHCB_PSC_CLASS_INVALID, GHCB_PSC_INVALID_ENTRY);
    header->n_entries = (uint16_t)n;
    header->first_bad = (uint16_t)bad;
    header->flags = (uint16_t)(flags | seen);
    header->status = (uint16_t)ghcb_psc_status_of(flags);
    if (header->status == GHCB_OK && bad != GHCB_PSC_NO_ENTRY)
        header->status = (uint16_t)ghcb_psc_status_of(entries[bad].flags & GHCB_PSC_ENTRY_FAULTS);
    return header->status;
}

#endif
