"""Cache lines as words of a flow: every order of events gives what the oracle of caches gives."""

import enum
from itertools import product

import cache_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghcbcore._cffi import ffi, lib
from ghcbcore.explorer import Explorer
from ghcbcore.plainexplorer import PlainExplorer
from pysev import lines
from pysev.checking import check
from pysev.flow import Flow, FlowError, ReachOp, add, op, put, reach, when
from pysev.machine import Machine
from pysev.simulate import run

PLAIN, SME, ASID = lib.GHCB_KEY_SLOT_NONE, lib.GHCB_KEY_SLOT_SME, 7
DOMAINS = {ASID: "ASID 7", SME: "C=1", PLAIN: "C=0"}
START = {0: (PLAIN, 1), 1: (SME, 1)}
KINDS = ["store", "store", "store", "load", "load", "clflush", "wbinvd", "wbnoinvd", "invd"]
KINDS += ["page_flush", "df_flush", "rekey", "convert", "kexec"]
Value = enum.IntEnum("Value", {f"v{i}": i for i in range(1, 16)})


# -- a program of caches as a flow -------------------------------------------------------------


class Built:
    """A flow that executes two lists of statements: the boot CPU's, and that of each other CPU.

    A statement is (number, block, kind, line, domain, value). What loads read, and what was
    expected then, stays in words; ``reads`` and ``results`` gather it from what ``check`` looks at.
    """

    def __init__(self, boot, others, n_cpus, coherent):
        self.flow = Flow("lines")
        self.flow.globals(finished=0, expect_0=0, expect_1=0)
        self.lines = [
            lines.declare(
                self.flow,
                f"line{i}",
                DOMAINS,
                Value,
                start=START[i],
                coherent=coherent,
                queues=True,
            )
            for i in START
        ]
        self.loads = []
        self.reads = set()
        self.results = set()
        counts = [(s[1], 1) for s in boot] + [(s[1], n_cpus - 1) for s in others]
        self.before = {b: sum(n for c, n in counts if c < b) for b, _ in counts}
        self.agent("boot CPU", boot, self.flow.boot)
        self.agent("CPU", others, self.flow.cpu)
        lines.hardware(self.flow, *self.lines, forgets=True)
        self.flow.always("looked at", self.look)
        self.flow.at_end("gathered", self.gather)

    def agent(self, name, statements, by):
        agent = self.flow.agent(name, per_cpu=by is self.flow.cpu)
        for number, statement in enumerate(statements):
            agent.at(str(number), *self.ops(statement, by))
        agent.at("done", ends=True)

    def expect(self, line):
        return getattr(self.flow.g, f"expect_{line}")

    def ops(self, statement, by):
        number, block, kind, at, slot, value = statement
        line, g = self.lines[at], self.flow.g
        do = []
        choices = [[]]
        if kind == "store":
            do = [lines.store(line, by, slot, value)]
            do.append(put(self.expect(at), int(lib.ghcb_cell(slot, value))))
        elif kind == "load":
            mine = by is self.flow.cpu
            words = {f"read_{number}": 0xFF, f"want_{number}": 0}
            (self.flow.per_cpu if mine else self.flow.globals)(**words)
            found = self.flow.cpu if mine else g
            target = getattr(found, f"read_{number}")
            do = [lines.load(line, by, slot, target)]
            do.append(put(getattr(found, f"want_{number}"), self.expect(at)))
            self.loads.append((number, mine, slot))
        elif kind in ("wbinvd", "wbnoinvd"):
            flush = getattr(lines, kind)
            choices = [
                [flush(one, by, last) for one, last in zip(self.lines, lasts, strict=True)]
                for lasts in product(DOMAINS, repeat=len(self.lines))
            ]
        elif kind == "invd":
            do = [lines.invd(one, by) for one in self.lines]
        elif kind == "clflush":
            do = [lines.clflush(line, by, slot)]
        elif kind == "page_flush":
            do = [lines.page_flush(line, by, slot)]
        elif kind == "df_flush":
            do = [lines.drain(one, by) for one in self.lines]
        elif kind == "rekey":
            do = [lines.rekey(one, by, slot) for one in self.lines]
            for i in START:
                e = self.expect(i)
                do.append(when([e & lib.GHCB_CELL_SLOT == slot, e != 0], put(e, 0)))
        elif kind == "convert":
            do = [put(self.expect(at), 0)]
        else:
            assert kind == "kexec"
            do = [put(self.expect(i), 0) for i in START]
        ready = [g.finished >= self.before[block]]
        return [op(kind, when=ready, do=[*do, *more, add(g.finished, 1)]) for more in choices]

    def look(self, s):
        for number, mine, slot in self.loads:
            of = s.cpu if mine else s.g
            read = getattr(of, f"read_{number}").ravel()
            want = getattr(of, f"want_{number}").ravel()
            for got, cell in {*zip(read.tolist(), want.tolist(), strict=True)}:
                is_judged = got != 0xFF and cell and lib.ghcb_cell_slot(cell) == slot
                if is_judged and lib.ghcb_cell_value(cell) != got:
                    self.reads.add((number, got or None))
        return np.ones(len(s), bool)

    def gather(self, s):
        """Note what memory holds where nothing is dirty or under way any more."""
        busy = np.zeros(len(s), bool)
        for line in self.lines:
            for slot in DOMAINS:
                busy |= lines.is_dirty(s, line, slot).any(axis=1)
            memory = getattr(s.g, f"{line.name}_memory")
            busy |= memory >> np.uint64(lib.GHCB_CELL_BITS) != 0
        for i in np.flatnonzero(~busy):
            memory, wanted = {}, {}
            for at in START:
                cell = int(getattr(s.g, f"line{at}_memory")[i])
                slot, value = lib.ghcb_cell_slot(cell), lib.ghcb_cell_value(cell)
                memory[at] = (slot, value, lib.ghcb_cell_read(cell, slot) == value)
                cell = int(getattr(s.g, f"expect_{at}")[i])
                if cell:
                    wanted[at] = (lib.ghcb_cell_slot(cell), lib.ghcb_cell_value(cell))
            self.results.add((frozenset(memory.items()), frozenset(wanted.items())))
        return np.ones(len(s), bool)


def of_the_oracle(boot, others, n_cpus, coherent):
    """The same program for the oracle: blocks of (kind, cpu, line, domain, value)."""
    last = max(s[1] for s in (*boot, *others))
    blocks, numbers = [[] for _ in range(last + 1)], [[] for _ in range(last + 1)]
    for cpu in range(n_cpus):
        for number, block, kind, line, slot, value in others if cpu else boot:
            blocks[block].append((kind, cpu, line, slot, value))
            numbers[block].append(number)
    memory = {line: (*one, True) for line, one in START.items()}
    results, reads = oracle.outcomes(blocks, memory, coherent=coherent)
    return results, {(numbers[at][i], what) for at, i, what in reads}


@st.composite
def programs(draw, most=4):
    total = draw(st.integers(1, most))
    split = draw(st.integers(0, total))
    made = []
    for mine in (range(split), range(split, total)):
        block, statements = 0, []
        for number in mine:
            kind, slot = draw(st.sampled_from(KINDS)), draw(st.sampled_from([*DOMAINS]))
            if kind in ("page_flush", "rekey"):
                slot = ASID
            block += draw(st.integers(0, 1))
            value = number + 2 if kind == "store" else 0
            statements.append((number, block, kind, draw(st.integers(0, 1)), slot, value))
        made.append(statements)
    return made


def both(boot, others, n_cpus, coherent):
    made = Built(boot, others, n_cpus, coherent)
    # CPUs have programs of their own: which is which matters to what is collected
    result = check(made.flow, n_cpus, symmetric=False)
    assert result.verdict == "holds" and result.complete
    results, reads = of_the_oracle(boot, others, n_cpus, coherent)
    assert made.results == results
    assert made.reads == reads
    return made, result


@given(programs(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_outcome_of_a_flow_is_that_of_the_oracle(program, coherent):
    both(*program, 2, coherent)


@given(programs(most=3), st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_outcome_with_three_cpus_is_that_of_the_oracle(program, coherent):
    both(*program, 3, coherent)


@pytest.mark.slow
@given(programs(most=6), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_outcome_of_a_longer_flow_is_that_of_the_oracle(program, coherent):
    both(*program, 2, coherent)


OLD_AND_NEW = (
    [(0, 1, "store", 0, PLAIN, 2), (1, 1, "load", 0, PLAIN, 0)],
    [(2, 0, "store", 0, SME, 3), (3, 0, "load", 1, SME, 0)],
)


def test_two_dirty_copies_have_both_outcomes_and_coherent_ones_have_one():
    made, _ = both(*OLD_AND_NEW, 2, False)
    kept = {dict(memory)[0] for memory, _ in made.results}
    assert kept == {(PLAIN, 2, True), (SME, 3, True)}
    assert made.reads == {(1, None)}  # noise
    made, _ = both(*OLD_AND_NEW, 2, True)
    assert {dict(memory)[0] for memory, _ in made.results} == {(PLAIN, 2, True)}


@given(programs(most=3), st.booleans())
@settings(max_examples=15, deadline=None)
def test_both_engines_find_the_same_states(program, coherent):
    compiled = Built(*program, 3, coherent).flow.compile(3)
    plain = PlainExplorer(compiled.program, compiled.initial_record())
    plain.explore()
    for symmetric in (True, False):
        fast = Explorer(compiled.program, compiled.initial_record(), symmetric=symmetric)
        low = 0
        while low < fast.n_states:
            high = fast.n_states
            fast.expand(low, high)
            low = high
        assert fast.n_states <= plain.n_states
        assert symmetric or (fast.n_states, fast.n_transitions) == (
            plain.n_states,
            plain.n_transitions,
        )


@given(programs(), st.integers(0, 3), st.sampled_from([2, 3]))
@settings(max_examples=30, deadline=None)
def test_a_run_ends_in_one_of_the_outcomes(program, seed, n_cpus):
    made = Built(*program, n_cpus, False)
    check(made.flow, n_cpus)
    possible = set(made.results)
    made.results = set()
    result = run(made.flow, Machine.of(n_cpus), seed)
    assert result.verdict == "holds"
    assert len(made.results) == 1 and made.results <= possible


# -- one step ----------------------------------------------------------------------------------


def small(**options):
    flow = Flow("small")
    domains = {PLAIN: "C=0", SME: "C=1"}
    line = lines.declare(flow, "line", domains, Value, start=(PLAIN, 1), **options)
    return flow, line


def stepped(flow, *effects, n_cpus=1):
    """The record after one operation of the boot CPU."""
    boot = flow.agent("boot CPU")
    boot.at("do", op("do", do=effects))
    boot.at("done", ends=True)
    compiled = flow.compile(n_cpus)
    record = compiled.initial_record()
    compiled.program.step(record, 0, -1, -1)
    return record


def test_the_guard_on_a_copy_holds_for_the_words_in_which_it_is():
    """The tests on places in a word say what the core says of the word."""
    flow, line = small()
    word = ffi.new("uint64_t *")
    copies = [0] + [
        lib.ghcb_cell(slot, value) | dirty
        for slot in (PLAIN, SME)
        for value in (0, 1, 15)
        for dirty in (0, lib.GHCB_CELL_DIRTY)
    ]
    for pair in product(copies, repeat=2):
        word[0] = 0
        for cell in pair:
            if cell:
                lib.ghcb_line_put(word[0], cell, word)
        for slot, dirty in product((PLAIN, SME), (True, False)):
            guards = lines.has_copy(line, flow.boot, slot, dirty=dirty)
            assert all(test.opcode == lib.GHCB_OP_EQ for (test,) in guards)
            held = [(word[0] & t.field.mask) == t.value for (t,) in guards]
            cell = lib.ghcb_line_find(word[0], slot)
            there = bool(cell) and bool(cell & lib.GHCB_CELL_DIRTY) == dirty
            assert sum(held) == there


LOCAL = {
    lib.GHCB_CACHE_EVICT: lambda own, slot, memory: lib.ghcb_line_evict(own, slot, memory),
    lib.GHCB_CACHE_FORGET: lambda own, slot, memory: lib.ghcb_line_evict(own, slot, memory),
    lib.GHCB_CACHE_CLEAN: lambda own, slot, memory: lib.ghcb_line_write_back(own, slot, memory),
    lib.GHCB_CACHE_WBINVD: lambda own, slot, memory: lib.ghcb_line_wbinvd(own, slot, memory),
    lib.GHCB_CACHE_WBNOINVD: lambda own, slot, memory: lib.ghcb_line_wbnoinvd(own, slot, memory),
    lib.GHCB_CACHE_INVD: lambda own, slot, memory: lib.ghcb_line_invd(own),
}
OF_ALL = {
    lib.GHCB_CACHE_LOAD: lambda at, cpu, slot, out: lib.ghcb_line_load(at, cpu, slot, out),
    lib.GHCB_CACHE_STORE: lambda at, cpu, slot, out: lib.ghcb_line_store(at, cpu, slot, 9),
    lib.GHCB_CACHE_CLFLUSH: lambda at, cpu, slot, out: lib.ghcb_line_clflush(at, slot),
    lib.GHCB_CACHE_PAGE_FLUSH: lambda at, cpu, slot, out: lib.ghcb_line_page_flush(at, slot),
}
OF_MEMORY = {
    lib.GHCB_CACHE_REKEY: lambda memory, slot: lib.ghcb_memory_rekey(memory, slot),
    lib.GHCB_CACHE_DF_FLUSH: lambda memory, slot: lib.ghcb_memory_drain(memory),
    lib.GHCB_CACHE_DRAIN: lambda memory, slot: lib.ghcb_memory_drain(memory),
}
CODES = [*LOCAL, *OF_ALL, *OF_MEMORY]


def by_hand(code, slot, cpu, words, memory, coherent):
    """What the functions of the core make of the words; also the result."""
    array = ffi.new("uint64_t[]", words)
    content, out = ffi.new("uint64_t *", memory), ffi.new("uint64_t *")
    if code in LOCAL:
        LOCAL[code](array + cpu, slot, content)
    elif code in OF_MEMORY:
        content[0] = OF_MEMORY[code](memory, slot)
    else:
        at = ffi.new("ghcb_line_t *", (array, array + 1, 1, len(words), content, coherent))
        if OF_ALL[code](at, cpu, slot, out) != lib.GHCB_OK:
            return words, memory, lib.GHCB_LINE_REFUSED
    return list(array), content[0], out[0]


def some_cell(draw, slot):
    dirty = draw(st.sampled_from([0, lib.GHCB_CELL_DIRTY]))
    return lib.ghcb_cell(slot, draw(st.integers(1, 8))) | dirty


@st.composite
def words_of_cpus(draw):
    words = []
    for _ in range(3):
        word = ffi.new("uint64_t *", 0)
        for slot in DOMAINS:
            if draw(st.booleans()):
                lib.ghcb_line_put(word[0], some_cell(draw, slot), word)
        words.append(word[0])
    memory = lib.ghcb_cell(draw(st.sampled_from([*DOMAINS])), 1)
    if draw(st.booleans()):
        memory = lib.ghcb_memory_write(memory, draw(st.sampled_from([*DOMAINS])), 2)
    return words, memory


def one_of_each(coherent, queues):
    """A flow whose CPUs may do each operation under each slot."""
    flow = Flow("all")
    line = lines.declare(
        flow, "line", DOMAINS, Value, start=START[0], coherent=coherent, queues=queues
    )
    slots = [(code, slot) for code in CODES for slot in DOMAINS]
    for name, by in (("boot CPU", flow.boot), ("CPU", flow.cpu)):
        ops = []
        for code, slot in slots:
            what = ReachOp(code, (slot, 0, 0), code not in OF_ALL)
            ops.append(op(f"{code} {slot}", do=[reach(line.place, what, by, line.answer, 9)]))
        agent = flow.agent(name, per_cpu=by is flow.cpu)
        agent.at("do", *ops)
        agent.at("done", ends=True)
    return line, flow.compile(3), slots


EACH = {(c, q): one_of_each(c, q) for c in (False, True) for q in (False, True)}


@given(words_of_cpus(), st.integers(0, 2), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_operation_does_to_the_words_what_the_core_does(given_words, cpu, coherent, queues):
    words, memory = given_words
    line, compiled, slots = EACH[coherent, queues]
    program = compiled.program
    first = program.n_global + np.arange(2) * program.n_slice + line.place.cpu_words[0].index
    at = [line.place.words[0].index, *first.tolist()]
    for i, (code, slot) in enumerate(slots):
        record = compiled.initial_record()
        record[at] = words
        record[line.memory.index] = memory
        program.step(record, i + (len(slots) if cpu else 0), cpu - 1, -1)
        wanted, content, result = by_hand(code, slot, cpu, words, memory, coherent)
        refused = result == lib.GHCB_LINE_REFUSED
        if not queues and not refused:
            content = lib.ghcb_memory_drain(content)
        got = record[at].tolist()
        assert (got, int(record[line.answer.index])) == (wanted, result), (code, slot)
        kept = int(record[line.memory.index])
        assert kept in (content, lib.ghcb_memory_drain(content)) if refused else kept == content


def test_a_word_that_no_line_can_hold_is_refused_and_changes_nothing():
    for value in (0, 16, 1 << 40):
        flow, line = small()
        flow.globals(v=value)
        record = stepped(flow, lines.store(line, flow.boot, PLAIN, flow.g.v))
        assert record[line.answer.index] == lib.GHCB_LINE_REFUSED
        assert record[line.copies(flow.boot).index] == 0
        assert record[line.memory.index] == lib.ghcb_cell(PLAIN, 1)


@pytest.mark.parametrize(
    "code",
    [lib.GHCB_CACHE_LOAD, lib.GHCB_CACHE_STORE, lib.GHCB_CACHE_CLFLUSH, lib.GHCB_CACHE_PAGE_FLUSH],
)
def test_what_needs_every_cpu_is_refused_as_a_local_operation(code):
    for local in (False, True):
        flow, line = small()
        what = ReachOp(code, (ASID, 0, 0), local)
        record = stepped(flow, reach(line.place, what, flow.boot, line.answer, 2), n_cpus=2)
        assert (record[line.answer.index] == lib.GHCB_LINE_REFUSED) == local


@pytest.mark.parametrize("code", [0, lib.GHCB_CACHE_HALT, lib.GHCB_CACHE_OPS_END, 0xFFFFFFFF])
def test_what_is_no_operation_on_a_line_is_refused(code):
    flow, line = small()
    record = stepped(flow, reach(line.place, ReachOp(code), flow.boot, line.answer))
    assert record[line.answer.index] == lib.GHCB_LINE_REFUSED


def test_a_slot_that_is_none_is_refused():
    flow, line = small()
    what = ReachOp(lib.GHCB_CACHE_EVICT, (lib.GHCB_KEY_N_SLOTS, 0, 0), True)
    record = stepped(flow, reach(line.place, what, flow.boot, line.answer))
    assert record[line.answer.index] == lib.GHCB_LINE_REFUSED


def test_a_place_without_the_words_of_a_line_is_refused():
    for per_cpu, once in (({}, {"memory": 0, "x": 0}), ({"copies": 0}, {})):
        flow = Flow("no line")
        flow.globals(answer=0)
        place = flow.place(lib.GHCB_PLACE_LINE, "line", per_cpu=per_cpu, once=once)
        what = ReachOp(lib.GHCB_CACHE_EVICT, (0, 0, 0), True)
        record = stepped(flow, reach(place, what, flow.boot, flow.g.answer), n_cpus=2)
        assert record[flow.g.answer.index] == lib.GHCB_LINE_REFUSED


def test_a_timeline_names_what_the_words_hold():
    flow, line = small()
    boot = flow.agent("boot CPU")
    boot.at("a", op("a", do=[lines.store(line, flow.boot, SME, 2)]))
    boot.at("b", op("b", do=[lines.store(line, flow.boot, PLAIN, 3)]))
    boot.at("c", op("c", do=[lines.wbinvd(line, flow.boot, SME)]))
    boot.at("d", op("d", do=[lines.load(line, flow.boot, PLAIN, line.answer)]))
    boot.at("done", ends=True)
    flow.always("short", lambda s: ~s.at("boot CPU", "done"))
    details = [step.detail for step in check(flow, 1).counterexample]
    assert details == [
        "line_copies not cached -> v2 (C=1), dirty",
        "line_copies v2 (C=1), dirty -> v3 (C=0), dirty + v2 (C=1), dirty",
        "line_copies v3 (C=0), dirty + v2 (C=1), dirty -> not cached; "
        "line_memory v1 (C=0) -> v2 (C=1)",
        "line_copies not cached -> noise (C=0)",
    ]


def test_properties_see_what_is_dirty_where_and_what_memory_gives():
    flow, line = small()
    other = flow.agent("CPU", per_cpu=True)
    other.at("a", op("a", do=[lines.store(line, flow.cpu, SME, 2)]))
    other.at("b", op("b", do=[lines.evict(line, flow.cpu, SME)]))
    other.at("done", ends=True)

    def dirty(s):
        here = s.at("CPU", "b")
        return (lines.is_dirty(s, line, SME)[:, 1:] <= here).all(axis=1)

    flow.always("dirty while it has not been written back", dirty)
    flow.always("not under the other key", lambda s: ~lines.is_dirty(s, line, PLAIN).any(axis=1))
    flow.sometimes("dirty", lambda s: lines.is_dirty(s, line, SME).any(axis=1))
    flow.at_end("stored", lambda s: lines.content(s, line, SME) == 2)
    flow.at_end("noise", lambda s: lines.content(s, line, PLAIN) == lib.GHCB_LINE_NOISE)
    flow.always("no refusal", lambda s: ~lines.was_refused(s, line))
    result = check(flow, 3)
    assert result.verdict == "holds" and result.reached == {"dirty": True}


def test_a_cpu_that_was_picked_acts_on_its_own_copies():
    flow, line = small()
    flow.per_cpu(chosen=0)
    flow.globals(read=0)
    other = flow.other
    boot = flow.agent("boot CPU")
    stores = [lines.store(line, other, SME, 2), put(other.chosen, 1)]
    boot.at("store", op("store", pick=True, do=stores))
    loads = [lines.load(line, other, SME, flow.g.read)]
    boot.at("load", op("load", pick=True, when=[other.chosen == 0], do=loads))
    flushes = [lines.wbinvd(line, other, SME)]
    boot.at("flush", op("flush", pick=True, when=[other.chosen == 1], do=flushes))
    boot.at("done", ends=True)
    idle = flow.agent("CPU", per_cpu=True)
    idle.at("idle", op("never", when=[flow.cpu.chosen == 2]), ends=True)
    idle.at("end", ends=True)

    def where(s):
        dirty = lines.is_dirty(s, line, SME)[:, 1:]
        chosen = (s.cpu.chosen == 1) & s.at("boot CPU", "load", "flush")[:, None]
        return (dirty == chosen).all(axis=1)

    flow.always("dirty on the chosen CPU until it flushes", where)
    flow.at_end("read by another", lambda s: s.g.read == 2)
    flow.at_end("written back", lambda s: lines.content(s, line, SME) == 2)
    for symmetric in (True, False):
        result = check(flow, 4, symmetric=symmetric)
        assert result.verdict == "holds", result
    assert run(flow, Machine.of(4), 1).verdict == "holds"


# -- what cannot be declared -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domains", "start", "words"),
    [
        ({}, (PLAIN, 1), "0 domains"),
        ({s: str(s) for s in range(5)}, (PLAIN, 1), "5 domains"),
        ({1024: "?"}, (PLAIN, 1), "slot 0x400"),
        ({-1: "?"}, (PLAIN, 1), "slot -0x1"),
        ({PLAIN: "C=0"}, (2048, 1), "slot 0x800"),
        ({PLAIN: "C=0"}, (PLAIN, 0), "value 0"),
        ({PLAIN: "C=0"}, (PLAIN, 16), "value 16"),
    ],
)
def test_a_line_that_is_none_is_named(domains, start, words):
    with pytest.raises(FlowError, match=f"odd: {words}"):
        lines.declare(Flow("x"), "odd", domains, Value, start=start)


def test_a_slot_value_or_cpu_that_is_none_is_named():
    flow, line = small()
    with pytest.raises(FlowError, match="line: slot 0x7 is none of its domains 0x0, 0x3ff"):
        lines.store(line, flow.boot, ASID, 2)
    with pytest.raises(FlowError, match="line: value 16"):
        lines.store(line, flow.boot, PLAIN, 16)
    with pytest.raises(FlowError, match="line: 0x0 is no ASID"):
        lines.page_flush(line, flow.boot, 0)
    for words in (flow.g, flow.vm):
        with pytest.raises(FlowError, match="is no CPU"):
            lines.load(line, words, PLAIN, line.answer)
