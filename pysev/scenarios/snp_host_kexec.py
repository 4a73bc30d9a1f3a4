"""``snp-host-kdump/orderly-kexec*``: the same host goes down without a panic, for comparison.

What the CPUs do is in ``pysev.flows.snp_host_kexec``.
"""

from __future__ import annotations

from collections.abc import Callable

from ..firmware import Status
from ..flow import Flow
from ..flows.snp_host_kexec import Orderly, SnpHostKexec
from ..machine import Machine
from .registry import Scenario, register
from .snp_host_kdump import MERGED, SHUTDOWN, forbid_early_clean, forbid_guests

__all__ = ["K5", "K6"]

K5 = "S5: the new kernel reaches user space"
K6 = "the new kernel has SNP of its own, every ASID CLEAN"


def _build_orderly(left: Orderly, name: str) -> Callable[[Machine], Flow]:
    def build(machine: Machine) -> Flow:
        made = SnpHostKexec(left, machine, name).build()
        flow, psp = made.flow, made.psp
        forbid_guests(flow, psp)
        forbid_early_clean(flow, psp)
        flow.always(K5, lambda s: ~s.at("boot CPU", "dead"), "the new kernel reaches user space")
        flow.at_end(K6, lambda s: psp.is_up(s) & psp.is_clean(s) & s.at("boot CPU", "user space"))
        flow.sometimes("SHUTDOWN_EX is refused", lambda s: s.g.status == Status.DFFLUSH_REQUIRED)
        if machine.n_cpus > 1:
            flow.sometimes(
                "a CPU is in a guest while the host goes down",
                lambda s: (psp.threads(s)["runs"] != 0).any(axis=1) & (s.g.waiting > 0),
            )
        flow.count_cpus("stopped", lambda s: s.at("AP", "halted"))
        return flow

    return build


KEXEC = f"{SHUTDOWN}, snp_shutdown; Linux arch/x86/kvm/svm/sev.c"
for _suffix, _left, _because, _summary, _story, _source in (
    (
        "",
        Orderly(),
        "",
        "kexec -e of an SNP host: guests destroyed, WBINVD by IPI, SHUTDOWN_EX",
        "DFFLUSH_REQUIRED, DF_FLUSH, SHUTDOWN_EX: the new kernel finds the IOMMU unlocked and "
        "builds the RMP anew",
        KEXEC,
    ),
    (
        "+guests-left",
        Orderly(guests_left=True),
        K5,
        "kexec -e of an SNP host whose guests still run",
        "DFFLUSH_REQUIRED twice: SNP stays on, and the new kernel is no crash kernel that would "
        "reuse the old tables",
        f"derived from {KEXEC}; {MERGED}",
    ),
    (
        "+page-left",
        Orderly(page_left=True),
        K5,
        "kexec -e of an SNP host; a page of a destroyed guest stays assigned",
        "SYSCFG.SNPEn stays set: CPUs check the old RMP until SNP_INIT_EX, and the first write to "
        "the page is an RMP #PF",
        KEXEC,
    ),
):
    _name = f"snp-host-kdump/orderly-kexec{_suffix}"
    register(
        Scenario(
            _name,
            _summary,
            "violated" if _because else "holds",
            _because,
            _story,
            _source,
            _build_orderly(_left, _name),
            from_cpus=1,
            least_cpus=2,
        )
    )
