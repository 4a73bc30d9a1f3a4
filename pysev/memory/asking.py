"""The questions about a guest's memory: one page, runs, counts, who disagrees since when, what
changed.

Answers about many frames come from a snapshot, so that they agree with one another; ``at`` asks an
earlier one. ``max_runs`` bounds a list; how much there is in all say ``counts`` and
``disagreeing``.

Source: ``ghcbcore/frame_view.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ghcbcore import frameview
from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from ghcbcore.ledger import Ledger, Snapshot

from . import words
from .records import Disagreement, Event, Page, Run

__all__ = ["MAX_RUNS", "Questions"]

U64: TypeAlias = NDArray[np.uint64]
U32: TypeAlias = NDArray[np.uint32]
Test: TypeAlias = Callable[[NDArray[np.void]], NDArray[np.bool_]]

MAX_RUNS = 1 << 20


class Questions:
    """What one can ask of a guest's memory; ``pysev.memory.Memory`` is one."""

    ledger: Ledger
    asid: int
    events: dict[int, Event]

    @property
    def n_pages(self) -> int:
        """Frames that there are."""
        return self.ledger.n_pages

    @property
    def n_bytes(self) -> int:
        """Bytes that the ledger holds, not those of the guest."""
        return self.ledger.n_bytes

    def event_text(self, number: int) -> str:
        """Say what an event was: its operation, frames and label, as far as a text was kept."""
        if not number:
            return "from the start"
        return str(self.events.get(number, f"event {number}"))

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
            immutable=bool(view["immutable"]),
            vmsa=bool(view["vmsa"]),
            in_use=bool(view["in_use"]),
            rights=tuple(words.rights_text(int(view[f"vmpl{i}"])) for i in range(lib.SEV_N_VMPLS)),
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

    def counts(
        self,
        field: str = "state",
        at: Snapshot | None = None,
        frames: tuple[int, int] | None = None,
    ) -> dict[str, int]:
        """Count bytes by a field of the views: ``state``, ``mapping``, ``listed``, ``key``,
        ``leaf``.

        ``frames`` is a range ``(first, n_pages)``; default: all of the guest.

        Raises
        ------
        OutOfRange
            There is no such field, or the range is not of the guest.
        """
        names = {
            "state": words.STATE_NAMES.__getitem__,
            "mapping": words.MAPPING_NAMES.__getitem__,
            "listed": words.LISTED_NAMES.__getitem__,
            "leaf": words.LEAF_NAMES.__getitem__,
            "key": words.key_name,
        }
        if field not in names:
            raise OutOfRange(f"field {field!r}: must be one of {', '.join(names)}")
        at, _, views = self.views(at)
        pages = at.count(views[field].astype(np.uint32), *(frames or ()))
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
        """List ``(first, n_pages)`` of neighbouring frames that pass a test; at most ``max_runs``.

        Parameters
        ----------
        test : function
            From an array of ``ghcbcore.frameview.VIEW_DTYPE`` to an array of bool.
        """
        at, _, views = self.views(at)
        classes = np.asarray(test(views), np.bool_).astype(np.uint32)
        firsts, lengths, _, _ = at.runs(classes, *(frames or (0, self.n_pages)), max_runs)
        return list(zip(firsts.tolist(), lengths.tolist(), strict=True))

    def frames_where(
        self, test: Test, *, frames: tuple[int, int] | None = None, at: Snapshot | None = None
    ) -> tuple[U64, U64]:
        """As ``runs``, all of them, as two arrays."""
        at, _, views = self.views(at)
        classes = np.asarray(test(views), np.bool_).astype(np.uint32)
        position, n_pages = frames or (0, self.n_pages)
        end = position + n_pages
        parts = [(np.zeros(0, np.uint64), np.zeros(0, np.uint64))]
        while position < end:
            firsts, lengths, _, position = at.runs(classes, position, end - position, MAX_RUNS)
            parts.append((firsts, lengths))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def views_at(self, frames: U64, *, at: Snapshot | None = None) -> NDArray[np.void]:
        """Return the views of the frames of an array, taken apart; without the GPA field's base."""
        at, _, views = self.views(at)
        return views[at.ids(frames)]

    def disagreements(
        self,
        kinds: Iterable[str] | None = None,
        *,
        max_runs: int = MAX_RUNS,
        at: Snapshot | None = None,
    ) -> list[Disagreement]:
        """List where views disagree, by way and address; neighbours with another history apart.

        Parameters
        ----------
        kinds : names of ``pysev.tables.frames.DISAGREEMENTS``, optional
            Default: all but those of the content, which every conversion leaves behind.
        max_runs : int
            At most this many of each kind; ``disagreeing`` says how much there is.
        """
        at, records, views = self.views(at)
        found: list[Disagreement] = []
        for name in words.DEFAULT_DISAGREEMENTS if kinds is None else kinds:
            has, bit = _disagree(name, records, views)
            if not has.any():
                continue
            columns = list(words.VIEWS_OF_DISAGREEMENT[bit])
            last, is_exact = words.youngest(records["since"][:, columns])
            histories, classes = np.unique(
                last.astype(np.int64) * 2 + is_exact, return_inverse=True
            )
            chosen = np.where(has, classes.reshape(-1) + 1, 0).astype(np.uint32)
            firsts, lengths, which, _ = at.runs(chosen, 0, self.n_pages, max_runs)
            what = words.DISAGREEMENT_TEXTS[name]
            for first, n, c in zip(firsts.tolist(), lengths.tolist(), which.tolist(), strict=True):
                event, exact = divmod(int(histories[c - 1]), 2)
                found.append(Disagreement(name, first, n, what, event, bool(exact)))
        return found

    def disagreeing(
        self, kinds: Iterable[str] | None = None, *, at: Snapshot | None = None
    ) -> dict[str, int]:
        """Count the bytes of pages that disagree, by kind; kinds as of ``disagreements``."""
        at, records, views = self.views(at)
        found = {}
        for name in words.DEFAULT_DISAGREEMENTS if kinds is None else kinds:
            has, _ = _disagree(name, records, views)
            if has.any() and (counted := at.count(has.astype(np.uint32)))[1]:
                found[name] = int(counted[1]) * lib.GHCB_PAGE_SIZE
        return found

    def pages_disagreeing(self, *, at: Snapshot | None = None) -> int:
        """Count the frames of which views disagree in any way but those of the content."""
        at, records, views = self.views(at)
        has = np.zeros(len(records), np.bool_)
        for name in words.DEFAULT_DISAGREEMENTS:
            has |= _disagree(name, records, views)[0]
        counted = at.count(has.astype(np.uint32))
        return int(counted[1]) if len(counted) > 1 else 0

    def changes(self, before: Snapshot, *, max_runs: int = MAX_RUNS) -> list[Run]:
        """List what has changed since a snapshot, at most ``max_runs``; ``what`` names the
        views.
        """
        firsts, lengths, sets, _ = before.differences(self.snapshot(), max_runs=max_runs)
        return [
            Run(first, n, ", ".join(words.views_of(views)))
            for first, n, views in zip(
                firsts.tolist(), lengths.tolist(), sets.tolist(), strict=True
            )
        ]

    def pages_assigned_to(self, asid: int) -> int:
        """Frames that the RMP gives to an ASID: while there are any, it cannot be activated
        anew.
        """
        at, _, views = self.views()
        mine = (views["assigned"].astype(np.bool_) & (views["asid"] == asid)).astype(np.uint32)
        counted = at.count(mine)
        return int(counted[1]) if len(counted) > 1 else 0


def _disagree(
    name: str, records: NDArray[np.void], views: NDArray[np.void]
) -> tuple[NDArray[np.bool_], int]:
    bit = words.number_of(name, words.DISAGREEMENT_NUMBERS, "disagreement")
    has: NDArray[np.bool_] = (views["differ"] & np.uint32(1 << bit)).astype(np.bool_)
    has[records["n_pages"] == np.uint64(lib.GHCB_STORE_FREED)] = False
    return has, bit
