"""``pysev doctor`` as its users meet it, on every log that is at hand."""

import gzip
import json
import lzma
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).parent.parent / "data"
COMMAND = [sys.executable, "-P", "-m", "pysev", "doctor"]
LOGS = {  # name: exit status, words that must be in the report
    "rmp_table_ranges.txt": (
        1,
        ["[0x35e00000 - 0x566fffff]", "set no memory aside", "SEV 128 to 509"],
    ),
    "rmp_segmented.txt": (
        0,
        ["3 segments of at most 128 GiB, entries for 290 GiB", "segment 9 covers", "start of seg"],
    ),
    "rmp_faults.txt": (1, ["ASID 2 at GPA", "VMSA", "0x2 SHUTDOWN", "processor had it in use"]),
    "rmp_kexec_fixup_400fea4b9651.txt": (1, ["kexec segment 0", "400fea4b9651", "RMP's end"]),
    "snp_dmesg_guest.txt": (1, ["the log ends where the other CPUs are started"]),
    "ghcb_log_lines.txt": (1, ["PVALIDATE failed", "exit 0x404", "exit 0x72 (cpuid)"]),
    "cpuid_8000001f.txt": (1, ["C-bit 51", "47 address bits less is no possible value"]),
    "e820_epyc_romed8_256g.txt": (0, ["asks for 512 MiB here", "with iommu=pt"]),
    "e820_epyc_volcano_769g.txt": (0, ["767.748 GiB of RAM", "it needs 3.005 GiB"]),
    "e820_epyc_h11dsu_1tib_8node_upper.txt": (0, ["256 MiB at 624 MiB"]),
    "e820_ovmf_qemu_2g.txt": (0, ["1.996 GiB", "nothing to say about it"]),
    "e820_hyperv_gen2_1536m.txt": (0, ["Hyper-V UEFI"]),
    "e820_aws_r5d_32g.txt": (0, ["r5d.xlarge"]),
}


def doctor(*args: str, stdin: bytes = b"", **options):
    return subprocess.run(
        [*COMMAND, *args], input=stdin, capture_output=True, timeout=60, check=False, **options
    )


@pytest.mark.parametrize("name", LOGS)
def test_a_real_log_is_explained(name):
    status, words = LOGS[name]
    done = doctor(str(DATA / name))
    text = " ".join(done.stdout.decode().split())
    assert (done.returncode, done.stderr) == (status, b"")
    assert [one for one in words if one not in text] == []
    assert max(map(len, done.stdout.decode().splitlines()[1:])) <= 100


def test_every_log_at_hand_is_tried():
    assert {path.name for path in DATA.glob("*.txt")} >= set(LOGS)
    assert {path.name for path in DATA.glob("e820_*.txt")} <= set(LOGS)


def test_json_has_facts_findings_and_hex_strings():
    done = doctor(str(DATA / "rmp_kexec_fixup_400fea4b9651.txt"), "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["n_boots"] == 1
    assert found["boots"][0]["rmp"] == [
        {
            "base": "0x0000007ffe800000",
            "end": "0x000000807f0fffff",
            "line": 4,
            "entries": (0x807F100000 - 0x7FFE804000) // 16,
            "aligned": True,
        }
    ]
    keys = {"name", "severity", "text", "advice", "source", "lines", "count"}
    assert all(set(one) == keys for one in found["findings"])


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_a_log_comes_by_standard_input_packed_or_not(pack):
    text = (DATA / "rmp_faults.txt").read_bytes()
    done = doctor("-", stdin=pack(text))
    assert done.returncode == 1 and b"VMSA" in done.stdout
    assert done.stdout.startswith(b"standard input: kernel log")


def refusal(done) -> str:
    assert done.returncode == 2 and done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("pysev: "), lines
    return lines[0]


def test_what_is_no_kernel_log_is_refused(tmp_path):
    (tmp_path / "text").write_text("Dear all,\nthere is no log here.\n")
    assert "text: no kernel log: none of 2 lines" in refusal(doctor("text", cwd=tmp_path))
    (tmp_path / "empty").touch()
    assert "no kernel log" in refusal(doctor("empty", cwd=tmp_path))
    assert "no kernel log" in refusal(doctor("/dev/null"))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "gone.txt: No such file" in refusal(doctor("gone.txt", cwd=tmp_path))
    assert "Is a directory" in refusal(doctor(str(tmp_path)))


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_damaged_packed_log_is_refused(pack):
    packed = pack(b"[    1.0] x\n" * 5000)
    assert "standard input: cannot be unpacked" in refusal(doctor("-", stdin=packed[:-20]))


def test_a_full_disk_is_an_error():
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [*COMMAND, str(DATA / "rmp_faults.txt")], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 2 and b"No space left" in done.stderr


def test_a_reader_that_goes_away_is_none():
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*COMMAND, str(DATA / "rmp_faults.txt")], stdout=write, stderr=subprocess.PIPE
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
def test_memory_does_not_grow_with_a_line_or_a_log():
    script = (
        "import sys\n"
        "out = sys.stdout.buffer\n"
        "for _ in range(150): out.write(b'\\0x' * (1 << 20))\n"
        "out.write(b'\\n')\n"
        "line = b'[    1.0] SEV-SNP: Leaking PFN range 0x%x-0x1\\n'\n"
        "for i in range(100000): out.write(line % i)\n"
    )
    limit = 1 << 30

    def bounded():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as writer:
        done = subprocess.run(
            [*COMMAND, "-"],
            stdin=writer.stdout,
            capture_output=True,
            preexec_fn=bounded,
            timeout=120,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
    assert done.returncode == 1, done.stderr
    assert b"1 lines are longer" in done.stdout
    assert b"99980 more findings of kinds" in done.stdout
