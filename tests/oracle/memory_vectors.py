"""The vectors of page ownership: histories as text, and how a machine goes through them."""

import csv
from pathlib import Path

from memory_oracle import MemoryOracle

from ghcbcore._cffi import lib

BITS = {
    "present": 0,
    "write": 1,
    "user": 2,
    "fetch": 4,
    "rmp": 31,
    "final": 32,
    "enc": 34,
    "sizem": 35,
    "vmpl": 36,
}

with (Path(__file__).resolve().parents[1] / "data" / "memory_vectors.csv").open(newline="") as file:
    assert "Origin:" in next(file)
    ROWS = list(csv.DictReader(file))


def value(name, text):
    """Read an argument: a number, a tuple a/b, a range a+n, a word."""
    if "/" in text or name in ("hv_fixed", "iommu"):
        return tuple(value("", part) for part in text.split("/"))
    if "+" in text:
        return tuple(int(part, 0) for part in text.split("+"))
    return int(text, 0) if text[0].isdigit() else text


def call(machine, step):
    name, *words = step.split()
    named = dict(word.split("=") for word in words if "=" in word)
    plain = [value("", word) for word in words if "=" not in word]
    return name, getattr(machine, name)(*plain, **{n: value(n, text) for n, text in named.items()})


def text_of(name, result):
    """Write a result as the vectors have it."""
    if name == "state":
        states = [n for n in dir(lib) if n.startswith("RMP_STATE_") and n != "RMP_STATE_END"]
        return f"state {next(n for n in states if getattr(lib, n) == result)[10:]}"
    if name == "raw":
        return f"raw {result[0]:#x} {result[1]:#x}"
    if name == "rmpread":
        return "rmpread " + " ".join(f"{field}={number}" for field, number in result.items())
    if name == "pages_assigned_to":
        return f"pages {result}"
    if result.kind == "status":
        return f"status {result.code:#x}"
    if result.kind == "ok":
        mark = f" value={result.bits:#x}" if name == "rmpquery" else " cf" * result.bits
        return f"ok {result.code}{mark if result.code == 0 else ''}"
    words = [word for word, bit in BITS.items() if result.bits >> bit & 1]
    assert sum(1 << BITS[word] for word in words) == result.bits
    return f"{result.kind} {'|'.join(words)}".strip()


def same(text):
    """Bring numbers and the order of bits into one form."""
    kind, *rest = text.split(" ", 1)
    if "|" in text:
        return kind, frozenset(rest[0].split("|"))
    words = rest[0].split() if rest else []
    pairs = [word.rpartition("=") for word in words]
    return kind, [(n, int(v, 0) if v[0].isdigit() else v) for n, _, v in pairs]


def machine_for(steps, kind=MemoryOracle):
    size = {"pages": 64, "region": 8, "conservative": 1, "up": 1}
    if steps[0].startswith("machine "):
        size.update((n, int(v, 0)) for n, v in (w.split("=") for w in steps.pop(0).split()[1:]))
    return kind(
        size["pages"],
        size["region"],
        size.get("covered"),
        bool(size["conservative"]),
        initialised=bool(size["up"]),
        shared_read=bool(size.get("shared_read")),
    )
