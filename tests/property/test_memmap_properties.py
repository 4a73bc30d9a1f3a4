"""Memory maps of any shape: what is printed is read back, what is placed lies apart and in RAM."""

import io
from itertools import pairwise

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from pysev.layout import (
    Part,
    kexec_segments,
    place,
)
from pysev.memmap import (
    BadMap,
    BadSize,
    E820Type,
    MemoryMap,
    NoRoom,
    OutOfRange,
    Unaligned,
    format_size,
    parse_size,
)

MIB = 1 << 20
KINDS = st.sampled_from([*E820Type, 20, 0xFFFF_FFFF]) | st.just(E820Type.USABLE)
LENGTHS = st.integers(1, 1 << 14) | st.integers(1, 1 << 22).map(lambda n: n << 12)
GAPS = st.just(0) | LENGTHS


@st.composite
def memmaps(draw, lengths=LENGTHS, gaps=GAPS):
    """Ranges one above the other, often touching, with at least one page of RAM."""
    at, ranges = 0, []
    for gap, length, kind in draw(
        st.lists(st.tuples(gaps, lengths, KINDS), min_size=1, max_size=12)
    ):
        ranges.append((at + gap, at + gap + length, int(kind)))
        at += gap + length
    try:
        return MemoryMap(draw(st.permutations(ranges)))
    except BadMap as error:
        assert "no usable RAM" in str(error)
        assume(False)


@st.composite
def machines(draw):
    """Maps on which a kernel has a chance: low memory, some firmware, some high memory."""
    low_end = draw(st.integers(0x6_0000, 0xA_0000))
    top = draw(st.integers(300, 2800)) * MIB + draw(st.integers(0, 3)) * 0x800
    ranges = [(0, low_end, 1), (MIB, top, 1), (top, top + draw(st.integers(0x2000, MIB)), 2)]
    at = 1 << 32
    for gap, pages in draw(
        st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, 1 << 24)), max_size=4)
    ):
        ranges.append((at + gap, at + gap + (pages << 12), 1))
        at += gap + (pages << 12)
    return MemoryMap(ranges)


@given(memmaps())
def test_a_printed_map_reads_back_the_same(memmap):
    text = memmap.as_text()
    again = MemoryMap.from_text(text)
    assert again == memmap
    assert again.as_text() == text
    assert again.ram_ranges() == memmap.ram_ranges()
    stamped = "".join(f"[    0.000000] {line}\n" for line in text.splitlines())
    assert MemoryMap.from_text(io.BytesIO(stamped.encode())) == memmap


@given(memmaps())
def test_ranges_and_holes_cover_everything_once(memmap):
    pieces = sorted([*memmap.holes(), *((start, end) for start, end, _ in memmap)])
    assert pieces[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(pieces))
    assert pieces[-1][1] == memmap.end[-1]


@given(memmaps(), st.lists(st.integers(0, 1 << 40), max_size=20))
def test_is_ram_answers_like_a_walk_over_the_map(memmap, gpas):
    edges = [edge + by for row in memmap for edge in row[:2] for by in (-1, 0, 1) if edge + by >= 0]
    probes = np.array(gpas + edges, np.uint64)
    usable = [(start, end) for start, end, kind in memmap if kind == E820Type.USABLE]

    def byte_is_usable(gpa):
        return any(start <= gpa < end for start, end in usable)

    def page_is_usable(gpa):
        page = gpa & ~0xFFF
        # Usable at each byte where that can change: the page's ends and all edges within it.
        inside = [end for _, end in usable if page < end <= page + 0xFFF]
        return all(map(byte_is_usable, [page, page + 0xFFF, *inside]))

    assert memmap.is_ram(probes).tolist() == [page_is_usable(int(gpa)) for gpa in probes]
    assert memmap.kind_at(probes).tolist() == [
        next((kind for start, end, kind in memmap if start <= gpa < end), 0)
        for gpa in map(int, probes)
    ]


@given(memmaps(lengths=st.integers(1, 1 << 16)), st.data())
def test_find_is_the_first_of_all_places(memmap, data):
    pages = data.draw(st.integers(1, 6))
    align = 1 << data.draw(st.integers(12, 15))
    above = data.draw(st.integers(0, memmap.ram_end + 0x1000))
    below = data.draw(st.integers(0, memmap.ram_end + 0x1000))
    top_down = data.draw(st.booleans())
    places = [
        gpa
        for start, end in memmap.ram_ranges()
        for gpa in range(start, end, 0x1000)
        if gpa % align == 0 and gpa >= above and gpa + pages * 0x1000 <= min(end, below)
    ]
    try:
        found = memmap.find(pages << 12, align=align, above=above, below=below, top_down=top_down)
    except NoRoom as refusal:
        assert not places
        assert refusal.largest < (pages << 12) + align
    else:
        assert found == (places[-1] if top_down else places[0])


@given(
    machines(),
    st.integers(1, 8192),
    st.integers(1, 200 * MIB),
    st.integers(0, 200 * MIB),
    st.none() | st.integers(0, 6 << 30),
)
def test_a_layout_never_overlaps_or_leaves_ram(memmap, n_cpus, kernel, initrd, crash):
    try:
        layout = place(memmap, n_cpus, kernel_bytes=kernel, initrd_bytes=initrd, crash=crash)
    except NoRoom as refusal:
        assert refusal.what in str(refusal)
        assert refusal.size_bytes > 0
        return
    regions = layout.regions
    assert all(a.end <= b.start for a, b in pairwise(regions))
    assert len({region.part for region in regions}) == len(regions)
    for region in regions:
        first_and_last = [region.start, region.end - 1]
        if region.part is Part.JUMP_TABLE:
            assert (memmap.kind_at(first_and_last) == E820Type.RESERVED).all()
        else:
            assert any(
                start <= region.start and region.end <= end for start, end in memmap.ram_ranges()
            )
    by_state = layout.memory_by_state()
    assert by_state["private"] + by_state["shared"] == by_state["ram"] == memmap.ram_bytes
    assert by_state["free"] >= 0
    assert layout == place(memmap, n_cpus, kernel_bytes=kernel, initrd_bytes=initrd, crash=crash)


@given(st.integers(1, 64), st.booleans())
def test_the_layouts_above_sometimes_fit_and_sometimes_do_not(n_cpus, room):
    top = 2000 * MIB if room else 100 * MIB
    memmap = MemoryMap([(0, 0xA_0000, 1), (MIB, top, 1), (top, top + 0x2000, 2)])
    try:
        assert len(place(memmap, n_cpus).regions) >= 14
        assert room
    except NoRoom:
        assert not room


@given(machines(), st.integers(1, 100 * MIB), st.integers(1, 100 * MIB))
def test_segments_of_a_new_kernel_descend_as_linux_places_them(memmap, kernel, initrd):
    kernel, initrd = kernel + 0xFFF & ~0xFFF, initrd + 0xFFF & ~0xFFF
    segments = kexec_segments(memmap, kernel_bytes=kernel, initrd_bytes=initrd)
    assert segments[0].start == memmap.find(segments[0].size_bytes, above=0x3000, top_down=True)
    ordered = sorted(segments, key=lambda region: region.start)
    assert all(a.end <= b.start for a, b in pairwise(ordered))
    assert segments[2].start % (2 * MIB) == 0


@given(st.text(max_size=80) | st.from_regex(r"[0-9.]{1,9}[KMGTPkmgtp]?(iB)?", fullmatch=True))
def test_any_text_is_a_size_or_a_value_error(text):
    try:
        size_bytes = parse_size(text)
    except (BadSize, OutOfRange, Unaligned):
        return
    assert 0 < size_bytes <= 1 << 52
    assert size_bytes % 4096 == 0


@given(st.integers(1, 1 << 40).map(lambda pages: pages << 12))
def test_a_formatted_size_reads_back_the_same(size_bytes):
    assert parse_size(format_size(size_bytes)) == size_bytes
    assert parse_size(hex(size_bytes)) == size_bytes


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_any_text_is_a_map_or_a_map_error(text):
    if isinstance(text, bytes):
        text = b"BIOS-e820: [mem 0x0-0x9ffff] usable\n" + text
    try:
        memmap = MemoryMap.from_text(io.BytesIO(text) if isinstance(text, bytes) else text, "x")
    except BadMap as error:
        assert str(error).startswith("x")
    else:
        assert memmap.ram_bytes > 0


@given(memmaps(), st.data())
def test_a_map_with_one_range_twice_is_refused(memmap, data):
    lines = memmap.as_text().splitlines()
    again = data.draw(st.integers(0, len(lines) - 1))
    try:
        MemoryMap.from_text([*lines, lines[again]], "twice")
    except BadMap as error:
        assert f"twice:{again + 1}" in str(error)
        assert f"twice:{len(lines) + 1}" in str(error)
    else:
        raise AssertionError("the overlap was not seen")
