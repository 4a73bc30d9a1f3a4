"""SEV and SNP firmware: scripts of the facts, orders of checks, what every history keeps true."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghcbcore import errors
from ghcbcore._cffi import lib
from ghcbcore.firmware import Machines, checks
from ghcbcore.frame import Op, apply
from pysev.cli import main
from pysev.firmware import (
    Activation,
    Cell,
    Firmware,
    GuestType,
    NotModelled,
    Sev,
    Snp,
    SnpGuestState,
    Status,
    command_step,
    thread_step,
)
from pysev.firmware_script import run_script
from pysev.memory.script import BadScript, read_script
from pysev.tables.firmware import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples" / "firmware").glob("*.txt"))
ROWS = [path for path in SCRIPTS if path.stem.startswith("row-")]
MODES = ("strict", "genoa_2023")


def ready(**how) -> Firmware:
    """SNP is initialised and every ASID CLEAN."""
    fw = Firmware(**{"max_asid": 8, **how})
    assert fw.command("SNP_INIT_EX", init_rmp=1) == Status.SUCCESS
    fw.wbinvd()
    assert fw.command("DF_FLUSH") == Status.SUCCESS
    return fw


def sev_guest(fw: Firmware, asid: int) -> int:
    """A SEV guest that is RUNNING."""
    fw.command("INIT")
    fw.command("LAUNCH_START")
    for name in ("LAUNCH_MEASURE", "LAUNCH_FINISH"):
        assert fw.command(name, guest=0) == Status.SUCCESS
    assert fw.command("ACTIVATE", guest=0, asid=asid) == Status.SUCCESS
    return 0


# the facts


def test_each_row_of_the_facts_is_a_script():
    assert [path.stem for path in ROWS] == [f"row-{n:02}" for n in range(1, 34)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_answered_as_it_says(path, mode):
    text = path.read_bytes()
    session = run_script(read_script(text, path.name), path.name, mode)
    assert session.n_failed == 0, session.as_text(path.name)
    assert text.count(b"\nexpect ") >= 1


def test_a_script_notices_what_is_not_as_expected():
    for path in ROWS:
        text = re.sub(rb"expect 0x..", b"expect SHUTDOWN_INCOMPLETE", path.read_bytes())
        assert run_script(read_script(text, "x"), "x").n_failed == text.count(b"SHUTDOWN_INC")


def test_first_cores_alone_let_a_shutdown_pass_that_df_flush_warned_of():
    """The two modes part at the cells and at the shutdown, both after the same refusal."""
    path = ROOT / "examples" / "firmware" / "first-cores.txt"
    text = path.read_bytes().replace(b" strict", b"").replace(b" genoa_2023", b"")
    for mode in MODES:
        session = run_script(read_script(text, path.name), path.name, mode)
        assert session.n_failed == 2, session.as_text(path.name)


def test_statuses_have_linuxs_names():
    with (ROOT / "tests" / "data" / "linux_names.csv").open(newline="") as file:
        next(file)
        names = {row["ours"]: row["kernel"] for row in csv.DictReader(file)}
    ours = {
        getattr(lib, ours): kernel.removeprefix("SEV_RET_")
        for ours, kernel in names.items()
        if ours.startswith("SNP_FW_") and kernel.startswith("SEV_RET_")
    }
    plain = [s for s in Status if s != Status.PREFIXED_INVALID_PAGE_STATE]
    assert len(plain) > 30
    assert {s.value: s.name for s in plain}.items() <= ours.items()


# single commands


def test_every_id_is_answered_or_named_as_not_modelled():
    known = {code.code for code in COMMANDS}
    for number in range(256):
        fw = ready()
        if number not in known:
            assert fw.command(number) == Status.INVALID_COMMAND
            assert fw.history[-1].why == "firmware has no such command"
        elif checks(number) is None:
            before = fw.words.state.tobytes() + fw.words.cells.tobytes()
            with pytest.raises(NotModelled, match="no source at hand"):
                fw.command(number)
            assert fw.words.state.tobytes() + fw.words.cells.tobytes() == before
        else:
            assert isinstance(fw.command(number), Status)


def test_the_first_command_after_power_on_finds_every_cell_dirty():
    fw = Firmware(n_ccx=3, max_asid=70)
    assert (fw.asids() == Cell.CLEAN).all()
    fw.command("NOP")
    assert (fw.asids() == Cell.DIRTY).all()
    fw.wbinvd()
    assert fw.command("DF_FLUSH") == Status.SUCCESS
    fw.command("NOP")
    assert (fw.asids() == Cell.CLEAN).all()


@pytest.mark.parametrize(
    ("name", "arguments", "status"),
    [
        ("SNP_PAGE_SET_STATE", {"bad": "length,reserved"}, Status.INVALID_LEN),
        ("SNP_DBG_DECRYPT", {"bad": "reserved"}, Status.INVALID_PARAM),
        ("SNP_DBG_ENCRYPT", {"bad": "reserved"}, Status.INVALID_PLATFORM_STATE),
        ("SNP_PAGE_UNSMASH", {"bad": "alignment"}, Status.INVALID_PARAM),
        ("SNP_PAGE_RECLAIM", {"bad": "alignment"}, Status.INVALID_PLATFORM_STATE),
        ("SNP_ACTIVATE_EX", {"bad": "length,reserved"}, Status.INVALID_PARAM),
        ("SNP_PLATFORM_STATUS", {"bad": "page_state"}, Status.SUCCESS),
        ("SNP_PLATFORM_STATUS", {"bad": "page_state,alignment"}, Status.INVALID_PARAM),
        ("PEK_CERT_IMPORT", {"bad": "length"}, Status.INVALID_PLATFORM_STATE),
        ("SNP_INIT_EX", {"bad": "reserved,unsafe"}, Status.INVALID_PARAM),
        ("SNP_INIT_EX", {"bad": "unsafe"}, Status.HWSEV_RET_UNSAFE),
        ("SNP_INIT_EX", {}, Status.RMP_INIT_REQUIRED),
        ("SNP_INIT_EX", {"list": 1, "init_rmp": 1, "bad": "iommu"}, Status.HWSEV_RET_PLATFORM),
        ("SNP_INIT_EX", {"init_rmp": 1, "bad": "rmp_build"}, Status.RMP_INITIALIZATION_FAILED),
        ("SNP_INIT_EX", {"bad": "rmp_build"}, Status.RMP_INIT_REQUIRED),
        ("SNP_INIT_EX", {"init_rmp": 1, "bad": "msrs,iommu"}, Status.INAVLID_CONFIG),
    ],
)
def test_the_first_check_that_fails_answers_with_snp_down(name, arguments, status):
    assert Firmware().command(name, **arguments) == status


@pytest.mark.parametrize(
    ("name", "arguments", "status"),
    [
        ("SNP_ACTIVATE", {"guest": 5}, Status.INVALID_GUEST),
        ("SNP_ACTIVATE", {"guest": 1, "asid": 1}, Status.ASID_OWNED),
        ("SNP_ACTIVATE", {"guest": 1, "asid": 0, "pages": 1}, Status.INAVLID_CONFIG),
        ("SNP_ACTIVATE", {"guest": 1, "asid": 9}, Status.INVALID_ASID),
        ("SNP_ACTIVATE", {"guest": 1, "asid": 2}, Status.ACTIVE),
        ("SNP_ACTIVATE_EX", {"guest": 1, "asid": 2, "ccxs": 1}, Status.ACTIVE),
        ("SNP_ACTIVATE_EX", {"guest": 1, "asid": 1, "ccxs": 4}, Status.INVALID_PARAM),
        ("SNP_ACTIVATE_EX", {"guest": 1, "asid": 1, "ccxs": 3}, Status.SUCCESS),
        ("SNP_LAUNCH_START", {"guest": 1}, Status.INVALID_GUEST_STATE),
        ("SNP_LAUNCH_UPDATE", {"guest": 1, "bad": "page_owner"}, Status.INVALID_GUEST_STATE),
        ("SNP_LAUNCH_UPDATE", {"guest": 1, "bad": "page_large"}, Status.INVALID_PAGE_SIZE),
        ("SNP_GUEST_REQUEST", {"guest": 1, "bad": "header,sequence"}, Status.INVALID_PARAM),
        ("SNP_GUEST_REQUEST", {"guest": 1, "bad": "sequence"}, Status.AEAD_OFLOW),
        ("SNP_GUEST_REQUEST", {"guest": 1}, Status.SUCCESS),
        ("SNP_PAGE_SWAP_OUT", {"guest": 1, "bad": "metadata_entry"}, Status.INVALID_MDATA_ENTRY),
        ("SNP_PAGE_SWAP_OUT", {"guest": 1, "bad": "counter,page_size"}, Status.INVALID_PAGE_SIZE),
        ("SNP_PAGE_SWAP_OUT", {"guest": 1, "bad": "counter,page_owner"}, Status.INVALID_PAGE_OWNER),
        ("SNP_PAGE_MOVE", {"guest": 5}, Status.INVALID_GUEST),
        ("SNP_DBG_DECRYPT", {"guest": 5, "bad": "page_state"}, Status.INVALID_GUEST),
        ("SNP_DBG_DECRYPT", {"guest": 1}, Status.POLICY_FAILURE),
        ("SNP_GCTX_CREATE", {"guest": 1}, Status.INVALID_PAGE_STATE),
        ("SNP_GCTX_CREATE", {"guest": 2, "bad": "mmio"}, Status.INAVLID_CONFIG),
        ("SNP_SHUTDOWN_EX", {"x86": 1}, Status.DFFLUSH_REQUIRED),
        ("SNP_SHUTDOWN", {}, Status.DFFLUSH_REQUIRED),
        ("SNP_INIT", {}, Status.INVALID_PLATFORM_STATE),
        ("LAUNCH_START", {}, Status.INVALID_PLATFORM_STATE),
    ],
)
def test_the_first_check_that_fails_answers_with_a_guest_running(name, arguments, status):
    fw = ready(n_ccx=2)
    fw.launch(1)
    assert fw.command(name, **arguments) == status
    assert (fw.history[-1].why != "") == (status != Status.SUCCESS)


@pytest.mark.parametrize("mode", MODES)
def test_a_command_that_answers_in_its_own_page_needs_that_to_be_firmwares(mode):
    fw = ready(mode=mode)
    expected = {
        "strict": Status.INVALID_PAGE_STATE,
        "genoa_2023": Status.PREFIXED_INVALID_PAGE_STATE,
    }
    assert fw.command("PLATFORM_STATUS", bad="buffer") == expected[mode]
    assert Firmware(mode=mode).command("PLATFORM_STATUS", bad="buffer") == Status.SUCCESS


def test_a_sev_guest_goes_through_its_states():
    fw = ready(first_sev_asid=5)
    guest = sev_guest(fw, 5)
    assert fw.platform()["sev"] == Sev.WORKING
    assert fw.command("COPY", guest=guest, bad="length,alignment") == Status.INVALID_LEN
    for name, state in (
        ("SEND_START", "SUPDATE"),
        ("SEND_CANCEL", "RUNNING"),
        ("SEND_START", "SUPDATE"),
        ("SEND_FINISH", "SENT"),
    ):
        assert fw.command(name, guest=guest) == Status.SUCCESS
        assert f"SEV {state}, ASID 5 ACTIVE" in str(fw)
    assert fw.command("DEACTIVATE", guest=guest) == Status.SUCCESS
    fw.wbinvd()
    fw.command("DF_FLUSH")
    assert fw.command("ACTIVATE", guest=guest, asid=5) == Status.INVALID_GUEST_STATE  # it is SENT
    assert fw.command("DECOMMISSION", guest=guest) == Status.SUCCESS
    assert fw.platform()["sev"] == Sev.INIT


def test_a_received_guest_that_is_pending_is_in_use_when_it_runs():
    fw = ready(first_sev_asid=5)
    fw.command("INIT", es=1)
    assert fw.command("RECEIVE_START", guest=3, policy=1 << lib.SEV_POLICY_ES) == Status.SUCCESS
    assert fw.command("ACTIVATE", guest=3, asid=5) == Status.INVALID_ASID  # ES has ASIDs below 5
    assert fw.command("RECEIVE_UPDATE_DATA", guest=3) == Status.INACTIVE
    assert fw.command("ACTIVATE", guest=3, asid=4) == Status.SUCCESS
    assert fw.guests()[3]["active"] == Activation.PENDING
    assert (fw.asids()[3] == Cell.ALLOC).all()
    assert not fw.may_run(4).any()
    assert fw.command("RECEIVE_FINISH", guest=3) == Status.SUCCESS
    assert (fw.asids()[3] == Cell.IN_USE).all()
    assert fw.may_run(4).all()
    assert fw.guests()[3]["type"] == GuestType.SEV_ES


def test_an_es_policy_needs_es_and_handles_run_out():
    fw = ready(n_guests=1)
    fw.command("INIT")
    policy = 1 << lib.SEV_POLICY_ES
    assert fw.command("LAUNCH_START", policy=policy) == Status.UNSUPPORTED
    assert fw.command("LAUNCH_START") == Status.SUCCESS
    assert fw.command("LAUNCH_START") == Status.RESOURCE_LIMIT


def test_the_owner_of_the_platform():
    fw = Firmware(snp_en=False)
    fw.command("INIT")
    assert fw.command("PEK_CERT_IMPORT") == Status.SUCCESS
    assert fw.command("PEK_CERT_IMPORT", bad="length") == Status.ALREADY_OWNED
    fw.command("PEK_GEN")
    assert fw.command("PEK_CERT_IMPORT", bad="certificate") == Status.INVALID_CERTIFICATE


def test_policies_of_an_snp_guest():
    fw = ready(sockets=2)
    fw.command("SNP_GCTX_CREATE", guest=0)
    single = 1 << lib.SNP_POLICY_SINGLE_SOCKET
    assert fw.command("SNP_LAUNCH_START", guest=0, policy=single) == Status.SUCCESS
    assert fw.command("SNP_ACTIVATE", guest=0, asid=1) == Status.POLICY_FAILURE
    debug = fw.launch(2, policy=1 << lib.SNP_POLICY_DEBUG)
    assert fw.command("SNP_DBG_DECRYPT", guest=debug) == Status.SUCCESS


def test_ciphertext_hiding_splits_the_asids():
    fw = Firmware(max_asid=8, first_sev_asid=7)
    fw.command("SNP_INIT_EX", init_rmp=1, ciphertext_hiding=1, max_snp_asid=3)
    fw.wbinvd()
    fw.command("DF_FLUSH")
    for asid, status in ((3, Status.SUCCESS), (4, Status.INVALID_ASID), (7, Status.INVALID_ASID)):
        fw.command("SNP_GCTX_CREATE", guest=asid)
        fw.command("SNP_LAUNCH_START", guest=asid)
        assert fw.command("SNP_ACTIVATE", guest=asid, asid=asid) == status
    fw.command("INIT", es=1)
    for asid, status in ((2, Status.INVALID_ASID), (4, Status.SUCCESS)):
        slot = fw.free_slot()
        fw.command("LAUNCH_START", guest=slot, policy=1 << lib.SEV_POLICY_ES)
        assert fw.command("ACTIVATE", guest=slot, asid=asid) == status


def test_messages_of_a_migration_agent_start_other_guests():
    fw = ready()
    agent = fw.launch(1)
    fw.command("SNP_GCTX_CREATE", guest=4)
    assert fw.command("SNP_GUEST_REQUEST", guest=agent, vm_absorb=1, target=4) == Status.SUCCESS
    assert "not in the right state" in fw.history[-1].why  # what the message's answer tells
    assert fw.guests()[4]["state"] == SnpGuestState.INIT
    assert fw.command("SNP_GUEST_REQUEST", guest=agent, vm_import=1, target=4) == Status.SUCCESS
    assert fw.command("SNP_ACTIVATE", guest=4, asid=2) == Status.SUCCESS
    assert (fw.asids()[1] == Cell.IN_USE).all()  # it runs already


def test_activate_ex_adds_ccxs_and_keeps_two_guests_apart():
    fw = ready(n_ccx=3)
    for slot in (0, 1):
        fw.command("SNP_GCTX_CREATE", guest=slot)
        fw.command("SNP_LAUNCH_START", guest=slot)
    assert fw.command("SNP_ACTIVATE_EX", guest=0, asid=1, ccxs=1) == Status.SUCCESS
    assert fw.command("SNP_ACTIVATE_EX", guest=1, asid=1, ccxs=2) == Status.ASID_OWNED
    assert fw.command("SNP_LAUNCH_FINISH", guest=0) == Status.SUCCESS
    assert fw.asids()[0].tolist() == [Cell.IN_USE, Cell.CLEAN, Cell.CLEAN]
    assert fw.may_run(1).tolist() == [True, False, False]
    assert fw.command("SNP_ACTIVATE_EX", guest=0, asid=1, ccxs=4) == Status.SUCCESS
    assert fw.may_run(1).tolist() == [True, False, True]
    fw.wbinvd()
    fw.command("SNP_DECOMMISSION", guest=0)
    assert fw.asids()[0].tolist() == [Cell.DIRTY, Cell.CLEAN, Cell.DIRTY]
    assert fw.threads()["done"].tolist() == [0, 1, 0]  # it never ran on CCX 1


def test_shutdown_ex_by_its_bits():
    fw = ready()
    fw.launch(1)
    fw.command("SNP_DECOMMISSION", guest=1)
    assert fw.keys() == [1]  # DECOMMISSION leaves the key
    fw.wbinvd()
    fw.command("DF_FLUSH")
    assert fw.command("SNP_SHUTDOWN_EX", iommu=1, x86=1) == Status.SUCCESS
    platform = fw.platform()
    assert (platform["snp"], platform["rmp"], platform["iommu"]) == (Snp.UNINIT, False, False)
    assert fw.keys() == []
    assert not fw.threads()["snp_en"].any()
    assert fw.command("SNP_INIT_EX", init_rmp=1) == Status.INAVLID_CONFIG  # SNPEn is off
    assert (fw.asids() == Cell.DIRTY).all()


def test_shutdown_ex_that_cannot_clear_snpen():
    fw = ready(x86_shutdown=False)
    assert fw.command("SNP_SHUTDOWN_EX", iommu=1, x86=1) == Status.INVALID_PARAM
    fw = ready()
    status = fw.command("SNP_SHUTDOWN_EX", iommu=1, x86=1, bad="snp_en")
    assert status == Status.SHUTDOWN_INCOMPLETE
    assert fw.threads()["snp_en"].all()


def test_a_thread_that_executes_nothing_holds_df_flush_up_for_ever():
    fw = Firmware(cores_per_ccx=2, smt=True, max_asid=8)
    fw.set_thread(3, online=False)
    assert fw.command("SNP_INIT_EX", init_rmp=1) == Status.SUCCESS
    for _ in range(2):
        fw.wbinvd()
        assert fw.command("DF_FLUSH") == Status.WBINVD_REQUIRED
        assert fw.history[-1].why == "no WBINVD since: thread 3"
    with pytest.raises(errors.StateConflict, match="thread 3 is offline"):
        fw.wbinvd(3)


def test_a_thread_enters_a_guest_only_while_its_asid_is_valid_there():
    fw = ready(cores_per_ccx=2)
    assert not fw.vmrun(0, 1)
    fw.launch(1)
    assert fw.vmrun(0, 1)
    with pytest.raises(errors.StateConflict, match="in a guest already"):
        fw.vmrun(0, 1)
    fw.command("SNP_DECOMMISSION", guest=1)
    assert not fw.vmrun(1, 1)
    assert fw.threads()["runs"].tolist() == [1, 0]  # firmware does not ask
    fw.vmexit(0)
    with pytest.raises(errors.StateConflict, match="thread 0 is in no guest"):
        fw.vmexit(0)
    assert not fw.vmrun(0, 1)


# pages at hand


def frame(*ops: Op) -> np.ndarray:
    frames = np.zeros((1, 2), np.uint64)
    for op in ops:
        assert apply(op, frames, 0) == 0
    return frames


def test_a_page_at_hand_says_itself_what_is_wrong_with_it():
    fw = ready()
    assigned, frozen = lib.FRAME_NEW_ASSIGNED, lib.FRAME_NEW_IMMUTABLE
    page = frame()
    assert fw.page_command("SNP_GCTX_CREATE", page, guest=0) == Status.INVALID_PAGE_STATE
    page = frame(Op(lib.FRAME_OP_RMPUPDATE, value=assigned | frozen))
    before = page.copy()
    assert fw.page_command("SNP_GCTX_CREATE", page, guest=0, bad="mmio") == Status.INAVLID_CONFIG
    assert (page == before).all()
    assert fw.page_command("SNP_GCTX_CREATE", page, guest=0) == Status.SUCCESS
    assert (page != before).any()
    fw.command("SNP_LAUNCH_START", guest=0)
    mine = frame(Op(lib.FRAME_OP_RMPUPDATE, asid=3, value=assigned | frozen))
    assert fw.page_command("SNP_LAUNCH_UPDATE", mine, guest=0) == Status.INACTIVE
    fw.command("SNP_ACTIVATE", guest=0, asid=3)
    other = frame(Op(lib.FRAME_OP_RMPUPDATE, asid=4, value=assigned | frozen))
    assert fw.page_command("SNP_LAUNCH_UPDATE", other, guest=0) == Status.INVALID_PAGE_OWNER
    assert fw.page_command("SNP_LAUNCH_UPDATE", mine, guest=0) == Status.SUCCESS
    assert fw.page_command("SNP_LAUNCH_UPDATE", mine, guest=0) == Status.INVALID_PAGE_STATE
    assert fw.page_command("SNP_DECOMMISSION", frame(), guest=0) == Status.INVALID_GUEST
    assert fw.page_command("SNP_DECOMMISSION", page, guest=0) == Status.SUCCESS
    assert (page == before).all()
    assert fw.page_command("SNP_PAGE_RECLAIM", page) == Status.SUCCESS
    assert fw.page_command("SNP_PAGE_RECLAIM", page) == Status.SUCCESS  # a no-op
    with pytest.raises(errors.OutOfRange, match="'DF_FLUSH': must be one of"):
        fw.page_command("DF_FLUSH", page)


# every history


STEPS = st.one_of(
    st.tuples(st.just("wbinvd"), st.integers(0, 7)),
    st.tuples(st.just("wbinvd all"), st.just(0)),
    st.tuples(st.just("wbnoinvd"), st.integers(0, 7)),
    st.tuples(st.just("launch"), st.integers(1, 3)),
    st.tuples(st.just("pending"), st.integers(1, 3)),
    st.tuples(st.just("end"), st.integers(1, 3)),
    st.tuples(st.just("df_flush"), st.just(0)),
    st.tuples(st.just("init"), st.integers(0, 1)),
    st.tuples(st.just("shutdown"), st.integers(0, 1)),
    st.tuples(st.just("sev init"), st.just(0)),
    st.tuples(st.just("sev guest"), st.integers(4, 5)),
    st.tuples(st.just("sev shutdown"), st.just(0)),
)


def take(fw: Firmware, what: str, n: int) -> Status | None:
    if what == "wbinvd all":
        fw.wbinvd()
    elif what == "wbinvd":
        fw.wbinvd(n)
    elif what == "wbnoinvd":
        fw.wbnoinvd(n)
    elif what in ("launch", "pending"):
        fw.command("SNP_GCTX_CREATE", guest=n)
        fw.command("SNP_LAUNCH_START", guest=n)
        fw.command("SNP_ACTIVATE", guest=n, asid=n)
        if what == "launch":
            fw.command("SNP_LAUNCH_FINISH", guest=n)
    elif what == "end":
        fw.command("SNP_DECOMMISSION", guest=n)
    elif what == "init":
        return fw.command("SNP_INIT_EX", init_rmp=n)
    elif what == "shutdown":
        return fw.command("SNP_SHUTDOWN_EX", iommu=n)
    elif what == "sev guest":
        for name, more in (
            ("LAUNCH_START", {}),
            ("ACTIVATE", {"asid": n}),
            ("LAUNCH_MEASURE", {}),
            ("LAUNCH_FINISH", {}),
        ):
            fw.command(name, guest=n, **more)
    else:
        return fw.command({"df_flush": "DF_FLUSH", "sev init": "INIT"}.get(what, "SHUTDOWN"))
    return None


@settings(deadline=None)
@given(st.lists(STEPS, max_size=40), st.sampled_from(MODES))
def test_what_every_history_keeps_true(steps, mode):
    fw = Firmware(n_ccx=2, cores_per_ccx=2, smt=True, max_asid=5, first_sev_asid=4, mode=mode)
    owed = set(range(8))  # threads that have not executed WBINVD since an ASID was taken from them
    for what, n in [("init", 1), *steps]:
        before, was_clean = fw.asids(), not fw.asids().any()
        was_up = fw.platform()["snp"] == Snp.INIT
        status = take(fw, what, n)
        after, threads = fw.asids(), fw.threads()
        if what.startswith("wbinvd"):
            owed -= {n} if what == "wbinvd" else set(range(8))
        if what in ("init", "sev init") and status == 0 and not (what == "sev init" and was_up):
            owed = set(range(8))
        ended = (before == Cell.IN_USE) & (after == Cell.DIRTY) if what != "init" else before < 0
        for ccx in np.flatnonzero(ended.any(axis=0)).tolist():
            owed |= set(np.flatnonzero(threads["ccx"] == ccx).tolist())
        assert set(np.flatnonzero(threads["done"] == 0).tolist()) == owed
        if what == "df_flush":
            assert (status == Status.SUCCESS) == (not owed)  # S2
            if status == Status.SUCCESS:
                assert not (after == Cell.DIRTY).any()
            assert ((before != Cell.DIRTY) <= (before == after)).all()  # nothing else has changed
        if what == "shutdown" and was_up and status == Status.SUCCESS:
            assert was_clean
        for guest in fw.guests():
            if guest["active"] == Activation.ACTIVE:
                assert (after[guest["asid"] - 1] == Cell.IN_USE).all()
                assert fw.may_run(int(guest["asid"])).all()
            elif guest["active"] == Activation.PENDING:
                assert (after[guest["asid"] - 1] == Cell.ALLOC).all()
        asids = [int(a) for a in fw.guests()["asid"] if a]
        assert len(asids) == len(set(asids))


# many machines


def test_many_machines_answer_as_each_alone():
    rng = np.random.default_rng(1)
    names = [code.name for code in COMMANDS if checks(code.code) is not None]
    plans = []
    for _ in range(12):
        plan = [
            command_step("SNP_INIT_EX", init_rmp=1),
            thread_step("WBINVD"),
            command_step("DF_FLUSH"),
        ]
        for _ in range(60):
            name = names[rng.integers(len(names))]
            more = {"asid": int(rng.integers(4))} if "ACTIVATE" in name and "DE" not in name else {}
            plan.append(command_step(name, guest=int(rng.integers(4)), **more))
            plan.append(thread_step("WBINVD", int(rng.integers(4))))
        plans.append(plan)
    how = {"n_ccx": 2, "cores_per_ccx": 2, "max_asid": 8, "first_sev_asid": 3}
    many = Firmware(**how, n_machines=len(plans))
    answers = many.apply(np.array(plans))
    assert len(np.unique(answers["status"])) > 8
    for i, plan in enumerate(plans):
        alone = Firmware(**how)
        one_by_one = [alone.apply([step])[0, 0] for step in plan]
        assert [int(a["status"]) for a in one_by_one] == answers[i]["status"].tolist()
        assert np.array_equal(alone.asids(), many.asids(i))
        assert np.array_equal(alone.guests(), many.guests(i))
        assert np.array_equal(alone.threads(), many.threads(i))
    same = Firmware(**how, n_machines=3).apply(plans[0])
    assert (same["status"] == answers[0]["status"]).all()
    assert same.shape == (3, len(plans[0]))


def test_the_largest_machine_there_is():
    fw = Firmware(n_ccx=32, cores_per_ccx=16, smt=True)
    fw.command("SNP_INIT_EX", init_rmp=1)
    fw.wbinvd()
    fw.command("DF_FLUSH")
    fw.launch(1006)
    assert (fw.asids()[1005] == Cell.IN_USE).all()
    assert fw.may_run(1006).all()
    fw.command("SNP_DECOMMISSION", guest=0)
    fw.wbinvd()
    assert fw.command("DF_FLUSH") == Status.SUCCESS
    assert fw.command("SNP_SHUTDOWN_EX") == Status.SUCCESS


# what cannot be


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"mode": "loose"}, "mode 'loose': must be one of strict, genoa_2023"),
        ({"n_ccx": 33}, "n_ccx = 33"),
        ({"n_ccx": 0}, "n_ccx = 0"),
        ({"cores_per_ccx": 0}, "cores_per_ccx = 0"),
        ({"n_ccx": 32, "cores_per_ccx": 8192}, "threads = "),
        ({"max_asid": 1007}, "max_asid = 1007"),
        ({"n_guests": 0}, "n_guests = 0"),
        ({"sockets": 3}, "sockets = 3"),
        ({"first_sev_asid": 1008}, "first_sev_asid = 1008"),
        ({"n_machines": 0}, "n_machines = 0"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(how, text):
    with pytest.raises(errors.OutOfRange, match=text):
        Firmware(**how)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("SNP_REBOOT",), "'SNP_REBOOT': firmware has none of this name"),
        ((1 << 32,), "0x100000000: must be below"),
        ((-1,), "command -0x1"),
        (("DF_FLUSH", {"asid": 1}), "DF_FLUSH: takes no 'asid'"),
        (("SNP_INIT_EX", {"init_rmp": 2}), "init_rmp = 2: must be 0 or 1"),
        (("SNP_ACTIVATE", {"asid": -1}), "asid = -1"),
        (("SNP_ACTIVATE", {"asid": 1 << 64}), "asid = 18446744073709551616"),
        (("DF_FLUSH", {"bad": "reserved"}), "bad 'reserved': what can be bad is nothing"),
        (("SNP_DECOMMISSION", {"bad": "mood"}), "what can be bad is reserved, page_state"),
        (("SNP_INIT_EX", {"init_rmp": 1, "max_snp_asid": 2000}), "op.limit: must be 0 to 1006"),
    ],
)
def test_a_command_that_cannot_be_is_refused_and_nothing_happens(arguments, text):
    fw = Firmware()
    name, *more = arguments
    with pytest.raises(errors.OutOfRange, match=text):
        fw.command(name, **(more[0] if more else {}))
    assert fw.history == []
    assert fw.platform()["rebuild"]


def test_numbers_that_are_too_large_are_answered():
    fw = ready()
    huge = (1 << 64) - 1
    assert fw.command("SNP_DECOMMISSION", guest=huge) == Status.INVALID_GUEST
    fw.command("SNP_GCTX_CREATE", guest=0)
    fw.command("SNP_LAUNCH_START", guest=0, policy=huge)
    assert fw.command("SNP_ACTIVATE", guest=0, asid=huge) == Status.INVALID_ASID
    assert fw.command("SNP_ACTIVATE_EX", guest=0, asid=1, ccxs=huge) == Status.INVALID_PARAM
    assert fw.command("SNP_GCTX_CREATE", guest=huge) == Status.INVALID_PAGE_STATE


def test_steps_that_cannot_be_are_refused_by_the_core():
    machines = Machines([0], 1, 4, 2)
    step = thread_step("WBINVD", 0)
    step["thread"] = 1
    with pytest.raises(errors.OutOfRange, match=r"steps\[0\]\.thread = 0x1"):
        machines.apply(np.array([step]))
    step = thread_step("VMRUN", 0, asid=1)
    step["thread"] = lib.GHCB_FW_ALL_THREADS
    with pytest.raises(errors.OutOfRange, match=r"steps\[0\]\.thread"):
        machines.apply(np.array([step]))
    step["step"] = 9
    with pytest.raises(errors.OutOfRange, match=r"steps\[1\]\.step = 0x9"):
        machines.apply(np.array([command_step("NOP"), step]))
    step = command_step("NOP")
    step["op"]["bad"] = 1 << 63
    with pytest.raises(errors.OutOfRange, match="mean nothing"):
        machines.apply(np.array([step]))
    with pytest.raises(ValueError, match="shape"):
        machines.apply(np.array([[step], [step]]))
    with pytest.raises(errors.OutOfRange, match=r"threads\[0\]"):
        Machines([1 << 40], 1, 4, 2)
    with pytest.raises(errors.OutOfRange, match=r"CCX 2 of 2"):
        Machines([2 << lib.GHCB_FW_THREAD_CCX_SHIFT], 2, 4, 2)
    assert machines.apply(np.array([], step.dtype)).shape == (1, 0)
    with pytest.raises(errors.StateConflict, match="by `apply`"):
        Firmware(n_machines=2).command("NOP")


# the command


def test_the_command_runs_its_example_and_says_how_it_went(capsys):
    assert main(["firmware"]) == 0
    text = capsys.readouterr().out
    assert "0x0f DFFLUSH_REQUIRED: ASID 1 is not CLEAN" in text
    assert text.endswith("4 of 4 as expected\n")


def test_a_failed_expectation_is_a_finding(tmp_path, capsys):
    script = tmp_path / "script.txt"
    script.write_text("df_flush\nexpect SUCCESS\n")
    assert main(["firmware", str(script), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == 1
    assert found["lines"][0]["status"] == "0x0e"
    assert found["lines"][0]["check"] == "not_done"
    assert found["lines"][1]["failed"] == "expected 0x00 SUCCESS, got 0x0e WBINVD_REQUIRED"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("fly", "firmware has no such command"),
        ("df_flush 1 2", "'2': what is this"),
        ("df_flush guest=1 1", "what is this|stands there twice"),
        ("snp_activate 1 asid=x", "'x': must be a number"),
        ("wbinvd", "all or a thread is missing"),
        ("wbinvd 1", "thread 1: there are 1"),
        ("wbinvd all or 1", "'or': what is this"),
        ("wbinvd all but", "'but': what is this"),
        ("vmrun 0", "asid= is missing"),
        ("expect 0x00", "no command has been given"),
        ("expect asid 0 CLEAN", "asid 0"),
        ("expect asid 1 CLEAN,DIRTY", "one for all, or for each of 1"),
        ("expect asid 1 LOUD", "one for all"),
        ("machine ccx=99", "n_ccx = 99"),
        ("launch 1", "SNP_GCTX_CREATE of guest 1: INVALID_PLATFORM_STATE 0x01: SNP is UNINIT"),
        ("snp_commit", "no source at hand"),
        ("thread 0 online=2", "online"),
        ("0x100000000", "must be below"),
    ],
)
def test_a_line_that_cannot_be_run_is_named(line, text):
    with pytest.raises(BadScript, match=rf"x:2: .*({text})"):
        run_script(read_script(b"\n" + line.encode(), "x"), "x")


def test_checks_and_language_are_printed(capsys):
    assert main(["firmware", "--checks", "snp_shutdown_ex"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[-1] for row in rows] == [
        *("INVALID_PLATFORM_STATE", "SUCCESS", "DFFLUSH_REQUIRED"),
        *("INVALID_PARAM", "INVALID_PARAM", "INVALID_PARAM"),
    ]
    assert main(["firmware", "--language"]) == 0
    assert "wbinvd all | all but N | N" in capsys.readouterr().out
    assert main(["firmware", "--checks", "nothing"]) == 2
    assert main(["firmware", "--checks", "snp_commit"]) == 2
    assert main(["firmware", "-", "--language"]) == 2
