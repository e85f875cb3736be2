"""`tinymlaas optimize`: make a model smaller by recipes, and see what each of them costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from tinymlaas.gateway.v1 import optimizations_pb2
from tinymlaas.registry.v1 import models_pb2
from tinymlaas_client._async_client import AsyncClient
from tinymlaas_client.cli._context import Session, run, to_plain

MAX_RECIPE_BYTES = 1 << 20
RecipeOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--recipe", exists=True, dir_okay=False, help="JSON file with a recipe, or a list of them; repeatable."
    ),
]


def read_recipes(paths: list[Path]) -> list[Any]:
    """The recipes of files that hold one or a list each; ValueError for what is no JSON."""
    recipes: list[Any] = []
    for path in paths:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise ValueError(f"{path} is too large for a recipe")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        recipes += found if isinstance(found, list) else [found]
    return recipes


def optimize_options(quantize: bool, recipes: list[Path] | None, samples: Path | None) -> dict[str, Any] | None:
    """The optimizer's options that the flags stand for, None: no optimizer; ValueError without samples to work with."""
    if not quantize and not recipes:
        return None
    if samples is None:
        raise ValueError("--quantize and --optimize need --samples: an npz with real inputs to calibrate with")
    return {"recipes": read_recipes(recipes)} if recipes else {}


def optimize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="MODEL or MODEL/versions/VERSION, a float model.")],
    samples: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="npz with real inputs, and labels if any.")
    ],
    recipe: RecipeOption = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the samples that may be lost, such as 0.01.")
    ] = None,
    min_snr_db: Annotated[float | None, typer.Option(help="Signal to noise ratio that every output must keep.")] = None,
    picture: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the trade-off here, as SVG.")] = None,
    report: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the whole report here, as JSON.")] = None,
) -> None:
    """Make a float model smaller: quantize, prune, fold. Of several recipes the smallest result within the bound is kept."""
    session: Session = context.obj
    options: dict[str, Any] = {"recipes": read_recipes(recipe)} if recipe else {}
    if max_drop is not None or min_snr_db is not None:
        options["bound"] = {"max_drop": max_drop, "min_snr_db": min_snr_db}

    async def work() -> tuple[optimizations_pb2.OptimizeModelResult, dict[str, bytes]]:
        async with session.connect() as client:
            digest = await client.write_artifact(samples.read_bytes())
            result = await _follow(session, client, model, digest, options)
            wanted = {"report.json", "picture.svg"}
            files = {
                item.name: await client.read_artifact(item.sha256) for item in result.attachments if item.name in wanted
            }
            return result, files

    result, files = run(work())
    told: dict[str, Any] = json.loads(files["report.json"]) if "report.json" in files else {}
    for path, name in ((picture, "picture.svg"), (report, "report.json")):
        if path is not None:
            if name not in files:
                raise ValueError(f"the optimizer made no {name}")
            path.write_bytes(files[name])
    if session.as_json:
        session.print_json({**to_plain(result), "report": told})
        return
    _show(session, result.model_version, told, known=result.cached)
    if picture is not None:
        session.console.print(f"picture: {picture}")


async def _follow(
    session: Session, client: AsyncClient, model: str, samples: str, options: dict[str, Any]
) -> optimizations_pb2.OptimizeModelResult:
    with Progress(console=session.console, transient=True, disable=session.as_json) as bar:
        task = bar.add_task("optimizing", total=1.0)
        async for answer in client.optimize_model(model, samples, options):
            if answer.HasField("result"):
                return answer.result
            fraction = answer.progress.fraction
            bar.update(task, description=answer.progress.step, completed=None if fraction < 0 else fraction)
    raise ValueError("the gateway ended the call without a result; repeat it")


def _show(session: Session, version: models_pb2.ModelVersion, told: dict[str, Any], *, known: bool) -> None:
    if told:
        session.console.print(result_table(told))
        layers = layer_table(told)
        if layers is not None:
            session.console.print(layers)
    session.console.print(f"[green]✓[/] [bold]{version.name}[/]{' (known already)' if known else ''}")


def result_table(told: dict[str, Any]) -> Table:
    """One row for each recipe of a report, the float model first."""
    before = told["before"]
    table = Table(
        "recipe",
        "parameters B",
        "not zero",
        "accuracy",
        "same class",
        "SNR dB",
        "",
        title="Recipes",
        title_justify="left",
    )
    first = next((entry["evaluation"] for entry in told["results"] if entry["evaluation"]), None)
    accuracy = None if first is None else first["accuracy_before"]
    table.add_row("before", f"{before['parameter_bytes']:,}", "", _share(accuracy), "", "", "")
    for index, entry in enumerate(told["results"]):
        name = entry["recipe"]["name"]
        if entry["model"] is None:
            table.add_row(name, "–", "", "", "", "", f"[red]{(entry['error'] or {}).get('reason', '')}[/]")
            continue
        made, found = entry["model"], entry["evaluation"] or {}
        marks = [
            "[bold green]★[/]" if index == told["chosen"] else "",
            "◆" if entry["pareto"] else "",
            "" if entry["within_bound"] else "[yellow]over the bound[/]",
            "held out" if entry["held_out"] else "",
        ]
        snr = entry["snr_db"]
        table.add_row(
            name,
            f"{made['parameter_bytes']:,} ({made['parameter_bytes'] / max(before['parameter_bytes'], 1):.2f})",
            _share(made["nonzero_parameters"] / max(made["parameters"], 1)),
            _share(found.get("accuracy_after")),
            _share(found.get("agreement")),
            "–" if not found else "no noise" if snr is None else f"{snr:.1f}",
            " ".join(mark for mark in marks if mark),
        )
    labelled = f"{told['samples']} samples, {told['labelled']} labelled"
    table.caption = f"{labelled}; ★ taken, ◆ not beaten; held out: measured on samples that no fit had seen"
    return table


def layer_table(told: dict[str, Any]) -> Table | None:
    """What quantizing each layer alone costs, the worst first; None when it was not measured."""
    layers = told["layers"]
    if not layers:
        return None
    table = Table("layer", "operator", "parameters", "SNR dB", "samples lost", title="Only this layer quantized")
    for entry in sorted(layers, key=lambda entry: (entry["snr_db"] is None, entry["snr_db"] or 0.0)):
        snr = "no noise" if entry["snr_db"] is None else f"{entry['snr_db']:.1f}"
        table.add_row(entry["layer"], entry["op"], f"{entry['parameters']:,}", snr, _share(entry["drop"]))
    return table


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
