"""Records of lines to exchanges: which request got which answer.

Theory of operation. KVM runs each vCPU in a thread of its own, so (pid, vCPU number) names one vCPU
of one VM, and what the trace says of one vCPU is in order. Each vCPU has at most one request that
waits for its answer:

- A request comes. If one still waits, that one is given out without an answer, ``OVERLAP``. A
  request for termination is given out at once, ``ENDED``: KVM writes no second line for it.
- An answer comes. If a request of the same protocol waits, both are one exchange. An answer by the
  MSR protocol with result 0 means that user space answers: what the line shows is the request
  (page-state change) or what KVM answers before it (AP reset hold), ``USER``.
- An answer comes and no such request waits: it is an exchange of its own, without ``ENTER``.
- The trace ends: what waits is given out, ``OPEN``.

The state is one record a vCPU, so memory does not depend on the length of the trace; when there are
``GHCB_EXCHANGE_MAX_VCPUS`` of them, those that wait for nothing are forgotten. Beside it are kept: how often each kind of request came and how long its answers took, by size (``histogram``);
how many lines of each kind there were; what the host has offered so far, which rules need.

Source: GHCB fact sheet 9.1; KVM's code paths as described there.
"""

from collections import namedtuple as _namedtuple
from threading import Lock as _Lock

import numpy as _np

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from ghcbcore cimport clib
from ghcbcore.clib cimport ghcb_exchange_t, ghcb_trace_line_t

__all__ = ["EXCHANGE_DTYPE", "Kind", "Pairer", "bin_start"]

cdef ghcb_exchange_t _exchange
EXCHANGE_DTYPE = _np.asarray(<ghcb_exchange_t[:1]> &_exchange).dtype

Kind = _namedtuple("Kind", ("page", "code", "n", "n_timed", "min_ns", "max_ns"))
Kind.__doc__ = """What came of one kind of request.

``page`` says whether it is an event of the page (``code`` is ``sw_exit_code``) or a function of the
MSR protocol (``code`` is bits [11:0]); ``code`` is None for the kind that stands for all that found
no place. ``n`` counts exchanges, ``n_timed`` those with both times; the shortest and the longest of
them in ns, 0 if there are none.
"""

cdef enum:
    N_KIND_SLOTS = 1024
    # what `take` returns
    NO_ROOM = 1
    GIVEN = 2
    # columns of the numbers of a kind
    N = 0
    N_TIMED = 1
    MIN = 2
    MAX = 3
    N_STATS = 4


def bin_start(i):
    """Return the shortest time in ns that is counted in bin ``i`` of a histogram.

    Examples
    --------
    >>> [bin_start(i) for i in (0, 1, 25, 26)]
    [0, 1, 8, 9]
    """
    i = int(i)
    if not 0 <= i < clib.GHCB_EXCHANGE_N_BINS:
        raise IndexError(f"bin {i}: there are {clib.GHCB_EXCHANGE_N_BINS}")
    if i == 0:
        return 0
    e, step = divmod(i - 1, clib.GHCB_EXCHANGE_STEPS)
    return -(-((clib.GHCB_EXCHANGE_STEPS + step) << e) // clib.GHCB_EXCHANGE_STEPS)


cdef inline uint64_t mixed(uint64_t v) noexcept nogil:
    v ^= v >> 32
    v *= <uint64_t> 0x9E3779B97F4A7C15
    return v ^ (v >> 29)


@cython.final
cdef class Pairer:
    """Pairer()\n--\n
    Puts the records of one trace together.

    Attributes
    ----------
    n_vcpus : int
        vCPUs that were seen, by (pid, number); one that was forgotten and comes again counts twice.
    n_untracked : int
        Records of vCPUs beyond ``GHCB_EXCHANGE_MAX_VCPUS`` that all wait for an answer: these are
        not in any exchange.
    n_lost : int
        Events that the tracer says it has lost (at least one for each such line).
    span_ns : tuple of int, or None
        First and last time of the trace.
    """

    def __cinit__(self):
        self._lock = _Lock()
        self.offered = clib.GHCB_EXCHANGE_NOT_OFFERED
        self.first_ns = clib.GHCB_TRACE_NO_TIME
        memset(self.slots, 0xFF, sizeof(self.slots))
        self._bins = _np.zeros((clib.GHCB_EXCHANGE_N_KINDS, clib.GHCB_EXCHANGE_N_BINS), _np.uint64)
        cdef uint64_t[:, ::1] bins = self._bins
        self.bins = &bins[0, 0]
        self._stats = _np.zeros((clib.GHCB_EXCHANGE_N_KINDS, N_STATS), _np.uint64)
        cdef uint64_t[:, ::1] stats = self._stats
        self.stats = &stats[0, 0]
        self._keys = _np.zeros((clib.GHCB_EXCHANGE_N_KINDS, 2), _np.uint64)
        cdef uint64_t[:, ::1] keys = self._keys
        self.keys = &keys[0, 0]
        self._line_counts = _np.zeros(256, _np.uint64)
        cdef uint64_t[::1] line_counts = self._line_counts
        self.by_kind = &line_counts[0]
        self._name_counts = _np.zeros((2, 256), _np.uint64)
        cdef uint64_t[:, ::1] name_counts = self._name_counts
        self.by_name = &name_counts[0, 0]
        self.grow()

    @property
    def n_vcpus(self):
        return self.count + self.forgotten

    @property
    def n_untracked(self):
        return self.untracked

    @property
    def n_lost(self):
        return self.lost

    @property
    def span_ns(self):
        if self.first_ns == clib.GHCB_TRACE_NO_TIME:
            return None
        return self.first_ns, self.last_ns

    def vcpus(self):
        """Return (pid, vCPU) of every vCPU not forgotten: uint32 array, shape (n, 2), as they came.

        ``GHCB_TRACE_NO_PID`` stands for a line that names no thread.
        """
        cdef Py_ssize_t i
        with self._lock:
            out = _np.empty((self.count, 2), _np.uint32)
            for i in range(self.count):
                out[i] = self.table[i].pid, self.table[i].vcpu
        return out

    def line_counts(self):
        """Return how many records of each kind came: uint64 array, index ``GHCB_TRACE_*``."""
        with self._lock:
            return self._line_counts[: clib.GHCB_TRACE_LOST + 1].copy()

    def name_counts(self):
        """Return how often each name came: of exit reasons, and of other events.

        uint64 array, shape (2, 256); the second index is that of ``Scanner.names``.
        """
        with self._lock:
            return self._name_counts.copy()

    def kinds(self):
        """Return the kinds of requests so far: tuple of ``Kind``; ``exchange["kind"]`` indexes it."""
        cdef Py_ssize_t i
        with self._lock:
            out = []
            for i in range(self.n_kinds):
                whole = i == clib.GHCB_EXCHANGE_N_KINDS - 1
                numbers = [int(v) for v in self._stats[i]]
                out.append(
                    Kind(
                        not whole and bool(self.keys[2 * i]),
                        None if whole else self.keys[2 * i + 1],
                        *numbers,
                    )
                )
        return tuple(out)

    def histogram(self):
        """Return how often which time came: uint64 array, shape (number of kinds, bins).

        ``bin_start`` says where a bin begins.
        """
        with self._lock:
            return self._bins[: self.n_kinds].copy()

    def pair(
        self, const ghcb_trace_line_t[::1] lines not None, ghcb_exchange_t[::1] out not None
    ):
        """Take the next records.

        Parameters
        ----------
        lines : array of LINE_DTYPE, shape (n,), C-contiguous
            In the order of the trace. Nothing is kept of them.
        out : array of EXCHANGE_DTYPE, shape (m,), m > 0, C-contiguous
            Receives the exchanges that are known to be complete, in the order of their ends.

        Returns
        -------
        (int, int)
            How many records were taken, and how many exchanges were written. If not all were
            taken, ``out`` is full: call again with the rest.

        Raises
        ------
        ValueError
            ``out`` has no room at all, or an array another dtype or layout. Nothing is taken.

        Notes
        -----
        Releases the GIL.
        """
        cdef Py_ssize_t i = 0, n = 0, n_lines = lines.shape[0], size = out.shape[0]
        cdef int outcome
        if size == 0:
            raise ValueError("out has no room for an exchange")
        with self._lock:
            if n_lines:
                self.next_open = 0  # whoever goes on after `finish` has not ended the trace
            while i < n_lines and n < size:
                with nogil:
                    outcome = 0
                    while i < n_lines and n < size:
                        outcome = self.take(&lines[i], &out[n])
                        if outcome == NO_ROOM:
                            break
                        n += outcome == GIVEN
                        i += 1
                if outcome == NO_ROOM:
                    self.grow()
        return i, n

    def finish(self, ghcb_exchange_t[::1] out not None):
        """The trace has ended: give out what still waits; return how many were written.

        Call again until it is 0.

        Raises
        ------
        ValueError
            ``out`` has no room at all.
        """
        cdef Py_ssize_t n = 0
        cdef Vcpu *vcpu
        if out.shape[0] == 0:
            raise ValueError("out has no room for an exchange")
        with self._lock, nogil:
            while self.next_open < self.count and n < out.shape[0]:
                vcpu = self.table + self.next_open
                if vcpu.is_open:
                    vcpu.open.flags |= clib.GHCB_EXCHANGE_OPEN
                    self.give(vcpu, &out[n])
                    n += 1
                self.next_open += 1
        return n

    # -- the table of vCPUs ---------------------------------------------------------------------

    cdef int grow(self) except -1:
        """Double the table; forget vCPUs if it is as large as it may be."""
        cdef Py_ssize_t i, room = max(64, 2 * self.room)
        if room > clib.GHCB_EXCHANGE_MAX_VCPUS:
            self.forget()
            return 0
        vcpus = _np.zeros(room * sizeof(Vcpu), _np.uint8)
        if self._vcpus is not None:
            vcpus[: self.room * sizeof(Vcpu)] = self._vcpus
        index = _np.zeros(4 * room, _np.uint32)
        cdef uint8_t[::1] bytes_of = vcpus
        cdef uint32_t[::1] slots = index
        self._vcpus, self._index = vcpus, index
        self.table = <Vcpu *> &bytes_of[0]
        self.index = &slots[0]
        self.room = room
        self.mask = 4 * room - 1
        for i in range(self.count):
            self.index[self.place(self.table[i].pid, self.table[i].vcpu)] = <uint32_t> i + 1
        return 0

    cdef void forget(self) noexcept nogil:
        """Keep only the vCPUs that wait for an answer."""
        cdef Py_ssize_t i, kept = 0
        for i in range(self.count):
            if self.table[i].is_open:
                self.table[kept] = self.table[i]
                kept += 1
        self.forgotten += self.count - kept
        memset(self.table + kept, 0, (self.room - kept) * sizeof(Vcpu))
        memset(self.index, 0, (self.mask + 1) * sizeof(uint32_t))
        self.count = kept
        self.added = 0
        for i in range(kept):
            self.index[self.place(self.table[i].pid, self.table[i].vcpu)] = <uint32_t> i + 1

    cdef uint64_t place(self, uint32_t pid, uint32_t vcpu) noexcept nogil:
        """Return where in the index this vCPU is, or would be."""
        cdef uint64_t at = mixed(<uint64_t> pid << 32 | vcpu) & self.mask
        cdef Vcpu *there
        while self.index[at]:
            there = self.table + self.index[at] - 1
            if there.pid == pid and there.vcpu == vcpu:
                break
            at = (at + 1) & self.mask
        return at

    cdef Vcpu *find(self, uint32_t pid, uint32_t vcpu) noexcept nogil:
        """Return a vCPU, which is new or not; NULL if there is no room."""
        cdef uint64_t at = self.place(pid, vcpu)
        cdef Vcpu *new
        if self.index[at]:
            return self.table + self.index[at] - 1
        if self.count == self.room:
            return NULL
        new = self.table + self.count
        self.count += 1
        self.index[at] = <uint32_t> self.count
        self.added += 1
        new.pid = pid
        new.vcpu = vcpu
        return new

    cdef uint16_t kind_of(self, bint page, uint64_t code) noexcept nogil:
        """Return the number of a kind of request, which is new or not."""
        cdef uint64_t at = mixed(code + page) & (N_KIND_SLOTS - 1)
        cdef uint16_t i
        while self.slots[at] != 0xFFFF:
            i = self.slots[at]
            if self.keys[2 * i] == page and self.keys[2 * i + 1] == code:
                return i
            at = (at + 1) & (N_KIND_SLOTS - 1)
        if self.n_kinds >= clib.GHCB_EXCHANGE_N_KINDS - 1:
            self.n_kinds = clib.GHCB_EXCHANGE_N_KINDS
            return clib.GHCB_EXCHANGE_N_KINDS - 1
        i = <uint16_t> self.n_kinds
        self.n_kinds += 1
        self.keys[2 * i] = page
        self.keys[2 * i + 1] = code
        self.slots[at] = i
        return i

    # -- one record -----------------------------------------------------------------------------

    cdef int take(self, const ghcb_trace_line_t *line, ghcb_exchange_t *out) noexcept nogil:
        """Take one record; return 0, GIVEN if it made an exchange, NO_ROOM if it was not taken."""
        cdef bint page = line.kind == clib.GHCB_TRACE_NAE_ENTER or line.kind == clib.GHCB_TRACE_NAE_EXIT
        cdef bint enters = line.kind == clib.GHCB_TRACE_NAE_ENTER or line.kind == clib.GHCB_TRACE_MSR_ENTER
        cdef bint given = False
        cdef Vcpu *vcpu
        if clib.GHCB_TRACE_NAE_ENTER <= line.kind <= clib.GHCB_TRACE_MSR_EXIT:
            vcpu = self.find(line.pid, line.vcpu)
            if vcpu == NULL:
                if (
                    self.room < clib.GHCB_EXCHANGE_MAX_VCPUS
                    or self.added > clib.GHCB_EXCHANGE_MAX_VCPUS // 2  # then forgetting may help
                ):
                    return NO_ROOM
                self.untracked += 1
        else:
            vcpu = NULL
        self.by_kind[line.kind] += 1
        if line.time_ns != clib.GHCB_TRACE_NO_TIME:
            if self.first_ns == clib.GHCB_TRACE_NO_TIME:
                self.first_ns = self.last_ns = line.time_ns
            if line.time_ns < self.first_ns:
                self.first_ns = line.time_ns
            if line.time_ns > self.last_ns:
                self.last_ns = line.time_ns
        if line.kind == clib.GHCB_TRACE_LOST:
            self.lost += line.a if line.a else 1
        elif line.kind == clib.GHCB_TRACE_KVM_EXIT:
            self.by_name[line.detail] += 1
        elif line.kind == clib.GHCB_TRACE_OTHER:
            self.by_name[256 + line.detail] += 1
        if vcpu == NULL:
            return 0
        if enters:
            if vcpu.is_open:
                vcpu.open.flags |= clib.GHCB_EXCHANGE_OVERLAP
                self.give(vcpu, out)
                given = True
            self.begin(vcpu, line, page)
            return GIVEN if given else 0
        if not vcpu.is_open or (vcpu.open.flags & clib.GHCB_EXCHANGE_PAGE != 0) != page:
            self.fill(out, line, page)
            out.flags |= clib.GHCB_EXCHANGE_EXIT
            if not vcpu.seen:
                out.flags |= clib.GHCB_EXCHANGE_FIRST
            if self.lost != vcpu.n_lost:
                out.flags |= clib.GHCB_EXCHANGE_LOST
            if self.backwards(vcpu, line.time_ns):
                out.flags |= clib.GHCB_EXCHANGE_BACKWARDS
            out.end_ns = line.time_ns
            out.exit_line = line.line
            out.result = line.result
            if page:
                out.info_1_after, out.info_2_after = line.b, line.c
                out.sw_exit_info_1 = out.sw_exit_info_2 = 0
            else:
                out.msr_after, out.msr = line.a, 0
            vcpu.seen = True
            vcpu.n_lost = self.lost
            self.learn(vcpu, out)
            return GIVEN
        vcpu.open.flags |= clib.GHCB_EXCHANGE_EXIT
        vcpu.open.exit_line = line.line
        vcpu.open.end_ns = line.time_ns
        vcpu.open.result = line.result
        if self.backwards(vcpu, line.time_ns):
            vcpu.open.flags |= clib.GHCB_EXCHANGE_BACKWARDS
        if page:
            vcpu.open.info_1_after = line.b
            vcpu.open.info_2_after = line.c
            if line.a != vcpu.open.sw_exit_code:
                vcpu.open.flags |= clib.GHCB_EXCHANGE_CHANGED
        else:
            vcpu.open.msr_after = line.a
            if line.result == 0:
                vcpu.open.flags |= clib.GHCB_EXCHANGE_USER
        self.give(vcpu, out)
        return GIVEN

    cdef bint backwards(self, Vcpu *vcpu, uint64_t time_ns) noexcept nogil:
        """Whether the clock of this vCPU's lines has gone back; it is set to the new time."""
        cdef bint back = vcpu.seen and time_ns < vcpu.last_ns and vcpu.last_ns != clib.GHCB_TRACE_NO_TIME
        vcpu.last_ns = time_ns
        return back

    cdef void fill(
        self, ghcb_exchange_t *x, const ghcb_trace_line_t *line, bint page
    ) noexcept nogil:
        memset(x, 0, sizeof(ghcb_exchange_t))
        x.begin_ns = x.end_ns = clib.GHCB_TRACE_NO_TIME
        x.pid, x.tgid, x.vcpu, x.cpu = line.pid, line.tgid, line.vcpu, line.cpu
        x.offered, x.version = self.offered, self.version
        if page:
            x.flags = clib.GHCB_EXCHANGE_PAGE
            x.sw_exit_code, x.sw_exit_info_1, x.sw_exit_info_2 = line.a, line.b, line.c
            x.kind = self.kind_of(True, line.a)
        else:
            x.msr = line.a
            x.kind = self.kind_of(False, line.a & clib.GHCB_MSR_INFO_MASK)

    cdef void begin(self, Vcpu *vcpu, const ghcb_trace_line_t *line, bint page) noexcept nogil:
        """A request waits from now on."""
        cdef ghcb_exchange_t *x = &vcpu.open
        cdef uint64_t code = line.a & clib.GHCB_MSR_INFO_MASK
        self.fill(x, line, page)
        x.flags |= clib.GHCB_EXCHANGE_ENTER
        x.begin_ns = line.time_ns
        x.enter_line = line.line
        if self.backwards(vcpu, line.time_ns):
            x.flags |= clib.GHCB_EXCHANGE_BACKWARDS
        if not vcpu.seen:
            x.flags |= clib.GHCB_EXCHANGE_FIRST
        vcpu.seen = True
        vcpu.n_lost = self.lost
        vcpu.is_open = True
        if page:
            if self.snp and vcpu.booted and not vcpu.registered:
                x.flags |= clib.GHCB_EXCHANGE_UNREGISTERED
            if line.a == clib.GHCB_NAE_TERMINATE:
                x.flags |= clib.GHCB_EXCHANGE_ENDED
        elif code == clib.GHCB_MSR_SEV_INFO_REQ:
            vcpu.booted = True
            vcpu.registered = False
        elif code == clib.GHCB_MSR_TERM_REQ:
            x.flags |= clib.GHCB_EXCHANGE_ENDED

    cdef void learn(self, Vcpu *vcpu, const ghcb_exchange_t *x) noexcept nogil:
        """Keep what an answer says about the host and about this vCPU."""
        cdef uint64_t code = x.msr_after & clib.GHCB_MSR_INFO_MASK
        cdef uint64_t asked = x.msr & clib.GHCB_MSR_INFO_MASK
        cdef uint64_t features, version
        if x.flags & clib.GHCB_EXCHANGE_PAGE:
            if x.sw_exit_code != clib.GHCB_NAE_HV_FEATURES or <uint32_t> x.info_1_after:
                return
            features = x.info_2_after
        elif code == clib.GHCB_MSR_HV_FEATURES_RESP:
            features = x.msr_after >> clib.GHCB_MSR_DATA_SHIFT
        else:
            if code == clib.GHCB_MSR_SEV_INFO_RESP:
                version = x.msr_after >> clib.GHCB_MSR_SEV_INFO_RESP_MAX_SHIFT
                if version > self.version:
                    self.version = <uint16_t> version
            elif code == clib.GHCB_MSR_REG_GPA_RESP:
                self.snp = True
                if x.msr_after >> clib.GHCB_MSR_DATA_SHIFT != clib.GHCB_MSR_NO_GFN:
                    vcpu.registered = True
            elif asked == clib.GHCB_MSR_PSC_REQ:
                self.snp = True
            return
        if self.offered == clib.GHCB_EXCHANGE_NOT_OFFERED:
            self.offered = 0
        self.offered |= features & ~(<uint64_t> 1 << 63)

    cdef void give(self, Vcpu *vcpu, ghcb_exchange_t *out) noexcept nogil:
        """The exchange that was waiting is complete."""
        cdef uint64_t took
        cdef uint64_t *stats
        if self.lost != vcpu.n_lost:
            vcpu.open.flags |= clib.GHCB_EXCHANGE_LOST
            vcpu.n_lost = self.lost
        if vcpu.open.flags & clib.GHCB_EXCHANGE_EXIT:
            vcpu.open.flags &= ~clib.GHCB_EXCHANGE_ENDED
            self.learn(vcpu, &vcpu.open)
        out[0] = vcpu.open
        vcpu.is_open = False
        stats = self.stats + out.kind * N_STATS
        stats[N] += 1
        if (
            out.begin_ns != clib.GHCB_TRACE_NO_TIME and out.end_ns != clib.GHCB_TRACE_NO_TIME
            and out.end_ns >= out.begin_ns
        ):
            took = out.end_ns - out.begin_ns
            if stats[N_TIMED] == 0 or took < stats[MIN]:
                stats[MIN] = took
            if took > stats[MAX]:
                stats[MAX] = took
            stats[N_TIMED] += 1
            self.bins[out.kind * clib.GHCB_EXCHANGE_N_BINS + clib.ghcb_exchange_bin(took)] += 1
