"""One VM of a host: its state, the requests of its vCPUs, and the table of functions for C.

What is answered stands in ``ghcbcore/answer.h`` and ``vcpu.h``: C functions on flat state, pure, and
the only place where a request becomes an answer. They are reached by the CALL of a compiled flow, on
the words of its record; by ``Host``, one request or an array of them; and through ``Host.capsule``,
``Host.cffi`` and ``Host.ctypes`` by any other language. The state is two records (``ghcbcore/host.h``):
``ghcb_vm_t`` for the VM and ``ghcb_vcpu_t`` for each vCPU.

Source: GHCB protocol as KVM answers it (Linux 7.0, ``arch/x86/kvm/svm/sev.c``).
"""

from collections import namedtuple as _namedtuple
from operator import index as _index

import numpy as _np

from ghcbcore import errors as _errors

cimport cython
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from ghcbcore cimport clib
from ghcbcore.clib cimport ghcb_host_t, ghcb_ops_t, ghcb_vcpu_t, ghcb_vm_t
from ghcbcore.device cimport Device
from ghcbcore.profile cimport Profile
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t

__all__ = ["VCPU_DTYPE", "VM_DTYPE", "Host", "Interface"]

cdef ghcb_vm_t _vm
cdef ghcb_vcpu_t _vcpu
VM_DTYPE = _np.asarray(<ghcb_vm_t[:1]> &_vm).dtype
VCPU_DTYPE = _np.asarray(<ghcb_vcpu_t[:1]> &_vcpu).dtype

Interface = _namedtuple("Interface", ("owner", "address", "ops"))
Interface.__doc__ = """The table of functions of an object: ``ops`` is it in the words of a library.

``owner`` is the object; as long as the tuple lives, so do they all. ``address`` is that of the
``ghcb_ops_t``.
"""


cdef void host_call(const ghcb_host_t *host, ghcb_vcpu_t *vcpu, uint64_t call) noexcept nogil:
    clib.ghcb_host_call(host, vcpu, call)


# ---- what the table of functions holds; `Host` calls the same


cdef int enter(shared_t *shared) noexcept nogil:
    """Take the lock. A device that calls its own host would wait for itself."""
    cdef unsigned long me = clib.PyThread_get_thread_ident()
    if shared.owner == me:
        return clib.GHCB_E_STATE_CONFLICT
    clib.pthread_mutex_lock(&shared.lock)
    shared.owner = me
    return clib.GHCB_OK


cdef int enter_quickly(shared_t *shared) noexcept:
    """The same with the GIL held: it is given up only if somebody else has the lock."""
    if clib.pthread_mutex_trylock(&shared.lock) == 0:
        shared.owner = clib.PyThread_get_thread_ident()
        return clib.GHCB_OK
    with nogil:
        return enter(shared)


cdef void leave(shared_t *shared) noexcept nogil:
    shared.owner = 0
    clib.pthread_mutex_unlock(&shared.lock)


cdef ghcb_vcpu_t *runnable(shared_t *shared, uint64_t cpu, int *status) noexcept nogil:
    """Return the vCPU if it may ask for something, or NULL and why not."""
    cdef ghcb_vcpu_t *vcpu = clib.ghcb_host_vcpu(&shared.host, cpu)
    status[0] = clib.GHCB_OK
    if vcpu == NULL:
        status[0] = clib.GHCB_E_OUT_OF_RANGE
    elif shared.host.vm.event:
        status[0] = clib.GHCB_E_STATE_CONFLICT
    return vcpu if status[0] == clib.GHCB_OK else NULL


cdef int one_msr(shared_t *shared, uint64_t cpu, uint64_t request, uint64_t *answer) noexcept nogil:
    cdef int status
    cdef ghcb_vcpu_t *vcpu = runnable(shared, cpu, &status)
    if vcpu == NULL:
        return status
    if request and not request & clib.GHCB_MSR_INFO_MASK:
        return clib.GHCB_E_OUT_OF_RANGE
    vcpu.msr = request
    if clib.ghcb_host_may_run(&shared.host, vcpu):
        clib.ghcb_answer_msr(&shared.host, vcpu)
    answer[0] = vcpu.msr
    return clib.GHCB_OK


cdef int one_page(shared_t *shared, uint64_t cpu, uint64_t gpa, uint8_t *page) noexcept nogil:
    cdef int status
    cdef ghcb_vcpu_t *vcpu = runnable(shared, cpu, &status)
    if vcpu == NULL:
        return status
    if gpa == 0 or gpa & clib.GHCB_MSR_INFO_MASK:
        return clib.GHCB_E_UNALIGNED
    vcpu.msr = gpa
    if clib.ghcb_host_may_run(&shared.host, vcpu):
        clib.ghcb_answer_page(&shared.host, vcpu, page)
    return clib.GHCB_OK


cdef int ops_msr(void *self, uint64_t cpu, uint64_t request, uint64_t *answer) noexcept nogil:
    cdef shared_t *shared = <shared_t *> self
    cdef int status = enter(shared)
    if status == clib.GHCB_OK:
        status = one_msr(shared, cpu, request, answer)
        leave(shared)
    return status


cdef int ops_msr_batch(
    void *self, const uint32_t *cpus, const uint64_t *requests, uint64_t *answers, uint64_t n,
    uint64_t *n_done,
) noexcept nogil:
    cdef shared_t *shared = <shared_t *> self
    cdef int status = enter(shared)
    n_done[0] = 0
    if status != clib.GHCB_OK:
        return status
    while n_done[0] < n and status == clib.GHCB_OK:
        status = one_msr(shared, cpus[n_done[0]], requests[n_done[0]], answers + n_done[0])
        n_done[0] += status == clib.GHCB_OK
    leave(shared)
    return status


cdef int ops_page(void *self, uint64_t cpu, uint64_t gpa, uint8_t *page) noexcept nogil:
    cdef shared_t *shared = <shared_t *> self
    cdef int status = enter(shared)
    if status == clib.GHCB_OK:
        status = one_page(shared, cpu, gpa, page)
        leave(shared)
    return status


cdef int ops_page_batch(
    void *self, const uint32_t *cpus, const uint64_t *gpas, uint8_t *pages, uint64_t n, uint64_t *n_done
) noexcept nogil:
    cdef shared_t *shared = <shared_t *> self
    cdef int status = enter(shared)
    n_done[0] = 0
    if status != clib.GHCB_OK:
        return status
    while n_done[0] < n and status == clib.GHCB_OK:
        status = one_page(
            shared, cpus[n_done[0]], gpas[n_done[0]], pages + n_done[0] * clib.GHCB_PAGE_SIZE
        )
        n_done[0] += status == clib.GHCB_OK
    leave(shared)
    return status


cdef int ops_call(void *self, uint64_t cpu, uint64_t call) noexcept nogil:
    cdef shared_t *shared = <shared_t *> self
    cdef ghcb_vcpu_t *vcpu
    cdef int status = enter(shared)
    if status != clib.GHCB_OK:
        return status
    vcpu = runnable(shared, cpu, &status)
    if vcpu != NULL and call >= clib.GHCB_CALL_END:
        status = clib.GHCB_E_OUT_OF_RANGE
    elif vcpu != NULL:
        clib.ghcb_host_call(&shared.host, vcpu, call)
    leave(shared)
    return status


cdef int ops_get_vm(void *self, ghcb_vm_t *vm) noexcept nogil:
    cdef shared_t *shared = <shared_t *> self
    cdef int status = enter(shared)
    if status == clib.GHCB_OK:
        vm[0] = shared.host.vm[0]
        leave(shared)
    return status


cdef int ops_get_vcpu(void *self, uint64_t cpu, ghcb_vcpu_t *out) noexcept nogil:
    cdef shared_t *shared = <shared_t *> self
    cdef ghcb_vcpu_t *vcpu
    cdef int status = enter(shared)
    if status != clib.GHCB_OK:
        return status
    vcpu = clib.ghcb_host_vcpu(&shared.host, cpu)
    if vcpu == NULL:
        status = clib.GHCB_E_OUT_OF_RANGE
    else:
        out[0] = vcpu[0]
    leave(shared)
    return status


cdef void forget_owner(object capsule) noexcept:
    cdef PyObject *owner = <PyObject *> PyCapsule_GetContext(capsule)
    if owner != NULL:
        Py_DECREF(<object> owner)


cdef uint64_t u64(number, str name) except? 0:
    # by itself Cython would take 2.7 for 2
    found = _index(number)
    if found < 0 or found >> 64:
        raise _errors.OutOfRange(f"{name} {found:#x}: does not fit 64 bits")
    return found


cdef fixed_zeros(n, dtype):
    # a view: an array that owns its memory can be told to resize it, and C code has its address
    return _np.zeros(n * dtype.itemsize, dtype=_np.uint8).view(dtype)


@cython.final
cdef class Host:
    """Host(profile, n_vcpus, device=None)\n--\n
    One VM of the host: its state, and the requests of its vCPUs.

    Parameters
    ----------
    profile : ghcbcore.profile.Profile
    n_vcpus : int
        1 to ``GHCB_MAX_CPUS``. vCPU i has APIC ID i.
    device : ghcbcore.device.Device, optional
        The world around the VM. What it does not answer ends the run, with ``vm["event"]`` set.

    Attributes
    ----------
    vm : array of VM_DTYPE, shape (1,)
    vcpus : array of VCPU_DTYPE, shape (n_vcpus,)
        The state itself, not a copy; write to it to put a vCPU where a test needs it. At first
        vCPU 0 is runnable, the others wait for INIT, and the GHCB MSR of an SEV-ES guest holds
        the SEV information.

    Notes
    -----
    Any number of threads may use a host; their calls take turns. A request that a device makes of
    the host that called it raises StateConflict.
    """

    def __cinit__(self):
        clib.pthread_mutex_init(&self.shared.lock, NULL)

    def __dealloc__(self):
        clib.pthread_mutex_destroy(&self.shared.lock)

    def __init__(self, Profile profile not None, Py_ssize_t n_vcpus, Device device=None):
        if not 1 <= n_vcpus <= clib.GHCB_MAX_CPUS:
            raise _errors.OutOfRange(f"n_vcpus {n_vcpus}: 1 to {clib.GHCB_MAX_CPUS} are possible")
        if self.vm is not None:
            raise _errors.StateConflict("this host exists already")
        if profile.cpuid is None:
            raise _errors.StateConflict("profile: its __init__ has failed, or was never called")
        state, slots = fixed_zeros(1, VM_DTYPE), fixed_zeros(n_vcpus, VCPU_DTYPE)
        cdef ghcb_vm_t[::1] vm = state
        cdef ghcb_vcpu_t[::1] vcpus = slots
        self.profile = profile
        self.device = device
        self.vm = state
        self.vcpus = slots
        self._memory = state.base, slots.base
        self.shared.host.profile = &profile.c
        self.shared.host.vm = &vm[0]
        self.shared.host.first = &vcpus[0]
        self.shared.host.others = &vcpus[0] + 1
        self.shared.host.stride = sizeof(ghcb_vcpu_t)
        self.shared.host.n_vcpus = <uint64_t> n_vcpus
        self.shared.host.device = &device.c if device is not None else NULL
        self.shared.ops = ghcb_ops_t(
            clib.GHCB_OPS_ABI, sizeof(ghcb_ops_t), &self.shared, <uint64_t> n_vcpus,
            ops_msr, ops_msr_batch, ops_page, ops_page_batch, ops_call, ops_get_vm, ops_get_vcpu,
        )
        self.vcpus["mp_state"][1:] = clib.GHCB_MP_UNINITIALIZED
        self.vcpus["next_vmsa"] = clib.GHCB_VMSA_NONE
        if profile.c.guest != clib.GHCB_GUEST_PLAIN:
            self.vcpus["msr"] = clib.ghcb_host_sev_info(&profile.c, profile.c.max_version)

    cdef int settle(self, int status, str where, Py_ssize_t i) except -1:
        """Raise what a device raised, or what a status means."""
        if self.device is not None:
            self.device.settle()
        if status == clib.GHCB_OK:
            return 0
        if status == clib.GHCB_E_STATE_CONFLICT:
            if not self.shared.host.vm.event:
                raise _errors.StateConflict(f"{where}: a device called the host that had called it")
            raise _errors.StateConflict(
                f"{where}: the VM has ended with event {self.shared.host.vm.event}"
            )
        _errors.raise_status(status, where)
        return 0

    @property
    def event(self):
        """``vm["event"]``: 0 while the VM runs, then ``GHCB_EVENT_*``."""
        self.exists()
        return self.shared.host.vm.event

    cdef int exists(self) except -1:
        if self.shared.host.vm == NULL:
            raise _errors.StateConflict("this host does not exist: its __init__ has failed")
        return 0

    def msr(self, Py_ssize_t cpu, value):
        """VMGEXIT with ``value`` in the GHCB MSR; return the MSR after it.

        A value whose low 12 bits are zero names a page: use ``page``. 0 stays 0, as in KVM.
        """
        cdef uint64_t answer = 0
        cdef uint64_t request = u64(value, "msr")
        cdef int status = self._enter(cpu)
        if status == clib.GHCB_OK:
            status = one_msr(&self.shared, <uint64_t> cpu, request, &answer)
            leave(&self.shared)
        if status != clib.GHCB_OK or self.device is not None:
            if status == clib.GHCB_E_OUT_OF_RANGE:
                raise _errors.OutOfRange(f"msr {request:#x}: the address of a GHCB page; hand the page over")
            self.settle(status, f"vCPU {cpu}", 0)
        return answer

    cdef int _enter(self, Py_ssize_t cpu) except -1:
        if cpu < 0 or <uint64_t> cpu >= self.shared.host.n_vcpus:
            raise _errors.OutOfRange(f"vCPU {cpu}: the VM has {self.shared.host.n_vcpus}")
        return enter_quickly(&self.shared)

    def msr_batch(self, const uint32_t[::1] cpus not None, const uint64_t[::1] values not None, out=None):
        """VMGEXITs by the MSR protocol in order; return the MSR after each.

        Parameters
        ----------
        cpus : uint32 array, shape (n,)
        values : uint64 array, shape (n,)
        out : uint64 array, shape (n,), optional

        Raises
        ------
        OutOfRange
            ``cpus[i]`` does not exist or ``values[i]`` is the address of a page.
        StateConflict
            An element before ``i`` ended the VM. Elements before ``i`` have taken effect.
        """
        cdef Py_ssize_t n = values.shape[0]
        cdef uint64_t n_done = 0
        cdef int status
        if cpus.shape[0] != n:
            raise _errors.OutOfRange(f"{cpus.shape[0]} cpus for {n} values")
        if out is None:
            out = _np.empty(n, dtype=_np.uint64)
        cdef uint64_t[::1] answers = out
        if answers.shape[0] != n:
            raise _errors.OutOfRange(f"out has {answers.shape[0]} elements for {n} values")
        if n == 0:
            return out
        with nogil:
            status = ops_msr_batch(&self.shared, &cpus[0], &values[0], &answers[0], <uint64_t> n, &n_done)
        if status != clib.GHCB_OK or self.device is not None:
            i = min(n_done, n - 1)
            self.settle(status, f"[{i}]: cpu {cpus[i]}, msr {values[i]:#x}", 0)
        return out

    def page(self, Py_ssize_t cpu, uint8_t[::1] page not None, gpa):
        """VMGEXIT with a GHCB page, which is answered in place.

        Parameters
        ----------
        page : uint8 array, shape (4096,), writable
        gpa : int
            Where the guest has it; page aligned and not 0.

        Notes
        -----
        The page is not kept. A STARTUP that ends a hold asked for by page answers in
        ``vcpus["sw_exit_info_2"]``; whoever has the page copies it there.
        """
        cdef uint64_t address = u64(gpa, "gpa")
        cdef int status
        if page.shape[0] != clib.GHCB_PAGE_SIZE:
            raise _errors.OutOfRange(f"page of {page.shape[0]} bytes; a GHCB has {clib.GHCB_PAGE_SIZE}")
        status = self._enter(cpu)
        if status == clib.GHCB_OK:
            status = one_page(&self.shared, <uint64_t> cpu, address, &page[0])
            leave(&self.shared)
        if status != clib.GHCB_OK or self.device is not None:
            if status == clib.GHCB_E_UNALIGNED:
                raise _errors.Unaligned(f"gpa {address:#x}: not the address of a page")
            self.settle(status, f"vCPU {cpu}", 0)

    def page_batch(
        self,
        const uint32_t[::1] cpus not None,
        uint8_t[:, ::1] pages not None,
        const uint64_t[::1] gpas not None,
    ):
        """VMGEXITs with GHCB pages in order, each answered in place.

        Parameters
        ----------
        cpus : uint32 array, shape (n,)
        pages : uint8 array, shape (n, 4096), writable
        gpas : uint64 array, shape (n,)

        Raises
        ------
        OutOfRange, Unaligned
            ``cpus[i]`` does not exist or ``gpas[i]`` is not the address of a page.
        StateConflict
            An element before ``i`` ended the VM. Elements before ``i`` have taken effect.
        """
        cdef Py_ssize_t n = pages.shape[0]
        cdef uint64_t n_done = 0
        cdef int status
        if cpus.shape[0] != n or gpas.shape[0] != n:
            raise _errors.OutOfRange(f"{cpus.shape[0]} cpus and {gpas.shape[0]} gpas for {n} pages")
        if pages.shape[1] != clib.GHCB_PAGE_SIZE:
            raise _errors.OutOfRange(f"pages of {pages.shape[1]} bytes; a GHCB has {clib.GHCB_PAGE_SIZE}")
        if n == 0:
            return
        with nogil:
            status = ops_page_batch(&self.shared, &cpus[0], &gpas[0], &pages[0, 0], <uint64_t> n, &n_done)
        if status != clib.GHCB_OK or self.device is not None:
            i = min(n_done, n - 1)
            self.settle(status, f"[{i}]: cpu {cpus[i]}, gpa {gpas[i]:#x}", 0)

    def call(self, Py_ssize_t cpu, function):
        """Apply one of ``GHCB_CALL_*`` to a vCPU: what its APIC or its processor does."""
        cdef uint64_t number = u64(function, "function")
        cdef int status
        if number >= clib.GHCB_CALL_END:
            raise _errors.OutOfRange(f"function {number}: there are {clib.GHCB_CALL_END}")
        if cpu < 0 or <uint64_t> cpu >= self.shared.host.n_vcpus:
            raise _errors.OutOfRange(f"vCPU {cpu}: the VM has {self.shared.host.n_vcpus}")
        with nogil:
            status = ops_call(&self.shared, <uint64_t> cpu, number)
        self.settle(status, f"vCPU {cpu}", 0)

    # ---- for other languages

    @property
    def capsule(self):
        """A PyCapsule named ``ghcbcore.ops_v1`` with the ``ghcb_ops_t`` of this host.

        It keeps the host alive.
        """
        self.exists()
        capsule = PyCapsule_New(&self.shared.ops, clib.GHCB_OPS_CAPSULE, forget_owner)
        Py_INCREF(self)
        PyCapsule_SetContext(capsule, <void *> self)
        return capsule

    @property
    def cffi(self):
        """``Interface`` whose ``ops`` is a ``ghcb_ops_t *`` of ``ghcbcore._cffi``."""
        from ghcbcore._cffi import ffi

        self.exists()
        address = <uintptr_t> &self.shared.ops
        return Interface(self, address, ffi.cast("ghcb_ops_t *", address))

    @property
    def ctypes(self):
        """``Interface`` whose ``ops`` is a ``ctypes.Structure`` with the same fields."""
        from ghcbcore.foreign import ops_structure

        self.exists()
        address = <uintptr_t> &self.shared.ops
        return Interface(self, address, ops_structure().from_address(address))
