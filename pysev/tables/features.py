"""Hypervisor features in words: what a bit brings and which other bits it requires.

The bitmap travels in the MSR protocol and in the answer to the event ``hv_features``. Bits without
a row are unknown: a hypervisor should leave them zero.

Source: GHCB protocol, hypervisor features; ``seen`` names the implementations that agree.
"""

from __future__ import annotations

from pysev.tables.schema import Feature, lib

__all__ = ["FEATURES"]

FEATURES = (
    Feature(
        name="snp",
        bit=lib.GHCB_HV_FEATURE_SNP,
        what="SEV-SNP guests",
        requires=(),
        msr=(lib.GHCB_MSR_PREF_GPA_REQ, lib.GHCB_MSR_REG_GPA_REQ, lib.GHCB_MSR_PSC_REQ),
        nae=(
            lib.GHCB_NAE_PSC,
            lib.GHCB_NAE_SNP_GUEST_REQUEST,
            lib.GHCB_NAE_SNP_EXT_GUEST_REQUEST,
        ),
        confidence="agreed",
        seen=("Linux", "EDK2", "SVSM", "OAK", "Xen", "ZG"),
        source="GHCB hypervisor features, bit 0",
    ),
    Feature(
        name="snp_ap_creation",
        bit=lib.GHCB_HV_FEATURE_SNP_AP_CREATION,
        what="an SNP guest may create and destroy its APs",
        requires=(lib.GHCB_HV_FEATURE_SNP,),
        msr=(),
        nae=(lib.GHCB_NAE_SNP_AP_CREATION,),
        confidence="agreed",
        seen=("Linux", "EDK2", "SVSM", "OAK", "Xen", "ZG"),
        source="GHCB hypervisor features, bit 1",
    ),
    Feature(
        name="restricted_injection",
        bit=lib.GHCB_HV_FEATURE_RESTRICTED_INJECTION,
        what="the host injects nothing but #HV",
        requires=(lib.GHCB_HV_FEATURE_SNP, lib.GHCB_HV_FEATURE_SNP_AP_CREATION),
        msr=(),
        nae=(lib.GHCB_NAE_HV_DOORBELL_PAGE, lib.GHCB_NAE_HV_IPI),
        confidence="agreed",
        seen=("EDK2", "SVSM", "Xen", "ZG"),
        source="GHCB hypervisor features, bit 2",
    ),
    Feature(
        name="restricted_injection_timer",
        bit=lib.GHCB_HV_FEATURE_RESTRICTED_INJECTION_TIMER,
        what="a timer for guests with restricted injection",
        requires=(
            lib.GHCB_HV_FEATURE_SNP,
            lib.GHCB_HV_FEATURE_SNP_AP_CREATION,
            lib.GHCB_HV_FEATURE_RESTRICTED_INJECTION,
        ),
        msr=(),
        nae=(lib.GHCB_NAE_HV_TIMER,),
        confidence="agreed",
        seen=("EDK2", "SVSM", "Xen", "ZG"),
        source="GHCB hypervisor features, bit 3",
    ),
    Feature(
        name="apic_id_list",
        bit=lib.GHCB_HV_FEATURE_APIC_ID_LIST,
        what="the guest may ask for the APIC IDs of all vCPUs",
        requires=(),
        msr=(),
        nae=(lib.GHCB_NAE_APIC_ID_LIST,),
        confidence="agreed",
        seen=("EDK2", "SVSM", "Xen", "ZG"),
        source="GHCB hypervisor features, bit 4",
    ),
    Feature(
        name="multi_vmpl",
        bit=lib.GHCB_HV_FEATURE_MULTI_VMPL,
        what="a vCPU may run at more than one privilege level",
        requires=(lib.GHCB_HV_FEATURE_SNP, lib.GHCB_HV_FEATURE_SNP_AP_CREATION),
        msr=(lib.GHCB_MSR_RUN_VMPL_REQ,),
        nae=(lib.GHCB_NAE_SNP_RUN_VMPL,),
        confidence="agreed",
        seen=("Linux", "SVSM", "Xen", "ZG"),
        source="GHCB hypervisor features, bit 5",
    ),
    Feature(
        name="sev_es_psc",
        bit=lib.GHCB_HV_FEATURE_SEV_ES_PSC,
        what="page-state changes for SEV-ES guests without SNP",
        requires=(),
        msr=(lib.GHCB_MSR_PSC_REQ,),
        nae=(lib.GHCB_NAE_PSC,),
        confidence="agreed",
        seen=("SVSM", "Xen", "ZG"),
        source="GHCB hypervisor features, bit 6",
    ),
    Feature(
        name="sev_tio",
        bit=lib.GHCB_HV_FEATURE_SEV_TIO,
        what="trusted devices",
        requires=(lib.GHCB_HV_FEATURE_SNP,),
        msr=(),
        nae=(lib.GHCB_NAE_TIO_GUEST_REQUEST,),
        confidence="agreed",
        seen=("ZG", "Xen", "Linux RFC"),
        source="GHCB hypervisor features, bit 7",
    ),
    Feature(
        name="ghcb_unregister",
        bit=lib.GHCB_HV_FEATURE_GHCB_UNREGISTER,
        what="a registered GHCB may be taken back",
        requires=(),
        msr=(lib.GHCB_MSR_UNREG_GPA_REQ,),
        nae=(),
        confidence="agreed",
        seen=("ZG", "Xen"),
        source="GHCB hypervisor features, bit 8",
    ),
    Feature(
        name="extended_interrupts",
        bit=lib.GHCB_HV_FEATURE_EXTENDED_INTERRUPTS,
        what="alternate interrupt injection under a paravisor; bit 7 before February 2025",
        requires=(),
        msr=(),
        nae=(
            lib.GHCB_NAE_CONFIGURE_INT_INJECTION,
            lib.GHCB_NAE_DISABLE_ALT_INJECTION,
            lib.GHCB_NAE_SPECIFIC_EOI,
        ),
        confidence="draft",
        seen=("SVSM",),
        source="SVSM hypervisor features, bit 9",
    ),
)
