"""``guest-kdump/*``: what the crash kernel of an encrypted guest can read, and what it must not.

Properties, verdicts and sources; what happens is in ``pysev.flows.guest_kdump``. ``pysev vmcore``
writes the file to which a scenario leads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .. import frames
from ..flow import Flow
from ..flows.guest_kdump import GuestKdump
from ..flows.guest_kdump_variant import KDUMP_PATTERN, Core, Kind, Variant
from ..frames import FrameRegion
from ..machine import Machine
from ..states import States
from .registry import Scenario, register

# -- properties --------------------------------------------------------------------------------

NO_FAULT = "the reader lives"
NOTES_FIRST = "registers saved before counting down"
ALL_NOTES = "a note for every CPU"
WRITTEN = "a core is written"
LEGIBLE = "private memory is legible"
SHARED_LEGIBLE = "shared memory is legible"
CRASH = "crash CPU"


def _notes_first(s: States, n_others: int) -> Any:
    counted = np.where(s.g.asked == 1, n_others - s.g.waiting.astype(int), 0)
    return s.cpu.note.sum(axis=1).astype(int) >= counted


def _legible(s: States, region: FrameRegion, key: int) -> Any:
    """What was read of these pages was read through the key under which they were written."""
    return (s.g.core != Core.WRITTEN) | (frames.views(s, region)[:, 0]["key"] == key)


def _is_at(s: States, label: str) -> Any:
    return s.at(CRASH, label)


def _flow(variant: Variant, name: str, shared_legible: bool) -> Callable[[Machine], Flow]:
    def build(machine: Machine) -> Flow:
        made = GuestKdump(variant, machine, name)
        flow = made.build()
        v, n_others = made.v, machine.n_cpus - 1
        flow.always(NO_FAULT, lambda s: s.g.dead == 0, "no page is read that kills the reader")
        flow.always(
            NOTES_FIRST,
            partial(_notes_first, n_others=n_others),
            "a CPU that has counted down has saved its registers",
        )
        flow.at_end(
            ALL_NOTES,
            lambda s: (s.g.core != Core.WRITTEN) | (s.cpu.in_core == 1).all(axis=1),
            "the core has the registers of every CPU",
        )
        flow.at_end(
            LEGIBLE,
            partial(_legible, region=made.memory, key=v.reader_key),
            "private memory is read through the key under which it was written",
        )
        if shared_legible:
            flow.at_end(
                SHARED_LEGIBLE,
                partial(_legible, region=made.shared, key=v.reader_key),
                "pages that were shared are read as they were written",
            )
        flow.at_end(WRITTEN, lambda s: s.g.core == Core.WRITTEN, "the dump comes to its end")
        flow.sometimes("the tool walks page tables", lambda s: s.at(CRASH, "tables"))
        if n_others:
            flow.sometimes(
                "an AP has saved its registers or counted down, not both",
                lambda s: s.at("AP", "second").any(axis=1),
            )
        for label in ("VMSA", "buffer", "unaccepted"):
            if f"read {label}" in made.boot.labels:
                flow.sometimes(f"reads {label}", partial(_is_at, label=f"have {label}"))
        flow.count_cpus("halted", lambda s: s.at("AP", "halt", "halted"))
        return flow

    return build


# -- the library -------------------------------------------------------------------------------

KDUMP = "Linux arch/x86/kernel/{crash,reboot}.c"
VMCORE = "Linux fs/proc/vmcore.c, arch/x86/kernel/crash_dump_64.c"
VMSA = 'Linux d2062cc1b1c3 ("x86/sev: Do not touch VMSA pages during SNP guest memory kdump")'
UNSHARE = 'Linux 82b7f88f2316 ("x86/sev: Make sure pages are not skipped during kdump")'
LAZY = "Linux drivers/firmware/efi/unaccepted_memory.c (its vmcore callback)"
PREPARED = "Linux 992b649a3f01 (SME), 4eb5fec31e61 (SEV), v5.3"
MASK = "Linux arch/x86/kernel/vmcore_info_64.c; makedumpfile arch/x86_64.c"
REGEX = "kdump-utils kdump-lib.sh"

IN_TIME = "every CPU takes the crash NMI within the second for which the crashing one waits"
LEFT = "a destroyed vCPU has left guest mode when the VMGEXIT returns"
HOST = "the host answers #NPF on a page that is its own by making it private, as KVM does"
NEEDS = "what kdump-utils reserves without encryption is what the crash kernel needs without it"
WHOLE = "a frame stands for all pages of its kind"


def _add(
    short: str,
    summary: str,
    variant: Variant,
    expected: str,
    because: str,
    story: str,
    source: str,
    *assumes: str,
    from_cpus: int = 1,
    shared_legible: bool = False,
) -> None:
    name = f"guest-kdump/{short}"
    taken = () if variant.deaf else (IN_TIME,)
    build = _flow(variant, name, shared_legible)
    register(
        Scenario(
            name,
            summary,
            expected,
            because,
            story,
            source,
            build,
            (*taken, *assumes),
            from_cpus=from_cpus,
        )
    )


_SNP = partial(Variant, kind=Kind.SNP)

_add(
    "sev-es",
    "an SEV-ES guest: notes of all CPUs, private memory as plain text",
    Variant(shared="left"),
    "holds",
    "",
    "each CPU saves its registers before it counts down; nothing is unshared and nothing faults",
    f"{KDUMP}; {VMCORE}",
)
_add(
    "sev-es-shared-noise",
    "an SEV-ES guest: what was shared is read with the C-bit",
    Variant(shared="left"),
    "violated",
    SHARED_LEGIBLE,
    "formerly shared pages are read with the C-bit set: garbage, and no fault that would say so",
    VMCORE,
    shared_legible=True,
)
_add(
    "nmi-timeout",
    "a CPU does not take the crash NMI within a second",
    Variant(deaf=True),
    "violated",
    ALL_NOTES,
    "the crashing CPU goes on after 1 s: the crash kernel starts while that CPU still runs, and "
    "its note is empty",
    KDUMP,
    from_cpus=2,
)
_add(
    "count-before-save",
    "an AP that would count down first and save its registers then",
    Variant(saves="last"),
    "violated",
    NOTES_FIRST,
    "the crashing CPU no longer waits for a CPU that has not saved its registers yet",
    f"derived: {KDUMP} saves first",
    from_cpus=2,
)
_add(
    "snp",
    "an SNP guest as mainline does it: APs destroyed, all made private, unaccepted left out",
    _SNP(vmsa="destroyed", shared="unshared", unaccepted="skipped"),
    "holds",
    "",
    "no page is left that the reader must not touch",
    f"{VMSA}; {UNSHARE}; {LAZY}",
    LEFT,
    HOST,
    WHOLE,
)
_add(
    "snp-crash-on-ap",
    "the crash is on an AP: its own VMSA is PageOffline, and makedumpfile leaves it out",
    _SNP(vmsa="offline", shared="unshared"),
    "holds",
    "",
    "the VMSA of the CPU that runs the crash kernel stays in use and is not read",
    VMSA,
    HOST,
    WHOLE,
)
_add(
    "snp-vmsa-busy",
    "APs are not destroyed: the dump reads the VMSA of a halted AP",
    _SNP(vmsa="busy", shared="unshared"),
    "violated",
    NO_FAULT,
    "a VMSA page that is in use cannot be read: #NPF without end",
    VMSA,
    HOST,
    from_cpus=2,
)
_add(
    "snp-vmsa-cp",
    "as snp-crash-on-ap, but cp copies /proc/vmcore",
    _SNP(vmsa="offline", shared="unshared", reader="cp"),
    "violated",
    NO_FAULT,
    "PageOffline is honoured by makedumpfile, not by the kernel that reads: cp still hangs",
    f"derived from {VMSA}",
    HOST,
    from_cpus=2,
)
_add(
    "snp-vmsa-leaked",
    "the destroyed vCPU is still in guest mode when its tag is to be cleared",
    _SNP(vmsa="leaked", shared="unshared"),
    "violated",
    NO_FAULT,
    "RMPADJUST finds the page in use, the kernel leaks it, but it is not PageOffline: read, and "
    "#NPF without end",
    f"derived from {VMSA}: the page that is leaked is not marked",
    HOST,
    from_cpus=2,
)
_add(
    "snp-shared-skipped",
    "the leaf just below a GHCB is not made private",
    _SNP(vmsa="destroyed", shared="skipped"),
    "violated",
    NO_FAULT,
    "a page that stayed shared is read as private: #VC 0x404, page not validated",
    UNSHARE,
    LEFT,
    HOST,
)
_add(
    "snp-half-converted",
    "the NMI meets a CPU between its page-state change and its page table",
    _SNP(shared="half"),
    "violated",
    NO_FAULT,
    "PTE private, RMP shared: the walk over page tables does not see it, the reader meets it",
    "derived from Linux arch/x86/coco/sev/core.c: private to shared is RMP first, then PTE",
    HOST,
    from_cpus=2,
)
_add(
    "snp-unaccepted-read",
    "the dump reads memory that was never accepted",
    _SNP(vmsa="destroyed", shared="unshared", unaccepted="read"),
    "violated",
    NO_FAULT,
    "unaccepted memory is listed as System RAM, and reading it is #VC 0x404",
    LAZY,
    LEFT,
    HOST,
)
_add(
    "sme",
    "an SME host whose crash kernel has SME on: ELF header unencrypted, old memory encrypted",
    Variant(kind=Kind.SME),
    "holds",
    "",
    "the crash image is loaded decrypted, old memory is mapped encrypted",
    PREPARED,
)
_add(
    "sme-off-in-crash-kernel",
    "an SME host whose crash kernel was booted without memory encryption",
    Variant(kind=Kind.SME, reads_encrypted=False),
    "violated",
    LEGIBLE,
    "crash kernel and crashed kernel must agree on encryption: without it ciphertext is read",
    PREPARED,
)
_add(
    "elfcorehdr-as-sme",
    "a guest reads its ELF header as an SME host would: unencrypted",
    Variant(header_encrypted=False),
    "violated",
    WRITTEN,
    "in a guest the crash image is encrypted: without the C-bit its header is noise",
    PREPARED,
)
_add(
    "elfcorehdr-as-sev",
    "an SME host reads its ELF header as a guest would: encrypted",
    Variant(kind=Kind.SME, header_encrypted=True),
    "violated",
    WRITTEN,
    "under SME the crash image was loaded decrypted: with the C-bit its header is noise",
    PREPARED,
)
_add(
    "mask-missing",
    "VMCOREINFO without NUMBER(sme_mask)",
    Variant(exports_mask=False),
    "violated",
    WRITTEN,
    "makedumpfile leaves the C-bit in the entries of page tables and looks for memory up there",
    MASK,
)
_add(
    "mask-ignored",
    "a tool that does not look at NUMBER(sme_mask)",
    Variant(reader="drgn", strips_mask=False),
    "violated",
    WRITTEN,
    "a fixed mask of bits 12 to 51 leaves the C-bit in the address",
    "derived from drgn libdrgn/arch_x86_64.c; so found with drgn 0.3.0 (tests)",
)
_add(
    "reservation-sev",
    "the reservation of an SEV guest: kdump-utils finds AMD SEV and adds 64 MiB",
    Variant(kind=Kind.SEV, pattern=KDUMP_PATTERN),
    "holds",
    "",
    "the swiotlb of the crash kernel fits",
    REGEX,
    NEEDS,
)
_add(
    "reservation-sev-es",
    "the reservation of an SEV-ES guest: the line does not end in AMD SEV",
    Variant(pattern=KDUMP_PATTERN),
    "violated",
    WRITTEN,
    '"AMD SEV SEV-ES" is not matched, so that the 64 MiB are missing: out of memory',
    f"derived from {REGEX}",
    NEEDS,
)
_add(
    "reservation-any",
    "as reservation-sev-es, but whatever follows AMD SEV",
    Variant(pattern=r"AMD (SME|SEV)\b"),
    "holds",
    "",
    "the line of an SEV-ES guest is matched too",
    f"derived from {REGEX}",
    NEEDS,
)
