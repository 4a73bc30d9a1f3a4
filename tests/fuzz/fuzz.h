/* What every fuzz target has: a reader of its input, and a check that ends the run. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A reader that never fails: after the end everything is 0. */
typedef struct {
    const uint8_t *at;
    size_t left;
} input_t;

static inline void take(input_t *in, void *to, size_t n)
{
    size_t have = n < in->left ? n : in->left;

    memset(to, 0, n);
    if (have)
        memcpy(to, in->at, have);
    in->at += have;
    in->left -= have;
}

static inline uint8_t take8(input_t *in)
{
    uint8_t value;

    take(in, &value, sizeof(value));
    return value;
}

static inline uint64_t take64(input_t *in)
{
    uint64_t value;

    take(in, &value, sizeof(value));
    return value;
}

#define MUST(condition)                                                                          \
    do {                                                                                         \
        if (!(condition)) {                                                                      \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);       \
            abort();                                                                             \
        }                                                                                        \
    } while (0)

#endif
