/* The GHCB page: one page that guest and hypervisor both read and write.
 *
 * The first half is a save area laid out like the VMSA, so that a register stands at the same
 * offset in both; the second half is a buffer for whatever does not fit into registers, and the
 * last bytes say which layout the page has. A field of the save area counts only if its bit in
 * the valid bitmap is set; fields outside the first 0x400 bytes have no bit.
 *
 * Left to others: what the fields mean for an event (nae.h), requests without a page (msr.h).
 * Units: offsets in bytes, `GHCB_VALID_*` are bit numbers in the 128-bit bitmap.
 *
 * Source: GHCB protocol, page layout, as Linux, EDK2, SVSM, OAK and OpenVMM agree on it.
 * Only named, use not seen: x87_state_gpa.
 */
#ifndef GHCBCORE_PAGE_H
#define GHCBCORE_PAGE_H

#include <ghcbcore/status.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* cffi: begin */
#define GHCB_PAGE_SIZE 0x1000
#define GHCB_PAGE_SHIFT 12
#define GHCB_SAVE_AREA_SIZE 0x800     /* up to the shared buffer */
#define GHCB_SHARED_BUFFER_SIZE 0x7f0 /* 2032 bytes */

#define GHCB_OFF_CPL 0x0cb /* one byte */
#define GHCB_OFF_XSS 0x140 /* protocol version 2 */
#define GHCB_OFF_DR7 0x160
#define GHCB_OFF_RIP 0x178
#define GHCB_OFF_RSP 0x1d8
#define GHCB_OFF_RAX 0x1f8
#define GHCB_OFF_RCX 0x308
#define GHCB_OFF_RDX 0x310
#define GHCB_OFF_RBX 0x318
#define GHCB_OFF_RBP 0x328
#define GHCB_OFF_RSI 0x330
#define GHCB_OFF_RDI 0x338
#define GHCB_OFF_R8 0x340
#define GHCB_OFF_R9 0x348
#define GHCB_OFF_R10 0x350
#define GHCB_OFF_R11 0x358
#define GHCB_OFF_R12 0x360
#define GHCB_OFF_R13 0x368
#define GHCB_OFF_R14 0x370
#define GHCB_OFF_R15 0x378
#define GHCB_OFF_SW_EXIT_CODE 0x390
#define GHCB_OFF_SW_EXIT_INFO_1 0x398
#define GHCB_OFF_SW_EXIT_INFO_2 0x3a0
#define GHCB_OFF_SW_SCRATCH 0x3a8    /* holds a GPA */
#define GHCB_OFF_XCR0 0x3e8
#define GHCB_OFF_VALID_BITMAP 0x3f0  /* 16 bytes; its bits cover 0x000 to 0x3ff */
#define GHCB_OFF_X87_STATE_GPA 0x400 /* unconfirmed: no user seen */
#define GHCB_OFF_SHARED_BUFFER 0x800
#define GHCB_OFF_PROTOCOL_VERSION 0xffa
#define GHCB_OFF_GHCB_USAGE 0xffc

/* Bit of a field in the valid bitmap: its offset in units of 8 bytes. */
#define GHCB_VALID_CPL (GHCB_OFF_CPL / 8)
#define GHCB_VALID_XSS (GHCB_OFF_XSS / 8)
#define GHCB_VALID_DR7 (GHCB_OFF_DR7 / 8)
#define GHCB_VALID_RIP (GHCB_OFF_RIP / 8)
#define GHCB_VALID_RSP (GHCB_OFF_RSP / 8)
#define GHCB_VALID_RAX (GHCB_OFF_RAX / 8)
#define GHCB_VALID_RCX (GHCB_OFF_RCX / 8)
#define GHCB_VALID_RDX (GHCB_OFF_RDX / 8)
#define GHCB_VALID_RBX (GHCB_OFF_RBX / 8)
#define GHCB_VALID_RBP (GHCB_OFF_RBP / 8)
#define GHCB_VALID_RSI (GHCB_OFF_RSI / 8)
#define GHCB_VALID_RDI (GHCB_OFF_RDI / 8)
#define GHCB_VALID_R8 (GHCB_OFF_R8 / 8)
#define GHCB_VALID_R9 (GHCB_OFF_R9 / 8)
#define GHCB_VALID_R10 (GHCB_OFF_R10 / 8)
#define GHCB_VALID_R11 (GHCB_OFF_R11 / 8)
#define GHCB_VALID_R12 (GHCB_OFF_R12 / 8)
#define GHCB_VALID_R13 (GHCB_OFF_R13 / 8)
#define GHCB_VALID_R14 (GHCB_OFF_R14 / 8)
#define GHCB_VALID_R15 (GHCB_OFF_R15 / 8)
#define GHCB_VALID_SW_EXIT_CODE (GHCB_OFF_SW_EXIT_CODE / 8)
#define GHCB_VALID_SW_EXIT_INFO_1 (GHCB_OFF_SW_EXIT_INFO_1 / 8)
#define GHCB_VALID_SW_EXIT_INFO_2 (GHCB_OFF_SW_EXIT_INFO_2 / 8)
#define GHCB_VALID_SW_SCRATCH (GHCB_OFF_SW_SCRATCH / 8)
#define GHCB_VALID_XCR0 (GHCB_OFF_XCR0 / 8)
#define GHCB_VALID_BITS 128

/* What KVM marks valid in every reply: rax rbx rcx rdx sw_exit_info_1 sw_exit_info_2. */
#define GHCB_KVM_REPLY_VALID_LO (1ULL << GHCB_VALID_RAX)
#define GHCB_KVM_REPLY_VALID_HI (1ULL << (GHCB_VALID_RCX - 64) | 1ULL << (GHCB_VALID_RDX - 64) | 1ULL << (GHCB_VALID_RBX - 64) | 1ULL << (GHCB_VALID_SW_EXIT_INFO_1 - 64) | 1ULL << (GHCB_VALID_SW_EXIT_INFO_2 - 64))

/* What every request must mark valid: sw_exit_code sw_exit_info_1 sw_exit_info_2. */
#define GHCB_REQUEST_VALID_LO 0ULL
#define GHCB_REQUEST_VALID_HI (1ULL << (GHCB_VALID_SW_EXIT_CODE - 64) | 1ULL << (GHCB_VALID_SW_EXIT_INFO_1 - 64) | 1ULL << (GHCB_VALID_SW_EXIT_INFO_2 - 64))

#define GHCB_USAGE_STANDARD 0              /* the layout of this file */
#define GHCB_USAGE_HYPERV_HYPERCALL 1      /* Hyper-V: the layout below */
#define GHCB_USAGE_HYPERV_VTL_RETURN 2     /* Hyper-V */
#define GHCB_USAGE_HYPERV_IDLE 0xffffffff  /* Hyper-V: the page holds no request */

/* Usage GHCB_USAGE_HYPERV_HYPERCALL: data from offset 0, then two 64-bit words. */
#define GHCB_HYPERV_DATA_SIZE 0xfe8
#define GHCB_HYPERV_OFF_OUTPUT_GPA 0xfe8
#define GHCB_HYPERV_OFF_CONTROL 0xff0 /* input control on entry, result on return */

typedef struct {
    uint8_t reserved_000[0xcb];
    uint8_t cpl;
    uint8_t reserved_0cc[0x74];
    uint64_t xss;
    uint8_t reserved_148[0x18];
    uint64_t dr7;
    uint8_t reserved_168[0x10];
    uint64_t rip;
    uint8_t reserved_180[0x58];
    uint64_t rsp;
    uint8_t reserved_1e0[0x18];
    uint64_t rax;
    uint8_t reserved_200[0x108];
    uint64_t rcx;
    uint64_t rdx;
    uint64_t rbx;
    uint8_t reserved_320[0x8];
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
    uint8_t reserved_380[0x10];
    uint64_t sw_exit_code;
    uint64_t sw_exit_info_1;
    uint64_t sw_exit_info_2;
    uint64_t sw_scratch;
    uint8_t reserved_3b0[0x38];
    uint64_t xcr0;
    uint64_t valid_bitmap[2];
    uint64_t x87_state_gpa;
    uint8_t reserved_408[0x3f8];
    uint8_t shared_buffer[0x7f0];
    uint8_t reserved_ff0[0xa];
    uint16_t protocol_version;
    uint32_t ghcb_usage;
} ghcb_page_t;

static int ghcb_valid_test(const uint64_t *words, unsigned int bit);
static int ghcb_valid_set(uint64_t *words, unsigned int bit);
/* cffi: end */

#ifdef __cplusplus
#define GHCB_PAGE_ASSERT static_assert
#else
#define GHCB_PAGE_ASSERT _Static_assert
#endif
#define GHCB_PAGE_AT(field, offset) \
    GHCB_PAGE_ASSERT(offsetof(ghcb_page_t, field) == (offset), "offset of " #field)

GHCB_PAGE_AT(cpl, GHCB_OFF_CPL);
GHCB_PAGE_AT(xss, GHCB_OFF_XSS);
GHCB_PAGE_AT(dr7, GHCB_OFF_DR7);
GHCB_PAGE_AT(rip, GHCB_OFF_RIP);
GHCB_PAGE_AT(rsp, GHCB_OFF_RSP);
GHCB_PAGE_AT(rax, GHCB_OFF_RAX);
GHCB_PAGE_AT(rcx, GHCB_OFF_RCX);
GHCB_PAGE_AT(rdx, GHCB_OFF_RDX);
GHCB_PAGE_AT(rbx, GHCB_OFF_RBX);
GHCB_PAGE_AT(rbp, GHCB_OFF_RBP);
GHCB_PAGE_AT(rsi, GHCB_OFF_RSI);
GHCB_PAGE_AT(rdi, GHCB_OFF_RDI);
GHCB_PAGE_AT(r8, GHCB_OFF_R8);
GHCB_PAGE_AT(r9, GHCB_OFF_R9);
GHCB_PAGE_AT(r10, GHCB_OFF_R10);
GHCB_PAGE_AT(r11, GHCB_OFF_R11);
GHCB_PAGE_AT(r12, GHCB_OFF_R12);
GHCB_PAGE_AT(r13, GHCB_OFF_R13);
GHCB_PAGE_AT(r14, GHCB_OFF_R14);
GHCB_PAGE_AT(r15, GHCB_OFF_R15);
GHCB_PAGE_AT(sw_exit_code, GHCB_OFF_SW_EXIT_CODE);
GHCB_PAGE_AT(sw_exit_info_1, GHCB_OFF_SW_EXIT_INFO_1);
GHCB_PAGE_AT(sw_exit_info_2, GHCB_OFF_SW_EXIT_INFO_2);
GHCB_PAGE_AT(sw_scratch, GHCB_OFF_SW_SCRATCH);
GHCB_PAGE_AT(xcr0, GHCB_OFF_XCR0);
GHCB_PAGE_AT(valid_bitmap, GHCB_OFF_VALID_BITMAP);
GHCB_PAGE_AT(x87_state_gpa, GHCB_OFF_X87_STATE_GPA);
GHCB_PAGE_AT(shared_buffer, GHCB_OFF_SHARED_BUFFER);
GHCB_PAGE_AT(protocol_version, GHCB_OFF_PROTOCOL_VERSION);
GHCB_PAGE_AT(ghcb_usage, GHCB_OFF_GHCB_USAGE);
GHCB_PAGE_AT(shared_buffer, GHCB_SAVE_AREA_SIZE);
GHCB_PAGE_AT(reserved_ff0, GHCB_HYPERV_OFF_CONTROL);
GHCB_PAGE_ASSERT(sizeof(ghcb_page_t) == GHCB_PAGE_SIZE, "size of the GHCB page");
GHCB_PAGE_ASSERT(1 << GHCB_PAGE_SHIFT == GHCB_PAGE_SIZE, "shift of the GHCB page");
GHCB_PAGE_ASSERT(sizeof(((ghcb_page_t *)0)->shared_buffer) == GHCB_SHARED_BUFFER_SIZE,
                 "size of the shared buffer");
GHCB_PAGE_ASSERT(GHCB_VALID_BITS * 8 == GHCB_OFF_VALID_BITMAP + 16,
                 "the bitmap covers everything up to its own end");
GHCB_PAGE_ASSERT(GHCB_HYPERV_OFF_OUTPUT_GPA == GHCB_HYPERV_DATA_SIZE,
                 "the hypercall data ends where the words begin");
GHCB_PAGE_ASSERT(GHCB_HYPERV_OFF_CONTROL == GHCB_HYPERV_OFF_OUTPUT_GPA + 8,
                 "the two words of a hypercall page are neighbours");

#undef GHCB_PAGE_AT
#undef GHCB_PAGE_ASSERT

/* Is `bit` set in the two words of a valid bitmap? A bit beyond the bitmap is not. */
static inline int ghcb_valid_test(const uint64_t *words, unsigned int bit)
{
    return bit < GHCB_VALID_BITS && (words[bit / 64] >> (bit % 64) & 1) != 0;
}

/* Set `bit`; GHCB_E_OUT_OF_RANGE, and nothing changed, if the bitmap does not have it. */
static inline int ghcb_valid_set(uint64_t *words, unsigned int bit)
{
    if (bit >= GHCB_VALID_BITS)
        return GHCB_E_OUT_OF_RANGE;
    words[bit / 64] |= UINT64_C(1) << (bit % 64);
    return GHCB_OK;
}

/* A 64-bit word at any address. */
static inline uint64_t ghcb_load64(const uint8_t *at)
{
    uint64_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

/* A word of a page by its offset, GHCB_OFF_*. */
static inline uint64_t ghcb_page_get(const uint8_t *page, unsigned int offset)
{
    return ghcb_load64(page + offset);
}

static inline void ghcb_page_put(uint8_t *page, unsigned int offset, uint64_t value)
{
    memcpy(page + offset, &value, sizeof(value));
}

#endif
