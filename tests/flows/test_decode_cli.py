"""``pysev decode --as``: pages from files, dumps and standard input, as users pass them on."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from ghcbcore import ghcb, psc
from pysev.decode import main_decode

COMMAND = [sys.executable, "-m", "pysev", "decode"]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}


@pytest.fixture
def decode(tmp_path):
    def run(*args, stdin=b"", timeout=120, **more):
        return subprocess.run(
            [*COMMAND, *args],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env=ENVIRONMENT,
            timeout=timeout,
            **more,
        )

    return run


def cpuid_page(valid_lo=1 << 63, valid_hi=7 << 50):
    record = np.zeros(1, dtype=ghcb.GHCB_DTYPE)
    record["sw_exit_code"], record["rax"], record["protocol_version"] = 0x72, 0x8000001F, 2
    record["valid_lo"], record["valid_hi"] = valid_lo, valid_hi
    return ghcb.encode(record).tobytes()


GOOD = cpuid_page(valid_hi=7 << 50 | 1 << 33)
XXD = "\n".join(f"{i:08x}: {GOOD[i : i + 16].hex()}" for i in range(0, 4096, 16))


def one_line(done):
    assert done.returncode == 2, done
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("pysev decode: "), lines
    return lines[0]


def test_a_page_that_lacks_rcx_for_cpuid_says_so(decode, tmp_path):
    (tmp_path / "page").write_bytes(cpuid_page())
    done = decode("--as", "ghcb", "page")
    assert done.returncode == 1 and not done.stderr
    assert b"! rcx (sub-function) is required and not marked valid" in done.stdout
    assert done.stdout.startswith(b"page (raw), offset 0x0: GHCB page (request): CPUID (0x72)\n")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (GOOD, b"raw"),
        (XXD.encode(), b"dump"),
        (GOOD.hex().encode(), b"hex"),
        (GOOD.hex(" ").encode(), b"hex"),
    ],
)
def test_raw_bytes_and_dumps_say_the_same(decode, tmp_path, text, form):
    (tmp_path / "page").write_bytes(text)
    done = decode("--as", "ghcb", "page")
    assert done.returncode == 0
    assert done.stdout.startswith(b"page (" + form + b"), offset 0x0: GHCB page (request): CPUID")
    by_stdin = decode("--as", "ghcb", "-", stdin=text)
    assert by_stdin.stdout == done.stdout.replace(b"page (", b"standard input (", 1)


def test_a_file_of_several_pages_says_where_each_is(decode, tmp_path):
    (tmp_path / "pages").write_bytes(GOOD + cpuid_page() + GOOD)
    done = decode("--as", "ghcb", "pages", "--json")
    got = json.loads(done.stdout)
    assert done.returncode == 1
    assert [one["where"] for one in got] == [
        f"pages (raw), offset {o}" for o in ("0x0", "0x1000", "0x2000")
    ]
    assert [one["malformed"] for one in got] == [False, True, False]


def test_a_file_cut_short_names_its_offset_and_keeps_what_came_before(decode, tmp_path):
    (tmp_path / "pages").write_bytes(GOOD + GOOD[:100])
    done = decode("--as", "ghcb", "pages")
    assert one_line(done) == "pysev decode: pages, offset 0x1000: cut short, 100 bytes of 4096"
    assert done.stdout.count(b"GHCB page") == 1
    assert json.loads(decode("--as", "ghcb", "pages", "--json").stdout)[0]["function"] == "cpuid"


@pytest.mark.parametrize("kind", ["ghcb", "ghcb-answer", "psc", "vmsa", "doorbell", "jump-table"])
def test_files_of_random_bytes_are_decoded_as_malformed(decode, tmp_path, kind):
    (tmp_path / "noise").write_bytes(np.random.default_rng(5).bytes(2032 * 4096 // 16))
    done = decode("--as", kind, "noise")
    assert done.returncode == 1 and not done.stderr
    assert b"    ! " in done.stdout


def test_entries_of_a_psc_buffer_may_be_given_as_numbers(decode):
    head = "0x0000000000010000"  # cur_entry 0, end_entry 1
    done = decode("--as", "psc", head, "0x0120000040000000", "0x0010000007C01000")
    assert done.returncode == 0, done
    assert b"GFN 0x40000, 2 MiB, shared" in done.stdout
    assert b"GFN 0x7c01, 4 KiB, private" in done.stdout


def test_values_and_files_may_be_mixed(decode, tmp_path):
    (tmp_path / "buffer").write_bytes(bytes(psc.encode(0x7C01, 1)))
    (tmp_path / "ab").write_bytes(bytes(2032))
    done = decode("--as", "psc", "buffer", "0x0000000000000000", "./ab")
    assert done.stdout.count(b"page-state change (request)") == 3
    (tmp_path / "log").write_text("0x2 # first\n0xfff\n")
    done = decode("log", "0x6")
    assert (done.returncode, done.stdout.count(b"\n")) == (1, 4), done


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--as", "nonsense", "0x1"), "--as 'nonsense': must be one of msr, ghcb"),
        (("--as", "ghcb", "."), "Is a directory"),
        (("--as", "ghcb", "./missing"), "missing: No such file or directory"),
        (("--as", "ghcb", "missing"), "argument 1: not hexadecimal: 'missing'"),
        (("--as", "ghcb", "00ff"), "argument 1: 2 bytes, ghcb has 4096"),
        (("--as", "psc", "00ff"), "argument 1: 2 bytes, psc has 2032, at least 8"),
        (("--as", "vmsa", "/proc/self/mem"), "/proc/self/mem: "),
        (("--vendor", "./missing.toml", "0x2"), "missing.toml: No such file"),
        (("--as", "ghcb", "empty/x\n\x1b[2J"), "empty/x"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(decode, args, says):
    assert says in one_line(decode(*args))


def test_a_file_without_permission_is_refused(capsys, monkeypatch, tmp_path):
    """Root may read everything, so the refusal of the system is told instead of provoked."""
    (tmp_path / "page").write_bytes(GOOD)

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.chdir(tmp_path)
    assert main_decode(["page"], json=False, stdin=io.BytesIO(), kind="ghcb") == 2
    assert capsys.readouterr() == ("", "pysev decode: page: Permission denied\n")


def test_errors_in_a_dump_name_file_and_line(decode, tmp_path):
    (tmp_path / "dump").write_text(XXD.replace("00000390: 72", "00000390: zz"))
    assert "dump, line 58: not hexadecimal" in one_line(decode("--as", "ghcb", "dump"))


def test_an_empty_file_has_nothing_to_decode(decode, tmp_path):
    (tmp_path / "empty").touch()
    assert decode("--as", "ghcb", "empty").returncode == 0
    assert json.loads(decode("--as", "ghcb", "empty", "--json").stdout) == []


def test_ten_megabytes_of_digits_on_one_line_fit_into_little_memory(decode, tmp_path):
    (tmp_path / "long").write_bytes(b"00" * (5 << 20))
    done = decode(
        "--as",
        "jump-table",
        "long",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (300 << 20, 300 << 20)),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"AP jump table page") == (5 << 20) // 4096


def test_a_vendors_file_adds_codes(decode, tmp_path):
    (tmp_path / "acme.toml").write_text(
        '[[code]]\nspace = "msr"\ncode = 0xF10\nname = "acme"\nowner = "Acme"\n'
        'what = "Acme ping"\nsource = "Acme"\n'
    )
    assert decode("0x1f10").returncode == 1
    done = decode("--vendor", "acme.toml", "0x1f10")
    assert done.returncode == 0 and b"Acme ping (request): data 0x1" in done.stdout
    (tmp_path / "bad.toml").write_text(
        (tmp_path / "acme.toml").read_text().replace("0xF10", "0x14")
    )
    assert "bad.toml: code 1: msr 0x14" in one_line(decode("--vendor", "bad.toml", "0x2"))


def test_kinds_are_listed(decode):
    lines = decode("--kinds").stdout.decode().splitlines()
    assert {line.split()[0] for line in lines} >= {"msr", "ghcb", "psc", "vmsa", "sev-status"}
    assert {one["name"] for one in json.loads(decode("--kinds", "--json").stdout)} == {
        line.split()[0] for line in lines
    }
