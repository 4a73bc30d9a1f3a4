"""Large caches against dictionaries: same hits, write-backs and memory, through any history."""

import numpy as np
from cache_scale_oracle import Caches
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ghcbcore._cffi import lib
from ghcbcore.cache import Cache

SLOTS = (lib.GHCB_KEY_SLOT_NONE, lib.GHCB_KEY_SLOT_SME, 5)
LINES = st.integers(0, 23)
LEVELS = (
    [(2, 2)],
    [(1, 1), (3, 2)],
    [(2, 2), (2, 4)],
    [(1, 2), (2, 2), (3, 4)],
    [(2, 9), (2, 12), (2, 16)],
)


class CachesAgainstDictionaries(RuleBasedStateMachine):
    @initialize(
        levels=st.sampled_from(LEVELS),
        n_cores=st.sampled_from([1, 1, 2, 3, 66]),
        per=st.sampled_from([1, 2]),
        coherent=st.booleans(),
        seed=st.integers(0, 2**64 - 1),
    )
    def make(self, levels, n_cores, per, coherent, seed):
        self.n_cores = n_cores
        self.real = Cache(levels, n_cores, per, coherent=coherent, seed=seed)
        self.model = Caches(levels, n_cores, per, coherent)

    def core_of(self, drawn):
        # of 66 cores the first two and the last two share a bit of the word of holders
        return drawn % self.n_cores if self.n_cores < 66 else (0, 1, 64, 65)[drawn]

    @rule(
        accesses=st.lists(
            st.tuples(LINES, st.booleans(), st.sampled_from(SLOTS), st.integers(0, 3)), max_size=40
        )
    )
    def access(self, accesses):
        lines = np.array([one[0] for one in accesses], np.uint64)
        stores = np.array([one[1] for one in accesses], np.bool_)
        slots = np.array([one[2] for one in accesses], np.uint16)
        cores = np.array([self.core_of(one[3]) for one in accesses], np.uint32)
        counts = self.real.access(lines, stores, slots=slots, cores=cores)
        assert counts.loads + counts.stores == len(accesses)
        assert sum(counts[2:7]) == len(accesses)
        for line, is_store, slot, core in zip(lines, stores, slots, cores, strict=True):
            self.model.access(int(core), int(line), int(slot), bool(is_store))

    @rule(
        lines=st.lists(LINES, max_size=40),
        store=st.booleans(),
        slot=st.sampled_from(SLOTS),
        core=st.integers(0, 3),
    )
    def access_with_one_key(self, lines, store, slot, core):
        core = self.core_of(core)
        self.real.access(np.array(lines, np.uint64), store, slots=slot, cores=core)
        for line in lines:
            self.model.access(core, line, slot, store)

    @rule(line=LINES, slot=st.sampled_from(SLOTS))
    def clflush(self, line, slot):
        self.real.clflush(np.array([line], np.uint64), slot)
        self.model.clflush(line, slot)

    @rule()
    def vm_page_flush(self):
        self.real.vm_page_flush(0, 5)
        coherent, self.model.coherent = self.model.coherent, False
        for line in range(24):
            self.model.clflush(line, 5)
        self.model.coherent = coherent

    @rule(core=st.none() | st.integers(0, 3), what=st.sampled_from(["wbinvd", "wbnoinvd", "invd"]))
    def flush(self, core, what):
        core = None if core is None else self.core_of(core)
        n = getattr(self.real, what)(core)
        written = self.model.flush(core, write=what != "invd", drop=what != "wbnoinvd")
        assert n == sum(map(len, written.values()))
        held = self.held()
        for line, versions in written.items():  # one of them was the last: take the core's choice
            if self.model.meant.get(line):
                assert held.get(line, self.model.meant[line]) in versions | {self.model.meant[line]}
            choice = held.get(line)
            if choice not in versions:  # not listed: memory holds what was meant, or it waits
                meant = self.model.meant.get(line)
                choice = meant if meant in versions else None
            assert choice is not None or len(versions) == 1
            self.model.memory[line] = choice or next(iter(versions))

    def held(self):
        """{line: (slot, version)} of the lines that are listed as corrupt."""
        return {
            int(one["spa"]) // 64: (int(one["slot"]), int(one["version"]))
            for one in self.real.corrupted()
        }

    @invariant()
    @precondition(lambda self: hasattr(self, "real"))
    def the_same_counts_and_lost_stores(self):
        counts = self.real.counts
        ours = dict(zip(("l1", "l2", "l3", "other", "fill", "write_back"), counts[2:], strict=True))
        assert ours == self.model.counts
        corrupted = self.model.corrupted()
        assert self.held() == {line: held for line, (_, held) in corrupted.items()}
        dirty = {}
        for one in self.real.dirty().tolist():
            key = (one[0], one[3])
            dirty[key] = max(one[1], dirty.get(key, 0))
        assert dirty == self.model.dirty()


TestCachesAgainstDictionaries = CachesAgainstDictionaries.TestCase
TestCachesAgainstDictionaries.settings = settings(stateful_step_count=25, deadline=None)
