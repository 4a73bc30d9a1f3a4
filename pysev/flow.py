"""Flows as tables: what each kind of agent does, written down once.

A flow names the words of the machine's record, and for each kind of agent a program: a list of
labels, at each label one or more operations, each with the tests that must hold (``when``), what
it changes (``do``) and the label that follows (``to``; by default the next one). Where several
operations are possible, any of them may happen; that is how races are written down. Operations
are built from Python functions (``put``, ``add``, ``call``, ``when``, ``each``); the words of the
field (VMGEXIT, INIT, park ...) are functions over these, see ``pysev.words``.

``agent.phase("stop other CPUs")`` names the part of a program to which the labels after it
belong; ``run`` reports when each phase began and ended, how much of it was work and how much
waiting, and how many VMGEXITs fell into it. A bulk operation (a walk over all memory) is one
operation whose cost ``pysev.scaling`` computes from the machine, and which stands for many
VMGEXITs: ``times``.

``Flow.compile`` (``pysev.compiler``) makes the arrays of ``ghcbcore.machine`` of them, whose
one ``step`` gives them their meaning. Nothing here moves a machine.

Units: costs and delays are nanoseconds.

Examples
--------
>>> flow = Flow("ping")
>>> flow.globals(ball=0)
>>> boot = flow.agent("boot CPU")
>>> boot.at("serve", op("serve", do=[put(flow.g.ball, 1)]))
>>> boot.at("done", ends=True)
>>> ap = flow.agent("AP", per_cpu=True)
>>> ap.at("wait", op("take the ball", when=[flow.g.ball == 1], do=[put(flow.g.ball, 0)]))
>>> ap.at("done", ends=True)
>>> flow.compile(n_cpus=2).program.n_roles
2
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import index
from typing import TYPE_CHECKING, Any, TypeVar

from ghcbcore import errors
from ghcbcore._cffi import lib
from ghcbcore.frame import Op as FrameOp
from ghcbcore.host import VCPU_DTYPE, VM_DTYPE
from ghcbcore.profile import Profile

from .layout import Part

if TYPE_CHECKING:
    from .compiler import Compiled
    from .frames import FrameRegion
    from .states import States

__all__ = [
    "Agent",
    "Effect",
    "Field",
    "Flow",
    "Hazard",
    "Memory",
    "Op",
    "Place",
    "Property",
    "ReachOp",
    "Test",
    "add",
    "call",
    "each",
    "jump",
    "number_of",
    "op",
    "put",
    "reach",
    "shift_right",
    "when",
]

WORD = (1 << 64) - 1
KINDS = ("always", "end", "sometimes", "eventually")
FAIRNESS = ("none", "weak", "strong")
VCPU = list(VCPU_DTYPE.names or ())
OPPOSITE = {
    lib.GHCB_OP_EQ: lib.GHCB_OP_NE,
    lib.GHCB_OP_NE: lib.GHCB_OP_EQ,
    lib.GHCB_OP_LT: lib.GHCB_OP_GE,
    lib.GHCB_OP_GE: lib.GHCB_OP_LT,
}


class FlowError(errors.SevError, ValueError):
    """A flow is not well formed; the text names the agent, label or word."""


@dataclass(frozen=True, eq=False)
class Field:
    """One word of the record. Comparing it gives a ``Test``; ``field & mask`` tests some bits."""

    name: str
    block: int
    index: int
    mask: int = WORD

    __hash__ = object.__hash__

    def _test(self, opcode: int, value: Value) -> Test:
        if isinstance(value, Field) and value.mask != WORD:
            raise FlowError(f"{self.name}: only the word on the left of a test can be masked")
        return Test(opcode, self, value)

    def __eq__(self, value: Value) -> Test:  # type: ignore[override]
        return self._test(lib.GHCB_OP_EQ, value)

    def __ne__(self, value: Value) -> Test:  # type: ignore[override]
        return self._test(lib.GHCB_OP_NE, value)

    def __lt__(self, value: Value) -> Test:
        return self._test(lib.GHCB_OP_LT, value)

    def __ge__(self, value: Value) -> Test:
        return self._test(lib.GHCB_OP_GE, value)

    def __and__(self, mask: int) -> Field:
        return replace(self, mask=self.mask & mask)

    def __bool__(self) -> bool:
        raise FlowError(f"{self.name}: a word has no value while a flow is written; use a test")

    @property
    def operand(self) -> int:
        return int(self.block << lib.GHCB_BLOCK_SHIFT | self.index)


Value = int | Field
_V = TypeVar("_V", bound=Value)


@dataclass(frozen=True)
class Test:
    """One condition on one word. A guard is a list of tests that must all hold."""

    opcode: int
    field: Field
    value: Value

    def __bool__(self) -> bool:
        raise FlowError(f"{self.field.name}: a test is not a truth value; put it into a list")

    def negated(self) -> Test:
        return replace(self, opcode=OPPOSITE[self.opcode])


@dataclass(frozen=True)
class Effect:
    """One change, or a block of changes; made by ``put``, ``add``, ``call``, ``when`` ..."""

    opcode: int
    target: Field | None = None
    value: Value | str = 0
    mask: int = WORD
    tests: tuple[Test, ...] = ()
    body: tuple[Effect, ...] = ()
    otherwise: tuple[Effect, ...] = ()
    frame: tuple[int, FrameOp] | None = None
    reach: tuple[int, ReachOp, int] | None = None


@dataclass(frozen=True)
class ReachOp:
    """One operation on a place: its code and arguments are the kind's own (``places.h``).

    ``local``: it needs the words of the acting CPU and those that exist once, no other CPU's.
    """

    code: int
    args: tuple[int, int, int] = (0, 0, 0)
    local: bool = False


@dataclass(frozen=True, eq=False)
class Place:
    """Something with rules of its own beside vCPUs and frames; made by ``Flow.place``.

    Attributes
    ----------
    words : tuple of Field
        In the global part: first those of the boot CPU, then those that exist once.
    cpu_words : tuple of Field
        Those of each other CPU.
    """

    name: str
    kind: int
    number: int
    options: int
    words: tuple[Field, ...]
    cpu_words: tuple[Field, ...]


def put(target: Field, value: Value) -> Effect:
    """``target = value``; of a masked value only the bits of the mask are taken."""
    mask = value.mask if isinstance(value, Field) else WORD
    return Effect(lib.GHCB_OP_SET, _whole(target), value, mask)


def add(target: Field, value: Value) -> Effect:
    """``target += value``, modulo 2**64; a negative number subtracts."""
    return Effect(lib.GHCB_OP_ADD, _whole(target), _whole(value))


def shift_right(target: Field, n_bits: Value) -> Effect:
    """``target >>= n_bits``; 0 from 64 bits on."""
    return Effect(lib.GHCB_OP_SHR, _whole(target), _whole(n_bits))


def _whole(value: _V) -> _V:
    if isinstance(value, Field) and value.mask != WORD:
        raise FlowError(f"{value.name}: some bits of a word can be tested or put, no more")
    return value


def call(function: int, vcpu: Words) -> Effect:
    """Hand the vCPU's words to a function of the host (``GHCB_CALL_*``)."""
    if not 0 <= function < lib.GHCB_CALL_END:
        raise FlowError(f"call: the host has no function {function}")
    if [f.name.partition(".")[2] for f in vcpu][: len(VCPU)] != VCPU:
        raise FlowError(f"call: {vcpu.title} is no vCPU; boot, cpu and other are")
    return Effect(lib.GHCB_OP_CALL, vcpu.first, function)


def reach(place: Place, what: ReachOp, by: Words, result: Field, value: Value = 0) -> Effect:
    """Let CPU ``by`` (``flow.boot``, ``flow.cpu`` or ``flow.other``) do something to a place.

    ``result`` takes the answer; ``value`` is a number or a word that is handed over.
    """
    block = by.first.block
    return Effect(lib.GHCB_OP_REACH, result, _whole(value), reach=(place.number, what, block))


def number_of(target: Field, of: Words, *, shift: int = 0) -> Effect:
    """``target`` = number of the CPU ``of`` << shift: its APIC ID, the boot CPU's being 0.

    The same operation must use it up: CPUs are alike as long as no word keeps a number.
    """
    return Effect(lib.GHCB_OP_NUMBER, target, of.first.block, shift)


def when(test: Test | Sequence[Test], *body: Effect, otherwise: Sequence[Effect] = ()) -> Effect:
    """Apply ``body`` if all tests hold, else ``otherwise``; part of one indivisible operation."""
    tests = (test,) if isinstance(test, Test) else tuple(test)
    if otherwise and len(tests) != 1:
        raise FlowError("when: an `otherwise` needs exactly one test")
    return Effect(lib.GHCB_OP_SKIP, tests=tests, body=body, otherwise=tuple(otherwise))


def each(*body: Effect) -> Effect:
    """Apply ``body`` once with every CPU but the boot CPU as ``flow.other``, own one included."""
    return Effect(lib.GHCB_OP_EACH, body=body)


def jump(agent: Agent, label: str) -> Effect:
    """Put ``agent`` (of the same CPU) at another label; the operation's own ``to`` comes last."""
    return Effect(lib.GHCB_OP_SET, agent.pc, label)


@dataclass(frozen=True)
class Op:
    """One operation; see ``op``."""

    text: str
    when: tuple[Test, ...] = ()
    do: tuple[Effect, ...] = ()
    to: str | None = None
    pick: bool = False
    asleep: bool = False
    cost: int = 100
    after: int = 0
    spread: bool = False
    hazard: bool = False  # what `Agent.under` put there; its last test is that memory is not intact
    times: int = 1


def op(
    text: str,
    *,
    when: Sequence[Test] = (),
    do: Sequence[Effect] = (),
    to: str | None = None,
    pick: bool = False,
    asleep: bool = False,
    cost: int = 100,
    after: int = 0,
    spread: bool = False,
    times: int = 1,
) -> Op:
    """Write down one operation.

    Parameters
    ----------
    text : str
        What a timeline says when it happens.
    when : sequence of Test
        All must hold; until then the agent waits here.
    do : sequence of Effect
        In order, indivisible.
    to : str, optional
        Label that follows; the next one by default, the same one with ``to="."``.
    pick : bool
        Binds one other CPU, any for which the tests hold; its words are ``flow.other``.
    asleep : bool
        The CPU waits for ``when`` without executing anything (HLT, held by the host), so no
        hazard of its memory can strike before ``when`` holds.
    cost : int
        ``run``: nanoseconds for which the agent is busy.
    after : int
        ``run``: nanoseconds for which it must have been possible before it happens (a timeout).
        ``check`` ignores both: there it may happen at any time. Both are below 2**63.
    spread : bool
        ``run``: the delay is drawn by the seed from [0, 2 * after).
    times : int
        ``run``: it stands for so many alike, and each of its VMGEXITs is counted so often; ``cost``
        is that of all of them.
    """
    for name, value in (("cost", cost), ("after", after)):
        if not 0 <= value < 1 << 63:
            raise FlowError(f"{text!r}: {name} of {value} ns")
    if not 0 <= times < 1 << 40:
        raise FlowError(f"{text!r}: stands for {times}")
    return Op(text, tuple(when), tuple(do), to, pick, asleep, cost, after, spread, times=times)


@dataclass(frozen=True)
class Hazard:
    """What can happen instead of any operation while ``intact`` does not hold.

    Used by ``Agent.under``: the operations inside get ``intact`` as a further test, and at each
    label stand, besides, the ``instead`` operations with its opposite.
    """

    intact: Test
    instead: tuple[Op, ...]


@dataclass(frozen=True)
class Memory:
    """A piece of memory with one word: 0 while it is still its kernel's, 1 once it is taken.

    ``part`` is what it is in the machine's layout.
    """

    title: str
    taken: Field
    number: int
    part: Part


@dataclass(frozen=True)
class Property:
    """A predicate over an array of states, and when it must hold.

    ``kind`` is ``always`` (in every state), ``end`` (in every state after which nothing happens),
    ``sometimes`` (in at least one state: otherwise the check has shown nothing) or ``eventually``:
    on every way on which nobody is put off for ever, some time after ``since`` held, or after the
    first state if there is none. ``holds`` and ``since`` take ``States`` and return a bool array,
    one element for each state. ``fairness`` says what putting off is: ``weak``, an agent could act
    all the while and never did; ``strong``, it could again and again; ``none``, nobody minds.
    """

    name: str
    kind: str
    holds: Callable[[States], Any]
    text: str = ""
    since: Callable[[States], Any] | None = None
    fairness: str = "weak"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FlowError(f"property {self.name!r}: {self.kind!r} is none of {', '.join(KINDS)}")
        if self.fairness not in FAIRNESS:
            known = ", ".join(FAIRNESS)
            raise FlowError(f"{self.name!r}: fairness {self.fairness!r} is none of {known}")


class Words:
    """Named words of one block; ``words.name`` is a ``Field``."""

    def __init__(self, title: str, block: int) -> None:
        self._title = title
        self._block = block
        self._fields: dict[str, Field] = {}

    def __getattr__(self, name: str) -> Field:
        if name.startswith("_"):  # copy and pickle ask before there are any words
            raise AttributeError(name)
        try:
            return self._fields[name]
        except KeyError:
            known = ", ".join(self._fields)
            raise AttributeError(f"{self._title} has no word {name!r}; it has: {known}") from None

    def __iter__(self) -> Iterator[Field]:
        return iter(self._fields.values())

    @property
    def title(self) -> str:
        return self._title

    @property
    def first(self) -> Field:
        return next(iter(self._fields.values()))

    def declare(self, name: str, index: int) -> Field:
        if name in self._fields or name.startswith("_") or hasattr(type(self), name):
            raise FlowError(f"{self._title}: the word {name!r} is there already or not possible")
        made = Field(f"{self._title}.{name}", self._block, index)
        self._fields[name] = made
        return made


@dataclass(eq=False)
class Agent:
    """The program of one kind of agent; made by ``Flow.agent``."""

    name: str
    per_cpu: bool
    pc: Field
    labels: dict[str, list[Op]] = field(default_factory=dict)
    ends: set[str] = field(default_factory=set)
    only_while: tuple[Test, ...] = ()
    phases: dict[str, str] = field(default_factory=dict)
    _hazards: tuple[Hazard, ...] = ()
    _phase: str = ""

    def at(self, label: str, *ops: Op, ends: bool = False) -> None:
        """Add a label with its operations.

        ``ends``: the agent may rest here for ever; at any other label that is a deadlock.
        """
        if label == ".":
            raise FlowError(f"{self.name}: `.` names the label at which an operation stands")
        if label in self.labels:
            raise FlowError(f"{self.name}: label {label!r} stands twice")
        self.labels[label] = [self._guard(o) for o in ops] + self._failures(ops)
        if ends:
            self.ends.add(label)
        if self._phase:
            self.phases[label] = self._phase

    def phase(self, name: str) -> None:
        """Let labels added from now on belong to a phase, for ``run``'s report; "" ends it.

        A phase may be taken up again, and may hold any labels; ``phases`` has the phase of each.
        """
        if not name.isprintable():
            raise FlowError(f"{self.name}: phase {name!a}")
        self._phase = name

    def add(self, label: str, *ops: Op) -> None:
        """Add operations to a label that is there: what else may happen in a variant of a flow."""
        if label not in self.labels:
            raise FlowError(f"{self.name}: no label {label!r}; it has: {', '.join(self.labels)}")
        self.labels[label] += [self._guard(o) for o in ops]

    @contextmanager
    def under(self, *hazards: Hazard) -> Iterator[None]:
        """Labels added inside are executed from memory that may be taken away; see ``Hazard``."""
        outer = self._hazards
        self._hazards = outer + hazards
        try:
            yield
        finally:
            self._hazards = outer

    def _guard(self, o: Op) -> Op:
        return replace(o, when=self.only_while + o.when + tuple(h.intact for h in self._hazards))

    def _failures(self, ops: Sequence[Op]) -> list[Op]:
        """One operation for each way in which a hazard strikes, the first broken one counting."""
        awake = [o for o in ops if not o.asleep]
        causes = ([()] if awake else []) + [o.when for o in ops if o.asleep]
        failures = []
        for cause in causes:
            for i, hazard in enumerate(self._hazards):
                before = tuple(h.intact for h in self._hazards[:i])
                tests = (*self.only_while, *cause, *before, hazard.intact.negated())
                failures += [replace(o, when=o.when + tests, hazard=True) for o in hazard.instead]
        return failures


class Flow:
    """A machine's words and the programs of its agents.

    Parameters
    ----------
    name : str
    profile : ghcbcore.profile.Profile, optional
        The host that answers; KVM with an SEV-ES guest by default.
    alike : bool
        The CPUs beside the boot CPU are interchangeable. ``check`` then counts states that differ
        only in which is which as one, and refuses a property or an operation that tells them apart.

    Attributes
    ----------
    vm, boot, cpu, other : Words
        The VM, the boot CPU's vCPU, the own vCPU of an agent of a CPU, the vCPU of the CPU that
        an operation with ``pick`` has bound.
    g : Words
        The flow's own words that exist once. The flow's own words of each CPU are in ``cpu`` and
        ``other``.
    """

    def __init__(self, name: str, profile: Profile | None = None, *, alike: bool = True) -> None:
        self.name = name
        self.alike = alike
        self.profile = profile or Profile()
        self.vm = Words("vm", lib.GHCB_BLOCK_GLOBAL)
        self.boot = Words("boot", lib.GHCB_BLOCK_GLOBAL)
        self.g = Words("g", lib.GHCB_BLOCK_GLOBAL)
        self.cpu = Words("cpu", lib.GHCB_BLOCK_OWN)
        self.other = Words("other", lib.GHCB_BLOCK_OTHER)
        self.agents: list[Agent] = []
        self.properties: list[Property] = []
        self.memories: list[Memory] = []
        self.regions: list[tuple[int, int]] = []
        self.frame_regions: list[FrameRegion] = []
        self.frame_ops: list[FrameOp] = []
        self.places: list[Place] = []
        self.reach_ops: list[ReachOp] = []
        self.value_names: dict[str, type[enum.IntEnum]] = {}
        self.change_texts: dict[str, Callable[[int, int], str]] = {}
        self.cpu_states: list[tuple[str, Callable[[States], Any]]] = []
        self._initial_global: list[int] = []
        self._initial_cpu: list[int] = []
        self._while: tuple[Test, ...] = ()
        for words, dtype in ((self.vm, VM_DTYPE), (self.boot, VCPU_DTYPE)):
            for name_ in dtype.names or ():
                words.declare(name_, self._new_global(0))
        for name_ in VCPU_DTYPE.names or ():
            self._declare_cpu(name_, 0)

    def _new_global(self, value: int) -> int:
        self._initial_global.append(value)
        return len(self._initial_global) - 1

    def _declare_cpu(self, name: str, value: int) -> Field:
        self._initial_cpu.append(value)
        self.other.declare(name, len(self._initial_cpu) - 1)
        return self.cpu.declare(name, len(self._initial_cpu) - 1)

    def globals(self, **initial: int) -> None:
        """Declare words that exist once, with their first values: ``flow.g.name``."""
        for name, value in initial.items():
            self.g.declare(name, self._new_global(as_word(name, value)))

    def per_cpu(self, **initial: int) -> None:
        """Declare words of each CPU but the boot CPU: ``flow.cpu.name``, ``flow.other.name``."""
        for name, value in initial.items():
            self._declare_cpu(name, as_word(name, value))

    def place(
        self,
        kind: int,
        name: str,
        *,
        per_cpu: dict[str, int],
        once: dict[str, int],
        options: int = 0,
    ) -> Place:
        """Declare a place (``GHCB_PLACE_*``), with words ``<name>_<word>``: of each CPU, and once.

        ``per_cpu`` and ``once`` give names and first values in the order that the kind wants; the
        boot CPU's words are in ``flow.g`` under the names that the others have in ``flow.cpu``.
        """
        first = len(self._initial_global)
        self.globals(**{f"{name}_{word}": value for word, value in {**per_cpu, **once}.items()})
        slice_first = len(self._initial_cpu)
        self.per_cpu(**{f"{name}_{word}": value for word, value in per_cpu.items()})
        words = list(self.g)[-(len(per_cpu) + len(once)) :]
        cpu_words = list(self.cpu)[len(list(self.cpu)) - len(per_cpu) :]
        assert not words or words[0].index == first
        assert not cpu_words or cpu_words[0].index == slice_first
        made = Place(name, kind, len(self.places), options, tuple(words), tuple(cpu_words))
        self.places.append(made)
        return made

    def name_values(self, word: str, names: type[enum.IntEnum]) -> None:
        """Say what the numbers of a word mean; timelines then show the names."""
        self.value_names[word] = names

    def tell_changes(self, word: str, text: Callable[[int, int], str]) -> None:
        """Say how a timeline tells that a word has changed, from its old and new number.

        ``text`` returns the empty string for a change that is not worth a line.
        """
        self.change_texts[word] = text

    def start(self, **initial: int) -> None:
        """Give first values to words of the VM (``jump_table=``) or of every CPU's vCPU."""
        for name, value in initial.items():
            if name in (VM_DTYPE.names or ()):
                self._initial_global[getattr(self.vm, name).index] = as_word(name, value)
            elif name in (VCPU_DTYPE.names or ()):
                self._initial_global[getattr(self.boot, name).index] = as_word(name, value)
                self._initial_cpu[getattr(self.cpu, name).index] = as_word(name, value)
            else:
                raise FlowError(f"{name}: no word of the VM or of a vCPU")

    def agent(self, name: str, *, per_cpu: bool = False, only_while: Sequence[Test] = ()) -> Agent:
        """Add a kind of agent: one, or one for each CPU beside the boot CPU.

        ``only_while`` must hold for each of its operations, hazards included (a CPU that the host
        does not run executes nothing).
        """
        if any(a.name == name for a in self.agents):
            raise FlowError(f"agent {name!r} stands twice")
        pc_name = f"pc_{len(self.agents)}"
        if per_cpu:
            pc = self._declare_cpu(pc_name, 0)
        else:
            pc = self.g.declare(pc_name, self._new_global(0))
        made = Agent(name, per_cpu, pc, only_while=tuple(only_while))
        self.agents.append(made)
        return made

    def only_while(self, *tests: Test) -> None:
        """Let nothing happen any more once one of these tests fails (the VM is dead)."""
        self._while += tests

    def always(self, name: str, holds: Callable[[States], Any], text: str = "") -> None:
        """Require ``holds`` in every state."""
        self.properties.append(Property(name, "always", holds, text))

    def at_end(self, name: str, holds: Callable[[States], Any], text: str = "") -> None:
        """Require ``holds`` in every state after which nothing happens."""
        self.properties.append(Property(name, "end", holds, text))

    def sometimes(self, name: str, holds: Callable[[States], Any], text: str = "") -> None:
        """Require that ``holds`` is reached at all."""
        self.properties.append(Property(name, "sometimes", holds, text))

    def eventually(
        self,
        name: str,
        holds: Callable[[States], Any],
        text: str = "",
        *,
        since: Callable[[States], Any] | None = None,
        fairness: str = "weak",
    ) -> None:
        """Require that ``holds`` comes about, whenever ``since`` held; see ``Property``.

        Answering it takes a search without symmetry, beside the other: for few CPUs.
        """
        self.properties.append(Property(name, "eventually", holds, text, since, fairness))

    def count_cpus(self, name: str, which: Callable[[States], Any]) -> None:
        """Name a kind of CPU for the table of ``run``; ``which`` gives bools, (n, n_others).

        A CPU counts for the first kind that takes it; what no kind takes is ``lost``.
        """
        self.cpu_states.append((name, which))

    def compile(self, n_cpus: int) -> Compiled:
        """Compile for ``n_cpus`` CPUs, the boot CPU among them.

        Raises
        ------
        FlowError
            A label is missing or stands twice, an agent has no program, an operation names a word
            that its agent cannot see or that is another flow's. The text names agent and label.
        OutOfRange
            ``n_cpus`` is not in 1..GHCB_MAX_CPUS, or a number does not fit into 64 bits.
        """
        if not 1 <= n_cpus <= lib.GHCB_MAX_CPUS:
            raise errors.OutOfRange(f"{n_cpus} CPUs: 1 to {lib.GHCB_MAX_CPUS} are possible")
        from .compiler import Compiler

        return Compiler(self).compiled(n_cpus - 1)


def as_word(name: str, value: int) -> int:
    value = index(value)
    if not -(1 << 63) <= value <= WORD:
        raise errors.OutOfRange(f"{name}: {value:#x} does not fit into 64 bits")
    return value & WORD
