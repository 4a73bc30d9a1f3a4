/* A guest that may do anything, to a host of any profile, with a device that may answer anything.
 *
 * Whatever happens: nothing outside the page and the records is touched, states stay states of
 * `host.h`, a reply is a reply, and the same history gives the same answers again.
 */
#include "fuzz.h"

#include <ghcbcore/answer.h>
#include <ghcbcore/kvm.h>

enum { N_VCPUS = 3, N_PAGES = 2, MEMORY = 3 * GHCB_PAGE_SIZE, MAX_STEPS = 64 };

typedef struct {
    input_t in; /* what the device answers comes from the same input */
    uint8_t memory[MEMORY];
    uint64_t n_asked;
} world_t;

static int answer_access(void *self, ghcb_access_t *access)
{
    world_t *world = self;

    world->n_asked++;
    MUST(access->kind < GHCB_ACCESS_END);
    MUST(access->cpu < N_VCPUS);
    if (access->data) {
        const uint64_t n = access->size_bytes * access->count;

        MUST(n <= GHCB_KVM_SCRATCH_MAX);
        if (access->is_write) {
            volatile uint8_t sum = 0;

            for (uint64_t i = 0; i < n; i++)
                sum = (uint8_t)(sum + access->data[i]);
        } else {
            take(&world->in, access->data, n);
        }
    }
    if (access->kind == GHCB_ACCESS_MAP_GPA)
        MUST(access->address % GHCB_PAGE_SIZE == 0 && access->count > 0);
    access->result = take64(&world->in);
    access->result2 = take8(&world->in);
    return take8(&world->in) % 4 == 3;
}

static int answer_memory(void *self, uint64_t gpa, uint8_t *data, uint64_t n, int is_write)
{
    world_t *world = self;

    MUST(n <= GHCB_KVM_SCRATCH_MAX);
    if (gpa > MEMORY || n > MEMORY - gpa)
        return 1;
    if (is_write)
        memcpy(world->memory + gpa, data, n);
    else
        memcpy(data, world->memory + gpa, n);
    return 0;
}

/* A page whose fields are often, but not always, what a host looks for. */
static void fill_page(input_t *in, uint8_t *page, uint64_t gpa)
{
    static const unsigned int fields[] = {GHCB_OFF_RAX,  GHCB_OFF_RBX,       GHCB_OFF_RCX,
                                          GHCB_OFF_RDX,  GHCB_OFF_RSI,       GHCB_OFF_XCR0,
                                          GHCB_OFF_SW_EXIT_INFO_1, GHCB_OFF_SW_EXIT_INFO_2};
    const uint8_t how = take8(in);
    uint64_t valid[2], scratch;
    const uint8_t n = take8(in);

    ghcb_page_put(page, GHCB_OFF_SW_EXIT_CODE,
                  how & 1 ? take64(in) : ghcb_nae_rows[take8(in) % GHCB_NAE_N_ROWS].code);
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        if (take8(in) & 1)
            ghcb_page_put(page, fields[i], take8(in) & 1 ? take64(in) : take8(in));
    valid[0] = how & 2 ? take64(in) : ~UINT64_C(0);
    valid[1] = how & 4 ? take64(in) : ~UINT64_C(0);
    ghcb_page_put(page, GHCB_OFF_VALID_BITMAP, valid[0]);
    ghcb_page_put(page, GHCB_OFF_VALID_BITMAP + 8, valid[1]);
    scratch = gpa + GHCB_OFF_SHARED_BUFFER;
    if (how & 8) /* anywhere, in the other page's memory, or around the end of the buffer */
        scratch = how & 16    ? take64(in)
                  : how & 128 ? take64(in) % MEMORY
                              : scratch + GHCB_SHARED_BUFFER_SIZE - take8(in);
    ghcb_page_put(page, GHCB_OFF_SW_SCRATCH, scratch);
    take(in, page + GHCB_OFF_SHARED_BUFFER, n);
    if (how & 32)
        take(in, page + GHCB_OFF_GHCB_USAGE, 4);
    if (how & 64)
        page[GHCB_OFF_CPL] = take8(in);
}

/* Outside of the registers of a reply, the bitmap and the buffer the page is as it was. */
static void check_page(const uint8_t *page, const uint8_t *before)
{
    static const unsigned int written[] = {
        GHCB_OFF_RAX, GHCB_OFF_RBX, GHCB_OFF_RCX, GHCB_OFF_RDX, GHCB_OFF_SW_EXIT_INFO_1,
        GHCB_OFF_SW_EXIT_INFO_2, GHCB_OFF_VALID_BITMAP, GHCB_OFF_VALID_BITMAP + 8};
    uint8_t masked[GHCB_PAGE_SIZE];

    memcpy(masked, page, sizeof(masked));
    for (size_t i = 0; i < sizeof(written) / sizeof(written[0]); i++)
        memcpy(masked + written[i], before + written[i], 8);
    memcpy(masked + GHCB_OFF_SHARED_BUFFER, before + GHCB_OFF_SHARED_BUFFER,
           GHCB_SHARED_BUFFER_SIZE);
    MUST(!memcmp(masked, before, sizeof(masked)));
}

static void check_vcpu(const ghcb_vcpu_t *vcpu)
{
    MUST(vcpu->mp_state <= GHCB_MP_HALTED || vcpu->mp_state == GHCB_MP_AP_RESET_HOLD);
    MUST(vcpu->reset_hold <= GHCB_HOLD_MSR);
    MUST(vcpu->entry <= GHCB_ENTRY_VMSA);
    MUST(vcpu->vmpl < SEV_N_VMPLS);
    MUST(vcpu->registered_gpa % GHCB_PAGE_SIZE == 0);
    MUST(vcpu->doorbell_gpa % GHCB_PAGE_SIZE == 0);
    MUST(vcpu->vmsa == GHCB_VMSA_NONE || vcpu->vmsa % GHCB_PAGE_SIZE == 0);
}

static uint64_t mix(uint64_t digest, const void *from, size_t n)
{
    for (size_t i = 0; i + 8 <= n; i += 8)
        digest = (digest ^ ghcb_load64((const uint8_t *)from + i)) * 0x100000001b3;
    return digest;
}

/* Play the whole input; a digest of everything that came out. */
static uint64_t play(const uint8_t *data, size_t size)
{
    static world_t world;
    /* each page in a block of its own, so that the sanitizer sees where it ends */
    uint8_t *pages[N_PAGES], before[GHCB_PAGE_SIZE];
    static const ghcb_cpuid_entry_t cpuid[] = {{0xd, 0, 7, 8, 9, 10}, {0xd, 1, 1, 2, 3, 4},
                                               {1, 0, 5, 6, 7, 8}};
    input_t in = {data, size};
    ghcb_profile_t profile = ghcb_kvm_profile(take8(&in) % 3);
    ghcb_vm_t vm = {0};
    ghcb_vcpu_t vcpus[N_VCPUS];
    ghcb_device_t device = {&world, take64(&in), answer_access, answer_memory};
    const uint8_t with = take8(&in);
    ghcb_host_t host = {.profile = &profile,
                        .vm = &vm,
                        .first = vcpus,
                        .others = vcpus + 1,
                        .stride = sizeof(vcpus[0]),
                        .n_vcpus = N_VCPUS,
                        .device = with & 1 ? &device : 0};
    uint64_t digest = 1469598103934665603u;

    memset(&world, 0, sizeof(world));
    for (int i = 0; i < N_PAGES; i++)
        MUST((pages[i] = calloc(1, GHCB_PAGE_SIZE)));
    memset(vcpus, 0, sizeof(vcpus));
    profile.cpuid = cpuid;
    profile.n_cpuid = sizeof(cpuid) / sizeof(cpuid[0]);
    if (with & 2)
        profile.rules = take64(&in) & ((UINT64_C(1) << GHCB_RULE_END) - 1);
    if (with & 4) {
        profile.faults = take8(&in) | (uint64_t)(take8(&in) & 1) << 8;
        profile.fault_rate = 1 + take8(&in) % 4;
        profile.fault_seed = take8(&in);
    }
    if (with & 8) {
        profile.msr_functions = (UINT64_C(1) << GHCB_MSR_N_ROWS) - 1;
        profile.nae_events = (UINT64_C(1) << GHCB_NAE_N_ROWS) - 1;
    }
    if (with & 16)
        device.memory = 0;
    world.in = in;
    for (int step = 0; step < MAX_STEPS && world.in.left && !vm.event; step++) {
        const uint8_t what = take8(&world.in);
        ghcb_vcpu_t *vcpu = &vcpus[what >> 4 & 3 ? (what >> 4 & 3) - 1 : 0];
        const uint64_t gpa = (uint64_t)(1 + (what & 1)) * 0x10000;

        if (!ghcb_host_may_run(&host, vcpu))
            break;
        switch (what & 3) {
        case 0:
        case 1: {
            uint8_t *page = pages[what & 1];

            if (what & 8)
                vcpu->registered_gpa = gpa;
            fill_page(&world.in, page, gpa);
            vcpu->msr = gpa;
            memcpy(before, page, sizeof(before));
            ghcb_answer_page(&host, vcpu, page);
            if (!profile.faults && !(profile.rules >> GHCB_RULE_REPLY_ALONE & 1))
                check_page(page, before);
            if (!vm.event)
                MUST(ghcb_page_get(page, GHCB_OFF_SW_EXIT_INFO_1) <= GHCB_REPLY_MALFORMED);
            digest = digest * 31 + ghcb_page_get(page, GHCB_OFF_SW_EXIT_INFO_2);
            break;
        }
        case 2: {
            const uint64_t code = what & 8 ? ghcb_msr_rows[take8(&world.in) % GHCB_MSR_N_ROWS].code
                                           : take8(&world.in);
            const uint64_t request = (take64(&world.in) & ~(uint64_t)GHCB_MSR_INFO_MASK) | code;

            vcpu->msr = request;
            if (code)
                ghcb_answer_msr(&host, vcpu);
            if (!vm.event && !profile.faults && vcpu->msr != request)
                MUST(ghcb_msr_check_answer(request & ~UINT64_C(0x3ffff000), vcpu->msr) !=
                     GHCB_E_CODE_MISMATCH);
            break;
        }
        default:
            ghcb_vcpu_call(&host, vcpu, what >> 2 & 15);
        }
        for (int i = 0; i < N_VCPUS; i++)
            check_vcpu(&vcpus[i]);
        digest = digest * 31 + vcpu->msr + vcpu->mp_state;
    }
    for (int i = 0; i < N_PAGES; i++) {
        digest = mix(digest, pages[i], GHCB_PAGE_SIZE);
        free(pages[i]);
    }
    digest = mix(digest, world.memory, MEMORY);
    return digest * 31 + vm.event + world.n_asked + vm.n_faults;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    MUST(play(data, size) == play(data, size));
    return 0;
}
