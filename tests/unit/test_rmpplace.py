"""A reverse map table in a memory map: the maps and tables of the wild, Linux's rules."""

import re
from pathlib import Path

import numpy as np
import pytest

from ghcbcore import rmpgeometry
from pysev import rmpplace
from pysev.memmap import BadMap, E820Type, MemoryMap

DATA = Path(__file__).parent.parent / "data"
KEXEC = DATA / "rmp_kexec_fixup_400fea4b9651.txt"
GIB = 1 << 30
RAM = int(E820Type.USABLE)
HELD = int(E820Type.RESERVED)

ODD_END = rmpgeometry.contiguous(0x7FFE800000, 0x807F0FFFFF)  # the table of that log


def segmented(*rst: int, cfg: int = 0x2401, base: int = 0x9BA00000, **kw) -> rmpgeometry.Geometry:
    return rmpgeometry.segments(np.array(rst, np.uint64), cfg, base, **kw)


WILD = segmented(0x8800022, *[0] * 7, 0x55B00080, 0x35A00080, cfg=0x2501)


# The kexec of 400fea4b9651 ----------------------------------------------------------------------


def log_of_kexec() -> tuple[MemoryMap, list[tuple[int, int]]]:
    """Return the map of that host, and where kexec placed its segments: address and bytes."""
    text = KEXEC.read_text()
    placed = re.findall(r"segment\[\d\]: bufsz=\S+ mem=(0x\w+) memsz=(0x\w+)", text)
    return MemoryMap.from_text(text), [(int(mem, 16), int(size, 16)) for mem, size in placed]


def top_down(memory: MemoryMap, sizes: list[tuple[int, int]]) -> list[int]:
    """Place segments as kexec does: each at the highest place that is free, first one first."""
    found, below = [], 1 << 52
    for size, align in sizes:
        below = memory.find(size, align=align, below=below, top_down=True)
        found.append(below)
    return found


def test_the_log_of_kexec_placed_its_first_segments_beside_the_table():
    memory, placed = log_of_kexec()
    sizes = [(placed[0][1], 4096), (placed[1][1], 4096)]
    assert top_down(memory, sizes) == [placed[0][0], placed[1][0]]
    (edge,) = rmpplace.edges(ODD_END)
    assert all(edge.block <= mem < edge.block + rmpplace.LARGE_BYTES for mem, _ in placed[:2])


def test_with_the_edge_reserved_kexec_places_no_segment_beside_the_table():
    memory, placed = log_of_kexec()
    assert rmpplace.reserved_blocks(memory, ODD_END) == (0x807F000000,)
    after = rmpplace.reserve(memory, ODD_END)
    assert [row for row in after if row[0] >= 0x7FFE800000] == [
        (0x7FFE800000, 0x807F100000, HELD),
        (0x807F100000, 0x807F1FF000, HELD),
    ]
    sizes = [(placed[0][1], 4096), (placed[1][1], 4096)]
    assert top_down(after, sizes) == [0x7FFE7FB000, 0x7FFE7F9000]
    assert memory.is_ram([mem for mem, _ in placed]).all()
    assert after.is_ram([mem for mem, _ in placed]).tolist() == [False, False, True, True]
    # what kexec hands to the next kernel then has the piece reserved too, and it stays at that
    assert rmpplace.reserved_blocks(after, ODD_END) == ()
    assert rmpplace.reserve(after, ODD_END) is after


def test_the_table_of_that_host_is_taken_and_covers_its_ram():
    memory, _ = log_of_kexec()
    found = rmpplace.place(memory, ODD_END)
    assert (found.uncovered, found.in_ram, found.refusal) == ((), (), None)
    assert found.blocks == (0x807F000000,)
    assert found.entries_needed == 0x807F1FF and found.n_entries == 0x808FC00


def test_the_block_that_a_log_of_the_wild_reserves_is_the_one_below_its_start():
    text = (DATA / "rmp_table_ranges.txt").read_text()
    (line,) = [line for line in text.splitlines() if "Reserving" in line]
    base, end, block = (int(one, 16) for one in re.findall(r"\[?(0x[0-9a-f]{16})", line))
    geometry = rmpgeometry.contiguous(base, end)
    assert rmpplace.edges(geometry) == (("start", base, block),)
    memory = MemoryMap([(0x100000, base, RAM), (base, end + 1, HELD)])
    assert rmpplace.reserved_blocks(memory, geometry) == (block,)


def test_no_ram_in_the_piece_no_reservation():
    around = [(0x100000, 0x7FFE800000, RAM), (0x7FFE800000, 0x807F100000, HELD)]
    for rest in ([], [(0x807F100000, 0x807F1FF000, HELD)], [(0x807F200000, 0x807F300000, RAM)]):
        memory = MemoryMap([*around, *rest])
        assert rmpplace.reserved_blocks(memory, ODD_END) == ()
        assert rmpplace.reserve(memory, ODD_END) is memory
    one_byte = MemoryMap([*around, (0x807F1FFFFF, 0x807F200000, RAM)])
    assert rmpplace.reserved_blocks(one_byte, ODD_END) == (0x807F000000,)


def test_a_map_of_which_nothing_is_left_is_refused():
    memory = MemoryMap([(0x34400000, 0x34500000, RAM), (0x34500000, 0x34D00000, HELD)])
    with pytest.raises(BadMap, match="no usable RAM"):
        rmpplace.reserve(memory, rmpgeometry.contiguous(0x34500000, 0x34CFFFFF))


# Coverage, contiguous ---------------------------------------------------------------------------


MAPS = sorted(DATA.glob("e820_*.txt"))


@pytest.mark.parametrize("path", MAPS, ids=[path.stem for path in MAPS])
def test_a_table_of_just_the_length_for_a_map_of_the_wild_is_taken(path):
    memory = MemoryMap.from_file(path)
    base = 0x100000  # below RAM's end, so that the table is among the pages that need an entry
    whole = memory.ram_end // 4096 * 16 + 0x4000
    end = base + -(-whole // 8192) * 8192 - 1
    found = rmpplace.place(memory, rmpgeometry.contiguous(base, end))
    assert (found.uncovered, found.refusal) == ((), None)
    assert found.entries_needed == memory.ram_end // 4096
    short = rmpplace.place(memory, rmpgeometry.contiguous(base, end - 8192))
    assert short.refusal is not None and short.refusal.expected == whole
    missing = sum(end - start for start, end in short.uncovered)
    assert 0 < missing <= 512 * 4096 and short.uncovered[-1][1] == memory.ram_end


def test_a_table_that_does_not_cover_itself_is_refused():
    memory = MemoryMap([(0x100000, GIB, RAM), (64 * GIB, 64 * GIB + 0x800000, HELD)])
    geometry = rmpgeometry.contiguous(64 * GIB, 64 * GIB + 0x7FFFFF)
    found = rmpplace.place(memory, geometry)
    assert found.uncovered == ()
    assert found.refusal == (0x4000 + 16 * (64 * GIB + 0x800000 >> 12), 0x800000)


def test_ram_inside_of_the_table_is_told():
    memory = MemoryMap([(0x100000, 0x34600000, RAM), (0x34600000, 0x40000000, HELD)])
    geometry = rmpgeometry.contiguous(0x34500000, 0x34CFFFFF)
    assert rmpplace.table_in_ram(memory, geometry) == ((0x34500000, 0x34600000),)


# Segments ---------------------------------------------------------------------------------------


def test_the_segmented_table_of_the_wild_reserves_what_its_log_says():
    text = (DATA / "rmp_segmented.txt").read_text()
    told = [int(one, 16) for one in re.findall(r"2MB boundary \[(0x\w+)\]", text)]
    assert told == [0x55A00000, 0x75A00000]
    assert [edge[:2] for edge in rmpplace.edges(WILD)] == [
        ("end of the base table", 0x9BA05000),
        ("start of segment 8", 0x55B00000),
        ("end of segment 8", 0x75B00000),
    ]
    # RAM up to the tables' surroundings; the base table's piece is reserved already
    memory = MemoryMap(
        [
            (0x100000, 0x8800000, RAM),
            (0x8800000, 0x11000000, HELD),
            (0x11000000, 0x35A00000, RAM),
            (0x35A00000, 0x55A00000, HELD),
            (0x55A00000, 0x55B00000, RAM),
            (0x55B00000, 0x75B00000, HELD),
            (0x75B00000, 0x9BA00000, RAM),
            (0x9BA00000, 0x9BC00000, HELD),
            (0x100000000, 34 * GIB, RAM),
            (1024 * GIB, 1280 * GIB, RAM),
        ]
    )
    found = rmpplace.place(memory, WILD)
    assert list(found.blocks) == told
    assert (found.uncovered, found.in_ram, found.refusal) == ((), (), None)
    assert found.entries_needed == found.n_entries == (34 + 256) * GIB >> 12
    after = rmpplace.reserve(memory, WILD)
    assert not after.is_ram([0x55A00000, 0x75B00000, 0x75BFFFFF]).any()
    assert after.is_ram([0x359FFFFF, 0x75C00000]).all()
    assert memory.ram_bytes - after.ram_bytes == 0x200000


def test_ram_between_segments_is_without_entry_though_linux_takes_the_table():
    memory = MemoryMap([(0x100000, 40 * GIB, RAM), (1024 * GIB, 1100 * GIB, RAM)])
    found = rmpplace.place(memory, WILD)
    assert found.uncovered == ((34 * GIB, 40 * GIB),)
    assert found.refusal is None
    assert found.entries_needed == (40 + 76) * GIB >> 12


def test_ram_above_the_last_segment_is_refused_with_linuxs_numbers():
    memory = MemoryMap([(0x100000, 30 * GIB, RAM), (1024 * GIB, 1281 * GIB, RAM)])
    found = rmpplace.place(memory, WILD)
    assert found.refusal == (1281 * GIB, 1280 * GIB)
    assert found.uncovered == ((1280 * GIB, 1281 * GIB),)
    # segments above RAM, for devices, do not count as the last one
    low = MemoryMap([(0x100000, 35 * GIB, RAM)])
    assert rmpplace.linux_refusal(low, WILD) == (35 * GIB, 34 * GIB)
    assert rmpplace.linux_refusal(MemoryMap([(0x100000, 34 * GIB, RAM)]), WILD) is None


def test_linux_looks_at_the_end_of_ram_alone():
    memory = MemoryMap([(0x100000, 30 * GIB, RAM), (1024 * GIB, 1281 * GIB, RAM)])
    for geometry in (WILD, ODD_END):
        for given in (memory, MemoryMap([(0x100000, 600 * GIB, RAM)])):
            refusal = rmpplace.linux_refusal(given, geometry)
            assert refusal is not None
            assert rmpplace.linux_refusal(given.ram_end, geometry) == refusal


def test_a_table_without_segments_covers_nothing():
    memory = MemoryMap([(0x100000, GIB, RAM)])
    found = rmpplace.place(memory, segmented())
    assert found.uncovered == memory.ram_ranges()
    assert found.refusal == (GIB, 0)
    assert (found.n_entries, found.entries_needed) == (0, GIB >> 12)


def test_entries_needed_count_each_segment_to_its_last_page_of_ram():
    memory = MemoryMap(
        [(0x100000, 4 * GIB, RAM), (63 * GIB, 200 * GIB, RAM), (260 * GIB, 261 * GIB, RAM)]
    )
    # 64 GiB each: two whole ones and the first, 8 GiB of the fourth, 5 GiB of the fifth
    assert rmpplace.entries_needed(memory, segmented()) == (3 * 64 + 8 + 5) * GIB >> 12


def test_parts_inside_and_outside_of_ranges():
    ranges = [(0, 10), (20, 30)]
    assert rmpplace.inside(ranges, 5, 25) == ((5, 10), (20, 25))
    assert rmpplace.outside(ranges, []) == tuple(ranges)
    assert rmpplace.outside(ranges, [(0, 30)]) == ()
    assert rmpplace.outside(ranges, [(9, 21)]) == ((0, 9), (21, 30))
