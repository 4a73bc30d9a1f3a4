"""What SNP firmware does to pages: the second half of `memory_oracle.MemoryOracle`.

Each command is its checks, in order, and then its effect (sheet 1.4 and 5.5; AMD-ASPFW sev_mcmd.c
and sev_rmp.c, "FW"). Reserved bits and lengths of command buffers are not modelled, nor is the
state of a guest: where FW takes ASID, activity or launch state out of the guest's context page, the
caller names the ASID and the guest counts as active. Page contents are modelled only as far as
they decide: the entries of metadata pages.
"""

from collections import namedtuple

from ghcbcore._cffi import lib

FIRMWARE_CHOICES = {
    "fw_rmp_page": "a command on a page of the RMP itself gives 0x16, PAGE_RECLAIM and PAGE_UNSMASH"
    " over it 9 (0x16 if the RMP has the first page), PAGE_SET_STATE skips it (FW)",
    "fw_uncovered": "a page without an entry is in no state a command wants, but where DEFAULT is"
    " named: 0x1a, or 0x10 for a context. FW compares sizes with an entry it has not read: not"
    " modelled, the size test is skipped there",
    "fw_gctx": "LAUNCH_UPDATE and PAGE_MOVE name an ASID instead of a context, so 0x10, 2 and 8 do"
    " not occur (assumption); PAGE_MOVE of metadata takes the owner out of the source unless gctx"
    " is given",
    "fw_launch_order": "LAUNCH_UPDATE: state 0x1a, size 0x19, VMSA of 2 MB 0x19, owner 0x1c (FW)."
    " `masks` are those of VMPL 1, 2, 3. A VMSA bit that is set already stays; `small` is a page of"
    " secrets or CPUID, which has to be 4 KB too (sheet 1.4)",
    "fw_reclaim_order": "PAGE_RECLAIM: size 0x19, alignment 9, not immutable 0, state 0x1a (FW)."
    " A METADATA page loses its tag and keeps the address (FW)",
    "fw_md_init": "PAGE_MD_INIT tests the context (0x10) before the page (0x1a) and no size"
    " (FW). That the"
    " GPA of metadata is above 0 (sheet 5.3) is said of the whole field, tag and all: assumption",
    "fw_set_state": "PAGE_SET_STATE: first page off a region 0x16; all pages FIRMWARE of either"
    " lock bit and 4 KB, else 0x1a; pages beyond the table are passed over (FW, but see"
    " lock_bit). Nothing changes unless all pass",
    "fw_unsmash": "PAGE_UNSMASH: alignment 0x16 before the platform's state 1 (FW), then RMP 9,"
    " then 0x1a, also if the table ends inside the region (assumption), and if lock bits differ"
    " (assumption). The other entries are left as RMPUPDATE leaves them: FW keeps their GPA,"
    " masks and"
    " validated, but nobody reads those, and a fast core that keeps one record a page has no place"
    " for them",
    "fw_move": "PAGE_MOVE: sizes 0x19, owner 0x1c or, if the states fit nothing, 0x1a (FW). Source"
    " and destination are read first and written after, source first, so a page moved onto itself"
    " ends as the destination",
    "fw_swap": "SWAP_OUT/IN take a context page and a slot: None for the root entry, else"
    " (pfn, index) of a 64-byte entry. A slot inside source or destination is 0x16. The offline"
    " ciphertext is taken as intact (assumption): no authentication failure, no"
    " overflow of the counter",
    "fw_in_use": "no command looks at the in-use bit, but SNP_INIT with a page in use is 3"
    " (VM_HSAVE_PA or a thread in a guest, sheet 1.5)",
    "fw_init": "SNP_INIT builds the table: hv_fixed, then the RMP's pages over it, then the IOMMU's"
    " pages; all else HYPERVISOR with masks 0 (FW). Order of checks: state 1, table needed 0x20,"
    " list without init_rmp 0x16, configuration 3 (sheet 1.5)",
    "fw_iommu_lock": "FIRMWARE_IOMMU entries have lock 0 (sheet 5.2; FW sets it, see lock_bit)",
    "fw_shutdown": "shutdown(iommu=True) does iommu_release and asks for a new table; ASIDs count"
    " as clean: assumption. iommu_release alone changes pages only",
}

METADATA_TAG = 1 << 48
IOMMU_GPA = (2 << 48) + 0x1000
SLOTS_PER_PAGE = 64

# What a metadata entry says of the page that was swapped out.
Swapped = namedtuple("Swapped", "kind page_size gpa validated masks valid")


# `code` is a return code (kind "ok") or a status ("status"), `bits` CF or a mask of FAULT_* bits.
Outcome = namedtuple("Outcome", "kind code bits")


def status(code):
    return Outcome("status", code, 0)


class FirmwareCommands:
    """Commands that change pages; `entry`, `state` and `region` come from the other half."""

    def start_firmware(self, initialised):
        self.initialised = initialised
        self.table_built = initialised
        self.rmp_pages = set()
        self.iommu_pages = []
        self.slots = {}  # (pfn, index), or (context's pfn, None): Swapped
        self.offline = {}  # pfn of a swapped-out metadata page's ciphertext: its slots

    def forbidden(self, *pfns):
        """Return what no page command gets past: platform not up, or a page of the RMP itself."""
        for pfn in pfns:
            self.entry(pfn)
        if not self.initialised:
            return status(lib.SNP_FW_PLATFORM_STATE)
        if self.rmp_pages.intersection(pfns):
            return status(lib.SNP_FW_PARAM)
        return None

    def in_state(self, pfn, *names):
        return self.state(pfn) in [getattr(lib, f"RMP_STATE_{name}") for name in names]

    def size_differs(self, pfn, size):
        page = self.entry(pfn)
        return page is not None and page.page_size != size

    def make_mutable(self, page):
        page.immutable = page.lock = False

    def belongs_to(self, pfn, gctx):
        """Say whether a metadata page names this context."""
        return self.entry(pfn).gpa % METADATA_TAG == gctx * 4096

    # Contexts and metadata

    def gctx_create(self, pfn):
        refused = self.forbidden(pfn)
        if refused:
            return refused
        if not self.in_state(pfn, "FIRMWARE"):
            return status(lib.SNP_FW_PAGE_STATE)
        if self.size_differs(pfn, 0):
            return status(lib.SNP_FW_PAGE_SIZE)
        self.entry(pfn).vmsa = True
        self.slots.pop((pfn, None), None)
        return status(lib.SNP_FW_OK)

    def decommission(self, gctx_pfn):
        refused = self.forbidden(gctx_pfn)
        if refused:
            return refused
        if not self.in_state(gctx_pfn, "CONTEXT"):
            return status(lib.SNP_FW_GUEST_INVALID)
        self.entry(gctx_pfn).vmsa = False
        return status(lib.SNP_FW_OK)

    def md_init(self, pfn, gctx_pfn):
        refused = self.forbidden(gctx_pfn, pfn)
        if refused:
            return refused
        if not self.in_state(gctx_pfn, "CONTEXT"):
            return status(lib.SNP_FW_GUEST_INVALID)
        if not self.in_state(pfn, "FIRMWARE"):
            return status(lib.SNP_FW_PAGE_STATE)
        self.entry(pfn).gpa = METADATA_TAG + gctx_pfn * 4096
        self.set_slots(pfn, {})
        return status(lib.SNP_FW_OK)

    # Guest pages

    def launch_update(self, pfn, size, asid, vmsa, masks, small=False):
        if len(masks) != 3:
            raise ValueError("masks are those of VMPL 1, 2 and 3")
        refused = self.forbidden(pfn)
        if refused:
            return refused
        page = self.entry(pfn)
        if not self.in_state(pfn, "PRE_GUEST"):
            return status(lib.SNP_FW_PAGE_STATE)
        if page.page_size != size or ((vmsa or small) and size == 1):
            return status(lib.SNP_FW_PAGE_SIZE)
        if page.asid != asid:
            return status(lib.SNP_FW_PAGE_OWNER)
        page.masks[1:] = list(masks)
        page.vmsa = page.vmsa or bool(vmsa)
        page.validated = True
        self.make_mutable(page)
        return status(lib.SNP_FW_OK)

    def reclaim(self, pfn, size):
        page = self.entry(pfn)
        if self.initialised and pfn in self.rmp_pages:
            return status(lib.SNP_FW_ADDRESS)
        refused = self.forbidden(pfn)
        if refused:
            return refused
        if self.size_differs(pfn, size):
            return status(lib.SNP_FW_PAGE_SIZE)
        if page is not None and size == 1 and pfn % self.region_pages:
            return status(lib.SNP_FW_ADDRESS)
        if page is not None and not page.immutable:
            return status(lib.SNP_FW_OK)
        if not self.in_state(pfn, "METADATA", "FIRMWARE", "PRE_GUEST", "PRE_SWAP"):
            return status(lib.SNP_FW_PAGE_STATE)
        if self.in_state(pfn, "METADATA"):
            page.gpa %= METADATA_TAG
        self.make_mutable(page)
        return status(lib.SNP_FW_OK)

    def unsmash(self, pfn):
        self.entry(pfn)
        if pfn % self.region_pages:
            return status(lib.SNP_FW_PARAM)
        refused = self.forbidden(pfn)
        if refused:
            return refused
        if self.rmp_pages.intersection(range(pfn, pfn + self.region_pages)):
            return status(lib.SNP_FW_ADDRESS)
        pages = self.region(pfn)
        if len(pages) < self.region_pages:
            return status(lib.SNP_FW_PAGE_STATE)
        first = pages[0]
        for i, page in enumerate(pages):
            alike = (
                page.page_size == 0
                and page.immutable
                and page.lock == first.lock
                and not page.vmsa
                and page.asid == first.asid != 0
                and page.gpa == first.gpa + i * 4096
                and page.masks == first.masks
                and self.state(pfn + i) == self.state(pfn)
            )
            if not alike or first.gpa % (self.region_pages * 4096):
                return status(lib.SNP_FW_PAGE_STATE)
        first.page_size = 1
        for page in pages[1:]:
            self.write_fresh(page)
            page.assigned, page.masks = True, [0x1F, 0, 0, 0]
        return status(lib.SNP_FW_OK)

    def page_move(self, src, dst, asid, size, gctx=None):
        refused = self.forbidden(*([] if gctx is None else [gctx]), src, dst)
        if refused:
            return refused
        if gctx is not None and not self.in_state(gctx, "CONTEXT"):
            return status(lib.SNP_FW_GUEST_INVALID)
        if self.size_differs(src, size) or self.size_differs(dst, size):
            return status(lib.SNP_FW_PAGE_SIZE)
        source, target = self.entry(src), self.entry(dst)
        if self.in_state(src, "PRE_SWAP", "PRE_GUEST") and self.in_state(dst, "PRE_GUEST"):
            if source.asid != asid or target.asid != asid:
                return status(lib.SNP_FW_PAGE_OWNER)
            swapped = self.in_state(src, "PRE_SWAP")
            source.validated = False
            self.make_mutable(source)
            target.gpa, target.vmsa, target.masks = source.gpa, source.vmsa, list(source.masks)
            target.validated = swapped
            self.make_mutable(target)
            return status(lib.SNP_FW_OK)
        if self.in_state(src, "METADATA") and self.in_state(dst, "FIRMWARE"):
            if gctx is not None and not self.belongs_to(src, gctx):
                return status(lib.SNP_FW_PAGE_OWNER)
            target.gpa = source.gpa
            source.gpa, source.vmsa = 0, False
            self.set_slots(dst, self.slots_of(src))
            return status(lib.SNP_FW_OK)
        return status(lib.SNP_FW_PAGE_STATE)

    # Swapping

    def slots_of(self, pfn):
        return {
            at[1]: entry for at, entry in self.slots.items() if at[0] == pfn and at[1] is not None
        }

    def set_slots(self, pfn, slots):
        for index in self.slots_of(pfn):
            del self.slots[pfn, index]
        self.slots.update({(pfn, index): entry for index, entry in slots.items()})

    def slot_refused(self, src, dst, gctx, size, slot):
        """Make the checks that both directions begin with: context, and where the entry lies."""
        refused = self.forbidden(gctx, src, dst)
        if refused:
            return refused
        if not self.in_state(gctx, "CONTEXT"):
            return status(lib.SNP_FW_GUEST_INVALID)
        if slot is None:
            return None
        if slot[1] not in range(SLOTS_PER_PAGE):
            raise ValueError(f"a metadata page has {SLOTS_PER_PAGE} entries")
        refused = self.forbidden(slot[0])
        if refused:
            return refused
        n_pages = self.region_pages if size else 1
        if 0 <= slot[0] - src < n_pages or 0 <= slot[0] - dst < n_pages:
            return status(lib.SNP_FW_PARAM)
        if not self.in_state(slot[0], "METADATA"):
            return status(lib.SNP_FW_PAGE_STATE)
        if not self.belongs_to(slot[0], gctx):
            return status(lib.SNP_FW_PAGE_OWNER)
        return None

    def swap_out(self, src, dst, gctx, asid, size, kind="data", slot=None):
        if kind not in ("data", "metadata", "vmsa"):
            raise ValueError("kind is data, metadata or vmsa")
        refused = self.slot_refused(src, dst, gctx, size, slot)
        if refused:
            return refused
        if self.size_differs(src, size) or self.size_differs(dst, size):
            return status(lib.SNP_FW_PAGE_SIZE)
        wanted = ["METADATA"] if kind == "metadata" else ["PRE_SWAP", "PRE_GUEST"]
        if not self.in_state(src, *wanted) or not self.in_state(dst, "FIRMWARE", "DEFAULT"):
            return status(lib.SNP_FW_PAGE_STATE)
        page = self.entry(src)
        if kind == "metadata":
            if not self.belongs_to(src, gctx):
                return status(lib.SNP_FW_PAGE_OWNER)
            saved = Swapped(kind, page.page_size, None, False, [0, 0, 0, 0], True)
            self.offline[dst] = self.slots_of(src)
            page.gpa, page.vmsa = 0, False
        else:
            if page.asid != asid:
                return status(lib.SNP_FW_PAGE_OWNER)
            masks = list(page.masks)
            saved = Swapped(kind, page.page_size, page.gpa, page.validated, masks, True)
            page.validated = False
        self.slots[slot or (gctx, None)] = saved
        return status(lib.SNP_FW_OK)

    def swap_in(self, src, dst, gctx, asid, size, kind="data", slot=None, in_place=False):
        refused = self.slot_refused(src, dst, gctx, size, slot)
        if refused:
            return refused
        at = slot or (gctx, None)
        saved = self.slots.get(at)
        if saved is None or not saved.valid or saved.kind != kind:
            return status(lib.SNP_FW_METADATA_ENTRY)
        if self.size_differs(src, size) or self.size_differs(dst, size) or saved.page_size != size:
            return status(lib.SNP_FW_PAGE_SIZE)
        if kind != "data" and in_place:
            return status(lib.SNP_FW_PARAM)
        if kind == "vmsa" and size == 1:
            return status(lib.SNP_FW_PAGE_SIZE)
        if in_place and src != dst:
            return status(lib.SNP_FW_ADDRESS)
        if not self.in_state(dst, "FIRMWARE" if kind == "metadata" else "PRE_GUEST"):
            return status(lib.SNP_FW_PAGE_STATE)
        page = self.entry(dst)
        if kind == "metadata":
            page.gpa = METADATA_TAG + gctx * 4096
            self.set_slots(dst, self.offline.get(src, {}))
        else:
            if page.asid != asid:
                return status(lib.SNP_FW_PAGE_OWNER)
            page.gpa, page.masks, page.vmsa = saved.gpa, list(saved.masks), kind == "vmsa"
            page.validated = page.validated or saved.validated
        self.slots[at] = saved._replace(valid=False)
        return status(lib.SNP_FW_OK)

    # The platform

    def set_state(self, first, n):
        refused = self.forbidden()
        if refused:
            return refused
        if first % self.region_pages:
            return status(lib.SNP_FW_PARAM)
        pfns = [p for p in range(first, first + n) if p not in self.rmp_pages]
        entries = [self.entry(pfn) for pfn in pfns]
        for pfn, page in zip(pfns, entries, strict=True):
            if page is not None and (not self.in_state(pfn, "FIRMWARE") or page.page_size):
                return status(lib.SNP_FW_PAGE_STATE)
        for page in filter(None, entries):
            page.assigned, page.lock, page.masks = False, False, [0, 0, 0, 0]
        return status(lib.SNP_FW_OK)

    def snp_init(self, hv_fixed=(), rmp=None, iommu=(), init_rmp=True):
        """Bring the platform up. Ranges are (first pfn, number of pages), iommu is pfns."""
        rmp_pages = set(range(rmp[0], rmp[0] + rmp[1])) if rmp else set()
        fixed_pages = {pfn for first, n in hv_fixed for pfn in range(first, first + n)}
        for pfn in [*rmp_pages, *iommu]:
            if self.entry(pfn) is None:
                raise ValueError(
                    f"pfn {pfn:#x} has no entry: the table covers itself and the IOMMU"
                )
        if rmp_pages.intersection(iommu) or fixed_pages.difference(range(self.n_pages)):
            raise ValueError("hv_fixed lies in the machine, the IOMMU's pages not in the RMP")
        if self.initialised:
            return status(lib.SNP_FW_PLATFORM_STATE)
        if not init_rmp and not self.table_built:
            return status(lib.SNP_FW_RMP_INIT_REQUIRED)
        if not init_rmp and hv_fixed:
            return status(lib.SNP_FW_PARAM)
        if init_rmp and any(page.in_use for page in self.pages):
            return status(lib.SNP_FW_CONFIG)
        self.initialised = True
        if not init_rmp:
            return status(lib.SNP_FW_OK)
        for pfn in range(self.covered):
            self.write_fresh(self.entry(pfn))
        for pfn in fixed_pages:
            if pfn < self.covered:
                self.entry(pfn).immutable = True
        for pfn in rmp_pages:
            page = self.entry(pfn)
            page.assigned = page.immutable = page.lock = True
        for pfn in iommu:
            self.write_fresh(self.entry(pfn))
            page = self.entry(pfn)
            page.assigned = page.immutable = True
            page.lock = self.lock_mirrors
            page.gpa = IOMMU_GPA
        self.rmp_pages, self.iommu_pages = rmp_pages, list(iommu)
        self.slots, self.offline = {}, {}
        self.table_built = True
        return status(lib.SNP_FW_OK)

    def write_fresh(self, page):
        """Write the entry of a page of the host's as firmware has it: all zero."""
        page.assigned = page.immutable = page.lock = False
        page.vmsa = page.validated = False
        page.page_size = page.asid = page.gpa = 0
        page.masks = [0, 0, 0, 0]

    def iommu_release(self):
        """Hand the IOMMU's pages back: RECLAIM, for the host to make its own by RMPUPDATE."""
        for pfn in self.iommu_pages:
            self.write_fresh(self.entry(pfn))
            self.entry(pfn).assigned = True
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
