/* Faults of a host by name and seed: what a guest must survive, or notice.
 *
 * Wherever a fault could happen, the host draws: one time in `fault_rate` it does. The draw is a
 * hash of the seed and of how often was drawn before (`ghcb_vm_t.n_draws`), so the same requests
 * meet the same faults, and nothing here is random. A fault that is not in `faults` draws nothing.
 *
 * What each does, and where: the names below; words for people are in `pysev.tables.hosts`.
 */
#ifndef GHCBCORE_HOSTILE_H
#define GHCBCORE_HOSTILE_H

#include <ghcbcore/host.h>
#include <ghcbcore/nae.h>

/* cffi: begin */
#define GHCB_FAULT_WRONG_ANSWER 0    /* one bit of the answer is another */
#define GHCB_FAULT_REFUSED_FEATURE 1 /* what was offered is not given */
#define GHCB_FAULT_LOST_WAKEUP 2     /* STARTUP, NMI or AP creation wakes nobody */
#define GHCB_FAULT_DUPLICATED_WAKEUP 3 /* a release comes twice: the next hold ends at once */
#define GHCB_FAULT_EARLY_RESUME 4    /* a hold ends at once, not released */
#define GHCB_FAULT_PARTIAL_PSC 5     /* a page state change stops before its end, without error */
#define GHCB_FAULT_INJECTED_EXCEPTION 6 /* an exception instead of an answer */
#define GHCB_FAULT_OLDER_VERSION 7   /* the highest version offered is the lowest */
#define GHCB_FAULT_CHANGED_GHCB 8    /* the page changes between check and use */
#define GHCB_FAULT_END 9
/* cffi: end */

/* A well mixed word of the `n`-th draw. The constants are splitmix64's. */
static inline uint64_t ghcb_fault_word(uint64_t seed, uint64_t n)
{
    uint64_t z = seed + (n + 1) * UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* Does `fault` happen now? If so, `*word` has the bits from which its details are chosen. */
static inline int ghcb_fault_happens(const ghcb_host_t *host, unsigned int fault, uint64_t *word)
{
    const ghcb_profile_t *p = host->profile;
    uint64_t drawn;

    if (!(p->faults >> fault & 1))
        return 0;
    drawn = ghcb_fault_word(p->fault_seed, host->vm->n_draws++);
    if (p->fault_rate > 1 && (drawn >> 32) % p->fault_rate)
        return 0;
    host->vm->n_faults++;
    host->vm->last_fault = fault + 1;
    *word = ghcb_fault_word(drawn, fault);
    return 1;
}

/* INFO2 of an exception that nobody asked for: #GP, #UD, or, one time in two, any other event. */
static inline uint64_t ghcb_fault_exception(uint64_t word)
{
    uint64_t vector = word & 1 ? SEV_VECTOR_GP : SEV_VECTOR_UD;
    uint64_t type = GHCB_INJECT_TYPE_EXCEPTION;

    if (word >> 1 & 1) {
        vector = word >> 8 & ((1 << GHCB_INJECT_VECTOR_WIDTH) - 1);
        type = word >> 16 & ((1 << GHCB_INJECT_TYPE_WIDTH) - 1);
    }
    return ghcb_injection(type, vector);
}

#endif
