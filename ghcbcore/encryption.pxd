from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ghcbcore.clib cimport ghcb_cipher_t, ghcb_tweaks_t


cdef class Tweaks:
    cdef ghcb_tweaks_t c


cdef class Cipher:
    cdef readonly str mode
    cdef readonly uint64_t n_channels
    cdef readonly uint64_t channel_bytes
    cdef readonly uint64_t unit_bytes
    cdef object memory
    cdef Tweaks tweaks
    cdef ghcb_cipher_t *channels

    # For callers that hold pointers: `data` and `out` are the same or do not overlap, `spa` and
    # `n_bytes` are multiples of 16, the end is not above 52 bits.
    cdef void crypt(
        self, bint decrypt, const uint8_t *data, uint8_t *out, uint64_t spa, uint64_t n_bytes
    ) noexcept nogil


# Arguments, for the modules of the same subject: each raises with the name of what is wrong.
cdef object integer_of(object value, str name)
cdef uint32_t mode_of(object mode) except? 99
cdef uint64_t place_of(object spa, str name, uint64_t n_bytes) except? 1
cdef uint64_t size_of(const uint8_t[::1] data) except? 1
cdef seed_bytes(object seed, uint8_t *out)
cdef Tweaks tweaks_of(object constants)
# `Cipher.encrypt` or `decrypt`; no cipher copies.
cdef object crypt_any(
    Cipher cipher, bint decrypt, const uint8_t[::1] data, object spa, object out
)
