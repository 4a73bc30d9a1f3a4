"""What becomes of vCPUs: the core and the oracle through random histories, and named ones."""

from random import Random

import host_oracle as oracle
import pytest
from host_oracle import CODE, INFO1, INFO2, RAX
from host_pair import EXTRAS, KINDS, MP_STATES, Pair
from host_requests import (
    EDGES,
    SEEDS,
    UNKNOWN_EVENTS,
    any_word,
    msr_value,
    profiles,
    random_page,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ghcbcore._cffi import lib

ALL = (*KINDS, "memory")
CPUS = st.integers(0, 2)
GPA = 0x7000


def ap_creation(operation, target, vmsa, features=1):
    page = oracle.Page(bytearray(4096))
    fields = {CODE: 0x8000_0013, INFO1: target << 32 | operation, INFO2: vmsa, RAX: features}
    for offset, value in fields.items():
        page.store(offset, value)
        page.mark_valid(offset)
    return page.content


class HostMachine(RuleBasedStateMachine):
    """Everything that can happen to a VM of three vCPUs, in any order."""

    @initialize(
        profile=profiles(),
        guest=st.sampled_from(["sev_es", "snp", "snp", "plain"]),
        seed=SEEDS,
        kinds=st.sampled_from([None, ALL, ALL]) | st.sets(st.sampled_from(ALL)),
        extra=st.sets(st.sampled_from(sorted(EXTRAS))),
    )
    def boot(self, profile, guest, seed, kinds, extra):
        self.sev_es = guest != "plain"
        self.pair = Pair(guest, 3, kinds=kinds, seed=seed, extra=sorted(extra), **profile)
        for cpu in range(3):
            self.pair.register(cpu, GPA)

    @rule(cpu=CPUS, seed=SEEDS)
    @precondition(lambda self: self.sev_es)
    def msr(self, cpu, seed):
        self.pair.msr(cpu, msr_value(Random(seed), GPA))

    @rule(cpu=CPUS, seed=SEEDS, gpa=st.sampled_from([GPA, GPA, GPA, 0x4E1_4000]))
    @precondition(lambda self: self.sev_es)
    def page(self, cpu, seed, gpa):
        self.pair.page(cpu, random_page(Random(seed), gpa), gpa)

    @rule(
        cpu=CPUS,
        operation=st.sampled_from([0, 1, 1, 2]),
        ap=CPUS,
        vmsa=st.sampled_from([0x5000, 0x6000]),
    )
    @precondition(lambda self: self.sev_es)
    def ap_is_created_or_destroyed(self, cpu, operation, ap, vmsa):
        features = self.pair.model.sev_features
        self.pair.page(cpu, ap_creation(operation, ap, vmsa, features), GPA)

    @rule(cpu=CPUS, seed=SEEDS, code=st.sampled_from([*oracle.INPUTS, 0x8000_0013]), info1=EDGES)
    @precondition(lambda self: self.sev_es)
    def vmgexit_from_the_record(self, cpu, seed, code, info1):
        rng = Random(seed)
        self.pair.write(
            cpu,
            msr=rng.choice([GPA, GPA, 0x4E1_4000, msr_value(rng)]),
            sw_exit_code=rng.choice([code, code, rng.choice(UNKNOWN_EVENTS)]),
            sw_exit_info_1=rng.choice([info1, 0x3F8_0210, 0x402_021C, 1 << 32 | 1]),
            sw_exit_info_2=rng.choice([0x5000, 0x6000, any_word(rng)]),
        )
        self.pair.call(cpu, "vmgexit")

    @rule(cpu=CPUS, what=st.sampled_from(["init", "sipi", "nmi", "hlt", "take_nmi", "send_init"]))
    def happens(self, cpu, what):
        self.pair.call(cpu, what)

    @rule(cpu=CPUS, vector=st.integers(0, 255))
    def a_startup_is_sent(self, cpu, vector):
        self.pair.write(cpu, sipi_vector=vector)
        self.pair.call(cpu, "send_sipi")

    @rule(cpu=CPUS)
    def an_ap_is_started(self, cpu):
        for what in ("send_init", "init", "send_sipi", "sipi", "send_sipi", "sipi"):
            self.pair.call(cpu, what)

    @rule(cpu=CPUS, by_page=st.booleans())
    @precondition(lambda self: self.sev_es)
    def an_ap_is_parked(self, cpu, by_page):
        fields = {"sw_exit_code": 0x8000_0004, "sw_exit_info_1": 0, "sw_exit_info_2": 0}
        self.pair.write(cpu, msr=GPA if by_page else 0x006, **fields)
        self.pair.call(cpu, "vmgexit")

    @rule(cpu=CPUS)
    def a_vcpu_shuts_down(self, cpu):
        self.pair.call(cpu, "shutdown")

    @rule()
    @precondition(lambda self: self.pair.event != "none")
    def user_space_lets_the_vm_go_on(self):
        self.pair.go_on()

    @rule(cpu=CPUS, state=st.sampled_from(sorted(MP_STATES)))
    def user_space_sets_the_mp_state(self, cpu, state):
        self.pair.write(cpu, mp_state=state)


TestHostMachine = HostMachine.TestCase
TestHostMachine.settings = settings(stateful_step_count=40, max_examples=60)

STEPS = ["init", "sipi", "nmi", "hlt", "send_init", "send_sipi", "take_nmi", "start", "shutdown"]
SEV_ES_STEPS = ["hold", "hold", "msr", "complete", "ipi", "stray"]
SNP_STEPS = ["create", "create", "create", "destroy", "on_init", "create_from_record"]


def history(pair, rng, n):
    """Send a pair through ``n`` steps that lead somewhere."""
    steps = STEPS + (SEV_ES_STEPS if pair.guest != "plain" else [])
    steps += SNP_STEPS if pair.guest == "snp" else []
    for cpu in range(pair.n):
        pair.register(cpu, GPA)
    for what in ("send_init", "init", "send_sipi", "sipi") * 2:
        pair.call(1, what)  # the second time it is not launched
    for _ in range(n):
        cpu, step = rng.randrange(pair.n), rng.choice(steps)
        if step == "start":
            for what in ("send_init", "init", "send_sipi", "sipi"):
                pair.call(cpu, what)
        elif step == "hold":
            fields = {"sw_exit_code": 0x8000_0004, "sw_exit_info_1": 0, "sw_exit_info_2": 0}
            pair.write(cpu, msr=rng.choice([GPA, 0x006]), **fields)
            pair.call(cpu, "vmgexit")
        elif step == "complete":
            page = oracle.Page(bytearray(4096))
            page.store(CODE, 0x8000_0003)
            for offset in (CODE, INFO1, INFO2):
                page.mark_valid(offset)
            pair.page(cpu, page.content, GPA)
        elif step == "stray":  # a page that an SNP guest did not register
            if rng.random() < 0.5:
                pair.page(cpu, ap_creation(1, 0, 0x5000), 0x8000)
            else:
                fields = {"sw_exit_code": 0x89, "sw_exit_info_1": 7, "sw_exit_info_2": 8}
                pair.write(cpu, msr=0x8000, **fields)
                pair.call(cpu, "vmgexit")
        elif step == "create_from_record":
            info1 = rng.randrange(pair.n) << 32 | rng.randrange(3)
            fields = {"sw_exit_code": 0x8000_0013, "sw_exit_info_1": info1}
            pair.write(cpu, msr=GPA, sw_exit_info_2=0x6000, **fields)
            pair.call(cpu, "vmgexit")
        elif step == "msr":
            pair.msr(cpu, rng.choice([0, 0x080, 0xFFF]))
        elif step == "ipi":
            page = oracle.Page(bytearray(4096))
            to = rng.choice([0, 1, 2, 2**32 - 1, 0x3, 0x1_0001])
            icr = to << 32 | rng.randrange(4) << 18 | rng.choice([4, 5, 6]) << 8 | 0x4000
            for offset, value in (
                (CODE, 0x8000_0015),
                (INFO1, icr | rng.choice([0, 0x800])),
                (INFO2, 0),
            ):
                page.store(offset, value)
                page.mark_valid(offset)
            pair.page(cpu, page.content, GPA)
        elif step in ("create", "destroy", "on_init"):
            operation = {"on_init": 0, "create": 1, "destroy": 2}[step]
            pair.page(cpu, ap_creation(operation, rng.randrange(pair.n), 0x5000), GPA)
        else:
            pair.call(cpu, step)
        pair.go_on()


@pytest.mark.parametrize("guest", ["plain", "sev_es", "snp"])
@given(SEEDS)
@settings(max_examples=25)
def test_a_long_history_of_startups_holds_and_nmis_is_the_oracle_s(guest, seed):
    """Two hundred steps from a seed; user space lets the VM go on."""
    history(Pair(guest, 3, extra=["hv_ipi"]), Random(seed), 200)


@pytest.mark.slow
@pytest.mark.parametrize("guest", ["plain", "sev_es", "snp"])
def test_very_long_histories_are_the_oracle_s(guest):
    for seed in range(30):
        history(Pair(guest, 3, extra=["hv_ipi"]), Random(seed), 2000)


# -- what SNP adds to an AP's life, step by step


def snp():
    pair = Pair("snp", 2)
    pair.register(0, GPA)
    pair.register(1, GPA)
    return pair


def state(pair):
    row = pair.host.vcpus[1]
    return tuple(int(row[name]) for name in ("mp_state", "entry", "vmsa", "vmsa_pending"))


def test_an_ap_that_never_ran_gets_its_vmsa_only_after_init():
    """KVM asks the vCPU for the reset where it is about to enter the guest, and it never is."""
    pair = snp()
    pair.page(0, ap_creation(1, 1, 0x5000), GPA)
    both = lib.GHCB_VMSA_ON_INIT | lib.GHCB_VMSA_ON_RUN
    resume, vmsa = lib.GHCB_ENTRY_RESUME, lib.GHCB_ENTRY_VMSA
    assert state(pair) == (lib.GHCB_MP_UNINITIALIZED, resume, 0, both)
    for what in ("send_init", "init"):
        pair.call(1, what)
    assert state(pair) == (lib.GHCB_MP_INIT_RECEIVED, vmsa, 0x5000, lib.GHCB_VMSA_ON_RUN)
    for what in ("send_sipi", "sipi"):
        pair.call(1, what)
    assert state(pair) == (lib.GHCB_MP_RUNNABLE, vmsa, 0x5000, 0)


def test_create_now_between_init_and_startup_takes_effect_at_the_startup():
    pair = snp()
    for what in ("send_init", "init"):
        pair.call(1, what)
    pair.page(0, ap_creation(1, 1, 0x5000), GPA)
    assert pair.host.vcpus[1]["vmsa"] == 0
    for what in ("send_sipi", "sipi"):
        pair.call(1, what)
    assert state(pair) == (lib.GHCB_MP_RUNNABLE, lib.GHCB_ENTRY_VMSA, 0x5000, 0)


@pytest.mark.parametrize("how", ["nmi", "startup"])
def test_a_destroyed_ap_ends_the_run_when_it_is_woken(how):
    pair = snp()
    pair.write(1, mp_state=oracle.RUNNABLE)
    pair.page(0, ap_creation(2, 1, 0), GPA)
    assert state(pair)[0] == lib.GHCB_MP_HALTED and state(pair)[2] == lib.GHCB_VMSA_NONE
    for what in {"nmi": ["nmi"], "startup": ["send_init", "init", "send_sipi", "sipi"]}[how]:
        assert pair.event == "none"
        pair.call(1, what)
    assert pair.event == "einval"
    assert pair.host.vm["event_data"] == lib.GHCB_VMSA_NONE


def test_a_destroyed_ap_that_user_space_lets_run_ends_the_run():
    pair = snp()
    pair.write(1, mp_state=oracle.RUNNABLE)
    pair.page(0, ap_creation(2, 1, 0), GPA)
    pair.write(1, mp_state=oracle.RUNNABLE)
    pair.msr(1, 0x002)
    assert pair.event == "einval" and int(pair.host.vcpus[1]["msr"]) == 0x002
    pair.go_on()
    content = ap_creation(1, 1, 0x5000)
    assert pair.page(1, bytearray(content), GPA) == content
    assert pair.event == "einval"


def test_init_lets_the_boot_cpu_run_on_and_forgets_its_hold_and_its_nmi():
    pair = snp()
    pair.write(0, nmi_masked=1)
    pair.msr(0, 0x006)
    pair.write(0, nmi_pending=1)
    pair.call(0, "send_init")
    pair.call(0, "init")
    row = pair.host.vcpus[0]
    assert (row["mp_state"], row["reset_hold"], row["nmi_pending"]) == (0, lib.GHCB_HOLD_NONE, 0)


def test_an_nmi_wakes_a_vcpu_that_has_nmis_masked_once():
    pair = snp()
    pair.call(0, "nmi")
    pair.call(0, "take_nmi")
    pair.call(0, "hlt")
    assert pair.host.vcpus[0]["mp_state"] == lib.GHCB_MP_HALTED
    pair.call(0, "nmi")
    assert pair.host.vcpus[0]["mp_state"] == lib.GHCB_MP_RUNNABLE
    pair.call(0, "hlt")  # it is pending, but it may not be taken
    assert pair.host.vcpus[0]["mp_state"] == lib.GHCB_MP_HALTED
