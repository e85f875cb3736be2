"""The report as a picture: size against what is kept, one dot a recipe, and what quantizing each layer costs.

A self-contained SVG: no script, no font, no reference to anything; equal reports give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from tinymlaas_optimizer.report import Report, Result
from tinymlaas_optimizer.sensitivity import Sensitivity

WIDTH: Final = 760
_MARGIN: Final = 24
_PANEL_HEIGHT: Final = 250
_ROW: Final = 18
MAX_BARS: Final = 64
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#1f2933}.t{font-size:15px;font-weight:600}.s{fill:#616e7c;font-size:11px}"
    ".n{font-size:10px;font-weight:600;fill:#fff;text-anchor:middle}.e{text-anchor:end}.m{text-anchor:middle}"
    ".g{stroke:#e4e7eb}.a{stroke:#9aa5b1}.f{fill:none;stroke:#0b7285;stroke-width:1.5;stroke-dasharray:4 3}"
    ".w{font-weight:600}"
)
_BEFORE, _OTHER, _PARETO, _TAKEN, _OUT = "#616e7c", "#7b93a8", "#0b7285", "#c2410c", "#c3cad3"
# Title, what is shown of a result, and its value before.
Panel = tuple[str, Callable[[Result], float | None], float | None]
# Signal to noise ratios beyond this are drawn at it.
_QUIET: Final = 80.0


def draw(report: Report) -> bytes:
    """The SVG of a report."""
    made = [(index + 1, result) for index, result in enumerate(report.results) if result.size is not None]
    parts: list[str] = []
    y = 30
    taken = report.taken
    assert taken.size is not None
    parts.append(_text(_MARGIN, y, f"Optimized with “{taken.recipe.name}”", "t"))
    y += 20
    shares = taken.size.parameter_bytes / max(report.before.parameter_bytes, 1)
    line = f"parameters {_size(report.before.parameter_bytes)} → {_size(taken.size.parameter_bytes)} ({shares:.0%})"
    if report.samples:
        line += f" · {report.samples} samples, {report.labelled} labelled"
    parts.append(_text(_MARGIN, y, line, "s"))
    y += 22
    kept = _kept_panel(report)
    accuracy = kept is not None
    panels: list[Panel] = [kept] if kept is not None else []
    if report.samples:
        panels.append(("signal to noise ratio, dB", _snr, None))
    if panels:
        gap = 60
        width = (WIDTH - 2 * _MARGIN - gap * (len(panels) - 1)) / len(panels)
        for place, (title, value, before) in enumerate(panels):
            parts += _panel(_MARGIN + place * (width + gap), y, width, title, made, report, value, before)
        y += _PANEL_HEIGHT + 50
    parts.append(_legend_head(y, accuracy=accuracy))
    y += 8
    for number, result in enumerate(report.results, 1):
        y += _ROW
        parts.append(_legend(y, number, result, report, accuracy=accuracy))
    y += 34
    if report.layers:
        parts += _bars(y, report.layers)
        y += 26 + _ROW * min(len(report.layers), MAX_BARS) + (_ROW if len(report.layers) > MAX_BARS else 0)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" role="img">'
    title = "<title>Size against what is kept, for each recipe</title>"
    body = "\n".join(parts)
    return (
        f'{head}{title}<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'.encode()
    )


def _accuracy(result: Result) -> float | None:
    return None if result.evaluation is None else result.evaluation.accuracy_after


def _agreement(result: Result) -> float | None:
    return None if result.evaluation is None else result.evaluation.agreement


def _kept_panel(report: Report) -> Panel | None:
    """Accuracy where most samples have labels, else the share that keeps its class; None where there are no classes."""
    evaluation = report.taken.evaluation
    if evaluation is None or evaluation.agreement is None:
        return None
    if evaluation.accuracy_before is not None and 2 * evaluation.labelled > evaluation.samples:
        return "accuracy on the labelled samples", _accuracy, evaluation.accuracy_before
    return "same class as the float model", _agreement, 1.0


def _snr(result: Result) -> float | None:
    return None if result.evaluation is None else min(result.snr_db if result.snr_db is not None else _QUIET, _QUIET)


def _panel(
    x: float,
    y: float,
    width: float,
    title: str,
    made: Sequence[tuple[int, Result]],
    report: Report,
    value: Callable[[Result], float | None],
    before: float | None,
) -> list[str]:
    dots = [
        (float(result.size.parameter_bytes), found, number, result)
        for number, result in made
        if result.size is not None and (found := value(result)) is not None
    ]
    xs = [dot[0] for dot in dots] + [float(report.before.parameter_bytes)]
    ys = [dot[1] for dot in dots] + ([before] if before is not None else [])
    left, right, top, bottom = x + 40, x + width, y + 24, y + _PANEL_HEIGHT
    share = value is not _snr
    x_ticks = _ticks(0.0, max(xs) / 1024 * 1.02)
    low, high = min(ys), max(ys)
    room = max(high - low, 0.05 if share else 3.0) * 0.12
    if share:
        high = min(high + room, 1.0)
        low = max(min(low - room, high - 0.05), 0.0)
    else:
        low, high = low - room, high + room
    y_ticks = _ticks(low, high)
    first, last = y_ticks[0], y_ticks[-1]

    def across(size: float) -> float:
        return left + (right - left) * (size / 1024) / x_ticks[-1]

    def up(level: float) -> float:
        return bottom - (bottom - top) * (level - first) / (last - first)

    parts = [_text(x, y + 8, title, "w")]
    for tick in y_ticks:
        parts.append(_line(left, up(tick), right, up(tick), "g"))
        parts.append(_text(left - 6, up(tick) + 4, f"{tick:.0%}" if share else f"{tick:g}", "s e"))
    for tick in x_ticks:
        parts.append(_text(across(tick * 1024), bottom + 16, f"{tick:g}", "s m"))
    parts += [_line(left, bottom, right, bottom, "a"), _text(right, bottom + 32, "parameters, KiB", "s e")]
    if before is not None:
        at = across(report.before.parameter_bytes), up(before)
        parts.append(
            f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="6" fill="none" stroke="{_BEFORE}" stroke-width="2"/>'
        )
        parts.append(_text(at[0], at[1] + (20 if at[1] < top + 14 else -11), "before", "s e"))
    best = sorted((size, -found) for size, found, _, result in dots if result.within_bound or report.bound is None)
    edge, top_found = [], -math.inf
    for size, negative in best:
        if -negative > top_found:
            top_found = -negative
            edge.append((across(size), up(top_found)))
    if len(edge) > 1:
        parts.append(f'<polyline class="f" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in edge)}"/>')
    return parts + _dots([(across(size), up(found), number, result) for size, found, number, result in dots], report)


def _dots(dots: Sequence[tuple[float, float, int, Result]], report: Report) -> list[str]:
    """Numbered dots; those that would cover each other stand side by side."""
    parts: list[str] = []
    placed: list[tuple[float, float]] = []
    # The one taken comes first, so that it stands where it belongs.
    for x, y, number, result in sorted(dots, key=lambda dot: (dot[3] is not report.taken, dot[2])):
        spot = x, y
        tries = 0
        while any(math.hypot(spot[0] - a, spot[1] - b) < 16 for a, b in placed) and tries < 40:
            tries += 1
            ring, turn = 17.0 * (1 + tries // 8), tries % 8
            spot = x + ring * math.cos(turn * math.pi / 4), y + ring * math.sin(turn * math.pi / 4)
        placed.append(spot)
        colour = _colour(result, report)
        if tries:
            parts.insert(0, _line(x, y, spot[0], spot[1], "a"))
        parts.append(f'<circle cx="{spot[0]:.1f}" cy="{spot[1]:.1f}" r="8" fill="{colour}"/>')
        parts.append(_text(spot[0], spot[1] + 3.5, str(number), "n"))
    return parts


def _colour(result: Result, report: Report) -> str:
    if result is report.taken:
        return _TAKEN
    if not result.within_bound:
        return _OUT
    return _PARETO if result.pareto else _OTHER


_COLUMNS: Final = (("parameters", 420), ("not zero", 480), ("accuracy", 540), ("same class", 606), ("SNR dB", 660))
_OF_CLASSES: Final = ("accuracy", "same class")


def _legend_head(y: float, *, accuracy: bool) -> str:
    heads = [_text(_MARGIN + 24, y, "recipe", "s")]
    heads += [_text(x, y, title, "s e") for title, x in _COLUMNS if accuracy or title not in _OF_CLASSES]
    return "".join(heads)


def _legend(y: float, number: int, result: Result, report: Report, *, accuracy: bool) -> str:
    colour = _colour(result, report)
    parts = [
        f'<circle cx="{_MARGIN + 8}" cy="{y - 4}" r="8" fill="{colour}"/>',
        _text(_MARGIN + 8, y - 0.5, str(number), "n"),
        _text(_MARGIN + 24, y, _short(result.recipe.name, 46), "w" if result is report.taken else ""),
    ]
    if result.size is None:
        reason = str((result.error or {}).get("reason", ""))
        return "".join([*parts, _text(_COLUMNS[0][1], y, reason, "s e")])
    found, same, snr = _accuracy(result), _agreement(result), result.snr_db
    values = [
        _size(result.size.parameter_bytes),
        f"{result.size.nonzero_parameters / max(result.size.parameters, 1):.0%}",
        "–" if found is None else f"{found:.1%}",
        "–" if same is None else f"{same:.1%}",
        "–" if result.evaluation is None else "no noise" if snr is None else f"{snr:.1f}",
    ]
    parts += [
        _text(x, y, value, "e")
        for (title, x), value in zip(_COLUMNS, values, strict=True)
        if accuracy or title not in _OF_CLASSES
    ]
    mark = "taken" if result is report.taken else "" if result.within_bound else "over the bound"
    return "".join([*parts, _text(_COLUMNS[-1][1] + 10, y, mark, "s")])


def _bars(y: float, layers: Sequence[Sensitivity]) -> list[str]:
    """A bar a layer: noise at the output, in dB below the signal, when only this layer is quantized; short is bad."""
    parts = [_text(_MARGIN, y, "SNR at the output, dB, when only this layer is quantized (short bars: sensitive)", "w")]
    left, right = 200.0, 600.0
    levels = [layer.snr_db for layer in layers if layer.snr_db is not None]
    most = max([*levels, 1.0])
    worst = min(levels, default=None)
    for layer in layers[:MAX_BARS]:
        y += _ROW
        level = most if layer.snr_db is None else max(layer.snr_db, 0.0)
        length = max((right - left) * level / most, 1.0)
        colour = _TAKEN if layer.snr_db is not None and layer.snr_db == worst else _OTHER
        label = "no noise" if layer.snr_db is None else f"{layer.snr_db:.1f}"
        if layer.drop:
            label += f" · {layer.drop:.1%} of the samples lost"
        parts.append(_text(left - 8, y + 4, _short(layer.layer, 26), "e"))
        parts.append(f'<rect x="{left}" y="{y - 6:.1f}" width="{length:.1f}" height="12" rx="2" fill="{colour}"/>')
        parts.append(_text(left + length + 6, y + 4, label, "s"))
    if len(layers) > MAX_BARS:
        parts.append(_text(left, y + _ROW + 4, f"and {len(layers) - MAX_BARS} more", "s"))
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at or below `low` to at or above `high`."""
    span = max(high - low, 1e-6)
    raw = span / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(step * place, 10) for place in range(first, max(last, first + 1) + 1)]


def _size(count: int) -> str:
    return f"{count / 1024:.1f} KiB"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(x: float, y: float, text: str, kind: str) -> str:
    # Names come with requests: what is no character of XML is left out.
    clean = "".join(letter for letter in text if letter.isprintable())
    return f'<text x="{x:.1f}" y="{y:.1f}"{f" class={kind!r}" if kind else ""}>{escape(clean)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'
