"""Caches of a whole machine at scale: millions of lines, each under a key, and what memory holds.

A ``Cache`` is one or two private levels for each core and a victim cache that some cores share, as in a
Zen: a line that leaves L2 goes to the L3 of its CCX, a hit there moves it back. L2 holds all that L1
holds, unless ``inclusive`` is false. Within one key cores are coherent (a store takes the line away from
the others, a load leaves a dirty line to its owner). Copies under different keys know nothing of
each other, or exclude each other where the part is ``coherent``. The rules are those of
``ghcbcore/cacheline.h``. What happens is in headers, this module has the arguments: ``cacheset.h`` one set,
``cachelevels.h`` the levels, ``cachepeers.h`` other cores and keys, ``cacherun.h`` accesses,
``cachewalk.h`` flushes, ``cachepages.h`` memory.

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
from ghcbcore.clib cimport ghcb_cache_level_t, ghcb_cache_t, ghcb_cache_trace_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

__all__ = ["CORRUPT_DTYPE", "DIRTY_DTYPE", "MAX_CORES", "Cache", "Counts", "bytes_for"]

cdef enum:
    CORES = 4096
    CHUNK = 2048  # accesses between two looks at the room for pages
    PAGE_LINES = clib.GHCB_LINES_PER_PAGE
    DROP = 1
    WRITE = 2

MAX_CORES = CORES

# Python integers: a shift of C integers would be one of 32 bits.
_LINES = int(1) << int(clib.GHCB_CACHE_LINE_BITS)
_VERSIONS = _np.uint64((int(1) << int(clib.GHCB_CACHE_VERSION_BITS)) - 1)

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
        total += 8 * n_units * n_sets * (clib.GHCB_CACHE_SET_WORDS + (2 if i else 3) * ways)
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
    cdef ghcb_cache_t c
    cdef uint64_t loads, stores, max_bytes, cache_bytes, cap_blocks
    cdef object _keep, _lock

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
        self.c.n_cores, self.c.cores_per_l3, self.c.n_levels = n_cores, cores_per_l3, len(levels)
        for has, bit in (
            (track, clib.GHCB_CACHE_TRACKED), (inclusive, clib.GHCB_CACHE_INCLUSIVE),
            (n_cores > 1, clib.GHCB_CACHE_SHARED), (coherent, clib.GHCB_CACHE_COHERENT),
            (replacement == "random", clib.GHCB_CACHE_RANDOM),
        ):
            if has:
                self.c.kind |= <uint64_t> bit
        self.c.seed, self.max_bytes, self.cache_bytes = seed, min(bound, 1 << 62), total
        self._keep = {}
        for i, (n_sets, ways) in enumerate(levels):
            self._make_level(i, n_sets, ways)
        if clib.ghcb_cache_is_usual(&self.c):
            self.c.kind |= clib.GHCB_CACHE_USUAL
        self.c.pages.last_page = clib.GHCB_PAGES_NONE
        self._lock = _Lock()

    cdef int _make_level(self, Py_ssize_t i, n_sets, ways) except -1:
        n_units = self.n_cores
        if i == 2:
            n_units = (self.n_cores + self.cores_per_l3 - 1) // self.cores_per_l3
        sets = _words(n_units * n_sets * clib.GHCB_CACHE_SET_WORDS)
        tags = _words(n_units * n_sets * ways)
        versions = _words(n_units * n_sets * ways if self.track else 1)
        tags.fill(clib.GHCB_TAG_EMPTY)
        sets[2 :: clib.GHCB_CACHE_SET_WORDS] = clib.GHCB_ORDER_NEW
        self._keep[i] = sets, tags, versions
        if i == 0:
            self._keep["entries"] = _words(len(tags) if self.track else 1)
            self.c.entries = <uint64_t *> _address(self._keep["entries"])
        self.c.n_units[i] = n_units
        is_power = n_sets & (n_sets - 1) == 0
        self.c.level[i] = ghcb_cache_level_t(
            <uint64_t *> _address(sets), <uint64_t *> _address(tags),
            <uint64_t *> _address(versions), n_sets, n_sets - 1 if is_power else 0, ways,
        )
        return 0

    cdef int _room(self, uint64_t n) except -1:
        """Make room for n more pages, or raise."""
        cdef uint64_t cap, size, had
        is_shared = self.c.kind & clib.GHCB_CACHE_SHARED != 0
        if not (self.track or is_shared) or self.c.pages.n_blocks + n <= self.cap_blocks:
            return 0
        arrays = 2 * self.track + is_shared
        for factor in (4, 2):  # more room than is needed costs nothing until it is touched
            cap = max(factor * self.cap_blocks, self.c.pages.n_blocks + n)
            size = 1 << (int(2 * cap - 1)).bit_length()
            need = self.cache_bytes + 8 * (cap * PAGE_LINES * arrays + 2 * size)
            if need <= self.max_bytes:
                break
        if need > self.max_bytes:
            raise _errors.OutOfRange(
                f"memory of {self.c.pages.n_blocks} pages and the caches take {need} bytes with "
                f"room for more, max_bytes is {self.max_bytes}"
            )
        for name, is_wanted in (("meant", self.track), ("dram", self.track),
                                ("holders", is_shared)):
            made = _words(cap * PAGE_LINES if is_wanted else 1)
            if name in self._keep:
                made[: len(self._keep[name])] = self._keep[name]
            self._keep[name] = made
        old, had = self._keep.get("table"), self.c.pages.mask + 1
        table = self._keep["table"] = _words(2 * size)
        self.c.pages.meant = <uint64_t *> _address(self._keep["meant"])
        self.c.pages.dram = <uint64_t *> _address(self._keep["dram"])
        self.c.pages.holders = <uint64_t *> _address(self._keep["holders"])
        self.c.pages.table = <uint64_t *> _address(table)
        self.c.pages.mask = size - 1
        self.cap_blocks = cap
        if old is not None:
            clib.ghcb_pages_move(&self.c.pages, <uint64_t *> _address(old), had)
        return 0

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
        cdef Py_ssize_t n = line_of.shape[0], i = 0, begin, end
        cdef const uint8_t[::1] store_of = _each(stores, _np.bool_, n, "stores").view(_np.uint8)
        cdef const uint16_t[::1] slot_of = _each(slots, _np.uint16, n, "slots")
        cdef const uint32_t[::1] core_of = _each(cores, _np.uint32, n, "cores")
        cdef ghcb_cache_trace_t trace
        if n == 0:
            with self._alive():
                return Counts(*(0 for _ in Counts._fields))
        trace = ghcb_cache_trace_t(
            &line_of[0], &store_of[0], &slot_of[0], &core_of[0], n,
            store_of.shape[0] > 1, slot_of.shape[0] > 1, core_of.shape[0] > 1,
        )
        with self._alive():
            before = self._counts()
            while i < n:
                PyErr_CheckSignals()
                self._room(CHUNK)
                begin, end = i, min(n, i + CHUNK)
                with nogil:
                    i = <Py_ssize_t> clib.ghcb_cache_run(&self.c, &trace, i, end)
                self._account(&trace, begin, i)
                if i < end:
                    raise _errors.OutOfRange(
                        f"lines[{i}] = {line_of[i]:#x}, slot {slot_of[i * trace.slot_step]:#x}, "
                        f"core {core_of[i * trace.core_step]}: must be below "
                        f"2**{clib.GHCB_CACHE_LINE_BITS}, {clib.GHCB_KEY_N_SLOTS}, {self.n_cores}"
                    )
            after = self._counts()
            return Counts(*(b - a for a, b in zip(before, after, strict=True)))

    cdef void _account(
        self, const ghcb_cache_trace_t *trace, Py_ssize_t i, Py_ssize_t end
    ) noexcept nogil:
        cdef uint64_t n_stores = 0, n = end - i
        if trace.store_step == 0:
            n_stores = n * trace.stores[0]
        else:
            while i < end:
                n_stores += trace.stores[i]
                i += 1
        self.loads += n - n_stores
        self.stores += n_stores

    cdef _counts(self):
        return Counts(self.loads, self.stores, self.c.hits[0], self.c.hits[1], self.c.hits[2],
                      self.c.others, self.c.fills, self.c.write_backs)

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
        cdef uint64_t slot_
        cdef bint is_every = every
        cdef Py_ssize_t k
        if not 0 <= _index(slot) < clib.GHCB_KEY_N_SLOTS:
            raise _errors.OutOfRange(f"slot = {slot:#x}: must be below {clib.GHCB_KEY_N_SLOTS}")
        if line_of.shape[0] and int(_np.max(lines)) >> clib.GHCB_CACHE_LINE_BITS:
            raise _errors.OutOfRange(f"lines: must be below 2**{clib.GHCB_CACHE_LINE_BITS}")
        slot_ = slot
        with self._alive(), nogil:
            for k in range(line_of.shape[0]):
                clib.ghcb_cache_flush_line(&self.c, line_of[k], slot_, is_every)

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
        cdef uint64_t first = 0, end, n = 0
        cdef uint64_t[::1] keys
        cdef uint64_t[::1] versions
        if core is not None and not 0 <= _index(core) < self.n_cores:
            raise _errors.OutOfRange(f"core = {core}: there are {self.n_cores}")
        with self._alive():
            end = self.c.n_cores
            if core is not None:
                first, end = core, <uint64_t> core + 1
            if what & WRITE:
                with nogil:
                    n = clib.ghcb_cache_list_all(&self.c, first, end, NULL, NULL)
                keys, versions = _words(n + 1), _words(n + 1)
                with nogil:
                    n = clib.ghcb_cache_list_all(&self.c, first, end, &keys[0], &versions[0])
                    clib.ghcb_cache_write_all(&self.c, &keys[0], &versions[0], n)
            if what & DROP:
                with nogil:
                    clib.ghcb_cache_empty_all(&self.c, first, end)
            return n

    def evict(self, n):
        """Look at n places of all caches, drawn with the seed; what is there leaves.

        Returns how many lines were written back.
        """
        cdef uint64_t count = _index(n), before
        with self._alive():
            before = self.c.write_backs
            with nogil:
                clib.ghcb_cache_evict(&self.c, count)
            return self.c.write_backs - before

    # ---- what there is

    def forget(self, lines=None):
        """Software gives up what it stored: in these lines (as in ``access``), or in all of them."""
        cdef const uint64_t[::1] line_of
        cdef Py_ssize_t k
        with self._alive():
            if not self.track or self.c.pages.n_blocks == 0:
                return
            if lines is None:
                memset(self.c.pages.meant, 0, 8 * self.c.pages.n_blocks * PAGE_LINES)
                return
            line_of = lines
            for k in range(line_of.shape[0]):
                if clib.ghcb_pages_is_known(&self.c.pages, line_of[k]):
                    self.c.pages.meant[clib.ghcb_pages_entry(&self.c.pages, line_of[k])] = 0

    def census(self):
        """Return how many lines there are, uint64 array, shape (n_levels, 1024, 2).

        By level, by slot, clean and dirty. A line that is in L1 and in L2 counts in both.
        """
        cdef uint64_t[:, :, ::1] out
        cdef Py_ssize_t i
        with self._alive():
            out = _np.zeros((self.n_levels, clib.GHCB_KEY_N_SLOTS, 2), _np.uint64)
            with nogil:
                for i in range(out.shape[0]):
                    clib.ghcb_cache_count(&self.c, i, &out[i, 0, 0])
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
            one["unit"] = at // (self.c.level[i].n_sets * self.c.level[i].ways)
            one["level"] = i + 1
            found.append(one)
        return _np.concatenate(found)

    def corrupted(self):
        """Return the lines whose last store is lost, array of CORRUPT_DTYPE, sorted by ``spa``.

        A line is listed if memory does not hold the store that software meant to be the last, and no
        cache has it dirty any more. ``slot`` and ``version`` are what memory holds (version 0: what
        was there at first). Raises StateConflict without ``track``.
        """
        cdef uint64_t n
        with self._alive():
            if not self.track:
                raise _errors.StateConflict("this Cache does not track what memory holds")
            n = self.c.pages.n_blocks * PAGE_LINES
            if n == 0:
                return _np.zeros(0, CORRUPT_DTYPE)
            meant, dram = self._keep["meant"][:n], self._keep["dram"][:n]
            at = _np.flatnonzero((meant != 0) & (meant != dram))
            pages = _np.zeros(self.c.pages.n_blocks, _np.uint64)
            used = self._keep["table"].reshape(-1, 2)
            used = used[used[:, 0] != 0]
            pages[used[:, 1]] = used[:, 0] - _np.uint64(1)
            waiting = self._dirty()["version"]
            version = meant[at] & _VERSIONS
            at = at[~_np.isin(version, waiting)]
            out = _np.zeros(len(at), CORRUPT_DTYPE)
            lines = pages[at // PAGE_LINES] * _np.uint64(PAGE_LINES)
            lines += (at % PAGE_LINES).astype(_np.uint64)
            out["spa"] = lines << clib.GHCB_LINE_SHIFT
            for name, words in (("meant_", meant[at]), ("", dram[at])):
                out[name + "slot"] = words >> clib.GHCB_CACHE_VERSION_BITS
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


cdef _words(n):
    """Return n words, all 0, that begin with a line of the host: a set must not straddle two."""
    array = _np.zeros(n + 7, _np.uint64)
    skip = -_address(array) // 8 % 8
    return array[skip : skip + n]


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
