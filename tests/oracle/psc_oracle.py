"""A page state change request (NAE event 0x80000010), told slowly: cursor, restart, merging.

Part of the oracle of ``host_oracle``; from the GHCB fact sheet (6) and KVM's ``snp_begin_psc``,
``__snp_complete_one_psc`` and ``snp_complete_one_psc``. Nothing here imports ``ghcbcore``.

Descriptor: cur_entry u16 at 0, end_entry u16 (inclusive) at 2, reserved u32, entries u64 from 8 on.
Entry: [11:0] cur_page, [51:12] GFN, [55:52] operation, [56] size (1 = 2 MiB).

OPEN: old KVM looks at entries behind the end of the area too, which is memory of the kernel that
no model knows. Here a header, or an end_entry that does not lie in the area (to the end of the
shared buffer; INFO2 bytes of memory outside the page), is an invalid header, as with the newest
KVM and as ``answer_psc.h`` says. It is found before any entry is looked at, also if the cursor is
beyond it. OPEN: the GFN of a following entry is compared without wrapping at 40 bits."""

OK = 0
INVALID_HEADER = 1 << 32 | 1
INVALID_ENTRY = 1 << 32 | 2
GENERIC = 0x100 << 32

PRIVATE, SHARED = 1, 2
MAX_ENTRIES = 253
ENCRYPTED, SIZE_2M = 1 << 4, 1 << 0  # attributes of KVM_HC_MAP_GPA_RANGE


class Entry:
    """One entry, as it stands in the buffer."""

    def __init__(self, area, index):
        word = area.number(8 + 8 * index, 8)
        self.cur_page = word & 0xFFF
        self.gfn = word >> 12 & (1 << 40) - 1
        self.operation = word >> 52 & 0xF
        self.is_2m = word >> 56 & 1
        self.n_pages = 512 if self.is_2m else 1


def is_inside(area, index):
    return 8 + 8 * index + 8 <= area.room


def finish(area, index):
    """Mark an entry as done: its cursor says that all its pages are."""
    word = area.number(8 + 8 * index, 8)
    area.store(8 + 8 * index, 8, word >> 12 << 12 | (512 if word >> 56 & 1 else 1))


def change_page_states(area, map_gpa, max_entries=MAX_ENTRIES):
    """Do what the descriptor says, as far as it goes, and return INFO2.

    ``map_gpa(gpa, n_pages, attributes)`` asks user space and returns its ``ret``; None means that
    user space has not asked for the exit.
    """
    if map_gpa is None:
        return GENERIC
    if area.room < 8:
        return INVALID_HEADER
    while True:
        end = area.number(2, 2)
        if end >= max_entries or not is_inside(area, end):
            return INVALID_HEADER
        first = area.number(0, 2)
        # step over what is done
        while first <= end:
            start = Entry(area, first)
            if start.cur_page > start.n_pages or start.gfn % start.n_pages:
                return INVALID_ENTRY
            if start.cur_page < start.n_pages:
                break
            first += 1
            area.store(0, 2, first)
        if first > end:
            return OK
        n_pages = start.n_pages - start.cur_page
        gfn = start.gfn + start.cur_page
        is_2m = bool(start.is_2m) and start.cur_page == 0  # else it is split: the rest by 4 KiB
        # add what follows without a gap
        last = first
        while last + 1 <= end:
            following = Entry(area, last + 1)
            if (
                following.operation != start.operation
                or following.gfn != start.gfn + n_pages
                or following.cur_page != 0
                or bool(following.is_2m) != is_2m
            ):
                break
            n_pages += following.n_pages
            last += 1
        if start.operation in (PRIVATE, SHARED):
            attributes = (ENCRYPTED if start.operation == PRIVATE else 0) | (
                SIZE_2M if start.is_2m else 0  # of the entry, even where it is split
            )
            if map_gpa(gfn << 12, n_pages, attributes) != 0:
                return GENERIC
        # any other operation is done silently
        for index in range(first, last + 1):
            finish(area, index)
        area.store(0, 2, last + 1)
