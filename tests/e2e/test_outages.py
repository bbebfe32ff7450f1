"""Any one part goes away for a while: nothing is lost, nothing is granted twice, and everything recovers by itself."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.cluster.installation import Installation
from tests.e2e.pods import create, eventually, pods, ready, rollout, web
from tests.e2e.stages import give_gpus, overbooked, seats, stage

SYSTEM = "sair-system"


@pytest.fixture(autouse=True)
def _four_gpus(cluster: Cluster, installation: Installation) -> Iterator[None]:
    """GPUs before, and afterwards the books in order and every component Ready again."""
    give_gpus(cluster, per_node=2)
    yield
    assert overbooked(cluster) == {}
    give_gpus(cluster, per_node=0)
    installation.wait()


def test_pods_that_come_while_the_scheduler_is_killed_are_placed_once_it_is_back(
    cluster: Cluster, namespace: str
) -> None:
    create(cluster, namespace, stage("before", {"gpu-rate": "0.6"}, replicas=2))
    eventually(lambda: _placed(cluster, namespace, "before") == 2, 60, "two pods on GPUs")

    _kill(cluster, "scheduler")
    create(cluster, namespace, stage("during", {"gpu-rate": "0.4"}, replicas=6))
    eventually(lambda: _placed(cluster, namespace, "during") == 6, 120, "six more pods on GPUs")

    # Two have 0.6 and 0.4; the other two have 0.4 twice: the new extender knew what the old one had granted.
    assert overbooked(cluster) == {}
    assert _placed(cluster, namespace, "before") == 2


def test_without_the_webhook_only_pods_that_opted_in_wait(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("scale", "deployment/sair-webhook", "--replicas=0", f"--namespace={SYSTEM}")
    try:
        eventually(lambda: _pods_of(cluster, "webhook") == [], 60, "no webhook")
        create(cluster, namespace, web("bystander"))
        rollout(cluster, namespace, "bystander")

        create(cluster, namespace, stage("member", {"gpu-rate": "0.5"}))
        eventually(lambda: "failed calling webhook" in _events(cluster, namespace), 30, "an event that says why")
        assert pods(cluster, namespace, "member") == []
    finally:
        cluster.kubectl("scale", "deployment/sair-webhook", "--replicas=1", f"--namespace={SYSTEM}")

    # The ReplicaSet controller waits longer after every failure.
    eventually(lambda: _placed(cluster, namespace, "member") == 1, 120, "the pod, on a GPU")


def test_grants_outlive_an_outage_of_the_api_server(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, stage("steady", {"gpu-rate": "0.7"}, replicas=4))
    eventually(lambda: _placed(cluster, namespace, "steady") == 4, 60, "four pods on GPUs")
    before = seats(pods(cluster, namespace, "steady"))

    cluster.stop("kube-apiserver")
    time.sleep(8)
    cluster.start("kube-apiserver")

    assert seats(pods(cluster, namespace, "steady")) == before
    create(cluster, namespace, stage("later", {"gpu-rate": "0.3"}, replicas=4))
    eventually(lambda: _placed(cluster, namespace, "later") == 4, 120, "four more pods on GPUs")
    assert set(seats([*pods(cluster, namespace, "steady"), *pods(cluster, namespace, "later")]).values()) == {2}


@pytest.mark.parametrize("component", ["controller", "redis", "webhook", "scheduler"])
def test_a_killed_component_is_ready_again_by_itself(
    cluster: Cluster, installation: Installation, namespace: str, component: str
) -> None:
    create(cluster, namespace, stage("witness", {"gpu-rate": "0.5"}, replicas=2))
    eventually(lambda: _placed(cluster, namespace, "witness") == 2, 60, "two pods on GPUs")
    before = {pod["metadata"]["uid"] for pod in pods(cluster, namespace, "witness")}

    _kill(cluster, component)
    eventually(lambda: any(map(ready, _pods_of(cluster, component))), 90, f"{component} Ready")

    assert {pod["metadata"]["uid"] for pod in pods(cluster, namespace, "witness")} == before


def test_replicas_of_a_lost_node_and_their_shares_move_to_the_other(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, stage("nomad", {"gpu-rate": "0.4"}, replicas=4))
    eventually(lambda: _placed(cluster, namespace, "nomad") == 4, 60, "four pods on GPUs")
    # Of the two nodes, the one without the scheduler, so that this is about the shares alone.
    (scheduler,) = [pod["spec"]["nodeName"] for pod in _pods_of(cluster, "scheduler")]
    lost = 1 if scheduler == "node0" else 0

    cluster.kill_node(lost)
    try:
        eventually(
            lambda: (
                sum(count for (node, _), count in seats(pods(cluster, namespace, "nomad")).items() if node == scheduler)
                == 4
            ),
            120,
            "all four on the node that is left",
        )
        assert set(seats(pods(cluster, namespace, "nomad")).values()) == {2}
        assert overbooked(cluster) == {}
    finally:
        cluster.start_node(lost)
        cluster.wait_for_nodes()


def _placed(cluster: Cluster, namespace: str, app: str) -> int:
    return sum(seats(pods(cluster, namespace, app)).values())


def _pods_of(cluster: Cluster, component: str) -> list[dict[str, Any]]:
    selector = f"--selector=app.kubernetes.io/component={component}"
    found: list[dict[str, Any]] = json.loads(
        cluster.kubectl("get", "pods", f"--namespace={SYSTEM}", selector, "--output=json")
    )["items"]
    return found


def _kill(cluster: Cluster, component: str) -> None:
    """Delete a component's pods without letting them say goodbye."""
    selector = f"--selector=app.kubernetes.io/component={component}"
    cluster.kubectl("delete", "pods", f"--namespace={SYSTEM}", selector, "--grace-period=0", "--force")


def _events(cluster: Cluster, namespace: str) -> str:
    try:
        return cluster.kubectl("get", "events", f"--namespace={namespace}")
    except ClusterError:
        return ""
