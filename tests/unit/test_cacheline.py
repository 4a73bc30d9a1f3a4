"""The rules of one line, word by word, and what the explorer of programs refuses."""

import numpy as np
import pytest

from ghcbcore import errors
from ghcbcore._cffi import ffi, lib
from ghcbcore.cacheline import MAX_CPUS, MAX_LINES, MAX_OPS, OP_DTYPE, Explorer

PLAIN, SME, ASID = lib.GHCB_KEY_SLOT_NONE, lib.GHCB_KEY_SLOT_SME, 5
OLD, NEW = 2, 3


class Line:
    """One line of a machine with a few CPUs."""

    def __init__(self, n_cpus=2, coherent=0, stride=3):
        self.stride = stride
        self.words = ffi.new("uint64_t[]", n_cpus * stride)
        self.memory = ffi.new("uint64_t *", lib.ghcb_cell(PLAIN, 1))
        where = (self.words, self.words + stride, stride, n_cpus, self.memory, coherent)
        self.at = ffi.new("ghcb_line_t *", where)
        self.value = ffi.new("uint64_t *")

    def word(self, cpu):
        return self.words[cpu * self.stride]

    def store(self, cpu, slot, value):
        return lib.ghcb_line_store(self.at, cpu, slot, value)

    def load(self, cpu, slot):
        assert lib.ghcb_line_load(self.at, cpu, slot, self.value) == lib.GHCB_OK
        return self.value[0]

    def evict(self, cpu, slot):
        lib.ghcb_line_evict(self.words + cpu * self.stride, slot, self.memory)

    def content(self):
        cell = lib.ghcb_memory_content(self.memory[0])
        return lib.ghcb_cell_slot(cell), lib.ghcb_cell_value(cell)


def test_a_miss_under_another_key_reads_noise_and_stays_noise_while_it_is_cached():
    line = Line()
    assert line.load(0, PLAIN) == 1
    assert line.load(0, SME) == lib.GHCB_LINE_NOISE
    line.store(1, SME, OLD)
    assert line.load(0, PLAIN) == 1  # a stale clean alias
    line.evict(1, SME)
    line.evict(0, PLAIN)
    assert line.load(0, PLAIN) == lib.GHCB_LINE_NOISE


def test_the_last_alias_to_be_written_back_wins():
    for order in ((SME, PLAIN), (PLAIN, SME)):
        line = Line()
        line.store(0, SME, OLD)
        line.store(0, PLAIN, NEW)
        for slot in order:
            line.evict(0, slot)
        assert line.content()[0] == order[-1]
        assert line.word(0) == 0


def test_a_store_takes_the_line_from_the_other_cpu_in_its_domain_only():
    line = Line()
    line.store(0, SME, OLD)
    line.store(1, PLAIN, NEW)
    line.store(1, SME, NEW)
    assert lib.ghcb_line_find(line.word(0), SME) == 0
    assert lib.ghcb_line_n_dirty(line.word(1)) == 2
    assert line.load(0, SME) == NEW
    assert lib.ghcb_line_n_dirty(line.word(0)) == 0  # the owner keeps it dirty


def test_a_coherent_part_has_one_domain_at_a_time():
    line = Line(coherent=1)
    line.store(0, SME, OLD)
    line.store(1, PLAIN, NEW)
    assert line.word(0) == 0
    assert line.content() == (SME, OLD)
    line.evict(1, PLAIN)
    assert line.content() == (PLAIN, NEW)


@pytest.mark.parametrize("coherent", [0, 1])
def test_clflush_leaves_other_domains_alone_unless_the_part_is_coherent(coherent):
    line = Line(coherent=0)
    line.store(0, SME, OLD)
    line.at.coherent = coherent
    lib.ghcb_line_clflush(line.at, PLAIN)
    assert (line.word(0) == 0) == bool(coherent)


def test_wbinvd_can_end_with_each_dirty_alias_and_wbnoinvd_keeps_the_lines():
    for flush in (lib.ghcb_line_wbinvd, lib.ghcb_line_wbnoinvd):
        for last in (PLAIN, SME, ASID):
            line = Line(n_cpus=1, stride=1)
            for slot in (PLAIN, SME, ASID):
                line.store(0, slot, OLD)
            flush(line.words, last, line.memory)
            assert line.content() == (last, OLD)
            assert lib.ghcb_line_n_dirty(line.word(0)) == 0
            assert (line.word(0) == 0) == (flush is lib.ghcb_line_wbinvd)


def test_invd_loses_what_was_dirty():
    line = Line(n_cpus=1, stride=1)
    line.store(0, SME, OLD)
    lib.ghcb_line_invd(line.words)
    assert line.content() == (PLAIN, 1)


def test_vm_page_flush_is_for_guests_only():
    line = Line(coherent=1)
    line.store(0, SME, OLD)
    assert lib.ghcb_line_page_flush(line.at, ASID) == lib.GHCB_OK
    assert line.word(0) != 0
    for slot in (PLAIN, SME, lib.GHCB_KEY_SLOT_LAST_ASID + 1, 1 << 40):
        assert lib.ghcb_line_page_flush(line.at, slot) == lib.GHCB_E_OUT_OF_RANGE


def test_equal_states_are_equal_words_whatever_the_order_of_stores():
    slots = [PLAIN, 1, ASID, SME]
    words = set()
    for first in range(4):
        line = Line()
        for i in range(4):
            line.store(0, slots[(first + i) % 4], OLD)
        words.add(line.word(0))
    assert len(words) == 1


@pytest.mark.parametrize(
    ("cpu", "slot", "value"),
    [(2, PLAIN, OLD), (0, 1024, OLD), (0, PLAIN, 0), (0, PLAIN, 16), (2**63, PLAIN, OLD)],
)
def test_a_store_that_is_none_changes_nothing(cpu, slot, value):
    line = Line()
    assert line.store(cpu, slot, value) == lib.GHCB_E_OUT_OF_RANGE
    assert (line.word(0), line.word(1), line.content()) == (0, 0, (PLAIN, 1))


def test_a_fifth_alias_of_one_cpu_is_refused_and_the_four_stay():
    line = Line()
    for slot in (1, 2, 3, 4):
        line.store(0, slot, OLD)
    before = line.word(0)
    assert line.store(0, 5, OLD) == lib.GHCB_E_OUT_OF_RANGE
    assert lib.ghcb_line_load(line.at, 0, 5, line.value) == lib.GHCB_E_OUT_OF_RANGE
    assert line.word(0) == before
    assert line.store(1, 5, OLD) == lib.GHCB_OK


def test_a_queued_write_is_encrypted_with_the_key_of_the_moment_it_leaves():
    memory = lib.ghcb_memory_write(lib.ghcb_cell(PLAIN, 1), ASID, OLD)
    early = lib.ghcb_memory_rekey(lib.ghcb_memory_drain(memory), ASID)
    late = lib.ghcb_memory_drain(lib.ghcb_memory_rekey(memory, ASID))
    assert lib.ghcb_cell_read(early, ASID) == lib.GHCB_LINE_NOISE
    assert lib.ghcb_cell_read(late, ASID) == OLD


# -- the explorer -------------------------------------------------------------------------------


def ops(*rows):
    return np.array(list(rows), OP_DTYPE)


def cells(n=1):
    return np.full(n, lib.ghcb_cell(PLAIN, 1), np.uint64)


STORE = (lib.GHCB_CACHE_STORE, 0, 0, SME, OLD, 0)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((0, 0, 0, 0, 0, 0), "no such kind"),
        ((lib.GHCB_CACHE_OPS_END, 0, 0, 0, 0, 0), "no such kind"),
        ((lib.GHCB_CACHE_STORE, 1, 0, 0, 2, 0), "cpu 1, there are 1"),
        ((lib.GHCB_CACHE_STORE, 0, 1, 0, 2, 0), "line 1, there are 1"),
        ((lib.GHCB_CACHE_STORE, 0, 0, 1024, 2, 0), "slot 0x400"),
        ((lib.GHCB_CACHE_STORE, 0, 0, 0, 16, 0), "value 0x10"),
        ((lib.GHCB_CACHE_STORE, 0, 0, 0, 0, 0), "nothing can store"),
        ((lib.GHCB_CACHE_PAGE_FLUSH, 0, 0, SME, 0, 0), "no ASID"),
        ((lib.GHCB_CACHE_REKEY, 0, 0, 0, 0, 0), "no ASID"),
    ],
)
def test_a_statement_that_is_none_is_named(row, words):
    with pytest.raises(errors.OutOfRange, match=rf"ops\[1\].*{words}"):
        Explorer(ops(STORE, row), 1, cells())


def test_blocks_must_not_fall_and_five_domains_on_a_cpu_are_too_many():
    with pytest.raises(errors.OutOfRange, match="block 0 after 1"):
        Explorer(ops((*STORE[:5], 1), STORE), 1, cells())
    many = [(lib.GHCB_CACHE_STORE, 0, 0, slot, OLD, slot) for slot in range(1, 6)]
    with pytest.raises(errors.OutOfRange, match=r"ops\[4\].*five domains"):
        Explorer(ops(*many), 1, cells())


@pytest.mark.parametrize("n_cpus", [0, -1, MAX_CPUS + 1])
def test_the_number_of_cpus_is_bounded(n_cpus):
    with pytest.raises(errors.OutOfRange, match="n_cpus"):
        Explorer(ops(STORE), n_cpus, cells())


def test_sizes_are_bounded_before_anything_is_allocated():
    with pytest.raises(errors.OutOfRange, match="memory"):
        Explorer(ops(STORE), 1, cells(MAX_LINES + 1))
    with pytest.raises(errors.OutOfRange, match="statements"):
        Explorer(np.zeros(MAX_OPS + 1, OP_DTYPE), 1, cells())
    with pytest.raises(errors.OutOfRange, match="never"):
        Explorer(ops(STORE), 1, cells(), never=cells(2))
    with pytest.raises(errors.OutOfRange, match="max_bytes"):
        Explorer(ops(STORE), 1, cells(), max_bytes=10)


def test_a_search_without_room_says_that_it_is_not_complete():
    rows = [(lib.GHCB_CACHE_STORE, i % 8, i // 8, SME, OLD, 0) for i in range(32)]
    found = Explorer(ops(*rows), 8, cells(4), max_bytes=1 << 20)
    found.run()
    assert not found.is_complete
    assert found.n_states > 100


def test_an_explorer_is_not_used_before_it_is_made_nor_in_two_orders():
    empty = Explorer.__new__(Explorer, ops(STORE), 1, cells())
    for call in (empty.run, empty.results, empty.bad_loads):
        with pytest.raises(errors.StateConflict):
            call()
    made = Explorer(ops(STORE), 1, cells())
    with pytest.raises(errors.StateConflict):
        made.__init__(ops(STORE), 1, cells())
    made.run()
    with pytest.raises(errors.StateConflict, match="order"):
        made.run(deep=True)
    for state in (-1, made.n_states):
        with pytest.raises(errors.OutOfRange):
            made.path(state)


def test_what_must_never_be_there_is_corrupt_even_if_it_is_expected():
    never = np.array([lib.ghcb_cell(SME, OLD)], np.uint64)
    assert not Explorer(ops(STORE), 1, cells(), never=never).run()
    assert Explorer(ops(STORE), 1, cells()).run()
