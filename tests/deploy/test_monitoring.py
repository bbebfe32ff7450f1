"""Dashboard and alerts ask for metrics that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sair.annotations import MetricsEndpoint
from tests.deploy.rendered import DEPLOY, of_kind, workloads

REPOSITORY = DEPLOY.parent
SOURCES = ("webhook", "extender", "controller", "cuda_hook/agent")
_METRIC = re.compile(r"\bsair_[a-z0-9_]+")
_SUFFIX = re.compile(r"_(bucket|sum|count|total)$")


def exported() -> set[str]:
    """Names of metrics in the components' sources, and the defaults of what a stage exports."""
    files = (file for folder in SOURCES for file in Path(REPOSITORY, folder).rglob("*.py"))
    found = {name for file in files for name in re.findall(r'"(sair_[a-z0-9_]+)"', file.read_text())}
    stage = MetricsEndpoint()
    return {_SUFFIX.sub("", name) for name in (*found, stage.latency, stage.queue, stage.arrivals)}


def queries() -> Iterator[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "sair.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    (rules,) = of_kind("overlays/monitoring", "PrometheusRule")
    for group in rules["spec"]["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


@pytest.mark.parametrize("query", sorted(queries()))
def test_a_query_asks_only_for_what_some_component_exports(query: str) -> None:
    names = {_SUFFIX.sub("", name) for name in _METRIC.findall(query)}

    assert names
    assert names <= exported()


def test_no_two_panels_share_a_place_or_an_identity() -> None:
    panels = json.loads((DEPLOY / "grafana" / "sair.json").read_text())["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]

    assert len({panel["id"] for panel in panels}) == len(panels) == len(set(places))


def test_every_component_with_metrics_is_scraped_and_no_other() -> None:
    (monitor,) = (one for one in of_kind("overlays/monitoring", "PodMonitor") if one["metadata"]["name"] == "sair")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    excluded = monitor["spec"]["selector"]["matchExpressions"][0]["values"]

    for workload in workloads("base"):
        ports = {port["name"] for _, one in workload.containers() for port in one.get("ports", ())}
        component = workload.template["metadata"]["labels"]["app.kubernetes.io/component"]
        assert (endpoint["port"] in ports) == (component not in excluded), workload.name
        assert workload.namespace in monitor["spec"]["namespaceSelector"]["matchNames"]
