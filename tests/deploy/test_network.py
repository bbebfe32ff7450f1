"""The NetworkPolicies let through what the components use, and nothing that no component uses.

Read from the manifests, because the cluster of the end-to-end tests has a network that enforces no policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.deploy.rendered import EXAMPLES, INSTALLATIONS, Workload, of_kind, workloads

installations = pytest.mark.parametrize("folder", INSTALLATIONS)
examples = pytest.mark.parametrize("folder", EXAMPLES)


@dataclass(frozen=True, slots=True)
class Peer:
    """One end of a connection. `labels` None: it is no pod, as the API server often is not."""

    namespace: str
    labels: Mapping[str, str] | None


OUTSIDE = Peer("", None)
PROMETHEUS = Peer("monitoring", {"app.kubernetes.io/name": "prometheus"})
STRANGER = Peer("somebody", {"app": "anything"})
SERVED: Mapping[str, tuple[tuple[str, Peer], ...]] = {
    "sair-webhook": (("admission", OUTSIDE), ("metrics", PROMETHEUS)),
    "sair-controller": (("metrics", PROMETHEUS),),
    "sair-scheduler": (("metrics", PROMETHEUS), ("sched-metrics", PROMETHEUS)),
    "sair-agent": (("metrics", PROMETHEUS),),
    "sair-redis": (),
}
"""Who is to reach which port of whom, besides the controller, which is to reach Redis."""


@installations
def test_every_connection_that_the_components_need_is_allowed(folder: str) -> None:
    by_name = {each.name: each for each in workloads(folder)}
    assert by_name.keys() == SERVED.keys()
    for name, connections in SERVED.items():
        for port, peer in connections:
            assert reaches(folder, peer, by_name[name], port), (name, port)

    assert reaches(folder, peer_of(by_name["sair-controller"]), by_name["sair-redis"], "redis")


@installations
def test_redis_is_reached_by_the_controller_alone(folder: str) -> None:
    by_name = {each.name: each for each in workloads(folder)}
    others = [peer_of(each) for name, each in by_name.items() if name not in ("sair-controller", "sair-redis")]

    assert not any(reaches(folder, peer, by_name["sair-redis"], "redis") for peer in (STRANGER, OUTSIDE, *others))


@installations
def test_every_declared_port_is_open_to_somebody_and_every_opened_port_is_declared(folder: str) -> None:
    for workload in workloads(folder):
        declared = {port["name"] for _, one in workload.containers() for port in one.get("ports", ())}
        opened = {
            port["port"]
            for policy in selecting(folder, workload)
            for rule in policy["spec"].get("ingress", ())
            for port in rule.get("ports", ())
        }
        assert opened == declared, workload.name


@installations
def test_whoever_asks_the_api_server_may_send_to_it(folder: str) -> None:
    for workload in workloads(folder):
        restricted = [one for one in selecting(folder, workload) if "Egress" in one["spec"]["policyTypes"]]
        for policy in restricted:
            # Redis' init container writes the password: the Service's port, and the server's own behind it.
            anywhere = [rule for rule in policy["spec"]["egress"] if "to" not in rule]
            assert {443, 6443} <= {port["port"] for rule in anywhere for port in rule["ports"]}, workload.name


@examples
def test_the_example_reaches_its_queue_and_its_metrics_are_open_to_the_controller(folder: str) -> None:
    by_name = {each.name: each for each in workloads(folder)}
    queue = by_name.pop("redis")
    for each in by_name.values():
        assert reaches(folder, peer_of(each), queue, "redis"), each.name
        # No policy selects a stage: the controller, in another namespace, reads every stage's metrics.
        assert selecting(folder, each) == []
    assert not reaches(folder, STRANGER, queue, "redis")


def reaches(folder: str, source: Peer, target: Workload, port: str) -> bool:
    """Whether the rendered policies let `source` connect to a named port of the target's pods."""
    policies = [one for one in selecting(folder, target) if "Ingress" in one["spec"]["policyTypes"]]
    if not policies:
        return True
    rules = [rule for policy in policies for rule in policy["spec"].get("ingress", ())]
    return any(
        any(each["port"] == port for each in rule.get("ports", ({"port": port},)))
        and ("from" not in rule or any(_is(source, one, target.namespace) for one in rule["from"]))
        for rule in rules
    )


def selecting(folder: str, workload: Workload) -> list[dict[str, Any]]:
    """The policies that hold for a workload's pods."""
    return list(_selecting(folder, workload.namespace, workload.template["metadata"]["labels"]))


def peer_of(workload: Workload) -> Peer:
    """A workload's pods as the source of a connection."""
    return Peer(workload.namespace, workload.template["metadata"]["labels"])


def _selecting(folder: str, namespace: str, labels: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for policy in of_kind(folder, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"].get("matchLabels", {})
        if policy["metadata"]["namespace"] == namespace and selector.items() <= labels.items():
            yield policy


def _is(source: Peer, selector: Mapping[str, Any], namespace: str) -> bool:
    if source.labels is None:
        return False
    assert selector.keys() <= {"podSelector", "namespaceSelector"}, "this reader knows no other selector"
    assert selector.get("namespaceSelector", {}) == {}, "nor namespaces by label"
    pods = selector.get("podSelector", {}).get("matchLabels", {})
    here = "namespaceSelector" in selector or source.namespace == namespace
    return here and pods.items() <= source.labels.items()
