"""What nobody sane hands to the core: it refuses; it neither crashes nor answers something else."""

import copy
import pickle

import numpy as np
import pytest

import pysev
from ghcbcore import errors, exchange, profile, psc, rmp, trace
from ghcbcore._cffi import ffi, lib
from ghcbcore.device import Device
from ghcbcore.host import Host
from ghcbcore.profile import Profile


def test_a_host_without_init_refuses_everything():
    host = Host.__new__(Host)
    with pytest.raises(errors.OutOfRange):
        host.__init__(Profile(), 1 << 30)
    for name in ("event", "capsule", "cffi", "ctypes"):
        with pytest.raises(errors.StateConflict, match="does not exist"):
            getattr(host, name)
    with pytest.raises(errors.OutOfRange, match="the VM has 0"):
        host.msr(0, 2)
    host.__init__(Profile(), 1)
    assert host.event == 0


def test_a_profile_without_init_makes_no_host():
    with pytest.raises(errors.StateConflict, match="profile"):
        Host(profile.Profile.__new__(profile.Profile), 1)


@pytest.mark.parametrize("name", ["vm", "vcpus"])
def test_the_memory_of_a_host_cannot_be_taken_away(name):
    host = Host(Profile(), 2)
    array = getattr(host, name)
    for one, check in ((array, True), (array, False), (array.base, True)):
        with pytest.raises(ValueError, match="resize"):
            one.resize(1 << 20, refcheck=check)


def test_the_cpuid_table_of_a_profile_cannot_be_taken_away():
    made = Profile(cpuid=[(i, 0, i, 0, 0, 0) for i in range(1000)])
    with pytest.raises(ValueError, match="resize"):
        made.cpuid.resize(1)
    with pytest.raises(errors.StateConflict):
        made.__init__(cpuid=[], c_bit=100)
    host = Host(made, 1)
    assert host.msr(0, 999 << 32 | lib.GHCB_MSR_CPUID_REQ) >> 32 == 999


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ((1.5, 0, 0, 0, 0, 0), TypeError),
        ((1 << 32, 0, 0, 0, 0, 0), errors.OutOfRange),
        ((-1, 0, 0, 0, 0, 0), errors.OutOfRange),
        ((1, 0), ValueError),
    ],
)
def test_an_entry_of_cpuid_that_does_not_fit_is_refused(entry, error):
    with pytest.raises(error):
        Profile(cpuid=[(1, 0, 0, 0, 0, 0), entry])


def test_a_device_is_as_it_was_if_its_init_fails():
    device = Device.__new__(Device)
    with pytest.raises(TypeError, match="without a function"):
        device.__init__([lib.GHCB_ACCESS_IO])
    assert Host(Profile(), 1, device).event == 0


@pytest.mark.parametrize("address", [0, -1, 1 << 64])
def test_a_device_has_an_address_of_this_machine(address):
    with pytest.raises(errors.OutOfRange, match="no device"):
        Device.from_address(address)


def test_a_device_is_read_from_its_address():
    made = ffi.new("ghcb_device_t *")
    made.kinds = 0
    device = Device.from_address(int(ffi.cast("uintptr_t", made)), owner=made)
    assert Host(Profile(), 1, device).event == 0


def test_half_an_address_is_none():
    with pytest.raises(TypeError):
        Device.from_address(2.7)


@pytest.mark.parametrize("value", [-1, 1 << 64, -(1 << 70)])
def test_a_number_of_more_than_64_bits_is_out_of_range(value):
    host = Host(Profile(), 1)
    page = np.zeros(4096, np.uint8)
    for ask in (
        lambda: host.msr(0, value),
        lambda: host.call(0, value),
        lambda: host.page(0, page, value),
    ):
        with pytest.raises(errors.OutOfRange, match="64 bits"):
            ask()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Host(Profile(), 1),
        lambda: Profile(),
        lambda: Device([0], print),
        trace.Scanner,
        exchange.Pairer,
    ],
)
def test_what_holds_pointers_is_not_copied(make):
    one = make()
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            copied(one)


# Traces -----------------------------------------------------------------------------------------


def lines(codes, kind=lib.GHCB_TRACE_NAE_ENTER):
    made = np.zeros(len(codes), trace.LINE_DTYPE)
    made["kind"], made["a"], made["pid"] = kind, codes, 7
    return made


@pytest.mark.parametrize("n", [127, 128, 129, 254, 255, 256, 257, 5000])
def test_kinds_of_requests_beyond_their_number_are_one(n):
    pairer = exchange.Pairer()
    codes = np.repeat(np.arange(n, dtype=np.uint64) + 0x5000, 2)
    asked = lines(codes)
    asked["kind"][1::2] = lib.GHCB_TRACE_NAE_EXIT
    out = np.empty(2 * n, exchange.EXCHANGE_DTYPE)
    assert pairer.pair(asked, out) == (2 * n, n)
    kinds = pairer.kinds()
    assert len(kinds) == min(n, lib.GHCB_EXCHANGE_N_KINDS - (n < lib.GHCB_EXCHANGE_N_KINDS))
    assert [kind.code for kind in kinds[:255]] == list(range(0x5000, 0x5000 + min(n, 255)))
    assert all(kind.page and kind.n == 1 for kind in kinds[:255])
    assert sum(kind.n for kind in kinds) == n
    assert (out["sw_exit_code"][:n] == codes[::2]).all()


def test_records_of_any_bytes_are_paired(tmp_path):
    rng = np.random.default_rng(3)
    pairer = exchange.Pairer()
    out = np.empty(100, exchange.EXCHANGE_DTYPE)
    for i in range(40):
        some = rng.integers(0, 256, 500 * trace.LINE_DTYPE.itemsize, np.uint8)
        some = some.view(trace.LINE_DTYPE)
        if i % 2:
            some["kind"] = rng.integers(0, lib.GHCB_TRACE_N_KINDS, len(some))
        while len(some):
            some = some[pairer.pair(some, out)[0] :]
    while pairer.finish(out):
        pass
    assert len(pairer.kinds()) == lib.GHCB_EXCHANGE_N_KINDS


def test_who_goes_on_after_the_end_of_a_trace_loses_nothing():
    pairer = exchange.Pairer()
    out = np.empty(4, exchange.EXCHANGE_DTYPE)
    for _ in range(3):
        pairer.pair(lines([0x72]), out)
        assert (pairer.finish(out), pairer.finish(out)) == (1, 0)


# Codecs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gfn", [[1, 2], (1, 1 << 39), np.array([1, 2], dtype=object)])
def test_integers_of_any_origin_are_encoded(gfn):
    assert psc.decode_entries(psc.encode_entries(gfn, 1))["gfn"].tolist() == list(gfn)


@pytest.mark.parametrize(
    ("gfn", "error", "text"),
    [
        ([1, 1 << 63], errors.OutOfRange, r"entry 1: gfn 0x8"),
        ([1, 1 << 64], errors.OutOfRange, r"gfn\[1\] = 0x1"),
        ([-1, 1 << 63], errors.OutOfRange, r"gfn\[0\] = -0x1"),
        ([1.0], TypeError, r"gfn\[0\] is float"),
        ([None], TypeError, r"gfn\[0\] is NoneType"),
        (np.array([1, True], dtype=object), TypeError, r"gfn\[1\] is bool"),
    ],
)
def test_what_is_no_gfn_is_named(gfn, error, text):
    with pytest.raises(error, match=text):
        psc.encode_entries(gfn, 1)


def test_half_an_entry_is_none():
    with pytest.raises(TypeError):
        psc.encode(1, 1, cur_entry=1.5)


@pytest.mark.parametrize(
    ("field", "error"),
    [
        ({"gpa": 4096.7}, TypeError),
        ({"gpa": "4096"}, TypeError),
        ({"gpa": None}, TypeError),
        ({"gpa": np.int64(-4096)}, errors.OutOfRange),
        ({"asid": np.int64(1 << 40)}, errors.OutOfRange),
        ({"vmpl0": 1 << 8}, errors.OutOfRange),
    ],
)
def test_a_field_of_an_rmp_entry_is_taken_as_it_is_or_refused(field, error):
    with pytest.raises(error, match=next(iter(field))):
        rmp.encode_one(rmp.Entry(**field))


def test_no_entries_are_not_none():
    with pytest.raises(TypeError):
        rmp.encode(None)
    with pytest.raises(ValueError, match="2 fields"):
        rmp.encode_one((1, 2))


# Devices and the friendlier host ------------------------------------------------------------------


class _Answers(pysev.Device):
    def __init__(self, result):
        self.result = result

    def rdmsr(self, msr):
        return self.result


def rdmsr(result):
    host = pysev.Host(1, device=_Answers(result))
    page = np.zeros(4096, np.uint8)
    words = page.view(np.uint64)
    words[lib.GHCB_OFF_SW_EXIT_CODE // 8] = lib.GHCB_NAE_MSR
    page[lib.GHCB_OFF_VALID_BITMAP : lib.GHCB_OFF_VALID_BITMAP + 16] = 0xFF
    host.vmgexit_page(0, page, 0x1000)
    return int(words[lib.GHCB_OFF_RDX // 8]) << 32 | int(words[lib.GHCB_OFF_RAX // 8])


@pytest.mark.parametrize(("result", "value"), [((1 << 64) - 1, (1 << 64) - 1), (-1, (1 << 64) - 1)])
def test_a_device_answers_64_bits(result, value):
    assert rdmsr(result) == value


@pytest.mark.parametrize("result", [1 << 64, 1 << 70, -(1 << 63) - 1])
def test_a_device_that_answers_more_is_told(result):
    with pytest.raises(errors.OutOfRange, match="does not fit 64 bits"):
        rdmsr(result)


@pytest.mark.parametrize("result", [(), (1,), (1, 2, 3), 1.5, "x"])
def test_a_device_that_answers_something_else_is_told(result):
    with pytest.raises(TypeError):
        rdmsr(result)


def test_requests_above_2_to_the_63_are_integers_too():
    host = pysev.Host(2)
    asked = [lib.GHCB_MSR_CPUID_REQ, 0xC000_0001 << 32 | lib.GHCB_MSR_CPUID_REQ]
    assert asked[1] >> 63 == 1
    both = host.vmgexit_many([0, 1], asked)
    assert both.tolist() == [host.vmgexit(i, value) for i, value in enumerate(asked)]
    for wrong in ([2, 1.5], np.array([2, 1.5]), np.array([2, None], dtype=object)):
        with pytest.raises(TypeError, match="msrs"):
            host.vmgexit_many([0, 1], wrong)


def test_half_a_vector_is_none():
    with pytest.raises(TypeError):
        pysev.Host(2).send_startup(1, 1.7)
