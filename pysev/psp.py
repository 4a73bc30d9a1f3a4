"""The firmware in a flow: commands, WBINVD and guests as operations, its state as words.

``declare`` puts the words of ``ghcbcore/firmware.h`` into the flow's record; a ``Psp`` makes the
effects, by the same rules as ``pysev.firmware``, and takes states apart for properties. Every CPU
of the flow is one hardware thread. All sit on CCX 0, of which the boot CPU's core is the first, so
that CPUs are alike; ``seats`` spreads them over several.

Examples
--------
A guest runs on ASID 1; it ends, every CPU executes WBINVD, then SNP can be shut down:

>>> from pysev.firmware import Status
>>> from pysev.flow import Flow, op
>>> flow = Flow("end of SNP")
>>> psp = declare(flow, n_guests=1, running=1)
>>> flow.globals(status=0)
>>> status = flow.g.status
>>> boot = flow.agent("boot CPU")
>>> boot.at("guest", op("SNP_DECOMMISSION", do=[psp.command("SNP_DECOMMISSION", status)]))
>>> boot.at("flush", op("WBINVD everywhere", do=[psp.wbinvd(flow.boot), psp.wbinvd_others()]))
>>> boot.at("fabric", op("DF_FLUSH", do=[psp.command("DF_FLUSH", status)]))
>>> boot.at("down", op("SHUTDOWN_EX", do=[psp.command("SNP_SHUTDOWN_EX", status, iommu=1)]))
>>> boot.at("end", ends=True)
>>> flow.at_end("SNP is down", lambda s: (s.g.status == Status.SUCCESS) & ~psp.is_up(s))
>>> from pysev.checking import check
>>> check(flow, 3).verdict
'holds'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ghcbcore import firmware as core
from ghcbcore._cffi import lib

from . import firmware_words as words
from .firmware import Cell, Firmware, GuestType, Snp, SnpGuestState, Status, command_step
from .flow import (
    Effect,
    Field,
    Flow,
    FlowError,
    Place,
    ReachOp,
    Value,
    Words,
    each,
    number_of,
    reach,
)
from .states import States

__all__ = ["IMPOSSIBLE", "Psp", "Status", "declare"]

Array = np.ndarray[Any, np.dtype[Any]]

IMPOSSIBLE: int = lib.GHCB_FW_IMPOSSIBLE
"""Result of what a thread cannot do: VMRUN with an ASID that is not valid there."""

MAX_GUESTS: int = lib.GHCB_FW_REACH_LAST_GUEST


def initialised(firmware: Firmware) -> None:
    """Bring firmware where Linux has it after boot: SNP_INIT_EX, WBINVD everywhere, DF_FLUSH."""
    firmware.command("SNP_INIT_EX", init_rmp=1)
    firmware.wbinvd()
    firmware.command("DF_FLUSH")


def declare(
    flow: Flow,
    *,
    n_guests: int = 2,
    n_asids: int | None = None,
    n_ccx: int = 1,
    mode: str = "strict",
    running: int = 0,
    start: Callable[[Firmware], None] = initialised,
    x86_shutdown: bool = True,
    first_sev_asid: int | None = None,
    name: str = "psp",
) -> Psp:
    """Declare firmware's words in a flow and return the ``Psp`` that moves them.

    Parameters
    ----------
    n_guests : int
        Slots for guests.
    n_asids : int, optional
        ASIDs, at most 63; as many as slots by default. Few keep the search small.
    n_ccx : int
        Core complexes; see ``Psp.seats``. Without seats all CPUs sit on the first.
    mode : str
        ``strict`` or ``genoa_2023``.
    running : int
        So many SNP guests are RUNNING at the start: slot i on ASID i + 1.
    start : function
        What has happened to firmware before; by default SNP is initialised and all is CLEAN. It
        must do the same to every thread. ``running`` comes after it.
    name : str
        Prefix of the words: ``flow.g.psp_state``, ``flow.cpu.psp_thread`` and so on.

    Raises
    ------
    FlowError
        ``running`` guests have no room, or ``start`` leaves threads that are not alike.
    OutOfRange
        A number that cannot be.
    """
    n_asids = n_guests if n_asids is None else n_asids
    if not 0 <= running <= min(n_guests, n_asids):
        raise FlowError(f"{name}: {running} guests running; {n_guests} slots, {n_asids} ASIDs")
    model = Firmware(
        n_ccx=n_ccx,
        cores_per_ccx=2,
        max_asid=n_asids,
        n_guests=n_guests,
        mode=mode,
        x86_shutdown=x86_shutdown,
        first_sev_asid=first_sev_asid,
    )
    start(model)
    for i in range(running):
        model.launch(i + 1, guest=i)
    alike = np.delete(model.threads(), 0)[["done", "kept", "offline", "snp_en", "hsave", "runs"]]
    if len(np.unique(alike)) != 1:
        raise FlowError(f"{name}: at the start the threads are not alike")
    of = model.words
    (boot, cpu), invalid = of.threads[0, :2].tolist(), of.invalid[0, 1, 0]
    once = {"state": int(of.state[0]), "keys": int(of.keys[0, 0])}
    once |= {f"guest_{i}": word for i, word in enumerate(of.guests[0].tolist())}
    once |= {f"asid_{i + 1}": word for i, word in enumerate(of.cells[0].tolist())}
    place = flow.place(
        lib.GHCB_PLACE_FIRMWARE,
        name,
        per_cpu={"thread": cpu, "invalid": int(invalid)},
        once=once,
        options=of.reach_options(),
    )
    flow._initial_global[place.words[0].index] = boot
    flow.globals(**{f"{name}_refused": 0})
    _tell(flow, name, n_guests, n_asids, n_ccx)
    return Psp(flow, place, n_guests, n_asids, n_ccx, getattr(flow.g, f"{name}_refused"))


def _tell(flow: Flow, name: str, n_guests: int, n_asids: int, n_ccx: int) -> None:
    """Let timelines say in words what becomes of firmware's state."""
    flow.tell_changes(f"{name}_thread", words.thread_change)
    flow.tell_changes(f"{name}_invalid", partial(words.bitmap_change, "may run", "may not run"))
    flow.tell_changes(f"{name}_state", words.platform_change)
    flow.tell_changes(f"{name}_keys", partial(words.bitmap_change, "no key for", "key for"))
    for i in range(n_guests):
        flow.tell_changes(f"{name}_guest_{i}", partial(words.guest_change, i))
    for i in range(n_asids):
        flow.tell_changes(f"{name}_asid_{i + 1}", partial(words.cells_change, i + 1, n_ccx))


@dataclass(frozen=True, eq=False)
class Psp:
    """Firmware in a flow; made by ``declare``.

    Attributes
    ----------
    refused : Field
        Where effects that have no ``result`` leave theirs: 0, or ``IMPOSSIBLE`` if what a CPU was
        to do last could not happen.
    """

    flow: Flow
    place: Place
    n_guests: int
    n_asids: int
    n_ccx: int
    refused: Field

    def command(
        self,
        name: str,
        result: Field,
        *,
        guest: Value = 0,
        bad: str | tuple[str, ...] = (),
        **arguments: int,
    ) -> Effect:
        """Give firmware a command; ``result`` takes the status, ``Status``.

        Parameters
        ----------
        name : str
            As in ``pysev.tables.firmware.COMMANDS``: ``"SNP_DECOMMISSION"``, ``"DF_FLUSH"`` ...
        result : Field
            A word of the flow. Test it in the same operation or a later one:
            ``when(g.status == Status.DFFLUSH_REQUIRED, ...)``.
        guest : int or Field
            Slot of the guest, or a word that has its number.
        bad, arguments
            As ``pysev.firmware.command_step``: ``asid=1``, ``iommu=1``, ``pages=1``.

        Raises
        ------
        OutOfRange
            No such command or argument.
        FlowError
            No source at hand says what the command checks.
        """
        static = guest if isinstance(guest, int) else 0
        step = command_step(name, guest=static, bad=bad, **arguments)
        if core.checks(int(step["op"]["command"])) is None:
            raise FlowError(f"{name}: no source at hand says what firmware checks")
        what = ReachOp(lib.GHCB_FW_STEP_COMMAND, core.reach_args(step))
        self.flow.name_values(result.name.partition(".")[2], Status)
        value = guest if isinstance(guest, Field) else 0
        return reach(self.place, what, self.flow.boot, result, value)

    def wbinvd(self, cpu: Words, result: Field | None = None) -> Effect:
        """Let a CPU (``flow.boot``, ``flow.cpu``, ``flow.other``) finish WBINVD: its done bit."""
        return self._local(lib.GHCB_FW_STEP_WBINVD, cpu, result)

    def wbnoinvd(self, cpu: Words, result: Field | None = None) -> Effect:
        """The same with WBNOINVD, which DF_FLUSH does not count."""
        return self._local(lib.GHCB_FW_STEP_WBNOINVD, cpu, result)

    def wbinvd_others(self) -> Effect:
        """Let every CPU but the boot CPU finish WBINVD: an IPI to all that is waited for."""
        return each(self.wbinvd(self.flow.other))

    def guest_runs(self, cpu: Words, asid: Value, result: Field) -> Effect:
        """Let a CPU execute VMRUN with an ASID, a number or a word that has it.

        ``result`` is 0 if the CPU is in the guest now, ``IMPOSSIBLE`` if the ASID is not valid on
        it (#VMEXIT), or it is in a guest already.
        """
        static, value = (0, asid) if isinstance(asid, Field) else (asid, 0)
        what = ReachOp(lib.GHCB_FW_STEP_VMRUN, (static, 0, 0), local=True)
        return reach(self.place, what, cpu, result, value)

    def guest_leaves(self, cpu: Words, result: Field | None = None) -> Effect:
        """#VMEXIT: the CPU is in no guest any more; ``IMPOSSIBLE`` if it was in none."""
        return self._local(lib.GHCB_FW_STEP_VMEXIT, cpu, result)

    def seats(self, scratch: Field, cpus_per_ccx: int) -> list[Effect]:
        """Spread the CPUs: so many to a CCX, by their numbers; for the first operation of a flow.

        The first of each CCX has its first core, which is what ``genoa_2023`` asks. CPUs are alike
        then only within a CCX; the last one takes all CPUs that are left. ``scratch`` is a word
        that has no other use, 0 again afterwards.
        """
        if cpus_per_ccx < 1:
            raise FlowError(f"seats: {cpus_per_ccx} CPUs to a CCX")
        other = self.flow.other
        what = ReachOp(lib.GHCB_FW_REACH_SEAT, (cpus_per_ccx, 0, 0), local=True)
        sit = reach(self.place, what, other, self.refused, scratch)
        return [each(number_of(scratch, other), sit), number_of(scratch, self.flow.boot)]

    def _local(self, code: int, cpu: Words, result: Field | None) -> Effect:
        what = ReachOp(code, local=True)
        return reach(self.place, what, cpu, self.refused if result is None else result)

    # what properties ask

    def platform(self, states: States) -> Array:
        """``ghcbcore.firmware.platforms``: ``sev``, ``snp``, ``rmp``, ``iommu`` ...; shape (n,)."""
        return core.platforms(self._word(states, "state"))

    def guests(self, states: States) -> Array:
        """``ghcbcore.firmware.guests``: ``type``, ``state``, ``asid`` ...; (n, n_guests)."""
        columns = [self._word(states, f"guest_{i}") for i in range(self.n_guests)]
        return core.guests(np.stack(columns, axis=1))

    def cells(self, states: States) -> Array:
        """Cells, ``Cell``: uint8, shape (n, n_asids, n_ccx); column 0 is ASID 1."""
        columns = [self._word(states, f"asid_{i + 1}") for i in range(self.n_asids)]
        return core.states(np.stack(columns, axis=1), self.n_ccx)

    def threads(self, states: States) -> Array:
        """``ghcbcore.firmware.threads``: ``done``, ``runs``, ``ccx`` ...; shape (n, n_cpus).

        Column 0 is the boot CPU, the order of the others carries no meaning.
        """
        return core.threads(self._every(states, "thread"))

    def may_run(self, states: States, asid: int) -> Array:
        """Which CPUs may run an ASID: bool, shape (n, n_cpus), boot CPU first."""
        return ~core.invalid(self._every(states, "invalid")[..., None], asid)

    def is_up(self, states: States) -> Array:
        """SNP is initialised: bool, shape (n,)."""
        return np.asarray(self.platform(states)["snp"] == Snp.INIT)

    def is_iommu_locked(self, states: States) -> Array:
        """The IOMMU enforces SNP, its registers ignore writes: bool, shape (n,)."""
        return np.asarray(self.platform(states)["iommu"] == 1)

    def n_running(self, states: States) -> Array:
        """How many SNP guests are RUNNING: shape (n,)."""
        guests = self.guests(states)
        runs = (guests["type"] == GuestType.SNP) & (guests["state"] == SnpGuestState.RUNNING)
        return np.asarray(runs.sum(axis=1))

    def is_any(self, states: States, cell: Cell) -> Array:
        """Some ASID is in this state on some CCX: bool, shape (n,)."""
        return np.asarray((self.cells(states) == cell).any(axis=(1, 2)))

    def is_clean(self, states: States) -> Array:
        """Every ASID is CLEAN on every CCX: bool, shape (n,)."""
        return (
            ~self.is_any(states, Cell.IN_USE)
            & ~self.is_any(states, Cell.DIRTY)
            & ~self.is_any(states, Cell.ALLOC)
        )

    def all_done(self, states: States) -> Array:
        """Every CPU has executed WBINVD since its bit was last erased: bool, shape (n,)."""
        return np.asarray((self.threads(states)["done"] == 1).all(axis=1))

    def runs_gone_guest(self, states: States) -> Array:
        """Some CPU is in a guest whose ASID is not in use any more: bool, shape (n,)."""
        runs = self.threads(states)["runs"].astype(np.intp)
        in_use = (self.cells(states) == Cell.IN_USE).any(axis=2)
        in_use = np.concatenate([np.ones((len(in_use), 1), bool), in_use], axis=1)
        return np.asarray(~np.take_along_axis(in_use, runs, axis=1).all(axis=1))

    def _word(self, states: States, word: str) -> Array:
        return np.asarray(getattr(states.g, f"{self.place.name}_{word}"))

    def _every(self, states: States, word: str) -> Array:
        boot = self._word(states, word)
        others = np.asarray(getattr(states.cpu, f"{self.place.name}_{word}"))
        return np.concatenate([boot[:, None], others], axis=1)
