/* One command: which check refuses it, and what it changes if none does.
 *
 * Source: AMD-ASPFW sev_plat.c, sev_guest.c, sev_mcmd.c (Genoa, Aug 2023).
 */
#ifndef GHCBCORE_FIRMWARE_COMMAND_H
#define GHCBCORE_FIRMWARE_COMMAND_H

#include <ghcbcore/firmware_checks.h>

/* The guest in a slot; 0 if there is none or no such slot. */
static inline uint64_t ghcb_fw_guest(const ghcb_fw_t *fw, uint64_t slot)
{
    return slot < fw->n_guests ? fw->guests[slot] : 0;
}

static inline int ghcb_fw_any_thread(const ghcb_fw_t *fw, uint64_t mask, uint64_t value)
{
    for (uint64_t i = 0; i < ghcb_fw_n_threads(fw); i++)
        if ((*ghcb_fw_thread(fw, i) & mask) != value && mask)
            return 1;
    return 0;
}

/* SEV-ES and SNP below `first_sev_asid`; with ciphertext hiding SNP up to the limit and SEV-ES above. */
static inline int ghcb_fw_is_asid_of_type(const ghcb_fw_t *fw, uint64_t asid, uint64_t type)
{
    uint64_t limit = GHCB_FW_GET(*fw->state, LIMIT);

    if (type == GHCB_FW_TYPE_SEV)
        return asid >= fw->first_sev_asid;
    if (asid >= fw->first_sev_asid)
        return 0;
    return !limit || (type == GHCB_FW_TYPE_SNP ? asid <= limit : asid > limit);
}

/* Whether a guest that shall stay on one socket gets CCXs of both. */
static inline int ghcb_fw_spans_sockets(const ghcb_fw_t *fw, uint64_t guest, uint64_t ccxs)
{
    uint64_t all = ccxs | GHCB_FW_GET(guest, GUEST_CCXS), lower = (1ULL << (fw->n_ccxs + 1) / 2) - 1;

    return GHCB_FW_HAS(guest, GUEST_SOCKET) && fw->rules & GHCB_FW_RULE_TWO_SOCKETS && all & lower
        && all & ~lower;
}

static inline int ghcb_fw_is_target(const ghcb_fw_t *fw, const ghcb_fw_op_t *op)
{
    uint64_t target = ghcb_fw_guest(fw, op->target), state = GHCB_FW_GET(target, GUEST_STATE);

    if (!ghcb_fw_is_snp(target))
        return 0;
    if (op->options & GHCB_FW_OPTION_IMPORT)
        return state == GHCB_FW_SNP_GUEST_INIT;
    return state == GHCB_FW_SNP_GUEST_LAUNCH && GHCB_FW_HAS(target, GUEST_IMAGE);
}

/* Whether a check that asks for an ASID fails. */
static inline int ghcb_fw_asid_fails(
    const ghcb_fw_t *fw, const ghcb_fw_op_t *op, const ghcb_fw_check_t *check, uint64_t guest)
{
    uint64_t all = ghcb_fw_all_ccxs(fw), active = GHCB_FW_GET(guest, GUEST_ACTIVE), cells, owned;

    if (check->kind == GHCB_FW_IF_CCXS_NONE)
        return !op->ccxs || op->ccxs & ~all;
    if (check->arg == GHCB_FW_FIRST && active != GHCB_FW_INACTIVE)
        return 0;
    if (!ghcb_fw_is_asid(fw, op->asid))
        return 1;
    cells = *ghcb_fw_cells(fw, op->asid);
    owned = ghcb_fw_ccxs_in(fw, cells, GHCB_FW_ALLOC) | ghcb_fw_ccxs_in(fw, cells, GHCB_FW_IN_USE);
    switch (check->kind) {
    case GHCB_FW_IF_ASID_TYPE:
        return !ghcb_fw_is_asid_of_type(fw, op->asid, GHCB_FW_GET(guest, GUEST_TYPE));
    case GHCB_FW_IF_ASID_OWNED:
        return owned != 0;
    case GHCB_FW_IF_ASID_DIRTY:
        return ghcb_fw_ccxs_in(fw, cells, GHCB_FW_DIRTY) != 0;
    case GHCB_FW_IF_ASID_CELLS:
        return ghcb_fw_ccxs_in(fw, cells, GHCB_FW_CLEAN) != all;
    case GHCB_FW_IF_ASID_OTHER:
        return active != GHCB_FW_INACTIVE && GHCB_FW_GET(guest, GUEST_ASID) != op->asid;
    case GHCB_FW_IF_CCXS_DIRTY:
        return (ghcb_fw_ccxs_in(fw, cells, GHCB_FW_DIRTY) & op->ccxs) != 0;
    default: /* GHCB_FW_IF_ASID_RANGE */
        return 0;
    }
}

static inline int ghcb_fw_fails(const ghcb_fw_t *fw, const ghcb_fw_op_t *op, const ghcb_fw_check_t *check)
{
    uint64_t state = *fw->state, guest = ghcb_fw_guest(fw, op->guest), options = op->options;

    switch (check->kind) {
    case GHCB_FW_IF_BAD:
        return (op->bad & check->arg) != 0;
    case GHCB_FW_IF_BAD_WITH_SNP:
        return (op->bad & check->arg) && GHCB_FW_HAS(state, SNP);
    case GHCB_FW_IF_SEV_NOT:
        return !(check->arg >> GHCB_FW_GET(state, SEV) & 1);
    case GHCB_FW_IF_SNP_NOT:
        return !(check->arg >> GHCB_FW_HAS(state, SNP) & 1);
    case GHCB_FW_IF_NO_SEV_GUEST:
        return !ghcb_fw_is_sev(guest);
    case GHCB_FW_IF_NO_SNP_GUEST:
        return !ghcb_fw_is_snp(guest);
    case GHCB_FW_IF_SLOT_TAKEN:
        return op->guest >= fw->n_guests || guest;
    case GHCB_FW_IF_GUEST_NOT:
        return !(check->arg >> GHCB_FW_GET(guest, GUEST_STATE) & 1);
    case GHCB_FW_IF_INACTIVE:
        return GHCB_FW_GET(guest, GUEST_ACTIVE) == GHCB_FW_INACTIVE;
    case GHCB_FW_IF_ACTIVE:
        return GHCB_FW_GET(guest, GUEST_ACTIVE) != GHCB_FW_INACTIVE;
    case GHCB_FW_IF_NO_ES_GUEST:
        return GHCB_FW_GET(guest, GUEST_TYPE) != GHCB_FW_TYPE_ES;
    case GHCB_FW_IF_IMAGE:
        return (int)GHCB_FW_HAS(guest, GUEST_IMAGE);
    case GHCB_FW_IF_CCXS_SOCKETS:
        return ghcb_fw_spans_sockets(fw, guest, op->ccxs);
    case GHCB_FW_IF_NO_DEBUG:
        return !GHCB_FW_HAS(guest, GUEST_DEBUG);
    case GHCB_FW_IF_NO_ES:
        return op->policy >> SEV_POLICY_ES & 1 && !GHCB_FW_HAS(state, ES);
    case GHCB_FW_IF_TWO_SOCKETS:
        return GHCB_FW_HAS(guest, GUEST_SOCKET) && fw->rules & GHCB_FW_RULE_TWO_SOCKETS;
    case GHCB_FW_IF_PAGES:
        return op->pages
            && (check->arg != GHCB_FW_FIRST || GHCB_FW_GET(guest, GUEST_ACTIVE) == GHCB_FW_INACTIVE);
    case GHCB_FW_IF_UNCLEAN:
        return !ghcb_fw_all_clean(fw);
    case GHCB_FW_IF_LENGTH_NOT:
        return op->length != check->arg || op->bad & GHCB_FW_BAD_LENGTH;
    case GHCB_FW_IF_X86:
        return options & GHCB_FW_OPTION_X86
            && (!(options & GHCB_FW_OPTION_IOMMU) || fw->rules & GHCB_FW_RULE_NO_X86);
    case GHCB_FW_IF_RMP:
        return !(options & GHCB_FW_OPTION_INIT_RMP)
            && (!GHCB_FW_HAS(state, RMP) || op->bad & GHCB_FW_BAD_TCB);
    case GHCB_FW_IF_LIST:
        return options & GHCB_FW_OPTION_LIST && !(options & GHCB_FW_OPTION_INIT_RMP);
    case GHCB_FW_IF_SNP_EN_MISSING:
        return ghcb_fw_any_thread(fw, GHCB_FW_BIT(THREAD_SNP_EN), GHCB_FW_BIT(THREAD_SNP_EN));
    case GHCB_FW_IF_SNP_EN_NO_RMP:
        return !GHCB_FW_HAS(state, RMP)
            && !ghcb_fw_any_thread(fw, GHCB_FW_BIT(THREAD_SNP_EN), GHCB_FW_BIT(THREAD_SNP_EN));
    case GHCB_FW_IF_IN_GUEST:
        return op->bad & GHCB_FW_BAD_IN_GUEST
            || ghcb_fw_any_thread(
                fw, ((1ULL << GHCB_FW_THREAD_RUNS_WIDTH) - 1) << GHCB_FW_THREAD_RUNS_SHIFT, 0);
    case GHCB_FW_IF_HSAVE:
        return options & GHCB_FW_OPTION_INIT_RMP && ghcb_fw_any_thread(fw, GHCB_FW_BIT(THREAD_HSAVE), 0);
    case GHCB_FW_IF_RMP_BUILD:
        return options & GHCB_FW_OPTION_INIT_RMP && op->bad & GHCB_FW_BAD_RMP_BUILD;
    case GHCB_FW_IF_OWNED:
        return (int)GHCB_FW_HAS(state, OWNED);
    case GHCB_FW_IF_TARGET_NOT:
        return options & (GHCB_FW_OPTION_IMPORT | GHCB_FW_OPTION_ABSORB) && !ghcb_fw_is_target(fw, op);
    default:
        return ghcb_fw_asid_fails(fw, op, check, guest);
    }
}

/* The check that answers, or a null pointer. */
static inline const ghcb_fw_check_t *ghcb_fw_refusal(
    const ghcb_fw_t *fw, const ghcb_fw_op_t *op, const ghcb_fw_check_t *rows, int n)
{
    for (int i = 0; i < n; i++)
        if (ghcb_fw_fails(fw, op, &rows[i]))
            return &rows[i];
    return 0;
}

static inline void ghcb_fw_new_guest(const ghcb_fw_t *fw, const ghcb_fw_op_t *op, uint64_t state)
{
    uint64_t guest = 0, is_es = op->policy >> SEV_POLICY_ES & 1;

    GHCB_FW_SET(&guest, GUEST_STATE, state);
    GHCB_FW_SET(&guest, GUEST_TYPE, is_es ? GHCB_FW_TYPE_ES : GHCB_FW_TYPE_SEV);
    if (!(op->policy >> SEV_POLICY_NODBG & 1))
        guest |= GHCB_FW_BIT(GUEST_DEBUG);
    fw->guests[op->guest] = guest;
    GHCB_FW_SET(fw->state, SEV, GHCB_FW_SEV_WORKING);
}

static inline void ghcb_fw_sev_shutdown(const ghcb_fw_t *fw)
{
    int snp = (int)GHCB_FW_HAS(*fw->state, SNP);

    for (uint64_t i = 0; i < fw->n_guests; i++) {
        if (!ghcb_fw_is_sev(fw->guests[i]))
            continue;
        if (snp)
            ghcb_fw_deactivate(fw, &fw->guests[i]);
        fw->guests[i] = 0;
    }
    if (!snp)
        for (uint64_t i = 0; i < ghcb_fw_n_threads(fw); i++)
            ghcb_fw_invalidate_all(fw, ghcb_fw_thread(fw, i));
    GHCB_FW_SET(fw->state, SEV, GHCB_FW_SEV_UNINIT);
    *fw->state &= ~GHCB_FW_BIT(ES);
}

static inline void ghcb_fw_snp_init(const ghcb_fw_t *fw, const ghcb_fw_op_t *op)
{
    int builds = op->command == SEV_FW_CMD_SNP_INIT || op->options & GHCB_FW_OPTION_INIT_RMP;

    if (builds) {
        *fw->state |= GHCB_FW_BIT(RMP) | GHCB_FW_BIT(IOMMU);
        for (uint64_t i = 0; i < fw->n_guests; i++) /* (A) contexts are pages of the old table */
            if (ghcb_fw_is_snp(fw->guests[i]))
                fw->guests[i] = 0;
    }
    ghcb_fw_reset_asids(fw);
    *fw->state |= GHCB_FW_BIT(SNP);
    GHCB_FW_SET(fw->state, LIMIT, op->options & GHCB_FW_OPTION_HIDING ? op->limit : 0);
}

static inline uint64_t ghcb_fw_snp_shutdown(const ghcb_fw_t *fw, const ghcb_fw_op_t *op)
{
    uint64_t options = op->command == SEV_FW_CMD_SNP_SHUTDOWN_EX ? op->options : 0;

    *fw->state &= ~GHCB_FW_BIT(SNP);
    GHCB_FW_SET(fw->state, LIMIT, 0);
    if (!(options & GHCB_FW_OPTION_IOMMU))
        return SNP_FW_OK;
    *fw->state &= ~(GHCB_FW_BIT(RMP) | GHCB_FW_BIT(IOMMU));
    for (uint64_t i = 0; i < fw->n_bitmap; i++)
        fw->keys[i] = 0;
    if (options & GHCB_FW_OPTION_X86) {
        if (op->bad & GHCB_FW_BAD_SNP_EN) /* the last step, and nothing is built again */
            return SNP_FW_SHUTDOWN_INCOMPLETE;
        for (uint64_t i = 0; i < ghcb_fw_n_threads(fw); i++)
            *ghcb_fw_thread(fw, i) &= ~GHCB_FW_BIT(THREAD_SNP_EN);
    }
    *fw->state |= GHCB_FW_BIT(REBUILD);
    return SNP_FW_OK;
}

static inline void ghcb_fw_decommission(const ghcb_fw_t *fw, const ghcb_fw_op_t *op)
{
    fw->guests[op->guest] = 0;
    for (uint64_t i = 0; i < fw->n_guests; i++)
        if (ghcb_fw_is_sev(fw->guests[i]))
            return;
    GHCB_FW_SET(fw->state, SEV, GHCB_FW_SEV_INIT);
}

static inline void ghcb_fw_snp_launch_start(uint64_t *guest, uint64_t policy, uint64_t options)
{
    GHCB_FW_SET(guest, GUEST_STATE, GHCB_FW_SNP_GUEST_LAUNCH);
    if (policy >> SNP_POLICY_DEBUG & 1)
        *guest |= GHCB_FW_BIT(GUEST_DEBUG);
    if (policy >> SNP_POLICY_SINGLE_SOCKET & 1)
        *guest |= GHCB_FW_BIT(GUEST_SOCKET);
    if (options & GHCB_FW_OPTION_IMAGE)
        *guest |= GHCB_FW_BIT(GUEST_IMAGE);
}

static inline void ghcb_fw_activate_command(
    const ghcb_fw_t *fw, const ghcb_fw_op_t *op, uint64_t *guest, uint64_t ccxs)
{
    uint64_t state = GHCB_FW_GET(*guest, GUEST_STATE);
    int runs = ghcb_fw_is_snp(*guest)
        ? state == GHCB_FW_SNP_GUEST_RUNNING
        : state == GHCB_FW_GUEST_RUNNING || state == GHCB_FW_GUEST_SUPDATE;

    ghcb_fw_activate(fw, guest, op->asid, ccxs, runs);
}

static inline void ghcb_fw_enter(const ghcb_fw_t *fw, uint64_t *guest, uint64_t state)
{
    GHCB_FW_SET(guest, GUEST_STATE, state);
    ghcb_fw_begin(fw, guest);
}

/* What a command does that no check has refused. */
static inline uint64_t ghcb_fw_take_effect(const ghcb_fw_t *fw, const ghcb_fw_op_t *op)
{
    uint64_t *guest = op->guest < fw->n_guests ? &fw->guests[op->guest] : 0;

    switch (op->command) {
    case SEV_FW_CMD_DF_FLUSH:
    case SEV_FW_CMD_SNP_DF_FLUSH:
        return ghcb_fw_df_flush(fw);
    case SEV_FW_CMD_INIT:
    case SEV_FW_CMD_INIT_EX:
        if (!GHCB_FW_HAS(*fw->state, SNP))
            ghcb_fw_reset_asids(fw);
        GHCB_FW_SET(fw->state, SEV, GHCB_FW_SEV_INIT);
        if (op->options & GHCB_FW_OPTION_ES)
            *fw->state |= GHCB_FW_BIT(ES);
        break;
    case SEV_FW_CMD_SHUTDOWN:
        ghcb_fw_sev_shutdown(fw);
        break;
    case SEV_FW_CMD_PLATFORM_RESET: /* (A) with these two the platform is its own again */
    case SEV_FW_CMD_PEK_GEN:
        *fw->state &= ~GHCB_FW_BIT(OWNED);
        break;
    case SEV_FW_CMD_PEK_CERT_IMPORT:
        *fw->state |= GHCB_FW_BIT(OWNED);
        break;
    case SEV_FW_CMD_SNP_INIT:
    case SEV_FW_CMD_SNP_INIT_EX:
        ghcb_fw_snp_init(fw, op);
        break;
    case SEV_FW_CMD_SNP_SHUTDOWN:
    case SEV_FW_CMD_SNP_SHUTDOWN_EX:
        return ghcb_fw_snp_shutdown(fw, op);
    default:
        break;
    }
    if (!guest) /* what follows has checked that there is one */
        return SNP_FW_OK;
    switch (op->command) {
    case SEV_FW_CMD_LAUNCH_START:
        ghcb_fw_new_guest(fw, op, GHCB_FW_GUEST_LUPDATE);
        break;
    case SEV_FW_CMD_RECEIVE_START:
        ghcb_fw_new_guest(fw, op, GHCB_FW_GUEST_RUPDATE);
        break;
    case SEV_FW_CMD_LAUNCH_MEASURE:
        GHCB_FW_SET(guest, GUEST_STATE, GHCB_FW_GUEST_LSECRET);
        break;
    case SEV_FW_CMD_LAUNCH_FINISH:
    case SEV_FW_CMD_RECEIVE_FINISH:
        ghcb_fw_enter(fw, guest, GHCB_FW_GUEST_RUNNING);
        break;
    case SEV_FW_CMD_SEND_START:
        GHCB_FW_SET(guest, GUEST_STATE, GHCB_FW_GUEST_SUPDATE);
        break;
    case SEV_FW_CMD_SEND_FINISH:
        GHCB_FW_SET(guest, GUEST_STATE, GHCB_FW_GUEST_SENT);
        break;
    case SEV_FW_CMD_SEND_CANCEL:
        GHCB_FW_SET(guest, GUEST_STATE, GHCB_FW_GUEST_RUNNING);
        break;
    case SEV_FW_CMD_ACTIVATE:
    case SEV_FW_CMD_SNP_ACTIVATE:
        ghcb_fw_activate_command(fw, op, guest, ghcb_fw_all_ccxs(fw));
        break;
    case SEV_FW_CMD_ACTIVATE_EX:
    case SEV_FW_CMD_SNP_ACTIVATE_EX:
        ghcb_fw_activate_command(fw, op, guest, op->ccxs);
        break;
    case SEV_FW_CMD_DEACTIVATE:
        ghcb_fw_deactivate(fw, guest);
        break;
    case SEV_FW_CMD_DECOMMISSION:
        ghcb_fw_decommission(fw, op);
        break;
    case SEV_FW_CMD_SNP_GCTX_CREATE:
        *guest = 0;
        GHCB_FW_SET(guest, GUEST_TYPE, GHCB_FW_TYPE_SNP);
        break;
    case SEV_FW_CMD_SNP_LAUNCH_START:
        ghcb_fw_snp_launch_start(guest, op->policy, op->options);
        break;
    case SEV_FW_CMD_SNP_LAUNCH_FINISH:
        ghcb_fw_enter(fw, guest, GHCB_FW_SNP_GUEST_RUNNING);
        break;
    case SEV_FW_CMD_SNP_GUEST_REQUEST:
        if (op->options & (GHCB_FW_OPTION_IMPORT | GHCB_FW_OPTION_ABSORB)) {
            guest = &fw->guests[op->target]; /* a pending activation of it stays pending */
            GHCB_FW_SET(guest, GUEST_STATE, GHCB_FW_SNP_GUEST_RUNNING);
            *guest &= ~GHCB_FW_BIT(GUEST_IMAGE);
        }
        break;
    case SEV_FW_CMD_SNP_DECOMMISSION:
        ghcb_fw_deactivate(fw, guest);
        *guest = 0;
        break;
    default:
        break;
    }
    return SNP_FW_OK;
}

/* Give one command. Returns its status, or GHCB_FW_UNMODELLED; `why` gets the kind of the check that
 * answered and what it asked, 0 if none did. */
static inline uint64_t ghcb_fw_command(const ghcb_fw_t *fw, const ghcb_fw_op_t *op, ghcb_fw_check_t *why)
{
    const ghcb_fw_check_t *rows, *refusal;
    ghcb_fw_op_t asked = *op;
    uint64_t status;
    int n;

    *why = (ghcb_fw_check_t){0};
    if (asked.command == SEV_FW_CMD_SNP_INIT)
        asked.options = GHCB_FW_OPTION_INIT_RMP; /* (A) the older command always builds the RMP */
    n = ghcb_fw_checks(asked.command, &rows);
    if (n == GHCB_FW_ROWS_UNMODELLED)
        return GHCB_FW_UNMODELLED;
    if (GHCB_FW_HAS(*fw->state, REBUILD)) {
        ghcb_fw_all_dirty(fw);
        *fw->state &= ~GHCB_FW_BIT(REBUILD);
    }
    if (n == GHCB_FW_ROWS_UNKNOWN)
        return SNP_FW_COMMAND;
    if (op->bad & GHCB_FW_BAD_BUFFER && GHCB_FW_HAS(*fw->state, SNP)
        && ghcb_fw_answers_in_place(op->command)) {
        *why = (ghcb_fw_check_t){GHCB_FW_IF_BAD_WITH_SNP, SNP_FW_PAGE_STATE, GHCB_FW_BAD_BUFFER};
        return SNP_FW_PAGE_STATE
            + (fw->rules & GHCB_FW_RULE_GENOA_2023 ? GHCB_FW_STATUS_PREFIXED : 0);
    }
    refusal = ghcb_fw_refusal(fw, &asked, rows, n);
    if (refusal) {
        *why = *refusal;
        return refusal->status;
    }
    status = ghcb_fw_take_effect(fw, &asked);
    if (status == SNP_FW_WBINVD_REQUIRED)
        *why = (ghcb_fw_check_t){GHCB_FW_IF_NOT_DONE, (uint32_t)status, 0};
    else if (status)
        *why = (ghcb_fw_check_t){GHCB_FW_IF_FAILED, (uint32_t)status, GHCB_FW_BAD_SNP_EN};
    return status;
}

#endif
