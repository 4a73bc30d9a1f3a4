"""Answers of the host: one request at a time from Python, and batches.

Nobody else answers these requests without the hardware, so the one peer is the price of asking
at all: one call of one C function through cffi, with the same arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from beside import OURS

import pysev
from ghcbcore import host, profile
from ghcbcore._cffi import ffi, lib

pytestmark = pytest.mark.benchmark(max_time=0.2, min_time=1e-4)

N_CPUS = 16
BATCH = 1 << 16
GPA = 0x7000_0000
UNIT = "requests"
CPUID = ((0x8000001F, 0, 0x0101FD3F, 0x00004173, 0x01FD, 0x0001),)


def core_host() -> host.Host:
    return host.Host(profile.Profile(cpuid=CPUID), N_CPUS)


def requests() -> np.ndarray[Any, Any]:
    """What guests ask while they boot: SEV information, features, registers of CPUID."""
    registers = [
        lib.GHCB_MSR_CPUID_REQ
        | 0x8000001F << lib.GHCB_MSR_CPUID_REQ_FN_SHIFT
        | r << lib.GHCB_MSR_CPUID_REQ_REG_SHIFT
        for r in range(4)
    ]
    asked = [lib.GHCB_MSR_SEV_INFO_REQ, lib.GHCB_MSR_HV_FEATURES_REQ, *registers]
    return np.resize(np.array(asked, dtype=np.uint64), BATCH)


def bench_msr(timed: Any) -> None:
    h = core_host()
    got = timed("1 MSR request", OURS, 1, UNIT, lambda: h.msr(1, lib.GHCB_MSR_SEV_INFO_REQ))
    assert got == 0x0002_0001_3300_0001


def bench_msr_with_names(timed: Any) -> None:
    """``pysev.Host``: exceptions where the VM ends."""
    h = pysev.Host(cpus=N_CPUS)
    work = "1 MSR request, by pysev.Host"
    got = timed(work, OURS, 1, UNIT, lambda: h.vmgexit(1, lib.GHCB_MSR_SEV_INFO_REQ))
    assert got == 0x0002_0001_3300_0001


def bench_msr_call_alone(timed: Any) -> None:
    """The floor: cffi calls a C function of two numbers."""
    call = lib.ghcb_msr_check_answer
    request, answer = lib.GHCB_MSR_SEV_INFO_REQ, 0x0002_0001_3300_0001
    work = "1 MSR request"
    got = timed(work, "cffi call of one C function", 1, UNIT, lambda: call(request, answer))
    assert got == lib.GHCB_OK


def bench_msr_batch(timed: Any) -> None:
    h, values = core_host(), requests()
    cpus = np.arange(BATCH, dtype=np.uint32) % N_CPUS
    out = np.empty(BATCH, dtype=np.uint64)
    work = "65,536 MSR requests of 16 vCPUs"
    got = timed(work, OURS, BATCH, UNIT, lambda: h.msr_batch(cpus, values, out))
    assert got[:3].tolist() == [0x0002_0001_3300_0001, 0x3081, 0x0101_FD3F_0000_0005]


def bench_msr_one_by_one(timed: Any) -> None:
    h, values = core_host(), requests()
    pairs = list(zip((np.arange(BATCH) % N_CPUS).tolist(), values.tolist(), strict=True))

    def ask() -> list[int]:
        return [h.msr(cpu, value) for cpu, value in pairs]

    work = "65,536 MSR requests of 16 vCPUs"
    got = timed(work, "Host.msr in a Python loop", BATCH, UNIT, ask, rounds=3)
    assert got == h.msr_batch(np.array([c for c, _ in pairs], dtype=np.uint32), values).tolist()


def jump_table_request() -> np.ndarray[Any, Any]:
    page = np.zeros(lib.GHCB_PAGE_SIZE, dtype=np.uint8)
    fields = ffi.cast("ghcb_page_t *", ffi.from_buffer(page))
    fields.sw_exit_code = lib.GHCB_NAE_AP_JUMP_TABLE
    fields.sw_exit_info_1 = lib.GHCB_AP_JUMP_TABLE_GET
    return page


def bench_page(timed: Any) -> None:
    """A page is answered in place and its bitmap cleared: the guest's part is done each time."""
    h, page = core_host(), jump_table_request()
    h.vm["jump_table"] = 0x8000_0000
    fields = ffi.cast("ghcb_page_t *", ffi.from_buffer(page))
    fill = np.array([lib.GHCB_REQUEST_VALID_LO, lib.GHCB_REQUEST_VALID_HI], dtype=np.uint64)
    at = ffi.offsetof("ghcb_page_t", "valid_bitmap")
    bitmap = page[at : at + 16].view(np.uint64)

    def ask() -> None:
        bitmap[:] = fill
        fields.sw_exit_info_1 = lib.GHCB_AP_JUMP_TABLE_GET
        h.page(1, page, GPA)

    timed("1 GHCB page, filled in and answered", OURS, 1, "pages", ask)
    assert fields.sw_exit_info_1 == lib.GHCB_REPLY_OK
    assert fields.sw_exit_info_2 == 0x8000_0000
