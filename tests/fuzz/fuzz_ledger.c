/* Fuzz the ledger's tree: random operations on a small guest, against flat frames under the same rules.
 *
 * The input says how large the guest is, how much memory the tree may have, and the operations: ranges,
 * arrays, single frames that are put, snapshots that are taken and let go. After each step frames of a
 * region, after the last one all of them are compared, and the pages that records count. Where memory
 * runs out the flat frames are taken over from the tree, which has to be whole all the same. */
#include <ghcbcore/frame_walk.h>

#include "fuzz.h"

enum { MAX_FRAMES = 3 * FRAME_REGION, MAX_STEPS = 60, N_SNAPSHOTS = 3, MAX_ELEMENTS = 40 };

typedef struct {
    int is_there;
    uint64_t root[1];
    ghcb_frame_t frames[MAX_FRAMES];
} snapshot_t;

static ghcb_tree_t tree;
static uint64_t root[1], n_frames;
static ghcb_frame_t flat[MAX_FRAMES];
static snapshot_t snapshots[N_SNAPSHOTS];

static const ghcb_frame_t *held(const uint64_t *from, uint64_t p)
{
    return &tree.store.records[ghcb_root_id(from, p)].frame;
}

static void same(const uint64_t *from, const ghcb_frame_t *frames, uint64_t first, uint64_t end)
{
    for (uint64_t p = first; p < end; p++) {
        MUST(held(from, p)->word == frames[p].word);
        MUST(held(from, p)->gfn == frames[p].gfn);
    }
}

static uint64_t apply_flat(const ghcb_frame_op_t *op, uint64_t p)
{
    uint64_t first = p & ~(uint64_t)(FRAME_REGION - 1), left = n_frames - first;

    return ghcb_frame_apply(
        op, &tree.rules, flat + first, left < FRAME_REGION ? left : FRAME_REGION, p - first, first);
}

/* Splits of leaves around a mapping, the slow way: a leaf of 1 GiB reaches over all that there is. */
static void split_flat(uint64_t p)
{
    for (uint64_t size = FRAME_LEAF_2M + 1; size-- && p < n_frames;) {
        uint64_t n = size ? n_frames : FRAME_REGION, first = size ? 0 : p & ~(uint64_t)(FRAME_REGION - 1);
        ghcb_frame_op_t op = {.kind = FRAME_OP_LEAF, .size = size};

        if (p == first || ghcb_frame_get(flat[p].word, FRAME_LEAF_SHIFT, FRAME_LEAF_WIDTH) <= size)
            continue;
        for (uint64_t i = first; i < first + n && i < n_frames; i++)
            apply_flat(&op, i);
    }
}

static ghcb_frame_op_t take_op(input_t *in)
{
    static const uint64_t gfns[] = {0, 0, 0, 1, 512, FRAME_GFN_MASK - 511, (1ULL << RMP_TAG_SHIFT) - 700};
    ghcb_frame_op_t op = {0};

    op.kind = 1 + take8(in) % (FRAME_OP_END - 1);
    if (op.kind == FRAME_OP_MOVE)
        op.kind = FRAME_OP_RMPUPDATE;
    op.size = take8(in) & 1;
    op.backing = take8(in) % 3;
    op.asid = take8(in) % 4;
    op.vmpl = take8(in) % 4;
    op.target = take8(in) % 5;
    op.gfn = gfns[take8(in) % (sizeof(gfns) / sizeof(gfns[0]))];
    op.value = take8(in);
    if (op.kind == FRAME_OP_MAP || op.kind == FRAME_OP_LIST)
        op.value %= 3;
    if (op.kind == FRAME_OP_INIT)
        op.value %= RMP_STATE_FIRMWARE + 1;
    return op;
}

static uint64_t n_each_of(const ghcb_frame_op_t *op)
{
    return (op->kind == FRAME_OP_MAP && op->size) || ghcb_frame_is_region_op(op) ? FRAME_REGION : 1;
}

/* What the tree says of an operation against the flat frames: elements, or frames of a range. */
static void judge(const ghcb_frame_op_t *op, const ghcb_tree_done_t *done, const uint64_t *elements,
    uint64_t first, uint64_t n, uint64_t each)
{
    uint64_t answer = 0, n_done = 0;
    int is_region = ghcb_frame_is_region_op(op);

    for (uint64_t i = 0; i < n && !ghcb_frame_refused(answer); i++) {
        uint64_t p = elements ? elements[i] : first + i * each;

        if (op->kind == FRAME_OP_MAP && (elements || !i)) {
            split_flat(p);
            split_flat(p + (elements ? each : n * each));
        }
        for (uint64_t j = 0; j < (is_region ? 1 : each) && !ghcb_frame_refused(answer); j++)
            answer = apply_flat(op, p + j);
        n_done += ghcb_frame_refused(answer) ? 0 : 1;
    }
    MUST(done->n_done == (elements ? n_done : n_done * each));
    if (ghcb_frame_refused(answer))
        MUST(done->result == answer);
    else
        MUST(!ghcb_frame_refused(done->result));
}

/* Pages that records count, and what refers to them, add up. */
static void check_counts(void)
{
    uint64_t n_pages = 0, n_used = 0;

    for (uint32_t id = 1; id < tree.store.n_records; id++) {
        const ghcb_record_t *r = &tree.store.records[id];

        if (r->n_pages == GHCB_STORE_FREED)
            continue;
        n_used++;
        MUST(r->refs);
        n_pages += id == GHCB_STORE_BEYOND ? 0 : r->n_pages;
    }
    MUST(n_used == tree.store.n_used);
    MUST(n_pages == n_frames);
    for (uint32_t id = 2; id < tree.store.n_records; id++) {
        uint64_t n = 0;

        if (tree.store.records[id].n_pages == GHCB_STORE_FREED)
            continue;
        for (uint64_t p = 0; p < n_frames && n_used < 40; p++)
            n += ghcb_root_id(root, p) == id;
        MUST(n_used >= 40 || n == tree.store.records[id].n_pages);
    }
}

static void let_go(snapshot_t *s)
{
    if (!s->is_there)
        return;
    same(s->root, s->frames, 0, n_frames);
    ghcb_root_release(&tree.store, s->root, 1);
    ghcb_store_settle(&tree.store);
    s->is_there = 0;
}

static void take_over(void)
{
    for (uint64_t p = 0; p < n_frames; p++)
        flat[p] = *held(root, p);
}

static void step(input_t *in)
{
    uint64_t elements[MAX_ELEMENTS], first, n, each;
    const uint8_t what = take8(in);
    ghcb_tree_done_t done = {0};
    ghcb_frame_op_t op = take_op(in);
    snapshot_t *s = &snapshots[what % N_SNAPSHOTS];
    int status = GHCB_OK;

    each = n_each_of(&op);
    if (n_frames < each)
        return;
    first = take64(in) % (n_frames / each);
    n = 1 + take8(in) * 7 % (n_frames / each - first);
    tree.event++;
    ghcb_store_begin(&tree.store);
    switch (what >> 4) {
    case 0: /* a snapshot, or its end */
        if (s->is_there) {
            let_go(s);
        } else {
            ghcb_root_share(&tree.store, root, s->root, 1);
            memcpy(s->frames, flat, sizeof(flat));
            s->is_there = 1;
        }
        break;
    case 1: { /* a frame as it comes; but no part of a 2 MiB entry */
        ghcb_frame_t frame = flat[first];

        if (ghcb_frame_has(frame.word, FRAME_LARGE))
            break;
        frame.word ^= op.asid << FRAME_ASID_SHIFT ^ op.vmpl << FRAME_LISTED_SHIFT;
        frame.gfn = op.gfn & FRAME_GFN_MASK;
        status = ghcb_tree_put(&tree, first, &frame);
        if (status == GHCB_OK)
            flat[first] = frame;
        break;
    }
    case 2:
    case 3:
    case 4:
    case 5: { /* an array */
        n = 1 + take8(in) % (what & 1 ? MAX_ELEMENTS : 3);
        for (uint64_t i = 0; i < n; i++)
            elements[i] = take64(in) % (n_frames / each) * each;
        status = ghcb_tree_array(&tree, &op, elements, n, each, &done);
        if (status == GHCB_OK)
            judge(&op, &done, elements, 0, n, each);
        break;
    }
    default: /* a range */
        if (what & 1)
            n = n_frames / each - first;
        status = ghcb_tree_split_around(&tree, &op, first * each, (first + n) * each);
        if (status == GHCB_OK)
            status = ghcb_tree_range(&tree, &op, first * each, (first + n) * each, &done);
        if (status == GHCB_OK)
            judge(&op, &done, NULL, first * each, n, each);
    }
    ghcb_store_settle(&tree.store);
    if (status != GHCB_OK) {
        MUST(status == GHCB_STORE_NO_MEMORY);
        take_over();
    }
    MUST(!tree.store.max_bytes || tree.store.bytes <= tree.store.max_bytes + (1 << 16));
    same(root, flat, first * each & ~(uint64_t)(FRAME_REGION - 1), n_frames);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint64_t sizes[] = {1, 511, 512, 513, 1100, 1536};
    static const ghcb_frame_t nobodys;
    input_t in = {data, size};
    uint8_t how = take8(&in);

    memset(&tree, 0, sizeof(tree));
    memset(flat, 0, sizeof(flat));
    n_frames = sizes[how % 6];
    tree.rules.flags = how >> 4 & 3;
    tree.rules.max_asid = 2;
    how = take8(&in);
    tree.store.max_bytes = how & 3 ? 0 : 300000 + how * 8000;
    if (ghcb_tree_open(&tree, root, n_frames, &nobodys) != GHCB_OK) {
        ghcb_store_close(&tree.store);
        return 0;
    }
    for (int i = 0; i < MAX_STEPS && in.left; i++)
        step(&in);
    same(root, flat, 0, n_frames);
    check_counts();
    for (int i = 0; i < N_SNAPSHOTS; i++)
        let_go(&snapshots[i]);
    check_counts();
    ghcb_tree_close(&tree);
    return 0;
}
