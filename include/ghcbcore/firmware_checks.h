/* What each command asks before it does anything, in firmware's order: the first that fails answers.
 *
 * Source: AMD-ASPFW sev_dispatch.c, sev_plat.c, sev_guest.c, sev_mcmd.c (Genoa, Aug 2023). What the
 * facts leave open is an assumption, named in `pysev.tables.firmware.ASSUMPTIONS` and marked (A) here.
 */
#ifndef GHCBCORE_FIRMWARE_CHECKS_H
#define GHCBCORE_FIRMWARE_CHECKS_H

#include <ghcbcore/firmware_cells.h>

/* cffi: begin */
/* ghcb_fw_check_t.kind: refuse if */
#define GHCB_FW_IF_BAD 1         /* one of the bits of `arg` is set in the command's `bad` */
#define GHCB_FW_IF_BAD_WITH_SNP 2 /* the same, but only while SNP is initialised */
#define GHCB_FW_IF_SEV_NOT 3     /* the state of SEV is not in the set `arg` */
#define GHCB_FW_IF_SNP_NOT 4
#define GHCB_FW_IF_NO_SEV_GUEST 5
#define GHCB_FW_IF_NO_SNP_GUEST 6
#define GHCB_FW_IF_SLOT_TAKEN 7  /* there is a guest, or no such slot */
#define GHCB_FW_IF_GUEST_NOT 8   /* the guest's state is not in the set `arg` */
#define GHCB_FW_IF_INACTIVE 9
#define GHCB_FW_IF_ACTIVE 10     /* or pending */
#define GHCB_FW_IF_NO_DEBUG 11   /* the guest's policy does not let the host read it */
#define GHCB_FW_IF_NO_ES 12      /* LAUNCH_START of an ES guest where ES is not set up */
#define GHCB_FW_IF_TWO_SOCKETS 13 /* and the guest's policy wants one */
#define GHCB_FW_IF_ASID_RANGE 14 /* 0, or above the last */
#define GHCB_FW_IF_ASID_TYPE 15  /* not among those for this type of guest */
#define GHCB_FW_IF_ASID_OWNED 16 /* ALLOC or IN_USE somewhere */
#define GHCB_FW_IF_ASID_DIRTY 17 /* on any CCX; `arg`: see GHCB_FW_FIRST */
#define GHCB_FW_IF_ASID_CELLS 18 /* not CLEAN on every CCX; `arg` likewise */
#define GHCB_FW_IF_ASID_OTHER 19 /* the guest has another one */
#define GHCB_FW_IF_CCXS_SOCKETS 20 /* CCXs of both sockets, and the guest's policy wants one */
#define GHCB_FW_IF_CCXS_DIRTY 21 /* DIRTY on one of the chosen CCXs */
#define GHCB_FW_IF_CCXS_NONE 22  /* none chosen, or one that is none */
#define GHCB_FW_IF_PAGES 23      /* pages are still assigned to the ASID; `arg` likewise */
#define GHCB_FW_IF_UNCLEAN 24    /* any ASID is not CLEAN on any CCX */
#define GHCB_FW_IF_LENGTH_NOT 25 /* the structure's length is not `arg` */
#define GHCB_FW_IF_X86 26        /* SNPEn shall be cleared: without the IOMMU, or not possible */
#define GHCB_FW_IF_RMP 27        /* the RMP shall be kept, and is not initialised */
#define GHCB_FW_IF_LIST 28       /* a list of ranges for an RMP that is not built */
#define GHCB_FW_IF_SNP_EN_MISSING 29 /* on some thread */
#define GHCB_FW_IF_SNP_EN_NO_RMP 30 /* SNPEn is set on all threads, the RMP is not initialised */
#define GHCB_FW_IF_IN_GUEST 31
#define GHCB_FW_IF_HSAVE 32      /* VM_HSAVE_PA is not 0 somewhere, and the RMP shall be built */
#define GHCB_FW_IF_OWNED 33      /* the platform has an owner */
#define GHCB_FW_IF_TARGET_NOT 34 /* the message's guest is none, or not in the state it must have */
#define GHCB_FW_IF_RMP_BUILD 35  /* the RMP shall be built, and cannot */
#define GHCB_FW_IF_NOT_DONE 36   /* DF_FLUSH: a thread without WBINVD; stated by the effect */
#define GHCB_FW_IF_FAILED 37     /* the effect itself failed, by `bad` */
#define GHCB_FW_IF_NO_ES_GUEST 38
#define GHCB_FW_IF_IMAGE 39      /* the guest is an image that comes in */

/* ghcb_fw_check_t.arg: only of a guest that has no ASID yet */
#define GHCB_FW_FIRST 1
/* cffi: end */

typedef struct {
    uint32_t kind;
    uint32_t status; /* SNP_FW_OK: there is nothing to do, which is no error */
    uint64_t arg;
} ghcb_fw_check_t;

#define FW_IN(state) (1ULL << (state))
#define FW_BAD(what, refusal) {GHCB_FW_IF_BAD, SNP_FW_##refusal, GHCB_FW_BAD_##what}
#define FW_IF(kind, refusal) {GHCB_FW_IF_##kind, SNP_FW_##refusal, 0}
#define FW_IF_FIRST(kind, refusal) {GHCB_FW_IF_##kind, SNP_FW_##refusal, GHCB_FW_FIRST}
#define FW_SEV_IN(states) {GHCB_FW_IF_SEV_NOT, SNP_FW_PLATFORM_STATE, states}
#define FW_GUEST_IN(states) {GHCB_FW_IF_GUEST_NOT, SNP_FW_GUEST_STATE, states}

#define FW_SEV_UNINIT FW_SEV_IN(FW_IN(GHCB_FW_SEV_UNINIT))
#define FW_SEV_UP FW_SEV_IN(FW_IN(GHCB_FW_SEV_INIT) | FW_IN(GHCB_FW_SEV_WORKING))
#define FW_SEV_WORKS FW_SEV_IN(FW_IN(GHCB_FW_SEV_WORKING))
#define FW_SNP_UP {GHCB_FW_IF_SNP_NOT, SNP_FW_PLATFORM_STATE, FW_IN(GHCB_FW_SNP_INIT)}
#define FW_SNP_DOWN {GHCB_FW_IF_SNP_NOT, SNP_FW_PLATFORM_STATE, FW_IN(GHCB_FW_SNP_UNINIT)}
#define FW_DOWN_ALREADY {GHCB_FW_IF_SNP_NOT, SNP_FW_OK, FW_IN(GHCB_FW_SNP_INIT)}
#define FW_HANDLE FW_IF(NO_SEV_GUEST, GUEST_INVALID)
#define FW_CONTEXT FW_IF(NO_SNP_GUEST, GUEST_INVALID)
#define FW_R FW_BAD(RESERVED, PARAM)
#define FW_SNP_CALL FW_R, FW_SNP_UP, FW_CONTEXT
#define FW_SNP_STARTED \
    FW_GUEST_IN(FW_IN(GHCB_FW_SNP_GUEST_LAUNCH) | FW_IN(GHCB_FW_SNP_GUEST_RUNNING))

/* The rest of ACTIVATE and SNP_ACTIVATE, of ACTIVATE_EX and SNP_ACTIVATE_EX. */
#define FW_ACTIVATE_BEGIN \
    FW_IF(ASID_RANGE, ASID), FW_IF(ASID_OWNED, ASID_OWNED), FW_IF(ACTIVE, ACTIVE)
#define FW_ACTIVATE_END \
    FW_IF(ASID_DIRTY, DF_FLUSH_REQUIRED), FW_IF(ASID_CELLS, ASID_OWNED), FW_IF(ASID_TYPE, ASID)
#define FW_ACTIVATE_EX_BEGIN \
    FW_IF(ASID_RANGE, ASID), FW_BAD(APIC, UNSUPPORTED), FW_BAD(COUNT, PARAM), FW_IF(CCXS_NONE, PARAM)
#define FW_ACTIVATE_EX_END \
    FW_IF(ASID_OTHER, ACTIVE), FW_IF_FIRST(ASID_DIRTY, DF_FLUSH_REQUIRED), \
        FW_IF_FIRST(ASID_CELLS, ASID_OWNED), FW_IF(ASID_TYPE, ASID), FW_IF(CCXS_DIRTY, DF_FLUSH_REQUIRED)
#define FW_NOT_SENT FW_GUEST_IN(~FW_IN(GHCB_FW_GUEST_SENT))

#define FW_INIT_REST \
    FW_SNP_DOWN, FW_SEV_UNINIT, FW_BAD(UNSAFE, HW_UNSAFE), FW_IF(RMP, RMP_INIT_REQUIRED), \
        FW_IF(LIST, PARAM), FW_BAD(SYSCFG, CONFIG), FW_IF(SNP_EN_MISSING, CONFIG), \
        FW_BAD(MSRS, CONFIG), FW_IF(IN_GUEST, CONFIG), FW_BAD(RMP_RANGE, CONFIG), FW_IF(HSAVE, CONFIG), \
        FW_BAD(IOMMU, HW_PLATFORM), FW_IF(RMP_BUILD, RMP_INIT_FAILED)

#define FW_SEV_STEP(states) FW_SEV_WORKS, FW_HANDLE, FW_GUEST_IN(states), FW_BAD(LENGTH, LENGTH)
#define FW_SEV_VMSA(states) \
    FW_SEV_WORKS, FW_HANDLE, FW_GUEST_IN(states), FW_IF(NO_ES_GUEST, UNSUPPORTED), \
        FW_BAD(LENGTH, LENGTH), FW_IF(INACTIVE, INACTIVE)
#define FW_DEBUG_PAGE \
    FW_BAD(PAGE_STATE, PAGE_STATE), FW_BAD(PAGE_OWNER, PAGE_OWNER), FW_IF(NO_DEBUG, POLICY), \
        FW_IF(INACTIVE, INACTIVE)

#define FW_ROWS(...) \
    do { \
        static const ghcb_fw_check_t rows[] = {__VA_ARGS__}; \
        *found = rows; \
        return (int)(sizeof(rows) / sizeof(rows[0])); \
    } while (0)

#define GHCB_FW_ROWS_UNKNOWN (-1)    /* firmware has no such command */
#define GHCB_FW_ROWS_UNMODELLED (-2) /* it has, and no source at hand says what it checks */

/* The checks of a command; returns how many, or why there are none. */
static inline int ghcb_fw_checks(uint64_t command, const ghcb_fw_check_t **found)
{
    *found = 0;
    switch (command) {
    case SEV_FW_CMD_INIT:
    case SEV_FW_CMD_INIT_EX:
        FW_ROWS(FW_SEV_UNINIT, FW_IF(SNP_EN_NO_RMP, PLATFORM_STATE), FW_BAD(TMR, ADDRESS),
                FW_BAD(SECURE_DATA, SECURE_DATA));
    case SEV_FW_CMD_SHUTDOWN:
    case SEV_FW_CMD_PLATFORM_STATUS:
    case SEV_FW_CMD_GET_ID:
    case SEV_FW_CMD_NOP:
    case SEV_FW_CMD_DF_FLUSH:
    case SEV_FW_CMD_SNP_DF_FLUSH:
    case SEV_FW_CMD_SNP_FEATURE_INFO:
        return 0;
    case SEV_FW_CMD_PLATFORM_RESET:
        FW_ROWS(FW_SEV_UNINIT);
    case SEV_FW_CMD_PEK_GEN:
        FW_ROWS(FW_SEV_IN(FW_IN(GHCB_FW_SEV_INIT)));
    case SEV_FW_CMD_PEK_CERT_IMPORT:
        FW_ROWS(FW_SEV_IN(FW_IN(GHCB_FW_SEV_INIT)), FW_IF(OWNED, ALREADY_OWNED), FW_BAD(LENGTH, LENGTH),
                FW_BAD(CERTIFICATE, CERTIFICATE));
    case SEV_FW_CMD_PEK_CSR:
    case SEV_FW_CMD_PDH_CERT_EXPORT:
    case SEV_FW_CMD_PDH_GEN:
        FW_ROWS(FW_SEV_UP, FW_BAD(LENGTH, LENGTH));
    case SEV_FW_CMD_GUEST_STATUS:
        FW_ROWS(FW_SEV_UP);
    case SEV_FW_CMD_LAUNCH_START:
    case SEV_FW_CMD_RECEIVE_START: /* (A) no handle left */
        FW_ROWS(FW_SEV_UP, FW_BAD(LENGTH, LENGTH), FW_BAD(HANDLE, GUEST_INVALID), FW_IF(NO_ES, UNSUPPORTED),
                FW_IF(SLOT_TAKEN, RESOURCE_LIMIT));
    case SEV_FW_CMD_LAUNCH_UPDATE_DATA:
        FW_ROWS(FW_SEV_STEP(FW_IN(GHCB_FW_GUEST_LUPDATE)), FW_IF(INACTIVE, INACTIVE));
    case SEV_FW_CMD_LAUNCH_UPDATE_VMSA:
        FW_ROWS(FW_SEV_VMSA(FW_IN(GHCB_FW_GUEST_LUPDATE)));
    case SEV_FW_CMD_LAUNCH_MEASURE:
        FW_ROWS(FW_SEV_STEP(FW_IN(GHCB_FW_GUEST_LUPDATE)));
    case SEV_FW_CMD_LAUNCH_SECRET:
        FW_ROWS(FW_SEV_STEP(FW_IN(GHCB_FW_GUEST_LSECRET)), FW_IF(INACTIVE, INACTIVE));
    case SEV_FW_CMD_LAUNCH_FINISH:
        FW_ROWS(FW_SEV_STEP(FW_IN(GHCB_FW_GUEST_LSECRET)));
    case SEV_FW_CMD_ATTESTATION:
        FW_ROWS(FW_SEV_STEP(FW_IN(GHCB_FW_GUEST_LSECRET) | FW_IN(GHCB_FW_GUEST_RUNNING)
                            | FW_IN(GHCB_FW_GUEST_SUPDATE) | FW_IN(GHCB_FW_GUEST_SENT)));
    case SEV_FW_CMD_SEND_START:
        FW_ROWS(FW_SEV_STEP(FW_IN(GHCB_FW_GUEST_RUNNING)));
    case SEV_FW_CMD_SEND_UPDATE_DATA:
        FW_ROWS(FW_SEV_STEP(FW_IN(GHCB_FW_GUEST_SUPDATE)), FW_IF(INACTIVE, INACTIVE));
    case SEV_FW_CMD_SEND_UPDATE_VMSA:
        FW_ROWS(FW_SEV_VMSA(FW_IN(GHCB_FW_GUEST_SUPDATE)));
    case SEV_FW_CMD_SEND_FINISH:
    case SEV_FW_CMD_SEND_CANCEL:
        FW_ROWS(FW_SEV_STEP(FW_IN(GHCB_FW_GUEST_SUPDATE)));
    case SEV_FW_CMD_RECEIVE_UPDATE_DATA:
        FW_ROWS(FW_SEV_STEP(FW_IN(GHCB_FW_GUEST_RUPDATE)), FW_IF(INACTIVE, INACTIVE));
    case SEV_FW_CMD_RECEIVE_UPDATE_VMSA:
        FW_ROWS(FW_SEV_VMSA(FW_IN(GHCB_FW_GUEST_RUPDATE)));
    case SEV_FW_CMD_RECEIVE_FINISH:
        FW_ROWS(FW_SEV_STEP(FW_IN(GHCB_FW_GUEST_RUPDATE)));
    case SEV_FW_CMD_DBG_DECRYPT:
    case SEV_FW_CMD_DBG_ENCRYPT:
        FW_ROWS(FW_SEV_WORKS, FW_BAD(ALIGNMENT, ADDRESS), FW_BAD(LENGTH, LENGTH), FW_HANDLE,
                FW_IF(NO_DEBUG, POLICY));
    case SEV_FW_CMD_COPY:
        FW_ROWS(FW_SEV_WORKS, FW_HANDLE, FW_IF(INACTIVE, INACTIVE), FW_BAD(LENGTH, LENGTH),
                FW_BAD(ALIGNMENT, ADDRESS));
    case SEV_FW_CMD_ACTIVATE:
        FW_ROWS(FW_SEV_WORKS, FW_HANDLE, FW_ACTIVATE_BEGIN, FW_NOT_SENT, FW_ACTIVATE_END);
    case SEV_FW_CMD_ACTIVATE_EX:
        FW_ROWS(FW_SEV_WORKS, FW_BAD(LENGTH, PARAM), FW_HANDLE, FW_ACTIVATE_EX_BEGIN, FW_NOT_SENT,
                FW_ACTIVATE_EX_END);
    case SEV_FW_CMD_DEACTIVATE:
        FW_ROWS(FW_SEV_WORKS, FW_HANDLE, FW_IF(INACTIVE, INACTIVE));
    case SEV_FW_CMD_DECOMMISSION:
        FW_ROWS(FW_SEV_WORKS, FW_HANDLE, FW_IF(ACTIVE, ACTIVE));

    case SEV_FW_CMD_SNP_INIT:
        FW_ROWS(FW_INIT_REST);
    case SEV_FW_CMD_SNP_INIT_EX:
        FW_ROWS(FW_R, FW_INIT_REST);
    case SEV_FW_CMD_SNP_SHUTDOWN:
        FW_ROWS(FW_SEV_UNINIT, FW_DOWN_ALREADY, FW_IF(UNCLEAN, DF_FLUSH_REQUIRED));
    case SEV_FW_CMD_SNP_SHUTDOWN_EX:
        FW_ROWS(FW_SEV_UNINIT, FW_DOWN_ALREADY, FW_IF(UNCLEAN, DF_FLUSH_REQUIRED),
                {GHCB_FW_IF_LENGTH_NOT, SNP_FW_PARAM, SEV_FW_SHUTDOWN_EX_BYTES}, FW_R, FW_IF(X86, PARAM));
    case SEV_FW_CMD_SNP_PLATFORM_STATUS:
        FW_ROWS(FW_BAD(ALIGNMENT, PARAM), {GHCB_FW_IF_BAD_WITH_SNP, SNP_FW_PAGE_STATE, GHCB_FW_BAD_PAGE_STATE});
    case SEV_FW_CMD_SNP_GCTX_CREATE:
        FW_ROWS(FW_R, FW_SNP_UP, FW_IF(SLOT_TAKEN, PAGE_STATE), FW_BAD(PAGE_STATE, PAGE_STATE),
                FW_BAD(PAGE_SIZE, PAGE_SIZE), FW_BAD(MMIO, CONFIG));
    case SEV_FW_CMD_SNP_LAUNCH_START:
        FW_ROWS(FW_SNP_CALL, FW_GUEST_IN(FW_IN(GHCB_FW_SNP_GUEST_INIT)), FW_BAD(POLICY, POLICY));
    case SEV_FW_CMD_SNP_ACTIVATE:
        FW_ROWS(FW_SNP_CALL, FW_SNP_STARTED, FW_IF(PAGES, CONFIG), FW_IF(TWO_SOCKETS, POLICY),
                FW_ACTIVATE_BEGIN, FW_ACTIVATE_END);
    case SEV_FW_CMD_SNP_ACTIVATE_EX:
        FW_ROWS(FW_BAD(LENGTH, PARAM), FW_SNP_CALL, FW_SNP_STARTED, FW_IF_FIRST(PAGES, CONFIG),
                FW_ACTIVATE_EX_BEGIN, FW_IF(CCXS_SOCKETS, POLICY), FW_ACTIVATE_EX_END);
    case SEV_FW_CMD_SNP_LAUNCH_UPDATE:
        FW_ROWS(FW_SNP_CALL, FW_BAD(PAGE_STATE, PAGE_STATE), FW_BAD(PAGE_SIZE, PAGE_SIZE),
                FW_BAD(ALIGNMENT, ADDRESS), FW_BAD(PAGE_LARGE, PAGE_SIZE),
                FW_GUEST_IN(FW_IN(GHCB_FW_SNP_GUEST_LAUNCH)), FW_IF(INACTIVE, INACTIVE),
                FW_BAD(PAGE_OWNER, PAGE_OWNER));
    case SEV_FW_CMD_SNP_LAUNCH_FINISH:
        FW_ROWS(FW_SNP_CALL, FW_GUEST_IN(FW_IN(GHCB_FW_SNP_GUEST_LAUNCH)), FW_IF(IMAGE, GUEST_STATE),
                FW_IF(INACTIVE, INACTIVE), FW_BAD(DIGEST, MEASUREMENT), FW_BAD(POLICY, POLICY),
                FW_BAD(SIGNATURE, SIGNATURE));
    case SEV_FW_CMD_SNP_DECOMMISSION:
        FW_ROWS(FW_SNP_CALL, FW_BAD(PAGE_STATE, GUEST_INVALID));
    case SEV_FW_CMD_SNP_GUEST_STATUS:
        FW_ROWS(FW_SNP_CALL, FW_BAD(PAGE_STATE, PAGE_STATE));
    case SEV_FW_CMD_SNP_GUEST_REQUEST: /* of a message's guest the answer in the message tells */
        FW_ROWS(FW_SNP_CALL, FW_BAD(PAGE_STATE, PAGE_STATE), FW_BAD(PAGE_SIZE, PAGE_SIZE),
                FW_GUEST_IN(FW_IN(GHCB_FW_SNP_GUEST_RUNNING)), FW_BAD(HEADER, PARAM),
                FW_BAD(SEQUENCE, AEAD_OVERFLOW), FW_IF(TARGET_NOT, OK));
    case SEV_FW_CMD_SNP_DBG_DECRYPT:
        FW_ROWS(FW_SNP_CALL, FW_DEBUG_PAGE);
    case SEV_FW_CMD_SNP_DBG_ENCRYPT: /* the platform's state first */
        FW_ROWS(FW_SNP_UP, FW_R, FW_CONTEXT, FW_DEBUG_PAGE);
    case SEV_FW_CMD_SNP_PAGE_SWAP_OUT: /* (A) it looks at an entry, too */
    case SEV_FW_CMD_SNP_PAGE_SWAP_IN:
        FW_ROWS(FW_SNP_CALL, FW_BAD(METADATA_ALIGNMENT, PARAM), FW_BAD(OVERLAP, PARAM),
                FW_BAD(METADATA_STATE, PAGE_STATE), FW_BAD(METADATA_OWNER, PAGE_OWNER),
                FW_BAD(PAGE_SIZE, PAGE_SIZE), FW_SNP_STARTED, FW_IF(INACTIVE, INACTIVE),
                FW_BAD(METADATA_ENTRY, METADATA_ENTRY), FW_BAD(PAGE_STATE, PAGE_STATE),
                FW_BAD(PAGE_OWNER, PAGE_OWNER), FW_BAD(COUNTER, AEAD_OVERFLOW));
    case SEV_FW_CMD_SNP_PAGE_MOVE:
        FW_ROWS(FW_SNP_CALL, FW_BAD(PAGE_SIZE, PAGE_SIZE), FW_SNP_STARTED /* (A) */,
                FW_IF(INACTIVE, INACTIVE), FW_BAD(PAGE_STATE, PAGE_STATE), FW_BAD(PAGE_OWNER, PAGE_OWNER));
    case SEV_FW_CMD_SNP_PAGE_MD_INIT:
        FW_ROWS(FW_SNP_CALL, FW_BAD(PAGE_STATE, PAGE_STATE), FW_SNP_STARTED /* (A) */);
    case SEV_FW_CMD_SNP_PAGE_SET_STATE:
        FW_ROWS(FW_BAD(LENGTH, LENGTH), FW_R, FW_SNP_UP, FW_BAD(PAGE_STATE, PAGE_STATE),
                FW_BAD(PAGE_SIZE, PAGE_SIZE));
    case SEV_FW_CMD_SNP_PAGE_RECLAIM:
        FW_ROWS(FW_R, FW_SNP_UP, FW_BAD(ADDRESS, ADDRESS), FW_BAD(PAGE_SIZE, PAGE_SIZE),
                FW_BAD(ALIGNMENT, ADDRESS), FW_BAD(PAGE_STATE, PAGE_STATE));
    case SEV_FW_CMD_SNP_PAGE_UNSMASH:
        FW_ROWS(FW_R, FW_BAD(ALIGNMENT, PARAM), FW_SNP_UP, FW_BAD(OVERLAP, ADDRESS),
                FW_BAD(PAGE_STATE, PAGE_STATE));

    case SEV_FW_CMD_DOWNLOAD_FIRMWARE:
    case SEV_FW_CMD_RING_BUFFER:
    case SEV_FW_CMD_SWAP_OUT:
    case SEV_FW_CMD_SWAP_IN:
    case SEV_FW_CMD_SNP_CONFIG:
    case SEV_FW_CMD_SNP_DOWNLOAD_FIRMWARE_EX:
    case SEV_FW_CMD_SNP_COMMIT:
    case SEV_FW_CMD_SNP_VLEK_LOAD:
    case SEV_FW_CMD_TIO_STATUS:
    case SEV_FW_CMD_TIO_INIT:
    case SEV_FW_CMD_TIO_DEV_CREATE:
    case SEV_FW_CMD_TIO_DEV_RECLAIM:
    case SEV_FW_CMD_TIO_DEV_CONNECT:
    case SEV_FW_CMD_TIO_DEV_DISCONNECT:
        return GHCB_FW_ROWS_UNMODELLED;
    default:
        return GHCB_FW_ROWS_UNKNOWN;
    }
}

#undef FW_ROWS
#undef FW_IN
#undef FW_BAD
#undef FW_IF
#undef FW_IF_FIRST
#undef FW_SEV_IN
#undef FW_GUEST_IN
#undef FW_SEV_UNINIT
#undef FW_SEV_UP
#undef FW_SEV_WORKS
#undef FW_SNP_UP
#undef FW_SNP_DOWN
#undef FW_DOWN_ALREADY
#undef FW_HANDLE
#undef FW_CONTEXT
#undef FW_R
#undef FW_SNP_CALL
#undef FW_SNP_STARTED
#undef FW_ACTIVATE_BEGIN
#undef FW_ACTIVATE_END
#undef FW_ACTIVATE_EX_BEGIN
#undef FW_ACTIVATE_EX_END
#undef FW_NOT_SENT
#undef FW_INIT_REST
#undef FW_SEV_STEP
#undef FW_SEV_VMSA
#undef FW_DEBUG_PAGE

/* Legacy commands that write into the page which they came in. */
static inline int ghcb_fw_answers_in_place(uint64_t command)
{
    switch (command) {
    case SEV_FW_CMD_PLATFORM_STATUS:
    case SEV_FW_CMD_GUEST_STATUS:
    case SEV_FW_CMD_LAUNCH_START:
    case SEV_FW_CMD_RECEIVE_START:
    case SEV_FW_CMD_LAUNCH_MEASURE:
    case SEV_FW_CMD_SEND_START:
    case SEV_FW_CMD_SEND_UPDATE_DATA:
    case SEV_FW_CMD_SEND_UPDATE_VMSA:
    case SEV_FW_CMD_PEK_CSR:
    case SEV_FW_CMD_PDH_CERT_EXPORT:
    case SEV_FW_CMD_GET_ID:
    case SEV_FW_CMD_ATTESTATION:
        return 1;
    default:
        return 0;
    }
}

/* What can be wrong with what a command brings, as far as anybody looks at it. */
static inline uint64_t ghcb_fw_bads(uint64_t command)
{
    const ghcb_fw_check_t *rows;
    int n = ghcb_fw_checks(command, &rows);
    uint64_t bads = ghcb_fw_answers_in_place(command) ? GHCB_FW_BAD_BUFFER : 0;

    for (int i = 0; i < n; i++) {
        switch (rows[i].kind) {
        case GHCB_FW_IF_BAD:
        case GHCB_FW_IF_BAD_WITH_SNP:
            bads |= rows[i].arg;
            break;
        case GHCB_FW_IF_RMP:
            bads |= GHCB_FW_BAD_TCB;
            break;
        case GHCB_FW_IF_RMP_BUILD:
            bads |= GHCB_FW_BAD_RMP_BUILD;
            break;
        case GHCB_FW_IF_IN_GUEST:
            bads |= GHCB_FW_BAD_IN_GUEST;
            break;
        case GHCB_FW_IF_LENGTH_NOT:
            bads |= GHCB_FW_BAD_LENGTH;
            break;
        case GHCB_FW_IF_X86:
            bads |= GHCB_FW_BAD_SNP_EN; /* the effect meets it */
            break;
        default:
            break;
        }
    }
    return bads;
}

#endif
