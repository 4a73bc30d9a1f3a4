/* The flow sev-es-kexec/jump-table for SPIN: the peer of `pysev check` in bench_check.py.
 *
 * Same roles, same steps: a boot CPU, and for each other CPU the AP itself and the hypervisor's
 * thread of its vCPU; and the new kernel's memory management, which takes the old kernel's text
 * and page tables whenever it likes. One step of the flow is one atomic statement here, hazards
 * of memory that was taken included. What differs in the encoding:
 *
 *  - positions in programs are SPIN's own, words are bytes and bits;
 *  - the host's answers are written out here for the one path that this flow can take: the
 *    request's MSR value is a state of `answer`, what the boot CPU asks the host before it
 *    loads the image, and again in the new kernel, has one outcome each (constants of this variant);
 *  - what violates a property is an assertion; "every AP comes up, nobody waits for ever" is
 *    SPIN's search for invalid end states.
 *
 * -DN=5: number of CPUs, the boot CPU among them; 2 to 9.
 */
#ifndef N
#define N 5
#endif
#define APS (N - 1)

#define RUNNABLE 0
#define INIT_RECEIVED 1
#define HELD 2

#define NOTHING 0
#define NOT_RELEASED 1
#define RELEASED 2

#define NOT_TRIED 0
#define WAKING 1
#define UP 2
#define GIVEN_UP 3

bit new_kernel, vector_written;
bit text_taken, tables_taken, low_taken;
byte stopping;
byte untried = APS;

bit ipi[APS], init_pending[APS], sipi_pending[APS], held_by_msr[APS], vector[APS];
byte mp_state[APS], answer[APS], bring_up[APS], times_up[APS];

#define RUNS (mp_state[i] == RUNNABLE)
#define STEP(taken, guard) \
    :: atomic { RUNS && (guard) && !(taken)
#define FOREIGN_FETCH(taken) \
    :: atomic { RUNS && (taken) -> assert(false) }

proctype ap(byte i)
{
old_kernel:
    if
    STEP(text_taken || tables_taken, ipi[i]) -> ipi[i] = 0 }
    FOREIGN_FETCH(text_taken || tables_taken)
    fi;
stop:
    if
    STEP(text_taken || tables_taken, true) }
    FOREIGN_FETCH(text_taken || tables_taken)
    fi;
park:
    if
    STEP(text_taken || tables_taken, true) }
    FOREIGN_FETCH(text_taken || tables_taken)
    fi;
leave:
    if
    STEP(text_taken || low_taken, true) }
    FOREIGN_FETCH(text_taken || low_taken)
    fi;
low:
    if
    STEP(low_taken, true) }
    FOREIGN_FETCH(low_taken)
    fi;
page:
    if
    STEP(0, true) }
    fi;
hold:
    if
    STEP(0, true) ->
        stopping--;
        answer[i] = NOT_RELEASED;
        held_by_msr[i] = 1;
        mp_state[i] = HELD }
    fi;
held:
    if
    STEP(0, answer[i] != RELEASED) -> goto hold }
    STEP(0, answer[i] == RELEASED) -> vector[i] = vector_written }
    fi;
trampoline:
    if
    STEP(0, vector[i] == vector_written && new_kernel) ->
        times_up[i]++;
        assert(times_up[i] == 1 && vector[i] == 1) }
    STEP(0, vector[i] != vector_written) -> assert(false) }
    fi;
end_new_kernel:
    false
}

proctype vcpu_thread(byte i)
{
end_deliver:
    do
    :: atomic { init_pending[i] -> init_pending[i] = 0; mp_state[i] = INIT_RECEIVED }
    :: atomic { sipi_pending[i] && !init_pending[i] ->
           sipi_pending[i] = 0;
           if
           :: mp_state[i] == INIT_RECEIVED ->
               if
               :: held_by_msr[i] -> answer[i] = RELEASED
               :: else
               fi;
               held_by_msr[i] = 0;
               mp_state[i] = RUNNABLE
           :: else
           fi }
    od
}

proctype new_memory()
{
end_use:
    do
    :: atomic { new_kernel && !text_taken -> text_taken = 1 }
    :: atomic { new_kernel && !tables_taken -> tables_taken = 1 }
    od
}

/* operations that bind one other CPU */
#define SEND_INIT(k) \
    :: atomic { untried != 0 && bring_up[k] == NOT_TRIED -> \
           bring_up[k] = WAKING; init_pending[k] = 1; sipi_pending[k] = 0 }
#define SEND_STARTUP(k) :: atomic { bring_up[k] == WAKING -> sipi_pending[k] = 1 }
#define ARRIVED(k) \
    :: atomic { bring_up[k] == WAKING && times_up[k] != 0 -> bring_up[k] = UP; untried-- } \
    :: atomic { bring_up[k] == WAKING && times_up[k] == 0 && !init_pending[k] && \
                !sipi_pending[k] && mp_state[k] != RUNNABLE -> \
           bring_up[k] = GIVEN_UP; untried-- }

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

proctype boot_cpu()
{
    byte i;

firmware:   atomic { true };
negotiate:  atomic { true };
jump_table: atomic { true };
install:    atomic { true };
load:       atomic { true };
kexec:
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
stopped:    atomic { true };
relocate:   atomic { new_kernel = 1 };
boot:       atomic { low_taken = 1 };
negotiate_again: atomic { new_kernel };
jump_table_again: atomic { new_kernel };
write:      atomic { vector_written = 1 };
next:
    if
    EACH(SEND_INIT)
    :: atomic { untried == 0 -> goto end_up }
    fi;
startup:
    if
    EACH(SEND_STARTUP)
    fi;
startup_2:
    if
    EACH(SEND_STARTUP)
    fi;
await:
    if
    EACH(ARRIVED)
    fi;
    goto next;
end_up:
    false
}

init {
    byte i;

    atomic {
        i = 0;
        do
        :: i < APS -> run ap(i); run vcpu_thread(i); i++
        :: else -> break
        od;
        run new_memory();
        run boot_cpu()
    }
end_init:
    false
}
