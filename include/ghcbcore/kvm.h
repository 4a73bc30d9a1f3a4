/* KVM of Linux 7.0 as a profile: what a host is unless somebody says otherwise. */
#ifndef GHCBCORE_KVM_H
#define GHCBCORE_KVM_H

#include <ghcbcore/event.h>
#include <ghcbcore/features.h>
#include <ghcbcore/host.h>
#include <ghcbcore/msr.h>

#define GHCB_KVM_MIN_VERSION 1
#define GHCB_KVM_MAX_VERSION 2
/* cffi: begin */
#define GHCB_KVM_C_BIT 51 /* since Zen 3; 47 before */
/* cffi: end */

/* The requests of the MSR protocol that KVM knows, 1 << GHCB_MSR_ROW_*. */
static inline uint64_t ghcb_kvm_msr_functions(void)
{
    return UINT64_C(1) << GHCB_MSR_ROW_SEV_INFO_REQ | UINT64_C(1) << GHCB_MSR_ROW_CPUID_REQ |
           UINT64_C(1) << GHCB_MSR_ROW_AP_RESET_HOLD_REQ | UINT64_C(1) << GHCB_MSR_ROW_PREF_GPA_REQ |
           UINT64_C(1) << GHCB_MSR_ROW_REG_GPA_REQ | UINT64_C(1) << GHCB_MSR_ROW_PSC_REQ |
           UINT64_C(1) << GHCB_MSR_ROW_HV_FEATURES_REQ | UINT64_C(1) << GHCB_MSR_ROW_TERM_REQ;
}

/* The events that KVM knows, 1 << ghcb_nae_index(). */
static inline uint64_t ghcb_kvm_nae_events(void)
{
    uint64_t events = 0;

    for (unsigned int i = 0; i < GHCB_NAE_N_ROWS; i++)
        events |= (uint64_t)ghcb_nae_rows[i].in_kvm << i;
    return events;
}

/* A profile of it for a guest of one kind, GHCB_GUEST_*. CPUID answers zeros. */
static inline ghcb_profile_t ghcb_kvm_profile(uint64_t guest)
{
    ghcb_profile_t profile = {.guest = guest,
                              .min_version = GHCB_KVM_MIN_VERSION,
                              .max_version = GHCB_KVM_MAX_VERSION,
                              .c_bit = GHCB_KVM_C_BIT,
                              .hv_features = GHCB_HV_FEATURES_KVM,
                              .sev_features = guest == GHCB_GUEST_SNP,
                              .msr_functions = ghcb_kvm_msr_functions(),
                              .nae_events = ghcb_kvm_nae_events(),
                              .fault_rate = 1};

    return profile;
}

#endif
