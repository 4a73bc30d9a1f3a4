/* CPUID 0x8000001F: what the processor can encrypt, and how many guests at a time.
 *
 * EAX is a set of features (bit numbers); EBX has three fields; ECX is the highest ASID, and EDX
 * the lowest of a guest that is plain SEV: SEV-ES and SNP have 1 to EDX - 1. With segmented RMP,
 * leaf 0x80000025 says which sizes of segments there are.
 *
 * Source: Linux asm/cpufeatures.h, arch/x86/kernel/cpu/amd.c, arch/x86/virt/svm/sev.c.
 */
#ifndef GHCBCORE_CPUID_H
#define GHCBCORE_CPUID_H

/* cffi: begin */
#define CPUID_SEV_LEAF 0x8000001f
#define CPUID_RMP_LEAF 0x80000025

#define CPUID_SEV_SME 0
#define CPUID_SEV_SEV 1
#define CPUID_SEV_VM_PAGE_FLUSH 2
#define CPUID_SEV_SEV_ES 3
#define CPUID_SEV_SNP 4
#define CPUID_SEV_VMPL 5
#define CPUID_SEV_SECURE_TSC 8
#define CPUID_SEV_TSC_AUX 9
#define CPUID_SEV_COHERENT 10
#define CPUID_SEV_DEBUG_SWAP 14
#define CPUID_SEV_RMPREAD 21
#define CPUID_SEV_SEGMENTED_RMP 23
#define CPUID_SEV_ALLOWED_FEATURES 27
#define CPUID_SEV_SVSM_PAGE 28
#define CPUID_SEV_IN_USE_WRITE 30

#define CPUID_SEV_C_BIT_SHIFT 0
#define CPUID_SEV_C_BIT_WIDTH 6
#define CPUID_SEV_REDUCTION_SHIFT 6
#define CPUID_SEV_REDUCTION_WIDTH 6
#define CPUID_SEV_VMPLS_SHIFT 12
#define CPUID_SEV_VMPLS_WIDTH 4
/* cffi: end */

#endif
