"""Who owns which page of an SNP machine, the slow way: one record a page, one method an event.

Written from the fact sheet (sections 1.4, 2.4, 4.4, 5, 6 of the SNP host sheet) and from public
sources read as facts: Linux arch/x86/virt/svm/sev.c and arch/x86/kvm/svm/sev.c, AMD-ASPFW sev_rmp.c
and sev_mcmd.c ("FW"), verismo arch/rmp and arch/mem ("VMS"). Nothing is taken from the core but the
numbers of its headers. What these leave open was chosen here; every such choice is in `CHOICES`.

What the processor does is in this file, what firmware does in `memory_firmware_oracle`. Only pages
are modelled, not a guest's state nor that of its ASID on the CCXs. `pfn` counts 4 KiB pages of
system memory, `gpa` bytes; a region is what a 2 MiB page covers (tests make it smaller).
"""

from dataclasses import dataclass, field, replace

from memory_firmware_oracle import FIRMWARE_CHOICES, FirmwareCommands, Outcome

from ghcbcore._cffi import lib

CHOICES = {
    "update_order": "RMPUPDATE and PSMASH check input (1), immutable (2), in use (3), overlap (4),"
    " in the order of the codes: assumption; VMS too tests input before immutable",
    "update_unassigned": "assigned=0 with immutable=1 or an ASID is FAIL_INPUT (sheet 5.4; VMS"
    " reports permission)",
    "update_unassigned_gpa": "assigned=0 ignores the GPA and stores GPA 0 and page size 0, so that"
    " a page given back is the HYPERVISOR entry of 5.2: assumption. Linux rmp_make_shared passes a"
    " page size with assigned=0, so it has to be legal",
    "update_gpa": "with assigned=1 the GPA has to be aligned to the page size and lie below 2**48,"
    " else FAIL_INPUT: assumption; FW calls the bits above unused and keeps its tags there",
    "update_asid": "an ASID above 0x3fe is FAIL_INPUT: assumption; 0x3ff is the one with which FW"
    " locks an entry, the field has no more bits",
    "update_2m": "a 2 MB RMPUPDATE looks at its first entry for 2 and 3, then for assigned 4 KB"
    " pages (4), then for frozen (2) and for in-use (3) pages of the region: assumption",
    "update_inside_2m": "a 4 KB RMPUPDATE inside a live 2 MB entry meets that entry: immutable 2,"
    " in use 3, else 4; its first page too: sheet 5.4 code 4, the order is an assumption",
    "update_conservative": "any successful RMPUPDATE resets validated, vmsa and the masks;"
    " conservative=False: only if ASID, GPA, size or assigned change or the ASID is 0 (VMS, both)",
    "masks_reset": "VMPL0 all is 0x1f, the others 0; also for an ASID of 0 and for a page given"
    " back: sheet 5.4; a dump of a real entry has 0x1f. A page never written has 0 (FW zeroes)",
    "lock_bit": "RMPUPDATE leaves lock 0 (encodings of sheet 5.2), firmware clears it with"
    " immutable, only the RMP's own pages have it 1. FW itself mirrors immutable in lock wherever"
    " it writes, and PAGE_SET_STATE there accepts only locked entries: lock_mirrors=True does that",
    "inside_2m_entry": "the other entries of a 2 MB page read assigned=1, ASID 0, immutable 0:"
    " what FW PAGE_UNSMASH writes, and KVM needs assigned=1 of them before it smashes. state, raw,"
    " rmpread and firmware see this own entry (state RECLAIM); accesses, the guest's instructions,"
    " RMPUPDATE and the counters see the 2 MB entry. A GPA of 0 and the masks of an update:"
    " assumption",
    "rmpread_region": "the region bit is given for every page of the region, and is 1 if any page"
    " in it is assigned, the page itself too: assumption",
    "uncovered": "a page beyond the table has no entry: raw and rmpread are None, instructions on"
    " it fail with 1, guests that use it with C=1 get #NPF, all else is plain memory (sheet 5.3;"
    " VMS gives #NPF for any guest access)",
    "psmash_gpa": "PSMASH of an entry with ASID 0 leaves the GPA field of all pages as it is:"
    " assumption,"
    " it is nobody's address and the states that PSMASH accepts do not look at it",
    "psmash_in_use": "PSMASH fails with 3 if any page of the region is in use: assumption",
    "pvalidate_vmpl": "PVALIDATE outside VMPL0 is #GP before anything else (sheet: #GP or 2; VMS"
    " arch/mem refuses it as unsupported before its arch/rmp, which has 2, is reached)",
    "operand_alignment": "a 2 MB PVALIDATE or RMPADJUST of a GPA off a region is FAIL_INPUT,"
    " before the walk (VMS tests the GVA, which has the same low bits)",
    "adjust_order": "RMPADJUST: input 1, target VMPL above 3 1, target <= own 2, #NPF of the walk,"
    " #VC if not validated, size 6, mask 2 (VMS; target above 3: assumption)",
    "adjust_vmsa": "at VMPL0 the VMSA bit is set to the operand's, elsewhere the operand's bit is"
    " ignored (sheet: VMPL0 only; VMS sets it for all). 2 MB with VMSA is not refused: VMS",
    "adjust_mask": "the mask is compared as a whole byte, so a reserved bit is never a subset (2):"
    " assumption",
    "guest_in_use": "RMPADJUST of a page in use, or of a 2 MB page with one, is 3 once all else"
    " fits"
    " (Linux d2062cc1b1c3: APs are kicked out of guest mode so that RMPADJUST of their VMSAs can"
    " succeed; the order is an assumption); PVALIDATE does not look at the bit: sheet 5.4 has no 3",
    "pvalidate_value": "PVALIDATE with an operand other than 0 and 1 is FAIL_INPUT: assumption",
    "frozen": "an entry with lock=1 is refused as an immutable one is, by RMPUPDATE and PSMASH:"
    " sheet 5.4 (immutable/locked)",
    "rmpquery": "target > 3 is 1, target < own is 2, then the walk, then #VC; ok returns the"
    " target's mask in bits: assumption, details are not public",
    "walk_order": "the walk tests owner (assigned, ASID, immutable, GPA) before sizes: a fault of"
    " the first kind has no SIZEM (VMS). It does so for accesses and instructions alike, so a 2 MB"
    " nested page over a 4 KB entry is #NPF also for a 2 MB PVALIDATE; 6 needs a 4 KB nested page:"
    " assumption",
    "walk_sizem": "SIZEM is set if the nested page or the operand is smaller than the entry, not if"
    " larger (sheet 5.6)",
    "npf_bits": "PRESENT, USER, RMP and FINAL always: a nested walk is a user's access, and all"
    " nested faults that Linux KVM traces have the bit (0x100000006, 0x100000014, 0x10000000d). ENC"
    " if C=1 or code is fetched; VMPL if the mask refuses; WRITE, FETCH as the access has them; an"
    " instruction counts as a read: assumption",
    "fetch_private": "an SNP guest's code is fetched as with C=1 whatever the C-bit (what APM2"
    " says of"
    " SEV); a fetch that would also write is one: assumption",
    "vc_bits": "#VC and #GP carry no bits: assumption, made for the tests' sake",
    "guest_shared_read": "C=0 reads of assigned pages pass (sheet: write; VMS: any access); with"
    " shared_read=True an SNP guest's are refused as its writes are",
    "plain_write_2m": "a C=0 or non-SNP write through a 2 MB nested page needs the whole region"
    " unassigned, as the host's does: assumption; one translation serves all of it",
    "in_use_host_only": "the in-use bit stops writes of the host (sheet 5.6) and any private access"
    " of an SNP guest, before all else: #NPF (Linux d2062cc1b1c3: a dump that touches a VMSA"
    " that is"
    " busy never ends; the order is an assumption). No other write: the sheet names none",
    "in_use_huge": "through a huge mapping a write meets an in-use page if it is the written one or"
    " the first of its region (erratum, sheet 5.6)",
    "vmrun": "vmrun and vmexit only set and clear the bit, twice is once, and on a page without an"
    " entry nothing happens: assumption; VMRUN's own checks of a VMSA are not page ownership",
    "iommu_bits": "an IOMMU refusal has PRESENT, WRITE, RMP; reads pass: assumption",
    "counter": "a 2 MB page counts as all its 4 KB pages: assumption, FW tests for zero alone",
    **FIRMWARE_CHOICES,
}

OK, FAIL_INPUT, FAIL_PERMISSION, FAIL_INUSE, FAIL_OVERLAP, FAIL_SIZEMISMATCH = 0, 1, 2, 3, 4, 6
READ, WRITE, EXECUTE_USER, EXECUTE_SUPERVISOR = 0x01, 0x02, 0x04, 0x08
ALL_RIGHTS = 0x1F
MAX_ASID = 0x3FE
PAGE = 4096


@dataclass
class Page:
    """One entry of the table, and the in-use bit that nobody can read."""

    assigned: bool = False
    page_size: int = 0
    immutable: bool = False
    vmsa: bool = False
    validated: bool = False
    lock: bool = False
    in_use: bool = False
    asid: int = 0
    gpa: int = 0
    masks: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    @property
    def frozen(self):
        return self.immutable or self.lock


def returned(code: int, carry: bool = False) -> Outcome:
    return Outcome("ok", code, int(carry))


def fault(kind: str, *names: str) -> Outcome:
    return Outcome(kind, 0, sum(1 << getattr(lib, f"FAULT_{name}") for name in set(names)))


class MemoryOracle(FirmwareCommands):
    """Pages 0..n_pages-1; those from `covered` on have no entry.

    `initialised=False` starts before SNP_INIT, when firmware refuses its page commands.
    """

    def __init__(
        self,
        n_pages,
        region_pages=512,
        covered=None,
        conservative=True,
        *,
        lock_mirrors=False,
        initialised=True,
        max_asid=MAX_ASID,
        shared_read=False,
    ):
        self.n_pages = n_pages
        self.region_pages = region_pages
        self.covered = n_pages if covered is None else covered
        if not 0 <= self.covered <= n_pages or region_pages < 2:
            raise ValueError("covered lies in 0..n_pages, a region has at least 2 pages")
        self.conservative = conservative
        self.lock_mirrors = lock_mirrors
        self.max_asid = max_asid
        self.shared_read = shared_read
        self.pages = [Page() for _ in range(self.covered)]
        self.start_firmware(initialised)

    # The table as it is

    def entry(self, pfn):
        """Return the page's own entry, None beyond the table."""
        if not 0 <= pfn < self.n_pages:
            raise ValueError(f"pfn {pfn:#x} is not a page of this machine")
        return self.pages[pfn] if pfn < self.covered else None

    def first_of_region(self, pfn):
        return pfn - pfn % self.region_pages

    def region(self, pfn):
        """Return the entries of the region in which the page lies, as far as it has some."""
        first = self.first_of_region(pfn)
        return self.pages[first : first + self.region_pages]

    def large_entry(self, pfn):
        """Return the live 2 MB entry that the page lies in, or None."""
        if self.entry(pfn) is None:
            return None
        first = self.pages[self.first_of_region(pfn)]
        return first if first.assigned and first.page_size == 1 else None

    def deciding_entry(self, pfn):
        """Return the entry that decides about the page, and the page's GPA by it."""
        large = self.large_entry(pfn)
        if large is not None:
            return large, large.gpa + (pfn % self.region_pages) * PAGE
        own = self.entry(pfn)
        return own, own.gpa if own else 0

    def raw(self, pfn):
        """Return the two words of the page's own entry."""
        page = self.entry(pfn)
        if page is None:
            return None
        subpages = 0
        if pfn == self.first_of_region(pfn) and page.page_size == 0:
            subpages = sum(other.assigned for other in self.region(pfn)[1:])
        low = (
            page.assigned * 2**0
            + page.page_size * 2**1
            + page.immutable * 2**2
            + subpages * 2**3
            + page.gpa
            + page.asid * 2**51
            + page.vmsa * 2**61
            + page.validated * 2**62
            + page.lock * 2**63
        )
        high = sum(mask * 256**vmpl for vmpl, mask in enumerate(page.masks))
        return low, high

    def state(self, pfn):
        page = self.entry(pfn)
        if page is None:
            return lib.RMP_STATE_DEFAULT
        key = (page.assigned, page.validated, page.asid > 0, page.immutable)
        firmware_owned = (True, False, False, True)
        frame, tag = page.gpa // PAGE % 2**36, page.gpa >> 48
        if key == (False, False, False, False):
            return lib.RMP_STATE_HYPERVISOR
        if key == (False, False, False, True):
            return lib.RMP_STATE_HV_FIXED
        if key == firmware_owned and page.gpa == 0:
            return lib.RMP_STATE_CONTEXT if page.vmsa else lib.RMP_STATE_FIRMWARE
        if key == (True, False, False, False) and not page.lock:
            return lib.RMP_STATE_RECLAIM
        if key == firmware_owned and tag == 1:
            return lib.RMP_STATE_METADATA
        if key == firmware_owned and frame == 1 and tag == 2 and not page.vmsa:
            return lib.RMP_STATE_FIRMWARE_IOMMU
        return {
            (True, False, True, True): lib.RMP_STATE_PRE_GUEST,
            (True, True, True, True): lib.RMP_STATE_PRE_SWAP,
            (True, False, True, False): lib.RMP_STATE_GUEST_INVALID,
            (True, True, True, False): lib.RMP_STATE_GUEST_VALID,
        }.get(key, lib.RMP_STATE_NONE)

    def pages_assigned_to(self, asid):
        """Count the 4 KB pages that belong to the ASID: not zero keeps it from being activated."""
        count = 0
        for pfn in range(self.covered):
            page, _ = self.deciding_entry(pfn)
            count += page.assigned and page.asid == asid
        return count

    # The host's instructions

    def rmpupdate(self, pfn, gpa, assigned, page_size, immutable, asid):
        if page_size not in (0, 1) or gpa < 0 or asid < 0:
            raise ValueError("page_size is 0 or 1, gpa and asid are not negative")
        own, n_pages = self.entry(pfn), self.region_pages if page_size else 1
        if own is None or pfn % n_pages or pfn + n_pages > self.covered or asid > self.max_asid:
            return returned(FAIL_INPUT)
        if not assigned and (immutable or asid):
            return returned(FAIL_INPUT)
        if assigned and (gpa % (n_pages * PAGE) or gpa >= 2**48):
            return returned(FAIL_INPUT)
        deciding, _ = self.deciding_entry(pfn)
        large = self.large_entry(pfn)
        if deciding.frozen:
            return returned(FAIL_PERMISSION)
        if deciding.in_use or own.in_use:
            return returned(FAIL_INUSE)
        if page_size == 0 and large:
            return returned(FAIL_OVERLAP)
        others = self.region(pfn)[1:] if page_size else []
        if not large and any(other.assigned for other in others):
            return returned(FAIL_OVERLAP)
        if any(other.frozen for other in others):
            return returned(FAIL_PERMISSION)
        if any(other.in_use for other in others):
            return returned(FAIL_INUSE)

        before = (own.asid, own.gpa, own.page_size, own.assigned)
        changed = before != (asid, gpa, page_size, bool(assigned))
        if not self.conservative and not changed and asid != 0:
            own.immutable = bool(immutable)
            own.lock = self.lock_mirrors and own.immutable
            return returned(OK)
        for i in range(pfn, pfn + n_pages):
            self.pages[i] = Page(assigned=bool(assigned), masks=[ALL_RIGHTS, 0, 0, 0])
        if assigned:
            new = self.pages[pfn]
            new.gpa, new.asid, new.page_size = gpa, asid, page_size
            new.immutable = bool(immutable)
            new.lock = self.lock_mirrors and new.immutable
        return returned(OK)

    def psmash(self, pfn):
        own = self.entry(pfn)
        if own is None or pfn % self.region_pages or not (own.assigned and own.page_size):
            return returned(FAIL_INPUT)
        if own.frozen:
            return returned(FAIL_PERMISSION)
        if any(page.in_use for page in self.region(pfn)):
            return returned(FAIL_INUSE)
        for i in range(self.region_pages):
            gpa = own.gpa + i * PAGE if own.asid else own.gpa
            small = replace(own, page_size=0, gpa=gpa, masks=list(own.masks))
            self.pages[pfn + i] = small
        return returned(OK)

    def rmpread(self, pfn):
        page = self.entry(pfn)
        if page is None:
            return None
        return {
            "gpa": page.gpa,
            "assigned": int(page.assigned),
            "page_size": page.page_size,
            "region": int(any(other.assigned for other in self.region(pfn))),
            "immutable": int(page.immutable),
            "asid": page.asid,
        }

    # The guest's instructions. The nested page table maps gpa to pfn by a page of npt_size.

    def walk(self, asid, gpa, pfn, npt_size, names):
        """Return the #NPF that a private access meets for its owner and size, or None."""
        page, page_gpa = self.deciding_entry(pfn)
        if (
            page is None
            or not page.assigned
            or page.asid != asid
            or page.immutable
            or page_gpa != gpa - gpa % PAGE
        ):
            return fault("#NPF", *names)
        if npt_size < page.page_size:
            return fault("#NPF", *names, "NPF_SIZEM")
        if npt_size > page.page_size:
            return fault("#NPF", *names)
        return None

    def pvalidate(self, asid, vmpl, gpa, pfn, npt_size, size, validate):
        self.check_guest(asid, vmpl, npt_size)
        names = ("PRESENT", "USER", "RMP", "NPF_FINAL", "NPF_ENC")
        if vmpl != 0:
            return fault("#GP")
        if validate not in (0, 1) or (size == 1 and gpa // PAGE % self.region_pages):
            return returned(FAIL_INPUT)
        refused = self.walk(asid, gpa, pfn, npt_size, names)
        if refused:
            return refused
        page, _ = self.deciding_entry(pfn)
        if size < page.page_size:
            return fault("#NPF", *names, "NPF_SIZEM")
        if size > page.page_size:
            return returned(FAIL_SIZEMISMATCH)
        if page.validated == bool(validate):
            return returned(OK, carry=True)
        page.validated = bool(validate)
        return returned(OK)

    def rmpadjust(self, asid, vmpl, gpa, pfn, npt_size, size, target, mask, vmsa):
        self.check_guest(asid, vmpl, npt_size)
        names = ("PRESENT", "USER", "RMP", "NPF_FINAL", "NPF_ENC")
        if (size == 1 and gpa // PAGE % self.region_pages) or target > 3:
            return returned(FAIL_INPUT)
        if target <= vmpl:
            return returned(FAIL_PERMISSION)
        refused = self.walk(asid, gpa, pfn, npt_size, names)
        if refused:
            return refused
        page, _ = self.deciding_entry(pfn)
        if size < page.page_size:
            return fault("#NPF", *names, "NPF_SIZEM")
        if not page.validated:
            return fault("#VC")
        if size > page.page_size:
            return returned(FAIL_SIZEMISMATCH)
        if mask & ~page.masks[vmpl]:
            return returned(FAIL_PERMISSION)
        operand = self.region(pfn) if size else [self.entry(pfn)]
        if any(one.in_use for one in operand):
            return returned(FAIL_INUSE)
        page.masks[target] = mask
        if vmpl == 0:
            page.vmsa = bool(vmsa)
        return returned(OK)

    def rmpquery(self, asid, vmpl, gpa, pfn, npt_size, target):
        self.check_guest(asid, vmpl, npt_size)
        if target > 3:
            return returned(FAIL_INPUT)
        if target < vmpl:
            return returned(FAIL_PERMISSION)
        names = ("PRESENT", "USER", "RMP", "NPF_FINAL", "NPF_ENC")
        refused = self.walk(asid, gpa, pfn, npt_size, names)
        if refused:
            return refused
        page, _ = self.deciding_entry(pfn)
        if not page.validated:
            return fault("#VC")
        return Outcome("ok", OK, page.masks[target])

    def check_guest(self, asid, vmpl, npt_size):
        if asid < 1 or vmpl not in range(4) or npt_size not in (0, 1):
            raise ValueError("a guest has an ASID, a VMPL of 0..3 and nested pages of size 0 or 1")

    # Accesses

    def assigned_below(self, pfn, map_size):
        """Say whether a mapping of this size, as far as it is tested, has an assigned page."""
        if map_size == 0:
            page, _ = self.deciding_entry(pfn)
            return page is not None and page.assigned
        return any(page.assigned for page in self.region(pfn))

    def access_host(self, pfn, write, map_size, user=False, fetch=False):
        own = self.entry(pfn)
        if map_size not in (0, 1, 2):
            raise ValueError("map_size is 0 (4 KB), 1 (2 MB) or 2 (1 GB)")
        if not write:
            return returned(OK)
        in_use = own is not None and own.in_use
        if map_size and self.region(pfn) and self.region(pfn)[0].in_use:
            in_use = True
        if self.assigned_below(pfn, map_size) or in_use:
            names = ["PRESENT", "WRITE", "RMP"] + ["USER"] * bool(user) + ["FETCH"] * bool(fetch)
            return fault("#PF", *names)
        return returned(OK)

    def access_guest(
        self,
        asid,
        vmpl,
        gpa,
        pfn,
        npt_size,
        c_bit,
        write,
        fetch=False,
        user=False,
        snp=True,
    ):
        own = self.entry(pfn)
        names = ["PRESENT", "USER", "RMP", "NPF_FINAL"] + ["NPF_ENC"] * bool(c_bit or fetch)
        names += ["WRITE"] * bool(write) + ["FETCH"] * bool(fetch)
        if not snp or not (c_bit or fetch):
            checked = write or (snp and self.shared_read)
            if checked and self.assigned_below(pfn, npt_size):
                return fault("#NPF", *names)
            return returned(OK)
        self.check_guest(asid, vmpl, npt_size)
        if own is not None and own.in_use:
            return fault("#NPF", *names)
        refused = self.walk(asid, gpa, pfn, npt_size, names)
        if refused:
            return refused
        page, _ = self.deciding_entry(pfn)
        if not page.validated:
            return fault("#VC")
        right = WRITE if write else READ
        if fetch:
            right = EXECUTE_USER if user else EXECUTE_SUPERVISOR
        if not page.masks[vmpl] & right:
            return fault("#NPF", *names, "NPF_VMPL")
        return returned(OK)

    def access_iommu(self, pfn, write):
        self.entry(pfn)
        if write and self.assigned_below(pfn, 0):
            return fault("IOMMU", "PRESENT", "WRITE", "RMP")
        return returned(OK)

    def vmrun(self, pfn):
        return self.set_in_use(pfn, True)

    def vmexit(self, pfn):
        return self.set_in_use(pfn, False)

    def set_in_use(self, pfn, in_use):
        page = self.entry(pfn)
        if page is not None:
            page.in_use = in_use
        return returned(OK)
