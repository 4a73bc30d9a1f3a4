"""The oracle of the host's firmware says what the fact sheet says, row by row and in general."""

import copy

import pytest
from firmware_oracle import FirmwareOracle, NotInSheet
from firmware_rows import ROWS, run, visible
from firmware_rules import (
    CHOICES,
    COMMANDS,
    DFFLUSH_REQUIRED,
    INVALID_PAGE_STATE,
    RULES,
    SHUTDOWN_INCOMPLETE,
    SUCCESS,
    WBINVD_REQUIRED,
    WRITE_BACK_QUIRK,
)

MODES = ("strict", "genoa_2023")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['section']}: {row['rule']}")
def test_row(row, mode):
    status = int(row["status"], 0)
    if mode == "genoa_2023" and "buffer=" in row["history"].split(";")[-1] and status:
        status += WRITE_BACK_QUIRK
    assert run(FirmwareOracle(mode=mode), row["start"], row["history"]) == status


def test_every_row_of_the_table_of_wrong_orders_is_there():
    numbers = {row["section"] for row in ROWS}
    assert numbers >= {f"2.4 row {n}" for n in range(1, 34)}


def test_choices_named_by_rows_exist():
    named = {row["section"][7:] for row in ROWS if row["section"].startswith("choice ")}
    assert named and named <= set(CHOICES)


# Enough to name every command; the guests and pages are not there.
ANYTHING = {
    "handle": 9,
    "asid": 1,
    "ccxs": [0],
    "gctx": 11,
    "page": 12,
    "pages": [12],
    "src": 13,
    "dst": 14,
    "request": 15,
    "response": 16,
}


def anything(name):
    return {n: v for n, v in ANYTHING.items() if n in RULES[name].arguments}


@pytest.mark.parametrize(
    "name", [name for name in RULES if {"sev WORKING"} & {*RULES[name].checks}]
)
def test_commands_for_sev_guests_ask_for_the_platform_and_then_for_the_guest(name):
    fw = FirmwareOracle()
    assert run(fw, "SEV", "") == SUCCESS
    assert fw.command(name, **anything(name)) == 0x01
    assert run(fw, "POWER_ON", "LUPDATE 1 3") == SUCCESS
    assert fw.command(name, **anything(name)) == 0x10


@pytest.mark.parametrize("name", [n for n in RULES if "sev INIT WORKING" in RULES[n].checks])
def test_commands_of_a_platform_that_is_up_ask_for_it(name):
    assert FirmwareOracle().command(name, **anything(name)) == 0x01


@pytest.mark.parametrize("name", [name for name in RULES if "snp INIT" in RULES[name].checks])
def test_commands_for_snp_guests_ask_for_the_platform_and_then_for_the_context(name):
    fw = FirmwareOracle()
    assert fw.command(name, **anything(name)) == 0x01
    assert run(fw, "S0", "FIRMWARE 11; FIRMWARE 12") == SUCCESS
    refused = fw.command(name, **anything(name)) == 0x10
    assert refused == ("context" in RULES[name].checks)


def test_every_rule_belongs_to_a_command_and_every_command_answers():
    assert set(RULES) <= set(COMMANDS.values())
    assert len(set(COMMANDS.values())) == len(COMMANDS)
    for number in range(256):
        fw = FirmwareOracle()
        name = COMMANDS.get(number)
        if name in RULES:
            assert isinstance(fw.command(number, **anything(name)), int)
        elif name:
            with pytest.raises(NotInSheet):
                fw.command(number)
        else:
            assert fw.command(number) == 0x11


def test_each_flaw_of_each_row_decides_somewhere():
    """A machine on which nothing else is wrong shows every pair of every row."""
    histories = {
        "INIT": ("S0", "", {}),
        "INIT_EX": ("S0", "", {}),
        "PEK_CERT_IMPORT": ("SEV", "", {}),
        "PEK_CSR": ("SEV", "", {}),
        "PDH_CERT_EXPORT": ("SEV", "", {}),
        "LAUNCH_START": ("SEV", "", {}),
        "RECEIVE_START": ("SEV", "", {}),
        "LAUNCH_UPDATE_DATA": ("SEV", "LUPDATE 1 3", {"handle": 1}),
        "LAUNCH_UPDATE_VMSA": ("SEV", "LAUNCH_START es=1; ACTIVATE handle=1 asid=1", {"handle": 1}),
        "LAUNCH_MEASURE": ("SEV", "LUPDATE 1 3", {"handle": 1}),
        "LAUNCH_SECRET": ("SEV", "LUPDATE 1 3; LAUNCH_MEASURE handle=1", {"handle": 1}),
        "ATTESTATION": ("SEV", "SEV 1 3", {"handle": 1}),
        "SEND_START": ("SEV", "SEV 1 3", {"handle": 1}),
        "SEND_UPDATE_DATA": ("SEV", "SEV 1 3; SEND_START handle=1", {"handle": 1}),
        "SEND_UPDATE_VMSA": ("SEV", "ES 1 1; SEND_START handle=1", {"handle": 1}),
        "RECEIVE_UPDATE_DATA": (
            "SEV",
            "RECEIVE_START; ACTIVATE handle=1 asid=3",
            {"handle": 1},
        ),
        "RECEIVE_UPDATE_VMSA": (
            "SEV",
            "RECEIVE_START es=1; ACTIVATE handle=1 asid=1",
            {"handle": 1},
        ),
        "DBG_DECRYPT": ("SEV", "SEV 1 3", {"handle": 1}),
        "DBG_ENCRYPT": ("SEV", "SEV 1 3", {"handle": 1}),
        "COPY": ("SEV", "SEV 1 3", {"handle": 1}),
        "ACTIVATE_EX": ("SEV", "LUPDATE 1 0", {"handle": 1, "asid": 3, "ccxs": [0]}),
        "SNP_INIT": ("POWER_ON", "", {}),
        "SNP_INIT_EX": ("POWER_ON", "", {}),
        "SNP_SHUTDOWN_EX": ("S0", "", {"iommu": 1, "x86": 1}),
        "SNP_PLATFORM_STATUS": ("S0", "FIRMWARE 12", {"page": 12}),
        "SNP_GCTX_CREATE": ("S0", "FIRMWARE 12", {"gctx": 12}),
        "SNP_LAUNCH_START": ("S0", "CREATED 1", {"gctx": 11}),
        "SNP_ACTIVATE": ("S0", "LAUNCHED 1", {"gctx": 11, "asid": 1}),
        "SNP_ACTIVATE_EX": ("S0", "LAUNCHED 1", {"gctx": 11, "asid": 1, "ccxs": [0]}),
        "SNP_LAUNCH_UPDATE": ("S0", "PENDING 1; PRE_GUEST 34 1", {"gctx": 11, "page": 34}),
        "SNP_LAUNCH_FINISH": ("S0", "PENDING 1", {"gctx": 11}),
        "SNP_DECOMMISSION": ("S0", "R 1", {"gctx": 11}),
        "SNP_GUEST_STATUS": ("S0", "R 1; FIRMWARE 12", {"gctx": 11, "page": 12}),
        "SNP_GUEST_REQUEST": (
            "S0",
            "R 1; FIRMWARE 13",
            {"gctx": 11, "request": 12, "response": 13},
        ),
        "SNP_DBG_DECRYPT": ("S0", "R 1; PAGES 1", {"gctx": 11, "page": 31}),
        "SNP_DBG_ENCRYPT": ("S0", "R 1; PRE_GUEST 34 1", {"gctx": 11, "page": 34}),
        "SNP_PAGE_SWAP_OUT": (
            "S0",
            "R 1; PRE_GUEST 34 1; FIRMWARE 12",
            {"gctx": 11, "src": 34, "dst": 12},
        ),
        "SNP_PAGE_SWAP_IN": (
            "S0",
            "R 1; PRE_GUEST 34 1; FIRMWARE 12; SNP_PAGE_SWAP_OUT gctx=11 src=34 dst=12",
            {"gctx": 11, "src": 12, "dst": 34},
        ),
        "SNP_PAGE_MOVE": (
            "S0",
            "R 1; PRE_GUEST 34 1; PRE_GUEST 35 1",
            {"gctx": 11, "src": 34, "dst": 35},
        ),
        "SNP_PAGE_MD_INIT": ("S0", "R 1; FIRMWARE 12", {"gctx": 11, "page": 12}),
        "SNP_PAGE_SET_STATE": ("S0", "FIRMWARE 12", {"pages": [12]}),
        "SNP_PAGE_RECLAIM": ("S0", "FIRMWARE 12", {"page": 12}),
        "SNP_PAGE_UNSMASH": ("S0", "R 1; PRE_GUEST 34 1", {"page": 34}),
    }
    for name, rule in RULES.items():
        flaws = [check for check in rule.checks if isinstance(check, tuple)]
        assert name in histories or not flaws, name
        if name not in histories:
            continue
        start, history, arguments = histories[name]
        for flaw, status in [(None, SUCCESS), *flaws]:
            fw = FirmwareOracle()
            assert run(fw, start, history) == SUCCESS, name
            before = visible(fw)
            wrong = [flaw] if flaw else []
            assert fw.command(name, wrong=wrong, **arguments) == status, (name, flaw)
            assert flaw is None or visible(fw) == before, (name, flaw)


def test_what_is_not_asked_for_is_refused():
    fw = FirmwareOracle()
    with pytest.raises(ValueError, match="nothing that can be wrong"):
        fw.command("DF_FLUSH", wrong="reserved")
    with pytest.raises(TypeError, match="takes"):
        fw.command("DF_FLUSH", asid=1)
    with pytest.raises(TypeError, match="needs"):
        fw.command("ACTIVATE", handle=1)
    with pytest.raises(IndexError):
        fw.wbinvd(8)
    with pytest.raises(ValueError, match="mode"):
        FirmwareOracle(mode="loose")


# What a row's status does not show


def test_partial_progress_of_a_flush_is_kept():
    fw = FirmwareOracle()
    assert run(fw, "S0", "R 1; DECOM 1; WBINVD all but 5; DF_FLUSH") == WBINVD_REQUIRED
    assert fw.cells[1] == ["CLEAN", "DIRTY"]


def test_the_prefix_quirk_promotes_a_ccx_after_its_first_core():
    history = "R 1; DECOM 1; WBINVD 0 1 4 5; DF_FLUSH"
    cells = {}
    for mode in MODES:
        fw = FirmwareOracle(mode=mode)
        assert run(fw, "S0", history) == WBINVD_REQUIRED
        cells[mode] = fw.cells[1]
    assert cells == {"strict": ["DIRTY", "DIRTY"], "genoa_2023": ["CLEAN", "CLEAN"]}


def test_the_prefix_quirk_lets_an_asid_be_reused_over_caches_nobody_wrote_back():
    history = (
        "R 1; LAUNCHED 9; DECOM 1; WBINVD 0 1 4 5; DF_FLUSH -> 0x0E; SNP_ACTIVATE gctx=19 asid=1"
    )
    assert run(FirmwareOracle(mode="strict"), "S0", history) == DFFLUSH_REQUIRED
    assert run(FirmwareOracle(mode="genoa_2023"), "S0", history) == SUCCESS


def test_the_prefix_quirk_lets_snp_shut_down_after_a_flush_that_was_refused():
    history = "R 1; DECOM 1; WBINVD 0 1 4 5; DF_FLUSH -> 0x0E; SHUTDOWN_EX iommu=1"
    assert run(FirmwareOracle(mode="strict"), "S0", history) == DFFLUSH_REQUIRED
    assert run(FirmwareOracle(mode="genoa_2023"), "S0", history) == SUCCESS


def test_the_prefix_quirk_does_not_look_beyond_a_first_core_that_is_not_done():
    fw = FirmwareOracle(mode="genoa_2023")
    assert run(fw, "S0", "R 1; DECOM 1; WBINVD 2 3 6 7; DF_FLUSH") == WBINVD_REQUIRED
    assert fw.cells[1] == ["DIRTY", "DIRTY"]


def test_without_smt_one_thread_a_core_is_enough():
    fw = FirmwareOracle(threads=1)
    assert fw.n_threads == 4
    assert run(fw, "S0", "R 1; DECOM 1; WBINVD 0 1 2 3; DF_FLUSH; SHUTDOWN_EX") == SUCCESS


def test_a_guest_on_one_ccx_costs_only_that_ccx_its_done_bits():
    fw = FirmwareOracle()
    history = "LAUNCHED 1; SNP_ACTIVATE_EX gctx=11 asid=1 ccxs=1; SNP_LAUNCH_FINISH gctx=11"
    assert run(fw, "S0", history) == SUCCESS
    assert [fw.may_run(t, 1) for t in range(8)] == [False] * 4 + [True] * 4
    assert fw.command("SNP_DECOMMISSION", gctx=11) == SUCCESS
    assert fw.done == [True] * 4 + [False] * 4
    assert fw.cells[1] == ["CLEAN", "DIRTY"]
    assert not any(fw.may_run(t, 1) for t in range(8))
    for t in range(4, 8):
        fw.wbinvd(t)
    assert fw.command("DF_FLUSH") == SUCCESS


def test_a_single_socket_guest_stays_on_its_socket():
    fw = FirmwareOracle(ccxs=4, sockets=2)
    steps = "CREATED 1; SNP_LAUNCH_START gctx=11 single_socket=1"
    assert run(fw, "S0", steps) == SUCCESS
    assert fw.command("SNP_ACTIVATE", gctx=11, asid=1) == 0x07
    assert fw.command("SNP_ACTIVATE_EX", gctx=11, asid=1, ccxs=[1, 2]) == 0x07
    assert fw.command("SNP_ACTIVATE_EX", gctx=11, asid=1, ccxs=[0]) == SUCCESS
    assert fw.command("SNP_ACTIVATE_EX", gctx=11, asid=1, ccxs=[3]) == 0x07
    assert fw.command("SNP_ACTIVATE_EX", gctx=11, asid=1, ccxs=[1]) == SUCCESS


def test_activate_ex_needs_the_table_of_apic_ids():
    fw = FirmwareOracle(apic_table=False)
    assert run(fw, "S0", "LAUNCHED 1") == SUCCESS
    assert fw.command("SNP_ACTIVATE_EX", gctx=11, asid=1, ccxs=[0]) == 0x15
    assert fw.command("SNP_ACTIVATE_EX", gctx=11, asid=5, ccxs=[0]) == 0x0D


def test_the_x86_bit_needs_a_platform_that_can():
    fw = FirmwareOracle(x86_shutdown=False)
    assert run(fw, "S0", "SHUTDOWN_EX iommu=1 x86=1") == 0x16
    assert fw.command("SNP_SHUTDOWN_EX", iommu=1) == SUCCESS


def test_shutdown_with_the_iommu_bit_lets_go_of_rmp_iommu_and_keys():
    fw = FirmwareOracle(iommu_pages=[20])
    assert run(fw, "S0", "R 1; DECOM 1; WBINVD all; DF_FLUSH") == SUCCESS
    kept = copy.deepcopy(fw)
    assert fw.keys == {1} and fw.page(20).state == "FIRMWARE_IOMMU"
    assert kept.command("SNP_SHUTDOWN_EX") == SUCCESS
    assert kept.rmp_initialised and kept.iommu_enforces and kept.keys == {1}
    assert kept.page(20).state == "FIRMWARE_IOMMU" and not kept.rmpupdate(20, "HYPERVISOR")
    assert fw.command("SNP_SHUTDOWN_EX", iommu=1) == SUCCESS
    assert not fw.rmp_initialised and not fw.iommu_enforces and fw.keys == set()
    assert all(fw.snpen)
    assert fw.page(20).state == "RECLAIM" and fw.rmpupdate(20, "HYPERVISOR")
    assert fw.command("NOP") == SUCCESS
    assert set(fw.cells[1]) == {"DIRTY"}


def test_a_failed_x86_shutdown_is_half_done():
    fw = FirmwareOracle()
    assert run(fw, "S0", "SHUTDOWN_EX iommu=1 x86=1 wrong=x86_failure") == SHUTDOWN_INCOMPLETE
    assert fw.snp == "UNINIT" and all(fw.snpen) and not fw.rmp_initialised


def test_pages_of_the_host_and_of_firmware_after_init():
    fw = FirmwareOracle(hv_fixed=[3], iommu_pages=[4])
    assert run(fw, "S0", "FIRMWARE 12") == SUCCESS
    assert not fw.rmpupdate(12, "HYPERVISOR") and not fw.rmpupdate(3, "FIRMWARE")
    assert fw.command("SNP_PAGE_RECLAIM", page=12) == SUCCESS
    assert fw.rmpupdate(12, "HYPERVISOR")
    assert fw.command("SNP_PAGE_RECLAIM", page=3) == INVALID_PAGE_STATE
    assert fw.command("SNP_PAGE_RECLAIM", page=4) == INVALID_PAGE_STATE


def test_swap_and_move_keep_what_was_validated():
    fw = FirmwareOracle()
    assert run(fw, "S0", "PENDING 1; PRE_GUEST 34 1; SNP_LAUNCH_UPDATE gctx=11 page=34") == SUCCESS
    fw.page(34).state = "PRE_SWAP"  # the host's RMPUPDATE of a validated page, not modelled here
    assert fw.rmpupdate(12, "FIRMWARE") and fw.rmpupdate(35, "PRE_GUEST", 1)
    assert fw.command("SNP_PAGE_SWAP_OUT", gctx=11, src=34, dst=12) == SUCCESS
    assert fw.page(34).state == "PRE_GUEST"
    assert fw.command("SNP_PAGE_SWAP_IN", gctx=11, src=12, dst=35) == SUCCESS
    assert fw.page(35).state == "PRE_SWAP"
    assert fw.command("SNP_PAGE_SWAP_IN", gctx=11, src=12, dst=34) == 0x1B
    assert fw.command("SNP_PAGE_MOVE", gctx=11, src=35, dst=34) == SUCCESS
    assert (fw.page(35).state, fw.page(34).state) == ("GUEST_INVALID", "GUEST_VALID")


def test_metadata_moves_with_its_owner():
    fw = FirmwareOracle()
    assert run(fw, "S0", "R 1; R 2; FIRMWARE 20; FIRMWARE 21; PRE_GUEST 34 1") == SUCCESS
    assert fw.command("SNP_PAGE_MD_INIT", gctx=11, page=20) == SUCCESS
    swap = {"src": 34, "dst": 21, "mdata": 20}
    assert fw.command("SNP_PAGE_SWAP_OUT", gctx=12, **swap) == 0x1C
    assert fw.command("SNP_PAGE_SWAP_OUT", gctx=11, **{**swap, "mdata": 34}) == 0x16
    assert fw.command("SNP_PAGE_SWAP_OUT", gctx=11, **{**swap, "mdata": 13}) == INVALID_PAGE_STATE
    assert fw.command("SNP_PAGE_MOVE", gctx=12, src=20, dst=21) == 0x1C
    assert fw.command("SNP_PAGE_MOVE", gctx=11, src=20, dst=21) == SUCCESS
    assert (fw.page(20).state, fw.page(21).state) == ("FIRMWARE", "METADATA")


def test_write_back_quirk_wants_a_firmware_page_and_leaves_it_to_reclaim():
    fw = FirmwareOracle(mode="genoa_2023")
    assert run(fw, "S0", "FIRMWARE 12") == SUCCESS
    assert fw.command("PEK_CSR", buffer=13) == INVALID_PAGE_STATE + WRITE_BACK_QUIRK
    assert fw.command("PEK_CSR", buffer=12) == 0x01
    assert fw.page(12).state == "RECLAIM"


@pytest.mark.parametrize("guests", [0, 1, 2])
@pytest.mark.parametrize("decommissioned", [False, True])
def test_shutdown_routine_of_linux(guests, decommissioned):
    """Sheet 3.2: it works without guests, or if they went before the caches were written back."""
    fw = FirmwareOracle()
    steps = [f"R {n + 1}" for n in range(guests)]
    steps += [f"DECOM {n + 1}" for n in range(guests) if decommissioned]
    assert run(fw, "S0", "; ".join(["SHUTDOWN", *steps, "WBINVD all"])) == SUCCESS
    first = fw.command("SNP_SHUTDOWN_EX", iommu=1)
    assert first == (DFFLUSH_REQUIRED if guests else SUCCESS)
    if first:
        assert fw.command("DF_FLUSH") == SUCCESS
        again = fw.command("SNP_SHUTDOWN_EX", iommu=1)
        assert again == (SUCCESS if decommissioned else DFFLUSH_REQUIRED)
