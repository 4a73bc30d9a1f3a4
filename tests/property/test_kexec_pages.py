"""The page side of a kexec against a walk of every single leaf, bugs included.

The walk is written from what is known of snp_kexec_finish: leaf by leaf, page by page.
"""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pysev.memory import Memory
from pysev.memory.kexec import KexecPages

N_PAGES = 2100  # four regions of 2 MiB and a bit
REGION = 512


class Walk:
    """Two bits a page, and the leaf that it lies in: what a kexec does to them."""

    def __init__(self, ghcbs, shared):
        self.ghcbs = ghcbs
        self.c_bit = [True] * N_PAGES
        self.valid = [True] * N_PAGES  # assigned and validated, or else the host's
        self.leaf = [REGION if i < N_PAGES // REGION * REGION else 1 for i in range(N_PAGES)]
        self.exits = {"unshare": 0, "GHCBs last": 0}
        for first, n in shared:
            self.convert(first, n)
        for ghcb in sorted(ghcbs):
            if self.c_bit[ghcb]:
                self.convert(ghcb, 1)

    def convert(self, first, n):
        """To shared: whole regions keep their leaf, others are split."""
        for page in range(first, first + n):
            base = page // REGION * REGION
            if first <= base and base + REGION <= first + n:
                self.leaf[page] = REGION
            elif self.leaf[page] == REGION:
                self.leaf[base : base + REGION] = [1] * REGION
            self.c_bit[page] = self.valid[page] = False

    def finish(self, strict, leaf_base):
        page = 0
        while page < N_PAGES:
            size = self.leaf[page]
            end = page + size
            holds = any(page <= g < end if strict else page <= g <= end for g in self.ghcbs)
            if not self.c_bit[page] and not holds:
                self.c_bit[page:end] = self.valid[page:end] = [True] * size
                self.exits["unshare"] += 1
            page = end
        for ghcb in self.ghcbs:
            size = self.leaf[ghcb]
            base = ghcb // size * size
            self.c_bit[base : base + size] = [True] * size
            start = base if leaf_base else ghcb
            for page in range(start, min(start + size, N_PAGES)):
                self.valid[page] = True
                self.exits["GHCBs last"] += 1

    def traps(self):
        """Pages that the second kernel takes for private, and which are not."""
        return {page for page in range(N_PAGES) if not self.valid[page]}


@st.composite
def guests(draw):
    ghcbs = draw(st.lists(st.integers(0, N_PAGES - 1), min_size=1, max_size=4, unique=True))
    edges = [g + d for g in ghcbs for d in (-1, 1) if 0 <= g + d < N_PAGES]
    firsts = draw(
        st.lists(
            st.one_of(st.integers(0, N_PAGES - 1), st.sampled_from([0, 512, 1024, *edges])),
            max_size=5,
            unique=True,
        )
    )
    shared = []
    for first, after in zip(sorted(firsts), [*sorted(firsts)[1:], N_PAGES], strict=False):
        n = draw(st.sampled_from([1, 2, 40, 512, 600]))
        shared.append((first, min(n, after - first)))
    return ghcbs, shared


@given(guests(), st.booleans(), st.booleans())
@example(([0x123], [(0, 512)]), True, False)  # K2 in the first region
@example(([513], [(512, 1), (0, 512)]), False, True)  # K1: 512 alone
@example(([512], [(0, 512)]), False, True)  # K1 of a large leaf: all of it
@example(([0, 3], [(0, 512)]), True, False)  # two in one leaf
@settings(max_examples=60)
def test_a_kexec_is_what_a_walk_of_every_leaf_says(guest, strict, leaf_base):
    ghcbs, shared = guest
    walk = Walk(ghcbs, shared)
    pages = KexecPages(Memory(N_PAGES * 4096), ghcbs, shared, strict=strict, leaf_base=leaf_base)
    pages.accept()
    pages.share()
    assert_same(pages.memory, walk)
    pages.finish()
    walk.finish(strict, leaf_base)
    assert_same(pages.memory, walk)
    assert pages.exits == walk.exits
    pages.boot_again()
    found = {
        page
        for one in pages.left_behind()
        if one.kind == "private-not-owned"
        for page in range(one.first, one.first + one.n_pages)
    }
    assert found == walk.traps()
    if strict and leaf_base:
        assert pages.left_behind() == [] and not walk.traps()


def frames_of(memory):
    return [memory.ledger.frame(i) for i in range(N_PAGES)]


def assert_same(memory, walk):
    frames = frames_of(memory)
    found = {frame: memory.page(frames.index(frame)) for frame in set(frames)}
    pages = [found[frame] for frame in frames]  # alike but for their numbers
    assert [p.mapping == "private" for p in pages] == walk.c_bit
    assert [p.state == "guest_valid" for p in pages] == walk.valid
    assert [{"4K": 1, "2M": REGION}[p.leaf] for p in pages] == walk.leaf
