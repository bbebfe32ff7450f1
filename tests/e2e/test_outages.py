"""In the middle of a ramp one part goes away: no request is lost, nothing is granted twice, and users see what is documented."""

import contextlib
import io
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from sair.annotations import GPU_GRANTED, GPU_INDEX, GPU_RATE, STAGE
from tests.e2e import demo, gpu_pods
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.cluster.installation import Installation
from tests.e2e.controller import NAMESPACE, ROUND_S, journal, metric, redis, short_rounds
from tests.e2e.example import PIPELINE, STAGES, Example
from tests.e2e.pods import create, eventually, labelled, pods, ready, rollout, scale, web
from tests.e2e.rest import CONTROLLER, PodWatch, Rest, fetched
from tests.e2e.stages import give_gpus, replica, seats, stage

# Up and down for as long as the tests take; the stages can just serve the most of it as they begin.
TRACE = "0 3\n5 5\n10 7\n15 9\n20 11\n25 12\n55 9\n70 6\n85 4\n"
AWAY_S = 6.0
"""Longer than a round of the controller."""
_KINDS = {"redis": "StatefulSet"}
"""Of the components; the others are Deployments."""
_RISING_S = 4.0


@pytest.fixture(scope="module", autouse=True)
def _prepared(cluster: Cluster, installation: Installation) -> Iterator[None]:
    give_gpus(cluster, per_node=4)
    short_rounds(cluster)
    yield
    give_gpus(cluster, per_node=0)


@pytest.fixture(scope="module")
def pipeline(cluster: Cluster, _prepared: None) -> Iterator[Example]:
    """The example under its load, SAIR scaling it; its queue is on the first node, which is never taken away."""
    # So little CPU that all of it fits on one node beside SAIR itself.
    home = cluster.nodes[0].name
    example = Example(cluster, "e2e-outages", TRACE, cpu_max="250m", replicas_max=2, home=home)
    try:
        example.deploy()
        example.start_load()
        yield example
    finally:
        example.delete()


@pytest.fixture
def unharmed(cluster: Cluster, installation: Installation, pipeline: Example) -> Iterator[Example]:
    """The pipeline. Afterwards all that was sent is served, SAIR decides again and has forgotten nothing, and no GPU was ever overfull."""
    # Until SAIR has decided, there is nothing that an outage could make it forget.
    eventually(lambda: pipeline.decided() >= 2, 60, "rounds of the controller")
    known = _experiences(cluster, pipeline)
    assert known
    with PodWatch(cluster) as watch:
        yield pipeline
        before = pipeline.decided()
        installation.wait()
        sent = pipeline.births()
        eventually(lambda: sent <= pipeline.served(), 90, "every request that was sent is served")
        eventually(lambda: pipeline.decided() > before, 60, "another round of the controller")
        assert known <= _experiences(cluster, pipeline)
        assert watch.fullest() <= 1
        assert watch.restarts(pipeline.namespace) == 0


def test_the_demo_shows_the_rounds_of_a_pipeline_under_load(cluster: Cluster, pipeline: Example) -> None:
    shown = io.StringIO()

    demo.watch(cluster, pipeline.namespace, 1.5 * ROUND_S, Console(file=shown), round_s=ROUND_S)

    said = shown.getvalue()
    assert "req/s  P99" in said
    assert "requests seen in the controller's windows" in said
    assert PIPELINE in said


def test_while_the_controller_is_away_the_pipeline_serves_with_what_it_has(cluster: Cluster, unharmed: Example) -> None:
    with _away(cluster, "controller"):
        decided, told, served = unharmed.decided(), _told(cluster, unharmed), unharmed.finished()
        time.sleep(AWAY_S)
        assert unharmed.decided() == decided
        assert _told(cluster, unharmed) == told
        assert unharmed.finished() > served


def test_while_redis_is_away_rounds_go_on_and_what_waits_is_written_afterwards(
    cluster: Cluster, unharmed: Example
) -> None:
    known = _experiences(cluster, unharmed)
    (controller,) = _pods_of(cluster, "controller")
    address = controller["status"]["podIP"]

    with _away(cluster, "redis"):
        decided, served = unharmed.decided(), unharmed.finished()
        eventually(lambda: unharmed.decided() > decided, 60, "a round without Redis")
        eventually(lambda: metric(address, "sair_controller_unsaved_experiences") > 0, 60, "an experience that waits")
        assert unharmed.finished() > served

    # Redis, which keeps nothing over a restart here, is filled up again from what the controller holds.
    eventually(lambda: known < _experiences(cluster, unharmed), 60, "every experience, and a new one")
    eventually(lambda: metric(address, "sair_controller_unsaved_experiences") == 0, 60, "nothing that waits")
    assert journal(cluster, f"{unharmed.namespace}/{PIPELINE}", 20)


def test_while_the_scheduler_is_away_only_what_wants_a_gpu_waits(
    cluster: Cluster, unharmed: Example, namespace: str
) -> None:
    wished = {**gpu_pods.pipeline(), "metadata": {"name": "wished"}}
    # So much that nobody else can be put on its GPU, and what is left of that is the wish's.
    create(cluster, namespace, wished, replica("wide", "0.95", pipeline="wished"))
    create(cluster, namespace, stage("before", {"gpu-rate": "0.3"}, replicas=2))
    eventually(lambda: _placed(cluster, namespace) == 3, 60, "three pods on GPUs")
    before = seats(pods(cluster, namespace))
    controller = Rest(cluster, user=CONTROLLER)

    try:
        with _away(cluster, "scheduler"):
            create(cluster, namespace, stage("during", {"gpu-rate": "0.4"}, replicas=2), stage("plain", {}))
            controller.wish(namespace, "wished", {"wide": "1"})
            rollout(cluster, namespace, "plain")
            time.sleep(AWAY_S)
            waiting = pods(cluster, namespace, "during")
            assert [pod["status"]["phase"] for pod in waiting] == ["Pending", "Pending"]
            assert not any(_name(pod) in _events(cluster, namespace, "Pod") for pod in waiting)
            (wide,) = pods(cluster, namespace, "wide")
            assert _of(wide, GPU_GRANTED) == "0.95"
    finally:
        controller.close()

    # The new extender knows what the old one had granted, and what was wished for without any.
    eventually(lambda: _placed(cluster, namespace, "during") == 2, 120, "two more pods on GPUs")
    eventually(lambda: [_of(pod, GPU_GRANTED) for pod in pods(cluster, namespace, "wide")] == ["1"], 60, "the wish")
    after = seats([*pods(cluster, namespace, "before"), *pods(cluster, namespace, "wide")])
    assert after == before


def test_while_the_webhook_is_away_only_pods_that_opted_in_wait(
    cluster: Cluster, unharmed: Example, namespace: str
) -> None:
    with _away(cluster, "webhook"):
        create(cluster, namespace, web("bystander"), stage("member", {"gpu-rate": "0.2"}))
        rollout(cluster, namespace, "bystander")
        said = 'failed calling webhook "pods.sair.dev"'
        eventually(lambda: said in _events(cluster, namespace, "ReplicaSet"), 30, "an event that says why")
        assert pods(cluster, namespace, "member") == []

    # The ReplicaSet controller waits longer after every failure.
    eventually(lambda: _placed(cluster, namespace, "member") == 1, 120, "the pod, on a GPU")


def test_the_standbys_of_controller_and_scheduler_take_over_when_the_leaders_are_killed(
    cluster: Cluster, unharmed: Example, namespace: str
) -> None:
    components = ("controller", "scheduler")
    create(cluster, namespace, stage("before", {"gpu-rate": "0.3"}, replicas=2))
    for component in components:
        _scale(cluster, component, 2)
    for component in components:
        rollout(cluster, NAMESPACE, f"sair-{component}", timeout_s=90)
    leaders = {component: _leader(cluster, component) for component in components}
    alive = {component: {_name(pod): _uid(pod) for pod in _pods_of(cluster, component)} for component in components}

    for component in components:
        cluster.crash(alive[component].pop(leaders[component]))
    for component in components:
        _delete(cluster, leaders[component])
        # So that it is the standby that takes over, and no new pod.
        _scale(cluster, component, 1)
    create(cluster, namespace, stage("during", {"gpu-rate": "0.4"}, replicas=2))

    for component in components:
        eventually(lambda c=component: [_leader(cluster, c)] == list(alive[c]), 60, f"the standby of {component} leads")  # type: ignore[misc]  # bound here
    eventually(lambda: _placed(cluster, namespace) == 4, 60, "four pods on GPUs")


def test_while_the_api_server_is_away_requests_are_served_and_shares_held(
    harness: Cluster, unharmed: Example, namespace: str
) -> None:
    create(harness, namespace, stage("steady", {"gpu-rate": "0.2"}, replicas=2))
    eventually(lambda: _placed(harness, namespace, "steady") == 2, 60, "two pods on GPUs")
    before = seats(pods(harness, namespace, "steady"))
    stages = [pod["status"]["podIP"] for pod in unharmed.pods() if ready(pod)]
    served = _served(stages)

    harness.stop("kube-apiserver")
    try:
        assert not harness.running
        with pytest.raises(ClusterError, match="refused"):
            harness.kubectl("get", "pods", timeout_s=20)
        time.sleep(AWAY_S)
        assert _served(stages) > served
    finally:
        harness.start("kube-apiserver")

    assert seats(pods(harness, namespace, "steady")) == before
    create(harness, namespace, stage("later", {"gpu-rate": "0.2"}, replicas=2))
    eventually(lambda: _placed(harness, namespace, "later") == 2, 120, "two more pods on GPUs")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("loss", ["drained", "killed"])
def test_replicas_of_a_node_that_goes_in_a_ramp_move_to_the_other_with_their_shares(
    cluster: Cluster, installation: Installation, pipeline: Example, request: pytest.FixtureRequest, loss: str
) -> None:
    stays, goes = (node.name for node in cluster.nodes)
    if loss == "killed":
        request.getfixturevalue("harness")
    _move(pipeline, stays, goes)
    pipeline.restart_load()
    eventually(lambda: _rises(pipeline), 60, "a load that rises")
    decided = pipeline.decided()
    with PodWatch(cluster) as watch:
        try:
            if loss == "drained":
                command = ["drain", goes, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s"]
                cluster.kubectl(*command, timeout_s=100)
            else:
                cluster.kill_node(1)
            _await_on(pipeline, stays)
            eventually(lambda: _shares_are_as_wished(pipeline), 60, "the share that is wished for on each GPU pod")
            sent = pipeline.births()
            # What a replica on the lost node had taken is taken over by another after a quarter of a minute.
            eventually(lambda: sent <= pipeline.served(), 90, "every request that was sent is served")
            eventually(lambda: pipeline.decided() > decided, 60, "another round of the controller")
        finally:
            if loss == "killed":
                cluster.start_node(1)
            cluster.kubectl("uncordon", goes)
            cluster.wait_for_nodes()
            installation.wait()
        assert watch.fullest() <= 1


@contextlib.contextmanager
def _away(cluster: Cluster, component: str) -> Iterator[None]:
    """A component is killed, without a goodbye, and none takes its place for as long as this lasts."""
    crashed = _pods_of(cluster, component)
    for pod in crashed:
        cluster.crash(_uid(pod))
    _scale(cluster, component, 0)
    try:
        _delete(cluster, *map(_name, crashed))
        eventually(lambda: _pods_of(cluster, component) == [], 60, f"no {component}")
        yield
    finally:
        _scale(cluster, component, 1)
        eventually(lambda: any(map(ready, _pods_of(cluster, component))), 90, f"{component} Ready")


def _scale(cluster: Cluster, component: str, replicas: int) -> None:
    scale(cluster, NAMESPACE, f"sair-{component}", replicas, kind=_KINDS.get(component, "Deployment"))


def _delete(cluster: Cluster, *pods: str) -> None:
    """Delete pods whose processes were killed, and wait until nothing of them runs any more."""
    folder = f"/api/v1/namespaces/{NAMESPACE}/pods"
    with cluster.api() as api:
        for pod in pods:
            api.delete(f"{folder}/{pod}", grace_s=1)
        eventually(lambda: {_name(pod) for pod in api.get(folder)["items"]}.isdisjoint(pods), 60, "nothing of them")


def _leader(cluster: Cluster, component: str) -> str:
    """Name of the pod that holds the component's Lease."""
    lease = fetched(cluster, f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/sair-{component}")
    return str(lease["spec"].get("holderIdentity", "")).split("_")[0]


def _pods_of(cluster: Cluster, component: str) -> list[dict[str, Any]]:
    return labelled(cluster, NAMESPACE, f"app.kubernetes.io/component={component}")


def _experiences(cluster: Cluster, example: Example) -> set[str]:
    """Which ones Redis holds of a pipeline."""
    return set(redis(cluster, "ZRANGE", f"sair:{{{example.namespace}/{PIPELINE}}}:experiences", "0", "-1").split())


def _told(cluster: Cluster, example: Example) -> set[tuple[str, int]]:
    """The Events about a pipeline, and how often each was told."""
    found = fetched(cluster, f"/apis/events.k8s.io/v1/namespaces/{example.namespace}/events")
    return {
        (event["metadata"]["name"], (event.get("series") or {}).get("count", 1))
        for event in found["items"]
        if event["regarding"]["kind"] == "Pipeline"
    }


def _events(cluster: Cluster, namespace: str, kind: str) -> str:
    """The Events about objects of a kind, with the names of those."""
    found = fetched(cluster, f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.kind%3D{kind}")
    return "\n".join(f"{event['involvedObject']['name']}: {event.get('message', '')}" for event in found["items"])


def _placed(cluster: Cluster, namespace: str, app: str | None = None) -> int:
    return sum(seats(pods(cluster, namespace, app)).values())


def _name(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["name"])


def _uid(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["uid"])


def _of(pod: dict[str, Any], annotation: str) -> str:
    return str(pod["metadata"].get("annotations", {}).get(annotation, ""))


def _served(stages: list[str]) -> float:
    """Requests that the replicas at these addresses have served in their life, as they say without any API server."""
    total = 0.0
    for address in stages:
        with urllib.request.urlopen(f"http://{address}:9090/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        total += sum(float(line.split()[-1]) for line in lines if line.startswith("sair_stage_service_seconds_count"))
    return total


def _rises(example: Example) -> bool:
    """Whether clearly more requests came in the last seconds than in as many before."""
    ages = [time.time() - float(born) for born in example.births()]
    late = sum(age < _RISING_S for age in ages)
    early = sum(_RISING_S <= age < 2 * _RISING_S for age in ages)
    return early > 0 and late >= 1.3 * early


def _shares_are_as_wished(example: Example) -> bool:
    """Whether each GPU pod has a GPU, and of it what the Pipeline's status wishes."""
    wished = {each["name"]: each["gpuRate"] for each in example.status()["stages"] if "gpuRate" in each}
    using = [pod for pod in example.pods() if GPU_RATE in pod["metadata"]["annotations"]]
    return bool(using) and all(
        _of(pod, GPU_INDEX) and float(_of(pod, GPU_GRANTED)) == float(wished[_of(pod, STAGE)]) for pod in using
    )


def _move(example: Example, source: str, target: str) -> None:
    """Put every stage on one node."""
    example.cluster.kubectl("cordon", source)
    try:
        there = [_name(pod) for pod in example.pods() if pod["spec"].get("nodeName") == source]
        if there:
            with example.cluster.api() as api:
                for name in there:
                    api.delete(f"/api/v1/namespaces/{example.namespace}/pods/{name}")
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
    return {pod["metadata"]["annotations"][STAGE] for pod in alive} == set(STAGES) and {
        pod["spec"].get("nodeName") for pod in alive
    } == {node}
