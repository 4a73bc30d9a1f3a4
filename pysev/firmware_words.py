"""What firmware's state and answers are called: which check answered, and what it saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ghcbcore import firmware as core
from ghcbcore._cffi import lib

from .tables.firmware_model import (
    BADS,
    CHECKS,
    Activation,
    Cell,
    GuestState,
    GuestType,
    Sev,
    Snp,
    SnpGuestState,
)

if TYPE_CHECKING:
    from .firmware import Firmware

__all__ = [
    "bitmap_change",
    "cells_change",
    "cells_text",
    "check_text",
    "guest_change",
    "guest_text",
    "order_text",
    "platform_change",
    "ranges",
    "state_text",
    "thread_change",
]

CHECK_OF = {int(code.code): code for code in CHECKS}
BAD_OF = {int(code.code): code for code in BADS}
FIRST_ONLY = (lib.GHCB_FW_IF_ASID_DIRTY, lib.GHCB_FW_IF_ASID_CELLS, lib.GHCB_FW_IF_PAGES)


def ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ``1-3, 7``; the empty string for none."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def guest_text(guest: Any) -> str:
    """Say in words what a record of a guest says."""
    kind = GuestType(int(guest["type"]))
    if kind == GuestType.NONE:
        return "none"
    names = SnpGuestState if kind == GuestType.SNP else GuestState
    text = f"{kind.name} {names(guest['state']).name}"
    active = Activation(guest["active"])
    if active == Activation.INACTIVE:
        return f"{text}, no ASID"
    return f"{text}, ASID {int(guest['asid'])} {active.name}"


def cells_text(cells: Sequence[int]) -> str:
    """Say how the cells of one ASID stand, one for each CCX: ``CLEAN on CCX 1, DIRTY on CCX 0``."""
    kinds = {kind: [i for i, v in enumerate(cells) if v == kind] for kind in sorted(set(cells))}
    if len(kinds) == 1:
        return Cell(cells[0]).name
    return ", ".join(f"{Cell(kind).name} on CCX {ranges(on)}" for kind, on in kinds.items())


def thread_change(old: int, new: int) -> str:
    """Tell what has changed in a thread's word; so do the functions that follow."""
    a, b = core.threads([old, new])
    texts = (
        ("done", "done bit erased", "done bit set"),
        ("kept", "WBNOINVD forgotten", "WBNOINVD noted"),
        ("snp_en", "SNPEn cleared", "SNPEn set"),
    )
    said = [on if b[name] else off for name, off, on in texts if a[name] != b[name]]
    if a["ccx"] != b["ccx"]:
        said.append(f"sits on CCX {int(b['ccx'])}")
    if a["runs"] != b["runs"]:
        said.append(f"in the guest of ASID {int(b['runs'])}" if b["runs"] else "out of the guest")
    return ", ".join(said)


def cells_change(asid: int, n_ccxs: int, old: int, new: int) -> str:
    a, b = core.states([old, new], n_ccxs).tolist()
    return f"ASID {asid} {cells_text(a)} -> {cells_text(b)}"


def guest_change(slot: int, old: int, new: int) -> str:
    a, b = core.guests([old, new])
    return f"guest {slot} {guest_text(a)} -> {guest_text(b)}"


def platform_change(old: int, new: int) -> str:
    a, b = core.platforms([old, new])
    said = [
        f"{title} {names(int(a[name])).name} -> {names(int(b[name])).name}"
        for name, title, names in (("sev", "SEV", Sev), ("snp", "SNP", Snp))
        if a[name] != b[name]
    ]
    said += [
        on if b[name] else off
        for name, off, on in (
            ("rmp", "RMP no longer initialised", "RMP initialised"),
            ("iommu", "IOMMU unlocked", "IOMMU locked"),
        )
        if a[name] != b[name]
    ]
    return ", ".join(said)


def bitmap_change(gone: str, come: str, old: int, new: int) -> str:
    """Tell which ASIDs have left a bitmap of one word, and which have come in."""
    a, b = set(core.members(old)), set(core.members(new))
    said = [(gone, sorted(a - b)), (come, sorted(b - a))]
    return ", ".join(f"{text} ASID {ranges(asids)}" for text, asids in said if asids and text)


def state_text(firmware: Firmware, step: Any) -> Mapping[str, str]:
    """Put down what a check can say about the state before a command, in words."""
    op = step["op"]
    slot, asid = int(op["guest"]), int(op["asid"])
    platform, guests, rows = firmware.platform(), firmware.guests(), firmware.asids()
    threads = firmware.threads()
    guest = guests[slot] if slot < len(guests) else np.zeros((), guests.dtype)
    is_snp = GuestType(int(guest["type"])) == GuestType.SNP
    state = (SnpGuestState if is_snp else GuestState)(int(guest["state"])).name
    cells = rows[asid - 1] if 1 <= asid <= len(rows) else rows[0]
    unclean = np.flatnonzero(rows.any(axis=1)) + 1
    late = np.flatnonzero(threads["done"] == 0)
    return {
        "sev": platform["sev"].name,
        "snp": platform["snp"].name,
        "guest": f"guest {slot}",
        "state": state,
        "is_snp": "1" if is_snp else "",
        "asid": str(asid),
        "pages": str(int(op["pages"])),
        "cells": " and ".join(Cell(v).name for v in sorted(set(cells.tolist()))),
        "unclean": _are(unclean.tolist(), "ASID", "not CLEAN"),
        "not_done": _are(late.tolist(), "thread", ""),
        "no_snp_en": ranges(np.flatnonzero(threads["snp_en"] == 0).tolist()),
        "hsave": ranges(np.flatnonzero(threads["hsave"]).tolist()),
    }


def _are(numbers: Sequence[int], what: str, how: str) -> str:
    several = len(numbers) != 1
    verb = "are" if several else "is"
    text = f"{what}{'s' if several else ''} {ranges(numbers)}"
    return f"{text} {verb} {how}" if how else text


def check_text(texts: Mapping[str, str], answer: Any, step: Any) -> tuple[str, str]:
    """Return the name of the check that answered and why; two empty strings if none did.

    ``texts`` are those of the state before.
    """
    kind, arg = int(answer["kind"]), int(answer["arg"])
    if not kind:
        unknown = int(answer["status"]) == lib.SNP_FW_COMMAND
        return ("command", "firmware has no such command") if unknown else ("", "")
    return _name(kind, arg), _why(kind, arg, texts, step)


def order_text(kind: int, arg: int, *, snp: bool) -> str:
    """Name a check in a list of those that a command makes: no state is known.

    ``snp``: the command is about an SNP guest, whose states have other names.
    """
    if kind in (lib.GHCB_FW_IF_SEV_NOT, lib.GHCB_FW_IF_SNP_NOT, lib.GHCB_FW_IF_GUEST_NOT):
        return f"{_name(kind, arg)} in {_states(kind, arg, snp=snp)}"
    if kind in FIRST_ONLY and arg == lib.GHCB_FW_FIRST:
        return f"{_name(kind, arg)} unless active"
    return _name(kind, arg)


def _name(kind: int, arg: int) -> str:
    if kind in (lib.GHCB_FW_IF_BAD, lib.GHCB_FW_IF_BAD_WITH_SNP, lib.GHCB_FW_IF_FAILED):
        return BAD_OF[arg].name
    return CHECK_OF[kind].name


def _why(kind: int, arg: int, texts: Mapping[str, str], step: Any) -> str:
    if kind in (lib.GHCB_FW_IF_BAD, lib.GHCB_FW_IF_BAD_WITH_SNP, lib.GHCB_FW_IF_FAILED):
        return BAD_OF[arg].what
    states = _states(kind, arg, snp=bool(texts["is_snp"]))
    return CHECK_OF[kind].what.format(**texts, states=states, arg=arg)


def _states(kind: int, arg: int, *, snp: bool) -> str:
    names: Iterable[Any] = SnpGuestState if snp else GuestState
    if kind == lib.GHCB_FW_IF_SEV_NOT:
        names = Sev
    if kind == lib.GHCB_FW_IF_SNP_NOT:
        names = Snp
    members = core.members(arg)
    return " or ".join(one.name for one in names if one.value in members)
