"""The GHCB MSR protocol, told a second time: slow, obvious, and without the core.

Written from the protocol fact sheet (function table and layouts), before the core's rows were
read, with its own numbers. Nothing here imports ``ghcbcore``: what the two agree on, two people
have typed. The words for a status are the oracle's; the test translates them.

Each function is a code, the code of its other half, and fields given as the inclusive bit ranges
of the layout table, ``(name, high, low)``. Bits [63:12] that no range covers must be zero.
"""

from typing import NamedTuple

OK = "ok"
UNKNOWN_CODE = "unknown code"
CODE_MISMATCH = "code mismatch"
RESERVED_BITS = "reserved bits"
ECHO_MISMATCH = "echo mismatch"

ALL_ONES_GFN = 0xF_FFFF_FFFF_FFFF  # 52 bits: "no preference", "refused"


class Function(NamedTuple):
    """One code: its function's name, whether it is the answer, its other half, its fields."""

    name: str
    is_answer: bool
    other_half: int | None
    fields: tuple[tuple[str, int, int], ...]


FUNCTIONS = {
    0x000: Function("ghcb_gpa", False, None, (("gfn", 63, 12),)),
    0x001: Function("sev_info", True, 0x002, (("max", 63, 48), ("min", 47, 32), ("c_bit", 31, 24))),
    0x002: Function("sev_info", False, 0x001, ()),
    0x003: Function("ap_jump_table", False, None, (("data", 63, 12),)),  # layout not known
    0x004: Function("cpuid", False, 0x005, (("fn", 63, 32), ("reg", 31, 30))),
    0x005: Function("cpuid", True, 0x004, (("value", 63, 32), ("reg", 31, 30))),
    0x006: Function("ap_reset_hold", False, 0x007, ()),
    0x007: Function("ap_reset_hold", True, 0x006, (("result", 63, 12),)),
    0x010: Function("preferred_gpa", False, 0x011, ()),
    0x011: Function("preferred_gpa", True, 0x010, (("gfn", 63, 12),)),
    0x012: Function("register_gpa", False, 0x013, (("gfn", 63, 12),)),
    0x013: Function("register_gpa", True, 0x012, (("gfn", 63, 12),)),
    0x014: Function("page_state_change", False, 0x015, (("gfn", 51, 12), ("op", 55, 52))),
    0x015: Function("page_state_change", True, 0x014, (("error", 63, 32),)),
    0x016: Function("run_vmpl", False, 0x017, (("vmpl", 39, 32),)),
    0x017: Function("run_vmpl", True, 0x016, (("error", 63, 32),)),
    0x018: Function("unregister_gpa", False, 0x019, ()),
    0x019: Function("unregister_gpa", True, 0x018, (("gfn", 63, 12),)),
    0x080: Function("hv_features", False, 0x081, ()),
    0x081: Function("hv_features", True, 0x080, (("features", 63, 12),)),
    0x100: Function("terminate", False, None, (("set", 15, 12), ("reason", 23, 16))),
}
CODES = sorted(FUNCTIONS)
REQUESTS_WITH_ANSWER = [
    code for code in CODES if FUNCTIONS[code].other_half and not FUNCTIONS[code].is_answer
]


def bits(value, high, low):
    """Return bits [high:low] of ``value``, counting from bit 0."""
    number = 0
    for position in range(high, low - 1, -1):
        number = number * 2 + (value >> position & 1)
    return number


def claimed(code):
    """Return the positions of all bits that mean something under ``code``."""
    positions = set(range(12))
    for _, high, low in FUNCTIONS[code].fields:
        positions |= set(range(low, high + 1))
    return positions


def reserved_bits(code):
    """Return the positions of the bits that must be zero under ``code``."""
    return sorted(set(range(64)) - claimed(code))


def decode(value):
    """Return ``(function, fields, status)``; without a row: None and the raw data bits."""
    code = bits(value, 11, 0)
    if code not in FUNCTIONS:
        return None, {"data": bits(value, 63, 12)}, UNKNOWN_CODE
    function = FUNCTIONS[code]
    fields = {name: bits(value, high, low) for name, high, low in function.fields}
    stray = [position for position in reserved_bits(code) if bits(value, position, position)]
    return function, fields, RESERVED_BITS if stray else OK


def encode(code, *numbers):
    """Return the value with these fields, in the order of the row; raise ValueError if none."""
    if code not in FUNCTIONS:
        raise ValueError(UNKNOWN_CODE)
    fields = FUNCTIONS[code].fields
    if any(numbers[len(fields) :]):
        raise ValueError("a field that the function does not have")
    value = code
    for (name, high, low), number in zip(fields, numbers, strict=False):
        if number >= 2 ** (high - low + 1):
            raise ValueError(name)
        value += number * 2**low
    return value


def check_answer(request, answer):
    """Return the first objection a careful guest has to ``answer``, or ``OK``."""
    asked, asked_fields, _ = decode(request)
    if asked is None:
        return UNKNOWN_CODE
    if asked.is_answer or asked.other_half is None or bits(answer, 11, 0) != asked.other_half:
        return CODE_MISMATCH
    _, got_fields, status = decode(answer)
    if status != OK:
        return status
    if asked.name == "cpuid" and got_fields["reg"] != asked_fields["reg"]:
        return ECHO_MISMATCH
    if asked.name == "register_gpa" and got_fields["gfn"] not in (
        asked_fields["gfn"],
        ALL_ONES_GFN,
    ):
        return ECHO_MISMATCH
    return OK
