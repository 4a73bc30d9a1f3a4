"""What the firmware oracle knows by heart: numbers, the row of each command, the open points.

Statuses are those of sheet 1.3, ids those of 1.2, the rows those of 1.4, 1.5 and 2.3. A check is
either a pair, what can be wrong with the buffer and the status it then gives, or a sentence whose
first word is a method of ``firmware_checks.Checks``. The first check that fails decides.
"""

from collections import namedtuple

CHOICES = {
    "power_on": "before any command: cells DIRTY, every ASID invalid (2.1), and no thread done,"
    " for the sheet does not say what those bits are then",
    "rebuild": "what 2.3 says is rebuilt at the next command is so at its beginning, before its"
    " checks, also if it fails; done bits stay (FW: only the cells are set up again)",
    "handles": "the lowest free number from 1 on (FW); there is always a free one",
    "number_check": "ASID 0 and beyond the largest count no pages, so 0xD comes from its own"
    " check; SNP_ACTIVATE asks for pages first (1.4)",
    "activate_ex_first": "a guest without an ASID needs it CLEAN on all CCXs for ACTIVATE_EX too,"
    " 0xF if DIRTY anywhere, else 0xC (FW, and 2.2; 1.4 names DIRTY on the chosen CCXs only)",
    "activate_ex_sent": "SENT gives 2 before the ASID is looked at, as with ACTIVATE (FW)",
    "activate_ex_type": "the range by type is the last check but the DIRTY one, as with ACTIVATE"
    " (FW; in 1.4 'a range' stands first, which is taken as 1..max)",
    "activate_ex_pages": "pages assigned to the ASID matter while the guest is inactive (FW);"
    " else no guest with memory could get another CCX",
    "activate_ex_socket": "single-socket policy: no two sockets, 7 after the count (FW)",
    "activate_ex_none": "no APIC id at all is a wrong count",
    "decommission_active": "PENDING counts as 'still active' (FW: ALLOC does)",
    "guest_status": "GUEST_STATUS of no guest succeeds and says INVALID, ASID 0 (FW)",
    "sev_shutdown_cells": "with snp=UNINIT the cells stay as they are: every command that reads"
    " them is behind an init that resets them, but for DF_FLUSH",
    "snpen": "'SNPEn set in hardware' of SEV INIT is on all cores (FW)",
    "init_order": "all checks of SEV INIT come before its effect (1.4). FW resets the ASIDs before"
    " it looks at the TMR",
    "init_rmp": "SNP_INIT without EX builds the RMP (FW)",
    "contexts_kept": "with init_rmp=0 context pages and the state in them survive, for the table"
    " does; with init_rmp=1 they are gone and the count of guests is 0",
    "max_snp_asid": "with ciphertext hiding SNP has 1..n and SEV-ES n+1..min-1 (8); a new SNP_INIT"
    " sets it again",
    "x86_failure": "0x28 comes last: the IOMMU part is done, SNPEn stays, nothing is rebuilt (FW)",
    "snp_shutdown_inv": "SNP shutdown marks no ASID: all cells are CLEAN, so all are invalid",
    "attestation": "states LSECRET, RUNNING, SUPDATE, SENT (FW)",
    "updates": "LAUNCH_UPDATE needs LUPDATE, SEND_UPDATE SUPDATE, RECEIVE_UPDATE RUPDATE; those of"
    " a VMSA an ES guest, else 0x15 after the state (FW)",
    "order_of_groups": "where 1.4 has one row for several commands its order is kept, though FW"
    " differs: SECRET length before state, UPDATE activity before length, SEND_UPDATE length"
    " before handle, SEND_START length before state, IMPORT length before owned",
    "write_back": "PLATFORM_STATUS, PEK_CSR, PDH_CERT_EXPORT, GET_ID, GUEST_STATUS, LAUNCH_START,"
    " LAUNCH_MEASURE, SEND_START, SEND_UPDATE, RECEIVE_START write back; tested before all else, a"
    " page without entry is good too, and the page goes to RECLAIM whatever the status (FW)",
    "quirks": "the 0x40 on top of a bad buffer's status (1.3, a quirk of FW) belongs to genoa_2023,"
    " as the prefix quirk does (2.1); strict is the plain 0x1A",
    "owned": "PEK_CERT_IMPORT makes the platform owned, PEK_GEN and PLATFORM_RESET its own again",
    "message": "a message that moves a guest is a name, its own answer tells whether it did;"
    " VM_IMPORT wants INIT, VM_ABSORB an incoming image in LAUNCH. A pending activation stays"
    " pending, its cells ALLOC (FW). An imported guest is counted, as it is when it goes; its"
    " policy, which no sheet tells of, allows no debugging and any socket",
    "dbg": "SNP_DBG names a context, tested first of all pages (FW); the states of the source are"
    " PRE_GUEST, PRE_SWAP, GUEST_INVALID, GUEST_VALID",
    "swap": "one entry for each metadata page, and a root; states of pages 0x1A and owner 0x1C"
    " after the activity (FW), the entry of SWAP_IN where 1.4 has it. Only data pages here",
    "launch_update_kind": "pages of VMSA, SECRETS and CPUID are 4 KB",
    "rmpupdate": "the host's RMPUPDATE works whatever the platform's state",
    "trusted_io": "ids 0xD0 to 0xD5, which have names; beyond them, where the sheet is vague about"
    " an end near 0xE4, there is no command",
    "noinvd": "the flag of WBNOINVD is erased where 2.1 erases all done bits, and nowhere else;"
    " nobody asks for it",
    "offline": "a thread that is offline executes nothing; firmware scans it all the same",
}

SUCCESS = 0x00
INVALID_PLATFORM_STATE = 0x01
INVALID_GUEST_STATE = 0x02
INVALID_CONFIG = 0x03
INVALID_LEN = 0x04
ALREADY_OWNED = 0x05
INVALID_CERTIFICATE = 0x06
POLICY_FAILURE = 0x07
INACTIVE = 0x08
INVALID_ADDRESS = 0x09
BAD_SIGNATURE = 0x0A
BAD_MEASUREMENT = 0x0B
ASID_OWNED = 0x0C
INVALID_ASID = 0x0D
WBINVD_REQUIRED = 0x0E
DFFLUSH_REQUIRED = 0x0F
INVALID_GUEST = 0x10
INVALID_COMMAND = 0x11
ACTIVE = 0x12
HW_PLATFORM = 0x13
HW_UNSAFE = 0x14
UNSUPPORTED = 0x15
INVALID_PARAM = 0x16
INVALID_PAGE_SIZE = 0x19
INVALID_PAGE_STATE = 0x1A
INVALID_MDATA_ENTRY = 0x1B
INVALID_PAGE_OWNER = 0x1C
AEAD_OFLOW = 0x1D
RMP_INIT_REQUIRED = 0x20
RMP_INIT_FAILED = 0x26
SHUTDOWN_INCOMPLETE = 0x28
WRITE_BACK_QUIRK = 0x40  # added to the status of a bad buffer

COMMANDS = {
    0x01: "INIT",
    0x02: "SHUTDOWN",
    0x03: "PLATFORM_RESET",
    0x04: "PLATFORM_STATUS",
    0x05: "PEK_GEN",
    0x06: "PEK_CSR",
    0x07: "PEK_CERT_IMPORT",
    0x08: "PDH_CERT_EXPORT",
    0x09: "PDH_GEN",
    0x0A: "DF_FLUSH",
    0x0B: "DOWNLOAD_FIRMWARE",
    0x0C: "GET_ID",
    0x0D: "INIT_EX",
    0x0E: "NOP",
    0x0F: "RING_BUFFER",
    0x20: "DECOMMISSION",
    0x21: "ACTIVATE",
    0x22: "DEACTIVATE",
    0x23: "GUEST_STATUS",
    0x24: "COPY",
    0x25: "ACTIVATE_EX",
    0x30: "LAUNCH_START",
    0x31: "LAUNCH_UPDATE_DATA",
    0x32: "LAUNCH_UPDATE_VMSA",
    0x33: "LAUNCH_MEASURE",
    0x34: "LAUNCH_SECRET",
    0x35: "LAUNCH_FINISH",
    0x36: "ATTESTATION",
    0x40: "SEND_START",
    0x41: "SEND_UPDATE_DATA",
    0x42: "SEND_UPDATE_VMSA",
    0x43: "SEND_FINISH",
    0x44: "SEND_CANCEL",
    0x50: "RECEIVE_START",
    0x51: "RECEIVE_UPDATE_DATA",
    0x52: "RECEIVE_UPDATE_VMSA",
    0x53: "RECEIVE_FINISH",
    0x60: "DBG_DECRYPT",
    0x61: "DBG_ENCRYPT",
    0x70: "SWAP_OUT",
    0x71: "SWAP_IN",
    0x81: "SNP_INIT",
    0x82: "SNP_SHUTDOWN",
    0x83: "SNP_PLATFORM_STATUS",
    0x84: "SNP_DF_FLUSH",
    0x85: "SNP_INIT_EX",
    0x86: "SNP_SHUTDOWN_EX",
    0x90: "SNP_DECOMMISSION",
    0x91: "SNP_ACTIVATE",
    0x92: "SNP_GUEST_STATUS",
    0x93: "SNP_GCTX_CREATE",
    0x94: "SNP_GUEST_REQUEST",
    0x95: "SNP_ACTIVATE_EX",
    0xA0: "SNP_LAUNCH_START",
    0xA1: "SNP_LAUNCH_UPDATE",
    0xA2: "SNP_LAUNCH_FINISH",
    0xB0: "SNP_DBG_DECRYPT",
    0xB1: "SNP_DBG_ENCRYPT",
    0xC0: "SNP_PAGE_SWAP_OUT",
    0xC1: "SNP_PAGE_SWAP_IN",
    0xC2: "SNP_PAGE_MOVE",
    0xC3: "SNP_PAGE_MD_INIT",
    0xC6: "SNP_PAGE_SET_STATE",
    0xC7: "SNP_PAGE_RECLAIM",
    0xC8: "SNP_PAGE_UNSMASH",
    0xC9: "SNP_CONFIG",
    0xCA: "SNP_DOWNLOAD_FIRMWARE_EX",
    0xCB: "SNP_COMMIT",
    0xCD: "SNP_VLEK_LOAD",
    0xCE: "SNP_FEATURE_INFO",
    **{0xD0 + n: f"TIO_{n}" for n in range(6)},
}

# What an argument is if nobody gives it.
DEFAULTS = {
    "es": False,
    "debuggable": True,
    "single_socket": False,
    "image": False,
    "shared": 0,
    "init_rmp": True,
    "list": False,
    "max_snp_asid": 0,
    "length": 8,
    "iommu": False,
    "x86": False,
    "size": 0,
    "kind": "NORMAL",
    "message": None,
    "target": None,
    "mdata": None,
}

WRITES_BACK = {
    "PLATFORM_STATUS",
    "PEK_CSR",
    "PDH_CERT_EXPORT",
    "GET_ID",
    "GUEST_STATUS",
    "LAUNCH_START",
    "LAUNCH_MEASURE",
    "SEND_START",
    "SEND_UPDATE_DATA",
    "SEND_UPDATE_VMSA",
    "RECEIVE_START",
}

Row = namedtuple("Row", "arguments checks flaws")


def row(arguments, *checks, flaws=()):
    """Put a row together; `flaws` can be wrong too, and a check or the effect asks for them."""
    return Row(tuple(arguments.split()), checks, frozenset(flaws))


RESERVED = ("reserved", INVALID_PARAM)
LENGTH = ("length", INVALID_LEN)
WORKING = "sev WORKING"
UP = "sev INIT WORKING"
SNP = "snp INIT"
ASID = ("asid_number", "asid_free", "not_activated", "not_sent", "asid_clean", "asid_type")
ASID_EX = (
    "asid_number",
    "apic_table",
    ("count", INVALID_PARAM),
    "some_ccx",
    "one_socket",
    "not_sent",
    "same_asid",
    "first_clean",
    "asid_type",
    "chosen_clean",
)
CONFIGURATION = (
    ("cores", INVALID_CONFIG),  # SME, VMPLEn on all; SMKE off
    "snpen",
    ("msrs", INVALID_CONFIG),
    ("rmp_range", INVALID_CONFIG),
    "hsave",
    ("iommu", HW_PLATFORM),
    "rmp_built",
)
SNP_GUEST = (RESERVED, SNP, "context")
LAUNCHED = "guest LAUNCH RUNNING"
SHUTDOWN = ("sev UNINIT", "snp_or_done", "all_clean")
SEV_STEP = (WORKING, "handle")

RULES = {
    "INIT": row("es", "sev UNINIT", "rmp_for_snpen", ("tmr", INVALID_ADDRESS)),
    "INIT_EX": row("es", "sev UNINIT", "rmp_for_snpen", ("tmr", INVALID_ADDRESS)),
    "SHUTDOWN": row(""),
    "PLATFORM_RESET": row("", "sev UNINIT"),
    "PLATFORM_STATUS": row(""),
    "PEK_GEN": row("", "sev INIT"),
    "PEK_CERT_IMPORT": row(
        "",
        "sev INIT",
        "not_owned",
        LENGTH,
        ("certificate", INVALID_CERTIFICATE),
    ),
    "PEK_CSR": row("", UP, LENGTH),
    "PDH_CERT_EXPORT": row("", UP, LENGTH),
    "PDH_GEN": row("", UP),
    "GET_ID": row(""),
    "NOP": row(""),
    "DF_FLUSH": row(""),
    "SNP_DF_FLUSH": row(""),
    "SNP_FEATURE_INFO": row(""),
    "GUEST_STATUS": row("handle", UP),
    "LAUNCH_START": row("es debuggable shared", UP, LENGTH, "shared_handle", "es_platform"),
    "RECEIVE_START": row("es debuggable shared", UP, LENGTH, "shared_handle", "es_platform"),
    "LAUNCH_UPDATE_DATA": row("handle", *SEV_STEP, "guest LUPDATE", LENGTH, "active"),
    "LAUNCH_UPDATE_VMSA": row("handle", *SEV_STEP, "guest LUPDATE", "es_guest", LENGTH, "active"),
    "LAUNCH_MEASURE": row("handle", *SEV_STEP, "guest LUPDATE", LENGTH),
    "LAUNCH_SECRET": row("handle", *SEV_STEP, "guest LSECRET", LENGTH, "active"),
    "LAUNCH_FINISH": row("handle", *SEV_STEP, "guest LSECRET"),
    "ATTESTATION": row("handle", *SEV_STEP, "guest LSECRET RUNNING SUPDATE SENT", LENGTH),
    "SEND_START": row("handle", *SEV_STEP, "guest RUNNING", LENGTH),
    "SEND_UPDATE_DATA": row("handle", *SEV_STEP, "guest SUPDATE", LENGTH, "active"),
    "SEND_UPDATE_VMSA": row("handle", *SEV_STEP, "guest SUPDATE", "es_guest", LENGTH, "active"),
    "SEND_FINISH": row("handle", *SEV_STEP, "guest SUPDATE"),
    "SEND_CANCEL": row("handle", *SEV_STEP, "guest SUPDATE"),
    "RECEIVE_UPDATE_DATA": row("handle", *SEV_STEP, "guest RUPDATE", LENGTH, "active"),
    "RECEIVE_UPDATE_VMSA": row("handle", *SEV_STEP, "guest RUPDATE", "es_guest", LENGTH, "active"),
    "RECEIVE_FINISH": row("handle", *SEV_STEP, "guest RUPDATE"),
    "DBG_DECRYPT": row(
        "handle", WORKING, ("address", INVALID_ADDRESS), LENGTH, "handle", "debuggable"
    ),
    "DBG_ENCRYPT": row(
        "handle", WORKING, ("address", INVALID_ADDRESS), LENGTH, "handle", "debuggable"
    ),
    "COPY": row("handle", *SEV_STEP, "active", LENGTH, ("address", INVALID_ADDRESS)),
    "ACTIVATE": row("handle asid", *SEV_STEP, *ASID),
    "ACTIVATE_EX": row(
        "handle asid ccxs", WORKING, ("struct_length", INVALID_PARAM), "handle", *ASID_EX
    ),
    "DEACTIVATE": row("handle", *SEV_STEP, "active"),
    "DECOMMISSION": row("handle", *SEV_STEP, "no_asid"),
    "SNP_INIT": row(
        "",
        "both_uninit",
        ("unlocked", HW_UNSAFE),
        *CONFIGURATION,
        flaws=["rmp_build"],
    ),
    "SNP_INIT_EX": row(
        "init_rmp list max_snp_asid",
        RESERVED,
        "both_uninit",
        ("unlocked", HW_UNSAFE),
        "rmp_kept",
        "list_with_rmp",
        *CONFIGURATION,
        flaws=["tcb", "rmp_build"],
    ),
    "SNP_SHUTDOWN": row("", *SHUTDOWN),
    "SNP_SHUTDOWN_EX": row(
        "length iommu x86", *SHUTDOWN, "length_8", RESERVED, "x86_bit", flaws=["x86_failure"]
    ),
    "SNP_PLATFORM_STATUS": row(
        "page", ("crossing", INVALID_PARAM), "page_if_snp page FIRMWARE DEFAULT"
    ),
    "SNP_GCTX_CREATE": row(
        "gctx", RESERVED, SNP, "page gctx FIRMWARE", "small gctx", ("mmio", INVALID_CONFIG)
    ),
    "SNP_LAUNCH_START": row(
        "gctx debuggable single_socket image",
        *SNP_GUEST,
        "guest INIT",
        ("policy", POLICY_FAILURE),
    ),
    "SNP_ACTIVATE": row("gctx asid", *SNP_GUEST, LAUNCHED, "no_pages", "one_socket_machine", *ASID),
    "SNP_ACTIVATE_EX": row(
        "gctx asid ccxs",
        ("struct_length", INVALID_PARAM),
        *SNP_GUEST,
        LAUNCHED,
        "no_pages_yet",
        *ASID_EX,
    ),
    "SNP_LAUNCH_UPDATE": row(
        "gctx page size kind",
        *SNP_GUEST,
        "page page PRE_GUEST",
        "size page",
        ("alignment", INVALID_ADDRESS),
        "kind_small",
        "guest LAUNCH",
        "active",
        "owner page",
    ),
    "SNP_LAUNCH_FINISH": row(
        "gctx",
        *SNP_GUEST,
        "guest LAUNCH",
        "no_image",
        "active",
        ("digest", BAD_MEASUREMENT),
        ("policy", POLICY_FAILURE),
        ("signature", BAD_SIGNATURE),
    ),
    "SNP_DECOMMISSION": row("gctx", *SNP_GUEST),
    "SNP_GUEST_STATUS": row("gctx page", *SNP_GUEST, "page page FIRMWARE DEFAULT"),
    "SNP_GUEST_REQUEST": row(
        "gctx request response message target",
        *SNP_GUEST,
        "page response FIRMWARE",
        "small request",
        "small response",
        "guest RUNNING",
        ("header", INVALID_PARAM),
        ("sequence", AEAD_OFLOW),
    ),
    "SNP_DBG_DECRYPT": row(
        "gctx page",
        RESERVED,
        SNP,
        "context",
        "page page PRE_GUEST PRE_SWAP GUEST_INVALID GUEST_VALID",
        "owner page",
        "debuggable",
        "active",
    ),
    "SNP_DBG_ENCRYPT": row(
        "gctx page",
        SNP,
        RESERVED,
        "context",
        "page page PRE_SWAP PRE_GUEST",
        "owner page",
        "debuggable",
        "active",
    ),
    "SNP_PAGE_SWAP_OUT": row(
        "gctx src dst size mdata",
        *SNP_GUEST,
        ("mdata_alignment", INVALID_PARAM),
        "mdata",
        "size src",
        "size dst",
        LAUNCHED,
        "active",
        "page src PRE_SWAP PRE_GUEST",
        "page dst FIRMWARE DEFAULT",
        "owner src",
        ("counter", AEAD_OFLOW),
    ),
    "SNP_PAGE_SWAP_IN": row(
        "gctx src dst size mdata",
        *SNP_GUEST,
        ("mdata_alignment", INVALID_PARAM),
        "mdata",
        "size dst",
        LAUNCHED,
        "active",
        "entry",
        ("entry", INVALID_MDATA_ENTRY),
        "page dst PRE_GUEST",
        "owner dst",
        ("counter", AEAD_OFLOW),
    ),
    "SNP_PAGE_MOVE": row(
        "gctx src dst size",
        *SNP_GUEST,
        "size src",
        "size dst",
        LAUNCHED,
        "active",
        "movable",
    ),
    "SNP_PAGE_MD_INIT": row("gctx page", *SNP_GUEST, "page page FIRMWARE", LAUNCHED),
    "SNP_PAGE_SET_STATE": row("pages", LENGTH, RESERVED, SNP, "all_firmware"),
    "SNP_PAGE_RECLAIM": row(
        "page size",
        RESERVED,
        SNP,
        "size page",
        ("alignment", INVALID_ADDRESS),
        "mutable_is_done",
        "page page METADATA FIRMWARE PRE_GUEST PRE_SWAP",
    ),
    "SNP_PAGE_UNSMASH": row(
        "page",
        RESERVED,
        ("alignment", INVALID_PARAM),
        SNP,
        ("rmp", INVALID_ADDRESS),
        "page page PRE_GUEST PRE_SWAP",
        ("uniformity", INVALID_PAGE_STATE),
    ),
}
