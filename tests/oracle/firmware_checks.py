"""The checks of the firmware oracle: each returns a status that ends the command, or None."""

import firmware_rules as rules


def unless(holds, status):
    return None if holds else status


class Checks:
    """Half of ``FirmwareOracle``: what a row of ``firmware_rules.RULES`` can ask for."""

    # Platform

    def check_sev(self, *states):
        return unless(self.sev in states, rules.INVALID_PLATFORM_STATE)

    def check_snp(self, state):
        return unless(self.snp == state, rules.INVALID_PLATFORM_STATE)

    def check_not_owned(self):
        return unless(not self.owned, rules.ALREADY_OWNED)

    def check_both_uninit(self):
        return unless(self.sev == self.snp == "UNINIT", rules.INVALID_PLATFORM_STATE)

    def check_rmp_for_snpen(self):
        good = self.rmp_initialised or not all(self.snpen)
        return unless(good, rules.INVALID_PLATFORM_STATE)

    def check_rmp_kept(self):
        """Refuse to go on with an RMP that is not there, or that another firmware built."""
        kept = self.rmp_initialised and "tcb" not in self.wrong
        return unless(self.args["init_rmp"] or kept, rules.RMP_INIT_REQUIRED)

    def check_list_with_rmp(self):
        return unless(self.args["init_rmp"] or not self.args["list"], rules.INVALID_PARAM)

    def check_snpen(self):
        return unless(all(self.snpen), rules.INVALID_CONFIG)

    def check_hsave(self):
        good = all(self.hsave_clear) or not self.args.get("init_rmp", True)
        return unless(good, rules.INVALID_CONFIG)

    def check_rmp_built(self):
        good = "rmp_build" not in self.wrong or not self.args.get("init_rmp", True)
        return unless(good, rules.RMP_INIT_FAILED)

    def check_snp_or_done(self):
        return unless(self.snp == "INIT", rules.SUCCESS)

    def check_all_clean(self):
        clean = all(cell == "CLEAN" for cells in self.cells.values() for cell in cells)
        return unless(clean, rules.DFFLUSH_REQUIRED)

    def check_length_8(self):
        return unless(self.args["length"] == 8, rules.INVALID_PARAM)

    def check_x86_bit(self):
        good = not self.args["x86"] or (self.args["iommu"] and self.can_x86_shutdown)
        return unless(good, rules.INVALID_PARAM)

    # Guests

    def check_handle(self):
        return unless(self.args["handle"] in self.guests, rules.INVALID_GUEST)

    def check_shared_handle(self):
        shared = self.args["shared"]
        return unless(shared == 0 or shared in self.guests, rules.INVALID_GUEST)

    def check_es_platform(self):
        return unless(self.es_platform or not self.args["es"], rules.UNSUPPORTED)

    def check_es_guest(self):
        return unless(self.guest().kind == "ES", rules.UNSUPPORTED)

    def check_context(self):
        state = self.page(self.args["gctx"]).state
        return unless(state == "CONTEXT", rules.INVALID_GUEST)

    def check_guest(self, *states):
        return unless(self.guest().state in states, rules.INVALID_GUEST_STATE)

    def check_no_image(self):
        return unless(not self.guest().image, rules.INVALID_GUEST_STATE)

    def check_active(self):
        return unless(self.guest().activation != "inactive", rules.INACTIVE)

    def check_no_asid(self):
        return unless(self.guest().asid == 0, rules.ACTIVE)

    def check_debuggable(self):
        return unless(self.guest().debuggable, rules.POLICY_FAILURE)

    # ASIDs

    def cells_of_asid(self):
        return self.cells[self.args["asid"]]

    def check_asid_number(self):
        return unless(self.args["asid"] in self.asids, rules.INVALID_ASID)

    def check_asid_free(self):
        owned = {"IN_USE", "ALLOC"}.intersection(self.cells_of_asid())
        return unless(not owned, rules.ASID_OWNED)

    def check_not_activated(self):
        return unless(self.guest().activation == "inactive", rules.ACTIVE)

    def check_not_sent(self):
        return unless(self.guest().state != "SENT", rules.INVALID_GUEST_STATE)

    def check_asid_clean(self):
        if "DIRTY" in self.cells_of_asid():
            return rules.DFFLUSH_REQUIRED
        clean = all(cell == "CLEAN" for cell in self.cells_of_asid())
        return unless(clean, rules.ASID_OWNED)

    def check_asid_type(self):
        asid, hidden = self.args["asid"], self.max_snp_asid
        low = asid < self.min_sev_asid
        right = {
            "SEV": not low,
            "ES": low and asid > hidden,
            "SNP": low and (hidden == 0 or asid <= hidden),
        }
        return unless(right[self.guest().kind], rules.INVALID_ASID)

    def check_no_pages(self):
        return unless(self.pages_of(self.args["asid"]) == 0, rules.INVALID_CONFIG)

    def check_no_pages_yet(self):
        return None if self.guest().activation != "inactive" else self.check_no_pages()

    def check_one_socket_machine(self):
        good = self.sockets == 1 or not self.guest().single_socket
        return unless(good, rules.POLICY_FAILURE)

    def check_apic_table(self):
        return unless(self.apic_table, rules.UNSUPPORTED)

    def check_some_ccx(self):
        if not set(self.args["ccxs"]) <= set(range(self.n_ccxs)):
            raise ValueError(f"CCXs are 0 to {self.n_ccxs - 1}")
        return unless(len(self.args["ccxs"]) > 0, rules.INVALID_PARAM)

    def check_one_socket(self):
        sockets = {self.socket_of(x) for x in {*self.args["ccxs"], *self.guest().ccxs}}
        good = len(sockets) == 1 or not self.guest().single_socket
        return unless(good, rules.POLICY_FAILURE)

    def check_same_asid(self):
        return unless(self.guest().asid in (0, self.args["asid"]), rules.ACTIVE)

    def check_first_clean(self):
        return self.check_asid_clean() if self.guest().asid == 0 else None

    def check_chosen_clean(self):
        cells = self.cells_of_asid()
        dirty = any(cells[x] == "DIRTY" for x in self.args["ccxs"])
        return unless(not dirty, rules.DFFLUSH_REQUIRED)

    # Pages

    def check_page(self, argument, *states):
        state = self.page(self.args[argument]).state
        return unless(state in states, rules.INVALID_PAGE_STATE)

    def check_page_if_snp(self, argument, *states):
        return self.check_page(argument, *states) if self.snp == "INIT" else None

    def check_small(self, argument):
        return unless(self.page(self.args[argument]).size == 0, rules.INVALID_PAGE_SIZE)

    def check_size(self, argument):
        page = self.page(self.args[argument])
        good = page.state == "DEFAULT" or page.size == self.args["size"]
        return unless(good, rules.INVALID_PAGE_SIZE)

    def check_kind_small(self):
        good = self.args["kind"] == "NORMAL" or self.args["size"] == 0
        return unless(good, rules.INVALID_PAGE_SIZE)

    def check_owner(self, argument):
        page = self.page(self.args[argument])
        return unless(page.asid == self.guest().asid, rules.INVALID_PAGE_OWNER)

    def check_all_firmware(self):
        states = {self.page(n).state for n in self.args["pages"]}
        return unless(states <= {"FIRMWARE", "DEFAULT"}, rules.INVALID_PAGE_STATE)

    def check_mutable_is_done(self):
        mutable = ("HYPERVISOR", "RECLAIM", "GUEST_INVALID", "GUEST_VALID")
        state = self.page(self.args["page"]).state
        return unless(state not in mutable, rules.SUCCESS)

    def check_mdata(self):
        number = self.args["mdata"]
        if number is None:
            return None
        if number in (self.args["src"], self.args["dst"]):
            return rules.INVALID_PARAM
        if self.page(number).state != "METADATA":
            return rules.INVALID_PAGE_STATE
        return unless(self.page(number).context == self.args["gctx"], rules.INVALID_PAGE_OWNER)

    def slot(self):
        """Name the entry a swap uses: the one of a metadata page, or the context's root."""
        mdata = self.args["mdata"]
        return ("root", self.args["gctx"]) if mdata is None else ("page", mdata)

    def check_entry(self):
        size = self.slots.get(self.slot(), (None, None))[0]
        return unless(size == self.args["size"], rules.INVALID_MDATA_ENTRY)

    def check_movable(self):
        src, dst = self.page(self.args["src"]), self.page(self.args["dst"])
        if src.state in ("PRE_SWAP", "PRE_GUEST") and dst.state == "PRE_GUEST":
            mine = src.asid == dst.asid == self.guest().asid
        elif src.state == "METADATA" and dst.state == "FIRMWARE":
            mine = src.context == self.args["gctx"]
        else:
            return rules.INVALID_PAGE_STATE
        return unless(mine, rules.INVALID_PAGE_OWNER)
