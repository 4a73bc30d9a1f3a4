/* Lines of a KVM trace as records, and how a line is told from another.
 *
 * A trace is text: one line for each event that a tracepoint of KVM wrote, among lines of other
 * tracepoints, comments and call chains. A record is what one line of interest says; a line of
 * interest that cannot be read is a record too, with the reason. `traceline.h` reads one line,
 * `traceprint.h` writes one, `ghcbcore.trace` does both with whole buffers, `exchange.h` says what
 * belongs together.
 *
 * Units: `time_ns` is the clock of the trace in nanoseconds, `offset` counts bytes from the
 * beginning of the text, `line` counts from 1.
 *
 * Source: the formats of Linux arch/x86/kvm/trace.h as the GHCB fact sheet 9.1 gives them; prefixes
 * as ftrace, `trace-cmd report` and `perf script` print them.
 */
#ifndef GHCBCORE_TRACE_H
#define GHCBCORE_TRACE_H

#include <stdint.h>

/* cffi: begin */
/* ghcb_trace_line_t.kind */
#define GHCB_TRACE_SKIP 0         /* not of interest; never in an array of records */
#define GHCB_TRACE_BAD 1          /* of interest and not readable; the reason is in `detail` */
#define GHCB_TRACE_NAE_ENTER 2    /* kvm_vmgexit_enter: CODE, INFO1, INFO2 of the request */
#define GHCB_TRACE_NAE_EXIT 3     /* kvm_vmgexit_exit: CODE still, INFO1, INFO2 of the reply */
#define GHCB_TRACE_MSR_ENTER 4    /* kvm_vmgexit_msr_protocol_enter: the MSR */
#define GHCB_TRACE_MSR_EXIT 5     /* kvm_vmgexit_msr_protocol_exit: the MSR, `result` */
#define GHCB_TRACE_RMP_FAULT 6    /* kvm_rmp_fault: GPA, PFN, error code, level in `detail`, result */
#define GHCB_TRACE_KVM_EXIT 7     /* kvm_exit: rip, info1, info2, reason in `detail` */
#define GHCB_TRACE_OTHER 8        /* another event of KVM, its name in `detail` */
#define GHCB_TRACE_LOST 9         /* the tracer lost events: how many, on which CPU */
#define GHCB_TRACE_N_KINDS 10

/* Why a line of interest is not readable: ghcb_trace_line_t.detail of a GHCB_TRACE_BAD. */
#define GHCB_TRACE_E_NONE 0
#define GHCB_TRACE_E_PREFIX 1   /* what stands before the event is no known form */
#define GHCB_TRACE_E_FIELD 2    /* the text of a field's name is not there */
#define GHCB_TRACE_E_NUMBER 3   /* no number where one must be, or too many digits */
#define GHCB_TRACE_E_RANGE 4    /* a number does not fit */
#define GHCB_TRACE_E_TAIL 5     /* more text after the last field */
#define GHCB_TRACE_E_LONG 6     /* the line is longer than GHCB_TRACE_LINE_MAX */
#define GHCB_TRACE_N_ERRORS 7

/* What is not on the line. */
#define GHCB_TRACE_NO_TIME 0xffffffffffffffffULL
#define GHCB_TRACE_NO_PID 0xffffffff
#define GHCB_TRACE_NO_VCPU 0xffffffff
#define GHCB_TRACE_NO_CPU 0xffff

/* Longest line that is looked at as a whole; the kernel's own buffer for one is half as long. */
#define GHCB_TRACE_LINE_MAX 8192

/* Names of other events and of exit reasons are numbered as they come; see ghcbcore.trace. */
#define GHCB_TRACE_NAME_MAX 32
#define GHCB_TRACE_N_NAMES 255 /* ids below; the last stands for all further names */

/* The forms of a prefix; ghcb_trace_line_t.form */
#define GHCB_TRACE_FORM_BARE 0   /* nothing before the event */
#define GHCB_TRACE_FORM_FTRACE 1 /* comm-pid [cpu] flags time: */
#define GHCB_TRACE_FORM_PERF 2   /* comm pid [cpu] time: kvm: */
#define GHCB_TRACE_N_FORMS 3

typedef struct ghcb_trace_line {
    uint64_t line;
    uint64_t offset;
    uint64_t time_ns;
    uint64_t a; /* by kind: CODE, MSR, GPA, rip, count */
    uint64_t b; /* INFO1, PFN, info1 */
    uint64_t c; /* INFO2, error code, info2 */
    uint32_t pid;  /* the thread of the vCPU */
    uint32_t tgid; /* its process, the VM, where the line says it */
    uint32_t vcpu;
    int32_t result; /* MSR_EXIT: result; RMP_FAULT: psmash_ret */
    uint16_t cpu;   /* of the host */
    uint8_t kind;
    uint8_t detail;
    uint8_t form;
    uint8_t reserved_45;
    uint16_t reserved_46;
} ghcb_trace_line_t;
/* cffi: end */

_Static_assert(sizeof(ghcb_trace_line_t) == 72, "no gaps");

#endif
