/* The flows snp-host-kdump/{nmi-decommission,wbinvd-first} for SPIN.
 *
 * Same roles, same steps as pysev/flows/snp_host_kdump.py: a boot CPU that panics and is the crash
 * kernel's boot CPU, and for each other CPU one process that runs guests until its NMI. One
 * operation of the flow is one atomic statement here; there is no other. What differs in the
 * encoding:
 *
 *  - positions in programs are SPIN's own, words are bits and bytes;
 *  - firmware is written out for what these flows ask of it: both guests are decommissioned in one
 *    step, so that their ASIDs have one state, and all CPUs sit on one CCX;
 *  - `inside` and `flushed` count CPUs in guests and CPUs that have executed WBINVD; the flow has
 *    these in the words of each CPU;
 *  - a property is an assertion after each step at which it could fail, and -DPROPERTY=1 to 5 says
 *    which of S1 to S5 is looked at; "nobody waits for ever" is SPIN's search for invalid end
 *    states. With -c0 the search goes on behind an error.
 *
 * -DN=4: number of CPUs, the boot CPU among them. -DVARIANT=NMI_DECOMMISSION or WBINVD_FIRST.
 * -DNO_NMI: one CPU never takes the NMI. -DMID_VMEXIT: a #VMEXIT has two steps.
 */
#define NMI_DECOMMISSION 1
#define WBINVD_FIRST 2

#ifndef VARIANT
#define VARIANT NMI_DECOMMISSION
#endif
#ifndef N
#define N 4
#endif
#ifndef PROPERTY
#define PROPERTY 0
#endif
#define APS (N - 1)

/* nmi[] */
#define SENT 1
#define DEAF 2
/* the ASIDs */
#define CLEAN 0
#define IN_USE 2
#define DIRTY 3
/* answers of firmware */
#define SUCCESS 0
#define WBINVD_REQUIRED 14
#define DFFLUSH_REQUIRED 15

byte nmi[APS];
bit done[APS];
byte in[APS]; /* the ASID of the guest that it is in */
bit boot_done = 1;
byte flushed = N, inside;
byte waiting, stuck, deaf, status;
byte asids = IN_USE;
bit sev_on = 1, snp_on = 1;
bit timed_out, over;
#if VARIANT == NMI_DECOMMISSION
bit in_flight, clash, initiated, handled;
short missing = 1;
#endif

#define S1(good) assert(PROPERTY != 1 || (good))
#define S2 assert(PROPERTY != 2 || asids != CLEAN || flushed == N)
#define S3 assert(PROPERTY != 3 || !clash)
#define S4 assert(PROPERTY != 4 || !snp_on)
#define S5 assert(PROPERTY != 5)

#define WBINVD if :: !done[i] -> done[i] = 1; flushed++ :: else fi
#define BOOT_WBINVD if :: !boot_done -> boot_done = 1; flushed++ :: else fi

#define DECOMMISSION \
    asids = DIRTY; \
    flushed = 0; \
    boot_done = 0; \
    k = 0; \
    do \
    :: k < APS -> done[k] = 0; k++ \
    :: else -> break \
    od; \
    k = 0; \
    S1(inside == 0)
#define DF_FLUSH \
    if \
    :: flushed == N -> \
        status = SUCCESS; \
        if \
        :: asids == DIRTY -> asids = CLEAN \
        :: else \
        fi \
    :: else -> status = WBINVD_REQUIRED \
    fi; \
    S2
#define SHUTDOWN_EX \
    if \
    :: asids == CLEAN -> status = SUCCESS; snp_on = 0 \
    :: else -> status = DFFLUSH_REQUIRED \
    fi

#if VARIANT == NMI_DECOMMISSION
#define COLLIDE if :: in_flight -> clash = 1 :: else fi; S3
#else
#define COLLIDE skip
#endif

#ifdef NO_NMI
#define GOES_ON (!over)
#else
#define GOES_ON true
#endif
#define LEAVE assert(in[i]); in[i] = 0; inside--

#ifdef MID_VMEXIT
#define VMEXIT atomic { true -> goto exiting }
#define NMI_IN_GUEST
#else
#define VMEXIT atomic { true -> LEAVE; goto host }
#define NMI_IN_GUEST :: atomic { nmi[i] == SENT -> LEAVE; WBINVD; nmi[i] = 0; goto callback }
#endif

proctype ap(byte i)
{
    byte k;

#ifdef NO_NMI
end_host:
#endif
host:
    if
    :: atomic { GOES_ON && asids == IN_USE -> in[i] = 1; inside++; goto guest }
    :: atomic { GOES_ON && asids == IN_USE -> in[i] = 2; inside++; goto guest }
    :: atomic { GOES_ON && asids != IN_USE -> S1(false); goto refused }
    :: atomic { GOES_ON && asids != IN_USE -> S1(false); goto refused }
    :: atomic { nmi[i] == SENT -> WBINVD; nmi[i] = 0; goto callback }
    fi;
guest:
    if
    :: VMEXIT
    NMI_IN_GUEST
    fi;
exiting:
    atomic { true -> LEAVE; goto host };
refused:
    atomic { true -> goto end_gone };
callback:
#if VARIANT == NMI_DECOMMISSION
    if
    :: atomic { handled -> WBINVD; waiting--; goto end_halted }
    :: atomic { !handled && !initiated ->
           initiated = 1; missing = N - 2; stuck++; goto waits_for_all }
    :: atomic { !handled && initiated -> missing--; stuck++; goto waits_for_first }
    fi;
waits_for_all:
    atomic { missing == 0 -> COLLIDE; in_flight = 1 };
decommissions:
    atomic { true -> in_flight = 0; DECOMMISSION; handled = 1; stuck-- };
flush:
    atomic { true -> WBINVD; waiting--; goto end_halted };
waits_for_first:
    atomic { handled -> stuck--; WBINVD; waiting--; goto end_halted };
#else
    atomic { true -> waiting--; goto end_halted };
#endif
end_halted:
    false;
end_gone:
    false
}

proctype boot_cpu()
{
    byte k;

#ifdef NO_NMI
lost:
    atomic {
        true ->
        if
        :: nmi[0] == 0 -> nmi[0] = DEAF
#if N > 2
        :: nmi[1] == 0 -> nmi[1] = DEAF
#endif
#if N > 3
        :: nmi[2] == 0 -> nmi[2] = DEAF
#endif
#if N > 4
        :: nmi[3] == 0 -> nmi[3] = DEAF
#endif
#if N > 5
        :: nmi[4] == 0 -> nmi[4] = DEAF
#endif
        fi;
        stuck++;
        deaf++
    };
#endif
panic:
    atomic {
        true ->
        waiting = APS;
        k = 0;
        do
        :: k < APS ->
            if
            :: nmi[k] != DEAF -> nmi[k] = SENT
            :: else
            fi;
            k++
        :: else -> break
        od;
        k = 0
    };
waits:
    if
    :: atomic { waiting == 0 }
#if VARIANT == NMI_DECOMMISSION
    :: atomic { waiting >= 1 && waiting == stuck && missing != 0 -> timed_out = 1 }
#else
    :: atomic { waiting >= 1 && waiting == stuck -> timed_out = 1 }
#endif
    fi;
#if VARIANT == WBINVD_FIRST
decommission:
    atomic { true -> DECOMMISSION };
#endif
notifier:
    atomic { true -> COLLIDE; sev_on = 0; BOOT_WBINVD; SHUTDOWN_EX };
answer_1:
    if
    :: atomic { status == SUCCESS -> goto crash_shutdown }
    :: atomic { status == DFFLUSH_REQUIRED -> COLLIDE; DF_FLUSH }
    fi;
answer_2:
    if
    :: atomic { status == SUCCESS -> COLLIDE; SHUTDOWN_EX }
    :: atomic { status == WBINVD_REQUIRED -> goto crash_shutdown }
    fi;
answer_3:
    if
    :: atomic { status == SUCCESS }
    :: atomic { status == DFFLUSH_REQUIRED }
    fi;
crash_shutdown:
    atomic { true -> k = 0 };
#if VARIANT == NMI_DECOMMISSION
callback:
    if
    :: atomic { handled -> BOOT_WBINVD; goto machine_kexec }
    :: atomic { !handled && !initiated -> initiated = 1; missing = N - 2; goto waits_for_all }
    :: atomic { !handled && initiated -> missing--; goto waits_for_first }
    fi;
waits_for_all:
    atomic { missing == 0 -> COLLIDE; in_flight = 1 };
decommissions:
    atomic { true -> in_flight = 0; DECOMMISSION; handled = 1 };
flush:
    atomic { true -> BOOT_WBINVD; goto machine_kexec };
waits_for_first:
    atomic { handled -> BOOT_WBINVD };
#endif
machine_kexec:
    atomic { true -> S4 };
iommu:
    if
    :: atomic { !snp_on -> goto devices }
    :: atomic { snp_on }
    fi;
completion_wait:
    atomic { true -> k = 0 };
timer:
    atomic { true -> over = 1; S5; goto end_dead };
devices:
    atomic { true -> over = 1 };
end_user_space:
    false;
end_dead:
    false
}

init {
    byte i;

    atomic {
        i = 0;
        do
        :: i < APS -> done[i] = 1; run ap(i); i++
        :: else -> break
        od;
        i = 0;
        run boot_cpu()
    }
end_init:
    false
}
