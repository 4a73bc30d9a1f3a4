"""Counterexamples as users send them: saved, edited, played again, drawn; and flows as graphs."""

import contextlib
import io
import json
import os
import re
import resource
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from diagrams import read_dot, read_flowchart, read_sequence

from pysev import Machine, all_scenarios, check
from pysev.cli import main
from pysev.showing.replay import replay
from pysev.showing.script import read_script, script_text
from pysev.showing.story import play
from pysev.showing.timeline import WIDTH, timeline

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SCRIPTS = sorted((EXAMPLES / "replay").glob("*.txt"))
MAILBOX = "sev-es-kexec/mailbox-no-test"
OWN = f"{EXAMPLES / 'own_flow.py'}:lost_wake_up"
FAILING = [s for s in all_scenarios() if s.expected != "holds"]
SVG = "{http://www.w3.org/2000/svg}"


def run(*args, stdin=b""):
    """Run a command in this process; return status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    was = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(map(str, args)))
    finally:
        sys.stdin = was
    return status, out.getvalue(), err.getvalue()


def refused(*args, stdin=b""):
    """Return the one line with which a command is refused."""
    status, out, err = run(*args, stdin=stdin)
    assert (status, out, err.count("\n")) == (2, "", 1), (status, out, err)
    return err


@pytest.fixture(scope="module")
def saved():
    """A counterexample as a script."""
    status, out, err = run("check", MAILBOX, "--cpus", "3", "--save", "-")
    assert (status, err) == (1, "")
    return out


@pytest.fixture
def script(tmp_path, saved):
    """The script in a file, and a function that writes it changed."""
    path = tmp_path / "bug.txt"
    path.write_text(saved)
    return path


def edited(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


# -- every failing scenario --------------------------------------------------------------------


@pytest.mark.parametrize("scenario", FAILING, ids=lambda s: s.name)
@pytest.mark.parametrize("n_cpus", [2, 4])
def test_a_saved_counterexample_breaks_the_same_property_again(scenario, n_cpus):
    n_cpus = scenario.n_cpus(max(n_cpus, scenario.from_cpus))
    flow = scenario.build(Machine.of(n_cpus, jump_table=scenario.jump_table))
    result = check(flow, n_cpus)
    story = play(flow.compile(n_cpus), [step.move for step in result.counterexample])
    text = script_text(story, scenario.name, "4G", (result.verdict, result.property))
    again = replay(flow, read_script(text.encode(), "s"))
    assert (again.verdict, again.first) == (result.verdict, result.property)
    assert again.as_expected and again.broken[again.first] == len(story.moments)
    lines = timeline(story).splitlines()
    assert all(len(line) <= WIDTH for line in lines)


@pytest.mark.parametrize("scenario", all_scenarios(), ids=lambda s: s.name)
def test_every_scenario_has_a_graph_that_fits_into_a_mail(scenario):
    status, text, err = run("graph", scenario.name)
    assert (status, err) == (0, "")
    assert all(len(line) <= WIDTH for line in text.splitlines())
    found = {}
    for how in ("mermaid", "dot", "svg", "json"):
        status, found[how], err = run("graph", scenario.name, f"--{how}", *["-"] * (how != "json"))
        assert (status, err) == (0, "")
    agents, nodes, edges = read_flowchart(found["mermaid"])
    dot_nodes, dot_edges = read_dot(found["dot"])
    described = json.loads(found["json"])["agents"]
    assert len(agents) == len(described)
    assert len(nodes) == len(dot_nodes) == sum(len(a["labels"]) for a in described)
    assert len(edges) == len(dot_edges)
    ET.fromstring(found["svg"])
    for agent in described:
        for label in agent["labels"]:
            for op in label["operations"]:
                assert op["op"].split()[0] in text


# -- check -------------------------------------------------------------------------------------


def test_check_shows_columns_and_writes_all_forms_at_once(tmp_path):
    paths = {how: tmp_path / f"x.{how}" for how in ("save", "mermaid", "svg")}
    options = [part for how, path in paths.items() for part in (f"--{how}", path)]
    status, text, err = run("check", MAILBOX, "--cpus", "3", *options)
    assert (status, err) == (1, "")
    lines = text.splitlines()
    at = lines.index("the shortest order of events (15 steps):")
    heads = ["CPU 0", "CPU 1", "CPU 2", "new kernel's memory"]
    assert re.split("  +", lines[at + 1].strip()) == heads
    assert "*** violated: no foreign fetch" in text
    people, events = read_sequence(paths["mermaid"].read_text())
    assert len(people) == 4 and events[-1][2] == "violated: no foreign fetch"
    assert ("arrow", ("p3", "p1"), "14. takes the old kernel's text") in events
    shown = [e.text for e in ET.parse(paths["svg"]).iter(f"{SVG}text")]
    assert "violated: no foreign" in shown and "boot CPU" in shown
    assert paths["save"].read_text().splitlines()[2] == f"scenario {MAILBOX}"


def test_where_nothing_is_found_nothing_is_written(tmp_path):
    path = tmp_path / "none.txt"
    status, text, err = run("check", "sev-es-kexec/mailbox", "--save", path)
    assert (status, err) == (0, "") and not path.exists()
    assert text.splitlines()[-1] == f"no counterexample: {path} is not written"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--all", "--save", "f"), "take one scenario, not --all"),
        ((MAILBOX, "--save", "-", "--svg", "-"), "two exports to one place"),
        ((MAILBOX, "--save", "f", "--svg", "f"), "two exports to one place"),
        ((MAILBOX, "--save", ""), "an export without a name"),
        ((MAILBOX, "--save", "/nowhere/f"), "/nowhere/f: No such file"),
        ((MAILBOX, "--svg", "\0"), "null byte"),
        (("own.py:x",), "own.py: No such file"),
        ((f"{EXAMPLES / 'own_flow.py'}:nothing",), "has no 'nothing'"),
        ((f"{EXAMPLES / 'own_flow.py'}:parking",), "takes handler_skips_hlt"),
    ],
)
def test_check_refuses_what_does_not_go_together(args, message):
    assert message in refused("check", *args)


def test_a_flow_of_ones_own_is_checked_saved_and_played(tmp_path):
    path = tmp_path / "own.txt"
    status, text, err = run("check", OWN, "--cpus", "3", "--save", path)
    assert (status, err) == (1, "")
    assert text.splitlines()[-1].startswith("verdict: deadlock: ") and "expected" not in text
    assert "a script cannot run by itself" in refused("run", "--replay", path)
    status, text, err = run("run", OWN, "--replay", path)
    assert (status, err) == (1, "") and "as expected" in text
    assert "is for" in refused("run", OWN.replace("lost", "kept"), "--replay", path)
    edited(path, "lost_wake_up", "kept_wake_up")
    assert "'AP 1: NMI, returns to HLT'" not in path.read_text().splitlines()[0]
    fixed = OWN.replace("lost", "kept")
    assert "AP 1 has no operation 'NMI, returns to HLT'" in refused("run", fixed, "--replay", path)
    status, text, err = run("graph", OWN)
    assert (status, err) == (0, "") and "wait until nmi_pending == 1" in text


def test_json_of_a_flow_of_ones_own_expects_nothing():
    status, text, err = run("check", OWN, "--json")
    result = json.loads(text)
    assert (status, err, result["verdict"]) == (1, "", "deadlock")
    assert ("expected" not in result and len(result["counterexample"]) == 6) or result["depth"]


# -- replay ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_the_example_scripts_come_out_as_they_say(path):
    status, text, err = run("run", "--replay", path)
    expected = 0 if "\n# expect holds\n" in path.read_text() else 1
    assert (status, err) == (expected, "")
    assert ", as expected" in " ".join(text[text.index("\nverdict: ") :].split())
    assert all(len(line) <= WIDTH for line in text.splitlines() if str(path) not in line)


def test_a_replay_says_after_which_step_what_broke(script):
    status, text, err = run("run", "--replay", script)
    assert (status, err) == (1, "")
    assert "(ipi 1 -> 0)" in text  # every change, not only those that matter
    assert '*** "no foreign fetch" does not hold' in text
    assert " ".join(text.split()).endswith("does not hold after step 15.")


def test_a_replay_is_read_from_standard_input(saved):
    status, text, _ = run("run", "--replay", "-", stdin=saved.encode())
    assert status == 1 and "standard input: 15 steps" in text


def test_a_replay_as_json(script):
    status, text, err = run("run", "--replay", script, "--json")
    result = json.loads(text)
    assert (status, err) == (1, "")
    assert (result["verdict"], result["property"]) == ("violated", "no foreign fetch")
    assert result["violations"] == {"no foreign fetch": 15} and result["as_expected"] is True
    assert len(result["steps"]) == 15 and result["steps"][-1]["agent"] == "AP 1"
    assert result["vmgexits"] == {"nae:ap_jump_table": 1, "msr:sev_info": 1}


def test_a_replay_is_written_as_a_trace_that_is_read_back(script, tmp_path):
    trace, tracks = tmp_path / "t.txt", tmp_path / "t.json"
    status, _, err = run("run", "--replay", script, "--trace", trace, "--perfetto", tracks)
    assert (status, err) == (1, "")
    assert trace.read_text().count("kvm_vmgexit") == 4
    assert {e["ph"] for e in json.loads(tracks.read_text())} >= {"M", "X"}
    status, text, _ = run("trace", trace)
    assert status in (0, 1) and "ap_jump_table" in text
    status, text, _ = run("run", "--replay", script, "--mermaid", "-")
    assert status == 1
    read_sequence(text)


def test_a_step_left_out_is_named_where_it_is_missed(script):
    edited(script, "boot CPU: kexec -e: REBOOT_VECTOR to all other CPUs\n", "")
    message = refused("run", "--replay", script)
    assert f"{script}:11: 'AP 1: REBOOT_VECTOR interrupt' is not possible: AP 1 is at" in message
    assert "possible here: boot CPU: kexec -e" in message


def test_a_script_edited_by_hand_still_plays(script):
    # AP 2 is not needed for it, nor is the last step but one's CPU; a step more does no harm
    edited(script, "AP 1: REBOOT_VECTOR interrupt\n", "")
    edited(script, "AP 2: REBOOT_VECTOR interrupt\n", "AP 2: REBOOT_VECTOR interrupt # first\n")
    edited(script, "AP 1: stop_this", "# AP 1 now\nAP 1: REBOOT_VECTOR interrupt\nAP 1: stop_this")
    last = "new kernel's memory: takes the old kernel's text\n"
    edited(script, last, last + "new kernel's memory: takes the old kernel's page tables\n")
    status, text, err = run("run", "--replay", script)
    assert (status, err) == (1, "") and text.split()[-2:] == ["step", "16."]


def test_what_does_not_come_out_as_expected_is_status_2_after_the_report(script):
    lines = script.read_text().splitlines(keepends=True)
    script.write_text("".join(lines[:-1]))
    status, text, err = run("run", "--replay", script)
    assert status == 2 and "NOT as expected" in text and "what could happen next" in text
    assert err == (
        f'pysev: {script}:6: expected violated "no foreign fetch", but the verdict is holds\n'
    )
    edited(script, '# expect violated "no foreign fetch"\n', "")
    status, text, err = run("run", "--replay", script)
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cpus 3", "cpus 2", ":13: AP 2: there is AP 1;"),
        ("cpus 3", "cpus 0", "0 CPUs"),
        ("cpus 3", "cpus 999999", "999999 CPUs"),
        (MAILBOX, "sev-es-kexec/nothing", "no scenario 'sev-es-kexec/nothing'"),
        (MAILBOX, "sev-es-kexec/mailbox", ":20: 'boot CPU: relocate_kernel"),
        ("memory 4G", "memory much", "much"),
        ("memory 4G", "memory 1K", "size '1K'"),
        ("memory 4G", "memmap nowhere.txt", "nowhere.txt: No such file"),
        ("no foreign fetch", "no such thing", ":6: no property 'no such thing'"),
    ],
)
def test_a_script_that_does_not_fit_is_refused(script, old, new, message):
    assert message in refused("run", "--replay", edited(script, old, new))


def test_a_memory_map_lies_beside_its_script(script, tmp_path):
    source = EXAMPLES / "memmaps" / "e820_ovmf_qemu_2g.txt"
    (tmp_path / "map.txt").write_bytes(source.read_bytes())
    edited(script, "memory 4G", "memmap map.txt")
    assert run("run", "--replay", script)[0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cpus", "4"), "the script is for 3 CPUs, not for 4"),
        (("--seed", "1"), "--seed goes without --replay"),
        (("--memory", "8G"), "--memory goes without --replay"),
        (("--repeat", "2"), "--repeat goes without --replay"),
        (("--trace", "-", "--svg", "-"), "two exports to one place"),
        (("--property", "nothing"), "must be FILE.py:FUNCTION"),
    ],
)
def test_options_that_contradict_a_script_are_refused(script, options, message):
    assert message in refused("run", "--replay", script, *options)


def test_nothing_is_written_over_the_script(script):
    before = script.read_text()
    assert "what is read is there" in refused("run", "--replay", script, "--svg", script)
    assert script.read_text() == before
    assert "is for" in refused("run", "sev-es-kexec/mailbox", "--replay", script)
    assert "goes with --replay" in refused("run", MAILBOX, "--svg", "x.svg")
    assert "give a scenario" in refused("run")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no `scenario NAME` in it"),
        (b"\x7fELF\0\0", ":1: not a text"),
        (b"scenario x\n", "no `cpus N` in it"),
        (b"x" * (5 << 20), "more than 4194304 bytes"),
    ],
)
def test_a_file_that_is_no_script_is_refused_in_one_line(tmp_path, data, message):
    path = tmp_path / "bad"
    path.write_bytes(data)
    assert message in refused("run", "--replay", path)
    assert message.removeprefix(":1") in refused("run", "--replay", "-", stdin=data)


def test_ten_gigabytes_in_one_line_are_refused_without_being_read(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.truncate(10 << 30)  # no block of it is stored
    done = subprocess.run(
        [sys.executable, "-m", "pysev", "run", "--replay", path],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"pysev: {path}: more than 4194304 bytes: no script\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing",), "no scenario 'nothing'"),
        ((MAILBOX, "--cpus", "0"), "0 CPUs"),
        ((MAILBOX, "--cpus", "99999"), "99999 CPUs"),
        ((MAILBOX, "--dot", "-", "--svg", "-"), "two exports to one place"),
        ((MAILBOX, "--dot", "/nowhere/f"), "No such file"),
        (("/nowhere.py:x",), "/nowhere.py: No such file"),
        ((), "the following arguments are required"),
    ],
)
def test_graph_refuses_in_one_line(args, message):
    assert message in refused("graph", *args)
