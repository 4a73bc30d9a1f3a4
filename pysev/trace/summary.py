"""What a trace comes to: how much of what, how long it took, what it says is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from ghcbcore import msr as _msr
from ghcbcore._cffi import lib
from ghcbcore.exchange import Kind, bin_start
from pysev.tables.nae import EVENTS

from .findings import Finding
from .lint import Lint
from .reader import Array, Batch, TraceReader

__all__ = ["Summary", "kind_name"]

FORMS = {
    lib.GHCB_TRACE_FORM_FTRACE: "ftrace",
    lib.GHCB_TRACE_FORM_PERF: "perf script",
    lib.GHCB_TRACE_FORM_BARE: "events without a prefix",
}
SHOWN_PLACES = 3
MAX_PROCESSES = 4096
"""No host runs more VMs; a trace that says so is not counted further."""

_MSR_NAMES = {row.code: row.name for row in _msr.rows()}
_EVENT_NAMES = {event.code: event.name for event in EVENTS}


def kind_name(kind: Kind) -> str:
    """Return ``msr:cpuid_request``, ``nae:ioio`` and so on; ``others`` for what found no place."""
    if kind.code is None:
        return "others"
    if kind.page:
        return f"nae:{_EVENT_NAMES.get(kind.code, f'{kind.code:#x}')}"
    return f"msr:{_MSR_NAMES.get(kind.code, f'{kind.code:#05x}')}"


class Summary:
    """Looks at the batches of one trace, in order, and says what they come to.

    Memory does not depend on the length of the trace.

    Attributes
    ----------
    incomplete : str
        Why the trace could not be read to its end; set by whoever read it, "" if it was.
    """

    def __init__(self, reader: TraceReader) -> None:
        self.reader = reader
        self.lint = Lint(reader.pairer)
        self.n_records = 0
        self.flags = {"to_user_space": 0, "open_at_end": 0, "unanswered": 0, "unasked": 0}
        self.pages = {"private": 0, "shared": 0}
        self._forms = np.zeros(lib.GHCB_TRACE_N_FORMS, np.int64)
        self._processes: set[int] = set()
        self._n_exchanges = 0
        self.incomplete = ""

    @property
    def n_exchanges(self) -> int:
        return self._n_exchanges

    def look(self, batch: Batch) -> None:
        """Look at one batch."""
        self.lint.look(batch)
        self.n_records += len(batch.lines)
        self._forms += np.bincount(batch.lines["form"], minlength=len(self._forms))
        x = batch.exchanges
        if not len(x):
            return
        self._n_exchanges += len(x)
        if len(self._processes) < MAX_PROCESSES:
            self._processes.update(np.unique(x["tgid"]).tolist())
        flags = x["flags"]
        whole = lib.GHCB_EXCHANGE_ENTER | lib.GHCB_EXCHANGE_EXIT
        if ((flags & ~np.uint16(lib.GHCB_EXCHANGE_PAGE | lib.GHCB_EXCHANGE_FIRST)) != whole).any():
            self._count(flags)
        self._count_pages(x)

    def _count(self, flags: Array) -> None:
        def n(mask: int, value: int) -> int:
            return int(np.count_nonzero((flags & mask) == value))

        over, ended = lib.GHCB_EXCHANGE_OVERLAP, lib.GHCB_EXCHANGE_ENDED
        self.flags["to_user_space"] += n(lib.GHCB_EXCHANGE_USER, lib.GHCB_EXCHANGE_USER)
        self.flags["open_at_end"] += n(lib.GHCB_EXCHANGE_OPEN | ended, lib.GHCB_EXCHANGE_OPEN)
        self.flags["unanswered"] += n(over | ended, over)
        self.flags["unasked"] += n(lib.GHCB_EXCHANGE_ENTER, 0)

    def _count_pages(self, x: Array) -> None:
        """Count pages whose change was asked for by the MSR protocol and not refused."""
        asked = x["msr"] & np.uint64(lib.GHCB_MSR_INFO_MASK) == lib.GHCB_MSR_PSC_REQ
        if not asked.any():
            return
        requests, answers = x["msr"][asked], x["msr_after"][asked]
        refused = answers & np.uint64(lib.GHCB_MSR_INFO_MASK) == lib.GHCB_MSR_PSC_RESP
        refused &= answers >> np.uint64(lib.GHCB_MSR_PSC_RESP_ERROR_SHIFT) != 0
        decoded = _msr.decode(requests[~refused])
        n = np.bincount(decoded["b"], minlength=lib.GHCB_PSC_OP_SHARED + 1)
        self.pages["private"] += int(n[lib.GHCB_PSC_OP_PRIVATE])
        self.pages["shared"] += int(n[lib.GHCB_PSC_OP_SHARED])

    def finish(self) -> None:
        """The trace has ended."""
        self.lint.finish()

    # -- what it comes to -----------------------------------------------------------------------

    def _times(self) -> list[dict[str, Any]]:
        """Return a row for each kind of request, the most frequent first."""
        rows = []
        bins = self.reader.pairer.histogram()
        for kind, counts in zip(self.reader.pairer.kinds(), bins, strict=True):
            if not kind.n:
                continue
            row: dict[str, Any] = {"kind": kind_name(kind), "n": kind.n}
            if kind.code is not None:
                row["code"] = f"{kind.code:#018x}"
            if kind.n_timed:
                row["latency_ns"] = {
                    "min": kind.min_ns,
                    "median": _quantile(counts, 0.5, kind),
                    "p99": _quantile(counts, 0.99, kind),
                    "max": kind.max_ns,
                }
            rows.append(row)
        return sorted(rows, key=lambda row: (-row["n"], row["kind"]))

    def _named(self, which: int) -> dict[str, int]:
        """Return how many exits (0) or other events (1) by name, the most frequent first."""
        names, counts = self.reader.scanner.names, self.reader.pairer.name_counts()[which]
        found = {_printable(name): int(n) for name, n in zip(names, counts, strict=False) if n}
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))

    def _vms(self) -> tuple[int, bool]:
        """Return how many VMs there are, and whether there may be more."""
        known = self._processes - {lib.GHCB_TRACE_NO_PID}
        if known and lib.GHCB_TRACE_NO_PID not in self._processes:
            return len(known), len(self._processes) >= MAX_PROCESSES
        vcpus = self.reader.pairer.vcpus()
        if not len(vcpus):
            return 0, False
        return int(np.unique(vcpus[:, 1], return_counts=True)[1].max()), True

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON can hold it: 64-bit numbers as hex strings, times in ns."""
        scanner, pairer = self.reader.scanner, self.reader.pairer
        span = pairer.span_ns
        n_vms, at_least = self._vms()
        lines = pairer.line_counts()
        psc = [k.n for k in pairer.kinds() if k.page and k.code == lib.GHCB_NAE_PSC]
        findings = self.lint.findings
        return {
            "forms": {FORMS[i]: int(n) for i, n in enumerate(self._forms) if n},
            "bytes": scanner.n_bytes,
            "lines": scanner.n_lines,
            "lines_of_interest": self.n_records,
            "cut_off": scanner.cut,
            "incomplete": self.incomplete,
            "span_ns": list(span) if span else None,
            "vcpus": pairer.n_vcpus,
            "vms": n_vms,
            "vms_at_least": at_least,
            "lost_events": pairer.n_lost,
            "exchanges": self._n_exchanges,
            **self.flags,
            "kinds": self._times(),
            "pages": {**self.pages, "page_state_events": sum(psc)},
            "kvm_exits": self._named(0),
            "other_events": self._named(1),
            "rmp_faults": int(lines[lib.GHCB_TRACE_RMP_FAULT]),
            "terminations": [
                _as_json(f) for f in findings.in_order() if f.rule.name == "termination"
            ],
            "findings": {
                "counts": findings.counts,
                "first": [_as_json(f) for f in findings.in_order()],
            },
        }

    def as_text(self, name: str, what: str) -> str:
        """Return what fits into a mail."""
        found = self.as_json()
        forms = ", ".join(found["forms"]) or "no event of KVM"
        out = [f"{_printable(name)}: {what}; {forms}"]
        span = found["span_ns"]
        took = f", {(span[1] - span[0]) / 1e9:.6f} s" if span else ", without times"
        out.append(
            f"{found['lines']:,} lines, {found['lines_of_interest']:,} of interest{took}"
            + (", cut off at the end" if found["cut_off"] else "")
        )
        if self.incomplete:
            out.append(f"not read to its end: {_printable(self.incomplete)}")
        more = "at least " if found["vms_at_least"] and found["vms"] else ""
        out.append(f"VMs: {more}{found['vms']}, vCPUs: {found['vcpus']}")
        out.append("")
        if found["kinds"]:
            out += _table(found["kinds"])
            out.append("")
        pages = found["pages"]
        if any(pages.values()):
            out.append(
                f"pages by MSR protocol: {pages['private']:,} made private, {pages['shared']:,} "
                f"shared; page-state events: {pages['page_state_events']:,}"
            )
        for key, words in (
            ("to_user_space", "answered by user space, unseen"),
            ("open_at_end", "without an answer when the trace ended"),
            ("unanswered", "without an answer before the next request"),
            ("unasked", "answers without a request"),
            ("rmp_faults", "faults of the reverse map table"),
            ("lost_events", "events lost by the tracer"),
        ):
            if found[key]:
                out.append(f"{words}: {found[key]:,}")
        for key, words in (("kvm_exits", "exits"), ("other_events", "other events of KVM")):
            if found[key]:
                out.append(f"{words}: {_few(found[key])}")
        out += self._findings_text()
        return "\n".join(out) + "\n"

    def _findings_text(self) -> list[str]:
        findings = self.lint.findings
        if not findings:
            return ["findings: none"]
        by_rule: dict[str, list[Finding]] = {}
        for finding in findings.in_order():
            by_rule.setdefault(finding.rule.name, []).append(finding)
        out = [f"findings: {sum(findings.counts.values()):,}"]
        for name, places in by_rule.items():
            rule, n = places[0].rule, findings.counts[name]
            often = "once" if n == 1 else f"{n:,} times"
            out.append(f"  {rule.severity}: {name}, broken {often}: {rule.what} [{rule.source}]")
            for place in places[:SHOWN_PLACES]:
                at = f"line {place.line:,}: " if place.line else ""
                out.append(f"    {at}{place.words}")
            if n > SHOWN_PLACES:
                out.append(f"    and {n - SHOWN_PLACES:,} more")
        return out


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "line": finding.line,
        "rule": finding.rule.name,
        "severity": finding.rule.severity,
        "source": finding.rule.source,
        "words": finding.words,
    }


def _printable(text: str) -> str:
    """A trace and its name may hold anything; what is printed must not move a terminal's cursor."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _quantile(counts: Array, part: float, kind: Kind) -> int:
    """Return the time below which ``part`` of the exchanges are, to an eighth of it."""
    rank = part * (int(counts.sum()) - 1)
    i = int(np.searchsorted(np.cumsum(counts), rank, side="right"))
    end = bin_start(i + 1) - 1 if i + 1 < len(counts) else kind.max_ns
    return min(kind.max_ns, max(kind.min_ns, (bin_start(i) + end) // 2))


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = ("min", "median", "p99", "max")
    width = max(len(row["kind"]) for row in rows)
    out = [f"{'request':<{width}} {'times':>12} " + " ".join(f"{c:>9}" for c in columns)]
    for row in rows:
        times = row.get("latency_ns", {})
        cells = " ".join(f"{_time(times[c]) if c in times else '-':>9}" for c in columns)
        out.append(f"{row['kind']:<{width}} {row['n']:>12,} {cells}")
    return out


def _time(ns: int) -> str:
    for scale, unit in ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")):
        if ns >= scale:
            return f"{ns / scale:.3g} {unit}"
    return f"{ns} ns"


def _few(counts: dict[str, int]) -> str:
    shown = [f"{name} {n:,}" for name, n in list(counts.items())[:10]]
    rest = sum(list(counts.values())[10:])
    return ", ".join(shown) + (f", others {rest:,}" if rest else "")
