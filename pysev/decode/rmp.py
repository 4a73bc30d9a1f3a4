"""The reverse map table in words: an entry in either of its forms; what says where entries lie.

Bits are taken apart in ``ghcbcore.rmp`` and ``rmpgeometry``, words are in ``pysev.tables.rmp``.
"""

from __future__ import annotations

from ghcbcore import rmp, rmpgeometry
from ghcbcore._cffi import lib
from pysev.memmap import format_size
from pysev.tables.rmp import CONFIG, RIGHTS, SEGMENT, STATES

from .explanation import ExplainedField, Explanation
from .kinds import Kind
from .word import say

__all__ = [
    "KINDS",
    "explain_rmp",
    "explain_rmp_cfg",
    "explain_rmp_segment",
    "explain_rmpread",
]

GIB_SHIFT: int = lib.RMP_MAPPED_UNIT_SHIFT

_STATES = {one.code: one for one in STATES}
_SIZES = {lib.RMP_PAGE_4K: "4 KiB", lib.RMP_PAGE_2M: "2 MiB"}
_VMPLS = ("vmpl0", "vmpl1", "vmpl2", "vmpl3")
_ARCH = ("gpa", "asid", "assigned", "page_size", "immutable", "region")


def explain_rmp(low: int, high: int) -> Explanation:
    """Say in words what a raw entry means: the two words that Linux prints.

    Raises
    ------
    OutOfRange
        A word is negative or has more than 64 bits.

    Examples
    --------
    >>> print(explain_rmp(0x6010FFFFFFFFF001, 0x1F).as_text())
    RMP entry [0x6010fffffffff001 - 0x000000000000001f]: guest_valid: a guest's, validated
        - 4 KiB page of ASID 2 at GPA 0xfffffffff000, VMSA; rights: VMPL0 rwuxs
    """
    entry = rmp.decode_one(low, high)
    state = _STATES[entry.state]
    findings = _findings(entry)
    remarks = []
    if entry.assigned or entry.asid:
        remarks.append(_owner(entry))
    elif entry.gpa or entry.page_size:
        remarks.append(
            f"unassigned, yet {_SIZES[entry.page_size]} and GPA {entry.gpa:#x} stand there"
        )
    if entry.subpages:
        remarks.append(f"{entry.subpages} more pages of its 2 MiB region are assigned")
    if entry.lock:
        remarks.append("the entry is locked")
    if entry.asid == lib.RMP_ASID_FIRMWARE_EDITS:
        remarks.append("firmware uses this ASID while it changes an entry")
    return Explanation(
        value=None,
        function=state.name,
        title=f"RMP entry [{low:#018x} - {high:#018x}]",
        direction="",
        sentence=f"{state.name}: {state.what}",
        fields=_fields(entry, [name for name in entry._fields if name not in ("region", "status")]),
        findings=findings,
        remarks=tuple(remarks),
        kind="rmp",
    )


def explain_rmpread(gpa: int, rest: int) -> Explanation:
    """Say in words what RMPREAD returned: the first and the second 8 bytes.

    Examples
    --------
    >>> print(explain_rmpread(0x40000000, 0x6300000101).as_text())
    RMPREAD [0x0000000040000000 - 0x0000006300000101]: 2 MiB page of ASID 99 at GPA 0x40000000
    """
    entry = rmp.decode_one(gpa, rest, "arch")
    remarks = ["some page of the 2 MiB region is assigned"] if entry.region else []
    return Explanation(
        value=None,
        function="assigned" if entry.assigned else "unassigned",
        title=f"RMPREAD [{gpa:#018x} - {rest:#018x}]",
        direction="",
        sentence=_owner(entry) if entry.assigned else "belongs to the host",
        fields=_fields(entry, _ARCH),
        findings=_findings(entry),
        remarks=tuple(remarks),
        kind="rmpread",
    )


def explain_rmp_cfg(value: int) -> Explanation:
    """Say in words what the MSR RMP_CFG (C001_0136) means.

    Raises
    ------
    OutOfRange
        ``value`` is negative or has more than 64 bits.

    Examples
    --------
    >>> print(explain_rmp_cfg(0x2401).as_text())
    0x0000000000002401  RMP_CFG: segmented, each segment covers 64 GiB
        - segment i begins at i * 0x1000000000
    """
    config = rmpgeometry.decode_config(value)
    said = say(CONFIG, value)
    findings = list(said.findings)
    remarks = []
    if not config.is_segmented:
        sentence = "contiguous"
        if config.shift:
            remarks.append(f"a shift of {config.shift} stands there, without effect")
    elif not lib.RMP_MAPPED_UNIT_SHIFT <= config.shift <= lib.RMP_ADDRESS_BITS:
        sentence = f"segmented, shift {config.shift}"
        findings.append(
            f"segments of 2**{config.shift} bytes: must be 2**{lib.RMP_MAPPED_UNIT_SHIFT} (what a "
            f"segment's size is counted in) to 2**{lib.RMP_ADDRESS_BITS}"
        )
    else:
        sentence = f"segmented, each segment covers {_gib(2 ** (config.shift - GIB_SHIFT))}"
        remarks.append(f"segment i begins at i * {2**config.shift:#x}")
    return Explanation(
        value=value,
        function="segmented" if config.is_segmented else "contiguous",
        title="RMP_CFG",
        direction="",
        sentence=sentence,
        fields=said.fields,
        findings=tuple(findings),
        remarks=tuple(remarks),
        kind="rmp-cfg",
    )


def explain_rmp_segment(value: int) -> Explanation:
    """Say in words what one word of the table of segments (RST) means.

    Raises
    ------
    OutOfRange
        ``value`` is negative or has more than 64 bits.

    Examples
    --------
    >>> print(explain_rmp_segment(0x55B00080).as_text())
    0x0000000055b00080  RMP segment: 128 GiB mapped by entries at [0x55b00000 - 0x75afffff]
    """
    segment = rmpgeometry.decode_segment(value)
    said = say(SEGMENT, value)
    findings = list(said.findings)
    remarks = []
    if segment.mapped_gib:
        n_pages = segment.mapped_gib * 2**GIB_SHIFT // lib.GHCB_PAGE_SIZE
        end = segment.spa + n_pages * lib.RMP_ENTRY_BYTES
        sentence = (
            f"{_gib(segment.mapped_gib)} mapped by entries at [{segment.spa:#x} - {end - 1:#x}]"
        )
        if end > 2**lib.RMP_ADDRESS_BITS:
            findings.append("its entries end above 52 address bits")
    else:
        sentence = "no entries"
        if segment.spa:
            remarks.append(f"address {segment.spa:#x} stands there, without effect")
    return Explanation(
        value=value,
        function="segment" if segment.mapped_gib else "unused",
        title="RMP segment",
        direction="",
        sentence=sentence,
        fields=said.fields,
        findings=tuple(findings),
        remarks=tuple(remarks),
        kind="rmp-segment",
    )


def _gib(count: int) -> str:
    """Return whole GiB with the largest unit that keeps them exact."""
    text = format_size(count * 2**GIB_SHIFT)
    return f"{text[:-1]} {text[-1]}iB"


def _findings(entry: rmp.Entry) -> tuple[str, ...]:
    """Return the one rule that the core says is broken."""
    texts = {
        lib.GHCB_E_RESERVED_BITS: "a bit is set that no field claims",
        lib.GHCB_E_STATE_CONFLICT: "no page state has such an entry",
        lib.GHCB_E_UNALIGNED: f"GPA {entry.gpa:#x} is no multiple of the page's size",
    }
    return (texts[entry.status],) if entry.status else ()


def _owner(entry: rmp.Entry) -> str:
    """Return who has the page, and what it is to them."""
    text = f"{_SIZES[entry.page_size]} page"
    if entry.asid:
        text += f" of ASID {entry.asid} at GPA {entry.gpa:#x}"
    elif entry.gpa:
        text += f", GPA field {entry.gpa:#x}"
    flags = [name for name in ("vmsa", "immutable") if getattr(entry, name)]
    text += "".join(", " + {"vmsa": "VMSA"}.get(name, name) for name in flags)
    if any(getattr(entry, name) for name in _VMPLS):
        each = (f"{name.upper()} {_rights(getattr(entry, name))}" for name in _VMPLS)
        text += "; rights: " + ", ".join(one for one in each if not one.endswith(" none"))
    return text


def _rights(mask: int) -> str:
    return "".join(one.what for one in RIGHTS if mask >> one.code & 1) or "none"


def _fields(entry: rmp.Entry, names: tuple[str, ...] | list[str]) -> tuple[ExplainedField, ...]:
    def words(name: str, value: int) -> str:
        if name == "state":
            return _STATES[value].name
        if name == "page_size":
            return _SIZES[value]
        return _rights(value) if name in _VMPLS else ""

    values = ((name, getattr(entry, name)) for name in names)
    return tuple(ExplainedField(name, value, words(name, value)) for name, value in values)


KINDS = (
    Kind("rmp", "RMP entry as it lies in memory: two words", None, explain_rmp, n_words=2),
    Kind("rmpread", "RMP entry as RMPREAD returns it: two words", None, explain_rmpread, n_words=2),
    Kind("rmp-cfg", "the MSR RMP_CFG, C001_0136", None, explain_rmp_cfg),
    Kind("rmp-segment", "a word of the RMP segment table (RST)", None, explain_rmp_segment),
)
