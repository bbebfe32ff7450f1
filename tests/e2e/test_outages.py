"""In the middle of a ramp one part goes away: no request is lost, nothing is granted twice, and everything recovers by itself."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.cluster.installation import Installation
from tests.e2e.controller import redis, short_rounds
from tests.e2e.example import PIPELINE, STAGES, Example
from tests.e2e.pods import create, eventually, pods, ready, rollout, web
from tests.e2e.sampling import Sampler
from tests.e2e.stages import give_gpus, overbooked, seats, stage

SYSTEM = "sair-system"
# Up and down for as long as the tests take; the stages can just serve the most of it as they begin.
TRACE = "0 4\n15 6\n30 9\n45 12\n65 9\n80 6\n95 4\n"
AWAY_S = 8.0


@pytest.fixture(scope="module", autouse=True)
def _prepared(cluster: Cluster, installation: Installation) -> Iterator[None]:
    give_gpus(cluster, per_node=2)
    with short_rounds(cluster):
        yield
    give_gpus(cluster, per_node=0)


@pytest.fixture(scope="module")
def pipeline(cluster: Cluster, _prepared: None) -> Iterator[Example]:
    """The example under its load, SAIR scaling it; its queue is on the first node, which is never taken away."""
    # So little CPU that all of it fits on one node beside SAIR itself.
    example = Example(cluster, "e2e-outages", TRACE, cpu_max="300m", home=cluster.nodes[0].name)
    try:
        example.deploy()
        example.start_load()
        # Until SAIR has decided, there is nothing that an outage could make it forget.
        eventually(lambda: _round(example) >= 2, 60, "rounds of the controller")
        yield example
    finally:
        example.delete()


@pytest.fixture
def unharmed(cluster: Cluster, installation: Installation, pipeline: Example) -> Iterator[Example]:
    """The pipeline; afterwards every request sent meanwhile is served, SAIR decides again, and the books were right at every look."""
    with Sampler(cluster, [pipeline.namespace]) as sampler:
        yield pipeline
        installation.wait()
        before = _round(pipeline)
        sent = pipeline.births()
        eventually(lambda: sent <= pipeline.served(), 90, "every request that was sent is served")
        eventually(lambda: _round(pipeline) > before, 60, "another round of the controller")
    assert sampler.overbooked() == []
    assert overbooked(cluster) == {}
    assert {sample.restarts for sample in sampler.of(pipeline.namespace)} == {0}


@pytest.mark.parametrize("component", ["controller", "scheduler", "webhook", "redis"])
def test_a_killed_component_comes_back_and_nobody_loses_a_request(
    cluster: Cluster, unharmed: Example, component: str
) -> None:
    ids = f"sair:{{{unharmed.namespace}/{PIPELINE}}}:experiences"
    known = set(redis(cluster, "ZRANGE", ids, "0", "-1").split())

    _kill(cluster, component)
    eventually(lambda: any(map(ready, _pods_of(cluster, component))), 90, f"{component} Ready")

    # Redis, which keeps nothing over a restart here, is filled up again from what the controller holds.
    eventually(lambda: known <= set(redis(cluster, "ZRANGE", ids, "0", "-1").split()), 60, "every experience")


def test_requests_are_served_and_shares_held_while_the_api_server_is_away(
    harness: Cluster, unharmed: Example, namespace: str
) -> None:
    create(harness, namespace, stage("steady", {"gpu-rate": "0.2"}, replicas=2))
    eventually(lambda: _placed(harness, namespace, "steady") == 2, 60, "two pods on GPUs")
    before = seats(pods(harness, namespace, "steady"))
    served = unharmed.finished()

    harness.stop("kube-apiserver")
    time.sleep(AWAY_S)
    harness.start("kube-apiserver")

    assert unharmed.finished() > served
    assert seats(pods(harness, namespace, "steady")) == before
    create(harness, namespace, stage("later", {"gpu-rate": "0.2"}, replicas=2))
    eventually(lambda: _placed(harness, namespace, "later") == 2, 120, "two more pods on GPUs")


def test_without_the_webhook_only_pods_that_opted_in_wait(cluster: Cluster, unharmed: Example, namespace: str) -> None:
    cluster.kubectl("scale", "deployment/sair-webhook", "--replicas=0", f"--namespace={SYSTEM}")
    try:
        eventually(lambda: _pods_of(cluster, "webhook") == [], 60, "no webhook")
        create(cluster, namespace, web("bystander"), stage("member", {"gpu-rate": "0.2"}))
        rollout(cluster, namespace, "bystander")
        eventually(lambda: "failed calling webhook" in _events(cluster, namespace), 30, "an event that says why")
        assert pods(cluster, namespace, "member") == []
    finally:
        cluster.kubectl("scale", "deployment/sair-webhook", "--replicas=1", f"--namespace={SYSTEM}")

    # The ReplicaSet controller waits longer after every failure.
    eventually(lambda: _placed(cluster, namespace, "member") == 1, 120, "the pod, on a GPU")


def test_pods_that_come_while_the_scheduler_is_killed_are_placed_once_it_is_back(
    cluster: Cluster, unharmed: Example, namespace: str
) -> None:
    create(cluster, namespace, stage("before", {"gpu-rate": "0.3"}, replicas=2))
    eventually(lambda: _placed(cluster, namespace, "before") == 2, 60, "two pods on GPUs")

    _kill(cluster, "scheduler")
    create(cluster, namespace, stage("during", {"gpu-rate": "0.4"}, replicas=4))

    # The new extender knows what the old one had granted: the fixture's last look would find a GPU that is too full.
    eventually(lambda: _placed(cluster, namespace, "during") == 4, 120, "four more pods on GPUs")
    assert _placed(cluster, namespace, "before") == 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize("loss", ["drained", "killed"])
def test_replicas_of_a_node_that_goes_move_to_the_other_with_their_shares(
    cluster: Cluster, installation: Installation, pipeline: Example, request: pytest.FixtureRequest, loss: str
) -> None:
    stays, goes = (node.name for node in cluster.nodes)
    if loss == "killed":
        request.getfixturevalue("harness")
    _move(pipeline, stays, goes)
    with Sampler(cluster, [pipeline.namespace]) as sampler:
        try:
            if loss == "drained":
                command = ["drain", goes, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s"]
                cluster.kubectl(*command, timeout_s=100)
            else:
                cluster.kill_node(1)
            _await_on(pipeline, stays)
            sent = pipeline.births()
            # What a replica on the lost node had taken is taken over by another after a quarter of a minute.
            eventually(lambda: sent <= pipeline.served(), 90, "every request that was sent is served")
        finally:
            if loss == "killed":
                cluster.start_node(1)
            cluster.kubectl("uncordon", goes)
            cluster.wait_for_nodes()
            installation.wait()
    assert sampler.overbooked() == []
    assert overbooked(cluster) == {}


def _round(example: Example) -> int:
    """Number of the newest decision, -1 before the first."""
    return int(example.status().get("lastDecision", {}).get("round", -1))


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


def _move(example: Example, source: str, target: str) -> None:
    """Put every stage on one node."""
    example.cluster.kubectl("cordon", source)
    try:
        deployments = [f"deployment/{name}" for name in STAGES]
        example.cluster.kubectl("rollout", "restart", *deployments, f"--namespace={example.namespace}")
        _await_on(example, target)
    finally:
        example.cluster.kubectl("uncordon", source)


def _await_on(example: Example, node: str) -> None:
    try:
        eventually(lambda: _runs_on(example, node), 90, f"every stage Ready on {node}")
    except AssertionError as error:
        error.add_note(
            example.cluster.kubectl("get", "pods,events", f"--namespace={example.namespace}", "--output=wide")
        )
        raise


def _runs_on(example: Example, node: str) -> bool:
    """Whether every stage is Ready on that node and nowhere else."""
    try:
        found = example.pods()
    except ClusterError:
        return False
    alive = [pod for pod in found if ready(pod)]
    return {pod["metadata"]["annotations"]["sair.dev/stage"] for pod in alive} == set(STAGES) and {
        pod["spec"].get("nodeName") for pod in alive
    } == {node}
