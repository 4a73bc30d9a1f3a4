"""Lines of a KVM trace by regular expressions: slow, written from the format text alone.

``records`` gives what the scanner must find, a dict a line of interest; ``exchanges`` what the
pairing must make of it. Nothing here is shared with the core but the numbers of the kinds.
"""

import re

from ghcbcore._cffi import lib

NO_TIME, NO_PID, NO_VCPU, NO_CPU = 2**64 - 1, 2**32 - 1, 2**32 - 1, 2**16 - 1
HEX = rb"((?:0x)?[0-9a-fA-F]{1,16}(?![0-9a-fA-F]))"
END = rb"[ \t]*\r?"
TASK = re.compile(
    rb"(?s)(?:(?P<dash>.*-)|(?:.*[ \t])?(?:(?P<process>\d+)/)?)(?P<pid>\d+)"
    rb"(?:[ \t]+\((?:[ \t]*(?P<tgid>\d+)|-+)\))?"
)
WITH_CPU = re.compile(rb"(?s)(?P<task>.*[ \t]|)\[(?P<cpu>\d+)\](?:[ \t]+[^ \t]*[^ \t\]])?[ \t]+")
VCPU = rb"[ \t]*vcpu (\d+)"
NAE = re.compile(
    VCPU + rb", exit_reason " + HEX + rb", exit_info1 " + HEX + rb", exit_info2 " + HEX + END
)
MSR_ENTER = re.compile(VCPU + rb", ghcb_gpa " + HEX + END)
MSR_EXIT = re.compile(VCPU + rb", ghcb_gpa " + HEX + rb", result (-?\d+)" + END)
RMP = re.compile(
    VCPU
    + rb" gpa " + HEX + rb" pfn " + HEX + rb" error_code " + HEX
    + rb" rmp_level (\d+) psmash_ret (-?\d+)" + END
)  # fmt: skip
KVM_EXIT = re.compile(
    rb"(?s)[ \t]*(?:vcpu (\d+)[ \t]*)?reason ([^ \t]+)(?:.*?) rip " + HEX
    + rb"(?: info1 " + HEX + rb" info2 " + HEX + rb"| info " + HEX + rb" " + HEX + rb")"
    + rb"(?:[ \t\r].*)?"
)  # fmt: skip
LOST = re.compile(
    rb"(?s)[ \t]*CPU:[ \t]*(\d+) \[(?:LOST (\d+) EVENTS|EVENTS DROPPED|(\d+) EVENTS DROPPED)\].*"
)
OURS = re.compile(rb"kvm_(?:rmp_fault|vmgexit_(?:msr_protocol_)?(?:enter|exit)):")


def _prefix(head):
    """Return (pid, tgid, cpu, form) of what stands before the time, or None."""
    if not head.strip(b" \t"):
        return NO_PID, NO_PID, NO_CPU, lib.GHCB_TRACE_FORM_BARE
    if head[-1:] not in (b" ", b"\t"):
        return None
    cpu = NO_CPU
    found = WITH_CPU.fullmatch(head)
    if found:
        cpu = int(found["cpu"])
        if cpu >= NO_CPU:
            return None
        task = found["task"].rstrip(b" \t")
        if not task:
            return NO_PID, NO_PID, cpu, lib.GHCB_TRACE_FORM_PERF
    else:
        task = head.rstrip(b" \t")
        words = re.fullmatch(rb"(?s)(.*?)[ \t]+[^ \t]+", task)
        if task.endswith(b"]") or (words and words[1].rstrip(b" \t").endswith(b"]")):
            return None
    found = TASK.fullmatch(task)
    if not found:
        return None
    pid = int(found["pid"])
    tgid = int(found["process"] or found["tgid"] or NO_PID)
    if pid >= NO_PID or (tgid >= NO_PID and (found["process"] or found["tgid"])):
        return None
    if found["tgid"] and int(found["tgid"]) >= NO_PID:
        return None
    form = lib.GHCB_TRACE_FORM_FTRACE if found["dash"] else lib.GHCB_TRACE_FORM_PERF
    return pid, tgid, cpu, form


def _time(text):
    """Return (where it begins, ns) of the time at the end of a text, or None."""
    found = re.search(rb"(?:(?P<s>\d+)|(?P<dot>\.))?(?:(?<=\d)\.)?\d+$", text)
    digits = re.search(rb"\d+$", text)
    if not digits:
        return None
    at = digits.start()
    if at == 0 or text[at - 1 : at] != b".":
        return at, NO_TIME
    seconds = re.search(rb"\d+$", text[: at - 1])
    if len(digits[0]) > 9 or not seconds or int(seconds[0]) > (2**64 - 1) // 10**9 - 1:
        return None
    assert found
    return seconds.start(), int(seconds[0]) * 10**9 + int(digits[0].ljust(9, b"0"))


def _event(text):
    """Return the record of ``name: text``, {} if it is not of interest, None if it is bad."""
    text = text.removeprefix(b"kvm:")
    if not text.startswith(b"kvm_"):
        return {}
    found = re.match(rb"kvm_([a-z0-9_]*)", text)
    name, rest = found[1], text[found.end() :]
    if not rest.startswith(b":"):
        return None if rest[:1] in (b"", b"\r") or name.startswith(b"vmgexit_") else {}
    rest = rest[1:]
    out = {"a": 0, "b": 0, "c": 0, "vcpu": NO_VCPU, "result": 0, "name": None}

    def number(digits):
        return int(digits, 16)

    if name in (b"vmgexit_enter", b"vmgexit_exit"):
        found = NAE.fullmatch(rest)
        if not found:
            return None
        enter = name == b"vmgexit_enter"
        out["kind"] = lib.GHCB_TRACE_NAE_ENTER if enter else lib.GHCB_TRACE_NAE_EXIT
        out |= {k: number(v) for k, v in zip("abc", found.groups()[1:], strict=True)}
    elif name == b"vmgexit_msr_protocol_enter":
        found = MSR_ENTER.fullmatch(rest)
        if not found:
            return None
        out |= {"kind": lib.GHCB_TRACE_MSR_ENTER, "a": number(found[2])}
    elif name == b"vmgexit_msr_protocol_exit":
        found = MSR_EXIT.fullmatch(rest)
        if not found:
            return None
        out |= {"kind": lib.GHCB_TRACE_MSR_EXIT, "a": number(found[2]), "result": int(found[3])}
    elif name == b"rmp_fault":
        found = RMP.fullmatch(rest)
        if not found or int(found[5]) > 255:
            return None
        out |= {k: number(v) for k, v in zip("abc", found.groups()[1:4], strict=True)}
        out |= {"kind": lib.GHCB_TRACE_RMP_FAULT, "level": int(found[5]), "result": int(found[6])}
    elif name == b"exit":
        found = KVM_EXIT.fullmatch(rest)
        if not found:
            return None
        a, *infos = (number(v) for v in found.groups()[2:] if v is not None)
        out |= {"kind": lib.GHCB_TRACE_KVM_EXIT, "a": a, "b": infos[0], "c": infos[1]}
        out["name"] = found[2]
    else:
        found = re.match(VCPU, rest)
        out |= {"kind": lib.GHCB_TRACE_OTHER, "name": name}
        if found and int(found[1]) < NO_VCPU:
            out["vcpu"] = int(found[1])
        return out
    if found[1] is not None:
        out["vcpu"] = int(found[1])
        if out["vcpu"] >= NO_VCPU:
            return None
    if not -(2**31) <= out["result"] < 2**31:
        return None
    return out


def _line(line):
    """Return the record of one line, or {} if it is not of interest."""
    bare = {"pid": NO_PID, "tgid": NO_PID, "cpu": NO_CPU, "form": 0, "time_ns": NO_TIME}
    for colon in re.finditer(rb"\d:(?=[ \t])", line):
        at = colon.end() - 1
        time = _time(line[:at])
        prefix = time and _prefix(line[: time[0]])
        if prefix:
            rest = line[at + 1 :].lstrip(b" \t")
            rest = re.sub(rb"^\d+[ \t]+", b"", rest)
            where = dict(zip(("pid", "tgid", "cpu", "form"), prefix, strict=True))
            event = _event(rest)
            if event is None:
                return where | {"time_ns": time[1], "kind": lib.GHCB_TRACE_BAD}
            return event and where | {"time_ns": time[1]} | event
    text = line.lstrip(b" \t")
    if text.startswith(b"CPU:"):
        found = LOST.fullmatch(line)
        limit = (2**64 - 1) // 16
        n = int(found[2] or found[3] or 0) if found else 0
        if found and int(found[1]) < NO_CPU and n <= limit:
            return bare | {"kind": lib.GHCB_TRACE_LOST, "a": n, "cpu": int(found[1])}
        return {}
    event = {}
    if text.startswith((b"kvm:", b"kvm_vmgexit_", b"kvm_rmp_fault:")):
        event = _event(text)
    if event is None or (event == {} and OURS.search(line)):
        return bare | {"kind": lib.GHCB_TRACE_BAD}
    return event and bare | event


def records(text):
    """Return a dict for each line of interest of a whole text."""
    out, offset = [], 0
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for i, line in enumerate(lines, 1):
        short = line[: lib.GHCB_TRACE_LINE_MAX]
        found = _line(short)
        if found and len(line) > len(short):
            found["kind"] = lib.GHCB_TRACE_BAD
        if found:
            out.append(found | {"line": i, "offset": offset})
        offset += len(line) + 1
    return out


def exchanges(lines):
    """Return (lines of request and answer, flags) of each exchange, by the rules of the fact sheet.

    ``lines`` are records in order: dicts with ``kind``, ``pid``, ``vcpu``, ``a``, ``result``, ...
    """
    waiting, seen, at_time, lost_at, lost = {}, {}, {}, {}, 0
    out = []

    def give(one, flags=0):
        key = one["key"]
        if lost != lost_at[key]:
            flags |= lib.GHCB_EXCHANGE_LOST
            lost_at[key] = lost
        if one["exit"]:
            one["flags"] &= ~lib.GHCB_EXCHANGE_ENDED
        out.append((one["enter"], one["exit"], one["flags"] | flags))

    for line in lines:
        kind, key = line["kind"], (line["pid"], line["vcpu"])
        if kind == lib.GHCB_TRACE_LOST:
            lost += line["a"] or 1
        if not lib.GHCB_TRACE_NAE_ENTER <= kind <= lib.GHCB_TRACE_MSR_EXIT:
            continue
        page = kind in (lib.GHCB_TRACE_NAE_ENTER, lib.GHCB_TRACE_NAE_EXIT)
        enters = kind in (lib.GHCB_TRACE_NAE_ENTER, lib.GHCB_TRACE_MSR_ENTER)
        back = key in seen and at_time[key] != NO_TIME and line["time_ns"] < at_time[key]
        flags = lib.GHCB_EXCHANGE_BACKWARDS * back
        first = key not in seen
        at_time[key] = line["time_ns"]
        lost_at.setdefault(key, 0)
        one = waiting.get(key)
        if enters:
            if one:
                give(waiting.pop(key), lib.GHCB_EXCHANGE_OVERLAP)
            flags |= lib.GHCB_EXCHANGE_ENTER
            flags |= lib.GHCB_EXCHANGE_PAGE * page | lib.GHCB_EXCHANGE_FIRST * first
            ends = lib.GHCB_NAE_TERMINATE if page else lib.GHCB_MSR_TERM_REQ
            if (line["a"] if page else line["a"] & 0xFFF) == ends:
                flags |= lib.GHCB_EXCHANGE_ENDED
            waiting[key] = {
                "key": key, "page": page, "code": line["a"], "enter": line["line"], "exit": 0,
                "flags": flags,
            }  # fmt: skip
            lost_at[key] = lost
        elif one and one["page"] == page:
            one["exit"] = line["line"]
            one["flags"] |= flags | lib.GHCB_EXCHANGE_EXIT
            if page and line["a"] != one["code"]:
                one["flags"] |= lib.GHCB_EXCHANGE_CHANGED
            if not page and line["result"] == 0:
                one["flags"] |= lib.GHCB_EXCHANGE_USER
            give(waiting.pop(key))
        else:
            flags |= lib.GHCB_EXCHANGE_EXIT
            flags |= lib.GHCB_EXCHANGE_PAGE * page | lib.GHCB_EXCHANGE_FIRST * first
            flags |= lib.GHCB_EXCHANGE_LOST * (lost != lost_at[key])
            lost_at[key] = lost
            out.append((0, line["line"], flags))
        seen[key] = True
    for key in seen:  # in the order in which the vCPUs came
        if key in waiting:
            give(waiting[key], lib.GHCB_EXCHANGE_OPEN)
    return out
