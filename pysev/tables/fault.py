"""Bits of the error codes of page faults in words: of a #PF and of a nested page fault.

``PF_BITS`` are those of a #PF; a nested fault has them too, and ``NPF_BITS``.

Source: Linux asm/trap_pf.h, asm/kvm_host.h; AMD64 APM volume 2.
"""

from __future__ import annotations

from pysev.tables.schema import Code, lib

__all__ = ["NPF_BITS", "PF_BITS"]

PF_BITS = (
    Code("present", lib.FAULT_PRESENT, "the page is mapped: a right was missing"),
    Code("write", lib.FAULT_WRITE, "a write"),
    Code("user", lib.FAULT_USER, "in user mode"),
    Code("reserved_bit", lib.FAULT_RESERVED_BIT, "a reserved bit is set in a page table"),
    Code("fetch", lib.FAULT_FETCH, "an instruction fetch"),
    Code("protection_key", lib.FAULT_PROTECTION_KEY, "a protection key forbids it"),
    Code("shadow_stack", lib.FAULT_SHADOW_STACK, "a shadow stack access"),
    Code("sgx", lib.FAULT_SGX, "SGX"),
    Code("rmp", lib.FAULT_RMP, "RMP violation: the page is not the accessor's"),
)

NPF_BITS = (
    Code("final", lib.FAULT_NPF_FINAL, "at the final address"),
    Code("page_table", lib.FAULT_NPF_PAGE_TABLE, "while walking the guest's page tables"),
    Code("enc", lib.FAULT_NPF_ENC, "the guest's C-bit was 1"),
    Code("sizem", lib.FAULT_NPF_SIZEM, "the nested page is smaller than the RMP entry: PSMASH"),
    Code("vmpl", lib.FAULT_NPF_VMPL, "the VMPL lacks the right"),
    Code("sss", lib.FAULT_NPF_SSS, "supervisor shadow stack"),
    Code("implicit", lib.FAULT_KVM_IMPLICIT, "KVM's own: an implicit access"),
    Code("private", lib.FAULT_KVM_PRIVATE, "KVM's own: a private access"),
)
