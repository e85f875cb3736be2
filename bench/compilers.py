"""Every compiler on every model of the zoo and every CPU: flash, RAM, instructions, fidelity, beside the peer's figures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.peers import CMSIS_NN
from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas.type.v1 import measurement_pb2
from tinymlaas_client import AsyncClient, model_format
from tinymlaas_client import figures as _figures
from tinymlaas_client.targets import named_target

MODELS = ("kws", "ic", "vww", "ad", "sww")
TARGETS = ("cortex-m4", "cortex-m3", "cortex-m0plus", "cortex-m7", "cortex-m33", "rv32imc")
ALL_PAIRS = [(model, target) for model in MODELS for target in TARGETS]
# Every model on the CPU of the peer's best figures, and one model on every CPU.
PAIRS = [(model, target) for model, target in ALL_PAIRS if target == "cortex-m4" or model == "kws"]


@dataclass(frozen=True)
class Row:
    """One compiler's module for one model and target; `method` says how the figures were obtained, null means not measured."""

    model: str
    target: str
    compiler: str
    flash_bytes: int | None
    ram_bytes: int | None
    stack_bytes: int | None
    instructions: int | None
    fidelity: str
    method: str


async def measure(client: AsyncClient, zoo: Path, pairs: list[tuple[str, str]], console: Console) -> list[Row]:
    """Build each model for its target with every compiler, and return the verified figures."""
    rows = []
    samples = {model: await client.write_artifact((zoo / model / "samples.npz").read_bytes()) for model in MODELS}
    for model, target in track(pairs, "building", console=console, transient=True):
        path = zoo / model / f"{model}_int8.tflite"
        version = await client.import_model(path.read_bytes(), model, model_format(path), tags=["zoo"])
        device = named_target(target)
        for region in device.memory_regions:
            region.total_bytes = max(
                region.total_bytes, 2 * 1024 * 1024
            )  # figures are wanted for what does not fit, too
        started = await client.create_build(version.name, device, samples_sha256=samples[model])
        build = await client.wait_build(started.name)
        rows += [row(model, target, candidate) for candidate in build.candidates]
    return rows


def row(model: str, target: str, candidate: builds_pb2.Candidate) -> Row:
    """A candidate's figures."""
    compiler = candidate.plugin.rsplit(".", 1)[-1]
    if candidate.state != builds_pb2.Candidate.STATE_SEALED:
        objections = [objection.reason for objection in candidate.verdict.objections]
        reason = candidate.error.message or ", ".join(objections)
        return Row(model, target, compiler, None, None, None, None, f"not built: {reason}", "")
    metrics = measurement_pb2
    figures = {
        name: _figures.find(candidate.measurements, metric)
        for name, metric in (
            ("flash", metrics.METRIC_FLASH_BYTES),
            ("arena", metrics.METRIC_ARENA_BYTES),
            ("stack", metrics.METRIC_STACK_BYTES),
            ("instructions", metrics.METRIC_INSTRUCTIONS),
        )
    }
    value = {name: int(figure.value) if figure else None for name, figure in figures.items()}
    methods = ", ".join(
        f"{name} {metrics.Method.Name(figure.method).removeprefix('METHOD_')}"
        for name, figure in figures.items()
        if figure
    )
    fidelity = _figures.numerics(candidate.numerics)
    return Row(
        model,
        target,
        compiler,
        value["flash"],
        value["arena"],
        value["stack"],
        value["instructions"],
        fidelity,
        methods,
    )


def show(rows: list[Row], console: Console) -> None:
    """Print the table, with ratios to the peer where its figures are known."""
    table = Table(
        "model", "target", "compiler", "flash B", "arena B", "stack B", "instructions", "fidelity", title="Compilers"
    )
    for entry in rows:
        peer = CMSIS_NN.get((entry.model, entry.target))
        table.add_row(
            entry.model,
            entry.target,
            entry.compiler,
            _with_ratio(entry.flash_bytes, peer.flash_bytes if peer else None),
            _with_ratio(entry.ram_bytes, peer.arena_bytes if peer else None),
            _with_ratio(entry.stack_bytes, None),
            _with_ratio(entry.instructions, peer.instructions if peer else None),
            entry.fidelity,
        )
    console.print(table)
    console.print(
        "in brackets: ratio to TFLite Micro + CMSIS-NN on the same CPU (bench/peers.py says how it was measured)"
    )


def write(rows: list[Row], path: Path) -> None:
    """Keep the rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(entry) for entry in rows], indent=1) + "\n", encoding="utf-8")


def _with_ratio(value: int | None, peer: int | None) -> str:
    if value is None:
        return "–"
    return f"{value:,} ({value / peer:.2f})" if peer else f"{value:,}"
