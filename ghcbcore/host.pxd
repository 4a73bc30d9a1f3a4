cimport cython
from ghcbcore.clib cimport ghcb_host_t, ghcb_ops_t, ghcb_vcpu_t, pthread_mutex_t
from ghcbcore.device cimport Device
from ghcbcore.profile cimport Profile
from libc.stdint cimport uint64_t


cdef struct shared_t:
    # what C code works on, with or without the GIL: the host, and the lock that makes calls take turns
    ghcb_host_t host
    ghcb_ops_t ops
    pthread_mutex_t lock  # in here: a lock of its own memory may share a cache line with another's
    unsigned long owner  # thread that holds the lock, 0 for none


@cython.final
cdef class Host:
    cdef readonly Profile profile
    cdef readonly object vm
    cdef readonly object vcpus
    cdef readonly Device device
    cdef shared_t shared
    cdef object _memory  # of vm and vcpus
    cdef object __weakref__

    cdef int settle(self, int status, str where, Py_ssize_t i) except -1
    cdef int exists(self) except -1
    cdef int _enter(self, Py_ssize_t cpu) except -1


cdef void host_call(const ghcb_host_t *host, ghcb_vcpu_t *vcpu, uint64_t call) noexcept nogil
