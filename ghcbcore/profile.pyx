"""What a host is configured to be: the constants from which its answers follow.

The default is KVM of Linux 7.0. Hosts that differ know other requests (``msr_functions``,
``nae_events``) and follow other rules (``GHCB_RULE_*`` of ``ghcbcore/host.h``); a hostile one has faults
(``GHCB_FAULT_*`` of ``ghcbcore/hostile.h``), a seed and a rate. Hosts by name: ``pysev.tables.hosts``.
"""

from operator import index as _index

import numpy as _np

from ghcbcore import errors as _errors

cimport cython
from ghcbcore cimport clib
from ghcbcore.clib cimport ghcb_cpuid_entry_t
from libc.stdint cimport uint64_t

__all__ = ["CPUID_DTYPE", "KVM_MSR_FUNCTIONS", "KVM_NAE_EVENTS", "Profile"]

cdef ghcb_cpuid_entry_t _entry
CPUID_DTYPE = _np.asarray(<ghcb_cpuid_entry_t[:1]> &_entry).dtype

KVM_MSR_FUNCTIONS = tuple(
    [
        clib.ghcb_msr_rows[i].code
        for i in range(clib.GHCB_MSR_N_ROWS)
        if clib.ghcb_kvm_msr_functions() >> i & 1
    ]
)
KVM_NAE_EVENTS = tuple(
    [
        clib.ghcb_nae_rows[i].code
        for i in range(clib.GHCB_NAE_N_ROWS)
        if clib.ghcb_kvm_nae_events() >> i & 1
    ]
)


cdef uint64_t msr_bit(code) except 0:
    cdef Py_ssize_t i
    for i in range(clib.GHCB_MSR_N_ROWS):
        # the row of code 0 is that of an address, which is no request of the MSR protocol
        if code and clib.ghcb_msr_rows[i].code == code and not clib.ghcb_msr_rows[i].is_answer:
            return <uint64_t> 1 << i
    raise _errors.UnknownCode(f"msr_functions: {code:#x} is not a request of the protocol")


cdef uint64_t nae_bit(code) except 0:
    cdef unsigned int row = clib.GHCB_NAE_NO_ROW
    if 0 <= code < 1 << 64:
        row = clib.ghcb_nae_index(code)
    if row == clib.GHCB_NAE_NO_ROW:
        raise _errors.UnknownCode(f"nae_events: {code:#x} is not an event of the protocol")
    return <uint64_t> 1 << row


cdef uint64_t bits(name, numbers, int end) except? 0:
    cdef uint64_t mask = 0
    for number in numbers:
        n = _index(number)
        if not 0 <= n < end:
            raise _errors.OutOfRange(f"{name}: {n} is not in 0..{end - 1}")
        mask |= <uint64_t> 1 << <int> n
    return mask


cdef uint64_t within(name, value, low, high) except? 0:
    number = _index(value)
    if not low <= number <= high:
        raise _errors.OutOfRange(f"{name} {number:#x}: not in {low:#x}..{high:#x}")
    return number


cdef cpuid_rows(entries):
    # numpy would take 1.5 for 1
    rows = []
    for i, entry in enumerate(entries):
        row = tuple([within(f"cpuid[{i}]", value, 0, (1 << 32) - 1) for value in entry])
        if len(row) != len(CPUID_DTYPE):
            raise ValueError(f"cpuid[{i}]: {len(row)} numbers, must be {len(CPUID_DTYPE)}")
        rows.append(row)
    return rows


@cython.final
cdef class Profile:
    """Profile(*, guest=..., min_version=1, max_version=2, c_bit=51, hv_features=3, \
sev_features=None, rules=(), msr_functions=None, nae_events=None, cpuid=(), faults=(), fault_seed=0, \
fault_rate=1)\n--\n
    Parameters
    ----------
    guest : int
        ``GHCB_GUEST_PLAIN``, ``GHCB_GUEST_SEV_ES`` (the default) or ``GHCB_GUEST_SNP``.
    min_version, max_version : int
        Protocol versions, 1 to 65535.
    c_bit : int
        Position of the C-bit in a page table entry, 0 to 63.
    hv_features : int
        Bitmap of 52 bits; KVM has SNP and AP creation (3).
    sev_features : int, optional
        SEV_FEATURES of the VM, which an AP creation must repeat. Default: SNP (1) if it is one.
    rules : iterable of int
        ``GHCB_RULE_*``: in what this host differs from KVM.
    msr_functions, nae_events : iterable of int, optional
        Codes of the requests that the host knows. Default: ``KVM_MSR_FUNCTIONS``, ``KVM_NAE_EVENTS``.
    cpuid : sequence of (function, index, eax, ebx, ecx, edx)
        Integers of 32 bits. What CPUID answers; everything else is answered with zeros. A function that is listed
        once, with index 0, has no sub-leaves: it is answered whatever the index is.
    faults : iterable of int
        ``GHCB_FAULT_*``: what goes wrong, one time in ``fault_rate``.
    fault_seed : int
        64 bits. The same requests meet the same faults.
    fault_rate : int
        1 (always) to 2**32 - 1.

    Raises
    ------
    OutOfRange
        A value does not fit.
    UnknownCode
        A code is not a request of the protocol.
    ValueError
        An entry of ``cpuid`` does not have six numbers.
    StateConflict
        ``__init__`` was called again: hosts use the profile as it is.
    """

    def __init__(
        self,
        *,
        guest=clib.GHCB_GUEST_SEV_ES,
        min_version=clib.GHCB_KVM_MIN_VERSION,
        max_version=clib.GHCB_KVM_MAX_VERSION,
        c_bit=clib.GHCB_KVM_C_BIT,
        hv_features=clib.GHCB_HV_FEATURES_KVM,
        sev_features=None,
        rules=(),
        msr_functions=None,
        nae_events=None,
        cpuid=(),
        faults=(),
        fault_seed=0,
        fault_rate=1,
    ):
        if self.cpuid is not None:
            raise _errors.StateConflict("this profile exists already")
        guest, min_version, max_version = _index(guest), _index(min_version), _index(max_version)
        if guest not in (clib.GHCB_GUEST_PLAIN, clib.GHCB_GUEST_SEV_ES, clib.GHCB_GUEST_SNP):
            raise _errors.OutOfRange(f"guest {guest}: no such kind")
        if not 1 <= min_version <= max_version < 1 << 16:
            raise _errors.OutOfRange(f"versions {min_version}..{max_version}: not a range in 1..65535")
        if sev_features is None:
            sev_features = 1 if guest == clib.GHCB_GUEST_SNP else 0
        rows = _np.array(cpuid_rows(cpuid), dtype=CPUID_DTYPE)
        rows.flags.writeable = False
        cdef const ghcb_cpuid_entry_t[::1] table = rows
        self.c.guest = guest
        self.c.min_version = min_version
        self.c.max_version = max_version
        self.c.c_bit = within("c_bit", c_bit, 0, 63)
        self.c.hv_features = within("hv_features", hv_features, 0, (1 << 52) - 1)
        self.c.sev_features = within("sev_features", sev_features, 0, (1 << 64) - 1)
        self.c.rules = bits("rules", rules, clib.GHCB_RULE_END)
        self.c.msr_functions = 0
        for code in KVM_MSR_FUNCTIONS if msr_functions is None else msr_functions:
            self.c.msr_functions |= msr_bit(_index(code))
        self.c.nae_events = 0
        for code in KVM_NAE_EVENTS if nae_events is None else nae_events:
            self.c.nae_events |= nae_bit(_index(code))
        self.c.n_cpuid = <uint64_t> table.shape[0]
        self.c.cpuid = &table[0] if table.shape[0] else NULL
        self.c.faults = bits("faults", faults, clib.GHCB_FAULT_END)
        self.c.fault_seed = within("fault_seed", fault_seed, 0, (1 << 64) - 1)
        self.c.fault_rate = within("fault_rate", fault_rate, 1, (1 << 32) - 1)
        # a view: nobody can resize it, and the hosts have its address
        self.cpuid = rows.view()
        self._table = rows

    @property
    def guest(self):
        return self.c.guest

    @property
    def rules(self):
        """The rules as a mask of ``1 << GHCB_RULE_*``."""
        return self.c.rules
