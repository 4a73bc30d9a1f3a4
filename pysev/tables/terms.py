"""Why guests ask to be terminated, in words.

The standard owns reason set 0. Set 1 is used by three guests at once, so a code of it can be read
only by knowing who was running: ``REASON_SETS`` then has several rows of one number.

Source: GHCB MSR 0x100; the owners' own sources, named in each row.
"""

from __future__ import annotations

from pysev.tables.schema import Code, ReasonSet, lib

__all__ = ["REASON_SETS"]

REASON_SETS = (
    ReasonSet(
        name="ghcb",
        number=lib.GHCB_TERM_SET_GHCB,
        owner="GHCB standard",
        codes=(
            Code("general", lib.GHCB_TERM_GHCB_GENERAL, "general termination"),
            Code(
                "protocol_range",
                lib.GHCB_TERM_GHCB_PROTOCOL_RANGE,
                "no protocol version in common with the hypervisor",
            ),
            Code(
                "snp_features",
                lib.GHCB_TERM_GHCB_SNP_FEATURES,
                "an SEV feature is on that the guest does not support, or SNP support is missing",
            ),
        ),
        confidence="agreed",
        source="GHCB MSR 0x100; Linux, EDK2, linux-svsm, OAK",
        remarks=(
            "EDK2 reports code 1 also for a hypervisor without SNP.",
            "SVSM sends code 0 for everything.",
        ),
    ),
    ReasonSet(
        name="linux",
        number=lib.GHCB_TERM_SET_LINUX,
        owner="Linux guest",
        codes=(
            Code("register", lib.GHCB_TERM_LINUX_REGISTER, "GHCB registration failed"),
            Code("psc", lib.GHCB_TERM_LINUX_PSC, "a page-state change failed"),
            Code("pvalidate", lib.GHCB_TERM_LINUX_PVALIDATE, "PVALIDATE failed"),
            Code("not_vmpl0", lib.GHCB_TERM_LINUX_NOT_VMPL0, "the guest does not run at VMPL0"),
            Code("cpuid_table", lib.GHCB_TERM_LINUX_CPUID_TABLE, "the CPUID table is not usable"),
            Code("cpuid_hv", lib.GHCB_TERM_LINUX_CPUID_HV, "CPUID from the hypervisor failed"),
            Code("secrets_page", lib.GHCB_TERM_LINUX_SECRETS_PAGE, "secrets page not usable"),
            Code("no_svsm", lib.GHCB_TERM_LINUX_NO_SVSM, "not at VMPL0, and no SVSM announced"),
            Code("svsm_vmpl0", lib.GHCB_TERM_LINUX_SVSM_VMPL0, "an SVSM gives the guest VMPL0"),
            Code("svsm_caa", lib.GHCB_TERM_LINUX_SVSM_CAA, "calling area of the SVSM is unusable"),
            Code("secure_tsc", lib.GHCB_TERM_LINUX_SECURE_TSC, "secure TSC could not be set up"),
            Code(
                "svsm_ca_remap",
                lib.GHCB_TERM_LINUX_SVSM_CA_REMAP,
                "the SVSM calling area could not be remapped",
            ),
            Code("secure_avic", lib.GHCB_TERM_LINUX_SECURE_AVIC, "Secure AVIC failed"),
        ),
        confidence="agreed",
        source="Linux asm/sev-common.h (v7.2)",
        remarks=("Codes 1 and 2 are also OVMF's, code 2 also ENARX's.",),
    ),
    ReasonSet(
        name="ovmf",
        number=lib.GHCB_TERM_SET_OVMF,
        owner="OVMF reset vector",
        codes=(
            Code("not_cpuid", lib.GHCB_TERM_OVMF_NOT_CPUID, "#VC for something other than CPUID"),
            Code(
                "unexpected_response",
                lib.GHCB_TERM_OVMF_UNEXPECTED_RESPONSE,
                "an answer with an unexpected code",
            ),
        ),
        confidence="one source",
        source="EDK2 OvmfPkg/ResetVector/Ia32/AmdSev.nasm.inc",
        remarks=("The number is also that of the Linux guest.",),
    ),
    ReasonSet(
        name="enarx_msr",
        number=lib.GHCB_TERM_SET_ENARX_MSR,
        owner="ENARX shim, MSR protocol",
        codes=(
            Code(
                "wrong_code",
                lib.GHCB_TERM_ENARX_MSR_WRONG_CODE,
                "an answer of the MSR protocol had the wrong code",
            ),
        ),
        confidence="one source",
        source="ENARX shim-kvm",
        remarks=("The number is also that of the Linux guest.",),
    ),
    ReasonSet(
        name="verismo",
        number=lib.GHCB_TERM_SET_VERISMO,
        owner="VERISMO",
        codes=(
            Code("general", lib.GHCB_TERM_VERISMO_GENERAL, "general termination"),
            Code("not_vmpl0", lib.GHCB_TERM_VERISMO_NOT_VMPL0, "not running at VMPL0"),
            Code("unhandled_vc", lib.GHCB_TERM_VERISMO_UNHANDLED_VC, "#VC that nobody handles"),
            Code("psc", lib.GHCB_TERM_VERISMO_PSC, "a page-state change failed"),
            Code("set_page", lib.GHCB_TERM_VERISMO_SET_PAGE, "setting up a page failed"),
            Code("no_ghcb", lib.GHCB_TERM_VERISMO_NO_GHCB, "no GHCB"),
            Code("ghcb_response", lib.GHCB_TERM_VERISMO_GHCB_RESPONSE, "bad answer in the GHCB"),
            Code("invalid_param", lib.GHCB_TERM_VERISMO_INVALID_PARAM, "invalid parameter"),
            Code("pvalidate", lib.GHCB_TERM_VERISMO_PVALIDATE, "PVALIDATE failed"),
            Code("crypto", lib.GHCB_TERM_VERISMO_CRYPTO, "cryptography failed"),
            Code("timeout", lib.GHCB_TERM_VERISMO_TIMEOUT, "timeout"),
            Code("vmm", lib.GHCB_TERM_VERISMO_VMM, "error of the hypervisor"),
            Code("ghcb_exception", lib.GHCB_TERM_VERISMO_GHCB_EXCEPTION, "exception by the GHCB"),
            Code("unsupported", lib.GHCB_TERM_VERISMO_UNSUPPORTED, "not supported"),
            Code("rich_os", lib.GHCB_TERM_VERISMO_RICH_OS, "the guest beneath failed"),
            Code("permissions", lib.GHCB_TERM_VERISMO_PERMISSIONS, "page permissions"),
            Code("memory", lib.GHCB_TERM_VERISMO_MEMORY, "memory"),
        ),
        confidence="one source",
        source="VERISMO snp/ghcb/proto_s.rs",
        remarks=("Codes crypto and rich_os have a code of their own in the bits above.",),
    ),
    ReasonSet(
        name="enarx",
        number=lib.GHCB_TERM_SET_ENARX,
        owner="ENARX shim",
        codes=(
            Code("ioio_write", lib.GHCB_TERM_ENARX_IOIO_WRITE, "writing to a port failed"),
            Code("c_bit", lib.GHCB_TERM_ENARX_C_BIT, "changing the C-bit failed"),
            Code("psc", lib.GHCB_TERM_ENARX_PSC, "a page-state change failed"),
            Code("register", lib.GHCB_TERM_ENARX_REGISTER, "GHCB registration named another page"),
            Code(
                "psc_reserved",
                lib.GHCB_TERM_ENARX_PSC_RESERVED,
                "a reserved field of a page-state change is not zero",
            ),
            Code(
                "psc_backwards",
                lib.GHCB_TERM_ENARX_PSC_BACKWARDS,
                "the header of a page-state change went backwards",
            ),
        ),
        confidence="one source",
        source="ENARX shim-kvm",
    ),
    ReasonSet(
        name="enarx_panic",
        number=lib.GHCB_TERM_SET_ENARX_PANIC,
        owner="ENARX shim, panic",
        codes=(
            Code(
                "panic_in_panic",
                lib.GHCB_TERM_ENARX_PANIC_IN_PANIC,
                "a panic while handling a panic",
            ),
        ),
        confidence="one source",
        source="ENARX shim-kvm",
    ),
    ReasonSet(
        name="lsvsm",
        number=lib.GHCB_TERM_SET_LSVSM,
        owner="AMDESE linux-svsm",
        codes=(
            Code("general", lib.GHCB_TERM_LSVSM_GENERAL, "general termination"),
            Code("no_memory", lib.GHCB_TERM_LSVSM_NO_MEMORY, "out of memory"),
            Code("unhandled_vc", lib.GHCB_TERM_LSVSM_UNHANDLED_VC, "#VC that nobody handles"),
            Code("psc", lib.GHCB_TERM_LSVSM_PSC, "a page-state change failed"),
            Code("set_page", lib.GHCB_TERM_LSVSM_SET_PAGE, "setting up a page failed"),
            Code("no_ghcb", lib.GHCB_TERM_LSVSM_NO_GHCB, "no GHCB"),
            Code("ghcb_response", lib.GHCB_TERM_LSVSM_GHCB_RESPONSE, "bad answer in the GHCB"),
            Code("fw_cfg", lib.GHCB_TERM_LSVSM_FW_CFG, "error of the fw_cfg device"),
            Code("bios_format", lib.GHCB_TERM_LSVSM_BIOS_FORMAT, "the BIOS is not understood"),
            Code("not_vmpl0", lib.GHCB_TERM_LSVSM_NOT_VMPL0, "not running at VMPL0"),
            Code(
                "vmpl0_features", lib.GHCB_TERM_LSVSM_VMPL0_FEATURES, "SEV features of VMPL0 wrong"
            ),
            Code("incorrect_vmpl", lib.GHCB_TERM_LSVSM_INCORRECT_VMPL, "wrong VMPL"),
            Code(
                "vmpl1_features", lib.GHCB_TERM_LSVSM_VMPL1_FEATURES, "SEV features of VMPL1 wrong"
            ),
        ),
        confidence="one source",
        source="AMDESE/linux-svsm src/globals.rs",
    ),
)
