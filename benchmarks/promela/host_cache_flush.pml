/* The flows host-cache-flush/{every-cpu,remote-only,last-only,none}-sme for SPIN.
 *
 * Same roles, same steps: a boot CPU, the other CPUs, and the cache of each, which writes dirty
 * copies back whenever it likes. One step of the flow is one atomic statement here. There is one
 * line, with at most one dirty copy under the C-bit (a store takes it from all other CPUs) and, on the
 * boot CPU alone, a copy without it. What differs in the encoding:
 *
 *  - positions in programs are SPIN's own, words are bits;
 *  - the words of caches and memory are written out for the values and keys of these variants;
 *  - "the new kernel reads what was stored" is an assertion; "nobody waits for ever" is SPIN's search
 *    for invalid end states.
 *
 * -DN=5: number of CPUs, the boot CPU among them. -DLAST=0: the boot CPU executes no WBINVD;
 * -DREMOTE=0: the others execute none.
 */
#ifndef N
#define N 5
#endif
#ifndef REMOTE
#define REMOTE 1
#endif
#ifndef LAST
#define LAST 1
#endif
#define APS (N - 1)

#define NOT_READ 0
#define READ_NEW 1
#define READ_NOISE 2

bit old_dirty[N]; /* a dirty copy with the C-bit; the boot CPU is the last one */
bit new_dirty;    /* the boot CPU's dirty copy without the C-bit */
bit new_clean;    /* ... or clean one, filled by its read */
bit memory_new;   /* memory: 0 the old kernel's, with the C-bit; 1 the new kernel's */
bit new_kernel;
byte read;
byte stopping;
bit ipi[APS];

inline store_old(cpu)
{
    k = 0;
    do
    :: k < N -> old_dirty[k] = 0; k++
    :: else -> break
    od;
    k = 0;
    old_dirty[cpu] = 1
}

inline wbinvd(cpu)
{
    if
    :: old_dirty[cpu] -> memory_new = 0; old_dirty[cpu] = 0
    :: else
    fi
}

proctype other_cpu(byte i)
{
    byte k;

old_kernel:
    if
    :: atomic { true -> store_old(i) }
    :: atomic { ipi[i] -> ipi[i] = 0; goto flush }
    fi;
busy:
    atomic { ipi[i] -> ipi[i] = 0 };
flush:
#if REMOTE
    atomic { true -> wbinvd(i) };
#else
    atomic { !ipi[i] };
#endif
report:
    atomic { true -> stopping-- };
end_halted:
    false
}

proctype cache(byte i)
{
end_any_time:
    do
    :: atomic { old_dirty[i] -> old_dirty[i] = 0; memory_new = 0 }
    od
}

proctype boot_cache()
{
end_any_time:
    do
    :: atomic { old_dirty[APS] -> old_dirty[APS] = 0; memory_new = 0 }
    :: atomic { new_dirty -> new_dirty = 0; memory_new = 1 }
    od
}

proctype boot_cpu()
{
    byte k;

kexec:
    atomic {
        true ->
        stopping = APS;
        k = 0;
        do
        :: k < APS -> ipi[k] = 1; k++
        :: else -> break
        od;
        k = 0
    };
stopping_others: atomic { stopping == 0 };
machine_kexec:
    if
    :: atomic { true -> store_old(APS) }
    :: atomic { stopping == 0 }
    fi;
segments:   atomic { stopping == 0 };
relocate:
#if LAST
    atomic { true -> wbinvd(APS) };
#else
    atomic { stopping == 0 };
#endif
copy:       atomic { true -> new_dirty = 1 };
jump:       atomic { true -> new_kernel = 1 };
reads:
    atomic {
        true ->
        if
        :: new_dirty && !new_clean -> read = READ_NEW
        :: !new_dirty && memory_new -> read = READ_NEW; new_clean = 1
        :: !new_dirty && !memory_new -> read = READ_NOISE; new_clean = 1
        fi;
        assert(read == READ_NEW)
    };
end_up:
    false
}

init {
    byte i;

    atomic {
        i = 0;
        do
        :: i < APS -> run other_cpu(i); run cache(i); i++
        :: else -> break
        od;
        run boot_cache();
        run boot_cpu()
    }
end_init:
    false
}
