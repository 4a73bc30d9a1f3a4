/* The hypervisor's state as flat records: one for the VM, one for each vCPU, one of constants.
 *
 * Every field is 64 bits wide, so that the two state records can be the first fields of a
 * machine's record (`machine.h`) and the host's functions work on them where they stand. The
 * functions are in `ghcbcore/host.pyx`; they are pure on what they are handed.
 *
 * Source of the states: KVM's `struct kvm_vcpu` and `struct vcpu_sev_es_state` as described in
 * the GHCB fact sheet 7.1; numbers of mp_state are those of Linux `linux/kvm.h`.
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

/* ghcb_vm_t.event: what went to user space and ended the run */
#define GHCB_EVENT_NONE 0
#define GHCB_EVENT_SEV_TERM 1 /* KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_SEV_TERM */
#define GHCB_EVENT_SHUTDOWN 2 /* triple fault: SVM exit 0x7F, KVM_EXIT_SHUTDOWN */
#define GHCB_EVENT_EINVAL 3   /* KVM_RUN returns -EINVAL */
#define GHCB_EVENT_IO 4       /* KVM_EXIT_IO: needs a device model */
#define GHCB_EVENT_MMIO 5     /* KVM_EXIT_MMIO: needs a device model */
#define GHCB_EVENT_INTERNAL 6 /* KVM_EXIT_INTERNAL_ERROR: unexpected exit reason */
#define GHCB_EVENT_UNMODELLED 7 /* KVM emulates the instruction; this host has no model of it */

/* ghcb_profile_t.guest */
#define GHCB_GUEST_PLAIN 0
#define GHCB_GUEST_SEV_ES 1
#define GHCB_GUEST_SNP 2

/* Limits of KVM's own: what it copies from outside the GHCB, and the C int that it counts with */
#define GHCB_KVM_SCRATCH_MAX 0x10000
#define GHCB_KVM_INT_MAX 0x7fffffff

/* What a machine may ask of the host; the number in a CALL of a program */
#define GHCB_CALL_VMGEXIT 0 /* request in msr, or in the page fields if msr holds a GPA */
#define GHCB_CALL_INIT 1    /* the vCPU takes a pending INIT */
#define GHCB_CALL_SIPI 2    /* the vCPU takes a pending STARTUP */
#define GHCB_CALL_NMI 3     /* an NMI becomes pending: a sleeping vCPU wakes */
#define GHCB_CALL_HLT 4     /* the guest executed HLT; with an NMI pending it goes on at once */
#define GHCB_CALL_SHUTDOWN 5 /* the guest triple-faulted */
#define GHCB_CALL_SEND_INIT 6 /* another vCPU's APIC sends INIT here */
#define GHCB_CALL_SEND_SIPI 7 /* ... and STARTUP, vector in sipi_vector */
#define GHCB_CALL_END 8

typedef struct ghcb_vm {
    uint64_t jump_table; /* GPA last set by NAE 0x80000005, unchecked as in KVM; 0 = none */
    uint64_t event;      /* GHCB_EVENT_*; not 0: the VM does not run any more */
    uint64_t event_data; /* what user space is told: the GHCB MSR value of a termination */
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
    uint64_t entry;
} ghcb_vcpu_t;
/* cffi: end */

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
    const ghcb_cpuid_entry_t *cpuid;
    uint64_t n_cpuid;
} ghcb_profile_t;

#define GHCB_VM_WORDS (sizeof(ghcb_vm_t) / sizeof(uint64_t))
#define GHCB_VCPU_WORDS (sizeof(ghcb_vcpu_t) / sizeof(uint64_t))

_Static_assert(sizeof(ghcb_vm_t) == 3 * sizeof(uint64_t), "fields of 64 bits, no gaps");
_Static_assert(sizeof(ghcb_vcpu_t) == 12 * sizeof(uint64_t), "fields of 64 bits, no gaps");

#endif
