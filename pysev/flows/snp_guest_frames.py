"""Which pages the flow of ``snp-guest-kexec/*`` has, and what they stand for in a large guest.

A frame stands for all pages that are alike. In a guest laid out by ``pysev.layout`` one leaf of
2 MiB in the swiotlb holds the GHCB of the CPU that goes on (Linux takes GHCBs from the early
allocator; the swiotlb is where large shared leaves are), what lies below it there is the page
below the GHCBs, and the other frames are the regions of their names.
"""

from __future__ import annotations

from collections.abc import Sequence

from ghcbcore._cffi import lib
from ghcbcore.errors import StateConflict
from ghcbcore.frame import Op as FrameOp

from ..flow import Flow, FlowError
from ..frames import ASID, FrameRegion, Where, declare
from ..layout import Part
from ..machine import Machine
from ..memory import Memory
from .snp_guest_pages import Piece, start_private, start_shared

__all__ = ["KexecFrames"]

LEAF = lib.FRAME_REGION
RUNNING = [
    *start_private(),
    FrameOp(lib.FRAME_OP_RMPADJUST, asid=ASID, target=1, value=lib.FRAME_ADJUST_VMSA),
    FrameOp(lib.FRAME_OP_VMRUN),
]
"""A VMSA that a CPU runs: a private page with its tag in the RMP, in use."""


class KexecFrames:
    """Declares the frames of a flow.

    Parameters
    ----------
    flow : Flow
    converts : str
        Direction of the conversion in flight: "", "to shared" or "to private".
    n_vmsas : int
        VMSA pages of other CPUs in RAM.
    has_others, on_ap : bool
        There are other CPUs; the own VMSA lies in RAM too.

    Attributes
    ----------
    below, decrypted, ghcb : (FrameRegion, int)
    leaf : list of (FrameRegion, int)
        What lies in front of the GHCB in its 2 MiB leaf, the GHCB, the rest.
    others_ghcb, moving, vmsa, own_vmsa : (FrameRegion, int) or None
    used : list of (str, (FrameRegion, int))
        What the next kernel touches as RAM like any other, with names.
    """

    def __init__(
        self, flow: Flow, *, converts: str, n_vmsas: int, has_others: bool, on_ap: bool
    ) -> None:
        self._starts: list[tuple[FrameRegion, Sequence[FrameOp]]] = []
        self._flow = flow
        self.n_vmsas = n_vmsas
        plain = self._declare("plain", 2, start_shared(), _plain)
        self.below, self.decrypted = (plain, 0), (plain, 1)
        leaf = self._declare("leaf", 3, start_shared(leaf=lib.FRAME_LEAF_2M), _pieces_of_leaf)
        self.leaf: list[Piece] = [(leaf, i) for i in range(3)]
        self.ghcb = self.leaf[1]
        self.used: list[tuple[str, Piece]] = [
            ("a page below the GHCBs", self.below),
            ("bss_decrypted", self.decrypted),
            ("the pages in front of the GHCB in its 2 MiB leaf", self.leaf[0]),
            ("the GHCB", self.ghcb),
            ("the rest of the leaf of the GHCB", self.leaf[2]),
        ]
        self.others_ghcb: Piece | None = None
        self.moving: Piece | None = None
        self.vmsa: Piece | None = None
        self.own_vmsa: Piece | None = None
        if has_others:
            where = _all_of(Part.GHCBS)
            self.others_ghcb = (self._declare("others_ghcb", 1, start_shared(), where), 0)
            self.used.append(("the GHCBs of the other CPUs", self.others_ghcb))
        if converts:
            start = start_private() if converts == "to shared" else start_shared()
            self.moving = (self._declare("moving", 1, start, _all_of(Part.OLD_INITRD)), 0)
            self.used.append(("the page that was being converted", self.moving))
        if n_vmsas:
            self.vmsa = (self._declare("vmsa", 1, RUNNING, _stacks(0, n_vmsas)), 0)
            self.used.append(("the VMSA page of another CPU", self.vmsa))
        if on_ap:
            self.own_vmsa = (self._declare("own_vmsa", 1, RUNNING, _stacks(n_vmsas, 1)), 0)

    def _declare(self, name: str, n: int, start: Sequence[FrameOp], where: Where) -> FrameRegion:
        region = declare(self._flow, name, n, start=start, where=where)
        self._starts.append((region, start))
        return region

    def prepare(self, memory: Memory, machine: Machine) -> None:
        """Bring a large memory to where the flow begins; the rest of it stays untouched.

        Raises
        ------
        StateConflict
            Something has happened there before.
        FlowError
            The machine has no room for the frames.
        """
        for region, start in self._starts:
            assert region.where is not None
            places = list(region.where(machine))
            for what in start:
                spans = places
                if what.kind == lib.FRAME_OP_MAP and what.size:
                    spans = [(places[0][0], sum(n for _, n in places))]
                for first, n in spans:
                    outcome = memory.do(what, (first, n), f"{region.name}: before the kexec")
                    if not outcome:
                        raise StateConflict(f"{region.name}: {outcome.refusal}")


def _range(machine: Machine, part: Part) -> tuple[int, int]:
    region = machine.layout[part]
    return region.start // lib.GHCB_PAGE_SIZE, region.size_bytes // lib.GHCB_PAGE_SIZE


def _leaf(machine: Machine) -> int:
    """First frame of the second whole 2 MiB of the swiotlb."""
    first, n = _range(machine, Part.SWIOTLB)
    leaf = -(-first // LEAF) * LEAF + LEAF
    if leaf + LEAF > first + n:
        raise FlowError(f"leaf: a swiotlb of {n} pages has no leaf of 2 MiB in its middle")
    return leaf


def _plain(machine: Machine) -> list[tuple[int, int]]:
    first, _ = _range(machine, Part.SWIOTLB)
    return [(first, _leaf(machine) - first), _range(machine, Part.PV_PAGES)]


def _pieces_of_leaf(machine: Machine) -> list[tuple[int, int]]:
    leaf, half = _leaf(machine), LEAF // 2
    return [(leaf, half), (leaf + half, 1), (leaf + half + 1, LEAF - half - 1)]


def _all_of(part: Part) -> Where:
    return lambda machine: [_range(machine, part)]


def _stacks(skip: int, n: int) -> Where:
    """VMSA pages, among what the old kernel has allocated for its CPUs."""
    return lambda machine: [(_range(machine, Part.STACKS)[0] + skip, n)]
