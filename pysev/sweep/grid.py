"""Grids as people write them: ``2,8,64``, ``2..4096``, ``2..4096*4``, ``1G..4G+1G``.

A range goes from its first number on, doubling, or by a factor (``*``) or a step (``+``), as long
as its last number is not passed. Parts with commas between them are taken together.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ghcbcore._cffi import lib

from ..memmap import BadSize, parse_size
from .plan import SweepError

__all__ = ["MAX_VALUES", "parse_counts", "parse_sizes"]

MAX_VALUES = 1 << 16
MAX_CHARS = 4096


def parse_counts(text: str, option: str = "--cpus") -> tuple[int, ...]:
    """Return numbers of CPUs, in the order in which they stand, each once.

    Raises
    ------
    SweepError
        Not a grid; a number is 0 or above GHCB_MAX_CPUS; a range goes backwards or nowhere; too
        many numbers.
    """
    found = _parse(text, option, _count, str)
    for n in found:
        if not 1 <= n <= lib.GHCB_MAX_CPUS:
            raise SweepError(f"{option} {_shown(text)}: {n} CPUs; 1 to {lib.GHCB_MAX_CPUS} can be")
    return found


def parse_sizes(text: str, option: str = "--memory") -> tuple[int, ...]:
    """Return sizes of memory in bytes, in the order in which they stand, each once.

    Raises
    ------
    SweepError, BadSize, OutOfRange, Unaligned
        As ``parse_counts`` and ``pysev.memmap.parse_size``.
    """
    return _parse(text, option, parse_size, lambda n: f"{n:#x}")


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
        raise BadSize(f"{_shown(text)} is no number")
    return int(text)


def _factor(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) or int(text) < 2:
        raise BadSize(f"*{_shown(text)}: a factor is a whole number from 2 on")
    return int(text)


def _parse(
    text: str, option: str, read: Callable[[str], int], show: Callable[[int], str]
) -> tuple[int, ...]:
    if len(text) > MAX_CHARS:
        raise SweepError(f"{option}: more than {MAX_CHARS} characters")
    found: dict[int, None] = {}
    for part in text.split(","):
        try:
            values = _values(part.strip(), read)
        except BadSize as error:
            raise SweepError(f"{option} {_shown(part)}: {error}") from error
        for n in values:
            found[n] = None
        if len(found) > MAX_VALUES:
            raise SweepError(f"{option}: more than {MAX_VALUES} values")
    return tuple(found)


def _values(part: str, read: Callable[[str], int]) -> list[int]:
    first, dots, rest = part.partition("..")
    if not dots:
        return [read(part)]
    last, how, by = rest, "*", "2"
    for sign in "*+":
        if sign in rest:
            last, how, by = (*rest.split(sign, 1)[:1], sign, rest.split(sign, 1)[1])
            break
    low, high = read(first.strip()), read(last.strip())
    if low > high:
        raise BadSize("the range goes backwards")
    if how == "+":
        step = read(by.strip())
        if step < 1:
            raise BadSize("a step of 0 leads nowhere")
        if (high - low) // step >= MAX_VALUES:
            raise BadSize(f"more than {MAX_VALUES} values")
        return list(range(low, high + 1, step))
    factor = _factor(by.strip())
    if low == 0:
        raise BadSize("0 times a factor leads nowhere")
    out = [low]
    while out[-1] * factor <= high:
        out.append(out[-1] * factor)
    return out


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
