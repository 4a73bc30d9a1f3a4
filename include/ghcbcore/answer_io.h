/* Answers to events that stand for instructions: CPUID, ports, MMIO, MSRs, counters, hypercalls.
 *
 * Source: KVM as of Linux 7.0 and the fact sheet 5.3 to 5.5.
 */
#ifndef GHCBCORE_ANSWER_IO_H
#define GHCBCORE_ANSWER_IO_H

#include <ghcbcore/answer_exit.h>
#include <ghcbcore/answer_msr.h>
#include <string.h>

static inline void ghcb_answer_cpuid(const ghcb_host_t *host, ghcb_nae_t *nae)
{
    const ghcb_cpuid_entry_t *entry =
        ghcb_host_cpuid(host->profile, (uint32_t)nae->rax, (uint32_t)nae->rcx);

    nae->rax = entry ? entry->eax : 0;
    nae->rbx = entry ? entry->ebx : 0;
    nae->rcx = entry ? entry->ecx : 0;
    nae->rdx = entry ? entry->edx : 0;
    nae->results = GHCB_INPUT_RAX | GHCB_INPUT_RBX | GHCB_INPUT_RCX | GHCB_INPUT_RDX;
}

static inline void ghcb_answer_io_plain(const ghcb_exit_t *exit, ghcb_access_t *access)
{
    const ghcb_host_t *host = exit->host;
    ghcb_nae_t *nae = exit->nae;
    /* a size that is no size (three bits: up to 7 bytes) is the device's to refuse */
    uint8_t data[8];
    const uint64_t low = access->size_bytes < 8 ? (UINT64_C(1) << 8 * access->size_bytes) - 1 : 0;
    uint64_t value = 0;

    if (ghcb_host_rule(host, GHCB_RULE_IO_IGNORED)) {
        if (!access->is_write) {
            nae->rax = 0;
            nae->results = GHCB_INPUT_RAX;
        }
        return;
    }
    memset(data, 0, sizeof(data));
    if (access->is_write)
        memcpy(data, &nae->rax, access->size_bytes);
    access->data = data;
    if (!ghcb_host_asks(host, GHCB_ACCESS_IO) ||
        host->device->access(host->device->self, access)) {
        ghcb_host_end(host, GHCB_EVENT_IO, access->arg[0]);
        return;
    }
    if (access->is_write)
        return;
    memcpy(&value, data, access->size_bytes);
    /* an IN of less than four bytes leaves the others of the register as the guest sent them */
    nae->rax = access->size_bytes < 4 ? (nae->rax & ~low) | value : value;
    nae->results = GHCB_INPUT_RAX;
}

static inline void ghcb_answer_io_string(const ghcb_exit_t *exit, ghcb_access_t *access)
{
    const ghcb_host_t *host = exit->host;
    const uint64_t n_bytes = access->size_bytes * access->count;
    uint8_t copy[GHCB_KVM_SCRATCH_MAX];
    ghcb_scratch_t scratch;

    if (!n_bytes && ghcb_host_rule(host, GHCB_RULE_EMPTY_IO))
        return;
    if (!ghcb_scratch_find(exit, n_bytes, copy, &scratch))
        return;
    if (!ghcb_host_asks(host, GHCB_ACCESS_IO)) {
        ghcb_host_end(host, GHCB_EVENT_IO, access->arg[0]);
        return;
    }
    if (!ghcb_scratch_load(exit, &scratch))
        return;
    access->data = scratch.data;
    if (host->device->access(host->device->self, access))
        ghcb_host_end(host, GHCB_EVENT_IO, access->arg[0]);
    else if (!access->is_write)
        ghcb_scratch_store(exit, &scratch);
}

static inline void ghcb_answer_io(const ghcb_exit_t *exit, uint64_t info1, uint64_t info2)
{
    ghcb_access_t access = {.kind = GHCB_ACCESS_IO,
                            .cpu = ghcb_host_index(exit->host, exit->vcpu),
                            .count = 1};

    access.address = info1 >> GHCB_IOIO_PORT_SHIFT & ((1 << GHCB_IOIO_PORT_WIDTH) - 1);
    access.is_write = !(info1 >> GHCB_IOIO_IN_SHIFT & 1);
    access.size_bytes = info1 >> GHCB_IOIO_SIZE_SHIFT & ((1 << GHCB_IOIO_SIZE_WIDTH) - 1);
    access.arg[0] = info1;
    if (!access.size_bytes && ghcb_host_rule(exit->host, GHCB_RULE_EMPTY_IO))
        return;
    if (!(info1 >> GHCB_IOIO_STRING_SHIFT & 1)) {
        ghcb_answer_io_plain(exit, &access);
        return;
    }
    access.count = info2;
    if (info2 > GHCB_KVM_INT_MAX || access.size_bytes * info2 > GHCB_KVM_INT_MAX)
        ghcb_host_end(exit->host, GHCB_EVENT_EINVAL, exit->nae->code);
    else
        ghcb_answer_io_string(exit, &access);
}

static inline void ghcb_answer_mmio(const ghcb_exit_t *exit, uint64_t gpa, uint64_t n_bytes)
{
    const ghcb_host_t *host = exit->host;
    const int is_write = exit->nae->code == GHCB_NAE_MMIO_WRITE;
    uint8_t copy[GHCB_KVM_SCRATCH_MAX];
    ghcb_scratch_t scratch;
    ghcb_access_t access = {.kind = GHCB_ACCESS_MMIO,
                            .cpu = ghcb_host_index(host, exit->vcpu),
                            .address = gpa,
                            .is_write = (uint64_t)is_write,
                            .size_bytes = n_bytes,
                            .count = 1};

    if (ghcb_host_rule(host, GHCB_RULE_MMIO_8)) {
        if (!n_bytes)
            return;
        if (n_bytes > GHCB_MMIO_MAX_V2 && host->profile->max_version >= 2) {
            ghcb_nae_malformed(exit->nae, GHCB_MALFORMED_INVALID_INPUT);
            return;
        }
    }
    if (!ghcb_scratch_find(exit, n_bytes, copy, &scratch) || !n_bytes)
        return; /* nothing to access: done */
    if (!ghcb_host_asks(host, GHCB_ACCESS_MMIO)) {
        ghcb_host_end(host, GHCB_EVENT_MMIO, gpa);
        return;
    }
    if (!ghcb_scratch_load(exit, &scratch))
        return;
    access.data = scratch.data;
    if (host->device->access(host->device->self, &access))
        ghcb_host_end(host, GHCB_EVENT_MMIO, gpa);
    else if (!is_write)
        ghcb_scratch_store(exit, &scratch);
}

/* RDMSR, WRMSR and RDPMC: a device that refuses means #GP; without one there is no model. */
static inline void ghcb_answer_register(const ghcb_exit_t *exit, uint64_t kind, int is_write)
{
    const ghcb_host_t *host = exit->host;
    ghcb_nae_t *nae = exit->nae;
    ghcb_access_t access = {.kind = kind,
                            .cpu = ghcb_host_index(host, exit->vcpu),
                            .address = (uint32_t)nae->rcx,
                            .is_write = (uint64_t)is_write,
                            .size_bytes = 8,
                            .count = 1};

    if (!ghcb_host_asks(host, (unsigned int)kind)) {
        ghcb_host_end(host, GHCB_EVENT_UNMODELLED, nae->code);
        return;
    }
    if (is_write)
        access.arg[0] = nae->rdx << 32 | (uint32_t)nae->rax;
    if (host->device->access(host->device->self, &access)) {
        if (kind == GHCB_ACCESS_MSR)
            ghcb_nae_inject_gp(host, nae);
        else /* not by the page: KVM queues it for VMRUN */
            exit->vcpu->event_inj = ghcb_injection(GHCB_INJECT_TYPE_EXCEPTION, SEV_VECTOR_GP) |
                                    UINT64_C(1) << GHCB_INJECT_HAS_ERROR_SHIFT;
    } else if (!is_write) {
        nae->rax = (uint32_t)access.result;
        nae->rdx = access.result >> 32;
        nae->results = GHCB_INPUT_RAX | GHCB_INPUT_RDX;
    }
}

/* A hypercall: what KVM answers itself, and all else to the device. */
static inline uint64_t ghcb_answer_hypercall(const ghcb_exit_t *exit)
{
    const ghcb_host_t *host = exit->host;
    const ghcb_nae_t *nae = exit->nae;
    ghcb_access_t access = {.kind = GHCB_ACCESS_VMMCALL,
                            .cpu = ghcb_host_index(host, exit->vcpu),
                            .address = nae->rax,
                            .count = 1};

    if (nae->cpl)
        return -(uint64_t)GHCB_KVM_EPERM;
    access.arg[0] = nae->rbx;
    access.arg[1] = nae->rcx;
    access.arg[2] = nae->rdx;
    access.arg[3] = nae->rsi;
    if (ghcb_host_asks(host, GHCB_ACCESS_VMMCALL) &&
        !host->device->access(host->device->self, &access))
        return access.result;
    if (nae->rax == GHCB_KVM_HC_VAPIC_POLL_IRQ)
        return 0;
    if (nae->rax == GHCB_KVM_HC_CLOCK_PAIRING) /* no clock that it could pair with */
        return -(uint64_t)GHCB_KVM_EOPNOTSUPP;
    if (nae->rax != GHCB_KVM_HC_MAP_GPA_RANGE || !ghcb_host_asks(host, GHCB_ACCESS_MAP_GPA))
        return -(uint64_t)GHCB_KVM_ENOSYS;
    if (nae->rbx & (GHCB_PAGE_SIZE - 1) || !nae->rcx ||
        (nae->rbx >> GHCB_PAGE_SHIFT) + nae->rcx <= nae->rbx >> GHCB_PAGE_SHIFT)
        return -(uint64_t)GHCB_KVM_EINVAL;
    return (uint64_t)(int64_t)ghcb_host_map(host, access.cpu, nae->rbx, nae->rcx, nae->rdx);
}

#endif
