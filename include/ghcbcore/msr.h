/* The GHCB MSR protocol: codes, fields, rows, and the codec over them.
 *
 * Theory of operation. MSR C001_0130 has two meanings, chosen by its bits [11:0]: zero means "the
 * value is the GPA of the GHCB page", anything else is a request or an answer that lives in the
 * MSR alone, bits [63:12] being its data. The numbers below are plain defines. GHCB_MSR_EACH_ROW
 * states once which fields each code has; rows, masks of reserved bits ("every bit no field
 * claims"), the lookup by code and the compact table of the decode loop are all made from it.
 *
 * Units: a GFN counts 4 KiB pages, gfn == gpa >> 12.
 *
 * Source: implementations that agree (Linux host and guest, OVMF, SVSM, OAK); where only one was
 * seen, the comment says so. The text of the specification was not at hand.
 */
#ifndef GHCBCORE_MSR_H
#define GHCBCORE_MSR_H

#include <stdint.h>

#include <ghcbcore/status.h>

/* cffi: begin */
#define GHCB_MSR_INFO_MASK 0xfff
#define GHCB_MSR_DATA_SHIFT 12
#define GHCB_MSR_DATA_WIDTH 52
#define GHCB_MSR_N_CODES 4096

#define GHCB_MSR_NO_PAIR 0xffff /* the code has no other half */
#define GHCB_MSR_NO_ROW 0xffff  /* the code is not in the table */

/* "No GPA" where an answer has a GFN: no preference, refused, none registered. 52 ones. */
#define GHCB_MSR_NO_GFN 0xfffffffffffffULL

/* Protocol versions known to this project; a host or guest may name others. */
#define GHCB_VERSION_MIN 1
#define GHCB_VERSION_MAX 2

/* 0x000: not a request, the GPA of the GHCB page. */
#define GHCB_MSR_GHCB_GPA 0x000
#define GHCB_MSR_GHCB_GPA_GFN_SHIFT 12
#define GHCB_MSR_GHCB_GPA_GFN_WIDTH 52

/* 0x001: SEV information, the answer to 0x002 and the value after vCPU reset. */
#define GHCB_MSR_SEV_INFO_RESP 0x001
#define GHCB_MSR_SEV_INFO_RESP_MAX_SHIFT 48 /* highest protocol version */
#define GHCB_MSR_SEV_INFO_RESP_MAX_WIDTH 16
#define GHCB_MSR_SEV_INFO_RESP_MIN_SHIFT 32 /* lowest protocol version */
#define GHCB_MSR_SEV_INFO_RESP_MIN_WIDTH 16
#define GHCB_MSR_SEV_INFO_RESP_C_BIT_SHIFT 24 /* position of the C-bit in a page table entry */
#define GHCB_MSR_SEV_INFO_RESP_C_BIT_WIDTH 8
#define GHCB_MSR_SEV_INFO_REQ 0x002

/* 0x003: a name in Hyper-V headers only; no implementer, answer or layout was seen. */
#define GHCB_MSR_AP_JUMP_TABLE_REQ 0x003
#define GHCB_MSR_AP_JUMP_TABLE_REQ_DATA_SHIFT 12
#define GHCB_MSR_AP_JUMP_TABLE_REQ_DATA_WIDTH 52

/* 0x004: CPUID, one register of one function; the sub-leaf is always 0. */
#define GHCB_MSR_CPUID_REQ 0x004
#define GHCB_MSR_CPUID_REQ_FN_SHIFT 32
#define GHCB_MSR_CPUID_REQ_FN_WIDTH 32
#define GHCB_MSR_CPUID_REQ_REG_SHIFT 30
#define GHCB_MSR_CPUID_REQ_REG_WIDTH 2
#define GHCB_MSR_CPUID_RESP 0x005
#define GHCB_MSR_CPUID_RESP_VALUE_SHIFT 32
#define GHCB_MSR_CPUID_RESP_VALUE_WIDTH 32
#define GHCB_MSR_CPUID_RESP_REG_SHIFT 30 /* repeats the register of the request */
#define GHCB_MSR_CPUID_RESP_REG_WIDTH 2
#define GHCB_MSR_CPUID_REG_EAX 0
#define GHCB_MSR_CPUID_REG_EBX 1
#define GHCB_MSR_CPUID_REG_ECX 2
#define GHCB_MSR_CPUID_REG_EDX 3

/* 0x006: hold this AP until it is reset. */
#define GHCB_MSR_AP_RESET_HOLD_REQ 0x006
#define GHCB_MSR_AP_RESET_HOLD_RESP 0x007
#define GHCB_MSR_AP_RESET_HOLD_RESP_RESULT_SHIFT 12 /* 0: not released, ask again */
#define GHCB_MSR_AP_RESET_HOLD_RESP_RESULT_WIDTH 52
#define GHCB_MSR_AP_RESET_HOLD_NOT_RELEASED 0
#define GHCB_MSR_AP_RESET_HOLD_RELEASED 1 /* what KVM answers; any non-zero value means it */

/* 0x010: which GHCB GPA would the hypervisor like? */
#define GHCB_MSR_PREF_GPA_REQ 0x010
#define GHCB_MSR_PREF_GPA_RESP 0x011
#define GHCB_MSR_PREF_GPA_RESP_GFN_SHIFT 12 /* or GHCB_MSR_NO_GFN: no preference */
#define GHCB_MSR_PREF_GPA_RESP_GFN_WIDTH 52

/* 0x012: register the GHCB GPA of this vCPU. */
#define GHCB_MSR_REG_GPA_REQ 0x012
#define GHCB_MSR_REG_GPA_REQ_GFN_SHIFT 12
#define GHCB_MSR_REG_GPA_REQ_GFN_WIDTH 52
#define GHCB_MSR_REG_GPA_RESP 0x013
#define GHCB_MSR_REG_GPA_RESP_GFN_SHIFT 12 /* the GFN of the request, or GHCB_MSR_NO_GFN: refused */
#define GHCB_MSR_REG_GPA_RESP_GFN_WIDTH 52

/* 0x014: change the state of one 4 KiB page. Operations are those of the page protocol
 * (GHCB_PSC_OP_* in nae.h), of which only "private" and "shared" are legal here. */
#define GHCB_MSR_PSC_REQ 0x014
#define GHCB_MSR_PSC_REQ_GFN_SHIFT 12
#define GHCB_MSR_PSC_REQ_GFN_WIDTH 40
#define GHCB_MSR_PSC_REQ_OP_SHIFT 52
#define GHCB_MSR_PSC_REQ_OP_WIDTH 4
#define GHCB_MSR_PSC_RESP 0x015
#define GHCB_MSR_PSC_RESP_ERROR_SHIFT 32 /* 0: done */
#define GHCB_MSR_PSC_RESP_ERROR_WIDTH 32
#define GHCB_MSR_PSC_ERROR_KVM 0x80000000 /* the only error of KVM: bit 63 of the MSR */

/* 0x016: let another privilege level of this vCPU run. */
#define GHCB_MSR_RUN_VMPL_REQ 0x016
#define GHCB_MSR_RUN_VMPL_REQ_VMPL_SHIFT 32
#define GHCB_MSR_RUN_VMPL_REQ_VMPL_WIDTH 8
#define GHCB_MSR_RUN_VMPL_RESP 0x017
#define GHCB_MSR_RUN_VMPL_RESP_ERROR_SHIFT 32 /* 0: done */
#define GHCB_MSR_RUN_VMPL_RESP_ERROR_WIDTH 32

/* 0x018: take the registration back. Fields as in one implementation (zyuiop/ghcb). */
#define GHCB_MSR_UNREG_GPA_REQ 0x018
#define GHCB_MSR_UNREG_GPA_RESP 0x019
#define GHCB_MSR_UNREG_GPA_RESP_GFN_SHIFT 12 /* the GFN it was, or GHCB_MSR_NO_GFN: refused, none */
#define GHCB_MSR_UNREG_GPA_RESP_GFN_WIDTH 52

/* 0x080: what can the hypervisor do? The bits are in features.h. */
#define GHCB_MSR_HV_FEATURES_REQ 0x080
#define GHCB_MSR_HV_FEATURES_RESP 0x081
#define GHCB_MSR_HV_FEATURES_RESP_FEATURES_SHIFT 12
#define GHCB_MSR_HV_FEATURES_RESP_FEATURES_WIDTH 52

/* 0x100: end this guest. There is no answer. The reasons are in term.h. */
#define GHCB_MSR_TERM_REQ 0x100
#define GHCB_MSR_TERM_REQ_SET_SHIFT 12
#define GHCB_MSR_TERM_REQ_SET_WIDTH 4
#define GHCB_MSR_TERM_REQ_REASON_SHIFT 16
#define GHCB_MSR_TERM_REQ_REASON_WIDTH 8

/* Private to Hyper-V, not part of the protocol: they have names but no row, and so decode as an
 * unknown code. Layouts and answers of the first three were not seen; the last carries one
 * character. */
#define GHCB_MSR_HYPERV_SPECIAL_HYPERCALL 0xf00
#define GHCB_MSR_HYPERV_SPECIAL_FAST_CALL 0xf01
#define GHCB_MSR_HYPERV_HYPERCALL_OUTPUT 0xf02
#define GHCB_MSR_HYPERV_DEBUG_PRINT 0xf03

/* One decoded value, 16 bytes. `a`, `b`, `c` are the first, second and third field of the row; a
 * field that the row lacks is 0. See ghcb_msr_decode(). */
typedef struct {
    uint64_t a;
    uint16_t b;
    uint8_t c;
    uint8_t status; /* GHCB_OK, GHCB_E_RESERVED_BITS or GHCB_E_UNKNOWN_CODE */
    uint16_t code;  /* bits [11:0], known or not */
    uint16_t row;   /* index into ghcb_msr_rows[], or GHCB_MSR_NO_ROW */
} ghcb_msr_t;

typedef struct {
    const char *name; /* lower case; 0 for a field that is not there */
    uint8_t shift;
    uint8_t width;
} ghcb_msr_field_t;

/* One code. Both halves of a function have the same name. */
typedef struct {
    const char *name;
    uint16_t code;
    uint16_t pair; /* code of the other half, or GHCB_MSR_NO_PAIR */
    uint8_t is_answer;
    uint8_t n_fields;
    ghcb_msr_field_t field[3];
    uint64_t reserved; /* every bit that neither the code nor a field claims: must be zero */
} ghcb_msr_row_t;
/* cffi: end */

_Static_assert(sizeof(ghcb_msr_t) == 16, "two decoded values in 32 bytes");

/* The rows. X(identifier of the code, name, identifier of the other half, is it an answer?, first,
 * second, third field). Widest field first, so that it lands in the 64-bit `a`; the exception is
 * the termination, which everybody writes set:reason. */
#define GHCB_MSR_EACH_ROW(X)                                                                     \
    X(GHCB_GPA, "ghcb_gpa", NO_PAIR, 0, GHCB_MSR_F(GHCB_GPA, GFN, "gfn"), GHCB_MSR_NO_F,         \
      GHCB_MSR_NO_F)                                                                             \
    X(SEV_INFO_RESP, "sev_info", SEV_INFO_REQ, 1, GHCB_MSR_F(SEV_INFO_RESP, MAX, "max"),         \
      GHCB_MSR_F(SEV_INFO_RESP, MIN, "min"), GHCB_MSR_F(SEV_INFO_RESP, C_BIT, "c_bit"))          \
    X(SEV_INFO_REQ, "sev_info", SEV_INFO_RESP, 0, GHCB_MSR_NO_F, GHCB_MSR_NO_F, GHCB_MSR_NO_F)   \
    X(AP_JUMP_TABLE_REQ, "ap_jump_table", NO_PAIR, 0,                                            \
      GHCB_MSR_F(AP_JUMP_TABLE_REQ, DATA, "data"), GHCB_MSR_NO_F, GHCB_MSR_NO_F)                 \
    X(CPUID_REQ, "cpuid", CPUID_RESP, 0, GHCB_MSR_F(CPUID_REQ, FN, "fn"),                        \
      GHCB_MSR_F(CPUID_REQ, REG, "reg"), GHCB_MSR_NO_F)                                          \
    X(CPUID_RESP, "cpuid", CPUID_REQ, 1, GHCB_MSR_F(CPUID_RESP, VALUE, "value"),                 \
      GHCB_MSR_F(CPUID_RESP, REG, "reg"), GHCB_MSR_NO_F)                                         \
    X(AP_RESET_HOLD_REQ, "ap_reset_hold", AP_RESET_HOLD_RESP, 0, GHCB_MSR_NO_F, GHCB_MSR_NO_F,   \
      GHCB_MSR_NO_F)                                                                             \
    X(AP_RESET_HOLD_RESP, "ap_reset_hold", AP_RESET_HOLD_REQ, 1,                                 \
      GHCB_MSR_F(AP_RESET_HOLD_RESP, RESULT, "result"), GHCB_MSR_NO_F, GHCB_MSR_NO_F)            \
    X(PREF_GPA_REQ, "preferred_gpa", PREF_GPA_RESP, 0, GHCB_MSR_NO_F, GHCB_MSR_NO_F,             \
      GHCB_MSR_NO_F)                                                                             \
    X(PREF_GPA_RESP, "preferred_gpa", PREF_GPA_REQ, 1, GHCB_MSR_F(PREF_GPA_RESP, GFN, "gfn"),    \
      GHCB_MSR_NO_F, GHCB_MSR_NO_F)                                                              \
    X(REG_GPA_REQ, "register_gpa", REG_GPA_RESP, 0, GHCB_MSR_F(REG_GPA_REQ, GFN, "gfn"),         \
      GHCB_MSR_NO_F, GHCB_MSR_NO_F)                                                              \
    X(REG_GPA_RESP, "register_gpa", REG_GPA_REQ, 1, GHCB_MSR_F(REG_GPA_RESP, GFN, "gfn"),        \
      GHCB_MSR_NO_F, GHCB_MSR_NO_F)                                                              \
    X(PSC_REQ, "page_state_change", PSC_RESP, 0, GHCB_MSR_F(PSC_REQ, GFN, "gfn"),                \
      GHCB_MSR_F(PSC_REQ, OP, "op"), GHCB_MSR_NO_F)                                              \
    X(PSC_RESP, "page_state_change", PSC_REQ, 1, GHCB_MSR_F(PSC_RESP, ERROR, "error"),           \
      GHCB_MSR_NO_F, GHCB_MSR_NO_F)                                                              \
    X(RUN_VMPL_REQ, "run_vmpl", RUN_VMPL_RESP, 0, GHCB_MSR_F(RUN_VMPL_REQ, VMPL, "vmpl"),        \
      GHCB_MSR_NO_F, GHCB_MSR_NO_F)                                                              \
    X(RUN_VMPL_RESP, "run_vmpl", RUN_VMPL_REQ, 1, GHCB_MSR_F(RUN_VMPL_RESP, ERROR, "error"),     \
      GHCB_MSR_NO_F, GHCB_MSR_NO_F)                                                              \
    X(UNREG_GPA_REQ, "unregister_gpa", UNREG_GPA_RESP, 0, GHCB_MSR_NO_F, GHCB_MSR_NO_F,          \
      GHCB_MSR_NO_F)                                                                             \
    X(UNREG_GPA_RESP, "unregister_gpa", UNREG_GPA_REQ, 1,                                        \
      GHCB_MSR_F(UNREG_GPA_RESP, GFN, "gfn"), GHCB_MSR_NO_F, GHCB_MSR_NO_F)                      \
    X(HV_FEATURES_REQ, "hv_features", HV_FEATURES_RESP, 0, GHCB_MSR_NO_F, GHCB_MSR_NO_F,         \
      GHCB_MSR_NO_F)                                                                             \
    X(HV_FEATURES_RESP, "hv_features", HV_FEATURES_REQ, 1,                                       \
      GHCB_MSR_F(HV_FEATURES_RESP, FEATURES, "features"), GHCB_MSR_NO_F, GHCB_MSR_NO_F)          \
    X(TERM_REQ, "terminate", NO_PAIR, 0, GHCB_MSR_F(TERM_REQ, SET, "set"),                       \
      GHCB_MSR_F(TERM_REQ, REASON, "reason"), GHCB_MSR_NO_F)

/* A field is (name, shift, width) in parentheses, so that it passes through macros in one piece. */
#define GHCB_MSR_F(code, field, name)                                                            \
    (name, GHCB_MSR_##code##_##field##_SHIFT, GHCB_MSR_##code##_##field##_WIDTH)
#define GHCB_MSR_NO_F (0, 0, 0)

#define GHCB_MSR_ONES(width) ((UINT64_C(1) << (width)) - 1)
#define GHCB_MSR_BARE(name, shift, width) name, shift, width
#define GHCB_MSR_SHIFT_OF(name, shift, width) (shift)
#define GHCB_MSR_WIDTH_OF(name, shift, width) (width)
#define GHCB_MSR_MASK_OF(name, shift, width) (GHCB_MSR_ONES(width) << (shift))
#define GHCB_MSR_RESERVED(f0, f1, f2)                                                            \
    (~(GHCB_MSR_MASK_OF f0 | GHCB_MSR_MASK_OF f1 | GHCB_MSR_MASK_OF f2 | GHCB_MSR_INFO_MASK))

/* GHCB_MSR_ROW_SEV_INFO_RESP and so on: indices of ghcb_msr_rows[], in order of the codes. */
#define GHCB_MSR_X_INDEX(id, name, other, answer, f0, f1, f2) GHCB_MSR_ROW_##id,
enum { GHCB_MSR_EACH_ROW(GHCB_MSR_X_INDEX) GHCB_MSR_N_ROWS };
#undef GHCB_MSR_X_INDEX

#define GHCB_MSR_X_ROW(id, name, other, answer, f0, f1, f2)                                      \
    {name, GHCB_MSR_##id, GHCB_MSR_##other, answer,                                              \
     (GHCB_MSR_WIDTH_OF f0 != 0) + (GHCB_MSR_WIDTH_OF f1 != 0) + (GHCB_MSR_WIDTH_OF f2 != 0),    \
     {{GHCB_MSR_BARE f0}, {GHCB_MSR_BARE f1}, {GHCB_MSR_BARE f2}}, GHCB_MSR_RESERVED(f0, f1, f2)},
static const ghcb_msr_row_t ghcb_msr_rows[GHCB_MSR_N_ROWS] = {GHCB_MSR_EACH_ROW(GHCB_MSR_X_ROW)};
#undef GHCB_MSR_X_ROW

/* Fields fit their place in ghcb_msr_t and do not overlap each other or the code. */
#define GHCB_MSR_X_CHECK(id, name, other, answer, f0, f1, f2)                                    \
    _Static_assert(GHCB_MSR_WIDTH_OF f0 < 64 && GHCB_MSR_WIDTH_OF f1 <= 16 &&                    \
                       GHCB_MSR_WIDTH_OF f2 <= 8,                                                \
                   "a field of " name " does not fit");                                          \
    _Static_assert(GHCB_MSR_MASK_OF f0 + GHCB_MSR_MASK_OF f1 + GHCB_MSR_MASK_OF f2 +             \
                           GHCB_MSR_RESERVED(f0, f1, f2) + GHCB_MSR_INFO_MASK ==                 \
                       UINT64_MAX,                                                               \
                   "fields of " name " overlap");                                                \
    _Static_assert(GHCB_MSR_SHIFT_OF f0 + GHCB_MSR_WIDTH_OF f0 <= 64 &&                          \
                       GHCB_MSR_SHIFT_OF f1 + GHCB_MSR_WIDTH_OF f1 <= 64 &&                      \
                       GHCB_MSR_SHIFT_OF f2 + GHCB_MSR_WIDTH_OF f2 <= 64,                        \
                   "a field of " name " leaves the register");
GHCB_MSR_EACH_ROW(GHCB_MSR_X_CHECK)
#undef GHCB_MSR_X_CHECK

/* What the decode loop reads, without names and pointers: 24 bytes a row. Slot 0 stands for every
 * code that has no row: all data in `a`, nothing reserved, status "unknown". */
typedef struct {
    uint64_t reserved;
    uint64_t a_mask; /* masks after the shift */
    uint16_t b_mask;
    uint8_t c_mask;
    uint8_t a_shift;
    uint8_t b_shift;
    uint8_t c_shift;
    uint8_t status; /* if no reserved bit is set */
    uint8_t unused_17;
} ghcb_msr_slot_t;

_Static_assert(sizeof(ghcb_msr_slot_t) == 24, "the table of the decode loop stays small");

#define GHCB_MSR_X_SLOT(id, name, other, answer, f0, f1, f2)                                     \
    {GHCB_MSR_RESERVED(f0, f1, f2),                                                              \
     GHCB_MSR_ONES(GHCB_MSR_WIDTH_OF f0),                                                        \
     GHCB_MSR_ONES(GHCB_MSR_WIDTH_OF f1),                                                        \
     GHCB_MSR_ONES(GHCB_MSR_WIDTH_OF f2),                                                        \
     GHCB_MSR_SHIFT_OF f0,                                                                       \
     GHCB_MSR_SHIFT_OF f1,                                                                       \
     GHCB_MSR_SHIFT_OF f2,                                                                       \
     GHCB_OK,                                                                                    \
     0},
static const ghcb_msr_slot_t ghcb_msr_slots[GHCB_MSR_N_ROWS + 1] = {
    {0, GHCB_MSR_ONES(GHCB_MSR_DATA_WIDTH), 0, 0, GHCB_MSR_DATA_SHIFT, 0, 0, GHCB_E_UNKNOWN_CODE,
     0},
    GHCB_MSR_EACH_ROW(GHCB_MSR_X_SLOT)};
#undef GHCB_MSR_X_SLOT

/* code -> 1 + row index; 0: no row. */
#define GHCB_MSR_X_LOOKUP(id, name, other, answer, f0, f1, f2)                                   \
    [GHCB_MSR_##id] = 1 + GHCB_MSR_ROW_##id,
static const uint8_t ghcb_msr_slot_of[GHCB_MSR_N_CODES] = {GHCB_MSR_EACH_ROW(GHCB_MSR_X_LOOKUP)};
#undef GHCB_MSR_X_LOOKUP

/* The row of a code, or a null pointer. Bits above [11:0] count: they make the code unknown. */
static inline const ghcb_msr_row_t *ghcb_msr_row(uint64_t code)
{
    uint64_t slot = code < GHCB_MSR_N_CODES ? ghcb_msr_slot_of[code] : 0;

    return slot ? &ghcb_msr_rows[slot - 1] : 0;
}

/* cffi: begin */
/* Take any 64-bit value apart; return and store the status. `*out` is written in every case.
 *
 *   GHCB_OK               the fields of the row in a, b, c; those it lacks are 0
 *   GHCB_E_RESERVED_BITS  same, and a bit is set that no field claims
 *   GHCB_E_UNKNOWN_CODE   no row: row = GHCB_MSR_NO_ROW, a = bits [63:12], b = c = 0
 *
 * Only form is judged. Whether a GFN, operation, register or version makes sense is not. */
static inline int ghcb_msr_decode(uint64_t raw, ghcb_msr_t *out);

/* Put a value together. The inverse of a decode that gave GHCB_OK.
 *
 *   GHCB_E_UNKNOWN_CODE   `code` has no row
 *   GHCB_E_OUT_OF_RANGE   a, b or c does not fit its field; a field the row lacks must be 0 */
static inline int ghcb_msr_encode(uint64_t code, uint64_t a, uint64_t b, uint64_t c, uint64_t *raw);

/* Judge an answer by its request, as a careful guest does. First that applies:
 *
 *   GHCB_E_UNKNOWN_CODE   the code of the request has no row
 *   GHCB_E_CODE_MISMATCH  the request is not one that has an answer, or the answer's code is not
 *                         the request's other half (an unchanged MSR is this)
 *   GHCB_E_RESERVED_BITS  the answer has a reserved bit set. KVM leaves bits [31:12] of a CPUID
 *                         request as they are, so here the fault may be the request's
 *   GHCB_E_ECHO_MISMATCH  CPUID: another register. Register GPA: another GFN, not GHCB_MSR_NO_GFN
 *   GHCB_OK               also for a legal "no": NO_GFN, an error number, "not released"
 *
 * The request is taken as it is: its own reserved bits are not looked at. */
static inline int ghcb_msr_check_answer(uint64_t request, uint64_t answer);
/* cffi: end */

static inline int ghcb_msr_decode(uint64_t raw, ghcb_msr_t *out)
{
    uint32_t code = raw & GHCB_MSR_INFO_MASK;
    uint32_t slot = ghcb_msr_slot_of[code];
    const ghcb_msr_slot_t *s = &ghcb_msr_slots[slot];
    /* No branch: real values mix good and bad ones, and a wrong guess costs more than all else. */
    uint8_t status = s->status | (GHCB_E_RESERVED_BITS & -(uint8_t)((raw & s->reserved) != 0));

    out->a = (raw >> s->a_shift) & s->a_mask;
    out->b = (raw >> s->b_shift) & s->b_mask;
    out->c = (raw >> s->c_shift) & s->c_mask;
    out->status = status;
    out->code = code;
    out->row = slot - 1; /* 0 becomes GHCB_MSR_NO_ROW */
    return status;
}

static inline int ghcb_msr_encode(uint64_t code, uint64_t a, uint64_t b, uint64_t c, uint64_t *raw)
{
    const ghcb_msr_slot_t *s;
    uint64_t slot = code < GHCB_MSR_N_CODES ? ghcb_msr_slot_of[code] : 0;

    if (!slot)
        return GHCB_E_UNKNOWN_CODE;
    s = &ghcb_msr_slots[slot];
    if ((a & ~s->a_mask) | (b & ~(uint64_t)s->b_mask) | (c & ~(uint64_t)s->c_mask))
        return GHCB_E_OUT_OF_RANGE;
    *raw = a << s->a_shift | b << s->b_shift | c << s->c_shift | code;
    return GHCB_OK;
}

static inline int ghcb_msr_check_answer(uint64_t request, uint64_t answer)
{
    uint32_t code = request & GHCB_MSR_INFO_MASK;
    const ghcb_msr_row_t *ask = ghcb_msr_row(code);
    ghcb_msr_t asked, got;
    int status;

    if (!ask)
        return GHCB_E_UNKNOWN_CODE;
    if (ask->is_answer || (answer & GHCB_MSR_INFO_MASK) != ask->pair)
        return GHCB_E_CODE_MISMATCH;
    status = ghcb_msr_decode(answer, &got);
    if (status != GHCB_OK)
        return status;
    ghcb_msr_decode(request, &asked);
    if (code == GHCB_MSR_CPUID_REQ && got.b != asked.b)
        return GHCB_E_ECHO_MISMATCH;
    if (code == GHCB_MSR_REG_GPA_REQ && got.a != asked.a && got.a != GHCB_MSR_NO_GFN)
        return GHCB_E_ECHO_MISMATCH;
    return GHCB_OK;
}

#endif
