/* Encryption of memory, any number of blocks: the modes of cipher.h over buffers.
 *
 * XE and XEX go by groups of 512 bytes that begin at a multiple of 512: what is XORed differs from
 * one group to the next by one sum of constants. What is left before and after them goes line by
 * line. XTS goes by pieces of 4 KiB: the numbers of their units are encrypted first, all at once.
 *
 * In place or from one array to another: `in` and `out` are the same or do not overlap. Any
 * alignment of either. Units and rules: cipher.h; loops: cipher_loops.h.
 */
#ifndef GHCBCORE_CIPHER_MANY_H
#define GHCBCORE_CIPHER_MANY_H

#include <ghcbcore/cipher_loops.h>

/* XE and XEX. */
static inline void ghcb_cipher_linear(const ghcb_cipher_t *cipher, int decrypt, const uint8_t *in,
                                      uint8_t *out, uint64_t spa, size_t n_bytes)
{
    const ghcb_cipher_loops_t loops = ghcb_cipher_loops(cipher->path);
    const int has_pre = cipher->mode == GHCB_CIPHER_XEX || !decrypt;
    const int has_post = cipher->mode == GHCB_CIPHER_XEX || decrypt;
    const ghcb_tweaks_t *const pre = has_pre ? cipher->address : &ghcb_cipher_no_tweaks;
    const ghcb_tweaks_t *const post = has_post ? cipher->address : &ghcb_cipher_no_tweaks;
    ghcb_cipher_run_t run = {
        .keys = (const ghcb_block_t *)(decrypt ? cipher->data.decrypt : cipher->data.encrypt),
        .rounds = cipher->data.rounds,
        .step_pre = (const ghcb_block_t *)pre->step,
        .step_post = (const ghcb_block_t *)post->step,
    };

    while (n_bytes) {
        const size_t begin = spa % GHCB_CIPHER_GROUP, room = GHCB_CIPHER_GROUP - begin;
        size_t n = n_bytes < room ? n_bytes : room;

        run.group = spa >> GHCB_CIPHER_GROUP_SHIFT;
        run.pre = (const ghcb_block_t *)pre->low + begin / GHCB_AES_BLOCK;
        run.post = (const ghcb_block_t *)post->low + begin / GHCB_AES_BLOCK;
        ghcb_tweak(pre, spa - begin, run.high_pre);
        ghcb_tweak(post, spa - begin, run.high_post);
        if (n == GHCB_CIPHER_GROUP) {
            const size_t n_groups = n_bytes >> GHCB_CIPHER_GROUP_SHIFT;

            loops.groups[decrypt](&run, in, out, n_groups);
            n = n_groups << GHCB_CIPHER_GROUP_SHIFT;
        } else {
            ghcb_cipher_lines(&loops, decrypt, &run, in, out, n);
        }
        in += n;
        out += n;
        spa += n;
        n_bytes -= n;
    }
}

/* Encrypt n blocks under the tweak key as they are, in place; `blocks` has room for whole lines. */
static inline void ghcb_cipher_encrypt_numbers(const ghcb_cipher_t *cipher,
                                               const ghcb_cipher_loops_t *loops,
                                               ghcb_block_t *blocks, size_t n)
{
    ghcb_cipher_run_t run = {
        .keys = (const ghcb_block_t *)cipher->tweak.encrypt,
        .rounds = cipher->tweak.rounds,
        .pre = (const ghcb_block_t *)ghcb_cipher_no_tweaks.low,
        .post = (const ghcb_block_t *)ghcb_cipher_no_tweaks.low,
        .step_pre = (const ghcb_block_t *)ghcb_cipher_no_tweaks.step,
        .step_post = (const ghcb_block_t *)ghcb_cipher_no_tweaks.step,
    };
    uint8_t *const bytes = (uint8_t *)blocks;
    const size_t n_bytes = n * GHCB_AES_BLOCK, n_groups = n_bytes >> GHCB_CIPHER_GROUP_SHIFT;
    const size_t done = n_groups << GHCB_CIPHER_GROUP_SHIFT;

    loops->groups[0](&run, bytes, bytes, n_groups);
    ghcb_cipher_lines(loops, 0, &run, bytes + done, bytes + done, n_bytes - done);
}

/* Multiply by x, in the field of IEEE 1619. */
static inline void ghcb_cipher_times_x(uint64_t *low, uint64_t *high)
{
    const uint64_t carry = 0x87 & (0 - (*high >> 63));

    *high = *high << 1 | *low >> 63;
    *low = *low << 1 ^ carry;
}

/* Each of n units' tweaks times 1, x, x**2, ..., `per_unit` of them: the tweaks of its blocks. */
static inline void ghcb_cipher_powers(const ghcb_block_t *units, size_t n, size_t per_unit,
                                      ghcb_block_t *out)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t low, high;

        ghcb_block_load(units[i], &low, &high);
        for (size_t j = 0; j < per_unit; j++) {
            ghcb_block_store(out[i * per_unit + j], low, high);
            ghcb_cipher_times_x(&low, &high);
        }
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
/* Each of four blocks times x to a power from 0 to 4 of its own. What is shifted out of the low
 * word goes into the high one; what is shifted out of that comes back as a multiple of 0x87. */
__attribute__((target(GHCB_V4_ISA))) static inline __m512i ghcb_cipher_times_four(__m512i v,
                                                                                  __m512i power)
{
    const __m512i by_1 = _mm512_setr_epi64(1, 64, 1, 64, 1, 64, 1, 64);
    const __m512i by_2 = _mm512_setr_epi64(2, 64, 2, 64, 2, 64, 2, 64);
    const __m512i by_7 = _mm512_setr_epi64(7, 64, 7, 64, 7, 64, 7, 64);
    const __m512i out = _mm512_srlv_epi64(v, _mm512_sub_epi64(_mm512_set1_epi64(64), power));
    const __m512i carry = _mm512_shuffle_epi32(out, (_MM_PERM_ENUM)0x4e);

    return GHCB_V4_XOR3(
        GHCB_V4_XOR3(_mm512_sllv_epi64(v, power), carry, _mm512_sllv_epi64(carry, by_1)),
        _mm512_sllv_epi64(carry, by_2), _mm512_sllv_epi64(carry, by_7));
}

/* The same as ghcb_cipher_powers() for units of at least four blocks. */
__attribute__((target(GHCB_V4_ISA))) static inline void
ghcb_cipher_powers_by_four(const ghcb_block_t *units, size_t n, size_t per_unit, ghcb_block_t *out)
{
    const __m512i first = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
    const __m512i four = _mm512_set1_epi64(4);

    for (size_t i = 0; i < n; i++) {
        __m512i v = ghcb_cipher_times_four(GHCB_V4_SPREAD(units[i]), first);

        for (size_t j = 0; j < per_unit; j += 4) {
            GHCB_V4_STORE(out[i * per_unit + j], v);
            v = ghcb_cipher_times_four(v, four);
        }
    }
}
#endif

#if defined(__x86_64__) && defined(__GNUC__)
/* Where units are lines, their tweaks need not go through memory: a register is a unit. What four
 * blocks times 1, x, x**2, x**3 shift out has at most three bits; a table has its multiples of
 * 0x87. */
#define GHCB_CIPHER_LINE_BEGIN(v, d, k)                                                            \
    const __m512i u##k = GHCB_V4_SPREAD(units[k]);                                                 \
    const __m512i o##k = _mm512_srlv_epi64(u##k, out_by);                                          \
    const __m512i c##k = _mm512_shuffle_epi32(o##k, (_MM_PERM_ENUM)0x4e);                          \
    const __m512i t##k = _mm512_xor_si512(_mm512_sllv_epi64(u##k, by),                             \
                                          _mm512_mask_permutexvar_epi64(c##k, 0x55, c##k, table)); \
    __m512i x##k = GHCB_V4_XOR3(GHCB_V4_LOAD(in + k * sizeof(pre)), t##k, pre);
#define GHCB_CIPHER_LINE_END(v, d, k)                                                              \
    GHCB_V4_STORE(out + k * sizeof(pre), GHCB_V4_LAST_##d(x##k, GHCB_V4_XOR(t##k, post)));

#define GHCB_CIPHER_UNITS(d)                                                                       \
    __attribute__((target(GHCB_V4_ISA))) static inline void ghcb_cipher_units_##d(                 \
        const ghcb_cipher_run_t *run, const ghcb_block_t *units, const uint8_t *in, uint8_t *out,  \
        size_t n)                                                                                  \
    {                                                                                              \
        const __m512i by = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);                              \
        const __m512i out_by = _mm512_setr_epi64(64, 64, 63, 63, 62, 62, 61, 61);                  \
        const __m512i table =                                                                      \
            _mm512_setr_epi64(0, 0x87, 0x10e, 0x189, 0x21c, 0x29b, 0x312, 0x395);                  \
        const ghcb_block_t *const keys = run->keys;                                                \
        const uint32_t rounds = run->rounds;                                                       \
        const __m512i pre = GHCB_V4_SPREAD(keys[0]), post = GHCB_V4_SPREAD(keys[rounds]);          \
                                                                                                   \
        for (size_t i = 0; i < n; i++) {                                                           \
            GHCB_CIPHER_X8(GHCB_CIPHER_LINE_BEGIN, 4, d)                                           \
            for (uint32_t r = 1; r < rounds; r++) {                                                \
                const __m512i key = GHCB_V4_SPREAD(keys[r]);                                       \
                GHCB_CIPHER_X8(GHCB_CIPHER_ROUND, 4, d)                                            \
            }                                                                                      \
            GHCB_CIPHER_X8(GHCB_CIPHER_LINE_END, 4, d)                                             \
            units += GHCB_CIPHER_GROUP / GHCB_CIPHER_LINE;                                         \
            in += GHCB_CIPHER_GROUP;                                                               \
            out += GHCB_CIPHER_GROUP;                                                              \
        }                                                                                          \
    }

GHCB_CIPHER_UNITS(0)
GHCB_CIPHER_UNITS(1)

/* The groups of whole lines among n bytes from `block` on; return how many bytes that was. */
static inline size_t ghcb_cipher_whole_lines(const ghcb_cipher_t *cipher, int decrypt,
                                             const ghcb_cipher_run_t *run,
                                             const ghcb_block_t *units, size_t block,
                                             const uint8_t *in, uint8_t *out, size_t n)
{
    const size_t per_unit = GHCB_CIPHER_LINE / GHCB_AES_BLOCK;
    const size_t n_groups = n >> GHCB_CIPHER_GROUP_SHIFT;

    if (cipher->path != GHCB_AES_PATH_VAES512 || block % per_unit ||
        cipher->unit_shift != GHCB_CIPHER_UNIT_SHIFT)
        return 0;
    if (decrypt)
        ghcb_cipher_units_1(run, units + block / per_unit, in, out, n_groups);
    else
        ghcb_cipher_units_0(run, units + block / per_unit, in, out, n_groups);
    return n_groups << GHCB_CIPHER_GROUP_SHIFT;
}
#else
static inline size_t ghcb_cipher_whole_lines(const ghcb_cipher_t *cipher, int decrypt,
                                             const ghcb_cipher_run_t *run,
                                             const ghcb_block_t *units, size_t block,
                                             const uint8_t *in, uint8_t *out, size_t n)
{
    (void)cipher, (void)decrypt, (void)run, (void)units, (void)block, (void)in, (void)out, (void)n;
    return 0;
}
#endif

/* The tweaks of one piece, made as far as they are needed. */
typedef struct {
    ghcb_block_t *units; /* the encrypted number of each unit */
    ghcb_block_t *blocks;
    size_t per_unit;
    size_t n_made; /* units whose blocks have their tweaks */
    int by_four;
} ghcb_cipher_piece_t;

/* Make those of the first n blocks. A group's are made just before the group is encrypted: the
 * processor does both at once, as the work on tweaks needs other parts of it than AES does. */
static inline void ghcb_cipher_make(ghcb_cipher_piece_t *piece, size_t n)
{
    const size_t wanted = (n + piece->per_unit - 1) / piece->per_unit;
    const ghcb_block_t *const from = (const ghcb_block_t *)piece->units + piece->n_made;
    ghcb_block_t *const to = piece->blocks + piece->n_made * piece->per_unit;

    if (wanted <= piece->n_made)
        return;
#if defined(__x86_64__) && defined(__GNUC__)
    if (piece->by_four)
        ghcb_cipher_powers_by_four(from, wanted - piece->n_made, piece->per_unit, to);
    else
#endif
        ghcb_cipher_powers(from, wanted - piece->n_made, piece->per_unit, to);
    piece->n_made = wanted;
}

static inline void ghcb_cipher_xts(const ghcb_cipher_t *cipher, int decrypt, const uint8_t *in,
                                   uint8_t *out, uint64_t spa, size_t n_bytes)
{
    const ghcb_cipher_loops_t loops = ghcb_cipher_loops(cipher->path);
    const unsigned shift = cipher->unit_shift;
    const size_t per_unit = (size_t)1 << (shift - GHCB_CIPHER_FIRST_BIT);
    _Alignas(GHCB_CIPHER_LINE) ghcb_block_t units[GHCB_CIPHER_PIECE / GHCB_AES_BLOCK];
    _Alignas(GHCB_CIPHER_LINE) ghcb_block_t blocks[GHCB_CIPHER_PIECE / GHCB_AES_BLOCK];
    ghcb_cipher_run_t run = {
        .keys = (const ghcb_block_t *)(decrypt ? cipher->data.decrypt : cipher->data.encrypt),
        .rounds = cipher->data.rounds,
        .step_pre = (const ghcb_block_t *)ghcb_cipher_no_tweaks.step,
        .step_post = (const ghcb_block_t *)ghcb_cipher_no_tweaks.step,
    };

    while (n_bytes) {
        const size_t room = GHCB_CIPHER_PIECE - spa % GHCB_CIPHER_PIECE;
        const size_t n = n_bytes < room ? n_bytes : room;
        const uint64_t first = spa >> shift;
        const size_t n_units = (size_t)(((spa + n - 1) >> shift) - first + 1);
        ghcb_cipher_piece_t piece = {
            .units = units,
            .blocks = per_unit == 1 ? units : blocks,
            .per_unit = per_unit,
            .n_made = per_unit == 1 ? n_units : 0,
            .by_four = cipher->path == GHCB_AES_PATH_VAES512 && per_unit >= 4,
        };
        size_t block = (spa >> GHCB_CIPHER_FIRST_BIT) % per_unit;

        for (size_t i = 0; i < n_units; i++)
            ghcb_block_store(units[i], first + i, 0);
        ghcb_cipher_encrypt_numbers(cipher, &loops, units, n_units);
        for (size_t at = 0; at < n;) {
            const size_t whole = ghcb_cipher_whole_lines(cipher, decrypt, &run,
                                                         (const ghcb_block_t *)units, block,
                                                         in + at, out + at, n - at);
            const size_t to_unit = (per_unit - block % per_unit) * GHCB_AES_BLOCK;
            size_t left = n - at < GHCB_CIPHER_GROUP ? n - at : GHCB_CIPHER_GROUP;

            if (whole) {
                at += whole;
                block += whole / GHCB_AES_BLOCK;
                piece.n_made = block / per_unit; /* the rest of them is not needed */
                continue;
            }
            if (left > to_unit && block % per_unit)
                left = to_unit; /* then all begins where units do */
            run.pre = run.post = (const ghcb_block_t *)piece.blocks + block;
            block += left / GHCB_AES_BLOCK;
            ghcb_cipher_make(&piece, block);
            if (left == GHCB_CIPHER_GROUP)
                loops.groups[decrypt](&run, in + at, out + at, 1);
            else
                ghcb_cipher_lines(&loops, decrypt, &run, in + at, out + at, left);
            at += left;
        }
        in += n;
        out += n;
        spa += n;
        n_bytes -= n;
    }
}

/* Encrypt (or decrypt) `n_bytes` that lie, or shall lie, at `spa`; both are multiples of 16, and
 * the end is not above 52 bits: the caller sees to it. */
static inline void ghcb_cipher_crypt(const ghcb_cipher_t *cipher, int decrypt, const uint8_t *in,
                                     uint8_t *out, uint64_t spa, size_t n_bytes)
{
    if (cipher->mode == GHCB_CIPHER_XTS)
        ghcb_cipher_xts(cipher, decrypt, in, out, spa, n_bytes);
    else
        ghcb_cipher_linear(cipher, decrypt, in, out, spa, n_bytes);
}

#endif
