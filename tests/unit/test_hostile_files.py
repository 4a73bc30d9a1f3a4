"""Files that look like what they are not."""

import io
import lzma
import os
import shutil
import subprocess

import numpy as np
import pytest

from pysev.decode import kinds, vendors
from pysev.decode.dumps import units_of
from pysev.decode.reading import BadWord
from pysev.doctor import BadLog, diagnose
from pysev.doctor.log import open_log

LINE = b"[    1.0] SEV supported: 100 ASIDs\n"


def log(data):
    return diagnose(open_log(io.BytesIO(data), "log"), "log")


def test_numbers_of_xxd_are_not_taken_for_bytes():
    page = bytearray(64)
    page[16:24] = (0x72).to_bytes(8, "little")
    shown = b"".join(
        b"%08x: %s  %s\n"
        % (
            at,
            b" ".join(page[i : i + 4][::-1].hex().encode() for i in range(at, at + 16, 4)),
            bytes(b if 0x20 <= b < 0x7F else 0x2E for b in page[at : at + 16]),
        )
        for at in range(0, 64, 16)
    )
    with pytest.raises(BadWord, match=r"line 2: made by xxd -e"):
        list(units_of(io.BytesIO(shown), 64))


@pytest.mark.skipif(not shutil.which("xxd"), reason="xxd is not installed")
@pytest.mark.parametrize("options", [("-g1",), ("-g4",), ("-c", "13"), ("-u",), ()])
def test_what_xxd_writes_is_read(options):
    data = np.random.default_rng(1).integers(0, 256, 4096, np.uint8).tobytes()
    data = data[:2048] + b"two  blanks  and  more   " * 81 + data[:23]
    shown = subprocess.run(["xxd", *options], input=data, capture_output=True, check=True).stdout
    assert b"".join(u.data for u in units_of(io.BytesIO(shown), 1)) == data


@pytest.mark.parametrize("offset", [b"0_00000", b"+000010", b"-000000"])
def test_an_offset_is_digits(offset):
    text = b"0000000 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f\n" + offset + b" 00\n"
    with pytest.raises(BadWord, match="line 2"):
        list(units_of(io.BytesIO(text), 1))


def test_a_file_of_codes_has_an_end():
    with pytest.raises(ValueError, match="/dev/zero: longer than"):
        vendors.register_file("/dev/zero")


def test_a_number_of_a_vendor_has_an_end_too(tmp_path):
    path = tmp_path / "codes.toml"
    path.write_text(f"code = {'9' * 5000}\n")
    with pytest.raises(ValueError, match=r"codes\.toml"):
        vendors.register_file(os.fspath(path))


def test_packed_logs_one_behind_the_other_are_all_read():
    parts = [LINE.replace(b"100", b"%d" % i) for i in range(3)]
    packed = b"".join(lzma.compress(part) + bytes(4 * i) for i, part in enumerate(parts))
    assert log(packed).n_lines == 3
    with pytest.raises(BadLog, match="cannot be unpacked"):
        log(packed + b"junk")
    with pytest.raises(BadLog, match="cannot be unpacked"):
        log(packed[:-40])


@pytest.mark.parametrize("fill", ["ones", "noise"])
def test_no_list_makes_a_line_that_a_mail_breaks(fill):
    rng = np.random.default_rng(7)
    for kind in kinds().values():
        if kind.unit_bytes is None:
            words = [(1 << 64) - 1 if fill == "ones" else 0x5555 << 48 | 0x5555_5555_5555]
            said = kind.explain(*words * kind.n_words)
        elif fill == "ones":
            said = kind.explain(b"\xff" * kind.unit_bytes)
        else:
            said = kind.explain(rng.integers(0, 256, kind.unit_bytes, np.uint8).tobytes())
        assert max(map(len, said.as_text().splitlines())) < 300, kind.name
