"""Programs of caches: the core finds exactly the results that the oracle finds."""

from itertools import pairwise

import cache_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghcbcore._cffi import ffi, lib
from ghcbcore.cacheline import OP_DTYPE, Explorer

KINDS = {
    "load": lib.GHCB_CACHE_LOAD,
    "store": lib.GHCB_CACHE_STORE,
    "clflush": lib.GHCB_CACHE_CLFLUSH,
    "wbinvd": lib.GHCB_CACHE_WBINVD,
    "wbnoinvd": lib.GHCB_CACHE_WBNOINVD,
    "invd": lib.GHCB_CACHE_INVD,
    "page_flush": lib.GHCB_CACHE_PAGE_FLUSH,
    "df_flush": lib.GHCB_CACHE_DF_FLUSH,
    "rekey": lib.GHCB_CACHE_REKEY,
    "convert": lib.GHCB_CACHE_CONVERT,
    "kexec": lib.GHCB_CACHE_KEXEC,
    "halt": lib.GHCB_CACHE_HALT,
}
PLAIN, SME, ASID = 0, 1023, 7
CPUS, LINES = 2, 2


def explorer(blocks, memory, *, coherent=False, n_cpus=CPUS):
    ops = [
        (KINDS[kind], cpu, line, domain, value, number)
        for number, block in enumerate(blocks)
        for kind, cpu, line, domain, value in block
    ]
    cells = [lib.ghcb_cell(*memory[line][:2]) for line in range(len(memory))]
    return Explorer(np.array(ops, OP_DTYPE), n_cpus, np.array(cells, np.uint64), coherent=coherent)


def decoded(cell):
    slot, value = lib.ghcb_cell_slot(cell), lib.ghcb_cell_value(cell)
    return slot, value, lib.ghcb_cell_read(cell, slot) == value


def both(blocks, memory, *, coherent=False):
    """Compare results and reads; return those of the oracle and the explorer."""
    results, reads = oracle.outcomes(blocks, memory, coherent=coherent)
    found = explorer(blocks, memory, coherent=coherent)
    good = found.run()
    assert found.is_complete
    ours = set()
    is_bad = False
    for _, cells, expected, bad in found.results():
        content = {line: decoded(cell) for line, cell in enumerate(cells)}
        wanted = {line: decoded(cell)[:2] for line, cell in enumerate(expected) if cell}
        ours.add((frozenset(content.items()), frozenset(wanted.items())))
        differ = {line for line in wanted if content[line] != (*wanted[line], True)}
        assert differ == {line for line, one in enumerate(bad) if one}
        is_bad |= bool(differ)
    assert ours == results
    flat = [(number, i) for number, block in enumerate(blocks) for i in range(len(block))]
    ours_reads = {(*flat[op], value or None) for op, value, _ in found.bad_loads()}
    assert ours_reads == reads
    assert good == (not is_bad and not reads)
    return results, found


DOMAINS = st.sampled_from([PLAIN, SME, ASID])


@st.composite
def programs(draw, n_max=6):
    statements = []
    for number in range(draw(st.integers(1, n_max))):
        kind = draw(st.sampled_from([*KINDS, "store", "store", "store", "load"]))
        domain = draw(DOMAINS)
        if kind in ("page_flush", "rekey"):
            domain = ASID
        cpu, line = draw(st.integers(0, CPUS - 1)), draw(st.integers(0, LINES - 1))
        statements.append((kind, cpu, line, domain, number + 2 if kind == "store" else 0))
    cuts = sorted(draw(st.sets(st.integers(0, len(statements)))) | {0, len(statements)})
    return [statements[a:b] for a, b in pairwise(cuts)]


MEMORY = {0: (PLAIN, 1, True), 1: (SME, 1, True)}


@given(programs(), st.booleans())
def test_every_result_of_a_program_is_that_of_the_oracle(blocks, coherent):
    both(blocks, MEMORY, coherent=coherent)


@pytest.mark.slow
@given(programs(n_max=9), st.booleans())
@settings(max_examples=150)
def test_every_result_of_a_longer_program_is_that_of_the_oracle(blocks, coherent):
    both(blocks, MEMORY, coherent=coherent)


@given(programs(), st.booleans())
def test_the_deep_search_finds_the_same_results_and_stops_only_if_one_is_corrupt(blocks, coherent):
    wide, deep = (explorer(blocks, MEMORY, coherent=coherent) for _ in range(2))
    assert wide.run() == deep.run(deep=True)
    assert {r[1:] for r in wide.results()} == {r[1:] for r in deep.results()}
    assert wide.n_states == deep.n_states
    soon = explorer(blocks, MEMORY, coherent=coherent)
    assert soon.run(stop=True, deep=True) == deep.run(deep=True)


@given(programs())
def test_a_path_leads_to_its_result_when_the_rules_are_applied_one_by_one(blocks):
    found = explorer(blocks, MEMORY)
    found.run()
    for state, cells, _, _ in found.results():
        memory = ffi.new("uint64_t[]", [lib.ghcb_cell(*MEMORY[i][:2]) for i in range(LINES)])
        words = ffi.new("uint64_t[]", LINES * CPUS)
        value = ffi.new("uint64_t *")
        for event in found.path(state).tolist():
            replay(event, words, memory, value)
        drained = [lib.ghcb_memory_drain(one) for one in memory]
        assert [one & 0xFFFF for one in drained] == list(cells)
        assert all(lib.ghcb_line_n_dirty(word) == 0 for word in words)


def replay(event, words, memory, value):
    kind, _, cpu, line, slot, what = event
    own, at = words + line * CPUS, memory + line
    one = ffi.new("ghcb_line_t *", (own, own + 1, 1, CPUS, at, 0))
    if kind == lib.GHCB_CACHE_LOAD:
        assert lib.ghcb_line_load(one, cpu, slot, value) == lib.GHCB_OK
        assert value[0] == what
    elif kind == lib.GHCB_CACHE_STORE:
        assert lib.ghcb_line_store(one, cpu, slot, what) == lib.GHCB_OK
    elif kind == lib.GHCB_CACHE_CLFLUSH:
        lib.ghcb_line_clflush(one, slot)
    elif kind == lib.GHCB_CACHE_PAGE_FLUSH:
        lib.ghcb_line_page_flush(one, slot)
    elif kind in (lib.GHCB_CACHE_EVICT, lib.GHCB_CACHE_FORGET):
        lib.ghcb_line_evict(own + cpu, slot, at)
    elif kind == lib.GHCB_CACHE_CLEAN:
        lib.ghcb_line_write_back(own + cpu, slot, at)
    elif kind == lib.GHCB_CACHE_DRAIN:
        at[0] = lib.ghcb_memory_drain(at[0])
    for i in range(LINES):
        if kind in (lib.GHCB_CACHE_WBINVD, lib.GHCB_CACHE_INVD):
            assert kind == lib.GHCB_CACHE_INVD or not lib.ghcb_line_n_dirty(words[i * CPUS + cpu])
            lib.ghcb_line_invd(words + i * CPUS + cpu)
        elif kind == lib.GHCB_CACHE_DF_FLUSH:
            memory[i] = lib.ghcb_memory_drain(memory[i])
        elif kind == lib.GHCB_CACHE_REKEY:
            memory[i] = lib.ghcb_memory_rekey(memory[i], slot)


# -- k dirty aliases ----------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(1, 9))
def test_k_dirty_aliases_make_exactly_k_contents(k):
    slots = [PLAIN, SME, *range(1, 7)][:k]
    stores = [[("store", i % 4, 0, slot, 2 + i)] for i, slot in enumerate(slots)]
    found = explorer(stores, {0: (PLAIN, 1, True)}, n_cpus=4)
    assert found.run() == (k == 1)
    contents = {decoded(cells[0]) for _, cells, _, _ in found.results()}
    assert contents == {(slot, 2 + i, True) for i, slot in enumerate(slots)}


@pytest.mark.parametrize("k", range(1, 9))
def test_after_wbinvd_everywhere_the_next_store_is_the_one_content(k):
    slots = [PLAIN, SME, *range(1, 7)][:k]
    blocks = [[("store", i % 4, 0, slot, 2 + i)] for i, slot in enumerate(slots)]
    blocks += [[("wbinvd", cpu, 0, 0, 0) for cpu in range(4)], [("store", 0, 0, SME, 15)]]
    found = explorer(blocks, {0: (PLAIN, 1, True)}, n_cpus=4)
    assert found.run()
    assert [decoded(cells[0]) for _, cells, _, _ in found.results()] == [(SME, 15, True)]
    n_states = found.n_states
    before = explorer(blocks[:-1], {0: (PLAIN, 1, True)}, n_cpus=4)
    before.run()
    assert len(before.results()) == k  # the order of the write-backs is still hardware's
    assert n_states > before.n_states
