"""VM save areas in words: segments, control registers, SEV features, what is unlike a new AP.

Where each register stands is in ``ghcbcore/vmsa.h``. A VMSA is shown, not judged: what breaks a
rule is only that bytes without a field are not zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ghcbcore._cffi import lib
from ghcbcore.layouts import VMSA_DTYPE, as_records, bits_of, first_reserved, set_bits

from .explanation import ExplainedField, Explanation, bit_ranges
from .kinds import Kind
from .sev import feature_names

__all__ = ["KINDS", "explain_vmsa"]

SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr")
TABLES = ("gdtr", "idtr")
SYSTEM_TYPES = {0x2: "LDT", 0x3: "busy 16-bit TSS", 0x9: "TSS", 0xB: "busy TSS"}


def _names_of(register: str) -> dict[int, str]:
    prefix = f"SEV_{register.upper()}_"
    return {
        getattr(lib, name): name.removeprefix(prefix)
        for name in dir(lib)
        if name.startswith(prefix)
    }


_BITS = {register: _names_of(register) for register in ("efer", "cr0", "cr4", "rflags")}


def _bit_names(register: str, value: int) -> str:
    names = _BITS[register]
    level = 0
    if register == "rflags":
        level = bits_of(value, lib.SEV_RFLAGS_IOPL, 2)
        value -= level << lib.SEV_RFLAGS_IOPL
        value &= ~(1 << lib.SEV_RFLAGS_FIXED)
    said = [names[b] for b in set_bits(value) if b in names]
    if unknown := sum(1 << b for b in set_bits(value) if b not in names):
        said.append(f"bits {bit_ranges(unknown)}")
    return " ".join([*said, *([f"IOPL={level}"] if level else [])])


def _attribute(value: int, name: str) -> int:
    shift, width = (getattr(lib, f"SEV_SEGMENT_{name}_{part}") for part in ("SHIFT", "WIDTH"))
    return bits_of(value, shift, width)


def _segment_words(name: str, segment: Any) -> str:
    attributes, limit = int(segment["attributes"]), int(segment["limit"])
    if name in TABLES:
        return f"base; limit {limit:#x}"
    kind = _attribute(attributes, "TYPE")
    if not _attribute(attributes, "P"):
        said = ["not present"]
    elif not _attribute(attributes, "S"):
        said = [SYSTEM_TYPES.get(kind, f"system type {kind:#x}")]
    elif bits_of(kind, 3, 1):
        said = ["code", "readable"] if bits_of(kind, 1, 1) else ["code"]
    else:
        said = ["data", "writable"] if bits_of(kind, 1, 1) else ["data"]
    for flag, words in (("L", "64-bit"), ("DB", "32-bit"), ("G", "4 KiB units")):
        if _attribute(attributes, flag):
            said.append(words)
    if level := _attribute(attributes, "DPL"):
        said.append(f"DPL {level}")
    return (
        f"base; selector {int(segment['selector']):#x}, limit {limit:#x}, "
        f"attributes {attributes:#x} ({', '.join(said)})"
    )


def _new_ap(record: Any) -> dict[str, int]:
    """Return what Linux writes for a new AP, but what follows from its vector and start address.

    By name; a field of a segment as ``cs.limit``.
    """
    data = {f"{name}.attributes": lib.SEV_AP_DATA_ATTRIBUTES for name in ("ds", "es", "fs", "gs")}
    return {
        **{f"{name}.limit": lib.SEV_AP_LIMIT for name in SEGMENTS},
        **data,
        "ss.attributes": lib.SEV_AP_DATA_ATTRIBUTES,
        "cs.attributes": lib.SEV_AP_CS_ATTRIBUTES,
        "ldtr.attributes": lib.SEV_AP_LDTR_ATTRIBUTES,
        "tr.attributes": lib.SEV_AP_TR_ATTRIBUTES,
        "efer": lib.SEV_AP_EFER,
        "cr0": lib.SEV_AP_CR0,
        "dr6": lib.SEV_AP_DR6,
        "dr7": lib.SEV_AP_DR7,
        "rflags": lib.SEV_AP_RFLAGS,
        "g_pat": lib.SEV_AP_G_PAT,
        "xcr0": lib.SEV_AP_XCR0,
        "mxcsr": lib.SEV_AP_MXCSR,
        "x87_ftw": lib.SEV_AP_X87_FTW,
        "x87_fcw": lib.SEV_AP_X87_FCW,
        # these are the creator's own
        "cs.selector": int(record["cs"]["selector"]),
        "cs.base": int(record["cs"]["base"]),
        "rip": int(record["rip"]),
        "vmpl": int(record["vmpl"]),
        "sev_features": int(record["sev_features"]),
        "cr4": int(record["cr4"]) & 1 << lib.SEV_CR4_MCE,
    }


def _flat(record: Any) -> dict[str, int]:
    """Return every number of a VMSA by name; arrays of bytes as one number."""
    found = {}
    for name in VMSA_DTYPE.names or ():
        value = record[name]
        if name in SEGMENTS:
            for part in ("selector", "attributes", "limit", "base"):
                found[f"{name}.{part}"] = int(value[part])
        elif np.ndim(value):
            found[name] = int.from_bytes(bytes(value), "little")
        else:
            found[name] = int(value)
    return found


def _field_words(name: str, value: int) -> str:
    if name in _BITS:
        return _bit_names(name, value)
    if name == "sev_features":
        return feature_names(value)
    return {"vmpl": "privilege level", "virtual_tom": "virtual top of memory"}.get(name, "")


def explain_vmsa(data: bytes) -> Explanation:
    """Say in words what a VMSA page holds.

    Parameters
    ----------
    data : bytes
        4096 of them, in the clear.

    Returns
    -------
    Explanation
        Its fields are the segments and every other register that is not zero. The remarks name
        what is unlike the VMSA that a Linux guest writes for a new AP, at most 24 fields of it.

    Raises
    ------
    ValueError
        ``data`` has another length.
    """
    page = np.frombuffer(data, dtype=np.uint8)[np.newaxis]
    record = as_records(page, VMSA_DTYPE)[0]
    fields = []
    for name in VMSA_DTYPE.names or ():
        value = record[name]
        if name in SEGMENTS:
            words = _segment_words(name, value)
            fields.append(ExplainedField(name, int(value["base"]), words))
        elif np.ndim(value):
            if n_set := int(np.count_nonzero(value)):
                words = f"{n_set} of {len(value)} bytes are not zero"
                fields.append(ExplainedField(name, int(value[np.flatnonzero(value)[0]]), words))
        elif value:
            fields.append(ExplainedField(name, int(value), _field_words(name, int(value))))
    at = int(first_reserved(page, VMSA_DTYPE)[0])
    reserved = f"reserved bytes must be zero, the first that is not is at {at:#x}"
    return Explanation(
        value=None,
        function="vmsa",
        title="VMSA",
        direction="",
        sentence=_sentence(record),
        fields=tuple(fields),
        findings=(reserved,) if at >= 0 else (),
        remarks=tuple(_remarks(record)),
        kind="vmsa",
        listed=True,
    )


def _sentence(record: Any) -> str:
    cr0, efer = int(record["cr0"]), int(record["efer"])
    long_mode = bits_of(efer, lib.SEV_EFER_LMA, 1)
    mode = "real mode"
    if bits_of(cr0, lib.SEV_CR0_PE, 1):
        code64 = _attribute(int(record["cs"]["attributes"]), "L")
        mode = "64-bit mode" if long_mode and code64 else "protected mode"
        if long_mode and not code64:
            mode = "compatibility mode"
    linear = bits_of(int(record["cs"]["base"]) + int(record["rip"]), 0, 64)
    return f"VMPL {int(record['vmpl'])}, {mode}, next instruction at {linear:#x}"


def _remarks(record: Any) -> list[str]:
    expected = _new_ap(record)
    unlike = [
        (name, value, expected.get(name, 0))
        for name, value in _flat(record).items()
        if value != expected.get(name, 0)
    ]
    remarks = []
    if not bits_of(int(record["efer"]), lib.SEV_EFER_SVME, 1):
        remarks.append("EFER.SVME is not set: VMRUN refuses such a VMSA")
    if not unlike:
        return [*remarks, "as a Linux guest writes it for a new AP"]
    remarks += [
        f"a new AP of Linux has {name} {want:#x}, here it is {_short(value)}"
        for name, value, want in unlike[:24]
    ]
    if len(unlike) > 24:
        remarks.append(f"and {len(unlike) - 24} more are unlike a new AP")
    return remarks


def _short(value: int) -> str:
    return f"{value:#x}" if value.bit_length() <= 64 else "something else"


KINDS = (Kind("vmsa", "VM save areas, in the clear", lib.SEV_VMSA_SIZE, explain_vmsa),)
