/* The operations of a host as a table of functions: what other code calls, in C or any language.
 *
 * An object offers the table three ways (capsule, cffi, ctypes); all lead to one `ghcb_ops_t`. Each
 * function takes `self` of the table first and returns a status of `status.h`; GHCB_E_STATE_CONFLICT
 * means that the run has ended, and `event` says how. They may be called by any number of threads,
 * with or without Python's lock held; calls on one host take turns. A device that is called back
 * must not call the host that called it: that is refused with GHCB_E_STATE_CONFLICT too.
 *
 * The struct only grows at its end. A function may be used if `struct_size` covers it.
 */
#ifndef GHCBCORE_OPS_H
#define GHCBCORE_OPS_H

#include <ghcbcore/host.h>
#include <stdint.h>

#define GHCB_OPS_CAPSULE "ghcbcore.ops_v1"

/* cffi: begin */
#define GHCB_OPS_ABI 1

typedef struct ghcb_ops {
    uint32_t abi_version; /* GHCB_OPS_ABI */
    uint32_t struct_size;
    void *self;
    uint64_t n_vcpus;
    /* VMGEXIT by the MSR protocol. GHCB_E_OUT_OF_RANGE: no such vCPU, or the GPA of a page. */
    int (*msr)(void *self, uint64_t cpu, uint64_t request, uint64_t *answer);
    /* ... n of them, in order; *n_done have taken effect, also if it stops early. */
    int (*msr_batch)(void *self, const uint32_t *cpus, const uint64_t *requests, uint64_t *answers,
                     uint64_t n, uint64_t *n_done);
    /* VMGEXIT with the 4096 bytes at `page`, whose GPA is `gpa`; answered in place. */
    int (*page)(void *self, uint64_t cpu, uint64_t gpa, uint8_t *page);
    int (*page_batch)(void *self, const uint32_t *cpus, const uint64_t *gpas, uint8_t *pages,
                      uint64_t n, uint64_t *n_done);
    /* GHCB_CALL_* other than VMGEXIT: what a vCPU's APIC or processor does to it. */
    int (*call)(void *self, uint64_t cpu, uint64_t call);
    /* Copies of the state. */
    int (*get_vm)(void *self, ghcb_vm_t *vm);
    int (*get_vcpu)(void *self, uint64_t cpu, ghcb_vcpu_t *vcpu);
} ghcb_ops_t;
/* cffi: end */

#endif
