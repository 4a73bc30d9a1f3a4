"""What the crash kernel reads of a crashed guest: notes, segments, and each known page's bytes.

The registers and pages are those of a run's record (``pysev.vmcore.record``); here they become
what stands in the file. Private pages are plain text through the key under which they were
written, ciphertext through none; pages that are still shared are noise to a reader that takes
them for private. All of that is really encrypted and decrypted. Memory of which the model knows no
bytes reads as zeros, through whatever key: a file of noise could not have holes.

Units: bytes. Source: fact sheet on Linux flows, 6.2 and 6.3; Linux fs/proc/vmcore.c,
arch/x86/kernel/crash_dump_64.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ghcbcore._cffi import lib
from ghcbcore.controller import Controller
from pysev.layout import Part
from pysev.memmap import PAGE_BYTES

from . import elf
from .kernel import INFO_BYTES, NOTE_BYTES, Kernel
from .places import Places
from .vmcoreinfo import vmcoreinfo

__all__ = ["RELEASE", "Core", "Crash"]

RELEASE = "6.1.0-pysev"
VMCOREINFO_NOTE = b"VMCOREINFO"
STACK_BYTES = 16 << 10
KERNEL_CS, KERNEL_SS, FLAGS_IRQS_OFF = 0x10, 0x18, 0x2

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Crash:
    """A guest at the moment when its crash kernel reads it.

    Attributes
    ----------
    places : Places
    features : str
        What is active, as the boot log says it: ``AMD SEV SEV-ES``; empty for none.
    saved : bool array, shape (n_cpus,)
        CPUs that saved their registers into their crash note; CPU 0 is the one that crashed.
    text : sequence of str
        Where each CPU was: a symbol of the text.
    writer, reader : int
        Key slots: of private pages, and of the crash kernel's mapping.
    exports_mask : bool
        VMCOREINFO has ``NUMBER(sme_mask)``.
    offline, skipped : tuple of int
        Addresses of pages that are PageOffline, and of those that nobody can read (VMSAs in use).
    vmsas : bool
        The CPUs but the first have VMSAs in RAM: an SNP guest.
    unshared : bool
        Page tables have the C-bit everywhere: what was shared was made private before the jump.
    messages : sequence of (nanoseconds, text)
        The last lines of the log.
    """

    places: Places
    features: str
    saved: NDArray[np.bool_]
    text: Sequence[str]
    writer: int
    reader: int
    exports_mask: bool = True
    offline: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    vmsas: bool = False
    unshared: bool = False
    messages: Sequence[tuple[int, str]] = ()

    @property
    def n_cpus(self) -> int:
        return self.places.layout.n_cpus


class Core:
    """The file's parts, made of a ``Crash``.

    Parameters
    ----------
    crash : Crash
    seed : int
        Of the memory controller's keys.

    Attributes
    ----------
    kernel : Kernel
    notes : bytes
        PT_NOTE: of each CPU that saved its registers, then VMCOREINFO, as far as legible.
    n_notes : int
        CPUs among them.
    segments : list of elf.Segment
        With their offsets in the merged file.
    """

    def __init__(self, crash: Crash, seed: int = 0) -> None:
        self.crash = crash
        encrypted = crash.writer != lib.GHCB_KEY_SLOT_NONE
        c_bit = 1 << lib.GHCB_KVM_C_BIT if encrypted else 0  # KVM's CPUs: hosts have the same
        self.kernel = kernel = Kernel(crash.places, c_bit, RELEASE, all_private=crash.unshared)
        self._controller = Controller("xex", lib.GHCB_KEY_SLOT_FIRST_ASID, seed)
        self._controller.install(lib.GHCB_KEY_SLOT_FIRST_ASID)
        self._shared = [(r.start, r.end) for r in crash.places.layout.regions if r.shared]
        kernel.log(self._messages())
        info = vmcoreinfo(kernel, exports_mask=crash.exports_mask)
        kernel.image.put(kernel.symbol_gpa("vmcoreinfo_note"), elf.note(VMCOREINFO_NOTE, 0, info))
        self._stacks_and_notes()
        for gpa in crash.offline:
            kernel.set_offline(gpa)
        for gpa in crash.places.layout.ghcb_gpas().tolist():
            kernel.image.put(gpa + lib.GHCB_OFF_PROTOCOL_VERSION, b"\x02\x00")
        if Part.SWIOTLB in crash.places.layout:
            kernel.image.put(crash.places.region(Part.SWIOTLB).start, b"a bounced block\0")
        if crash.vmsas:
            for cpu, gpa in enumerate(range(*crash.places.vmsas, PAGE_BYTES), 1):
                rip = kernel.symbols["default_idle"].to_bytes(8, "little")
                kernel.image.put(gpa + lib.GHCB_OFF_RIP, rip if cpu < crash.n_cpus else bytes(8))
        for gpa in crash.skipped:
            kernel.image.drop(gpa)
        self.notes, self.n_notes = self._notes()
        text = crash.places.region(Part.OLD_TEXT)
        ranges = [elf.Segment(text.start, text.size_bytes, kernel.va(text.start))]
        for start, end in crash.places.ranges:
            ranges.append(elf.Segment(start, end - start, kernel.direct(start)))
        self.segments = elf.merged(ranges, len(self.notes))

    def registers(self, cpu: int) -> dict[str, int]:
        """Return what a CPU had in its registers when the NMI, or the panic, met it."""
        kernel, stack = self.kernel, self.crash.places.region(Part.STACKS)
        top = kernel.direct(stack.start + (cpu + 1) * STACK_BYTES)
        return {
            "ip": kernel.symbols[self.crash.text[cpu]] + 0x20,
            "sp": top - 0x100,
            "bp": top - 0x40,
            "cs": KERNEL_CS,
            "ss": KERNEL_SS,
            "flags": FLAGS_IRQS_OFF,
            "di": cpu,
            "orig_ax": (1 << 64) - 1,
            "gs_base": kernel.direct(kernel.note_gpa(cpu)),
        }

    def _stacks_and_notes(self) -> None:
        stack = self.crash.places.region(Part.STACKS)
        for cpu in range(self.crash.n_cpus):
            top = stack.start + (cpu + 1) * STACK_BYTES
            frame = self.kernel.symbols[self.crash.text[cpu]].to_bytes(8, "little")
            self.kernel.image.put(top - 0x38, frame)
            if self.crash.saved[cpu]:
                note = elf.prstatus(cpu, self.registers(cpu))
                self.kernel.image.put(self.kernel.note_gpa(cpu), note)

    def _notes(self) -> tuple[bytes, int]:
        """Merge the notes as the crash kernel does: from memory, as it sees that memory.

        What was never written has a name of 0 bytes and counts nothing; what is longer than its
        place, as ciphertext is, is dropped.
        """
        kernel = self.kernel
        places = [(kernel.note_gpa(cpu), NOTE_BYTES) for cpu in range(self.crash.n_cpus)]
        of_cpus = [self._note_at(*place) for place in places]
        info = self._note_at(kernel.symbol_gpa("vmcoreinfo_note"), INFO_BYTES)
        return b"".join([*of_cpus, info]), sum(map(bool, of_cpus))

    def _note_at(self, gpa: int, size_bytes: int) -> bytes:
        data = np.frombuffer(self.kernel.image.get(gpa, size_bytes), np.uint8)
        return elf.first_note(self.seen(gpa, data).tobytes())

    def _messages(self) -> list[tuple[int, str]]:
        layout = self.crash.places.layout
        region = layout[Part.CRASH]
        boot = [
            (0, f"Linux version {RELEASE} (pysev)"),
            (0, f"Command line: crashkernel={region.size_bytes >> 20}M"),
            (0, f"crashkernel reserved: {region.start:#018x} - {region.end:#018x}"),
        ]
        if self.crash.features:
            boot.append((0, f"Memory Encryption Features active: {self.crash.features}"))
        return [*boot, *self.crash.messages]

    def runs(self) -> Iterator[tuple[int, U8]]:
        """Yield ``(gpa, bytes)`` of every known page that the file has, as the reader sees it."""
        for gpa, data in self.kernel.image.runs():
            for start, end in _pieces(gpa, gpa + len(data), self._shared):
                yield start, self.seen(start, data[start - gpa : end - gpa])

    def seen(self, gpa: int, data: U8) -> U8:
        """Return what the crash kernel reads where these bytes were written.

        ``gpa`` and the length are multiples of 16; all of it is private, or all was shared.
        """
        shared = any(low <= gpa < high for low, high in self._shared)
        writer = lib.GHCB_KEY_SLOT_NONE if shared else self.crash.writer
        if writer == self.crash.reader:
            return data
        return self._controller.seen(data, gpa, writer, self.crash.reader)


def _pieces(start: int, end: int, cuts: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut a range where others begin and end."""
    edges = sorted({start, end, *(at for cut in cuts for at in cut if start < at < end)})
    yield from pairwise(edges)
