"""What a run of a crash flow says about the dump: from the record's words to a ``Crash``.

A crash flow has a word ``note`` for each CPU: whether it saved its registers. Flows of
``guest-kdump/*`` say more: keys of writer and reader, whether VMCOREINFO has the mask, which pages
are PageOffline, and how far the dump came. A flow without these words is a guest whose crash
kernel did everything right, encrypted as its host's profile says.
"""

from __future__ import annotations

import numpy as np

from ghcbcore._cffi import lib
from pysev.flow import Flow
from pysev.flows.guest_kdump_variant import FEATURES, Core, Kind
from pysev.frames import ASID
from pysev.layout import Part
from pysev.machine import Machine
from pysev.memmap import format_size
from pysev.simulate import RunResult
from pysev.states import States

from .crash import Crash
from .places import Places, unaccepted_range
from .write import CoreError, NoCore

__all__ = ["NO_CORE", "crash_of"]

NO_CORE = {
    Core.NONE: "the crash kernel never came to the end of guest memory",
    Core.NO_HEADER: "the ELF header is noise, so there is no /proc/vmcore",
    Core.NO_MEMORY: "the crash kernel had no memory left for its swiotlb",
}


KINDS = {lib.GHCB_GUEST_SEV_ES: Kind.SEV_ES, lib.GHCB_GUEST_SNP: Kind.SNP}
"""What a flow without a word for it runs on, by its host's profile; else nothing is encrypted."""


def crash_of(flow: Flow, machine: Machine, result: RunResult) -> Crash:
    """Return what the crash kernel reads after this run.

    Raises
    ------
    CoreError
        The flow is no crash, or its machine has no crash kernel.
    NoCore
        The run came to no dump.
    NoRoom
        The machine's memory has no room for what a kernel keeps of it.
    """
    states = States.of_record(flow.compile(machine.n_cpus), result.record)
    names = {word.name for word in flow.g}
    if "cpu.note" not in {word.name for word in flow.cpu}:
        raise CoreError(f"{flow.name}: no crash flow: no CPU of it saves its registers")
    if Part.CRASH not in machine.layout:
        ram = format_size(machine.layout.memmap.ram_bytes)
        raise CoreError(f"no crash kernel: a guest of {ram} gets no reservation (from 2G on)")

    def word(name: str, otherwise: int) -> int:
        return int(getattr(states.g, name)[0]) if f"g.{name}" in names else otherwise

    core = word("core", Core.WRITTEN)
    if core in NO_CORE:
        raise NoCore(f"{flow.name}: no core: {NO_CORE[Core(core)]}{_violated(result)}")
    regions = {region.name for region in flow.frame_regions}
    layout = machine.layout
    places = Places.of(layout, unaccepted_range(layout) if "lazy" in regions else (0, 0))
    own = (places.vmsas[0],) if word("offline", 0) else ()
    notes = states.cpu.in_core if "cpu.in_core" in {w.name for w in flow.cpu} else states.cpu.note
    kind = KINDS.get(flow.profile.guest)
    if "g.kind" in names:
        kind = Kind(word("kind", 0))
    key = lib.GHCB_KEY_SLOT_NONE if kind is None else ASID
    return Crash(
        places,
        "" if kind is None else FEATURES[kind],
        np.concatenate([np.ones(1, bool), notes[0] == 1]),
        ["panic", *["default_idle"] * (machine.n_cpus - 1)],
        writer=word("writer_key", key),
        reader=word("reader_key", key),
        exports_mask=bool(word("exports_mask", 1)),
        offline=own,
        skipped=own,
        vmsas="vmsa" in regions,
        unshared=kind is Kind.SNP,
        messages=[(PANIC_NS, "Kernel panic - not syncing: sysrq triggered crash")],
    )


PANIC_NS = 1_000_000_000
"""The flow begins with the panic; its log says that this was a second after the start."""


def _violated(result: RunResult) -> str:
    return "".join(f'; "{text}" does not hold' for text in result.texts)
