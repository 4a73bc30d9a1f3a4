/* The SEV and SNP firmware as words: platform, guests, ASIDs, hardware threads.
 *
 * Theory of operation. Firmware answers one command after another. It has two platforms (SEV and
 * SNP), guests with a state each, and for each ASID and each core complex (CCX) a *cell*: CLEAN,
 * ALLOC (a guest has it, and has not run), IN_USE, DIRTY (caches may hold lines under the ASID's key).
 * Microcode sets a thread's done bit when the thread finishes WBINVD; DF_FLUSH makes DIRTY cells CLEAN
 * where all threads are done. Taking an ASID from a guest that was IN_USE erases the done bits of
 * its CCXs: a WBINVD from before does not count.
 *
 * A command is a list of checks, in firmware's order (`firmware_checks.h`), of which the first that
 * fails is the answer; then its effect (`firmware_command.h`). What a check needs and the model does
 * not have (a signature, the state of a page) the command brings along as a set of GHCB_FW_BAD_*:
 * what is wrong with it. Where frames are at hand, the rules of `frame_firmware.h` say it.
 *
 * All state lies in words of the caller: nothing is kept here, so that an explorer can hold them in
 * its record. Equal states are equal words.
 *
 * Source: AMD-ASPFW sev_plat.c, sev_guest.c, sev_mcmd.c, sev_hal_interface.c (Genoa, Aug 2023).
 */
#ifndef GHCBCORE_FIRMWARE_H
#define GHCBCORE_FIRMWARE_H

#include <stdint.h>

#include <ghcbcore/keyslot.h>
#include <ghcbcore/psp.h>

/* cffi: begin */
#define GHCB_FW_MAX_CCXS 32 /* of both sockets: a cell has two bits of its ASID's word */
#define GHCB_FW_MAX_GUESTS 4096

#define GHCB_FW_CLEAN 0
#define GHCB_FW_ALLOC 1
#define GHCB_FW_IN_USE 2
#define GHCB_FW_DIRTY 3

#define GHCB_FW_SEV_UNINIT 0
#define GHCB_FW_SEV_INIT 1
#define GHCB_FW_SEV_WORKING 2
#define GHCB_FW_SNP_UNINIT 0
#define GHCB_FW_SNP_INIT 1

/* the platform's word: shifts; widths are 1 but where they stand */
#define GHCB_FW_SEV_SHIFT 0
#define GHCB_FW_SEV_WIDTH 2
#define GHCB_FW_SNP_SHIFT 2
#define GHCB_FW_RMP_SHIFT 3     /* the RMP is initialised */
#define GHCB_FW_IOMMU_SHIFT 4   /* the IOMMU enforces it, and its registers are locked */
#define GHCB_FW_ES_SHIFT 5      /* SEV INIT has set SEV-ES up */
#define GHCB_FW_OWNED_SHIFT 6   /* somebody else's certificate is imported */
#define GHCB_FW_REBUILD_SHIFT 7 /* the next command finds all cells DIRTY */
#define GHCB_FW_LIMIT_SHIFT 8   /* ciphertext hiding: the last ASID for SNP, 0 if it is off */
#define GHCB_FW_LIMIT_WIDTH 12

/* a guest's word; 0 if there is none in this slot (a handle of SEV, a context page of SNP) */
#define GHCB_FW_GUEST_STATE_SHIFT 0
#define GHCB_FW_GUEST_STATE_WIDTH 3
#define GHCB_FW_GUEST_TYPE_SHIFT 3
#define GHCB_FW_GUEST_TYPE_WIDTH 2
#define GHCB_FW_GUEST_ACTIVE_SHIFT 5
#define GHCB_FW_GUEST_ACTIVE_WIDTH 2
#define GHCB_FW_GUEST_ASID_SHIFT 8
#define GHCB_FW_GUEST_ASID_WIDTH 12
#define GHCB_FW_GUEST_DEBUG_SHIFT 20  /* its policy lets the host read it */
#define GHCB_FW_GUEST_SOCKET_SHIFT 21 /* its policy wants a single socket */
#define GHCB_FW_GUEST_IMAGE_SHIFT 22  /* of SNP: it comes in as an image, and VM_ABSORB ends its launch */
#define GHCB_FW_GUEST_CCXS_SHIFT 32   /* on which CCXs it is activated */
#define GHCB_FW_GUEST_CCXS_WIDTH 32

#define GHCB_FW_TYPE_NONE 0
#define GHCB_FW_TYPE_SEV 1
#define GHCB_FW_TYPE_ES 2
#define GHCB_FW_TYPE_SNP 3

#define GHCB_FW_INACTIVE 0
#define GHCB_FW_PENDING 1 /* has an ASID, has never been RUNNING */
#define GHCB_FW_ACTIVE 2

/* states of a SEV and SEV-ES guest */
#define GHCB_FW_GUEST_INVALID 0
#define GHCB_FW_GUEST_LUPDATE 1
#define GHCB_FW_GUEST_LSECRET 2
#define GHCB_FW_GUEST_RUNNING 3
#define GHCB_FW_GUEST_SUPDATE 4
#define GHCB_FW_GUEST_RUPDATE 5
#define GHCB_FW_GUEST_SENT 6
/* states of an SNP guest */
#define GHCB_FW_SNP_GUEST_INIT 0
#define GHCB_FW_SNP_GUEST_LAUNCH 1
#define GHCB_FW_SNP_GUEST_RUNNING 2

/* a hardware thread's first word; the ASIDs that it may not run follow, one bit each */
#define GHCB_FW_THREAD_DONE_SHIFT 0   /* WBINVD since the bit was last erased */
#define GHCB_FW_THREAD_KEPT_SHIFT 1   /* WBNOINVD; nothing here looks at it */
#define GHCB_FW_THREAD_OFFLINE_SHIFT 2 /* executes nothing, and so no WBINVD */
#define GHCB_FW_THREAD_SNP_EN_SHIFT 3 /* SYSCFG.SNPEn of its core */
#define GHCB_FW_THREAD_HSAVE_SHIFT 4  /* VM_HSAVE_PA is not 0 */
#define GHCB_FW_THREAD_FIRST_SHIFT 5  /* its core is the first of its CCX */
#define GHCB_FW_THREAD_CCX_SHIFT 8
#define GHCB_FW_THREAD_CCX_WIDTH 6
#define GHCB_FW_THREAD_RUNS_SHIFT 16 /* ASID of the guest that it is in, or 0 */
#define GHCB_FW_THREAD_RUNS_WIDTH 12

/* ghcb_fw_op_t.options */
#define GHCB_FW_OPTION_INIT_RMP 0x1
#define GHCB_FW_OPTION_LIST 0x2
#define GHCB_FW_OPTION_HIDING 0x4
#define GHCB_FW_OPTION_IOMMU 0x8
#define GHCB_FW_OPTION_X86 0x10
#define GHCB_FW_OPTION_ES 0x20
#define GHCB_FW_OPTION_IMPORT 0x40 /* SNP_GUEST_REQUEST: message VM_IMPORT to guest `target` */
#define GHCB_FW_OPTION_ABSORB 0x80 /* the same with VM_ABSORB */
#define GHCB_FW_OPTION_IMAGE 0x100 /* SNP_LAUNCH_START: of an image that comes in */

/* ghcb_fw_op_t.bad: what is wrong with what the command brings */
#define GHCB_FW_BAD_RESERVED 0x1
#define GHCB_FW_BAD_LENGTH 0x2
#define GHCB_FW_BAD_ADDRESS 0x4
#define GHCB_FW_BAD_ALIGNMENT 0x8
#define GHCB_FW_BAD_PAGE_STATE 0x10
#define GHCB_FW_BAD_PAGE_SIZE 0x20
#define GHCB_FW_BAD_PAGE_OWNER 0x40
#define GHCB_FW_BAD_PAGE_LARGE 0x80 /* the kind of page must be of 4 KiB */
#define GHCB_FW_BAD_POLICY 0x100
#define GHCB_FW_BAD_DIGEST 0x200
#define GHCB_FW_BAD_SIGNATURE 0x400
#define GHCB_FW_BAD_CERTIFICATE 0x800
#define GHCB_FW_BAD_HEADER 0x1000
#define GHCB_FW_BAD_SEQUENCE 0x2000
#define GHCB_FW_BAD_METADATA_ALIGNMENT 0x4000
#define GHCB_FW_BAD_METADATA_STATE 0x8000
#define GHCB_FW_BAD_METADATA_OWNER 0x10000
#define GHCB_FW_BAD_METADATA_ENTRY 0x20000
#define GHCB_FW_BAD_OVERLAP 0x40000
#define GHCB_FW_BAD_COUNTER 0x80000
#define GHCB_FW_BAD_MMIO 0x100000
#define GHCB_FW_BAD_HANDLE 0x200000 /* the other guest, whose key is shared, is none */
#define GHCB_FW_BAD_APIC 0x400000   /* no table of APIC IDs */
#define GHCB_FW_BAD_COUNT 0x800000
#define GHCB_FW_BAD_TMR 0x1000000
#define GHCB_FW_BAD_SECURE_DATA 0x2000000
#define GHCB_FW_BAD_UNSAFE 0x4000000
#define GHCB_FW_BAD_TCB 0x8000000
#define GHCB_FW_BAD_SYSCFG 0x10000000
#define GHCB_FW_BAD_MSRS 0x20000000
#define GHCB_FW_BAD_IN_GUEST 0x40000000 /* a thread is in a guest or in SMM */
#define GHCB_FW_BAD_RMP_RANGE 0x80000000
#define GHCB_FW_BAD_IOMMU 0x100000000
#define GHCB_FW_BAD_RMP_BUILD 0x200000000
#define GHCB_FW_BAD_SNP_EN 0x400000000 /* SNPEn cannot be cleared */
#define GHCB_FW_BAD_BUFFER 0x800000000 /* page of the command itself, which firmware writes to */
#define GHCB_FW_N_BADS 36

/* Genoa's dispatcher adds this where the command's own page has the wrong state. */
#define GHCB_FW_STATUS_PREFIXED 0x40

/* ghcb_fw_t.rules */
#define GHCB_FW_RULE_GENOA_2023 0x1 /* the first core of a CCX speaks for all; prefixed status */
#define GHCB_FW_RULE_TWO_SOCKETS 0x2 /* the lower half of the CCXs is on the first, rounded up */
#define GHCB_FW_RULE_NO_X86 0x4 /* this firmware cannot clear SNPEn */

/* beside a status: nobody's answer */
#define GHCB_FW_UNMODELLED 0x100000000 /* the command is known, its checks are not */
#define GHCB_FW_REFUSED_NOT 0xffffffff /* no check has refused */

typedef struct {
	uint64_t *state;  /* the platform's word */
	uint64_t *keys;   /* bit a: a key is installed for ASID a; n_bitmap words */
	uint64_t *guests; /* one word a slot */
	uint64_t *cells;  /* one word an ASID, beginning with ASID 1: two bits for each CCX */
	uint64_t *boot;   /* 1 + n_bitmap words of the first thread */
	uint64_t *others; /* the same of the second; those of the next are `stride` words further */
	uint64_t n_others;
	uint64_t stride;
	uint64_t n_guests;
	uint64_t n_ccxs;
	uint64_t max_asid;
	uint64_t first_sev_asid; /* from here on SEV; SEV-ES and SNP below */
	uint64_t n_bitmap; /* words that have a bit for each of 0..max_asid */
	uint64_t rules;    /* GHCB_FW_RULE_* */
} ghcb_fw_t;

typedef struct {
	uint64_t command; /* SEV_FW_CMD_* */
	uint64_t guest;   /* slot */
	uint64_t asid;
	uint64_t ccxs;    /* ACTIVATE_EX: bit x for CCX x */
	uint64_t options; /* GHCB_FW_OPTION_* */
	uint64_t bad;     /* GHCB_FW_BAD_* */
	uint64_t pages;   /* the RMP's counter: pages still assigned to the ASID */
	uint64_t policy;  /* LAUNCH_START's and SNP_LAUNCH_START's */
	uint64_t length;  /* SNP_SHUTDOWN_EX's */
	uint64_t limit;   /* SNP_INIT_EX's max_snp_asid */
	uint64_t target;  /* slot, of the messages VM_IMPORT and VM_ABSORB */
} ghcb_fw_op_t;
/* cffi: end */

_Static_assert(GHCB_KEY_SLOT_LAST_ASID < 1 << GHCB_FW_GUEST_ASID_WIDTH, "an ASID fits");
_Static_assert(2 * GHCB_FW_MAX_CCXS == 64, "two bits for each CCX");
_Static_assert(GHCB_FW_BAD_BUFFER == 1ULL << (GHCB_FW_N_BADS - 1), "number of bad things");

static inline uint64_t ghcb_fw_get(uint64_t word, unsigned shift, unsigned width)
{
    return word >> shift & ((1ULL << width) - 1);
}

static inline void ghcb_fw_set(uint64_t *word, unsigned shift, unsigned width, uint64_t value)
{
    *word = (*word & ~(((1ULL << width) - 1) << shift)) | value << shift;
}

#define GHCB_FW_GET(word, name) ghcb_fw_get(word, GHCB_FW_##name##_SHIFT, GHCB_FW_##name##_WIDTH)
#define GHCB_FW_SET(word, name, value) \
    ghcb_fw_set(word, GHCB_FW_##name##_SHIFT, GHCB_FW_##name##_WIDTH, value)
#define GHCB_FW_HAS(word, name) ((word) >> GHCB_FW_##name##_SHIFT & 1)
#define GHCB_FW_BIT(name) (1ULL << GHCB_FW_##name##_SHIFT)

static inline uint64_t ghcb_fw_n_bitmap(uint64_t max_asid)
{
    return max_asid / 64 + 1;
}

static inline uint64_t ghcb_fw_n_threads(const ghcb_fw_t *fw)
{
    return fw->n_others + 1;
}

static inline uint64_t *ghcb_fw_thread(const ghcb_fw_t *fw, uint64_t i)
{
    return i ? fw->others + (i - 1) * fw->stride : fw->boot;
}

static inline int ghcb_fw_is_snp(uint64_t guest)
{
    return GHCB_FW_GET(guest, GUEST_TYPE) == GHCB_FW_TYPE_SNP;
}

static inline int ghcb_fw_is_sev(uint64_t guest)
{
    return GHCB_FW_GET(guest, GUEST_TYPE) == GHCB_FW_TYPE_SEV
        || GHCB_FW_GET(guest, GUEST_TYPE) == GHCB_FW_TYPE_ES;
}

#endif
