/* What can happen to a frame: the operations, their operands, their results, facts of a region.
 *
 * An operation is a record of words, so that it can be part of a machine's record. Its result is
 * one word: who refused (an instruction's code, firmware's status, a fault), the code, and for a
 * fault the error bits as the processor reports them. 0 is success. Operations on a 2 MiB entry
 * look at the facts of its region first and then change each frame of it.
 *
 * The rules are in frame_rule.h (instructions, firmware), frame_access.h (loads and stores).
 */
#ifndef GHCBCORE_FRAME_OP_H
#define GHCBCORE_FRAME_OP_H

#include <ghcbcore/frame.h>
#include <ghcbcore/keyslot.h>

/* cffi: begin */
/* Views that software keeps: no rule refuses, whatever is true. */
#define FRAME_OP_MAP 1     /* guest's page table: value FRAME_UNMAPPED.., size FRAME_LEAF_* */
#define FRAME_OP_BELIEVE 2 /* guest notes that it has (value 1) or has not validated */
#define FRAME_OP_LIST 3    /* hypervisor's software notes value FRAME_LISTED_* */
#define FRAME_OP_CONTENT 4 /* written under key slot `value`, nobody checked */
/* Instructions: results are SEV_RMP_* codes or faults. */
#define FRAME_OP_RMPUPDATE 5  /* asid, gfn, size, value FRAME_NEW_* */
#define FRAME_OP_PSMASH 6
#define FRAME_OP_PVALIDATE 7  /* asid, vmpl, gfn, backing, size, value 1 or 0 */
#define FRAME_OP_RMPADJUST 8  /* asid, vmpl, gfn, backing, size, target, value rights, FRAME_ADJUST_VMSA */
#define FRAME_OP_RMPQUERY 9   /* asid, vmpl, gfn, backing, target: the result carries the rights */
#define FRAME_OP_VMRUN 10     /* a CPU starts to use this VMCB or VMSA; its own checks are not here */
#define FRAME_OP_VMEXIT 11    /* and has left it */
/* Loads and stores: results are faults. */
#define FRAME_OP_HOST_ACCESS 12  /* backing: size of the host's mapping; value FRAME_ACCESS_* */
#define FRAME_OP_GUEST_ACCESS 13 /* asid, vmpl, gfn, backing; value FRAME_ACCESS_* */
#define FRAME_OP_DMA 14          /* value FRAME_ACCESS_* */
/* Firmware: results are SNP_FW_* statuses. */
#define FRAME_OP_GCTX_CREATE 15
#define FRAME_OP_DECOMMISSION 16   /* of the context page: what the command does to pages */
#define FRAME_OP_MD_INIT 17        /* gfn: frame of the guest context */
#define FRAME_OP_LAUNCH_UPDATE 18  /* asid, size, value FRAME_LAUNCH_*, rights of VMPL 1 to 3 in target */
#define FRAME_OP_RECLAIM 19        /* size */
#define FRAME_OP_SET_STATE 20      /* FIRMWARE to HV_FIXED */
#define FRAME_OP_UNSMASH 21
#define FRAME_OP_IOMMU_TAKE 22     /* SNP_INIT_EX */
#define FRAME_OP_IOMMU_RELEASE 23  /* SNP_SHUTDOWN_EX with its IOMMU bit */
#define FRAME_OP_MOVE 24           /* PAGE_MOVE, two frames: ghcb_frame_move */
#define FRAME_OP_SWAP_OUT 25       /* the source of PAGE_SWAP_OUT: asid, size, value, gfn of the context */
#define FRAME_OP_SWAP_IN 26        /* the destination of PAGE_SWAP_IN, and what the page was: see FRAME_SWAP_* */
#define FRAME_OP_LEAF 27           /* leaves larger than `size` are split down to it */
#define FRAME_OP_INIT 28           /* firmware builds the table: size, value RMP_STATE_DEFAULT to _FIRMWARE */
#define FRAME_OP_END 29

#define FRAME_NEW_ASSIGNED 1
#define FRAME_NEW_IMMUTABLE 2

#define FRAME_ACCESS_WRITE 1
#define FRAME_ACCESS_FETCH 2
#define FRAME_ACCESS_USER 4
#define FRAME_ACCESS_C 8     /* the C-bit of the mapping that is used */
#define FRAME_ACCESS_SNP 16  /* of a guest: it is an SNP guest */
#define FRAME_ACCESS_STORE 32 /* not only checked: what it writes becomes the content */

#define FRAME_ADJUST_VMSA 256 /* of RMPADJUST's value: bit 16 of RDX */

#define FRAME_LAUNCH_VMSA 1   /* the page type is VMSA */
#define FRAME_LAUNCH_SMALL 2  /* a type that must be 4 KiB: SECRETS, CPUID */

/* Of SWAP_OUT and SWAP_IN: what the page is; `gfn` is then the frame of the context. Of SWAP_IN for a
 * guest's page: what it was, with its GPA in `gfn`, the rights of its VMPLs as bytes of `target`. */
#define FRAME_SWAP_METADATA 1
#define FRAME_SWAP_VALIDATED 2
#define FRAME_SWAP_VMSA 4

/* The key slot of content that nobody has written. */
#define FRAME_KEY_NONE GHCB_KEY_SLOT_RESERVED_LAST

/* Switches: where the sources differ or do not say. */
#define FRAME_RULE_KEEP_VALIDATED 0   /* RMPUPDATE with nothing new keeps what was validated */
#define FRAME_RULE_SHARED_READ 1      /* an SNP guest's C=0 read is checked like its write */

/* Results: kind in bits 63:60, code in 59:52, CF in bit 51, error bits below. */
#define FRAME_RESULT_KIND_SHIFT 60
#define FRAME_RESULT_CODE_SHIFT 52
#define FRAME_RESULT_CODE_WIDTH 8
#define FRAME_RESULT_UNCHANGED 51 /* PVALIDATE: carry, the page was so already */
#define FRAME_RESULT_CODE 0       /* an instruction's return code */
#define FRAME_RESULT_STATUS 1     /* firmware's */
#define FRAME_RESULT_PF 2
#define FRAME_RESULT_NPF 3
#define FRAME_RESULT_VC 4
#define FRAME_RESULT_GP 5
#define FRAME_RESULT_DMA 6 /* the IOMMU aborts and logs an event */

typedef struct {
    uint64_t kind;    /* FRAME_OP_* */
    uint64_t size;    /* 0: 4 KiB, 1: 2 MiB, 2: 1 GiB (FRAME_OP_MAP alone) */
    uint64_t backing; /* the nested page, or the host's mapping: the same numbers */
    uint64_t asid;
    uint64_t vmpl;
    uint64_t target; /* VMPL */
    uint64_t gfn;    /* with an ASID the distance to the frame's number, else as it is stored */
    uint64_t value;
} ghcb_frame_op_t;

/* Facts of a 2 MiB region, or of one frame. */
typedef struct {
    uint64_t n;          /* frames seen */
    uint64_t at;         /* where in its region the operand begins */
    uint64_t n_assigned;
    uint64_t any;        /* bits that some frame has */
    uint64_t differ;     /* bits of the RMP's view in which frames differ from the first */
    uint64_t same_gfn;
    ghcb_frame_t first;
} ghcb_frame_region_t;

typedef struct {
    uint64_t flags;    /* 1 << FRAME_RULE_* */
    uint64_t max_asid;
} ghcb_frame_rules_t;
/* cffi: end */

static inline uint64_t ghcb_frame_result(uint64_t kind, uint64_t code, uint64_t bits)
{
    return kind << FRAME_RESULT_KIND_SHIFT | code << FRAME_RESULT_CODE_SHIFT | bits;
}

/* Whether an operation did not happen. CF, and rights that were asked for, are no refusal. */
static inline int ghcb_frame_refused(uint64_t result)
{
    return result >> FRAME_RESULT_CODE_SHIFT != 0;
}

/* Add `n` frames that are alike to what is known of a region; the first call brings its first frame. */
static inline void ghcb_frame_region_add(ghcb_frame_region_t *r, const ghcb_frame_t *frame, uint64_t n)
{
    if (!r->n) {
        r->first = *frame;
        r->same_gfn = 1;
    }
    r->n += n;
    r->n_assigned += ghcb_frame_has(frame->word, FRAME_ASSIGNED) ? n : 0;
    r->any |= frame->word;
    r->differ |= (frame->word ^ r->first.word) & FRAME_RMP_MASK & ~(1ULL << FRAME_IN_USE);
    r->same_gfn &= frame->gfn == r->first.gfn;
}

/* Views that an operation may change, as a set. */
static inline unsigned ghcb_frame_op_views(const ghcb_frame_op_t *op)
{
    switch (op->kind) {
    case FRAME_OP_MAP:
    case FRAME_OP_LEAF:
        return 1U << FRAME_VIEW_PAGE_TABLE;
    case FRAME_OP_BELIEVE:
        return 1U << FRAME_VIEW_VALIDATED;
    case FRAME_OP_LIST:
        return 1U << FRAME_VIEW_LISTED;
    case FRAME_OP_CONTENT:
    case FRAME_OP_HOST_ACCESS:
    case FRAME_OP_GUEST_ACCESS:
    case FRAME_OP_DMA:
        return 1U << FRAME_VIEW_CONTENT;
    case FRAME_OP_PVALIDATE:
        return 1U << FRAME_VIEW_RMP | 1U << FRAME_VIEW_VALIDATED;
    case FRAME_OP_RMPQUERY:
        return 0;
    case FRAME_OP_LAUNCH_UPDATE:
    case FRAME_OP_MOVE:
    case FRAME_OP_SWAP_IN:
        return 1U << FRAME_VIEW_RMP | 1U << FRAME_VIEW_CONTENT;
    default:
        return 1U << FRAME_VIEW_RMP;
    }
}

/* Which views differ between two frames, as a set. */
static inline unsigned ghcb_frame_differ(const ghcb_frame_t *a, const ghcb_frame_t *b)
{
    uint64_t x = a->word ^ b->word;
    unsigned views = 0;

    if (x & FRAME_RMP_MASK || a->gfn != b->gfn)
        views |= 1U << FRAME_VIEW_RMP;
    if (ghcb_frame_get(x, FRAME_MAPPING_SHIFT, FRAME_MAPPING_WIDTH + FRAME_LEAF_WIDTH))
        views |= 1U << FRAME_VIEW_PAGE_TABLE;
    if (ghcb_frame_has(x, FRAME_BELIEVED))
        views |= 1U << FRAME_VIEW_VALIDATED;
    if (ghcb_frame_get(x, FRAME_LISTED_SHIFT, FRAME_LISTED_WIDTH))
        views |= 1U << FRAME_VIEW_LISTED;
    if (ghcb_frame_get(x, FRAME_KEY_SHIFT, FRAME_KEY_WIDTH))
        views |= 1U << FRAME_VIEW_CONTENT;
    return views;
}

#endif
