/* Any bytes as whatever the protocol has: decoded without a crash, and what was well formed is the
 * same bytes again when it is put together; many at once is one after the other. */
#include "fuzz.h"

#include <ghcbcore/ghcb.h>
#include <ghcbcore/msr.h>
#include <ghcbcore/msr_many.h>
#include <ghcbcore/psc.h>
#include <ghcbcore/rmp.h>

enum { MAX_VALUES = 80 };

static void values_of_the_msr(input_t *in)
{
    const size_t n = take8(in) % MAX_VALUES;
    uint64_t *values = malloc(n * sizeof(*values) + 1);
    ghcb_msr_t *many = malloc(n * sizeof(*many) + 1), one;

    MUST(values && many);
    take(in, values, n * sizeof(*values));
    ghcb_msr_decode_many(values, many, n);
    for (size_t i = 0; i < n; i++) {
        uint64_t again = 0;

        ghcb_msr_decode(values[i], &one);
        MUST(!memcmp(&one, &many[i], sizeof(one)));
        if (one.status == GHCB_OK) {
            MUST(ghcb_msr_encode(one.code, one.a, one.b, one.c, &again) == GHCB_OK);
            MUST(again == values[i]);
        }
        MUST(ghcb_msr_check_answer(values[i], values[n - 1 - i]) < GHCB_STATUS_END);
    }
    free(values);
    free(many);
}

static void a_page(input_t *in)
{
    const int side = take8(in) & 1 ? GHCB_SIDE_ANSWER : GHCB_SIDE_REQUEST;
    const int snp = take8(in) % 3;
    uint8_t *page = malloc(GHCB_PAGE_SIZE), again[GHCB_PAGE_SIZE];
    ghcb_decoded_t got, same;

    MUST(page);
    take(in, page, GHCB_PAGE_SIZE);
    MUST(ghcb_page_decode(page, side, snp, &got) == got.status);
    MUST(got.status < GHCB_STATUS_END);
    memcpy(again, page, sizeof(again));
    ghcb_page_encode(&got, again);
    if (!(got.flags & GHCB_FLAG_RESERVED) && got.ghcb_usage == GHCB_USAGE_STANDARD)
        MUST(!memcmp(page, again, sizeof(again)));
    ghcb_page_decode(again, side, snp, &same);
    if (got.ghcb_usage == GHCB_USAGE_STANDARD) {
        same.flags |= got.flags & GHCB_FLAG_RESERVED;
        same.first_reserved = got.first_reserved;
        same.status = got.status;
        MUST(!memcmp(&same, &got, sizeof(same)));
    }
    free(page);
}

static void a_buffer(input_t *in)
{
    const uint64_t n = GHCB_PSC_OFF_ENTRIES + ((uint64_t)take8(in) << 3 | take8(in) % 8);
    uint8_t *buffer = malloc(n);
    ghcb_psc_entry_t entries[GHCB_PSC_MAX_ENTRIES];
    ghcb_psc_header_t header;

    MUST(buffer);
    take(in, buffer, n);
    if (take8(in) & 1)
        buffer[3] = 0; /* end_entry in one byte */
    MUST(ghcb_psc_decode(buffer, n, &header, entries) == header.status);
    MUST(header.n_entries <= GHCB_PSC_MAX_ENTRIES);
    for (unsigned int i = 0; i < header.n_entries; i++) {
        uint64_t raw, again;

        if (entries[i].flags & GHCB_PSC_FLAG_CUT)
            break;
        memcpy(&raw, buffer + GHCB_PSC_OFF_ENTRIES + i * (size_t)GHCB_PSC_ENTRY_SIZE, sizeof(raw));
        if (ghcb_psc_entry_encode(entries[i].gfn, entries[i].op, entries[i].size,
                                  entries[i].cur_page, &again) == GHCB_OK &&
            !(entries[i].flags & GHCB_PSC_FLAG_RESERVED))
            MUST(again == raw);
    }
    free(buffer);
}

static void an_rmp(input_t *in)
{
    const uint64_t low = take64(in), high = take64(in);
    uint64_t low2, high2, spa, pfn;
    ghcb_rmp_t got;
    ghcb_rmp_table_t table;

    ghcb_rmp_decode(low, high, &got);
    if (got.status == GHCB_OK && ghcb_rmp_encode(&got, &low2, &high2) == GHCB_OK)
        MUST(low == low2 && high == high2);
    ghcb_rmp_decode_arch(low, high, &got);
    if (got.status == GHCB_OK && ghcb_rmp_encode_arch(&got, &low2, &high2) == GHCB_OK)
        MUST(low == low2 && high == high2);
    if (ghcb_rmp_table(low, high, &table) == GHCB_OK) {
        pfn = take64(in);
        if (ghcb_rmp_entry_at(&table, pfn, &spa) == GHCB_OK)
            MUST(spa >= low && spa <= high);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input_t in = {data, size};

    switch (take8(&in) & 3) {
    case 0:
        values_of_the_msr(&in);
        break;
    case 1:
        a_page(&in);
        break;
    case 2:
        a_buffer(&in);
        break;
    default:
        an_rmp(&in);
    }
    return 0;
}
