"""Lines over logarithmic axes as SVG text, with the names of the series at their ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 860, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 34, 44
COLOURS = (
    *("#0b62a4", "#d1495b", "#2a9d5c", "#e08e1b", "#7b4fa3", "#4aa3c7"),
    *("#8c6d4f", "#c2528b", "#5f6b7a", "#94a61f"),
)
GAP = 14  # between labels
STYLE = (
    "<style>text{font:12px sans-serif;fill:#444}.grid{stroke:#ddd}.line{fill:none;stroke-width:2}"
    "</style><rect width='100%' height='100%' fill='#fff'/>"
)


@dataclass(frozen=True)
class Series:
    """Points (x, y), both positive; other engines' lines are dashed."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def lines(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """The xs that occur are the marks below; above 1, 2 and 5 of every power of ten."""
    xs = sorted({x for one in series for x, _ in one.points})
    ys = [y for one in series for _, y in one.points]
    x_low, x_high = log10(xs[0]), log10(xs[-1])
    marks = _marks(min(ys), max(ys))
    y_low, y_high = log10(marks[0]), log10(marks[-1])

    def x_of(value: float) -> float:
        share = (log10(value) - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def y_of(value: float) -> float:
        share = (log10(value) - y_low) / (y_high - y_low)
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * share

    parts = [_text(WIDTH / 2 - RIGHT / 2 + LEFT / 2, 18, title, "middle", "font-weight='bold'")]
    for x in xs:
        at = x_of(x)
        parts.append(_grid(at, at, TOP, HEIGHT - BOTTOM))
        parts.append(_text(at, HEIGHT - BOTTOM + 16, f"{x:g}", "middle"))
    for y in marks:
        parts.append(_grid(LEFT, WIDTH - RIGHT, y_of(y), y_of(y)))
        parts.append(_text(LEFT - 8, y_of(y) + 4, f"{y:g}", "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    turn = f"transform='translate(14 {(HEIGHT - BOTTOM + TOP) / 2:g}) rotate(-90)'"
    parts.append(_text(0, 0, y_label, "middle", turn))
    ends = _apart([y_of(one.points[-1][1]) for one in series])
    for number, (one, label_y) in enumerate(zip(series, ends, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in one.points)
        dash = " stroke-dasharray='6 4'" if one.dashed else ""
        parts.append(f"<polyline class='line' stroke='{colour}'{dash} points='{path}'/>")
        parts += [
            f"<circle cx='{x_of(x):.1f}' cy='{y_of(y):.1f}' r='3' fill='{colour}'/>"
            for x, y in one.points
        ]
        end = x_of(one.points[-1][0])
        parts.append(_text(end + 10, label_y + 4, one.name, "start", f"style='fill:{colour}'"))
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}' role='img' "
        f"xmlns='http://www.w3.org/2000/svg'>{STYLE}<title>{escape(title)}</title>"
        f"{''.join(parts)}</svg>\n"
    )


def _marks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every power of ten, from below `low` to above `high`."""
    powers = range(floor(log10(low)) - 1, ceil(log10(high)) + 2)
    every = [m * 10.0**p for p in powers for m in (1, 2, 5)]
    first = max(i for i, mark in enumerate(every) if mark <= low)
    last = min(i for i, mark in enumerate(every) if mark >= high and i > first)
    return every[first : last + 1]


def _apart(ys: Sequence[float]) -> list[float]:
    """Heights of labels, moved where they would lie on one another."""
    places = [0.0] * len(ys)
    last = -float(GAP)
    for i in sorted(range(len(ys)), key=lambda i: ys[i]):
        last = places[i] = max(ys[i], last + GAP)
    beyond = max(0.0, last - (HEIGHT - BOTTOM))
    return [place - beyond for place in places]


def _grid(x1: float, x2: float, y1: float, y2: float) -> str:
    return f"<line class='grid' x1='{x1:.1f}' x2='{x2:.1f}' y1='{y1:.1f}' y2='{y2:.1f}'/>"


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {more}>{escape(text)}</text>"
