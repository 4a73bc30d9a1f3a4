"""Decode, encode and judge GHCB MSR values, beside numpy, ctypes, construct and a plain copy.

Every side does the same work: all fields of all functions, mixed codes, the reserved bits and
unknown codes told. The numpy side is written to be fast: one small table for each property of a
row, ``take`` without bounds checks into scratch that is made before, in pieces that stay in the
cache, results in one array a field. ctypes and construct have one class for each code.

Sizes: 1 value; 253, as many entries as a page-state buffer has; 65,536 (256 MiB of page-state
changes); 16 M (64 GiB of them), which leaves every cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import construct
import numpy as np
import pytest
from beside import OURS

from ghcbcore import msr
from ghcbcore._cffi import lib

pytestmark = pytest.mark.benchmark(max_time=0.2, min_time=1e-4)

ONE, BUFFER, BATCH, LARGE = 1, 253, 1 << 16, 1 << 24
UNIT = "values"
PIECE = 1 << 13  # of the numpy side: its scratch stays in the second-level cache

CODE = lib.GHCB_MSR_INFO_MASK
OUT_FIELDS = ("a", "b", "c", "status", "code", "row")


def mixed_values(n: int) -> np.ndarray[Any, Any]:
    """Return values of all rows in random order, one in 16 with reserved bits or without a row."""
    draw = np.random.default_rng(1)
    m = min(n, BATCH)
    rows = msr.rows()
    which = draw.integers(len(rows), size=m)
    values = np.array([row.code for row in rows], dtype=np.uint64)[which]
    values |= draw.integers(1 << 64, size=m, dtype=np.uint64) & ~reserved_of_rows()[which]
    values = np.where(draw.integers(16, size=m) == 0, values ^ np.uint64(1 << 63 | 0x800), values)
    return np.ascontiguousarray(np.resize(values, n))


def reserved_of_rows() -> np.ndarray[Any, Any]:
    return np.array([row.reserved | CODE for row in msr.rows()], dtype=np.uint64)


# -- numpy -------------------------------------------------------------------------------------


class NumpyMasks:
    """The codec in numpy: tables with one element for each row, and one for "no row" in front."""

    def __init__(self) -> None:
        rows = msr.rows()
        n = len(rows) + 1
        self.slot_of_code = np.zeros(CODE + 1, dtype=np.intp)
        self.shift = np.zeros((3, n), dtype=np.uint64)
        self.mask = np.zeros((3, n), dtype=np.uint64)
        self.reserved = np.zeros(n, dtype=np.uint64)
        self.status = np.zeros(n, dtype=np.uint8)
        self.pair = np.full(n, 1 << 12, dtype=np.uint64)  # no code is that large
        self.code = np.full(n, 1 << 12, dtype=np.uint64)
        self.shift[0, 0] = lib.GHCB_MSR_DATA_SHIFT
        self.mask[0, 0] = (1 << lib.GHCB_MSR_DATA_WIDTH) - 1
        self.status[0] = lib.GHCB_E_UNKNOWN_CODE
        for i, row in enumerate(rows, 1):
            self.slot_of_code[row.code] = i
            self.reserved[i] = row.reserved
            self.code[i] = row.code
            if row.pair is not None and not row.is_answer:
                self.pair[i] = row.pair
            for k, field in enumerate(row.fields):
                self.shift[k, i] = field.shift
                self.mask[k, i] = (1 << field.width) - 1
        self.index = np.empty(PIECE, dtype=np.intp)
        self.slot = np.empty(PIECE, dtype=np.intp)
        self.x = np.empty(PIECE, dtype=np.uint64)
        self.y = np.empty(PIECE, dtype=np.uint64)
        self.flag = np.empty(PIECE, dtype=bool)

    @staticmethod
    def out(n: int) -> dict[str, np.ndarray[Any, Any]]:
        """Return where the results go: the fields of MSR_DTYPE, each an array of its own."""
        return {f: np.empty(n, dtype=msr.MSR_DTYPE[f]) for f in OUT_FIELDS}

    def _take(self, table: np.ndarray[Any, Any], slot: Any, out: Any) -> np.ndarray[Any, Any]:
        return np.take(table, slot, out=out, mode="clip")

    def _slots(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        n = len(values)
        index = self.index[:n]
        np.bitwise_and(values, CODE, out=index.view(np.uint64))
        return self._take(self.slot_of_code, index, self.slot[:n])

    def decode(self, values: np.ndarray[Any, Any], out: dict[str, np.ndarray[Any, Any]]) -> Any:
        for first in range(0, len(values), PIECE):
            piece = values[first : first + PIECE]
            into = {name: array[first : first + PIECE] for name, array in out.items()}
            self._decode_piece(piece, into)
        return out

    def _decode_piece(self, values: Any, out: dict[str, np.ndarray[Any, Any]]) -> None:
        n = len(values)
        slot = self._slots(values)
        x, y, flag = self.x[:n], self.y[:n], self.flag[:n]
        out["code"][:] = self.index[:n]
        for k, name in enumerate("abc"):
            np.right_shift(values, self._take(self.shift[k], slot, y), out=x)
            wide = out[name] if name == "a" else x
            np.bitwise_and(x, self._take(self.mask[k], slot, y), out=wide)
            if wide is x:
                out[name][:] = x
        np.not_equal(np.bitwise_and(values, self._take(self.reserved, slot, y), out=x), 0, out=flag)
        status = self._take(self.status, slot, out["status"])
        np.bitwise_or(status, flag.view(np.uint8) * np.uint8(lib.GHCB_E_RESERVED_BITS), out=status)
        np.subtract(slot, 1, out=out["row"], casting="unsafe")

    def encode(self, code: Any, a: Any, b: Any, c: Any, out: np.ndarray[Any, Any]) -> Any:
        for first in range(0, len(out), PIECE):
            piece = slice(first, first + PIECE)
            self._encode_piece(code[piece], (a[piece], b[piece], c[piece]), out[piece])
        return out

    def _encode_piece(self, code: Any, fields: tuple[Any, ...], out: Any) -> None:
        n = len(code)
        slot = self._take(self.slot_of_code, code.view(np.intp), self.slot[:n])
        x, y = self.x[:n], self.y[:n]
        if code.max() > CODE or not slot.all():
            raise ValueError("a code without a row")
        np.copyto(out, code)
        for k, field in enumerate(fields):
            if np.greater(field, self._take(self.mask[k], slot, y), out=self.flag[:n]).any():
                raise ValueError("a field that does not fit")
            np.left_shift(field, self._take(self.shift[k], slot, y), out=x)
            np.bitwise_or(out, x, out=out)

    def check(self, requests: Any, answers: Any, out: np.ndarray[Any, Any]) -> Any:
        for first in range(0, len(out), PIECE):
            piece = slice(first, first + PIECE)
            self._check_piece(requests[piece], answers[piece], out[piece])
        return out

    def _check_piece(self, requests: Any, answers: Any, out: np.ndarray[Any, Any]) -> None:
        n = len(requests)
        x, y, flag = self.x[:n], self.y[:n], self.flag[:n]
        code = requests & CODE
        np.copyto(out, lib.GHCB_OK)
        cpuid = (code == lib.GHCB_MSR_CPUID_REQ) & (
            ((requests ^ answers) >> lib.GHCB_MSR_CPUID_REQ_REG_SHIFT & 3) != 0
        )
        gfn = answers >> lib.GHCB_MSR_DATA_SHIFT
        page = (code == lib.GHCB_MSR_REG_GPA_REQ) & (
            (gfn != requests >> lib.GHCB_MSR_DATA_SHIFT) & (gfn != lib.GHCB_MSR_NO_GFN)
        )
        out[cpuid | page] = lib.GHCB_E_ECHO_MISMATCH
        np.bitwise_and(answers, self._take(self.reserved, self._slots(answers), y), out=x)
        out[np.not_equal(x, 0, out=flag)] = lib.GHCB_E_RESERVED_BITS
        slot = self._slots(requests)
        np.bitwise_and(answers, CODE, out=x)
        out[np.not_equal(x, self._take(self.pair, slot, y), out=flag)] = lib.GHCB_E_CODE_MISMATCH
        out[slot == 0] = lib.GHCB_E_UNKNOWN_CODE


# -- ctypes and construct ----------------------------------------------------------------------


def _bit_fields(row: msr.Row | None) -> list[tuple[str, int]]:
    """Return (name, width) from bit 0 up, gaps as ``reserved_<bit>``."""
    if row is None:
        return [("code", 12), ("a", 52)]
    out = [("code", 12)]
    at = 12
    placed = sorted(zip(row.fields, "abc", strict=False), key=lambda pair: pair[0].shift)
    for field, name in placed:
        if field.shift > at:
            out.append((f"reserved_{at}", field.shift - at))
        out.append((name, field.width))
        at = field.shift + field.width
    return [*out, *([(f"reserved_{at}", 64 - at)] if at < 64 else [])]


def _classes(make: Callable[[msr.Row | None], Any]) -> list[Any]:
    """Return what takes a value apart, by code."""
    out = [make(None)] * (CODE + 1)
    for row in msr.rows():
        out[row.code] = make(row)
    return out


def _ctypes_class(row: msr.Row | None) -> Any:
    fields = [(name, ctypes.c_uint64, width) for name, width in _bit_fields(row)]
    number = lib.GHCB_MSR_NO_ROW if row is None else msr.rows().index(row)
    names = [name if any(f[0] == name for f in fields) else None for name in "abc"]
    reserved = [f[0] for f in fields if f[0].startswith("reserved")]
    cls = type("Value", (ctypes.Structure,), {"_fields_": fields})
    return cls, number, names, reserved


def ctypes_decoder() -> Callable[[bytearray], list[tuple[int, ...]]]:
    """Return a decoder of a buffer of values: one structure laid over each."""
    classes = _classes(_ctypes_class)
    no_row = lib.GHCB_MSR_NO_ROW

    def decode(buffer: bytearray) -> list[tuple[int, ...]]:
        out = []
        codes = (ctypes.c_uint64 * (len(buffer) // 8)).from_buffer(buffer)
        for i, raw in enumerate(codes):
            cls, row, (a, b, c), reserved = classes[raw & CODE]
            value = cls.from_buffer(buffer, 8 * i)
            status = lib_unknown if row == no_row else 0
            for name in reserved:
                if getattr(value, name):
                    status = lib_reserved
                    break
            out.append(
                (
                    getattr(value, a) if a else 0,
                    getattr(value, b) if b else 0,
                    getattr(value, c) if c else 0,
                    status,
                    value.code,
                    row,
                )
            )
        return out

    return decode


lib_unknown, lib_reserved = lib.GHCB_E_UNKNOWN_CODE, lib.GHCB_E_RESERVED_BITS


def _construct_class(row: msr.Row | None) -> Any:
    """Bits of a big-endian stream: the highest field comes first."""
    return construct.BitStruct(
        *(name / construct.BitsInteger(width) for name, width in reversed(_bit_fields(row)))
    )


def construct_decoder() -> Callable[[bytes], list[tuple[int, ...]]]:
    """Return a decoder of a buffer of big-endian values: a Switch over the code."""
    classes = _classes(_construct_class)
    number = {row.code: i for i, row in enumerate(msr.rows())}

    def decode(buffer: bytes) -> list[tuple[int, ...]]:
        out = []
        for i in range(0, len(buffer), 8):
            code = int.from_bytes(buffer[i + 6 : i + 8], "big") & CODE
            value = classes[code].parse(buffer[i : i + 8])
            status = 0 if code in number else lib_unknown
            if any(value[name] for name in value if name.startswith("reserved")):
                status = lib_reserved
            row = number.get(code, lib.GHCB_MSR_NO_ROW)
            got = [value.get(name, 0) for name in "abc"]
            out.append((*got, status, code, row))
        return out

    return decode


# -- decode ------------------------------------------------------------------------------------

SIZES = {ONE: "1 value", BUFFER: "253 values", BATCH: "65,536 values", LARGE: "16 M values"}
sizes = pytest.mark.parametrize("n", SIZES, ids=str)


def _work(verb: str, n: int) -> str:
    return f"{verb} {SIZES[n]}"


def _rounds(n: int) -> int | None:
    return 3 if n == LARGE else None


@sizes
def bench_decode(timed: Any, n: int) -> None:
    values, out = mixed_values(n), np.empty(n, dtype=msr.MSR_DTYPE)
    got = timed(
        _work("decode", n), OURS, n, UNIT, lambda: msr.decode(values, out), rounds=_rounds(n)
    )
    m = min(n, BATCH)
    expected = NumpyMasks().decode(values[-m:], NumpyMasks.out(m))
    for name in OUT_FIELDS:
        assert np.array_equal(got[name][-m:], expected[name])


def bench_decode_one(timed: Any) -> None:
    value = int(mixed_values(1)[0])
    got = timed("decode 1 Python integer", OURS, 1, UNIT, lambda: msr.decode_one(value))
    assert tuple(got) == msr.decode(mixed_values(1))[0].item()


def bench_decode_one_ctypes(timed: Any) -> None:
    value, decode = int(mixed_values(1)[0]), ctypes_decoder()
    got = timed(
        "decode 1 Python integer",
        "ctypes",
        1,
        UNIT,
        lambda: decode(bytearray(value.to_bytes(8, "little"))),
    )
    assert got == [tuple(msr.decode_one(value))]


@sizes
def bench_decode_numpy(timed: Any, n: int) -> None:
    values, codec, out = mixed_values(n), NumpyMasks(), NumpyMasks.out(n)
    got = timed(
        _work("decode", n), "numpy", n, UNIT, lambda: codec.decode(values, out), rounds=_rounds(n)
    )
    assert got["status"].max() == lib_unknown or n == ONE


@pytest.mark.parametrize("n", [BUFFER, BATCH], ids=str)
def bench_decode_ctypes(timed: Any, n: int) -> None:
    values, decode = mixed_values(n), ctypes_decoder()
    buffer = bytearray(values.tobytes())
    rounds = 3 if n == BATCH else None
    got = timed(_work("decode", n), "ctypes", n, UNIT, lambda: decode(buffer), rounds=rounds)
    assert got == msr.decode(values).tolist()


def bench_decode_construct(timed: Any) -> None:
    values, decode = mixed_values(BUFFER), construct_decoder()
    buffer = values.astype(">u8").tobytes()
    got = timed(_work("decode", BUFFER), "construct", BUFFER, UNIT, lambda: decode(buffer))
    assert got == msr.decode(values).tolist()


def bench_decode_memory_bus(timed: Any) -> None:
    """Move as many bytes as decoding moves: 8 in and 16 out a value, so copy 12."""
    source = np.ones(12 * LARGE // 8, dtype=np.uint64)
    target = np.empty_like(source)
    timed(
        _work("decode", LARGE),
        "copying as many bytes",
        LARGE,
        UNIT,
        lambda: np.copyto(target, source),
        rounds=3,
    )
    assert target[-1] == 1


# -- encode ------------------------------------------------------------------------------------


def encodable(n: int) -> tuple[np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], ...]]:
    """Return good values and what they are put together from."""
    values = mixed_values(BATCH)
    values = np.resize(values[msr.decode(values)["status"] == lib.GHCB_OK], n)
    parts = msr.decode(values)
    names = ("code", "a", "b", "c")
    return values, tuple(np.ascontiguousarray(parts[f].astype(np.uint64)) for f in names)


@pytest.mark.parametrize("n", [BUFFER, BATCH], ids=str)
def bench_encode(timed: Any, n: int) -> None:
    values, parts = encodable(n)
    out = np.empty(n, dtype=np.uint64)
    got = timed(_work("encode", n), OURS, n, UNIT, lambda: msr.encode(*parts, out=out))
    assert np.array_equal(got, values)


@pytest.mark.parametrize("n", [BUFFER, BATCH], ids=str)
def bench_encode_numpy(timed: Any, n: int) -> None:
    values, parts = encodable(n)
    codec, out = NumpyMasks(), np.empty(n, dtype=np.uint64)
    got = timed(_work("encode", n), "numpy", n, UNIT, lambda: codec.encode(*parts, out))
    assert np.array_equal(got, values)


# -- answers -----------------------------------------------------------------------------------


def exchanges(n: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return requests, and answers of which most belong to them."""
    requests = mixed_values(n)
    codec = NumpyMasks()
    draw = np.random.default_rng(2)
    pair = codec.pair[codec.slot_of_code[(requests & np.uint64(CODE)).astype(np.intp)]]
    answers = requests & ~np.uint64(CODE) | pair & np.uint64(CODE)
    answers ^= np.where(draw.integers(8, size=n) == 0, np.uint64(1 << 30), np.uint64(0))
    return requests, answers


def bench_check_answers(timed: Any) -> None:
    requests, answers = exchanges(BATCH)
    out = np.empty(BATCH, dtype=np.uint8)
    work = _work("judge answers,", BATCH)
    got = timed(work, OURS, BATCH, UNIT, lambda: msr.check_answers(requests, answers, out))
    expected = NumpyMasks().check(requests, answers, np.empty(BATCH, dtype=np.uint8))
    assert np.array_equal(got, expected)
    assert len(np.unique(got)) == 5


def bench_check_answers_numpy(timed: Any) -> None:
    requests, answers = exchanges(BATCH)
    codec, out = NumpyMasks(), np.empty(BATCH, dtype=np.uint8)
    work = _work("judge answers,", BATCH)
    got = timed(work, "numpy", BATCH, UNIT, lambda: codec.check(requests, answers, out))
    assert len(np.unique(got)) == 5
