"""Text of a KVM trace to records, and records to text.

Theory of operation. ``Scanner`` is handed the text in pieces, cut anywhere. A line that lies whole
in a piece is read where it stands; what is left of a piece is carried to the next one, at most
``GHCB_TRACE_LINE_MAX`` bytes of it. A longer line is judged by its beginning: of interest, it is
reported, else passed over. So memory is constant whatever the text is. How one line is read stands
in ``ghcbcore/traceline.h``, how it is written in ``ghcbcore/traceprint.h``.

Names (of other events, of exit reasons) are numbered as they come; ``Scanner.names`` has them.

What belongs together is put together in ``ghcbcore.exchange``. Reading files: ``pysev.trace``.

Units: ``time_ns`` in nanoseconds, ``offset`` in bytes, ``line`` counts from 1.

Source: Linux arch/x86/kvm/trace.h; see the header.
"""

from threading import Lock as _Lock

import numpy as _np

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from ghcbcore cimport clib
from ghcbcore.clib cimport ghcb_trace_line_t

from ghcbcore import errors as _errors

__all__ = ["LINE_DTYPE", "Scanner", "format_lines"]

cdef ghcb_trace_line_t _line
LINE_DTYPE = _np.asarray(<ghcb_trace_line_t[:1]> &_line).dtype

cdef enum:
    N_SLOTS = 512  # of the names: a power of two, above twice their number


@cython.final
cdef class Scanner:
    """Scanner()\n--\n
    Reads the text of one trace, piece by piece.

    Attributes
    ----------
    n_lines : int
        Lines that have ended so far, of interest or not.
    n_bytes : int
        Bytes that were taken so far.
    cut : bool
        The text ended without a newline: its last line may be cut off, its last number too.
    names : tuple of str
        ``record["detail"]`` of a ``GHCB_TRACE_OTHER`` or ``GHCB_TRACE_KVM_EXIT`` indexes it. The
        name of an event is without ``kvm_``. The first 32 bytes of at most 254 names are kept;
        ``"others"`` at the end stands for all further ones.
    """

    def __cinit__(self):
        self._lock = _Lock()
        self._carry = _np.zeros(clib.GHCB_TRACE_LINE_MAX + 1 + clib.GHCB_TRACE_PAD, _np.uint8)
        cdef uint8_t[::1] carry = self._carry
        self.carry = <char *> &carry[0]
        self._names = _np.zeros(clib.GHCB_TRACE_N_NAMES * clib.GHCB_TRACE_NAME_MAX, _np.uint8)
        cdef uint8_t[::1] names = self._names
        self.names = <char *> &names[0]
        self._lengths = _np.zeros(clib.GHCB_TRACE_N_NAMES, _np.uint8)
        cdef uint8_t[::1] lengths = self._lengths
        self.lengths = &lengths[0]
        memset(self.slots, 0xFF, sizeof(self.slots))

    @property
    def n_lines(self):
        with self._lock:
            return self.lines

    @property
    def n_bytes(self):
        with self._lock:
            return self.bytes

    @property
    def cut(self):
        with self._lock:
            return bool(self.cut_off)

    @property
    def names(self):
        cdef Py_ssize_t i
        with self._lock:
            found = [
                self.names[i * clib.GHCB_TRACE_NAME_MAX : i * clib.GHCB_TRACE_NAME_MAX
                           + self.lengths[i]].decode("ascii", "backslashreplace")
                for i in range(self.n_names)
            ]
        full = self.n_names == clib.GHCB_TRACE_N_NAMES - 1
        return tuple([*found, "others"] if full else found)

    def scan(self, const uint8_t[::1] data not None, ghcb_trace_line_t[::1] out not None):
        """Take the next piece of the text.

        Parameters
        ----------
        data : bytes-like or uint8 array, shape (n,), C-contiguous
            Any bytes, cut anywhere. Nothing is kept of it but an unfinished line.
        out : array of LINE_DTYPE, shape (m,), m > 0, C-contiguous
            Receives the records.

        Returns
        -------
        (int, int)
            How many bytes were taken, and how many records were written. If not all bytes were
            taken, ``out`` is full: call again with the rest.

        Raises
        ------
        ValueError
            ``out`` has no room at all, or an array another dtype or layout. Nothing is taken.

        Notes
        -----
        Releases the GIL.

        Examples
        --------
        >>> import numpy as np
        >>> out = np.empty(4, LINE_DTYPE)
        >>> text = b"kvm:kvm_vmgexit_msr_protocol_enter: vcpu 0, ghcb_gpa 0020000000000014\\n"
        >>> Scanner().scan(text, out)
        (70, 1)
        >>> int(out[0]["kind"]), hex(out[0]["a"])
        (4, '0x20000000000014')
        """
        cdef Py_ssize_t used = 0, found = 0
        if out.shape[0] == 0:
            raise ValueError("out has no room for a record")
        if data.shape[0] == 0:
            return 0, 0
        with self._lock, nogil:
            found = self.scan_into(
                <const char *> &data[0], data.shape[0], &out[0], out.shape[0], &used
            )
        return used, found

    def finish(self, ghcb_trace_line_t[::1] out not None):
        """Take the last line if no newline ended it; return how many records were written: 0 or 1.

        Raises
        ------
        ValueError
            ``out`` has no room at all.
        """
        cdef bint found = False
        if out.shape[0] == 0:
            raise ValueError("out has no room for a record")
        with self._lock:
            if self.carried:
                self.cut_off = True
                found = self.take_carried(&out[0])
        return int(found)

    cdef Py_ssize_t scan_into(
        self, const char *p, Py_ssize_t size, ghcb_trace_line_t *out, Py_ssize_t room,
        Py_ssize_t *used,
    ) noexcept nogil:
        cdef const char *begin = p
        cdef const char *end = p + size
        cdef const char *newline
        cdef uint64_t offset = self.bytes
        cdef Py_ssize_t n = 0
        if self.carried:
            newline = <const char *> memchr(p, 10, end - p)
            self.keep(p, (end if newline == NULL else newline) - p)
            if newline == NULL:
                self.bytes += size
                used[0] = size
                return 0
            n += self.take_carried(out)
            p = newline + 1
        while p < end and n < room:
            newline = <const char *> memchr(p, 10, end - p)
            if newline == NULL:
                self.line_offset = offset + (p - begin)
                self.keep(p, end - p)
                p = end
                break
            if newline - p > clib.GHCB_TRACE_LINE_MAX or end - newline <= clib.GHCB_TRACE_PAD:
                self.line_offset = offset + (p - begin)
                self.keep(p, newline - p)
                n += self.take_carried(out + n)
            else:
                n += self.take(p, newline, offset + (p - begin), out + n)
            p = newline + 1
        self.bytes += p - begin
        used[0] = p - begin
        return n

    cdef void keep(self, const char *p, Py_ssize_t n) noexcept nogil:
        """Carry more of a line, as much as is looked at."""
        cdef Py_ssize_t room = clib.GHCB_TRACE_LINE_MAX - self.carried
        if n > room:
            self.too_long = True
            n = room
        memcpy(self.carry + self.carried, p, n)
        self.carried += n

    cdef bint take_carried(self, ghcb_trace_line_t *out) noexcept nogil:
        """The carried line is complete."""
        cdef bint found
        cdef char *end = self.carry + self.carried
        memset(end, 0, clib.GHCB_TRACE_PAD)
        end[0] = 10
        found = self.take(self.carry, end, self.line_offset, out)
        if found and self.too_long:
            clib.ghcb_trace_bad(out, clib.GHCB_TRACE_E_LONG)
        self.carried = 0
        self.too_long = False
        return found

    cdef bint take(
        self, const char *p, const char *end, uint64_t offset, ghcb_trace_line_t *out
    ) noexcept nogil:
        """Read one line; say whether it made a record."""
        cdef const char *name = NULL
        cdef uint32_t n_name = 0
        cdef uint8_t kind
        self.lines += 1
        kind = clib.ghcb_trace_parse(p, end, out, &name, &n_name)
        if kind == clib.GHCB_TRACE_SKIP:
            return False
        out.line = self.lines
        out.offset = offset
        if kind == clib.GHCB_TRACE_OTHER or kind == clib.GHCB_TRACE_KVM_EXIT:
            out.detail = self.intern(name, n_name)
        return True

    cdef uint8_t intern(self, const char *name, uint64_t n) noexcept nogil:
        """Return the number of a name, which is new or not."""
        cdef uint64_t i, at
        cdef uint32_t mix = 2166136261
        if n > clib.GHCB_TRACE_NAME_MAX:
            n = clib.GHCB_TRACE_NAME_MAX
        for i in range(n):
            mix = (mix ^ <uint8_t> name[i]) * 16777619
        at = mix & (N_SLOTS - 1)
        while self.slots[at] != 0xFF:
            i = self.slots[at]
            if self.lengths[i] == n and memcmp(self.names + i * clib.GHCB_TRACE_NAME_MAX, name, n) == 0:
                return <uint8_t> i
            at = (at + 1) & (N_SLOTS - 1)
        if self.n_names == clib.GHCB_TRACE_N_NAMES - 1:
            return clib.GHCB_TRACE_N_NAMES - 1
        i = self.n_names
        self.n_names += 1
        memcpy(self.names + i * clib.GHCB_TRACE_NAME_MAX, name, n)
        self.lengths[i] = <uint8_t> n
        self.slots[at] = <uint8_t> i
        return <uint8_t> i


def format_lines(const ghcb_trace_line_t[::1] lines not None):
    """Write records of VMGEXITs as text in ftrace's form.

    Parameters
    ----------
    lines : array of LINE_DTYPE, shape (n,), C-contiguous
        ``kind`` must be one of the four VMGEXIT kinds, and time, pid, vCPU and CPU must be known.
        ``tgid`` is written if it is known; ``line``, ``offset`` and ``form`` are not looked at.

    Returns
    -------
    uint8 array
        The text, one line a record. The thread is called ``CPU <vcpu>/KVM`` as QEMU does; the
        time has nanoseconds, as ``trace-cmd report -t`` prints it.

    Raises
    ------
    OutOfRange
        ``lines[i]`` has another kind, or lacks one of these. Nothing is returned.

    Notes
    -----
    Releases the GIL. A ``Scanner`` reads equal records back.
    """
    cdef Py_ssize_t i = 0, n = lines.shape[0]
    cdef char *p
    cdef bint good = True
    text = _np.empty(n * clib.GHCB_TRACE_PRINT_MAX, _np.uint8)
    if n == 0:
        return text
    cdef uint8_t[::1] room = text
    p = <char *> &room[0]
    with nogil:
        for i in range(n):
            good = (
                clib.GHCB_TRACE_NAE_ENTER <= lines[i].kind <= clib.GHCB_TRACE_MSR_EXIT
                and lines[i].time_ns != clib.GHCB_TRACE_NO_TIME
                and lines[i].pid != clib.GHCB_TRACE_NO_PID
                and lines[i].vcpu != clib.GHCB_TRACE_NO_VCPU
                and lines[i].cpu != clib.GHCB_TRACE_NO_CPU
            )
            if not good:
                break
            p = clib.ghcb_trace_print(p, &lines[i])
    if not good:
        raise _errors.OutOfRange(
            f"lines[{i}], kind {lines[i].kind}: no VMGEXIT with time, pid, vCPU and CPU"
        )
    return text[: p - <char *> &room[0]]
