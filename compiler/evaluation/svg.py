"""Plots as SVG text, for a page without external files: bars, histograms, points with errors.

Colours are the page's: every shape has a class. What a plot shows is in its title, for readers
that do not see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

BAR_HEIGHT = 18
LABEL_WIDTH = 300
CHARACTER = 6.2  # width of one, of the labels' font, in pixels
TICKS = 6


@dataclass(frozen=True)
class Bar:
    """One bar; `text` stands behind it, None as `value` draws none."""

    label: str
    value: float | None
    text: str


@dataclass(frozen=True)
class Point:
    """A point with the half length of its error bar."""

    x: float
    y: float
    error: float
    label: str


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """About `count` round numbers that reach from below `low` to above `high`."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    power = 10.0 ** floor(log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number as short as it can be read."""
    return f"{value:.4g}"


def bar_chart(title: str, bars: Sequence[Bar]) -> str:
    """Horizontal bars from 0, one a line, in the order given."""
    width, plot = 860, 860 - LABEL_WIDTH - 90
    largest = max((abs(b.value) for b in bars if b.value is not None), default=0) or 1
    parts = []
    for row, bar in enumerate(bars):
        y = row * BAR_HEIGHT
        length = plot * max(bar.value or 0, 0) / largest
        middle = y + BAR_HEIGHT - 5
        parts.append(
            f'<text class="label" x="{LABEL_WIDTH - 8}" y="{middle}" text-anchor="end">'
            f"{escape(shorten(bar.label, int(LABEL_WIDTH / CHARACTER)))}"
            f"<title>{escape(bar.label)}</title></text>"
            f'<rect class="bar" x="{LABEL_WIDTH}" y="{y + 2}" width="{length:.1f}" '
            f'height="{BAR_HEIGHT - 5}"/>'
            f'<text class="label" x="{LABEL_WIDTH + length + 6:.1f}" y="{middle}">'
            f"{escape(bar.text)}</text>"
        )
    return _svg(title, width, max(1, len(bars)) * BAR_HEIGHT, parts)


def histogram(title: str, limit: float, before: Sequence[int], after: Sequence[int]) -> str:
    """Counts in equal bins of -`limit` .. `limit`, roots of them: tails are seen too."""
    width, height, base = 270, 110, 92
    highest = max(max(before, default=0), max(after, default=0)) or 1
    parts = [
        _steps("before", before, width, base, highest),
        _steps("after", after, width, base, highest),
        f'<line class="axis" x1="0" x2="{width}" y1="{base}" y2="{base}"/>',
    ]
    for x, anchor, value in ((0, "start", -limit), (width / 2, "middle", 0), (width, "end", limit)):
        parts.append(
            f'<text class="label" x="{x}" y="{height - 4}" text-anchor="{anchor}">'
            f"{number(value)}</text>"
        )
    return _svg(title, width, height, parts)


def _steps(kind: str, counts: Sequence[int], width: int, base: int, highest: int) -> str:
    bin_width = width / max(1, len(counts))
    path = [f"M0,{base}"]
    for i, count in enumerate(counts):
        y = base - (base - 4) * (count / highest) ** 0.5
        path.append(f"L{i * bin_width:.1f},{y:.1f} L{(i + 1) * bin_width:.1f},{y:.1f}")
    return f'<path class="{kind}" d="{" ".join(path)} L{width},{base} Z"/>'


def scatter(title: str, x_label: str, y_label: str, points: Sequence[Point]) -> str:
    """Labelled points with vertical error bars, between axes with round numbers."""
    width, height, left, bottom, top, right = 860, 380, 70, 44, 16, 150
    xs = ticks(min(p.x for p in points), max(p.x for p in points))
    ys = ticks(min(p.y - p.error for p in points), max(p.y + p.error for p in points))

    def x_of(value: float) -> float:
        return left + (width - left - right) * (value - xs[0]) / (xs[-1] - xs[0])

    def y_of(value: float) -> float:
        return height - bottom - (height - bottom - top) * (value - ys[0]) / (ys[-1] - ys[0])

    parts = []
    for value in xs:
        parts.append(
            f'<line class="grid" x1="{x_of(value):.1f}" x2="{x_of(value):.1f}" y1="{top}" '
            f'y2="{height - bottom}"/><text class="label" x="{x_of(value):.1f}" '
            f'y="{height - bottom + 16}" text-anchor="middle">{number(value)}</text>'
        )
    for value in ys:
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y_of(value):.1f}" '
            f'y2="{y_of(value):.1f}"/><text class="label" x="{left - 8}" '
            f'y="{y_of(value) + 4:.1f}" text-anchor="end">{number(value)}</text>'
        )
    parts.append(
        f'<text class="label" x="{(left + width - right) / 2}" y="{height - 6}" '
        f'text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="label" transform="translate(14 {(height - bottom) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    label_ys = _label_places([y_of(p.y) for p in points])
    for point, label_y in zip(points, label_ys, strict=True):
        x, y, name = x_of(point.x), y_of(point.y), escape(point.label)
        low, high = y_of(point.y - point.error), y_of(point.y + point.error)
        parts.append(
            f'<line class="error" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
            f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
            f'<text class="label" x="{x + 8:.1f}" y="{label_y + 4:.1f}">{name}</text>'
        )
    return _svg(title, width, height, parts)


def _label_places(ys: Sequence[float], gap: float = 13) -> list[float]:
    """Heights for labels, moved down where they would lie on one another."""
    places = [0.0] * len(ys)
    last = -gap
    for i in sorted(range(len(ys)), key=lambda i: ys[i]):
        last = places[i] = max(ys[i], last + gap)
    return places


def shorten(text: str, length: int) -> str:
    """The end of a long name: what stands there tells layers apart."""
    return text if len(text) <= length else f"…{text[-length + 1 :]}"


def _svg(title: str, width: int, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )
