/* Replays recorded histories of frames through the headers and prints a checksum of each: what the
 * mutation test compiles against changed copies of them. `test_frame_mutations.py` writes the file. */
#include <ghcbcore/frame_rule.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REGION = FRAME_REGION };

static uint64_t sum;

static void add(uint64_t word)
{
    sum = (sum ^ word) * 0x9e3779b97f4a7c15u;
    sum ^= sum >> 29;
}

static uint64_t number(FILE *in)
{
    uint64_t value = 0;

    if (fread(&value, sizeof(value), 1, in) != 1)
        exit(2);
    return value;
}

static void add_region(const ghcb_frame_t *frames, uint64_t n_frames, uint64_t at)
{
    for (uint64_t i = at / REGION * REGION; i < n_frames && i < (at / REGION + 1) * REGION; i++) {
        add(frames[i].word);
        add(frames[i].gfn);
    }
}

/* Frames from `at` on, in order, as `Frames.do` has it. */
static uint64_t apply(
    const ghcb_frame_op_t *op, const ghcb_frame_rules_t *rules, ghcb_frame_t *frames,
    uint64_t n_frames, uint64_t at, uint64_t n)
{
    uint64_t answer = 0, each = ghcb_frame_is_region_op(op) && n == REGION ? REGION : 1;

    add(ghcb_frame_reach(op, at, n));
    for (uint64_t p = at; p < at + n; p += each) {
        uint64_t first = p / REGION * REGION, left = n_frames - first;

        answer = ghcb_frame_apply(
            op, rules, frames + first, left < REGION ? left : REGION, p - first, first);
        add(answer);
        if (ghcb_frame_refused(answer))
            break;
    }
    return answer;
}

static uint64_t move(
    const ghcb_frame_op_t *op, ghcb_frame_t *frames, uint64_t source, uint64_t destination)
{
    uint64_t answer = 0, n = op->size ? REGION : 1;

    for (uint64_t i = 0; i < n; i++) {
        ghcb_frame_t a = frames[source + i], b = frames[destination + i];

        if (!op->size) {
            a = ghcb_frame_own(&a, !(source % REGION));
            b = ghcb_frame_own(&b, !(destination % REGION));
        }
        answer = ghcb_frame_move(op, &a, &b, source - destination);
        if (ghcb_frame_refused(answer))
            break;
        frames[source + i] = a;
        frames[destination + i] = b;
    }
    add(answer);
    return answer;
}

/* Each history: its name, the frames, the steps. A step: what it is, an operation, where, how many or
 * where to, what the core answered. */
int main(int argc, char **argv)
{
    FILE *in = argc == 2 ? fopen(argv[1], "rb") : NULL;
    uint64_t n_histories;

    if (!in)
        return 2;
    n_histories = number(in);
    for (uint64_t h = 0; h < n_histories; h++) {
        uint64_t n_frames = number(in), n_steps;
        ghcb_frame_rules_t rules = {.flags = number(in)};
        ghcb_frame_t *frames = calloc(n_frames, sizeof(*frames));

        if (!frames)
            return 2;
        rules.max_asid = number(in);
        for (uint64_t i = number(in); i < n_frames; i++)
            frames[i].word = FRAME_BIT(FRAME_UNCOVERED);
        n_steps = number(in);
        sum = 0;
        for (uint64_t s = 0; s < n_steps; s++) {
            uint64_t what = number(in), at, n, answer = 0;
            ghcb_frame_op_t op;

            if (fread(&op, sizeof(op), 1, in) != 1)
                return 2;
            at = number(in);
            n = number(in);
            if (what == 0)
                answer = apply(&op, &rules, frames, n_frames, at, n);
            else if (what == 1)
                answer = move(&op, frames, at, n);
            for (uint64_t i = at + 1; what == 2 && i <= at + n; i++) {
                const uint64_t kept = ~(uint64_t)FRAME_RMP_MASK | FRAME_BIT(FRAME_IN_USE);

                frames[i].word = (frames[i].word & kept) | (frames[at].word & ~kept);
                frames[i].gfn = frames[at].gfn;
            }
            for (uint64_t i = at; what == 3 && i < at + n; i++)
                frames[i] = (ghcb_frame_t){op.kind, op.size}; /* its first two words */
            if (answer != number(in)) {
                printf("history %d, step %d: another answer\n", (int)h, (int)s);
                return 0; /* all that is asked */
            }
            add_region(frames, n_frames, at);
            if (what == 1)
                add_region(frames, n_frames, n);
        }
        printf("%d\n", (int)(sum >> 33));
        free(frames);
    }
    fclose(in);
    return 0;
}
