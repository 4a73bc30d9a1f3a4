"""Pages and MSR requests from seeds: the core answers byte by byte as the oracle does."""

from random import Random

import host_oracle as oracle
import pytest
from host_oracle import CODE, CPL, INFO1, INFO2, RAX, RBX, RCX, RDX, SCRATCH, XCR0
from host_pair import EVENTS, EXTRAS, KINDS, SWITCHES, WORDS, Pair
from host_requests import (
    GPAS,
    SEEDS,
    UNKNOWN_EVENTS,
    msr_value,
    profiles,
    psc_descriptor,
    random_page,
)
from hypothesis import given, settings
from hypothesis import strategies as st

ALL = (*KINDS, "memory")
WORLDS = st.sampled_from([None, ALL, ALL, ()]) | st.sets(st.sampled_from(ALL))
PAGE_EVENTS = [*EVENTS, *UNKNOWN_EVENTS]


def one_of_each(pair, rng, n, *, pages=True, events=EVENTS):
    """Ask ``n`` times, by page or by MSR; user space lets the VM go on whatever happened."""
    gpa = rng.choice(GPAS)
    for _ in range(n):
        cpu = rng.randrange(pair.n)
        if rng.random() < 0.9:
            pair.register(cpu, gpa)
        if pages and rng.random() < 0.9:
            pair.page(cpu, random_page(rng, gpa, events, pair.n), gpa)
        else:
            pair.msr(cpu, msr_value(rng, gpa))
        pair.go_on()
        pair.write(cpu, mp_state=oracle.RUNNABLE)


@pytest.mark.parametrize("guest", ["sev_es", "snp"])
@given(SEEDS, profiles(), WORLDS, st.sets(st.sampled_from(sorted(EXTRAS))))
@settings(max_examples=40)
def test_any_request_is_answered_as_the_oracle_answers(guest, seed, profile, kinds, extra):
    pair = Pair(guest, 3, kinds=kinds, seed=seed, extra=sorted(extra), **profile)
    one_of_each(pair, Random(seed), 40)


@pytest.mark.parametrize("guest", ["sev_es", "snp"])
@given(
    SEEDS,
    WORLDS,
    st.sets(st.sampled_from(sorted(SWITCHES)), min_size=1, max_size=4),
    st.sets(st.sampled_from(sorted(EXTRAS))),
    st.sampled_from([1, 2]),
)
@settings(max_examples=70)
def test_hosts_that_differ_are_told_alike(guest, seed, kinds, rules, extra, version):
    pair = Pair(
        guest, 2, rules=rules, kinds=kinds, seed=seed, extra=sorted(extra), max_version=version
    )
    one_of_each(pair, Random(seed), 25)


@pytest.mark.slow
@pytest.mark.parametrize("guest", ["sev_es", "snp"])
@pytest.mark.parametrize("seed", range(12))
def test_many_requests_are_answered_as_the_oracle_answers(guest, seed):
    rng = Random(seed)
    for run in range(12):
        rules = rng.sample(sorted(SWITCHES), rng.choice([0, 0, 1, 3]))
        kinds = rng.choice([None, ALL, ALL, ALL, rng.sample(ALL, 5)])
        extra = rng.choice([[], sorted(EXTRAS)])
        pair = Pair(guest, 3, rules=rules, kinds=kinds, seed=100 * seed + run, extra=extra)
        one_of_each(pair, rng, 500)


def page_states(pair, rng, n):
    """Ask ``n`` times for descriptors of every shape, each again until it is done or refused."""
    pair.register(0, 0x7000)
    for _ in range(n):
        page = oracle.Page(bytearray(4096))
        descriptor = psc_descriptor(rng)
        n_bytes = rng.choice([0, 8, len(descriptor), len(descriptor) - 8, 2032, 2040, 4096])
        scratch = rng.choice([0x7800, 0x7800, 0x7FF0 - len(descriptor), 0x7FE8, 0x9_0000, 0x9_0800])
        fields = {CODE: 0x8000_0010, INFO2: n_bytes, SCRATCH: scratch}
        for offset, value in fields.items():
            page.store(offset, value)
            page.mark_valid(offset)
        page.mark_valid(INFO1)
        if 0x7000 <= scratch < 0x8000:
            fits = descriptor[: max(0, 0x7FF0 - scratch)]
            page.content[scratch - 0x7000 : scratch - 0x7000 + len(fits)] = fits
        else:
            pair.put(scratch, descriptor)
        request = bytes(page.content)
        for _ in range(3):
            answer = pair.page(0, bytearray(request), 0x7000)
            pair.go_on()
            request = request[:0x800] + bytes(answer[0x800:])


@given(SEEDS, st.sampled_from([ALL, ("map_gpa",), ("memory",), ("map_gpa", "memory"), None]))
@settings(max_examples=40)
def test_page_states_change_as_the_oracle_says(seed, kinds):
    page_states(Pair("snp", 1, kinds=kinds, seed=seed), Random(seed), 15)


@pytest.mark.parametrize("code", PAGE_EVENTS, ids=hex)
@pytest.mark.parametrize("guest", ["sev_es", "snp"])
def test_each_event_needs_the_marks_that_the_oracle_says(guest, code):
    """All 2**7 sets of marked inputs, for a read and a write, with RAX on and off leaf 0xD."""
    inputs = [RAX, RBX, RCX, RDX, SCRATCH, XCR0, CPL]
    pair = Pair(guest, 2, extra=sorted(EXTRAS))
    for info1, rax in ((0, 0xD), (1, 0xD), (2, 0), (4, 2**32 + 0xD), (5, 1), (0x1_0002, 1)):
        for chosen in range(2 ** len(inputs)):
            page = oracle.Page(bytearray(4096))
            fields = {CODE: code, INFO1: info1, INFO2: 1, RAX: rax, SCRATCH: 0x7800}
            for offset, value in fields.items():
                page.store(offset, value)
            for offset in (CODE, INFO1, INFO2):
                page.mark_valid(offset)
            for index, offset in enumerate(inputs):
                if chosen >> index & 1:
                    page.mark_valid(offset)
            pair.write(0, registered_gpa=0x7000, mp_state=oracle.RUNNABLE)
            pair.page(0, page.content, 0x7000)
            pair.go_on()


def test_random_requests_reach_every_kind_of_answer():
    """What a test of agreement is worth depends on what the two agreed about."""
    reached = set()
    for guest in ("sev_es", "snp"):
        for seed in range(30):
            kinds = [None, ALL][seed % 2]
            pair = Pair(guest, 2, kinds=kinds, seed=seed, extra=sorted(EXTRAS))
            rng = Random(seed)
            for _ in range(120):
                pair.write(0, registered_gpa=0x7000, mp_state=oracle.RUNNABLE)
                page = random_page(rng, 0x7000, EVENTS, 2)
                code = oracle.Page(page).number(CODE)
                pair.page(0, page, 0x7000)
                vcpu = pair.model.vcpus[0]
                wrong = vcpu["sw_exit_info_2"] if vcpu["sw_exit_info_1"] == 2 else None
                reached.add((code, pair.event, vcpu["sw_exit_info_1"], wrong))
                pair.go_on()
    assert {wrong for *_, wrong in reached} >= {None, 2, 3, 4, 5, 6}
    events = {event for _, event, _, _ in reached}
    assert events == set(WORDS["event"]) - {"shutdown"}
    assert {code for code, _, info1, _ in reached if info1 == 0} >= set(EVENTS)
    assert (0x7C, "none", 1, None) in reached
    assert {code for code, *_, wrong in reached if wrong == 3} == {
        0x7B,
        0x8000_0001,
        0x8000_0002,
        0x8000_0010,
    }


@given(profiles())
@settings(max_examples=50)
def test_cpuid_answers_each_leaf_and_sub_leaf_as_the_oracle_does(profile):
    """The neighbourhood of all that is listed, by page and by MSR."""
    pair = Pair(**profile)
    functions = {0, 1, *(function ^ bit for function, *_ in profile["cpuid"] for bit in (0, 1))}
    for function in sorted(functions):
        for index in (0, 1, 2, 3, 2**32 - 1):
            page = oracle.Page(bytearray(4096))
            for offset, value in ((CODE, 0x72), (RAX, function), (RCX, index)):
                page.store(offset, value)
            for offset in (CODE, INFO1, INFO2, RAX, RCX, XCR0):
                page.mark_valid(offset)
            pair.page(0, page.content, 0x7000)
        for register in range(4):
            pair.msr(0, function << 32 | register << 30 | 0x004)
