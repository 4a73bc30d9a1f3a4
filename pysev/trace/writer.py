"""What was asked of a modelled host, as the trace that KVM would have written.

An event of ``run`` (``ghcb_event_t``) has request and answer together. KVM writes two lines, and
not always both:

- What ends the run has no second line: a termination, a request that goes to user space as an
  error.
- A page-state change by the MSR protocol goes to user space: the second line shows the request
  unchanged, result 0; what user space answered is never seen.
- An AP that is held by the page protocol gets its second line when STARTUP or NMI wakes it, one
  held by the MSR protocol at once, data 0.
- A GHCB MSR of 0 is not traced at all.

Source: GHCB fact sheet 5.2 and 9.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from ghcbcore.trace import LINE_DTYPE, format_lines

from .reader import Array

__all__ = ["FIRST_PID", "format_events", "lines_of_events"]

FIRST_PID = 1001
"""Thread of vCPU 0 of the first VM: the process is one below, the other vCPUs follow."""

PIECE = 1 << 16

_WAKES = (lib.GHCB_CALL_SIPI, lib.GHCB_CALL_NMI)


def lines_of_events(
    events: Array,
    *,
    first_pid: int = FIRST_PID,
    first_line: int = 1,
    start_ns: int = 0,
) -> Array:
    """Return the lines that KVM would have traced, as records.

    Parameters
    ----------
    events : array of EVENT_DTYPE, shape (n,)
        Of one machine, in order; anything but VMGEXITs gives no line of its own.
    first_pid : int
        Thread of vCPU 0, above 0; vCPU i runs in thread ``first_pid + i``, on CPU i of the host.
        The process is ``first_pid - 1``.
    first_line : int
        Number of the first line.
    start_ns : int
        Is added to every time.

    Returns
    -------
    array of LINE_DTYPE
        In the order of their times; an answer comes when its vCPU goes on (``took_ns``). ``offset``
        is 0.

    Raises
    ------
    OutOfRange
        A thread or a CPU would have a number that a trace cannot hold.
    """
    n_cpus = int(events["cpu"].max(initial=0)) + 1
    if not 1 <= first_pid <= lib.GHCB_TRACE_NO_PID - n_cpus or n_cpus > lib.GHCB_TRACE_NO_CPU:
        raise OutOfRange(f"first_pid {first_pid} with {n_cpus} CPUs: beyond what a trace can hold")
    asks = (events["call"] == lib.GHCB_CALL_VMGEXIT) & (events["msr"] != 0)
    code = events["msr"] & np.uint64(lib.GHCB_MSR_INFO_MASK)
    page = asks & (code == 0)
    held = page & (events["sw_exit_code"] == lib.GHCB_NAE_AP_RESET_HOLD)
    second = asks & ~held & (events["vm_event"] == lib.GHCB_EVENT_NONE)
    woken, by = _woken(events, asks, held)
    # two slots an event: its request; its answer, or that of the hold that it ends
    source = np.repeat(np.arange(len(events)), 2)
    source[2 * by + 1] = woken
    wanted = np.zeros(2 * len(events), bool)
    wanted[0::2], wanted[1::2] = asks, second
    wanted[2 * by + 1] = True
    slots = np.flatnonzero(wanted)
    return _records(events, slots, source[slots], first_pid, first_line, start_ns)


def _woken(events: Array, asks: Array, held: Array) -> tuple[Array, Array]:
    """Return the holds that were ended, and for each the event that ended it."""
    nothing = np.zeros(0, np.intp)
    if not held.any():
        return nothing, nothing
    matter = np.flatnonzero(asks | np.isin(events["call"], _WAKES))
    order = matter[np.argsort(events["cpu"][matter], kind="stable")]
    here, after = order[:-1], order[1:]
    ended = held[here] & (events["cpu"][here] == events["cpu"][after]) & ~asks[after]
    return here[ended], after[ended]


def _records(
    events: Array, slots: Array, source: Array, first_pid: int, first_line: int, start_ns: int
) -> Array:
    lines = np.zeros(len(slots), LINE_DTYPE)
    at, is_answer = slots // 2, slots % 2 == 1  # when it is written; `source` is what it answers
    msr = events["msr"][source]
    code = msr & np.uint64(lib.GHCB_MSR_INFO_MASK)
    page = code == 0
    is_late = is_answer & (source == at)  # an answer that another event gave comes with that event
    lines["time_ns"] = events["time_ns"][at] + np.where(is_late, events["took_ns"][at], 0)
    lines["time_ns"] += np.uint64(start_ns)
    lines["vcpu"] = lines["cpu"] = events["cpu"][at]
    lines["pid"] = lines["vcpu"] + np.uint32(first_pid)
    lines["tgid"] = first_pid - 1
    lines["form"] = lib.GHCB_TRACE_FORM_FTRACE
    lines["kind"] = np.where(
        page,
        np.where(is_answer, lib.GHCB_TRACE_NAE_EXIT, lib.GHCB_TRACE_NAE_ENTER),
        np.where(is_answer, lib.GHCB_TRACE_MSR_EXIT, lib.GHCB_TRACE_MSR_ENTER),
    )
    op = msr >> np.uint64(lib.GHCB_MSR_PSC_REQ_OP_SHIFT) & np.uint64(
        (1 << lib.GHCB_MSR_PSC_REQ_OP_WIDTH) - 1
    )
    to_user = (code == lib.GHCB_MSR_PSC_REQ) & (
        (op == lib.GHCB_PSC_OP_PRIVATE) | (op == lib.GHCB_PSC_OP_SHARED)
    )
    shown = np.where(is_answer & ~to_user, events["msr_after"][source], msr)
    lines["a"] = np.where(page, events["sw_exit_code"][source], shown)
    for name, before, after in (
        ("b", "sw_exit_info_1", "info_1_after"),
        ("c", "sw_exit_info_2", "info_2_after"),
    ):
        # a hold's answer stands where the event that ended it left it
        value = np.where(is_answer, events[after][at], events[before][source])
        lines[name] = np.where(page, value, 0)
    lines["result"] = is_answer & ~page & ~to_user
    lines = lines[np.argsort(lines["time_ns"], kind="stable")]
    lines["line"] = np.arange(first_line, first_line + len(slots))
    return lines


def format_events(
    events: Array, *, first_pid: int = FIRST_PID, start_ns: int = 0
) -> Iterator[memoryview]:
    """Give the text of ``lines_of_events``, piece by piece.

    Examples
    --------
    >>> from ghcbcore.simulator import EVENT_DTYPE
    >>> event = np.zeros(1, EVENT_DTYPE)
    >>> event["msr"], event["msr_after"] = 0x6, 0x7
    >>> print(bytes(b"".join(format_events(event))).decode(), end="")
           CPU 0/KVM-1001    (   1000) [000] .....     0.000000000: kvm_vmgexit_msr_protocol_enter: vcpu 0, ghcb_gpa 0000000000000006
           CPU 0/KVM-1001    (   1000) [000] .....     0.000000000: kvm_vmgexit_msr_protocol_exit: vcpu 0, ghcb_gpa 0000000000000007, result 1
    """  # noqa: E501
    lines = lines_of_events(events, first_pid=first_pid, start_ns=start_ns)
    for first in range(0, len(lines), PIECE):
        yield format_lines(lines[first : first + PIECE]).data
