"""The hypervisor's side of the protocol: what KVM answers, as functions on flat state.

``answer_msr`` and ``answer_nae`` (``host.pxd``) are the only place where a request becomes an
answer. They are reached by the CALL of a compiled flow, on the words of its record, and by the
``Host`` of this module, one request or an array of them. The state is two records
(``ghcbcore/host.h``): ``ghcb_vm_t`` for the VM and ``ghcb_vcpu_t`` for each vCPU.

Answered here: SEV information, CPUID, AP reset hold, hypervisor features, termination by MSR; AP
jump table, AP reset hold, CPUID, hypervisor features, termination and the events without effect
as NAE events; INIT, STARTUP, NMI and HLT of an SEV-ES vCPU and of a plain one. Events that KVM
hands to user space or emulates with a device leave ``vm.event`` set (``GHCB_EVENT_*``): this host
does not make up what a device would have said. SNP guests are refused by ``Profile``: page state
changes and AP creation have no model here yet.

Source: GHCB protocol as KVM answers it (Linux ``arch/x86/kvm/svm/sev.c``): order of checks and
the answers to malformed requests; SIPI rules of ``sev_vcpu_deliver_sipi_vector``.
"""

from operator import index as _index
from threading import Lock as _Lock

import numpy as _np

from ghcbcore import errors as _errors

cimport cython
from ghcbcore cimport clib
from ghcbcore.clib cimport (
    ghcb_cpuid_entry_t,
    ghcb_page_t,
    ghcb_profile_t,
    ghcb_vcpu_t,
    ghcb_vm_t,
)
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

__all__ = ["CPUID_DTYPE", "VCPU_DTYPE", "VM_DTYPE", "Host", "Profile"]

cdef ghcb_vm_t _vm
cdef ghcb_vcpu_t _vcpu
cdef ghcb_cpuid_entry_t _entry
VM_DTYPE = _np.asarray(<ghcb_vm_t[:1]> &_vm).dtype
VCPU_DTYPE = _np.asarray(<ghcb_vcpu_t[:1]> &_vcpu).dtype
CPUID_DTYPE = _np.asarray(<ghcb_cpuid_entry_t[:1]> &_entry).dtype


cdef const ghcb_cpuid_entry_t *find_cpuid(
    const ghcb_profile_t *profile, uint32_t function, uint32_t index
) noexcept nogil:
    """Return the entry that answers, or NULL. A function listed once, with index 0, ignores ECX."""
    cdef uint64_t i
    cdef uint64_t listed = 0
    cdef const ghcb_cpuid_entry_t *first = NULL
    for i in range(profile.n_cpuid):
        if profile.cpuid[i].function == function:
            if profile.cpuid[i].index == index:
                return profile.cpuid + i
            first = profile.cpuid + i
            listed += 1
    # a guest walks sub-leaves until one is empty: there must be an end to them
    return first if listed == 1 and first.index == 0 else NULL


cdef void hold(ghcb_vcpu_t *vcpu, uint64_t how) noexcept nogil:
    if vcpu.nmi_pending:
        return  # a vCPU with an event pending does not block: it goes on at once, not released
    vcpu.reset_hold = how
    vcpu.mp_state = clib.GHCB_MP_AP_RESET_HOLD


cdef void ran(ghcb_vcpu_t *vcpu) noexcept nogil:
    # it executed an instruction, so what it was held by is over, whoever woke it: KVM forgets the
    # kind of hold when it enters the guest, and a later SIPI answers nothing
    vcpu.reset_hold = clib.GHCB_HOLD_NONE


cdef void end(ghcb_vm_t *vm, uint64_t event, uint64_t data) noexcept nogil:
    vm.event = event
    vm.event_data = data


cdef uint64_t sev_info(const ghcb_profile_t *profile) noexcept nogil:
    return (
        profile.max_version << clib.GHCB_MSR_SEV_INFO_RESP_MAX_SHIFT
        | profile.min_version << clib.GHCB_MSR_SEV_INFO_RESP_MIN_SHIFT
        | profile.c_bit << clib.GHCB_MSR_SEV_INFO_RESP_C_BIT_SHIFT
        | <uint64_t> clib.GHCB_MSR_SEV_INFO_RESP
    )


cdef void answer_msr(const ghcb_profile_t *profile, ghcb_vm_t *vm, ghcb_vcpu_t *vcpu) noexcept nogil:
    cdef uint64_t request = vcpu.msr
    cdef uint64_t code = request & clib.GHCB_MSR_INFO_MASK
    cdef uint64_t register
    cdef uint32_t value = 0
    cdef const ghcb_cpuid_entry_t *entry
    ran(vcpu)
    if code == clib.GHCB_MSR_SEV_INFO_REQ:
        vcpu.msr = sev_info(profile)
    elif code == clib.GHCB_MSR_CPUID_REQ:
        entry = find_cpuid(profile, <uint32_t> (request >> clib.GHCB_MSR_CPUID_REQ_FN_SHIFT), 0)
        register = request >> clib.GHCB_MSR_CPUID_REQ_REG_SHIFT & 3  # two bits: one of four
        if entry != NULL:
            value = (&entry.eax)[register]
        # bits [31:12] of the request come back unchanged
        vcpu.msr = (
            (<uint64_t> (<uint32_t> request) & ~<uint64_t> clib.GHCB_MSR_INFO_MASK)
            | <uint64_t> value << clib.GHCB_MSR_CPUID_RESP_VALUE_SHIFT
            | <uint64_t> clib.GHCB_MSR_CPUID_RESP
        )
    elif code == clib.GHCB_MSR_AP_RESET_HOLD_REQ:
        vcpu.msr = clib.GHCB_MSR_AP_RESET_HOLD_RESP  # the SIPI puts 1 into the data
        hold(vcpu, clib.GHCB_HOLD_MSR)
    elif code == clib.GHCB_MSR_HV_FEATURES_REQ:
        vcpu.msr = profile.hv_features << clib.GHCB_MSR_DATA_SHIFT | <uint64_t> clib.GHCB_MSR_HV_FEATURES_RESP
    elif code == clib.GHCB_MSR_TERM_REQ or (
        profile.guest != clib.GHCB_GUEST_SNP
        and (
            code == clib.GHCB_MSR_PREF_GPA_REQ
            or code == clib.GHCB_MSR_REG_GPA_REQ
            or code == clib.GHCB_MSR_PSC_REQ
        )
    ):
        end(vm, clib.GHCB_EVENT_SEV_TERM, request)
    # any other, and 0 ("GHCB gpa is not set"): the MSR keeps the request and the guest resumes


cdef bint is_valid(const nae_t *event, int bit) noexcept nogil:
    if bit < 64:
        return event.valid_low >> bit & 1
    return event.valid_high >> (bit - 64) & 1


cdef void mark_valid(nae_t *event, int bit) noexcept nogil:
    if bit < 64:
        event.valid_low |= <uint64_t> 1 << bit
    else:
        event.valid_high |= <uint64_t> 1 << (bit - 64)


cdef uint64_t missing_or_unknown(const ghcb_profile_t *profile, const nae_t *event) noexcept nogil:
    """Return 0, or the reason for which KVM calls the event malformed before it looks at it."""
    cdef uint64_t code = event.code
    cdef bint rax = is_valid(event, clib.GHCB_VALID_RAX)
    cdef bint rcx = is_valid(event, clib.GHCB_VALID_RCX)
    cdef bint rdx = is_valid(event, clib.GHCB_VALID_RDX)
    cdef bint scratch = is_valid(event, clib.GHCB_VALID_SW_SCRATCH)
    cdef bint complete = True
    if not (
        is_valid(event, clib.GHCB_VALID_SW_EXIT_CODE)
        and is_valid(event, clib.GHCB_VALID_SW_EXIT_INFO_1)
        and is_valid(event, clib.GHCB_VALID_SW_EXIT_INFO_2)
    ):
        return clib.GHCB_MALFORMED_MISSING_INPUT
    if code == clib.GHCB_NAE_DR7_WRITE:
        complete = rax
    elif code == clib.GHCB_NAE_RDPMC:
        complete = rcx
    elif code == clib.GHCB_NAE_CPUID:
        complete = rax and rcx
        if complete and event.rax == clib.GHCB_CPUID_LEAF_XSTATE:  # all 64 bits
            complete = is_valid(event, clib.GHCB_VALID_XCR0)
    elif code == clib.GHCB_NAE_IOIO:
        if event.info1 >> clib.GHCB_IOIO_STRING_SHIFT & 1:
            complete = scratch
        elif not event.info1 >> clib.GHCB_IOIO_IN_SHIFT & 1:
            complete = rax
    elif code == clib.GHCB_NAE_MSR:
        complete = rcx and (event.info1 == 0 or (rax and rdx))
    elif code == clib.GHCB_NAE_VMMCALL:
        complete = rax and is_valid(event, clib.GHCB_VALID_CPL)
    elif code == clib.GHCB_NAE_MONITOR:
        complete = rax and rcx and rdx
    elif code == clib.GHCB_NAE_MWAIT:
        complete = rax and rcx
    elif code == clib.GHCB_NAE_MMIO_READ or code == clib.GHCB_NAE_MMIO_WRITE:
        complete = scratch
    elif (
        code == clib.GHCB_NAE_PSC
        or code == clib.GHCB_NAE_SNP_GUEST_REQUEST
        or code == clib.GHCB_NAE_SNP_EXT_GUEST_REQUEST
        or code == clib.GHCB_NAE_SNP_AP_CREATION
    ):
        complete = profile.guest == clib.GHCB_GUEST_SNP
    elif not (
        code == clib.GHCB_NAE_DR7_READ
        or code == clib.GHCB_NAE_RDTSC
        or code == clib.GHCB_NAE_INVD
        or code == clib.GHCB_NAE_RDTSCP
        or code == clib.GHCB_NAE_WBINVD
        or code == clib.GHCB_NAE_NMI_COMPLETE
        or code == clib.GHCB_NAE_AP_RESET_HOLD
        or code == clib.GHCB_NAE_AP_JUMP_TABLE
        or code == clib.GHCB_NAE_HV_FEATURES
        or code == clib.GHCB_NAE_TERMINATE
        or code == clib.GHCB_NAE_UNSUPPORTED
    ):
        return clib.GHCB_MALFORMED_INVALID_EVENT
    return 0 if complete else clib.GHCB_MALFORMED_MISSING_INPUT


cdef uint64_t bad_scratch(const nae_t *event, uint64_t gpa, uint64_t n_bytes) noexcept nogil:
    """Return 0, or the reason for which KVM does not take the scratch area as ``n_bytes`` of data."""
    cdef uint64_t first = event.scratch
    cdef uint64_t end = first + n_bytes
    cdef uint64_t buffer = gpa + clib.GHCB_OFF_SHARED_BUFFER
    cdef bint good
    if first == 0 or end < first:
        good = False
    elif first >> clib.GHCB_PAGE_SHIFT == gpa >> clib.GHCB_PAGE_SHIFT:
        good = first >= buffer and end <= buffer + clib.GHCB_SHARED_BUFFER_SIZE
    else:
        # elsewhere in guest memory: KVM copies it. This is the rule of protocol version 1; the
        # newest KVM refuses it from version 2 on.
        good = n_bytes <= clib.GHCB_KVM_SCRATCH_MAX
    return 0 if good else clib.GHCB_MALFORMED_SCRATCH


cdef bint is_string_io(uint64_t code, uint64_t info1) noexcept nogil:
    return code == clib.GHCB_NAE_IOIO and info1 >> clib.GHCB_IOIO_STRING_SHIFT & 1


cdef void answer_nae(
    const ghcb_profile_t *profile, ghcb_vm_t *vm, ghcb_vcpu_t *vcpu, nae_t *event
) noexcept nogil:
    """Answer one event in place: info1, info2 and the registers that it returns."""
    cdef uint64_t code = event.code
    cdef uint64_t info1 = event.info1
    cdef uint64_t info2 = event.info2
    cdef const ghcb_cpuid_entry_t *entry
    cdef uint64_t reason = missing_or_unknown(profile, event)
    cdef uint64_t n_bytes
    ran(vcpu)
    event.info1 = clib.GHCB_REPLY_OK
    event.info2 = 0
    if not reason and is_string_io(code, info1):
        n_bytes = (info1 >> clib.GHCB_IOIO_SIZE_SHIFT & 7) * info2  # three bits: bytes
        if info2 > clib.GHCB_KVM_INT_MAX or n_bytes > clib.GHCB_KVM_INT_MAX:
            end(vm, clib.GHCB_EVENT_EINVAL, code)
            return
        reason = bad_scratch(event, vcpu.msr, n_bytes)
    elif not reason and (code == clib.GHCB_NAE_MMIO_READ or code == clib.GHCB_NAE_MMIO_WRITE):
        reason = bad_scratch(event, vcpu.msr, info2)
    if reason:
        event.info1 = clib.GHCB_REPLY_MALFORMED
        event.info2 = reason
    elif code == clib.GHCB_NAE_CPUID:
        entry = find_cpuid(profile, <uint32_t> event.rax, <uint32_t> event.rcx)
        event.rax = entry.eax if entry != NULL else 0
        event.rbx = entry.ebx if entry != NULL else 0
        event.rcx = entry.ecx if entry != NULL else 0
        event.rdx = entry.edx if entry != NULL else 0
    elif code == clib.GHCB_NAE_AP_RESET_HOLD:
        hold(vcpu, clib.GHCB_HOLD_NAE)
    elif code == clib.GHCB_NAE_AP_JUMP_TABLE:
        if info1 == clib.GHCB_AP_JUMP_TABLE_SET:
            vm.jump_table = info2
        elif info1 == clib.GHCB_AP_JUMP_TABLE_GET:
            event.info2 = vm.jump_table
        else:
            event.info1 = clib.GHCB_REPLY_MALFORMED
            event.info2 = clib.GHCB_MALFORMED_INVALID_INPUT
    elif code == clib.GHCB_NAE_HV_FEATURES:
        event.info2 = profile.hv_features
    elif code == clib.GHCB_NAE_TERMINATE:
        # user space is told the GHCB's address; the reason appears in KVM's log only
        end(vm, clib.GHCB_EVENT_SEV_TERM, vcpu.msr)
    elif code == clib.GHCB_NAE_UNSUPPORTED:
        end(vm, clib.GHCB_EVENT_EINVAL, code)
    elif code == clib.GHCB_NAE_RDTSC:
        end(vm, clib.GHCB_EVENT_INTERNAL, code)
    elif code == clib.GHCB_NAE_IOIO:
        end(vm, clib.GHCB_EVENT_IO, info1)
    elif code == clib.GHCB_NAE_MMIO_READ or code == clib.GHCB_NAE_MMIO_WRITE:
        end(vm, clib.GHCB_EVENT_MMIO, info1)
    elif not (
        code == clib.GHCB_NAE_INVD
        or code == clib.GHCB_NAE_WBINVD
        or code == clib.GHCB_NAE_MONITOR
        or code == clib.GHCB_NAE_MWAIT
        or code == clib.GHCB_NAE_NMI_COMPLETE
    ):
        end(vm, clib.GHCB_EVENT_UNMODELLED, code)


cdef void vmgexit(const ghcb_profile_t *profile, ghcb_vm_t *vm, ghcb_vcpu_t *vcpu) noexcept nogil:
    """VMGEXIT of a flow: its pages have no bytes, the three fields of the event stand in the vCPU."""
    cdef nae_t event
    if vcpu.msr == 0 or vcpu.msr & clib.GHCB_MSR_INFO_MASK:
        answer_msr(profile, vm, vcpu)
        return
    event = nae_t(
        vcpu.sw_exit_code, vcpu.sw_exit_info_1, vcpu.sw_exit_info_2, 0, 0, 0, 0, 0, 0, 0, 0, 0
    )
    mark_valid(&event, clib.GHCB_VALID_SW_EXIT_CODE)
    mark_valid(&event, clib.GHCB_VALID_SW_EXIT_INFO_1)
    mark_valid(&event, clib.GHCB_VALID_SW_EXIT_INFO_2)
    answer_nae(profile, vm, vcpu, &event)
    vcpu.sw_exit_info_1 = event.info1
    vcpu.sw_exit_info_2 = event.info2


cdef void wake(ghcb_vcpu_t *vcpu) noexcept nogil:
    """The vCPU runs again; KVM forgets the kind of hold when it unmaps the GHCB for that."""
    vcpu.mp_state = clib.GHCB_MP_RUNNABLE
    vcpu.reset_hold = clib.GHCB_HOLD_NONE


cdef void take_init(ghcb_vcpu_t *vcpu) noexcept nogil:
    # a reset by INIT does not touch the kind of hold: only running again does
    if not vcpu.init_pending:
        return
    vcpu.init_pending = 0
    vcpu.mp_state = clib.GHCB_MP_INIT_RECEIVED


cdef void take_sipi(const ghcb_profile_t *profile, ghcb_vcpu_t *vcpu) noexcept nogil:
    if not vcpu.sipi_pending:
        return
    vcpu.sipi_pending = 0
    if vcpu.mp_state != clib.GHCB_MP_INIT_RECEIVED:
        return  # accepted only after INIT
    if profile.guest == clib.GHCB_GUEST_PLAIN:
        vcpu.entry = clib.GHCB_ENTRY_VECTOR
    elif not vcpu.first_sipi:
        vcpu.first_sipi = 1
        vcpu.entry = clib.GHCB_ENTRY_LAUNCH
    else:
        vcpu.entry = clib.GHCB_ENTRY_RESUME
        if vcpu.reset_hold == clib.GHCB_HOLD_NAE:
            vcpu.sw_exit_info_1 = clib.GHCB_REPLY_OK
            vcpu.sw_exit_info_2 = 1
        elif vcpu.reset_hold == clib.GHCB_HOLD_MSR:
            vcpu.msr = (
                <uint64_t> clib.GHCB_MSR_AP_RESET_HOLD_RELEASED << clib.GHCB_MSR_DATA_SHIFT
                | <uint64_t> clib.GHCB_MSR_AP_RESET_HOLD_RESP
            )
    wake(vcpu)


cdef void host_call(
    uint64_t function, const ghcb_profile_t *profile, ghcb_vm_t *vm, ghcb_vcpu_t *vcpu
) noexcept nogil:
    if function == clib.GHCB_CALL_VMGEXIT:
        vmgexit(profile, vm, vcpu)
    elif function == clib.GHCB_CALL_INIT:
        take_init(vcpu)
    elif function == clib.GHCB_CALL_SIPI:
        take_sipi(profile, vcpu)
    elif function == clib.GHCB_CALL_NMI:
        vcpu.nmi_pending = 1
        if vcpu.mp_state == clib.GHCB_MP_HALTED or vcpu.mp_state == clib.GHCB_MP_AP_RESET_HOLD:
            wake(vcpu)  # a hold that no SIPI ended: the answer's data stays 0
    elif function == clib.GHCB_CALL_HLT:
        ran(vcpu)
        if not vcpu.nmi_pending:
            vcpu.mp_state = clib.GHCB_MP_HALTED
    elif function == clib.GHCB_CALL_SHUTDOWN:
        end(vm, clib.GHCB_EVENT_SHUTDOWN, 0)
    elif function == clib.GHCB_CALL_SEND_INIT:
        vcpu.init_pending = 1
        vcpu.sipi_pending = 0  # the local APIC drops what was latched before
    elif function == clib.GHCB_CALL_SEND_SIPI:
        vcpu.sipi_pending = 1


cdef void answer_page(
    const ghcb_profile_t *profile, ghcb_vm_t *vm, ghcb_vcpu_t *vcpu, ghcb_page_t *page
) noexcept nogil:
    """VMGEXIT with a GHCB page: read it once, clear its bitmap, answer, write the answer back."""
    cdef nae_t e
    e.valid_low = page.valid_bitmap[0]
    e.valid_high = page.valid_bitmap[1]
    e.code = page.sw_exit_code
    e.info1 = page.sw_exit_info_1
    e.info2 = page.sw_exit_info_2
    e.scratch = page.sw_scratch if is_valid(&e, clib.GHCB_VALID_SW_SCRATCH) else 0
    e.rax = page.rax if is_valid(&e, clib.GHCB_VALID_RAX) else 0
    e.rbx = page.rbx if is_valid(&e, clib.GHCB_VALID_RBX) else 0
    e.rcx = page.rcx if is_valid(&e, clib.GHCB_VALID_RCX) else 0
    e.rdx = page.rdx if is_valid(&e, clib.GHCB_VALID_RDX) else 0
    e.xcr0 = page.xcr0 if is_valid(&e, clib.GHCB_VALID_XCR0) else 0
    e.cpl = page.cpl if is_valid(&e, clib.GHCB_VALID_CPL) else 0
    page.valid_bitmap[0] = 0
    page.valid_bitmap[1] = 0
    if page.ghcb_usage != clib.GHCB_USAGE_STANDARD:
        ran(vcpu)
        e.info1 = clib.GHCB_REPLY_MALFORMED
        e.info2 = clib.GHCB_MALFORMED_USAGE
    else:
        answer_nae(profile, vm, vcpu, &e)
    page.rax = e.rax
    page.rbx = e.rbx
    page.rcx = e.rcx
    page.rdx = e.rdx
    page.sw_exit_info_1 = e.info1
    page.sw_exit_info_2 = e.info2
    page.valid_bitmap[0] = clib.GHCB_KVM_REPLY_VALID_LO
    page.valid_bitmap[1] = clib.GHCB_KVM_REPLY_VALID_HI
    vcpu.sw_exit_code = e.code
    vcpu.sw_exit_info_1 = e.info1
    vcpu.sw_exit_info_2 = e.info2


cdef uint64_t u64(number) except? 0:
    # by itself Cython would take 2.7 for 2
    return _index(number)


@cython.final
cdef class Profile:
    """Profile(*, guest=..., min_version=1, max_version=2, c_bit=51, hv_features=3, cpuid=())\n--\n
    Constants of one host: what it is configured to answer.

    Parameters
    ----------
    guest : int
        ``GHCB_GUEST_PLAIN`` or ``GHCB_GUEST_SEV_ES`` (the default).
    min_version, max_version : int
        Protocol versions, 1 to 65535.
    c_bit : int
        Position of the C-bit in a page table entry, 0 to 63.
    hv_features : int
        Bitmap of 52 bits; KVM has SNP and AP creation (3).
    cpuid : sequence of (function, index, eax, ebx, ecx, edx)
        What CPUID answers; everything else is answered with zeros. A function that is listed
        once, with index 0, has no sub-leaves: it is answered whatever the index is.

    Raises
    ------
    OutOfRange
        A value does not fit, or the guest is of a kind that this host does not serve (SNP).
    """

    def __init__(
        self,
        *,
        guest=clib.GHCB_GUEST_SEV_ES,
        min_version=1,
        max_version=2,
        c_bit=51,
        hv_features=3,
        cpuid=(),
    ):
        guest, min_version, max_version = _index(guest), _index(min_version), _index(max_version)
        c_bit, hv_features = _index(c_bit), _index(hv_features)
        if guest == clib.GHCB_GUEST_SNP:
            raise _errors.OutOfRange("guest: SNP guests are not served by this host yet")
        if guest != clib.GHCB_GUEST_PLAIN and guest != clib.GHCB_GUEST_SEV_ES:
            raise _errors.OutOfRange(f"guest {guest}: no such kind")
        if not 1 <= min_version <= max_version < 1 << 16:
            raise _errors.OutOfRange(f"versions {min_version}..{max_version}: not a range in 1..65535")
        if not 0 <= c_bit <= 63:
            raise _errors.OutOfRange(f"c_bit {c_bit}: not in 0..63")
        if not 0 <= hv_features < 1 << 52:
            raise _errors.OutOfRange(f"hv_features {hv_features:#x}: not of 52 bits")
        self.cpuid = _np.array([tuple(entry) for entry in cpuid], dtype=CPUID_DTYPE)
        self.cpuid.flags.writeable = False
        cdef const ghcb_cpuid_entry_t[::1] table = self.cpuid
        self.c.guest = guest
        self.c.min_version = min_version
        self.c.max_version = max_version
        self.c.c_bit = c_bit
        self.c.hv_features = hv_features
        self.c.n_cpuid = <uint64_t> table.shape[0]
        self.c.cpuid = &table[0] if table.shape[0] else NULL

    @property
    def guest(self):
        return self.c.guest


@cython.final
cdef class Host:
    """Host(profile, n_vcpus)\n--\n
    One VM of the host: its state, and the requests of its vCPUs.

    Attributes
    ----------
    vm : array of VM_DTYPE, shape (1,)
    vcpus : array of VCPU_DTYPE, shape (n_vcpus,)
        The state itself, not a copy; write to it to put a vCPU where a test needs it. At first
        vCPU 0 is runnable, the others wait for INIT, and the GHCB MSR of an SEV-ES guest holds
        the SEV information.
    """

    cdef readonly Profile profile
    cdef readonly object vm
    cdef readonly object vcpus
    cdef object _lock
    cdef ghcb_vm_t *_c_vm
    cdef ghcb_vcpu_t *_c_vcpus
    cdef Py_ssize_t _n

    def __init__(self, Profile profile not None, Py_ssize_t n_vcpus):
        if not 1 <= n_vcpus <= clib.GHCB_MAX_CPUS:
            raise _errors.OutOfRange(f"n_vcpus {n_vcpus}: 1 to {clib.GHCB_MAX_CPUS} are possible")
        self.profile = profile
        self.vm = _np.zeros(1, dtype=VM_DTYPE)
        self.vcpus = _np.zeros(n_vcpus, dtype=VCPU_DTYPE)
        self._lock = _Lock()
        cdef ghcb_vm_t[::1] vm = self.vm
        cdef ghcb_vcpu_t[::1] vcpus = self.vcpus
        self._c_vm = &vm[0]
        self._c_vcpus = &vcpus[0]
        self._n = n_vcpus
        self.vcpus["mp_state"][1:] = clib.GHCB_MP_UNINITIALIZED
        if profile.c.guest != clib.GHCB_GUEST_PLAIN:
            self.vcpus["msr"] = sev_info(&profile.c)

    cdef ghcb_vcpu_t *_vcpu(self, Py_ssize_t cpu) except NULL:
        if not 0 <= cpu < self._n:
            raise _errors.OutOfRange(f"vCPU {cpu}: the VM has {self._n}")
        if self._c_vm.event:
            raise _errors.StateConflict(f"vCPU {cpu}: the VM has ended with event {self._c_vm.event}")
        return self._c_vcpus + cpu

    def msr(self, Py_ssize_t cpu, value):
        """VMGEXIT with ``value`` in the GHCB MSR; return the MSR after it.

        A value whose low 12 bits are zero names a page: use ``page``. 0 stays 0, as in KVM.
        """
        cdef uint64_t request = u64(value)
        cdef ghcb_vcpu_t *vcpu = self._vcpu(cpu)
        if request and not request & clib.GHCB_MSR_INFO_MASK:
            raise _errors.OutOfRange(f"msr {request:#x}: the address of a GHCB page; hand the page over")
        with self._lock:
            vcpu.msr = request
            answer_msr(&self.profile.c, self._c_vm, vcpu)
            return vcpu.msr

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
        cdef Py_ssize_t i = 0, n = values.shape[0]
        if cpus.shape[0] != n:
            raise _errors.OutOfRange(f"{cpus.shape[0]} cpus for {n} values")
        if out is None:
            out = _np.empty(n, dtype=_np.uint64)
        cdef uint64_t[::1] answers = out
        if answers.shape[0] != n:
            raise _errors.OutOfRange(f"out has {answers.shape[0]} elements for {n} values")
        cdef int status = clib.GHCB_OK
        cdef ghcb_vcpu_t *vcpu
        with self._lock, nogil:
            for i in range(n):
                if cpus[i] >= self._n or (values[i] and not values[i] & clib.GHCB_MSR_INFO_MASK):
                    status = clib.GHCB_E_OUT_OF_RANGE
                    break
                if self._c_vm.event:
                    status = clib.GHCB_E_STATE_CONFLICT
                    break
                vcpu = self._c_vcpus + cpus[i]
                vcpu.msr = values[i]
                answer_msr(&self.profile.c, self._c_vm, vcpu)
                answers[i] = vcpu.msr
        if status != clib.GHCB_OK:
            _errors.raise_status(status, f"[{i}]: cpu {cpus[i]}, msr {values[i]:#x}")
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
        cdef uint64_t address = u64(gpa)
        cdef ghcb_vcpu_t *vcpu = self._vcpu(cpu)
        cdef ghcb_page_t copy
        if page.shape[0] != sizeof(ghcb_page_t):
            raise _errors.OutOfRange(f"page of {page.shape[0]} bytes; a GHCB has {sizeof(ghcb_page_t)}")
        if address == 0 or address & clib.GHCB_MSR_INFO_MASK:
            raise _errors.Unaligned(f"gpa {address:#x}: not the address of a page")
        with self._lock:
            vcpu.msr = address
            # a buffer of bytes may lie anywhere; the struct has words
            memcpy(&copy, &page[0], sizeof(ghcb_page_t))
            answer_page(&self.profile.c, self._c_vm, vcpu, &copy)
            memcpy(&page[0], &copy, sizeof(ghcb_page_t))

    def call(self, Py_ssize_t cpu, function):
        """Apply one of ``GHCB_CALL_*`` to a vCPU: what its APIC or its processor does."""
        cdef uint64_t number = u64(function)
        cdef ghcb_vcpu_t *vcpu = self._vcpu(cpu)
        if number >= clib.GHCB_CALL_END:
            raise _errors.OutOfRange(f"function {number}: there are {clib.GHCB_CALL_END}")
        with self._lock:
            host_call(number, &self.profile.c, self._c_vm, vcpu)
