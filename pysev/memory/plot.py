"""A picture of a script about pages: states of pages over its lines and the guest's addresses.

Above, an image: a column for each line that did something, a row for each piece of the guest's
memory, mixed
of the colours of the states in it. A single page in a piece of a TiB must still be seen, so a
state's part
in the mixture is the logarithm of its pages. Below, the bytes in each state, and of all pages of
which
views disagree, on a logarithmic scale.

Needs matplotlib, which ``pip install pysev[plot]`` brings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ghcbcore._cffi import lib
from ghcbcore.errors import SevError
from pysev.memmap import format_size

from . import words

if TYPE_CHECKING:
    from .session import Session

__all__ = ["NoPlot", "Samples", "check_target", "write_plot"]

F64 = NDArray[np.float64]

N_BINS = 96
MAX_COLUMNS = 1000
MAX_LABELS = 40
COLOURS = {
    "hypervisor": "#d9d9d9",
    "hv_fixed": "#969696",
    "default": "#f7f7f7",
    "firmware": "#807dba",
    "firmware_iommu": "#9e9ac8",
    "reclaim": "#bcbddc",
    "context": "#6a51a3",
    "metadata": "#54278f",
    "pre_guest": "#fdae6b",
    "pre_swap": "#e6550d",
    "guest_invalid": "#de2d26",
    "guest_valid": "#31a354",
    "none": "#000000",
}


class NoPlot(SevError):
    """A picture cannot be made: matplotlib is not there, or the file's name says no format."""


def check_target(path: str) -> None:
    """Refuse before the work what could not be written after it.

    Raises
    ------
    NoPlot
        The name ends neither in .png nor .svg, or matplotlib is missing.
    """
    if not path.endswith((".png", ".svg")):
        raise NoPlot(f"--plot {path}: the name must end in .png or .svg")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise NoPlot("--plot needs matplotlib: pip install pysev[plot]") from error


class Samples:
    """The bytes in each state, piece by piece, after each line that did something."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.columns: list[F64] = []
        self.disagreeing: list[int] = []
        self.bin_pages = 0
        self.n_pages = 0

    def take(self, session: Session) -> None:
        """Look at the memory as it is now; lines that only ask are passed over."""
        line = session.results[-1].line
        is_first = not self.columns and session.last is None
        if not is_first and session.results[-1].outcome is None and line.words[0] != "load":
            return
        if len(self.columns) == MAX_COLUMNS:
            raise NoPlot(f"--plot: more than {MAX_COLUMNS} lines that do something")
        memory = session.memory
        self.n_pages = memory.n_pages
        # pieces of whole 2 MiB, as many as there is room for
        region = lib.FRAME_REGION
        pages = -(-self.n_pages // N_BINS)
        self.bin_pages = min(-(-pages // region) * region, self.n_pages)
        at = memory.snapshot()
        column = np.zeros((-(-self.n_pages // self.bin_pages), len(words.STATE_NAMES)))
        index = {name: i for i, name in enumerate(words.STATE_NAMES.values())}
        for row in range(len(column)):
            first = row * self.bin_pages
            n = min(self.bin_pages, self.n_pages - first)
            for name, n_bytes in memory.counts("state", at, (first, n)).items():
                column[row, index[name]] = n_bytes
        self.columns.append(column)
        self.names.append(f"{line.number}")
        self.disagreeing.append(memory.pages_disagreeing(at=at) * lib.GHCB_PAGE_SIZE)


def image_of(samples: Samples) -> F64:
    """Mix the colours: shape (pieces, lines, 3)."""
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(COLOURS[name]) for name in words.STATE_NAMES.values()])
    amounts = np.stack(samples.columns, axis=1)
    weights = np.log2(1 + amounts / lib.GHCB_PAGE_SIZE)
    weights /= weights.sum(axis=2, keepdims=True)
    image: F64 = weights @ colours
    return image


def write_plot(samples: Samples, path: str, title: str) -> None:
    """Write the picture; the same script makes the same file, byte by byte.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "pysev", "svg.fonttype": "path"}):
        figure = _figure(samples, title)
        about: dict[str, Any] = {"Software": None} if path.endswith(".png") else {"Date": None}
        figure.savefig(path, metadata=about)


def _figure(samples: Samples, title: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    n_lines = len(samples.columns)
    end = len(samples.columns[0]) * samples.bin_pages
    above.imshow(
        image_of(samples),
        aspect="auto",
        interpolation="nearest",
        origin="lower",
        extent=(-0.5, n_lines - 0.5, 0, end),
    )
    above.set_ylim(0, samples.n_pages)
    page = lib.GHCB_PAGE_SIZE
    ticks = [samples.n_pages * i // 4 for i in range(5)]
    above.set_yticks(ticks, [_size(tick * page) for tick in ticks])
    above.set_ylabel("address")
    above.set_title(title, parse_math=False)
    totals = np.stack([column.sum(axis=0) for column in samples.columns])
    names = list(words.STATE_NAMES.values())
    present = [i for i in range(len(names)) if totals[:, i].any()]
    for i in present:
        below.step(range(n_lines), totals[:, i], where="mid", color=COLOURS[names[i]])
    below.step(
        range(n_lines), samples.disagreeing, where="mid", color="black", linestyle="--", lw=1
    )
    below.set_yscale("symlog", base=2, linthresh=page)
    low = (page, page << 9, page << 18, page << 27)
    ticks = [0, *(tick for tick in low if tick < 2 * samples.n_pages * page)]
    below.set_yticks(ticks, [_size(tick) for tick in ticks])
    below.minorticks_off()
    every = -(-n_lines // MAX_LABELS)
    below.set_xticks(range(0, n_lines, every), samples.names[::every])
    below.set_xlabel("line of the script")
    handles = [Patch(color=COLOURS[names[i]], label=names[i]) for i in present]
    handles.append(Patch(fill=False, linestyle="--", label="views disagree"))
    figure.legend(handles=handles, loc="outside right upper", fontsize="small")
    return figure


def _size(n_bytes: int) -> str:
    """A size for a scale: whole units, or one digit more."""
    unit = max((u for u in (1 << 10 * i for i in range(1, 6)) if u <= n_bytes), default=1)
    if n_bytes % unit:
        return f"{n_bytes / unit:.1f}{format_size(unit)[1:]}"
    return format_size(n_bytes)
