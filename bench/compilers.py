"""Every compiler on every model of the zoo and every CPU: flash, RAM, instructions, fidelity, accuracy, and the peer's figures."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.goals import ModelFacts, goals, model_facts
from bench.peers import peer_of
from tinymlaas_client import AsyncClient, model_format
from tinymlaas_client.comparison import Entry, entry_of
from tinymlaas_client.targets import named_target, target_names

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("kws", "ic", "vww", "ad", "sww")
# The float files of four of them, for a CPU with a floating-point unit; the peer's figures are of int8.
FLOAT_MODELS = ("kws-float", "ic-float", "vww-float", "ad-float")
PEER_MODELS = ("kws", "ic", "vww", "ad")
ORDER = ("cortex-m4", "cortex-m3", "cortex-m0plus", "cortex-m7", "cortex-m33", "cortex-m55", "rv32imc")
TARGETS = tuple(name for name in ORDER if name in target_names())
OBJECTIVES = ("latency", "flash", "ram")
AT_ONCE = 2
NATIVE = "io.tinymlaas.compiler-tvm"
# Every model on the CPU of the peer's best figures, and one model on every CPU.
PAIRS = [(model, target) for model in MODELS for target in TARGETS if target == "cortex-m4" or model == "kws"]
FLOAT_PAIRS = [(model, "cortex-m4") for model in FLOAT_MODELS]
ALL_PAIRS = [(model, target) for target in TARGETS for model in MODELS]


@dataclass(frozen=True)
class Row:
    """One compiler's module for one model and target; `method` says how the figures were obtained, null means not measured.

    `ram_bytes` is the arena. Ratios are to TFLite Micro + CMSIS-NN on `peer_cpu`, of RAM as arena and stack to its arena.
    """

    model: str
    target: str
    compiler: str
    flash_bytes: int | None
    ram_bytes: int | None
    stack_bytes: int | None
    instructions: int | None
    fidelity: str
    method: str
    objective: str = "balanced"
    estimated_cycles: int | None = None
    accuracy: float | None = None
    weights_bytes: int = 0
    live_bytes: int = 0
    peer_cpu: str = ""
    flash_ratio: float | None = None
    ram_ratio: float | None = None
    instructions_ratio: float | None = None


def model_file(zoo: Path, model: str) -> Path:
    """The model's file in a form that both compilers take."""
    name, _, form = model.partition("-")
    return zoo / name / f"{name}_{form or 'int8'}.tflite"


async def measure(
    client: AsyncClient,
    zoo: Path,
    pairs: Sequence[tuple[str, str]],
    console: Console,
    objective: str = "balanced",
    plugins: Sequence[str] = (),
    kept: Path | None = None,
) -> list[Row]:
    """Build each model for its target with every compiler, or the given ones, and return the verified figures.

    After each build the rows are merged into the file `kept`, so a run that was cut leaves what it measured.
    """
    rows: list[Row] = []
    folders = {model: zoo / model.partition("-")[0] for model, _ in pairs}
    samples = {
        model: await client.write_artifact((folder / "samples.npz").read_bytes()) for model, folder in folders.items()
    }
    at_once = asyncio.Semaphore(AT_ONCE)

    async def race(model: str, target: str) -> list[Row]:
        path = model_file(zoo, model)
        device = named_target(target)
        for region in device.memory_regions:  # figures are wanted for what does not fit, too
            region.total_bytes = max(region.total_bytes, 2 * 1024 * 1024)
        async with at_once:
            version = await client.import_model(path.read_bytes(), model, model_format(path), tags=["zoo"])
            started = await client.create_build(
                version.name,
                device,
                plugins=plugins,
                options={NATIVE: {"objective": objective}} if objective != "balanced" else None,
                samples_sha256=samples[model],
            )
            build = await client.wait_build(started.name)
        peer_model = model if model in PEER_MODELS else ""
        entries = [entry_of(target, device.cpu, candidate, "", peer_model) for candidate in build.candidates]
        return [row(model, entry, model_facts(path), objective) for entry in entries]

    for done in asyncio.as_completed([race(model, target) for model, target in pairs]):
        found = await done
        for each in found:
            count = "–" if each.instructions is None else f"{each.instructions:,}"
            console.print(f"{each.model} {each.target} {each.compiler}: {count} instructions, {each.fidelity}")
        rows += found
        if kept is not None:
            write(found, kept)
    return sorted(rows, key=_place)


def row(model: str, entry: Entry, facts: ModelFacts, objective: str) -> Row:
    """An entry's figures."""
    if entry.state != "sealed":
        note = f"not built: {entry.note}"
        return Row(model, entry.target, entry.compiler, None, None, None, None, note, "", objective)

    def whole(name: str) -> int | None:
        value = entry.value(name)
        return None if value is None else int(value)

    named = ("flash", "arena", "stack", "instructions", "cycles", "accuracy")
    methods = [f"{name} {entry.figures[name].method.upper()}" for name in named if name in entry.figures]
    return Row(
        model,
        entry.target,
        entry.compiler,
        whole("flash"),
        whole("arena"),
        whole("stack"),
        whole("instructions"),
        entry.fidelity,
        ", ".join(methods),
        objective,
        whole("cycles"),
        entry.value("accuracy"),
        facts.weights_bytes,
        facts.live_bytes,
        entry.peer_cpu,
        entry.ratios.get("flash"),
        entry.ratios.get("ram"),
        entry.ratios.get("instructions"),
    )


def tables(rows: Sequence[Row]) -> list[Table]:
    """The figures, and for compiler-tvm what of them must and should be reached."""
    return [_figures(rows), _goals([each for each in rows if each.compiler == "compiler-tvm" and each.model in MODELS])]


def _figures(rows: Sequence[Row]) -> Table:
    table = Table(
        "model", "target", "compiler", "flash B", "– weights", "arena B", "stack B", "instructions", "cycles est",
        "accuracy", "fidelity", title="Compilers; in brackets: ratio to TFLite Micro + CMSIS-NN", box=None,
    )  # fmt: skip
    for each in rows:
        peer = peer_of(each.model, each.target)
        where = f" {peer.cpu.removeprefix('cortex-')}" if peer is not None and peer.cpu != each.target else ""
        table.add_row(
            each.model,
            each.target,
            each.compiler,
            _with_ratio(each.flash_bytes, each.flash_ratio, where),
            "–" if each.flash_bytes is None else f"{each.flash_bytes - each.weights_bytes:,}",
            _with_ratio(each.ram_bytes, each.ram_ratio, where),
            _with_ratio(each.stack_bytes, None, ""),
            _with_ratio(each.instructions, each.instructions_ratio, where),
            _with_ratio(each.estimated_cycles, None, ""),
            "–" if each.accuracy is None else f"{each.accuracy:.1%}",
            each.fidelity,
        )
    return table


def _goals(rows: Sequence[Row]) -> Table:
    table = Table("model", "target", "figure", "reached", "must", "", "aim", "", title="What must be reached", box=None)
    for each in rows:
        facts = ModelFacts(each.weights_bytes, each.live_bytes)
        found = goals(
            each.model, each.target, facts, each.flash_bytes, each.ram_bytes, each.stack_bytes, each.instructions
        )
        for goal in (goal for goal in found if goal.must is not None):
            in_bytes = goal.name == "flash"
            name = "flash – weights" if in_bytes else f"{goal.name} / peer"
            cells = [
                "–" if value is None else f"{value:,.0f} B" if in_bytes else f"{value:.3f}"
                for value in (goal.value, goal.must, goal.aim)
            ]
            verdicts = [goal.verdict(goal.must), goal.verdict(goal.aim)]
            table.add_row(each.model, each.target, name, cells[0], cells[1], verdicts[0], cells[2], verdicts[1])
    return table


def trades(rows: Sequence[Row]) -> Table:
    """What each objective of compiler-tvm trades."""
    table = Table(
        "model", "objective", "flash B", "arena B", "stack B", "instructions", title="Objectives, Cortex-M4", box=None
    )
    for each in sorted(rows, key=lambda item: (MODELS.index(item.model), item.objective)):
        figures = (each.flash_bytes, each.ram_bytes, each.stack_bytes, each.instructions)
        table.add_row(each.model, each.objective, *(_with_ratio(value, None, "") for value in figures))
    return table


def compile_cost() -> dict[str, object]:
    """Seconds and peak memory of compiling, measured in compiler-tvm's own environment."""
    python = ROOT / "services" / "compiler-tvm" / ".venv" / "bin" / "python"
    done = subprocess.run(
        [str(python), str(ROOT / "bench" / "compile_cost.py")], capture_output=True, text=True, check=True
    )
    cost: dict[str, object] = json.loads(done.stdout)
    return cost


def cost_table(cost: dict[str, object]) -> Table:
    """Compile cost beside its limits."""
    seconds, processor = (
        {str(name): float(value) for name, value in dict(cost[key]).items()}  # type: ignore[call-overload]
        for key in ("seconds", "processor_seconds")
    )
    table = Table(
        "compile cost",
        "on the clock",
        "processor",
        "limit",
        "",
        title="compiler-tvm, tune 0, Cortex-M4, worker warm",
        box=None,
    )
    names = ("kws", "ic", "vww", "ad")
    rows: list[tuple[str, tuple[str, ...], float | None]] = [
        ("loading and first model (warm-up)", ("warm-up",), None),
        *((name, (name,), 3.0 if name == "kws" else None) for name in names),
        ("kws, ic, vww and ad", names, 20.0),
    ]
    for title, parts, limit in rows:
        clock, used = sum(seconds[name] for name in parts), sum(processor[name] for name in parts)
        verdict = "" if limit is None else "yes" if clock <= limit else "no"
        table.add_row(title, f"{clock:.2f} s", f"{used:.2f} s", "–" if limit is None else f"{limit:g} s", verdict)
    peak = float(str(cost["peak_bytes"])) / 1e9
    verdict = "yes" if peak <= 1.5 else "no"
    table.add_row("peak memory, with child processes", f"{peak:.2f} GB", "", "1.5 GB", verdict)
    return table


def write(rows: Sequence[Row], path: Path) -> None:
    """Merge rows into a file of them: one for each model, target, compiler and objective."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [Row(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []
    merged = {_key(entry): entry for entry in (*known, *rows)}
    ordered = sorted(merged.values(), key=_place)
    path.write_text(json.dumps([asdict(entry) for entry in ordered], indent=1) + "\n", encoding="utf-8")


def _place(entry: Row) -> tuple[int, int, tuple[str, str, str, str]]:
    return (*MODELS, *FLOAT_MODELS).index(entry.model), ORDER.index(entry.target), _key(entry)


def _key(entry: Row) -> tuple[str, str, str, str]:
    return (entry.model, entry.target, entry.compiler, entry.objective)


def _with_ratio(value: int | None, ratio: float | None, where: str) -> str:
    if value is None:
        return "–"
    return f"{value:,} ({ratio:.2f}{where})" if ratio is not None else f"{value:,}"
