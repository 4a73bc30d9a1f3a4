"""The instruction encodings of ``nae.h`` are what the assembler makes of the mnemonics."""

import re
import shutil
import subprocess

import pytest

from ghcbcore._cffi import lib

MNEMONICS = {
    "VMGEXIT": "vmgexit",
    "PVALIDATE": "pvalidate",
    "RMPADJUST": "rmpadjust",
    "VMMCALL": "vmmcall",
    "CPUID": "cpuid",
    "INVD": "invd",
    "WBINVD": "wbinvd",
    "RDMSR": "rdmsr",
    "WRMSR": "wrmsr",
    "RDPMC": "rdpmc",
    "RDTSC": "rdtsc",
    "RDTSCP": "rdtscp",
    "MONITOR": "monitor",
    "MONITORX": "monitorx",
    "MWAIT": "mwait",
    "MWAITX": "mwaitx",
    "MOV_FROM_DR": "mov %dr7, %rax",
    "MOV_TO_DR": "mov %rax, %dr7",
}


def test_every_encoding_is_asked_for():
    names = {name.removeprefix("SEV_INSN_") for name in dir(lib) if name.startswith("SEV_INSN_")}
    assert names == set(MNEMONICS)


@pytest.mark.parametrize("name", MNEMONICS)
@pytest.mark.skipif(shutil.which("as") is None, reason="no assembler")
def test_encoding_is_that_of_the_assembler(name, tmp_path):
    listing = subprocess.run(
        ["as", "--64", "-aln", "-o", tmp_path / "out.o", "-"],
        input=f"{MNEMONICS[name]}\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.search(r"^\s*1 0000 ([0-9A-F]+)", listing, re.M)
    assembled = bytes.fromhex(found[1])
    if name.startswith("MOV_"):
        assert assembled[-1] >> 3 & 7 == 7  # ModRM.reg names DR7
        assembled = assembled[:-1]
    ours = getattr(lib, f"SEV_INSN_{name}")
    assert ours.to_bytes((ours.bit_length() + 7) // 8, "big").hex() == assembled.hex()
