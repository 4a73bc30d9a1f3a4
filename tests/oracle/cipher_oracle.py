"""Encryption of memory the slow way: block by block, integers for blocks, OpenSSL for AES.

Written from the formulas and constants of the publications; nothing is taken from the core. XTS is
written from IEEE 1619's own words here; another test takes OpenSSL's whole XTS.
"""

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

# t_4 to t_31, four bytes each in the order of memory, as the proof of concept prints them
PUBLISHED = bytes.fromhex(
    "82253838 ec09079c 40000018 8102a23a 77d91077 b010b2c0 536d544d 1568ee53 b09230c2 9670ff8e"
    " 361b90d5 0400c236 e8182985 bd31f92a a50d3744 f431d84c 02043181 b37132a1 508ac06c 168a8020"
    " 7f9bc007 00db0407 7f000404 70fa01be bb3d2890 bd2dd526 1c5d6ce2 4f5ce727"
)
CONSTANTS = {4 + i: PUBLISHED[4 * i : 4 * i + 4] * 4 for i in range(28)}


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def aes(key: bytes, block: bytes, decrypt: bool = False) -> bytes:
    cipher = Cipher(algorithms.AES(key), modes.ECB())
    side = cipher.decryptor() if decrypt else cipher.encryptor()
    return side.update(block) + side.finalize()


def tweak(spa: int, constants: dict[int, bytes] = CONSTANTS) -> bytes:
    total = bytes(16)
    for bit, constant in constants.items():
        if spa >> bit & 1:
            total = xor(total, constant)
    return total


def times_x(value: int) -> int:
    value <<= 1
    return value ^ (1 << 128 | 0x87) if value >> 128 else value


def xts_tweak(key: bytes, spa: int, unit_bytes: int) -> bytes:
    number = (spa // unit_bytes).to_bytes(16, "little")
    value = int.from_bytes(aes(key, number), "little")
    for _ in range(spa % unit_bytes // 16):
        value = times_x(value)
    return value.to_bytes(16, "little")


def one_block(
    mode: str,
    key: bytes,
    block: bytes,
    spa: int,
    decrypt: bool,
    constants: dict[int, bytes],
    unit_bytes: int,
) -> bytes:
    if mode == "xts":
        half = len(key) // 2
        before = after = xts_tweak(key[half:], spa, unit_bytes)
        key = key[:half]
    else:
        before = after = tweak(spa, constants)
        if mode == "xe" and decrypt:
            before = bytes(16)
        elif mode == "xe":
            after = bytes(16)
    return xor(aes(key, xor(block, before), decrypt), after)


def channel_key(mode: str, seed: bytes, channel: int) -> bytes:
    """The assumption of the model: each half encrypts (channel, count)."""
    halves = [seed[: len(seed) // 2], seed[len(seed) // 2 :]] if mode == "xts" else [seed]
    numbers = [
        channel.to_bytes(8, "little") + count.to_bytes(8, "little")
        for count in range(len(halves[0]) // 16)
    ]
    return b"".join(aes(half, number) for half in halves for number in numbers)


def drawn(seed: int, sort: int, which: int, times: int, n_bytes: int) -> bytes:
    """What the model derives where a machine draws at random: 0 keys by slot, 1 tweaks by bit."""
    key = seed.to_bytes(16, "little")
    return b"".join(
        aes(key, (sort << 48 | which << 16 | i).to_bytes(8, "little") + times.to_bytes(8, "little"))
        for i in range(n_bytes // 16)
    )


def crypt(
    mode: str,
    key: bytes,
    data: bytes,
    spa: int,
    decrypt: bool = False,
    *,
    constants: dict[int, bytes] = CONSTANTS,
    unit_bytes: int = 64,
    n_channels: int = 1,
    channel_bytes: int = 4096,
) -> bytes:
    out = []
    for at in range(0, len(data), 16):
        place = spa + at
        own = key
        if n_channels > 1:
            own = channel_key(mode, key, place // channel_bytes % n_channels)
        block = data[at : at + 16]
        out.append(one_block(mode, own, block, place, decrypt, constants, unit_bytes))
    return b"".join(out)
