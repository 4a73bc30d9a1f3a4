"""A consumer may include any one header of ``include/ghcbcore`` and nothing else."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import ghcbcore

INCLUDE = Path(ghcbcore.get_include())
HEADERS = sorted(header.name for header in INCLUDE.glob("ghcbcore/*.h"))
# Constants and layouts only, and so also C++. The others use designated initializers and the like.
PLAIN = [
    *("cpuid.h", "fault.h", "features.h", "nae.h", "page.h", "psp.h", "sev.h", "status.h"),
    *("host.h", "ops.h", "term.h"),
]

STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", f"-I{INCLUDE}"]


def compile_text(compiler: list[str], text: str) -> str:
    run = subprocess.run(
        [*compiler, *STRICT, "-"], input=text, capture_output=True, text=True, check=False
    )
    return run.stderr


@pytest.mark.parametrize("header", HEADERS)
def test_header_compiles_alone_as_c11(header):
    text = f"#include <ghcbcore/{header}>\n#include <ghcbcore/{header}>\nint used;\n"
    assert compile_text(["gcc", "-std=c11", "-xc"], text) == ""


@pytest.mark.parametrize("header", PLAIN)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_plain_header_compiles_alone_as_cpp(header):
    text = f"#include <ghcbcore/{header}>\nint used;\n"
    assert compile_text(["g++", "-std=c++17", "-xc++"], text) == ""


def test_all_headers_compile_together():
    text = "".join(f"#include <ghcbcore/{header}>\n" for header in HEADERS) + "int used;\n"
    assert compile_text(["gcc", "-std=c11", "-xc"], text) == ""


@pytest.mark.parametrize("header", HEADERS)
def test_header_is_ascii_and_guarded(header):
    text = (INCLUDE / "ghcbcore" / header).read_bytes().decode("ascii")
    guard = f"GHCBCORE_{header.removesuffix('.h').upper()}_H"
    assert re.search(rf"^#ifndef {guard}\n#define {guard}\n", text, re.M)
