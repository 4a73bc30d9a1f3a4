/* AES with keys of 128 and 256 bits: key schedule, one block, and which instructions there are.
 *
 * Everything here is written for any machine; the loops over many blocks that use the processor's
 * own instructions are in cipher_loops.h and read the same schedules. The S-box stands here once,
 * as a list of pairs; its inverse and the tables of whole rounds are made of it by the compiler.
 *
 * This is a model's cipher. Its tables are read at places that depend on data and key, so timing
 * tells about them: protect nothing with it.
 *
 * Units: a block is 16 bytes, in the order of memory.
 *
 * Source: FIPS 197.
 */
#ifndef GHCBCORE_AES_H
#define GHCBCORE_AES_H

#include <ghcbcore/status.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* cffi: begin */
#define GHCB_AES_BLOCK 16
#define GHCB_AES_KEY_128 16 /* bytes */
#define GHCB_AES_KEY_256 32
#define GHCB_AES_MAX_ROUNDS 14

/* Ways to do the same: each needs what the one before it needs, and more. */
#define GHCB_AES_PATH_PORTABLE 0
#define GHCB_AES_PATH_AESNI 1   /* one block an instruction */
#define GHCB_AES_PATH_VAES256 2 /* two: VAES with AVX2 */
#define GHCB_AES_PATH_VAES512 3 /* four: VAES with AVX-512 */
#define GHCB_AES_N_PATHS 4
/* cffi: end */

typedef struct {
    uint8_t encrypt[GHCB_AES_MAX_ROUNDS + 1][GHCB_AES_BLOCK];
    uint8_t decrypt[GHCB_AES_MAX_ROUNDS + 1][GHCB_AES_BLOCK]; /* in the order of use */
    uint32_t rounds;                                         /* 10 or 14 */
} ghcb_aes_t;

/* The S-box: X(x, S(x)) for each byte. */
#define GHCB_AES_ROW(X, i, a, b, c, d, e, f, g, h)                                                 \
    X(i, a) X(i + 1, b) X(i + 2, c) X(i + 3, d) X(i + 4, e) X(i + 5, f) X(i + 6, g) X(i + 7, h)
#define GHCB_AES_EACH_BYTE(X)                                                                      \
    GHCB_AES_ROW(X, 0x00, 0x63, 0x7c, 0x77, 0x7b, 0xf2, 0x6b, 0x6f, 0xc5)                          \
    GHCB_AES_ROW(X, 0x08, 0x30, 0x01, 0x67, 0x2b, 0xfe, 0xd7, 0xab, 0x76)                          \
    GHCB_AES_ROW(X, 0x10, 0xca, 0x82, 0xc9, 0x7d, 0xfa, 0x59, 0x47, 0xf0)                          \
    GHCB_AES_ROW(X, 0x18, 0xad, 0xd4, 0xa2, 0xaf, 0x9c, 0xa4, 0x72, 0xc0)                          \
    GHCB_AES_ROW(X, 0x20, 0xb7, 0xfd, 0x93, 0x26, 0x36, 0x3f, 0xf7, 0xcc)                          \
    GHCB_AES_ROW(X, 0x28, 0x34, 0xa5, 0xe5, 0xf1, 0x71, 0xd8, 0x31, 0x15)                          \
    GHCB_AES_ROW(X, 0x30, 0x04, 0xc7, 0x23, 0xc3, 0x18, 0x96, 0x05, 0x9a)                          \
    GHCB_AES_ROW(X, 0x38, 0x07, 0x12, 0x80, 0xe2, 0xeb, 0x27, 0xb2, 0x75)                          \
    GHCB_AES_ROW(X, 0x40, 0x09, 0x83, 0x2c, 0x1a, 0x1b, 0x6e, 0x5a, 0xa0)                          \
    GHCB_AES_ROW(X, 0x48, 0x52, 0x3b, 0xd6, 0xb3, 0x29, 0xe3, 0x2f, 0x84)                          \
    GHCB_AES_ROW(X, 0x50, 0x53, 0xd1, 0x00, 0xed, 0x20, 0xfc, 0xb1, 0x5b)                          \
    GHCB_AES_ROW(X, 0x58, 0x6a, 0xcb, 0xbe, 0x39, 0x4a, 0x4c, 0x58, 0xcf)                          \
    GHCB_AES_ROW(X, 0x60, 0xd0, 0xef, 0xaa, 0xfb, 0x43, 0x4d, 0x33, 0x85)                          \
    GHCB_AES_ROW(X, 0x68, 0x45, 0xf9, 0x02, 0x7f, 0x50, 0x3c, 0x9f, 0xa8)                          \
    GHCB_AES_ROW(X, 0x70, 0x51, 0xa3, 0x40, 0x8f, 0x92, 0x9d, 0x38, 0xf5)                          \
    GHCB_AES_ROW(X, 0x78, 0xbc, 0xb6, 0xda, 0x21, 0x10, 0xff, 0xf3, 0xd2)                          \
    GHCB_AES_ROW(X, 0x80, 0xcd, 0x0c, 0x13, 0xec, 0x5f, 0x97, 0x44, 0x17)                          \
    GHCB_AES_ROW(X, 0x88, 0xc4, 0xa7, 0x7e, 0x3d, 0x64, 0x5d, 0x19, 0x73)                          \
    GHCB_AES_ROW(X, 0x90, 0x60, 0x81, 0x4f, 0xdc, 0x22, 0x2a, 0x90, 0x88)                          \
    GHCB_AES_ROW(X, 0x98, 0x46, 0xee, 0xb8, 0x14, 0xde, 0x5e, 0x0b, 0xdb)                          \
    GHCB_AES_ROW(X, 0xa0, 0xe0, 0x32, 0x3a, 0x0a, 0x49, 0x06, 0x24, 0x5c)                          \
    GHCB_AES_ROW(X, 0xa8, 0xc2, 0xd3, 0xac, 0x62, 0x91, 0x95, 0xe4, 0x79)                          \
    GHCB_AES_ROW(X, 0xb0, 0xe7, 0xc8, 0x37, 0x6d, 0x8d, 0xd5, 0x4e, 0xa9)                          \
    GHCB_AES_ROW(X, 0xb8, 0x6c, 0x56, 0xf4, 0xea, 0x65, 0x7a, 0xae, 0x08)                          \
    GHCB_AES_ROW(X, 0xc0, 0xba, 0x78, 0x25, 0x2e, 0x1c, 0xa6, 0xb4, 0xc6)                          \
    GHCB_AES_ROW(X, 0xc8, 0xe8, 0xdd, 0x74, 0x1f, 0x4b, 0xbd, 0x8b, 0x8a)                          \
    GHCB_AES_ROW(X, 0xd0, 0x70, 0x3e, 0xb5, 0x66, 0x48, 0x03, 0xf6, 0x0e)                          \
    GHCB_AES_ROW(X, 0xd8, 0x61, 0x35, 0x57, 0xb9, 0x86, 0xc1, 0x1d, 0x9e)                          \
    GHCB_AES_ROW(X, 0xe0, 0xe1, 0xf8, 0x98, 0x11, 0x69, 0xd9, 0x8e, 0x94)                          \
    GHCB_AES_ROW(X, 0xe8, 0x9b, 0x1e, 0x87, 0xe9, 0xce, 0x55, 0x28, 0xdf)                          \
    GHCB_AES_ROW(X, 0xf0, 0x8c, 0xa1, 0x89, 0x0d, 0xbf, 0xe6, 0x42, 0x68)                          \
    GHCB_AES_ROW(X, 0xf8, 0x41, 0x99, 0x2d, 0x0f, 0xb0, 0x54, 0xbb, 0x16)

/* Multiples of a byte in the field of AES; a column is a word with row 0 in its low byte. */
#define GHCB_AES_BY_2(x) (((x) << 1 ^ ((x) >> 7) * 0x1b) & 0xff)
#define GHCB_AES_BY_4(x) GHCB_AES_BY_2(GHCB_AES_BY_2(x))
#define GHCB_AES_BY_8(x) GHCB_AES_BY_2(GHCB_AES_BY_4(x))
#define GHCB_AES_COLUMN(a, b, c, d)                                                                \
    ((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16 | (uint32_t)(d) << 24)
#define GHCB_AES_X_BOX(x, s) [x] = s,
#define GHCB_AES_X_INVERSE(x, s) [s] = x,
#define GHCB_AES_X_MIX(x, s)                                                                       \
    [x] = GHCB_AES_COLUMN(GHCB_AES_BY_2(s), s, s, GHCB_AES_BY_2(s) ^ (s)),
#define GHCB_AES_X_UNMIX(x, s)                                                                     \
    [s] = GHCB_AES_COLUMN(GHCB_AES_BY_8(x) ^ GHCB_AES_BY_4(x) ^ GHCB_AES_BY_2(x),                  \
                          GHCB_AES_BY_8(x) ^ (x), GHCB_AES_BY_8(x) ^ GHCB_AES_BY_4(x) ^ (x),       \
                          GHCB_AES_BY_8(x) ^ GHCB_AES_BY_2(x) ^ (x)),

static const uint8_t ghcb_aes_box[256] = {GHCB_AES_EACH_BYTE(GHCB_AES_X_BOX)};
static const uint8_t ghcb_aes_inverse[256] = {GHCB_AES_EACH_BYTE(GHCB_AES_X_INVERSE)};
/* What a byte in row 0 becomes: through the S-box into its column; the way back. */
static const uint32_t ghcb_aes_mix[256] = {GHCB_AES_EACH_BYTE(GHCB_AES_X_MIX)};
static const uint32_t ghcb_aes_unmix[256] = {GHCB_AES_EACH_BYTE(GHCB_AES_X_UNMIX)};
#undef GHCB_AES_X_BOX
#undef GHCB_AES_X_INVERSE
#undef GHCB_AES_X_MIX
#undef GHCB_AES_X_UNMIX

static inline uint32_t ghcb_aes_load(const uint8_t *p)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint32_t column;

    memcpy(&column, p, sizeof(column)); /* compilers do not always see what the other form is */
    return column;
#else
    return GHCB_AES_COLUMN(p[0], p[1], p[2], p[3]);
#endif
}

static inline void ghcb_aes_store(uint8_t *p, uint32_t column)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    memcpy(p, &column, sizeof(column));
#else
    p[0] = (uint8_t)column;
    p[1] = (uint8_t)(column >> 8);
    p[2] = (uint8_t)(column >> 16);
    p[3] = (uint8_t)(column >> 24);
#endif
}

/* Move each byte of a column `rows` rows down. */
static inline uint32_t ghcb_aes_turn(uint32_t column, unsigned rows)
{
    return column << (8 * rows % 32) | column >> ((32 - 8 * rows) % 32);
}

/* The bytes of four columns, each through a table of bytes. */
static inline uint32_t ghcb_aes_bytes(const uint8_t *table, uint32_t a, uint32_t b, uint32_t c,
                                      uint32_t d)
{
    return GHCB_AES_COLUMN(table[a & 0xff], table[b >> 8 & 0xff], table[c >> 16 & 0xff],
                           table[d >> 24]);
}

/* The same, each through a table of columns. */
static inline uint32_t ghcb_aes_columns(const uint32_t *table, uint32_t a, uint32_t b, uint32_t c,
                                        uint32_t d)
{
    return table[a & 0xff] ^ ghcb_aes_turn(table[b >> 8 & 0xff], 1) ^
           ghcb_aes_turn(table[c >> 16 & 0xff], 2) ^ ghcb_aes_turn(table[d >> 24], 3);
}

/* Make both schedules of a key of GHCB_AES_KEY_128 or GHCB_AES_KEY_256 bytes. */
static inline int ghcb_aes_init(ghcb_aes_t *aes, const uint8_t *key, size_t n_bytes)
{
    uint32_t words[4 * (GHCB_AES_MAX_ROUNDS + 1)];
    const uint32_t n = (uint32_t)n_bytes / 4, rounds = n + 6;
    uint32_t constant = 1;

    if (n_bytes != GHCB_AES_KEY_128 && n_bytes != GHCB_AES_KEY_256)
        return GHCB_E_OUT_OF_RANGE;
    for (uint32_t i = 0; i < 4 * (rounds + 1); i++) {
        uint32_t word;

        if (i < n) {
            words[i] = ghcb_aes_load(key + 4 * i);
            continue;
        }
        word = words[i - 1];
        if (i % n == 0) {
            word = ghcb_aes_turn(word, 3);
            word = ghcb_aes_bytes(ghcb_aes_box, word, word, word, word) ^ constant;
            constant = GHCB_AES_BY_2(constant);
        } else if (n > 6 && i % n == 4) {
            word = ghcb_aes_bytes(ghcb_aes_box, word, word, word, word);
        }
        words[i] = words[i - n] ^ word;
    }
    memset(aes, 0, sizeof(*aes));
    aes->rounds = rounds;
    for (uint32_t i = 0; i < 4 * (rounds + 1); i++) {
        const uint32_t round = rounds - i / 4, word = words[i];
        uint8_t *const back = aes->decrypt[round] + 4 * (i % 4);

        ghcb_aes_store(aes->encrypt[i / 4] + 4 * (i % 4), word);
        if (round == 0 || round == rounds) {
            ghcb_aes_store(back, word);
        } else {
            const uint32_t s = ghcb_aes_bytes(ghcb_aes_box, word, word, word, word);

            ghcb_aes_store(back, ghcb_aes_columns(ghcb_aes_unmix, s, s, s, s));
        }
    }
    return GHCB_OK;
}

/* One block with the schedule of one direction; `in` and `out` may be the same. */
static inline void ghcb_aes_encrypt_block(const uint8_t (*keys)[GHCB_AES_BLOCK], uint32_t rounds,
                                          const uint8_t *in, uint8_t *out)
{
    uint32_t x[4], y[4];

    for (unsigned c = 0; c < 4; c++)
        x[c] = ghcb_aes_load(in + 4 * c) ^ ghcb_aes_load(keys[0] + 4 * c);
    for (uint32_t r = 1; r < rounds; r++) {
        for (unsigned c = 0; c < 4; c++)
            y[c] = ghcb_aes_columns(ghcb_aes_mix, x[c], x[(c + 1) % 4], x[(c + 2) % 4],
                                    x[(c + 3) % 4]) ^
                   ghcb_aes_load(keys[r] + 4 * c);
        memcpy(x, y, sizeof(x));
    }
    for (unsigned c = 0; c < 4; c++)
        ghcb_aes_store(out + 4 * c, ghcb_aes_bytes(ghcb_aes_box, x[c], x[(c + 1) % 4],
                                                   x[(c + 2) % 4], x[(c + 3) % 4]) ^
                                        ghcb_aes_load(keys[rounds] + 4 * c));
}

static inline void ghcb_aes_decrypt_block(const uint8_t (*keys)[GHCB_AES_BLOCK], uint32_t rounds,
                                          const uint8_t *in, uint8_t *out)
{
    uint32_t x[4], y[4];

    for (unsigned c = 0; c < 4; c++)
        x[c] = ghcb_aes_load(in + 4 * c) ^ ghcb_aes_load(keys[0] + 4 * c);
    for (uint32_t r = 1; r < rounds; r++) {
        for (unsigned c = 0; c < 4; c++)
            y[c] = ghcb_aes_columns(ghcb_aes_unmix, x[c], x[(c + 3) % 4], x[(c + 2) % 4],
                                    x[(c + 1) % 4]) ^
                   ghcb_aes_load(keys[r] + 4 * c);
        memcpy(x, y, sizeof(x));
    }
    for (unsigned c = 0; c < 4; c++)
        ghcb_aes_store(out + 4 * c, ghcb_aes_bytes(ghcb_aes_inverse, x[c], x[(c + 3) % 4],
                                                   x[(c + 2) % 4], x[(c + 1) % 4]) ^
                                        ghcb_aes_load(keys[rounds] + 4 * c));
}

/* The best path of this machine. It asks CPUID, which is slow in a VM: ask once. */
#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>

static inline int ghcb_aes_best_path(void)
{
    unsigned a, b, c, d;

    if (!__builtin_cpu_supports("aes"))
        return GHCB_AES_PATH_PORTABLE;
    /* not every compiler lets __builtin_cpu_supports ask for VAES */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(c & bit_VAES) ||
        !__builtin_cpu_supports("avx2"))
        return GHCB_AES_PATH_AESNI;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
               ? GHCB_AES_PATH_VAES512
               : GHCB_AES_PATH_VAES256;
}
#else
static inline int ghcb_aes_best_path(void)
{
    return GHCB_AES_PATH_PORTABLE;
}
#endif

#endif
