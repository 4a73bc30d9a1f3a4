/* Any text as a line of a trace: read without touching more than the line and its padding; what was
 * read and is printed again reads as the same. */
#include "fuzz.h"

#include <ghcbcore/traceline.h>
#include <ghcbcore/traceprint.h>

/* Words of the formats, so that the fuzzer need not find them letter by letter. */
static const char *const words[] = {
    "  qemu-1234  [003] d..1.  6748.446657: kvm_vmgexit_enter: vcpu 0, exit_reason 7b, ",
    "exit_info1 3f80211, exit_info2 0",
    "CPU 0/KVM  4711/4712 [001] 12.000000001: kvm:kvm_vmgexit_msr_protocol_exit: vcpu 3, ghcb_gpa ",
    "0002000133000001, result 1",
    "kvm_rmp_fault: vcpu 0 gpa 0000000000001000 pfn 0x1 error_code 0x100000006 rmp_level 1 ",
    "psmash_ret 0",
    "kvm_exit: vcpu 1 reason npf rip 0x1 info1 0x0000000000000000 info2 0x0 intr_info 0x0 ",
    "error_code 0x00000000 requests 0x0",
    "CPU:3 [LOST 12 EVENTS]",
    "CPU:3 [12 EVENTS DROPPED]",
    "kvm:kvm_vmgexit_msr_protocol_enter: vcpu 0, ghcb_gpa 0020000000000014",
    "<...>-77 ( 12) [000] .... 1.5: kvm_vmgexit_exit: vcpu 4294967295, exit_reason ffffffffffffffff, ",
};

/* No clock of 64 bits in ns comes as far; such a time is printed and not read back. */
#define LAST_TIME_NS (UINT64_MAX - UINT64_C(2000000000))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input_t in = {data, size};
    char text[4096];
    size_t n = 0;
    char *line;
    const char *name = 0;
    uint32_t n_name = 0;
    ghcb_trace_line_t got, again;
    uint8_t kind;

    /* bytes below 16 stand for a word, 16 for a cut of the last 3 characters */
    while (in.left && n + 200 < sizeof(text)) {
        const uint8_t byte = take8(&in);

        if (byte < sizeof(words) / sizeof(words[0])) {
            memcpy(text + n, words[byte], strlen(words[byte]));
            n += strlen(words[byte]);
        } else if (byte == 16) {
            n -= n < 3 ? n : 3;
        } else if (byte != '\n') {
            text[n++] = (char)byte;
        }
    }
    MUST((line = malloc(n + 1 + GHCB_TRACE_PAD)));
    memcpy(line, text, n);
    line[n] = '\n';
    memset(line + n + 1, in.left & 1 ? '0' : ' ', GHCB_TRACE_PAD);
    memset(&got, 0, sizeof(got));
    kind = ghcb_trace_parse(line, line + n, &got, &name, &n_name);
    MUST(kind < GHCB_TRACE_N_KINDS);
    if (name)
        MUST(name >= line && name + n_name <= line + n);
    if (kind >= GHCB_TRACE_NAE_ENTER && kind <= GHCB_TRACE_MSR_EXIT &&
        got.form == GHCB_TRACE_FORM_FTRACE && got.pid != GHCB_TRACE_NO_PID &&
        got.cpu != GHCB_TRACE_NO_CPU && got.time_ns < LAST_TIME_NS) {
        char *printed = malloc(GHCB_TRACE_PRINT_MAX + GHCB_TRACE_PAD);
        const char *end;

        MUST(printed);
        end = ghcb_trace_print(printed, &got);
        MUST(end > printed && end[-1] == '\n' && end <= printed + GHCB_TRACE_PRINT_MAX);
        memset(printed + (end - printed), ' ', GHCB_TRACE_PAD);
        memset(&again, 0, sizeof(again));
        MUST(ghcb_trace_parse(printed, end - 1, &again, &name, &n_name) == kind);
        MUST(again.a == got.a && again.b == got.b && again.c == got.c);
        MUST(again.vcpu == got.vcpu && again.result == got.result && again.detail == got.detail);
        MUST(again.time_ns == got.time_ns && again.pid == got.pid);
        free(printed);
    }
    free(line);
    return 0;
}
