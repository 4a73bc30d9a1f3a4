"""Exchanges as tracks: the JSON trace-event format, which ui.perfetto.dev opens.

One process a VM, one thread a vCPU. An exchange with both times is a slice, one that lacks an
answer an instant. The file is an array whose closing bracket the format lets go missing, so a file
that was cut off still opens.

Source: Trace Event Format of Chromium; timestamps in microseconds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ghcbcore._cffi import lib

from .reader import Array, TraceReader

if TYPE_CHECKING:
    from .export import Sink

__all__ = ["Perfetto"]

NO_VM = 1
"""Process of threads whose process the trace does not name."""

_SKIPPED = {"kind", "pid", "tgid", "vcpu", "begin_ns", "end_ns"}


class Perfetto:
    """Writes exchanges; tracks get their names when they come."""

    def __init__(self, sink: Sink, reader: TraceReader) -> None:
        self._sink, self._reader = sink, reader
        self._tracks: set[tuple[int, int]] = set()
        self._processes: set[int] = set()
        self._first = True
        sink.write([b"[\n"], 0)

    def write(self, exchanges: Array) -> None:
        from .export import columns

        if not len(exchanges):
            return
        found = columns(exchanges, self._reader)
        names: list[bytes] = []
        records: list[bytes] = []
        rows = zip(*found.values(), exchanges["vcpu"].tolist(), strict=True)
        for *values, vcpu in rows:
            row = dict(zip(found, values, strict=True))
            begin, end = row["begin_ns"], row["end_ns"]
            if begin is None and end is None:
                continue  # no place on a track
            process = row["tgid"] if row["tgid"] is not None else NO_VM
            thread = row["pid"] if row["pid"] is not None else vcpu
            self._name(names, process, thread, vcpu)
            event: dict[str, Any] = {"name": row["kind"], "cat": "vmgexit", "pid": process}
            event["tid"] = thread
            if begin is not None and end is not None and end >= begin:
                event |= {"ph": "X", "ts": begin / 1000, "dur": (end - begin) / 1000}
            else:
                event |= {"ph": "i", "s": "t", "ts": (begin if begin is not None else end) / 1000}
            event["args"] = {
                name: v for name, v in row.items() if name not in _SKIPPED and v not in (None, "")
            }
            records.append(self._line(event))
        if names and records and self._first:
            names[0] = names[0].removeprefix(b",")
            self._first = False
        self._sink.write([*names, *records], len(records))

    def _name(self, out: list[bytes], process: int, thread: int, vcpu: int) -> None:
        if (process, thread) in self._tracks:
            return
        if len(self._tracks) > lib.GHCB_EXCHANGE_MAX_VCPUS:
            return
        self._tracks.add((process, thread))
        if process not in self._processes:
            self._processes.add(process)
            title = "VMs" if process == NO_VM else f"VM {process}"
            out.append(self._meta("process_name", process, thread, title))
        out.append(self._meta("thread_name", process, thread, f"vCPU {vcpu}"))

    def _meta(self, what: str, process: int, thread: int, name: str) -> bytes:
        return self._line(
            # some readers want a time with everything
            {
                "name": what,
                "ph": "M",
                "ts": 0,
                "pid": process,
                "tid": thread,
                "args": {"name": name},
            }
        )

    def _line(self, event: dict[str, Any]) -> bytes:
        return b"," + json.dumps(event, separators=(",", ":")).encode() + b"\n"

    def close(self) -> None:
        """Write the end of the array."""
        self._sink.write([b"]\n"], 0)
