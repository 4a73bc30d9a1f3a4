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

``kinds`` of it is a set of these words and "memory": what it answers.

OPEN marks what the fact sheets leave to the implementer. There the oracle does what KVM does, or
what the core's headers say that they do; a sentence with *core* in it was changed to the core's
choice when the two were held against each other.

- ``event_data``: the GHCB MSR value of a termination or of an unknown MSR function (the GPA, if a
  termination came by page), INFO1 of a port access, the GPA of an MMIO access, all ones of a vCPU
  that has nothing to run from; *core*: the GPA of a page that is not registered, the GPA of memory
  that is not there; else the event code.
- A CPUID function that is listed once, with index 0, has no sub-leaves: the index is ignored.
- A request that ends the VM leaves the same reply in the page as one that succeeds. *Core*: one
  from an unregistered page leaves no reply but a cleared bitmap; KVM would write the registers
  back if user space let the vCPU go on, and nobody does.
- ``entry`` says how to enter and stays until whoever enters the guest has set it back; "vmsa" is
  from the VMSA of AP creation, *core*: from the reset that installs it on.
- An NMI stays pending until the guest's role takes it; as long as it does, neither HLT nor a hold
  puts the vCPU to sleep (KVM does not block a vCPU that has an event), unless NMIs are masked. One
  that arrives wakes a masked vCPU too (KVM looks for the request only). Every reset drops it.
- A STARTUP that is dropped wakes nobody. INIT lets the boot CPU run on.
- VMGEXIT and HLT are not refused in any mp_state. They do show that the vCPU ran, so a hold that
  was not released by then is forgotten.
- AP creation: another vCPU is kicked at once. ``vmsa_gpa`` and ``ap_pending`` are those of VMPL 0;
  ``vmsa_gpa`` stays once the vCPU runs from it. A VMSA page always exists. ``vmsa`` tells "launch",
  "guest" and "none". Destroy leaves the vCPU halted; if anything but a new VMSA lets it run, the
  run fails ("einval"; newer KVM: KVM_EXIT_FAIL_ENTRY). Addresses have 52 bits.
- A status other than 0 from a device is as if there were no device, but for "msr" (#GP), "pmc" (#GP
  by VMRUN, in ``event_inj``) and "map_gpa" (an error of user space).
- *Core*: without a device of the kind that is asked for, the run ends before memory is looked at;
  only a page state change reads its scratch area first. Where there is no memory it cannot be read.
- Unreadable pages of a guest request are the same event as an unreadable scratch area, "efault";
  KVM returns -EIO there. Without "memory" nobody looks at them.
- A guest request nobody can answer: INFO2 is the VMM's generic error, firmware status 0, KVM's
  answer where user space reports EIO for certificates. (For a firmware that cannot be asked KVM
  itself returns an error to user space.) The device writes the response page.
- An extended request of another type than report is a plain one; so is one of a host without
  certificates (no device for "ext_guest_request"), which writes the empty table before it asks
  and leaves rbx. *Core*: where memory is not shown, the message is a report if there are
  certificates.
- String I/O is one access, however many pages; KVM splits it by pages.
- MMIO of length 0 is done after the scratch area was checked, with ``mmio_max_v2=8`` before.
- ``empty_string_io="complete"`` completes operand size 0 too, without looking at the scratch area.
- VMMCALL: no paravirtual feature is offered, and that is enforced; no clock pairing.
- RDTSCP is #UD by VMRUN, in ``event_inj``. DR7 accesses do nothing and succeed.
- MSR 0x016 and 0x018 of a guest that is not SNP: 0x016 answers as CL does (error unless the VMPL is
  0), 0x018 ends the VM like 0x012. No VMSA for the VMPL: error.
- RUN VMPL keeps the page and MSR of the caller; the reply is there at once. ``vmpl`` is the one
  that runs. *Core*: it knows one VMSA for each vCPU, so with ``vmpls="ignored"`` any VMPL can run
  and AP creation looks at [15:0] for the operation and at nothing for the VMPL.
- A doorbell page at GPA 0 reads as none. #HV IPI knows NMI, INIT and STARTUP; *core*: other kinds
  are asked of the device as "ipi", and without one end the run. The ICR is x2APIC's, with its
  reserved bits.
- APIC ID list, *core*: rax of the reply is the number of pages always, and GPA 0 asks for it alone.
- ``scratch_outside_v2``, ``mmio_max_v2``: the version is the VM's (``max_version``), not that of
  the page.
- VMGEXIT from the record: every input of an AP creation is there (rax has the VM's features); of
  other events only the three fields.
- Other hosts are switches (fact sheet 10), as the core's ``GHCB_RULE_*`` have them.
"""

from ghcb_oracle import (
    AP_RESET_HOLD,
    BAD_EVENT,
    BAD_INPUT,
    CODE,
    CPL,
    HALTED,
    INFO1,
    INFO2,
    INIT_RECEIVED,
    INPUTS,
    MISSING_INPUT,
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
    Refused,
    Request,
    Unregistered,
    check_inputs,
)
from nae_oracle import INJECT_UD, Services
from vcpu_oracle import NO_VMSA, Ended, Processors

__all__ = [
    "AP_RESET_HOLD",
    "CODE",
    "CPL",
    "HALTED",
    "INFO1",
    "INFO2",
    "INIT_RECEIVED",
    "INPUTS",
    "NO_VMSA",
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

# DR7 accesses, INVD, WBINVD, MONITOR, MWAIT: the host says "done" and that is all
WITHOUT_EFFECT = (0x27, 0x37, 0x76, 0x89, 0x8A, 0x8B)
UNMODELLED = frozenset()
EXTRA = {"doorbell", "hv_ipi", "apic_ids", "run_vmpl", "unregister"}


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
        extra=frozenset(),
        unmodelled=UNMODELLED,
        msr_functions=None,
        events=None,
        unknown_event="reply",
        missing_input="reply",
        inputs_checked=True,
        reply="kvm",
        code_bits=64,
        gp_bare=False,
        psc_error=1 << 63,
        io_ignored=False,
        non_snp="end",
        register_once=False,
        vmpls="kept",
        features_loose=False,
    ):
        choices = {
            "guest": (guest, ("plain", "sev_es", "snp")),
            "unknown_msr": (unknown_msr, ("keep", "einval")),
            "unregistered": (unregistered, ("einval", "error", "register")),
            "unknown_event": (unknown_event, ("reply", "einval")),
            "missing_input": (missing_input, ("reply", "einval")),
            "reply": (reply, ("kvm", "adds", "alone")),
            "code_bits": (code_bits, (64, 32)),
            "non_snp": (non_snp, ("end", "keep")),
            "vmpls": (vmpls, ("kept", "ignored")),
            "scratch_outside_v2": (scratch_outside_v2, ("allow", "deny")),
            "mmio_max_v2": (mmio_max_v2, (0x7FFF_FFFF, 8)),
            "empty_string_io": (empty_string_io, ("run", "complete")),
            "psc_limit": (psc_limit, ("info2", "scratch")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name}={value!r}, not one of {allowed}")
        if unknown := set(extra) - EXTRA:
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
        self.msr_functions = msr_functions  # None: all that there are
        self.events = events
        self.unknown_event = unknown_event
        self.missing_input = missing_input
        self.inputs_checked = inputs_checked
        self.reply = reply
        self.code_bits = code_bits
        self.gp_bare = gp_bare
        self.psc_error = psc_error
        self.io_ignored = io_ignored
        self.non_snp = non_snp
        self.register_once = register_once
        self.vmpls = vmpls
        self.features_loose = features_loose
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
        vcpu = self.still(cpu)
        vcpu["msr"] = value
        if not self.cannot_run(cpu):
            self.running(cpu)
            vcpu["msr"] = self.answer_msr(cpu, vcpu, value)
        return vcpu["msr"]

    def answer_msr(self, cpu, vcpu, value):
        code = value & 0xFFF
        if self.msr_functions is not None and code not in self.msr_functions:
            code = 0  # no function
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
            if self.non_snp == "end":
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
                if self.non_snp == "end":
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
            if self.register_once and vcpu["registered_gpa"]:
                return NO_GFN << 12 | 0x013
            vcpu["registered_gpa"] = value & ~0xFFF
            return value & ~0xFFF | 0x013
        operation, gpa = value >> 52 & 0xF, value & (1 << 52) - 0x1000
        if operation not in (1, 2) or not self.offers("map_gpa"):
            return self.psc_error | 0x015
        if self.map_gpa(cpu, gpa, 1, 1 << 4 if operation == 1 else 0) != 0:
            return self.psc_error | 0x015
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
        vcpu = self.still(cpu)
        vcpu["msr"] = gpa
        if self.cannot_run(cpu):
            return
        self.running(cpu)
        page = Page(content)
        request = Request(page)
        if self.code_bits == 32:
            request.code &= U32
        vcpu["sw_exit_code"] = request.code
        vcpu["sw_exit_info_1"] = request.info1
        vcpu["sw_exit_info_2"] = request.info2
        if self.reply != "adds":
            page.content[VALID_BITMAP : VALID_BITMAP + 16] = bytes(16)
        try:
            info1, info2 = self.answer_page(cpu, request, page, gpa)
        except Unregistered:
            self.end("einval", gpa)
            return
        vcpu["sw_exit_info_1"], vcpu["sw_exit_info_2"] = info1, info2
        reply = {**request.regs, INFO1: info1, INFO2: info2}
        if self.reply == "alone":
            page.content[:] = bytes(4096)
        if self.reply != "kvm":
            for offset in (RAX, RBX, RCX, RDX):
                if offset not in request.results and not page.is_valid(offset):
                    del reply[offset]
        for offset, value in reply.items():
            page.store(offset, value)
            page.mark_valid(offset)

    def answer_page(self, cpu, request, page, gpa):
        """Return INFO1 and INFO2; the registers of the reply are in the request."""
        try:
            if self.guest == "snp" and self.vcpus[cpu]["registered_gpa"] != gpa:
                if self.unregistered == "einval":
                    raise Unregistered
                if self.unregistered == "error":
                    raise Malformed(NOT_REGISTERED)
                self.vcpus[cpu]["registered_gpa"] = gpa
            check_inputs(request, self)
            return 0, self.dispatch(cpu, request, page, gpa)
        except Refused as refusal:
            reason = refusal.args[0]
            if (reason == BAD_EVENT and self.unknown_event == "einval") or (
                reason == MISSING_INPUT and self.missing_input == "einval"
            ):
                self.end("einval", request.code)
            return 2, reason
        except Malformed as refusal:
            return 2, refusal.args[0]
        except Exception13:
            if self.gp_bare:
                return 1, 13
            return 1, GP | (0xFFFF_FFFF << 32 if self.gp_sign_extended else 0)
        except Invalid:
            self.end("einval", request.code)
        except Fault as fault:
            self.end("efault", fault.args[0])
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
        if vcpu["sw_exit_code"] == 0x8000_0013:
            content.store(RAX, self.sev_features)
            content.mark_valid(RAX)
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
        elif code == 0x87:
            self.vcpus[cpu]["event_inj"] = INJECT_UD
        elif code == 0x72:
            found = self.look_up(regs[RAX] & U32, regs[RCX] & U32)
            regs[RAX], regs[RBX], regs[RCX], regs[RDX] = found
            request.results |= {RAX, RBX, RCX, RDX}
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
        elif code == 0x8000_0003:
            self.vcpus[cpu]["nmi_masked"] = 0
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
