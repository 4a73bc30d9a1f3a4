"""The rules of ``pysev.tables.lint``, looked for in batches of exchanges.

Each rule is a mask over a batch, made from the tables of functions and events: the work for a line
is a few numpy operations on its share of a batch. Words are made for the findings that are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ghcbcore import msr as _msr
from ghcbcore._cffi import lib
from ghcbcore.exchange import Pairer
from pysev.decode import explain_msr
from pysev.tables.features import FEATURES
from pysev.tables.msr import FUNCTIONS
from pysev.tables.nae import EVENTS, INJECTION, MALFORMED, PSC_STATUS
from pysev.tables.schema import Bits, Event, Word

from .findings import Findings
from .reader import Array, Batch

__all__ = ["REASONS", "Lint"]

ALL = (1 << 64) - 1
LOW = (1 << 32) - 1
PAGE_MASK = lib.GHCB_PAGE_SIZE - 1
LARGE_PAGE_MASK = lib.GHCB_PSC_PAGES_2M * lib.GHCB_PAGE_SIZE - 1

REASONS = {
    lib.GHCB_TRACE_E_PREFIX: "what stands before the event is no known form",
    lib.GHCB_TRACE_E_FIELD: "a field is missing",
    lib.GHCB_TRACE_E_NUMBER: "a number is missing",
    lib.GHCB_TRACE_E_RANGE: "a number does not fit",
    lib.GHCB_TRACE_E_TAIL: "more text after the last field",
    lib.GHCB_TRACE_E_LONG: f"longer than {lib.GHCB_TRACE_LINE_MAX} bytes",
}

_REQUESTS = {f.request.code: f for f in FUNCTIONS if f.request is not None}
_MSR_ROWS = {row.code: row for row in _msr.rows()}
_EVENTS = {e.code: e for e in EVENTS if e.code != lib.GHCB_NAE_SOFTWARE_RESERVED}
_IOIO = {bits.name: bits for bits in (_EVENTS[lib.GHCB_NAE_IOIO].info1 or Word("")).bits}
_AP = {bits.name: bits for bits in (_EVENTS[lib.GHCB_NAE_SNP_AP_CREATION].info1 or Word("")).bits}
_INJECT = {bits.name: bits for bits in INJECTION.bits}
_TERMINATE = {bits.name: bits for bits in (_EVENTS[lib.GHCB_NAE_TERMINATE].info1 or Word("")).bits}


def _u64(value: int) -> np.uint64:
    return np.uint64(value)


def _mask(bits: Iterable[Bits]) -> int:
    return sum(((1 << b.width) - 1) << b.shift for b in bits)


def _field(words: Any, bits: Bits) -> Any:
    return words >> _u64(bits.shift) & _u64((1 << bits.width) - 1)


def _reserved(word: Word | None) -> int:
    """Return the bits of a word of exit information that must be zero."""
    if word is None:
        return ALL
    return ALL & ~_mask(word.bits) if word.bits else 0


def _features(code: int, page: bool) -> int:
    """Return the feature bits any of which brings a request; 0 if it needs none."""
    bits = [f.bit for f in FEATURES if code in (f.nae if page else f.msr)]
    return sum(1 << bit for bit in bits)


class _Kinds:
    """What the tables say of each kind of request in a trace: arrays by the number of the kind."""

    def __init__(self) -> None:
        n = lib.GHCB_EXCHANGE_N_KINDS
        self.n = 0
        self.code = np.full(n, ALL, np.uint64)
        self.known = np.zeros(n, bool)
        self.answered = np.zeros(n, bool)  # an MSR request that has an answer
        self.info1_reserved = np.zeros(n, np.uint64)
        self.info2_reserved = np.zeros(n, np.uint64)
        self.msr_reserved = np.zeros(n, np.uint64)
        self.since_2 = np.zeros(n, bool)
        self.features = np.zeros(n, np.uint64)
        self.operations = np.full(n, -1, np.int64)  # how many there are, from 0 on

    def learn(self, pairer: Pairer) -> None:
        kinds = pairer.kinds()
        for i in range(self.n, len(kinds)):
            code = kinds[i].code
            if code is None:
                continue
            self.code[i] = code
            self.features[i] = _features(code, kinds[i].page)
            if kinds[i].page:
                self._learn_event(i, _EVENTS.get(code))
            elif code in _REQUESTS and code != lib.GHCB_MSR_GHCB_GPA:
                function = _REQUESTS[code]
                self.known[i] = True
                self.answered[i] = function.answer is not None
                self.msr_reserved[i] = _MSR_ROWS[code].reserved
                self.since_2[i] = (function.since or 0) >= lib.GHCB_VERSION_MAX
        self.n = len(kinds)

    def _learn_event(self, i: int, event: Event | None) -> None:
        if event is None:
            return
        self.known[i] = True
        self.since_2[i] = event.since >= lib.GHCB_VERSION_MAX
        if event.confidence == "agreed":
            self.info1_reserved[i] = _reserved(event.info1)
            self.info2_reserved[i] = _reserved(event.info2)
            if event.info1 is not None and event.info1.values:
                self.operations[i] = max(event.info1.values) + 1


class Lint:
    """Looks at the batches of one trace, in order; see ``findings``."""

    def __init__(self, pairer: Pairer) -> None:
        self.findings = Findings()
        self._pairer = pairer
        self._kinds = _Kinds()
        # what counts only if the other event of the same protocol was recorded at all
        self._unasked = Findings(), Findings()
        self._unanswered = Findings(), Findings()

    def look(self, batch: Batch) -> None:
        """Look at one batch."""
        if len(batch.lines):
            self._lines(batch.lines)
        x = batch.exchanges
        if not len(x):
            return
        if int(x["kind"].max()) >= self._kinds.n:
            self._kinds.learn(self._pairer)
        flags = x["flags"]
        page = flags & lib.GHCB_EXCHANGE_PAGE != 0
        self._order(x, flags)
        for which, ask, answer in (
            (page, self._page_requests, self._page_answers),
            (~page, self._msr_requests, self._msr_answers),
        ):
            if not which.any():
                continue
            some = _some(x, which)
            ask(_some(some, some["flags"] & lib.GHCB_EXCHANGE_ENTER != 0))
            answer(_some(some, some["flags"] & lib.GHCB_EXCHANGE_EXIT != 0))

    def finish(self) -> None:
        """The trace has ended."""
        n = self._pairer.line_counts()
        enters = lib.GHCB_TRACE_MSR_ENTER, lib.GHCB_TRACE_NAE_ENTER
        exits = lib.GHCB_TRACE_MSR_EXIT, lib.GHCB_TRACE_NAE_EXIT
        for page in (0, 1):
            if n[enters[page]]:
                self.findings.take(self._unasked[page])
            if n[exits[page]]:
                self.findings.take(self._unanswered[page])
        if beyond := self._pairer.n_untracked:
            limit = lib.GHCB_EXCHANGE_MAX_VCPUS
            self.findings.add("too-many-vcpus", 0, f"{beyond} lines beyond the first {limit} vCPUs")

    def _ask(self, rule: str, broken: Any, x: Array, words: Callable[[Any], str]) -> None:
        self.findings.add_where(rule, broken, x, _enter_line, words)

    def _answer(self, rule: str, broken: Any, x: Array, words: Callable[[Any], str]) -> None:
        self.findings.add_where(rule, broken, x, _exit_line, words)

    # -- lines, and how they go together --------------------------------------------------------

    def _lines(self, lines: Array) -> None:
        kind, add = lines["kind"], self.findings.add_where
        add("unreadable-line", kind == lib.GHCB_TRACE_BAD, lines, _line, _unreadable)
        add("lost-events", kind == lib.GHCB_TRACE_LOST, lines, _line, _lost)
        failed = (kind == lib.GHCB_TRACE_RMP_FAULT) & (lines["result"] != 0)
        add("rmp-fault", failed, lines, _line, _rmp_fault)

    def _order(self, x: Array, flags: Array) -> None:
        explained = flags & (lib.GHCB_EXCHANGE_LOST | lib.GHCB_EXCHANGE_ENDED) != 0
        entered = flags & lib.GHCB_EXCHANGE_ENTER != 0
        unasked = ~entered & ~explained & (flags & lib.GHCB_EXCHANGE_FIRST == 0)
        unanswered = (flags & lib.GHCB_EXCHANGE_OVERLAP != 0) & ~explained
        if unasked.any() or unanswered.any():
            page = flags & lib.GHCB_EXCHANGE_PAGE != 0
            for i, which in enumerate((~page, page)):
                self._unasked[i].add_where(
                    "answer-without-request",
                    unasked & which,
                    x,
                    _exit_line,
                    lambda one: f"{_who(one)}: {_what(one)}: no request before it",
                )
                self._unanswered[i].add_where(
                    "request-without-answer",
                    unanswered & which,
                    x,
                    _enter_line,
                    lambda one: f"{_who(one)}: {_what(one)}: asks again before an answer",
                )
        self._answer(
            "answer-to-another-event",
            flags & lib.GHCB_EXCHANGE_CHANGED != 0,
            x,
            lambda one: f"{_who(one)}: {_what(one)}: the answer names another exit code",
        )
        self.findings.add_where(
            "time-backwards",
            flags & lib.GHCB_EXCHANGE_BACKWARDS != 0,
            x,
            lambda one: _enter_line(one) or _exit_line(one),
            lambda one: f"{_who(one)}: {_what(one)}: earlier than the line before it",
        )

    # -- MSR protocol ---------------------------------------------------------------------------

    def _msr_requests(self, x: Array) -> None:
        if not len(x):
            return
        k, known = x["kind"], self._kinds
        value, code = x["msr"], known.code[k]
        self._ask("msr-unknown-function", ~known.known[k], x, _msr_words)
        self._ask("msr-reserved-bits", value & known.msr_reserved[k] != 0, x, _msr_words)
        psc = code == lib.GHCB_MSR_PSC_REQ
        if psc.any():
            op = value >> _u64(lib.GHCB_MSR_PSC_REQ_OP_SHIFT) & _u64(
                (1 << lib.GHCB_MSR_PSC_REQ_OP_WIDTH) - 1
            )
            legal = (op == lib.GHCB_PSC_OP_PRIVATE) | (op == lib.GHCB_PSC_OP_SHARED)
            self._ask("msr-page-operation", psc & ~legal, x, _msr_words)
            gfn = value >> _u64(lib.GHCB_MSR_PSC_REQ_GFN_SHIFT) & _u64(
                (1 << lib.GHCB_MSR_PSC_REQ_GFN_WIDTH) - 1
            )
            self._ask("msr-page-zero", psc & legal & (gfn == 0), x, _msr_words)
        self._ask("termination", code == lib.GHCB_MSR_TERM_REQ, x, _msr_words)
        self._needs(x, k)

    def _msr_answers(self, x: Array) -> None:
        if not len(x):
            return
        known, result, after = self._kinds, x["result"], x["msr_after"]
        self._answer("to-user-space-failed", result < 0, x, _result_words)
        self._answer("msr-result", result > 1, x, _result_words)
        judged = (result != 0) & (x["flags"] & lib.GHCB_EXCHANGE_ENTER != 0)
        judged &= known.answered[x["kind"]]
        status = _msr.check_answers(np.ascontiguousarray(x["msr"]), np.ascontiguousarray(after))
        for rule, which in (
            ("msr-answer-code", lib.GHCB_E_CODE_MISMATCH),
            ("msr-answer-reserved-bits", lib.GHCB_E_RESERVED_BITS),
            ("msr-answer-echo", lib.GHCB_E_ECHO_MISMATCH),
        ):
            self._answer(rule, judged & (status == which), x, _msr_answer_words)
        code = after & _u64(lib.GHCB_MSR_INFO_MASK)
        data = after >> _u64(lib.GHCB_MSR_DATA_SHIFT)
        refused = (code == lib.GHCB_MSR_REG_GPA_RESP) & (data == _u64(lib.GHCB_MSR_NO_GFN))
        refused |= (code == lib.GHCB_MSR_PSC_RESP) & (
            after >> _u64(lib.GHCB_MSR_PSC_RESP_ERROR_SHIFT) != 0
        )
        self._answer("msr-refused", refused & (result != 0), x, _msr_answer_words)

    # -- page protocol --------------------------------------------------------------------------

    def _page_requests(self, x: Array) -> None:
        if not len(x):
            return
        k, known = x["kind"], self._kinds
        info1, info2, code = x["sw_exit_info_1"], x["sw_exit_info_2"], known.code[k]
        self._ask("unknown-event", ~known.known[k], x, _what)
        broken = (info1 & known.info1_reserved[k] != 0) | (info2 & known.info2_reserved[k] != 0)
        self._ask("event-reserved-bits", broken, x, _info_words)
        n_operations = known.operations[k]
        chosen = np.minimum(info1, _u64(1 << 62)).astype(np.int64)
        self._ask("event-operation", (n_operations >= 0) & (chosen >= n_operations), x, _info_words)
        if (is_io := code == lib.GHCB_NAE_IOIO).any():
            self._ioio(x, is_io, info1, info2)
        mmio = (code == lib.GHCB_NAE_MMIO_READ) | (code == lib.GHCB_NAE_MMIO_WRITE)
        if mmio.any():
            most = np.where(
                x["version"] >= lib.GHCB_VERSION_MAX, lib.GHCB_MMIO_MAX_V2, lib.GHCB_MMIO_MAX_V1
            ).astype(np.uint64)
            self._ask("mmio-length", mmio & ((info2 == 0) | (info2 > most)), x, _info_words)
        creates = code == lib.GHCB_NAE_SNP_AP_CREATION
        if creates.any():
            op, vmsa = _field(info1, _AP["op"]), info2
            misplaced = (vmsa & _u64(PAGE_MASK) != 0) | (vmsa & _u64(LARGE_PAGE_MASK) == 0)
            broken = op > lib.GHCB_AP_CREATE_DESTROY
            broken |= (op != lib.GHCB_AP_CREATE_DESTROY) & misplaced
            self._ask("ap-creation", creates & broken, x, _info_words)
        asks = (code == lib.GHCB_NAE_SNP_GUEST_REQUEST) | (
            code == lib.GHCB_NAE_SNP_EXT_GUEST_REQUEST
        )
        if asks.any():
            unaligned = (info1 | info2) & _u64(PAGE_MASK) != 0
            self._ask("guest-request-pages", asks & (unaligned | (info1 == info2)), x, _info_words)
        self._ask("termination", code == lib.GHCB_NAE_TERMINATE, x, _terminate_words)
        unregistered = x["flags"] & lib.GHCB_EXCHANGE_UNREGISTERED != 0
        self._ask("unregistered-ghcb", unregistered, x, _what)
        self._needs(x, k)

    def _ioio(self, x: Array, is_io: Array, info1: Array, info2: Array) -> None:
        size, address = _field(info1, _IOIO["size"]), _field(info1, _IOIO["address"])
        segment, string = _field(info1, _IOIO["segment"]), _field(info1, _IOIO["string"])
        bad = ~_one_bit(size) | ~_one_bit(address) | (segment > lib.GHCB_IOIO_SEGMENT_GS)
        self._ask("ioio-bits", is_io & bad, x, _info_words)
        room = np.where(size == 0, 0, lib.GHCB_SHARED_BUFFER_SIZE // np.maximum(size, 1))
        bad = np.where(string != 0, (info2 == 0) | (info2 > room), info2 != 0)
        self._ask("ioio-count", is_io & bad, x, _info_words)

    def _page_answers(self, x: Array) -> None:
        if not len(x):
            return
        info1, info2 = x["info_1_after"], x["info_2_after"]
        if not info1.any() and not info2.any():
            return
        low = info1 & _u64(LOW)
        malformed = low == lib.GHCB_REPLY_MALFORMED
        self._answer("malformed-request", malformed, x, _malformed_words)
        strange = (info2 == 0) | (info2 > lib.GHCB_MALFORMED_INVALID_EVENT)
        self._answer("unknown-reason", malformed & strange, x, _malformed_words)
        unknown = (low > lib.GHCB_REPLY_MALFORMED) | (info1 > LOW)
        self._answer("unknown-reply", unknown, x, _reply_words)
        vector = _field(info2, _INJECT["vector"])
        fine = (_field(info2, _INJECT["valid"]) == 1) & (
            _field(info2, _INJECT["type"]) == lib.GHCB_INJECT_TYPE_EXCEPTION
        )
        fine &= (vector == lib.SEV_VECTOR_UD) | (vector == lib.SEV_VECTOR_GP)
        self._answer("bad-injection", (low == lib.GHCB_REPLY_EXCEPTION) & ~fine, x, _reply_words)
        failed = (x["sw_exit_code"] == lib.GHCB_NAE_PSC) & (low == lib.GHCB_REPLY_OK) & (info2 != 0)
        self._answer("page-change-failed", failed, x, _psc_words)

    def _needs(self, x: Array, k: Array) -> None:
        """What the host must offer for a request."""
        needed, offered = self._kinds.features[k], x["offered"]
        missing = (needed != 0) & (offered != _u64(lib.GHCB_EXCHANGE_NOT_OFFERED))
        self._ask("feature-not-offered", missing & (needed & offered == 0), x, _feature_words)
        old = x["version"] == lib.GHCB_VERSION_MIN
        self._ask("version-2-only", old & self._kinds.since_2[k], x, _what)


def _some(x: Array, which: Array) -> Array:
    """Return the records where ``which``; as plain bytes they are copied five times faster."""
    if which.all():
        return x
    found: Array = x.view(f"V{x.dtype.itemsize}")[which].view(x.dtype)
    return found


def _one_bit(values: Array) -> Array:
    one: Array = (values != 0) & (values & (values - np.minimum(values, 1)) == 0)
    return one


# -- words -----------------------------------------------------------------------------------------


def _line(line: Any) -> int:
    return int(line["line"])


def _enter_line(x: Any) -> int:
    return int(x["enter_line"])


def _exit_line(x: Any) -> int:
    return int(x["exit_line"])


def _unreadable(line: Any) -> str:
    return f"byte {int(line['offset'])}: {REASONS[int(line['detail'])]}"


def _lost(line: Any) -> str:
    n = int(line["a"])
    return f"CPU {int(line['cpu'])} of the host lost {n or 'some'} events"


def _rmp_fault(line: Any) -> str:
    return (
        f"vCPU {int(line['vcpu'])}: GPA {int(line['a']):#x}, PFN {int(line['b']):#x}, "
        f"error code {int(line['c']):#x}, level {int(line['detail'])}: "
        f"splitting failed with {int(line['result'])}"
    )


def _who(x: Any) -> str:
    return f"vCPU {int(x['vcpu'])}"


def _what(x: Any) -> str:
    """Return the request, or the answer where there is no request, in a few words."""
    if not int(x["flags"]) & lib.GHCB_EXCHANGE_PAGE:
        asked = int(x["flags"]) & lib.GHCB_EXCHANGE_ENTER
        return _first_line(int(x["msr"]) if asked else int(x["msr_after"]))
    code = int(x["sw_exit_code"])
    event = _EVENTS.get(code)
    return f"event {code:#x}, {event.what if event else 'unknown'}"


def _first_line(value: int) -> str:
    return explain_msr(value).as_text().splitlines()[0]


def _msr_words(x: Any) -> str:
    explained = explain_msr(int(x["msr"]))
    return "; ".join((f"{_who(x)}: {_first_line(int(x['msr']))}", *explained.findings))


def _msr_answer_words(x: Any) -> str:
    return f"{_who(x)}: {_first_line(int(x['msr']))}, answered {_first_line(int(x['msr_after']))}"


def _result_words(x: Any) -> str:
    return f"{_who(x)}: {_what(x)}: result {int(x['result'])}"


def _info_words(x: Any) -> str:
    return (
        f"{_who(x)}: {_what(x)}: INFO1 {int(x['sw_exit_info_1']):#x}, "
        f"INFO2 {int(x['sw_exit_info_2']):#x}"
    )


def _terminate_words(x: Any) -> str:
    info = _u64(int(x["sw_exit_info_1"]))
    wanted, code = int(_field(info, _TERMINATE["set"])), int(_field(info, _TERMINATE["code"]))
    value = _msr.encode_one(lib.GHCB_MSR_TERM_REQ, wanted, code)
    return f"{_who(x)}: event {lib.GHCB_NAE_TERMINATE:#x}: {explain_msr(value).sentence}"


def _malformed_words(x: Any) -> str:
    reason = int(x["info_2_after"])
    words = {row.code: row.what for row in MALFORMED}.get(reason, "a reserved reason")
    if reason > lib.GHCB_MALFORMED_STANDARD_MAX:
        words = "a reason of the hypervisor's own"
    return f"{_info_words(x)}: malformed, {reason:#x}: {words}"


def _reply_words(x: Any) -> str:
    return (
        f"{_who(x)}: {_what(x)}: answered INFO1 {int(x['info_1_after']):#x}, "
        f"INFO2 {int(x['info_2_after']):#x}"
    )


def _psc_words(x: Any) -> str:
    info = int(x["info_2_after"])
    klass, detail = divmod(info, 1 << lib.GHCB_PSC_STATUS_CLASS_SHIFT)
    what = next(
        (s.what for s in PSC_STATUS if s.klass == klass and s.detail in (None, detail)), "unknown"
    )
    return f"{_who(x)}: {_what(x)}: status {info:#x}: {what}"


def _feature_words(x: Any) -> str:
    page = bool(int(x["flags"]) & lib.GHCB_EXCHANGE_PAGE)
    code = int(x["sw_exit_code"]) if page else int(x["msr"]) & lib.GHCB_MSR_INFO_MASK
    names = [f.name for f in FEATURES if code in (f.nae if page else f.msr)]
    return (
        f"{_who(x)}: {_what(x)}: needs {' or '.join(names)}, the host offers {int(x['offered']):#x}"
    )
