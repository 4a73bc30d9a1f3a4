"""What becomes of a trace that cannot be read to its end, and of files that are in the way."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "pysev"]
DATA = Path(__file__).parents[1] / "data"
SCENARIO = "sev-es-kexec/jump-table"
TEXT = b"".join(
    b"CPU 0/KVM-7 [003] d..1. 6748.%06d: kvm_vmgexit_msr_protocol_%s\n" % (i, what)
    for i in range(0, 4000, 2)
    for what in (
        b"enter: vcpu 0, ghcb_gpa 0000000000000002",
        b"exit: vcpu 0, ghcb_gpa 0002000133000001, result 1",
    )
)


@pytest.fixture
def pysev_in(tmp_path):
    def run(*args, **more):
        return subprocess.run(
            [*COMMAND, *args], capture_output=True, cwd=tmp_path, timeout=60, **more
        )

    return run


def refused(done):
    assert done.returncode == 2, done
    (line,) = done.stderr.decode().splitlines()
    return line


def test_what_was_read_before_the_damage_is_said_and_written(pysev_in, tmp_path):
    (tmp_path / "t.gz").write_bytes(gzip.compress(TEXT)[:-40])
    done = pysev_in("trace", "t.gz", "--json", "--jsonl", "out", "--perfetto", "tracks")
    assert "t.gz: cannot be unpacked" in refused(done)
    found = json.loads(done.stdout)
    assert "cannot be unpacked" in found["incomplete"]
    assert found["exchanges"] > 1000 and found["cut_off"]
    written = (tmp_path / "out").read_text().splitlines()
    assert len(written) == found["exchanges"] and all(map(json.loads, written))
    assert len(json.loads((tmp_path / "tracks").read_text())) >= found["exchanges"]
    assert b"\nnot read to its end: t.gz: cannot be unpacked" in pysev_in("trace", "t.gz").stdout


def test_parquet_of_a_damaged_trace_can_be_read(pysev_in, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "t.gz").write_bytes(gzip.compress(TEXT)[:-40])
    refused(pysev_in("trace", "t.gz", "--parquet", "out"))
    assert parquet.read_table(tmp_path / "out").num_rows > 1000


def test_a_tool_that_fails_late_has_said_something(pysev_in, tmp_path):
    (tmp_path / "t").write_bytes(b"PERFILE2" + bytes(100))
    (tmp_path / "text").write_bytes(TEXT)
    (tmp_path / "perf").write_text(f"#!/bin/sh\ncat {tmp_path}/text\necho broken >&2\nexit 3\n")
    (tmp_path / "perf").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = pysev_in("trace", "t", "--json", env=os.environ | {"PATH": path})
    assert "failed with status 3: broken" in refused(done)
    assert json.loads(done.stdout)["exchanges"] == 2000


def test_nothing_is_said_of_nothing(pysev_in, tmp_path):
    (tmp_path / "t.gz").write_bytes(gzip.compress(TEXT)[:12])
    done = pysev_in("trace", "t.gz")
    assert "cannot be unpacked" in refused(done) and done.stdout == b""


def test_who_watches_a_trace_and_stops_gets_the_sums(tmp_path):
    with subprocess.Popen(
        [*COMMAND, "trace", "-", "--json", "--jsonl", "out"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    ) as child:
        assert child.stdin is not None
        child.stdin.write(TEXT)
        child.stdin.flush()
        written = tmp_path / "out"
        until = time.monotonic() + 30
        while not (written.exists() and written.read_text().count("\n") == 2000):
            assert time.monotonic() < until
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        out, said = child.communicate(timeout=30)
    assert (child.returncode, said) == (130, b"pysev: interrupted\n")
    found = json.loads(out)
    assert (found["exchanges"], found["incomplete"]) == (2000, "interrupted")


def test_an_export_does_not_overwrite_what_is_read(pysev_in, tmp_path):
    (tmp_path / "t").write_bytes(TEXT)
    (tmp_path / "link").symlink_to("t")
    for name in ("t", "./t", "link"):
        assert "what is read" in refused(pysev_in("trace", "t", "--jsonl", name))
        with (tmp_path / "t").open("rb") as stdin:
            done = pysev_in("trace", "-", "--csv", name, stdin=stdin)
        assert "what is read" in refused(done)
    assert (tmp_path / "t").read_bytes() == TEXT


def test_a_run_does_not_overwrite_its_memory_map(pysev_in, tmp_path):
    text = (DATA / "e820_ovmf_qemu_2g.txt").read_text()
    (tmp_path / "map").write_text(text)
    done = pysev_in("run", SCENARIO, "--memmap", "map", "--trace", "./map")
    assert "what is read" in refused(done)
    assert (tmp_path / "map").read_text() == text


def test_two_exports_are_two_files(pysev_in, tmp_path):
    (tmp_path / "t").write_bytes(TEXT)
    (tmp_path / "old").write_bytes(b"as it was")
    (tmp_path / "link").symlink_to("old")
    for one, other in (("new", "./new"), ("old", "link")):
        done = pysev_in("trace", "t", "--csv", one, "--jsonl", other)
        assert "another export" in refused(done)
        done = pysev_in("run", SCENARIO, "--trace", one, "--perfetto", other)
        assert "another export" in refused(done)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "old").read_bytes() == b"as it was"


@pytest.mark.parametrize("args", [("trace", "t", "--jsonl", ""), ("trace", "")])
def test_a_file_has_a_name(pysev_in, tmp_path, args):
    (tmp_path / "t").write_bytes(TEXT)
    assert "without a name" in refused(pysev_in(*args))
