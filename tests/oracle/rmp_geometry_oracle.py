"""Where entries of a reverse map table lie, the slow way: every segment as a plain record, every
question answered by looking at all of them.

Written from the description of the layout (RMP_BASE, RMP_CFG, the table of segments) and from
Linux's log lines; nothing is taken from the core.
"""

GIB = 1024**3
TOP = 2**52
WORDS = 512


def number(bits: str) -> int:
    return int(bits, 2) if bits else 0


def decode_config(word: int) -> dict[str, int]:
    bits = f"{word:064b}"[::-1]
    reserved = [b for i, b in enumerate(bits) if i != 0 and not 8 <= i <= 13]
    return {
        "is_segmented": number(bits[0]),
        "shift": number(bits[8:14][::-1]),
        "reserved": "1" in reserved,
    }


def decode_word(word: int) -> dict[str, int]:
    bits = f"{word:064b}"
    return {
        "reserved": "1" in bits[:12],
        "spa": number(bits[12:44]) * 2**20,
        "mapped_gib": number(bits[44:]),
    }


def contiguous(base: int, end: int) -> list[dict[str, int]]:
    """Return the one segment of a table of whole entries: pages from 0 on, below 52 bits."""
    pages = min((end + 1 - base - 16384) // 16, TOP // 4096)
    return [{"index": 0, "first_page": 0, "n_pages": pages, "spa": base + 16384}]


def overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def place(segment: dict[str, int]) -> tuple[int, int]:
    return segment["spa"], segment["spa"] + 16 * segment["n_pages"]


def segments(rst, cfg, base, limits=None, is_reduced=False):
    """Return ``(segments, "")``, or ``(None, why)``: why the first wrong word is refused.

    ``why`` is ``(status, what, index, others)``; ``others`` are the words that it may overlap.
    """
    config = decode_config(cfg)
    if config["reserved"]:
        return None, ("reserved", "cfg", None, [])
    if not config["is_segmented"]:
        return None, ("conflict", "cfg", None, [])
    covers = 2 ** config["shift"]
    if covers < GIB or covers > TOP:
        return None, ("range", "cfg", None, [])
    if limits and not limits[0] <= config["shift"] <= limits[1]:
        return None, ("range", "cfg", None, [])
    if base < 8192:
        return None, ("conflict", "base", None, [])
    if base % 8192:
        return None, ("unaligned", "base", None, [])
    if base + 16384 + 4096 > TOP:
        return None, ("range", "base", None, [])
    found: list[dict[str, int]] = []
    for index, word in enumerate(rst):
        one = decode_word(word)
        if one["reserved"]:
            return None, ("reserved", "word", index, [])
        if one["mapped_gib"] == 0:
            continue
        if limits and limits[3] and index >= limits[2]:
            return None, ("range", "word", index, [])
        mapped = one["mapped_gib"] * GIB
        if mapped > covers:
            if not is_reduced:
                return None, ("range", "word", index, [])
            mapped = covers
        if index * covers + mapped > TOP:
            return None, ("range", "word", index, [])
        segment = {
            "index": index,
            "first_page": index * covers // 4096,
            "n_pages": mapped // 4096,
            "spa": one["spa"],
        }
        if place(segment)[1] > TOP:
            return None, ("range", "word", index, [])
        if overlap(place(segment), (base, base + 20480)):
            return None, ("conflict", "word", index, [])
        others = [other["index"] for other in found if overlap(place(segment), place(other))]
        if others:
            return None, ("conflict", "word", index, others)
        found.append(segment)
    return found, ""


def entry_address(table: list[dict[str, int]], page: int) -> int | None:
    for one in table:
        if one["first_page"] <= page < one["first_page"] + one["n_pages"]:
            return one["spa"] + 16 * (page - one["first_page"])
    return None


def page_of(table: list[dict[str, int]], spa: int) -> int | str | None:
    """Return the page, None if no entry lies there, ``"inside"`` if one starts elsewhere."""
    for one in table:
        start, end = place(one)
        if start <= spa < end:
            if (spa - start) % 16:
                return "inside"
            return one["first_page"] + (spa - start) // 16
    return None


def coverage(table: list[dict[str, int]]) -> list[list[int]]:
    """Return ``[start, end]`` in bytes, joined where ranges touch."""
    found: list[list[int]] = []
    for one in sorted(table, key=lambda one: one["first_page"]):
        start = one["first_page"] * 4096
        end = start + one["n_pages"] * 4096
        if found and found[-1][1] == start:
            found[-1][1] = end
        else:
            found.append([start, end])
    return found


# Linux over a memory map ------------------------------------------------------------------------

LARGE = 2 * 1024**2


def reserved_blocks(ranges: list[tuple[int, int, int]], ends: list[int]) -> list[int]:
    """Return the 2 MiB blocks that are reserved for the ends of a table, in the order of ``ends``.

    ``ranges`` are ``(start, end, kind)``; 1 is RAM. What was reserved for one end is not RAM for
    the next.
    """
    taken: list[int] = []
    for end in ends:
        if end % LARGE == 0:
            continue
        block = end // LARGE * LARGE
        ram = any(
            kind == 1 and overlap((start, stop), (block, block + LARGE))
            for start, stop, kind in ranges
        )
        if ram and block not in taken:
            taken.append(block)
    return taken


def kind_after(ranges: list[tuple[int, int, int]], blocks: list[int], address: int) -> int:
    """Return the kind of one byte of the map once the blocks are reserved, 0 in a hole."""
    kind = next((kind for start, end, kind in ranges if start <= address < end), 0)
    if kind == 1 and address // LARGE * LARGE in blocks:
        return 2
    return kind
