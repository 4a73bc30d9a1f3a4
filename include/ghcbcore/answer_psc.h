/* Page state changes as a host carries them out: a cursor that moves over a descriptor.
 *
 * The descriptor is guest memory that the guest may change meanwhile, so an index is checked where
 * it is used, on the copy that is used. Entries that follow each other in address, with one
 * operation and one size, become one request to user space (KVM_HC_MAP_GPA_RANGE); when it is
 * granted, the cursor moves behind them. Operations other than private and shared are passed over.
 *
 * Source: KVM as of Linux 7.0, snp_begin_psc. One thing is as in later kernels: entries that lie
 * outside of the memory handed in are an invalid header; that kernel read on behind it.
 */
#ifndef GHCBCORE_ANSWER_PSC_H
#define GHCBCORE_ANSWER_PSC_H

#include <ghcbcore/host.h>
#include <ghcbcore/hostile.h>
#include <ghcbcore/nae.h>
#include <string.h>

static inline uint64_t ghcb_psc_field(uint64_t entry, unsigned int shift, unsigned int width)
{
    return entry >> shift & ((UINT64_C(1) << width) - 1);
}
#define GHCB_PSC_GET(entry, field)                                                               \
    ghcb_psc_field(entry, GHCB_PSC_ENTRY_##field##_SHIFT, GHCB_PSC_ENTRY_##field##_WIDTH)

static inline uint64_t ghcb_psc_status(uint64_t klass, uint64_t detail)
{
    return klass << GHCB_PSC_STATUS_CLASS_SHIFT | detail << GHCB_PSC_STATUS_DETAIL_SHIFT;
}

/* Ask for a range, with the attributes of KVM_HC_MAP_GPA_RANGE. 0: granted. */
static inline int ghcb_host_map(const ghcb_host_t *host, uint64_t cpu, uint64_t gpa,
                                uint64_t n_pages, uint64_t attributes)
{
    ghcb_access_t access = {.kind = GHCB_ACCESS_MAP_GPA,
                            .cpu = cpu,
                            .address = gpa,
                            .size_bytes = GHCB_PAGE_SIZE,
                            .count = n_pages};

    access.arg[0] = attributes;
    access.arg[1] = (attributes & GHCB_MAP_GPA_ENCRYPTED) != 0;
    access.arg[2] = (attributes & GHCB_MAP_GPA_SIZE_MASK) == GHCB_MAP_GPA_SIZE_2M;
    return host->device->access(host->device->self, &access);
}

static inline int ghcb_psc_map(const ghcb_host_t *host, uint64_t cpu, uint64_t gfn, uint64_t n_pages,
                               uint64_t op, uint64_t size)
{
    return ghcb_host_map(
        host, cpu, gfn << GHCB_PAGE_SHIFT, n_pages,
        (op == GHCB_PSC_OP_PRIVATE ? GHCB_MAP_GPA_ENCRYPTED : 0) |
            (size == GHCB_PSC_SIZE_2M ? GHCB_MAP_GPA_SIZE_2M : GHCB_MAP_GPA_SIZE_4K));
}

/* Has user space offered to be asked about GHCB_ACCESS_* `kind`? */
static inline int ghcb_host_asks(const ghcb_host_t *host, unsigned int kind)
{
    return host->device && host->device->access && (host->device->kinds >> kind & 1);
}

static inline uint16_t ghcb_load16(const uint8_t *at)
{
    uint16_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static inline uint64_t ghcb_load64(const uint8_t *at)
{
    uint64_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

/* Carry out the descriptor of `n_bytes` at `psc`; return INFO2. The cursor in it moves. */
static inline uint64_t ghcb_psc_carry_out(const ghcb_host_t *host, uint64_t cpu, uint8_t *psc,
                                          uint64_t n_bytes)
{
    const uint64_t failed = ghcb_psc_status(GHCB_PSC_CLASS_GENERIC, 0);
    uint8_t *entries = psc + GHCB_PSC_OFF_ENTRIES;
    uint16_t cursor, end;
    uint64_t word;

    if (!ghcb_host_asks(host, GHCB_ACCESS_MAP_GPA))
        return failed;
    if (n_bytes < GHCB_PSC_OFF_ENTRIES)
        return ghcb_psc_status(GHCB_PSC_CLASS_INVALID, GHCB_PSC_INVALID_HEADER);
    for (;;) {
        uint64_t first, gfn, n_pages, op, size, done;
        uint16_t next;

        cursor = ghcb_load16(psc + GHCB_PSC_OFF_CUR_ENTRY);
        end = ghcb_load16(psc + GHCB_PSC_OFF_END_ENTRY);
        if (end >= GHCB_PSC_MAX_ENTRIES ||
            GHCB_PSC_OFF_ENTRIES + ((uint64_t)end + 1) * GHCB_PSC_ENTRY_SIZE > n_bytes)
            return ghcb_psc_status(GHCB_PSC_CLASS_INVALID, GHCB_PSC_INVALID_HEADER);
        if (cursor > end)
            return 0;
        if (ghcb_fault_happens(host, GHCB_FAULT_PARTIAL_PSC, &word))
            return 0;
        first = ghcb_load64(entries + (uint64_t)cursor * GHCB_PSC_ENTRY_SIZE);
        gfn = GHCB_PSC_GET(first, GFN);
        op = GHCB_PSC_GET(first, OP);
        size = GHCB_PSC_GET(first, SIZE);
        done = GHCB_PSC_GET(first, CUR_PAGE);
        n_pages = size == GHCB_PSC_SIZE_2M ? GHCB_PSC_PAGES_2M : GHCB_PSC_PAGES_4K;
        if (done > n_pages || gfn % n_pages)
            return ghcb_psc_status(GHCB_PSC_CLASS_INVALID, GHCB_PSC_INVALID_ENTRY);
        next = cursor + 1;
        if (done < n_pages) {
            const uint64_t head = gfn;
            /* what is left of a 2 MiB entry is handled, and merged, as pages of 4 KiB */
            const uint64_t left_size = done ? GHCB_PSC_SIZE_4K : size;
            const uint64_t step = left_size == GHCB_PSC_SIZE_2M ? GHCB_PSC_PAGES_2M : 1;

            gfn += done;
            n_pages -= done;
            while (next <= end) {
                uint64_t entry = ghcb_load64(entries + (uint64_t)next * GHCB_PSC_ENTRY_SIZE);

                if (GHCB_PSC_GET(entry, OP) != op || GHCB_PSC_GET(entry, GFN) != head + n_pages ||
                    GHCB_PSC_GET(entry, CUR_PAGE) || GHCB_PSC_GET(entry, SIZE) != left_size)
                    break;
                n_pages += step;
                next++;
            }
            if ((op == GHCB_PSC_OP_PRIVATE || op == GHCB_PSC_OP_SHARED) &&
                (ghcb_fault_happens(host, GHCB_FAULT_REFUSED_FEATURE, &word) ||
                 ghcb_psc_map(host, cpu, gfn, n_pages, op, size)))
                return failed;
            for (uint16_t i = cursor; i < next; i++) {
                uint8_t *at = entries + (uint64_t)i * GHCB_PSC_ENTRY_SIZE;
                uint64_t entry = ghcb_load64(at);

                entry &= ~((UINT64_C(1) << GHCB_PSC_ENTRY_CUR_PAGE_WIDTH) - 1);
                entry |= GHCB_PSC_GET(entry, SIZE) == GHCB_PSC_SIZE_2M ? GHCB_PSC_PAGES_2M
                                                                      : GHCB_PSC_PAGES_4K;
                memcpy(at, &entry, sizeof(entry));
            }
        }
        memcpy(psc + GHCB_PSC_OFF_CUR_ENTRY, &next, sizeof(next));
    }
}

#endif
