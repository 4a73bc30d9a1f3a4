"""The verbs of scripts about pages: what each line does to a guest's memory, or asks of it.

A function for each verb; its usage line is what ``pysev pages --language`` prints. What a line
expects of the
one before is in ``pysev.memory.expect``.

Source of the rules: ``ghcbcore/frame_rule.h``, ``frame_access.h``; the words are those of the
instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ghcbcore._cffi import lib
from pysev.memmap import format_size
from pysev.tables.firmware import FIRMWARE_STATUS

from . import words
from .memory import INITIAL_STATES
from .records import Outcome
from .script import Arguments

if TYPE_CHECKING:
    from .session import Session

__all__ = ["VERBS", "Verb"]

MAX_SHOWN = 20
MAX_SNAPSHOTS = 64
VMPLS = lib.SEV_N_VMPLS - 1

Result = Outcome | list[str]


@dataclass(frozen=True, slots=True)
class Verb:
    """How it is written, what it does, and how."""

    usage: str
    what: str
    do: Callable[[Session, Arguments], Result]


def _accept(session: Session, a: Arguments) -> Result:
    frames = a.frames()
    a.end()
    return session.memory.make_private(frames)


def _share(session: Session, a: Arguments) -> Result:
    frames, leaf = a.frames(), a.flag("4K", "2M")
    a.end()
    return session.memory.share(frames, leaf=leaf)


def _private(session: Session, a: Arguments) -> Result:
    frames, leaf = a.frames(), a.flag("4K", "2M")
    a.end()
    return session.memory.make_private(frames, leaf=leaf)


def _map(session: Session, a: Arguments) -> Result:
    frames, leaf = a.frames(), a.flag("4K", "2M", "1G") or "4K"
    mapping = a.choice(*words.MAPPING_NUMBERS)
    a.end()
    return session.memory.map_as(frames, mapping, leaf=leaf)


def _believe(session: Session, a: Arguments) -> Result:
    frames, validated = a.frames(), a.choice("yes", "no") == "yes"
    a.end()
    return session.memory.believe(frames, validated)


def _list(session: Session, a: Arguments) -> Result:
    frames, listed = a.frames(), a.choice(*words.LISTED_NUMBERS)
    a.end()
    return session.memory.list_as(frames, listed)


def _rmpupdate(session: Session, a: Arguments) -> Result:
    frames, size = a.frames(), a.flag("4K", "2M") or "4K"
    immutable, shared = a.flag("immutable") is not None, a.flag("shared") is not None
    asid = a.number("asid", None, words.MAX_ASID) if a.has("asid") else None
    gfn = a.number("gfn", None, lib.FRAME_GFN_MASK) if a.has("gfn") else None
    a.end()
    if gfn is not None and (session.memory.asid if asid is None else asid):
        if not isinstance(frames, int):
            raise a.error("gfn= goes with one frame")
        gfn = (gfn - frames) % (lib.FRAME_GFN_MASK + 1)
    return session.memory.rmpupdate(
        frames, not shared, immutable=immutable, asid=asid, size=size, gfn=gfn
    )


def _psmash(session: Session, a: Arguments) -> Result:
    frames = a.frames()
    a.end()
    return session.memory.psmash(frames)


def _pvalidate(session: Session, a: Arguments, validate: bool = True) -> Result:
    frames, backing = a.frames(), a.after("backing", "4K", "2M")
    size, vmpl = a.flag("4K", "2M") or "4K", a.number("vmpl", 0, VMPLS)
    a.end()
    return session.memory.pvalidate(frames, validate, size=size, backing=backing, vmpl=vmpl)


def _rescind(session: Session, a: Arguments) -> Result:
    return _pvalidate(session, a, False)


def _rmpadjust(session: Session, a: Arguments) -> Result:
    frames, backing = a.frames(), a.after("backing", "4K", "2M")
    size, vmsa = a.flag("4K", "2M") or "4K", a.flag("vmsa") is not None
    target, by = a.number("vmpl", None, VMPLS), a.number("by", 0, VMPLS)
    rights = words.rights_of("".join(a.rest()))
    a.end()
    return session.memory.rmpadjust(
        frames, target, rights, vmsa=vmsa, size=size, backing=backing, vmpl=by
    )


def _guest(session: Session, a: Arguments) -> Result:
    what, frames = a.choice("read", "write", "fetch"), a.frames()
    backing, user = a.after("backing", "4K", "2M") or "4K", a.flag("user")
    store = a.flag("store") is not None
    c_bit, vmpl = a.number("c", 1, 1), a.number("vmpl", 0, VMPLS)
    a.end()
    flags = [one for one in (what, user) if one not in (None, "read")]
    return session.memory.guest_access(
        frames, *flags, c_bit=bool(c_bit), store=store, backing=backing, vmpl=vmpl
    )


def _host(session: Session, a: Arguments) -> Result:
    what, frames = a.choice("read", "write"), a.frames()
    mapping, user = a.after("via", "4K", "2M", "1G") or "4K", a.flag("user")
    store, c_bit = a.flag("store") is not None, a.number("c", 0, 1)
    a.end()
    flags = [one for one in (what, user) if one not in (None, "read")]
    return session.memory.host_access(
        frames, *flags, c_bit=bool(c_bit), store=store, mapping=mapping
    )


def _dma(session: Session, a: Arguments) -> Result:
    what, frames, store = a.choice("read", "write"), a.frames(), a.flag("store") is not None
    a.end()
    return session.memory.dma(frames, *(["write"] if what == "write" else []), store=store)


def _vmrun(session: Session, a: Arguments) -> Result:
    frames = a.frames()
    a.end()
    return session.memory.vmrun(frames)


def _vmexit(session: Session, a: Arguments) -> Result:
    frames = a.frames()
    a.end()
    return session.memory.vmexit(frames)


def _firmware(session: Session, a: Arguments) -> Result:
    command = a.word("COMMAND")
    if command not in words.FIRMWARE_NAMES:
        raise a.error(f"{command[:40]!a}: must be {', '.join(words.FIRMWARE_NAMES)}")
    size = a.flag("4K", "2M") or "4K"
    if command == words.OPERATION_NAMES[lib.FRAME_OP_MOVE]:
        source = a.frame()
        a.choice("to")
        destination = a.frame()
        a.end()
        return session.memory.move(source, destination, size=size)
    frames = a.frames()
    operands = {
        "size": int(size == "2M"),
        "asid": a.number("asid", session.memory.asid, words.MAX_ASID),
        "gfn": a.number("gfn", 0, lib.FRAME_GFN_MASK),
        "target": a.number("rights", 0, (1 << 24) - 1),
        "value": a.number("value", 0, words.MAX_WORD),
    }
    a.end()
    return session.memory.firmware(command, frames, operands)


def _init(session: Session, a: Arguments) -> Result:
    frames = a.frames()
    state = a.flag(*INITIAL_STATES) or "hypervisor"
    a.end()
    return session.memory.init(frames, state)


def _psc(session: Session, a: Arguments) -> Result:
    entries = a.raw()
    if not entries:
        raise a.error("ENTRY is missing")
    return session.memory.psc(np.array(entries, np.uint64))


def _map_gpa_range(session: Session, a: Arguments) -> Result:
    gpa = a.number("gpa", None, words.MAX_WORD)
    n_pages = a.number("pages", None, words.MAX_WORD)
    attributes = a.number("attributes", None, words.MAX_WORD)
    a.end()
    return session.memory.map_gpa_range(gpa, n_pages, attributes)


def _load(session: Session, a: Arguments) -> Result:
    first = a.frame()
    halves = [word.strip("[]") for word in a.rest() if word != "-"]
    numbers = Arguments(halves, VERBS["load"].usage).raw()
    a.end()
    if not numbers or len(numbers) % 2:
        raise a.error("each entry is two numbers")
    session.memory.load(first, np.array(numbers, np.uint64).reshape(-1, 2))
    return []


def _activate(session: Session, a: Arguments) -> Result:
    asid = a.number("asid", None, words.MAX_ASID)
    a.end()
    n_pages = session.memory.pages_assigned_to(asid)
    event = session.memory.ledger.event
    if not n_pages:
        return Outcome(event, 0, 0, 0, None, "")
    status = next(row for row in FIRMWARE_STATUS if row.code == lib.SNP_FW_CONFIG)
    held = format_size(n_pages * lib.GHCB_PAGE_SIZE)
    firsts, _ = session.memory.frames_where(
        lambda v: v["assigned"].astype(np.bool_) & (v["asid"] == asid)
    )
    text = f"status {status.code:#04x} {status.name}: the RMP still gives it {held}"
    return Outcome(event, 0, 0, status.code, int(firsts[0]), text)


def _snapshot(session: Session, a: Arguments) -> Result:
    name = a.word("NAME")
    a.end()
    if len(session.snapshots) >= MAX_SNAPSHOTS and name not in session.snapshots:
        raise a.error(f"more than {MAX_SNAPSHOTS} snapshots")
    session.snapshots[name] = session.memory.snapshot()
    return []


def _changes(session: Session, a: Arguments) -> Result:
    name = a.word("NAME")
    a.end()
    if name not in session.snapshots:
        raise a.error(f"no snapshot {name[:40]!a}")
    runs = session.memory.changes(session.snapshots[name], max_runs=MAX_SHOWN + 1)
    lines = [f"{run_text(run.first, run.n_pages)}  {run.what}" for run in runs[:MAX_SHOWN]]
    return lines + ["..."] * (len(runs) > MAX_SHOWN) or ["nothing"]


def _page(session: Session, a: Arguments) -> Result:
    frame = a.frame()
    a.end()
    page = session.memory.page(frame)
    size = "2 MiB" if page.large else "4 KiB"
    owner = f", ASID {page.asid}, gfn {page.gfn:#x}" if page.asid else ""
    more = "".join(f", {n}" for n in ("immutable", "vmsa", "in_use") if getattr(page, n))
    entry = f"{page.state} ({words.STATE_TEXTS[page.state]}){owner}, {size}{more}"
    leaf = "" if page.mapping == "unmapped" else f", leaf {page.leaf}"
    views = {
        "rmp": entry,
        "page_table": page.mapping + leaf,
        "validated": "noted as validated" if page.believed else "not noted",
        "host_list": page.listed,
        "content": page.key,
    }
    rows = [f"{n:<10}  {views[n]}; {session.since_text(page.since[n])}" for n in words.VIEW_NAMES]
    rights = ", ".join(f"VMPL{i} {letters}" for i, letters in enumerate(page.rights))
    if page.asid:
        rows.insert(1, f"{'rights':<10}  {rights}")
    if not page.since_is_exact:
        rows.append("histories were cut for want of memory: these events, or earlier ones")
    return rows + [f"disagree: {name}: {session.text_of(name)}" for name in page.disagreements]


def _disagree(session: Session, a: Arguments) -> Result:
    kinds = a.rest() or None
    a.end()
    return session.disagreement_lines(kinds) or ["no views disagree"]


def _counts(session: Session, a: Arguments) -> Result:
    field = a.word("FIELD")
    frames = a.frame_runs()
    a.end()
    if len(frames) > 1:
        raise a.error("one range at most")
    counted = session.memory.counts(field, frames=frames[0] if frames else None)
    return [f"{name} {format_size(n)}" for name, n in counted.items()]


def run_text(first: int, n_pages: int) -> str:
    """Return a range as scripts have it, and its size."""
    return f"{first:#x}+{n_pages} ({format_size(n_pages * lib.GHCB_PAGE_SIZE)})"


_ROWS = {
    "accept": Verb("accept FRAMES", "make fresh memory private and validated", _accept),
    "share": Verb(
        "share FRAMES [4K|2M]", "guest and host make it shared; PSMASH where needed", _share
    ),
    "private": Verb("private FRAMES [4K|2M]", "guest and host make it private again", _private),
    "map": Verb(
        "map FRAMES shared|private|unmapped [4K|2M|1G]", "only the guest's page table", _map
    ),
    "believe": Verb("believe FRAMES yes|no", "only the guest's note: validated or not", _believe),
    "list": Verb("list FRAMES shared|private|nothing", "only the host's list", _list),
    "rmpupdate": Verb(
        "rmpupdate FRAMES [shared] [asid=N] [gfn=0x...] [4K|2M] [immutable]",
        "the host's instruction; of its own guest, unless said otherwise",
        _rmpupdate,
    ),
    "psmash": Verb("psmash FRAMES", "the host splits 2 MiB entries", _psmash),
    "pvalidate": Verb(
        "pvalidate FRAMES [4K|2M] [backing 4K|2M] [vmpl=N]", "the guest validates", _pvalidate
    ),
    "rescind": Verb(
        "rescind FRAMES [4K|2M] [backing 4K|2M] [vmpl=N]", "PVALIDATE takes it back", _rescind
    ),
    "rmpadjust": Verb(
        "rmpadjust FRAMES vmpl=N [rwuxs] [vmsa] [by=N] [4K|2M] [backing 4K|2M]",
        "rights of VMPL N: read, write, user and supervisor execute, shadow stack",
        _rmpadjust,
    ),
    "guest": Verb(
        "guest read|write|fetch FRAMES [c=0|1] [user] [store] [vmpl=N] [backing 4K|2M]",
        "an access of the guest; c=1 unless said otherwise",
        _guest,
    ),
    "host": Verb(
        "host read|write FRAMES [via 4K|2M|1G] [c=0|1] [user] [store]",
        "an access of the host, through a mapping of that size",
        _host,
    ),
    "dma": Verb("dma read|write FRAMES [store]", "an access of a device", _dma),
    "vmrun": Verb("vmrun FRAMES", "a CPU takes VMCBs or VMSAs into use", _vmrun),
    "vmexit": Verb("vmexit FRAMES", "and has left them", _vmexit),
    "firmware": Verb(
        "firmware COMMAND FRAMES [to FRAME] [4K|2M] [asid=N] [gfn=0x...] [value=N] [rights=0x...]",
        "a page command of firmware, e.g. SNP_PAGE_RECLAIM",
        _firmware,
    ),
    "init": Verb(
        "init FRAMES [hypervisor|hv_fixed|firmware|default]",
        "SNP_INIT_EX builds the table anew",
        _init,
    ),
    "psc": Verb(
        "psc ENTRY...", "page-state changes as raw entries of a GHCB's buffer, what KVM does", _psc
    ),
    "map-gpa-range": Verb(
        "map-gpa-range gpa=0x... pages=N attributes=N",
        "KVM_HC_MAP_GPA_RANGE with its registers (gpa in bytes): the host's list",
        _map_gpa_range,
    ),
    "load": Verb(
        "load FRAME [LOW - HIGH]...", "raw RMP entries as a kernel's log prints them", _load
    ),
    "activate": Verb(
        "activate asid=N", "SNP_ACTIVATE of another guest, as far as pages forbid it", _activate
    ),
    "snapshot": Verb("snapshot NAME", "remember what is", _snapshot),
    "changes": Verb("changes NAME", "say what has changed since", _changes),
    "page": Verb("page FRAME", "all views of a page, and since which line", _page),
    "disagree": Verb("disagree [KIND...]", "say where views disagree", _disagree),
    "counts": Verb(
        "counts state|mapping|listed|leaf|key [FRAMES]", "count bytes by a view", _counts
    ),
}
VERBS = MappingProxyType(_ROWS)
