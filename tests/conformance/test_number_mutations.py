"""A wrong number in ``include/`` does not pass: each is changed once, and the comparison fails.

A changed copy of one header lies in front of the others on the include path, so a mutation costs
one run of the compiler's front end over the assertions of ``linux_numbers``.
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import linux_numbers as linux
import pytest


class Mutation(NamedTuple):
    """One number of one header, written differently."""

    header: str
    what: str
    old: str
    new: str


def mutations_of_defines() -> list[Mutation]:
    """Return one up and one down for every define that Linux has a counterpart of."""
    wanted = {row.ours for row in linux.compared()}
    found = []
    for header in sorted(linux.INCLUDE.glob("ghcbcore/*.h")):
        pattern = r"^#define (\w+)[ \t]+(\S.*?)[ \t]*(?:/\*.*)?$"
        for line in re.finditer(pattern, linux.declared(header), re.M):
            name, value = line.groups()
            if name in wanted:
                old = line[0]
                found += [
                    Mutation(header.name, name, old, f"#define {name} (({value}) {change})")
                    for change in ("+ 1", "- 1")
                ]
    return found


def mutations_of_gaps() -> list[Mutation]:
    """Return one for every array of the GHCB page: all that comes after it moves."""
    text = linux.declared(linux.INCLUDE / "ghcbcore" / "page.h")
    return [
        Mutation("page.h", line[1], line[0], f"uint8_t {line[1]}[{line[2]} + 8];")
        for line in re.finditer(r"uint8_t (\w+)\[(0x\w+)\];", text)
    ]


def judge(mutation: Mutation) -> list[str]:
    text = (linux.INCLUDE / "ghcbcore" / mutation.header).read_text(encoding="ascii")
    assert text.count(mutation.old) == 1, mutation
    with TemporaryDirectory() as name:
        copy = Path(name) / "ghcbcore" / mutation.header
        copy.parent.mkdir()
        copy.write_text(text.replace(mutation.old, mutation.new), encoding="ascii")
        return linux.complaints(Path(name), linux.INCLUDE)


def unnoticed(mutation: Mutation) -> bool:
    """Tell whether nobody said what is wrong: a row that uses the name, or the page's layout."""
    rows = [
        line
        for line in judge(mutation)
        if "static assertion failed" in line
        and (re.search(rf"(kernel|uapi): .*\b{mutation.what}\b", line) or "offset of" in line)
    ]
    return not rows


def identifier(mutation: Mutation) -> str:
    return f"{mutation.header}-{mutation.what}"


DEFINES, GAPS = mutations_of_defines(), mutations_of_gaps()


def test_an_unchanged_copy_of_each_header_passes():
    for header in sorted(linux.INCLUDE.glob("ghcbcore/*.h")):
        guard = next(line for line in header.read_text().splitlines() if line.startswith("#ifndef"))
        assert judge(Mutation(header.name, "nothing", guard, guard)) == []


@pytest.mark.parametrize("mutation", [*DEFINES[:: len(DEFINES) // 6], GAPS[0]], ids=identifier)
def test_a_changed_number_is_noticed(mutation):
    assert not unnoticed(mutation)


def test_there_is_a_mutation_for_every_name_with_a_counterpart():
    names = {row.ours for row in linux.compared() if re.fullmatch(r"\w+", row.ours)}
    assert names == {mutation.what for mutation in DEFINES}
    assert len(DEFINES) == 2 * len(names)


@pytest.mark.slow
def test_every_changed_number_is_noticed(capsys):
    linux.complaints(linux.INCLUDE)  # Linux's side once, before the threads ask for it
    everything = [*DEFINES, *GAPS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = list(pool.map(unnoticed, everything))
    missed = [m for m, verdict in zip(everything, verdicts, strict=True) if verdict]
    assert missed == []
    with capsys.disabled():
        print(f"\nchanged {len(everything)} numbers one at a time, each was noticed")
