"""Sweeps: grids, plans, rows, the journal that outlives a kill, the table, the plot."""

import csv
import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghcbcore._cffi import lib
from ghcbcore.errors import SevError
from pysev import Machine, MemoryMap, find, run
from pysev.scaling import grow
from pysev.sweep import Plan, SweepError, parse_counts, parse_sizes, sweep, table
from pysev.sweep import work as work_module
from pysev.sweep.command import main_sweep
from pysev.sweep.grid import MAX_VALUES
from pysev.sweep.journal import Journal
from pysev.sweep.plan import MAX_POINTS
from pysev.sweep.point import Runner
from pysev.sweep.summary import Summary

DATA = Path(__file__).parent.parent / "data"
HOLDS, FAILS = "sev-es-kexec/jump-table", "sev-es-kexec/legacy-sev-es"
GIB, TIB = 1 << 30, 1 << 40


def plan_of(scenario=HOLDS, cpus=(2, 4), memory=(GIB, 4 * GIB), **more):
    return Plan(scenario, cpus, memory, **more)


def rows_of(plan, path=None, n_workers=1):
    journal = Journal(plan, None if path is None else str(path))
    sweep(plan, journal, n_workers=n_workers)
    rows = list(journal.rows())
    journal.close()
    return rows


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "wall_seconds"} for row in rows]


# -- grids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("2", [2]),
        ("2,8,64", [2, 8, 64]),
        ("2..4096", [1 << i for i in range(1, 13)]),
        ("3..100", [3, 6, 12, 24, 48, 96]),
        ("2..4096*4", [2, 8, 32, 128, 512, 2048]),
        ("2..10+4", [2, 6, 10]),
        ("2..11+4", [2, 6, 10]),
        ("1,2..4,4,3", [1, 2, 4, 3]),
        (" 2 .. 8 , 5 ", [2, 4, 8, 5]),
        ("7..7", [7]),
    ],
)
def test_numbers_of_cpus_are_what_the_grid_says(text, values):
    assert list(parse_counts(text)) == values


def test_sizes_of_memory_are_what_the_grid_says():
    assert parse_sizes("1G..16T*4") == tuple(GIB * 4**i for i in range(8))
    assert parse_sizes("1G..2G+512M,16M") == (GIB, GIB * 3 // 2, 2 * GIB, 16 << 20)
    assert parse_sizes("1.5G") == (GIB * 3 // 2,)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no number"),
        (",", "no number"),
        ("0", "0 CPUs; 1 to"),
        ("0..8+4", "0 CPUs; 1 to"),
        ("0..8", "leads nowhere"),
        ("-1", "no number"),
        ("1e3", "no number"),
        ("8..2", "goes backwards"),
        ("2..", "no number"),
        ("..2", "no number"),
        ("2..8*1", "a factor"),
        ("2..8*0", "a factor"),
        ("2..8*-2", "a factor"),
        ("2..8*1.5", "a factor"),
        ("2..8+0", "leads nowhere"),
        ("2..8+", "no number"),
        ("2..8*2*2", "a factor"),
        ("1..1000000000+1", f"more than {MAX_VALUES}"),
        ("1..999999999999999999", "CPUs; 1 to"),
        ("9" * 5000, "characters"),
        ("\N{ARABIC-INDIC DIGIT TWO}", "no number"),
    ],
)
def test_a_bad_grid_is_refused_in_a_short_line(text, why):
    with pytest.raises(SweepError) as caught:
        parse_counts(text)
    message = str(caught.value)
    assert why in message and message.startswith("--cpus") and len(message) < 200


@pytest.mark.parametrize("text", ["4096..1K", "1G..1P+4K", "x", "1G..2G*1G", "1G..2G+1", "0"])
def test_a_bad_grid_of_sizes_is_refused(text):
    with pytest.raises(SevError):
        parse_sizes(text)


@given(st.integers(1, lib.GHCB_MAX_CPUS), st.integers(1, lib.GHCB_MAX_CPUS), st.integers(2, 9))
def test_a_geometric_range_stays_within_its_ends(low, high, factor):
    if low > high:
        low, high = high, low
    found = parse_counts(f"{low}..{high}*{factor}")
    assert found[0] == low and found[-1] <= high < found[-1] * factor
    assert all(b == a * factor for a, b in pairwise(found))


@given(st.text(alphabet="0123456789.,*+ GTx-", max_size=20))
@settings(max_examples=300)
def test_any_text_is_a_grid_or_refused(text):
    for parse in (parse_counts, parse_sizes):
        try:
            assert 1 <= len(parse(text)) <= MAX_VALUES
        except SevError as error:
            assert len(str(error).splitlines()) == 1


# -- plans ---------------------------------------------------------------------------------------


def test_points_are_all_machines_with_all_seeds_the_seed_changing_fastest():
    plan = plan_of(n_seeds=2, first_seed=7)
    points = [plan.point(i) for i in range(plan.n_points)]
    assert points == [
        (n, memory, seed) for memory in (GIB, 4 * GIB) for n in (2, 4) for seed in (7, 8)
    ]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"n_seeds": 0}, "must be at least 1"),
        ({"n_seeds": 10**9}, f"4000000000 points; 1 to {MAX_POINTS}"),
        ({"n_seeds": 10**40}, "64 bits"),
        ({"first_seed": -1}, "64 bits"),
        ({"first_seed": 1 << 64}, "64 bits"),
        ({"first_seed": (1 << 64) - 1, "n_seeds": 2}, "64 bits"),
        ({"cpus": ()}, "0 points"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(more, why):
    with pytest.raises(SweepError, match=why):
        plan_of(**more)


def test_a_sweep_is_known_by_all_that_its_rows_depend_on():
    plans = [
        plan_of(),
        plan_of(scenario=FAILS),
        plan_of(cpus=(2, 8)),
        plan_of(memory=(GIB,)),
        plan_of(first_seed=1),
        plan_of(n_seeds=2),
        plan_of(memmap=MemoryMap.flat(GIB)),
        plan_of(costs={"vmgexit": 1}),
    ]
    assert len({plan.id for plan in plans}) == len(plans)
    assert plan_of().id == plan_of().id


def test_columns_have_a_phase_each_and_say_of_what_kind_they_are():
    names = [column.name for column in plan_of().columns]
    assert len(set(names)) == len(names)
    assert {"phase_stop_other_CPUs", "phase_bring_up_other_CPUs", "phase_other"} <= set(names)
    assert names[-1] == "wall_seconds"


# -- rows ----------------------------------------------------------------------------------------


def test_a_row_is_what_run_gives():
    plan = plan_of(cpus=(16,), memory=(8 * GIB,), first_seed=3, costs={"init_to_sipi": 10**6})
    (row,) = rows_of(plan)
    machine = Machine.of(16, MemoryMap.flat(8 * GIB))
    result = run(plan.flow(machine), machine, 3)
    assert row["verdict"] == result.verdict == "holds"
    assert row["modelled_seconds"] == result.modelled_seconds
    assert row["boot_seconds"] == result.analysis.path_ns / 1e9
    assert row["vmgexits"] == sum(result.vmgexits.values())
    assert (row["online"], row["lost"], row["steps"]) == (16, 0, result.steps)
    phases = sum(v for k, v in row.items() if k.startswith("phase_"))
    assert phases == pytest.approx(row["boot_seconds"])
    assert row["phase_other"] == pytest.approx(0, abs=1e-9)
    usual = run(find(HOLDS).build(machine), machine, 3)
    assert row["phase_bring_up_other_CPUs"] < usual.analysis.path_ns / 1e9


def test_a_map_is_grown_to_each_size():
    memmap = MemoryMap.from_file(DATA / "e820_epyc_volcano_769g.txt")
    plan = plan_of(memory=(TIB, 16 * TIB), memmap=memmap)
    assert [row["verdict"] for row in rows_of(plan)] == ["holds"] * 4
    assert plan.machine(2, TIB).layout.memmap == grow(memmap, TIB)


def test_an_error_is_in_its_row_and_the_others_are_run():
    rows = rows_of(plan_of(memory=(16 << 20, GIB)))
    assert [row["verdict"] for row in rows] == ["error", "error", "holds", "holds"]
    assert rows[0]["error"].startswith("NoRoom: no room for")
    assert rows[0]["boot_seconds"] is None and rows[0]["phase_other"] is None
    assert (rows[0]["cpus"], rows[0]["memory_bytes"]) == (2, 16 << 20)
    assert not rows[2]["error"]


def test_an_error_of_any_kind_is_one_line_in_its_row(monkeypatch):
    def broken(*_):
        raise MemoryError("a\nb" + "\x00" * 1000)

    monkeypatch.setattr("pysev.sweep.point.run", broken)
    row = Runner(plan_of()).row(0)
    assert row["verdict"] == "error" and row["error"].startswith("MemoryError: a b")
    assert row["error"].isprintable() and len(row["error"]) <= 500


def test_a_scenario_of_a_fixed_number_of_cpus_has_only_that(monkeypatch):
    import dataclasses

    fixed = dataclasses.replace(find(HOLDS), fixed_cpus=3)
    monkeypatch.setattr("pysev.sweep.plan.find", lambda _: fixed)
    assert plan_of(cpus=(2, 4, 8)).cpus == (3,)


# -- any number of workers -----------------------------------------------------------------------


def test_workers_give_the_same_rows_however_many_they_are(tmp_path):
    plan = plan_of(cpus=(2, 3, 16), memory=(16 << 20, GIB), n_seeds=3)
    files = []
    for n_workers in (1, 2, 3):
        path = tmp_path / f"{n_workers}.csv"
        assert main_sweep(plan, n_workers=n_workers, out=str(path)) == 2
        with path.open(newline="") as stream:
            files.append([row[:-1] for row in csv.reader(stream)])
    assert files[0] == files[1] == files[2]
    assert len(files[0]) == 1 + plan.n_points
    assert [row[0] for row in files[0][1:]] == [str(i) for i in range(plan.n_points)]


@pytest.mark.parametrize("n", [0, -1, 1025, 10**9])
def test_a_number_of_workers_that_cannot_be_is_refused(n):
    plan = plan_of()
    journal = Journal(plan, None)
    with pytest.raises(SweepError, match=f"--workers {n}"):
        sweep(plan, journal, n_workers=n)
    journal.close()


def test_a_worker_that_dies_ends_the_sweep_with_what_is_done(tmp_path, monkeypatch):
    plan = plan_of(n_seeds=40)
    journal = Journal(plan, str(tmp_path / "x.csv.part"))
    victims = []

    def shoot(row):
        import multiprocessing

        if not victims:
            victims.extend(multiprocessing.active_children())
            for process in victims:
                os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(SweepError, match=r"a worker died.*the same command goes on"):
        sweep(plan, journal, n_workers=2, told=shoot)
    assert victims and 0 < journal.n_done < plan.n_points
    journal.close()
    assert timeless(rows_of(plan, tmp_path / "x.csv.part")) == timeless(rows_of(plan))


def test_default_workers_are_the_cpus_that_this_process_may_use():
    assert work_module.default_workers() == len(os.sched_getaffinity(0))


# -- the journal ---------------------------------------------------------------------------------


def test_a_sweep_goes_on_where_it_was_cut_off_at_any_byte(tmp_path):
    plan = plan_of()
    path = tmp_path / "x.part"
    whole = timeless(rows_of(plan, path))
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    assert len(lines) == 1 + plan.n_points
    for cut in {0, 1, 10, len(lines[0]) - 1, len(lines[0]), len(lines[0]) + 5, len(data) - 1}:
        path.write_bytes(data[:cut])
        journal = Journal(plan, str(path))
        assert journal.n_done == max(0, data[:cut].count(b"\n") - 1)
        assert list(journal.todo()) == list(range(journal.n_done, plan.n_points))
        sweep(plan, journal)
        assert timeless(journal.rows()) == whole
        journal.close()


def test_only_what_is_missing_is_run(tmp_path):
    plan = plan_of()
    path = tmp_path / "x.part"
    rows_of(plan, path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[3] + lines[1])
    told = []
    journal = Journal(plan, str(path))
    sweep(plan, journal, told=lambda row: told.append(row["point"]))
    assert told == [1, 3]
    assert [row["point"] for row in journal.rows()] == [0, 1, 2, 3]
    journal.close()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"point,scenario\n", "is no sweep's"),
        (b"no newline", "is no sweep's"),
        (b"\x00" * 100_000, "is no sweep's"),
        (b"{}\n", "is no sweep's"),
        (b"[" * 1000 + b"\n", "is no sweep's"),
        (b'{"pysev":"sweep"}\n', "another sweep's"),
        (b'{"pysev":"sweep","scenario":"a/b"}\n', r"another sweep's \(a/b\)"),
    ],
)
def test_a_file_that_is_not_this_sweeps_is_refused_and_left_alone(tmp_path, data, why):
    path = tmp_path / "x.part"
    path.write_bytes(data)
    with pytest.raises(SweepError, match=why):
        Journal(plan_of(), str(path))
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"[]\n",
        b'{"point":0}\n',
        b'{"point":true}\n',
        b"[" * 60_000 + b"\n",
        b"x" * (1 << 20) + b"\n",
    ],
)
def test_a_damaged_journal_is_refused(tmp_path, line):
    plan, path = plan_of(), tmp_path / "x.part"
    rows_of(plan, path)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(SweepError, match="damaged after 4 points"):
        Journal(plan, str(path))


def test_a_point_that_the_plan_has_not_is_damage(tmp_path):
    plan, path = plan_of(), tmp_path / "x.part"
    row = rows_of(plan, path)[0] | {"point": 4}
    path.write_bytes(path.read_bytes() + json.dumps(row).encode() + b"\n")
    with pytest.raises(SweepError, match="damaged"):
        Journal(plan, str(path))


def test_two_sweeps_do_not_write_one_journal(tmp_path):
    plan, path = plan_of(), str(tmp_path / "x.part")
    journal = Journal(plan, path)
    with pytest.raises(SweepError, match="another sweep is writing"):
        Journal(plan, path)
    journal.close()
    Journal(plan, path).close()


def test_a_journal_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.part")
    with pytest.raises(SweepError, match="no file"):
        Journal(plan_of(), str(tmp_path / "x.part"))


# -- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_table_is_read_back_as_it_was_written(tmp_path, kind):
    if kind == ".parquet":
        pytest.importorskip("pyarrow")
    plan = plan_of(scenario=FAILS, memory=(16 << 20, GIB))
    path = str(tmp_path / f"x{kind}")
    assert main_sweep(plan, n_workers=1, out=path) == 2
    assert not Path(f"{path}.part").exists()
    found = list(table.read(plan, path))
    rows = rows_of(plan)
    for row in rows:  # CSV has no difference between nothing and an empty text
        row |= {"error": row["error"] or None, "violations": row["violations"] or None}
    for row in found:
        row |= {"error": row["error"] or None, "violations": row["violations"] or None}
    assert timeless(found) == timeless(rows)
    assert [list(row) for row in found] == [[c.name for c in plan.columns]] * plan.n_points


def test_a_finished_sweep_is_not_run_again(tmp_path, monkeypatch, capsys):
    path = str(tmp_path / "x.csv")
    plan = plan_of()
    assert main_sweep(plan, n_workers=1, out=path) == 0
    before, said = Path(path).read_bytes(), capsys.readouterr().out
    monkeypatch.setattr("pysev.sweep.point.run", None)
    assert main_sweep(plan, n_workers=1, out=path) == 0
    assert Path(path).read_bytes() == before
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    "data", [b"", b"a,b\n1,2\n", b"\xff" * 100, b"PAR1" * 10, b'"' * 100_000, b"\n"]
)
@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_file_that_is_something_else_is_refused_and_left_alone(tmp_path, data, kind):
    if kind == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"x{kind}"
    path.write_bytes(data)
    with pytest.raises((SevError, OSError)):
        main_sweep(plan_of(), n_workers=1, out=str(path))
    assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_another_sweeps_table_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "x.csv"
    main_sweep(plan_of(), n_workers=1, out=str(path))
    before = path.read_bytes()
    with pytest.raises(SweepError, match="another sweep's"):
        main_sweep(plan_of(first_seed=1), n_workers=1, out=str(path))
    assert path.read_bytes() == before


def test_a_table_with_rows_missing_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    main_sweep(plan_of(), n_workers=1, out=str(path))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(SweepError, match="3 rows for 4 points"):
        main_sweep(plan_of(), n_workers=1, out=str(path))


@pytest.mark.parametrize("name", ["x", "x.txt", ".csv", "x.csv.gz", ""])
def test_a_table_needs_a_name_that_says_its_form(name):
    with pytest.raises(SweepError, match=r"\.csv or \.parquet"):
        table.check_target(name)


def test_a_table_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    plan, path = plan_of(), tmp_path / "x.csv"

    def rows():
        yield from rows_of(plan)[:2]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        table.write(plan, str(path), rows())
    assert list(tmp_path.iterdir()) == []


# -- what is printed and drawn -------------------------------------------------------------------


def test_seeds_of_a_machine_are_put_together():
    plan = plan_of(scenario=FAILS, memory=(16 << 20, GIB), n_seeds=5)
    summary = Summary(plan, rows_of(plan))
    assert [(c.memory_bytes, c.cpus) for c in summary.cells] == [
        (16 << 20, 2),
        (16 << 20, 4),
        (GIB, 2),
        (GIB, 4),
    ]
    assert summary.n_errors == 10 and sum(summary.verdicts.values()) == 20
    text = summary.as_text()
    assert "error 5: NoRoom" in text
    assert text.splitlines()[-1] == summary.sentence()


@pytest.mark.parametrize(
    ("scenario", "memory", "status"), [(HOLDS, GIB, 0), (FAILS, GIB, 1), (HOLDS, 16 << 20, 2)]
)
def test_the_exit_status_says_the_worst(scenario, memory, status, capsys):
    plan = plan_of(scenario=scenario, cpus=(8,), memory=(memory,))
    assert main_sweep(plan, n_workers=1) == status
    capsys.readouterr()
    assert main_sweep(plan, n_workers=1, json=True) == status
    found = json.loads(capsys.readouterr().out)
    assert found["points"] == 1 and len(found["rows"]) == 1
    assert found["errors"] == (status == 2)


@pytest.mark.parametrize("kind", [".svg", ".png"])
def test_the_same_sweep_is_drawn_alike(tmp_path, kind):
    pytest.importorskip("matplotlib")
    plan = plan_of(scenario=FAILS, cpus=(1, 2, 64), n_seeds=2)
    paths = [str(tmp_path / f"{i}{kind}") for i in range(2)]
    for path in paths:
        main_sweep(plan, n_workers=1, plot=path)
    one, other = (Path(path).read_bytes() for path in paths)
    assert one == other and len(one) > 5000


def test_a_sweep_of_errors_alone_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    plan = plan_of(memory=(16 << 20,))
    assert main_sweep(plan, n_workers=1, plot=str(tmp_path / "x.png")) == 2
    assert (tmp_path / "x.png").stat().st_size > 1000
