from typing import Any

import pytest

from controller.cluster import ScaleTarget, parse_node, parse_pod, parse_scale_target, parse_workload
from controller.worlds.room import cluster_room
from sair.errors import WireError
from sair.quantities import GpuRate
from tests.controller.workloads import raw_node, raw_pod, raw_workload

STAGE = {"pipeline": "shop", "stage": "detect", "gpu-rate": "0.3"}
GRANT = {"gpu-granted": "0.2", "gpu-index": "1"}


def test_a_workload_that_did_not_opt_in_is_kept_without_a_stage() -> None:
    raw = raw_workload("web")
    del raw["spec"]["template"]["metadata"]
    seen = parse_workload(raw, "Deployment")
    assert (seen.spec, seen.problem, seen.meant) == (None, "", "")


def test_a_workload_with_malformed_annotations_says_what_is_wrong_and_which_pipeline_it_means() -> None:
    seen = parse_workload(raw_workload("detect", {"gpu-rate": "many"}), "Deployment")
    assert seen.spec is None
    assert "sair.dev/gpu-rate: 'many'" in seen.problem
    assert seen.meant == "default/shop"


def test_a_workload_with_more_replicas_than_a_stage_may_have_says_so() -> None:
    raw = raw_workload("detect", STAGE)
    raw["spec"]["replicas"] = 10_001
    seen = parse_workload(raw, "Deployment")
    assert (seen.spec, seen.meant) == (None, "default/shop")
    assert "spec.replicas: 10001" in seen.problem
    assert "at most 10000" in seen.problem
    raw["spec"]["replicas"] = 10_000
    assert parse_workload(raw, "Deployment").problem == ""


@pytest.mark.parametrize("raw", [{}, {"metadata": {"name": "a", "namespace": "b"}}, {"metadata": 3}])
def test_what_has_no_name_is_no_workload(raw: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        parse_workload(raw, "Deployment")


def test_the_annotated_container_is_the_one_whose_cpu_counts() -> None:
    raw = raw_workload("detect", {"container": "model"})
    model = {"name": "model", "resources": {"requests": {"cpu": "2500m"}}}
    raw["spec"]["template"]["spec"]["containers"].append(model)
    seen = parse_workload(raw, "StatefulSet")
    assert (seen.container, seen.cpu, seen.memory) == ("model", 2500, 512)


def test_a_pods_grant_counts_whatever_its_user_wrote_beside_it() -> None:
    seen = parse_pod(raw_pod({**STAGE, **GRANT, "slo-p99": "soon"}))
    assert (seen.spec, seen.pipeline) == (None, None)
    assert (seen.wished, seen.granted, seen.gpu_index) == (GpuRate(300), GpuRate(200), 1)


@pytest.mark.parametrize("half", ["gpu-granted", "gpu-index"])
def test_half_a_grant_is_none(half: str) -> None:
    seen = parse_pod(raw_pod({**STAGE, half: GRANT[half]}))
    assert (seen.granted, seen.gpu_index) == (None, None)
    assert seen.stage == "detect"


def test_what_a_pod_takes_is_counted_as_the_scheduler_counts_it() -> None:
    def one(cpu: str, **more: str) -> dict[str, Any]:
        return {"name": f"c{cpu}", "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}, **more}

    spec = {"containers": [one("1"), one("500m")], "initContainers": [one("250m", restartPolicy="Always"), one("1")]}
    assert parse_pod(raw_pod(STAGE, spec)).cpu == 1750
    assert parse_pod(raw_pod(STAGE, spec | {"initContainers": [one("4")]})).cpu == 4000
    seen = parse_pod(raw_pod(STAGE, spec | {"overhead": {"cpu": "100m", "memory": "64Mi"}}))
    assert (seen.cpu, seen.memory) == (1850, 3 * 1024 + 64)


def test_a_pod_being_deleted_serves_no_more_but_takes_its_room_until_it_is_gone() -> None:
    raw = raw_pod({**STAGE, **GRANT})
    raw["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    leaving = parse_pod(raw)
    assert (leaving.alive, leaving.occupies) == (False, True)
    gone = parse_pod(raw_pod({**STAGE, **GRANT}, phase="Succeeded"))
    assert (gone.alive, gone.occupies) == (False, False)
    node = parse_node(raw_node(annotations={"sair.dev/gpus": '[{"memoryMi": 1000}, {"memoryMi": 1000}]'}))
    (room,) = cluster_room([node], [leaving, gone], "default/shop").nodes
    assert room.free_cpu == 6910
    # It wishes for 0.3 and has 0.2: nobody else gets what it waits for.
    assert [card.free_milli for card in room.gpus] == [1000, 700]
    assert room.held == {"detect": 1}
    assert cluster_room([node], [leaving], "default/other").nodes[0].held == {}


def test_what_the_node_gave_and_why_it_gives_no_more_is_known() -> None:
    has = [{"name": "main", "resources": {"requests": {"cpu": "1"}}}]
    pending = {"type": "PodResizePending", "status": "True", "reason": "Deferred", "message": "later"}
    seen = parse_pod(raw_pod(STAGE, conditions=[pending], containerStatuses=has))
    assert (seen.container_has, seen.resize_problem) == (1000, "Deferred: later")
    assert parse_pod(raw_pod(STAGE)).container_has is None


@pytest.mark.parametrize(
    ("state", "began_s"),
    [
        ({"running": {"startedAt": "2026-01-01T00:00:10Z"}}, 1767225610.0),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, None),
        ({"running": {}}, None),
        ({"running": {"startedAt": "soon"}}, None),
    ],
)
def test_when_the_chosen_container_began_is_known_while_it_runs(state: dict[str, Any], began_s: float | None) -> None:
    other = {"name": "sidecar", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    seen = parse_pod(raw_pod(STAGE, containerStatuses=[other, {"name": "main", "state": state}]))
    assert seen.began_s == began_s


@pytest.mark.parametrize(
    ("raw", "takes"),
    [
        (raw_node(), True),
        (raw_node(ready="Unknown"), False),
        (raw_node({"unschedulable": True}), False),
        (raw_node({"taints": [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]}), False),
        (raw_node({"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]}), True),
        (raw_node({"taints": [{"key": "node.kubernetes.io/x", "effect": "PreferNoSchedule"}]}), True),
    ],
    ids=["ready", "silent", "cordoned", "control plane", "tainted for GPUs", "only preferred"],
)
def test_a_node_has_room_only_if_pods_are_put_there(raw: dict[str, Any], takes: bool) -> None:
    node = parse_node(raw)
    assert node.schedulable is takes
    assert [each.free_cpu for each in cluster_room([node], [], "default/shop").nodes] == ([7910] if takes else [])


def test_a_malformed_inventory_is_refused_with_the_nodes_name() -> None:
    with pytest.raises(WireError, match="of node node-a"):
        parse_node(raw_node(annotations={"sair.dev/gpus": '[{"memoryMi": -1}]'}))


def test_the_target_of_another_autoscaler_is_read() -> None:
    metadata = {"name": "own", "namespace": "default"}
    raw = {"metadata": metadata, "spec": {"scaleTargetRef": {"kind": "StatefulSet", "name": "detect"}}}
    expected = ScaleTarget("HorizontalPodAutoscaler/own", "default", "StatefulSet", "detect")
    assert parse_scale_target(raw, "HorizontalPodAutoscaler") == expected
    keda = {"metadata": metadata, "spec": {"scaleTargetRef": {"name": "detect"}}}
    assert parse_scale_target(keda, "ScaledObject").kind == "Deployment"
    with pytest.raises(WireError, match="scaleTargetRef"):
        parse_scale_target({"metadata": metadata}, "ScaledObject")
