"""Caches of a whole machine at scale: millions of lines, each under a key, and what memory holds.

A ``Cache`` is one or two private levels for each core and a victim cache that some cores share, as in a
Zen: a line that leaves L2 goes to the L3 of its CCX, a hit there moves it back. L2 holds all that L1
holds, unless ``inclusive`` is false. Within one key cores are coherent (a store takes the line away from
the others, a load leaves a dirty line to its owner). Copies under different keys know nothing of
each other, or exclude each other where the part is ``coherent``. The rules are those of
``ghcbcore/cacheline.h``; how sets are kept is in ``ghcbcore/cacheset.h``.

Memory is kept sparse, by pages that were stored to: of each line which store software meant to last, and
which store was written back last, under which key. A store has a *version*, its number from 1 on;
version 0 is what was there before. Choices of the hardware follow from the caller's seed.

Assumed, for lack of a source: a set is the number of the line modulo the number of sets; WBINVD leaves
the private caches of other cores alone and empties the L3 that the core shares.

Units: ``line`` is a physical address without the C-bit, divided by 64; ``slot`` is the key
(``GHCB_KEY_SLOT_*``); ``spa`` counts bytes.
"""

from collections import namedtuple as _namedtuple
from operator import index as _index
from threading import Lock as _Lock

import numpy as _np

from ghcbcore import errors as _errors

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from ghcbcore cimport clib
from ghcbcore.clib cimport ghcb_cache_level_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

__all__ = ["CORRUPT_DTYPE", "DIRTY_DTYPE", "MAX_CORES", "Cache", "Counts", "bytes_for"]

cdef enum:
    CORES = 4096
    CHUNK = 2048  # accesses between two looks at the room for pages
    PAGE_LINES = 64
    RESIDUES = 64  # bits of a word that says which cores may have a line
    VERSION_BITS = 54
    DROP = 1
    WRITE = 2

MAX_CORES = CORES

# Python integers: a shift of C integers would be one of 32 bits.
_LINES = int(1) << int(clib.GHCB_CACHE_LINE_BITS)
_VERSIONS = _np.uint64((int(1) << int(VERSION_BITS)) - 1)

Counts = _namedtuple(
    "Counts",
    ("loads", "stores", "l1_hits", "l2_hits", "l3_hits", "other_hits", "fills", "write_backs"),
)
Counts.__doc__ = """What accesses came to.

``l1_hits`` to ``l3_hits`` were found in the core's own caches and L3, ``other_hits`` in another core's;
``fills`` came from memory. The five add up to ``loads + stores``. ``write_backs`` reached memory.
"""

CORRUPT_DTYPE = _np.dtype(
    [("spa", _np.uint64), ("meant_version", _np.uint64), ("version", _np.uint64),
     ("meant_slot", _np.uint16), ("slot", _np.uint16)]
)
DIRTY_DTYPE = _np.dtype(
    [("line", _np.uint64), ("version", _np.uint64), ("unit", _np.uint32), ("slot", _np.uint16),
     ("level", _np.uint16)]
)


def bytes_for(levels, n_cores=1, cores_per_l3=1):
    """Return the bytes that caches take, without memory; the arguments are those of ``Cache``.

    Raises
    ------
    OutOfRange
        No level, more than three, a level with no set, or with ways other than 1 to 16, a
        core count that is none.
    """
    cdef object total = 0
    given = [(_index(n_sets), _index(ways)) for n_sets, ways in levels]
    n_cores, cores_per_l3 = _index(n_cores), _index(cores_per_l3)
    if not 1 <= len(given) <= clib.GHCB_CACHE_MAX_LEVELS:
        raise _errors.OutOfRange(f"levels: {len(given)}, must be 1 to {clib.GHCB_CACHE_MAX_LEVELS}")
    if not 1 <= n_cores <= CORES:
        raise _errors.OutOfRange(f"n_cores = {n_cores}: must be 1 to {CORES}")
    if not 1 <= cores_per_l3 <= CORES:
        raise _errors.OutOfRange(f"cores_per_l3 = {cores_per_l3}: must be 1 to {CORES}")
    for i, (n_sets, ways) in enumerate(given):
        if not 1 <= n_sets <= _LINES:
            raise _errors.OutOfRange(f"levels[{i}]: {n_sets} sets")
        if not 1 <= ways <= clib.GHCB_CACHE_MAX_WAYS:
            raise _errors.OutOfRange(
                f"levels[{i}]: {ways} ways, must be 1 to {clib.GHCB_CACHE_MAX_WAYS}"
            )
        n_units = n_cores if i < 2 else -(-n_cores // cores_per_l3)
        total += 8 * n_units * n_sets * (clib.GHCB_CACHE_SET_WORDS + 2 * ways)
    return total


@cython.final
cdef class Cache:
    """Cache(levels, n_cores=1, cores_per_l3=1, *, replacement="lru", inclusive=True, coherent=False, track=True, seed=0, max_bytes=1 << 30)\n--\n
    Parameters
    ----------
    levels : sequence of (n_sets, ways)
        L1 and L2 of each core, the L3 that cores share; one, two or three of them.
    n_cores, cores_per_l3 : int
        Core ``c`` has L3 number ``c // cores_per_l3``.
    replacement : "lru" or "random"
        Which line leaves a full set: the one used longest ago, or one drawn with the seed.
    inclusive : bool
        A line that leaves L2 leaves L1 too. False: L1 keeps it, and what it writes back comes to L2.
    coherent : bool
        The part reports SME_COHERENT: one key at a time for each line.
    track : bool
        Keep what software meant and what memory holds. False: only caches, which is faster.
    seed : int
        64 bits; for random replacement and the order of write-backs.
    max_bytes : int
        Bound for caches and memory together.

    Raises
    ------
    OutOfRange
        See ``bytes_for``; or the caches do not fit into ``max_bytes``. Nothing is allocated then.
    """

    cdef readonly Py_ssize_t n_cores, cores_per_l3, n_levels
    cdef readonly bint coherent, inclusive, track
    cdef bint is_random, has_pages, is_shared
    cdef uint64_t seed, n_draws, n_versions, max_bytes, cache_bytes
    cdef ghcb_cache_level_t level[3]
    cdef uint64_t n_units[3]
    cdef object _keep, _lock
    # counters
    cdef uint64_t loads, stores, others, fills, write_backs
    cdef uint64_t hits[3]
    # memory, by page
    cdef uint64_t *pfns  # of a slot of the table: 1 + the page
    cdef uint64_t *blocks  # of a slot of the table: the block
    cdef uint64_t *meant  # of each line of each block
    cdef uint64_t *dram
    cdef uint64_t *holders
    cdef uint64_t table_mask, n_blocks, cap_blocks, last_page, last_block
    # the last access, if nothing happened since
    cdef uint64_t last_key, last_core, last_at

    def __init__(self, levels, n_cores=1, cores_per_l3=1, *, replacement="lru", inclusive=True,
                 coherent=False, track=True, seed=0, max_bytes=1 << 30):
        if self._lock is not None:
            raise _errors.StateConflict("a Cache is made once")
        levels = [tuple(one) for one in levels]
        total, bound = bytes_for(levels, n_cores, cores_per_l3), _index(max_bytes)
        if replacement not in ("lru", "random"):
            raise ValueError(f"replacement {replacement!r}: must be 'lru' or 'random'")
        if not 0 <= _index(seed) < 1 << 64:
            raise _errors.OutOfRange(f"seed = {seed}: does not fit 64 bits")
        if total > bound:
            raise _errors.OutOfRange(f"the caches take {total} bytes, max_bytes is {bound}")
        self.n_cores, self.cores_per_l3, self.n_levels = n_cores, cores_per_l3, len(levels)
        self.inclusive, self.coherent, self.track = inclusive, coherent, track
        self.is_random, self.is_shared = replacement == "random", n_cores > 1
        self.has_pages = self.track or self.is_shared
        self.seed, self.max_bytes, self.cache_bytes = seed, min(bound, 1 << 62), total
        self._keep = {}
        for i, (n_sets, ways) in enumerate(levels):
            self._make_level(i, n_sets, ways)
        self.last_key = clib.GHCB_TAG_EMPTY
        self.last_page = clib.GHCB_TAG_EMPTY
        self._lock = _Lock()

    cdef int _make_level(self, Py_ssize_t i, n_sets, ways) except -1:
        n_units = self.n_cores
        if i == 2:
            n_units = (self.n_cores + self.cores_per_l3 - 1) // self.cores_per_l3
        sets = _np.zeros(n_units * n_sets * clib.GHCB_CACHE_SET_WORDS, _np.uint64)
        tags = _np.full(n_units * n_sets * ways, clib.GHCB_TAG_EMPTY, _np.uint64)
        versions = _np.zeros(n_units * n_sets * ways if self.track else 1, _np.uint64)
        sets[2 :: clib.GHCB_CACHE_SET_WORDS] = clib.GHCB_ORDER_NEW
        self._keep[i] = sets, tags, versions
        self.n_units[i] = n_units
        is_power = n_sets & (n_sets - 1) == 0
        self.level[i] = ghcb_cache_level_t(
            <uint64_t *> _address(sets), <uint64_t *> _address(tags),
            <uint64_t *> _address(versions), n_sets, n_sets - 1 if is_power else 0, ways,
        )
        return 0

    # ---- memory, by page

    cdef int _room(self, uint64_t n) except -1:
        """Make room for n more pages, or raise."""
        cdef uint64_t cap, size, i, at
        if not self.has_pages or self.n_blocks + n <= self.cap_blocks:
            return 0
        cap = max(2 * self.cap_blocks, self.n_blocks + n)
        size = 1 << (int(2 * cap - 1)).bit_length()
        arrays = 2 * self.track + self.is_shared
        need = self.cache_bytes + 8 * (cap * PAGE_LINES * arrays + 2 * size)
        if need > self.max_bytes:
            raise _errors.OutOfRange(
                f"memory of {self.n_blocks} pages and the caches take {need} bytes with room for "
                f"more, max_bytes is {self.max_bytes}"
            )
        for name, is_wanted in (("meant", self.track), ("dram", self.track),
                                ("holders", self.is_shared)):
            made = _np.zeros(cap * PAGE_LINES if is_wanted else 1, _np.uint64)
            if name in self._keep:
                made[: len(self._keep[name])] = self._keep[name]
            self._keep[name] = made
        old = self._keep.get("pfns"), self._keep.get("blocks")
        self._keep["pfns"], self._keep["blocks"] = (_np.zeros(size, _np.uint64) for _ in range(2))
        self.meant = <uint64_t *> _address(self._keep["meant"])
        self.dram = <uint64_t *> _address(self._keep["dram"])
        self.holders = <uint64_t *> _address(self._keep["holders"])
        self.pfns = <uint64_t *> _address(self._keep["pfns"])
        self.blocks = <uint64_t *> _address(self._keep["blocks"])
        self.table_mask = size - 1
        self.cap_blocks = cap
        if old[0] is not None:
            for pfn, block in zip(old[0].tolist(), old[1].tolist(), strict=True):
                if pfn:
                    at = self._slot(pfn - 1)
                    self.pfns[at], self.blocks[at] = pfn, block
        return 0

    cdef inline uint64_t _slot(self, uint64_t page) noexcept nogil:
        cdef uint64_t at = (page * <uint64_t> 0x9e3779b97f4a7c15 >> 20) & self.table_mask
        while self.pfns[at] != 0 and self.pfns[at] != page + 1:
            at = (at + 1) & self.table_mask
        return at

    cdef inline uint64_t _entry(self, uint64_t line) noexcept nogil:
        """Return where the line of a page stands in the arrays; there is room for a new page."""
        cdef uint64_t at, page = line // PAGE_LINES
        if page != self.last_page:
            at = self._slot(page)
            if self.pfns[at] == 0:
                self.pfns[at], self.blocks[at] = page + 1, self.n_blocks
                self.n_blocks += 1
            self.last_page, self.last_block = page, self.blocks[at]
        return self.last_block * PAGE_LINES + line % PAGE_LINES

    cdef inline bint _is_known(self, uint64_t line) noexcept nogil:
        return self.n_blocks != 0 and self.pfns[self._slot(line // PAGE_LINES)] != 0

    # ---- lines on their way down

    cdef inline void _write_back(self, uint64_t key, uint64_t version) noexcept nogil:
        self.write_backs += 1
        if self.track:
            self.dram[self._entry(clib.ghcb_cache_key_line(key))] = (
                clib.ghcb_cache_key_slot(key) << VERSION_BITS | version
            )

    cdef inline uint64_t _victim(self, ghcb_cache_level_t *level, uint64_t at) noexcept nogil:
        cdef uint64_t way = clib.ghcb_set_oldest(level, at)
        if self.is_random and level.tags[at * level.ways + way] != clib.GHCB_TAG_EMPTY:
            way = clib.ghcb_cache_draw(self.seed, &self.n_draws) % level.ways
        return way

    cdef inline uint64_t _put(
        self, ghcb_cache_level_t *level, uint64_t at, uint64_t way, uint64_t key, uint64_t sig,
        uint64_t flags, uint64_t version,
    ) noexcept nogil:
        clib.ghcb_set_put(level, at, way, key, sig, flags)
        if self.track and flags & clib.GHCB_TAG_DIRTY:
            level.versions[at * level.ways + way] = version
        return at * level.ways + way

    cdef inline uint64_t _version(self, ghcb_cache_level_t *level, uint64_t i) noexcept nogil:
        return level.versions[i] if self.track else 0

    cdef inline uint64_t _fill_l1(
        self, uint64_t core, uint64_t key, uint64_t sig, uint64_t flags, uint64_t version
    ) noexcept nogil:
        cdef ghcb_cache_level_t *level = &self.level[0]
        cdef uint64_t at = clib.ghcb_cache_set(level, core, clib.ghcb_cache_key_line(key))
        cdef uint64_t way = self._victim(level, at)
        cdef uint64_t tag = level.tags[at * level.ways + way]
        if tag != clib.GHCB_TAG_EMPTY and tag & clib.GHCB_TAG_DIRTY:
            self._spill_l1(core, tag, self._version(level, at * level.ways + way))
        return self._put(level, at, way, key, sig, flags, version)

    cdef void _spill_l1(self, uint64_t core, uint64_t tag, uint64_t version) noexcept nogil:
        cdef uint64_t key = tag >> clib.GHCB_TAG_SHIFT, sig, at, way
        cdef ghcb_cache_level_t *level = &self.level[1]
        if self.n_levels == 1:
            self._write_back(key, version)
            return
        sig = clib.ghcb_cache_signature(key)
        at = clib.ghcb_cache_set(level, core, clib.ghcb_cache_key_line(key))
        way = clib.ghcb_set_find(level, at, key, sig)
        if way == clib.GHCB_NO_WAY:
            self._fill_l2(core, key, sig, tag & 3, version)
            return
        level.tags[at * level.ways + way] = tag
        if self.track:
            level.versions[at * level.ways + way] = version

    cdef void _fill_l2(
        self, uint64_t core, uint64_t key, uint64_t sig, uint64_t flags, uint64_t version
    ) noexcept nogil:
        cdef ghcb_cache_level_t *level = &self.level[1]
        cdef uint64_t at = clib.ghcb_cache_set(level, core, clib.ghcb_cache_key_line(key))
        cdef uint64_t way = self._victim(level, at)
        cdef uint64_t tag = level.tags[at * level.ways + way], old_version, old
        if tag != clib.GHCB_TAG_EMPTY:
            old = tag >> clib.GHCB_TAG_SHIFT
            old_version = self._version(level, at * level.ways + way)
            if self.inclusive:
                tag = self._take(0, core, old, clib.ghcb_cache_signature(old), tag, &old_version)
            self._spill_l2(core, tag, old_version)
        self._put(level, at, way, key, sig, flags, version)

    cdef void _spill_l2(self, uint64_t core, uint64_t tag, uint64_t version) noexcept nogil:
        cdef uint64_t key = tag >> clib.GHCB_TAG_SHIFT, sig, at, way, old
        cdef ghcb_cache_level_t *level = &self.level[2]
        if self.n_levels < 3:
            if tag & clib.GHCB_TAG_DIRTY:
                self._write_back(key, version)
            return
        sig = clib.ghcb_cache_signature(key)
        at = clib.ghcb_cache_set(level, core // self.cores_per_l3, clib.ghcb_cache_key_line(key))
        way = clib.GHCB_NO_WAY
        if self.is_shared or not self.inclusive:  # else no copy can be there
            way = clib.ghcb_set_find(level, at, key, sig)
        if way == clib.GHCB_NO_WAY:
            way = self._victim(level, at)
            old = level.tags[at * level.ways + way]
            if old != clib.GHCB_TAG_EMPTY and old & clib.GHCB_TAG_DIRTY:
                self._write_back(
                    old >> clib.GHCB_TAG_SHIFT, self._version(level, at * level.ways + way)
                )
            self._put(level, at, way, key, sig, tag & 3, version)
        elif tag & clib.GHCB_TAG_DIRTY:
            self._put(level, at, way, key, sig, tag & 3, version)

    cdef uint64_t _take(
        self, Py_ssize_t i, uint64_t unit, uint64_t key, uint64_t sig, uint64_t tag,
        uint64_t *version,
    ) noexcept nogil:
        """Take a line out of one cache. Return its tag, or ``tag`` if it is not there or clean."""
        cdef ghcb_cache_level_t *level = &self.level[i]
        cdef uint64_t at = clib.ghcb_cache_set(level, unit, clib.ghcb_cache_key_line(key))
        cdef uint64_t way = clib.ghcb_set_find(level, at, key, sig), found
        if way == clib.GHCB_NO_WAY:
            return tag
        found = level.tags[at * level.ways + way]
        clib.ghcb_set_take_out(level, at, way)
        if found & clib.GHCB_TAG_DIRTY:
            version[0] = self._version(level, at * level.ways + way)
            return found
        return found if tag == clib.GHCB_TAG_EMPTY else tag

    # ---- other cores, other keys

    cdef uint64_t _drop(self, uint64_t core, uint64_t key, uint64_t sig, uint64_t *version) noexcept nogil:
        """Take a line out of all that a core reaches; return the tag: dirty if any copy was."""
        cdef uint64_t tag = clib.GHCB_TAG_EMPTY
        if self.n_levels > 2:
            tag = self._take(2, core // self.cores_per_l3, key, sig, tag, version)
        if self.n_levels > 1:
            tag = self._take(1, core, key, sig, tag, version)
        return self._take(0, core, key, sig, tag, version)

    cdef bint _share(self, Py_ssize_t i, uint64_t unit, uint64_t key, uint64_t sig) noexcept nogil:
        """Is a line in one cache? It is no longer alone then."""
        cdef ghcb_cache_level_t *level = &self.level[i]
        cdef uint64_t at = clib.ghcb_cache_set(level, unit, clib.ghcb_cache_key_line(key))
        cdef uint64_t way = clib.ghcb_set_find(level, at, key, sig)
        if way == clib.GHCB_NO_WAY:
            return False
        level.tags[at * level.ways + way] &= ~clib.GHCB_TAG_ALONE
        return True

    cdef bint _ask_others(
        self, uint64_t core, uint64_t key, uint64_t sig, bint is_store
    ) noexcept nogil:
        """Did another core have the line? A store takes it away from all of them."""
        cdef uint64_t entry = self._entry(clib.ghcb_cache_key_line(key)), other, i, version = 0
        cdef uint64_t word = self.holders[entry]
        cdef bint found = False
        for i in range(min(<uint64_t> RESIDUES, <uint64_t> self.n_cores)):
            if not word >> i:
                break
            if not word >> i & 1:
                continue
            other = i
            while other < <uint64_t> self.n_cores:
                if is_store:
                    if other != core:
                        found |= self._drop(other, key, sig, &version) != clib.GHCB_TAG_EMPTY
                else:
                    if other != core:
                        found |= self._share(0, other, key, sig)
                        if self.n_levels > 1:
                            found |= self._share(1, other, key, sig)
                    if self.n_levels > 2:
                        found |= self._share(2, other // self.cores_per_l3, key, sig)
                other += RESIDUES
        if is_store and self.n_levels > 2:  # a copy that another core of the CCX gave up
            self._take(2, core // self.cores_per_l3, key, sig, 0, &version)
        return found

    cdef void _expel(self, uint64_t core, uint64_t line, uint64_t keep) noexcept nogil:
        """Write back and drop the copies of a line under every key but one."""
        cdef uint64_t word = 1, i, other
        if self.is_shared:
            word = self.holders[self._entry(line)] | <uint64_t> 1 << core % RESIDUES
        for i in range(min(<uint64_t> RESIDUES, <uint64_t> self.n_cores)):
            if not word >> i & 1:
                continue
            other = i
            while other < <uint64_t> self.n_cores:
                self._expel_from(0, other, other, line, keep)
                if self.n_levels > 1:
                    self._expel_from(1, other, other, line, keep)
                if self.n_levels > 2:
                    self._expel_from(2, other // self.cores_per_l3, other, line, keep)
                other += RESIDUES

    cdef void _expel_from(
        self, Py_ssize_t i, uint64_t unit, uint64_t core, uint64_t line, uint64_t keep
    ) noexcept nogil:
        cdef ghcb_cache_level_t *level = &self.level[i]
        cdef uint64_t at = clib.ghcb_cache_set(level, unit, line), way, tag, key, version = 0
        for way in range(level.ways):
            tag = level.tags[at * level.ways + way]
            key = tag >> clib.GHCB_TAG_SHIFT
            if tag == clib.GHCB_TAG_EMPTY or clib.ghcb_cache_key_line(key) != line:
                continue
            if clib.ghcb_cache_key_slot(key) != keep:
                tag = self._drop(core, key, clib.ghcb_cache_signature(key), &version)
                if tag & clib.GHCB_TAG_DIRTY:
                    self._write_back(key, version)

    # ---- one access

    cdef inline void _store(self, uint64_t core, uint64_t key, uint64_t at) noexcept nogil:
        """Store to the line of L1 tag number ``at``: it is alone then, and what software meant."""
        cdef uint64_t slot = clib.ghcb_cache_key_slot(key)
        if not self.level[0].tags[at] & clib.GHCB_TAG_ALONE:
            self._ask_others(core, key, clib.ghcb_cache_signature(key), True)
        self.level[0].tags[at] |= clib.GHCB_TAG_DIRTY | clib.GHCB_TAG_ALONE
        if self.track:
            self.n_versions += 1
            self.level[0].versions[at] = self.n_versions
            self.meant[self._entry(clib.ghcb_cache_key_line(key))] = (
                slot << VERSION_BITS | self.n_versions
            )

    cdef inline void _one(
        self, uint64_t core, uint64_t line, uint64_t slot, bint is_store
    ) noexcept nogil:
        cdef uint64_t key = clib.ghcb_cache_key(line, slot), sig, set_, way, at
        cdef ghcb_cache_level_t *level = &self.level[0]
        if key == self.last_key and core == self.last_core:
            at = self.last_at
            self.hits[0] += 1
        else:
            sig = clib.ghcb_cache_signature(key)
            set_ = clib.ghcb_cache_set(level, core, line)
            way = clib.ghcb_set_find(level, set_, key, sig)
            if way != clib.GHCB_NO_WAY:
                clib.ghcb_set_touch(level, set_, way)
                at = set_ * level.ways + way
                self.hits[0] += 1
            else:
                at = self._miss(core, key, sig, is_store)
            self.last_key, self.last_core, self.last_at = key, core, at
        if is_store:
            self._store(core, key, at)

    cdef uint64_t _miss(
        self, uint64_t core, uint64_t key, uint64_t sig, bint is_store
    ) noexcept nogil:
        """Bring a line into L1; return the number of its tag there."""
        cdef uint64_t line = clib.ghcb_cache_key_line(key), at, way, tag, version = 0
        cdef uint64_t flags = clib.GHCB_TAG_ALONE
        cdef ghcb_cache_level_t *level
        if self.n_levels > 1:
            level = &self.level[1]
            at = clib.ghcb_cache_set(level, core, line)
            way = clib.ghcb_set_find(level, at, key, sig)
            if way != clib.GHCB_NO_WAY:
                self.hits[1] += 1
                clib.ghcb_set_touch(level, at, way)
                tag = level.tags[at * level.ways + way]
                return self._fill_l1(core, key, sig, tag & clib.GHCB_TAG_ALONE, 0)
        tag = clib.GHCB_TAG_EMPTY
        if self.n_levels > 2:
            tag = self._take(2, core // self.cores_per_l3, key, sig, tag, &version)
        if tag != clib.GHCB_TAG_EMPTY:
            self.hits[2] += 1
            flags = tag & 3
        else:
            if self.coherent:
                self._expel(core, line, clib.ghcb_cache_key_slot(key))
            if self.is_shared and self._ask_others(core, key, sig, is_store):
                self.others += 1
                flags = clib.GHCB_TAG_ALONE if is_store else 0
            else:
                self.fills += 1
        if self.is_shared:
            self.holders[self._entry(line)] |= <uint64_t> 1 << core % RESIDUES
        if self.n_levels == 1:
            return self._fill_l1(core, key, sig, flags, version)
        self._fill_l2(core, key, sig, flags, version)
        return self._fill_l1(core, key, sig, flags & clib.GHCB_TAG_ALONE, 0)

    cdef inline uint64_t _stores_between(
        self, const uint8_t *stores, Py_ssize_t step, Py_ssize_t first, Py_ssize_t end
    ) noexcept nogil:
        cdef uint64_t n = 0
        if step == 0:
            return <uint64_t> (end - first) if stores[0] else 0
        while first < end:
            n += stores[first]
            first += 1
        return n

    def access(self, lines, stores=False, *, slots=0, cores=0):
        """Load or store lines, one after the other.

        Parameters
        ----------
        lines : uint64 array, shape (n,), C-contiguous
            Read-only arrays are welcome; nothing is copied.
        stores : bool or bool array, shape (n,)
            A store is of the whole line.
        slots : int or uint16 array, shape (n,)
            Key of each access.
        cores : int or uint32 array, shape (n,)

        Returns
        -------
        Counts
            Of these accesses alone.

        Raises
        ------
        OutOfRange
            ``lines[i]`` at or above 2**46, no such core or slot, or no room for what is stored; the
            accesses before took effect, ``[i]`` and what follows did not.
        ValueError
            Another dtype or shape; nothing was done.

        Notes
        -----
        Releases the GIL.
        """
        cdef const uint64_t[::1] line_of = _given(lines)
        cdef Py_ssize_t n = line_of.shape[0], i = 0, begin = 0, end = 0
        cdef const uint8_t[::1] store_of = _each(stores, _np.bool_, n, "stores").view(_np.uint8)
        cdef const uint16_t[::1] slot_of = _each(slots, _np.uint16, n, "slots")
        cdef const uint32_t[::1] core_of = _each(cores, _np.uint32, n, "cores")
        cdef Py_ssize_t step_store = store_of.shape[0] > 1
        cdef Py_ssize_t step_slot = slot_of.shape[0] > 1
        cdef Py_ssize_t step_core = core_of.shape[0] > 1
        cdef uint64_t line, core, slot, key, n_stores = 0
        cdef bint is_store, is_run
        cdef Py_ssize_t at
        cdef clib.ghcb_cache_run_t run
        cdef const uint64_t *line_at = &line_of[0] if n else NULL
        cdef const uint8_t *store_at = &store_of[0] if n else NULL
        cdef const uint16_t *slot_at = &slot_of[0] if n else NULL
        cdef const uint32_t *core_at = &core_of[0] if n else NULL
        with self._alive():
            before = self._counts()
            self.last_key = clib.GHCB_TAG_EMPTY
            # one core, one key, and nothing to note: hits of L1 take the short way
            is_run = not (step_slot or step_core or self.level[0].mask == 0) and n > 0 and (
                not self.track or not (step_store or store_at[0])
            )
            while i < n:
                PyErr_CheckSignals()
                self._room(CHUNK)
                begin, end, n_stores = i, min(n, i + CHUNK), 0
                with nogil:
                    while i < end:
                        if is_run and slot_at[0] < clib.GHCB_KEY_N_SLOTS and (
                            core_at[0] < <uint64_t> self.n_cores
                        ):
                            run = clib.ghcb_cache_run_t(
                                core_at[0], slot_at[0], self.last_key, self.last_at, 0
                            )
                            at = i
                            i = clib.ghcb_cache_run(
                                &self.level[0], &run, line_at, store_at, step_store, i, end
                            )
                            self.hits[0] += i - at
                            n_stores += self._stores_between(store_at, step_store, at, i)
                            self.last_key, self.last_at = run.last_key, run.last_at
                            self.last_core = run.core
                            if i == end:
                                break
                            if run.is_miss and self.level[0].ways <= 8:
                                is_store = store_at[step_store * i]
                                n_stores += is_store
                                key = clib.ghcb_cache_key(line_at[i], run.slot)
                                self.last_at = self._miss(
                                    run.core, key, clib.ghcb_cache_signature(key), is_store
                                )
                                self.last_key = key
                                if is_store:
                                    self._store(run.core, key, self.last_at)
                                i += 1
                                continue
                        line = line_at[i]
                        slot = slot_at[step_slot * i]
                        core = core_at[step_core * i]
                        is_store = store_at[step_store * i]
                        if (
                            line >> clib.GHCB_CACHE_LINE_BITS
                            or slot >= clib.GHCB_KEY_N_SLOTS
                            or core >= <uint64_t> self.n_cores
                        ):
                            break
                        n_stores += is_store
                        self._one(core, line, slot, is_store)
                        i += 1
                self._account(i - begin, n_stores)
                if i < end:
                    raise _errors.OutOfRange(
                        f"lines[{i}] = {line:#x}, slot {slot:#x}, core {core}: must be below "
                        f"2**{clib.GHCB_CACHE_LINE_BITS}, {clib.GHCB_KEY_N_SLOTS}, {self.n_cores}"
                    )
            after = self._counts()
            return Counts(*(b - a for a, b in zip(before, after, strict=True)))

    cdef int _account(self, Py_ssize_t n, uint64_t n_stores) except -1:
        self.loads += n - n_stores
        self.stores += n_stores
        return 0

    cdef _counts(self):
        return Counts(self.loads, self.stores, self.hits[0], self.hits[1], self.hits[2],
                      self.others, self.fills, self.write_backs)

    @property
    def counts(self):
        """``Counts`` since the beginning."""
        with self._alive():
            return self._counts()

    # ---- flushes

    def clflush(self, lines, slot):
        """CLFLUSH lines of a mapping with this key: they leave all caches, of every key if coherent.

        ``lines`` as in ``access``. Raises OutOfRange for a line or slot that is none, nothing done.
        """
        self._flush_lines(lines, slot, self.coherent)

    def vm_page_flush(self, pfn, asid):
        """What MSR VM_PAGE_FLUSH does: the 64 lines of a page leave all caches, those of one guest."""
        if not 0 < _index(asid) <= clib.GHCB_KEY_SLOT_LAST_ASID:
            raise _errors.OutOfRange(f"asid = {asid}: must be 1 to {clib.GHCB_KEY_SLOT_LAST_ASID}")
        if not 0 <= _index(pfn) < 1 << 40:
            raise _errors.OutOfRange(f"pfn = {pfn:#x}: must be below 2**40")
        first = _np.uint64(_index(pfn) * PAGE_LINES)
        self._flush_lines(first + _np.arange(PAGE_LINES, dtype=_np.uint64), asid, False)

    def _flush_lines(self, lines, slot, every):
        cdef const uint64_t[::1] line_of = _given(lines)
        cdef uint64_t slot_ = _index(slot), key, sig, word, other, version = 0, tag, i
        cdef Py_ssize_t k
        cdef bint is_every = every
        if not 0 <= slot < clib.GHCB_KEY_N_SLOTS:
            raise _errors.OutOfRange(f"slot = {slot:#x}: must be below {clib.GHCB_KEY_N_SLOTS}")
        if line_of.shape[0] and int(_np.max(lines)) >> clib.GHCB_CACHE_LINE_BITS:
            raise _errors.OutOfRange(f"lines: must be below 2**{clib.GHCB_CACHE_LINE_BITS}")
        with self._alive(), nogil:
            self.last_key = clib.GHCB_TAG_EMPTY
            for k in range(line_of.shape[0]):
                if self.is_shared and not self._is_known(line_of[k]):
                    continue
                if is_every:
                    self._expel(0, line_of[k], slot_)
                key = clib.ghcb_cache_key(line_of[k], slot_)
                sig = clib.ghcb_cache_signature(key)
                word = self.holders[self._entry(line_of[k])] if self.is_shared else 1
                for i in range(min(<uint64_t> RESIDUES, <uint64_t> self.n_cores)):
                    other = i
                    while word >> i & 1 and other < <uint64_t> self.n_cores:
                        tag = self._drop(other, key, sig, &version)
                        if tag != clib.GHCB_TAG_EMPTY and tag & clib.GHCB_TAG_DIRTY:
                            self._write_back(key, version)
                        other += RESIDUES

    def wbinvd(self, core=None):
        """Write back all dirty lines a core reaches, in an order of the seed, and drop all lines.

        ``None`` is every core. The L3 is that of the core's CCX; private caches of other cores stay
        as they are. Returns how many lines were written back.
        """
        return self._flush(core, DROP | WRITE)

    def wbnoinvd(self, core=None):
        """As ``wbinvd``, but the lines stay, clean."""
        return self._flush(core, WRITE)

    def invd(self, core=None):
        """Drop all lines a core reaches, dirty ones too. Returns 0."""
        return self._flush(core, DROP)

    def _flush(self, core, what):
        cdef Py_ssize_t first = 0, end = self.n_cores, i
        cdef uint64_t n, k, j
        cdef uint64_t[::1] keys
        cdef uint64_t[::1] versions
        if core is not None:
            first = _index(core)
            end = first + 1
            if not 0 <= first < self.n_cores:
                raise _errors.OutOfRange(f"core = {core}: there are {self.n_cores}")
        with self._alive():
            self.last_key = clib.GHCB_TAG_EMPTY
            n = 0
            if what & WRITE:
                n = self._each_unit(first, end, 0, None, None)
                keys, versions = _np.zeros(n + 1, _np.uint64), _np.zeros(n + 1, _np.uint64)
                n = self._each_unit(first, end, WRITE, keys, versions)
                with nogil:
                    for k in range(n):  # each order is as likely as any other
                        j = k + clib.ghcb_cache_draw(self.seed, &self.n_draws) % (n - k)
                        keys[k], keys[j] = keys[j], keys[k]
                        versions[k], versions[j] = versions[j], versions[k]
                        self._write_back(keys[k], versions[k])
            if what & DROP:
                self._each_unit(first, end, DROP, None, None)
            return n

    cdef uint64_t _each_unit(
        self, Py_ssize_t first, Py_ssize_t end, int what, uint64_t[::1] keys,
        uint64_t[::1] versions,
    ) except? 0:
        """Do with every cache of these cores: count dirty lines (0), clean and list, or drop them."""
        cdef Py_ssize_t i, unit
        cdef uint64_t n = 0
        for i in range(self.n_levels):
            per = 1 if i < 2 else self.cores_per_l3
            for unit in range(first // per, (end - 1) // per + 1):
                n = self._unit(i, unit, what, keys, versions, n)
        return n

    cdef void _clean(self, Py_ssize_t i, uint64_t unit, uint64_t key) noexcept nogil:
        cdef ghcb_cache_level_t *level = &self.level[i]
        cdef uint64_t at = clib.ghcb_cache_set(level, unit, clib.ghcb_cache_key_line(key))
        cdef uint64_t way = clib.ghcb_set_find(level, at, key, clib.ghcb_cache_signature(key))
        if way != clib.GHCB_NO_WAY:
            level.tags[at * level.ways + way] &= ~clib.GHCB_TAG_DIRTY

    cdef uint64_t _unit(
        self, Py_ssize_t i, uint64_t unit, int what, uint64_t[::1] keys, uint64_t[::1] versions,
        uint64_t n,
    ) noexcept nogil:
        cdef ghcb_cache_level_t *level = &self.level[i]
        cdef uint64_t first = unit * level.n_sets, k, tag, key
        if what == DROP:
            memset(level.tags + first * level.ways, 0xff, 8 * level.n_sets * level.ways)
            for k in range(first, first + level.n_sets):
                level.sets[k * clib.GHCB_CACHE_SET_WORDS + 2] = clib.GHCB_ORDER_NEW
            return n
        for k in range(first * level.ways, (first + level.n_sets) * level.ways):
            tag = level.tags[k]
            if tag == clib.GHCB_TAG_EMPTY or not tag & clib.GHCB_TAG_DIRTY:
                continue
            if what == WRITE:
                level.tags[k] = tag & ~clib.GHCB_TAG_DIRTY
                key = tag >> clib.GHCB_TAG_SHIFT
                if i == 0 and self.n_levels > 1:  # further down may be an older version
                    self._clean(1, unit, key)
                if i < 2 and self.n_levels > 2 and not self.inclusive:
                    self._clean(2, unit // self.cores_per_l3, key)
                keys[n] = key
                versions[n] = self._version(level, k)
            n += 1
        return n

    def evict(self, n):
        """Look at n places of all caches, drawn with the seed; what is there leaves.

        Returns how many lines were written back.
        """
        cdef uint64_t places = 0, k, i, at, unit, tag, key, sig, version, count = _index(n)
        cdef ghcb_cache_level_t *level
        with self._alive():
            before = self.write_backs
            self.last_key = clib.GHCB_TAG_EMPTY
            for i in range(<uint64_t> self.n_levels):
                places += self.n_units[i] * self.level[i].n_sets * self.level[i].ways
            with nogil:
                for k in range(count):
                    at = clib.ghcb_cache_draw(self.seed, &self.n_draws) % places
                    i = 0
                    while at >= self.n_units[i] * self.level[i].n_sets * self.level[i].ways:
                        at -= self.n_units[i] * self.level[i].n_sets * self.level[i].ways
                        i += 1
                    level = &self.level[i]
                    tag = level.tags[at]
                    if tag == clib.GHCB_TAG_EMPTY:
                        continue
                    unit = at // (level.n_sets * level.ways)
                    key = tag >> clib.GHCB_TAG_SHIFT
                    sig = clib.ghcb_cache_signature(key)
                    version = 0
                    tag = 0
                    if i == 2:
                        tag = self._take(2, unit, key, sig, tag, &version)
                    else:
                        if self.n_levels > 2 and not self.inclusive:
                            tag = self._take(
                                2, unit // self.cores_per_l3, key, sig, tag, &version
                            )
                        if self.n_levels > 1:
                            tag = self._take(1, unit, key, sig, tag, &version)
                        tag = self._take(0, unit, key, sig, tag, &version)
                    if tag & clib.GHCB_TAG_DIRTY:
                        self._write_back(key, version)
            return self.write_backs - before

    # ---- what there is

    def forget(self, lines=None):
        """Software gives up what it stored: in these lines (as in ``access``), or in all of them."""
        cdef const uint64_t[::1] line_of
        cdef Py_ssize_t k
        with self._alive():
            if not self.track or self.n_blocks == 0:
                return
            if lines is None:
                memset(self.meant, 0, 8 * self.n_blocks * PAGE_LINES)
                return
            line_of = lines
            for k in range(line_of.shape[0]):
                if self._is_known(line_of[k]):
                    self.meant[self._entry(line_of[k])] = 0

    def census(self):
        """Return how many lines there are, uint64 array, shape (n_levels, 1024, 2).

        By level, by slot, clean and dirty. A line that is in L1 and in L2 counts in both.
        """
        cdef uint64_t[:, :, ::1] out = _np.zeros(
            (self.n_levels, clib.GHCB_KEY_N_SLOTS, 2), _np.uint64
        )
        cdef uint64_t k, tag
        cdef Py_ssize_t i
        cdef ghcb_cache_level_t *level
        with self._alive(), nogil:
            for i in range(self.n_levels):
                level = &self.level[i]
                for k in range(self.n_units[i] * level.n_sets * level.ways):
                    tag = level.tags[k]
                    if tag != clib.GHCB_TAG_EMPTY:
                        out[i, <Py_ssize_t> clib.ghcb_cache_key_slot(tag >> clib.GHCB_TAG_SHIFT),
                            <Py_ssize_t> (tag & clib.GHCB_TAG_DIRTY)] += 1
        return _np.asarray(out)

    def dirty(self):
        """Return every dirty tag, array of DIRTY_DTYPE, shape (n,).

        ``level`` counts from 1; ``unit`` is the core, or the number of the L3. A line that is dirty in
        L1 and L2 stands there twice; that of L1 is the newer one.
        """
        with self._alive():
            return self._dirty()

    cdef _dirty(self):
        found = []
        for i in range(self.n_levels):
            tags, versions = self._keep[i][1], self._keep[i][2]
            at = _np.flatnonzero((tags != clib.GHCB_TAG_EMPTY) & (tags & clib.GHCB_TAG_DIRTY != 0))
            one = _np.zeros(len(at), DIRTY_DTYPE)
            keys = tags[at] >> clib.GHCB_TAG_SHIFT
            one["line"] = keys & (_LINES - 1)
            one["slot"] = keys >> clib.GHCB_CACHE_LINE_BITS
            one["version"] = versions[at] if self.track else 0
            one["unit"] = at // (self.level[i].n_sets * self.level[i].ways)
            one["level"] = i + 1
            found.append(one)
        return _np.concatenate(found)

    def corrupted(self):
        """Return the lines whose last store is lost, array of CORRUPT_DTYPE, sorted by ``spa``.

        A line is listed if memory does not hold the store that software meant to be the last, and no
        cache has it dirty any more. ``slot`` and ``version`` are what memory holds (version 0: what
        was there at first). Raises StateConflict without ``track``.
        """
        cdef uint64_t k, n
        with self._alive():
            if not self.track:
                raise _errors.StateConflict("this Cache does not track what memory holds")
            n = self.n_blocks * PAGE_LINES
            if n == 0:
                return _np.zeros(0, CORRUPT_DTYPE)
            meant, dram = self._keep["meant"][:n], self._keep["dram"][:n]
            at = _np.flatnonzero((meant != 0) & (meant != dram))
            pages = _np.zeros(self.n_blocks, _np.uint64)
            used = _np.flatnonzero(self._keep["pfns"])
            pages[self._keep["blocks"][used]] = self._keep["pfns"][used] - _np.uint64(1)
            waiting = self._dirty()["version"]
            version = meant[at] & _VERSIONS
            at = at[~_np.isin(version, waiting)]
            out = _np.zeros(len(at), CORRUPT_DTYPE)
            lines = pages[at // PAGE_LINES] * _np.uint64(PAGE_LINES)
            lines += (at % PAGE_LINES).astype(_np.uint64)
            out["spa"] = lines << clib.GHCB_LINE_SHIFT
            for name, words in (("meant_", meant[at]), ("", dram[at])):
                out[name + "slot"] = words >> VERSION_BITS
                out[name + "version"] = words & _VERSIONS
            return out[_np.argsort(out["spa"])]

    @property
    def n_bytes(self):
        """Bytes of the caches and of the memory that is kept."""
        with self._alive():
            arrays = [one for one in self._keep.values() if not isinstance(one, tuple)]
            arrays += [part for one in self._keep.values() if isinstance(one, tuple) for part in one]
            return sum(array.nbytes for array in arrays)

    def _alive(self):
        if self._lock is None:
            raise _errors.StateConflict("this Cache has no levels: __init__ failed")
        return self._lock


cdef uint64_t _address(array) except? 0:
    return array.__array_interface__["data"][0]


cdef _given(lines):
    if lines is None:
        raise TypeError("lines is None, not an array of uint64")
    return lines


cdef _each(given, dtype, Py_ssize_t n, str name):
    """Return an array for each access, or one of a single element that stands for all."""
    if isinstance(given, _np.ndarray) and given.ndim:
        if given.dtype != dtype or given.shape != (n,) or not given.flags.c_contiguous:
            raise ValueError(
                f"{name}: {given.dtype}, shape {given.shape}; must be {_np.dtype(dtype)} ({n},)"
            )
        return given
    value = _index(bool(given) if dtype is _np.bool_ else given)
    if value < 0 or (dtype is not _np.bool_ and value > _np.iinfo(dtype).max):
        raise _errors.OutOfRange(f"{name} = {value:#x} does not fit {_np.dtype(dtype)}")
    return _np.array([value], dtype)
