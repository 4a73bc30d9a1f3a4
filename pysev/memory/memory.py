"""All of a guest's memory: operations in the words of the field, and the questions one asks.

Frames are named by number (4 KiB each): one number, ``(first, n)`` for a range, or an array. The guest's
frame numbers are the system's unless ``shift`` says how far apart they are.

A refusal by the hardware is an ``Outcome``, not an exception; bad arguments are exceptions that name
the element, and what stands before it has happened.

Source of the rules: ``ghcbcore/frame_rule.h``, ``frame_access.h``, ``frame_view.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ghcbcore import frameview, psc
from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from ghcbcore.frame import Op
from ghcbcore.ledger import Done, Ledger, Snapshot
from pysev.memmap import MemoryMap, parse_size

from . import words

__all__ = ["Disagreement", "Event", "Memory", "Outcome", "Page", "Run"]

U64: TypeAlias = NDArray[np.uint64]
Frames: TypeAlias = "int | tuple[int, int] | NDArray[Any] | str"
Test: TypeAlias = Callable[[NDArray[np.void]], NDArray[np.bool_]]

MAX_RUNS = 1 << 20
SIZES = {"4K": lib.RMP_PAGE_4K, "2M": lib.RMP_PAGE_2M}
MAPPINGS_OF_HOST = {"4K": 0, "2M": 1, "1G": 2}
ACCESS_FLAGS = {
    "write": lib.FRAME_ACCESS_WRITE,
    "fetch": lib.FRAME_ACCESS_FETCH,
    "user": lib.FRAME_ACCESS_USER,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation came to.

    ``n_done`` frames (of an array: elements) were done and ``n_changed`` frames changed; ``refused_at`` is the
    frame that refused, ``refusal`` why in words, both empty if none did. ``result`` is the raw answer.
    """

    event: int
    n_done: int
    n_changed: int
    result: int
    refused_at: int | None
    refusal: str

    def __bool__(self) -> bool:
        return self.refused_at is None


@dataclass(frozen=True, slots=True)
class Event:
    """One call: its number, what was done, to which frames, what the caller said of it."""

    number: int
    operation: str
    frames: str
    label: str

    def __str__(self) -> str:
        text = f"event {self.number}: {self.operation} {self.frames}"
        return f"{text} ({self.label})" if self.label else text


@dataclass(frozen=True, slots=True)
class Page:
    """One frame, all views, and since which event each is as it is (0: from the start)."""

    frame: int
    state: str
    asid: int
    gfn: int
    large: bool
    vmsa: bool
    validated: bool
    mapping: str
    leaf: str
    believed: bool
    listed: str
    key: str
    disagreements: tuple[str, ...]
    since: dict[str, int]
    since_is_exact: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring frames that are alike in what was asked."""

    first: int
    n_pages: int
    what: str


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Neighbouring frames in which two views disagree in one way, and the last event that touched them."""

    kind: str
    first: int
    n_pages: int
    what: str
    since: int


class Memory:
    """The memory of a guest: ``size`` is bytes, text such as ``"16T"``, or a ``MemoryMap``.

    Parameters
    ----------
    size : int, str or MemoryMap
        Of a map, up to the end of its RAM; ``"ram"`` as frames then names its RAM alone.
    asid : int
        The guest's.
    covered : int, optional
        Frames from this one on have no RMP entry.
    shift : int
        Guest frame number less system frame number.
    max_bytes : int, optional
        See ``ghcbcore.ledger.Ledger``.
    keep_validated : bool
        RMPUPDATE with nothing new keeps what was validated (which hardware does is not known).
    log : bool
        Keep a text for each event; without it ``events`` stays empty.
    """

    def __init__(
        self,
        size: int | str | MemoryMap,
        *,
        asid: int = 1,
        covered: int | None = None,
        shift: int = 0,
        max_asid: int = 1006,
        max_bytes: int | None = None,
        keep_validated: bool = False,
        log: bool = True,
    ) -> None:
        self.map = size if isinstance(size, MemoryMap) else None
        if isinstance(size, MemoryMap):
            n_bytes = size.ram_end
        else:
            n_bytes = parse_size(size) if isinstance(size, str) else size
        page = lib.GHCB_PAGE_SIZE
        if not isinstance(n_bytes, int) or n_bytes <= 0 or n_bytes % page:
            raise OutOfRange(f"size = {size!r}: must be a positive multiple of {page} bytes")
        if not 0 < asid <= max_asid:
            raise OutOfRange(f"asid = {asid}: must be 1 to {max_asid}")
        self.asid = asid
        self.shift = shift % (lib.FRAME_GFN_MASK + 1)
        rules = int(keep_validated) << lib.FRAME_RULE_KEEP_VALIDATED
        self.ledger = Ledger(
            n_bytes // page, covered=covered, max_asid=max_asid, rules=rules, max_bytes=max_bytes
        )
        self.events: dict[int, Event] = {}
        self._log = log

    @property
    def n_pages(self) -> int:
        """Frames that there are."""
        return self.ledger.n_pages

    @property
    def n_bytes(self) -> int:
        """Bytes that the ledger holds, not those of the guest."""
        return self.ledger.n_bytes

    # Doing -----------------------------------------------------------------------------------------

    def do(self, op: Op, frames: Frames, label: str = "") -> Outcome:
        """Let any operation happen; the methods below fill an ``Op`` in."""
        ledger = self.ledger
        if isinstance(frames, str):
            firsts, lengths = self.frames_of(frames)
            done = ledger.spans(op, firsts, lengths)
            return self._outcome(op, done, _nth(firsts, lengths, done.n_done), frames, label)
        if isinstance(frames, tuple):
            first, n_pages = frames
            done = ledger.range(op, first, n_pages)
            return self._outcome(op, done, first + done.n_done, f"{first:#x}+{n_pages:#x}", label)
        if isinstance(frames, np.ndarray):
            numbers = _as_frames(frames)
            done = ledger.array(op, numbers)
            at = int(numbers[done.n_done]) if done.n_done < len(numbers) else 0
            return self._outcome(op, done, at, f"{len(numbers)} frames", label)
        # one frame, and of a 2 MiB operand the first of it
        done = ledger.array(op, np.array([_one(frames)], np.uint64))
        return self._outcome(op, done, int(frames), f"{frames:#x}", label)

    def spans(self, op: Op, firsts: U64, lengths: U64, label: str = "") -> Outcome:
        """Let an operation happen to several ranges, as one event."""
        done = self.ledger.spans(op, firsts, lengths)
        return self._outcome(
            op, done, _nth(firsts, lengths, done.n_done), f"{len(firsts)} ranges", label
        )

    def frames_of(self, name: str) -> tuple[U64, U64]:
        """Return the ranges that ``"all"`` or, of a memory map, ``"ram"`` stands for."""
        if name == "all":
            return np.zeros(1, np.uint64), np.array([self.n_pages], np.uint64)
        if name != "ram" or self.map is None:
            raise OutOfRange(f"frames {name!r}: must be 'all' or, of a memory map, 'ram'")
        page = lib.GHCB_PAGE_SIZE
        ranges = self.map.ram_ranges()
        firsts = np.array([start // page for start, _ in ranges], np.uint64)
        lengths = np.array([(end - start) // page for start, end in ranges], np.uint64)
        return firsts, lengths

    def _outcome(self, op: Op, done: Done, at: int, frames: str, label: str) -> Outcome:
        refusal = words.explain_result(done.result)
        if self._log:
            name = words.OPERATION_NAMES[op.kind]
            self.events[done.event] = Event(done.event, name, frames, label)
        return Outcome(
            done.event,
            done.n_done,
            done.n_changed,
            done.result,
            at if refusal else None,
            refusal,
        )

    # The guest's side

    def map_as(self, frames: Frames, mapping: str, *, leaf: str = "4K", label: str = "") -> Outcome:
        """Change the guest's page table: ``"shared"``, ``"private"`` or ``"unmapped"``."""
        value = words.number_of(mapping, words.MAPPING_NUMBERS, "mapping")
        size = words.number_of(leaf, words.LEAF_NUMBERS, "leaf")
        return self.do(Op(lib.FRAME_OP_MAP, size=size, value=value), frames, label)

    def pvalidate(
        self,
        frames: Frames,
        validate: bool = True,
        *,
        size: str = "4K",
        backing: str | None = None,
        vmpl: int = 0,
        label: str = "",
    ) -> Outcome:
        """PVALIDATE; what succeeds the guest notes as well. ``backing``: the nested page, as ``size``."""
        op = Op(
            lib.FRAME_OP_PVALIDATE,
            size=words.number_of(size, SIZES, "size"),
            backing=words.number_of(backing or size, SIZES, "backing"),
            asid=self.asid,
            vmpl=vmpl,
            gfn=self.shift,
            value=int(validate),
        )
        return self.do(op, frames, label)

    def believe(self, frames: Frames, validated: bool = True, *, label: str = "") -> Outcome:
        """Only the guest's note of what it has validated."""
        return self.do(Op(lib.FRAME_OP_BELIEVE, value=int(validated)), frames, label)

    def rmpadjust(
        self,
        frames: Frames,
        target: int,
        rights: int,
        *,
        vmsa: bool = False,
        size: str = "4K",
        backing: str | None = None,
        vmpl: int = 0,
        label: str = "",
    ) -> Outcome:
        """RMPADJUST: rights (``1 << RMP_RIGHT_*``) of VMPL ``target``, and at VMPL 0 the VMSA bit."""
        op = Op(
            lib.FRAME_OP_RMPADJUST,
            size=words.number_of(size, SIZES, "size"),
            backing=words.number_of(backing or size, SIZES, "backing"),
            asid=self.asid,
            vmpl=vmpl,
            target=target,
            gfn=self.shift,
            value=rights | (lib.FRAME_ADJUST_VMSA if vmsa else 0),
        )
        return self.do(op, frames, label)

    def guest_access(
        self,
        frames: Frames,
        *what: str,
        c_bit: bool = True,
        snp: bool = True,
        store: bool = False,
        backing: str = "4K",
        vmpl: int = 0,
        label: str = "",
    ) -> Outcome:
        """A read of the guest, or with ``"write"``, ``"fetch"``, ``"user"`` another access.

        With ``store`` what it writes becomes the content.
        """
        op = Op(
            lib.FRAME_OP_GUEST_ACCESS,
            backing=words.number_of(backing, SIZES, "backing"),
            asid=self.asid,
            vmpl=vmpl,
            gfn=self.shift,
            value=_access(what)
            | (lib.FRAME_ACCESS_C if c_bit else 0)
            | (lib.FRAME_ACCESS_SNP if snp else 0)
            | (lib.FRAME_ACCESS_STORE if store else 0),
        )
        return self.do(op, frames, label)

    # The hypervisor's side

    def rmpupdate(
        self,
        frames: Frames,
        assigned: bool = True,
        *,
        immutable: bool = False,
        asid: int | None = None,
        size: str = "4K",
        gfn: int | None = None,
        label: str = "",
    ) -> Outcome:
        """RMPUPDATE. Default ASID: the guest's if assigned, else 0.

        ``gfn``: with an ASID the distance of guest frame numbers from system ones (default: this
        memory's), else the GPA field as it is stored.
        """
        whose = (self.asid if assigned else 0) if asid is None else asid
        op = Op(
            lib.FRAME_OP_RMPUPDATE,
            size=words.number_of(size, SIZES, "size"),
            asid=whose,
            gfn=(self.shift if whose else 0) if gfn is None else gfn,
            value=(lib.FRAME_NEW_ASSIGNED if assigned else 0)
            | (lib.FRAME_NEW_IMMUTABLE if immutable else 0),
        )
        return self.do(op, frames, label)

    def psmash(self, frames: Frames, *, label: str = "") -> Outcome:
        """PSMASH of the 2 MiB entries that begin at these frames."""
        return self.do(Op(lib.FRAME_OP_PSMASH), frames, label)

    def list_as(self, frames: Frames, listed: str, *, label: str = "") -> Outcome:
        """The hypervisor's software notes ``"shared"``, ``"private"`` or ``"nothing"``."""
        value = words.number_of(listed, words.LISTED_NUMBERS, "listed")
        return self.do(Op(lib.FRAME_OP_LIST, value=value), frames, label)

    def host_access(
        self,
        frames: Frames,
        *what: str,
        c_bit: bool = False,
        store: bool = False,
        mapping: str = "4K",
        label: str = "",
    ) -> Outcome:
        """A read of the hypervisor, or with ``"write"``, ``"user"`` another; ``mapping``: 4K, 2M or 1G."""
        op = Op(
            lib.FRAME_OP_HOST_ACCESS,
            backing=words.number_of(mapping, MAPPINGS_OF_HOST, "mapping"),
            value=_access(what)
            | (lib.FRAME_ACCESS_C if c_bit else 0)
            | (lib.FRAME_ACCESS_STORE if store else 0),
        )
        return self.do(op, frames, label)

    def dma(self, frames: Frames, *what: str, store: bool = False, label: str = "") -> Outcome:
        """A read of a device, or with ``"write"`` its write."""
        value = _access(what) | (lib.FRAME_ACCESS_STORE if store else 0)
        return self.do(Op(lib.FRAME_OP_DMA, value=value), frames, label)

    def vmrun(self, frames: Frames, *, label: str = "") -> Outcome:
        """A CPU takes VMCBs or VMSAs into use."""
        return self.do(Op(lib.FRAME_OP_VMRUN), frames, label)

    def vmexit(self, frames: Frames, *, label: str = "") -> Outcome:
        """And has left them."""
        return self.do(Op(lib.FRAME_OP_VMEXIT), frames, label)

    def firmware(
        self, command: str, frames: Frames, *, label: str = "", **operands: int
    ) -> Outcome:
        """A page command of firmware by its name in ``pysev.tables.frames``, e.g. ``"SNP_PAGE_RECLAIM"``.

        ``operands`` are those of ``ghcbcore.frame.Op``.
        """
        for kind, name in words.OPERATION_NAMES.items():
            if name == command and kind >= lib.FRAME_OP_GCTX_CREATE:
                return self.do(Op(kind, **operands), frames, label)
        raise OutOfRange(f"command {command!r}: firmware has no such page command")

    # Messages

    def psc(self, entries: NDArray[np.void] | NDArray[np.uint64], *, label: str = "") -> Outcome:
        """What a hypervisor does about page-state changes: RMPUPDATE and its list, PSMASH, UNSMASH.

        Parameters
        ----------
        entries : array of ghcbcore.psc.ENTRY_DTYPE, or uint64 as they lie in the buffer
            In their order; ``gfn`` counts the guest's frames.

        Returns
        -------
        Outcome
            ``n_done`` counts entries.
        """
        if entries.dtype == np.uint64:
            entries = psc.decode_entries(np.ascontiguousarray(entries))
        private, shared = lib.GHCB_PSC_OP_PRIVATE, lib.GHCB_PSC_OP_SHARED
        n_changed = 0
        last = Outcome(self.ledger.event, 0, 0, 0, None, "")
        for i, entry in enumerate(entries):
            gfn, op, size = int(entry["gfn"]), int(entry["op"]), int(entry["size"])
            frame = (gfn - self.shift) & lib.FRAME_GFN_MASK
            name = "2M" if size else "4K"
            if op in (private, shared):
                last = self.rmpupdate(frame, op == private, size=name, label=label)
                if last:
                    n_pages = lib.FRAME_REGION if size else 1
                    self.list_as(
                        (frame, n_pages), "private" if op == private else "shared", label=label
                    )
            elif op == lib.GHCB_PSC_OP_PSMASH:
                last = self.psmash(frame, label=label)
            else:
                last = self.firmware("SNP_PAGE_UNSMASH", frame, label=label)
            n_changed += last.n_changed
            if not last:
                return Outcome(last.event, i, n_changed, last.result, frame, last.refusal)
        return Outcome(last.event, len(entries), n_changed, last.result, None, "")

    def map_gpa_range(self, gpa: int, n_pages: int, attributes: int, *, label: str = "") -> Outcome:
        """What a VMM does about KVM_HC_MAP_GPA_RANGE: its list alone. ``gpa`` in bytes."""
        if gpa % lib.GHCB_PAGE_SIZE:
            raise OutOfRange(f"gpa = {gpa:#x}: must be a multiple of {lib.GHCB_PAGE_SIZE:#x}")
        first = (gpa // lib.GHCB_PAGE_SIZE - self.shift) & lib.FRAME_GFN_MASK
        listed = "private" if attributes & lib.GHCB_MAP_GPA_ENCRYPTED else "shared"
        return self.list_as((first, n_pages), listed, label=label)

    # What Linux does as a guest, both sides

    def share(self, frames: Frames, *, leaf: str = "4K", label: str = "") -> Outcome:
        """set_memory_decrypted: rescind, page-state change, the host's list, then the page table."""
        steps = (
            lambda: self.pvalidate(frames, False, size=leaf, label=label),
            lambda: self.rmpupdate(frames, False, size=leaf, label=label),
            lambda: self.list_as(frames, "shared", label=label),
            lambda: self.map_as(frames, "shared", leaf=leaf, label=label),
        )
        return _all(steps)

    def make_private(self, frames: Frames, *, leaf: str = "4K", label: str = "") -> Outcome:
        """set_memory_encrypted: the page table, page-state change, the host's list, then validate."""
        steps = (
            lambda: self.map_as(frames, "private", leaf=leaf, label=label),
            lambda: self.rmpupdate(frames, True, size=leaf, label=label),
            lambda: self.list_as(frames, "private", label=label),
            lambda: self.pvalidate(frames, True, size=leaf, label=label),
        )
        return _all(steps)

    # Asking ----------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The memory as it is now; cheap."""
        return self.ledger.snapshot()

    def page(self, frame: int) -> Page:
        """Everything about one frame."""
        one = self.ledger.frame(frame)
        view = frameview.decode(
            np.array([one.word], np.uint64),
            np.array([one.gfn], np.uint64),
            self.asid,
            np.array([frame], np.uint64),
        )[0]
        return Page(
            frame=frame,
            state=words.STATE_NAMES[int(view["state"])],
            asid=int(view["asid"]),
            gfn=int(view["gfn"]),
            large=bool(view["large"]),
            vmsa=bool(view["vmsa"]),
            validated=bool(view["validated"]),
            mapping=words.MAPPING_NAMES[int(view["mapping"])],
            leaf=words.LEAF_NAMES[int(view["leaf"])],
            believed=bool(view["believed"]),
            listed=words.LISTED_NAMES[int(view["listed"])],
            key=words.key_name(int(view["key"])),
            disagreements=tuple(words.disagreements_of(int(view["differ"]))),
            since={
                name: words.event_number(n)
                for name, n in zip(words.VIEW_NAMES, one.since, strict=True)
            },
            since_is_exact=not any(words.is_earlier(n) for n in one.since),
        )

    def views(
        self, at: Snapshot | None = None
    ) -> tuple[Snapshot, NDArray[np.void], NDArray[np.void]]:
        """Return a snapshot, its records and, for each of them, the views taken apart."""
        at = at or self.snapshot()
        records = at.records()
        words_, gfns = np.ascontiguousarray(records["word"]), np.ascontiguousarray(records["gfn"])
        return at, records, frameview.decode(words_, gfns, self.asid)

    def counts(self, field: str = "state", at: Snapshot | None = None) -> dict[str, int]:
        """Count bytes by a field of the views: ``state``, ``mapping``, ``listed``, ``key``, ``leaf``."""
        names = {
            "state": words.STATE_NAMES.__getitem__,
            "mapping": words.MAPPING_NAMES.__getitem__,
            "listed": words.LISTED_NAMES.__getitem__,
            "leaf": words.LEAF_NAMES.__getitem__,
            "key": words.key_name,
        }
        if field not in names:
            raise OutOfRange(f"field {field!r}: must be one of {', '.join(names)}")
        at, records, views = self.views(at)
        pages = at.count(views[field].astype(np.uint32))
        page = lib.GHCB_PAGE_SIZE
        return {names[field](i): int(n) * page for i, n in enumerate(pages.tolist()) if n}

    def runs(
        self,
        test: Test,
        *,
        frames: tuple[int, int] | None = None,
        max_runs: int = MAX_RUNS,
        at: Snapshot | None = None,
    ) -> list[tuple[int, int]]:
        """List ``(first, n_pages)`` of neighbouring frames that pass a test.

        Parameters
        ----------
        test : function
            From an array of ``ghcbcore.frameview.VIEW_DTYPE`` to an array of bool.
        """
        at, _, views = self.views(at)
        classes = np.asarray(test(views), np.bool_).astype(np.uint32)
        first, length = frames or (0, self.n_pages)
        firsts, lengths, _, _ = at.runs(classes, first, length, max_runs)
        return list(zip(firsts.tolist(), lengths.tolist(), strict=True))

    def frames_where(self, test: Test, *, at: Snapshot | None = None) -> tuple[U64, U64]:
        """As ``runs``, all of them, as two arrays."""
        at, _, views = self.views(at)
        classes = np.asarray(test(views), np.bool_).astype(np.uint32)
        parts = []
        position = 0
        while position < self.n_pages:
            firsts, lengths, _, position = at.runs(
                classes, position, self.n_pages - position, MAX_RUNS
            )
            parts.append((firsts, lengths))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def frames_large(self, frames: U64, *, at: Snapshot | None = None) -> NDArray[np.bool_]:
        """Say for each frame of an array whether its RMP entry is one of 2 MiB."""
        at, _, views = self.views(at)
        large: NDArray[np.bool_] = views["large"][at.ids(frames)].astype(np.bool_)
        return large

    def disagreements(
        self,
        kinds: Iterable[str] | None = None,
        *,
        max_runs: int = MAX_RUNS,
        at: Snapshot | None = None,
    ) -> list[Disagreement]:
        """List where views disagree, by way and address.

        Parameters
        ----------
        kinds : names of ``pysev.tables.frames.DISAGREEMENTS``, optional
            Default: all but those of the content, which every conversion leaves behind.
        max_runs : int
            At most this many of each kind.
        """
        at, records, views = self.views(at)
        found: list[Disagreement] = []
        for name in words.DEFAULT_DISAGREEMENTS if kinds is None else kinds:
            bit = words.number_of(name, words.DISAGREEMENT_NUMBERS, "disagreement")
            has = (views["differ"] & np.uint32(1 << bit)).astype(np.bool_)
            has[records["n_pages"] == np.uint64(lib.GHCB_STORE_FREED)] = False
            if not has.any():
                continue
            # neighbours with another history are runs of their own
            last = records["since"].max(axis=1).astype(np.uint32)
            events, classes = np.unique(last, return_inverse=True)
            classes = np.where(has, classes.reshape(-1) + 1, 0).astype(np.uint32)
            firsts, lengths, which, _ = at.runs(classes, 0, None, max_runs)
            what = words.DISAGREEMENT_TEXTS[name]
            found += [
                Disagreement(name, first, n, what, words.event_number(int(events[c - 1])))
                for first, n, c in zip(
                    firsts.tolist(), lengths.tolist(), which.tolist(), strict=True
                )
            ]
        return found

    def changes(self, before: Snapshot, *, max_runs: int = MAX_RUNS) -> Iterator[Run]:
        """List what has changed since a snapshot; ``what`` names the views."""
        firsts, lengths, sets, _ = before.differences(self.snapshot(), max_runs=max_runs)
        for first, n, views in zip(firsts.tolist(), lengths.tolist(), sets.tolist(), strict=True):
            yield Run(first, n, ", ".join(words.views_of(views)))

    def pages_assigned_to(self, asid: int) -> int:
        """Frames that the RMP gives to an ASID: while there are any, it cannot be activated anew."""
        at, _, views = self.views()
        mine = (views["assigned"].astype(np.bool_) & (views["asid"] == asid)).astype(np.uint32)
        counted = at.count(mine)
        return int(counted[1]) if len(counted) > 1 else 0


def _access(what: Iterable[str]) -> int:
    return sum(words.number_of(one, ACCESS_FLAGS, "access") for one in set(what))


def _all(steps: Iterable[Callable[[], Outcome]]) -> Outcome:
    """Take steps until one is refused; return the last, with what all of them changed."""
    n_changed = 0
    last = None
    for step in steps:
        last = step()
        n_changed = max(n_changed, last.n_changed)
        if not last:
            break
    assert last is not None
    return Outcome(last.event, last.n_done, n_changed, last.result, last.refused_at, last.refusal)


def _one(frame: int) -> int:
    if not isinstance(frame, int | np.integer):
        raise TypeError(
            f"frames is {type(frame).__name__}: must be an integer, (first, n) or an array"
        )
    if frame < 0 or frame >> 64:
        raise OutOfRange(f"frame {frame:#x} does not fit 64 bits")
    return int(frame)


def _as_frames(frames: NDArray[Any]) -> U64:
    if frames.dtype.kind not in "iu" or frames.ndim != 1:
        raise OutOfRange(
            f"frames: dtype {frames.dtype}, shape {frames.shape}; must be integers (n,)"
        )
    if frames.dtype.kind == "i" and len(frames) and frames.min() < 0:
        raise OutOfRange(f"frames[{int(frames.argmin())}] = {int(frames.min())} is negative")
    return np.ascontiguousarray(frames, np.uint64)


def _nth(firsts: U64, lengths: U64, n: int) -> int:
    """The frame at which several ranges one after the other have ``n`` frames behind them."""
    ends = np.cumsum(lengths)
    i = int(np.searchsorted(ends, np.uint64(n), side="right"))
    if i == len(firsts):
        return 0
    return int(firsts[i]) + n - (int(ends[i - 1]) if i else 0)
