"""``pysev pages``: scripts and what they come to, whole kexecs, pictures, files that are none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghcbcore import psc
from ghcbcore._cffi import lib
from ghcbcore.errors import SevError
from pysev.cli import main
from pysev.memory.command import examples
from pysev.memory.expect import merged, runs_text
from pysev.memory.scale import back_and_forth, kexec_guest, kexec_steps
from pysev.memory.script import MAX_SCRIPT_BYTES, BadScript, read_script
from pysev.memory.session import run_script
from pysev.memory.verbs import VERBS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "pages"
DATA = Path(__file__).resolve().parents[1] / "data"
E820 = DATA / "e820_ovmf_qemu_2g.txt"


@pytest.fixture
def pages(capsys, tmp_path, monkeypatch):
    """Run a script, given as text; return exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(text, *options):
        where = []
        if text is not None:
            data = text if isinstance(text, bytes) else text.encode()
            (tmp_path / "s").write_bytes(data)
            where = ["s"]
        status = main(["pages", *where, *options])
        return status, *capsys.readouterr()

    return run


def refused(done, text):
    status, out, err = done
    assert (status, out) == (2, ""), done
    assert err.startswith("pysev: ") and err.count("\n") == 1, err
    assert text in err, err


# Examples -----------------------------------------------------------------------------------------


def test_the_examples_of_the_package_are_those_of_the_repository():
    assert examples() == {p.stem: p.read_text() for p in sorted(EXAMPLES.glob("*.txt"))}
    assert len(examples()) >= 10


@pytest.mark.parametrize("name", sorted(p.stem for p in EXAMPLES.glob("*.txt")))
def test_an_example_comes_out_as_it_expects(pages, name):
    text = (EXAMPLES / f"{name}.txt").read_text()
    assert text.count("\nexpect ") >= 3
    status, out, err = pages(text)
    assert (status, err) == (0, "") and "NOT AS EXPECTED" not in out
    assert (status, out.partition("\n")[2]) == (
        0,
        pages(None, "--example", name)[1].partition("\n")[2],
    )


@pytest.mark.parametrize("name", sorted(p.stem for p in EXAMPLES.glob("*.txt")))
def test_every_expect_of_an_example_can_fail(name):
    """Turned round, each line that expects something is said to be otherwise."""
    lines = read_script((EXAMPLES / f"{name}.txt").read_bytes(), name)
    wrong = {"ok": "FAIL_INPUT", "unchanged": "#GP", "agree": "disagree shared-assigned 0x3"}
    for i, line in enumerate(lines):
        if line.words[0] != "expect":
            continue
        kind = line.words[1]
        if kind == "page":
            other = "expect " + " ".join(line.words[1:-1]) + f" {line.words[-1]}x"
        elif kind == "disagree":
            other = f"expect disagree {line.words[2]} 0x3f00+1"
        elif kind == "changes":
            other = f"expect changes {line.words[2]} 0x3"
        elif kind == "counts":
            other = "expect counts state guest_valid=4K"
        else:
            other = f"expect {wrong.get(kind, 'ok')}"
        (changed,) = read_script(other.encode(), name)
        session = run_script([*lines[:i], changed], name)
        assert len(session.failed) == 1, other


def test_without_a_file_the_bug_of_a_kexec_is_shown(pages):
    status, out, _ = pages(None)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "kexec-k1.txt: 64M, ASID 1" and lines[-1] == "as expected"
    at = lines.index("  21  guest read 0x1fff")
    assert lines[at + 1].lstrip().startswith("refused at 0x1fff: #NPF 0x")
    page = "\n".join(lines)
    assert (
        "rmp         hypervisor (belongs to the host), 4 KiB; since line 11: share 0x1fff" in page
    )
    assert "page_table  private, leaf 2M; since line 19: map 0x0+0x4000 private 2M" in page
    assert "  0x1fff+1 (4K)  since line 26: rmpupdate 0x1fff" in page
    assert max(map(len, lines)) < 140


def test_an_oops_is_loaded_as_the_log_has_it_and_explained(pages):
    log = (DATA / "rmp_faults.txt").read_text()
    (line,) = [one for one in log.splitlines() if "PFN 0x40fdf36, RMP entry: [" in one]
    entry = line[line.index("[") :]
    assert f"load 0x40fdf36 {entry}" in (EXAMPLES / "rmp-fault-of-a-log.txt").read_text()
    status, out, _ = pages(
        f"memory 512G asid=2\nload 0x40fdf36 {entry}\npage 0x40fdf36\nhost write 0x40fdf36\n"
    )
    assert status == 1 and "validated-not-believed, 4K" in out  # the guest is not asked
    assert "guest_valid (a guest's, validated), ASID 2, gfn 0xfffffffff, 4 KiB, vmsa" in out
    assert "refused at 0x40fdf36: #PF 0x80000003: present, write, rmp" in out
    assert "error_code(0x80000003)" in log


def test_lists_of_examples_and_words_are_printed(pages):
    status, out, _ = pages(None, "--examples")
    assert status == 0 and len(out.splitlines()) == len(examples())
    assert "kexec-k1" in out and "K1: after a kexec" in out
    status, out, _ = pages(None, "--language")
    assert status == 0 and all(f"\n{verb.usage}\n" in out for verb in VERBS.values())
    assert "expect #PF 0x80000003" in out


# Lines --------------------------------------------------------------------------------------------

START = "memory 64M\naccept all\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("share 0x1000+512 2M", None),
        ("private 0x1000+8", None),
        ("map 0x1000 private 2M", None),
        ("map all unmapped", None),
        ("believe 0x5 no", None),
        ("list 0x1000+4 shared", None),
        ("rmpupdate 0x5 asid=3 gfn=0x77", "FAIL_OVERLAP"),
        ("rmpupdate 0x200 shared 2M", None),
        ("rmpupdate 0x200 2M immutable", None),
        ("pvalidate 0x200 2M vmpl=2", "#GP"),
        ("pvalidate 0x200 backing 2M", "#NPF"),
        ("rescind 0x200 2M", None),
        ("psmash 0x1000", None),
        ("rmpadjust 0x200 vmpl=1 rw 2M", None),
        ("rmpadjust 0x200 vmpl=1 rw 2M by=1", "FAIL_PERMISSION"),
        ("guest write 0x1005 c=1 backing 2M", None),
        ("guest fetch 0x1005 c=1 user vmpl=3 backing 2M", "#NPF"),
        ("guest write 0x1005 c=0", "#NPF"),
        ("host write 0x1005 via 2M", "#PF 0x80000003"),
        ("host write 0x1005 user", "#PF 0x80000007"),
        ("host read 0x1005 c=1 store", None),
        ("dma write 0x1005", "the IOMMU refuses"),
        ("vmrun 0x1005", None),
        ("vmexit 0x1005", None),
        ("firmware SNP_PAGE_RECLAIM 0x1000", "page_size"),
        ("firmware SNP_PAGE_MOVE 0x5 to 0x6", "page_state"),
        ("map-gpa-range gpa=0x5000 pages=3 attributes=0x10", None),
        ("init 0x1000+512", None),
        ("init 0x1000+4 hv_fixed", "page_size"),
        ("activate asid=1", "config"),
        ("activate asid=2", None),
    ],
)
def test_a_line_does_what_it_says_or_says_what_refused(pages, line, words):
    status, out, _ = pages(f"{START}{line}\nexpect {words or 'ok'}\n")
    assert "NOT AS EXPECTED" not in out and status in (0, 1)
    assert ("refused at" in out) == (words is not None)
    status, out, _ = pages(f"{START}{line}\nexpect {'ok' if words else 'FAIL_INUSE'}\n")
    assert "NOT AS EXPECTED" in out and "expected otherwise: line 4" in out and status == 1


def test_raw_psc_entries_are_taken_from_a_dump(pages):
    raw = psc.encode_entries([0x400, 0x800], [lib.GHCB_PSC_OP_SHARED] * 2, [1, 1])
    words = " ".join(f"{entry:#018x}" for entry in raw.tolist())
    status, out, _ = pages(
        f"{START}psc {words}\nexpect ok\nexpect counts state guest_valid=60M hypervisor=4M\n"
    )
    assert status == 1 and "NOT AS" not in out
    assert "private-not-owned, 4M: " in out
    assert "  0x400+512 (2M)  since line 3: psc" in out


def test_a_disagreement_names_the_line_that_caused_it_not_the_last(pages):
    script = (
        START
        + "share 0x1000\nmap 0x1000 private\nguest write 0x1000 c=0 store\nmap 0x1001 private\n"
    )
    status, out, _ = pages(script)
    assert status == 1
    assert "  0x1000+1 (4K)  since line 4: map 0x1000 private\n" in out
    status, out, _ = pages(script, "--json")
    found = json.loads(out)
    assert status == 1 and found["unexpected"] == [
        "private-not-owned",
        "listed-shared-mapped-private",
    ]
    assert found["disagreeing_bytes"] == {
        "private-not-owned": 4096,
        "listed-shared-mapped-private": 4096,
    }
    assert {(d["kind"], d["first"], d["since_line"]) for d in found["disagreements"]} == {
        ("private-not-owned", 0x1000, 4),
        ("listed-shared-mapped-private", 0x1000, 4),
    }
    assert [line["text"] for line in found["lines"]][2] == "share 0x1000"
    assert found["lines"][2]["n_changed"] >= 1 and found["lines"][2]["refusal"] == ""


def test_what_was_expected_must_still_be_so_at_the_end(pages):
    script = (
        START
        + "map 0x5 shared\nexpect disagree shared-assigned 0x5\n"
        + "expect disagree listed-private-mapped-shared 0x5\n"
    )
    assert pages(script)[0] == 0
    assert pages(script + "map 0x6 shared\n")[0] == 1
    assert pages(script + "map 0x5 private\n")[0] == 1  # it is gone
    assert pages(script + "map 0x5 private\nexpect agree\n")[0] == 0


def test_questions_are_answered_in_the_middle(pages):
    status, out, _ = pages(
        START
        + "snapshot a\nshare 0x10+4\nchanges a\ncounts state 0x10+8\ndisagree\n"
        + "disagree shared-encrypted private-other-key\nexpect changes a 0x0+512\n"
        + "snapshot b\nchanges b\nexpect changes b\n"
    )
    assert status == 0, out
    assert "0x10+4 (16K)  rmp, page_table, validated, host_list" in out
    assert "hypervisor 16K" in out and "guest_valid 16K" in out
    assert out.count("no views disagree") == 3 and "        nothing\n" in out


def test_a_guest_of_the_command_line_goes_before_the_scripts(pages, tmp_path):
    assert ": 128M, ASID 7\n" in pages(START, "--memory", "128M", "--asid", "7")[1]
    assert ": 2G, ASID 1\n" in pages("accept all\n", "--memory", "2G")[1]
    status, out, _ = pages("accept ram\nexpect ok\n", "--memmap", str(E820))
    assert status == 0 and "hypervisor" in out and "guest_valid" in out
    assert pages("memory 64M shift=0x100 covered=0x2000 keep-validated\n")[0] == 0


def test_a_script_may_come_from_standard_input():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pysev", "pages", "-"],
        input=b"memory 1M # small\naccept all\nexpect ok\n",
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"standard input: 1M, ASID 1\n")


# What is no script --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("frobnicate 0x5", "s:3: 'frobnicate': no such operation"),
        ("memory 64M", "s:3: 'memory': no such operation"),
        ("share", "s:3: FRAMES is missing (usage: share FRAMES [4K|2M])"),
        ("share 4096", "s:3: '4096': frames are 0x1000, 0x1000+512, all or ram"),
        ("share 0x1000-0x2000", "s:3: '0x1000-0x2000': frames are"),
        ("share 0x5 0x6", "s:3: '0x6': what is this?"),
        ("share 0x5 c=1", "s:3: 'c'=: what is this?"),
        ("share 0x4000", "s:3: frames 0x4000 to 0x4000: the guest ends with frame 0x3fff"),
        ("share 0x1000000", "the guest ends with frame 0x3fff"),
        ("share ram", "'ram': must be 'all' or, of a memory map, 'ram'"),
        ("share 0x5+99999999999999999999999", "s:3: frame"),
        ("share 0x" + "f" * 200, "frames are 0x1000"),
        ("share 0x5+0x" + "f" * 200, "frames are 0x1000"),
        ("share 0x1 2M", "s:3: "),
        ("share 0x200 2M 4K", "2M and 4K exclude each other"),
        ("map 0x5", "unmapped or shared or private is missing"),
        ("map 0x5 encrypted", "'encrypted': must be unmapped or shared or private"),
        ("rmpupdate 0x5 asid=1024", "asid='1024': must be"),
        ("rmpupdate 0x5 asid=x", "asid='x': must be a number from 0 to 0x3ff"),
        ("rmpupdate 0x5 asid=1 asid=2", "'asid'= stands there twice"),
        ("rmpupdate 0x5+2 gfn=0x7", "gfn= goes with one frame"),
        ("rmpadjust 0x5 rw", "vmpl= is missing"),
        ("rmpadjust 0x5 vmpl=1 rwz", "right 'z': must be one of r, w, u, x, s"),
        ("guest jump 0x5", "'jump': must be read or write or fetch"),
        ("guest write 0x5 c=2", "c='2'"),
        ("host write 0x5 via 3M", "via '3M': must be via 4K or 2M or 1G"),
        ("host write 0x5 via", "via '': must be"),
        ("firmware SNP_BURN 0x5", "'SNP_BURN': must be SNP_GCTX_CREATE"),
        ("firmware SNP_PAGE_MOVE 0x5 0x6", "must be to"),
        ("psc", "ENTRY is missing"),
        ("psc 0x1" + "0" * 16, "must be a number of at most 64 bits"),
        ("psc 0x0000000001001000", "entries[0], gfn 0x1001: op 0"),
        ("load 0x5 [0x1]", "each entry is two numbers"),
        ("load 0x5 [x - 0x1]", "must be a number of at most 64 bits"),
        ("load 0x5+3 [0x1 - 0x1]", "must be one frame"),
        ("changes never", "no snapshot 'never'"),
        ("counts colour", "field 'colour': must be one of state"),
        ("counts state 0x1 0x2", "one range at most"),
        ("disagree odd", "disagreement 'odd': must be one of"),
        ("expect", "what is missing"),
        ("expect page 0x5 colour=red", "'colour': must be one of state, asid"),
        ("expect page 0x5", "NAME=VALUE is missing"),
        ("expect disagree odd 0x5", "disagreement 'odd'"),
        ("expect counts state guest_valid=much", "s:3: "),
        ("expect changes never 0x5", "no snapshot 'never'"),
        ("page 0x4000", "s:3: frame = 0x4000"),
        ("page 0x5+2", "must be one frame"),
        ("\0", "s:3: not a text"),
        ("share \0", "s:3: not a text"),
        ("share\x1b[2J 0x5", "s:3: not a text"),
        ("x" * 5000, "s:3: a line of more than 4096 bytes"),
        ("#" * 5000, "s:3: a line of more than 4096 bytes"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_printed(pages, line, text):
    refused(pages(START + line + "\npage 0x5\n"), text)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (b"", "s: no line with an operation"),
        (b"# only words\n", "s: no line with an operation"),
        (b"accept all\n", "s:1: how large is the guest? (usage: memory SIZE"),
        (b"memory\n", "s:1: SIZE is missing"),
        (b"memory 3.3K\n", "s:1: "),
        (b"memory 64M asid=0\n", "s:1: asid = 0: must be 1 to 1006"),
        (b"memory 64M\nmemory 64M\n", "s:2: 'memory': no such operation"),
        (b"memory 64M\nexpect ok\n", "s:2: nothing has happened yet"),
        (b"memory 64M\n\xff\xfe\n", "s:2: not a text in UTF-8"),
        (bytes(range(256)) * 10, "s:1: "),
        (b"memory 64M\n" + b"#\n" * MAX_SCRIPT_BYTES, "no script"),
    ],
)
def test_what_is_no_script_is_refused(pages, script, text):
    refused(pages(script), text)


def test_bad_options_are_refused(pages, tmp_path):
    refused(pages(START, "--memory", "64X"), "64X")
    refused(pages(START, "--memory", "1M", "--memmap", "x"), "not allowed with")
    refused(pages(None, "--memmap", "x"), "x: No such file")
    refused(pages(START, "--asid", "0"), "asid = 0")
    refused(pages(START, "--example", "kexec-k1"), "a FILE goes without")
    refused(pages(None, "--example", "none"), "example 'none': must be one of")
    refused(pages(START, "--kexec", "1G"), "a FILE goes without")
    refused(pages(None, "--kexec"), "a SIZE, or a --memmap FILE")
    refused(pages(None, "--kexec", "1G", "--memmap", str(E820)), "a SIZE, or a --memmap FILE")
    refused(pages(None, "--kexec", "1G", "--plot", "x.png"), "go without --plot")
    refused(pages(None, "--kexec", "1G", "--cpus", "0"), "cpus = 0: must be 1 to 65536")
    refused(pages(None, "--kexec", "1G", "--seed", "-1"), "seed = -1")
    refused(pages(None, "--kexec", "1M"), "no room for 64 CPUs in 1M")
    refused(pages(None, "--kexec", "1G", "--bug", "K9"), "K9")
    refused(pages(START, "--plot", "x.pdf"), "must end in .png or .svg")
    refused(pages(None, "--plot", "no/such/dir/x.png"), "no/such/dir/x.png")
    (tmp_path / "a.svg").write_text(START)
    assert main(["pages", "a.svg", "--plot", "a.svg"]) == 2
    assert (tmp_path / "a.svg").read_text() == START
    assert main(["pages", "none.txt"]) == 2


texts = st.text(
    st.sampled_from("0123456789abcdefx+=-[]# \n\t\0\r\x0b\u2028é"), max_size=60
) | st.binary(max_size=60).map(lambda b: b.decode("latin-1"))
words = st.sampled_from(
    [
        *VERBS,
        "expect",
        "memory",
        "all",
        "ram",
        "0x5",
        "0x200",
        "0x200+512",
        "0x3fff+2",
        "2M",
        "1G",
        "shared",
        "private",
        "yes",
        "asid=1",
        "vmpl=1",
        "c=0",
        "via",
        "rw",
        "state",
        "a",
        "write",
        "SNP_PAGE_RECLAIM",
        "0xffffffffffffffff",
        "=",
        "+",
        "[0x1",
        "-",
        "ok",
        "page",
        "to",
        "none",
    ]
)
lines = st.lists(words, max_size=7).map(" ".join) | texts


@given(st.lists(lines, max_size=6))
def test_any_script_runs_or_is_refused_by_line(text):
    data = "memory 16M\n" + "\n".join(text)
    try:
        session = run_script(read_script(data.encode(), "x"), "x")
    except BadScript as error:
        assert str(error).startswith("x:")
        return
    assert session.as_text("x") and json.dumps(session.as_json("x"))


def test_runs_are_put_together_and_written_short():
    assert merged([(5, 1), (1, 2), (3, 1), (9, 0)]) == [(1, 3), (5, 1)]
    assert runs_text([(i * 2, 1) for i in range(10)]).endswith("0xe+1 and 2 more")


# Whole guests -------------------------------------------------------------------------------------


def test_a_whole_kexec_of_16_tib_is_timed(pages):
    status, out, _ = pages(None, "--kexec", "16T", "--cpus", "256", "--json")
    found = json.loads(out)
    assert status == 0 and found["n_pages"] == 1 << 32 and found["disagreeing_bytes"] == {}
    assert found["counts"] == {"guest_valid": 16 << 40}
    assert [step["name"].split(":")[0] for step in found["steps"]][:4] == [
        "accept",
        "share",
        "finish",
        "boot",
    ]
    assert all(0 < s["ledger_bytes"] < s["peak_bytes"] < 4 << 30 for s in found["steps"])
    status, out, _ = pages(None, "--kexec", "16T", "--cpus", "256")
    assert status == 0 and "seconds" in out and "peak MiB" in out and "no views disagree" in out


@pytest.mark.parametrize("bug", ["K1", "K2"])
def test_a_kexec_with_a_bug_says_where(pages, bug):
    status, out, _ = pages(None, "--kexec", "4G", "--bug", bug, "--seed", "3")
    guest = kexec_guest("4G", 64, 3)
    assert status == 1 and "views disagree:" in out and "private-not-owned" in out
    first = int(out.split("private-not-owned 0x")[1].split("+")[0], 16)
    if bug == "K1":
        assert first + 1 in guest.ghcb_frames
    else:
        assert first == guest.ghcbs[0] // 512 * 512


def test_a_seed_chooses_the_guest(pages):
    one, same, other = kexec_guest("1G", 8, 1), kexec_guest("1G", 8, 1), kexec_guest("1G", 8, 2)
    assert (one.ghcbs, one.shared) == (same.ghcbs, same.shared)
    assert one.ghcbs != other.ghcbs and one.shared != other.shared
    assert len(set(one.ghcbs)) == 8 and kexec_steps(one)[0].seconds > 0
    assert one.left_behind() == []


def test_a_whole_kexec_may_be_of_a_memory_map(pages):
    status, out, _ = pages(None, "--kexec", "--memmap", str(E820), "--cpus", "8")
    assert status == 0 and "no views disagree" in out and "hypervisor" in out


def test_16_tib_go_back_and_forth(pages):
    status, out, _ = pages(None, "--back-and-forth", "16T")
    assert status == 0 and "private, 4 KiB pages" in out and "state: guest_valid 16T" in out
    memory = kexec_guest("64M", 1).memory
    assert len(back_and_forth(memory)) == 5


# Pictures -----------------------------------------------------------------------------------------


def test_a_picture_is_the_same_each_time(pages, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        status, out, err = pages(None, "--plot", name)
        assert (status, err) == (0, "") and "as expected" in out
    for kind, head in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        one, two = (tmp_path / f"{n}.{kind}" for n in "ab")
        assert one.read_bytes() == two.read_bytes()
        assert one.read_bytes().startswith(head) and one.stat().st_size < 200_000


def test_a_picture_of_16_tib_shows_a_single_page():
    pytest.importorskip("matplotlib")
    from pysev.memory.plot import Samples, image_of

    samples = Samples()
    script = (
        b"memory 16T\naccept all\nshare 0x80000000\npage 0x5\nprivate 0x80000000\nmap 0x5 shared\n"
    )
    run_script(read_script(script, "x"), "x", after=samples.take)
    assert samples.names == ["1", "2", "3", "5", "6"]
    assert [column.sum() for column in samples.columns] == [16 << 40] * 5
    assert samples.disagreeing == [0, 0, 0, 0, 4096]
    image = image_of(samples)
    assert image.shape == (96, 5, 3) and image.min() >= 0 and image.max() <= 1
    changed = np.abs(image[:, 2] - image[:, 1]).max(axis=1)
    (row,) = np.flatnonzero(changed > 1e-9)
    assert row == 0x80000000 // samples.bin_pages and changed[row] > 0.02
    assert np.allclose(image[:, 3], image[:, 1])


def test_a_picture_without_matplotlib_names_the_extra(pages, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(pages(START, "--plot", "x.png"), "pip install pysev[plot]")


def test_a_picture_is_of_no_more_lines_than_can_be_seen(pages):
    pytest.importorskip("matplotlib")
    many = "memory 16M\n" + "map 0x5 shared\n" * 1100
    refused(pages(many, "--plot", "x.png"), "more than 1000 lines")


def test_errors_of_the_core_are_all_of_one_family():
    assert issubclass(BadScript, SevError)
