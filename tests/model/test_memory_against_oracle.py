"""The core of page ownership and its oracle go through the same histories and never differ.

The oracle is `tests/oracle/memory_oracle.py`, one record a page and one method an event. The core
is driven twice at every step: frames side by side, and a ledger (`memory_core.py`).
"""

from collections import Counter
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from memory_core import CoreMemory
from memory_oracle import MemoryOracle
from memory_steps import FIRMWARE, GUEST, HOST, N_REGIONS, Steps, compare_more, take


class Memory(RuleBasedStateMachine):
    """Three regions; the oracle's are smaller so that its histories stay short."""

    region_pages = st.sampled_from([2, 4, 8])

    def __init__(self):
        super().__init__()
        self.machine = None

    @initialize(
        data=st.data(), conservative=st.booleans(), shared_read=st.booleans(), up=st.booleans()
    )
    def start(self, data, conservative, shared_read, up):
        n = data.draw(self.region_pages, label="pages of a region")
        n_pages = N_REGIONS * n
        covered = data.draw(st.sampled_from([n_pages, n_pages, n_pages - n + 1, n_pages - n]))
        named = {"initialised": up, "shared_read": shared_read, "max_asid": 0x3FE}
        self.machine = MemoryOracle(n_pages, n, covered, conservative, **named)
        self.core = CoreMemory(n_pages, n, covered, conservative, **named)
        if not up:
            self.both(("snp_init", ((), None, (1,))))

    def both(self, step):
        take(self.machine, self.core, *step)

    def take_one_of(self, names, data):
        def pick(sequence):
            return data.draw(st.sampled_from(sequence))

        name = pick(names)
        for step in getattr(Steps(pick, self.machine.region_pages), name)():
            self.both(step)
        compare_more(self.machine, self.core, pick(range(self.machine.n_pages)))

    @precondition(lambda self: self.machine)
    @rule(data=st.data())
    def host(self, data):
        self.take_one_of(HOST, data)

    @precondition(lambda self: self.machine)
    @rule(data=st.data())
    def guest(self, data):
        self.take_one_of(GUEST, data)

    @precondition(lambda self: self.machine)
    @rule(data=st.data())
    def firmware(self, data):
        self.take_one_of(FIRMWARE, data)

    @precondition(lambda self: self.machine)
    @rule(data=st.data())
    def platform(self, data):
        self.take_one_of(["platform"], data)


class WholeMemory(Memory):
    """The same with regions of 512 pages, as they are."""

    region_pages = st.just(512)


TestMemory = Memory.TestCase
TestMemory.settings = settings(stateful_step_count=30)
TestWholeMemory = pytest.mark.slow(WholeMemory.TestCase)
TestWholeMemory.settings = settings(stateful_step_count=12, max_examples=4)


def played(seed, n_steps=120, region_pages=4):
    """Play a random history; return what its steps came to, counted by method."""
    rng = Random(seed)
    n_pages, seen = N_REGIONS * region_pages, Counter()
    covered = rng.choice([n_pages, n_pages, n_pages - region_pages + 1])
    conservative, shared_read = bool(rng.randrange(2)), not rng.randrange(4)
    machine = MemoryOracle(
        n_pages, region_pages, covered, conservative, shared_read=shared_read, max_asid=0x3FE
    )
    core = CoreMemory(
        n_pages, region_pages, covered, conservative, shared_read=shared_read, max_asid=0x3FE
    )
    steps = Steps(rng.choice, region_pages)
    for _ in range(n_steps):
        for name, arguments in getattr(
            steps, rng.choice([*HOST, *GUEST, *FIRMWARE] * 3 + ["platform"])
        )():
            found = take(machine, core, name, arguments)
            seen[name, found.kind, found.code] += 1
        compare_more(machine, core, rng.randrange(n_pages))
    return seen


@pytest.mark.slow
def test_random_histories_meet_the_outcomes_of_every_method():
    """But for a few that are rare, which vectors have."""
    seen = Counter()
    for seed in range(40):
        seen += played(seed, region_pages=(2, 4, 8)[seed % 3])
    wanted = {
        ("ok", "rmpupdate"): [0, 1, 2, 3, 4],
        ("ok", "psmash"): [0, 1, 2, 3],
        ("ok", "pvalidate"): [0, 1, 6],
        ("ok", "rmpadjust"): [0, 1, 2, 3, 6],
        ("ok", "rmpquery"): [0, 1, 2],
        **{("ok", name): [0] for name in ("access_guest", "access_host", "access_iommu")},
        **{("#NPF", name): [0] for name in ("pvalidate", "rmpadjust", "rmpquery", "access_guest")},
        **{("#VC", name): [0] for name in ("rmpadjust", "rmpquery", "access_guest")},
        ("#GP", "pvalidate"): [0],
        ("#PF", "access_host"): [0],
        ("IOMMU", "access_iommu"): [0],
        ("status", "gctx_create"): [0, 1, 0x16, 0x19, 0x1A],
        ("status", "decommission"): [0, 1, 0x10, 0x16],
        ("status", "md_init"): [0, 1, 0x10, 0x16, 0x1A],
        ("status", "launch_update"): [0, 1, 0x19, 0x1A, 0x1C],
        ("status", "reclaim"): [0, 1, 9, 0x19, 0x1A],
        ("status", "set_state"): [0, 1, 0x16, 0x1A],
        ("status", "unsmash"): [0, 1, 0x16, 0x1A],
        ("status", "page_move"): [0, 1, 0x10, 0x16, 0x19, 0x1A, 0x1C],
        ("status", "swap_out"): [0, 1, 0x10, 0x16, 0x19, 0x1A, 0x1C],
        ("status", "swap_in"): [0, 0x10, 0x1B, 0x1C],
        ("status", "snp_init"): [0, 3, 0x16, 0x20],
    }
    missing = [
        (name, kind, code)
        for (kind, name), expected in wanted.items()
        for code in expected
        if (name, kind, code) not in seen
    ]
    assert not missing
