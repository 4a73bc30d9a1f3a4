"""``pysev trace`` and ``pysev run --trace`` as their users meet them."""

import bz2
import csv
import gzip
import json
import lzma
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "pysev"]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
SCENARIO = "sev-es-kexec/jump-table"
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")

REAL = b"""# perf script
kvm:kvm_vmgexit_msr_protocol_enter: vcpu 0, ghcb_gpa 0020000000000014
kvm:kvm_vmgexit_msr_protocol_enter: vcpu 0, ghcb_gpa 0030000000000014
"""
FTRACE = b"""# tracer: nop
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
       CPU 0/KVM-1201    [003] d..1. 6748.000001: kvm_vmgexit_enter: vcpu 0, exit_reason 72, exit_info1 0, exit_info2 0
       CPU 0/KVM-1201    [003] d..1. 6748.000003: kvm_vmgexit_exit: vcpu 0, exit_reason 72, exit_info1 0, exit_info2 0
       CPU 1/KVM-1202    [002] d..1. 6748.000004: kvm_exit: vcpu 1 reason npf rip 0x0 info1 0x0000000100000014 info2 0x0000000000000000 intr_info 0x00000000 error_code 0x00000000 requests 0x0000000000000000
       CPU 1/KVM-1202    [002] d..1. 6748.000005: kvm_vmgexit_msr_protocol_enter: vcpu 1, ghcb_gpa 0020000012345014
       CPU 1/KVM-1202    [002] d..1. 6748.000009: kvm_vmgexit_msr_protocol_exit: vcpu 1, ghcb_gpa 0020000012345014, result 0
       CPU 1/KVM-1202    [002] d..1. 6748.000010: kvm_entry: vcpu 1, rip 0x0
"""  # noqa: E501


@pytest.fixture
def pysev_in(tmp_path):
    def run(*args, stdin=b"", timeout=60, **more):
        return subprocess.run(
            [*COMMAND, *args],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env=ENVIRONMENT | more,
            timeout=timeout,
        )

    return run


def refused(done) -> str:
    assert done.returncode == 2, done
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("pysev: ")
    return line


def test_a_good_trace_is_summed_up_in_a_mail(pysev_in, tmp_path):
    (tmp_path / "t").write_bytes(FTRACE)
    done = pysev_in("trace", "t")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    for part in (
        "t: text; ftrace\n",
        "8 lines, 6 of interest, 0.000009 s\n",
        "vCPUs: 2\n",
        "nae:cpuid                        1      2 us      2 us      2 us      2 us\n",
        "0 made private, 1 shared; page-state events: 0\n",
        "answered by user space, unseen: 1\n",
        "exits: npf 1\n",
        "other events of KVM: entry 1\n",
        "findings: none\n",
    ):
        assert part in text, text
    assert max(map(len, text.splitlines())) < 100


def test_real_lines_with_markers_are_findings(pysev_in):
    done = pysev_in("trace", "-", stdin=REAL)
    assert (done.returncode, done.stderr) == (1, b"")
    text = done.stdout.decode()
    assert "standard input: text; events without a prefix" in text
    assert "msr-page-operation, broken once" in text and "line 3: vCPU 0" in text


def test_json_says_the_same(pysev_in):
    found = json.loads(pysev_in("trace", "-", "--json", stdin=FTRACE).stdout)
    assert found["lines"] == 8 and found["lines_of_interest"] == 6 and not found["cut_off"]
    assert found["span_ns"] == [6748000001000, 6748000010000]
    assert (found["exchanges"], found["vcpus"], found["to_user_space"]) == (2, 2, 1)
    assert found["kinds"][1]["latency_ns"] == {
        "min": 2000,
        "median": 2000,
        "p99": 2000,
        "max": 2000,
    }
    assert re.fullmatch(r"0x[0-9a-f]{16}", found["kinds"][0]["code"])
    assert found["findings"] == {"counts": {}, "first": []}


def test_a_trace_that_is_cut_off_says_so(pysev_in):
    done = pysev_in("trace", "-", stdin=FTRACE[:-1])
    assert done.returncode == 0 and b"cut off at the end" in done.stdout


def test_an_empty_file_has_nothing_to_say(pysev_in, tmp_path):
    (tmp_path / "t").touch()
    done = pysev_in("trace", "t")
    assert done.returncode == 0 and b"no event of KVM" in done.stdout


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_trace_is_unpacked(pysev_in, tmp_path, pack):
    (tmp_path / "t").write_bytes(pack(FTRACE * 1000))
    found = json.loads(pysev_in("trace", "t", "--json").stdout)
    assert found["lines"] == 8000
    (tmp_path / "t").write_bytes(pack(FTRACE * 1000)[:-40])
    assert "t: cannot be unpacked" in refused(pysev_in("trace", "t"))


def tool(folder: Path, name: str, script: str) -> str:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return f"{path.parent}:{os.environ['PATH']}"


BINARY = {"perf": b"PERFILE2" + bytes(100), "trace-cmd": b"\x17\x08\x44tracing6\0" + bytes(100)}


@pytest.mark.parametrize("name", BINARY)
def test_a_binary_trace_is_printed_by_its_tool(pysev_in, tmp_path, name):
    (tmp_path / "t").write_bytes(BINARY[name])
    (tmp_path / "text").write_bytes(FTRACE)
    path = tool(tmp_path, name, f'echo "$@" >{tmp_path}/asked; cat {tmp_path}/text')
    done = pysev_in("trace", "t", PATH=path)
    assert done.returncode == 0 and f"t: binary, printed by {name}; ftrace" in done.stdout.decode()
    asked = (tmp_path / "asked").read_text().split()
    assert asked[-1] == str(tmp_path / "t") and asked[0] in ("script", "report")


@pytest.mark.parametrize("name", BINARY)
def test_a_tool_that_fails_or_is_missing_is_named(pysev_in, tmp_path, name):
    (tmp_path / "t").write_bytes(BINARY[name])
    path = tool(tmp_path, name, "echo some noise >&2; echo no such luck >&2; exit 3")
    line = refused(pysev_in("trace", "t", PATH=path))
    assert f"`{name} " in line and "failed with status 3: no such luck" in line
    assert f"is read by {name}, which is not installed" in refused(
        pysev_in("trace", "t", PATH=str(tmp_path))
    )
    assert f"is a file of {name}" in refused(pysev_in("trace", "-", stdin=BINARY[name]))


def test_what_cannot_be_read_is_refused(pysev_in, tmp_path):
    assert "nowhere" in refused(pysev_in("trace", "nowhere"))
    assert "Is a directory" in refused(pysev_in("trace", str(tmp_path)))
    line = refused(pysev_in("trace", "-", "--csv", "a", "--jsonl", "a"))
    assert "two exports to one place" in line


# -- exports -----------------------------------------------------------------------------------


def test_exports_say_the_same(pysev_in, tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "t").write_bytes(FTRACE)
    names = ("jsonl", "csv", "parquet", "perfetto")
    outs = [part for name in names for part in (f"--{name}", f"out.{name}")]
    done = pysev_in("trace", "t", *outs)
    assert done.returncode == 0 and b"findings: none" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["nae:cpuid", "msr:page_state_change"]
    assert rows[1] == {
        "kind": "msr:page_state_change",
        "pid": 1202,
        "vcpu": 1,
        "cpu": 2,
        "begin_ns": 6748000005000,
        "end_ns": 6748000009000,
        "msr": "0x0020000012345014",
        "msr_after": "0x0020000012345014",
        "result": 0,
        "enter_line": 6,
        "exit_line": 7,
        "flags": "to_user_space",
    }
    with (tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    arrow = pyarrow.read_table(tmp_path / "out.parquet").to_pylist()
    for row, cells, record in zip(rows, table, arrow, strict=True):
        assert {k: v for k, v in cells.items() if v} == {k: str(v) for k, v in row.items()}
        numbers = {
            k: int(v, 16) if isinstance(v, str) and v.startswith("0x") else v
            for k, v in row.items()
        }
        assert {k: v for k, v in record.items() if v not in (None, "")} == {
            k: v for k, v in numbers.items() if v != ""
        }
    tracks = json.loads((tmp_path / "out.perfetto").read_text())
    slices = [event for event in tracks if event["ph"] == "X"]
    assert [(s["name"], s["tid"], s["ts"], s["dur"]) for s in slices] == [
        ("nae:cpuid", 1201, 6748000001.0, 2.0),
        ("msr:page_state_change", 1202, 6748000005.0, 4.0),
    ]


def test_tracks_keep_to_the_trace_event_format(pysev_in, tmp_path):
    pysev_in("run", SCENARIO, "--cpus", "5", "--repeat", "2", "--perfetto", "out")
    events = json.loads((tmp_path / "out").read_text())
    named = set()
    for event in events:
        assert isinstance(event["name"], str) and isinstance(event["pid"], int)
        track = (event["pid"], event["tid"])
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            if event["name"] == "thread_name":
                assert track not in named
                named.add(track)
            continue
        assert track in named, "an event before the name of its track"
        assert event["ph"] in "Xi" and event["ts"] >= 0 and event["cat"] == "vmgexit"
        assert (event["ph"] == "X") == ("dur" in event) and event.get("dur", 0) >= 0
        if event["ph"] == "i":
            assert event["s"] == "t"
    assert len(named) == 10 and len({pid for pid, _ in named}) == 2
    # the closing bracket may be missing, so a file that was cut off must still be one event a line
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines[0] == "[" and lines[-1] == "]"
    assert [json.loads(line.removeprefix(",")) for line in lines[1:-1]] == events


def test_parquet_without_its_library_names_the_extra(pysev_in, tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "pyarrow.py").write_text("raise ImportError('none here')\n")
    done = pysev_in(
        "trace", "-", "--parquet", "o", stdin=FTRACE, PYTHONPATH=str(tmp_path / "without")
    )
    assert "pip install 'pysev[parquet]'" in refused(done)


@pytest.mark.parametrize("how", ["jsonl", "csv", "perfetto"])
def test_an_export_to_standard_output_stands_there_alone(pysev_in, how):
    done = pysev_in("trace", "-", f"--{how}", "-", stdin=FTRACE)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert "findings" not in text
    assert text.startswith({"jsonl": '{"kind":', "csv": "kind,pid", "perfetto": "[\n"}[how])


@needs_full
@pytest.mark.parametrize("how", ["jsonl", "csv", "parquet", "perfetto"])
def test_a_full_disk_is_told(pysev_in, how):
    pytest.importorskip("pyarrow")
    line = refused(pysev_in("trace", "-", f"--{how}", "/dev/full", stdin=FTRACE))
    assert "/dev/full: No space left on device" in line
    assert "were written" in line or how == "parquet"


@needs_full
def test_a_run_on_a_full_disk_is_told(pysev_in):
    line = refused(pysev_in("run", SCENARIO, "--trace", "/dev/full"))
    assert line == "pysev: /dev/full: No space left on device: 0 lines were written"


def test_a_limit_on_the_file_keeps_whole_records(tmp_path):
    script = f"ulimit -f 8; exec {sys.executable} -m pysev trace - --jsonl out"
    done = subprocess.run(
        ["bash", "-c", script], input=FTRACE * 100, capture_output=True, cwd=tmp_path, timeout=60
    )
    line = refused(done)
    rows = (tmp_path / "out").read_text().splitlines(keepends=True)
    assert f"out: File too large: {len(rows)} exchanges were written" in line
    assert rows and all(json.loads(row) for row in rows) and rows[-1].endswith("\n")


def test_a_reader_that_goes_away_is_told(tmp_path):
    (tmp_path / "t").write_bytes(FTRACE * 20_000)
    script = f"{sys.executable} -m pysev trace t --jsonl - | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, cwd=tmp_path, timeout=60, env=ENVIRONMENT
    )
    assert "standard output: Broken pipe: " in refused(done)
    assert json.loads(done.stdout)["kind"] == "nae:cpuid"


# -- what run writes ---------------------------------------------------------------------------


def test_what_run_writes_trace_reads(pysev_in, tmp_path):
    done = pysev_in("run", SCENARIO, "--cpus", "9", "--trace", "t", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    asked = json.loads(done.stdout)["vmgexits"]
    found = json.loads(pysev_in("trace", "t", "--json").stdout)
    kinds = {row["kind"]: row["n"] for row in found["kinds"]}
    assert kinds == asked
    assert (found["vms"], found["vcpus"], found["findings"]["counts"]) == (1, 9, {})


def test_run_repeats_with_the_next_seeds(pysev_in, tmp_path):
    done = pysev_in(
        "run", SCENARIO, "--cpus", "9", "--trace", "t", "--seed", "5", "--repeat", "3", "--json"
    )
    result = json.loads(done.stdout)
    assert (result["runs"], result["verdicts"], result["seed"]) == (3, {"holds": 3}, 5)
    found = json.loads(pysev_in("trace", "t", "--json").stdout)
    assert (found["vms"], found["vcpus"], found["findings"]["counts"]) == (3, 27, {})
    assert found["exchanges"] == 3 * sum(result["vmgexits"].values())
    text = pysev_in("run", SCENARIO, "--cpus", "9", "--repeat", "2").stdout.decode()
    assert text.endswith("2 runs, seeds 0 to 1: holds 2\n")
    assert "--repeat 0" in refused(pysev_in("run", SCENARIO, "--repeat", "0"))


def test_run_writes_its_trace_to_a_pipe(pysev_in):
    first = pysev_in("run", SCENARIO, "--cpus", "9", "--trace", "-")
    assert first.returncode == 0 and first.stdout.count(b"\n") == 26
    assert pysev_in("trace", "-", stdin=first.stdout).returncode == 0
    assert "to one place" in refused(
        pysev_in("run", SCENARIO, "--trace", "same", "--perfetto", "same")
    )


def test_a_run_that_is_lost_is_traced_as_far_as_it_came(pysev_in):
    first = pysev_in("run", "sev-es-kexec/legacy-sev-es", "--cpus", "4", "--trace", "-")
    assert first.returncode == 1
    done = pysev_in("trace", "-", "--json", stdin=first.stdout)
    assert json.loads(done.stdout)["exchanges"] == 4


# -- limits ------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from pysev.cli import main
import pysev.trace.command
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
limit = size + (int(sys.argv.pop(1)) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""


def limited(mib: int, *args: str, stdin, cwd):
    return subprocess.run(
        [sys.executable, "-c", PEAK, str(mib), *args],
        stdin=stdin,
        capture_output=True,
        timeout=120,
        cwd=cwd,
        env=ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_memory_does_not_depend_on_the_length(tmp_path):
    with (tmp_path / "t").open("wb") as file:
        for _ in range(300):
            file.write(FTRACE * 1000)
    assert (tmp_path / "t").stat().st_size > 200 << 20
    with (tmp_path / "t").open("rb") as file:
        done = limited(64, "trace", "-", "--json", stdin=file, cwd=tmp_path)
    assert done.returncode == 1, done.stderr  # time goes back at each seam
    found = json.loads(done.stdout)
    assert found["lines"] == 2_400_000 and found["exchanges"] == 600_000
    assert found["findings"]["counts"] == {"time-backwards": 2 * 299_999}


@pytest.mark.slow
@pytest.mark.parametrize("begins", ["", "CPU 0/KVM-1 [000] 1.0: kvm_vmgexit_enter: vcpu 0"])
def test_a_line_of_a_gigabyte_is_passed_over_or_reported(tmp_path, begins):
    script = f"printf '{begins}'; head -c 1G /dev/zero; echo; cat t"
    (tmp_path / "t").write_bytes(FTRACE)
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, cwd=tmp_path) as child:
        done = limited(64, "trace", "-", "--json", stdin=child.stdout, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["lines"] == 9 and found["bytes"] > 1 << 30
    assert found["findings"]["counts"] == ({"unreadable-line": 1} if begins else {})
    assert done.returncode == (1 if begins else 0)


@pytest.mark.slow
def test_progress_is_shown_to_who_waits_at_a_terminal(tmp_path):
    """After a second, on standard error, and gone at the end."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*COMMAND, "trace", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        cwd=tmp_path,
        env=ENVIRONMENT,
    )
    os.close(theirs)
    assert child.stdin is not None
    for _ in range(12):
        child.stdin.write(FTRACE * 10_000)
        child.stdin.flush()
        time.sleep(0.15)
    child.stdin.close()
    assert child.wait(timeout=60) == 1
    shown = b""
    try:
        while piece := os.read(ours, 1 << 16):
            shown += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert re.search(rb"\r[\d,]+ lines, [\d.]+ M lines/s", shown) and shown.endswith(b"\r\x1b[K")
