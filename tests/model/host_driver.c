/* Replays recorded histories through the headers and prints a checksum of each: what the mutation
 * test compiles against changed copies of them. `host_record.py` writes the file, and says how. */
#include <ghcbcore/answer.h>
#include <stdio.h>
#include <stdlib.h>

enum { MEMORY_PAGES = 34, MAX_VCPUS = 4 };
static const uint64_t memory_gpa = 0x90000;

static FILE *in;
static uint64_t sum, seed, n_answers, n_steps;
static uint8_t memory[MEMORY_PAGES * 4096];

static void add(const void *data, uint64_t n_bytes)
{
    const uint8_t *at = data;

    for (; n_bytes >= 8; n_bytes -= 8, at += 8)
        sum = ghcb_fault_word(sum ^ ghcb_load64(at), 0);
    for (; n_bytes; n_bytes--)
        sum = ghcb_fault_word(sum ^ *at++, 1);
}

static int get(void *data, size_t n_bytes)
{
    return fread(data, 1, n_bytes, in) == n_bytes;
}

static uint64_t number(void)
{
    uint64_t value = 0;

    if (!get(&value, sizeof(value)))
        exit(2);
    return value;
}

static uint64_t mix(uint64_t n)
{
    return ghcb_fault_word(seed, n);
}

static int ask(void *self, ghcb_access_t *access)
{
    const uint64_t n = access->data ? access->size_bytes * access->count : 0;
    const uint64_t asked[] = {access->kind,   access->cpu,    access->address, access->is_write,
                              access->size_bytes, access->count, access->arg[0],  access->arg[1],
                              access->arg[2], access->arg[3]};
    const uint64_t k = 3 * ++n_answers, result = mix(k + 1);

    (void)self;
    if (++n_steps > 1000000)
        exit(3);
    add(asked, sizeof(asked));
    if (access->is_write)
        add(access->data, n);
    if (mix(k) % 4 == 0)
        return 1;
    access->result = result;
    access->result2 = mix(k + 2);
    for (uint64_t i = 0; !access->is_write && i < n; i++)
        access->data[i] = (uint8_t)(result >> i % 8 * 8);
    return 0;
}

static int touch(void *self, uint64_t gpa, uint8_t *data, uint64_t n_bytes, int is_write)
{
    const uint64_t asked[] = {gpa, n_bytes, (uint64_t)is_write};

    (void)self;
    add(asked, sizeof(asked));
    if (gpa < memory_gpa || n_bytes > sizeof(memory) || gpa - memory_gpa > sizeof(memory) - n_bytes)
        return 1;
    if (is_write) {
        add(data, n_bytes);
        memcpy(memory + (gpa - memory_gpa), data, n_bytes);
    } else {
        memcpy(data, memory + (gpa - memory_gpa), n_bytes);
    }
    return 0;
}

static void replay(void)
{
    ghcb_vm_t vm = {0};
    ghcb_vcpu_t vcpus[MAX_VCPUS];
    ghcb_cpuid_entry_t cpuid[8];
    ghcb_profile_t profile = {0};
    ghcb_device_t device = {0};
    ghcb_host_t host = {&profile, &vm, vcpus, vcpus + 1, sizeof(vcpus[0]), number(), &device};
    uint8_t page[4096];

    sum = 0;
    n_answers = n_steps = 0;
    profile.guest = number();
    profile.min_version = 1;
    profile.max_version = number();
    profile.c_bit = 51;
    profile.hv_features = 3;
    profile.sev_features = number();
    profile.rules = number();
    for (uint64_t n = number(); n; n--)
        profile.msr_functions |= UINT64_C(1) << (ghcb_msr_row(number()) - ghcb_msr_rows);
    for (uint64_t n = number(); n; n--)
        profile.nae_events |= UINT64_C(1) << ghcb_nae_index(number());
    profile.cpuid = cpuid;
    profile.n_cpuid = number();
    seed = number();
    device.kinds = number();
    if (!get(page, sizeof(page)) || !get(cpuid, profile.n_cpuid * sizeof(cpuid[0])) ||
        !get(vcpus, host.n_vcpus * sizeof(vcpus[0])))
        exit(2);
    for (int i = 0; i < MEMORY_PAGES; i++)
        memcpy(memory + i * 4096, page, 4096);
    device.access = ask;
    device.memory = device.kinds >> GHCB_ACCESS_END & 1 ? touch : 0;
    device.kinds &= (1 << GHCB_ACCESS_END) - 1;
    if (number() == 0)
        host.device = 0;
    for (uint64_t op = number(); op != 9; op = number()) {
        ghcb_vcpu_t *vcpu = vcpus + number();
        const uint64_t a = number(), b = number();

        if (op == 1 && !get(page, sizeof(page)))
            exit(2);
        switch (op) {
        case 0:
        case 1:
            if (vm.event)
                continue;
            vcpu->msr = a;
            if (!ghcb_host_may_run(&host, vcpu))
                break;
            if (op == 0)
                ghcb_answer_msr(&host, vcpu);
            else
                ghcb_answer_page(&host, vcpu, page);
            break;
        case 2:
            if (vm.event)
                continue;
            ghcb_host_call(&host, vcpu, a);
            break;
        case 3:
            ((uint64_t *)vcpu)[a] = b;
            continue;
        case 5:
            memcpy(memory + a, &b, sizeof(b));
            continue;
        default:
            vm.event = vm.event_data = 0;
            continue;
        }
        if (op == 1)
            add(page, sizeof(page));
        add(&vm, sizeof(vm));
        add(vcpus, host.n_vcpus * sizeof(vcpus[0]));
    }
    add(memory, sizeof(memory));
    printf("%llx ", (unsigned long long)sum);
    for (uint64_t i = 0; i < host.n_vcpus * GHCB_VCPU_WORDS; i++)
        printf("%llx ", (unsigned long long)((uint64_t *)vcpus)[i]);
    printf("\n");
}

int main(int argc, char **argv)
{
    in = argc > 1 ? fopen(argv[1], "rb") : 0;
    if (!in)
        return 2;
    for (uint64_t n = number(); n; n--)
        replay();
    return 0;
}
