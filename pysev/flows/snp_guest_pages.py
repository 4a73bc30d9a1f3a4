"""The pages of an SNP guest in a flow: conversions in their halves, requests that need a GHCB.

A conversion has three parts that others can come between: the C-bit in the guest's page table
(PTE), the request to the hypervisor (PSC), which answers by RMPUPDATE, and PVALIDATE. To private
they come in this order; to shared first a PVALIDATE that takes back, then the PSC, then the PTE.
What happens to a page is decided by the rules of the hardware (``pysev.frames``); here is who asks
for what, and through which page: a request by GHCB reaches the hypervisor only while the GHCB is
mapped shared.

Words of the flow: ``g.fault`` says what the first instruction or access met that was refused
(``Fault``), ``g.by_ghcb`` is 1 while page changes go through the GHCB, 0 when they go by the MSR
protocol.

Source: Linux arch/x86/coco/sev/core.c, arch/x86/mm/mem_encrypt_amd.c.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import replace

from ghcbcore._cffi import lib
from ghcbcore.frame import Op as FrameOp

from .. import costs
from ..flow import Agent, Effect, Field, Flow, Hazard, Op, Test, Words, op, put, shift_right, when
from ..frames import FrameRegion, guest_access, happen, map_as, pvalidate, rmpupdate
from ..words import ask_msr

__all__ = [
    "Fault",
    "Pages",
    "is_mapped",
    "pass_over",
    "start_private",
    "start_shared",
    "terminate",
]

Piece = tuple[FrameRegion, int]

MAPPING = ((1 << lib.FRAME_MAPPING_WIDTH) - 1) << lib.FRAME_MAPPING_SHIFT


class Fault(enum.IntEnum):
    """``g.fault``: what refused, by the kind of its result."""

    NONE = 0
    PAGE_FAULT = lib.FRAME_RESULT_PF
    NESTED_PAGE_FAULT = lib.FRAME_RESULT_NPF
    VC_NOT_VALIDATED = lib.FRAME_RESULT_VC
    GENERAL_PROTECTION = lib.FRAME_RESULT_GP
    REFUSED = 15  # an instruction's return code


def start_private(*, leaf: int = 0) -> list[FrameOp]:
    """What has happened to a page that the guest uses as its own."""
    return [map_as(lib.FRAME_PRIVATE, leaf=leaf), rmpupdate(True), pvalidate(True)]


def start_shared(*, leaf: int = 0) -> list[FrameOp]:
    """What has happened to a page that both sides use: it is the hypervisor's."""
    return [map_as(lib.FRAME_SHARED, leaf=leaf)]


def is_mapped(piece: Piece, mapping: int) -> Test:
    """Test the guest's page table: ``FRAME_SHARED``, ``FRAME_PRIVATE`` or ``FRAME_UNMAPPED``."""
    region, at = piece
    word: Field = region.words[at][0] & MAPPING
    return word == mapping << lib.FRAME_MAPPING_SHIFT


def terminate(vcpu: Words, reason: int, reason_set: int = lib.GHCB_TERM_SET_LINUX) -> list[Effect]:
    """Ask the hypervisor to end the VM, by the MSR protocol."""
    request = (
        lib.GHCB_MSR_TERM_REQ
        | reason_set << lib.GHCB_MSR_TERM_REQ_SET_SHIFT
        | reason << lib.GHCB_MSR_TERM_REQ_REASON_SHIFT
    )
    return ask_msr(vcpu, request)


def pass_over(agent: Agent, labels: Sequence[str]) -> None:
    """Take labels out again whose only use is to be a place to go on from.

    Who writes a stage does not know what the next one begins with.
    """
    for label in labels:
        names = list(agent.labels)
        follows = names[names.index(label) + 1]
        del agent.labels[label]
        agent.phases.pop(label, None)
        for name, ops in agent.labels.items():
            agent.labels[name] = [replace(o, to=follows) if o.to == label else o for o in ops]


class Pages:
    """Effects and operations on the pages of a flow.

    Parameters
    ----------
    flow : Flow
        Gets the words ``g.fault``, ``g.answer`` and ``g.by_ghcb``.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        flow.globals(fault=Fault.NONE, answer=0, by_ghcb=1)
        flow.name_values("fault", Fault)
        self.no_fault = flow.g.fault == Fault.NONE

    def must(self, piece: Piece, what: FrameOp) -> list[Effect]:
        """Let an operation happen; a refusal is a fault. That nothing changed is none."""
        g = self.flow.g
        region, at = piece
        refused = g.answer >= 1 << lib.FRAME_RESULT_CODE_SHIFT
        kind = [
            put(g.fault, g.answer),
            shift_right(g.fault, lib.FRAME_RESULT_KIND_SHIFT),
            when(g.fault == 0, put(g.fault, Fault.REFUSED)),
        ]
        return [happen(region, at, what, g.answer), when(refused, *kind), put(g.answer, 0)]

    def to_private_pte(self, piece: Piece, *, leaf: int = 0) -> list[Effect]:
        return self.must(piece, map_as(lib.FRAME_PRIVATE, leaf=leaf))

    def to_shared_pte(self, piece: Piece) -> list[Effect]:
        return self.must(piece, map_as(lib.FRAME_SHARED))

    def psc(self, piece: Piece, private: bool) -> list[Effect]:
        """What the hypervisor does when it is asked: RMPUPDATE."""
        return self.must(piece, rmpupdate(private))

    def access(self, piece: Piece, flags: int) -> list[Effect]:
        """Use a page through the mapping that the guest has of it."""
        as_private = self.must(piece, guest_access(flags | lib.FRAME_ACCESS_C))
        return [
            when(
                is_mapped(piece, lib.FRAME_PRIVATE),
                *as_private,
                otherwise=self.must(piece, guest_access(flags)),
            )
        ]

    def access_private(self, piece: Piece, flags: int = 0) -> list[Effect]:
        """A new kernel maps all of its memory private and uses it so.

        Where the page is the hypervisor's, this is a nested fault, on which KVM has the page made
        private; it is not validated then, and the access that is made again ends in #VC 0x404. A
        page that cannot be changed (a VMSA in use) faults for ever.
        """
        g = self.flow.g
        region, at = piece
        use = self.must(piece, guest_access(flags | lib.FRAME_ACCESS_C))
        again = [
            happen(region, at, rmpupdate(True), g.answer),
            when(g.answer == 0, put(g.fault, Fault.NONE), *use),
            put(g.answer, 0),
        ]
        return [*use, when(g.fault == Fault.NESTED_PAGE_FAULT, *again)]

    def exits(
        self,
        text: str,
        ghcb: Piece,
        do: Sequence[Effect],
        *,
        cost: int | None = None,
        by_msr: int | None = None,
        tests: Sequence[Test] = (),
        to: str | None = None,
        pick: bool = False,
        vcpu: Words | None = None,
    ) -> list[Op]:
        """A request to the hypervisor, in the form that the guest uses now.

        Parameters
        ----------
        text : str
            With ``{}`` where the protocol is named.
        ghcb : Piece
            The GHCB page of the CPU that asks.
        do : sequence of Effect
            What the hypervisor does when it has understood.
        by_msr : int, optional
            Cost by the MSR protocol, if there is a request for it; without, the GHCB is used
            whatever happens.
        vcpu : Words, optional
            Who asks; the boot CPU by default. Its agent needs a label ``dead``.
        """
        vcpu = vcpu or self.flow.boot
        cost = costs.VMGEXIT if cost is None else cost
        g, shared = self.flow.g, is_mapped(ghcb, lib.FRAME_SHARED)
        with_ghcb = [*tests] if by_msr is None else [*tests, g.by_ghcb == 1]
        by = text.format("by GHCB")
        ops = [
            op(by, when=[*with_ghcb, shared], do=do, cost=cost, to=to, pick=pick),
            op(
                f"{by}: the GHCB is private, the hypervisor reads ciphertext; terminates",
                when=[*with_ghcb, shared.negated()],
                do=terminate(vcpu, lib.GHCB_TERM_LINUX_PSC),
                cost=cost,
                to="dead",
                pick=pick,
            ),
        ]
        if by_msr is not None:
            tests = [*tests, g.by_ghcb == 0]
            ops.append(op(text.format("by MSR"), when=tests, do=do, cost=by_msr, to=to, pick=pick))
        return ops

    def validate(self, text: str, pieces: Sequence[Piece], *, cost: int | None = None) -> list[Op]:
        """PVALIDATE of pages that lie in one leaf; it goes through the guest's own mapping."""
        cost = costs.PVALIDATE if cost is None else cost
        private = is_mapped(pieces[0], lib.FRAME_PRIVATE)
        do = [e for piece in pieces for e in self.must(piece, pvalidate(True))]
        return [
            op(text, when=[private], do=do, cost=cost),
            op(
                f"{text}: its mapping is shared, PVALIDATE fails; terminates",
                when=[private.negated()],
                do=terminate(self.flow.boot, lib.GHCB_TERM_LINUX_PVALIDATE),
                cost=cost,
                to="dead",
            ),
        ]

    def dies(self, text: str) -> Hazard:
        """After a fault that nobody can handle the CPU goes no further."""
        return Hazard(self.no_fault, (op(text, to="dead"),))
