/* What becomes of a vCPU: held, woken, reset, started, destroyed.
 *
 * INIT and STARTUP are latched by the one who sends them and taken by the vCPU's own thread of the
 * hypervisor, so that everything between the two can be explored. Under SEV-ES the hypervisor cannot
 * set registers: the first STARTUP uses up the launch VMSA, any later one only releases a hold, and
 * under SNP a guest names a VMSA of its own by AP creation.
 *
 * Source: KVM as of Linux 7.0: kvm_emulate_ap_reset_hold, kvm_apic_accept_events,
 * sev_vcpu_deliver_sipi_vector, sev_snp_init_protected_guest_state.
 */
#ifndef GHCBCORE_VCPU_H
#define GHCBCORE_VCPU_H

#include <ghcbcore/host.h>
#include <ghcbcore/hostile.h>
#include <ghcbcore/msr.h>

/* The vCPU executed an instruction, so what it was held by is over, whoever woke it: KVM forgets
 * the kind of hold when it enters the guest, and a later STARTUP answers nothing. */
static inline void ghcb_vcpu_ran(ghcb_vcpu_t *vcpu)
{
    vcpu->reset_hold = GHCB_HOLD_NONE;
}

/* Part of a reset: put the VMSA to use that AP creation named, or none. */
static inline void ghcb_vcpu_take_vmsa(ghcb_vcpu_t *vcpu)
{
    if (!(vcpu->vmsa_pending & GHCB_VMSA_ON_INIT))
        return;
    vcpu->vmsa_pending &= ~(uint64_t)GHCB_VMSA_ON_INIT;
    vcpu->vmsa = vcpu->next_vmsa;
    vcpu->next_vmsa = GHCB_VMSA_NONE;
    if (vcpu->vmsa == GHCB_VMSA_NONE) {
        vcpu->mp_state = GHCB_MP_HALTED;
        vcpu->entry = GHCB_ENTRY_RESUME;
    } else {
        vcpu->entry = GHCB_ENTRY_VMSA;
    }
}

/* The vCPU is runnable. What it meets on its way into the guest: the reset that an AP creation
 * asked for, the end of any hold, and VMRUN, which fails without a VMSA. */
static inline void ghcb_vcpu_run(const ghcb_host_t *host, ghcb_vcpu_t *vcpu)
{
    vcpu->mp_state = GHCB_MP_RUNNABLE;
    if (vcpu->vmsa_pending & GHCB_VMSA_ON_RUN) {
        vcpu->vmsa_pending &= ~(uint64_t)GHCB_VMSA_ON_RUN;
        vcpu->nmi_pending = 0;
        ghcb_vcpu_take_vmsa(vcpu);
        if (vcpu->mp_state != GHCB_MP_RUNNABLE)
            return;
    }
    vcpu->reset_hold = GHCB_HOLD_NONE;
    if (vcpu->vmsa == GHCB_VMSA_NONE)
        ghcb_host_end(host, GHCB_EVENT_EINVAL, GHCB_VMSA_NONE);
}

/* Answer a hold as released, where it was asked for. */
static inline void ghcb_vcpu_release(ghcb_vcpu_t *vcpu)
{
    if (vcpu->reset_hold == GHCB_HOLD_NAE) {
        vcpu->sw_exit_info_1 = GHCB_REPLY_OK;
        vcpu->sw_exit_info_2 = 1;
    } else if (vcpu->reset_hold == GHCB_HOLD_MSR) {
        vcpu->msr = (uint64_t)GHCB_MSR_AP_RESET_HOLD_RELEASED << GHCB_MSR_DATA_SHIFT |
                    GHCB_MSR_AP_RESET_HOLD_RESP;
    }
}

/* An NMI that is pending and may be taken: with one, a vCPU does not block. */
static inline int ghcb_vcpu_has_nmi(const ghcb_vcpu_t *vcpu)
{
    return vcpu->nmi_pending && !vcpu->nmi_masked;
}

/* AP reset hold, `how` = GHCB_HOLD_*. The answer's data stands at 0 until a STARTUP releases. */
static inline void ghcb_vcpu_hold(const ghcb_host_t *host, ghcb_vcpu_t *vcpu, uint64_t how)
{
    uint64_t word;

    vcpu->reset_hold = how;
    if (vcpu->extra_wakes) {
        vcpu->extra_wakes--;
        ghcb_vcpu_release(vcpu);
        vcpu->reset_hold = GHCB_HOLD_NONE;
    } else if (ghcb_vcpu_has_nmi(vcpu) || ghcb_fault_happens(host, GHCB_FAULT_EARLY_RESUME, &word)) {
        vcpu->reset_hold = GHCB_HOLD_NONE; /* it goes on at once, not released */
    } else {
        vcpu->mp_state = GHCB_MP_AP_RESET_HOLD;
    }
}

static inline int ghcb_vcpu_sleeps(const ghcb_vcpu_t *vcpu)
{
    return vcpu->mp_state == GHCB_MP_HALTED || vcpu->mp_state == GHCB_MP_AP_RESET_HOLD;
}

static inline void ghcb_vcpu_nmi(const ghcb_host_t *host, ghcb_vcpu_t *vcpu)
{
    uint64_t word;

    if (ghcb_fault_happens(host, GHCB_FAULT_LOST_WAKEUP, &word))
        return;
    vcpu->nmi_pending = 1;
    /* One that arrives wakes a vCPU that has NMIs masked too: KVM looks for the mask only later.
     * No STARTUP ended the hold, so the answer's data stays 0. */
    if (ghcb_vcpu_sleeps(vcpu))
        ghcb_vcpu_run(host, vcpu);
}

static inline void ghcb_vcpu_take_init(const ghcb_host_t *host, ghcb_vcpu_t *vcpu)
{
    if (!vcpu->init_pending)
        return;
    vcpu->init_pending = 0;
    vcpu->nmi_pending = 0; /* a reset forgets what was to be injected */
    ghcb_vcpu_take_vmsa(vcpu);
    /* a reset by INIT does not touch the kind of hold: only running again does */
    if (vcpu == host->first)
        ghcb_vcpu_run(host, vcpu);
    else
        vcpu->mp_state = GHCB_MP_INIT_RECEIVED;
}

static inline void ghcb_vcpu_take_sipi(const ghcb_host_t *host, ghcb_vcpu_t *vcpu)
{
    uint64_t word;

    if (!vcpu->sipi_pending)
        return;
    vcpu->sipi_pending = 0;
    if (vcpu->mp_state != GHCB_MP_INIT_RECEIVED)
        return; /* accepted only after INIT */
    if (ghcb_fault_happens(host, GHCB_FAULT_LOST_WAKEUP, &word))
        return;
    if (host->profile->guest == GHCB_GUEST_PLAIN) {
        vcpu->entry = GHCB_ENTRY_VECTOR;
    } else if (!vcpu->first_sipi) {
        vcpu->first_sipi = 1;
        if (vcpu->entry != GHCB_ENTRY_VMSA)
            vcpu->entry =
                vcpu->vmsa == GHCB_VMSA_LAUNCH ? GHCB_ENTRY_LAUNCH : GHCB_ENTRY_RESUME;
    } else {
        if (vcpu->entry != GHCB_ENTRY_VMSA)
            vcpu->entry = GHCB_ENTRY_RESUME;
        ghcb_vcpu_release(vcpu);
        if (ghcb_fault_happens(host, GHCB_FAULT_DUPLICATED_WAKEUP, &word))
            vcpu->extra_wakes++;
    }
    ghcb_vcpu_run(host, vcpu);
}

/* AP creation: name the VMSA that the target runs from, or none. Unless it shall wait for INIT, the
 * target is kicked and meets it as soon as it runs: at once if it does or sleeps, but after its
 * STARTUP if it never ran or waits for one. */
static inline void ghcb_vcpu_name_vmsa(const ghcb_host_t *host, ghcb_vcpu_t *target, uint64_t vmsa,
                                       int on_init)
{
    uint64_t word;

    target->next_vmsa = vmsa;
    target->vmsa_pending |= GHCB_VMSA_ON_INIT;
    if (on_init || ghcb_fault_happens(host, GHCB_FAULT_LOST_WAKEUP, &word))
        return;
    target->vmsa_pending |= GHCB_VMSA_ON_RUN;
    if (target->mp_state == GHCB_MP_RUNNABLE || ghcb_vcpu_sleeps(target))
        ghcb_vcpu_run(host, target);
}

/* What its APIC or its processor does to a vCPU: GHCB_CALL_* other than VMGEXIT. */
static inline void ghcb_vcpu_call(const ghcb_host_t *host, ghcb_vcpu_t *vcpu, uint64_t call)
{
    switch (call) {
    case GHCB_CALL_INIT:
        ghcb_vcpu_take_init(host, vcpu);
        break;
    case GHCB_CALL_SIPI:
        ghcb_vcpu_take_sipi(host, vcpu);
        break;
    case GHCB_CALL_NMI:
        ghcb_vcpu_nmi(host, vcpu);
        break;
    case GHCB_CALL_HLT:
        ghcb_vcpu_ran(vcpu);
        if (!ghcb_vcpu_has_nmi(vcpu))
            vcpu->mp_state = GHCB_MP_HALTED;
        break;
    case GHCB_CALL_SHUTDOWN:
        ghcb_host_end(host, GHCB_EVENT_SHUTDOWN, 0);
        break;
    case GHCB_CALL_SEND_INIT:
        vcpu->init_pending = 1;
        vcpu->sipi_pending = 0; /* the local APIC drops what was latched before */
        break;
    case GHCB_CALL_SEND_SIPI:
        vcpu->sipi_pending = 1;
        break;
    case GHCB_CALL_TAKE_NMI:
        vcpu->nmi_pending = 0;
        vcpu->nmi_masked = 1;
        break;
    default:
        break;
    }
}

#endif
