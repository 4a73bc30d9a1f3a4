"""A wrong rule of page ownership does not pass: each line is changed once and somebody sees it.

The vectors of page ownership and random histories, at every step of which core and oracle agreed,
are replayed by a small program of changed headers (`frame_driver.c`). If it comes to another result
than with unchanged ones, the comparison with the oracle would have failed. Some more histories have
operands that the oracle does not know (key slots, the software's views): `test_frame_software.py`.
"""

import os
import re
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from memory_core import CoreMemory, Frames
from memory_oracle import MemoryOracle
from memory_steps import FIRMWARE, GUEST, HOST, N_REGIONS, Steps
from memory_vectors import ROWS, call, machine_for
from test_ledger import is_region, some_op

import ghcbcore
from ghcbcore import frame
from ghcbcore._cffi import lib
from ghcbcore.frame import Op

INCLUDE = Path(ghcbcore.get_include())
DRIVER = Path(__file__).with_name("frame_driver.c")
HEADERS = ("frame_instruction.h", "frame_firmware.h", "frame_rule.h", "frame_access.h")
MAX_FRAMES = 8192


class Mutation(NamedTuple):
    """One line of one header, written differently."""

    header: str
    line: int
    old: str
    new: str


# What nobody can see, and why.
EQUIVALENT = {
    "- gfn ? (1ULL << RMP_TAG_SHIFT) - gfn : n;": "equal numbers of frames are the same",
    "is_region && at && op->kind >=": "GCTX_CREATE is never of a region",
    "FRAME_LEAF_SHIFT, FRAME_LEAF_WIDTH) > op->size)": "an equal size is the same",
}
# A `break` after these changes nothing: what comes next finds nothing to do.
FALLS_THROUGH = (
    "ghcb_frame_init(op, frame);",  # no case comes after it
    "op->value == FRAME_UNMAPPED ? 0 : op->size);",  # a leaf of that size is not split
    "ghcb_frame_launch_update(op, frame);",  # what is mutable is not reclaimed
    "ghcb_frame_fresh(frame, FRAME_BIT(FRAME_ASSIGNED), 0);",  # nothing is left to swap out
)

SWAPS = [
    (" == ", " != "),
    (" != ", " == "),
    (" <= ", " < "),
    (" >= ", " > "),
    (" && ", " || "),
    (" || ", " && "),
    (" < ", " <= "),
    (" > ", " >= "),
    (" + ", " - "),
    (" - ", " + "),
    (" | ", " & "),
    (" & ", " | "),
    ("(!", "("),
    (" !", " "),
]


def mutations():
    found = []
    for header in HEADERS:
        lines = (INCLUDE / "ghcbcore" / header).read_text(encoding="ascii").split("\n")
        for number, line in enumerate(lines):
            code = line.split("/*")[0].rstrip()
            if (
                not code.startswith("    ")
                or code.lstrip().startswith("*")
                or code.endswith(")\n{")
            ):
                continue
            if code.endswith((",", ")")) and re.match(
                r" +(const )?(ghcb_|uint64_t )\w+_t \*", code
            ):
                continue  # parameters
            changed = []
            if re.fullmatch(r"    +if \(.*\)( \{)?", code):
                changed.append(re.sub(r"if \((.*)\)", r"if (!(\1))", code))
            for old, new in SWAPS:
                for at in [m.start() for m in re.finditer(re.escape(old), code)]:
                    changed.append(code[:at] + new + code[at + len(old) :])
            is_statement = re.fullmatch(r" +[\w\[\]>.\-*&]+ ([|&+^]?=) .*;", code) or re.fullmatch(
                r" +ghcb_\w+\(.*\);", code
            )
            if is_statement:
                changed.append(re.sub(r"\S.*", ";", code))
            for name in set(re.findall(r"\b(?:SEV_RMP_FAIL|SNP_FW|FAULT|RMP_STATE)_\w+", code)):
                other = {"SEV_R": "SEV_RMP_FAIL_OVERLAP", "SNP_F": "SNP_FW_CONFIG"}
                other |= {"FAULT": "FAULT_SGX", "RMP_S": "RMP_STATE_NONE"}
                changed.append(re.sub(rf"\b{name}\b", other[name[:5]], code))
            if re.fullmatch(r" +break;", code) and not any(
                text in lines[number - 1] for text in FALLS_THROUGH
            ):
                changed.append("")
            found += [Mutation(header, number, line, new) for new in changed if new != code]
    return found


def log_of(frames):
    """Make frames note what is done to them."""
    frames.log, log = None, []
    do, move, copy = frames.do, frames.move, frames.copy

    def noted_do(op, at, n=1):
        answer = do(op, at, n)
        log.append((0, op, at, n, answer))
        return answer

    def noted_move(op, source, destination):
        answer = move(op, source, destination)
        log.append((1, op, source, destination, answer))
        return answer

    def noted_copy(at, n):
        copy(at, n)
        log.append((2, (0,) * 8, at, n, 0))

    frames.do, frames.move, frames.copy = noted_do, noted_move, noted_copy
    return log


def file_of(histories):
    """Put histories into the driver's form."""
    words = [len(histories)]
    for frames, covered, log in histories:
        words += [len(frames.flat), frames.rules, frames.max_asid, covered, len(log)]
        for what, op, at, n, answer in log:
            words += [what, *op, at, n, answer]
    return struct.pack(f"<{len(words)}Q", *(int(word) for word in words))


def covered_of(core):
    return min(core.wide(core.covered), len(core.frames.flat))


def histories_of_vectors():
    for row in ROWS:
        steps = [step.strip() for step in row["history"].split(";")]
        core = machine_for(steps, CoreMemory)
        if len(core.frames.flat) > MAX_FRAMES:
            continue
        log = log_of(core.frames)
        for step in steps:
            call(core, step)
        yield core.frames, covered_of(core), log


def history_with_oracle(seed):
    rng, n = Random(seed), (2, 4, 8)[seed % 3]
    n_pages = N_REGIONS * n
    covered = rng.choice([n_pages, n_pages, n_pages - n + 1])
    named = {"shared_read": not seed % 4, "max_asid": 0x3FE}
    machine = MemoryOracle(n_pages, n, covered, bool(seed % 2), **named)
    core = CoreMemory(n_pages, n, covered, bool(seed % 2), **named)
    log, steps = log_of(core.frames), Steps(rng.choice, n)
    names = [*HOST, *GUEST, *FIRMWARE] * 3 + ["platform"]
    for _ in range(80):
        for name, arguments in getattr(steps, rng.choice(names))():
            wanted = getattr(machine, name)(*arguments)
            assert getattr(core, name)(*arguments) == wanted
    return core.frames, covered_of(core), log


def history_of_operands(seed):
    """Any operation with any operands, few of which anybody else knows."""
    rng = Random(seed)
    frames = Frames(1200, 1100, seed % 4)
    log = log_of(frames)
    for _ in range(500):
        op, at = some_op(rng), rng.choice((0, 0, 1, 2, 512, 513, 1024, 1099, 1100, 1199))
        if op.kind == lib.FRAME_OP_MAP and op.size:
            op = op._replace(size=0)
        if is_region(op):
            at = at // 512 * 512 if at < 1024 else 0
        frames.do(op, at, 512 if is_region(op) else 1)
    return frames, 1100, log


def odd_region(rng):
    """Frames as no history leaves them, now all alike but for one, now each by itself."""

    def word():
        bits = 0
        for _ in range(rng.choice((1, 2, 4))):
            bits |= 1 << rng.randrange(64)
        guest = rng.choice((0, 1, 1, 2)) << lib.FRAME_ASID_SHIFT
        bits ^= rng.choice((0, guest | 1, guest | 5, guest | 0x11, guest | 0x15))
        bits &= ~(3 << 62 | 1 << lib.FRAME_UNCOVERED | 1 << lib.FRAME_LARGE)
        bits &= ~(0xFF << lib.FRAME_ASID_SHIFT + 2)
        return bits

    def gfn():
        tag = rng.choice((0, lib.RMP_TAG_METADATA, lib.RMP_TAG_FIRMWARE_IOMMU))
        return rng.choice((0, 0, 0, 1, 2, 512, 1 << 12)) | tag << lib.RMP_TAG_SHIFT

    frames = np.zeros((512, 2), np.uint64)
    frames[:] = (word(), gfn())
    is_large = not rng.randrange(3)
    if is_large:
        frames[:, 0] |= np.uint64(1 << lib.FRAME_LARGE)
    others = () if is_large else rng.choice(((), (0,), (7,), range(0, 512, 2)))
    for at in others:
        frames[at] = (word(), gfn())
    if not rng.randrange(4):
        frames[rng.choice((0, 7)), 0] ^= np.uint64(1 << lib.FRAME_IN_USE)
    if not is_large and not rng.randrange(6):
        frames[300:, 0] = 1 << lib.FRAME_UNCOVERED
    return frames


OWNED = 1 << lib.FRAME_ASID_SHIFT | 1 << lib.FRAME_ASSIGNED
METADATA = 1 << lib.FRAME_ASSIGNED | 1 << lib.FRAME_IMMUTABLE | 1 << lib.FRAME_VMSA
CHOSEN = (
    # (word and GPA field of all frames, of frame 7; operations; moves): what chance seldom brings
    ((OWNED | 1 << lib.FRAME_IMMUTABLE, 8), None, [(Op(lib.FRAME_OP_UNSMASH), 0)], []),
    ((OWNED | 1 << lib.FRAME_IMMUTABLE, 0x100), None, [(Op(lib.FRAME_OP_UNSMASH), 0)], []),
    ((OWNED, 505), None, [(Op(lib.FRAME_OP_PVALIDATE, size=1, asid=1, gfn=505, value=1), 7)], []),
    (
        (METADATA, lib.RMP_TAG_METADATA << lib.RMP_TAG_SHIFT | 1),
        (1 << lib.FRAME_ASSIGNED | 1 << lib.FRAME_IMMUTABLE, 0),
        [(Op(lib.FRAME_OP_SWAP_OUT, gfn=1, value=lib.FRAME_SWAP_METADATA), 3)],
        [(Op(lib.FRAME_OP_CONTENT, asid=1), 0, 7)],
    ),
)


def history_of_chosen_frames():
    """Regions in which rare bits meet; the flat rule alone."""
    held = SimpleNamespace(flat=np.zeros((512, 2), np.uint64), rules=0, max_asid=2)
    log = []
    for everywhere, at_seven, operations, moves in CHOSEN:
        held.flat[:] = everywhere
        log.append((3, (*everywhere, 0, 0, 0, 0, 0, 0), 0, 512, 0))
        if at_seven:
            held.flat[7] = at_seven
            log.append((3, (*at_seven, 0, 0, 0, 0, 0, 0), 7, 1, 0))
        for op, at in operations:
            log.append((0, op, at, 1, frame.apply(op, held.flat, at, rules=0, max_asid=2)))
        for op, a, b in moves:
            log.append((1, op, a, b, moved(held.flat, op, a, b)))
    return held, 512, log


def history_of_odd_frames(seed):
    """One region, written anew before each operation; the flat rule alone."""
    rng, log = Random(seed), []
    held = SimpleNamespace(flat=np.zeros((512, 2), np.uint64), rules=seed % 4, max_asid=2)
    named = {"rules": held.rules, "max_asid": held.max_asid}
    for _ in range(300):
        held.flat[:] = odd_region(rng)
        changes = np.nonzero((held.flat[1:] != held.flat[:-1]).any(axis=1))[0] + 1
        for first, end in zip([0, *changes], [*changes, 512], strict=True):
            one = (*map(int, held.flat[first]), 0, 0, 0, 0, 0, 0)
            log.append((3, one, first, end - first, 0))
        for _ in range(6):
            op, at = some_op(rng), rng.choice((0, 0, 0, 1, 7))
            if not rng.randrange(8):
                op = op._replace(kind=lib.FRAME_OP_LEAF)
            if op.kind in (lib.FRAME_OP_MAP, lib.FRAME_OP_LEAF):
                op = op._replace(size=rng.randrange(3 if op.kind == lib.FRAME_OP_MAP else 2))
            if op.kind in (lib.FRAME_OP_LAUNCH_UPDATE, lib.FRAME_OP_SWAP_IN):
                op = op._replace(target=rng.getrandbits(32))
            if op.kind == lib.FRAME_OP_CONTENT:
                op = op._replace(value=rng.getrandbits(10))
            if op.kind in (lib.FRAME_OP_SWAP_IN, lib.FRAME_OP_SWAP_OUT) and rng.randrange(2):
                metadata = rng.choice((0, 0, 1, 1 << 12)), op.value | lib.FRAME_SWAP_METADATA
                op = op._replace(gfn=metadata[0], value=metadata[1])
            answer = frame.apply(op, held.flat, at, **named)
            log.append((0, op, at, 1, answer))
        for _ in range(2):
            op = Op(lib.FRAME_OP_CONTENT, asid=rng.choice((1, 1, 2)), size=rng.choice((0, 0, 1)))
            a, b = rng.choice(((0, 7), (7, 0), (7, 8), (8, 7), (0, 0), (7, 7)))
            if op.size:
                a = b = 0
            log.append((1, op, a, b, moved(held.flat, op, a, b)))
    return held, 512, log


def moved(flat, op, a, b):
    answer = 0
    for i in range(512 if op.size else 1):
        answer, one, other = frame.move(
            op,
            tuple(map(int, flat[a + i])),
            tuple(map(int, flat[b + i])),
            a - b,
            source_is_first=not a,
            destination_is_first=not b,
        )
        if answer >> lib.FRAME_RESULT_CODE_SHIFT:
            break
        flat[a + i] = one
        flat[b + i] = other
    return answer


@pytest.fixture(scope="module")
def recorded():
    histories = [history_of_chosen_frames()]
    histories += [history_of_odd_frames(seed) for seed in range(8)]
    histories += histories_of_vectors()
    histories += [history_with_oracle(seed) for seed in range(24)]
    histories += [history_of_operands(seed) for seed in range(4)]
    with TemporaryDirectory() as name:
        path = Path(name) / "histories"
        path.write_bytes(file_of(histories))
        yield path


def replay(path, *include):
    """Compile the driver in front of these folders and return what it prints; None: it failed."""
    with TemporaryDirectory() as name:
        program = Path(name) / "driver"
        flags = [f"-I{folder}" for folder in include]
        subprocess.run(
            [os.environ.get("CC", "gcc"), "-std=c11", "-O1", "-w", *flags, "-o", program, DRIVER],
            check=True,
            capture_output=True,
        )
        try:
            run = subprocess.run([program, path], capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return None
    return run.stdout if run.returncode == 0 else None


def survives(mutation, path, wanted):
    text = (INCLUDE / "ghcbcore" / mutation.header).read_text(encoding="ascii").split("\n")
    assert text[mutation.line] == mutation.old
    text[mutation.line] = mutation.new
    with TemporaryDirectory() as name:
        copy = Path(name) / "ghcbcore" / mutation.header
        copy.parent.mkdir()
        copy.write_text("\n".join(text), encoding="ascii")
        try:
            return replay(path, name, INCLUDE) == wanted
        except subprocess.CalledProcessError:
            return False  # it does not compile: noticed


@pytest.mark.slow
def test_the_driver_does_what_the_core_did(recorded):
    lines = replay(recorded, INCLUDE).splitlines()
    assert len(lines) > len(ROWS)
    assert "answer" not in lines[-1]


def survivors(path, everything):
    """Return the mutations after which the recorded histories come out the same."""
    wanted = replay(path, INCLUDE)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(lambda m: survives(m, path, wanted), everything))
    missed = {m for m, survived in zip(everything, verdicts, strict=True) if survived}
    unexpected = [
        f"{m.header}:{m.line + 1}: {m.old.strip()}  =>  {m.new.strip()}"
        for m in sorted(missed)
        if not any(part in m.old for part in EQUIVALENT)
    ]
    assert not unexpected, "\n".join(unexpected)
    return missed


@pytest.mark.slow
def test_one_changed_line_in_twelve_is_noticed(recorded):
    survivors(recorded, mutations()[::12])


@pytest.mark.exhaustive
def test_every_changed_line_is_noticed(recorded, capsys):
    everything = mutations()
    assert len(everything) > 300
    missed = survivors(recorded, everything)
    with capsys.disabled():
        print(f"\nchanged {len(everything)} lines, {len(missed)} of them without any effect")


def test_each_exception_is_for_a_line_that_is_there():
    text = "".join((INCLUDE / "ghcbcore" / header).read_text() for header in HEADERS)
    for part in EQUIVALENT:
        assert part in text, "an exception for a line that is gone"
