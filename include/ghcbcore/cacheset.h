/* Sets of a cache at scale: find a line, which way is used longest ago, put in, take out.
 *
 * Theory of operation. A line in a cache is known by its *key*: number of the line and key slot
 * (`cacheline.h`). The place of a line is one of `ways` in the set that its number chooses; the slot
 * takes no part in that. A set is four words and its ways:
 * - two words of signatures, one byte for each way: the lookup compares eight or sixteen ways at
 *   once and looks at a whole tag only where the byte agrees, so a miss reads no tag at all;
 * - one word of order, four bits for each way, the one used last lowest. An empty way is always last.
 * A tag is the key and three flags; beside it stands the version of what a dirty line holds.
 */
#ifndef GHCBCORE_CACHESET_H
#define GHCBCORE_CACHESET_H

#include <stdint.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* cffi: begin */
#define GHCB_CACHE_MAX_WAYS 16
#define GHCB_CACHE_MAX_LEVELS 3
#define GHCB_CACHE_LINE_BITS 46 /* physical addresses have 52, a line 6 */
#define GHCB_CACHE_SET_WORDS 4
/* cffi: end */

#define GHCB_TAG_DIRTY 1ull
#define GHCB_TAG_ALONE 2ull /* no other core has a copy in this domain */
#define GHCB_TAG_STATE 3ull /* both: what a line has wherever it goes */
#define GHCB_TAG_COPY 4ull /* of an L2: the L3 may have the line too, an older one */
#define GHCB_TAG_SHIFT 3
#define GHCB_TAG_EMPTY (~0ull)
#define GHCB_NO_WAY GHCB_CACHE_MAX_WAYS

#define GHCB_EACH_BYTE 0x0101010101010101ull
#define GHCB_EACH_NIBBLE 0x1111111111111111ull
#define GHCB_ORDER_NEW 0xfedcba9876543210ull

typedef struct {
	uint64_t *sets;     /* four words each: signatures, signatures, order, nothing */
	uint64_t *tags;     /* `ways` for each set */
	uint64_t *versions; /* `ways` for each set: what a dirty line holds */
	uint64_t n_sets;    /* of one cache */
	uint64_t mask;      /* n_sets - 1 where that is a power of two, else 0 */
	uint64_t ways;
} ghcb_cache_level_t;

static inline uint64_t ghcb_cache_key(uint64_t line, uint64_t slot)
{
	return slot << GHCB_CACHE_LINE_BITS | line;
}

static inline uint64_t ghcb_cache_key_line(uint64_t key)
{
	return key & ((1ull << GHCB_CACHE_LINE_BITS) - 1);
}

static inline uint64_t ghcb_cache_key_slot(uint64_t key)
{
	return key >> GHCB_CACHE_LINE_BITS;
}

/* One byte for each key, in all eight bytes. */
static inline uint64_t ghcb_cache_signature(uint64_t key)
{
	return (key * 0x9e3779b97f4a7c15ull >> 56) * GHCB_EACH_BYTE;
}

/* The set of a line in cache number `unit` of a level. */
static inline uint64_t ghcb_cache_set(const ghcb_cache_level_t *level, uint64_t unit, uint64_t line)
{
	uint64_t at = level->mask || level->n_sets == 1 ? line & level->mask : line % level->n_sets;

	return unit * level->n_sets + at;
}

static inline uint64_t ghcb_zero_bytes(uint64_t x)
{
	return (x - GHCB_EACH_BYTE) & ~x & GHCB_EACH_BYTE << 7;
}

/* Which ways of a set have a signature, one bit each, and maybe others: what is above the lowest
 * mark may be wrong where bytes are compared in words, which costs a look at a tag.
 */
static inline uint64_t ghcb_set_marks(const uint64_t *words, uint64_t ways, uint64_t signature)
{
#ifdef __SSE2__
	const __m128i all = _mm_loadu_si128((const __m128i *)words);
	const __m128i one = _mm_set1_epi8((char)signature);

	return (uint64_t)_mm_movemask_epi8(_mm_cmpeq_epi8(all, one)) & ((1u << ways) - 1);
#else
	uint64_t low = ghcb_zero_bytes(words[0] ^ signature);
	uint64_t high = ghcb_zero_bytes(words[1] ^ signature);

	low = (low >> 7) * 0x0102040810204080ull >> 56;
	high = (high >> 7) * 0x0102040810204080ull >> 56;
	return (high << 8 | low) & ((1ull << ways) - 1);
#endif
}

/* The way of a key in a set, or GHCB_NO_WAY. Up to eight ways are one word: its bytes are marked
 * with arithmetic, which takes fewer steps than a way through vector registers.
 */
static inline uint64_t ghcb_set_find(const ghcb_cache_level_t *level, uint64_t set, uint64_t key)
{
	const uint64_t *words = level->sets + set * GHCB_CACHE_SET_WORDS;
	const uint64_t *tags = level->tags + set * level->ways;
	uint64_t signature = ghcb_cache_signature(key), marks, way;

	if (level->ways > 8) {
		marks = ghcb_set_marks(words, level->ways, signature);
		for (; marks; marks &= marks - 1) {
			way = (uint64_t)__builtin_ctzll(marks);
			if (tags[way] >> GHCB_TAG_SHIFT == key)
				return way;
		}
		return GHCB_NO_WAY;
	}
	marks = ghcb_zero_bytes(words[0] ^ signature);
	if (level->ways < 8) /* no bytes of ways that do not exist */
		marks &= (1ull << 8 * level->ways) - 1;
	for (; marks; marks &= marks - 1) {
		way = (uint64_t)__builtin_ctzll(marks) >> 3;
		if (tags[way] >> GHCB_TAG_SHIFT == key)
			return way;
	}
	return GHCB_NO_WAY;
}

/* All bits of the places in an order up to that of a way. */
static inline uint64_t ghcb_order_up_to(uint64_t order, uint64_t way)
{
	uint64_t x = order ^ way * GHCB_EACH_NIBBLE;

	x = (x - GHCB_EACH_NIBBLE) & ~x & GHCB_EACH_NIBBLE << 3;
	return x ^ (x - 1);
}

/* The way was used: it is the first in the order. No branch: which place it had is hard to guess. */
static inline void ghcb_set_touch(const ghcb_cache_level_t *level, uint64_t set, uint64_t way)
{
	uint64_t *order = level->sets + set * GHCB_CACHE_SET_WORDS + 2;
	uint64_t x = *order, moved = ghcb_order_up_to(x, way);

	*order = (x & ~moved) | ((x << 4 | way) & moved);
}

/* The way that is the last in the order. */
static inline uint64_t ghcb_set_oldest(const ghcb_cache_level_t *level, uint64_t set)
{
	return level->sets[set * GHCB_CACHE_SET_WORDS + 2] >> 4 * (level->ways - 1) & 15;
}

/* Empty a way: it is the last in the order. */
static inline void ghcb_set_take_out(const ghcb_cache_level_t *level, uint64_t set, uint64_t way)
{
	uint64_t *order = level->sets + set * GHCB_CACHE_SET_WORDS + 2;
	uint64_t last = 4 * (level->ways - 1), x = *order;
	uint64_t used = ~0ull >> (60 - last), stay = ghcb_order_up_to(x, way) >> 4; /* before it */

	level->tags[set * level->ways + way] = GHCB_TAG_EMPTY;
	*order = (x & (~used | stay)) | (x >> 4 & used >> 4 & ~stay) | way << last;
}

/* Put a line in the place of whatever is in a way, and first in the order. */
static inline void ghcb_set_put(const ghcb_cache_level_t *level, uint64_t set, uint64_t way,
				uint64_t key, uint64_t flags)
{
	uint64_t *word = level->sets + set * GHCB_CACHE_SET_WORDS + (way >> 3);
	uint64_t shift = 8 * (way & 7);

	*word = (*word & ~(0xffull << shift)) | (ghcb_cache_signature(key) & 0xff) << shift;
	level->tags[set * level->ways + way] = key << GHCB_TAG_SHIFT | flags;
	ghcb_set_touch(level, set, way);
}

/* Put a line in the way that is the last in the order, which makes it the first. */
static inline void ghcb_set_renew(const ghcb_cache_level_t *level, uint64_t set, uint64_t way,
				  uint64_t key, uint64_t flags)
{
	uint64_t *words = level->sets + set * GHCB_CACHE_SET_WORDS, *word = words + (way >> 3);
	uint64_t shift = 8 * (way & 7), order = words[2];
	uint64_t used = ~0ull >> (64 - 4 * level->ways); /* at least one way is */

	*word = (*word & ~(0xffull << shift)) | (ghcb_cache_signature(key) & 0xff) << shift;
	level->tags[set * level->ways + way] = key << GHCB_TAG_SHIFT | flags;
	words[2] = (order & ~used) | (order << 4 & used) | way;
}

/* A number that follows from a seed and a counter alone. */
static inline uint64_t ghcb_cache_draw(uint64_t seed, uint64_t *n)
{
	uint64_t z = seed + ++*n * 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

#endif
