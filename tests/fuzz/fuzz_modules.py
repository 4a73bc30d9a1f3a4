"""The compiled modules themselves, through their Python interfaces, under libFuzzer.

``tools/fuzz`` builds them with sanitizers and calls this with the fuzzer's own arguments. One byte
of the input says which of the functions below gets the rest.
"""

import contextlib
import os
import sys

os.environ.pop("LD_PRELOAD", None)  # is for this process, not for those that it starts

import fuzzdriver
import numpy as np

from ghcbcore import errors, ghcb, msr, psc, rmp
from ghcbcore._cffi import lib
from ghcbcore.device import Device
from ghcbcore.exchange import EXCHANGE_DTYPE, Pairer
from ghcbcore.host import Host
from ghcbcore.profile import Profile
from ghcbcore.trace import LINE_DTYPE, Scanner

LINE = b"  qemu-%d  [003] d..1.  %d.%06d: kvm_vmgexit_%s: vcpu %d, %s\n"


def lines_of(data, cut):
    """Scan text in pieces of ``cut`` bytes into arrays that are too short for it."""
    scanner, found = Scanner(), []
    out = np.zeros(3, LINE_DTYPE)
    for at in range(0, len(data), cut):
        piece = data[at : at + cut]
        while piece:
            used, n = scanner.scan(piece, out)
            found.append(out[:n].copy())
            assert used or n
            piece = piece[used:]
    while n := scanner.finish(out):
        found.append(out[:n].copy())
    return scanner, np.concatenate(found) if found else out[:0]


def text_of(data):
    """Make a trace of the input: some of it lines of KVM, some of it as it is."""
    text = bytearray()
    for i in range(0, len(data) - 8, 8):
        a, b, c, d, *rest = data[i : i + 8]
        if a & 1:
            text += data[i : i + 8]
            continue
        fields = b"exit_reason %x, exit_info1 %x, exit_info2 %x" % (c, d, rest[0])
        names = (b"enter", b"exit", b"msr_protocol_enter", b"msr_protocol_exit")
        if a & 4:
            fields = b"ghcb_gpa %016x" % (d << 12 | c)
            fields += b", result %d" % (rest[0] & 1) * (a >> 1 & 1)
        text += LINE % (b & 3, i, rest[1], names[a >> 1 & 3], b >> 2 & 3, fields)
    return bytes(text)


def trace(data):
    """Cut anywhere, a text has the same lines; paired in any pieces, the same exchanges."""
    text = text_of(data[1:]) + b"x" * (data[0] & 1)
    one, whole = lines_of(text, len(text) + 1)
    other, parts = lines_of(text, data[0] % 61 + 1)
    assert whole.tobytes() == parts.tobytes()
    assert (one.n_lines, one.n_bytes, one.names) == (other.n_lines, other.n_bytes, other.names)
    told = []
    for size in (len(whole) + 1, data[0] % 5 + 1):
        pairer, out, found = Pairer(), np.zeros(2, EXCHANGE_DTYPE), []
        for at in range(0, len(whole), size):
            piece = whole[at : at + size]
            while len(piece):
                used, n = pairer.pair(piece, out)
                found.append(out[:n].copy())
                piece = piece[used:]
        while n := pairer.finish(out):
            found.append(out[:n].copy())
        told.append((b"".join(x.tobytes() for x in found), pairer.kinds(), pairer.span_ns))
    assert told[0] == told[1]


def codecs(data):
    """Arrays of anything are taken apart whatever their length and place."""
    n = len(data) // 8
    words = np.frombuffer(data[: 8 * n], np.uint64)
    shifted = np.frombuffer(b"x" + data, np.uint8)[1:]
    msr.check_answers(words, words[::-1].copy())
    decoded = msr.decode(words)
    good = decoded[decoded["status"] == lib.GHCB_OK]
    fields = [np.ascontiguousarray(good[k].astype(np.uint64)) for k in ("code", "a", "b", "c")]
    again = msr.encode(*fields)
    assert again.tolist() == words[decoded["status"] == lib.GHCB_OK].tolist()
    page = np.zeros((2, 4096), np.uint8)
    page[1, : len(shifted[:4096])] = shifted[:4096]
    for side in ("request", "answer"):
        ghcb.decode(page, side=side)
    psc.decode_entries(words)
    rmp.decode(np.ascontiguousarray(words[: n // 2 * 2].reshape(-1, 2)))


def host(data):
    """A device in Python that answers from the input, and arrays of requests."""
    feed = iter(data)

    def access(kind, cpu, address, is_write, size_bytes, count, args, content):
        if isinstance(content, bytearray) and content:
            content[0] = next(feed, 0)
        return [None, 0, (1, 2)][next(feed, 0) % 3]

    def memory(gpa, content, is_write):
        return next(feed, 0) % 4 != 0

    device = Device(range(lib.GHCB_ACCESS_END), access, memory)
    kinds = (lib.GHCB_GUEST_PLAIN, lib.GHCB_GUEST_SEV_ES, lib.GHCB_GUEST_SNP)
    h = Host(Profile(guest=kinds[next(feed, 0) % 3]), 2, device)
    n = len(data) // 16
    cpus = np.arange(n, dtype=np.uint32) % 3 if next(feed, 0) & 1 else np.zeros(n, np.uint32)
    pages = np.zeros((n, 4096), np.uint8)
    pages[:, 0x390 : 0x390 + 16] = np.frombuffer(data[: 16 * n], np.uint8).reshape(n, 16)
    pages[:, 0x3F0:0x400] = 0xFF
    h.vcpus["registered_gpa"] = 0x1000
    for call in (
        lambda: h.page_batch(cpus, pages, np.full(n, 0x1000, np.uint64)),
        lambda: h.msr_batch(cpus, np.frombuffer(data[: 8 * n], np.uint64)),
        lambda: h.call(next(feed, 0) % 3, next(feed, 0) % 10),
    ):
        with contextlib.suppress(errors.SevError):
            call()


TARGETS = (trace, codecs, host)


def one_input(data):
    if len(data) > 1:
        TARGETS[data[0] % len(TARGETS)](data[1:])


if __name__ == "__main__":
    sys.exit(fuzzdriver.run(sys.argv, one_input))
