/* The flow snp-guest-kexec/mainline for SPIN, beside `pysev check`.
 *
 * Same roles, same steps: the boot CPU, and for each other CPU the AP, which may convert a page to
 * shared when kexec begins. One step of the flow is one atomic statement here. A page is what the
 * guest's page table says of it (`pte`) and what the RMP says (`rmp`); what hardware and host ask
 * for is written out as assertions at the steps that need it.
 *
 * -DN=4: number of CPUs, the boot CPU among them; 2 to 9.
 * -DBEGIN_AFTER_STOP: the variant snp-guest-kexec/begin-after-stop, which ends with the boot CPU
 *  waiting for ever (an invalid end state).
 * -DNO_BEGIN: the variant snp-guest-kexec/no-begin, in which the new kernel meets a page that is
 *  not private (an assertion), and goes no further.
 */
#ifndef N
#define N 4
#endif
#define APS (N - 1)

#define SHARED 1
#define PRIVATE 2

#define HYPERVISOR 0
#define NOT_VALIDATED 1
#define VALIDATED 2

#define NOT_TRIED 0
#define WAKING 1
#define UP 2

#define TAGGED 1
#define DESTROYED 2
#define UNTAGGED 0

bit new_kernel, closed, by_msr;
bit conversions = 1;
byte readers, stopping;
byte vmsas = APS;
byte untried = APS;

/* pages: one below the GHCBs, bss_decrypted, the leaf of the GHCB, the other CPUs' GHCBs, and the
 * one that is converted; the VMSA of the CPU that is destroyed last */
byte below_pte = SHARED, bss_pte = SHARED, leaf_pte = SHARED, others_pte = SHARED;
byte below_rmp = HYPERVISOR, bss_rmp = HYPERVISOR, leaf_rmp = HYPERVISOR, others_rmp = HYPERVISOR;
byte moving_pte = PRIVATE, moving_rmp = VALIDATED;
bit vmsa_in_use = 1, vmsa_tag = 1;

bit ipi[APS], halted[APS], has_new_vmsa[APS], up[APS];
byte tagged[APS], tried[APS];

#define STEP(guard) :: atomic { !halted[i] && (guard)
#define INTERRUPTED \
    :: atomic { !halted[i] && ipi[i] -> ipi[i] = 0; stopping--; halted[i] = 1; goto sleeps }

proctype ap(byte i)
{
old_kernel:
    if
    INTERRUPTED
    STEP(conversions && !closed) -> conversions = 0; readers++ }
    STEP(conversions && closed) -> conversions = 0; goto old_kernel }
    fi;
conversion_1:
    if
    INTERRUPTED
    STEP(true) -> moving_rmp = NOT_VALIDATED }
    fi;
conversion_2:
    if
    INTERRUPTED
    STEP(true) -> moving_rmp = HYPERVISOR }
    fi;
conversion_3:
    if
    INTERRUPTED
    STEP(true) -> moving_pte = SHARED; readers--; goto old_kernel }
    fi;
sleeps:
    if
    STEP(has_new_vmsa[i]) -> has_new_vmsa[i] = 0; up[i] = 1 }
    fi;
end_new_kernel:
    false
}

#define GHCB_IS_SHARED assert(leaf_pte == SHARED)
#define TO_PRIVATE(page, asks) \
    atomic { page##_pte == SHARED -> page##_pte = PRIVATE }; \
    atomic { true -> asks; page##_rmp = NOT_VALIDATED }; \
    atomic { true -> assert(page##_pte == PRIVATE); page##_rmp = VALIDATED }
#define BY_GHCB assert(!by_msr && leaf_pte == SHARED)
#define BY_MSR assert(by_msr)
#define WRITES(page) atomic { true -> assert(page##_rmp == VALIDATED) }

/* operations that bind one other CPU */
#define DESTROY(k) \
    :: atomic { vmsas != 0 && tagged[k] == TAGGED -> \
           GHCB_IS_SHARED; tagged[k] = DESTROYED; \
           if \
           :: vmsas == 1 -> vmsa_in_use = 0 \
           :: else \
           fi }
#define ADJUST(k) \
    :: atomic { tagged[k] == DESTROYED -> \
           tagged[k] = UNTAGGED; \
           if \
           :: vmsas == 1 -> assert(!vmsa_in_use); vmsa_tag = 0 \
           :: else \
           fi; \
           vmsas-- }
#define CREATE(k) \
    :: atomic { untried != 0 && tried[k] == NOT_TRIED -> \
           assert(bss_pte == SHARED); tried[k] = WAKING; has_new_vmsa[k] = 1; halted[k] = 0 }
#define ARRIVED(k) :: atomic { up[k] && tried[k] == WAKING -> tried[k] = UP; untried-- }

#if APS > 7
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#elif APS > 6
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6)
#elif APS > 5
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5)
#elif APS > 4
#define EACH(X) X(0) X(1) X(2) X(3) X(4)
#elif APS > 3
#define EACH(X) X(0) X(1) X(2) X(3)
#elif APS > 2
#define EACH(X) X(0) X(1) X(2)
#elif APS > 1
#define EACH(X) X(0) X(1)
#else
#define EACH(X) X(0)
#endif

#define BEGIN atomic { readers == 0 -> closed = 1 }

proctype boot_cpu()
{
    byte i;

#if !defined(BEGIN_AFTER_STOP) && !defined(NO_BEGIN)
    BEGIN;
#endif
stop:
    atomic {
        stopping = APS;
        i = 0;
        do
        :: i < APS -> ipi[i] = 1; i++
        :: else -> break
        od;
        i = 0
    };
stopping_others: atomic { stopping == 0 };
#ifdef BEGIN_AFTER_STOP
    BEGIN;
#endif
f1:
    if
    EACH(DESTROY)
    :: atomic { vmsas == 0 -> goto f2 }
    fi;
f1_adjust:
    if
    EACH(ADJUST)
    fi;
    goto f1;
f2:
    TO_PRIVATE(below, BY_GHCB);
    if
    :: atomic { moving_pte == SHARED -> moving_pte = PRIVATE }
    :: atomic { moving_pte != SHARED -> goto f3 }
    fi;
    atomic { true -> BY_GHCB; moving_rmp = NOT_VALIDATED };
    atomic { true -> assert(moving_pte == PRIVATE); moving_rmp = VALIDATED };
f3:
    TO_PRIVATE(bss, BY_GHCB);
f4: atomic { true };
f5: atomic { by_msr = 1 };
f6:
    TO_PRIVATE(leaf, BY_MSR);
    TO_PRIVATE(others, BY_MSR);
relocate:
    atomic { readers <= APS -> new_kernel = 1 }; /* or SPIN leaves out what nobody reads */
    WRITES(below);
    WRITES(bss);
    WRITES(leaf); /* in front of the GHCB */
    WRITES(leaf); /* the GHCB */
    WRITES(leaf); /* the rest */
    WRITES(others);
    if
    :: atomic { moving_rmp == VALIDATED }
    :: atomic { moving_rmp != VALIDATED ->
           moving_rmp = NOT_VALIDATED; /* the hypervisor has it made private on a nested fault */
           assert(false);
           goto end_dead }
    fi;
    atomic { true -> assert(!vmsa_in_use) };
all_written:
    atomic { true };
own_ghcb:
    atomic { bss_pte = SHARED; bss_rmp = HYPERVISOR; by_msr = 0 };
next:
    if
    EACH(CREATE)
    :: atomic { untried == 0 -> goto end_up }
    fi;
await:
    if
    EACH(ARRIVED)
    fi;
    goto next;
end_up:
    false;
end_dead:
    false
}

init {
    byte i;

    atomic {
        i = 0;
        do
        :: i < APS -> tagged[i] = TAGGED; run ap(i); i++
        :: else -> break
        od;
        run boot_cpu()
    }
end_init:
    false
}
