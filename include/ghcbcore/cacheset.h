/* Sets of a cache at scale: find a line, which way is used longest ago, put in, take out.
 *
 * Theory of operation. A line in a cache is known by its *key*: number of the line and key slot
 * (`cacheline.h`). The place of a line is one of `ways` in the set that its number chooses; the slot
 * takes no part in that. A set is four words and its ways:
 * - two words of signatures, one byte for each way: the lookup compares eight ways at once and looks
 *   at a whole tag only where the byte agrees;
 * - one word of order, four bits for each way, the one used last lowest. An empty way is always last.
 * A tag is the key and two flags; beside it stands the version of what a dirty line holds.
 */
#ifndef GHCBCORE_CACHESET_H
#define GHCBCORE_CACHESET_H

#include <stdint.h>

/* cffi: begin */
#define GHCB_CACHE_MAX_WAYS 16
#define GHCB_CACHE_MAX_LEVELS 3
#define GHCB_CACHE_LINE_BITS 46 /* physical addresses have 52, a line 6 */
#define GHCB_CACHE_SET_WORDS 4
/* cffi: end */

#define GHCB_TAG_DIRTY 1ull
#define GHCB_TAG_ALONE 2ull /* no other core has a copy in this domain */
#define GHCB_TAG_SHIFT 2
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

/* The way of a key in a set, or GHCB_NO_WAY. What the marks of bytes say above the lowest zero may
 * be wrong, which costs a look at a tag.
 */
static inline uint64_t ghcb_set_find(const ghcb_cache_level_t *level, uint64_t set, uint64_t key,
				     uint64_t signature)
{
	const uint64_t *words = level->sets + set * GHCB_CACHE_SET_WORDS;
	const uint64_t *tags = level->tags + set * level->ways;
	uint64_t marks = ghcb_zero_bytes(words[0] ^ signature), way;

	if (level->ways < 8) /* no bytes of ways that do not exist */
		marks &= (1ull << 8 * level->ways) - 1;
	for (; marks; marks &= marks - 1) {
		way = (uint64_t)__builtin_ctzll(marks) >> 3;
		if (tags[way] >> GHCB_TAG_SHIFT == key)
			return way;
	}
	if (level->ways <= 8)
		return GHCB_NO_WAY;
	marks = ghcb_zero_bytes(words[1] ^ signature);
	if (level->ways < 16)
		marks &= (1ull << 8 * (level->ways - 8)) - 1;
	for (; marks; marks &= marks - 1) {
		way = 8 + ((uint64_t)__builtin_ctzll(marks) >> 3);
		if (tags[way] >> GHCB_TAG_SHIFT == key)
			return way;
	}
	return GHCB_NO_WAY;
}

/* Where in the order a way stands: four times its place. */
static inline uint64_t ghcb_order_place(uint64_t order, uint64_t way)
{
	uint64_t x = order ^ way * GHCB_EACH_NIBBLE;

	x = (x - GHCB_EACH_NIBBLE) & ~x & GHCB_EACH_NIBBLE << 3;
	return (uint64_t)__builtin_ctzll(x) & ~3ull;
}

/* The way was used: it is the first in the order. */
static inline void ghcb_set_touch(const ghcb_cache_level_t *level, uint64_t set, uint64_t way)
{
	uint64_t *order = level->sets + set * GHCB_CACHE_SET_WORDS + 2;
	uint64_t below, x = *order;

	if ((x & 15) == way)
		return;
	below = (1ull << ghcb_order_place(x, way)) - 1; /* of the places before it */
	*order = (x & ~(below << 4 | 15)) | (x & below) << 4 | way;
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
	uint64_t last = 4 * (level->ways - 1), x = *order, place = ghcb_order_place(x, way);
	uint64_t below = (1ull << place) - 1, used = (1ull << last) - 1;
	uint64_t beyond = last == 60 ? 0 : x & ~(used << 4 | 15); /* ways that do not exist */

	level->tags[set * level->ways + way] = GHCB_TAG_EMPTY;
	*order = beyond | way << last | (x & below) | (x >> 4 & used & ~below);
}

/* Put a line in the place of whatever is in a way, and first in the order. */
static inline void ghcb_set_put(const ghcb_cache_level_t *level, uint64_t set, uint64_t way,
				uint64_t key, uint64_t signature, uint64_t flags)
{
	uint64_t *word = level->sets + set * GHCB_CACHE_SET_WORDS + (way >> 3);
	uint64_t shift = 8 * (way & 7);

	*word = (*word & ~(0xffull << shift)) | (signature & 0xff) << shift;
	level->tags[set * level->ways + way] = key << GHCB_TAG_SHIFT | flags;
	ghcb_set_touch(level, set, way);
}

/* Where a run of accesses of one core under one key is: which line was the last, and its tag. */
typedef struct {
	uint64_t core;
	uint64_t slot;
	uint64_t last_key; /* GHCB_TAG_EMPTY: none */
	uint64_t last_at;
	uint64_t is_miss; /* the run ended where the first eight ways have no such line */
} ghcb_cache_run_t;

/* Take accesses as long as they hit a level and need nothing else: loads, and stores to lines that
 * are alone. Return the index of the first that does not. `step` is 1 if each access has a flag of
 * its own in `stores`, 0 if the first counts for all; `ways` is level->ways, a constant if possible.
 */
static inline __attribute__((always_inline)) uint64_t
ghcb_cache_run_ways(const ghcb_cache_level_t *level, uint64_t ways, ghcb_cache_run_t *run,
		    const uint64_t *lines, const uint8_t *stores, uint64_t step, uint64_t i,
		    uint64_t end)
{
	const uint64_t first = run->core * level->n_sets, mask = level->mask;
	const uint64_t slot = ghcb_cache_key(0, run->slot);
	uint64_t *const sets = level->sets, *const tags = level->tags;
	uint64_t last_key = run->last_key, last_at = run->last_at;
	uint64_t key, marks, way, set, order, below, signature, *words;

	for (; i < end; i++) {
		if (lines[i] >> GHCB_CACHE_LINE_BITS)
			break;
		key = slot | lines[i];
		if (key != last_key) {
			set = first + (lines[i] & mask);
			words = sets + set * GHCB_CACHE_SET_WORDS;
			signature = ghcb_cache_signature(key);
			marks = ghcb_zero_bytes(words[0] ^ signature);
			for (;; marks &= marks - 1) {
				if (!marks) {
					run->is_miss = 1;
					goto out;
				}
				way = (uint64_t)__builtin_ctzll(marks) >> 3;
				if (ways >= 8 || way < ways)
					if (tags[set * ways + way] >> GHCB_TAG_SHIFT == key)
						break;
			}
			order = words[2];
			if ((order & 15) != way) {
				below = (1ull << ghcb_order_place(order, way)) - 1;
				words[2] = (order & ~(below << 4 | 15)) | (order & below) << 4 | way;
			}
			last_key = key;
			last_at = set * ways + way;
		}
		if (stores[step * i]) {
			if (!(tags[last_at] & GHCB_TAG_ALONE))
				break;
			tags[last_at] |= GHCB_TAG_DIRTY;
		}
	}
out:
	run->last_key = last_key;
	run->last_at = last_at;
	return i;
}

/* Only for levels with a power of two of sets; lines in ways above the eighth end a run. */
static inline uint64_t ghcb_cache_run(const ghcb_cache_level_t *level, ghcb_cache_run_t *run,
				      const uint64_t *lines, const uint8_t *stores, uint64_t step,
				      uint64_t i, uint64_t end)
{
	if (level->ways == 8 && step == 0)
		return ghcb_cache_run_ways(level, 8, run, lines, stores, 0, i, end);
	return ghcb_cache_run_ways(level, level->ways, run, lines, stores, step, i, end);
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
