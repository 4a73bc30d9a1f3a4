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

#include <ghcbcore/answer_exit.h>
#include <ghcbcore/answer_io.h>
#include <ghcbcore/answer_msr.h>
#include <ghcbcore/answer_snp.h>
#include <string.h>

static inline void ghcb_answer_jump_table(const ghcb_exit_t *exit, uint64_t info1, uint64_t info2)
{
    if (info1 == GHCB_AP_JUMP_TABLE_SET)
        exit->host->vm->jump_table = info2;
    else if (info1 == GHCB_AP_JUMP_TABLE_GET)
        exit->nae->info2 = exit->host->vm->jump_table;
    else
        ghcb_nae_malformed(exit->nae, GHCB_MALFORMED_INVALID_INPUT);
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
        vcpu->event_inj = ghcb_injection(GHCB_INJECT_TYPE_EXCEPTION, SEV_VECTOR_UD);
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

/* What a host takes from the page, by the marks in `nae->valid`: a register that is not marked reads
 * as 0. */
static inline void ghcb_page_read(const ghcb_host_t *host, const uint8_t *page, ghcb_nae_t *nae)
{
    const unsigned int marked = ghcb_nae_marked(nae->valid[0], nae->valid[1]);
    uint32_t usage;

    nae->code = ghcb_page_get(page, GHCB_OFF_SW_EXIT_CODE);
    if (ghcb_host_rule(host, GHCB_RULE_CODE_32))
        nae->code = (uint32_t)nae->code;
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

/* Carry out a registered page. One that changes meanwhile matters only to a host that reads it again. */
static inline void ghcb_page_carry_out(const ghcb_exit_t *exit)
{
    const ghcb_host_t *host = exit->host;
    uint64_t word;

    if (ghcb_fault_happens(host, GHCB_FAULT_CHANGED_GHCB, &word)) {
        ghcb_page_change(exit->page, word);
        if (ghcb_host_rule(host, GHCB_RULE_REREADS) && !ghcb_nae_refusal(host, exit->nae)) {
            /* it passed the checks as it was, and is carried out as it is now */
            ghcb_page_read(host, exit->page, exit->nae);
            ghcb_vcpu_ran(exit->vcpu);
            ghcb_answer_event(exit);
            return;
        }
    }
    ghcb_answer_nae(exit);
}

/* VMGEXIT with the page of 4096 bytes at `page`, whose GPA stands in `vcpu->msr`. The page is
 * answered in place, unless the run has ended without an answer. */
static inline void ghcb_answer_page(const ghcb_host_t *host, ghcb_vcpu_t *vcpu, uint8_t *page)
{
    ghcb_nae_t nae;
    const ghcb_exit_t exit = {host, vcpu, &nae, page};

    nae.valid[0] = ghcb_page_get(page, GHCB_OFF_VALID_BITMAP);
    nae.valid[1] = ghcb_page_get(page, GHCB_OFF_VALID_BITMAP + 8);
    ghcb_page_read(host, page, &nae);
    vcpu->sw_exit_code = nae.code;
    vcpu->sw_exit_info_1 = nae.info1;
    vcpu->sw_exit_info_2 = nae.info2;
    if (!ghcb_host_rule(host, GHCB_RULE_REPLY_ADDS)) {
        ghcb_page_put(page, GHCB_OFF_VALID_BITMAP, 0);
        ghcb_page_put(page, GHCB_OFF_VALID_BITMAP + 8, 0);
    }
    if (ghcb_page_is_registered(host, vcpu))
        ghcb_page_carry_out(&exit);
    else if (host->vm->event)
        return;
    else
        ghcb_nae_malformed(&nae, GHCB_MALFORMED_NOT_REGISTERED);
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
