/* What the processor defines: the two MSRs, the bits of SEV_STATUS, results of RMP instructions.
 *
 * `SEV_STATUS_*` are bit numbers. The VMSA field SEV_FEATURES holds the same bits, shifted down
 * by SEV_STATUS_FEATURES_SHIFT: its bit 0 is SNP. Bits not named here are reserved; Linux calls
 * PMC_VIRT reserved too.
 *
 * Source: Linux asm/msr-index.h, EDK2 SevSnpMsr.h, SVSM sev_status.rs, OpenVMM snp.rs.
 */
#ifndef GHCBCORE_SEV_H
#define GHCBCORE_SEV_H

/* cffi: begin */
#define SEV_MSR_GHCB 0xc0010130
#define SEV_MSR_STATUS 0xc0010131

#define SEV_N_VMPLS 4 /* VMPL 0 to 3 */

#define SEV_STATUS_SEV 0
#define SEV_STATUS_SEV_ES 1
#define SEV_STATUS_SEV_SNP 2
#define SEV_STATUS_VTOM 3
#define SEV_STATUS_REFLECT_VC 4
#define SEV_STATUS_RESTRICTED_INJECTION 5
#define SEV_STATUS_ALTERNATE_INJECTION 6
#define SEV_STATUS_DEBUG_SWAP 7
#define SEV_STATUS_PREVENT_HOST_IBS 8
#define SEV_STATUS_BTB_ISOLATION 9
#define SEV_STATUS_VMPL_SSS 10
#define SEV_STATUS_SECURE_TSC 11
#define SEV_STATUS_VMGEXIT_PARAM 12
#define SEV_STATUS_PMC_VIRT 13
#define SEV_STATUS_IBS_VIRT 14
#define SEV_STATUS_VMSA_REG_PROT 16
#define SEV_STATUS_SMT_PROT 17
#define SEV_STATUS_SECURE_AVIC 18
#define SEV_STATUS_IBPB_ON_ENTRY 23
#define SEV_STATUS_FEATURES_SHIFT 2 /* SEV_FEATURES bit n is SEV_STATUS bit n + 2 */

/* EAX after an RMP instruction. PVALIDATE sets carry if the page was as asked already. */
#define SEV_RMP_OK 0
#define SEV_RMP_FAIL_INPUT 1
#define SEV_RMP_FAIL_PERMISSION 2
#define SEV_RMP_FAIL_IN_USE 3
#define SEV_RMP_FAIL_OVERLAP 4
#define SEV_RMP_FAIL_SIZE_MISMATCH 6
/* cffi: end */

#endif
