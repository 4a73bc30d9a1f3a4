"""Caches at scale: geometry, flushes, seeds, and what is refused."""

import threading

import numpy as np
import pytest

from ghcbcore import errors
from ghcbcore._cffi import lib
from ghcbcore.cache import MAX_CORES, Cache, bytes_for
from pysev.caches.scale import FLUSHERS, cache_of, find_preset, kexec_at_scale, ranges
from pysev.tables.caches import PRESETS, CacheRow

PLAIN, SME = lib.GHCB_KEY_SLOT_NONE, lib.GHCB_KEY_SLOT_SME
SMALL = [(2, 2), (4, 2), (4, 4)]
TINY = CacheRow("tiny", "for tests", (4, 2), (8, 4), (16, 4), 2, 2, False)


def lines(*numbers):
    return np.array(numbers, np.uint64)


def test_a_dirty_line_under_another_key_can_come_back_over_the_new_content():
    found = set()
    for seed in range(20):
        cache = Cache(SMALL, seed=seed)
        cache.access(lines(7), True, slots=SME)
        cache.forget()
        cache.access(lines(7), True, slots=PLAIN)
        assert len(cache.dirty()) == 2
        assert len(cache.corrupted()) == 0  # nothing is lost yet
        assert cache.wbinvd() == 2
        found.add(tuple(cache.corrupted()["spa"].tolist()))
    assert found == {(), (7 * 64,)}


def test_a_flush_in_between_or_a_coherent_part_leaves_nothing_corrupt():
    for coherent, flush in ((True, None), (False, "wbinvd"), (False, "wbnoinvd")):
        for seed in range(20):
            cache = Cache(SMALL, coherent=coherent, seed=seed)
            cache.access(np.arange(30, dtype=np.uint64), True, slots=SME)
            if flush:
                getattr(cache, flush)()
            cache.forget()
            cache.access(np.arange(30, dtype=np.uint64), True, slots=PLAIN)
            cache.wbinvd()
            assert len(cache.corrupted()) == 0


def test_the_same_seed_gives_the_same_history_and_another_one_another():
    def history(seed, replacement):
        cache = Cache(SMALL, 2, 2, seed=seed, replacement=replacement)
        for slot in (SME, PLAIN):
            cache.access(np.arange(24, dtype=np.uint64), True, slots=slot, cores=slot & 1)
        cache.evict(40)
        cache.wbinvd()
        return cache.corrupted().tobytes(), cache.counts

    for replacement in ("lru", "random"):
        assert history(5, replacement) == history(5, replacement)
        assert len({history(seed, replacement) for seed in range(8)}) > 1


def test_evict_writes_back_in_the_end_what_wbinvd_would():
    cache = Cache(SMALL)
    cache.access(np.arange(8, dtype=np.uint64), True)
    n = cache.evict(2000)
    assert n == cache.counts.write_backs == 8
    assert len(cache.dirty()) == 0
    assert cache.census().sum() == 0


def test_invd_loses_stores_and_says_so():
    cache = Cache([(4, 2)])
    cache.access(lines(1, 2), True, slots=SME)
    cache.invd(0)
    assert cache.corrupted()["spa"].tolist() == [64, 128]
    assert cache.corrupted()["version"].tolist() == [0, 0]


def test_vm_page_flush_flushes_one_page_of_one_guest():
    cache = Cache([(64, 8)])
    for slot in (5, 6):
        cache.access(lines(0x40, 0x7F, 0x80), True, slots=slot)
    cache.vm_page_flush(1, 5)
    left = [(one["line"], one["slot"]) for one in cache.dirty()]
    assert sorted(left) == [(0x40, 6), (0x7F, 6), (0x80, 5), (0x80, 6)]


def test_forgotten_lines_are_never_corrupt():
    cache = Cache([(4, 2)])
    cache.access(lines(1, 2), True, slots=SME)
    cache.invd()
    cache.forget(lines(1, 10**9))
    assert cache.corrupted()["spa"].tolist() == [128]
    cache.forget()
    assert len(cache.corrupted()) == 0


@pytest.mark.parametrize("preset", PRESETS, ids=lambda row: row.name)
def test_a_preset_has_the_sizes_of_the_part(preset):
    l1d, l2, l3 = (sets * ways * 64 for sets, ways in preset.levels)
    assert l1d in (32 << 10, 48 << 10)
    assert l2 in (512 << 10, 1 << 20)
    assert l3 in (16 << 20, 32 << 20, 96 << 20)
    assert find_preset(preset.name) is preset
    cache = cache_of(preset, 1, track=False)
    n = l2 // 64 + l3 // 64
    counts = cache.access(np.arange(n, dtype=np.uint64))
    assert (counts.fills, counts.write_backs) == (n, 0)
    assert cache.census().sum(axis=(1, 2)).tolist() == [l1d // 64, l2 // 64, l3 // 64]


@pytest.mark.parametrize(
    ("levels", "n_cores", "per", "words"),
    [
        ([], 1, 1, "levels: 0"),
        ([(1, 1)] * 4, 1, 1, "levels: 4"),
        ([(0, 8)], 1, 1, r"levels\[0\]: 0 sets"),
        ([(64, 8), (64, 17)], 1, 1, r"levels\[1\]: 17 ways"),
        ([(64, 0)], 1, 1, "0 ways"),
        ([(64, 8)], 0, 1, "n_cores = 0"),
        ([(64, 8)], MAX_CORES + 1, 1, "n_cores"),
        ([(64, 8)], 1, 0, "cores_per_l3"),
        ([(1 << 60, 8)], 1, 1, "sets"),
    ],
)
def test_a_geometry_that_is_none_is_refused(levels, n_cores, per, words):
    for call in (bytes_for, Cache):
        with pytest.raises(errors.OutOfRange, match=words):
            call(levels, n_cores, per)


def test_a_geometry_that_does_not_fit_is_refused_before_it_is_allocated():
    with pytest.raises(errors.OutOfRange, match="max_bytes"):
        Cache([(1 << 46, 16)] * 3, MAX_CORES, 1, max_bytes=1 << 60)
    with pytest.raises(errors.OutOfRange, match="MiB"):
        kexec_at_scale(find_preset("genoa-x"), "nobody", n_cores=4096)
    need = bytes_for(SMALL)
    assert Cache(SMALL, max_bytes=need).n_bytes >= need
    with pytest.raises(errors.OutOfRange):
        Cache(SMALL, max_bytes=need - 1)


def test_memory_that_does_not_fit_stops_a_batch_and_keeps_what_was_done():
    cache = Cache([(2, 2)], max_bytes=8 << 20)
    far = np.arange(20_000, dtype=np.uint64) * np.uint64(64)
    with pytest.raises(errors.OutOfRange, match="max_bytes is 8388608"):
        cache.access(far, True)
    counts = cache.counts
    assert 2048 <= counts.write_backs < counts.stores < 20_000
    assert counts.stores % 2048 == 0 and counts.fills == counts.stores
    cache.wbinvd()
    assert len(cache.corrupted()) == 0


@pytest.mark.parametrize(
    ("line", "slot", "core"), [(1 << 46, 0, 0), (0, 1024, 0), (0, 0, 2), (2**64 - 1, 65535, 2**31)]
)
def test_an_access_to_nowhere_names_the_place_and_keeps_the_prefix(line, slot, core):
    for store in (False, True):
        cache = Cache([(2, 2)], 2)
        slots, cores = np.array([0, slot], np.uint16), np.array([0, core], np.uint32)
        with pytest.raises(errors.OutOfRange, match=r"lines\[1\]"):
            cache.access(lines(3, line), store, slots=slots, cores=cores)
        assert cache.counts.fills == 1
        assert cache.counts.loads + cache.counts.stores == 1
        with pytest.raises(errors.OutOfRange):
            cache.access(lines(line, line), store, slots=slot, cores=core)


def test_arguments_of_another_form_are_refused():
    cache = Cache([(2, 2)])
    for stores in (np.zeros(3, np.bool_), np.zeros(2, np.uint8), np.zeros((1, 2), np.bool_)):
        with pytest.raises(ValueError, match="stores"):
            cache.access(lines(1, 2), stores)
    with pytest.raises(ValueError, match="slots"):
        cache.access(lines(1, 2), slots=np.zeros(2, np.uint64))
    with pytest.raises(errors.OutOfRange, match="slots"):
        cache.access(lines(1, 2), slots=-1)
    with pytest.raises(ValueError):
        cache.access(np.zeros(2, np.int32))
    with pytest.raises((TypeError, ValueError)):
        cache.access(None)
    with pytest.raises(ValueError, match="replacement"):
        Cache([(2, 2)], replacement="fifo")
    for call in (
        lambda: cache.wbinvd(1),
        lambda: cache.wbinvd(-1),
        lambda: cache.clflush(lines(1), 1024),
        lambda: cache.clflush(lines(1 << 46), 0),
        lambda: cache.vm_page_flush(0, 0),
        lambda: cache.vm_page_flush(1 << 40, 1),
        lambda: Cache([(2, 2)], seed=1 << 64),
    ):
        with pytest.raises(errors.OutOfRange):
            call()
    with pytest.raises(errors.StateConflict, match="track"):
        Cache([(2, 2)], track=False).corrupted()


def test_a_cache_without_init_refuses_everything():
    cache = Cache.__new__(Cache, [(2, 2)])
    for call in (
        cache.corrupted,
        cache.dirty,
        cache.census,
        cache.wbinvd,
        cache.forget,
        lambda: cache.evict(1),
        lambda: cache.access(lines(1)),
        lambda: cache.counts,
    ):
        with pytest.raises(errors.StateConflict):
            call()


def test_threads_share_a_cache_without_losing_a_count():
    cache = Cache([(64, 8), (1024, 8)], 2)
    own = np.arange(50_000, dtype=np.uint64) % np.uint64(3000)

    def work(core):
        for _ in range(4):
            cache.access(own, True, slots=SME, cores=core)

    threads = [threading.Thread(target=work, args=(core,)) for core in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.counts.stores == 8 * len(own)
    cache.wbinvd()
    assert len(cache.corrupted()) == 0


def test_the_kexec_cpu_alone_does_not_flush_what_other_cores_hold():
    found = {name: kexec_at_scale(TINY, name, seed=3) for name in FLUSHERS}
    assert found["every CPU"].n_dirty == len(found["every CPU"].corrupted) == 0
    assert 0 < found["the kexec CPU"].n_dirty < found["nobody"].n_dirty
    assert len(found["the kexec CPU"].corrupted) > 0
    for one in found.values():
        assert (one.ranges[:, 1] - one.ranges[:, 0]).sum() == 64 * len(one.corrupted)
    coherent = kexec_at_scale(TINY, "nobody", seed=3, coherent=True)
    assert len(coherent.corrupted) == 0


def test_ranges_of_nothing_are_none():
    assert ranges(Cache([(2, 2)]).corrupted()).shape == (0, 2)
