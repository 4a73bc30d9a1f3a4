# The only `cdef extern` of the core: what the headers in include/ declare, as Cython sees it.
# One block per header; a number never stands here, only its name.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "ghcbcore/status.h" nogil:
    enum:
        GHCB_OK
        GHCB_E_CODE_MISMATCH
        GHCB_E_RESERVED_BITS
        GHCB_E_ECHO_MISMATCH
        GHCB_E_STATE_CONFLICT
        GHCB_E_OUT_OF_RANGE
        GHCB_E_UNALIGNED
        GHCB_E_UNKNOWN_CODE
        GHCB_STATUS_END

cdef extern from "ghcbcore/host.h" nogil:
    enum:
        GHCB_MP_RUNNABLE
        GHCB_MP_UNINITIALIZED
        GHCB_MP_INIT_RECEIVED
        GHCB_MP_HALTED
        GHCB_MP_AP_RESET_HOLD
        GHCB_HOLD_NONE
        GHCB_HOLD_NAE
        GHCB_HOLD_MSR
        GHCB_ENTRY_RESUME
        GHCB_ENTRY_LAUNCH
        GHCB_ENTRY_VECTOR
        GHCB_ENTRY_VMSA
        GHCB_VMSA_LAUNCH
        GHCB_EVENT_NONE
        GHCB_EVENT_SEV_TERM
        GHCB_EVENT_SHUTDOWN
        GHCB_EVENT_EINVAL
        GHCB_EVENT_IO
        GHCB_EVENT_MMIO
        GHCB_EVENT_INTERNAL
        GHCB_EVENT_UNMODELLED
        GHCB_EVENT_EFAULT
        GHCB_GUEST_PLAIN
        GHCB_GUEST_SEV_ES
        GHCB_GUEST_SNP
        GHCB_RULE_REPLY_UNREGISTERED
        GHCB_RULE_REGISTER_ON_USE
        GHCB_RULE_REGISTER_ONCE
        GHCB_RULE_SCRATCH_IN_PAGE
        GHCB_RULE_MMIO_8
        GHCB_RULE_EMPTY_IO
        GHCB_RULE_GP_SIGN_EXTENDED
        GHCB_RULE_GP_BARE
        GHCB_RULE_AP_VMPL
        GHCB_RULE_AP_FEATURES_LOOSE
        GHCB_RULE_XCR0_OPTIONAL
        GHCB_RULE_INPUT_UNCHECKED
        GHCB_RULE_UNKNOWN_EINVAL
        GHCB_RULE_MISSING_EINVAL
        GHCB_RULE_REPLY_ADDS
        GHCB_RULE_REPLY_ALONE
        GHCB_RULE_REREADS
        GHCB_RULE_CODE_32
        GHCB_RULE_PSC_ERROR_ONE
        GHCB_RULE_IO_IGNORED
        GHCB_RULE_NON_SNP_KEEP
        GHCB_RULE_END
        GHCB_KVM_SCRATCH_MAX
        GHCB_KVM_INT_MAX
        GHCB_GPA_BITS
        GHCB_KVM_HC_VAPIC_POLL_IRQ
        GHCB_KVM_HC_MAP_GPA_RANGE
        GHCB_KVM_ENOSYS
        GHCB_KVM_EPERM
        GHCB_KVM_EINVAL
        GHCB_MAP_GPA_SIZE_4K
        GHCB_MAP_GPA_SIZE_2M
        GHCB_MAP_GPA_SIZE_MASK
        GHCB_MAP_GPA_ENCRYPTED
        GHCB_ACCESS_IO
        GHCB_ACCESS_MMIO
        GHCB_ACCESS_MSR
        GHCB_ACCESS_MAP_GPA
        GHCB_ACCESS_VMMCALL
        GHCB_ACCESS_GUEST_REQUEST
        GHCB_ACCESS_EXT_GUEST_REQUEST
        GHCB_ACCESS_PMC
        GHCB_ACCESS_IPI
        GHCB_ACCESS_END
        GHCB_CALL_VMGEXIT
        GHCB_CALL_INIT
        GHCB_CALL_SIPI
        GHCB_CALL_NMI
        GHCB_CALL_HLT
        GHCB_CALL_SHUTDOWN
        GHCB_CALL_SEND_INIT
        GHCB_CALL_SEND_SIPI
        GHCB_CALL_TAKE_NMI
        GHCB_CALL_END
        GHCB_VM_WORDS
        GHCB_VCPU_WORDS
    const uint64_t GHCB_VMSA_NONE

    ctypedef struct ghcb_vm_t:
        uint64_t jump_table
        uint64_t event
        uint64_t event_data
        uint64_t n_draws
        uint64_t n_faults
        uint64_t last_fault

    ctypedef struct ghcb_vcpu_t:
        uint64_t msr
        uint64_t sw_exit_code
        uint64_t sw_exit_info_1
        uint64_t sw_exit_info_2
        uint64_t mp_state
        uint64_t reset_hold
        uint64_t first_sipi
        uint64_t init_pending
        uint64_t sipi_pending
        uint64_t sipi_vector
        uint64_t nmi_pending
        uint64_t nmi_masked
        uint64_t entry
        uint64_t registered_gpa
        uint64_t vmsa
        uint64_t next_vmsa
        uint64_t vmsa_pending
        uint64_t doorbell_gpa
        uint64_t vmpl
        uint64_t event_inj
        uint64_t extra_wakes

    ctypedef struct ghcb_access_t:
        uint64_t kind
        uint64_t cpu
        uint64_t address
        uint64_t is_write
        uint64_t size_bytes
        uint64_t count
        uint64_t arg[4]
        uint64_t result
        uint64_t result2
        uint8_t *data

    ctypedef struct ghcb_device_t:
        void *self
        uint64_t kinds
        int (*access)(void *self, ghcb_access_t *access) noexcept nogil
        int (*memory)(void *self, uint64_t gpa, uint8_t *data, uint64_t n_bytes, int is_write) noexcept nogil

    ctypedef struct ghcb_cpuid_entry_t:
        uint32_t function
        uint32_t index
        uint32_t eax
        uint32_t ebx
        uint32_t ecx
        uint32_t edx

    ctypedef struct ghcb_profile_t:
        uint64_t guest
        uint64_t min_version
        uint64_t max_version
        uint64_t c_bit
        uint64_t hv_features
        uint64_t sev_features
        uint64_t rules
        uint64_t msr_functions
        uint64_t nae_events
        uint64_t n_cpuid
        const ghcb_cpuid_entry_t *cpuid
        uint64_t faults
        uint64_t fault_seed
        uint64_t fault_rate

    ctypedef struct ghcb_host_t:
        const ghcb_profile_t *profile
        ghcb_vm_t *vm
        ghcb_vcpu_t *first
        ghcb_vcpu_t *others
        uint64_t stride
        uint64_t n_vcpus
        const ghcb_device_t *device

    ghcb_vcpu_t *ghcb_host_vcpu(const ghcb_host_t *host, uint64_t i)


cdef extern from "ghcbcore/hostile.h" nogil:
    enum:
        GHCB_FAULT_WRONG_ANSWER
        GHCB_FAULT_REFUSED_FEATURE
        GHCB_FAULT_LOST_WAKEUP
        GHCB_FAULT_DUPLICATED_WAKEUP
        GHCB_FAULT_EARLY_RESUME
        GHCB_FAULT_PARTIAL_PSC
        GHCB_FAULT_INJECTED_EXCEPTION
        GHCB_FAULT_OLDER_VERSION
        GHCB_FAULT_CHANGED_GHCB
        GHCB_FAULT_END


cdef extern from "ghcbcore/answer.h" nogil:
    void ghcb_answer_msr(const ghcb_host_t *host, ghcb_vcpu_t *vcpu)
    void ghcb_answer_page(const ghcb_host_t *host, ghcb_vcpu_t *vcpu, uint8_t *page)
    void ghcb_host_call(const ghcb_host_t *host, ghcb_vcpu_t *vcpu, uint64_t call)
    bint ghcb_host_may_run(const ghcb_host_t *host, const ghcb_vcpu_t *vcpu)
    uint64_t ghcb_host_sev_info(const ghcb_profile_t *profile, uint64_t max_version)


cdef extern from "ghcbcore/event.h" nogil:
    enum:
        GHCB_NAE_N_ROWS
        GHCB_NAE_NO_ROW

    ctypedef struct ghcb_nae_row_t:
        uint32_t code
        uint16_t inputs
        uint8_t snp_only
        uint8_t in_kvm

    const ghcb_nae_row_t ghcb_nae_rows[]
    unsigned int ghcb_nae_index(uint64_t code)
    unsigned int ghcb_nae_missing(
        uint64_t code, uint64_t info1, uint64_t rax, uint64_t valid_low, uint64_t valid_high
    )


cdef extern from "ghcbcore/kvm.h" nogil:
    enum:
        GHCB_KVM_MIN_VERSION
        GHCB_KVM_MAX_VERSION
        GHCB_KVM_C_BIT
        GHCB_HV_FEATURES_KVM
    uint64_t ghcb_kvm_msr_functions()
    uint64_t ghcb_kvm_nae_events()


cdef extern from "ghcbcore/ops.h" nogil:
    const char *GHCB_OPS_CAPSULE
    enum:
        GHCB_OPS_ABI

    ctypedef struct ghcb_ops_t:
        uint32_t abi_version
        uint32_t struct_size
        void *self
        uint64_t n_vcpus
        int (*msr)(void *, uint64_t, uint64_t, uint64_t *) noexcept nogil
        int (*msr_batch)(
            void *, const uint32_t *, const uint64_t *, uint64_t *, uint64_t, uint64_t *
        ) noexcept nogil
        int (*page)(void *, uint64_t, uint64_t, uint8_t *) noexcept nogil
        int (*page_batch)(
            void *, const uint32_t *, const uint64_t *, uint8_t *, uint64_t, uint64_t *
        ) noexcept nogil
        int (*call)(void *, uint64_t, uint64_t) noexcept nogil
        int (*get_vm)(void *, ghcb_vm_t *) noexcept nogil
        int (*get_vcpu)(void *, uint64_t, ghcb_vcpu_t *) noexcept nogil


cdef extern from "ghcbcore/machine.h" nogil:
    enum:
        GHCB_BLOCK_GLOBAL
        GHCB_BLOCK_OWN
        GHCB_BLOCK_OTHER
        GHCB_BLOCK_SHIFT
        GHCB_BLOCK_WORD
        GHCB_OP_EQ
        GHCB_OP_NE
        GHCB_OP_LT
        GHCB_OP_GE
        GHCB_OP_LAST_TEST
        GHCB_OP_SET
        GHCB_OP_ADD
        GHCB_OP_SHR
        GHCB_OP_SKIP
        GHCB_OP_EACH
        GHCB_OP_CALL
        GHCB_OP_FRAME
        GHCB_OP_REACH
        GHCB_OP_NUMBER
        GHCB_REACH_PLACE_SHIFT
        GHCB_REACH_PLACE_MASK
        GHCB_REACH_BLOCK_SHIFT
        GHCB_FRAME_REGION_SHIFT
        GHCB_TRACE_FRAME
        GHCB_OP_END
        GHCB_BIND_NONE
        GHCB_BIND_ANY
        GHCB_MAX_CPUS

    ctypedef struct ghcb_insn_t:
        uint16_t op
        uint16_t b_is_word
        uint32_t skip
        uint32_t a
        uint32_t b
        uint64_t imm
        uint64_t mask

    ctypedef struct ghcb_alt_t:
        uint32_t role
        uint32_t pc
        uint32_t guard
        uint32_t n_guards
        uint32_t effect
        uint32_t n_effects
        uint32_t binds
        uint32_t each
        uint64_t cost_ns
        uint64_t delay_ns
        uint64_t spread

    ctypedef struct ghcb_role_t:
        uint32_t block
        uint32_t pc_word
        uint32_t first
        uint32_t n_pcs

    ctypedef struct ghcb_event_t:
        uint64_t time_ns
        uint32_t cpu
        uint32_t call
        uint64_t msr
        uint64_t msr_after
        uint64_t sw_exit_code
        uint64_t sw_exit_info_1
        uint64_t sw_exit_info_2
        uint64_t info_1_after
        uint64_t info_2_after
        uint64_t took_ns
        uint64_t vm_event

    ctypedef struct ghcb_trace_t:
        ghcb_event_t *events
        uint64_t n
        uint64_t now_ns
        uint64_t cost_ns

cdef extern from "ghcbcore/page.h" nogil:
    enum:
        GHCB_PAGE_SIZE
        GHCB_VALID_CPL
        GHCB_VALID_RAX
        GHCB_VALID_RCX
        GHCB_VALID_RDX
        GHCB_VALID_RBX
        GHCB_VALID_SW_EXIT_CODE
        GHCB_VALID_SW_EXIT_INFO_1
        GHCB_VALID_SW_EXIT_INFO_2
        GHCB_VALID_SW_SCRATCH
        GHCB_VALID_XCR0
        GHCB_PAGE_SHIFT
        GHCB_OFF_SHARED_BUFFER
        GHCB_SHARED_BUFFER_SIZE
        GHCB_USAGE_STANDARD
    const uint64_t GHCB_KVM_REPLY_VALID_LO
    const uint64_t GHCB_KVM_REPLY_VALID_HI

    ctypedef struct ghcb_page_t:
        uint8_t cpl
        uint64_t rax
        uint64_t rcx
        uint64_t rdx
        uint64_t rbx
        uint64_t sw_exit_code
        uint64_t sw_exit_info_1
        uint64_t sw_exit_info_2
        uint64_t sw_scratch
        uint64_t xcr0
        uint64_t valid_bitmap[2]
        uint32_t ghcb_usage

cdef extern from "ghcbcore/nae.h" nogil:
    const uint64_t GHCB_NAE_DR7_READ
    const uint64_t GHCB_NAE_DR7_WRITE
    const uint64_t GHCB_NAE_RDTSC
    const uint64_t GHCB_NAE_RDPMC
    const uint64_t GHCB_NAE_CPUID
    const uint64_t GHCB_NAE_INVD
    const uint64_t GHCB_NAE_IOIO
    const uint64_t GHCB_NAE_MSR
    const uint64_t GHCB_NAE_VMMCALL
    const uint64_t GHCB_NAE_RDTSCP
    const uint64_t GHCB_NAE_WBINVD
    const uint64_t GHCB_NAE_MONITOR
    const uint64_t GHCB_NAE_MWAIT
    const uint64_t GHCB_NAE_MMIO_READ
    const uint64_t GHCB_NAE_MMIO_WRITE
    const uint64_t GHCB_NAE_NMI_COMPLETE
    const uint64_t GHCB_NAE_AP_RESET_HOLD
    const uint64_t GHCB_NAE_AP_JUMP_TABLE
    const uint64_t GHCB_NAE_PSC
    const uint64_t GHCB_NAE_SNP_GUEST_REQUEST
    const uint64_t GHCB_NAE_SNP_EXT_GUEST_REQUEST
    const uint64_t GHCB_NAE_SNP_AP_CREATION
    const uint64_t GHCB_NAE_HV_IPI
    const unsigned int GHCB_AP_CREATE_APIC_ID_SHIFT
    const uint64_t GHCB_NAE_HV_FEATURES
    const uint64_t GHCB_NAE_TERMINATE
    const uint64_t GHCB_NAE_UNSUPPORTED
    enum:
        GHCB_REPLY_OK
        GHCB_REPLY_MALFORMED
        GHCB_MALFORMED_USAGE
        GHCB_MALFORMED_SCRATCH
        GHCB_MALFORMED_MISSING_INPUT
        GHCB_MALFORMED_INVALID_INPUT
        GHCB_MALFORMED_INVALID_EVENT
        GHCB_AP_JUMP_TABLE_SET
        GHCB_AP_JUMP_TABLE_GET
        GHCB_IOIO_IN_SHIFT
        GHCB_IOIO_STRING_SHIFT
        GHCB_IOIO_SIZE_SHIFT
        GHCB_CPUID_LEAF_XSTATE
        GHCB_PSC_OFF_CUR_ENTRY
        GHCB_PSC_OFF_END_ENTRY
        GHCB_PSC_OFF_RESERVED
        GHCB_PSC_OFF_ENTRIES
        GHCB_PSC_ENTRY_SIZE
        GHCB_PSC_MAX_ENTRIES

cdef extern from "ghcbcore/msr.h" nogil:
    enum:
        GHCB_MSR_INFO_MASK
        GHCB_MSR_DATA_SHIFT
        GHCB_MSR_DATA_WIDTH
        GHCB_MSR_N_CODES
        GHCB_MSR_N_ROWS
        GHCB_MSR_NO_PAIR
        GHCB_MSR_NO_ROW
        GHCB_VERSION_MIN
        GHCB_VERSION_MAX
        GHCB_MSR_GHCB_GPA
        GHCB_MSR_SEV_INFO_RESP_MAX_SHIFT
        GHCB_MSR_SEV_INFO_RESP_MIN_SHIFT
        GHCB_MSR_SEV_INFO_RESP_C_BIT_SHIFT
        GHCB_MSR_CPUID_REQ_FN_SHIFT
        GHCB_MSR_CPUID_REQ_REG_SHIFT
        GHCB_MSR_CPUID_RESP_VALUE_SHIFT
        GHCB_MSR_SEV_INFO_RESP
        GHCB_MSR_SEV_INFO_REQ
        GHCB_MSR_AP_JUMP_TABLE_REQ
        GHCB_MSR_CPUID_REQ
        GHCB_MSR_CPUID_RESP
        GHCB_MSR_CPUID_REG_EAX
        GHCB_MSR_CPUID_REG_EBX
        GHCB_MSR_CPUID_REG_ECX
        GHCB_MSR_CPUID_REG_EDX
        GHCB_MSR_AP_RESET_HOLD_REQ
        GHCB_MSR_AP_RESET_HOLD_RESP
        GHCB_MSR_AP_RESET_HOLD_NOT_RELEASED
        GHCB_MSR_AP_RESET_HOLD_RELEASED
        GHCB_MSR_PREF_GPA_REQ
        GHCB_MSR_PREF_GPA_RESP
        GHCB_MSR_REG_GPA_REQ
        GHCB_MSR_REG_GPA_RESP
        GHCB_MSR_PSC_REQ
        GHCB_MSR_PSC_RESP
        GHCB_MSR_PSC_OP_PRIVATE
        GHCB_MSR_PSC_OP_SHARED
        GHCB_MSR_RUN_VMPL_REQ
        GHCB_MSR_RUN_VMPL_RESP
        GHCB_MSR_UNREG_GPA_REQ
        GHCB_MSR_UNREG_GPA_RESP
        GHCB_MSR_HV_FEATURES_REQ
        GHCB_MSR_HV_FEATURES_RESP
        GHCB_MSR_TERM_REQ
        GHCB_MSR_HYPERV_SPECIAL_HYPERCALL
        GHCB_MSR_HYPERV_SPECIAL_FAST_CALL
        GHCB_MSR_HYPERV_HYPERCALL_OUTPUT
        GHCB_MSR_HYPERV_DEBUG_PRINT
    # Too wide for a C enum.
    const uint64_t GHCB_MSR_NO_GFN
    const uint64_t GHCB_MSR_PSC_ERROR_KVM

    ctypedef struct ghcb_msr_t:
        uint64_t a
        uint16_t b
        uint8_t c
        uint8_t status
        uint16_t code
        uint16_t row

    ctypedef struct ghcb_msr_field_t:
        const char *name
        uint8_t shift
        uint8_t width

    ctypedef struct ghcb_msr_row_t:
        const char *name
        uint16_t code
        uint16_t pair
        uint8_t is_answer
        uint8_t n_fields
        ghcb_msr_field_t field[3]
        uint64_t reserved

    const ghcb_msr_row_t *ghcb_msr_rows
    const ghcb_msr_row_t *ghcb_msr_row(uint64_t code)
    int ghcb_msr_decode(uint64_t raw, ghcb_msr_t *out)
    int ghcb_msr_encode(uint64_t code, uint64_t a, uint64_t b, uint64_t c, uint64_t *raw)
    int ghcb_msr_check_answer(uint64_t request, uint64_t answer)

cdef extern from "ghcbcore/jumptable.h" nogil:
    const uint64_t GHCB_JUMP_TABLE_LIMIT
    const uint32_t GHCB_PARK_CR0
    enum:
        GHCB_JUMP_TABLE_NONE
        GHCB_JUMP_TABLE_SIZE
        GHCB_JUMP_TABLE_RESET_IP
        GHCB_JUMP_TABLE_RESET_CS
        GHCB_PARK_GDT_OFFSET
        GHCB_PARK_ENTRY
        GHCB_PARK_GDT_ALIGN
        GHCB_PARK_STACK_TOP
        GHCB_PARK_STACK_SIZE
        GHCB_PARK_GDT_SELF
        GHCB_PARK_GDT_CODE16
        GHCB_PARK_GDT_DATA16
        GHCB_PARK_GDT_REAL_DATA
        GHCB_PARK_GDT_ENTRIES
        GHCB_PARK_DESCRIPTOR_SIZE
        GHCB_PARK_SEGMENT_LIMIT
        GHCB_PARK_CODE_ACCESS
        GHCB_PARK_DATA_ACCESS
        GHCB_PARK_EFLAGS
    ctypedef struct ghcb_jump_table_t:
        uint16_t reset_ip
        uint16_t reset_cs
        uint16_t gdt_offset
    int ghcb_jump_table_check_gpa(uint64_t gpa)
    uint64_t ghcb_park_descriptor(uint32_t base, uint16_t limit, uint8_t access)
    uint32_t ghcb_park_descriptor_base(uint64_t descriptor)
    uint32_t ghcb_park_descriptor_limit(uint64_t descriptor)
    uint8_t ghcb_park_descriptor_access(uint64_t descriptor)
    uint8_t ghcb_park_descriptor_flags(uint64_t descriptor)
    uint64_t ghcb_park_gdt_self(uint32_t base, uint16_t limit)
    uint32_t ghcb_park_gdt_self_base(uint64_t self)
    uint16_t ghcb_park_gdt_self_limit(uint64_t self)

# ghcbcore/park.c: not in a header, because only ghcbcore.jumptable is linked with it.
cdef extern from * nogil:
    """
    extern const unsigned char ghcb_park_start[] __attribute__((visibility("hidden")));
    extern const unsigned char ghcb_park_operand[] __attribute__((visibility("hidden")));
    extern const unsigned char ghcb_park_gdt[] __attribute__((visibility("hidden")));
    extern const unsigned char ghcb_park_end[] __attribute__((visibility("hidden")));
    """
    const unsigned char ghcb_park_start[]
    const unsigned char ghcb_park_operand[]
    const unsigned char ghcb_park_gdt[]
    const unsigned char ghcb_park_end[]


cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass

    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


cdef extern from "pythread.h" nogil:
    # Cython's own declaration asks for the GIL, which this function does not need
    unsigned long PyThread_get_thread_ident()

cdef extern from "ghcbcore/fields.h" nogil:
    ctypedef struct ghcb_event_use_t:
        uint64_t info1_mask
        uint64_t info2_mask
        uint32_t returned
        uint32_t returned_always
        uint32_t since

    const ghcb_event_use_t *ghcb_event_uses
    uint32_t ghcb_fields_of_inputs(unsigned int inputs)

cdef extern from "ghcbcore/ghcb.h" nogil:
    enum:
        GHCB_SIDE_REQUEST
        GHCB_SIDE_ANSWER
        GHCB_SNP_NO
        GHCB_SNP_YES
        GHCB_SNP_NOT_SAID

    ctypedef struct ghcb_decoded_t:
        uint64_t xss
        uint64_t dr7
        uint64_t rip
        uint64_t rsp
        uint64_t rax
        uint64_t rcx
        uint64_t rdx
        uint64_t rbx
        uint64_t rbp
        uint64_t rsi
        uint64_t rdi
        uint64_t r8
        uint64_t r9
        uint64_t r10
        uint64_t r11
        uint64_t r12
        uint64_t r13
        uint64_t r14
        uint64_t r15
        uint64_t sw_exit_code
        uint64_t sw_exit_info_1
        uint64_t sw_exit_info_2
        uint64_t sw_scratch
        uint64_t xcr0
        uint64_t valid_lo
        uint64_t valid_hi
        uint64_t x87_state_gpa
        uint32_t ghcb_usage
        uint32_t valid
        uint32_t missing
        uint32_t flags
        uint16_t protocol_version
        uint16_t first_reserved
        uint8_t cpl
        uint8_t event
        uint8_t status
        uint8_t snp

    int ghcb_page_decode(const uint8_t *page, int side, int snp, ghcb_decoded_t *out)
    void ghcb_page_encode(const ghcb_decoded_t *source, uint8_t *page)

cdef extern from "ghcbcore/psc.h" nogil:
    enum:
        GHCB_PSC_ENTRY_FAULTS

    ctypedef struct ghcb_psc_entry_t:
        uint64_t gfn
        uint16_t cur_page
        uint16_t n_pages
        uint16_t flags
        uint8_t op
        uint8_t size

    ctypedef struct ghcb_psc_header_t:
        uint64_t kvm_status
        uint32_t reserved
        uint16_t cur_entry
        uint16_t end_entry
        uint16_t n_entries
        uint16_t first_bad
        uint16_t flags
        uint16_t status

    int ghcb_psc_entry_decode(uint64_t raw, ghcb_psc_entry_t *out)
    unsigned int ghcb_psc_entries_decode(const uint8_t *raw, ghcb_psc_entry_t *out, uint64_t n)
    int ghcb_psc_entry_encode(
        uint64_t gfn, uint64_t op, uint64_t size, uint64_t cur_page, uint64_t *raw
    )
    int ghcb_psc_decode(
        const uint8_t *buffer, uint64_t n_bytes, ghcb_psc_header_t *header, ghcb_psc_entry_t *entries
    )

cdef extern from "ghcbcore/msr_many.h" nogil:
    ctypedef struct ghcb_msr_operands_t:
        const uint64_t *code
        const uint64_t *a
        const uint64_t *b
        const uint64_t *c
        size_t code_step
        size_t a_step
        size_t b_step
        size_t c_step

    int ghcb_msr_encode_many(
        const ghcb_msr_operands_t *operands, uint64_t *raw, size_t n, size_t *done
    )
    void ghcb_msr_decode_many(const uint64_t *values, ghcb_msr_t *out, size_t n)
cdef extern from "ghcbcore/rmp.h" nogil:
    enum:
        RMP_STATE_DEFAULT
        RMP_STATE_FIRMWARE
    ctypedef struct ghcb_rmp_t:
        uint64_t gpa
        uint32_t asid
        uint16_t subpages
        uint8_t assigned
        uint8_t page_size
        uint8_t immutable
        uint8_t vmsa
        uint8_t validated
        uint8_t lock
        uint8_t vmpl0
        uint8_t vmpl1
        uint8_t vmpl2
        uint8_t vmpl3
        uint8_t implicit_key
        uint8_t root_port
        uint8_t ide_stream
        uint8_t migration
        uint8_t region
        uint8_t state
        uint8_t status
        uint8_t reserved_1f
    uint8_t ghcb_rmp_state(const ghcb_rmp_t *entry)
    void ghcb_rmp_decode(uint64_t low, uint64_t high, ghcb_rmp_t *out)
    int ghcb_rmp_encode(const ghcb_rmp_t *entry, uint64_t *low, uint64_t *high)
    void ghcb_rmp_decode_arch(uint64_t gpa, uint64_t rest, ghcb_rmp_t *out)
    int ghcb_rmp_encode_arch(const ghcb_rmp_t *entry, uint64_t *gpa, uint64_t *rest)
cdef extern from "ghcbcore/trace.h" nogil:
    const uint64_t GHCB_TRACE_NO_TIME
    const uint32_t GHCB_TRACE_NO_PID
    const uint32_t GHCB_TRACE_NO_VCPU
    enum:
        GHCB_TRACE_SKIP
        GHCB_TRACE_BAD
        GHCB_TRACE_NAE_ENTER
        GHCB_TRACE_NAE_EXIT
        GHCB_TRACE_MSR_ENTER
        GHCB_TRACE_MSR_EXIT
        GHCB_TRACE_RMP_FAULT
        GHCB_TRACE_KVM_EXIT
        GHCB_TRACE_OTHER
        GHCB_TRACE_LOST
        GHCB_TRACE_E_LONG
        GHCB_TRACE_NO_CPU
        GHCB_TRACE_LINE_MAX
        GHCB_TRACE_NAME_MAX
        GHCB_TRACE_N_NAMES

    ctypedef struct ghcb_trace_line_t:
        uint64_t line
        uint64_t offset
        uint64_t time_ns
        uint64_t a
        uint64_t b
        uint64_t c
        uint32_t pid
        uint32_t tgid
        uint32_t vcpu
        int32_t result
        uint16_t cpu
        uint8_t kind
        uint8_t detail
        uint8_t form
        uint8_t reserved_45
        uint16_t reserved_46

cdef extern from "ghcbcore/traceline.h" nogil:
    enum:
        GHCB_TRACE_PAD
    uint8_t ghcb_trace_parse(
        const char *p, const char *end, ghcb_trace_line_t *out, const char **name, uint32_t *n_name
    )
    uint8_t ghcb_trace_bad(ghcb_trace_line_t *out, uint8_t why)

cdef extern from "ghcbcore/traceprint.h" nogil:
    enum:
        GHCB_TRACE_PRINT_MAX
    char *ghcb_trace_print(char *p, const ghcb_trace_line_t *line)

cdef extern from "ghcbcore/exchange.h" nogil:
    const uint64_t GHCB_EXCHANGE_NOT_OFFERED
    enum:
        GHCB_EXCHANGE_PAGE
        GHCB_EXCHANGE_ENTER
        GHCB_EXCHANGE_EXIT
        GHCB_EXCHANGE_USER
        GHCB_EXCHANGE_ENDED
        GHCB_EXCHANGE_OPEN
        GHCB_EXCHANGE_OVERLAP
        GHCB_EXCHANGE_FIRST
        GHCB_EXCHANGE_LOST
        GHCB_EXCHANGE_CHANGED
        GHCB_EXCHANGE_BACKWARDS
        GHCB_EXCHANGE_UNREGISTERED
        GHCB_EXCHANGE_STEPS
        GHCB_EXCHANGE_N_BINS
        GHCB_EXCHANGE_N_KINDS
        GHCB_EXCHANGE_MAX_VCPUS

    ctypedef struct ghcb_exchange_t:
        uint64_t begin_ns
        uint64_t end_ns
        uint64_t msr
        uint64_t msr_after
        uint64_t sw_exit_code
        uint64_t sw_exit_info_1
        uint64_t sw_exit_info_2
        uint64_t info_1_after
        uint64_t info_2_after
        uint64_t enter_line
        uint64_t exit_line
        uint64_t offered
        uint32_t pid
        uint32_t tgid
        uint32_t vcpu
        int32_t result
        uint16_t cpu
        uint16_t kind
        uint16_t flags
        uint16_t version

    uint32_t ghcb_exchange_bin(uint64_t ns)

cdef extern from "ghcbcore/frame.h" nogil:
    enum:
        FRAME_ASSIGNED
        FRAME_UNCOVERED
        FRAME_LARGE
        FRAME_IN_USE
        FRAME_KEY_SHIFT
        FRAME_KEY_WIDTH
        FRAME_ASID_WIDTH
        FRAME_REGION
        FRAME_N_VIEWS

    uint64_t FRAME_GFN_MASK

    ctypedef struct ghcb_frame_t:
        uint64_t word
        uint64_t gfn

    bint ghcb_frame_has(uint64_t word, unsigned int bit)
    ghcb_frame_t ghcb_frame_own(const ghcb_frame_t *frame, bint is_first)
    void ghcb_frame_entry(const ghcb_frame_t *frame, uint64_t pfn, ghcb_rmp_t *out)
    void ghcb_frame_stored(
        const ghcb_frame_t *frame, uint64_t pfn, bint is_first, unsigned int subpages, ghcb_rmp_t *out
    )
    int ghcb_frame_take_entry(ghcb_frame_t *frame, uint64_t pfn, const ghcb_rmp_t *entry)

cdef extern from "ghcbcore/frame_op.h" nogil:
    enum:
        FRAME_KEY_NONE
        FRAME_OP_MAP
        FRAME_OP_BELIEVE
        FRAME_OP_LIST
        FRAME_OP_CONTENT
        FRAME_OP_RMPQUERY
        FRAME_OP_GCTX_CREATE
        FRAME_OP_MOVE
        FRAME_OP_INIT
        FRAME_OP_END
        FRAME_LEAF_2M
        FRAME_LEAF_1G
        FRAME_PRIVATE
        FRAME_LISTED_PRIVATE
        FRAME_RESULT_KIND_SHIFT
        FRAME_RESULT_CODE_SHIFT
        FRAME_RESULT_CODE_WIDTH
        FRAME_RESULT_UNCHANGED

    ctypedef struct ghcb_frame_op_t:
        uint64_t kind
        uint64_t size
        uint64_t backing
        uint64_t asid
        uint64_t vmpl
        uint64_t target
        uint64_t gfn
        uint64_t value

    ctypedef struct ghcb_frame_rules_t:
        uint64_t flags
        uint64_t max_asid

    bint ghcb_frame_refused(uint64_t result)

cdef extern from "ghcbcore/frame_rule.h" nogil:
    bint ghcb_frame_is_region_op(const ghcb_frame_op_t *op)
    uint64_t ghcb_frame_apply(
        const ghcb_frame_op_t *op, const ghcb_frame_rules_t *rules, ghcb_frame_t *frames, uint64_t n,
        uint64_t at, uint64_t pfn,
    )
    uint64_t ghcb_frame_move(
        const ghcb_frame_op_t *op, ghcb_frame_t *source, ghcb_frame_t *destination, uint64_t distance
    )

cdef extern from "ghcbcore/frame_tree.h" nogil:
    enum:
        GHCB_STORE_BEYOND
        GHCB_STORE_NO_MEMORY
        GHCB_TREE_NODE_SHIFT
        GHCB_TREE_REGION_SHIFT

    uint32_t GHCB_SINCE_EVENT
    uint32_t GHCB_SINCE_EARLIER
    uint64_t GHCB_STORE_FREED

    ctypedef struct ghcb_record_t:
        ghcb_frame_t frame
        uint64_t n_pages
        uint64_t refs
        uint32_t since[5]

    ctypedef struct ghcb_store_t:
        ghcb_record_t *records
        uint32_t n_records
        uint32_t n_used
        size_t bytes
        size_t max_bytes

    ctypedef struct ghcb_tree_t:
        ghcb_store_t store
        uint64_t *root
        uint64_t n_root
        uint64_t n_pages
        ghcb_frame_rules_t rules
        uint32_t event
        uint32_t n_blurred
        const ghcb_frame_op_t *sequence
        uint32_t n_sequence

    ctypedef struct ghcb_tree_done_t:
        uint64_t n_done
        uint64_t n_changed
        uint64_t result

    void ghcb_store_begin(ghcb_store_t *store)
    void ghcb_store_settle(ghcb_store_t *store)
    int ghcb_tree_open(ghcb_tree_t *tree, uint64_t *root, uint64_t n_pages, const ghcb_frame_t *frame)
    void ghcb_tree_close(ghcb_tree_t *tree)
    int ghcb_tree_split_around(ghcb_tree_t *tree, const ghcb_frame_op_t *op, uint64_t first, uint64_t end)
    int ghcb_tree_range(
        ghcb_tree_t *tree, const ghcb_frame_op_t *op, uint64_t first, uint64_t end, ghcb_tree_done_t *done
    )
    int ghcb_tree_array(
        ghcb_tree_t *tree, const ghcb_frame_op_t *op, const uint64_t *frames, uint64_t n, uint64_t n_each,
        ghcb_tree_done_t *done,
    )
    int ghcb_tree_put(ghcb_tree_t *tree, uint64_t p, const ghcb_frame_t *frame)
    uint32_t ghcb_root_id(const uint64_t *root, uint64_t p)
    void ghcb_root_share(ghcb_store_t *store, const uint64_t *root, uint64_t *copy, uint64_t n_root)
    void ghcb_root_release(ghcb_store_t *store, const uint64_t *root, uint64_t n_root)

cdef extern from "ghcbcore/frame_walk.h" nogil:
    ctypedef struct ghcb_runs_t:
        uint64_t *first
        uint64_t *n_pages
        uint32_t *class_ "class"
        uint64_t room
        uint64_t n

    uint64_t ghcb_root_runs(
        const uint64_t *root, const uint32_t *classes, uint64_t first, uint64_t end, ghcb_runs_t *runs
    )
    void ghcb_root_count(
        const uint64_t *root, const uint32_t *classes, uint64_t first, uint64_t end, uint64_t *out
    )
    uint64_t ghcb_root_differences(
        const ghcb_store_t *store, const uint64_t *before, const uint64_t *after, uint64_t first,
        uint64_t end, unsigned int views, ghcb_runs_t *runs,
    )

cdef extern from "ghcbcore/rmp_geometry.h" nogil:
    enum:
        RMP_ENTRY_BYTES
        RMP_FIRMWARE_ALIGN
    ctypedef struct ghcb_rmp_table_t:
        uint64_t base
        uint64_t end
        uint64_t n_entries
        uint64_t entries
        uint64_t large_start
        uint64_t large_end
        uint64_t is_aligned
    uint64_t ghcb_rmp_bytes_for(uint64_t n_pages)
    int ghcb_rmp_table(uint64_t base, uint64_t end, ghcb_rmp_table_t *out)
    int ghcb_rmp_entry_at(const ghcb_rmp_table_t *table, uint64_t pfn, uint64_t *spa)
    int ghcb_rmp_page_of(const ghcb_rmp_table_t *table, uint64_t spa, uint64_t *pfn)

cdef extern from "ghcbcore/rmp_segment.h" nogil:
    enum:
        RMP_SEGMENTS
        RMP_FLAW_NONE
        RMP_FLAW_RESERVED
        RMP_FLAW_OVERLAP

    ctypedef struct ghcb_rmp_cfg_t:
        uint32_t is_segmented
        uint32_t shift
        uint32_t status

    ctypedef struct ghcb_rmp_limits_t:
        uint32_t min_shift
        uint32_t max_shift
        uint32_t n_cached
        uint32_t is_hard

    ctypedef struct ghcb_rmp_segment_t:
        uint64_t spa
        uint32_t mapped_gib
        uint32_t status

    ctypedef struct ghcb_rmp_flaw_t:
        uint32_t flaw
        uint32_t index
        uint32_t other

    ctypedef struct ghcb_rmp_geometry_t:
        uint64_t base
        uint64_t base_end
        uint32_t shift
        uint32_t is_segmented
        uint32_t n_segments
        uint32_t n_indices

    void ghcb_rmp_cfg_decode(uint64_t word, ghcb_rmp_cfg_t *out)
    int ghcb_rmp_cfg_encode(uint64_t is_segmented, uint64_t shift, uint64_t *word)
    void ghcb_rmp_limits_decode(uint32_t eax, uint32_t ebx, ghcb_rmp_limits_t *out)
    void ghcb_rmp_segment_decode(uint64_t word, ghcb_rmp_segment_t *out)
    int ghcb_rmp_segment_encode(const ghcb_rmp_segment_t *segment, uint64_t *word)
    int ghcb_rmp_of_range(uint64_t base, uint64_t end, ghcb_rmp_geometry_t *out)
    uint64_t ghcb_rmp_segment_start(const ghcb_rmp_geometry_t *geometry, unsigned int index)
    uint64_t ghcb_rmp_segment_end(const ghcb_rmp_geometry_t *geometry, unsigned int index)
    uint64_t ghcb_rmp_segment_pages(const ghcb_rmp_geometry_t *geometry, unsigned int index)
    int ghcb_rmp_of_segments(
        uint64_t base,
        uint64_t cfg,
        const uint64_t *words,
        uint32_t n_words,
        const ghcb_rmp_limits_t *limits,
        int is_reduced,
        ghcb_rmp_geometry_t *out,
        ghcb_rmp_flaw_t *why,
    )
    int ghcb_rmp_locate(const ghcb_rmp_geometry_t *geometry, uint64_t pfn, uint64_t *spa)
    int ghcb_rmp_page_at(const ghcb_rmp_geometry_t *geometry, uint64_t spa, uint64_t *pfn)

cdef extern from "ghcbcore/frame_view.h" nogil:
    ctypedef struct ghcb_frame_view_t:
        uint64_t gfn
        uint32_t asid
        uint32_t differ
        uint16_t key
        uint8_t state
        uint8_t assigned
        uint8_t large
        uint8_t immutable
        uint8_t vmsa
        uint8_t validated
        uint8_t lock
        uint8_t in_use
        uint8_t vmpl0
        uint8_t vmpl1
        uint8_t vmpl2
        uint8_t vmpl3
        uint8_t mapping
        uint8_t leaf
        uint8_t believed
        uint8_t listed

    void ghcb_frame_view(
        const ghcb_frame_t *frame, uint64_t pfn, uint64_t asid, ghcb_frame_view_t *out
    )

cdef extern from "ghcbcore/frame_record.h" nogil:
    uint64_t GHCB_FRAME_OP_MASK

    ctypedef struct ghcb_region_t:
        uint32_t first
        uint32_t n_frames

    ctypedef struct ghcb_frames_t:
        const ghcb_frame_op_t *ops
        const ghcb_region_t *regions
        ghcb_frame_rules_t rules

    uint64_t ghcb_frames_carry_out(
        const ghcb_frames_t *frames, uint64_t *g, uint64_t which, uint64_t at
    )

cdef extern from "ghcbcore/aes.h" nogil:
    enum:
        GHCB_AES_BLOCK
        GHCB_AES_KEY_128
        GHCB_AES_KEY_256
        GHCB_AES_PATH_PORTABLE
        GHCB_AES_N_PATHS
    int ghcb_aes_best_path()

cdef extern from "ghcbcore/cipher.h" nogil:
    enum:
        GHCB_CIPHER_XE
        GHCB_CIPHER_XEX
        GHCB_CIPHER_XTS
        GHCB_CIPHER_FIRST_BIT
        GHCB_CIPHER_N_PUBLISHED
        GHCB_CIPHER_ADDRESS_BITS
        GHCB_CIPHER_UNIT_SHIFT
        GHCB_CIPHER_UNIT_SHIFT_MIN
        GHCB_CIPHER_UNIT_SHIFT_MAX
        GHCB_CIPHER_HIDDEN
        GHCB_CIPHER_LINE
        GHCB_CIPHER_SORT_KEY
        GHCB_CIPHER_SORT_TWEAK

    ctypedef uint8_t ghcb_block_t[16]
    ctypedef struct ghcb_tweaks_t:
        pass
    ctypedef struct ghcb_cipher_t:
        uint64_t stream_from
    int ghcb_tweaks_init(ghcb_tweaks_t *tweaks, const ghcb_block_t *constants, size_t n)
    size_t ghcb_tweaks_published(ghcb_block_t *out)
    void ghcb_tweak(const ghcb_tweaks_t *tweaks, uint64_t spa, uint8_t *out)
    int ghcb_cipher_key_fits(uint32_t mode, size_t n_bytes)
    int ghcb_cipher_init(
        ghcb_cipher_t *cipher, uint32_t mode, const uint8_t *key, size_t n_bytes,
        const ghcb_tweaks_t *address, uint32_t unit_shift, uint32_t path
    )
    void ghcb_cipher_draw(
        const uint8_t *seed, uint64_t sort, uint64_t which, uint64_t times, uint8_t *out,
        size_t n_bytes
    )
    int ghcb_cipher_channel_key(
        uint32_t mode, const uint8_t *seed, size_t n_bytes, uint64_t channel, uint8_t *out
    )

cdef extern from "ghcbcore/cipher_many.h" nogil:
    void ghcb_cipher_crypt(
        const ghcb_cipher_t *cipher, int decrypt, const uint8_t *data, uint8_t *out, uint64_t spa,
        size_t n_bytes
    )

cdef extern from "ghcbcore/cacheline.h" nogil:
    enum:
        GHCB_LINE_SHIFT
        GHCB_LINE_BYTES
        GHCB_LINES_PER_PAGE
        GHCB_CELL_BITS
        GHCB_CELL_SLOT
        GHCB_CELL_PRESENT
        GHCB_CELL_DIRTY
        GHCB_LINE_ALIASES
        GHCB_LINE_N_VALUES
        GHCB_LINE_NOISE
        GHCB_CACHE_LOAD
        GHCB_CACHE_STORE
        GHCB_CACHE_CLFLUSH
        GHCB_CACHE_WBINVD
        GHCB_CACHE_WBNOINVD
        GHCB_CACHE_INVD
        GHCB_CACHE_PAGE_FLUSH
        GHCB_CACHE_DF_FLUSH
        GHCB_CACHE_REKEY
        GHCB_CACHE_CONVERT
        GHCB_CACHE_KEXEC
        GHCB_CACHE_HALT
        GHCB_CACHE_OPS_END
        GHCB_CACHE_EVICT
        GHCB_CACHE_CLEAN
        GHCB_CACHE_FORGET
        GHCB_CACHE_DRAIN

    ctypedef struct ghcb_cache_op_t:
        uint32_t kind
        uint32_t cpu
        uint32_t line
        uint32_t slot
        uint32_t value
        uint32_t block

    ctypedef struct ghcb_cache_event_t:
        uint32_t kind
        uint32_t op
        uint32_t cpu
        uint32_t line
        uint32_t slot
        uint32_t value

    ctypedef struct ghcb_line_t:
        uint64_t *first
        uint64_t *others
        uint64_t stride
        uint64_t n_cpus
        uint64_t *memory
        uint64_t coherent

    uint64_t ghcb_cell(uint64_t slot, uint64_t value)
    uint64_t ghcb_cell_slot(uint64_t cell)
    uint64_t ghcb_cell_value(uint64_t cell)
    uint64_t ghcb_cell_read(uint64_t cell, uint64_t slot)
    uint64_t ghcb_line_n_dirty(uint64_t word)
    uint64_t ghcb_line_drop(uint64_t word, uint64_t slot)
    uint64_t ghcb_line_drop_clean(uint64_t word)
    uint64_t ghcb_memory_content(uint64_t memory)
    uint64_t ghcb_memory_drain(uint64_t memory)
    uint64_t ghcb_memory_rekey(uint64_t memory, uint64_t slot)
    void ghcb_line_write_back(uint64_t *word, uint64_t slot, uint64_t *memory)
    void ghcb_line_evict(uint64_t *word, uint64_t slot, uint64_t *memory)
    int ghcb_line_load(
        const ghcb_line_t *at, uint64_t cpu, uint64_t slot, uint64_t *value
    )
    int ghcb_line_store(const ghcb_line_t *at, uint64_t cpu, uint64_t slot, uint64_t value)
    int ghcb_line_clflush(const ghcb_line_t *at, uint64_t slot)
    int ghcb_line_page_flush(const ghcb_line_t *at, uint64_t asid)
    void ghcb_line_invd(uint64_t *word)

cdef extern from "ghcbcore/cacheset.h" nogil:
    enum:
        GHCB_CACHE_MAX_WAYS
        GHCB_CACHE_MAX_LEVELS
        GHCB_CACHE_LINE_BITS
        GHCB_CACHE_SET_WORDS
        GHCB_TAG_SHIFT
    const uint64_t GHCB_TAG_DIRTY
    const uint64_t GHCB_TAG_EMPTY
    const uint64_t GHCB_ORDER_NEW

    ctypedef struct ghcb_cache_level_t:
        uint64_t *sets
        uint64_t *tags
        uint64_t *versions
        uint64_t n_sets
        uint64_t mask
        uint64_t ways

cdef extern from "ghcbcore/frame_batch.h" nogil:
    uint64_t ghcb_batch_frames(
        ghcb_tree_t *tree, const ghcb_frame_op_t *op, const uint64_t *frames, uint64_t n,
        ghcb_tree_done_t *done,
    )

cdef extern from "ghcbcore/keyslot.h" nogil:
    enum:
        GHCB_KEY_SLOT_NONE
        GHCB_KEY_SLOT_FIRST_ASID
        GHCB_KEY_SLOT_LAST_ASID
        GHCB_KEY_SLOT_IOMMU
        GHCB_KEY_SLOT_SME
        GHCB_KEY_N_SLOTS

cdef extern from "ghcbcore/cachepages.h" nogil:
    const uint64_t GHCB_PAGES_NONE

    ctypedef struct ghcb_cache_pages_t:
        uint64_t *table
        uint64_t *meant
        uint64_t *dram
        uint64_t *holders
        uint64_t mask
        uint64_t n_blocks
        uint64_t last_page

    uint64_t ghcb_pages_entry(ghcb_cache_pages_t *pages, uint64_t line)
    bint ghcb_pages_is_known(const ghcb_cache_pages_t *pages, uint64_t line)
    void ghcb_pages_move(ghcb_cache_pages_t *pages, const uint64_t *table, uint64_t n)

cdef extern from "ghcbcore/cachelevels.h" nogil:
    enum:
        GHCB_CACHE_VERSION_BITS
    const uint64_t GHCB_CACHE_TRACKED
    const uint64_t GHCB_CACHE_INCLUSIVE
    const uint64_t GHCB_CACHE_SHARED
    const uint64_t GHCB_CACHE_COHERENT
    const uint64_t GHCB_CACHE_RANDOM
    const uint64_t GHCB_CACHE_USUAL

    ctypedef struct ghcb_cache_t:
        ghcb_cache_level_t level[3]
        uint64_t n_units[3]
        uint64_t n_levels
        uint64_t n_cores
        uint64_t cores_per_l3
        uint64_t kind
        uint64_t seed
        uint64_t *entries
        uint64_t hits[3]
        uint64_t others
        uint64_t fills
        uint64_t write_backs
        ghcb_cache_pages_t pages

    ctypedef struct ghcb_cache_trace_t:
        const uint64_t *lines
        const uint8_t *stores
        const uint16_t *slots
        const uint32_t *cores
        uint64_t n
        uint64_t store_step
        uint64_t slot_step
        uint64_t core_step

cdef extern from "ghcbcore/cachepeers.h" nogil:
    void ghcb_cache_flush_line(ghcb_cache_t *c, uint64_t line, uint64_t slot, uint64_t every)

cdef extern from "ghcbcore/cacherun.h" nogil:
    bint ghcb_cache_is_usual(const ghcb_cache_t *c)
    uint64_t ghcb_cache_run(
        ghcb_cache_t *c, const ghcb_cache_trace_t *trace, uint64_t i, uint64_t end
    )

cdef extern from "ghcbcore/cachewalk.h" nogil:
    uint64_t ghcb_cache_list_all(
        ghcb_cache_t *c, uint64_t first, uint64_t end, uint64_t *keys, uint64_t *versions
    )
    void ghcb_cache_empty_all(ghcb_cache_t *c, uint64_t first, uint64_t end)
    void ghcb_cache_write_all(
        ghcb_cache_t *c, uint64_t *keys, uint64_t *versions, uint64_t n
    )
    void ghcb_cache_evict(ghcb_cache_t *c, uint64_t n)
    void ghcb_cache_count(const ghcb_cache_t *c, uint64_t i, uint64_t *counts)

cdef extern from "ghcbcore/places.h" nogil:
    uint64_t GHCB_REACH_OP_MASK
    enum:
        GHCB_PLACE_END
        GHCB_REACH_N_ARGS

    ctypedef struct ghcb_place_t:
        uint32_t kind
        uint32_t options
        uint32_t first
        uint32_t n_words
        uint32_t slice_first
        uint32_t n_slice

    ctypedef struct ghcb_reach_op_t:
        uint32_t code
        uint32_t local
        uint64_t arg[3]

    ctypedef struct ghcb_places_t:
        const ghcb_reach_op_t *ops
        const ghcb_place_t *places

    ctypedef struct ghcb_reach_from_t:
        uint64_t *words
        uint64_t *own
        uint64_t *slices
        uint64_t n_slices
        uint64_t stride

    uint64_t ghcb_places_carry_out(
        const ghcb_places_t *places, const ghcb_reach_from_t *reach, uint64_t which, uint64_t value
    )

cdef extern from "ghcbcore/firmware_step.h" nogil:
    enum:
        GHCB_FW_MAX_CCXS
        GHCB_FW_MAX_GUESTS
        GHCB_FW_N_BADS
        GHCB_FW_STEP_COMMAND
        GHCB_FW_STEP_WBINVD
        GHCB_FW_STEP_WBNOINVD
        GHCB_FW_STEP_END
        GHCB_FW_SEV_SHIFT
        GHCB_FW_SEV_WIDTH
        GHCB_FW_SNP_SHIFT
        GHCB_FW_RMP_SHIFT
        GHCB_FW_IOMMU_SHIFT
        GHCB_FW_ES_SHIFT
        GHCB_FW_OWNED_SHIFT
        GHCB_FW_REBUILD_SHIFT
        GHCB_FW_LIMIT_SHIFT
        GHCB_FW_LIMIT_WIDTH
        GHCB_FW_GUEST_STATE_SHIFT
        GHCB_FW_GUEST_STATE_WIDTH
        GHCB_FW_GUEST_TYPE_SHIFT
        GHCB_FW_GUEST_TYPE_WIDTH
        GHCB_FW_GUEST_ACTIVE_SHIFT
        GHCB_FW_GUEST_ACTIVE_WIDTH
        GHCB_FW_GUEST_ASID_SHIFT
        GHCB_FW_GUEST_ASID_WIDTH
        GHCB_FW_GUEST_DEBUG_SHIFT
        GHCB_FW_GUEST_SOCKET_SHIFT
        GHCB_FW_GUEST_IMAGE_SHIFT
        GHCB_FW_GUEST_CCXS_SHIFT
        GHCB_FW_GUEST_CCXS_WIDTH
        GHCB_FW_THREAD_DONE_SHIFT
        GHCB_FW_THREAD_KEPT_SHIFT
        GHCB_FW_THREAD_RUNS_SHIFT
        GHCB_FW_THREAD_RUNS_WIDTH
        GHCB_FW_THREAD_OFFLINE_SHIFT
        GHCB_FW_THREAD_SNP_EN_SHIFT
        GHCB_FW_THREAD_HSAVE_SHIFT
        GHCB_FW_THREAD_FIRST_SHIFT
        GHCB_FW_THREAD_CCX_SHIFT
        GHCB_FW_THREAD_CCX_WIDTH
    const uint64_t GHCB_FW_ALL_THREADS
    const uint64_t GHCB_FW_UNMODELLED

    ctypedef struct ghcb_fw_t:
        uint64_t *state
        uint64_t *keys
        uint64_t *guests
        uint64_t *cells
        uint64_t *boot
        uint64_t *others
        uint64_t n_others
        uint64_t stride
        uint64_t n_guests
        uint64_t n_ccxs
        uint64_t max_asid
        uint64_t first_sev_asid
        uint64_t n_bitmap
        uint64_t rules

    ctypedef struct ghcb_fw_op_t:
        uint64_t command
        uint64_t guest
        uint64_t asid
        uint64_t ccxs
        uint64_t options
        uint64_t bad
        uint64_t pages
        uint64_t policy
        uint64_t length
        uint64_t limit
        uint64_t target

    ctypedef struct ghcb_fw_step_t:
        uint64_t step
        uint64_t thread
        ghcb_fw_op_t op

    ctypedef struct ghcb_fw_answer_t:
        uint64_t status
        uint64_t kind
        uint64_t arg

    ctypedef struct ghcb_fw_check_t:
        uint32_t kind
        uint32_t status
        uint64_t arg

    int ghcb_fw_checks(uint64_t command, const ghcb_fw_check_t **found)
    uint64_t ghcb_fw_bads(uint64_t command)
    uint64_t ghcb_fw_n_bitmap(uint64_t max_asid)
    void ghcb_fw_invalidate_all(const ghcb_fw_t *fw, uint64_t *thread)
    void ghcb_fw_step(const ghcb_fw_t *fw, const ghcb_fw_step_t *step, ghcb_fw_answer_t *answer)

cdef extern from "ghcbcore/firmware_reach.h" nogil:
    enum:
        GHCB_FW_REACH_LAST_ASID
        GHCB_FW_REACH_LAST_GUEST

    bint ghcb_fw_reach_args(const ghcb_fw_op_t *op, uint64_t *arg)
    uint64_t ghcb_fw_reach_options(const ghcb_fw_t *fw)
