"""The commands of README.md are run: what it shows is what a reader gets."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.M | re.S)


def sessions():
    """Return (command, what it prints); in that a line ``...`` stands for any lines."""
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, printed = part.partition("\n")
            yield pytest.param(command, printed, id=command)


def pattern(printed):
    """Return what matches the lines, whatever the width of a column is."""
    lines = [
        r"(?:.*\n)*?" if line == "..." else re.sub(r"(?:\\ )+", " +", re.escape(line)) + r"\n"
        for line in printed.splitlines()
    ]
    return "".join(lines)


@pytest.mark.parametrize(("command", "printed"), list(sessions()))
def test_command_prints_what_the_readme_shows(command, printed, tmp_path):
    for folder in ("examples", "tests"):  # commands write files, and not into the clone
        (tmp_path / folder).symlink_to(ROOT / folder)
    done = subprocess.run(
        command.split(),
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert re.fullmatch(pattern(printed), done.stdout), done.stdout


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_import_from_the_source_folder_says_what_is_wrong():
    done = subprocess.run(
        [sys.executable, "-c", "import pysev; pysev.check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "is the source, not compiled" in done.stderr
    assert "python -P" in done.stderr
