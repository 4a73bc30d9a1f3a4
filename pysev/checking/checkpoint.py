"""A search on disk: written while it runs, taken up again after whatever ended it.

A folder holds one search. What only grows (keys of states, their parents, parts, and so on) is
appended to a file each; ``search.json`` says how much of each counts and is replaced in one step
when the rest is on disk. So whatever is cut off in between, the last ``search.json`` and the first
bytes of the others are a search that can be taken up. It is there before any other file is, and
holds a checksum of itself and of what counts of each file: what was damaged is never searched on.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ghcbcore.errors import SevError
from ghcbcore.explorer import Explorer, NarrowIds

from ..compiler import Compiled
from ..flow import Property
from .meaning import meaning
from .result import Array

__all__ = ["BadCheckpoint", "Checkpoint", "identity"]

VERSION = 2
HEADER = "search.json"
FILES = {
    "globals": np.uint64,
    "slices": np.uint64,
    "keys": np.uint64,
    "parents": np.uint32,
    "terminals": np.uint32,
    "learned": np.uint64,
    "settled": np.uint8,
}


class BadCheckpoint(SevError):
    """The folder holds another search, or what it holds is damaged; the text names the file."""


def identity(compiled: Compiled, properties: Sequence[Property], options: str) -> str:
    """Return a digest of all that the course of a search, and what it finds, depends on."""
    program = compiled.program
    digest = hashlib.sha256(f"{VERSION} {options} {compiled.n_others}".encode())
    for array in (
        program.insns,
        program.alts,
        program.roles,
        program.frame_ops,
        program.regions,
        program.place_ops,
        program.places,
        compiled.initial_record(),
    ):
        digest.update(np.ascontiguousarray(array).tobytes())
    flow = compiled.flow
    digest.update(repr((flow.name, flow.profile.guest, flow.profile.rules)).encode())
    agents = [(a.name, a.per_cpu, a.pc.name, list(a.labels), sorted(a.ends)) for a in flow.agents]
    words = [[(w.name, w.index) for w in block] for block in (flow.g, flow.cpu)]
    digest.update(repr((agents, words)).encode())
    for p in properties:
        digest.update(repr((p.name, p.kind)).encode())
        digest.update(f"{meaning(p.holds)} {meaning(p.since)}".encode())
    return digest.hexdigest()


class Checkpoint:
    """One folder; ``save`` writes what is new since the last time.

    Raises
    ------
    BadCheckpoint
        The folder holds a search, and not this one.
    OSError
        It cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str], who: str) -> None:
        self.folder = Path(folder)
        self.who = who
        self.folder.mkdir(parents=True, exist_ok=True)
        self.header = self._read_header()
        if self.header is None:
            for name in FILES:
                if self._path(name).exists():
                    raise BadCheckpoint(f"{self.folder}: {name}.bin without {HEADER}")
            self._start()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def _start(self) -> None:
        """Write a header of which nothing counts, so that whatever follows may be cut off."""
        self._write_header(
            {
                "widths": None,
                "n_words": 0,
                "n_transitions": 0,
                "written": dict.fromkeys(FILES, 0),  # elements
                "sums": dict.fromkeys(FILES, 0),  # CRC-32 of them
                "book": {},
            }
        )

    def _read_header(self) -> dict[str, Any] | None:
        path = self.folder / HEADER
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise BadCheckpoint(f"{path}: not text") from error
        try:
            outer = json.loads(text)
            header, digest = outer["search"], outer["sha256"]
            if digest != _digest(header):
                raise ValueError("its checksum does not fit")
            who = header["who"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BadCheckpoint(f"{path}: not a search: {error}") from error
        if who != self.who:
            raise BadCheckpoint(
                f"{path}: another search (scenario, CPUs, options or version differ)"
            )
        return dict(header)

    @property
    def widths(self) -> tuple[int, int] | None:
        """Widths of the ids of the search that is there; None if there is none."""
        if self.header is None or self.header["widths"] is None:
            return None
        return int(self.header["widths"][0]), int(self.header["widths"][1])

    def start_again(self) -> None:
        """Forget what is there: ids have become too narrow, so keys are others from now on."""
        self._start()
        for name in FILES:
            self._path(name).unlink(missing_ok=True)

    def load(self, explorer: Explorer) -> tuple[dict[str, Any], Array]:
        """Take the search up in a new explorer; return its book and its settled states."""
        assert self.header is not None
        try:
            return self._load_into(explorer)
        except (ArithmeticError, LookupError, TypeError, ValueError, SevError, NarrowIds) as error:
            if isinstance(error, BadCheckpoint):
                raise
            raise BadCheckpoint(f"{self.folder}: damaged: {error}") from error

    def _load_into(self, explorer: Explorer) -> tuple[dict[str, Any], Array]:
        assert self.header is not None
        arrays = {name: self._load(name) for name in FILES}
        n_global, n_slice = explorer.program.n_global, explorer.program.n_slice
        n_words = int(self.header["n_words"])
        explorer.restore(
            arrays["globals"].reshape(-1, n_global),
            arrays["slices"].reshape(-1, n_slice),
            arrays["keys"].reshape(-1, n_words),
            arrays["parents"],
            arrays["terminals"],
            arrays["learned"],
            int(self.header["n_transitions"]),
        )
        book, settled = dict(self.header["book"]), arrays["settled"]
        n, begin, path = explorer.n_states, int(book["begin"]), self.folder / HEADER
        if not 0 <= int(book["low"]) <= begin <= int(book["high"]) <= n or begin != len(settled):
            raise BadCheckpoint(f"{path}: {book}, {n} states, {len(settled)} settled")
        if int(book["n_terminals"]) != len(arrays["terminals"]) or int(book["depth"]) < 0:
            raise BadCheckpoint(f"{path}: {book}, {len(arrays['terminals'])} ends")
        if any(not 0 <= int(state) < n for _, state in dict(book["first"]).values()):
            raise BadCheckpoint(f"{path}: first violations {book['first']} in {n} states")
        return book, settled

    def _load(self, name: str) -> Array:
        assert self.header is not None
        path, n = self._path(name), int(self.header["written"][name])
        if not n:
            return np.zeros(0, FILES[name])
        try:
            there = path.stat().st_size // np.dtype(FILES[name]).itemsize
        except FileNotFoundError:
            there = 0
        if not 0 < n <= there:
            raise BadCheckpoint(f"{path}: {there} elements, {n} must be there")
        found = np.fromfile(path, dtype=FILES[name], count=n)
        if zlib.crc32(found.data) != self.header["sums"][name]:
            raise BadCheckpoint(f"{path}: damaged, its checksum does not fit")
        return found

    def save(
        self,
        explorer: Explorer,
        widths: tuple[int, int],
        book: dict[str, Any],
        settled: Array,
    ) -> None:
        """Write what is new, then the header; if that fails, what was there before still counts."""
        assert self.header is not None
        written, sums = dict(self.header["written"]), dict(self.header["sums"])
        global_parts, slice_parts = explorer.tables()
        keys, parents = explorer.stored(written["parents"], explorer.n_states)
        new = {
            "globals": global_parts.reshape(-1)[written["globals"] :],
            "slices": slice_parts.reshape(-1)[written["slices"] :],
            "keys": keys.reshape(-1),
            "parents": parents,
            "terminals": explorer.terminals[written["terminals"] :],
            "learned": explorer.learned[written["learned"] :],
            "settled": settled[written["settled"] :],
        }
        for name, array in new.items():
            array = np.ascontiguousarray(array)
            self._append(name, array, written[name])
            sums[name] = zlib.crc32(array.data, sums[name])
            written[name] += len(array)
        self._write_header(
            {
                "widths": list(widths),
                "n_words": keys.shape[1],
                "n_transitions": explorer.n_transitions,
                "written": written,
                "sums": sums,
                "book": book,
            }
        )

    def _write_header(self, header: dict[str, Any]) -> None:
        header = {"version": VERSION, "who": self.who, **header}
        temporary = self.folder / (HEADER + ".new")
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump({"search": header, "sha256": _digest(header)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.folder / HEADER)
        self.header = header

    def _append(self, name: str, array: Array, after: int) -> None:
        path = self._path(name)
        size = after * array.itemsize
        with path.open("r+b" if path.exists() else "wb") as stream:
            stream.truncate(size)  # what was written after the last header does not count
            stream.seek(size)
            array.tofile(stream)
            stream.flush()
            os.fsync(stream.fileno())


def _digest(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
