"""A design of one's own: parked APs sleep in HLT and are woken by a flag and an NMI.

Can the wake-up be lost? `check` tries every order of events and shows the shortest one in which
it is; with the NMI handler stepping over the HLT it holds.

pysev check examples/own_flow.py:lost_wake_up
"""

from pysev import Flow, check, each, op, put
from pysev.host import MpState
from pysev.words import halt, send_nmi


def parking(handler_skips_hlt: bool) -> Flow:
    flow = Flow("park by flag and NMI")
    flow.globals(flag=0)
    cpu, g = flow.cpu, flow.g
    boot = flow.agent("boot CPU")
    boot.at("wake", op("sets the flag", do=[put(g.flag, 1)]))
    boot.at("kick", op("NMI to every AP", do=[each(send_nmi(flow.other))]))
    boot.at("done", ends=True)
    ap = flow.agent("AP", per_cpu=True, only_while=[cpu.mp_state == MpState.RUNNABLE])
    ap.at(
        "look",
        op("the flag is set: leaves", when=[g.flag == 1], to="up"),
        op("the flag is clear", when=[g.flag == 0]),
    )
    nmi = op("NMI", when=[cpu.nmi_pending == 1], do=[put(cpu.nmi_pending, 0)], to="look")
    late = op("NMI, returns to HLT", when=[cpu.nmi_pending == 1], do=nmi.do, to=".")
    ap.at("sleep", op("HLT", do=[halt(cpu)]), nmi if handler_skips_hlt else late)
    ap.at("woken", nmi)
    ap.at("up", ends=True)
    return flow


def lost_wake_up() -> Flow:
    """the NMI handler returns to the HLT"""
    return parking(handler_skips_hlt=False)


def kept_wake_up() -> Flow:
    """the NMI handler steps over the HLT"""
    return parking(handler_skips_hlt=True)


if __name__ == "__main__":
    for make in (lost_wake_up, kept_wake_up):
        result = check(make(), n_cpus=3)
        skips = make is kept_wake_up
        print(f"handler steps over HLT: {skips}: {result.verdict}, {result.states} states")
        for step in result.counterexample:
            print(f"    {step.agent:10} {step.op:26} {step.detail}")
