"""Searches on disk: cut off at any moment, taken up again, refused when they are not whole."""

import hashlib
import json
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from ghcbcore.errors import OutOfRange
from pysev.checking import check, checkpoint
from pysev.checking.checkpoint import BadCheckpoint, Checkpoint
from pysev.flow import Flow, add, op
from pysev.machine import Machine
from pysev.scenarios import find

NAME = "sev-es-kexec/jump-table-ack-early"
FIELDS = (
    "verdict", "property", "states", "transitions", "depth", "complete",
    "counterexample", "violations", "reached", "stopped", "not_asked",
)  # fmt: skip


def scenario(n_cpus=4, name=NAME):
    found = find(name)
    return found.build(Machine.of(n_cpus, jump_table=found.jump_table))


def grid(n, limit=None):
    """Two agents that count: (n + 1)**2 states; ``limit`` is where x may not come."""
    flow = Flow("grid")
    flow.globals(x=0, y=0)
    for name, word in (("x", flow.g.x), ("y", flow.g.y)):
        agent = flow.agent(name)
        agent.at("count", op("+ 1", when=[word < n], do=[add(word, 1)], to="."), ends=True)
    if limit is not None:
        flow.always("x stays small", lambda s: s.g.x < limit)
    return flow


def wide(n_slice, n_common):
    """A flow that needs wider ids from some moment on."""
    flow = Flow("wide")
    flow.globals(n=0)
    flow.per_cpu(n=0)
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    boot.at("count", op("+", when=[flow.g.n < n_common], do=[add(flow.g.n, 1)], to="."), ends=True)
    ap.at("count", op("+", when=[flow.cpu.n < n_slice], do=[add(flow.cpu.n, 1)], to="."), ends=True)
    return flow


def assert_same(result, expected):
    for name in FIELDS:
        assert getattr(result, name) == getattr(expected, name), name
    assert result.warnings == ()


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch):
    """What is written need not outlast the machine here; it would take minutes."""
    monkeypatch.setattr(checkpoint.os, "fsync", lambda fd: None)


class Cut(Exception):
    """What a test raises in the middle of a search."""


def cut_after(monkeypatch, n_saves):
    """Let the search end at the save after ``n_saves`` ones."""
    save, count = Checkpoint.save, [0]

    def counted(self, *args):
        count[0] += 1
        if count[0] > n_saves:
            raise Cut
        save(self, *args)

    monkeypatch.setattr(Checkpoint, "save", counted)


# -- taken up again ----------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_search_that_is_cut_off_again_and_again_finds_the_same(
    tmp_path, monkeypatch, symmetric, threads
):
    expected = check(scenario(), 4, symmetric=symmetric)
    options = {"symmetric": symmetric, "checkpoint": str(tmp_path), "checkpoint_seconds": 0}
    cuts = 0
    for n_saves in (1, 2, 3, 10, 20):
        with monkeypatch.context() as patch:
            cut_after(patch, n_saves)
            try:
                check(scenario(), 4, threads=threads, **options)
            except Cut:
                cuts += 1
    assert cuts >= 4
    assert_same(check(scenario(), 4, threads=threads, **options), expected)


def test_a_finished_search_gives_its_result_at_once(tmp_path, monkeypatch):
    expected = check(scenario(), 4, checkpoint=str(tmp_path))
    monkeypatch.setattr("pysev.checking.search.Search._chunk", None)  # nothing is expanded
    assert_same(check(scenario(), 4, checkpoint=str(tmp_path)), expected)


@pytest.mark.slow
def test_a_search_that_is_killed_at_any_moment_is_taken_up_again(tmp_path):
    expected = check(scenario(5), 5)
    rng, killed = random.Random(1), 0
    for attempt in range(10):
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", textwrap.dedent(f"""
                from pysev.checking import check
                from pysev.machine import Machine
                from pysev.scenarios import find
                found = find({NAME!r})
                flow = found.build(Machine.of(5, jump_table=found.jump_table))
                print("starts", flush=True)
                check(flow, 5, checkpoint={str(tmp_path)!r}, checkpoint_seconds=0)
            """)],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.02 + 0.02 * attempt))
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        child.stdout.close()
    assert killed >= 5
    assert_same(check(scenario(5), 5, checkpoint=str(tmp_path), checkpoint_seconds=0), expected)


def writes_of(run, monkeypatch):
    """Return how often a search calls ``os.fsync``: moments at which it can be cut off."""
    count = [0]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", lambda fd: count.__setitem__(0, count[0] + 1))
        run()
    return count[0]


def test_a_search_cut_off_between_any_two_writes_is_taken_up_again(tmp_path, monkeypatch):
    flow, expected = grid(3, limit=3), check(grid(3, limit=3), 1)
    one = tmp_path / "one"
    total = writes_of(
        lambda: check(flow, 1, checkpoint=str(one), checkpoint_seconds=0), monkeypatch
    )
    assert total > 20
    for n in range(total):
        folder, left = tmp_path / str(n), [n]

        def fsync(fd, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Cut

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.os, "fsync", fsync)
            with pytest.raises(Cut):
                check(flow, 1, checkpoint=str(folder), checkpoint_seconds=0)
        assert_same(check(flow, 1, checkpoint=str(folder)), expected)


def test_a_search_that_time_ended_goes_on(tmp_path):
    expected = check(scenario(), 4)
    first = check(scenario(), 4, checkpoint=str(tmp_path), seconds=0)
    assert (first.verdict, first.stopped, first.states) == ("unknown", "seconds", 1)
    assert_same(check(scenario(), 4, checkpoint=str(tmp_path)), expected)


@pytest.mark.parametrize("depths", [(0, 1, 5), (20, 10), (7, 7)])
def test_a_search_that_depth_ended_goes_on(tmp_path, depths):
    expected = check(scenario(), 4)
    deepest = 0
    for depth in depths:
        result = check(scenario(), 4, checkpoint=str(tmp_path), depth=depth)
        deepest = max(depth, deepest)  # what was found already stays found
        assert (result.stopped, result.complete, result.depth) == ("depth", False, deepest)
        assert result.states == check(scenario(), 4, depth=deepest).states
    assert_same(check(scenario(), 4, checkpoint=str(tmp_path)), expected)


def test_a_search_that_memory_ended_goes_on_with_more(tmp_path):
    expected = check(scenario(5), 5)
    options = {"checkpoint": str(tmp_path), "checkpoint_seconds": 0}
    least = check(scenario(5), 5, depth=0).n_bytes
    result = check(scenario(5), 5, max_bytes=(least + expected.n_bytes) // 2, **options)
    assert (result.stopped, result.complete) == ("memory", False)
    assert 1000 < result.states < expected.states
    saved = json.loads((tmp_path / "search.json").read_text())["search"]
    assert saved["written"]["parents"] > 1000
    with pytest.raises(OutOfRange, match=r"max_bytes \d+: the search in .* does not fit"):
        check(scenario(5), 5, max_bytes=least + 1000, **options)
    assert_same(check(scenario(5), 5, **options), expected)


def test_ids_that_become_too_narrow_start_the_folder_again(tmp_path, monkeypatch):
    flow, expected = wide(300, 2), check(wide(300, 2), 2)
    options = {"checkpoint": str(tmp_path), "checkpoint_seconds": 0}
    for n_saves in (200, 150, 200):  # narrow, wide, wide
        with monkeypatch.context() as patch:
            cut_after(patch, n_saves)
            with pytest.raises(Cut):
                check(flow, 2, **options)
    assert_same(check(flow, 2, **options), expected)
    saved = json.loads((tmp_path / "search.json").read_text())["search"]
    assert saved["widths"] == [4, 2]
    assert_same(check(flow, 2, **options), expected)


def test_cut_off_while_the_folder_starts_again(tmp_path, monkeypatch):
    flow, expected = wide(300, 2), check(wide(300, 2), 2)
    options = {"checkpoint": str(tmp_path), "checkpoint_seconds": 0}
    unlink = Path.unlink
    for n_unlinked in (0, 1, 4):
        left = [n_unlinked]

        def cut_unlink(self, missing_ok=False, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Cut
            unlink(self, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", cut_unlink)
            with pytest.raises(Cut):
                check(flow, 2, **options)
    assert_same(check(flow, 2, **options), expected)


# -- a disk that is full -----------------------------------------------------------------------


def test_a_failed_write_leaves_search_and_old_checkpoint_as_they_are(tmp_path, monkeypatch):
    expected = check(scenario(), 4)
    append, n = Checkpoint._append, [0]

    def full(self, name, array, *rest):
        n[0] += 1
        if n[0] > 60 and n[0] % 11 == 0:  # each time at another file
            raise OSError(28, "No space left on device")
        append(self, name, array, *rest)

    options = {"checkpoint": str(tmp_path), "checkpoint_seconds": 0}
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "_append", full)
        result = check(scenario(), 4, **options)
        assert len(result.warnings) > 3
        assert all("could not be saved" in w and "No space" in w for w in result.warnings)
        for name in FIELDS:
            assert getattr(result, name) == getattr(expected, name)
    assert_same(check(scenario(), 4, **options), expected)


@pytest.mark.parametrize("when", range(40, 54))
def test_a_write_that_fails_once_spoils_no_later_one(tmp_path, monkeypatch, when):
    expected = check(scenario(3), 3)
    append, n = Checkpoint._append, [0]

    def full(self, name, array, *rest):
        n[0] += 1
        if n[0] == when:
            raise OSError(28, "No space left on device")
        append(self, name, array, *rest)

    options = {"checkpoint": str(tmp_path), "checkpoint_seconds": 0}
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "_append", full)
        cut_after(patch, 20)
        with pytest.raises(Cut):
            check(scenario(3), 3, **options)
    assert_same(check(scenario(3), 3, **options), expected)


def test_files_that_may_not_grow_end_no_search(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(f"""
            import resource, signal
            from pysev.checking import check
            from pysev.machine import Machine
            from pysev.scenarios import find
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            found = find({NAME!r})
            flow = found.build(Machine.of(4, jump_table=found.jump_table))
            result = check(flow, 4, checkpoint={str(tmp_path)!r}, checkpoint_seconds=0)
            warned = result.warnings and "could not be saved" in result.warnings[0]
            print(result.states, bool(warned))
        """)],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000  # the child's alone
    expected = check(scenario(), 4)
    assert done.stdout.split() == [str(expected.states), "True"]
    assert (tmp_path / "search.json").stat().st_size < 50_000
    saved = json.loads((tmp_path / "search.json").read_text())["search"]
    assert 0 < saved["written"]["parents"] < expected.states
    assert_same(check(scenario(), 4, checkpoint=str(tmp_path)), expected)


# -- what is refused ---------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A folder with a search that depth ended."""
    check(scenario(), 4, checkpoint=str(tmp_path), depth=60)
    return tmp_path


def other_ends():
    flow = scenario()
    agent = flow.agents[0]
    agent.ends.add(next(label for label in agent.labels if label not in agent.ends))
    return flow


def more_properties():
    flow = scenario()
    flow.always("one more", lambda s: s.g.pc_0 >= 0)
    return flow


@pytest.mark.parametrize(
    ("flow", "n_cpus", "options"),
    [
        (scenario, 5, {}),
        (scenario, 3, {}),
        (scenario, 4, {"symmetric": False}),
        (lambda: scenario(4, "sev-es-kexec/jump-table"), 4, {}),
        (other_ends, 4, {}),
        (more_properties, 4, {}),
        (lambda: grid(3), 1, {}),
    ],
)
def test_the_folder_of_another_search_is_refused(saved, flow, n_cpus, options):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(BadCheckpoint, match=r"search\.json: another search"):
        check(flow(), n_cpus, checkpoint=str(saved), **options)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


@pytest.mark.parametrize("name", [*checkpoint.FILES])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "flipped", "random"])
def test_a_damaged_file_is_refused_by_name(saved, name, damage):
    path = saved / f"{name}.bin"
    data = path.read_bytes()
    if not data:
        pytest.fail(f"{name} is empty: nothing to damage")
    rng = random.Random(name)
    if damage == "missing":
        path.unlink()
    else:
        at = rng.randrange(len(data))
        path.write_bytes(
            {
                "truncated": data[:-1],
                "empty": b"",
                "flipped": data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
                "random": rng.randbytes(len(data)),
            }[damage]
        )
    with pytest.raises(BadCheckpoint, match=rf"{name}\.bin"):
        check(scenario(), 4, checkpoint=str(saved))


def test_what_follows_after_the_elements_that_count_does_not(saved):
    for name in checkpoint.FILES:
        with (saved / f"{name}.bin").open("ab") as stream:
            stream.write(b"cut off in the middle")
    assert_same(check(scenario(), 4, checkpoint=str(saved)), check(scenario(), 4))


HEADERS = {
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "too deep": b"[" * 100_000,
    "without a checksum": b'{"search": {}}',
    "a wrong checksum": b'{"search": {}, "sha256": "00"}',
    "a very long number": b'{"search": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_is_none_is_refused(saved, what):
    (saved / "search.json").write_bytes(HEADERS[what])
    with pytest.raises(BadCheckpoint, match=r"search\.json: not"):
        check(scenario(), 4, checkpoint=str(saved))


def test_any_changed_byte_of_a_header_is_refused(saved):
    path, rng = saved / "search.json", random.Random(0)
    data = path.read_bytes()
    for _ in range(200):
        at, value = rng.randrange(len(data)), rng.randrange(256)
        changed = data[:at] + bytes([value]) + data[at + 1 :]
        path.write_bytes(changed)
        if json.loads(data) == _loads(changed):
            continue
        with pytest.raises(BadCheckpoint, match=r"search\.json"):
            Checkpoint(saved, json.loads(data)["search"]["who"])


def _loads(data):
    try:
        return json.loads(data)
    except ValueError:
        return None


ABSURD = {
    "widths": [[2, 2], [8, 1], [0, 0]],
    "n_words": [0, -1, 5, 10**30, "x", None],
    "n_transitions": [-1, 1 << 64, "x", None],
    "begin": [-1, 10**30, 0, "x"],
    "low": [-1, 10**30],
    "high": [-1, 10**30],
    "depth": [-1, None],
    "n_terminals": [-1, 10**9],
    "first": [{"x": [0, 10**30]}, {"x": [0, -1]}, {"x": 3}, 7],
    "parents": [-1, 10**30, 1, "x"],
    "keys": [-1, 10**18],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in ABSURD for v in ABSURD[n]])
def test_absurd_numbers_are_refused_even_with_a_right_checksum(saved, name, value):
    path = saved / "search.json"
    header = json.loads(path.read_text())["search"]
    where = next(part for part in (header, header["book"], header["written"]) if name in part)
    assert where[name] != value
    where[name] = value
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"search": header, "sha256": digest}))
    with pytest.raises(BadCheckpoint, match=str(saved)):
        check(scenario(), 4, checkpoint=str(saved))


def test_files_without_a_header_are_left_alone(saved):
    (saved / "search.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"\.bin without search\.json"):
        check(scenario(), 4, checkpoint=str(saved))
    assert (saved / "keys.bin").stat().st_size > 0


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        check(scenario(), 4, checkpoint=str(tmp_path / "file" / "folder"))


@pytest.mark.parametrize("option", ["fingerprints", "reduced"])
def test_a_checkpoint_keeps_whole_states(tmp_path, option):
    with pytest.raises(OutOfRange, match="a checkpoint keeps whole states"):
        check(scenario(), 4, checkpoint=str(tmp_path), **{option: True})
    assert not list(tmp_path.iterdir())


def test_parents_and_keys_on_disk_are_those_of_the_search(saved):
    header = json.loads((saved / "search.json").read_text())["search"]
    parents = np.fromfile(saved / "parents.bin", np.uint32)
    assert len(parents) == header["written"]["parents"] == check(scenario(), 4, depth=60).states
    assert (parents[1:] < np.arange(1, len(parents))).all()


# -- the command -------------------------------------------------------------------------------


def command(*words):
    """Run ``pysev check --json``; return the exit status, the result and standard error."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pysev", "check", *words, "--json"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_the_command_takes_up_what_it_left(tmp_path):
    words = (NAME, "--cpus", "4", "--checkpoint", str(tmp_path))
    _, first, _ = command(*words, "--depth", "10")
    assert (first["complete"], first["stopped"], first["depth"]) == (False, "depth", 10)
    _, result, _ = command(*words)
    expected = check(scenario(), 4).as_json()
    for name in ("verdict", "property", "states", "transitions", "depth", "counterexample"):
        assert result[name] == expected[name], name


def test_the_command_names_a_folder_of_another_search_in_one_line(tmp_path):
    command(NAME, "--cpus", "3", "--checkpoint", str(tmp_path))
    status, result, error = command(NAME, "--cpus", "4", "--checkpoint", str(tmp_path))
    assert (status, result) == (2, None)
    assert "search.json: another search" in error and len(error.splitlines()) == 1
