"""The core's ``Host`` and the oracle's through the same history, compared after every step.

``Pair`` makes both of one description, gives both the same world, and asserts that they answered
the same: the MSR, every byte of the page, every word of every vCPU, how the VM ended, and what the
world was asked, in which order, with which arguments.
"""

from random import Random

import host_oracle as oracle
import numpy as np
import pytest
from ghcb_oracle import INPUTS, SNP_INPUTS

from ghcbcore import errors
from ghcbcore._cffi import lib
from ghcbcore.device import Device
from ghcbcore.host import Host
from ghcbcore.profile import KVM_MSR_FUNCTIONS, KVM_NAE_EVENTS, Profile

GUESTS = {
    "plain": lib.GHCB_GUEST_PLAIN,
    "sev_es": lib.GHCB_GUEST_SEV_ES,
    "snp": lib.GHCB_GUEST_SNP,
}
# the oracle's words and the core's numbers
WORDS = {
    "event": {
        "none": lib.GHCB_EVENT_NONE,
        "sev_term": lib.GHCB_EVENT_SEV_TERM,
        "shutdown": lib.GHCB_EVENT_SHUTDOWN,
        "einval": lib.GHCB_EVENT_EINVAL,
        "io": lib.GHCB_EVENT_IO,
        "mmio": lib.GHCB_EVENT_MMIO,
        "internal": lib.GHCB_EVENT_INTERNAL,
        "unmodelled": lib.GHCB_EVENT_UNMODELLED,
        "efault": lib.GHCB_EVENT_EFAULT,
    },
    "reset_hold": {
        "none": lib.GHCB_HOLD_NONE,
        "nae": lib.GHCB_HOLD_NAE,
        "msr": lib.GHCB_HOLD_MSR,
    },
    "entry": {
        "resume": lib.GHCB_ENTRY_RESUME,
        "launch": lib.GHCB_ENTRY_LAUNCH,
        "vector": lib.GHCB_ENTRY_VECTOR,
        "vmsa": lib.GHCB_ENTRY_VMSA,
    },
}
CALLS = {
    "vmgexit": lib.GHCB_CALL_VMGEXIT,
    "init": lib.GHCB_CALL_INIT,
    "sipi": lib.GHCB_CALL_SIPI,
    "nmi": lib.GHCB_CALL_NMI,
    "hlt": lib.GHCB_CALL_HLT,
    "shutdown": lib.GHCB_CALL_SHUTDOWN,
    "send_init": lib.GHCB_CALL_SEND_INIT,
    "send_sipi": lib.GHCB_CALL_SEND_SIPI,
    "take_nmi": lib.GHCB_CALL_TAKE_NMI,
}
MP_STATES = {
    lib.GHCB_MP_RUNNABLE: oracle.RUNNABLE,
    lib.GHCB_MP_UNINITIALIZED: oracle.UNINITIALIZED,
    lib.GHCB_MP_INIT_RECEIVED: oracle.INIT_RECEIVED,
    lib.GHCB_MP_HALTED: oracle.HALTED,
    lib.GHCB_MP_AP_RESET_HOLD: oracle.AP_RESET_HOLD,
}
KINDS = {
    "io": lib.GHCB_ACCESS_IO,
    "mmio": lib.GHCB_ACCESS_MMIO,
    "msr": lib.GHCB_ACCESS_MSR,
    "map_gpa": lib.GHCB_ACCESS_MAP_GPA,
    "vmmcall": lib.GHCB_ACCESS_VMMCALL,
    "guest_request": lib.GHCB_ACCESS_GUEST_REQUEST,
    "ext_guest_request": lib.GHCB_ACCESS_EXT_GUEST_REQUEST,
    "pmc": lib.GHCB_ACCESS_PMC,
    "ipi": lib.GHCB_ACCESS_IPI,
}
KIND_NAMES = {number: name for name, number in KINDS.items()}

# In what hosts differ: the rule of the core, and the switch of the oracle for the same.
SWITCHES = {
    "REPLY_UNREGISTERED": {"unregistered": "error"},
    "REGISTER_ON_USE": {"unregistered": "register"},
    "REGISTER_ONCE": {"register_once": True},
    "SCRATCH_IN_PAGE": {"scratch_outside_v2": "deny"},
    "MMIO_8": {"mmio_max_v2": 8},
    "EMPTY_IO": {"empty_string_io": "complete"},
    "GP_SIGN_EXTENDED": {"gp_sign_extended": True},
    "GP_BARE": {"gp_bare": True},
    "AP_VMPL": {"vmpls": "ignored"},
    "AP_FEATURES_LOOSE": {"features_loose": True},
    "XCR0_OPTIONAL": {"xcr0_required": False},
    "INPUT_UNCHECKED": {"inputs_checked": False},
    "UNKNOWN_EINVAL": {"unknown_msr": "einval", "unknown_event": "einval"},
    "MISSING_EINVAL": {"missing_input": "einval"},
    "REPLY_ADDS": {"reply": "adds"},
    "REPLY_ALONE": {"reply": "alone"},
    "REREADS": {},  # shows only together with a fault
    "CODE_32": {"code_bits": 32},
    "PSC_ERROR_ONE": {"psc_error": 1 << 32},
    "IO_IGNORED": {"io_ignored": True},
    "NON_SNP_KEEP": {"non_snp": "keep"},
}
# two rules about one thing: the core asks for the second first
BEATEN = {
    "REPLY_UNREGISTERED": "REGISTER_ON_USE",
    "REPLY_ADDS": "REPLY_ALONE",
}
# requests that KVM does not know: the oracle's word, MSR functions, events
EXTRAS = {
    "doorbell": ((), (0x8000_0014,)),
    "hv_ipi": ((), (0x8000_0015,)),
    "apic_ids": ((), (0x8000_0017,)),
    "run_vmpl": ((0x016,), (0x8000_0018,)),
    "unregister": ((0x018,), ()),
}
MEMORY, MEMORY_END = 0x9_0000, 0xB_2000  # what there is of guest memory


def rule_of(name):
    return getattr(lib, f"GHCB_RULE_{name}")


class World:
    """What is around a VM: answers from a seed, the same on both sides, and what was asked."""

    def __init__(self, seed, kinds, refusals=4):
        self.seed, self.kinds, self.refusals = seed, frozenset(kinds), refusals
        self.asked, self.n_answers = [], 0
        self.bytes = bytearray(Random(seed).randbytes(MEMORY_END - MEMORY))
        for page in range(0, 0x3000, 0x1000):  # messages that ask for a report, and others
            self.bytes[page + 0x34] = 5 if seed >> page // 0x1000 & 1 else 1

    def core(self):
        kinds = [KINDS[kind] for kind in sorted(self.kinds - {"memory"})]
        memory = self.core_memory if "memory" in self.kinds else None
        return Device(kinds, self.core_access if kinds else None, memory)

    def answer(self, n_bytes):
        """Return None to refuse, else bytes and two numbers."""
        self.n_answers += 1
        rng = Random(f"{self.seed} {self.n_answers}")
        if rng.randrange(self.refusals) == 0:
            return None
        return rng.randbytes(n_bytes), rng.getrandbits(64), rng.getrandbits(64)

    # what the core calls

    def core_access(self, kind, cpu, address, is_write, size, count, args, data):
        name, written = KIND_NAMES[kind], None
        if name in ("io", "mmio"):
            assert len(data) == size * count
            written = bytes(data) if is_write else size * count
            args = (size,)
        elif name == "msr":
            assert data is None and (is_write or args[0] == 0)
            written, args = (args[0], ()) if is_write else (None, ())
        elif name == "map_gpa":
            assert args[1:] == (args[0] >> 4 & 1, int(args[0] & 0xF == 1), 0)
            written, args = count, args[:1]
        self.asked.append((name, cpu, address, bool(is_write and written), written, tuple(args)))
        answer = self.answer(size * count if name in ("io", "mmio") else 8)
        if answer is None:
            return None
        if isinstance(data, bytearray):
            data[:] = answer[0]
        return answer[1], answer[2]

    def core_memory(self, gpa, data, is_write):
        got = self.touch(gpa, len(data), bytes(data) if is_write else None)
        if got is not None and not is_write:
            data[:] = got
        return got is not None

    # what the oracle calls

    def access(self, kind, cpu, address, is_write, size, count, data, args):
        written = None
        if kind in ("io", "mmio"):
            written = data if is_write else size * count
            args = (size,)
        elif kind == "msr":
            written = int.from_bytes(data, "little") if is_write else None
        elif kind == "map_gpa":
            written = count
        else:
            args = (*args, 0, 0, 0, 0)[:4]
        if kind == "map_gpa":
            is_write = False
        self.asked.append((kind, cpu, address, bool(is_write and written), written, tuple(args)))
        answer = self.answer(size * count if kind in ("io", "mmio") else 8)
        if answer is None:
            return 1, None
        if kind in ("io", "mmio"):
            return 0, answer[0]
        if kind in ("msr", "pmc"):
            return 0, answer[1].to_bytes(8, "little")
        return 0, answer[1:] if kind.endswith("guest_request") else answer[1]

    def memory(self, gpa, n_bytes, data=None):
        return self.touch(gpa, n_bytes, data)

    def touch(self, gpa, n_bytes, data):
        self.asked.append(("memory", gpa, n_bytes, data))
        if gpa < MEMORY or gpa + n_bytes > MEMORY_END:
            return None
        at = gpa - MEMORY
        if data is None:
            return bytes(self.bytes[at : at + n_bytes])
        self.bytes[at : at + n_bytes] = data
        return True


class Words:
    """A record of the core whose fields read, and are written, in the words of the oracle."""

    def __init__(self, record):
        self.record = record

    def __getitem__(self, name):
        if name == "vmsa_gpa":
            name = "next_vmsa" if self.record["vmsa_pending"] & lib.GHCB_VMSA_ON_INIT else "vmsa"
            gpa = int(self.record[name])
            return 0 if gpa == lib.GHCB_VMSA_NONE else gpa
        value = int(self.record[name] if name != "ap_pending" else self.record["vmsa_pending"])
        if name == "ap_pending":
            if not value & lib.GHCB_VMSA_ON_INIT:
                return "none"
            return "now" if value & lib.GHCB_VMSA_ON_RUN else "on_init"
        if name == "vmsa":
            return {lib.GHCB_VMSA_LAUNCH: "launch", lib.GHCB_VMSA_NONE: "none"}.get(value, "guest")
        if name in WORDS:
            return {number: word for word, number in WORDS[name].items()}[value]
        return value

    def __setitem__(self, name, value):
        self.record[name] = WORDS[name][value] if name in WORDS else value


class CoreSide:
    """The core's host with the face of the oracle's, and a device of the oracle's kind."""

    def __init__(self, guest, n, device=None, *, rules=(), extra=(), **common):
        core = None
        if device is not None:
            core = Device([KINDS[k] for k in device.kinds if k in KINDS], self.access, self.memory)
        self.device = device
        msr = [code for name in extra for code in EXTRAS[name][0]]
        nae = [code for name in extra for code in EXTRAS[name][1]]
        profile = Profile(
            guest=GUESTS[guest],
            rules=[rule_of(name) for name in rules],
            msr_functions=(*KVM_MSR_FUNCTIONS, *msr),
            nae_events=(*KVM_NAE_EVENTS, *nae),
            **common,
        )
        self.host = Host(profile, n, core)
        self.vm = Words(self.host.vm[0])
        self.vcpus = [Words(self.host.vcpus[cpu]) for cpu in range(n)]
        self.msr = self.host.msr

    def page(self, cpu, content, gpa):
        self.host.page(cpu, np.frombuffer(content, np.uint8), gpa)

    def access(self, kind, cpu, address, is_write, size, count, args, data):
        name, given = KIND_NAMES[kind], data if is_write else None
        if name == "msr" and is_write:
            given, args = args[0].to_bytes(8, "little"), ()
        arguments = args if name not in ("io", "mmio", "msr", "pmc") else ()
        status, result = self.device.access(
            name, cpu, address, is_write, size, count, given, arguments
        )
        if status:
            return None
        if isinstance(data, bytearray):
            data[:] = result
        if isinstance(result, bytes):
            return int.from_bytes(result[:8], "little")
        return 0 if result is None else result

    def memory(self, gpa, data, is_write):
        got = self.device.memory(gpa, len(data), bytes(data) if is_write else None)
        if got is not None and not is_write:
            data[:] = got
        return got is not None


def differences(ours, theirs):
    """Offsets at which two pages differ, with both bytes: what a failing example shows."""
    return [(hex(at), a, b) for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b][
        :16
    ]


class Pair:
    """A core host and an oracle's of one description.

    ``rules``: names of ``GHCB_RULE_*``; ``extra``: keys of ``EXTRAS``; ``kinds``: what the world
    answers, None for no world; ``without``: MSR functions and events that this host lacks; the
    rest are arguments that ``Profile`` and the oracle share.
    """

    world = World

    def __init__(
        self, guest="sev_es", n=1, *, rules=(), extra=(), kinds=None, seed=0, without=(), **common
    ):
        self.guest, self.n = guest, n
        self.ours_world = self.theirs_world = None
        if kinds is not None:
            self.ours_world = self.world(seed, kinds)
            self.theirs_world = self.world(seed, kinds)
        if "run_vmpl" in extra:
            rules = {*rules, "AP_VMPL"}  # the core knows one VMSA for each vCPU
        msr = [code for name in extra for code in EXTRAS[name][0]] + list(KVM_MSR_FUNCTIONS)
        nae = [code for name in extra for code in EXTRAS[name][1]] + list(KVM_NAE_EVENTS)
        msr, nae = ([code for code in codes if code not in without] for codes in (msr, nae))
        switches = {}
        for name in sorted(rules, key=lambda name: name in BEATEN.values()):
            switches |= SWITCHES[name]
        common.setdefault("sev_features", int(guest == "snp"))
        self.description = {
            "guest": GUESTS[guest],
            "max_version": common.get("max_version", 2),
            "sev_features": common["sev_features"],
            "rules": sum(1 << rule_of(name) for name in rules),
            "msr": msr,
            "nae": nae,
        }
        profile = Profile(
            guest=GUESTS[guest],
            rules=[rule_of(name) for name in rules],
            msr_functions=msr,
            nae_events=nae,
            **common,
        )
        # the device is kept by the host; the world keeps what was asked
        world = self.ours_world.core() if self.ours_world else None
        self.host = Host(profile, n, world)
        self.model = oracle.HostOracle(
            guest=guest,
            n=n,
            device=self.theirs_world,
            extra=set(extra),
            msr_functions=set(msr),
            events=set(nae),
            **switches,
            **common,
        )
        self.compare()

    # -- steps; each compares

    def both(self, ours, theirs):
        """Do the same on both sides; either both answer or both refuse."""
        try:
            wanted = theirs()
        except oracle.Ended:
            with pytest.raises(errors.StateConflict, match="ended"):
                ours()
        else:
            assert ours() == wanted
            self.compare()

    def executes(self, cpu):
        """The guest's role: whoever entered it set back how it is to be entered."""
        self.write(cpu, entry="resume")

    def msr(self, cpu, value):
        self.executes(cpu)
        self.both(lambda: self.host.msr(cpu, value), lambda: self.model.msr(cpu, value))

    def page(self, cpu, content, gpa):
        """Let both answer ``content`` (bytearray of 4096); return it as it was answered."""
        self.executes(cpu)
        got = np.frombuffer(content, np.uint8).copy()
        wanted = bytearray(content)
        self.both(lambda: self.host.page(cpu, got, gpa), lambda: self.model.page(cpu, wanted, gpa))
        assert not differences(got.tolist(), wanted)
        return wanted

    def call(self, cpu, what):
        if what in ("vmgexit", "hlt"):
            self.executes(cpu)
        self.both(lambda: self.host.call(cpu, CALLS[what]), lambda: getattr(self.model, what)(cpu))

    def write(self, cpu, **fields):
        """Put the same into both records; words as the oracle has them."""
        self.model.vcpus[cpu] |= fields
        for name, value in fields.items():
            self.host.vcpus[name][cpu] = WORDS[name][value] if name in WORDS else value

    def register(self, cpu, gpa):
        self.write(cpu, registered_gpa=gpa)

    def put(self, gpa, data):
        """The guest writes to its memory, if there is any."""
        for world in (self.ours_world, self.theirs_world):
            if world:
                world.bytes[gpa - MEMORY : gpa - MEMORY + len(data)] = data

    def go_on(self):
        """User space lets the VM go on, whatever happened."""
        self.model.vm |= {"event": "none", "event_data": 0}
        self.host.vm["event"] = self.host.vm["event_data"] = 0

    @property
    def event(self):
        return self.model.vm["event"]

    # -- comparison

    def told(self, cpu):
        """The oracle's vCPU in the words of the core."""
        record, level = self.model.vcpus[cpu], self.model.levels[cpu][0]
        words = {
            name: WORDS[name][value] if name in WORDS else value for name, value in record.items()
        }
        del words["apic_id"], words["vmsa_gpa"], words["ap_pending"]
        state = {"launch": lib.GHCB_VMSA_LAUNCH, "none": lib.GHCB_VMSA_NONE}
        words["vmsa"] = state.get(level.state, level.current)
        waits = lib.GHCB_VMSA_ON_INIT if level.is_waiting else 0
        kicked = lib.GHCB_VMSA_ON_RUN if self.model.update_requested[cpu] else 0
        words["vmsa_pending"] = waits | kicked
        words["next_vmsa"] = level.gpa if level.is_waiting and level.gpa else lib.GHCB_VMSA_NONE
        words["extra_wakes"] = 0
        return words

    def compare(self):
        vm = {name: int(self.host.vm[name][0]) for name in self.host.vm.dtype.names}
        wanted = dict(self.model.vm, n_draws=0, n_faults=0, last_fault=0)
        wanted["event"] = WORDS["event"][wanted["event"]]
        assert vm == wanted
        for cpu in range(self.n):
            row = self.host.vcpus[cpu]
            got = {name: int(row[name]) for name in row.dtype.names}
            assert got == self.told(cpu), f"vCPU {cpu}"
        if self.ours_world:
            assert self.ours_world.asked == self.theirs_world.asked
            self.ours_world.asked.clear()
            self.theirs_world.asked.clear()
            assert self.ours_world.bytes == self.theirs_world.bytes


EVENTS = [*INPUTS, *SNP_INPUTS, *(code for _, codes in EXTRAS.values() for code in codes)]
