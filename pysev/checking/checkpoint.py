"""A search on disk: written while it runs, taken up again after whatever ended it.

A folder holds one search. What only grows (keys of states, their parents, parts, and so on) is
appended to a file each; ``search.json`` says how much of each counts and is replaced in one step
when the rest is on disk. So whatever is cut off in between, the last ``search.json`` and the first
bytes of the others are a search that can be taken up.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ghcbcore.errors import SevError
from ghcbcore.explorer import Explorer

from ..compiler import Compiled
from ..flow import Property
from .result import Array

__all__ = ["BadCheckpoint", "Checkpoint", "identity"]

VERSION = 1
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
    """Return a digest of all that the course of a search depends on."""
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
    profile = compiled.flow.profile
    digest.update(repr((compiled.flow.name, profile.guest, profile.rules)).encode())
    digest.update(repr([(p.name, p.kind) for p in properties]).encode())
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
        self.written = dict.fromkeys(FILES, 0)  # elements
        self.folder.mkdir(parents=True, exist_ok=True)
        self.header = self._read_header()
        if self.header is None:
            for name in FILES:
                if self._path(name).exists():
                    raise BadCheckpoint(f"{self.folder}: {name}.bin without {HEADER}")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def _read_header(self) -> dict[str, Any] | None:
        path = self.folder / HEADER
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise BadCheckpoint(f"{path}: not text") from error
        try:
            header = json.loads(text)
            written = {name: int(header["written"][name]) for name in FILES}
            who, widths = str(header["who"]), [int(w) for w in header["widths"]]
            dict(header["book"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BadCheckpoint(f"{path}: not a search: {error}") from error
        if who != self.who:
            raise BadCheckpoint(
                f"{path}: another search (scenario, CPUs, options or version differ)"
            )
        if len(widths) != 2 or min(written.values()) < 0:
            raise BadCheckpoint(f"{path}: widths {widths}, {written}")
        self.written = written
        return dict(header)

    @property
    def widths(self) -> tuple[int, int] | None:
        """Widths of the ids of the search that is there; None if there is none."""
        if self.header is None:
            return None
        return int(self.header["widths"][0]), int(self.header["widths"][1])

    def start_again(self) -> None:
        """Forget what is there: ids have become too narrow, so keys are others from now on."""
        (self.folder / HEADER).unlink(missing_ok=True)
        for name in FILES:
            self._path(name).unlink(missing_ok=True)
        self.written = dict.fromkeys(FILES, 0)
        self.header = None

    def load(self, explorer: Explorer) -> tuple[dict[str, Any], Array]:
        """Take the search up in a new explorer; return its book and its settled states."""
        assert self.header is not None
        arrays = {name: self._load(name) for name in FILES}
        n_global, n_slice = explorer.program.n_global, explorer.program.n_slice
        n_words = int(self.header["n_words"])
        try:
            explorer.restore(
                arrays["globals"].reshape(-1, n_global),
                arrays["slices"].reshape(-1, n_slice),
                arrays["keys"].reshape(-1, n_words),
                arrays["parents"],
                arrays["terminals"],
                arrays["learned"],
                int(self.header["n_transitions"]),
            )
        except (ValueError, SevError) as error:
            raise BadCheckpoint(f"{self.folder}: damaged: {error}") from error
        return dict(self.header["book"]), arrays["settled"]

    def _load(self, name: str) -> Array:
        path, n = self._path(name), self.written[name]
        found = np.fromfile(path, dtype=FILES[name], count=n) if n else np.zeros(0, FILES[name])
        if len(found) != n:
            raise BadCheckpoint(f"{path}: {len(found)} elements, {n} must be there")
        return found

    def save(
        self,
        explorer: Explorer,
        widths: tuple[int, int],
        book: dict[str, Any],
        settled: Array,
    ) -> None:
        """Write what is new, then the header."""
        global_parts, slice_parts = explorer.tables()
        n_states = self.written["parents"]
        keys, parents = explorer.stored(n_states, explorer.n_states)
        new = {
            "globals": global_parts.reshape(-1)[self.written["globals"] :],
            "slices": slice_parts.reshape(-1)[self.written["slices"] :],
            "keys": keys.reshape(-1),
            "parents": parents,
            "terminals": explorer.terminals[self.written["terminals"] :],
            "learned": explorer.learned[self.written["learned"] :],
            "settled": settled[self.written["settled"] :],
        }
        for name, array in new.items():
            self._append(name, np.ascontiguousarray(array))
        header = {
            "version": VERSION,
            "who": self.who,
            "widths": list(widths),
            "n_words": keys.shape[1],
            "n_transitions": explorer.n_transitions,
            "written": self.written,
            "book": book,
        }
        temporary = self.folder / (HEADER + ".new")
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(header, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.folder / HEADER)
        self.header = header

    def _append(self, name: str, array: Array) -> None:
        path = self._path(name)
        size = self.written[name] * array.itemsize
        with path.open("r+b" if path.exists() else "wb") as stream:
            stream.truncate(size)  # what was written after the last header does not count
            stream.seek(size)
            array.tofile(stream)
            stream.flush()
            os.fsync(stream.fileno())
        self.written[name] += len(array)
