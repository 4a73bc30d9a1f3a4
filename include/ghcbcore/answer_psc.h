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
#include <ghcbcore/psc.h>
#include <string.h>

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

static inline uint64_t ghcb_psc_entry_at(const uint8_t *entries, uint16_t i)
{
    return ghcb_load64(entries + (uint64_t)i * GHCB_PSC_ENTRY_SIZE);
}

/* All pages of an entry are done: say so in it. */
static inline void ghcb_psc_entry_finish(uint8_t *entries, uint16_t i)
{
    uint64_t raw = ghcb_psc_entry_at(entries, i);
    ghcb_psc_entry_t entry;

    ghcb_psc_entry_decode(raw, &entry);
    raw = (raw & ~GHCB_PSC_MASK(CUR_PAGE)) |
          (uint64_t)entry.n_pages << GHCB_PSC_ENTRY_CUR_PAGE_SHIFT;
    memcpy(entries + (uint64_t)i * GHCB_PSC_ENTRY_SIZE, &raw, sizeof(raw));
}

/* Carry out the descriptor of `n_bytes` at `psc`; return INFO2. The cursor in it moves. */
static inline uint64_t ghcb_psc_carry_out(const ghcb_host_t *host, uint64_t cpu, uint8_t *psc,
                                          uint64_t n_bytes)
{
    const uint64_t failed = GHCB_PSC_STATUS(GHCB_PSC_CLASS_GENERIC, 0);
    uint8_t *entries = psc + GHCB_PSC_OFF_ENTRIES;
    uint16_t cursor, end;
    uint64_t word;

    if (!ghcb_host_asks(host, GHCB_ACCESS_MAP_GPA))
        return failed;
    if (n_bytes < GHCB_PSC_OFF_ENTRIES)
        return GHCB_PSC_STATUS(GHCB_PSC_CLASS_INVALID, GHCB_PSC_INVALID_HEADER);
    for (;;) {
        ghcb_psc_entry_t first, entry;
        uint16_t next;

        cursor = ghcb_load16(psc + GHCB_PSC_OFF_CUR_ENTRY);
        end = ghcb_load16(psc + GHCB_PSC_OFF_END_ENTRY);
        if (end >= GHCB_PSC_MAX_ENTRIES ||
            GHCB_PSC_OFF_ENTRIES + ((uint64_t)end + 1) * GHCB_PSC_ENTRY_SIZE > n_bytes)
            return GHCB_PSC_STATUS(GHCB_PSC_CLASS_INVALID, GHCB_PSC_INVALID_HEADER);
        if (cursor > end)
            return 0;
        if (ghcb_fault_happens(host, GHCB_FAULT_PARTIAL_PSC, &word))
            return 0;
        if (ghcb_psc_entry_decode(ghcb_psc_entry_at(entries, cursor), &first) &
            (GHCB_PSC_FLAG_CUR_PAGE | GHCB_PSC_FLAG_ALIGN))
            return GHCB_PSC_STATUS(GHCB_PSC_CLASS_INVALID, GHCB_PSC_INVALID_ENTRY);
        next = cursor + 1;
        if (first.cur_page < first.n_pages) {
            /* what is left of a 2 MiB entry is handled, and merged, as pages of 4 KiB */
            const uint8_t size = first.cur_page ? GHCB_PSC_SIZE_4K : first.size;
            uint64_t n_pages = first.n_pages - first.cur_page;

            while (next <= end) {
                ghcb_psc_entry_decode(ghcb_psc_entry_at(entries, next), &entry);
                if (entry.op != first.op || entry.gfn != first.gfn + n_pages || entry.cur_page ||
                    entry.size != size)
                    break;
                n_pages += entry.n_pages;
                next++;
            }
            if ((first.op == GHCB_PSC_OP_PRIVATE || first.op == GHCB_PSC_OP_SHARED) &&
                (ghcb_fault_happens(host, GHCB_FAULT_REFUSED_FEATURE, &word) ||
                 ghcb_psc_map(host, cpu, first.gfn + first.cur_page, n_pages, first.op, first.size)))
                return failed;
            for (uint16_t i = cursor; i < next; i++)
                ghcb_psc_entry_finish(entries, i);
        }
        memcpy(psc + GHCB_PSC_OFF_CUR_ENTRY, &next, sizeof(next));
    }
}

#endif
