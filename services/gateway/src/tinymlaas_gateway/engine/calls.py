"""Calls of plugins with a bound in time, repeated when the plugin broke off: same request, same bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tinymlaas.registry.v1 import plugins_pb2
from tinymlaas_servicekit import (
    DataLoss,
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    adapt,
)

from .context import Context

SILENCE = "CP-STREAM-008"
Result = TypeVar("Result")
BACK_POLL_SECONDS = 0.25
BUSY_POLL_SECONDS = 0.25


async def bounded(context: Context, plugin: str, seconds: float, call: Callable[[], Awaitable[Result]]) -> Result:
    """Call a plugin; raise DeadlineExceeded / PLUGIN_TIMEOUT after `seconds` per try, ServiceErrors otherwise.

    A connection that broke, a plugin that fell silent and bytes that do not match their digest are tried again, at most
    `plugin_tries` times, each time as soon as the plugin is back; one that stays away longer than `plugin_patience_seconds`
    is given up. A plugin that works for others already, such as another gateway, is asked again for `plugin_busy_seconds`.
    """
    limits = context.limits
    free = asyncio.get_running_loop().time() + limits.plugin_busy_seconds
    attempt = 1
    while True:
        try:
            async with asyncio.timeout(seconds) as clock:
                return await call()
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise DeadlineExceeded(
                f"{plugin} did not answer within {seconds:g} s",
                "PLUGIN_TIMEOUT",
                {"plugin": plugin, "seconds": f"{seconds:g}"},
                "The plugin's vendor must look why it hangs; other compilers are not affected.",
            ) from error
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise
            # A cancellation that nobody asked of this task: the channel was closed, because the plugin moved or left.
            closed = isinstance(error, asyncio.CancelledError)
            adapted = Unavailable(f"{plugin} went away", "PLUGIN_UNAVAILABLE") if closed else adapt(error)
            if adapted is None:
                raise Internal(
                    f"{plugin} answered in a way that cannot be read: {type(error).__name__}",
                    "PLUGIN_PROTOCOL",
                    {"plugin": plugin},
                    "The plugin's vendor must run the conformance suite against it.",
                ) from error
            if _is_busy(adapted) and asyncio.get_running_loop().time() < free:
                await asyncio.sleep(BUSY_POLL_SECONDS)
                continue
            broke_off = isinstance(adapted, (Unavailable, DataLoss)) or fell_silent(adapted)
            if broke_off and attempt < limits.plugin_tries:
                await asyncio.sleep(limits.retry_pause_seconds * attempt)
                attempt += 1
                if await back(context, plugin):
                    continue
            raise _named(plugin, adapted) from error


def _is_busy(error: ServiceError) -> bool:
    """Whether a plugin refused a call because it runs as many as it can (CP-LIMIT-002)."""
    return isinstance(error, ResourceExhausted) and error.metadata.get("limit") == "max_concurrency"


def fell_silent(error: ServiceError) -> bool:
    """Whether a plugin gave no sign of life during a call, unlike one that works and takes longer than its time."""
    return error.reason == "PLUGIN_TIMEOUT" and error.metadata.get("clause") == SILENCE


async def back(context: Context, plugin: str) -> bool:
    """Wait until a plugin answers (again); False when it stays away longer than `plugin_patience_seconds`."""
    # One in quarantine finishes what it began.
    here = (plugins_pb2.Plugin.STATE_READY, plugins_pb2.Plugin.STATE_QUARANTINED)

    def answers() -> bool | None:
        found = any(item.plugin.name == plugin and item.plugin.state in here for item in context.plugins.known())
        return found or None

    return await sought(answers, context.limits.plugin_patience_seconds) is not None


async def sought(look: Callable[[], Result | None], seconds: float) -> Result | None:
    """Return what `look` finds, looking again for some time: after a restart plugins are found one by one."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        found = look()
        if found is not None or loop.time() >= end:
            return found
        await asyncio.sleep(BACK_POLL_SECONDS)


def _named(plugin: str, error: ServiceError) -> ServiceError:
    """The error with the culprit's name in it."""
    error.metadata.setdefault("plugin", plugin)
    return error
