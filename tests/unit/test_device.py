"""Devices in Python: every kind, refusal, exceptions, threads, and a device that calls its host."""

import threading

import numpy as np
import pytest

from ghcbcore import device as core_device
from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, StateConflict
from ghcbcore.host import Host as CoreHost
from ghcbcore.profile import Profile
from pysev import Host
from pysev.device import Device, GuestMemory
from pysev.host import Event, Guest, VmEnded

GPA = 0x7000
SCRATCH = GPA + lib.GHCB_OFF_SHARED_BUFFER


def page_of(code, info_1=0, info_2=0, **fields):
    """A request; ``fields`` are named and marked valid."""
    page = np.zeros(lib.GHCB_PAGE_SIZE, np.uint8)
    words = page.view(np.uint64)
    fields = {"SW_EXIT_CODE": code, "SW_EXIT_INFO_1": info_1, "SW_EXIT_INFO_2": info_2} | {
        name.upper(): value for name, value in fields.items()
    }
    bitmap = 0
    for name, value in fields.items():
        offset = getattr(lib, f"GHCB_OFF_{name}")
        if name == "CPL":
            page[offset] = value
        else:
            words[offset // 8] = value
        bitmap |= 1 << getattr(lib, f"GHCB_VALID_{name}")
    words[lib.GHCB_OFF_VALID_BITMAP // 8] = bitmap & 2**64 - 1
    words[lib.GHCB_OFF_VALID_BITMAP // 8 + 1] = bitmap >> 64
    return page


def field(page, name):
    return int(page.view(np.uint64)[getattr(lib, f"GHCB_OFF_{name}") // 8])


class Everything(GuestMemory):
    """A device of every kind, that remembers what it was asked; ``no`` is what it refuses."""

    def __init__(self, *no):
        super().__init__(0x10_0000)
        self.no, self.asked = no, []

    def _did(self, name, answer, *args):
        self.asked.append((name, *args))
        return None if name in self.no else answer

    def io_read(self, port, size):
        return self._did("io_read", 0xA1B2_C3D4 & (1 << 8 * size) - 1, port, size)

    def io_write(self, port, size, value):
        return self._did("io_write", True, port, size, value)

    def mmio_read(self, gpa, size):
        return self._did("mmio_read", bytes(range(1, size + 1)), gpa, size)

    def mmio_write(self, gpa, data):
        return self._did("mmio_write", True, gpa, data)

    def rdmsr(self, msr):
        return self._did("rdmsr", 0x1122_3344_5566_7788, msr)

    def wrmsr(self, msr, value):
        return self._did("wrmsr", True, msr, value)

    def rdpmc(self, counter):
        return self._did("rdpmc", 0x0102_0304_0506_0708, counter)

    def vmmcall(self, cpu, number, args):
        return self._did("vmmcall", -1, cpu, number, args)

    def map_gpa(self, gpa, n_pages, private, large):
        return self._did("map_gpa", True, gpa, n_pages, private, large)

    def guest_request(self, request_gpa, response_gpa):
        return self._did("guest_request", 0x16, request_gpa, response_gpa)

    def ext_guest_request(self, request_gpa, response_gpa, data_gpa, n_pages):
        answer = (1 << 32, 4)
        return self._did("ext_guest_request", answer, request_gpa, response_gpa, data_gpa, n_pages)

    def ipi(self, cpu, icr):
        return self._did("ipi", True, cpu, icr)


def ask(device, page, *, cpus=2, guest=Guest.SNP, host="coconut", cpu=0):
    """Answer a page; return the host."""
    vm = Host(cpus, guest=guest, host=host, device=device)
    vm.core.vcpus["registered_gpa"] = GPA
    vm.core.page(cpu, page, GPA)
    return vm


PSC = page_of(lib.GHCB_NAE_PSC, sw_scratch=SCRATCH)
PSC[0x800:0x810].view(np.uint64)[1] = 0x0120_0000_4000_0000
# a request of each kind; what is asked; the registers of the answer; how the run ends if refused
KINDS = {
    "io_read": (
        page_of(lib.GHCB_NAE_IOIO, 0x03F8_0211, rax=0x1122_3344_5566_7788),
        (0x3F8, 1),
        {"RAX": 0x1122_3344_5566_77D4},
        Event.IO,
    ),
    "io_write": (
        page_of(lib.GHCB_NAE_IOIO, 0x0402_0220, rax=0x1122_3344),
        (0x402, 2, 0x3344),
        {"RAX": 0x1122_3344},
        Event.IO,
    ),
    "mmio_read": (
        page_of(lib.GHCB_NAE_MMIO_READ, 0xFED0_0000, 4, sw_scratch=SCRATCH),
        (0xFED0_0000, 4),
        {},
        Event.MMIO,
    ),
    "mmio_write": (
        page_of(lib.GHCB_NAE_MMIO_WRITE, 0xFED0_0000, 8, sw_scratch=SCRATCH),
        (0xFED0_0000, bytes(8)),
        {},
        Event.MMIO,
    ),
    "rdmsr": (
        page_of(lib.GHCB_NAE_MSR, 0, rcx=0x10 | 1 << 32),
        (0x10,),
        {"RAX": 0x5566_7788, "RDX": 0x1122_3344},
        None,
    ),
    "wrmsr": (
        page_of(lib.GHCB_NAE_MSR, 1, rcx=0x10, rax=2 | 7 << 32, rdx=1 | 7 << 32),
        (0x10, 1 << 32 | 2),
        {},
        None,
    ),
    "rdpmc": (
        page_of(lib.GHCB_NAE_RDPMC, rcx=3),
        (3,),
        {"RAX": 0x0506_0708, "RDX": 0x0102_0304},
        None,
    ),
    "vmmcall": (
        page_of(lib.GHCB_NAE_VMMCALL, rax=100, rbx=1, rcx=2, rdx=3, rsi=4, cpl=0),
        (0, 100, (1, 2, 3, 4)),
        {"RAX": 2**64 - 1},
        None,
    ),
    "map_gpa": (PSC, (0x4000_0000, 512, False, True), {}, None),
    "guest_request": (
        page_of(lib.GHCB_NAE_SNP_GUEST_REQUEST, 0x9000, 0xA000),
        (0x9000, 0xA000),
        {"SW_EXIT_INFO_2": 0x16},
        None,
    ),
    "ext_guest_request": (
        page_of(lib.GHCB_NAE_SNP_EXT_GUEST_REQUEST, 0x9000, 0xA000, rax=0xB000, rbx=2),
        (0x9000, 0xA000, 0xB000, 2),
        {"SW_EXIT_INFO_2": 1 << 32, "RBX": 4},
        None,
    ),
    "ipi": (
        page_of(lib.GHCB_NAE_HV_IPI, 1 << 32 | 0x4031),
        (0, 1 << 32 | 0x4031),
        {},
        Event.UNMODELLED,
    ),
}


def everything(*no):
    device = Everything(*no)
    device.write_memory(0x9034, bytes([lib.SNP_MSG_REPORT_REQ]))
    return device


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_asked_with_its_arguments_and_answers_the_guest(kind):
    request, arguments, registers, _ = KINDS[kind]
    device, page = everything(), request.copy()
    vm = ask(device, page)
    assert device.asked == [(kind, *arguments)]
    assert int(vm.core.vm["event"][0]) == Event.NONE
    assert field(page, "SW_EXIT_INFO_1") == 0
    assert {name: field(page, name) for name in registers} == registers
    if kind == "mmio_read":
        assert page[0x800:0x806].tolist() == [1, 2, 3, 4, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_that_is_refused_is_as_the_field_says(kind):
    request, arguments, _, event = KINDS[kind]
    device, page = everything(kind), request.copy()
    vm = ask(device, page)
    assert device.asked == [(kind, *arguments)]
    assert int(vm.core.vm["event"][0]) == (event or Event.NONE)
    infos = field(page, "SW_EXIT_INFO_1"), field(page, "SW_EXIT_INFO_2")
    injected = vm.vcpu(0).event_inj
    wanted = {
        "rdmsr": (1, 0x8000_030D),
        "wrmsr": (1, 0x8000_030D),
        "map_gpa": (0, 0x100 << 32),
        "guest_request": (0, 0xFFFF_FFFF << 32),
        "ext_guest_request": (0, 0xFFFF_FFFF << 32),
    }
    assert infos == wanted.get(kind, (0, 0))
    assert injected == (0x8000_0B0D if kind == "rdpmc" else 0)
    if kind == "vmmcall":
        assert field(page, "RAX") == 2**64 - 1000


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_that_is_not_overridden_is_as_if_there_were_no_device(kind):
    page = KINDS[kind][0].copy()
    ours = ask(GuestMemory(0x10_0000), page)
    other = KINDS[kind][0].copy()
    theirs = ask(None, other)
    assert ours.core.vm.tolist() == theirs.core.vm.tolist()
    assert page.tobytes() == other.tobytes()


def test_reading_and_writing_are_offered_by_the_method_not_by_the_kind():
    class Reader(Device):
        def io_read(self, port, size):
            return 7

    vm = ask(Reader(), KINDS["io_write"][0].copy())
    assert int(vm.core.vm["event"][0]) == Event.IO


def test_string_io_is_one_call_for_each_element():
    device = everything()
    page = page_of(lib.GHCB_NAE_IOIO, 0x0402_062C, 3, sw_scratch=SCRATCH)
    page[0x800:0x806] = [1, 2, 3, 4, 5, 6]
    ask(device, page)
    assert device.asked == [("io_write", 0x402, 2, value) for value in (0x201, 0x403, 0x605)]
    page = page_of(lib.GHCB_NAE_IOIO, 0x0402_062D, 3, sw_scratch=SCRATCH)
    ask(device, page)
    assert page[0x800:0x808].tolist() == [0xD4, 0xC3] * 3 + [0, 0]


def test_scratch_outside_of_the_page_is_read_from_memory_and_written_back():
    device = everything()
    page = page_of(lib.GHCB_NAE_MMIO_READ, 0xFED0_0000, 8, sw_scratch=0xFFFC)
    ask(device, page)
    assert device.read_memory(0xFFFC, 8) == bytes(range(1, 9))
    device.write_memory(0xFFFC, b"12345678")
    page = page_of(lib.GHCB_NAE_MMIO_WRITE, 0xFED0_0000, 8, sw_scratch=0xFFFC)
    ask(device, page)
    assert device.asked[-1] == ("mmio_write", 0xFED0_0000, b"12345678")
    page = page_of(lib.GHCB_NAE_MMIO_WRITE, 0xFED0_0000, 8, sw_scratch=0x10_0000 - 7)
    assert int(ask(device, page).core.vm["event"][0]) == Event.EFAULT


@pytest.mark.parametrize("has_certs", [True, False])
def test_a_report_without_certificates_gets_an_empty_table(has_certs):
    class Firmware(GuestMemory):
        def guest_request(self, request_gpa, response_gpa):
            return 0

    device = everything() if has_certs else Firmware(0x10_0000)
    device.write_memory(0x9034, bytes([lib.SNP_MSG_REPORT_REQ]))
    device.write_memory(0xB000, b"x" * 32)
    page = KINDS["ext_guest_request"][0].copy()
    ask(device, page)
    table = device.read_memory(0xB000, 32)
    assert table == (b"x" * 32 if has_certs else bytes(24) + b"x" * 8)
    assert field(page, "RBX") == (4 if has_certs else 2)


def test_a_device_that_does_not_say_how_many_pages_leaves_rbx():
    device = core_device.Device([lib.GHCB_ACCESS_EXT_GUEST_REQUEST], lambda *_: 0)
    host = CoreHost(Profile(guest=lib.GHCB_GUEST_SNP), 1, device)
    host.vcpus["registered_gpa"] = GPA
    page = KINDS["ext_guest_request"][0].copy()
    host.page(0, page, GPA)
    assert (field(page, "SW_EXIT_INFO_2"), field(page, "RBX")) == (0, 2)


def test_an_extended_request_of_another_message_is_a_plain_one_and_keeps_rbx():
    device = everything()
    device.write_memory(0x9034, bytes([lib.SNP_MSG_KEY_REQ]))
    page = KINDS["ext_guest_request"][0].copy()
    ask(device, page)
    assert device.asked == [("guest_request", 0x9000, 0xA000)]
    assert (field(page, "SW_EXIT_INFO_2"), field(page, "RBX")) == (0x16, 2)


# -- memory


def test_memory_that_was_never_written_is_zero_and_pages_meet():
    memory = GuestMemory(0x3000)
    assert memory.read_memory(0xFFF, 2) == bytes(2)
    assert memory.write_memory(0xFFE, b"abcd")
    assert memory.read_memory(0xFFD, 6) == b"\0abcd\0"
    assert memory.write_memory(0, bytes(range(256)) * 48)
    assert memory.read_memory(0, 0x3000) == bytes(range(256)) * 48


@pytest.mark.parametrize(("gpa", "n"), [(0x3000, 1), (0x2FFF, 2), (2**64 - 1, 1), (0, 0x3001)])
def test_memory_ends_where_it_was_said_to(gpa, n):
    memory = GuestMemory(0x3000)
    assert memory.read_memory(gpa, n) is None
    assert memory.write_memory(gpa, bytes(n)) is None
    assert memory.pages == {}


# -- what a device may do wrong


class Broken(Device):
    def io_read(self, port, size):
        raise LookupError("no such port")

    def mmio_read(self, gpa, size):
        return bytes(size + 1)

    def rdmsr(self, msr):
        return "many"

    def read_memory(self, gpa, n_bytes):
        raise InterruptedError("memory")


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (KINDS["io_read"][0], LookupError, "no such port"),
        (KINDS["mmio_read"][0], OutOfRange, "5 bytes came back for 4"),
        (KINDS["rdmsr"][0], TypeError, "str"),
        (
            page_of(lib.GHCB_NAE_PSC, 0, 16, sw_scratch=0x9000),
            InterruptedError,
            "memory",
        ),
    ],
)
def test_an_exception_of_a_device_reaches_the_caller_once(request_, error, words):
    vm = Host(guest=Guest.SNP, device=Broken())
    vm.core.vcpus["registered_gpa"] = GPA
    page = request_.copy()
    with pytest.raises(error, match=words):
        vm.vmgexit_page(0, page, GPA)
    vm.core.vm["event"] = 0
    assert vm.vmgexit(0, 0x080) == 0x3081  # the next request is not blamed


def test_an_exception_in_a_batch_reaches_the_caller():
    vm = Host(guest=Guest.SNP, device=Broken())
    vm.core.vcpus["registered_gpa"] = GPA
    pages = np.array([page_of(lib.GHCB_NAE_WBINVD), KINDS["rdmsr"][0]])
    with pytest.raises(TypeError, match="str"):
        vm.vmgexit_pages([0, 0], pages, [GPA, GPA])
    assert field(pages[0], "SW_EXIT_INFO_1") == 0


@pytest.mark.parametrize("how", ["msr", "page", "call", "batch"])
def test_a_device_that_calls_its_host_is_refused(how):
    class Recursive(Device):
        def rdmsr(self, msr):
            core = vm.core
            calls = {
                "msr": lambda: core.msr(0, 0x002),
                "page": lambda: core.page(0, page_of(lib.GHCB_NAE_WBINVD), GPA),
                "call": lambda: core.call(0, lib.GHCB_CALL_NMI),
                "batch": lambda: core.msr_batch(np.zeros(1, np.uint32), np.full(1, 2, np.uint64)),
            }
            calls[how]()

    vm = Host(device=Recursive())
    with pytest.raises(StateConflict, match="called the host"):
        vm.vmgexit_page(0, KINDS["rdmsr"][0].copy(), GPA)
    assert vm.vmgexit(0, 0x080) == 0x3081  # nothing is locked


def test_a_device_may_call_another_host():
    other = Host()

    class Chained(Device):
        def rdmsr(self, msr):
            return other.vmgexit(0, 0x080)

    page = KINDS["rdmsr"][0].copy()
    Host(device=Chained()).vmgexit_page(0, page, GPA)
    assert field(page, "RAX") == 0x3081


@pytest.mark.parametrize("kinds", [[-1], [lib.GHCB_ACCESS_END], [2**70], ["io"], [1.5]])
def test_a_core_device_has_only_kinds_that_exist(kinds):
    with pytest.raises((OutOfRange, TypeError)):
        core_device.Device(kinds, lambda *_: 0)


def test_a_core_device_of_kinds_needs_a_function():
    with pytest.raises(TypeError, match="access"):
        core_device.Device([lib.GHCB_ACCESS_IO])
    with pytest.raises(OutOfRange, match="address 0"):
        core_device.Device.from_address(0)


def test_a_result_wider_than_a_register_is_refused():
    device = core_device.Device([lib.GHCB_ACCESS_MSR], lambda *_: 1 << 64 | 5)
    page = KINDS["rdmsr"][0].copy()
    with pytest.raises(OutOfRange, match="0x10000000000000005 does not fit"):
        CoreHost(Profile(), 1, device).page(0, page, GPA)


# -- threads


class Counter(Device):
    """Not safe for threads: what is lost would show."""

    def __init__(self):
        self.n = 0

    def rdmsr(self, msr):
        n = self.n
        for _ in range(20):
            pass
        self.n = n + 1
        return n


def hammer(work, n_threads=2):
    errors = []

    def run(index):
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    assert errors == []


def test_two_threads_on_one_host_take_turns_at_its_device():
    device, seen = Counter(), [[], []]
    vm = Host(2, device=device)

    def work(index):
        for _ in range(400):
            page = KINDS["rdmsr"][0].copy()
            vm.core.page(index, page, GPA)
            seen[index].append(field(page, "RAX"))

    hammer(work)
    assert device.n == 800
    assert sorted(seen[0] + seen[1]) == list(range(800))
    assert seen[0] == sorted(seen[0])


def test_two_hosts_in_two_threads_do_not_meet():
    devices = [Counter(), Counter()]
    hosts = [Host(device=device) for device in devices]

    def work(index):
        for n in range(300):
            page = KINDS["rdmsr"][0].copy()
            hosts[index].core.page(0, page, GPA)
            assert field(page, "RAX") == n
            assert hosts[index].core.msr(0, 0x080) == 0x3081

    hammer(work)
    assert [device.n for device in devices] == [300, 300]


def test_two_threads_with_batches_on_one_host_finish():
    vm = Host(2, device=Counter())
    values = np.full(2000, 0x080, np.uint64)

    def work(index):
        answers = vm.core.msr_batch(np.full(2000, index, np.uint32), values)
        assert (answers == 0x3081).all()

    hammer(work)


def test_the_end_of_a_run_by_a_device_is_told():
    with pytest.raises(VmEnded, match="IO") as ended:
        Host(device=Everything("io_read")).vmgexit_page(0, KINDS["io_read"][0].copy(), GPA)
    assert ended.value.data == 0x03F8_0211
