"""Encryption of memory content: what lies in DRAM under one key.

A memory controller encrypts each 16 bytes by themselves, with a key that the access names and a tweak
of the address. ``Cipher`` is one such key: content to ciphertext and back, in place or from array to
array. ``ghcbcore.controller`` holds the keys of a machine in their slots. Nothing here holds memory.

There is no integrity and no freshness: any bytes decrypt, and equal content at one place is equal
ciphertext. A wrong key, or a right one at the wrong address, gives noise and no error.

Modes, tweaks, and what of them is an assumption: ``ghcbcore/cipher.h``. AES: ``ghcbcore/aes.h``.

Units: ``spa`` counts bytes, without the C-bit, and is a multiple of 16, as all lengths are.

Source: SEVurity (Wilke et al. 2020) III-A, III-B, IX; Du et al. 2017; IEEE 1619.
"""

import numpy as np

from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

cimport cython
from ghcbcore cimport clib

from ghcbcore import errors as _errors

__all__ = ["PUBLISHED_TWEAKS", "Cipher", "random_tweaks"]

cdef dict _MODES = {
    "xe": clib.GHCB_CIPHER_XE, "xex": clib.GHCB_CIPHER_XEX, "xts": clib.GHCB_CIPHER_XTS
}
cdef uint32_t _BEST_PATH = clib.ghcb_aes_best_path()
cdef uint64_t _END = <uint64_t> 1 << clib.GHCB_CIPHER_ADDRESS_BITS
cdef int _MAX_TWEAKS = clib.GHCB_CIPHER_ADDRESS_BITS - clib.GHCB_CIPHER_FIRST_BIT


cdef object _published():
    constants = np.empty((clib.GHCB_CIPHER_N_PUBLISHED, clib.GHCB_AES_BLOCK), np.uint8)
    cdef uint8_t[:, ::1] view = constants
    clib.ghcb_tweaks_published(<clib.ghcb_block_t *> &view[0, 0])
    constants.setflags(write=False)
    return constants


PUBLISHED_TWEAKS = _published()


# ---- arguments


cdef object integer_of(object value, str name):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {type(value).__name__}, not an integer")
    return int(value)


cdef uint32_t mode_of(object mode) except? 99:
    if not isinstance(mode, str) or mode not in _MODES:
        raise ValueError(f"mode {mode!r}: must be one of {', '.join(map(repr, _MODES))}")
    return _MODES[mode]


cdef uint64_t place_of(object spa, str name, uint64_t n_bytes) except? 1:
    """Return an address at which n bytes have room, or raise with its name."""
    number = integer_of(spa, name)
    if number < 0 or number + n_bytes > _END:
        raise _errors.OutOfRange(
            f"{name} = {number:#x}, {n_bytes:#x} bytes: not within {clib.GHCB_CIPHER_ADDRESS_BITS} bits"
        )
    if number % clib.GHCB_AES_BLOCK:
        raise _errors.Unaligned(f"{name} = {number:#x} is no multiple of {clib.GHCB_AES_BLOCK}")
    return number


cdef uint64_t size_of(const uint8_t[::1] data) except? 1:
    cdef uint64_t n = <uint64_t> data.shape[0]
    if n % clib.GHCB_AES_BLOCK:
        raise _errors.Unaligned(f"data: {n:#x} bytes are no multiple of {clib.GHCB_AES_BLOCK}")
    return n


cdef uint64_t _power_of_two(object value, str name, uint64_t low, uint64_t high) except 0:
    number = integer_of(value, name)
    if number < low or number > high or number & (number - 1):
        raise _errors.OutOfRange(f"{name} = {number}: must be a power of two, {low} to {high}")
    return number


cdef seed_bytes(object seed, uint8_t *out):
    number = integer_of(seed, "seed")
    if number < 0 or number >> 128:
        raise _errors.OutOfRange(f"seed = {number:#x} does not fit 128 bits")
    cdef bytes text = number.to_bytes(clib.GHCB_AES_KEY_128, "little")
    memcpy(out, <const uint8_t *> text, clib.GHCB_AES_KEY_128)


cdef bint _same_place(const uint8_t[::1] data, const uint8_t[::1] out) except -1:
    """Say whether it is the same memory; refuse what overlaps, and another length."""
    cdef uintptr_t a, b, n = <uintptr_t> data.shape[0]
    if out.shape[0] != data.shape[0]:
        raise ValueError(f"out has {out.shape[0]} bytes, data has {data.shape[0]}")
    if n == 0:
        return True
    a, b = <uintptr_t> &data[0], <uintptr_t> &out[0]
    if a != b and a < b + n and b < a + n:
        raise ValueError("out overlaps data and does not begin where it does")
    return a == b


cdef object _room(const uint8_t[::1] data, object out):
    return np.empty(data.shape[0], np.uint8) if out is None else out


def random_tweaks(seed):
    """Return tweak constants as parts from Zen 2 on draw them at boot: 128 bits for each address bit.

    Parameters
    ----------
    seed : int
        Below 2**128. Equal seeds give equal constants.

    Returns
    -------
    uint8 array, shape (48, 16)
        Row i belongs to address bit i + 4.

    Raises
    ------
    OutOfRange
        ``seed`` is negative or has more than 128 bits.

    Examples
    --------
    >>> random_tweaks(1).shape, bytes(random_tweaks(1)[0, :4]).hex()
    ((48, 16), 'c1655de9')
    """
    cdef uint8_t key[16]
    cdef int i
    seed_bytes(seed, key)
    result = np.empty((_MAX_TWEAKS, clib.GHCB_AES_BLOCK), np.uint8)
    cdef uint8_t[:, ::1] view = result
    for i in range(_MAX_TWEAKS):
        clib.ghcb_cipher_draw(
            key, clib.GHCB_CIPHER_SORT_TWEAK, <uint64_t> i, 0, &view[i, 0], clib.GHCB_AES_BLOCK
        )
    return result


@cython.final
cdef class Tweaks:
    """The sums that T(p) is made of; not API."""


cdef Tweaks tweaks_of(object constants):
    cdef Tweaks tweaks = Tweaks.__new__(Tweaks)
    cdef const uint8_t[:, ::1] view = constants
    cdef size_t n = <size_t> view.shape[0]
    if view.shape[1] != clib.GHCB_AES_BLOCK or n > <size_t> _MAX_TWEAKS:
        raise ValueError(
            f"tweaks: shape ({view.shape[0]}, {view.shape[1]}); must be (n, 16), n up to {_MAX_TWEAKS}"
        )
    clib.ghcb_tweaks_init(&tweaks.c, <const clib.ghcb_block_t *> &view[0, 0] if n else NULL, n)
    return tweaks


@cython.final
cdef class Cipher:
    """Cipher(mode, key, tweaks=None, *, unit_bytes=64, n_channels=1, channel_bytes=4096)\n--\n
    One key in one mode. It never changes; any number of threads may use it at once.

    Parameters
    ----------
    mode : "xe", "xex" or "xts"
        AES-128 with T(p) before, or before and after; AES-XTS with encrypted addresses.
    key : bytes
        16 for ``"xe"`` and ``"xex"``; 32 (AES-128) or 64 (AES-256) for ``"xts"``, the data's key
        first. Halves of ``"xts"`` may be equal: firmware writes zero keys.
    tweaks : uint8 array, shape (n, 16), C-contiguous, optional
        The constant of address bit i + 4 in row i, n up to 48; bits above have none. Without it
        ``PUBLISHED_TWEAKS``. Copied. ``"xts"`` has none.
    unit_bytes : int, optional
        Of ``"xts"``: the size of the units whose number is encrypted, a power of two from 16
        to 4096. No source has it.
    n_channels : int, optional
        Memory channels, a power of two up to 64. With more than one, ``key`` is a seed of which each
        channel's key is derived, in a way that is an assumption (``cipher.h``).
    channel_bytes : int, optional
        So many bytes belong to a channel before the next follows; a power of two, 64 to 2**30.

    Attributes
    ----------
    mode, unit_bytes, n_channels, channel_bytes
        As given.

    Raises
    ------
    ValueError
        ``mode``, the length of ``key``, the shape of ``tweaks``, or tweaks for ``"xts"``.
    OutOfRange
        One of the numbers.

    Examples
    --------
    >>> cipher = Cipher("xex", bytes(range(16)))
    >>> bytes(cipher.encrypt(bytes(16), 0x40)).hex()
    'a220bcd702d57cd821a6ef7707cb550c'
    """

    def __cinit__(
        self, mode, key, tweaks=None, *, unit_bytes=1 << clib.GHCB_CIPHER_UNIT_SHIFT, n_channels=1,
        channel_bytes=4096, _path=None, _stream_from=None,
    ):
        if key is None:
            raise TypeError("key is None, not bytes")
        cdef uint32_t number = mode_of(mode)
        cdef const uint8_t[::1] given = key
        cdef size_t n = <size_t> given.shape[0]
        cdef uint8_t own[64]
        cdef uint32_t path = _BEST_PATH, shift = 0
        cdef uint64_t i, step = sizeof(clib.ghcb_cipher_t)
        if not clib.ghcb_cipher_key_fits(number, n):
            fits = "32 or 64" if number == clib.GHCB_CIPHER_XTS else "16"
            raise ValueError(f"key has {n} bytes; {mode!r} takes {fits}")
        if number == clib.GHCB_CIPHER_XTS and tweaks is not None:
            raise ValueError("tweaks: 'xts' has none")
        if _path is not None:
            if not 0 <= _path <= _BEST_PATH:
                raise _errors.OutOfRange(f"_path = {_path}: this machine has 0 to {_BEST_PATH}")
            path = _path
        self.mode = mode
        self.unit_bytes = _power_of_two(
            unit_bytes, "unit_bytes", 1 << clib.GHCB_CIPHER_UNIT_SHIFT_MIN,
            1 << clib.GHCB_CIPHER_UNIT_SHIFT_MAX,
        )
        self.n_channels = _power_of_two(n_channels, "n_channels", 1, 64)
        self.channel_bytes = _power_of_two(
            channel_bytes, "channel_bytes", clib.GHCB_CIPHER_LINE, 1 << 30
        )
        if isinstance(tweaks, Tweaks):
            self.tweaks = tweaks
        else:
            self.tweaks = tweaks_of(PUBLISHED_TWEAKS if tweaks is None else tweaks)
        while 1 << shift < self.unit_bytes:
            shift += 1
        self.memory = np.zeros(self.n_channels * step, np.uint8)
        cdef uint8_t[::1] view = self.memory
        self.channels = <clib.ghcb_cipher_t *> &view[0]
        for i in range(self.n_channels):
            memcpy(own, &given[0], n)
            if self.n_channels > 1:
                clib.ghcb_cipher_channel_key(number, &given[0], n, i, own)
            clib.ghcb_cipher_init(
                &self.channels[i], number, own, n, &self.tweaks.c, shift, path
            )
            if _stream_from is not None:
                self.channels[i].stream_from = _stream_from

    cdef void crypt(
        self, bint decrypt, const uint8_t *data, uint8_t *out, uint64_t spa, uint64_t n_bytes
    ) noexcept nogil:
        cdef uint64_t at = 0, n, channel
        if self.n_channels == 1:
            clib.ghcb_cipher_crypt(self.channels, decrypt, data, out, spa, n_bytes)
            return
        while at < n_bytes:
            n = self.channel_bytes - ((spa + at) & (self.channel_bytes - 1))
            if n > n_bytes - at:
                n = n_bytes - at
            channel = (spa + at) // self.channel_bytes & (self.n_channels - 1)
            clib.ghcb_cipher_crypt(
                &self.channels[channel], decrypt, data + at, out + at, spa + at, n
            )
            at += n

    def encrypt(self, const uint8_t[::1] data not None, spa, out=None):
        """Return the ciphertext of content that lies at an address.

        Parameters
        ----------
        data : uint8 array, shape (n,), C-contiguous, or bytes
            n is a multiple of 16; any alignment in memory, read-only is welcome. Not copied.
        spa : int
            Where it lies, bytes, a multiple of 16. Must end within 52 bits.
        out : uint8 array, shape (n,), C-contiguous, optional
            Receives the result: ``data`` itself, or memory that does not overlap it.

        Returns
        -------
        uint8 array, shape (n,)
            ``out`` if it was given.

        Raises
        ------
        Unaligned, OutOfRange
            ``spa``, or the length. Nothing is written.
        ValueError
            Another dtype, layout or length; ``out`` is read-only or overlaps. Nothing is written.

        Notes
        -----
        Releases the GIL. In place is fastest where the data is larger than the caches.
        """
        return crypt_any(self, False, data, spa, out)

    def decrypt(self, const uint8_t[::1] data not None, spa, out=None):
        """Return the content of ciphertext that lies at an address. See ``encrypt``."""
        return crypt_any(self, True, data, spa, out)

    def moved(self, const uint8_t[::1] data not None, spa, new_spa, out=None):
        """Return what is read at ``new_spa`` if the ciphertext of ``data`` at ``spa`` is copied there.

        In mode ``"xe"`` that is ``data`` XOR T(spa ^ new_spa) in each block: a host that knows the
        constants moves content and changes it as it likes. In the others it is noise. Arguments and
        errors as of ``encrypt``.

        Examples
        --------
        >>> cipher = Cipher("xe", bytes(range(16)))
        >>> bytes(cipher.moved(bytes(16), 0x40, 0x1000)).hex() == cipher.tweak(0x1040).hex()
        True
        """
        place_of(new_spa, "new_spa", size_of(data))
        written = crypt_any(self, False, data, spa, out)
        return crypt_any(self, True, written, new_spa, written)

    def tweak(self, spa):
        """Return T(spa), 16 bytes. It is linear: T(p) ^ T(q) is T(p ^ q).

        Raises
        ------
        Unaligned, OutOfRange
            ``spa``.
        ValueError
            ``"xts"`` has no such thing.

        Examples
        --------
        >>> Cipher("xe", bytes(16)).tweak(0x30).hex()
        '6e2c3fa46e2c3fa46e2c3fa46e2c3fa4'
        """
        cdef uint8_t out[16]
        if self.mode == "xts":
            raise ValueError("mode 'xts': its tweaks are not sums of constants")
        clib.ghcb_tweak(&self.tweaks.c, place_of(spa, "spa", clib.GHCB_AES_BLOCK), out)
        return bytes(out[:clib.GHCB_AES_BLOCK])


cdef object crypt_any(Cipher cipher, bint decrypt, const uint8_t[::1] data, object spa, object out):
    cdef uint64_t n = size_of(data), place = place_of(spa, "spa", n)
    out = _room(data, out)
    cdef uint8_t[::1] into = out
    cdef bint is_same = _same_place(data, into)
    if n:
        with nogil:
            if cipher is not None:
                cipher.crypt(decrypt, &data[0], &into[0], place, n)
            elif not is_same:
                memcpy(&into[0], &data[0], n)
    return out
