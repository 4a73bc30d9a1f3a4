"""What the model of SEV and SNP firmware knows of, in words: statuses, states, checks, assumptions.

Names of statuses are those of Linux linux/psp-sev.h without ``SEV_RET_``, typing error included.
"""

from __future__ import annotations

import enum

from pysev.tables.schema import Code, lib

__all__ = [
    "ASSUMPTIONS",
    "BADS",
    "CHECKS",
    "MODES",
    "NUMBERS",
    "OPTIONS",
    "Activation",
    "Cell",
    "GuestState",
    "GuestType",
    "Sev",
    "Snp",
    "SnpGuestState",
    "Status",
]


class Status(enum.IntEnum):
    """What a command of the model can be answered, by Linux's names."""

    SUCCESS = lib.SNP_FW_OK
    INVALID_PLATFORM_STATE = lib.SNP_FW_PLATFORM_STATE
    INVALID_GUEST_STATE = lib.SNP_FW_GUEST_STATE
    INAVLID_CONFIG = lib.SNP_FW_CONFIG
    INVALID_LEN = lib.SNP_FW_LENGTH
    ALREADY_OWNED = lib.SNP_FW_ALREADY_OWNED
    INVALID_CERTIFICATE = lib.SNP_FW_CERTIFICATE
    POLICY_FAILURE = lib.SNP_FW_POLICY
    INACTIVE = lib.SNP_FW_INACTIVE
    INVALID_ADDRESS = lib.SNP_FW_ADDRESS
    BAD_SIGNATURE = lib.SNP_FW_SIGNATURE
    BAD_MEASUREMENT = lib.SNP_FW_MEASUREMENT
    ASID_OWNED = lib.SNP_FW_ASID_OWNED
    INVALID_ASID = lib.SNP_FW_ASID
    WBINVD_REQUIRED = lib.SNP_FW_WBINVD_REQUIRED
    DFFLUSH_REQUIRED = lib.SNP_FW_DF_FLUSH_REQUIRED
    INVALID_GUEST = lib.SNP_FW_GUEST_INVALID
    INVALID_COMMAND = lib.SNP_FW_COMMAND
    ACTIVE = lib.SNP_FW_ACTIVE
    HWSEV_RET_PLATFORM = lib.SNP_FW_HW_PLATFORM
    HWSEV_RET_UNSAFE = lib.SNP_FW_HW_UNSAFE
    UNSUPPORTED = lib.SNP_FW_UNSUPPORTED
    INVALID_PARAM = lib.SNP_FW_PARAM
    RESOURCE_LIMIT = lib.SNP_FW_RESOURCE_LIMIT
    SECURE_DATA_INVALID = lib.SNP_FW_SECURE_DATA
    INVALID_PAGE_SIZE = lib.SNP_FW_PAGE_SIZE
    INVALID_PAGE_STATE = lib.SNP_FW_PAGE_STATE
    INVALID_MDATA_ENTRY = lib.SNP_FW_METADATA_ENTRY
    INVALID_PAGE_OWNER = lib.SNP_FW_PAGE_OWNER
    AEAD_OFLOW = lib.SNP_FW_AEAD_OVERFLOW
    RMP_INIT_REQUIRED = lib.SNP_FW_RMP_INIT_REQUIRED
    RMP_INITIALIZATION_FAILED = lib.SNP_FW_RMP_INIT_FAILED
    SHUTDOWN_INCOMPLETE = lib.SNP_FW_SHUTDOWN_INCOMPLETE
    PREFIXED_INVALID_PAGE_STATE = lib.SNP_FW_PAGE_STATE + lib.GHCB_FW_STATUS_PREFIXED
    """Genoa's, for a command whose own page is in the wrong state."""


class Sev(enum.IntEnum):
    """State of the SEV platform."""

    UNINIT = lib.GHCB_FW_SEV_UNINIT
    INIT = lib.GHCB_FW_SEV_INIT
    WORKING = lib.GHCB_FW_SEV_WORKING


class Snp(enum.IntEnum):
    """State of the SNP platform."""

    UNINIT = lib.GHCB_FW_SNP_UNINIT
    INIT = lib.GHCB_FW_SNP_INIT


class Cell(enum.IntEnum):
    """State of an ASID on a CCX."""

    CLEAN = lib.GHCB_FW_CLEAN
    ALLOC = lib.GHCB_FW_ALLOC
    IN_USE = lib.GHCB_FW_IN_USE
    DIRTY = lib.GHCB_FW_DIRTY


class GuestType(enum.IntEnum):
    """What a guest is."""

    NONE = lib.GHCB_FW_TYPE_NONE
    SEV = lib.GHCB_FW_TYPE_SEV
    SEV_ES = lib.GHCB_FW_TYPE_ES
    SNP = lib.GHCB_FW_TYPE_SNP


class GuestState(enum.IntEnum):
    """State of a SEV or SEV-ES guest."""

    INVALID = lib.GHCB_FW_GUEST_INVALID
    LUPDATE = lib.GHCB_FW_GUEST_LUPDATE
    LSECRET = lib.GHCB_FW_GUEST_LSECRET
    RUNNING = lib.GHCB_FW_GUEST_RUNNING
    SUPDATE = lib.GHCB_FW_GUEST_SUPDATE
    RUPDATE = lib.GHCB_FW_GUEST_RUPDATE
    SENT = lib.GHCB_FW_GUEST_SENT


class SnpGuestState(enum.IntEnum):
    """State of an SNP guest."""

    INIT = lib.GHCB_FW_SNP_GUEST_INIT
    LAUNCH = lib.GHCB_FW_SNP_GUEST_LAUNCH
    RUNNING = lib.GHCB_FW_SNP_GUEST_RUNNING


class Activation(enum.IntEnum):
    """Whether a guest has an ASID."""

    INACTIVE = lib.GHCB_FW_INACTIVE
    PENDING = lib.GHCB_FW_PENDING
    ACTIVE = lib.GHCB_FW_ACTIVE


MODES = (
    Code("strict", 0, "all cores of a CCX must have executed WBINVD"),
    Code(
        "genoa_2023",
        lib.GHCB_FW_RULE_GENOA_2023,
        "as published: the first core of a CCX speaks for all of it",
    ),
)

NUMBERS = {
    "guest": (),
    "asid": ("ACTIVATE", "ACTIVATE_EX", "SNP_ACTIVATE", "SNP_ACTIVATE_EX"),
    "ccxs": ("ACTIVATE_EX", "SNP_ACTIVATE_EX"),
    "pages": ("SNP_ACTIVATE", "SNP_ACTIVATE_EX"),
    "policy": ("LAUNCH_START", "RECEIVE_START", "SNP_LAUNCH_START"),
    "length": ("SNP_SHUTDOWN_EX",),
    "max_snp_asid": ("SNP_INIT_EX",),
    "target": ("SNP_GUEST_REQUEST",),
}
"""Arguments that are numbers, and the commands that take them; ``guest``: all."""

OPTIONS = {
    "init_rmp": (lib.GHCB_FW_OPTION_INIT_RMP, ("SNP_INIT_EX",)),
    "list": (lib.GHCB_FW_OPTION_LIST, ("SNP_INIT_EX",)),
    "ciphertext_hiding": (lib.GHCB_FW_OPTION_HIDING, ("SNP_INIT_EX",)),
    "iommu": (lib.GHCB_FW_OPTION_IOMMU, ("SNP_SHUTDOWN_EX",)),
    "x86": (lib.GHCB_FW_OPTION_X86, ("SNP_SHUTDOWN_EX",)),
    "es": (lib.GHCB_FW_OPTION_ES, ("INIT", "INIT_EX")),
    "vm_import": (lib.GHCB_FW_OPTION_IMPORT, ("SNP_GUEST_REQUEST",)),
    "vm_absorb": (lib.GHCB_FW_OPTION_ABSORB, ("SNP_GUEST_REQUEST",)),
    "image": (lib.GHCB_FW_OPTION_IMAGE, ("SNP_LAUNCH_START",)),
}
"""Arguments that are 0 or 1, and the commands that take them."""

BADS = (
    Code("reserved", lib.GHCB_FW_BAD_RESERVED, "a reserved bit is set"),
    Code("length", lib.GHCB_FW_BAD_LENGTH, "a length is wrong"),
    Code("address", lib.GHCB_FW_BAD_ADDRESS, "the address is not legal"),
    Code("alignment", lib.GHCB_FW_BAD_ALIGNMENT, "an address is not aligned, or crosses a page"),
    Code("page_state", lib.GHCB_FW_BAD_PAGE_STATE, "the page is in the wrong state"),
    Code("page_size", lib.GHCB_FW_BAD_PAGE_SIZE, "the page has another size in the RMP"),
    Code("page_owner", lib.GHCB_FW_BAD_PAGE_OWNER, "the page is not this guest's"),
    Code("page_large", lib.GHCB_FW_BAD_PAGE_LARGE, "a page of this kind must have 4 KiB"),
    Code("policy", lib.GHCB_FW_BAD_POLICY, "the policy forbids it"),
    Code("digest", lib.GHCB_FW_BAD_DIGEST, "the launch digest is another one"),
    Code("signature", lib.GHCB_FW_BAD_SIGNATURE, "the ID block's signature does not verify"),
    Code("certificate", lib.GHCB_FW_BAD_CERTIFICATE, "the certificate does not verify"),
    Code("header", lib.GHCB_FW_BAD_HEADER, "the message's header is wrong"),
    Code("sequence", lib.GHCB_FW_BAD_SEQUENCE, "the message's number is not the next one"),
    Code("metadata_alignment", lib.GHCB_FW_BAD_METADATA_ALIGNMENT, "metadata is not aligned"),
    Code("metadata_state", lib.GHCB_FW_BAD_METADATA_STATE, "metadata lies in no METADATA page"),
    Code("metadata_owner", lib.GHCB_FW_BAD_METADATA_OWNER, "metadata is not this guest's"),
    Code("metadata_entry", lib.GHCB_FW_BAD_METADATA_ENTRY, "the metadata entry is wrong"),
    Code("overlap", lib.GHCB_FW_BAD_OVERLAP, "pages overlap"),
    Code("counter", lib.GHCB_FW_BAD_COUNTER, "the IV counter is used up"),
    Code("mmio", lib.GHCB_FW_BAD_MMIO, "the page is MMIO"),
    Code("handle", lib.GHCB_FW_BAD_HANDLE, "the guest whose key is shared is none"),
    Code("apic", lib.GHCB_FW_BAD_APIC, "there is no table of APIC IDs"),
    Code("count", lib.GHCB_FW_BAD_COUNT, "the number of APIC IDs is wrong"),
    Code("tmr", lib.GHCB_FW_BAD_TMR, "the trusted memory region is misplaced"),
    Code("secure_data", lib.GHCB_FW_BAD_SECURE_DATA, "the stored data do not verify"),
    Code("unsafe", lib.GHCB_FW_BAD_UNSAFE, "the platform is not in a secure configuration"),
    Code("tcb", lib.GHCB_FW_BAD_TCB, "the TCB has changed since the RMP was built"),
    Code("syscfg", lib.GHCB_FW_BAD_SYSCFG, "SME or VMPLEn is off on some core, or SMKE on"),
    Code("msrs", lib.GHCB_FW_BAD_MSRS, "MSRs differ between cores"),
    Code("in_guest", lib.GHCB_FW_BAD_IN_GUEST, "a thread is in a guest or in SMM"),
    Code("rmp_range", lib.GHCB_FW_BAD_RMP_RANGE, "RMP_BASE and RMP_END cannot be"),
    Code("iommu", lib.GHCB_FW_BAD_IOMMU, "the IOMMU is off or does not know SNP"),
    Code("rmp_build", lib.GHCB_FW_BAD_RMP_BUILD, "the RMP cannot be built"),
    Code("snp_en", lib.GHCB_FW_BAD_SNP_EN, "SNPEn cannot be cleared"),
    Code("buffer", lib.GHCB_FW_BAD_BUFFER, "the command's own page is not firmware's"),
)
"""What can be wrong with what a command brings and the model does not have."""

CHECKS = (
    Code("bad", lib.GHCB_FW_IF_BAD, ""),
    Code("bad_with_snp", lib.GHCB_FW_IF_BAD_WITH_SNP, ""),
    Code("sev", lib.GHCB_FW_IF_SEV_NOT, "SEV is {sev}, must be {states}"),
    Code("snp", lib.GHCB_FW_IF_SNP_NOT, "SNP is {snp}, must be {states}"),
    Code("sev_guest", lib.GHCB_FW_IF_NO_SEV_GUEST, "{guest} is no SEV guest"),
    Code("snp_guest", lib.GHCB_FW_IF_NO_SNP_GUEST, "{guest} is no SNP guest's context"),
    Code("slot", lib.GHCB_FW_IF_SLOT_TAKEN, "{guest} is taken already, or no slot"),
    Code("guest_state", lib.GHCB_FW_IF_GUEST_NOT, "{guest} is {state}, must be {states}"),
    Code("inactive", lib.GHCB_FW_IF_INACTIVE, "{guest} has no ASID"),
    Code("active", lib.GHCB_FW_IF_ACTIVE, "{guest} has an ASID already"),
    Code("no_debug", lib.GHCB_FW_IF_NO_DEBUG, "the policy of {guest} does not allow debugging"),
    Code("no_es", lib.GHCB_FW_IF_NO_ES, "the policy wants SEV-ES, INIT did not set it up"),
    Code("sockets", lib.GHCB_FW_IF_TWO_SOCKETS, "the policy wants one socket, there are two"),
    Code("asid_range", lib.GHCB_FW_IF_ASID_RANGE, "there is no ASID {asid}"),
    Code("asid_type", lib.GHCB_FW_IF_ASID_TYPE, "ASID {asid} is not for this type of guest"),
    Code("asid_owned", lib.GHCB_FW_IF_ASID_OWNED, "ASID {asid} is {cells}"),
    Code("asid_dirty", lib.GHCB_FW_IF_ASID_DIRTY, "ASID {asid} is {cells}"),
    Code("asid_cells", lib.GHCB_FW_IF_ASID_CELLS, "ASID {asid} is {cells}"),
    Code("asid_other", lib.GHCB_FW_IF_ASID_OTHER, "{guest} has another ASID"),
    Code(
        "ccxs_sockets",
        lib.GHCB_FW_IF_CCXS_SOCKETS,
        "the policy wants one socket, CCXs of both are named",
    ),
    Code("ccxs_dirty", lib.GHCB_FW_IF_CCXS_DIRTY, "ASID {asid} is {cells}"),
    Code("ccxs_none", lib.GHCB_FW_IF_CCXS_NONE, "no CCX is named, or one that is none"),
    Code("pages", lib.GHCB_FW_IF_PAGES, "{pages} pages are still assigned to ASID {asid}"),
    Code("unclean", lib.GHCB_FW_IF_UNCLEAN, "{unclean}"),
    Code("length", lib.GHCB_FW_IF_LENGTH_NOT, "the length is not {arg}"),
    Code("x86", lib.GHCB_FW_IF_X86, "x86_snp_shutdown without iommu_snp_shutdown, or not possible"),
    Code("rmp", lib.GHCB_FW_IF_RMP, "the RMP is not initialised, and init_rmp is 0"),
    Code("list", lib.GHCB_FW_IF_LIST, "a list of ranges, and init_rmp is 0"),
    Code("snp_en", lib.GHCB_FW_IF_SNP_EN_MISSING, "SNPEn is not set on thread {no_snp_en}"),
    Code(
        "snp_en_no_rmp",
        lib.GHCB_FW_IF_SNP_EN_NO_RMP,
        "SNPEn is set on every thread and the RMP is not initialised",
    ),
    Code("in_guest", lib.GHCB_FW_IF_IN_GUEST, "a thread is in a guest or in SMM"),
    Code("hsave", lib.GHCB_FW_IF_HSAVE, "VM_HSAVE_PA is not 0 on thread {hsave}"),
    Code("rmp_build", lib.GHCB_FW_IF_RMP_BUILD, "the RMP cannot be built"),
    Code("owned", lib.GHCB_FW_IF_OWNED, "the platform is owned already"),
    Code("target", lib.GHCB_FW_IF_TARGET_NOT, "the guest to be entered is not in the right state"),
    Code("not_done", lib.GHCB_FW_IF_NOT_DONE, "no WBINVD since: {not_done}"),
    Code("failed", lib.GHCB_FW_IF_FAILED, ""),
    Code("es_guest", lib.GHCB_FW_IF_NO_ES_GUEST, "{guest} is not SEV-ES"),
    Code("image", lib.GHCB_FW_IF_IMAGE, "{guest} is an image that comes in"),
)
"""Kinds of checks, and what is said where one answers."""

ASSUMPTIONS = (
    "of two sockets the first has the lower half of the CCXs, rounded up",
    "LAUNCH_START and RECEIVE_START answer RESOURCE_LIMIT where no handle is left",
    "PAGE_MOVE and PAGE_MD_INIT take a guest in LAUNCH or RUNNING",
    "SNP_PAGE_SWAP_OUT looks at a metadata entry as SNP_PAGE_SWAP_IN does",
    "VM_IMPORT takes a guest in INIT, VM_ABSORB an image in LAUNCH; else nothing happens, which "
    "the answer in the message tells and not the status",
    "what was pending stays pending when VM_ABSORB lets the guest run",
    "the policy of a guest that VM_IMPORT brings allows no debugging, and both sockets",
    "SNP_INIT builds the RMP, whatever it is asked",
    "contexts are gone when the RMP is built again",
    "SECURE_DATA_INVALID comes after the other checks of INIT",
    "PEK_GEN and PLATFORM_RESET make the platform its own again, PEK_CERT_IMPORT owned",
    "a command that answers in its own page refuses a wrong one before all else",
    "a CCX without threads holds no flush up",
    "SEV SHUTDOWN with SNP uninitialised leaves the cells as they are",
    "where clearing SNPEn fails, all else of SNP_SHUTDOWN_EX has happened, but that the next "
    "command finds all cells DIRTY",
    "the flag of WBNOINVD is erased where all done bits are, and nowhere else",
)
"""What the sources at hand leave open, and how the model has it."""
