/* Firmware as a place of a flow: its words in a record, its operations in an instruction.
 *
 * Each CPU is one hardware thread with GHCB_FW_REACH_SLICE words: its state, and the ASIDs that it
 * may not run. In the global part stand, after those of the boot CPU, the platform's word, one with
 * the keys, then the guests and the cells of ASIDs 1 to `max_asid`, which is at most 63.
 */
#ifndef GHCBCORE_FIRMWARE_REACH_H
#define GHCBCORE_FIRMWARE_REACH_H

#include <ghcbcore/firmware_step.h>
#include <ghcbcore/reach.h>

/* cffi: begin */
#define GHCB_FW_REACH_SLICE 2
#define GHCB_FW_REACH_ONCE 2 /* and a word for each guest and ASID */
#define GHCB_FW_REACH_LAST_ASID 63
#define GHCB_FW_REACH_LAST_GUEST 62

/* ghcb_reach_op_t.code, beside GHCB_FW_STEP_* */
#define GHCB_FW_REACH_SEAT 16 /* the CPU with the number `value` takes its seat: arg[0] CPUs to a CCX */

/* ghcb_place_t.options */
#define GHCB_FW_REACH_GUESTS_SHIFT 0
#define GHCB_FW_REACH_GUESTS_WIDTH 6
#define GHCB_FW_REACH_ASIDS_SHIFT 6
#define GHCB_FW_REACH_ASIDS_WIDTH 6
#define GHCB_FW_REACH_CCXS_SHIFT 12
#define GHCB_FW_REACH_CCXS_WIDTH 6
#define GHCB_FW_REACH_FIRST_SEV_SHIFT 18
#define GHCB_FW_REACH_FIRST_SEV_WIDTH 7
#define GHCB_FW_REACH_RULES_SHIFT 25
#define GHCB_FW_REACH_RULES_WIDTH 3

/* arg[0] of a command; of VMRUN the ASID alone */
#define GHCB_FW_REACH_COMMAND_SHIFT 0
#define GHCB_FW_REACH_COMMAND_WIDTH 8
#define GHCB_FW_REACH_GUEST_SHIFT 8 /* the instruction's value is added */
#define GHCB_FW_REACH_GUEST_WIDTH 8
#define GHCB_FW_REACH_ASID_SHIFT 16
#define GHCB_FW_REACH_ASID_WIDTH 8
#define GHCB_FW_REACH_TARGET_SHIFT 24
#define GHCB_FW_REACH_TARGET_WIDTH 8
#define GHCB_FW_REACH_CCXSET_SHIFT 32
#define GHCB_FW_REACH_CCXSET_WIDTH 32
/* arg[1] is `bad`; arg[2] of a command */
#define GHCB_FW_REACH_OPTIONS_SHIFT 0
#define GHCB_FW_REACH_OPTIONS_WIDTH 12
#define GHCB_FW_REACH_LENGTH_SHIFT 12
#define GHCB_FW_REACH_LENGTH_WIDTH 8
#define GHCB_FW_REACH_LIMIT_SHIFT 20
#define GHCB_FW_REACH_LIMIT_WIDTH 8
#define GHCB_FW_REACH_PAGES_SHIFT 28 /* whether there are any */
#define GHCB_FW_REACH_PAGES_WIDTH 1
#define GHCB_FW_REACH_POLICY_SHIFT 32
#define GHCB_FW_REACH_POLICY_WIDTH 32
/* cffi: end */

static inline void ghcb_fw_reach_op(const ghcb_reach_op_t *from, uint64_t value, ghcb_fw_op_t *op)
{
    uint64_t first = from->arg[0], rest = from->arg[2];

    op->command = GHCB_FW_GET(first, REACH_COMMAND);
    op->guest = GHCB_FW_GET(first, REACH_GUEST) + value;
    op->asid = GHCB_FW_GET(first, REACH_ASID);
    op->target = GHCB_FW_GET(first, REACH_TARGET);
    op->ccxs = GHCB_FW_GET(first, REACH_CCXSET);
    op->bad = from->arg[1];
    op->options = GHCB_FW_GET(rest, REACH_OPTIONS);
    op->length = GHCB_FW_GET(rest, REACH_LENGTH);
    op->limit = GHCB_FW_GET(rest, REACH_LIMIT);
    op->pages = GHCB_FW_GET(rest, REACH_PAGES);
    op->policy = GHCB_FW_GET(rest, REACH_POLICY);
}

/* The other way round; returns whether all of the command has room. */
static inline int ghcb_fw_reach_args(const ghcb_fw_op_t *op, uint64_t arg[GHCB_REACH_N_ARGS])
{
    ghcb_reach_op_t packed = {0};
    ghcb_fw_op_t back = {0};

    GHCB_FW_SET(&packed.arg[0], REACH_COMMAND, op->command & 0xff);
    GHCB_FW_SET(&packed.arg[0], REACH_GUEST, op->guest & 0xff);
    GHCB_FW_SET(&packed.arg[0], REACH_ASID, op->asid & 0xff);
    GHCB_FW_SET(&packed.arg[0], REACH_TARGET, op->target & 0xff);
    GHCB_FW_SET(&packed.arg[0], REACH_CCXSET, op->ccxs & 0xffffffff);
    packed.arg[1] = op->bad;
    GHCB_FW_SET(&packed.arg[2], REACH_OPTIONS, op->options & 0xfff);
    GHCB_FW_SET(&packed.arg[2], REACH_LENGTH, op->length & 0xff);
    GHCB_FW_SET(&packed.arg[2], REACH_LIMIT, op->limit & 0xff);
    GHCB_FW_SET(&packed.arg[2], REACH_PAGES, op->pages ? 1 : 0);
    GHCB_FW_SET(&packed.arg[2], REACH_POLICY, op->policy & 0xffffffff);
    for (unsigned i = 0; i < GHCB_REACH_N_ARGS; i++)
        arg[i] = packed.arg[i];
    ghcb_fw_reach_op(&packed, 0, &back);
    return back.command == op->command && back.guest == op->guest && back.asid == op->asid
        && back.target == op->target && back.ccxs == op->ccxs && back.options == op->options
        && back.length == op->length && back.limit == op->limit && back.policy == op->policy;
}

static inline uint64_t ghcb_fw_reach_options(const ghcb_fw_t *fw)
{
    uint64_t options = 0;

    GHCB_FW_SET(&options, REACH_GUESTS, fw->n_guests);
    GHCB_FW_SET(&options, REACH_ASIDS, fw->max_asid);
    GHCB_FW_SET(&options, REACH_CCXS, fw->n_ccxs);
    GHCB_FW_SET(&options, REACH_FIRST_SEV, fw->first_sev_asid);
    GHCB_FW_SET(&options, REACH_RULES, fw->rules);
    return options;
}

/* Let the CPU with this number sit in its CCX, the last one taking all that are left; the first
 * there has its first core. */
static inline uint64_t ghcb_fw_reach_seat(
    const ghcb_fw_t *fw, uint64_t *thread, uint64_t number, uint64_t cpus_per_ccx)
{
    uint64_t ccx = cpus_per_ccx ? number / cpus_per_ccx : 0, last = fw->n_ccxs ? fw->n_ccxs - 1 : 0;
    uint64_t seat = ccx < last ? ccx : last;

    GHCB_FW_SET(thread, THREAD_CCX, seat);
    *thread &= ~GHCB_FW_BIT(THREAD_FIRST);
    if (number == seat * cpus_per_ccx)
        *thread |= GHCB_FW_BIT(THREAD_FIRST);
    return SNP_FW_OK;
}

/* Carry one operation out. Returns a status, GHCB_FW_UNMODELLED or GHCB_FW_IMPOSSIBLE: that also for
 * a place that is not laid out as above. */
static inline uint64_t ghcb_firmware_reach(const ghcb_reach_t *at, const ghcb_reach_op_t *op, uint64_t value)
{
    uint64_t options = at->place->options, *once = at->words + GHCB_FW_REACH_SLICE;
    ghcb_fw_op_t command = {0};
    ghcb_fw_check_t why;
    ghcb_fw_t fw = {
        .state = once,
        .keys = once + 1,
        .guests = once + GHCB_FW_REACH_ONCE,
        .boot = at->words,
        .others = at->others,
        .n_others = at->n_others,
        .stride = at->stride,
        .n_guests = GHCB_FW_GET(options, REACH_GUESTS),
        .n_ccxs = GHCB_FW_GET(options, REACH_CCXS),
        .max_asid = GHCB_FW_GET(options, REACH_ASIDS),
        .first_sev_asid = GHCB_FW_GET(options, REACH_FIRST_SEV),
        .n_bitmap = 1,
        .rules = GHCB_FW_GET(options, REACH_RULES),
    };

    fw.cells = fw.guests + fw.n_guests;
    if (at->place->n_slice != GHCB_FW_REACH_SLICE || fw.n_ccxs > GHCB_FW_MAX_CCXS
        || at->place->n_words < GHCB_FW_REACH_SLICE + GHCB_FW_REACH_ONCE + fw.n_guests + fw.max_asid)
        return GHCB_FW_IMPOSSIBLE;
    if (op->code == GHCB_FW_REACH_SEAT)
        return ghcb_fw_reach_seat(&fw, at->own, value, op->arg[0]);
    if (op->code != GHCB_FW_STEP_COMMAND)
        return ghcb_fw_thread_step(&fw, op->code, at->own, op->arg[0] + value);
    if (op->local) /* a command asks all threads */
        return GHCB_FW_IMPOSSIBLE;
    ghcb_fw_reach_op(op, value, &command);
    return ghcb_fw_command(&fw, &command, &why);
}

#endif
