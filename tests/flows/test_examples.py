"""Each example runs as it stands, from any folder, against the installed package."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def run(tmp_path: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )


def lines_of_code(text: str) -> int:
    """Count lines with code on them: no comments, no blank lines, no docstring of the module."""
    tree = ast.parse(text)
    first = tree.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = set(range(first.lineno, first.end_lineno + 1)) if is_docstring else set()
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring)


def test_there_are_examples():
    assert {"own_flow.py", "own_property.py"} <= {p.name for p in PROGRAMS}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
def test_an_example_runs_from_another_folder_and_prints_something(tmp_path, program):
    done = run(tmp_path, program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert list(tmp_path.iterdir()) == []


def test_a_flow_of_ones_own_takes_fewer_than_forty_lines():
    assert 10 < lines_of_code((EXAMPLES / "own_flow.py").read_text()) < 40


def test_lines_of_code_leaves_out_what_is_none():
    text = '"""A docstring.\n\nof three lines"""\n\n# a comment\nx = (\n    1,\n)  # code\n\n'
    assert lines_of_code(text) == 3


def test_a_flow_of_ones_own_finds_the_lost_wake_up_and_the_cure(tmp_path):
    lines = run(tmp_path, EXAMPLES / "own_flow.py").stdout.splitlines()
    verdicts = [line for line in lines if line.startswith("handler")]
    assert len(verdicts) == 2
    assert "deadlock" in verdicts[0] and "holds" in verdicts[1]
    assert lines[-1] == verdicts[1]  # nothing to show where it holds
    assert any("HLT" in line for line in lines[1:-1])


@pytest.mark.parametrize(("function", "status"), [("one_at_a_time", 0), ("never_all_held", 1)])
def test_a_property_of_ones_own_is_taken_by_the_command(tmp_path, function, status):
    path = EXAMPLES / "own_property.py"
    args = ("-m", "pysev", "check", "sev-es-kexec/jump-table", "--cpus", "3")
    done = run(tmp_path, *args, "--property", f"{path}:{function}")
    assert (done.returncode, done.stderr) == (status, "")
    assert ("violated" if status else "holds in every order") in done.stdout.splitlines()[-2]
