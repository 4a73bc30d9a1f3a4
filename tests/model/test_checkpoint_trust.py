"""A search on disk is taken up only by the one that it is, whatever went wrong on the way."""

import errno
import functools
import os

import numpy as np
import pytest

from pysev.checking import check
from pysev.checking.checkpoint import BadCheckpoint
from pysev.checking.meaning import meaning
from pysev.flow import Flow, add, op


def grid(n=20, *, rests=True, always=None):
    flow = Flow("grid")
    flow.globals(a=0, b=0)
    for name in ("a", "b"):
        word = getattr(flow.g, name)
        flow.agent(name).at(
            "count", op(f"{name} + 1", when=[word < n], do=[add(word, 1)], to="."), ends=rests
        )
    if always is not None:
        flow.always("small", always)
    return flow


@pytest.mark.parametrize("which", range(8))
def test_a_write_that_failed_once_costs_nothing_but_that_write(tmp_path, monkeypatch, which):
    known = check(grid(), 1)
    real, calls = os.fsync, []

    def fsync(number):
        calls.append(number)
        if len(calls) == 3 * 8 + which:  # of the seven files and the header, in the third write
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = str(tmp_path)
    cut = check(grid(), 1, checkpoint=folder, checkpoint_seconds=0.0, depth=10)
    assert len(cut.warnings) == 1 and cut.stopped == "depth"
    result = check(grid(), 1, checkpoint=folder)
    assert (result.verdict, result.states, result.transitions, result.depth) == (
        known.verdict,
        known.states,
        known.transitions,
        known.depth,
    )


def test_a_search_that_is_deeper_than_is_asked_goes_no_further(tmp_path):
    cut = check(grid(), 1, checkpoint=str(tmp_path), depth=12)
    again = check(grid(), 1, checkpoint=str(tmp_path), depth=6)
    assert (again.stopped, again.states) == ("depth", cut.states)


def below(limit):
    return lambda s: s.g.a < limit


@pytest.mark.parametrize(
    "other",
    [
        lambda: grid(always=below(5)),
        lambda: grid(always=lambda s: s.g.a <= 100),
        lambda: grid(always=lambda s: s.g.b < 100),
        lambda: grid(always=below(100), rests=False),
    ],
    ids=["a number it holds", "its test", "its word", "where agents may rest"],
)
def test_a_search_with_another_question_is_another_search(tmp_path, other):
    assert check(grid(always=below(100)), 1, checkpoint=str(tmp_path)).verdict == "holds"
    assert check(grid(always=below(100)), 1, checkpoint=str(tmp_path)).verdict == "holds"
    with pytest.raises(BadCheckpoint, match="another search"):
        check(other(), 1, checkpoint=str(tmp_path))


LIMIT = 3


def helped(x):
    return x < LIMIT


def asks_helper(s):
    return helped(s.g.a)


def test_the_meaning_of_a_function_follows_what_it_names(monkeypatch):
    before = meaning(asks_helper)
    assert meaning(asks_helper) == before
    monkeypatch.setitem(globals(), "LIMIT", 4)
    changed = meaning(asks_helper)
    assert changed != before
    monkeypatch.setitem(globals(), "helped", lambda x: x > LIMIT)
    assert meaning(asks_helper) not in (before, changed)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (functools.partial(helped, 1), functools.partial(helped, 2)),
        (np.arange(3), np.arange(4)),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        ((1, [2]), (1, [3])),
        (np.minimum, np.maximum),
        (1, "1"),
    ],
)
def test_different_values_have_different_meanings(one, other):
    assert meaning(one) == meaning(one)
    assert meaning(one) != meaning(other)


def test_what_names_itself_ends():
    rows: list[object] = []
    rows.append(rows)
    assert "again" in meaning(rows)
