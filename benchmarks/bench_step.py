"""Operations per second of ``run``, beside SimPy on an equivalent model.

Two flows, at 64 and at 4096 CPUs. *token*: a quarter of the CPUs hold a token; who holds one
works for a while and hands it to any CPU that has none, who sleeps until then. *jump-table*:
``sev-es-kexec/jump-table`` from the first VMGEXIT to the last CPU up in the new kernel, once.

The SimPy side has one process for each agent and takes the same number of steps; each step is a
timeout of the same cost, each wait an event that another process succeeds. It knows whom it wakes,
so it tests no guards, keeps no trace, and the host's answers are assignments: less work than ours.
Both sides are given as machines that are built; what is timed is moving them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
import simpy
from beside import OURS

import pysev
from ghcbcore.simulator import Simulator
from pysev import add, op, put
from pysev.compiler import Compiled

UNIT = "steps"
WORK_NS = 100
ROUNDS = 15
TOKEN_STEPS = 100_000  # of both sides: the start, where all fall asleep, counts the same

sizes = pytest.mark.parametrize("n_cpus", [64, 4096])


def token_flow(n_others: int) -> pysev.Flow:
    """A quarter of the CPUs work; each hands its token to any that has none."""
    flow = pysev.Flow("token")
    flow.globals(untaken=n_others // 4)
    flow.per_cpu(token=0)
    cpu, other, g = flow.cpu, flow.other, flow.g
    boot = flow.agent("boot CPU")
    boot.at(
        "give",
        op(
            "gives a token",
            pick=True,
            when=[g.untaken != 0, other.token == 0],
            do=[add(g.untaken, -1), put(other.token, 1)],
            to=".",
            cost=1,
        ),
        ends=True,
    )
    ap = flow.agent("AP", per_cpu=True)
    ap.at("wait", op("takes the token", when=[cpu.token == 1], cost=WORK_NS), ends=True)
    ap.at(
        "work",
        op(
            "hands the token on",
            pick=True,
            when=[other.token == 0],
            do=[put(cpu.token, 0), put(other.token, 1)],
            to="wait",
            cost=WORK_NS,
        ),
    )
    return flow


class TokenSimPy:
    """The same in SimPy."""

    def __init__(self, n_others: int) -> None:
        self.env = simpy.Environment()
        self.steps = 0
        self.draw = random.Random(0)
        self.woken = [self.env.event() for _ in range(n_others)]
        self.idle = list(range(n_others))
        for cpu in range(n_others):
            self.env.process(self.ap(cpu))
        self.env.process(self.boot(n_others // 4))

    def give(self) -> None:
        """Wake any CPU without a token: swap a random one to the end and take it off."""
        idle = self.idle
        at = int(self.draw.random() * len(idle))
        idle[at], idle[-1] = idle[-1], idle[at]
        self.woken[idle.pop()].succeed()

    def boot(self, n_tokens: int) -> Generator[Any, Any, None]:
        for _ in range(n_tokens):
            self.give()
            self.steps += 1
            yield self.env.timeout(1)

    def ap(self, cpu: int) -> Generator[Any, Any, None]:
        env = self.env
        while True:
            yield self.woken[cpu]
            self.woken[cpu] = env.event()
            self.steps += 1
            yield env.timeout(WORK_NS)
            self.give()
            self.idle.append(cpu)
            self.steps += 1
            yield env.timeout(WORK_NS)

    def advance(self, n: int) -> int:
        step = self.env.step
        while self.steps < n:
            step()
        return self.steps


class KexecSimPy:
    """The jump table flow in SimPy: boot CPU, and for each other its AP and its vCPU's thread."""

    def __init__(self, n_others: int) -> None:
        self.env = simpy.Environment()
        self.steps = 0
        self.n = n_others
        self.stopping = n_others
        self.all_stopped = self.env.event()
        self.ipi = [self.env.event() for _ in range(n_others)]
        self.init = [self.env.event() for _ in range(n_others)]
        self.startup = [self.env.event() for _ in range(n_others)]
        self.released = [self.env.event() for _ in range(n_others)]
        self.is_up = [self.env.event() for _ in range(n_others)]
        self.env.process(self.boot())
        for i in range(n_others):
            self.env.process(self.ap(i))
            self.env.process(self.thread(i))
        for _ in range(2):
            self.env.process(self.memory())

    def boot(self) -> Generator[Any, Any, None]:
        env = self.env
        for cost in (2000, 2000, 2000, 100, 100, 1000):  # firmware ... install, load, kexec
            self.steps += 1
            yield env.timeout(cost)
        for event in self.ipi:
            event.succeed()
        yield self.all_stopped
        # stopped, relocate, boot, both questions to the host again, vector
        for cost in (100, 100, 50_000_000, 1_500_000_000, 2000, 2000, 100):
            self.steps += 1
            yield env.timeout(cost)
        for i in range(self.n):
            self.steps += 1
            self.init[i].succeed()
            yield env.timeout(10_000_000)
            self.steps += 1
            self.startup[i].succeed()
            yield env.timeout(1000)
            self.steps += 1
            yield env.timeout(1000)
            yield self.is_up[i]
            self.steps += 1
            yield env.timeout(100)
        self.steps += 1  # all CPUs tried

    def ap(self, i: int) -> Generator[Any, Any, None]:
        env = self.env
        yield self.ipi[i]
        for cost in (1000, 100, 100, 100, 100, 100):  # interrupt, stop, park, leave, low, page
            self.steps += 1
            yield env.timeout(cost)
        self.steps += 1
        self.stopping -= 1
        if not self.stopping:
            self.all_stopped.succeed()
        yield env.timeout(2000)
        yield self.released[i]
        self.steps += 1
        yield env.timeout(100)
        self.steps += 1
        self.is_up[i].succeed()
        yield env.timeout(100)

    def thread(self, i: int) -> Generator[Any, Any, None]:
        env = self.env
        yield self.init[i]
        self.steps += 1
        yield env.timeout(5000)
        yield self.startup[i]
        self.steps += 1
        self.released[i].succeed()
        yield env.timeout(5000)
        self.steps += 1  # the second STARTUP finds nobody
        yield env.timeout(5000)

    def memory(self) -> Generator[Any, Any, None]:
        self.steps += 1
        yield self.env.timeout(1_000_000_000)

    def run(self) -> int:
        self.env.run()
        return self.steps


def _fresh(compiled: Compiled) -> Callable[[], Any]:
    return lambda: ((Simulator(compiled.program, compiled.initial_record(), 1),), {})


def jump_table(n_cpus: int) -> Compiled:
    scenario = pysev.find("sev-es-kexec/jump-table")
    return scenario.build(pysev.Machine.of(n_cpus)).compile(n_cpus)


def _token(n_cpus: int) -> str:
    return f"run: token, {n_cpus} CPUs"


def _kexec(n_cpus: int) -> str:
    return f"run: jump-table, {n_cpus} CPUs"


@sizes
def bench_token(timed: Any, n_cpus: int) -> None:
    compiled = token_flow(n_cpus - 1).compile(n_cpus)
    n = TOKEN_STEPS

    def advance(simulator: Simulator) -> Simulator:
        assert simulator.advance(n)
        return simulator

    done = timed(_token(n_cpus), OURS, n, UNIT, advance, prepare=_fresh(compiled), rounds=ROUNDS)
    assert done.n_steps == n
    assert int(done.executed[0]) == (n_cpus - 1) // 4
    assert int(done.executed[1]) - int(done.executed[2]) in range(n_cpus)


@sizes
def bench_token_simpy(timed: Any, n_cpus: int) -> None:
    n = TOKEN_STEPS
    got = timed(
        _token(n_cpus),
        "SimPy",
        n,
        UNIT,
        lambda model: model.advance(n),
        prepare=lambda: ((TokenSimPy(n_cpus - 1),), {}),
        rounds=5,
    )
    assert got == n


def _n_kexec_steps(n_cpus: int) -> int:
    """Each AP 9, the hypervisor's thread of it 3, the boot CPU 4 for it; 14 once; 2 pages taken."""
    return (9 + 3 + 4) * (n_cpus - 1) + 14 + 2


@sizes
def bench_jump_table(timed: Any, n_cpus: int) -> None:
    compiled = jump_table(n_cpus)

    def finish(simulator: Simulator) -> Simulator:
        assert not simulator.advance(1 << 40)
        return simulator

    n = _n_kexec_steps(n_cpus)
    done = timed(_kexec(n_cpus), OURS, n, UNIT, finish, prepare=_fresh(compiled), rounds=ROUNDS)
    assert done.n_steps == n
    slices = done.record[compiled.program.n_global :].reshape(n_cpus - 1, -1)
    assert (slices[:, compiled.flow.cpu.times_up.index] == 1).all()


@sizes
def bench_jump_table_simpy(timed: Any, n_cpus: int) -> None:
    n = _n_kexec_steps(n_cpus)
    got = timed(
        _kexec(n_cpus),
        "SimPy",
        n,
        UNIT,
        lambda model: model.run(),
        prepare=lambda: ((KexecSimPy(n_cpus - 1),), {}),
        rounds=5,
    )
    assert got == n


def bench_step_one_by_one(timed: Any) -> None:
    """``Program.step`` from Python, along one way through jump-table with 64 CPUs."""
    compiled = jump_table(64)
    program, record = compiled.program, compiled.initial_record()
    moves = []
    while possible := program.moves(record):
        moves.append(possible[len(moves) % len(possible)])
        program.step(record, *moves[-1])

    def replay(fresh: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        step = program.step
        for alt, own, other in moves:
            step(fresh, alt, own, other)
        return fresh

    got = timed(
        "Program.step one by one from Python",
        OURS,
        len(moves),
        UNIT,
        replay,
        prepare=lambda: ((compiled.initial_record(),), {}),
        rounds=20,
    )
    assert np.array_equal(got, record)
    assert not program.moves(got)
