/* A record of a VMGEXIT, written as the line that KVM's tracepoint makes under ftrace.
 *
 * `traceline.h` reads an equal record back.
 *
 * Source: as trace.h.
 */
#ifndef GHCBCORE_TRACEPRINT_H
#define GHCBCORE_TRACEPRINT_H

#include <stdint.h>
#include <string.h>

#include <ghcbcore/trace.h>

/* No line that ghcb_trace_print() writes is longer. */
#define GHCB_TRACE_PRINT_MAX 256

static inline char *ghcb_trace_put(char *p, const char *text, size_t n)
{
    memcpy(p, text, n);
    return p + n;
}
#define GHCB_TRACE_PUT(p, text) ((p) = ghcb_trace_put((p), (text), sizeof(text) - 1))

/* At least `width` digits, `fill` before them. */
static inline char *ghcb_trace_put_dec(char *p, uint64_t v, int width, char fill)
{
    char digits[20];
    int n = 0;
    do
        digits[n++] = (char)('0' + v % 10);
    while (v /= 10);
    for (int i = n; i < width; i++)
        *p++ = fill;
    while (n)
        *p++ = digits[--n];
    return p;
}

/* At least `width` digits, zeros before them. */
static inline char *ghcb_trace_put_hex(char *p, uint64_t v, int width)
{
    int n = v ? (67 - __builtin_clzll(v)) / 4 : 1;
    for (n = n > width ? n : width; n; n--)
        *p++ = "0123456789abcdef"[v >> 4 * (n - 1) & 0xf];
    return p;
}

/* Write a record of one of the four VMGEXIT kinds as ftrace prints it, the thread called as QEMU
 * calls it, the time with nanoseconds (as `trace-cmd report -t` has it). Returns the end of the
 * line, behind its newline; `p` has room for GHCB_TRACE_PRINT_MAX bytes. A record that lacks its time,
 * thread or CPU is written with what stands for that, and is no line of a trace. */
static inline char *ghcb_trace_print(char *p, const ghcb_trace_line_t *line)
{
    char *begin = p;
    GHCB_TRACE_PUT(p, "CPU ");
    p = ghcb_trace_put_dec(p, line->vcpu, 1, ' ');
    GHCB_TRACE_PUT(p, "/KVM");
    size_t n = (size_t)(p - begin);
    if (n < 16) { /* the column of ftrace */
        memmove(begin + 16 - n, begin, n);
        memset(begin, ' ', 16 - n);
        p = begin + 16;
    }
    *p++ = '-';
    char *pid = p;
    p = ghcb_trace_put_dec(p, line->pid, 1, ' ');
    while (p < pid + 7)
        *p++ = ' ';
    if (line->tgid != GHCB_TRACE_NO_PID) {
        GHCB_TRACE_PUT(p, " (");
        p = ghcb_trace_put_dec(p, line->tgid, 7, ' ');
        *p++ = ')';
    }
    GHCB_TRACE_PUT(p, " [");
    p = ghcb_trace_put_dec(p, line->cpu, 3, '0');
    GHCB_TRACE_PUT(p, "] ..... ");
    p = ghcb_trace_put_dec(p, line->time_ns / UINT64_C(1000000000), 5, ' ');
    *p++ = '.';
    p = ghcb_trace_put_dec(p, line->time_ns % UINT64_C(1000000000), 9, '0');
    switch (line->kind) {
    case GHCB_TRACE_NAE_ENTER:
        GHCB_TRACE_PUT(p, ": kvm_vmgexit_enter: vcpu ");
        break;
    case GHCB_TRACE_NAE_EXIT:
        GHCB_TRACE_PUT(p, ": kvm_vmgexit_exit: vcpu ");
        break;
    case GHCB_TRACE_MSR_ENTER:
        GHCB_TRACE_PUT(p, ": kvm_vmgexit_msr_protocol_enter: vcpu ");
        break;
    default:
        GHCB_TRACE_PUT(p, ": kvm_vmgexit_msr_protocol_exit: vcpu ");
        break;
    }
    p = ghcb_trace_put_dec(p, line->vcpu, 1, ' ');
    if (line->kind == GHCB_TRACE_NAE_ENTER || line->kind == GHCB_TRACE_NAE_EXIT) {
        GHCB_TRACE_PUT(p, ", exit_reason ");
        p = ghcb_trace_put_hex(p, line->a, 1);
        GHCB_TRACE_PUT(p, ", exit_info1 ");
        p = ghcb_trace_put_hex(p, line->b, 1);
        GHCB_TRACE_PUT(p, ", exit_info2 ");
        p = ghcb_trace_put_hex(p, line->c, 1);
    } else {
        GHCB_TRACE_PUT(p, ", ghcb_gpa ");
        p = ghcb_trace_put_hex(p, line->a, 16);
        if (line->kind == GHCB_TRACE_MSR_EXIT) {
            GHCB_TRACE_PUT(p, ", result ");
            if (line->result < 0)
                *p++ = '-';
            int64_t result = line->result;
        p = ghcb_trace_put_dec(p, (uint64_t)(result < 0 ? -result : result), 1, ' ');
        }
    }
    *p++ = '\n';
    return p;
}

#endif
