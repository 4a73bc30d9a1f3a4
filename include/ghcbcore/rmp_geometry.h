/* Where the reverse map table lies in memory, contiguous form: bookkeeping, then all entries.
 *
 * RMP_BASE and RMP_END enclose 16 KiB in which the processor counts, and an entry for each page from
 * page 0 on. The other form, a table in segments, is in rmp_segment.h, and with it the one way to
 * ask for the place of an entry whatever the form.
 *
 * Units: `pfn` counts 4 KiB pages of system memory, `spa` bytes; the end of a table is its last
 * byte, as the MSR RMP_END has it.
 *
 * Source: Linux arch/x86/virt/svm/sev.c; AMD-ASPFW SNP_INIT_EX (alignment to 1 MiB).
 */
#ifndef GHCBCORE_RMP_GEOMETRY_H
#define GHCBCORE_RMP_GEOMETRY_H

#include <ghcbcore/status.h>
#include <stdint.h>

/* cffi: begin */
/* Where the table lies. Bits below RMP_ADDRESS_SHIFT of the two MSRs are not part of the address:
 * RMP_END reads as RMP_END_UNSET where the BIOS has set nothing aside. */
#define RMP_ENTRY_BYTES 16
#define RMP_BOOKKEEPING_BYTES 0x4000
#define RMP_ADDRESS_SHIFT 13
#define RMP_ADDRESS_BITS 52
#define RMP_END_UNSET 0x1fff
#define RMP_FIRMWARE_ALIGN 0x100000   /* start and end, for firmware */
#define RMP_LARGE_PAGE_BYTES 0x200000 /* Linux reserves down to this boundary */

/* Where a contiguous table lies and what it covers. */
typedef struct {
    uint64_t base;
    uint64_t end;         /* its last byte */
    uint64_t n_entries;   /* pages that it has entries for, from page 0 on */
    uint64_t entries;     /* address of the entry of page 0 */
    uint64_t large_start; /* base and end + 1 rounded down to 2 MiB */
    uint64_t large_end;
    uint64_t is_aligned;  /* base and end + 1 are multiples of 1 MiB, as firmware demands */
} ghcb_rmp_table_t;
/* cffi: end */

/* Bytes that a contiguous table needs for pages 0 to n_pages - 1, n_pages at most 2**40. */
static inline uint64_t ghcb_rmp_bytes_for(uint64_t n_pages)
{
    return RMP_BOOKKEEPING_BYTES + n_pages * RMP_ENTRY_BYTES;
}

/* What RMP_BASE and RMP_END say of a contiguous table. GHCB_E_STATE_CONFLICT: the BIOS has set
 * nothing aside; GHCB_E_OUT_OF_RANGE: it ends before its first entry, or above 52 address bits;
 * GHCB_E_UNALIGNED: base or end have bits set (clear) that the MSRs do not hold. */
static inline int ghcb_rmp_table(uint64_t base, uint64_t end, ghcb_rmp_table_t *out)
{
    if (!(base >> RMP_ADDRESS_SHIFT) || !(end >> RMP_ADDRESS_SHIFT))
        return GHCB_E_STATE_CONFLICT;
    if (base >> RMP_ADDRESS_BITS || end >> RMP_ADDRESS_BITS || end < base
        || end - base + 1 < RMP_BOOKKEEPING_BYTES + RMP_ENTRY_BYTES)
        return GHCB_E_OUT_OF_RANGE;
    if (base & RMP_END_UNSET || (end & RMP_END_UNSET) != RMP_END_UNSET)
        return GHCB_E_UNALIGNED;
    out->base = base;
    out->end = end;
    out->entries = base + RMP_BOOKKEEPING_BYTES;
    out->n_entries = (end + 1 - out->entries) / RMP_ENTRY_BYTES;
    out->large_start = base & ~(uint64_t)(RMP_LARGE_PAGE_BYTES - 1);
    out->large_end = (end + 1) & ~(uint64_t)(RMP_LARGE_PAGE_BYTES - 1);
    out->is_aligned = !(base & (RMP_FIRMWARE_ALIGN - 1)) && !((end + 1) & (RMP_FIRMWARE_ALIGN - 1));
    return GHCB_OK;
}

/* Where the entry of a page lies; GHCB_E_OUT_OF_RANGE: the table does not reach it. */
static inline int ghcb_rmp_entry_at(const ghcb_rmp_table_t *table, uint64_t pfn, uint64_t *spa)
{
    if (pfn >= table->n_entries)
        return GHCB_E_OUT_OF_RANGE;
    *spa = table->entries + pfn * RMP_ENTRY_BYTES;
    return GHCB_OK;
}

/* Which page an entry at this address belongs to. */
static inline int ghcb_rmp_page_of(const ghcb_rmp_table_t *table, uint64_t spa, uint64_t *pfn)
{
    if (spa < table->entries || spa > table->end)
        return GHCB_E_OUT_OF_RANGE;
    if ((spa - table->entries) % RMP_ENTRY_BYTES)
        return GHCB_E_UNALIGNED;
    *pfn = (spa - table->entries) / RMP_ENTRY_BYTES;
    return GHCB_OK;
}

#endif
