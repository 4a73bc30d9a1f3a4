"""Whatever is in a log, the doctor reads it; and its shortcuts change nothing."""

import gzip
import io
import lzma
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysev.doctor import BadLog, diagnose
from pysev.doctor.command import _as_json, _text
from pysev.doctor.diagnosis import _INTEREST
from pysev.doctor.log import open_log
from pysev.tables.doctor import FACTS
from pysev.tables.doctor_rules import RULES

DATA = Path(__file__).parent.parent / "data"
LOGS = sorted(DATA.glob("*.txt"))
LINES = [line for path in LOGS for line in path.read_bytes().splitlines(keepends=True)]
ROWS = (*FACTS, *RULES)


def said(data: bytes) -> str:
    """Read a log and write everything that can be written about it."""
    found = diagnose(io.BytesIO(data), "test")
    assert _as_json(found)["lines"] == found.n_lines
    return "\n".join(_text(found))


@given(st.binary(max_size=2000))
def test_any_bytes_are_read(data):
    said(data)


@given(st.permutations(LINES), st.integers(0, 4000))
@settings(max_examples=30)
def test_lines_in_any_order_and_cut_anywhere_are_read(lines, n_cut):
    data = b"".join(lines)
    said(data[: len(data) - n_cut])


@given(st.lists(st.sampled_from(LINES), max_size=30), st.data())
def test_changed_bytes_are_read(lines, data):
    log = bytearray(b"".join(lines))
    for _ in range(data.draw(st.integers(0, 10)) if log else 0):
        log[data.draw(st.integers(0, len(log) - 1))] = data.draw(st.integers(0, 255))
    said(bytes(log))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@given(data=st.data())
@settings(max_examples=25)
def test_any_line_that_a_row_knows_is_read_and_of_interest(row, data):
    line = data.draw(st.from_regex(row.pattern).map(lambda text: text.replace("\n", " ")))
    if re.search(row.pattern, line):  # without the line breaks that were in it
        assert _INTEREST.search(line)
    said(f"[    1.0] {line}\n".encode("utf-8", "replace"))


@given(st.binary(max_size=300), st.sampled_from([gzip.compress, lzma.compress]))
def test_a_packed_log_is_read_like_the_log(data, pack):
    packed = open_log(io.BytesIO(pack(data)), "test")
    assert packed.read() == data


@given(st.binary(min_size=1, max_size=300), st.integers(1, 60), st.booleans())
def test_a_packed_log_that_was_cut_is_refused_or_what_is_left_is_read(data, n_cut, is_xz):
    packed = (lzma.compress if is_xz else gzip.compress)(data)
    cut = packed[: max(len(packed) - n_cut, 6)]
    try:
        assert data.startswith(open_log(io.BytesIO(cut), "test").read())
    except BadLog as error:
        assert str(error).startswith("test: cannot be unpacked: ")
