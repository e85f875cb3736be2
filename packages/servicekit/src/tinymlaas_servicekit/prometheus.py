"""Metrics for Prometheus to scrape: `GET /metrics` in the text format 0.0.4, names as OpenTelemetry translates them.

For clusters without a collector. Only this process's metrics; served without authentication, as scrapers expect, and so on
an address of its own (TINYMLAAS_METRICS_LISTEN), which a network policy guards.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    MetricsData,
    NumberDataPoint,
    Sum,
)

from .errors import Unavailable
from .metrics import METRICS, Kind, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MAX_REQUEST_SECONDS = 10.0


def serve(listen: str, reader: InMemoryMetricReader) -> tuple[str, ThreadingHTTPServer]:
    """Serve the metrics of a reader at host:port, port 0 for a free one, until the process ends; the bound address."""
    host, _, port = listen.rpartition(":")

    class Handler(BaseHTTPRequestHandler):
        timeout = _MAX_REQUEST_SECONDS

        def do_GET(self) -> None:
            if self.path.split("?", 1)[0] != "/metrics":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body = exposition(reader.get_metrics_data()).encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Scrapes come every few seconds: they are no news."""

    try:
        server = ThreadingHTTPServer((host.strip("[]") or "127.0.0.1", int(port)), Handler)
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"cannot listen on {listen}",
            "ADDRESS_IN_USE",
            {"address": listen},
            "Choose another TINYMLAAS_METRICS_LISTEN, host:port; port 0 takes a free one.",
        ) from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return f"{host}:{server.server_address[1]}", server


def exposition(data: MetricsData | None) -> str:
    """The declared metrics among `data` in the text format; metrics of libraries are left out."""
    lines: list[str] = []
    for resource in () if data is None else data.resource_metrics:
        for scope in resource.scope_metrics:
            for found in scope.metrics:
                declared = METRICS.get(found.name)
                if declared is not None:
                    lines.extend(_metric(declared, found.data))
    return "".join(f"{line}\n" for line in lines)


def _metric(metric: Metric, data: Any) -> Iterator[str]:
    base = metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
    name = f"{base}_total" if metric.kind is Kind.COUNTER else base
    yield f"# HELP {name} {metric.description}"
    yield f"# TYPE {name} {metric.kind.value}"
    if isinstance(data, (Sum, Gauge)):
        for point in data.data_points:
            if isinstance(point, NumberDataPoint):
                yield f"{name}{_labels(point.attributes)} {_number(point.value)}"
    elif isinstance(data, Histogram):
        for each in data.data_points:
            yield from _histogram(name, each)


def _histogram(name: str, point: HistogramDataPoint) -> Iterator[str]:
    total = 0
    for bound, amount in zip([*point.explicit_bounds, float("inf")], point.bucket_counts, strict=True):
        total += amount
        le = "+Inf" if bound == float("inf") else _number(bound)
        yield f"{name}_bucket{_labels(point.attributes, le=le)} {total}"
    yield f"{name}_sum{_labels(point.attributes)} {_number(point.sum)}"
    yield f"{name}_count{_labels(point.attributes)} {point.count}"


def _labels(attributes: Mapping[str, Any] | None, **more: str) -> str:
    pairs = [(key, str(value)) for key, value in sorted((attributes or {}).items())] + list(more.items())
    if not pairs:
        return ""
    escaped = ((key, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for key, value in pairs)
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped) + "}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
