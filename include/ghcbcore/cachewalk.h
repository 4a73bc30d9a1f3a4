/* Caches of a machine at scale as a whole: flush them, evict from them, count what is there.
 * See `cachelevels.h`.
 */
#ifndef GHCBCORE_CACHEWALK_H
#define GHCBCORE_CACHEWALK_H

#include <ghcbcore/cachepeers.h>
#include <string.h>

static inline uint64_t ghcb_cache_is_dirty(uint64_t tag)
{
	return tag != GHCB_TAG_EMPTY && tag & GHCB_TAG_DIRTY;
}

static inline void ghcb_cache_empty(ghcb_cache_t *c, uint64_t i, uint64_t unit)
{
	const ghcb_cache_level_t *level = &c->level[i];
	uint64_t first = unit * level->n_sets, k;

	memset(level->tags + first * level->ways, 0xff,
	       sizeof(*level->tags) * level->n_sets * level->ways);
	for (k = first; k < first + level->n_sets; k++)
		level->sets[k * GHCB_CACHE_SET_WORDS + 2] = GHCB_ORDER_NEW;
}

/* Further down may be an older version of what is written back: it is not dirty any more. */
static inline void ghcb_cache_clean(ghcb_cache_t *c, uint64_t i, uint64_t unit, uint64_t key)
{
	const ghcb_cache_level_t *level = &c->level[i];
	uint64_t set = ghcb_cache_set(level, unit, ghcb_cache_key_line(key));
	uint64_t way = ghcb_set_find(level, set, key);

	if (way != GHCB_NO_WAY)
		level->tags[set * level->ways + way] &= ~GHCB_TAG_DIRTY;
}

/* Count the dirty lines of one cache. If `keys` is not NULL, clean and list them, from the n-th
 * element on. Return n and how many there were.
 */
static inline uint64_t ghcb_cache_list(ghcb_cache_t *c, uint64_t i, uint64_t unit, uint64_t *keys,
				       uint64_t *versions, uint64_t n)
{
	const ghcb_cache_level_t *level = &c->level[i];
	uint64_t k = unit * level->n_sets * level->ways, end = k + level->n_sets * level->ways;

	for (; k < end; k++) {
		if (!ghcb_cache_is_dirty(level->tags[k]))
			continue;
		if (keys) {
			keys[n] = level->tags[k] >> GHCB_TAG_SHIFT;
			versions[n] = ghcb_cache_version(level, c->kind, k);
			level->tags[k] &= ~GHCB_TAG_DIRTY;
			if (i == 0 && c->n_levels > 1)
				ghcb_cache_clean(c, 1, unit, keys[n]);
			if (i < 2 && c->n_levels > 2 && !(c->kind & GHCB_CACHE_INCLUSIVE))
				ghcb_cache_clean(c, 2, unit / c->cores_per_l3, keys[n]);
		}
		n++;
	}
	return n;
}

/* ghcb_cache_list() of all caches that cores first to end - 1 reach. */
static inline uint64_t ghcb_cache_list_all(ghcb_cache_t *c, uint64_t first, uint64_t end,
					   uint64_t *keys, uint64_t *versions)
{
	uint64_t i, per, unit, n = 0;

	for (i = 0; i < c->n_levels; i++) {
		per = i < 2 ? 1 : c->cores_per_l3;
		for (unit = first / per; unit <= (end - 1) / per; unit++)
			n = ghcb_cache_list(c, i, unit, keys, versions, n);
	}
	return n;
}

static inline void ghcb_cache_empty_all(ghcb_cache_t *c, uint64_t first, uint64_t end)
{
	uint64_t i, per, unit;

	for (i = 0; i < c->n_levels; i++) {
		per = i < 2 ? 1 : c->cores_per_l3;
		for (unit = first / per; unit <= (end - 1) / per; unit++)
			ghcb_cache_empty(c, i, unit);
	}
}

/* Write listed lines back, each order as likely as any other. */
static inline void ghcb_cache_write_all(ghcb_cache_t *c, uint64_t *keys, uint64_t *versions,
					uint64_t n)
{
	uint64_t k, j, key, version;

	for (k = 0; k < n; k++) {
		j = k + ghcb_cache_draw(c->seed, &c->n_draws) % (n - k);
		key = keys[j];
		version = versions[j];
		keys[j] = keys[k];
		versions[j] = versions[k];
		ghcb_cache_write_back(c, c->kind, key, version);
	}
}

/* Look at n places of all caches, drawn with the seed; what is there leaves. */
static inline void ghcb_cache_evict(ghcb_cache_t *c, uint64_t n)
{
	uint64_t size[GHCB_CACHE_MAX_LEVELS], places = 0, at, i, unit, tag, key, version;

	for (i = 0; i < c->n_levels; i++) {
		size[i] = c->n_units[i] * c->level[i].n_sets * c->level[i].ways;
		places += size[i];
	}
	for (; n; n--) {
		at = ghcb_cache_draw(c->seed, &c->n_draws) % places;
		for (i = 0; at >= size[i]; i++)
			at -= size[i];
		tag = c->level[i].tags[at];
		if (tag == GHCB_TAG_EMPTY)
			continue;
		unit = at / (c->level[i].n_sets * c->level[i].ways);
		key = tag >> GHCB_TAG_SHIFT;
		tag = version = 0;
		if (i == 2) {
			tag = ghcb_cache_take(c, c->kind, 2, unit, key, tag, &version);
		} else {
			if (c->n_levels > 2 && !(c->kind & GHCB_CACHE_INCLUSIVE))
				tag = ghcb_cache_take(c, c->kind, 2, unit / c->cores_per_l3, key,
						      tag, &version);
			if (c->n_levels > 1)
				tag = ghcb_cache_take(c, c->kind, 1, unit, key, tag,
						      &version);
			tag = ghcb_cache_take(c, c->kind, 0, unit, key, tag, &version);
		}
		if (tag & GHCB_TAG_DIRTY)
			ghcb_cache_write_back(c, c->kind, key, version);
	}
}

/* Add the lines of a level to counts by slot, clean and dirty. */
static inline void ghcb_cache_count(const ghcb_cache_t *c, uint64_t i, uint64_t *counts)
{
	const ghcb_cache_level_t *level = &c->level[i];
	uint64_t k, tag;

	for (k = 0; k < c->n_units[i] * level->n_sets * level->ways; k++) {
		tag = level->tags[k];
		if (tag != GHCB_TAG_EMPTY)
			counts[2 * ghcb_cache_key_slot(tag >> GHCB_TAG_SHIFT) +
			       (tag & GHCB_TAG_DIRTY)]++;
	}
}

#endif
