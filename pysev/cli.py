"""The command line: ``pysev decode | trace | doctor | cache | scenarios | run | check | graph |
pages | firmware | costs | sweep | vmcore``.

Exit status: 0 good, 1 a finding (a violation, malformed input that was decoded as such), 2 usage,
bad input or output that cannot be written, 130 interrupted; what is wrong is said in one line on
standard error. Results are built whole before the first byte is written. Of a replay whose
`# expect` is not met the report is printed, too; its status is 2.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import IO, Any, NoReturn, TextIO

from .usage import UsageError, load_property

__all__ = ["main"]

GOOD, FINDING, USAGE, INTERRUPTED = 0, 1, 2, 130
DEFAULT_RUN_CPUS = 64
MAX_DIGITS = 40
"""No option takes a number that is nearly as long; ``int`` need not be asked about longer ones."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own hides a full disk

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _Done


class _Done(Exception):
    """``--help`` or ``--version`` has said all there is to say."""


def _parser() -> _Parser:
    from . import __version__
    from .checking.command import add_arguments as add_check_arguments

    top = _Parser(prog="pysev", description="A software model of AMD SEV-ES / SEV-SNP machines.")
    top.add_argument("--version", action="version", version=f"pysev {__version__}")
    commands = top.add_subparsers(dest="command", required=True, parser_class=_Parser)
    decode = commands.add_parser("decode", help="explain values, pages and buffers of the protocol")
    decode.add_argument(
        "values", nargs="*", metavar="VALUE", help="0x..., 16 hex digits, hex bytes, FILE, or -"
    )
    decode.add_argument(
        "--as", dest="kind", default="msr", metavar="KIND", help="what it is (`--kinds` lists them)"
    )
    decode.add_argument(
        "--vendor", action="append", default=[], metavar="FILE.toml", help="codes of a vendor"
    )
    decode.add_argument("--kinds", action="store_true", help="list what can be decoded")
    trace = commands.add_parser("trace", help="sum up and judge a trace of KVM's events")
    trace.add_argument(
        "file", metavar="FILE", help="text of ftrace, trace-cmd or perf; - for stdin"
    )
    for how in ("jsonl", "csv", "parquet", "perfetto"):
        trace.add_argument(f"--{how}", metavar="OUT", help=f"write each exchange as {how}")
    doctor = commands.add_parser("doctor", help="say what a kernel log tells about SEV")
    doctor.add_argument("log", metavar="DMESG", help="any form, gz or xz too; - for stdin")
    cache = commands.add_parser("cache", help="what caches can leave in memory; missing flushes")
    cache.add_argument(
        "file", nargs="?", metavar="FILE", help="a program; - for stdin, none for the example"
    )
    cache.add_argument("--coherent", action="store_true", help="the part has SME_COHERENT")
    cache.add_argument("--cpus", type=_integer, metavar="N", help="CPUs of the machine")
    cache.add_argument("--plot", metavar="OUT", help="lines by attribute, as .png or .svg")
    cache.add_argument(
        "--scale", metavar="PRESET", help="millions of lines in the caches of a part, e.g. genoa"
    )
    cache.add_argument("--seed", type=_integer, default=0, metavar="N", help="order of evictions")
    commands.add_parser("scenarios", help="list the scenarios there are")
    run = commands.add_parser("run", help="run a scenario once, at any scale")
    run.add_argument("scenario", nargs="?", help="its name, or FILE.py:FLOW")
    run.add_argument("--cpus", type=_integer, metavar="N", help="default: 64, or the script's")
    run.add_argument("--replay", metavar="FILE", help="play a script of `check --save`; - is stdin")
    _add_machine(run)
    _add_costs(run)
    run.add_argument("--seed", type=_integer, default=0, metavar="N", help="chooses the order")
    run.add_argument(
        "--repeat",
        type=_integer,
        default=1,
        metavar="N",
        help="N runs, with this seed and the next",
    )
    run.add_argument("--trace", metavar="OUT", help="write what KVM would have traced, as text")
    run.add_argument("--perfetto", metavar="OUT", help="write it as a track for each vCPU")
    check = commands.add_parser("check", help="check a scenario in every order of events")
    check.add_argument("scenario", nargs="?", help="its name, or FILE.py:FLOW")
    check.add_argument("--save", metavar="FILE", help="the counterexample as a script")
    for one in (run, check):
        one.add_argument("--mermaid", metavar="OUT", help="a sequence diagram, as Mermaid text")
        one.add_argument("--svg", metavar="OUT", help="the same as a picture")
        one.add_argument(
            "--property",
            action="append",
            default=[],
            metavar="FILE.py:FUNCTION",
            help="one more property: a function over an array of states",
        )
    add_check_arguments(check, _integer)
    graph = commands.add_parser("graph", help="the flow of a scenario, as pseudocode or a picture")
    graph.add_argument("scenario", help="its name, or FILE.py:FLOW")
    graph.add_argument("--cpus", type=_integer, default=4, metavar="N")
    graph.add_argument("--mermaid", metavar="OUT", help="as a Mermaid flowchart; - for stdout")
    graph.add_argument("--svg", metavar="OUT", help="as a picture")
    graph.add_argument("--dot", metavar="OUT", help="in the language of Graphviz")
    pages = commands.add_parser("pages", help="who thinks what about each page: run a script")
    pages.add_argument("file", nargs="?", metavar="FILE", help="a script; - for stdin")
    what = pages.add_mutually_exclusive_group()
    what.add_argument("--example", metavar="NAME", help="a script that comes with pysev")
    what.add_argument("--examples", action="store_true", help="list these")
    what.add_argument("--language", action="store_true", help="what a script may say")
    what.add_argument(
        "--kexec", nargs="?", const="", metavar="SIZE", help="the pages of a whole kexec, e.g. 16T"
    )
    what.add_argument(
        "--back-and-forth", nargs="?", const="", metavar="SIZE", help="all memory shared and back"
    )
    size = pages.add_mutually_exclusive_group()
    size.add_argument("--memory", metavar="SIZE", help="the guest, instead of the script's")
    size.add_argument("--memmap", metavar="FILE", help="the same, as e820 lines of a dmesg")
    pages.add_argument("--asid", type=_integer, metavar="N", help="the guest's")
    pages.add_argument("--cpus", type=_integer, default=64, metavar="N", help="of --kexec")
    pages.add_argument("--seed", type=_integer, default=0, metavar="N", help="of --kexec")
    pages.add_argument("--bug", choices=("K1", "K2"), action="append", help="of --kexec")
    pages.add_argument("--plot", metavar="OUT", help="a picture, FILE.png or FILE.svg")
    firmware = commands.add_parser("firmware", help="what SEV firmware answers: run a script")
    firmware.add_argument("file", nargs="?", metavar="FILE", help="a script; - for stdin")
    firmware.add_argument("--mode", choices=("strict", "genoa_2023"), default="strict")
    instead = firmware.add_mutually_exclusive_group()
    instead.add_argument("--language", action="store_true", help="what a script may say")
    instead.add_argument("--checks", metavar="COMMAND", help="its checks in firmware's order")
    costs = commands.add_parser("costs", help="how long things take in a run, and who says so")
    costs.add_argument("--cpus", type=_integer, metavar="N", help="what N CPUs make of them")
    _add_machine(costs)
    _add_costs(costs)
    sweep = commands.add_parser("sweep", help="run a scenario on many machines, into one table")
    sweep.add_argument("scenario")
    grid = "a list, ranges that double (2..4096), or by a factor (*4) or a step (+8)"
    sweep.add_argument("--cpus", default="2..4096", metavar="GRID", help=grid)
    sweep.add_argument("--memory", default="4G", metavar="GRID", help="the same, as in 1G..16T*4")
    sweep.add_argument(
        "--memmap", metavar="FILE", help="e820 lines: a map that is grown to each size"
    )
    sweep.add_argument(
        "--seeds", type=_integer, default=1, metavar="N", help="N runs of each machine"
    )
    sweep.add_argument("--seed", type=_integer, default=0, metavar="N", help="the first of them")
    sweep.add_argument(
        "--workers", type=_integer, metavar="N", help="processes; all CPUs' by default"
    )
    sweep.add_argument(
        "--out",
        metavar="FILE",
        help="one row a run, .csv or .parquet; goes on where it was stopped",
    )
    sweep.add_argument("--plot", metavar="FILE", help="time against CPUs, as .png or .svg")
    _add_costs(sweep)
    _add_vmcore(commands)
    for one in commands.choices.values():
        one.add_argument("--json", action="store_true", help="machine-readable")
    return top


def _add_vmcore(commands: Any) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = commands.add_parser(
        "vmcore", help="write the core that a crash scenario's kdump reads"
    )
    one.add_argument("scenario", nargs="?", help="default: guest-kdump/snp")
    one.add_argument("-o", "--output", required=True, metavar="FILE", help="a new file")
    one.add_argument("--cpus", type=_integer, default=64, metavar="N")
    _add_machine(one)
    one.add_argument("--seed", type=_integer, default=0, metavar="N", help="order and keys")
    one.add_argument(
        "--format",
        choices=("elf", "compact"),
        default="elf",
        help="elf: as /proc/vmcore, with holes; compact: as makedumpfile -E",
    )
    return one


def _add_machine(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--memory", metavar="SIZE", help="a plain guest, e.g. 256G, 4T")
    where.add_argument("--memmap", metavar="FILE", help="e820 lines of a dmesg; - for stdin")
    parser.add_argument("--grow", metavar="SIZE", help="RAM to which --memmap is grown, e.g. 16T")


def _add_costs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cost",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another cost, e.g. wbinvd=2ms; `pysev costs` lists them",
    )
    parser.add_argument("--costs", metavar="FILE.toml", help="other costs, one a line")


def _memory_of(arguments: argparse.Namespace) -> Any:
    """Return the memory map that --memory and --memmap ask for, None without them."""
    from .memmap import MemoryMap, parse_size
    from .scaling import grow

    if arguments.grow is not None and arguments.memmap is None:
        raise UsageError("--grow is for a --memmap; --memory says the size of a plain guest")
    if arguments.memory is not None:
        return MemoryMap.flat(parse_size(arguments.memory))
    if arguments.memmap is None:
        return None
    if arguments.memmap == "-":
        memory = MemoryMap.from_text(_stdin(), "standard input")
    else:
        memory = MemoryMap.from_file(arguments.memmap)
    return memory if arguments.grow is None else grow(memory, parse_size(arguments.grow))


def _costs_of(arguments: argparse.Namespace) -> dict[str, int]:
    """Return the values that --costs and --cost give, the latter counting."""
    from .costs import load, parse

    found = {} if arguments.costs is None else load(arguments.costs)
    return found | parse(arguments.cost)


def _integer(text: str) -> int:
    found = re.fullmatch(r"(-?)(0[xX][0-9a-fA-F]+|[0-9]+)", text, re.ASCII)
    if found is None or len(text) > MAX_DIGITS:
        shown = ascii(text[:MAX_DIGITS]) + "..." * (len(text) > MAX_DIGITS)
        raise argparse.ArgumentTypeError(f"not a number: {shown}")
    base = 16 if found[2][1:2] in ("x", "X") else 10
    return int(text, base)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    from ghcbcore.errors import SevError

    try:
        status = _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        _settle(sys.stdout)
        return GOOD
    except SevError as error:
        return _refuse(_one_line(error))
    except OSError as error:
        _settle(sys.stdout)
        return _refuse(_one_line(error))
    except MemoryError:
        return _refuse("out of memory")
    except ValueError as error:
        if "null byte" not in str(error):
            raise
        return _refuse("a file's name cannot have a null byte in it")
    except SystemExit as stop:  # only a user's own code does that
        return _refuse(f"a property ended the program: SystemExit: {stop.code}")
    except KeyboardInterrupt:
        _refuse("interrupted")
        return INTERRUPTED
    return status


def _main(argv: Sequence[str] | None) -> int:
    if sys.stdout is None:
        raise UsageError("standard output is closed")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may be anything
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parser().parse_args(argv)
    except _Done:
        return GOOD
    return _COMMANDS[arguments.command](arguments)


def _refuse(text: str) -> int:
    """Say in one line what is wrong, if anybody listens."""
    if sys.stderr is not None:
        try:
            sys.stderr.write(f"pysev: {text}\n")
            sys.stderr.flush()
        except OSError:
            _settle(sys.stderr)
    return USAGE


def _settle(stream: TextIO) -> None:
    """Let what cannot be written go nowhere, or Python would try again at its end."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _stdin() -> IO[bytes]:
    if sys.stdin is None:
        raise UsageError("standard input is closed")
    return sys.stdin.buffer


def _one_line(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def _decode(arguments: argparse.Namespace) -> int:
    from .decode import kinds, main_decode

    if arguments.kinds:
        found = list(kinds().values())
        if arguments.json:
            _write_json([{"name": kind.name, "what": kind.what} for kind in found])
        else:
            width = max(len(kind.name) for kind in found)
            sys.stdout.write("".join(f"{kind.name:<{width}}  {kind.what}\n" for kind in found))
        return GOOD
    if not arguments.values:
        raise UsageError("decode: give at least one VALUE, FILE or - (see `pysev decode --help`)")
    stdin = _stdin() if "-" in arguments.values else io.BytesIO()
    return main_decode(
        arguments.values,
        json=arguments.json,
        stdin=stdin,
        kind=arguments.kind,
        vendor_files=arguments.vendor,
    )


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor import main_doctor

    if arguments.log == "-":
        return main_doctor(_stdin(), "standard input", json=arguments.json)
    with open(arguments.log, "rb") as stream:  # noqa: PTH123 -- the name stays as it was given
        return main_doctor(stream, arguments.log, json=arguments.json)


def _cache(arguments: argparse.Namespace) -> int:
    from .caches.command import main_cache, main_scale

    n_cpus = arguments.cpus
    if n_cpus is not None and n_cpus < 1:
        raise UsageError(f"--cpus {n_cpus}: must be at least 1")
    how = {"json": arguments.json, "plot": arguments.plot, "coherent": arguments.coherent}
    if arguments.scale is not None:
        if arguments.file is not None:
            raise UsageError("cache: give a FILE or --scale, not both")
        return main_scale(arguments.scale, n_cores=n_cpus, seed=arguments.seed, **how)
    if arguments.file is None:
        return main_cache(None, "example", n_cpus=n_cpus or 0, **how)
    if arguments.file == "-":
        return main_cache(_stdin(), "standard input", n_cpus=n_cpus or 0, **how)
    with open(arguments.file, "rb") as stream:  # noqa: PTH123 -- the name stays as it was given
        return main_cache(stream, arguments.file, n_cpus=n_cpus or 0, **how)


def _trace(arguments: argparse.Namespace) -> int:
    from .trace.command import main_trace
    from .trace.export import FORMATS

    given = [(how, getattr(arguments, how)) for how in FORMATS]
    exports = [(how, path) for how, path in given if path is not None]
    stdin = _stdin() if arguments.file == "-" else None
    return main_trace(arguments.file, json=arguments.json, exports=exports, stdin=stdin)


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


def _costs(arguments: argparse.Namespace) -> int:
    from .costs import as_json, costs_text, using
    from .machine import Machine
    from .scaling import scaling_json, scaling_text

    memory = _memory_of(arguments)
    n_cpus = arguments.cpus
    machine = None
    if memory is not None or n_cpus is not None:
        machine = Machine.of(1 if n_cpus is None else n_cpus, memory)
    with using(_costs_of(arguments)):
        if arguments.json:
            found: dict[str, Any] = {"costs": as_json()}
            if machine is not None:
                found["machine"] = {
                    "cpus": machine.n_cpus,
                    "memory_bytes": machine.layout.memmap.ram_bytes,
                    "work": scaling_json(machine),
                }
            _write_json(found)
        else:
            sys.stdout.write(costs_text() + ("" if machine is None else scaling_text(machine)))
    return GOOD


def _sweep(arguments: argparse.Namespace) -> int:
    from .memmap import MemoryMap
    from .sweep import Plan, parse_counts, parse_sizes
    from .sweep.command import main_sweep
    from .sweep.work import default_workers
    from .trace.export import refuse_same_place

    a = arguments
    memmap = None
    if a.memmap == "-":
        memmap = MemoryMap.from_text(_stdin(), "standard input")
    elif a.memmap is not None:
        memmap = MemoryMap.from_file(a.memmap)
    refuse_same_place("sweep", [path for path in (a.out, a.plot) if path is not None], a.memmap)
    plan = Plan(
        a.scenario,
        parse_counts(a.cpus),
        parse_sizes(a.memory),
        a.seed,
        a.seeds,
        memmap,
        _costs_of(a),
    )
    return main_sweep(
        plan,
        n_workers=default_workers() if a.workers is None else a.workers,
        out=a.out,
        plot=a.plot,
        json=a.json,
        stderr=sys.stderr,
    )


def _run(arguments: argparse.Namespace) -> int:
    from .costs import using

    with using(_costs_of(arguments)):
        return _run_once(arguments)


def _run_once(arguments: argparse.Namespace) -> int:
    from .machine import Machine
    from .report import run_text
    from .showing.finding import find_scenario
    from .simulate import run
    from .trace.export import refuse_same_place
    from .trace.recorder import open_recorder

    if arguments.replay is not None:
        return _replay(arguments)
    if arguments.scenario is None:
        raise UsageError("run: give a scenario (`pysev scenarios` lists them), or --replay FILE")
    for option in ("mermaid", "svg", "property"):
        if getattr(arguments, option):
            raise UsageError(f"run: --{option} goes with --replay")
    if arguments.cpus is None:
        arguments.cpus = DEFAULT_RUN_CPUS
    scenario = find_scenario(arguments.scenario)
    memory = _memory_of(arguments)
    n_cpus = scenario.n_cpus(arguments.cpus)
    machine = Machine.of(n_cpus, memory, jump_table=scenario.jump_table)
    if arguments.repeat < 1:
        raise UsageError(f"--repeat {arguments.repeat}: must be at least 1")
    to = [path for path in (arguments.trace, arguments.perfetto) if path is not None]
    refuse_same_place("run", to, arguments.memmap)
    flow = scenario.build(machine)
    verdicts: dict[str, int] = {}
    with open_recorder(arguments.trace, arguments.perfetto) as recorder:
        shown = None
        for seed in range(arguments.seed, arguments.seed + arguments.repeat):
            result = run(flow, machine, seed)
            recorder.add(result)
            verdicts[result.verdict] = verdicts.get(result.verdict, 0) + 1
            if shown is None or (shown.verdict == "holds" and result.verdict != "holds"):
                shown = result
    assert shown is not None
    status = GOOD if set(verdicts) == {"holds"} else FINDING
    if "-" in (arguments.trace, arguments.perfetto):
        return status
    more = {"runs": arguments.repeat, "verdicts": verdicts} if arguments.repeat > 1 else {}
    if arguments.json:
        _write_json(shown.as_json() | more)
    else:
        sys.stdout.write(run_text(scenario, machine, shown))
        if more:
            n = ", ".join(f"{verdict} {n}" for verdict, n in verdicts.items())
            last = arguments.seed + arguments.repeat - 1
            sys.stdout.write(f"{arguments.repeat} runs, seeds {arguments.seed} to {last}: {n}\n")
    return status


def _replay(arguments: argparse.Namespace) -> int:
    from .showing.command import main_replay

    a = arguments
    for option, default in (("memory", None), ("memmap", None), ("seed", 0), ("repeat", 1)):
        if getattr(a, option) != default:
            raise UsageError(f"run: --{option} goes without --replay: the script says it all")
    return main_replay(
        a.replay,
        scenario=a.scenario,
        n_cpus=a.cpus,
        stdin=_stdin() if a.replay == "-" else None,
        properties=[load_property(text) for text in a.property],
        json=a.json,
        trace=a.trace,
        perfetto=a.perfetto,
        mermaid=a.mermaid,
        svg=a.svg,
    )


def _check(arguments: argparse.Namespace) -> int:
    from .checking.command import main_check

    return main_check(arguments, _write_json)


def _graph(arguments: argparse.Namespace) -> int:
    from .showing.graphcommand import main_graph

    a = arguments
    return main_graph(
        a.scenario, n_cpus=a.cpus, json=a.json, mermaid=a.mermaid, svg=a.svg, dot=a.dot
    )


def _pages(arguments: argparse.Namespace) -> int:
    from .memmap import MemoryMap
    from .memory.command import examples_text, language_text, main_pages
    from .memory.scale import main_scale
    from .trace.export import refuse_same_place

    a = arguments
    if a.examples or a.language:
        sys.stdout.write(examples_text() if a.examples else language_text())
        return GOOD
    whole = a.back_and_forth if a.kexec is None else a.kexec
    if whole is not None and (whole == "") != (a.memmap is not None):
        raise UsageError("pages: give --kexec and --back-and-forth a SIZE, or a --memmap FILE")
    if a.file is not None and (whole is not None or a.example is not None):
        raise UsageError("pages: a FILE goes without --example, --kexec, --back-and-forth")
    size = a.memory if a.memmap is None else MemoryMap.from_file(a.memmap)
    if whole is not None:
        if a.plot is not None or a.memory is not None:
            raise UsageError("pages: --kexec and --back-and-forth go without --plot, --memory")
        bugs = "".join(a.bug or ())
        asid = 1 if a.asid is None else a.asid
        return main_scale(
            whole if size is None else size,
            kexec=a.kexec is not None,
            n_cpus=a.cpus,
            seed=a.seed,
            asid=asid,
            bugs=bugs,
            json=a.json,
        )
    if a.plot is not None:
        refuse_same_place("pages", [a.plot], a.file if a.file != "-" else None)
    return main_pages(
        a.file,
        stdin=_stdin() if a.file == "-" else None,
        example=a.example,
        size=size,
        asid=a.asid,
        json=a.json,
        plot=a.plot,
    )


def _firmware(arguments: argparse.Namespace) -> int:
    from .firmware_command import main_firmware

    a = arguments
    if a.file is not None and (a.language or a.checks is not None):
        raise UsageError("firmware: a FILE goes without --language, --checks")
    return main_firmware(
        a.file,
        stdin=_stdin() if a.file == "-" else None,
        mode=a.mode,
        json=a.json,
        language=a.language,
        checks=a.checks,
    )


def _vmcore(arguments: argparse.Namespace) -> int:
    from .scenarios import find
    from .vmcore.command import DEFAULT_SCENARIO, main_vmcore

    a = arguments
    return main_vmcore(
        find(a.scenario or DEFAULT_SCENARIO),
        a.output,
        n_cpus=a.cpus,
        memory=_memory_of(a),
        seed=a.seed,
        form=a.format,
        json=a.json,
    )


def _write_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


_COMMANDS = {
    "decode": _decode,
    "trace": _trace,
    "doctor": _doctor,
    "cache": _cache,
    "scenarios": _scenarios,
    "run": _run,
    "check": _check,
    "graph": _graph,
    "pages": _pages,
    "firmware": _firmware,
    "costs": _costs,
    "sweep": _sweep,
    "vmcore": _vmcore,
}
