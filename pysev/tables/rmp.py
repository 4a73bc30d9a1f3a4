"""The reverse map table in words: states of pages, rights of a VMPL.

Source: AMD-ASPFW rmp_entry_get_state (Genoa) for states and their numbers; AMD64 APM volume 2,
RMPADJUST, for rights.
"""

from __future__ import annotations

from pysev.tables.schema import Code, lib

__all__ = ["RIGHTS", "STATES"]

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
