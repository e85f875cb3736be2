"""Every metric of the suite, declared in one place, and how it is counted, measured or watched.

Names follow OpenTelemetry; `prometheus_names` gives what a collector makes of them for Prometheus. Dashboards and alert rules
are checked against this table. Without an OTLP endpoint nothing is collected and each call costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation


class Kind(StrEnum):
    """What a metric is: a sum that only rises, a value now, a distribution."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """A metric: `unit` is UCUM ("s") or what is counted in braces; every value carries just these attributes."""

    name: str
    kind: Kind
    unit: str
    attributes: tuple[str, ...]
    service: str
    description: str


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_DECLARED = (
    Metric(
        "tinymlaas.rpc.duration",
        Kind.HISTOGRAM,
        "s",
        ("service", "method", "code"),
        "all",
        "time from a call's arrival to its answer, by gRPC status code; streams last as long as their caller wants",
    ),
    Metric(
        "tinymlaas.builds.queue", Kind.GAUGE, "{build}", (), "gateway", "builds that have not ended, of all gateways"
    ),
    Metric("tinymlaas.deployments.open", Kind.GAUGE, "{deployment}", (), "gateway", "deployments that have not ended"),
    Metric(
        "tinymlaas.builds.ended", Kind.COUNTER, "{build}", ("state", "cached"), "gateway", "builds by how they ended"
    ),
    Metric(
        "tinymlaas.race.outcomes",
        Kind.COUNTER,
        "{candidate}",
        ("plugin", "outcome"),
        "gateway",
        "candidates of builds: won, sealed (and lost), rejected, failed; each with its compiler",
    ),
    Metric(
        "tinymlaas.compile.duration",
        Kind.HISTOGRAM,
        "s",
        ("plugin",),
        "gateway",
        "time that a compiler took for a model",
    ),
    Metric(
        "tinymlaas.cache.lookups",
        Kind.COUNTER,
        "{lookup}",
        ("kind", "result"),
        "gateway",
        "questions whether a result is known already, by kind of result: hit or miss",
    ),
    Metric(
        "tinymlaas.rollout.devices",
        Kind.COUNTER,
        "{device}",
        ("state",),
        "gateway",
        "devices of ended deployments by the state that they ended in",
    ),
    Metric(
        "tinymlaas.deployments.ended",
        Kind.COUNTER,
        "{deployment}",
        ("state",),
        "gateway",
        "deployments by how they ended",
    ),
    Metric(
        "tinymlaas.plugin.up",
        Kind.GAUGE,
        "{plugin}",
        ("plugin", "state"),
        "gateway",
        "1 for a plugin that may be called, 0 for one that is unreachable or in quarantine, as `state` says",
    ),
    Metric(
        "tinymlaas.devices.registered", Kind.GAUGE, "{device}", (), "bridge", "devices registered at this bridge now"
    ),
    Metric(
        "tinymlaas.registrations",
        Kind.COUNTER,
        "{message}",
        ("change",),
        "bridge",
        "registrations, updates and losses of devices",
    ),
    Metric("tinymlaas.installs.open", Kind.GAUGE, "{install}", (), "bridge", "installs that this bridge works on now"),
    Metric("tinymlaas.installs.steps", Kind.COUNTER, "{step}", ("step",), "bridge", "steps that installs have reached"),
    Metric(
        "tinymlaas.installs.failed",
        Kind.COUNTER,
        "{install}",
        ("reason",),
        "bridge",
        "installs that failed, by their reason",
    ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _DECLARED}

Reader = Callable[[], Iterable[tuple[float, dict[str, str]]]]
_readers: dict[str, list[Reader]] = {}


def count(name: str, amount: int = 1, **attributes: str) -> None:
    """Add to a counter."""
    _checked(name, Kind.COUNTER, attributes)
    _instrument(name).add(amount, attributes)


def measure(name: str, value: float, **attributes: str) -> None:
    """Add a value to a distribution."""
    _checked(name, Kind.HISTOGRAM, attributes)
    _instrument(name).record(value, attributes)


def watch(name: str, read: Reader) -> Callable[[], None]:
    """Let a gauge show what `read` gives, (value, attributes) each, whenever metrics are collected; call the result to end it.

    `read` is called from a thread of its own, and not at all where nothing is collected.
    """
    if METRICS[name].kind is not Kind.GAUGE:
        raise ValueError(f"{name} is no gauge")
    _readers.setdefault(name, []).append(read)
    _instrument(name)
    return lambda: _readers[name].remove(read)


def prometheus_names(metric: Metric) -> frozenset[str]:
    """Names of a metric's series in Prometheus, as the OpenTelemetry specification translates them."""
    base = metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
    if metric.kind is Kind.COUNTER:
        return frozenset({f"{base}_total"})
    if metric.kind is Kind.HISTOGRAM:
        return frozenset({f"{base}_bucket", f"{base}_sum", f"{base}_count"})
    return frozenset({base})


def _checked(name: str, kind: Kind, attributes: dict[str, str]) -> None:
    metric = METRICS[name]
    if metric.kind is not kind or len(attributes) != len(metric.attributes) or set(attributes) - set(metric.attributes):
        raise ValueError(f"{name} is a {metric.kind} with the attributes {metric.attributes}")


@cache
def _instrument(name: str) -> Any:
    metric, meter = METRICS[name], metrics.get_meter("tinymlaas")
    if metric.kind is Kind.COUNTER:
        return meter.create_counter(name, metric.unit, metric.description)
    if metric.kind is Kind.HISTOGRAM:
        return meter.create_histogram(
            name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=_SECONDS
        )

    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        for read in list(_readers.get(name, ())):
            for value, attributes in read():
                yield Observation(value, attributes)

    return meter.create_observable_gauge(name, [observe], metric.unit, metric.description)
