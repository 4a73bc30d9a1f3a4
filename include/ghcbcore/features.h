/* What a hypervisor offers: bit numbers of the feature bitmap.
 *
 * The bitmap is the data of GHCB MSR 0x081 and INFO2 of NAE event 0x8000FFFD. The table
 * `pysev.tables.features` says what each bit brings and which bits it requires.
 *
 * Source: GHCB protocol, hypervisor features, as EDK2, SVSM and the crates of the field have
 * them; bit 9 is a draft.
 */
#ifndef GHCBCORE_FEATURES_H
#define GHCBCORE_FEATURES_H

/* cffi: begin */
#define GHCB_HV_FEATURE_SNP 0
#define GHCB_HV_FEATURE_SNP_AP_CREATION 1
#define GHCB_HV_FEATURE_RESTRICTED_INJECTION 2
#define GHCB_HV_FEATURE_RESTRICTED_INJECTION_TIMER 3
#define GHCB_HV_FEATURE_APIC_ID_LIST 4
#define GHCB_HV_FEATURE_MULTI_VMPL 5
#define GHCB_HV_FEATURE_SEV_ES_PSC 6
#define GHCB_HV_FEATURE_SEV_TIO 7
#define GHCB_HV_FEATURE_GHCB_UNREGISTER 8
#define GHCB_HV_FEATURE_EXTENDED_INTERRUPTS 9 /* draft; was bit 7 before February 2025 */
#define GHCB_HV_FEATURES_KNOWN (1ULL << GHCB_HV_FEATURE_SNP | 1ULL << GHCB_HV_FEATURE_SNP_AP_CREATION | 1ULL << GHCB_HV_FEATURE_RESTRICTED_INJECTION | 1ULL << GHCB_HV_FEATURE_RESTRICTED_INJECTION_TIMER | 1ULL << GHCB_HV_FEATURE_APIC_ID_LIST | 1ULL << GHCB_HV_FEATURE_MULTI_VMPL | 1ULL << GHCB_HV_FEATURE_SEV_ES_PSC | 1ULL << GHCB_HV_FEATURE_SEV_TIO | 1ULL << GHCB_HV_FEATURE_GHCB_UNREGISTER | 1ULL << GHCB_HV_FEATURE_EXTENDED_INTERRUPTS)
#define GHCB_HV_FEATURES_KVM (1ULL << GHCB_HV_FEATURE_SNP | 1ULL << GHCB_HV_FEATURE_SNP_AP_CREATION) /* what upstream KVM reports */
/* cffi: end */

#endif
