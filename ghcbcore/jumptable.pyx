"""The AP jump table page of an SEV-ES guest, as real bytes.

One page for the whole VM. The hypervisor cannot reset an SEV-ES CPU, so an AP that waits for the
next kernel must leave its wait by itself: it reads IP and CS from the start of this page and jumps
there. With the park code in the page it also waits there, in memory that belongs to no kernel.

This module places our own park code (``ghcbcore/park.c``) into a page, writes and reads the reset
vector, and says what a given page holds. Who asks the hypervisor for the address of the page, and
when installing is safe (no AP may be parked in the page), is the business of the caller.

Units: ``gpa`` counts bytes. A page is a C-contiguous ``uint8`` array of shape (4096,); it is
changed in place and never copied.

Source: GHCB NAE 0x80000005; "x86/sev: KEXEC/KDUMP support for SEV-ES guests", RFC to v6.
Numbers: ``ghcbcore/jumptable.h``.
"""

import operator as _operator
from typing import NamedTuple as _NamedTuple

import numpy as _np

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from . cimport clib

from .errors import OutOfRange as _OutOfRange
from .errors import Unaligned as _Unaligned

__all__ = [
    "GDT_OFFSET",
    "OPERAND_OFFSET",
    "PARK_CODE",
    "Descriptor",
    "JumpTablePage",
    "build_page",
    "check_gpa",
    "decode_page",
    "install",
    "reset_vector",
    "set_reset_vector",
]

# From the entry to the end of the GDT; bases and the operand of the last jump are still zero.
PARK_CODE = clib.ghcb_park_start[: clib.ghcb_park_end - clib.ghcb_park_start]
GDT_OFFSET = clib.GHCB_PARK_ENTRY + (clib.ghcb_park_gdt - clib.ghcb_park_start)
OPERAND_OFFSET = clib.GHCB_PARK_ENTRY + (clib.ghcb_park_operand - clib.ghcb_park_start)

assert (
    clib.GHCB_PARK_ENTRY + len(PARK_CODE) <= clib.GHCB_PARK_STACK_TOP - clib.GHCB_PARK_STACK_SIZE
)
assert GDT_OFFSET % clib.GHCB_PARK_GDT_ALIGN == 0

cdef uint64_t GDT_BYTES = clib.GHCB_PARK_GDT_ENTRIES * clib.GHCB_PARK_DESCRIPTOR_SIZE
_NAMES = {
    clib.GHCB_PARK_GDT_SELF: "self",
    clib.GHCB_PARK_GDT_CODE16: "code16",
    clib.GHCB_PARK_GDT_DATA16: "data16",
    clib.GHCB_PARK_GDT_REAL_DATA: "real-mode data",
}


class Descriptor(_NamedTuple):
    """One entry of the page's GDT.

    ``access`` is the type byte, ``flags`` are AVL, L, D/B and G in bits 0 to 3. The entry
    ``self`` is an operand of LGDT: its ``access`` and ``flags`` are what stands in their place, 0.
    """

    selector: int
    name: str
    base: int
    limit: int
    access: int
    flags: int


class JumpTablePage(_NamedTuple):
    """What ``decode_page`` has found.

    ``gpa`` is where the page itself says that it lies, by the base of its GDT, and ``last_jump``
    the (IP, CS) that the last AP to leave has copied into the code, (0, 0) before the first. Both
    are None where the page holds nothing to tell it by.
    """

    reset_ip: int
    reset_cs: int
    has_park_code: bool
    gpa: int | None
    last_jump: tuple[int, int] | None
    gdt: tuple[Descriptor, ...]
    problems: tuple[str, ...]


cdef inline uint16_t load16(const uint8_t *at) noexcept nogil:
    cdef uint16_t value
    memcpy(&value, at, sizeof(value))
    return value


cdef inline void store16(uint8_t *at, uint16_t value) noexcept nogil:
    memcpy(at, &value, sizeof(value))


cdef inline uint64_t load64(const uint8_t *at) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, at, sizeof(value))
    return value


cdef inline void store64(uint8_t *at, uint64_t value) noexcept nogil:
    memcpy(at, &value, sizeof(value))


cdef inline void move_base(uint8_t *at, uint32_t base) noexcept nogil:
    cdef uint64_t descriptor = load64(at)
    store64(
        at,
        clib.ghcb_park_descriptor(
            base,
            <uint16_t>clib.ghcb_park_descriptor_limit(descriptor),
            clib.ghcb_park_descriptor_access(descriptor),
        ),
    )


cdef int place(uint8_t *page, uint64_t gpa) noexcept nogil:
    """Put the park code into the page that lies at ``gpa``; all but code and GDT stays."""
    cdef int status = clib.ghcb_jump_table_check_gpa(gpa)
    cdef uint16_t offset
    cdef uint8_t *gdt
    if status != clib.GHCB_OK:
        return status
    offset = clib.GHCB_PARK_ENTRY + <uint16_t>(clib.ghcb_park_gdt - clib.ghcb_park_start)
    gdt = page + offset
    memcpy(
        page + clib.GHCB_PARK_ENTRY,
        clib.ghcb_park_start,
        clib.ghcb_park_end - clib.ghcb_park_start,
    )
    store16(page + clib.GHCB_PARK_GDT_OFFSET, offset)
    store64(gdt, clib.ghcb_park_gdt_self(
        <uint32_t>(gpa + offset), clib.ghcb_park_gdt_self_limit(load64(gdt))))
    move_base(gdt + clib.GHCB_PARK_GDT_CODE16 * clib.GHCB_PARK_DESCRIPTOR_SIZE, <uint32_t>gpa)
    move_base(gdt + clib.GHCB_PARK_GDT_DATA16 * clib.GHCB_PARK_DESCRIPTOR_SIZE, <uint32_t>gpa)
    return clib.GHCB_OK


def _unsigned(value, bits, name):
    value = _operator.index(value)
    if value < 0 or value >> bits:
        raise _OutOfRange(f"{name} {value:#x} does not fit in {bits} bits")
    return value


cdef int raise_gpa(uint64_t gpa, int status) except -1:
    if status == clib.GHCB_E_UNALIGNED:
        raise _Unaligned(f"jump table gpa {gpa:#x} is not at a multiple of "
                         f"{clib.GHCB_JUMP_TABLE_SIZE:#x}")
    if gpa == clib.GHCB_JUMP_TABLE_NONE:
        raise _OutOfRange(f"jump table gpa {gpa:#x} means that there is none")
    if status != clib.GHCB_OK:
        raise _OutOfRange(f"jump table gpa {gpa:#x} is not below {clib.GHCB_JUMP_TABLE_LIMIT:#x}")
    return 0


cdef int check_page(Py_ssize_t size_bytes) except -1:
    if size_bytes != clib.GHCB_JUMP_TABLE_SIZE:
        raise _OutOfRange(f"page has {size_bytes:#x} bytes, not {clib.GHCB_JUMP_TABLE_SIZE:#x}")
    return 0


def check_gpa(gpa):
    """Say whether there is a jump table at ``gpa``, the hypervisor's answer taken as it came.

    Parameters
    ----------
    gpa : int
        Guest physical address, bytes.

    Returns
    -------
    bool
        False for 0: the VM has no table, which is no error. True for a page that can be one.

    Raises
    ------
    Unaligned
        Not at a page boundary.
    OutOfRange
        The page does not end at or below 4 GiB, or ``gpa`` has more than 64 bits.

    Examples
    --------
    >>> check_gpa(0), check_gpa(0x7fff_f000)
    (False, True)
    """
    cdef uint64_t value = _unsigned(gpa, 64, "jump table gpa")
    if value == clib.GHCB_JUMP_TABLE_NONE:
        return False
    raise_gpa(value, clib.ghcb_jump_table_check_gpa(value))
    return True


def build_page(gpa, *, reset_ip=0, reset_cs=0):
    """Build a page that lies at ``gpa``: reset vector, park code, GDT; the rest is zero.

    Parameters
    ----------
    gpa : int
        Guest physical address of the page, bytes; not 0, which means that there is none.
    reset_ip, reset_cs : int
        Where an AP goes on when it is woken, 16 bits each.

    Returns
    -------
    uint8 array, shape (4096,)

    Raises
    ------
    Unaligned, OutOfRange
        ``gpa`` cannot be a jump table, or a value does not fit.

    Examples
    --------
    >>> page = build_page(0x7fff_f000, reset_ip=0x40, reset_cs=0x9a00)
    >>> reset_vector(page)
    (64, 39424)
    """
    page = _np.zeros(clib.GHCB_JUMP_TABLE_SIZE, dtype=_np.uint8)
    set_reset_vector(page, reset_ip, reset_cs)
    install(page, gpa)
    return page


def install(uint8_t[::1] page not None, gpa):
    """Put the park code into an existing page; the reset vector that it holds stays.

    Parameters
    ----------
    page : uint8 array, shape (4096,)
        Changed in place: GDT offset, code and GDT.
    gpa : int
        Guest physical address of the page, bytes.

    Raises
    ------
    Unaligned, OutOfRange
        ``gpa`` cannot be a jump table, or ``page`` is no page; nothing is written.
    """
    cdef uint64_t value = _unsigned(gpa, 64, "jump table gpa")
    check_page(page.shape[0])
    raise_gpa(value, place(&page[0], value))


def set_reset_vector(uint8_t[::1] page not None, ip, cs):
    """Write where a woken AP goes on, ``cs:ip`` in real mode; 16 bits each.

    Raises ``OutOfRange`` for a value that does not fit; nothing is written then.
    """
    cdef uint16_t ip16 = _unsigned(ip, 16, "reset ip"), cs16 = _unsigned(cs, 16, "reset cs")
    check_page(page.shape[0])
    store16(&page[clib.GHCB_JUMP_TABLE_RESET_IP], ip16)
    store16(&page[clib.GHCB_JUMP_TABLE_RESET_CS], cs16)


def reset_vector(const uint8_t[::1] page not None):
    """Return ``(ip, cs)``, where a woken AP goes on."""
    check_page(page.shape[0])
    return (
        load16(&page[clib.GHCB_JUMP_TABLE_RESET_IP]),
        load16(&page[clib.GHCB_JUMP_TABLE_RESET_CS]),
    )


def decode_page(const uint8_t[::1] page not None, *, gpa=None):
    """Say what a page holds and what is wrong with it.

    The protocol leaves everything after the reset vector open: a page without our park code whose
    GDT offset is 0 is a plain jump table and has no problems. Any other page is held against what
    ``install`` writes.

    Parameters
    ----------
    page : uint8 array, shape (4096,)
        May be read-only.
    gpa : int, optional
        Where the page lies. Without it the page is only held against its own GDT's base.

    Returns
    -------
    JumpTablePage
        ``problems`` has one sentence each, with the value in hex; empty if there are none.

    Raises
    ------
    Unaligned, OutOfRange
        The arguments; never what the page holds.
    """
    cdef const uint8_t *data
    cdef Py_ssize_t i
    cdef uint64_t row, offset, value
    check_page(page.shape[0])
    if gpa is not None:
        value = _unsigned(gpa, 64, "jump table gpa")
        raise_gpa(value, clib.ghcb_jump_table_check_gpa(value))
    data = &page[0]
    ip, cs = reset_vector(page)
    problems = []

    differs = first_difference(data + clib.GHCB_PARK_ENTRY)
    has_code = differs < 0
    offset = load16(data + clib.GHCB_PARK_GDT_OFFSET)
    if not has_code and offset == 0:
        return JumpTablePage(ip, cs, False, None, None, (), ())
    if not has_code:
        problems.append(f"code at {clib.GHCB_PARK_ENTRY + differs:#x} is not ours: "
                        f"{data[clib.GHCB_PARK_ENTRY + differs]:#x}")
    elif offset != GDT_OFFSET:
        problems.append(f"GDT offset {offset:#x}, our GDT is at {GDT_OFFSET:#x}")
    if (
        offset < clib.GHCB_PARK_ENTRY
        or offset + GDT_BYTES > clib.GHCB_PARK_STACK_TOP - clib.GHCB_PARK_STACK_SIZE
    ):
        problems.append(f"GDT offset {offset:#x}: between entry and stack is no GDT there")
        return JumpTablePage(ip, cs, has_code, None, last_jump(data, has_code), (), tuple(problems))
    if offset % clib.GHCB_PARK_GDT_ALIGN:
        problems.append(f"GDT offset {offset:#x} is not a multiple of "
                        f"{clib.GHCB_PARK_GDT_ALIGN:#x}")

    gdt = []
    for i in range(clib.GHCB_PARK_GDT_ENTRIES):
        row = load64(data + offset + i * clib.GHCB_PARK_DESCRIPTOR_SIZE)
        if i == clib.GHCB_PARK_GDT_SELF:
            base = clib.ghcb_park_gdt_self_base(row)
            limit = clib.ghcb_park_gdt_self_limit(row)
            access, flags = row >> 48 & 0xff, row >> 56
        else:
            base = clib.ghcb_park_descriptor_base(row)
            limit = clib.ghcb_park_descriptor_limit(row)
            access = clib.ghcb_park_descriptor_access(row)
            flags = clib.ghcb_park_descriptor_flags(row)
        gdt.append(Descriptor(
            i * clib.GHCB_PARK_DESCRIPTOR_SIZE, _NAMES[i], base, limit, access, flags))

    lies_at = gdt[clib.GHCB_PARK_GDT_SELF].base - offset
    lies_at = lies_at if lies_at >= 0 else None
    if gpa is None and (lies_at is None or clib.ghcb_jump_table_check_gpa(lies_at) != clib.GHCB_OK):
        problems.append(f"self: base {gdt[clib.GHCB_PARK_GDT_SELF].base:#x} with GDT offset "
                        f"{offset:#x} belongs to no page that can be a jump table")
    else:
        at = lies_at if gpa is None else _operator.index(gpa)
        for found, wanted in zip(gdt, expected_gdt(at, offset), strict=True):
            for field in ("base", "limit", "access", "flags"):
                is_, should = getattr(found, field), getattr(wanted, field)
                if is_ != should:
                    problems.append(f"{found.name}: {field} {is_:#x}, not {should:#x}")
    return JumpTablePage(
        ip, cs, has_code, lies_at, last_jump(data, has_code), tuple(gdt), tuple(problems))


cdef Py_ssize_t first_difference(const uint8_t *code) except -2:
    """Return the first byte of the code that is not ours, -1 if there is none.

    The GDT is not compared, nor the operand of the last jump, which every AP rewrites.
    """
    cdef Py_ssize_t i, n = clib.ghcb_park_gdt - clib.ghcb_park_start
    cdef Py_ssize_t operand = clib.ghcb_park_operand - clib.ghcb_park_start
    for i in range(n):
        if operand <= i < operand + 4:
            continue
        if code[i] != clib.ghcb_park_start[i]:
            return i
    return -1


cdef last_jump(const uint8_t *data, bint has_code):
    cdef Py_ssize_t at = OPERAND_OFFSET
    return (load16(data + at), load16(data + at + 2)) if has_code else None


cdef expected_gdt(at, offset):
    data = clib.GHCB_PARK_DATA_ACCESS
    rows = {
        clib.GHCB_PARK_GDT_SELF: (at + offset, GDT_BYTES - 1, 0),
        clib.GHCB_PARK_GDT_CODE16: (
            at, clib.GHCB_PARK_SEGMENT_LIMIT, clib.GHCB_PARK_CODE_ACCESS),
        clib.GHCB_PARK_GDT_DATA16: (at, clib.GHCB_PARK_SEGMENT_LIMIT, data),
        clib.GHCB_PARK_GDT_REAL_DATA: (0, clib.GHCB_PARK_SEGMENT_LIMIT, data),
    }
    return [
        Descriptor(i * clib.GHCB_PARK_DESCRIPTOR_SIZE, _NAMES[i], base, limit, access, 0)
        for i, (base, limit, access) in rows.items()
    ]
