"""``pysev sweep`` as its users meet it: refusals, kills, Ctrl-C, full disks, terminals."""

import csv
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCENARIO = "sev-es-kexec/jump-table"
PYSEV = [sys.executable, "-P", "-m", "pysev"]
SWEEP = [*PYSEV, "sweep", SCENARIO]
MANY = ["--cpus", "2..64", "--memory", "1G,4G", "--seeds", "60", "--workers", "2"]
N_MANY = 6 * 2 * 60


@pytest.fixture
def sweep(tmp_path):
    """Run ``pysev sweep`` on the jump table flow in an empty folder."""

    def run(*args, **more):
        return subprocess.run(
            [*SWEEP, *args], cwd=tmp_path, capture_output=True, text=True, timeout=120, **more
        )

    return run


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "wall_seconds"} for row in rows]


def done_in(path):
    return path.read_bytes().count(b"\n") - 1 if path.exists() else -1


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def children_of(pid):
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if int(text.rpartition(")")[2].split()[1]) == pid:
            found.append(int(status.parent.name))
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_sweep_prints_a_line_for_each_machine(sweep):
    done = sweep("--cpus", "2..8", "--memory", "1G..16T*128")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["memory", "CPUs", "seconds", "VMGEXITs", "online", "verdict"]
    machines = [line.split()[:2] for line in lines[1:10]]
    assert machines == [[m, n] for m in ("1G", "128G", "16T") for n in ("2", "4", "8")]
    assert lines[-1] == f"{SCENARIO}: 9 points: holds 9"


def test_4096_cpus_and_16_tib_take_seconds(sweep):
    began = time.monotonic()
    done = sweep("--cpus", "4096", "--memory", "16T", "--json", "--workers", "1")
    assert time.monotonic() - began < 20
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["verdict"], row["online"], row["vmgexits"]) == ("holds", 4096, 4100)


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--cpus", "8..2"), "--cpus '8..2': the range goes backwards"),
        (("--cpus", "0"), "0 CPUs; 1 to"),
        (("--cpus", "2..99999999"), "CPUs; 1 to"),
        (("--memory", "4G..1G"), "goes backwards"),
        (("--memory", "x"), "--memory 'x'"),
        (("--seeds", "1000000000"), "12000000000 points; 1 to 1000000"),
        (("--seeds", "0"), "--seeds 0"),
        (("--seed", "-1"), "64 bits"),
        (("--workers", "0"), "--workers 0"),
        (("--workers", "1000000"), "--workers 1000000"),
        (("--out", "x.txt"), "must end in .csv or .parquet"),
        (("--out", "none/x.csv"), "none/x.csv.part: No such file or directory"),
        (("--plot", "x.gif"), "must end in .png or .svg"),
        (("--plot", "none/x.png"), "none/x.png: No such file or directory"),
        (("--memmap", "none.txt"), "none.txt: No such file"),
        (("--cost", "vmexit=1us"), "the nearest is vmgexit"),
        (("--costs", "none.toml"), "none.toml: No such file"),
    ],
)
def test_bad_input_is_refused_in_one_line(sweep, tmp_path, args, why):
    done = sweep(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pysev: ") and len(done.stderr.splitlines()) == 1
    assert why in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_scenario_is_refused_with_the_nearest(tmp_path):
    done = subprocess.run(
        [*PYSEV, "sweep", "jump-tabel"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "the nearest is sev-es-kexec/jump-table" in done.stderr


def test_one_machine_that_cannot_be_is_in_its_row_and_in_the_exit_status(sweep, tmp_path):
    done = sweep("--cpus", "2,4", "--memory", "16M,1G", "--out", "x.csv", "--workers", "2")
    assert done.returncode == 2 and done.stderr == ""
    rows = rows_of(tmp_path / "x.csv")
    assert [row["verdict"] for row in rows] == ["error", "error", "holds", "holds"]
    assert all(row["error"].startswith("NoRoom") for row in rows[:2])


def test_the_files_may_not_be_one(sweep, tmp_path):
    (tmp_path / "map.csv").write_text("BIOS-e820: [mem 0x0-0x9ffff] usable\n")
    done = sweep("--memmap", "map.csv", "--out", "map.csv")
    assert done.returncode == 2 and "what is read is there" in done.stderr


def test_costs_and_a_grown_map_reach_every_worker(sweep, tmp_path):
    (tmp_path / "costs.toml").write_text('init_to_sipi = "0ns"\nboot_to_smp = "1us"\n')
    data = Path(__file__).parent.parent / "data" / "e820_epyc_volcano_769g.txt"
    done = sweep(
        *("--cpus", "64", "--memory", "1T,16T", "--memmap", str(data), "--workers", "2"),
        *("--costs", "costs.toml", "--cost", "boot_to_smp=2s", "--json"),
    )
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout)["rows"]:
        assert row["phase_boot_the_new_kernel"] >= 2
        assert row["phase_bring_up_other_CPUs"] < 0.01


def test_a_killed_sweep_goes_on_and_comes_to_the_same(sweep, tmp_path):
    part = tmp_path / "x.csv.part"
    args = [*MANY, "--out", "x.csv"]
    child = subprocess.Popen([*SWEEP, *args], cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for(lambda: done_in(part) >= 20)
    workers = children_of(child.pid)
    assert workers
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = done_in(part)
    assert 20 <= before < N_MANY and not (tmp_path / "x.csv").exists()
    wait_for(lambda: not any(map(is_alive, workers)))  # nobody is left behind
    kept = part.read_bytes().splitlines()[: before + 1]
    assert sweep(*args).returncode == 0
    assert not part.exists()
    assert sweep(*MANY, "--out", "y.csv").returncode == 0
    rows = rows_of(tmp_path / "x.csv")
    assert timeless(rows) == timeless(rows_of(tmp_path / "y.csv"))
    assert len(rows) == N_MANY
    walls = {int(row["point"]): float(row["wall_seconds"]) for row in rows}
    for line in kept[1:]:  # what was done is kept, to its very wall time
        row = json.loads(line)
        assert walls[row["point"]] == row["wall_seconds"]


def test_ctrl_c_leaves_a_file_with_which_the_sweep_goes_on(sweep, tmp_path):
    part = tmp_path / "x.csv.part"
    args = [*MANY, "--out", "x.csv"]
    child = subprocess.Popen(
        [*SWEEP, *args],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: done_in(part) >= 10)
    os.killpg(child.pid, signal.SIGINT)  # a terminal sends it to the workers, too
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130 and out == ""
    said, last = err.splitlines()
    assert last == "pysev: interrupted"
    assert said.startswith("pysev: ") and f"of {N_MANY} points are done" in said
    assert 10 <= done_in(part) < N_MANY
    assert sweep(*args).returncode == 0
    assert len(rows_of(tmp_path / "x.csv")) == N_MANY


def test_a_full_disk_is_said_in_one_line_and_the_sweep_goes_on_later(sweep, tmp_path):
    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    args = ("--cpus", "2..64", "--out", "x.csv", "--workers", "1")
    done = sweep(*args, preexec_fn=little_room)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "x.csv.part: File too large" in done.stderr and "of 6 points are done" in done.stderr
    part = (tmp_path / "x.csv.part").read_bytes()
    assert part.endswith(b"\n") and 1 < part.count(b"\n") < 7
    assert sweep(*args).returncode == 0
    assert len(rows_of(tmp_path / "x.csv")) == 6


def test_another_sweep_is_refused_and_its_file_left_alone(sweep, tmp_path):
    sweep("--cpus", "2", "--out", "x.csv")
    before = (tmp_path / "x.csv").read_bytes()
    done = sweep("--cpus", "4", "--out", "x.csv")
    assert done.returncode == 2 and "another sweep's" in done.stderr
    assert (tmp_path / "x.csv").read_bytes() == before


def test_parquet_has_the_rows_of_csv(sweep, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    args = ("--cpus", "2..16", "--memory", "16M,1G", "--seeds", "2")
    for name in ("x.csv", "x.parquet"):
        assert sweep(*args, "--out", name).returncode == 2
    rows = rows_of(tmp_path / "x.csv")
    found = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert len(found) == len(rows) == 16
    for one, other in zip(rows, found, strict=True):
        for name, value in other.items():
            if name != "wall_seconds":
                assert one[name] == ("" if value is None else str(value)), name


def test_a_terminal_sees_how_far_it_is(tmp_path):
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [*SWEEP, "--cpus", "512", "--seeds", "60", "--workers", "1"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=slave,
    )
    os.close(slave)
    seen = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(master)
    assert child.wait() == 0
    assert b"of 60 points, about" in seen
    assert seen.endswith(b"\r")  # and leaves the line as it was
