/* One thing that happens to firmware's state: a command, or what a hardware thread does. */
#ifndef GHCBCORE_FIRMWARE_STEP_H
#define GHCBCORE_FIRMWARE_STEP_H

#include <ghcbcore/firmware_command.h>

/* cffi: begin */
#define GHCB_FW_STEP_COMMAND 0
#define GHCB_FW_STEP_WBINVD 1
#define GHCB_FW_STEP_WBNOINVD 2
#define GHCB_FW_STEP_VMRUN 3  /* of `op.asid` */
#define GHCB_FW_STEP_VMEXIT 4
#define GHCB_FW_STEP_END 5

#define GHCB_FW_ALL_THREADS 0xffffffffffffffff /* that are online; WBINVD and WBNOINVD alone */

/* beside a status: it did not happen, because the thread is offline, is or is not in a guest, or may
 * not run the ASID */
#define GHCB_FW_IMPOSSIBLE 0x200000000

typedef struct {
	uint64_t step; /* GHCB_FW_STEP_* */
	uint64_t thread;
	ghcb_fw_op_t op;
} ghcb_fw_step_t;

/* Which check answered: its GHCB_FW_IF_*, the GHCB_FW_BAD_* or set of states it asked for. */
typedef struct {
	uint64_t status; /* or GHCB_FW_UNMODELLED, GHCB_FW_IMPOSSIBLE */
	uint64_t kind;   /* 0 if no check refused */
	uint64_t arg;
} ghcb_fw_answer_t;
/* cffi: end */

static inline uint64_t ghcb_fw_thread_step(
    const ghcb_fw_t *fw, uint64_t step, uint64_t *thread, uint64_t asid)
{
    uint64_t happened = 0;

    switch (step) {
    case GHCB_FW_STEP_WBINVD:
    case GHCB_FW_STEP_WBNOINVD:
        happened = ghcb_fw_wbinvd(thread, step == GHCB_FW_STEP_WBNOINVD);
        break;
    case GHCB_FW_STEP_VMRUN:
        happened = ghcb_fw_vmrun(fw, thread, asid);
        break;
    case GHCB_FW_STEP_VMEXIT:
        happened = ghcb_fw_vmexit(thread);
        break;
    default:
        break;
    }
    return happened ? SNP_FW_OK : GHCB_FW_IMPOSSIBLE;
}

static inline void ghcb_fw_step(const ghcb_fw_t *fw, const ghcb_fw_step_t *step, ghcb_fw_answer_t *answer)
{
    ghcb_fw_check_t why = {0};

    if (step->step == GHCB_FW_STEP_COMMAND) {
        answer->status = ghcb_fw_command(fw, &step->op, &why);
    } else if (step->thread == GHCB_FW_ALL_THREADS) {
        for (uint64_t i = 0; i < ghcb_fw_n_threads(fw); i++)
            ghcb_fw_thread_step(fw, step->step, ghcb_fw_thread(fw, i), step->op.asid);
        answer->status = SNP_FW_OK;
    } else {
        answer->status = step->thread < ghcb_fw_n_threads(fw)
            ? ghcb_fw_thread_step(fw, step->step, ghcb_fw_thread(fw, step->thread), step->op.asid)
            : GHCB_FW_IMPOSSIBLE;
    }
    answer->kind = why.kind;
    answer->arg = why.arg;
}

#endif
