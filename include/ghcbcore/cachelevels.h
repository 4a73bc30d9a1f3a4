/* The caches of a machine at scale: where an access finds its line, and what leaves which cache.
 *
 * Theory of operation. An access looks into L1; what is not there comes from L2, from the L3 of the
 * CCX (and leaves it), from another core, or from memory. It goes into L2 and L1, what it displaces
 * goes one level down, and what falls out of the last one, dirty, is written to memory.
 * The functions on the way of an access take a `kind`, bits that say what the machine can do at all.
 * Where it is a constant, the compiler leaves out the rest: ghcb_cache_run() has such copies for one
 * core with the geometry of most parts (ways of 8, 8 and 16), and a general one for all others.
 * A miss asks the host for the sets of the access GHCB_CACHE_AHEAD places on, and for the set that
 * its victim will go to: the words of a large L3 are in no near cache of the host. What is written
 * to memory waits in a queue, so that the host looks for several places at once.
 * What rules there are between cores and between keys stands in `cachepeers.h`.
 */
#ifndef GHCBCORE_CACHELEVELS_H
#define GHCBCORE_CACHELEVELS_H

#include <ghcbcore/cachepages.h>
#include <ghcbcore/cacheset.h>
#include <ghcbcore/keyslot.h>
#include <stdint.h>

#define GHCB_CACHE_TRACKED 1ull   /* what software meant and what memory holds is kept */
#define GHCB_CACHE_INCLUSIVE 2ull /* L2 holds all that L1 holds */
#define GHCB_CACHE_SHARED 4ull    /* there are other cores */
#define GHCB_CACHE_COHERENT 8ull  /* one key at a time for each line */
#define GHCB_CACHE_RANDOM 16ull   /* which line leaves is drawn */
#define GHCB_CACHE_USUAL 32ull    /* three levels with 8, 8 and 16 ways, a power of two of sets */

#define GHCB_CACHE_LOADS 64ull    /* no access is a store */
#define GHCB_CACHE_STORES 256ull  /* each access is a store */
#define GHCB_CACHE_QUEUED 128ull  /* writes to memory may wait for ghcb_cache_drain() */

#define GHCB_CACHE_VERSION_BITS 54
#define GHCB_CACHE_RESIDUES 64 /* bits of a word that says which cores may have a line */
#define GHCB_CACHE_AHEAD 8
#define GHCB_CACHE_LATER 4
#define GHCB_CACHE_QUEUE 16

typedef struct {
	ghcb_cache_level_t level[GHCB_CACHE_MAX_LEVELS];
	uint64_t n_units[GHCB_CACHE_MAX_LEVELS]; /* caches of each level */
	uint64_t n_levels;
	uint64_t n_cores;
	uint64_t cores_per_l3;
	uint64_t kind;
	uint64_t seed;
	uint64_t n_draws;
	uint64_t n_versions; /* stores so far */
	uint64_t *entries; /* of each dirty tag of L1: where its line stands in `pages` */
	uint64_t hits[GHCB_CACHE_MAX_LEVELS];
	uint64_t others;
	uint64_t fills;
	uint64_t write_backs;
	ghcb_cache_pages_t pages;
	uint64_t n_later;
	uint64_t later[GHCB_CACHE_LATER]; /* sets of the L3 that lines will go to */
	uint64_t n_queued;
	uint64_t queue[GHCB_CACHE_QUEUE][2]; /* line and word of dram, oldest first */
} ghcb_cache_t;

/* Accesses one after the other. A step is 1 if each access has its own, 0 if the first counts. */
typedef struct {
	const uint64_t *lines;
	const uint8_t *stores;
	const uint16_t *slots;
	const uint32_t *cores;
	uint64_t n;
	uint64_t store_step;
	uint64_t slot_step;
	uint64_t core_step;
} ghcb_cache_trace_t;

#define GHCB_CACHE_INLINE static inline __attribute__((always_inline))

/* Levels, and level number i from 0, with constants where the kind says which. */
GHCB_CACHE_INLINE uint64_t ghcb_cache_depth(const ghcb_cache_t *c, uint64_t kind)
{
	return kind & GHCB_CACHE_USUAL ? 3 : c->n_levels;
}

GHCB_CACHE_INLINE ghcb_cache_level_t ghcb_cache_level(const ghcb_cache_t *c, uint64_t kind,
						      uint64_t i)
{
	ghcb_cache_level_t level = c->level[i];

	if (kind & GHCB_CACHE_USUAL)
		level.ways = i == 2 ? 16 : 8;
	return level;
}

/* The number of a core's cache of a level. */
GHCB_CACHE_INLINE uint64_t ghcb_cache_unit(const ghcb_cache_t *c, uint64_t kind, uint64_t i,
					   uint64_t core)
{
	if (!(kind & GHCB_CACHE_SHARED))
		return 0;
	return i == 2 ? core / c->cores_per_l3 : core;
}

GHCB_CACHE_INLINE uint64_t ghcb_cache_at(const ghcb_cache_level_t *level, uint64_t kind,
					 uint64_t unit, uint64_t line)
{
	if (kind & GHCB_CACHE_USUAL)
		return unit * level->n_sets + (line & level->mask);
	return ghcb_cache_set(level, unit, line);
}

GHCB_CACHE_INLINE uint64_t ghcb_cache_version(const ghcb_cache_level_t *level, uint64_t kind,
					      uint64_t at)
{
	return kind & GHCB_CACHE_TRACKED ? level->versions[at] : 0;
}

/* What waits in the queue is written to memory. Together, so that the host looks for all of the
 * places at once: one after the other they are a wait for its memory each.
 */
static inline void ghcb_cache_drain(ghcb_cache_t *c)
{
	uint64_t k;

	for (k = 0; k < c->n_queued; k++)
		ghcb_pages_prefetch(&c->pages, c->pages.dram, c->queue[k][0]);
	for (k = 0; k < c->n_queued; k++)
		c->pages.dram[ghcb_pages_entry(&c->pages, c->queue[k][0])] = c->queue[k][1];
	c->n_queued = 0;
}

GHCB_CACHE_INLINE void ghcb_cache_write_back(ghcb_cache_t *c, uint64_t kind, uint64_t key,
					     uint64_t version)
{
	uint64_t line = ghcb_cache_key_line(key);
	uint64_t word = ghcb_cache_key_slot(key) << GHCB_CACHE_VERSION_BITS | version;

	c->write_backs++;
	if (!(kind & GHCB_CACHE_TRACKED))
		return;
	if (!(kind & GHCB_CACHE_QUEUED)) {
		c->pages.dram[ghcb_pages_entry(&c->pages, line)] = word;
		return;
	}
	c->queue[c->n_queued][0] = line;
	c->queue[c->n_queued][1] = word;
	if (++c->n_queued == GHCB_CACHE_QUEUE)
		ghcb_cache_drain(c);
}

/* --- in and out of one cache ------------------------------------------------------------------ */

/* What had to leave for a line, and where that stands now. */
typedef struct {
	uint64_t tag; /* EMPTY: nothing had to leave */
	uint64_t version;
	uint64_t at; /* number of the tag in its level */
} ghcb_cache_put_t;

GHCB_CACHE_INLINE ghcb_cache_put_t ghcb_cache_put(ghcb_cache_t *c, uint64_t kind,
						  const ghcb_cache_level_t *level, uint64_t set,
						  uint64_t key, uint64_t flags,
						  uint64_t version)
{
	uint64_t way = ghcb_set_oldest(level, set);
	ghcb_cache_put_t out = {level->tags[set * level->ways + way], 0, 0};

	if (kind & GHCB_CACHE_RANDOM && out.tag != GHCB_TAG_EMPTY) {
		way = ghcb_cache_draw(c->seed, &c->n_draws) % level->ways;
		out.tag = level->tags[set * level->ways + way];
	}
	out.at = set * level->ways + way;
	if (out.tag & GHCB_TAG_DIRTY) /* of an empty way too, which does no harm */
		out.version = ghcb_cache_version(level, kind, out.at);
	if (kind & GHCB_CACHE_RANDOM)
		ghcb_set_put(level, set, way, key, flags);
	else
		ghcb_set_renew(level, set, way, key, flags);
	if (kind & GHCB_CACHE_TRACKED && flags & GHCB_TAG_DIRTY)
		level->versions[out.at] = version;
	return out;
}

/* Take a line out of one cache. Return its tag, or `tag` if it is not there, or there but clean. */
GHCB_CACHE_INLINE uint64_t ghcb_cache_take(ghcb_cache_t *c, uint64_t kind, uint64_t i,
					   uint64_t unit, uint64_t key,
					   uint64_t tag, uint64_t *version)
{
	const ghcb_cache_level_t level = ghcb_cache_level(c, kind, i);
	uint64_t set = ghcb_cache_at(&level, kind, unit, ghcb_cache_key_line(key)), found;
	uint64_t way = ghcb_set_find(&level, set, key);

	if (way == GHCB_NO_WAY)
		return tag;
	found = level.tags[set * level.ways + way];
	ghcb_set_take_out(&level, set, way);
	if (found & GHCB_TAG_DIRTY) {
		*version = ghcb_cache_version(&level, kind, set * level.ways + way);
		return found;
	}
	return tag == GHCB_TAG_EMPTY ? found : tag;
}

/* --- lines on their way down ------------------------------------------------------------------ */

/* A line left L2: it goes to the L3, unless a copy is there that is no older. */
GHCB_CACHE_INLINE void ghcb_cache_spill_l2(ghcb_cache_t *c, uint64_t kind, uint64_t core,
					   uint64_t tag, uint64_t version)
{
	const ghcb_cache_level_t level = ghcb_cache_level(c, kind, 2);
	uint64_t key = tag >> GHCB_TAG_SHIFT, set, way = GHCB_NO_WAY;
	ghcb_cache_put_t out;

	if (ghcb_cache_depth(c, kind) < 3) {
		if (tag & GHCB_TAG_DIRTY)
			ghcb_cache_write_back(c, kind, key, version);
		return;
	}
	set = ghcb_cache_at(&level, kind, ghcb_cache_unit(c, kind, 2, core),
			    ghcb_cache_key_line(key));
	if (kind & GHCB_CACHE_SHARED || tag & GHCB_TAG_COPY) /* else no copy can be there */
		way = ghcb_set_find(&level, set, key);
	if (way == GHCB_NO_WAY) {
		out = ghcb_cache_put(c, kind, &level, set, key, tag & GHCB_TAG_STATE, version);
		if (out.tag != GHCB_TAG_EMPTY && out.tag & GHCB_TAG_DIRTY)
			ghcb_cache_write_back(c, kind, out.tag >> GHCB_TAG_SHIFT, out.version);
	} else if (tag & GHCB_TAG_DIRTY) {
		ghcb_set_put(&level, set, way, key, tag & GHCB_TAG_STATE);
		if (kind & GHCB_CACHE_TRACKED)
			level.versions[set * level.ways + way] = version;
	}
}

GHCB_CACHE_INLINE void ghcb_cache_fill_l2(ghcb_cache_t *c, uint64_t kind, uint64_t core,
					  uint64_t set, uint64_t key, uint64_t flags,
					  uint64_t version)
{
	const ghcb_cache_level_t level = ghcb_cache_level(c, kind, 1);
	ghcb_cache_put_t out = ghcb_cache_put(c, kind, &level, set, key, flags, version);
	uint64_t old = out.tag >> GHCB_TAG_SHIFT;

	if (out.tag == GHCB_TAG_EMPTY)
		return;
	if (kind & GHCB_CACHE_INCLUSIVE)
		out.tag = ghcb_cache_take(c, kind, 0, ghcb_cache_unit(c, kind, 0, core), old,
					  out.tag, &out.version);
	ghcb_cache_spill_l2(c, kind, core, out.tag, out.version);
}

/* A dirty line left L1. */
GHCB_CACHE_INLINE void ghcb_cache_spill_l1(ghcb_cache_t *c, uint64_t kind, uint64_t core,
					   uint64_t tag, uint64_t version)
{
	const ghcb_cache_level_t level = ghcb_cache_level(c, kind, 1);
	uint64_t key = tag >> GHCB_TAG_SHIFT, set, way, *below;

	if (ghcb_cache_depth(c, kind) == 1) {
		ghcb_cache_write_back(c, kind, key, version);
		return;
	}
	set = ghcb_cache_at(&level, kind, ghcb_cache_unit(c, kind, 1, core),
			    ghcb_cache_key_line(key));
	way = ghcb_set_find(&level, set, key);
	if (way == GHCB_NO_WAY) {
		ghcb_cache_fill_l2(c, kind, core, set, key,
				   (tag & GHCB_TAG_STATE) | GHCB_TAG_COPY, version);
		return;
	}
	below = level.tags + set * level.ways + way;
	*below = tag | (*below & GHCB_TAG_COPY);
	if (kind & GHCB_CACHE_TRACKED)
		level.versions[set * level.ways + way] = version;
}

/* Return the number of the tag in L1. */
GHCB_CACHE_INLINE uint64_t ghcb_cache_fill_l1(ghcb_cache_t *c, uint64_t kind, uint64_t core,
					      uint64_t set, uint64_t key, uint64_t flags,
					      uint64_t version)
{
	const ghcb_cache_level_t level = ghcb_cache_level(c, kind, 0);
	ghcb_cache_put_t out = ghcb_cache_put(c, kind, &level, set, key, flags, version);

	if (out.tag != GHCB_TAG_EMPTY && out.tag & GHCB_TAG_DIRTY)
		ghcb_cache_spill_l1(c, kind, core, out.tag, out.version);
	return out.at;
}

#endif
