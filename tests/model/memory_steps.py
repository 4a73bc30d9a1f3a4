"""Steps of histories of page ownership: methods of the oracle, arguments so chosen that they meet.

`pick` takes one of a sequence: Hypothesis does it, or a `random.Random`.
"""

from ghcbcore._cffi import lib

N_REGIONS = 3
PAGE = 4096
TOP = 1 << 48


class Steps:
    """Makers of steps for machines of three regions; each returns a list of (name, arguments)."""

    def __init__(self, pick, region_pages):
        self.pick, self.region_pages = pick, region_pages

        places = (0, 0, 0, 1, 1, 2, 3, region_pages - 1)
        self.places = [place for place in places if place < region_pages]

    def pfn(self):
        place = self.pick(self.places)
        return self.pick(range(N_REGIONS)) * self.region_pages + place

    def first(self):
        return self.pick(range(N_REGIONS)) * self.region_pages

    def any_first(self, size):
        """Most often a page that an operand of this size can begin at."""
        return self.first() if size and self.pick(range(8)) else self.pfn()

    def gpa(self, pfn):
        """A page is most often mapped where it lies."""
        n = self.region_pages
        others = (pfn + 1, pfn + n, pfn + 2 * n, 0, TOP // PAGE - 1, TOP // PAGE, TOP // PAGE - n)
        return (pfn if self.pick(range(8)) else self.pick(others)) * PAGE

    def bit(self):
        return self.pick((0, 1))

    def asid(self):
        return self.pick((1, 1, 1, 2))

    def size(self):
        return self.pick((0, 0, 1))

    def vmpl(self):
        return self.pick((0, 0, 0, 1, 2, 3))

    def mask(self):
        return self.pick((0, 1, 3, 5, 9, 0x1E, 0x1F, 0x20, 0xFF))

    # The host

    def update(self):
        size, asid = self.size(), self.pick((0, 1, 1, 2))
        pfn = self.any_first(size)
        gpa = self.gpa(pfn) if asid else self.pick((0, 0, 0, self.gpa(pfn)))
        return [("rmpupdate", (pfn, gpa, self.pick((0, 1, 1, 1)), size, self.bit(), asid))]

    def update_odd(self):
        size, pfn = self.size(), self.pfn()
        asid = self.pick((0, 1, 0x3FE, 0x3FF))
        return [("rmpupdate", (pfn, self.gpa(pfn), self.bit(), size, self.bit(), asid))]

    def give_back(self):
        size = self.size()
        return self.free(self.any_first(size), size)

    def free(self, pfn, size):
        """Make a page the host's whatever it is; of a 2 MiB page inside a region all of it."""
        first = pfn - pfn % self.region_pages
        pages = [pfn, *(first + place for place in sorted(set(self.places)))] if size else [pfn]
        steps = [("reclaim", (first, 1)), ("rmpupdate", (first, 0, 0, 1, 0, 0))]
        for one in pages:
            steps += [("decommission", (one,)), ("reclaim", (one, 0))]
            steps += [("rmpupdate", (one, 0, 0, 0, 0, 0))]
        return steps

    def firmware_page(self):
        size = self.pick((0, 0, 0, 1))
        return [("rmpupdate", (self.any_first(size), 0, 1, size, 1, 0))]

    def guest_page(self):
        """Given and validated; perhaps frozen again, which the detailed form keeps validated."""
        size, asid = self.size(), self.asid()
        pfn = self.any_first(size)
        steps = [
            ("rmpupdate", (pfn, pfn * PAGE, 1, size, 0, asid)),
            ("pvalidate", (asid, 0, pfn * PAGE, pfn, size, size, 1)),
        ]
        if self.bit():
            steps.append(("rmpupdate", (pfn, pfn * PAGE, 1, size, 1, asid)))
        return steps

    def region_of_pages(self):
        """What PAGE_UNSMASH takes, but perhaps for one page."""
        first, asid, odd = self.first(), self.asid(), self.pick(range(4 * self.region_pages))
        how = self.pick(("asid", "gpa", "mutable", "valid", "shift"))
        shift = PAGE if how == "shift" and odd < self.region_pages else 0
        steps = []
        for i in range(self.region_pages):
            pfn, gpa, is_odd = first + i, (first + i) * PAGE + shift, i == odd
            if self.region_pages > 16 and i > 2 and not is_odd and i < self.region_pages - 1:
                continue
            gpa += PAGE * (is_odd and how == "gpa")
            one = 3 - asid if is_odd and how == "asid" else asid
            if is_odd and how == "valid":
                steps.append(("rmpupdate", (pfn, gpa, 1, 0, 0, one)))
                steps.append(("pvalidate", (one, 0, gpa, pfn, 0, 0, 1)))
            steps.append(("rmpupdate", (pfn, gpa, 1, 0, not (is_odd and how == "mutable"), one)))
        return [*steps, ("unsmash", (first,))]

    def psmash(self):
        first, user = self.any_first(1), self.pfn()
        steps = [("psmash", (first,))]
        if self.bit():
            steps.insert(0, ("rmpupdate", (first, first * PAGE, 1, 1, 0, self.asid())))
        if self.bit():
            steps.insert(-1, ("vmrun", (user,)))
        return steps

    def in_use(self):
        return [(self.pick(("vmrun", "vmrun", "vmexit")), (self.pfn(),))]

    def leave(self):
        firsts = range(0, N_REGIONS * self.region_pages, self.region_pages)
        return [("vmexit", (first + place,)) for first in firsts for place in set(self.places)]

    def host_access(self):
        size = self.pick((0, 1, 2))
        return [("access_host", (self.pfn(), self.pick((1, 1, 0)), size, self.bit(), self.bit()))]

    def dma(self):
        return [("access_iommu", (self.pfn(), self.pick((1, 1, 0))))]

    # The guest

    def given(self, pfn, size, asid):
        """Perhaps give a page to the guest, perhaps of another size, perhaps validated."""
        size = self.pick((size, 0))
        if (size and pfn % self.region_pages) or self.bit():
            return []
        steps = self.free(pfn, size) if self.bit() else []
        steps.append(("rmpupdate", (pfn, pfn * PAGE, 1, size, 0, asid)))
        if self.pick((0, 1, 1)):
            steps.append(("pvalidate", (asid, 0, pfn * PAGE, pfn, size, size, 1)))
        return steps

    def pvalidate(self):
        size = self.size()
        pfn = self.any_first(size)
        sizes = (self.pick((size, 0, 1)), size, self.pick((1, 1, 0, 0, 2)))
        vmpl, asid = self.pick((0, 0, 0, 0, 1)), self.asid()
        steps = self.given(pfn, size, asid)
        return [*steps, ("pvalidate", (asid, vmpl, self.gpa(pfn), pfn, *sizes))]

    def rmpadjust(self):
        size = self.size()
        pfn = self.any_first(size)
        sizes = (self.pick((size, 0, 1)), size)
        target = self.pick((1, 1, 2, 3, 0, 4))
        rest = (target, self.mask(), self.bit())
        asid = self.asid()
        steps = self.given(pfn, size, asid)
        if not self.pick(range(4)):
            steps.append(("vmrun", (pfn,)))
        return [*steps, ("rmpadjust", (asid, self.vmpl(), self.gpa(pfn), pfn, *sizes, *rest))]

    def rmpquery(self):
        pfn = self.pfn()
        target = self.pick((0, 1, 2, 3, 4))
        asid, size = self.asid(), self.bit()
        steps = self.given(pfn, size, asid)
        return [*steps, ("rmpquery", (asid, self.vmpl(), self.gpa(pfn), pfn, size, target))]

    def guest_access(self):
        pfn = self.pfn()
        c_bit, write, fetch, user, snp = (self.bit() for _ in range(5))
        if self.pick((0, 0, 1)):
            c_bit = snp = 1
        size, asid = self.bit(), self.asid()
        how = (size, c_bit, write, fetch, user, snp)
        steps = self.given(pfn, size, asid)
        return [*steps, ("access_guest", (asid, self.vmpl(), self.gpa(pfn), pfn, *how))]

    # Firmware

    def context(self):
        pfn = self.pfn()
        return [("rmpupdate", (pfn, 0, 1, 0, 1, 0)), ("gctx_create", (pfn,))]

    def context_alone(self):
        return [(self.pick(("gctx_create", "decommission")), (self.pfn(),))]

    def metadata(self):
        page, gctx = self.pfn(), self.pfn()
        steps = [("md_init", (page, gctx))]
        if self.bit():
            size = page % self.region_pages == 0 and self.bit()
            steps.insert(0, ("rmpupdate", (page, 0, 1, int(size), 1, 0)))
        if self.bit():
            steps[:0] = [("rmpupdate", (gctx, 0, 1, 0, 1, 0)), ("gctx_create", (gctx,))]
        return steps

    def launch(self):
        size, asid = self.size(), self.asid()
        pfn = self.any_first(size)
        masks = (self.pick((0, 1, 3)), self.pick((0, 7)), self.pick((0, 0x1F)))
        small = self.pick((0, 0, 0, 1))
        steps = [("launch_update", (pfn, size, asid, self.pick((0, 0, 1)), masks, small))]
        if self.bit():
            one = self.asid()
            large = size if self.pick(range(4)) else 1 - size
            steps.insert(0, ("rmpupdate", (pfn, pfn * PAGE, 1, large, 1, one)))
        return steps

    def reclaim(self):
        size = self.size()
        return [("reclaim", (self.any_first(size), size))]

    def set_state(self):
        first = self.pick((self.first(), self.pfn()))
        n = min(self.pick((0, 1, 2, 3)), N_REGIONS * self.region_pages - first)
        return [("set_state", (first, n))]

    def unsmash(self):
        return [("unsmash", (self.any_first(1),))]

    def move(self):
        size, asid = self.size(), self.asid()
        src, dst = self.any_first(size), self.any_first(size)
        steps = [("page_move", (src, dst, asid, size))]
        if self.bit():
            steps.insert(0, ("rmpupdate", (dst, dst * PAGE, 1, size, 1, asid)))
        if self.pick((0, 0, 1)):
            steps.insert(0, ("rmpupdate", (src, src * PAGE, 1, size, 1, asid)))
        if not self.pick(range(4)):
            steps[-1] = ("page_move", (src, dst, asid, size, self.pfn()))
        return steps

    def swap(self):
        """Out and in again, each step possibly refused."""
        size, asid, kind = self.size(), self.asid(), self.pick(("data", "data", "vmsa", "metadata"))
        src, dst = self.any_first(size), self.any_first(size)
        gctx, page = self.pfn(), self.pfn()
        slot = self.pick((None, None, (self.pfn(), 3)))
        back = self.pick((src, page))
        steps = []
        if self.bit():
            steps += self.free(src, size) + self.free(dst, size) + self.free(gctx, 0)
        if self.pick(range(4)):
            steps += [("rmpupdate", (gctx, 0, 1, 0, 1, 0)), ("gctx_create", (gctx,))]
            steps += [("rmpupdate", (dst, 0, 1, size, 1, 0))]
            if kind == "metadata":
                steps += [("rmpupdate", (src, 0, 1, size, 1, 0)), ("md_init", (src, gctx))]
            else:
                steps += [("rmpupdate", (src, src * PAGE, 1, size, 0, asid))]
                steps += [("pvalidate", (asid, 0, src * PAGE, src, size, size, 1))]
                if self.bit():
                    adjust = (asid, 0, src * PAGE, src, size, size, 1, self.mask(), 0)
                    steps += [("rmpadjust", adjust)]
                steps += [("rmpupdate", (src, src * PAGE, 1, size, 1, asid))]
            if slot:
                steps += [("rmpupdate", (slot[0], 0, 1, 0, 1, 0)), ("md_init", (slot[0], gctx))]
            if self.bit():
                back = page
                whose = 0 if kind == "metadata" else self.pick((asid, asid, 3 - asid))
                large = self.pick((size, size, 0, 1))
                steps += [*self.free(page, 0), ("rmpupdate", (page, 0, 1, large, 1, whose))]
        whose = self.pick((asid, asid, asid, 3 - asid))
        steps += [("swap_out", (src, dst, gctx, whose, size, kind, slot))]
        if self.pick(range(4)):
            in_place = not self.pick(range(6))
            start = back if in_place else dst
            whose = self.pick((asid, asid, asid, 3 - asid))
            steps += [("swap_in", (start, back, gctx, whose, size, kind, slot, in_place))]
        return steps

    def platform(self):
        """Down and, most often, up again."""
        n = self.region_pages
        iommu = self.pick(((), (1,)))
        fixed = self.pick(((), (), ((n - 1, 2),)))
        own = self.pick((None, (n, 2)))
        leave = self.leave() if self.pick(range(4)) else []
        up = ("snp_init", (fixed, own, iommu, self.pick((True, True, False))))
        return [*leave, ("shutdown", (self.bit(),)), *([up] if self.pick(range(4)) else [])]


HOST = ("update", "update", "update_odd", "give_back", "firmware_page", "guest_page", "guest_page")
HOST += ("give_back", "region_of_pages", "psmash", "in_use", "leave", "host_access", "dma")
GUEST = ("pvalidate", "rmpadjust", "rmpadjust", "rmpquery", "guest_access", "guest_access")
FIRMWARE = ("context", "context_alone", "metadata", "launch", "reclaim", "set_state", "unsmash")
FIRMWARE += ("move", "move", "swap", "swap", "swap")


def take(machine, core, name, arguments):
    """Make one step with both, compare all that can be seen; return what it came to."""
    wanted = getattr(machine, name)(*arguments)
    assert getattr(core, name)(*arguments) == wanted, (name, arguments)
    compare(machine, core)
    return wanted


def compare(machine, core):
    words, n = core.raws(), machine.region_pages
    for pfn in range(machine.n_pages):
        if 5 < pfn % n < n - 2 and pfn % 100:
            continue  # of many that are alike
        assert words[pfn] == machine.raw(pfn), (hex(pfn), words[pfn], machine.raw(pfn))
        page = machine.entry(pfn)
        assert core.in_use(pfn) == (page is not None and page.in_use)


def compare_more(machine, core, pfn):
    """What takes longer to ask, of one page."""
    assert core.state(pfn) == machine.state(pfn)
    assert core.rmpread(pfn) == machine.rmpread(pfn)
    deciding, gpa = machine.deciding_entry(pfn)
    entry = core.frames.ledger.snapshot().entries(core.wide(pfn), 1)[0]
    if deciding is None:
        assert entry["state"] == lib.RMP_STATE_DEFAULT
        return
    assert entry["assigned"] == deciding.assigned
    assert entry["asid"] == deciding.asid
    if deciding.asid:
        assert core.narrow_gpa(entry["gpa"]) == gpa
    for asid in (0, 1, 2):
        assert core.pages_assigned_to(asid) == machine.pages_assigned_to(asid)
