"""CPUs that are told apart late: where no walk at random comes along."""

import pytest

from pysev.checking import check
from pysev.checking.symmetry import AsymmetryError
from pysev.flow import Flow, add, number_of, op

STEPS = 100


def late(*, alike=True):
    """After more steps than a walk at random takes, the first CPU keeps its number."""
    flow = Flow("late", alike=alike)
    flow.globals(n=0, winner=0)
    g = flow.g
    flow.agent("boot CPU").at(
        "count", op("n + 1", when=[g.n < STEPS], do=[add(g.n, 1)], to="."), ends=True
    )
    cpu = flow.agent("CPU", per_cpu=True)
    cpu.at(
        "race",
        op(
            "keeps its number",
            when=[g.n == STEPS, g.winner == 0],
            do=[number_of(g.winner, flow.cpu)],
        ),
        ends=True,
    )
    cpu.at("won", ends=True)
    flow.always("CPU 2 never wins", lambda s: s.g.winner != 2)
    return flow


@pytest.mark.parametrize("n_cpus", [3, 5])
def test_a_number_that_is_kept_late_in_a_flow_is_refused(n_cpus):
    apart = check(late(alike=False), n_cpus)
    assert (apart.verdict, apart.property) == ("violated", "CPU 2 never wins")
    with pytest.raises(AsymmetryError, match="keeps its number"):
        check(late(), n_cpus)
