"""What holds of the host's firmware after any history, shown on its oracle."""

import copy

from firmware_oracle import FirmwareOracle
from firmware_rows import STEPS, atoms, run, take, visible
from firmware_rules import DFFLUSH_REQUIRED, SUCCESS, WBINVD_REQUIRED
from hypothesis import find, given, settings
from hypothesis import strategies as st

MODES = ("strict", "genoa_2023")
HISTORIES = st.lists(st.sampled_from(STEPS), max_size=40)
STARTS = st.sampled_from(["S0", "S0", "SEV", "POWER_ON"])


class Witness:
    """Watch a machine from outside: when each thread wrote back, and when a guest left a CCX."""

    def __init__(self, mode):
        self.fw = FirmwareOracle(mode=mode)
        self.clock = 1
        self.wrote_back = [0] * self.fw.n_threads
        self.left = [1] * self.fw.n_ccxs
        self.old = self.fw.cells

    def step(self, text):
        fw, word = self.fw, text.split()[0]
        was_init = (fw.sev, fw.snp)
        self.old = copy.deepcopy(fw.cells)
        self.clock += 1
        status = take(fw, text)
        if word == "WBINVD":
            some = [int(t) for t in text.split() if t.isdigit()]
            for t in range(fw.n_threads):
                if (t in some) != ("all" in text):
                    self.wrote_back[t] = self.clock
        resets = word.startswith("SNP_INIT") or (word == "INIT" and was_init[1] == "UNINIT")
        for x in range(fw.n_ccxs):
            gone = any(self.old[a][x] == "IN_USE" and fw.cells[a][x] != "IN_USE" for a in fw.asids)
            if gone or (resets and status == SUCCESS):
                self.left[x] = self.clock
        return status

    def is_written_back(self, ccx):
        return all(self.wrote_back[t] > self.left[ccx] for t in self.fw.threads_of(ccx))


@given(st.sampled_from(MODES), STARTS, HISTORIES)
def test_a_flush_succeeds_only_after_every_thread_wrote_back_what_a_guest_left(
    mode, start, history
):
    """S2 of sheet 4.5."""
    witness = Witness(mode)
    for step in atoms(start, history):
        status = witness.step(step)
        if step.split()[0] in ("DF_FLUSH", "SNP_DF_FLUSH"):
            written = [witness.is_written_back(x) for x in range(witness.fw.n_ccxs)]
            assert (status == SUCCESS) == all(written)
            if status == SUCCESS:
                assert all("DIRTY" not in cells for cells in witness.fw.cells.values())


@given(STARTS, HISTORIES)
def test_strictly_no_cell_is_clean_again_before_its_ccx_wrote_back(start, history):
    witness = Witness("strict")
    for step in atoms(start, history):
        witness.step(step)
        assert promoted_too_early(witness) == []


def promoted_too_early(witness):
    fw = witness.fw
    return [
        (a, x)
        for a in fw.asids
        for x in range(fw.n_ccxs)
        if witness.old[a][x] == "DIRTY"
        and fw.cells[a][x] == "CLEAN"
        and not witness.is_written_back(x)
    ]


def test_genoa_2023_promotes_some_cell_too_early():
    def happens(history):
        witness = Witness("genoa_2023")
        for step in atoms("S0", history):
            witness.step(step)
            if promoted_too_early(witness):
                return True
        return False

    steps = ["R 1", "DECOM 1", "DF_FLUSH", *(f"WBINVD {t}" for t in range(8))]
    lists = st.lists(st.sampled_from(steps), max_size=12)
    shortest = find(lists, happens, settings=settings(max_examples=20_000, database=None))
    assert sorted(shortest) in (
        ["DECOM 1", "DF_FLUSH", "R 1", "WBINVD 0", "WBINVD 1"],
        ["DECOM 1", "DF_FLUSH", "R 1", "WBINVD 4", "WBINVD 5"],
    )


@given(st.sampled_from(MODES), STARTS, HISTORIES)
def test_cells_say_who_owns_an_asid_and_where_it_may_run(mode, start, history):
    fw = FirmwareOracle(mode=mode)
    for step in atoms(start, history):
        take(fw, step)
        owners = [g for g in [*fw.guests.values(), *fw.contexts.values()] if g.asid]
        assert len({g.asid for g in owners}) == len(owners)
        if fw.sev == fw.snp == "UNINIT":  # cells may be old: see the choice sev_shutdown_cells
            assert not any(fw.may_run(t, a) for t in range(fw.n_threads) for a in fw.asids)
            continue
        held = {(g.asid, x): g.activation for g in owners for x in g.ccxs}
        for a in fw.asids:
            for x in range(fw.n_ccxs):
                wanted = {"PENDING": ["ALLOC"], "ACTIVE": ["IN_USE"]}
                assert fw.cells[a][x] in wanted.get(held.get((a, x)), ["CLEAN", "DIRTY"])
                for t in fw.threads_of(x):
                    assert fw.may_run(t, a) == (fw.cells[a][x] == "IN_USE")


@given(st.sampled_from(MODES), STARTS, HISTORIES)
def test_shutdown_succeeds_only_with_every_cell_clean(mode, start, history):
    fw = FirmwareOracle(mode=mode)
    for step in atoms(start, history):
        cells, was = copy.deepcopy(fw.cells), fw.snp
        if take(fw, step) == SUCCESS and step.startswith("SNP_SHUTDOWN") and was == "INIT":
            assert {cell for row in cells.values() for cell in row} == {"CLEAN"}
            assert not any(guest.asid for guest in fw.contexts.values())


@given(st.sampled_from(MODES), STARTS, HISTORIES)
def test_what_is_refused_changes_nothing(mode, start, history):
    fw = FirmwareOracle(mode=mode)
    for step in atoms(start, history):
        before = visible(fw)
        status = take(fw, step)
        if status and "FLUSH" not in step and "buffer" not in step:
            assert visible(fw) == before, step


@given(
    st.sampled_from(MODES),
    st.sets(st.sampled_from([1, 2]), min_size=1),
    st.permutations(range(8)),
    st.integers(0, 8),
)
def test_decommissions_in_a_batch_need_one_round_and_one_flush(mode, gone, order, cut):
    """Sheet 2.1, batching; a decommission inside the round costs the threads that were early."""
    fw = FirmwareOracle(mode=mode)
    assert run(fw, "S0", "R 1; R 2") == SUCCESS
    for n in gone:
        assert fw.command("SNP_DECOMMISSION", gctx=10 + n) == SUCCESS
    other = [n for n in (1, 2) if n not in gone]
    for t in order[:cut]:
        fw.wbinvd(t)
    for n in other:
        assert fw.command("SNP_DECOMMISSION", gctx=10 + n) == SUCCESS
        assert not any(fw.done)
    for t in order[cut:]:
        fw.wbinvd(t)
    enough = not other or cut == 0
    assert fw.command("DF_FLUSH") == (SUCCESS if enough else WBINVD_REQUIRED)
    if enough or mode == "strict":
        assert fw.command("SNP_SHUTDOWN_EX") == (SUCCESS if enough else DFFLUSH_REQUIRED)


@given(st.lists(st.sampled_from([0, 1]), unique=True), st.booleans())
def test_deactivation_erases_the_done_bits_of_the_ccxs_that_were_used(ccxs, ran):
    fw = FirmwareOracle()
    assert run(fw, "S0", "LAUNCHED 1") == SUCCESS
    status = fw.command("SNP_ACTIVATE_EX", gctx=11, asid=1, ccxs=ccxs)
    assert status == (SUCCESS if ccxs else 0x16)
    if ran and ccxs:
        assert fw.command("SNP_LAUNCH_FINISH", gctx=11) == SUCCESS
    assert fw.command("SNP_DECOMMISSION", gctx=11) == SUCCESS
    used = set(ccxs) if ran else set()
    assert fw.done == [fw.ccx_of(t) not in used for t in range(8)]
    assert fw.cells[1] == ["DIRTY" if x in used else "CLEAN" for x in (0, 1)]
