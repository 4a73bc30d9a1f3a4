"""What Linux makes of a table in a memory map, against the slow model of it."""

import numpy as np
import rmp_geometry_oracle as oracle
from hypothesis import given
from hypothesis import strategies as st

from ghcbcore import rmpgeometry
from pysev import rmpplace
from pysev.memmap import BadMap, MemoryMap

MIB = 1 << 20
GIB = 1 << 30


@st.composite
def maps(draw):
    """Return a map of pieces of some KiB to some GiB, RAM or not, with holes or without."""
    rows, at = [], 0
    for _ in range(draw(st.integers(1, 10))):
        unit = draw(st.sampled_from([1024, 4096, MIB, GIB]))
        at += draw(st.integers(0, 3)) * draw(st.sampled_from([0, 512, 4096, MIB]))
        end = at + draw(st.integers(1, 5)) * unit
        rows.append((at, end, draw(st.sampled_from([1, 1, 2, 3]))))
        at = end
    rows.append((at, at + 8192, 1))
    return MemoryMap(rows)


@st.composite
def tables(draw):
    """Return a geometry and the oracle's segments of it, and the ends that Linux looks at."""
    base = draw(st.integers(1, 4000)) * 8192
    if draw(st.booleans()):
        end = base + draw(st.integers(3, 3000)) * 8192
        wanted = oracle.contiguous(base, end - 1)
        return rmpgeometry.contiguous(base, end - 1), wanted, [base, end]
    rst, at = [], base + draw(st.integers(2, 4)) * MIB
    at -= at % MIB
    for _ in range(draw(st.integers(0, 6))):
        at += draw(st.integers(0, 2)) * MIB
        size = draw(st.integers(0, 4))
        rst.append(at | size)
        at += size * 4 * MIB
    cfg = 1 | draw(st.integers(32, 34)) << 8
    wanted, why = oracle.segments(rst, cfg, base)
    assert wanted is not None, why
    ends = [base, base + 0x5000]
    for one in wanted:
        ends += oracle.place(one)
    return rmpgeometry.segments(np.array(rst, np.uint64), cfg, base), wanted, ends


@given(maps(), tables())
def test_blocks_and_the_map_that_is_left_are_those_of_the_oracle(memory, table):
    geometry, _, ends = table
    rows = list(memory)
    wanted = oracle.reserved_blocks(rows, ends)
    assert list(rmpplace.reserved_blocks(memory, geometry)) == wanted
    try:
        after = rmpplace.reserve(memory, geometry)
    except BadMap:
        assert all(
            oracle.kind_after(rows, wanted, page) != 1
            for start, end in memory.ram_ranges()
            for page in (start, end - 4096)
        )
        return
    probes = {at for start, end, _ in rows for at in (start, end - 1, end, (start + end) // 2)}
    probes |= {at + off for at in wanted for off in (-1, 0, 2 * MIB - 1, 2 * MIB) if at + off >= 0}
    probes = sorted(probes)
    got = after.kind_at(np.array(probes, np.uint64)).tolist()
    assert got == [oracle.kind_after(rows, wanted, at) for at in probes]
    assert rmpplace.reserved_blocks(after, geometry) == ()


@given(maps(), tables())
def test_uncovered_ram_is_that_without_entry_at_either_side_of_each_edge(memory, table):
    geometry, wanted, _ = table
    missing = rmpplace.uncovered(memory, geometry)
    edges = {at // 4096 for one in (*missing, *memory.ram_ranges()) for at in one}
    edges |= {one["first_page"] for one in wanted}
    edges |= {one["first_page"] + one["n_pages"] for one in wanted}
    for page in {edge + off for edge in edges for off in (-1, 0) if edge + off >= 0}:
        at = page * 4096
        is_ram = bool(memory.is_ram([at])[0])
        has_entry = oracle.entry_address(wanted, page) is not None
        told = any(start <= at < end for start, end in missing)
        assert told == (is_ram and not has_entry)
    if rmpplace.linux_refusal(memory, geometry) is None:
        last = memory.ram_end - 4096
        assert oracle.entry_address(wanted, last // 4096) is not None
        if not geometry.is_segmented:
            assert missing == ()


@given(maps(), tables())
def test_the_entries_needed_are_those_up_to_the_last_ram_of_each_segment(memory, table):
    geometry, _, ends = table
    covers = 1 << geometry.shift
    if geometry.is_segmented:
        wanted = 0
        for index in range(memory.ram_end // covers + 1):
            pieces = [
                min(end, (index + 1) * covers)
                for start, end in memory.ram_ranges()
                if start < (index + 1) * covers and end > index * covers
            ]
            wanted += (max(pieces) - index * covers) // 4096 if pieces else 0
    else:
        wanted = max(memory.ram_end, ends[1]) // 4096
    assert rmpplace.entries_needed(memory, geometry) == wanted
