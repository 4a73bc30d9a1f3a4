/* Events that a guest requests through the GHCB page, and the numbers inside them.
 *
 * `GHCB_NAE_*` is what a guest writes as sw_exit_code. Codes below 0x8000_0000 are those of the
 * intercept that made the processor raise #VC (a non-automatic exit); the rest is defined by the
 * protocol. `SVM_EXIT_*` are exits that reach the host without a #VC and never stand in the page.
 * A field `X` inside a 64-bit word is `X_SHIFT` and `X_WIDTH`.
 *
 * Left to others: what a host does (host.h), rows with required inputs and versions
 * (`pysev.tables.nae`), feature bits (features.h), termination reasons (term.h), firmware
 * status (psp.h).
 *
 * Source: GHCB protocol, NAE events and page-state change; Linux asm/svm.h, asm/sev-common.h,
 * EDK2 Ghcb.h, SVSM ghcb.rs, OpenVMM snp.rs. "unconfirmed" and "draft" stand where that holds.
 */
#ifndef GHCBCORE_NAE_H
#define GHCBCORE_NAE_H

#include <ghcbcore/page.h>

/* cffi: begin */
/* Events, sw_exit_code. */
#define GHCB_NAE_DR7_READ 0x027
#define GHCB_NAE_DR7_WRITE 0x037
#define GHCB_NAE_RDTSC 0x06e
#define GHCB_NAE_RDPMC 0x06f
#define GHCB_NAE_CPUID 0x072
#define GHCB_NAE_INVD 0x076
#define GHCB_NAE_IOIO 0x07b
#define GHCB_NAE_MSR 0x07c
#define GHCB_NAE_VMMCALL 0x081
#define GHCB_NAE_RDTSCP 0x087
#define GHCB_NAE_WBINVD 0x089
#define GHCB_NAE_MONITOR 0x08a
#define GHCB_NAE_MWAIT 0x08b
#define GHCB_NAE_MMIO_READ 0x80000001
#define GHCB_NAE_MMIO_WRITE 0x80000002
#define GHCB_NAE_NMI_COMPLETE 0x80000003
#define GHCB_NAE_AP_RESET_HOLD 0x80000004
#define GHCB_NAE_AP_JUMP_TABLE 0x80000005
#define GHCB_NAE_PSC 0x80000010
#define GHCB_NAE_SNP_GUEST_REQUEST 0x80000011
#define GHCB_NAE_SNP_EXT_GUEST_REQUEST 0x80000012
#define GHCB_NAE_SNP_AP_CREATION 0x80000013
#define GHCB_NAE_HV_DOORBELL_PAGE 0x80000014
#define GHCB_NAE_HV_IPI 0x80000015
#define GHCB_NAE_HV_TIMER 0x80000016 /* fields unconfirmed */
#define GHCB_NAE_APIC_ID_LIST 0x80000017
#define GHCB_NAE_SNP_RUN_VMPL 0x80000018
#define GHCB_NAE_TIO_GUEST_REQUEST 0x80000019 /* unconfirmed: one implementation */
#define GHCB_NAE_SECURE_AVIC 0x8000001a
#define GHCB_NAE_CONFIGURE_INT_INJECTION 0x8000001b   /* draft */
#define GHCB_NAE_DISABLE_ALT_INJECTION 0x8000001c     /* draft */
#define GHCB_NAE_SPECIFIC_EOI 0x8000001d              /* draft */
#define GHCB_NAE_TIO_GUEST_REQUEST_RFC 0x80000020     /* draft: Linux RFC */
#define GHCB_NAE_TIO_OPERATION_RFC 0x80000021         /* draft: Linux RFC */
#define GHCB_NAE_HV_FEATURES 0x8000fffd
#define GHCB_NAE_TERMINATE 0x8000fffe
#define GHCB_NAE_UNSUPPORTED 0x8000ffff
#define GHCB_NAE_SOFTWARE_RESERVED 0xf0000000 /* never a valid request */

/* Exception vectors. */
#define SEV_VECTOR_DB 1
#define SEV_VECTOR_UD 6
#define SEV_VECTOR_GP 13
#define SEV_VECTOR_AC 17
#define SEV_VECTOR_MC 18
#define SEV_VECTOR_HV 28
#define SEV_VECTOR_VC 29

/* Automatic exits: straight to the host, no #VC. */
#define SVM_EXIT_EXCP_BASE 0x040 /* + vector */
#define SVM_EXIT_EXCP_DB (SVM_EXIT_EXCP_BASE + SEV_VECTOR_DB) /* also a #VC error code */
#define SVM_EXIT_EXCP_AC (SVM_EXIT_EXCP_BASE + SEV_VECTOR_AC) /* also a #VC error code */
#define SVM_EXIT_EXCP_MC (SVM_EXIT_EXCP_BASE + SEV_VECTOR_MC)
#define SVM_EXIT_INTR 0x060
#define SVM_EXIT_NMI 0x061
#define SVM_EXIT_SMI 0x062
#define SVM_EXIT_INIT 0x063
#define SVM_EXIT_VINTR 0x064
#define SVM_EXIT_PAUSE 0x077
#define SVM_EXIT_HLT 0x078
#define SVM_EXIT_SHUTDOWN 0x07f
#define SVM_EXIT_EFER_WRITE_TRAP 0x08f
#define SVM_EXIT_CR0_WRITE_TRAP 0x090 /* CRn: + n, up to 15 */
#define SVM_EXIT_CR4_WRITE_TRAP 0x094
#define SVM_EXIT_CR8_WRITE_TRAP 0x098
#define SVM_EXIT_CR15_WRITE_TRAP 0x09f
#define SVM_EXIT_BUS_LOCK 0x0a5
#define SVM_EXIT_IDLE_HLT 0x0a6
#define SVM_EXIT_NPF 0x400 /* with the reserved-bit flag: #VC, and the guest sends MMIO */
#define SVM_EXIT_VMGEXIT 0x403
#define SVM_EXIT_PAGE_NOT_VALIDATED 0x404 /* only as the error code of a #VC */
#define SVM_EXIT_NOT_RESTARTABLE 0x406    /* unconfirmed: one implementation */

/* Exit codes of a VMRUN that did not enter the guest: -1, -2, -3, -4. */
#define SVM_EXIT_INVALID 0xffffffffffffffffULL
#define SVM_EXIT_VMSA_BUSY 0xfffffffffffffffeULL
#define SVM_EXIT_IDLE_REQUIRED 0xfffffffffffffffdULL
#define SVM_EXIT_INVALID_PMC 0xfffffffffffffffcULL

/* Instruction encodings, first byte leftmost; none begins with 0, so the bytes can be counted. */
#define SEV_INSN_VMGEXIT 0xf30f01d9
#define SEV_INSN_PVALIDATE 0xf20f01ff
#define SEV_INSN_RMPADJUST 0xf30f01fe
#define SEV_INSN_VMMCALL 0x0f01d9
#define SEV_INSN_CPUID 0x0fa2
#define SEV_INSN_INVD 0x0f08
#define SEV_INSN_WBINVD 0x0f09
#define SEV_INSN_RDMSR 0x0f32
#define SEV_INSN_WRMSR 0x0f30
#define SEV_INSN_RDPMC 0x0f33
#define SEV_INSN_RDTSC 0x0f31
#define SEV_INSN_RDTSCP 0x0f01f9
#define SEV_INSN_MONITOR 0x0f01c8
#define SEV_INSN_MONITORX 0x0f01fa
#define SEV_INSN_MWAIT 0x0f01c9
#define SEV_INSN_MWAITX 0x0f01fb
#define SEV_INSN_MOV_FROM_DR 0x0f21 /* a ModRM byte follows; its reg field is 7 for DR7 */
#define SEV_INSN_MOV_TO_DR 0x0f23

/* Reply, INFO1[31:0]; anything else is unknown. */
#define GHCB_REPLY_OK 0        /* INFO2 is the event's result */
#define GHCB_REPLY_EXCEPTION 1 /* INFO2 says which exception the guest must raise */
#define GHCB_REPLY_MALFORMED 2 /* INFO2 is one of the reasons below */
#define GHCB_MALFORMED_NOT_REGISTERED 1
#define GHCB_MALFORMED_USAGE 2
#define GHCB_MALFORMED_SCRATCH 3
#define GHCB_MALFORMED_MISSING_INPUT 4
#define GHCB_MALFORMED_INVALID_INPUT 5
#define GHCB_MALFORMED_INVALID_EVENT 6
#define GHCB_MALFORMED_STANDARD_MAX 0xffff /* unconfirmed: above belongs to the hypervisor */

/* Event injection: INFO2 of a GHCB_REPLY_EXCEPTION. */
#define GHCB_INJECT_VECTOR_SHIFT 0
#define GHCB_INJECT_VECTOR_WIDTH 8
#define GHCB_INJECT_TYPE_SHIFT 8
#define GHCB_INJECT_TYPE_WIDTH 3
#define GHCB_INJECT_HAS_ERROR_SHIFT 11
#define GHCB_INJECT_HAS_ERROR_WIDTH 1
#define GHCB_INJECT_VALID_SHIFT 31
#define GHCB_INJECT_VALID_WIDTH 1
#define GHCB_INJECT_ERROR_SHIFT 32 /* counts only if HAS_ERROR is set */
#define GHCB_INJECT_ERROR_WIDTH 32
#define GHCB_INJECT_TYPE_INTERRUPT 0
#define GHCB_INJECT_TYPE_NMI 2
#define GHCB_INJECT_TYPE_EXCEPTION 3
#define GHCB_INJECT_TYPE_SOFTWARE 4

/* IOIO, INFO1. */
#define GHCB_IOIO_IN_SHIFT 0 /* 1 IN, 0 OUT */
#define GHCB_IOIO_IN_WIDTH 1
#define GHCB_IOIO_STRING_SHIFT 2
#define GHCB_IOIO_STRING_WIDTH 1
#define GHCB_IOIO_KIND_SHIFT 0 /* IN, bit 1 (zero) and STRING taken together */
#define GHCB_IOIO_KIND_WIDTH 3
#define GHCB_IOIO_KIND_OUT 0          /* a plain OUT, and the same with bit 1 set: */
#define GHCB_IOIO_KIND_OUT_RESERVED 2 /* the two that take their value from rax */
#define GHCB_IOIO_REP_SHIFT 3
#define GHCB_IOIO_REP_WIDTH 1
#define GHCB_IOIO_SIZE_SHIFT 4 /* operand size in bytes: 1, 2 or 4 */
#define GHCB_IOIO_SIZE_WIDTH 3
#define GHCB_IOIO_ADDRESS_SHIFT 7 /* one of the three below */
#define GHCB_IOIO_ADDRESS_WIDTH 3
#define GHCB_IOIO_ADDRESS_16 1
#define GHCB_IOIO_ADDRESS_32 2
#define GHCB_IOIO_ADDRESS_64 4
#define GHCB_IOIO_SEGMENT_SHIFT 10
#define GHCB_IOIO_SEGMENT_WIDTH 3
#define GHCB_IOIO_SEGMENT_ES 0
#define GHCB_IOIO_SEGMENT_CS 1
#define GHCB_IOIO_SEGMENT_SS 2
#define GHCB_IOIO_SEGMENT_DS 3
#define GHCB_IOIO_SEGMENT_FS 4
#define GHCB_IOIO_SEGMENT_GS 5
#define GHCB_IOIO_PORT_SHIFT 16
#define GHCB_IOIO_PORT_WIDTH 16

/* MSR, INFO1. */
#define GHCB_RDMSR 0
#define GHCB_WRMSR 1

/* CPUID: this leaf needs xcr0 as well. */
#define GHCB_CPUID_LEAF_XSTATE 0x0d

/* MMIO: longest access since protocol version 2, and before. */
#define GHCB_MMIO_MAX_V2 8
#define GHCB_MMIO_MAX_V1 0x7fffffff

/* AP jump table, INFO1. */
#define GHCB_AP_JUMP_TABLE_SET 0
#define GHCB_AP_JUMP_TABLE_GET 1

/* SNP AP creation, INFO1. */
#define GHCB_AP_CREATE_OP_SHIFT 0
#define GHCB_AP_CREATE_OP_WIDTH 16
#define GHCB_AP_CREATE_VMPL_SHIFT 16
#define GHCB_AP_CREATE_VMPL_WIDTH 4
#define GHCB_AP_CREATE_APIC_ID_SHIFT 32
#define GHCB_AP_CREATE_APIC_ID_WIDTH 32
#define GHCB_AP_CREATE_ON_INIT 0
#define GHCB_AP_CREATE_NOW 1
#define GHCB_AP_CREATE_DESTROY 2

/* #HV doorbell page, INFO1. */
#define GHCB_DOORBELL_GET_PREFERRED 0
#define GHCB_DOORBELL_SET 1
#define GHCB_DOORBELL_QUERY 2
#define GHCB_DOORBELL_CLEAR 3
#define GHCB_DOORBELL_NO_PREFERENCE 0xffffffffffffffffULL

/* Secure AVIC, INFO1 and rax. */
#define GHCB_SECURE_AVIC_REGISTER 0
#define GHCB_SECURE_AVIC_UNREGISTER 1
#define GHCB_SECURE_AVIC_SELF 0xffffffffffffffffULL

/* Run VMPL, INFO1. */
#define GHCB_RUN_VMPL_VMPL_SHIFT 0
#define GHCB_RUN_VMPL_VMPL_WIDTH 32

/* Disable alternate injection and specific EOI, INFO1. Draft. */
#define GHCB_ALT_INJECTION_IF_SHIFT 0
#define GHCB_ALT_INJECTION_IF_WIDTH 1
#define GHCB_ALT_INJECTION_SHADOW_SHIFT 1
#define GHCB_ALT_INJECTION_SHADOW_WIDTH 1
#define GHCB_ALT_INJECTION_TPR_SHIFT 8
#define GHCB_ALT_INJECTION_TPR_WIDTH 8
#define GHCB_ALT_INJECTION_VMPL_SHIFT 16
#define GHCB_ALT_INJECTION_VMPL_WIDTH 8
#define GHCB_SPECIFIC_EOI_VECTOR_SHIFT 0
#define GHCB_SPECIFIC_EOI_VECTOR_WIDTH 8
#define GHCB_SPECIFIC_EOI_VMPL_SHIFT 16
#define GHCB_SPECIFIC_EOI_VMPL_WIDTH 8

/* TIO operation of the Linux RFC, INFO1. Draft. */
#define GHCB_TIO_OPERATION_GUEST_ID_SHIFT 0
#define GHCB_TIO_OPERATION_GUEST_ID_WIDTH 32
#define GHCB_TIO_OPERATION_ACTION_SHIFT 32
#define GHCB_TIO_OPERATION_ACTION_WIDTH 32
#define GHCB_TIO_OPERATION_BIND 0
#define GHCB_TIO_OPERATION_UNBIND 1
#define GHCB_TIO_OPERATION_RUN 2
#define GHCB_TIO_OPERATION_STOP 3

/* Terminate, INFO1. The sets and codes are those of term.h. */
#define GHCB_TERMINATE_SET_SHIFT 0
#define GHCB_TERMINATE_SET_WIDTH 4
#define GHCB_TERMINATE_CODE_SHIFT 4
#define GHCB_TERMINATE_CODE_WIDTH 8

/* Page-state change: descriptor in the shared buffer. end_entry is inclusive. */
#define GHCB_PSC_OFF_CUR_ENTRY 0 /* u16 */
#define GHCB_PSC_OFF_END_ENTRY 2 /* u16 */
#define GHCB_PSC_OFF_RESERVED 4  /* u32, zero */
#define GHCB_PSC_OFF_ENTRIES 8
#define GHCB_PSC_ENTRY_SIZE 8
#define GHCB_PSC_MAX_ENTRIES ((GHCB_SHARED_BUFFER_SIZE - GHCB_PSC_OFF_ENTRIES) / GHCB_PSC_ENTRY_SIZE)
#define GHCB_PSC_ENTRY_CUR_PAGE_SHIFT 0
#define GHCB_PSC_ENTRY_CUR_PAGE_WIDTH 12
#define GHCB_PSC_ENTRY_GFN_SHIFT 12
#define GHCB_PSC_ENTRY_GFN_WIDTH 40
#define GHCB_PSC_ENTRY_OP_SHIFT 52
#define GHCB_PSC_ENTRY_OP_WIDTH 4
#define GHCB_PSC_ENTRY_SIZE_SHIFT 56
#define GHCB_PSC_ENTRY_SIZE_WIDTH 1
#define GHCB_PSC_OP_PRIVATE 1
#define GHCB_PSC_OP_SHARED 2
#define GHCB_PSC_OP_PSMASH 3   /* a hint */
#define GHCB_PSC_OP_UNSMASH 4  /* a hint */
#define GHCB_PSC_SIZE_4K 0
#define GHCB_PSC_SIZE_2M 1
#define GHCB_PSC_PAGES_4K 1
#define GHCB_PSC_PAGES_2M 512

/* Page-state change: status in INFO2, class above and detail below. Class 0, detail 0: fine. */
#define GHCB_PSC_STATUS_CLASS_SHIFT 32
#define GHCB_PSC_STATUS_CLASS_WIDTH 32
#define GHCB_PSC_STATUS_DETAIL_SHIFT 0
#define GHCB_PSC_STATUS_DETAIL_WIDTH 32
#define GHCB_PSC_CLASS_OK 0
#define GHCB_PSC_CLASS_INVALID 1
#define GHCB_PSC_CLASS_UNSMASH 2  /* unconfirmed: one implementation; detail is a code */
#define GHCB_PSC_CLASS_ENTRY 3    /* unconfirmed: one implementation */
#define GHCB_PSC_CLASS_GENERIC 0x100
#define GHCB_PSC_INVALID_HEADER 1
#define GHCB_PSC_INVALID_ENTRY 2
#define GHCB_PSC_ENTRY_NO_CHANGE 1     /* unconfirmed: one implementation */
#define GHCB_PSC_ENTRY_SIZE_MISMATCH 2 /* unconfirmed: one implementation */

/* SNP guest request: status in INFO2. */
#define GHCB_GUEST_REQUEST_FW_SHIFT 0 /* a code of psp.h */
#define GHCB_GUEST_REQUEST_FW_WIDTH 32
#define GHCB_GUEST_REQUEST_VMM_SHIFT 32
#define GHCB_GUEST_REQUEST_VMM_WIDTH 32
#define GHCB_GUEST_REQUEST_VMM_OK 0
#define GHCB_GUEST_REQUEST_VMM_INVALID_LEN 1 /* rbx says how many pages are needed */
#define GHCB_GUEST_REQUEST_VMM_BUSY 2
#define GHCB_GUEST_REQUEST_VMM_GENERIC 0xffffffff /* KVM */

/* SNP guest request: header of a message page. */
#define SNP_MSG_OFF_AUTHTAG 0x00
#define SNP_MSG_OFF_SEQNO 0x20
#define SNP_MSG_OFF_ALGO 0x30
#define SNP_MSG_OFF_HEADER_VERSION 0x31
#define SNP_MSG_OFF_HEADER_SIZE 0x32
#define SNP_MSG_OFF_TYPE 0x34
#define SNP_MSG_OFF_VERSION 0x35
#define SNP_MSG_OFF_SIZE 0x36
#define SNP_MSG_OFF_VMPCK 0x3c
#define SNP_MSG_OFF_PAYLOAD 0x60
#define SNP_MSG_PAYLOAD_MAX (GHCB_PAGE_SIZE - SNP_MSG_OFF_PAYLOAD)
#define SNP_MSG_ALGO_AES_256_GCM 1
#define SNP_MSG_HEADER_VERSION 1
#define SNP_MSG_INVALID 0
#define SNP_MSG_CPUID_REQ 1
#define SNP_MSG_CPUID_RSP 2
#define SNP_MSG_KEY_REQ 3
#define SNP_MSG_KEY_RSP 4
#define SNP_MSG_REPORT_REQ 5
#define SNP_MSG_REPORT_RSP 6
#define SNP_MSG_EXPORT_REQ 7
#define SNP_MSG_EXPORT_RSP 8
#define SNP_MSG_IMPORT_REQ 9
#define SNP_MSG_IMPORT_RSP 10
#define SNP_MSG_ABSORB_REQ 11
#define SNP_MSG_ABSORB_RSP 12
#define SNP_MSG_VMRK_REQ 13
#define SNP_MSG_VMRK_RSP 14
#define SNP_MSG_TSC_INFO_REQ 17
#define SNP_MSG_TSC_INFO_RSP 18
#define GHCB_CERT_TABLE_END 24 /* bytes of zero that end a table of certificates */

/* Interrupt command, as the x2APIC has it: INFO1 of a #HV IPI. */
#define APIC_ICR_VECTOR_WIDTH 8
#define APIC_ICR_MODE_SHIFT 8
#define APIC_ICR_MODE_WIDTH 3
#define APIC_ICR_MODE_NMI 4
#define APIC_ICR_MODE_INIT 5
#define APIC_ICR_MODE_STARTUP 6
#define APIC_ICR_LOGICAL_SHIFT 11
#define APIC_ICR_ASSERT_SHIFT 14
#define APIC_ICR_LEVEL_SHIFT 15
#define APIC_ICR_RESERVED 0xfff32000 /* of the low half: bits 13, 16, 17, 20 to 31 */
#define APIC_ICR_SHORTHAND_SHIFT 18
#define APIC_ICR_SHORTHAND_WIDTH 2
#define APIC_ICR_TO_SELF 1
#define APIC_ICR_TO_ALL 2
#define APIC_ICR_TO_OTHERS 3
#define APIC_ICR_DESTINATION_SHIFT 32
/* cffi: end */

/* An event to inject: INFO2 of a GHCB_REPLY_EXCEPTION, and what VMRUN injects. Without error code. */
static inline uint64_t ghcb_injection(uint64_t type, uint64_t vector)
{
    return vector << GHCB_INJECT_VECTOR_SHIFT | type << GHCB_INJECT_TYPE_SHIFT |
           UINT64_C(1) << GHCB_INJECT_VALID_SHIFT;
}

#endif
