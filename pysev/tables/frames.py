"""Frames of memory in words: views, operations, refusals, the ways in which views disagree.

Source: AMD64 APM volume 2 for instructions and faults; what follows from a disagreement is from the
page-state sheet (Linux arch/x86/coco/sev, arch/x86/kvm/svm/sev.c).
"""

from __future__ import annotations

from pysev.tables.schema import Code, lib

__all__ = [
    "CODES",
    "DISAGREEMENTS",
    "LEAVES",
    "LISTED",
    "MAPPINGS",
    "OPERATIONS",
    "VIEWS",
    "WHO_DISAGREES",
]

VIEWS = (
    Code("rmp", lib.FRAME_VIEW_RMP, "the RMP entry"),
    Code("page_table", lib.FRAME_VIEW_PAGE_TABLE, "the guest's page table: C-bit and leaf"),
    Code("validated", lib.FRAME_VIEW_VALIDATED, "what the guest has noted as validated"),
    Code("host_list", lib.FRAME_VIEW_LISTED, "the hypervisor's list"),
    Code("content", lib.FRAME_VIEW_CONTENT, "the key under which it was written"),
)

MAPPINGS = (
    Code("unmapped", lib.FRAME_UNMAPPED, "not mapped"),
    Code("shared", lib.FRAME_SHARED, "C-bit clear"),
    Code("private", lib.FRAME_PRIVATE, "C-bit set"),
)

LEAVES = (
    Code("4K", lib.FRAME_LEAF_4K, "a page"),
    Code("2M", lib.FRAME_LEAF_2M, "512 pages"),
    Code("1G", lib.FRAME_LEAF_1G, "512 times 512 pages"),
)

LISTED = (
    Code("nothing", lib.FRAME_LISTED_NOTHING, "nothing was said"),
    Code("shared", lib.FRAME_LISTED_SHARED, "listed as shared"),
    Code("private", lib.FRAME_LISTED_PRIVATE, "listed as private"),
)

OPERATIONS = (
    Code("map", lib.FRAME_OP_MAP, "the guest changes its page table"),
    Code("believe", lib.FRAME_OP_BELIEVE, "the guest notes what it has validated"),
    Code("list", lib.FRAME_OP_LIST, "the hypervisor notes it in its list"),
    Code("content", lib.FRAME_OP_CONTENT, "content is put there under a key"),
    Code("RMPUPDATE", lib.FRAME_OP_RMPUPDATE, "the hypervisor changes the RMP entry"),
    Code("PSMASH", lib.FRAME_OP_PSMASH, "the hypervisor splits a 2 MiB entry"),
    Code("PVALIDATE", lib.FRAME_OP_PVALIDATE, "the guest validates, or takes it back"),
    Code(
        "RMPADJUST", lib.FRAME_OP_RMPADJUST, "the guest changes rights of a VMPL, or makes a VMSA"
    ),
    Code("RMPQUERY", lib.FRAME_OP_RMPQUERY, "the guest asks for rights of a VMPL"),
    Code("VMRUN", lib.FRAME_OP_VMRUN, "a CPU takes a VMCB or VMSA into use"),
    Code("VMEXIT", lib.FRAME_OP_VMEXIT, "a CPU has left a VMCB or VMSA"),
    Code("host access", lib.FRAME_OP_HOST_ACCESS, "the hypervisor reads or writes"),
    Code("guest access", lib.FRAME_OP_GUEST_ACCESS, "a guest reads, writes or fetches"),
    Code("DMA", lib.FRAME_OP_DMA, "a device reads or writes through the IOMMU"),
    Code("SNP_GCTX_CREATE", lib.FRAME_OP_GCTX_CREATE, "firmware makes a guest's context"),
    Code("SNP_DECOMMISSION", lib.FRAME_OP_DECOMMISSION, "firmware takes a guest's context away"),
    Code("SNP_PAGE_MD_INIT", lib.FRAME_OP_MD_INIT, "firmware makes a page of metadata"),
    Code("SNP_LAUNCH_UPDATE", lib.FRAME_OP_LAUNCH_UPDATE, "firmware adds a page to a launch"),
    Code("SNP_PAGE_RECLAIM", lib.FRAME_OP_RECLAIM, "firmware gives a page back"),
    Code("SNP_PAGE_SET_STATE", lib.FRAME_OP_SET_STATE, "firmware freezes a page for the host"),
    Code("SNP_PAGE_UNSMASH", lib.FRAME_OP_UNSMASH, "firmware joins 512 entries"),
    Code("SNP_INIT_EX, IOMMU", lib.FRAME_OP_IOMMU_TAKE, "firmware takes a page of the IOMMU"),
    Code("SNP_SHUTDOWN_EX, IOMMU", lib.FRAME_OP_IOMMU_RELEASE, "firmware gives it back"),
    Code("SNP_PAGE_MOVE", lib.FRAME_OP_MOVE, "firmware moves a page"),
    Code("SNP_PAGE_SWAP_OUT", lib.FRAME_OP_SWAP_OUT, "firmware swaps a page out"),
    Code("SNP_PAGE_SWAP_IN", lib.FRAME_OP_SWAP_IN, "firmware swaps a page in"),
    Code("split", lib.FRAME_OP_LEAF, "leaves of the guest's page table are split"),
    Code("SNP_INIT_EX", lib.FRAME_OP_INIT, "firmware builds the table"),
)

CODES = (
    Code("FAIL_INPUT", lib.SEV_RMP_FAIL_INPUT, "bad input"),
    Code("FAIL_PERMISSION", lib.SEV_RMP_FAIL_PERMISSION, "the entry may not be changed"),
    Code("FAIL_INUSE", lib.SEV_RMP_FAIL_IN_USE, "the page is in use"),
    Code("FAIL_OVERLAP", lib.SEV_RMP_FAIL_OVERLAP, "a 4 KiB and a 2 MiB page overlap"),
    Code(
        "FAIL_SIZEMISMATCH", lib.SEV_RMP_FAIL_SIZE_MISMATCH, "the entry is of 4 KiB: use that size"
    ),
)

DISAGREEMENTS = (
    Code(
        "private-not-owned",
        lib.FRAME_DIFFER_PRIVATE_NOT_OWNED,
        "mapped private, but the RMP does not give it to the guest: #NPF on any access",
    ),
    Code(
        "private-not-validated",
        lib.FRAME_DIFFER_PRIVATE_NOT_VALIDATED,
        "mapped private and the guest's, but not validated: #VC on any access",
    ),
    Code(
        "shared-assigned",
        lib.FRAME_DIFFER_SHARED_ASSIGNED,
        "mapped shared, but the RMP gives it to a guest: #NPF on a write, and no one shares it",
    ),
    Code(
        "believed-not-validated",
        lib.FRAME_DIFFER_BELIEVED,
        "the guest noted it as validated, the RMP does not have it so: the host took it away",
    ),
    Code(
        "validated-not-believed",
        lib.FRAME_DIFFER_NOT_BELIEVED,
        "validated, but the guest's notes do not say so: validated twice if it acts on them",
    ),
    Code(
        "listed-shared-assigned",
        lib.FRAME_DIFFER_LISTED_SHARED_ASSIGNED,
        "the host lists it as shared, the RMP gives it to a guest",
    ),
    Code(
        "listed-private-not-owned",
        lib.FRAME_DIFFER_LISTED_PRIVATE_NOT_OWNED,
        "the host lists it as private, the RMP does not give it to the guest",
    ),
    Code(
        "listed-shared-mapped-private",
        lib.FRAME_DIFFER_LISTED_SHARED_MAPPED_PRIVATE,
        "the host lists it as shared, the guest maps it private: a migration copies ciphertext",
    ),
    Code(
        "listed-private-mapped-shared",
        lib.FRAME_DIFFER_LISTED_PRIVATE_MAPPED_SHARED,
        "the host lists it as private, the guest maps it shared: a migration encrypts plain text",
    ),
    Code(
        "private-other-key",
        lib.FRAME_DIFFER_CONTENT_PRIVATE,
        "mapped private, but written under another key: the guest reads noise",
    ),
    Code(
        "shared-encrypted",
        lib.FRAME_DIFFER_CONTENT_SHARED,
        "mapped shared, but written under a key: everybody reads ciphertext",
    ),
)

WHO_DISAGREES = (
    (lib.FRAME_DIFFER_PRIVATE_NOT_OWNED, (lib.FRAME_VIEW_PAGE_TABLE, lib.FRAME_VIEW_RMP)),
    (lib.FRAME_DIFFER_PRIVATE_NOT_VALIDATED, (lib.FRAME_VIEW_PAGE_TABLE, lib.FRAME_VIEW_RMP)),
    (lib.FRAME_DIFFER_SHARED_ASSIGNED, (lib.FRAME_VIEW_PAGE_TABLE, lib.FRAME_VIEW_RMP)),
    (lib.FRAME_DIFFER_BELIEVED, (lib.FRAME_VIEW_VALIDATED, lib.FRAME_VIEW_RMP)),
    (lib.FRAME_DIFFER_NOT_BELIEVED, (lib.FRAME_VIEW_VALIDATED, lib.FRAME_VIEW_RMP)),
    (lib.FRAME_DIFFER_LISTED_SHARED_ASSIGNED, (lib.FRAME_VIEW_LISTED, lib.FRAME_VIEW_RMP)),
    (lib.FRAME_DIFFER_LISTED_PRIVATE_NOT_OWNED, (lib.FRAME_VIEW_LISTED, lib.FRAME_VIEW_RMP)),
    (
        lib.FRAME_DIFFER_LISTED_SHARED_MAPPED_PRIVATE,
        (lib.FRAME_VIEW_LISTED, lib.FRAME_VIEW_PAGE_TABLE),
    ),
    (
        lib.FRAME_DIFFER_LISTED_PRIVATE_MAPPED_SHARED,
        (lib.FRAME_VIEW_LISTED, lib.FRAME_VIEW_PAGE_TABLE),
    ),
    (lib.FRAME_DIFFER_CONTENT_PRIVATE, (lib.FRAME_VIEW_CONTENT, lib.FRAME_VIEW_PAGE_TABLE)),
    (lib.FRAME_DIFFER_CONTENT_SHARED, (lib.FRAME_VIEW_CONTENT, lib.FRAME_VIEW_PAGE_TABLE)),
)
"""The two views of each way: it is as old as the younger of them."""
