"""The world around a VM in Python: override what the guest may reach.

A method that a subclass does not override is as if there were no device for it: port, MMIO and MSR
accesses end the run, a page state change is refused, a hypercall gets KVM's own answer, a guest
request the hypervisor's failure.
"""

from __future__ import annotations

from ghcbcore import device as _core
from ghcbcore._cffi import lib

__all__ = ["Device", "GuestMemory"]

PAGE = lib.GHCB_PAGE_SIZE


class Device:
    """Base class of devices. ``None`` from a method refuses: the guest sees no device, or #GP.

    Examples
    --------
    >>> class Serial(Device):
    ...     text = ""
    ...     def io_write(self, port, size, value):
    ...         self.text += chr(value)
    ...         return True
    """

    def io_read(self, port: int, size: int) -> int | None:
        """IN: return the value that port ``port`` has, of ``size`` bytes."""
        raise NotImplementedError

    def io_write(self, port: int, size: int, value: int) -> bool | None:
        """OUT: take a value of ``size`` bytes."""
        raise NotImplementedError

    def mmio_read(self, gpa: int, size: int) -> bytes | None:
        """Return ``size`` bytes from address ``gpa``."""
        raise NotImplementedError

    def mmio_write(self, gpa: int, data: bytes) -> bool | None:
        """Take bytes at address ``gpa``."""
        raise NotImplementedError

    def rdmsr(self, msr: int) -> int | None:
        """Return the value of an MSR."""
        raise NotImplementedError

    def wrmsr(self, msr: int, value: int) -> bool | None:
        """Set an MSR."""
        raise NotImplementedError

    def rdpmc(self, counter: int) -> int | None:
        """Return a performance counter."""
        raise NotImplementedError

    def vmmcall(self, cpu: int, number: int, args: tuple[int, ...]) -> int | None:
        """Return rax of a hypercall; ``args`` are rbx, rcx, rdx, rsi."""
        raise NotImplementedError

    def map_gpa(self, gpa: int, n_pages: int, private: bool, large: bool) -> bool | None:
        """Grant a page state change of ``n_pages`` pages of 4 KiB."""
        raise NotImplementedError

    def guest_request(self, request_gpa: int, response_gpa: int) -> int | None:
        """Return the firmware's status (low half) and the hypervisor's (high half)."""
        raise NotImplementedError

    def ext_guest_request(
        self, request_gpa: int, response_gpa: int, data_gpa: int, n_pages: int
    ) -> tuple[int, int] | None:
        """Return what ``guest_request`` does, and rbx: how many pages the certificates need.

        Only requests for a report come here. Without this method they are given an empty table of
        certificates and go to ``guest_request``, as all other messages do.
        """
        raise NotImplementedError

    def ipi(self, cpu: int, icr: int) -> bool | None:
        """Take an interrupt command that no vCPU's state answers."""
        raise NotImplementedError

    def read_memory(self, gpa: int, n_bytes: int) -> bytes | None:
        """Return shared guest memory."""
        raise NotImplementedError

    def write_memory(self, gpa: int, data: bytes) -> bool | None:
        """Write shared guest memory."""
        raise NotImplementedError

    def _has(self, *names: str) -> bool:
        return any(getattr(type(self), name) is not getattr(Device, name) for name in names)

    def core(self) -> _core.Device:
        """Return the core's device that leads here; it keeps this object alive."""
        kinds = [kind for kind, names in _METHODS.items() if self._has(*names)]
        memory = self._memory if self._has("read_memory", "write_memory") else None
        return _core.Device(kinds, self._access if kinds else None, memory)

    def _memory(self, gpa: int, data: bytes | bytearray, is_write: bool) -> bool:
        if is_write:
            return self._has("write_memory") and bool(self.write_memory(gpa, bytes(data)))
        got = self.read_memory(gpa, len(data)) if self._has("read_memory") else None
        if got is None:
            return False
        assert isinstance(data, bytearray)
        data[:] = got
        return True

    def _access(
        self,
        kind: int,
        cpu: int,
        address: int,
        is_write: bool,
        size: int,
        count: int,
        args: tuple[int, int, int, int],
        data: bytes | bytearray | None,
    ) -> int | tuple[int, int] | None:
        names = _METHODS[kind]
        if not self._has(names[is_write and len(names) > 1]):
            return None
        if kind == lib.GHCB_ACCESS_IO:
            return self._io(address, is_write, size, count, data)
        if kind == lib.GHCB_ACCESS_MMIO:
            return self._mmio(address, data)
        if kind == lib.GHCB_ACCESS_MSR:
            return _done(self.wrmsr(address, args[0])) if is_write else self.rdmsr(address)
        if kind == lib.GHCB_ACCESS_PMC:
            return self.rdpmc(address)
        if kind == lib.GHCB_ACCESS_VMMCALL:
            return self.vmmcall(cpu, address, args)
        if kind == lib.GHCB_ACCESS_MAP_GPA:
            return _done(self.map_gpa(address, count, bool(args[1]), bool(args[2])))
        if kind == lib.GHCB_ACCESS_GUEST_REQUEST:
            return self.guest_request(address, args[0])
        if kind == lib.GHCB_ACCESS_EXT_GUEST_REQUEST:
            return self.ext_guest_request(address, args[0], args[1], args[2])
        return _done(self.ipi(cpu, address))

    def _io(
        self, port: int, is_write: bool, size: int, count: int, data: bytes | bytearray | None
    ) -> int | None:
        for at in range(0, size * count, size):
            assert data is not None
            if is_write:
                if not self.io_write(port, size, int.from_bytes(data[at : at + size], "little")):
                    return None
                continue
            value = self.io_read(port, size)
            if value is None:
                return None
            assert isinstance(data, bytearray)
            data[at : at + size] = value.to_bytes(size, "little")
        return 0

    def _mmio(self, gpa: int, data: bytes | bytearray | None) -> int | None:
        if isinstance(data, bytearray):
            got = self.mmio_read(gpa, len(data))
            if got is None:
                return None
            data[:] = got
            return 0
        return _done(self.mmio_write(gpa, data or b""))


_METHODS = {
    lib.GHCB_ACCESS_IO: ("io_read", "io_write"),
    lib.GHCB_ACCESS_MMIO: ("mmio_read", "mmio_write"),
    lib.GHCB_ACCESS_MSR: ("rdmsr", "wrmsr"),
    lib.GHCB_ACCESS_MAP_GPA: ("map_gpa",),
    lib.GHCB_ACCESS_VMMCALL: ("vmmcall",),
    lib.GHCB_ACCESS_GUEST_REQUEST: ("guest_request",),
    lib.GHCB_ACCESS_EXT_GUEST_REQUEST: ("ext_guest_request",),
    lib.GHCB_ACCESS_PMC: ("rdpmc",),
    lib.GHCB_ACCESS_IPI: ("ipi",),
}


def _done(granted: bool | None) -> int | None:
    return 0 if granted else None


class GuestMemory(Device):
    """Shared memory of a guest, kept by page: what was never written reads as zeros.

    Parameters
    ----------
    size_bytes : int
        Addresses from here on are not there.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.pages: dict[int, bytearray] = {}

    def read_memory(self, gpa: int, n_bytes: int) -> bytes | None:
        if gpa + n_bytes > self.size_bytes:
            return None
        out = bytearray()
        while len(out) < n_bytes:
            page, at = divmod(gpa + len(out), PAGE)
            out += self.pages.get(page, bytes(PAGE))[at : at + n_bytes - len(out)]
        return bytes(out)

    def write_memory(self, gpa: int, data: bytes) -> bool | None:
        if gpa + len(data) > self.size_bytes:
            return None
        done = 0
        while done < len(data):
            page, at = divmod(gpa + done, PAGE)
            part = data[done : done + PAGE - at]
            self.pages.setdefault(page, bytearray(PAGE))[at : at + len(part)] = part
            done += len(part)
        return True
