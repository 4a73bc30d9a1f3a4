"""The host from Python: one VM, its vCPUs, and what KVM answers to them.

A thin face over ``ghcbcore.host``: names instead of numbers, and exceptions where the VM ends.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghcbcore import errors
from ghcbcore import host as _core
from ghcbcore._cffi import lib
from ghcbcore.msr import decode_one

__all__ = ["Entry", "Event", "Guest", "Hold", "Host", "MpState", "Vcpu", "VmEnded"]


class Guest(enum.IntEnum):
    """Kind of guest."""

    PLAIN = lib.GHCB_GUEST_PLAIN
    SEV_ES = lib.GHCB_GUEST_SEV_ES


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


class VmEnded(errors.SevError):
    """A VMGEXIT went to user space; ``event`` says as what, ``data`` is what user space is told."""

    def __init__(self, event: Event, data: int) -> None:
        super().__init__(f"KVM_RUN returned to user space: {event.name}, data {data:#x}")
        self.event = event
        self.data = data


@dataclass(frozen=True)
class Vcpu:
    """A vCPU's state as the host has it."""

    msr: int
    mp_state: MpState
    hold: Hold
    entry: Entry


class Host:
    """One VM of a KVM host.

    Parameters
    ----------
    cpus : int
        1 to 8192.
    guest : Guest
    min_version, max_version, c_bit, hv_features, cpuid
        See ``ghcbcore.host.Profile``.

    Examples
    --------
    >>> host = Host(cpus=2)
    >>> hex(host.vmgexit(0, 0x002))
    '0x2000133000001'
    >>> hex(host.vmgexit(1, 0x006)), host.vcpu(1).mp_state.name
    ('0x7', 'AP_RESET_HOLD')
    """

    def __init__(
        self,
        cpus: int = 1,
        *,
        guest: Guest = Guest.SEV_ES,
        min_version: int = 1,
        max_version: int = 2,
        c_bit: int = 51,
        hv_features: int = 3,
        cpuid: Iterable[tuple[int, int, int, int, int, int]] = (),
    ) -> None:
        profile = _core.Profile(
            guest=guest,
            min_version=min_version,
            max_version=max_version,
            c_bit=c_bit,
            hv_features=hv_features,
            cpuid=tuple(cpuid),
        )
        self.core = _core.Host(profile, cpus)

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
            The event goes to user space: this host has no devices.
        TypeError
            The page cannot be written to.
        """
        view = np.frombuffer(page, dtype=np.uint8)
        if not view.flags.writeable:
            raise TypeError("page: it is answered in place and must be writable")
        self.core.page(cpu, view, gpa)
        self._ended(0)

    def send_init(self, cpu: int) -> None:
        """INIT is latched in the vCPU's APIC, and the vCPU takes it."""
        self.core.call(cpu, lib.GHCB_CALL_SEND_INIT)
        self.core.call(cpu, lib.GHCB_CALL_INIT)

    def send_startup(self, cpu: int, vector: int) -> None:
        """STARTUP is latched in the vCPU's APIC, and the vCPU takes it."""
        if not 0 <= vector <= 0xFF:
            raise errors.OutOfRange(f"vector {vector:#x}: more than 8 bits")
        self.vcpu(cpu)  # refuses one that is not there
        self.core.vcpus["sipi_vector"][cpu] = vector
        self.core.call(cpu, lib.GHCB_CALL_SEND_SIPI)
        self.core.call(cpu, lib.GHCB_CALL_SIPI)

    def send_nmi(self, cpu: int) -> None:
        """An NMI wakes a vCPU that sleeps, a held one included."""
        self.core.call(cpu, lib.GHCB_CALL_NMI)

    def take_nmi(self, cpu: int) -> None:
        """The guest takes its NMI; until then neither HLT nor a hold puts the vCPU to sleep."""
        self.vcpu(cpu)
        self.core.vcpus["nmi_pending"][cpu] = 0

    def halt(self, cpu: int) -> None:
        """The vCPU executed HLT."""
        self.core.call(cpu, lib.GHCB_CALL_HLT)

    def _ended(self, msr: int) -> None:
        event = Event(int(self.core.vm["event"][0]))
        if event is Event.NONE:
            return
        if event is Event.SEV_TERM and msr & lib.GHCB_MSR_INFO_MASK == lib.GHCB_MSR_TERM_REQ:
            asked = decode_one(msr)
            raise errors.Terminated(asked.a, asked.b)
        raise VmEnded(event, int(self.core.vm["event_data"][0]))


def _as(name: str, values: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """Return integers as a contiguous array of ``dtype``; a value that does not fit is refused."""
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iuO":
        raise TypeError(f"{name}: {array.dtype} is not a type of integers")
    limit = int(np.iinfo(dtype).max)
    for i, value in enumerate(array.ravel().tolist() if array.dtype != dtype else ()):
        if not 0 <= value <= limit:
            raise errors.OutOfRange(f"{name}[{i}]: {value:#x} is not in 0..{limit:#x}")
    return np.ascontiguousarray(array, dtype=dtype)
