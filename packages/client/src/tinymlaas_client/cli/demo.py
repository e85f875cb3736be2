"""`tinymlaas demo`: the whole journey with a real model, on this machine."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.table import Table

from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2, routing_pb2
from tinymlaas.registry.v1 import devices_pb2, modules_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_client import figures as _figures
from tinymlaas_client._async_client import AsyncClient
from tinymlaas_client.cli._context import Session, run, to_plain
from tinymlaas_client.cli.build_commands import FIGURES, follow_build, outcome, verdict_table
from tinymlaas_client.cli.deploy_commands import follow_deployment
from tinymlaas_client.cli.device_commands import device_table, start_board
from tinymlaas_client.cli.suite_commands import start_and_wait
from tinymlaas_client.suite import SuiteError
from tinymlaas_client.targets import named_target

# Endpoint name of each virtual board and its kind.
BOARDS = {
    "meter-m4f": "node-m4f",
    "lock-m33": "secure-m33",
    "valve-rv32": "riscv-node",
    "tag-m0plus": "tiny-m0plus",
    "hub-tflm": "tflm-m4f",
    "chip-m0plus": "chip-m0plus",
}
# The first time each board builds its firmware, which takes minutes on a busy machine.
REGISTRATION_SECONDS = 600.0
_WAITING = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())


@dataclass
class Report:
    """What the demo saw; written to `--output` as JSON."""

    model: dict[str, Any] = field(default_factory=dict)
    explain: dict[str, Any] = field(default_factory=dict)
    race: dict[str, Any] = field(default_factory=dict)
    deployment: dict[str, Any] = field(default_factory=dict)
    devices: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    inferences: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="File for the same results as JSON.")] = Path("build/demo.json"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the suite and the boards running.")] = False,
) -> None:
    """Watch keyword spotting travel from a file onto virtual microcontrollers."""
    session: Session = context.obj
    report = Report()
    try:
        run(_journey(session, report))
    finally:
        if not keep:
            session.suite().stop()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report.__dict__, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if session.as_json:
        print(output.read_text(encoding="utf-8"), end="")
    else:
        total = sum(report.seconds.values())
        session.console.print(
            f"\nwritten to {output}; {total:.0f} s. Next: your own model, `tinymlaas models import FILE`", style="dim"
        )


async def _journey(session: Session, report: Report) -> None:
    suite = session.suite()
    zoo = suite.manifest.root / "zoo" / "kws"
    card = json.loads((zoo / "card.json").read_text(encoding="utf-8"))
    samples = np.load(zoo / "samples.npz")

    with _Step(
        session, report, "start", "1  Start the suite: registry, gateway, LwM2M bridge, compilers, optimizer, profiler"
    ):
        await start_and_wait(suite, session)
        since = time.time()
        for endpoint, board in BOARDS.items():
            start_board(session, board, endpoint)

    async with session.connect() as client:
        with _Step(session, report, "import", "2  Import the model; it is checked before it is stored"):
            version = await client.import_model(
                (zoo / card["files"]["int8_tflite"]).read_bytes(),
                "kws",
                tensor_pb2.MODEL_FORMAT_TFLITE,
                display_name=card["display_name"],
                licence=card["licence"],
                labels=card["labels"],
                tags=["zoo"],
            )
            digest = await client.write_artifact((zoo / "samples.npz").read_bytes())
            report.model = to_plain(version)
            _say(
                session,
                f"[bold]{version.name}[/]  {_figures.shape(version.inputs[0])} → {_figures.shape(version.outputs[0])}",
            )

        with _Step(session, report, "register", "3  The boards say over LwM2M what they are"):
            await _registered(session, client, set(BOARDS), since)
            devices = [device for device in await client.list_devices() if device.name.rsplit("/", 1)[-1] in BOARDS]
            _say(session, device_table(devices))

        with _Step(session, report, "explain", "4  Explain: which compiler can serve which device, and why not"):
            answer = await client.explain(version.name, devices=BOARDS)
            report.explain = to_plain(answer)
            _say(session, verdict_table(answer))

        with _Step(
            session, report, "race", "5  Race: the compilers compete for a Cortex-M4 that could run either's module"
        ):
            started = await client.create_build(version.name, named_target("cortex-m4"), samples_sha256=digest)
            race = await follow_build(session, client, started.name)
            report.race = to_plain(race)
            _say(session, outcome(race))
            if race.state != builds_pb2.Build.STATE_SUCCEEDED:
                raise SuiteError(f"the race failed: {race.error.message}; see `tinymlaas logs gateway`")

        with _Step(session, report, "deploy", "6  Deploy: seal, sign, install over the air, self-test, activate"):
            begun = await client.create_deployment(version.name, devices=BOARDS, samples_sha256=digest)
            deployment = await follow_deployment(session, client, begun.name)
            report.deployment = to_plain(deployment)

        with _Step(session, report, "infer", "7  Classify real speech on the boards, through LwM2M"):
            await _classify(session, report, client, deployment, samples, card["labels"])

        await _summary(session, report, client, deployment)
    if deployment.state != deployments_pb2.Deployment.STATE_SUCCEEDED:
        raise SuiteError(
            f"the deployment did not succeed: {deployment.error.message}; see build/demo.json and `tinymlaas logs gateway`"
        )


async def _registered(session: Session, client: AsyncClient, endpoints: set[str], since: float) -> None:
    """Waits until all boards have registered after `since` (seconds of the epoch): earlier runs have left records too."""
    deadline = time.monotonic() + REGISTRATION_SECONDS
    suite = session.suite()
    with Progress(*_WAITING, console=session.console, transient=True, disable=session.as_json) as progress:
        task = progress.add_task("the boards start; the first time they build their firmware", total=len(endpoints))
        while True:
            known = {
                device.name.rsplit("/", 1)[-1]
                for device in await client.list_devices()
                if device.state == devices_pb2.Device.STATE_REGISTERED and device.last_seen_time.seconds >= int(since)
            }
            progress.update(task, completed=len(endpoints & known))
            if endpoints <= known:
                return
            missing = sorted(endpoints - known)
            records = suite.records()
            ended = [name for name in missing if not records[f"device-{name}"].running]
            if ended:
                raise SuiteError(f"board {ended[0]} ended; see `tinymlaas logs device-{ended[0]}`")
            if time.monotonic() > deadline:
                names, log = ", ".join(missing), f"tinymlaas logs device-{missing[0]}"
                raise SuiteError(f"not registered after {REGISTRATION_SECONDS:.0f} s: {names}; see `{log}`")
            await asyncio.sleep(0.1)


async def _classify(
    session: Session,
    report: Report,
    client: AsyncClient,
    deployment: deployments_pb2.Deployment,
    samples: Any,
    labels: list[str],
) -> None:
    active = [
        _endpoint(rollout.device)
        for rollout in deployment.rollouts
        if rollout.state == deployments_pb2.DeviceRollout.STATE_ACTIVE
    ]
    labelled = [index for index, label in enumerate(samples["label"]) if label >= 0]
    predictions: dict[str, list[str]] = {endpoint: [] for endpoint in active}
    with Progress(console=session.console, transient=True, disable=session.as_json) as progress:
        task = progress.add_task("classifying", total=len(active) * len(labelled))

        async def classify_all(endpoint: str) -> None:
            for index in labelled:
                answer = await client.infer(endpoint, [samples["input_int8"][index].tobytes()])
                values = np.frombuffer(answer.outputs.tensors[0], np.int8)
                predicted = labels[int(values.argmax())]
                predictions[endpoint].append(predicted)
                report.inferences.append(
                    {
                        "device": endpoint,
                        "sample": str(samples["origin"][index]),
                        "true": labels[samples["label"][index]],
                        "predicted": predicted,
                        "bit_exact": values.tobytes() == samples["output_int8"][index].tobytes(),
                        "latency": answer.latency,
                        "latency_unit": answer.latency_unit,
                    }
                )
                progress.advance(task)

        await asyncio.gather(*(classify_all(endpoint) for endpoint in active))
    table = Table("sample", "true", *active)
    for row, index in enumerate(labelled):
        true = labels[samples["label"][index]]
        cells = [predictions[endpoint][row] for endpoint in active]
        table.add_row(
            str(samples["origin"][index]),
            true,
            *(f"[green]{cell}[/]" if cell == true else f"[red]{cell}[/]" for cell in cells),
        )
    _say(session, table)


async def _summary(
    session: Session, report: Report, client: AsyncClient, deployment: deployments_pb2.Deployment
) -> None:
    table = Table(
        "device",
        "compiler",
        *(title for title, _ in FIGURES),
        "fidelity",
        "self-test",
        "active module",
        title="Installed",
        title_justify="left",
    )
    rejected = Table(
        "device", "compiler", "reason", "smallest change that would admit it", title="Left out", title_justify="left"
    )
    for rollout in deployment.rollouts:
        endpoint = _endpoint(rollout.device)
        if rollout.module:
            module: modules_pb2.Module = await client.get_module(rollout.module)
            manifest = module.manifest
            is_active = rollout.state == deployments_pb2.DeviceRollout.STATE_ACTIVE
            self_test = "passed" if is_active else rollout.error.message or "not reached"
            figures = {title: _figures.find(manifest.measurements, metric) for title, metric in FIGURES}
            table.add_row(
                endpoint,
                _short(manifest.plugin_name),
                *(_figures.show(figure) for figure in figures.values()),
                _figures.numerics(manifest.numerics),
                self_test,
                module.sha256[:12] if is_active else "–",
            )
            report.devices.append(
                {
                    "device": endpoint,
                    "compiler": manifest.plugin_name,
                    "figures": {title: to_plain(figure) for title, figure in figures.items() if figure},
                    "fidelity": _figures.numerics(manifest.numerics),
                    "self_test": self_test,
                    "active_module": module.sha256 if is_active else None,
                }
            )
        for verdict in rollout.verdicts:
            if not verdict.admitted:
                _add_rejected(report, rejected, endpoint, verdict)
    _say(session, table)
    _say(session, rejected)


def _add_rejected(report: Report, table: Table, endpoint: str, verdict: routing_pb2.Verdict) -> None:
    compiler = verdict.plugin.removeprefix("plugins/")
    for objection in verdict.objections:
        table.add_row(endpoint, _short(compiler), f"{objection.reason}: {objection.message}", objection.remedy)
        report.rejected.append(
            {
                "device": endpoint,
                "compiler": compiler,
                "reason": objection.reason,
                "message": objection.message,
                "metadata": dict(objection.metadata),
                "remedy": objection.remedy,
            }
        )


def _short(plugin: str) -> str:
    """The last part of a plugin's reverse-DNS name: tables have little room, and the demo's plugins differ in it."""
    return plugin.rsplit(".", 1)[-1]


def _endpoint(device: str) -> str:
    return device.rsplit("/", 1)[-1]


def _say(session: Session, what: Any) -> None:
    if not session.as_json:
        session.console.print(what)


class _Step:
    """A titled step whose duration goes into the report."""

    def __init__(self, session: Session, report: Report, key: str, title: str) -> None:
        self._session, self._report, self._key, self._title = session, report, key, title

    def __enter__(self) -> None:
        self._began = time.monotonic()
        _say(self._session, Rule(self._title, align="left", style="bold"))

    def __exit__(self, *_: object) -> None:
        self._report.seconds[self._key] = round(time.monotonic() - self._began, 2)
