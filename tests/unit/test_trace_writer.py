"""What a modelled host was asked, written as KVM would trace it and read back."""

import numpy as np
import pytest

from ghcbcore._cffi import lib
from ghcbcore.exchange import EXCHANGE_DTYPE
from ghcbcore.simulator import EVENT_DTYPE
from pysev.machine import Machine
from pysev.scenarios import all_scenarios
from pysev.simulate import run
from pysev.trace import TraceReader
from pysev.trace.writer import format_events, lines_of_events

SCENARIOS = {s.name: s for s in all_scenarios()}
VMGEXIT, SIPI, NMI, INIT = (
    lib.GHCB_CALL_VMGEXIT,
    lib.GHCB_CALL_SIPI,
    lib.GHCB_CALL_NMI,
    lib.GHCB_CALL_INIT,
)
ENTER, EXIT, PAGE = lib.GHCB_EXCHANGE_ENTER, lib.GHCB_EXCHANGE_EXIT, lib.GHCB_EXCHANGE_PAGE
HOLD = lib.GHCB_NAE_AP_RESET_HOLD
TERM = lib.GHCB_EVENT_SEV_TERM


def collected(batches):
    found = [batch.exchanges.copy() for batch in batches]
    return np.concatenate([*found, np.zeros(0, EXCHANGE_DTYPE)])


def from_events(events):
    reader = TraceReader()
    lines = lines_of_events(events)
    return collected([*_copied(reader.paired(lines)), *_copied(reader.rest())])


def _copied(batches):
    for batch in batches:
        yield type(batch)(batch.lines.copy(), batch.exchanges.copy())


def from_text(events):
    return collected(_copied(TraceReader().batches(format_events(events))))


def made(*rows):
    """Make events: (cpu, call, msr, msr_after) or (cpu, call, (code, i1, i2), (i1, i2)).

    A further item is how the run ended with it.
    """
    events = np.zeros(len(rows), EVENT_DTYPE)
    for i, (event, (cpu, call, before, after, *end)) in enumerate(zip(events, rows, strict=True)):
        event["vm_event"] = end[0] if end else lib.GHCB_EVENT_NONE
        event["time_ns"], event["cpu"], event["call"] = 10 * i, cpu, call
        if isinstance(before, tuple):
            event["msr"] = event["msr_after"] = 0x7000
            event["sw_exit_code"], event["sw_exit_info_1"], event["sw_exit_info_2"] = before
            event["info_1_after"], event["info_2_after"] = after
        else:
            event["msr"], event["msr_after"] = before, after
    return events


@pytest.mark.parametrize("name", SCENARIOS)
def test_exchanges_from_text_are_those_from_events(name):
    machine = Machine.of(40, jump_table=SCENARIOS[name].jump_table)
    events = run(SCENARIOS[name].build(machine), machine, 3).trace
    direct, read = from_events(events), from_text(events)
    assert direct.tobytes() == read.tobytes()
    asked = events[(events["call"] == VMGEXIT) & (events["msr"] != 0)]
    assert len(direct) == len(asked)
    by_begin = np.sort(direct, order="enter_line")
    page = by_begin["flags"] & PAGE != 0
    assert (by_begin["begin_ns"] == asked["time_ns"]).all()
    assert (by_begin["vcpu"] == asked["cpu"]).all()
    assert (by_begin["msr"][~page] == asked["msr"][~page]).all()
    for field in ("sw_exit_code", "sw_exit_info_1", "sw_exit_info_2"):
        assert (by_begin[field][page] == asked[field][page]).all()
    answered = by_begin["flags"] & EXIT != 0
    resumed = answered & ~page & (by_begin["result"] == 1)
    assert (by_begin["msr_after"][resumed] == asked["msr_after"][resumed]).all()
    at_once = answered & page & (asked["sw_exit_code"] != HOLD)
    for field in ("info_1_after", "info_2_after"):
        assert (by_begin[field][at_once] == asked[field][at_once]).all()


def test_some_scenario_asks_by_page_and_some_by_msr():
    kinds = set()
    for scenario in SCENARIOS.values():
        machine = Machine.of(5, jump_table=scenario.jump_table)
        events = run(scenario.build(machine), machine).trace
        kinds |= {bool(x["flags"] & PAGE) for x in from_events(events)}
    assert kinds == {True, False}


def test_a_termination_has_one_line():
    (x,) = from_events(made((0, VMGEXIT, 0x100, 0x100, TERM)))
    assert x["flags"] & (ENTER | EXIT | lib.GHCB_EXCHANGE_ENDED) == (
        ENTER | lib.GHCB_EXCHANGE_ENDED
    )
    (x,) = from_events(made((0, VMGEXIT, (lib.GHCB_NAE_TERMINATE, 0x10, 0), (0x10, 0), TERM)))
    assert not x["flags"] & EXIT


def test_a_page_state_change_goes_to_user_space():
    request = 0x0020000012345014
    (x,) = from_events(made((0, VMGEXIT, request, 0x15)))
    assert (x["msr_after"], x["result"]) == (request, 0)
    assert x["flags"] & lib.GHCB_EXCHANGE_USER
    bad = 0x0030000012345014  # KVM answers that itself
    (x,) = from_events(made((0, VMGEXIT, bad, 0x8000000000000015)))
    assert (x["msr_after"], x["result"]) == (0x8000000000000015, 1)


def test_what_a_guest_without_snp_must_not_ask_has_one_line():
    for request in (0x0020000012345014, 0x10, 0x12012):
        (x,) = from_events(made((0, VMGEXIT, request, request, TERM)))
        assert x["flags"] & (ENTER | EXIT) == ENTER


def test_an_unknown_function_is_left_as_it_was():
    (x,) = from_events(made((0, VMGEXIT, 0xABC, 0xABC)))
    assert x["flags"] & EXIT and (x["msr_after"], x["result"]) == (0xABC, 1)


@pytest.mark.parametrize(("call", "released"), [(SIPI, 1), (NMI, 0)])
def test_a_hold_by_the_page_is_answered_when_it_ends(call, released):
    events = made(
        (1, VMGEXIT, (HOLD, 0, 0), (0, 0)),
        (2, VMGEXIT, (0x72, 0, 0), (0, 0)),
        (1, INIT, (HOLD, 0, 0), (0, 0)),
        (1, call, (HOLD, 0, 0), (0, released)),
    )
    quick, held = from_events(events)
    assert (quick["vcpu"], quick["begin_ns"], quick["end_ns"]) == (2, 10, 10)
    assert (held["vcpu"], held["begin_ns"], held["end_ns"]) == (1, 0, 30)
    assert held["info_2_after"] == released
    assert from_text(events).tobytes() == from_events(events).tobytes()


def test_a_hold_that_nobody_ends_has_no_answer():
    (x,) = from_events(made((1, VMGEXIT, (HOLD, 0, 0), (0, 0)), (2, SIPI, (0, 0, 0), (0, 1))))
    assert x["flags"] & lib.GHCB_EXCHANGE_OPEN


def test_a_port_without_a_device_is_not_answered():
    (x,) = from_events(made((0, VMGEXIT, (0x7B, 0x3F80211, 0), (0x3F80211, 0), lib.GHCB_EVENT_IO)))
    assert not x["flags"] & EXIT
    (x,) = from_events(made((0, VMGEXIT, (0x7B, 0x3F80211, 0), (0, 0))))
    assert x["flags"] & EXIT


def test_what_ended_the_vm_is_not_answered():
    rows = [(0, VMGEXIT, (0x72, 0, 0), (0, 0)), (1, VMGEXIT, (0x6E, 0, 0), (0, 0))]
    assert len(lines_of_events(made(*rows))) == 4
    ends = made(rows[0], (*rows[1], lib.GHCB_EVENT_INTERNAL))
    assert lines_of_events(ends)["kind"].tolist() == [
        lib.GHCB_TRACE_NAE_ENTER,
        lib.GHCB_TRACE_NAE_EXIT,
        lib.GHCB_TRACE_NAE_ENTER,
    ]
    shut_down = made((0, VMGEXIT, 2, 1), (0, lib.GHCB_CALL_SHUTDOWN, 0, 0, lib.GHCB_EVENT_SHUTDOWN))
    assert len(lines_of_events(shut_down)) == 2


def test_an_answer_comes_when_its_vcpu_goes_on():
    events = made((0, VMGEXIT, 2, 1), (1, VMGEXIT, 2, 1))
    events["took_ns"] = 25, 3
    lines = lines_of_events(events, first_line=7)
    assert lines["time_ns"].tolist() == [0, 10, 13, 25]
    assert lines["vcpu"].tolist() == [0, 1, 1, 0]
    assert lines["line"].tolist() == [7, 8, 9, 10]
    assert [int(x["end_ns"] - x["begin_ns"]) for x in from_text(events)] == [3, 25]


def test_an_msr_of_zero_is_not_traced():
    assert len(lines_of_events(made((0, VMGEXIT, 0, 0)))) == 0
    assert len(lines_of_events(np.zeros(0, EVENT_DTYPE))) == 0


def test_a_thread_number_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="first_pid 4294967295"):
        lines_of_events(made((0, VMGEXIT, 2, 1)), first_pid=2**32 - 1)
