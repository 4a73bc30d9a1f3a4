"""SEV and SNP firmware of one machine or of many alike: steps in, statuses out.

The rules stand in ``ghcbcore/firmware.h`` and the headers beside it; this module keeps the words of each
machine in one row of an array and gives it steps. Names for people: ``pysev.firmware``.
"""

from operator import index as _index
from threading import Lock as _Lock

import numpy as _np

from ghcbcore import errors as _errors

cimport cython
from ghcbcore cimport clib
from ghcbcore.clib cimport ghcb_fw_answer_t, ghcb_fw_check_t, ghcb_fw_step_t, ghcb_fw_t
from libc.stdint cimport uint64_t

__all__ = [
    "ANSWER_DTYPE",
    "STEP_DTYPE",
    "Machines",
    "bads",
    "checks",
    "guests",
    "invalid",
    "members",
    "new_threads",
    "platforms",
    "reach_args",
    "states",
    "threads",
]

cdef ghcb_fw_step_t _step
cdef ghcb_fw_answer_t _answer
STEP_DTYPE = _np.asarray(<ghcb_fw_step_t[:1]> &_step).dtype
ANSWER_DTYPE = _np.asarray(<ghcb_fw_answer_t[:1]> &_answer).dtype

cdef object LARGEST_COMMAND = int("ffffffff", 16)
cdef object LARGEST_WORD = int("ffffffffffffffff", 16)


def platforms(words):
    """Take words of platforms apart: uint64, any shape, to a record array of that shape.

    Fields: ``sev`` and ``snp`` (states), ``rmp``, ``iommu``, ``es``, ``owned``, ``rebuild`` (0 or 1),
    ``limit`` (the last ASID for SNP with ciphertext hiding, else 0).
    """
    return _fields(words, (
        ("sev", "u1", clib.GHCB_FW_SEV_SHIFT, clib.GHCB_FW_SEV_WIDTH),
        ("snp", "u1", clib.GHCB_FW_SNP_SHIFT, 1),
        ("rmp", "u1", clib.GHCB_FW_RMP_SHIFT, 1),
        ("iommu", "u1", clib.GHCB_FW_IOMMU_SHIFT, 1),
        ("es", "u1", clib.GHCB_FW_ES_SHIFT, 1),
        ("owned", "u1", clib.GHCB_FW_OWNED_SHIFT, 1),
        ("rebuild", "u1", clib.GHCB_FW_REBUILD_SHIFT, 1),
        ("limit", "u2", clib.GHCB_FW_LIMIT_SHIFT, clib.GHCB_FW_LIMIT_WIDTH),
    ))


def guests(words):
    """Take words of guests apart, in the same way.

    Fields: ``type``, ``state``, ``active`` (``GHCB_FW_*``), ``asid``, ``debug``, ``single_socket``, ``image``
    (0 or 1), ``ccxs`` (bit x for CCX x). All are 0 where there is no guest.
    """
    return _fields(words, (
        ("type", "u1", clib.GHCB_FW_GUEST_TYPE_SHIFT, clib.GHCB_FW_GUEST_TYPE_WIDTH),
        ("state", "u1", clib.GHCB_FW_GUEST_STATE_SHIFT, clib.GHCB_FW_GUEST_STATE_WIDTH),
        ("active", "u1", clib.GHCB_FW_GUEST_ACTIVE_SHIFT, clib.GHCB_FW_GUEST_ACTIVE_WIDTH),
        ("debug", "u1", clib.GHCB_FW_GUEST_DEBUG_SHIFT, 1),
        ("single_socket", "u1", clib.GHCB_FW_GUEST_SOCKET_SHIFT, 1),
        ("image", "u1", clib.GHCB_FW_GUEST_IMAGE_SHIFT, 1),
        ("asid", "u2", clib.GHCB_FW_GUEST_ASID_SHIFT, clib.GHCB_FW_GUEST_ASID_WIDTH),
        ("ccxs", "u4", clib.GHCB_FW_GUEST_CCXS_SHIFT, clib.GHCB_FW_GUEST_CCXS_WIDTH),
    ))


def threads(words):
    """Take first words of threads apart, in the same way.

    Fields: ``done`` (WBINVD), ``kept`` (WBNOINVD), ``offline``, ``snp_en``, ``hsave``, ``first`` (0 or 1),
    ``ccx``, ``runs`` (the ASID of the guest it is in, or 0).
    """
    return _fields(words, (
        ("done", "u1", clib.GHCB_FW_THREAD_DONE_SHIFT, 1),
        ("kept", "u1", clib.GHCB_FW_THREAD_KEPT_SHIFT, 1),
        ("offline", "u1", clib.GHCB_FW_THREAD_OFFLINE_SHIFT, 1),
        ("snp_en", "u1", clib.GHCB_FW_THREAD_SNP_EN_SHIFT, 1),
        ("hsave", "u1", clib.GHCB_FW_THREAD_HSAVE_SHIFT, 1),
        ("first", "u1", clib.GHCB_FW_THREAD_FIRST_SHIFT, 1),
        ("ccx", "u1", clib.GHCB_FW_THREAD_CCX_SHIFT, clib.GHCB_FW_THREAD_CCX_WIDTH),
        ("runs", "u2", clib.GHCB_FW_THREAD_RUNS_SHIFT, clib.GHCB_FW_THREAD_RUNS_WIDTH),
    ))


def states(words, n_ccxs):
    """Take words of ASIDs apart: uint8, the words' shape and one more axis of ``n_ccxs`` cells."""
    given = _np.asarray(words, _np.uint64)
    shifts = _np.arange(0, 2 * _bounded(n_ccxs, "n_ccxs", clib.GHCB_FW_MAX_CCXS), 2, dtype=_np.uint64)
    return (given[..., None] >> shifts & _np.uint64(3)).astype(_np.uint8)


def invalid(words, asid):
    """Whether a thread may not run an ASID: bool, from its bitmaps of shape (..., n_words)."""
    given = _np.asarray(words, _np.uint64)
    *_, n_words = given.shape
    which = _bounded(asid, "asid", 64 * n_words - 1)
    return (given[..., which // 64] >> _np.uint64(which % 64) & _np.uint64(1)).astype(bool)


def reach_args(step):
    """Return a command or VMRUN, a record of STEP_DTYPE, as arguments of an operation on a place.

    Raises
    ------
    OutOfRange
        It has no room: of a guest's or ASID's number there are 8 bits, of a policy 32.
    """
    rows = _np.ascontiguousarray(step, STEP_DTYPE).reshape(1)
    cdef const ghcb_fw_step_t[::1] one = rows
    cdef uint64_t arg[3]
    if one[0].step != clib.GHCB_FW_STEP_COMMAND:
        return (one[0].op.asid, 0, 0)
    if not clib.ghcb_fw_reach_args(&one[0].op, arg):
        raise _errors.OutOfRange(f"command {one[0].op.command:#x}: an argument is too large for a flow")
    return (arg[0], arg[1], arg[2])


def members(bits):
    """Return the numbers of the bits that are set, ascending."""
    number = int(_bounded(bits, "bits", LARGEST_WORD))
    return [i for i in range(64) if number >> i & 1]


def new_threads(n_ccxs, cores_per_ccx, threads_per_core, *, snp_en=True):
    """Return the first words of a machine's threads: uint64, shape (n_threads,).

    First threads of all cores, CCX by CCX, then second ones.
    """
    ccx = _np.repeat(_np.arange(n_ccxs, dtype=_np.uint64), cores_per_ccx)
    first = _np.tile(_np.arange(cores_per_ccx) == 0, n_ccxs).astype(_np.uint64)
    words = ccx << _np.uint64(clib.GHCB_FW_THREAD_CCX_SHIFT) | first << _np.uint64(clib.GHCB_FW_THREAD_FIRST_SHIFT)
    if snp_en:
        words |= _np.uint64(1 << clib.GHCB_FW_THREAD_SNP_EN_SHIFT)
    return _np.tile(words, threads_per_core)


cdef _fields(words, fields):
    given = _np.asarray(words, _np.uint64)
    apart = _np.empty(given.shape, [(name, kind) for name, kind, _, _ in fields])
    for name, kind, shift, width in fields:
        apart[name] = given >> _np.uint64(shift) & _np.uint64((1 << width) - 1)
    return apart


def checks(command):
    """Return the checks of a command in firmware's order: a list of ``(kind, status, arg)``.

    ``kind`` is one of ``GHCB_FW_IF_*``. None if firmware has no such command (it answers
    ``SNP_FW_COMMAND``), or if no source at hand says what it checks.
    """
    cdef const ghcb_fw_check_t *rows = NULL
    cdef int i, n = clib.ghcb_fw_checks(_bounded(command, "command", LARGEST_COMMAND), &rows)
    if n < 0:
        return None
    return [(rows[i].kind, rows[i].status, rows[i].arg) for i in range(n)]


def bads(command):
    """Return what can be wrong with what a command brings, ``GHCB_FW_BAD_*``, as one set of bits."""
    return clib.ghcb_fw_bads(_bounded(command, "command", LARGEST_COMMAND))


@cython.final
@cython.auto_pickle(False)
cdef class Machines:
    """Machines(threads, n_ccxs, max_asid, n_guests, *, first_sev_asid=1, rules=0, n_machines=1)\n--\n
    Firmware of ``n_machines`` machines that are built alike, as it is at power-on.

    Parameters
    ----------
    threads : uint64 array, shape (n_threads,)
        The first word of each hardware thread, ``GHCB_FW_THREAD_*``: its CCX, whether its core is the
        first there, SNPEn, VM_HSAVE_PA, offline.
    n_ccxs : int
        1 to ``GHCB_FW_MAX_CCXS``. A CCX without threads holds no flush up.
    max_asid : int
        1 to 1006.
    n_guests : int
        Slots: handles of SEV and contexts of SNP together; 1 to ``GHCB_FW_MAX_GUESTS``.
    first_sev_asid : int
        From here on ASIDs are for SEV, below for SEV-ES and SNP; 1 to ``max_asid + 1``.
    rules : int
        ``GHCB_FW_RULE_*``.

    Raises
    ------
    OutOfRange
        A number that is not possible, or a thread of a CCX that is none; the text names it.
    """

    cdef readonly Py_ssize_t n_machines, n_threads, n_ccxs, max_asid, n_guests, first_sev_asid, rules
    cdef Py_ssize_t n_words, keys_at, guests_at, cells_at, threads_at, n_bitmap
    cdef uint64_t[:, ::1] memory
    cdef object _words, _lock

    def __init__(self, threads, n_ccxs, max_asid, n_guests, *, first_sev_asid=1, rules=0, n_machines=1):
        if self._lock is not None:
            raise _errors.StateConflict("Machines are made once")
        given = _np.array(threads, dtype=_np.uint64, ndmin=1)
        self.n_threads = _bounded(len(given), "threads", clib.GHCB_MAX_CPUS, 1)
        self.n_ccxs = _bounded(n_ccxs, "n_ccxs", clib.GHCB_FW_MAX_CCXS, 1)
        self.max_asid = _bounded(max_asid, "max_asid", clib.GHCB_KEY_SLOT_LAST_ASID, 1)
        self.n_guests = _bounded(n_guests, "n_guests", clib.GHCB_FW_MAX_GUESTS, 1)
        self.first_sev_asid = _bounded(first_sev_asid, "first_sev_asid", self.max_asid + 1, 1)
        self.rules = _bounded(rules, "rules", 7)
        self.n_machines = _bounded(n_machines, "n_machines", 1 << 30, 1)
        allowed = sum(1 << bit for bit in (
            clib.GHCB_FW_THREAD_OFFLINE_SHIFT, clib.GHCB_FW_THREAD_SNP_EN_SHIFT,
            clib.GHCB_FW_THREAD_HSAVE_SHIFT, clib.GHCB_FW_THREAD_FIRST_SHIFT))
        ccx_mask = ((1 << clib.GHCB_FW_THREAD_CCX_WIDTH) - 1) << clib.GHCB_FW_THREAD_CCX_SHIFT
        for i, word in enumerate(given.tolist()):
            ccx = (word & ccx_mask) >> clib.GHCB_FW_THREAD_CCX_SHIFT
            if word & ~(allowed | ccx_mask) or ccx >= self.n_ccxs:
                raise _errors.OutOfRange(f"threads[{i}] = {word:#x}: CCX {ccx} of {self.n_ccxs}, or other bits")
        self.n_bitmap = clib.ghcb_fw_n_bitmap(self.max_asid)
        self.keys_at = 1
        self.guests_at = self.keys_at + self.n_bitmap
        self.cells_at = self.guests_at + self.n_guests
        self.threads_at = self.cells_at + self.max_asid
        self.n_words = self.threads_at + self.n_threads * (1 + self.n_bitmap)
        self._words = _np.zeros((self.n_machines, self.n_words), _np.uint64)
        self._words[:, 0] = 1 << clib.GHCB_FW_REBUILD_SHIFT
        self._words[:, self.threads_at :: 1 + self.n_bitmap] = given
        self.memory = self._words
        self._lock = _Lock()
        cdef ghcb_fw_t fw
        cdef Py_ssize_t i_machine, i_thread
        for i_machine in range(self.n_machines):
            self.at(i_machine, &fw)
            for i_thread in range(self.n_threads):
                clib.ghcb_fw_invalidate_all(&fw, fw.boot + i_thread * fw.stride)

    cdef void at(self, Py_ssize_t machine, ghcb_fw_t *fw) noexcept nogil:
        cdef uint64_t *words = &self.memory[machine, 0]
        fw.state = words
        fw.keys = words + self.keys_at
        fw.guests = words + self.guests_at
        fw.cells = words + self.cells_at
        fw.boot = words + self.threads_at
        fw.stride = 1 + self.n_bitmap
        fw.others = fw.boot + fw.stride
        fw.n_others = self.n_threads - 1
        fw.n_guests = self.n_guests
        fw.n_ccxs = self.n_ccxs
        fw.max_asid = self.max_asid
        fw.first_sev_asid = self.first_sev_asid
        fw.n_bitmap = self.n_bitmap
        fw.rules = self.rules

    def apply(self, steps):
        """Give steps to the machines, in order; return what was answered.

        Parameters
        ----------
        steps : array of STEP_DTYPE, shape (m,) or (n_machines, m)
            The same for every machine, or each its own. ``step`` is one of ``GHCB_FW_STEP_*``,
            ``thread`` who does it: a number, or ``GHCB_FW_ALL_THREADS`` for WBINVD and WBNOINVD.

        Returns
        -------
        array of ANSWER_DTYPE, shape (n_machines, m)
            ``status`` of each; of what a thread does 0 or ``GHCB_FW_IMPOSSIBLE``. ``kind`` and ``arg``:
            the check that answered, 0 if none did. A command of which no source says what it
            checks is ``GHCB_FW_UNMODELLED`` and changes nothing.

        Raises
        ------
        OutOfRange
            A step or thread that is none, or a bit of ``bad`` that is none; nothing has happened.
        ValueError
            Another shape.

        Notes
        -----
        Releases the GIL.
        """
        given = _np.ascontiguousarray(steps, dtype=STEP_DTYPE)
        if given.ndim == 1:
            rows = given.reshape(1, -1)
        elif given.ndim == 2 and given.shape[0] == self.n_machines:
            rows = given
        else:
            raise ValueError(f"steps of shape {given.shape}: must be (m,) or ({self.n_machines}, m)")
        self._check(rows)
        answers = _np.zeros((self.n_machines, rows.shape[1]), ANSWER_DTYPE)
        if not rows.shape[1]:
            return answers
        cdef const ghcb_fw_step_t[:, ::1] todo = rows
        cdef ghcb_fw_answer_t[:, ::1] into = answers
        cdef Py_ssize_t i, j, m = rows.shape[1], each = 1 if rows.shape[0] == self.n_machines else 0
        cdef ghcb_fw_t fw
        with self._lock, nogil:
            for i in range(self.n_machines):
                self.at(i, &fw)
                for j in range(m):
                    clib.ghcb_fw_step(&fw, &todo[i * each, j], &into[i, j])
        return answers

    def _check(self, rows):
        for name, wrong in (
            ("step", rows["step"] >= clib.GHCB_FW_STEP_END),
            ("thread", (rows["step"] != clib.GHCB_FW_STEP_COMMAND) & (rows["thread"] >= self.n_threads)
                & ~((rows["thread"] == clib.GHCB_FW_ALL_THREADS)
                    & ((rows["step"] == clib.GHCB_FW_STEP_WBINVD) | (rows["step"] == clib.GHCB_FW_STEP_WBNOINVD)))),
        ):
            if wrong.any():
                row, at = _np.argwhere(wrong)[0].tolist()
                raise _errors.OutOfRange(f"steps[{at}].{name} = {int(rows[name][row, at]):#x}")
        bits = rows["op"]["bad"] >> _np.uint64(clib.GHCB_FW_N_BADS)
        if bits.any():
            _, at = _np.argwhere(bits)[0].tolist()
            raise _errors.OutOfRange(f"steps[{at}].op.bad: bits that mean nothing")
        above = rows["op"]["limit"] > self.max_asid
        if above.any():
            _, at = _np.argwhere(above)[0].tolist()
            raise _errors.OutOfRange(f"steps[{at}].op.limit: must be 0 to {self.max_asid}")

    def reach_options(self):
        """Return what a place of a flow has as its ``options`` to be built like these machines.

        Raises
        ------
        OutOfRange
            More guests or ASIDs than fit there.
        """
        cdef ghcb_fw_t fw
        _bounded(self.max_asid, "max_asid", clib.GHCB_FW_REACH_LAST_ASID)
        _bounded(self.n_guests, "n_guests", clib.GHCB_FW_REACH_LAST_GUEST)
        self.at(0, &fw)
        return clib.ghcb_fw_reach_options(&fw)

    @property
    def state(self):
        """The platforms' words, ``GHCB_FW_*_SHIFT``: shape (n_machines,), a copy."""
        return self._words[:, 0].copy()

    @property
    def keys(self):
        """Bit ``a`` of a machine's bitmap: a key is installed for ASID ``a``; (n_machines, n), a copy."""
        return self._words[:, self.keys_at : self.guests_at].copy()

    @property
    def guests(self):
        """A word for each slot, ``GHCB_FW_GUEST_*``: shape (n_machines, n_guests), a copy."""
        return self._words[:, self.guests_at : self.cells_at].copy()

    @property
    def cells(self):
        """A word for each ASID from 1 on, two bits for each CCX: shape (n_machines, max_asid), a copy."""
        return self._words[:, self.cells_at : self.threads_at].copy()

    @property
    def threads(self):
        """A word for each thread, ``GHCB_FW_THREAD_*``: shape (n_machines, n_threads), a copy."""
        return self._words[:, self.threads_at :: 1 + self.n_bitmap].copy()

    @property
    def invalid(self):
        """ASIDs that a thread may not run, one bit each: (n_machines, n_threads, n), a copy."""
        rows = self._words[:, self.threads_at :].reshape(self.n_machines, self.n_threads, -1)
        return rows[:, :, 1:].copy()

    def set_thread(self, thread, flag, value):
        """Set or clear one bit of a thread of every machine: what no command does.

        ``flag`` is ``GHCB_FW_THREAD_OFFLINE_SHIFT``, ``_SNP_EN_SHIFT`` or ``_HSAVE_SHIFT``.
        """
        i = _bounded(thread, "thread", self.n_threads - 1)
        bit = _index(flag)
        if bit not in (clib.GHCB_FW_THREAD_OFFLINE_SHIFT, clib.GHCB_FW_THREAD_SNP_EN_SHIFT,
                       clib.GHCB_FW_THREAD_HSAVE_SHIFT):
            raise _errors.OutOfRange(f"flag = {bit}")
        mask = _np.uint64(1 << bit)
        with self._lock:
            words = self._words[:, self.threads_at + i * (1 + self.n_bitmap)]
            words |= mask
            if not value:
                words ^= mask


cdef uint64_t _bounded(object value, str name, object largest, object smallest=0) except? 0:
    number = _index(value)
    if not smallest <= number <= largest:
        raise _errors.OutOfRange(f"{name} = {number}: must be {smallest} to {largest}")
    return number
