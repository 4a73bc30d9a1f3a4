"""What a script expects: the lines that make it a test.

expect ok                               the operation before was not refused
expect unchanged                        it was not, and nothing changed (PVALIDATE's carry flag)
expect FAIL_OVERLAP                     it was, with these words before the colon:
expect #PF 0x80000003                   a return code, a fault with its error bits,
expect INVALID_PAGE_STATE               a status of firmware
expect page FRAME NAME=VALUE...         the page is so: state, asid, gfn, size, rights0,
mapping, leaf,
                                        believed, listed, key, vmsa, immutable, in_use,
                                        validated
expect counts FIELD NAME=SIZE...        as `counts FIELD` says, all of it
expect changes NAME FRAMES...           exactly these have changed since a snapshot
expect disagree KIND FRAMES...|none     views disagree in this way in exactly these frames
expect agree                            no views disagree
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysev.memmap import format_size, parse_size

from . import words
from .records import Page
from .script import Arguments

if TYPE_CHECKING:
    from .session import Session

__all__ = ["USAGE", "Runs", "expect", "merged", "runs_text"]

USAGE = "expect ok|unchanged|REFUSAL|page ...|counts ...|changes ...|disagree ...|agree"
Runs = list[tuple[int, int]]
MAX_SHOWN = 8


def expect(session: Session, a: Arguments) -> str:
    """Look whether it is so; return an empty string, or in words how it is instead."""
    what = a.word("what")
    if what in _KINDS:
        return _KINDS[what](session, a)
    tokens = [what, *a.rest()]
    a.end()
    last = session.last
    if last is None:
        raise a.error("nothing has happened yet")
    head = last.refusal.partition(":")[0].split()
    if tokens == ["ok"]:
        return last.refusal
    if tokens == ["unchanged"]:
        return last.refusal or (f"{last.n_changed} pages have changed" if last.n_changed else "")
    if all(token in head for token in tokens):
        return ""
    return last.refusal or "it was not refused"


def _page(session: Session, a: Arguments) -> str:
    frame, wanted = a.frame(), a.named()
    a.end()
    fields = fields_of(session.memory.page(frame))
    for name in wanted:
        if name not in fields:
            raise a.error(f"{name[:40]!a}: must be one of {', '.join(fields)}")
    if not wanted:
        raise a.error("NAME=VALUE is missing")
    return ", ".join(f"{n} is {fields[n]}" for n, value in wanted.items() if fields[n] != value)


def fields_of(page: Page) -> dict[str, str]:
    """Return what can be expected of a page, as text."""
    return {
        "state": page.state,
        "asid": str(page.asid),
        "gfn": f"{page.gfn:#x}",
        "size": "2M" if page.large else "4K",
        **{f"rights{i}": letters for i, letters in enumerate(page.rights)},
        "mapping": page.mapping,
        "leaf": page.leaf,
        "listed": page.listed,
        "key": page.key.replace(" ", "-"),
        **{
            name: "yes" if getattr(page, name) else "no"
            for name in ("believed", "validated", "vmsa", "immutable", "in_use")
        },
    }


def _counts(session: Session, a: Arguments) -> str:
    field, wanted = a.word("FIELD"), a.named()
    a.end()
    counted = session.memory.counts(field)
    if counted == {name.replace("-", " "): parse_size(size) for name, size in wanted.items()}:
        return ""
    return ", ".join(f"{name}={format_size(n)}" for name, n in counted.items())


def _changes(session: Session, a: Arguments) -> str:
    name, wanted = a.word("NAME"), a.frame_runs()
    a.end()
    if name not in session.snapshots:
        raise a.error(f"no snapshot {name[:40]!a}")
    found = session.memory.changes(session.snapshots[name])
    return _compare([(run.first, run.n_pages) for run in found], wanted)


def _disagree(session: Session, a: Arguments) -> str:
    kind = a.word("KIND")
    words.number_of(kind, words.DISAGREEMENT_NUMBERS, "disagreement")
    wanted: Runs = [] if a.flag("none") else a.frame_runs()
    a.end()
    session.expected[kind] = merged(wanted)
    return _compare(session.disagreeing_runs(kind), wanted)


def _agree(session: Session, a: Arguments) -> str:
    a.end()
    session.expected.clear()
    return ", ".join(f"{k} {format_size(n)}" for k, n in session.memory.disagreeing().items())


_KINDS = {
    "page": _page,
    "counts": _counts,
    "changes": _changes,
    "disagree": _disagree,
    "agree": _agree,
}


def merged(runs: Runs) -> Runs:
    """Return runs in the order of addresses, neighbours put together."""
    found: Runs = []
    for first, n in sorted(runs):
        if found and first <= sum(found[-1]):
            found[-1] = (found[-1][0], max(sum(found[-1]), first + n) - found[-1][0])
        elif n:
            found.append((first, n))
    return found


def runs_text(runs: Runs) -> str:
    """Return runs as scripts have them."""
    text = " ".join(f"{first:#x}+{n}" for first, n in runs[:MAX_SHOWN])
    return text + f" and {len(runs) - MAX_SHOWN} more" * (len(runs) > MAX_SHOWN)


def _compare(found: Runs, wanted: Runs) -> str:
    found, wanted = merged(found), merged(wanted)
    return "" if found == wanted else (runs_text(found) or "none")
