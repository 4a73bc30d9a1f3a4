"""What was asked of the host, by kind and in words: the records of ``run``'s trace.

A record is ``ghcb_event_t`` of ``ghcbcore/machine.h``: who, when, which call, the request and what
was answered. A hold is answered when STARTUP comes: its record shows the answer at the VMGEXIT,
data 0, as KVM's own trace does.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ghcbcore import msr as _msr
from ghcbcore._cffi import lib

from .decode import explain_msr
from .tables.nae import EVENTS

__all__ = ["CALLS", "describe", "kind", "samples", "vmgexits_by_kind"]

CALLS = {
    lib.GHCB_CALL_VMGEXIT: "VMGEXIT",
    lib.GHCB_CALL_INIT: "INIT",
    lib.GHCB_CALL_SIPI: "STARTUP",
    lib.GHCB_CALL_NMI: "NMI",
    lib.GHCB_CALL_HLT: "HLT",
    lib.GHCB_CALL_SHUTDOWN: "shutdown",
    lib.GHCB_CALL_SEND_INIT: "send INIT",
    lib.GHCB_CALL_SEND_SIPI: "send STARTUP",
}

_ROWS = {row.code: row.name for row in _msr.rows()}
_EVENTS = {event.code: event for event in EVENTS}

Events = np.ndarray[Any, np.dtype[np.void]]


def kind(event: np.void) -> str:
    """Return the kind of a VMGEXIT: ``msr:cpuid_request`` or ``nae:ap_jump_table``."""
    code = int(event["msr"]) & lib.GHCB_MSR_INFO_MASK
    if code:
        return f"msr:{_ROWS.get(code, f'{code:#05x}')}"
    code = int(event["sw_exit_code"])
    known = _EVENTS.get(code)
    return f"nae:{known.name if known else f'{code:#x}'}"


def _is_vmgexit(events: Events) -> Events:
    found: Events = events[events["call"] == lib.GHCB_CALL_VMGEXIT]
    return found


def _distinct(events: Events) -> tuple[Events, Any, Any]:
    """Return one VMGEXIT of each kind, its index among all, and how many there are."""
    vmgexits = _is_vmgexit(events)
    order, which = _kinds(vmgexits)
    return vmgexits, order, np.bincount(which)


def _kinds(vmgexits: Events) -> tuple[Any, Any]:
    """Return the first of each kind, in order, and of each VMGEXIT the number of its kind."""
    code = vmgexits["msr"] & np.uint64(lib.GHCB_MSR_INFO_MASK)
    key = np.where(code != 0, code, vmgexits["sw_exit_code"] | np.uint64(1 << 63))
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[which]


def vmgexits_by_kind(events: Events, times: Any = None) -> dict[str, int]:
    """Count VMGEXITs by kind, in the order in which each kind first came.

    ``times``, an int array with one element for each event, says for how many alike it stands.
    """
    is_vmgexit = events["call"] == lib.GHCB_CALL_VMGEXIT
    vmgexits = events[is_vmgexit]
    first, which = _kinds(vmgexits)
    weights = np.ones(len(vmgexits), np.int64) if times is None else times[is_vmgexit]
    counts = np.zeros(len(first), np.int64)
    np.add.at(counts, which, weights)
    totals: Counter[str] = Counter()
    for i, n in zip(first, counts, strict=True):
        totals[kind(vmgexits[i])] += int(n)
    return dict(totals)


def describe(event: np.void) -> str:
    """Return a VMGEXIT in words: who, when, request and answer."""
    head = f"{int(event['time_ns']) / 1e9:12.9f} s  CPU {int(event['cpu'])}"
    if int(event["msr"]) & lib.GHCB_MSR_INFO_MASK:
        request, answer = explain_msr(int(event["msr"])), explain_msr(int(event["msr_after"]))
        text = f"{head}\n    {request.as_text()}\n    {answer.as_text()}"
        if int(event["msr_after"]) == lib.GHCB_MSR_AP_RESET_HOLD_RESP:
            text += "\n    - held: STARTUP will put 1 into the data"
        return text
    code = int(event["sw_exit_code"])
    known = _EVENTS.get(code)
    what = known.what if known else "unknown event"
    return (
        f"{head}\n    GHCB at {int(event['msr']):#x}: event {code:#x}, {what}: "
        f"info 1 {int(event['sw_exit_info_1']):#x}, info 2 {int(event['sw_exit_info_2']):#x}\n"
        f"    answer: info 1 {int(event['info_1_after']):#x}, "
        f"info 2 {int(event['info_2_after']):#x}"
    )


def samples(events: Events) -> list[str]:
    """Return the first VMGEXIT of each kind in words."""
    vmgexits, first, _ = _distinct(events)
    return [describe(vmgexits[i]) for i in first]
