from libc.stdint cimport uint8_t

from ghcbcore.encryption cimport Cipher


cdef class Controller:
    cdef readonly str mode
    cdef readonly int n_asids
    cdef public bint hides_ciphertext
    cdef uint8_t seed[16]
    cdef Py_ssize_t key_bytes
    cdef dict settings
    cdef dict ciphers
    cdef dict installs
    cdef set active

    cdef int slot_of(self, object domain) except -1
    cdef int keyed_slot(self, object domain) except -1
    # None stands for no encryption
    cdef Cipher cipher_of(self, object domain)
