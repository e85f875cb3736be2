"""What the compilers make of what the optimizer makes: recipes on float models of the zoo, built for a Cortex-M4."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.compilers import NATIVE
from tinymlaas_client import AsyncClient, model_format
from tinymlaas_client.comparison import entry_of
from tinymlaas_client.targets import named_target

OTHER = "io.tinymlaas.compiler-tflm"
TARGET = "cortex-m4"
# What the ratios are to.
WHOLE = "int8"
_QUANTIZE: dict[str, Any] = {"step": "quantize"}


def _pruned(share: float) -> list[dict[str, Any]]:
    return [{"step": "prune", "kind": "weights", "share": share}, _QUANTIZE]


_PRUNED = {
    WHOLE: [_QUANTIZE],
    "50 % of weights pruned, int8": _pruned(0.5),
    "80 % of weights pruned, int8": _pruned(0.8),
    "90 % of weights pruned, int8": _pruned(0.9),
}
_OTHERS: dict[str, list[dict[str, Any]]] = {
    "25 % of channels, multiple of 8, int8": [
        {"step": "prune", "kind": "channels", "share": 0.25, "multiple_of": 8},
        _QUANTIZE,
    ],
    "int8, one scale a tensor": [{**_QUANTIZE, "per_channel": False}],
    "folded only (float)": [],
    "int8, the worst layer float": [{**_QUANTIZE, "mixed": {"max_layers": 1}}],
    "int8, the worst layer int16": [{**_QUANTIZE, "mixed": {"to": "int16", "max_layers": 1}}],
    "int16 activations": [{**_QUANTIZE, "activations": "int16"}],
    "int8 weights only": [{"step": "quantize_weights"}],
    "int4 weights only": [{"step": "quantize_weights", "bits": 4}],
}
RECIPES = {"kws": _PRUNED | _OTHERS, "ad": _PRUNED}


@dataclass(frozen=True)
class Row:
    """One recipe on one model: of compiler-tvm flash, arena and instructions, of compiler-tflm flash; null: refused (`note`).

    Ratios are to the row `int8` of the model; `accuracy` is that of the built module on the labelled samples, of compiler-tvm's
    or where that is refused of compiler-tflm's.
    """

    model: str
    recipe: str
    parameter_bytes: int
    not_zero: float
    flash_bytes: int | None
    arena_bytes: int | None
    instructions: int | None
    accuracy: float | None
    other_flash_bytes: int | None
    note: str = ""
    flash_ratio: float | None = None
    instructions_ratio: float | None = None


async def measure(
    client: AsyncClient,
    zoo: Path,
    console: Console,
    chosen: Collection[tuple[str, str]] = (),
    kept: Sequence[Row] = (),
) -> list[Row]:
    """Follow each recipe, build the result with both compilers, and return their figures.

    With `chosen` (model, recipe) only those are measured; the other rows are those of `kept`.
    """
    known = {(row.model, row.recipe): row for row in kept}
    rows: list[Row] = []
    for model, recipes in RECIPES.items():
        wanted = [name for name in recipes if not chosen or (model, name) in chosen]
        if not wanted:
            rows += [row for row in kept if row.model == model]
            continue
        path = zoo / model / f"{model}_float.onnx"
        version = await client.import_model(path.read_bytes(), f"{model}-float", model_format(path))
        samples = await client.write_artifact((zoo / model / "samples.npz").read_bytes())
        whole: Row | None = None
        for name, steps in recipes.items():
            if name not in wanted:
                made = known[model, name]
                whole = whole or made
                rows.append(made)
                continue
            made = await _one(client, model, version.name, samples, name, steps)
            whole = whole or made
            rows.append(_beside(made, whole))
            console.print(*cells(rows[-1]), made.note, sep=" | ")
    return rows


async def _one(
    client: AsyncClient, model: str, version: str, samples: str, name: str, steps: Sequence[dict[str, Any]]
) -> Row:
    options = {"recipes": [{"version": 1, "name": name, "steps": list(steps)}], "bound": {}, "sensitivity": False}
    result = None
    async for answer in client.optimize_model(version, samples, options):
        if answer.HasField("result"):
            result = answer.result
    assert result is not None
    files = {item.name: await client.read_artifact(item.sha256) for item in result.attachments}
    (entry,) = json.loads(files["report.json"])["results"]
    size = entry["model"]
    device = named_target(TARGET)
    for region in device.memory_regions:  # figures are wanted for what does not fit, too
        region.total_bytes = max(region.total_bytes, 2 * 1024 * 1024)
    started = await client.create_build(
        result.model_version.name, device, plugins=[NATIVE, OTHER], samples_sha256=samples
    )
    build = await client.wait_build(started.name)
    built = {each.compiler: each for each in (entry_of(TARGET, device.cpu, one) for one in build.candidates)}

    def figure(plugin: str, wanted: str) -> float | None:
        found = built.get(plugin.rpartition(".")[2])
        return found.value(wanted) if found is not None and found.state == "sealed" else None

    def whole(plugin: str, wanted: str) -> int | None:
        value = figure(plugin, wanted)
        return None if value is None else int(value)

    return Row(
        model,
        name,
        size["parameter_bytes"],
        round(size["nonzero_parameters"] / size["parameters"], 3),
        whole(NATIVE, "flash"),
        whole(NATIVE, "arena"),
        whole(NATIVE, "instructions"),
        figure(OTHER, "accuracy") if figure(NATIVE, "accuracy") is None else figure(NATIVE, "accuracy"),
        whole(OTHER, "flash"),
        "; ".join(f"{each.compiler}: {each.note[:160]}" for each in built.values() if each.state != "sealed"),
    )


def _beside(made: Row, whole: Row) -> Row:
    def ratio(mine: int | None, its: int | None) -> float | None:
        return round(mine / its, 2) if mine and its else None

    fields = asdict(made) | {
        "flash_ratio": ratio(made.flash_bytes, whole.flash_bytes),
        "instructions_ratio": ratio(made.instructions, whole.instructions),
    }
    return Row(**fields)


HEAD = (
    "model", "recipe", "parameters B", "not zero", "accuracy", "compiler-tvm: flash B", "arena B", "instructions",
    "compiler-tflm: flash B",
)  # fmt: skip


def cells(entry: Row) -> list[str]:
    """A row of the table, in the order of `HEAD`."""
    return [
        entry.model,
        entry.recipe,
        f"{entry.parameter_bytes:,}",
        f"{entry.not_zero:.0%}",
        "–" if entry.accuracy is None else f"{entry.accuracy:.0%}",
        _count(entry.flash_bytes, entry.flash_ratio),
        _count(entry.arena_bytes),
        _count(entry.instructions, entry.instructions_ratio),
        _count(entry.other_flash_bytes),
    ]


def table(rows: Sequence[Row]) -> Table:
    """The rows as a table."""
    made = Table(*HEAD, title="What compilers make of recipes, Cortex-M4", caption="in brackets: of the model in int8")
    for entry in rows:
        made.add_row(*cells(entry))
    return made


def read(path: Path) -> list[Row]:
    """The rows that were kept."""
    return [Row(**entry) for entry in json.loads(path.read_text("utf-8"))]


def write(rows: Sequence[Row], path: Path) -> None:
    """Keep the rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(entry) for entry in rows], indent=1) + "\n", encoding="utf-8")


def _count(value: int | None, ratio: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if ratio is None else f"{value:,} ({ratio:.2f})"
