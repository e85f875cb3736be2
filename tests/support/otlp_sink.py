"""A collector for tests: takes traces and metrics by OTLP over gRPC and keeps what it got."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2


@dataclass(frozen=True)
class Span:
    """A span as it arrived: ids in hex, `parent` "" for a root."""

    service: str
    instance: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: tuple[tuple[str, str], ...]
    failed: bool


@dataclass(frozen=True)
class Point:
    """A value of a metric: of a distribution the number of values."""

    service: str
    name: str
    value: float
    attributes: tuple[tuple[str, str], ...]


class Sink:
    """What has arrived so far. `address` is where to export to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._points: dict[tuple[str, str, tuple[tuple[str, str], ...]], Point] = {}
        self.address = ""

    def spans(self, trace: str = "") -> list[Span]:
        """All spans, or those of one trace."""
        with self._lock:
            return [span for span in self._spans if trace in ("", span.trace)]

    def points(self, name: str = "") -> list[Point]:
        """The newest value of each series, or of those of one metric."""
        with self._lock:
            return [point for point in self._points.values() if name in ("", point.name)]

    def add(self, spans: Iterable[Span] = (), points: Iterable[Point] = ()) -> None:
        """Keep what arrived."""
        with self._lock:
            self._spans.extend(spans)
            for point in points:
                self._points[point.service, point.name, point.attributes] = point


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            told = dict(_pairs(resource.resource.attributes))
            for scope in resource.scope_spans:
                self._sink.add(
                    Span(
                        told["service.name"],
                        told["service.instance.id"],
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        _pairs(span.attributes),
                        span.status.code == span.status.STATUS_CODE_ERROR,
                    )
                    for span in scope.spans
                )
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def Export(
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: grpc.ServicerContext
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        for resource in request.resource_metrics:
            service = dict(_pairs(resource.resource.attributes))["service.name"]
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    numbers = [*metric.sum.data_points, *metric.gauge.data_points]
                    points = [(each.as_double or float(each.as_int), each.attributes) for each in numbers]
                    points += [(float(each.count), each.attributes) for each in metric.histogram.data_points]
                    self._sink.add(
                        points=[Point(service, metric.name, value, _pairs(attributes)) for value, attributes in points]
                    )
        return metrics_service_pb2.ExportMetricsServiceResponse()


def _pairs(attributes: Iterable[common_pb2.KeyValue]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((item.key, item.value.string_value or str(item.value.int_value)) for item in attributes))


@contextmanager
def running() -> Iterator[Sink]:
    """A sink that listens on a free port of the loopback interface."""
    sink = Sink()
    server = grpc.server(ThreadPoolExecutor(2, "otlp-sink"), options=[("grpc.max_receive_message_length", 64 << 20)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(sink), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(sink), server)
    sink.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield sink
    finally:
        server.stop(1.0).wait()
