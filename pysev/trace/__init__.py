"""Traces of a KVM host: read, put together, judged, counted, written.

The text of ftrace, trace-cmd and perf is scanned and paired in the core (``ghcbcore.trace``,
``ghcbcore.exchange``); here are files, rules, sums and other formats. Everything goes batch by
batch, so a trace may be longer than memory.
"""

from __future__ import annotations

from .findings import Finding, Findings
from .reader import Batch, TraceReader
from .source import Source, TraceError, open_source
from .summary import Summary

__all__ = [
    "Batch",
    "Finding",
    "Findings",
    "Source",
    "Summary",
    "TraceError",
    "TraceReader",
    "open_source",
]
