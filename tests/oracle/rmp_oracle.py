"""Entries of the reverse map table the slow way: by the strings of their bits.

Written from the description of the layout, one row a field, and of the states, one row a state;
nothing is taken from the core.
"""

# name, first and last bit of the 128, lowest bit of the low word first
RAW_FIELDS = [
    ("assigned", 0, 0),
    ("page_size", 1, 1),
    ("immutable", 2, 2),
    ("subpages", 3, 11),
    ("gfn", 12, 50),
    ("asid", 51, 60),
    ("vmsa", 61, 61),
    ("validated", 62, 62),
    ("lock", 63, 63),
    ("vmpl0", 64, 71),
    ("vmpl1", 72, 79),
    ("vmpl2", 80, 87),
    ("vmpl3", 88, 95),
    ("implicit_key", 96, 96),
    ("root_port", 113, 117),
    ("ide_stream", 118, 125),
    ("migration", 126, 127),
]
RESERVED = [*range(97, 113), *(64 + 8 * k + bit for k in range(4) for bit in (5, 6, 7))]

ANY = None
POSITIVE = "> 0"
# name, number, assigned, validated, asid, immutable, lock, gfn, vmsa; in the order of the tests
STATES = [
    ("hypervisor", 2, 0, 0, 0, 0, ANY, ANY, ANY),
    ("hv_fixed", 3, 0, 0, 0, 1, ANY, ANY, ANY),
    ("firmware", 4, 1, 0, 0, 1, ANY, 0, 0),
    ("reclaim", 6, 1, 0, 0, 0, 0, ANY, ANY),
    ("context", 7, 1, 0, 0, 1, ANY, 0, 1),
    ("metadata", 8, 1, 0, 0, 1, ANY, "tag 1", ANY),
    ("pre_guest", 9, 1, 0, POSITIVE, 1, ANY, ANY, ANY),
    ("pre_swap", 10, 1, 1, POSITIVE, 1, ANY, ANY, ANY),
    ("guest_invalid", 11, 1, 0, POSITIVE, 0, ANY, ANY, ANY),
    ("guest_valid", 12, 1, 1, POSITIVE, 0, ANY, ANY, ANY),
    ("firmware_iommu", 5, 1, 0, 0, 1, ANY, "frame 1, tag 2", 0),
]


def bits_of(low: int, high: int) -> str:
    """Return 128 characters, bit 0 first."""
    return f"{high:064b}{low:064b}"[::-1]


def number(bits: str) -> int:
    return int(bits[::-1], 2)


def matches(wanted, found: int) -> bool:
    if wanted is ANY:
        return True
    if wanted == POSITIVE:
        return found > 0
    if wanted == "tag 1":
        return f"{found:039b}"[:3] == "001"
    if wanted == "frame 1, tag 2":
        return f"{found:039b}" == "010" + "0" * 35 + "1"
    return found == wanted


def state_of(entry: dict[str, int]) -> int:
    names = ("assigned", "validated", "asid", "immutable", "lock", "gfn", "vmsa")
    for _, state, *wanted in STATES:
        if all(matches(one, entry[name]) for one, name in zip(wanted, names, strict=True)):
            return state
    return 0


def decode(low: int, high: int) -> dict[str, int]:
    """Return every field, ``gpa`` in bytes, ``state``, ``reserved`` (whether such a bit is 1)."""
    bits = bits_of(low, high)
    entry = {name: number(bits[first : last + 1]) for name, first, last in RAW_FIELDS}
    entry["state"] = state_of(entry)
    entry["reserved"] = int(any(bits[bit] == "1" for bit in RESERVED))
    entry["gpa"] = entry.pop("gfn") * 4096
    return entry


def decode_rmpread(data: bytes) -> dict[str, int]:
    """Take apart the 16 bytes that RMPREAD returns."""
    return {
        "gpa": int.from_bytes(data[:8], "little"),
        "assigned": data[8] % 2,
        "page_size": data[9] % 2,
        "region": data[9] // 2 % 2,
        "immutable": data[10] % 2,
        "asid": int.from_bytes(data[12:], "little"),
        "reserved": int(data[8] > 1 or data[9] > 3 or data[10] > 1 or data[11] > 0),
    }
