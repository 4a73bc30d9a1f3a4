/* The reverse map table in segments, and one way to find an entry in either form of the table.
 *
 * With RMP_CFG enabled, RMP_BASE points to the bookkeeping area and behind it to a table of up to
 * 512 words, the RST. Word i says where the entries of segment i lie, and how much memory they are
 * for: segment i begins at address `i << shift`, shift being a field of RMP_CFG. RMP_END is not
 * used. CPUID 0x80000025 says which shifts a processor takes and how many segments.
 *
 * `ghcb_rmp_geometry_t` holds either form, the contiguous one as a single segment of 52 bits: that
 * is how Linux looks entries up. It is made by ghcb_rmp_of_range() or ghcb_rmp_of_segments(), which
 * refuse a table that contradicts itself; what is wrong, and with which word, is in
 * `ghcb_rmp_flaw_t`.
 *
 * A word may map more than a segment covers. Linux allows that and takes the smaller of the two;
 * here it is refused unless the caller asks for Linux's reading.
 *
 * Left to others: memory maps and what Linux reserves (`pysev.rmpplace`).
 *
 * Units: `pfn` counts 4 KiB pages, `spa` bytes, `mapped_gib` GiB of memory that has entries.
 *
 * Source: Linux arch/x86/virt/svm/sev.c ("Segmented RMP Table support"), asm/msr-index.h.
 */
#ifndef GHCBCORE_RMP_SEGMENT_H
#define GHCBCORE_RMP_SEGMENT_H

#include <ghcbcore/page.h>
#include <ghcbcore/rmp_geometry.h>
#include <ghcbcore/status.h>
#include <stdint.h>

/* cffi: begin */
/* RMP_CFG: whether the table is in segments, and the logarithm of what one of them covers. */
#define RMP_CFG_SEGMENTED_SHIFT 0
#define RMP_CFG_SEGMENT_SHIFT_SHIFT 8
#define RMP_CFG_SEGMENT_SHIFT_WIDTH 6

/* CPUID 0x80000025: bounds of that logarithm in EAX; in EBX how many segments a processor keeps at
 * hand, and whether there may be no more. */
#define RMP_LIMITS_MIN_SHIFT 0
#define RMP_LIMITS_MIN_WIDTH 6
#define RMP_LIMITS_MAX_SHIFT 6
#define RMP_LIMITS_MAX_WIDTH 6
#define RMP_LIMITS_CACHED_SHIFT 0
#define RMP_LIMITS_CACHED_WIDTH 10
#define RMP_LIMITS_HARD_SHIFT 10

/* The table of segments, behind the bookkeeping area; one word of it. */
#define RMP_SEGMENT_TABLE_BYTES 0x1000
#define RMP_SEGMENTS 512
#define RMP_SEGMENT_MAPPED_SHIFT 0
#define RMP_SEGMENT_MAPPED_WIDTH 20 /* GiB; 0: the segment has no entries */
#define RMP_SEGMENT_ADDRESS_SHIFT 20
#define RMP_SEGMENT_ADDRESS_WIDTH 32
#define RMP_MAPPED_UNIT_SHIFT 30

/* Why a table of segments is refused, in the order of the tests. */
#define RMP_FLAW_NONE 0
#define RMP_FLAW_CFG_RESERVED 1   /* RMP_CFG has a bit that no field claims */
#define RMP_FLAW_DISABLED 2       /* RMP_CFG says that there are no segments */
#define RMP_FLAW_SHIFT 3          /* outside of the processor's limits, or of 30 to 52 */
#define RMP_FLAW_BASE_UNSET 4     /* the BIOS has set nothing aside */
#define RMP_FLAW_BASE_ALIGN 5     /* RMP_BASE has bits below 13 */
#define RMP_FLAW_BASE_RANGE 6     /* the base table ends above 52 address bits */
#define RMP_FLAW_RESERVED 7       /* a word has a bit that no field claims */
#define RMP_FLAW_INDEX 8          /* more segments than the processor takes */
#define RMP_FLAW_MAPPED 9         /* more is mapped than the segment covers */
#define RMP_FLAW_COVERAGE 10      /* pages above 52 address bits */
#define RMP_FLAW_SEGMENT_RANGE 11 /* its entries end above 52 address bits */
#define RMP_FLAW_OVER_BASE 12     /* its entries lie over the base table */
#define RMP_FLAW_OVERLAP 13       /* its entries lie over those of another segment */
#define RMP_FLAW_END 14

/* RMP_CFG taken apart. `status`: GHCB_OK or _E_RESERVED_BITS. */
typedef struct {
    uint32_t is_segmented;
    uint32_t shift;
    uint32_t status;
} ghcb_rmp_cfg_t;

/* EAX and EBX of CPUID 0x80000025. */
typedef struct {
    uint32_t min_shift;
    uint32_t max_shift;
    uint32_t n_cached;
    uint32_t is_hard; /* there may be no segment from n_cached on */
} ghcb_rmp_limits_t;

/* One word of the RST taken apart. `status`: GHCB_OK or _E_RESERVED_BITS. */
typedef struct {
    uint64_t spa; /* of the entry of its first page */
    uint32_t mapped_gib;
    uint32_t status;
} ghcb_rmp_segment_t;

/* What is wrong with a table: RMP_FLAW_*, the index of the word, and of the other of an overlap. */
typedef struct {
    uint32_t flaw;
    uint32_t index;
    uint32_t other;
} ghcb_rmp_flaw_t;
/* cffi: end */

_Static_assert(RMP_SEGMENTS * sizeof(uint64_t) == RMP_SEGMENT_TABLE_BYTES, "a page of words");
_Static_assert(RMP_SEGMENT_ADDRESS_SHIFT + RMP_SEGMENT_ADDRESS_WIDTH == RMP_ADDRESS_BITS
                   && RMP_FIRMWARE_ALIGN == 1 << RMP_SEGMENT_ADDRESS_SHIFT,
               "addresses in place, multiples of 1 MiB");

/* Where a table lies and what it covers, in either form. A contiguous table is segment 0. */
typedef struct {
    uint64_t base;
    uint64_t base_end;     /* of bookkeeping and RST, exclusive */
    uint32_t shift;        /* segment i begins at i << shift */
    uint32_t is_segmented;
    uint32_t n_segments;   /* with entries */
    uint32_t n_indices;    /* highest such index + 1 */
    uint64_t entries[RMP_SEGMENTS];   /* by index: address of the entry of its first page */
    uint64_t n_entries[RMP_SEGMENTS]; /* by index: pages that have an entry, 0 without segment */
    uint16_t order[RMP_SEGMENTS];     /* indices of the n_segments, by address of their entries */
} ghcb_rmp_geometry_t;

static inline uint64_t ghcb_rmp_field(uint64_t word, unsigned shift, unsigned width)
{
    return word >> shift & ((UINT64_C(1) << width) - 1);
}

static inline void ghcb_rmp_cfg_decode(uint64_t word, ghcb_rmp_cfg_t *out)
{
    uint64_t fields = UINT64_C(1) << RMP_CFG_SEGMENTED_SHIFT
        | ((UINT64_C(1) << RMP_CFG_SEGMENT_SHIFT_WIDTH) - 1) << RMP_CFG_SEGMENT_SHIFT_SHIFT;

    out->is_segmented = (uint32_t)ghcb_rmp_field(word, RMP_CFG_SEGMENTED_SHIFT, 1);
    out->shift = (uint32_t)ghcb_rmp_field(word, RMP_CFG_SEGMENT_SHIFT_SHIFT,
                                          RMP_CFG_SEGMENT_SHIFT_WIDTH);
    out->status = word & ~fields ? GHCB_E_RESERVED_BITS : GHCB_OK;
}

/* GHCB_E_OUT_OF_RANGE: a field does not fit. */
static inline int ghcb_rmp_cfg_encode(uint64_t is_segmented, uint64_t shift, uint64_t *word)
{
    if (is_segmented > 1 || shift >> RMP_CFG_SEGMENT_SHIFT_WIDTH)
        return GHCB_E_OUT_OF_RANGE;
    *word = is_segmented << RMP_CFG_SEGMENTED_SHIFT | shift << RMP_CFG_SEGMENT_SHIFT_SHIFT;
    return GHCB_OK;
}

/* Bits without a field are left out: later processors may use them. */
static inline void ghcb_rmp_limits_decode(uint32_t eax, uint32_t ebx, ghcb_rmp_limits_t *out)
{
    out->min_shift = (uint32_t)ghcb_rmp_field(eax, RMP_LIMITS_MIN_SHIFT, RMP_LIMITS_MIN_WIDTH);
    out->max_shift = (uint32_t)ghcb_rmp_field(eax, RMP_LIMITS_MAX_SHIFT, RMP_LIMITS_MAX_WIDTH);
    out->n_cached = (uint32_t)ghcb_rmp_field(ebx, RMP_LIMITS_CACHED_SHIFT, RMP_LIMITS_CACHED_WIDTH);
    out->is_hard = (uint32_t)ghcb_rmp_field(ebx, RMP_LIMITS_HARD_SHIFT, 1);
}

static inline void ghcb_rmp_segment_decode(uint64_t word, ghcb_rmp_segment_t *out)
{
    out->spa = ghcb_rmp_field(word, RMP_SEGMENT_ADDRESS_SHIFT, RMP_SEGMENT_ADDRESS_WIDTH)
        << RMP_SEGMENT_ADDRESS_SHIFT;
    out->mapped_gib =
        (uint32_t)ghcb_rmp_field(word, RMP_SEGMENT_MAPPED_SHIFT, RMP_SEGMENT_MAPPED_WIDTH);
    out->status = word >> RMP_ADDRESS_BITS ? GHCB_E_RESERVED_BITS : GHCB_OK;
}

/* Put a word together; `status` is not looked at. GHCB_E_UNALIGNED: the address is no multiple of
 * 1 MiB; GHCB_E_OUT_OF_RANGE: address or size does not fit. */
static inline int ghcb_rmp_segment_encode(const ghcb_rmp_segment_t *segment, uint64_t *word)
{
    if (segment->spa & (RMP_FIRMWARE_ALIGN - 1))
        return GHCB_E_UNALIGNED;
    if (segment->spa >> RMP_ADDRESS_BITS || segment->mapped_gib >> RMP_SEGMENT_MAPPED_WIDTH)
        return GHCB_E_OUT_OF_RANGE;
    *word = segment->spa | (uint64_t)segment->mapped_gib << RMP_SEGMENT_MAPPED_SHIFT;
    return GHCB_OK;
}

/* A contiguous table as a geometry; refuses what ghcb_rmp_table() does. */
static inline int ghcb_rmp_of_range(uint64_t base, uint64_t end, ghcb_rmp_geometry_t *out)
{
    const uint64_t most = UINT64_C(1) << (RMP_ADDRESS_BITS - GHCB_PAGE_SHIFT);
    ghcb_rmp_table_t table;
    int status = ghcb_rmp_table(base, end, &table);

    if (status != GHCB_OK)
        return status;
    *out = (ghcb_rmp_geometry_t){0};
    out->base = base;
    out->base_end = table.entries;
    out->shift = RMP_ADDRESS_BITS;
    out->n_segments = 1;
    out->n_indices = 1;
    out->entries[0] = table.entries;
    out->n_entries[0] = table.n_entries < most ? table.n_entries : most;
    return GHCB_OK;
}

/* Of segment `index`, below RMP_SEGMENTS: pages with an entry, where entries begin and end. */
static inline uint64_t ghcb_rmp_segment_pages(const ghcb_rmp_geometry_t *geometry, unsigned index)
{
    return geometry->n_entries[index];
}

static inline uint64_t ghcb_rmp_segment_start(const ghcb_rmp_geometry_t *geometry, unsigned index)
{
    return geometry->entries[index];
}

static inline uint64_t ghcb_rmp_segment_end(const ghcb_rmp_geometry_t *geometry, unsigned index)
{
    return geometry->entries[index] + geometry->n_entries[index] * RMP_ENTRY_BYTES;
}

static inline int ghcb_rmp_flawed(ghcb_rmp_flaw_t *why, uint32_t flaw, uint32_t index,
                                  uint32_t other)
{
    static const uint8_t status[RMP_FLAW_END] = {
        [RMP_FLAW_CFG_RESERVED] = GHCB_E_RESERVED_BITS,
        [RMP_FLAW_DISABLED] = GHCB_E_STATE_CONFLICT,
        [RMP_FLAW_SHIFT] = GHCB_E_OUT_OF_RANGE,
        [RMP_FLAW_BASE_UNSET] = GHCB_E_STATE_CONFLICT,
        [RMP_FLAW_BASE_ALIGN] = GHCB_E_UNALIGNED,
        [RMP_FLAW_BASE_RANGE] = GHCB_E_OUT_OF_RANGE,
        [RMP_FLAW_RESERVED] = GHCB_E_RESERVED_BITS,
        [RMP_FLAW_INDEX] = GHCB_E_OUT_OF_RANGE,
        [RMP_FLAW_MAPPED] = GHCB_E_OUT_OF_RANGE,
        [RMP_FLAW_COVERAGE] = GHCB_E_OUT_OF_RANGE,
        [RMP_FLAW_SEGMENT_RANGE] = GHCB_E_OUT_OF_RANGE,
        [RMP_FLAW_OVER_BASE] = GHCB_E_STATE_CONFLICT,
        [RMP_FLAW_OVERLAP] = GHCB_E_STATE_CONFLICT,
    };

    why->flaw = flaw;
    why->index = index;
    why->other = other;
    return status[flaw];
}

/* RMP_CFG and RMP_BASE: what can be said before any word is read. Without limits, 30 to 52 bits:
 * the unit of what a word maps, and the addresses that there are. */
static inline int ghcb_rmp_check_base(uint64_t base, const ghcb_rmp_cfg_t *cfg,
                                      const ghcb_rmp_limits_t *limits, ghcb_rmp_flaw_t *why)
{
    const uint64_t size = RMP_BOOKKEEPING_BYTES + RMP_SEGMENT_TABLE_BYTES;

    if (cfg->status != GHCB_OK)
        return ghcb_rmp_flawed(why, RMP_FLAW_CFG_RESERVED, 0, 0);
    if (!cfg->is_segmented)
        return ghcb_rmp_flawed(why, RMP_FLAW_DISABLED, 0, 0);
    if (cfg->shift < RMP_MAPPED_UNIT_SHIFT || cfg->shift > RMP_ADDRESS_BITS
        || (limits && (cfg->shift < limits->min_shift || cfg->shift > limits->max_shift)))
        return ghcb_rmp_flawed(why, RMP_FLAW_SHIFT, 0, 0);
    if (!(base >> RMP_ADDRESS_SHIFT))
        return ghcb_rmp_flawed(why, RMP_FLAW_BASE_UNSET, 0, 0);
    if (base & ((UINT64_C(1) << RMP_ADDRESS_SHIFT) - 1))
        return ghcb_rmp_flawed(why, RMP_FLAW_BASE_ALIGN, 0, 0);
    if (base > (UINT64_C(1) << RMP_ADDRESS_BITS) - size)
        return ghcb_rmp_flawed(why, RMP_FLAW_BASE_RANGE, 0, 0);
    return GHCB_OK;
}

/* Take word `index` into the geometry, whose segments before it are there already. */
static inline int ghcb_rmp_add_segment(ghcb_rmp_geometry_t *to, uint32_t index, uint64_t word,
                                       const ghcb_rmp_limits_t *limits, int is_reduced,
                                       ghcb_rmp_flaw_t *why)
{
    const uint64_t limit = UINT64_C(1) << RMP_ADDRESS_BITS, coverage = UINT64_C(1) << to->shift;
    ghcb_rmp_segment_t segment;
    uint64_t mapped, first = (uint64_t)index << to->shift;
    uint32_t at;

    ghcb_rmp_segment_decode(word, &segment);
    if (segment.status != GHCB_OK)
        return ghcb_rmp_flawed(why, RMP_FLAW_RESERVED, index, 0);
    if (!segment.mapped_gib)
        return GHCB_OK;
    if (limits && limits->is_hard && index >= limits->n_cached)
        return ghcb_rmp_flawed(why, RMP_FLAW_INDEX, index, 0);
    mapped = (uint64_t)segment.mapped_gib << RMP_MAPPED_UNIT_SHIFT;
    if (mapped > coverage) {
        if (!is_reduced)
            return ghcb_rmp_flawed(why, RMP_FLAW_MAPPED, index, 0);
        mapped = coverage;
    }
    if (first >= limit || mapped > limit - first)
        return ghcb_rmp_flawed(why, RMP_FLAW_COVERAGE, index, 0);
    to->entries[index] = segment.spa;
    to->n_entries[index] = mapped >> GHCB_PAGE_SHIFT;
    if (ghcb_rmp_segment_end(to, index) > limit)
        return ghcb_rmp_flawed(why, RMP_FLAW_SEGMENT_RANGE, index, 0);
    if (segment.spa < to->base_end && to->base < ghcb_rmp_segment_end(to, index))
        return ghcb_rmp_flawed(why, RMP_FLAW_OVER_BASE, index, 0);
    for (at = to->n_segments; at > 0 && to->entries[to->order[at - 1]] > segment.spa; at--)
        to->order[at] = to->order[at - 1];
    to->order[at] = (uint16_t)index;
    to->n_segments++;
    to->n_indices = index + 1;
    if (at > 0 && ghcb_rmp_segment_end(to, to->order[at - 1]) > segment.spa)
        return ghcb_rmp_flawed(why, RMP_FLAW_OVERLAP, index, to->order[at - 1]);
    if (at + 1 < to->n_segments && to->entries[to->order[at + 1]] < ghcb_rmp_segment_end(to, index))
        return ghcb_rmp_flawed(why, RMP_FLAW_OVERLAP, index, to->order[at + 1]);
    return GHCB_OK;
}

/* A table in segments: RMP_BASE, RMP_CFG, the first n_words of the RST (the others are 0), and what
 * the processor takes, NULL if that is not known. With `is_reduced`, a word that maps more than its
 * segment covers counts as one that maps just that, as in Linux.
 *
 * On success `*why` is all 0. Refused at the first word that is wrong, each against those before
 * it: `*why` says how, and `*out` is not written. */
static inline int ghcb_rmp_of_segments(uint64_t base, uint64_t cfg_word, const uint64_t *words,
                                       uint32_t n_words, const ghcb_rmp_limits_t *limits,
                                       int is_reduced, ghcb_rmp_geometry_t *out,
                                       ghcb_rmp_flaw_t *why)
{
    ghcb_rmp_geometry_t made = {0};
    ghcb_rmp_cfg_t cfg;
    int status;

    *why = (ghcb_rmp_flaw_t){0};
    ghcb_rmp_cfg_decode(cfg_word, &cfg);
    status = ghcb_rmp_check_base(base, &cfg, limits, why);
    if (status != GHCB_OK)
        return status;
    if (n_words > RMP_SEGMENTS)
        return ghcb_rmp_flawed(why, RMP_FLAW_INDEX, RMP_SEGMENTS, 0);
    made.base = base;
    made.base_end = base + RMP_BOOKKEEPING_BYTES + RMP_SEGMENT_TABLE_BYTES;
    made.shift = cfg.shift;
    made.is_segmented = 1;
    for (uint32_t i = 0; i < n_words; i++) {
        status = ghcb_rmp_add_segment(&made, i, words[i], limits, is_reduced, why);
        if (status != GHCB_OK)
            return status;
    }
    *out = made;
    return GHCB_OK;
}

/* Where the entry of a page lies; GHCB_E_OUT_OF_RANGE: it has none. */
static inline int ghcb_rmp_locate(const ghcb_rmp_geometry_t *geometry, uint64_t pfn, uint64_t *spa)
{
    unsigned shift = geometry->shift - GHCB_PAGE_SHIFT;
    uint64_t index = pfn >> shift, offset = pfn & ((UINT64_C(1) << shift) - 1);

    if (index >= geometry->n_indices || offset >= geometry->n_entries[index])
        return GHCB_E_OUT_OF_RANGE;
    *spa = geometry->entries[index] + offset * RMP_ENTRY_BYTES;
    return GHCB_OK;
}

/* Which page the entry at an address belongs to. GHCB_E_OUT_OF_RANGE: no segment lies there;
 * GHCB_E_UNALIGNED: not the first byte of an entry. */
static inline int ghcb_rmp_page_at(const ghcb_rmp_geometry_t *geometry, uint64_t spa, uint64_t *pfn)
{
    /* low becomes the number of segments that begin at or below spa. */
    uint32_t low = 0, high = geometry->n_segments;
    unsigned index;
    uint64_t offset;

    while (low < high) {
        uint32_t middle = (low + high) / 2;

        if (geometry->entries[geometry->order[middle]] <= spa)
            low = middle + 1;
        else
            high = middle;
    }
    if (!low)
        return GHCB_E_OUT_OF_RANGE;
    index = geometry->order[low - 1];
    offset = spa - geometry->entries[index];
    if (offset >= geometry->n_entries[index] * RMP_ENTRY_BYTES)
        return GHCB_E_OUT_OF_RANGE;
    if (offset % RMP_ENTRY_BYTES)
        return GHCB_E_UNALIGNED;
    *pfn = ((uint64_t)index << (geometry->shift - GHCB_PAGE_SHIFT)) + offset / RMP_ENTRY_BYTES;
    return GHCB_OK;
}

#endif
