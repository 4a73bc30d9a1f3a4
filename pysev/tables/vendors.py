"""Codes that vendors keep to themselves, as data: what is known of them without ``register``.

They have names, but no layout that was seen; hosts of other vendors do not know them. More of them
are added by users (``pysev.decode.vendors``).

Source: OpenVMM snp.rs, MSHV headers, cloud-hypervisor.
"""

from __future__ import annotations

from pysev.tables.schema import VendorCode, lib

__all__ = ["VENDOR_CODES"]

VENDOR_CODES = (
    VendorCode(
        "msr",
        lib.GHCB_MSR_HYPERV_SPECIAL_HYPERCALL,
        "hyperv_special_hypercall",
        "Hyper-V",
        "Hyper-V special hypercall",
        "GHCB MSR 0xF00, unconfirmed",
    ),
    VendorCode(
        "msr",
        lib.GHCB_MSR_HYPERV_SPECIAL_FAST_CALL,
        "hyperv_special_fast_call",
        "Hyper-V",
        "Hyper-V special fast call",
        "GHCB MSR 0xF01, unconfirmed",
    ),
    VendorCode(
        "msr",
        lib.GHCB_MSR_HYPERV_HYPERCALL_OUTPUT,
        "hyperv_hypercall_output",
        "Hyper-V",
        "Hyper-V hypercall output",
        "GHCB MSR 0xF02, unconfirmed",
    ),
    VendorCode(
        "msr",
        lib.GHCB_MSR_HYPERV_DEBUG_PRINT,
        "hyperv_debug_print",
        "Hyper-V",
        "Hyper-V debug print",
        "GHCB MSR 0xF03",
    ),
    VendorCode(
        "usage",
        lib.GHCB_USAGE_HYPERV_HYPERCALL,
        "hyperv_hypercall",
        "Hyper-V",
        "Hyper-V: the page is a hypercall page",
        "OpenVMM snp.rs",
    ),
    VendorCode(
        "usage",
        lib.GHCB_USAGE_HYPERV_VTL_RETURN,
        "hyperv_vtl_return",
        "Hyper-V",
        "Hyper-V: return to a lower VTL",
        "OpenVMM snp.rs",
    ),
    VendorCode(
        "usage",
        lib.GHCB_USAGE_HYPERV_IDLE,
        "hyperv_idle",
        "Hyper-V",
        "Hyper-V: the page holds no request",
        "OpenVMM snp.rs",
    ),
)
