"""The core comes to what the vectors of page ownership say: the same histories as the oracle's."""

import pytest
from memory_core import CoreMemory
from memory_vectors import ROWS, call, machine_for, same, text_of


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['section']}: {row['rule']}")
def test_history_comes_to_what_the_sheet_says(row):
    steps = [step.strip() for step in row["history"].split(";")]
    machine = machine_for(steps, CoreMemory)
    for step in steps[:-1]:
        _, result = call(machine, step)
        assert result.code == 0, (step, result)
    assert same(text_of(*call(machine, steps[-1]))) == same(row["outcome"])
