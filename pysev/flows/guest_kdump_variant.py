"""What scenarios of ``guest-kdump/*`` differ in: the machine, the design, what becomes of the dump.

The flow that these words describe is ``pysev.flows.guest_kdump``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from ghcbcore._cffi import lib

from ..frames import ASID

__all__ = ["FEATURES", "KDUMP_PATTERN", "Core", "Kernel", "Kind", "Variant"]


class Kernel(enum.IntEnum):
    """``g.kernel``: which kernel the crashing CPU runs."""

    OLD = 0
    CRASH = 1


class Core(enum.IntEnum):
    """``g.core``: what became of the dump."""

    NONE = 0
    NO_HEADER = 1
    NO_MEMORY = 2
    LOST_IN_TABLES = 3
    WRITTEN = 4


class Kind(enum.IntEnum):
    """``g.kind``: what the machine is."""

    SME = 0
    SEV = 1
    SEV_ES = 2
    SNP = 3


FEATURES: Final = {
    Kind.SME: "AMD SME",
    Kind.SEV: "AMD SEV",
    Kind.SEV_ES: "AMD SEV SEV-ES",
    Kind.SNP: "AMD SEV SEV-ES SEV-SNP",
}
"""What the boot log says is active, by kind of machine. Source: Linux mm/mem_encrypt.c."""

KDUMP_PATTERN: Final = r"AMD (SME|SEV)$"
"""What kdump-utils looks for at the end of that line before it reserves 64 MiB more."""


@dataclass(frozen=True)
class Variant:
    """What distinguishes one scenario of the family from another."""

    kind: Kind = Kind.SEV_ES
    deaf: bool = False  # a CPU has its NMIs blocked for longer than the crashing CPU waits
    saves: str = "first"  # an AP saves its registers first, or counts down first
    vmsa: str = ""  # SNP: destroyed, busy, offline (the crashing CPU's own), leaked
    reader: str = "makedumpfile"  # or cp, which knows nothing of PageOffline
    shared: str = ""  # a page that is shared: left (SEV-ES), unshared, skipped (K1), half
    unaccepted: str = ""  # a page that nobody accepted: skipped, read
    reads_encrypted: bool = True  # the crash kernel maps old memory with the C-bit
    header_encrypted: bool | None = None  # and elfcorehdr so; None: as the rule says
    exports_mask: bool = True  # VMCOREINFO has NUMBER(sme_mask)
    strips_mask: bool = True  # and the tool looks at it
    pattern: str = ""  # how the size of the reservation is found; empty: not asked

    @property
    def is_snp(self) -> bool:
        return self.kind == Kind.SNP

    @property
    def key(self) -> int:
        """Key slot of the kernel's private memory."""
        return int(lib.GHCB_KEY_SLOT_SME) if self.kind == Kind.SME else ASID

    @property
    def reader_key(self) -> int:
        return self.key if self.reads_encrypted else int(lib.GHCB_KEY_SLOT_NONE)

    @property
    def header_key(self) -> int:
        """A crash image is loaded decrypted under SME, encrypted in a guest."""
        return int(lib.GHCB_KEY_SLOT_NONE) if self.kind == Kind.SME else self.key
