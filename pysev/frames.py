"""Pages in a flow: a few frames in the machine's record, moved by the rules of the hardware.

``declare`` adds a region, a few frames that together stand for a 2 MiB entry; ``happen`` is the
effect that lets an operation happen to one of them: the same operations and the same rules as in
``pysev.memory``, where a frame of the flow stands for a range of a large guest. ``check`` explores
the frames with all else; ``run`` on a ``Memory`` repeats every operation there and compares.

Examples
--------
>>> from pysev.flow import Flow, op, put
>>> flow = Flow("convert")
>>> buffer = declare(flow, "buffer", 1)
>>> flow.globals(answer=0)
>>> boot = flow.agent("boot CPU")
>>> boot.at("ask", op("RMPUPDATE", do=[happen(buffer, 0, rmpupdate(True), flow.g.answer)]))
>>> boot.at("done", ends=True)
>>> flow.compile(1).program.n_roles
1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ghcbcore import frameview
from ghcbcore._cffi import lib
from ghcbcore.frame import Op, apply, n_frames
from ghcbcore.frame import result as take_apart
from ghcbcore.machine import MAX_FRAMES

from .flow import Effect, Field, Flow, FlowError, Value
from .tables.frames import LEAVES, LISTED, MAPPINGS
from .tables.rmp import STATES
from .tables.schema import Code

if TYPE_CHECKING:
    from .machine import Machine
    from .memory import Memory
    from .states import States

__all__ = [
    "FrameRegion",
    "Mismatch",
    "changes",
    "declare",
    "follow",
    "guest_access",
    "happen",
    "host_access",
    "in_words",
    "map_as",
    "pvalidate",
    "rmpupdate",
    "views",
]

ASID = 1
"""The guest's, in a flow."""

VIEW_FIELDS: tuple[tuple[str, str, tuple[Code, ...]], ...] = (
    ("state", "RMP", STATES),
    ("in_use", "in use", ()),
    ("mapping", "page table", MAPPINGS),
    ("leaf", "leaf", LEAVES),
    ("believed", "noted as validated", ()),
    ("listed", "hypervisor's list", LISTED),
    ("key", "written under key slot", ()),
)
"""What a timeline says of a frame: field of VIEW_DTYPE, words for it, names of its values."""

Where = Callable[["Machine"], Sequence[tuple[int, int]]]


class Mismatch(AssertionError):
    """The record and the large memory answered differently: a bug of pysev, not of the flow."""


@dataclass(frozen=True, eq=False)
class FrameRegion:
    """Frames of a flow; made by ``declare``."""

    name: str
    number: int
    words: tuple[tuple[Field, Field], ...]
    where: Where | None

    @property
    def n_frames(self) -> int:
        return len(self.words)


def declare(
    flow: Flow, name: str, n: int, *, start: Sequence[Op] = (), where: Where | None = None
) -> FrameRegion:
    """Declare ``n`` frames, words ``flow.g.<name>_0``, ``flow.g.<name>_0_gfn`` and so on.

    Parameters
    ----------
    start : sequence of ghcbcore.frame.Op
        What has happened to each frame before the flow begins; none of them may be refused.
    where : function, optional
        From a ``Machine`` to one range ``(first, n_pages)`` for each frame: what it stands for in
        ``run``.

    Raises
    ------
    FlowError
        The number of frames is not possible, or ``start`` is refused.
    """
    if not 1 <= n <= MAX_FRAMES:
        raise FlowError(f"{name}: {n} frames; 1 to {MAX_FRAMES} are possible")
    frames = np.zeros((n, 2), np.uint64)
    frames[:, 0] = lib.FRAME_KEY_NONE << lib.FRAME_KEY_SHIFT
    for one in start:
        is_whole = n_frames(one) > 1 and one.kind != lib.FRAME_OP_MAP  # a leaf is each frame's own
        for at in range(1 if is_whole else n):
            answer = take_apart(apply(one, frames, at))
            if answer.kind or answer.code:
                raise FlowError(f"{name}: {one} is refused at the start: {answer}")
    words = []
    for i, (word, gfn) in enumerate(frames.tolist()):
        flow.globals(**{f"{name}_{i}": word, f"{name}_{i}_gfn": gfn})
        words.append((getattr(flow.g, f"{name}_{i}"), getattr(flow.g, f"{name}_{i}_gfn")))
    region = FrameRegion(name, len(flow.regions), tuple(words), where)
    flow.regions.append((region.words[0][0].index, n))
    flow.frame_regions.append(region)
    return region


def happen(region: FrameRegion, at: Value, what: Op, result: Field) -> Effect:
    """Let an operation happen to frame ``at``; ``result`` takes the answer, 0 if nothing refused.

    A ``when`` on ``result`` goes on by it: ``result == 0`` is success without carry.
    """
    return Effect(lib.GHCB_OP_FRAME, result, at, frame=(region.number, what))


def rmpupdate(assigned: bool, *, size: int = 0, immutable: bool = False, asid: int = ASID) -> Op:
    """The hypervisor's RMPUPDATE."""
    value = (lib.FRAME_NEW_ASSIGNED if assigned else 0) | (
        lib.FRAME_NEW_IMMUTABLE if immutable else 0
    )
    return Op(lib.FRAME_OP_RMPUPDATE, size=size, asid=asid if assigned else 0, value=value)


def pvalidate(validate: bool, *, size: int = 0) -> Op:
    """The guest's PVALIDATE, backed by a nested page of the same size."""
    return Op(lib.FRAME_OP_PVALIDATE, size=size, backing=size, asid=ASID, value=int(validate))


def map_as(mapping: int, *, leaf: int = 0) -> Op:
    """The guest's page table: ``FRAME_SHARED``, ``FRAME_PRIVATE`` or ``FRAME_UNMAPPED``."""
    return Op(lib.FRAME_OP_MAP, size=leaf, value=mapping)


def guest_access(flags: int, *, backing: int = 0) -> Op:
    """An access of the SNP guest, ``FRAME_ACCESS_*``."""
    return Op(
        lib.FRAME_OP_GUEST_ACCESS, backing=backing, asid=ASID, value=flags | lib.FRAME_ACCESS_SNP
    )


def host_access(flags: int, *, mapping: int = 0) -> Op:
    """An access of the hypervisor, ``FRAME_ACCESS_*``."""
    return Op(lib.FRAME_OP_HOST_ACCESS, backing=mapping, value=flags)


def views(states: States, region: FrameRegion) -> np.ndarray[Any, np.dtype[np.void]]:
    """Take the frames of a region apart in an array of states: VIEW_DTYPE, (n_states, n_frames)."""
    columns = []
    for word, gfn in region.words:
        columns.append(
            frameview.decode(
                np.ascontiguousarray(getattr(states.g, word.name.removeprefix("g."))),
                np.ascontiguousarray(getattr(states.g, gfn.name.removeprefix("g."))),
                ASID,
            )
        )
    return np.stack(columns, axis=1)


def changes(old: int, new: int) -> list[str]:
    """Say which views of a frame differ between two values of its word, for a timeline.

    Examples
    --------
    >>> changes(lib.FRAME_SHARED << lib.FRAME_MAPPING_SHIFT, 0)
    ['page table shared -> unmapped']
    """
    found = frameview.decode(np.array([old, new], np.uint64), np.zeros(2, np.uint64), ASID)
    out = []
    for name, title, rows in VIEW_FIELDS:
        before, after = (int(value) for value in found[name])
        if before != after:
            names = {row.code: row.name for row in rows}
            out.append(f"{title} {names.get(before, before)} -> {names.get(after, after)}")
    return out


def in_words(word: int) -> str:
    """Say in a few words what page table and RMP have of a frame, for a timeline.

    Examples
    --------
    >>> in_words(lib.FRAME_SHARED << lib.FRAME_MAPPING_SHIFT)
    '[PTE shared, RMP hypervisor]'
    """
    view = frameview.decode(np.array([word], np.uint64), np.zeros(1, np.uint64), ASID)[0]
    mapping = next(row.name for row in MAPPINGS if row.code == int(view["mapping"]))
    state = next(row.name for row in STATES if row.code == int(view["state"]))
    in_use = ", in use" if view["in_use"] else ""
    return f"[PTE {mapping}, RMP {state}{in_use}]"


def follow(flow: Flow, machine: Machine, memory: Memory, trace: Any, record: Any) -> int:
    """Repeat on a large memory what a run did to its frames; return how many pages changed.

    Each operation on a frame happens to the range that the frame stands for, in the order of the
    run, labelled with its time. The answers, and in the end every frame, must be the same.

    Raises
    ------
    Mismatch
        They were not.
    FlowError
        A region does not say what it stands for; or it is used as one page of 2 MiB, and its frames
        do not stand for the pieces of one.
    """
    if memory.shift:
        raise FlowError(f"memory: a shift of {memory.shift:#x}; frames of a flow have none")
    places = [_place(region, machine) for region in flow.frame_regions]
    n_changed = 0
    for event in trace[trace["call"] == lib.GHCB_TRACE_FRAME]:
        number, which = divmod(int(event["msr"]), 1 << lib.GHCB_FRAME_REGION_SHIFT)
        what, at = flow.frame_ops[which], int(event["sw_exit_code"])
        label = f"{int(event['time_ns'])} ns, CPU {int(event['cpu'])}"
        where = places[number][at]
        if n_frames(what) > 1:
            where = _large(flow.frame_regions[number], places[number])
        elif what.backing:
            _large(flow.frame_regions[number], places[number])
        outcome = memory.do(what, where, label)
        n_changed += outcome.n_changed
        want, got = take_apart(int(event["msr_after"])), take_apart(outcome.result)
        if (want.kind, want.code, want.bits) != (got.kind, got.code, got.bits):
            raise Mismatch(f"{flow.frame_regions[number].name}, {label}: {want} and {got}")
    snapshot, records, _ = memory.views()
    for region, place in zip(flow.frame_regions, places, strict=True):
        for (word, gfn), (first, n_pages) in zip(region.words, place, strict=True):
            want_word, want_gfn = int(record[word.index]), int(record[gfn.index])
            same = (records["word"] == want_word) & (records["gfn"] == want_gfn)
            counted = snapshot.count(same.astype(np.uint32), first, n_pages)
            if len(counted) < 2 or int(counted[1]) != n_pages:
                where_text = f"frames {first:#x}+{n_pages:#x}"
                raise Mismatch(f"{region.name}: {where_text} are not {want_word:#x}")
    return n_changed


def _place(region: FrameRegion, machine: Machine) -> list[tuple[int, int]]:
    if region.where is None:
        raise FlowError(f"{region.name}: says not what its frames stand for in a large memory")
    place = [(int(first), int(n)) for first, n in region.where(machine)]
    if len(place) != region.n_frames:
        raise FlowError(f"{region.name}: {len(place)} ranges for {region.n_frames} frames")
    return place


def _large(region: FrameRegion, place: list[tuple[int, int]]) -> tuple[int, int]:
    """The one page of 2 MiB of which the frames are the pieces."""
    first = place[0][0]
    at = first
    for start, n_pages in place:
        if start != at:
            break
        at += n_pages
    if first % lib.FRAME_REGION or at != first + lib.FRAME_REGION:
        raise FlowError(f"{region.name}: its frames are not the pieces of one page of 2 MiB")
    return first, lib.FRAME_REGION
