"""Faults by name: each happens, does what its words say, and never without being asked."""

import numpy as np
import pytest

from ghcbcore._cffi import ffi, lib
from ghcbcore.host import Host as CoreHost
from ghcbcore.profile import Profile
from pysev import Host
from pysev.device import Device
from pysev.host import Guest, Hold, MpState, VmEnded
from pysev.tables.hosts import FAULTS

GPA = 0x7000
NAMES = [row.name for row in FAULTS]
VALID_EXIT = 0x001C_0000_0000_0000


def page_of(code, info_1=0, info_2=0, scratch=None, **registers):
    page = np.zeros(lib.GHCB_PAGE_SIZE, np.uint8)
    words = page.view(np.uint64)
    fields = {"SW_EXIT_CODE": code, "SW_EXIT_INFO_1": info_1, "SW_EXIT_INFO_2": info_2}
    fields |= {name.upper(): value for name, value in registers.items()}
    if scratch is not None:
        fields["SW_SCRATCH"] = scratch
    bitmap = 0
    for name, value in fields.items():
        words[getattr(lib, f"GHCB_OFF_{name}") // 8] = value
        bitmap |= 1 << getattr(lib, f"GHCB_VALID_{name}")
    words[lib.GHCB_OFF_VALID_BITMAP // 8] = bitmap & 2**64 - 1
    words[lib.GHCB_OFF_VALID_BITMAP // 8 + 1] = bitmap >> 64
    return page


def field(page, name):
    return int(page.view(np.uint64)[getattr(lib, f"GHCB_OFF_{name}") // 8])


def answer(host, page, cpu=0):
    """Return INFO1 and INFO2 of the reply."""
    host.core.page(cpu, page, GPA)
    return field(page, "SW_EXIT_INFO_1"), field(page, "SW_EXIT_INFO_2")


class Grants(Device):
    def __init__(self):
        self.granted = []

    def map_gpa(self, gpa, n_pages, private, large):
        self.granted.append((gpa, n_pages))
        return True


def hostile(*faults, guest=Guest.SEV_ES, cpus=2, **more):
    host = Host(cpus, guest=guest, faults=faults, **more)
    host.core.vcpus["registered_gpa"] = GPA
    return host


def psc_page(n):
    page = page_of(lib.GHCB_NAE_PSC, scratch=GPA + 0x800)
    words = page[0x800:0xFF0].view(np.uint64)
    words[0] = n - 1 << 16
    words[1 : 1 + n] = [1 << 52 | 2 * i << 12 for i in range(n)]  # a gap behind each: n requests
    return page


def test_every_fault_has_one_name_and_the_table_has_all():
    assert sorted(row.code for row in FAULTS) == list(range(lib.GHCB_FAULT_END))
    assert len(set(NAMES)) == len(NAMES)


# -- what each does


def test_wrong_answer_is_one_bit_of_the_msr():
    wanted, seen = hostile().vmgexit(0, 0x002), set()
    for seed in range(40):
        host = hostile("wrong-answer", seed=seed)
        seen.add(host.vmgexit(0, 0x002) ^ wanted)
        assert host.last_fault == "wrong-answer" and host.n_faults == 1
    assert all(bits.bit_count() == 1 for bits in seen) and len(seen) > 10


def test_wrong_answer_is_one_bit_of_rax_or_else_of_info_2():
    cpuid = [(1, 0, 0x11, 0x22, 0x33, 0x44)]
    for seed in range(20):
        host = hostile("wrong-answer", seed=seed, cpuid=cpuid)
        page = page_of(lib.GHCB_NAE_CPUID, rax=1, rcx=0)
        assert answer(host, page) == (0, 0)
        assert (field(page, "RAX") ^ 0x11).bit_count() == 1
        assert [field(page, name) for name in ("RBX", "RCX", "RDX")] == [0x22, 0x33, 0x44]
        info_1, info_2 = answer(host, page_of(lib.GHCB_NAE_HV_FEATURES))
        assert info_1 == 0 and (info_2 ^ 3).bit_count() == 1


def test_wrong_answer_leaves_refusals_and_holds_alone():
    host = hostile("wrong-answer")
    assert answer(host, page_of(0x78)) == (2, 6)
    assert host.vmgexit(1, 0x006) == 0x007
    assert answer(host, page_of(lib.GHCB_NAE_AP_RESET_HOLD)) == (0, 0)
    assert host.n_faults == 0


def test_refused_feature_takes_bits_of_the_features_and_adds_none():
    seen = set()
    for seed in range(20):
        host = hostile("refused-feature", seed=seed, hv_features=0xFF)
        seen.add(host.vmgexit(0, 0x080) >> 12)
    assert len(seen) > 5 and not any(bits & ~0xFF for bits in seen)


def test_refused_feature_refuses_registration_page_state_and_events():
    device = Grants()
    host = hostile("refused-feature", guest=Guest.SNP, device=device)
    assert host.vmgexit(0, GPA | 0x012) == 0xFFFF_FFFF_FFFF_F013
    assert host.vmgexit(0, 0x0010_0000_1234_5014) == 0x8000_0000_0000_0015
    assert answer(host, page_of(lib.GHCB_NAE_AP_JUMP_TABLE, 1)) == (2, 6)
    assert answer(host, page_of(lib.GHCB_NAE_WBINVD)) == (0, 0)  # older than the features
    assert device.granted == [] and host.vcpu(0).registered_gpa == GPA


def test_refused_feature_stops_a_page_state_change_with_an_error():
    """The event itself is let through by a rate; what it asks for is refused."""
    seen = set()
    for seed in range(60):
        host = hostile("refused-feature", guest=Guest.SNP, device=Grants(), seed=seed, fault_rate=4)
        seen.add(answer(host, psc_page(3)))
    assert {(0, 0), (2, 6), (0, 0x100 << 32)} == seen


def test_lost_wakeup_loses_startup_nmi_and_ap_creation():
    host = hostile("lost-wakeup", guest=Guest.SNP)
    host.send_init(1)
    host.send_startup(1, 0x9A)
    assert host.vcpu(1).mp_state is MpState.INIT_RECEIVED
    host.halt(0)
    host.send_nmi(0)
    assert host.vcpu(0).mp_state is MpState.HALTED
    assert int(host.core.vcpus["nmi_pending"][0]) == 0
    host.core.vcpus["mp_state"][1] = MpState.HALTED
    creation = page_of(lib.GHCB_NAE_SNP_AP_CREATION, 1 << 32 | 1, 0x5000, rax=1)
    assert answer(host, creation) == (0, 0)
    assert host.vcpu(1).mp_state is MpState.HALTED and host.vcpu(1).vmsa == 0
    assert host.n_faults == 3


def test_duplicated_wakeup_ends_the_next_hold_at_once_as_released():
    host = hostile("duplicated-wakeup")
    for _ in range(2):
        host.send_init(1)
        host.send_startup(1, 0x9A)
        answered = host.vmgexit(1, 0x006)
        host.vmgexit(1, 0x006)
    # the first STARTUP used the launch VMSA; the second released a hold, and the next one too
    assert answered == 0x1007
    assert host.vcpu(1).hold is Hold.MSR and host.n_faults == 1


def test_duplicated_wakeup_ends_a_hold_by_page_as_released():
    host = hostile("duplicated-wakeup")
    host.core.vcpus["extra_wakes"][1] = 1
    assert answer(host, page_of(lib.GHCB_NAE_AP_RESET_HOLD), 1) == (0, 1)
    assert host.vcpu(1).hold is Hold.NONE
    assert answer(host, page_of(lib.GHCB_NAE_AP_RESET_HOLD), 1) == (0, 0)
    assert host.vcpu(1).hold is Hold.NAE


def test_early_resume_ends_a_hold_at_once_not_released():
    host = hostile("early-resume")
    assert host.vmgexit(0, 0x006) == 0x007
    assert host.vcpu(0).mp_state is MpState.RUNNABLE and host.vcpu(0).hold is Hold.NONE
    assert answer(host, page_of(lib.GHCB_NAE_AP_RESET_HOLD)) == (0, 0)
    assert host.vcpu(0).mp_state is MpState.RUNNABLE


def test_partial_psc_stops_before_the_end_without_an_error():
    cursors = set()
    for seed in range(200):
        device = Grants()
        host = hostile("partial-psc", guest=Guest.SNP, device=device, seed=seed, fault_rate=4)
        page = psc_page(6)
        assert answer(host, page) == (0, 0)
        cursor = int(page[0x800:0x802].view(np.uint16)[0])
        assert device.granted == [(0x2000 * i, 1) for i in range(cursor)]
        assert (cursor < 6) == (host.n_faults == 1)
        cursors.add(cursor)
    assert cursors == set(range(7))


def test_injected_exception_comes_instead_of_an_answer_and_nothing_is_done():
    seen = set()
    for seed in range(200):
        host = hostile("injected-exception", seed=seed)
        info_1, info_2 = answer(host, page_of(lib.GHCB_NAE_AP_JUMP_TABLE, 0, 0x9000))
        assert info_1 == 1 and info_2 >> 31 == 1 and info_2 & 0x7FFF_F800 == 0
        assert host.jump_table == 0
        seen.add((info_2 & 0xFF, info_2 >> 8 & 7))
    assert {(13, 3), (6, 3)} < seen  # #GP and #UD, and others that a guest must not take
    assert len(seen) > 40


def test_older_version_offers_the_lowest():
    host = hostile("older-version", min_version=1, max_version=2)
    assert host.vmgexit(0, 0x002) == 0x0001_0001_3300_0001
    assert host.vcpu(1).msr == 0x0002_0001_3300_0001  # a reset does not lie


def test_changed_ghcb_alone_changes_the_page_but_not_what_was_read():
    """A host that reads once answers what it was asked, whatever the page says by then."""
    for seed in range(30):
        host = hostile("changed-ghcb", seed=seed)
        page = page_of(lib.GHCB_NAE_AP_JUMP_TABLE, 0, 0x9000)
        assert answer(host, page) == (0, 0)
        assert host.jump_table == 0x9000 and host.n_faults == 1


def test_changed_ghcb_misleads_a_host_that_reads_twice():
    told = set()
    for seed in range(60):
        host = hostile("changed-ghcb", host="double-fetch", seed=seed)
        page = page_of(lib.GHCB_NAE_AP_JUMP_TABLE, 0, 0x9000)
        host.core.page(0, page, GPA)
        told.add((host.jump_table, int(host.core.vm["event"][0])))
    assert (0x9000, 0) in told and len(told) > 5


def test_a_host_that_reads_twice_is_kvm_as_long_as_nothing_changes():
    host = hostile(host="double-fetch")
    assert answer(host, page_of(lib.GHCB_NAE_AP_JUMP_TABLE, 0, 0x9000)) == (0, 0)
    assert host.jump_table == 0x9000


# -- never unasked, and the same again

REQUESTS = [
    page_of(lib.GHCB_NAE_CPUID, rax=1, rcx=0),
    page_of(lib.GHCB_NAE_HV_FEATURES),
    page_of(lib.GHCB_NAE_AP_JUMP_TABLE, 0, 0x9000),
    page_of(lib.GHCB_NAE_AP_RESET_HOLD),
    page_of(lib.GHCB_NAE_SNP_AP_CREATION, 1 << 32 | 1, 0x5000, rax=1),
    psc_page(5),
    page_of(0x78),
    page_of(lib.GHCB_NAE_IOIO, 0x0402_0210, rax=0x41),
]
MSRS = [0x002, 0x006, 0x080, 0x010, GPA | 0x012, 0x0010_0000_1234_5014, 0xFFF]


def run(host, n=300):
    """Ask everything again and again; return all that can be seen."""
    seen = []
    for i in range(n):
        cpu = i % 2
        page = REQUESTS[i % len(REQUESTS)].copy()
        host.core.page(cpu, page, GPA)
        host.core.vm["event"] = 0
        seen.append(page.tobytes())
        seen.append(host.core.msr(cpu, MSRS[i % len(MSRS)]))
        host.core.vm["event"] = 0
        host.core.vcpus["registered_gpa"] = GPA
        host.core.vcpus["vmsa"] = 0
        host.send_nmi(cpu)
        host.take_nmi(cpu)
        host.core.vcpus["nmi_masked"] = 0
        host.send_init(cpu)
        host.send_startup(cpu, 1)
        host.core.vm["event"] = 0
        seen.append(host.core.vcpus.tobytes())
    return seen


def snp(*faults, **more):
    return hostile(*faults, guest=Guest.SNP, device=Grants(), **more)


def test_no_fault_happens_unasked_and_none_is_drawn():
    host = snp(seed=5, fault_rate=1)
    run(host)
    assert (host.n_faults, host.last_fault, int(host.core.vm["n_draws"][0])) == (0, "", 0)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_fault_that_was_asked_for_happens(name):
    host = snp(name, seed=3, fault_rate=2)
    run(host)
    assert host.n_faults > 0 and host.last_fault == name


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_is_the_same_run_and_another_is_another(name):
    def seen(seed):
        host = snp(name, seed=seed, fault_rate=3)
        return run(host), host.n_faults, int(host.core.vm["n_draws"][0])

    assert seen(1) == seen(1)
    if name not in ("changed-ghcb",):  # which a host that reads once does not show in its answer
        assert seen(1) != seen(2)


@pytest.mark.parametrize("rate", [1, 2, 7, 50])
def test_a_fault_happens_one_time_in_so_many(rate):
    host = snp("older-version", seed=11, fault_rate=rate)
    n = 4000
    host.vmgexit_many(np.zeros(n, np.uint32), np.full(n, 0x002, np.uint64))
    assert int(host.core.vm["n_draws"][0]) == n
    if rate == 1:
        assert host.n_faults == n
    sigma = (n * (1 / rate) * (1 - 1 / rate)) ** 0.5
    assert abs(host.n_faults - n / rate) <= 4 * sigma


def test_the_rate_has_all_its_32_bits():
    host = snp("older-version", fault_rate=2**32 - 1)
    host.vmgexit_many(np.zeros(1000, np.uint32), np.full(1000, 0x002, np.uint64))
    assert host.n_faults == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_page_after_all_faults_at_once_is_still_a_page(seed):
    """Bytes around it stay, and so do those inside that no host writes to."""
    rng = np.random.default_rng(seed)
    host = snp(*NAMES, seed=seed, host=["kvm", "double-fetch"][seed % 2], fault_rate=2)
    around = np.full(3 * 4096, 0xA5, np.uint8)
    for i in range(400):
        inside = around[4096:8192]
        inside[:] = REQUESTS[i % len(REQUESTS)]
        if i % 3 == 0:
            inside[:] = rng.integers(0, 256, 4096, np.uint8)
        before = inside.copy()
        host.core.page(i % 2, inside, GPA)
        host.core.vm["event"] = 0
        host.core.vcpus["vmsa"] = 0
        assert (around[:4096] == 0xA5).all() and (around[8192:] == 0xA5).all()
        changed = {8 * int(at) for at in np.flatnonzero(inside.view("u8") != before.view("u8"))}
        names = ("RAX", "RBX", "RCX", "RDX", "SW_EXIT_CODE", "SW_EXIT_INFO_1", "SW_EXIT_INFO_2")
        written = {getattr(lib, f"GHCB_OFF_{name}") for name in (*names, "SW_SCRATCH")}
        written |= {lib.GHCB_OFF_VALID_BITMAP, lib.GHCB_OFF_VALID_BITMAP + 8}
        assert {at for at in changed if not 0x800 <= at < 0xFF0} <= written
        assert host.core.vcpus["mp_state"].max() <= lib.GHCB_MP_AP_RESET_HOLD


def test_faults_of_a_profile_are_numbers_of_the_header():
    core = CoreHost(Profile(faults=[lib.GHCB_FAULT_OLDER_VERSION], fault_seed=2**64 - 1), 1)
    assert core.msr(0, 0x002) == 0x0001_0001_3300_0001
    assert int(core.vm["last_fault"][0]) == lib.GHCB_FAULT_OLDER_VERSION + 1
    assert ffi.sizeof("ghcb_vm_t") == core.vm.nbytes


def test_a_run_that_ends_by_a_fault_says_how():
    for seed in range(200):
        host = hostile("changed-ghcb", host="double-fetch", seed=seed)
        try:
            host.vmgexit_page(0, page_of(lib.GHCB_NAE_IOIO, 0x0402_0210, rax=1), GPA)
        except VmEnded as ended:
            if ended.event.name != "IO" or ended.data != 0x0402_0210:
                return
    pytest.fail("no seed misled the host")
