"""GHCB pages in words: the event, its inputs and answer, every rule that the page breaks.

Bytes are taken apart and judged in ``ghcbcore.ghcb``, the words are in ``pysev.tables.nae``. A
page does not say who wrote it: ``explain_ghcb`` reads it as a request, with ``side="answer"`` as
what came back.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np

from ghcbcore import ghcb
from ghcbcore._cffi import lib
from ghcbcore.layouts import bits_of
from pysev.tables.nae import EVENTS, FIRMWARE_STATUS, MALFORMED, REPLIES, REQUEST_STATUS, USAGES
from pysev.tables.schema import Code, Event

from . import vendors
from .explanation import ExplainedField, Explanation
from .kinds import Kind
from .psc import explain_psc
from .word import Said, explain_injection, explain_psc_status, say

__all__ = ["KINDS", "event_of", "explain_answer", "explain_ghcb"]

Side = Literal["request", "answer"]

EXIT_FIELDS = ("sw_exit_code", "sw_exit_info_1", "sw_exit_info_2")
NOT_EVENTS = ("software_reserved",)

# Fields of INFO1 that must have one of the values in the table.
_CLOSED = {
    "ioio": ("size", "address", "segment"),
    "snp_ap_creation": ("op",),
    "tio_operation_rfc": ("action",),
}

_SINCE = {"xss": 2}
"""Protocol version of fields that the first one does not have."""


@cache
def _events() -> dict[int, Event]:
    return {event.code: event for event in EVENTS if event.name not in NOT_EVENTS}


def event_of(code: int) -> Event | None:
    """Return the event of that exit code, None if the protocol has none."""
    return _events().get(code)


def _words(codes: tuple[Code, ...], number: int) -> str:
    return next((one.what for one in codes if one.code == number), "")


def explain_answer(data: bytes) -> Explanation:
    """``explain_ghcb`` for a page that the hypervisor wrote last."""
    return explain_ghcb(data, side="answer")


def explain_ghcb(data: bytes, *, side: Side = "request", snp: bool | None = None) -> Explanation:
    """Say in words what a GHCB page holds.

    Parameters
    ----------
    data : bytes
        4096 of them.
    side : "request" or "answer"
        Who wrote the page last, guest or hypervisor.
    snp : bool, optional
        Whether the guest is an SNP guest; None if that is not known.

    Returns
    -------
    Explanation
        ``function`` is the event's name in ``pysev.tables.nae``, ``"unknown"`` for a code that is
        not there. Its fields are those that are marked valid or not zero.

    Raises
    ------
    ValueError
        ``data`` has another length, or ``side`` is unknown.

    Examples
    --------
    >>> record = np.zeros(1, dtype=ghcb.GHCB_DTYPE)
    >>> record["sw_exit_code"], record["rax"], record["protocol_version"] = 0x72, 0x8000001F, 2
    >>> record["valid_lo"], record["valid_hi"] = 1 << 63, 7 << 50
    >>> print(explain_ghcb(bytes(ghcb.encode(record))).as_text())
    GHCB page (request): CPUID (0x72)
        rax               0x8000001f  function
        sw_exit_code      0x72        CPUID
        sw_exit_info_1    0x0
        sw_exit_info_2    0x0
        protocol_version  0x2
        ! rcx (sub-function) is required and not marked valid
        - a host after KVM answers 2/4: a required input is not valid
        - since protocol version 1; an answer returns rax, rcx, rdx, rbx
    """
    page = np.frombuffer(data, dtype=np.uint8)[np.newaxis]
    one = ghcb.decode(page, side=side, snp=snp)[0]
    at = {name: int(one[name]) for name in ghcb.GHCB_DTYPE.names or ()}
    if at["flags"] & lib.GHCB_FLAG_USAGE:
        return _other_usage(at, side)
    event = event_of(at["sw_exit_code"])
    teller = _Request(at, event, data) if side == "request" else _Answer(at, event, data)
    return teller.explanation()


def _other_usage(at: dict[str, int], side: Side) -> Explanation:
    usage = at["ghcb_usage"]
    words = _words(USAGES, usage) or vendors.words("usage", usage)
    findings = () if words else (f"usage {usage:#x} is not known: hosts answer 2/2",)
    return Explanation(
        value=None,
        function="usage",
        title="GHCB page",
        direction=side,
        sentence=f"usage {usage:#x}" + (f" ({words})" if words else ""),
        fields=(ExplainedField("ghcb_usage", usage, words),),
        findings=findings,
        remarks=("the rest of the page is not laid out as a GHCB, and so not decoded",),
        kind="ghcb" if side == "request" else "ghcb-answer",
        listed=True,
    )


class _Page:
    """What both sides have: the fields, what is odd about the page itself."""

    side: Side

    def __init__(self, at: dict[str, int], event: Event | None, data: bytes) -> None:
        self.at = at
        self.event = event
        self.data = data
        self.valid = ghcb.field_names(at["valid"])
        self.findings: list[str] = []
        self.remarks: list[str] = []
        self.parts: list[Explanation] = []
        self.meaning: dict[str, str] = {}

    def is_flagged(self, flag: int) -> bool:
        return bool(self.at["flags"] & flag)

    def name(self) -> str:
        code = self.at["sw_exit_code"]
        if self.event is not None:
            return f"{self.event.what} ({code:#x})"
        vendor = vendors.words("nae", code)
        return f"{vendor} ({code:#x})" if vendor else f"unknown event {code:#x}"

    def fields(self) -> tuple[ExplainedField, ...]:
        found = []
        for name in ghcb.FIELDS:
            value, valid = self.at[name], name in self.valid
            if not valid and value == 0:
                continue
            words = [self.meaning[name]] if self.meaning.get(name) else []
            if not valid:
                words.append("not marked valid")
            if name in _SINCE:
                words.append(f"since protocol version {_SINCE[name]}")
            found.append(ExplainedField(name, value, "; ".join(words)))
        for name in ("x87_state_gpa", "ghcb_usage", "protocol_version"):
            if self.at[name]:
                found.append(ExplainedField(name, self.at[name], ""))
        return tuple(found)

    def judge_page(self) -> None:
        at = self.at
        if self.is_flagged(lib.GHCB_FLAG_RESERVED):
            self.findings.append(
                "reserved bytes must be zero, "
                f"the first that is not is at {at['first_reserved']:#x}"
            )
        if self.is_flagged(lib.GHCB_FLAG_ODD_VALID):
            self.findings.append(
                "the valid bitmap marks what is no field "
                f"({at['valid_hi']:#018x} {at['valid_lo']:#018x}): hosts ignore it"
            )
        if self.is_flagged(lib.GHCB_FLAG_UNKNOWN_VERSION):
            self.findings.append(f"protocol version {at['protocol_version']} is not known")

    def say_word(self, name: str, said: Said, must: bool) -> None:
        self.meaning[name] = said.text if said.text != f"{self.at[name]:#x}" else ""
        if said.text in ("0", str(self.at[name])):
            self.meaning[name] = ""
        if must:
            self.findings += [f"{name}: {text}" for text in said.findings]
        self.remarks += [f"{name}: {text}" for text in said.remarks]

    def explanation(self) -> Explanation:
        self.judge()
        self.judge_page()
        return Explanation(
            value=None,
            function=self.event.name if self.event else "unknown",
            title="GHCB page",
            direction=self.side,
            sentence=self.sentence(),
            fields=self.fields(),
            findings=tuple(dict.fromkeys(self.findings)),
            remarks=tuple(dict.fromkeys(self.remarks)),
            kind="ghcb" if self.side == "request" else "ghcb-answer",
            parts=tuple(self.parts),
            listed=True,
        )

    def judge(self) -> None:
        raise NotImplementedError

    def sentence(self) -> str:
        return self.name()


class _Request(_Page):
    side: Side = "request"

    def judge(self) -> None:
        at, event = self.at, self.event
        self.meaning["sw_exit_code"] = (
            event.what if event else vendors.words("nae", at["sw_exit_code"])
        )
        inputs = {one.field: one.what for one in event.inputs} if event else {}
        self.meaning |= inputs
        for name in ghcb.field_names(at["missing"]):
            what = f" ({inputs[name]})" if name in inputs else ""
            self.findings.append(f"{name}{what} is required and not marked valid")
        if self.is_flagged(lib.GHCB_FLAG_UNKNOWN_EVENT):
            if vendors.words("nae", at["sw_exit_code"]):
                owner = vendors.owner("nae", at["sw_exit_code"])
                self.remarks.append(f"private to {owner}, not part of the protocol")
            else:
                self.findings.append(f"there is no event {at['sw_exit_code']:#x}")
        if self.is_flagged(lib.GHCB_FLAG_SNP):
            self.findings.append("the event is for SNP guests alone")
        if event is not None:
            self._judge_event(event)
        if at["status"]:
            words = _words(MALFORMED, at["status"])
            self.remarks.append(f"a host after KVM answers 2/{at['status']}: {words}")
        if event is not None:
            self._remark_event(event)

    def _judge_event(self, event: Event) -> None:
        at = self.at
        if self.is_flagged(lib.GHCB_FLAG_VERSION):
            self.findings.append(
                f"the event is of protocol version {event.since}, the page has version "
                f"{at['protocol_version']}"
            )
        closed = _CLOSED.get(event.name, ())
        self.say_word("sw_exit_info_1", say(event.info1, at["sw_exit_info_1"], closed=closed), True)
        self.say_word("sw_exit_info_2", say(event.info2, at["sw_exit_info_2"]), True)
        for name, flag in (
            ("sw_exit_info_1", lib.GHCB_FLAG_INFO_1),
            ("sw_exit_info_2", lib.GHCB_FLAG_INFO_2),
        ):
            if self.is_flagged(flag) and not any(f.startswith(name) for f in self.findings):
                self.findings.append(f"{name}: {at[name]:#x} has bits set that the event lacks")
        if event.code == lib.GHCB_NAE_PSC and "sw_scratch" in self.valid:
            self._shared_buffer()

    def _shared_buffer(self) -> None:
        offset = bits_of(self.at["sw_scratch"], 0, lib.GHCB_PAGE_SHIFT)
        first, size = lib.GHCB_OFF_SHARED_BUFFER, lib.GHCB_SHARED_BUFFER_SIZE
        if first <= offset <= first + size - lib.GHCB_PSC_OFF_ENTRIES:
            self.remarks.append("the descriptor is taken from the shared buffer of this page")
            self.parts.append(explain_psc(self.data[offset : first + size]))
        else:
            self.remarks.append("the descriptor lies outside of this page's shared buffer")

    def _remark_event(self, event: Event) -> None:
        text = f"since protocol version {event.since}"
        if event.confidence != "agreed":
            text += f" ({event.confidence})"
        back = [*event.answer.fields]
        if event.answer.info2 is not None:
            back.append(f"sw_exit_info_2 ({event.answer.info2.what})")
        if not event.answer.returns:
            text += "; it does not return"
        elif back:
            order = {name: i for i, name in enumerate(ghcb.FIELDS)}
            back.sort(key=lambda name: order.get(name, len(order)))
            text += f"; an answer returns {', '.join(back)}"
        self.remarks.append(text)


class _Answer(_Page):
    side: Side = "answer"

    def judge(self) -> None:
        at = self.at
        reply = bits_of(at["sw_exit_info_1"], 0, 32)
        self.meaning["sw_exit_info_1"] = _words(REPLIES, reply)
        if self.is_flagged(lib.GHCB_FLAG_REPLY):
            self.findings.append(f"sw_exit_info_1: {reply:#x} is no known kind of answer")
        if self.is_flagged(lib.GHCB_FLAG_INFO_1):
            self.findings.append("sw_exit_info_1: bits [63:32] must be zero")
        for name in ghcb.field_names(at["missing"]):
            self.findings.append(f"{name} is returned and not marked valid")
        if reply == lib.GHCB_REPLY_EXCEPTION:
            self.parts.append(explain_injection(at["sw_exit_info_2"]))
        elif reply == lib.GHCB_REPLY_MALFORMED:
            self._malformed(at["sw_exit_info_2"])
        elif reply == lib.GHCB_REPLY_OK and self.event is not None:
            self._result(self.event, at["sw_exit_info_2"])
        if self.event is None:
            self.remarks.append("the exit code is no event, so what is returned is not known")

    def _malformed(self, reason: int) -> None:
        words = _words(MALFORMED, reason) or vendors.words("malformed", reason)
        self.meaning["sw_exit_info_2"] = words
        if not words and reason <= lib.GHCB_MALFORMED_STANDARD_MAX:
            self.findings.append(f"sw_exit_info_2: {reason:#x} is no known reason")
        elif not words:
            self.remarks.append(f"reason {reason:#x} is the hypervisor's own")

    def _result(self, event: Event, value: int) -> None:
        if event.code == lib.GHCB_NAE_PSC:
            self.parts.append(explain_psc_status(value))
        elif event.code in (lib.GHCB_NAE_SNP_GUEST_REQUEST, lib.GHCB_NAE_SNP_EXT_GUEST_REQUEST):
            self.meaning["sw_exit_info_2"] = request_status(value)
        else:
            # a host may leave there what it likes where nothing is defined
            self.say_word("sw_exit_info_2", say(event.answer.info2, value), False)


def request_status(value: int) -> str:
    """Return the words for INFO2 after a guest request: firmware's status and the hypervisor's.

    Examples
    --------
    >>> request_status(0x2_0000_0000)
    'firmware: done; hypervisor: busy, ask again later'
    """
    fw = bits_of(value, lib.GHCB_GUEST_REQUEST_FW_SHIFT, lib.GHCB_GUEST_REQUEST_FW_WIDTH)
    vmm = bits_of(value, lib.GHCB_GUEST_REQUEST_VMM_SHIFT, lib.GHCB_GUEST_REQUEST_VMM_WIDTH)
    firmware = _words(FIRMWARE_STATUS, fw) or f"unknown status {fw:#x}"
    hypervisor = _words(REQUEST_STATUS, vmm) or f"unknown status {vmm:#x}"
    return f"firmware: {firmware}; hypervisor: {hypervisor}"


def explain_request_status(value: int) -> Explanation:
    """Say how a guest request went: INFO2 of its answer."""
    words = request_status(value)
    return Explanation(
        value=value,
        function="request_status",
        title="guest request status",
        direction="",
        sentence=words,
        fields=(),
        findings=("no such status is known",) if "unknown status" in words else (),
        remarks=(),
        kind="request-status",
    )


def _explain_info1(code: int, kind: str, title: str) -> Any:
    def explain(value: int) -> Explanation:
        event = _events()[code]
        said = say(event.info1, value, closed=_CLOSED.get(event.name, ()))
        return Explanation(
            value=value,
            function=event.name,
            title=title,
            direction="request",
            sentence=said.text,
            fields=said.fields,
            findings=said.findings,
            remarks=said.remarks,
            kind=kind,
        )

    return explain


KINDS = (
    Kind("ghcb", "GHCB pages, as a guest's requests", lib.GHCB_PAGE_SIZE, explain_ghcb),
    Kind(
        "ghcb-answer", "GHCB pages, as a hypervisor's answers", lib.GHCB_PAGE_SIZE, explain_answer
    ),
    Kind(
        "ioio",
        "port I/O, INFO1 of the event",
        None,
        _explain_info1(lib.GHCB_NAE_IOIO, "ioio", "port I/O"),
    ),
    Kind(
        "ap-creation",
        "SNP AP creation, INFO1 of the event",
        None,
        _explain_info1(lib.GHCB_NAE_SNP_AP_CREATION, "ap-creation", "SNP AP creation"),
    ),
    Kind(
        "terminate",
        "termination, INFO1 of the event",
        None,
        _explain_info1(lib.GHCB_NAE_TERMINATE, "terminate", "termination"),
    ),
    Kind("request-status", "status of a guest request, INFO2", None, explain_request_status),
)
