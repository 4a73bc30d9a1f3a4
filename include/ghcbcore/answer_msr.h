/* Answers of the MSR protocol: the whole request stands in the MSR, and so does the answer.
 *
 * Source: GHCB MSR 0x002 to 0x100 as KVM answers them (Linux 7.0, arch/x86/kvm/svm/sev.c).
 */
#ifndef GHCBCORE_ANSWER_MSR_H
#define GHCBCORE_ANSWER_MSR_H

#include <ghcbcore/answer_psc.h>
#include <ghcbcore/host.h>
#include <ghcbcore/hostile.h>
#include <ghcbcore/msr.h>
#include <ghcbcore/nae.h>
#include <ghcbcore/sev.h>
#include <ghcbcore/vcpu.h>

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

#endif
