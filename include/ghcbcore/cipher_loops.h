/* The loops of cipher_many.h: XOR, AES, XOR over any number of blocks, in each way a machine has.
 *
 * Theory of operation. All modes are one: XOR something into each block, AES, XOR something. The
 * loops work on groups of 512 bytes, eight registers at a time so that AES instructions need not
 * wait for each other, and on single lines of 64 bytes. The last XOR costs nothing: it goes into
 * the last round's key. A loop is written once, as a macro, and made for registers of one, two and
 * four blocks and both directions; which of them is taken was decided when the cipher was made.
 *
 * `in` and `out` are the same or do not overlap, and are aligned as they like. All paths give the
 * same bytes; tests compare them.
 */
#ifndef GHCBCORE_CIPHER_LOOPS_H
#define GHCBCORE_CIPHER_LOOPS_H

#include <ghcbcore/cipher.h>

typedef void ghcb_cipher_loop_t(const ghcb_cipher_run_t *run, const uint8_t *in, uint8_t *out,
                                size_t n);

/* One path: its loops over groups and lines, by direction (1 decrypts). The third is for groups
 * whose results go past the caches, where there is one: `out` is a multiple of 16 and not `in`, and
 * the 64 bytes before it are results, too. */
typedef struct {
    ghcb_cipher_loop_t *groups[2];
    ghcb_cipher_loop_t *line[2];
    ghcb_cipher_loop_t *stream[2];
} ghcb_cipher_loops_t;

#define GHCB_CIPHER_PORTABLE(name, block, bytes)                                                   \
    static inline void name(const ghcb_cipher_run_t *run, const uint8_t *in, uint8_t *out,         \
                            size_t n)                                                              \
    {                                                                                              \
        ghcb_block_t pre, post, x;                                                                 \
                                                                                                   \
        memcpy(pre, run->high_pre, sizeof(pre));                                                   \
        memcpy(post, run->high_post, sizeof(post));                                                \
        for (size_t i = 0; i < n; i++) {                                                           \
            const uint8_t *const low_pre = (const uint8_t *)run->pre + i * run->stride;            \
            const uint8_t *const low_post = (const uint8_t *)run->post + i * run->stride;          \
            const int ones = __builtin_ctzll(~(run->group + i));                                   \
                                                                                                   \
            for (size_t at = 0; at < (bytes); at += GHCB_AES_BLOCK) {                              \
                memcpy(x, in + i * (bytes) + at, sizeof(x));                                       \
                ghcb_block_xor(x, low_pre + at);                                                   \
                ghcb_block_xor(x, pre);                                                            \
                block(run->keys, run->rounds, x, x);                                               \
                ghcb_block_xor(x, low_post + at);                                                  \
                ghcb_block_xor(x, post);                                                           \
                memcpy(out + i * (bytes) + at, x, sizeof(x));                                      \
            }                                                                                      \
            ghcb_block_xor(pre, run->step_pre[ones]);                                              \
            ghcb_block_xor(post, run->step_post[ones]);                                            \
        }                                                                                          \
    }

GHCB_CIPHER_PORTABLE(ghcb_cipher_groups_portable_0, ghcb_aes_encrypt_block, GHCB_CIPHER_GROUP)
GHCB_CIPHER_PORTABLE(ghcb_cipher_groups_portable_1, ghcb_aes_decrypt_block, GHCB_CIPHER_GROUP)
GHCB_CIPHER_PORTABLE(ghcb_cipher_line_portable_0, ghcb_aes_encrypt_block, GHCB_CIPHER_LINE)
GHCB_CIPHER_PORTABLE(ghcb_cipher_line_portable_1, ghcb_aes_decrypt_block, GHCB_CIPHER_LINE)
#undef GHCB_CIPHER_PORTABLE

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

/* What a loop needs of a register of one (1), two (2) or four (4) blocks. */
#define GHCB_V1(f) f
typedef __m128i ghcb_v1_t;
#define GHCB_V1_ISA "sse2,aes"
#define GHCB_V1_LOAD(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define GHCB_V1_STORE(p, v) _mm_storeu_si128((__m128i *)(void *)(p), v)
#define GHCB_V1_SPREAD(p) GHCB_V1_LOAD(p)
#define GHCB_V1_XOR(a, b) _mm_xor_si128(a, b)
#define GHCB_V1_XOR3(a, b, c) _mm_xor_si128(_mm_xor_si128(a, b), c)
#define GHCB_V1_ROUND_0(x, key) _mm_aesenc_si128(x, key)
#define GHCB_V1_ROUND_1(x, key) _mm_aesdec_si128(x, key)
#define GHCB_V1_LAST_0(x, key) _mm_aesenclast_si128(x, key)
#define GHCB_V1_LAST_1(x, key) _mm_aesdeclast_si128(x, key)

typedef __m256i ghcb_v2_t;
#define GHCB_V2_ISA "avx2,aes,vaes"
#define GHCB_V2_LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define GHCB_V2_STORE(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define GHCB_V2_SPREAD(p) _mm256_broadcastsi128_si256(GHCB_V1_LOAD(p))
#define GHCB_V2_XOR(a, b) _mm256_xor_si256(a, b)
#define GHCB_V2_XOR3(a, b, c) _mm256_xor_si256(_mm256_xor_si256(a, b), c)
#define GHCB_V2_ROUND_0(x, key) _mm256_aesenc_epi128(x, key)
#define GHCB_V2_ROUND_1(x, key) _mm256_aesdec_epi128(x, key)
#define GHCB_V2_LAST_0(x, key) _mm256_aesenclast_epi128(x, key)
#define GHCB_V2_LAST_1(x, key) _mm256_aesdeclast_epi128(x, key)

typedef __m512i ghcb_v4_t;
#define GHCB_V4_ISA "avx512f,avx512dq,aes,vaes"
#define GHCB_V4_LOAD(p) _mm512_loadu_si512((const void *)(p))
#define GHCB_V4_STORE(p, v) _mm512_storeu_si512((void *)(p), v)
#define GHCB_V4_SPREAD(p) _mm512_broadcast_i32x4(GHCB_V1_LOAD(p))
#define GHCB_V4_XOR(a, b) _mm512_xor_si512(a, b)
#define GHCB_V4_XOR3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
#define GHCB_V4_ROUND_0(x, key) _mm512_aesenc_epi128(x, key)
#define GHCB_V4_ROUND_1(x, key) _mm512_aesdec_epi128(x, key)
#define GHCB_V4_LAST_0(x, key) _mm512_aesenclast_epi128(x, key)
#define GHCB_V4_LAST_1(x, key) _mm512_aesdeclast_epi128(x, key)

/* One statement for each of N registers x0, x1, ... */
#define GHCB_CIPHER_X1(X, v, d) X(v, d, 0)
#define GHCB_CIPHER_X2(X, v, d) GHCB_CIPHER_X1(X, v, d) X(v, d, 1)
#define GHCB_CIPHER_X4(X, v, d) GHCB_CIPHER_X2(X, v, d) X(v, d, 2) X(v, d, 3)
#define GHCB_CIPHER_X8(X, v, d) GHCB_CIPHER_X4(X, v, d) X(v, d, 4) X(v, d, 5) X(v, d, 6) X(v, d, 7)

#define GHCB_CIPHER_FROM(k) (at + (k) * sizeof(pre))
#define GHCB_CIPHER_BEGIN(v, d, k)                                                                 \
    x##k = GHCB_V##v##_XOR3(GHCB_V##v##_LOAD(in + GHCB_CIPHER_FROM(k)),                            \
                            GHCB_V##v##_LOAD(low_pre + GHCB_CIPHER_FROM(k)), pre);
#define GHCB_CIPHER_ROUND(v, d, k) x##k = GHCB_V##v##_ROUND_##d(x##k, key);
#define GHCB_CIPHER_END(v, d, k)                                                                   \
    key = GHCB_V##v##_XOR(GHCB_V##v##_LOAD(low_post + GHCB_CIPHER_FROM(k)), post);                 \
    GHCB_V##v##_STORE(out + GHCB_CIPHER_FROM(k), GHCB_V##v##_LAST_##d(x##k, key));
#define GHCB_CIPHER_DECLARE(v, d, k) ghcb_v##v##_t x##k;

/* All rounds but the last, written out: as a loop, compilers move each register once a round. */
#define GHCB_CIPHER_ROUNDS(X, v, d, N)                                                             \
    X(v, d, N, 1) X(v, d, N, 2) X(v, d, N, 3) X(v, d, N, 4) X(v, d, N, 5) X(v, d, N, 6)            \
    X(v, d, N, 7) X(v, d, N, 8) X(v, d, N, 9)                                                      \
    if (rounds == GHCB_AES_MAX_ROUNDS) {                                                           \
        X(v, d, N, 10) X(v, d, N, 11) X(v, d, N, 12) X(v, d, N, 13)                                \
    }
#define GHCB_CIPHER_ONE_ROUND(v, d, N, r)                                                          \
    key = GHCB_V##v##_SPREAD(keys[r]);                                                             \
    GHCB_CIPHER_X##N(GHCB_CIPHER_ROUND, v, d)

/* Past the caches goes a whole line at a time, or the line that it replaces is fetched after all.
 * So each store takes the end of the register before and the begin of this one, as lines lie in
 * `out`; what the last one leaves is stored as usual. */
#define GHCB_CIPHER_SPLICE_BEGIN                                                                   \
    const size_t shift = (uintptr_t)out % GHCB_CIPHER_LINE;                                        \
    const __m512i splice = _mm512_sub_epi64(_mm512_setr_epi64(8, 9, 10, 11, 12, 13, 14, 15),       \
                                            _mm512_set1_epi64((long long)shift / 8));              \
    __m512i before = GHCB_V4_LOAD(out - GHCB_CIPHER_LINE);
#define GHCB_CIPHER_SPLICE_END                                                                     \
    GHCB_V4_STORE(out - GHCB_CIPHER_LINE, before);                                                 \
    _mm_sfence();
#define GHCB_CIPHER_SPLICE(v, d, k)                                                                \
    key = GHCB_V4_XOR(GHCB_V4_LOAD(low_post + GHCB_CIPHER_FROM(k)), post);                         \
    key = GHCB_V4_LAST_##d(x##k, key);                                                             \
    _mm512_stream_si512((void *)(out - shift + GHCB_CIPHER_FROM(k)),                               \
                        _mm512_permutex2var_epi64(before, splice, key));                           \
    before = key;

/* `n` pieces of `bytes`, N registers of v blocks at a time, direction d. */
#define GHCB_CIPHER_LOOP(name, v, d, N, bytes, begin, store, end)                                  \
    __attribute__((target(GHCB_V##v##_ISA))) static inline void name(                              \
        const ghcb_cipher_run_t *run, const uint8_t *in, uint8_t *out, size_t n)                   \
    {                                                                                              \
        const ghcb_block_t *const keys = run->keys;                                                \
        const uint32_t rounds = run->rounds;                                                       \
        const uint8_t *low_pre = (const uint8_t *)run->pre;                                        \
        const uint8_t *low_post = (const uint8_t *)run->post;                                      \
        ghcb_v##v##_t pre = GHCB_V##v##_XOR(GHCB_V##v##_SPREAD(run->high_pre),                     \
                                            GHCB_V##v##_SPREAD(keys[0]));                          \
        ghcb_v##v##_t post = GHCB_V##v##_XOR(GHCB_V##v##_SPREAD(run->high_post),                   \
                                             GHCB_V##v##_SPREAD(keys[rounds]));                    \
        begin                                                                                      \
                                                                                                   \
        for (size_t i = 0; i < n; i++) {                                                           \
            const int ones = __builtin_ctzll(~(run->group + i));                                   \
                                                                                                   \
            for (size_t at = 0; at < (bytes); at += N * sizeof(pre)) {                             \
                GHCB_CIPHER_X##N(GHCB_CIPHER_DECLARE, v, d) ghcb_v##v##_t key;                     \
                                                                                                   \
                GHCB_CIPHER_X##N(GHCB_CIPHER_BEGIN, v, d)                                          \
                GHCB_CIPHER_ROUNDS(GHCB_CIPHER_ONE_ROUND, v, d, N)                                 \
                GHCB_CIPHER_X##N(store, v, d)                                                      \
            }                                                                                      \
            in += (bytes);                                                                         \
            out += (bytes);                                                                        \
            low_pre += run->stride;                                                                \
            low_post += run->stride;                                                               \
            pre = GHCB_V##v##_XOR(pre, GHCB_V##v##_SPREAD(run->step_pre[ones]));                   \
            post = GHCB_V##v##_XOR(post, GHCB_V##v##_SPREAD(run->step_post[ones]));                \
        }                                                                                          \
        end                                                                                        \
    }

#define GHCB_CIPHER_BOTH(name, v, N, bytes)                                                        \
    GHCB_CIPHER_LOOP(name##_0, v, 0, N, bytes, , GHCB_CIPHER_END, )                                \
    GHCB_CIPHER_LOOP(name##_1, v, 1, N, bytes, , GHCB_CIPHER_END, )

GHCB_CIPHER_BOTH(ghcb_cipher_groups_1, 1, 8, GHCB_CIPHER_GROUP)
GHCB_CIPHER_BOTH(ghcb_cipher_groups_2, 2, 8, GHCB_CIPHER_GROUP)
GHCB_CIPHER_BOTH(ghcb_cipher_groups_4, 4, 8, GHCB_CIPHER_GROUP)
GHCB_CIPHER_BOTH(ghcb_cipher_line_1, 1, 4, GHCB_CIPHER_LINE)
GHCB_CIPHER_BOTH(ghcb_cipher_line_2, 2, 2, GHCB_CIPHER_LINE)
GHCB_CIPHER_BOTH(ghcb_cipher_line_4, 4, 1, GHCB_CIPHER_LINE)
GHCB_CIPHER_LOOP(ghcb_cipher_stream_0, 4, 0, 8, GHCB_CIPHER_GROUP, GHCB_CIPHER_SPLICE_BEGIN,
                 GHCB_CIPHER_SPLICE, GHCB_CIPHER_SPLICE_END)
GHCB_CIPHER_LOOP(ghcb_cipher_stream_1, 4, 1, 8, GHCB_CIPHER_GROUP, GHCB_CIPHER_SPLICE_BEGIN,
                 GHCB_CIPHER_SPLICE, GHCB_CIPHER_SPLICE_END)
#endif

static inline ghcb_cipher_loops_t ghcb_cipher_loops(uint32_t path)
{
    static const ghcb_cipher_loops_t loops[GHCB_AES_N_PATHS] = {
        [GHCB_AES_PATH_PORTABLE] = {{ghcb_cipher_groups_portable_0, ghcb_cipher_groups_portable_1},
                                    {ghcb_cipher_line_portable_0, ghcb_cipher_line_portable_1},
                                    {NULL, NULL}},
#if defined(__x86_64__) && defined(__GNUC__)
        [GHCB_AES_PATH_AESNI] = {{ghcb_cipher_groups_1_0, ghcb_cipher_groups_1_1},
                                 {ghcb_cipher_line_1_0, ghcb_cipher_line_1_1},
                                   {NULL, NULL}},
        [GHCB_AES_PATH_VAES256] = {{ghcb_cipher_groups_2_0, ghcb_cipher_groups_2_1},
                                   {ghcb_cipher_line_2_0, ghcb_cipher_line_2_1},
                                   {NULL, NULL}},
        [GHCB_AES_PATH_VAES512] = {{ghcb_cipher_groups_4_0, ghcb_cipher_groups_4_1},
                                   {ghcb_cipher_line_4_0, ghcb_cipher_line_4_1},
                                   {ghcb_cipher_stream_0, ghcb_cipher_stream_1}},
#endif
    };

    return loops[path];
}

/* Whether results go past the caches: only from a large array to another. */
static inline int ghcb_cipher_streams(const ghcb_cipher_t *cipher,
                                      const ghcb_cipher_loops_t *loops, const uint8_t *in,
                                      const uint8_t *out, size_t n_bytes)
{
    return loops->stream[0] && in != out && n_bytes >= cipher->stream_from &&
           (uintptr_t)out % GHCB_AES_BLOCK == 0;
}

/* Less than a line. */
static inline void ghcb_cipher_part(ghcb_cipher_loop_t *line, ghcb_cipher_run_t *run,
                                    const uint8_t *in, uint8_t *out, size_t n_bytes)
{
    const ghcb_block_t *const pre = run->pre, *const post = run->post;
    ghcb_block_t own_pre[4], own_post[4];
    uint8_t buffer[GHCB_CIPHER_LINE];

    memset(buffer, 0, sizeof(buffer));
    memset(own_pre, 0, sizeof(own_pre));
    memset(own_post, 0, sizeof(own_post));
    memcpy(buffer, in, n_bytes);
    memcpy(own_pre, pre, n_bytes);
    memcpy(own_post, post, n_bytes);
    run->pre = (const ghcb_block_t *)own_pre;
    run->post = (const ghcb_block_t *)own_post;
    line(run, buffer, buffer, 1);
    memcpy(out, buffer, n_bytes);
    run->pre = pre;
    run->post = post;
}

/* Less than a group, or one: its blocks have `pre` and `post` one after the other. */
static inline void ghcb_cipher_lines(const ghcb_cipher_loops_t *loops, int decrypt,
                                     ghcb_cipher_run_t *run, const uint8_t *in, uint8_t *out,
                                     size_t n_bytes)
{
    const ghcb_block_t *const pre = run->pre, *const post = run->post;

    for (size_t at = 0; at < n_bytes; at += GHCB_CIPHER_LINE) {
        const size_t n = n_bytes - at < GHCB_CIPHER_LINE ? n_bytes - at : GHCB_CIPHER_LINE;

        run->pre = (const ghcb_block_t *)((const uint8_t *)pre + at);
        run->post = (const ghcb_block_t *)((const uint8_t *)post + at);
        if (n == GHCB_CIPHER_LINE)
            loops->line[decrypt](run, in + at, out + at, 1);
        else
            ghcb_cipher_part(loops->line[decrypt], run, in + at, out + at, n);
    }
    run->pre = pre;
    run->post = post;
}

#endif
