"""Codes of vendors: added as data, never over the protocol's own."""

from __future__ import annotations

import pytest

from pysev import explain_msr
from pysev.decode import kind_of, vendors
from pysev.tables.schema import VendorCode


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(vendors, "_rows", dict(vendors._rows))


def row(space="nae", code=0xF0000001, name="acme_ping", **more):
    texts = {"owner": "Acme", "what": "Acme: are you there?", "source": "Acme"} | more
    return VendorCode(space, code, name, **texts)


def test_codes_of_all_spaces_are_said_once_they_are_registered():
    before = explain_msr(0x1F10)
    vendors.register(row("msr", 0xF10))
    vendors.register(row("termination", 0x125, what="Acme: out of ping"))
    assert before.malformed and not explain_msr(0x1F10).malformed
    assert "Acme: are you there?" in explain_msr(0x1F10).as_text()
    assert "Acme: out of ping" in kind_of("terminate").explain(0x125).as_text()
    assert "Acme: out of ping" in explain_msr(0x100 | 5 << 12 | 0x12 << 16).as_text()


def test_events_and_reasons_are_said_in_pages():
    page = bytearray(4096)
    page[0x390:0x394] = (0xF0000001).to_bytes(4, "little")
    page[0x3F0 + 14] = 0x1C
    assert kind_of("ghcb").explain(bytes(page)).malformed
    vendors.register(row())
    got = kind_of("ghcb").explain(bytes(page))
    assert "Acme: are you there?" in got.sentence and not got.malformed
    assert "private to Acme, not part of the protocol" in got.remarks
    vendors.register(row("malformed", 0x10001, what="no ping today"))
    page[0x398], page[0x3A0:0x3A4] = 2, (0x10001).to_bytes(4, "little")
    assert "no ping today" in kind_of("ghcb-answer").explain(bytes(page)).as_text()


def test_the_same_row_may_come_again():
    vendors.register(row())
    vendors.register(row())
    assert [r.name for r in vendors.registered("nae")] == ["acme_ping"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(code=0x72), "the protocol's own code cpuid"),
        (row("msr", 0x014), "the protocol's own code page_state_change"),
        (row("msr", 0xF00), "taken by hyperv_special_hypercall of Hyper-V"),
        (row("msr", 0x1000), "does not fit 12 bits"),
        (row("usage", 0), "the protocol's own code standard"),
        (row("usage", 1), "taken by hyperv_hypercall of Hyper-V"),
        (row("malformed", 0xFFFF), "codes up to 0xffff belong to the protocol"),
        (row("termination", 0x990), "reason set 0 belongs to the protocol"),
        (row("nae", -1), "does not fit 64 bits"),
        (row("nae", True), "must be an integer"),
        (row("xyz"), "space 'xyz': must be one of"),
        (row(owner=""), "owner: must be a text"),
        (row(what="a\x1bb"), "what 'a\\\\x1bb': must be printable"),
        (row(name="x" * 300), "name: must be a text"),
    ],
)
def test_what_cannot_be_added_is_refused_and_nothing_changes(bad, message):
    before = vendors.registered()
    with pytest.raises(ValueError, match=message):
        vendors.register(bad)
    assert vendors.registered() == before


GOOD = """
[[code]]
space = "nae"
code = 0xF0000001
name = "acme_ping"
owner = "Acme"
what = "are you there?"
source = "Acme 3"
"""


def test_a_file_adds_all_or_none(tmp_path):
    path = tmp_path / "acme.toml"
    path.write_text(GOOD)
    assert vendors.register_file(str(path)) == 1
    assert vendors.owner("nae", 0xF0000001) == "Acme"
    path.write_text(GOOD.replace("0xF0000001", "0xF0000002") + GOOD.replace("0xF0000001", "0x72"))
    with pytest.raises(ValueError, match=r"acme\.toml: code 2: nae 0x72"):
        vendors.register_file(str(path))
    assert not vendors.words("nae", 0xF0000002)


@pytest.mark.parametrize(
    "text",
    ["x", "[code]\na = 1", "code = 1", "code = [1]", GOOD + "[more]\n", GOOD + "y = 1", "\xff"],
)
def test_a_file_that_is_no_list_of_codes_is_refused(text, tmp_path):
    path = tmp_path / "acme.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"acme\.toml: "):
        vendors.register_file(str(path))
