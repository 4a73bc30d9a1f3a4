"""Hosts that differ: each rule changes the one answer it names, and each name has its rules."""

import numpy as np
import pytest

from ghcbcore._cffi import lib
from ghcbcore.device import Device
from ghcbcore.errors import OutOfRange, StateConflict
from ghcbcore.host import Host as CoreHost
from ghcbcore.profile import KVM_MSR_FUNCTIONS, KVM_NAE_EVENTS, Profile
from pysev import Host
from pysev.host import Guest
from pysev.tables.hosts import HOSTS

GPA = 0x7000
SCRATCH = GPA + lib.GHCB_OFF_SHARED_BUFFER
ROWS = {row.name: row for row in HOSTS}
FORK_EVENTS = [
    lib.GHCB_NAE_HV_DOORBELL_PAGE,
    lib.GHCB_NAE_HV_IPI,
    lib.GHCB_NAE_APIC_ID_LIST,
    lib.GHCB_NAE_SNP_RUN_VMPL,
]
FORK_MSRS = [lib.GHCB_MSR_RUN_VMPL_REQ, lib.GHCB_MSR_UNREG_GPA_REQ]
EINVAL, NONE = lib.GHCB_EVENT_EINVAL, lib.GHCB_EVENT_NONE


def page_of(code, info_1=0, info_2=0, *, unmarked=(), **fields):
    """A request; ``fields`` are named and marked valid unless ``unmarked`` names them."""
    page = np.zeros(lib.GHCB_PAGE_SIZE, np.uint8)
    words = page.view(np.uint64)
    fields = {"SW_EXIT_CODE": code, "SW_EXIT_INFO_1": info_1, "SW_EXIT_INFO_2": info_2} | {
        name.upper(): value for name, value in fields.items()
    }
    bitmap = 0
    for name, value in fields.items():
        words[getattr(lib, f"GHCB_OFF_{name}") // 8] = value
        if name not in unmarked:
            bitmap |= 1 << getattr(lib, f"GHCB_VALID_{name}")
    words[lib.GHCB_OFF_VALID_BITMAP // 8] = bitmap & 2**64 - 1
    words[lib.GHCB_OFF_VALID_BITMAP // 8 + 1] = bitmap >> 64
    return page


def field(page, name):
    return int(page.view(np.uint64)[getattr(lib, f"GHCB_OFF_{name}") // 8])


def infos(page):
    return field(page, "SW_EXIT_INFO_1"), field(page, "SW_EXIT_INFO_2")


def marks(page):
    low = lib.GHCB_OFF_VALID_BITMAP // 8
    return tuple(int(word) for word in page.view(np.uint64)[low : low + 2])


def refusing(kind, *_):
    return None if kind == lib.GHCB_ACCESS_MSR else 0


def core(*rules, guest="snp", registered=GPA, **more):
    """A host that knows everything, with memory and devices that refuse MSRs alone."""
    more.setdefault("msr_functions", (*KVM_MSR_FUNCTIONS, *FORK_MSRS))
    profile = Profile(
        guest={"snp": lib.GHCB_GUEST_SNP, "sev_es": lib.GHCB_GUEST_SEV_ES}[guest],
        rules=[getattr(lib, f"GHCB_RULE_{name}") for name in rules],
        nae_events=(*KVM_NAE_EVENTS, *FORK_EVENTS),
        cpuid=[(0xD, 0, 1, 2, 3, 4)],
        **more,
    )
    kinds = [lib.GHCB_ACCESS_IO, lib.GHCB_ACCESS_MMIO, lib.GHCB_ACCESS_MSR]
    host = CoreHost(profile, 2, Device(kinds, refusing, lambda *_: True))
    host.vcpus["registered_gpa"] = registered
    return host


def by_page(page, *names):
    """What a page is answered: the infos, how the run ended, and words of its registers."""

    def ask(host):
        answered = page.copy()
        host.page(0, answered, GPA)
        return (*infos(answered), int(host.vm["event"][0]), *(field(answered, n) for n in names))

    return ask


def by_msr(value):
    def ask(host):
        return host.msr(0, value), int(host.vm["event"][0])

    return ask


CPUID = page_of(lib.GHCB_NAE_CPUID, rax=0xD, rcx=0)
STRING = page_of(lib.GHCB_NAE_IOIO, 0x0402_0E1C, 4, sw_scratch=0x9000)
EMPTY = page_of(lib.GHCB_NAE_IOIO, 0x0402_0E1C, 0, sw_scratch=0)
READ_9 = page_of(lib.GHCB_NAE_MMIO_READ, 0x1000, 9, sw_scratch=SCRATCH)
READ_0 = page_of(lib.GHCB_NAE_MMIO_READ, 0x1000, 0, sw_scratch=0)
READ_8 = page_of(lib.GHCB_NAE_MMIO_READ, 0x1000, 8, sw_scratch=SCRATCH)
RDMSR = page_of(lib.GHCB_NAE_MSR, rcx=0x10)
IN = page_of(lib.GHCB_NAE_IOIO, 0x03F8_0241, rax=0x55)
AT_VMPL_1 = page_of(lib.GHCB_NAE_SNP_AP_CREATION, 1 << 32 | 0x1_0001, 0x5000, rax=1)
DESTROY_1 = page_of(lib.GHCB_NAE_SNP_AP_CREATION, 1 << 32 | 0x1_0002, 0)
FEATURES_9 = page_of(lib.GHCB_NAE_SNP_AP_CREATION, 1 << 32 | 1, 0x5000, rax=9)
UNKNOWN = page_of(0x78)
WIDE = page_of(1 << 32 | lib.GHCB_NAE_WBINVD)
USED = page_of(lib.GHCB_NAE_WBINVD)
NO_RCX = page_of(lib.GHCB_NAE_CPUID, rax=1)
NO_INFO = page_of(lib.GHCB_NAE_WBINVD, unmarked=("SW_EXIT_INFO_2",))
GP = 0x8000_030D

# rule, arguments of the host, question, KVM's answer, the answer by the rule
RULES = [
    ("REPLY_UNREGISTERED", {"registered": 0}, by_page(USED), (0, 0, EINVAL), (2, 1, NONE)),
    ("REGISTER_ON_USE", {"registered": 0x8000}, by_page(USED), (0, 0, EINVAL), (0, 0, NONE)),
    ("REGISTER_ONCE", {}, by_msr(0x9012), (0x9013, NONE), (0xFFFF_FFFF_FFFF_F013, NONE)),
    ("REGISTER_ONCE", {"registered": 0}, by_msr(0x9012), (0x9013, NONE), (0x9013, NONE)),
    ("SCRATCH_IN_PAGE", {}, by_page(STRING), (0, 0, NONE), (2, 3, NONE)),
    ("SCRATCH_IN_PAGE", {"max_version": 1}, by_page(STRING), (0, 0, NONE), (0, 0, NONE)),
    ("MMIO_8", {}, by_page(READ_9), (0, 0, NONE), (2, 5, NONE)),
    ("MMIO_8", {"max_version": 1}, by_page(READ_9), (0, 0, NONE), (0, 0, NONE)),
    ("MMIO_8", {}, by_page(READ_8), (0, 0, NONE), (0, 0, NONE)),
    ("MMIO_8", {}, by_page(READ_0), (2, 3, NONE), (0, 0, NONE)),
    ("EMPTY_IO", {}, by_page(EMPTY), (2, 3, NONE), (0, 0, NONE)),
    ("GP_SIGN_EXTENDED", {}, by_page(RDMSR), (1, GP, NONE), (1, 0xFFFF_FFFF << 32 | GP, NONE)),
    ("GP_BARE", {}, by_page(RDMSR), (1, GP, NONE), (1, 13, NONE)),
    ("AP_VMPL", {}, by_page(AT_VMPL_1), (2, 5, NONE), (0, 0, NONE)),
    ("AP_VMPL", {}, by_page(DESTROY_1), (2, 4, NONE), (0, 0, NONE)),
    ("AP_FEATURES_LOOSE", {}, by_page(FEATURES_9), (2, 5, NONE), (0, 0, NONE)),
    ("XCR0_OPTIONAL", {}, by_page(CPUID, "RAX"), (2, 4, NONE, 0xD), (0, 0, NONE, 1)),
    ("XCR0_OPTIONAL", {}, by_page(NO_RCX), (2, 4, NONE), (2, 4, NONE)),
    ("INPUT_UNCHECKED", {}, by_page(NO_RCX), (2, 4, NONE), (0, 0, NONE)),
    ("INPUT_UNCHECKED", {}, by_page(NO_INFO), (2, 4, NONE), (0, 0, NONE)),
    ("UNKNOWN_EINVAL", {}, by_page(UNKNOWN), (2, 6, NONE), (2, 6, EINVAL)),
    ("UNKNOWN_EINVAL", {}, by_msr(0xF03), (0xF03, NONE), (0xF03, EINVAL)),
    ("UNKNOWN_EINVAL", {}, by_msr(0), (0, NONE), (0, NONE)),
    ("MISSING_EINVAL", {}, by_page(NO_RCX), (2, 4, NONE), (2, 4, EINVAL)),
    ("CODE_32", {}, by_page(WIDE), (2, 6, NONE), (0, 0, NONE)),
    (
        "PSC_ERROR_ONE",
        {},
        by_msr(0x0010_0000_1234_5014),
        (0x8000_0000_0000_0015, NONE),
        (0x0000_0001_0000_0015, NONE),
    ),
    ("IO_IGNORED", {}, by_page(IN, "RAX"), (0, 0, NONE, 0), (0, 0, NONE, 0)),
    (
        "NON_SNP_KEEP",
        {"guest": "sev_es"},
        by_msr(0x9012),
        (0x9012, lib.GHCB_EVENT_SEV_TERM),
        (0x9012, NONE),
    ),
    (
        "NON_SNP_KEEP",
        {"guest": "sev_es"},
        by_msr(0x018),
        (0x018, lib.GHCB_EVENT_SEV_TERM),
        (0x018, NONE),
    ),
]


@pytest.mark.parametrize(("rule", "arguments", "ask", "kvm", "ruled"), RULES)
def test_a_rule_changes_the_answer_that_it_names(rule, arguments, ask, kvm, ruled):
    assert ask(core(**arguments)) == kvm
    assert ask(core(rule, **arguments)) == ruled


def test_ignored_io_reaches_no_device_and_reads_zeros():
    profile = Profile(rules=[lib.GHCB_RULE_IO_IGNORED])
    for info_1, rax in ((0x03F8_0241, 0), (0x03F8_0240, 0x55)):
        host, page = CoreHost(profile, 1), page_of(lib.GHCB_NAE_IOIO, info_1, rax=0x55)
        host.page(0, page, GPA)
        assert int(host.vm["event"][0]) == NONE
        assert field(page, "RAX") == rax


def test_an_event_that_a_profile_has_and_no_rule_answers_ends_the_run():
    host = CoreHost(Profile(guest=lib.GHCB_GUEST_SNP, nae_events=[lib.GHCB_NAE_HV_TIMER]), 1)
    host.vcpus["registered_gpa"] = GPA
    host.page(0, page_of(lib.GHCB_NAE_HV_TIMER), GPA)
    wanted = (lib.GHCB_EVENT_UNMODELLED, lib.GHCB_NAE_HV_TIMER)
    assert (host.vm["event"][0], host.vm["event_data"][0]) == wanted


def test_an_unregistered_page_that_ends_the_run_is_not_answered():
    host, page = core(registered=0), page_of(lib.GHCB_NAE_CPUID, 5, 6, rax=0xD, rcx=0, xcr0=1)
    host.page(0, page, GPA)
    assert marks(page) == (0, 0)
    assert infos(page) == (5, 6) and field(page, "RAX") == 0xD
    assert int(host.vm["event_data"][0]) == GPA
    row = host.vcpus[0]
    assert (row["sw_exit_code"], row["sw_exit_info_1"], row["sw_exit_info_2"]) == (0x72, 5, 6)


def test_an_unregistered_page_that_is_answered_shows_in_the_exit_fields():
    host, page = core("REPLY_UNREGISTERED", registered=0), USED.copy()
    host.page(0, page, GPA)
    assert (host.vcpus[0]["sw_exit_info_1"], host.vcpus[0]["sw_exit_info_2"]) == (2, 1)


def test_a_flow_needs_a_registered_page_too():
    host = core(registered=0)
    host.vcpus["msr"], host.vcpus["sw_exit_code"] = GPA, lib.GHCB_NAE_WBINVD
    host.call(0, lib.GHCB_CALL_VMGEXIT)
    assert int(host.vm["event"][0]) == EINVAL
    host = core("REPLY_UNREGISTERED", registered=0)
    host.vcpus["msr"], host.vcpus["sw_exit_code"] = GPA, lib.GHCB_NAE_WBINVD
    host.call(0, lib.GHCB_CALL_VMGEXIT)
    assert (host.vcpus[0]["sw_exit_info_1"], host.vcpus[0]["sw_exit_info_2"]) == (2, 1)


KVM_MARKS = (0x8000_0000_0000_0000, 0x0018_000E_0000_0000)


def test_replies_mark_what_each_kind_of_host_marks():
    request = page_of(lib.GHCB_NAE_CPUID, rax=0xD, rcx=0, xcr0=1, rsi=9)
    plain = page_of(lib.GHCB_NAE_WBINVD, rbx=7)
    rsi, infos_alone = 1 << lib.GHCB_VALID_RSI - 64, 0x0018_0000_0000_0000
    exits = 0x001C_0000_0000_0000
    wanted = {
        (): (KVM_MARKS, KVM_MARKS),
        ("REPLY_ADDS",): (
            (KVM_MARKS[0], KVM_MARKS[1] | rsi | exits | 1 << lib.GHCB_VALID_XCR0 - 64),
            (0, exits | 1 << lib.GHCB_VALID_RBX - 64),
        ),
        ("REPLY_ALONE",): (KVM_MARKS, (0, infos_alone)),
    }
    for rules, expected in wanted.items():
        for page, marked in zip((request, plain), expected, strict=True):
            answered = page.copy()
            core(*rules).page(0, answered, GPA)
            assert marks(answered) == marked, rules
            kept = field(answered, "SW_EXIT_CODE")
            assert kept == (0 if "REPLY_ALONE" in rules else field(page, "SW_EXIT_CODE"))
        assert field(answered, "RBX") == (0 if "REPLY_ALONE" in rules else 7)


def test_rereading_without_a_change_changes_nothing():
    for page in (USED, CPUID, RDMSR, STRING, UNKNOWN):
        ours, theirs = page.copy(), page.copy()
        core("REREADS").page(0, ours, GPA)
        core().page(0, theirs, GPA)
        assert ours.tobytes() == theirs.tobytes()


# -- hosts by name


@pytest.mark.parametrize("name", sorted(ROWS))
@pytest.mark.parametrize("guest", list(Guest))
def test_every_host_can_be_made_for_every_guest(name, guest):
    host = Host(2, host=name, guest=guest)
    row = ROWS[name]
    assert int(host.core.profile.rules) == sum(1 << rule for rule in row.rules)
    if guest is not Guest.PLAIN:
        version = host.vcpu(0).msr >> 48
        assert version == row.max_version


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_host_knows_the_requests_of_its_row_and_no_other(name):
    row = ROWS[name]
    known = set(KVM_MSR_FUNCTIONS if row.msr is None else row.msr) | set(row.more_msr)
    codes = [lib.GHCB_MSR_SEV_INFO_REQ, lib.GHCB_MSR_AP_RESET_HOLD_REQ, *FORK_MSRS]
    codes += [lib.GHCB_MSR_HV_FEATURES_REQ, lib.GHCB_MSR_PREF_GPA_REQ, lib.GHCB_MSR_CPUID_REQ]
    for code in codes:
        host = Host(host=name, guest=Guest.SNP)
        assert (host.core.msr(0, code) != code) == (code in known), hex(code)
    events = set(KVM_NAE_EVENTS if row.nae is None else row.nae) | set(row.more_nae)
    for code in (*KVM_NAE_EVENTS, *FORK_EVENTS):
        host, page = Host(host=name, guest=Guest.SNP), page_of(code, rax=0, rbx=0, rcx=0, rdx=0)
        host.core.vcpus["registered_gpa"] = GPA
        host.core.page(0, page, GPA)
        assert (infos(page) == (2, 6)) == (code not in events), hex(code)


def test_what_distinguishes_each_host_by_name():
    """One question for each, to which KVM of today has another answer."""

    def features(host):
        return host.core.msr(0, 0x080)

    def unknown(host):
        host.core.msr(0, 0xF03)
        return int(host.core.vm["event"][0])

    def ask(page):
        def asked(host):
            host.core.vcpus["registered_gpa"] = GPA
            answered = page.copy()
            host.core.page(0, answered, GPA)
            return (*infos(answered), int(host.core.vm["event"][0]), *marks(answered))

        return asked

    def double_fetch(host):
        return int(host.core.profile.rules)

    questions = {
        "kvm-5.15": unknown,
        "kvm-7.1": ask(STRING),
        "coconut": features,
        "hyper-v": ask(NO_RCX),
        "openbsd": ask(NO_RCX),
        "xen": ask(IN),
        "double-fetch": double_fetch,
    }
    assert set(questions) == set(ROWS) - {"kvm"}
    for name, question in questions.items():
        kvm = question(Host(guest=Guest.SNP, host="kvm"))
        assert question(Host(guest=Guest.SNP, host=name)) != kvm, name


def test_xen_registers_a_page_by_its_use():
    host, page = Host(host="xen", guest=Guest.SNP), page_of(lib.GHCB_NAE_NMI_COMPLETE)
    host.vmgexit_page(0, page, GPA)
    assert host.vcpu(0).registered_gpa == GPA and infos(page) == (0, 0)


def test_openbsd_accepts_no_page_by_msr_and_kvm_5_15_has_no_snp():
    assert Host(host="openbsd", guest=Guest.SNP).core.msr(0, GPA | 0x012) == GPA | 0x012
    assert Host(host="kvm-5.15", guest=Guest.SNP).core.msr(0, GPA | 0x012) == GPA | 0x012


def test_coconut_sends_ipis_lists_apic_ids_and_has_doorbells():
    host = Host(4, host="coconut", guest=Guest.SNP)
    host.core.vcpus["registered_gpa"] = GPA
    host.vmgexit_page(0, page_of(lib.GHCB_NAE_HV_IPI, 0xC_4500), GPA)  # INIT to all others
    assert host.core.vcpus["init_pending"].tolist() == [0, 1, 1, 1]
    page = page_of(lib.GHCB_NAE_APIC_ID_LIST, rax=0)
    host.vmgexit_page(0, page, GPA)
    assert field(page, "RAX") == 1
    page = page_of(lib.GHCB_NAE_HV_DOORBELL_PAGE, 1, 0x9000)
    host.vmgexit_page(0, page, GPA)
    assert (infos(page), host.vcpu(0).doorbell_gpa) == ((0, 0x9000), 0x9000)
    assert host.core.msr(0, 0x2_0000_0016) == 0x017 and host.vcpu(0).vmpl == 2
    assert host.core.msr(0, 0x4_0000_0016) == 0x1_0000_0017


def test_a_list_of_apic_ids_of_several_pages_is_written_page_by_page():
    written = []

    def memory(gpa, data, is_write):
        written.append((gpa, bytes(data)))
        return len(written) < 4

    profile = Profile(nae_events=[lib.GHCB_NAE_APIC_ID_LIST])
    host = CoreHost(profile, 2500, Device([], None, memory))
    page = page_of(lib.GHCB_NAE_APIC_ID_LIST, 0x9000, rax=2)
    host.page(0, page, GPA)
    assert field(page, "RAX") == 3 and written == []  # too little room
    page = page_of(lib.GHCB_NAE_APIC_ID_LIST, 0x9000, rax=3)
    host.page(0, page, GPA)
    numbers = np.frombuffer(b"".join(data for _, data in written), np.uint32)
    assert [gpa for gpa, _ in written] == [0x9000, 0xA000, 0xB000]
    assert numbers.tolist() == [2500, *range(2500)]
    page = page_of(lib.GHCB_NAE_APIC_ID_LIST, 0x9000, rax=3)
    host.page(0, page, GPA)
    assert infos(page) == (2, 5) and field(page, "RAX") == 3


def test_a_name_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(OutOfRange, match=r"there are kvm, kvm-5\.15"):
        Host(host="vbox")
    with pytest.raises(OutOfRange, match="there are wrong-answer"):
        Host(faults=["bad-luck"])


def test_pages_in_order_equal_pages_one_by_one():
    requests = [USED, NO_RCX, UNKNOWN, page_of(lib.GHCB_NAE_HV_FEATURES)]
    one_by_one, at_once = Host(2), Host(2)
    wanted = np.array(requests)
    for cpu, page in zip((0, 1, 1, 0), wanted, strict=True):
        one_by_one.vmgexit_page(cpu, page, GPA)
    pages = np.array(requests)
    at_once.vmgexit_pages([0, 1, 1, 0], pages, [GPA] * 4)
    assert np.array_equal(pages, wanted)
    assert at_once.core.vcpus.tolist() == one_by_one.core.vcpus.tolist()
    ending = np.array([USED, page_of(lib.GHCB_NAE_TERMINATE, 0x10), USED])
    with pytest.raises(StateConflict, match=r"\[2\]"):
        at_once.vmgexit_pages([0, 0, 0], ending, [GPA] * 3)
