/* The hypervisor's side of the protocol: what a host answers to a request.
 *
 * Theory of operation. A request is read once (`ghcb_nae_t`), checked, carried out, and the answer
 * is written back; nothing that the guest can write to is read again, except by a host whose
 * profile says so. The order of the checks is KVM's, and so are the answers to malformed requests:
 *
 *   registration (SNP)  ->  usage  ->  the three exit fields  ->  inputs of the event  ->  scratch
 *
 * Hosts that differ are profiles: which requests they know, and GHCB_RULE_* for what they do else.
 * A request that needs the world outside goes to the device, or ends the run with GHCB_EVENT_*.
 *
 * Source: GHCB protocol as KVM answers it (Linux 7.0, arch/x86/kvm/svm/sev.c); for #HV, APIC IDs and
 * VMPLs the SVSM project's kernel; for the rest the fact sheet 10.
 */
#ifndef GHCBCORE_ANSWER_H
#define GHCBCORE_ANSWER_H

#include <ghcbcore/answer_psc.h>
#include <ghcbcore/event.h>
#include <ghcbcore/host.h>
#include <ghcbcore/hostile.h>
#include <ghcbcore/msr.h>
#include <ghcbcore/nae.h>
#include <ghcbcore/page.h>
#include <ghcbcore/sev.h>
#include <ghcbcore/vcpu.h>
#include <string.h>

static inline uint64_t ghcb_host_index(const ghcb_host_t *host, const ghcb_vcpu_t *vcpu)
{
    if (vcpu == host->first)
        return 0;
    return (uint64_t)((const char *)vcpu - (const char *)host->others) / host->stride + 1;
}

/* The entry that answers, or a null pointer. A function listed once, with index 0, ignores ECX. */
static inline const ghcb_cpuid_entry_t *ghcb_host_cpuid(const ghcb_profile_t *profile,
                                                        uint32_t function, uint32_t index)
{
    const ghcb_cpuid_entry_t *first = 0;
    uint64_t listed = 0;

    for (uint64_t i = 0; i < profile->n_cpuid; i++) {
        if (profile->cpuid[i].function != function)
            continue;
        if (profile->cpuid[i].index == index)
            return &profile->cpuid[i];
        first = &profile->cpuid[i];
        listed++;
    }
    /* a guest walks sub-leaves until one is empty: there must be an end to them */
    return listed == 1 && first->index == 0 ? first : 0;
}

/* ---- the MSR protocol */

static inline uint64_t ghcb_host_sev_info(const ghcb_profile_t *profile, uint64_t max_version)
{
    return max_version << GHCB_MSR_SEV_INFO_RESP_MAX_SHIFT |
           profile->min_version << GHCB_MSR_SEV_INFO_RESP_MIN_SHIFT |
           profile->c_bit << GHCB_MSR_SEV_INFO_RESP_C_BIT_SHIFT | GHCB_MSR_SEV_INFO_RESP;
}

static inline uint64_t ghcb_host_features(const ghcb_host_t *host)
{
    uint64_t word, features = host->profile->hv_features;

    if (ghcb_fault_happens(host, GHCB_FAULT_REFUSED_FEATURE, &word))
        features &= word;
    return features;
}

static inline void ghcb_answer_msr_cpuid(const ghcb_host_t *host, ghcb_vcpu_t *vcpu)
{
    const uint64_t request = vcpu->msr;
    const ghcb_cpuid_entry_t *entry =
        ghcb_host_cpuid(host->profile, (uint32_t)(request >> GHCB_MSR_CPUID_REQ_FN_SHIFT), 0);
    uint32_t value = 0;

    switch (request >> GHCB_MSR_CPUID_REQ_REG_SHIFT & 3) {
    case GHCB_MSR_CPUID_REG_EAX:
        value = entry ? entry->eax : 0;
        break;
    case GHCB_MSR_CPUID_REG_EBX:
        value = entry ? entry->ebx : 0;
        break;
    case GHCB_MSR_CPUID_REG_ECX:
        value = entry ? entry->ecx : 0;
        break;
    default:
        value = entry ? entry->edx : 0;
    }
    /* bits [31:12] of the request come back unchanged */
    vcpu->msr = (request & UINT32_MAX & ~(uint64_t)GHCB_MSR_INFO_MASK) |
                (uint64_t)value << GHCB_MSR_CPUID_RESP_VALUE_SHIFT | GHCB_MSR_CPUID_RESP;
}

static inline void ghcb_answer_msr_register(const ghcb_host_t *host, ghcb_vcpu_t *vcpu)
{
    uint64_t word;
    const uint64_t gpa = vcpu->msr & ~(uint64_t)GHCB_MSR_INFO_MASK;

    if ((ghcb_host_rule(host, GHCB_RULE_REGISTER_ONCE) && vcpu->registered_gpa) ||
        ghcb_fault_happens(host, GHCB_FAULT_REFUSED_FEATURE, &word)) {
        vcpu->msr = (uint64_t)GHCB_MSR_NO_GFN << GHCB_MSR_DATA_SHIFT | GHCB_MSR_REG_GPA_RESP;
        return;
    }
    vcpu->registered_gpa = gpa;
    vcpu->msr = gpa | GHCB_MSR_REG_GPA_RESP;
}

static inline void ghcb_answer_msr_psc(const ghcb_host_t *host, ghcb_vcpu_t *vcpu)
{
    uint64_t word, error = 0;
    ghcb_msr_t asked;

    ghcb_msr_decode(vcpu->msr, &asked);
    if ((asked.b != GHCB_PSC_OP_PRIVATE && asked.b != GHCB_PSC_OP_SHARED) ||
        !ghcb_host_asks(host, GHCB_ACCESS_MAP_GPA) ||
        ghcb_fault_happens(host, GHCB_FAULT_REFUSED_FEATURE, &word) ||
        ghcb_psc_map(host, ghcb_host_index(host, vcpu), asked.a, GHCB_PSC_PAGES_4K, asked.b,
                     GHCB_PSC_SIZE_4K))
        error = ghcb_host_rule(host, GHCB_RULE_PSC_ERROR_ONE) ? 1 : GHCB_MSR_PSC_ERROR_KVM;
    vcpu->msr = error << GHCB_MSR_PSC_RESP_ERROR_SHIFT | GHCB_MSR_PSC_RESP;
}

static inline void ghcb_answer_msr_run_vmpl(ghcb_vcpu_t *vcpu)
{
    ghcb_msr_t asked;
    uint64_t error = 1;

    ghcb_msr_decode(vcpu->msr, &asked);
    if (asked.a < SEV_N_VMPLS) {
        vcpu->vmpl = asked.a;
        error = 0;
    }
    vcpu->msr = error << GHCB_MSR_RUN_VMPL_RESP_ERROR_SHIFT | GHCB_MSR_RUN_VMPL_RESP;
}

static inline void ghcb_answer_msr_unregister(ghcb_vcpu_t *vcpu)
{
    uint64_t gfn = vcpu->registered_gpa ? vcpu->registered_gpa >> GHCB_PAGE_SHIFT : GHCB_MSR_NO_GFN;

    vcpu->registered_gpa = 0;
    vcpu->msr = gfn << GHCB_MSR_DATA_SHIFT | GHCB_MSR_UNREG_GPA_RESP;
}

/* Does this host know the request? */
static inline int ghcb_host_knows_msr(const ghcb_host_t *host, uint64_t request)
{
    const uint64_t code = request & GHCB_MSR_INFO_MASK;
    const ghcb_msr_row_t *row = ghcb_msr_row(code);

    return row && !row->is_answer && (host->profile->msr_functions >> (row - ghcb_msr_rows) & 1);
}

/* VMGEXIT with the request in `vcpu->msr`, low 12 bits not zero; the answer takes its place. */
static inline void ghcb_answer_msr(const ghcb_host_t *host, ghcb_vcpu_t *vcpu)
{
    const ghcb_profile_t *p = host->profile;
    const uint64_t request = vcpu->msr;
    uint64_t word;
    int answered = 1;

    ghcb_vcpu_ran(vcpu);
    if (!ghcb_host_knows_msr(host, request)) {
        /* the MSR keeps the request and the guest resumes */
        if (ghcb_host_rule(host, GHCB_RULE_UNKNOWN_EINVAL) && request)
            ghcb_host_end(host, GHCB_EVENT_EINVAL, request);
        return;
    }
    switch (request & GHCB_MSR_INFO_MASK) {
    case GHCB_MSR_SEV_INFO_REQ:
        vcpu->msr = ghcb_host_sev_info(
            p, ghcb_fault_happens(host, GHCB_FAULT_OLDER_VERSION, &word) ? p->min_version
                                                                         : p->max_version);
        break;
    case GHCB_MSR_CPUID_REQ:
        ghcb_answer_msr_cpuid(host, vcpu);
        break;
    case GHCB_MSR_AP_RESET_HOLD_REQ:
        vcpu->msr = GHCB_MSR_AP_RESET_HOLD_RESP; /* the STARTUP puts 1 into the data */
        ghcb_vcpu_hold(host, vcpu, GHCB_HOLD_MSR);
        answered = 0; /* the answer is not complete yet */
        break;
    case GHCB_MSR_HV_FEATURES_REQ:
        vcpu->msr = ghcb_host_features(host) << GHCB_MSR_DATA_SHIFT | GHCB_MSR_HV_FEATURES_RESP;
        break;
    case GHCB_MSR_PREF_GPA_REQ:
    case GHCB_MSR_REG_GPA_REQ:
    case GHCB_MSR_PSC_REQ:
    case GHCB_MSR_UNREG_GPA_REQ:
        if (p->guest != GHCB_GUEST_SNP) {
            if (!ghcb_host_rule(host, GHCB_RULE_NON_SNP_KEEP))
                ghcb_host_end(host, GHCB_EVENT_SEV_TERM, request);
            return;
        }
        if ((request & GHCB_MSR_INFO_MASK) == GHCB_MSR_PSC_REQ)
            ghcb_answer_msr_psc(host, vcpu);
        else if ((request & GHCB_MSR_INFO_MASK) == GHCB_MSR_REG_GPA_REQ)
            ghcb_answer_msr_register(host, vcpu);
        else if ((request & GHCB_MSR_INFO_MASK) == GHCB_MSR_UNREG_GPA_REQ)
            ghcb_answer_msr_unregister(vcpu);
        else
            vcpu->msr = (uint64_t)GHCB_MSR_NO_GFN << GHCB_MSR_DATA_SHIFT | GHCB_MSR_PREF_GPA_RESP;
        break;
    case GHCB_MSR_RUN_VMPL_REQ:
        ghcb_answer_msr_run_vmpl(vcpu);
        break;
    case GHCB_MSR_TERM_REQ:
        ghcb_host_end(host, GHCB_EVENT_SEV_TERM, request);
        return;
    default:
        return; /* a request without an answer, such as 0x003: the MSR keeps it */
    }
    if (answered && ghcb_fault_happens(host, GHCB_FAULT_WRONG_ANSWER, &word))
        vcpu->msr ^= UINT64_C(1) << (word & 63);
}

/* ---- events of the page protocol */

/* An event as it was read from the page, once; after the answer, as it is written back. */
typedef struct ghcb_nae {
    uint64_t code, info1, info2, scratch;
    uint64_t rax, rbx, rcx, rdx, rsi;
    uint64_t cpl, usage;
    uint64_t valid[2];
    uint64_t results; /* GHCB_INPUT_*: registers that the answer carries */
} ghcb_nae_t;

/* What an event works on: the host, the vCPU, the event, and its page or a null pointer. */
typedef struct ghcb_exit {
    const ghcb_host_t *host;
    ghcb_vcpu_t *vcpu;
    ghcb_nae_t *nae;
    uint8_t *page;
} ghcb_exit_t;

static inline void ghcb_nae_malformed(ghcb_nae_t *nae, uint64_t reason)
{
    nae->info1 = GHCB_REPLY_MALFORMED;
    nae->info2 = reason;
}

static inline void ghcb_nae_inject_gp(const ghcb_host_t *host, ghcb_nae_t *nae)
{
    uint64_t info2 = (uint64_t)SEV_VECTOR_GP << GHCB_INJECT_VECTOR_SHIFT |
                     (uint64_t)GHCB_INJECT_TYPE_EXCEPTION << GHCB_INJECT_TYPE_SHIFT |
                     UINT64_C(1) << GHCB_INJECT_VALID_SHIFT;

    if (ghcb_host_rule(host, GHCB_RULE_GP_BARE))
        info2 = SEV_VECTOR_GP;
    else if (ghcb_host_rule(host, GHCB_RULE_GP_SIGN_EXTENDED))
        info2 |= ~UINT64_C(0) << GHCB_INJECT_ERROR_SHIFT;
    nae->info1 = GHCB_REPLY_EXCEPTION;
    nae->info2 = info2;
}

/* The operation of an AP creation. For KVM a VMPL other than 0 makes it one that is unknown. */
static inline uint32_t ghcb_ap_operation(const ghcb_host_t *host, uint64_t info1)
{
    if (ghcb_host_rule(host, GHCB_RULE_AP_VMPL))
        return (uint32_t)info1 & ((1U << GHCB_AP_CREATE_OP_WIDTH) - 1);
    return (uint32_t)info1;
}

/* 0, or the reason for which the event is refused before it is looked at. */
static inline uint64_t ghcb_nae_refusal(const ghcb_host_t *host, const ghcb_nae_t *nae)
{
    const unsigned int row = ghcb_nae_index(nae->code);
    unsigned int missing = ghcb_nae_missing(nae->code, nae->info1, nae->rax, nae->valid[0],
                                            nae->valid[1]);

    if (ghcb_host_rule(host, GHCB_RULE_INPUT_UNCHECKED))
        missing = 0;
    if (ghcb_host_rule(host, GHCB_RULE_XCR0_OPTIONAL))
        missing &= ~(unsigned int)GHCB_INPUT_XCR0;
    if (ghcb_host_rule(host, GHCB_RULE_AP_VMPL) && nae->code == GHCB_NAE_SNP_AP_CREATION &&
        ghcb_ap_operation(host, nae->info1) == GHCB_AP_CREATE_DESTROY)
        missing &= ~(unsigned int)GHCB_INPUT_RAX;
    if (missing & GHCB_INPUT_EXIT)
        return GHCB_MALFORMED_MISSING_INPUT;
    if (row == GHCB_NAE_NO_ROW || !(host->profile->nae_events >> row & 1))
        return GHCB_MALFORMED_INVALID_EVENT;
    if (missing || (ghcb_nae_rows[row].snp_only && host->profile->guest != GHCB_GUEST_SNP))
        return GHCB_MALFORMED_MISSING_INPUT;
    if ((nae->code == GHCB_NAE_SNP_GUEST_REQUEST || nae->code == GHCB_NAE_SNP_EXT_GUEST_REQUEST) &&
        ((nae->info1 | nae->info2) & (GHCB_PAGE_SIZE - 1) || nae->info1 == nae->info2))
        return GHCB_MALFORMED_MISSING_INPUT; /* KVM's reason for it, though nothing is missing */
    return 0;
}

/* ---- the scratch area */

typedef struct ghcb_scratch {
    uint8_t *data;   /* where the bytes are: in the page, in `copy`, or nowhere */
    uint64_t n_bytes;
    int is_copy;     /* of guest memory outside of the page */
} ghcb_scratch_t;

static inline int ghcb_host_memory(const ghcb_host_t *host, uint64_t gpa, uint8_t *data,
                                   uint64_t n_bytes, int is_write)
{
    if (!host->device || !host->device->memory)
        return -1;
    return host->device->memory(host->device->self, gpa, data, n_bytes, is_write);
}

/* Find `n_bytes` of scratch area. 1: there they are. 0: the event has been answered. `copy` has
 * room for GHCB_KVM_SCRATCH_MAX bytes. */
static inline int ghcb_scratch_find(const ghcb_exit_t *exit, uint64_t n_bytes, uint8_t *copy,
                                    ghcb_scratch_t *found)
{
    const ghcb_host_t *host = exit->host;
    const uint64_t first = exit->nae->scratch, end = first + n_bytes, gpa = exit->vcpu->msr;
    const uint64_t buffer = gpa + GHCB_OFF_SHARED_BUFFER;

    found->n_bytes = n_bytes;
    found->is_copy = 0;
    if (first == 0 || end < first) {
        ghcb_nae_malformed(exit->nae, GHCB_MALFORMED_SCRATCH);
        return 0;
    }
    if (first >> GHCB_PAGE_SHIFT == gpa >> GHCB_PAGE_SHIFT) {
        if (first < buffer || end > buffer + GHCB_SHARED_BUFFER_SIZE) {
            ghcb_nae_malformed(exit->nae, GHCB_MALFORMED_SCRATCH);
            return 0;
        }
        found->data = exit->page ? exit->page + (first - gpa) : 0;
        return 1;
    }
    if (n_bytes > GHCB_KVM_SCRATCH_MAX ||
        (ghcb_host_rule(host, GHCB_RULE_SCRATCH_IN_PAGE) && host->profile->max_version >= 2)) {
        ghcb_nae_malformed(exit->nae, GHCB_MALFORMED_SCRATCH);
        return 0;
    }
    found->is_copy = 1;
    found->data = copy;
    return 1;
}

/* Read the copy, if it is one. 0: guest memory is not there, and the run has ended. */
static inline int ghcb_scratch_load(const ghcb_exit_t *exit, const ghcb_scratch_t *scratch)
{
    if (!scratch->is_copy || !scratch->n_bytes)
        return 1;
    if (!ghcb_host_memory(exit->host, exit->nae->scratch, scratch->data, scratch->n_bytes, 0))
        return 1;
    ghcb_host_end(exit->host, GHCB_EVENT_EFAULT, exit->nae->scratch);
    return 0;
}

/* Write the copy back, if it is one. KVM does not look at whether that worked. */
static inline void ghcb_scratch_store(const ghcb_exit_t *exit, const ghcb_scratch_t *scratch)
{
    if (scratch->is_copy && scratch->n_bytes)
        ghcb_host_memory(exit->host, exit->nae->scratch, scratch->data, scratch->n_bytes, 1);
}

/* ---- one event each */

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
            exit->vcpu->event_inj = (uint64_t)SEV_VECTOR_GP << GHCB_INJECT_VECTOR_SHIFT |
                                    (uint64_t)GHCB_INJECT_TYPE_EXCEPTION << GHCB_INJECT_TYPE_SHIFT |
                                    UINT64_C(1) << GHCB_INJECT_HAS_ERROR_SHIFT |
                                    UINT64_C(1) << GHCB_INJECT_VALID_SHIFT;
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

static inline void ghcb_answer_psc(const ghcb_exit_t *exit, uint64_t info2)
{
    uint8_t copy[GHCB_KVM_SCRATCH_MAX];
    ghcb_scratch_t scratch;
    uint64_t n_bytes = info2;

    /* KVM takes INFO2 for the length of the descriptor, and every guest sends 0 */
    if (!ghcb_scratch_find(exit, n_bytes, copy, &scratch))
        return;
    if (!scratch.is_copy) {
        const uint64_t at = exit->nae->scratch - exit->vcpu->msr - GHCB_OFF_SHARED_BUFFER;

        scratch.n_bytes = exit->page ? GHCB_SHARED_BUFFER_SIZE - at : 0;
    }
    if (!ghcb_scratch_load(exit, &scratch))
        return;
    exit->nae->info2 = ghcb_psc_carry_out(exit->host, ghcb_host_index(exit->host, exit->vcpu),
                                          scratch.data, scratch.n_bytes);
    ghcb_scratch_store(exit, &scratch);
}

static inline void ghcb_answer_ap_creation(const ghcb_exit_t *exit, uint64_t info1, uint64_t vmsa)
{
    const ghcb_host_t *host = exit->host;
    const uint32_t op = ghcb_ap_operation(host, info1);
    ghcb_vcpu_t *target = ghcb_host_vcpu(host, info1 >> GHCB_AP_CREATE_APIC_ID_SHIFT);
    int good = target != 0;

    if (op == GHCB_AP_CREATE_DESTROY) {
        vmsa = GHCB_VMSA_NONE;
    } else if (op == GHCB_AP_CREATE_ON_INIT || op == GHCB_AP_CREATE_NOW) {
        /* a VMSA at a 2 MiB boundary meets an erratum of the RMP check, so KVM refuses it */
        good = good &&
               (exit->nae->rax == host->profile->sev_features ||
                ghcb_host_rule(host, GHCB_RULE_AP_FEATURES_LOOSE)) &&
               !(vmsa & (GHCB_PAGE_SIZE - 1)) && !(vmsa >> GHCB_GPA_BITS) &&
               vmsa & ((uint64_t)GHCB_PSC_PAGES_2M * GHCB_PAGE_SIZE - 1);
    } else {
        good = 0;
    }
    if (good)
        ghcb_vcpu_name_vmsa(host, target, vmsa, op == GHCB_AP_CREATE_ON_INIT);
    else
        ghcb_nae_malformed(exit->nae, GHCB_MALFORMED_INVALID_INPUT);
}

/* The firmware is behind the device. Without one the hypervisor says that it failed. */
static inline void ghcb_answer_guest_request(const ghcb_exit_t *exit, uint64_t request,
                                             uint64_t response)
{
    const ghcb_host_t *host = exit->host;
    ghcb_nae_t *nae = exit->nae;
    const int has_memory = host->device && host->device->memory;
    const int has_certs = ghcb_host_asks(host, GHCB_ACCESS_EXT_GUEST_REQUEST);
    int is_report = nae->code == GHCB_NAE_SNP_EXT_GUEST_REQUEST && (has_memory || has_certs);
    uint8_t message[GHCB_PAGE_SIZE], nothing[GHCB_CERT_TABLE_END];
    ghcb_access_t access = {.kind = GHCB_ACCESS_GUEST_REQUEST,
                            .cpu = ghcb_host_index(host, exit->vcpu),
                            .address = request,
                            .size_bytes = GHCB_PAGE_SIZE,
                            .count = 1};

    access.arg[0] = response;
    /* a device that shows no memory is trusted to know what the message is */
    if (is_report && has_memory) {
        if (ghcb_host_memory(host, request + SNP_MSG_OFF_TYPE, message, 1, 0)) {
            ghcb_host_end(host, GHCB_EVENT_EFAULT, request);
            return;
        }
        is_report = message[0] == SNP_MSG_REPORT_REQ;
    }
    if (is_report) {
        const unsigned int both = GHCB_INPUT_RAX | GHCB_INPUT_RBX;

        if ((ghcb_nae_marked(nae->valid[0], nae->valid[1]) & both) != both ||
            nae->rax & (GHCB_PAGE_SIZE - 1)) {
            ghcb_nae_malformed(nae, GHCB_MALFORMED_INVALID_INPUT);
            return;
        }
        if (has_certs) {
            access.kind = GHCB_ACCESS_EXT_GUEST_REQUEST;
            access.arg[1] = nae->rax;
            access.arg[2] = nae->rbx;
            access.result2 = nae->rbx;
        }
        memset(nothing, 0, sizeof(nothing));
        if (nae->rbx && !has_certs &&
            ghcb_host_memory(host, nae->rax, nothing, sizeof(nothing), 1)) {
            ghcb_host_end(host, GHCB_EVENT_EFAULT, nae->rax);
            return;
        }
    }
    if (has_memory && ghcb_host_memory(host, request, message, sizeof(message), 0)) {
        ghcb_host_end(host, GHCB_EVENT_EFAULT, request);
        return;
    }
    nae->info2 = (uint64_t)GHCB_GUEST_REQUEST_VMM_GENERIC << GHCB_GUEST_REQUEST_VMM_SHIFT;
    if (!ghcb_host_asks(host, (unsigned int)access.kind) ||
        host->device->access(host->device->self, &access))
        return;
    nae->info2 = access.result;
    if (access.kind == GHCB_ACCESS_EXT_GUEST_REQUEST) {
        nae->rbx = access.result2;
        nae->results = GHCB_INPUT_RBX;
    }
}

static inline void ghcb_answer_jump_table(const ghcb_exit_t *exit, uint64_t info1, uint64_t info2)
{
    if (info1 == GHCB_AP_JUMP_TABLE_SET)
        exit->host->vm->jump_table = info2;
    else if (info1 == GHCB_AP_JUMP_TABLE_GET)
        exit->nae->info2 = exit->host->vm->jump_table;
    else
        ghcb_nae_malformed(exit->nae, GHCB_MALFORMED_INVALID_INPUT);
}

static inline void ghcb_answer_doorbell(const ghcb_exit_t *exit, uint64_t info1, uint64_t info2)
{
    const ghcb_host_t *host = exit->host;
    ghcb_vcpu_t *vcpu = exit->vcpu;
    uint8_t page[GHCB_PAGE_SIZE];

    switch (info1) {
    case GHCB_DOORBELL_GET_PREFERRED:
        exit->nae->info2 = GHCB_DOORBELL_NO_PREFERENCE;
        break;
    case GHCB_DOORBELL_SET:
        vcpu->doorbell_gpa = 0; /* whatever comes of it */
        if (info2 & (GHCB_PAGE_SIZE - 1) || info2 >> GHCB_GPA_BITS ||
            (host->device && host->device->memory &&
             ghcb_host_memory(host, info2, page, sizeof(page), 0))) {
            ghcb_nae_malformed(exit->nae, GHCB_MALFORMED_INVALID_INPUT);
            break;
        }
        vcpu->doorbell_gpa = info2;
        exit->nae->info2 = info2;
        break;
    case GHCB_DOORBELL_QUERY: /* without one: all ones */
        exit->nae->info2 = vcpu->doorbell_gpa ? vcpu->doorbell_gpa : GHCB_DOORBELL_NO_PREFERENCE;
        break;
    case GHCB_DOORBELL_CLEAR:
        vcpu->doorbell_gpa = 0;
        break;
    default:
        vcpu->doorbell_gpa = 0;
        ghcb_nae_malformed(exit->nae, GHCB_MALFORMED_INVALID_INPUT);
    }
}

/* Does an interrupt command reach vCPU `i`, whose APIC ID is i? */
static inline int ghcb_icr_reaches(const ghcb_host_t *host, const ghcb_vcpu_t *sender, uint64_t icr,
                                   uint64_t i)
{
    const uint64_t to = icr >> APIC_ICR_DESTINATION_SHIFT;
    const int is_sender = ghcb_host_index(host, sender) == i;

    switch (icr >> APIC_ICR_SHORTHAND_SHIFT & ((1 << APIC_ICR_SHORTHAND_WIDTH) - 1)) {
    case APIC_ICR_TO_SELF:
        return is_sender;
    case APIC_ICR_TO_ALL:
        return 1;
    case APIC_ICR_TO_OTHERS:
        return !is_sender;
    default:
        break;
    }
    if (to == UINT32_MAX) /* everybody, in both modes */
        return 1;
    if (icr >> APIC_ICR_LOGICAL_SHIFT & 1) /* a cluster of sixteen, and a bit for each in it */
        return to >> 16 == i >> 4 && (to >> (i & 15) & 1);
    return to == i;
}

/* An interrupt command. INIT, STARTUP and NMI reach the vCPUs; the rest is the device's. */
static inline void ghcb_answer_ipi(const ghcb_exit_t *exit, uint64_t icr)
{
    const ghcb_host_t *host = exit->host;
    const uint64_t mode = icr >> APIC_ICR_MODE_SHIFT & ((1 << APIC_ICR_MODE_WIDTH) - 1);
    /* INIT level de-assert, a command of the first APICs, does nothing */
    const int is_deassert =
        !(icr >> APIC_ICR_ASSERT_SHIFT & 1) && (icr >> APIC_ICR_LEVEL_SHIFT & 1);
    ghcb_access_t access = {.kind = GHCB_ACCESS_IPI,
                            .cpu = ghcb_host_index(host, exit->vcpu),
                            .address = icr,
                            .is_write = 1,
                            .count = 1};

    if (icr & APIC_ICR_RESERVED) {
        ghcb_nae_malformed(exit->nae, GHCB_MALFORMED_INVALID_INPUT);
        return;
    }
    if (mode != APIC_ICR_MODE_INIT && mode != APIC_ICR_MODE_STARTUP && mode != APIC_ICR_MODE_NMI) {
        if (!ghcb_host_asks(host, GHCB_ACCESS_IPI) ||
            host->device->access(host->device->self, &access))
            ghcb_host_end(host, GHCB_EVENT_UNMODELLED, exit->nae->code);
        return;
    }
    for (uint64_t i = 0; i < host->n_vcpus && !host->vm->event; i++) {
        ghcb_vcpu_t *target = ghcb_host_vcpu(host, i);

        if (!ghcb_icr_reaches(host, exit->vcpu, icr, i))
            continue;
        if (mode == APIC_ICR_MODE_NMI) {
            ghcb_vcpu_call(host, target, GHCB_CALL_NMI);
        } else if (mode == APIC_ICR_MODE_STARTUP) {
            target->sipi_vector = icr & ((1 << APIC_ICR_VECTOR_WIDTH) - 1);
            ghcb_vcpu_call(host, target, GHCB_CALL_SEND_SIPI);
        } else if (!is_deassert) {
            ghcb_vcpu_call(host, target, GHCB_CALL_SEND_INIT);
        }
    }
}

/* The list of APIC IDs: a count, then the IDs, 32 bits each. */
static inline void ghcb_answer_apic_ids(const ghcb_exit_t *exit, uint64_t gpa)
{
    const ghcb_host_t *host = exit->host;
    ghcb_nae_t *nae = exit->nae;
    uint32_t list[GHCB_PAGE_SIZE / sizeof(uint32_t)];
    const uint64_t n_words = host->n_vcpus + 1, per_page = sizeof(list) / sizeof(list[0]);
    const uint64_t needed = (n_words + per_page - 1) / per_page;

    /* a question for the size, or too little room: nothing is written */
    for (uint64_t at = 0; gpa && nae->rax >= needed && at < n_words; at += per_page) {
        const uint64_t n = n_words - at < per_page ? n_words - at : per_page;

        for (uint64_t i = 0; i < n; i++)
            list[i] = (uint32_t)(at + i ? at + i - 1 : host->n_vcpus);
        if (gpa & (GHCB_PAGE_SIZE - 1) || gpa >> GHCB_GPA_BITS ||
            ghcb_host_memory(host, gpa + at * sizeof(list[0]), (uint8_t *)list,
                             n * sizeof(list[0]), 1)) {
            ghcb_nae_malformed(nae, GHCB_MALFORMED_INVALID_INPUT);
            return;
        }
    }
    nae->rax = needed;
    nae->results = GHCB_INPUT_RAX;
}

/* Carry out an event that has passed its checks. `nae` holds the request; info1 and info2 become
 * the answer's. */
static inline void ghcb_answer_event(const ghcb_exit_t *exit)
{
    const ghcb_host_t *host = exit->host;
    ghcb_vcpu_t *vcpu = exit->vcpu;
    ghcb_nae_t *nae = exit->nae;
    const uint64_t info1 = nae->info1, info2 = nae->info2;

    nae->info1 = GHCB_REPLY_OK;
    nae->info2 = 0;
    switch (nae->code) {
    case GHCB_NAE_CPUID:
        ghcb_answer_cpuid(host, nae);
        break;
    case GHCB_NAE_IOIO:
        ghcb_answer_io(exit, info1, info2);
        break;
    case GHCB_NAE_MMIO_READ:
    case GHCB_NAE_MMIO_WRITE:
        ghcb_answer_mmio(exit, info1, info2);
        break;
    case GHCB_NAE_MSR:
        ghcb_answer_register(exit, GHCB_ACCESS_MSR, info1 != GHCB_RDMSR);
        break;
    case GHCB_NAE_RDPMC:
        ghcb_answer_register(exit, GHCB_ACCESS_PMC, 0);
        break;
    case GHCB_NAE_VMMCALL:
        nae->rax = ghcb_answer_hypercall(exit);
        nae->results = GHCB_INPUT_RAX;
        break;
    case GHCB_NAE_RDTSC:
        ghcb_host_end(host, GHCB_EVENT_INTERNAL, nae->code); /* "unexpected exit reason" */
        break;
    case GHCB_NAE_RDTSCP: /* KVM has #UD for it, and VMRUN delivers that */
        vcpu->event_inj = (uint64_t)SEV_VECTOR_UD << GHCB_INJECT_VECTOR_SHIFT |
                          (uint64_t)GHCB_INJECT_TYPE_EXCEPTION << GHCB_INJECT_TYPE_SHIFT |
                          UINT64_C(1) << GHCB_INJECT_VALID_SHIFT;
        break;
    case GHCB_NAE_NMI_COMPLETE:
        vcpu->nmi_masked = 0;
        break;
    case GHCB_NAE_AP_RESET_HOLD:
        vcpu->sw_exit_info_2 = 0;
        ghcb_vcpu_hold(host, vcpu, GHCB_HOLD_NAE);
        nae->info2 = vcpu->sw_exit_info_2; /* 1 if it was released at once */
        break;
    case GHCB_NAE_AP_JUMP_TABLE:
        ghcb_answer_jump_table(exit, info1, info2);
        break;
    case GHCB_NAE_PSC:
        ghcb_answer_psc(exit, info2);
        break;
    case GHCB_NAE_SNP_GUEST_REQUEST:
    case GHCB_NAE_SNP_EXT_GUEST_REQUEST:
        ghcb_answer_guest_request(exit, info1, info2);
        break;
    case GHCB_NAE_SNP_AP_CREATION:
        ghcb_answer_ap_creation(exit, info1, info2);
        break;
    case GHCB_NAE_HV_DOORBELL_PAGE:
        ghcb_answer_doorbell(exit, info1, info2);
        break;
    case GHCB_NAE_HV_IPI:
        ghcb_answer_ipi(exit, info1);
        break;
    case GHCB_NAE_APIC_ID_LIST:
        ghcb_answer_apic_ids(exit, info1);
        break;
    case GHCB_NAE_SNP_RUN_VMPL:
        if ((uint32_t)info1 < SEV_N_VMPLS)
            vcpu->vmpl = (uint32_t)info1;
        else
            nae->info1 = GHCB_REPLY_MALFORMED; /* no reason is given */
        break;
    case GHCB_NAE_HV_FEATURES:
        nae->info2 = ghcb_host_features(host);
        break;
    case GHCB_NAE_TERMINATE:
        /* user space is told the GHCB's address; the reason appears in KVM's log only */
        ghcb_host_end(host, GHCB_EVENT_SEV_TERM, vcpu->msr);
        break;
    case GHCB_NAE_UNSUPPORTED:
        ghcb_host_end(host, GHCB_EVENT_EINVAL, nae->code);
        break;
    case GHCB_NAE_DR7_READ: /* hardware switches DR7; KVM leaves the request as it is */
    case GHCB_NAE_DR7_WRITE:
    case GHCB_NAE_INVD:
    case GHCB_NAE_WBINVD:
    case GHCB_NAE_MONITOR:
    case GHCB_NAE_MWAIT:
        break;
    default: /* an event that the profile has and this file has not */
        ghcb_host_end(host, GHCB_EVENT_UNMODELLED, nae->code);
    }
}

/* Check an event, carry it out, and turn it into its answer. */
static inline void ghcb_answer_nae(const ghcb_exit_t *exit)
{
    const ghcb_host_t *host = exit->host;
    ghcb_nae_t *nae = exit->nae;
    const uint64_t reason = nae->usage != GHCB_USAGE_STANDARD ? GHCB_MALFORMED_USAGE
                                                              : ghcb_nae_refusal(host, nae);
    uint64_t word;

    ghcb_vcpu_ran(exit->vcpu);
    if (reason == GHCB_MALFORMED_INVALID_EVENT && ghcb_host_rule(host, GHCB_RULE_UNKNOWN_EINVAL))
        ghcb_host_end(host, GHCB_EVENT_EINVAL, nae->code);
    else if (reason == GHCB_MALFORMED_MISSING_INPUT &&
             ghcb_host_rule(host, GHCB_RULE_MISSING_EINVAL))
        ghcb_host_end(host, GHCB_EVENT_EINVAL, nae->code);
    if (reason) {
        ghcb_nae_malformed(nae, reason);
        return;
    }
    if (ghcb_fault_happens(host, GHCB_FAULT_INJECTED_EXCEPTION, &word)) {
        nae->info1 = GHCB_REPLY_EXCEPTION;
        nae->info2 = ghcb_fault_exception(word);
        return;
    }
    if (nae->code >= GHCB_NAE_MMIO_READ &&
        ghcb_fault_happens(host, GHCB_FAULT_REFUSED_FEATURE, &word)) {
        ghcb_nae_malformed(nae, GHCB_MALFORMED_INVALID_EVENT);
        return;
    }
    ghcb_answer_event(exit);
    if (exit->vcpu->reset_hold == GHCB_HOLD_NONE && nae->info1 == GHCB_REPLY_OK &&
        ghcb_fault_happens(host, GHCB_FAULT_WRONG_ANSWER, &word)) {
        if (nae->results & GHCB_INPUT_RAX)
            nae->rax ^= UINT64_C(1) << (word & 63);
        else
            nae->info2 ^= UINT64_C(1) << (word & 63);
    }
}

/* ---- the page */

static inline uint64_t ghcb_page_get(const uint8_t *page, unsigned int offset)
{
    return ghcb_load64(page + offset);
}

static inline void ghcb_page_put(uint8_t *page, unsigned int offset, uint64_t value)
{
    memcpy(page + offset, &value, sizeof(value));
}

/* What a host takes from the page. A register that is not marked valid reads as 0. */
static inline void ghcb_page_read(const uint8_t *page, ghcb_nae_t *nae)
{
    uint32_t usage;
    unsigned int marked;

    nae->valid[0] = ghcb_page_get(page, GHCB_OFF_VALID_BITMAP);
    nae->valid[1] = ghcb_page_get(page, GHCB_OFF_VALID_BITMAP + 8);
    marked = ghcb_nae_marked(nae->valid[0], nae->valid[1]);
    nae->code = ghcb_page_get(page, GHCB_OFF_SW_EXIT_CODE);
    nae->info1 = ghcb_page_get(page, GHCB_OFF_SW_EXIT_INFO_1);
    nae->info2 = ghcb_page_get(page, GHCB_OFF_SW_EXIT_INFO_2);
    nae->scratch = marked & GHCB_INPUT_SCRATCH ? ghcb_page_get(page, GHCB_OFF_SW_SCRATCH) : 0;
    nae->rax = marked & GHCB_INPUT_RAX ? ghcb_page_get(page, GHCB_OFF_RAX) : 0;
    nae->rbx = marked & GHCB_INPUT_RBX ? ghcb_page_get(page, GHCB_OFF_RBX) : 0;
    nae->rcx = marked & GHCB_INPUT_RCX ? ghcb_page_get(page, GHCB_OFF_RCX) : 0;
    nae->rdx = marked & GHCB_INPUT_RDX ? ghcb_page_get(page, GHCB_OFF_RDX) : 0;
    nae->cpl = marked & GHCB_INPUT_CPL ? page[GHCB_OFF_CPL] : 0;
    nae->rsi = ghcb_valid_test(nae->valid, GHCB_VALID_RSI) ? ghcb_page_get(page, GHCB_OFF_RSI) : 0;
    memcpy(&usage, page + GHCB_OFF_GHCB_USAGE, sizeof(usage));
    nae->usage = usage;
    nae->results = 0;
}

/* Write the answer, and mark what the host marks. */
static inline void ghcb_page_write(const ghcb_host_t *host, uint8_t *page, const ghcb_nae_t *nae)
{
    const uint64_t low = GHCB_KVM_REPLY_VALID_LO, high = GHCB_KVM_REPLY_VALID_HI;
    uint64_t valid[2] = {low, high};

    if (ghcb_host_rule(host, GHCB_RULE_REPLY_ALONE) || ghcb_host_rule(host, GHCB_RULE_REPLY_ADDS)) {
        const int alone = ghcb_host_rule(host, GHCB_RULE_REPLY_ALONE);

        valid[0] = alone ? 0 : nae->valid[0];
        valid[1] = alone ? 0 : nae->valid[1];
        if (alone)
            memset(page, 0, GHCB_PAGE_SIZE);
        if (nae->results & GHCB_INPUT_RAX)
            ghcb_valid_set(valid, GHCB_VALID_RAX);
        if (nae->results & GHCB_INPUT_RBX)
            ghcb_valid_set(valid, GHCB_VALID_RBX);
        if (nae->results & GHCB_INPUT_RCX)
            ghcb_valid_set(valid, GHCB_VALID_RCX);
        if (nae->results & GHCB_INPUT_RDX)
            ghcb_valid_set(valid, GHCB_VALID_RDX);
        ghcb_valid_set(valid, GHCB_VALID_SW_EXIT_INFO_1);
        ghcb_valid_set(valid, GHCB_VALID_SW_EXIT_INFO_2);
    }
    if (ghcb_valid_test(valid, GHCB_VALID_RAX))
        ghcb_page_put(page, GHCB_OFF_RAX, nae->rax);
    if (ghcb_valid_test(valid, GHCB_VALID_RBX))
        ghcb_page_put(page, GHCB_OFF_RBX, nae->rbx);
    if (ghcb_valid_test(valid, GHCB_VALID_RCX))
        ghcb_page_put(page, GHCB_OFF_RCX, nae->rcx);
    if (ghcb_valid_test(valid, GHCB_VALID_RDX))
        ghcb_page_put(page, GHCB_OFF_RDX, nae->rdx);
    ghcb_page_put(page, GHCB_OFF_SW_EXIT_INFO_1, nae->info1);
    ghcb_page_put(page, GHCB_OFF_SW_EXIT_INFO_2, nae->info2);
    ghcb_page_put(page, GHCB_OFF_VALID_BITMAP, valid[0]);
    ghcb_page_put(page, GHCB_OFF_VALID_BITMAP + 8, valid[1]);
}

/* Another CPU writes to the page after the host has checked it. */
static inline void ghcb_page_change(uint8_t *page, uint64_t word)
{
    static const unsigned int at[] = {GHCB_OFF_SW_EXIT_CODE, GHCB_OFF_SW_EXIT_INFO_1,
                                      GHCB_OFF_SW_EXIT_INFO_2, GHCB_OFF_SW_SCRATCH, GHCB_OFF_RAX,
                                      GHCB_OFF_RCX};

    ghcb_page_put(page, at[word % (sizeof(at) / sizeof(at[0]))],
                  ghcb_fault_word(word, 0) >> (word >> 8 & 63));
}

/* Is the page in `vcpu->msr` the one that was registered, if it must be? If not, the run has ended,
 * or this host answers that it is malformed. */
static inline int ghcb_page_is_registered(const ghcb_host_t *host, ghcb_vcpu_t *vcpu)
{
    if (host->profile->guest != GHCB_GUEST_SNP || vcpu->registered_gpa == vcpu->msr)
        return 1;
    if (ghcb_host_rule(host, GHCB_RULE_REGISTER_ON_USE)) {
        vcpu->registered_gpa = vcpu->msr;
        return 1;
    }
    ghcb_vcpu_ran(vcpu);
    if (!ghcb_host_rule(host, GHCB_RULE_REPLY_UNREGISTERED))
        ghcb_host_end(host, GHCB_EVENT_EINVAL, vcpu->msr);
    return 0;
}

/* VMGEXIT with the page of 4096 bytes at `page`, whose GPA stands in `vcpu->msr`. The page is
 * answered in place, unless the run has ended without an answer. */
static inline void ghcb_answer_page(const ghcb_host_t *host, ghcb_vcpu_t *vcpu, uint8_t *page)
{
    ghcb_nae_t nae;
    const ghcb_exit_t exit = {host, vcpu, &nae, page};
    uint64_t word;

    ghcb_page_read(page, &nae);
    if (ghcb_host_rule(host, GHCB_RULE_CODE_32))
        nae.code = (uint32_t)nae.code;
    vcpu->sw_exit_code = nae.code;
    vcpu->sw_exit_info_1 = nae.info1;
    vcpu->sw_exit_info_2 = nae.info2;
    if (!ghcb_host_rule(host, GHCB_RULE_REPLY_ADDS)) {
        ghcb_page_put(page, GHCB_OFF_VALID_BITMAP, 0);
        ghcb_page_put(page, GHCB_OFF_VALID_BITMAP + 8, 0);
    }
    if (!ghcb_page_is_registered(host, vcpu)) {
        if (host->vm->event)
            return;
        ghcb_nae_malformed(&nae, GHCB_MALFORMED_NOT_REGISTERED);
        ghcb_page_write(host, page, &nae);
        vcpu->sw_exit_info_1 = nae.info1;
        vcpu->sw_exit_info_2 = nae.info2;
        return;
    }
    if (ghcb_fault_happens(host, GHCB_FAULT_CHANGED_GHCB, &word)) {
        ghcb_page_change(page, word);
        if (ghcb_host_rule(host, GHCB_RULE_REREADS) && !ghcb_nae_refusal(host, &nae)) {
            const uint64_t valid[2] = {nae.valid[0], nae.valid[1]};

            /* it passed the checks as it was, and is carried out as it is now */
            ghcb_page_put(page, GHCB_OFF_VALID_BITMAP, valid[0]);
            ghcb_page_put(page, GHCB_OFF_VALID_BITMAP + 8, valid[1]);
            ghcb_page_read(page, &nae);
            ghcb_vcpu_ran(vcpu);
            ghcb_answer_event(&exit);
            ghcb_page_write(host, page, &nae);
            vcpu->sw_exit_info_1 = nae.info1;
            vcpu->sw_exit_info_2 = nae.info2;
            return;
        }
    }
    ghcb_answer_nae(&exit);
    ghcb_page_write(host, page, &nae);
    vcpu->sw_exit_info_1 = nae.info1;
    vcpu->sw_exit_info_2 = nae.info2;
}

/* ---- the way in */

/* May this vCPU execute anything? One whose VMSA was destroyed fails at VMRUN. */
static inline int ghcb_host_may_run(const ghcb_host_t *host, const ghcb_vcpu_t *vcpu)
{
    if (vcpu->vmsa != GHCB_VMSA_NONE)
        return 1;
    ghcb_host_end(host, GHCB_EVENT_EINVAL, GHCB_VMSA_NONE);
    return 0;
}

/* VMGEXIT of a flow: its pages have no bytes, the three exit fields stand in the vCPU, and every
 * register that the event needs is there; rax is the VM's SEV_FEATURES for an AP creation, else 0. */
static inline void ghcb_answer_fields(const ghcb_host_t *host, ghcb_vcpu_t *vcpu)
{
    ghcb_nae_t nae = {.code = vcpu->sw_exit_code,
                      .info1 = vcpu->sw_exit_info_1,
                      .info2 = vcpu->sw_exit_info_2,
                      .valid = {GHCB_REQUEST_VALID_LO, GHCB_REQUEST_VALID_HI}};
    const ghcb_exit_t exit = {host, vcpu, &nae, 0};

    if (nae.code == GHCB_NAE_SNP_AP_CREATION) {
        nae.rax = host->profile->sev_features;
        ghcb_valid_set(nae.valid, GHCB_VALID_RAX);
    }
    if (ghcb_page_is_registered(host, vcpu))
        ghcb_answer_nae(&exit);
    else if (host->vm->event)
        return;
    else
        ghcb_nae_malformed(&nae, GHCB_MALFORMED_NOT_REGISTERED);
    vcpu->sw_exit_info_1 = nae.info1;
    vcpu->sw_exit_info_2 = nae.info2;
}

/* One of GHCB_CALL_* on a vCPU of a machine. */
static inline void ghcb_host_call(const ghcb_host_t *host, ghcb_vcpu_t *vcpu, uint64_t call)
{
    if (call != GHCB_CALL_VMGEXIT)
        ghcb_vcpu_call(host, vcpu, call);
    else if (!ghcb_host_may_run(host, vcpu))
        return;
    else if (vcpu->msr == 0 || vcpu->msr & GHCB_MSR_INFO_MASK)
        ghcb_answer_msr(host, vcpu);
    else
        ghcb_answer_fields(host, vcpu);
}

#endif
