"""Scripts for firmware: one command or WBINVD a line, and what it must answer.

    machine ccx=2 cores=2 smt     # from power-on; a later line `machine` begins again
    snp_init_ex init_rmp=1
    wbinvd all
    df_flush
    launch 1                      # an SNP guest, RUNNING on ASID 1, in slot 1
    snp_decommission 1            # the number is the guest's slot
    snp_shutdown_ex
    expect 0x0f                   # or DFFLUSH_REQUIRED
    expect asid 1 DIRTY

Commands are written as in ``pysev decode --as fw-command``, in small letters or capitals.
``bad=page_state,reserved`` says what is wrong with what a command brings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ghcbcore import firmware as core
from ghcbcore.errors import SevError

from .firmware import Cell, Entry, Firmware, NotModelled, Status
from .firmware_steps import NUMBER_OF
from .firmware_words import order_text
from .flow import WORD
from .memory.script import Arguments, BadScript, Line
from .tables.firmware_model import BADS, MODES, NUMBERS, OPTIONS

__all__ = ["DEFAULT", "FirmwareSession", "LineResult", "language_text", "order_of", "run_script"]

DEFAULT = """\
# Why WBINVD has to come after the last DECOMMISSION: lists.linux.dev, Sep 2024, "error 14"
machine ccx=2 cores=2 smt
snp_init_ex init_rmp=1
wbinvd all
df_flush
launch 1
wbinvd all                      # too early: what the NMI callback does
snp_decommission 1              # erases the done bits
snp_shutdown_ex iommu=1
expect DFFLUSH_REQUIRED
df_flush
expect WBINVD_REQUIRED
wbinvd all
df_flush
expect SUCCESS
snp_shutdown_ex iommu=1
expect SUCCESS
"""

MACHINE = (
    "machine [ccx=N] [cores=N] [smt] [sockets=N] [asids=N] [first_sev=N] [guests=N] "
    "[no-snp-en] [no-x86]"
)
EXPECT = "expect STATUS [MODE] | expect asid N STATE[,STATE...] [MODE]"
MAX_NUMBER = WORD
MAX_DIGITS = 40
_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9]+", re.ASCII | re.IGNORECASE)

LANGUAGE = (
    (MACHINE, "a machine at power-on; `cores` of each CCX"),
    ("COMMAND [GUEST] [NAME=N ...] [bad=WHAT,...]", "give firmware a command about a guest"),
    ("launch ASID [guest=N]", "an SNP guest from SNP_GCTX_CREATE to SNP_LAUNCH_FINISH"),
    ("wbinvd all | all but N | N", "threads execute WBINVD; `wbnoinvd` likewise"),
    ("vmrun THREAD asid=N", "a thread enters a guest, if the ASID is valid there"),
    ("vmexit THREAD", "it leaves it"),
    ("thread N [online=0|1] [snp_en=0|1] [hsave=0|1]", "what a thread is like"),
    (EXPECT, "what the last command must have answered; the cells of an ASID, by CCX"),
    ("show", "the whole state"),
)


def language_text() -> str:
    """Return what can be written in a script."""
    text = "".join(f"{usage}\n    {what}\n" for usage, what in LANGUAGE)
    takes = "".join(
        f"    {name}: {', '.join(commands) or 'every command about a guest'}\n"
        for name, commands in (*NUMBERS.items(), *((n, c) for n, (_, c) in OPTIONS.items()))
    )
    bads = "".join(f"    {code.name}: {code.what}\n" for code in BADS)
    modes = "".join(f"    {code.name}: {code.what}\n" for code in MODES)
    return f"{text}\nArguments of commands:\n{takes}\nWhat can be bad:\n{bads}\nModes:\n{modes}"


def order_of(command: str) -> list[dict[str, str]]:
    """Return the checks of a command in firmware's order: ``check`` and ``status``, in words.

    Raises
    ------
    BadScript
        Firmware has no such command.
    NotModelled
        No source at hand says what it checks.
    """
    number = NUMBER_OF.get(command.upper())
    if number is None:
        raise BadScript(f"{command!r}: firmware has no such command")
    rows, snp = core.checks(number), command.upper().startswith("SNP_")
    if rows is None:
        raise NotModelled(f"{command.upper()}: no source at hand says what firmware checks")
    return [
        {"check": order_text(kind, arg, snp=snp), "status": f"{status:#04x} {Status(status).name}"}
        for kind, status, arg in rows
    ]


@dataclass(frozen=True, slots=True)
class LineResult:
    """What a line came to: what has happened, what an ``expect`` found, text to show."""

    line: Line
    entry: Entry | None
    failed: str = ""
    shown: str = ""

    def as_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"line": self.line.number, "text": self.line.text}
        if self.entry is not None and self.entry.status is not None:
            status = self.entry.status
            out |= {"status": f"{status.value:#04x}", "name": status.name}
            out |= {"check": self.entry.check, "why": self.entry.why}
        if self.line.words[0].lower() == "expect":
            out |= {"as_expected": not self.failed, "failed": self.failed}
        return out


class FirmwareSession:
    """A machine's firmware and the lines that were run on it."""

    def __init__(self, mode: str = "strict") -> None:
        self.mode = mode
        self.firmware = Firmware(mode=mode)
        self.results: list[LineResult] = []
        self._last: Entry | None = None

    @property
    def n_failed(self) -> int:
        """How many ``expect`` were not met."""
        return sum(bool(result.failed) for result in self.results)

    def run(self, line: Line) -> LineResult:
        """Run one line.

        Raises
        ------
        SevError
            It cannot be run.
        """
        verb = line.words[0].lower()
        words = line.words[1:]
        n_before = len(self.firmware.history)
        result = LineResult(line, None)
        if verb == "machine":
            self._machine(Arguments(words, MACHINE))
            n_before = 0
        elif verb == "expect":
            result = LineResult(line, None, self._expect(Arguments(words, EXPECT)))
        elif verb == "show":
            Arguments(words, "show").end()
            result = LineResult(line, None, shown=str(self.firmware))
        elif verb == "thread":
            self._set_thread(Arguments(words, "thread N [online=] [snp_en=] [hsave=]"))
        elif verb == "launch":
            self._launch(Arguments(words, "launch ASID [guest=N]"))
        elif verb in ("wbinvd", "wbnoinvd"):
            self._flush(verb, Arguments(words, f"{verb} all | all but N | N"))
        elif verb in ("vmrun", "vmexit"):
            self._guest(verb, Arguments(words, f"{verb} THREAD" + " asid=N" * (verb == "vmrun")))
        else:
            self._command(verb, Arguments(words, f"{verb} [GUEST] [NAME=N ...] [bad=WHAT,...]"))
        happened = self.firmware.history[n_before:]
        if happened:
            result = LineResult(line, happened[-1])
            if happened[-1].status is not None:
                self._last = happened[-1]
        self.results.append(result)
        return result

    def _machine(self, words: Arguments) -> None:
        numbers = {
            name: words.number(text, default, 1 << 20)
            for text, name, default in (
                ("ccx", "n_ccx", 1),
                ("cores", "cores_per_ccx", 1),
                ("sockets", "sockets", 1),
                ("guests", "n_guests", 16),
            )
        }
        more = {
            name: words.number(text, 0, 1 << 20)
            for text, name in (("asids", "max_asid"), ("first_sev", "first_sev_asid"))
            if words.has(text)
        }
        flags = {word for word in ("smt", "no-snp-en", "no-x86") if words.flag(word)}
        words.end()
        self.firmware = Firmware(
            **numbers,
            **more,
            smt="smt" in flags,
            snp_en="no-snp-en" not in flags,
            x86_shutdown="no-x86" not in flags,
            mode=self.mode,
        )
        self._last = None

    def _command(self, verb: str, words: Arguments) -> None:
        given = words.named()
        bad = [one for one in given.pop("bad", "").split(",") if one]
        arguments = {}
        positional = words.rest()
        if len(positional) > 1:
            raise words.error(f"{positional[1][:40]!a}: what is this?")
        if positional:
            if "guest" in given:
                raise words.error("the guest stands there twice")
            given["guest"] = positional[0]
        for name, text in given.items():
            arguments[name] = _as_number(words, name, text)
        command: str | int = verb
        if _NUMBER.fullmatch(verb):
            command = _as_number(words, "command", verb)
        elif verb.upper() not in NUMBER_OF:
            raise words.error(f"{verb[:40]!a}: firmware has no such command")
        self.firmware.command(command, bad=bad, **arguments)

    def _launch(self, words: Arguments) -> None:
        guest = words.number("guest", 0, MAX_NUMBER) if words.has("guest") else None
        asid = _as_number(words, "ASID", words.word("ASID"))
        words.end()
        self.firmware.launch(asid, guest=guest)

    def _flush(self, verb: str, words: Arguments) -> None:
        who = words.word("all or a thread")
        flush = self.firmware.wbinvd if verb == "wbinvd" else self.firmware.wbnoinvd
        if who != "all":
            words.end()
            flush(self._thread(words, who))
            return
        rest = words.rest()
        words.end()
        if not rest:
            flush()
            return
        if rest[0] != "but" or len(rest) == 1:
            raise words.error(f"{rest[0][:40]!a}: what is this?")
        late = {self._thread(words, text) for text in rest[1:]}
        for thread, found in enumerate(self.firmware.threads()):
            if thread not in late and not found["offline"]:
                flush(thread)

    def _guest(self, verb: str, words: Arguments) -> None:
        thread = self._thread(words, words.word("the thread"))
        if verb == "vmrun":
            asid = words.number("asid", None, MAX_NUMBER)
            words.end()
            self.firmware.vmrun(thread, asid)
        else:
            words.end()
            self.firmware.vmexit(thread)

    def _set_thread(self, words: Arguments) -> None:
        thread = self._thread(words, words.word("the thread"))
        flags = {
            name: bool(words.number(name, 0, 1))
            for name in ("online", "snp_en", "hsave")
            if words.has(name)
        }
        words.end()
        self.firmware.set_thread(thread, **flags)

    def _thread(self, words: Arguments, text: str) -> int:
        thread = _as_number(words, "thread", text)
        if thread >= self.firmware.n_threads:
            raise words.error(f"thread {thread}: there are {self.firmware.n_threads}")
        return thread

    def _expect(self, words: Arguments) -> str:
        """Return what is wrong; the empty string if nothing is."""
        mode = words.flag(*(code.name for code in MODES)) or self.mode
        first = words.word("a status")
        if first == "asid":
            failed = self._expect_asid(words)
            return failed if mode == self.mode else ""
        words.end()
        wanted = _status(words, first)
        if self._last is None or self._last.status is None:
            raise words.error("no command has been given")
        found = self._last.status
        if mode != self.mode or found == wanted:
            return ""
        return f"expected {_named(wanted)}, got {_named(found)}"

    def _expect_asid(self, words: Arguments) -> str:
        asid = _as_number(words, "asid", words.word("the ASID"))
        text = words.word("CLEAN, ALLOC, IN_USE or DIRTY").upper().split(",")
        words.end()
        if not 1 <= asid <= self.firmware.max_asid:
            raise words.error(f"asid {asid}: must be 1 to {self.firmware.max_asid}")
        if not set(text) <= set(Cell.__members__) or len(text) not in (1, self.firmware.n_ccx):
            raise words.error(f"states: one for all, or for each of {self.firmware.n_ccx} CCXs")
        found = [Cell(v).name for v in self.firmware.asids()[asid - 1].tolist()]
        if found == (text * self.firmware.n_ccx if len(text) == 1 else text):
            return ""
        return f"ASID {asid} is {','.join(found)}"

    def as_text(self, name: str) -> str:
        """Return all lines with what they came to, and how many were as expected."""
        width = max((len(r.line.text) for r in self.results if not r.shown), default=0)
        lines = [f"{name} ({self.mode})"]
        for result in self.results:
            said = ""
            if result.entry is not None and result.entry.status is not None:
                said = _named(result.entry.status)
                said += f": {result.entry.why}" if result.entry.why else ""
            elif result.line.words[0].lower() == "expect":
                said = f"FAILED: {result.failed}" if result.failed else "as expected"
            head = f"{result.line.number:>4}  {result.line.text:<{width}}  {said}"
            lines.append(head.rstrip())
            lines += [f"        {one}" for one in result.shown.splitlines()]
        n = sum(r.line.words[0].lower() == "expect" for r in self.results)
        lines.append(f"{n - self.n_failed} of {n} as expected" if n else "nothing was expected")
        return "\n".join(lines) + "\n"

    def as_json(self, name: str) -> dict[str, Any]:
        return {
            "script": name,
            "mode": self.mode,
            "lines": [result.as_json() for result in self.results],
            "failed": self.n_failed,
        }


def run_script(lines: list[Line], name: str, mode: str = "strict") -> FirmwareSession:
    """Run all lines of a script.

    Raises
    ------
    BadScript
        A line cannot be run; the text names file and line.
    """
    session = FirmwareSession(mode)
    for line in lines:
        try:
            session.run(line)
        except SevError as error:
            raise BadScript(f"{name}:{line.number}: {error}") from error
    return session


def _as_number(words: Arguments, name: str, text: str) -> int:
    base = 16 if text[:2].lower() == "0x" else 10
    if not _NUMBER.fullmatch(text) or len(text) > MAX_DIGITS or int(text, base) > MAX_NUMBER:
        raise words.error(f"{name[:40]!a} {text[:40]!a}: must be a number of 64 bits")
    return int(text, base)


def _status(words: Arguments, text: str) -> Status:
    if text.upper() in Status.__members__:
        return Status[text.upper()]
    number = _as_number(words, "status", text)
    try:
        return Status(number)
    except ValueError:
        raise words.error(f"{text[:40]!a}: no command answers that") from None


def _named(status: Status) -> str:
    return f"{status.value:#04x} {status.name}"
