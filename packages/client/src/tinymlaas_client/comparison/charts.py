"""Charts as SVG text: a scatter plot with Pareto fronts, and stacked bars. Colours come from CSS variables.

Text is escaped, numbers are rounded, and nothing depends on the time or the machine: the same values give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

STYLE = resources.files("tinymlaas_client.comparison").joinpath("charts.css").read_text(encoding="utf-8")
COLOURS = 7
_WIDTH, _HEIGHT = 620, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 34, 46
_STRIP = 34


@dataclass(frozen=True)
class Point:
    """A mark at (x, y); without `y` it stands in a strip of its own above the plot.

    `group` picks the colour and, with `front`, the points that one dashed line joins; `shape` is circle, square or
    diamond; `title` is shown when pointed at; `label` stands beside the mark.
    """

    x: float
    y: float | None
    group: int
    shape: str
    title: str
    front: bool = False
    hollow: bool = False
    label: str = ""


def scatter(points: Sequence[Point], x_label: str, y_label: str, unmeasured: str = "not measured") -> str:
    """A scatter plot with logarithmic axes as an `<svg>` element; an explaining text when there is no point."""
    if not points:
        return (
            f'<svg viewBox="0 0 {_WIDTH} 60" role="img"><text x="20" y="35" class="soft">nothing to show</text></svg>'
        )
    measured = [point.y for point in points if point.y is not None]
    strip = _STRIP if len(measured) < len(points) else 0
    x_axis = _Axis.of([point.x for point in points], _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis.of(measured or [1.0], _HEIGHT - _BOTTOM, _TOP + strip)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{y_label} by {x_label}")}">']
    for tick in x_axis.ticks:
        at = x_axis.place(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(
            f'<text class="soft" x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{short(tick)}</text>'
        )
    for tick in y_axis.ticks if measured else ():
        at = y_axis.place(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{_WIDTH - _RIGHT}" y2="{at:.1f}"/>')
        parts.append(f'<text class="soft" x="{_LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    if strip:
        parts.append(f'<text class="soft" x="{_LEFT + 4}" y="{_TOP - 12}">{escape(unmeasured)}</text>')
        parts.append(
            f'<line class="grid" x1="{_LEFT}" y1="{_TOP + strip - 8}" x2="{_WIDTH - _RIGHT}" y2="{_TOP + strip - 8}"/>'
        )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    middle = (_TOP + strip + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    parts += [_front_line(points, group, x_axis, y_axis) for group in sorted({point.group for point in points})]
    for point in reversed(points):  # where marks coincide, the first is on top, as in the legend
        y = _TOP + strip / 2 - 4 if point.y is None else y_axis.place(point.y)
        parts.append(_mark(point, x_axis.place(point.x), y))
    parts.append("</svg>")
    return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart: a name, its parts in order, and the text behind the bar."""

    name: str
    parts: tuple[float, ...]
    note: str


def bars(rows: Sequence[Bar], legend: Sequence[str], title: str) -> str:
    """Horizontal stacked bars as an `<svg>` element; every part has the legend's place as its colour."""
    step, names, width = 22, 250, 900
    room = width - names - 190
    most = max((sum(row.parts) for row in rows), default=0) or 1
    height = 64 + step * len(rows)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    parts.append(f'<text x="8" y="20" font-weight="600">{escape(title)}</text>')
    at = 8.0
    for index, name in enumerate(legend):
        parts.append(f'<rect x="{at:.0f}" y="32" width="11" height="11" fill="var(--c{index % COLOURS})"/>')
        parts.append(f'<text class="soft" x="{at + 16:.0f}" y="42">{escape(name)}</text>')
        at += 34 + 6.6 * len(name)
    for number, row in enumerate(rows):
        y = 56 + step * number
        parts.append(f'<text x="{names - 8}" y="{y + 14}" text-anchor="end">{escape(clip(row.name, 38))}</text>')
        x = float(names)
        for index, value in enumerate(row.parts):
            wide = value / most * room
            if wide > 0:
                tip = f"<title>{escape(row.name)}: {value:,.0f} {escape(legend[index])}</title>"
                parts.append(
                    f'<rect x="{x:.1f}" y="{y + 3}" width="{wide:.1f}" height="{step - 7}" '
                    f'fill="var(--c{index % COLOURS})">{tip}</rect>'
                )
            x += wide
        parts.append(f'<text class="soft" x="{x + 7:.1f}" y="{y + 14}">{escape(row.note)}</text>')
    parts.append("</svg>")
    return "\n".join(parts)


def stacked(charts: Sequence[str]) -> str:
    """Charts below each other as one `<svg>` element, as wide as the widest."""
    sizes = [_view(chart) for chart in charts]
    parts, at = [], 0
    for chart, (wide, high) in zip(charts, sizes, strict=True):
        parts.append(chart.replace("<svg", f'<svg x="0" y="{at}" width="{wide}" height="{high}"', 1))
        at += high
    return "\n".join([f'<svg viewBox="0 0 {max(wide for wide, _ in sizes)} {at}">', *parts, "</svg>"])


def _view(svg: str) -> tuple[int, int]:
    wide, high = svg.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split()
    return int(wide), int(high)


def standalone(svg: str) -> str:
    """An `<svg>` element as a file of its own, with its colours for light and dark surroundings and a background."""
    head, rest = svg.split(">", 1)
    wide, high = _view(svg)
    opened = head.replace("<svg", f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}"', 1)
    paper = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    return f"{opened}><style>{STYLE}</style>{paper}{rest}\n"


def short(value: float) -> str:
    """A number as on an axis: 1,500 is "1.5k", 2,000,000 is "2M"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def clip(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def mark(
    shape: str, x: float, y: float, group: int, *, hollow: bool = False, title: str = "", front: bool = False
) -> str:
    """One mark of a plot or its legend."""
    colour = f"var(--c{group % COLOURS})"
    fill = "var(--paper)" if hollow else colour
    ring = ' stroke-width="3"' if front and hollow else ' stroke-width="2"'
    style = f'fill="{fill}" stroke="{colour}"{ring}'
    tip = f"<title>{escape(title)}</title>" if title else ""
    r = 6.5 if front else 5.0
    if shape == "square":
        return f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}" {style}>{tip}</rect>'
    if shape == "diamond":
        d = r + 2
        path = f"M{x:.1f} {y - d:.1f}L{x + d:.1f} {y:.1f}L{x:.1f} {y + d:.1f}L{x - d:.1f} {y:.1f}Z"
        return f'<path d="{path}" {style}>{tip}</path>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" {style}>{tip}</circle>'


def _mark(point: Point, x: float, y: float) -> str:
    drawn = mark(point.shape, x, y, point.group, hollow=point.hollow, title=point.title, front=point.front)
    if not point.label:
        return drawn
    left = x > _WIDTH - 120
    at, anchor = (x - 11, "end") if left else (x + 11, "start")
    return f'{drawn}<text class="soft" x="{at:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{escape(point.label)}</text>'


def _front_line(points: Sequence[Point], group: int, x_axis: _Axis, y_axis: _Axis) -> str:
    chosen = sorted((p.x, p.y) for p in points if p.front and p.group == group and p.y is not None)
    if len(chosen) < 2:
        return ""
    path = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in chosen)
    return f'<polyline class="front" stroke="var(--c{group % COLOURS})" points="{path}"/>'


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis from `low` to `high`, drawn between two coordinates."""

    low: float
    high: float
    begin: float
    end: float
    ticks: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], begin: float, end: float) -> _Axis:
        """An axis that has room around positive values, with ticks at 1, 2 and 5 times powers of ten."""
        low, high = max(min(values), 1e-9), max(*values, 1e-9) if len(values) > 1 else max(values[0], 1e-9)
        margin = max((high / low) ** 0.08, 1.12)
        low, high = low / margin, high * margin
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        fine = high / low < 12
        steps: tuple[float, ...] = (1, 1.5, 2, 3, 4, 5, 7) if high / low < 4 else (1, 2, 3, 5) if fine else (1, 2, 5)
        if high / low > 2000:
            steps = (1,)
        ticks = tuple(step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high)
        return cls(low, high, begin, end, ticks)

    def place(self, value: float) -> float:
        """Where a value lies."""
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)
