"""What all tests share: where oracles and helpers are, how hard Hypothesis tries, what CI refuses.

``HYPOTHESIS_PROFILE`` is ``dev`` (default), ``ci`` or ``nightly``. With ``CI=true`` every profile
but the nightly one is derandomised, so that a run says something about the commit alone, and a
test that is skipped is a failure.
"""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path[:0] = [str(Path(__file__).parent / name) for name in ("oracle", "model")]

_on_ci = os.environ.get("CI", "").lower() == "true"
settings.register_profile("dev", max_examples=100, deadline=None, derandomize=_on_ci)
settings.register_profile(
    "ci", max_examples=500, deadline=None, derandomize=_on_ci, print_blob=True
)
settings.register_profile("nightly", max_examples=20_000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

_skipped = []


def _note(report):
    if _on_ci and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        _skipped.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report):
    _note(report)


def pytest_collectreport(report):
    _note(report)


def pytest_sessionfinish(session):
    if _skipped and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if _skipped:
        terminalreporter.section("skipped, which CI does not accept", red=True)
        for line in _skipped:
            terminalreporter.line(line)
