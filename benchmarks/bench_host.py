"""Answers of the host: one request at a time from Python, and batches.

Nobody else answers these requests without the hardware, so the one peer is the price of asking
at all: one call of one C function through cffi, with the same arguments.
"""

from __future__ import annotations

import ctypes
import subprocess
import threading
from typing import Any

import numpy as np
import pytest
from beside import OURS

import ghcbcore
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


# Through C: a loop over the table of functions, and one over the headers alone

LOOPS = r"""
#include <ghcbcore/answer.h>
#include <ghcbcore/kvm.h>
#include <ghcbcore/ops.h>

uint64_t by_table(const ghcb_ops_t *ops, const uint64_t *requests, uint64_t n)
{
    uint64_t sum = 0, answer = 0;
    for (uint64_t i = 0; i < n && !ops->msr(ops->self, i % ops->n_vcpus, requests[i], &answer); i++)
        sum += answer;
    return sum;
}

uint64_t by_header(const ghcb_cpuid_entry_t *cpuid, const uint64_t *requests, uint64_t n)
{
    static ghcb_vcpu_t vcpus[16];
    ghcb_profile_t profile = ghcb_kvm_profile(GHCB_GUEST_SEV_ES);
    ghcb_vm_t vm = {0};
    ghcb_host_t host = {.profile = &profile, .vm = &vm, .first = vcpus, .others = vcpus + 1,
                        .stride = sizeof(vcpus[0]), .n_vcpus = 16};
    uint64_t sum = 0;
    profile.cpuid = cpuid;
    profile.n_cpuid = 1;
    for (uint64_t i = 0; i < n; i++) {
        vcpus[i % 16].msr = requests[i];
        ghcb_answer_msr(&host, &vcpus[i % 16]);
        sum += vcpus[i % 16].msr;
    }
    return sum;
}
"""


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("loops")
    (folder / "loops.c").write_text(LOOPS)
    flags = ["-std=c11", "-O3", "-shared", "-fPIC", f"-I{ghcbcore.get_include()}"]
    subprocess.run(["gcc", *flags, "loops.c", "-o", "loops.so"], cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "loops.so"))  # a call of it releases the GIL
    for function in (library.by_table, library.by_header):
        function.restype = ctypes.c_uint64
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64]
    return library


def expected_sum() -> int:
    asked = requests()
    answers = core_host().msr_batch(np.arange(BATCH, dtype=np.uint32) % N_CPUS, asked)
    return int(answers.sum(dtype=np.uint64))


@pytest.mark.parametrize("who", [OURS, "headers alone, no lock"])
def bench_msr_from_c(timed: Any, loops: ctypes.CDLL, who: str) -> None:
    asked, view = requests(), core_host().cffi
    cpuid = profile.Profile(cpuid=CPUID).cpuid
    call = {
        OURS: lambda: loops.by_table(view.address, asked.ctypes.data, BATCH),
        "headers alone, no lock": lambda: loops.by_header(
            cpuid.ctypes.data, asked.ctypes.data, BATCH
        ),
    }[who]
    got = timed("65,536 MSR requests, a loop in C over the table", who, BATCH, UNIT, call)
    assert got == expected_sum()


@pytest.mark.parametrize("n", [1, 2])
def bench_hosts_in_threads(timed: Any, loops: ctypes.CDLL, n: int) -> None:
    """Two hosts, a thread each, against one."""
    asked, views = np.tile(requests(), 16), [core_host().cffi for _ in range(n)]
    sums: list[int] = []

    def one(view: Any) -> None:
        sums.append(loops.by_table(view.address, asked.ctypes.data, len(asked)))

    def ask() -> None:
        threads = [threading.Thread(target=one, args=(view,)) for view in views]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    work, who = "1 M MSR requests a thread, a host each", OURS if n == 2 else "one thread"
    timed(work, who, n * len(asked), UNIT, ask, rounds=10)
    assert set(sums) == {16 * expected_sum() % 2**64}


def cpuid_requests(n: int) -> np.ndarray[Any, Any]:
    pages = np.zeros((n, lib.GHCB_PAGE_SIZE), dtype=np.uint8)
    words = pages.view(np.uint64)
    words[:, lib.GHCB_OFF_SW_EXIT_CODE // 8] = lib.GHCB_NAE_CPUID
    words[:, lib.GHCB_OFF_RAX // 8] = CPUID[0][0]
    at = lib.GHCB_OFF_VALID_BITMAP // 8
    words[:, at : at + 2] = (
        lib.GHCB_REQUEST_VALID_LO | 1 << lib.GHCB_VALID_RAX,
        lib.GHCB_REQUEST_VALID_HI | 1 << lib.GHCB_VALID_RCX - 64,
    )
    return pages


def bench_pages(timed: Any) -> None:
    """CPUID by page, read from memory and answered there; the pages are new each time."""
    n, h = 4096, core_host()
    cpus, gpas = np.arange(n, dtype=np.uint32) % N_CPUS, np.full(n, GPA, dtype=np.uint64)
    asked = cpuid_requests(n)
    pages = asked.copy()

    def fresh() -> tuple[tuple[()], dict[str, Any]]:
        pages[:] = asked
        return (), {}

    work = "4096 GHCB pages of 16 vCPUs, CPUID"
    timed(work, OURS, n, "pages", lambda: h.page_batch(cpus, pages, gpas), prepare=fresh)
    assert (pages.view(np.uint64)[:, lib.GHCB_OFF_RBX // 8] == CPUID[0][3]).all()
