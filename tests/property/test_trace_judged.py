"""Whatever a trace says, it is judged, summed up and exported, and the sums agree."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_trace_scanner import traces

from ghcbcore import msr
from ghcbcore._cffi import lib
from ghcbcore.trace import LINE_DTYPE, format_lines
from pysev.tables.lint import RULES
from pysev.tables.nae import EVENTS
from pysev.trace import Summary, TraceReader
from pysev.trace.export import COLUMNS, columns

CODES = [row.code for row in msr.rows()]
word = st.one_of(st.integers(0, 16), st.integers(0, 2**64 - 1))

line = st.tuples(
    st.integers(lib.GHCB_TRACE_NAE_ENTER, lib.GHCB_TRACE_MSR_EXIT),
    st.integers(0, 2),
    st.one_of(st.sampled_from([event.code for event in EVENTS]), word),
    st.builds(lambda code, data: code | data << 12, st.sampled_from(CODES), st.integers(0, 2**52)),
    word,
    word,
    st.integers(-1, 2),
    st.integers(0, 2**62),
)


def judged(text):
    reader = TraceReader()
    summary, rows = Summary(reader), []
    for batch in reader.batches([text]):
        summary.look(batch)
        found = columns(batch.exchanges, reader)
        assert tuple(found) == COLUMNS
        rows += zip(*found.values(), strict=True)
    summary.finish()
    return summary, rows


def consistent(summary, rows):
    found = json.loads(json.dumps(summary.as_json()))
    counts = found["findings"]["counts"]
    assert set(counts) <= {rule.name for rule in RULES}
    assert all(n > 0 for n in counts.values())
    assert {f["rule"] for f in found["findings"]["first"]} == set(counts)
    assert all(f["words"] for f in found["findings"]["first"])
    assert bool(summary.lint.findings) == bool(counts)
    assert found["exchanges"] == len(rows) == summary.n_exchanges
    assert sum(row["n"] for row in found["kinds"]) + found["unasked"] == len(rows)
    for row in found["kinds"]:
        times = row.get("latency_ns")
        if times:
            assert times["min"] <= times["median"] <= times["p99"] <= times["max"]
    text = summary.as_text("name", "text")
    assert text.endswith("\n") and all(line.isprintable() for line in text.splitlines())


@given(traces())
def test_any_text_is_judged_and_exported(text):
    consistent(*judged(text))


@given(st.lists(line, max_size=30))
def test_any_request_and_answer_is_judged_and_exported(rows):
    lines = np.zeros(len(rows), LINE_DTYPE)
    for one, (kind, vcpu, code, value, info1, info2, result, time_ns) in zip(
        lines, rows, strict=True
    ):
        one["kind"], one["vcpu"], one["result"], one["time_ns"] = kind, vcpu, result, time_ns
        one["a"] = value % 2**64 if kind >= lib.GHCB_TRACE_MSR_ENTER else code
        one["b"], one["c"] = info1, info2
    consistent(*judged(format_lines(lines).tobytes()))
