"""How long things take in ``pysev run``, in nanoseconds.

Each number is a fact with its source, or a named assumption: no published figure was found, the
order of magnitude is all that is meant. ``pysev check`` uses none of them.
"""

from __future__ import annotations

NS, US, MS, S = 1, 1_000, 1_000_000, 1_000_000_000

INSTRUCTIONS = 100 * NS
"""Assumption: a handful of instructions with their cache misses."""

VMGEXIT = 2 * US
"""Assumption: world switch, KVM's handler, world switch."""

IPI = 1 * US
"""Assumption: an interrupt reaches another CPU."""

HYPERVISOR_WAKE = 5 * US
"""Assumption: the hypervisor's thread of a blocked vCPU is woken and scheduled."""

STOP_TIMEOUT = 1 * S
"""REBOOT_VECTOR wait of native_stop_other_cpus. Source: Linux arch/x86/kernel/smp.c."""

CRASH_TIMEOUT = 1 * S
"""Crash NMI wait. Source: Linux arch/x86/kernel/reboot.c."""

AP_ALIVE_TIMEOUT = 10 * S
"""A new CPU's sign of life. Unconfirmed: Linux waits about 10 s."""

RELOCATE = 50 * MS
"""Assumption: relocate_kernel copies kernel and initrd, purgatory checks their SHA-256."""

BOOT_TO_SMP = 1500 * MS
"""Assumption: from the new kernel's first instruction to its bring-up of other CPUs."""

INIT_TO_SIPI = 10 * MS
"""10 ms between INIT and STARTUP on old parts, 0 on new; the old value is kept.
Source: Linux arch/x86/kernel/smpboot.c."""

MEMORY_REUSE = 1 * S
"""Assumption: mean time until the new kernel uses a given page of the old one."""
