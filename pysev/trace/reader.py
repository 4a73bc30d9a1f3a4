"""The records and exchanges of a trace, batch by batch, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghcbcore.exchange import EXCHANGE_DTYPE, Pairer
from ghcbcore.trace import LINE_DTYPE, Scanner

__all__ = ["Array", "Batch", "TraceReader"]

ROOM = 1 << 14
"""Records in a batch: a megabyte, so that they stay in the cache from one step to the next."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Batch:
    """Some records of lines, and the exchanges that they completed.

    Both arrays are used again for the next batch.
    """

    lines: Array
    exchanges: Array


class TraceReader:
    """Reads one trace, once.

    Attributes
    ----------
    scanner : ghcbcore.trace.Scanner
        Has the number of lines and the names.
    pairer : ghcbcore.exchange.Pairer
        Has what was counted: kinds, times, vCPUs.

    Examples
    --------
    >>> text = b"kvm:kvm_vmgexit_msr_protocol_enter: vcpu 0, ghcb_gpa 0020000000000014\\n"
    >>> [len(batch.exchanges) for batch in TraceReader().batches([text])]
    [0, 1]
    """

    def __init__(self) -> None:
        self.scanner = Scanner()
        self.pairer = Pairer()
        self._lines = np.empty(ROOM, LINE_DTYPE)
        self._exchanges = np.empty(ROOM, EXCHANGE_DTYPE)

    def batches(self, pieces: Iterable[bytes | bytearray | memoryview]) -> Iterator[Batch]:
        """Give all that ``pieces`` of text say, in order.

        If getting a piece raises, what came before it was given; ``end`` gives what it left.
        """
        for piece in pieces:
            rest = memoryview(piece)
            while len(rest):
                used, n = self.scanner.scan(rest, self._lines)
                rest = rest[used:]
                yield from self.paired(self._lines[:n])
        yield from self.end()

    def end(self) -> Iterator[Batch]:
        """The text has ended, perhaps within a line: give what it says, and what still waits."""
        yield from self.paired(self._lines[: self.scanner.finish(self._lines)])
        yield from self.rest()

    def rest(self) -> Iterator[Batch]:
        """The trace has ended: give the exchanges that still wait for an answer."""
        while n := self.pairer.finish(self._exchanges):
            yield Batch(self._lines[:0], self._exchanges[:n])

    def paired(self, lines: Array) -> Iterator[Batch]:
        """Give what records of lines say that come from elsewhere, in order."""
        while len(lines):
            used, n = self.pairer.pair(lines, self._exchanges)
            yield Batch(lines[:used], self._exchanges[:n])
            lines = lines[used:]
