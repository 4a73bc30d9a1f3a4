/* Encryption of memory, any number of blocks: the modes of cipher.h over buffers.
 *
 * XE and XEX go by groups of 512 bytes that begin at a multiple of 512: what is XORed differs from
 * one group to the next by one sum of constants. What is left before and after them goes line by
 * line. From one large array to another, results go past the caches: the bus then carries two lines
 * for each of content instead of three. XTS goes by pieces of 4 KiB: the numbers of their units are
 * encrypted first, all at once.
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
    const int streams = ghcb_cipher_streams(cipher, &loops, in, out, n_bytes);
    int is_first = 1;

    while (n_bytes) {
        const size_t begin = spa % GHCB_CIPHER_GROUP, room = GHCB_CIPHER_GROUP - begin;
        size_t n = n_bytes < room ? n_bytes : room;

        run.group = spa >> GHCB_CIPHER_GROUP_SHIFT;
        run.pre = (const ghcb_block_t *)pre->low + begin / GHCB_AES_BLOCK;
        run.post = (const ghcb_block_t *)post->low + begin / GHCB_AES_BLOCK;
        ghcb_tweak(pre, spa - begin, run.high_pre);
        ghcb_tweak(post, spa - begin, run.high_post);
        if (n == GHCB_CIPHER_GROUP) {
            const size_t n_groups = streams && is_first ? 1 : n_bytes >> GHCB_CIPHER_GROUP_SHIFT;

            (streams && !is_first ? loops.stream : loops.groups)[decrypt](&run, in, out, n_groups);
            n = n_groups << GHCB_CIPHER_GROUP_SHIFT;
            is_first = 0;
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
/* Where units are lines, their tweaks need not go through memory: a register of tweaks is a line.
 * What four blocks times 1, x, x**2, x**3 shift out has at most three bits; a table has its
 * multiples of 0x87. The numbers of lines are encrypted between the rounds of content, two groups
 * ahead: one group ahead they are ready too late to gain by it. Results never go past the caches
 * here: that gains nothing where the work is what takes the time. */
#define GHCB_CIPHER_LINE_BEGIN(v, d, k)                                                            \
    const __m512i y##k = (k) < 4 ? next0 : next1;                                                  \
    const __m512i u##k = _mm512_shuffle_i64x2(y##k, y##k, (k) % 4 * 0x55);                         \
    const __m512i o##k = _mm512_srlv_epi64(u##k, out_by);                                          \
    const __m512i c##k = _mm512_shuffle_epi32(o##k, (_MM_PERM_ENUM)0x4e);                          \
    const __m512i t##k = _mm512_xor_si512(_mm512_sllv_epi64(u##k, by),                             \
                                          _mm512_mask_permutexvar_epi64(c##k, 0x55, c##k, table)); \
    __m512i x##k = GHCB_V4_XOR3(GHCB_V4_LOAD(in + k * sizeof(pre)), t##k, pre);
#define GHCB_CIPHER_LINE_END(v, d, k)                                                              \
    GHCB_V4_STORE(out + k * sizeof(pre), GHCB_V4_LAST_##d(x##k, GHCB_V4_XOR(t##k, post)));

#define GHCB_CIPHER_NEXT_NUMBERS(change)                                                           \
    number = _mm512_add_epi64(number, change);                                                     \
    key = GHCB_V4_SPREAD(numbers_keys[0]);                                                         \
    z0 = GHCB_V4_XOR(number, key);                                                                 \
    z1 = GHCB_V4_XOR(_mm512_add_epi64(number, four), key);
#define GHCB_CIPHER_ROUND_OF_NUMBERS(round, r)                                                     \
    key = GHCB_V4_SPREAD(numbers_keys[r]);                                                         \
    z0 = round(z0, key);                                                                           \
    z1 = round(z1, key);

#define GHCB_CIPHER_ROUND_OF_BOTH(v, d, N, r)                                                      \
    GHCB_CIPHER_ROUND_OF_NUMBERS(_mm512_aesenc_epi128, r)                                          \
    GHCB_CIPHER_ONE_ROUND(v, d, N, r)

/* n groups of lines, the first of which has the number `first`. */
#define GHCB_CIPHER_UNITS(name, d, data_keys)                                                      \
    __attribute__((target(GHCB_V4_ISA))) static inline void name(                                  \
        const ghcb_cipher_t *cipher, uint64_t first, const uint8_t *in, uint8_t *out, size_t n)    \
    {                                                                                              \
        const __m512i by = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);                              \
        const __m512i out_by = _mm512_setr_epi64(64, 64, 63, 63, 62, 62, 61, 61);                  \
        const __m512i table =                                                                      \
            _mm512_setr_epi64(0, 0x87, 0x10e, 0x189, 0x21c, 0x29b, 0x312, 0x395);                  \
        const __m512i four = _mm512_setr_epi64(4, 0, 4, 0, 4, 0, 4, 0);                            \
        const ghcb_block_t *const keys = (const ghcb_block_t *)(data_keys);                        \
        const ghcb_block_t *const numbers_keys = (const ghcb_block_t *)cipher->tweak.encrypt;      \
        const uint32_t rounds = cipher->data.rounds;                                               \
        const __m512i pre = GHCB_V4_SPREAD(keys[0]), post = GHCB_V4_SPREAD(keys[rounds]);          \
        __m512i number = _mm512_setr_epi64(0, 0, 1, 0, 2, 0, 3, 0);                                \
        __m512i change = _mm512_maskz_set1_epi64(0x55, (long long)first);                          \
        __m512i key, next0, next1, z0, z1;                                                         \
                                                                                                   \
        next0 = next1 = z0 = z1 = number;                                                          \
        for (int ahead = 0; ahead < 2; ahead++) {                                                  \
            next0 = z0;                                                                            \
            next1 = z1;                                                                            \
            GHCB_CIPHER_NEXT_NUMBERS(change)                                                       \
            change = _mm512_add_epi64(four, four);                                                 \
            for (uint32_t r = 1; r < rounds; r++) {                                                \
                GHCB_CIPHER_ROUND_OF_NUMBERS(_mm512_aesenc_epi128, r)                              \
            }                                                                                      \
            GHCB_CIPHER_ROUND_OF_NUMBERS(_mm512_aesenclast_epi128, rounds)                         \
        }                                                                                          \
        for (size_t i = 0; i < n; i++) {                                                           \
            GHCB_CIPHER_X8(GHCB_CIPHER_LINE_BEGIN, 4, d)                                           \
                                                                                                   \
            next0 = z0;                                                                            \
            next1 = z1;                                                                            \
            GHCB_CIPHER_NEXT_NUMBERS(change)                                                       \
            GHCB_CIPHER_ROUNDS(GHCB_CIPHER_ROUND_OF_BOTH, 4, d, 8)                                 \
            GHCB_CIPHER_ROUND_OF_NUMBERS(_mm512_aesenclast_epi128, rounds)                         \
            GHCB_CIPHER_X8(GHCB_CIPHER_LINE_END, 4, d)                                             \
            in += GHCB_CIPHER_GROUP;                                                               \
            out += GHCB_CIPHER_GROUP;                                                              \
        }                                                                                          \
    }

GHCB_CIPHER_UNITS(ghcb_cipher_units_0, 0, cipher->data.encrypt)
GHCB_CIPHER_UNITS(ghcb_cipher_units_1, 1, cipher->data.decrypt)
#endif

/* Whether all groups were done that way: those of n bytes that begin with a line. */
static inline int ghcb_cipher_units(const ghcb_cipher_t *cipher, int decrypt, const uint8_t *in,
                                    uint8_t *out, uint64_t spa, size_t n_groups)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (n_groups && cipher->path == GHCB_AES_PATH_VAES512 &&
        cipher->unit_shift == GHCB_CIPHER_UNIT_SHIFT && spa % GHCB_CIPHER_LINE == 0) {
        if (decrypt)
            ghcb_cipher_units_1(cipher, spa / GHCB_CIPHER_LINE, in, out, n_groups);
        else
            ghcb_cipher_units_0(cipher, spa / GHCB_CIPHER_LINE, in, out, n_groups);
        return 1;
    }
#endif
    (void)cipher, (void)decrypt, (void)in, (void)out, (void)spa, (void)n_groups;
    return 0;
}

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

/* One piece, or less, in the general way. */
static inline void ghcb_cipher_xts_piece(const ghcb_cipher_t *cipher,
                                         const ghcb_cipher_loops_t *loops, int decrypt,
                                         const uint8_t *in, uint8_t *out, uint64_t spa, size_t n)
{
    const unsigned shift = cipher->unit_shift;
    const size_t per_unit = (size_t)1 << (shift - GHCB_CIPHER_FIRST_BIT);
    const uint64_t first = spa >> shift;
    const size_t n_units = (size_t)(((spa + n - 1) >> shift) - first + 1);
    _Alignas(GHCB_CIPHER_LINE) ghcb_block_t units[GHCB_CIPHER_PIECE / GHCB_AES_BLOCK];
    _Alignas(GHCB_CIPHER_LINE) ghcb_block_t blocks[GHCB_CIPHER_PIECE / GHCB_AES_BLOCK];
    ghcb_cipher_piece_t piece = {
        .units = units,
        .blocks = per_unit == 1 ? units : blocks,
        .per_unit = per_unit,
        .n_made = per_unit == 1 ? n_units : 0,
        .by_four = cipher->path == GHCB_AES_PATH_VAES512 && per_unit >= 4,
    };
    ghcb_cipher_run_t run = {
        .keys = (const ghcb_block_t *)(decrypt ? cipher->data.decrypt : cipher->data.encrypt),
        .rounds = cipher->data.rounds,
        .step_pre = (const ghcb_block_t *)ghcb_cipher_no_tweaks.step,
        .step_post = (const ghcb_block_t *)ghcb_cipher_no_tweaks.step,
    };
    size_t block = (spa >> GHCB_CIPHER_FIRST_BIT) % per_unit, left;

    for (size_t i = 0; i < n_units; i++)
        ghcb_block_store(units[i], first + i, 0);
    ghcb_cipher_encrypt_numbers(cipher, loops, units, n_units);
    for (size_t at = 0; at < n; at += left) {
        left = n - at < GHCB_CIPHER_GROUP ? n - at : GHCB_CIPHER_GROUP;
        run.pre = run.post = (const ghcb_block_t *)piece.blocks + block;
        block += left / GHCB_AES_BLOCK;
        ghcb_cipher_make(&piece, block);
        if (left == GHCB_CIPHER_GROUP)
            loops->groups[decrypt](&run, in + at, out + at, 1);
        else
            ghcb_cipher_lines(loops, decrypt, &run, in + at, out + at, left);
    }
}

static inline void ghcb_cipher_xts(const ghcb_cipher_t *cipher, int decrypt, const uint8_t *in,
                                   uint8_t *out, uint64_t spa, size_t n_bytes)
{
    const ghcb_cipher_loops_t loops = ghcb_cipher_loops(cipher->path);

    while (n_bytes) {
        const size_t room = GHCB_CIPHER_PIECE - spa % GHCB_CIPHER_PIECE;
        const size_t to_line = GHCB_CIPHER_LINE - spa % GHCB_CIPHER_LINE;
        const size_t n_groups = n_bytes >> GHCB_CIPHER_GROUP_SHIFT;
        size_t n = n_bytes < room ? n_bytes : room;

        if (ghcb_cipher_units(cipher, decrypt, in, out, spa, n_groups)) {
            n = n_groups << GHCB_CIPHER_GROUP_SHIFT;
        } else {
            if (to_line < GHCB_CIPHER_LINE && n > to_line)
                n = to_line; /* all that follows begins a line */
            ghcb_cipher_xts_piece(cipher, &loops, decrypt, in, out, spa, n);
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
