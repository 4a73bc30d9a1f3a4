"""The SEV and SNP firmware of a machine: give it commands, see what it says and how it stands.

The rules are the core's (``ghcbcore/firmware.h``): states of platform and guests, for each ASID
and CCX whether caches may hold its lines, for each hardware thread whether it has executed WBINVD
since an ASID was last taken from a guest there. What the sources leave open is ``ASSUMPTIONS``.

Examples
--------
>>> fw = Firmware(n_ccx=2, cores_per_ccx=2, smt=True)
>>> fw.command("SNP_INIT_EX", init_rmp=1)
<Status.SUCCESS: 0>
>>> fw.command("SNP_SHUTDOWN_EX")
<Status.DFFLUSH_REQUIRED: 15>
>>> fw.history[-1].why
'ASIDs 1-1006 are not CLEAN'
>>> fw.command("DF_FLUSH")
<Status.WBINVD_REQUIRED: 14>
>>> fw.wbinvd()
>>> fw.command("DF_FLUSH"), fw.launch(asid=1), fw.command("SNP_SHUTDOWN_EX")
(<Status.SUCCESS: 0>, 1, <Status.DFFLUSH_REQUIRED: 15>)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from ghcbcore import errors
from ghcbcore import firmware as core
from ghcbcore._cffi import lib
from ghcbcore.firmware import ANSWER_DTYPE, STEP_DTYPE
from ghcbcore.frame import Op, apply, result

from .firmware_steps import (
    NAME_OF,
    NotModelled,
    bad_names,
    command_number,
    command_step,
    thread_step,
)
from .firmware_words import cells_text, check_text, guest_text, ranges, state_text
from .tables.firmware_model import (
    ASSUMPTIONS,
    MODES,
    Activation,
    Cell,
    GuestState,
    GuestType,
    Sev,
    Snp,
    SnpGuestState,
    Status,
)

__all__ = [
    "ANSWER_DTYPE",
    "ASSUMPTIONS",
    "PAGE_COMMANDS",
    "STEP_DTYPE",
    "Activation",
    "Cell",
    "Entry",
    "Firmware",
    "GuestState",
    "GuestType",
    "NotModelled",
    "Sev",
    "Snp",
    "SnpGuestState",
    "Status",
    "command_step",
    "thread_step",
]

RULES = {code.name: int(code.code) for code in MODES}
MAKES_GUEST = ("LAUNCH_START", "RECEIVE_START", "SNP_GCTX_CREATE")
DEFAULT_GUESTS = 16
PAGE_COMMANDS = {
    "SNP_GCTX_CREATE": lib.FRAME_OP_GCTX_CREATE,
    "SNP_DECOMMISSION": lib.FRAME_OP_DECOMMISSION,
    "SNP_LAUNCH_UPDATE": lib.FRAME_OP_LAUNCH_UPDATE,
    "SNP_PAGE_MD_INIT": lib.FRAME_OP_MD_INIT,
    "SNP_PAGE_RECLAIM": lib.FRAME_OP_RECLAIM,
    "SNP_PAGE_SET_STATE": lib.FRAME_OP_SET_STATE,
    "SNP_PAGE_UNSMASH": lib.FRAME_OP_UNSMASH,
}
"""Commands about one page, and what each does to it."""

PAGE_FAULTS = {
    int(lib.SNP_FW_PAGE_STATE): "page_state",
    int(lib.SNP_FW_PAGE_SIZE): "page_size",
    int(lib.SNP_FW_PAGE_OWNER): "page_owner",
    int(lib.SNP_FW_GUEST_INVALID): "page_state",
    int(lib.SNP_FW_ADDRESS): "alignment",
    int(lib.SNP_FW_PARAM): "alignment",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that has happened: its text, what firmware answered, which check and why.

    ``status`` is None for what a thread did.
    """

    text: str
    status: Status | None
    check: str = ""
    why: str = ""


class Firmware:
    """Firmware of one machine, or of many that are alike, from power-on.

    Parameters
    ----------
    n_ccx, cores_per_ccx : int
        Core complexes of all sockets together (at most 32), cores of each.
    smt : bool
        Two hardware threads a core. Thread numbers: all first threads, CCX by CCX, then all second
        ones, as Linux numbers CPUs.
    max_asid : int
        1006 on Genoa.
    first_sev_asid : int, optional
        ASIDs from here on are for SEV, below for SEV-ES and SNP; all for SEV-ES and SNP by default.
    mode : str
        ``strict`` or ``genoa_2023``: DF_FLUSH of the published source takes the first core of a CCX
        for all of it.
    n_guests : int
        Slots for guests, of both kinds together.
    sockets : int
        1 or 2.
    snp_en : bool
        SYSCFG.SNPEn is set on every thread.
    x86_shutdown : bool
        Firmware can clear SNPEn (X86_SNP_SHUTDOWN of FEATURE_INFO).
    n_machines : int
        More than one: ``apply`` gives steps to all; everything else is about the first.

    Attributes
    ----------
    history : list of Entry
        What has happened to the first machine, by methods other than ``apply``.

    Raises
    ------
    OutOfRange
        A number that cannot be.
    """

    def __init__(
        self,
        *,
        n_ccx: int = 1,
        cores_per_ccx: int = 1,
        smt: bool = False,
        max_asid: int = lib.GHCB_KEY_SLOT_LAST_ASID,
        first_sev_asid: int | None = None,
        mode: str = "strict",
        n_guests: int = DEFAULT_GUESTS,
        sockets: int = 1,
        snp_en: bool = True,
        x86_shutdown: bool = True,
        n_machines: int = 1,
    ) -> None:
        if mode not in RULES:
            raise errors.OutOfRange(f"mode {mode!r}: must be one of {', '.join(RULES)}")
        for name, value, most in (
            ("n_ccx", n_ccx, lib.GHCB_FW_MAX_CCXS),
            ("cores_per_ccx", cores_per_ccx, lib.GHCB_MAX_CPUS),
            ("sockets", sockets, 2),
        ):
            if not 1 <= index(value) <= most:
                raise errors.OutOfRange(f"{name} = {value}: must be 1 to {most}")
        self.mode = mode
        rules = RULES[mode]
        rules += lib.GHCB_FW_RULE_TWO_SOCKETS if sockets == 2 else 0
        rules += 0 if x86_shutdown else lib.GHCB_FW_RULE_NO_X86
        self._core = core.Machines(
            core.new_threads(n_ccx, cores_per_ccx, 2 if smt else 1, snp_en=snp_en),
            n_ccx,
            max_asid,
            n_guests,
            first_sev_asid=max_asid + 1 if first_sev_asid is None else first_sev_asid,
            rules=rules,
            n_machines=n_machines,
        )
        self.history: list[Entry] = []

    @property
    def n_threads(self) -> int:
        return self._core.n_threads

    @property
    def n_ccx(self) -> int:
        return self._core.n_ccxs

    @property
    def max_asid(self) -> int:
        return self._core.max_asid

    @property
    def n_guests(self) -> int:
        return self._core.n_guests

    @property
    def words(self) -> core.Machines:
        """The words themselves, of every machine."""
        return self._core

    def command(
        self, command: str | int, *, bad: str | Iterable[str] = (), **arguments: int
    ) -> Status:
        """Give one command; return its status. Arguments: see ``command_step``.

        Without ``guest``, a command that makes a guest takes the first free slot; any other command
        about a guest is about slot 0.

        Raises
        ------
        OutOfRange
            No such command or argument; nothing has happened.
        NotModelled
            The command is known, its checks are not; nothing has happened.
        """
        name = NAME_OF.get(command_number(command), "")
        if name in MAKES_GUEST and "guest" not in arguments:
            arguments["guest"] = self.free_slot()
        step = command_step(command, bad=bad, **arguments)
        texts = state_text(self, step)
        answer = self._one(step)
        number = int(answer["status"])
        if number == lib.GHCB_FW_UNMODELLED:
            raise NotModelled(f"{name}: no source at hand says what firmware checks")
        status = Status(number)
        check, why = check_text(texts, answer, step)
        given = [f"{k}={v:#x}" if k == "policy" else f"{k}={v}" for k, v in arguments.items()]
        given += [f"bad={','.join(bad_names(bad))}"] if bad else []
        text = " ".join([name or f"{int(step['op']['command']):#x}", *given])
        self.history.append(Entry(text, status, check, why))
        return status

    def page_command(
        self,
        command: str,
        frames: np.ndarray[Any, np.dtype[np.uint64]],
        at: int = 0,
        *,
        guest: int = 0,
        size: int = 0,
        value: int = 0,
        target: int = 0,
        gfn: int = 0,
        bad: str | Iterable[str] = (),
    ) -> Status:
        """Give a command about a page that is at hand; what is wrong with the page it says itself.

        Parameters
        ----------
        command : str
            One of ``PAGE_COMMANDS``.
        frames : uint64 array, shape (n, 2), C-contiguous, writable
            The frames of one region, as ``ghcbcore.frame.apply`` takes them.
        at : int
            Which of them.
        size, value, target, gfn : int
            As ``ghcbcore.frame.Op``. Its ``asid`` is the guest's.

        Returns
        -------
        Status
            ``frames`` has changed if it is ``SUCCESS``.

        Raises
        ------
        OutOfRange
            No such command or frame; nothing has happened.
        """
        kind = PAGE_COMMANDS.get(command.upper())
        if kind is None:
            known = ", ".join(PAGE_COMMANDS)
            raise errors.OutOfRange(f"command {command!r}: must be one of {known}")
        held = self.guests()
        asid = int(held[guest]["asid"]) if 0 <= guest < len(held) else 0
        after = frames.copy()
        op = Op(kind, size=size, asid=asid, value=value, target=target, gfn=gfn)
        code = result(apply(op, after, at)).code
        wrong = (PAGE_FAULTS[code],) if code else ()
        status = self.command(command, guest=guest, bad=(*bad_names(bad), *wrong))
        if status == Status.SUCCESS:
            frames[:] = after
        return status

    def wbinvd(self, thread: int | None = None) -> None:
        """Let one thread, or all that are online, execute WBINVD.

        Raises
        ------
        StateConflict
            The thread is offline.
        """
        self._thread("WBINVD", thread)

    def wbnoinvd(self, thread: int | None = None) -> None:
        """The same with WBNOINVD, which keeps the lines and does not count for DF_FLUSH."""
        self._thread("WBNOINVD", thread)

    def vmrun(self, thread: int, asid: int) -> bool:
        """Let a thread enter a guest; return whether it could: the ASID is valid on this thread.

        Raises
        ------
        StateConflict
            The thread is offline or in a guest already.
        """
        found = self.threads()[thread]
        if found["offline"] or found["runs"]:
            raise errors.StateConflict(f"thread {thread} is offline or in a guest already")
        entered = not int(self._one(thread_step("VMRUN", thread, asid=asid))["status"])
        outcome = "" if entered else ": ASID is not valid here"
        self.history.append(Entry(f"VMRUN of ASID {asid} on thread {thread}{outcome}", None))
        return entered

    def vmexit(self, thread: int) -> None:
        """Let a thread leave its guest.

        Raises
        ------
        StateConflict
            It is in none.
        """
        self._thread("VMEXIT", thread)

    def launch(self, asid: int, *, guest: int | None = None, policy: int = 0) -> int:
        """Make an SNP guest and bring it to RUNNING on an ASID; return its slot.

        Without ``guest`` that is slot number ``asid`` if there is one and it is free, else the
        first that is. SNP_GCTX_CREATE, SNP_LAUNCH_START, SNP_ACTIVATE, SNP_LAUNCH_FINISH.

        Raises
        ------
        StateConflict
            One of these was refused; the text says which and why. What came before it stays.
        """
        slot = guest
        if slot is None:
            free = asid < self.n_guests and not self.guests()["type"][asid]
            slot = asid if free else self.free_slot()
        steps: tuple[tuple[str, dict[str, int]], ...] = (
            ("SNP_GCTX_CREATE", {}),
            ("SNP_LAUNCH_START", {"policy": policy}),
            ("SNP_ACTIVATE", {"asid": asid}),
            ("SNP_LAUNCH_FINISH", {}),
        )
        for name, more in steps:
            status = self.command(name, bad=(), guest=slot, **more)
            if status:
                why = self.history[-1].why
                raise errors.StateConflict(
                    f"launch: {name} of guest {slot}: {status.name} {status:#04x}: {why}"
                )
        return slot

    def free_slot(self) -> int:
        """The first slot without a guest; ``n_guests`` if there is none."""
        free = np.flatnonzero(self.guests()["type"] == GuestType.NONE)
        return int(free[0]) if len(free) else self.n_guests

    def set_thread(
        self,
        thread: int,
        *,
        online: bool | None = None,
        snp_en: bool | None = None,
        hsave: bool | None = None,
    ) -> None:
        """Say what a thread is like: online, with SYSCFG.SNPEn, with VM_HSAVE_PA not 0."""
        for flag, value in (
            (lib.GHCB_FW_THREAD_OFFLINE_SHIFT, None if online is None else not online),
            (lib.GHCB_FW_THREAD_SNP_EN_SHIFT, snp_en),
            (lib.GHCB_FW_THREAD_HSAVE_SHIFT, hsave),
        ):
            if value is not None:
                self._core.set_thread(thread, flag, value)

    def apply(self, steps: Sequence[Any] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Give many steps at once, the same to each machine or each its own.

        Parameters
        ----------
        steps : array of STEP_DTYPE, shape (m,) or (n_machines, m), or a sequence of such records
            Made by ``command_step`` and ``thread_step``.

        Returns
        -------
        array of ANSWER_DTYPE, shape (n_machines, m)
            ``status`` (``Status``; of what a thread does 0, or ``GHCB_FW_IMPOSSIBLE``), and which
            check answered: ``kind`` (``GHCB_FW_IF_*``) and ``arg``.

        Raises
        ------
        OutOfRange, ValueError
            As ``ghcbcore.firmware.Machines.apply``; nothing has happened.
        """
        if not isinstance(steps, np.ndarray):
            steps = np.array(list(steps), STEP_DTYPE)
        return self._core.apply(steps)

    def platform(self, machine: int = 0) -> dict[str, Any]:
        """Return how the platform stands.

        ``sev`` (``Sev``), ``snp`` (``Snp``); bools: ``rmp`` (initialised), ``iommu`` (enforces
        it), ``es``, ``owned``, ``rebuild`` (the next command finds all cells DIRTY); ``limit``:
        the last ASID for SNP with ciphertext hiding, else 0.
        """
        found = core.platforms(self._core.state[machine])
        flags = {name: bool(found[name]) for name in ("rmp", "iommu", "es", "owned", "rebuild")}
        limit = int(found["limit"])
        return {
            "sev": Sev(int(found["sev"])),
            "snp": Snp(int(found["snp"])),
            **flags,
            "limit": limit,
        }

    def guests(self, machine: int = 0) -> np.ndarray[Any, Any]:
        """Return the guests, one record a slot: ``ghcbcore.firmware.guests``."""
        return core.guests(self._core.guests[machine])

    def asids(self, machine: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the cells, ``Cell``: shape (max_asid, n_ccx); row 0 is ASID 1."""
        return core.states(self._core.cells[machine], self.n_ccx)

    def threads(self, machine: int = 0) -> np.ndarray[Any, Any]:
        """Return the hardware threads, one record each: ``ghcbcore.firmware.threads``."""
        return core.threads(self._core.threads[machine])

    def may_run(self, asid: int, machine: int = 0) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which threads may run an ASID, shape (n_threads,)."""
        return ~core.invalid(self._core.invalid[machine], asid)

    def keys(self, machine: int = 0) -> list[int]:
        """Return the ASIDs for which the memory controllers have a guest's key."""
        words = self._core.keys[machine]
        return [a for a in range(1, self.max_asid + 1) if core.invalid(words, a)]

    def __str__(self) -> str:
        platform = self.platform()
        lines = [
            f"firmware ({self.mode}): SEV {platform['sev'].name}, SNP {platform['snp'].name}, "
            f"RMP {'' if platform['rmp'] else 'not '}initialised, IOMMU "
            f"{'enforces it' if platform['iommu'] else 'does not enforce it'}"
        ]
        lines += [
            f"guest {slot}: {guest_text(one)}"
            for slot, one in enumerate(self.guests())
            if one["type"]
        ]
        rows = self.asids()
        kinds, which = np.unique(rows, axis=0, return_inverse=True)
        for i in np.argsort([int(np.argmax(which.ravel() == k)) for k in range(len(kinds))]):
            kind = kinds[i]
            asids = ranges((np.flatnonzero(which.ravel() == i) + 1).tolist())
            lines.append(f"ASID {asids}: {cells_text(kind.tolist())}")
        threads = self.threads()
        done = ranges(np.flatnonzero(threads["done"]).tolist()) or "none"
        lines.append(f"threads {ranges(list(range(self.n_threads)))}: WBINVD done on {done}")
        return "\n".join(lines)

    def _thread(self, what: str, thread: int | None) -> None:
        answer = self._one(thread_step(what, thread))
        who = "every thread" if thread is None else f"thread {thread}"
        if int(answer["status"]):
            reason = "is in no guest" if what == "VMEXIT" else "is offline"
            raise errors.StateConflict(f"{what}: {who} {reason}")
        self.history.append(Entry(f"{what} on {who}", None))

    def _one(self, step: Any) -> Any:
        if self._core.n_machines == 1:
            return self._core.apply(step.reshape(1))[0, 0]
        raise errors.StateConflict("several machines are given steps by `apply`")
