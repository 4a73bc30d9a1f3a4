/* The AP jump table page: where it may lie, what stands where in it, and the numbers that the
 * park code in it is built from.
 *
 * The GHCB protocol gives meaning to the first four bytes only: IP and CS at which an AP goes on
 * after its reset hold. The rest of the layout is that of the kexec series for SEV-ES guests: the
 * page also holds the code in which an AP waits, the GDT of that code and four bytes of stack, so
 * that a waiting AP needs no memory of any kernel. The code itself is `ghcbcore/park.c`, part of
 * the module `ghcbcore.jumptable`; whoever has only the headers has the layout, not the code.
 *
 * The #defines down to the struct are also read by the assembler: no suffixes, no casts.
 *
 * Source: GHCB NAE 0x80000005 as seen in KVM and Linux; "x86/sev: KEXEC/KDUMP support for SEV-ES
 * guests", RFC to v6; APM2 (segment descriptors, processor state after reset).
 */
#ifndef GHCBCORE_JUMPTABLE_H
#define GHCBCORE_JUMPTABLE_H

#include <stddef.h>
#include <stdint.h>

#include <ghcbcore/status.h>

/* cffi: begin */
#define GHCB_JUMP_TABLE_NONE 0            /* the GPA that says "no table"; an answer, no error */
#define GHCB_JUMP_TABLE_SIZE 0x1000       /* one page for the whole VM */
#define GHCB_JUMP_TABLE_LIMIT 0x100000000 /* segment bases have 32 bits, paging is off */
#define GHCB_JUMP_TABLE_RESET_IP 0x000    /* u16 */
#define GHCB_JUMP_TABLE_RESET_CS 0x002    /* u16 */

/* What the series adds. Offsets are relative to the page, as all references of the code are. */
#define GHCB_PARK_GDT_OFFSET 0x004 /* u16: where in the page its GDT is */
#define GHCB_PARK_ENTRY 0x010      /* park code, 16-bit protected mode */
#define GHCB_PARK_GDT_ALIGN 0x010  /* the GDT follows the code */
#define GHCB_PARK_STACK_TOP 0x1000 /* shared by all APs: all push the same value */
#define GHCB_PARK_STACK_SIZE 4     /* one push, one pop */

#define GHCB_PARK_GDT_SELF 0      /* operand of LGDT in the place of the null descriptor */
#define GHCB_PARK_GDT_CODE16 1    /* base: the page */
#define GHCB_PARK_GDT_DATA16 2    /* base: the page */
#define GHCB_PARK_GDT_REAL_DATA 3 /* base 0: what DS and SS look like after a reset */
#define GHCB_PARK_GDT_ENTRIES 4
#define GHCB_PARK_DESCRIPTOR_SIZE 8 /* selector == index * size: table GDT, privilege 0 */
#define GHCB_PARK_SEGMENT_LIMIT 0xffff
#define GHCB_PARK_CODE_ACCESS 0x9b /* present, code, readable, accessed */
#define GHCB_PARK_DATA_ACCESS 0x93 /* present, data, writable, accessed */

#define GHCB_PARK_CR0 0x60000010 /* after a reset: CD, NW, ET; no PE */
#define GHCB_PARK_EFLAGS 0x002   /* after a reset: the bit that is always one */

typedef struct {
	uint16_t reset_ip;
	uint16_t reset_cs;
	uint16_t gdt_offset;
	uint8_t reserved_006[10];
	uint8_t park[4076]; /* code, then GDT */
	uint8_t stack[4];
} ghcb_jump_table_t;

static int ghcb_jump_table_check_gpa(uint64_t gpa);
/* cffi: end */

_Static_assert(offsetof(ghcb_jump_table_t, reset_ip) == GHCB_JUMP_TABLE_RESET_IP, "reset_ip");
_Static_assert(offsetof(ghcb_jump_table_t, reset_cs) == GHCB_JUMP_TABLE_RESET_CS, "reset_cs");
_Static_assert(offsetof(ghcb_jump_table_t, gdt_offset) == GHCB_PARK_GDT_OFFSET, "gdt_offset");
_Static_assert(offsetof(ghcb_jump_table_t, park) == GHCB_PARK_ENTRY, "park");
_Static_assert(offsetof(ghcb_jump_table_t, stack) == GHCB_PARK_STACK_TOP - GHCB_PARK_STACK_SIZE,
	       "stack");
_Static_assert(sizeof(ghcb_jump_table_t) == GHCB_JUMP_TABLE_SIZE, "size");
_Static_assert(GHCB_PARK_STACK_TOP == GHCB_JUMP_TABLE_SIZE, "the stack ends with the page");

/* May a jump table lie at `gpa`? Unaligned before out of range; GHCB_JUMP_TABLE_NONE is out of
 * range here, so a caller to whom "no table" is an answer asks for that first. The last page
 * below the limit is fine, and no comparison can wrap.
 */
static inline int ghcb_jump_table_check_gpa(uint64_t gpa)
{
	if (gpa & (GHCB_JUMP_TABLE_SIZE - 1))
		return GHCB_E_UNALIGNED;
	if (gpa == GHCB_JUMP_TABLE_NONE || gpa > GHCB_JUMP_TABLE_LIMIT - GHCB_JUMP_TABLE_SIZE)
		return GHCB_E_OUT_OF_RANGE;
	return GHCB_OK;
}

/* A segment descriptor, byte granular and 16-bit (flags 0), as one little-endian quadword. */
static inline uint64_t ghcb_park_descriptor(uint32_t base, uint16_t limit, uint8_t access)
{
	return (uint64_t)limit | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
	       (uint64_t)(base >> 24) << 56;
}

static inline uint32_t ghcb_park_descriptor_base(uint64_t descriptor)
{
	return (uint32_t)(descriptor >> 16 & 0xffffff) | (uint32_t)(descriptor >> 56) << 24;
}

static inline uint32_t ghcb_park_descriptor_limit(uint64_t descriptor)
{
	return (uint32_t)(descriptor & 0xffff) | (uint32_t)(descriptor >> 48 & 0xf) << 16;
}

static inline uint8_t ghcb_park_descriptor_access(uint64_t descriptor)
{
	return (uint8_t)(descriptor >> 40);
}

/* AVL, L, D/B and G, in bits 0 to 3. */
static inline uint8_t ghcb_park_descriptor_flags(uint64_t descriptor)
{
	return (uint8_t)(descriptor >> 52 & 0xf);
}

/* GHCB_PARK_GDT_SELF: the operand of a 32-bit LGDT, u16 limit and u32 base. */
static inline uint64_t ghcb_park_gdt_self(uint32_t base, uint16_t limit)
{
	return (uint64_t)limit | (uint64_t)base << 16;
}

static inline uint32_t ghcb_park_gdt_self_base(uint64_t self)
{
	return (uint32_t)(self >> 16);
}

static inline uint16_t ghcb_park_gdt_self_limit(uint64_t self)
{
	return (uint16_t)self;
}

#endif
