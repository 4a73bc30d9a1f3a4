/* The form of a flow after it is compiled: guarded commands over a record of 64-bit words.
 *
 * Theory of operation. The state of a machine is one record: `n_global` words that exist once
 * (the VM, the boot CPU, the kernels' variables), then one slice of `n_slice` words for each
 * other CPU. A *role* is a kind of agent: one agent for a global role, one agent per slice for a
 * role of CPUs. Its position in its program is a word of the record. At each position stand one
 * or more *alternatives*: tests that must all hold, then effects. `step` applies one alternative
 * of one agent; nothing else ever changes a record.
 *
 * An operand names a block and a word in it: the globals, the agent's own slice, or the slice of
 * the one other CPU that the alternative binds. A CALL hands words of the record, where they
 * stand, to a function of the host (`host.h`).
 */
#ifndef GHCBCORE_MACHINE_H
#define GHCBCORE_MACHINE_H

#include <stdint.h>

/* cffi: begin */
/* blocks of an operand, in its upper 8 bits */
#define GHCB_BLOCK_GLOBAL 0
#define GHCB_BLOCK_OWN 1
#define GHCB_BLOCK_OTHER 2
#define GHCB_BLOCK_SHIFT 24
#define GHCB_BLOCK_WORD 0xffffff

/* tests: (word a & mask) against b; as a guard they must hold, in effects they skip when false */
#define GHCB_OP_EQ 1
#define GHCB_OP_NE 2
#define GHCB_OP_LT 3
#define GHCB_OP_GE 4
#define GHCB_OP_LAST_TEST 4
/* effects on word a; arithmetic wraps at 64 bits */
#define GHCB_OP_SET 5  /* a = b & mask */
#define GHCB_OP_ADD 6  /* a += b */
#define GHCB_OP_SHR 7  /* a >>= b */
#define GHCB_OP_SKIP 8 /* go on `skip` instructions further */
#define GHCB_OP_EACH 9 /* run the next `skip` instructions once with each slice as OTHER */
#define GHCB_OP_CALL 10 /* host function b on the ghcb_vcpu_t that starts at word a */
#define GHCB_OP_FRAME 11 /* a = result of an operation on frame b of a region; the mask says which */
#define GHCB_OP_REACH 12 /* a = result of an operation on a place, on value b; the mask says which */
#define GHCB_OP_NUMBER 13 /* a = number of the CPU of block b, shifted left by the mask */
#define GHCB_OP_END 14

/* the mask of GHCB_OP_FRAME: index of the operation, index of the region */
#define GHCB_FRAME_OP_MASK 0xffffffff
#define GHCB_FRAME_REGION_SHIFT 32

/* the mask of GHCB_OP_REACH: index of the operation, index of the place, block of the acting CPU */
#define GHCB_REACH_OP_MASK 0xffffffff
#define GHCB_REACH_PLACE_SHIFT 32
#define GHCB_REACH_PLACE_MASK 0xffff
#define GHCB_REACH_BLOCK_SHIFT 48

/* ghcb_alt_t.binds: which other CPU stands for OTHER */
#define GHCB_BIND_NONE 0
#define GHCB_BIND_ANY 1 /* any other CPU for which the guards hold */

/* ghcb_event_t.call of an operation on a frame: `msr` has the mask, `sw_exit_code` the frame and
 * `msr_after` the result */
#define GHCB_TRACE_FRAME 0x100

#define GHCB_MAX_CPUS 8192 /* NR_CPUS of Linux with CONFIG_MAXSMP */
/* cffi: end */

typedef struct ghcb_insn {
    uint16_t op;
    uint16_t b_is_word; /* b is an operand; otherwise imm is the value */
    uint32_t skip;
    uint32_t a;
    uint32_t b;
    uint64_t imm;
    uint64_t mask;
} ghcb_insn_t;

typedef struct ghcb_alt {
    uint32_t role;
    uint32_t pc;
    uint32_t guard; /* first instruction */
    uint32_t n_guards;
    uint32_t effect;
    uint32_t n_effects;
    uint32_t binds;
    uint32_t each;    /* 1: the effects reach every slice, or ask for a CPU's number */
    uint64_t cost_ns; /* `run`: how long the agent is busy with it */
    uint64_t delay_ns; /* `run`: how long it must have been possible before it happens */
    uint64_t spread;  /* 1: the delay is drawn from [0, 2 * delay_ns) */
} ghcb_alt_t;

typedef struct ghcb_role {
    uint32_t block;    /* GHCB_BLOCK_GLOBAL or GHCB_BLOCK_OWN */
    uint32_t pc_word;  /* where its position stands in that block */
    uint32_t first;    /* index of its position 0 in the table of positions */
    uint32_t n_pcs;
} ghcb_role_t;

/* What CALLs were made: the record of a trace. `run` keeps them, `check` does not ask for them. */
typedef struct ghcb_event {
    uint64_t time_ns;
    uint32_t cpu;  /* 0 is the boot CPU */
    uint32_t call; /* GHCB_CALL_* */
    uint64_t msr;  /* GHCB MSR before */
    uint64_t msr_after;
    uint64_t sw_exit_code;
    uint64_t sw_exit_info_1; /* before */
    uint64_t sw_exit_info_2;
    uint64_t info_1_after;
    uint64_t info_2_after;
    uint64_t took_ns;  /* how long the agent was busy with it */
    uint64_t vm_event; /* ghcb_vm_t.event after: not 0 if this ended the run */
} ghcb_event_t;

typedef struct ghcb_trace {
    ghcb_event_t *events; /* room for all that one alternative can make */
    uint64_t n;
    uint64_t now_ns;
    uint64_t cost_ns; /* of the alternative that makes them */
} ghcb_trace_t;

_Static_assert(sizeof(ghcb_event_t) == 88, "no gaps");
_Static_assert(sizeof(ghcb_insn_t) == 32, "no gaps");
_Static_assert(sizeof(ghcb_alt_t) == 56, "no gaps");
_Static_assert(sizeof(ghcb_role_t) == 16, "no gaps");

#endif
