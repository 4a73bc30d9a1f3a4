"""Orders of events as columns, scripts and diagrams, and flows as pseudocode and charts."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from diagrams import read_sequence
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_flows import flows

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, StateConflict
from ghcbcore.simulator import EVENT_DTYPE, Simulator
from pysev import check, frames
from pysev.checking import DEADLOCK, LIVELOCK
from pysev.flow import Flow, add, each, op, put
from pysev.showing.picture import svg_sequence
from pysev.showing.pseudocode import pseudocode
from pysev.showing.replay import replay
from pysev.showing.script import BadScript, named_moves, read_script, script_text
from pysev.showing.sequence import mermaid_sequence
from pysev.showing.story import play
from pysev.showing.timeline import WIDTH, timeline

HEAD = "scenario x\ncpus {}\n"


def relay(n_extra=0):
    """The boot CPU calls everybody, each AP answers; an answer of the last one is lost."""
    flow = Flow("relay")
    flow.globals(called=0, answers=0, noise=0)
    flow.per_cpu(asked=0, private=0)
    g, cpu, other = flow.g, flow.cpu, flow.other
    boot = flow.agent("boot CPU")
    boot.at("call", op("calls all", do=[each(put(other.asked, 1)), add(g.noise, 1)]))
    boot.at("choose", op("chooses", pick=True, when=[other.asked == 0], do=[put(g.called, 1)]))
    boot.at("done", ends=True)
    ap = flow.agent("AP", per_cpu=True)
    ap.at("wait", op("answers", when=[cpu.asked == 1], do=[put(cpu.asked, 0), add(g.answers, 1)]))
    ap.at("rest", *(op(f"extra {i}", do=[add(cpu.private, 1)], to=".") for i in range(n_extra)))
    ap.ends.add("rest")
    return flow


def steps_of(flow, n_cpus, *lines):
    """Play lines of a script."""
    text = HEAD.format(n_cpus) + "".join(f"{line}\n" for line in lines)
    return replay(flow, read_script(text.encode(), "s"))


def told(*lines, n_cpus=4, flow=None):
    return steps_of(flow or relay(), n_cpus, *lines).story


ALL = ("boot CPU: calls all", "AP 1: answers", "AP 2: answers", "AP 3: answers")


# -- columns -----------------------------------------------------------------------------------


def test_cpus_that_do_the_same_share_rows_and_a_column():
    lines = timeline(told(*ALL)).splitlines()
    assert lines[0].split("  ")[-1].strip() == "CPUs 1-3" and "CPU 0" in lines[0]
    assert [line.split()[:2] for line in lines[3:6]] == [
        ["1", "calls"],
        ["(CPUs", "1-3:"],
        ["2-4", "answers"],
    ]


def test_a_cpu_that_does_something_else_has_its_own_column():
    story = told(*ALL, "boot CPU: chooses (CPU 2)", flow=relay())
    assert "CPUs 1-3" in timeline(story).splitlines()[0]
    story = told(*ALL[:3], "boot CPU: chooses (CPU 2)", "AP 3: answers")
    heads = timeline(story).splitlines()[0]
    assert "CPUs 1-2" in heads and "CPU 3" in heads


def test_columns_are_cpu_0_then_cpus_then_all_else():
    flow = Flow("order")
    for name, per_cpu in (("memory", False), ("AP", True), ("crash CPU", False)):
        flow.agent(name, per_cpu=per_cpu).at("a", op(f"{name} acts", to="."), ends=True)
    story = told("memory: memory acts", "AP 1: AP acts", "crash CPU: crash CPU acts", flow=flow)
    first, second = (re.split("  +", s.strip()) for s in timeline(story).splitlines()[:2])
    assert (first, second) == (["CPU 0", "CPU 1", "memory"], ["crash CPU", "AP"])


def test_a_page_is_shown_by_the_views_that_changed():
    flow = Flow("page")
    page = frames.declare(flow, "page", 1)
    flow.globals(answer=0)
    boot, host = flow.agent("boot CPU"), flow.agent("host")
    to_guest = frames.happen(page, 0, frames.rmpupdate(True), flow.g.answer)
    host.at("give", op("RMPUPDATE", do=[to_guest]))
    host.at("end", ends=True)
    word = page.words[0][0]
    mask = (1 << lib.FRAME_MAPPING_WIDTH) - 1
    shared = word & (mask << lib.FRAME_MAPPING_SHIFT)
    private = lib.FRAME_PRIVATE << lib.FRAME_MAPPING_SHIFT
    validate = frames.happen(page, 0, frames.pvalidate(True), flow.g.answer)
    boot.at(
        "map",
        op("maps", do=[frames.happen(page, 0, frames.map_as(lib.FRAME_PRIVATE), flow.g.answer)]),
    )
    boot.at("use", op("PVALIDATE", when=[shared == private], do=[validate]))
    boot.at("end", ends=True)
    story = told("host: RMPUPDATE", "boot CPU: maps", "boot CPU: PVALIDATE", n_cpus=1, flow=flow)
    text = timeline(story)
    assert "(page_0: RMP hypervisor -> guest_invalid)" in text
    assert "(page_0: page table unmapped -> private)" in text
    assert (0, "boot CPU") in {(step, actor.name) for step, actor in story.arrows}
    assert "wait until page_0's page table == private: PVALIDATE" in pseudocode(flow)


def test_an_agent_that_does_nothing_has_no_column():
    assert "AP" not in timeline(told("boot CPU: calls all")).splitlines()[1]


def test_only_changes_that_somebody_else_acts_on_are_shown_until_the_last_step():
    text = timeline(told(*ALL[:3]))
    assert "(CPUs 1-3: asked 0 -> 1)" in text
    assert "noise" not in text and "private" not in text
    assert "answers 0" not in text and "(answers 1 -> 2)" in text  # the last step shows all
    everything = timeline(told(*ALL[:3]), everything=True)
    assert "(noise 0 -> 1)" in everything and "(asked 1 -> 0)" in everything


def test_a_word_of_all_is_shown_from_its_first_to_its_last_value():
    assert "(answers 0 -> 3)" in timeline(told(*ALL), everything=True)


def test_a_mark_stands_after_its_step_and_ends_the_row():
    lines = timeline(told(*ALL), {2: "broken here"}).splitlines()
    at = next(i for i, line in enumerate(lines) if "*** broken here" in line)
    assert re.match(r" +2  ", lines[at - 1]) or re.match(r" +2  ", lines[at - 2])
    assert any(re.match(r" +3-4  ", line) for line in lines[at:])


def test_a_mark_before_the_first_step_is_shown():
    assert timeline(told(), {0: "broken"}) == "  *** broken\n"
    assert timeline(told(*ALL), {0: "broken"}).splitlines()[0].strip() == "*** broken"


def test_more_than_six_agents_are_a_list():
    flow = relay(1)
    lines = ["boot CPU: calls all"]
    for i in range(1, 8):
        lines += [f"AP {i}: answers"] + [f"AP {i}: extra 0"] * i
    shown = timeline(told(*lines, n_cpus=8, flow=flow)).splitlines()
    assert "boot CPU  calls all" in shown[0]
    assert not any("----" in line for line in shown)
    assert any(re.match(r" +\d+  AP 7 +extra 0$", line) for line in shown)


@pytest.mark.parametrize("n_columns", [1, 2, 6, 7])
def test_lines_fit_into_a_mail_whatever_the_texts(n_columns):
    flow = Flow("wide")
    flow.globals(a_word_with_quite_a_long_name=0)
    word = flow.g.a_word_with_quite_a_long_name
    texts = ["x" * 150, "many words " * 30, "s"]
    for i in range(n_columns):
        agent = flow.agent(f"agent {i} of a rather long name that goes on")
        agent.at("a", *(op(t, do=[add(word, 1)], to=".") for t in texts), ends=True)
    compiled = flow.compile(1)
    moves = [m for _ in range(3) for m in compiled.program.moves(compiled.initial_record())]
    text = timeline(play(compiled, moves), {2: "long " * 60}, everything=True)
    assert max(map(len, text.splitlines())) <= WIDTH


# -- the story ---------------------------------------------------------------------------------


def test_an_arrow_goes_to_who_acts_on_a_change():
    story = told(*ALL[:2], "boot CPU: chooses (CPU 1)")
    arrows = {(step, actor.name) for step, actor in story.arrows}
    assert arrows == {(0, "AP 1"), (1, "boot CPU")}


def test_the_steps_of_a_story_are_those_of_the_counterexample():
    flow = relay()
    flow.always("not all", lambda s: s.g.answers < 2)
    result = check(flow, 3)
    story = play(flow.compile(3), [s.move for s in result.counterexample])
    assert [m.actor.name for m in story.moments] == [s.agent for s in result.counterexample]
    assert [m.full_text for m in story.moments] == [s.op for s in result.counterexample]
    assert int(story.last[flow.g.answers.index]) == 2


# -- scripts -----------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(flows(), st.integers(1, 4), st.integers(0, 12), st.data())
def test_a_script_of_any_walk_plays_the_same_walk_and_can_be_drawn(flow, n_cpus, n_steps, data):
    compiled = flow.compile(n_cpus)
    record, moves = compiled.initial_record(), []
    for _ in range(n_steps):
        possible = compiled.program.moves(record)
        if not possible:
            break
        moves.append(data.draw(st.sampled_from(possible)))
        compiled.program.step(record, *moves[-1])
    story = play(compiled, moves)
    assert np.array_equal(story.last, record)
    script = read_script(script_text(story, "x", "4G").encode(), "s")
    assert (script.scenario, script.n_cpus, script.memory) == ("x", n_cpus, "4G")
    again = replay(flow, script)
    assert np.array_equal(again.story.last, record)
    text = timeline(story, again.marks(), everything=True)
    assert all(len(line) <= WIDTH for line in text.splitlines())
    read_sequence(mermaid_sequence(story, again.marks()))
    ET.fromstring(svg_sequence(story, "t", again.marks()))


def test_two_different_things_of_one_name_have_numbers():
    flow = Flow("two")
    flow.globals(a=0)
    boot = flow.agent("boot CPU")
    same = [op("sets", do=[put(flow.g.a, n)], to="end") for n in (1, 1, 2)]
    boot.at("start", *same)
    boot.at("end", ends=True)
    compiled = flow.compile(1)
    named = named_moves(compiled, compiled.initial_record())
    assert {text: len(moves) for text, moves in named.items()} == {
        "boot CPU: sets": 2,
        "boot CPU: sets [2]": 1,
    }
    assert int(told("boot CPU: sets [2]", n_cpus=1, flow=flow).last[flow.g.a.index]) == 2
    assert int(told("boot CPU: sets", n_cpus=1, flow=flow).last[flow.g.a.index]) == 1


def test_comments_blanks_and_left_out_cpus_are_taken():
    result = steps_of(
        relay(),
        2,
        "# nothing",
        "  boot CPU:   calls   all   # everybody",
        "",
        "AP 1: answers #",
        "boot CPU: chooses",
    )
    assert [m.full_text for m in result.story.moments] == [
        "calls all",
        "answers",
        "chooses (CPU 1)",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("AP 2: answers", "s:3: 'AP 2: answers' is not possible: AP 2 is at 'wait'"),
        ("AP 9: answers", "s:3: AP 9: there are AP 1 to 3"),
        ("AP 0: answers", "s:3: AP 0: there are AP 1 to 3"),
        ("AP 1: anwsers", "s:3: AP 1 has no operation 'anwsers', the nearest is 'answers'"),
        ("boot CPU: zzz", "s:3: boot CPU has no operation 'zzz'; possible here: boot CPU: calls"),
        ("VMM: answers", "s:3: 'VMM: answers': no agent of this flow; it has boot CPU, AP 1 to 3"),
        ("nonsense", "s:3: 'nonsense': no agent of this flow"),
        ("boot CPU: calls all (CPU 2)", "s:3: 'boot CPU: calls all .CPU 2.' is not possible"),
    ],
)
def test_a_step_that_does_not_fit_names_line_reason_and_what_is_possible(line, message):
    with pytest.raises(BadScript, match=message) as refused:
        steps_of(relay(), 4, line)
    assert "possible here: boot CPU: calls all" in str(refused.value)


def test_a_step_that_binds_any_of_several_cpus_must_say_which():
    with pytest.raises(BadScript, match=r"s:6: boot CPU: chooses: which CPU\? .*\(CPU 1\)"):
        steps_of(relay(), 4, *ALL[:3], "boot CPU: chooses")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "s: no `scenario NAME` in it"),
        (b"\x7fELF\x02\x00", "s:1: not a text"),
        (b"\xff\xfe", "s:1: not a text in UTF-8"),
        (b"a" * 5000, "s:1: a line of more than 4096 bytes"),
        (b"\n" * (4 << 20) + b"x", "s: more than 4194304 bytes"),
        (b"boot CPU: x\n", "s:1: 'boot CPU: x': a script begins with `scenario NAME`"),
        (b"scenario x\n", "s: no `cpus N` in it"),
        (b"scenario x\ncpus many\n", "s:2: cpus 'many': not a number of CPUs"),
        (b"scenario x\ncpus -1\n", "s:2: cpus '-1'"),
        (b"scenario x\nscenario y\n", "s:2: `scenario` stands there twice"),
        (b"scenario\n", "s:1: `scenario` says nothing"),
        (b"scenario x\ncpus 1\nmemory 1G\nmemmap f\n", "s:4: give `memory` or `memmap`, not both"),
        (b"scenario x\ncpus 1\n# expect fire\n", "s:3: expect holds or violated or deadlock"),
        (b'scenario x\ncpus 1\n# expect holds "a" b\n', "s:3: expect holds or"),
        (b"# expect holds\n# expect holds\n", "s:2: `expect` stands there twice"),
    ],
)
def test_a_file_that_is_no_script_is_refused(data, message):
    with pytest.raises(BadScript, match=message):
        read_script(data, "s")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_script_or_refused(data):
    for text in (data, b"scenario x\ncpus 2\n" + data):
        try:
            replay(relay(), read_script(text, "s"))
        except (BadScript, OutOfRange) as error:  # as many CPUs as no machine has
            assert str(error)


# -- verdicts of a replay ----------------------------------------------------------------------


def test_a_replay_says_after_which_step_a_property_broke():
    flow = relay()
    flow.always("fewer than two", lambda s: s.g.answers < 2)
    flow.always("true", lambda s: s.g.answers < 9)
    result = steps_of(flow, 4, *ALL)
    assert (result.verdict, result.first, result.broken) == (
        "violated",
        "fewer than two",
        {"fewer than two": 3},
    )
    assert "fewer than two" in result.marks()[3]


def test_a_property_that_is_broken_from_the_start_breaks_after_step_0():
    flow = relay()
    flow.always("never", lambda s: s.g.answers == 9)
    assert steps_of(flow, 2).broken == {"never": 0}


@pytest.mark.parametrize(("lines", "verdict"), [((), "holds"), (ALL[:1], "holds")])
def test_where_an_end_can_still_be_reached_it_holds(lines, verdict):
    result = steps_of(relay(), 2, *lines)
    assert result.verdict == verdict and result.possible


def test_where_somebody_waits_for_ever_it_is_a_deadlock():
    flow = Flow("stuck")
    flow.globals(a=0)
    boot = flow.agent("boot CPU")
    boot.at("start", op("goes"), op("stops", to="stuck"))
    boot.at("end", ends=True)
    boot.at("stuck", op("never", when=[flow.g.a == 1], to="end"))
    stuck = steps_of(flow, 1, "boot CPU: stops")
    assert (stuck.verdict, stuck.broken, stuck.possible) == ("deadlock", {DEADLOCK: 1}, ())
    assert steps_of(flow, 1, "boot CPU: goes").verdict == "holds"
    flow.at_end("a is set", lambda s: s.g.a == 1)
    assert steps_of(flow, 1, "boot CPU: stops").first == "a is set"


def test_where_no_end_can_be_reached_any_more_it_is_one_too():
    flow = Flow("loop")
    flow.globals(turned=0)
    boot = flow.agent("boot CPU")
    boot.at("start", op("into the loop"), op("out", to="end"))
    boot.at("loop", op("turns", do=[put(flow.g.turned, 1)], to="."))
    boot.at("end", ends=True)
    result = steps_of(flow, 1, "boot CPU: into the loop")
    assert (result.verdict, result.broken) == ("deadlock", {LIVELOCK: 1})
    assert check(flow, 1).property == LIVELOCK


def test_a_search_for_an_end_is_given_up_some_time(monkeypatch):
    flow = Flow("counts")
    flow.globals(n=0)
    boot = flow.agent("boot CPU")
    boot.at("count", op("+ 1", do=[add(flow.g.n, 1)], to="."))
    with monkeypatch.context() as m:
        m.setattr("pysev.showing.replay.MAX_SEARCHED", 50)
        assert steps_of(flow, 1).verdict == "unknown"
    monkeypatch.setattr("pysev.showing.replay.MAX_SEARCHED_BYTES", 1 << 10)
    assert steps_of(flow, 1).verdict == "unknown"
    assert steps_of(relay(), 100).verdict == "unknown"  # one state is more than that


@pytest.mark.parametrize(
    ("expected", "met"),
    [
        ('# expect violated "few"', True),
        ("#expect violated", True),
        ('expect violated "other"', False),
        ("# expect holds", False),
        ('# expect deadlock "few"', False),
        ("# as expected", None),
    ],
)
def test_what_is_expected_is_looked_at(expected, met):
    flow = relay()
    flow.always("few", lambda s: s.g.answers < 2)
    flow.always("other", lambda s: s.g.answers < 9)
    assert steps_of(flow, 4, expected, *ALL).as_expected is met


def test_an_unknown_property_cannot_be_expected():
    with pytest.raises(BadScript, match="s:3: no property 'x'"):
        steps_of(relay(), 2, '# expect violated "x"')


# -- what was asked of the host ----------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(flows(), st.integers(1, 3), st.integers(0, 2**64 - 1))
def test_traced_steps_note_what_the_simulator_notes(flow, n_cpus, seed):
    compiled = flow.compile(n_cpus)
    program = compiled.program
    simulator = Simulator(program, compiled.initial_record(), seed)
    mine = compiled.initial_record()
    for _ in range(30):
        n_before = len(simulator.events())
        if not simulator.advance(1):
            break
        new = simulator.events()[n_before:]
        for move in program.moves(mine):
            after, plain = mine.copy(), mine.copy()
            room = np.zeros(int(program.alts[move[0]]["n_effects"]) * n_cpus, EVENT_DTYPE)
            n = program.traced_step(after, room, *move, now_ns=7)
            program.step(plain, *move)
            assert np.array_equal(after, plain)
            same = len(new) == n and all(
                (new[name] == room[:n][name]).all()
                for name in EVENT_DTYPE.names
                if name not in ("time_ns", "took_ns")
            )
            assert (room[:n]["time_ns"] == 7).all()
            if same and np.array_equal(after, simulator.record):
                mine = after
                break
        else:
            raise AssertionError("no step does what the simulator did")


def test_too_little_room_for_events_is_refused_before_anything_happens():
    compiled = relay().compile(3)
    record = compiled.initial_record()
    before = record.copy()
    with pytest.raises(OutOfRange, match="alt 0: room for 1 events"):
        compiled.program.traced_step(record, np.zeros(1, EVENT_DTYPE), 0)
    with pytest.raises(OutOfRange, match="alt 99"):
        compiled.program.traced_step(record, np.zeros(1, EVENT_DTYPE), 99)
    with pytest.raises(StateConflict):
        compiled.program.traced_step(record, np.zeros(40, EVENT_DTYPE), 2, 0)
    assert np.array_equal(record, before)


# -- pseudocode --------------------------------------------------------------------------------


def test_pseudocode_says_waits_races_loops_and_what_is_set():
    flow = relay()
    flow.agents[1].add("rest", op("goes back", when=[flow.cpu.asked == 1], to="wait"))
    text = pseudocode(flow)
    assert text == (
        "boot CPU\n"
        "    calls all  { every other CPU: its asked := 1 }\n"
        "    wait for a CPU with its asked == 0: chooses\n"
        "  done:\n"
        "    rests\n"
        "\n"
        "each AP: one for every CPU but the boot CPU\n"
        "  wait:\n"
        "    wait until asked == 1: answers  { asked := 0 }\n"
        "    either  if asked == 1: goes back; goto wait\n"
        "    or      rests\n"
    )
