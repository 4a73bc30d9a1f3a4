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

HYPERCALL_TO_VMM = 20 * US
"""Assumption: a hypercall that KVM hands to userspace, as KVM_HC_MAP_GPA_RANGE is, and back."""

PAGE_TABLE_CHANGE = 2 * US
"""Assumption: set_memory_encrypted or _decrypted of one page, without its hypercall."""

DEVICE_REQUEST = 100 * MS
"""Assumption: mean time between two requests of a device that convert a page, on each CPU."""

DEVICE_SHUTDOWN = 1 * MS
"""Assumption: from the last reboot notifier to the end of device_shutdown."""
PVALIDATE = 300 * NS
"""Assumption: an instruction that writes an RMP entry, with its TLB miss."""

LEAF_LOOKUP = 20 * NS
"""Assumption: a leaf of the direct map is looked up by walking four levels, in the cache."""

GHCB_COMPARISON = 1 * NS
"""Assumption: a leaf is compared with the GHCB of one possible CPU."""

AP_DESTROY = 10 * US
"""Assumption: AP_CREATION of another vCPU, which the hypervisor kicks out of the guest."""

RMPADJUST = 300 * NS
"""Assumption: as PVALIDATE."""

TDX_CONVERT = 14 * US
"""MapGPA and accept of one page: about 14 us were measured for the accept of 4 KiB.
Derived from asterinas pull request 1691 (8 GiB in 30 s)."""
