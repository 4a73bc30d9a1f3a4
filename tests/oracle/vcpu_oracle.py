"""The vCPUs of the oracle's VM: INIT, SIPI, NMI, HLT, AP reset hold, AP creation, VMPLs.

Part of the oracle of ``host_oracle``; from the GHCB fact sheet (7), the kexec fact sheet (1.5) and
KVM's ``sev_snp_ap_creation``, ``sev_snp_init_protected_guest_state``, ``vcpu_enter_guest`` and
``sev_vcpu_deliver_sipi_vector``. Nothing here imports ``ghcbcore``. OPEN: see ``host_oracle``.

How AP creation takes effect: the request records the VMSA (``vmsa_gpa``) and that the target waits
for a reset (``ap_pending``). Two things reset it: an INIT that it accepts, and, unless the
operation is "on INIT", an update request, which a vCPU takes when it runs or may be woken (halted,
held). One that was never started or waits for its SIPI takes it when it starts to run. A reset
without a VMSA leaves the vCPU halted with nothing to run from.

The words of the core for the same: ``vmsa`` there is ``current`` of the level that runs,
``next_vmsa`` what is recorded while somebody waits for it, ``vmsa_pending`` 1 for waiting and 2
for an update request."""

from ghcb_oracle import (
    AP_DESTROY,
    AP_RESET_HOLD,
    BAD_INPUT,
    HALTED,
    INIT_RECEIVED,
    RAX,
    RUNNABLE,
    U32,
    UNINITIALIZED,
    Malformed,
)

CREATE_ON_INIT, CREATE = 0, 1
N_VMPLS = 4
INJECTION_MODES = 1 << 3 | 1 << 4  # restricted, alternate
PHYSICAL_BITS = 52
ICR_RESERVED = 0xFFF0_0000 | 0x3_0000 | 1 << 13
NMI_MODE, INIT_MODE, STARTUP_MODE = 4, 5, 6


NO_VMSA = (1 << 64) - 1


class Ended(Exception):
    """The VM does not run any more."""


class Level:
    """One VMPL of a vCPU: the VMSA it has, and the one it shall get."""

    def __init__(self, state):
        self.state = state  # "launch", "guest" (one made by AP creation) or "none"
        self.current = 0  # GPA of the VMSA that it runs from; 0: the one it was launched with
        self.gpa = 0  # recorded by AP creation; 0: none
        self.is_waiting = False  # for a reset, which takes what is recorded


def is_page_address(gpa):
    return gpa % 4096 == 0 and gpa < 1 << PHYSICAL_BITS


class Processors:
    """What happens to vCPUs; the GHCB side is ``host_oracle``'s."""

    def create_vcpus(self, n, msr):
        self.vcpus = [
            {
                "msr": msr,
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
                "nmi_masked": 0,
                "event_inj": 0,
                "entry": "resume",
                "registered_gpa": 0,
                "apic_id": cpu,
                "vmsa_gpa": 0,
                "vmsa": "launch",
                "ap_pending": "none",
                "doorbell_gpa": 0,
                "vmpl": 0,
            }
            for cpu in range(n)
        ]
        self.levels = [
            [Level("launch"), *(Level("none") for _ in range(1, N_VMPLS))] for _ in range(n)
        ]
        self.update_requested = [False] * n
        self.is_fresh = [False] * n  # got a VMSA by INIT and has not run from it
        self.features = [self.sev_features, 0, 0, 0]  # of each VMPL; the upper three: CL

    def still(self, cpu):
        """Return the vCPU of a VM that has not ended."""
        if self.vm["event"] != "none":
            raise Ended
        return self.vcpus[cpu]

    def running(self, cpu):
        """Return the vCPU, which executed an instruction: no hold lasts longer than that."""
        vcpu = self.still(cpu)
        vcpu["reset_hold"] = "none"
        self.is_fresh[cpu] = False
        return vcpu

    def cannot_run(self, cpu):
        """Is there nothing to run from? If so, the run is over."""
        if self.levels[cpu][self.vcpus[cpu]["vmpl"]].state != "none":
            return False
        self.end("einval", NO_VMSA)
        return True

    # -- APIC -----------------------------------------------------------------------------------

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
            vcpu["nmi_pending"] = 0
            if self.install(cpu):
                self.is_fresh[cpu] = vcpu["vmsa"] == "guest"
            if cpu == 0:  # the boot CPU needs no STARTUP
                vcpu["mp_state"] = RUNNABLE
                self.run(cpu)
            else:
                vcpu["mp_state"] = INIT_RECEIVED

    def sipi(self, cpu):
        vcpu = self.still(cpu)
        if not vcpu["sipi_pending"]:
            return
        vcpu["sipi_pending"] = 0
        if vcpu["mp_state"] != INIT_RECEIVED:
            return  # dropped
        vcpu["mp_state"] = RUNNABLE
        if self.guest == "plain":
            vcpu["entry"] = "vector"
            return
        if not vcpu["first_sipi"]:
            vcpu["first_sipi"] = 1
            vcpu["entry"] = "launch" if vcpu["vmsa"] == "launch" else "resume"
        else:
            vcpu["entry"] = "resume"
            if vcpu["reset_hold"] == "nae":
                vcpu["sw_exit_info_1"], vcpu["sw_exit_info_2"] = 0, 1
            if vcpu["reset_hold"] == "msr":
                vcpu["msr"] = 0x1007
        if self.is_fresh[cpu]:
            vcpu["entry"] = "vmsa"
        self.run(cpu)

    def nmi(self, cpu):
        vcpu = self.still(cpu)
        vcpu["nmi_pending"] = 1
        if vcpu["mp_state"] in (HALTED, AP_RESET_HOLD):
            vcpu["mp_state"] = RUNNABLE
            self.run(cpu)

    def take_nmi(self, cpu):
        vcpu = self.still(cpu)
        vcpu["nmi_pending"], vcpu["nmi_masked"] = 0, 1

    def has_nmi(self, vcpu):
        return vcpu["nmi_pending"] and not vcpu["nmi_masked"]

    def hlt(self, cpu):
        vcpu = self.running(cpu)
        if not self.has_nmi(vcpu):
            vcpu["mp_state"] = HALTED

    def shutdown(self, cpu):
        self.still(cpu)
        self.end("shutdown", 0)

    def hold(self, vcpu, how):
        if self.has_nmi(vcpu):
            return
        vcpu["reset_hold"] = how
        vcpu["mp_state"] = AP_RESET_HOLD

    def send_ipi(self, cpu, icr):
        """NAE event 0x80000015: what writing this x2APIC ICR does."""
        if icr & ICR_RESERVED:
            raise Malformed(BAD_INPUT)
        if icr >> 8 & 7 not in (NMI_MODE, INIT_MODE, STARTUP_MODE):
            answer = self.ask("ipi", cpu, icr, True, 0, 1, None)
            if answer is None or answer[0] != 0:
                self.end("unmodelled", 0x8000_0015)
            return
        mode, is_assert, is_level = icr >> 8 & 7, icr >> 14 & 1, icr >> 15 & 1
        for target in self.destinations(cpu, icr):
            if self.vm["event"] != "none":
                return  # an NMI made a vCPU run that has nothing to run from
            if mode == NMI_MODE:
                self.nmi(target)
            elif mode == INIT_MODE and (is_assert or not is_level):
                self.send_init(target)
            elif mode == STARTUP_MODE:
                self.vcpus[target]["sipi_vector"] = icr & 0xFF
                self.send_sipi(target)

    def destinations(self, cpu, icr):
        everyone = range(len(self.vcpus))
        shorthand, destination = icr >> 18 & 3, icr >> 32
        if shorthand == 1:
            return [cpu]
        if shorthand == 2:
            return list(everyone)
        if shorthand == 3:
            return [other for other in everyone if other != cpu]
        found = []
        for other in everyone:
            apic_id = self.vcpus[other]["apic_id"]
            logical = apic_id >> 4 << 16 | 1 << (apic_id & 15)
            if destination == U32:
                is_meant = True
            elif icr >> 11 & 1:
                is_meant = destination >> 16 == logical >> 16 and destination & logical & 0xFFFF
            else:
                is_meant = destination == apic_id
            if is_meant:
                found.append(other)
        return found

    # -- VMSAs ----------------------------------------------------------------------------------

    def publish(self, cpu):
        """Show what stands of VMPL 0 in the vCPU's record."""
        vcpu, level = self.vcpus[cpu], self.levels[cpu][0]
        vcpu["vmsa_gpa"], vcpu["vmsa"] = level.gpa, level.state
        if not level.is_waiting:
            vcpu["ap_pending"] = "none"
        elif level.gpa == 0:
            vcpu["ap_pending"] = "destroy"
        else:
            vcpu["ap_pending"] = "now" if self.update_requested[cpu] else "on_init"

    def install(self, cpu):
        """Let a reset take what is recorded; return whether there was anything to take."""
        vcpu = self.vcpus[cpu]
        level = self.levels[cpu][vcpu["vmpl"]]
        if self.guest != "snp" or not level.is_waiting:
            return False
        level.is_waiting = False
        level.state = "guest" if level.gpa else "none"
        level.current = level.gpa
        vcpu["mp_state"] = RUNNABLE if level.gpa else HALTED
        vcpu["entry"] = "vmsa" if level.gpa else "resume"
        self.publish(cpu)
        return True

    def run(self, cpu):
        """The vCPU became runnable: what it meets on its way into the guest."""
        vcpu = self.vcpus[cpu]
        if self.update_requested[cpu]:
            self.update_requested[cpu] = False
            vcpu["nmi_pending"] = 0  # a reset drops it
            if self.install(cpu):
                self.is_fresh[cpu] = vcpu["mp_state"] == RUNNABLE
                if vcpu["mp_state"] == HALTED:
                    return
            self.publish(cpu)
        vcpu["reset_hold"] = "none"
        self.cannot_run(cpu)

    def request_update(self, cpu):
        self.update_requested[cpu] = True
        self.publish(cpu)
        vcpu = self.vcpus[cpu]
        if vcpu["mp_state"] in (HALTED, AP_RESET_HOLD):
            vcpu["mp_state"] = RUNNABLE
        if vcpu["mp_state"] == RUNNABLE:
            self.run(cpu)

    def ap_creation(self, cpu, request):
        operation, apic_id = request.info1 & U32, request.info1 >> 32
        vmpl = 0
        if self.vmpl_in_ap_create:
            vmpl = operation >> 16 & 0xF
            operation &= ~0xF_0000
            if vmpl >= N_VMPLS:
                raise Malformed(BAD_INPUT)
        if self.vmpls == "ignored":
            operation &= 0xFFFF
        targets = [i for i, vcpu in enumerate(self.vcpus) if vcpu["apic_id"] == apic_id]
        if not targets:
            raise Malformed(BAD_INPUT)
        target = targets[0]
        if self.vmpl_in_ap_create:
            self.cl_ap_creation(cpu, target, vmpl, operation, request)
            return
        if operation not in (CREATE_ON_INIT, CREATE, AP_DESTROY):
            raise Malformed(BAD_INPUT)
        if operation != AP_DESTROY:
            if request.regs[RAX] != self.sev_features and not self.features_loose:
                raise Malformed(BAD_INPUT)
            self.check_vmsa_address(request.info2)
        level = self.levels[target][0]
        level.gpa = 0 if operation == AP_DESTROY else request.info2
        level.is_waiting = True
        self.publish(target)
        if operation != CREATE_ON_INIT:
            self.request_update(target)

    def cl_ap_creation(self, cpu, target, vmpl, operation, request):
        """The fork "CL": from here on a refusal takes the target's VMSA away."""
        level = self.levels[target][vmpl]
        level.gpa, level.is_waiting = 0, True
        self.publish(target)
        try:
            if vmpl == 0 and (cpu == target or self.vcpus[cpu]["vmpl"] != 0):
                raise Malformed(BAD_INPUT)
            if operation not in (CREATE_ON_INIT, CREATE, AP_DESTROY):
                raise Malformed(BAD_INPUT)
            if operation != AP_DESTROY:
                features = request.regs[RAX]
                if self.features[vmpl] == 0:
                    self.features[vmpl] = features | 1
                if (features ^ self.features[vmpl]) & INJECTION_MODES:
                    raise Malformed(BAD_INPUT)
                self.check_vmsa_address(request.info2)
                level.gpa = request.info2
                self.publish(target)
        except Malformed:
            self.request_update(target)
            raise
        if operation != CREATE_ON_INIT:
            self.request_update(target)

    def check_vmsa_address(self, gpa):
        if not is_page_address(gpa) or gpa % (1 << 21) == 0:  # erratum of 2 MiB aligned VMSAs
            raise Malformed(BAD_INPUT)

    def run_vmpl(self, cpu, vmpl):
        """Let another VMPL of the vCPU run; return whether it could be."""
        vcpu = self.vcpus[cpu]
        if vmpl >= N_VMPLS:
            return False
        if vmpl == vcpu["vmpl"]:
            return True
        if self.vmpls == "ignored":
            self.levels[cpu][vmpl] = self.levels[cpu][vcpu["vmpl"]]
            vcpu["vmpl"] = vmpl
            return True
        level = self.levels[cpu][vmpl]
        if level.is_waiting:
            level.is_waiting = False
            level.state = "guest" if level.gpa else "none"
            self.publish(cpu)
        if level.state == "none":
            return False
        vcpu["vmpl"] = vmpl
        return True
