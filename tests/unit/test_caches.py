"""Programs as text: what they say, what is refused, which flush is missing."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghcbcore._cffi import lib
from pysev.caches import BadProgram, Flush, cures, explore, parse, with_flushes
from pysev.caches.command import example_text

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "cache"


def contents(text, **how):
    """{(content of each line, "good" or "corrupt")}, in words."""
    found = explore(parse(text, **how))
    assert found.is_complete
    words = found.program.content_words
    return {
        (
            *(words(i, cell) for i, cell in enumerate(one.cells)),
            "corrupt" if any(one.is_bad) else "good",
        )
        for one in found.contents
    }


def test_the_example_has_twenty_lines_and_is_the_one_that_is_shipped():
    text = (EXAMPLES / "wbinvd.txt").read_text()
    assert len(text.splitlines()) == 20
    assert text == example_text()


def test_the_example_shows_that_both_cpus_must_flush_and_cpu_1_before_it_halts():
    program = parse(example_text())
    found = explore(program)
    assert len(found.contents) == 4
    assert sum(any(one.is_bad) for one in found.contents) == 3
    missing = cures(program)
    assert missing.is_complete
    assert len(missing.cures) == 1 and len(missing.cures[0]) == 2
    names = [
        {name for option in choice.options for name in option.flushes}
        for choice in missing.cures[0]
    ]
    assert sorted(map(sorted, names)) == [
        ["any cpu clflush 0x1000 c=1", "cpu 1 wbinvd", "cpu 1 wbnoinvd"],
        ["any cpu clflush 0x2000 c=1", "cpu 0 wbinvd", "cpu 0 wbnoinvd"],
    ]
    numbers = [one.number for one in program.statements]
    halt = numbers.index(9)
    for choice in missing.cures[0]:
        for option in choice.options:
            if any(name.startswith("cpu 1") for name in option.flushes):
                assert max(option.places) == halt


def test_the_coherent_part_needs_no_flush():
    assert contents(example_text(), coherent=True) == {("c=0 new", "c=0 new", "good")}
    assert contents("coherent\n" + example_text()) == {("c=0 new", "c=0 new", "good")}


def test_every_insertion_of_a_cure_cures_and_no_smaller_one_does():
    program = parse(
        "cpu 1 store 0x1000 c=1 old\ncpu 0 store 0x2000 c=1 old\nkexec\n"
        "cpu 0 store 0x1000 c=0 new\ncpu 0 store 0x2000 c=0 new"
    )
    kinds = {"wbinvd": lib.GHCB_CACHE_WBINVD, "wbnoinvd": lib.GHCB_CACHE_WBNOINVD}
    every = [
        (place, Flush(f"cpu {cpu} {word}", ((kind, cpu, 0, 0, 0),)))
        for place in range(6)
        for cpu in range(2)
        for word, kind in kinds.items()
    ]
    every += [
        (
            place,
            Flush(f"any cpu clflush {spa:#x} {key}", ((lib.GHCB_CACHE_CLFLUSH, 0, line, slot, 0),)),
        )
        for place in range(6)
        for line, spa in enumerate((0x1000, 0x2000))
        for key, slot in (("c=0", 0), ("c=1", 1023))
    ]
    assert all(explore(with_flushes(program, [one])).is_corrupt for one in every)
    good = {
        frozenset((place, flush.text) for place, flush in pair)
        for pair in product(every, every)
        if not explore(with_flushes(program, pair)).is_corrupt
    }
    missing = cures(program)
    told = {
        frozenset(pair)
        for cure in missing.cures
        for pair in product(
            *(
                [
                    (place, name)
                    for option in choice.options
                    for place in option.places
                    for name in option.flushes
                ]
                for choice in cure
            )
        )
    }
    assert told == good
    assert not explore(with_flushes(program, missing.first)).is_corrupt


def test_a_load_that_can_miss_the_last_store_is_a_bad_read():
    text = "cpu 1 load 0x1000 c=0\ncpu 0 store 0x1000 c=0 a\ncpu 1 load 0x1000 c=0"
    assert not explore(parse(text)).bad_reads  # one domain: coherent
    text = (
        "cpu 1 load 0x1000 c=0\ncpu 1 store 0x1000 c=1 a\ncpu 1 clflush 0x1000 c=1\n"
        "cpu 0 load 0x1000 c=1\ncpu 1 convert 0x1000 c=0\ncpu 0 store 0x1000 c=0 b\n"
        "cpu 0 load 0x1000 c=1"
    )
    assert not explore(parse(text)).is_corrupt
    text = "cpu 0 store 0x1000 c=1 a\ncpu 1 store 0x1000 c=0 b\ncpu 1 wbinvd\ncpu 1 load 0x1000 c=0"
    found = explore(parse(text))
    assert [(one.number, one.got) for one in found.bad_reads] == [(4, "noise")]
    assert found.bad_reads[0].path[-1].detail.endswith("reads noise")


def test_a_missing_df_flush_is_found():
    text = (
        "never 0x1000 asid=5 secret\ncpu 0 store 0x1000 asid=5 secret\ncpu all wbinvd\n"
        "cpu 0 rekey asid=5\ncpu 1 load 0x1000 asid=5"
    )
    missing = cures(parse(text))
    assert [[o.flushes for o in c.options] for cure in missing.cures for c in cure] == [
        [("any cpu df_flush",)]
    ]


def test_nothing_helps_a_program_that_overwrites_its_own_data():
    text = "cpu 0 store 0x1000 c=1 a\nnever 0x1000 c=1 a"
    missing = cures(parse(text))
    assert missing.cures == () and missing.is_complete


def test_where_more_than_three_flushes_are_needed_wbinvd_everywhere_is_found():
    text = "cpu all store 0x1000+0x40*cpu c=1 old\nkexec\ncpu all store 0x1000+0x40*cpu c=0 new"
    program = parse(text, n_cpus=4)
    missing = cures(program, max_tries=50)
    assert (missing.cures, missing.everywhere) == ((), (1, 2))
    assert cures(parse(text, n_cpus=3)).everywhere == ()


def test_a_bounded_search_says_that_it_is_not_complete():
    assert not cures(parse(example_text()), max_tries=3).is_complete
    assert cures(parse(example_text()), max_flushes=1).cures == ()


def test_together_orders_each_cpu_alone():
    body = "cpu 0 store 0x1000 a\ncpu 0 store 0x2000 b\ncpu 1 store 0x1000 c\n"
    assert contents(body) == {("c=0 c", "c=0 b", "good")}
    assert contents(f"together\n{body}end") == {
        ("c=0 a", "c=0 b", "good"),
        ("c=0 c", "c=0 b", "good"),
    }


def test_all_and_others_stand_for_each_cpu_and_addresses_can_differ():
    program = parse("cpu all store 0x1000+0x40*cpu a\ncpu others wbinvd", n_cpus=3)
    assert program.spas == (0x1000, 0x1040, 0x1080)
    assert [len(one.ops) for one in program.statements] == [3, 2]
    assert parse("cpu others store 0x0 a").n_cpus == 2


def test_vm_page_flush_reaches_lines_that_are_named_only_later():
    text = (
        "cpu 0 store 0x1000 asid=5 a\ncpu 0 store 0x1fc0 asid=5 a\n"
        "cpu 0 vm_page_flush 0x1000 asid=5\n"
        "kexec\ncpu 0 store 0x1000 c=0 n\ncpu 0 store 0x1fc0 c=0 n\ncpu 0 store 0x2000 c=0 n"
    )
    assert contents(text) == {("c=0 n", "c=0 n", "c=0 n", "good")}
    assert len(parse(text).statements[2].ops) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no statement names a line"),
        ("fly", "line 1: 'fly': no such statement"),
        ("\n\ncpu 0", "line 3: `cpu N` and what it does"),
        ("cpu x wbinvd", "CPU 'x': not a number"),
        ("cpu 64 wbinvd", "must be below 0x40"),
        ("cpu 0 jump", "'jump': no such operation"),
        ("cpu 0 store", "an address is missing"),
        ("cpu 0 store 4k a", "'4k': not an address"),
        ("cpu 0 store 0x10000000000000 a", "end at 2"),
        ("cpu 0 store 0x1000", "nothing: not a name"),
        ("cpu 0 store 0x1000 c=2 a", "'c=2': not a name"),
        ("cpu 0 store 0x1000 asid=0 a", "ASID 0"),
        ("cpu 0 store 0x1000 asid=1007 a", "must be below"),
        ("cpu 0 store 0x1000 a b", "'b': more than"),
        ("cpu 0 store 0x1000 noise", "noise is what is read"),
        ("cpu 0 wbinvd 0x1000", "'0x1000': more than"),
        ("cpu 0 rekey c=1", "rekey: needs asid"),
        ("cpu 0 vm_page_flush 0x1000 c=0", "needs asid=N"),
        ("cpu 0 halt\ncpu 0 store 0x1000 a", "line 2: cpu 0 has halted in line 1"),
        ("together\ncpu 0 store 0x0 a", "without `end`"),
        ("end", "without `together`"),
        ("together\ntogether", "inside"),
        ("kexec now", "no such statement"),
        ("cpu 0 store 0x1000+0x40*cpux a", "not an address"),
        (
            "\n".join(f"cpu 0 store 0x1000 a{i}" for i in range(15)),
            "line 15: more than 15 contents",
        ),
        ("\n".join(f"cpu 0 load {64 * i:#x}" for i in range(65)), "line 65: more than 64 lines"),
        ("cpu 0 load 0x0\n" + "cpu all wbinvd\n" * 1024 + "cpu 1 load 0x0", "more than 1024"),
    ],
)
def test_a_text_that_is_no_program_is_refused_with_its_line(text, words):
    with pytest.raises(BadProgram, match="program") as error:
        parse(text)
    assert words in str(error.value)


@pytest.mark.parametrize("n_cpus", [-1, 65, 10**9])
def test_a_machine_with_too_many_cpus_is_refused(n_cpus):
    with pytest.raises(BadProgram, match="CPUs"):
        parse("cpu 0 store 0x0 a", n_cpus=n_cpus)
    with pytest.raises(BadProgram, match="the machine has 1"):
        parse("cpu 1 store 0x0 a", n_cpus=1)


WORDS = st.sampled_from(
    [
        "cpu",
        "0",
        "1",
        "all",
        "others",
        "store",
        "load",
        "wbinvd",
        "clflush",
        "kexec",
        "together",
        "end",
        "never",
        "memory",
        "coherent",
        "halt",
        "0x1000",
        "0x40+0x40*cpu",
        "c=0",
        "c=1",
        "asid=3",
        "a",
        "\n",
        "\n",
        "#",
        "'",
        "٣",
        "\x00",
    ]
)


@given(st.lists(WORDS, max_size=40).map(" ".join) | st.text(max_size=80))
def test_any_text_is_a_program_or_a_bad_program(text):
    try:
        program = parse(text)
    except BadProgram as error:
        assert str(error).startswith("program")
    else:
        assert 1 <= program.n_cpus <= 64 and program.spas
