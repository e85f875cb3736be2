"""Every recipe on the float models of the zoo: size against what is kept, as the optimizer of a suite reports it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tinymlaas_client import AsyncClient, model_format

MODELS = ("kws", "ic", "vww", "ad")
_QUANTIZE: dict[str, Any] = {"step": "quantize"}


def _prune(kind: str, share: float, **fields: Any) -> dict[str, Any]:
    return {"step": "prune", "kind": kind, "share": share, **fields}


_STEPS: dict[str, list[dict[str, Any]]] = {
    "folded only": [],
    "int8, min-max": [_QUANTIZE],
    "int8, entropy": [{**_QUANTIZE, "calibration": "entropy"}],
    "int8, percentile 99.99": [{**_QUANTIZE, "calibration": "percentile", "percentile": 99.99}],
    "int8, one scale a tensor": [{**_QUANTIZE, "per_channel": False}],
    "int8, symmetric activations": [{**_QUANTIZE, "symmetric_activations": True}],
    "int16 activations": [{**_QUANTIZE, "activations": "int16"}],
    "int8, the worst layer float": [{**_QUANTIZE, "mixed": {"max_layers": 1}}],
    "int8, the 2 worst layers int16": [{**_QUANTIZE, "mixed": {"to": "int16", "max_layers": 2}}],
    "int8 weights only": [{"step": "quantize_weights"}],
    "int4 weights only": [{"step": "quantize_weights", "bits": 4}],
    "30 % of weights pruned, int8": [_prune("weights", 0.3), _QUANTIZE],
    "50 % of weights pruned, int8": [_prune("weights", 0.5), _QUANTIZE],
    "50 %, not refitted, int8": [_prune("weights", 0.5, refit=False), _QUANTIZE],
    "12.5 % of channels removed, int8": [_prune("channels", 0.125), _QUANTIZE],
    "25 % of channels removed, int8": [_prune("channels", 0.25), _QUANTIZE],
}
RECIPES = [{"version": 1, "name": name, "steps": steps} for name, steps in _STEPS.items()]


@dataclass(frozen=True)
class Row:
    """One recipe on one model. Accuracy, share of samples with the class of the float model, SNR in dB: null without any.

    `held_out`: weights were fitted to samples, and the figures are of samples that the fit had not seen.
    """

    model: str
    recipe: str
    parameter_bytes: int | None
    of_float: float | None
    not_zero: float | None
    accuracy: float | None
    same_class: float | None
    snr_db: float | None
    held_out: bool


async def measure(client: AsyncClient, zoo: Path, console: Console, pictures: Path | None = None) -> list[Row]:
    """Follow every recipe on every model, and return what the reports say; pictures go to a folder."""
    rows: list[Row] = []
    for model in track(MODELS, "optimizing", console=console, transient=True):
        path = zoo / model / f"{model}_float.onnx"
        version = await client.import_model(path.read_bytes(), f"{model}-float", model_format(path))
        samples = await client.write_artifact((zoo / model / "samples.npz").read_bytes())
        # No bound: every recipe's figures are wanted, whichever is taken.
        options = {"recipes": RECIPES, "bound": {}, "sensitivity": True}
        async for answer in client.optimize_model(version.name, samples, options):
            if answer.HasField("result"):
                files = {item.name: await client.read_artifact(item.sha256) for item in answer.result.attachments}
                told = json.loads(files["report.json"])
                rows += [row(model, told["before"], entry) for entry in told["results"]]
                if pictures is not None:
                    (pictures / f"optimizer-{model}.svg").write_bytes(files["picture.svg"])
    return rows


def row(model: str, before: dict[str, Any], entry: dict[str, Any]) -> Row:
    """One result of a report."""
    made, found = entry["model"], entry["evaluation"] or {}
    return Row(
        model,
        entry["recipe"]["name"],
        made["parameter_bytes"] if made else None,
        round(made["parameter_bytes"] / before["parameter_bytes"], 3) if made else None,
        round(made["nonzero_parameters"] / made["parameters"], 3) if made else None,
        found.get("accuracy_after"),
        found.get("agreement"),
        None if entry["snr_db"] is None else round(entry["snr_db"], 1),
        entry["held_out"],
    )


HEAD = ("model", "recipe", "parameters B", "not zero", "accuracy", "same class", "SNR dB")
CAPTION = "in brackets: of the float model; ◇: measured on samples that the fit of the weights had not seen"


def cells(entry: Row) -> list[str]:
    """A row of the table, in the order of `HEAD`."""
    return [
        entry.model,
        entry.recipe + (" ◇" if entry.held_out else ""),
        "–" if entry.parameter_bytes is None else f"{entry.parameter_bytes:,} ({entry.of_float:.2f})",
        _share(entry.not_zero),
        _share(entry.accuracy),
        _share(entry.same_class),
        "–" if entry.snr_db is None else f"{entry.snr_db:.1f}",
    ]


def table(rows: list[Row]) -> Table:
    """The rows as a table, a block a model."""
    made = Table(*HEAD, title="Optimizer", caption=CAPTION)
    for entry in rows:
        made.add_row(*cells(entry))
    return made


def write(rows: list[Row], path: Path) -> None:
    """Keep the rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(entry) for entry in rows], indent=1) + "\n", encoding="utf-8")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
