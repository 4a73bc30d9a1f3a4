"""The reverse map table in words: states of pages, rights of a VMPL, where the table lies.

Source: AMD-ASPFW rmp_entry_get_state (Genoa) for states and their numbers; AMD64 APM volume 2,
RMPADJUST, for rights; Linux arch/x86/virt/svm/sev.c, asm/msr-index.h for RMP_CFG and the table of
segments.
"""

from __future__ import annotations

from pysev.tables.schema import Bits, Code, Word, lib

__all__ = ["CONFIG", "RIGHTS", "SEGMENT", "STATES"]

STATES = (
    Code("none", lib.RMP_STATE_NONE, "no page state has such an entry"),
    Code("default", lib.RMP_STATE_DEFAULT, "the table does not reach this page: plain host memory"),
    Code("hypervisor", lib.RMP_STATE_HYPERVISOR, "belongs to the host"),
    Code("hv_fixed", lib.RMP_STATE_HV_FIXED, "belongs to the host, and its entry is frozen"),
    Code("firmware", lib.RMP_STATE_FIRMWARE, "belongs to firmware"),
    Code("firmware_iommu", lib.RMP_STATE_FIRMWARE_IOMMU, "an IOMMU's log or completion store"),
    Code("reclaim", lib.RMP_STATE_RECLAIM, "given back by firmware, not yet taken by the host"),
    Code("context", lib.RMP_STATE_CONTEXT, "a guest's context page"),
    Code("metadata", lib.RMP_STATE_METADATA, "metadata of pages swapped out"),
    Code("pre_guest", lib.RMP_STATE_PRE_GUEST, "on its way to a guest, firmware may fill it"),
    Code("pre_swap", lib.RMP_STATE_PRE_SWAP, "on its way out of a guest"),
    Code("guest_invalid", lib.RMP_STATE_GUEST_INVALID, "a guest's, which has not validated it"),
    Code("guest_valid", lib.RMP_STATE_GUEST_VALID, "a guest's, validated"),
)

RIGHTS = (
    Code("read", lib.RMP_RIGHT_READ, "r"),
    Code("write", lib.RMP_RIGHT_WRITE, "w"),
    Code("user_execute", lib.RMP_RIGHT_USER_EXECUTE, "u"),
    Code("supervisor_execute", lib.RMP_RIGHT_SUPERVISOR_EXECUTE, "x"),
    Code("shadow_stack", lib.RMP_RIGHT_SHADOW_STACK, "s"),
)

CONFIG = Word(
    "where to look for entries",
    bits=(
        Bits("segmented", lib.RMP_CFG_SEGMENTED_SHIFT, 1, "the table is in segments"),
        Bits(
            "shift",
            lib.RMP_CFG_SEGMENT_SHIFT_SHIFT,
            lib.RMP_CFG_SEGMENT_SHIFT_WIDTH,
            "logarithm of the bytes that a segment covers",
        ),
    ),
)

SEGMENT = Word(
    "one segment of the table",
    bits=(
        Bits(
            "mapped",
            lib.RMP_SEGMENT_MAPPED_SHIFT,
            lib.RMP_SEGMENT_MAPPED_WIDTH,
            "GiB of memory that have entries",
        ),
        Bits(
            "address",
            lib.RMP_SEGMENT_ADDRESS_SHIFT,
            lib.RMP_SEGMENT_ADDRESS_WIDTH,
            "where the entries begin, in MiB",
        ),
    ),
)
