"""A wrong rule in the host's headers does not pass: each line is changed once and somebody sees it.

Recorded histories, at every step of which the core and the oracle agreed, are replayed by a small
program of changed headers. If it comes to another result than with unchanged ones, the comparison
with the oracle would have failed. Lines about faults are left out: no oracle knows them, and
`test_hostile.py` has them.
"""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from host_pair import EVENTS, EXTRAS, KINDS, SWITCHES
from host_record import Recorded, file_of
from test_host_pages import one_of_each, page_states
from test_host_vcpus import history

import ghcbcore

INCLUDE = Path(ghcbcore.get_include())
DRIVER = Path(__file__).with_name("host_driver.c")
HEADERS = (
    *("answer.h", "answer_exit.h", "answer_io.h", "answer_msr.h", "answer_psc.h", "answer_snp.h"),
    "vcpu.h",
)
ALL = (*KINDS, "memory")
CPUID = [
    (0x8000_001F, 0, 1, 2, 3, 4),
    (0xD, 0, 5, 6, 7, 8),
    (0xD, 1, 9, 10, 11, 12),
    (1, 0, 1, 1, 2, 3),
]


class Mutation(NamedTuple):
    """One line of one header, written differently."""

    header: str
    line: int
    old: str
    new: str


# Lines that act only when a fault happens or happened: `test_hostile.py` has them.
FAULTY = (
    "features &= word;",
    "answered = 0;",
    "word & 63",
    "nae->info2 = vcpu->sw_exit_info_2;",
    "nae->info1 = GHCB_REPLY_EXCEPTION;",
    "if (nae->code >= GHCB_NAE_MMIO_READ &&",
    "GHCB_MALFORMED_INVALID_EVENT);",
    "exit->vcpu->reset_hold == GHCB_HOLD_NONE",
    "if (nae->results & GHCB_INPUT_RAX)",
    "extra_wakes",
)
FAULTY_BLOCKS = (("ghcb_page_change(exit->page, word);", "ghcb_answer_nae(exit);"),)
FAULTY_BLOCKS += (("vcpu->extra_wakes--;", "} else if"),)
# More pages than the driver has vCPUs for, an event without a rule: `test_host_names.py` has them.
ELSEWHERE = (
    "per_page",
    "i < n; i++",
    "(at + i ?",
    "gpa + at *",
    "GHCB_EVENT_UNMODELLED, nae->code",
)

# What nobody can see, and why.
EQUIVALENT = {
    "i < profile->n_cpuid": "one entry too many is read: for sanitizers",
    "access->size_bytes < 8 ?": "three bits are at most 7",
    "memset(data, 0, sizeof(data));": "whoever answers fills it",
    "+ nae->rcx <= nae->rbx": "equal only for 0 pages, which are refused before",
    "if (n_bytes < GHCB_PSC_OFF_ENTRIES)": "a header without an entry is refused after it too",
    "psc + GHCB_PSC_OFF_CUR_ENTRY": "the offset is 0",
    "nae->results = 0;": "what the stack held: for sanitizers",
    "access.result2 = nae->rbx;": "the driver's device always says; `test_device.py` has one not",
    "vcpu->sw_exit_info_1 = GHCB_REPLY_OK;": "it is, since the hold was asked for",
}

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
    ("if (!", "if ("),
]


def mutations():
    found = []
    for header in HEADERS:
        lines = (INCLUDE / "ghcbcore" / header).read_text(encoding="ascii").split("\n")
        is_faulty = False
        for number, line in enumerate(lines):
            is_faulty |= any(first in line for first, _ in FAULTY_BLOCKS)
            is_faulty &= not any(last in line for _, last in FAULTY_BLOCKS)
            if is_faulty or any(part in line for part in (*FAULTY, *ELSEWHERE)):
                continue
            code = line.split("/*")[0].rstrip()
            if not code.startswith("    ") or "fault" in code or code.lstrip().startswith("*"):
                continue
            changed = []
            if re.fullmatch(r"    +if \(.*\)( \{)?", code):
                changed.append(re.sub(r"if \((.*)\)", r"if (!(\1))", code))
            for old, new in SWAPS:
                for at in [m.start() for m in re.finditer(re.escape(old), code)]:
                    changed.append(code[:at] + new + code[at + len(old) :])
            is_statement = re.fullmatch(r" +[\w\[\]>.\-]+ ([|&+^]?=) .*;", code) or re.fullmatch(
                r" +(ghcb_\w+|memcpy|memset)\(.*\);|.*(\+\+|--);", code
            )
            if is_statement and "for (" not in code:
                changed.append(re.sub(r"\S.*", ";", code))
            found += [Mutation(header, number, line, new) for new in changed]
    return found


@pytest.fixture(scope="module")
def recorded():
    """Histories that reach everything, as a file for the driver, and the pairs that made them."""
    pairs = []
    likely = [*EVENTS, *[0x7B] * 6, *[0x81, 0x8000_0012, 0x8000_0014, 0x8000_0015] * 3]
    likely += [0x72, 0x7C, 0x8000_0013] * 2
    names = sorted(SWITCHES)
    for seed in range(90):
        rng = Random(seed)
        guest = rng.choice(["sev_es", "snp", "snp"])
        pair = Recorded(
            guest,
            3,
            rules=[names[seed // 2 % len(names)]] if seed < 4 * len(names) else [],
            kinds=[ALL, ALL, ("memory", "map_gpa", "guest_request"), ALL, None][seed % 5],
            seed=seed,
            extra=sorted(EXTRAS) if seed % 4 else [],
            cpuid=CPUID,
            max_version=1 if seed % 7 == 0 else 2,
        )
        one_of_each(pair, rng, 200, events=likely)
        pairs.append(pair)
    # what is marked only if it is a result
    for rules in (["REPLY_ALONE"], ["REPLY_ADDS"], ["REPLY_ALONE", "IO_IGNORED"]):
        pair = Recorded("snp", 1, kinds=ALL, seed=1, rules=rules)
        one_of_each(pair, Random(1), 400, events=[0x7B, 0x8000_0012])
        pairs.append(pair)
    for seed in range(24):
        guest, rules = ["snp", "sev_es", "snp", "plain"][seed % 4], []
        if seed % 4 == 2:
            rules = ["REPLY_UNREGISTERED"]
        pair = Recorded(guest, 3, kinds=ALL, seed=seed, rules=rules, extra=["hv_ipi"])
        history(pair, Random(seed), 150)
        pairs.append(pair)
    for seed in range(8):
        kinds = [ALL, ("map_gpa", "memory"), ("memory",)][seed % 3]
        pair = Recorded("snp", 1, kinds=kinds, seed=seed)
        page_states(pair, Random(seed), 60)
        pairs.append(pair)
    with TemporaryDirectory() as name:
        path = Path(name) / "histories"
        path.write_bytes(file_of(pairs))
        yield path, pairs


def replay(path, *include):
    """Compile the driver in front of these folders and return what it prints; None: it failed."""
    with TemporaryDirectory() as name:
        program = Path(name) / "driver"
        flags = [f"-I{folder}" for folder in include]
        subprocess.run(
            [os.environ.get("CC", "gcc"), "-std=c11", "-O0", "-w", *flags, "-o", program, DRIVER],
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
    path, pairs = recorded
    for line, pair in zip(replay(path, INCLUDE).splitlines(), pairs, strict=True):
        words = [int(word, 16) for word in line.split()[1:]]
        assert words == [word for row in pair.host.vcpus.tolist() for word in row]


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
def test_one_changed_line_in_eight_is_noticed(recorded):
    path, _ = recorded
    survivors(path, mutations()[::8])


@pytest.mark.exhaustive
def test_every_changed_line_is_noticed(recorded, capsys):
    path, _ = recorded
    everything = mutations()
    assert len(everything) > 300
    missed = survivors(path, everything)
    with capsys.disabled():
        print(f"\nchanged {len(everything)} lines, {len(missed)} of them without any effect")


def test_each_exception_is_for_a_line_that_is_there():
    text = "".join((INCLUDE / "ghcbcore" / header).read_text() for header in HEADERS)
    for part in (
        *FAULTY,
        *ELSEWHERE,
        *EQUIVALENT,
        *(part for both in FAULTY_BLOCKS for part in both),
    ):
        assert part in text, "an exception for a line that is gone"
