"""Histories of the host's firmware as text: tests/data/firmware_rows.csv, and how to go through it.

A step is a command and its arguments, as ``SNP_ACTIVATE gctx=11 asid=1``; a set is ``0/1``, what is
wrong is ``wrong=reserved``. It has to succeed unless ``-> 0x0E`` follows it; the last one's status
is the row's. The words below make several commands or speak for the host. The context of SNP guest
``n`` is page ``10 + n``, PAGES gives ASID ``a`` page ``30 + a``.
"""

import copy
import csv
from pathlib import Path

from firmware_oracle import FirmwareOracle

REFUSED = -1  # of RMPUPDATE; no status of firmware

with (Path(__file__).resolve().parents[1] / "data" / "firmware_rows.csv").open(newline="") as file:
    assert "Origin:" in next(file)
    ROWS = list(csv.DictReader(file))

START = {
    "POWER_ON": "",
    "S0": "SNP_INIT_EX; WBINVD all; DF_FLUSH",
    "SEV": "SNP_INIT_EX; WBINVD all; DF_FLUSH; INIT es=1",
}


def snp_guest(n, asid, state):
    """List the commands that bring a guest up to a state, with an ASID unless it is 0."""
    gctx = 10 + n
    steps = [f"FIRMWARE {gctx}", f"SNP_GCTX_CREATE gctx={gctx}"]
    if state != "INIT":
        steps += [f"SNP_LAUNCH_START gctx={gctx}"]
    if asid:
        steps += [f"SNP_ACTIVATE gctx={gctx} asid={asid}"]
    if state == "RUNNING":
        steps += [f"SNP_LAUNCH_FINISH gctx={gctx}"]
    return steps


def sev_guest(handle, asid, es, state):
    steps = [f"LAUNCH_START es={es}"]
    if asid:
        steps += [f"ACTIVATE handle={handle} asid={asid}"]
    if state == "RUNNING":
        steps += [f"LAUNCH_MEASURE handle={handle}", f"LAUNCH_FINISH handle={handle}"]
    return steps


def several(word, words):
    """Return the steps a word stands for, or None."""
    if word == "R":  # SNP guest n, running on ASID n
        return snp_guest(int(words[0]), int(words[0]), "RUNNING")
    if word == "PENDING":  # in LAUNCH, on ASID n
        return snp_guest(int(words[0]), int(words[0]), "LAUNCH")
    if word == "LAUNCHED":  # in LAUNCH, without an ASID
        return snp_guest(int(words[0]), 0, "LAUNCH")
    if word == "CREATED":
        return snp_guest(int(words[0]), 0, "INIT")
    if word == "SEV":  # SEV guest with this handle, running on this ASID
        return sev_guest(int(words[0]), int(words[1]), 0, "RUNNING")
    if word == "ES":
        return sev_guest(int(words[0]), int(words[1]), 1, "RUNNING")
    if word == "LUPDATE":  # SEV guest, in LUPDATE, pending on this ASID
        return sev_guest(int(words[0]), int(words[1]), 0, "LUPDATE")
    if word == "DECOM":
        return [f"SNP_DECOMMISSION gctx={10 + int(words[0])}"]
    if word == "SHUTDOWN_EX":
        return [" ".join(["SNP_SHUTDOWN_EX", *words])]
    return None


def threads_of(oracle, words):
    if words[0] != "all":
        return [int(word) for word in words]
    left_out = [int(word) for word in words[2:]] if words[1:] else []
    return [t for t in range(oracle.n_threads) if t not in {*left_out, *oracle.offline}]


def host(oracle, word, words):
    """Do what the host does without firmware: 0 or REFUSED, None if this is no such step."""
    numbers = [int(word) for word in words if word.isdigit()]
    if word in ("WBINVD", "WBNOINVD"):
        could = [getattr(oracle, word.lower())(t) for t in threads_of(oracle, words)]
        return 0 if all(could) else REFUSED
    if word in ("OFFLINE", "ONLINE"):  # these threads
        oracle.offline = {*oracle.offline, *numbers} if word == "OFFLINE" else set()
        return 0
    if word in ("FIRMWARE", "HYPERVISOR", "PRE_GUEST", "GUEST_INVALID"):
        asid, size = [*numbers[1:], 0, 0][:2]
        return 0 if oracle.rmpupdate(numbers[0], word, asid, size) else REFUSED
    if word == "PAGES":  # a page of ASID a
        return 0 if oracle.rmpupdate(30 + numbers[0], "GUEST_INVALID", numbers[0]) else REFUSED
    if word == "NO_PAGES":
        return 0 if oracle.rmpupdate(30 + numbers[0], "HYPERVISOR") else REFUSED
    if word == "SNPEN":  # these cores lack SNPEn
        oracle.snpen = [core not in numbers for core in range(len(oracle.snpen))]
        return 0
    if word == "HSAVE":  # these cores have VM_HSAVE_PA set
        oracle.hsave_clear = [core not in numbers for core in range(len(oracle.hsave_clear))]
        return 0
    return None


def value(name, text):
    if name in ("ccxs", "pages"):
        return [int(part) for part in text.split("/") if part]
    if name == "wrong":
        return text.split("/")
    return int(text, 0) if text[0].isdigit() else text


def unfold(step):
    """Write a step as steps of one command each."""
    word, *words = step.split()
    steps = several(word, words)
    return [step] if steps is None else [one for more in steps for one in unfold(more)]


def take(oracle, step):
    """Take a step of one command; return its status. The host's own end with 0 or REFUSED."""
    word, *words = step.split()
    status = host(oracle, word, words)
    if status is not None:
        return status
    given = dict(word.split("=") for word in words)
    arguments = {name: value(name, text) for name, text in given.items()}
    return oracle.command(int(word, 0) if word[0].isdigit() else word, **arguments)


def run(oracle, start, history):
    """Go through a history; return the status of the last step."""
    status, last = 0, ""
    for text in [*START[start].split(";"), *history.split(";")]:
        written, _, expected = text.partition("->")
        for step in unfold(written) if written.strip() else []:
            assert not status, f"{last} ends with {status:#x}"
            status, last = take(oracle, step), step
        if expected:
            assert status == int(expected, 0), (last, status)
            status = 0
    return status


# What random histories are made of: more of what brings a machine on than of what is refused.
STEPS = [
    *(f"WBINVD {t}" for t in range(8)),
    *["WBINVD all"] * 6,
    *["WBINVD all but 5", "WBNOINVD all", "DF_FLUSH", "DF_FLUSH", "SNP_DF_FLUSH"],
    "WBINVD 0 1 4 5",
    *(f"{word} {n}" for word in ("R", "PENDING", "DECOM", "DECOM") for n in (1, 2)),
    *["LAUNCHED 3", "SNP_ACTIVATE gctx=13 asid=1", "SNP_LAUNCH_FINISH gctx=13", "DECOM 3"],
    *(f"SNP_ACTIVATE_EX gctx={10 + n} asid=1 ccxs={x}" for n in (1, 3) for x in (0, 1)),
    *["SNP_INIT_EX", "SNP_INIT_EX init_rmp=0", "SNP_INIT", "SHUTDOWN_EX", "SHUTDOWN_EX iommu=1"],
    *["INIT es=1", "SHUTDOWN", "SEV 1 3", "SEV 2 4", "ES 1 2", "LUPDATE 1 3"],
    *(f"{word} handle={n}" for word in ("DEACTIVATE", "DECOMMISSION") for n in (1, 2)),
    *["LAUNCH_FINISH handle=1", "SEND_START handle=1", "SEND_FINISH handle=1"],
    *["ACTIVATE handle=1 asid=3", "ACTIVATE handle=1 asid=4", "ACTIVATE handle=2 asid=3"],
    *["PAGES 1", "NO_PAGES 1", "FIRMWARE 12", "HYPERVISOR 12", "SNP_PAGE_RECLAIM page=12"],
    *["LAUNCH_START buffer=12", "SNP_GUEST_STATUS gctx=11 page=12"],
]


def atoms(start, history):
    """Return a history as steps of one command each."""
    texts = [*START[start].split(";"), *history]
    return [step for text in texts if text.strip() for step in unfold(text)]


def visible(fw):
    """Copy everything that somebody could see of a machine."""
    hidden = ("args", "wrong", "name", "answer", "cells_lost", "pages")
    state = {n: copy.deepcopy(v) for n, v in vars(fw).items() if n not in hidden}
    for name in ("guests", "contexts"):
        state[name] = {n: vars(guest) for n, guest in state[name].items()}
    if fw.cells_lost:
        state["cells"] = {a: ["DIRTY"] * fw.n_ccxs for a in fw.asids}
    pages = {n: vars(page).copy() for n, page in fw.pages.items()}
    fresh = FirmwareOracle(covered=fw.covered)
    state["pages"] = {n: page for n, page in pages.items() if page != vars(fresh.page(n))}
    return state
