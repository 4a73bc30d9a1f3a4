"""GHCB pages and page-state change buffers, told a second time: slow, obvious, without the core.

Written from the GHCB fact sheet (page layout, event table, page-state change), with its own
numbers. Nothing here imports ``ghcbcore``. Where the sheet leaves a choice, KVM's is taken, as the
sheet describes it.
"""

FIELDS = {  # name: (offset, size); all but the last four have a bit in the valid bitmap
    "cpl": (0x0CB, 1),
    "xss": (0x140, 8),
    "dr7": (0x160, 8),
    "rip": (0x178, 8),
    "rsp": (0x1D8, 8),
    "rax": (0x1F8, 8),
    "rcx": (0x308, 8),
    "rdx": (0x310, 8),
    "rbx": (0x318, 8),
    "rbp": (0x328, 8),
    "rsi": (0x330, 8),
    "rdi": (0x338, 8),
    **{f"r{8 + i}": (0x340 + 8 * i, 8) for i in range(8)},
    "sw_exit_code": (0x390, 8),
    "sw_exit_info_1": (0x398, 8),
    "sw_exit_info_2": (0x3A0, 8),
    "sw_scratch": (0x3A8, 8),
    "xcr0": (0x3E8, 8),
    "valid_lo": (0x3F0, 8),
    "valid_hi": (0x3F8, 8),
    "x87_state_gpa": (0x400, 8),
    "protocol_version": (0xFFA, 2),
    "ghcb_usage": (0xFFC, 4),
}
WITHOUT_BIT = ("valid_lo", "valid_hi", "x87_state_gpa", "protocol_version", "ghcb_usage")
SHARED_BUFFER = range(0x800, 0xFF0)
BASE = {"sw_exit_code", "sw_exit_info_1", "sw_exit_info_2"}

ALWAYS = {  # required beside the three, whatever the request says
    0x27: set(),
    0x37: {"rax"},
    0x6E: set(),
    0x6F: {"rcx"},
    0x72: {"rax", "rcx"},
    0x76: set(),
    0x7B: set(),
    0x7C: {"rcx"},
    0x81: {"rax", "cpl"},
    0x87: set(),
    0x89: set(),
    0x8A: {"rax", "rcx", "rdx"},
    0x8B: {"rax", "rcx"},
    0x80000001: {"sw_scratch"},
    0x80000002: {"sw_scratch"},
    0x80000003: set(),
    0x80000004: set(),
    0x80000005: set(),
    0x80000010: {"sw_scratch"},
    0x80000011: set(),
    0x80000012: set(),
    0x80000013: set(),
    0x80000014: set(),
    0x80000015: set(),
    0x80000016: set(),
    0x80000017: {"rax"},
    0x80000018: set(),
    0x80000019: set(),
    0x8000001A: {"rax"},
    0x8000001B: set(),
    0x8000001C: set(),
    0x8000001D: set(),
    0x80000020: {"rax", "rbx", "rcx", "rdx"},
    0x80000021: set(),
    0x8000FFFD: set(),
    0x8000FFFE: set(),
    0x8000FFFF: set(),
}
VERSION_2 = {code for code in ALWAYS if 0x80000010 <= code <= 0x8000FFFE}


def number(page, name):
    """Return a field of a page (bytes) as an integer."""
    offset, size = FIELDS[name]
    return int.from_bytes(page[offset : offset + size], "little")


def marked(page):
    """Return the names of the fields that the bitmap marks."""
    bitmap = page[0x3F0:0x400]
    return {
        name
        for name, (offset, _) in FIELDS.items()
        if name not in WITHOUT_BIT and bitmap[offset // 8 // 8] >> (offset // 8 % 8) & 1
    }


def missing(page):
    """Return the names of the fields that a request needs and does not mark."""
    code, info1 = number(page, "sw_exit_code"), number(page, "sw_exit_info_1")
    valid = marked(page)
    rax = number(page, "rax") if "rax" in valid else 0
    need = BASE | ALWAYS.get(code, set())
    if code == 0x72 and rax == 0xD:
        need |= {"xcr0"}
    if code == 0x7B:
        is_string, is_in = bool(info1 & 4), bool(info1 & 1)
        if is_string:
            need |= {"sw_scratch"}
        elif not is_in:
            need |= {"rax"}
    if code == 0x7C and info1 != 0:
        need |= {"rax", "rdx"}
    if code == 0x80000013 and info1 % 2**32 != 2:
        need |= {"rax"}
    if code == 0x8000001A and info1 == 0:
        need |= {"rbx"}
    return need - valid


def reserved_offset(page):
    """Return the offset of the first byte that belongs to no field and is not zero, or None."""
    claimed = set(SHARED_BUFFER)
    for offset, size in FIELDS.values():
        claimed.update(range(offset, offset + size))
    return next((i for i, byte in enumerate(page) if byte and i not in claimed), None)


def reason(page):
    """Return the reason for which a host calls a request malformed, 0 for none."""
    if number(page, "ghcb_usage") != 0:
        return 2
    if missing(page):
        return 4
    return 0 if number(page, "sw_exit_code") in ALWAYS else 6


def odd_valid(page):
    """Whether the bitmap has a bit for what is no field."""
    n_bits = bin(int.from_bytes(page[0x3F0:0x400], "little")).count("1")
    return n_bits != len(marked(page))


def psc_entry(raw):
    """Return gfn, cur_page, op, size and the set of faults of one entry."""
    cur_page, gfn = raw % 2**12, raw // 2**12 % 2**40
    op, size = raw // 2**52 % 16, raw // 2**56 % 2
    n_pages = 512 if size else 1
    faults = set()
    if raw // 2**57:
        faults.add("reserved")
    if op not in (1, 2, 3, 4):
        faults.add("op")
    if cur_page > n_pages:
        faults.add("cur_page")
    if size and gfn % 512:
        faults.add("align")
    return gfn, cur_page, op, size, faults


def psc(buffer):
    """Return (cur_entry, end_entry, entries, index of the first bad one, KVM's status).

    ``entries`` has what ``psc_entry`` returns, None where the buffer is too short.
    """
    cur, end = (int.from_bytes(buffer[i : i + 2], "little") for i in (0, 2))
    entries = []
    for i in range(min(end + 1, 253)):
        raw = buffer[8 + 8 * i : 16 + 8 * i]
        entries.append(psc_entry(int.from_bytes(raw, "little")) if len(raw) == 8 else None)
    bad = kvm_bad = None
    for i in range(cur, len(entries)):
        faults = {"cut"} if entries[i] is None else entries[i][4]
        if faults and bad is None:
            bad = i
        if faults & {"cur_page", "align"} and kvm_bad is None:
            kvm_bad = i
    status = 0
    if end >= 253:
        status = 0x1_0000_0001
    elif kvm_bad is not None:
        status = 0x1_0000_0002
    return cur, end, entries, bad, status
