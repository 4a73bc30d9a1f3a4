/* Caches of several cores and lines under several keys: who asks whom, and what has to leave.
 *
 * Theory of operation. Within one key cores are coherent: a store takes the line away from all
 * others, a load leaves it where it is and notes that nobody has it alone. Each line of memory has a
 * word of *holders*, a bit for the cores of one residue modulo 64 that ever took it, so that only
 * these are asked. Copies under different keys know nothing of each other; where the part is
 * coherent, a request under one key first writes back and drops the copies under all others.
 * Nothing here is on the way of an access that hits.
 */
#ifndef GHCBCORE_CACHEPEERS_H
#define GHCBCORE_CACHEPEERS_H

#include <ghcbcore/cachelevels.h>

static inline uint64_t ghcb_cache_residues(const ghcb_cache_t *c)
{
	return c->n_cores < GHCB_CACHE_RESIDUES ? c->n_cores : GHCB_CACHE_RESIDUES;
}

/* Take a line out of all that a core reaches. Return its tag: dirty if any copy was. */
static inline uint64_t ghcb_cache_drop(ghcb_cache_t *c, uint64_t core, uint64_t key,
				       uint64_t *version)
{
	uint64_t tag = GHCB_TAG_EMPTY, i;

	for (i = c->n_levels; i-- > 0;)
		tag = ghcb_cache_take(c, c->kind, i, ghcb_cache_unit(c, c->kind, i, core), key, tag,
				      version);
	return tag;
}

/* Is a line in one cache? It is no longer alone then. */
static inline uint64_t ghcb_cache_share(ghcb_cache_t *c, uint64_t i, uint64_t core, uint64_t key)
{
	const ghcb_cache_level_t *level = &c->level[i];
	uint64_t set = ghcb_cache_set(level, ghcb_cache_unit(c, c->kind, i, core),
				      ghcb_cache_key_line(key));
	uint64_t way = ghcb_set_find(level, set, key);

	if (way == GHCB_NO_WAY)
		return 0;
	level->tags[set * level->ways + way] &= ~GHCB_TAG_ALONE;
	return 1;
}

/* Did another core have the line? A store takes it away from all of them. */
static __attribute__((noinline, unused)) uint64_t
ghcb_cache_ask_others(ghcb_cache_t *c, uint64_t core, uint64_t key,
		      uint64_t is_store)
{
	uint64_t word = c->pages.holders[ghcb_pages_entry(&c->pages, ghcb_cache_key_line(key))];
	uint64_t found = 0, version = 0, other, i;

	for (; word; word &= word - 1) {
		other = (uint64_t)__builtin_ctzll(word);
		for (; other < c->n_cores; other += GHCB_CACHE_RESIDUES) {
			if (is_store) {
				if (other != core)
					found |= ghcb_cache_drop(c, other, key,
								 &version) != GHCB_TAG_EMPTY;
				continue;
			}
			for (i = 0; i < c->n_levels; i++) /* its own L3 is asked with the core */
				if (other != core || i == 2)
					found |= ghcb_cache_share(c, i, other, key);
		}
	}
	if (is_store && c->n_levels > 2) /* a copy that another core of the CCX gave up */
		ghcb_cache_take(c, c->kind, 2, ghcb_cache_unit(c, c->kind, 2, core), key,
				0, &version);
	return found;
}

/* Write back and drop the copies of a line under every key but one that one cache has. */
static inline void ghcb_cache_expel_from(ghcb_cache_t *c, uint64_t i, uint64_t core, uint64_t line,
					 uint64_t keep)
{
	const ghcb_cache_level_t *level = &c->level[i];
	uint64_t set = ghcb_cache_set(level, ghcb_cache_unit(c, c->kind, i, core), line);
	uint64_t way, tag, key, version = 0;

	for (way = 0; way < level->ways; way++) {
		tag = level->tags[set * level->ways + way];
		key = tag >> GHCB_TAG_SHIFT;
		if (tag == GHCB_TAG_EMPTY || ghcb_cache_key_line(key) != line ||
		    ghcb_cache_key_slot(key) == keep)
			continue;
		tag = ghcb_cache_drop(c, core, key, &version);
		if (tag & GHCB_TAG_DIRTY)
			ghcb_cache_write_back(c, c->kind, key, version);
	}
}

static __attribute__((noinline, unused)) void ghcb_cache_expel(ghcb_cache_t *c, uint64_t core,
							       uint64_t line, uint64_t keep)
{
	uint64_t word = 1, other, i;

	if (c->kind & GHCB_CACHE_SHARED)
		word = c->pages.holders[ghcb_pages_entry(&c->pages, line)] |
		       1ull << core % GHCB_CACHE_RESIDUES;
	for (; word; word &= word - 1) {
		other = (uint64_t)__builtin_ctzll(word);
		for (; other < c->n_cores; other += GHCB_CACHE_RESIDUES)
			for (i = 0; i < c->n_levels; i++)
				ghcb_cache_expel_from(c, i, other, line, keep);
	}
}

/* CLFLUSH: a line leaves all caches; of every key, if `every`, else of one. */
static inline void ghcb_cache_flush_line(ghcb_cache_t *c, uint64_t line, uint64_t slot,
					 uint64_t every)
{
	uint64_t key = ghcb_cache_key(line, slot);
	uint64_t word = 1, tag, version = 0, other;

	if (c->kind & GHCB_CACHE_SHARED) {
		if (!ghcb_pages_is_known(&c->pages, line)) /* no core ever took it */
			return;
		word = c->pages.holders[ghcb_pages_entry(&c->pages, line)];
	}
	if (every)
		ghcb_cache_expel(c, 0, line, slot);
	for (; word; word &= word - 1) {
		other = (uint64_t)__builtin_ctzll(word);
		for (; other < c->n_cores; other += GHCB_CACHE_RESIDUES) {
			tag = ghcb_cache_drop(c, other, key, &version);
			if (tag != GHCB_TAG_EMPTY && tag & GHCB_TAG_DIRTY)
				ghcb_cache_write_back(c, c->kind, key, version);
		}
	}
}

#endif
