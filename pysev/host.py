"""The host from Python: one VM, its vCPUs, and what KVM answers to them.

A thin face over ``ghcbcore.host``: names instead of numbers, and exceptions where the VM ends.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from ghcbcore import errors
from ghcbcore import host as _core
from ghcbcore._cffi import lib
from ghcbcore.msr import decode_one
from ghcbcore.profile import KVM_MSR_FUNCTIONS, KVM_NAE_EVENTS, Profile

from .device import Device
from .tables.hosts import FAULTS, HOSTS

__all__ = ["Entry", "Event", "Guest", "Hold", "Host", "MpState", "Vcpu", "VmEnded"]


class Guest(enum.IntEnum):
    """Kind of guest."""

    PLAIN = lib.GHCB_GUEST_PLAIN
    SEV_ES = lib.GHCB_GUEST_SEV_ES
    SNP = lib.GHCB_GUEST_SNP


class MpState(enum.IntEnum):
    """What KVM_GET_MP_STATE reports; the numbers are Linux's."""

    RUNNABLE = lib.GHCB_MP_RUNNABLE
    UNINITIALIZED = lib.GHCB_MP_UNINITIALIZED
    INIT_RECEIVED = lib.GHCB_MP_INIT_RECEIVED
    HALTED = lib.GHCB_MP_HALTED
    AP_RESET_HOLD = lib.GHCB_MP_AP_RESET_HOLD


class Hold(enum.IntEnum):
    """How a vCPU asked to be held, and so where the answer goes."""

    NONE = lib.GHCB_HOLD_NONE
    NAE = lib.GHCB_HOLD_NAE
    MSR = lib.GHCB_HOLD_MSR


class Entry(enum.IntEnum):
    """With which registers a vCPU enters the guest after STARTUP."""

    RESUME = lib.GHCB_ENTRY_RESUME
    LAUNCH = lib.GHCB_ENTRY_LAUNCH
    VECTOR = lib.GHCB_ENTRY_VECTOR
    VMSA = lib.GHCB_ENTRY_VMSA


class Event(enum.IntEnum):
    """What went to user space and ended the run."""

    NONE = lib.GHCB_EVENT_NONE
    SEV_TERM = lib.GHCB_EVENT_SEV_TERM
    SHUTDOWN = lib.GHCB_EVENT_SHUTDOWN
    EINVAL = lib.GHCB_EVENT_EINVAL
    IO = lib.GHCB_EVENT_IO
    MMIO = lib.GHCB_EVENT_MMIO
    INTERNAL = lib.GHCB_EVENT_INTERNAL
    UNMODELLED = lib.GHCB_EVENT_UNMODELLED
    EFAULT = lib.GHCB_EVENT_EFAULT


class VmEnded(errors.SevError):
    """A VMGEXIT went to user space; ``event`` says as what, ``data`` is what user space is told."""

    def __init__(self, event: Event, data: int) -> None:
        super().__init__(f"KVM_RUN returned to user space: {event.name}, data {data:#x}")
        self.event = event
        self.data = data


@dataclass(frozen=True)
class Vcpu:
    """A vCPU's state as the host has it.

    ``registered_gpa``, ``doorbell_gpa``: of its GHCB and #HV doorbell pages, 0 for none. ``vmsa``:
    GPA of the VMSA that it runs from, 0 for that of the launch, ``GHCB_VMSA_NONE`` for none.
    ``event_inj``: what the next VMRUN injects, 0 for nothing.
    """

    msr: int
    mp_state: MpState
    hold: Hold
    entry: Entry
    registered_gpa: int
    vmsa: int
    doorbell_gpa: int
    vmpl: int
    event_inj: int


class Host:
    """One VM of a host.

    Parameters
    ----------
    cpus : int
        1 to 8192.
    guest : Guest
    host : str
        Whose host: a name of ``pysev.tables.hosts.HOSTS``.
    device : Device, optional
        The world around the VM; see ``pysev.device``.
    faults : iterable of str
        Names of ``pysev.tables.hosts.FAULTS``: what goes wrong by intention ...
    fault_rate : int
        ... one time in so many,
    seed : int
        ... chosen by this. The same requests meet the same faults.
    min_version, max_version, c_bit, hv_features, sev_features, cpuid
        See ``ghcbcore.profile.Profile``. Default: those of the host.

    Examples
    --------
    >>> host = Host(cpus=2)
    >>> hex(host.vmgexit(0, 0x002))
    '0x2000133000001'
    >>> hex(host.vmgexit(1, 0x006)), host.vcpu(1).mp_state.name
    ('0x7', 'AP_RESET_HOLD')
    >>> snp = Host(guest=Guest.SNP, host="coconut", faults=["older-version"])
    >>> hex(snp.vmgexit(0, 0x002)), snp.n_faults
    ('0x1000133000001', 1)
    """

    def __init__(
        self,
        cpus: int = 1,
        *,
        guest: Guest = Guest.SEV_ES,
        host: str = "kvm",
        device: Device | None = None,
        faults: Iterable[str] = (),
        fault_rate: int = 1,
        seed: int = 0,
        min_version: int = 1,
        max_version: int | None = None,
        c_bit: int = 51,
        hv_features: int | None = None,
        sev_features: int | None = None,
        cpuid: Iterable[tuple[int, int, int, int, int, int]] = (),
    ) -> None:
        if device is not None and not isinstance(device, Device):
            raise TypeError(f"device: {type(device).__name__} is not a pysev.Device")
        row = _named("host", host, HOSTS)
        profile = Profile(
            guest=guest,
            min_version=min_version,
            max_version=row.max_version if max_version is None else max_version,
            c_bit=c_bit,
            hv_features=row.hv_features if hv_features is None else hv_features,
            sev_features=sev_features,
            rules=row.rules,
            msr_functions=(KVM_MSR_FUNCTIONS if row.msr is None else row.msr) + row.more_msr,
            nae_events=(KVM_NAE_EVENTS if row.nae is None else row.nae) + row.more_nae,
            cpuid=tuple(cpuid),
            faults=[_named("fault", name, FAULTS).code for name in faults],
            fault_seed=seed,
            fault_rate=fault_rate,
        )
        self.device = device
        self.core = _core.Host(profile, cpus, device.core() if device is not None else None)

    @property
    def n_faults(self) -> int:
        """How many faults have happened so far."""
        return int(self.core.vm["n_faults"][0])

    @property
    def last_fault(self) -> str:
        """Name of the last fault that happened, "" if none did."""
        last = int(self.core.vm["last_fault"][0]) - 1
        return next((row.name for row in FAULTS if row.code == last), "")

    @property
    def jump_table(self) -> int:
        """GPA of the AP jump table as the guest last set it; 0 if it did not."""
        return int(self.core.vm["jump_table"][0])

    def vcpu(self, cpu: int) -> Vcpu:
        """Return a copy of a vCPU's state."""
        if not 0 <= cpu < len(self.core.vcpus):
            raise errors.OutOfRange(f"vCPU {cpu}: the VM has {len(self.core.vcpus)}")
        v = self.core.vcpus[cpu]
        return Vcpu(
            int(v["msr"]),
            MpState(int(v["mp_state"])),
            Hold(int(v["reset_hold"])),
            Entry(int(v["entry"])),
            int(v["registered_gpa"]),
            int(v["vmsa"]),
            int(v["doorbell_gpa"]),
            int(v["vmpl"]),
            int(v["event_inj"]),
        )

    def vmgexit(self, cpu: int, msr: int) -> int:
        """VMGEXIT by the MSR protocol; return the MSR after it.

        Raises
        ------
        Terminated
            The guest asked for it.
        VmEnded
            KVM ends the VM for a request that an SEV-ES guest may not make.
        StateConflict
            The VM has ended before.
        """
        answer = self.core.msr(cpu, msr)
        if self.core.event:
            self._ended(msr)
        return answer

    def vmgexit_many(self, cpus: Any, msrs: Any) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """VMGEXITs by the MSR protocol, in order; see ``ghcbcore.host.Host.msr_batch``."""
        return self.core.msr_batch(_as("cpus", cpus, np.uint32), _as("msrs", msrs, np.uint64))

    def vmgexit_page(self, cpu: int, page: Any, gpa: int) -> None:
        """VMGEXIT with a GHCB page (uint8 array, bytearray ..., 4096 bytes), answered in place.

        Raises
        ------
        VmEnded
            The event goes to user space: no device answers it, or the guest asked for the end.
        TypeError
            The page cannot be written to.
        """
        view = np.frombuffer(page, dtype=np.uint8)
        if not view.flags.writeable:
            raise TypeError("page: it is answered in place and must be writable")
        self.core.page(cpu, view, gpa)
        if self.core.event:
            self._ended(0)

    def vmgexit_pages(self, cpus: Any, pages: Any, gpas: Any) -> None:
        """VMGEXITs with GHCB pages, in order; see ``ghcbcore.host.Host.page_batch``."""
        self.core.page_batch(_as("cpus", cpus, np.uint32), pages, _as("gpas", gpas, np.uint64))

    def send_init(self, cpu: int) -> None:
        """INIT is latched in the vCPU's APIC, and the vCPU takes it."""
        self.core.call(cpu, lib.GHCB_CALL_SEND_INIT)
        self.core.call(cpu, lib.GHCB_CALL_INIT)

    def send_startup(self, cpu: int, vector: int) -> None:
        """STARTUP is latched in the vCPU's APIC, and the vCPU takes it."""
        if not 0 <= index(vector) <= 0xFF:
            raise errors.OutOfRange(f"vector {vector:#x}: more than 8 bits")
        self.vcpu(cpu)  # refuses one that is not there
        self.core.vcpus["sipi_vector"][cpu] = vector
        self.core.call(cpu, lib.GHCB_CALL_SEND_SIPI)
        self.core.call(cpu, lib.GHCB_CALL_SIPI)

    def send_nmi(self, cpu: int) -> None:
        """An NMI wakes a vCPU that sleeps, a held one included."""
        self.core.call(cpu, lib.GHCB_CALL_NMI)

    def take_nmi(self, cpu: int) -> None:
        """The guest takes its NMI; until then neither HLT nor a hold puts the vCPU to sleep.

        The next NMI waits until the guest has said NMI complete.
        """
        self.core.call(cpu, lib.GHCB_CALL_TAKE_NMI)

    def halt(self, cpu: int) -> None:
        """The vCPU executed HLT."""
        self.core.call(cpu, lib.GHCB_CALL_HLT)

    def _ended(self, msr: int) -> None:
        event = Event(self.core.event)
        if event is Event.SEV_TERM and msr & lib.GHCB_MSR_INFO_MASK == lib.GHCB_MSR_TERM_REQ:
            asked = decode_one(msr)
            raise errors.Terminated(asked.a, asked.b)
        raise VmEnded(event, int(self.core.vm["event_data"][0]))


def _named(what: str, name: str, rows: Sequence[Any]) -> Any:
    for row in rows:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in rows)
    raise errors.OutOfRange(f"{what} {name!r}: there are {known}")


def _as(name: str, values: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """Return integers as a contiguous array of ``dtype``; a value that does not fit is refused."""
    array = np.asarray(values)
    if array.size and array.dtype.kind == "f" and not isinstance(values, np.ndarray):
        array = np.asarray(values, dtype=object)  # of [1, 2**63] numpy makes floats
    if array.size and array.dtype.kind not in "iuO":
        raise TypeError(f"{name}: {array.dtype} is not a type of integers")
    limit = int(np.iinfo(dtype).max)
    for i, value in enumerate(array.ravel().tolist() if array.dtype != dtype else ()):
        if not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name}[{i}]: {type(value).__name__} is not an integer")
        if not 0 <= value <= limit:
            raise errors.OutOfRange(f"{name}[{i}]: {value:#x} is not in 0..{limit:#x}")
    return np.ascontiguousarray(array, dtype=dtype)
