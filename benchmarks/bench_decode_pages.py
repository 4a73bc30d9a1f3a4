"""Decode GHCB pages and page-state change buffers, beside numpy and a plain copy.

Both sides do the same work: every field of the page, which fields the bitmap marks, the event, what
a request lacks by the rule of required inputs, gaps that are not zero; of a buffer the header and
every entry with what is wrong with it. The numpy side goes by columns: a view of the pages for
each field, tables by event. The pages are of all events that KVM takes from SEV-ES guests; one in
16 lacks an input.

Sizes: 1 page or buffer; 64 (in the cache); 4096, 16 MiB of pages, which leaves it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from beside import OURS

from ghcbcore import ghcb, psc
from ghcbcore._cffi import ffi, lib

pytestmark = pytest.mark.benchmark(max_time=0.3, min_time=1e-4)

ONE, CACHED, MANY = 1, 64, 4096
WORDS = tuple(
    (name, getattr(lib, f"GHCB_OFF_{name.upper()}")) for name in (*ghcb.FIELDS[1:], "x87_state_gpa")
)
EXITS = sum(1 << ghcb.FIELDS.index(f"sw_exit_{name}") for name in ("code", "info_1", "info_2"))


def requests(n: int) -> np.ndarray[Any, Any]:
    """Return pages as a booting guest writes them; the shared buffers are not zero."""
    draw = np.random.default_rng(1)
    rows = [row for row in ghcb.event_rows() if row.in_kvm and not row.snp_only]
    which = draw.integers(len(rows), size=n)
    records = np.zeros(n, dtype=ghcb.GHCB_DTYPE)
    records["sw_exit_code"] = np.array([row.code for row in rows], dtype=np.uint64)[which]
    for name in ("rax", "rbx", "rcx", "rdx", "sw_scratch", "xcr0"):
        records[name] = draw.integers(1 << 63, size=n)
    records["protocol_version"] = 2
    records["valid_hi"] = 0x203C_000E_0000_0000
    records["valid_lo"] = 1 << 63 | 1 << 25
    records["valid_lo"][draw.integers(16, size=n) == 0] = 0
    pages = draw.integers(256, size=(n, lib.GHCB_PAGE_SIZE), dtype=np.uint8)
    return ghcb.encode(records, pages)


class NumpyPages:
    """The page codec in numpy, request side."""

    def __init__(self) -> None:
        rows = ghcb.event_rows()
        self.codes = np.array([row.code for row in rows], dtype=np.uint64)
        self.order = np.argsort(self.codes)
        self.sorted = self.codes[self.order]
        self.required = np.array([row.required | EXITS for row in rows] + [EXITS], dtype=np.uint32)
        self.info1 = np.array([row.info1_mask for row in rows] + [2**64 - 1], dtype=np.uint64)
        self.info2 = np.array([row.info2_mask for row in rows] + [2**64 - 1], dtype=np.uint64)
        self.since = np.array([row.since for row in rows] + [0], dtype=np.uint32)
        page = ffi.typeof("ghcb_page_t")
        self.gaps = [
            slice(field.offset, field.offset + ffi.sizeof(field.type))
            for name, field in page.fields
            if name.startswith("reserved_")
        ]
        self.bits = [getattr(lib, f"GHCB_VALID_{name.upper()}") for name in ghcb.FIELDS]

    def decode(self, pages: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        out = {name: pages[:, at : at + 8].view("<u8")[:, 0].copy() for name, at in WORDS}
        out["cpl"] = pages[:, lib.GHCB_OFF_CPL].copy()
        at = lib.GHCB_OFF_VALID_BITMAP
        bitmap = pages[:, at : at + 16].view("<u8")
        out["valid_lo"], out["valid_hi"] = bitmap[:, 0].copy(), bitmap[:, 1].copy()
        at = lib.GHCB_OFF_PROTOCOL_VERSION
        out["protocol_version"] = pages[:, at : at + 2].copy().view("<u2")[:, 0]
        out["ghcb_usage"] = pages[:, lib.GHCB_OFF_GHCB_USAGE :].copy().view("<u4")[:, 0]
        valid = np.zeros(len(pages), dtype=np.uint32)
        for i, bit in enumerate(self.bits):
            word = out["valid_lo"] if bit < 64 else out["valid_hi"]
            valid |= (word >> np.uint64(bit % 64) & np.uint64(1)).astype(np.uint32) << np.uint32(i)
        out["valid"] = valid
        self._judge(out, valid)
        gaps = np.zeros(len(pages), dtype=bool)
        for gap in self.gaps:
            gaps |= pages[:, gap].any(axis=1)
        out["flags"] |= np.where(gaps, lib.GHCB_FLAG_RESERVED, 0).astype(np.uint32)
        out["flags"] = np.where(out["ghcb_usage"] != 0, lib.GHCB_FLAG_USAGE, out["flags"])
        return out

    def _judge(self, out: dict[str, np.ndarray[Any, Any]], valid: np.ndarray[Any, Any]) -> None:
        code, info1 = out["sw_exit_code"], out["sw_exit_info_1"]
        place = np.searchsorted(self.sorted, code)
        place[place == len(self.sorted)] = 0
        known = self.sorted[place] == code
        event = np.where(known, self.order[place], len(self.codes))

        def bit(name: str) -> np.uint32:
            return np.uint32(1 << ghcb.FIELDS.index(name))

        def also(when: np.ndarray[Any, Any], *names: str) -> None:
            need[when] |= np.bitwise_or.reduce([bit(name) for name in names])

        need = self.required[event]
        rax = np.where(valid & bit("rax"), out["rax"], 0)
        also((code == lib.GHCB_NAE_CPUID) & (rax == lib.GHCB_CPUID_LEAF_XSTATE), "xcr0")
        ioio, kind = code == lib.GHCB_NAE_IOIO, info1 & np.uint64(5)
        also(ioio & (kind >= 4), "sw_scratch")
        also(ioio & (kind == 0), "rax")
        also((code == lib.GHCB_NAE_MSR) & (info1 != 0), "rax", "rdx")
        destroy = info1.astype(np.uint32) == lib.GHCB_AP_CREATE_DESTROY
        also((code == lib.GHCB_NAE_SNP_AP_CREATION) & ~destroy, "rax")
        also((code == lib.GHCB_NAE_SECURE_AVIC) & (info1 == 0), "rbx")
        missing = need & ~valid
        version = out["protocol_version"]
        flags = np.where(missing, lib.GHCB_FLAG_MISSING, 0)
        flags |= np.where(known, 0, lib.GHCB_FLAG_UNKNOWN_EVENT)
        flags |= np.where((version != 0) & (version < self.since[event]), lib.GHCB_FLAG_VERSION, 0)
        flags |= np.where(version > lib.GHCB_VERSION_MAX, lib.GHCB_FLAG_UNKNOWN_VERSION, 0)
        flags |= np.where(info1 & ~self.info1[event], lib.GHCB_FLAG_INFO_1, 0)
        flags |= np.where(out["sw_exit_info_2"] & ~self.info2[event], lib.GHCB_FLAG_INFO_2, 0)
        low = sum(1 << bit for bit in self.bits if bit < 64)
        high = sum(1 << bit - 64 for bit in self.bits if bit >= 64)
        odd = (out["valid_lo"] & np.uint64(~low & 2**64 - 1)) | (
            out["valid_hi"] & np.uint64(~high & 2**64 - 1)
        )
        flags |= np.where(odd, lib.GHCB_FLAG_ODD_VALID, 0)
        out["event"] = np.where(known, event, ghcb.NO_ROW).astype(np.uint8)
        out["missing"], out["flags"] = missing, flags.astype(np.uint32)


PAGES = {ONE: "1 page", CACHED: "64 pages", MANY: "4096 pages"}
PAGES_OUT = ("rax", "sw_scratch", "cpl", "valid", "event", "missing", "flags", "protocol_version")


@pytest.mark.parametrize("n", PAGES, ids=str)
def bench_decode_pages(timed: Any, n: int) -> None:
    pages, out = requests(n), np.empty(n, dtype=ghcb.GHCB_DTYPE)
    got = timed(f"decode {PAGES[n]}", OURS, n, "pages", lambda: ghcb.decode(pages, out=out))
    expected = NumpyPages().decode(pages)
    for name in PAGES_OUT:
        assert np.array_equal(got[name], expected[name]), name


@pytest.mark.parametrize("n", PAGES, ids=str)
def bench_decode_pages_numpy(timed: Any, n: int) -> None:
    pages, codec = requests(n), NumpyPages()
    got = timed(f"decode {PAGES[n]}", "numpy", n, "pages", lambda: codec.decode(pages))
    assert n < MANY or got["missing"].any()


@pytest.mark.parametrize("n", [CACHED, MANY], ids=str)
def bench_copy_pages(timed: Any, n: int) -> None:
    """Copy the pages: what a decoder may cost that reads them once."""
    pages = requests(n)
    target = np.empty_like(pages)
    timed(f"decode {PAGES[n]}", "copying them", n, "pages", lambda: np.copyto(target, pages))
    assert np.array_equal(target, pages)


@pytest.mark.parametrize("n", [CACHED, MANY], ids=str)
def bench_encode_pages(timed: Any, n: int) -> None:
    pages = requests(n)
    records, out = ghcb.decode(pages), pages.copy()
    got = timed(f"encode {PAGES[n]}", OURS, n, "pages", lambda: ghcb.encode(records, out))
    assert np.array_equal(got, pages)


@pytest.mark.parametrize("n", [CACHED, MANY], ids=str)
def bench_encode_pages_numpy(timed: Any, n: int) -> None:
    pages = requests(n)
    records, out = ghcb.decode(pages), pages.copy()
    halves = ((0, lib.GHCB_OFF_SHARED_BUFFER), (0xFF0, lib.GHCB_PAGE_SIZE))

    def encode() -> np.ndarray[Any, Any]:
        for first, end in halves:
            out[:, first:end] = 0
        for name, at in WORDS:
            out[:, at : at + 8].view("<u8")[:, 0] = records[name]
        bitmap = out[:, lib.GHCB_OFF_VALID_BITMAP : lib.GHCB_OFF_X87_STATE_GPA].view("<u8")
        bitmap[:, 0], bitmap[:, 1] = records["valid_lo"], records["valid_hi"]
        out[:, lib.GHCB_OFF_CPL] = records["cpl"]
        at = lib.GHCB_OFF_PROTOCOL_VERSION
        out[:, at : at + 2].view("<u2")[:, 0] = records["protocol_version"]
        out[:, lib.GHCB_OFF_GHCB_USAGE :].view("<u4")[:, 0] = records["ghcb_usage"]
        return out

    got = timed(f"encode {PAGES[n]}", "numpy", n, "pages", encode)
    assert np.array_equal(got, pages)


# -- page-state changes ------------------------------------------------------------------------

BUFFERS = {ONE: "1 buffer", CACHED: "64 buffers", 1024: "1024 buffers"}


def changes(n: int) -> np.ndarray[Any, Any]:
    """Return full buffers; one entry in 16 breaks a rule."""
    draw = np.random.default_rng(2)
    shape = (n, psc.MAX_ENTRIES)
    size = draw.integers(2, size=shape, dtype=np.uint64)
    gfn = draw.integers(1 << 40, size=shape, dtype=np.uint64) & ~(size * np.uint64(511))
    op = draw.integers(1, 5, size=shape, dtype=np.uint64)
    raw = gfn << np.uint64(12) | op << np.uint64(52) | size << np.uint64(56)
    raw ^= np.where(draw.integers(16, size=shape) == 0, np.uint64(1 << 57 | 1 << 12), np.uint64(0))
    out = np.zeros((n, lib.GHCB_SHARED_BUFFER_SIZE), dtype=np.uint8)
    out[:, 2] = psc.MAX_ENTRIES - 1
    out[:, 8:].view("<u8")[:] = raw
    return out


def numpy_changes(buffers: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Take full buffers apart; all entries are named by their headers."""
    head = buffers[:, :8].view("<u2")
    raw = buffers[:, 8:].view("<u8")
    u = np.uint64
    out = {"cur_entry": head[:, 0].copy(), "end_entry": head[:, 1].copy()}
    gfn = raw >> u(12) & u((1 << 40) - 1)
    cur = raw & u(0xFFF)
    op = raw >> u(52) & u(15)
    size = raw >> u(56) & u(1)
    n_pages = np.where(size, u(512), u(1))
    flags = np.where(raw >> u(57), lib.GHCB_PSC_FLAG_RESERVED, 0)
    flags |= np.where(op - u(1) > 3, lib.GHCB_PSC_FLAG_OP, 0)
    flags |= np.where(cur > n_pages, lib.GHCB_PSC_FLAG_CUR_PAGE, 0)
    flags |= np.where(gfn & (n_pages - u(1)), lib.GHCB_PSC_FLAG_ALIGN, 0)
    flags |= np.where(cur == n_pages, lib.GHCB_PSC_FLAG_DONE, 0)
    faults = flags & lib.GHCB_PSC_ENTRY_FAULTS
    bad = faults.astype(bool)
    out["first_bad"] = np.where(bad.any(axis=1), bad.argmax(axis=1), lib.GHCB_PSC_NO_ENTRY)
    out["flags"] = np.bitwise_or.reduce(faults, axis=1)
    out |= {"gfn": gfn, "op": op.astype(np.uint8), "size": size.astype(np.uint8)}
    out |= {"cur_page": cur.astype(np.uint16), "n_pages": n_pages.astype(np.uint16)}
    out["entry_flags"] = flags.astype(np.uint16)
    return out


@pytest.mark.parametrize("n", BUFFERS, ids=str)
def bench_decode_psc(timed: Any, n: int) -> None:
    buffers = changes(n)
    headers = np.empty(n, dtype=psc.HEADER_DTYPE)
    entries = np.empty((n, psc.MAX_ENTRIES), dtype=psc.ENTRY_DTYPE)
    heads, got = timed(
        f"decode {BUFFERS[n]} of 253",
        OURS,
        n * psc.MAX_ENTRIES,
        "entries",
        lambda: psc.decode(buffers, headers, entries),
    )
    expected = numpy_changes(buffers)
    for name in ("cur_entry", "end_entry", "first_bad", "flags"):
        assert np.array_equal(heads[name], expected[name]), name
    for name in ("gfn", "op", "size", "cur_page", "n_pages"):
        assert np.array_equal(got[name], expected[name]), name
    assert np.array_equal(got["flags"], expected["entry_flags"])


@pytest.mark.parametrize("n", BUFFERS, ids=str)
def bench_decode_psc_numpy(timed: Any, n: int) -> None:
    buffers = changes(n)
    got = timed(
        f"decode {BUFFERS[n]} of 253",
        "numpy",
        n * psc.MAX_ENTRIES,
        "entries",
        lambda: numpy_changes(buffers),
    )
    assert got["entry_flags"].any()


@pytest.mark.parametrize("n", [CACHED, 1024], ids=str)
def bench_copy_psc(timed: Any, n: int) -> None:
    """Move as many bytes as decoding moves: 8 in and 16 out an entry, so copy 12."""
    source = np.ones(12 * n * psc.MAX_ENTRIES, dtype=np.uint8)
    target = np.empty_like(source)
    timed(
        f"decode {BUFFERS[n]} of 253",
        "copying as many bytes",
        n * psc.MAX_ENTRIES,
        "entries",
        lambda: np.copyto(target, source),
    )
    assert target[-1] == 1
