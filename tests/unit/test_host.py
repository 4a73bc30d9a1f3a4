"""What the host answers, case by case. Values are those of published test vectors."""

import numpy as np
import pytest

from ghcbcore import errors
from ghcbcore._cffi import lib
from ghcbcore.host import Host
from ghcbcore.profile import Profile

GPA = 0x7000
BASE_THREE = 0x001C_0000_0000_0000  # upper half of the bitmap: CODE, INFO1, INFO2
WITH_SCRATCH = 0x003C_0000_0000_0000
KVM_REPLY = [0x8000_0000_0000_0000, 0x0018_000E_0000_0000]
RAX, RCX, RDX, RBX = 0x1F8, 0x308, 0x310, 0x318
CODE, INFO1, INFO2, SCRATCH, BITMAP = 0x390, 0x398, 0x3A0, 0x3A8, 0x3F0

CPUID = 0x72
IOIO = 0x7B
MSR = 0x7C
VMMCALL = 0x81
WBINVD = 0x89
MMIO_READ = 0x8000_0001
RESET_HOLD = 0x8000_0004
JUMP_TABLE = 0x8000_0005
PSC = 0x8000_0010
HV_FEATURES = 0x8000_FFFD
TERMINATE = 0x8000_FFFE
UNSUPPORTED = 0x8000_FFFF


def qword(page, offset, value=None):
    words = page.view(np.uint64)
    if value is not None:
        words[offset // 8] = value
    return int(words[offset // 8])


def request(code, info1=0, info2=0, bitmap=(0, BASE_THREE), fields=()):
    """A GHCB page with a request."""
    page = np.zeros(4096, np.uint8)
    for offset, value in ((CODE, code), (INFO1, info1), (INFO2, info2), *fields):
        qword(page, offset, value)
    qword(page, BITMAP, bitmap[0])
    qword(page, BITMAP + 8, bitmap[1])
    return page


def reply(page):
    return qword(page, INFO1), qword(page, INFO2)


def ask(page, host=None, gpa=GPA):
    """Let vCPU 0 do VMGEXIT with the page; return the reply."""
    (host or Host(Profile(), 1)).page(0, page, gpa)
    return reply(page)


def event(host):
    return int(host.vm["event"][0]), int(host.vm["event_data"][0])


def start(host, cpu):
    """INIT and STARTUP, sent and taken."""
    for call in (
        lib.GHCB_CALL_SEND_INIT,
        lib.GHCB_CALL_INIT,
        lib.GHCB_CALL_SEND_SIPI,
        lib.GHCB_CALL_SIPI,
    ):
        host.call(cpu, call)


@pytest.fixture
def host():
    """A VM whose vCPU 1 has been started once, so that its launch state is used up."""
    host = Host(Profile(), 2)
    start(host, 1)
    host.vcpus["entry"] = lib.GHCB_ENTRY_RESUME
    return host


# -- MSR protocol -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "answer"),
    [
        ({}, 0x0002_0001_3300_0001),
        ({"max_version": 1, "c_bit": 47}, 0x0001_0001_2F00_0001),
    ],
)
def test_sev_information_has_versions_and_c_bit(profile, answer):
    assert Host(Profile(**profile), 1).msr(0, 0x002) == answer


def test_sev_information_stands_in_the_msr_before_anyone_asks():
    assert Host(Profile(), 3).vcpus["msr"].tolist() == [0x0002_0001_3300_0001] * 3


def test_a_plain_guest_has_no_sev_information_in_the_msr():
    assert Host(Profile(guest=lib.GHCB_GUEST_PLAIN), 1).vcpus["msr"].tolist() == [0]


def test_cpuid_by_msr_answers_the_register_that_was_asked_for():
    host = Host(Profile(cpuid=[(0x8000_001F, 0, 1, 0x4173, 3, 4)]), 1)
    assert host.msr(0, 0x8000_001F_4000_0004) == 0x0000_4173_4000_0005
    assert [host.msr(0, 0x8000_001F << 32 | reg << 30 | 0x004) >> 32 for reg in range(4)] == [
        1,
        0x4173,
        3,
        4,
    ]


def test_cpuid_by_msr_returns_the_low_request_bits_unchanged():
    assert Host(Profile(), 1).msr(0, 0x8000_001F_7FFF_F004) == 0x0000_0000_7FFF_F005


def test_features_are_reported_in_bits_12_and_up():
    assert Host(Profile(), 1).msr(0, 0x080) == 0x3081


def test_features_are_reported_to_a_version_1_guest_too():
    assert Host(Profile(max_version=1), 1).msr(0, 0x080) == 0x3081


def test_reset_hold_by_msr_is_preset_to_not_released(host):
    assert host.msr(1, 0x006) == 0x007
    assert host.vcpus["mp_state"].tolist() == [lib.GHCB_MP_RUNNABLE, lib.GHCB_MP_AP_RESET_HOLD]


def test_data_bits_of_a_reset_hold_request_do_not_reach_the_answer(host):
    assert host.msr(1, 0xFFFF_FFFF_FFFF_F006) == 0x007


@pytest.mark.parametrize("value", [0x100, 0x1_0100, 0x2_0100, 0x1_1100, 0x2_1100, 0x3_F100])
def test_termination_by_msr_tells_user_space_the_msr(value):
    host = Host(Profile(), 1)
    assert host.msr(0, value) == value
    assert event(host) == (lib.GHCB_EVENT_SEV_TERM, value)


@pytest.mark.parametrize(
    "value", [0x010, 0x04E1_4012, 0x0010_0000_1234_5014, 0x0020_0000_1234_5014]
)
def test_snp_requests_of_another_guest_end_the_vm_with_the_request(value):
    host = Host(Profile(), 1)
    assert host.msr(0, value) == value
    assert event(host) == (lib.GHCB_EVENT_SEV_TERM, value)


@pytest.mark.parametrize(
    "value", [0, 0x001, 0x003, 0x005, 0x0000_0002_0000_0016, 0x018, 0x0FF, 0x41F03, 2**64 - 1]
)
def test_what_kvm_does_not_know_stays_in_the_msr(value):
    host = Host(Profile(), 1)
    assert host.msr(0, value) == value
    assert event(host) == (lib.GHCB_EVENT_NONE, 0)


def test_the_msr_function_wants_the_page_itself_rather_than_its_address():
    with pytest.raises(errors.OutOfRange, match="0x4e14000"):
        Host(Profile(), 1).msr(0, 0x4E1_4000)


# -- GHCB page: order of checks ---------------------------------------------------------------


def test_a_reply_marks_the_four_registers_and_both_infos():
    page = request(WBINVD)
    assert ask(page) == (0, 0)
    assert [qword(page, BITMAP), qword(page, BITMAP + 8)] == KVM_REPLY


def test_a_reply_leaves_the_code_but_takes_its_mark_away():
    page = request(WBINVD)
    ask(page)
    assert qword(page, CODE) == WBINVD
    assert not qword(page, BITMAP + 8) >> (114 - 64) & 1


def test_unmarked_registers_are_zeroes_in_the_reply():
    page = request(WBINVD, fields=[(RAX, 1), (RBX, 2), (RCX, 3), (RDX, 4)])
    ask(page)
    assert [qword(page, offset) for offset in (RAX, RBX, RCX, RDX)] == [0, 0, 0, 0]


def test_a_reply_touches_nothing_but_registers_infos_and_bitmap():
    page = np.full(4096, 0xA5, np.uint8)
    qword(page, CODE, WBINVD)
    page[0xFFC:] = 0
    before = page.copy()
    ask(page)
    written = {RAX, RBX, RCX, RDX, INFO1, INFO2, BITMAP, BITMAP + 8}
    assert {int(at) // 8 * 8 for at in np.flatnonzero(page != before)} <= written


def test_wrong_usage_is_2_2_even_if_everything_else_is_wrong_too():
    page = request(0x1234, bitmap=(0, 0))
    page[0xFFC] = 1
    assert ask(page) == (2, 2)


@pytest.mark.parametrize("bit", [114, 115, 116])
def test_a_missing_mark_of_code_or_infos_is_2_4_before_an_unknown_event_is_2_6(bit):
    assert ask(request(0x1234, bitmap=(0, BASE_THREE & ~(1 << bit - 64)))) == (2, 4)
    assert ask(request(0x1234)) == (2, 6)


@pytest.mark.parametrize("code", [0, 0x78, 0x403, 0x8000_0014, 0xF000_0000, 2**32 | WBINVD])
def test_an_event_that_kvm_does_not_know_is_2_6(code):
    assert ask(request(code)) == (2, 6)


@pytest.mark.parametrize("code", [PSC, 0x8000_0011, 0x8000_0012, 0x8000_0013])
def test_snp_events_of_another_guest_are_2_4_whatever_is_marked(code):
    assert ask(request(code, bitmap=(2**64 - 1, 2**64 - 1))) == (2, 4)


def test_a_request_that_was_refused_does_not_end_the_vm():
    host = Host(Profile(), 1)
    assert ask(request(0x1234), host) == (2, 6)
    assert event(host) == (lib.GHCB_EVENT_NONE, 0)


# -- GHCB page: events ------------------------------------------------------------------------

RAX_RCX = (0x8000_0000_0000_0000, 0x001C_0002_0000_0000)
RAX_RCX_XCR0 = (0x8000_0000_0000_0000, 0x201C_0002_0000_0000)
RAX_RCX_RDX = (0x8000_0000_0000_0000, 0x001C_0006_0000_0000)


def test_cpuid_answers_all_four_registers():
    host = Host(Profile(cpuid=[(7, 0, 0x11, 0x22, 0x33, 0xFFFF_FFFF)]), 1)
    page = request(CPUID, bitmap=RAX_RCX, fields=[(RAX, 7), (RCX, 0)])
    assert ask(page, host) == (0, 0)
    assert [qword(page, at) for at in (RAX, RBX, RCX, RDX)] == [0x11, 0x22, 0x33, 0xFFFF_FFFF]


def test_cpuid_leaf_0xd_needs_xcr0():
    fields = [(RAX, 0xD), (RCX, 1)]
    assert ask(request(CPUID, bitmap=RAX_RCX, fields=fields)) == (2, 4)
    assert ask(request(CPUID, bitmap=RAX_RCX_XCR0, fields=fields)) == (0, 0)


def test_cpuid_leaf_0xd_is_recognised_by_all_64_bits_of_rax():
    page = request(CPUID, bitmap=RAX_RCX, fields=[(RAX, 2**32 | 0xD), (RCX, 1)])
    assert ask(page) == (0, 0)


def test_cpuid_sub_leaves_come_to_an_end():
    """A guest that walks leaf 4 stops at the first empty answer."""
    host = Host(Profile(cpuid=[(4, 0, 0x121, 0, 0, 0), (4, 1, 0x122, 0, 0, 0)]), 1)
    answers = []
    for index in range(3):
        page = request(CPUID, bitmap=RAX_RCX, fields=[(RAX, 4), (RCX, index)])
        ask(page, host)
        answers.append(qword(page, RAX))
    assert answers == [0x121, 0x122, 0]


def test_cpuid_ignores_the_index_where_there_are_no_sub_leaves():
    host = Host(Profile(cpuid=[(0, 0, 0x16, 1, 2, 3)]), 1)
    page = request(CPUID, bitmap=RAX_RCX, fields=[(RAX, 0), (RCX, 0x1234)])
    ask(page, host)
    assert qword(page, RAX) == 0x16


def test_msr_read_needs_rcx_and_a_write_rax_and_rdx_too():
    read_marks, write_marks = (0, 0x001C_0002_0000_0000), RAX_RCX_RDX
    for anything_but_zero in (1, 2, 2**32):
        assert ask(request(MSR, anything_but_zero, bitmap=read_marks)) == (2, 4)
    for info1, marks in ((0, read_marks), (1, write_marks)):
        host = Host(Profile(), 1)
        ask(request(MSR, info1, bitmap=marks), host)
        assert event(host) == (lib.GHCB_EVENT_UNMODELLED, MSR)


def test_vmmcall_needs_rax_and_cpl():
    assert ask(request(VMMCALL, bitmap=(0x8000_0000_0000_0000, BASE_THREE))) == (2, 4)
    host = Host(Profile(), 1)
    page = request(VMMCALL, bitmap=(0x8000_0000_0200_0000, BASE_THREE))
    assert ask(page, host) == (0, 0)
    assert int.from_bytes(page[0x1F8:0x200].tobytes(), "little") == 2**64 - 1000  # -KVM_ENOSYS


def test_jump_table_is_none_until_it_is_set():
    host = Host(Profile(), 2)
    assert ask(request(JUMP_TABLE, 1), host) == (0, 0)
    assert ask(request(JUMP_TABLE, 0, 0x8B000), host) == (0, 0)
    assert ask(request(JUMP_TABLE, 1), host) == (0, 0x8B000)


def test_jump_table_is_the_vm_s_and_stored_unchecked():
    host = Host(Profile(), 2)
    host.page(1, request(JUMP_TABLE, 0, 0xFFFF_FFFF_FFFF_F123), GPA)
    assert ask(request(JUMP_TABLE, 1), host) == (0, 0xFFFF_FFFF_FFFF_F123)


@pytest.mark.parametrize("info1", [2, 2**32, 2**63 | 1])
def test_another_jump_table_operation_is_2_5(info1):
    assert ask(request(JUMP_TABLE, info1)) == (2, 5)


def test_features_by_page_stand_in_info_2():
    assert ask(request(HV_FEATURES)) == (0, 3)


@pytest.mark.parametrize("info1", [0x10, 0x11, 0x3F])
def test_termination_by_page_tells_user_space_the_address_of_the_page(info1):
    host = Host(Profile(), 1)
    ask(request(TERMINATE, info1), host)
    assert event(host) == (lib.GHCB_EVENT_SEV_TERM, GPA)


def test_an_unsupported_event_makes_kvm_run_fail():
    host = Host(Profile(), 1)
    ask(request(UNSUPPORTED, 0x41), host)
    assert event(host)[0] == lib.GHCB_EVENT_EINVAL


def test_rdtsc_is_an_unexpected_exit_reason():
    host = Host(Profile(), 1)
    ask(request(0x6E), host)
    assert event(host) == (lib.GHCB_EVENT_INTERNAL, 0x6E)


@pytest.mark.parametrize("code", [0x76, 0x89, 0x8000_0003])
def test_events_without_effect_are_answered_done(code):
    host = Host(Profile(), 1)
    assert ask(request(code), host) == (0, 0)
    assert event(host) == (lib.GHCB_EVENT_NONE, 0)


# -- ports, MMIO and the scratch area ---------------------------------------------------------


def test_in_of_a_byte_goes_to_user_space():
    host = Host(Profile(), 1)
    ask(request(IOIO, 0x03F8_0211), host)
    assert event(host) == (lib.GHCB_EVENT_IO, 0x03F8_0211)


def test_out_of_a_byte_needs_rax():
    assert ask(request(IOIO, 0x0402_0210)) == (2, 4)
    host = Host(Profile(), 1)
    ask(request(IOIO, 0x0402_0210, bitmap=(0x8000_0000_0000_0000, BASE_THREE)), host)
    assert event(host) == (lib.GHCB_EVENT_IO, 0x0402_0210)


@pytest.mark.parametrize("info1", [0x0402_0E1C, 0x0511_021D])
def test_string_io_needs_scratch_even_for_out_with_rax(info1):
    assert ask(request(IOIO, info1, 1, bitmap=(0x8000_0000_0000_0000, BASE_THREE))) == (2, 4)
    host = Host(Profile(), 1)
    fields = [(SCRATCH, GPA + 0x800)]
    ask(request(IOIO, info1, 1, bitmap=(0, WITH_SCRATCH), fields=fields), host)
    assert event(host) == (lib.GHCB_EVENT_IO, info1)


OUTSIDE = 0x12_3000


@pytest.mark.parametrize(
    ("scratch", "n_bytes"),
    [
        (0, 1),
        (2**64 - 4, 4),
        (GPA, 1),
        (GPA + 0x7FF, 1),
        (GPA + 0x7FF, 2),
        (GPA + 0x800, 2033),
        (GPA + 0xFEF, 2),
        (GPA + 0xFF1, 1),
        (GPA + 0xFFF, 4096),
        (OUTSIDE, 0x1_0001),
    ],
)
def test_a_scratch_area_that_kvm_does_not_take_is_2_3(scratch, n_bytes):
    fields = [(SCRATCH, scratch)]
    for page in (
        request(MMIO_READ, 0xFEE0_0000, n_bytes, bitmap=(0, WITH_SCRATCH), fields=fields),
        request(IOIO, 0x0402_0E1C, n_bytes, bitmap=(0, WITH_SCRATCH), fields=fields),
    ):
        host = Host(Profile(), 1)
        assert ask(page, host) == (2, 3)
        assert event(host) == (lib.GHCB_EVENT_NONE, 0)


@pytest.mark.parametrize(
    ("scratch", "n_bytes"),
    [(GPA + 0x800, 1), (GPA + 0x800, 2032), (GPA + 0xFEF, 1), (GPA - 1, 1), (OUTSIDE, 0x1_0000)],
)
def test_a_scratch_area_that_fits_lets_the_access_go_to_user_space(scratch, n_bytes):
    fields = [(SCRATCH, scratch)]
    host = Host(Profile(), 1)
    ask(request(MMIO_READ, 0xFEE0_0000, n_bytes, bitmap=(0, WITH_SCRATCH), fields=fields), host)
    assert event(host) == (lib.GHCB_EVENT_MMIO, 0xFEE0_0000)


def test_string_io_counts_elements_times_their_size():
    """508 elements of 4 bytes fill the buffer, 509 do not fit."""
    fields, marks = [(SCRATCH, GPA + 0x800)], (0, WITH_SCRATCH)
    assert ask(request(IOIO, 0x0402_0E4C, 509, bitmap=marks, fields=fields)) == (2, 3)
    host = Host(Profile(), 1)
    ask(request(IOIO, 0x0402_0E4C, 508, bitmap=marks, fields=fields), host)
    assert event(host) == (lib.GHCB_EVENT_IO, 0x0402_0E4C)


@pytest.mark.parametrize(("info1", "count"), [(0x0402_0E1C, 2**31), (0x0402_0E4C, 2**29)])
def test_a_count_that_overflows_an_int_makes_kvm_run_fail(info1, count):
    host = Host(Profile(), 1)
    ask(request(IOIO, info1, count, bitmap=(0, WITH_SCRATCH), fields=[(SCRATCH, GPA)]), host)
    assert event(host)[0] == lib.GHCB_EVENT_EINVAL


# -- INIT, STARTUP, NMI -----------------------------------------------------------------------


def test_application_processors_wait_for_init_at_first():
    states = Host(Profile(), 3).vcpus["mp_state"].tolist()
    assert states == [lib.GHCB_MP_RUNNABLE, *[lib.GHCB_MP_UNINITIALIZED] * 2]


def test_the_first_startup_uses_the_launch_state_and_no_later_one_does():
    host = Host(Profile(), 2)
    entries = []
    for _ in range(3):
        start(host, 1)
        entries.append(int(host.vcpus["entry"][1]))
    resume = lib.GHCB_ENTRY_RESUME
    assert entries == [lib.GHCB_ENTRY_LAUNCH, resume, resume]


def test_a_plain_vcpu_is_reset_to_the_vector_by_every_startup():
    host = Host(Profile(guest=lib.GHCB_GUEST_PLAIN), 2)
    for _ in range(2):
        host.vcpus["entry"] = lib.GHCB_ENTRY_RESUME
        start(host, 1)
        assert host.vcpus["entry"][1] == lib.GHCB_ENTRY_VECTOR


def test_startup_releases_a_vcpu_that_is_held_by_msr(host):
    host.msr(1, 0x006)
    start(host, 1)
    assert host.vcpus["msr"][1] == 0x1007
    assert host.vcpus["mp_state"][1] == lib.GHCB_MP_RUNNABLE
    assert host.vcpus["entry"][1] == lib.GHCB_ENTRY_RESUME


def test_startup_releases_a_vcpu_that_is_held_by_page(host):
    host.page(1, request(RESET_HOLD), GPA)
    assert host.vcpus["sw_exit_info_2"][1] == 0
    start(host, 1)
    assert host.vcpus["sw_exit_info_1"][1] == 0
    assert host.vcpus["sw_exit_info_2"][1] == 1
    assert host.vcpus["msr"][1] == GPA


def test_startup_without_a_hold_answers_nothing(host):
    host.msr(1, 0x080)
    start(host, 1)
    assert host.vcpus["msr"][1] == 0x3081


def test_startup_without_init_does_not_release_a_held_vcpu(host):
    host.msr(1, 0x006)
    host.call(1, lib.GHCB_CALL_SEND_SIPI)
    host.call(1, lib.GHCB_CALL_SIPI)
    assert host.vcpus["msr"][1] == 0x007


def test_the_second_startup_of_init_sipi_sipi_is_dropped(host):
    start(host, 1)
    host.msr(1, 0x006)
    host.call(1, lib.GHCB_CALL_SEND_SIPI)
    host.call(1, lib.GHCB_CALL_SIPI)
    assert host.vcpus["msr"][1] == 0x007
    assert host.vcpus["sipi_pending"][1] == 0


def test_an_nmi_ends_the_hold_without_releasing(host):
    host.msr(1, 0x006)
    host.call(1, lib.GHCB_CALL_NMI)
    assert host.vcpus["mp_state"][1] == lib.GHCB_MP_RUNNABLE
    start(host, 1)
    assert host.vcpus["msr"][1] == 0x007


@pytest.mark.parametrize("asleep", ["hold", "hlt"])
def test_a_pending_nmi_keeps_a_vcpu_from_sleeping_until_it_is_taken(host, asleep):
    def sleep():
        host.msr(1, 0x006) if asleep == "hold" else host.call(1, lib.GHCB_CALL_HLT)

    host.call(1, lib.GHCB_CALL_NMI)
    host.vcpus["mp_state"][1] = lib.GHCB_MP_RUNNABLE
    sleep()
    assert host.vcpus["mp_state"][1] == lib.GHCB_MP_RUNNABLE
    host.vcpus["nmi_pending"][1] = 0
    sleep()
    assert host.vcpus["mp_state"][1] != lib.GHCB_MP_RUNNABLE


def test_init_alone_neither_releases_nor_forgets_the_hold(host):
    host.msr(1, 0x006)
    host.call(1, lib.GHCB_CALL_SEND_INIT)
    host.call(1, lib.GHCB_CALL_INIT)
    assert host.vcpus["msr"][1] == 0x007
    assert host.vcpus["reset_hold"][1] == lib.GHCB_HOLD_MSR


def test_a_vcpu_that_was_woken_by_an_interrupt_is_not_answered_later(host):
    """The emulator lets it run, for example for a timer; its next VMGEXIT is not a hold."""
    host.msr(1, 0x006)
    host.vcpus["mp_state"][1] = lib.GHCB_MP_RUNNABLE
    assert host.msr(1, 0x080) == 0x3081
    start(host, 1)
    assert host.vcpus["msr"][1] == 0x3081


def test_a_malformed_request_shows_as_well_that_the_vcpu_is_not_held(host):
    for page in (request(0x1234), request(WBINVD, bitmap=(0, 0)), np.full(4096, 0xFF, np.uint8)):
        host.msr(1, 0x006)
        host.page(1, page, GPA)
        assert host.vcpus["reset_hold"][1] == lib.GHCB_HOLD_NONE


def test_an_nmi_does_not_wake_a_vcpu_that_waits_for_startup():
    host = Host(Profile(), 3)
    host.call(1, lib.GHCB_CALL_SEND_INIT)
    host.call(1, lib.GHCB_CALL_INIT)
    for cpu in (1, 2):
        host.call(cpu, lib.GHCB_CALL_NMI)
    states = [lib.GHCB_MP_INIT_RECEIVED, lib.GHCB_MP_UNINITIALIZED]
    assert host.vcpus["mp_state"][1:].tolist() == states
    assert host.vcpus["nmi_pending"].tolist() == [0, 1, 1]


def test_an_nmi_wakes_a_halted_vcpu(host):
    host.call(1, lib.GHCB_CALL_HLT)
    assert host.vcpus["mp_state"][1] == lib.GHCB_MP_HALTED
    host.call(1, lib.GHCB_CALL_NMI)
    assert host.vcpus["mp_state"][1] == lib.GHCB_MP_RUNNABLE


def test_a_latched_init_drops_a_latched_startup():
    host = Host(Profile(), 2)
    host.call(1, lib.GHCB_CALL_SEND_SIPI)
    host.call(1, lib.GHCB_CALL_SEND_INIT)
    host.call(1, lib.GHCB_CALL_INIT)
    host.call(1, lib.GHCB_CALL_SIPI)
    assert host.vcpus["mp_state"][1] == lib.GHCB_MP_INIT_RECEIVED


@pytest.mark.parametrize("call", [lib.GHCB_CALL_INIT, lib.GHCB_CALL_SIPI])
def test_nothing_is_taken_that_was_not_sent(host, call):
    host.call(1, lib.GHCB_CALL_SEND_INIT)
    host.call(1, lib.GHCB_CALL_INIT)
    if call == lib.GHCB_CALL_INIT:
        host.call(1, lib.GHCB_CALL_SEND_SIPI)
        host.call(1, lib.GHCB_CALL_SIPI)
    before = host.vcpus.tolist()
    host.call(1, call)
    assert host.vcpus.tolist() == before


def test_a_triple_fault_ends_the_vm_and_nothing_is_answered_after_it(host):
    host.call(1, lib.GHCB_CALL_SHUTDOWN)
    assert event(host) == (lib.GHCB_EVENT_SHUTDOWN, 0)
    page = request(WBINVD)
    before = page.copy()
    for refused in (
        lambda: host.msr(0, 0x080),
        lambda: host.page(0, page, GPA),
        lambda: host.call(0, lib.GHCB_CALL_NMI),
    ):
        with pytest.raises(errors.StateConflict, match="ended"):
            refused()
    assert (page == before).all()


# -- the interface ----------------------------------------------------------------------------


@pytest.mark.parametrize("cpu", [2, 66, 256 + 1, 2**32 + 1, -1])
def test_a_vcpu_that_does_not_exist_is_refused_by_its_number(host, cpu):
    with pytest.raises(errors.OutOfRange, match=f"vCPU {cpu}"):
        host.msr(cpu, 0x002)


@pytest.mark.parametrize("value", [2.0, 2.7, "2", None])
def test_only_integers_are_msr_values(host, value):
    with pytest.raises(TypeError):
        host.msr(0, value)


def test_batch_refusal_names_the_index_and_keeps_the_prefix(host):
    cpus, values = np.array([0, 1, 9], np.uint32), np.array([0x080, 0x002, 0x080], np.uint64)
    out = np.zeros(3, np.uint64)
    with pytest.raises(errors.OutOfRange, match=r"\[2\]: cpu 9, msr 0x80"):
        host.msr_batch(cpus, values, out)
    assert out.tolist() == [0x3081, 0x0002_0001_3300_0001, 0]


def test_an_empty_batch_is_answered_by_an_empty_array(host):
    assert host.msr_batch(np.zeros(0, np.uint32), np.zeros(0, np.uint64)).tolist() == []
