"""The compiled parts of pysev: ``ghcbcore/*.pyx`` and the cffi module over ``include/``.

Everything else about the project stands in ``pyproject.toml``.
"""

import os
import re
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

HERE = Path(__file__).parent
DEBUG = os.environ.get("PYSEV_DEBUG", "") not in ("", "0")

# Modules whose indices are provably in range and whose benchmark gains from it; a debug build
# checks them all the same.
UNCHECKED = {
    "frameview",
    "ledger",
    "msr",
    "machine",
    "explorer",
    "parts",
    "simulator",
    "trace",
    "exchange",
}

CFLAGS = ["-std=c11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-sign-compare"]
CFLAGS += ["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3"]


def cdef_text(header: Path) -> str:
    """Return what cffi shall parse: the marked parts of a header, values left to the compiler."""
    parts = re.findall(
        r"/\* cffi: begin \*/(.*?)/\* cffi: end \*/", header.read_text(encoding="ascii"), re.S
    )
    text = re.sub(r"/\*.*?\*/", "", "\n".join(parts), flags=re.S)
    return re.sub(r"^(\s*#define\s+\w+)\s+\S.*$", r"\1 ...", text, flags=re.M)


def write_cffi_module() -> Extension:
    from cffi import FFI

    headers = sorted((HERE / "include" / "ghcbcore").glob("*.h"), key=header_order)
    ffi = FFI()
    ffi.cdef("\n".join(cdef_text(h) for h in headers))
    ffi.set_source("ghcbcore._cffi", "\n".join(f"#include <ghcbcore/{h.name}>" for h in headers))
    out = HERE / "ghcbcore" / "_cffi.c"
    ffi.emit_c_code(str(out))
    return Extension(
        "ghcbcore._cffi",
        ["ghcbcore/_cffi.c"],
        include_dirs=["include"],
        extra_compile_args=["-std=c11", "-O2", "-w"],
    )


def header_order(header: Path) -> tuple[int, str]:
    """cffi needs a type before its use: a header comes after those that it includes."""
    text = header.read_text(encoding="ascii")
    included = re.findall(r"#include <ghcbcore/(\w+\.h)>", text)
    depth = 1 + max((header_order(header.parent / name)[0] for name in included), default=-1)
    return depth, header.name


def extension(pyx: Path) -> Extension:
    extra = ["ghcbcore/park.c"] if pyx.stem == "jumptable" else []
    return Extension(
        f"ghcbcore.{pyx.stem}",
        [f"ghcbcore/{pyx.name}", *extra],
        include_dirs=["include"],
        depends=[str(h.relative_to(HERE)) for h in (HERE / "include" / "ghcbcore").glob("*.h")],
        extra_compile_args=CFLAGS,
    )


def compiled() -> list[Extension]:
    extensions = []
    for pyx in sorted((HERE / "ghcbcore").glob("*.pyx")):
        checked = DEBUG or pyx.stem not in UNCHECKED
        extensions += cythonize(
            [extension(pyx)],
            language_level=3,
            build_dir="build/cython-debug" if DEBUG else "build/cython",
            compiler_directives={
                "boundscheck": checked,
                "wraparound": False,
                "cdivision": True,
                "initializedcheck": False,
                "binding": True,
            },
        )
    return [write_cffi_module(), *extensions]


setup(
    ext_modules=compiled(),
    options={
        # a debug build must not find the objects of a release build, nor the other way round
        "build": {"build_base": "build/debug" if DEBUG else "build"},
        "build_ext": {"parallel": os.cpu_count()},
    },
)
