"""Operations that reach other vCPUs through the host are not independent of those they reach."""

import pytest

from ghcbcore._cffi import lib
from ghcbcore.profile import Profile
from pysev.checking import check
from pysev.flow import Flow, op, put
from pysev.words import create_ap

GHCB, VMSA = 0x1000, 0x5000


def looking(who_creates):
    """A CPU looks whether AP creation has given it a VMSA, and notes what it saw."""
    flow = Flow("look", Profile(guest=lib.GHCB_GUEST_SNP))
    flow.start(registered_gpa=GHCB)
    flow.per_cpu(saw=0, noted=0)
    cpu = flow.cpu
    creator = flow.agent("creator", per_cpu=who_creates == "AP")
    vcpu = cpu if who_creates == "AP" else flow.boot
    creator.at(
        "create",
        op("AP creation", pick=True, do=create_ap(vcpu, flow.other, GHCB, VMSA)),
        ends=True,
    )
    creator.at("created", ends=True)
    thread = flow.agent("vCPU thread", per_cpu=True)
    thread.at(
        "look",
        op("sees no VMSA", when=[cpu.vmsa == 0], do=[put(cpu.saw, 1)], to="note"),
        op("sees a VMSA", when=[cpu.vmsa != 0], do=[put(cpu.saw, 2)], to="note"),
    )
    thread.at("note", op("notes it", do=[put(cpu.noted, cpu.saw)]))
    thread.at("noted", ends=True)
    flow.sometimes("none is noted", lambda s: (s.cpu.noted == 1).any(axis=1))
    flow.always("a VMSA is never noted", lambda s: (s.cpu.noted != 2).all(axis=1))
    return flow


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("who_creates", ["boot CPU", "AP"])
def test_ap_creation_is_seen_before_and_after_what_it_changes(who_creates, reduced):
    result = check(looking(who_creates), 3, reduced=reduced)
    assert result.verdict == "violated"
    assert set(result.violations) == {"a VMSA is never noted"}
    assert result.reached == {"none is noted": True}
