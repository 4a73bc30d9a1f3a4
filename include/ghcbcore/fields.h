/* The fields of the GHCB page as one set, and what each event does with them beyond its inputs.
 *
 * A set of fields is a mask of `1 << GHCB_FIELD_X`, in the order of the page; the valid bitmap of
 * the page has the same fields at other places, and `ghcb_fields_of_valid()` translates. For each
 * event a row says since which protocol version it exists, which bits of INFO1 and INFO2 a request
 * may set, and which fields an answer brings back. Rows are indexed as those of event.h are, where
 * the inputs that a request must mark valid stand: `ghcb_fields_of_inputs()` makes fields of them.
 *
 * Left to others: required inputs (event.h), words (`pysev.tables.nae`), the page (ghcb.h).
 *
 * Source: GHCB NAE events as Linux, SVSM, its fork of Linux and EDK2 use them. A request for a
 * message of the firmware has page-aligned addresses: KVM refuses others.
 */
#ifndef GHCBCORE_FIELDS_H
#define GHCBCORE_FIELDS_H

#include <ghcbcore/event.h>
#include <ghcbcore/nae.h>
#include <ghcbcore/page.h>
#include <stdint.h>

/* cffi: begin */
/* Fields with a bit in the valid bitmap, in the order of the page. */
#define GHCB_FIELD_CPL 0
#define GHCB_FIELD_XSS 1
#define GHCB_FIELD_DR7 2
#define GHCB_FIELD_RIP 3
#define GHCB_FIELD_RSP 4
#define GHCB_FIELD_RAX 5
#define GHCB_FIELD_RCX 6
#define GHCB_FIELD_RDX 7
#define GHCB_FIELD_RBX 8
#define GHCB_FIELD_RBP 9
#define GHCB_FIELD_RSI 10
#define GHCB_FIELD_RDI 11
#define GHCB_FIELD_R8 12
#define GHCB_FIELD_R9 13
#define GHCB_FIELD_R10 14
#define GHCB_FIELD_R11 15
#define GHCB_FIELD_R12 16
#define GHCB_FIELD_R13 17
#define GHCB_FIELD_R14 18
#define GHCB_FIELD_R15 19
#define GHCB_FIELD_SW_EXIT_CODE 20
#define GHCB_FIELD_SW_EXIT_INFO_1 21
#define GHCB_FIELD_SW_EXIT_INFO_2 22
#define GHCB_FIELD_SW_SCRATCH 23
#define GHCB_FIELD_XCR0 24
#define GHCB_N_FIELDS 25

/* Indexed by GHCB_NAE_ROW_*. */
typedef struct {
    uint64_t info1_mask; /* bits that may be set in a request */
    uint64_t info2_mask;
    uint32_t returned; /* by an answer without error, beside sw_exit_info_1, sw_exit_info_2 */
    uint32_t returned_always; /* those that do not depend on the request */
    uint32_t since;           /* protocol version */
    uint32_t unused_1c;
} ghcb_event_use_t;
/* cffi: end */

#define GHCB_F(name) (UINT32_C(1) << GHCB_FIELD_##name)
#define GHCB_FIELDS_ABCD (GHCB_F(RAX) | GHCB_F(RBX) | GHCB_F(RCX) | GHCB_F(RDX))

#define GHCB_EVENT_BITS(x) (((UINT64_C(1) << x##_WIDTH) - 1) << x##_SHIFT)
#define GHCB_EVENT_ANY UINT64_MAX
#define GHCB_EVENT_PAGE (~(uint64_t)(GHCB_PAGE_SIZE - 1))
#define GHCB_EVENT_IOIO_BITS                                                                       \
    (GHCB_EVENT_BITS(GHCB_IOIO_IN) | GHCB_EVENT_BITS(GHCB_IOIO_STRING) |                           \
     GHCB_EVENT_BITS(GHCB_IOIO_REP) | GHCB_EVENT_BITS(GHCB_IOIO_SIZE) |                            \
     GHCB_EVENT_BITS(GHCB_IOIO_ADDRESS) | GHCB_EVENT_BITS(GHCB_IOIO_SEGMENT) |                     \
     GHCB_EVENT_BITS(GHCB_IOIO_PORT))
#define GHCB_EVENT_AP_CREATE_BITS                                                                  \
    (GHCB_EVENT_BITS(GHCB_AP_CREATE_OP) | GHCB_EVENT_BITS(GHCB_AP_CREATE_VMPL) |                   \
     GHCB_EVENT_BITS(GHCB_AP_CREATE_APIC_ID))
#define GHCB_EVENT_ALT_INJECTION_BITS                                                              \
    (GHCB_EVENT_BITS(GHCB_ALT_INJECTION_IF) | GHCB_EVENT_BITS(GHCB_ALT_INJECTION_SHADOW) |         \
     GHCB_EVENT_BITS(GHCB_ALT_INJECTION_TPR) | GHCB_EVENT_BITS(GHCB_ALT_INJECTION_VMPL))
#define GHCB_EVENT_EOI_BITS                                                                        \
    (GHCB_EVENT_BITS(GHCB_SPECIFIC_EOI_VECTOR) | GHCB_EVENT_BITS(GHCB_SPECIFIC_EOI_VMPL))


/* X(identifier, since, bits of INFO1, bits of INFO2, returned, returned whatever the request was), in
 * the order of event.h. An event of which the number alone is known may set every bit. */
#define GHCB_EVENT_EACH_USE(X) \
    X(DR7_READ, 1, 0, 0, GHCB_F(RAX), GHCB_F(RAX))                                                 \
    X(DR7_WRITE, 1, 0, 0, 0, 0)                                                                    \
    X(RDTSC, 1, 0, 0, GHCB_F(RAX) | GHCB_F(RDX), GHCB_F(RAX) | GHCB_F(RDX))                        \
    X(RDPMC, 1, 0, 0, GHCB_F(RAX) | GHCB_F(RDX), GHCB_F(RAX) | GHCB_F(RDX))                        \
    X(CPUID, 1, 0, 0, GHCB_FIELDS_ABCD, GHCB_FIELDS_ABCD)                                          \
    X(INVD, 1, 0, 0, 0, 0)                                                                         \
    X(IOIO, 1, GHCB_EVENT_IOIO_BITS, GHCB_EVENT_ANY, GHCB_F(RAX), 0)                               \
    X(MSR, 1, GHCB_WRMSR, 0, GHCB_F(RAX) | GHCB_F(RDX), 0)                                         \
    X(VMMCALL, 1, 0, 0, GHCB_F(RAX), GHCB_F(RAX))                                                  \
    X(RDTSCP, 1, 0, 0, GHCB_F(RAX) | GHCB_F(RCX) | GHCB_F(RDX), GHCB_F(RAX) | GHCB_F(RCX) |        \
      GHCB_F(RDX))                                                                                 \
    X(WBINVD, 1, 0, 0, 0, 0)                                                                       \
    X(MONITOR, 1, 0, 0, 0, 0)                                                                      \
    X(MWAIT, 1, 0, 0, 0, 0)                                                                        \
    X(MMIO_READ, 1, GHCB_EVENT_ANY, GHCB_EVENT_ANY, 0, 0)                                          \
    X(MMIO_WRITE, 1, GHCB_EVENT_ANY, GHCB_EVENT_ANY, 0, 0)                                         \
    X(NMI_COMPLETE, 1, 0, 0, 0, 0)                                                                 \
    X(AP_RESET_HOLD, 1, 0, 0, 0, 0)                                                                \
    X(AP_JUMP_TABLE, 1, GHCB_AP_JUMP_TABLE_GET, GHCB_EVENT_ANY, 0, 0)                              \
    X(PSC, 2, 0, 0, 0, 0)                                                                          \
    X(SNP_GUEST_REQUEST, 2, GHCB_EVENT_PAGE, GHCB_EVENT_PAGE, 0, 0)                                \
    X(SNP_EXT_GUEST_REQUEST, 2, GHCB_EVENT_PAGE, GHCB_EVENT_PAGE, GHCB_F(RBX), 0)                  \
    X(SNP_AP_CREATION, 2, GHCB_EVENT_AP_CREATE_BITS, GHCB_EVENT_PAGE, 0, 0)                        \
    X(HV_DOORBELL_PAGE, 2, GHCB_DOORBELL_CLEAR, GHCB_EVENT_PAGE, 0, 0)                             \
    X(HV_IPI, 2, GHCB_EVENT_ANY, 0, 0, 0)                                                          \
    X(HV_TIMER, 2, GHCB_EVENT_ANY, GHCB_EVENT_ANY, 0, 0)                                           \
    X(APIC_ID_LIST, 2, GHCB_EVENT_ANY, 0, GHCB_F(RAX), GHCB_F(RAX))                                \
    X(SNP_RUN_VMPL, 2, GHCB_EVENT_BITS(GHCB_RUN_VMPL_VMPL), 0, 0, 0)                               \
    X(TIO_GUEST_REQUEST, 2, GHCB_EVENT_ANY, GHCB_EVENT_ANY, 0, 0)                                  \
    X(SECURE_AVIC, 2, GHCB_SECURE_AVIC_UNREGISTER, 0, GHCB_F(RBX), 0)                              \
    X(CONFIGURE_INT_INJECTION, 2, GHCB_EVENT_ANY, 0, 0, 0)                                         \
    X(DISABLE_ALT_INJECTION, 2, GHCB_EVENT_ALT_INJECTION_BITS, 0, 0, 0)                            \
    X(SPECIFIC_EOI, 2, GHCB_EVENT_EOI_BITS, 0, 0, 0)                                               \
    X(TIO_GUEST_REQUEST_RFC, 2, GHCB_EVENT_ANY, GHCB_EVENT_ANY, GHCB_F(RBX) | GHCB_F(RDX),         \
      0)                                                                                           \
    X(TIO_OPERATION_RFC, 2, GHCB_EVENT_ANY, 0, GHCB_F(RCX), 0)                                     \
    X(HV_FEATURES, 2, 0, 0, 0, 0)                                                                  \
    X(TERMINATE, 2, GHCB_EVENT_BITS(GHCB_TERMINATE_SET) |                                          \
      GHCB_EVENT_BITS(GHCB_TERMINATE_CODE), GHCB_EVENT_ANY, 0, 0)                                  \
    X(UNSUPPORTED, 1, GHCB_EVENT_ANY, GHCB_EVENT_ANY, 0, 0)

#define GHCB_EVENT_X_USE(id, since, i1, i2, back, always)                                          \
    [GHCB_NAE_ROW_##id] = {i1, i2, back, always, since, 0},
static const ghcb_event_use_t ghcb_event_uses[GHCB_NAE_N_ROWS] = {
    GHCB_EVENT_EACH_USE(GHCB_EVENT_X_USE)};
#undef GHCB_EVENT_X_USE

#define GHCB_EVENT_X_CHECK(id, since, i1, i2, back, always)                                        \
    _Static_assert(((always) & ~(back)) == 0 && (since) > 0, "the row of " #id);
GHCB_EVENT_EACH_USE(GHCB_EVENT_X_CHECK)
#undef GHCB_EVENT_X_CHECK
#define GHCB_EVENT_X_COUNT(id, since, i1, i2, back, always) +1
_Static_assert((0 GHCB_EVENT_EACH_USE(GHCB_EVENT_X_COUNT)) == (int)GHCB_NAE_N_ROWS,
               "every row of event.h has one here");
#undef GHCB_EVENT_X_COUNT

/* cffi: begin */
/* Which fields does the valid bitmap of a page mark? Bits without a field are left out. */
static inline uint32_t ghcb_fields_of_valid(uint64_t valid_lo, uint64_t valid_hi);

/* The two words of the bitmap that marks these fields. Bits that are no field are left out. */
static inline uint64_t ghcb_valid_lo_of_fields(uint32_t fields);
static inline uint64_t ghcb_valid_hi_of_fields(uint32_t fields);

/* The fields of a mask of GHCB_INPUT_*. */
static inline uint32_t ghcb_fields_of_inputs(unsigned int inputs);
/* cffi: end */

/* Fields that are neighbours in the bitmap: X(first field, how many, word, first bit). */
#define GHCB_EVENT_EACH_RUN(X)                                                                     \
    X(CPL, 1, lo, 0)                                                                               \
    X(XSS, 1, lo, 0)                                                                               \
    X(DR7, 1, lo, 0)                                                                               \
    X(RIP, 1, lo, 0)                                                                               \
    X(RSP, 1, lo, 0)                                                                               \
    X(RAX, 1, lo, 0)                                                                               \
    X(RCX, 3, hi, 64)                                                                              \
    X(RBP, 11, hi, 64)                                                                             \
    X(SW_EXIT_CODE, 4, hi, 64)                                                                     \
    X(XCR0, 1, hi, 64)

#define GHCB_EVENT_X_LAST(first, last, n)                                                          \
    _Static_assert(GHCB_VALID_##last - GHCB_VALID_##first == (n) - 1 &&                            \
                       GHCB_FIELD_##last - GHCB_FIELD_##first == (n) - 1,                          \
                   #first " to " #last " are neighbours");
GHCB_EVENT_X_LAST(RCX, RBX, 3)
GHCB_EVENT_X_LAST(RBP, R15, 11)
GHCB_EVENT_X_LAST(SW_EXIT_CODE, SW_SCRATCH, 4)
#undef GHCB_EVENT_X_LAST

#define GHCB_EVENT_X_OUT_OF(first, n, word, base)                                                  \
    fields |= (valid_##word >> (GHCB_VALID_##first - (base)) & ((UINT64_C(1) << (n)) - 1))         \
              << GHCB_FIELD_##first;
#define GHCB_EVENT_X_INTO(first, n, word, base)                                                    \
    word |= ((uint64_t)fields >> GHCB_FIELD_##first & ((UINT64_C(1) << (n)) - 1))                  \
            << (GHCB_VALID_##first - (base));

static inline uint32_t ghcb_fields_of_valid(uint64_t valid_lo, uint64_t valid_hi)
{
    uint64_t fields = 0;

    GHCB_EVENT_EACH_RUN(GHCB_EVENT_X_OUT_OF)
    return (uint32_t)fields;
}

static inline uint64_t ghcb_valid_lo_of_fields(uint32_t fields)
{
    uint64_t lo = 0, hi = 0;

    GHCB_EVENT_EACH_RUN(GHCB_EVENT_X_INTO)
    (void)hi;
    return lo;
}

static inline uint64_t ghcb_valid_hi_of_fields(uint32_t fields)
{
    uint64_t lo = 0, hi = 0;

    GHCB_EVENT_EACH_RUN(GHCB_EVENT_X_INTO)
    (void)lo;
    return hi;
}

#undef GHCB_EVENT_X_OUT_OF
#undef GHCB_EVENT_X_INTO

static inline uint32_t ghcb_fields_of_inputs(unsigned int inputs)
{
#define GHCB_EVENT_IN(input, field) ((inputs & GHCB_INPUT_##input) ? GHCB_F(field) : 0)
    return GHCB_EVENT_IN(RAX, RAX) | GHCB_EVENT_IN(RBX, RBX) | GHCB_EVENT_IN(RCX, RCX) |
           GHCB_EVENT_IN(RDX, RDX) | GHCB_EVENT_IN(CPL, CPL) | GHCB_EVENT_IN(XCR0, XCR0) |
           GHCB_EVENT_IN(SCRATCH, SW_SCRATCH) | GHCB_EVENT_IN(CODE, SW_EXIT_CODE) |
           GHCB_EVENT_IN(INFO_1, SW_EXIT_INFO_1) | GHCB_EVENT_IN(INFO_2, SW_EXIT_INFO_2);
#undef GHCB_EVENT_IN
}

#endif
