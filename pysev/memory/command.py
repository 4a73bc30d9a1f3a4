"""The body of ``pysev pages``."""

from __future__ import annotations

import json as _json
import sys
from importlib.resources import files
from typing import IO

from pysev.memmap import MemoryMap

from .expect import __doc__ as EXPECT_TEXT
from .script import MAX_SCRIPT_BYTES, BadScript, read_script
from .session import MEMORY_USAGE, Session, run_script
from .verbs import VERBS

__all__ = ["DEFAULT_EXAMPLE", "examples", "examples_text", "language_text", "main_pages"]

GOOD, FINDING = 0, 1
DEFAULT_EXAMPLE = "kexec-k1"
EXAMPLES = "pysev.memory.scripts"


def examples() -> dict[str, str]:
    """Return the example scripts that come with the package, by name."""
    found = {
        one.name.removesuffix(".txt"): one.read_text("utf-8")
        for one in files(EXAMPLES).iterdir()
        if one.name.endswith(".txt")
    }
    return dict(sorted(found.items()))


def examples_text() -> str:
    """Return their names and what each is about: its first line."""
    found = examples()
    width = max(map(len, found))
    return "".join(
        f"{name:<{width}}  {text.partition(chr(10))[0].lstrip('# ')}\n"
        for name, text in found.items()
    )


def language_text() -> str:
    """Return what can be written in a script."""
    rows = [
        ("memory", MEMORY_USAGE, "the guest; the first line"),
        *((name, verb.usage, verb.what) for name, verb in VERBS.items()),
    ]
    text = "".join(f"{usage}\n    {what}\n" for _, usage, what in rows)
    return (
        "One operation a line; # begins a comment. Places are frames of 4 KiB in hexadecimal:\n"
        "0x1000, 0x1000+512 (512 from there on), all, ram (of a memory map). Never bytes.\n\n"
        f"{text}\n{EXPECT_TEXT.strip()}\n"
    )


def main_pages(
    path: str | None,
    *,
    stdin: IO[bytes] | None = None,
    example: str | None = None,
    size: str | MemoryMap | None = None,
    asid: int | None = None,
    json: bool = False,
    plot: str | None = None,
) -> int:
    """Run a script, print what it comes to; return the exit status.

    Parameters
    ----------
    path : str or None
        A file, ``-`` for ``stdin``, or None for an example.
    example : str or None
        Its name; default: the bug of a kexec.
    size, asid
        The guest, instead of what the script says.
    plot : str or None
        A file to be written, PNG or SVG.

    Raises
    ------
    BadScript
        The script cannot be run; the text names file and line. Nothing is printed.
    OSError
        A file cannot be read or written.
    """
    data, name = _read(path, stdin, example)
    lines = read_script(data, name)
    after = None
    if plot is not None:
        from .plot import Samples, check_target, write_plot

        check_target(plot)
        samples = Samples()
        after = samples.take
    session = run_script(lines, name, size=size, asid=asid, after=after)
    if plot is not None:
        write_plot(samples, plot, name)
    if json:
        sys.stdout.write(_json.dumps(session.as_json(name), indent=2) + "\n")
    else:
        sys.stdout.write(session.as_text(name))
    return status_of(session)


def status_of(session: Session) -> int:
    """A failed ``expect``, or a disagreement that none expected, is a finding."""
    return FINDING if session.failed or session.unexpected() else GOOD


def _read(path: str | None, stdin: IO[bytes] | None, example: str | None) -> tuple[bytes, str]:
    if path is None:
        found = examples()
        wanted = example or DEFAULT_EXAMPLE
        if wanted not in found:
            raise BadScript(f"example {wanted!r}: must be one of {', '.join(found)}")
        return found[wanted].encode(), f"{wanted}.txt"
    if path == "-":
        assert stdin is not None
        return stdin.read(MAX_SCRIPT_BYTES + 1), "standard input"
    with open(path, "rb") as stream:  # noqa: PTH123 -- the name stays as it was given
        return stream.read(MAX_SCRIPT_BYTES + 1), path
