"""The ELF core that ``/proc/vmcore`` is: header, notes, one segment for each range of RAM.

Bytes and offsets, nothing else: what stands in memory is ``pysev.vmcore.kernel``'s business. The
file has the merged form of the crash kernel: one PT_NOTE with the notes of all CPUs and
VMCOREINFO, then PT_LOADs whose contents follow one another, each on a page boundary.

Units: bytes. Source: ELF gABI; Linux uapi/linux/elf.h, kernel/kexec_file.c
(crash_prepare_elf64_headers), fs/proc/vmcore.c (merge_note_headers_elf64, process_ptload_...).
The numbers of this module are the file format's; they stand nowhere else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ghcbcore.errors import OutOfRange
from pysev.memmap import PAGE_BYTES, round_down, round_up

__all__ = [
    "MAX_SEGMENTS",
    "Segment",
    "first_note",
    "headers",
    "merged",
    "note",
    "prstatus",
]

ET_CORE, EM_X86_64, EV_CURRENT = 4, 62, 1
PT_LOAD, PT_NOTE = 1, 4
PF_R, PF_W, PF_X = 4, 2, 1
NT_PRSTATUS = 1
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
NHDR = struct.Struct("<III")
IDENT = b"\x7fELF" + bytes([2, 1, EV_CURRENT]) + bytes(9)  # 64 bits, little endian

MAX_SEGMENTS = 0xFFFE
"""Beyond it e_phnum would need its extended form, which a merged vmcore never has."""

# struct elf_prstatus of x86-64: signal information and four times, then user_regs_struct
PRSTATUS_BYTES, PRSTATUS_PID, PRSTATUS_REGS = 336, 32, 112
REGISTERS = (
    *("r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si"),
    *("di", "orig_ax", "ip", "cs", "flags", "sp", "ss", "fs_base", "gs_base"),
    *("ds", "es", "fs", "gs"),
)


@dataclass(frozen=True)
class Segment:
    """One PT_LOAD: ``paddr`` and ``size_bytes`` of memory, ``vaddr`` where the kernel maps it.

    ``file_bytes`` of it stand in the file at ``offset``; what is above is not in the file.
    """

    paddr: int
    size_bytes: int
    vaddr: int
    offset: int = 0
    file_bytes: int = -1

    @property
    def in_file(self) -> int:
        return self.size_bytes if self.file_bytes < 0 else self.file_bytes


def note(name: bytes, kind: int, data: bytes) -> bytes:
    """Return one note; name and data are padded to four bytes."""
    name += b"\0"
    return NHDR.pack(len(name), len(data), kind) + _padded(name) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def first_note(data: bytes) -> bytes:
    """Return the note at the beginning of its place in memory, as the crash kernel takes it.

    Empty if it has no name (nobody ever wrote it), or if it says to be longer than its place.
    Source: Linux fs/proc/vmcore.c (update_note_header_size_elf64).
    """
    name_bytes, data_bytes, _ = NHDR.unpack_from(data)
    size = NHDR.size + round_up(name_bytes, 4) + round_up(data_bytes, 4)
    return data[:size] if name_bytes and size <= len(data) else b""


def prstatus(pid: int, registers: dict[str, int]) -> bytes:
    """Return the NT_PRSTATUS note of a CPU, name ``CORE``.

    Parameters
    ----------
    pid : int
        Of the task that ran there.
    registers : dict
        By the names of ``REGISTERS``; those that are not given are 0.

    Raises
    ------
    OutOfRange
        There is no such register.
    """
    if unknown := set(registers) - set(REGISTERS):
        raise OutOfRange(f"registers: no {', '.join(sorted(unknown))} in user_regs_struct")
    data = bytearray(PRSTATUS_BYTES)
    struct.pack_into("<i", data, PRSTATUS_PID, pid)
    values = [registers.get(name, 0) for name in REGISTERS]
    struct.pack_into(f"<{len(values)}Q", data, PRSTATUS_REGS, *values)
    return note(b"CORE", NT_PRSTATUS, bytes(data))


def merged(ranges: Iterable[Segment], n_note_bytes: int) -> list[Segment]:
    """Give each segment its offset in the file, as the crash kernel does.

    Each begins and ends on a page: what the range has of a page that it shares with another comes
    along.
    """
    ranges = list(ranges)
    at = data_offset(len(ranges), n_note_bytes)
    placed = []
    for one in ranges:
        start = round_down(one.paddr, PAGE_BYTES)
        placed.append(replace(one, offset=at + one.paddr - start))
        at += round_up(one.paddr + one.size_bytes, PAGE_BYTES) - start
    return placed


def data_offset(n_segments: int, n_note_bytes: int) -> int:
    """Return where the first segment's bytes begin: behind headers and notes, whole pages each."""
    return notes_offset(n_segments) + round_up(n_note_bytes, PAGE_BYTES)


def notes_offset(n_segments: int) -> int:
    return round_up(EHDR.size + (1 + n_segments) * PHDR.size, PAGE_BYTES)


def headers(segments: Sequence[Segment], notes: bytes) -> bytes:
    """Return the beginning of the file, up to the first segment's bytes.

    Raises
    ------
    OutOfRange
        More segments than ELF has room for.
    """
    n = len(segments)
    if n > MAX_SEGMENTS:
        raise OutOfRange(f"{n} segments: an ELF core has at most {MAX_SEGMENTS}")
    out = bytearray(data_offset(n, len(notes)))
    EHDR.pack_into(
        out, 0, IDENT, ET_CORE, EM_X86_64, EV_CURRENT, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size,
        1 + n, 0, 0, 0,
    )  # fmt: skip
    at = notes_offset(n)
    out[at : at + len(notes)] = notes
    PHDR.pack_into(out, EHDR.size, PT_NOTE, 0, at, 0, 0, len(notes), len(notes), 0)
    for i, s in enumerate(segments, 1):
        PHDR.pack_into(
            out, EHDR.size + i * PHDR.size,
            PT_LOAD, PF_R | PF_W | PF_X, s.offset, s.vaddr, s.paddr, s.in_file, s.size_bytes, 0,
        )  # fmt: skip
    return bytes(out)
