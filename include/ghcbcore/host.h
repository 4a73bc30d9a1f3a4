/* The hypervisor's state as flat records, and what a host is made of.
 *
 * One record for the VM, one for each vCPU, one of constants. Every field of the first two is 64
 * bits wide, so that they can be the first words of a machine's record (`machine.h`) and the host's
 * functions work on them where they stand. The functions are in `answer.h` (requests), `vcpu.h`
 * (what becomes of a vCPU) and `hostile.h` (faults by intention): pure on what they are handed, no
 * heap, no clock.
 *
 * What a host does not decide itself (a port, an MSR, guest memory, the firmware) it asks of a
 * `ghcb_device_t`. Without one, such a request ends the run with an event: this host does not make
 * up what a device would have said.
 *
 * Source of the states: KVM's `struct kvm_vcpu` and `struct vcpu_sev_es_state` as described in
 * the GHCB fact sheet 5, 6, 7; numbers of mp_state are those of Linux `linux/kvm.h`.
 */
#ifndef GHCBCORE_HOST_H
#define GHCBCORE_HOST_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
/* ghcb_vcpu_t.mp_state, as KVM_GET_MP_STATE reports it */
#define GHCB_MP_RUNNABLE 0
#define GHCB_MP_UNINITIALIZED 1
#define GHCB_MP_INIT_RECEIVED 2
#define GHCB_MP_HALTED 3
#define GHCB_MP_AP_RESET_HOLD 9

/* ghcb_vcpu_t.reset_hold: how the vCPU asked to be held, and so where the answer goes */
#define GHCB_HOLD_NONE 0
#define GHCB_HOLD_NAE 1
#define GHCB_HOLD_MSR 2

/* ghcb_vcpu_t.entry: with which registers the vCPU enters the guest the next time */
#define GHCB_ENTRY_RESUME 0 /* its own, as they were: nothing else is possible under SEV-ES */
#define GHCB_ENTRY_LAUNCH 1 /* those of the launch VMSA: the first SIPI of an SEV-ES vCPU */
#define GHCB_ENTRY_VECTOR 2 /* reset by the hypervisor, CS:IP from the SIPI vector: no SEV-ES */
#define GHCB_ENTRY_VMSA 3   /* those of the VMSA that the guest named by AP creation: SNP */

/* ghcb_vcpu_t.vmsa: from which VMSA it runs, if not from the GPA of one */
#define GHCB_VMSA_LAUNCH 0 /* the one it was launched with */
#define GHCB_VMSA_NONE 0xffffffffffffffffULL /* destroyed: it cannot run */

/* ghcb_vcpu_t.vmsa_pending: mask of what waits */
#define GHCB_VMSA_ON_INIT 1 /* a VMSA that the next reset puts to use, by INIT or by ... */
#define GHCB_VMSA_ON_RUN 2  /* ... the reset that the vCPU meets when it is about to run */

/* ghcb_vm_t.event: what went to user space and ended the run */
#define GHCB_EVENT_NONE 0
#define GHCB_EVENT_SEV_TERM 1 /* KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_SEV_TERM */
#define GHCB_EVENT_SHUTDOWN 2 /* triple fault: SVM exit 0x7F, KVM_EXIT_SHUTDOWN */
#define GHCB_EVENT_EINVAL 3   /* KVM_RUN returns -EINVAL */
#define GHCB_EVENT_IO 4       /* KVM_EXIT_IO: needs a device model */
#define GHCB_EVENT_MMIO 5     /* KVM_EXIT_MMIO: needs a device model */
#define GHCB_EVENT_INTERNAL 6 /* KVM_EXIT_INTERNAL_ERROR: unexpected exit reason */
#define GHCB_EVENT_UNMODELLED 7 /* KVM emulates the instruction; this host has no model of it */
#define GHCB_EVENT_EFAULT 8   /* KVM_RUN returns -EFAULT or -EIO: guest memory is not there */

/* ghcb_profile_t.guest */
#define GHCB_GUEST_PLAIN 0
#define GHCB_GUEST_SEV_ES 1
#define GHCB_GUEST_SNP 2

/* ghcb_profile_t.rules: bits in which hosts differ. All clear is KVM as of Linux 7.0. */
#define GHCB_RULE_REPLY_UNREGISTERED 0  /* a page that is not registered: malformed, reason 1 */
#define GHCB_RULE_REGISTER_ON_USE 1     /* ... is registered by its first use */
#define GHCB_RULE_REGISTER_ONCE 2       /* a second registration is refused */
#define GHCB_RULE_SCRATCH_IN_PAGE 3     /* version 2: no scratch area outside of the page */
#define GHCB_RULE_MMIO_8 4              /* version 2: MMIO of at most 8 bytes; 0 bytes: done */
#define GHCB_RULE_EMPTY_IO 5            /* string I/O of nothing: done */
#define GHCB_RULE_GP_SIGN_EXTENDED 6    /* #GP is injected with bits [63:32] set, as older KVM */
#define GHCB_RULE_GP_BARE 7             /* #GP is injected as the bare vector */
#define GHCB_RULE_AP_VMPL 8             /* AP creation at a VMPL other than 0 */
#define GHCB_RULE_AP_FEATURES_LOOSE 9   /* ... with other SEV_FEATURES than the VM's */
#define GHCB_RULE_XCR0_OPTIONAL 10      /* CPUID 0xD without xcr0 */
#define GHCB_RULE_INPUT_UNCHECKED 11    /* missing inputs count as 0 */
#define GHCB_RULE_UNKNOWN_EINVAL 12     /* an unknown request goes to user space as an error */
#define GHCB_RULE_MISSING_EINVAL 13     /* ... and so does one with a missing input */
#define GHCB_RULE_REPLY_ADDS 14         /* the guest's valid bits stay, those of the reply come */
#define GHCB_RULE_REPLY_ALONE 15        /* the page is zeroed; only what is returned is valid */
#define GHCB_RULE_REREADS 16            /* fields are read again after they were checked */
#define GHCB_RULE_CODE_32 17            /* only the low half of sw_exit_code is looked at */
#define GHCB_RULE_PSC_ERROR_ONE 18      /* MSR: a refused page state change is error 1 */
#define GHCB_RULE_IO_IGNORED 19         /* I/O reaches no device; IN returns 0 */
#define GHCB_RULE_NON_SNP_KEEP 20       /* MSR: a request that only SNP has is unknown elsewhere */
#define GHCB_RULE_END 21

/* Limits of KVM's own: what it copies from outside the GHCB, and the C int that it counts with */
#define GHCB_KVM_SCRATCH_MAX 0x10000
#define GHCB_KVM_INT_MAX 0x7fffffff
#define GHCB_GPA_BITS 52

/* Hypercalls that KVM answers itself (linux/kvm_para.h), and the errors it answers with */
#define GHCB_KVM_HC_VAPIC_POLL_IRQ 1
#define GHCB_KVM_HC_CLOCK_PAIRING 9
#define GHCB_KVM_HC_MAP_GPA_RANGE 12
#define GHCB_KVM_ENOSYS 1000
#define GHCB_KVM_EOPNOTSUPP 95
#define GHCB_KVM_EPERM 1
#define GHCB_KVM_EINVAL 22
#define GHCB_MAP_GPA_SIZE_4K 0 /* attributes of MAP_GPA_RANGE: page size in [3:0] ... */
#define GHCB_MAP_GPA_SIZE_2M 1
#define GHCB_MAP_GPA_SIZE_MASK 0xf
#define GHCB_MAP_GPA_ENCRYPTED 0x10 /* ... and what the range becomes */

/* ghcb_access_t.kind: what a host asks of a device; bit numbers of ghcb_device_t.kinds */
#define GHCB_ACCESS_IO 0      /* address port, count elements of size_bytes in data */
#define GHCB_ACCESS_MMIO 1    /* address GPA, size_bytes of data */
#define GHCB_ACCESS_MSR 2     /* address MSR; value written arg[0], read result; refused: #GP */
#define GHCB_ACCESS_MAP_GPA 3 /* address GPA, count pages of 4 KiB; arg attributes, private, 2M */
#define GHCB_ACCESS_VMMCALL 4 /* address rax; arg rbx, rcx, rdx, rsi; result rax */
#define GHCB_ACCESS_GUEST_REQUEST 5 /* address, arg[0] pages; result INFO2; refused: no firmware */
#define GHCB_ACCESS_EXT_GUEST_REQUEST 6 /* ... arg[1] data GPA, arg[2] pages; result2 rbx */
#define GHCB_ACCESS_PMC 7     /* address rcx, value in result; refused: #GP */
#define GHCB_ACCESS_IPI 8     /* address ICR: an interrupt by #HV */
#define GHCB_ACCESS_END 9

/* What a machine may ask of the host; the number in a CALL of a program */
#define GHCB_CALL_VMGEXIT 0 /* request in msr, or in the page fields if msr holds a GPA */
#define GHCB_CALL_INIT 1    /* the vCPU takes a pending INIT */
#define GHCB_CALL_SIPI 2    /* the vCPU takes a pending STARTUP */
#define GHCB_CALL_NMI 3     /* an NMI becomes pending: a sleeping vCPU wakes */
#define GHCB_CALL_HLT 4     /* the guest executed HLT; with an NMI pending it goes on at once */
#define GHCB_CALL_SHUTDOWN 5 /* the guest triple-faulted */
#define GHCB_CALL_SEND_INIT 6 /* another vCPU's APIC sends INIT here */
#define GHCB_CALL_SEND_SIPI 7 /* ... and STARTUP, vector in sipi_vector */
#define GHCB_CALL_TAKE_NMI 8 /* the guest takes its NMI; the next waits for NMI complete */
#define GHCB_CALL_END 9

typedef struct ghcb_vm {
    uint64_t jump_table; /* GPA last set by NAE 0x80000005, unchecked as in KVM; 0 = none */
    uint64_t event;      /* GHCB_EVENT_*; not 0: the VM does not run any more */
    uint64_t event_data; /* what user space is told: the GHCB MSR value of a termination */
    uint64_t n_draws;    /* how often a fault was possible: the position in its random sequence */
    uint64_t n_faults;   /* how often one happened */
    uint64_t last_fault; /* GHCB_FAULT_* + 1 of the last one; 0: none yet */
} ghcb_vm_t;

typedef struct ghcb_vcpu {
    uint64_t msr; /* GHCB MSR C001_0130: request before VMGEXIT, answer after it */
    uint64_t sw_exit_code;
    uint64_t sw_exit_info_1;
    uint64_t sw_exit_info_2;
    uint64_t mp_state;
    uint64_t reset_hold;
    uint64_t first_sipi;   /* 1 once the launch VMSA was used up by a SIPI */
    uint64_t init_pending; /* latched in the local APIC */
    uint64_t sipi_pending;
    uint64_t sipi_vector;
    uint64_t nmi_pending;
    uint64_t nmi_masked;  /* 1 from an NMI to its NMI complete */
    uint64_t entry;
    uint64_t registered_gpa; /* of the GHCB page, 0 = none */
    uint64_t vmsa;           /* GPA of the VMSA it runs from, or GHCB_VMSA_* */
    uint64_t next_vmsa;      /* GPA that AP creation named, or GHCB_VMSA_NONE ... */
    uint64_t vmsa_pending;   /* ... GHCB_VMSA_ON_*: which a reset puts to use, and when */
    uint64_t doorbell_gpa;   /* of the #HV doorbell page, 0 = none */
    uint64_t vmpl;           /* at which the vCPU runs */
    uint64_t event_inj;      /* what the next VMRUN injects, as INFO2 of an exception; 0 = nothing */
    uint64_t extra_wakes;    /* fault: so many holds end at once, as if released */
} ghcb_vcpu_t;

typedef struct ghcb_access {
    uint64_t kind; /* GHCB_ACCESS_* */
    uint64_t cpu;
    uint64_t address;
    uint64_t is_write;
    uint64_t size_bytes; /* of one element */
    uint64_t count;
    uint64_t arg[4];
    uint64_t result;
    uint64_t result2;
    uint8_t *data; /* size_bytes * count bytes, in or out; or a null pointer */
} ghcb_access_t;

/* What a host asks of the world around the VM. A bit of `kinds` that is clear is as if there were
 * no device for it. Both functions return 0, or anything else to refuse. */
typedef struct ghcb_device {
    void *self;
    uint64_t kinds; /* 1 << GHCB_ACCESS_* */
    int (*access)(void *self, ghcb_access_t *access);
    int (*memory)(void *self, uint64_t gpa, uint8_t *data, uint64_t n_bytes, int is_write);
} ghcb_device_t;

typedef struct ghcb_cpuid_entry {
    uint32_t function, index; /* EAX and ECX in */
    uint32_t eax, ebx, ecx, edx;
} ghcb_cpuid_entry_t;

/* Constants of one host: what it is configured to answer. Never changed by the functions. */
typedef struct ghcb_profile {
    uint64_t guest; /* GHCB_GUEST_* */
    uint64_t min_version;
    uint64_t max_version;
    uint64_t c_bit;
    uint64_t hv_features;
    uint64_t sev_features; /* of the VM: what AP creation must repeat in rax */
    uint64_t rules;        /* 1 << GHCB_RULE_* */
    uint64_t msr_functions; /* 1 << GHCB_MSR_ROW_*: the requests it knows */
    uint64_t nae_events;   /* 1 << ghcb_nae_index(): the events it knows */
    uint64_t n_cpuid;
    const ghcb_cpuid_entry_t *cpuid;
    uint64_t faults;     /* 1 << GHCB_FAULT_*: what goes wrong by intention */
    uint64_t fault_seed;
    uint64_t fault_rate; /* one in so many times */
} ghcb_profile_t;

/* One VM as the functions see it: constants, state, world. The vCPUs other than the first stand
 * `stride` bytes apart: they may be slices of a machine's record. */
typedef struct ghcb_host {
    const ghcb_profile_t *profile;
    ghcb_vm_t *vm;
    ghcb_vcpu_t *first;
    ghcb_vcpu_t *others;
    uint64_t stride;
    uint64_t n_vcpus;
    const ghcb_device_t *device; /* or a null pointer */
} ghcb_host_t;
/* cffi: end */

#define GHCB_VM_WORDS (sizeof(ghcb_vm_t) / sizeof(uint64_t))
#define GHCB_VCPU_WORDS (sizeof(ghcb_vcpu_t) / sizeof(uint64_t))

#ifdef __cplusplus
#define GHCB_HOST_ASSERT static_assert
#else
#define GHCB_HOST_ASSERT _Static_assert
#endif
GHCB_HOST_ASSERT(sizeof(ghcb_vm_t) == 6 * sizeof(uint64_t), "fields of 64 bits, no gaps");
GHCB_HOST_ASSERT(sizeof(ghcb_vcpu_t) == 21 * sizeof(uint64_t), "fields of 64 bits, no gaps");
#undef GHCB_HOST_ASSERT

/* The vCPU with this APIC ID, or a null pointer. vCPU i has APIC ID i. */
static inline ghcb_vcpu_t *ghcb_host_vcpu(const ghcb_host_t *host, uint64_t i)
{
    if (i >= host->n_vcpus)
        return 0;
    return i ? (ghcb_vcpu_t *)((char *)host->others + (i - 1) * host->stride) : host->first;
}

static inline int ghcb_host_rule(const ghcb_host_t *host, unsigned int rule)
{
    return (int)(host->profile->rules >> rule & 1);
}

/* The run is over: user space is told `event`, and what `data` is. */
static inline void ghcb_host_end(const ghcb_host_t *host, uint64_t event, uint64_t data)
{
    host->vm->event = event;
    host->vm->event_data = data;
}

#endif
