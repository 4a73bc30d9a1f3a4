/* The flows live-migration-reset/{cpu0,every-cpu,last-cpu,migration-off,merged} for SPIN.
 *
 * Same roles, same steps as pysev/flows/live_migration_reset.py: a boot CPU that goes down and is the
 * next kernel's boot CPU, and for each other CPU one process that serves a device, tears down when
 * asked and stops when asked. One operation of the flow is one atomic statement here; there is no other.
 * What differs in the encoding:
 *
 *  - positions in programs are SPIN's own, words are bits and bytes;
 *  - a page is two bits, `mapped` (the guest's page table) and `listed` (the hypervisor's list), 1 for
 *    shared; the flow has a frame of ghcbcore with all its views, of which only these two change;
 *  - M-SAFE is an assertion inside each atomic statement after which it could fail, "migration is
 *    allowed in the end" one before the boot CPU's last label, "nobody waits for ever" SPIN's
 *    search for invalid end states. With -c0 the search goes on behind an error.
 *
 * -DN=4: number of CPUs, the boot CPU among them. -DVARIANT=CPU0, EVERY_CPU, LAST_CPU,
 * MIGRATION_OFF or MERGED. -DDEVICE: devices are in use until device_shutdown. -DSTRAGGLER: one CPU
 * is not stopped. -DINTERRUPTED: teardown may come between the two steps of a conversion.
 */
#define CPU0 1
#define EVERY_CPU 2
#define LAST_CPU 3
#define MIGRATION_OFF 4
#define MERGED 5

#ifndef VARIANT
#define VARIANT CPU0
#endif
#ifndef N
#define N 4
#endif
#define APS (N - 1)

#define NOTHING 0
#define TEARDOWN 1
#define STOP 2

bit new_kernel, reset, told;
bit allowed = 1;
bit busy[2], mapped[2], listed[2];
byte waiting, stopping;
#ifdef DEVICE
bit devices = 1;
#define SERVES (!new_kernel && devices)
#else
bit down[APS];
#define SERVES (!new_kernel && !down[i])
#endif
#if VARIANT == LAST_CPU
byte left = N;
#endif
byte ipi[APS];

#define WRONG(p) (mapped[p] != listed[p] && !busy[p])
#if VARIANT == MERGED
#define JUDGED (new_kernel || !reset)
#else
#define JUDGED ((new_kernel && told) || (!new_kernel && !reset))
#endif
#define M_SAFE assert(!allowed || !JUDGED || !(WRONG(0) || WRONG(1)))
#define SWITCHES_OFF (VARIANT == MIGRATION_OFF || VARIANT == MERGED)
#define AT_END(here) assert(!(here) || allowed)

#define RESET listed[0] = 0; listed[1] = 0; reset = 1

/* What PV teardown does, on the boot CPU and on the others. */
#if VARIANT == EVERY_CPU
#define TEARDOWN_BOOT RESET
#define TEARDOWN_OTHER RESET
#elif VARIANT == LAST_CPU
#define ARRIVE left--; if :: left == 0 -> RESET :: else fi
#define TEARDOWN_BOOT ARRIVE
#define TEARDOWN_OTHER ARRIVE
#elif VARIANT == MIGRATION_OFF
#define TEARDOWN_BOOT RESET; allowed = 0
#define TEARDOWN_OTHER allowed = 0
#elif VARIANT == MERGED
#define TEARDOWN_BOOT allowed = 0
#define TEARDOWN_OTHER allowed = 0
#else
#define TEARDOWN_BOOT RESET
#define TEARDOWN_OTHER skip
#endif

#ifdef STRAGGLER
#define FREE(p) if :: !new_kernel -> busy[p] = 0 :: else fi
#else
#define FREE(p) busy[p] = 0
#endif

#define REQUEST(may, p, to, label) \
    :: atomic { may && !busy[p] && mapped[p] != to -> mapped[p] = to; busy[p] = 1; goto label }
#define CALL(p, to, back) \
    :: atomic { true -> listed[p] = to; FREE(p); M_SAFE; goto back }
#define STOPPED \
    :: atomic { ipi[i] == STOP -> ipi[i] = NOTHING; stopping--; goto end_stopped }

#ifdef DEVICE
#define GONE_DOWN skip
#else
#define GONE_DOWN down[i] = 1
#endif
#define TEAR_DOWN(back) \
    :: atomic { ipi[i] == TEARDOWN -> \
           TEARDOWN_OTHER; ipi[i] = NOTHING; waiting--; GONE_DOWN; M_SAFE; goto back }
#ifdef INTERRUPTED
#define INTERRUPT(back) TEAR_DOWN(back) STOPPED
#else
#define INTERRUPT(back) STOPPED
#endif
#define LATE(p, to) \
    :: atomic { new_kernel && ipi[i] == STOP -> listed[p] = to; M_SAFE; goto end_still_runs }

proctype ap(byte i)
{
#ifdef STRAGGLER
end_serves:
#endif
serves:
    if
    REQUEST(SERVES, 0, 1, tell_0_shared)
    REQUEST(SERVES, 0, 0, tell_0_private)
    REQUEST(SERVES, 1, 1, tell_1_shared)
    REQUEST(SERVES, 1, 0, tell_1_private)
    TEAR_DOWN(serves)
    STOPPED
#ifdef STRAGGLER
    LATE(0, 1)
    LATE(0, 0)
    LATE(1, 1)
    LATE(1, 0)
#endif
    fi;
tell_0_shared:
    if
    CALL(0, 1, serves)
    INTERRUPT(tell_0_shared)
    fi;
tell_0_private:
    if
    CALL(0, 0, serves)
    INTERRUPT(tell_0_private)
    fi;
tell_1_shared:
    if
    CALL(1, 1, serves)
    INTERRUPT(tell_1_shared)
    fi;
tell_1_private:
    if
    CALL(1, 0, serves)
    INTERRUPT(tell_1_private)
    fi;
end_stopped:
    false;
end_still_runs:
    false
}

#define ASK(what, count) \
    count = APS; \
    i = 0; \
    do \
    :: i < APS -> ipi[i] = what; i++ \
    :: else -> break \
    od; \
    i = 0

proctype boot_cpu()
{
    byte i;

kexec:      atomic { ASK(TEARDOWN, waiting) };
teardown:   atomic { TEARDOWN_BOOT; M_SAFE };
notifiers:  atomic { waiting == 0 };
#ifdef DEVICE
live:
    if
    :: atomic { true -> devices = 0; goto stop }
    REQUEST(devices, 0, 1, boot_0_shared)
    REQUEST(devices, 0, 0, boot_0_private)
    REQUEST(devices, 1, 1, boot_1_shared)
    REQUEST(devices, 1, 0, boot_1_private)
    fi;
boot_0_shared:
    if
    CALL(0, 1, live)
    fi;
boot_0_private:
    if
    CALL(0, 0, live)
    fi;
boot_1_shared:
    if
    CALL(1, 1, live)
    fi;
boot_1_private:
    if
    CALL(1, 0, live)
    fi;
#endif
stop:       atomic { ASK(STOP, stopping) };
stop_wait:
    if
    :: atomic { stopping == 0 }
#ifdef STRAGGLER
    :: atomic { stopping == 1 }
#endif
    fi;
relocate:
    atomic {
        new_kernel = 1;
        mapped[0] = 0;
        mapped[1] = 1;
        busy[0] = 0;
        busy[1] = 0;
        M_SAFE
    };
#if VARIANT == MERGED
early_boot: atomic { listed[0] = 0; listed[1] = 0; M_SAFE };
#endif
bss_decrypted:
    atomic { listed[1] = 1; told = 1; M_SAFE; AT_END(!SWITCHES_OFF) };
#if SWITCHES_OFF
late_initcall:
    atomic { allowed = 1; M_SAFE; AT_END(1) };
#endif
end_up:
    false
}

init {
    byte i;

    atomic {
        i = 0;
        do
        :: i < APS -> run ap(i); i++
        :: else -> break
        od;
        run boot_cpu()
    }
end_init:
    false
}
