"""The functions of the GHCB MSR protocol in words.

Bits, codes and masks are in ``ghcbcore/msr.h``; what a host does with a request is in the host.
``FUNCTIONS`` has every code of the protocol; codes of vendors are in ``pysev.tables.vendors``.

Source: GHCB protocol, MSR requests; the text of the specification was not at hand, ``seen`` names
the implementations that agree.
"""

from __future__ import annotations

from pysev.tables.msr_schema import Field, Function, Half, lib

__all__ = ["CPUID_REGISTERS", "FUNCTIONS", "PSC_OPERATIONS"]

CPUID_REGISTERS = {
    lib.GHCB_MSR_CPUID_REG_EAX: "EAX",
    lib.GHCB_MSR_CPUID_REG_EBX: "EBX",
    lib.GHCB_MSR_CPUID_REG_ECX: "ECX",
    lib.GHCB_MSR_CPUID_REG_EDX: "EDX",
}

PSC_OPERATIONS = {
    lib.GHCB_PSC_OP_PRIVATE: "private",
    lib.GHCB_PSC_OP_SHARED: "shared",
}

FUNCTIONS = (
    Function(
        name="ghcb_gpa",
        title="GHCB page",
        what="Not a request: the address of the page that holds one.",
        request=Half(
            lib.GHCB_MSR_GHCB_GPA,
            "{gfn:words}",
            (
                Field(
                    "gfn",
                    "frame of the GHCB page",
                    "gfn",
                    {0: "no GHCB is set: KVM resumes the guest without an answer"},
                ),
            ),
        ),
        answer=None,
        since=1,
        needs="SEV-ES",
        seen=("Linux", "EDK2", "SVSM", "OAK"),
        source="GHCB MSR 0x000",
    ),
    Function(
        name="sev_info",
        title="SEV information",
        what="Which protocol versions the hypervisor speaks and where the C-bit is.",
        request=Half(lib.GHCB_MSR_SEV_INFO_REQ, ""),
        answer=Half(
            lib.GHCB_MSR_SEV_INFO_RESP,
            "protocol versions {min}..{max}, C-bit {c_bit}",
            (
                Field("max", "highest protocol version of the hypervisor"),
                Field("min", "lowest protocol version of the hypervisor"),
                Field("c_bit", "position of the C-bit in a page table entry"),
            ),
        ),
        since=1,
        needs="SEV-ES",
        seen=("Linux", "EDK2", "SVSM", "OAK", "Xen"),
        source="GHCB MSR 0x001, 0x002",
    ),
    Function(
        name="ap_jump_table",
        title="AP jump table",
        what="A name in the headers of Hyper-V and OpenVMM; nobody was seen to use it.",
        request=Half(
            lib.GHCB_MSR_AP_JUMP_TABLE_REQ,
            "data {data}",
            (Field("data", "not known", "hex"),),
        ),
        answer=None,
        since=None,
        needs="not known",
        seen=("OpenVMM", "MSHV"),
        source="GHCB MSR 0x003, unconfirmed",
        remarks=("unconfirmed: the name is all that is known of this function",),
    ),
    Function(
        name="cpuid",
        title="CPUID",
        what="One register of one CPUID function, sub-leaf 0.",
        request=Half(
            lib.GHCB_MSR_CPUID_REQ,
            "function {fn}, register {reg:words}",
            (
                Field("fn", "CPUID function, EAX on input", "hex"),
                Field("reg", "register that is wanted", "decimal", CPUID_REGISTERS),
            ),
        ),
        answer=Half(
            lib.GHCB_MSR_CPUID_RESP,
            "{reg:words} = {value}",
            (
                Field("value", "content of the register", "hex"),
                Field("reg", "register of the request", "decimal", CPUID_REGISTERS),
            ),
        ),
        since=1,
        needs="SEV-ES",
        seen=("Linux", "EDK2", "OAK", "OpenBSD"),
        source="GHCB MSR 0x004, 0x005",
    ),
    Function(
        name="ap_reset_hold",
        title="AP reset hold",
        what="Stop this AP until it is to start again.",
        request=Half(lib.GHCB_MSR_AP_RESET_HOLD_REQ, ""),
        answer=Half(
            lib.GHCB_MSR_AP_RESET_HOLD_RESP,
            "{result:words}",
            (
                Field(
                    "result",
                    "why the AP runs again",
                    "hex",
                    {
                        lib.GHCB_MSR_AP_RESET_HOLD_NOT_RELEASED: (
                            "not released, woken by something else: must ask again"
                        )
                    },
                    otherwise="released by SIPI",
                ),
            ),
        ),
        since=2,
        needs="SEV-ES",
        seen=("Linux", "EDK2", "OAK"),
        source="GHCB MSR 0x006, 0x007",
    ),
    Function(
        name="preferred_gpa",
        title="preferred GHCB GPA",
        what="Where the hypervisor would like the GHCB page to be.",
        request=Half(lib.GHCB_MSR_PREF_GPA_REQ, ""),
        answer=Half(
            lib.GHCB_MSR_PREF_GPA_RESP,
            "{gfn:words}",
            (Field("gfn", "frame", "gfn", {lib.GHCB_MSR_NO_GFN: "no preference"}),),
        ),
        since=2,
        needs="SEV-SNP",
        seen=("Linux", "OAK", "Xen"),
        source="GHCB MSR 0x010, 0x011",
    ),
    Function(
        name="register_gpa",
        title="register GHCB GPA",
        what="Tell the hypervisor which page this vCPU will use before the first use.",
        request=Half(
            lib.GHCB_MSR_REG_GPA_REQ,
            "{gfn}",
            (Field("gfn", "frame of the GHCB page", "gfn"),),
        ),
        answer=Half(
            lib.GHCB_MSR_REG_GPA_RESP,
            "{gfn:words}",
            (
                Field(
                    "gfn", "frame that is registered now", "gfn", {lib.GHCB_MSR_NO_GFN: "refused"}
                ),
            ),
        ),
        since=2,
        needs="SEV-SNP",
        seen=("Linux", "EDK2", "SVSM", "OAK", "Xen"),
        source="GHCB MSR 0x012, 0x013",
    ),
    Function(
        name="page_state_change",
        title="page state change",
        what="Make one 4 KiB page private or shared.",
        request=Half(
            lib.GHCB_MSR_PSC_REQ,
            "{gfn}, operation {op:words}",
            (
                Field("gfn", "frame of the page", "gfn"),
                Field(
                    "op",
                    "state that the page shall take",
                    "decimal",
                    PSC_OPERATIONS,
                    closed=True,
                    illegal={
                        lib.GHCB_PSC_OP_PSMASH: "PSMASH",
                        lib.GHCB_PSC_OP_UNSMASH: "UNSMASH",
                    },
                ),
            ),
        ),
        answer=Half(
            lib.GHCB_MSR_PSC_RESP,
            "{error:words}",
            (
                Field(
                    "error",
                    "error number",
                    "hex",
                    {
                        0: "done",
                        lib.GHCB_MSR_PSC_ERROR_KVM: "refused, the one error of KVM",
                    },
                    otherwise="refused, error {}",
                ),
            ),
        ),
        since=2,
        needs="SEV-SNP; under SEV-ES alone hypervisor feature bit 6",
        seen=("Linux", "EDK2", "SVSM", "OAK", "Xen"),
        source="GHCB MSR 0x014, 0x015",
    ),
    Function(
        name="run_vmpl",
        title="run VMPL",
        what="Let another privilege level of this vCPU run.",
        request=Half(
            lib.GHCB_MSR_RUN_VMPL_REQ,
            "VMPL {vmpl}",
            (Field("vmpl", "privilege level that shall run"),),
        ),
        answer=Half(
            lib.GHCB_MSR_RUN_VMPL_RESP,
            "{error:words}",
            (Field("error", "error number", "hex", {0: "done"}, otherwise="refused, error {}"),),
        ),
        since=2,
        needs="SEV-SNP and hypervisor feature bit 5",
        seen=("SVSM", "COCONUT Linux", "Xen"),
        source="GHCB MSR 0x016, 0x017",
    ),
    Function(
        name="unregister_gpa",
        title="unregister GHCB GPA",
        what="Take the registration of the GHCB page back.",
        request=Half(lib.GHCB_MSR_UNREG_GPA_REQ, ""),
        answer=Half(
            lib.GHCB_MSR_UNREG_GPA_RESP,
            "{gfn:words}",
            (
                Field(
                    "gfn",
                    "frame that was registered",
                    "gfn",
                    {lib.GHCB_MSR_NO_GFN: "refused, or none was registered"},
                ),
            ),
        ),
        since=2,
        needs="hypervisor feature bit 8",
        seen=("zyuiop/ghcb", "Xen"),
        source="GHCB MSR 0x018, 0x019; fields from one implementation",
        remarks=("the layout is that of a single implementation; KVM does not know this function",),
    ),
    Function(
        name="hv_features",
        title="hypervisor features",
        what="What the hypervisor can do.",
        request=Half(lib.GHCB_MSR_HV_FEATURES_REQ, ""),
        answer=Half(
            lib.GHCB_MSR_HV_FEATURES_RESP,
            "{features} ({features:words})",
            (Field("features", "feature bits", "bitmap"),),
        ),
        since=2,
        needs="",
        seen=("Linux", "EDK2", "SVSM", "OAK"),
        source="GHCB MSR 0x080, 0x081",
    ),
    Function(
        name="terminate",
        title="termination",
        what="End this guest; there is no answer.",
        request=Half(
            lib.GHCB_MSR_TERM_REQ,
            "{set}:{reason} ({reason:words})",
            (
                Field("set", "whose reason codes these are", "hex"),
                Field("reason", "reason code within the set", "hex"),
            ),
        ),
        answer=None,
        since=1,
        needs="SEV-ES",
        seen=("Linux", "EDK2", "SVSM", "OAK", "OpenBSD"),
        source="GHCB MSR 0x100",
    ),
)
