/* Answers to events of SNP guests: page states, AP creation, firmware, #HV, APIC IDs.
 *
 * Source: KVM as of Linux 7.0; #HV and APIC IDs as the SVSM project's kernel has them.
 */
#ifndef GHCBCORE_ANSWER_SNP_H
#define GHCBCORE_ANSWER_SNP_H

#include <ghcbcore/answer_exit.h>
#include <ghcbcore/answer_msr.h>
#include <ghcbcore/answer_psc.h>
#include <ghcbcore/vcpu.h>
#include <string.h>

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

#endif
