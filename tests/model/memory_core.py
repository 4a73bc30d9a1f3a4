"""The core's page ownership with the methods of the oracle: flat frames and a ledger.

Every step is made twice, on frames side by side (`ghcbcore.frame.apply`) and in a `Ledger`, by a
range or by an array; both have to give the same answer and the same frames. What is not a page's
affair - whether the platform is up, where the RMP lies, which context and which metadata entry a
command names - is kept here, as whoever gives the commands has to.

A region of the core has 512 frames. Where the oracle's regions are smaller, its last page stands
for all frames from there on: they are treated alike, and so are what they become.
"""

from collections import namedtuple

import numpy as np
from flat_ledger import is_region
from memory_oracle import Outcome

from ghcbcore import errors, frame, rmp
from ghcbcore._cffi import lib
from ghcbcore.frame import Op
from ghcbcore.ledger import Ledger

REGION = lib.FRAME_REGION
TOP = 1 << 36  # frames below which GPAs lie
KINDS = {
    lib.FRAME_RESULT_CODE: "ok",
    lib.FRAME_RESULT_STATUS: "status",
    lib.FRAME_RESULT_PF: "#PF",
    lib.FRAME_RESULT_NPF: "#NPF",
    lib.FRAME_RESULT_VC: "#VC",
    lib.FRAME_RESULT_GP: "#GP",
    lib.FRAME_RESULT_DMA: "IOMMU",
}
REGION_OPS = (lib.FRAME_OP_PSMASH, lib.FRAME_OP_UNSMASH)
MAX_ASID = 0x3FE

Swapped = namedtuple("Swapped", "kind page_size gfn validated masks valid")


def is_refused(word):
    return word >> lib.FRAME_RESULT_CODE_SHIFT != 0


def outcome(word, kind="ok"):
    found = frame.result(word)
    if not is_refused(word):
        return Outcome(kind, 0, found.bits | found.unchanged)
    return Outcome(KINDS[found.kind], found.code, found.bits)


def status(code):
    return Outcome("status", code, 0)


class Frames:
    """Frames of a guest as the flat rule and as a ledger keep them; `do` and `move` change both."""

    def __init__(self, n_frames, covered, rules=0, max_asid=MAX_ASID):
        self.rules, self.max_asid = rules, max_asid
        self.ledger = Ledger(n_frames, covered=covered, rules=rules, max_asid=max_asid)
        self.flat = np.zeros((n_frames, 2), np.uint64)
        self.flat[:, 0] = lib.FRAME_KEY_NONE << lib.FRAME_KEY_SHIFT  # never written
        self.flat[covered:, 0] |= np.uint64(1 << lib.FRAME_UNCOVERED)
        self.n_steps = 0

    def region(self, at):
        first = at // REGION * REGION
        return first, self.flat[first : first + REGION]

    def apply(self, op, at):
        first, side_by_side = self.region(at)
        return frame.apply(
            op,
            side_by_side,
            at - first,
            first_pfn=first,
            rules=self.rules,
            max_asid=self.max_asid,
        )

    def do(self, op, at, n=1):
        """Apply to n frames in order; return the first refusal, else the last answer."""
        self.n_steps += 1
        each = REGION if is_region(op) and n == REGION else 1
        before, answer, n_done = self.flat.copy(), 0, 0
        for pfn in range(at, at + n, each):
            answer = self.apply(op, pfn)
            if is_refused(answer):
                break
            n_done += each
        if is_region(op) and (at % REGION or at + n > len(self.flat)):
            assert is_refused(answer), "a page of 2 MiB begins nowhere else"
            assert (self.flat == before).all()
            try:
                self.ledger.range(op, at, n)
            except (errors.Unaligned, errors.OutOfRange):
                return answer
            raise AssertionError("the ledger takes such an operand")
        if self.n_steps % 2:
            done = self.ledger.range(op, at, n)
        else:
            done = self.ledger.array(op, np.arange(at, at + n, each, dtype=np.uint64))
            done = done._replace(n_done=done.n_done * each)
        n_changed = int((self.flat != before).any(axis=1).sum())
        assert (done.n_done, done.n_changed) == (n_done, n_changed), (op, at, n, done)
        assert done.result == (answer if is_refused(answer) or n == each else 0), (op, at, n, done)
        self.same()
        return answer

    def move(self, op, source, destination):
        """PAGE_MOVE of one frame or, with a size, of 512."""
        n, answer = REGION if op.size else 1, 0
        for i in range(n):
            answer, a, b = frame.move(
                op,
                tuple(map(int, self.flat[source + i])),
                tuple(map(int, self.flat[destination + i])),
                source - destination,
                source_is_first=not (source + i) % REGION,
                destination_is_first=not (destination + i) % REGION,
            )
            self.flat[source + i], self.flat[destination + i] = a, b
            if is_refused(answer):
                break
        done = self.ledger.move(source, destination, op.asid, op.size)
        assert done.result == answer
        self.same()
        return answer

    def copy(self, at, n):
        """Give the n frames after `at` its entry, with GPAs that go on, by loading it."""
        mask, in_use = lib.FRAME_RMP_MASK, 1 << lib.FRAME_IN_USE
        entries = np.repeat(self.ledger.snapshot().entries(at, 1), n)
        entries["gpa"] += np.where(entries["asid"], np.arange(1, n + 1) << 12, 0).astype(np.uint64)
        self.ledger.load(at + 1, entries)
        kept = np.uint64(2**64 - 1 & ~mask | in_use)
        one, others = self.flat[at], self.flat[at + 1 : at + 1 + n]
        others[:, 0] = (others[:, 0] & kept) | (one[0] & ~kept)
        others[:, 1] = one[1]
        self.same()

    def same(self):
        snapshot = self.ledger.snapshot()
        records = snapshot.records()[snapshot.ids(np.arange(len(self.flat), dtype=np.uint64))]
        assert (records["word"] == self.flat[:, 0]).all()
        assert (records["gfn"] == self.flat[:, 1]).all()


class CoreMemory:
    """`MemoryOracle` by the core."""

    def __init__(
        self,
        n_pages,
        region_pages=REGION,
        covered=None,
        conservative=True,
        *,
        initialised=True,
        max_asid=MAX_ASID,
        shared_read=False,
    ):
        self.n_pages, self.region_pages = n_pages, region_pages
        self.covered = n_pages if covered is None else covered
        rules = (not conservative) << lib.FRAME_RULE_KEEP_VALIDATED
        rules |= shared_read << lib.FRAME_RULE_SHARED_READ
        n_frames = self.wide(n_pages)
        self.frames = Frames(n_frames, min(self.wide(self.covered), n_frames), rules, max_asid)
        self.initialised = self.table_built = initialised
        self.rmp_pages, self.iommu_pages = set(), []
        self.slots, self.offline = {}, {}

    # Pages of the oracle and frames of the core

    def wide(self, number):
        return number // self.region_pages * REGION + number % self.region_pages

    def narrow(self, number):
        return number // REGION * self.region_pages + min(number % REGION, self.region_pages - 1)

    def n_frames(self, pfn):
        is_last = pfn % self.region_pages == self.region_pages - 1
        return REGION - self.region_pages + 1 if is_last else 1

    def wide_gfn(self, gfn):
        return TOP + self.wide(gfn - TOP) if gfn >= TOP // 2 else self.wide(gfn)

    def narrow_gpa(self, gpa):
        tag, gfn = divmod(int(gpa) >> 12, TOP)
        low = TOP + self.narrow(gfn - TOP) if gfn >= TOP // 2 else self.narrow(gfn)
        return (tag * TOP + low) << 12

    def distance(self, gpa, pfn):
        return (self.wide_gfn(gpa >> 12) - self.wide(pfn)) & lib.FRAME_GFN_MASK

    def do(self, kind, pfn, **named):
        """Apply to a page: to a frame, to the frames that its last page stands for, to a region."""
        at = self.wide(pfn)
        n = REGION if named.get("size") or kind in REGION_OPS else self.n_frames(pfn)
        return self.frames.do(Op(kind, **named), at, n)

    # The table as it is

    def stored(self, pfn):
        return self.frames.ledger.snapshot().entries(self.wide(pfn), 1, as_stored=True)[0]

    def state(self, pfn):
        return int(self.stored(pfn)["state"])

    def raw(self, pfn):
        return self.raws()[pfn]

    def raws(self):
        """Return the two words of each page, None for those beyond the table."""
        snapshot = self.frames.ledger.snapshot()
        entries = snapshot.entries(0, len(self.frames.flat), as_stored=True)
        chosen = np.array([self.wide(pfn) for pfn in range(self.n_pages)])
        for first in range(0, len(entries), REGION):
            region = entries[first : first + REGION]
            n_others = 0 if region[0]["page_size"] else int(region["assigned"][1:].sum())
            assert region["subpages"].tolist() == [n_others] + [0] * (len(region) - 1)
            alike = region[self.region_pages - 1 :].copy()
            if len(alike) and alike[0]["asid"]:
                alike["gpa"] -= (np.arange(len(alike)) << 12).astype(np.uint64)
            assert (alike == alike[:1]).all(), "frames that were treated alike are not alike"
            others = chosen[(chosen > first) & (chosen < first + REGION)]
            if n_others:
                region[0]["subpages"] = int(entries["assigned"][others].sum())
        entries = entries[chosen]
        entries["gpa"] = [self.narrow_gpa(gpa) for gpa in entries["gpa"]]
        words = rmp.encode(entries).tolist()
        return [
            None if state == lib.RMP_STATE_DEFAULT else tuple(pair)
            for pair, state in zip(words, entries["state"], strict=True)
        ]

    def in_use(self, pfn):
        return bool(int(self.frames.flat[self.wide(pfn), 0]) >> lib.FRAME_IN_USE & 1)

    def rmpread(self, pfn):
        if self.state(pfn) == lib.RMP_STATE_DEFAULT:
            return None
        snapshot = self.frames.ledger.snapshot()
        found = snapshot.rmpread(np.array([self.wide(pfn)], np.uint64))
        assert rmp.decode(rmp.encode(found, "arch"), "arch")[0]["region"] == found[0]["region"]
        names = ("assigned", "page_size", "region", "immutable", "asid")
        return {"gpa": self.narrow_gpa(found[0]["gpa"])} | {n: int(found[0][n]) for n in names}

    def pages_assigned_to(self, asid):
        entries = self.frames.ledger.snapshot().entries(0, len(self.frames.flat))
        entries = entries[[self.wide(pfn) for pfn in range(self.n_pages)]]
        return int(((entries["assigned"] == 1) & (entries["asid"] == asid)).sum())

    # Instructions and accesses

    def rmpupdate(self, pfn, gpa, assigned, page_size, immutable, asid):
        if gpa % 4096 and assigned:  # frames have no such GPA: who counts bytes refuses it
            return Outcome("ok", lib.SEV_RMP_FAIL_INPUT, 0)
        gfn = self.distance(gpa, pfn) if asid else self.wide_gfn(gpa >> 12)
        value = assigned * lib.FRAME_NEW_ASSIGNED | immutable * lib.FRAME_NEW_IMMUTABLE
        return outcome(
            self.do(lib.FRAME_OP_RMPUPDATE, pfn, size=page_size, asid=asid, gfn=gfn, value=value)
        )

    def psmash(self, pfn):
        return outcome(self.do(lib.FRAME_OP_PSMASH, pfn))

    def guest(self, asid, vmpl, gpa, pfn, backing):
        return {"asid": asid, "vmpl": vmpl, "gfn": self.distance(gpa, pfn), "backing": backing}

    def pvalidate(self, asid, vmpl, gpa, pfn, npt_size, size, validate):
        guest = self.guest(asid, vmpl, gpa, pfn, npt_size)
        return outcome(self.do(lib.FRAME_OP_PVALIDATE, pfn, size=size, value=validate, **guest))

    def rmpadjust(self, asid, vmpl, gpa, pfn, npt_size, size, target, mask, vmsa):
        guest = self.guest(asid, vmpl, gpa, pfn, npt_size)
        value = mask | (vmsa and lib.FRAME_ADJUST_VMSA)
        return outcome(
            self.do(lib.FRAME_OP_RMPADJUST, pfn, size=size, target=target, value=value, **guest)
        )

    def rmpquery(self, asid, vmpl, gpa, pfn, npt_size, target):
        guest = self.guest(asid, vmpl, gpa, pfn, npt_size)
        return outcome(self.do(lib.FRAME_OP_RMPQUERY, pfn, target=target, **guest))

    def access_host(self, pfn, write, map_size, user=False, fetch=False):
        value = (write and lib.FRAME_ACCESS_WRITE) | (user and lib.FRAME_ACCESS_USER)
        value |= fetch and lib.FRAME_ACCESS_FETCH
        return outcome(self.do(lib.FRAME_OP_HOST_ACCESS, pfn, backing=map_size, value=int(value)))

    def access_guest(
        self, asid, vmpl, gpa, pfn, npt_size, c_bit, write, fetch=False, user=False, snp=True
    ):
        value = (write and lib.FRAME_ACCESS_WRITE) | (user and lib.FRAME_ACCESS_USER)
        value |= (fetch and lib.FRAME_ACCESS_FETCH) | (c_bit and lib.FRAME_ACCESS_C)
        value = int(value | (snp and lib.FRAME_ACCESS_SNP))
        guest = self.guest(asid, vmpl, gpa, pfn, npt_size)
        return outcome(self.do(lib.FRAME_OP_GUEST_ACCESS, pfn, value=value, **guest))

    def access_iommu(self, pfn, write):
        value = int(write and lib.FRAME_ACCESS_WRITE)
        return outcome(self.do(lib.FRAME_OP_DMA, pfn, value=value))

    def vmrun(self, pfn):
        return outcome(self.do(lib.FRAME_OP_VMRUN, pfn))

    def vmexit(self, pfn):
        return outcome(self.do(lib.FRAME_OP_VMEXIT, pfn))

    # Firmware

    def command(self, kind, pfn, **named):
        return outcome(self.do(kind, pfn, **named), "status")

    def forbidden(self, *pfns):
        if not self.initialised:
            return status(lib.SNP_FW_PLATFORM_STATE)
        if self.rmp_pages.intersection(pfns):
            return status(lib.SNP_FW_PARAM)
        return None

    def is_context(self, pfn):
        return self.state(pfn) == lib.RMP_STATE_CONTEXT

    def belongs_to(self, pfn, gctx):
        return int(self.stored(pfn)["gpa"]) >> 12 == TOP + self.wide(gctx)

    def size_differs(self, pfn, size):
        entry = self.stored(pfn)
        return entry["state"] != lib.RMP_STATE_DEFAULT and entry["page_size"] != size

    def gctx_create(self, pfn):
        found = self.forbidden(pfn) or self.command(lib.FRAME_OP_GCTX_CREATE, pfn)
        if not found.code:
            self.slots.pop((pfn, None), None)
        return found

    def decommission(self, pfn):
        return self.forbidden(pfn) or self.command(lib.FRAME_OP_DECOMMISSION, pfn)

    def md_init(self, pfn, gctx_pfn):
        refused = self.forbidden(gctx_pfn, pfn)
        if refused:
            return refused
        if not self.is_context(gctx_pfn):
            return status(lib.SNP_FW_GUEST_INVALID)
        found = self.command(lib.FRAME_OP_MD_INIT, pfn, gfn=self.wide(gctx_pfn))
        if not found.code:
            self.set_slots(pfn, {})
        return found

    def launch_update(self, pfn, size, asid, vmsa, masks, small=False):
        value = (vmsa and lib.FRAME_LAUNCH_VMSA) | (small and lib.FRAME_LAUNCH_SMALL)
        target = sum(mask << 8 * i for i, mask in enumerate(masks))
        return self.forbidden(pfn) or self.command(
            lib.FRAME_OP_LAUNCH_UPDATE, pfn, size=size, asid=asid, value=value, target=target
        )

    def reclaim(self, pfn, size):
        if self.initialised and pfn in self.rmp_pages:
            return status(lib.SNP_FW_ADDRESS)
        return self.forbidden(pfn) or self.command(lib.FRAME_OP_RECLAIM, pfn, size=size)

    def unsmash(self, pfn):
        if pfn % self.region_pages:
            return self.command(lib.FRAME_OP_UNSMASH, pfn)
        refused = self.forbidden(pfn)
        if refused:
            return refused
        if self.rmp_pages.intersection(range(pfn, pfn + self.region_pages)):
            return status(lib.SNP_FW_ADDRESS)
        return self.command(lib.FRAME_OP_UNSMASH, pfn)

    def page_move(self, src, dst, asid, size, gctx=None):
        refused = self.forbidden(*([] if gctx is None else [gctx]), src, dst)
        if refused:
            return refused
        if gctx is not None and not self.is_context(gctx):
            return status(lib.SNP_FW_GUEST_INVALID)
        op = Op(lib.FRAME_OP_CONTENT, size=size, asid=asid)
        metadata, firmware = lib.RMP_STATE_METADATA, lib.RMP_STATE_FIRMWARE
        if (
            gctx is not None
            and not (self.size_differs(src, size) or self.size_differs(dst, size))
            and (self.state(src), self.state(dst)) == (metadata, firmware)
            and not self.belongs_to(src, gctx)
        ):
            return status(lib.SNP_FW_PAGE_OWNER)
        was_metadata = self.state(src) == metadata
        found = self.move_frames(op, src, dst, size)
        if not found.code and was_metadata:
            self.set_slots(dst, self.slots_of(src))
        return found

    def move_frames(self, op, src, dst, size):
        places = src % self.region_pages, dst % self.region_pages
        if size and any(places):  # no page of 2 MiB begins there
            sizes = self.size_differs(src, size) or self.size_differs(dst, size)
            return status(lib.SNP_FW_PAGE_SIZE if sizes else lib.SNP_FW_PAGE_STATE)
        a, b, n = self.wide(src), self.wide(dst), self.n_frames(src)
        if size or n == self.n_frames(dst):
            for i in range(1 if size else n):
                found = outcome(self.frames.move(op, a + i, b + i), "status")
            return found
        found = outcome(self.frames.move(op, a, b), "status")
        if not found.code:
            self.frames.copy(a, n - 1)
            self.frames.copy(b, self.n_frames(dst) - 1)
        return found

    def slots_of(self, pfn):
        return {at[1]: e for at, e in self.slots.items() if at[0] == pfn and at[1] is not None}

    def set_slots(self, pfn, slots):
        for index in self.slots_of(pfn):
            del self.slots[pfn, index]
        self.slots.update({(pfn, index): entry for index, entry in slots.items()})

    def slot_refused(self, src, dst, gctx, size, slot):
        refused = self.forbidden(gctx, src, dst)
        if refused:
            return refused
        if not self.is_context(gctx):
            return status(lib.SNP_FW_GUEST_INVALID)
        if slot is None:
            return None
        refused = self.forbidden(slot[0])
        if refused:
            return refused
        n_pages = self.region_pages if size else 1
        if 0 <= slot[0] - src < n_pages or 0 <= slot[0] - dst < n_pages:
            return status(lib.SNP_FW_PARAM)
        if self.state(slot[0]) != lib.RMP_STATE_METADATA:
            return status(lib.SNP_FW_PAGE_STATE)
        if not self.belongs_to(slot[0], gctx):
            return status(lib.SNP_FW_PAGE_OWNER)
        return None

    def swap_out(self, src, dst, gctx, asid, size, kind="data", slot=None):
        refused = self.slot_refused(src, dst, gctx, size, slot)
        if refused:
            return refused
        if self.size_differs(dst, size):
            return status(lib.SNP_FW_PAGE_SIZE)
        fits = self.state(dst) in (lib.RMP_STATE_FIRMWARE, lib.RMP_STATE_DEFAULT)
        if not fits and not self.size_differs(src, size):
            return status(lib.SNP_FW_PAGE_STATE)
        entry, is_metadata = self.stored(src), kind == "metadata"
        value = is_metadata * lib.FRAME_SWAP_METADATA
        found = self.command(
            lib.FRAME_OP_SWAP_OUT, src, size=size, asid=asid, gfn=self.wide(gctx), value=value
        )
        if found.code:
            return found
        masks = [int(entry[f"vmpl{i}"]) for i in range(4)]
        saved = Swapped(kind, size, int(entry["gpa"]) >> 12, bool(entry["validated"]), masks, True)
        if is_metadata:
            saved = Swapped(kind, int(entry["page_size"]), None, False, [0, 0, 0, 0], True)
            self.offline[dst] = self.slots_of(src)
        self.slots[slot or (gctx, None)] = saved
        return found

    def swap_in(self, src, dst, gctx, asid, size, kind="data", slot=None, in_place=False):
        refused = self.slot_refused(src, dst, gctx, size, slot)
        if refused:
            return refused
        at = slot or (gctx, None)
        saved = self.slots.get(at)
        if saved is None or not saved.valid or saved.kind != kind:
            return status(lib.SNP_FW_METADATA_ENTRY)
        if self.size_differs(src, size) or saved.page_size != size:
            return status(lib.SNP_FW_PAGE_SIZE)
        if not self.size_differs(dst, size):
            if kind != "data" and in_place:
                return status(lib.SNP_FW_PARAM)
            if kind == "vmsa" and size == 1:
                return status(lib.SNP_FW_PAGE_SIZE)
            if in_place and src != dst:
                return status(lib.SNP_FW_ADDRESS)
        named = {"gfn": self.wide(gctx), "value": lib.FRAME_SWAP_METADATA}
        if kind != "metadata":
            named = {
                "gfn": (saved.gfn - self.wide(dst)) & lib.FRAME_GFN_MASK,
                "value": saved.validated * lib.FRAME_SWAP_VALIDATED
                | (kind == "vmsa") * lib.FRAME_SWAP_VMSA,
                "target": sum(mask << 8 * i for i, mask in enumerate(saved.masks)),
            }
        found = self.command(lib.FRAME_OP_SWAP_IN, dst, size=size, asid=asid, **named)
        if not found.code:
            if kind == "metadata":
                self.set_slots(dst, self.offline.get(src, {}))
            self.slots[at] = saved._replace(valid=False)
        return found

    def set_state(self, first, n):
        refused = self.forbidden()
        if refused:
            return refused
        if first % self.region_pages:
            return status(lib.SNP_FW_PARAM)
        pfns = [pfn for pfn in range(first, first + n) if pfn not in self.rmp_pages]
        for pfn in pfns:  # nothing changes unless all pass
            fits = self.state(pfn) in (lib.RMP_STATE_FIRMWARE, lib.RMP_STATE_DEFAULT)
            if not fits or self.stored(pfn)["page_size"]:
                return self.command(lib.FRAME_OP_SET_STATE, pfn)
        for pfn in pfns:
            assert not self.command(lib.FRAME_OP_SET_STATE, pfn).code
        return status(lib.SNP_FW_OK)

    def make_fresh(self, pfn, state):
        assert not self.command(lib.FRAME_OP_INIT, pfn, value=state).code

    def snp_init(self, hv_fixed=(), rmp=None, iommu=(), init_rmp=True):
        rmp_pages = set(range(rmp[0], rmp[0] + rmp[1])) if rmp else set()
        fixed_pages = {pfn for first, n in hv_fixed for pfn in range(first, first + n)}
        if self.initialised:
            return status(lib.SNP_FW_PLATFORM_STATE)
        if not init_rmp and not self.table_built:
            return status(lib.SNP_FW_RMP_INIT_REQUIRED)
        if not init_rmp and hv_fixed:
            return status(lib.SNP_FW_PARAM)
        if init_rmp and any(self.in_use(pfn) for pfn in range(self.n_pages)):
            return status(lib.SNP_FW_CONFIG)
        self.initialised = True
        if not init_rmp:
            return status(lib.SNP_FW_OK)
        for pfn in range(self.covered):
            if self.stored(pfn)["page_size"]:
                found = self.command(lib.FRAME_OP_INIT, pfn, value=lib.RMP_STATE_HYPERVISOR)
                assert found.code == lib.SNP_FW_PAGE_SIZE
                found = self.command(lib.FRAME_OP_INIT, pfn, size=1, value=lib.RMP_STATE_HYPERVISOR)
                assert not found.code
        for pfn in range(self.covered):
            self.make_fresh(pfn, lib.RMP_STATE_HYPERVISOR)
        for pfn in fixed_pages:
            if pfn < self.covered:
                self.make_fresh(pfn, lib.RMP_STATE_HV_FIXED)
        for pfn in rmp_pages:
            self.make_fresh(pfn, lib.RMP_STATE_FIRMWARE)
        for pfn in iommu:
            self.make_fresh(pfn, lib.RMP_STATE_HYPERVISOR)
            assert not self.command(lib.FRAME_OP_IOMMU_TAKE, pfn).code
        self.rmp_pages, self.iommu_pages = rmp_pages, list(iommu)
        self.slots, self.offline = {}, {}
        self.table_built = True
        return status(lib.SNP_FW_OK)

    def iommu_release(self):
        for pfn in self.iommu_pages:
            assert not self.command(lib.FRAME_OP_IOMMU_RELEASE, pfn).code
        self.iommu_pages = []
        return status(lib.SNP_FW_OK)

    def shutdown(self, iommu=False):
        if not self.initialised:
            return status(lib.SNP_FW_OK)
        self.initialised = False
        if iommu:
            self.table_built = False
            self.iommu_release()
        return status(lib.SNP_FW_OK)
