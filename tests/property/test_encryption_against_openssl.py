"""Encryption of memory agrees with OpenSSL's AES on every path, at any place and length."""

from concurrent.futures import ThreadPoolExecutor

import cipher_oracle as oracle
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher as OpenSsl
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from ghcbcore._cffi import lib
from ghcbcore.controller import Controller
from ghcbcore.encryption import PUBLISHED_TWEAKS, Cipher, random_tweaks
from ghcbcore.errors import OutOfRange


def paths_here() -> list[int]:
    """Return the paths that this machine can go; a better one than it has is refused."""
    found = []
    for path in range(lib.GHCB_AES_N_PATHS):
        try:
            Cipher("xe", bytes(16), _path=path)
        except OutOfRange:
            break
        found.append(path)
    return found


PATHS = paths_here()
KINDS = [("xe", 16), ("xex", 16), ("xts", 32), ("xts", 64)]
every_path = pytest.mark.parametrize("path", PATHS)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)

KEYS = st.binary(min_size=64, max_size=64)
# Near each power of two a carry runs through the address; near the end there is none left.
PLACES = st.one_of(
    st.integers(0, 2**48),
    st.builds(
        lambda bit, back: max(0, (1 << bit) - 16 * back), st.integers(4, 51), st.integers(0, 70)
    ),
    st.integers(2**52 - 8192, 2**52 - 2048),
).map(lambda spa: spa & ~15)
N_BLOCKS = st.one_of(st.integers(0, 9), st.integers(30, 70), st.sampled_from([96, 127, 128]))


def content(n_bytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=n_bytes, dtype=np.uint8)


def at_offset(data: np.ndarray, offset: int) -> np.ndarray:
    """Return a copy of the bytes that begins `offset` bytes after a multiple of 64."""
    room = np.empty(len(data) + 128 + offset, np.uint8)
    first = -room.ctypes.data % 64 + offset
    copy = room[first : first + len(data)]
    copy[:] = data
    return copy


def test_the_first_path_is_there_on_every_machine():
    assert PATHS[0] == lib.GHCB_AES_PATH_PORTABLE


@every_path
@every_kind
@given(key=KEYS, spa=PLACES, n=N_BLOCKS, seed=st.integers(0, 99))
@settings(max_examples=40)
def test_any_place_and_length_encrypts_as_the_oracle_says(kind, path, key, spa, n, seed):
    mode, key = kind[0], key[: kind[1]]
    n = min(n, (2**52 - spa) // 16)
    data = content(16 * n, seed)
    cipher = Cipher(mode, key, _path=path)
    got = cipher.encrypt(data, spa)
    assert got.tobytes() == oracle.crypt(mode, key, data.tobytes(), spa)
    assert cipher.decrypt(got, spa).tobytes() == data.tobytes()
    assert cipher.decrypt(data, spa).tobytes() == oracle.crypt(
        mode, key, data.tobytes(), spa, decrypt=True
    )


@every_path
@pytest.mark.parametrize("unit_bytes", [16, 32, 64, 128, 512, 2048, 4096])
@given(key=KEYS, spa=PLACES, n=N_BLOCKS)
@settings(max_examples=10)
def test_units_of_any_size_encrypt_as_the_oracle_says(unit_bytes, path, key, spa, n):
    n = min(n, (2**52 - spa) // 16)
    data = content(16 * n)
    cipher = Cipher("xts", key, unit_bytes=unit_bytes, _path=path)
    assert cipher.encrypt(data, spa).tobytes() == oracle.crypt(
        "xts", key, data.tobytes(), spa, unit_bytes=unit_bytes
    )


@every_path
@pytest.mark.parametrize("unit_bytes", [16, 64, 4096])
@pytest.mark.parametrize("n_key", [32, 64])
@given(key=KEYS, first=st.integers(0, 2**39), n_units=st.integers(1, 5))
@settings(max_examples=20)
def test_whole_units_are_what_openssl_makes_of_them(unit_bytes, n_key, path, key, first, n_units):
    key = key[:n_key]
    if key[: n_key // 2] == key[n_key // 2 :]:
        return  # OpenSSL refuses these
    data = content(unit_bytes * n_units)
    wanted = b""
    for i in range(n_units):
        number = (first + i).to_bytes(16, "little")
        side = OpenSsl(algorithms.AES(key), modes.XTS(number)).encryptor()
        wanted += side.update(data[i * unit_bytes : (i + 1) * unit_bytes].tobytes())
    cipher = Cipher("xts", key, unit_bytes=unit_bytes, _path=path)
    assert cipher.encrypt(data, first * unit_bytes).tobytes() == wanted


@every_path
@given(key=KEYS, constants=st.integers(0, 2**64), n=st.integers(0, 48), spa=PLACES)
@settings(max_examples=20)
def test_constants_of_the_caller_are_used_bit_by_bit(path, key, constants, n, spa):
    given_tweaks = random_tweaks(constants)[:n]
    table = {4 + i: bytes(row) for i, row in enumerate(given_tweaks)}
    data = content(1024)
    cipher = Cipher("xex", key[:16], given_tweaks, _path=path)
    got = cipher.encrypt(data, spa).tobytes()
    assert got == oracle.crypt("xex", key[:16], data.tobytes(), spa, constants=table)
    assert cipher.tweak(spa) == oracle.tweak(spa, table)


@given(spa=PLACES, other=PLACES)
def test_t_is_the_oracles_and_linear(spa, other):
    cipher = Cipher("xe", bytes(16))
    assert cipher.tweak(spa) == oracle.tweak(spa)
    assert oracle.xor(cipher.tweak(spa), cipher.tweak(other)) == cipher.tweak(spa ^ other)


def test_the_published_constants_are_the_oracles():
    assert [bytes(row) for row in PUBLISHED_TWEAKS] == list(oracle.CONSTANTS.values())


@every_path
@every_kind
@pytest.mark.parametrize("decrypt", [False, True])
@given(offset=st.integers(0, 63), to=st.integers(0, 63), n=N_BLOCKS, spa=PLACES)
@settings(max_examples=15)
def test_any_alignment_and_in_place_give_the_same(kind, path, decrypt, offset, to, n, spa):
    cipher = Cipher(kind[0], bytes(range(kind[1])), _path=path)
    call = cipher.decrypt if decrypt else cipher.encrypt
    n = min(n, (2**52 - spa) // 16)
    data = content(16 * n)
    wanted = call(data, spa)
    source, target = at_offset(data, offset), at_offset(data, to)
    assert call(source, spa, target) is target
    assert np.array_equal(target, wanted) and np.array_equal(source, data)
    assert call(source, spa, source) is source
    assert np.array_equal(source, wanted)


@every_kind
@pytest.mark.parametrize("decrypt", [False, True])
@given(
    to=st.integers(0, 63),
    back=st.integers(0, 600),
    n=st.integers(1, 1400),
)
@settings(max_examples=25)
def test_results_that_go_past_the_caches_are_the_same(kind, decrypt, to, back, n):
    key, spa = bytes(range(kind[1])), (1 << 30) - 16 * back
    data = content(16 * n)
    room = np.full(16 * n + 256, 0x5A, np.uint8)
    first = -room.ctypes.data % 64 + to
    out = room[first : first + 16 * n]
    once, never = (Cipher(kind[0], key, _stream_from=limit) for limit in (1, 1 << 40))
    wanted = (never.decrypt if decrypt else never.encrypt)(data, spa)
    (once.decrypt if decrypt else once.encrypt)(data, spa, out)
    assert np.array_equal(out, wanted)
    assert (room[:first] == 0x5A).all() and (room[first + 16 * n :] == 0x5A).all()


@every_kind
@given(gap=st.integers(-600, 600), n=st.integers(1, 40))
def test_another_overlap_is_refused_and_nothing_written(kind, gap, n):
    cipher = Cipher(kind[0], bytes(kind[1]))
    room = content(16 * n + 1300)
    before = room.copy()
    data, out = room[600 : 600 + 16 * n], room[600 + gap : 600 + gap + 16 * n]
    if gap and abs(gap) < 16 * n:
        with pytest.raises(ValueError, match="out overlaps data"):
            cipher.encrypt(data, 0, out)
        assert np.array_equal(room, before)
    else:
        wanted = cipher.encrypt(data.copy(), 0)
        assert np.array_equal(cipher.encrypt(data, 0, out), wanted)


@every_path
@every_kind
def test_all_paths_agree_on_a_large_buffer(kind, path):
    data = content(1 << 20)
    first = Cipher(kind[0], bytes(range(kind[1])), _path=lib.GHCB_AES_PATH_PORTABLE)
    this = Cipher(kind[0], bytes(range(kind[1])), _path=path)
    spa = 2**40 - (1 << 19) + 16
    assert np.array_equal(this.encrypt(data, spa), first.encrypt(data, spa))


@every_path
@every_kind
@given(
    key=KEYS, spa=PLACES, n=N_BLOCKS, log_channels=st.integers(1, 4), log_bytes=st.integers(6, 12)
)
@settings(max_examples=10)
def test_channels_have_keys_of_their_own(kind, path, key, spa, n, log_channels, log_bytes):
    mode, key = kind[0], key[: kind[1]]
    n = min(n, (2**52 - spa) // 16)
    shape = {"n_channels": 1 << log_channels, "channel_bytes": 1 << log_bytes}
    data = content(16 * n)
    got = Cipher(mode, key, **shape, _path=path).encrypt(data, spa)
    assert got.tobytes() == oracle.crypt(mode, key, data.tobytes(), spa, **shape)


@given(seed=st.integers(0, 2**128 - 1), slot=st.integers(1, 1006), times=st.integers(0, 3))
@settings(max_examples=30)
def test_keys_and_constants_follow_from_the_seed(seed, slot, times):
    controller = Controller("xts", 1006, seed)
    for _ in range(times + 1):
        controller.install(slot)
    key = oracle.drawn(seed, 0, slot, times, 64)
    data = content(256)
    assert controller.encrypt(data, 0x1000, slot).tobytes() == oracle.crypt(
        "xts", key, data.tobytes(), 0x1000
    )
    assert random_tweaks(seed)[7].tobytes() == oracle.drawn(seed, 1, 7, 0, 16)


@every_path
def test_two_threads_with_one_cipher_get_what_one_gets(path):
    cipher = Cipher("xex", bytes(range(16)), n_channels=4, _path=path)
    data = content(1 << 18)
    wanted = [cipher.encrypt(data, i << 20) for i in range(8)]
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda i: cipher.encrypt(data, i << 20), list(range(8)) * 4))
    assert all(np.array_equal(block, wanted[i % 8]) for i, block in enumerate(got))


def test_a_thread_that_installs_never_gives_another_a_key_of_two_halves():
    controller = Controller("xex", 1, seed=5)
    keys = [bytes([i]) * 16 for i in range(4)]
    data = content(1 << 16)
    possible = {Cipher("xex", key).encrypt(data, 0).tobytes() for key in keys}
    controller.install(1, keys[0])

    def install():
        for i in range(400):
            controller.install(1, keys[i % 4])

    with ThreadPoolExecutor(2) as pool:
        busy = pool.submit(install)
        seen = {controller.encrypt(data, 0, 1).tobytes() for _ in range(200)}
        busy.result()
    assert seen <= possible
