"""What stands in docstrings and in the README is true of the installed package."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import ghcbcore
import pysev

README = Path(__file__).parent.parent.parent / "README.md"
MODULES = sorted(
    info.name
    for package in (pysev, ghcbcore)
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not info.name.endswith("__main__")  # importing it runs the command
)
WITH_EXAMPLES = {
    *("ghcbcore.ghcb", "ghcbcore.jumptable", "ghcbcore.layouts", "ghcbcore.msr", "ghcbcore.psc"),
    *("ghcbcore.rmp", "pysev.decode.cpuid", "pysev.decode.fault", "pysev.decode.firmware"),
    *("pysev.decode.ghcb", "pysev.decode.msr", "pysev.decode.psc", "pysev.decode.reading"),
    *("pysev.decode.rmp", "pysev.decode.sev", "pysev.decode.vendors", "pysev.decode.word"),
    *("pysev.flow", "pysev.host", "pysev.memmap"),
    *("ghcbcore.rmpgeometry", "pysev.rmpplace"),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name):
    module = importlib.import_module(name)
    failed, attempted = doctest.testmod(module)
    assert failed == 0
    assert attempted or name not in WITH_EXAMPLES


def test_the_examples_are_those_of_the_installed_package():
    source = README.parent
    for package in (pysev, ghcbcore):
        assert source / package.__name__ not in Path(package.__file__).parents
    assert set(MODULES) >= WITH_EXAMPLES


def test_the_examples_of_the_readme_are_true():
    assert doctest.testfile(str(README), module_relative=False).failed == 0
