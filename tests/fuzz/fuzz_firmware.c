/* Firmware under any commands: whatever stands in a flow's words it stays inside them, and from
 * power-on every history keeps what an ASID is. */
#include "fuzz.h"

#include <ghcbcore/firmware_reach.h>

enum { MAX_WORDS = 160, MAX_STEPS = 200, THREADS = 4, CCXS = 2, ASIDS = 6, GUESTS = 5 };

/* Any words as a place of a flow, also one that is laid out wrongly. */
static void any_place(input_t *in)
{
    const uint64_t options = take64(in);
    const size_t n_words = GHCB_FW_REACH_SLICE + take8(in) % MAX_WORDS, n_others = take8(in) % 4;
    uint64_t *words = malloc(n_words * sizeof(*words));
    uint64_t *others = malloc((n_others + 1) * GHCB_FW_REACH_SLICE * sizeof(*others));
    const ghcb_place_t place = {.kind = GHCB_PLACE_FIRMWARE, .options = (uint32_t)options,
                                .n_words = (uint32_t)n_words, .n_slice = GHCB_FW_REACH_SLICE};
    const ghcb_reach_t at = {.place = &place, .words = words, .own = options >> 63 ? others : words,
                             .others = others, .n_others = n_others, .stride = GHCB_FW_REACH_SLICE};

    MUST(words && others);
    take(in, words, n_words * sizeof(*words));
    take(in, others, (n_others + 1) * GHCB_FW_REACH_SLICE * sizeof(*others));
    while (in->left) {
        ghcb_reach_op_t op = {.code = take8(in) % (GHCB_FW_REACH_SEAT + 2), .local = take8(in) & 1};

        take(in, op.arg, sizeof(op.arg));
        ghcb_firmware_reach(&at, &op, take8(in));
    }
    free(words);
    free(others);
}

/* What holds in every state. */
static void look(const ghcb_fw_t *fw)
{
    const uint64_t all = ghcb_fw_all_ccxs(fw);
    uint64_t owned[ASIDS + 1] = {0};

    for (uint64_t i = 0; i < fw->n_guests; i++) {
        const uint64_t guest = fw->guests[i], asid = GHCB_FW_GET(guest, GUEST_ASID);
        const uint64_t active = GHCB_FW_GET(guest, GUEST_ACTIVE), ccxs = GHCB_FW_GET(guest, GUEST_CCXS);

        MUST((active == GHCB_FW_INACTIVE) == (asid == 0) && asid <= ASIDS);
        if (!asid)
            continue;
        MUST(ccxs && !(ccxs & ~all) && !owned[asid]);
        MUST(ghcb_fw_ccxs_in(fw, *ghcb_fw_cells(fw, asid),
                             active == GHCB_FW_ACTIVE ? GHCB_FW_IN_USE : GHCB_FW_ALLOC)
             == ccxs);
        MUST(fw->keys[asid / 64] >> asid % 64 & 1);
        owned[asid] = 1;
        for (uint64_t t = 0; t < ghcb_fw_n_threads(fw); t++) {
            const uint64_t *thread = ghcb_fw_thread(fw, t);
            const int runs = active == GHCB_FW_ACTIVE && ccxs >> GHCB_FW_GET(*thread, THREAD_CCX) & 1;

            MUST((thread[1 + asid / 64] >> asid % 64 & 1) == !runs);
        }
    }
    for (uint64_t asid = 1; asid <= ASIDS; asid++)
        for (uint64_t t = 0; !owned[asid] && t < ghcb_fw_n_threads(fw); t++)
            MUST(ghcb_fw_thread(fw, t)[1 + asid / 64] >> asid % 64 & 1);
}

/* Commands that get far, and all others now and then. */
static const uint8_t USUAL[] = {
    SEV_FW_CMD_SNP_GCTX_CREATE, SEV_FW_CMD_SNP_LAUNCH_START, SEV_FW_CMD_SNP_ACTIVATE,
    SEV_FW_CMD_SNP_ACTIVATE_EX, SEV_FW_CMD_SNP_LAUNCH_FINISH, SEV_FW_CMD_SNP_DECOMMISSION,
    SEV_FW_CMD_DF_FLUSH, SEV_FW_CMD_SNP_SHUTDOWN_EX, SEV_FW_CMD_SNP_INIT_EX, SEV_FW_CMD_INIT,
    SEV_FW_CMD_SHUTDOWN, SEV_FW_CMD_LAUNCH_START, SEV_FW_CMD_LAUNCH_MEASURE,
    SEV_FW_CMD_LAUNCH_FINISH, SEV_FW_CMD_ACTIVATE, SEV_FW_CMD_ACTIVATE_EX, SEV_FW_CMD_DEACTIVATE,
    SEV_FW_CMD_DECOMMISSION, SEV_FW_CMD_RECEIVE_START, SEV_FW_CMD_RECEIVE_FINISH,
    SEV_FW_CMD_SEND_START, SEV_FW_CMD_SEND_FINISH, SEV_FW_CMD_SNP_GUEST_REQUEST};

static uint64_t a_command(input_t *in)
{
    const uint8_t byte = take8(in);

    return byte >= 0xf0 ? take8(in) : USUAL[byte % sizeof(USUAL)];
}

static void any_history(input_t *in)
{
    const int started = take8(in) & 1; /* SNP is initialised and all is CLEAN */
    uint64_t state = started ? GHCB_FW_BIT(SNP) | GHCB_FW_BIT(RMP) | GHCB_FW_BIT(IOMMU)
                             : GHCB_FW_BIT(REBUILD);
    uint64_t keys = 0, guests[GUESTS] = {0}, cells[ASIDS] = {0};
    uint64_t threads[THREADS][2];
    const ghcb_fw_t fw = {
        .state = &state, .keys = &keys, .guests = guests, .cells = cells, .boot = threads[0],
        .others = threads[1], .n_others = THREADS - 1, .stride = 2, .n_guests = GUESTS,
        .n_ccxs = CCXS, .max_asid = ASIDS, .first_sev_asid = ASIDS / 2 + 1, .n_bitmap = 1,
        .rules = take8(in) & 7};

    for (unsigned i = 0; i < THREADS; i++) {
        threads[i][0] = GHCB_FW_BIT(THREAD_SNP_EN) | (uint64_t)(i % CCXS) << GHCB_FW_THREAD_CCX_SHIFT;
        if (i < CCXS)
            threads[i][0] |= GHCB_FW_BIT(THREAD_FIRST);
        ghcb_fw_invalidate_all(&fw, threads[i]);
    }
    for (unsigned n = 0; in->left && n < MAX_STEPS; n++) {
        const uint8_t kind = take8(in);
        ghcb_fw_step_t step = {.step = kind % GHCB_FW_STEP_END, .thread = kind / 8 % (THREADS + 1)};
        ghcb_fw_answer_t answer;
        int was_clean, was_up;

        if (kind & 0x80 && step.step != GHCB_FW_STEP_COMMAND)
            step.thread = GHCB_FW_ALL_THREADS;
        if (step.step >= GHCB_FW_STEP_VMRUN && step.thread == GHCB_FW_ALL_THREADS)
            step.thread = 0; /* what `Machines.apply` refuses */
        step.op = (ghcb_fw_op_t){.command = a_command(in), .guest = take8(in) % (GUESTS + 1),
                                 .asid = take8(in) % (ASIDS + 2), .ccxs = take8(in) & 7,
                                 .options = take8(in) | (kind & 0x40 ? GHCB_FW_OPTION_IMAGE : 0),
                                 .length = SEV_FW_SHUTDOWN_EX_BYTES,
                                 .target = kind % GUESTS};
        was_up = (int)GHCB_FW_HAS(state, SNP);
        was_clean = ghcb_fw_all_clean(&fw) && !GHCB_FW_HAS(state, REBUILD);
        ghcb_fw_step(&fw, &step, &answer);
        if (step.step != GHCB_FW_STEP_COMMAND)
            continue;
        if (GHCB_FW_HAS(state, SNP)) /* without it SEV SHUTDOWN leaves cells behind */
            look(&fw);
        if (answer.status != SNP_FW_OK)
            continue;
        if (step.op.command == SEV_FW_CMD_DF_FLUSH)
            for (unsigned i = 0; i < ASIDS + THREADS; i++)
                MUST(i < ASIDS ? !ghcb_fw_ccxs_in(&fw, cells[i], GHCB_FW_DIRTY)
                               : GHCB_FW_HAS(threads[i - ASIDS][0], THREAD_DONE));
        if (step.op.command == SEV_FW_CMD_SNP_SHUTDOWN_EX)
            MUST(!GHCB_FW_HAS(state, SNP) && (was_clean || !was_up));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input_t in = {data, size};

    if (take8(&in) & 1)
        any_place(&in);
    else
        any_history(&in);
    return 0;
}
