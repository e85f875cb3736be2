"""Durable order of steps (DBOS): a gateway that was killed goes on where it was when it is started again.

A workflow only orders steps; whatever it decides follows from what steps returned, which is recorded. Workflow ids are
derived from resource names, so starting one twice runs it once. DBOS is one per process, hence the module's state.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psycopg
import structlog
from dbos import DBOS, DBOSConfig, SetWorkflowID
from google.rpc import code_pb2
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from tinymlaas.gateway.v1 import deployments_pb2
from tinymlaas_servicekit import patience
from tinymlaas_servicekit.telemetry import traced, traceparent

from ..core import projection, rollout
from ..core.objections import status
from ..core.rollout import Action, Outcome, Progress
from . import builds, candidates, deployments, devices, optimizing, planning, rollouts, seal
from .context import Context
from .fairness import on_behalf_of

log = structlog.get_logger("tinymlaas.gateway")

P = ParamSpec("P")
Result = TypeVar("Result")
# One version for good: workflows of an older gateway are recovered by a newer one. A change of a workflow's order of
# steps has to keep old ids working (DBOS.patch) or be released as another workflow name.
APPLICATION_VERSION = "gateway-1"
ASKED_AT_ONCE = 500

_context: Context | None = None
_stopping = False


def _current() -> Context:
    if _context is None:
        raise RuntimeError("durable execution has not been started")
    return _context


async def _step(name: str, function: Callable[..., Awaitable[Result]], *args: Any) -> Result:
    return await DBOS.run_step_async({"name": name}, _plain, name, traceparent(), function, *args)


async def _plain(name: str, parent: str, function: Callable[..., Awaitable[Result]], *args: Any) -> Result:
    with traced(f"step {name}", parent):
        return await function(_current(), *args)


def in_trace(function: Callable[P, Awaitable[Result]]) -> Callable[P, Awaitable[Result]]:
    """Makes a workflow go on in the trace of whoever asked for it, also after a restart: its input has the context.

    Workflows that an older gateway began have none, and begin a trace of their own. All that it does waits for the suite's own
    database and registry as long as it takes.
    """

    @functools.wraps(function)
    async def run(*names: P.args, **kwargs: P.kwargs) -> Result:
        parent = str(kwargs.pop("trace", ""))
        name = str(names[0])
        trace = traced(function.__name__.replace("_", " "), parent, resource=name)
        with trace, on_behalf_of(name), patience.durable():
            return await function(*names, **kwargs)

    return run


async def _unless_stopping() -> None:
    """Never return once this gateway stops: what breaks off then is no outcome to record, the next launch does the step again."""
    if _stopping:
        await asyncio.Event().wait()


def workflow_id(kind: str, *names: str) -> str:
    """Id of the workflow of a resource."""
    return ":".join((kind, *names))


async def start(kind: str, function: Callable[..., Any], *names: str) -> Any:
    """Start a workflow, or return the handle of the one that has this id already."""
    with SetWorkflowID(workflow_id(kind, *names)):
        return await DBOS.start_workflow_async(function, *names, trace=traceparent())


@DBOS.workflow(name="candidate")
@in_trace
async def candidate_workflow(build: str, plugin: str) -> str | None:
    """One compiler's run; returns its module, None when it gave none."""
    try:
        reused: str | None = await _step("reuse", seal.reuse, build, plugin)
        if reused is not None:
            return reused
        form = await _step("check", candidates.check, build, plugin)
        if form is None:
            return None
        compiled = await _step("compile", candidates.compile_model, build, plugin, form)
        if compiled is None:
            return None
        profiled = await _step("profile", candidates.profile, build, plugin, compiled)
        if profiled is None:
            return None
        referenced = await _step("reference", candidates.reference, build, plugin, compiled, profiled)
        if referenced is None:
            return None
        verified = await _step("verify", candidates.verify, build, plugin, compiled, profiled, referenced)
        if verified is None:
            return None
        module: str | None = await _step("seal", seal.seal, build, plugin, compiled, profiled, referenced, verified)
        return module
    except Exception as error:
        await _unless_stopping()
        log.error("a candidate broke", build=build, plugin=plugin, exc_info=error)
        await _step("broken", _candidate_broken, build, plugin, type(error).__name__)
        return None


async def _candidate_broken(context: Context, build: str, plugin: str, kind: str) -> None:
    fault = status(
        code_pb2.INTERNAL, "INTERNAL_ERROR", f"the gateway failed in this candidate ({kind}); its log says how"
    )
    await context.edit_build(build, projection.fail(plugin, fault))


@DBOS.workflow(name="build")
@in_trace
async def build_workflow(build: str) -> str:
    """A race from its begin to its decision; returns the build's state."""
    plugins = await _step("begin", builds.begin, build)
    # Read outside of a step: it is part of the request. Builds of an older gateway keep their order of steps so.
    if await builds.asks_to_optimize(_current(), build) and not await _step("optimize", optimizing.build_step, build):
        plugins = []
    handles = [await start("candidate", candidate_workflow, build, plugin) for plugin in plugins]
    for handle in handles:
        await handle.get_result()
    return await _step("decide", builds.decide, build)


@DBOS.workflow(name="rollout-device")
@in_trace
async def device_workflow(deployment: str, device: str) -> str:
    """What happens on one device, decided step by step by `rollout.next_action`; returns its end state."""
    try:
        return await _device_steps(deployment, device)
    except Exception as error:
        await _unless_stopping()
        log.error("a device's workflow broke", deployment=deployment, device=device, exc_info=error)
        await _step("broken", _device_broken, deployment, device, type(error).__name__)
        return deployments_pb2.DeviceRollout.State.Name(deployments_pb2.DeviceRollout.STATE_FAILED)


async def _device_steps(deployment: str, device: str) -> str:
    build, to_run = await _step("start build", planning.device_build, deployment, device)
    if to_run:
        await start("build", build_workflow, build)
    progress = Progress(build=Outcome.NOT_TRIED if build else Outcome.FAILED)
    while True:
        cancelled = await _step("look", _stopped, deployment, device)
        progress = replace(progress, cancelled=cancelled)
        action = rollout.next_action(progress)
        if action is Action.END:
            break
        outcome = Outcome[await _step(action.value, _act, action.name, deployment, device, build)]
        if action is Action.WAIT_FOR_BUILD:
            progress = replace(progress, build=outcome)
        elif action is Action.INSTALL:
            progress = replace(progress, install=outcome)
        elif action is Action.ROLL_BACK:
            progress = replace(progress, roll_back=outcome)
        else:
            progress = replace(progress, activate=outcome)
            if outcome is Outcome.FAILED:
                ours = await _step("runs ours", devices.runs_ours, deployment, device)
                progress = replace(progress, ours_active=ours)
    state = rollout.end_state(progress)
    await _step("end", devices.end, deployment, device, state)
    return deployments_pb2.DeviceRollout.State.Name(state)


async def _device_broken(context: Context, deployment: str, device: str, kind: str) -> None:
    fault = status(code_pb2.INTERNAL, "INTERNAL_ERROR", f"the gateway failed on this device ({kind}); its log says how")
    await devices.edit(context, deployment, device, lambda item: item.error.CopyFrom(fault))
    await devices.end(context, deployment, device, deployments_pb2.DeviceRollout.STATE_FAILED)


async def _act(context: Context, action: str, deployment: str, device: str, build: str) -> str:
    try:
        if action == Action.WAIT_FOR_BUILD.name:
            return await devices.take_build(context, deployment, device, build)
        if action == Action.INSTALL.name:
            return await devices.install(context, deployment, device)
        if action == Action.ACTIVATE.name:
            return await devices.activate(context, deployment, device)
        return await devices.roll_back(context, deployment, device)
    except Exception as error:
        await _unless_stopping()
        log.error("a step on a device broke", deployment=deployment, device=device, action=action, exc_info=error)
        fault = devices.error_status(error)
        await devices.edit(context, deployment, device, lambda item: item.error.CopyFrom(fault))
        return Outcome.FAILED.name


async def _stopped(context: Context, deployment: str, device: str) -> bool:
    return devices.stopped(await context.deployment_of(deployment, device), device)


@DBOS.workflow(name="rollout")
@in_trace
async def rollout_workflow(deployment: str) -> str:
    """Plan, a build for each distinct target, then device by device as `rollouts.advance` says; returns the state."""
    try:
        if await deployments.asks_to_optimize(_current(), deployment) and not await _step(
            "optimize", deployments.optimize, deployment
        ):
            return await _step("finish", deployments.finish, deployment)
        for group in await _step("plan", planning.plan, deployment):
            build, to_run = await _step("start build", planning.start_build, deployment, group)
            if to_run:
                await start("build", build_workflow, build)
        begun: set[str] = set()
        ended = False
        while not ended:  # until every device that began has written its end state
            order = await _step("advance", rollouts.advance, deployment)
            for device in order["begin"]:
                if device not in begun:
                    begun.add(device)
                    await start("rollout-device", device_workflow, deployment, device)
            ended = order["ended"]
        await _step("stop builds", _stop_builds, deployment)
        await _roll_back_each(deployment, await _step("to roll back", rollouts.to_roll_back, deployment))
    except Exception as error:
        await _unless_stopping()
        log.error("a deployment broke", deployment=deployment, exc_info=error)
        await _step("broken", _deployment_broken, deployment, type(error).__name__)
    return await _step("finish", deployments.finish, deployment)


@DBOS.workflow(name="deployment")
@in_trace
async def older_deployment_workflow(deployment: str) -> None:
    """A deployment of a gateway before rollouts had policies: `launch` goes on with it as a rollout."""


@DBOS.workflow(name="device")
@in_trace
async def older_device_workflow(deployment: str, device: str, build: str) -> None:
    """A device of such a deployment."""


async def _stop_builds(context: Context, deployment: str) -> None:
    """The builds of a deployment that was aborted or stopped have nobody left who waits for them."""
    record = await context.deployment(deployment)
    if not record.cancel_requested and not record.body.stopping:
        return
    for name in sorted({item.build for item in record.body.rollouts if item.build}):
        if not (await context.build(name)).ended:
            await asyncio.to_thread(context.builds.request_cancel, name)


async def _deployment_broken(context: Context, deployment: str, kind: str) -> None:
    fault = status(
        code_pb2.INTERNAL, "INTERNAL_ERROR", f"the gateway failed in this deployment ({kind}); its log says how"
    )

    def edit(body: deployments_pb2.Deployment) -> None:
        if not deployments.ended(body):
            body.state = deployments_pb2.Deployment.STATE_FAILED
            body.error.CopyFrom(fault)
            body.end_time.CopyFrom(builds.now())

    await context.edit_deployment(deployment, edit)


@DBOS.workflow(name="rollback")
@in_trace
async def rollback_workflow(deployment: str, attempt: str) -> None:
    """Every device of an ended deployment back to the module before."""
    await _step("begin", _begin_rollback, deployment)
    await _roll_back_each(deployment, await _step("list", deployments.roll_back_all, deployment))
    await _step("finish", deployments.rolled_back, deployment)


async def _roll_back_each(deployment: str, names: list[str]) -> None:
    for device in names:
        outcome = Outcome[await _step("roll back", _act, Action.ROLL_BACK.name, deployment, device, "")]
        if outcome is Outcome.GOOD:
            state = deployments_pb2.DeviceRollout.STATE_ROLLED_BACK
            await _step("end", devices.end, deployment, device, state)


async def _begin_rollback(context: Context, deployment: str) -> None:
    def edit(body: deployments_pb2.Deployment) -> None:
        if body.state != deployments_pb2.Deployment.STATE_ROLLED_BACK:
            body.state = deployments_pb2.Deployment.STATE_RUNNING
            body.ClearField("end_time")

    await context.edit_deployment(deployment, edit)


@event.listens_for(Engine, "handle_error")
def _unreached_is_away(failure: ExceptionContext) -> None:
    """A server that no connection was made to is away, whatever the driver calls that: DBOS repeats what failed so.

    Of itself it knows some of psycopg's texts ("connection failed") and not others ("connection is bad", "failed to resolve
    host"), which would end the workflow that met them.
    """
    if failure.connection is None and isinstance(failure.original_exception, psycopg.OperationalError):
        failure.is_disconnect = True


async def launch(context: Context, database_url: str, executor: str = "gateway") -> None:
    """Start durable execution in the running event loop: unfinished work goes on, work that never began begins.

    `executor` names this gateway among those that share the database, the same after a restart: its work is found by it.
    """
    global _context, _stopping
    _context, _stopping = context, False
    patience.resume()
    if database_url.startswith("sqlite:///"):
        Path(database_url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    config = DBOSConfig(
        name="tinymlaas-gateway",
        system_database_url=database_url,
        application_version=APPLICATION_VERSION,
        executor_id=executor,
        log_level="WARNING",
        notification_listener_polling_interval_sec=0.2,
    )
    DBOS(config=config)
    DBOS.launch()
    await begin_what_never_began(context)


async def begin_what_never_began(context: Context) -> None:
    """Start the workflows of resources that were accepted by a gateway that died before it started them."""
    await begin_unbegun("build", build_workflow, await asyncio.to_thread(context.builds.unfinished))
    await begin_unbegun("rollout", rollout_workflow, await asyncio.to_thread(context.deployments.unfinished))


async def begin_unbegun(kind: str, workflow: Callable[..., Any], names: Sequence[str]) -> None:
    """Start the workflows of those of the resources that have none yet."""
    for first in range(0, len(names), ASKED_AT_ONCE):
        ids = {workflow_id(kind, name): name for name in names[first : first + ASKED_AT_ONCE]}
        known = await DBOS.list_workflows_async(workflow_ids=list(ids), load_input=False, load_output=False)
        for begun in known:
            del ids[begun.workflow_id]
        for name in ids.values():
            log.warning("work that was accepted had not begun", name=name)
            await start(kind, workflow, name)


async def stop() -> None:
    """Stop durable execution without ending its work: the next launch goes on with it."""
    global _context, _stopping
    _stopping = True
    patience.give_up()
    await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)
    rollouts.forget()
    _context = None
