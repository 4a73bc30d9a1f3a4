/* Accesses to the caches of a machine at scale, many in one call. See `cachelevels.h`.
 *
 * Measured on one core of an EPYC: the trace asks for its sets 8 accesses ahead (4 is as good, 16 is
 * worse), only in a miss of L2, since in front of the L2 asking costs more than it saves.
 */
#ifndef GHCBCORE_CACHERUN_H
#define GHCBCORE_CACHERUN_H

#include <ghcbcore/cachepeers.h>

/* Ask the host for what a later access of a core will need if it is a miss like the one now: first
 * for the set of the L3 where it will look, and for the one that its victim in L2 will go to; a few
 * misses later, when the words of that set are here, for the tag of the line that leaves it.
 */
GHCB_CACHE_INLINE void ghcb_cache_ahead(ghcb_cache_t *c, uint64_t kind, uint64_t core,
					const uint64_t *lines, uint64_t left, uint64_t is_store)
{
	const ghcb_cache_level_t l2 = ghcb_cache_level(c, kind, 1);
	const ghcb_cache_level_t l3 = ghcb_cache_level(c, kind, 2);
	uint64_t set, at, tag, unit, *later;

	if (left <= GHCB_CACHE_AHEAD)
		return;
	later = &c->later[c->n_later++ % GHCB_CACHE_LATER];
	at = *later * l3.ways + ghcb_set_oldest(&l3, *later);
	__builtin_prefetch(l3.tags + at, 1);
	if (kind & GHCB_CACHE_TRACKED && is_store) {
		__builtin_prefetch(l3.versions + at, 1);
		ghcb_pages_prefetch(&c->pages, c->pages.meant, lines[GHCB_CACHE_AHEAD]);
	}
	unit = ghcb_cache_unit(c, kind, 2, core);
	set = ghcb_cache_at(&l3, kind, unit, lines[GHCB_CACHE_AHEAD]);
	__builtin_prefetch(l3.sets + set * GHCB_CACHE_SET_WORDS, 1);
	set = ghcb_cache_at(&l2, kind, ghcb_cache_unit(c, kind, 1, core), lines[GHCB_CACHE_AHEAD]);
	tag = l2.tags[set * l2.ways + ghcb_set_oldest(&l2, set)];
	if (tag == GHCB_TAG_EMPTY)
		return;
	*later = ghcb_cache_at(&l3, kind, unit, ghcb_cache_key_line(tag >> GHCB_TAG_SHIFT));
	__builtin_prefetch(l3.sets + *later * GHCB_CACHE_SET_WORDS, 1);
}

/* Bring a line into set number `set` of L1; return the number of its tag there. */
GHCB_CACHE_INLINE uint64_t ghcb_cache_miss(ghcb_cache_t *c, uint64_t kind, uint64_t core,
					   uint64_t set, uint64_t key, uint64_t is_store,
					   const uint64_t *lines, uint64_t left)
{
	uint64_t line = ghcb_cache_key_line(key), tag = GHCB_TAG_EMPTY, version = 0;
	uint64_t flags = GHCB_TAG_ALONE, set2 = 0, way;
	const ghcb_cache_level_t l2 = ghcb_cache_level(c, kind, 1);

	if (ghcb_cache_depth(c, kind) > 1) {
		set2 = ghcb_cache_at(&l2, kind, ghcb_cache_unit(c, kind, 1, core), line);
		way = ghcb_set_find(&l2, set2, key);
		if (way != GHCB_NO_WAY) {
			c->hits[1]++;
			ghcb_set_touch(&l2, set2, way);
			flags = l2.tags[set2 * l2.ways + way] & GHCB_TAG_ALONE;
			return ghcb_cache_fill_l1(c, kind, core, set, key, flags, 0);
		}
	}
	if (ghcb_cache_depth(c, kind) > 2) {
		ghcb_cache_ahead(c, kind, core, lines, left, is_store);
		tag = ghcb_cache_take(c, kind, 2, ghcb_cache_unit(c, kind, 2, core), key, tag,
				      &version);
	}
	if (tag != GHCB_TAG_EMPTY) {
		c->hits[2]++;
		flags = tag & GHCB_TAG_STATE;
	} else {
		if (kind & GHCB_CACHE_COHERENT)
			ghcb_cache_expel(c, core, line, ghcb_cache_key_slot(key));
		if (kind & GHCB_CACHE_SHARED && ghcb_cache_ask_others(c, core, key, is_store)) {
			c->others++;
			flags = is_store ? GHCB_TAG_ALONE : 0;
		} else {
			c->fills++;
		}
	}
	if (kind & GHCB_CACHE_SHARED)
		c->pages.holders[ghcb_pages_entry(&c->pages, line)] |=
			1ull << core % GHCB_CACHE_RESIDUES;
	if (ghcb_cache_depth(c, kind) > 1) {
		ghcb_cache_fill_l2(c, kind, core, set2, key, flags, version);
		flags &= GHCB_TAG_ALONE;
		version = 0;
	}
	return ghcb_cache_fill_l1(c, kind, core, set, key, flags, version);
}

/* Not inlined: the loop over hits keeps its registers. */
static __attribute__((noinline, unused)) uint64_t
ghcb_cache_miss_plain(ghcb_cache_t *c, uint64_t set, uint64_t key, const uint64_t *lines,
		      uint64_t left)
{
	const uint64_t kind = GHCB_CACHE_USUAL | (c->kind & GHCB_CACHE_INCLUSIVE);

	return ghcb_cache_miss(c, kind, 0, set, key, 0, lines, left);
}

static __attribute__((noinline, unused)) uint64_t
ghcb_cache_miss_tracked(ghcb_cache_t *c, uint64_t set, uint64_t key, uint64_t is_store,
			const uint64_t *lines, uint64_t left)
{
	const uint64_t kind = GHCB_CACHE_USUAL | GHCB_CACHE_TRACKED | GHCB_CACHE_QUEUED |
			      (c->kind & GHCB_CACHE_INCLUSIVE);

	return ghcb_cache_miss(c, kind, 0, set, key, is_store, lines, left);
}

/* Carry out accesses i to end - 1; return the first that is none: no such line, slot or core. */
GHCB_CACHE_INLINE uint64_t ghcb_cache_go(ghcb_cache_t *c, uint64_t kind,
					 const ghcb_cache_trace_t *trace, uint64_t i, uint64_t end)
{
	const ghcb_cache_trace_t t = *trace;
	const uint64_t first = i;
	const ghcb_cache_level_t l1 = ghcb_cache_level(c, kind, 0);
	uint64_t last_key = GHCB_TAG_EMPTY, last_core = 0, at = 0, n_misses = 0;
	uint64_t line, slot, core, key, set, way, is_store;
	const uint64_t same = t.store_step ? 0 : end;
	uint64_t version = c->n_versions, *const entries = c->entries;

	for (; i < end; i++) {
		line = t.lines[i];
		slot = kind & GHCB_CACHE_USUAL ? t.slots[0] : t.slots[t.slot_step * i];
		core = kind & GHCB_CACHE_USUAL ? 0 : t.cores[t.core_step * i];
		if (line >> GHCB_CACHE_LINE_BITS)
			break;
		if (!(kind & GHCB_CACHE_USUAL) && (slot >= GHCB_KEY_N_SLOTS || core >= c->n_cores))
			break;
		is_store = kind & GHCB_CACHE_STORES ? 1 : 0;
		if (!(kind & (GHCB_CACHE_LOADS | GHCB_CACHE_STORES)))
			is_store = t.stores[t.store_step * i];
		key = ghcb_cache_key(line, slot);
		if (key != last_key || core != last_core) {
			set = ghcb_cache_at(&l1, kind, ghcb_cache_unit(c, kind, 0, core), line);
			way = ghcb_set_find(&l1, set, key);
			last_key = key;
			last_core = core;
			if (__builtin_expect(way != GHCB_NO_WAY, 1)) {
				ghcb_set_touch(&l1, set, way);
				at = set * l1.ways + way;
			} else {
				n_misses++;
				if (!(kind & GHCB_CACHE_USUAL))
					at = ghcb_cache_miss(c, kind, core, set, key, is_store,
							     t.lines + i, t.n - i);
				else if (kind & GHCB_CACHE_TRACKED)
					at = ghcb_cache_miss_tracked(c, set, key, is_store,
								     t.lines + i, t.n - i);
				else
					at = ghcb_cache_miss_plain(c, set, key, t.lines + i,
								   t.n - i);
			}
		}
		if (kind & GHCB_CACHE_USUAL) /* the same line again: only the last one counts */
			for (; i + 1 < same && t.lines[i + 1] == line; i++)
				version += is_store;
		if (!is_store)
			continue;
		if (kind & GHCB_CACHE_SHARED && !(l1.tags[at] & GHCB_TAG_ALONE))
			ghcb_cache_ask_others(c, core, key, 1);
		if (kind & GHCB_CACHE_TRACKED) {
			if (!(l1.tags[at] & GHCB_TAG_DIRTY))
				entries[at] = ghcb_pages_entry(&c->pages, line);
			l1.versions[at] = ++version;
			c->pages.meant[entries[at]] = slot << GHCB_CACHE_VERSION_BITS | version;
		}
		l1.tags[at] |= GHCB_TAG_DIRTY | GHCB_TAG_ALONE;
	}
	ghcb_cache_drain(c);
	c->hits[0] += i - first - n_misses;
	c->n_versions = version;
	return i;
}

static inline uint64_t ghcb_cache_is_usual(const ghcb_cache_t *c)
{
	uint64_t i, other = GHCB_CACHE_SHARED | GHCB_CACHE_COHERENT | GHCB_CACHE_RANDOM;

	if (c->n_levels != 3 || c->kind & other)
		return 0;
	for (i = 0; i < 3; i++)
		if (!c->level[i].mask || c->level[i].ways != (i == 2 ? 16 : 8))
			return 0;
	return 1;
}

static __attribute__((noinline, unused)) uint64_t
ghcb_cache_go_loads(ghcb_cache_t *c, const ghcb_cache_trace_t *trace, uint64_t i, uint64_t end)
{
	return ghcb_cache_go(c, GHCB_CACHE_USUAL | GHCB_CACHE_LOADS, trace, i, end);
}

static __attribute__((noinline, unused)) uint64_t
ghcb_cache_go_stores(ghcb_cache_t *c, const ghcb_cache_trace_t *trace, uint64_t i, uint64_t end)
{
	return ghcb_cache_go(c, GHCB_CACHE_USUAL | GHCB_CACHE_STORES, trace, i, end);
}

static __attribute__((noinline, unused)) uint64_t
ghcb_cache_go_tracked_stores(ghcb_cache_t *c, const ghcb_cache_trace_t *trace, uint64_t i,
			     uint64_t end)
{
	return ghcb_cache_go(c, GHCB_CACHE_USUAL | GHCB_CACHE_STORES | GHCB_CACHE_TRACKED, trace, i,
			     end);
}

static __attribute__((noinline, unused)) uint64_t
ghcb_cache_go_plain(ghcb_cache_t *c, const ghcb_cache_trace_t *trace, uint64_t i, uint64_t end)
{
	return ghcb_cache_go(c, GHCB_CACHE_USUAL, trace, i, end);
}

static __attribute__((noinline, unused)) uint64_t
ghcb_cache_go_tracked(ghcb_cache_t *c, const ghcb_cache_trace_t *trace, uint64_t i, uint64_t end)
{
	return ghcb_cache_go(c, GHCB_CACHE_USUAL | GHCB_CACHE_TRACKED, trace, i, end);
}

static __attribute__((noinline, unused)) uint64_t
ghcb_cache_go_anyhow(ghcb_cache_t *c, const ghcb_cache_trace_t *trace, uint64_t i, uint64_t end)
{
	return ghcb_cache_go(c, c->kind & ~GHCB_CACHE_USUAL, trace, i, end);
}

/* ghcb_cache_go() in the copy that fits. */
static inline uint64_t ghcb_cache_run(ghcb_cache_t *c, const ghcb_cache_trace_t *trace, uint64_t i,
				      uint64_t end)
{
	if (!(c->kind & GHCB_CACHE_USUAL) || trace->slot_step || trace->core_step ||
	    trace->cores[0] || trace->slots[0] >= GHCB_KEY_N_SLOTS)
		return ghcb_cache_go_anyhow(c, trace, i, end);
	if (!trace->store_step && trace->stores[0])
		return c->kind & GHCB_CACHE_TRACKED
			       ? ghcb_cache_go_tracked_stores(c, trace, i, end)
			       : ghcb_cache_go_stores(c, trace, i, end);
	if (c->kind & GHCB_CACHE_TRACKED)
		return ghcb_cache_go_tracked(c, trace, i, end);
	if (!trace->store_step)
		return ghcb_cache_go_loads(c, trace, i, end);
	return ghcb_cache_go_plain(c, trace, i, end);
}

#endif
