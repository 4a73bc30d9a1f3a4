"""Encrypt memory content by address, beside OpenSSL's AES-XTS and a plain copy.

XEX with AES-128 stands beside AES-128-XTS, and XTS with AES-256 beside AES-256-XTS: as many rounds
of AES for each block of content, and other work around it. OpenSSL encrypts the number of a data
unit once and makes each block's tweak of the one before; its units here are as large as it allows
(16 MiB). XEX makes each tweak of the address. Ours in XTS encrypts a number for each line of 64
bytes: a quarter more AES. OpenSSL is that of ``cryptography``, with its keys set up beforehand.

"Copying" moves the same bytes by numpy: the price of the memory bus where nothing is computed.
Large results of ours go past the caches, so a ratio above 1 is possible. In place, each line is
fetched once and written back once, and nothing else is.

Sizes: 64 bytes (a line); 64 KiB (in the cache); 64 MiB and 1 GiB (in memory).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from beside import OURS
from cryptography.hazmat.primitives.ciphers import Cipher as OpenSsl
from cryptography.hazmat.primitives.ciphers import algorithms, modes

from ghcbcore.encryption import Cipher

pytestmark = pytest.mark.benchmark(max_time=0.3, min_time=1e-4)

LINE, CACHED, MEMORY, LARGE = 64, 1 << 16, 1 << 26, 1 << 30
SIZES = {LINE: "64 bytes", CACHED: "64 KiB", MEMORY: "64 MiB", LARGE: "1 GiB"}
UNIT = "B"
XEX_KEY, XTS_KEY = bytes(range(16)), bytes(range(64))
LARGEST_UNIT = 16 << 20  # OpenSSL refuses more
BEHIND = 16  # `cryptography` wants room for a block behind the result

Buffers = tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any]]


@pytest.fixture(scope="module", params=SIZES, ids=SIZES.get)
def buffers(request: Any) -> Iterator[Buffers]:
    """Return n, content, and room for the result; all of it touched."""
    n = request.param
    source = np.resize(
        np.random.default_rng(1).integers(256, size=4099, dtype=np.uint8), n + BEHIND
    )
    yield n, source, np.ones(n + BEHIND, dtype=np.uint8)


def rounds(n: int) -> int | None:
    return {MEMORY: 9, LARGE: 3}.get(n)


def openssl(n_key: int) -> Callable[[Any, Any, int], None]:
    """Return what encrypts n bytes. An encryptor of XTS takes each call for the same unit again."""
    side = OpenSsl(algorithms.AES(bytes(range(n_key))), modes.XTS(bytes(16))).encryptor()

    def encrypt(source: Any, out: Any, n: int) -> None:
        for at in range(0, n, LARGEST_UNIT):
            end = min(at + LARGEST_UNIT, n)
            side.update_into(source[at:end], out[at : end + BEHIND])

    return encrypt


def _ours(timed: Any, buffers: Buffers, cipher: Cipher, work: str, *, in_place: bool) -> None:
    n, source, room = buffers
    data, out = source[:n], room[:n]
    wanted = cipher.encrypt(data[-LINE:].copy(), n - LINE)
    if in_place:
        out[:] = data
        timed(work, OURS, n, UNIT, lambda: cipher.encrypt(out, 0, out), rounds=rounds(n))
        np.copyto(out, data)
        cipher.encrypt(out, 0, out)
    else:
        timed(work, OURS, n, UNIT, lambda: cipher.encrypt(data, 0, out), rounds=rounds(n))
    assert np.array_equal(out[-LINE:], wanted)


def _openssl(timed: Any, buffers: Buffers, n_key: int, work: str, *, in_place: bool) -> None:
    n, source, room = buffers
    encrypt, who = openssl(n_key), f"OpenSSL AES-{4 * n_key}-XTS"
    if in_place:
        room[:] = source
        source = room
    timed(work, who, n, UNIT, lambda: encrypt(source, room, n), rounds=rounds(n))
    wanted = room[:LINE].copy()
    if not in_place:
        encrypt(source[:LINE], room, LINE)
        assert np.array_equal(room[:LINE], wanted)
    assert len(np.unique(wanted)) > LINE // 2


def _work(n: int, what: str) -> str:
    return f"encrypt {SIZES[n]}, {what}"


def bench_xex(timed: Any, buffers: Buffers) -> None:
    _ours(timed, buffers, Cipher("xex", XEX_KEY), _work(buffers[0], "AES-128"), in_place=False)


def bench_xex_openssl(timed: Any, buffers: Buffers) -> None:
    _openssl(timed, buffers, 32, _work(buffers[0], "AES-128"), in_place=False)


def bench_xex_memory_bus(timed: Any, buffers: Buffers) -> None:
    n, source, room = buffers
    work = _work(n, "AES-128")
    timed(work, "copying", n, UNIT, lambda: np.copyto(room, source), rounds=rounds(n))
    assert np.array_equal(room, source)


def bench_xex_in_place(timed: Any, buffers: Buffers) -> None:
    work = _work(buffers[0], "AES-128, in place")
    _ours(timed, buffers, Cipher("xex", XEX_KEY), work, in_place=True)


def bench_xex_in_place_openssl(timed: Any, buffers: Buffers) -> None:
    _openssl(timed, buffers, 32, _work(buffers[0], "AES-128, in place"), in_place=True)


def bench_xts(timed: Any, buffers: Buffers) -> None:
    _ours(timed, buffers, Cipher("xts", XTS_KEY), _work(buffers[0], "AES-256"), in_place=False)


def bench_xts_openssl(timed: Any, buffers: Buffers) -> None:
    _openssl(timed, buffers, 64, _work(buffers[0], "AES-256"), in_place=False)
