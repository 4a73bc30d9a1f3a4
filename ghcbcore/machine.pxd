# The meaning of a program: `enabled` and `apply` on words where they stand. Everything that moves
# a machine (one step from Python, `run`, `check`) comes through these two.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

cimport cython
from ghcbcore cimport clib
from ghcbcore.clib cimport (
    ghcb_alt_t,
    ghcb_event_t,
    ghcb_frames_t,
    ghcb_host_t,
    ghcb_insn_t,
    ghcb_places_t,
    ghcb_profile_t,
    ghcb_reach_from_t,
    ghcb_role_t,
    ghcb_trace_t,
    ghcb_vcpu_t,
    ghcb_vm_t,
)
from ghcbcore.host cimport host_call
from ghcbcore.profile cimport Profile


cdef struct Tables:
    # what instructions name by number: operations on frames and on places
    ghcb_frames_t frames
    ghcb_places_t places


cdef inline uint64_t *word(uint32_t operand, uint64_t *g, uint64_t *own, uint64_t *other) noexcept nogil:
    cdef uint32_t block = operand >> clib.GHCB_BLOCK_SHIFT
    cdef uint64_t *base = g
    if block == clib.GHCB_BLOCK_OWN:
        base = own
    elif block == clib.GHCB_BLOCK_OTHER:
        base = other
    return base + (operand & clib.GHCB_BLOCK_WORD)


cdef inline bint holds(const ghcb_insn_t *insn, uint64_t *g, uint64_t *own, uint64_t *other) noexcept nogil:
    cdef uint64_t a = word(insn.a, g, own, other)[0] & insn.mask
    cdef uint64_t b = word(insn.b, g, own, other)[0] if insn.b_is_word else insn.imm
    if insn.op == clib.GHCB_OP_EQ:
        return a == b
    if insn.op == clib.GHCB_OP_NE:
        return a != b
    if insn.op == clib.GHCB_OP_LT:
        return a < b
    return a >= b


cdef inline bint enabled(
    const ghcb_insn_t *code, const ghcb_alt_t *alt, uint64_t *g, uint64_t *own, uint64_t *other
) noexcept nogil:
    cdef uint32_t i
    for i in range(alt.guard, alt.guard + alt.n_guards):
        if not holds(code + i, g, own, other):
            return False
    return True


cdef inline uint32_t one(
    const ghcb_insn_t *insn, const ghcb_host_t *host, const Tables *tables,
    uint64_t *g, uint64_t *own, uint64_t *other, uint32_t own_cpu, uint32_t other_cpu,
    ghcb_trace_t *trace,
) noexcept nogil:
    """Execute one instruction other than EACH; return how many of the following to skip."""
    cdef uint64_t *a
    cdef uint64_t b
    cdef uint64_t block
    cdef ghcb_reach_from_t reach
    if insn.op <= clib.GHCB_OP_LAST_TEST:
        return 0 if holds(insn, g, own, other) else insn.skip
    if insn.op == clib.GHCB_OP_SKIP:
        return insn.skip
    a = word(insn.a, g, own, other)
    b = word(insn.b, g, own, other)[0] if insn.b_is_word else insn.imm
    if insn.op == clib.GHCB_OP_SET:
        a[0] = b & insn.mask
    elif insn.op == clib.GHCB_OP_ADD:
        a[0] += b
    elif insn.op == clib.GHCB_OP_SHR:
        a[0] = a[0] >> b if b < 64 else 0
    elif insn.op == clib.GHCB_OP_FRAME:
        a[0] = clib.ghcb_frames_carry_out(&tables.frames, g, insn.mask, b)
        if trace != NULL:
            traced_frame(insn.mask, b, a[0], trace, cpu_of(insn.a, own_cpu, other_cpu))
    elif insn.op == clib.GHCB_OP_REACH:
        block = insn.mask >> clib.GHCB_REACH_BLOCK_SHIFT
        reach.words = g
        reach.own = NULL if block == clib.GHCB_BLOCK_GLOBAL else own if block == clib.GHCB_BLOCK_OWN else other
        reach.slices = <uint64_t *> host.others
        reach.n_slices = host.n_vcpus - 1
        reach.stride = host.stride // sizeof(uint64_t)
        a[0] = clib.ghcb_places_carry_out(&tables.places, &reach, insn.mask, b)
    elif insn.op == clib.GHCB_OP_NUMBER:
        a[0] = <uint64_t> cpu_of(<uint32_t> b << clib.GHCB_BLOCK_SHIFT, own_cpu, other_cpu) << insn.mask
    elif trace == NULL:
        host_call(host, <ghcb_vcpu_t *> a, b)
    else:
        traced_call(b, host, <ghcb_vcpu_t *> a, trace, cpu_of(insn.a, own_cpu, other_cpu))
    return 0


cdef inline uint32_t cpu_of(uint32_t operand, uint32_t own_cpu, uint32_t other_cpu) noexcept nogil:
    cdef uint32_t block = operand >> clib.GHCB_BLOCK_SHIFT
    if block == clib.GHCB_BLOCK_GLOBAL:
        return 0
    return own_cpu if block == clib.GHCB_BLOCK_OWN else other_cpu


cdef inline void traced_frame(
    uint64_t which, uint64_t at, uint64_t result, ghcb_trace_t *trace, uint32_t cpu
) noexcept nogil:
    cdef ghcb_event_t *event = trace.events + trace.n
    trace.n += 1
    memset(event, 0, sizeof(event[0]))
    event.time_ns = trace.now_ns
    event.took_ns = trace.cost_ns
    event.cpu = cpu
    event.call = clib.GHCB_TRACE_FRAME
    event.msr = which
    event.sw_exit_code = at
    event.msr_after = result


cdef inline void traced_call(
    uint64_t function, const ghcb_host_t *host, ghcb_vcpu_t *vcpu, ghcb_trace_t *trace, uint32_t cpu,
) noexcept nogil:
    cdef ghcb_event_t *event = trace.events + trace.n
    trace.n += 1
    event.time_ns = trace.now_ns
    event.cpu = cpu
    event.call = <uint32_t> function
    event.msr = vcpu.msr
    event.sw_exit_code = vcpu.sw_exit_code
    event.sw_exit_info_1 = vcpu.sw_exit_info_1
    event.sw_exit_info_2 = vcpu.sw_exit_info_2
    host_call(host, vcpu, function)
    event.msr_after = vcpu.msr
    event.info_1_after = vcpu.sw_exit_info_1
    event.info_2_after = vcpu.sw_exit_info_2
    event.took_ns = trace.cost_ns
    event.vm_event = host.vm.event


cdef inline void apply(
    const ghcb_insn_t *code, const ghcb_alt_t *alt, const ghcb_profile_t *profile,
    const Tables *tables, uint64_t *g, uint64_t *own, uint64_t *other,
    uint64_t *slices, Py_ssize_t n_slices, Py_ssize_t n_slice, ghcb_trace_t *trace,
) noexcept nogil:
    """Apply an alternative. ``trace`` may be NULL, and so may ``slices`` if the alternative reaches
    no further than ``own`` and ``other``, which lie in ``slices`` if there are any."""
    cdef uint32_t own_cpu = 0
    cdef uint32_t other_cpu = 0
    cdef ghcb_host_t host
    host.profile = profile
    host.vm = <ghcb_vm_t *> g
    host.first = <ghcb_vcpu_t *> (g + clib.GHCB_VM_WORDS)
    host.others = <ghcb_vcpu_t *> slices
    host.stride = <uint64_t> n_slice * sizeof(uint64_t)
    host.n_vcpus = <uint64_t> n_slices + 1
    host.device = NULL
    if slices != NULL:
        own_cpu = <uint32_t> ((own - slices) // n_slice + 1)
        other_cpu = <uint32_t> ((other - slices) // n_slice + 1)
    cdef uint32_t i = alt.effect
    cdef uint32_t end = i + alt.n_effects
    cdef uint32_t j, block_end
    cdef Py_ssize_t k
    while i < end:
        if code[i].op != clib.GHCB_OP_EACH:
            i += 1 + one(code + i, &host, tables, g, own, other, own_cpu, other_cpu, trace)
            continue
        block_end = i + 1 + code[i].skip
        for k in range(n_slices):
            j = i + 1
            while j < block_end:
                j += 1 + one(
                    code + j, &host, tables, g, own, slices + k * n_slice, own_cpu, <uint32_t> (k + 1), trace
                )
        i = block_end


@cython.final
cdef class Program:
    cdef readonly object insns
    cdef readonly object alts
    cdef readonly object roles
    cdef readonly object positions
    cdef readonly Py_ssize_t n_global
    cdef readonly Py_ssize_t n_slice
    cdef readonly Py_ssize_t n_roles
    cdef readonly bint ordered
    cdef readonly Profile profile
    cdef const ghcb_insn_t *code
    cdef const ghcb_alt_t *alt
    cdef const ghcb_role_t *role
    cdef readonly object frame_ops
    cdef readonly object regions
    cdef readonly object place_ops
    cdef readonly object places
    cdef Py_ssize_t n_frame_ops
    cdef Py_ssize_t n_regions
    cdef Py_ssize_t n_place_ops
    cdef Py_ssize_t n_places
    cdef Tables tables
    cdef const uint32_t *first_alt  # of each position; one more entry closes the table
    cdef Py_ssize_t _n_cpus(self, const uint64_t[::1] record) except -1
