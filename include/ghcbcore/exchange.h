/* What belongs together in a trace: one request of one vCPU, and its answer if there was one.
 *
 * KVM writes a line when a request arrives and normally one when the answer is ready. The second may
 * come much later (user space had to answer) or never (the guest asked to be terminated, the VM
 * ended), and a tracer loses lines. An exchange holds what is known, and its flags say what is not.
 * `ghcbcore.exchange` makes exchanges from records of lines.
 *
 * Field names are those of ghcb_event_t (machine.h): a request of a modelled guest and one read from
 * a trace look alike.
 *
 * Source: GHCB fact sheet 9.1, decoder rules.
 */
#ifndef GHCBCORE_EXCHANGE_H
#define GHCBCORE_EXCHANGE_H

#include <stdint.h>

#include <ghcbcore/trace.h>

/* cffi: begin */
/* ghcb_exchange_t.flags */
#define GHCB_EXCHANGE_PAGE 0x001     /* the request is in the GHCB page, not in the MSR */
#define GHCB_EXCHANGE_ENTER 0x002    /* the line of the request was seen */
#define GHCB_EXCHANGE_EXIT 0x004     /* the line of the answer was seen */
#define GHCB_EXCHANGE_USER 0x008     /* went to user space; what it answered is not in the trace */
#define GHCB_EXCHANGE_ENDED 0x010    /* asks for the end of the guest: there is no answer */
#define GHCB_EXCHANGE_OPEN 0x020     /* no answer yet when the trace ended */
#define GHCB_EXCHANGE_OVERLAP 0x040  /* the vCPU's next request came before an answer */
#define GHCB_EXCHANGE_FIRST 0x080    /* the first that the trace says of this vCPU */
#define GHCB_EXCHANGE_LOST 0x100     /* the tracer lost events before its end */
#define GHCB_EXCHANGE_CHANGED 0x200  /* the answer's line names another event */
#define GHCB_EXCHANGE_BACKWARDS 0x400 /* one of its times lies before an earlier line's */
#define GHCB_EXCHANGE_UNREGISTERED 0x800 /* SNP, boot seen: page used before it was registered */

/* Times between request and answer are counted by size: eight steps to each power of two. */
#define GHCB_EXCHANGE_STEPS 8
#define GHCB_EXCHANGE_N_BINS 513 /* one for 0 */
#define GHCB_EXCHANGE_N_KINDS 256 /* requests told apart; the last stands for all further ones */
#define GHCB_EXCHANGE_MAX_VCPUS 0x40000 /* vCPUs followed at once in one trace */

/* ghcb_exchange_t.offered: no answer about features was seen yet */
#define GHCB_EXCHANGE_NOT_OFFERED 0xffffffffffffffffULL

typedef struct ghcb_exchange {
    uint64_t begin_ns; /* GHCB_TRACE_NO_TIME where there is none */
    uint64_t end_ns;
    uint64_t msr;       /* MSR protocol: request, 0 for a page */
    uint64_t msr_after; /* and answer */
    uint64_t sw_exit_code; /* page: request, 0 for the MSR protocol */
    uint64_t sw_exit_info_1;
    uint64_t sw_exit_info_2;
    uint64_t info_1_after; /* and answer */
    uint64_t info_2_after;
    uint64_t enter_line; /* 0: there is none */
    uint64_t exit_line;
    uint64_t offered; /* every feature bit that the host has offered by then */
    uint32_t pid;
    uint32_t tgid;
    uint32_t vcpu;
    int32_t result;   /* MSR protocol: 1 resume, 0 to user space */
    uint16_t cpu;     /* of the host, at the request */
    uint16_t kind;    /* an index, see ghcbcore.exchange */
    uint16_t flags;
    uint16_t version; /* highest protocol version that the host has offered by then, 0: unknown */
} ghcb_exchange_t;
/* cffi: end */

_Static_assert(sizeof(ghcb_exchange_t) == 120, "no gaps");

/* The bin of a time: 0, then 1 + eight for each power of two. */
static inline uint32_t ghcb_exchange_bin(uint64_t ns)
{
    if (ns == 0)
        return 0;
    uint32_t e = 63 - (uint32_t)__builtin_clzll(ns);
    uint32_t step = (uint32_t)(e >= 3 ? ns >> (e - 3) : ns << (3 - e)) & (GHCB_EXCHANGE_STEPS - 1);
    return 1 + e * GHCB_EXCHANGE_STEPS + step;
}

#endif
