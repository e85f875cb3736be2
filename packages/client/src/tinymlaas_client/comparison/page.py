"""The comparison as one HTML page that needs nothing else: no network, no script; light and dark."""

from __future__ import annotations

from html import escape
from importlib import resources

from tinymlaas_client.comparison.charts import COLOURS, STYLE, Point, mark, scatter
from tinymlaas_client.comparison.peers import peer_method, peer_name, peer_of
from tinymlaas_client.comparison.race import Comparison, Entry, Figure
from tinymlaas_client.figures import METHOD_NAMES

COLUMNS = (("flash", "flash", " B"), ("ram", "arena + stack", " B"), ("instructions", "instructions", ""))
_SHAPES = ("circle", "square")
_STYLE = resources.files("tinymlaas_client.comparison").joinpath("page.css").read_text(encoding="utf-8")


def page(comparison: Comparison) -> str:
    """The page as text."""
    colours = {target: index for index, target in enumerate(comparison.targets())}
    compilers = sorted({entry.compiler for entry in comparison.entries})
    shapes = {name: _SHAPES[index % len(_SHAPES)] for index, name in enumerate(reversed(compilers))}
    plots = "".join(
        f"<figure><figcaption>{title}</figcaption>{_plot(_points(comparison, name, colours, shapes), label)}</figure>"
        for name, title, label in (
            ("flash", "Flash against instructions", "flash of the module, bytes"),
            ("ram", "RAM against instructions", "arena and stack, bytes"),
        )
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(comparison.model)}: compilers compared</title><style>{STYLE}{_STYLE}</style></head>
<body><main>
<h1>{escape(comparison.model)}: compilers compared</h1>
<p class="soft">{escape(comparison.version)} · model file <code>{escape(comparison.sha256)}</code></p>
<p>{_summary(comparison)}</p>
<h2>Where each module stands</h2>
<div class="legend">{_legend(comparison, colours, shapes)}</div>
<div class="plots">{plots}</div>
<h2>Every figure</h2>
<div class="wide"><table><thead><tr><th>compiler</th>{"".join(f"<th>{title}</th>" for _, title, _ in COLUMNS)}
<th>cycles</th><th>accuracy</th><th class="text">fidelity</th><th class="text">module</th></tr></thead>
{"".join(_target_rows(comparison, target, colours[target]) for target in comparison.targets())}</table></div>
<p class="soft">◆ not beaten in flash, RAM and instructions at once by another module for the same target. Beside each figure
stands how it was obtained: <b>sim</b> seen while a simulated CPU or the interpreter executed the module, <b>linked</b> read from
the image or from the checked memory certificate, <b>est</b> computed from documented costs. A dash: nobody measured it.</p>
{_peer_note(comparison)}</main></body></html>
"""


def _plot(points: list[Point], label: str) -> str:
    return scatter(points, label, "instructions per inference", "instructions not measured")


def _points(comparison: Comparison, metric: str, colours: dict[str, int], shapes: dict[str, str]) -> list[Point]:
    points = []
    labels = _labels(comparison, metric)
    for index, entry in enumerate(comparison.entries):
        across = entry.value(metric)
        if across is None:
            continue
        title = f"{entry.target}, {entry.label}: {_plain(entry)}"
        y = entry.value("instructions")
        shape, label = shapes[entry.compiler], labels.get(index, "")
        points.append(Point(across, y, colours[entry.target], shape, title, front=entry.pareto, label=label))
    for target, peer in comparison.peers().items():
        across = peer.flash_bytes if metric == "flash" else peer.arena_bytes
        memory = f"{peer.flash_bytes:,} B flash, {peer.arena_bytes:,} B arena"
        title = f"{target}, {peer_name()}: {memory}, {peer.instructions:,} instructions"
        points.append(Point(across, peer.instructions, colours[target], "diamond", title, hollow=True))
    return points


def _labels(comparison: Comparison, metric: str) -> dict[int, str]:
    """Name each target once, at its fastest module; targets whose names would run into each other share one label."""
    spots: list[tuple[int, float, float, list[str]]] = []
    for target in comparison.targets():
        own = [
            (y, x, index)
            for index, entry in enumerate(comparison.entries)
            if entry.target == target
            and (y := entry.value("instructions")) is not None
            and (x := entry.value(metric)) is not None
        ]
        if not own:
            continue
        y, x, index = min(own)
        near = next((spot for spot in spots if abs(x / spot[1] - 1) < 0.15 and abs(y / spot[2] - 1) < 0.05), None)
        if near is None:
            spots.append((index, x, y, [target]))
        else:
            near[3].append(target.removeprefix("cortex-"))
    return {index: ", ".join(names) for index, _, _, names in spots}


def _plain(entry: Entry) -> str:
    return ", ".join(f"{entry.figures[name].value:,.0f} {title}" for name, title, _ in COLUMNS if name in entry.figures)


def _summary(comparison: Comparison) -> str:
    sealed = [entry for entry in comparison.entries if entry.state == "sealed"]
    unbeaten = sum(entry.pareto for entry in sealed)
    text = (
        f"{len(sealed)} sealed modules for {len(comparison.targets())} targets, {unbeaten} of them not beaten "
        "by another for their target."
    )
    own = [entry for entry in sealed if entry.peer_cpu == entry.target and "instructions" in entry.ratios]
    for target in dict.fromkeys(entry.target for entry in own):
        best = min((entry for entry in own if entry.target == target), key=lambda entry: entry.ratios["instructions"])
        parts = [f"{best.ratios[name]:.2f} × {title}" for name, title, _ in COLUMNS if name in best.ratios]
        text += f" On {escape(target)} the fastest needs {', '.join(parts)} of {escape(peer_name())}."
    return text


def _legend(comparison: Comparison, colours: dict[str, int], shapes: dict[str, str]) -> str:
    def item(drawn: str, text: str) -> str:
        return f'<span><svg width="20" height="20" viewBox="0 0 20 20">{drawn}</svg>{escape(text)}</span>'

    items = [item(mark("circle", 10, 10, colour), target) for target, colour in colours.items()]
    items += [item(_plain_mark(shape), compiler) for compiler, shape in sorted(shapes.items())]
    if comparison.peers():
        items.append(item(_plain_mark("diamond", hollow=True), peer_name()))
    items.append(
        item(
            '<line x1="0" y1="10" x2="20" y2="10" stroke="var(--soft)" stroke-dasharray="4 3"/>',
            "Pareto front of a target",
        )
    )
    return "".join(items)


def _plain_mark(shape: str, *, hollow: bool = False) -> str:
    return mark(shape, 10, 10, 0, hollow=hollow).replace("var(--c0)", "var(--soft)")


def _target_rows(comparison: Comparison, target: str, colour: int) -> str:
    swatch = f'<span class="swatch" style="background: var(--c{colour % COLOURS})"></span>'
    rows = [f'<tbody><tr><td colspan="8">{swatch}<b>{escape(target)}</b></td></tr>']
    for entry in (each for each in comparison.entries if each.target == target):
        name = escape(entry.label) + (" ◆" if entry.pareto else "")
        if entry.state != "sealed":
            rows.append(
                f'<tr><td class="name">{name}</td><td colspan="7" class="text bad">{entry.state}: {escape(entry.note)}</td></tr>'
            )
            continue
        cells = "".join(f"<td>{_cell(entry, key, unit)}</td>" for key, _, unit in COLUMNS)
        rows.append(
            f'<tr class="{"front" if entry.pareto else ""}"><td class="name">{name}</td>{cells}'
            f"<td>{_figure(entry.figures.get('cycles'), '')}</td><td>{_share(entry.figures.get('accuracy'))}</td>"
            f'<td class="text">{escape(entry.fidelity)}</td><td class="text"><code>{escape(entry.module[:16])}</code></td></tr>'
        )
    peer = peer_of(comparison.peer_model, target)
    if peer is not None:
        where = "" if peer.cpu == target else f" on {peer.cpu}"
        rows.append(
            f'<tr class="peer"><td>{escape(peer_name())}{escape(where)}</td><td>{peer.flash_bytes:,} B</td>'
            f"<td>{peer.arena_bytes:,} B <small>arena</small></td><td>{peer.instructions:,}</td>"
            '<td>–</td><td>–</td><td class="text">–</td><td></td></tr>'
        )
    return "".join(rows) + "</tbody>"


def _cell(entry: Entry, name: str, unit: str) -> str:
    ratio = entry.ratios.get(name)
    shown = _figure(entry.figures.get(name), unit)
    if ratio is None:
        return shown
    colour = "good" if ratio <= 1 else "bad"
    return f'{shown} <span class="{colour}">{ratio:.2f} ×</span>'


def _figure(figure: Figure | None, unit: str) -> str:
    if figure is None:
        return "–"
    return f"{figure.value:,.0f}{unit} <small>{METHOD_NAMES.get(figure.method, figure.method)}</small>"


def _share(figure: Figure | None) -> str:
    return (
        "–" if figure is None else f"{figure.value:.1%} <small>{METHOD_NAMES.get(figure.method, figure.method)}</small>"
    )


def _peer_note(comparison: Comparison) -> str:
    if not any(entry.ratios for entry in comparison.entries):
        return ""
    return (
        f'<p class="soft">Ratios are to {escape(peer_name())} (program, kernels and model in its flash; its arena without its '
        f"stack): {escape(peer_method())}. Where it was not measured on a CPU, the CPU named in its row stands in.</p>"
    )
