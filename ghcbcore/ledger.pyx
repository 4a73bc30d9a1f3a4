"""The ledger: what everybody thinks about each page of a guest, up to 16 TiB and beyond.

A frame of 4 KiB is one word of views and a GPA (``ghcbcore/frame.h``). An *operation*
(``ghcbcore.frame.Op``) is what somebody does to frames: an instruction, a command of firmware, a store, a change
of the guest's page table. Its rules are in ``ghcbcore/frame_rule.h`` and ``frame_access.h``; the same
functions move the frames of a machine's record. This module finds the frames, fast, in order: a range,
or an array of frame numbers.

A refusal by the rules (a return code, a fault) is a result, not an exception: ``Done`` says how far the
operation came and what the frame that refused answered. What the caller got wrong is an exception.

Every call is one *event*, numbered from 1; each frame knows, for each view, the event since which it
is as it is. Memory follows how fragmented the guest is (``frame_tree.h``).

Units: frames of 4 KiB. Words for people: ``pysev.memory``.
"""

from collections import namedtuple as _namedtuple

import numpy as np

from cpython.pythread cimport (
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
)
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

cimport cython
from ghcbcore cimport clib

from ghcbcore.frame cimport as_number as _number, move_pages as _move_pages, op_from as _op_of, pages_each as _pages_each

from ghcbcore import errors as _errors
from ghcbcore.frame import Op as _Op
from ghcbcore.rmp import RMP_DTYPE as _RMP_DTYPE

__all__ = ["MAX_PAGES", "RECORD_DTYPE", "Done", "Frame", "Ledger", "Snapshot"]

MAX_PAGES = 1 << 40

cdef enum:
    MAX_SEQUENCE = 8

Done = _namedtuple("Done", ("event", "n_done", "n_changed", "result"))
Done.__doc__ = """How far an operation came.

``event`` is its number. ``n_done`` frames (of an array: elements) were done, ``n_changed`` frames are not as
they were (neighbours whose leaf a new mapping splits are not counted). ``result`` is 0, or what refused (``FRAME_RESULT_*``): then frame or element ``n_done`` was the
one, and neither it nor what follows it has changed. Of a single frame it is the answer.
"""

Frame = _namedtuple("Frame", ("word", "gfn", "since"))
Frame.__doc__ = """One frame: its word of views, its GPA field, and for each view (``FRAME_VIEW_*``) since which event."""

RECORD_DTYPE = np.dtype(
    {
        "names": ["word", "gfn", "n_pages", "since"],
        "formats": [np.uint64, np.uint64, np.uint64, (np.uint32, clib.FRAME_N_VIEWS)],
        "offsets": [0, 8, 16, 32],
        "itemsize": 64,
    }
)

cdef int _acquire(PyThread_type_lock lock) except -1:
    """Take a lock; let other threads run while it is somebody else's."""
    if not PyThread_acquire_lock(lock, 0):
        with nogil:
            PyThread_acquire_lock(lock, 1)
    return 0


cdef _answer(clib.ghcb_tree_done_t *done, bint is_one):
    return done.result if is_one or clib.ghcb_frame_refused(done.result) else 0


cdef bint _is_plain(const clib.ghcb_frame_op_t *op) noexcept nogil:
    """Whether an operation depends on nothing but the frame's own record."""
    return (
        op.kind < clib.FRAME_OP_GCTX_CREATE and op.kind != clib.FRAME_OP_RMPQUERY
        and op.backing == 0 and _pages_each(op) == 1
    )


cdef int _span(Ledger ledger, object first, object n_pages, uint64_t *start, uint64_t *end) except -1:
    cdef uint64_t all_pages = ledger.tree.n_pages
    start[0] = _number(first, "first", all_pages)
    end[0] = all_pages
    if n_pages is not None:
        end[0] = start[0] + _number(n_pages, "n_pages", all_pages - start[0])
    return 0


cdef int _check_classes(uint32_t n_records, const uint32_t[::1] classes) except -1:
    """What a snapshot refers to was there when it was taken."""
    if classes.shape[0] < n_records:
        raise _errors.StateConflict(
            f"classes has {classes.shape[0]} elements, there are {n_records} records"
        )
    return 0


@cython.final
@cython.no_gc_clear
cdef class Ledger:
    """Ledger(n_pages, *, covered=None, max_asid=1006, rules=0, max_bytes=None)
    --

    All views of ``n_pages`` frames, 0 to ``n_pages`` - 1.

    At first every frame belongs to the hypervisor, is not mapped, listed nowhere, never written.

    Parameters
    ----------
    n_pages : int
        At most 2**40.
    covered : int, optional
        Frames from this one on have no RMP entry; default: all have.
    max_asid : int
        RMPUPDATE refuses what is above.
    rules : int
        ``1 << FRAME_RULE_*``: where sources differ, see ``frame_op.h``.
    max_bytes : int, optional
        What the ledger may hold. Near it, histories of regions that are very fragmented are cut ("since
        this event or an earlier one"); what does not fit even so raises ``MemoryError``.

    Notes
    -----
    Methods release the GIL and hold the ledger's own lock: threads may share one, their calls
    happen one after the other. Source of the rules: ``frame_rule.h``.
    """

    def __cinit__(self, n_pages, *, covered=None, max_asid=1006, rules=0, max_bytes=None):
        cdef clib.ghcb_frame_t frame
        cdef uint64_t[::1] slots
        cdef uint64_t n, n_covered
        cdef clib.ghcb_frame_op_t init
        cdef clib.ghcb_tree_done_t done
        cdef int status
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError
        n = _number(n_pages, "n_pages", MAX_PAGES)
        if not n:
            raise _errors.OutOfRange("n_pages = 0x0: a ledger has at least one page")
        n_covered = n if covered is None else _number(covered, "covered", n)
        self.tree.rules.max_asid = _number(max_asid, "max_asid", (1 << clib.FRAME_ASID_WIDTH) - 1)
        self.tree.rules.flags = _number(rules, "rules", 3)
        self.tree.store.max_bytes = 0 if max_bytes is None else _number(max_bytes, "max_bytes", (1 << 63) - 1)
        self.root = np.zeros((n + (1 << clib.GHCB_TREE_NODE_SHIFT) - 1) >> clib.GHCB_TREE_NODE_SHIFT, np.uint64)
        slots = self.root
        frame.word = <uint64_t> clib.FRAME_KEY_NONE << clib.FRAME_KEY_SHIFT
        frame.gfn = 0
        if clib.ghcb_tree_open(&self.tree, &slots[0], n, &frame) != clib.GHCB_OK:
            raise MemoryError(f"no room for a ledger in max_bytes = {max_bytes}")
        if n_covered < n:
            memset(&init, 0, sizeof(init))
            memset(&done, 0, sizeof(done))
            init.kind = clib.FRAME_OP_INIT
            init.value = clib.RMP_STATE_DEFAULT
            clib.ghcb_store_begin(&self.tree.store)
            status = clib.ghcb_tree_range(&self.tree, &init, n_covered, n, &done)
            clib.ghcb_store_settle(&self.tree.store)
            if status != clib.GHCB_OK:
                raise MemoryError(f"no room for a ledger in max_bytes = {max_bytes}")

    def __dealloc__(self):
        if self.tree.n_root:
            clib.ghcb_tree_close(&self.tree)
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cdef int _begin(self) except -1:
        """Take the lock and begin an event."""
        _acquire(self.lock)
        if self.tree.event >= clib.GHCB_SINCE_EVENT - MAX_SEQUENCE:
            PyThread_release_lock(self.lock)
            raise _errors.OutOfRange("a ledger has at most 2**31 - 9 events")
        self.tree.event += 1
        clib.ghcb_store_begin(&self.tree.store)
        return 0

    cdef object _end(self, int status, uint64_t n_done, str where):
        """Let the lock go; raise what a status other than GHCB_OK says of element ``n_done``."""
        clib.ghcb_store_settle(&self.tree.store)
        PyThread_release_lock(self.lock)
        if status == clib.GHCB_STORE_NO_MEMORY:
            raise MemoryError(f"no memory for {where}; what is before it is done")
        _errors.raise_status(status, where)

    @property
    def n_pages(self):
        """Frames of the ledger."""
        return self.tree.n_pages

    @property
    def n_bytes(self):
        """Bytes that it holds: records, tree and root."""
        return self.tree.store.bytes + self.root.nbytes

    @property
    def n_records(self):
        """Records in use: how many kinds of frames there are, histories included."""
        return self.tree.store.n_used

    @property
    def event(self):
        """Number of the last event."""
        return self.tree.event

    @property
    def n_blurred(self):
        """Times that histories of a region were cut for want of memory."""
        return self.tree.n_blurred

    def range(self, op, first, n_pages):
        """Let something happen to frames ``first`` to ``first + n_pages - 1``, in this order.

        Parameters
        ----------
        op : Op
        first, n_pages : int
            For operands of 2 MiB and 1 GiB multiples of them.

        Returns
        -------
        Done

        Raises
        ------
        OutOfRange
            The range does not lie within the guest, or an operand does not fit. Nothing has happened.
        Unaligned
            First frame or length are no multiple of the operand's size. Nothing has happened.
        MemoryError
            Frames before the one named are done.
        """
        cdef clib.ghcb_frame_op_t one
        cdef clib.ghcb_tree_done_t done
        cdef uint64_t start, n, each
        cdef int status
        _op_of(op, &one)
        start = _number(first, "first", self.tree.n_pages)
        n = _number(n_pages, "n_pages", (<uint64_t>1 << 63) - 1)
        if n > self.tree.n_pages - start:
            raise _errors.OutOfRange(
                f"frames {start:#x} to {start + n - 1:#x}: the guest ends with frame {self.tree.n_pages - 1:#x}"
            )
        each = _pages_each(&one)
        if start & (each - 1) or n & (each - 1):
            raise _errors.Unaligned(f"first = {start:#x}, n_pages = {n:#x}: must be multiples of {each:#x}")
        memset(&done, 0, sizeof(done))
        self._begin()
        with nogil:
            status = clib.ghcb_tree_split_around(&self.tree, &one, start, start + n)
            if status == clib.GHCB_OK:
                status = clib.ghcb_tree_range(&self.tree, &one, start, start + n, &done)
        event = self.tree.event
        self._end(status, done.n_done, f"frame {start + done.n_done:#x}")
        return Done(event, done.n_done, done.n_changed, _answer(&done, n == each))

    def array(self, op, const uint64_t[::1] frames not None):
        """Let something happen to frames in the order of an array; a frame may occur twice.

        Parameters
        ----------
        op : Op, or a sequence of up to 8 of them
            A sequence happens to a frame as a whole before the next frame has its turn; its operands are
            of 4 KiB, and each of its operations is an event of its own.
        frames : uint64 array, shape (n,), C-contiguous
            For operands of 2 MiB and 1 GiB their first frames.

        Returns
        -------
        Done
            ``n_done`` counts elements; of a sequence ``event`` is the first. What a frame that refuses one of
            a sequence was told before has happened.

        Raises
        ------
        OutOfRange, Unaligned
            ``frames[3] = 0x...``: beyond the guest, or no multiple. Elements before it are done.
        MemoryError
            Elements before the one named are done.
        """
        cdef clib.ghcb_frame_op_t ops[MAX_SEQUENCE]
        cdef clib.ghcb_tree_done_t done
        cdef uint64_t n = frames.shape[0], n_inside = 0, each
        cdef uint32_t n_ops = 0, event
        cdef int status = clib.GHCB_OK
        for one in [op] if isinstance(op, _Op) else op:
            if n_ops == MAX_SEQUENCE:
                raise _errors.OutOfRange(f"a sequence of more than {MAX_SEQUENCE} operations")
            _op_of(one, &ops[n_ops])
            n_ops += 1
        each = _pages_each(&ops[0])
        for k in range(n_ops):
            if n_ops > 1 and not _is_plain(&ops[k]):
                raise _errors.OutOfRange(
                    f"op[{k}]: a sequence has operands of 4 KiB, asks nothing and no firmware"
                )
        if not n_ops:
            raise _errors.OutOfRange("a sequence of no operations")
        memset(&done, 0, sizeof(done))
        self._begin()
        event = self.tree.event
        with nogil:
            while n_inside < n and frames[n_inside] < self.tree.n_pages:
                n_inside += 1
            status = self._frames(ops, n_ops, &frames[0] if n else NULL, n, n_inside, each, &done)
        self.tree.event = event + n_ops - 1
        at = f"frames[{done.n_done}] = {frames[done.n_done]:#x}" if done.n_done < n else ""
        if status == clib.GHCB_E_OUT_OF_RANGE:
            at += f": the guest ends with frame {self.tree.n_pages - 1:#x}"
        elif status == clib.GHCB_E_UNALIGNED:
            at += f": must be a multiple of {each:#x}"
        self._end(status, done.n_done, at)
        return Done(event, done.n_done, done.n_changed, _answer(&done, n == 1))

    cdef int _frames(
        self, const clib.ghcb_frame_op_t *ops, uint32_t n_ops, const uint64_t *frames, uint64_t n,
        uint64_t n_inside, uint64_t each, clib.ghcb_tree_done_t *done,
    ) noexcept nogil:
        """Do frames, the first ``n_inside`` of which lie in the guest; of a sequence one step each."""
        cdef uint32_t k, first = self.tree.event
        cdef uint64_t i, n_before
        cdef int status
        if n_ops == 1:
            i = clib.ghcb_batch_frames(&self.tree, ops, frames, n_inside if each == 1 else 0, done)
            status = clib.ghcb_tree_array(&self.tree, ops, frames + i, n - i, each, done)
            done.n_done += i
            return status
        self.tree.sequence = ops
        self.tree.n_sequence = n_ops
        i = clib.ghcb_batch_frames(&self.tree, ops, frames, n_inside, done)
        self.tree.n_sequence = 0
        while i < n:
            n_before = done.n_changed
            for k in range(n_ops):
                clib.ghcb_store_begin(&self.tree.store)
                self.tree.event = first + k
                status = clib.ghcb_tree_array(&self.tree, &ops[k], &frames[i], 1, 1, done)
                if status != clib.GHCB_OK or done.n_done == 0:
                    done.n_done = i
                    return status
            done.n_changed = n_before + (1 if done.n_changed > n_before else 0)
            i += 1
        done.n_done = n
        return clib.GHCB_OK

    def spans(self, op, const uint64_t[::1] firsts not None, const uint64_t[::1] lengths not None):
        """Let something happen to several ranges in the order of arrays, as one event.

        Parameters
        ----------
        op : Op
        firsts, lengths : uint64 arrays, shape (n,), C-contiguous
            Each range as ``range`` takes it.

        Returns
        -------
        Done
            ``n_done`` counts frames, of all ranges one after the other.

        Raises
        ------
        OutOfRange, Unaligned
            ``firsts[3] = 0x..., lengths[3] = 0x...``: not within the guest, or no multiples. Ranges before
            it are done.
        MemoryError
            Frames before the one named are done.
        """
        cdef clib.ghcb_frame_op_t one
        cdef clib.ghcb_tree_done_t done
        cdef uint64_t i = 0, n = firsts.shape[0], before = 0, each
        cdef int status = clib.GHCB_OK
        _op_of(op, &one)
        if lengths.shape[0] != firsts.shape[0]:
            raise ValueError(f"firsts has {n} elements, lengths has {lengths.shape[0]}")
        memset(&done, 0, sizeof(done))
        each = _pages_each(&one)
        self._begin()
        with nogil:
            for i in range(n):
                if firsts[i] > self.tree.n_pages or lengths[i] > self.tree.n_pages - firsts[i]:
                    status = clib.GHCB_E_OUT_OF_RANGE
                elif (firsts[i] | lengths[i]) & (each - 1):
                    status = clib.GHCB_E_UNALIGNED
                else:
                    before = done.n_done
                    status = clib.ghcb_tree_split_around(&self.tree, &one, firsts[i], firsts[i] + lengths[i])
                if status == clib.GHCB_OK:
                    status = clib.ghcb_tree_range(
                        &self.tree, &one, firsts[i], firsts[i] + lengths[i], &done
                    )
                if status != clib.GHCB_OK or done.n_done - before < lengths[i]:
                    break
        event = self.tree.event
        at = ""
        if status == clib.GHCB_STORE_NO_MEMORY:
            at = f"frame {firsts[i] + done.n_done - before:#x}"
        elif status != clib.GHCB_OK:
            at = f"firsts[{i}] = {firsts[i]:#x}, lengths[{i}] = {lengths[i]:#x}: " + (
                f"the guest ends with frame {self.tree.n_pages - 1:#x}"
                if status == clib.GHCB_E_OUT_OF_RANGE
                else f"must be multiples of {each:#x}"
            )
        self._end(status, done.n_done, at)
        return Done(event, done.n_done, done.n_changed, _answer(&done, 0))

    def move(self, source, destination, asid, size=0):
        """Firmware's PAGE_MOVE between two frames, or two pages of 2 MiB; a ``Done`` as of ``array``.

        Raises
        ------
        OutOfRange, Unaligned
            A frame is not of the guest, or not the first of a 2 MiB page. Nothing has happened.
        """
        cdef clib.ghcb_frame_op_t one
        cdef clib.ghcb_frame_t a, b
        cdef uint64_t i, n = 1, from_ = _number(source, "source", self.tree.n_pages - 1)
        cdef uint64_t to = _number(destination, "destination", self.tree.n_pages - 1)
        cdef uint64_t result = 0, n_changed = 0
        cdef int status = clib.GHCB_OK
        _op_of(_Op(clib.FRAME_OP_CONTENT, asid=asid), &one)
        one.kind = clib.FRAME_OP_MOVE
        one.size = _number(size, "size", 1)
        if one.size:
            n = clib.FRAME_REGION
        if from_ & (n - 1) or to & (n - 1):
            raise _errors.Unaligned(f"source = {from_:#x}, destination = {to:#x}: must be multiples of {n:#x}")
        if n > self.tree.n_pages - from_ or n > self.tree.n_pages - to:
            raise _errors.OutOfRange(f"source = {from_:#x}, destination = {to:#x}: the guest ends within a page")
        self._begin()
        for i in range(n):
            a = self.tree.store.records[clib.ghcb_root_id(self.tree.root, from_ + i)].frame
            b = self.tree.store.records[clib.ghcb_root_id(self.tree.root, to + i)].frame
            result = _move_pages(&one, &a, &b, from_ - to, not from_ & (clib.FRAME_REGION - 1), not to & (clib.FRAME_REGION - 1))
            if clib.ghcb_frame_refused(result):
                break
            status = clib.ghcb_tree_put(&self.tree, from_ + i, &a)
            if status == clib.GHCB_OK:
                status = clib.ghcb_tree_put(&self.tree, to + i, &b)
            if status != clib.GHCB_OK:
                break
            n_changed += 2
        event = self.tree.event
        self._end(status, 0, f"frame {from_:#x}")
        return Done(event, 0 if clib.ghcb_frame_refused(result) else 1, n_changed, result)

    def load(self, first, const clib.ghcb_rmp_t[::1] entries not None):
        """Take the RMP's view of frames from entries, as they lie in a table; other views stay.

        The first frame of a 2 MiB entry speaks for all 512; what the slots of the others hold is not
        looked at. Whether a page is in use stays as it is: an entry does not say.

        Parameters
        ----------
        first : int
        entries : array of RMP_DTYPE, shape (n,)
            As ``ghcbcore.rmp.decode`` makes them of raw entries.

        Raises
        ------
        OutOfRange
            ``entries[4]: ...``: a frame beyond the guest, a bit that no view keeps, a 2 MiB entry of nobody
            or with an odd GPA. Nothing has happened.
        Unaligned
            A 2 MiB entry that is not the first of its region, or not all of it given. Nothing has happened.
        StateConflict
            The frame lies inside a 2 MiB entry of the ledger that would be loaded in part. Nothing has
            happened.
        MemoryError
            Frames before the one named are done.
        """
        cdef uint64_t start = _number(first, "first", self.tree.n_pages)
        cdef uint64_t i = 0, n = entries.shape[0]
        cdef clib.ghcb_frame_t frame
        cdef int status = clib.GHCB_OK
        self._begin()
        with nogil:
            for i in range(n):
                status = _taken(&self.tree, start, entries, i, &frame)
                if status != clib.GHCB_OK:
                    break
            if status == clib.GHCB_OK:
                for i in range(n):
                    _taken(&self.tree, start, entries, i, &frame)
                    status = clib.ghcb_tree_put(&self.tree, start + i, &frame)
                    if status != clib.GHCB_OK:
                        break
        self._end(status, i, f"entries[{i}], frame {start + i:#x}")

    def frame(self, at):
        """Return one frame: a ``Frame``.

        Raises
        ------
        OutOfRange
            Beyond the guest.
        """
        cdef uint64_t p = _number(at, "frame", self.tree.n_pages - 1)
        cdef clib.ghcb_record_t *record
        _acquire(self.lock)
        record = &self.tree.store.records[clib.ghcb_root_id(self.tree.root, p)]
        found = Frame(record.frame.word, record.frame.gfn, tuple([record.since[i] for i in range(5)]))
        PyThread_release_lock(self.lock)
        return found

    def snapshot(self):
        """Return the ledger as it is now: a ``Snapshot``. Costs 8 bytes a GiB; frames are shared until they change."""
        return Snapshot(self)


cdef int _taken(
    const clib.ghcb_tree_t *tree, uint64_t start, const clib.ghcb_rmp_t[::1] entries, uint64_t i,
    clib.ghcb_frame_t *out
) noexcept nogil:
    """What frame ``start + i`` becomes by entries of frames from ``start`` on; a status."""
    cdef uint64_t p = start + i, n = entries.shape[0], place = p & (clib.FRAME_REGION - 1), head = i
    cdef bint is_whole = place <= i and n - (i - place) >= clib.FRAME_REGION
    if p >= tree.n_pages:
        return clib.GHCB_E_OUT_OF_RANGE
    if place <= i and entries[i - place].page_size:
        head = i - place
    if entries[head].page_size and (p - (i - head)) & (clib.FRAME_REGION - 1):
        return clib.GHCB_E_UNALIGNED
    if entries[head].page_size and not is_whole:
        return clib.GHCB_E_UNALIGNED
    out[0] = tree.store.records[clib.ghcb_root_id(tree.root, p)].frame
    if not is_whole and i == (0 if place > i else i - place) and clib.ghcb_frame_has(out.word, clib.FRAME_LARGE):
        return clib.GHCB_E_STATE_CONFLICT
    return clib.ghcb_frame_take_entry(out, start + head, &entries[head])


@cython.final
@cython.no_gc_clear
cdef class Snapshot:
    """Snapshot(ledger)
    --

    A ledger as it was. All questions about many frames are asked here, so that their answers agree.

    Parameters
    ----------
    ledger : Ledger
    """

    def __cinit__(self, Ledger ledger not None):
        cdef uint64_t[::1] copy
        root = np.empty_like(ledger.root)
        copy = root
        _acquire(ledger.lock)
        clib.ghcb_root_share(&ledger.tree.store, ledger.tree.root, &copy[0], ledger.tree.n_root)
        self.n_records = ledger.tree.store.n_records
        PyThread_release_lock(ledger.lock)
        root.setflags(write=False)
        self.ledger = ledger
        self.root = root
        self.slots = root

    def __dealloc__(self):
        cdef Ledger ledger = self.ledger
        if ledger is None or self.root is None:
            return
        _acquire(ledger.lock)
        clib.ghcb_root_release(&ledger.tree.store, &self.slots[0], ledger.tree.n_root)
        clib.ghcb_store_settle(&ledger.tree.store)
        PyThread_release_lock(ledger.lock)

    def records(self):
        """Return the table of records: what ``classes`` of the other methods go by.

        Returns
        -------
        array of RECORD_DTYPE, shape (n,)
            ``word``, ``gfn``; ``n_pages`` of the ledger as it is now; ``since`` of shape (5,). Numbers that
            are not in use have ``n_pages`` 2**64 - 1; record 1 stands for what lies beyond the guest.
        """
        cdef Ledger ledger = self.ledger
        cdef uint32_t n
        _acquire(ledger.lock)
        n = ledger.tree.store.n_records
        raw = (<const char *> ledger.tree.store.records)[: n * sizeof(clib.ghcb_record_t)]
        PyThread_release_lock(ledger.lock)
        return np.frombuffer(raw, RECORD_DTYPE)

    def count(self, const uint32_t[::1] classes not None, first=0, n_pages=None):
        """Count the frames of each class in a range.

        Parameters
        ----------
        classes : uint32 array, shape (n,)
            A small number for each record of ``records()``.
        first, n_pages : int
            Default: all of the guest.

        Returns
        -------
        uint64 array, shape (classes.max() + 1,)
        """
        cdef uint64_t start, end
        cdef uint64_t[::1] into
        _span(self.ledger, first, n_pages, &start, &end)
        _check_classes(self.n_records, classes)
        result = np.zeros(int(np.asarray(classes).max()) + 1, np.uint64)
        into = result
        with nogil:
            clib.ghcb_root_count(&self.slots[0], &classes[0], start, end, &into[0])
        return result

    def runs(self, const uint32_t[::1] classes not None, first=0, n_pages=None, max_runs=1 << 20):
        """List the runs of neighbouring frames of one class; class 0 is left out.

        Parameters
        ----------
        classes : uint32 array, shape (n,)
            A small number for each record of ``records()``.
        first, n_pages : int
            Default: all of the guest.
        max_runs : int
            Room for the answer, at most 2**28.

        Returns
        -------
        first : uint64 array, shape (n,)
        n_pages : uint64 array, shape (n,)
        class : uint32 array, shape (n,)
        go_on : int
            Frame to go on from if there were more; else the end of the range.
        """
        cdef uint64_t start, end, go_on
        cdef clib.ghcb_runs_t runs
        _span(self.ledger, first, n_pages, &start, &end)
        _check_classes(self.n_records, classes)
        arrays = _room(max_runs, end - start, &runs)
        with nogil:
            go_on = clib.ghcb_root_runs(&self.slots[0], &classes[0], start, end, &runs)
        return (*[a[: runs.n].copy() for a in arrays], go_on)

    def differences(self, Snapshot later not None, views=31, first=0, n_pages=None, max_runs=1 << 20):
        """List the runs in which a later (or earlier) snapshot of the same ledger has other views.

        Parameters
        ----------
        later : Snapshot
        views : int
            Views to compare: ``1 << FRAME_VIEW_*``.

        Returns
        -------
        As ``runs``; the class is the set of views that differ.

        Raises
        ------
        StateConflict
            The snapshots are of two ledgers.
        """
        cdef uint64_t start, end, go_on
        cdef unsigned int which = <unsigned int> _number(views, "views", (1 << clib.FRAME_N_VIEWS) - 1)
        cdef clib.ghcb_runs_t runs
        cdef Ledger ledger = self.ledger
        if later.ledger is not ledger:
            raise _errors.StateConflict("snapshots of two ledgers have no differences")
        _span(self.ledger, first, n_pages, &start, &end)
        arrays = _room(max_runs, end - start, &runs)
        _acquire(ledger.lock)
        with nogil:
            go_on = clib.ghcb_root_differences(
                &ledger.tree.store, &self.slots[0], &later.slots[0], start, end, which, &runs
            )
        PyThread_release_lock(ledger.lock)
        return (*[a[: runs.n].copy() for a in arrays], go_on)

    def ids(self, const uint64_t[::1] frames not None):
        """Return the numbers of the records of frames.

        Parameters
        ----------
        frames : uint64 array, shape (n,), C-contiguous

        Returns
        -------
        uint32 array, shape (n,)

        Raises
        ------
        OutOfRange
            ``frames[2] = 0x...`` lies beyond the guest.
        """
        cdef Py_ssize_t i = 0, n = frames.shape[0]
        cdef uint64_t n_pages = self.ledger.tree.n_pages
        result = np.empty(n, np.uint32)
        cdef uint32_t[::1] into = result
        with nogil:
            for i in range(n):
                if frames[i] >= n_pages:
                    break
                into[i] = clib.ghcb_root_id(&self.slots[0], frames[i])
            else:
                i = n
        if i < n:
            raise _errors.OutOfRange(f"frames[{i}] = {frames[i]:#x}: the guest ends with frame {n_pages - 1:#x}")
        return result

    def entries(self, first, n_pages, *, as_stored=False):
        """Return the RMP entries of frames, taken apart.

        Parameters
        ----------
        first, n_pages : int
        as_stored : bool
            False: the entry that counts for each frame. True: what its slot of the table holds, which
            for all but the first frame of a 2 MiB entry is something else, with the count of subpages;
            ``ghcbcore.rmp.encode`` makes the raw words of it.

        Returns
        -------
        array of RMP_DTYPE, shape (n_pages,)
        """
        cdef uint64_t start, end, p
        cdef Ledger ledger = self.ledger
        cdef bint stored = as_stored
        cdef clib.ghcb_frame_t frame
        cdef unsigned int subpages
        _span(self.ledger, first, n_pages, &start, &end)
        result = np.zeros(end - start, _RMP_DTYPE)
        cdef clib.ghcb_rmp_t[::1] into = result
        _acquire(ledger.lock)
        with nogil:
            for p in range(start, end):
                frame = ledger.tree.store.records[clib.ghcb_root_id(&self.slots[0], p)].frame
                if not stored:
                    clib.ghcb_frame_entry(&frame, p, &into[p - start])
                    continue
                subpages = 0
                if not p & (clib.FRAME_REGION - 1):
                    subpages = _subpages(&self.slots[0], &ledger.tree.store, p, ledger.tree.n_pages)
                clib.ghcb_frame_stored(
                    &frame, p, not p & (clib.FRAME_REGION - 1), subpages, &into[p - start]
                )
        PyThread_release_lock(ledger.lock)
        return result


    def rmpread(self, const uint64_t[::1] frames not None):
        """Return what RMPREAD says of frames: each frame's own slot in the architectural form.

        Parameters
        ----------
        frames : uint64 array, shape (n,), C-contiguous

        Returns
        -------
        array of RMP_DTYPE, shape (n,)
            GPA, ``assigned``, ``page_size``, ``immutable``, ASID, and ``region``: 1 if any page of the
            2 MiB region is assigned, the frame itself too. ``ghcbcore.rmp.encode(..., "arch")`` makes words of
            it. A frame without entry is all 0: RMPREAD of it fails with FAIL_INPUT, which is for the caller.

        Raises
        ------
        OutOfRange
            ``frames[2] = 0x...`` lies beyond the guest.

        Notes
        -----
        Which pages ``region`` looks at is an assumption; it is given for every page of the region.
        """
        cdef Py_ssize_t i = 0, n = frames.shape[0]
        cdef Ledger ledger = self.ledger
        cdef uint64_t n_pages = ledger.tree.n_pages, p
        cdef clib.ghcb_rmp_t entry
        result = np.zeros(n, _RMP_DTYPE)
        cdef clib.ghcb_rmp_t[::1] into = result
        _acquire(ledger.lock)
        with nogil:
            for i in range(n):
                p = frames[i]
                if p >= n_pages:
                    break
                clib.ghcb_frame_stored(
                    &ledger.tree.store.records[clib.ghcb_root_id(&self.slots[0], p)].frame, p,
                    not p & (clib.FRAME_REGION - 1), 0, &entry,
                )
                into[i].gpa = entry.gpa
                into[i].asid = entry.asid
                into[i].assigned = entry.assigned
                into[i].page_size = entry.page_size
                into[i].immutable = entry.immutable
                if entry.state != clib.RMP_STATE_DEFAULT:
                    into[i].region = entry.assigned or _has_assigned(&self.slots[0], &ledger.tree.store, p, n_pages)
            else:
                i = n
        PyThread_release_lock(ledger.lock)
        if i < n:
            raise _errors.OutOfRange(f"frames[{i}] = {frames[i]:#x}: the guest ends with frame {n_pages - 1:#x}")
        return result


cdef bint _has_assigned(
    const uint64_t *root, const clib.ghcb_store_t *store, uint64_t p, uint64_t n_pages
) noexcept nogil:
    """Whether a page of the region that ``p`` lies in is assigned."""
    cdef uint64_t first = p & ~<uint64_t>(clib.FRAME_REGION - 1), i
    for i in range(first, min(first + clib.FRAME_REGION, n_pages)):
        if clib.ghcb_frame_has(store.records[clib.ghcb_root_id(root, i)].frame.word, clib.FRAME_ASSIGNED):
            return True
    return False


cdef unsigned int _subpages(
    const uint64_t *root, const clib.ghcb_store_t *store, uint64_t first, uint64_t n_pages
) noexcept nogil:
    """Count the assigned slots of a region other than its first."""
    cdef unsigned int n = 0
    cdef uint64_t p
    cdef clib.ghcb_rmp_t entry
    for p in range(first + 1, min(first + clib.FRAME_REGION, n_pages)):
        clib.ghcb_frame_stored(&store.records[clib.ghcb_root_id(root, p)].frame, p, 0, 0, &entry)
        n += entry.assigned
    return n


cdef object _room(object max_runs, uint64_t n_pages, clib.ghcb_runs_t *runs):
    cdef uint64_t n = min(_number(max_runs, "max_runs", 1 << 28), n_pages)
    cdef uint64_t[::1] first, lengths
    cdef uint32_t[::1] classes
    if not n:
        n = 1
    arrays = (np.empty(n, np.uint64), np.empty(n, np.uint64), np.empty(n, np.uint32))
    first, lengths, classes = arrays
    memset(runs, 0, sizeof(runs[0]))
    runs.first = &first[0]
    runs.n_pages = &lengths[0]
    runs.class_ = &classes[0]
    runs.room = n
    return arrays
