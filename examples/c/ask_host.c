/* Ask the host from C, without Python: decode what is asked and what is answered.
 *
 *     gcc -std=c11 -I"$(python -c 'import ghcbcore; print(ghcbcore.get_include())')" \
 *         ask_host.c -o ask_host
 *     ./ask_host 0x2 0x80 0x8000001f40000004 0x4e14012
 *
 * Each argument is a value that vCPU 0 of an SNP guest writes to its GHCB MSR before VMGEXIT. At
 * the end the vCPU asks by its GHCB page for CPUID, first without RCX. Exit status: 0, or 1 if an
 * answer is not one to its request.
 */
#include <ghcbcore/answer.h>
#include <ghcbcore/kvm.h>
#include <ghcbcore/msr.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static const ghcb_cpuid_entry_t cpuid[] = {{0x8000001f, 0, 0x0101fd3f, 0x00004133, 0x1fd, 0x1}};

static void print_value(const char *who, uint64_t value)
{
    ghcb_msr_t got;
    int status = ghcb_msr_decode(value, &got);
    const ghcb_msr_row_t *row = ghcb_msr_row(got.code);

    printf("%s 0x%016" PRIx64 "  %s", who, value, row ? row->name : "unknown code");
    for (int i = 0; row && i < row->n_fields; i++)
        printf(" %s=0x%" PRIx64, row->field[i].name, i == 0 ? got.a : i == 1 ? got.b : got.c);
    puts(status == GHCB_E_RESERVED_BITS ? "  (reserved bits are set)" : "");
}

int main(int argc, char **argv)
{
    static uint8_t page[GHCB_PAGE_SIZE];
    const uint64_t gpa = 0x4e14000;
    ghcb_profile_t profile = ghcb_kvm_profile(GHCB_GUEST_SNP);
    ghcb_vm_t vm = {0};
    ghcb_vcpu_t vcpu = {.next_vmsa = GHCB_VMSA_NONE};
    const ghcb_host_t host = {.profile = &profile, .vm = &vm, .first = &vcpu, .n_vcpus = 1};
    int bad = 0;

    profile.cpuid = cpuid;
    profile.n_cpuid = sizeof(cpuid) / sizeof(cpuid[0]);
    for (int i = 1; i < argc && !vm.event; i++) {
        const uint64_t request = strtoull(argv[i], 0, 0);

        print_value("request", request);
        vcpu.msr = request;
        ghcb_answer_msr(&host, &vcpu);
        if (vm.event)
            break;
        print_value("answer ", vcpu.msr);
        bad |= ghcb_msr_check_answer(request, vcpu.msr) != GHCB_OK;
    }
    if (vm.event) {
        printf("the run has ended with event %" PRIu64 ", data 0x%" PRIx64 "\n", vm.event,
               vm.event_data);
        return bad;
    }
    vcpu.registered_gpa = gpa;
    for (int with_rcx = 0; with_rcx <= 1; with_rcx++) {
        uint64_t valid[2] = {GHCB_REQUEST_VALID_LO, GHCB_REQUEST_VALID_HI};

        ghcb_valid_set(valid, GHCB_VALID_RAX);
        if (with_rcx)
            ghcb_valid_set(valid, GHCB_VALID_RCX);
        ghcb_page_put(page, GHCB_OFF_SW_EXIT_CODE, GHCB_NAE_CPUID);
        ghcb_page_put(page, GHCB_OFF_SW_EXIT_INFO_1, 0);
        ghcb_page_put(page, GHCB_OFF_SW_EXIT_INFO_2, 0);
        ghcb_page_put(page, GHCB_OFF_RAX, cpuid[0].function);
        ghcb_page_put(page, GHCB_OFF_RCX, 0);
        ghcb_page_put(page, GHCB_OFF_VALID_BITMAP, valid[0]);
        ghcb_page_put(page, GHCB_OFF_VALID_BITMAP + 8, valid[1]);
        vcpu.msr = gpa;
        ghcb_answer_page(&host, &vcpu, page);
        printf("CPUID 0x%x by page %s RCX: INFO1 %" PRIu64 ", INFO2 %" PRIu64 ", rbx 0x%" PRIx64
               "\n",
               cpuid[0].function, with_rcx ? "with" : "without",
               ghcb_page_get(page, GHCB_OFF_SW_EXIT_INFO_1),
               ghcb_page_get(page, GHCB_OFF_SW_EXIT_INFO_2), ghcb_page_get(page, GHCB_OFF_RBX));
    }
    return bad;
}
