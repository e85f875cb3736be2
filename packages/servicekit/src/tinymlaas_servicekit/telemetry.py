"""Logs, traces, metrics: structlog lines that carry trace ids, OpenTelemetry spans, W3C context through every hop."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import Any

import grpc
import structlog
from opentelemetry import context as otel_context
from opentelemetry import metrics, propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from ._calls import OPEN_SERVICES, Call, CallInterceptor
from .messages import redact_messages
from .metrics import measure
from .settings import ServiceSettings

_tracer = trace.get_tracer("tinymlaas.servicekit")
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def add_trace_ids(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: the ids of the current span, when there is one."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"] = trace.format_trace_id(span.trace_id)
        event["span_id"] = trace.format_span_id(span.span_id)
    return event


def configure_logging(settings: ServiceSettings) -> None:
    """Writes one line per event to stderr, JSON or for a console; records of `logging` go the same way."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_trace_ids,
        redact_messages,
    ]
    as_json = settings.log_format == "json"
    # Plain tracebacks: the richer ones print local variables, and with them requests and tokens.
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    final: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_json:
        final.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*final, renderer]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def configure_tracing(settings: ServiceSettings, service: str) -> None:
    """Makes spans real; exports them and metrics by OTLP, and serves metrics to scrapers, where set. Once per process."""
    resource = Resource.create({"service.name": service, "service.instance.id": _instance(settings)})
    provider = TracerProvider(resource=resource)
    readers: list[Any] = []
    # Imported late: the exporters are heavy, and most processes (tests, laptops) export nothing.
    if settings.otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        target: dict[str, Any] = {
            "endpoint": settings.otlp_endpoint,
            "insecure": not settings.otlp_endpoint.startswith("https://"),
        }
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(**target)))
        # How often: OTEL_METRIC_EXPORT_INTERVAL and OTEL_BSP_SCHEDULE_DELAY, in milliseconds, as for every OpenTelemetry SDK.
        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter(**target)))
    if settings.metrics_listen:
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        from . import prometheus

        readers.append(InMemoryMetricReader())
        prometheus.serve(settings.metrics_listen, readers[-1])
    if readers:
        from opentelemetry.sdk.metrics import MeterProvider

        metrics.set_meter_provider(MeterProvider(readers, resource))
    trace.set_tracer_provider(provider)


def _instance(settings: ServiceSettings) -> str:
    """What tells this process from others of its service: the name that it is configured with, else host and process id."""
    return str(getattr(settings, "instance", "")) or f"{socket.gethostname()}:{os.getpid()}"


class TelemetryInterceptor(CallInterceptor):
    """A span per call, child of the caller's span, with the RPC semantic conventions' attributes."""

    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Runs the call inside its span; health and reflection calls get none."""
        return nullcontext() if call.service in OPEN_SERVICES else _CallSpan(call)


class _CallSpan(AbstractAsyncContextManager[None]):
    """The span of a call and its measured time; a class, as it surrounds every call of every service."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._method = call.method.rsplit("/", 1)[-1]

    async def __aenter__(self) -> None:
        call = self._call
        parent = propagate.extract(call.metadata)
        attributes = {"rpc.system": "grpc", "rpc.service": call.service, "rpc.method": self._method}
        name = call.method.lstrip("/")
        self._span = _tracer.start_span(name, context=parent, kind=SpanKind.SERVER, attributes=attributes)
        self._token = otel_context.attach(trace.set_span_in_context(self._span, parent))
        self._began = time.perf_counter()

    async def __aexit__(self, *_: object) -> None:
        context, span = self._call.context, self._span
        code = context.code()
        number = code.value[0] if isinstance(code, grpc.StatusCode) else int(code or 0)
        span.set_attribute("rpc.grpc.status_code", number)
        measure(
            "tinymlaas.rpc.duration",
            time.perf_counter() - self._began,
            service=self._call.service,
            method=self._method,
            code=_CODES.get(number, "UNKNOWN"),
        )
        if number:
            span.set_status(Status(StatusCode.ERROR, context.details() or ""))
        otel_context.detach(self._token)
        span.end()


def context_headers() -> list[tuple[str, str]]:
    """The current trace context as call metadata (W3C Trace Context)."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return list(carrier.items())


def traceparent() -> str:
    """The current trace context as one line (W3C traceparent), to be kept with work that goes on later; "" without one."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent", "")


@contextmanager
def traced(name: str, parent: str = "", kind: SpanKind = SpanKind.INTERNAL, **attributes: str | int) -> Iterator[None]:
    """Runs a block inside a span: a child of `parent` (a traceparent that was kept), else of the current span.

    An error that leaves the block marks the span with its reason or type and passes on; its text stays out of the trace.
    """
    context = propagate.extract({"traceparent": parent}) if parent else None
    span = _tracer.start_span(name, context=context, kind=kind, attributes=attributes)
    token = otel_context.attach(trace.set_span_in_context(span, context))
    try:
        yield
    except BaseException as error:
        span.set_status(Status(StatusCode.ERROR, str(getattr(error, "reason", "")) or type(error).__name__))
        raise
    finally:
        otel_context.detach(token)
        span.end()
