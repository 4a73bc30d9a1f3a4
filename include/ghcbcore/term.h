/* Why a guest asked to be terminated: reason sets and, per set, reason codes.
 *
 * The two travel in GHCB MSR 0x100 or in INFO1 of NAE event 0x8000FFFE. The standard owns set 0
 * only; the other sets belong to whoever took them, and set 1 is used by the Linux guest, by
 * OVMF's reset vector and by the ENARX shim at once: its codes can be told apart only by knowing
 * who was running.
 *
 * Source: GHCB MSR 0x100; Linux asm/sev-common.h, EDK2 AmdSev.nasm.inc, linux-svsm globals.rs,
 * VERISMO proto_s.rs, ENARX shim-kvm.
 */
#ifndef GHCBCORE_TERM_H
#define GHCBCORE_TERM_H

/* cffi: begin */
#define GHCB_TERM_SET_GHCB 0        /* the standard */
#define GHCB_TERM_SET_LINUX 1       /* Linux guest */
#define GHCB_TERM_SET_OVMF 1        /* OVMF reset vector; the same set as Linux */
#define GHCB_TERM_SET_ENARX_MSR 1   /* ENARX shim, MSR replies; the same set again */
#define GHCB_TERM_SET_VERISMO 3
#define GHCB_TERM_SET_ENARX 4
#define GHCB_TERM_SET_ENARX_PANIC 7
#define GHCB_TERM_SET_LSVSM 15      /* AMDESE linux-svsm */

#define GHCB_TERM_GHCB_GENERAL 0
#define GHCB_TERM_GHCB_PROTOCOL_RANGE 1
#define GHCB_TERM_GHCB_SNP_FEATURES 2

#define GHCB_TERM_LINUX_REGISTER 0
#define GHCB_TERM_LINUX_PSC 1
#define GHCB_TERM_LINUX_PVALIDATE 2
#define GHCB_TERM_LINUX_NOT_VMPL0 3
#define GHCB_TERM_LINUX_CPUID_TABLE 4
#define GHCB_TERM_LINUX_CPUID_HV 5
#define GHCB_TERM_LINUX_SECRETS_PAGE 6
#define GHCB_TERM_LINUX_NO_SVSM 7
#define GHCB_TERM_LINUX_SVSM_VMPL0 8
#define GHCB_TERM_LINUX_SVSM_CAA 9
#define GHCB_TERM_LINUX_SECURE_TSC 10
#define GHCB_TERM_LINUX_SVSM_CA_REMAP 11
#define GHCB_TERM_LINUX_SECURE_AVIC 12

#define GHCB_TERM_OVMF_NOT_CPUID 1 /* #VC for something other than CPUID */
#define GHCB_TERM_OVMF_UNEXPECTED_RESPONSE 2

#define GHCB_TERM_ENARX_MSR_WRONG_CODE 2

#define GHCB_TERM_VERISMO_GENERAL 0
#define GHCB_TERM_VERISMO_NOT_VMPL0 1
#define GHCB_TERM_VERISMO_UNHANDLED_VC 2
#define GHCB_TERM_VERISMO_PSC 3
#define GHCB_TERM_VERISMO_SET_PAGE 4
#define GHCB_TERM_VERISMO_NO_GHCB 5
#define GHCB_TERM_VERISMO_GHCB_RESPONSE 6
#define GHCB_TERM_VERISMO_INVALID_PARAM 7
#define GHCB_TERM_VERISMO_PVALIDATE 8
#define GHCB_TERM_VERISMO_CRYPTO 0x0a
#define GHCB_TERM_VERISMO_TIMEOUT 0x0b
#define GHCB_TERM_VERISMO_VMM 0x0c
#define GHCB_TERM_VERISMO_GHCB_EXCEPTION 0x0d
#define GHCB_TERM_VERISMO_UNSUPPORTED 0x0e
#define GHCB_TERM_VERISMO_RICH_OS 0x0f
#define GHCB_TERM_VERISMO_PERMISSIONS 0x10
#define GHCB_TERM_VERISMO_MEMORY 0x11

#define GHCB_TERM_ENARX_IOIO_WRITE 0x10
#define GHCB_TERM_ENARX_C_BIT 0x30
#define GHCB_TERM_ENARX_PSC 0x33
#define GHCB_TERM_ENARX_REGISTER 0x34
#define GHCB_TERM_ENARX_PSC_RESERVED 0x35
#define GHCB_TERM_ENARX_PSC_BACKWARDS 0x36

#define GHCB_TERM_ENARX_PANIC_IN_PANIC 0xff

#define GHCB_TERM_LSVSM_GENERAL 0
#define GHCB_TERM_LSVSM_NO_MEMORY 1
#define GHCB_TERM_LSVSM_UNHANDLED_VC 2
#define GHCB_TERM_LSVSM_PSC 3
#define GHCB_TERM_LSVSM_SET_PAGE 4
#define GHCB_TERM_LSVSM_NO_GHCB 5
#define GHCB_TERM_LSVSM_GHCB_RESPONSE 6
#define GHCB_TERM_LSVSM_FW_CFG 7
#define GHCB_TERM_LSVSM_BIOS_FORMAT 8
#define GHCB_TERM_LSVSM_NOT_VMPL0 9
#define GHCB_TERM_LSVSM_VMPL0_FEATURES 10
#define GHCB_TERM_LSVSM_INCORRECT_VMPL 11
#define GHCB_TERM_LSVSM_VMPL1_FEATURES 12
/* cffi: end */

#endif
