"""The SEV/SNP firmware of a host, told slowly: platform, guests, ASIDs, flushes, shutdown.

Written from the fact sheet of the SNP host (sections 1 and 2, 4.4, 5.5, 8) before anything of the
core was read. It imports nothing of the project: every number is typed from the sheet, in
``firmware_rules``, where each command is one row, its checks in the order that decides. Where the
sheet leaves something open, ``CHOICES`` there says what was taken and why; "FW" is AMD's published
Genoa source (amd/AMD-ASPFW), as in the sheet.

A CCX is a number; thread ``t`` belongs to core ``t // threads`` and that one to CCX
``core // cores``. Pages are numbers; those from ``covered`` on have no entry in the RMP (state
DEFAULT). What a page command does to the fields of an entry is told by
``memory_firmware_oracle``; here a page has a state, a size (0: 4 KB, 1: 2 MB), an ASID, and the
context it holds metadata for. ``wrong`` of a command names what is wrong with its buffer, in the
words of its row.
"""

from firmware_checks import Checks
from firmware_rules import (
    COMMANDS,
    DEFAULTS,
    INVALID_COMMAND,
    INVALID_PAGE_STATE,
    RULES,
    SHUTDOWN_INCOMPLETE,
    SUCCESS,
    WBINVD_REQUIRED,
    WRITE_BACK_QUIRK,
    WRITES_BACK,
)

__all__ = ["FirmwareOracle", "NotInSheet"]

SAME_AS = {
    "INIT_EX": "INIT",
    "SNP_DF_FLUSH": "DF_FLUSH",
    "SNP_INIT_EX": "SNP_INIT",
    "SNP_SHUTDOWN_EX": "SNP_SHUTDOWN",
    "SNP_ACTIVATE": "ACTIVATE",
    "ACTIVATE_EX": "ACTIVATE",
    "SNP_ACTIVATE_EX": "ACTIVATE",
    "RECEIVE_FINISH": "LAUNCH_FINISH",
}
# What happens to the state of a SEV guest, where that is all that happens.
NEXT_STATE = {
    "LAUNCH_MEASURE": "LSECRET",
    "LAUNCH_FINISH": "RUNNING",
    "RECEIVE_FINISH": "RUNNING",
    "SEND_START": "SUPDATE",
    "SEND_FINISH": "SENT",
    "SEND_CANCEL": "RUNNING",
}


class NotInSheet(Exception):
    """The sheet says nothing of this: the command has no row, or the case is left open."""


class Guest:
    """What firmware knows of a guest; ``kind`` is SEV, ES or SNP."""

    def __init__(self, kind, state, debuggable=True, single_socket=False, image=False):
        self.kind = kind
        self.state = state
        self.debuggable = debuggable
        self.single_socket = single_socket
        self.image = image  # an incoming migration image: finished by VM_ABSORB
        self.asid = 0
        self.activation = "inactive"  # or PENDING, ACTIVE
        self.ccxs = set()


class Page:
    def __init__(self, state="HYPERVISOR", size=0, asid=0, validated=False):
        self.state = state
        self.size = size
        self.asid = asid
        self.validated = validated
        self.context = None  # of a METADATA page


class FirmwareOracle(Checks):
    """One machine: its firmware, the flags of its threads, and what the RMP says of some pages."""

    def __init__(
        self,
        ccxs=2,
        cores=2,
        threads=2,
        sockets=1,
        max_asid=4,
        min_sev_asid=3,
        mode="strict",
        apic_table=True,
        x86_shutdown=True,
        covered=64,
        hv_fixed=(),
        iommu_pages=(),
    ):
        if mode not in ("strict", "genoa_2023"):
            raise ValueError(f"mode {mode!r}: strict or genoa_2023")
        if ccxs % sockets or not 1 <= min_sev_asid <= max_asid + 1 or threads not in (1, 2):
            raise ValueError("no such machine")
        self.n_ccxs, self.n_cores, self.n_smt, self.sockets = ccxs, cores, threads, sockets
        self.n_threads = ccxs * cores * threads
        self.asids = range(1, max_asid + 1)
        self.min_sev_asid = min_sev_asid
        self.mode = mode
        self.apic_table = apic_table
        self.can_x86_shutdown = x86_shutdown
        self.covered = covered
        self.hv_fixed, self.iommu_pages = frozenset(hv_fixed), frozenset(iommu_pages)
        # The host's side: what its CPUs are set to.
        self.snpen = [True] * (ccxs * cores)
        self.hsave_clear = [True] * (ccxs * cores)
        # Firmware's side.
        self.sev, self.snp = "UNINIT", "UNINIT"
        self.es_platform = False
        self.guests = {}  # handle: Guest
        self.contexts = {}  # page: Guest
        self.snp_guest_count = 0
        self.max_snp_asid = 0  # with ciphertext hiding; 0: without
        self.rmp_initialised = False
        self.iommu_enforces = False
        self.pages = {}
        self.slots = {}  # where a swapped page's entry is: (size, was it validated)
        self.keys = set()  # ASIDs that have a key in the memory controllers
        self.identity = 0
        self.owned = False  # by a certificate of somebody's
        self.answer = None
        # The ASID machine.
        self.cells_lost = True
        self.cells = {a: ["DIRTY"] * ccxs for a in self.asids}
        self.done = [False] * self.n_threads
        self.noinvd_done = [False] * self.n_threads  # nobody asks for it
        self.offline = set()
        self.invalid = [set(self.asids) for _ in range(self.n_threads)]

    # The machine

    def ccx_of(self, thread):
        return thread // self.n_smt // self.n_cores

    def threads_of(self, ccx):
        return [t for t in range(self.n_threads) if self.ccx_of(t) == ccx]

    def socket_of(self, ccx):
        return ccx // (self.n_ccxs // self.sockets)

    def is_core_done(self, core):
        return all(self.done[core * self.n_smt + t] for t in range(self.n_smt))

    def page(self, number):
        if number not in self.pages:
            self.pages[number] = Page("HYPERVISOR" if number < self.covered else "DEFAULT")
        return self.pages[number]

    def wbinvd(self, thread):
        """Write back and invalidate; say whether the thread could."""
        return self.executed(self.done, thread)

    def wbnoinvd(self, thread):
        """Write back without invalidating: another flag is set, which nobody asks for."""
        return self.executed(self.noinvd_done, thread)

    def executed(self, flags, thread):
        if range(self.n_threads)[thread] in self.offline:
            return False
        flags[thread] = True
        return True

    def may_run(self, thread, asid):
        return asid not in self.invalid[thread]

    def rmpupdate(self, number, state, asid=0, size=0):
        """Change a page as the host's RMPUPDATE does; say whether it did."""
        page = self.page(number)
        if page.state not in ("HYPERVISOR", "RECLAIM", "GUEST_INVALID", "GUEST_VALID"):
            return False
        if state not in ("HYPERVISOR", "FIRMWARE", "PRE_GUEST", "GUEST_INVALID"):
            raise ValueError(f"RMPUPDATE makes no page {state}")
        if (asid != 0) != (state in ("PRE_GUEST", "GUEST_INVALID")):
            raise ValueError("only a page of a guest has an ASID, and it always has")
        self.pages[number] = Page(state, size, asid)
        return True

    def pages_of(self, asid):
        return sum(page.asid == asid != 0 for page in self.pages.values())

    # Commands

    def command(self, what, *, wrong=(), buffer=None, **given):
        """Give firmware a command, by name or by number; return its status.

        ``buffer`` is the page that the command's buffer lies in, where firmware writes back to it.
        """
        name = COMMANDS.get(what) if isinstance(what, int) else what
        if name is None:
            return INVALID_COMMAND
        if name not in RULES:
            raise NotInSheet(f"{name} has no row in the sheet")
        row = RULES[name]
        wrong = {wrong} if isinstance(wrong, str) else set(wrong)
        flaws = {check[0] for check in row.checks if isinstance(check, tuple)} | row.flaws
        if not wrong <= flaws:
            raise ValueError(f"{name} has nothing that can be wrong as {sorted(wrong - flaws)}")
        if not set(given) <= set(row.arguments):
            raise TypeError(f"{name} takes {row.arguments}, not {sorted(given)}")
        self.args = {n: DEFAULTS[n] for n in row.arguments if n in DEFAULTS} | given
        if set(self.args) != set(row.arguments):
            raise TypeError(f"{name} needs {row.arguments}")
        self.wrong, self.name, self.answer = wrong, name, None
        if self.cells_lost:
            self.cells_lost = False
            self.cells = {a: ["DIRTY"] * self.n_ccxs for a in self.asids}
        if buffer is None or name not in WRITES_BACK or self.snp == "UNINIT":
            return self.checked(row)
        if self.page(buffer).state not in ("FIRMWARE", "DEFAULT"):
            quirk = WRITE_BACK_QUIRK if self.mode == "genoa_2023" else 0
            return INVALID_PAGE_STATE + quirk
        status = self.checked(row)
        if self.page(buffer).state == "FIRMWARE":
            self.page(buffer).state = "RECLAIM"
        return status

    def checked(self, row):
        for check in row.checks:
            if isinstance(check, tuple):
                answer = check[1] if check[0] in self.wrong else None
            else:
                word, *words = check.split()
                answer = getattr(self, "check_" + word)(*words)
            if answer is not None:
                return answer
        effect = getattr(self, "do_" + SAME_AS.get(self.name, self.name).lower(), None)
        answer = effect() if effect else None
        if self.name in NEXT_STATE:
            self.guest().state = NEXT_STATE[self.name]
        return SUCCESS if answer is None else answer

    def guest(self):
        """Return the guest that the command names, by handle or by context page."""
        if "handle" in self.args:
            return self.guests[self.args["handle"]]
        return self.contexts[self.args["gctx"]]

    # The ASID machine (sheet 2.1)

    def reset_asids(self):
        self.invalid = [set(self.asids) for _ in range(self.n_threads)]
        self.done = [False] * self.n_threads
        self.noinvd_done = [False] * self.n_threads
        self.cells = {a: ["DIRTY"] * self.n_ccxs for a in self.asids}

    def make_runnable(self, guest):
        """Let the guest's ASID run on its CCXs: ALLOC or CLEAN becomes IN_USE."""
        guest.activation = "ACTIVE"
        for x in guest.ccxs:
            self.cells[guest.asid][x] = "IN_USE"
            for t in self.threads_of(x):
                self.invalid[t].discard(guest.asid)

    def do_activate(self):
        guest, asid = self.guest(), self.args["asid"]
        chosen = set(self.args.get("ccxs", range(self.n_ccxs)))
        self.keys.add(asid)
        guest.asid = asid
        guest.ccxs |= chosen
        if guest.state in ("RUNNING", "SUPDATE"):
            self.make_runnable(guest)
            return
        guest.activation = "PENDING"
        for x in chosen:
            self.cells[asid][x] = "ALLOC"

    def deactivate(self, guest):
        cells = self.cells[guest.asid]
        for x in guest.ccxs:
            if cells[x] == "ALLOC":
                cells[x] = "CLEAN"
            elif cells[x] == "IN_USE":
                cells[x] = "DIRTY"
                for t in self.threads_of(x):
                    self.invalid[t].add(guest.asid)
                    self.done[t] = False
        guest.asid, guest.activation, guest.ccxs = 0, "inactive", set()

    def do_df_flush(self):
        all_done = True
        for x in range(self.n_ccxs):
            cores = range(x * self.n_cores, (x + 1) * self.n_cores)
            done = [self.is_core_done(core) for core in cores]
            if all(done) or (self.mode == "genoa_2023" and done[0]):
                for a in self.asids:
                    if self.cells[a][x] == "DIRTY":
                        self.cells[a][x] = "CLEAN"
            all_done = all_done and all(done)
        return None if all_done else WBINVD_REQUIRED

    # The platform

    def do_init(self):
        if self.snp == "UNINIT":
            self.reset_asids()
        self.sev = "INIT"
        self.es_platform = self.args["es"]

    def do_shutdown(self):
        if self.snp == "INIT":
            for guest in self.guests.values():
                if guest.asid:
                    self.deactivate(guest)
        else:
            self.invalid = [set(self.asids) for _ in range(self.n_threads)]
        self.guests = {}
        self.sev, self.es_platform = "UNINIT", False

    def do_platform_reset(self):
        self.identity += 1
        self.owned = False

    def do_pek_gen(self):
        self.owned = False

    def do_pek_cert_import(self):
        self.owned = True

    def do_platform_status(self):
        self.answer = {"state": self.sev, "guest_count": len(self.guests)}

    def do_snp_platform_status(self):
        self.answer = {
            "state": self.snp,
            "rmp_initialised": self.rmp_initialised,
            "guest_count": self.snp_guest_count,
        }

    def do_snp_init(self):
        if self.args.get("max_snp_asid", 0) >= self.min_sev_asid:
            raise NotInSheet("ciphertext hiding without an ASID for SNP or beyond SEV-ES")
        if self.args.get("init_rmp", True):
            self.pages = {n: Page("HV_FIXED") for n in self.hv_fixed}
            self.pages.update({n: Page("FIRMWARE_IOMMU") for n in self.iommu_pages})
            self.contexts, self.slots = {}, {}
            self.snp_guest_count = 0
            self.rmp_initialised = True
            self.iommu_enforces = True
        self.max_snp_asid = self.args.get("max_snp_asid", 0)
        self.reset_asids()
        self.snp = "INIT"

    def do_snp_shutdown(self):
        self.snp = "UNINIT"
        if not self.args.get("iommu"):
            return SUCCESS
        self.rmp_initialised = self.iommu_enforces = False
        for n in self.iommu_pages:
            if self.page(n).state == "FIRMWARE_IOMMU":
                self.page(n).state = "RECLAIM"
        self.keys = set()
        if self.args.get("x86"):
            if "x86_failure" in self.wrong:
                return SHUTDOWN_INCOMPLETE
            self.snpen = [False] * len(self.snpen)
        self.cells_lost = True
        return SUCCESS

    # SEV guests

    def new_guest(self, state):
        handle = next(h for h in range(1, len(self.guests) + 2) if h not in self.guests)
        kind = "ES" if self.args["es"] else "SEV"
        self.guests[handle] = Guest(kind, state, self.args["debuggable"])
        self.sev = "WORKING"
        self.answer = {"handle": handle}

    def do_launch_start(self):
        self.new_guest("LUPDATE")

    def do_receive_start(self):
        self.new_guest("RUPDATE")

    def do_guest_status(self):
        guest = self.guests.get(self.args["handle"], Guest("SEV", "INVALID"))
        self.answer = {"state": guest.state, "asid": guest.asid}

    def do_launch_finish(self):
        if self.guest().activation == "PENDING":
            self.make_runnable(self.guest())

    def do_deactivate(self):
        self.deactivate(self.guest())

    def do_decommission(self):
        del self.guests[self.args["handle"]]
        if not self.guests:
            self.sev = "INIT"

    # SNP guests

    def do_snp_gctx_create(self):
        self.page(self.args["gctx"]).state = "CONTEXT"
        self.contexts[self.args["gctx"]] = Guest("SNP", "INIT")

    def do_snp_launch_start(self):
        guest = self.guest()
        guest.state = "LAUNCH"
        guest.debuggable = self.args["debuggable"]
        guest.single_socket = self.args["single_socket"]
        guest.image = self.args["image"]
        self.snp_guest_count += 1

    def do_snp_launch_finish(self):
        self.do_launch_finish()
        self.guest().state = "RUNNING"

    def do_snp_decommission(self):
        guest = self.contexts.pop(self.args["gctx"])
        if guest.asid:
            self.deactivate(guest)
        if guest.state != "INIT":
            self.snp_guest_count -= 1
        self.page(self.args["gctx"]).state = "FIRMWARE"

    def do_snp_guest_status(self):
        guest = self.guest()
        self.answer = {"state": guest.state, "asid": guest.asid}

    def do_snp_guest_request(self):
        """Answer a message; VM_IMPORT and VM_ABSORB make another guest run."""
        if self.args["message"] is None:
            return
        wanted = {"VM_IMPORT": ("INIT", False), "VM_ABSORB": ("LAUNCH", True)}
        guest = self.contexts.get(self.args["target"])
        accepted = guest and (guest.state, guest.image) == wanted[self.args["message"]]
        self.answer = {"accepted": bool(accepted)}
        if accepted:
            if guest.state == "INIT":
                self.snp_guest_count += 1
                guest.debuggable = False
            guest.state, guest.image = "RUNNING", False

    # Pages (sheet 5.5)

    def move(self, number, state, **fields):
        page = self.page(number)
        page.state = state
        for name, value in fields.items():
            setattr(page, name, value)

    def do_snp_launch_update(self):
        self.move(self.args["page"], "GUEST_VALID", validated=True)

    def do_snp_page_md_init(self):
        self.move(self.args["page"], "METADATA", context=self.args["gctx"])

    def do_snp_page_set_state(self):
        for number in self.args["pages"]:
            if self.page(number).state == "FIRMWARE":
                self.move(number, "HV_FIXED")

    def do_snp_page_reclaim(self):
        after = {"PRE_GUEST": "GUEST_INVALID", "PRE_SWAP": "GUEST_VALID"}
        number = self.args["page"]
        self.move(number, after.get(self.page(number).state, "RECLAIM"), context=None)

    def do_snp_page_move(self):
        src, dst = self.page(self.args["src"]), self.page(self.args["dst"])
        if src.state == "METADATA":
            dst.state, dst.context = "METADATA", src.context
            src.state, src.context = "FIRMWARE", None
            return
        validated = src.state == "PRE_SWAP"
        src.state, src.validated = "GUEST_INVALID", False
        dst.state = "GUEST_VALID" if validated else "GUEST_INVALID"
        dst.validated = validated

    def do_snp_page_unsmash(self):
        self.page(self.args["page"]).size = 1

    def do_snp_page_swap_out(self):
        src = self.page(self.args["src"])
        self.slots[self.slot()] = (src.size, src.validated)
        src.state, src.validated = "PRE_GUEST", False

    def do_snp_page_swap_in(self):
        dst = self.page(self.args["dst"])
        _, dst.validated = self.slots.pop(self.slot())
        dst.state = "PRE_SWAP" if dst.validated else "PRE_GUEST"
