"""Bytes from raw files and hex dumps: every format gives the same bytes, errors name the place."""

from __future__ import annotations

import io
import shutil
import subprocess
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysev.decode import dumps
from pysev.decode.reading import BadWord

DATA = bytes(range(256)) * 2 + bytes(3 * 512) + b"\x01" * 512
DUMPS = {
    "xxd": ["xxd"],
    "xxd -p": ["xxd", "-p"],
    "xxd -g1 -u": ["xxd", "-g1", "-u"],
    "xxd -a": ["xxd", "-a"],
    "hexdump -C": ["hexdump", "-C"],
    "hexdump": ["hexdump"],
    "od -t x1": ["od", "-t", "x1"],
    "od -A x -t x1 -v": ["od", "-A", "x", "-t", "x1", "-v"],
    "od -A d -t x8": ["od", "-A", "d", "-t", "x8"],
    "od -x": ["od", "-x"],
    "raw": ["cat"],
}


def read(text: bytes, unit: int = 512, least: int | None = None) -> list[dumps.Unit]:
    return list(dumps.units_of(io.BytesIO(text), unit, least))


@pytest.mark.parametrize("chunk", [1 << 16, 61])
@pytest.mark.parametrize("tool", DUMPS.values(), ids=DUMPS)
def test_every_dump_of_the_same_bytes_reads_as_these(tool, chunk, monkeypatch):
    if not shutil.which(tool[0]):
        pytest.skip(f"{tool[0]} is not installed")
    monkeypatch.setattr(dumps, "CHUNK_BYTES", chunk if tool[0] != "cat" else 1 << 16)
    text = subprocess.run(tool, input=DATA, capture_output=True, check=True).stdout
    units = read(text)
    assert b"".join(unit.data for unit in units) == DATA
    assert [(unit.offset, unit.number) for unit in units] == [(512 * i, i + 1) for i in range(5)]


XXD = "\n".join(
    f"{i:08x}: " + " ".join(DATA[i + k : i + k + 2].hex() for k in range(0, 16, 2)) + "  characters"
    for i in range(0, len(DATA), 16)
)
CANONICAL = "\n".join(
    f"{i:08x}  {DATA[i : i + 8].hex(' ')}  {DATA[i + 8 : i + 16].hex(' ')}  |................|"
    for i in range(0, len(DATA), 16)
)


@pytest.mark.parametrize("text", [XXD, CANONICAL, DATA.hex(), DATA.hex(" ", 4), DATA.hex("\n")])
def test_dumps_as_they_are_written_read_without_the_tools(text):
    assert b"".join(unit.data for unit in read(text.encode())) == DATA
    assert b"".join(unit.data for unit in read(b"# from a mail\n\n" + text.encode())) == DATA


def test_a_number_stands_for_its_bytes_lowest_first():
    assert dumps.bytes_of_words(["0x0120000040000000"]) == bytes.fromhex("0000004000002001")
    assert dumps.bytes_of_words(["0x1", "ff00"]) == bytes([1, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0])


def test_groups_of_zeros_are_digits_not_offsets():
    assert read(b"00000000 00000000 00000000 00000000\n00000001 " * 2, 4)[-1].data == b"\0\0\0\1"


def test_repeated_lines_are_written_out():
    text = b"00000000: 0102\n*\n00000006: 0304\n"
    assert read(text, 8) == [dumps.Unit(bytes([1, 2, 1, 2, 1, 2, 3, 4]), 0, 1, "dump")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"abc", "line 1: an odd number of hexadecimal digits: 'abc'"),
        (b"00\n0g\n", "line 2: not hexadecimal: '0g'"),
        (b"0x11223344556677889", "line 1: not hexadecimal: '0x11223344556677889'"),
        (b"00000000: 0011\n00000004: 22\n", "line 2: offset 00000004 does not follow the 0x2"),
        (b"00000000: 001\n", "line 1: not hexadecimal: '001'"),
        (b"00000000: 0011\nxyz\n", "line 2: no offset with a colon: 'xyz'"),
        (b"00000000: 0011\n*\n", "the dump ends with *, how often is not said"),
        (b"00000000: 0011\n*\n00000005: 00", "line 3: offset 00000005 does not follow the 0x2"),
        (b"0000000 00 11\n*\n0000020\n", "line 3: * before the base of the offsets is clear"),
        (b"00000000 00 11\n00000002\n00000002 33\n", "line 3: text after the last offset"),
        (b"00000000 00 1122\n", "line 1: not a group of 2 hexadecimal digits: '1122'"),
        (b"00000000: 00" + b" " * 5000, "line 1: not hexadecimal"),
        (b"00000000: 00\n" + b" " * 5000, "line 2: a line of a dump of more than 4096 bytes"),
        (b"0011", "offset 0x0: cut short, 2 bytes of 512"),
        (bytes(513), "offset 0x200: cut short, 1 bytes of 512"),
    ],
)
def test_what_is_wrong_names_its_place(text, message):
    with pytest.raises(BadWord) as caught:
        read(text)
    assert message in str(caught.value)


def test_the_last_unit_may_be_shorter_where_the_kind_says_so():
    assert [len(unit.data) for unit in read(bytes(1024 + 8), least=8)] == [512, 512, 8]
    with pytest.raises(BadWord, match="offset 0x400: cut short, 7 bytes of 512, at least 8"):
        read(bytes(1024 + 7), least=8)


def test_ten_megabytes_of_digits_on_one_line_cost_no_memory():
    stream = io.BytesIO(b"0a" * (5 << 20))
    tracemalloc.start()
    n_units = sum(unit.data == b"\x0a" * 4096 for unit in dumps.units_of(stream, 4096))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_units == (5 << 20) // 4096
    assert peak < 1 << 20


@given(st.binary(max_size=400), st.sampled_from([b"", b"00000000: ", b"0000000 ", b"ab ", b"0x"]))
def test_any_bytes_are_cut_or_refused(data, head):
    try:
        units = read(head + data, 16)
    except BadWord:
        return
    assert all(len(unit.data) == 16 for unit in units)


@given(st.binary(min_size=1, max_size=200), st.integers(1, 70))
def test_bare_digits_may_be_cut_anywhere_by_the_pieces(data, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dumps, "CHUNK_BYTES", chunk)
        assert b"".join(u.data for u in read(data.hex().encode(), 1)) == data
