/* Pages that an SNP guest starts with, and the page in which it talks to the firmware.
 *
 * The secrets page holds the keys of those messages, the counters that belong to them and where
 * the AP jump table and the SVSM are; the CPUID page holds what the firmware has checked. A
 * message page has a header in the clear and a payload that is encrypted.
 *
 * Left to others: message types and events (nae.h), offsets of the header (`SNP_MSG_OFF_*` there).
 *
 * Source: Linux asm/sev.h (struct snp_secrets_page, snp_cpuid_table, snp_guest_msg).
 */
#ifndef GHCBCORE_SECRETS_H
#define GHCBCORE_SECRETS_H

#include <ghcbcore/nae.h>
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
#define SNP_SECRETS_SIZE 0x1000
#define SNP_SECRETS_OFF_VERSION 0x000
#define SNP_SECRETS_OFF_VMPCK0 0x020
#define SNP_SECRETS_OFF_OS_AREA 0x0a0
#define SNP_SECRETS_OFF_AP_JUMP_TABLE 0x0b0
#define SNP_SECRETS_OFF_VMSA_TWEAK 0x100
#define SNP_SECRETS_OFF_SVSM_BASE 0x140
#define SNP_SECRETS_OFF_SVSM_SIZE 0x148
#define SNP_SECRETS_OFF_SVSM_CAA 0x150
#define SNP_SECRETS_OFF_SVSM_MAX_VERSION 0x158
#define SNP_SECRETS_OFF_SVSM_GUEST_VMPL 0x15c
#define SNP_SECRETS_OFF_TSC_FACTOR 0x160

#define SNP_CPUID_MAX_ENTRIES 64
#define SNP_CPUID_ENTRY_SIZE 48
#define SNP_CPUID_OFF_COUNT 0x000
#define SNP_CPUID_OFF_ENTRIES 0x010

typedef struct {
    uint32_t version;
    uint32_t word_004; /* bit 0: IMI migration */
    uint32_t fms;
    uint8_t reserved_00c[0x4];
    uint8_t gosvw[16];
    uint8_t vmpck0[32];
    uint8_t vmpck1[32];
    uint8_t vmpck2[32];
    uint8_t vmpck3[32];
    uint32_t msg_seqno_0;
    uint32_t msg_seqno_1;
    uint32_t msg_seqno_2;
    uint32_t msg_seqno_3;
    uint64_t ap_jump_table_pa;
    uint8_t reserved_0b8[0x28];
    uint8_t guest_usage[32];
    uint8_t vmsa_tweak_bitmap[64];
    uint64_t svsm_base;
    uint64_t svsm_size;
    uint64_t svsm_caa;
    uint32_t svsm_max_version;
    uint8_t svsm_guest_vmpl;
    uint8_t reserved_15d[0x3];
    uint32_t tsc_factor;
    uint8_t reserved_164[0xe9c];
} snp_secrets_t;

typedef struct {
    uint32_t eax_in;
    uint32_t ecx_in;
    uint64_t xcr0_in;
    uint64_t xss_in;
    uint32_t eax;
    uint32_t ebx;
    uint32_t ecx;
    uint32_t edx;
    uint64_t reserved;
} snp_cpuid_entry_t;

typedef struct {
    uint32_t count;
    uint8_t reserved_004[0xc];
    snp_cpuid_entry_t entries[64];
    uint8_t reserved_c10[0x3f0];
} snp_cpuid_page_t;

typedef struct {
    uint8_t authtag[32];
    uint64_t seqno;
    uint8_t reserved_028[0x8];
    uint8_t algo;
    uint8_t header_version;
    uint16_t header_size;
    uint8_t type;
    uint8_t version;
    uint16_t size;
    uint8_t reserved_038[0x4];
    uint8_t vmpck;
    uint8_t reserved_03d[0x23];
    uint8_t payload[4000];
} snp_message_t;
/* cffi: end */

#define SNP_AT(type, field, offset) _Static_assert(offsetof(type, field) == (offset), #field)
SNP_AT(snp_secrets_t, version, SNP_SECRETS_OFF_VERSION);
SNP_AT(snp_secrets_t, vmpck0, SNP_SECRETS_OFF_VMPCK0);
SNP_AT(snp_secrets_t, msg_seqno_0, SNP_SECRETS_OFF_OS_AREA);
SNP_AT(snp_secrets_t, ap_jump_table_pa, SNP_SECRETS_OFF_AP_JUMP_TABLE);
SNP_AT(snp_secrets_t, vmsa_tweak_bitmap, SNP_SECRETS_OFF_VMSA_TWEAK);
SNP_AT(snp_secrets_t, svsm_base, SNP_SECRETS_OFF_SVSM_BASE);
SNP_AT(snp_secrets_t, svsm_size, SNP_SECRETS_OFF_SVSM_SIZE);
SNP_AT(snp_secrets_t, svsm_caa, SNP_SECRETS_OFF_SVSM_CAA);
SNP_AT(snp_secrets_t, svsm_max_version, SNP_SECRETS_OFF_SVSM_MAX_VERSION);
SNP_AT(snp_secrets_t, svsm_guest_vmpl, SNP_SECRETS_OFF_SVSM_GUEST_VMPL);
SNP_AT(snp_secrets_t, tsc_factor, SNP_SECRETS_OFF_TSC_FACTOR);
SNP_AT(snp_cpuid_page_t, count, SNP_CPUID_OFF_COUNT);
SNP_AT(snp_cpuid_page_t, entries, SNP_CPUID_OFF_ENTRIES);
SNP_AT(snp_message_t, authtag, SNP_MSG_OFF_AUTHTAG);
SNP_AT(snp_message_t, seqno, SNP_MSG_OFF_SEQNO);
SNP_AT(snp_message_t, algo, SNP_MSG_OFF_ALGO);
SNP_AT(snp_message_t, header_version, SNP_MSG_OFF_HEADER_VERSION);
SNP_AT(snp_message_t, header_size, SNP_MSG_OFF_HEADER_SIZE);
SNP_AT(snp_message_t, type, SNP_MSG_OFF_TYPE);
SNP_AT(snp_message_t, version, SNP_MSG_OFF_VERSION);
SNP_AT(snp_message_t, size, SNP_MSG_OFF_SIZE);
SNP_AT(snp_message_t, vmpck, SNP_MSG_OFF_VMPCK);
SNP_AT(snp_message_t, payload, SNP_MSG_OFF_PAYLOAD);
_Static_assert(sizeof(snp_secrets_t) == SNP_SECRETS_SIZE, "size of the secrets page");
_Static_assert(sizeof(snp_cpuid_entry_t) == SNP_CPUID_ENTRY_SIZE, "size of a CPUID entry");
_Static_assert(sizeof(((snp_cpuid_page_t *)0)->entries) / SNP_CPUID_ENTRY_SIZE ==
                   SNP_CPUID_MAX_ENTRIES,
               "room of the CPUID page");
_Static_assert(sizeof(snp_cpuid_page_t) == SNP_SECRETS_SIZE, "size of the CPUID page");
_Static_assert(sizeof(snp_message_t) == SNP_SECRETS_SIZE, "size of a message page");
#undef SNP_AT

#endif
