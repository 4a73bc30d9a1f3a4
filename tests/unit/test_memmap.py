"""Memory maps: sizes, boot logs, flat guests, and where things lie in them."""

import copy
import io
import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ghcbcore.errors import OutOfRange, SevError, Unaligned
from pysev.layout import (
    MAX_CPUS,
    Owner,
    Part,
    crash_bytes,
    jump_table_gpa,
    kexec_segments,
    place,
    swiotlb_bytes,
)
from pysev.memmap import (
    MAX_LINE_CHARS,
    MAX_RANGES,
    BadMap,
    BadSize,
    E820Type,
    MemoryMap,
    NoRoom,
    format_size,
    kind_name,
    parse_size,
)

TESTS = Path(__file__).parent.parent
DATA = TESTS / "data"
MAPS = sorted(DATA.glob("e820_*.txt"))
PARTIAL = "e820_epyc_h11dsu_1tib_8node_upper"
WHOLE = [path for path in MAPS if path.stem != PARTIAL]
MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40

LOW = "BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable"
MAIN = "BIOS-e820: [mem 0x0000000000100000-0x000000003fffffff] usable"


def stem(path: Path) -> str:
    return path.stem


# Sizes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("4T", 4 << 40),
        ("256G", 256 << 30),
        ("1536M", 1536 << 20),
        ("0x100000", 0x10_0000),
        ("0x10G", 16 << 30),
        ("4096", 4096),
        ("8k", 8192),
        ("1.5G", 3 << 29),
        ("2GiB", 2 << 30),
        (" 64 MiB ", 64 << 20),
        ("+1g", 1 << 30),
        ("4P", 1 << 52),
    ],
)
def test_size_is_read_as_people_write_it(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", BadSize, "not a number"),
        ("lots", BadSize, "'lots': not a number"),
        ("4X", BadSize, "not a number"),
        ("4GB", BadSize, "not a number"),
        ("1e12", BadSize, "not a number"),
        ("G", BadSize, "not a number"),
        ("1 2G", BadSize, "not a number"),
        ("٤G", BadSize, "not a number"),
        ("4G\0", BadSize, "not a number"),
        ("9" * 10_000, BadSize, "9{37}[.]{3}'"),
        ("-1G", OutOfRange, "'-1G': negative"),
        ("0", OutOfRange, "zero"),
        ("0x0", OutOfRange, "zero"),
        ("-0", OutOfRange, "zero"),
        ("5P", OutOfRange, "above 2\\*\\*52"),
        ("0x10000000001000", OutOfRange, "above 2\\*\\*52"),
        ("9" * 60, OutOfRange, "above 2\\*\\*52"),
        ("4097", Unaligned, "4 KiB pages"),
        ("0.1M", Unaligned, "4 KiB pages"),
    ],
)
def test_size_that_is_none_is_refused_with_a_reason(text, error, message):
    with pytest.raises(error, match=message) as caught:
        parse_size(text)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, SevError)
    assert len(str(caught.value)) < 200


def test_size_is_written_with_the_largest_exact_unit():
    assert [format_size(n) for n in (0, 5, 4096, 3 << 29, 1 << 40, 1 << 52)] == [
        "0",
        "5",
        "4K",
        "1536M",
        "1T",
        "4P",
    ]


# Maps of real machines


def facts(path: Path) -> dict[str, int]:
    """What the same boot log says elsewhere, from the kernel's own reading of its map."""
    found = {}
    for line in path.read_text().splitlines():
        words = line.split()
        if line.startswith("last_pfn"):
            found["last_pfn"] = int(words[2], 16)
        if line.startswith("Memory:"):
            found["total_kib"] = int(words[1].split("/")[1].rstrip("K"))
    return found


def test_all_six_maps_are_there():
    assert len(MAPS) == 6


@pytest.mark.parametrize("path", MAPS, ids=stem)
def test_each_data_file_names_its_source(path):
    assert path.read_text().startswith("# source: ")


@pytest.mark.parametrize("path", MAPS, ids=stem)
def test_every_line_of_a_real_map_becomes_a_range(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("BIOS-e820")]
    memmap = MemoryMap.from_file(path)
    assert len(memmap) == len(lines)
    assert memmap.as_text().splitlines() == lines


@pytest.mark.parametrize("path", MAPS, ids=stem)
def test_ram_of_a_real_map_ends_where_its_kernel_says(path):
    if "last_pfn" in (said := facts(path)):
        assert MemoryMap.from_file(path).ram_end == said["last_pfn"] << 12
    else:
        assert path.stem == "e820_hyperv_gen2_1536m"


def test_ram_of_the_hyper_v_map_is_what_its_kernel_counted():
    path = DATA / "e820_hyperv_gen2_1536m.txt"
    # The kernel keeps page 0 to itself before it counts.
    assert MemoryMap.from_file(path).ram_bytes // 1024 - 4 == facts(path)["total_kib"]


def test_ram_is_rounded_inward_to_pages():
    memmap = MemoryMap.from_file(DATA / "e820_aws_r5d_32g.txt")
    assert memmap.ram_ranges()[0] == (0, 0x9_F000)
    assert memmap.is_ram([0x9_EFFF, 0x9_F000, 0x9_FBFF]).tolist() == [True, False, False]
    assert memmap.kind_at(0x9_FBFF) == E820Type.USABLE


def test_ranges_that_touch_are_joined_before_they_are_rounded():
    memmap = MemoryMap([(0, 0x1800, E820Type.USABLE), (0x1800, 0x3000, E820Type.USABLE)])
    assert memmap.ram_ranges() == ((0, 0x3000),)
    assert memmap.n_pages == 3


def test_gaps_between_ranges_are_holes():
    memmap = MemoryMap.from_file(DATA / "e820_ovmf_qemu_2g.txt")
    assert memmap.holes() == ((0xA_0000, 0x10_0000),)
    assert MemoryMap([(0x1000, 0x2000, 1)]).holes() == ((0, 0x1000),)
    assert memmap.kind_at([0xA_0000, 0xF_FFFF, 0x10_0000]).tolist() == [0, 0, 1]


def test_a_kind_without_a_name_keeps_its_number():
    memmap = MemoryMap.from_file(DATA / "e820_epyc_volcano_769g.txt")
    assert memmap.kind_at(0xA60A_0000) == 20
    assert kind_name(20) == "type 20"
    assert not memmap.is_ram(0xA60A_0000)


def test_each_named_kind_is_read_and_written():
    text = "".join(
        f"BIOS-e820: [mem {0x1000 * i:#018x}-{0x1000 * i + 0xFFF:#018x}] {kind_name(kind)}\n"
        for i, kind in enumerate(E820Type)
    )
    memmap = MemoryMap.from_text(text)
    assert memmap.kind.tolist() == list(E820Type)
    assert memmap.as_text() == text


# Forms of a boot log

FORMS = {
    "bare": "{}",
    "time": "[    0.000000] {}",
    "space": "[    0.000000]  {}",
    "journal": "Aug 12 04:43:36 host-1 kernel: {}",
    "caller": "[    0.000000][    T0] {}",
    "quoted": "> > {}",
    "crlf": "{}\r",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_map_is_found_whatever_stands_before_it(form):
    text = "\n".join(form.format(line) for line in ("Linux version 6.1", LOW, MAIN, "NX"))
    assert list(MemoryMap.from_text(text)) == [(0, 0xA_0000, 1), (0x10_0000, 0x4000_0000, 1)]


def test_lines_without_bios_count_if_their_kind_is_known():
    memmap = MemoryMap.from_text(
        [
            "e820: BIOS-provided physical RAM map:",
            "e820: [mem 0x0-0x9ffff] usable",
            "[    0.1] e820: [mem 0x100000-0x1fffff] ACPI data",
            "[    0.2] e820: [mem 0x80000000-0xfeffbfff] available for PCI devices",
        ]
    )
    assert list(memmap) == [(0, 0xA_0000, 1), (0x10_0000, 0x20_0000, 3)]


def test_words_of_newer_kernels_mean_the_same():
    memmap = MemoryMap.from_text(
        [
            "BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff]  System RAM",
            "BIOS-e820: [gap 0x00000000000a0000-0x00000000000effff]",
            "BIOS-e820: [mem 0x00000000000f0000-0x00000000000fffff]  device reserved",
        ]
    )
    assert list(memmap) == [(0, 0xA_0000, 1), (0xF_0000, 0x10_0000, 2)]


def test_what_the_kernel_changed_later_is_passed_over():
    memmap = MemoryMap.from_text(
        [
            LOW,
            "e820: update [mem 0x00000000-0x00000fff] usable ==> reserved",
            "e820: remove [mem 0x000a0000-0x000fffff] usable",
            "e820: reserve RAM buffer [mem 0x3fff0000-0x3fffffff]",
            "user: [mem 0x0000000000000000-0x0000000000000fff] reserved",
        ]
    )
    assert list(memmap) == [(0, 0xA_0000, 1)]


def test_a_map_is_read_from_text_and_from_binary_streams():
    text = f"{LOW}\n{MAIN}\n"
    expected = MemoryMap.from_text(text)
    assert MemoryMap.from_text(io.StringIO(text)) == expected
    assert MemoryMap.from_text(io.BytesIO(text.encode())) == expected
    assert MemoryMap.from_text(text.encode().splitlines()) == expected
    assert MemoryMap.from_text(io.BytesIO(b"\xff\xfe garbage \x80\n" + text.encode())) == expected


def test_ranges_are_sorted():
    assert MemoryMap.from_text([MAIN, LOW]).start.tolist() == [0, 0x10_0000]


# Bad maps

BAD = {
    "nothing": ("", "bad.txt: no line like"),
    "other_log": ("Linux version 6.1\nNX protection\n", "bad.txt: no line like"),
    "overlap": (
        f"{LOW}\n{MAIN}\nBIOS-e820: [mem 0x90000-0xfffff] reserved",
        r"bad.txt:3: 0x90000-0xfffff \(reserved\) overlaps 0x0-0x9ffff \(usable\) of bad.txt:1$",
    ),
    "two_boots": (f"{LOW}\n{LOW}\n", "bad.txt:2: .* overlaps .* of bad.txt:1"),
    "backwards": (
        "BIOS-e820: [mem 0x2000-0xfff] usable",
        "bad.txt:1: range 0x2000-0xfff ends before it starts",
    ),
    "no_ram": ("BIOS-e820: [mem 0x0-0xfff] reserved", "bad.txt: no usable RAM"),
    "no_whole_page": ("BIOS-e820: [mem 0x800-0x17ff] usable", "bad.txt: no usable RAM"),
    "too_high": (
        f"{LOW}\nBIOS-e820: [mem 0xffffffffff000-0x10000000000000] reserved",
        "bad.txt:2: range 0xffffffffff000-0x10000000000000 lies above 52 address bits",
    ),
    "64_bits": (
        "BIOS-e820: [mem 0x0-0xffffffffffffffff] usable",
        "bad.txt:1: .* above 52 address bits",
    ),
    "65_bits": ("BIOS-e820: [mem 0x0-0xfffffffffffffffff] usable", "bad.txt:1: unknown range"),
    "not_hex": ("BIOS-e820: [mem 0x0-0xg] usable", "bad.txt:1: unknown range in 'BIOS-e820"),
    "torn": (f"{LOW}\nBIOS-e820: [mem 0x0000", "bad.txt:2: cannot read 'BIOS-e820"),
    "no_kind": ("BIOS-e820: [mem 0x0-0xfff]", "bad.txt:1: unknown kind"),
    "new_kind": ("BIOS-e820: [mem 0x0-0xfff] magic", "bad.txt:1: unknown kind in .*magic"),
    "type_0": ("BIOS-e820: [mem 0x0-0xfff] type 0", "bad.txt:1: unknown kind"),
    "type_2_32": ("BIOS-e820: [mem 0x0-0xfff] type 4294967296", "bad.txt:1: unknown kind"),
    "nul": (f"{LOW}\nab\0c", "bad.txt:2: a NUL byte"),
    "utf_16": (LOW.encode("utf-16").decode("latin-1"), "bad.txt:1: a NUL byte"),
    "long_line": (
        f"{LOW}\n{'x' * (MAX_LINE_CHARS + 1)}",
        f"bad.txt:2: a line of more than {MAX_LINE_CHARS} characters",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("form", ["text", "stream", "file"])
def test_bad_map_is_refused_by_file_and_line(text, message, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadMap, match=f"^{message}") as caught:
        if form == "file":
            Path("bad.txt").write_bytes(text.encode("latin-1"))
            MemoryMap.from_file("bad.txt")
        else:
            MemoryMap.from_text(io.StringIO(text) if form == "stream" else text, "bad.txt")
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 300


def test_a_line_of_exactly_the_limit_is_read():
    padding = "x" * (MAX_LINE_CHARS - len(LOW) - 1)
    assert len(MemoryMap.from_text([f"{padding} {LOW}"])) == 1


def test_an_endless_line_is_never_read_whole():
    class Endless:
        """A file that is one line; it remembers what was asked of it."""

        def __init__(self) -> None:
            self.asked: list[int] = []

        def readline(self, limit: int = -1) -> bytes:
            self.asked.append(limit)
            return b"x" * limit

    stream = Endless()
    with pytest.raises(BadMap, match=r"endless:1: a line of more than"):
        MemoryMap.from_text(stream, "endless")
    assert stream.asked == [MAX_LINE_CHARS + 1]


def test_too_many_ranges_are_refused_while_reading():
    def lines():
        for i in range(MAX_RANGES + 1):
            yield f"BIOS-e820: [mem {i << 12:#x}-{(i << 12) + 0xFFF:#x}] usable"
        pytest.fail("reading went on")

    with pytest.raises(BadMap, match=f"many:{MAX_RANGES + 1}: more than {MAX_RANGES} ranges"):
        MemoryMap.from_text(lines(), "many")


def test_ranges_given_directly_are_checked_like_a_file():
    for ranges, message in (
        ([], "mine: no range"),
        ([(0, 0, 1)], "mine: range 0: .* ends before it starts"),
        ([(-4096, 4096, 1)], "mine: range 0: .* 52 address bits"),
        ([(0, 4096, 0)], "mine: range 0: kind 0"),
        ([(0, 8192, 1), (4096, 8192, 2)], "mine: range 1: .* overlaps .* of mine: range 0"),
        ([(i, i + 1, 2) for i in range(MAX_RANGES + 1)], "mine: more than"),
    ):
        with pytest.raises(BadMap, match=message):
            MemoryMap(ranges, "mine")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        MemoryMap.from_file(tmp_path / "none.txt")


# The map as an object


def test_a_map_is_immutable():
    memmap = MemoryMap.flat(GIB)
    with pytest.raises(AttributeError, match="immutable"):
        memmap.name = "other"
    with pytest.raises(AttributeError, match="immutable"):
        del memmap.start
    for array in (memmap.start, memmap.end, memmap.kind):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_a_map_survives_pickling_and_copying():
    memmap = MemoryMap.flat(4 * GIB)
    for other in (pickle.loads(pickle.dumps(memmap)), copy.deepcopy(memmap)):
        assert other == memmap
        assert hash(other) == hash(memmap)
        assert other.name == memmap.name
    assert memmap != MemoryMap.flat(5 * GIB)


def test_arrays_have_the_documented_types():
    memmap = MemoryMap.flat(GIB)
    assert (memmap.start.dtype, memmap.end.dtype, memmap.kind.dtype) == ("u8", "u8", "u4")


def test_is_ram_takes_arrays_of_any_shape_and_probes_both_sides_of_each_edge():
    memmap = MemoryMap.flat(4 * GIB)
    edges = np.array(memmap.ram_ranges(), np.uint64)
    assert memmap.is_ram(edges[:, 0]).all()
    assert memmap.is_ram(edges[:, 1] - np.uint64(1)).all()
    assert not memmap.is_ram(edges[:, 1]).any()
    assert not memmap.is_ram(edges[1:, 0] - np.uint64(1)).any()
    assert memmap.is_ram(edges).shape == edges.shape
    assert memmap.is_ram([]).tolist() == []
    assert memmap.is_ram(2**64 - 1).item() is False


@pytest.mark.parametrize("gpas", [[-1], [1.5], ["x"]], ids=["negative", "float", "text"])
def test_is_ram_refuses_what_is_no_address(gpas):
    with pytest.raises(OutOfRange, match="gpas: "):
        MemoryMap.flat(GIB).is_ram(gpas)


def test_bytes_by_kind_add_up():
    memmap = MemoryMap.from_file(DATA / "e820_ovmf_qemu_2g.txt")
    kinds = memmap.bytes_by_kind()
    assert list(kinds) == ["usable", "ACPI NVS", "ACPI data", "reserved"]
    assert kinds["usable"] == memmap.ram_bytes
    assert sum(kinds.values()) == 2 * GIB - 0x6_0000


# Looking for room


def test_find_gives_the_lowest_or_the_highest_place():
    memmap = MemoryMap([(0x1000, 0x5000, 1), (0x8000, 0x9000, 1), (0xA000, 0xF000, 1)])
    assert memmap.find(0x1000) == 0x1000
    assert memmap.find(0x1000, top_down=True) == 0xE000
    assert memmap.find(0x2000, align=0x4000) == 0xC000
    assert memmap.find(0x1000, align=0x4000, top_down=True, below=0xA000) == 0x8000
    assert memmap.find(0x1000, above=0x4001) == 0x8000
    assert memmap.find(0x5000) == 0xA000


def test_find_says_what_did_not_fit_and_where():
    memmap = MemoryMap([(0x1000, 0x5000, 1), (0xA000, 0xF000, 1)])
    with pytest.raises(NoRoom, match=r"no room for RAM \(24K\).*largest free piece .* 20K") as no:
        memmap.find(0x6000)
    assert (no.value.size_bytes, no.value.above, no.value.largest) == (0x6000, 0, 0x5000)
    with pytest.raises(NoRoom, match=r"\(20K\) from 0x1000, below 0xb000: .* 16K"):
        memmap.find(0x5000, above=0x1000, below=0xB000)
    assert str(pickle.loads(pickle.dumps(no.value))) == str(no.value)


@pytest.mark.parametrize("arguments", [{"size_bytes": 0}, {"size_bytes": -1}])
def test_find_refuses_a_size_that_is_not_positive(arguments):
    with pytest.raises(OutOfRange, match="size_bytes"):
        MemoryMap.flat(GIB).find(**arguments)


@pytest.mark.parametrize("align", [0, -4096, 3, 0x1800])
def test_find_refuses_an_alignment_that_is_no_power_of_two(align):
    with pytest.raises(OutOfRange, match="power of two"):
        MemoryMap.flat(GIB).find(4096, align=align)


# Flat guests


def test_flat_guest_of_2_gib_has_the_ram_that_ovmf_reports():
    real = MemoryMap.from_file(DATA / "e820_ovmf_qemu_2g.txt")
    flat = MemoryMap.flat(2 * GIB)
    assert flat.ram_end == real.ram_end
    assert flat.holes() == real.holes()
    assert flat.ram_ranges()[:3] == real.ram_ranges()[:3]
    # The real firmware keeps another 1.6 MiB in ranges that the flat map does not have.
    assert 0 < flat.ram_bytes - real.ram_bytes < 2 * MIB


@pytest.mark.parametrize(
    ("size_bytes", "low_end", "high_end"),
    [
        (0xAFFF_F000, 0xAFFF_F000, None),
        (0xB000_0000, 0x8000_0000, 0x1_3000_0000),
        (4 * GIB, 0x8000_0000, 0x1_8000_0000),
        (16 * TIB, 0x8000_0000, 16 * TIB + 2 * GIB),
    ],
)
def test_flat_guest_is_split_like_q35(size_bytes, low_end, high_end):
    memmap = MemoryMap.flat(size_bytes)
    below = memmap.end[memmap.end <= 1 << 32]
    assert below[-1] == low_end
    assert (memmap.ram_end > 1 << 32) == (high_end is not None)
    if high_end:
        assert memmap.ram_end == high_end
    assert sum(memmap.bytes_by_kind().values()) == size_bytes - 0x6_0000


def test_flat_amd_guest_near_1_tib_moves_above_the_hypertransport_range():
    near = 977 * GIB  # 4 GiB + 975 GiB + 32 GiB of PCI window end at 1011 GiB
    assert MemoryMap.flat(near, ht_hole=True) == MemoryMap.flat(near)
    moved = MemoryMap.flat(near + 2 * GIB, ht_hole=True)
    assert moved.ram_ranges()[-1] == (TIB, TIB + 977 * GIB)
    assert moved.ram_bytes == MemoryMap.flat(near + 2 * GIB).ram_bytes


@pytest.mark.parametrize(
    ("size_bytes", "error"),
    [
        (0, OutOfRange),
        (15 * MIB, OutOfRange),
        (-4096, OutOfRange),
        (1 << 52, OutOfRange),
        (GIB + 1, Unaligned),
    ],
)
def test_flat_guest_of_an_impossible_size_is_refused(size_bytes, error):
    with pytest.raises(error, match="guest of"):
        MemoryMap.flat(size_bytes)


# The jump table

JUMP_TABLES = {
    "e820_aws_r5d_32g": 0xBFFF_F000,  # not in the PCI window at 0xe0000000, which is larger
    "e820_epyc_romed8_256g": 0xAFFF_F000,
    "e820_epyc_volcano_769g": 0xAFFF_F000,
    "e820_hyperv_gen2_1536m": 0x5FFF_2000,
    "e820_ovmf_qemu_2g": 0x7EB1_A000,
}


@pytest.mark.parametrize("path", WHOLE, ids=stem)
def test_jump_table_is_the_last_page_of_the_largest_reserved_memory(path):
    memmap = MemoryMap.from_file(path)
    gpa = jump_table_gpa(memmap)
    assert gpa == JUMP_TABLES[path.stem]
    assert memmap.kind_at([gpa, gpa + 0xFFF]).tolist() == [E820Type.RESERVED] * 2
    assert memmap.kind_at(gpa + 0x1000) != E820Type.RESERVED


def test_jump_table_takes_acpi_nvs_where_nothing_is_reserved():
    memmap = MemoryMap([(MIB, 2 * MIB, 1), (2 * MIB, 3 * MIB, 4)])
    assert jump_table_gpa(memmap) == 3 * MIB - 0x1000


@pytest.mark.parametrize(
    "reserved",
    [(0x8_0000, 0x10_0000), (0x5000_0000, 0x6000_0000), (0xFEC0_0000, 1 << 32), (TIB, TIB + MIB)],
    ids=["below 1 MiB", "behind a hole", "device windows", "above 4 GiB"],
)
def test_jump_table_is_not_where_no_firmware_keeps_memory(reserved):
    memmap = MemoryMap([(MIB, GIB, 1), (*reserved, 2)])
    with pytest.raises(NoRoom, match="AP jump table: a page of reserved memory"):
        jump_table_gpa(memmap)


# The layout


def assert_sound(layout):
    """No overlap, RAM inside RAM, the jump table outside, the sums right."""
    regions = layout.regions
    for before, after in pairwise(regions):
        assert before.end <= after.start, (before, after)
    for region in regions:
        inside = any(
            start <= region.start and region.end <= end for start, end in layout.memmap.ram_ranges()
        )
        touches = any(
            region.start < end and start < region.end for start, end in layout.memmap.ram_ranges()
        )
        assert inside if region.is_ram else not touches
        assert region.start % 4096 == region.size_bytes % 4096 == 0 < region.size_bytes
    by_state = layout.memory_by_state()
    assert by_state["ram"] == layout.memmap.ram_bytes
    assert by_state["private"] + by_state["shared"] == by_state["ram"]
    assert by_state["ram"] == sum(
        by_state[key] for key in ("old_kernel", "new_kernel", "crash_kernel", "free")
    )
    assert min(by_state.values()) >= 0


@pytest.mark.parametrize("n_cpus", [1, 4, 512])
@pytest.mark.parametrize("path", WHOLE, ids=stem)
def test_every_real_machine_has_room_for_both_kernels(path, n_cpus):
    layout = place(MemoryMap.from_file(path), n_cpus)
    assert_sound(layout)
    assert layout[Part.OLD_TEXT].start == 16 * MIB
    assert layout[Part.JUMP_TABLE].start == JUMP_TABLES[path.stem]


def test_the_upper_half_of_a_map_has_no_room_for_a_kernel():
    memmap = MemoryMap.from_file(DATA / f"{PARTIAL}.txt")
    with pytest.raises(NoRoom, match=r"old kernel's text and data \(64M\).* below 4 GiB") as no:
        place(memmap, 8)
    assert (no.value.size_bytes, no.value.above, no.value.below) == (64 * MIB, 16 * MIB, 1 << 32)
    assert no.value.largest == 0


def test_layout_of_16_tib_and_8192_cpus_is_a_handful_of_ranges():
    layout = place(MemoryMap.flat(16 * TIB), MAX_CPUS)
    assert_sound(layout)
    assert len(layout.memmap) < 20
    assert len(layout.regions) == 15
    assert layout[Part.GHCBS].size_bytes == MAX_CPUS * 4096
    # One page of tables for each GiB and each 512 GiB that RAM touches, and the root.
    assert layout[Part.PAGE_TABLES].size_bytes == (16384 + 33 + 1) * 4096


def test_kernel_goes_to_the_first_fit_above_16_mib():
    memmap = MemoryMap([(0, 0xA_0000, 1), (MIB, 20 * MIB, 1), (33 * MIB, GIB, 1)])
    assert place(memmap, 1, jump_table=0)[Part.OLD_TEXT].start == 34 * MIB


def test_real_mode_blob_lies_as_high_as_fits_below_1_mib():
    # As kernels print it: "Base memory trampoline at ... 99000 size 24576" under a legacy BIOS.
    for path, gpa in (("e820_aws_r5d_32g", 0x9_9000), ("e820_ovmf_qemu_2g", 0x9_A000)):
        layout = place(MemoryMap.from_file(DATA / f"{path}.txt"), 2)
        assert layout[Part.REAL_MODE].start == gpa


def test_no_memory_below_1_mib_means_no_real_mode_blob():
    with pytest.raises(NoRoom, match=r"old kernel's real-mode blob \(24K\) below 1 MiB: .* 0$"):
        place(MemoryMap([(MIB, 4 * GIB, 1)]), 1, jump_table=0)


@pytest.mark.parametrize(
    ("ram_bytes", "expected"),
    [
        (2 * GIB - 129 * MIB, 0),
        (2 * GIB - 3 * MIB, 320 * MIB),
        (2 * GIB, 320 * MIB),
        (63 * GIB, 320 * MIB),
        (64 * GIB - 3 * MIB, 576 * MIB),
        (16 * TIB, 576 * MIB),
    ],
)
def test_crash_reservation_follows_the_distribution_default(ram_bytes, expected):
    assert crash_bytes(ram_bytes) == expected


def test_crash_reservation_is_16_mib_aligned_and_low():
    region = place(MemoryMap.flat(TIB), 4)[Part.CRASH]
    assert region.start % (16 * MIB) == 0
    assert region.end <= 1 << 32
    assert region.owner is Owner.CRASH_KERNEL


def test_large_crash_reservation_moves_up_and_keeps_a_low_part():
    layout = place(MemoryMap.flat(64 * GIB), 4, crash=4 * GIB)
    assert_sound(layout)
    assert layout[Part.CRASH].start >= 1 << 32
    assert layout[Part.CRASH_LOW].end <= 1 << 32
    assert layout[Part.CRASH_LOW].size_bytes == GIB + 8 * MIB
    assert layout.memory_by_state()["crash_kernel"] == 5 * GIB + 8 * MIB


def test_crash_reservation_that_fits_nowhere_is_refused():
    with pytest.raises(NoRoom, match=r"the crash reservation \(4G\) below 4 GiB"):
        place(MemoryMap.flat(4 * GIB), 4, crash=4 * GIB)


def test_crash_reservation_can_be_left_out():
    layout = place(MemoryMap.flat(TIB), 4, crash=0)
    assert Part.CRASH not in layout
    assert layout.memory_by_state()["crash_kernel"] == 0
    with pytest.raises(KeyError, match="flat 1T: the layout has no crash reservation"):
        layout[Part.CRASH]


@pytest.mark.parametrize(
    ("gib", "mib"), [(0.5, 64), (8, 491), (12, 737), (16, 983), (32, 1024), (1024, 1024)]
)
def test_swiotlb_is_six_percent_of_ram_between_64_mib_and_1_gib(gib, mib):
    assert swiotlb_bytes(int(gib * GIB)) // MIB == mib


@pytest.mark.parametrize(("low_mib", "fits_mib"), [(650, 512), (400, 256)])
def test_swiotlb_is_halved_until_it_fits_below_4_gib(low_mib, fits_mib):
    low = [(0, 0xA_0000, 1), (MIB, low_mib * MIB, 1)]
    layout = place(MemoryMap([*low, (4 * GIB, 64 * GIB, 1)]), 4, crash=0, jump_table=0)
    assert_sound(layout)
    assert layout[Part.SWIOTLB].size_bytes == fits_mib * MIB


def test_swiotlb_without_any_room_is_refused_at_its_full_size():
    low = [(0, 0xA_0000, 1), (16 * MIB, 80 * MIB, 1)]
    with pytest.raises(NoRoom, match=r"old kernel's swiotlb \(1G\) below 4 GiB"):
        place(MemoryMap([*low, (4 * GIB, 64 * GIB, 1)]), 4, crash=0, jump_table=0)


# The map and the sizes of a log in Linux 400fea4b9651 ("x86/sev: Add callback to apply RMP table
# fixups for kexec"), and where kexec_file_load put each segment.
KEXEC_LOG = """\
BIOS-e820: [mem 0x0000000000000000-0x000000000008efff] usable
BIOS-e820: [mem 0x000000000008f000-0x000000000008ffff] ACPI NVS
BIOS-e820: [mem 0x0000004080000000-0x0000007ffe7fffff] usable
BIOS-e820: [mem 0x0000007ffe800000-0x000000807f0fffff] reserved
BIOS-e820: [mem 0x000000807f100000-0x000000807f1fefff] usable
"""


def test_new_kernel_is_loaded_where_linux_loaded_it():
    segments = kexec_segments(
        MemoryMap.from_text(KEXEC_LOG), kernel_bytes=0x389_4000, initrd_bytes=0x417_7000
    )
    assert [(region.part, region.start) for region in segments] == [
        (Part.PURGATORY, 0x80_7F1F_A000),
        (Part.BOOT_PARAMS, 0x80_7F1F_8000),
        (Part.NEW_KERNEL, 0x7F_FAE0_0000),
        (Part.NEW_INITRD, 0x7F_F6C8_9000),
    ]


def test_new_kernel_of_a_layout_lies_high_and_on_large_pages():
    layout = place(MemoryMap.flat(4 * TIB), 512)
    kernel = layout[Part.NEW_KERNEL]
    assert kernel.start % (2 * MIB) == 0
    assert kernel.owner is Owner.NEW_KERNEL
    assert layout.memmap.ram_end - kernel.start < GIB


def test_kernels_without_initrd_have_none():
    layout = place(MemoryMap.flat(4 * GIB), 2, initrd_bytes=0)
    assert_sound(layout)
    assert Part.OLD_INITRD not in layout
    assert Part.NEW_INITRD not in layout


def test_sizes_are_rounded_up_to_pages():
    layout = place(MemoryMap.flat(4 * GIB), 2, kernel_bytes=5_000_001, initrd_bytes=1, crash=1)
    assert_sound(layout)
    assert layout[Part.NEW_KERNEL].size_bytes == 5_001_216
    assert layout[Part.OLD_INITRD].size_bytes == layout[Part.CRASH].size_bytes == 4096


@pytest.mark.parametrize("n_cpus", [0, -1, MAX_CPUS + 1, 1 << 64])
def test_no_cpu_or_too_many_are_refused(n_cpus):
    with pytest.raises(OutOfRange, match=f"{n_cpus} CPUs: must be 1 to 8192"):
        place(MemoryMap.flat(4 * GIB), n_cpus)


def test_many_cpus_on_a_small_guest_are_refused_by_what_does_not_fit():
    with pytest.raises(NoRoom, match=r"old kernel's stacks \(128M\)"):
        place(MemoryMap.flat(300 * MIB), MAX_CPUS)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_bytes": 0},
        {"kernel_bytes": -1},
        {"initrd_bytes": -1},
        {"crash": -1},
        {"crash": (1 << 52) + 1},
    ],
)
def test_sizes_that_make_no_sense_are_refused_by_name(arguments):
    with pytest.raises(OutOfRange, match=next(iter(arguments))):
        place(MemoryMap.flat(4 * GIB), 2, **arguments)


def test_jump_table_can_be_forced_even_above_4_gib():
    layout = place(MemoryMap.flat(4 * GIB), 2, jump_table=1 << 40)
    assert_sound(layout)
    assert layout[Part.JUMP_TABLE].start == 1 << 40
    assert layout[Part.JUMP_TABLE].owner is Owner.FIRMWARE


def test_jump_table_of_zero_means_none():
    layout = place(MemoryMap.flat(4 * GIB), 2, jump_table=0)
    assert Part.JUMP_TABLE not in layout


@pytest.mark.parametrize(
    ("gpa", "error", "message"),
    [
        (0x100_0000, OutOfRange, "lies in RAM 0x900000-"),
        (0x80_7800, Unaligned, "not 4 KiB aligned"),
        (1 << 52, OutOfRange, "52 bits"),
        (-4096, OutOfRange, "52 bits"),
    ],
)
def test_forced_jump_table_must_be_a_page_outside_ram(gpa, error, message):
    with pytest.raises(error, match=f"jump table at .*{message}"):
        place(MemoryMap.flat(4 * GIB), 2, jump_table=gpa)


def test_region_at_finds_both_ends_of_each_region_and_nothing_beside():
    layout = place(MemoryMap.from_file(DATA / "e820_ovmf_qemu_2g.txt"), 4)
    taken = {region.start for region in layout.regions}
    for region in layout.regions:
        assert layout.region_at(region.start) is region
        assert layout.region_at(region.end - 1) is region
        if region.end not in taken:
            assert layout.region_at(region.end) is None
    assert layout.region_at(0) is None
    assert layout.region_at((1 << 52) - 1) is None


def test_each_cpu_has_its_own_shared_ghcb_page():
    layout = place(MemoryMap.flat(64 * GIB), 300)
    gpas = layout.ghcb_gpas()
    assert gpas.shape == (300,)
    assert len(set((gpas >> np.uint64(12)).tolist())) == 300
    assert layout.memmap.is_ram(gpas).all()
    for gpa in (int(gpas[0]), int(gpas[-1])):
        region = layout.region_at(gpa)
        assert region.part is Part.GHCBS
        assert region.shared


def test_shared_memory_is_swiotlb_ghcbs_and_paravirtual_pages():
    layout = place(MemoryMap.flat(TIB), 512)
    by_state = layout.memory_by_state()
    assert by_state["shared"] == GIB + 512 * 4096 + 512 * 4096 + 512 * 64
    assert json.loads(json.dumps(by_state)) == by_state
    assert by_state["reserved"] == 0x8000 + 0xF_0000 + 0x2_0000 + 0x9_0000


def test_layout_prints_one_line_for_each_region():
    layout = place(MemoryMap.flat(4 * GIB), 4)
    head, *lines = layout.as_text().splitlines()
    assert head.split() == ["start", "last", "size", "state", "owner", "what"]
    assert len(lines) == len(layout.regions)
    assert " ".join(lines[1].split()) == (
        "0x0000000001000000 0x0000000004ffffff 64M private old kernel text and data"
    )
    assert max(map(len, [head, *lines])) <= 100


def test_layout_does_not_depend_on_who_asks():
    assert place(MemoryMap.flat(TIB), 64) == place(MemoryMap.flat(TIB), 64)


# Examples

EXAMPLES = TESTS.parent / "examples" / "memmaps"


@pytest.mark.parametrize("name", ["e820_epyc_volcano_769g.txt", "e820_ovmf_qemu_2g.txt"])
def test_example_maps_are_the_tested_ones(name):
    assert (EXAMPLES / name).read_bytes() == (DATA / name).read_bytes()
