/* The codec of the GHCB page: every field, the bitmap, what is wrong with it; and back.
 *
 * Theory of operation. A page does not say whether a guest or a hypervisor wrote it last, so the
 * caller does (`side`). Whatever 4096 bytes hold decodes: fields as they stand, and flags for what
 * breaks a rule. The bytes are read in three sweeps, the fields once each and the gaps between
 * them only for being zero; the shared buffer is not looked at, because its form depends on the
 * event. Pages may lie at any address.
 *
 * Left to others: offsets (page.h), what events need (event.h), what the shared buffer holds
 * (psc.h), words (`pysev.decode.ghcb`).
 *
 * Source: GHCB page layout; order of judgements as in KVM, see `ghcb_decoded_t.status`.
 */
#ifndef GHCBCORE_GHCB_H
#define GHCBCORE_GHCB_H

#include <ghcbcore/fields.h>
#include <ghcbcore/msr.h>
#include <ghcbcore/page.h>
#include <ghcbcore/status.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* cffi: begin */
#define GHCB_SIDE_REQUEST 0 /* written by the guest */
#define GHCB_SIDE_ANSWER 1  /* written by the hypervisor */

/* ghcb_decoded_t.flags: rules that the page breaks */
#define GHCB_FLAG_USAGE 0x001        /* not the standard layout: nothing else is judged */
#define GHCB_FLAG_MISSING 0x002      /* fields that are required, or returned, are not valid */
#define GHCB_FLAG_UNKNOWN_EVENT 0x004
#define GHCB_FLAG_VERSION 0x008      /* the event is newer than the version in the page */
#define GHCB_FLAG_SNP 0x010          /* an event of SNP guests from another guest */
#define GHCB_FLAG_RESERVED 0x020     /* a gap of the page is not zero; see first_reserved */
#define GHCB_FLAG_ODD_VALID 0x040    /* a bit of the bitmap is set that stands for no field */
#define GHCB_FLAG_INFO_1 0x080       /* sw_exit_info_1 has bits set that the event does not have */
#define GHCB_FLAG_INFO_2 0x100       /* the same for sw_exit_info_2 */
#define GHCB_FLAG_REPLY 0x200        /* answer: sw_exit_info_1 is no known kind of reply */
#define GHCB_FLAG_UNKNOWN_VERSION 0x400 /* not a known protocol version, and not "not said" */

/* ghcb_decoded_t.snp: what the guest is */
#define GHCB_SNP_NO 0
#define GHCB_SNP_YES 1
#define GHCB_SNP_NOT_SAID 2

#define GHCB_NO_OFFSET 0xffff
#define GHCB_VERSION_NOT_SAID 0 /* what EDK2 leaves in its pages */

/* One decoded page. Fields are what the page holds, marked valid or not. */
typedef struct {
    uint64_t xss;
    uint64_t dr7;
    uint64_t rip;
    uint64_t rsp;
    uint64_t rax;
    uint64_t rcx;
    uint64_t rdx;
    uint64_t rbx;
    uint64_t rbp;
    uint64_t rsi;
    uint64_t rdi;
    uint64_t r8;
    uint64_t r9;
    uint64_t r10;
    uint64_t r11;
    uint64_t r12;
    uint64_t r13;
    uint64_t r14;
    uint64_t r15;
    uint64_t sw_exit_code;
    uint64_t sw_exit_info_1;
    uint64_t sw_exit_info_2;
    uint64_t sw_scratch;
    uint64_t xcr0;
    uint64_t valid_lo;
    uint64_t valid_hi;
    uint64_t x87_state_gpa;
    uint32_t ghcb_usage;
    uint32_t valid;   /* mask of GHCB_FIELD_*: the fields that the bitmap marks */
    uint32_t missing; /* mask of GHCB_FIELD_*: required, or returned, and not marked */
    uint32_t flags;
    uint16_t protocol_version;
    uint16_t first_reserved; /* offset of the first byte of a gap that is not zero */
    uint8_t cpl;
    uint8_t event;  /* row of event.h, or GHCB_NAE_NO_ROW */
    uint8_t status; /* 0, or the GHCB_MALFORMED_* that a host after KVM would answer first */
    uint8_t snp;    /* GHCB_SNP_*, as it was told */
} ghcb_decoded_t;
/* cffi: end */

_Static_assert(sizeof(ghcb_decoded_t) == 240, "no padding that would stay unwritten");

/* The gaps of the page: X(first byte, first byte after it). */
#define GHCB_EACH_GAP(X)                                                                           \
    X(0, GHCB_OFF_CPL)                                                                             \
    X(GHCB_OFF_CPL + 1, GHCB_OFF_XSS)                                                              \
    X(GHCB_OFF_XSS + 8, GHCB_OFF_DR7)                                                              \
    X(GHCB_OFF_DR7 + 8, GHCB_OFF_RIP)                                                              \
    X(GHCB_OFF_RIP + 8, GHCB_OFF_RSP)                                                              \
    X(GHCB_OFF_RSP + 8, GHCB_OFF_RAX)                                                              \
    X(GHCB_OFF_RAX + 8, GHCB_OFF_RCX)                                                              \
    X(GHCB_OFF_RBX + 8, GHCB_OFF_RBP)                                                              \
    X(GHCB_OFF_R15 + 8, GHCB_OFF_SW_EXIT_CODE)                                                     \
    X(GHCB_OFF_SW_SCRATCH + 8, GHCB_OFF_XCR0)                                                      \
    X(GHCB_OFF_X87_STATE_GPA + 8, GHCB_OFF_SHARED_BUFFER)                                          \
    X(GHCB_OFF_SHARED_BUFFER + GHCB_SHARED_BUFFER_SIZE, GHCB_OFF_PROTOCOL_VERSION)

/* Fields of 64 bits: X(name in the struct, name of the offset). */
#define GHCB_EACH_WORD(X)                                                                          \
    X(xss, XSS)                                                                                    \
    X(dr7, DR7)                                                                                    \
    X(rip, RIP)                                                                                    \
    X(rsp, RSP)                                                                                    \
    X(rax, RAX)                                                                                    \
    X(rcx, RCX)                                                                                    \
    X(rdx, RDX)                                                                                    \
    X(rbx, RBX)                                                                                    \
    X(rbp, RBP)                                                                                    \
    X(rsi, RSI)                                                                                    \
    X(rdi, RDI)                                                                                    \
    X(r8, R8)                                                                                      \
    X(r9, R9)                                                                                      \
    X(r10, R10)                                                                                    \
    X(r11, R11)                                                                                    \
    X(r12, R12)                                                                                    \
    X(r13, R13)                                                                                    \
    X(r14, R14)                                                                                    \
    X(r15, R15)                                                                                    \
    X(sw_exit_code, SW_EXIT_CODE)                                                                  \
    X(sw_exit_info_1, SW_EXIT_INFO_1)                                                              \
    X(sw_exit_info_2, SW_EXIT_INFO_2)                                                              \
    X(sw_scratch, SW_SCRATCH)                                                                      \
    X(xcr0, XCR0)                                                                                  \
    X(valid_lo, VALID_BITMAP)                                                                      \
    X(x87_state_gpa, X87_STATE_GPA)

/* cffi: begin */
/* Take one page apart: `page` is 4096 bytes at any address. `*out` is written whole, and its
 * status returned. Judged are, on the request side: usage, missing inputs and unknown events
 * (ghcb_nae_missing), then the bits of INFO1 and INFO2; on the answer side: usage, the kind of
 * reply, and, if that is GHCB_REPLY_OK, whether sw_exit_info_1, sw_exit_info_2 and what the event
 * returns in any case are marked valid. sw_exit_code stays in the page, so an answer has an event
 * even though it is not marked. */
static inline int ghcb_page_decode(const uint8_t *page, int side, int snp, ghcb_decoded_t *out);

/* Put a page together: fields, bitmap, version and usage; all else becomes zero, but the shared
 * buffer, which stays as it is. What a decode derived (valid, missing, flags ...) is not looked
 * at. The inverse of decode for a page without GHCB_FLAG_RESERVED. */
static inline void ghcb_page_encode(const ghcb_decoded_t *from, uint8_t *page);
/* cffi: end */

/* Is every byte of page[first..end) zero? Both are constants where this is used. */
static inline uint64_t ghcb_gap(const uint8_t *page, unsigned int first, unsigned int end)
{
    uint64_t any = 0;
    unsigned int at = first;

    for (; at + 8 <= end; at += 8)
        any |= ghcb_load64(page + at);
    for (; at < end; at++)
        any |= page[at];
    return any;
}

static inline unsigned int ghcb_first_reserved(const uint8_t *page)
{
#define GHCB_X_GAP(first, end)                                                                     \
    for (unsigned int at = (first); at < (end); at++)                                              \
        if (page[at])                                                                              \
            return at;
    GHCB_EACH_GAP(GHCB_X_GAP)
#undef GHCB_X_GAP
    return GHCB_NO_OFFSET;
}

static inline void ghcb_judge_request(ghcb_decoded_t *out)
{
    uint64_t rax = out->valid & GHCB_F(RAX) ? out->rax : 0;
    int of_snp = 0;

    out->missing = ghcb_fields_of_inputs(ghcb_nae_missing(
        out->sw_exit_code, out->sw_exit_info_1, rax, out->valid_lo, out->valid_hi));
    if (out->missing)
        out->flags |= GHCB_FLAG_MISSING;
    if (out->event == GHCB_NAE_NO_ROW) {
        out->flags |= GHCB_FLAG_UNKNOWN_EVENT;
    } else {
        const ghcb_event_use_t *use = &ghcb_event_uses[out->event];

        of_snp = out->snp == GHCB_SNP_NO && ghcb_nae_rows[out->event].snp_only;
        if (of_snp)
            out->flags |= GHCB_FLAG_SNP;
        if (out->protocol_version != GHCB_VERSION_NOT_SAID && out->protocol_version < use->since)
            out->flags |= GHCB_FLAG_VERSION;
        if (out->sw_exit_info_1 & ~use->info1_mask)
            out->flags |= GHCB_FLAG_INFO_1;
        if (out->sw_exit_info_2 & ~use->info2_mask)
            out->flags |= GHCB_FLAG_INFO_2;
    }
    /* Missing inputs come first; KVM gives the same reason to an event that is not the guest's. */
    if (out->missing || of_snp)
        out->status = GHCB_MALFORMED_MISSING_INPUT;
    else if (out->event == GHCB_NAE_NO_ROW)
        out->status = GHCB_MALFORMED_INVALID_EVENT;
}

static inline void ghcb_judge_answer(ghcb_decoded_t *out)
{
    uint32_t need = GHCB_F(SW_EXIT_INFO_1) | GHCB_F(SW_EXIT_INFO_2);
    uint32_t reply = (uint32_t)out->sw_exit_info_1;

    if (out->event != GHCB_NAE_NO_ROW && reply == GHCB_REPLY_OK)
        need |= ghcb_event_uses[out->event].returned_always;
    out->missing = need & ~out->valid;
    if (out->missing)
        out->flags |= GHCB_FLAG_MISSING;
    if (reply != GHCB_REPLY_OK && reply != GHCB_REPLY_EXCEPTION && reply != GHCB_REPLY_MALFORMED)
        out->flags |= GHCB_FLAG_REPLY;
    if (out->sw_exit_info_1 >> 32)
        out->flags |= GHCB_FLAG_INFO_1;
}

static inline int ghcb_page_decode(const uint8_t *page, int side, int snp, ghcb_decoded_t *out)
{
    uint64_t gaps = 0;
    uint32_t odd;

#define GHCB_X_WORD(field, name) out->field = ghcb_load64(page + GHCB_OFF_##name);
    GHCB_EACH_WORD(GHCB_X_WORD)
#undef GHCB_X_WORD
    out->valid_hi = ghcb_load64(page + GHCB_OFF_VALID_BITMAP + 8);
    memcpy(&out->ghcb_usage, page + GHCB_OFF_GHCB_USAGE, 4);
    memcpy(&out->protocol_version, page + GHCB_OFF_PROTOCOL_VERSION, 2);
    out->cpl = page[GHCB_OFF_CPL];
    out->snp = (uint8_t)snp;
    out->valid = ghcb_fields_of_valid(out->valid_lo, out->valid_hi);
    out->event = (uint8_t)ghcb_nae_index(out->sw_exit_code);
    out->missing = 0;
    out->flags = 0;
    out->status = 0;
    out->first_reserved = GHCB_NO_OFFSET;
    if (out->ghcb_usage != GHCB_USAGE_STANDARD) {
        out->flags = GHCB_FLAG_USAGE;
        out->status = GHCB_MALFORMED_USAGE;
        return out->status;
    }
#define GHCB_X_GAP(first, end) gaps |= ghcb_gap(page, first, end);
    GHCB_EACH_GAP(GHCB_X_GAP)
#undef GHCB_X_GAP
    if (gaps) {
        out->flags |= GHCB_FLAG_RESERVED;
        out->first_reserved = (uint16_t)ghcb_first_reserved(page);
    }
    odd = ghcb_valid_lo_of_fields(out->valid) != out->valid_lo ||
          ghcb_valid_hi_of_fields(out->valid) != out->valid_hi;
    if (odd)
        out->flags |= GHCB_FLAG_ODD_VALID;
    if (out->protocol_version > GHCB_VERSION_MAX)
        out->flags |= GHCB_FLAG_UNKNOWN_VERSION;
    if (side == GHCB_SIDE_REQUEST)
        ghcb_judge_request(out);
    else
        ghcb_judge_answer(out);
    return out->status;
}

static inline void ghcb_page_encode(const ghcb_decoded_t *from, uint8_t *page)
{
    memset(page, 0, GHCB_OFF_SHARED_BUFFER);
    memset(page + GHCB_OFF_SHARED_BUFFER + GHCB_SHARED_BUFFER_SIZE, 0,
           GHCB_PAGE_SIZE - GHCB_OFF_SHARED_BUFFER - GHCB_SHARED_BUFFER_SIZE);
#define GHCB_X_WORD(field, name) memcpy(page + GHCB_OFF_##name, &from->field, 8);
    GHCB_EACH_WORD(GHCB_X_WORD)
#undef GHCB_X_WORD
    memcpy(page + GHCB_OFF_VALID_BITMAP + 8, &from->valid_hi, 8);
    memcpy(page + GHCB_OFF_GHCB_USAGE, &from->ghcb_usage, 4);
    memcpy(page + GHCB_OFF_PROTOCOL_VERSION, &from->protocol_version, 2);
    page[GHCB_OFF_CPL] = from->cpl;
}

#endif
