"""Batches against loops, and arguments that make no sense: refused, and nothing is changed."""

import re
from copy import deepcopy
from random import Random

import host_oracle as oracle
import numpy as np
import pytest
from host_pair import Pair
from host_requests import SEEDS, U64, msr_value, profiles, random_page
from hypothesis import given, note, settings
from hypothesis import strategies as st

from ghcbcore import errors
from ghcbcore._cffi import lib
from ghcbcore.host import Host
from ghcbcore.profile import Profile

# what the interface may raise for a caller's mistake; a crash or anything else is a failure
MISTAKE = (errors.SevError, OverflowError, ValueError, TypeError, BufferError)
GPAS = st.sampled_from([0x1000, 0x7000, 2**51, 2**64 - 0x1000])
MSR_VALUES = SEEDS.map(lambda seed: msr_value(Random(seed)))


@st.composite
def batches(draw, n_vcpus):
    """Requests for ``msr_batch``; sometimes one of them cannot be."""
    cpus = st.integers(0, n_vcpus - 1)
    harmless = MSR_VALUES.filter(lambda value: value & 0xFFF not in (0x010, 0x012, 0x014, 0x100))
    requests = draw(st.lists(st.tuples(cpus, harmless), max_size=20))
    kind = draw(st.sampled_from(["good", "good", "cpu", "page", "end"]))
    if kind != "good":
        wrong = {
            "cpu": st.tuples(st.sampled_from([n_vcpus, n_vcpus + 64, 2**32 - 1]), harmless),
            "page": st.tuples(cpus, GPAS),
            "end": st.tuples(cpus, st.sampled_from([0x100, 0x2_0100, 0x1_2010, 0x5_0012])),
        }[kind]
        requests.insert(draw(st.integers(0, len(requests))), draw(wrong))
    return requests


@given(batches(3), profiles())
def test_batch_equals_a_loop_and_its_refusal_names_the_index_and_keeps_the_prefix(
    requests, profile
):
    one_by_one, at_once = Host(Profile(**profile), 3), Host(Profile(**profile), 3)
    answers, refusal = [], None
    for cpu, value in requests:
        try:
            answers.append(one_by_one.msr(cpu, value))
        except errors.SevError as error:
            refusal = error
            break
    cpus = np.array([cpu for cpu, _ in requests], np.uint32)
    values = np.array([value for _, value in requests], np.uint64)
    out = np.full(len(requests), 0x5555_5555_5555_5555, np.uint64)
    if refusal is None:
        assert at_once.msr_batch(cpus, values, out) is out
    else:
        with pytest.raises(type(refusal), match=rf"\[{len(answers)}\]"):
            at_once.msr_batch(cpus, values, out)
    assert out[: len(answers)].tolist() == answers
    assert at_once.vm.tolist() == one_by_one.vm.tolist()
    assert at_once.vcpus.tolist() == one_by_one.vcpus.tolist()


@given(batches(3), profiles())
def test_batch_answers_as_the_oracle_does_up_to_its_refusal(requests, profile):
    pair = Pair(n=3, **profile)
    answers = []
    for cpu, value in requests:
        try:
            answers.append(pair.model.msr(cpu, value))
        except (oracle.Ended, oracle.NoPage, IndexError):
            break
    out = np.zeros(len(requests), np.uint64)
    cpus = np.array([cpu for cpu, _ in requests], np.uint32)
    values = np.array([value for _, value in requests], np.uint64)
    if len(answers) == len(requests):
        pair.host.msr_batch(cpus, values, out)
    else:
        with pytest.raises(errors.SevError):
            pair.host.msr_batch(cpus, values, out)
    assert out[: len(answers)].tolist() == answers
    pair.compare()


def test_batch_refuses_a_request_after_the_end_of_the_vm_by_its_index():
    host = Host(Profile(), 2)
    cpus, values = np.array([0, 1, 0], np.uint32), np.array([0x080, 0x100, 0x080], np.uint64)
    with pytest.raises(errors.StateConflict, match=r"\[2\]"):
        host.msr_batch(cpus, values)
    assert host.vcpus["msr"].tolist() == [0x3081, 0x100]


@given(SEEDS, st.integers(0, 12), st.sampled_from(["good", "good", "cpu", "gpa", "end"]))
@settings(max_examples=60)
def test_a_batch_of_pages_equals_a_loop_and_its_refusal_names_the_index(seed, n, kind):
    rng = Random(seed)
    one_by_one = Host(Profile(guest=lib.GHCB_GUEST_SNP), 3)
    at_once = Host(Profile(guest=lib.GHCB_GUEST_SNP), 3)
    for host in (one_by_one, at_once):
        host.vcpus["registered_gpa"] = 0x7000
    cpus = np.array([rng.randrange(3) for _ in range(n)], np.uint32)
    gpas = np.full(n, 0x7000, np.uint64)
    pages = np.array([np.frombuffer(random_page(rng, 0x7000), np.uint8) for _ in range(n)])
    pages = pages.reshape(n, 4096).astype(np.uint8)
    if n and kind != "good":
        at = rng.randrange(n)
        if kind == "cpu":
            cpus[at] = rng.choice([3, 2**32 - 1])
        elif kind == "gpa":
            gpas[at] = rng.choice([0, 0x7001, 2**64 - 1])
        else:
            gpas[at] = 0x8000  # not registered: the run ends
    wanted, done, refusal = pages.copy(), 0, None
    for cpu, page, gpa in zip(cpus, wanted, gpas, strict=True):
        try:
            one_by_one.page(int(cpu), page, int(gpa))
        except errors.SevError as error:
            refusal = error
            break
        done += 1
    if refusal is None:
        assert at_once.page_batch(cpus, pages, gpas) is None
    else:
        with pytest.raises(type(refusal), match=rf"\[{done}\]"):
            at_once.page_batch(cpus, pages, gpas)
    assert np.array_equal(pages, wanted)
    assert at_once.vm.tolist() == one_by_one.vm.tolist()
    assert at_once.vcpus.tolist() == one_by_one.vcpus.tolist()


def test_a_batch_of_pages_refuses_arrays_that_do_not_belong_together():
    host = Host(Profile(), 1)
    cpus, gpas = np.zeros(2, np.uint32), np.full(2, 0x7000, np.uint64)
    with pytest.raises(errors.OutOfRange, match="2 cpus"):
        host.page_batch(cpus, np.zeros((3, 4096), np.uint8), gpas)
    with pytest.raises(errors.OutOfRange, match="1 gpas"):
        host.page_batch(cpus, np.zeros((2, 4096), np.uint8), gpas[:1])
    with pytest.raises(errors.OutOfRange, match="4095 bytes"):
        host.page_batch(cpus, np.zeros((2, 4095), np.uint8), gpas)
    with pytest.raises(ValueError, match="contiguous"):
        host.page_batch(cpus, np.zeros((2, 8192), np.uint8)[:, ::2], gpas)


BAD_CPU = st.integers(2, 2**70) | st.integers(-(2**70), -1) | st.just(2**32) | st.just(2**64)
BAD_U64 = st.integers(2**64, 2**70) | st.integers(-(2**70), -1)
ODD = st.sampled_from([None, "0", 1.5, b"", [], object()])


@given(st.data())
def test_wrong_arguments_are_refused_and_change_nothing(data):
    host = Host(Profile(), 2)
    before = deepcopy((host.vm.tolist(), host.vcpus.tolist()))
    page = np.zeros(4096, np.uint8)
    frozen = np.zeros(4096, np.uint8)
    frozen.flags.writeable = False
    strided = np.zeros(8192, np.uint8)[::2]
    sizes = st.integers(0, 8192).filter(lambda size: size != 4096)
    u32, u64 = np.zeros(3, np.uint32), np.zeros(3, np.uint64)
    wrong = data.draw(
        st.sampled_from(
            [
                lambda: host.msr(data.draw(BAD_CPU), 0x002),
                lambda: host.msr(data.draw(ODD), 0x002),
                lambda: host.msr(0, data.draw(BAD_U64)),
                lambda: host.msr(0, data.draw(ODD)),
                lambda: host.msr(0, data.draw(GPAS)),
                lambda: host.page(data.draw(BAD_CPU), page, 0x1000),
                lambda: host.page(0, np.zeros(data.draw(sizes), np.uint8), 0x1000),
                lambda: host.page(0, np.zeros((64, 64), np.uint8), 0x1000),
                lambda: host.page(0, np.zeros(512, np.uint64), 0x1000),
                lambda: host.page(0, np.zeros(4096, np.int8), 0x1000),
                lambda: host.page(0, frozen, 0x1000),
                lambda: host.page(0, bytes(4096), 0x1000),
                lambda: host.page(0, strided, 0x1000),
                lambda: host.page(0, data.draw(ODD), 0x1000),
                lambda: host.page(0, page, 0),
                lambda: host.page(0, page, data.draw(U64.filter(lambda gpa: gpa & 0xFFF))),
                lambda: host.page(0, page, data.draw(BAD_U64)),
                lambda: host.page(0, page, data.draw(ODD)),
                lambda: host.call(data.draw(BAD_CPU), lib.GHCB_CALL_NMI),
                lambda: host.call(0, data.draw(st.integers(lib.GHCB_CALL_END, 2**64 - 1))),
                lambda: host.call(0, data.draw(BAD_U64)),
                lambda: host.call(0, data.draw(ODD)),
                lambda: host.msr_batch(u32, u64[:2]),
                lambda: host.msr_batch(u32, u64, u64[:2].copy()),
                lambda: host.msr_batch(u64, u64),
                lambda: host.msr_batch(u32, u32),
                lambda: host.msr_batch(u32, np.zeros(6, np.uint64)[::2]),
                lambda: host.msr_batch(None, u64),
                lambda: host.msr_batch(u32, None),
                lambda: host.msr_batch(u32, u64, np.zeros(3, np.int64)),
            ]
        )
    )
    with pytest.raises(MISTAKE) as caught:
        wrong()
    note(repr(caught.value))
    assert (host.vm.tolist(), host.vcpus.tolist()) == before
    assert not page.any()


@given(st.data())
def test_a_profile_or_host_that_cannot_be_is_refused(data):
    cpuid_value = st.integers(2**32, 2**70) | st.integers(-5, -1)
    wrong = data.draw(
        st.sampled_from(
            [
                lambda: Profile(guest=data.draw(st.integers(3, 2**64))),
                lambda: Profile(rules=[data.draw(st.integers(lib.GHCB_RULE_END, 2**70))]),
                lambda: Profile(faults=[data.draw(st.integers(lib.GHCB_FAULT_END, 2**70))]),
                lambda: Profile(msr_functions=[data.draw(st.sampled_from([0, 1, 5, 0xFFF, -1]))]),
                lambda: Profile(nae_events=[data.draw(st.sampled_from([0, 2**32 + 0x72, -1]))]),
                lambda: Profile(fault_rate=data.draw(st.just(0) | st.integers(2**32, 2**70))),
                lambda: Profile(sev_features=data.draw(st.integers(2**64, 2**70))),
                lambda: Profile(min_version=data.draw(st.just(0) | st.integers(2**16, 2**70))),
                lambda: Profile(max_version=data.draw(st.just(0) | st.integers(2**16, 2**70))),
                lambda: Profile(c_bit=data.draw(st.integers(64, 2**70))),
                lambda: Profile(hv_features=data.draw(st.integers(2**52, 2**70))),
                lambda: Profile(cpuid=[(data.draw(cpuid_value), 0, 0, 0, 0, 0)]),
                lambda: Profile(cpuid=[(0, 0, 0, 0, 0, data.draw(cpuid_value))]),
                lambda: Profile(cpuid=[(0, 0, 0)]),
                lambda: Profile(cpuid=data.draw(st.sampled_from([None, 5, [5], "no"]))),
                lambda: Profile(guest=data.draw(ODD)),
                lambda: Host(Profile(), data.draw(st.integers(-(2**70), -1))),
                lambda: Host(Profile(), data.draw(st.integers(2**62, 2**70))),
                lambda: Host(Profile(), data.draw(ODD)),
                lambda: Host(data.draw(ODD), 1),
            ]
        )
    )
    with pytest.raises((*MISTAKE, MemoryError)) as caught:
        wrong()
    note(re.sub(r"0x[0-9a-f]{9,}", "0x...", repr(caught.value)))
