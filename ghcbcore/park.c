/* The code in which an AP of an SEV-ES guest waits for its next kernel.
 *
 * It lies in the AP jump table page, which belongs to no kernel, and runs in 16-bit protected mode
 * without paging: the page is above 1 MiB, so only a segment base reaches it, and with paging off
 * the processor takes all of memory for encrypted, as the page is. Every CPU of the machine runs
 * the same bytes at the same time. Nothing is per CPU: not the GDT, not the four bytes of stack
 * (all push the same value), not the operand of the last jump (all copy it from the same place).
 *
 * Entry: CS = code16 with the page as its base, IP = GHCB_PARK_ENTRY, interrupts off, paging off.
 * No other register is relied on. Exit: at the reset vector that the page holds then, in real
 * mode, as after a reset; only ECX is not zero, it still has the value of CR0, because the jump
 * must be the instruction after the load of CR0. DS, SS and the others have base 0 and a limit of
 * 64 KiB, whatever their selector says.
 *
 * The bytes are plain data to this library, placed into a page by `ghcbcore.jumptable`. All
 * references are relative to the page: there is nothing to relocate but three bases in the GDT.
 */
#include <ghcbcore/jumptable.h>
#include <ghcbcore/msr.h>
#include <ghcbcore/sev.h>

#if defined(__x86_64__)
#define BACK_TO_HOST_CODE ".code64\n"
#elif defined(__i386__)
#define BACK_TO_HOST_CODE ".code32\n"
#else
#error "park.c is x86 machine code: it needs an assembler for x86"
#endif

#define TEXT(value) #value
#define N(value) TEXT(value)
#define AT(label) "(" label " - ghcb_park_start + " N(GHCB_PARK_ENTRY) ")"
#define SELECTOR(index) "(" N(index) " * " N(GHCB_PARK_DESCRIPTOR_SIZE) ")"
#define SYMBOL(name) ".globl " name "\n.hidden " name "\n"
#define DESCRIPTOR(access) \
	".word " N(GHCB_PARK_SEGMENT_LIMIT) ", 0\n" \
	".byte 0, " N(access) ", 0, 0\n"

__asm__(
	".pushsection .rodata.ghcb_park, \"a\", @progbits\n"
	SYMBOL("ghcb_park_start")
	SYMBOL("ghcb_park_operand")
	SYMBOL("ghcb_park_gdt")
	SYMBOL("ghcb_park_end")
	".code16\n"
	".balign " N(GHCB_PARK_GDT_ALIGN) "\n"
	"ghcb_park_start:\n"

	/* From here on nothing outside the page is needed: its own GDT, its own segments. */
	"	lgdtl %cs:" AT("ghcb_park_gdt") "\n"
	"	ljmpw $" SELECTOR(GHCB_PARK_GDT_CODE16) ", $" AT("1f") "\n"
	"1:	movw $" SELECTOR(GHCB_PARK_GDT_DATA16) ", %ax\n"
	"	movw %ax, %ds\n"
	"	movw %ax, %ss\n"
	"	movl $" N(GHCB_PARK_STACK_TOP) ", %esp\n"

	/* Hold. The answer counts only if it is one to this request and says "SIPI". */
	"	movl $" N(SEV_MSR_GHCB) ", %ecx\n"
	"2:	movl $" N(GHCB_MSR_AP_RESET_HOLD_REQ) ", %eax\n"
	"	xorl %edx, %edx\n"
	"	wrmsr\n"
	"	rep; vmmcall\n" /* VMGEXIT */
	"	rdmsr\n"
	"	movl %eax, %ebx\n"
	"	andl $" N(GHCB_MSR_INFO_MASK) ", %ebx\n"
	"	cmpl $" N(GHCB_MSR_AP_RESET_HOLD_RESP) ", %ebx\n"
	"	jne 2b\n"
	"	shrl $" N(GHCB_MSR_DATA_SHIFT) ", %eax\n"
	"	orl %edx, %eax\n"
	"	jz 2b\n"

	/* Only now read the vector: it is the next kernel that has written it. An indirect jump
	 * could not fetch it later, DS no longer reaches the page then. */
	"	movl " N(GHCB_JUMP_TABLE_RESET_IP) ", %eax\n"
	"	movl %eax, " AT("ghcb_park_operand") "\n"

	/* The state after a reset. No instruction after POPF may touch the flags. */
	"	xorl %eax, %eax\n"
	"	xorl %ebx, %ebx\n"
	"	xorl %edx, %edx\n"
	"	xorl %esi, %esi\n"
	"	xorl %edi, %edi\n"
	"	xorl %ebp, %ebp\n"
	"	movw $" SELECTOR(GHCB_PARK_GDT_REAL_DATA) ", %cx\n"
	"	pushl $" N(GHCB_PARK_EFLAGS) "\n"
	"	popfl\n"
	"	movw %cx, %ds\n"
	"	movw %cx, %es\n"
	"	movw %cx, %fs\n"
	"	movw %cx, %gs\n"
	"	movw %cx, %ss\n"
	"	movl $0, %esp\n"
	"	movl $" N(GHCB_PARK_CR0) ", %ecx\n"
	/* MOV to CR0 has 3 bytes, the opcode of the jump 1: the operand is aligned, so that IP and CS
	 * are copied at once and no CPU sees half of a vector. */
	"	.balign 4, 0x90\n"
	"	movl %ecx, %cr0\n"
	"	ljmpw $0, $0\n"
	"	.set ghcb_park_operand, . - 4\n"

	"	.balign " N(GHCB_PARK_GDT_ALIGN) ", 0\n"
	"ghcb_park_gdt:\n"
	"	.word " N(GHCB_PARK_GDT_ENTRIES) " * " N(GHCB_PARK_DESCRIPTOR_SIZE) " - 1\n"
	"	.long 0\n"
	"	.word 0\n"
	DESCRIPTOR(GHCB_PARK_CODE_ACCESS)
	DESCRIPTOR(GHCB_PARK_DATA_ACCESS)
	DESCRIPTOR(GHCB_PARK_DATA_ACCESS)
	"ghcb_park_end:\n"
	BACK_TO_HOST_CODE
	".popsection\n"
);

/* The four symbols are the whole interface; ghcbcore/clib.pxd declares them. The rows of the GDT
 * above stand in the order that the indices give. */
_Static_assert(GHCB_PARK_GDT_SELF == 0 && GHCB_PARK_GDT_CODE16 == 1 &&
	       GHCB_PARK_GDT_DATA16 == 2 && GHCB_PARK_GDT_REAL_DATA == 3 &&
	       GHCB_PARK_GDT_ENTRIES == 4, "order of the GDT");
/* One 32-bit load reads IP and CS in the order in which a far jump has them. */
_Static_assert(GHCB_JUMP_TABLE_RESET_CS == GHCB_JUMP_TABLE_RESET_IP + 2, "IP, then CS");
