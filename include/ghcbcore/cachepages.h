/* Memory behind the caches at scale, kept only for pages that somebody stored to or asked for.
 *
 * Theory of operation. A table with open addressing says which *block* a page has; a block is 64
 * words, one for each line, in each array that is kept: what software meant to last, what memory
 * holds, and which cores may have a copy. A place of the table is two words side by side, so that
 * a look is one line of the host. Blocks are numbered in the order in which pages came. Whoever
 * calls has made room: at least one place of the table is always empty.
 */
#ifndef GHCBCORE_CACHEPAGES_H
#define GHCBCORE_CACHEPAGES_H

#include <stdint.h>

#define GHCB_PAGES_LINES 64
#define GHCB_PAGES_NONE (~0ull)

typedef struct {
	uint64_t *table;   /* two words for each place: 1 + the page, or 0; its block */
	uint64_t *meant;   /* of each line of each block */
	uint64_t *dram;
	uint64_t *holders;
	uint64_t mask;     /* places of the table, less one */
	uint64_t n_blocks;
	uint64_t last_page; /* the page that was looked for last, or NONE, and its block */
	uint64_t last_block;
} ghcb_cache_pages_t;

/* The place of a page: its own, or the empty one where it would be. */
static inline uint64_t *ghcb_pages_place(const ghcb_cache_pages_t *pages, uint64_t page)
{
	uint64_t at = (page * 0x9e3779b97f4a7c15ull >> 20) & pages->mask;

	while (pages->table[2 * at] && pages->table[2 * at] != page + 1)
		at = (at + 1) & pages->mask;
	return pages->table + 2 * at;
}

/* Where a line stands in the arrays; its page gets a block if it has none. */
static inline uint64_t ghcb_pages_entry(ghcb_cache_pages_t *pages, uint64_t line)
{
	uint64_t page = line / GHCB_PAGES_LINES, *place;

	if (page != pages->last_page) {
		place = ghcb_pages_place(pages, page);
		if (!place[0]) {
			place[0] = page + 1;
			place[1] = pages->n_blocks++;
		}
		pages->last_page = page;
		pages->last_block = place[1];
	}
	return pages->last_block * GHCB_PAGES_LINES + line % GHCB_PAGES_LINES;
}

static inline uint64_t ghcb_pages_is_known(const ghcb_cache_pages_t *pages, uint64_t line)
{
	return pages->n_blocks && *ghcb_pages_place(pages, line / GHCB_PAGES_LINES);
}

/* Ask the host for what a store to this line will touch. */
static inline void ghcb_pages_prefetch(const ghcb_cache_pages_t *pages, const uint64_t *array,
				       uint64_t line)
{
	const uint64_t *place = ghcb_pages_place(pages, line / GHCB_PAGES_LINES);

	if (place[0])
		__builtin_prefetch(array + place[1] * GHCB_PAGES_LINES + line % GHCB_PAGES_LINES, 1);
}

/* Put the pages of another table, of `n` places, into this one, which is empty. */
static inline void ghcb_pages_move(ghcb_cache_pages_t *pages, const uint64_t *table, uint64_t n)
{
	uint64_t i, *place;

	for (i = 0; i < n; i++) {
		if (!table[2 * i])
			continue;
		place = ghcb_pages_place(pages, table[2 * i] - 1);
		place[0] = table[2 * i];
		place[1] = table[2 * i + 1];
	}
}

#endif
