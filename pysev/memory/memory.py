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
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ghcbcore import rmp
from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, ReservedBitsSet, SevError
from ghcbcore.frame import Op
from ghcbcore.ledger import Done, Ledger
from pysev.memmap import MemoryMap, parse_size

from . import words
from .asking import Questions
from .convert import by_size, to_private, to_shared
from .frames import Frames, Spans, as_frames, frames_of, nth, one_frame, spans_of, within
from .messages import apply_map_gpa_range, apply_psc
from .records import Event, Outcome

__all__ = ["Memory"]

U64: TypeAlias = NDArray[np.uint64]

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
            numbers = as_frames(frames)
            return self._run(op, numbers, f"{len(numbers)} frames", label)
        # one frame, and of a 2 MiB operand the first of it
        return self._run(op, np.array([one_frame(frames)], np.uint64), f"{frames:#x}", label)

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
                at = nth(*where, done.n_done)
            else:
                done = self.ledger.array(op, where)
                at = int(where[done.n_done]) if done.n_done < len(where) else 0
        except (SevError, MemoryError):
            if self._log and (event := self.ledger.event):  # a part of it may have happened
                name = words.OPERATION_NAMES.get(op.kind, f"operation {op.kind}")
                self.events.setdefault(event, Event(event, name, text, label))
            raise
        return self._outcome(op, done, at, text, label)

    def frames_of(self, name: str) -> Spans:
        """Return the ranges that ``"all"`` or, of a memory map, ``"ram"`` stands for."""
        return frames_of(name, self.n_pages, self.map)

    def _within(self, frames: Frames, leaf: str | None) -> tuple[int | None, U64, U64]:
        """What a conversion is to change: size of pages, first frames, lengths."""
        size = None if leaf is None else words.number_of(leaf, SIZES, "leaf")
        each = lib.FRAME_REGION if size else 1
        spans = self.frames_of(frames) if isinstance(frames, str) else spans_of(frames, each)
        return size, *within(spans, self.n_pages)

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

        ``"default"``: the table does not reach them. A part of a 2 MiB entry is refused.
        """
        op = Op(lib.FRAME_OP_INIT, value=words.number_of(state, INITIAL_STATES, "state"))
        _, firsts, lengths = self._within(frames, None)
        steps = (
            partial(self.spans, op._replace(size=size), *spans, label)
            for size, spans in enumerate(by_size(firsts, lengths))
            if len(spans[0])
        )
        return _all(steps, self.ledger.event)

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
            ``entries[4], frame 0x...``, see ``ghcbcore.ledger.Ledger.load``. Nothing has happened.
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
            (``cur_page``) is not done again.

        Returns
        -------
        Outcome
            ``n_done`` counts entries.

        Raises
        ------
        OutOfRange, Unaligned
            ``entries[3], gfn 0x...``: no such operation, not of the guest. Those before are
            done.
        """
        return apply_psc(self, entries, label)

    def map_gpa_range(self, gpa: int, n_pages: int, attributes: int, *, label: str = "") -> Outcome:
        """What a VMM does about KVM_HC_MAP_GPA_RANGE: its list alone. ``gpa`` in bytes."""
        return apply_map_gpa_range(self, gpa, n_pages, attributes, label)

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
        size, firsts, lengths = self._within(frames, leaf)
        return _all(
            to_shared(self, firsts, lengths, label, leaf=size, size=size), self.ledger.event
        )

    def make_private(self, frames: Frames, *, leaf: str | None = None, label: str = "") -> Outcome:
        """set_memory_encrypted: the page table, page-state change, the host's list, then validate.

        See ``share``. Of a fresh guest's memory: firmware and kernel accept it.
        """
        size, firsts, lengths = self._within(frames, leaf)
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
