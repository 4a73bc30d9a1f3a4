"""The gates themselves: what CI refuses, and files that are written by tools."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("skip", "ci", "status"),
    [
        ("@pytest.mark.skip(reason='no EPYC')\ndef test_x(): pass", "true", 1),
        ("@pytest.mark.skip(reason='no EPYC')\ndef test_x(): pass", "", 0),
        ("def test_x(): pytest.skip('no EPYC')", "true", 1),
        ("pytest.skip('no EPYC', allow_module_level=True)", "true", 1),
        ("@pytest.mark.xfail(reason='no EPYC')\ndef test_x(): assert 0", "true", 0),
        ("def test_x(): pass", "true", 0),
    ],
)
def test_a_skipped_test_fails_the_session_in_ci_and_only_there(tmp_path, skip, ci, status):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_skips.py").write_text(f"import pytest\n\n{skip}\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout
    assert ("skipped, which CI does not accept" in done.stdout) == bool(status)
    if status:
        assert re.search(r"^\S*test_skips\.py\S*: .*no EPYC", done.stdout, re.M)


def test_the_stub_of_the_numbers_is_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "stubs", "--print"],
        capture_output=True,
        text=True,
        check=True,
    )
    stub = (ROOT / "ghcbcore" / "_cffi.pyi").read_text(encoding="ascii")
    assert done.stdout == stub, "run `make stubs`"


def demo(tmp_path, statuses, trace=""):
    """Run tools/demo with a command that ends with the given statuses, one after the other."""
    fake = tmp_path / "pysev"
    fake.write_text(
        "#!/bin/sh\n"
        f"echo x >>{tmp_path}/calls\n"
        f"{trace}\n"
        f"exit $(echo {statuses} | cut -d' ' -f$(wc -l <{tmp_path}/calls))\n"
    )
    fake.chmod(0o755)
    return subprocess.run([ROOT / "tools" / "demo", fake], capture_output=True, text=True)


def test_demo_accepts_the_findings_that_must_be_found(tmp_path):
    done = demo(tmp_path, "0 1 0 1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("$ pysev ") == 4


@pytest.mark.parametrize("statuses", ["1 1 0 1", "0 0 0 1", "0 1 1 1", "0 1 0 0", "0 1 0 2"])
def test_demo_makes_all_calls_and_fails_if_one_status_is_another(tmp_path, statuses):
    done = demo(tmp_path, statuses)
    assert done.returncode == 1
    assert done.stdout.count("$ pysev ") == 4
    assert re.search(r"ended with status \d; \d was expected", done.stderr)


def test_demo_does_not_take_a_crash_for_a_finding(tmp_path):
    crash = "[ $(wc -l <calls) = 2 ] && echo 'Traceback (most recent call last):' >&2"
    done = demo(tmp_path, "0 1 0 1", crash.replace("calls", f"{tmp_path}/calls"))
    assert done.returncode == 1
