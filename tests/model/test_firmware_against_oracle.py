"""The core's firmware and the oracle's answer alike and stand alike after every step."""

from itertools import combinations, product

import pytest
from firmware_pair import NUMBER_OF, Pair, walk
from firmware_rows import ROWS, STEPS, atoms
from firmware_rules import COMMANDS, INVALID_COMMAND, RULES
from hypothesis import given, settings
from hypothesis import strategies as st

from pysev.firmware import Cell, NotModelled

MODES = st.sampled_from(["strict", "genoa_2023"])
STARTS = st.sampled_from(["S0", "SEV", "SEV", "POWER_ON"])

VALUES = {
    "handle": st.integers(1, 4),
    "asid": st.integers(0, 5),
    "gctx": st.integers(11, 14),
    "page": st.sampled_from([11, 12, 31, 32, 34, 35, 40]),
    "pages": st.sampled_from([12, 34]),
    "src": st.sampled_from([34, 35, 40]),
    "dst": st.sampled_from([35, 40, 41]),
    "request": st.sampled_from([40, 41]),
    "response": st.sampled_from([40, 41]),
    "ccxs": st.sampled_from(["0", "1", "0/1", ""]),
    "length": st.sampled_from([8, 8, 7]),
    "size": st.sampled_from([0, 0, 1]),
    "mdata": st.sampled_from([40, 41]),
    "max_snp_asid": st.integers(0, 2),
    "shared": st.integers(0, 2),
}
OPTIONAL = {"length", "size", "mdata", "max_snp_asid", "shared"}
SWITCHES = {"es", "debuggable", "single_socket", "image", "init_rmp", "list", "iommu", "x86"}


@st.composite
def commands(draw):
    name = draw(st.sampled_from(sorted(RULES)))
    words = [name]
    for argument in RULES[name].arguments:
        if argument == "message" and draw(st.booleans()):
            words.append(f"message={draw(st.sampled_from(['VM_IMPORT', 'VM_ABSORB']))}")
            words.append(f"target={draw(st.integers(11, 14))}")
        elif argument in SWITCHES:
            words += [f"{argument}={draw(st.integers(0, 1))}"] * draw(st.booleans())
        elif argument in VALUES and (argument not in OPTIONAL or draw(st.booleans())):
            words.append(f"{argument}={draw(VALUES[argument])}")
    flaws = {check[0] for check in RULES[name].checks if isinstance(check, tuple)}
    flaws = sorted(flaws | RULES[name].flaws)
    if flaws and draw(st.integers(0, 3)) == 0:
        some = draw(st.lists(st.sampled_from(flaws), min_size=1, max_size=2, unique=True))
        words.append("wrong=" + "/".join(some))
    return " ".join(words)


PAGES = [
    *(f"FIRMWARE {page}" for page in (12, 34, 40, 41)),
    *(f"PRE_GUEST {page} {asid}" for page in (34, 35) for asid in (1, 2)),
    *["PRE_GUEST 34 1 1", "HYPERVISOR 34", "HYPERVISOR 40", "PAGES 2", "NO_PAGES 2"],
    *["SNPEN 1", "SNPEN", "HSAVE 2", "HSAVE", "OFFLINE 3", "ONLINE", "ONLINE", "WBINVD 3"],
]
# Where histories begin, so that commands find something to do.
SITUATIONS = {
    "guests run": ("S0", "R 1; R 2; PRE_GUEST 34 1; PRE_GUEST 35 1; FIRMWARE 40; FIRMWARE 41"),
    "one runs, one is launched": ("S0", "R 1; LAUNCHED 2; PRE_GUEST 34 1; FIRMWARE 40"),
    "an image comes in": (
        "S0",
        "R 1; CREATED 2; SNP_LAUNCH_START gctx=12 image=1; SNP_ACTIVATE_EX gctx=12 asid=2 ccxs=0;"
        "CREATED 3; FIRMWARE 40; FIRMWARE 41",
    ),
    "first cores are done": ("S0", "R 1; LAUNCHED 2; DECOM 1; WBINVD 0 1 4 5"),
    "a CCX is clean": ("S0", "R 1; LAUNCHED 2; DECOM 1; WBINVD 0 1 2 3; DF_FLUSH"),
    "one has pages and a CCX": (
        "S0",
        "LAUNCHED 1; SNP_ACTIVATE_EX gctx=11 asid=1 ccxs=0; PRE_GUEST 34 1; FIRMWARE 40",
    ),
    "some cores lack SNPEn": ("POWER_ON", "SNPEN 1"),
    "one is gone": ("S0", "R 1; LAUNCHED 2; CREATED 3; DECOM 1; WBINVD all but 5; DF_FLUSH"),
    "one is pending": ("S0", "PENDING 1; CREATED 2; PRE_GUEST 34 1; FIRMWARE 40; FIRMWARE 41"),
    "a flush is due": ("S0", "R 1; LAUNCHED 2; DECOM 1; WBINVD all"),
    "SEV guests": ("SEV", "SEV 1 3; ES 2 1; LUPDATE 3 4; FIRMWARE 12"),
    "SEV guests at steps": (
        "SEV",
        "SEV 1 3; SEND_START handle=1; LUPDATE 2 4; LAUNCH_MEASURE handle=2; RECEIVE_START",
    ),
    "a SEV guest was sent": (
        "SEV",
        "SEV 1 3; SEND_START handle=1; SEND_FINISH handle=1; LUPDATE 2 0; R 1",
    ),
    "ES guests at steps": (
        "SEV",
        "LAUNCH_START es=1; LAUNCH_START es=1; ACTIVATE handle=2 asid=1; RECEIVE_START es=1",
    ),
    "ES guests are sent": (
        "SEV",
        "ES 1 1; SEND_START handle=1; RECEIVE_START es=1; ACTIVATE handle=2 asid=2",
    ),
    "the platform is owned": ("SEV", "PEK_CERT_IMPORT"),
    "two sockets": (
        "S0",
        "CREATED 1; SNP_LAUNCH_START gctx=11 single_socket=1;"
        "SNP_ACTIVATE_EX gctx=11 asid=1 ccxs=0;"
        "CREATED 2; SNP_LAUNCH_START gctx=12 single_socket=1",
    ),
    "no table of APIC IDs": (
        "SEV",
        "LAUNCHED 1; LUPDATE 1 0; CREATED 2; SNP_LAUNCH_START gctx=12 image=1",
    ),
    "SEV is up": ("SEV", ""),
    "SEV alone is up": ("POWER_ON", "SNPEN 0 1 2 3; INIT"),
    "SEV guests left": ("SEV", "SEV 1 3; ES 2 1; DEACTIVATE handle=1; DEACTIVATE handle=2"),
    "all is clean": ("S0", "LAUNCHED 1; FIRMWARE 40; FIRMWARE 12"),
    "SNP is down": ("S0", "LAUNCHED 1; SHUTDOWN_EX"),
    "SNP and RMP are down": ("S0", "SHUTDOWN_EX iommu=1"),
    "power-on": ("POWER_ON", ""),
}
MACHINE_OF = {
    "two sockets": ("strict", 2, False, True),
    "no table of APIC IDs": ("strict", 1, True, False),
}
ANY = st.one_of(st.sampled_from(STEPS), st.sampled_from(STEPS), commands(), st.sampled_from(PAGES))
HISTORIES = st.lists(ANY, max_size=30)
MACHINES = st.tuples(MODES, st.sampled_from([1, 2]), st.booleans(), st.booleans())


@pytest.mark.slow
@settings(max_examples=5 * settings.default.max_examples)
@given(MACHINES, st.sampled_from(sorted(SITUATIONS)), HISTORIES)
def test_core_and_oracle_agree_on_any_history(machine, situation, history):
    start, prelude = SITUATIONS[situation]
    walk(Pair(*machine), start, [*prelude.split(";"), *history])


@pytest.mark.slow
@given(MACHINES, STARTS, st.lists(st.sampled_from(STEPS), min_size=10, max_size=40))
def test_core_and_oracle_agree_on_long_histories_of_guests_and_flushes(machine, start, history):
    walk(Pair(*machine), start, history)


EACH = {
    "handle": [1, 2, 3],
    "asid": [0, 1, 2, 3, 4, 5],
    "gctx": [11, 12, 13],
    "page": [12, 34, 40],
    "pages": [12, 40],
    "src": [34, 40],
    "dst": [35, 40, 41],
    "request": [40],
    "response": [40, 42],
    "message": ["VM_IMPORT", "VM_ABSORB"],
    "target": [12, 13],
    "ccxs": ["0", "0/1", ""],
    "init_rmp": [0, 1],
    "list": [0, 1],
    "iommu": [0, 1],
    "x86": [0, 1],
    "length": [7, 8],
    "es": [0, 1],
    "single_socket": [0, 1],
    "image": [0, 1],
    "size": [0, 1],
    "max_snp_asid": [0, 1],
    "shared": [0, 9],
}


def every_command():
    for name in RULES:
        choices = [[f"{n}={v}" for v in EACH[n]] for n in RULES[name].arguments if n in EACH]
        flaws = {check[0] for check in RULES[name].checks if isinstance(check, tuple)}
        flaws = sorted(flaws | RULES[name].flaws)
        two = [f"wrong={one}/{other}" for one, other in combinations(flaws, 2)]
        wrong = ["", *(f"wrong={flaw}" for flaw in flaws), *two]
        for words in product(*choices, wrong):
            yield " ".join([name, *words])


COMMANDS_OF_ALL = list(every_command())


@pytest.mark.parametrize("situation", sorted(SITUATIONS))
def test_core_and_oracle_agree_on_every_command_in_a_situation(situation):
    start, prelude = SITUATIONS[situation]
    pair = None
    for step in COMMANDS_OF_ALL:
        if pair is None:
            pair = Pair(*MACHINE_OF.get(situation, ["genoa_2023"]))
            for one in atoms(start, prelude.split(";")):
                assert len(set(pair.take(one))) == 1
        ours, theirs = pair.take(step)
        assert ours == theirs, f"{step}: oracle {ours:#x}, core {theirs:#x}"
        if ours == 0 or "FLUSH" in step or "x86_failure" in step:
            assert pair.differences() == [], step
            pair = None


@pytest.mark.parametrize("mode", ["strict", "genoa_2023"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['section']}: {row['rule']}")
def test_core_agrees_on_every_step_of_the_rows(row, mode):
    walk(Pair(mode), row["start"], [t.partition("->")[0] for t in row["history"].split(";")])


def test_core_and_oracle_know_the_same_commands():
    for number in range(256):
        name = COMMANDS.get(number)
        core = Pair().core
        if name in RULES:
            assert COMMANDS[NUMBER_OF[name]] == name
            assert int(core.command(number)) != INVALID_COMMAND
        elif name is not None:
            with pytest.raises(NotModelled):
                core.command(number)
        else:
            assert int(core.command(number)) == INVALID_COMMAND


# Where the two once differed: what the last step comes to.
MESSAGE = "SNP_GUEST_REQUEST gctx=11 request=40 response=41"
SETTLED = [
    (
        "S0",
        "R 1; LAUNCHED 9; DECOM 1; WBINVD 0 1 2 3; DF_FLUSH; SNP_ACTIVATE_EX gctx=19 asid=1 ccxs=0",
        0x0F,
    ),
    (
        "S0",
        "LAUNCHED 1; SNP_ACTIVATE_EX gctx=11 asid=1 ccxs=0; PAGES 1;"
        "SNP_ACTIVATE_EX gctx=11 asid=1 ccxs=1",
        0x00,
    ),
    (
        "SEV",
        "SEV 1 3; SEND_START handle=1; SEND_FINISH handle=1; ACTIVATE_EX handle=1 asid=4 ccxs=0",
        0x02,
    ),
    ("SEV", "LUPDATE 1 0; ACTIVATE_EX handle=1 asid=1 ccxs=0 wrong=count", 0x16),
    ("SEV", "LUPDATE 1 3; ATTESTATION handle=1", 0x02),
    ("SEV", "SEV 1 3; SEND_START handle=1; ATTESTATION handle=1", 0x00),
    ("SEV", "LUPDATE 1 3; LAUNCH_UPDATE_VMSA handle=1", 0x15),
    ("S0", "SNP_DBG_DECRYPT gctx=11 page=12", 0x10),
    ("S0", "PAGES 1; SNP_DBG_DECRYPT gctx=11 page=31", 0x10),
    ("S0", "R 1; PRE_GUEST 34 1; SNP_PAGE_SWAP_OUT gctx=11 src=34 dst=12 wrong=counter", 0x1A),
    ("POWER_ON", "SNPEN 1; INIT", 0x00),
    ("S0", "SHUTDOWN_EX iommu=1 x86=1 wrong=x86_failure", 0x28),
    ("S0", f"R 1; LAUNCHED 2; FIRMWARE 41; {MESSAGE} message=VM_IMPORT target=12", 0x00),
    (
        "S0",
        "R 1; CREATED 2; SNP_LAUNCH_START gctx=12 image=1; SNP_ACTIVATE gctx=12 asid=2;"
        f"FIRMWARE 41; {MESSAGE} message=VM_ABSORB target=12",
        0x00,
    ),
]


@pytest.mark.parametrize(("start", "history", "status"), SETTLED)
def test_a_point_that_was_open_is_settled(start, history, status):
    pair = Pair()
    *before, last = atoms(start, history.split(";"))
    for step in before:
        assert len(set(pair.take(step))) == 1
    assert pair.take(last) == (status, status)
    assert pair.differences() == []


def test_an_absorbed_guest_stays_pending_until_it_gets_another_ccx():
    pair = Pair()
    walk(pair, "S0", [*SETTLED[-1][1].split(";"), "SNP_ACTIVATE_EX gctx=12 asid=2 ccxs=0"])
    assert (pair.core.asids()[1] == Cell.IN_USE).all()


def test_a_single_socket_guest_is_kept_on_one():
    pair = Pair(sockets=2)
    steps = ["CREATED 1", "SNP_LAUNCH_START gctx=11 single_socket=1"]
    asked = [f"SNP_ACTIVATE_EX gctx=11 asid=1 ccxs={ccxs}" for ccxs in ("0/1", "0", "1", "0")]
    walk(pair, "S0", [*steps, "SNP_ACTIVATE gctx=11 asid=1"])
    assert [pair.take(step) for step in asked] == [(7, 7), (0, 0), (7, 7), (0, 0)]


def notices(sabotage, mode, section):
    """Count the rows at which the comparison sees that the oracle was told something false."""
    seen = 0
    for row in (row for row in ROWS if row["section"] == section):
        pair = Pair(mode)
        sabotage(pair.oracle)
        try:
            walk(pair, row["start"], [t.partition("->")[0] for t in row["history"].split(";")])
        except AssertionError:
            seen += 1
    return seen


def test_the_comparison_notices_an_oracle_without_the_prefix_quirk():
    def forget(oracle):
        def flush():
            oracle.mode = "strict"
            status = type(oracle).do_df_flush(oracle)
            oracle.mode = "genoa_2023"
            return status

        oracle.do_df_flush = flush

    assert notices(forget, "genoa_2023", "2.1") > 0
    assert notices(lambda _: None, "genoa_2023", "2.1") == 0


def test_the_comparison_notices_an_oracle_that_forgets_a_wbnoinvd():
    def forget(oracle):
        oracle.wbnoinvd = lambda _: True

    assert notices(forget, "strict", "2.4 row 15") > 0


def test_the_comparison_notices_an_oracle_that_lets_a_thread_run_too_long():
    def forget(oracle):
        oracle.deactivate = lambda guest: (
            type(oracle).deactivate(oracle, guest),
            oracle.invalid[7].clear(),
        )

    assert notices(forget, "strict", "2.4 row 7") > 0


def test_the_comparison_notices_an_oracle_in_which_threads_that_are_offline_execute():
    def forget(oracle):
        oracle.offline = frozenset()
        oracle.executed = lambda flags, t: flags.__setitem__(t, True) or True

    assert notices(forget, "strict", "choice offline") > 0
