"""Dashboards and alert rules ask only for metrics and attributes that the services declare, and leave none out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tinymlaas_servicekit.metrics import METRICS, Metric, prometheus_names

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "tinymlaas"
SERIES: dict[str, Metric] = {name: metric for metric in METRICS.values() for name in prometheus_names(metric)}
# What Prometheus and the collector add to each series.
ADDED = {"job", "instance", "service_instance_id", "le"}


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression of the chart with the place where it stands."""
    for path in sorted((CHART / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.name}: {panel['title']}", target["expr"]
    for path in sorted((CHART / "alerts").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                yield f"{path.name}: {rule['alert']}", rule["expr"]


def test_there_are_dashboards_and_alerts() -> None:
    places = {place.split(":")[0] for place, _ in expressions()}
    assert places == {"builds.json", "fleet.json", "calls.json", "tinymlaas.yaml"}


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_an_expression_asks_for_what_is_declared(place: str, expression: str) -> None:
    used = set(re.findall(r"\btinymlaas_\w+", expression))
    assert used, f"{place} shows nothing of ours"
    assert used <= SERIES.keys(), f"{place} asks for {used - SERIES.keys()}, which nothing declares"
    attributes = {name for series in used for name in SERIES[series].attributes}
    for series, selector in re.findall(r"\b(tinymlaas_\w+)\{([^}]*)\}", expression):
        asked = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert asked <= {*SERIES[series].attributes, *ADDED}, f"{place} selects by {asked}"
    for labels in re.findall(r"\bby\s*\(([^)]*)\)", expression):
        asked = {label.strip() for label in labels.split(",")}
        assert asked <= attributes | ADDED, f"{place} groups by {asked - attributes - ADDED}"
    if "le" in re.findall(r"\bby\s*\(([^)]*)\)", expression):
        assert "_bucket" in expression


def test_every_metric_is_shown_somewhere() -> None:
    used = {name for _, expression in expressions() for name in re.findall(r"\btinymlaas_\w+", expression)}
    unseen = [metric.name for metric in METRICS.values() if not used & prometheus_names(metric)]
    assert unseen == []


def test_dashboards_and_alerts_are_whole() -> None:
    seen: set[str] = set()
    for path in (CHART / "dashboards").glob("*.json"):
        board = json.loads(path.read_text())
        assert board["uid"] not in seen
        seen.add(board["uid"])
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        assert all(panel["datasource"]["uid"] == "${datasource}" for panel in board["panels"])
    for path in (CHART / "alerts").glob("*.yaml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                assert rule["labels"]["severity"] in ("info", "warning", "critical"), rule
                assert {"summary", "description"} <= rule["annotations"].keys(), rule


def test_the_guide_lists_every_metric_and_alert() -> None:
    guide = (CHART.parents[2] / "docs" / "guide-operate.md").read_text()
    for metric in METRICS.values():
        assert f"`{metric.name}`" in guide, metric.name
        assert metric.description in guide, metric.name
    for place, _ in expressions():
        file, _, name = place.partition(": ")
        if file == "tinymlaas.yaml":
            assert f"`{name}`" in guide, name
