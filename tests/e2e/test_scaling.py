"""The example pipeline under a ramp: with SAIR, with nothing, and with the cluster's own autoscaler on CPU."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.cluster.installation import Installation
from tests.e2e.example import HEADER, PIPELINE, STAGES, Example
from tests.e2e.pods import eventually, execute, ready, rollout
from tests.e2e.stages import give_gpus, overbooked

SYSTEM = "sair-system"
SLO_S = 0.5
# What the stages start with serves about 14 requests a second. All of it together takes a third of a core at the most.
# The peak lasts long enough for what was added to pay off.
RAMP = "0 5\n15 9\n27 14\n39 20\n71 5\n82 0\n"
RAMP_S = 84.0
# Rounds short enough that a minute holds several.
FAST = {"SAIR_CONTROLLER_INTERVAL_S": "8", "SAIR_CONTROLLER_WINDOW_S": "5", "SAIR_CONTROLLER_REFLEX_INTERVAL_S": "1"}


@pytest.fixture(scope="module", autouse=True)
def _fast_controller(cluster: Cluster, installation: Installation) -> Iterator[None]:
    """GPUs on paper and short rounds; afterwards as it was."""
    give_gpus(cluster, per_node=2)
    _set(cluster, [f"{name}={value}" for name, value in FAST.items()])
    yield
    _set(cluster, [f"{name}-" for name in FAST])
    give_gpus(cluster, per_node=0)


@pytest.mark.timeout(600)
def test_under_a_ramp_sair_keeps_up_where_the_same_pipeline_without_a_scaler_does_not(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {}
    scaled = Example(cluster, "e2e-scaling-sair", RAMP)
    try:
        outcomes["SAIR"] = _run(scaled)
        _assert_scaled_in_place(cluster, scaled)
        _assert_decisions_can_be_seen(cluster, scaled)
    finally:
        scaled.delete()
    for name, target in (("none", None), ("HPA on CPU, 60 %", 60)):
        other = Example(cluster, f"e2e-scaling-{'hpa' if target else 'none'}", RAMP, mode="off")
        try:
            outcomes[name] = _run(other, target)
        finally:
            other.delete()

    table = "\n".join([HEADER, *(f"| {name} | {each.row} |" for name, each in outcomes.items())])
    report = tmp_path_factory.mktemp("scaling") / "scalers.md"
    report.write_text(f"{table}\n")
    with capsys.disabled():
        print(f"\n{table}\n({report})")
    assert outcomes["SAIR"].missed < outcomes["none"].missed
    assert outcomes["SAIR"].p99_s < outcomes["none"].p99_s


@pytest.mark.timeout(400)
@pytest.mark.parametrize("loss", ["drained", "killed"])
def test_a_node_that_goes_in_the_middle_of_a_ramp_takes_no_capacity_with_it(
    cluster: Cluster, installation: Installation, loss: str
) -> None:
    stays, goes = (node.name for node in cluster.nodes)
    example = Example(cluster, f"e2e-scaling-{loss}", "0 4\n20 9\n300 9\n", home=stays)
    try:
        example.deploy()
        example.start_load()
        time.sleep(25)
        if loss == "drained":
            command = ["drain", goes, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=90s"]
            cluster.kubectl(*command, timeout_s=100)
        else:
            cluster.kill_node(1)
        eventually(lambda: _runs_on(example, stays), 120, f"every stage Ready on {stays}")

        before = example.finished()
        eventually(lambda: example.finished() > before + 50, 60, "work goes on")
        example.stop_load()
        assert [sample.overbooked for sample in example.samples if sample.overbooked] == []
        assert overbooked(cluster) == {}
    finally:
        if loss == "killed":
            cluster.start_node(1)
        cluster.kubectl("uncordon", goes)
        cluster.wait_for_nodes()
        example.delete()
        installation.wait()


def _run(example: Example, hpa_percent: int | None = None) -> Any:
    cluster = example.cluster
    example.deploy()
    if hpa_percent:
        cluster.install_metrics_server()
        rollout(cluster, "kube-system", "metrics-server")
        cluster.apply([_hpa(example.namespace, stage, hpa_percent) for stage in STAGES])
    example.start_load()
    time.sleep(RAMP_S)
    example.stop_load()
    assert [sample.overbooked for sample in example.samples if sample.overbooked] == []
    return example.outcome(SLO_S)


def _assert_scaled_in_place(cluster: Cluster, example: Example) -> None:
    seen: dict[str, set[tuple[float, str]]] = {}
    for sample in example.samples:
        for uid, setting in sample.settings.items():
            seen.setdefault(uid, set()).add(setting)
    # Pods that lived through a change, and none that was restarted for it.
    assert any(len({cpu for cpu, _ in each}) > 1 for each in seen.values()), "CPU of a live pod changed"
    assert any(len({share for _, share in each}) > 1 for each in seen.values()), "share of a live pod changed"
    assert {sample.restarts for sample in example.samples} == {0}
    for pod in example.pods():
        granted = pod["metadata"]["annotations"].get("sair.dev/gpu-granted")
        if granted and ready(pod):
            shown = execute(cluster, example.namespace, pod["metadata"]["name"], "cat", "/etc/sair/gpu-granted")
            assert shown == granted


def _assert_decisions_can_be_seen(cluster: Cluster, example: Example) -> None:
    shown = cluster.kubectl("get", "pipelines", f"--namespace={example.namespace}")
    assert PIPELINE in shown
    status = example.status()
    assert status["lastDecision"]["round"] >= 3
    assert {stage["name"] for stage in status["stages"]} == set(STAGES)
    assert status["p99Seconds"] > 0
    events = json.loads(cluster.kubectl("get", "events", f"--namespace={example.namespace}", "--output=json"))["items"]
    told = {event["reason"] for event in events if event["involvedObject"]["kind"] == "Pipeline"}
    assert told & {"Scaled", "Reflex"}
    journal = f"sair:{{{example.namespace}/{PIPELINE}}}:decisions"
    command = ["redis-cli", "--user", "sair", "--no-auth-warning", "XLEN", journal]
    in_redis = cluster.kubectl("exec", "sair-redis-0", f"--namespace={SYSTEM}", "--container=redis", "--", *command)
    assert int(in_redis) >= status["lastDecision"]["round"]


def _runs_on(example: Example, node: str) -> bool:
    try:
        pods = [pod for pod in example.pods() if pod["spec"].get("nodeName") == node and ready(pod)]
    except ClusterError:
        return False
    return {pod["metadata"]["annotations"]["sair.dev/stage"] for pod in pods} == set(STAGES)


def _hpa(namespace: str, name: str, percent: int) -> dict[str, Any]:
    metric = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 1,
            "maxReplicas": 6,
            "metrics": [{"type": "Resource", "resource": metric}],
        },
    }


def _set(cluster: Cluster, variables: list[str]) -> None:
    cluster.kubectl("set", "env", "deployment/sair-controller", f"--namespace={SYSTEM}", *variables)
    rollout(cluster, SYSTEM, "sair-controller", timeout_s=90)
