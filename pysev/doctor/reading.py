"""What the numbers inside a log line mean: a reader for each ``read`` of ``pysev.tables.doctor*``.

A reader takes the groups of a match and returns words for the row's text: ``said``, and ``more``
where the row's advice has it. It returns None if the line is of no interest after all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from ghcbcore import errors, msr, rmp
from ghcbcore._cffi import lib
from pysev.decode.cpuid import explain_cpuid
from pysev.decode.fault import explain_pf
from pysev.decode.firmware import explain_command, explain_status
from pysev.decode.msr import explain_msr
from pysev.decode.rmp import explain_rmp
from pysev.decode.sev import explain_sev_status
from pysev.tables.frames import CODES
from pysev.tables.nae import AUTOMATIC_EXITS, EVENTS, MALFORMED, PSC_STATUS, REPLIES

__all__ = ["READERS", "number"]

Words = dict[str, str]

LINUX_ERRORS = {
    5: "EIO",
    12: "ENOMEM",
    16: "EBUSY",
    22: "EINVAL",
    95: "EOPNOTSUPP",
    110: "ETIMEDOUT",
}
ISOLATION = {0: "none", 1: "VBS", 2: "SNP", 3: "TDX"}
ISOLATION_BITS = 4
MAX_REDUCTION = 12
FOUR_GIB_BIT = 32
MAX_DIGITS = 40


def number(text: str | None, base: int = 0) -> int:
    """Return a number of a log, its low 64 bits; with ``base`` 0 it is hexadecimal if it has 0x."""
    digits = text or "0"
    if base == 0:
        base = 16 if digits[:2].lower() == "0x" else 10
    return int(digits[:MAX_DIGITS], base) % (1 << 64)


@cache
def _events() -> dict[int, str]:
    events = {one.code: one.name for one in EVENTS}
    return events | {one.code: f"{one.name} ({one.what})" for one in AUTOMATIC_EXITS}


def _exit(code: int) -> str:
    name = _events().get(code)
    if code == lib.SVM_EXIT_PAGE_NOT_VALIDATED:
        return f"exit {code:#x} (a page that is not validated)"
    return f"exit {code:#x} ({name})" if name else f"exit {code:#x}"


def _exit_code(at: Mapping[str, str]) -> Words:
    return {"said": _exit(number(at["code"]))}


def _vc(at: Mapping[str, str]) -> Words:
    code = number(at["code"])
    more = "see what the instruction at that address does; user space is told SIGSEGV or SIGBUS"
    if code == lib.SVM_EXIT_PAGE_NOT_VALIDATED:
        more = (
            "a page is shared for the host, or not accepted, and private for the guest: after "
            "kexec or kdump, a page that the old kernel left shared (fixed by Linux 82b7f88f2316)"
        )
    return {"said": _exit(code), "more": more}


def _termination_words(value: int) -> Words:
    said = explain_msr(value)
    fields = {one.name: one for one in said.fields}
    reason_set, reason = fields["set"].value, fields["reason"].value
    words = fields["reason"].words
    more = "; ".join(said.remarks) or "the guest's own log has more"
    if (reason_set, reason) == (lib.GHCB_TERM_SET_GHCB, lib.GHCB_TERM_GHCB_SNP_FEATURES):
        more = (
            "compare SEV_FEATURES that the host sets with what the guest kernel knows, and let the "
            "host speak GHCB version 2"
        )
    elif reason_set == lib.GHCB_TERM_SET_GHCB:
        more = "the guest's console has more; set 0 is used for everything by some guests"
    return {"said": f"{reason_set:#x}:{reason:#x}, {words}", "more": more}


def _terminated(reason_set: int, reason: int) -> Words:
    try:
        return _termination_words(msr.encode_one(lib.GHCB_MSR_TERM_REQ, reason_set, reason))
    except errors.OutOfRange:
        return {"said": f"{reason_set:#x}:{reason:#x}, which does not fit", "more": ""}


def _termination(at: Mapping[str, str]) -> Words:
    return _terminated(number(at["set"], 16), number(at["code"], 16))


def _termination_nae(at: Mapping[str, str]) -> Words | None:
    try:
        reason, info = number(at["reason"], 16), number(at["info"], 16)
    except ValueError:
        return None
    reason_set = reason >> lib.GHCB_TERMINATE_SET_SHIFT & (1 << lib.GHCB_TERMINATE_SET_WIDTH) - 1
    words = _terminated(reason_set, reason >> lib.GHCB_TERMINATE_CODE_SHIFT)
    if info:
        words["said"] += f"; SEV_STATUS bits {info:#x} ({explain_sev_status(info).sentence})"
    return words


def _termination_msr(at: Mapping[str, str]) -> Words | None:
    if at["msr"]:
        value = number(at["msr"])
    else:  # Xen prints the value without its code
        value = number(at["data"]) << lib.GHCB_MSR_DATA_SHIFT | lib.GHCB_MSR_TERM_REQ
    value %= 1 << 64
    return _termination_words(value) if explain_msr(value).function == "terminate" else None


def _reply(at: Mapping[str, str]) -> Words:
    info1, info2 = int(at["info1"]), int(at["info2"])
    codes = MALFORMED if info1 == lib.GHCB_REPLY_MALFORMED else REPLIES
    wanted = info2 if codes is MALFORMED else info1
    words = next((one.what for one in codes if one.code == wanted), "no known reason")
    return {"said": f"INFO1 {info1}, INFO2 {info2}, {words}"}


def _page_fault(at: Mapping[str, str]) -> Words | None:
    said = explain_pf(number(at["code"]))
    if "rmp" not in said.sentence.split(", "):
        return None
    return {"said": f"error code {number(at['code']):#x}: {said.sentence}"}


def _rmp_entry(at: Mapping[str, str]) -> Words:
    low, high = number(at["low"]), number(at["high"])
    entry, said = rmp.decode_one(low, high), explain_rmp(low, high)
    text = "; ".join([said.sentence, *said.remarks, *said.findings])
    more = "whoever maps this page must leave it alone until it is given back"
    if entry.vmsa and entry.asid:
        more = (
            "the page is the VMSA of a vCPU: KVM wrote to one after SNP_LAUNCH_FINISH "
            "(fixed by Linux 9b9f7962e3e8)"
        )
    elif entry.asid:
        more = (
            "a guest's page: the host wrote to guest memory, or old entries outlived a kexec "
            "(firmware API below 1.53, guests that still ran)"
        )
    elif entry.assigned:
        more = "firmware's page: it must be reclaimed before the host uses it again"
    return {"said": text, "more": more, "state": said.function}


def _rmp_registers(at: Mapping[str, str]) -> Words | None:
    try:
        rmp.table(number(at["base"]), number(at["end"]))
    except errors.SevError as error:
        return {"said": str(error).rpartition(": ")[2]}
    return None


def _rmpupdate(at: Mapping[str, str]) -> Words:
    texts = {row.code: row.what for row in CODES}
    value = int(at["ret"][:20])
    return {"said": f"{value}, {texts.get(value, 'no known reason')}"}


def _status_words(text: str | None) -> str:
    said = explain_status(number(text))
    return f"{number(text):#x} {said.function} ({said.sentence})"


def _rc_words(text: str | None) -> str:
    code = abs(int((text or "0")[:20]))
    return f"-{LINUX_ERRORS[code]}" if code in LINUX_ERRORS else f"error {code}"


def _command(at: Mapping[str, str]) -> Words:
    return {"said": f"{number(at['command']):#x} {explain_command(number(at['command'])).function}"}


def _command_status(at: Mapping[str, str]) -> Words:
    return {"said": f"{_command(at)['said']} with {_status_words(at['status'])}"}


def _shutdown(at: Mapping[str, str]) -> Words:
    status, rc = at["status"] or at["status2"], at["rc"] or at["rc2"]
    return {"said": f"{_rc_words(rc)}, status {_status_words(status)}"}


def _status(at: Mapping[str, str]) -> Words:
    rc = f"{_rc_words(at['rc'])}, " if at["rc"] else ""
    return {"said": f"{rc}status {_status_words(at['status'])}"}


def _psc(at: Mapping[str, str]) -> Words:
    value = number(at["info2"], 16)
    found = next(
        (
            one
            for one in PSC_STATUS
            if value >> lib.GHCB_PSC_STATUS_CLASS_SHIFT == one.klass
            and one.detail in (None, value & (1 << lib.GHCB_PSC_STATUS_DETAIL_WIDTH) - 1)
        ),
        None,
    )
    words = found.what if found else "no known status"
    return {"said": f"return value {at['ret'][:20]}, INFO2 {value:#x}: {words}"}


def _cpuid(at: Mapping[str, str]) -> Words:
    values = [number(at[name]) for name in ("eax", "ebx", "ecx", "edx")]
    return {"said": explain_cpuid(*values).sentence}


def _isolation(at: Mapping[str, str]) -> Words:
    kind = number(at["b"]) & (1 << ISOLATION_BITS) - 1
    return {"said": f"isolation {kind} ({ISOLATION.get(kind, 'unknown')})"}


def _c_bit_mask(at: Mapping[str, str]) -> Words:
    mask = number(at["mask"])
    if mask and not mask & (mask - 1):
        return {"said": f"C-bit {mask.bit_length() - 1}"}
    return {"said": f"mask {mask:#x}, which is no single bit"}


def _reduction(at: Mapping[str, str]) -> Words | None:
    value = int(at["reduction"])
    if value <= MAX_REDUCTION:
        return None
    c_bit = " (it is most likely the C-bit)" if value >= FOUR_GIB_BIT else ""
    return {"said": f"the report is wrong{c_bit}"}


READERS: dict[str, Callable[[Mapping[str, str]], Words | None]] = {
    "c_bit_mask": _c_bit_mask,
    "command": _command,
    "command_status": _command_status,
    "cpuid": _cpuid,
    "exit_code": _exit_code,
    "isolation": _isolation,
    "page_fault": _page_fault,
    "psc": _psc,
    "reduction": _reduction,
    "reply": _reply,
    "rmp_entry": _rmp_entry,
    "rmp_registers": _rmp_registers,
    "rmpupdate": _rmpupdate,
    "shutdown": _shutdown,
    "status": _status,
    "termination": _termination,
    "termination_msr": _termination_msr,
    "termination_nae": _termination_nae,
    "vc": _vc,
}
