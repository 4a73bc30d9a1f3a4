/* Encryption of memory: modes, tweaks by address, key slots.
 *
 * A memory controller encrypts each block of 16 bytes by itself, under the key of the access and
 * with a tweak that depends on the block's address p, so equal content has another ciphertext at
 * another place, and the same one at the same place each time.
 *
 *     XE     c = E(m ^ T(p))             Zen 1
 *     XEX    c = E(m ^ T(p)) ^ T(p)      Zen 1 (newer), Zen 2 and later with other constants
 *     XTS    c = E(m ^ X(p)) ^ X(p)      newer parts, with keys of 256 bits
 *
 * E is AES. T(p) is the XOR of one constant t_i for each address bit i from 4 on that is set, and
 * so linear: T(p ^ q) = T(p) ^ T(q). Within a group of 512 bytes that begins at a multiple of 512
 * only bits 4 to 8 differ, so 32 sums are made once; from one group to the next only the bits up to
 * the lowest zero change, so the sums of these are made once, too. All that is left for each block
 * is one XOR before and one after.
 *
 * Assumption, because no source has the layout: X(p) is made as IEEE 1619 does. Memory is divided
 * into units of 2**unit_shift bytes; the number of a unit (its address divided by its size, 128
 * bits, little-endian) is encrypted under the second key, and the tweak of the unit's j-th block
 * is that times x**j. A unit is a line of 64 bytes unless the caller says otherwise; with units of
 * 16 bytes each block's own number is encrypted.
 *
 * Assumption: where keys are derived for each memory channel, half h of the key of channel c is
 * E_seed_h(c, 0), E_seed_h(c, 1), ... with c and the count as little-endian words of 64 bits. That
 * it is "a KDF with the channel index" is known, no more.
 *
 * Units: addresses (`spa`) and lengths in bytes, multiples of 16, without the C-bit; the key slots
 * are those of Genoa's data fabric.
 *
 * Source: SEVurity (Wilke et al. 2020) III-A, III-B, IX and its published constants; Du et al.
 * 2017; AMD-ASPFW (key slots); IEEE 1619.
 */
#ifndef GHCBCORE_CIPHER_H
#define GHCBCORE_CIPHER_H

#include <ghcbcore/aes.h>
#include <ghcbcore/keyslot.h>
#include <ghcbcore/status.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* cffi: begin */
#define GHCB_CIPHER_XE 0
#define GHCB_CIPHER_XEX 1
#define GHCB_CIPHER_XTS 2

/* T(p): its first address bit; how many constants are published; bits of an address. */
#define GHCB_CIPHER_FIRST_BIT 4
#define GHCB_CIPHER_N_PUBLISHED 28
#define GHCB_CIPHER_ADDRESS_BITS 52

#define GHCB_CIPHER_UNIT_SHIFT 6 /* of XTS, by default */
#define GHCB_CIPHER_UNIT_SHIFT_MIN 4
#define GHCB_CIPHER_UNIT_SHIFT_MAX 12

/* What a host reads, without the C-bit, of an SNP guest's page where ciphertext is hidden. */
#define GHCB_CIPHER_HIDDEN 0xff
/* cffi: end */

/* t_4 to t_31 of Zen 1, the first four bytes in the order of memory; a constant is these four
 * times. They depend on the firmware; those of higher bits are not known. */
static const uint8_t ghcb_cipher_published[GHCB_CIPHER_N_PUBLISHED][4] = {
    {0x82, 0x25, 0x38, 0x38}, {0xec, 0x09, 0x07, 0x9c}, {0x40, 0x00, 0x00, 0x18},
    {0x81, 0x02, 0xa2, 0x3a}, {0x77, 0xd9, 0x10, 0x77}, {0xb0, 0x10, 0xb2, 0xc0},
    {0x53, 0x6d, 0x54, 0x4d}, {0x15, 0x68, 0xee, 0x53}, {0xb0, 0x92, 0x30, 0xc2},
    {0x96, 0x70, 0xff, 0x8e}, {0x36, 0x1b, 0x90, 0xd5}, {0x04, 0x00, 0xc2, 0x36},
    {0xe8, 0x18, 0x29, 0x85}, {0xbd, 0x31, 0xf9, 0x2a}, {0xa5, 0x0d, 0x37, 0x44},
    {0xf4, 0x31, 0xd8, 0x4c}, {0x02, 0x04, 0x31, 0x81}, {0xb3, 0x71, 0x32, 0xa1},
    {0x50, 0x8a, 0xc0, 0x6c}, {0x16, 0x8a, 0x80, 0x20}, {0x7f, 0x9b, 0xc0, 0x07},
    {0x00, 0xdb, 0x04, 0x07}, {0x7f, 0x00, 0x04, 0x04}, {0x70, 0xfa, 0x01, 0xbe},
    {0xbb, 0x3d, 0x28, 0x90}, {0xbd, 0x2d, 0xd5, 0x26}, {0x1c, 0x5d, 0x6c, 0xe2},
    {0x4f, 0x5c, 0xe7, 0x27},
};

/* What is done at once: a line of 4 blocks, a group of 32; for XTS a page is prepared at a time. */
#define GHCB_CIPHER_LINE 64
#define GHCB_CIPHER_GROUP_SHIFT 9
#define GHCB_CIPHER_GROUP (1 << GHCB_CIPHER_GROUP_SHIFT)
#define GHCB_CIPHER_PIECE (1 << GHCB_CIPHER_UNIT_SHIFT_MAX)
#define GHCB_CIPHER_STREAM_FROM (16u << 20) /* measured where the third-level cache has 32 MiB */
#define GHCB_CIPHER_N_STEPS (GHCB_CIPHER_ADDRESS_BITS - GHCB_CIPHER_GROUP_SHIFT + 1)

typedef uint8_t ghcb_block_t[GHCB_AES_BLOCK];

typedef struct {
    ghcb_block_t low[GHCB_CIPHER_GROUP / GHCB_AES_BLOCK]; /* T of each block of the first group */
    ghcb_block_t step[GHCB_CIPHER_N_STEPS]; /* T(g ^ (g + 1)), g a group with i ones at its end */
    ghcb_block_t bit[GHCB_CIPHER_ADDRESS_BITS]; /* t_i */
} ghcb_tweaks_t;

static const ghcb_tweaks_t ghcb_cipher_no_tweaks;

typedef struct {
    ghcb_aes_t data;
    ghcb_aes_t tweak;             /* of XTS */
    const ghcb_tweaks_t *address; /* of the others */
    uint32_t mode;
    uint32_t path;
    uint32_t unit_shift;
    uint32_t reserved;
    uint64_t stream_from; /* bytes from which on results may go past the caches */
} ghcb_cipher_t;

/* What a loop over groups or lines is given; `n` of them lie one after the other. */
typedef struct {
    const ghcb_block_t *keys;
    const ghcb_block_t *pre;  /* goes into each block of a group before E, with `high_pre` */
    const ghcb_block_t *post; /* the same, after it */
    const ghcb_block_t *step_pre;
    const ghcb_block_t *step_post;
    size_t stride; /* of `pre` and `post` from one group to the next, in bytes */
    uint64_t group;
    uint32_t rounds;
    ghcb_block_t high_pre;
    ghcb_block_t high_post;
} ghcb_cipher_run_t;

static inline void ghcb_block_xor(uint8_t *to, const uint8_t *from)
{
    uint64_t a[2], b[2];

    memcpy(a, to, sizeof(a));
    memcpy(b, from, sizeof(b));
    a[0] ^= b[0];
    a[1] ^= b[1];
    memcpy(to, a, sizeof(a));
}

/* Make the sums of `n` constants, those of address bits 4 on; higher bits have none. */
static inline int ghcb_tweaks_init(ghcb_tweaks_t *tweaks, const ghcb_block_t *constants, size_t n)
{
    if (n > GHCB_CIPHER_ADDRESS_BITS - GHCB_CIPHER_FIRST_BIT)
        return GHCB_E_OUT_OF_RANGE;
    memset(tweaks, 0, sizeof(*tweaks));
    if (n)
        memcpy(tweaks->bit[GHCB_CIPHER_FIRST_BIT], constants, n * sizeof(*constants));
    for (unsigned i = 1; i < GHCB_CIPHER_GROUP / GHCB_AES_BLOCK; i++) {
        const unsigned lowest = (unsigned)__builtin_ctz(i);

        memcpy(tweaks->low[i], tweaks->low[i & (i - 1)], GHCB_AES_BLOCK);
        ghcb_block_xor(tweaks->low[i], tweaks->bit[GHCB_CIPHER_FIRST_BIT + lowest]);
    }
    for (unsigned i = 0; i < GHCB_CIPHER_N_STEPS; i++) {
        if (i)
            memcpy(tweaks->step[i], tweaks->step[i - 1], GHCB_AES_BLOCK);
        /* past the last address nothing is left to be changed */
        if (GHCB_CIPHER_GROUP_SHIFT + i < GHCB_CIPHER_ADDRESS_BITS)
            ghcb_block_xor(tweaks->step[i], tweaks->bit[GHCB_CIPHER_GROUP_SHIFT + i]);
    }
    return GHCB_OK;
}

/* The published constants: returns their number. */
static inline size_t ghcb_tweaks_published(ghcb_block_t *out)
{
    for (unsigned i = 0; i < GHCB_CIPHER_N_PUBLISHED; i++)
        for (unsigned j = 0; j < GHCB_AES_BLOCK; j++)
            out[i][j] = ghcb_cipher_published[i][j % 4];
    return GHCB_CIPHER_N_PUBLISHED;
}

/* T(p). */
static inline void ghcb_tweak(const ghcb_tweaks_t *tweaks, uint64_t spa, uint8_t *out)
{
    uint64_t bits = spa >> GHCB_CIPHER_FIRST_BIT;

    memset(out, 0, GHCB_AES_BLOCK);
    for (; bits; bits &= bits - 1)
        ghcb_block_xor(out, tweaks->bit[GHCB_CIPHER_FIRST_BIT + __builtin_ctzll(bits)]);
}

/* Bytes of a key: XE and XEX have one of AES-128, XTS two of AES-128 or AES-256. */
static inline int ghcb_cipher_key_fits(uint32_t mode, size_t n_bytes)
{
    return mode == GHCB_CIPHER_XTS
               ? n_bytes == 2 * GHCB_AES_KEY_128 || n_bytes == 2 * GHCB_AES_KEY_256
               : mode < GHCB_CIPHER_XTS && n_bytes == GHCB_AES_KEY_128;
}

/* Make a cipher of its key. `address` must outlive it; only XTS has none. The path must be one that
 * this machine has. */
static inline int ghcb_cipher_init(ghcb_cipher_t *cipher, uint32_t mode, const uint8_t *key,
                                   size_t n_bytes, const ghcb_tweaks_t *address,
                                   uint32_t unit_shift, uint32_t path)
{
    const size_t half = mode == GHCB_CIPHER_XTS ? n_bytes / 2 : n_bytes;

    if (!ghcb_cipher_key_fits(mode, n_bytes) || path >= GHCB_AES_N_PATHS ||
        unit_shift < GHCB_CIPHER_UNIT_SHIFT_MIN || unit_shift > GHCB_CIPHER_UNIT_SHIFT_MAX ||
        (mode != GHCB_CIPHER_XTS && !address))
        return GHCB_E_OUT_OF_RANGE;
    memset(cipher, 0, sizeof(*cipher));
    ghcb_aes_init(&cipher->data, key, half);
    if (mode == GHCB_CIPHER_XTS)
        ghcb_aes_init(&cipher->tweak, key + half, half);
    cipher->address = mode == GHCB_CIPHER_XTS ? &ghcb_cipher_no_tweaks : address;
    cipher->mode = mode;
    cipher->path = path;
    cipher->unit_shift = unit_shift;
    cipher->stream_from = GHCB_CIPHER_STREAM_FROM;
    return GHCB_OK;
}

/* A block of two words, little-endian. */
static inline void ghcb_block_store(uint8_t *out, uint64_t low, uint64_t high)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    memcpy(out, &low, sizeof(low));
    memcpy(out + 8, &high, sizeof(high));
#else
    ghcb_aes_store(out, (uint32_t)low);
    ghcb_aes_store(out + 4, (uint32_t)(low >> 32));
    ghcb_aes_store(out + 8, (uint32_t)high);
    ghcb_aes_store(out + 12, (uint32_t)(high >> 32));
#endif
}

static inline void ghcb_block_load(const uint8_t *in, uint64_t *low, uint64_t *high)
{
    *low = (uint64_t)ghcb_aes_load(in + 4) << 32 | ghcb_aes_load(in);
    *high = (uint64_t)ghcb_aes_load(in + 12) << 32 | ghcb_aes_load(in + 8);
}

/* E_seed(low, high), both words little-endian: of what keys are derived. */
static inline int ghcb_cipher_derive_block(const uint8_t *seed, size_t n_seed, uint64_t low,
                                           uint64_t high, uint8_t *out)
{
    ghcb_aes_t aes;
    ghcb_block_t number;
    const int status = ghcb_aes_init(&aes, seed, n_seed);

    if (status != GHCB_OK)
        return status;
    ghcb_block_store(number, low, high);
    ghcb_aes_encrypt_block((const ghcb_block_t *)aes.encrypt, aes.rounds, number, out);
    return GHCB_OK;
}

/* What a machine draws at random a model derives from a seed of 16 bytes: E_seed(which of them and
 * of what sort, how often before). Firmware and boot draw from different sorts. */
#define GHCB_CIPHER_SORT_KEY 0
#define GHCB_CIPHER_SORT_TWEAK 1

static inline void ghcb_cipher_draw(const uint8_t *seed, uint64_t sort, uint64_t which,
                                    uint64_t times, uint8_t *out, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes / GHCB_AES_BLOCK; i++)
        ghcb_cipher_derive_block(seed, GHCB_AES_KEY_128, sort << 48 | which << 16 | i, times,
                                 out + i * GHCB_AES_BLOCK);
}

/* The key of a channel, as long as the seed; `out` must not overlap it. */
static inline int ghcb_cipher_channel_key(uint32_t mode, const uint8_t *seed, size_t n_bytes,
                                          uint64_t channel, uint8_t *out)
{
    const size_t half = mode == GHCB_CIPHER_XTS ? n_bytes / 2 : n_bytes;

    if (!ghcb_cipher_key_fits(mode, n_bytes))
        return GHCB_E_OUT_OF_RANGE;
    for (size_t h = 0; h < n_bytes; h += half)
        for (size_t i = 0; i < half; i += GHCB_AES_BLOCK)
            ghcb_cipher_derive_block(seed + h, half, channel, i / GHCB_AES_BLOCK, out + h + i);
    return GHCB_OK;
}

#endif
