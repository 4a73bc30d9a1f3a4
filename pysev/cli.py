"""The command line: ``pysev decode | scenarios | run | check``.

Exit status: 0 good, 1 a finding (a violation, malformed input that was decoded as such), 2 usage
or bad input, said in one line. Results are built whole before the first byte is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["main"]

GOOD, FINDING, USAGE = 0, 1, 2
MAX_CHECK_CPUS = 64


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see `{self.prog} --help`)")


class _UsageError(Exception):
    pass


def _parser() -> _Parser:
    top = _Parser(prog="pysev", description="A software model of AMD SEV-ES / SEV-SNP machines.")
    commands = top.add_subparsers(dest="command", required=True, parser_class=_Parser)
    decode = commands.add_parser("decode", help="explain GHCB MSR values")
    decode.add_argument("values", nargs="+", metavar="VALUE", help="0x..., 16 hex digits, or -")
    scenarios = commands.add_parser("scenarios", help="list the scenarios there are")
    run = commands.add_parser("run", help="run a scenario once, at any scale")
    run.add_argument("scenario")
    run.add_argument("--cpus", type=_integer, default=64, metavar="N")
    where = run.add_mutually_exclusive_group()
    where.add_argument("--memory", metavar="SIZE", help="a plain guest, e.g. 256G, 4T")
    where.add_argument("--memmap", metavar="FILE", help="e820 lines of a dmesg; - for stdin")
    run.add_argument("--seed", type=_integer, default=0, metavar="N", help="chooses the order")
    check = commands.add_parser("check", help="check a scenario in every order of events")
    check.add_argument("scenario", nargs="?")
    check.add_argument("--all", action="store_true", help="every scenario; 0 if all as expected")
    check.add_argument("--cpus", type=_integer, default=4, metavar="N")
    check.add_argument("--max-memory", default="8G", metavar="SIZE", help="bound for the states")
    check.add_argument("--seconds", type=float, metavar="S", help="bound on the time")
    check.add_argument("--no-symmetry", action="store_true", help="count every CPU as different")
    check.add_argument(
        "--property",
        action="append",
        default=[],
        metavar="FILE.py:FUNCTION",
        help="one more property: a function over an array of states",
    )
    for one in (decode, scenarios, run, check):
        one.add_argument("--json", action="store_true", help="machine-readable")
    return top


def _integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number: {text[:40]!r}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    from ghcbcore.errors import SevError

    try:
        arguments = _parser().parse_args(argv)
        status = _COMMANDS[arguments.command](arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD
    except (SevError, _UsageError, OSError) as error:
        sys.stderr.write(f"pysev: {_one_line(error)}\n")
        return USAGE
    except KeyboardInterrupt:
        sys.stderr.write("pysev: interrupted\n")
        return 130
    return status


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def _decode(arguments: argparse.Namespace) -> int:
    from .decode import main_decode

    return main_decode(arguments.values, json=arguments.json, stdin=sys.stdin.buffer)


def _scenarios(arguments: argparse.Namespace) -> int:
    from .report import scenarios_text
    from .scenarios import all_scenarios

    found = all_scenarios()
    if arguments.json:
        keys = ("name", "summary", "expected", "because", "story", "source", "assumes")
        _write_json([{key: getattr(s, key) for key in keys} for s in found])
    else:
        sys.stdout.write(scenarios_text(found))
    return GOOD


def _run(arguments: argparse.Namespace) -> int:
    from .machine import Machine
    from .memmap import MemoryMap, parse_size
    from .report import run_text
    from .scenarios import find
    from .simulate import run

    scenario = find(arguments.scenario)
    memory = None
    if arguments.memory is not None:
        memory = MemoryMap.flat(parse_size(arguments.memory))
    elif arguments.memmap == "-":
        memory = MemoryMap.from_text(sys.stdin.buffer, "standard input")
    elif arguments.memmap is not None:
        memory = MemoryMap.from_file(arguments.memmap)
    machine = Machine.of(arguments.cpus, memory, jump_table=scenario.jump_table)
    result = run(scenario.build(machine), machine, arguments.seed)
    if arguments.json:
        _write_json(result.as_json())
    else:
        sys.stdout.write(run_text(scenario, machine, result))
    return GOOD if result.verdict == "holds" else FINDING


def _check(arguments: argparse.Namespace) -> int:
    from .checking import check
    from .machine import Machine
    from .memmap import parse_size
    from .report import check_row, check_table, check_text, is_expected
    from .scenarios import all_scenarios, find

    if arguments.all == (arguments.scenario is not None):
        raise _UsageError("check: give one scenario, or --all")
    if not 1 <= arguments.cpus <= MAX_CHECK_CPUS:
        raise _UsageError(f"--cpus {arguments.cpus}: check takes 1 to {MAX_CHECK_CPUS}")
    if arguments.seconds is not None and not arguments.seconds > 0:
        raise _UsageError(f"--seconds {arguments.seconds}: must be above 0")
    properties = [_property(text) for text in arguments.property]
    max_bytes = parse_size(arguments.max_memory)
    rows, texts, results, expected = [], [], [], []
    for scenario in all_scenarios() if arguments.all else [find(arguments.scenario)]:
        machine = Machine.of(arguments.cpus, jump_table=scenario.jump_table)
        flow = scenario.build(machine)
        result = check(
            flow,
            arguments.cpus,
            properties=properties,
            symmetric=not arguments.no_symmetry,
            max_bytes=max_bytes,
            seconds=arguments.seconds,
        )
        expected.append(is_expected(scenario, result))
        results.append(
            result.as_json() | {"expected": scenario.expected, "as_expected": expected[-1]}
        )
        if arguments.all:
            rows.append(check_row(scenario, result))
        else:
            texts.append(check_text(scenario, flow, result))
    if arguments.json:
        _write_json(results if arguments.all else results[0])
    else:
        sys.stdout.write(check_table(rows) if arguments.all else texts[0])
    if arguments.all:
        return GOOD if all(expected) else FINDING
    return GOOD if results[0]["verdict"] == "holds" else FINDING


def _property(text: str) -> Any:
    """Load ``FILE.py:FUNCTION`` as an ``always`` property; its docstring says what it means."""
    import runpy

    from .flow import Property

    path, colon, name = text.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise _UsageError(f"--property {text!r}: must be FILE.py:FUNCTION")
    try:
        found = runpy.run_path(path)
    except OSError:
        raise
    except Exception as error:
        raise _UsageError(f"--property {path}: {type(error).__name__}: {error}") from error
    if not callable(found.get(name)):
        raise _UsageError(f"--property {path}: no function {name!r}")
    return Property(name, "always", found[name], (found[name].__doc__ or "").strip())


def _write_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


_COMMANDS = {"decode": _decode, "scenarios": _scenarios, "run": _run, "check": _check}
