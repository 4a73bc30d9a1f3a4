"""Machines that scenarios run on: how many CPUs, and where everything lies.

The memory map decides: kernel, initrd, crash reservation, jump table and GHCBs are placed by
``pysev.layout`` and the flows take their addresses from there.
"""

from __future__ import annotations

from dataclasses import dataclass

from .layout import Layout, Part, place
from .memmap import MemoryMap

__all__ = ["DEFAULT_MEMORY_BYTES", "Machine"]

DEFAULT_MEMORY_BYTES = 4 << 30

REAL_MODE_ENTRY = 0x10
"""Offset of the SEV-ES entry in the real-mode code, as the flows have it.

Linux's differs by build.
"""


@dataclass(frozen=True)
class Machine:
    """A guest that is going to be kexec'ed.

    Attributes
    ----------
    n_cpus : int
        With the boot CPU.
    layout : Layout
    """

    n_cpus: int
    layout: Layout

    @classmethod
    def of(
        cls, n_cpus: int, memmap: MemoryMap | None = None, *, jump_table: int | None = None
    ) -> Machine:
        """Lay a machine out; 4 GiB of a plain QEMU guest if no map is given.

        Raises
        ------
        OutOfRange
            0 CPUs, or more than GHCB_MAX_CPUS.
        NoRoom
            The map has no room for what a kexec needs.
        """
        memmap = MemoryMap.flat(DEFAULT_MEMORY_BYTES) if memmap is None else memmap
        return cls(n_cpus, place(memmap, n_cpus, jump_table=jump_table))

    @property
    def jump_table_gpa(self) -> int:
        return self.layout[Part.JUMP_TABLE].start if Part.JUMP_TABLE in self.layout else 0

    @property
    def ghcb_gpa(self) -> int:
        """The boot CPU's GHCB page."""
        return self.layout[Part.GHCBS].start

    @property
    def startup_vector(self) -> int:
        """STARTUP vector of the real-mode code: its page number, below 256."""
        return self.layout[Part.REAL_MODE].start >> 12

    @property
    def reset_vector(self) -> int:
        """The dword at offset 0 of the jump table page: CS of the real-mode code << 16 | IP."""
        return (self.layout[Part.REAL_MODE].start >> 4) << 16 | REAL_MODE_ENTRY
