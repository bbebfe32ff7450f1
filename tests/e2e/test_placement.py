"""Pods land on GPUs by fraction, on a live scheduler with the extender beside it."""

from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.e2e.bars import Processors, judged
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.installation import Installation
from tests.e2e.pods import create, eventually, pods, scale
from tests.e2e.rest import fetched
from tests.e2e.stages import GPU_MEMORY_MI, give_gpus, granted, seats, stage

_SECONDS = 10


@pytest.fixture(autouse=True)
def _eight_gpus(cluster: Cluster, installation: Installation) -> Iterator[None]:
    give_gpus(cluster, per_node=4)
    yield
    give_gpus(cluster, per_node=0)


def test_sixteen_halves_put_exactly_two_on_each_of_eight_gpus(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, stage("half", {"gpu-rate": "0.5"}, replicas=16))

    eventually(lambda: sum(seats(pods(cluster, namespace, "half")).values()) == 16, 60, "16 pods on GPUs")

    assert set(seats(pods(cluster, namespace, "half")).values()) == {2}
    assert len(seats(pods(cluster, namespace, "half"))) == 8
    assert set(granted(pods(cluster, namespace, "half"))) == {"0.5"}


def test_forty_pods_at_once_all_bind_within_seconds(cluster: Cluster, namespace: str) -> None:
    processors = Processors()
    create(cluster, namespace, stage("fifth", {"gpu-rate": "0.2"}, replicas=40))

    eventually(lambda: sum(seats(pods(cluster, namespace, "fifth")).values()) == 40, 60, "40 pods on GPUs")

    found = pods(cluster, namespace, "fifth")
    assert set(seats(found).values()) == {5}
    # As the API server's own clock has it, from the first pod's creation to the last one's binding.
    created = [datetime.fromisoformat(pod["metadata"]["creationTimestamp"]) for pod in found]
    bound = [
        datetime.fromisoformat(condition["lastTransitionTime"])
        for pod in found
        for condition in pod["status"]["conditions"]
        if condition["type"] == "PodScheduled"
    ]
    assert len(bound) == 40
    took_s = (max(bound) - min(created)).total_seconds()
    if took_s >= _SECONDS:
        judged(processors.busy)
    assert took_s < _SECONDS


def test_a_stage_that_does_not_fit_stays_pending_and_its_event_says_why(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, stage("full", {"gpu-rate": "0.9"}, replicas=8))
    eventually(lambda: sum(seats(pods(cluster, namespace, "full")).values()) == 8, 60, "every GPU nearly full")

    create(cluster, namespace, stage("late", {"gpu-rate": "0.5"}))
    eventually(lambda: _failures(cluster, namespace) != [], 30, "a FailedScheduling event")

    (late,) = pods(cluster, namespace, "late")
    assert late["status"]["phase"] == "Pending"
    assert "nodeName" not in late["spec"]
    assert "0.1 of 0.5 free" in _failures(cluster, namespace)[-1]

    # Room made is taken.
    scale(cluster, namespace, "full", 7)
    eventually(lambda: sum(seats(pods(cluster, namespace, "late")).values()) == 1, 60, "the late one on a GPU")


def test_more_memory_than_any_gpu_has_is_said_so(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, stage("huge", {"gpu-rate": "0.1", "gpu-memory": "80Gi"}))
    eventually(lambda: _failures(cluster, namespace) != [], 30, "a FailedScheduling event")

    assert f"whose largest GPU has {GPU_MEMORY_MI}Mi of the 81920Mi needed" in _failures(cluster, namespace)[-1]


def test_node_affinity_and_taints_are_respected(cluster: Cluster, namespace: str) -> None:
    other, wanted = (node.name for node in cluster.nodes)
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [wanted]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    create(
        cluster,
        namespace,
        stage("picky", {"gpu-rate": "0.25"}, replicas=6, pod={"affinity": {"nodeAffinity": required}}),
    )
    eventually(lambda: sum(seats(pods(cluster, namespace, "picky")).values()) == 6, 60, "6 pods on GPUs")
    assert {node for node, _ in seats(pods(cluster, namespace, "picky"))} == {wanted}

    cluster.kubectl("taint", "node", wanted, "e2e=yes:NoSchedule")
    try:
        create(cluster, namespace, stage("plain", {"gpu-rate": "0.25"}, replicas=6))
        eventually(lambda: sum(seats(pods(cluster, namespace, "plain")).values()) == 6, 60, "6 pods on GPUs")
        assert {node for node, _ in seats(pods(cluster, namespace, "plain"))} == {other}
    finally:
        cluster.kubectl("taint", "node", wanted, "e2e-")


def _failures(cluster: Cluster, namespace: str) -> list[str]:
    events = fetched(cluster, f"/api/v1/namespaces/{namespace}/events")["items"]
    return [event["message"] for event in events if event["reason"] == "FailedScheduling"]
