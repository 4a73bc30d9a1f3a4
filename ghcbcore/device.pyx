"""The world around a VM, as its host asks for it: ports, MMIO, MSRs, memory, firmware.

A ``Device`` is a ``ghcb_device_t`` (``ghcbcore/host.h``): a set of kinds and two functions. They are
Python functions, or C functions of somebody else's struct. What is not in the set is as if there were
no device for it.
"""

from operator import index as _index

from ghcbcore import errors as _errors

cimport cython
from ghcbcore cimport clib
from ghcbcore.clib cimport ghcb_access_t, ghcb_device_t
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.string cimport memcpy

__all__ = ["Device"]

cdef uint64_t LOW = <uint64_t> 0xFFFFFFFFFFFFFFFF


cdef int access_of(void *self, ghcb_access_t *access) noexcept nogil:
    with gil:
        return (<Device> self)._ask(access)


cdef int memory_of(void *self, uint64_t gpa, uint8_t *data, uint64_t n_bytes, int is_write) noexcept nogil:
    with gil:
        return (<Device> self)._touch(gpa, data, n_bytes, is_write)


@cython.final
cdef class Device:
    """Device(kinds, access=None, memory=None)\n--\n
    Parameters
    ----------
    kinds : iterable of int
        ``GHCB_ACCESS_*``: what ``access`` answers.
    access : callable, optional
        ``access(kind, cpu, address, is_write, size_bytes, count, args, data)``. ``args`` is a tuple
        of four integers, ``data`` the ``size_bytes * count`` bytes that the guest writes, a bytearray
        of as many to fill if it reads, or None. Returns None to refuse, else the result: an integer
        of 64 bits (a negative one as two's complement), or two of them. What each means: ``GHCB_ACCESS_*``.
    memory : callable, optional
        ``memory(gpa, data, is_write)``: copy from ``data`` (bytes) into guest memory, or from there
        into ``data`` (a bytearray); True if that worked.

    Notes
    -----
    An exception in either is raised by the method of ``Host`` that led to the call; the guest's
    request counts as refused.
    """

    def __init__(self, kinds, access=None, memory=None):
        cdef uint64_t wanted = 0
        for kind in kinds:
            n = _index(kind)
            if not 0 <= n < clib.GHCB_ACCESS_END:
                raise _errors.OutOfRange(f"kinds: {n} is not in 0..{clib.GHCB_ACCESS_END - 1}")
            wanted |= <uint64_t> 1 << <int> n
        if wanted and access is None:
            raise TypeError("access: kinds without a function that answers them")
        self.c.self = <void *> self
        self.c.kinds = wanted
        self._access = access
        self._memory = memory
        self.c.access = NULL
        self.c.memory = NULL
        if access is not None:
            self.c.access = access_of
        if memory is not None:
            self.c.memory = memory_of

    @staticmethod
    def from_address(address, owner=None):
        """Return a device of C functions: the ``ghcb_device_t`` at ``address``, which is copied.

        ``owner`` is kept alive as long as the device; whoever has the address answers for the rest.
        """
        number = _index(address)
        if number <= 0 or number >> 64:
            raise _errors.OutOfRange(f"address {number:#x}: no device is there")
        cdef uintptr_t at = number
        cdef Device device = Device(())
        device.c = (<ghcb_device_t *> at)[0]
        device._owner = owner
        return device

    def _fail(self, error):
        if self.error is None:
            self.error = error

    cdef int settle(self) except -1:
        """Raise what a Python function raised meanwhile."""
        error, self.error = self.error, None
        if error is not None:
            raise error
        return 0

    cdef int _ask(self, ghcb_access_t *access) noexcept:
        cdef uint64_t n_bytes = access.size_bytes * access.count
        data = None
        try:
            if access.data != NULL:
                data = access.data[:n_bytes] if access.is_write else bytearray(n_bytes)
            got = self._access(
                access.kind, access.cpu, access.address, bool(access.is_write), access.size_bytes,
                access.count, (access.arg[0], access.arg[1], access.arg[2], access.arg[3]), data,
            )
            if got is None:
                return 1
            if isinstance(got, tuple):
                if len(got) != 2:
                    raise TypeError(f"access: {len(got)} results, must be one or two")
                access.result, access.result2 = word(got[0]), word(got[1])
            else:
                access.result = word(got)
            if isinstance(data, bytearray):
                give_back("access", data, access.data, n_bytes)
            return 0
        except BaseException as error:
            self._fail(error)
            return 1

    cdef int _touch(self, uint64_t gpa, uint8_t *memory, uint64_t n_bytes, int is_write) noexcept:
        try:
            data = memory[:n_bytes] if is_write else bytearray(n_bytes)
            if not self._memory(gpa, data, bool(is_write)):
                return 1
            if not is_write:
                give_back("memory", data, memory, n_bytes)
            return 0
        except BaseException as error:
            self._fail(error)
            return 1


cdef uint64_t word(result) except? 0:
    number = _index(result)
    if not -(1 << 63) <= number < 1 << 64:
        raise _errors.OutOfRange(f"access: result {number:#x} does not fit 64 bits")
    return number & LOW


cdef int give_back(name, bytearray data, uint8_t *to, uint64_t n_bytes) except -1:
    # a copy, not a view: whoever keeps what he was handed keeps nothing that goes away
    if <uint64_t> len(data) != n_bytes:
        raise _errors.OutOfRange(f"{name}: {len(data)} bytes came back for {n_bytes}")
    memcpy(to, <const char *> data, n_bytes)
    return 0
