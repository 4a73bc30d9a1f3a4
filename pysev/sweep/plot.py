"""Modelled time against CPUs, a line for each size of memory; where it fails, a cross.

Needs matplotlib, which ``pip install pysev[plot]`` brings.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from ..memmap import format_size
from .summary import Summary

__all__ = ["write_plot"]

MAX_LEGEND = 20
MAX_TICKS = 16
DECADE = 10


def write_plot(summary: Summary, path: str) -> None:
    """Write the picture; the same sweep makes the same file, byte by byte.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "pysev", "svg.fonttype": "path"}):
        figure = _figure(summary)
        about: dict[str, Any] = {"Software": None} if path.endswith(".png") else {"Date": None}
        figure.savefig(path, metadata=about)


def _figure(summary: Summary) -> Any:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sizes = sorted({cell.memory_bytes for cell in summary.cells})
    colours = colormaps["viridis"]
    handles = []
    failed = False
    for i, size in enumerate(sizes):  # lines that cover each other: the first are the widest
        colour = colours(0.9 * i / max(1, len(sizes) - 1))
        cells = sorted(
            (c for c in summary.cells if c.memory_bytes == size and c.seconds),
            key=lambda c: c.cpus,
        )
        if not cells:
            continue
        x = [c.cpus for c in cells]
        width = 1 + 4 * (len(sizes) - 1 - i) / max(1, len(sizes) - 1)
        y = [median(c.seconds) for c in cells]
        axes.plot(x, y, color=colour, marker="o", markersize=width + 2, linewidth=width)
        if summary.plan.n_seeds > 1:
            low, high = ([f(c.seconds) for c in cells] for f in (min, max))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        bad = [c for c in cells if not c.is_good]
        failed |= bool(bad)
        axes.plot(
            [c.cpus for c in bad],
            [median(c.seconds) for c in bad],
            linestyle="none",
            marker="x",
            color="#c0392b",
            markersize=8,
        )
        handles.append(Line2D([], [], color=colour, linewidth=width, label=format_size(size)))
    if failed:
        handles.append(
            Line2D([], [], color="#c0392b", marker="x", linestyle="none", label="does not hold")
        )
    axes.set_xscale("log", base=2)
    numbers = sorted({c.cpus for c in summary.cells})
    if len(numbers) <= MAX_TICKS:
        axes.set_xticks(numbers)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    seconds = [s for c in summary.cells for s in c.seconds]
    if seconds and max(seconds) > DECADE * min(seconds) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("CPUs")
    axes.set_ylabel("modelled seconds until the boot CPU's last step")
    axes.grid(visible=True, which="major", linewidth=0.3)
    axes.set_title(summary.sentence(), parse_math=False, fontsize="medium")
    shown = handles[:MAX_LEGEND]
    figure.legend(handles=shown, loc="outside right upper", fontsize="small", title="memory")
    return figure
