"""KVM's host for one VM, told a second time: slow, obvious, and without the core.

Written from the GHCB fact sheet (1.1, 2, 4, 5, 7.1, 8, 10) and the SIPI rules of the kexec fact
sheet (1.5), before the answer functions of ``ghcbcore/host.pyx`` were read. Nothing here imports
``ghcbcore``; every number is typed from the fact sheets. What the project made up itself has
words here (events, kinds of hold, ways to enter), and the test translates them.

OPEN marks what the fact sheets leave to the implementer. There the oracle states what the
docstrings of ``Host`` and ``host.h`` promise, or what ``Host`` was seen to do from outside:

- ``event_data``: the GHCB MSR value of a termination (the GPA, if it came by page), INFO1 of a
  port or MMIO access, else the event code.
- A CPUID function that is listed once, with index 0, has no sub-leaves: the index is ignored.
- A request that ends the VM leaves the same reply in the page as one that succeeds.
- ``entry`` says how to enter and stays until whoever enters the guest has set it back.
- An NMI stays pending until the guest's role takes it; as long as it does, neither HLT nor a hold
  puts the vCPU to sleep (KVM does not block a vCPU that has an event).
- A STARTUP that is dropped wakes nobody.
- VMGEXIT and HLT are not refused in any mp_state. They do show that the vCPU ran, so a hold that
  was not released by then is forgotten.
- The rules of the newest KVM (scratch outside the GHCB refused, MMIO above 8 bytes refused, empty
  accesses skipped) are not those of the default host.
"""

# -- numbers of the fact sheets -----------------------------------------------------------------

U64 = 2**64 - 1

# mp_state of Linux linux/kvm.h
RUNNABLE, UNINITIALIZED, INIT_RECEIVED, HALTED, AP_RESET_HOLD = 0, 1, 2, 3, 9

# page: offsets, and the valid bit that belongs to each (offset / 8)
CPL, RAX, RCX, RDX, RBX = 0x0CB, 0x1F8, 0x308, 0x310, 0x318
CODE, INFO1, INFO2, SCRATCH, XCR0 = 0x390, 0x398, 0x3A0, 0x3A8, 0x3E8
VALID_BITMAP, SHARED_BUFFER, SHARED_BUFFER_END, USAGE = 0x3F0, 0x800, 0xFF0, 0xFFC

# INFO2 of a malformed request
BAD_USAGE, BAD_SCRATCH, MISSING_INPUT, BAD_INPUT, BAD_EVENT = 2, 3, 4, 5, 6

SCRATCH_LIMIT = 16 * 4096
INT_MAX = 0x7FFF_FFFF

# NAE events that a non-SNP guest of KVM may send, and what each needs besides CODE, INFO1, INFO2
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
SNP_ONLY = [0x8000_0010, 0x8000_0011, 0x8000_0012, 0x8000_0013]

# INVD, WBINVD, MONITOR, MWAIT, NMI complete: the host says "done" and that is all
WITHOUT_EFFECT = [0x76, 0x89, 0x8A, 0x8B, 0x8000_0003]

# OPEN: KVM emulates these; Host has no model of them and says so
UNMODELLED = [0x27, 0x37, 0x6F, 0x7C, 0x81, 0x87]


class Ended(Exception):
    """The VM does not run any more."""


class Malformed(Exception):
    """INFO1 = 2: the request is refused, INFO2 says why."""


class Invalid(Exception):
    """-EINVAL to user space: no reply, the VM is over."""


class NoPage(Exception):
    """The caller's mistake: this is not how a page request is made."""


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
            for offset in (CPL, RAX, RCX, RDX, RBX, CODE, INFO1, INFO2, SCRATCH, XCR0)
            if page.is_valid(offset)
        }
        self.regs = {
            offset: page.number(offset) if offset in self.valid else 0
            for offset in (RAX, RBX, RCX, RDX)
        }
        self.scratch = page.number(SCRATCH) if SCRATCH in self.valid else 0


class HostOracle:
    """One VM of KVM: ``vm`` and ``vcpus`` are dicts of what a test may compare."""

    def __init__(
        self, *, sev_es=True, min_version=1, max_version=2, c_bit=51, hv_features=3, cpuid=(), n=1
    ):
        self.sev_es = sev_es
        self.max_version = max_version
        self.sev_info = max_version << 48 | min_version << 32 | c_bit << 24 | 0x001
        self.hv_features = hv_features
        self.cpuid = [(function, index, answer) for function, index, *answer in cpuid]
        self.vm = {"jump_table": 0, "event": "none", "event_data": 0}
        self.vcpus = [
            {
                "msr": self.sev_info if sev_es else 0,  # what a reset leaves there
                "sw_exit_code": 0,
                "sw_exit_info_1": 0,
                "sw_exit_info_2": 0,
                "mp_state": UNINITIALIZED if cpu else RUNNABLE,
                "reset_hold": "none",
                "first_sipi": 0,
                "init_pending": 0,
                "sipi_pending": 0,
                "sipi_vector": 0,
                "nmi_pending": 0,
                "entry": "resume",
            }
            for cpu in range(n)
        ]

    def end(self, event, data):
        self.vm["event"] = event
        self.vm["event_data"] = data

    def running(self, cpu):
        """Return the vCPU, which executed an instruction: no hold lasts longer than that."""
        vcpu = self.still(cpu)
        vcpu["reset_hold"] = "none"
        return vcpu

    # -- GHCB MSR protocol --------------------------------------------------------------------

    def msr(self, cpu, value):
        if value and value % 0x1000 == 0:
            raise NoPage
        vcpu = self.running(cpu)
        vcpu["msr"] = self.answer_msr(vcpu, value)
        return vcpu["msr"]

    def answer_msr(self, vcpu, value):
        code = value & 0xFFF
        if code == 0x002:
            return self.sev_info
        if code == 0x004:
            register = self.look_up(value >> 32, 0)[value >> 30 & 3]
            return register << 32 | value & 0xFFFF_F000 | 0x005
        if code == 0x006:
            self.hold(vcpu, "msr")
            return 0x007
        if code == 0x080:
            return self.hv_features << 12 | 0x081
        if code in (0x010, 0x012, 0x014, 0x100):  # the first three: not an SNP guest
            self.end("sev_term", value)
        return value  # also 0, and all that KVM does not know: kept as it is

    def look_up(self, function, index):
        listed = {i: answer for f, i, answer in self.cpuid if f == function}
        if list(listed) == [0]:
            return listed[0]
        return listed.get(index, [0, 0, 0, 0])

    def hold(self, vcpu, how):
        if vcpu["nmi_pending"]:
            return
        vcpu["reset_hold"] = how
        vcpu["mp_state"] = AP_RESET_HOLD

    # -- GHCB page ----------------------------------------------------------------------------

    def page(self, cpu, content, gpa):
        """Answer the request in ``content`` (bytearray of 4096) in place."""
        if len(content) != 4096 or gpa == 0 or gpa % 0x1000:
            raise NoPage
        vcpu = self.running(cpu)
        page = Page(content)
        request = Request(page)
        vcpu["msr"] = gpa
        vcpu["sw_exit_code"] = request.code
        vcpu["sw_exit_info_1"] = request.info1
        vcpu["sw_exit_info_2"] = request.info2
        page.content[VALID_BITMAP : VALID_BITMAP + 16] = bytes(16)
        try:
            self.check(request)
            info1, info2 = 0, self.dispatch(vcpu, request, gpa)
        except Malformed as refusal:
            info1, info2 = 2, refusal.args[0]
        except Invalid:
            self.end("einval", request.code)
            info1, info2 = 0, 0
        vcpu["sw_exit_info_1"], vcpu["sw_exit_info_2"] = info1, info2
        for offset, value in {**request.regs, INFO1: info1, INFO2: info2}.items():
            page.store(offset, value)
            page.mark_valid(offset)

    def vmgexit(self, cpu):
        """VMGEXIT with the request in the vCPU's record; of a page it has only three fields."""
        msr = self.still(cpu)["msr"]
        if msr == 0 or msr % 0x1000:
            self.msr(cpu, msr)
            return
        vcpu = self.vcpus[cpu]
        content = Page(bytearray(4096))
        for offset, name in (
            (CODE, "sw_exit_code"),
            (INFO1, "sw_exit_info_1"),
            (INFO2, "sw_exit_info_2"),
        ):
            content.store(offset, vcpu[name])
            content.mark_valid(offset)
        self.page(cpu, content.content, msr)

    def check(self, request):
        if request.usage != 0:
            raise Malformed(BAD_USAGE)
        if not {CODE, INFO1, INFO2} <= request.valid:
            raise Malformed(MISSING_INPUT)
        if request.code in SNP_ONLY:
            raise Malformed(MISSING_INPUT)
        if request.code not in INPUTS:
            raise Malformed(BAD_EVENT)
        needed = set(INPUTS[request.code])
        if request.code == 0x72 and request.regs[RAX] == 0xD:  # all 64 bits
            needed.add(XCR0)
        if request.code == 0x7B:
            if request.info1 & 1 << 2:  # string
                needed.add(SCRATCH)
            elif not request.info1 & 1 << 0:  # OUT
                needed.add(RAX)
        if request.code == 0x7C and request.info1 != 0:  # write
            needed |= {RAX, RDX}
        if not needed <= request.valid:
            raise Malformed(MISSING_INPUT)

    def dispatch(self, vcpu, request, gpa):
        """Do what the event asks for and return INFO2."""
        code, regs = request.code, request.regs
        if code == 0x72:
            found = self.look_up(regs[RAX] & 0xFFFF_FFFF, regs[RCX] & 0xFFFF_FFFF)
            regs[RAX], regs[RBX], regs[RCX], regs[RDX] = found
        elif code == 0x7B:
            self.io(request, gpa)
        elif code in (0x8000_0001, 0x8000_0002):
            self.check_scratch(request, gpa, request.info2)
            self.end("mmio", request.info1)
        elif code == 0x8000_0004:
            self.hold(vcpu, "nae")
        elif code == 0x8000_0005:
            if request.info1 > 1:
                raise Malformed(BAD_INPUT)
            if request.info1 == 1:
                return self.vm["jump_table"]
            self.vm["jump_table"] = request.info2
        elif code == 0x8000_FFFD:
            return self.hv_features
        elif code == 0x8000_FFFE:
            self.end("sev_term", gpa)
        elif code == 0x8000_FFFF:
            raise Invalid
        elif code == 0x6E:
            self.end("internal", code)
        elif code in UNMODELLED:
            self.end("unmodelled", code)
        else:
            assert code in WITHOUT_EFFECT
        return 0

    def io(self, request, gpa):
        if request.info1 & 1 << 2:
            n_bytes = request.info2 * (request.info1 >> 4 & 7)
            if request.info2 > INT_MAX or n_bytes > INT_MAX:
                raise Invalid
            self.check_scratch(request, gpa, n_bytes)
        self.end("io", request.info1)

    def check_scratch(self, request, gpa, n_bytes):
        first, end = request.scratch, request.scratch + n_bytes
        if first == 0 or end > U64:
            raise Malformed(BAD_SCRATCH)
        if first & ~0xFFF == gpa:
            if first < gpa + SHARED_BUFFER or end > gpa + SHARED_BUFFER_END:
                raise Malformed(BAD_SCRATCH)
        elif n_bytes > SCRATCH_LIMIT:
            raise Malformed(BAD_SCRATCH)

    # -- the vCPU's APIC and processor ----------------------------------------------------------

    def send_init(self, cpu):
        vcpu = self.still(cpu)
        vcpu["init_pending"] = 1
        vcpu["sipi_pending"] = 0  # INIT is latched in place of everything before it

    def send_sipi(self, cpu):
        self.still(cpu)["sipi_pending"] = 1

    def init(self, cpu):
        vcpu = self.still(cpu)
        if vcpu["init_pending"]:
            vcpu["init_pending"] = 0
            vcpu["mp_state"] = INIT_RECEIVED

    def sipi(self, cpu):
        vcpu = self.still(cpu)
        if not vcpu["sipi_pending"]:
            return
        vcpu["sipi_pending"] = 0
        if vcpu["mp_state"] != INIT_RECEIVED:
            return  # dropped
        vcpu["mp_state"] = RUNNABLE
        if not self.sev_es:
            vcpu["entry"] = "vector"
            return
        if not vcpu["first_sipi"]:
            vcpu["first_sipi"] = 1
            vcpu["entry"] = "launch"
        else:
            vcpu["entry"] = "resume"
            if vcpu["reset_hold"] == "nae":
                vcpu["sw_exit_info_1"], vcpu["sw_exit_info_2"] = 0, 1
            if vcpu["reset_hold"] == "msr":
                vcpu["msr"] = 0x1007
        vcpu["reset_hold"] = "none"  # it runs

    def nmi(self, cpu):
        vcpu = self.still(cpu)
        vcpu["nmi_pending"] = 1
        if vcpu["mp_state"] in (HALTED, AP_RESET_HOLD):
            vcpu["mp_state"] = RUNNABLE
            vcpu["reset_hold"] = "none"  # it runs

    def take_nmi(self, cpu):
        self.vcpus[cpu]["nmi_pending"] = 0

    def hlt(self, cpu):
        vcpu = self.running(cpu)
        if not vcpu["nmi_pending"]:
            vcpu["mp_state"] = HALTED

    def shutdown(self, cpu):
        self.still(cpu)
        self.end("shutdown", 0)

    def still(self, cpu):
        """Return the vCPU of a VM that has not ended."""
        if self.vm["event"] != "none":
            raise Ended
        return self.vcpus[cpu]
