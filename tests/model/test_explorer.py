"""The search against the most obvious one, and at its limits: ids, memory, signals, threads."""

import contextlib
import gc
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_flows import explored, flows, records, search, sorted_cpus

from ghcbcore.errors import OutOfRange, StateConflict
from ghcbcore.explorer import Explorer, MemoryLimit, NarrowIds
from ghcbcore.plainexplorer import PlainExplorer
from pysev.checking import check
from pysev.flow import Flow, add, each, op, put, when
from pysev.machine import Machine
from pysev.scenarios import all_scenarios

SCENARIOS = {s.name: s for s in all_scenarios()}
RANDOM = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def compiled_scenario(name, n_cpus):
    scenario = SCENARIOS[name]
    machine = Machine.of(n_cpus, jump_table=scenario.jump_table)
    return scenario.build(machine).compile(n_cpus)


def plain(compiled, symmetric):
    out = PlainExplorer(compiled.program, compiled.initial_record(), symmetric=symmetric)
    out.explore()
    return out


def distances(slow):
    """Return how far each state of a plain search is from the first one."""
    far = {}
    for state, before in slow.states.items():  # in the order in which they were found
        far[state] = 0 if before is None else far[before] + 1
    return far


def assert_same_space(compiled, **options):
    """Compare a search that keeps CPUs apart with the plain one; return both."""
    ex = search(compiled, 1 << 30, symmetric=False, **options)
    slow = plain(compiled, False)
    assert (ex.n_states, ex.n_transitions) == (slow.n_states, slow.n_transitions)
    rows = records(ex)
    assert {row.tobytes() for row in rows} == set(slow.states)
    assert {rows[t].tobytes() for t in ex.terminals} == set(slow.terminals)
    assert len(ex.terminals) == len(slow.terminals)
    return ex, slow


def assert_same_up_to_order(compiled, slow):
    """Compare a search with symmetry with a plain one without."""
    ex = search(compiled, 1 << 30)
    program = compiled.program
    alike = {sorted_cpus(np.frombuffer(s, np.uint64), program) for s in slow.states}
    if program.ordered:
        assert ex.n_states == slow.n_states
    else:
        assert ex.n_states == len(alike)
    assert {sorted_cpus(r, program) for r in records(ex)} == alike
    ends = {sorted_cpus(np.frombuffer(s, np.uint64), program) for s in slow.terminals}
    rows = records(ex)
    assert {sorted_cpus(rows[t], program) for t in ex.terminals} == ends
    return ex


# -- the same space ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_cpus", [1, 2, 3])
@pytest.mark.parametrize("name", SCENARIOS)
def test_both_searches_find_the_same_of_a_scenario(name, n_cpus):
    compiled = compiled_scenario(name, n_cpus)
    _, slow = assert_same_space(compiled)
    ex = assert_same_up_to_order(compiled, slow)
    # an operation on a place in an `each` may depend on the order of CPUs: all of them count
    assert ex.symmetric != name.startswith("snp-host-kdump/orderly-kexec")
    assert ex.n_states == plain(compiled, True).n_states


@pytest.mark.parametrize("widths", [(2, 2), (4, 1), (4, 2)])
@pytest.mark.parametrize("name", ["sev-es-kexec/jump-table-nmi", "sev-es-kexec/mailbox"])
def test_wider_ids_find_the_same(name, widths):
    compiled = compiled_scenario(name, 4)
    narrow = search(compiled, 1 << 30)
    wide = search(compiled, 1 << 30, global_bytes=widths[0], slice_bytes=widths[1])
    for what in ("n_states", "n_transitions", "n_executed", "n_parts", "terminals"):
        assert np.array_equal(getattr(wide, what), getattr(narrow, what))
    for a, b in zip(
        wide.part_ids(0, wide.n_states), narrow.part_ids(0, narrow.n_states), strict=True
    ):
        assert (a == b).all()


@RANDOM
@given(flow=flows(), n_cpus=st.integers(1, 4), widths=st.sampled_from([(2, 1), (4, 2), (4, 1)]))
def test_both_searches_find_the_same_of_any_flow(flow, n_cpus, widths):
    compiled = flow.compile(n_cpus)
    assume(search(compiled, 1500, symmetric=False) is not None)
    ex, slow = assert_same_space(compiled, global_bytes=widths[0], slice_bytes=widths[1])
    far = distances(slow)
    for state, row in enumerate(records(ex)):
        assert len(ex.path(state)) - 1 == far[row.tobytes()]
        assert ex.state_of(row) == state
    together = assert_same_up_to_order(compiled, slow)
    if not together.symmetric:
        return
    shortest = {}
    for s, n in far.items():
        key = sorted_cpus(np.frombuffer(s, np.uint64), compiled.program)
        shortest[key] = min(n, shortest.get(key, n))
    for state, row in enumerate(records(together)):
        assert len(together.path(state)) - 1 == shortest[sorted_cpus(row, compiled.program)]


@RANDOM
@given(flow=flows(), n_cpus=st.integers(1, 4), symmetric=st.booleans(), data=st.data())
def test_a_counterexample_can_be_replayed_and_is_the_shortest(flow, n_cpus, symmetric, data):
    compiled = flow.compile(n_cpus)
    ex = search(compiled, 3000, symmetric=symmetric)
    assume(ex is not None)
    target = records(ex)[data.draw(st.integers(0, ex.n_states - 1))]
    x, y = flow.g.x.index, flow.g.y.index

    def is_not_there(s):
        return (s.g.x != target[x]) | (s.g.y != target[y])

    flow.always("not there", is_not_there)
    result = check(flow, n_cpus, symmetric=symmetric)
    there = [s for s, r in enumerate(records(ex)) if (r[x], r[y]) == (target[x], target[y])]
    assert result.violations["not there"] == min(len(ex.path(s)) - 1 for s in there)
    record = compiled.initial_record()
    for step in result.counterexample:
        compiled.program.step(record, *step.move)
    assert result.violations[result.property] == len(result.counterexample)
    if result.verdict == "violated":
        assert (record[x], record[y]) == (target[x], target[y])
    else:  # with fewer steps
        assert result.verdict == "deadlock" and not compiled.program.moves(record)


def test_an_each_that_numbers_the_cpus_is_not_sorted_away():
    flow = Flow("numbers")
    flow.globals(count=0)
    flow.per_cpu(kind=0, number=0)
    ap = flow.agent("AP", per_cpu=True)
    ap.at("start", op("is of kind 1", do=[put(flow.cpu.kind, 1)]))
    ap.at("wait")
    boot = flow.agent("boot CPU")
    boot.at(
        "number", op("all", do=[each(put(flow.other.number, flow.g.count), add(flow.g.count, 1))])
    )
    boot.at("done", ends=True)
    slow = plain(flow.compile(4), False)
    ex = assert_same_up_to_order(flow.compile(4), slow)
    assert not ex.symmetric
    flow.always(
        "kind 1 is never numbered 2 alone",
        lambda s: ~((s.cpu.kind == (s.cpu.number == 2)).all(axis=1) & (s.g.count == 3)),
    )
    result = check(flow, 4)
    assert result.verdict == "violated" and len(result.counterexample) == 2


# -- ids ---------------------------------------------------------------------------------------


def counting(n_slice_values=0, n_common_values=0):
    """A flow in which one AP, or the boot CPU, counts."""
    flow = Flow("counting")
    flow.globals(n=0)
    flow.per_cpu(n=0)
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    boot.at(
        "count",
        op("boot + 1", when=[flow.g.n < n_common_values], do=[add(flow.g.n, 1)], to="."),
        ends=True,
    )
    ap.at(
        "count",
        op("AP + 1", when=[flow.cpu.n < n_slice_values], do=[add(flow.cpu.n, 1)], to="."),
        ends=True,
    )
    return flow


@pytest.mark.parametrize(
    ("flow", "widths", "fits"),
    [
        (counting(n_slice_values=255), (2, 1), True),
        (counting(n_slice_values=256), (2, 1), False),
        (counting(n_slice_values=256), (2, 2), True),
        (counting(n_slice_values=65535), (2, 2), True),
        (counting(n_slice_values=65536), (2, 2), False),
        (counting(n_common_values=65535), (2, 1), True),
        (counting(n_common_values=65536), (2, 1), False),
        (counting(n_common_values=65536), (4, 1), True),
    ],
)
def test_ids_that_are_too_narrow_are_noticed_at_the_first_value_that_does_not_fit(
    flow, widths, fits
):
    compiled = flow.compile(2)
    ex = Explorer(
        compiled.program,
        compiled.initial_record(),
        global_bytes=widths[0],
        slice_bytes=widths[1],
    )
    if fits:
        assert explored(ex, 1 << 20)
        assert ex.n_states == max(ex.n_parts)
        return
    with pytest.raises(NarrowIds, match=r"\d+ global parts, \d+ slices"):
        explored(ex, 1 << 20)
    record = compiled.initial_record()
    assert ex.state_of(record) == 0
    # a part without an id of its own is no state, and none of those that are
    limit = ex.n_states
    record[flow.g.n.index] = limit if widths[0] == 2 and max(ex.n_parts) == ex.n_parts[0] else 0
    if not record[flow.g.n.index]:
        record[compiled.program.n_global + flow.cpu.n.index] = limit
    assert ex.state_of(record) == -1


@pytest.mark.parametrize("flow", [counting(n_slice_values=300), counting(n_common_values=66000)])
def test_check_starts_again_with_wider_ids(flow):
    result = check(flow, 2)
    assert (result.verdict, result.complete) == ("holds", True)
    assert result.states == result.depth + 1 == max(301 if result.states < 400 else 66001, 0)


def test_check_widens_both_ids():
    result = check(counting(n_slice_values=260, n_common_values=300), 2)
    assert (result.verdict, result.states) == ("holds", 261 * 301)


# -- memory ------------------------------------------------------------------------------------


def big(n_cpus=5):
    return compiled_scenario("sev-es-kexec/jump-table-ack-early", n_cpus)


@pytest.fixture(scope="module")
def whole():
    return search(big(), 1 << 30)


def bounds(largest):
    return [largest - 1, *(int(largest * share) for share in (0.9, 0.75, 0.6, 0.5, 0.4, 0.3))]


def test_a_bound_on_memory_is_kept_and_what_was_found_is_right(whole):
    known = [r.tobytes() for r in records(whole)]
    stopped = 0
    for bound in bounds(whole.n_bytes):
        compiled = big()
        try:
            ex = Explorer(compiled.program, compiled.initial_record(), max_bytes=bound)
        except MemoryLimit:
            continue
        assert ex.n_bytes <= bound
        with pytest.raises(MemoryLimit, match=r"\d+ states take"):
            explored(ex, 1 << 30)
        stopped += 1
        assert ex.n_bytes <= bound
        assert 0 < ex.n_states < whole.n_states
        assert ex.n_transitions <= whole.n_transitions
        found = [r.tobytes() for r in records(ex)]
        assert found == known[: len(found)]
        last = ex.n_states - 1
        assert ex.path(last) == whole.path(last)
        assert set(ex.terminals) <= set(whole.terminals)
        with pytest.raises(MemoryLimit):  # and it stays so
            explored(ex, 1 << 30)
        assert ex.n_bytes <= bound
    assert stopped >= 3


def test_parts_count_against_the_bound():
    compiled = counting(n_common_values=60000).compile(2)
    ex = Explorer(compiled.program, compiled.initial_record(), max_bytes=16 << 20)
    with pytest.raises(MemoryLimit):
        explored(ex, 1 << 30)
    assert ex.n_bytes <= 16 << 20
    assert ex.n_states > 10000


@pytest.mark.parametrize("bound", [-1, 0, 1, 1 << 20])
def test_a_bound_below_one_state_is_refused(bound):
    compiled = big()
    with pytest.raises(MemoryLimit):
        Explorer(compiled.program, compiled.initial_record(), max_bytes=bound)
    with pytest.raises(OutOfRange, match=rf"max_bytes {bound}: not even one state"):
        check(compiled.flow, compiled.n_others + 1, max_bytes=bound)


def test_check_says_that_it_is_not_complete_when_memory_ends(whole):
    for bound in bounds(whole.n_bytes):
        try:
            result = check(big().flow, 5, max_bytes=bound)
        except OutOfRange:
            continue
        assert result.n_bytes <= bound
        if not result.complete:
            assert result.verdict in ("unknown", "violated")
            break
    else:
        pytest.fail("no bound was reached")


def test_memory_that_ends_after_the_ids_were_widened_leaves_what_was_found():
    flow = counting(n_slice_values=70000)
    compiled = flow.compile(2)
    start = Explorer(compiled.program, compiled.initial_record()).n_bytes
    result = check(flow, 2, max_bytes=start)
    assert not result.complete and result.verdict == "unknown"
    assert 0 < result.states <= 65536


# -- growth, interruption, threads -------------------------------------------------------------


def test_tables_grow_many_times_over(whole):
    assert whole.n_states > 1 << 15  # twice the first index
    assert whole.n_parts[0] > 256
    every = records(whole)
    assert len({r.tobytes() for r in every}) == whole.n_states
    for state in range(0, whole.n_states, 997):
        assert whole.state_of(every[state]) == state
    strange = every[7].copy()
    strange[0] = 12345
    assert whole.state_of(strange) == -1


def test_more_states_than_a_chunk_of_keys():
    compiled = counting(n_slice_values=600, n_common_values=600).compile(2)
    ex = search(compiled, 1 << 30, slice_bytes=2)
    assert ex.n_states == 601 * 601 > 1 << 18
    assert ex.n_transitions == 2 * 600 * 601
    record = compiled.initial_record()
    record[compiled.flow.g.n.index] = 600
    record[compiled.program.n_global + compiled.flow.cpu.n.index] = 600
    assert ex.terminals.tolist() == [ex.state_of(record)]
    assert len(ex.path(ex.terminals[0])) == 1201


def test_pieces_find_what_one_call_finds():
    compiled = big(3)
    one, pieces = search(compiled, 1 << 30), Explorer(compiled.program, compiled.initial_record())
    at = 0
    while at < pieces.n_states:
        end = min(at + 7, pieces.n_states)
        pieces.expand(at, end)
        at = end
    assert (pieces.n_states, pieces.n_transitions) == (one.n_states, one.n_transitions)
    assert (records(pieces) == records(one)).all()
    assert pieces.terminals.tolist() == one.terminals.tolist()


@RANDOM
@given(flow=flows(), n_cpus=st.integers(1, 3), symmetric=st.booleans(), data=st.data())
def test_marks_reach_back_as_far_as_single_steps_say(flow, n_cpus, symmetric, data):
    compiled = flow.compile(n_cpus)
    ex = search(compiled, 600, symmetric=symmetric)
    assume(ex is not None)
    rows, program = records(ex), compiled.program
    after = []
    for row in rows:
        after.append(set())
        for move in program.moves(row):
            copy = row.copy()
            program.step(copy, *move)
            after[-1].add(ex.state_of(copy))
    marks = np.zeros(ex.n_states, dtype=np.uint8)
    marks[data.draw(st.lists(st.integers(0, ex.n_states - 1), max_size=3))] = 1
    expected, grown = set(np.flatnonzero(marks).tolist()), True
    while grown:
        more = {s for s, others in enumerate(after) if others & expected} - expected
        expected |= more
        grown = bool(more)
    before = ex.n_states, ex.n_transitions, ex.n_bytes, ex.terminals.tolist()
    ex.reach_back(marks)
    assert set(np.flatnonzero(marks).tolist()) == expected
    assert (ex.n_states, ex.n_transitions, ex.n_bytes, ex.terminals.tolist()) == before


def test_looking_back_leaves_a_search_that_was_cut_off_as_it_is():
    compiled = big(4)
    whole = search(compiled, 1 << 30)
    start = Explorer(compiled.program, compiled.initial_record())
    ex = Explorer(compiled.program, compiled.initial_record(), max_bytes=start.n_bytes + (1 << 16))
    with pytest.raises(MemoryLimit):
        explored(ex, 1 << 30)
    n_states = ex.n_states
    with contextlib.suppress(MemoryLimit):
        ex.reach_back(np.zeros(n_states, dtype=np.uint8))
    with contextlib.suppress(MemoryLimit):
        ex.expand(0, 0)  # what waited in the batch
    known = {r.tobytes() for r in records(whole)}
    assert {r.tobytes() for r in records(ex)} <= known


def test_states_that_are_skipped_are_not_searched():
    compiled = counting(n_common_values=5).compile(1)
    ex = Explorer(compiled.program, compiled.initial_record())
    ex.expand(0, 1, np.array([1], dtype=np.uint8))
    assert (ex.n_states, ex.n_transitions, ex.terminals.tolist()) == (1, 0, [])


@pytest.mark.parametrize(
    "use",
    [
        lambda ex: ex.expand(1, 0),
        lambda ex: ex.expand(0, 2),
        lambda ex: ex.expand(0, 1, np.zeros(2, np.uint8)),
        lambda ex: ex.part_ids(0, 2),
        lambda ex: ex.part_ids(1, 0),
        lambda ex: ex.path(1),
        lambda ex: ex.state_of(np.zeros(3, np.uint64)),
    ],
)
def test_numbers_of_states_that_do_not_exist_are_refused(use):
    compiled = counting(n_common_values=5).compile(2)
    ex = Explorer(compiled.program, compiled.initial_record())
    with pytest.raises(OutOfRange):
        use(ex)
    with pytest.raises(OverflowError):
        ex.path(-1)
    assert ex.part_ids(1, 1)[0].shape == (0,)


@pytest.mark.parametrize(
    "options", [{"global_bytes": 1}, {"slice_bytes": 4}, {"global_bytes": 8}, {"slice_bytes": 0}]
)
def test_ids_of_another_width_are_refused(options):
    compiled = counting().compile(2)
    with pytest.raises(OutOfRange, match="ids of"):
        Explorer(compiled.program, compiled.initial_record(), **options)


def test_64_cpus_are_the_most():
    compiled = counting(n_slice_values=1).compile(64)
    ex = search(compiled, 1 << 30, global_bytes=4, slice_bytes=2)
    assert ex.n_states == 64
    compiled = counting().compile(65)
    with pytest.raises(OutOfRange, match="65 CPUs"):
        Explorer(compiled.program, compiled.initial_record())


def test_an_interrupt_ends_a_search_that_can_go_on():
    compiled = counting(n_slice_values=600, n_common_values=600).compile(2)
    ex = search(compiled, 1 << 30, slice_bytes=2)
    n_states = ex.n_states
    assert n_states > 1 << 18

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            for _ in range(1000):
                ex.expand(0, n_states)  # finds nothing new; signals are seen inside
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    transitions = ex.n_transitions
    ex.expand(0, n_states)
    assert ex.n_states == n_states
    assert ex.n_transitions == transitions + 2 * 600 * 601


def test_a_second_thread_is_refused_and_harms_nothing():
    compiled = counting(n_slice_values=600, n_common_values=600).compile(2)
    ex = search(compiled, 1 << 30, slice_bytes=2)
    n_states, paths = ex.n_states, ex.path(ex.n_states - 1)
    refused, stop = set(), threading.Event()

    def meddle():
        while not stop.wait(0.0005):  # a pause: the search must get its turn too
            for use in (
                lambda: ex.expand(0, 1),
                lambda: ex.part_ids(0, 10),
                lambda: ex.path(n_states - 1),
                lambda: ex.state_of(compiled.initial_record()),
                ex.tables,
            ):
                try:
                    use()
                except StateConflict as error:
                    refused.add(str(error))

    threads = [threading.Thread(target=meddle) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):  # each takes milliseconds without the GIL
            with contextlib.suppress(StateConflict):
                ex.expand(0, n_states)
            if refused:
                break
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    ex.expand(0, n_states)
    assert ex.n_states == n_states == 601 * 601
    assert ex.path(n_states - 1) == paths
    assert refused == {"the explorer is in use"}


def in_child(text):
    """Run Python in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(text)],  # -P: not the uncompiled tree
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_explorers_and_simulators_do_not_leak():
    grown = in_child("""
        import gc, resource
        from ghcbcore.explorer import Explorer, MemoryLimit
        from ghcbcore.simulator import Simulator
        from pysev.machine import Machine
        from pysev.scenarios import find

        machine = Machine.of(4)
        flow = find("sev-es-kexec/jump-table-nmi").build(machine)

        def once():
            compiled = flow.compile(4)
            for bound in (8 << 30, 3_700_000):
                try:
                    ex = Explorer(compiled.program, compiled.initial_record(), max_bytes=bound)
                    low = 0
                    while low < ex.n_states:
                        high = ex.n_states
                        ex.expand(low, high)
                        low = high
                    ex.tables(), ex.part_ids(0, ex.n_states), ex.terminals
                except MemoryLimit:
                    pass
            simulator = Simulator(compiled.program, compiled.initial_record(), 1)
            simulator.advance(1000)
            simulator.events()

        def resident():
            gc.collect()
            with open("/proc/self/statm") as f:
                return int(f.read().split()[1]) * resource.getpagesize()

        for _ in range(10):
            once()
        before = resident()
        for _ in range(60):
            once()
        print(resident() - before)
    """)
    assert int(grown) < 4 << 20  # one explorer alone takes more than 3 MiB


def test_tables_outlive_their_explorer():
    compiled = big(3)
    ex = search(compiled, 1 << 30)
    parts, slices = ex.tables()
    copies = parts.copy(), slices.copy()
    del ex
    gc.collect()
    assert (parts == copies[0]).all() and (slices == copies[1]).all()
    for table in (parts, slices):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 1


def test_tables_that_were_asked_for_early_stay_as_they_were():
    compiled = big()
    ex = Explorer(compiled.program, compiled.initial_record())
    parts, slices = ex.tables()
    copies = parts.copy(), slices.copy()
    assert explored(ex, 1 << 30)
    assert ex.n_parts[0] > 256
    assert (parts == copies[0]).all() and (slices == copies[1]).all()


def test_one_program_serves_many_explorers():
    compiled = big(3)
    several = [Explorer(compiled.program, compiled.initial_record()) for _ in range(3)]
    low, done = [0, 0, 0], 0
    while done < 3:
        done = 0
        for i, ex in enumerate(several):
            end = min(low[i] + 1 + i, ex.n_states)
            ex.expand(low[i], end)
            low[i] = end
            done += end == ex.n_states
    assert len({(ex.n_states, ex.n_transitions) for ex in several}) == 1


def test_conditional_effects_are_remembered_by_what_they_read():
    flow = Flow("conditional")
    flow.globals(x=0, y=0)
    flow.per_cpu(seen=0)
    ap, boot = flow.agent("AP", per_cpu=True), flow.agent("boot CPU")
    look = when(flow.g.x == 1, put(flow.cpu.seen, 2), otherwise=[put(flow.cpu.seen, 1)])
    ap.at("look", op("look", do=[look]))
    ap.at("done", ends=True)
    boot.at("put", op("put", do=[put(flow.g.x, 1)]))
    boot.at("done", ends=True)
    _, slow = assert_same_space(flow.compile(3))
    ex = assert_same_up_to_order(flow.compile(3), slow)
    seen = flow.cpu.seen.index
    slices = records(ex)[:, ex.program.n_global :].reshape(-1, ex.program.n_slice)
    assert set(slices[:, seen].tolist()) == {0, 1, 2}
