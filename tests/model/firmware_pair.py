"""The oracle of the host's firmware and the core's, through the same history side by side.

The core knows no pages and no RMP: what a command finds there it is told, as ``bad``, as a number
of pages, and as a slot for each context. This module works that out from the oracle's pages, check
by check and without regard to their order, so that the order is the core's own. Not compared: what
status commands write.
"""

from firmware_oracle import FirmwareOracle
from firmware_rows import REFUSED, atoms, host, threads_of, value
from firmware_rules import COMMANDS, DEFAULTS, RULES, WRITES_BACK

from ghcbcore import errors
from ghcbcore._cffi import lib
from pysev.firmware import Firmware, command_step

N_GUESTS = 32
FIRST_CONTEXT = 11  # this page is slot 0
N_CONTEXTS = 10  # from there on slots are for handles, 1 first

# What can be wrong, in the words of both.
BAD = {
    "struct_length": "length",
    "address": "alignment",
    "unlocked": "unsafe",
    "cores": "syscfg",
    "x86_failure": "snp_en",
    "crossing": "alignment",
    "mdata_alignment": "metadata_alignment",
    "entry": "metadata_entry",
    "rmp": "overlap",
    "uniformity": "page_state",
}
# Checks of the oracle that look at what the core is told, and how it is told.
TOLD = {
    "page": "page_state",
    "page_if_snp": "page_state",
    "small": "page_size",
    "size": "page_size",
    "owner": "page_owner",
    "kind_small": "page_large",
    "all_firmware": "page_state",
    "entry": "metadata_entry",
    "shared_handle": "handle",
    "apic_table": "apic",
    "some_ccx": "count",
}
TOLD_BY_STATUS = {
    "mdata": {0x16: "overlap", 0x1A: "metadata_state", 0x1C: "metadata_owner"},
    "movable": {0x1A: "page_state", 0x1C: "page_owner"},
}
PASSED_ON = ("asid", "init_rmp", "list", "iommu", "x86", "length", "max_snp_asid")
NUMBER_OF = {name: number for number, name in COMMANDS.items()}

SEV_STATES = ("INVALID", "LUPDATE", "LSECRET", "RUNNING", "SUPDATE", "RUPDATE", "SENT")
SNP_STATES = ("INIT", "LAUNCH", "RUNNING")


def number(prefix, name):
    return getattr(lib, f"GHCB_FW_{prefix}{name}")


class Pair:
    """Two machines; ``take`` brings both on by one step and says what each answered."""

    def __init__(self, mode="strict", sockets=1, x86_shutdown=True, apic_table=True):
        self.oracle = FirmwareOracle(
            mode=mode, sockets=sockets, x86_shutdown=x86_shutdown, apic_table=apic_table
        )
        self.core = Firmware(
            n_ccx=self.oracle.n_ccxs,
            cores_per_ccx=self.oracle.n_cores,
            smt=True,
            max_asid=len(self.oracle.asids),
            first_sev_asid=self.oracle.min_sev_asid,
            mode=mode,
            n_guests=N_GUESTS,
            sockets=sockets,
            x86_shutdown=x86_shutdown,
        )

    # Numbers of the one in numbers of the other

    def thread(self, t):
        core, second = divmod(t, self.oracle.n_smt)
        return core + second * self.oracle.n_ccxs * self.oracle.n_cores

    def slot(self, args):
        if "gctx" in args:
            return self.context_slot(args["gctx"])
        return N_CONTEXTS - 1 + args["handle"]

    def context_slot(self, page):
        assert FIRST_CONTEXT <= page < FIRST_CONTEXT + N_CONTEXTS
        return page - FIRST_CONTEXT

    # Steps

    def take(self, step):
        """Take a step of one command; return the oracle's status and the core's."""
        word, *words = step.split()
        name = COMMANDS.get(int(word, 0)) if word[0].isdigit() else word
        if name in RULES:
            return self.command(name, {n: value(n, t) for n, t in map(self.split, words)})
        status = host(self.oracle, word, words)
        if word in ("WBINVD", "WBNOINVD"):
            return status, self.write_back(word, words)
        for t in range(self.oracle.n_threads):
            core = t // self.oracle.n_smt
            if word == "SNPEN":
                self.core.set_thread(self.thread(t), snp_en=self.oracle.snpen[core])
            if word == "HSAVE":
                self.core.set_thread(self.thread(t), hsave=not self.oracle.hsave_clear[core])
            if word in ("OFFLINE", "ONLINE"):
                self.core.set_thread(self.thread(t), online=t not in self.oracle.offline)
        return status, status

    def write_back(self, word, words):
        execute = getattr(self.core, word.lower())
        if words == ["all"]:
            execute()
            return 0
        status = 0
        for t in threads_of(self.oracle, words):
            try:
                execute(self.thread(t))
            except errors.StateConflict:
                status = REFUSED
        return status

    @staticmethod
    def split(word):
        return word.split("=")

    def command(self, name, given):
        told = self.told(name, dict(given))
        ours = self.oracle.command(name, **given)
        if ours == 0 and name in ("LAUNCH_START", "RECEIVE_START"):
            assert self.oracle.answer["handle"] + N_CONTEXTS - 1 == told["guest"]
        answers = self.core.apply(command_step(name, **told).reshape(1))  # texts take their time
        return ours, int(answers["status"][0, 0])

    def told(self, name, given):
        """Work out what the core is told where the oracle looks for itself."""
        fw = self.oracle
        wrong = given.pop("wrong", [])
        buffer = given.pop("buffer", None)
        args = self.arguments(name, given)
        told = {n: int(args[n]) for n in PASSED_ON if n in args}
        bad = {BAD.get(word, word) for word in wrong}
        if not args.get("init_rmp", True):
            bad.discard("rmp_build")  # nothing is built
        if name in ("LAUNCH_START", "RECEIVE_START"):
            told["guest"] = N_CONTEXTS - 1 + next(h for h in range(1, 99) if h not in fw.guests)
            told["policy"] = bool(args["es"]) << lib.SEV_POLICY_ES
            told["policy"] |= (not args["debuggable"]) << lib.SEV_POLICY_NODBG
        elif name in ("INIT", "INIT_EX"):
            told["es"] = int(args["es"])
        elif "handle" in args or "gctx" in args:
            told["guest"] = self.slot(args)
        if name == "SNP_LAUNCH_START":
            told["policy"] = bool(args["debuggable"]) << lib.SNP_POLICY_DEBUG
            told["policy"] |= bool(args["single_socket"]) << lib.SNP_POLICY_SINGLE_SOCKET
            told["image"] = int(args["image"])
        if args.get("message"):
            told[args["message"].lower()] = 1
            told["target"] = self.context_slot(args["target"])
        if "ccxs" in args:
            told["ccxs"] = sum(1 << x for x in args["ccxs"])
        if "asid" in args and "gctx" in args:
            told["pages"] = fw.pages_of(args["asid"])
        if "max_snp_asid" in told:
            told["ciphertext_hiding"] = int(told["max_snp_asid"] > 0)
        fw.args, fw.wrong, fw.name = args, set(), name
        known = "gctx" not in args or args["gctx"] in fw.contexts
        done = name == "SNP_PAGE_RECLAIM" and fw.check_mutable_is_done() == 0
        for check in RULES[name].checks:
            if isinstance(check, tuple):
                continue
            word, *words = check.split()
            if word in TOLD and (known or word != "owner"):
                if getattr(fw, "check_" + word)(*words) and not (done and word == "page"):
                    bad.add(TOLD[word])
            elif word in TOLD_BY_STATUS and known:
                status = getattr(fw, "check_" + word)(*words)
                if status:
                    bad.add(TOLD_BY_STATUS[word][status])
        refused = buffer is not None and fw.page(buffer).state not in ("FIRMWARE", "DEFAULT")
        if refused and name in WRITES_BACK and fw.snp == "INIT":
            bad.add("buffer")
        return {**told, "bad": sorted(bad)}

    def arguments(self, name, given):
        return {n: given.get(n, DEFAULTS.get(n)) for n in RULES[name].arguments}

    # What both show

    def differences(self):
        """List what is not the same in both: (where, oracle's, core's)."""
        ours, theirs = self.of_oracle(), self.of_core()
        assert ours.keys() == theirs.keys()
        return [(name, ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]]

    def of_oracle(self):
        fw = self.oracle
        shown = {
            "sev": number("SEV_", fw.sev),
            "snp": number("SNP_", fw.snp),
            "rmp": fw.rmp_initialised,
            "iommu": fw.iommu_enforces,
            "es": bool(fw.es_platform),
            "owned": fw.owned,
            "limit": fw.max_snp_asid if fw.snp == "INIT" else None,
            "keys": sorted(fw.keys),
        }
        for a in fw.asids:
            cells = ["DIRTY"] * fw.n_ccxs if fw.cells_lost else fw.cells[a]
            shown[f"cells of ASID {a}"] = [number("", cell) for cell in cells]
            shown[f"threads of ASID {a}"] = [fw.may_run(t, a) for t in range(fw.n_threads)]
        shown["done"] = list(fw.done)
        shown["kept"] = list(fw.noinvd_done)
        shown["offline"] = [t in fw.offline for t in range(fw.n_threads)]
        shown["SNPEn"] = [fw.snpen[t // fw.n_smt] for t in range(fw.n_threads)]
        guests = {self.context_slot(page): g for page, g in fw.contexts.items()}
        guests |= {N_CONTEXTS - 1 + handle: g for handle, g in fw.guests.items()}
        shown |= {slot: self.guest_of_oracle(guest) for slot, guest in guests.items()}
        return {**dict.fromkeys(range(N_GUESTS)), **shown}

    def guest_of_oracle(self, guest):
        states = SNP_STATES if guest.kind == "SNP" else SEV_STATES
        started = guest.kind != "SNP" or guest.state != "INIT"
        return {
            "type": number("TYPE_", guest.kind),
            "state": states.index(guest.state),
            "active": number("", guest.activation.upper()),
            "asid": guest.asid,
            "debug": bool(guest.debuggable) if started else None,
            "single_socket": bool(guest.single_socket) if started else None,
            "image": bool(guest.image),
            "ccxs": sum(1 << x for x in guest.ccxs),
        }

    def of_core(self):
        fw, oracle = self.core, self.oracle
        platform = fw.platform()
        shown = {name: int(platform[name]) for name in ("sev", "snp")}
        shown |= {name: bool(platform[name]) for name in ("rmp", "iommu", "es", "owned")}
        shown["limit"] = int(platform["limit"]) if shown["snp"] == lib.GHCB_FW_SNP_INIT else None
        shown["keys"] = sorted(fw.keys())
        order = [self.thread(t) for t in range(oracle.n_threads)]
        cells = fw.asids().tolist()
        for a in oracle.asids:
            lost = [lib.GHCB_FW_DIRTY] * oracle.n_ccxs
            shown[f"cells of ASID {a}"] = lost if platform["rebuild"] else cells[a - 1]
            may = fw.may_run(a).tolist()
            shown[f"threads of ASID {a}"] = [may[t] for t in order]
        threads = fw.threads()
        for ours, theirs in (("done",) * 2, ("kept",) * 2, ("offline",) * 2, ("SNPEn", "snp_en")):
            flags = threads[theirs].tolist()
            shown[ours] = [bool(flags[t]) for t in order]
        guests = fw.guests()
        there = [(slot, guests[slot]) for slot in guests["type"].nonzero()[0].tolist()]
        shown |= {slot: self.guest_of_core(guest) for slot, guest in there}
        return {**dict.fromkeys(range(N_GUESTS)), **shown}

    def guest_of_core(self, guest):
        is_snp = guest["type"] == lib.GHCB_FW_TYPE_SNP
        started = not is_snp or guest["state"] != lib.GHCB_FW_SNP_GUEST_INIT
        numbers = {n: int(guest[n]) for n in ("type", "state", "active", "asid", "ccxs")}
        numbers["image"] = bool(guest["image"])
        for name in ("debug", "single_socket"):
            numbers[name] = bool(guest[name]) if started else None
        return numbers


def walk(pair, start, history):
    """Take a history; raise AssertionError at the first step that the two see differently."""
    for step in atoms(start, history):
        ours, theirs = pair.take(step)
        assert ours == theirs, f"{step}: oracle {ours:#x}, core {theirs:#x}"
        assert pair.differences() == [], step
