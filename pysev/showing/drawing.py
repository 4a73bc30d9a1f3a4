"""A small SVG writer: lines, boxes, arrows and text, dark on white, for any viewer.

Units: pixels of the picture. Text is in one size of a common sans-serif face, whose widths are
estimated, generously: what is drawn must fit whatever face a viewer takes.
"""

from __future__ import annotations

import textwrap
from xml.sax.saxutils import escape

__all__ = ["FONT", "LINE", "Picture", "fitted"]

FONT, LINE = 12, 15
CHAR = 7.0
"""Width of a character, estimated."""

INK, PALE, ALARM = "#222222", "#999999", "#b00020"


def fitted(text: str, width: float) -> list[str]:
    """Return text in lines that fit into a width."""
    return textwrap.wrap(text, max(8, int(width / CHAR)), break_on_hyphens=False) or [""]


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


class Picture:
    """Collects shapes; ``text()`` is the file."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._shapes: list[str] = []
        self._width = self._height = 0.0

    def _reach(self, x: float, y: float) -> None:
        self._width, self._height = max(self._width, x), max(self._height, y)

    def line(
        self,
        points: list[tuple[float, float]],
        *,
        colour: str = INK,
        dashed: bool = False,
        arrow: bool = False,
    ) -> None:
        """Draw a line through points, with a head at its end."""
        for x, y in points:
            self._reach(x, y)
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}"{dash}/>')
        if arrow:
            self._head(points[-2], points[-1], colour)

    def _head(self, before: tuple[float, float], tip: tuple[float, float], colour: str) -> None:
        (x, y), (dx, dy) = tip, (tip[0] - before[0], tip[1] - before[1])
        length = (dx * dx + dy * dy) ** 0.5 or 1.0
        dx, dy = dx / length * 7, dy / length * 7
        corners = [(x, y), (x - dx - dy / 2, y - dy + dx / 2), (x - dx + dy / 2, y - dy - dx / 2)]
        path = " ".join(f"{_n(a)},{_n(b)}" for a, b in corners)
        self._shapes.append(f'<polygon points="{path}" fill="{colour}"/>')

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        colour: str = INK,
        fill: str = "#ffffff",
    ) -> None:
        """Draw a rectangle."""
        self._reach(x + width, y + height)
        self._shapes.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="3" '
            f'fill="{fill}" stroke="{colour}"/>'
        )

    def write(
        self,
        x: float,
        y: float,
        lines: list[str],
        *,
        colour: str = INK,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """Write lines of text, the first with its base line at ``y``."""
        weight = ' font-weight="bold"' if bold else ""
        for i, line in enumerate(lines):
            right = {"start": 1.0, "middle": 0.5, "end": 0.0}[anchor] * len(line) * CHAR
            self._reach(x + right, y + i * LINE + 4)
            self._shapes.append(
                f'<text x="{_n(x)}" y="{_n(y + i * LINE)}" fill="{colour}" text-anchor="{anchor}"'
                f"{weight}>{escape(line)}</text>"
            )

    def text(self) -> str:
        """Return the picture as a file."""
        width, height = _n(self._width + 10), _n(self._height + 10)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="DejaVu Sans, Arial, sans-serif" '
            f'font-size="{FONT}">\n<title>{escape(self._title)}</title>\n'
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
            + "".join(f"{shape}\n" for shape in self._shapes)
            + "</svg>\n"
        )
