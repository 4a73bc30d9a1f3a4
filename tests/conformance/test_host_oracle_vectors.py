"""The oracle of KVM's host, and the core's, answer what was computed by hand: page, MSR, AP."""

import csv
from pathlib import Path

import host_oracle as oracle
import pytest
from ghcb_oracle import REPLIED_REGISTERS
from host_pair import KINDS, SWITCHES, CoreSide

from ghcbcore.errors import StateConflict

DATA = Path(__file__).resolve().parents[1] / "data"
GPA = 0x7000
FIELDS = {
    "code": oracle.CODE,
    "info1": oracle.INFO1,
    "info2": oracle.INFO2,
    "rax": oracle.RAX,
    "rbx": oracle.RBX,
    "rcx": oracle.RCX,
    "rdx": oracle.RDX,
    "scratch": oracle.SCRATCH,
    "xcr0": oracle.XCR0,
    "cpl": oracle.CPL,
}
CPUID = [
    (0x8000_001F, 0, 0x1, 0x4173, 0x3, 0x4),
    (0xD, 0, 0x7, 0x240, 0x340, 0),
    (0xD, 1, 0xF, 0x340, 0x1800, 0),
]
KVM_REPLY = (0x8000_0000_0000_0000, 0x0018_000E_0000_0000)

with (DATA / "nae_vectors.csv").open(newline="") as file:
    assert "Origin:" in next(file)
    ROWS = list(csv.DictReader(file))


class Desk:
    """A device whose answers anybody can compute, with memory from 0x9000 to 0xbfff."""

    def __init__(self, certs=False):
        self.kinds = {*KINDS, "memory"} - (set() if certs else {"ext_guest_request"})
        self.calls = []
        self.bytes = bytearray(0x3000)
        self.bytes[0x1034] = 5  # a report request at 0xa000

    def memory(self, gpa, n, data=None):
        if gpa < 0x9000 or gpa + n > 0xC000:
            return None
        if data is None:
            return bytes(self.bytes[gpa - 0x9000 : gpa - 0x9000 + n])
        assert len(data) == n
        self.bytes[gpa - 0x9000 : gpa - 0x9000 + n] = data
        return True

    def access(self, kind, cpu, address, is_write, size, count, data, args):
        call = f"{kind}:{address:#x}:{count}"
        self.calls.append(call + f":{args[0]:#x}" if args else call)
        assert cpu == 0
        if data is not None:
            assert len(data) == size * count
        return {
            "io": (0, bytes(0xA1 + i & 0xFF for i in range(size * count))),
            "mmio": (0, bytes(0xB1 + i & 0xFF for i in range(size))),
            "msr": (int(address == 0xBAD), 0x1122_3344_5566_7788.to_bytes(8, "little")),
            "pmc": (0, 0x0102_0304_0506_0708.to_bytes(8, "little")),
            "map_gpa": (int(address >= 2**32), None),
            "vmmcall": (0, 0x77),
            "guest_request": (0, (0x16, 0)),
            "ext_guest_request": (0, (1 << 32, 4)),
        }[kind]


def pairs(text):
    return dict(word.split("=") for word in text.split() if "=" in word)


def number(text):
    return int(text, 0)


def core_host(guest, n, *, device=None, cpuid=(), extra=(), **switches):
    """The core's host with the switches of the oracle's."""
    common = {name: switches.pop(name) for name in ("max_version",) if name in switches}
    rules = [
        rule
        for rule, words in SWITCHES.items()
        if any((name, value) in switches.items() for name, value in words.items())
    ]
    assert len(rules) == len(switches)
    return CoreSide(guest, n, device, rules=rules, extra=extra, cpuid=cpuid, **common)


def host_of(row, device, side):
    switches = pairs(row["switches"])
    switches.pop("certs", None)
    registered = number(switches.pop("registered", hex(GPA)))
    jump_table = number(switches.pop("jump_table", "0"))
    values = {"yes": True, "no": False}
    arguments = {
        name: values.get(value, int(value) if value.isdigit() else value)
        for name, value in switches.items()
    }
    if "extra" in arguments:
        arguments["extra"] = {arguments["extra"]}
    make = oracle.HostOracle if side == "oracle" else core_host
    host = make(row["guest"], 4, cpuid=CPUID, device=device, **arguments)
    host.vm["jump_table"] = jump_table
    for cpu in range(4):
        host.vcpus[cpu]["registered_gpa"] = registered if row["guest"] == "snp" else 0
    return host


def page_of(text):
    page = oracle.Page(bytearray(4096))
    given = {name: number(value) for name, value in pairs(text).items()}
    for name, offset in FIELDS.items():
        if name in given and name == "cpl":
            page.content[offset] = given[name]
        elif name in given:
            page.store(offset, given[name])
        if (name in given or name in ("code", "info1", "info2")) and f"-{name}" not in text.split():
            page.mark_valid(offset)
    page.content[oracle.USAGE :] = given.get("usage", 0).to_bytes(4, "little")
    return page, given


def place_of_buffer(page, device, given):
    """The bytes and the offset at which the scratch area is."""
    scratch = given.get("scratch", 0)
    if scratch & ~0xFFF == GPA:
        return page.content, scratch - GPA
    return (device.bytes, scratch - 0x9000) if device else (bytearray(), 0)


def bitmap(page):
    return page.number(oracle.VALID_BITMAP), page.number(oracle.VALID_BITMAP + 8)


# what only the oracle tells: several VMPLs, and how the newest KVM counts entries
ORACLE_ALONE = ("psc_limit", "vmpl_in_ap_create", "run VMPL without VMSA")
BOTH = [row for row in ROWS if not any(word in str(row) for word in ORACLE_ALONE)]
SIDES = [("oracle", row) for row in ROWS] + [("core", row) for row in BOTH]


@pytest.mark.parametrize(
    ("side", "row"), SIDES, ids=[f"{side}-{row['case']}" for side, row in SIDES]
)
def test_page_is_answered_as_computed_by_hand(side, row):
    device = Desk("certs=yes" in row["switches"]) if row["device"] else None
    host = host_of(row, device, side)
    page, given = page_of(row["page"])
    before = [number(word) for word in row["buffer"].split()]
    content, start = place_of_buffer(page, device, given)
    for index, word in enumerate(before):
        content[start + 8 * index : start + 8 * index + 8] = word.to_bytes(8, "little")
    asked = bytes(page.content)
    host.page(0, page.content, GPA)

    is_unmarked = row["reply"] == "unmarked"
    wanted = {"info1": 0, "info2": 0}
    if is_unmarked:
        wanted = {name: given.get(name, 0) for name in wanted}
    wanted |= {name: given.get(name, 0) for name in ("rax", "rbx", "rcx", "rdx")}
    wanted |= {name: number(value) for name, value in pairs(row["reply"]).items()}
    got = {name: page.number(FIELDS[name]) for name in wanted}
    assert {k: hex(v) for k, v in got.items()} == {k: hex(v) for k, v in wanted.items()}
    assert bitmap(page) == ((0, 0) if is_unmarked else KVM_REPLY)

    after = [number(word) for word in row["buffer_after"].split()]
    area = [content[start + 8 * i : start + 8 * i + 8] for i in range(len(after))]
    assert [int.from_bytes(word, "little") for word in area] == after
    touched = {*REPLIED_REGISTERS, oracle.INFO1, oracle.INFO2, oracle.VALID_BITMAP}
    touched.add(oracle.VALID_BITMAP + 8)
    if content is page.content:
        touched |= {start + 8 * index for index in range(len(after))}
    for offset in range(0, 4096, 8):
        if offset not in touched:
            assert page.content[offset : offset + 8] == asked[offset : offset + 8], hex(offset)

    event, _, data = row["event"].partition(":")
    assert (host.vm["event"], host.vm["event_data"]) == (event or "none", number(data or "0"))
    if row["calls"]:
        assert device.calls == ([] if row["calls"] == "none" else row["calls"].split())
    for name, value in pairs(row["state"]).items():
        cpu, field = name.split(".")
        state = host.vcpus[int(cpu)][field]
        assert state == (value if isinstance(state, str) else number(value)), name


def test_vectors_reach_every_event_and_every_refusal():
    codes = {page_of(row["page"])[0].number(oracle.CODE) for row in ROWS}
    assert codes >= {*oracle.INPUTS, *oracle.SNP_ONLY}
    assert codes >= {0x8000_0014, 0x8000_0015, 0x8000_0017, 0x8000_0018}
    refusals = {
        pairs(row["reply"]).get("info2") for row in ROWS if row["reply"].startswith("info1=2")
    }
    assert refusals == {"0", "1", "2", "3", "4", "5", "6"}
    names = {row["case"] for row in ROWS}
    assert len(names) == len(ROWS)


# request and reply of section 12; the guest, and whether user space handles page state changes
MSR_VECTORS = [
    ("sev_es", False, 0x0000_0000_0000_0002, 0x0002_0001_3300_0001),
    ("sev_es", False, 0x8000_001F_4000_0004, 0x0000_4173_4000_0005),
    ("snp", False, 0x0000_0000_0000_0010, 0xFFFF_FFFF_FFFF_F011),
    ("snp", False, 0x0000_0000_04E1_4012, 0x0000_0000_04E1_4013),
    ("snp", True, 0x0010_0000_1234_5014, 0x0000_0000_0000_0015),
    ("snp", True, 0x0020_0000_1234_5014, 0x0000_0000_0000_0015),
    ("snp", True, 0x0030_0000_1234_5014, 0x8000_0000_0000_0015),
    ("snp", True, 0x0020_0001_0000_0014, 0x8000_0000_0000_0015),  # user space refuses
    ("snp", False, 0x0010_0000_1234_5014, 0x8000_0000_0000_0015),
    ("sev_es", False, 0x0000_0000_0000_0006, 0x0000_0000_0000_0007),
    ("sev_es", False, 0x0000_0000_0000_0080, 0x0000_0000_0000_3081),
    ("sev_es", False, 0x0000_0002_0000_0016, 0x0000_0002_0000_0016),  # KVM keeps it
    ("snp", False, 0x0000_0000_0000_0018, 0x0000_0000_0000_0018),
]


@pytest.mark.parametrize("side", ["oracle", "core"])
@pytest.mark.parametrize(("guest", "has_user_space", "request_", "reply"), MSR_VECTORS)
def test_msr_request_is_answered_as_in_section_12(guest, has_user_space, request_, reply, side):
    device = Desk() if has_user_space else None
    make = oracle.HostOracle if side == "oracle" else core_host
    host = make(guest, 1, cpuid=CPUID, device=device)
    assert hex(host.msr(0, request_)) == hex(reply)
    assert host.vm["event"] == "none"


@pytest.mark.parametrize("make", [oracle.HostOracle, core_host])
@pytest.mark.parametrize(("operation", "attributes"), [(1, "0x10"), (2, "0x0")])
def test_page_state_msr_asks_user_space_for_one_page(operation, attributes, make):
    device = Desk()
    make("snp", 1, device=device).msr(0, operation << 52 | 0x1234_5014)
    assert device.calls == [f"map_gpa:0x12345000:1:{attributes}"]


def test_reset_leaves_the_sev_information_of_section_12():
    assert oracle.HostOracle().vcpus[0]["msr"] == 0x0002_0001_3300_0001
    assert core_host("sev_es", 1).vcpus[0]["msr"] == 0x0002_0001_3300_0001
    v1 = oracle.HostOracle(max_version=1, c_bit=47)
    assert v1.vcpus[0]["msr"] == 0x0001_0001_2F00_0001
    assert oracle.HostOracle("plain").vcpus[0]["msr"] == 0


@pytest.mark.parametrize("value", [0x100, 0x1_0100, 0x2_0100, 0x1_1100, 0x2_1100, 0x3_F100])
@pytest.mark.parametrize("guest", ["sev_es", "snp"])
@pytest.mark.parametrize("make", [oracle.HostOracle, core_host])
def test_termination_ends_the_vm_with_the_msr(guest, value, make):
    host = make(guest, 1)
    assert host.msr(0, value) == value
    told = {name: host.vm[name] for name in ("jump_table", "event", "event_data")}
    assert told == {"jump_table": 0, "event": "sev_term", "event_data": value}
    with pytest.raises((oracle.Ended, StateConflict)):
        host.msr(0, 0x002)


@pytest.mark.parametrize("value", [0x010, 0x4E1_4012, 0x10_0000_1234_5014])
def test_snp_msr_of_another_guest_ends_the_vm(value):
    host = oracle.HostOracle("sev_es", device=Desk())
    assert host.msr(0, value) == value
    assert (host.vm["event"], host.vm["event_data"]) == ("sev_term", value)


@pytest.mark.parametrize("value", [0x003, 0x016, 0x018, 0xF03, 0x5_0017])
def test_unknown_msr_function_is_kept_or_ends_the_vm(value):
    assert oracle.HostOracle("snp").msr(0, value) == value
    host = oracle.HostOracle("snp", unknown_msr="einval")
    assert host.msr(0, value) == value
    assert (host.vm["event"], host.vm["event_data"]) == ("einval", value)


def test_unregister_gives_the_page_back_once():
    host = oracle.HostOracle("snp", extra={"unregister"})
    assert host.msr(0, 0x018) == 0xFFFF_FFFF_FFFF_F019
    host.msr(0, 0x4E1_4012)
    assert host.msr(0, 0x018) == 0x4E1_4019
    assert host.vcpus[0]["registered_gpa"] == 0


def test_run_vmpl_by_msr_needs_a_vmsa():
    host = oracle.HostOracle("snp", 2, extra={"run_vmpl"}, vmpl_in_ap_create=True)
    assert host.msr(0, 0x0000_0001_0000_0016) == 0x0000_0001_0000_0017
    host.msr(0, GPA | 0x012)
    ask(host, "code=0x80000013 info1=0x10001 info2=0x5000 rax=1")
    assert host.msr(0, 0x0000_0001_0000_0016) == 0x017
    assert host.vcpus[0]["vmpl"] == 1


def ask(host, text):
    page, _ = page_of(text)
    host.page(0, page.content, GPA)
    return page.number(oracle.INFO1), page.number(oracle.INFO2)


def snp_host():
    host = oracle.HostOracle("snp", 2)
    host.vcpus[0]["registered_gpa"] = GPA
    return host


def state(host, *names):
    return tuple(host.vcpus[1][name] for name in names)


@pytest.mark.parametrize("operation", [0, 1])
def test_a_new_vmsa_of_an_ap_that_never_ran_waits_for_init_and_sipi(operation):
    host = snp_host()
    assert ask(host, f"code=0x80000013 info1={1 << 32 | operation} info2=0x5000 rax=1") == (0, 0)
    host.send_init(1)
    host.init(1)
    assert state(host, "mp_state", "vmsa", "entry") == (oracle.INIT_RECEIVED, "guest", "vmsa")
    host.send_sipi(1)
    host.sipi(1)
    wanted = (oracle.RUNNABLE, "vmsa", "none", 0x5000)
    assert state(host, "mp_state", "entry", "ap_pending", "vmsa_gpa") == wanted


@pytest.mark.parametrize("asleep", [oracle.RUNNABLE, oracle.HALTED, oracle.AP_RESET_HOLD])
def test_create_now_wakes_an_ap_that_ran(asleep):
    host = snp_host()
    host.vcpus[1] |= {"mp_state": asleep, "nmi_pending": 1, "reset_hold": "msr"}
    ask(host, f"code=0x80000013 info1={1 << 32 | 1} info2=0x5000 rax=1")
    wanted = (oracle.RUNNABLE, "vmsa", 0, "none")
    assert state(host, "mp_state", "entry", "nmi_pending", "reset_hold") == wanted


def test_create_on_init_leaves_a_running_ap_alone():
    host = snp_host()
    host.vcpus[1]["mp_state"] = oracle.RUNNABLE
    ask(host, f"code=0x80000013 info1={1 << 32} info2=0x5000 rax=1")
    assert state(host, "mp_state", "vmsa", "ap_pending") == (oracle.RUNNABLE, "launch", "on_init")


@pytest.mark.parametrize("how", ["nmi", "startup"])
def test_a_destroyed_ap_cannot_be_run(how):
    host = snp_host()
    host.vcpus[1]["mp_state"] = oracle.RUNNABLE
    ask(host, f"code=0x80000013 info1={1 << 32 | 2}")
    assert state(host, "mp_state", "vmsa", "vmsa_gpa") == (oracle.HALTED, "none", 0)
    if how == "nmi":
        host.nmi(1)
    else:
        for what in (host.send_init, host.init, host.send_sipi, host.sipi):
            what(1)
    assert host.vm["event"] == "einval"


def test_a_destroyed_ap_runs_from_a_new_vmsa():
    host = snp_host()
    host.vcpus[1]["mp_state"] = oracle.RUNNABLE
    ask(host, f"code=0x80000013 info1={1 << 32 | 2}")
    assert ask(host, f"code=0x80000013 info1={1 << 32 | 1} info2=0x6000 rax=1") == (0, 0)
    assert state(host, "mp_state", "entry", "vmsa_gpa") == (oracle.RUNNABLE, "vmsa", 0x6000)
    assert host.vm["event"] == "none"


def test_a_hold_that_a_startup_ends_is_answered():
    host = oracle.HostOracle(n=1)
    host.vcpus[0]["first_sipi"] = 1
    assert host.msr(0, 0x006) == 0x007
    host.vcpus[0]["mp_state"] = oracle.INIT_RECEIVED
    host.send_sipi(0)
    host.sipi(0)
    assert host.vcpus[0]["msr"] == 0x1007


@pytest.mark.parametrize(
    "wrong",
    [{"guest": "tdx"}, {"mmio_max_v2": 9}, {"unknown_msr": "x"}, {"extra": {"x"}}],
)
def test_a_switch_that_does_not_exist_is_refused(wrong):
    with pytest.raises(ValueError):
        oracle.HostOracle(**wrong)
