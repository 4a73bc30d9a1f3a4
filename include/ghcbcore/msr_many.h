/* Many GHCB MSR values at once: ghcb_msr_decode() and ghcb_msr_encode() over arrays, eight values
 * at a time where the processor can.
 *
 * Theory of operation. The rows of msr.h fit into tables of 32 elements, indexed by a hash of the
 * code under which no two rows meet (the compiler says so if a new row breaks that), and so into
 * registers: four permutations give each of eight values its row, without a memory access that
 * depends on the value. One instruction then moves the second and third field and the code to
 * where they stand in ghcb_msr_t. It needs AVX-512 with VBMI; elsewhere, and for the last few
 * values, the loop calls ghcb_msr_decode(). Gathers from the table of msr.h, with AVX2 or
 * AVX-512, were measured too and gain little.
 *
 * Units, fields, meaning of a result: msr.h. Both ways give the same bytes; a test compares them.
 */
#ifndef GHCBCORE_MSR_MANY_H
#define GHCBCORE_MSR_MANY_H

#include <ghcbcore/msr.h>
#include <stddef.h>
#include <stdint.h>

static inline void ghcb_msr_decode_portably(const uint64_t *values, ghcb_msr_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ghcb_msr_decode(values[i], &out[i]);
}

/* What values are put together from: each an array (`step` 1) or one number for all (0). */
typedef struct {
    const uint64_t *code;
    const uint64_t *a;
    const uint64_t *b;
    const uint64_t *c;
    size_t code_step;
    size_t a_step;
    size_t b_step;
    size_t c_step;
} ghcb_msr_operands_t;

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define GHCB_MSR_HASH_SIZE 32
#define GHCB_MSR_HASH(code) (((code) + ((code) >> 4)) % GHCB_MSR_HASH_SIZE)

/* How to move bits: one byte for each byte of the second word of ghcb_msr_t, the bit at which it
 * begins; status and row come from elsewhere, and the place of the row holds the shift of `a`. */
#define GHCB_MSR_X_MOVE(id, name, other, answer, f0, f1, f2)                                       \
    [GHCB_MSR_HASH(GHCB_MSR_##id)] =                                                               \
        (uint64_t)GHCB_MSR_SHIFT_OF f1 | (uint64_t)((GHCB_MSR_SHIFT_OF f1 + 8) % 64) << 8 |        \
        (uint64_t)GHCB_MSR_SHIFT_OF f2 << 16 | UINT64_C(8) << 40 |                                 \
        (uint64_t)GHCB_MSR_SHIFT_OF f0 << 56,
/* Which of the moved bits count, and in the place of the row the row itself. */
#define GHCB_MSR_X_KEEP(id, name, other, answer, f0, f1, f2)                                       \
    [GHCB_MSR_HASH(GHCB_MSR_##id)] = GHCB_MSR_ONES(GHCB_MSR_WIDTH_OF f1) |                         \
                                     GHCB_MSR_ONES(GHCB_MSR_WIDTH_OF f2) << 16 |                   \
                                     (uint64_t)GHCB_MSR_INFO_MASK << 32 |                          \
                                     (uint64_t)GHCB_MSR_ROW_##id << 48,
#define GHCB_MSR_X_A_MASK(id, name, other, answer, f0, f1, f2)                                     \
    [GHCB_MSR_HASH(GHCB_MSR_##id)] = GHCB_MSR_ONES(GHCB_MSR_WIDTH_OF f0),
/* Reserved bits, and in the place of the code the code: is it this row at all? */
#define GHCB_MSR_X_CHECKS(id, name, other, answer, f0, f1, f2)                                     \
    [GHCB_MSR_HASH(GHCB_MSR_##id)] = GHCB_MSR_RESERVED(f0, f1, f2) | GHCB_MSR_##id,

static const uint64_t ghcb_msr_hashed_move[GHCB_MSR_HASH_SIZE]
    __attribute__((aligned(64))) = {GHCB_MSR_EACH_ROW(GHCB_MSR_X_MOVE)};
static const uint64_t ghcb_msr_hashed_keep[GHCB_MSR_HASH_SIZE]
    __attribute__((aligned(64))) = {GHCB_MSR_EACH_ROW(GHCB_MSR_X_KEEP)};
static const uint64_t ghcb_msr_hashed_a_mask[GHCB_MSR_HASH_SIZE]
    __attribute__((aligned(64))) = {GHCB_MSR_EACH_ROW(GHCB_MSR_X_A_MASK)};
static const uint64_t ghcb_msr_hashed_checks[GHCB_MSR_HASH_SIZE]
    __attribute__((aligned(64))) = {GHCB_MSR_EACH_ROW(GHCB_MSR_X_CHECKS)};
#undef GHCB_MSR_X_MOVE
#undef GHCB_MSR_X_KEEP
#undef GHCB_MSR_X_A_MASK
#undef GHCB_MSR_X_CHECKS

/* No two rows meet: each sets a bit of its own, so the sum of these bits has as many as the or.
 * An element without a row holds code 0 in its place of the code, and code 0 hashes to 0, which
 * has a row: a value that comes to an empty element never matches it. */
#define GHCB_MSR_X_SUM(id, name, other, answer, f0, f1, f2)                                        \
    +(UINT64_C(1) << GHCB_MSR_HASH(GHCB_MSR_##id))
#define GHCB_MSR_X_OR(id, name, other, answer, f0, f1, f2)                                         \
    | (UINT64_C(1) << GHCB_MSR_HASH(GHCB_MSR_##id))
_Static_assert((0 GHCB_MSR_EACH_ROW(GHCB_MSR_X_SUM)) == (0 GHCB_MSR_EACH_ROW(GHCB_MSR_X_OR)),
               "the hash separates the rows");
_Static_assert(GHCB_MSR_HASH(GHCB_MSR_GHCB_GPA) == 0 && GHCB_MSR_GHCB_GPA == 0,
               "code 0 has the first element");
#undef GHCB_MSR_X_SUM
#undef GHCB_MSR_X_OR

_Static_assert(offsetof(ghcb_msr_t, a) == 0 && offsetof(ghcb_msr_t, b) == 8 &&
                   offsetof(ghcb_msr_t, c) == 10 && offsetof(ghcb_msr_t, status) == 11 &&
                   offsetof(ghcb_msr_t, code) == 12 && offsetof(ghcb_msr_t, row) == 14,
               "the second word is put together by hand");

/* Elements of a table of 32 by the low five bits of `index`; `upper` has bit 4 of each. */
#define GHCB_MSR_LOOK_UP(table)                                                                    \
    _mm512_mask_blend_epi64(upper,                                                                 \
                            _mm512_permutex2var_epi64(_mm512_load_si512(table), index,             \
                                                      _mm512_load_si512((table) + 8)),             \
                            _mm512_permutex2var_epi64(_mm512_load_si512((table) + 16), index,      \
                                                      _mm512_load_si512((table) + 24)))

__attribute__((target("avx512f,avx512bw,avx512vbmi"))) static inline void
ghcb_msr_decode_by_eight(const uint64_t *values, ghcb_msr_t *out, size_t n)
{
    const __m512i code_bits = _mm512_set1_epi64(GHCB_MSR_INFO_MASK);
    const __m512i bit_4 = _mm512_set1_epi64(GHCB_MSR_HASH_SIZE / 2);
    const __m512i row_bits = _mm512_set1_epi64((long long)0xffff000000000000);
    const __m512i unknown = _mm512_set1_epi64(
        (long long)((uint64_t)GHCB_MSR_NO_ROW << 48 | (uint64_t)GHCB_E_UNKNOWN_CODE << 24));
    const __m512i refused = _mm512_set1_epi64((long long)GHCB_E_RESERVED_BITS << 24);
    const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    const __m512i second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        const __m512i raw = _mm512_loadu_si512(values + i);
        const __m512i code = _mm512_and_si512(raw, code_bits);
        const __m512i index = _mm512_add_epi64(code, _mm512_srli_epi64(code, 4));
        const __mmask8 upper = _mm512_test_epi64_mask(index, bit_4);
        const __m512i move = GHCB_MSR_LOOK_UP(ghcb_msr_hashed_move);
        const __m512i keep = GHCB_MSR_LOOK_UP(ghcb_msr_hashed_keep);
        const __m512i a_mask = GHCB_MSR_LOOK_UP(ghcb_msr_hashed_a_mask);
        const __m512i checks = GHCB_MSR_LOOK_UP(ghcb_msr_hashed_checks);
        const __mmask8 stranger =
            _mm512_test_epi64_mask(_mm512_xor_si512(checks, raw), code_bits);
        const __mmask8 odd =
            _mm512_test_epi64_mask(_mm512_andnot_si512(code_bits, checks), raw);
        __m512i a = _mm512_and_si512(_mm512_srlv_epi64(raw, _mm512_srli_epi64(move, 56)), a_mask);
        /* keep & (moved | row_bits) */
        __m512i rest = _mm512_ternarylogic_epi64(keep, _mm512_multishift_epi64_epi8(move, raw),
                                                 row_bits, 0xe0);

        rest = _mm512_mask_or_epi64(rest, odd, rest, refused);
        a = _mm512_mask_srli_epi64(a, stranger, raw, GHCB_MSR_DATA_SHIFT);
        rest = _mm512_mask_or_epi64(rest, stranger, _mm512_slli_epi64(code, 32), unknown);
        _mm512_storeu_si512(out + i, _mm512_permutex2var_epi64(a, first, rest));
        _mm512_storeu_si512(out + i + 4, _mm512_permutex2var_epi64(a, second, rest));
    }
    ghcb_msr_decode_portably(values + i, out + i, n - i);
}

/* Eight operands, or one eight times where `step` is 0. */
#define GHCB_MSR_OPERAND(from, step)                                                               \
    ((step) ? _mm512_loadu_si512((from) + i) : _mm512_set1_epi64((long long)(from)[0]))

/* Put values together until eight of which one cannot be; return how many were. */
__attribute__((target("avx512f,avx512bw,avx512vbmi"))) static inline size_t
ghcb_msr_encode_by_eight(const ghcb_msr_operands_t *of, uint64_t *raw, size_t n)
{
    const __m512i code_bits = _mm512_set1_epi64(GHCB_MSR_INFO_MASK);
    const __m512i bit_4 = _mm512_set1_epi64(GHCB_MSR_HASH_SIZE / 2);
    const __m512i byte = _mm512_set1_epi64(0xff);
    const __m512i two_bytes = _mm512_set1_epi64(0xffff);
    size_t i = 0;

    for (; i + 8 <= n; i += 8) {
        const __m512i code = GHCB_MSR_OPERAND(of->code, of->code_step);
        const __m512i a = GHCB_MSR_OPERAND(of->a, of->a_step);
        const __m512i b = GHCB_MSR_OPERAND(of->b, of->b_step);
        const __m512i c = GHCB_MSR_OPERAND(of->c, of->c_step);
        const __m512i index = _mm512_add_epi64(code, _mm512_srli_epi64(code, 4));
        const __mmask8 upper = _mm512_test_epi64_mask(index, bit_4);
        const __m512i move = GHCB_MSR_LOOK_UP(ghcb_msr_hashed_move);
        const __m512i keep = GHCB_MSR_LOOK_UP(ghcb_msr_hashed_keep);
        const __m512i a_mask = GHCB_MSR_LOOK_UP(ghcb_msr_hashed_a_mask);
        const __m512i checks = GHCB_MSR_LOOK_UP(ghcb_msr_hashed_checks);
        const __m512i b_mask = _mm512_and_si512(keep, two_bytes);
        const __m512i c_mask = _mm512_and_si512(_mm512_srli_epi64(keep, 16), byte);
        const __m512i too_wide = _mm512_or_si512(
            _mm512_andnot_si512(a_mask, a),
            _mm512_or_si512(_mm512_andnot_si512(b_mask, b), _mm512_andnot_si512(c_mask, c)));
        const __m512i stranger = _mm512_xor_si512(_mm512_and_si512(checks, code_bits), code);
        const __m512i wrong = _mm512_or_si512(too_wide, stranger);

        if (_mm512_test_epi64_mask(wrong, wrong))
            break;
        _mm512_storeu_si512(
            raw + i,
            _mm512_or_si512(
                _mm512_or_si512(code, _mm512_sllv_epi64(a, _mm512_srli_epi64(move, 56))),
                _mm512_or_si512(
                    _mm512_sllv_epi64(b, _mm512_and_si512(move, byte)),
                    _mm512_sllv_epi64(c, _mm512_and_si512(_mm512_srli_epi64(move, 16), byte)))));
    }
    return i;
}
#undef GHCB_MSR_OPERAND
#undef GHCB_MSR_LOOK_UP

static inline int ghcb_msr_has_eight(void)
{
    return __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bw");
}
#else
static inline int ghcb_msr_has_eight(void)
{
    return 0;
}
#endif

/* ghcb_msr_decode() for each of n values; `out` must not overlap them. */
static inline void ghcb_msr_decode_many(const uint64_t *values, ghcb_msr_t *out, size_t n)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (n >= 8 && ghcb_msr_has_eight()) {
        ghcb_msr_decode_by_eight(values, out, n);
        return;
    }
#endif
    ghcb_msr_decode_portably(values, out, n);
}

/* ghcb_msr_encode() for each of n values, up to the first that cannot be; return its status and
 * store in *done how many were put together before it. */
static inline int ghcb_msr_encode_many(const ghcb_msr_operands_t *of, uint64_t *raw, size_t n,
                                       size_t *done)
{
    size_t i = 0;
    int status = GHCB_OK;

#if defined(__x86_64__) && defined(__GNUC__)
    if (n >= 8 && ghcb_msr_has_eight())
        i = ghcb_msr_encode_by_eight(of, raw, n);
#endif
    for (; i < n; i++) {
        status = ghcb_msr_encode(of->code[i * of->code_step], of->a[i * of->a_step],
                                 of->b[i * of->b_step], of->c[i * of->c_step], &raw[i]);
        if (status != GHCB_OK)
            break;
    }
    *done = i;
    return status;
}

#endif
