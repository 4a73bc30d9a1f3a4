"""Every number that Linux knows too is the same in Linux's headers.

The independent second statement of ``include/``: see ``linux_numbers`` for how it is read.
"""

import re

import linux_numbers as linux
import pytest


def test_every_constant_and_offset_agrees_with_linux(capsys):
    versions = {side: found.version for side, found in linux.linux_headers().items()}
    n_values = sum(len(linux.linux_values(side)) for side in linux.INCLUDES)
    assert linux.complaints(linux.INCLUDE) == []
    kernel = re.match(r"[\d.]+", versions["kernel"])[0]
    uapi = re.match(r"[\d.]+", versions["uapi"])[0]
    with capsys.disabled():
        print(f"\ncompared {n_values} constants and offsets with Linux {kernel} and UAPI {uapi}")


def test_a_wrong_expectation_is_reported():
    row, value = next(iter(linux.linux_values("kernel").items()))
    text = linux.assertions()
    wrong = text.replace(f"({row.ours}) == {value}ULL", f"({row.ours}) == {value + 1}ULL", 1)
    assert wrong != text
    run = linux.gcc("-fsyntax-only", f"-I{linux.INCLUDE}", "-xc", "-", stdin=wrong)
    assert f"kernel: {row.ours}" in run.stderr


def test_no_constant_of_ours_escapes_the_mapping():
    rows = linux.mapping()
    listed = {row.ours for row in rows}
    escaped = {}
    for header in sorted(linux.INCLUDE.glob("ghcbcore/*.h")):
        if header.name not in listed:
            names = [name for name in linux.constants(header) if name not in listed]
            if names:
                escaped[header.name] = names
    assert escaped == {}, "neither compared with Linux nor listed with a reason"


def test_every_name_in_the_mapping_exists():
    known = {
        name
        for header in linux.INCLUDE.glob("ghcbcore/*.h")
        for name in (*linux.constants(header), *re.findall(r"\b\w+_t\b", linux.declared(header)))
    }
    used = {
        name
        for row in linux.mapping()
        if not row.ours.endswith(".h")
        for name in re.findall(r"\b[A-Za-z_]\w+", re.sub(r"\b0x\w+|\b\d+U?L*\b", "", row.ours))
    }
    assert used - known - {"sizeof", "unsigned", "long"} == set()


def test_each_row_of_the_mapping_has_a_counterpart_or_a_reason():
    rows = linux.mapping()
    assert [row.ours for row in rows if bool(row.kernel or row.uapi) == bool(row.reason)] == []


def test_a_name_without_counterpart_has_no_other_row():
    without = [row.ours for row in linux.mapping() if row.reason]
    assert len(without) == len(set(without))
    assert set(without).isdisjoint(row.ours for row in linux.compared())


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)]
)
def test_missing_headers_skip_by_hand_and_fail_in_ci(ci, outcome, monkeypatch, tmp_path):
    script = tmp_path / "tools" / "linux-headers"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho some noise >&2\necho no mirror here >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(linux, "ROOT", tmp_path)
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no Linux headers to compare with: no mirror here"):
        linux.linux_headers.__wrapped__()
