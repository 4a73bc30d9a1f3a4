"""Caches that know a line by address and key: what memory can hold, and which flush is missing.

``parse`` reads a small program (``pysev.caches.program``), ``explore`` follows every order in which
hardware can write lines back, ``cures`` finds the flushes that are missing. At scale, with the
geometry of a part and seeded eviction: ``pysev.caches.scale``, on ``ghcbcore.cache.Cache``. The
rules of one line: ``ghcbcore/cacheline.h``.
"""

from __future__ import annotations

from .missing import Choice, Cures, Flush, Option, cures, with_flushes
from .outcome import BadRead, Content, Outcome, Step, explore
from .program import BadProgram, Program, Statement, key_words, parse

__all__ = [
    "BadProgram",
    "BadRead",
    "Choice",
    "Content",
    "Cures",
    "Flush",
    "Option",
    "Outcome",
    "Program",
    "Statement",
    "Step",
    "cures",
    "explore",
    "key_words",
    "parse",
    "with_flushes",
]
