# The only `cdef extern` of the core: what the headers in include/ declare, as Cython sees it.
# One block per header; a number never stands here, only its name.

cdef extern from "ghcbcore/status.h" nogil:
    enum:
        GHCB_OK
        GHCB_E_CODE_MISMATCH
        GHCB_E_RESERVED_BITS
        GHCB_E_ECHO_MISMATCH
        GHCB_E_STATE_CONFLICT
        GHCB_E_OUT_OF_RANGE
        GHCB_E_UNALIGNED
        GHCB_E_UNKNOWN_CODE
        GHCB_STATUS_END
