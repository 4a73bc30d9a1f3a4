"""Firmware as a place of a flow: the same answers as in Python alone, in every order."""

import numpy as np
import pytest

from ghcbcore.errors import OutOfRange
from pysev.checking import check
from pysev.firmware import Cell, Firmware
from pysev.flow import Flow, FlowError, op, put, when
from pysev.machine import Machine
from pysev.psp import IMPOSSIBLE, Status, declare
from pysev.simulate import run
from pysev.states import States


def a_flow(**how):
    flow = Flow("psp")
    psp = declare(flow, **how)
    flow.globals(status=99, seen=0)
    return flow, psp


def walk(flow: Flow, n_cpus: int) -> States:
    """Run the flow once; return the last state."""
    return States.of_record(flow.compile(n_cpus), run(flow, Machine.of(n_cpus)).record)


def decommission_and_flush(flow, psp, *, others_flush):
    """One guest ends; each other CPU may execute WBINVD when it likes, if it does at all."""
    g, cpu = flow.g, flow.cpu
    boot = flow.agent("boot CPU")
    boot.at(
        "end of the guest", op("SNP_DECOMMISSION", do=[psp.command("SNP_DECOMMISSION", g.status)])
    )
    boot.at("wbinvd", op("WBINVD", do=[psp.wbinvd(flow.boot)]))
    boot.at("df_flush", op("DF_FLUSH", do=[psp.command("DF_FLUSH", g.status)]))
    boot.at("end", ends=True)
    ap = flow.agent("AP", per_cpu=True)
    ap.at("run", op("NMI: WBINVD", do=[psp.wbinvd(cpu) if others_flush else psp.wbnoinvd(cpu)]))
    ap.at("halt", ends=True)


def test_df_flush_succeeds_only_in_orders_in_which_every_cpu_has_executed_wbinvd_after_it():
    flow, psp = a_flow(n_guests=1, running=1)
    decommission_and_flush(flow, psp, others_flush=True)
    flow.always(
        "flushed means done",
        lambda s: ~s.at("boot CPU", "end") | (s.g.status != 0) | psp.all_done(s),
    )
    flow.always(
        "clean means flushed",
        lambda s: ~s.at("boot CPU", "end") | ((s.g.status == 0) == psp.is_clean(s)),
    )
    flow.sometimes("flushed", lambda s: s.at("boot CPU", "end") & (s.g.status == Status.SUCCESS))
    flow.sometimes("too early", lambda s: s.g.status == Status.WBINVD_REQUIRED)
    flow.sometimes("dirty", lambda s: psp.is_any(s, Cell.DIRTY))
    for n_cpus in (1, 2, 4):
        result = check(flow, n_cpus)
        expected = "holds" if n_cpus > 1 else "violated"  # nobody is late where there is one CPU
        assert result.verdict == expected, result
        assert result.complete


def test_wbnoinvd_does_not_count():
    flow, psp = a_flow(n_guests=1, running=1)
    decommission_and_flush(flow, psp, others_flush=False)
    flow.always("never flushed", lambda s: ~s.at("boot CPU", "end") | (s.g.status != 0))
    flow.sometimes("kept", lambda s: (psp.threads(s)["kept"] == 1).any(axis=1))
    assert check(flow, 3).verdict == "holds"


@pytest.mark.parametrize(("mode", "clean"), [("strict", False), ("genoa_2023", True)])
def test_the_first_core_of_a_ccx_speaks_for_all_in_the_published_firmware(mode, clean):
    flow, psp = a_flow(n_guests=1, running=1, mode=mode)
    g = flow.g
    boot = flow.agent("boot CPU")
    boot.at("guest", op("SNP_DECOMMISSION", do=[psp.command("SNP_DECOMMISSION", g.status)]))
    boot.at("flush", op("WBINVD here alone", do=[psp.wbinvd(flow.boot)]))
    boot.at("fabric", op("DF_FLUSH", do=[psp.command("DF_FLUSH", g.status)]))
    boot.at("end", ends=True)
    end = walk(flow, 3)
    assert end.g.status[0] == Status.WBINVD_REQUIRED
    assert psp.is_clean(end)[0] == clean


def test_cpus_take_seats_and_each_ccx_is_promoted_for_itself():
    flow, psp = a_flow(n_guests=1, running=1, n_ccx=2)
    g = flow.g
    boot = flow.agent("boot CPU")
    boot.at("sit", op("seats", do=psp.seats(g.seen, 2)))
    boot.at("guest", op("SNP_DECOMMISSION", do=[psp.command("SNP_DECOMMISSION", g.status)]))
    boot.at("flush", op("WBINVD", do=[psp.wbinvd(flow.boot)]))
    boot.at("fabric", op("DF_FLUSH", do=[psp.command("DF_FLUSH", g.status)]))
    boot.at("end", ends=True)
    end = walk(flow, 4)
    assert sorted(psp.threads(end)["ccx"][0].tolist()) == [0, 0, 1, 1]
    assert sorted(psp.threads(end)["first"][0].tolist()) == [0, 0, 1, 1]
    assert (end.g.seen[0], end.g.psp_refused[0]) == (0, 0)
    assert psp.cells(end)[0, 0].tolist() == [Cell.DIRTY, Cell.DIRTY]
    end = walk(flow, 6)  # the last CCX takes the rest
    assert sorted(psp.threads(end)["ccx"][0].tolist()) == [0, 0, 1, 1, 1, 1]
    assert psp.threads(end)["first"][0].sum() == 2


def test_vmrun_needs_a_valid_asid_and_decommission_takes_it_away():
    flow, psp = a_flow(n_guests=2, running=1)
    g, cpu = flow.g, flow.cpu
    flow.per_cpu(entered=99)
    ap = flow.agent("AP", per_cpu=True)
    ap.at("enter", op("VMRUN", do=[psp.guest_runs(cpu, 1, cpu.entered)]))
    ap.at(
        "in guest",
        op("#VMEXIT", when=[cpu.entered == 0], do=[psp.guest_leaves(cpu)], to="out"),
        op("no guest", when=[cpu.entered == IMPOSSIBLE], to="out"),
    )
    ap.at("out", ends=True)
    boot = flow.agent("boot CPU")
    boot.at("end", op("SNP_DECOMMISSION", do=[psp.command("SNP_DECOMMISSION", g.status)]))
    boot.at("done", ends=True)
    flow.always("no guest without its ASID", lambda s: ~psp.runs_gone_guest(s))
    flow.sometimes("in the guest", lambda s: (psp.threads(s)["runs"] == 1).any(axis=1))
    result = check(flow, 3)
    assert (result.verdict, result.property) == ("violated", "no guest without its ASID")
    assert [step.op for step in result.counterexample][-2:] == ["VMRUN", "SNP_DECOMMISSION"]


def test_an_ap_gives_commands_too_and_the_guest_may_be_a_word():
    flow, psp = a_flow(n_guests=3, running=2)
    g = flow.g
    flow.per_cpu(answer=99)
    ap = flow.agent("AP", per_cpu=True)
    end = [psp.command("SNP_DECOMMISSION", flow.cpu.answer, guest=g.seen), put(g.seen, 1)]
    ap.at("end", op("SNP_DECOMMISSION", do=end))
    ap.at("done", ends=True)
    flow.always("one each", lambda s: (s.cpu.answer != Status.INVALID_GUEST).all(axis=1))
    flow.at_end("all gone", lambda s: psp.n_running(s) == 0)
    flow.sometimes("one left", lambda s: psp.n_running(s) == 1)
    assert check(flow, 3).verdict == "holds"
    assert check(flow, 4).property == "one each"  # the third finds no guest in slot 1


def test_the_plain_engine_finds_the_same_states():
    flow, psp = a_flow(n_guests=1, running=1)
    decommission_and_flush(flow, psp, others_flush=True)
    alike, one_by_one = check(flow, 3), check(flow, 3, symmetric=False)
    assert alike.verdict == one_by_one.verdict == "holds"
    assert alike.states < one_by_one.states


def test_a_large_machine_runs_the_same_flow():
    flow, psp = a_flow(n_guests=2, running=1)
    g = flow.g
    boot = flow.agent("boot CPU")
    boot.at("end", op("SNP_DECOMMISSION", do=[psp.command("SNP_DECOMMISSION", g.status)]))
    boot.at("ipi", op("IPI: WBINVD", do=[psp.wbinvd(flow.boot), psp.wbinvd_others()]))
    boot.at("df", op("DF_FLUSH", do=[psp.command("DF_FLUSH", g.status)]))
    shut = psp.command("SNP_SHUTDOWN_EX", g.status, iommu=1)
    boot.at("down", op("SNP_SHUTDOWN_EX", do=[when(g.status == 0, shut)]))
    boot.at("done", ends=True)
    flow.at_end("down", lambda s: ~psp.is_up(s) & ~psp.is_iommu_locked(s) & (s.g.status == 0))
    assert run(flow, Machine.of(2048)).verdict == "holds"


def test_a_flow_and_python_alone_agree_on_the_words():
    fw = Firmware(cores_per_ccx=2, max_asid=2, n_guests=2)
    fw.command("SNP_INIT_EX", init_rmp=1)
    fw.wbinvd()
    fw.command("DF_FLUSH")
    fw.launch(1, guest=0)
    fw.command("SNP_DECOMMISSION", guest=0)
    flow, psp = a_flow(n_guests=2, running=1)
    boot = flow.agent("boot CPU")
    boot.at("end", op("SNP_DECOMMISSION", do=[psp.command("SNP_DECOMMISSION", flow.g.status)]))
    boot.at("done", ends=True)
    end = walk(flow, 2)
    assert np.array_equal(psp.cells(end)[0], fw.asids())
    assert np.array_equal(psp.guests(end)[0], fw.guests())
    assert np.array_equal(psp.threads(end)[0], fw.threads())
    assert np.array_equal(psp.may_run(end, 1)[0], fw.may_run(1))


def test_what_cannot_be_declared_is_said():
    flow = Flow("bad")
    with pytest.raises(FlowError, match="3 guests running; 2 slots"):
        declare(flow, n_guests=2, running=3)
    with pytest.raises(FlowError, match="not alike"):
        declare(flow, start=lambda fw: fw.wbinvd(1), n_ccx=2)
    with pytest.raises(OutOfRange, match="max_asid = 64"):
        declare(flow, n_asids=64)
    psp = declare(flow)
    flow.globals(status=0)
    with pytest.raises(FlowError, match="SNP_COMMIT"):
        psp.command("SNP_COMMIT", flow.g.status)
    with pytest.raises(OutOfRange, match="takes no 'iommu'"):
        psp.command("DF_FLUSH", flow.g.status, iommu=1)
    with pytest.raises(OutOfRange, match="too large for a flow"):
        psp.command("SNP_LAUNCH_START", flow.g.status, policy=1 << 40)
    with pytest.raises(FlowError, match="0 CPUs to a CCX"):
        psp.seats(flow.g.status, 0)


def test_a_timeline_tells_in_words_what_becomes_of_firmware():
    flow, psp = a_flow(n_guests=1, running=1)
    g = flow.g
    boot = flow.agent("boot CPU")
    boot.at("guest", op("SNP_DECOMMISSION", do=[psp.command("SNP_DECOMMISSION", g.status)]))
    boot.at("flush", op("IPI: WBINVD", do=[psp.wbinvd(flow.boot), psp.wbinvd_others()]))
    boot.at("fabric", op("DF_FLUSH", do=[psp.command("DF_FLUSH", g.status)]))
    boot.at("down", op("SNP_SHUTDOWN_EX", do=[psp.command("SNP_SHUTDOWN_EX", g.status, iommu=1)]))
    boot.at("end", ends=True)
    flow.always("SNP stays up", psp.is_up)
    end, flush, fabric, down = (step.detail for step in check(flow, 3).counterexample)
    assert end.startswith("done bit erased; may not run ASID 1; ")
    assert "guest 0 SNP RUNNING, ASID 1 ACTIVE -> none; ASID 1 IN_USE -> DIRTY" in end
    assert flush == "done bit set; CPUs 1-2 done bit set"
    assert fabric == "ASID 1 DIRTY -> CLEAN"
    assert down.startswith("SNP INIT -> UNINIT, RMP no longer initialised, IOMMU unlocked")
