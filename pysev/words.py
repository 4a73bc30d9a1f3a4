"""The words of the field, as operations and effects of a flow.

Each is a few lines over ``pysev.flow``; a flow that needs another word writes another function.
``Memory`` is the word for memory that a kernel loses to the next one: what is executed from it,
or translated through it, after that is a *foreign fetch*.
"""

from __future__ import annotations

import enum

from ghcbcore._cffi import lib

from . import costs
from .flow import (
    Agent,
    Effect,
    Field,
    Flow,
    Hazard,
    Memory,
    Op,
    Words,
    add,
    call,
    number_of,
    op,
    put,
    when,
)
from .layout import Part

__all__ = [
    "Fate",
    "Memory",
    "ask_msr",
    "ask_nae",
    "create_ap",
    "declare_fates",
    "destroy_ap",
    "halt",
    "hypervisor_threads",
    "memory",
    "send_init",
    "send_nmi",
    "send_startup",
]


class Fate(enum.IntEnum):
    """What became of a CPU: the word ``cpu.fate``."""

    ALIVE = 0
    TRIPLE_FAULT = 1
    EXECUTES_FOREIGN_DATA = 2


def declare_fates(flow: Flow) -> None:
    """Declare ``cpu.fate`` (``Fate``) and ``cpu.foul``: 1 + the number of the ``Memory`` from which
    the CPU fetched although it was no longer its kernel's, 0 if it never did."""
    flow.per_cpu(fate=Fate.ALIVE, foul=0)
    flow.name_values("fate", Fate)


def memory(
    flow: Flow, agent: Agent, name: str, title: str, part: Part, *, executed: bool
) -> tuple[Memory, Hazard]:
    """Declare ``flow.g.name`` and what it means to lose it.

    Parameters
    ----------
    agent : Agent
        Whose CPUs execute from it; it needs a label ``dead``.
    part : Part
        What it is in the machine's layout.
    executed : bool
        True for text: what stands there now may be executed, or end in a triple fault. False for
        page tables: the translation fails, and so does every fault handler.

    Returns
    -------
    (Memory, Hazard)
        The hazard is for ``agent.under``.
    """
    number = len(flow.memories)
    flow.globals(**{f"{name}_taken": 0})
    taken: Field = getattr(flow.g, f"{name}_taken")
    cpu = flow.cpu
    foul = put(cpu.foul, number + 1)
    instead = [
        op(
            f"FOREIGN FETCH: the {title} belongs to the new kernel: #PF, #DF, triple fault",
            do=[foul, put(cpu.fate, Fate.TRIPLE_FAULT), call(lib.GHCB_CALL_SHUTDOWN, cpu)],
            to="dead",
        )
    ]
    if executed:
        instead.append(
            op(
                f"FOREIGN FETCH: the {title} belongs to the new kernel: its bytes are executed",
                do=[foul, put(cpu.fate, Fate.EXECUTES_FOREIGN_DATA)],
                to="dead",
            )
        )
    made = Memory(title, taken, number, part)
    flow.memories.append(made)
    return made, Hazard(taken == 0, tuple(instead))


def ask_msr(vcpu: Words, request: int | Field) -> list[Effect]:
    """WRMSR to the GHCB MSR, VMGEXIT; the answer is ``vcpu.msr`` afterwards."""
    return [put(vcpu.msr, request), call(lib.GHCB_CALL_VMGEXIT, vcpu)]


def ask_nae(
    vcpu: Words, ghcb_gpa: int, code: int, info_1: int = 0, info_2: int = 0
) -> list[Effect]:
    """Fill in the GHCB, VMGEXIT; the answer is in the vCPU's ``sw_exit_info_1`` and ``_2``."""
    return [
        put(vcpu.sw_exit_code, code),
        put(vcpu.sw_exit_info_1, info_1),
        put(vcpu.sw_exit_info_2, info_2),
        *ask_msr(vcpu, ghcb_gpa),
    ]


def create_ap(
    vcpu: Words, target: Words, ghcb_gpa: int, vmsa_gpa: int, *, on_init: bool = False
) -> list[Effect]:
    """VMGEXIT of an SNP guest: the target runs from a VMSA, at once or from its next INIT on.

    The answer is in ``vcpu.sw_exit_info_1``: 0, or 2 for a refusal. ``target.entry`` is
    ``GHCB_ENTRY_VMSA`` once the vCPU has it; ``vmsa_gpa`` lies on a page boundary, but not on one
    of 2 MiB (KVM refuses those). Source: GHCB NAE event 0x80000013; ``ghcbcore/answer_snp.h``.
    """
    what = lib.GHCB_AP_CREATE_ON_INIT if on_init else lib.GHCB_AP_CREATE_NOW
    return _ap_creation(vcpu, target, ghcb_gpa, what, vmsa_gpa)


def destroy_ap(vcpu: Words, target: Words, ghcb_gpa: int) -> list[Effect]:
    """VMGEXIT of an SNP guest: the target has no VMSA any more (``GHCB_VMSA_NONE``) and halts."""
    return _ap_creation(vcpu, target, ghcb_gpa, lib.GHCB_AP_CREATE_DESTROY, 0)


def _ap_creation(
    vcpu: Words, target: Words, ghcb_gpa: int, what: int, vmsa_gpa: int
) -> list[Effect]:
    return [
        put(vcpu.sw_exit_code, lib.GHCB_NAE_SNP_AP_CREATION),
        number_of(vcpu.sw_exit_info_1, target, shift=lib.GHCB_AP_CREATE_APIC_ID_SHIFT),
        add(vcpu.sw_exit_info_1, what),
        put(vcpu.sw_exit_info_2, vmsa_gpa),
        *ask_msr(vcpu, ghcb_gpa),
    ]


def halt(vcpu: Words) -> Effect:
    """HLT: the vCPU is not RUNNABLE until something wakes it."""
    return call(lib.GHCB_CALL_HLT, vcpu)


def send_init(other: Words) -> Effect:
    return call(lib.GHCB_CALL_SEND_INIT, other)


def send_startup(other: Words, vector: int) -> list[Effect]:
    """STARTUP with a vector: the page number of the real-mode code, below 1 MiB."""
    return [put(other.sipi_vector, vector), call(lib.GHCB_CALL_SEND_SIPI, other)]


def send_nmi(other: Words) -> Effect:
    return call(lib.GHCB_CALL_NMI, other)


def hypervisor_threads(flow: Flow, reset: list[Effect]) -> Agent:
    """Add the hypervisor's thread of each vCPU: INIT and STARTUP reach the vCPU some time.

    ``reset``: what happens to the AP's program when the hypervisor could give it new registers
    (``GHCB_ENTRY_VECTOR``: no SEV-ES). Rules: ``ghcbcore.host``.
    """
    cpu = flow.cpu
    thread = flow.agent("vCPU thread", per_cpu=True)
    startup: Op = op(
        "STARTUP reaches the vCPU",
        when=[cpu.sipi_pending == 1, cpu.init_pending == 0],
        do=[
            call(lib.GHCB_CALL_SIPI, cpu),
            when(cpu.entry == lib.GHCB_ENTRY_VECTOR, *reset, put(cpu.entry, lib.GHCB_ENTRY_RESUME)),
        ],
        to=".",
        cost=costs.HYPERVISOR_WAKE,
    )
    thread.phase("deliver")
    thread.at(
        "deliver",
        op(
            "INIT reaches the vCPU",
            when=[cpu.init_pending == 1],
            do=[call(lib.GHCB_CALL_INIT, cpu)],
            to=".",
            cost=costs.HYPERVISOR_WAKE,
        ),
        startup,
        ends=True,
    )
    return thread
