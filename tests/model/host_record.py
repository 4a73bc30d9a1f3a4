"""Histories of a ``Pair`` written down, so that ``host_driver.c`` can replay them.

A recorded pair compared the core with the oracle at every step. A driver of unchanged headers does
what the core did; one of changed headers that comes to another checksum differs from the oracle.
"""

import struct
from random import Random

from host_pair import CALLS, KINDS, MEMORY, MEMORY_END, Pair, World

from ghcbcore._cffi import lib
from ghcbcore.host import VCPU_DTYPE

MASK = 2**64 - 1


def mix(seed, n):
    """The word that ``ghcb_fault_word`` has: splitmix64."""
    z = seed + (n + 1) * 0x9E37_79B9_7F4A_7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58_476D_1CE4_E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D0_49BB_1331_11EB & MASK
    return z ^ z >> 31


class DriverWorld(World):
    """A world whose answers the driver can compute."""

    def __init__(self, seed, kinds):
        super().__init__(seed, kinds)
        page = bytearray(Random(seed).randbytes(4096))
        page[0x34] = 5 if seed % 2 else 1  # a message that asks for a report, or another
        self.page = bytes(page)
        self.bytes = bytearray(self.page * ((MEMORY_END - MEMORY) // 4096))

    def answer(self, n_bytes):
        self.n_answers += 1
        first, result, second = (mix(self.seed, 3 * self.n_answers + i) for i in range(3))
        if first % 4 == 0:
            return None
        pattern = result.to_bytes(8, "little")
        return (pattern * (n_bytes // 8 + 1))[:n_bytes], result, second


def words(*values):
    return struct.pack(f"<{len(values)}Q", *values)


class Recorded(Pair):
    """A pair that writes down what is done to it."""

    world = DriverWorld

    def __init__(self, guest, n, *, kinds=None, seed=0, cpuid=(), **more):
        self.record = bytearray()
        super().__init__(guest, n, kinds=kinds, seed=seed, cpuid=cpuid, **more)
        p = self.description
        codes = [code for name in ("msr", "nae") for code in (len(p[name]), *p[name])]
        bits = sum(1 << KINDS[kind] for kind in kinds or () if kind != "memory")
        bits |= (1 << lib.GHCB_ACCESS_END) if kinds and "memory" in kinds else 0
        page = self.ours_world.page if self.ours_world else bytes(4096)
        self.record += words(n, p["guest"], p["max_version"], p["sev_features"], p["rules"], *codes)
        self.record += words(len(cpuid), seed, bits) + page
        self.record += b"".join(struct.pack("<6I", *entry) for entry in cpuid)
        self.record += self.host.vcpus.tobytes() + words(int(kinds is not None))

    def msr(self, cpu, value):
        super().msr(cpu, value)  # writes down what the guest's role does first
        self.record += words(0, cpu, value, 0)

    def page(self, cpu, content, gpa):
        request = bytes(content)
        answer = super().page(cpu, content, gpa)
        self.record += words(1, cpu, gpa, 0) + request
        return answer

    def call(self, cpu, what):
        super().call(cpu, what)
        self.record += words(2, cpu, CALLS[what], 0)

    def write(self, cpu, **fields):
        super().write(cpu, **fields)
        for name in fields:
            value = int(self.host.vcpus[name][cpu])
            self.record += words(3, cpu, VCPU_DTYPE.names.index(name), value)

    def put(self, gpa, data):
        super().put(gpa, data)
        for at in range(0, len(data), 8):
            self.record += words(
                5, 0, gpa + at - MEMORY, int.from_bytes(data[at : at + 8], "little")
            )

    def go_on(self):
        super().go_on()
        self.record += words(4, 0, 0, 0)

    def written(self):
        return bytes(self.record) + words(9)


def file_of(pairs):
    return words(len(pairs)) + b"".join(pair.written() for pair in pairs)
