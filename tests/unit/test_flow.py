"""The tables in which flows are written: what each word means, and what is refused, by name."""

import copy
import pickle
import re

import numpy as np
import pytest

from ghcbcore._cffi import lib
from ghcbcore.errors import OutOfRange
from ghcbcore.profile import Profile
from pysev.checking import check
from pysev.flow import (
    Flow,
    FlowError,
    Hazard,
    add,
    call,
    each,
    jump,
    op,
    put,
    shift_right,
    when,
)

ALL = (1 << 64) - 1


def flow_of(**words):
    """A flow with some common words and one word ``n`` of each CPU."""
    flow = Flow("test")
    flow.globals(**({"x": 0, "y": 0} | words))
    flow.per_cpu(n=0)
    return flow


def one_step(flow, *effects, n_cpus=3, **options):
    """Do effects as one operation of the boot CPU; return the words as a dict and the record."""
    boot = flow.agent("boot CPU")
    boot.at("start", op("does it", do=effects, **options))
    boot.at("done", ends=True)
    compiled = flow.compile(n_cpus)
    record = compiled.initial_record()
    (move, *_) = compiled.program.moves(record)
    compiled.program.step(record, *move)
    return words_of(compiled, record)


def words_of(compiled, record):
    flow, program = compiled.flow, compiled.program
    slices = record[program.n_global :].reshape(-1, program.n_slice)
    out = {f.name: int(record[f.index]) for w in (flow.vm, flow.boot, flow.g) for f in w}
    return out | {f.name: slices[:, f.index].tolist() for f in flow.cpu}


def walk(compiled, *choose):
    """Take the moves of these texts in order; return the texts that are possible after that."""
    record = compiled.initial_record()
    for text in choose:
        for move in compiled.program.moves(record):
            if compiled.ops[move[0]].text == text:
                compiled.program.step(record, *move)
                break
        else:
            pytest.fail(f"{text!r} is not possible; {possible(compiled, record)} are")
    return possible(compiled, record)


def possible(compiled, record):
    return sorted(compiled.ops[alt].text for alt, _, _ in compiled.program.moves(record))


# -- words and values --------------------------------------------------------------------------


def test_first_values_are_where_they_belong():
    flow = flow_of(z=-1)
    flow.start(jump_table=0x1000, first_sipi=1)
    flow.per_cpu(m=7)
    boot = flow.agent("boot CPU")
    boot.at("done", op("nothing", to="."))
    compiled = flow.compile(3)
    words = words_of(compiled, compiled.initial_record())
    assert words["g.z"] == ALL
    assert words["vm.jump_table"] == 0x1000
    assert words["boot.first_sipi"] == 1 and words["cpu.first_sipi"] == [1, 1]
    assert words["cpu.m"] == [7, 7]


def test_records_of_a_flow_are_new_each_time():
    flow = flow_of()
    flow.agent("boot CPU").at("done", op("nothing", to="."))
    compiled = flow.compile(2)
    first = compiled.initial_record()
    first[:] = 9
    assert not compiled.initial_record()[3:].any()


@pytest.mark.parametrize("n_cpus", [1, 2, lib.GHCB_MAX_CPUS])
def test_a_flow_compiles_for_every_number_of_cpus(n_cpus):
    flow = flow_of()
    flow.agent("boot CPU").at("done", op("nothing", to="."))
    compiled = flow.compile(n_cpus)
    assert compiled.program.n_cpus(compiled.initial_record()) == n_cpus - 1


@pytest.mark.parametrize("n_cpus", [-1, 0, lib.GHCB_MAX_CPUS + 1])
def test_other_numbers_of_cpus_are_refused(n_cpus):
    with pytest.raises(OutOfRange, match=f"{n_cpus} CPUs"):
        flow_of().compile(n_cpus)


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1])
def test_a_value_of_more_than_64_bits_is_refused(value):
    for use in (
        lambda f: f.globals(z=value),
        lambda f: f.per_cpu(z=value),
        lambda f: f.start(jump_table=value),
    ):
        with pytest.raises(OutOfRange, match="does not fit into 64 bits"):
            use(flow_of())


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1])
def test_a_value_of_more_than_64_bits_in_an_operation_names_it(value):
    for spoil in (
        lambda f: op("does it", do=[put(f.g.x, value)]),
        lambda f: op("does it", do=[add(f.g.x, value)]),
        lambda f: op("does it", when=[f.g.x == value]),
        lambda f: op("does it", do=[when(f.g.x < value, put(f.g.x, 1))]),
    ):
        flow = flow_of()
        boot = flow.agent("boot CPU")
        boot.at("start", spoil(flow))
        boot.at("done", ends=True)
        with pytest.raises(OutOfRange, match=r"^boot CPU, 'start', 'does it': .*64 bits"):
            flow.compile(2)


def test_numbers_of_numpy_are_numbers():
    flow = flow_of()
    done = one_step(flow, put(flow.g.x, np.uint64(ALL)), add(flow.g.y, np.int8(-1)))
    assert (done["g.x"], done["g.y"]) == (ALL, ALL)


def test_what_is_no_number_is_refused():
    flow = flow_of()
    boot = flow.agent("boot CPU")
    boot.at("start", op("does it", do=[put(flow.g.x, 1.5)], to="."))
    with pytest.raises(TypeError):
        flow.compile(2)


# -- effects -----------------------------------------------------------------------------------


def test_put_add_and_shift_do_what_they_say():
    flow = flow_of(x=5, z=0)
    done = one_step(
        flow,
        put(flow.g.y, flow.g.x),
        add(flow.g.y, -6),
        put(flow.g.z, flow.g.y & 0xFF0),
        shift_right(flow.g.z, 4),
        add(flow.g.x, flow.g.z),
    )
    assert (done["g.x"], done["g.y"], done["g.z"]) == (5 + 0xFF, ALL, 0xFF)


@pytest.mark.parametrize("x", [0, 1])
@pytest.mark.parametrize("y", [0, 1])
def test_when_and_otherwise_are_one_or_the_other(x, y):
    flow = flow_of(x=x, y=y, out=0)
    done = one_step(
        flow,
        when(
            flow.g.x == 1,
            add(flow.g.out, 1),
            when(flow.g.y == 1, add(flow.g.out, 2), otherwise=[add(flow.g.out, 4)]),
            otherwise=[
                add(flow.g.out, 8),
                when(flow.g.y == 1, add(flow.g.out, 16)),
                when(flow.g.y == 0, add(flow.g.out, 32), otherwise=[add(flow.g.out, 64)]),
            ],
        ),
        add(flow.g.out, 128),
    )
    assert done["g.out"] == 128 + {(1, 1): 3, (1, 0): 5, (0, 1): 88, (0, 0): 40}[x, y]


@pytest.mark.parametrize("x", [0, 1])
def test_an_empty_when_with_an_otherwise_is_an_unless(x):
    flow = flow_of(x=x)
    assert one_step(flow, when(flow.g.x == 1, otherwise=[put(flow.g.y, 7)]))["g.y"] == 7 * (1 - x)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_when_with_several_tests_needs_all_of_them(x, y):
    flow = flow_of(x=x, y=y, out=0)
    done = one_step(flow, when([flow.g.x == 1, flow.g.y == 1], put(flow.g.out, 1)))
    assert done["g.out"] == (x and y)


def test_when_without_tests_always_applies():
    flow = flow_of()
    assert one_step(flow, when([], put(flow.g.x, 1)))["g.x"] == 1


@pytest.mark.parametrize("tests", [0, 2])
def test_otherwise_needs_one_test(tests):
    flow = flow_of()
    with pytest.raises(FlowError, match="otherwise"):
        when([flow.g.x == 1] * tests, put(flow.g.x, 1), otherwise=[put(flow.g.x, 2)])


@pytest.mark.parametrize("value", range(4))
def test_every_comparison_and_its_opposite(value):
    flow = flow_of(x=value, lt=0, ge=0, eq=0, ne=0)
    tests = {
        "lt": flow.g.x < 2,
        "ge": flow.g.x >= 2,
        "eq": flow.g.x == 2,
        "ne": flow.g.x != 2,
    }
    effects = []
    for name, test in tests.items():
        word = getattr(flow.g, name)
        effects += [when(test, add(word, 1)), when(test.negated(), add(word, 2))]
    done = one_step(flow, *effects)
    for name, expected in {
        "lt": value < 2,
        "ge": value >= 2,
        "eq": value == 2,
        "ne": value != 2,
    }.items():
        assert done[f"g.{name}"] == (1 if expected else 2)


def test_effects_of_one_operation_are_in_order():
    flow = flow_of()
    done = one_step(flow, add(flow.g.x, 1), put(flow.g.y, flow.g.x), add(flow.g.x, 1))
    assert (done["g.x"], done["g.y"]) == (2, 1)


def test_each_reaches_every_cpu_but_the_boot_cpu():
    flow = flow_of(x=3)
    done = one_step(flow, each(put(flow.other.n, flow.g.x), put(flow.other.msr, 9)), n_cpus=4)
    assert done["cpu.n"] == [3, 3, 3]
    assert done["cpu.msr"] == [9, 9, 9] and done["boot.msr"] == 0


def test_each_with_when_looks_at_each_cpu():
    flow = flow_of()
    loop = each(
        add(flow.g.x, 1),
        when(flow.g.x == 2, put(flow.other.n, 7), otherwise=[put(flow.other.n, 5)]),
    )
    assert one_step(flow, loop, n_cpus=4)["cpu.n"] == [5, 7, 5]


@pytest.mark.parametrize("x", [0, 1])
def test_each_inside_when_is_left_out_as_a_whole(x):
    flow = flow_of(x=x)
    done = one_step(
        flow,
        when(flow.g.x == 1, each(put(flow.other.n, 7)), otherwise=[each(put(flow.other.n, 5))]),
        add(flow.g.y, 1),
    )
    assert done["cpu.n"] == [7, 7] if x else [5, 5]
    assert done["g.y"] == 1


def test_an_empty_each_does_nothing():
    flow = flow_of()
    assert one_step(flow, each(), put(flow.g.y, 1))["g.y"] == 1


def test_each_of_a_cpu_reaches_its_own_too():
    flow = flow_of()
    ap = flow.agent("AP", per_cpu=True)
    ap.at("start", op("all", do=[put(flow.cpu.n, 1), each(add(flow.other.n, 2))], to="."))
    compiled = flow.compile(4)
    record = compiled.initial_record()
    compiled.program.step(record, 0, own=1)
    assert words_of(compiled, record)["cpu.n"] == [2, 3, 2]


def test_pick_binds_any_other_cpu_for_which_the_tests_hold():
    flow = flow_of()
    ap = flow.agent("AP", per_cpu=True)
    pick = op("pick", pick=True, when=[flow.other.n == 0], do=[put(flow.other.n, 1)], to=".")
    ap.at("start", pick)
    compiled = flow.compile(4)
    record = compiled.initial_record()
    assert len(compiled.program.moves(record)) == 3 * 2
    compiled.program.step(record, 0, 0, 2)
    assert words_of(compiled, record)["cpu.n"] == [0, 0, 1]
    assert compiled.program.moves(record) == [(0, 0, 1), (0, 1, 0), (0, 2, 0), (0, 2, 1)]


def test_calls_reach_the_vcpu_that_they_name():
    flow = flow_of()
    halt = lib.GHCB_CALL_HLT
    done = one_step(flow, call(halt, flow.other), pick=True, n_cpus=3)
    assert done["cpu.mp_state"] == [lib.GHCB_MP_HALTED, 0] and done["boot.mp_state"] == 0
    flow = flow_of()
    assert one_step(flow, call(halt, flow.boot))["boot.mp_state"] == lib.GHCB_MP_HALTED


def test_the_host_is_that_of_the_flow():
    flow = Flow("v1", Profile(max_version=1))
    flow.globals(version=0)
    ask = [put(flow.boot.msr, lib.GHCB_MSR_SEV_INFO_REQ), call(lib.GHCB_CALL_VMGEXIT, flow.boot)]
    top = put(flow.g.version, flow.boot.msr)
    done = one_step(flow, *ask, top, shift_right(flow.g.version, 48))
    assert done["g.version"] == 1


# -- labels ------------------------------------------------------------------------------------


def test_labels_follow_each_other_unless_to_says_otherwise():
    flow = flow_of()
    boot = flow.agent("boot CPU")
    boot.at("a", op("next"), op("stay", to="."), op("far", to="c"))
    boot.at("b", op("back", to="a"))
    boot.at("c", ends=True)
    compiled = flow.compile(1)
    start = ["far", "next", "stay"]
    assert walk(compiled) == walk(compiled, "stay") == walk(compiled, "next", "back") == start
    assert walk(compiled, "next") == ["back"]
    assert walk(compiled, "far") == []


def test_a_jump_moves_another_agent_of_the_same_cpu():
    flow = flow_of()
    ap, thread = flow.agent("AP", per_cpu=True), flow.agent("thread", per_cpu=True)
    ap.at("here", op("AP", to="."))
    ap.at("there", ends=True)
    thread.at("start", op("moves it", do=[jump(ap, "there")]))
    thread.at("done", ends=True)
    compiled = flow.compile(3)
    record = compiled.initial_record()
    move = next(m for m in compiled.program.moves(record) if compiled.ops[m[0]].text == "moves it")
    compiled.program.step(record, *move)
    assert words_of(compiled, record)["cpu.pc_0"] == [1, 0]


def test_to_counts_more_than_a_jump_of_the_agent_itself():
    flow = flow_of()
    boot = flow.agent("boot CPU")
    boot.at("a", op("goes", do=[jump(boot, "b")], to="c"))
    boot.at("b", op("wrong", to="."))
    boot.at("c", op("right", to="."))
    assert walk(flow.compile(1), "goes") == ["right"]


def test_a_jump_with_to_dot_is_a_branch():
    flow = flow_of(x=1)
    boot = flow.agent("boot CPU")
    boot.at("a", op("goes", do=[when(flow.g.x == 1, jump(boot, "c"))], to="."))
    boot.at("b", op("wrong", to="."))
    boot.at("c", op("right", to="."))
    assert walk(flow.compile(1), "goes") == ["right"]


def test_alternatives_say_which_agent_and_label_they_are():
    flow = flow_of()
    boot, ap = flow.agent("boot CPU"), flow.agent("AP", per_cpu=True)
    boot.at("a", op("x"))
    boot.at("b", op("y", to="a"))
    ap.at("c", op("z", to="."))
    compiled = flow.compile(2)
    assert [o.text for o in compiled.ops] == ["x", "y", "z"]
    assert [compiled.agent_of(i).name for i in range(3)] == ["boot CPU", "boot CPU", "AP"]
    assert [compiled.label(boot, i) for i in range(2)] == ["a", "b"]


# -- only_while, hazards -----------------------------------------------------------------------


def test_only_while_of_a_flow_stops_everybody():
    flow = flow_of()
    flow.only_while(flow.g.x == 0)
    for name, per_cpu in (("boot CPU", False), ("AP", True)):
        agent = flow.agent(name, per_cpu=per_cpu)
        agent.at("start", op(f"{name} goes on", to="."), op("stops", do=[put(flow.g.x, 1)], to="."))
    compiled = flow.compile(2)
    assert walk(compiled) == ["AP goes on", "boot CPU goes on", "stops", "stops"]
    assert walk(compiled, "stops") == []


def test_only_while_of_an_agent_stops_it_and_its_hazards():
    flow = flow_of(taken=1)
    ap = flow.agent("AP", per_cpu=True, only_while=[flow.cpu.mp_state == lib.GHCB_MP_RUNNABLE])
    hazard = Hazard(flow.g.taken == 0, (op("strikes", to="dead"),))
    with ap.under(hazard):
        ap.at("start", op("goes on"))
    ap.at("dead", ends=True)
    boot = flow.agent("boot CPU")
    halt = call(lib.GHCB_CALL_HLT, flow.other)
    boot.at("start", op("halts it", pick=True, do=[halt]))
    boot.at("done", ends=True)
    assert walk(flow.compile(2)) == ["halts it", "strikes"]
    assert walk(flow.compile(2), "halts it") == []


def hazards():
    """An AP under two hazards, both of which the boot CPU can bring about."""
    flow = flow_of(text=0, tables=0, go=0)
    ap, boot = flow.agent("AP", per_cpu=True), flow.agent("boot CPU")
    text = Hazard(flow.g.text == 0, (op("text 1", to="dead"), op("text 2", to="dead")))
    tables = Hazard(flow.g.tables == 0, (op("tables", to="dead"),))
    boot.at(
        "start",
        op("take text", when=[flow.g.text == 0], do=[put(flow.g.text, 1)], to="."),
        op("take tables", when=[flow.g.tables == 0], do=[put(flow.g.tables, 1)], to="."),
        op("go", when=[flow.g.go == 0], do=[put(flow.g.go, 1)], to="."),
    )
    return flow, ap, text, tables


def of_ap(texts):
    return [t for t in texts if not t.startswith(("take", "go"))]


def test_under_a_hazard_an_operation_needs_what_it_executes_from():
    flow, ap, text, tables = hazards()
    with ap.under(text), ap.under(tables):
        ap.at("start", op("runs", to="."))
    ap.at("free", op("is free", to="."))
    ap.at("dead", ends=True)
    compiled = flow.compile(2)
    assert of_ap(walk(compiled)) == ["runs"]
    assert of_ap(walk(compiled, "take text")) == ["text 1", "text 2"]
    assert of_ap(walk(compiled, "take tables")) == ["tables"]
    both = of_ap(walk(compiled, "take tables", "take text"))
    assert both == ["text 1", "text 2"], "the first hazard that is broken counts"
    assert of_ap(walk(compiled, "take tables", "tables")) == []


def test_hazards_end_with_their_block():
    flow, ap, text, tables = hazards()
    with ap.under(text):
        with ap.under(tables):
            ap.at("start", op("both"))
        ap.at("middle", op("text only"))
    ap.at("free", op("is free", to="."))
    ap.at("dead", ends=True)
    compiled = flow.compile(2)
    assert of_ap(walk(compiled, "both", "take tables")) == ["text only"]
    assert of_ap(walk(compiled, "both", "take text")) == ["text 1", "text 2"]
    assert of_ap(walk(compiled, "both", "text only", "take text")) == ["is free"]


def test_hazards_end_with_their_block_if_it_fails():
    flow, ap, text, _ = hazards()
    with pytest.raises(FlowError), ap.under(text):
        ap.at("start", op("runs", to="free"))
        ap.at("start")
    ap.at("free", op("is free", to="."))
    ap.at("dead", ends=True)
    assert of_ap(walk(flow.compile(2), "runs", "take text")) == ["is free"]


def test_no_hazard_strikes_a_cpu_that_waits_asleep():
    flow, ap, text, _ = hazards()
    with ap.under(text):
        ap.at("sleeps", op("wakes", when=[flow.g.go == 1], asleep=True, to="free"))
    ap.at("free", ends=True)
    ap.at("dead", ends=True)
    compiled = flow.compile(2)
    assert of_ap(walk(compiled, "take text")) == []
    assert of_ap(walk(compiled, "go")) == ["wakes"]
    assert of_ap(walk(compiled, "take text", "go")) == ["text 1", "text 2"]


def test_a_hazard_strikes_a_cpu_that_waits_awake():
    flow, ap, text, _ = hazards()
    with ap.under(text):
        ap.at("polls", op("sees it", when=[flow.g.go == 1], to="free"))
    ap.at("free", ends=True)
    ap.at("dead", ends=True)
    compiled = flow.compile(2)
    assert of_ap(walk(compiled)) == []
    assert of_ap(walk(compiled, "take text")) == ["text 1", "text 2"]


def test_a_hazard_at_a_label_without_operations_does_not_strike():
    flow, ap, text, _ = hazards()
    with ap.under(text):
        ap.at("rests", ends=True)
    ap.at("dead", ends=True)
    assert of_ap(walk(flow.compile(2), "take text")) == []


# -- what is refused ---------------------------------------------------------------------------


def test_a_label_that_stands_twice_is_refused():
    flow = flow_of()
    boot = flow.agent("boot CPU")
    boot.at("start", op("runs", to="."))
    with pytest.raises(FlowError, match="boot CPU: label 'start' stands twice"):
        boot.at("start")


def test_an_agent_that_stands_twice_is_refused():
    flow = flow_of()
    flow.agent("boot CPU")
    with pytest.raises(FlowError, match="agent 'boot CPU' stands twice"):
        flow.agent("boot CPU", per_cpu=True)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda f: f.globals(x=0), r"g: the word 'x' is there already"),
        (lambda f: f.per_cpu(n=0), r"the word 'n' is there already"),
        (lambda f: f.per_cpu(msr=0), r"the word 'msr' is there already"),
        (lambda f: f.globals(first=0), r"g: the word 'first' .* not possible"),
        (lambda f: f.globals(declare=0), r"g: the word 'declare' .* not possible"),
        (lambda f: f.globals(_x=0), r"g: the word '_x' .* not possible"),
        (lambda f: (f.agent("a"), f.globals(pc_0=0)), r"g: the word 'pc_0' is there already"),
        (lambda f: f.start(x=1), r"x: no word of the VM or of a vCPU"),
    ],
)
def test_words_that_are_taken_or_impossible_are_refused(declare, message):
    with pytest.raises(FlowError, match=message):
        declare(flow_of())


def test_a_refused_word_leaves_the_others_where_they_are():
    flow = flow_of(x=3)
    with pytest.raises(FlowError):
        flow.globals(x=9)
    with pytest.raises(FlowError):
        flow.per_cpu(n=9)
    flow.globals(z=4)
    flow.per_cpu(m=5)
    done = one_step(flow, put(flow.g.y, flow.g.z))
    assert (done["g.x"], done["g.y"], done["g.z"], done["cpu.m"]) == (3, 4, 4, [5, 5])


def test_a_word_that_does_not_exist_lists_those_that_do():
    with pytest.raises(AttributeError, match=r"g has no word 'z'; it has: x, y"):
        _ = flow_of().g.z


BAD = {
    "a label that is missing": (
        lambda f, a: op("goes", to="nowhere"),
        r"agent has no label 'nowhere'; it has: start, done",
    ),
    "no label that follows": (None, r"no label follows"),
    "a jump to a label that is missing": (
        lambda f, a: op("goes", do=[jump(a, "nowhere")]),
        r"agent has no label 'nowhere'",
    ),
    "a jump of an agent of another flow": (
        lambda f, a: op("goes", do=[jump(Flow("other").agent("x"), "y")]),
        r"label 'y' is put where no agent of this flow stands",
    ),
    "a text as a value": (
        lambda f, a: op("goes", do=[put(f.g.x, "done")]),
        r"label 'done' is put where no agent",
    ),
    "a word of another flow": (
        lambda f, a: op("goes", do=[put(flow_of(other=0).g.other, 1)]),
        r"g\.other is no word of flow 'test'",
    ),
    "a test of another flow's word": (
        lambda f, a: op("goes", when=[flow_of(u=0, v=0, other=0).g.other == 1]),
        r"g\.other is no word of flow 'test'",
    ),
    "an own word of an agent that exists once": (
        lambda f, a: op("goes", do=[put(f.cpu.n, 1)]),
        r"cpu\.n: this agent has no CPU of its own",
    ),
    "an own word in a test": (
        lambda f, a: op("goes", when=[f.g.x == f.cpu.n]),
        r"cpu\.n: this agent has no CPU of its own",
    ),
    "another CPU's word without pick": (
        lambda f, a: op("goes", when=[f.other.n == 1]),
        r"other\.n: no CPU is bound",
    ),
    "another CPU's word behind an each": (
        lambda f, a: op("goes", do=[each(put(f.other.n, 1)), put(f.other.n, 2)]),
        r"other\.n: no CPU is bound",
    ),
    "another CPU's vCPU": (
        lambda f, a: op("goes", do=[call(lib.GHCB_CALL_HLT, f.other)]),
        r"other\.msr: no CPU is bound",
    ),
    "each in an each": (
        lambda f, a: op("goes", do=[each(when(f.g.x == 1, each(put(f.other.n, 1))))]),
        r"`each` inside an `each`",
    ),
    "a test in an otherwise": (
        lambda f, a: op(
            "goes",
            do=[when(f.g.x == 1, otherwise=[when(f.cpu.n == 1, put(f.g.x, 2))])],
        ),
        r"cpu\.n: this agent has no CPU of its own",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_flow_that_is_wrong_names_agent_label_and_operation(what):
    make, message = BAD[what]
    flow = flow_of()
    agent = flow.agent("agent")
    if make is None:
        agent.at("start", ends=True)
        agent.at("done", op("goes"))
    else:
        agent.at("start", make(flow, agent))
        agent.at("done", ends=True)
    where = "'done'" if make is None else "'start'"
    with pytest.raises(FlowError, match=f"^agent, {where}, 'goes': {message}"):
        flow.compile(2)


def test_a_condition_of_the_flow_must_be_seen_by_every_agent():
    flow = flow_of()
    flow.only_while(flow.cpu.n == 0)
    flow.agent("AP", per_cpu=True).at("start", op("runs", to="."))
    flow.compile(2)
    flow.agent("boot CPU").at("start", op("waits", to="."))
    with pytest.raises(FlowError, match=r"boot CPU, 'start', 'waits': cpu\.n: this agent has no"):
        flow.compile(2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda f: None, "test: no agents"),
        (lambda f: f.agent("boot CPU"), "boot CPU: no labels"),
        (lambda f: f.agent("boot CPU").at("rests", ends=True), "test: no operations"),
        (lambda f: f.agent("boot CPU").at("."), "boot CPU: `.` names the label"),
    ],
)
def test_a_flow_without_substance_is_refused(build, message):
    flow = flow_of()
    with pytest.raises(FlowError, match=re.escape(message)):
        build(flow)
        flow.compile(2)


@pytest.mark.parametrize(
    "use",
    [
        lambda f: put(f.g.x & 1, 1),
        lambda f: add(f.g.x & 1, 1),
        lambda f: add(f.g.x, f.g.y & 1),
        lambda f: shift_right(f.g.x & 1, 1),
        lambda f: shift_right(f.g.x, f.g.y & 1),
        lambda f: f.g.x == (f.g.y & 1),
    ],
)
def test_a_mask_that_would_be_dropped_is_refused(use):
    with pytest.raises(FlowError, match=r"mask|bits"):
        use(flow_of())


@pytest.mark.parametrize("function", [-1, lib.GHCB_CALL_END])
def test_a_call_of_no_host_function_is_refused(function):
    with pytest.raises(FlowError, match=f"no function {function}"):
        call(function, flow_of().boot)


def test_a_call_needs_a_vcpu():
    flow = Flow("test")
    for words, title in ((flow.vm, "vm"), (flow.g, "g")):
        with pytest.raises(FlowError, match=f"{title} is no vCPU"):
            call(lib.GHCB_CALL_HLT, words)


@pytest.mark.parametrize("name", ["cost", "after"])
@pytest.mark.parametrize("value", [-1, 1 << 63])
def test_times_that_are_none_are_refused(name, value):
    with pytest.raises(FlowError, match=f"'waits': {name} of {value} ns"):
        op("waits", **{name: value})


def test_words_and_tests_have_no_truth_value():
    flow = flow_of()
    for thing in (flow.g.x, flow.g.x == 1):
        with pytest.raises(FlowError, match=r"g\.x"):
            bool(thing)
    with pytest.raises(FlowError):
        _ = flow.g.x in [flow.g.y]
    with pytest.raises(TypeError):
        _ = flow.g.x > 1
    with pytest.raises(TypeError):
        _ = flow.g.x <= 1


def test_numbers_on_the_left_compare_too():
    flow = flow_of(x=3)
    three = 3
    done = one_step(
        flow,
        when(three + 2 > flow.g.x, add(flow.g.y, 1)),
        when(three == flow.g.x, add(flow.g.y, 2)),
        when(three <= flow.g.x, add(flow.g.y, 4)),
    )
    assert done["g.y"] == 7


def test_words_can_be_copied():
    words = flow_of(x=2).g
    for twin in (copy.copy(words), copy.deepcopy(words), pickle.loads(pickle.dumps(words))):
        assert twin.x.name == "g.x"
        with pytest.raises(AttributeError):
            _ = twin._nothing


@pytest.mark.parametrize("n_cpus", [1, 2, 3])
def test_a_flow_can_be_compiled_again_and_again(n_cpus):
    flow = flow_of()
    boot = flow.agent("boot CPU")
    boot.at("start", op("all", do=[each(put(flow.other.n, 1))]))
    boot.at("done", ends=True)
    first = check(flow, n_cpus)
    again = check(flow, n_cpus)
    assert (first.states, first.transitions) == (again.states, again.transitions) == (2, 1)
