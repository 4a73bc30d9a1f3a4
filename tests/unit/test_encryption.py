"""Encryption of memory content: published vectors, what others read, and what is refused."""

import re

import numpy as np
import pytest

from ghcbcore._cffi import lib
from ghcbcore.controller import Controller
from ghcbcore.encryption import PUBLISHED_TWEAKS, Cipher, random_tweaks
from ghcbcore.errors import OutOfRange, StateConflict, Unaligned

KEY = bytes(range(16))
ZEROS, LETTERS = bytes(16), bytes(range(0x20, 0x30))
SME, IOMMU = lib.GHCB_KEY_SLOT_SME, lib.GHCB_KEY_SLOT_IOMMU
PAGE = lib.GHCB_PAGE_SIZE

VECTORS = [
    (0, ZEROS, "c6a13b37878f5b826f4f8162a1c8d879", "c6a13b37878f5b826f4f8162a1c8d879"),
    (0x40, ZEROS, "e220bccf42d57cc061a6ef6f47cb5514", "a220bcd702d57cd821a6ef7707cb550c"),
    (0x40, LETTERS, "d03423092cf6a123c42c968b2e5ed9da", "903423116cf6a13b842c96936e5ed9c2"),
    (0x12345670, ZEROS, "d52d4e16d5d81bd7a489a618c1e40be6", "316b2fc3319e7a0240cfc7cd25a26a33"),
    (0x12345670, LETTERS, "8288eddf71c038e16407f424aa06caf1", "66ce8c0a95865934804195f14e40ab24"),
]
# FIPS 197, appendix C
FIPS_PLAIN = bytes.fromhex("00112233445566778899aabbccddeeff")
FIPS_128 = "69c4e0d86a7b0430d8cdb78070b4c55a"
FIPS_256 = "8ea2b7ca516745bfeafc49904b496089"
# IEEE 1619, vectors 2 and 10 (the second with the key of 256 bits): unit number, two blocks or more
XTS_1 = (
    "11" * 16 + "22" * 16,
    0x3333333333,
    "44" * 32,
    "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
)


def paths_here():
    found = []
    for path in range(lib.GHCB_AES_N_PATHS):
        try:
            Cipher("xe", KEY, _path=path)
        except OutOfRange:
            break
        found.append(path)
    return found


every_path = pytest.mark.parametrize("path", paths_here())
every_mode = pytest.mark.parametrize(("mode", "n_key"), [("xe", 16), ("xex", 16), ("xts", 64)])


def text(array):
    return bytes(array).hex()


def content(n_bytes, seed=1):
    return np.random.default_rng(seed).integers(256, size=n_bytes, dtype=np.uint8)


# ---- vectors


@every_path
@pytest.mark.parametrize(("spa", "plain", "xe", "xex"), VECTORS)
def test_published_constructions_give_the_published_ciphertext(spa, plain, xe, xex, path):
    for mode, wanted in (("xe", xe), ("xex", xex)):
        cipher = Cipher(mode, KEY, _path=path)
        assert text(cipher.encrypt(plain, spa)) == wanted
        assert bytes(cipher.decrypt(bytes.fromhex(wanted), spa)) == plain


@pytest.mark.parametrize(
    ("spa", "wanted"),
    [(0x30, "6e2c3fa4"), (0x1000, "b09230c2"), (0x12345670, "e44661d5"), (0xFFFFFFF0, "ecd0d382")],
)
def test_t_is_the_sum_of_the_constants_of_the_set_bits(spa, wanted):
    assert Cipher("xe", KEY).tweak(spa).hex() == wanted * 4


def test_the_published_constants_are_linearly_independent():
    assert PUBLISHED_TWEAKS.shape == (28, 16)
    assert not PUBLISHED_TWEAKS.flags.writeable
    rows = [int.from_bytes(bytes(row), "big") for row in PUBLISHED_TWEAKS]
    rank = 0
    while rows:
        pivot = rows.pop()
        if pivot:
            rank += 1
            low = pivot & -pivot
            rows = [row ^ pivot if row & low else row for row in rows]
    assert rank == 28


def test_the_published_constants_repeat_every_four_bytes_and_random_ones_do_not():
    assert all(bytes(row) == bytes(row[:4]) * 4 for row in PUBLISHED_TWEAKS)
    drawn = random_tweaks(1)
    assert drawn.shape == (48, 16)
    assert not any(bytes(row) == bytes(row[:4]) * 4 for row in drawn)
    assert len({bytes(row) for row in np.concatenate([drawn, random_tweaks(2)])}) == 96


@every_path
def test_without_constants_a_block_is_aes_as_fips_197_has_it(path):
    none = np.empty((0, 16), np.uint8)
    cipher = Cipher("xex", KEY, none, _path=path)
    data = FIPS_PLAIN * 41
    assert text(cipher.encrypt(data, 0x30)) == FIPS_128 * 41
    assert bytes(cipher.decrypt(bytes.fromhex(FIPS_128 * 41), 0x30)) == data


@every_path
def test_aes_256_is_that_of_fips_197(path):
    # XTS with a tweak key whose tweak is known: E(m ^ x) ^ x, so hand it m ^ x
    key = bytes(range(32)) + bytes(32)
    tweak = bytes.fromhex("dc95c078a2408989ad48a21492842087")  # AES-256 of zeros under zeros
    cipher = Cipher("xts", key, _path=path)
    given = bytes(a ^ b for a, b in zip(FIPS_PLAIN, tweak, strict=True))
    got = bytes(a ^ b for a, b in zip(bytes(cipher.encrypt(given, 0)), tweak, strict=True))
    assert got.hex() == FIPS_256


@every_path
def test_xts_is_that_of_ieee_1619(path):
    key, number, plain, wanted = XTS_1
    cipher = Cipher("xts", bytes.fromhex(key), unit_bytes=32, _path=path)
    assert text(cipher.encrypt(bytes.fromhex(plain), number * 32)) == wanted


# ---- moved, read with another key


def test_moved_xe_content_changes_by_a_known_vector():
    cipher = Cipher("xe", KEY)
    moved = cipher.moved(LETTERS, 0x40, 0x1000)
    assert text(moved) == "d0b312f9d4b716fdd8bb1af1dcbf1ef5"
    vector = bytes(a ^ b for a, b in zip(LETTERS, bytes(moved), strict=True))
    assert vector == cipher.tweak(0x40 ^ 0x1000)


def test_moved_xex_content_is_noise_unless_the_ciphertext_is_corrected():
    cipher = Cipher("xex", KEY)
    assert bytes(cipher.moved(LETTERS, 0x40, 0x1000)) != LETTERS
    vector = np.frombuffer(cipher.tweak(0x40 ^ 0x1000), np.uint8)
    noise = cipher.moved(LETTERS, 0x40, 0x1000) ^ np.frombuffer(LETTERS, np.uint8)
    assert bytes(noise) != bytes(vector)
    corrected = cipher.encrypt(LETTERS, 0x40) ^ vector
    read = cipher.decrypt(corrected, 0x1000)
    assert bytes(read ^ vector) == LETTERS


def test_moved_to_where_it_was_is_unchanged():
    for mode, n_key in (("xe", 16), ("xex", 16), ("xts", 32)):
        assert bytes(Cipher(mode, bytes(n_key)).moved(LETTERS, 0x40, 0x40)) == LETTERS


def test_another_key_reads_deterministic_noise():
    block = Cipher("xex", KEY).encrypt(LETTERS, 0x40)
    other = Cipher("xex", bytes(range(16, 32)))
    assert text(other.decrypt(block, 0x40)) == "621e9e4ea06220be7bffd98d827af338"


@every_mode
def test_equal_content_shows_at_one_place_and_not_at_two(mode, n_key):
    cipher = Cipher(mode, bytes(range(n_key)))
    page = np.zeros(PAGE, np.uint8)
    first = cipher.encrypt(page, 0x5000)
    assert np.array_equal(first, cipher.encrypt(page, 0x5000))
    assert len({bytes(block) for block in first.reshape(-1, 16)}) == PAGE // 16
    assert not np.array_equal(first, cipher.encrypt(page, 0x6000))


@every_mode
def test_one_changed_byte_changes_one_block(mode, n_key):
    cipher = Cipher(mode, bytes(range(n_key)))
    page = content(PAGE)
    changed = page.copy()
    changed[1000] ^= 1
    differs = (cipher.encrypt(page, 0) != cipher.encrypt(changed, 0)).reshape(-1, 16).any(axis=1)
    assert list(np.flatnonzero(differs)) == [1000 // 16]


# ---- controller


def test_each_domain_reads_what_it_wrote_and_noise_of_others():
    controller = Controller("xex", 4, seed=7)
    controller.install(1)
    controller.install(2)
    data = content(256)
    seen = {r: bytes(controller.seen(data, 0x7000, 1, r)) for r in (0, 1, 2, SME, IOMMU)}
    assert seen[1] == bytes(data)
    assert seen[0] == bytes(controller.encrypt(data, 0x7000, 1))
    assert len(set(seen.values())) == 5


def test_domain_0_is_plaintext():
    controller = Controller("xts", 1, seed=7)
    data = content(64)
    assert np.array_equal(controller.encrypt(data, 0, 0), data)
    assert controller.decrypt(data, 0, 0, data) is data


def test_seen_after_a_move_is_what_the_cipher_says():
    controller = Controller("xe", 2, seed=1)
    controller.install(1)
    data = content(128)
    got = controller.seen(data, 0x40, 1, 1, new_spa=0x1000)
    assert np.array_equal(got, controller.cipher(1).moved(data, 0x40, 0x1000))
    assert not np.array_equal(got, data)


def test_a_new_key_makes_old_content_noise():
    controller = Controller("xex", 1, seed=1)
    controller.install(1)
    dram = controller.encrypt(LETTERS, 0, 1)
    controller.deactivate(1)
    assert not controller.is_active(1)
    assert bytes(controller.decrypt(dram, 0, 1)) == LETTERS  # the key stays
    controller.install(1)
    assert controller.is_active(1)
    assert bytes(controller.decrypt(dram, 0, 1)) != LETTERS


def test_zero_all_gives_every_asid_the_zero_key_and_leaves_the_host_its_own():
    controller = Controller("xex", 3, seed=1, n_channels=2)
    controller.install(2)
    host = controller.encrypt(LETTERS, 0, SME)
    controller.zero_all()
    zero = Cipher("xex", bytes(16))
    data = content(3 * PAGE)
    for asid in (1, 2, 3):
        assert not controller.is_active(asid)
        assert np.array_equal(controller.encrypt(data, PAGE, asid), zero.encrypt(data, PAGE))
    assert np.array_equal(controller.encrypt(LETTERS, 0, SME), host)
    assert controller.is_active(SME) and controller.is_active(IOMMU)


def test_a_key_of_the_callers_is_used_as_it_is():
    controller = Controller("xex", 3, seed=1)
    controller.install(1, KEY)
    assert text(controller.encrypt(LETTERS, 0x40, 1)) == VECTORS[2][3]


def test_same_seed_same_keys_another_seed_others():
    def of(seed, slot):
        controller = Controller("xex", 1006, seed)
        controller.install(slot)
        return bytes(controller.encrypt(ZEROS, 0, slot))

    assert of(1, 66) == of(1, 66)
    assert (
        len({of(seed, slot) for seed in (1, 2, 1 << 127) for slot in (1, 2, 256 + 66, 1006)}) == 12
    )


def test_zen_2_constants_belong_to_the_boot():
    first, second = (Controller("xex", 1, 1, tweaks=random_tweaks(boot)) for boot in (1, 2))
    for controller in (first, second):
        controller.install(1, KEY)
    assert bytes(first.encrypt(ZEROS, 0x40, 1)) != bytes(second.encrypt(ZEROS, 0x40, 1))
    assert first.cipher(1).tweak(0x30) == bytes(random_tweaks(1)[0] ^ random_tweaks(1)[1])


# ---- hiding


def test_hidden_ciphertext_reads_as_ones_in_snp_pages_only():
    controller = Controller("xex", 2, seed=1)
    controller.install(1)
    spa, is_snp = 3 * PAGE - 64, np.array([True, False, True])
    dram = controller.encrypt(content(64 + PAGE + 32), spa, 1)
    assert np.array_equal(controller.host_reads(dram, spa, is_snp), dram)
    controller.hides_ciphertext = True
    got = controller.host_reads(dram, spa, is_snp)
    assert (got[:64] == 0xFF).all() and (got[64 + PAGE :] == 0xFF).all()
    assert np.array_equal(got[64 : 64 + PAGE], dram[64 : 64 + PAGE])
    with_c_bit = controller.host_reads(dram, spa, is_snp, domain=SME)
    assert (with_c_bit[:64] == 0xFF).all()
    noise = controller.decrypt(dram, spa, SME)
    assert np.array_equal(with_c_bit[64 : 64 + PAGE], noise[64 : 64 + PAGE])
    assert controller.host_reads(dram, spa, is_snp, dram) is dram
    assert np.array_equal(dram, got)


def test_hiding_changes_no_guest():
    controller = Controller("xex", 2, seed=1)
    controller.hides_ciphertext = True
    controller.install(1)
    assert bytes(controller.seen(LETTERS, 0, 1, 1)) == LETTERS


@pytest.mark.parametrize(
    "is_snp",
    [np.array([True]), np.array([True] * 3), np.array([1, 0], np.uint8), np.array([[True, False]])],
    ids=str,
)
def test_another_number_or_kind_of_pages_is_refused(is_snp):
    controller = Controller("xex", 2, seed=1)
    out = np.zeros(32, np.uint8)
    with pytest.raises(ValueError, match=r"is_snp: .* must be bool \(2,\)"):
        controller.host_reads(bytes(32), PAGE - 16, is_snp, out)
    assert not out.any()


def test_a_guest_is_not_the_host():
    controller = Controller("xex", 2, seed=1)
    controller.install(1)
    with pytest.raises(OutOfRange, match=r"domain = 1 is not the host's"):
        controller.host_reads(bytes(16), 0, np.array([False]), domain=1)


# ---- refused


@pytest.mark.parametrize(
    ("n", "spa", "error", "said"),
    [
        (16, 8, Unaligned, "spa = 0x8 is no multiple of 16"),
        (17, 0, Unaligned, "data: 0x11 bytes are no multiple of 16"),
        (16, 1 << 52, OutOfRange, "spa = 0x10000000000000, 0x10 bytes: not within 52 bits"),
        (32, (1 << 52) - 16, OutOfRange, "spa = 0xffffffffffff0, 0x20 bytes"),
        (16, 2**64, OutOfRange, "spa = 0x10000000000000000"),
        (16, -16, OutOfRange, "spa = -0x10"),
        (16, 16.0, TypeError, "spa is float, not an integer"),
        (16, True, TypeError, "spa is bool, not an integer"),
    ],
)
@pytest.mark.parametrize("method", ["encrypt", "decrypt"])
def test_a_bad_place_is_refused_and_nothing_written(n, spa, error, said, method):
    cipher, out = Cipher("xex", KEY), np.zeros(n, np.uint8)
    with pytest.raises(error, match=re.escape(said)):
        getattr(cipher, method)(bytes(n), spa, out)
    assert not out.any()


def test_the_last_block_of_the_address_space_has_room():
    for mode, n_key in (("xex", 16), ("xts", 64)):
        cipher = Cipher(mode, bytes(n_key))
        data = content(1024)
        place = (1 << 52) - 1024
        assert np.array_equal(cipher.decrypt(cipher.encrypt(data, place), place), data)


@pytest.mark.parametrize("call", ["moved", "seen"])
def test_a_bad_second_place_is_refused_before_anything_is_written(call):
    data = bytearray(LETTERS)
    view = np.frombuffer(data, np.uint8)
    controller = Controller("xe", 1, seed=1)
    with pytest.raises(Unaligned, match="new_spa = 0x44"):
        if call == "moved":
            controller.cipher(SME).moved(view, 0x40, 0x44, view)
        else:
            controller.seen(view, 0x40, 0, SME, view, new_spa=0x44)
    assert data == LETTERS


@pytest.mark.parametrize(
    ("data", "out", "said"),
    [
        (np.zeros(4, np.uint32), None, "mismatch"),
        (np.zeros((2, 16), np.uint8), None, "dimensions"),
        (np.zeros(64, np.uint8)[::2], None, "contiguous"),
        (bytes(16), np.zeros(4, np.uint32), "mismatch"),
        (bytes(16), np.zeros(32, np.uint8), "out has 32 bytes, data has 16"),
        (bytes(16), bytes(16), "read-only|not writable"),
        (bytes(16), np.zeros(32, np.uint8)[::2], "contiguous"),
    ],
    ids=str,
)
def test_another_dtype_layout_or_length_is_refused(data, out, said):
    with pytest.raises((ValueError, BufferError), match=said):
        Cipher("xex", KEY).encrypt(data, 0, out)


def test_a_read_only_array_is_good_to_read_and_refused_to_write():
    data = content(64)
    data.setflags(write=False)
    cipher = Cipher("xex", KEY)
    assert len(cipher.encrypt(data, 0)) == 64
    with pytest.raises(ValueError, match="read-only"):
        cipher.encrypt(data, 0, data)


def test_nothing_is_encrypted_to_nothing():
    for mode, n_key in (("xe", 16), ("xts", 32)):
        assert Cipher(mode, bytes(n_key)).encrypt(b"", 0x40).shape == (0,)
    controller = Controller("xex", 1, seed=0)
    controller.hides_ciphertext = True
    assert controller.host_reads(b"", 0x40, np.zeros(0, bool)).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        (("cbc", KEY), {}, ValueError, "mode 'cbc': must be one of 'xe', 'xex', 'xts'"),
        (("xex", bytes(32)), {}, ValueError, "key has 32 bytes; 'xex' takes 16"),
        (("xts", bytes(48)), {}, ValueError, "key has 48 bytes; 'xts' takes 32 or 64"),
        (("xts", b""), {}, ValueError, "key has 0 bytes"),
        (("xex", None), {}, TypeError, "key is None"),
        (("xts", bytes(64), random_tweaks(1)), {}, ValueError, "tweaks: 'xts' has none"),
        (("xex", KEY, np.zeros((49, 16), np.uint8)), {}, ValueError, r"shape \(49, 16\)"),
        (("xex", KEY, np.zeros((4, 15), np.uint8)), {}, ValueError, r"shape \(4, 15\)"),
        (("xts", bytes(64)), {"unit_bytes": 8}, OutOfRange, "unit_bytes = 8"),
        (("xts", bytes(64)), {"unit_bytes": 96}, OutOfRange, "unit_bytes = 96"),
        (("xts", bytes(64)), {"unit_bytes": 8192}, OutOfRange, "unit_bytes = 8192"),
        (("xex", KEY), {"n_channels": 0}, OutOfRange, "n_channels = 0"),
        (("xex", KEY), {"n_channels": 3}, OutOfRange, "n_channels = 3"),
        (("xex", KEY), {"channel_bytes": 32}, OutOfRange, "channel_bytes = 32"),
        (("xex", KEY), {"_path": 99}, OutOfRange, "_path = 99"),
    ],
    ids=str,
)
def test_a_bad_cipher_is_refused_by_name(arguments, options, error, said):
    with pytest.raises(error, match=said):
        Cipher(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        (("xex", 0, 1), {}, OutOfRange, "n_asids = 0: 1 to 1006"),
        (("xex", 1007, 1), {}, OutOfRange, "n_asids = 1007"),
        (("xex", 4, -1), {}, OutOfRange, "seed = -0x1"),
        (("xex", 4, 1 << 128), {}, OutOfRange, "does not fit 128 bits"),
        (("xex", 4, "1"), {}, TypeError, "seed is str"),
        (("xex", 4, 1), {"key_bytes": 32}, OutOfRange, "key_bytes = 32: 'xex'"),
        (("xts", 4, 1), {"key_bytes": 48}, OutOfRange, "key_bytes = 48"),
        (("xts", 4, 1), {"tweaks": random_tweaks(1)}, ValueError, "tweaks: 'xts' has none"),
        (("xex", 4, 1), {"n_channels": 5}, OutOfRange, "n_channels = 5"),
    ],
    ids=str,
)
def test_a_bad_controller_is_refused_by_name(arguments, options, error, said):
    with pytest.raises(error, match=said):
        Controller(*arguments, **options)


@pytest.mark.parametrize("domain", [5, 1007, 1016, 1022, 1024, -1, 2**32 + 1])
def test_a_slot_that_is_not_there_is_refused(domain):
    controller = Controller("xex", 4, seed=1)
    for call in (
        lambda: controller.install(domain),
        lambda: controller.deactivate(domain),
        lambda: controller.is_active(domain),
        lambda: controller.cipher(domain),
        lambda: controller.encrypt(bytes(16), 0, domain),
        lambda: controller.decrypt(bytes(16), 0, domain),
        lambda: controller.seen(bytes(16), 0, 0, domain),
    ):
        with pytest.raises(OutOfRange, match=f"domain = {domain}: neither an ASID"):
            call()


def test_an_asid_without_a_key_is_refused():
    controller = Controller("xex", 4, seed=1)
    with pytest.raises(StateConflict, match="domain = 3: no key was installed"):
        controller.encrypt(bytes(16), 0, 3)
    with pytest.raises(StateConflict, match="domain = 3 is not active"):
        controller.deactivate(3)
    with pytest.raises(OutOfRange, match="domain = 0: this slot has no key"):
        controller.install(0)
    with pytest.raises(ValueError, match="key has 15 bytes; keys here have 16"):
        controller.install(3, bytes(15))
    assert not controller.is_active(3)
