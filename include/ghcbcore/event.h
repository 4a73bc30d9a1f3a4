/* The events of the page protocol as rows, and which inputs a request of each must mark valid.
 *
 * A row has the inputs that every request of an event needs; those that depend on the request (the
 * register of an OUT, the XCR0 of CPUID 0xD) stand in ghcb_nae_missing(). That is the one place for
 * the rule: the decoder names what is missing by it, and the host refuses by it. Versions, features,
 * results and words are in `pysev.tables.nae`; a test compares its inputs with these.
 *
 * Source: GHCB protocol, NAE events; inputs as KVM requires them (Linux 7.0,
 * sev_es_validate_vmgexit), for events that KVM lacks as SVSM and the drafts have them.
 */
#ifndef GHCBCORE_EVENT_H
#define GHCBCORE_EVENT_H

#include <ghcbcore/nae.h>
#include <ghcbcore/page.h>
#include <stdint.h>

/* cffi: begin */
/* Fields that an event may need, as a mask. */
#define GHCB_INPUT_RAX 0x001
#define GHCB_INPUT_RBX 0x002
#define GHCB_INPUT_RCX 0x004
#define GHCB_INPUT_RDX 0x008
#define GHCB_INPUT_CPL 0x010
#define GHCB_INPUT_XCR0 0x020
#define GHCB_INPUT_SCRATCH 0x040
#define GHCB_INPUT_CODE 0x080
#define GHCB_INPUT_INFO_1 0x100
#define GHCB_INPUT_INFO_2 0x200
#define GHCB_INPUT_EXIT 0x380 /* the three exit fields, which every request has */
#define GHCB_INPUT_END 0x400

#define GHCB_NAE_NO_ROW 0xff

typedef struct {
    uint32_t code;
    uint16_t inputs;  /* GHCB_INPUT_* that every request of it needs beside the exit fields */
    uint8_t snp_only; /* only an SNP guest may send it */
    uint8_t in_kvm;   /* KVM of Linux 7.0 knows it */
} ghcb_nae_row_t;
/* cffi: end */

/* X(identifier, inputs, SNP only, known to KVM), in order of the codes */
#define GHCB_NAE_EACH_ROW(X)                                                                     \
    X(DR7_READ, 0, 0, 1)                                                                         \
    X(DR7_WRITE, GHCB_INPUT_RAX, 0, 1)                                                           \
    X(RDTSC, 0, 0, 1)                                                                            \
    X(RDPMC, GHCB_INPUT_RCX, 0, 1)                                                               \
    X(CPUID, GHCB_INPUT_RAX | GHCB_INPUT_RCX, 0, 1)                                              \
    X(INVD, 0, 0, 1)                                                                             \
    X(IOIO, 0, 0, 1)                                                                             \
    X(MSR, GHCB_INPUT_RCX, 0, 1)                                                                 \
    X(VMMCALL, GHCB_INPUT_RAX | GHCB_INPUT_CPL, 0, 1)                                            \
    X(RDTSCP, 0, 0, 1)                                                                           \
    X(WBINVD, 0, 0, 1)                                                                           \
    X(MONITOR, GHCB_INPUT_RAX | GHCB_INPUT_RCX | GHCB_INPUT_RDX, 0, 1)                           \
    X(MWAIT, GHCB_INPUT_RAX | GHCB_INPUT_RCX, 0, 1)                                              \
    X(MMIO_READ, GHCB_INPUT_SCRATCH, 0, 1)                                                       \
    X(MMIO_WRITE, GHCB_INPUT_SCRATCH, 0, 1)                                                      \
    X(NMI_COMPLETE, 0, 0, 1)                                                                     \
    X(AP_RESET_HOLD, 0, 0, 1)                                                                    \
    X(AP_JUMP_TABLE, 0, 0, 1)                                                                    \
    X(PSC, GHCB_INPUT_SCRATCH, 1, 1)                                                             \
    X(SNP_GUEST_REQUEST, 0, 1, 1)                                                                \
    X(SNP_EXT_GUEST_REQUEST, 0, 1, 1)                                                            \
    X(SNP_AP_CREATION, 0, 1, 1)                                                                  \
    X(HV_DOORBELL_PAGE, 0, 1, 0)                                                                 \
    X(HV_IPI, 0, 1, 0)                                                                           \
    X(HV_TIMER, 0, 1, 0)                                                                         \
    X(APIC_ID_LIST, GHCB_INPUT_RAX, 0, 0)                                                        \
    X(SNP_RUN_VMPL, 0, 1, 0)                                                                     \
    X(TIO_GUEST_REQUEST, 0, 1, 0)                                                                \
    X(SECURE_AVIC, GHCB_INPUT_RAX, 1, 0)                                                         \
    X(CONFIGURE_INT_INJECTION, 0, 1, 0)                                                          \
    X(DISABLE_ALT_INJECTION, 0, 1, 0)                                                            \
    X(SPECIFIC_EOI, 0, 1, 0)                                                                     \
    X(TIO_GUEST_REQUEST_RFC,                                                                     \
      GHCB_INPUT_RAX | GHCB_INPUT_RBX | GHCB_INPUT_RCX | GHCB_INPUT_RDX, 1, 0)                   \
    X(TIO_OPERATION_RFC, 0, 1, 0)                                                                \
    X(HV_FEATURES, 0, 0, 1)                                                                      \
    X(TERMINATE, 0, 0, 1)                                                                        \
    X(UNSUPPORTED, 0, 0, 1)

/* GHCB_NAE_ROW_CPUID and so on: indices of ghcb_nae_rows[], and bits of a set of events. */
#define GHCB_NAE_X_INDEX(id, inputs, snp_only, in_kvm) GHCB_NAE_ROW_##id,
enum { GHCB_NAE_EACH_ROW(GHCB_NAE_X_INDEX) GHCB_NAE_N_ROWS };
#undef GHCB_NAE_X_INDEX

#define GHCB_NAE_X_ROW(id, inputs, snp_only, in_kvm) {GHCB_NAE_##id, inputs, snp_only, in_kvm},
static const ghcb_nae_row_t ghcb_nae_rows[GHCB_NAE_N_ROWS] = {GHCB_NAE_EACH_ROW(GHCB_NAE_X_ROW)};
#undef GHCB_NAE_X_ROW

_Static_assert((int)GHCB_NAE_N_ROWS <= 64, "a set of events is one word");

/* The row of an exit code, all 64 bits of which count, or GHCB_NAE_NO_ROW. */
static inline unsigned int ghcb_nae_index(uint64_t code)
{
    switch (code) {
#define GHCB_NAE_X_CASE(id, inputs, snp_only, in_kvm)                                            \
    case GHCB_NAE_##id:                                                                          \
        return GHCB_NAE_ROW_##id;
        GHCB_NAE_EACH_ROW(GHCB_NAE_X_CASE)
#undef GHCB_NAE_X_CASE
    default:
        return GHCB_NAE_NO_ROW;
    }
}

/* The fields of GHCB_INPUT_* that the two words of a valid bitmap mark. */
static inline unsigned int ghcb_nae_marked(uint64_t low, uint64_t high)
{
#define GHCB_NAE_BIT(word, bit, input) ((unsigned int)((word) >> (bit) & 1) * (input))
    return GHCB_NAE_BIT(low, GHCB_VALID_CPL, GHCB_INPUT_CPL) |
           GHCB_NAE_BIT(low, GHCB_VALID_RAX, GHCB_INPUT_RAX) |
           GHCB_NAE_BIT(high, GHCB_VALID_RBX - 64, GHCB_INPUT_RBX) |
           GHCB_NAE_BIT(high, GHCB_VALID_RCX - 64, GHCB_INPUT_RCX) |
           GHCB_NAE_BIT(high, GHCB_VALID_RDX - 64, GHCB_INPUT_RDX) |
           GHCB_NAE_BIT(high, GHCB_VALID_XCR0 - 64, GHCB_INPUT_XCR0) |
           GHCB_NAE_BIT(high, GHCB_VALID_SW_SCRATCH - 64, GHCB_INPUT_SCRATCH) |
           GHCB_NAE_BIT(high, GHCB_VALID_SW_EXIT_CODE - 64, GHCB_INPUT_CODE) |
           GHCB_NAE_BIT(high, GHCB_VALID_SW_EXIT_INFO_1 - 64, GHCB_INPUT_INFO_1) |
           GHCB_NAE_BIT(high, GHCB_VALID_SW_EXIT_INFO_2 - 64, GHCB_INPUT_INFO_2);
#undef GHCB_NAE_BIT
}

/* The inputs that a request needs: those of its row, and those that its values ask for. `rax` is
 * the register if it is marked valid, else 0. A code without a row needs the exit fields alone. */
static inline unsigned int ghcb_nae_inputs(uint64_t code, uint64_t info1, uint64_t rax)
{
    const unsigned int row = ghcb_nae_index(code);
    unsigned int inputs = GHCB_INPUT_EXIT;

    if (row != GHCB_NAE_NO_ROW)
        inputs |= ghcb_nae_rows[row].inputs;
    switch (code) {
    case GHCB_NAE_CPUID:
        if (rax == GHCB_CPUID_LEAF_XSTATE) /* all 64 bits */
            inputs |= GHCB_INPUT_XCR0;
        break;
    case GHCB_NAE_IOIO:
        if (info1 >> GHCB_IOIO_STRING_SHIFT & 1)
            inputs |= GHCB_INPUT_SCRATCH;
        else if (!(info1 >> GHCB_IOIO_IN_SHIFT & 1))
            inputs |= GHCB_INPUT_RAX;
        break;
    case GHCB_NAE_MSR:
        if (info1 != GHCB_RDMSR)
            inputs |= GHCB_INPUT_RAX | GHCB_INPUT_RDX;
        break;
    case GHCB_NAE_SNP_AP_CREATION:
        if ((uint32_t)info1 != GHCB_AP_CREATE_DESTROY)
            inputs |= GHCB_INPUT_RAX;
        break;
    case GHCB_NAE_SECURE_AVIC:
        if (info1 == GHCB_SECURE_AVIC_REGISTER)
            inputs |= GHCB_INPUT_RBX;
        break;
    default:
        break;
    }
    return inputs;
}

/* The inputs that a request needs and does not mark valid, as a mask of GHCB_INPUT_*. */
static inline unsigned int ghcb_nae_missing(uint64_t code, uint64_t info1, uint64_t rax,
                                            uint64_t valid_low, uint64_t valid_high)
{
    return ghcb_nae_inputs(code, info1, rax) & ~ghcb_nae_marked(valid_low, valid_high);
}

#endif
