"""Spans of the client: where a program uses OpenTelemetry, each call is the root, or a part, of one trace through the suite."""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar

from opentelemetry.trace import SpanKind

from tinymlaas_servicekit.telemetry import traced

C = TypeVar("C")


def traced_calls(kind: type[C]) -> type[C]:
    """Class decorator: every public coroutine method runs in a span; streams don't, their calls are seen at the gateway.

    Without a tracer provider, which is the program's to configure, spans cost nothing and go nowhere.
    """
    for name, method in inspect.getmembers(kind, inspect.isfunction):
        if not name.startswith("_") and inspect.iscoroutinefunction(method):
            setattr(kind, name, _in_span(f"client {name}", method))
    return kind


def _in_span(name: str, method: Any) -> Any:
    @functools.wraps(method)
    async def call(*args: Any, **kwargs: Any) -> Any:
        with traced(name, kind=SpanKind.CLIENT):
            return await method(*args, **kwargs)

    return call
