/* Error codes of page faults: of a #PF, and of a nested page fault (EXITINFO1 of exit 0x400).
 *
 * All are bit numbers. The lower ones are shared; those from 32 on exist in nested faults only,
 * where KVM also keeps two of its own.
 *
 * Source: Linux asm/trap_pf.h, asm/kvm_host.h; AMD64 APM volume 2, nested page faults.
 */
#ifndef GHCBCORE_FAULT_H
#define GHCBCORE_FAULT_H

/* cffi: begin */
#define FAULT_PRESENT 0
#define FAULT_WRITE 1
#define FAULT_USER 2
#define FAULT_RESERVED_BIT 3
#define FAULT_FETCH 4
#define FAULT_PROTECTION_KEY 5
#define FAULT_SHADOW_STACK 6
#define FAULT_SGX 15
#define FAULT_RMP 31

#define FAULT_NPF_FINAL 32      /* while translating the final address */
#define FAULT_NPF_PAGE_TABLE 33 /* while walking the guest's page tables */
#define FAULT_NPF_ENC 34        /* the guest's C-bit was 1 */
#define FAULT_NPF_SIZEM 35      /* sizes of nested page and RMP entry do not fit */
#define FAULT_NPF_VMPL 36       /* the VMPL lacks the right */
#define FAULT_NPF_SSS 37        /* supervisor shadow stack */

#define FAULT_KVM_IMPLICIT 48 /* KVM's own: an access that the instruction does not name */
#define FAULT_KVM_PRIVATE 49  /* KVM's own: the guest meant private memory */
/* cffi: end */

#endif
