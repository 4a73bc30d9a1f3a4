/* The reverse map table: its entries and the states of pages. Where an entry lies: rmp_geometry.h.
 *
 * The table has 16 bytes for each 4 KiB page of system memory and says who owns the page. Its entries
 * are known in two forms:
 *
 * - raw, as they lie in memory and as Linux prints them: `[0x<low> - 0x<high>]`. The layout is not
 *   architectural; this is that of Zen 3 and Zen 4.
 * - architectural, as the instruction RMPREAD returns them and RMPUPDATE takes them: GPA, three
 *   bytes, ASID. It lacks VMSA, validated, lock, the count of subpages and the VMPL masks.
 *
 * The state of a page is what firmware makes of a raw entry; the tests are made in a fixed order and
 * an entry that passes none is in no state. Firmware keeps a tag of its own in the top bits of the
 * GFN of pages that belong to no guest.
 *
 * Units: `gpa` counts bytes, GFNs 4 KiB pages.
 *
 * Source: Linux arch/x86/virt/svm/sev.c, asm/sev.h, asm/msr-index.h; AMD-ASPFW sev_rmp.h (Genoa).
 */
#ifndef GHCBCORE_RMP_H
#define GHCBCORE_RMP_H

#include <ghcbcore/page.h>
#include <ghcbcore/rmp_geometry.h>
#include <ghcbcore/sev.h>
#include <ghcbcore/status.h>
#include <stdint.h>

/* cffi: begin */
#define RMP_MSR_BASE 0xc0010132
#define RMP_MSR_END 0xc0010133
#define RMP_MSR_CFG 0xc0010136
#define RMP_MSR_SYSCFG 0xc0010010
#define RMP_MSR_VM_HSAVE_PA 0xc0010117

/* Bit numbers of SYSCFG. */
#define RMP_SYSCFG_MFDM 19
#define RMP_SYSCFG_MEM_ENCRYPT 23
#define RMP_SYSCFG_SNP_EN 24
#define RMP_SYSCFG_VMPL_EN 25

/* Raw entry, low word. */
#define RMP_ASSIGNED_SHIFT 0
#define RMP_PAGE_SIZE_SHIFT 1
#define RMP_IMMUTABLE_SHIFT 2
#define RMP_SUBPAGES_SHIFT 3
#define RMP_SUBPAGES_WIDTH 9
#define RMP_GFN_SHIFT 12
#define RMP_GFN_WIDTH 39
#define RMP_ASID_SHIFT 51
#define RMP_ASID_WIDTH 10
#define RMP_VMSA_SHIFT 61
#define RMP_VALIDATED_SHIFT 62
#define RMP_LOCK_SHIFT 63
/* Raw entry, high word: a mask of rights for each VMPL, VMPL0 lowest, and what firmware keeps. */
#define RMP_VMPL_WIDTH 8
#define RMP_IMPLICIT_KEY_SHIFT 32
#define RMP_ROOT_PORT_SHIFT 49
#define RMP_ROOT_PORT_WIDTH 5
#define RMP_IDE_STREAM_SHIFT 54
#define RMP_IDE_STREAM_WIDTH 8
#define RMP_MIGRATION_SHIFT 62
#define RMP_MIGRATION_WIDTH 2

/* Bit numbers of a VMPL's rights. */
#define RMP_RIGHT_READ 0
#define RMP_RIGHT_WRITE 1
#define RMP_RIGHT_USER_EXECUTE 2
#define RMP_RIGHT_SUPERVISOR_EXECUTE 3
#define RMP_RIGHT_SHADOW_STACK 4
#define RMP_RIGHTS_ALL 0x1f

#define RMP_PAGE_4K 0
#define RMP_PAGE_2M 1

/* Firmware's tag in the top bits of the GFN, where the ASID is 0. */
#define RMP_TAG_SHIFT 36
#define RMP_TAG_WIDTH 3
#define RMP_TAG_FIRMWARE 0
#define RMP_TAG_METADATA 1
#define RMP_TAG_FIRMWARE_IOMMU 2
#define RMP_ASID_FIRMWARE_EDITS 0x3ff /* firmware holds the entry while it changes it */

/* Architectural entry: offsets of bytes. */
#define RMP_ARCH_OFF_GPA 0
#define RMP_ARCH_OFF_ASSIGNED 8
#define RMP_ARCH_OFF_PAGE_SIZE 9
#define RMP_ARCH_OFF_IMMUTABLE 10
#define RMP_ARCH_OFF_ASID 12
#define RMP_ARCH_REGION_BIT 1 /* of the byte page size: some page of the 2 MiB region is assigned */

/* States of a page; the numbers are firmware's, but for 0. */
#define RMP_STATE_NONE 0 /* no state has such an entry */
#define RMP_STATE_DEFAULT 1 /* the table does not reach this page */
#define RMP_STATE_HYPERVISOR 2
#define RMP_STATE_HV_FIXED 3
#define RMP_STATE_FIRMWARE 4
#define RMP_STATE_FIRMWARE_IOMMU 5
#define RMP_STATE_RECLAIM 6
#define RMP_STATE_CONTEXT 7
#define RMP_STATE_METADATA 8
#define RMP_STATE_PRE_GUEST 9
#define RMP_STATE_PRE_SWAP 10
#define RMP_STATE_GUEST_INVALID 11
#define RMP_STATE_GUEST_VALID 12
#define RMP_STATE_END 13

/* One entry taken apart. An architectural entry leaves vmsa, validated, lock, subpages, the VMPL
 * masks and the fields after them 0, and its state RMP_STATE_NONE; a raw one leaves region 0. */
typedef struct {
    uint64_t gpa;
    uint32_t asid;
    uint16_t subpages; /* assigned pages of the 2 MiB region other than the first */
    uint8_t assigned;
    uint8_t page_size; /* RMP_PAGE_4K or RMP_PAGE_2M */
    uint8_t immutable;
    uint8_t vmsa;
    uint8_t validated;
    uint8_t lock;
    uint8_t vmpl0; /* rights, RMP_RIGHT_* */
    uint8_t vmpl1;
    uint8_t vmpl2;
    uint8_t vmpl3;
    uint8_t implicit_key;
    uint8_t root_port;
    uint8_t ide_stream;
    uint8_t migration;
    uint8_t region;
    uint8_t state;
    uint8_t status; /* GHCB_OK, _E_RESERVED_BITS, _E_UNALIGNED or _E_STATE_CONFLICT */
    uint8_t reserved_1f;
} ghcb_rmp_t;
/* cffi: end */

_Static_assert(sizeof(ghcb_rmp_t) == 32, "one entry taken apart");

static inline uint64_t ghcb_rmp_bits(uint64_t word, unsigned shift, unsigned width)
{
    return word >> shift & ((1ULL << width) - 1);
}

/* Bits that no field claims: of the high word, and of each VMPL's mask. */
static inline uint64_t ghcb_rmp_reserved_high(void)
{
    uint64_t claimed = 1ULL << RMP_IMPLICIT_KEY_SHIFT
        | ((1ULL << RMP_ROOT_PORT_WIDTH) - 1) << RMP_ROOT_PORT_SHIFT
        | ((1ULL << RMP_IDE_STREAM_WIDTH) - 1) << RMP_IDE_STREAM_SHIFT
        | ((1ULL << RMP_MIGRATION_WIDTH) - 1) << RMP_MIGRATION_SHIFT;
    for (unsigned i = 0; i < SEV_N_VMPLS; i++)
        claimed |= (uint64_t)RMP_RIGHTS_ALL << (i * RMP_VMPL_WIDTH);
    return ~claimed;
}

/* The state of a page by its raw entry, in firmware's order of tests. */
static inline uint8_t ghcb_rmp_state(const ghcb_rmp_t *e)
{
    uint64_t gfn = e->gpa >> GHCB_PAGE_SHIFT;
    uint64_t tag = ghcb_rmp_bits(gfn, RMP_TAG_SHIFT, RMP_TAG_WIDTH);
    uint64_t frame = gfn & ((1ULL << RMP_TAG_SHIFT) - 1);

    if (!e->assigned) {
        if (e->validated || e->asid)
            return RMP_STATE_NONE;
        return e->immutable ? RMP_STATE_HV_FIXED : RMP_STATE_HYPERVISOR;
    }
    if (e->asid) {
        if (e->immutable)
            return e->validated ? RMP_STATE_PRE_SWAP : RMP_STATE_PRE_GUEST;
        return e->validated ? RMP_STATE_GUEST_VALID : RMP_STATE_GUEST_INVALID;
    }
    if (e->validated)
        return RMP_STATE_NONE;
    if (!e->immutable)
        return e->lock ? RMP_STATE_NONE : RMP_STATE_RECLAIM;
    if (!gfn)
        return e->vmsa ? RMP_STATE_CONTEXT : RMP_STATE_FIRMWARE;
    if (tag == RMP_TAG_METADATA)
        return RMP_STATE_METADATA;
    if (tag == RMP_TAG_FIRMWARE_IOMMU && frame == 1 && !e->vmsa)
        return RMP_STATE_FIRMWARE_IOMMU;
    return RMP_STATE_NONE;
}

/* Take a raw entry apart. Every pair of words decodes; what is wrong with it is its status. */
static inline void ghcb_rmp_decode(uint64_t low, uint64_t high, ghcb_rmp_t *out)
{
    ghcb_rmp_t e = {0};

    e.assigned = ghcb_rmp_bits(low, RMP_ASSIGNED_SHIFT, 1);
    e.page_size = ghcb_rmp_bits(low, RMP_PAGE_SIZE_SHIFT, 1);
    e.immutable = ghcb_rmp_bits(low, RMP_IMMUTABLE_SHIFT, 1);
    e.subpages = ghcb_rmp_bits(low, RMP_SUBPAGES_SHIFT, RMP_SUBPAGES_WIDTH);
    e.gpa = ghcb_rmp_bits(low, RMP_GFN_SHIFT, RMP_GFN_WIDTH) << GHCB_PAGE_SHIFT;
    e.asid = ghcb_rmp_bits(low, RMP_ASID_SHIFT, RMP_ASID_WIDTH);
    e.vmsa = ghcb_rmp_bits(low, RMP_VMSA_SHIFT, 1);
    e.validated = ghcb_rmp_bits(low, RMP_VALIDATED_SHIFT, 1);
    e.lock = ghcb_rmp_bits(low, RMP_LOCK_SHIFT, 1);
    e.vmpl0 = ghcb_rmp_bits(high, 0 * RMP_VMPL_WIDTH, RMP_VMPL_WIDTH);
    e.vmpl1 = ghcb_rmp_bits(high, 1 * RMP_VMPL_WIDTH, RMP_VMPL_WIDTH);
    e.vmpl2 = ghcb_rmp_bits(high, 2 * RMP_VMPL_WIDTH, RMP_VMPL_WIDTH);
    e.vmpl3 = ghcb_rmp_bits(high, 3 * RMP_VMPL_WIDTH, RMP_VMPL_WIDTH);
    e.implicit_key = ghcb_rmp_bits(high, RMP_IMPLICIT_KEY_SHIFT, 1);
    e.root_port = ghcb_rmp_bits(high, RMP_ROOT_PORT_SHIFT, RMP_ROOT_PORT_WIDTH);
    e.ide_stream = ghcb_rmp_bits(high, RMP_IDE_STREAM_SHIFT, RMP_IDE_STREAM_WIDTH);
    e.migration = ghcb_rmp_bits(high, RMP_MIGRATION_SHIFT, RMP_MIGRATION_WIDTH);
    e.state = ghcb_rmp_state(&e);
    if (high & ghcb_rmp_reserved_high())
        e.status = GHCB_E_RESERVED_BITS;
    else if (e.state == RMP_STATE_NONE)
        e.status = GHCB_E_STATE_CONFLICT;
    else if (e.asid && e.page_size && e.gpa & (RMP_LARGE_PAGE_BYTES - 1))
        e.status = GHCB_E_UNALIGNED;
    *out = e;
}

/* Put a raw entry together; `state`, `status` and `region` are not looked at. */
static inline int ghcb_rmp_encode(const ghcb_rmp_t *e, uint64_t *low, uint64_t *high)
{
    uint64_t lo, hi;

    if (e->gpa & ((1ULL << GHCB_PAGE_SHIFT) - 1))
        return GHCB_E_UNALIGNED;
    if (e->gpa >> GHCB_PAGE_SHIFT >> RMP_GFN_WIDTH || e->asid >> RMP_ASID_WIDTH
        || e->subpages >> RMP_SUBPAGES_WIDTH || e->root_port >> RMP_ROOT_PORT_WIDTH
        || e->migration >> RMP_MIGRATION_WIDTH
        || (e->assigned | e->page_size | e->immutable | e->vmsa | e->validated | e->lock
            | e->implicit_key) > 1
        || (e->vmpl0 | e->vmpl1 | e->vmpl2 | e->vmpl3) & ~RMP_RIGHTS_ALL)
        return GHCB_E_OUT_OF_RANGE;
    lo = (uint64_t)e->assigned << RMP_ASSIGNED_SHIFT
        | (uint64_t)e->page_size << RMP_PAGE_SIZE_SHIFT
        | (uint64_t)e->immutable << RMP_IMMUTABLE_SHIFT
        | (uint64_t)e->subpages << RMP_SUBPAGES_SHIFT
        | e->gpa >> GHCB_PAGE_SHIFT << RMP_GFN_SHIFT
        | (uint64_t)e->asid << RMP_ASID_SHIFT
        | (uint64_t)e->vmsa << RMP_VMSA_SHIFT
        | (uint64_t)e->validated << RMP_VALIDATED_SHIFT
        | (uint64_t)e->lock << RMP_LOCK_SHIFT;
    hi = (uint64_t)e->vmpl0 << 0 * RMP_VMPL_WIDTH
        | (uint64_t)e->vmpl1 << 1 * RMP_VMPL_WIDTH
        | (uint64_t)e->vmpl2 << 2 * RMP_VMPL_WIDTH
        | (uint64_t)e->vmpl3 << 3 * RMP_VMPL_WIDTH
        | (uint64_t)e->implicit_key << RMP_IMPLICIT_KEY_SHIFT
        | (uint64_t)e->root_port << RMP_ROOT_PORT_SHIFT
        | (uint64_t)e->ide_stream << RMP_IDE_STREAM_SHIFT
        | (uint64_t)e->migration << RMP_MIGRATION_SHIFT;
    *low = lo;
    *high = hi;
    return GHCB_OK;
}

/* Take apart what RMPREAD returned: 16 bytes as two words, the GPA first. */
static inline void ghcb_rmp_decode_arch(uint64_t gpa, uint64_t rest, ghcb_rmp_t *out)
{
    ghcb_rmp_t e = {0};
    uint64_t assigned = ghcb_rmp_bits(rest, (RMP_ARCH_OFF_ASSIGNED - 8) * 8, 8);
    uint64_t size = ghcb_rmp_bits(rest, (RMP_ARCH_OFF_PAGE_SIZE - 8) * 8, 8);
    uint64_t immutable = ghcb_rmp_bits(rest, (RMP_ARCH_OFF_IMMUTABLE - 8) * 8, 8);

    e.gpa = gpa;
    e.asid = ghcb_rmp_bits(rest, (RMP_ARCH_OFF_ASID - 8) * 8, 32);
    e.assigned = assigned & 1;
    e.page_size = size & 1;
    e.region = size >> RMP_ARCH_REGION_BIT & 1;
    e.immutable = immutable & 1;
    if (assigned > 1 || size >> (RMP_ARCH_REGION_BIT + 1) || immutable > 1
        || ghcb_rmp_bits(rest, (RMP_ARCH_OFF_IMMUTABLE + 1 - 8) * 8, 8))
        e.status = GHCB_E_RESERVED_BITS;
    else if (e.gpa & ((e.assigned && e.asid && e.page_size ? RMP_LARGE_PAGE_BYTES
                                                           : 1ULL << GHCB_PAGE_SHIFT) - 1))
        e.status = GHCB_E_UNALIGNED;
    *out = e;
}

/* Put together what RMPREAD returns; without `region`, also what RMPUPDATE takes. */
static inline int ghcb_rmp_encode_arch(const ghcb_rmp_t *e, uint64_t *gpa, uint64_t *rest)
{
    if (e->gpa & ((1ULL << GHCB_PAGE_SHIFT) - 1))
        return GHCB_E_UNALIGNED;
    if ((e->assigned | e->page_size | e->immutable | e->region) > 1 || e->vmsa || e->validated
        || e->lock || e->subpages || e->vmpl0 || e->vmpl1 || e->vmpl2 || e->vmpl3
        || e->implicit_key || e->root_port || e->ide_stream || e->migration)
        return GHCB_E_OUT_OF_RANGE;
    *gpa = e->gpa;
    *rest = (uint64_t)e->assigned << (RMP_ARCH_OFF_ASSIGNED - 8) * 8
        | (uint64_t)(e->page_size | e->region << RMP_ARCH_REGION_BIT)
              << (RMP_ARCH_OFF_PAGE_SIZE - 8) * 8
        | (uint64_t)e->immutable << (RMP_ARCH_OFF_IMMUTABLE - 8) * 8
        | (uint64_t)e->asid << (RMP_ARCH_OFF_ASID - 8) * 8;
    return GHCB_OK;
}

#endif
