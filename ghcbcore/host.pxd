from libc.stdint cimport uint8_t, uint64_t

cimport cython
from ghcbcore.clib cimport ghcb_profile_t, ghcb_vcpu_t, ghcb_vm_t


cdef struct nae_t:
    # one NAE event as the host reads it once from the page, and its answer
    uint64_t code
    uint64_t info1
    uint64_t info2
    uint64_t scratch
    uint64_t rax
    uint64_t rbx
    uint64_t rcx
    uint64_t rdx
    uint64_t xcr0
    uint64_t cpl
    uint64_t valid_low
    uint64_t valid_high


@cython.final
cdef class Profile:
    cdef ghcb_profile_t c
    cdef readonly object cpuid


cdef void host_call(
    uint64_t function, const ghcb_profile_t *profile, ghcb_vm_t *vm, ghcb_vcpu_t *vcpu
) noexcept nogil
cdef void answer_msr(const ghcb_profile_t *profile, ghcb_vm_t *vm, ghcb_vcpu_t *vcpu) noexcept nogil
cdef void answer_nae(
    const ghcb_profile_t *profile, ghcb_vm_t *vm, ghcb_vcpu_t *vcpu, nae_t *event
) noexcept nogil
