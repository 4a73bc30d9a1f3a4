"""What the caller of a guest's memory gets wrong: said by name, done up to there, nothing after."""

import re
import threading

import numpy as np
import pytest

from ghcbcore import psc
from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, ReservedBitsSet, StateConflict, Unaligned
from ghcbcore.frame import Op
from pysev.memmap import BadMap, BadSize, MemoryMap
from pysev.memory import Memory
from pysev.memory.kexec import KexecPages

MAP = Op(lib.FRAME_OP_MAP, value=lib.FRAME_SHARED)
LARGE = MAP._replace(size=lib.FRAME_LEAF_2M)
END = 0x4000


@pytest.fixture
def memory():
    return Memory("64M")


def shared(memory):
    return memory.runs(lambda v: v["mapping"] == lib.FRAME_SHARED)


def refuses(error, text):
    return pytest.raises(error, match=re.escape(text))


@pytest.mark.parametrize("size", [0, -4096, 4095, 4097, 1.5, None, True])
def test_a_size_is_whole_pages(size):
    with refuses(OutOfRange, "size = "):
        Memory(size)


@pytest.mark.parametrize("size", ["", "64X", "-1G", "1e3", "1.5", "5K"])
def test_a_size_in_words_must_be_one(size):
    with pytest.raises((BadSize, OutOfRange, Unaligned)):
        Memory(size)


def test_a_guest_has_an_end():
    with refuses(OutOfRange, "above 2**52 bytes"):
        Memory("8P")
    with refuses(OutOfRange, "n_pages = 0x20000000000"):
        Memory(8 << 50)
    with pytest.raises(MemoryError, match="max_bytes = 1"):
        Memory("64M", max_bytes=1)


def test_a_bound_of_memory_names_the_element_and_keeps_what_is_before():
    memory = Memory("64G", max_bytes=1 << 20)
    frames = np.arange(0, memory.n_pages, 997)
    with pytest.raises(
        MemoryError, match=r"frames\[\d+\] = 0x\w+; what is before it is done"
    ) as error:
        memory.do(MAP, frames)
    n = int(re.search(r"\[(\d+)\]", str(error.value))[1])
    assert 0 < n < len(frames) and memory.counts("mapping")["shared"] == n * 4096
    assert memory.event_text(memory.page(0).since["page_table"]).endswith(
        f"map {len(frames)} frames"
    )
    assert memory.n_bytes <= 1 << 20


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"asid": 0}, "asid = 0: must be 1 to 1006"),
        ({"asid": 1007}, "asid = 1007: must be 1 to 1006"),
        ({"asid": -1}, "asid = -1"),
        ({"covered": END + 1}, "covered = 0x4001"),
        ({"max_asid": 1 << 20}, "max_asid = 0x100000"),
    ],
)
def test_numbers_of_a_guest_have_bounds(named, text):
    with refuses(OutOfRange, text):
        Memory("64M", **named)


def test_a_page_without_an_entry_of_the_table_is_plain_host_memory():
    memory = Memory("64M", covered=0x2000)
    assert memory.counts() == {"default": 32 << 20, "hypervisor": 32 << 20}
    assert "FAIL_INPUT" in memory.rmpupdate((0x1FFE, 4)).refusal
    assert memory.page(0x1FFF).state == "guest_invalid" and memory.page(0x2000).state == "default"


@pytest.mark.parametrize(
    ("frames", "error", "text"),
    [
        (END, OutOfRange, "frames[0] = 0x4000: the guest ends with frame 0x3fff"),
        (-1, OutOfRange, "frame -0x1"),
        (1 << 64, OutOfRange, "does not fit 64 bits"),
        ((END, 1), OutOfRange, "frames 0x4000 to 0x4000: the guest ends with frame 0x3fff"),
        ((0x3FFF, 2), OutOfRange, "frames 0x3fff to 0x4000: the guest ends with frame 0x3fff"),
        ((1, (1 << 63) - 1), OutOfRange, "the guest ends with frame 0x3fff"),
        ((1, 1 << 64), OutOfRange, "n_pages = 0x10000000000000000"),
        (((1 << 64) - 1, 2), OutOfRange, "first = 0xffffffffffffffff"),
        ((-1, 1), OutOfRange, "first = -0x1"),
        ((1, -1), OutOfRange, "n_pages = -0x1"),
        ((1,), OutOfRange, "frames has 1 numbers: a range is (first, n_pages)"),
        ((1, 2, 3), OutOfRange, "frames has 3 numbers"),
        ((1.0, 2), TypeError, "first is float"),
        ((1, "2"), TypeError, "n_pages is str"),
        (1.0, TypeError, "frames is float: must be an integer, (first, n) or an array"),
        (None, TypeError, "frames is NoneType"),
        ([1, 2], TypeError, "frames is list"),
        ("rom", OutOfRange, "frames 'rom': must be 'all' or, of a memory map, 'ram'"),
        ("ram", OutOfRange, "frames 'ram'"),
        (np.array([1.0]), OutOfRange, "frames: dtype float64, shape (1,)"),
        (np.array([[1]]), OutOfRange, "frames: dtype int64, shape (1, 1)"),
        (np.array([True]), OutOfRange, "frames: dtype bool"),
        (np.array(["1"]), OutOfRange, "frames: dtype <U1"),
        (np.array([1, -2]), OutOfRange, "frames[1] = -2 is negative"),
    ],
)
def test_frames_that_are_none_change_nothing(memory, frames, error, text):
    with refuses(error, text):
        memory.do(MAP, frames)
    assert shared(memory) == []


@pytest.mark.parametrize("share", ["share", "make_private"])
def test_conversions_name_what_is_wrong(memory, share):
    memory.make_private("all", leaf="4K")
    convert = getattr(memory, share)
    for frames in ((0x3FFF, 2), (END, 1), END, np.array([3, END])):
        with refuses(OutOfRange, "the guest ends with frame 0x3fff"):
            convert(frames)
    with pytest.raises(OutOfRange):
        convert((1, -1))
    with refuses(OutOfRange, "leaf '1G': must be one of 4K, 2M"):
        convert(0, leaf="1G")
    with refuses(Unaligned, "0x1"):
        convert(1, leaf="2M")
    with refuses(OutOfRange, "3 numbers"):
        convert((1, 2, 3))
    assert memory.counts("state", frames=(4, END - 4)) == {"guest_valid": (END - 4) * 4096}
    assert convert((5, 0)).n_changed == 0 and convert(np.zeros(0, np.uint64)).n_changed == 0


def test_elements_before_the_bad_one_have_taken_effect_and_none_after(memory):
    with refuses(OutOfRange, "frames[2] = 0x4000: the guest ends with frame 0x3fff"):
        memory.do(MAP, np.array([5, 9, END, 11]))
    assert shared(memory) == [(5, 1), (9, 1)]
    assert memory.event_text(memory.page(5).since["page_table"]) == "event 1: map 4 frames"
    with refuses(Unaligned, "frames[1] = 0x401: must be a multiple of 0x200"):
        memory.do(LARGE, np.array([0x400, 0x401, 0x600]))
    assert shared(memory) == [(5, 1), (9, 1), (0x400, 512)]
    firsts, lengths = np.array([20, 30, 40], np.uint64), np.array([1, END, 1], np.uint64)
    with refuses(OutOfRange, "firsts[1] = 0x1e, lengths[1] = 0x4000"):
        memory.spans(MAP, firsts, lengths)
    assert shared(memory) == [(5, 1), (9, 1), (20, 1), (0x400, 512)]


@pytest.mark.parametrize("frames", [(0x201, 512), (0x200, 511), 0x201])
def test_large_operands_are_aligned(memory, frames):
    with pytest.raises(Unaligned, match="must be"):
        memory.do(LARGE, frames)
    with pytest.raises(Unaligned, match="must be"):
        memory.psmash(frames)
    assert shared(memory) == []


def test_arrays_of_any_integers_are_taken_read_only_or_not(memory):
    for i, dtype in enumerate((np.uint8, np.int16, np.uint32, np.int64, ">u8")):
        frames = np.array([10 * i, 10 * i + 2], dtype)
        frames.setflags(write=False)
        assert memory.do(MAP, frames[::-1]).n_done == 2
    assert len(shared(memory)) == 10
    with pytest.raises((ValueError, TypeError)):
        memory.ledger.array(MAP, np.array([1], np.int64))  # the core is strict
    with pytest.raises(ValueError, match=re.escape("lengths has 2")):
        memory.spans(MAP, np.array([1], np.uint64), np.array([1, 2], np.uint64))


@pytest.mark.parametrize(
    ("name", "arguments", "named", "text"),
    [
        ("map_as", (0, "encrypted"), {}, "mapping 'encrypted': must be one of unmapped, shared"),
        ("map_as", (0, "shared"), {"leaf": "4M"}, "leaf '4M': must be one of 4K, 2M, 1G"),
        ("pvalidate", (0,), {"size": "1G"}, "size '1G': must be one of 4K, 2M"),
        ("pvalidate", (0,), {"backing": "8K"}, "backing '8K'"),
        ("pvalidate", (0,), {"vmpl": 4}, "op.vmpl = 0x4"),
        ("rmpadjust", (0, -1, 0), {}, "op.target = -0x1"),
        ("rmpupdate", (0,), {"asid": 1024}, "op.asid = 0x400"),
        ("rmpupdate", (0,), {"gfn": 1 << 39}, "op.gfn = 0x8000000000"),
        ("list_as", (0, "both"), {}, "listed 'both'"),
        ("host_access", (0, "jump"), {}, "access 'jump': must be one of write, fetch, user"),
        ("host_access", (0,), {"mapping": "512G"}, "mapping '512G'"),
        ("firmware", ("SNP_LAUNCH_FINISH", 0), {}, "firmware has no such page command"),
        ("firmware", ("SNP_PAGE_MOVE", 0), {}, "see Ledger.move"),
        ("firmware", ("SNP_INIT_EX", 0), {}, "firmware has no such page command"),
        ("init", (0, "guest_valid"), {}, "state 'guest_valid': must be one of default"),
        ("counts", ("colour",), {}, "field 'colour': must be one of state"),
        ("counts", (), {"frames": (0, END + 1)}, "n_pages = 0x4001"),
        ("disagreements", (["odd"],), {}, "disagreement 'odd': must be one of"),
        ("map_gpa_range", (1, 1, 0), {}, "gpa = 0x1: must be a multiple of 0x1000"),
        ("map_gpa_range", (-4096, 1, 0), {}, "gpa = -0x1000"),
        ("map_gpa_range", (END << 12, 1, 0), {}, "the guest ends with frame 0x3fff"),
        ("page", (END,), {}, "frame = 0x4000"),
        ("views_at", (np.array([END], np.uint64),), {}, "frames[0] = 0x4000"),
        ("move", (0, END), {}, "destination = 0x4000"),
    ],
)
def test_operands_and_names_have_bounds(memory, name, arguments, named, text):
    with refuses(OutOfRange, text):
        getattr(memory, name)(*arguments, **named)
    assert memory.counts("mapping") == {"unmapped": 64 << 20}


@pytest.mark.parametrize(
    ("gfn", "size", "error", "text"),
    [
        (END, 0, OutOfRange, "entries[1], gfn 0x4000: "),
        (0x401, 1, Unaligned, "entries[1], gfn 0x401: "),
    ],
)
def test_a_bad_psc_entry_is_named_and_those_before_are_done(memory, gfn, size, error, text):
    entries = np.zeros(3, psc.ENTRY_DTYPE)
    entries["gfn"], entries["op"], entries["size"] = (0x10, gfn, 0x12), 1, (0, size, 0)
    with refuses(error, text):
        memory.psc(entries)
    assert memory.counts()["guest_invalid"] == 4096


@pytest.mark.parametrize("op", [0, 5, 15])
def test_a_psc_operation_that_there_is_not_is_refused(memory, op):
    raw = np.array([0x10 << 12 | 1 << 52, 0x11 << 12 | op << 52], np.uint64)
    with refuses(OutOfRange, f"entries[1], gfn 0x11: op {op}, cur_page 0"):
        memory.psc(raw)
    assert memory.counts()["guest_invalid"] == 4096
    with refuses(OutOfRange, "cur_page 2"):
        memory.psc(np.array([0x10 << 12 | 1 << 52 | 2], np.uint64))
    with refuses(OutOfRange, "entries: dtype float64"):
        memory.psc(np.zeros(2))


def test_raw_entries_with_bits_that_no_field_has_are_refused(memory):
    with refuses(ReservedBitsSet, "entries[1]"):
        memory.load(0, np.array([[1, 0], [1, 1 << 40]], np.uint64))
    assert memory.counts() == {"hypervisor": 64 << 20}
    with refuses(OutOfRange, "entries[1], frame 0x4000"):
        memory.load(END - 1, np.array([[1, 0], [1, 0]], np.uint64))
    with pytest.raises(Unaligned, match=re.escape("entries[0], frame 0x5")):
        memory.load(5, np.array([[3, 0]], np.uint64))  # a 2 MiB entry in the middle of one
    assert memory.counts() == {"hypervisor": 64 << 20}
    memory.load(END - 1, np.array([[1, 0]], np.uint64))
    assert memory.page(END - 1).state == "reclaim"


def test_a_memory_map_whose_ranges_overlap_is_none():
    with pytest.raises(BadMap, match="overlap"):
        MemoryMap([(0, 0x200000, 1), (0x100000, 0x300000, 1)])


@pytest.mark.parametrize(
    ("ghcbs", "buffers", "text"),
    [
        ([1, END], (), "ghcbs[1] = 0x4000"),
        ([-1], (), "ghcbs[0] = -0x1"),
        ([1], [(4, 2), (END - 1, 2)], "shared[1] = (0x3fff, 2)"),
        ([1], [(4, 0)], "shared[0] = (0x4, 0)"),
        ([1], [(4, 2), (9, 1), (5, 2)], "shared[2] overlaps shared[0]"),
    ],
)
def test_a_kexec_is_given_pages_of_the_guest_each_once(memory, ghcbs, buffers, text):
    with refuses(OutOfRange, text):
        KexecPages(memory, ghcbs, buffers)


def test_a_kexec_without_shared_ghcbs_is_refused(memory):
    pages = KexecPages(memory, [5])
    pages.accept()
    with refuses(StateConflict, "a GHCB is not shared"):
        pages.finish()
    assert memory.counts() == {"guest_valid": 64 << 20}


def test_snapshots_of_two_memories_have_no_differences(memory):
    with refuses(StateConflict, "two ledgers"):
        memory.changes(Memory("64M").snapshot())


# Threads ------------------------------------------------------------------------------------------


def hammer(*workers):
    errors = []

    def run(worker):
        try:
            worker()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []


def test_two_threads_on_one_memory_come_to_what_some_serial_order_would(memory):
    rng = np.random.default_rng(5)
    plans = [
        [
            (int(first), int(n))
            for first, n in zip(rng.integers(0, 2000, 400), rng.integers(1, 50, 400), strict=True)
        ]
        for _ in range(2)
    ]
    mappings = ("shared", "private")

    def work(k):
        for first, n in plans[k]:
            memory.map_as((first, n), mappings[k], label=f"thread {k}")

    hammer(lambda: work(0), lambda: work(1))
    assert sorted(memory.events) == list(range(1, 801))
    # the events say which order that was; each thread's own order is kept
    again = Memory("64M")
    done = [[], []]
    for number in range(1, 801):
        event = memory.events[number]
        k = int(event.label[-1])
        first, n = (int(part, 0) for part in event.frames.split("+"))
        done[k].append((first, n))
        again.map_as((first, n), mappings[k])
    assert done == plans
    for mapping in (lib.FRAME_SHARED, lib.FRAME_PRIVATE):
        test = [m.runs(lambda v, x=mapping: v["mapping"] == x) for m in (memory, again)]
        assert test[0] == test[1] != []


def test_questions_are_answered_while_another_thread_changes_everything(memory):
    memory.make_private("all")
    stop = threading.Event()
    answers = []

    def change():
        rng = np.random.default_rng(6)
        for i in range(1500):
            memory.guest_access(int(rng.integers(0, END)), "write", backing="2M", store=True)
            memory.list_as((int(rng.integers(0, END - 40)), 40), ("shared", "private")[i % 2])
        stop.set()

    def ask():
        while not stop.is_set():
            before = memory.snapshot()
            counted = memory.counts("listed", at=before)
            assert sum(counted.values()) == 64 << 20
            runs = memory.runs(lambda v: v["listed"] == lib.FRAME_LISTED_SHARED, at=before)
            assert sum(n for _, n in runs) * 4096 == counted.get("shared", 0)
            memory.disagreements(max_runs=5)
            memory.changes(before, max_runs=5)
            answers.append(len(runs))

    hammer(change, ask)
    assert answers
    assert memory.counts("state") == {"guest_valid": 64 << 20}
