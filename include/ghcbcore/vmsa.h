/* The VM save area (VMSA): what the processor keeps of a vCPU that is not running.
 *
 * One page, encrypted; an SNP guest writes one itself to create a vCPU, everybody else sees it only
 * where a debug policy or a measurement shows it. Registers stand at the offsets at which the GHCB
 * page has them too.
 *
 * Left to others: bits of SEV_FEATURES (sev.h, shifted by SEV_STATUS_FEATURES_SHIFT), who creates
 * vCPUs (events.h), words (`pysev.decode.vmsa`).
 *
 * Source: Linux struct sev_es_save_area, OpenVMM SevVmsa, SVSM vmsa.rs, EDK2 Ghcb.h; what a new
 * AP gets: Linux and EDK2. spec_ctrl, the nonce and the Secure AVIC control: OpenVMM alone.
 */
#ifndef GHCBCORE_VMSA_H
#define GHCBCORE_VMSA_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
#define SEV_VMSA_SIZE 0x1000
#define SEV_VMSA_USED 0x670 /* the rest of the page is zero */

#define SEV_VMSA_OFF_ES 0x000
#define SEV_VMSA_OFF_CS 0x010
#define SEV_VMSA_OFF_SS 0x020
#define SEV_VMSA_OFF_DS 0x030
#define SEV_VMSA_OFF_FS 0x040
#define SEV_VMSA_OFF_GS 0x050
#define SEV_VMSA_OFF_GDTR 0x060
#define SEV_VMSA_OFF_LDTR 0x070
#define SEV_VMSA_OFF_IDTR 0x080
#define SEV_VMSA_OFF_TR 0x090
#define SEV_VMSA_OFF_PL0_SSP 0x0a0
#define SEV_VMSA_OFF_PL1_SSP 0x0a8
#define SEV_VMSA_OFF_PL2_SSP 0x0b0
#define SEV_VMSA_OFF_PL3_SSP 0x0b8
#define SEV_VMSA_OFF_U_CET 0x0c0
#define SEV_VMSA_OFF_VMPL 0x0ca
#define SEV_VMSA_OFF_CPL 0x0cb
#define SEV_VMSA_OFF_EFER 0x0d0
#define SEV_VMSA_OFF_XSS 0x140
#define SEV_VMSA_OFF_CR4 0x148
#define SEV_VMSA_OFF_CR3 0x150
#define SEV_VMSA_OFF_CR0 0x158
#define SEV_VMSA_OFF_DR7 0x160
#define SEV_VMSA_OFF_DR6 0x168
#define SEV_VMSA_OFF_RFLAGS 0x170
#define SEV_VMSA_OFF_RIP 0x178
#define SEV_VMSA_OFF_DR0 0x180
#define SEV_VMSA_OFF_DR1 0x188
#define SEV_VMSA_OFF_DR2 0x190
#define SEV_VMSA_OFF_DR3 0x198
#define SEV_VMSA_OFF_DR0_ADDR_MASK 0x1a0
#define SEV_VMSA_OFF_DR1_ADDR_MASK 0x1a8
#define SEV_VMSA_OFF_DR2_ADDR_MASK 0x1b0
#define SEV_VMSA_OFF_DR3_ADDR_MASK 0x1b8
#define SEV_VMSA_OFF_RSP 0x1d8
#define SEV_VMSA_OFF_S_CET 0x1e0
#define SEV_VMSA_OFF_SSP 0x1e8
#define SEV_VMSA_OFF_ISST_ADDR 0x1f0
#define SEV_VMSA_OFF_RAX 0x1f8
#define SEV_VMSA_OFF_STAR 0x200
#define SEV_VMSA_OFF_LSTAR 0x208
#define SEV_VMSA_OFF_CSTAR 0x210
#define SEV_VMSA_OFF_SFMASK 0x218
#define SEV_VMSA_OFF_KERNEL_GS_BASE 0x220
#define SEV_VMSA_OFF_SYSENTER_CS 0x228
#define SEV_VMSA_OFF_SYSENTER_ESP 0x230
#define SEV_VMSA_OFF_SYSENTER_EIP 0x238
#define SEV_VMSA_OFF_CR2 0x240
#define SEV_VMSA_OFF_G_PAT 0x268
#define SEV_VMSA_OFF_DBGCTL 0x270
#define SEV_VMSA_OFF_BR_FROM 0x278
#define SEV_VMSA_OFF_BR_TO 0x280
#define SEV_VMSA_OFF_LAST_EXCP_FROM 0x288
#define SEV_VMSA_OFF_LAST_EXCP_TO 0x290
#define SEV_VMSA_OFF_SPEC_CTRL 0x2e0
#define SEV_VMSA_OFF_PKRU 0x2e8
#define SEV_VMSA_OFF_TSC_AUX 0x2ec
#define SEV_VMSA_OFF_TSC_SCALE 0x2f0
#define SEV_VMSA_OFF_TSC_OFFSET 0x2f8
#define SEV_VMSA_OFF_REG_PROT_NONCE 0x300
#define SEV_VMSA_OFF_RCX 0x308
#define SEV_VMSA_OFF_RDX 0x310
#define SEV_VMSA_OFF_RBX 0x318
#define SEV_VMSA_OFF_SECURE_AVIC_CTL 0x320
#define SEV_VMSA_OFF_RBP 0x328
#define SEV_VMSA_OFF_RSI 0x330
#define SEV_VMSA_OFF_RDI 0x338
#define SEV_VMSA_OFF_R8 0x340
#define SEV_VMSA_OFF_R9 0x348
#define SEV_VMSA_OFF_R10 0x350
#define SEV_VMSA_OFF_R11 0x358
#define SEV_VMSA_OFF_R12 0x360
#define SEV_VMSA_OFF_R13 0x368
#define SEV_VMSA_OFF_R14 0x370
#define SEV_VMSA_OFF_R15 0x378
#define SEV_VMSA_OFF_GUEST_EXIT_INFO_1 0x390
#define SEV_VMSA_OFF_GUEST_EXIT_INFO_2 0x398
#define SEV_VMSA_OFF_GUEST_EXIT_INT_INFO 0x3a0
#define SEV_VMSA_OFF_GUEST_NRIP 0x3a8
#define SEV_VMSA_OFF_SEV_FEATURES 0x3b0
#define SEV_VMSA_OFF_VINTR_CTRL 0x3b8
#define SEV_VMSA_OFF_GUEST_EXIT_CODE 0x3c0
#define SEV_VMSA_OFF_VIRTUAL_TOM 0x3c8
#define SEV_VMSA_OFF_TLB_ID 0x3d0
#define SEV_VMSA_OFF_PCPU_ID 0x3d8
#define SEV_VMSA_OFF_EVENT_INJ 0x3e0
#define SEV_VMSA_OFF_XCR0 0x3e8
#define SEV_VMSA_OFF_X87_DP 0x400
#define SEV_VMSA_OFF_MXCSR 0x408
#define SEV_VMSA_OFF_X87_FTW 0x40c
#define SEV_VMSA_OFF_X87_FSW 0x40e
#define SEV_VMSA_OFF_X87_FCW 0x410
#define SEV_VMSA_OFF_X87_FOP 0x412
#define SEV_VMSA_OFF_X87_DS 0x414
#define SEV_VMSA_OFF_X87_CS 0x416
#define SEV_VMSA_OFF_X87_RIP 0x418
#define SEV_VMSA_OFF_FPREG_X87 0x420
#define SEV_VMSA_OFF_FPREG_XMM 0x470
#define SEV_VMSA_OFF_FPREG_YMM 0x570

/* Bit numbers in registers of the VMSA. */
#define SEV_EFER_SCE 0
#define SEV_EFER_LME 8
#define SEV_EFER_LMA 10
#define SEV_EFER_NX 11
#define SEV_EFER_SVME 12
#define SEV_EFER_LMSLE 13
#define SEV_EFER_FFXSR 14
#define SEV_EFER_TCE 15
#define SEV_EFER_AUTOIBRS 21

#define SEV_CR0_PE 0
#define SEV_CR0_MP 1
#define SEV_CR0_EM 2
#define SEV_CR0_TS 3
#define SEV_CR0_ET 4
#define SEV_CR0_NE 5
#define SEV_CR0_WP 16
#define SEV_CR0_AM 18
#define SEV_CR0_NW 29
#define SEV_CR0_CD 30
#define SEV_CR0_PG 31

#define SEV_CR4_VME 0
#define SEV_CR4_PVI 1
#define SEV_CR4_TSD 2
#define SEV_CR4_DE 3
#define SEV_CR4_PSE 4
#define SEV_CR4_PAE 5
#define SEV_CR4_MCE 6
#define SEV_CR4_PGE 7
#define SEV_CR4_PCE 8
#define SEV_CR4_OSFXSR 9
#define SEV_CR4_OSXMMEXCPT 10
#define SEV_CR4_UMIP 11
#define SEV_CR4_LA57 12
#define SEV_CR4_FSGSBASE 16
#define SEV_CR4_PCIDE 17
#define SEV_CR4_OSXSAVE 18
#define SEV_CR4_SMEP 20
#define SEV_CR4_SMAP 21
#define SEV_CR4_PKE 22
#define SEV_CR4_CET 23

#define SEV_RFLAGS_CF 0
#define SEV_RFLAGS_FIXED 1 /* always one */
#define SEV_RFLAGS_PF 2
#define SEV_RFLAGS_AF 4
#define SEV_RFLAGS_ZF 6
#define SEV_RFLAGS_SF 7
#define SEV_RFLAGS_TF 8
#define SEV_RFLAGS_IF 9
#define SEV_RFLAGS_DF 10
#define SEV_RFLAGS_OF 11
#define SEV_RFLAGS_IOPL 12 /* two bits */
#define SEV_RFLAGS_NT 14
#define SEV_RFLAGS_RF 16
#define SEV_RFLAGS_VM 17
#define SEV_RFLAGS_AC 18
#define SEV_RFLAGS_VIF 19
#define SEV_RFLAGS_VIP 20
#define SEV_RFLAGS_ID 21

/* Attributes of a segment, as the processor keeps them. */
#define SEV_SEGMENT_TYPE_SHIFT 0 /* of a code or data segment: bit 3 code, bit 1 writable or readable */
#define SEV_SEGMENT_TYPE_WIDTH 4
#define SEV_SEGMENT_S_SHIFT 4 /* 0: a system segment */
#define SEV_SEGMENT_S_WIDTH 1
#define SEV_SEGMENT_DPL_SHIFT 5
#define SEV_SEGMENT_DPL_WIDTH 2
#define SEV_SEGMENT_P_SHIFT 7
#define SEV_SEGMENT_P_WIDTH 1
#define SEV_SEGMENT_AVL_SHIFT 8
#define SEV_SEGMENT_AVL_WIDTH 1
#define SEV_SEGMENT_L_SHIFT 9
#define SEV_SEGMENT_L_WIDTH 1
#define SEV_SEGMENT_DB_SHIFT 10
#define SEV_SEGMENT_DB_WIDTH 1
#define SEV_SEGMENT_G_SHIFT 11
#define SEV_SEGMENT_G_WIDTH 1

/* What Linux writes into the VMSA of an AP that it creates; with those of vector and start IP these
 * are all that is not zero. CR4 keeps the MCE bit of the creator. */
#define SEV_AP_CS_ATTRIBUTES 0x09a
#define SEV_AP_DATA_ATTRIBUTES 0x092 /* ds, es, fs, gs, ss */
#define SEV_AP_LDTR_ATTRIBUTES 0x082
#define SEV_AP_TR_ATTRIBUTES 0x083
#define SEV_AP_LIMIT 0xffff /* of every segment and descriptor table */
#define SEV_AP_EFER 0x1000
#define SEV_AP_CR0 0x60000010
#define SEV_AP_DR6 0xffff0ff0
#define SEV_AP_DR7 0x400
#define SEV_AP_RFLAGS 0x2
#define SEV_AP_G_PAT 0x0007040600070406ULL
#define SEV_AP_XCR0 0x1
#define SEV_AP_MXCSR 0x1f80
#define SEV_AP_X87_FTW 0x5555
#define SEV_AP_X87_FCW 0x0040

typedef struct {
    uint16_t selector;
    uint16_t attributes;
    uint32_t limit;
    uint64_t base;
} sev_segment_t;

typedef struct {
    sev_segment_t es;
    sev_segment_t cs;
    sev_segment_t ss;
    sev_segment_t ds;
    sev_segment_t fs;
    sev_segment_t gs;
    sev_segment_t gdtr;
    sev_segment_t ldtr;
    sev_segment_t idtr;
    sev_segment_t tr;
    uint64_t pl0_ssp;
    uint64_t pl1_ssp;
    uint64_t pl2_ssp;
    uint64_t pl3_ssp;
    uint64_t u_cet;
    uint8_t reserved_0c8[0x2];
    uint8_t vmpl;
    uint8_t cpl;
    uint8_t reserved_0cc[0x4];
    uint64_t efer;
    uint8_t reserved_0d8[0x68];
    uint64_t xss;
    uint64_t cr4;
    uint64_t cr3;
    uint64_t cr0;
    uint64_t dr7;
    uint64_t dr6;
    uint64_t rflags;
    uint64_t rip;
    uint64_t dr0;
    uint64_t dr1;
    uint64_t dr2;
    uint64_t dr3;
    uint64_t dr0_addr_mask;
    uint64_t dr1_addr_mask;
    uint64_t dr2_addr_mask;
    uint64_t dr3_addr_mask;
    uint8_t reserved_1c0[0x18];
    uint64_t rsp;
    uint64_t s_cet;
    uint64_t ssp;
    uint64_t isst_addr;
    uint64_t rax;
    uint64_t star;
    uint64_t lstar;
    uint64_t cstar;
    uint64_t sfmask;
    uint64_t kernel_gs_base;
    uint64_t sysenter_cs;
    uint64_t sysenter_esp;
    uint64_t sysenter_eip;
    uint64_t cr2;
    uint8_t reserved_248[0x20];
    uint64_t g_pat;
    uint64_t dbgctl;
    uint64_t br_from;
    uint64_t br_to;
    uint64_t last_excp_from;
    uint64_t last_excp_to;
    uint8_t reserved_298[0x48];
    uint64_t spec_ctrl;
    uint32_t pkru;
    uint32_t tsc_aux;
    uint64_t tsc_scale;
    uint64_t tsc_offset;
    uint64_t reg_prot_nonce;
    uint64_t rcx;
    uint64_t rdx;
    uint64_t rbx;
    uint64_t secure_avic_ctl;
    uint64_t rbp;
    uint64_t rsi;
    uint64_t rdi;
    uint64_t r8;
    uint64_t r9;
    uint64_t r10;
    uint64_t r11;
    uint64_t r12;
    uint64_t r13;
    uint64_t r14;
    uint64_t r15;
    uint8_t reserved_380[0x10];
    uint64_t guest_exit_info_1;
    uint64_t guest_exit_info_2;
    uint64_t guest_exit_int_info;
    uint64_t guest_nrip;
    uint64_t sev_features;
    uint64_t vintr_ctrl;
    uint64_t guest_exit_code;
    uint64_t virtual_tom;
    uint64_t tlb_id;
    uint64_t pcpu_id;
    uint64_t event_inj;
    uint64_t xcr0;
    uint8_t reserved_3f0[0x10];
    uint64_t x87_dp;
    uint32_t mxcsr;
    uint16_t x87_ftw;
    uint16_t x87_fsw;
    uint16_t x87_fcw;
    uint16_t x87_fop;
    uint16_t x87_ds;
    uint16_t x87_cs;
    uint64_t x87_rip;
    uint8_t fpreg_x87[80];
    uint8_t fpreg_xmm[256];
    uint8_t fpreg_ymm[256];
    uint8_t reserved_670[0x990];
} sev_vmsa_t;
/* cffi: end */

#define SEV_VMSA_AT(field, offset) \
    _Static_assert(offsetof(sev_vmsa_t, field) == (offset), "offset of " #field)
SEV_VMSA_AT(es, SEV_VMSA_OFF_ES);
SEV_VMSA_AT(cs, SEV_VMSA_OFF_CS);
SEV_VMSA_AT(ss, SEV_VMSA_OFF_SS);
SEV_VMSA_AT(ds, SEV_VMSA_OFF_DS);
SEV_VMSA_AT(fs, SEV_VMSA_OFF_FS);
SEV_VMSA_AT(gs, SEV_VMSA_OFF_GS);
SEV_VMSA_AT(gdtr, SEV_VMSA_OFF_GDTR);
SEV_VMSA_AT(ldtr, SEV_VMSA_OFF_LDTR);
SEV_VMSA_AT(idtr, SEV_VMSA_OFF_IDTR);
SEV_VMSA_AT(tr, SEV_VMSA_OFF_TR);
SEV_VMSA_AT(pl0_ssp, SEV_VMSA_OFF_PL0_SSP);
SEV_VMSA_AT(pl1_ssp, SEV_VMSA_OFF_PL1_SSP);
SEV_VMSA_AT(pl2_ssp, SEV_VMSA_OFF_PL2_SSP);
SEV_VMSA_AT(pl3_ssp, SEV_VMSA_OFF_PL3_SSP);
SEV_VMSA_AT(u_cet, SEV_VMSA_OFF_U_CET);
SEV_VMSA_AT(vmpl, SEV_VMSA_OFF_VMPL);
SEV_VMSA_AT(cpl, SEV_VMSA_OFF_CPL);
SEV_VMSA_AT(efer, SEV_VMSA_OFF_EFER);
SEV_VMSA_AT(xss, SEV_VMSA_OFF_XSS);
SEV_VMSA_AT(cr4, SEV_VMSA_OFF_CR4);
SEV_VMSA_AT(cr3, SEV_VMSA_OFF_CR3);
SEV_VMSA_AT(cr0, SEV_VMSA_OFF_CR0);
SEV_VMSA_AT(dr7, SEV_VMSA_OFF_DR7);
SEV_VMSA_AT(dr6, SEV_VMSA_OFF_DR6);
SEV_VMSA_AT(rflags, SEV_VMSA_OFF_RFLAGS);
SEV_VMSA_AT(rip, SEV_VMSA_OFF_RIP);
SEV_VMSA_AT(dr0, SEV_VMSA_OFF_DR0);
SEV_VMSA_AT(dr1, SEV_VMSA_OFF_DR1);
SEV_VMSA_AT(dr2, SEV_VMSA_OFF_DR2);
SEV_VMSA_AT(dr3, SEV_VMSA_OFF_DR3);
SEV_VMSA_AT(dr0_addr_mask, SEV_VMSA_OFF_DR0_ADDR_MASK);
SEV_VMSA_AT(dr1_addr_mask, SEV_VMSA_OFF_DR1_ADDR_MASK);
SEV_VMSA_AT(dr2_addr_mask, SEV_VMSA_OFF_DR2_ADDR_MASK);
SEV_VMSA_AT(dr3_addr_mask, SEV_VMSA_OFF_DR3_ADDR_MASK);
SEV_VMSA_AT(rsp, SEV_VMSA_OFF_RSP);
SEV_VMSA_AT(s_cet, SEV_VMSA_OFF_S_CET);
SEV_VMSA_AT(ssp, SEV_VMSA_OFF_SSP);
SEV_VMSA_AT(isst_addr, SEV_VMSA_OFF_ISST_ADDR);
SEV_VMSA_AT(rax, SEV_VMSA_OFF_RAX);
SEV_VMSA_AT(star, SEV_VMSA_OFF_STAR);
SEV_VMSA_AT(lstar, SEV_VMSA_OFF_LSTAR);
SEV_VMSA_AT(cstar, SEV_VMSA_OFF_CSTAR);
SEV_VMSA_AT(sfmask, SEV_VMSA_OFF_SFMASK);
SEV_VMSA_AT(kernel_gs_base, SEV_VMSA_OFF_KERNEL_GS_BASE);
SEV_VMSA_AT(sysenter_cs, SEV_VMSA_OFF_SYSENTER_CS);
SEV_VMSA_AT(sysenter_esp, SEV_VMSA_OFF_SYSENTER_ESP);
SEV_VMSA_AT(sysenter_eip, SEV_VMSA_OFF_SYSENTER_EIP);
SEV_VMSA_AT(cr2, SEV_VMSA_OFF_CR2);
SEV_VMSA_AT(g_pat, SEV_VMSA_OFF_G_PAT);
SEV_VMSA_AT(dbgctl, SEV_VMSA_OFF_DBGCTL);
SEV_VMSA_AT(br_from, SEV_VMSA_OFF_BR_FROM);
SEV_VMSA_AT(br_to, SEV_VMSA_OFF_BR_TO);
SEV_VMSA_AT(last_excp_from, SEV_VMSA_OFF_LAST_EXCP_FROM);
SEV_VMSA_AT(last_excp_to, SEV_VMSA_OFF_LAST_EXCP_TO);
SEV_VMSA_AT(spec_ctrl, SEV_VMSA_OFF_SPEC_CTRL);
SEV_VMSA_AT(pkru, SEV_VMSA_OFF_PKRU);
SEV_VMSA_AT(tsc_aux, SEV_VMSA_OFF_TSC_AUX);
SEV_VMSA_AT(tsc_scale, SEV_VMSA_OFF_TSC_SCALE);
SEV_VMSA_AT(tsc_offset, SEV_VMSA_OFF_TSC_OFFSET);
SEV_VMSA_AT(reg_prot_nonce, SEV_VMSA_OFF_REG_PROT_NONCE);
SEV_VMSA_AT(rcx, SEV_VMSA_OFF_RCX);
SEV_VMSA_AT(rdx, SEV_VMSA_OFF_RDX);
SEV_VMSA_AT(rbx, SEV_VMSA_OFF_RBX);
SEV_VMSA_AT(secure_avic_ctl, SEV_VMSA_OFF_SECURE_AVIC_CTL);
SEV_VMSA_AT(rbp, SEV_VMSA_OFF_RBP);
SEV_VMSA_AT(rsi, SEV_VMSA_OFF_RSI);
SEV_VMSA_AT(rdi, SEV_VMSA_OFF_RDI);
SEV_VMSA_AT(r8, SEV_VMSA_OFF_R8);
SEV_VMSA_AT(r9, SEV_VMSA_OFF_R9);
SEV_VMSA_AT(r10, SEV_VMSA_OFF_R10);
SEV_VMSA_AT(r11, SEV_VMSA_OFF_R11);
SEV_VMSA_AT(r12, SEV_VMSA_OFF_R12);
SEV_VMSA_AT(r13, SEV_VMSA_OFF_R13);
SEV_VMSA_AT(r14, SEV_VMSA_OFF_R14);
SEV_VMSA_AT(r15, SEV_VMSA_OFF_R15);
SEV_VMSA_AT(guest_exit_info_1, SEV_VMSA_OFF_GUEST_EXIT_INFO_1);
SEV_VMSA_AT(guest_exit_info_2, SEV_VMSA_OFF_GUEST_EXIT_INFO_2);
SEV_VMSA_AT(guest_exit_int_info, SEV_VMSA_OFF_GUEST_EXIT_INT_INFO);
SEV_VMSA_AT(guest_nrip, SEV_VMSA_OFF_GUEST_NRIP);
SEV_VMSA_AT(sev_features, SEV_VMSA_OFF_SEV_FEATURES);
SEV_VMSA_AT(vintr_ctrl, SEV_VMSA_OFF_VINTR_CTRL);
SEV_VMSA_AT(guest_exit_code, SEV_VMSA_OFF_GUEST_EXIT_CODE);
SEV_VMSA_AT(virtual_tom, SEV_VMSA_OFF_VIRTUAL_TOM);
SEV_VMSA_AT(tlb_id, SEV_VMSA_OFF_TLB_ID);
SEV_VMSA_AT(pcpu_id, SEV_VMSA_OFF_PCPU_ID);
SEV_VMSA_AT(event_inj, SEV_VMSA_OFF_EVENT_INJ);
SEV_VMSA_AT(xcr0, SEV_VMSA_OFF_XCR0);
SEV_VMSA_AT(x87_dp, SEV_VMSA_OFF_X87_DP);
SEV_VMSA_AT(mxcsr, SEV_VMSA_OFF_MXCSR);
SEV_VMSA_AT(x87_ftw, SEV_VMSA_OFF_X87_FTW);
SEV_VMSA_AT(x87_fsw, SEV_VMSA_OFF_X87_FSW);
SEV_VMSA_AT(x87_fcw, SEV_VMSA_OFF_X87_FCW);
SEV_VMSA_AT(x87_fop, SEV_VMSA_OFF_X87_FOP);
SEV_VMSA_AT(x87_ds, SEV_VMSA_OFF_X87_DS);
SEV_VMSA_AT(x87_cs, SEV_VMSA_OFF_X87_CS);
SEV_VMSA_AT(x87_rip, SEV_VMSA_OFF_X87_RIP);
SEV_VMSA_AT(fpreg_x87, SEV_VMSA_OFF_FPREG_X87);
SEV_VMSA_AT(fpreg_xmm, SEV_VMSA_OFF_FPREG_XMM);
SEV_VMSA_AT(fpreg_ymm, SEV_VMSA_OFF_FPREG_YMM);
_Static_assert(sizeof(sev_segment_t) == 0x10, "size of a segment");
_Static_assert(offsetof(sev_vmsa_t, reserved_670) == SEV_VMSA_USED, "where the fields end");
_Static_assert(sizeof(sev_vmsa_t) == SEV_VMSA_SIZE, "size of the VMSA");
#undef SEV_VMSA_AT

#endif
