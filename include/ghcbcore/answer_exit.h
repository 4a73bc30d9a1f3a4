/* An event of the page protocol as a host has it: read once, checked, and its scratch area found.
 *
 * Source: KVM as of Linux 7.0, sev_es_validate_vmgexit and setup_vmgexit_scratch.
 */
#ifndef GHCBCORE_ANSWER_EXIT_H
#define GHCBCORE_ANSWER_EXIT_H

#include <ghcbcore/event.h>
#include <ghcbcore/host.h>
#include <ghcbcore/nae.h>
#include <ghcbcore/page.h>

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
    uint64_t info2 = ghcb_injection(GHCB_INJECT_TYPE_EXCEPTION, SEV_VECTOR_GP);

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

#endif
