"""Pages of physical memory whose bytes are known; all others read as zeros.

Sparse on purpose: a guest of 16 TiB has some thousand of them. ``runs`` gives them as stretches,
lowest first, as somebody sees them who reads through a key that may be the right one or not.

Units: bytes; pages of 4 KiB. What is written under which key is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from pysev.memmap import PAGE_BYTES

__all__ = ["Image"]

U8 = NDArray[np.uint8]


class Image:
    """Known pages by their number."""

    def __init__(self) -> None:
        self._pages: dict[int, U8] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, gpa: int) -> bool:
        return gpa // PAGE_BYTES in self._pages

    def put(self, gpa: int, data: bytes | NDArray[np.generic]) -> None:
        """Write bytes; what stands beside them in a page that is touched stays, or is zero."""
        raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else _bytes_of(data)
        done = 0
        while done < len(raw):
            number, offset = divmod(gpa + done, PAGE_BYTES)
            n = min(PAGE_BYTES - offset, len(raw) - done)
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = np.zeros(PAGE_BYTES, np.uint8)
            page[offset : offset + n] = raw[done : done + n]
            done += n

    def touch(self, gpa: int) -> None:
        """Make the page at this address a known one, of zeros if nobody has written there."""
        self._pages.setdefault(gpa // PAGE_BYTES, np.zeros(PAGE_BYTES, np.uint8))

    def get(self, gpa: int, size_bytes: int) -> bytes:
        """Return bytes as they were written."""
        out = bytearray()
        while len(out) < size_bytes:
            number, offset = divmod(gpa + len(out), PAGE_BYTES)
            n = min(PAGE_BYTES - offset, size_bytes - len(out))
            page = self._pages.get(number)
            out += bytes(n) if page is None else page[offset : offset + n].tobytes()
        return bytes(out)

    def drop(self, gpa: int) -> None:
        """Forget a page: nobody may read it."""
        self._pages.pop(gpa // PAGE_BYTES, None)

    def runs(
        self, seen: Callable[[int, U8], U8] = lambda gpa, data: data
    ) -> Iterator[tuple[int, U8]]:
        """Yield ``(gpa, bytes)`` of each stretch of pages that touch, as ``seen`` reads them."""
        numbers = np.array(sorted(self._pages), np.int64)
        if not len(numbers):
            return
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
            data = np.concatenate([self._pages[int(number)] for number in run])
            gpa = int(run[0]) * PAGE_BYTES
            yield gpa, seen(gpa, data)


def _bytes_of(data: NDArray[np.generic]) -> U8:
    return np.ascontiguousarray(data).view(np.uint8).reshape(-1)
