"""A GHCB page, what a request in it needs, and its scratch area: the oracle's own numbers.

Part of the oracle of ``host_oracle``: nothing here imports ``ghcbcore``; every number is typed from
the GHCB fact sheet (4, 5.2 to 5.6) and, for the order of checks, from what KVM's host code does.
"""

U64 = 2**64 - 1
U32 = 2**32 - 1

# mp_state of Linux linux/kvm.h
RUNNABLE, UNINITIALIZED, INIT_RECEIVED, HALTED, AP_RESET_HOLD = 0, 1, 2, 3, 9

# page: offsets, and the valid bit that belongs to each (offset / 8)
CPL, RAX, RCX, RDX, RBX, RSI = 0x0CB, 0x1F8, 0x308, 0x310, 0x318, 0x330
CODE, INFO1, INFO2, SCRATCH, XCR0 = 0x390, 0x398, 0x3A0, 0x3A8, 0x3E8
VALID_BITMAP, SHARED_BUFFER, SHARED_BUFFER_END, USAGE = 0x3F0, 0x800, 0xFF0, 0xFFC
REPLIED_REGISTERS = (RAX, RBX, RCX, RDX)

# INFO2 of a malformed request
NOT_REGISTERED, BAD_USAGE, BAD_SCRATCH, MISSING_INPUT, BAD_INPUT, BAD_EVENT = 1, 2, 3, 4, 5, 6

SCRATCH_LIMIT = 16 * 4096
INT_MAX = 0x7FFF_FFFF

# events any SEV-ES guest may send, and what each needs besides CODE, INFO1, INFO2
INPUTS = {
    0x27: [],
    0x37: [RAX],
    0x6E: [],
    0x6F: [RCX],
    0x72: [RAX, RCX],  # and XCR0 if RAX is 0xD
    0x76: [],
    0x7B: [],  # RAX or SCRATCH, by INFO1
    0x7C: [RCX],  # and RAX, RDX for a write
    0x81: [RAX, CPL],
    0x87: [],
    0x89: [],
    0x8A: [RAX, RCX, RDX],
    0x8B: [RAX, RCX],
    0x8000_0001: [SCRATCH],
    0x8000_0002: [SCRATCH],
    0x8000_0003: [],
    0x8000_0004: [],
    0x8000_0005: [],
    0x8000_FFFD: [],
    0x8000_FFFE: [],
    0x8000_FFFF: [],
}

# events of SNP guests alone
SNP_INPUTS = {
    0x8000_0010: [SCRATCH],
    0x8000_0011: [],  # and two different page addresses
    0x8000_0012: [],  # the same
    0x8000_0013: [],  # RAX unless the operation is destroy
}
SNP_ONLY = list(SNP_INPUTS)

# events of the fork "CL": the name of the switch, the inputs, whether the guest must be SNP
EXTRA_INPUTS = {
    0x8000_0014: ("doorbell", [], True),
    0x8000_0015: ("hv_ipi", [], True),
    0x8000_0017: ("apic_ids", [RAX], False),
    0x8000_0018: ("run_vmpl", [], True),
}

AP_DESTROY = 2


class Malformed(Exception):
    """INFO1 = 2: the request is refused, INFO2 says why."""


class Refused(Malformed):
    """The same, before the event is carried out."""


class Exception13(Exception):
    """INFO1 = 1: the guest must raise #GP."""


class Invalid(Exception):
    """-EINVAL to user space: no reply of its own, the VM is over."""


class Unregistered(Exception):
    """-EINVAL before INFO1 and INFO2 are touched."""


class Fault(Exception):
    """-EFAULT to user space: guest memory at this GPA could not be accessed."""


class Page:
    """A GHCB page as its reader sees it."""

    def __init__(self, content):
        self.content = content

    def number(self, offset, size=8):
        return int.from_bytes(self.content[offset : offset + size], "little")

    def store(self, offset, value):
        self.content[offset : offset + 8] = value.to_bytes(8, "little")

    def is_valid(self, offset):
        bit = offset // 8
        return bool(self.content[VALID_BITMAP + bit // 8] >> bit % 8 & 1)

    def mark_valid(self, offset):
        bit = offset // 8
        self.content[VALID_BITMAP + bit // 8] |= 1 << bit % 8


class Request:
    """What the host reads from the page, once, before it touches it."""

    def __init__(self, page):
        self.code = page.number(CODE)
        self.info1 = page.number(INFO1)
        self.info2 = page.number(INFO2)
        self.usage = page.number(USAGE, 4)
        self.valid = {
            offset
            for offset in (CPL, RAX, RCX, RDX, RBX, RSI, CODE, INFO1, INFO2, SCRATCH, XCR0)
            if page.is_valid(offset)
        }
        self.regs = {
            offset: page.number(offset) if offset in self.valid else 0
            for offset in REPLIED_REGISTERS
        }
        self.results = set()  # the registers that the answer carries
        self.rsi = page.number(RSI) if RSI in self.valid else 0
        self.cpl = page.number(CPL, 1) if CPL in self.valid else 0
        self.scratch = page.number(SCRATCH) if SCRATCH in self.valid else 0


class Area:
    """A scratch area: part of the page, or a copy of guest memory that goes back at the end."""

    def __init__(self, content, first, room, *, gpa=None):
        self.content = content  # the page, or the copy
        self.first = first  # where the area begins in it
        self.room = room  # bytes from there on that the host may touch
        self.gpa = gpa  # where the copy came from; None in the page

    def read(self, offset, n_bytes):
        start = self.first + offset
        return bytes(self.content[start : start + n_bytes])

    def write(self, offset, data):
        start = self.first + offset
        self.content[start : start + len(data)] = data

    def number(self, offset, size):
        return int.from_bytes(self.read(offset, size), "little")

    def store(self, offset, size, value):
        self.write(offset, value.to_bytes(size, "little"))


def check_inputs(request, host):
    """Raise ``Refused`` in KVM's order: usage, the three fields, the event, its inputs."""
    is_snp = host.guest == "snp"
    if request.usage != 0:
        raise Refused(BAD_USAGE)
    if host.inputs_checked and not {CODE, INFO1, INFO2} <= request.valid:
        raise Refused(MISSING_INPUT)
    code = request.code
    if host.events is not None and code not in host.events:
        raise Refused(BAD_EVENT)
    if code in EXTRA_INPUTS and EXTRA_INPUTS[code][0] in host.extra:
        _, needed, snp_only = EXTRA_INPUTS[code]
        if snp_only and not is_snp:
            raise Refused(MISSING_INPUT)
    elif code in SNP_INPUTS:
        if not is_snp:
            raise Refused(MISSING_INPUT)
        needed = SNP_INPUTS[code]
    elif code in INPUTS:
        needed = INPUTS[code]
    else:
        raise Refused(BAD_EVENT)
    needed = set(needed)
    if code == 0x72 and request.regs[RAX] == 0xD and host.xcr0_required:  # all 64 bits
        needed.add(XCR0)
    if code == 0x7B:
        if request.info1 & 1 << 2:  # string
            needed.add(SCRATCH)
        elif not request.info1 & 1 << 0:  # OUT
            needed.add(RAX)
    if code == 0x7C and request.info1 != 0:  # write
        needed |= {RAX, RDX}
    if code == 0x8000_0013:
        operation = request.info1 & U32
        if host.vmpl_in_ap_create:
            operation &= ~0xF_0000
        elif host.vmpls == "ignored":
            operation &= 0xFFFF
        if operation != AP_DESTROY:
            needed.add(RAX)
    if host.inputs_checked and not needed <= request.valid:
        raise Refused(MISSING_INPUT)
    if code in (0x8000_0011, 0x8000_0012):
        pages = (request.info1, request.info2)
        if any(gpa % 4096 for gpa in pages) or pages[0] == pages[1]:
            raise Refused(MISSING_INPUT)  # not "bad input", though the inputs are there
