"""Flows of ``snp-guest-kexec/*`` beside the path of the pages: what else survived into a kernel.

Each function is one flow with the bug and its repair. Who is not part of the argument is left out:
most have one CPU, and one other agent that may come at any time.

Sources: fact sheet "Linux kexec/kdump flows", K5 to K15; at each function.
"""

from __future__ import annotations

from collections.abc import Callable

from ghcbcore._cffi import lib
from ghcbcore.profile import Profile

from .. import costs
from ..flow import Flow, op, put
from ..frames import declare, map_as, pvalidate, rmpupdate
from ..machine import Machine
from .snp_guest_pages import Pages, is_mapped, start_private, start_shared, terminate

__all__ = [
    "NOTHING_FOREIGN",
    "NOT_TERMINATED",
    "decompressor_video",
    "efi_map",
    "ghcb_lookup",
    "secure_avic",
    "stale_vmsa",
    "svsm_calling_area",
    "unaccepted_table",
]

NOT_TERMINATED = "the guest is not terminated"
NOTHING_FOREIGN = "nobody uses what is not his any more"

Build = Callable[[Machine], Flow]


def _snp(name: str, machine: Machine) -> Flow:
    flow = Flow(name, Profile(guest=lib.GHCB_GUEST_SNP))
    flow.start(registered_gpa=machine.ghcb_gpa)
    flow.only_while(flow.vm.event == lib.GHCB_EVENT_NONE)
    flow.always(
        NOT_TERMINATED,
        lambda s: s.vm.event == lib.GHCB_EVENT_NONE,
        "no kernel has to ask for its own end",
    )
    return flow


def decompressor_video(name: str, *, skips: bool) -> Build:
    """K5: the decompressor's #VC handler knows RDTSC, IOIO and CPUID, and video memory is MMIO."""

    def build(machine: Machine) -> Flow:
        flow = _snp(name, machine)
        flow.globals(lines=0)
        g, boot = flow.g, flow.agent("boot CPU")
        boot.phase("load")
        boot.at(
            "load",
            op("kexec_file_load: screen_info of a serial console: no lines"),
            op("kexec -c: passes screen_info of a text console", do=[put(g.lines, 25)]),
        )
        boot.phase("relocate")
        boot.at("relocate", op("relocate_kernel", cost=costs.RELOCATE))
        boot.phase("decompressor")
        text = "decompressor: SEV-ES is on: lines and columns := 0, video is left out"
        boot.at("console", op(text, do=[put(g.lines, 0)]) if skips else op("decompressor: console"))
        boot.at("serial", op("decompressor: OUT to the serial port: #VC, IOIO", cost=costs.VMGEXIT))
        general = terminate(flow.boot, lib.GHCB_TERM_GHCB_GENERAL, lib.GHCB_TERM_SET_GHCB)
        boot.at(
            "video",
            op("decompressor: no video", when=[g.lines == 0], to="up"),
            op(
                "decompressor: writes to video memory: #VC, NPF, no handler: terminates",
                when=[g.lines != 0],
                do=general,
                to="dead",
            ),
        )
        boot.at("dead")
        boot.at("up", ends=True)
        flow.sometimes(
            "a text console was passed on",
            lambda s: s.at("boot CPU", "relocate") & (s.g.lines != 0),
        )
        flow.at_end("the new kernel is unpacked", lambda s: s.at("boot CPU", "up"))
        return flow

    return build


def efi_map(name: str, *, keeps: bool, n_kexecs: int = 2) -> Build:
    """K6: a kernel that was kexec'ed copies the EFI map to pages that are given back at boot."""

    def build(machine: Machine) -> Flow:
        flow = _snp(name, machine)
        flow.globals(in_memblock=0, reused=0, read_foreign=0)
        g, boot = flow.g, flow.agent("boot CPU")
        boot.phase("first kernel")
        boot.at("0", op("first kernel: EFI map from the firmware, kept"))
        for i in range(1, n_kexecs + 1):
            boot.phase(f"kexec {i}")
            boot.at(
                f"{i} read",
                op(f"kexec {i}: reads the EFI map that it was passed", when=[g.reused == 0]),
                op(
                    f"kexec {i}: reads the EFI map: the page is somebody else's, random data",
                    when=[g.reused == 1],
                    do=[put(g.read_foreign, 1)],
                ),
            )
            text = f"kexec {i}: ranges have RUNTIME already: efi_arch_mem_reserve leaves the map"
            if keeps:
                boot.at(f"{i} reserve", op(text))
            else:
                text = f"kexec {i}: efi_arch_mem_reserve copies the map to pages of memblock"
                boot.at(
                    f"{i} reserve", op(text, do=[put(g.in_memblock, 1)], cost=costs.BOOT_TO_SMP)
                )
        boot.at("up", ends=True)
        allocator = flow.agent("page allocator")
        allocator.phase("hand pages out")
        allocator.at(
            "free",
            op(
                "hands out the pages of the EFI map, which memblock gave back",
                when=[g.in_memblock == 1],
                do=[put(g.reused, 1)],
                after=costs.MEMORY_REUSE,
                spread=True,
            ),
            ends=True,
        )
        allocator.at("done", ends=True)
        flow.always(
            NOTHING_FOREIGN, lambda s: s.g.read_foreign == 0, "the EFI map is read while it is one"
        )
        flow.sometimes("the last kernel is up", lambda s: s.at("boot CPU", "up"))
        return flow

    return build


def unaccepted_table(name: str, *, keeps: bool) -> Build:
    """K7: the table of unaccepted memory lies in E820_TYPE_ACPI, outside of the crash range."""

    def build(machine: Machine) -> Flow:
        flow = _snp(name, machine)
        pages = Pages(flow)
        table = (declare(flow, "table", 1, start=start_private()), 0)
        flow.globals(unmapped=0)
        g, boot = flow.g, flow.agent("boot CPU")
        boot.phase("panic")
        boot.at("crash", op("panic: jumps to the crash kernel in its reservation"))
        boot.phase("boot the crash kernel")
        zap = pages.must(table, map_as(lib.FRAME_UNMAPPED))
        text = "crash kernel: RAM is the crash range; page tables of the rest are zapped"
        if keeps:
            boot.at("map", op(f"{text}, but for E820_TYPE_ACPI"))
        else:
            boot.at("map", op(text, do=zap))
        is_there = is_mapped(table, lib.FRAME_UNMAPPED).negated()
        boot.at(
            "accept",
            op(
                "crash kernel: looks a page up in the table of unaccepted memory",
                when=[is_there],
                do=pages.access_private(table),
                to="up",
            ),
            op(
                "crash kernel: page fault on the table of unaccepted memory",
                when=[is_there.negated()],
                do=[put(g.unmapped, 1)],
                to="dead",
            ),
        )
        boot.at("dead")
        boot.at("up", ends=True)
        flow.always(NOTHING_FOREIGN, lambda s: s.g.unmapped == 0, "what is used is mapped")
        flow.always("no access faults", lambda s: s.g.fault == 0)
        flow.sometimes("page tables are cut down", lambda s: s.at("boot CPU", "accept"))
        return flow

    return build


def svsm_calling_area(name: str, *, early_is_boot: bool, second: str = "") -> Build:
    """K9, K15: guest and SVSM must mean the same calling area, and the guest has moved it.

    ``second``: how the next kernel begins: "" (not at all), "from secrets" or "given back".
    """

    def build(machine: Machine) -> Flow:
        flow = _snp(name, machine)
        pages = Pages(flow)
        page = (declare(flow, "page", 1, start=[map_as(lib.FRAME_PRIVATE), rmpupdate(True)]), 0)
        flow.globals(boot_area_call=0, cpu_area_call=0, in_svsm=0, svsm_has_cpu_area=0)
        g, boot = flow.g, flow.agent("boot CPU")

        def call(step: str, what: str, boot_area: bool) -> None:
            area = g.boot_area_call if boot_area else g.cpu_area_call
            where = "boot calling area" if boot_area else "calling area of the CPU"
            text = f"{what}: SVSM_PVALIDATE in the {where}, VMGEXIT: run VMPL0"
            do = [put(area, 1), put(g.in_svsm, 1)]
            boot.at(step, op(text, do=do, cost=costs.VMGEXIT))
            boot.at(
                f"{step} back",
                op(f"{what}: done", when=[g.in_svsm == 0, area == 0]),
                op(
                    f"{what}: the SVSM has not seen the call: terminates",
                    when=[g.in_svsm == 0, area == 1],
                    do=terminate(flow.boot, lib.GHCB_TERM_LINUX_PVALIDATE),
                    to="dead",
                ),
            )

        boot.phase("boot")
        boot.at("early", op("boot: calls through the boot calling area"))
        move = "boot: SVSM_REMAP_CA: the calling area of the CPU"
        boot.at("remap", op(move, do=[put(g.svsm_has_cpu_area, 1)], cost=costs.VMGEXIT))
        boot.phase("F2 unshare")
        call("F2", "F2 conversion", boot_area=False)
        boot.phase("F6 unshare the GHCBs")
        boot.at("F5", op("F5 boot_ghcb := NULL: page changes by the early functions"))
        again = pages.psc(page, True)
        boot.at("F6 PSC", op("F6 VMGEXIT by MSR: PSC to private", do=again, cost=costs.VMGEXIT))
        call("F6", "F6 conversion", boot_area=early_is_boot)
        if second == "given back":
            back = "F6 SVSM_REMAP_CA: the area of the secrets page again"
            boot.at("give back", op(back, do=[put(g.svsm_has_cpu_area, 0)], cost=costs.VMGEXIT))
        boot.phase("relocate")
        boot.at("relocate", op("relocate_kernel", cost=costs.RELOCATE))
        boot.phase("new kernel")
        if second:
            text = "new kernel: VMGEXIT by MSR: PSC to private"
            boot.at("second PSC", op(text, do=pages.psc(page, True), cost=costs.VMGEXIT))
            call("second", "new kernel, area of the secrets page", boot_area=True)
        boot.phase("use memory again")
        boot.at("use", op("uses the page as private", do=pages.access_private(page)))
        boot.at("up", ends=True)
        boot.at("dead")
        svsm = flow.agent("SVSM")
        seen = [*pages.must(page, pvalidate(True)), put(g.in_svsm, 0)]
        rows = []
        for mapped, area, title in (
            (0, g.boot_area_call, "boot calling area"),
            (1, g.cpu_area_call, "calling area of the CPU"),
        ):
            looks = [g.in_svsm == 1, g.svsm_has_cpu_area == mapped]
            text = f"a call in the {title}: PVALIDATE, back to VMPL2"
            rows.append(op(text, when=[*looks, area == 1], do=[*seen, put(area, 0)], to="."))
            nothing = f"no call in the {title}: back to VMPL2"
            rows.append(op(nothing, when=[*looks, area == 0], do=[put(g.in_svsm, 0)], to="."))
        svsm.phase("answer calls")
        svsm.at("loop", *rows, ends=True)
        flow.always("no access faults", lambda s: s.g.fault == 0)
        flow.sometimes(
            "a call after F5", lambda s: s.at("boot CPU", "F6 back") & (s.g.in_svsm == 1)
        )
        return flow

    return build


def secure_avic(name: str, *, teardown: str) -> Build:
    """K10: the APIC's backing page is the old kernel's; ``teardown``: never, early, after F6."""

    def build(machine: Machine) -> Flow:
        flow = _snp(name, machine)
        pages = Pages(flow)
        ghcb = (declare(flow, "ghcb", 1, start=start_shared()), 0)
        flow.globals(enabled=1, backing_taken=0, new_kernel=0, foreign=0)
        g, boot = flow.g, flow.agent("boot CPU")

        def tear_down() -> None:
            off = [put(g.enabled, 0)]
            boot.at("control", op("Secure AVIC: control MSR := 0", do=off))
            text = "Secure AVIC: VMGEXIT {}: the backing page is unregistered"
            boot.at("unregister", *pages.exits(text, ghcb, []))

        boot.phase("stop interrupts")
        boot.at("lapic", op("local APIC off"))
        if teardown == "early":
            tear_down()
        boot.phase("unshare the GHCBs")
        boot.at("F5", op("F5 boot_ghcb := NULL", do=[put(g.by_ghcb, 0)]))
        private = [*pages.to_private_pte(ghcb), *pages.psc(ghcb, True)]
        boot.at("F6", op("F6 GHCB: C-bit, VMGEXIT by MSR: PSC to private", do=private))
        boot.at("F6 PVALIDATE", *pages.validate("F6 GHCB: PVALIDATE", [ghcb]))
        if teardown == "after F6":
            tear_down()
        boot.phase("relocate")
        jumps = op("relocate_kernel", do=[put(g.new_kernel, 1)], cost=costs.RELOCATE)
        boot.at("relocate", jumps)
        boot.phase("new kernel")
        boot.at(
            "apic",
            op("new kernel: sets its local APIC up", when=[g.enabled == 0]),
            op(
                "new kernel: APIC accesses reach the old backing page",
                when=[g.enabled == 1, g.backing_taken == 0],
            ),
            op(
                "new kernel: APIC accesses reach a page that is something else now",
                when=[g.enabled == 1, g.backing_taken == 1],
                do=[put(g.foreign, 1)],
            ),
        )
        boot.at("up", ends=True)
        boot.at("dead")
        memory = flow.agent("new kernel's memory")
        take = op(
            "takes the old backing page",
            when=[g.new_kernel == 1],
            do=[put(g.backing_taken, 1)],
            after=costs.MEMORY_REUSE,
            spread=True,
        )
        memory.phase("reuse")
        memory.at("use", take, ends=True)
        memory.at("used", ends=True)
        flow.always(NOTHING_FOREIGN, lambda s: s.g.foreign == 0, "APIC accesses reach APIC state")
        flow.always("no access faults", lambda s: s.g.fault == 0)
        flow.sometimes(
            "the old backing page is taken before the APIC is set up",
            lambda s: s.at("boot CPU", "apic") & (s.g.backing_taken == 1),
        )
        return flow

    return build


def stale_vmsa(name: str, *, refreshes: bool) -> Build:
    """K14: the SVSM's request loop of an AP keeps its mapping of a VMSA that was replaced."""

    def build(machine: Machine) -> Flow:
        flow = _snp(name, machine)
        flow.globals(vmsa=0, mapped=0, request=0, alive=1)
        g, boot = flow.g, flow.agent("boot CPU")
        boot.phase("replace the AP")
        boot.at("destroy", op("SVSM_DELETE_VCPU, AP_CREATION destroy", do=[put(g.alive, 0)]))
        again = [put(g.vmsa, 1), put(g.alive, 1)]
        boot.at("create", op("SVSM_CREATE_VCPU with another page, AP_CREATION create", do=again))
        boot.at("up", ends=True)
        ap = flow.agent("AP of the guest")
        ap.phase("ask the SVSM")
        ap.at(
            "run",
            op(
                "asks the SVSM, VMGEXIT: run VMPL0",
                when=[g.alive == 1, g.vmsa == 1],
                do=[put(g.request, 1)],
            ),
        )
        ap.at("asked", op("answered", when=[g.request == 0]))
        ap.at("served", ends=True)
        svsm = flow.agent("SVSM's loop of the AP")
        svsm.phase("serve")
        if refreshes:
            text = "wakes: maps the VMSA that the AP has now"
            svsm.at(
                "blocked", op(text, when=[g.request == 1], do=[put(g.mapped, g.vmsa)]), ends=True
            )
        else:
            svsm.at(
                "blocked",
                op("wakes: reads its mapping of the VMSA", when=[g.request == 1]),
                ends=True,
            )
        svsm.at(
            "loop",
            op("serves it", when=[g.mapped == g.vmsa], do=[put(g.request, 0)], to="blocked"),
            op("the old VMSA has no request: reads it again and again", when=[g.mapped != g.vmsa]),
        )
        svsm.at("spins", op("the VMSA has one now", when=[g.mapped == g.vmsa], to="loop"))
        flow.sometimes(
            "the AP is replaced while the loop is blocked",
            lambda s: (s.g.vmsa == 1) & s.at("SVSM's loop of the AP", "blocked"),
        )
        return flow

    return build


def ghcb_lookup(name: str, *, checks: bool) -> Build:
    """K12: F6 looks up the leaf of a GHCB that is not mapped, and gets NULL."""

    def build(machine: Machine) -> Flow:
        flow = _snp(name, machine)
        ghcb = (declare(flow, "ghcb", 1, start=start_shared()), 0)
        pages = Pages(flow)
        flow.globals(null_read=0)
        g, boot = flow.g, flow.agent("boot CPU")
        boot.phase("F6 unshare the GHCBs")
        boot.at(
            "before",
            op("the GHCB of a possible CPU is mapped"),
            op("it is not mapped", do=pages.must(ghcb, map_as(lib.FRAME_UNMAPPED))),
        )
        is_there = is_mapped(ghcb, lib.FRAME_UNMAPPED).negated()
        finds = op("F6 lookup_address: a leaf", when=[is_there], do=pages.to_private_pte(ghcb))
        nothing, none = "F6 lookup_address: NULL", [is_there.negated()]
        if checks:
            boot.at("F6", finds, op(f"{nothing}: warns, goes on", when=none))
        else:
            read = op(f"{nothing}: is read", when=none, do=[put(g.null_read, 1)], to="dead")
            boot.at("F6", finds, read)
        boot.at("up", ends=True)
        boot.at("dead")
        flow.always(NOTHING_FOREIGN, lambda s: s.g.null_read == 0, "no NULL is followed")
        flow.sometimes("a GHCB is converted", lambda s: s.at("boot CPU", "up"))
        return flow

    return build
