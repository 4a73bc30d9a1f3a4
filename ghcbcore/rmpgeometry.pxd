from ghcbcore.clib cimport ghcb_rmp_geometry_t


cdef class Geometry:
    cdef ghcb_rmp_geometry_t made
    cdef readonly tuple registers
