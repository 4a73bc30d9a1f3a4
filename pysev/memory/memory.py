"""All of a guest's memory: operations in the words of the field.

Frames are named by number (4 KiB each): one number, ``(first, n)`` for a range, an array,
``"all"`` or, of a
memory map, ``"ram"``. The guest's frame numbers are the system's unless ``shift`` says how far
apart they are.

A refusal by the hardware is an ``Outcome``, not an exception; bad arguments are exceptions that
name
the element, and what stands before it has happened. The questions are in ``pysev.memory.asking``.

Source of the rules: ``ghcbcore/frame_rule.h``, ``frame_access.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ghcbcore import psc, rmp
from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, ReservedBitsSet, SevError
from ghcbcore.frame import Op
from ghcbcore.ledger import Done, Ledger
from pysev.memmap import MemoryMap, parse_size

from . import words
from .asking import Questions
from .convert import to_private, to_shared
from .records import Event, Outcome

__all__ = ["Memory"]

U64: TypeAlias = NDArray[np.uint64]
Frames: TypeAlias = "int | tuple[int, int] | NDArray[Any] | str"

SIZES = {"4K": lib.RMP_PAGE_4K, "2M": lib.RMP_PAGE_2M}
MAPPINGS_OF_HOST = {"4K": 0, "2M": 1, "1G": 2}
INITIAL_STATES = {
    words.STATE_NAMES[state]: state
    for state in range(lib.RMP_STATE_DEFAULT, lib.RMP_STATE_FIRMWARE + 1)
}
ACCESS_FLAGS = {
    "write": lib.FRAME_ACCESS_WRITE,
    "fetch": lib.FRAME_ACCESS_FETCH,
    "user": lib.FRAME_ACCESS_USER,
}


class Memory(Questions):
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

    # Doing ---------------------------------------------------------------------------------------

    def do(self, op: Op, frames: Frames, label: str = "") -> Outcome:
        """Let any operation happen; the methods below fill an ``Op`` in."""
        if isinstance(frames, str):
            return self._run(op, self.frames_of(frames), frames, label)
        if isinstance(frames, tuple):
            if len(frames) != 2:
                raise OutOfRange(f"frames has {len(frames)} numbers: a range is (first, n_pages)")
            done = self.ledger.range(op, *frames)
            text = f"{frames[0]:#x}+{frames[1]}"
            return self._outcome(op, done, frames[0] + done.n_done, text, label)
        if isinstance(frames, np.ndarray):
            numbers = _as_frames(frames)
            return self._run(op, numbers, f"{len(numbers)} frames", label)
        # one frame, and of a 2 MiB operand the first of it
        return self._run(op, np.array([_one(frames)], np.uint64), f"{frames:#x}", label)

    def spans(self, op: Op, firsts: U64, lengths: U64, label: str = "") -> Outcome:
        """Let an operation happen to several ranges, as one event."""
        text = f"{len(firsts)} ranges"
        if len(firsts) == len(lengths) == 1:
            text = f"{firsts[0]:#x}+{lengths[0]}"
        return self._run(op, (firsts, lengths), text, label)

    def _run(self, op: Op, where: U64 | tuple[U64, U64], text: str, label: str) -> Outcome:
        """Let an operation happen to frames of an array, or to spans."""
        try:
            if isinstance(where, tuple):
                done = self.ledger.spans(op, *where)
                at = _nth(*where, done.n_done)
            else:
                done = self.ledger.array(op, where)
                at = int(where[done.n_done]) if done.n_done < len(where) else 0
        except (SevError, MemoryError):
            if self._log and (event := self.ledger.event):  # a part of it may have happened
                name = words.OPERATION_NAMES.get(op.kind, f"operation {op.kind}")
                self.events.setdefault(event, Event(event, name, text, label))
            raise
        return self._outcome(op, done, at, text, label)

    def _within(self, frames: Frames, each: int) -> tuple[U64, U64]:
        """As ``spans_of``; refuse what is not of the guest before anything happens."""
        firsts, lengths = self.spans_of(frames, each)
        end = np.uint64(self.n_pages)
        bad = np.flatnonzero((firsts >= end) | (lengths > end - np.minimum(firsts, end)))
        if len(bad):
            first, n = int(firsts[bad[0]]), int(lengths[bad[0]])
            where = f"frames[{bad[0]}], " if isinstance(frames, np.ndarray) else ""
            raise OutOfRange(
                f"{where}frames {first:#x} to {first + n - 1:#x}: "
                f"the guest ends with frame {self.n_pages - 1:#x}"
            )
        return firsts, lengths

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

    def spans_of(self, frames: Frames, each: int = 1) -> tuple[U64, U64]:
        """Return frames of any form as spans; of single ones and arrays, ``each`` pages from
        there on.
        """
        if isinstance(frames, str):
            return self.frames_of(frames)
        if isinstance(frames, tuple):
            if len(frames) != 2:
                raise OutOfRange(f"frames has {len(frames)} numbers: a range is (first, n_pages)")
            return tuple(np.array([_one(n)], np.uint64) for n in frames)  # type: ignore[return-value]
        if isinstance(frames, np.ndarray):
            firsts = _as_frames(frames)
        else:
            firsts = np.array([_one(frames)], np.uint64)
        return firsts, np.full(len(firsts), each, np.uint64)

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
        """PVALIDATE; what succeeds the guest notes as well. ``backing``: the nested page, as
        ``size``.
        """
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
        """RMPADJUST: rights (``1 << RMP_RIGHT_*``) of VMPL ``target``, and at VMPL 0 the VMSA
        bit.
        """
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
        """A read of the hypervisor, or with ``"write"``, ``"user"`` another; ``mapping``: 4K, 2M
        or 1G.
        """
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
        self,
        command: str,
        frames: Frames,
        operands: Mapping[str, int] | None = None,
        *,
        label: str = "",
    ) -> Outcome:
        """A page command of firmware by its name in ``pysev.tables.frames``, e.g.
        ``"SNP_PAGE_RECLAIM"``.

        ``operands`` are those of ``ghcbcore.frame.Op``.
        """
        for kind, name in words.OPERATION_NAMES.items():
            is_command = lib.FRAME_OP_GCTX_CREATE <= kind < lib.FRAME_OP_LEAF
            if is_command and command in (name, name.replace(", ", "/")):
                return self.do(Op(kind, **(operands or {})), frames, label)
        raise OutOfRange(f"command {command!r}: firmware has no such page command")

    def init(self, frames: Frames, state: str = "hypervisor", *, label: str = "") -> Outcome:
        """SNP_INIT_EX builds these entries anew: ``"hypervisor"``, ``"hv_fixed"``, ``"firmware"``.

        ``"default"``: the table does not reach them.
        """
        value = words.number_of(state, INITIAL_STATES, "state")
        return self.do(Op(lib.FRAME_OP_INIT, value=value), frames, label)

    def move(self, source: int, destination: int, *, size: str = "4K", label: str = "") -> Outcome:
        """SNP_PAGE_MOVE between two frames, or two pages of 2 MiB, of the guest."""
        large = words.number_of(size, SIZES, "size")
        done = self.ledger.move(source, destination, self.asid, large)
        op = Op(lib.FRAME_OP_MOVE)
        return self._outcome(op, done, source, f"{source:#x} to {destination:#x}", label)

    def load(self, first: int, raw: NDArray[np.uint64], *, label: str = "") -> None:
        """Take the RMP's view of frames from raw entries, e.g. those of a kernel's log.

        Parameters
        ----------
        first : int
        raw : uint64 array, shape (n, 2), C-contiguous
            Low and high quadword of each, Zen 3/4.

        Raises
        ------
        OutOfRange, Unaligned
            ``entries[4], frame 0x...``, see ``ghcbcore.ledger.Ledger.load``. Those before are done.
        ReservedBitsSet
            ``entries[4]``: bits are set that no field has. Nothing has happened.
        """
        entries = rmp.decode(raw)
        bad = np.flatnonzero(entries["status"] == lib.GHCB_E_RESERVED_BITS)
        if len(bad):
            raise ReservedBitsSet(f"entries[{bad[0]}]: reserved bits are set")
        self.ledger.load(first, entries)
        event = self.ledger.event
        if self._log:
            self.events[event] = Event(event, "load", f"{first:#x}+{len(raw)}", label)

    # Messages

    def psc(self, entries: NDArray[np.void] | NDArray[np.uint64], *, label: str = "") -> Outcome:
        """What a hypervisor does about page-state changes: RMPUPDATE and its list, PSMASH, UNSMASH.

        Parameters
        ----------
        entries : array of ghcbcore.psc.ENTRY_DTYPE, or uint64 as they lie in the buffer
            In their order; ``gfn`` counts the guest's frames. What is done of an entry
            (``cur_page``) is
            not done again.

        Returns
        -------
        Outcome
            ``n_done`` counts entries.

        Raises
        ------
        OutOfRange, Unaligned
            ``entries[3], gfn 0x...``: no such operation, or not of the guest. Those before are
            done.
        """
        if entries.dtype == np.uint64:
            entries = psc.decode_entries(np.ascontiguousarray(entries))
        if entries.dtype != psc.ENTRY_DTYPE or entries.ndim != 1:
            raise OutOfRange(
                f"entries: dtype {entries.dtype}, shape {entries.shape}; must be ENTRY_DTYPE (n,)"
            )
        n_changed = 0
        last = Outcome(self.ledger.event, 0, 0, 0, None, "")
        for i, entry in enumerate(entries):
            gfn, op, size = int(entry["gfn"]), int(entry["op"]), int(entry["size"])
            n_pages, done = (lib.FRAME_REGION if size else 1), int(entry["cur_page"])
            first = (gfn - self.shift) & lib.FRAME_GFN_MASK
            if not lib.GHCB_PSC_OP_PRIVATE <= op <= lib.GHCB_PSC_OP_UNSMASH or done > n_pages:
                raise OutOfRange(f"entries[{i}], gfn {gfn:#x}: op {op}, cur_page {done}")
            if done == n_pages:
                continue
            try:
                last = self._psc_one(op, first, n_pages, done, label)
            except SevError as error:
                raise type(error)(f"entries[{i}], gfn {gfn:#x}: {error}") from error
            n_changed += last.n_changed
            if not last:
                return Outcome(last.event, i, n_changed, last.result, last.refused_at, last.refusal)
        return Outcome(last.event, len(entries), n_changed, last.result, None, "")

    def _psc_one(self, op: int, first: int, n_pages: int, n_before: int, label: str) -> Outcome:
        """One entry; what is left of a 2 MiB page that was begun goes 4 KiB at a time."""
        if op in (lib.GHCB_PSC_OP_PSMASH, lib.GHCB_PSC_OP_UNSMASH):
            if op == lib.GHCB_PSC_OP_PSMASH:
                return self.psmash(first, label=label)
            return self.firmware("SNP_PAGE_UNSMASH", first, label=label)
        is_private = op == lib.GHCB_PSC_OP_PRIVATE
        frames = (first + n_before, n_pages - n_before)
        size = "2M" if n_pages > 1 and not n_before else "4K"
        last = self.rmpupdate(frames, is_private, size=size, label=label)
        if last:
            self.list_as(frames, "private" if is_private else "shared", label=label)
        return last

    def map_gpa_range(self, gpa: int, n_pages: int, attributes: int, *, label: str = "") -> Outcome:
        """What a VMM does about KVM_HC_MAP_GPA_RANGE: its list alone. ``gpa`` in bytes."""
        if gpa < 0 or gpa % lib.GHCB_PAGE_SIZE:
            raise OutOfRange(f"gpa = {gpa:#x}: must be a multiple of {lib.GHCB_PAGE_SIZE:#x}")
        first = (gpa // lib.GHCB_PAGE_SIZE - self.shift) & lib.FRAME_GFN_MASK
        listed = "private" if attributes & lib.GHCB_MAP_GPA_ENCRYPTED else "shared"
        return self.list_as((first, n_pages), listed, label=label)

    # What Linux does as a guest, both sides

    def share(self, frames: Frames, *, leaf: str | None = None, label: str = "") -> Outcome:
        """set_memory_decrypted: rescind, page-state change, the host's list, then the page table.

        ``leaf``: ``"4K"``, ``"2M"``, or by default 2 MiB where a whole region changes. The host
        splits a 2 MiB entry of which a part changes. ``n_changed`` is what the step that changed
        most has changed.

        Raises
        ------
        OutOfRange
            Frames are not of the guest. Nothing has happened.
        Unaligned
            Of ``"2M"``, no multiples of 512.
        """
        size = None if leaf is None else words.number_of(leaf, SIZES, "leaf")
        firsts, lengths = self._within(frames, lib.FRAME_REGION if size else 1)
        return _all(
            to_shared(self, firsts, lengths, label, leaf=size, size=size), self.ledger.event
        )

    def make_private(self, frames: Frames, *, leaf: str | None = None, label: str = "") -> Outcome:
        """set_memory_encrypted: the page table, page-state change, the host's list, then validate.

        See ``share``. Of a fresh guest's memory: firmware and kernel accept it.
        """
        size = None if leaf is None else words.number_of(leaf, SIZES, "leaf")
        firsts, lengths = self._within(frames, lib.FRAME_REGION if size else 1)
        return _all(
            to_private(self, firsts, lengths, label, leaf=size, size=size), self.ledger.event
        )


def _access(what: Iterable[str]) -> int:
    return sum(words.number_of(one, ACCESS_FLAGS, "access") for one in set(what))


def _all(steps: Iterable[Callable[[], Outcome]], event: int) -> Outcome:
    """Take steps until one is refused; return the last, with what the one that changed most
    changed.
    """
    n_changed = 0
    last = Outcome(event, 0, 0, 0, None, "")
    for step in steps:
        last = step()
        n_changed = max(n_changed, last.n_changed)
        if not last:
            break
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
