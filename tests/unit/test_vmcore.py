"""``pysev.vmcore``: the file's form, the kernel's memory in it, keys, and what goes wrong writing.

Page tables, struct pages and the log are read back by small walkers that know Linux's form and
nothing of how they were written; offsets of ELF notes are those of the C library's headers.
"""

import errno
import os
import re
import resource
import struct
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghcbcore._cffi import lib
from ghcbcore.controller import Controller
from ghcbcore.errors import OutOfRange
from ghcbcore.profile import Profile
from pysev import Machine, find, run
from pysev.cli import main
from pysev.layout import Part, place
from pysev.memmap import MemoryMap, NoRoom
from pysev.vmcore import elf, write
from pysev.vmcore.crash import Core, Crash
from pysev.vmcore.image import Image
from pysev.vmcore.kernel import (
    BUDDY,
    DIRECT_MAP,
    KERNEL_MAP,
    OFFLINE,
    STRUCT_PAGE,
    VMEMMAP,
    Kernel,
)
from pysev.vmcore.places import Places, unaccepted_range
from pysev.vmcore.record import crash_of
from pysev.vmcore.vmcoreinfo import vmcoreinfo
from pysev.vmcore.write import CoreError, NoCore, write_core

C_BIT = 1 << lib.GHCB_KVM_C_BIT
PAGE = 4096
GIB = 1 << 30


def kernel_of(size: int, n_cpus: int = 4, c_bit: int = C_BIT, **more) -> Kernel:
    places = Places.of(Machine.of(n_cpus, MemoryMap.flat(size)).layout)
    return Kernel(places, c_bit, "6.1.0", **more)


def crash(n_cpus=4, size=3 * GIB, **more) -> Crash:
    places = Places.of(Machine.of(n_cpus, MemoryMap.flat(size)).layout)
    text = ["panic"] + ["default_idle"] * (n_cpus - 1)
    given = {"writer": 1, "reader": 1} | more
    return Crash(places, "AMD SEV SEV-ES", np.ones(n_cpus, bool), text, **given)


# -- ELF -----------------------------------------------------------------------------------------


def test_the_registers_of_a_note_stand_where_the_c_library_has_them(tmp_path):
    names = {"ip": "rip", "sp": "rsp", "bp": "rbp", "di": "rdi", "flags": "eflags", "r15": "r15"}
    names |= {"cs": "cs", "gs": "gs", "orig_ax": "orig_rax", "fs_base": "fs_base", "ax": "rax"}
    reg = "offsetof(struct elf_prstatus, pr_reg) + offsetof(struct user_regs_struct, %s)"
    lines = [f'printf("{ours} %zu\\n", {reg % theirs});' for ours, theirs in names.items()]
    lines.append('printf("size %zu\\npid %zu\\n", sizeof(struct elf_prstatus),')
    lines.append("    offsetof(struct elf_prstatus, pr_pid));")
    source = tmp_path / "offsets.c"
    head = "#include <stddef.h>\n#include <stdio.h>\n#include <sys/procfs.h>\n"
    source.write_text(f"{head}int main(void) {{ {' '.join(lines)} return 0; }}\n")
    subprocess.run(["gcc", source, "-o", tmp_path / "offsets"], check=True)
    text = subprocess.run([tmp_path / "offsets"], check=True, capture_output=True, text=True).stdout
    want = {row.split()[0]: int(row.split()[1]) for row in text.splitlines()}
    values = {name: 0x1000 + i for i, name in enumerate(names)}
    note = elf.prstatus(77, values)
    assert struct.unpack_from("<III", note) == (5, want["size"], 1)
    assert note[12:20] == b"CORE\0\0\0\0" and len(note) == 20 + want["size"]
    assert struct.unpack_from("<i", note, 20 + want["pid"]) == (77,)
    for name, value in values.items():
        assert struct.unpack_from("<Q", note, 20 + want[name]) == (value,), name


def test_a_register_that_does_not_exist_is_refused():
    with pytest.raises(OutOfRange, match="no cr3 in user_regs_struct"):
        elf.prstatus(0, {"cr3": 1})


@given(st.binary(min_size=12, max_size=80))
def test_the_first_note_is_a_whole_note_with_a_name_or_nothing(data):
    found = elf.first_note(data)
    name_bytes, n_bytes, _ = struct.unpack_from("<III", data)
    size = 12 + (name_bytes + 3) // 4 * 4 + (n_bytes + 3) // 4 * 4
    assert found == (data[:size] if name_bytes and size <= len(data) else b"")


def test_a_note_reads_back_from_its_place():
    note = elf.note(b"CORE", 1, b"abcde")
    assert elf.first_note(note + bytes(100)) == note
    assert elf.first_note(bytes(100)) == b""


@given(
    st.lists(st.tuples(st.integers(0, 9 * PAGE), st.integers(1, 5 * PAGE)), max_size=9),
    st.integers(0, 3 * PAGE),
)
def test_merged_segments_follow_one_another_on_page_boundaries(pairs, n_note_bytes):
    placed = elf.merged([elf.Segment(p, n, p) for p, n in pairs], n_note_bytes)
    at = elf.data_offset(len(pairs), n_note_bytes)
    assert at % PAGE == 0 and at >= 64 + 56 * (1 + len(pairs)) + n_note_bytes
    for (paddr, size), s in zip(pairs, placed, strict=True):
        assert s.offset % PAGE == paddr % PAGE and s.offset - paddr % PAGE == at
        at = -(-(s.offset + size) // PAGE) * PAGE


def test_more_segments_than_elf_has_room_for_are_refused():
    with pytest.raises(OutOfRange, match="65535 segments"):
        elf.headers([elf.Segment(0, 1, 0)] * 65535, b"")


# -- pages ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5 * PAGE), st.binary(min_size=1, max_size=2 * PAGE))))
def test_an_image_reads_as_bytes_that_were_written_one_after_the_other(writes):
    image, plain = Image(), bytearray(8 * PAGE)
    for at, data in writes:
        image.put(at, data)
        plain[at : at + len(data)] = data
    assert image.get(0, len(plain)) == plain
    seen = bytearray(len(plain))
    last = -1
    for gpa, data in image.runs():
        assert gpa > last and gpa % PAGE == len(data) % PAGE == 0
        seen[gpa : gpa + len(data)] = data.tobytes()
        last = gpa + len(data)
    assert seen == plain


def test_an_image_forgets_a_page_that_nobody_may_read():
    image = Image()
    image.put(PAGE, b"x" * 2 * PAGE)
    image.drop(PAGE)
    assert image.get(PAGE, 1) == b"\0" and image.get(2 * PAGE, 1) == b"x" and len(image) == 1


# -- page tables ---------------------------------------------------------------------------------


def walk(kernel: Kernel, va: int, mask: int) -> tuple[int, bool] | None:
    """Translate by the tables in the image: (address, C-bit of the leaf), None if not mapped."""
    table = kernel.symbols["init_top_pgt"] - KERNEL_MAP + kernel.phys_base
    for level in (39, 30, 21, 12):
        (entry,) = struct.unpack("<Q", kernel.image.get(table + (va >> level) % 512 * 8, 8))
        if not entry & 1:
            return None
        address = entry & 0xF_FFFF_FFFF_F000 & ~mask
        if level == 12 or entry & 0x80:
            low = (1 << level) - 1
            return address & ~low | va & low, bool(entry & mask)
        assert not mask or entry & mask  # tables are private
        table = address
    raise AssertionError


def edges(kernel: Kernel) -> list[int]:
    """Addresses around every edge of the machine's memory and regions."""
    layout = kernel.places.layout
    ranges = [*layout.memmap.ram_ranges(), *((r.start, r.end) for r in layout.regions)]
    steps = {at + step for pair in ranges for at in pair for step in (-PAGE, -1, 0, PAGE)}
    return sorted(at for at in steps | {1 << n for n in range(12, 46)} if at >= 0)


@pytest.mark.parametrize("c_bit", [C_BIT, 1 << 47, 0])
@pytest.mark.parametrize("size", [2 * GIB, 3 * GIB, 5 * GIB + (6 << 20), 16 << 40])
def test_page_tables_map_all_ram_where_it_is_and_nothing_far_from_it(size, c_bit):
    kernel = kernel_of(size, c_bit=c_bit)
    layout = kernel.places.layout
    for gpa in edges(kernel):
        found = walk(kernel, DIRECT_MAP + gpa, c_bit)
        region = layout.region_at(gpa)
        if layout.memmap.is_ram([gpa])[0]:
            assert found is not None and found[0] == gpa, hex(gpa)
            assert found[1] == bool(c_bit and not (region is not None and region.shared)), hex(gpa)
        elif found is not None:  # a hole in a leaf of 2 MiB
            start = gpa >> 21 << 21
            assert layout.memmap.is_ram(np.arange(start, start + (2 << 20), PAGE)).any()


def test_after_unsharing_every_leaf_has_the_c_bit():
    kernel = kernel_of(3 * GIB, all_private=True)
    for region in kernel.places.layout.regions:
        found = walk(kernel, DIRECT_MAP + region.start, C_BIT)
        assert found is None or found == (region.start, True)


def test_the_kernel_maps_its_image_and_its_struct_pages():
    kernel = kernel_of(5 * GIB)
    for name, va in kernel.symbols.items():
        assert walk(kernel, va, C_BIT) == (va - KERNEL_MAP + kernel.phys_base, True), name
    for section, where in zip(
        kernel.places.sections.tolist(), kernel.places.vmemmap.tolist(), strict=True
    ):
        assert walk(kernel, VMEMMAP + (section << 21), C_BIT) == (where, True)
    absent = set(range(64)) - set(kernel.places.sections.tolist())
    assert absent and all(walk(kernel, VMEMMAP + (n << 21), C_BIT) is None for n in absent)


def test_who_keeps_the_c_bit_in_the_entries_leaves_memory_at_the_second_table():
    kernel = kernel_of(3 * GIB)
    top = kernel.symbols["init_top_pgt"] - KERNEL_MAP + kernel.phys_base
    (entry,) = struct.unpack("<Q", kernel.image.get(top + 511 * 8, 8))
    assert entry & 0xF_FFFF_FFFF_F000 > C_BIT  # as drgn's mask has it


def test_ram_above_what_four_levels_reach_is_refused():
    ranges = [(0, 0xA_0000, 1), (0x10_0000, 8 * GIB, 1), (1 << 46, (1 << 46) + GIB, 1)]
    layout = place(MemoryMap(ranges), 1, jump_table=0)
    with pytest.raises(OutOfRange, match="four levels of page tables reach 64T"):
        Places.of(layout)


def test_a_layout_without_a_crash_reservation_is_refused():
    layout = place(MemoryMap.flat(3 * GIB), 2, crash=0)
    with pytest.raises(OutOfRange, match="no memory is reserved for a crash kernel"):
        Places.of(layout)


def test_memory_of_which_no_half_can_be_left_alone_is_refused():
    layout = place(MemoryMap.flat(480 << 20), 1, crash=64 << 20)
    with pytest.raises(NoRoom, match="memory that was never accepted"):
        unaccepted_range(layout)


# -- struct page, the log, VMCOREINFO ------------------------------------------------------------


def struct_page(kernel: Kernel, gpa: int) -> tuple[int, int, int]:
    """Flags, private, _mapcount by way of mem_section and the page tables."""
    section = gpa >> 27
    root = kernel.symbols["mem_section"] + section // 256 * 8
    where = walk(kernel, root, C_BIT)[0]
    (row,) = struct.unpack("<Q", kernel.image.get(where, 8))
    row = walk(kernel, row + section % 256 * 16, C_BIT)[0]
    (coded,) = struct.unpack("<Q", kernel.image.get(row, 8))
    assert coded & 3 == 3  # present, has a mem_map
    at = walk(kernel, (coded & ~0x1F) + (gpa >> 12) * 64, C_BIT)[0]
    page = kernel.image.get(at, 64)
    return (
        struct.unpack_from("<Q", page)[0],
        struct.unpack_from("<Q", page, 40)[0],
        struct.unpack_from("<i", page, 48)[0],
    )


def test_free_blocks_are_on_the_free_lists_and_lie_where_nobody_is():
    kernel = kernel_of(3 * GIB)
    blocks = kernel.free_blocks()
    taken = [(r.start, r.end) for r in kernel.places.layout.regions]
    taken += [kernel.places.vmsas, kernel.places.tables]
    taken += [(at, at + (2 << 20)) for at in kernel.places.vmemmap.tolist()]
    assert len(blocks) > 100
    for start in blocks:
        assert struct_page(kernel, start)[1:] == (10, BUDDY)
        assert all(start + (4 << 20) <= low or high <= start for low, high in taken)


def test_the_initrd_is_page_cache_and_an_offline_page_says_so():
    kernel = kernel_of(3 * GIB)
    initrd = kernel.places.layout[Part.OLD_INITRD]
    for gpa in (initrd.start, initrd.end - PAGE):
        flags, _, mapcount = struct_page(kernel, gpa)
        assert flags >> 4 & 1 and mapcount == -1  # PG_lru
    vmsa = kernel.places.vmsas[0]
    assert struct_page(kernel, vmsa)[2] == 0
    kernel.set_offline(vmsa)
    assert struct_page(kernel, vmsa)[2] == OFFLINE
    assert struct_page(kernel, vmsa + PAGE)[2] == 0


def test_struct_pages_of_pages_on_both_sides_of_a_section_go_to_both():
    kernel = kernel_of(3 * GIB)
    border = 2 << 27
    pages = np.zeros(4, STRUCT_PAGE)
    pages["private"] = [1, 2, 3, 4]
    kernel.describe(border - 2 * PAGE, pages)
    assert [struct_page(kernel, border + i * PAGE)[1] for i in (-2, -1, 0, 1)] == [1, 2, 3, 4]


def log_of(kernel: Kernel) -> list[tuple[int, bytes]]:
    """Read the ring buffer back as printk's readers do."""

    def read(va: int, size: int) -> bytes:
        return kernel.image.get(walk(kernel, va, C_BIT)[0], size)

    (ring,) = struct.unpack("<Q", read(kernel.symbols["prb"], 8))
    bits, _, descs, infos, head, tail = struct.unpack("<IIQQQQ", read(ring, 40))
    (text_bits,) = struct.unpack("<I", read(ring + 48, 4))
    (text,) = struct.unpack("<Q", read(ring + 56, 8))
    found = []
    for number in range(tail, head + 1):
        slot = number % (1 << bits)
        state, begin, after = struct.unpack("<QQQ", read(descs + slot * 24, 24))
        if state >> 62 != 2 or begin == after:
            continue
        assert state % (1 << 62) == number and after <= 1 << text_bits
        sequence, at_ns, n_bytes = struct.unpack("<QQH", read(infos + slot * 88, 18))
        assert sequence == number
        assert struct.unpack("<Q", read(text + begin, 8)) == (number,)
        assert 8 + n_bytes <= after - begin < 16 + n_bytes
        found.append((at_ns, read(text + begin + 8, n_bytes)))
    return found


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 2**63), st.text(max_size=300)), max_size=40))
def test_the_log_reads_back(messages):
    kernel = _LOG_KERNEL
    kernel.log(messages)
    want = [(at_ns, text.encode()[:1000]) for at_ns, text in messages]
    assert log_of(kernel)[: len(want)] == want


_LOG_KERNEL = kernel_of(2 * GIB)


@pytest.mark.parametrize(("n", "size"), [(5000, 5), (300, 900)])
def test_of_a_long_log_the_latest_messages_are_kept(n, size):
    kernel = kernel_of(2 * GIB)
    kernel.log([(i, f"{i:0{size}d}") for i in range(n)])
    found = log_of(kernel)
    assert found[-1] == (n - 1, f"{n - 1:0{size}d}".encode())
    assert [at_ns for at_ns, _ in found] == list(range(n - len(found), n))
    assert len(found) == min(1024, (1 << 16) // (8 + -(-size // 8) * 8))


@pytest.mark.parametrize(("c_bit", "said"), [(51, "2251799813685248"), (47, "140737488355328")])
def test_the_mask_is_a_signed_decimal(c_bit, said):
    kernel = kernel_of(2 * GIB, c_bit=1 << c_bit)
    assert f"\nNUMBER(sme_mask)={said}\n".encode() in vmcoreinfo(kernel)
    assert b"sme_mask" not in vmcoreinfo(kernel, exports_mask=False)


def test_without_encryption_the_mask_is_zero():
    assert b"\nNUMBER(sme_mask)=0\n" in vmcoreinfo(kernel_of(2 * GIB, c_bit=0))


# -- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_cpus", [1, 4096])
@pytest.mark.parametrize("size", [2 * GIB, 3 * GIB, 100 * GIB, 16 << 40, 60 << 40])
def test_nothing_of_a_dump_lies_over_anything_else(size, n_cpus):
    layout = Machine.of(n_cpus, MemoryMap.flat(size)).layout
    open_range = unaccepted_range(layout)
    places = Places.of(layout, open_range)
    taken = [(r.start, r.end) for r in layout.regions]
    taken += [places.vmsas, places.tables, open_range]
    blocks = [(at, at + (2 << 20)) for at in places.vmemmap.tolist()]
    pieces = sorted([*taken, *blocks])
    assert all(a[1] <= b[0] for a, b in pairwise(pieces))
    for start, end in places.free:
        assert all(high <= start or end <= low for low, high in pieces)
    n_sections = sum(
        -(-end // (1 << 27)) - start // (1 << 27) for start, end in layout.memmap.ram_ranges()
    )
    assert len(places.sections) <= n_sections and len(places.sections) == len(places.vmemmap)


@pytest.mark.parametrize("name", ["epyc_volcano_769g", "epyc_romed8_256g", "ovmf_qemu_2g"])
def test_machines_with_a_boot_log_of_their_own_have_a_core(name, tmp_path, request):
    path = request.config.rootpath / "tests" / "data" / f"e820_{name}.txt"
    options = ["--memmap", str(path), "--cpus", "8", "--format", "compact"]
    assert main(["vmcore", "-o", str(tmp_path / "core"), *options]) == 0


GAPS = st.sampled_from([0, 0, 0x1000, 0x12345, 1 << 30, 1 << 39, 5 << 40])
SIZES = st.sampled_from([0x1000, 0x8800, 0x20_0000, 0x7F0_0000, 1 << 28, 3 << 30, 1 << 40])


@settings(max_examples=25)
@given(st.lists(st.tuples(GAPS, SIZES, st.sampled_from([1, 1, 1, 2, 3])), max_size=9))
def test_on_any_map_page_tables_lead_to_every_edge_of_its_ram(tail):
    rows = [(0, 0x9_FC00, 1), (0x10_0000, 0x7FF1_0000, 1), (0x7FF1_0000, 0x8000_0000, 2)]
    at = 4 * GIB
    rows.append((at, at := at + GIB, 1))
    for gap, size, kind in tail:
        rows.append((at + gap, at := at + gap + size, kind))
    layout = Machine.of(3, MemoryMap(rows)).layout
    kernel = Kernel(Places.of(layout), C_BIT, "6.1.0")
    for start, end in layout.memmap.ram_ranges():
        for gpa in (start, end - 1):
            assert walk(kernel, DIRECT_MAP + gpa, C_BIT)[0] == gpa
            where = walk(kernel, VMEMMAP + (gpa >> 12) * 64, C_BIT)
            assert where is not None and layout.memmap.is_ram([where[0]])[0]
    for start, end in kernel.places.ranges:
        assert start % PAGE == end % PAGE == 0 and layout.memmap.is_ram([start, end - 1]).all()


# -- what the reader sees ------------------------------------------------------------------------


def page_of(core: Core, gpa: int) -> bytes:
    for start, data in core.runs():
        if start <= gpa < start + len(data):
            return data[gpa - start : gpa - start + PAGE].tobytes()
    raise AssertionError(f"{gpa:#x} is not known")


def test_private_pages_are_plain_text_through_the_right_key():
    core = Core(crash())
    text = core.kernel.start
    assert page_of(core, text) == core.kernel.image.get(text, PAGE)
    assert page_of(core, text).startswith(b"_stext")


@pytest.mark.parametrize("seed", [0, 7])
def test_private_pages_are_real_ciphertext_through_no_key(seed):
    core = Core(crash(reader=lib.GHCB_KEY_SLOT_NONE), seed)
    controller = Controller("xex", 1, seed)
    controller.install(1)
    for gpa in (core.kernel.start, core.kernel.places.tables[0]):
        seen = np.frombuffer(page_of(core, gpa), np.uint8)
        assert seen.tobytes() != core.kernel.image.get(gpa, PAGE)
        assert controller.decrypt(seen, gpa, 1).tobytes() == core.kernel.image.get(gpa, PAGE)
    shared = core.kernel.places.layout[Part.SWIOTLB].start
    assert page_of(core, shared).startswith(b"a bounced block")
    assert core.notes == b"" and core.n_notes == 0


def test_shared_pages_are_noise_to_who_takes_them_for_private():
    core = Core(crash())
    controller = Controller("xex", 1, 0)
    controller.install(1)
    shared = core.kernel.places.layout[Part.SWIOTLB].start
    seen = np.frombuffer(page_of(core, shared), np.uint8)
    assert controller.encrypt(seen, shared, 1).tobytes().startswith(b"a bounced block\0")


def test_notes_are_those_in_memory():
    core = Core(crash(5))
    assert core.n_notes == 5
    memory = b"".join(
        elf.first_note(core.kernel.image.get(core.kernel.note_gpa(cpu), 512)) for cpu in range(5)
    )
    assert core.notes.startswith(memory)
    registers = [core.registers(cpu) for cpu in range(5)]
    assert registers[0]["ip"] == core.kernel.symbols["panic"] + 0x20
    stacks = core.kernel.places.layout[Part.STACKS]
    for one in registers:
        assert stacks.start <= one["sp"] - DIRECT_MAP < stacks.end
    assert len({one["sp"] for one in registers}) == 5


def test_an_offline_vmsa_is_not_in_the_core():
    scenario, machine = find("guest-kdump/snp-crash-on-ap"), Machine.of(3)
    flow = scenario.build(machine)
    core = Core(crash_of(flow, machine, run(flow, machine)))
    own, other = core.kernel.places.vmsas[0], core.kernel.places.vmsas[0] + PAGE
    with pytest.raises(AssertionError, match="not known"):
        page_of(core, own)
    rip = page_of(core, other)[lib.GHCB_OFF_RIP :][:8]
    assert int.from_bytes(rip, "little") == core.kernel.symbols["default_idle"]


@pytest.mark.parametrize(
    ("name", "mask"), [("sev-es-kexec/kdump-one-cpu", C_BIT), ("guest-kdump/sme", C_BIT)]
)
def test_a_flow_without_words_for_it_is_encrypted_as_its_host_says(name, mask):
    machine = Machine.of(3)
    flow = find(name).build(machine)
    core = Core(crash_of(flow, machine, run(flow, machine)))
    assert core.kernel.c_bit == mask and core.n_notes == 3


def test_a_flow_on_a_plain_host_has_a_core_without_a_mask():
    machine = Machine.of(3)
    flow = find("sev-es-kexec/kdump-one-cpu").build(machine)
    flow.profile = Profile(guest=lib.GHCB_GUEST_PLAIN)
    core = Core(crash_of(flow, machine, run(flow, machine)))
    assert core.kernel.c_bit == 0
    assert b"NUMBER(sme_mask)=0\n" in core.notes
    assert page_of(core, core.kernel.start).startswith(b"_stext")


# -- writing -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Core:
    return Core(crash(2, 2 * GIB))


def contents(path, segments_of: Core) -> dict[int, bytes]:
    """Return the pages of a core file that are not zero, by physical address, by its headers."""
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
        n = struct.unpack_from("<H", head, 56)[0]
        found = {}
        for i in range(1, n):
            row = struct.unpack_from("<IIQQQQQQ", head, 64 + 56 * i)
            offset, paddr, in_file = row[2], row[4], row[5]
            for gpa, data in segments_of.runs():
                low, high = max(gpa, paddr), min(gpa + len(data), paddr + in_file)
                for at in range(low, high, PAGE):
                    stream.seek(offset + at - paddr)
                    found[at] = stream.read(PAGE)
    return found


@pytest.mark.parametrize("form", write.FORMATS)
def test_a_file_has_every_known_page_of_its_segments_where_its_headers_say(small, tmp_path, form):
    path = tmp_path / "core"
    done = write_core(small, str(path), form)
    found = contents(path, small)
    inside = small.crash.places.ranges
    want = {
        gpa + at: data[at : at + PAGE].tobytes()
        for gpa, data in small.runs()
        for at in range(0, len(data), PAGE)
        if any(low <= gpa + at < high for low, high in inside)
    }
    assert found == want and len(want) > 300
    assert done.n_bytes == path.stat().st_size and done.disk_bytes == path.stat().st_blocks * 512
    assert done.disk_bytes < 16 << 20
    assert (path.stat().st_mode & 0o777) == 0o600


def test_a_file_that_is_there_is_not_written_over(small, tmp_path):
    path = tmp_path / "core"
    path.write_text("precious")
    with pytest.raises(CoreError, match="is there already"):
        write_core(small, str(path))
    assert path.read_text() == "precious"


@pytest.mark.parametrize("name", ["", "-"])
def test_a_core_needs_a_file(small, name):
    with pytest.raises(CoreError, match="needs a file with a name"):
        write_core(small, name)


def test_a_folder_that_is_not_there_is_named(small, tmp_path):
    with pytest.raises(CoreError, match=r"none/core: No such file or directory"):
        write_core(small, str(tmp_path / "none" / "core"))


@pytest.mark.parametrize("form", write.FORMATS)
@pytest.mark.parametrize("after", [0, 1, 20])
def test_a_full_disk_leaves_nothing_behind(small, tmp_path, monkeypatch, form, after):
    calls = 0
    real = os.pwrite

    def pwrite(fd, data, offset):
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:100000], offset)  # and writes less than it was given

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(CoreError, match="No space left on device; nothing is left"):
        write_core(small, str(tmp_path / "core"), form)
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_continued(small, tmp_path, monkeypatch):
    real = os.pwrite
    write_core(small, str(tmp_path / "a"), "compact")
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:5000], at))
    write_core(small, str(tmp_path / "b"), "compact")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_write_that_makes_no_progress_ends(small, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: 0)
    with pytest.raises(CoreError, match="Input/output error"):
        write_core(small, str(tmp_path / "core"))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(small, tmp_path, monkeypatch):
    def pwrite(fd, data, offset):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(KeyboardInterrupt):
        write_core(small, str(tmp_path / "core"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_holes_is_refused_for_the_form_that_needs_them(
    small, tmp_path, monkeypatch
):
    real = os.ftruncate

    def ftruncate(fd, size):  # what is not written takes room, as on exFAT
        real(fd, size)
        if size <= 1 << 20:
            os.pwrite(fd, b"\1" * size, 0)

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    with pytest.raises(CoreError, match=r"no holes.*--format compact leaves them out"):
        write_core(small, str(tmp_path / "core"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_whose_files_are_too_small_is_told_apart(tmp_path):
    """By a limit of a child process: ftruncate then fails as it does beyond ext4's 16 TiB."""
    code = (
        "import sys; from pysev.cli import main; "
        f"sys.exit(main(['vmcore', '-o', {str(tmp_path / 'core')!r}, '--cpus', '2']))"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30)),
    )
    assert run.returncode == 2
    assert "no file of" in run.stderr and "try --format compact" in run.stderr
    assert len(run.stderr.splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_an_unknown_form_is_refused(small, tmp_path):
    with pytest.raises(CoreError, match="'zip' is no format: elf, compact"):
        write_core(small, str(tmp_path / "core"), "zip")


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--memory", "1G"], "no crash kernel: a guest of"),
        (["--memory", "0"], "size '0': zero"),
        (["--memory", "1500M"], "no crash kernel"),
        (["--cpus", "0"], "0 CPUs"),
        (["--memory", "70T"], "four levels of page tables reach 64T"),
        (["sev-es-kexec/jump-table"], "no crash flow"),
        (["guest-kdump/snpp"], "the nearest is guest-kdump/snp"),
        (["--memmap", "MAP"], "overlaps"),
    ],
)
def test_what_cannot_be_dumped_is_one_line_and_no_file(arguments, text, tmp_path, capsys):
    overlap = tmp_path / "map"
    overlap.write_text(
        "BIOS-e820: [mem 0x0000000000000000-0x000000007fffffff] usable\n"
        "BIOS-e820: [mem 0x0000000040000000-0x000000013fffffff] usable\n"
    )
    arguments = [str(overlap) if word == "MAP" else word for word in arguments]
    path = tmp_path / "core"
    assert main(["vmcore", *arguments, "-o", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert re.search(text, captured.err), captured.err
    assert not path.exists()


@pytest.mark.parametrize("json", [[], ["--json"]])
@pytest.mark.parametrize(
    "short", ["snp-vmsa-cp", "elfcorehdr-as-sme", "elfcorehdr-as-sev", "reservation-sev-es"]
)
def test_a_scenario_without_a_core_is_a_finding_and_leaves_no_file(short, json, tmp_path, capsys):
    path = tmp_path / "core"
    assert main(["vmcore", f"guest-kdump/{short}", "-o", str(path), "--cpus", "3", *json]) == 1
    out = capsys.readouterr().out
    assert ('"file": null' in out) if json else ("no core:" in out)
    assert not path.exists()


def test_one_cpu_has_a_core(tmp_path, capsys):
    path = tmp_path / "core"
    assert main(["vmcore", "-o", str(path), "--cpus", "1"]) == 0
    assert "NT_PRSTATUS of 1 of 1 CPUs" in capsys.readouterr().out


@pytest.mark.parametrize("form", write.FORMATS)
def test_the_same_seed_gives_the_same_file(form, tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path, seed in zip(paths, (5, 5, 6), strict=True):
        scenario = "guest-kdump/sev-es"
        options = ["--cpus", "2", "--memory", "2G", "--seed", str(seed), "--format", "compact"]
        assert main(["vmcore", scenario, "-o", str(path), *options]) == 0
    first, second, third = (path.read_bytes() for path in paths)
    assert first == second and first != third  # another key, other noise


def test_sixteen_tebibytes_and_thousands_of_cpus_take_seconds_and_mebibytes(tmp_path):
    began = time.perf_counter()
    path = tmp_path / "core"
    options = ["--cpus", "4096", "--memory", "16T", "--format", "compact"]
    assert main(["vmcore", "guest-kdump/sev-es", "-o", str(path), *options]) == 0
    assert time.perf_counter() - began < 30
    assert path.stat().st_size < 256 << 20 and path.stat().st_blocks * 512 < 128 << 20


def test_no_room_and_no_core_are_errors_of_their_own():
    assert issubclass(NoCore, CoreError) and not issubclass(NoRoom, CoreError)
