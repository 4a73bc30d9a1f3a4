"""Requests to a host from a seed: pages and MSR values that are nearly right.

Pages come from a seed: a page is some twenty choices, and Hypothesis repeats itself too much to
meet the rare combinations in a hundred examples. The price is that pages do not shrink; what
differs is small enough to be read as it is.
"""

import host_oracle as oracle
from host_oracle import CODE, CPL, INFO1, INFO2, RAX, RBX, RCX, RDX, RSI, SCRATCH, USAGE, XCR0
from host_pair import EVENTS, MEMORY, MEMORY_END
from hypothesis import strategies as st

REGISTERS = (RAX, RBX, RCX, RDX)
EDGE_WORDS = [
    0,
    1,
    2,
    3,
    0xD,
    2**31,
    2**32 - 1,
    2**32,
    2**32 + 1,
    2**32 + 0xD,
    2**63 + 1,
    2**64 - 1,
]
LEAVES = [0, 1, 4, 0xD, 0x8000_001F]
UNKNOWN_EVENTS = [0, 0x78, 0x400, 0x403, 0x8000_0016, 0x8000_001A, 0xF000_0000, 2**32 + 0x72]
MSR_CODES = [0x002, 0x004, 0x006, 0x010, 0x012, 0x014, 0x016, 0x018, 0x080, 0x100]
KEPT_CODES = [0x001, 0x003, 0x005, 0x007, 0x017, 0x019, 0xF03]
HYPERCALLS = [0, 1, 5, 9, 12, 100]
GPAS = [0x7000, 0x4E1_4000, 2**51, 2**64 - 0x1000]
SCRATCH_GPAS = [MEMORY, MEMORY + 0x1234, MEMORY_END - 0x800, MEMORY_END, 0x1000]

U64 = st.integers(0, 2**64 - 1)
EDGES = st.sampled_from(EDGE_WORDS)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def profiles(draw):
    """Arguments that ``Profile`` and the oracle share, without the kind of guest."""
    answers = st.tuples(*[st.integers(0, 2**32 - 1)] * 4)
    leaf = st.tuples(st.sampled_from(LEAVES) | st.integers(0, 2**32 - 1), st.integers(0, 2))
    cpuid = draw(st.dictionaries(leaf, answers, max_size=4))
    versions = sorted(draw(st.tuples(*[st.sampled_from([1, 2, 3, 0xFFFF])] * 2)))
    return {
        "min_version": versions[0],
        "max_version": versions[1],
        "c_bit": draw(st.sampled_from([51, 47, 0, 63])),
        "hv_features": draw(st.sampled_from([3, 0, 2**52 - 1, 0x155])),
        "sev_features": draw(st.sampled_from([1, 0, 2**63 | 0x21])),
        "cpuid": [(*leaf, *answer) for leaf, answer in cpuid.items()],
    }


def any_word(rng):
    return rng.choice([rng.choice(EDGE_WORDS), rng.getrandbits(64)])


def msr_value(rng, gpa=0x7000):
    """A value of the GHCB MSR with a request, or with anything."""
    code = rng.choice(
        [rng.choice(MSR_CODES)] * 4 + [rng.choice(KEPT_CODES), rng.randrange(1, 4096)]
    )
    if rng.randrange(20) == 0:
        return 0
    if code == 0x004:
        low = rng.choice([0, 1 << 18, 2 << 18, 3 << 18, rng.getrandbits(20)])
        return rng.choice(LEAVES) << 32 | low << 12 | code
    if code == 0x012 and rng.random() < 0.7:
        return gpa | code
    if code == 0x014:
        reserved = rng.choice([0, 0, 0, rng.getrandbits(8)])
        return reserved << 56 | rng.randrange(5) << 52 | rng.getrandbits(40) << 12 | code
    if code == 0x016:
        return rng.choice([0, 1, 3, 4, 0x102, 255]) << 32 | code
    return rng.choice([0, 1, 2**52 - 1, rng.getrandbits(52)]) << 12 | code


def io_info(rng):
    size = rng.choice([1, 1, 2, 4, rng.randrange(8)])
    flags = rng.choice([0, 1, 4, 5, 0xC, 0xD])
    return rng.getrandbits(16) << 16 | rng.choice([1, 2, 4]) << 7 | size << 4 | flags


def scratch_for(rng, gpa, n_bytes):
    """An area of ``n_bytes``, mostly at an edge of what is allowed."""
    first, end = gpa + 0x800, gpa + 0xFF0
    places = [first, first - 1, end - n_bytes, end - n_bytes + 1, end, gpa, gpa + 0xFFF, gpa - 1]
    places += [0, 1, 2**64 - n_bytes, 2**64 - 1 - n_bytes, rng.getrandbits(64)]
    places += [MEMORY_END - n_bytes, MEMORY_END - n_bytes + 1]
    return rng.choice([first, rng.choice(SCRATCH_GPAS), rng.choice(places)]) % 2**64


def entry_of_psc(rng, gfn):
    """An entry of a page state change at ``gfn``; return it and the GFN behind it."""
    is_2m = rng.random() < 0.3
    n_pages = 512 if is_2m else 1
    if is_2m and rng.random() < 0.9:
        gfn = (gfn + 511) // 512 * 512
    done = rng.choices(
        [0, n_pages, n_pages - 1, n_pages + 1, rng.randrange(n_pages), rng.getrandbits(12)],
        [12, 3, 1, 1, 1, 1],
    )[0]
    operation = rng.choices([1, 2, 0, 3, 4, 15], [8, 5, 1, 1, 1, 1])[0]
    reserved = rng.choices([0, 127, 1], [8, 1, 1])[0]
    entry = reserved << 57 | int(is_2m) << 56 | operation << 52 | gfn % 2**40 << 12 | done
    # what KVM goes on with behind a 2 MiB entry that was begun
    following = gfn + (n_pages - done if rng.random() < 0.5 and done <= n_pages else n_pages)
    return entry, following


def psc_descriptor(rng):
    """A descriptor with some entries, rarely without a mistake in its header."""
    n = rng.choice([0, 1, 2, 3, 8, 253])
    gfn = rng.choice([0x10, 0x200, 2**40 - 512, 2**40 - 2, rng.getrandbits(40)])
    entries, operation = [], None
    for _ in range(n):
        entry, gfn = entry_of_psc(rng, gfn)
        if operation is not None and rng.random() < 0.7:  # like the one before
            entry = entry & ~(0xF << 52) | operation << 52
        operation = entry >> 52 & 0xF
        if rng.random() < 0.15:
            gfn = rng.getrandbits(40)
        entries.append(entry.to_bytes(8, "little"))
    cursor = rng.choice([0, 0, 0, 0, 1, n, n - 1, n + 1, 65535]) % 65536
    end = rng.choice([n - 1, n - 1, n - 1, n - 1, 0, n, 252, 253, 65535]) % 65536
    header = cursor.to_bytes(2, "little") + end.to_bytes(2, "little")
    return header + rng.randbytes(4) + b"".join(entries)


def info_for(rng, code, gpa, n_vcpus):
    """INFO1, INFO2, registers that are likely for an event, and how many bytes it means."""
    info1, info2, registers, n_bytes = rng.choice(EDGE_WORDS), any_word(rng), {}, 0
    if code == 0x7B:
        info1 = io_info(rng)
        size = info1 >> 4 & 7
        fits = 2032 // (size or 1)
        limits = [0, 1, fits, fits + 1, 65536, 65537, 2**31 - 1, 2**31, 2**32, 2**62]
        info2 = rng.choice([*limits, 65536 // (size or 1), 65536 // (size or 1) + 1])
        n_bytes = size * info2
    elif code in (0x8000_0001, 0x8000_0002):
        n_bytes = info2 = rng.choice([0, 1, 4, 8, 9, 2032, 2033, 65536, 65537, 2**31, 2**64 - 1])
        info1 = rng.getrandbits(64)
    elif code == 0x8000_0010:
        n_bytes = info2 = rng.choice([0, 0, 0, 7, 8, 16, 2032, 2033, 65536, 65537, 2**64 - 1])
    elif code in (0x8000_0011, 0x8000_0012):
        pages = [MEMORY, MEMORY + 0x1000, MEMORY + 0x2000, MEMORY_END, MEMORY + 0x800, 0x1000]
        info1, info2 = rng.choice(pages), rng.choice(pages)
        registers = {
            RAX: rng.choice([MEMORY + 0x3000, MEMORY + 1, MEMORY_END]),
            RBX: rng.choice([0, 1, 4, 2**64 - 1]),
        }
    elif code == 0x8000_0013:
        target = rng.choice([*range(n_vcpus), n_vcpus, 2**32 - 1])
        vmpl = rng.choices([0, 1, 3, 15, 0x100], [8, 1, 1, 1, 1])[0]
        info1 = target << 32 | vmpl << 16 | rng.choice([0, 1, 1, 1, 2, 2, 3, 0xFFFF])
        near = [0x5000, 0x20_0000, 0x20_1000, 0x5008, 2**52 - 0x1000, 2**52, 0, 2**64 - 0x1000]
        info2 = rng.choice([0x5000, 0x6000, rng.choice(near)])
        registers = {RAX: rng.choice([0, 1, 1, 1, 2**63 | 0x21])}
    elif code == 0x8000_0014:
        info1 = rng.choice([0, 1, 1, 2, 3, 4, 2**32 + 1])
        info2 = rng.choice([MEMORY, MEMORY_END, MEMORY + 1, 0, 2**52, 2**52 - 0x1000])
    elif code == 0x8000_0015:
        to = rng.choice([*range(n_vcpus + 1), 2**32 - 1, 0x10001, 7, 0x1_0000])
        flags = rng.choice([0x4000, 0x4000, 0xC000, 0x8000, 0, 0x4800, 0x4800])
        wrong = rng.choices([0, 1 << 13, 1 << 16, 1 << 20, 1 << 31, 1 << 12], [12, 1, 1, 1, 1, 1])[
            0
        ]
        mode = rng.choice([4, 5, 6, rng.randrange(8)])
        info1 = to << 32 | rng.randrange(4) << 18 | flags | wrong | mode << 8 | rng.randrange(256)
    elif code == 0x8000_0017:
        info1 = rng.choice([0, MEMORY, MEMORY + 0x1000, MEMORY + 4, MEMORY_END, 2**52])
        registers = {RAX: rng.choice([0, 1, 2, 2**52, 2**64 - 1])}
    elif code == 0x8000_0018:
        info1 = rng.choice([0, 1, 2, 3, 4, 2**32, 2**32 + 4])
    elif code == 0x81:
        pages = [MEMORY, MEMORY + 8, 2**64 - 0x1000]
        registers = {
            RAX: rng.choice(HYPERCALLS),
            RBX: rng.choice(pages),
            RCX: rng.choice([0, 1, 2**52, 2**64 - 1]),
            RDX: rng.choice([0, 1, 0x10, 0x11]),
        }
    elif code == 0x8000_0005:
        info1 = rng.choice([0, 0, 1, 1, 2, 2**32])
    return info1, info2, registers, n_bytes


def random_page(rng, gpa, events=EVENTS, n_vcpus=3):
    """A GHCB page: of random bytes, or a request that is nearly right on a random page."""
    content = bytearray(rng.choice([bytes(4096), rng.randbytes(4096)]))
    page = oracle.Page(content)
    if rng.random() < 0.03:
        return content
    content[USAGE:] = rng.choices([0, 1, 2**32 - 1], [30, 1, 1])[0].to_bytes(4, "little")
    code = rng.choices([rng.choice(events), rng.choice(UNKNOWN_EVENTS)], [14, 1])[0]
    if rng.random() < 0.05:
        code = rng.choice([rng.getrandbits(64), code | 2**32])
    info1, info2, registers, n_bytes = info_for(rng, code, gpa, n_vcpus)
    fields = {CODE: code, INFO1: info1, INFO2: info2, SCRATCH: scratch_for(rng, gpa, n_bytes)}
    fields |= {offset: any_word(rng) for offset in (*REGISTERS, RSI, XCR0)}
    if rng.random() < 0.5:  # a CPUID leaf that is likely to be listed
        fields[RAX] = rng.choice(LEAVES) | rng.choice([0, 0, 2**32])
        fields[RCX] = rng.randrange(4) | rng.choice([0, 0, 2**32])
    fields |= registers
    for offset, value in fields.items():
        page.store(offset, value)
    if code == 0x8000_0010 and gpa <= fields[SCRATCH] <= gpa + 0xFE0:
        at = fields[SCRATCH] - gpa
        descriptor = psc_descriptor(rng)[: 0xFF0 - at]
        if at >= 0x800:
            content[at : at + len(descriptor)] = descriptor
    content[CPL] = rng.choice([0, 0, 3, 255])
    if rng.random() < 0.03:
        return content  # with the marks that were there
    content[oracle.VALID_BITMAP : oracle.VALID_BITMAP + 16] = bytes(16)
    others = [RAX, RBX, RCX, RDX, RSI, SCRATCH, XCR0, CPL]
    marked = {CODE, INFO1, INFO2, *oracle.INPUTS.get(code, [])}
    marked |= set(rng.choice([others, others, [], rng.sample(others, rng.randrange(9))]))
    if rng.random() < 0.2:
        marked.discard(rng.choice(sorted(marked)))
    for offset in marked:
        page.mark_valid(offset)
    if rng.random() < 0.5:  # marks that mean nothing to a host
        content[oracle.VALID_BITMAP + 15] |= 0xC0
        content[oracle.VALID_BITMAP] |= rng.randrange(256)
    return content
