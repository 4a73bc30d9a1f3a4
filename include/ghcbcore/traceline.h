/* One line of a KVM trace, read into a record. `traceprint.h` is the way back.
 *
 * Theory of operation. A line is `prefix time: event: text`. Neither length nor position of
 * anything in the prefix is fixed: a task's name may hold blanks, brackets and colons. So the end
 * of the prefix is found first: the first colon after a time whose prefix reads backwards as one of
 * the known forms. The event's name decides about the rest, which is read forwards, strictly. A
 * name of interest behind no such prefix makes the line a GHCB_TRACE_BAD, never one that is skipped.
 *
 *     comm-pid [(tgid)] [cpu] [flags] time: name: text      ftrace, trace-cmd report
 *     comm [tgid/]pid [[cpu]] time: [period] kvm:name: text perf script
 *     [time:] [kvm:]name: text                              without a prefix
 *
 * Numbers are taken eight characters at a time. All functions read up to 32 bytes past `end`, where
 * a newline must stand: no pattern holds a newline, so none matches across it.
 *
 * Source: as trace.h.
 */
#ifndef GHCBCORE_TRACELINE_H
#define GHCBCORE_TRACELINE_H

#include <stdint.h>
#include <string.h>

#include <ghcbcore/trace.h>

#define GHCB_TRACE_PAD 32 /* bytes that must be readable past the newline of a line */

#define GHCB_TRACE_IS(p, text) (memcmp((p), (text), sizeof(text) - 1) == 0)

static inline int ghcb_trace_is_digit(char c)
{
    return (unsigned char)(c - '0') < 10;
}

static inline int ghcb_trace_is_blank(char c)
{
    return c == ' ' || c == '\t';
}

/* 0x80 in each byte of `v` that is no hexadecimal digit. */
static inline uint64_t ghcb_trace_no_hex(uint64_t v)
{
    const uint64_t each = UINT64_C(0x0101010101010101);
    uint64_t low = v & each * 0x7f;
    uint64_t letter = low | each * 0x20;
    uint64_t digits = (low + each * (0x80 - '0')) & ~(low + each * (0x80 - '9' - 1));
    uint64_t letters = (letter + each * (0x80 - 'a')) & ~(letter + each * (0x80 - 'f' - 1));
    return ~((digits | letters) & ~v) & each * 0x80;
}

/* The number that eight hexadecimal digits make; a byte of 0 counts as the digit 0. */
static inline uint64_t ghcb_trace_hex_of_8(uint64_t v)
{
    const uint64_t each = UINT64_C(0x0101010101010101);
    v = (v & each * 0x0f) + 9 * (v >> 6 & each);
    v = (v << 4 | v >> 8) & UINT64_C(0x00ff00ff00ff00ff);
    v = (v << 8 | v >> 16) & UINT64_C(0x0000ffff0000ffff);
    return (v << 16 | v >> 32) & UINT64_C(0xffffffff);
}

/* Read 1 to 16 hexadecimal digits, with or without 0x; return what follows them, or NULL. */
static inline const char *ghcb_trace_hex(const char *p, uint64_t *out)
{
    uint64_t v, bad;
    if (p[0] == '0' && p[1] == 'x')
        p += 2;
    memcpy(&v, p, 8);
    bad = ghcb_trace_no_hex(v);
    if (bad) {
        unsigned n = (unsigned)__builtin_ctzll(bad) >> 3;
        if (!n)
            return NULL;
        *out = ghcb_trace_hex_of_8(v << 8 * (8 - n));
        return p + n;
    }
    uint64_t high = ghcb_trace_hex_of_8(v);
    memcpy(&v, p + 8, 8);
    bad = ghcb_trace_no_hex(v);
    if (bad) {
        unsigned n = (unsigned)__builtin_ctzll(bad) >> 3;
        *out = n ? high << 4 * n | ghcb_trace_hex_of_8(v << 8 * (8 - n)) : high;
        return p + 8 + n;
    }
    *out = high << 32 | ghcb_trace_hex_of_8(v);
    memcpy(&v, p + 16, 8);
    return ghcb_trace_no_hex(v) & 0x80 ? p + 16 : NULL;
}

/* Read a decimal number up to `max`; return what follows it, or NULL. */
static inline const char *ghcb_trace_dec(const char *p, uint64_t max, uint64_t *out)
{
    uint64_t v = 0;
    if (!ghcb_trace_is_digit(*p))
        return NULL;
    while (ghcb_trace_is_digit(*p)) {
        v = 10 * v + (uint64_t)(*p++ - '0');
        if (v > max)
            return NULL;
    }
    *out = v;
    return p;
}

/* Read backwards the decimal number that ends before `p`; return its first digit, or NULL. */
static inline const char *ghcb_trace_dec_back(const char *from, const char *p, uint64_t max,
                                              uint64_t *out)
{
    const char *q = p;
    uint64_t v = 0, scale = 1;
    while (q > from && ghcb_trace_is_digit(q[-1])) {
        q--;
        if (*q == '0') { /* leading zeros are no size */
            scale = scale > max ? scale : scale * 10;
            continue;
        }
        if (scale > max)
            return NULL;
        v += (uint64_t)(*q - '0') * scale;
        scale *= 10;
        if (v > max)
            return NULL;
    }
    *out = v;
    return q < p ? q : NULL;
}

static inline const char *ghcb_trace_blanks_back(const char *from, const char *p)
{
    while (p > from && ghcb_trace_is_blank(p[-1]))
        p--;
    return p;
}

static inline const char *ghcb_trace_blanks(const char *p)
{
    while (ghcb_trace_is_blank(*p))
        p++;
    return p;
}

/* Seconds with up to nine digits behind the point, or a number of another clock, that end at
 * `p`; return the first digit, or NULL. A clock that does not count seconds is no time. */
static inline const char *ghcb_trace_time_back(const char *from, const char *p, uint64_t *time_ns)
{
    const uint64_t max_s = UINT64_MAX / UINT64_C(1000000000) - 1;
    static const uint32_t unit[10] = {1000000000, 100000000, 10000000, 1000000, 100000,
                                      10000,      1000,      100,      10,      1};
    uint64_t part = 0, seconds = 0;
    const char *q = p;
    uint64_t scale = 1;
    while (q > from && ghcb_trace_is_digit(q[-1])) {
        q--;
        if (p - q <= 9) {
            part += (uint64_t)(*q - '0') * scale;
            scale *= 10;
        }
    }
    if (q == p)
        return NULL;
    if (q == from || q[-1] != '.') {
        *time_ns = GHCB_TRACE_NO_TIME;
        return q;
    }
    if (p - q > 9)
        return NULL;
    part *= unit[p - q];
    q = ghcb_trace_dec_back(from, q - 1, max_s, &seconds);
    *time_ns = seconds * UINT64_C(1000000000) + part;
    return q;
}

/* Read backwards what stands before a time that begins at `p`; 0 if it is no known form. */
static inline int ghcb_trace_prefix(const char *from, const char *p, ghcb_trace_line_t *out)
{
    const char *q = ghcb_trace_blanks_back(from, p);
    uint64_t v;
    out->pid = GHCB_TRACE_NO_PID;
    out->tgid = GHCB_TRACE_NO_PID;
    out->cpu = GHCB_TRACE_NO_CPU;
    out->form = GHCB_TRACE_FORM_BARE;
    if (q == from)
        return 1;
    if (q == p)
        return 0; /* the time is the end of a word */
    if (q[-1] != ']') { /* flags, or no CPU at all */
        const char *t = q;
        while (t > from && !ghcb_trace_is_blank(t[-1]))
            t--;
        const char *u = ghcb_trace_blanks_back(from, t);
        if (u > from && u < t && u[-1] == ']')
            q = u;
    }
    if (q[-1] == ']') {
        q = ghcb_trace_dec_back(from, q - 1, GHCB_TRACE_NO_CPU - 1, &v);
        if (!q || q == from || q[-1] != '[')
            return 0;
        out->cpu = (uint16_t)v;
        p = q - 1;
        q = ghcb_trace_blanks_back(from, p);
        out->form = GHCB_TRACE_FORM_PERF;
        if (q == from)
            return 1;
        if (q == p)
            return 0;
    }
    if (q[-1] == ')') { /* tgid of ftrace, dashes if unknown */
        const char *t = q - 1;
        if (t > from && t[-1] == '-') {
            while (t > from && t[-1] == '-')
                t--;
        } else {
            t = ghcb_trace_dec_back(from, t, GHCB_TRACE_NO_PID - 1, &v);
            if (!t)
                return 0;
            out->tgid = (uint32_t)v;
            t = ghcb_trace_blanks_back(from, t);
        }
        if (t == from || t[-1] != '(')
            return 0;
        p = t - 1;
        q = ghcb_trace_blanks_back(from, p);
        if (q == p)
            return 0;
    }
    q = ghcb_trace_dec_back(from, q, GHCB_TRACE_NO_PID - 1, &v);
    if (!q)
        return 0;
    out->pid = (uint32_t)v;
    out->form = GHCB_TRACE_FORM_PERF;
    if (q == from || ghcb_trace_is_blank(q[-1]))
        return 1;
    if (q[-1] == '-') {
        out->form = GHCB_TRACE_FORM_FTRACE;
        return 1;
    }
    if (q[-1] != '/')
        return 0;
    q = ghcb_trace_dec_back(from, q - 1, GHCB_TRACE_NO_PID - 1, &v);
    if (!q || !(q == from || ghcb_trace_is_blank(q[-1])))
        return 0;
    out->tgid = (uint32_t)v;
    return 1;
}

static inline uint8_t ghcb_trace_bad(ghcb_trace_line_t *out, uint8_t why)
{
    out->a = out->b = out->c = 0;
    out->vcpu = GHCB_TRACE_NO_VCPU;
    out->result = 0;
    out->detail = why;
    return out->kind = GHCB_TRACE_BAD;
}

/* Nothing but blanks and one carriage return may follow the last field. */
static inline uint8_t ghcb_trace_done(const char *p, const char *end, ghcb_trace_line_t *out,
                                      uint8_t kind)
{
    if (p != end) {
        p = ghcb_trace_blanks(p);
        if (*p == '\r')
            p++;
        if (p != end)
            return ghcb_trace_bad(out, GHCB_TRACE_E_TAIL);
    }
    return out->kind = kind;
}

#define GHCB_TRACE_EXPECT(p, text)                                                               \
    do {                                                                                         \
        if (!GHCB_TRACE_IS(p, text))                                                             \
            return ghcb_trace_bad(out, GHCB_TRACE_E_FIELD);                                      \
        (p) += sizeof(text) - 1;                                                                 \
    } while (0)
#define GHCB_TRACE_NUMBER(p, read)                                                               \
    do {                                                                                         \
        const char *after_ = (read);                                                             \
        if (!after_)                                                                             \
            return ghcb_trace_bad(out, ghcb_trace_is_digit(*(p)) ? GHCB_TRACE_E_RANGE            \
                                                                 : GHCB_TRACE_E_NUMBER);         \
        (p) = after_;                                                                            \
    } while (0)

/* Read a signed 32-bit decimal number; return what follows it, or NULL. */
static inline const char *ghcb_trace_int(const char *p, int32_t *out)
{
    uint64_t v;
    int negative = *p == '-';
    p = ghcb_trace_dec(p + negative, (uint64_t)INT32_MAX + (negative ? 1 : 0), &v);
    if (p)
        *out = (int32_t)(negative ? -(int64_t)v : (int64_t)v);
    return p;
}

static inline uint8_t ghcb_trace_nae(const char *p, const char *end, ghcb_trace_line_t *out,
                                     uint8_t kind)
{
    uint64_t v;
    p = ghcb_trace_blanks(p);
    GHCB_TRACE_EXPECT(p, "vcpu ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_dec(p, GHCB_TRACE_NO_VCPU - 1, &v));
    out->vcpu = (uint32_t)v;
    GHCB_TRACE_EXPECT(p, ", exit_reason ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_hex(p, &out->a));
    GHCB_TRACE_EXPECT(p, ", exit_info1 ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_hex(p, &out->b));
    GHCB_TRACE_EXPECT(p, ", exit_info2 ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_hex(p, &out->c));
    return ghcb_trace_done(p, end, out, kind);
}

static inline uint8_t ghcb_trace_msr(const char *p, const char *end, ghcb_trace_line_t *out,
                                     uint8_t kind)
{
    uint64_t v;
    p = ghcb_trace_blanks(p);
    GHCB_TRACE_EXPECT(p, "vcpu ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_dec(p, GHCB_TRACE_NO_VCPU - 1, &v));
    out->vcpu = (uint32_t)v;
    GHCB_TRACE_EXPECT(p, ", ghcb_gpa ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_hex(p, &out->a));
    if (kind == GHCB_TRACE_MSR_EXIT) {
        GHCB_TRACE_EXPECT(p, ", result ");
        GHCB_TRACE_NUMBER(p, ghcb_trace_int(p, &out->result));
    }
    return ghcb_trace_done(p, end, out, kind);
}

static inline uint8_t ghcb_trace_rmp(const char *p, const char *end, ghcb_trace_line_t *out)
{
    uint64_t v;
    p = ghcb_trace_blanks(p);
    GHCB_TRACE_EXPECT(p, "vcpu ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_dec(p, GHCB_TRACE_NO_VCPU - 1, &v));
    out->vcpu = (uint32_t)v;
    GHCB_TRACE_EXPECT(p, " gpa ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_hex(p, &out->a));
    GHCB_TRACE_EXPECT(p, " pfn ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_hex(p, &out->b));
    GHCB_TRACE_EXPECT(p, " error_code ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_hex(p, &out->c));
    GHCB_TRACE_EXPECT(p, " rmp_level ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_dec(p, UINT8_MAX, &v));
    uint8_t level = (uint8_t)v;
    GHCB_TRACE_EXPECT(p, " psmash_ret ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_int(p, &out->result));
    uint8_t kind = ghcb_trace_done(p, end, out, GHCB_TRACE_RMP_FAULT);
    if (kind == GHCB_TRACE_RMP_FAULT)
        out->detail = level;
    return kind;
}

/* kvm_exit has grown fields and is printed in other words by libtraceevent's plug-in: what is
 * common to all forms is read, the rest of the line is left alone. */
static inline uint8_t ghcb_trace_kvm_exit(const char *p, const char *end, ghcb_trace_line_t *out,
                                          const char **name, uint32_t *n_name)
{
    uint64_t v;
    p = ghcb_trace_blanks(p);
    if (GHCB_TRACE_IS(p, "vcpu ")) {
        p += 5;
        GHCB_TRACE_NUMBER(p, ghcb_trace_dec(p, GHCB_TRACE_NO_VCPU - 1, &v));
        out->vcpu = (uint32_t)v;
        p = ghcb_trace_blanks(p);
    }
    GHCB_TRACE_EXPECT(p, "reason ");
    *name = p;
    while (p < end && !ghcb_trace_is_blank(*p))
        p++;
    *n_name = (uint32_t)(p - *name);
    if (!*n_name)
        return ghcb_trace_bad(out, GHCB_TRACE_E_FIELD);
    /* flags of the reason, or a number in parentheses, come before rip */
    while (p < end && !GHCB_TRACE_IS(p, " rip "))
        p++;
    GHCB_TRACE_EXPECT(p, " rip ");
    GHCB_TRACE_NUMBER(p, ghcb_trace_hex(p, &out->a));
    if (GHCB_TRACE_IS(p, " info1 ")) {
        p += 7;
        GHCB_TRACE_NUMBER(p, ghcb_trace_hex(p, &out->b));
        GHCB_TRACE_EXPECT(p, " info2 ");
    } else {
        GHCB_TRACE_EXPECT(p, " info ");
        GHCB_TRACE_NUMBER(p, ghcb_trace_hex(p, &out->b));
        GHCB_TRACE_EXPECT(p, " ");
    }
    GHCB_TRACE_NUMBER(p, ghcb_trace_hex(p, &out->c));
    if (p != end && !ghcb_trace_is_blank(*p) && *p != '\r')
        return ghcb_trace_bad(out, GHCB_TRACE_E_TAIL);
    return out->kind = GHCB_TRACE_KVM_EXIT;
}

/* The event at `p`, behind time and blanks. */
static inline uint8_t ghcb_trace_event(const char *p, const char *end, ghcb_trace_line_t *out,
                                       const char **name, uint32_t *n_name)
{
    if (GHCB_TRACE_IS(p, "kvm:"))
        p += 4;
    if (!GHCB_TRACE_IS(p, "kvm_"))
        return GHCB_TRACE_SKIP;
    if (GHCB_TRACE_IS(p + 4, "vmgexit_")) {
        const char *q = p + 12;
        if (GHCB_TRACE_IS(q, "enter:"))
            return ghcb_trace_nae(q + 6, end, out, GHCB_TRACE_NAE_ENTER);
        if (GHCB_TRACE_IS(q, "exit:"))
            return ghcb_trace_nae(q + 5, end, out, GHCB_TRACE_NAE_EXIT);
        if (GHCB_TRACE_IS(q, "msr_protocol_enter:"))
            return ghcb_trace_msr(q + 19, end, out, GHCB_TRACE_MSR_ENTER);
        if (GHCB_TRACE_IS(q, "msr_protocol_exit:"))
            return ghcb_trace_msr(q + 18, end, out, GHCB_TRACE_MSR_EXIT);
    }
    p += 4;
    const char *q = p;
    while ((*q >= 'a' && *q <= 'z') || ghcb_trace_is_digit(*q) || *q == '_')
        q++;
    if (*q != ':') /* cut off, or no event of KVM's */
        return q == end || *q == '\r' || GHCB_TRACE_IS(p, "vmgexit_")
                   ? ghcb_trace_bad(out, GHCB_TRACE_E_FIELD)
                   : GHCB_TRACE_SKIP;
    *name = p;
    *n_name = (uint32_t)(q - p);
    q++;
    if (*n_name == 9 && GHCB_TRACE_IS(p, "rmp_fault"))
        return ghcb_trace_rmp(q, end, out);
    if (*n_name == 4 && GHCB_TRACE_IS(p, "exit"))
        return ghcb_trace_kvm_exit(q, end, out, name, n_name);
    q = ghcb_trace_blanks(q);
    if (GHCB_TRACE_IS(q, "vcpu ")) {
        uint64_t v;
        if (ghcb_trace_dec(q + 5, GHCB_TRACE_NO_VCPU - 1, &v))
            out->vcpu = (uint32_t)v;
    }
    return out->kind = GHCB_TRACE_OTHER;
}

/* `CPU:3 [LOST 12 EVENTS]` of ftrace, `CPU:3 [12 EVENTS DROPPED]` of trace-cmd. */
static inline uint8_t ghcb_trace_lost(const char *p, const char *end, ghcb_trace_line_t *out)
{
    uint64_t cpu, n = 0;
    p = ghcb_trace_dec(ghcb_trace_blanks(p), GHCB_TRACE_NO_CPU - 1, &cpu);
    if (!p || !GHCB_TRACE_IS(p, " ["))
        return GHCB_TRACE_SKIP;
    p += 2;
    if (GHCB_TRACE_IS(p, "LOST ")) {
        p = ghcb_trace_dec(p + 5, UINT64_MAX / 16, &n);
        if (!p || !GHCB_TRACE_IS(p, " EVENTS]"))
            return GHCB_TRACE_SKIP;
    } else if (GHCB_TRACE_IS(p, "EVENTS DROPPED]")) {
        n = 0; /* trace-cmd does not always know how many */
    } else {
        p = ghcb_trace_dec(p, UINT64_MAX / 16, &n);
        if (!p || !GHCB_TRACE_IS(p, " EVENTS DROPPED]"))
            return GHCB_TRACE_SKIP;
    }
    (void)end;
    out->cpu = (uint16_t)cpu;
    out->a = n;
    return out->kind = GHCB_TRACE_LOST;
}

/* Does an event of ours end at the colon `c`? */
static inline int ghcb_trace_of_interest(const char *from, const char *c)
{
    size_t n = (size_t)(c - from);
    if (n >= 13 && GHCB_TRACE_IS(c - 13, "kvm_rmp_fault"))
        return 1;
    if (n >= 17 && GHCB_TRACE_IS(c - 5, "enter") &&
        (GHCB_TRACE_IS(c - 17, "kvm_vmgexit_") ||
         (n >= 30 && GHCB_TRACE_IS(c - 30, "kvm_vmgexit_msr_protocol_"))))
        return 1;
    return n >= 16 && GHCB_TRACE_IS(c - 4, "exit") &&
           (GHCB_TRACE_IS(c - 16, "kvm_vmgexit_") ||
            (n >= 29 && GHCB_TRACE_IS(c - 29, "kvm_vmgexit_msr_protocol_")));
}

/* Read the line [p, end), where *end is a newline and GHCB_TRACE_PAD more bytes can be read. All
 * fields of `out` but `line` and `offset` are set, unless the line is GHCB_TRACE_SKIP. `name` and
 * `n_name` are set for GHCB_TRACE_OTHER (the event without kvm_) and GHCB_TRACE_KVM_EXIT (the
 * reason): they point into the line. Returns the kind. */
static inline uint8_t ghcb_trace_parse(const char *p, const char *end, ghcb_trace_line_t *out,
                                       const char **name, uint32_t *n_name)
{
    const char *c = p;
    int interest = 0;
    out->a = out->b = out->c = 0;
    out->vcpu = GHCB_TRACE_NO_VCPU;
    out->result = 0;
    out->detail = 0;
    out->reserved_45 = 0;
    out->reserved_46 = 0;
    while ((c = (const char *)memchr(c, ':', (size_t)(end - c)))) {
        if (c > p && ghcb_trace_is_digit(c[-1])) {
            const char *t;
            if (ghcb_trace_is_blank(c[1]) && (t = ghcb_trace_time_back(p, c, &out->time_ns)) &&
                ghcb_trace_prefix(p, t, out)) {
                const char *e = ghcb_trace_blanks(c + 1);
                if (ghcb_trace_is_digit(*e)) { /* the period of perf */
                    const char *f = e;
                    while (ghcb_trace_is_digit(*f))
                        f++;
                    e = ghcb_trace_is_blank(*f) ? ghcb_trace_blanks(f) : e;
                }
                return ghcb_trace_event(e, end, out, name, n_name);
            }
        } else {
            interest |= ghcb_trace_of_interest(p, c);
        }
        c++;
    }
    out->time_ns = GHCB_TRACE_NO_TIME;
    out->pid = out->tgid = GHCB_TRACE_NO_PID;
    out->cpu = GHCB_TRACE_NO_CPU;
    out->form = GHCB_TRACE_FORM_BARE;
    p = ghcb_trace_blanks(p);
    if (GHCB_TRACE_IS(p, "CPU:"))
        return ghcb_trace_lost(p + 4, end, out);
    uint8_t kind = GHCB_TRACE_SKIP; /* a line of a log may begin with kvm_amd: */
    if (GHCB_TRACE_IS(p, "kvm:") || GHCB_TRACE_IS(p, "kvm_vmgexit_") ||
        GHCB_TRACE_IS(p, "kvm_rmp_fault:"))
        kind = ghcb_trace_event(p, end, out, name, n_name);
    if (kind == GHCB_TRACE_SKIP && interest)
        kind = ghcb_trace_bad(out, GHCB_TRACE_E_PREFIX);
    return kind;
}

#endif
