"""The park code against the steps P7 to P15 of the hand-over: disassembled, and executed.

Unicorn executes it in 16-bit protected mode, entered as an AP enters it: GDT in low memory, CS with
the page as its base. Unicorn knows neither the GHCB MSR nor VMGEXIT; the run stops at these three
instructions and this file is the hypervisor. The machine code around the page is typed by hand, and
so are the numbers: they are the second statement of what ``ghcbcore/jumptable.h`` says.
"""

import os
import re
import shutil
import struct
import subprocess

import numpy as np
import pytest

from ghcbcore import jumptable

CI = os.environ.get("CI") == "true"  # nothing is skipped there

if CI:
    import unicorn
    from unicorn import x86_const as x86
else:
    unicorn = pytest.importorskip("unicorn", reason="extra `guest` is not installed")
    x86 = pytest.importorskip("unicorn.x86_const")

GHCB_MSR = 0xC001_0130
REQUEST = 0x006
SPURIOUS = 0x007
SIPI = 0x1007

GPAS = [0x7FFF_F000, 0x00A0_0000, 0xFFFF_F000]
GPA = GPAS[0]


# --- what the assembler has made of it


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    """Return [(offset in the page, instruction)] of the code up to its last jump."""
    if shutil.which("objdump") is None and not CI:
        pytest.skip("no objdump")
    binary = tmp_path_factory.mktemp("park") / "park.bin"
    binary.write_bytes(jumptable.PARK_CODE[: jumptable.OPERAND_OFFSET + 4 - 0x10])
    command = ["objdump", "-D", "-b", "binary", "-m", "i8086", "--adjust-vma=0x10", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^ +([0-9a-f]+):\t[0-9a-f ]+\t(.*)$", text, re.M)
    return [(int(at, 16), same_words(" ".join(what.split()))) for at, what in rows]


def same_words(what):
    """Undo what differs between versions of binutils: suffixes, and the name of VMGEXIT."""
    what = re.sub(r"^(lgdt|ljmp|push|popf)[lw]\b", r"\1", what)
    return what.replace("repz vmmcall", "vmgexit")


def test_the_steps_of_the_hand_over_stand_in_their_order(listing):
    gdt, operand = jumptable.GDT_OFFSET, jumptable.OPERAND_OFFSET
    steps = [
        f"lgdt %cs:{gdt:#x}",  # P7
        r"ljmp \$0x8,\$0x[0-9a-f]+",
        r"mov \$0x10,%ax",
        "mov %ax,%ds",
        "mov %ax,%ss",
        r"mov \$0x1000,%esp",
        r"mov \$0xc0010130,%ecx",  # P8
        r"mov \$0x6,%eax",
        "xor %edx,%edx",
        "wrmsr",
        "vmgexit",
        "rdmsr",  # P9
        r"and \$0xfff,%ebx",
        r"cmp \$0x7,%ebx",
        "jne 0x[0-9a-f]+",
        r"shr \$0xc,%eax",
        "or %edx,%eax",
        "je 0x[0-9a-f]+",
        "mov 0x0,%eax",  # P10
        f"mov %eax,{operand:#x}",
        r"push \$0x2",  # P11
        "popf",
        "mov %cx,%ds",  # P12
        "mov %cx,%ss",
        r"mov \$0x0,%esp",  # P13
        r"mov \$0x60000010,%ecx",  # P14
        "mov %ecx,%cr0",
        r"ljmp \$0x0,\$0x0",  # P15
    ]
    at = -1
    for step in steps:
        found = [i for i, (_, what) in enumerate(listing) if i > at and re.fullmatch(step, what)]
        assert found, f"{step!r} does not come after {listing[at]}"
        at = found[0]
    assert at == len(listing) - 1


def test_both_ways_back_write_the_request_again(listing):
    at = {what: where for where, what in listing}
    again = at["mov $0x6,%eax"]
    assert [what for _, what in listing if re.match("j|loop|call", what)] == [
        f"jne {again:#x}",
        f"je {again:#x}",
    ]


def test_the_jump_is_the_instruction_after_the_load_of_cr0(listing):
    whats = [what for _, what in listing]
    assert whats[-2:] == ["mov %ecx,%cr0", "ljmp $0x0,$0x0"]
    assert sum("%cr0" in what for what in whats) == 1


def test_nothing_touches_the_flags_after_they_are_set(listing):
    whats = [what for _, what in listing]
    after = whats[whats.index("popf") + 1 :]
    assert {what.split()[0] for what in after} == {"mov", "nop", "ljmp"}


def test_memory_is_used_at_four_places_only(listing):
    """GDT, reset vector, operand, and one push: every CPU may do it at the same time."""
    whats = [what for _, what in listing]
    assert [w for w in whats if re.search(r"\(|%.s:|[ ,]0x|push|pop", w) and w[0] != "j"] == [
        f"lgdt %cs:{jumptable.GDT_OFFSET:#x}",
        "mov 0x0,%eax",
        f"mov %eax,{jumptable.OPERAND_OFFSET:#x}",
        "push $0x2",
        "popf",
    ]


# --- the machine that executes it

BOOT = 0x1000  # the stub that stands for P6
LOW_GDT = 0x0500
DUMP = 0x7000  # where the code at the reset vector leaves what it has found
GENERAL = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"]  # as encoded
SEGMENTS = ["es", "cs", "ss", "ds", "fs", "gs"]
GARBAGE = {
    x86.UC_X86_REG_EAX: 0xA1A1_A1A1,
    x86.UC_X86_REG_EBX: 0xB2B2_B2B2,
    x86.UC_X86_REG_ECX: 0xC3C3_C3C3,
    x86.UC_X86_REG_EDX: 0xD4D4_D4D4,
    x86.UC_X86_REG_ESI: 0xE5E5_E5E5,
    x86.UC_X86_REG_EDI: 0xF6F6_F6F6,
    x86.UC_X86_REG_EBP: 0x1717_1717,
    x86.UC_X86_REG_ESP: 0x2828_2828,
}
HLT = b"\xf4"
STOPS = {
    bytes.fromhex("0f30"): "wrmsr",
    bytes.fromhex("f30f01d9"): "vmgexit",
    bytes.fromhex("0f32"): "rdmsr",
}


def boot_stub():
    return bytes.fromhex(
        "f9 fd"  # stc; std: flags that must not survive
        "66 0f 01 16 f8 04"  # lgdtl 0x4f8
        "0f 20 c0 0c 01 0f 22 c0"  # CR0.PE := 1
        "ea 10 00 08 00"  # ljmp $0x08,$0x10
    )


def dump_code(marker):
    """Return real-mode code that stores all registers and a marker through DS, then halts."""
    code = b""
    for i in range(len(GENERAL)):
        code += struct.pack("<BBBH", 0x66, 0x89, i << 3 | 6, DUMP + 4 * i)
    for i in range(len(SEGMENTS)):
        code += struct.pack("<BBH", 0x8C, i << 3 | 6, DUMP + 0x20 + 2 * i)
    code += bytes.fromhex("669c")  # pushfl, through SS
    code += struct.pack("<BBBH", 0x66, 0x8F, 6, DUMP + 0x2C)  # popl
    code += bytes.fromhex("0f20c0")  # mov %cr0,%eax
    code += struct.pack("<BBBH", 0x66, 0x89, 6, DUMP + 0x30)
    code += struct.pack("<BBHH", 0xC7, 6, DUMP + 0x34, marker)
    return code + HLT


class Cpu:
    """An AP: its registers while another one runs, its GHCB MSR and what it has asked."""

    def __init__(self, context):
        self.context = context
        self.msr = 0
        self.asked = []
        self.halted_at = None


class Machine:
    """Low memory, a jump table page and any number of APs, one of which runs at a time."""

    def __init__(self, gpa, page=None):
        self.gpa = gpa
        self.uc = uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_16)
        uc.mem_map(0, 1 << 20)
        uc.mem_map(gpa, 4096)
        self.page = jumptable.build_page(gpa) if page is None else page
        uc.mem_write(gpa, self.page.tobytes())
        code16 = struct.pack("<HHBBBB", 0xFFFF, gpa & 0xFFFF, gpa >> 16 & 0xFF, 0x9B, 0, gpa >> 24)
        uc.mem_write(LOW_GDT, bytes(8) + code16)
        uc.mem_write(0x4F8, struct.pack("<HI", 15, LOW_GDT))
        uc.mem_write(BOOT, boot_stub())
        for register, value in GARBAGE.items():
            uc.reg_write(register, value)
        uc.reg_write(x86.UC_X86_REG_SS, 0x4000)
        uc.hook_add(unicorn.UC_HOOK_CODE, self._on_code, begin=gpa, end=gpa + 4095)
        self.fresh = uc.context_save()
        self.stopped_at = None

    def _on_code(self, uc, linear, size, user_data):
        text = bytes(uc.mem_read(linear, 4))
        for opcode, name in STOPS.items():
            if text.startswith(opcode):
                self.stopped_at = name, len(opcode)
                uc.emu_stop()

    def _run(self, cpu, ip):
        """Run until the CPU holds in VMGEXIT (True) or halts at the reset vector (False)."""
        uc = self.uc
        for _ in range(50):
            self.stopped_at = None
            # Unicorn takes the selector for a real-mode segment: IP = begin - CS * 16
            uc.emu_start(ip + 16 * uc.reg_read(x86.UC_X86_REG_CS), 0, count=10_000)
            ip = uc.reg_read(x86.UC_X86_REG_EIP)
            if self.stopped_at is None:
                cpu.halted_at = cs, ip = uc.reg_read(x86.UC_X86_REG_CS), ip - 1
                assert uc.mem_read(16 * cs + ip, 1) == HLT, f"lost at {cs:#x}:{ip:#x}"
                break
            name, length = self.stopped_at
            if name != "vmgexit":
                assert uc.reg_read(x86.UC_X86_REG_ECX) == GHCB_MSR
            if name == "wrmsr":
                low, high = (uc.reg_read(r) for r in (x86.UC_X86_REG_EAX, x86.UC_X86_REG_EDX))
                cpu.msr = high << 32 | low
            if name == "rdmsr":
                uc.reg_write(x86.UC_X86_REG_EAX, cpu.msr & 0xFFFF_FFFF)
                uc.reg_write(x86.UC_X86_REG_EDX, cpu.msr >> 32)
            ip += length
            uc.reg_write(x86.UC_X86_REG_EIP, ip)
            if name == "vmgexit":
                cpu.asked.append(cpu.msr)
                break
        else:
            pytest.fail(f"neither holds nor halts, at {ip:#x}")
        uc.context_update(cpu.context)
        return cpu.halted_at is None

    def park(self):
        """Bring a new AP to its first hold."""
        self.uc.context_restore(self.fresh)
        cpu = Cpu(self.uc.context_save())
        assert self._run(cpu, BOOT)
        return cpu

    def answer(self, cpu, msr):
        """Let VMGEXIT return with ``msr``; say whether the AP holds again."""
        self.uc.context_restore(cpu.context)
        cpu.msr = msr
        return self._run(cpu, self.uc.reg_read(x86.UC_X86_REG_EIP))

    def point_to(self, ip, cs, marker):
        """Be the next kernel: put code at CS:IP and its address into the page."""
        self.uc.mem_write(16 * cs + ip, dump_code(marker))
        page = self.read_page()
        jumptable.set_reset_vector(page, ip, cs)
        self.uc.mem_write(self.gpa, page.tobytes()[:4])

    def read_page(self):
        return np.frombuffer(self.uc.mem_read(self.gpa, 4096), dtype=np.uint8).copy()

    def dump(self, base=0):
        names = [*GENERAL, *SEGMENTS, "eflags", "cr0", "marker"]
        values = struct.unpack("<8I6HIIH", self.uc.mem_read(base + DUMP, 0x36))
        return dict(zip(names, values, strict=True))


# --- what it does


@pytest.mark.parametrize("gpa", GPAS)
def test_an_ap_asks_until_a_sipi_and_arrives_as_after_a_reset(gpa):
    machine = Machine(gpa)
    machine.point_to(0x0040, 0x09A0, marker=0x5EED)
    ap = machine.park()
    assert machine.answer(ap, 0x1005)  # an answer, but to another request
    assert machine.answer(ap, SPURIOUS)
    assert not machine.answer(ap, SIPI)

    assert ap.asked == [REQUEST] * 3
    assert ap.halted_at == (0x09A0, 0x0040 + len(dump_code(0)) - 1)
    found = machine.dump()
    assert found == {
        **dict.fromkeys(GENERAL, 0),
        "ecx": 0x6000_0010,
        **dict.fromkeys(SEGMENTS, 0x18),
        "cs": 0x09A0,
        "eflags": 2,
        "cr0": 0x6000_0010,
        "marker": 0x5EED,
    }


@pytest.mark.parametrize(
    "not_a_sipi",
    [0x0, REQUEST, 0x1006, 0x1005, SPURIOUS, 0x1008, 0x1107, 0x1807, 2**63 | 0x005, 2**64 - 1],
)
def test_no_other_answer_releases_an_ap(not_a_sipi):
    machine = Machine(GPA)
    machine.point_to(0, 0x0900, marker=1)
    ap = machine.park()
    assert machine.answer(ap, not_a_sipi)
    assert machine.answer(ap, not_a_sipi)
    assert ap.asked == [REQUEST] * 3
    assert not machine.answer(ap, SIPI)


@pytest.mark.parametrize("data_bit", [12, 31, 32, 63])
def test_any_bit_of_the_data_is_a_sipi(data_bit):
    machine = Machine(GPA)
    machine.point_to(0, 0x0900, marker=1)
    assert not machine.answer(machine.park(), 1 << data_bit | SPURIOUS)
    assert machine.dump()["edx"] == 0


def test_the_vector_written_while_an_ap_is_parked_is_the_one_it_takes():
    machine = Machine(GPA)
    machine.point_to(0x0010, 0x0900, marker=0x0001)
    ap = machine.park()
    machine.point_to(0x0020, 0x0A00, marker=0x0002)
    assert machine.answer(ap, SPURIOUS)
    machine.point_to(0xFFF0, 0x0B00, marker=0x0003)
    assert not machine.answer(ap, SIPI)
    assert ap.halted_at[0] == 0x0B00
    assert machine.dump()["marker"] == 0x0003


def test_two_aps_on_one_page_go_each_where_the_page_says_when_they_are_woken():
    machine = Machine(GPA)
    first, second = machine.park(), machine.park()
    for ap, (ip, cs) in ((first, (0x0010, 0x0900)), (second, (0x0230, 0x0A00))):
        machine.point_to(ip, cs, marker=cs)
        assert not machine.answer(ap, SIPI)
        assert ap.halted_at == (cs, ip + len(dump_code(0)) - 1)
        assert machine.dump()["marker"] == cs
        found = jumptable.decode_page(machine.read_page(), gpa=GPA)
        assert found.last_jump == (ip, cs)
        assert found.problems == ()
    assert first.asked == second.asked == [REQUEST]


def test_an_ap_may_park_where_another_has_left():
    machine = Machine(GPA)
    machine.point_to(0x0010, 0x0900, marker=1)
    assert not machine.answer(machine.park(), SIPI)
    late = machine.park()
    machine.point_to(0x0020, 0x0A00, marker=2)
    assert not machine.answer(late, SIPI)
    assert late.halted_at[0] == 0x0A00
    assert machine.dump()["marker"] == 2


def test_an_ap_changes_the_operand_and_its_four_bytes_of_stack_and_nothing_else():
    machine = Machine(GPA)
    machine.point_to(0x0010, 0x0900, marker=1)
    before = machine.read_page()
    assert not machine.answer(machine.park(), SIPI)
    changed = set(np.flatnonzero(before != machine.read_page()).tolist())
    operand = jumptable.OPERAND_OFFSET
    assert changed == {operand, operand + 3, 0xFFC}  # 0x0010, 0x0900 and the flags: 2


def test_the_broken_descriptor_of_rfc_and_v1_sends_stores_elsewhere_and_is_noticed():
    page = jumptable.build_page(GPA)
    at = jumptable.GDT_OFFSET + 0x18
    row = struct.pack("<HHBBBB", 0x0180, 0xFFFF, 0, 0x93, 0, 0)
    page[at : at + 8] = np.frombuffer(row, dtype=np.uint8)
    assert jumptable.decode_page(page, gpa=GPA).problems == (
        "real-mode data: base 0xffff, not 0x0",
        "real-mode data: limit 0x180, not 0xffff",
    )
    machine = Machine(GPA, page)
    machine.point_to(0, 0x0900, marker=0xBAD)
    assert not machine.answer(machine.park(), SIPI)
    assert machine.dump()["marker"] == 0
    assert machine.dump(base=0xFFFF)["marker"] == 0xBAD
