/* One line of memory, its copies in the caches of CPUs, and what is written over what.
 *
 * Theory of operation. A cache knows a line by its physical address *and* by the key that it is
 * accessed under (C-bit, ASID): its domain. What is cached is plain text of that domain; memory is
 * encrypted on the way out and decrypted on the way in. Copies of one line in different domains
 * are *aliases*, and on most parts nothing keeps them coherent: two of them may be dirty at once,
 * hardware writes them back when and in which order it likes, and the last one wins. Where the
 * processor reports SME_COHERENT, a request in one domain first writes back and drops the copies
 * of all others, so that there is one domain at a time.
 *
 * A domain is a key slot (`keyslot.h`). What a line holds is a small number, its value; memory holds
 * a value and the slot that it was written under. Whoever reads it under another slot gets
 * GHCB_LINE_NOISE, always.
 * Stores are of whole lines. Within one domain CPUs are coherent: a store takes the line away from
 * all others, a load copies it and leaves a dirty line to its owner (MOESI without the
 * difference between exclusive and shared).
 *
 * The functions are pure on words, so that whoever explores a machine keeps them in its record:
 * - a *cell* of 16 bits: slot, value, flags;
 * - a CPU's word for a line: up to four cells, one for each domain, in the order of slots;
 * - the memory word of a line: one cell that is stored, one that is still queued in the fabric. The
 *   upper 32 bits are the caller's.
 * Equal states are equal words. What hardware chooses (which alias leaves, in which order) is an
 * argument.
 *
 * Not here: prefetching (a line is filled by a load or a store), and stores of parts of a line,
 * which would first fill it, with noise if the key is another.
 *
 * Source: fact sheet of the SNP host, 6.2, 6.4 and 7.1 (AMD-ASPFW for slots and remarks on the
 * fabric; Linux for who needs which flush).
 */
#ifndef GHCBCORE_CACHELINE_H
#define GHCBCORE_CACHELINE_H

#include <stdint.h>

#include <ghcbcore/keyslot.h>
#include <ghcbcore/reach.h>
#include <ghcbcore/status.h>

/* cffi: begin */
#define GHCB_LINE_SHIFT 6
#define GHCB_LINE_BYTES 64
#define GHCB_LINES_PER_PAGE 64

/* A cell; 0 is "nothing here". */
#define GHCB_CELL_BITS 16
#define GHCB_CELL_SLOT 0x3ff
#define GHCB_CELL_VALUE_SHIFT 10
#define GHCB_CELL_VALUE 0x3c00
#define GHCB_CELL_PRESENT 0x4000
#define GHCB_CELL_DIRTY 0x8000 /* in a cache: not yet written back */
#define GHCB_CELL_LOST 0x8000  /* in memory: the key of the slot is another one since */

#define GHCB_LINE_ALIASES 4  /* cells of one CPU's word */
#define GHCB_LINE_N_VALUES 16
#define GHCB_LINE_NOISE 0 /* what is read under another key; nothing can store it */

/* Where the words of one line are, in whatever record. */
typedef struct {
	uint64_t *first;   /* of CPU 0 */
	uint64_t *others;  /* of CPU 1 and on: that of CPU i is others[(i - 1) * stride] */
	uint64_t stride;
	uint64_t n_cpus;
	uint64_t *memory;  /* the memory word */
	uint64_t coherent; /* 1: the processor reports SME_COHERENT */
} ghcb_line_t;

static uint64_t ghcb_cell(uint64_t slot, uint64_t value);
static uint64_t ghcb_cell_slot(uint64_t cell);
static uint64_t ghcb_cell_value(uint64_t cell);
static uint64_t ghcb_cell_read(uint64_t cell, uint64_t slot);
static uint64_t ghcb_line_find(uint64_t word, uint64_t slot);
static uint64_t ghcb_line_n_dirty(uint64_t word);
static uint64_t ghcb_line_drop(uint64_t word, uint64_t slot);
static uint64_t ghcb_line_drop_clean(uint64_t word);
static int ghcb_line_put(uint64_t word, uint64_t cell, uint64_t *out);
static uint64_t ghcb_memory_content(uint64_t memory);
static uint64_t ghcb_memory_write(uint64_t memory, uint64_t slot, uint64_t value);
static uint64_t ghcb_memory_drain(uint64_t memory);
static uint64_t ghcb_memory_rekey(uint64_t memory, uint64_t slot);
static void ghcb_line_write_back(uint64_t *word, uint64_t slot, uint64_t *memory);
static void ghcb_line_evict(uint64_t *word, uint64_t slot, uint64_t *memory);
static int ghcb_line_load(const ghcb_line_t *at, uint64_t cpu, uint64_t slot, uint64_t *value);
static int ghcb_line_store(const ghcb_line_t *at, uint64_t cpu, uint64_t slot, uint64_t value);
static int ghcb_line_clflush(const ghcb_line_t *at, uint64_t slot);
static int ghcb_line_page_flush(const ghcb_line_t *at, uint64_t asid);
static void ghcb_line_wbinvd(uint64_t *word, uint64_t last, uint64_t *memory);
static void ghcb_line_wbnoinvd(uint64_t *word, uint64_t last, uint64_t *memory);
static void ghcb_line_invd(uint64_t *word);

/* Programs of an explorer (`ghcbcore.cacheline`): what a CPU does. */
#define GHCB_CACHE_LOAD 1
#define GHCB_CACHE_STORE 2
#define GHCB_CACHE_CLFLUSH 3    /* one line: in its domain, or in all if the part is coherent */
#define GHCB_CACHE_WBINVD 4     /* all lines of this CPU, all domains; they are gone then */
#define GHCB_CACHE_WBNOINVD 5   /* the same, but they stay, clean */
#define GHCB_CACHE_INVD 6       /* gone without being written back */
#define GHCB_CACHE_PAGE_FLUSH 7 /* MSR VM_PAGE_FLUSH: one line of the page, in one ASID */
#define GHCB_CACHE_DF_FLUSH 8   /* what is queued in the fabric reaches memory */
#define GHCB_CACHE_REKEY 9      /* a key slot gets another key */
#define GHCB_CACHE_CONVERT 10   /* software uses the line otherwise: its content is given up */
#define GHCB_CACHE_KEXEC 11     /* the next kernel: the contents of all lines are given up */
#define GHCB_CACHE_HALT 12      /* stops; its caches stay as they are */
#define GHCB_CACHE_OPS_END 13

/* What hardware does by itself. */
#define GHCB_CACHE_EVICT 32 /* writes a dirty line back and drops it */
#define GHCB_CACHE_CLEAN 33 /* writes a dirty line back and keeps it: the work of WBNOINVD */
#define GHCB_CACHE_FORGET 34 /* drops a clean line */
#define GHCB_CACHE_DRAIN 35 /* a queued write reaches memory */

/* A line in a record (`reach.h`): the CPU's word; once, the memory word. */
#define GHCB_LINE_OF_CPU 1
#define GHCB_LINE_ONCE 1
/* ghcb_place_t.options */
#define GHCB_LINE_COHERENT 1 /* the processor reports SME_COHERENT */
#define GHCB_LINE_QUEUES 2   /* writes stay in the fabric until DRAIN or DF_FLUSH */
/* The result of what is no operation on a line; nothing has changed. */
#define GHCB_LINE_REFUSED 0x100
/* cffi: end */

_Static_assert(GHCB_LINE_BYTES == 1 << GHCB_LINE_SHIFT, "bytes of a line");

/* One statement of a program. Those of one block wait for all earlier blocks; within a block
 * each CPU keeps its own order and nothing else is ordered.
 */
typedef struct {
	uint32_t kind; /* GHCB_CACHE_* */
	uint32_t cpu;
	uint32_t line; /* index of a line */
	uint32_t slot;
	uint32_t value;
	uint32_t block; /* never less than that of the statement before */
} ghcb_cache_op_t;

/* One event of an order: what happened, to which line and copy, because of which statement. */
typedef struct {
	uint32_t kind; /* GHCB_CACHE_* */
	uint32_t op;   /* index of the statement; UINT32_MAX if hardware did it by itself */
	uint32_t cpu;
	uint32_t line;
	uint32_t slot;
	uint32_t value; /* LOAD: what was read */
} ghcb_cache_event_t;

/* --- cells ------------------------------------------------------------------------------------ */

static inline uint64_t ghcb_cell(uint64_t slot, uint64_t value)
{
	return GHCB_CELL_PRESENT | (slot & GHCB_CELL_SLOT) |
	       (value << GHCB_CELL_VALUE_SHIFT & GHCB_CELL_VALUE);
}

static inline uint64_t ghcb_cell_slot(uint64_t cell)
{
	return cell & GHCB_CELL_SLOT;
}

static inline uint64_t ghcb_cell_value(uint64_t cell)
{
	return (cell & GHCB_CELL_VALUE) >> GHCB_CELL_VALUE_SHIFT;
}

/* What a cell of memory gives to a read under `slot`. */
static inline uint64_t ghcb_cell_read(uint64_t cell, uint64_t slot)
{
	if (cell & GHCB_CELL_LOST || ghcb_cell_slot(cell) != slot)
		return GHCB_LINE_NOISE;
	return ghcb_cell_value(cell);
}

/* --- the word of one CPU ---------------------------------------------------------------------- */

static inline uint64_t ghcb_line_alias(uint64_t word, uint64_t i)
{
	return word >> i * GHCB_CELL_BITS & 0xffff;
}

/* The cell of a domain, or 0. */
static inline uint64_t ghcb_line_find(uint64_t word, uint64_t slot)
{
	for (; word; word >>= GHCB_CELL_BITS)
		if (ghcb_cell_slot(word) == slot)
			return word & 0xffff;
	return 0;
}

static inline uint64_t ghcb_line_n_dirty(uint64_t word)
{
	uint64_t n = 0;

	for (; word; word >>= GHCB_CELL_BITS)
		n += (word & GHCB_CELL_DIRTY) != 0;
	return n;
}

/* The word without the cells for which (cell & mask) == wanted. */
static inline uint64_t ghcb_line_without(uint64_t word, uint64_t mask, uint64_t wanted)
{
	uint64_t out = 0, shift = 0;

	for (; word; word >>= GHCB_CELL_BITS) {
		if ((word & mask) == wanted)
			continue;
		out |= (word & 0xffff) << shift;
		shift += GHCB_CELL_BITS;
	}
	return out;
}

static inline uint64_t ghcb_line_drop(uint64_t word, uint64_t slot)
{
	return ghcb_line_without(word, GHCB_CELL_SLOT, slot);
}

static inline uint64_t ghcb_line_drop_clean(uint64_t word)
{
	return ghcb_line_without(word, GHCB_CELL_DIRTY, 0);
}

/* Put a cell in its place; that of the same domain is replaced. OUT_OF_RANGE: four others. */
static inline int ghcb_line_put(uint64_t word, uint64_t cell, uint64_t *out)
{
	uint64_t rest = ghcb_line_drop(word, ghcb_cell_slot(cell)), below = 0, shift = 0;

	if (ghcb_line_alias(rest, GHCB_LINE_ALIASES - 1))
		return GHCB_E_OUT_OF_RANGE;
	while (rest && ghcb_cell_slot(rest) < ghcb_cell_slot(cell)) {
		below |= (rest & 0xffff) << shift;
		rest >>= GHCB_CELL_BITS;
		shift += GHCB_CELL_BITS;
	}
	below |= (cell & 0xffff) << shift;
	if (rest) /* at most two cells are below then, so the shift is less than 64 */
		below |= rest << (shift + GHCB_CELL_BITS);
	*out = below;
	return GHCB_OK;
}

/* --- the memory word -------------------------------------------------------------------------- */

/* The cell that a read gets: a queued write is seen by whoever asks for the address. */
static inline uint64_t ghcb_memory_content(uint64_t memory)
{
	uint64_t queued = memory >> GHCB_CELL_BITS & 0xffff;

	return queued ? queued : memory & 0xffff;
}

/* A write-back goes to the queue; what was queued for the same line would be overwritten anyway. */
static inline uint64_t ghcb_memory_write(uint64_t memory, uint64_t slot, uint64_t value)
{
	return (memory & ~(0xffffull << GHCB_CELL_BITS)) | ghcb_cell(slot, value) << GHCB_CELL_BITS;
}

/* The queue reaches memory, encrypted with the key that its slot has now. */
static inline uint64_t ghcb_memory_drain(uint64_t memory)
{
	uint64_t queued = memory >> GHCB_CELL_BITS & 0xffff;

	return queued ? (memory & ~0xffffffffull) | queued : memory;
}

/* The slot gets another key: what is in memory under it is noise from now on. */
static inline uint64_t ghcb_memory_rekey(uint64_t memory, uint64_t slot)
{
	if (slot != GHCB_KEY_SLOT_NONE && memory & GHCB_CELL_PRESENT &&
	    ghcb_cell_slot(memory) == slot)
		return memory | GHCB_CELL_LOST;
	return memory;
}

/* --- what hardware does with one copy --------------------------------------------------------- */

/* Write the copy of a domain back, if it is dirty; it stays, clean. */
static inline void ghcb_line_write_back(uint64_t *word, uint64_t slot, uint64_t *memory)
{
	uint64_t i, cell;

	for (i = 0; i < GHCB_LINE_ALIASES; i++) {
		cell = ghcb_line_alias(*word, i);
		if (cell & GHCB_CELL_DIRTY && ghcb_cell_slot(cell) == slot) {
			*memory = ghcb_memory_write(*memory, slot, ghcb_cell_value(cell));
			*word &= ~((uint64_t)GHCB_CELL_DIRTY << i * GHCB_CELL_BITS);
		}
	}
}

static inline void ghcb_line_evict(uint64_t *word, uint64_t slot, uint64_t *memory)
{
	ghcb_line_write_back(word, slot, memory);
	*word = ghcb_line_drop(*word, slot);
}

/* --- what CPUs ask for ------------------------------------------------------------------------ */

static inline uint64_t *ghcb_line_word(const ghcb_line_t *at, uint64_t cpu)
{
	return cpu ? at->others + (cpu - 1) * at->stride : at->first;
}

/* SME_COHERENT: before a request in one domain, all others leave all caches. */
static inline void ghcb_line_expel(const ghcb_line_t *at, uint64_t slot)
{
	uint64_t i, *word, rest;

	for (i = 0; i < at->n_cpus; i++) {
		word = ghcb_line_word(at, i);
		for (rest = *word; rest; rest >>= GHCB_CELL_BITS)
			if (ghcb_cell_slot(rest) != slot)
				ghcb_line_evict(word, ghcb_cell_slot(rest), at->memory);
	}
}

/* Read the line: own copy, else that of another CPU, else memory. The own copy is clean if it is
 * new. OUT_OF_RANGE: no such CPU or slot, or a fifth domain; nothing has changed then.
 */
static inline int ghcb_line_load(const ghcb_line_t *at, uint64_t cpu, uint64_t slot,
				 uint64_t *value)
{
	uint64_t i, cell, word, *own;
	int status;

	if (cpu >= at->n_cpus || slot >= GHCB_KEY_N_SLOTS)
		return GHCB_E_OUT_OF_RANGE;
	own = ghcb_line_word(at, cpu);
	if (at->coherent)
		ghcb_line_expel(at, slot);
	cell = ghcb_line_find(*own, slot);
	if (!cell) {
		for (i = 0; i < at->n_cpus && !cell; i++)
			cell = ghcb_line_find(*ghcb_line_word(at, i), slot);
		if (cell)
			cell &= ~(uint64_t)GHCB_CELL_DIRTY;
		else
			cell = ghcb_cell(slot, ghcb_cell_read(ghcb_memory_content(*at->memory), slot));
		status = ghcb_line_put(*own, cell, &word);
		if (status != GHCB_OK)
			return status;
		*own = word;
	}
	*value = ghcb_cell_value(cell);
	return GHCB_OK;
}

/* Write the whole line. OUT_OF_RANGE: as for a load, or a value that nobody can store. */
static inline int ghcb_line_store(const ghcb_line_t *at, uint64_t cpu, uint64_t slot,
				  uint64_t value)
{
	uint64_t i, word, *each, *own;
	int status;

	if (cpu >= at->n_cpus || slot >= GHCB_KEY_N_SLOTS || value == GHCB_LINE_NOISE ||
	    value >= GHCB_LINE_N_VALUES)
		return GHCB_E_OUT_OF_RANGE;
	own = ghcb_line_word(at, cpu);
	if (at->coherent)
		ghcb_line_expel(at, slot);
	status = ghcb_line_put(*own, ghcb_cell(slot, value) | GHCB_CELL_DIRTY, &word);
	if (status != GHCB_OK)
		return status;
	for (i = 0; i < at->n_cpus; i++) {
		each = ghcb_line_word(at, i);
		*each = ghcb_line_drop(*each, slot);
	}
	*own = word;
	return GHCB_OK;
}

/* CLFLUSH of a mapping with this key, on any CPU: one line leaves all caches. */
static inline int ghcb_line_clflush(const ghcb_line_t *at, uint64_t slot)
{
	uint64_t i;

	if (slot >= GHCB_KEY_N_SLOTS)
		return GHCB_E_OUT_OF_RANGE;
	if (at->coherent)
		ghcb_line_expel(at, slot);
	for (i = 0; i < at->n_cpus; i++)
		ghcb_line_evict(ghcb_line_word(at, i), slot, at->memory);
	return GHCB_OK;
}

/* What MSR VM_PAGE_FLUSH does to each line of the page. OUT_OF_RANGE: not an ASID. */
static inline int ghcb_line_page_flush(const ghcb_line_t *at, uint64_t asid)
{
	ghcb_line_t incoherent = *at;

	incoherent.coherent = 0;
	if (asid == GHCB_KEY_SLOT_NONE || asid > GHCB_KEY_SLOT_LAST_ASID)
		return GHCB_E_OUT_OF_RANGE;
	return ghcb_line_clflush(&incoherent, asid);
}

/* WBNOINVD as one CPU's line sees it: dirty copies are written back, that of `last` after the
 * others; all stay, clean. With d dirty copies d different results are possible, one for each of
 * them as `last`; an order among the others changes nothing.
 */
static inline void ghcb_line_wbnoinvd(uint64_t *word, uint64_t last, uint64_t *memory)
{
	uint64_t i;

	for (i = 0; i < GHCB_LINE_ALIASES; i++)
		if (ghcb_cell_slot(ghcb_line_alias(*word, i)) != last)
			ghcb_line_write_back(word, ghcb_cell_slot(ghcb_line_alias(*word, i)),
					     memory);
	ghcb_line_write_back(word, last, memory);
}

/* WBINVD: the same, and no copy stays. */
static inline void ghcb_line_wbinvd(uint64_t *word, uint64_t last, uint64_t *memory)
{
	ghcb_line_wbnoinvd(word, last, memory);
	*word = 0;
}

static inline void ghcb_line_invd(uint64_t *word)
{
	*word = 0;
}

/* --- lines of a record ------------------------------------------------------------------------ */

/* What is done to all copies of a line: needs every CPU's word. */
static inline uint64_t ghcb_line_reach_all(const ghcb_line_t *line, uint64_t cpu,
					   const ghcb_reach_op_t *op, uint64_t value)
{
	uint64_t slot = op->arg[0], got = 0;
	int status = GHCB_E_OUT_OF_RANGE;

	if (op->code == GHCB_CACHE_LOAD)
		status = ghcb_line_load(line, cpu, slot, &got);
	else if (op->code == GHCB_CACHE_STORE)
		status = ghcb_line_store(line, cpu, slot, value);
	else if (op->code == GHCB_CACHE_CLFLUSH)
		status = ghcb_line_clflush(line, slot);
	else if (op->code == GHCB_CACHE_PAGE_FLUSH)
		status = ghcb_line_page_flush(line, slot);
	return status == GHCB_OK ? got : GHCB_LINE_REFUSED;
}

/* Carry out one operation, GHCB_CACHE_*, on a line of a record. arg[0] is a slot: that of the access,
 * of the copy that hardware writes back or drops, of the new key, or of the copy that WBINVD and
 * WBNOINVD write back last. `value` is what is stored. Local is whatever has to do with copies of the
 * acting CPU or with memory alone. Returns the value that was loaded, else 0.
 */
static inline uint64_t ghcb_line_reach(const ghcb_reach_t *at, const ghcb_reach_op_t *op,
				       uint64_t value)
{
	uint64_t *memory = at->words + GHCB_LINE_OF_CPU, slot = op->arg[0], cpu = 0, result = 0;
	ghcb_line_t line = {
		.first = at->words,
		.others = at->others,
		.stride = at->stride,
		.n_cpus = at->n_others + 1,
		.memory = memory,
		.coherent = (at->place->options & GHCB_LINE_COHERENT) != 0,
	};

	if (at->place->n_slice < GHCB_LINE_OF_CPU ||
	    at->place->n_words < GHCB_LINE_OF_CPU + GHCB_LINE_ONCE || slot >= GHCB_KEY_N_SLOTS)
		return GHCB_LINE_REFUSED;
	switch (op->code) {
	case GHCB_CACHE_EVICT:
	case GHCB_CACHE_FORGET: /* a clean copy has nothing to write back */
		ghcb_line_evict(at->own, slot, memory);
		break;
	case GHCB_CACHE_CLEAN:
		ghcb_line_write_back(at->own, slot, memory);
		break;
	case GHCB_CACHE_WBINVD:
		ghcb_line_wbinvd(at->own, slot, memory);
		break;
	case GHCB_CACHE_WBNOINVD:
		ghcb_line_wbnoinvd(at->own, slot, memory);
		break;
	case GHCB_CACHE_INVD:
		ghcb_line_invd(at->own);
		break;
	case GHCB_CACHE_REKEY:
		*memory = ghcb_memory_rekey(*memory, slot);
		break;
	case GHCB_CACHE_DF_FLUSH:
	case GHCB_CACHE_DRAIN:
		*memory = ghcb_memory_drain(*memory);
		break;
	default:
		if (op->local) /* without the others' words a load or store could not be right */
			return GHCB_LINE_REFUSED;
		if (at->own != at->words)
			cpu = (uint64_t)(at->own - at->others) / at->stride + 1;
		result = ghcb_line_reach_all(&line, cpu, op, value);
	}
	if (!(at->place->options & GHCB_LINE_QUEUES))
		*memory = ghcb_memory_drain(*memory);
	return result;
}

#endif
