"""The command line as its users meet it: a child process, its two streams and its exit status."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pysev
from pysev import all_scenarios
from pysev.cli import main

DATA = Path(__file__).parent.parent / "data"
VOLCANO = DATA / "e820_epyc_volcano_769g.txt"
OVMF = DATA / "e820_ovmf_qemu_2g.txt"
JUMP_TABLE = "sev-es-kexec/jump-table"
LEGACY = "sev-es-kexec/legacy-sev-es"
COMMAND = [sys.executable, "-m", "pysev"]
HEX64 = re.compile(r"0x[0-9a-f]{16}")

# Buffered, as for every user; the environment of the tests may say otherwise.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}


@pytest.fixture
def pysev_in(tmp_path):
    """Run ``pysev`` with arguments in an empty folder; bytes in, text out."""

    def run(*args: str | bytes, stdin: bytes = b"", timeout: float = 60):
        return subprocess.run(
            [*COMMAND, *args],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env=ENVIRONMENT,
            timeout=timeout,
        )

    return run


def one_line(done) -> str:
    """Assert what every refusal must look like; return its line."""
    assert done.returncode == 2, done
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("pysev"), lines
    return lines[0]


def in_process(args: list[str], stdin: bytes = b"0x2 0x6\n") -> tuple[int, str, str]:
    """Call the function behind the command: the same, without 0.2 s for a child."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(args)
    finally:
        sys.stdin = before
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Assert that arguments are refused in one line, in an empty folder; return the line."""
    monkeypatch.chdir(tmp_path)

    def refused(*args: str, stdin: bytes = b"") -> str:
        status, out, err = in_process(list(args), stdin)
        assert (status, out) == (2, "")
        assert err.startswith("pysev") and err.endswith("\n") and len(err.splitlines()) == 1
        return err.removesuffix("\n")

    return refused


# -- what an issue promises to show ------------------------------------------------------------


def test_scenarios_lists_each_with_its_verdict(pysev_in):
    done = pysev_in("scenarios")
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [line.split(maxsplit=2) for line in done.stdout.decode().splitlines()]
    assert [row[:2] for row in rows] == [[s.name, s.expected] for s in all_scenarios()]
    assert all(row[2] for row in rows)


def test_scenarios_json_has_source_and_story(pysev_in):
    found = json.loads(pysev_in("scenarios", "--json").stdout)
    assert [s["name"] for s in found] == [s.name for s in all_scenarios()]
    for s in found:
        assert {"name", "summary", "expected", "because", "story", "source", "assumes"} == set(s)


def test_decode_reads_the_vectors_from_standard_input(pysev_in):
    text = (DATA / "ghcb_msr_vectors_oak.csv").read_text()
    values = re.findall(r"\b0x[0-9a-fA-F]{16}\b", text)
    assert len(values) > 10
    done = pysev_in("decode", "-", "--json", stdin="\n".join(values).encode())
    assert done.stderr == b"" and done.returncode in (0, 1)
    found = json.loads(done.stdout)
    assert [one["value"] for one in found] == [f"{int(v, 16):#018x}" for v in values]


def test_decode_prints_sixty_four_bit_numbers_as_hex_strings(pysev_in):
    done = pysev_in("decode", "0x0003000137000001", "0002000133000001", "--json")
    assert done.returncode == 0
    for one in json.loads(done.stdout):
        assert HEX64.fullmatch(one["value"])


def test_decode_of_a_malformed_value_is_a_finding(pysev_in):
    done = pysev_in("decode", "0xffffffffffffff06")
    assert (done.returncode, done.stderr) == (1, b"") and done.stdout


def test_run_on_a_real_map_with_4096_cpus(pysev_in):
    began = time.perf_counter()
    done = pysev_in("run", JUMP_TABLE, "--memmap", str(VOLCANO), "--cpus", "4096", "--json")
    assert time.perf_counter() - began < 20
    assert (done.returncode, done.stderr) == (0, b"")
    result = json.loads(done.stdout)
    assert {
        "scenario",
        "verdict",
        "violations",
        "cpus",
        "vmgexits",
        "memory",
        "modelled_seconds",
        "seconds",
        "seed",
    } <= set(result)
    assert (result["scenario"], result["verdict"], result["seed"]) == (JUMP_TABLE, "holds", 0)
    cpus = result["cpus"]
    assert {"total", "online", "lost", "triple_fault", "parked"} <= set(cpus)
    assert (cpus["total"], cpus["online"], cpus["lost"]) == (4096, 4096, 0)
    assert result["vmgexits"]["msr:ap_reset_hold"] == 4095
    assert sum(result["memory"][k] for k in ("private", "shared")) == result["memory"]["ram"]
    assert re.fullmatch(r"0x[0-9a-f]{4}:0x[0-9a-f]{4}", result["jump_table"]["reset_vector"])


def test_run_prints_a_table_messages_samples_and_one_sentence(pysev_in):
    done = pysev_in("run", JUMP_TABLE, "--memmap", str(OVMF), "--cpus", "8")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    for part in (
        "what became of the CPUs\n  CPUs ",
        "VMGEXITs by kind\n",
        "msr:ap_reset_hold  7\n",
        "AP reset hold (request)",
        "memory by state\n",
        "AP jump table",
    ):
        assert part in text
    assert text.splitlines()[-1].startswith("verdict: holds in this order of events: 8 of 8 CPUs")
    assert max(map(len, text.splitlines())) < 160


def test_run_of_a_lost_hand_over_is_a_finding(pysev_in):
    done = pysev_in("run", LEGACY, "--cpus", "16", "--json")
    assert (done.returncode, done.stderr) == (1, b"")
    result = json.loads(done.stdout)
    assert result["verdict"] == "violated" and "no foreign fetch" in result["violations"]


def test_check_of_legacy_sev_es_shows_the_order_of_events_that_kills_an_ap(pysev_in):
    done = pysev_in("check", LEGACY, "--cpus", "4")
    assert (done.returncode, done.stderr) == (1, b"")
    text = done.stdout.decode()
    assert "the shortest order of events" in text
    steps = [line for line in text.splitlines() if re.match(r" +\d+(-\d+)?  ", line)]
    assert "INIT to a CPU" in text and "FOREIGN FETCH: the" in steps[-1]
    assert text.splitlines()[-2].startswith("verdict: violated, as expected: ")


def test_check_json_has_the_keys_that_stay(pysev_in):
    for name, status in ((LEGACY, 1), (JUMP_TABLE, 0)):
        done = pysev_in("check", name, "--cpus", "3", "--json")
        assert (done.returncode, done.stderr) == (status, b"")
        result = json.loads(done.stdout)
        assert {
            "scenario",
            "verdict",
            "property",
            "states",
            "transitions",
            "depth",
            "complete",
            "seconds",
            "counterexample",
        } <= set(result)
        assert result["scenario"] == name and result["complete"] and result["as_expected"]
        assert result["verdict"] in ("holds", "violated", "deadlock", "unknown")
        for step in result["counterexample"]:
            assert set(step) == {"agent", "op", "detail"}
            for number in re.findall(r"\b\d+\b", step["detail"]):
                assert int(number) < 4096, "an MSR value or an address must be hexadecimal"


@pytest.mark.parametrize("n_cpus", ["1", "2", "5"])
def test_check_all_finds_every_verdict_as_expected(pysev_in, n_cpus):
    done = pysev_in("check", "--all", "--cpus", n_cpus, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    found = json.loads(done.stdout)
    assert [r["scenario"] for r in found] == [s.name for s in all_scenarios()]
    for r in found:
        assert r["as_expected"] is True and r["complete"] is True
        assert r["verdict"] == r["expected"]


def test_check_all_prints_one_line_for_each_scenario(pysev_in):
    lines = pysev_in("check", "--all", "--cpus", "3").stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == [s.name for s in all_scenarios()]
    assert all("as expected" in line for line in lines)


def test_the_same_seed_prints_the_same_run(pysev_in):
    def result(seed: str):
        out = json.loads(pysev_in("run", LEGACY, "--seed", seed, "--cpus", "64", "--json").stdout)
        assert out.pop("seconds") >= 0
        return out

    first = result("7")
    assert first == result("7") == result("0x7")
    assert first["seed"] == 7
    assert first["modelled_seconds"] != result("8")["modelled_seconds"]
    assert result(str(2**64 - 1))["seed"] == 2**64 - 1


def test_the_default_run_needs_no_options(pysev_in):
    done = pysev_in("run", JUMP_TABLE)
    assert done.returncode == 0 and b"64 CPUs" in done.stdout


def test_a_map_may_come_from_standard_input(pysev_in):
    args = ("run", JUMP_TABLE, "--cpus", "4", "--json", "--memmap")
    piped = json.loads(pysev_in(*args, "-", stdin=OVMF.read_bytes()).stdout)
    named = json.loads(pysev_in(*args, str(OVMF)).stdout)
    assert piped | {"seconds": 0} == named | {"seconds": 0}


def test_help_and_version_are_good(pysev_in):
    for args in (["--help"], ["run", "--help"], ["check", "-h"], ["decode", "-h"], ["--version"]):
        done = pysev_in(*args)
        assert (done.returncode, done.stderr) == (0, b"") and done.stdout
    assert pysev_in("--version").stdout.decode().strip() == f"pysev {pysev.__version__}"


def test_the_installed_command_is_the_module(pysev_in, tmp_path):
    script = Path(sys.executable).with_name("pysev")
    done = subprocess.run([script, "scenarios"], capture_output=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == pysev_in("scenarios").stdout


# -- bad input ---------------------------------------------------------------------------------

RUN, CHECK = ("run", JUMP_TABLE), ("check", JUMP_TABLE)
WRONG_ARGUMENTS = [
    ((), "command"),
    (("nonsense",), "nonsense"),
    (("--nonsense",), "command"),
    (("run",), "scenario"),
    ((*RUN, "--nonsense"), "--nonsense"),
    ((*RUN, "extra"), "extra"),
    (("scenarios", "extra"), "extra"),
    (("run", "sev-es-kexec/jump-tabel"), "the nearest is sev-es-kexec/jump-table"),
    (("run", "sev-es-kexec/legacy-sev"), "the nearest is sev-es-kexec/legacy-svm"),
    (("run", "sev-ez-kexec/mailbox"), "the nearest is sev-es-kexec/mailbox"),
    (("check", "no-such-family/mailbox"), "the nearest is sev-es-kexec/mailbox"),
    (("run", "jump-table"), "the nearest is sev-es-kexec/jump-table"),
    (("run", "qqqq"), "`pysev scenarios` lists them"),
    (("run", ""), "`pysev scenarios` lists them"),
    (("run", "a\nb"), "no scenario 'a\\nb'"),
    ((*RUN, "--cpus", "0"), "0 CPUs: must be 1 to 8192"),
    ((*RUN, "--cpus", "-1"), "-1 CPUs: must be 1 to 8192"),
    ((*RUN, "--cpus", "1000000"), "1000000 CPUs: must be 1 to 8192"),
    ((*RUN, "--cpus", "abc"), "not a number: 'abc'"),
    ((*RUN, "--cpus", "1e3"), "not a number: '1e3'"),
    ((*RUN, "--cpus", "1_0"), "not a number: '1_0'"),
    ((*RUN, "--cpus", "\u0665"), "not a number: '\\u0665'"),
    ((*RUN, "--cpus", ""), "not a number: ''"),
    ((*RUN, "--cpus", "9" * 5000), "not a number: '9999"),
    ((*RUN, "--cpus"), "--cpus"),
    ((*RUN, "--seed", "-1"), "seed -1: does not fit into 64 bits"),
    ((*RUN, "--seed", str(2**64)), "does not fit into 64 bits"),
    ((*RUN, "--seed", "abc"), "not a number: 'abc'"),
    ((*RUN, "--memory", "0"), "zero"),
    ((*RUN, "--memory", "-4G"), "--memory"),
    ((*RUN, "--memory=-4G"), "negative"),
    ((*RUN, "--memory", "7"), "4 KiB"),
    ((*RUN, "--memory", "1X"), "'1X'"),
    ((*RUN, "--memory", "1e3G"), "'1e3G'"),
    ((*RUN, "--memory", "4P"), "52"),
    ((*RUN, "--memory", "1M"), "1M"),
    ((*RUN, "--memory", "64M"), "no room for the old kernel's text"),
    ((*RUN, "--memory", "4G", "--memmap", str(OVMF)), "not allowed with"),
    ((*RUN, "--memmap", "missing.txt"), "missing.txt: No such file or directory"),
    ((*RUN, "--memmap", "."), "Is a directory"),
    (("check",), "one scenario, or --all"),
    (("check", "--all", JUMP_TABLE), "one scenario, or --all"),
    (("check", "sev-es-kexec/jumptable"), "the nearest is sev-es-kexec/jump-table"),
    ((*CHECK, "--cpus", "0"), "check takes 1 to 64"),
    ((*CHECK, "--cpus", "65"), "check takes 1 to 64"),
    ((*CHECK, "--cpus", "1000000"), "check takes 1 to 64"),
    ((*CHECK, "--seconds", "0"), "must be above 0"),
    ((*CHECK, "--seconds", "nan"), "must be above 0"),
    ((*CHECK, "--seconds", "soon"), "'soon'"),
    ((*CHECK, "--max-memory", "0"), "zero"),
    ((*CHECK, "--max-memory", "4K"), "at least 16M"),
    ((*CHECK, "--max-memory", "much"), "'much'"),
    (("decode",), "VALUE"),
    (("decode", "0x10000000000000000"), "64 bits"),
    (("decode", "f" * 16 + "f"), "not a number"),
    (("decode", str(2**64)), "64 bits"),
    (("decode", "-1"), "-1"),
    (("decode", "0x"), "'0x'"),
    (("decode", "twelve"), "'twelve'"),
    (("decode", "0x2", "0x"), "argument 2"),
    (("decode", "-", "-"), "once"),
]


@pytest.mark.parametrize(("args", "says"), WRONG_ARGUMENTS, ids=lambda v: repr(v)[:60])
def test_a_wrong_argument_is_refused_in_one_line(refused, args, says):
    assert says in refused(*args)


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("run", "sev-es-kexec/jump-tabel"),
        (*RUN, "--cpus", "0"),
        (*RUN, "--memory", "64M"),
        (*RUN, "--memmap", "missing.txt"),
        ("decode", "0x10000000000000000"),
    ],
    ids=repr,
)
def test_a_child_process_refuses_as_the_function_does(refused, pysev_in, args):
    assert one_line(pysev_in(*args)) == refused(*args)


def test_a_probe_of_the_largest_machines_is_accepted(pysev_in):
    assert pysev_in(*RUN, "--memory", "1P", "--cpus", "2").returncode == 0
    assert pysev_in(*RUN, "--cpus", "8192", "--json").returncode == 0


WRONG_MAPS = {
    "overlap": (
        b"BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable\n"
        b"BIOS-e820: [mem 0x0000000000090000-0x00000000ffffffff] usable\n",
        "overlaps",
    ),
    "no room": (
        b"BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable\n"
        b"BIOS-e820: [mem 0x0000000000100000-0x00000000003fffff] usable\n",
        "no room",
    ),
    "backwards": (b"BIOS-e820: [mem 0x2000-0x1fff] usable\n", "ends before it starts"),
    "all reserved": (b"BIOS-e820: [mem 0x0-0xffffffff] reserved\n", "no usable RAM"),
    "too high": (b"BIOS-e820: [mem 0x0-0xffffffffffffffff] usable\n", "52 address bits"),
    "too wide": (b"BIOS-e820: [mem 0x0-0x1ffffffffffffffff] usable\n", ""),
    "no e820 lines": (b"hello\n", "no line like"),
    "empty": (b"", "no line like"),
    "NUL": (b"\0\1\2\3" * 100, "NUL"),
    "garbage": (bytes(range(1, 256)) * 200, ""),
}


@pytest.mark.parametrize("title", WRONG_MAPS)
def test_a_wrong_memory_map_is_refused_in_one_line(refused, tmp_path, title):
    data, says = WRONG_MAPS[title]
    (tmp_path / "map.txt").write_bytes(data)
    line = refused(*RUN, "--memmap", "map.txt")
    assert says in line
    assert refused(*RUN, "--memmap", "-", stdin=data) == line.replace("map.txt", "standard input")


PROPERTIES = '''
import sys
import numpy as np

def fine(s):
    """nothing is wrong"""
    return np.ones(len(s), dtype=bool)

def never(s):
    """there is no such state"""
    return np.zeros(len(s), dtype=bool)

def raises(s):
    raise RuntimeError("two\\nlines")

def raises_late(s):
    if (s.g.kernel == 1).any():
        raise RuntimeError("late")
    return fine(s)

def wrong_shape(s):
    return np.ones((len(s), 2), dtype=bool)

def wrong_type(s):
    return np.ones(len(s))

def nothing(s):
    pass

def word(s):
    return s.cpu.nonsense == 0

def label(s):
    return s.at("AP", "nowhere").all(axis=1)

def leaves(s):
    sys.exit(3)

def for_ever(s):
    return for_ever(s)

number = 3
'''


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("raises", "property 'raises' raised RuntimeError: two lines"),
        ("raises_late", "property 'raises_late' raised RuntimeError: late"),
        ("wrong_shape", "must be bool of shape"),
        ("wrong_type", "must be bool of shape"),
        ("nothing", "must be bool of shape"),
        ("word", "no word 'nonsense'"),
        ("label", "no label 'nowhere'"),
        ("leaves", "SystemExit: 3"),
        ("for_ever", "RecursionError"),
        ("number", "no function 'number'"),
        ("missing", "no function 'missing'"),
        ("", "no function ''"),
    ],
)
def test_a_property_that_does_not_work_is_refused_in_one_line(refused, tmp_path, function, says):
    (tmp_path / "own.py").write_text(PROPERTIES)
    assert says in refused(*CHECK, "--property", f"own.py:{function}")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("own.py:f", None, "No such file"),
        ("own.py:f", "def f(s:\n", "SyntaxError"),
        ("own.py:f", "import no_such_module\n", "ModuleNotFoundError"),
        ("own.py:f", "raise SystemExit(0)\n", "SystemExit"),
        ("own.py:f", "f = 1 / 0\n", "ZeroDivisionError"),
        ("own.py:f", "def f(s):\n    pass\n\0", "SyntaxError"),
        ("own.txt:f", "def f(s):\n    pass\n", "FILE.py:FUNCTION"),
        ("own.py", "def f(s):\n    pass\n", "FILE.py:FUNCTION"),
        ("", None, "FILE.py:FUNCTION"),
    ],
)
def test_a_property_that_cannot_be_loaded_is_refused_in_one_line(
    refused, tmp_path, name, text, says
):
    if text is not None:
        (tmp_path / name.partition(":")[0]).write_text(text)
    assert says in refused(*CHECK, "--property", name)


def test_a_property_of_ones_own_can_hold_and_can_be_violated(pysev_in, tmp_path):
    (tmp_path / "own.py").write_text(PROPERTIES)
    fine = pysev_in(*CHECK, "--property", "own.py:fine", "--json")
    assert fine.returncode == 0 and json.loads(fine.stdout)["violations"] == {}
    never = pysev_in(*CHECK, "--property", "own.py:never")
    assert never.returncode == 1
    assert b'"there is no such state" does not hold' in never.stdout
    twice = ("--property", "own.py:fine") * 2
    assert "two properties of one name" in one_line(pysev_in(*CHECK, *twice))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"0x2\nxyz\n", "line 2"),
        (b"0x2 0x1ffffffffffffffff\n", "64 bits"),
        (b"\xff\xfe\n", "line 1"),
        (b"\0\n", "line 1"),
    ],
)
def test_a_wrong_word_on_standard_input_is_refused_and_nothing_is_printed(refused, text, says):
    for json_too in ([], ["--json"]):
        assert says in refused("decode", "-", *json_too, stdin=text)


def test_an_empty_standard_input_has_nothing_to_decode(pysev_in):
    assert pysev_in("decode", "-").stdout == b""
    assert json.loads(pysev_in("decode", "-", "--json").stdout) == []


def test_names_of_files_that_are_no_text_are_shown_on_one_line(pysev_in, tmp_path):
    for name in (b"\xff.txt", b"a\nb.txt"):
        (tmp_path / os.fsdecode(name)).write_bytes(OVMF.read_bytes())
        done = pysev_in(*RUN, "--cpus", "2", "--memmap", name)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"RAM ('" in done.stdout.splitlines()[1] and b"seed 0" in done.stdout.splitlines()[1]
    one_line(pysev_in(*RUN, "--memmap", b"none\n\xff"))


# -- streams that break ------------------------------------------------------------------------

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["scenarios"],
        ["decode", "0x2"],
        ["run", JUMP_TABLE, "--cpus", "2"],
        ["check", LEGACY, "--cpus", "2", "--json"],
    ],
    ids=" ".join,
)
def test_a_full_disk_is_said_in_one_line(tmp_path, args, unbuffered):
    with FULL.open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *args],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 2
    assert done.stderr == b"pysev: No space left on device\n"


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_error_keeps_the_status(tmp_path, unbuffered):
    environment = ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered}
    with FULL.open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "run", "qqqq"], stderr=full, stdout=full, cwd=tmp_path, env=environment
        )
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("redirections", "args", "status", "says"),
    [
        (">&-", "scenarios", 2, b"pysev: standard output is closed\n"),
        (">&-", "--help", 2, b"pysev: standard output is closed\n"),
        ("<&-", "decode -", 2, b"pysev: standard input is closed\n"),
        ("<&-", f"run {JUMP_TABLE} --memmap -", 2, b"pysev: standard input is closed\n"),
        ("<&-", "decode 0x2", 0, b""),
        ("2>&-", "run qqqq", 2, b""),
        (">&- 2>&- <&-", "scenarios", 2, b""),
    ],
)
def test_a_closed_stream_is_no_traceback(tmp_path, redirections, args, status, says):
    done = subprocess.run(
        f'"$PYTHON" -m pysev {args} {redirections}',
        shell=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHON": sys.executable},
    )
    assert (done.returncode, done.stderr) == (status, says)


@pytest.mark.parametrize("args", [["check", "--all", "--json"], ["decode", "-"]], ids=" ".join)
def test_a_reader_that_has_seen_enough_is_no_traceback(tmp_path, args):
    source = tmp_path / "values.txt"
    source.write_bytes(b"0x2\n" * 500_000)
    with source.open("rb") as stdin:
        child = subprocess.Popen(
            [*COMMAND, *args],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=ENVIRONMENT,
        )
        assert child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
        child.stderr.close()
        assert child.wait(60) == 0


HUNDRED_MB = 100 * 10**6


@pytest.mark.parametrize(
    ("args", "filler", "says"),
    [
        (["decode", "-"], b"0", "a word of more than"),
        (["decode", "-"], b"\0", "a word of more than"),
        ([*RUN, "--memmap", "-"], b"a", "a line of more than"),
    ],
)
def test_a_line_of_100_mb_takes_no_memory(tmp_path, args, filler, says):
    source, out, err = (tmp_path / name for name in ("line", "out", "err"))
    with source.open("wb") as line:
        for _ in range(100):
            line.write(filler * (HUNDRED_MB // 100))
    # the child says its own peak: the accounting of wait4 counts the fork of this process too
    peak = tmp_path / "peak"
    code = (
        "import sys; from pysev.cli import main; status = main(sys.argv[2:])\n"
        "status_file = open('/proc/self/status').read()\n"
        "open(sys.argv[1], 'w').write(status_file.split('VmHWM:')[1].split()[0])\n"
        "sys.exit(status)"
    )
    with source.open("rb") as stdin, out.open("wb") as stdout, err.open("wb") as stderr:
        status = subprocess.run(
            [sys.executable, "-c", code, str(peak), *args],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=tmp_path,
            env=ENVIRONMENT,
        ).returncode
    assert status == 2 and out.read_bytes() == b""
    assert says in err.read_text() and err.read_text().count("\n") == 1
    assert int(peak.read_text()) * 1024 < HUNDRED_MB


@pytest.mark.parametrize("extra", [[], ["--json"], ["--no-symmetry"]], ids=" ".join)
def test_an_interrupt_ends_a_long_check_with_one_line(tmp_path, extra):
    (tmp_path / "own.py").write_text(
        "from pathlib import Path\n\n"
        "def begun(s):\n    Path('begun').touch()\n    return s.g.kernel == s.g.kernel\n"
    )
    command = [*COMMAND, "check", "sev-es-kexec/jump-table-ack-early", "--cpus", "20"]
    child = subprocess.Popen(
        [*command, "--property", "own.py:begun", *extra],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    try:
        while child.poll() is None and not (tmp_path / "begun").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        assert child.poll() is None, "the check was too short for this test"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=20)
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, out, err) == (130, b"", b"pysev: interrupted\n")


def test_a_check_that_runs_out_of_time_or_memory_is_unknown_or_incomplete(pysev_in):
    args = ("check", "sev-es-kexec/jump-table", "--cpus", "40", "--json")
    for bound in (("--seconds", "0.0001"), ("--max-memory", "16M")):
        done = pysev_in(*args, *bound)
        result = json.loads(done.stdout)
        assert (done.returncode, done.stderr) == (1, b"")
        assert (result["verdict"], result["complete"]) == ("unknown", False)
        assert result["as_expected"] is False


# -- anything at all ---------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *("decode", "scenarios", "run", "check", "-", "--", "--json", "--all", "-h", "--cpus"),
        *("--memory", "--memmap", "--seed", "--seconds", "--max-memory", "--property"),
        *("--no-symmetry", "--cpu", "--m", "--cpus=3", "--seed=-0x1", "--memory=4G", "0x2"),
        *(
            "0",
            "1",
            "2",
            "3",
            "-1",
            "0x1_0",
            "1e9",
            "nan",
            "inf",
            "4G",
            "16M",
            "18446744073709551616",
        ),
        *(JUMP_TABLE, LEGACY, "jump-table", "sev-es-kexec/", "x.py:f", "/dev/null", "/", "."),
    ]
)
ARGUMENTS = st.lists(WORDS | st.text(max_size=6), max_size=6)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(ARGUMENTS)
def test_any_arguments_give_a_documented_status_and_no_traceback(args):
    status, out, err = in_process(args)
    assert status in (0, 1, 2)
    if status == 2:
        assert err.endswith("\n") and err.count("\n") == 1
        assert out == ""
    else:
        assert err == "" and (out.endswith("\n") or args[0] == "decode")
        if "--json" in args and "-h" not in args and "--" not in args:
            json.loads(out)


@settings(max_examples=100, deadline=None, database=None)
@given(
    st.sampled_from(["run", "check"]),
    st.sampled_from([s.name for s in all_scenarios()]),
    st.lists(
        st.tuples(
            st.sampled_from(["--cpus", "--seed", "--memory", "--memmap", "--max-memory"]),
            st.integers().map(str) | st.text(max_size=4) | st.integers(1, 4).map(str),
        ),
        max_size=2,
    ),
)
def test_any_option_values_give_a_documented_status_and_no_traceback(command, name, options):
    args = [command, name, "--seconds=5"] if command == "check" else [command, name]
    status, _, err = in_process([*args, *(f"{key}={value}" for key, value in options)])
    assert status in (0, 1, 2)
    assert err.count("\n") == (status == 2)
