"""Linux's numbers beside ours, each read by the compiler from the headers of its side.

``tests/data/linux_names.csv`` says which of our names, or which expression over them, Linux
writes how. The two sides share macro names, so they are never in one translation unit: a small
program prints what Linux's expressions are worth, and a file of static assertions holds our
headers against these values. Whether our side compiles is the whole comparison, and a changed
copy of one header can be judged in some ten milliseconds.

Linux's side is two sets of headers, brought by ``tools/linux-headers``: ``kernel``, those internal
to the newest kernel that Debian has, and ``uapi``, those for user space.
"""

import csv
import functools
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

import ghcbcore

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MAPPING = ROOT / "tests" / "data" / "linux_names.csv"
INCLUDE = Path(ghcbcore.get_include())

# What the oracles include, and helpers for expressions of the mapping.
INCLUDES = {
    "kernel": (
        "asm/msr-index.h",
        "asm/trapnr.h",
        "asm/trap_pf.h",
        "asm/cpufeatures.h",
        "asm/pferr.h",
        "asm/sev-common.h",
        "asm/svm.h",
        "asm/sev.h",
        "asm/apicdef.h",
        "include/linux/psp-sev.h",
    ),
    "uapi": (
        "asm/svm.h",
        "linux/kvm.h",
        "asm/errno.h",
        "linux/kvm_para.h",
        "asm/processor-flags.h",
        "linux/psp-sev.h",
        "linux/sev-guest.h",
    ),
}
# Included by the headers above, needed for nothing that is compared: these are empty.
EMPTY = (
    "linux/types.h",
    "linux/bits.h",
    "asm/insn.h",
    "asm/coco.h",
    "asm/set_memory.h",
    "uapi/asm/kvm.h",
    "hyperv/hvhdk.h",
)
HELPERS = r"""
typedef unsigned long long value_t;
#define lowest_bit(x) ((value_t)__builtin_ctzll(x))
#define n_bits(x) ((value_t)__builtin_popcountll(x))
/* Which bits of a word does a bit field occupy? Which does a reading macro look at? */
#define bitfield(type, field) \
    ({ union { type e; value_t v; } u = { .v = 0 }; u.e.field = ~0ULL; u.v; })
#define read_mask(macro) \
    ({ value_t m = 0; for (int b = 0; b < 64; b++) if (macro(1ULL << b)) m |= 1ULL << b; m; })
int printf(const char *, ...);
"""


class Row(NamedTuple):
    ours: str
    kernel: str
    uapi: str
    reason: str


class Headers(NamedTuple):
    version: str
    path: Path


@functools.cache
def mapping() -> tuple[Row, ...]:
    with MAPPING.open(newline="") as file:
        next(file)  # the origin
        return tuple(Row(**row) for row in csv.DictReader(file))


def compared() -> list[Row]:
    return [row for row in mapping() if row.kernel or row.uapi]


@functools.cache
def linux_headers() -> dict[str, Headers]:
    """Return both sets; without them the test is skipped, or fails where CI is ``true``."""
    script, target = ROOT / "tools" / "linux-headers", ROOT / "build" / "linux-headers"
    try:
        subprocess.run([script, target], check=True, capture_output=True, text=True, timeout=600)
        lines = (target / "versions").read_text().splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        reason = f"no Linux headers to compare with: {said[-1] if said else error}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    found = {}
    for line in lines:
        side, version, path = line.split(" ", 2)
        found[side] = Headers(version, Path(path))
    return found


def compiler_flags(side: str, empty: Path) -> list[str]:
    path = linux_headers()[side].path
    if side == "uapi":
        return ["-nostdinc", f"-I{path}", f"-I{path}/x86_64-linux-gnu"]
    for name in EMPTY:
        (empty / name).parent.mkdir(parents=True, exist_ok=True)
        (empty / name).touch()
    # asm/kvm_host.h wants half of the kernel; what is compared stands in lines of its own.
    kvm_host = (path / "arch/x86/include/asm/kvm_host.h").read_text()
    pferr = re.findall(r"^#define PFERR_\w+[ \t]+\S.*(?<!\\)$", kvm_host, re.M)
    (empty / "asm/pferr.h").write_text("\n".join([*pferr, ""]))
    # Two headers are called linux/psp-sev.h: the one for user space is found first.
    below = ("arch/x86/include", "include/uapi", ".", "include")
    folders = (empty, *(path / name for name in below))
    return ["-nostdinc", "-include", str(HERE / "kernel_shim.h"), *(f"-I{f}" for f in folders)]


@functools.cache
def linux_values(side: str) -> dict[Row, int]:
    """Return what the expressions of one side are worth, as unsigned 64-bit numbers."""
    rows = [row for row in mapping() if getattr(row, side)]
    prints = "\n".join(f'printf("%llu\\n", (value_t)({getattr(row, side)}));' for row in rows)
    includes = "\n".join(f"#include <{name}>" for name in INCLUDES[side])
    u64 = "typedef unsigned long long u64; typedef unsigned int u32;\n" if side == "uapi" else ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, program = folder / "linux.c", folder / "linux"
        source.write_text(f"{u64}{includes}\n{HELPERS}\nint main(void) {{\n{prints}\n}}\n")
        flags = compiler_flags(side, folder / "empty")
        run = gcc("-std=gnu11", "-O1", *flags, str(source), "-o", str(program))
        assert run.returncode == 0, f"Linux's {side} headers do not give the mapping:\n{run.stderr}"
        lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(rows, map(int, lines), strict=True))


@functools.cache
def assertions() -> str:
    """Return a C file that compiles if, and only if, our headers agree with Linux's values."""
    used = set(re.findall(r"\w+", " ".join(row.ours for row in compared())))
    text = [
        f"#include <ghcbcore/{header.name}>"
        for header in sorted(INCLUDE.glob("ghcbcore/*.h"))
        if not used.isdisjoint(re.findall(r"\w+", declared(header)))
    ]
    for side in INCLUDES:
        text += [
            f'_Static_assert((unsigned long long)({row.ours}) == {value}ULL, "{side}: {row.ours}");'
            for row, value in linux_values(side).items()
        ]
    return "\n".join([*text, ""])


def complaints(*include: Path) -> list[str]:
    """Compile the assertions with our headers found in these folders; return the error lines."""
    flags = [f"-I{folder}" for folder in include]
    run = gcc("-std=c11", "-fsyntax-only", *flags, "-xc", "-", stdin=assertions())
    errors = [line for line in run.stderr.splitlines() if " error: " in line]
    assert (run.returncode == 0) == (not errors), run.stderr
    return errors


def gcc(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["gcc", "-w", "-fmax-errors=0", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )


def declared(header: Path) -> str:
    """Return the part of a header that holds its constants."""
    text = header.read_text(encoding="ascii")
    return "\n".join(re.findall(r"/\* cffi: begin \*/(.*?)/\* cffi: end \*/", text, re.S))


def constants(header: Path) -> list[str]:
    """Return the names of a header that stand for a number: defines and enumerators."""
    text = declared(header)
    plain = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    enums = re.findall(r"\benum\b[^{};]*\{([^}]*)\}", plain)
    return [
        *re.findall(r"^#define (\w+)[ \t]+\S", text, re.M),
        *re.findall(r"(\w+)\s*(?:=[^,]*)?(?:,|$)", ",".join(enums), re.M),
    ]
