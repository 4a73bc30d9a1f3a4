"""What the oracle's host does for an NAE event that leaves the host: devices, memory, firmware.

Part of the oracle of ``host_oracle``; from the GHCB fact sheet (5.3 to 5.6) and KVM's
``setup_vmgexit_scratch``, ``sev_es_string_io``, ``io_interception``, ``kvm_fast_pio``,
``kvm_emulate_hypercall``, ``snp_handle_guest_req``, ``snp_handle_ext_guest_req`` and the fork CL's
``sev_get_apic_ids``, ``sev_snp_hv_doorbell_page``. Nothing here imports ``ghcbcore``.
"""

from ghcb_oracle import (
    BAD_INPUT,
    BAD_SCRATCH,
    INT_MAX,
    RAX,
    RBX,
    RCX,
    RDX,
    SCRATCH_LIMIT,
    SHARED_BUFFER,
    SHARED_BUFFER_END,
    U32,
    U64,
    Area,
    Exception13,
    Fault,
    Invalid,
    Malformed,
)
from psc_oracle import MAX_ENTRIES, change_page_states
from vcpu_oracle import is_page_address

# hypercalls of Linux linux/kvm_para.h and their errors, as rax shows them
VAPIC_POLL_IRQ, CLOCK_PAIRING, MAP_GPA_RANGE = 1, 9, 12
EPERM, EOPNOTSUPP, ENOSYS = U64 + 1 - 1, U64 + 1 - 95, U64 + 1 - 1000
EINVAL = U64 + 1 - 22
# event injection: valid, exception; #UD, and #GP with an error code of 0
INJECT_UD, INJECT_GP = 0x8000_0306, 0x8000_0B0D

VMM_GENERIC = U32 << 32  # INFO2 of a guest request: the VMM failed, the firmware says nothing
MESSAGE_TYPE, REPORT_REQUEST = 0x34, 5
EMPTY_TABLE = bytes(24)


class Services:
    """Events whose answer is somebody else's."""

    def ask(self, kind, cpu, address, is_write, size, count, data, args=()):
        """Return the device's ``(status, result)``; None without a device for it."""
        if not self.offers(kind):
            return None
        return self.device.access(kind, cpu, address, is_write, size, count, data, args)

    def offers(self, kind):
        """Is there a device for this? Its ``kinds`` says what it answers, "memory" included."""
        return self.device is not None and kind in self.device.kinds

    def memory(self, gpa, n_bytes, data=None, *, told=None):
        """Read or write guest memory; raise Fault where there is none."""
        done = self.device.memory(gpa, n_bytes, data) if self.offers("memory") else None
        if done is None:
            raise Fault(gpa if told is None else told)
        return done

    # -- scratch area ----------------------------------------------------------------------------

    def scratch(self, request, page, gpa, n_bytes, kind=None):
        """Check the scratch area of a request and return it.

        Without a device of ``kind`` the run ends before anybody looks at memory.
        """
        first, end = request.scratch, request.scratch + n_bytes
        if first == 0 or end > U64:
            raise Malformed(BAD_SCRATCH)
        if first & ~0xFFF == gpa:
            if first < gpa + SHARED_BUFFER or end > gpa + SHARED_BUFFER_END:
                raise Malformed(BAD_SCRATCH)
            return Area(page.content, first - gpa, gpa + SHARED_BUFFER_END - first)
        if self.scratch_outside_v2 == "deny" and self.max_version >= 2:
            raise Malformed(BAD_SCRATCH)
        if n_bytes > SCRATCH_LIMIT:
            raise Malformed(BAD_SCRATCH)
        if n_bytes == 0 or (kind is not None and not self.offers(kind)):
            return Area(bytearray(n_bytes), 0, n_bytes, gpa=first)
        return Area(bytearray(self.memory(first, n_bytes)), 0, n_bytes, gpa=first)

    def write_back(self, area):
        """What was copied in goes back; KVM does not look whether it could."""
        if area.gpa is not None and self.offers("memory") and area.content:
            self.device.memory(area.gpa, len(area.content), bytes(area.content))

    # -- ports, MMIO, MSRs, counters -------------------------------------------------------------

    def io(self, cpu, request, page, gpa):
        info1 = request.info1
        size, port, is_in = info1 >> 4 & 7, info1 >> 16 & 0xFFFF, info1 & 1
        completes_empty = self.empty_string_io == "complete"
        if completes_empty and size == 0:
            return
        if info1 & 1 << 2:
            self.string_io(cpu, request, page, gpa)
            return
        rax = request.regs[RAX]
        if self.io_ignored:
            if is_in:
                request.regs[RAX] = 0
                request.results |= {RAX}
            return
        data = None if is_in else rax.to_bytes(8, "little")[:size]
        answer = self.ask("io", cpu, port, not is_in, size, 1, data)
        if answer is None or answer[0] != 0:
            self.end("io", info1)
        elif is_in:
            kept = rax >> 8 * size << 8 * size if size < 4 else 0
            request.regs[RAX] = kept | int.from_bytes(answer[1][:size], "little")
            request.results |= {RAX}

    def string_io(self, cpu, request, page, gpa):
        info1, count = request.info1, request.info2
        size, port, is_in = info1 >> 4 & 7, info1 >> 16 & 0xFFFF, info1 & 1
        n_bytes = count * size
        if count > INT_MAX or n_bytes > INT_MAX:
            raise Invalid
        if n_bytes == 0 and self.empty_string_io == "complete":
            return
        area = self.scratch(request, page, gpa, n_bytes, "io")
        data = None if is_in else area.read(0, n_bytes)
        answer = self.ask("io", cpu, port, not is_in, size, count, data)
        if answer is None or answer[0] != 0:
            self.end("io", info1)
        elif is_in:
            area.write(0, answer[1][:n_bytes])
            self.write_back(area)

    def mmio(self, cpu, request, page, gpa, is_write):
        n_bytes = request.info2
        if self.mmio_max_v2 == 8:  # the newest KVM
            if n_bytes == 0:
                return
            if self.max_version >= 2 and n_bytes > 8:
                raise Malformed(BAD_INPUT)
        area = self.scratch(request, page, gpa, n_bytes, "mmio")
        if n_bytes == 0:
            return
        data = area.read(0, n_bytes) if is_write else None
        answer = self.ask("mmio", cpu, request.info1, is_write, n_bytes, 1, data)
        if answer is None or answer[0] != 0:
            self.end("mmio", request.info1)
        elif not is_write:
            area.write(0, answer[1][:n_bytes])
            self.write_back(area)

    def model_specific_register(self, cpu, request):
        regs, is_write = request.regs, request.info1 != 0
        data = None
        if is_write:
            data = (regs[RAX] & U32 | (regs[RDX] & U32) << 32).to_bytes(8, "little")
        answer = self.ask("msr", cpu, regs[RCX] & U32, is_write, 8, 1, data)
        if answer is None:
            self.end("unmodelled", request.code)
        elif answer[0] != 0:
            raise Exception13
        elif not is_write:
            self.store_edx_eax(request, answer[1])

    def performance_counter(self, cpu, request):
        answer = self.ask("pmc", cpu, request.regs[RCX] & U32, False, 8, 1, None)
        if answer is None:
            self.end("unmodelled", request.code)
        elif answer[0] != 0:
            self.vcpus[cpu]["event_inj"] = INJECT_GP
        else:
            self.store_edx_eax(request, answer[1])

    def store_edx_eax(self, request, data):
        regs = request.regs
        request.results |= {RAX, RDX}
        regs[RAX] = int.from_bytes(data[:4], "little")
        regs[RDX] = int.from_bytes(data[4:8], "little")

    # -- hypercalls and firmware -----------------------------------------------------------------

    def hypercall(self, cpu, request):
        regs = request.regs
        request.results |= {RAX}
        if request.cpl != 0:
            regs[RAX] = EPERM
            return
        args = (regs[RBX], regs[RCX], regs[RDX], request.rsi)
        answer = self.ask("vmmcall", cpu, regs[RAX], False, 8, 1, None, args)
        if answer is not None and answer[0] == 0:
            regs[RAX] = answer[1] & U64
        elif regs[RAX] == VAPIC_POLL_IRQ:
            regs[RAX] = 0
        elif regs[RAX] == CLOCK_PAIRING:
            regs[RAX] = EOPNOTSUPP
        elif regs[RAX] == MAP_GPA_RANGE and self.offers("map_gpa"):
            gpa, n_pages = regs[RBX], regs[RCX]
            gfn = gpa >> 12
            if gpa % 4096 or n_pages == 0 or (gfn + n_pages & U64) <= gfn:
                regs[RAX] = EINVAL
            else:
                regs[RAX] = self.map_gpa(cpu, gpa, n_pages, regs[RDX])
        else:
            regs[RAX] = ENOSYS

    def guest_request(self, cpu, request):
        """Hand a message to the firmware and return INFO2."""
        if self.offers("memory"):
            self.memory(request.info1, 4096)
        answer = self.ask(
            "guest_request", cpu, request.info1, False, 4096, 1, None, (request.info2,)
        )
        return VMM_GENERIC if answer is None or answer[0] != 0 else answer[1][0]

    def extended_guest_request(self, cpu, request):
        """The same, and certificates beside a report."""
        has_certs = self.offers("ext_guest_request")
        at = request.info1 + MESSAGE_TYPE
        if self.offers("memory"):
            if self.memory(at, 1, told=request.info1)[0] != REPORT_REQUEST:
                return self.guest_request(cpu, request)
        elif not has_certs:
            return self.guest_request(cpu, request)
        if not {RAX, RBX} <= request.valid:
            raise Malformed(BAD_INPUT)
        data_gpa, n_pages = request.regs[RAX], request.regs[RBX]
        if data_gpa % 4096:
            raise Malformed(BAD_INPUT)
        if not has_certs:
            if n_pages:
                self.memory(data_gpa, len(EMPTY_TABLE), EMPTY_TABLE)
            return self.guest_request(cpu, request)
        if self.offers("memory"):
            self.memory(request.info1, 4096)
        args = (request.info2, data_gpa, n_pages)
        status, result = self.ask(
            "ext_guest_request", cpu, request.info1, False, 4096, 1, None, args
        )
        if status != 0:
            return VMM_GENERIC
        request.regs[RBX] = result[1]
        request.results |= {RBX}
        return result[0]

    # -- page state ------------------------------------------------------------------------------

    def map_gpa(self, cpu, gpa, n_pages, attributes):
        return self.ask("map_gpa", cpu, gpa, True, 4096, n_pages, None, (attributes,))[0]

    def page_state_change(self, cpu, request, page, gpa):
        is_newest = self.psc_limit == "scratch"
        area = self.scratch(request, page, gpa, 8 if is_newest else request.info2)
        max_entries = MAX_ENTRIES
        if is_newest:
            n_bytes = gpa + SHARED_BUFFER_END - request.scratch if area.gpa is None else 8
            max_entries = (n_bytes - 8) // 8

        def ask_user_space(address, n_pages, attributes):
            return self.map_gpa(cpu, address, n_pages, attributes)

        user_space = ask_user_space if self.offers("map_gpa") else None
        status = change_page_states(area, user_space, max_entries)
        self.write_back(area)
        return status

    # -- the fork "CL" ---------------------------------------------------------------------------

    def list_apic_ids(self, request):
        n = len(self.vcpus)
        n_bytes = 4 + 4 * n
        n_pages = -(-n_bytes // 4096)
        if request.info1 != 0 and request.regs[RAX] >= n_pages:
            if not is_page_address(request.info1) or not self.offers("memory"):
                raise Malformed(BAD_INPUT)
            numbers = [n, *(vcpu["apic_id"] for vcpu in self.vcpus)]
            data = b"".join(number.to_bytes(4, "little") for number in numbers)
            if self.device.memory(request.info1, n_bytes, data) is None:
                raise Malformed(BAD_INPUT)
        request.regs[RAX] = n_pages
        request.results |= {RAX}

    def doorbell_page(self, cpu, request):
        """Return INFO2."""
        vcpu, gpa = self.vcpus[cpu], request.info2
        if request.info1 == 0:  # preferred: none
            return U64
        if request.info1 == 2:  # query
            return vcpu["doorbell_gpa"] or U64
        vcpu["doorbell_gpa"] = 0
        if request.info1 == 3:  # clear
            return 0
        if request.info1 != 1 or not is_page_address(gpa):
            raise Malformed(BAD_INPUT)
        if self.offers("memory") and self.device.memory(gpa, 4096) is None:
            raise Malformed(BAD_INPUT)
        vcpu["doorbell_gpa"] = gpa
        return gpa
