"""KVM's host for one VM, told a second time: slow, obvious, and without the core.

Written from the GHCB fact sheet (1.1, 2, 4 to 8, 10, 11), the SIPI rules of the kexec fact sheet
(1.5) and, where these are silent, KVM's host code and the fork "CL" (coconut-svsm), before the
answer functions of ``ghcbcore/host.pyx`` were read. Nothing in the five files (``ghcb_oracle``,
``psc_oracle``, ``vcpu_oracle``, ``nae_oracle``, this one) imports ``ghcbcore``; every number is
typed from the fact sheets. What the project made up itself has words here (events, kinds of hold,
ways to enter, pending AP creation), and a test translates them.

A device is an object with ``memory(gpa, n, data=None)`` (bytes read; True written; None: cannot be
accessed) and ``access(kind, cpu, address, is_write, size, count, data, args)`` (``(status,
result)``): "io" and "mmio" (data and result are bytes), "msr" and "pmc" (8 bytes), "map_gpa"
(args: attributes; result unused), "vmmcall" (address is rax, args rbx, rcx, rdx, rsi; result is
rax), "guest_request" and "ext_guest_request" (args: response GPA, of the second also data GPA and
pages; result is INFO2 and rbx). ``data`` is None for what is read.

OPEN marks what the fact sheets leave to the implementer. There the oracle does what KVM does, or
what the docstrings of ``Host`` and ``host.h`` promise:

- ``event_data``: the GHCB MSR value of a termination or of an unknown MSR function (the GPA, if a
  termination came by page), INFO1 of a port or MMIO access, 0 of a vCPU that has nothing to run
  from, else the event code.
- A CPUID function that is listed once, with index 0, has no sub-leaves: the index is ignored.
- A request that ends the VM leaves the same reply in the page as one that succeeds. One from an
  unregistered page gets its registers back, but INFO1 and INFO2 stay the guest's and unmarked:
  KVM leaves before it writes them.
- ``entry`` says how to enter and stays until whoever enters the guest has set it back; "vmsa" is
  from the VMSA of AP creation.
- An NMI stays pending until the guest's role takes it; as long as it does, neither HLT nor a hold
  puts the vCPU to sleep (KVM does not block a vCPU that has an event). INIT does not drop it
  (KVM's does); the reset of AP creation does.
- A STARTUP that is dropped wakes nobody. INIT leaves every vCPU waiting for a STARTUP, the boot
  CPU too, which KVM lets run on.
- VMGEXIT and HLT are not refused in any mp_state. They do show that the vCPU ran, so a hold that
  was not released by then is forgotten.
- AP creation: another vCPU is kicked at once. ``vmsa_gpa`` and ``ap_pending`` are those of VMPL 0;
  ``vmsa_gpa`` stays once the vCPU runs from it. A VMSA page always exists. ``vmsa`` tells "launch",
  "guest" and "none". Destroy leaves the vCPU halted; if anything but a new VMSA lets it run, the
  run fails ("einval"; newer KVM: KVM_EXIT_FAIL_ENTRY). Addresses have 52 bits.
- A status other than 0 from a device is as if there were no device, but for "msr" (#GP) and
  "map_gpa" (an error of user space). A refused RDPMC is "unmodelled": KVM injects #GP directly,
  which no reply in a page is.
- Without a device nobody looks at memory: a scratch area outside the page is not read.
- Unreadable pages of a guest request are the same event as an unreadable scratch area, "efault";
  KVM returns -EIO there.
- A guest request nobody can answer: INFO2 is the VMM's generic error, firmware status 0, KVM's
  answer where user space reports EIO for certificates. (For a firmware that cannot be asked KVM
  itself returns an error to user space.) The device writes the response page.
- An extended request of another type than report is a plain one. The empty certificate table is
  written before the device is asked, unless ``certs``; rbx is the device's.
- String I/O is one access, however many pages; KVM splits it by pages.
- MMIO of length 0 goes to the device unless ``mmio_max_v2`` is 8; KVM ends it without a device.
- ``empty_string_io="complete"`` completes operand size 0 too, without looking at the scratch area.
- VMMCALL: no paravirtual feature is offered, and that is enforced; no clock pairing.
- RDTSCP is "unmodelled": KVM injects #UD directly. DR7 accesses do nothing and succeed.
- MSR 0x016 and 0x018 of a guest that is not SNP: 0x016 answers as CL does (error unless the VMPL is
  0), 0x018 ends the VM like 0x012. No VMSA for the VMPL: error.
- RUN VMPL keeps the page and MSR of the caller; the reply is there at once. ``vmpl`` is the one
  that runs.
- A doorbell page at GPA 0 reads as none. #HV IPI knows NMI, INIT and STARTUP; other kinds do
  nothing. The ICR is x2APIC's, with its reserved bits.
- ``scratch_outside_v2``, ``mmio_max_v2``: the version is the VM's (``max_version``), not that of
  the page.
"""

from ghcb_oracle import (
    AP_RESET_HOLD,
    BAD_INPUT,
    CODE,
    CPL,
    HALTED,
    INFO1,
    INFO2,
    INIT_RECEIVED,
    INPUTS,
    NOT_REGISTERED,
    RAX,
    RBX,
    RCX,
    RDX,
    RSI,
    RUNNABLE,
    SCRATCH,
    SNP_ONLY,
    U32,
    UNINITIALIZED,
    USAGE,
    VALID_BITMAP,
    XCR0,
    Exception13,
    Fault,
    Invalid,
    Malformed,
    Page,
    Request,
    Unregistered,
    check_inputs,
)
from nae_oracle import Services
from vcpu_oracle import Ended, Processors

__all__ = [
    "AP_RESET_HOLD",
    "CODE",
    "CPL",
    "HALTED",
    "INFO1",
    "INFO2",
    "INIT_RECEIVED",
    "INPUTS",
    "RAX",
    "RBX",
    "RCX",
    "RDX",
    "RSI",
    "RUNNABLE",
    "SCRATCH",
    "SNP_ONLY",
    "UNINITIALIZED",
    "USAGE",
    "VALID_BITMAP",
    "XCR0",
    "Ended",
    "HostOracle",
    "NoPage",
    "Page",
    "Request",
]

NO_GFN = (1 << 52) - 1
GP = 0x8000_030D  # event injection: valid, exception, vector 13

# DR7 accesses, INVD, WBINVD, MONITOR, MWAIT, NMI complete: the host says "done" and that is all
WITHOUT_EFFECT = (0x27, 0x37, 0x76, 0x89, 0x8A, 0x8B, 0x8000_0003)
UNMODELLED = frozenset({0x87})


class NoPage(Exception):
    """The caller's mistake: this is not how a page request is made."""


class HostOracle(Processors, Services):
    """One VM of KVM: ``vm`` and ``vcpus`` are dicts of what a test may compare.

    The switches are hosts that differ (fact sheet 10, 11.2); their defaults are KVM before the
    hardening of 2026. ``unmodelled`` are events that end the VM instead of being answered.
    """

    def __init__(
        self,
        guest="sev_es",
        n=1,
        min_version=1,
        max_version=2,
        c_bit=51,
        hv_features=3,
        cpuid=(),
        sev_features=1,
        device=None,
        *,
        unknown_msr="keep",
        unregistered="einval",
        scratch_outside_v2="allow",
        mmio_max_v2=0x7FFF_FFFF,
        empty_string_io="run",
        psc_limit="info2",
        gp_sign_extended=False,
        vmpl_in_ap_create=False,
        xcr0_required=True,
        certs=False,
        extra=frozenset(),
        unmodelled=UNMODELLED,
    ):
        choices = {
            "guest": (guest, ("plain", "sev_es", "snp")),
            "unknown_msr": (unknown_msr, ("keep", "einval")),
            "unregistered": (unregistered, ("einval", "error")),
            "scratch_outside_v2": (scratch_outside_v2, ("allow", "deny")),
            "mmio_max_v2": (mmio_max_v2, (0x7FFF_FFFF, 8)),
            "empty_string_io": (empty_string_io, ("run", "complete")),
            "psc_limit": (psc_limit, ("info2", "scratch")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name}={value!r}, not one of {allowed}")
        if unknown := set(extra) - {"doorbell", "hv_ipi", "apic_ids", "run_vmpl", "unregister"}:
            raise ValueError(f"extra: {sorted(unknown)}")
        self.guest = guest
        self.max_version = max_version
        self.sev_info = max_version << 48 | min_version << 32 | c_bit << 24 | 0x001
        self.hv_features = hv_features
        self.cpuid = [(function, index, answer) for function, index, *answer in cpuid]
        self.sev_features = sev_features
        self.device = device
        self.unknown_msr = unknown_msr
        self.unregistered = unregistered
        self.scratch_outside_v2 = scratch_outside_v2
        self.mmio_max_v2 = mmio_max_v2
        self.empty_string_io = empty_string_io
        self.psc_limit = psc_limit
        self.gp_sign_extended = gp_sign_extended
        self.vmpl_in_ap_create = vmpl_in_ap_create
        self.xcr0_required = xcr0_required
        self.certs = certs
        self.extra = frozenset(extra)
        self.unmodelled = frozenset(unmodelled)
        self.vm = {"jump_table": 0, "event": "none", "event_data": 0}
        self.create_vcpus(n, 0 if guest == "plain" else self.sev_info)  # what a reset leaves there

    def end(self, event, data):
        self.vm["event"] = event
        self.vm["event_data"] = data

    # -- GHCB MSR protocol --------------------------------------------------------------------

    def msr(self, cpu, value):
        if value and value % 0x1000 == 0:
            raise NoPage
        vcpu = self.running(cpu)
        vcpu["msr"] = self.answer_msr(cpu, vcpu, value)
        return vcpu["msr"]

    def answer_msr(self, cpu, vcpu, value):
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
        if code in (0x010, 0x012, 0x014):
            if self.guest == "snp":
                return self.answer_snp_msr(cpu, vcpu, value)
            self.end("sev_term", value)
            return value
        if code == 0x100:
            self.end("sev_term", value)
            return value
        if code == 0x016 and "run_vmpl" in self.extra:
            error = 0 if self.run_vmpl(cpu, value >> 32 & 0xFF) else 1
            return error << 32 | 0x017
        if code == 0x018 and "unregister" in self.extra:
            if self.guest != "snp":
                self.end("sev_term", value)
                return value
            gfn = vcpu["registered_gpa"] >> 12 or NO_GFN
            vcpu["registered_gpa"] = 0
            return gfn << 12 | 0x019
        if value and self.unknown_msr == "einval":
            self.end("einval", value)
        return value

    def answer_snp_msr(self, cpu, vcpu, value):
        code = value & 0xFFF
        if code == 0x010:
            return NO_GFN << 12 | 0x011
        if code == 0x012:
            vcpu["registered_gpa"] = value & ~0xFFF
            return value & ~0xFFF | 0x013
        operation, gpa = value >> 52 & 0xF, value & (1 << 52) - 0x1000
        if operation not in (1, 2) or self.device is None:
            return 1 << 63 | 0x015
        if self.map_gpa(cpu, gpa, 1, 1 << 4 if operation == 1 else 0) != 0:
            return 1 << 63 | 0x015
        return 0x015

    def look_up(self, function, index):
        listed = {i: answer for f, i, answer in self.cpuid if f == function}
        if list(listed) == [0]:
            return listed[0]
        return listed.get(index, [0, 0, 0, 0])

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
        reply = dict(request.regs)
        try:
            info1, info2 = self.answer_page(cpu, request, page, gpa)
        except Unregistered:
            self.end("einval", request.code)
        else:
            vcpu["sw_exit_info_1"], vcpu["sw_exit_info_2"] = info1, info2
            reply = {**request.regs, INFO1: info1, INFO2: info2}
        for offset, value in reply.items():
            page.store(offset, value)
            page.mark_valid(offset)

    def answer_page(self, cpu, request, page, gpa):
        """Return INFO1 and INFO2; the registers of the reply are in the request."""
        try:
            if self.guest == "snp" and self.vcpus[cpu]["registered_gpa"] != gpa:
                if self.unregistered == "einval":
                    raise Unregistered
                raise Malformed(NOT_REGISTERED)
            check_inputs(
                request,
                is_snp=self.guest == "snp",
                extra=self.extra,
                xcr0_required=self.xcr0_required,
                vmpl_in_ap_create=self.vmpl_in_ap_create,
            )
            return 0, self.dispatch(cpu, request, page, gpa)
        except Malformed as refusal:
            return 2, refusal.args[0]
        except Exception13:
            return 1, GP | (0xFFFF_FFFF << 32 if self.gp_sign_extended else 0)
        except Invalid:
            self.end("einval", request.code)
        except Fault:
            self.end("efault", request.code)
        return 0, 0

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

    def dispatch(self, cpu, request, page, gpa):
        """Do what the event asks for and return INFO2."""
        code, regs = request.code, request.regs
        if code in self.unmodelled:
            self.end("unmodelled", code)
        elif code == 0x6E:
            self.end("internal", code)
        elif code == 0x6F:
            self.performance_counter(cpu, request)
        elif code == 0x72:
            found = self.look_up(regs[RAX] & U32, regs[RCX] & U32)
            regs[RAX], regs[RBX], regs[RCX], regs[RDX] = found
        elif code == 0x7B:
            self.io(cpu, request, page, gpa)
        elif code == 0x7C:
            self.model_specific_register(cpu, request)
        elif code == 0x81:
            self.hypercall(cpu, request)
        elif code in (0x8000_0001, 0x8000_0002):
            self.mmio(cpu, request, page, gpa, code == 0x8000_0002)
        elif code == 0x8000_0004:
            self.hold(self.vcpus[cpu], "nae")
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
        elif code in SNP_ONLY or 0x8000_0014 <= code <= 0x8000_0018:
            return self.dispatch_snp(cpu, request, page, gpa)
        else:
            assert code in WITHOUT_EFFECT
        return 0

    def dispatch_snp(self, cpu, request, page, gpa):
        """The same for the events of SNP and of the fork "CL"."""
        code = request.code
        if code == 0x8000_0010:
            return self.page_state_change(cpu, request, page, gpa)
        if code == 0x8000_0011:
            return self.guest_request(cpu, request)
        if code == 0x8000_0012:
            return self.extended_guest_request(cpu, request)
        if code == 0x8000_0013:
            self.ap_creation(cpu, request)
        elif code == 0x8000_0014:
            return self.doorbell_page(cpu, request)
        elif code == 0x8000_0015:
            self.send_ipi(cpu, request.info1)
        elif code == 0x8000_0017:
            self.list_apic_ids(request)
        else:
            assert code == 0x8000_0018
            if not self.run_vmpl(cpu, request.info1 & U32):
                raise Malformed(0)
        return 0
