"""The meaning of a program's instructions, and what Program refuses.

``Draft`` builds the three arrays by hand; ``interpret`` is the meaning of effects once more, in
Python integers. The last tests throw random arrays at Program: what it accepts must run without
leaving the record.
"""

import contextlib
import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange, SevError, StateConflict
from ghcbcore.explorer import Explorer, MemoryLimit, NarrowIds
from ghcbcore.host import VCPU_DTYPE, VM_DTYPE
from ghcbcore.machine import ALT_DTYPE, INSN_DTYPE, ROLE_DTYPE, Program
from ghcbcore.plainexplorer import PlainExplorer
from ghcbcore.profile import Profile
from ghcbcore.simulator import Simulator

ALL = (1 << 64) - 1
N_VM, N_VCPU = len(VM_DTYPE.names), len(VCPU_DTYPE.names)
X, Y, PC = range(N_VM + N_VCPU, N_VM + N_VCPU + 3)
N_GLOBAL = PC + 1
A, B, CPU_PC = range(N_VCPU, N_VCPU + 3)
N_SLICE = CPU_PC + 1
MP_STATE = VCPU_DTYPE.names.index("mp_state")


def g(index):
    return lib.GHCB_BLOCK_GLOBAL << lib.GHCB_BLOCK_SHIFT | index


def own(index):
    return lib.GHCB_BLOCK_OWN << lib.GHCB_BLOCK_SHIFT | index


def other(index):
    return lib.GHCB_BLOCK_OTHER << lib.GHCB_BLOCK_SHIFT | index


def insn(op, a=0, value=0, *, word=None, mask=ALL, skip=0):
    """One instruction; ``word`` is an operand in place of ``value``."""
    return (op, int(word is not None), skip, a, word or 0, value, mask)


def put(a, value=0, **more):
    return insn(lib.GHCB_OP_SET, a, value, **more)


def each(*body):
    return [insn(lib.GHCB_OP_EACH, skip=len(body)), *body]


class Draft:
    """Arrays of a program; each field can be spoilt before it is built."""

    def __init__(self):
        self.insns, self.alts = [], []
        self.roles = [(lib.GHCB_BLOCK_GLOBAL, PC, 0, 2), (lib.GHCB_BLOCK_OWN, CPU_PC, 2, 2)]
        self.n_global, self.n_slice = N_GLOBAL, N_SLICE

    def alt(self, role, pc, guard=(), effect=(), *, binds=0, each=0, cost=0, delay=0, spread=0):
        first = len(self.insns)
        self.insns += [*guard, *effect]
        middle = first + len(guard)
        row = (role, pc, first, len(guard), middle, len(effect), binds, each, cost, delay, spread)
        self.alts.append(row)
        return self

    def program(self):
        return Program(
            np.array(self.insns, dtype=INSN_DTYPE),
            np.array(self.alts, dtype=ALT_DTYPE),
            np.array(self.roles, dtype=ROLE_DTYPE),
            self.n_global,
            self.n_slice,
            Profile(),
        )


def record_of(n_others, **words):
    """A record of zeros but for ``words``: ``x=1`` (common), ``a0=1`` (word ``a`` of CPU 0)."""
    record = np.zeros(N_GLOBAL + n_others * N_SLICE, dtype=np.uint64)
    for name, value in words.items():
        if name in ("x", "y", "pc"):
            record[{"x": X, "y": Y, "pc": PC}[name]] = value
        else:
            cpu = int(name[1:])
            record[N_GLOBAL + cpu * N_SLICE + {"a": A, "b": B}[name[0]]] = value
    return record


def after(effect, record, *, each=0, binds=0, other=-1):
    """Apply effects as a step of the global role."""
    program = Draft().alt(0, 0, effect=effect, each=each, binds=binds).program()
    copy = record.copy()
    program.step(copy, 0, other=other)
    return copy


def is_possible(guard, record):
    program = Draft().alt(0, 0, guard=guard).program()
    return bool(program.moves(record))


# -- tests -------------------------------------------------------------------------------------

TESTS = {
    lib.GHCB_OP_EQ: lambda a, b: a == b,
    lib.GHCB_OP_NE: lambda a, b: a != b,
    lib.GHCB_OP_LT: lambda a, b: a < b,
    lib.GHCB_OP_GE: lambda a, b: a >= b,
}
words = st.one_of(
    st.integers(0, ALL), st.sampled_from([0, 1, 2, (1 << 63) - 1, 1 << 63, ALL - 1, ALL])
)


@given(a=words, b=words, mask=words, op=st.sampled_from(list(TESTS)), as_word=st.booleans())
def test_a_guard_compares_the_masked_word_without_sign(a, b, mask, op, as_word):
    record = record_of(0, x=a, y=b)
    test = insn(op, g(X), word=g(Y), mask=mask) if as_word else insn(op, g(X), b, mask=mask)
    assert is_possible([test], record) == TESTS[op](a & mask, b)


def test_the_mask_of_a_test_is_not_applied_to_its_right_side():
    assert not is_possible(
        [insn(lib.GHCB_OP_EQ, g(X), word=g(Y), mask=0xFF)], record_of(0, x=1, y=0x101)
    )


def test_all_guards_must_hold():
    guard = [insn(lib.GHCB_OP_EQ, g(X), 1), insn(lib.GHCB_OP_EQ, g(Y), 1)]
    assert is_possible(guard, record_of(0, x=1, y=1))
    assert not is_possible(guard, record_of(0, x=1, y=2))
    assert not is_possible(guard, record_of(0, x=2, y=1))


def test_a_guard_with_a_skip_is_still_a_guard():
    guard = [insn(lib.GHCB_OP_EQ, g(X), 1, skip=1), insn(lib.GHCB_OP_EQ, g(Y), 1)]
    assert not is_possible(guard, record_of(0, y=1))


# -- effects -----------------------------------------------------------------------------------


@given(a=words, b=words, mask=words, as_word=st.booleans())
def test_set_takes_the_masked_value(a, b, mask, as_word):
    effect = put(g(X), word=g(Y), mask=mask) if as_word else put(g(X), b, mask=mask)
    assert after([effect], record_of(0, x=a, y=b))[X] == b & mask


@given(a=words, b=words, as_word=st.booleans())
def test_add_wraps_at_64_bits(a, b, as_word):
    add = lib.GHCB_OP_ADD
    effect = insn(add, g(X), word=g(Y)) if as_word else insn(add, g(X), b)
    assert after([effect], record_of(0, x=a, y=b))[X] == (a + b) & ALL


@given(a=words, b=st.one_of(st.integers(0, 130), words), as_word=st.booleans())
def test_shr_by_64_or_more_leaves_nothing(a, b, as_word):
    shr = lib.GHCB_OP_SHR
    effect = insn(shr, g(X), word=g(Y)) if as_word else insn(shr, g(X), b)
    assert after([effect], record_of(0, x=a, y=b))[X] == (a >> b if b < 64 else 0)


def test_a_word_can_be_its_own_operand():
    assert after([insn(lib.GHCB_OP_ADD, g(X), word=g(X))], record_of(0, x=3))[X] == 6
    assert after([put(g(X), word=g(X), mask=0xF0)], record_of(0, x=0xFF))[X] == 0xF0


def test_skip_goes_on_further_down():
    effect = [insn(lib.GHCB_OP_SKIP, skip=1), put(g(X), 1), put(g(Y), 2)]
    done = after(effect, record_of(0))
    assert (done[X], done[Y]) == (0, 2)


def test_a_skip_may_end_the_effects():
    done = after([put(g(Y), 2), insn(lib.GHCB_OP_SKIP, skip=1), put(g(X), 1)], record_of(0))
    assert (done[X], done[Y]) == (0, 2)


@pytest.mark.parametrize(("x", "expected"), [(5, 1), (4, 0)])
def test_a_test_that_fails_among_effects_skips(x, expected):
    effect = [insn(lib.GHCB_OP_EQ, g(X), 5, skip=1), put(g(Y), 1)]
    assert after(effect, record_of(0, x=x))[Y] == expected


def test_each_runs_its_body_with_every_slice():
    effect = [*each(insn(lib.GHCB_OP_ADD, other(A), word=g(X))), put(g(Y), 7)]
    done = after(effect, record_of(3, x=2, a0=1, a1=1, a2=5), each=1)
    assert [int(done[N_GLOBAL + i * N_SLICE + A]) for i in range(3)] == [3, 3, 7]
    assert done[Y] == 7


def test_each_of_no_other_cpu_does_nothing():
    done = after([*each(put(g(X), 9)), put(g(Y), 7)], record_of(0), each=1)
    assert (done[X], done[Y]) == (0, 7)


def test_each_takes_the_cpus_in_their_order():
    body = [put(other(A), word=g(X)), insn(lib.GHCB_OP_ADD, g(X), 1)]
    done = after(each(*body), record_of(3, x=10), each=1)
    assert [int(done[N_GLOBAL + i * N_SLICE + A]) for i in range(3)] == [10, 11, 12]


def test_a_test_in_an_each_skips_for_its_own_turn_only():
    body = [insn(lib.GHCB_OP_EQ, other(A), 1, skip=1), put(other(B), 1)]
    done = after(each(*body), record_of(3, a1=1), each=1)
    assert [int(done[N_GLOBAL + i * N_SLICE + B]) for i in range(3)] == [0, 1, 0]


def test_a_skip_over_an_each_leaves_it_out():
    loop = each(put(other(A), 1))
    done = after([insn(lib.GHCB_OP_SKIP, skip=len(loop)), *loop], record_of(2), each=1)
    assert not done[N_GLOBAL:].any()


def test_each_after_each_comes_back_to_the_bound_cpu():
    effect = [*each(put(other(A), 1)), put(other(B), 1)]
    done = after(effect, record_of(3), each=1, binds=lib.GHCB_BIND_ANY, other=1)
    assert [int(done[N_GLOBAL + i * N_SLICE + B]) for i in range(3)] == [0, 1, 0]


def test_call_hands_the_words_from_its_operand_on():
    for operand, at in ((g(N_VM), N_VM), (other(0), N_GLOBAL + N_SLICE)):
        effect = [insn(lib.GHCB_OP_CALL, operand, lib.GHCB_CALL_HLT)]
        done = after(effect, record_of(2), binds=lib.GHCB_BIND_ANY, other=1)
        assert done[at + MP_STATE] == lib.GHCB_MP_HALTED
        done[at + MP_STATE] = 0
        assert not done.any()


def test_call_reaches_the_vm():
    effect = [insn(lib.GHCB_OP_CALL, g(N_VM), lib.GHCB_CALL_SHUTDOWN)]
    done = after(effect, record_of(0))
    assert done[VM_DTYPE.names.index("event")] == lib.GHCB_EVENT_SHUTDOWN


def interpret(rows, record, n_others, own_at, other_at):
    """Apply effects to a list of integers: the meaning, written a second time."""

    def at(operand, other_at):
        block, index = operand >> lib.GHCB_BLOCK_SHIFT, operand & lib.GHCB_BLOCK_WORD
        return index + {0: 0, 1: own_at, 2: other_at}[block]

    def run(rows, other_at):
        i = 0
        while i < len(rows):
            op, is_word, skip, a, b, imm, mask = rows[i]
            i += 1
            if op == lib.GHCB_OP_EACH:
                for cpu in range(n_others):
                    run(rows[i : i + skip], N_GLOBAL + cpu * N_SLICE)
                i += skip
                continue
            value = record[at(b, other_at)] if is_word else imm
            if op == lib.GHCB_OP_SKIP:
                i += skip
            elif op in TESTS:
                i += 0 if TESTS[op](record[at(a, other_at)] & mask, value) else skip
            elif op == lib.GHCB_OP_SET:
                record[at(a, other_at)] = value & mask
            elif op == lib.GHCB_OP_ADD:
                record[at(a, other_at)] = (record[at(a, other_at)] + value) & ALL
            else:
                record[at(a, other_at)] = record[at(a, other_at)] >> min(value, 64)

    run(rows, other_at)


operands = st.sampled_from([g(X), g(Y), own(A), own(B), other(A), other(B)])
small = st.one_of(st.integers(0, 3), words)


@st.composite
def plain_insns(draw, most):
    op = draw(st.sampled_from([*TESTS, lib.GHCB_OP_SET, lib.GHCB_OP_ADD, lib.GHCB_OP_SHR]))
    word = draw(st.none() | operands)
    skip = draw(st.integers(0, most)) if op in TESTS else 0
    return insn(op, draw(operands), draw(small), word=word, mask=draw(small), skip=skip)


@st.composite
def effects(draw):
    rows = []
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.integers(0, 3))
        if kind == 0:
            body = draw(st.lists(plain_insns(0), max_size=3))
            rows += each(*body)
        elif kind == 1:
            # a test or SKIP over a whole block that follows it
            block = draw(st.lists(plain_insns(0), max_size=2))
            block = each(*block) if draw(st.booleans()) else block
            rows += [insn(lib.GHCB_OP_SKIP, skip=len(block)), *block]
        else:
            rows.append(draw(plain_insns(0)))
    return rows


@given(rows=effects(), values=st.lists(small, min_size=8, max_size=8))
def test_effects_mean_what_the_interpreter_says(rows, values):
    names = ("x", "y", "a0", "b0", "a1", "b1", "a2", "b2")
    record = record_of(3, **dict(zip(names, values, strict=True)))
    has_each = any(row[0] == lib.GHCB_OP_EACH for row in rows)
    draft = Draft().alt(1, 0, effect=rows, binds=lib.GHCB_BIND_ANY, each=int(has_each))
    expected = [int(w) for w in record]
    interpret(rows, expected, 3, N_GLOBAL, N_GLOBAL + 2 * N_SLICE)
    draft.program().step(record, 0, own=0, other=2)
    assert record.tolist() == expected


# -- step and moves ----------------------------------------------------------------------------


def test_step_refuses_what_is_not_possible_and_changes_nothing():
    one = [insn(lib.GHCB_OP_EQ, g(X), 1)]
    program = Draft().alt(0, 0, guard=one, effect=[put(g(Y), 1)]).program()
    for record in (record_of(1), record_of(1, x=1, pc=1)):
        before = record.copy()
        with pytest.raises(StateConflict, match=r"alt 0, own -1, other -1"):
            program.step(record, 0)
        assert (record == before).all()


@pytest.mark.parametrize(
    ("alt", "own", "other"), [(-1, 0, 1), (2, 0, 1), (0, -1, 1), (0, 2, 1), (0, 0, -1), (0, 0, 0)]
)
def test_step_refuses_wrong_numbers(alt, own, other):
    draft = Draft().alt(1, 0, binds=lib.GHCB_BIND_ANY).alt(1, 1)
    record = record_of(2)
    with pytest.raises(OutOfRange, match=f"alt {alt}"):
        draft.program().step(record, alt, own, other)
    assert not record.any()


def test_an_own_number_says_nothing_of_an_agent_that_exists_once():
    program = Draft().alt(0, 0, effect=[put(other(A), 1)], binds=lib.GHCB_BIND_ANY).program()
    record = record_of(2)
    program.step(record, 0, own=1, other=1)
    assert record[N_GLOBAL + N_SLICE + A] == 1


def test_moves_are_the_steps_that_are_possible():
    draft = Draft()
    draft.alt(0, 0, guard=[insn(lib.GHCB_OP_NE, other(A), 0)], binds=lib.GHCB_BIND_ANY)
    draft.alt(1, 0, guard=[insn(lib.GHCB_OP_EQ, own(A), 1)])
    draft.alt(1, 0, guard=[insn(lib.GHCB_OP_EQ, other(A), 1)], binds=lib.GHCB_BIND_ANY)
    program, record = draft.program(), record_of(3, a0=1, a2=2)
    found = [(0, -1, 0), (0, -1, 2), (1, 0, -1), (2, 1, 0), (2, 2, 0)]
    assert program.moves(record) == found
    for alt in range(3):
        for i in range(3):
            for j in range(3):
                key = (alt, i if alt else -1, j if alt != 1 else -1)
                if alt == 2 and i == j:
                    continue
                copy = record.copy()
                if key in found:
                    program.step(copy, *key)
                else:
                    with pytest.raises(StateConflict):
                        program.step(copy, *key)


def test_a_position_outside_its_program_is_refused():
    program = Draft().alt(0, 0).alt(1, 0).program()
    with pytest.raises(OutOfRange, match=r"role 0, agent 0: position 2"):
        program.moves(record_of(1, pc=2))
    record = record_of(2)
    record[N_GLOBAL + N_SLICE + CPU_PC] = ALL
    with pytest.raises(OutOfRange, match=r"role 1, agent 1: position 18446744073709551615"):
        program.moves(record)


@pytest.mark.parametrize("more", [-N_GLOBAL, -1, 1, N_SLICE - 1, N_SLICE + 1])
def test_a_record_of_the_wrong_length_is_refused(more):
    program = Draft().alt(0, 0).program()
    record = np.zeros(N_GLOBAL + more, dtype=np.uint64)
    for use in (
        program.moves,
        program.n_cpus,
        lambda r: program.step(r, 0),
        lambda r: Explorer(program, r),
        lambda r: Simulator(program, r, 0),
    ):
        with pytest.raises(OutOfRange, match=f"record of {N_GLOBAL + more} words"):
            use(record)


@pytest.mark.parametrize("n_others", [0, 1, 5])
def test_a_record_says_how_many_cpus_it_holds(n_others):
    assert Draft().alt(0, 0).program().n_cpus(record_of(n_others)) == n_others


def test_read_only_records_can_be_read_but_not_moved():
    program, record = Draft().alt(0, 0, effect=[put(g(X), 1)]).program(), record_of(1)
    record.flags.writeable = False
    assert program.n_cpus(record) == 1
    assert program.moves(record) == [(0, -1, -1)]
    assert Explorer(program, record).n_states == 1
    for use in (lambda: program.step(record, 0), lambda: Simulator(program, record, 0)):
        with pytest.raises(ValueError, match="read-only"):
            use()
    assert not record.any()


@pytest.mark.parametrize(
    "record", [np.zeros(N_GLOBAL, np.int64), np.zeros(N_GLOBAL), np.zeros((2, N_GLOBAL), np.uint64)]
)
def test_a_record_of_another_kind_is_refused(record):
    program = Draft().alt(0, 0).program()
    for use in (program.moves, program.n_cpus, lambda r: program.step(r, 0)):
        with pytest.raises(ValueError):
            use(record)


def test_a_strided_record_is_refused():
    program = Draft().alt(0, 0).program()
    with pytest.raises(ValueError, match="contiguous"):
        program.step(np.zeros(2 * N_GLOBAL, dtype=np.uint64)[::2], 0)


# -- what Program refuses ----------------------------------------------------------------------


def spoilt(role=0, guard=(), effect=(), **more):
    return Draft().alt(role, 0, guard, effect, **more)


def with_alt(**fields):
    draft = spoilt(1, [insn(lib.GHCB_OP_EQ, own(A))], [put(own(A), 1)])
    names = list(ALT_DTYPE.names)
    row = list(draft.alts[0])
    for name, value in fields.items():
        row[names.index(name)] = value
    draft.alts = [tuple(row)]
    return draft


def with_roles(*roles):
    draft = spoilt()
    draft.roles = list(roles)
    return draft


def with_sizes(n_global, n_slice):
    draft = spoilt()
    draft.n_global, draft.n_slice = n_global, n_slice
    return draft


BIND = lib.GHCB_BIND_ANY
REFUSED = {
    "no room for the boot CPU": (
        with_sizes(N_VM + N_VCPU - 1, N_SLICE),
        rf"n_global {N_VM + N_VCPU - 1}:",
    ),
    "no room for a vCPU": (with_sizes(N_GLOBAL, N_VCPU - 1), rf"n_slice {N_VCPU - 1}:"),
    "negative sizes": (with_sizes(-1, -1), r"n_global -1"),
    "no roles": (with_roles(), r"0 roles"),
    "65 roles": (with_roles(*[(0, PC, i, 1) for i in range(65)]), r"65 roles"),
    "a role of no block": (with_roles((2, 0, 0, 1)), r"roles\[0\]: block 2"),
    "a position outside": (with_roles((0, N_GLOBAL, 0, 1)), rf"roles\[0\]: .*word {N_GLOBAL}"),
    "a CPU's position outside": (
        with_roles((0, PC, 0, 1), (1, N_SLICE, 1, 1)),
        rf"roles\[1\]: block 1, word {N_SLICE}",
    ),
    "positions that overlap": (
        with_roles((0, PC, 0, 2), (1, CPU_PC, 1, 1)),
        r"roles\[1\]: first 1",
    ),
    "no positions": (with_roles((0, PC, 0, 0)), r"roles\[0\]: first 0, 0 positions"),
    "65536 positions": (with_roles((0, PC, 0, 1 << 16)), r"roles\[0\]: first 0, 65536 positions"),
    "no alternatives": (Draft(), r"no alternatives"),
    "an alternative of no role": (with_alt(role=2), r"alts\[0\]: role 2"),
    "an alternative at no position": (with_alt(pc=2), r"alts\[0\]: role 1, position 2"),
    "binds something else": (with_alt(binds=2), r"alts\[0\]: binds 2"),
    "guards past the end": (with_alt(guard=2), r"alts\[0\]: instructions end at 3"),
    "effects past the end": (with_alt(n_effects=2), r"alts\[0\]: instructions end at 3"),
    "effects past 2**32": (
        with_alt(effect=(1 << 32) - 1, n_effects=2),
        rf"alts\[0\]: instructions end at {(1 << 32) + 1}",
    ),
    "each without EACH": (with_alt(each=1), r"alts\[0\]: each is 1 but its effects say False"),
    "EACH without each": (
        spoilt(effect=each(put(other(A)))),
        r"alts\[0\]: each is 0 but its effects say True",
    ),
    "opcode 0": (spoilt(effect=[insn(0, g(X))]), r"alts\[0\], instruction 0: op 0"),
    "an opcode behind the last": (
        spoilt(effect=[put(g(X)), insn(lib.GHCB_OP_END, g(X))]),
        rf"alts\[0\], instruction 1: op {lib.GHCB_OP_END}",
    ),
    "an effect as a guard": (spoilt(guard=[put(g(X))]), r"instruction 0: op 5"),
    "EACH as a guard": (spoilt(guard=each(put(g(X)))), r"instruction 0: op 9"),
    "CALL as a guard": (spoilt(guard=[insn(lib.GHCB_OP_CALL, g(3))]), r"instruction 0: op 10"),
    "a skip past the end": (
        spoilt(effect=[insn(lib.GHCB_OP_SKIP, skip=2), put(g(X))]),
        r"instruction 0: skips 2, past the end",
    ),
    "an endless skip": (
        spoilt(effect=[insn(lib.GHCB_OP_SKIP, skip=(1 << 32) - 1)]),
        r"instruction 0: skips 4294967295",
    ),
    "an EACH past the end": (
        spoilt(effect=[insn(lib.GHCB_OP_EACH, skip=1)], each=1),
        r"instruction 0: skips 1, past the end",
    ),
    "a skip out of an EACH": (
        spoilt(effect=[*each(insn(lib.GHCB_OP_SKIP, skip=1)), put(g(X))], each=1),
        r"instruction 1: skips 1, past the end",
    ),
    "a skip into an EACH": (
        spoilt(effect=[insn(lib.GHCB_OP_SKIP, skip=1), *each(put(other(A)))], each=1),
        r"alts\[0\], instruction 0: skips into the EACH at 1",
    ),
    "a test that skips into an EACH": (
        spoilt(
            effect=[
                put(g(X)),
                insn(lib.GHCB_OP_EQ, g(X), 1, skip=2),
                *each(put(g(X)), put(other(A)), put(g(X))),
            ],
            each=1,
        ),
        r"instruction 1: skips into the EACH at 2",
    ),
    "EACH inside an EACH": (
        spoilt(effect=each(*each(put(other(A)))), each=1),
        r"instruction 1: EACH inside an EACH",
    ),
    "a common word outside": (spoilt(effect=[put(g(N_GLOBAL))]), rf"block 0, word {N_GLOBAL}"),
    "an own word outside": (spoilt(1, effect=[put(own(N_SLICE))]), rf"block 1, word {N_SLICE}"),
    "a guard's word outside": (
        spoilt(guard=[insn(lib.GHCB_OP_EQ, g(N_GLOBAL))]),
        rf"instruction 0: block 0, word {N_GLOBAL}",
    ),
    "a right side outside": (
        spoilt(guard=[insn(lib.GHCB_OP_EQ, g(X), word=g(N_GLOBAL))]),
        rf"instruction 0: block 0, word {N_GLOBAL}",
    ),
    "another CPU's word outside": (
        spoilt(effect=[put(other(N_SLICE))], binds=BIND),
        rf"block 2, word {N_SLICE}",
    ),
    "another CPU that is not bound": (spoilt(effect=[put(other(A))]), r"instruction 0: block 2"),
    "another CPU after the EACH": (
        spoilt(effect=[*each(put(other(A))), put(other(B))], each=1),
        rf"instruction 2: block 2, word {B}",
    ),
    "a guard on a CPU that is not bound": (
        spoilt(guard=[insn(lib.GHCB_OP_EQ, other(A))]),
        r"instruction 0: block 2",
    ),
    "an own slice of an agent that exists once": (
        spoilt(effect=[put(own(A))]),
        r"instruction 0: block 1",
    ),
    "a block that does not exist": (
        spoilt(effect=[put(3 << lib.GHCB_BLOCK_SHIFT)]),
        r"instruction 0: block 3, word 0",
    ),
    "the last block that a number can name": (
        spoilt(effect=[put(255 << lib.GHCB_BLOCK_SHIFT | X)]),
        r"instruction 0: block 255",
    ),
    "a vCPU that ends outside": (
        spoilt(effect=[insn(lib.GHCB_OP_CALL, g(N_GLOBAL - N_VCPU + 1))]),
        rf"instruction 0: block 0, word {N_GLOBAL - N_VCPU + 1}",
    ),
    "a vCPU that ends outside a slice": (
        spoilt(1, effect=[insn(lib.GHCB_OP_CALL, own(N_SLICE - N_VCPU + 1))]),
        r"instruction 0: block 1",
    ),
    "a host function that does not exist": (
        spoilt(effect=[insn(lib.GHCB_OP_CALL, g(3), lib.GHCB_CALL_END)]),
        rf"instruction 0: host function {lib.GHCB_CALL_END}",
    ),
    "a host function from a word": (
        spoilt(effect=[insn(lib.GHCB_OP_CALL, g(3), word=g(X))]),
        r"instruction 0: host function",
    ),
    "alternatives out of order": (
        Draft().alt(1, 0).alt(0, 0),
        r"not sorted by role and position",
    ),
    "positions out of order": (Draft().alt(0, 1).alt(0, 0), r"not sorted by role and position"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_program_refuses(what):
    draft, message = REFUSED[what]
    with pytest.raises(OutOfRange, match=message):
        draft.program()


def test_program_takes_the_last_words_of_each_block():
    draft = Draft()
    draft.alt(0, 0, effect=[put(g(N_GLOBAL - 1)), insn(lib.GHCB_OP_CALL, g(N_GLOBAL - N_VCPU))])
    draft.alt(1, 0, effect=[put(own(N_SLICE - 1)), put(other(N_SLICE - 1))], binds=BIND)
    program = draft.program()
    record = record_of(2)
    program.step(record, 0)
    program.step(record, 1, 0, 1)


def test_arrays_of_another_shape_are_refused():
    alts = np.zeros((1, 1), dtype=ALT_DTYPE)
    roles = np.array([(0, PC, 0, 1)], dtype=ROLE_DTYPE)
    with pytest.raises(OutOfRange, match="alts: 2 dimensions"):
        Program(np.zeros(0, INSN_DTYPE), alts, roles, N_GLOBAL, N_SLICE, Profile())


def test_a_program_without_instructions_is_possible():
    program = Draft().alt(0, 0).program()
    assert len(program.insns) == 0
    assert program.moves(record_of(0)) == [(0, -1, -1)]


def test_a_program_keeps_its_own_copy_of_its_arrays():
    draft = spoilt(effect=[put(g(X), 1)])
    whole = np.array(draft.insns * 3, dtype=INSN_DTYPE)
    alts, roles = np.array(draft.alts, dtype=ALT_DTYPE), np.array(draft.roles, dtype=ROLE_DTYPE)
    part = whole[:1]
    program = Program(part, alts, roles, N_GLOBAL, N_SLICE, Profile())
    assert all(a.flags.writeable for a in (part, alts, roles)), "the caller's arrays are theirs"
    whole["a"] = g(N_GLOBAL + 1000)
    alts["n_effects"] = 1000
    record = record_of(0)
    program.step(record, 0)
    assert record[X] == 1


@pytest.mark.parametrize("name", ["insns", "alts", "roles", "positions"])
def test_nobody_can_write_to_a_program(name):
    array = getattr(spoilt(effect=[put(g(X), 1)]).program(), name)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = array[0]
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


@pytest.mark.parametrize("kind", [Program, Explorer, Simulator])
def test_half_made_objects_do_not_exist(kind):
    with pytest.raises(TypeError):
        kind.__new__(kind)


def test_making_a_program_again_leaves_it_as_it_was():
    program = spoilt(effect=[put(g(X), 1)]).program()
    before = program.insns
    with contextlib.suppress(SevError, TypeError):
        program.__init__(np.zeros(9, INSN_DTYPE), None, None, 1, 1, None)
    record = record_of(0)
    program.step(record, 0)
    assert record[X] == 1
    assert program.insns is before


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_program_is_not_copied_with_its_pointers(way):
    with pytest.raises(TypeError):
        way(spoilt().program())


# -- EACH and the order of the CPUs ------------------------------------------------------------

add1 = insn(lib.GHCB_OP_ADD, g(X), 1)
IN_ANY_ORDER = {
    "puts": each(put(other(A), 1)),
    "counts": each(insn(lib.GHCB_OP_EQ, other(A), 1, skip=1), add1),
    "sums": each(insn(lib.GHCB_OP_ADD, g(X), word=other(A))),
    "raises a flag": each(insn(lib.GHCB_OP_EQ, other(A), 1, skip=1), put(g(X), 1)),
    "reads what nobody writes": each(put(other(A), word=g(X))),
    "reads its own CPU": each(put(other(A), word=own(B))),
    "sends INIT": each(insn(lib.GHCB_OP_CALL, other(0), lib.GHCB_CALL_SEND_INIT)),
    "counts outside": [*each(put(other(A), word=g(X))), add1],
}
IN_ORDER = {
    "numbers": each(put(other(A), word=g(X)), add1),
    "leaves the last": each(put(g(X), word=other(A))),
    "reads and clears": each(insn(lib.GHCB_OP_EQ, g(X), 1, skip=1), put(g(X), 0)),
    "puts two values": each(insn(lib.GHCB_OP_EQ, other(A), 1, skip=1), put(g(X), 1), put(g(X), 2)),
    "puts and adds": each(put(g(X), 1), add1),
    "writes what its own CPU says": each(put(other(A), word=own(A)), put(other(A), word=other(B))),
    "writes its own CPU": each(put(own(A), 1), put(other(B), word=other(A))),
    "asks the host": each(insn(lib.GHCB_OP_CALL, other(0), lib.GHCB_CALL_VMGEXIT)),
    "calls for the boot CPU": each(insn(lib.GHCB_OP_CALL, g(N_VM), lib.GHCB_CALL_HLT)),
}


@pytest.mark.parametrize("what", IN_ANY_ORDER)
def test_an_each_that_commutes_is_not_ordered(what):
    assert not spoilt(1, effect=IN_ANY_ORDER[what], each=1).program().ordered


@pytest.mark.parametrize("what", IN_ORDER)
def test_an_each_that_may_not_commute_is_ordered(what):
    assert spoilt(1, effect=IN_ORDER[what], each=1).program().ordered


@given(rows=effects(), values=st.lists(st.integers(0, 2), min_size=8, max_size=8))
def test_a_program_that_is_not_ordered_does_not_care_which_cpu_is_which(rows, values):
    has_each = any(row[0] == lib.GHCB_OP_EACH for row in rows)
    draft = Draft().alt(1, 0, effect=rows, binds=lib.GHCB_BIND_ANY, each=int(has_each))
    program = draft.program()
    if program.ordered:
        return
    names = ("x", "y", "a0", "b0", "a1", "b1", "a2", "b2")
    record = record_of(3, **dict(zip(names, values, strict=True)))
    turn = [2, 0, 1]  # CPU i of the one is CPU turn[i] of the other
    turned = record.copy()
    slices, turned_slices = (r[N_GLOBAL:].reshape(3, -1) for r in (record, turned))
    turned_slices[turn] = slices
    program.step(record, 0, own=0, other=2)
    program.step(turned, 0, own=turn[0], other=turn[2])
    assert (turned[:N_GLOBAL] == record[:N_GLOBAL]).all()
    assert (turned_slices[turn] == slices).all()


# -- anything at all ---------------------------------------------------------------------------


def near(*bounds):
    """Mostly inside, sometimes at the edge, sometimes far out."""
    values = sorted({0, 1, *bounds, *(b - 1 for b in bounds), *(b + 1 for b in bounds)})
    return st.sampled_from([v for v in values if 0 <= v < 1 << 32])


any_operand = st.builds(
    lambda block, index: block << lib.GHCB_BLOCK_SHIFT | index,
    st.sampled_from([0, 0, 0, 1, 1, 2, 3, 255]),
    st.sampled_from([X, Y, PC, A, B, CPU_PC, 0, 3, N_SLICE, N_GLOBAL, lib.GHCB_BLOCK_WORD]),
)
any_insn = st.tuples(
    st.integers(0, 11),
    st.sampled_from([0, 0, 1]),
    st.sampled_from([0, 0, 0, 1, 1, 2, 3, (1 << 32) - 1]),
    any_operand,
    any_operand,
    st.sampled_from([0, 1, 2, 7, 8, 64, ALL]),
    st.sampled_from([ALL, 1, 0]),
)
CANARY = 0xDEAD_BEEF_DEAD_BEEF


@st.composite
def anything(draw):
    insns = draw(st.lists(any_insn, max_size=8))
    n = len(insns)
    roles = [(0, PC, 0, 2), (1, CPU_PC, 2, 2)]
    if draw(st.booleans()):
        roles = draw(st.lists(st.tuples(near(1), near(PC), near(2), near(2)), max_size=3))
    row = st.tuples(
        near(1),
        near(1),
        near(n),
        st.integers(0, 2),
        near(n),
        near(2, 4),
        st.integers(0, 2),
        st.integers(0, 1),
        st.sampled_from([0, 1, 100, ALL]),
        st.sampled_from([0, 0, 5, ALL]),
        st.integers(0, 1),
    )
    alts = draw(st.lists(row, min_size=1, max_size=4))
    if draw(st.integers(0, 7)):
        alts = sorted(alts, key=lambda a: a[:2])
    return insns, alts, roles


def uses(program, n_others, values, seed):
    """Let everything that moves a machine use a program, between canaries."""
    room = np.full(2 * 64 + N_GLOBAL + n_others * N_SLICE, CANARY, dtype=np.uint64)
    record = room[64:-64]

    def fresh():
        record[:] = np.resize(np.array(values, dtype=np.uint64), len(record))
        record[PC] = values[0] % 2
        record[N_GLOBAL + CPU_PC :: N_SLICE] = values[1] % 2

    fresh()
    try:
        for move in program.moves(record):
            program.step(record, *move)
            fresh()
        for _ in range(6):
            moves = program.moves(record)
            if not moves:
                break
            program.step(record, *moves[seed % len(moves)])
    except OutOfRange as error:
        assert "position" in str(error)
    fresh()
    try:
        simulator = Simulator(program, record, seed)
        for n in (0, 1, 3, 40):
            simulator.advance(n)
        simulator.events()
        simulator.due()
    except OutOfRange as error:
        assert "position" in str(error)
    fresh()
    for symmetric in (True, False):
        ex = Explorer(program, record, symmetric=symmetric)
        try:
            while ex.n_states < 300 and ex.n_states > len(ex.terminals):
                n = ex.n_states
                ex.expand(0, n)
                if ex.n_states == n:
                    break
            ex.path(ex.n_states - 1)
            assert ex.state_of(record) == 0
        except OutOfRange as error:
            assert "position" in str(error)
        except (NarrowIds, MemoryLimit):
            pass
    assert (room[:64] == CANARY).all() and (room[-64:] == CANARY).all()


@settings(max_examples=400, deadline=None)
@given(
    arrays=anything(),
    n_others=st.integers(0, 3),
    values=st.lists(st.sampled_from([0, 0, 1, 1, 2, ALL]), min_size=2, max_size=5),
    seed=st.integers(0, ALL),
)
def test_any_arrays_are_refused_by_name_or_stay_inside_the_record(arrays, n_others, values, seed):
    insns, alts, roles = arrays
    try:
        program = Program(
            np.array(insns, dtype=INSN_DTYPE),
            np.array(alts, dtype=ALT_DTYPE),
            np.array(roles, dtype=ROLE_DTYPE),
            N_GLOBAL,
            N_SLICE,
            Profile(),
        )
    except OutOfRange as error:
        assert any(word in str(error) for word in ("alts[", "roles", "sorted")), error
        return
    uses(program, n_others, values, seed)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(effects(), min_size=1, max_size=3),
    guards=st.lists(plain_insns(0).filter(lambda r: r[0] in TESTS), max_size=2),
    n_others=st.integers(0, 3),
    values=st.lists(st.sampled_from([0, 0, 1, 1, 2, ALL]), min_size=2, max_size=5),
    seed=st.integers(0, ALL),
    delay=st.sampled_from([0, 7, ALL]),
)
def test_accepted_programs_stay_inside_the_record(rows, guards, n_others, values, seed, delay):
    draft = Draft()
    for i, effect in enumerate(rows):
        has_each = int(any(row[0] == lib.GHCB_OP_EACH for row in effect))
        draft.alt(1, int(i > 1), guards, effect, binds=BIND, each=has_each, delay=delay, spread=i)
    uses(draft.program(), n_others, values, seed)


def test_both_searches_refuse_a_position_outside():
    program = Draft().alt(0, 0, effect=[put(g(PC), 5)]).program()
    with pytest.raises(OutOfRange, match="position 5"):
        PlainExplorer(program, record_of(0)).explore()
    ex = Explorer(program, record_of(0))
    ex.expand(0, 1)
    with pytest.raises(OutOfRange, match="role 0: position 5"):
        ex.expand(1, 2)


def test_a_clock_at_its_end_stands_still():
    draft = Draft().alt(0, 0, effect=[insn(lib.GHCB_OP_ADD, g(X), 1)], cost=ALL)
    draft.alt(1, 0, effect=[insn(lib.GHCB_OP_ADD, own(A), 1)], delay=ALL, spread=1)
    simulator = Simulator(draft.program(), record_of(2), 3)
    last = 0
    for _ in range(40):
        assert simulator.advance(1)
        assert simulator.now_ns >= last
        last = simulator.now_ns
    assert simulator.n_steps == 40


def test_steps_beyond_64_bits_are_as_many_as_there_are():
    draft = Draft().alt(0, 0, [insn(lib.GHCB_OP_LT, g(X), 9)], [insn(lib.GHCB_OP_ADD, g(X), 1)])
    simulator = Simulator(draft.program(), record_of(0), 3)
    assert simulator.advance(1)
    assert not simulator.advance(ALL)
    assert simulator.n_steps == 9
