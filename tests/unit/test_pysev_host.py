"""The host as Python users meet it: names, exceptions, and arguments that make no sense."""

import numpy as np
import pytest

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, StateConflict, Terminated
from pysev import Host
from pysev.host import Entry, Event, Guest, Hold, MpState, VmEnded


def page_of(code, info_1=0, info_2=0):
    page = np.zeros(lib.GHCB_PAGE_SIZE, np.uint8)
    words = page.view(np.uint64)
    words[lib.GHCB_OFF_SW_EXIT_CODE // 8] = code
    words[lib.GHCB_OFF_SW_EXIT_INFO_1 // 8] = info_1
    words[lib.GHCB_OFF_SW_EXIT_INFO_2 // 8] = info_2
    words[lib.GHCB_OFF_VALID_BITMAP // 8 + 1] = 0x001C_0000_0000_0000
    return page


def test_an_ap_is_held_and_released_by_startup():
    host = Host(cpus=2)
    host.send_init(1)
    host.send_startup(1, 0x9A)
    assert host.vcpu(1).entry is Entry.LAUNCH
    assert host.vmgexit(1, lib.GHCB_MSR_AP_RESET_HOLD_REQ) == lib.GHCB_MSR_AP_RESET_HOLD_RESP
    assert host.vcpu(1).hold is Hold.MSR and host.vcpu(1).mp_state is MpState.AP_RESET_HOLD
    host.send_init(1)
    host.send_startup(1, 0x9A)
    assert host.vcpu(1).msr == 0x1007 and host.vcpu(1).mp_state is MpState.RUNNABLE


def test_a_plain_vcpu_is_reset_to_the_vector():
    host = Host(cpus=2, guest=Guest.PLAIN)
    host.send_init(1)
    host.send_startup(1, 0x9A)
    assert host.vcpu(1).entry is Entry.VECTOR


def test_the_jump_table_is_what_the_guest_set_even_from_an_odd_address():
    host = Host()
    odd = np.zeros(lib.GHCB_PAGE_SIZE + 1, np.uint8)[1:]
    odd[:] = page_of(lib.GHCB_NAE_AP_JUMP_TABLE, lib.GHCB_AP_JUMP_TABLE_SET, 0x7FFF_F000)
    host.vmgexit_page(0, odd, 0x1000)
    assert host.jump_table == 0x7FFF_F000
    page = bytearray(page_of(lib.GHCB_NAE_AP_JUMP_TABLE, lib.GHCB_AP_JUMP_TABLE_GET).tobytes())
    host.vmgexit_page(0, page, 0x1000)
    at = lib.GHCB_OFF_SW_EXIT_INFO_2
    assert int.from_bytes(page[at : at + 8], "little") == 0x7FFF_F000


def test_termination_says_its_reason_and_ends_the_vm():
    host = Host()
    with pytest.raises(Terminated, match="0x1:0x2") as error:
        host.vmgexit(0, 0x2_1100)
    assert (error.value.reason_set, error.value.reason) == (1, 2)
    with pytest.raises(StateConflict):
        host.vmgexit(0, lib.GHCB_MSR_SEV_INFO_REQ)


def test_an_event_that_needs_a_device_goes_to_user_space():
    with pytest.raises(VmEnded, match="INTERNAL") as error:
        Host().vmgexit_page(0, page_of(lib.GHCB_NAE_RDTSC), 0x1000)
    assert error.value.event is Event.INTERNAL


def test_many_requests_are_answered_in_order():
    asked = [lib.GHCB_MSR_SEV_INFO_REQ, lib.GHCB_MSR_HV_FEATURES_REQ]
    one, other = Host(), Host()
    assert other.vmgexit_many([0, 0], asked).tolist() == [one.vmgexit(0, m) for m in asked]


@pytest.mark.parametrize(
    ("cpus", "msrs", "error"),
    [
        ([-1], [2], OutOfRange),
        ([1 << 32], [2], OutOfRange),
        ([0], [-2], OutOfRange),
        ([0], [1 << 64], OutOfRange),
        ([0], [2.5], TypeError),
        ([9], [2], OutOfRange),
        ([0, 0], [2], OutOfRange),
    ],
)
def test_arrays_that_do_not_fit_are_refused_not_cut(cpus, msrs, error):
    with pytest.raises(error):
        Host().vmgexit_many(cpus, msrs)


@pytest.mark.parametrize("cpu", [-1, 2])
def test_a_vcpu_that_is_not_there_changes_no_other(cpu):
    host = Host(cpus=2)
    before = host.core.vcpus.copy()
    for call in (
        lambda: host.send_startup(cpu, 1),
        lambda: host.send_init(cpu),
        lambda: host.take_nmi(cpu),
        lambda: host.vmgexit(cpu, 2),
    ):
        with pytest.raises(OutOfRange):
            call()
    assert (host.core.vcpus == before).all()


def test_a_page_that_cannot_be_answered_is_refused():
    with pytest.raises(TypeError, match="writable"):
        Host().vmgexit_page(0, bytes(lib.GHCB_PAGE_SIZE), 0x1000)
