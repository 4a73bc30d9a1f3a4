"""Cores of ``pysev vmcore`` in other people's tools: readelf, makedumpfile, drgn.

makedumpfile finds its way by VMCOREINFO and by the page tables in the core, whose entries have the
C-bit; what it leaves out it learns from ``struct page``. drgn reads memory by physical address and
through page tables, of whose C-bit it knows nothing. Threads it finds by debug information alone,
which a kernel that never was cannot have; registers are held against readelf's notes instead.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pysev.cli import main
from pysev.layout import Part
from pysev.machine import Machine
from pysev.memmap import MemoryMap
from pysev.vmcore.crash import RELEASE

C_BIT = 1 << 51
TEXT = 0x100_0000
TEXT_VA = 0xFFFF_FFFF_8100_0000
DIRECT_MAP = 0xFFFF_8880_0000_0000
VMEMMAP = 0xFFFF_EA00_0000_0000
SIZE = "3G"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: tools/system-packages test")
    return found


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write each core once: by scenario, number of CPUs, size and format."""
    folder = tmp_path_factory.mktemp("cores")
    done: dict[tuple[str, int, str, str], Path] = {}

    def make(short: str, n_cpus: int = 4, size: str = SIZE, form: str = "elf") -> Path:
        key = (short, n_cpus, size, form)
        if key not in done:
            path = folder / "-".join(map(str, key)).replace("/", "-")
            options = ["--cpus", str(n_cpus), "--memory", size, "--format", form]
            scenario = short if "/" in short else f"guest-kdump/{short}"
            assert main(["vmcore", scenario, "-o", str(path), *options]) in (0, 1)
            done[key] = path
        return done[key]

    return make


def said(*command: str | Path, expect: int | None = 0) -> str:
    """Run a tool; return what it says on both streams."""
    run = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        text=True,
        errors="replace",
    )
    if expect is not None:
        assert run.returncode == expect, run.stdout
    return run.stdout


def makedumpfile(path: Path, *options: str, expect: int = 0) -> str:
    """Return what makedumpfile says; what it writes is thrown away."""
    out = path.with_name(f"{path.name}.{'-'.join(options).replace('/', '')}.out")
    out.unlink(missing_ok=True)
    text = said(tool("makedumpfile"), *options, path, out, expect=None)
    failed = "makedumpfile Failed" in text
    assert failed == bool(expect), text
    out.unlink(missing_ok=True)
    return text


def counts(text: str) -> dict[str, int]:
    """Read the table that makedumpfile prints with --message-level 16 and more."""
    rows = re.findall(r"^ *([A-Z][\w -]+?) +: 0x([0-9a-f]{16})$", text, re.MULTILINE)
    return {name: int(value, 16) for name, value in rows}


# -- readelf -------------------------------------------------------------------------------------


def notes_of(path: Path) -> tuple[int, str]:
    text = said(tool("readelf"), "-nW", path, expect=None)  # no note at all is status 1
    info = re.search(r"VMCOREINFO .*description data: ([0-9a-f ]+)", text)
    return text.count("NT_PRSTATUS"), bytes.fromhex(info[1]).decode() if info else ""


def test_readelf_finds_nothing_wrong_with_a_core(core):
    text = said(tool("readelf"), "-aW", core("snp"))
    assert "Type:                              CORE (Core file)" in text
    assert "Advanced Micro Devices X86-64" in text
    assert "arning" not in text and "rror" not in text


@pytest.mark.parametrize("form", ["elf", "compact"])
def test_readelf_sees_a_note_for_each_cpu_and_the_mask(core, form):
    n, info = notes_of(core("sev-es", 7, form=form))
    assert n == 7
    assert f"NUMBER(sme_mask)={C_BIT}\n" in info  # 2251799813685248, signed decimal
    assert f"OSRELEASE={RELEASE}\n" in info and "PAGESIZE=4096\n" in info


@pytest.mark.parametrize("n_cpus", [2, 4, 65])
def test_a_cpu_that_never_saved_its_registers_has_no_note(core, n_cpus):
    assert notes_of(core("nmi-timeout", n_cpus))[0] == n_cpus - 1


def test_without_the_key_there_is_no_legible_note(core):
    assert notes_of(core("sme-off-in-crash-kernel")) == (0, "")


def test_segments_are_text_and_ram_without_the_first_mib_and_the_reservation(core):
    text = said(tool("readelf"), "-lW", core("sev-es"))
    rows = re.findall(r"^ +LOAD +0x(\w+) 0x(\w+) 0x(\w+) 0x(\w+) 0x(\w+)", text, re.MULTILINE)
    loads = [tuple(int(word, 16) for word in row) for row in rows]
    layout = Machine.of(4, MemoryMap.flat(3 << 30)).layout
    kernel, crash = layout[Part.OLD_TEXT], layout[Part.CRASH]
    assert loads[0][1:] == (TEXT_VA, TEXT, kernel.size_bytes, kernel.size_bytes)
    at = loads[0][0]
    for offset, vaddr, paddr, in_file, size in loads:
        assert offset == at and in_file == size  # one after the other, all in the file
        at += size
        assert vaddr in (paddr + DIRECT_MAP, paddr - TEXT + TEXT_VA)
    ram = {gpa for start, end in layout.memmap.ram_ranges() for gpa in range(start, end, 4096)}
    ram -= set(range(0, 1 << 20, 4096)) | set(range(crash.start, crash.end, 4096))
    assert {gpa for _, _, p, _, n in loads[1:] for gpa in range(p, p + n, 4096)} == ram


# -- makedumpfile --------------------------------------------------------------------------------


@pytest.mark.parametrize("short", ["snp", "sev-es", "sme", "sev-es-kexec/kdump-one-cpu"])
def test_makedumpfile_reads_the_log_through_page_tables_with_the_c_bit(core, short):
    path = core(short)
    out = path.with_suffix(".log")
    out.unlink(missing_ok=True)
    said(tool("makedumpfile"), "--dump-dmesg", path, out)
    lines = out.read_text().splitlines()
    assert lines[0] == f"[    0.000000] Linux version {RELEASE} (pysev)"
    assert lines[-1] == "[    1.000000] Kernel panic - not syncing: sysrq triggered crash"
    assert any("Memory Encryption Features active: AMD " in line for line in lines)


def test_makedumpfile_fails_without_the_mask_at_an_address_with_the_c_bit(core):
    text = makedumpfile(core("mask-missing"), "-d", "31", expect=1)
    missing = re.search(r"non-existent page at 0x([0-9a-f]+)", text)
    assert missing is not None, text
    assert int(missing[1], 16) & C_BIT and int(missing[1], 16) - C_BIT < 1 << 32


def test_makedumpfile_fails_on_what_a_crash_kernel_without_the_key_has_read(core):
    text = makedumpfile(core("sme-off-in-crash-kernel"), "--dump-dmesg", expect=1)
    assert "PT_NOTE" in text


def test_makedumpfile_leaves_out_what_struct_page_says(core):
    path = core("snp")
    table = counts(makedumpfile(path, "-d", "31", "--message-level", "31"))
    layout = Machine.of(4, MemoryMap.flat(3 << 30)).layout
    assert table["Non-private cache pages"] == layout[Part.OLD_INITRD].size_bytes // 4096
    assert table["Free pages"] > 0 and table["Free pages"] % 1024 == 0
    assert table["Offline pages"] == 0
    ram = [(max(start, 1 << 20), end) for start, end in layout.memmap.ram_ranges()]
    in_core = sum(end - start for start, end in ram if start < end)
    # the kernel's image has a segment of its own, and makedumpfile counts its pages twice
    in_core += layout[Part.OLD_TEXT].size_bytes - layout[Part.CRASH].size_bytes
    assert table["Original pages"] == in_core // 4096
    assert table["Remaining pages"] + table["Excluded pages"] == table["Original pages"]


@pytest.mark.parametrize("level", [pytest.param("0", marks=pytest.mark.slow), "1", "31"])
def test_makedumpfile_leaves_a_page_that_is_offline_out_at_every_level(core, level):
    options = ("-l", "-d", level, "--message-level", "31")
    assert counts(makedumpfile(core("snp-crash-on-ap", size="2G"), *options))["Offline pages"] == 1


def test_makedumpfile_reads_a_core_of_thousands_of_cpus_on_terabytes(core):
    path = core("snp", 4096, "12T")
    out = path.with_suffix(".log")
    said(tool("makedumpfile"), "--dump-dmesg", path, out)
    assert "Kernel panic" in out.read_text()
    assert path.stat().st_size > 11 << 40
    assert path.stat().st_blocks * 512 < 128 << 20


def test_makedumpfile_reads_a_compact_core_if_it_does_not_map_it(core):
    # mapped windows go over the ends of segments: so with what makedumpfile -E has written, too
    path = core("snp", 64, "16T", "compact")
    out = path.with_suffix(".log")
    said(tool("makedumpfile"), "--non-mmap", "--dump-dmesg", path, out)
    assert "Kernel panic" in out.read_text()
    assert path.stat().st_size < 256 << 20


# -- drgn ----------------------------------------------------------------------------------------


def opened(path: Path):
    drgn = pytest.importorskip("drgn")
    program = drgn.Program()
    program.set_core_dump(path)
    return drgn, program


@pytest.mark.parametrize("form", ["elf", "compact"])
def test_drgn_reads_memory_by_physical_and_virtual_address(core, form):
    drgn, program = opened(core("snp", form=form))
    assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
    want = f"_stext: text of {RELEASE}\0".encode()
    assert program.read(TEXT, len(want), physical=True) == want
    assert program.read(TEXT_VA, len(want)) == want
    assert program.read(DIRECT_MAP + TEXT, len(want)) == want
    assert RELEASE.encode() in program["VMCOREINFO"].string_()


def test_drgn_finds_threads_by_debug_information_alone(core):
    _, program = opened(core("snp"))
    with pytest.raises(LookupError, match="init_task"):
        next(iter(program.threads()))


def test_drgn_finds_no_memory_in_the_crash_reservation(core):
    drgn, program = opened(core("snp"))
    crash = Machine.of(4, MemoryMap.flat(3 << 30)).layout[Part.CRASH]
    with pytest.raises(drgn.FaultError):
        program.read(crash.start, 8, physical=True)


def test_drgn_walks_page_tables_into_addresses_with_the_c_bit(core):
    """What ``guest-kdump/mask-ignored`` derives: drgn takes bits 12 to 51 for the address."""
    drgn, program = opened(core("snp"))
    with pytest.raises(drgn.FaultError) as fault:
        program.read(VMEMMAP + (TEXT >> 12) * 64, 8)
    assert fault.value.address & C_BIT


def test_what_was_shared_in_an_sev_es_guest_is_noise_and_private_memory_is_not(core):
    layout = Machine.of(4, MemoryMap.flat(3 << 30)).layout
    buffer = layout[Part.SWIOTLB].start
    _, program = opened(core("sev-es-shared-noise"))
    noise = program.read(buffer, 4096, physical=True)
    assert b"bounced" not in noise and len(set(noise)) > 200
    assert program.read(TEXT, 6, physical=True) == b"_stext"


def test_a_crash_kernel_without_the_key_has_read_ciphertext(core):
    drgn = pytest.importorskip("drgn")
    path = core("sme-off-in-crash-kernel")
    program = drgn.Program()
    try:
        program.set_core_dump(path)
    except Exception as error:  # a core without notes is no kernel's, it may say
        pytest.fail(f"drgn: {error}")
    text = said(tool("readelf"), "-lW", path)
    offset = int(re.search(r"LOAD +0x(\w+) 0x\w+ 0x0*1000000 ", text)[1], 16)
    with path.open("rb") as stream:
        stream.seek(offset)
        page = stream.read(4096)
    assert b"_stext" not in page and len(set(page)) > 200


def test_the_json_says_what_the_tools_find(core, capsys, tmp_path):
    path = tmp_path / "core"
    main(["vmcore", "guest-kdump/nmi-timeout", "-o", str(path), "--cpus", "5", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["notes"] == notes_of(path)[0] == 4
    assert found["sme_mask"] == hex(C_BIT) and found["violations"] == ["a note for every CPU"]
    assert found["file_bytes"] == path.stat().st_size
