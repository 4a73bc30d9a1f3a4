"""``pysev cache`` as its users meet it."""

import json
import subprocess
import sys

import pytest

from pysev.caches.command import example_text


def run(tmp_path, *args, stdin=b""):
    return subprocess.run(
        [sys.executable, "-m", "pysev", "cache", *args],
        input=stdin,
        capture_output=True,
        cwd=tmp_path,
        timeout=120,
    )


def refused(done):
    assert (done.returncode, done.stdout) == (2, b"")
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("pysev"), lines
    return lines[0]


def test_without_a_file_it_shows_the_example_and_fits_a_mail(tmp_path):
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (1, b"")
    text = done.stdout.decode()
    for line in example_text().splitlines():
        assert line in text
    lines = text.splitlines()
    assert len(lines) < 70 and max(map(len, lines)) <= 100
    assert "what memory can hold in the end: 4 contents, 3 corrupt (60 states)" in lines
    assert "  with cpu 0 wbinvd alone, 0x1000 can still be corrupt" in lines
    assert "  1. cpu 1 wbinvd | cpu 1 wbnoinvd: after line 5 and before line 9" in lines


def test_a_coherent_part_ends_well(tmp_path):
    done = run(tmp_path, "--coherent")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"memory is what software stored, whatever the order" in done.stdout


@pytest.mark.parametrize("how", ["file", "stdin"])
def test_json_of_a_program(tmp_path, how):
    text = b"cpu 0 store 0x1000 c=1 old\nkexec\ncpu 0 store 0x1000 c=0 new\n"
    (tmp_path / "own.txt").write_bytes(text)
    done = run(tmp_path, "own.txt" if how == "file" else "-", "--json", "--cpus", "3", stdin=text)
    assert (done.returncode, done.stderr) == (1, b"")
    found = json.loads(done.stdout)
    assert (found["verdict"], found["cpus"], found["complete"]) == ("corrupt", 3, True)
    assert [one["memory"] for one in found["contents"]] == [
        [{"spa": "0x0000000000001000", "content": c, "expected": "c=0 new", "corrupt": bad}]
        for c, bad in (("c=0 new", False), ("c=1 old", True))
    ]
    assert [step["op"] for step in found["counterexample"]] == [
        *("store", "kexec", "store", "evict", "evict")
    ]
    (cure,) = found["missing"]["cures"]
    assert {
        "any_of": ["any cpu clflush 0x1000 c=1", "cpu 0 wbinvd", "cpu 0 wbnoinvd"],
        "where": "after line 1 and before line 3",
    } in cure[0]


@pytest.mark.parametrize(
    ("args", "stdin", "words"),
    [
        (["-"], b"fly", "standard input, line 1: 'fly'"),
        (["-"], b"cpu 0 wbinvd\n\xff", "line 2: byte 0xff"),
        (["-"], b"", "no statement"),
        (["-"], b"#" * (1 << 21), "at most"),
        (["missing.txt"], b"", "missing.txt"),
        (["--cpus", "0"], b"", "at least 1"),
        (["--cpus", "1"], b"", "the machine has 1"),
        (["--cpus", "65"], b"", "65"),
        (["--plot", "x.gif"], b"", ".png or .svg"),
        (["--plot", "none/x.png"], b"", "none/x.png"),
        (["--scale", "486"], b"", "there are rome, milan"),
        (["--scale", "genoa", "-"], b"", "not both"),
        (["--scale", "genoa-x", "--cpus", "4000"], b"", "MiB"),
        (["--scale", "genoa", "--cpus", "5000"], b"", "must be 1 to 4096"),
        (["--scale", "rome", "--cpus", "1", "--seed", "-1"], b"", "64 bits"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, args, stdin, words):
    assert words in refused(run(tmp_path, *args, stdin=stdin))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.png", "x.SVG"])
def test_a_plot_is_a_picture(tmp_path, name):
    done = run(tmp_path, "--plot", name)
    assert (done.returncode, done.stderr) == (1, b"")
    begin = (tmp_path / name).read_bytes()[:5]
    assert begin in (b"\x89PNG\r", b"<?xml")


def test_without_matplotlib_the_extra_is_named(tmp_path):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError('none here')\n")
    assert "pysev[plot]" in refused(run(tmp_path, "--plot", "x.png"))


@pytest.mark.slow
def test_at_scale_millions_of_lines_and_the_corrupt_bytes(tmp_path):
    done = run(tmp_path, "--scale", "rome", "--cpus", "16", "--seed", "7", "--json")
    assert (done.returncode, done.stderr) == (1, b"")
    found = json.loads(done.stdout)
    assert found["lines"] > 1 << 20
    kexecs = {one["wbinvd"]: one for one in found["kexecs"]}
    assert kexecs["every CPU"]["corrupt_bytes"] == 0
    for who in ("nobody", "the kexec CPU"):
        one = kexecs[who]
        sizes = [int(end, 16) - int(begin, 16) for begin, end in one["ranges"]]
        assert sum(sizes) == one["corrupt_bytes"] > 0
    again = json.loads(
        run(tmp_path, "--scale", "rome", "--cpus", "16", "--seed", "7", "--json").stdout
    )
    assert again == found


def test_at_scale_the_text_fits_and_a_coherent_part_ends_well(tmp_path):
    args = ("--scale", "rome", "--cpus", "2", "--plot", "x.svg")
    done = run(tmp_path, *args)
    assert (done.returncode, done.stderr) == (1, b"")
    lines = done.stdout.decode().splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= 100
    assert (tmp_path / "x.svg").stat().st_size > 1000
    assert run(tmp_path, *args, "--coherent").returncode == 0
