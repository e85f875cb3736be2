"""Metrics: only what is declared is taken, and scrapers get it in the text format of Prometheus."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from opentelemetry import metrics as otel
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tinymlaas_servicekit import ServiceError, metrics, prometheus
from tinymlaas_servicekit.metrics import METRICS, Kind, count, measure, prometheus_names, watch


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """Collects what the test counts, and nothing else."""
    found = InMemoryMetricReader()
    provider = MeterProvider([found])
    metrics._instrument.cache_clear()
    monkeypatch.setattr(otel, "get_meter", provider.get_meter)
    yield found
    provider.shutdown()
    metrics._instrument.cache_clear()


def lines(reader: InMemoryMetricReader) -> list[str]:
    return [line for line in prometheus.exposition(reader.get_metrics_data()).splitlines() if line[0] != "#"]


def test_counts_are_told_with_their_attributes(reader: InMemoryMetricReader) -> None:
    count("tinymlaas.builds.ended", state="SUCCEEDED", cached="false")
    count("tinymlaas.builds.ended", 2, state="SUCCEEDED", cached="false")
    count("tinymlaas.installs.failed", reason='a "quoted"\\\n')
    assert sorted(lines(reader)) == [
        'tinymlaas_builds_ended_total{cached="false",state="SUCCEEDED"} 3',
        'tinymlaas_installs_failed_total{reason="a \\"quoted\\"\\\\\\n"} 1',
    ]


def test_a_distribution_has_cumulative_buckets(reader: InMemoryMetricReader) -> None:
    for seconds in (0.5, 3.0, 3.0, 10_000.0):
        measure("tinymlaas.compile.duration", seconds, plugin="p")
    told = dict(line.rsplit(" ", 1) for line in lines(reader))
    assert told['tinymlaas_compile_duration_seconds_bucket{plugin="p",le="0.25"}'] == "0"
    assert told['tinymlaas_compile_duration_seconds_bucket{plugin="p",le="0.5"}'] == "1"
    assert told['tinymlaas_compile_duration_seconds_bucket{plugin="p",le="5"}'] == "3"
    assert told['tinymlaas_compile_duration_seconds_bucket{plugin="p",le="+Inf"}'] == "4"
    assert told['tinymlaas_compile_duration_seconds_count{plugin="p"}'] == "4"
    assert told['tinymlaas_compile_duration_seconds_sum{plugin="p"}'] == "10006.5"


def test_a_gauge_is_read_when_asked_for_until_its_watch_ends(reader: InMemoryMetricReader) -> None:
    values = [1.0]
    stop = watch("tinymlaas.installs.open", lambda: [(values[0], {})])
    assert lines(reader) == ["tinymlaas_installs_open 1"]
    values[0] = 2.5
    assert lines(reader) == ["tinymlaas_installs_open 2.5"]
    stop()
    assert lines(reader) == []


def test_what_is_not_declared_is_refused() -> None:
    with pytest.raises(KeyError):
        count("tinymlaas.no.such", state="x")
    with pytest.raises(ValueError):
        count("tinymlaas.builds.ended", state="x")
    with pytest.raises(ValueError):
        count("tinymlaas.builds.ended", state="x", cached="true", more="y")
    with pytest.raises(ValueError):
        measure("tinymlaas.builds.ended", 1.0, state="x", cached="true")
    with pytest.raises(ValueError):
        watch("tinymlaas.builds.ended", list)


def test_names_for_prometheus_are_those_that_are_served(reader: InMemoryMetricReader) -> None:
    stops = []
    for metric in METRICS.values():
        attributes = dict.fromkeys(metric.attributes, "x")
        if metric.kind is Kind.COUNTER:
            count(metric.name, **attributes)
        elif metric.kind is Kind.HISTOGRAM:
            measure(metric.name, 1.0, **attributes)
        else:
            stops.append(watch(metric.name, lambda attributes=attributes: [(1.0, attributes)]))  # type: ignore[misc]
    served = {line.split("{")[0].split(" ")[0] for line in lines(reader)}
    assert served == {name for metric in METRICS.values() for name in prometheus_names(metric)}
    for stop in stops:
        stop()


def test_a_scraper_gets_metrics_and_nothing_else(reader: InMemoryMetricReader) -> None:
    count("tinymlaas.registrations", change="LOST")
    address, server = prometheus.serve("127.0.0.1:0", reader)
    try:
        with urllib.request.urlopen(f"http://{address}/metrics") as answer:
            assert answer.headers["Content-Type"] == prometheus.CONTENT_TYPE
            assert 'tinymlaas_registrations_total{change="LOST"} 1\n' in answer.read().decode()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://{address}/")
        with pytest.raises(ServiceError) as taken:
            prometheus.serve(address, reader)
        assert taken.value.reason == "ADDRESS_IN_USE"
    finally:
        server.shutdown()
        server.server_close()
