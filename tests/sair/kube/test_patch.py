from __future__ import annotations

import pytest

from sair.crd import custom_resource_definition
from sair.errors import Conflict, NotFound
from sair.kube.client import Api, PatchKind
from sair.kube.errors import Refused
from sair.kube.patch import apply, apply_status, merge_patch_annotations, read_scale, resize_cpu, scale
from sair.kube.resources import DEPLOYMENTS, NODES, PIPELINES, PODS
from sair.quantities import Millicores
from tests.sair.kube.objects import deployment, node, pod
from tests.sair.kube.waiting import eventually_async

ANOTHER_UID = "00000000-0000-0000-0000-000000000000"


async def test_annotations_are_set_and_removed_and_nothing_else_is_touched(api: Api, namespace: str) -> None:
    made = await api.create(PODS.path(namespace), pod("a", annotations={"keep": "1", "drop": "2"}))
    now = await merge_patch_annotations(
        api, PODS, namespace, "a", {"sair.dev/gpu-granted": "0.5", "drop": None}, component="extender"
    )
    assert now["metadata"]["annotations"] == {"keep": "1", "sair.dev/gpu-granted": "0.5"}
    assert now["spec"] == made["spec"]
    assert "sair-extender" in {entry["manager"] for entry in now["metadata"]["managedFields"]}


async def test_a_cluster_wide_object_is_annotated_as_well(api: Api, namespace: str) -> None:
    await api.create(NODES.path(), node(namespace))
    now = await merge_patch_annotations(api, NODES, None, namespace, {"sair.dev/gpus": "[]"}, component="agent")
    assert now["metadata"]["annotations"]["sair.dev/gpus"] == "[]"
    await api.delete(NODES.path(None, namespace))


async def test_annotations_are_not_set_on_another_object_that_took_the_name(api: Api, namespace: str) -> None:
    made = await api.create(PODS.path(namespace), pod("a"))
    with pytest.raises(Conflict):
        await merge_patch_annotations(api, PODS, namespace, "a", {"x": "1"}, component="extender", uid=ANOTHER_UID)
    await merge_patch_annotations(
        api, PODS, namespace, "a", {"x": "1"}, component="extender", uid=made["metadata"]["uid"]
    )
    with pytest.raises(NotFound):
        await merge_patch_annotations(api, PODS, namespace, "b", {"x": "1"}, component="extender")


async def test_annotations_are_not_set_if_somebody_wrote_since(api: Api, namespace: str) -> None:
    version = (await api.create(PODS.path(namespace), pod("a")))["metadata"]["resourceVersion"]
    await merge_patch_annotations(api, PODS, namespace, "a", {"x": "1"}, component="extender", resource_version=version)
    with pytest.raises(Conflict):
        await merge_patch_annotations(
            api, PODS, namespace, "a", {"x": "2"}, component="extender", resource_version=version
        )


async def test_a_pipeline_is_applied_and_its_status_beside_it(api: Api, namespace: str) -> None:
    crd = custom_resource_definition()
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
    await api.patch(path, crd, PatchKind.APPLY, field_manager="test", force=True)

    async def served() -> bool:
        try:
            await api.get(PIPELINES.path(namespace))
        except NotFound:
            return False
        return True

    await eventually_async(served)
    with pytest.raises(NotFound):
        await apply_status(api, PIPELINES, namespace, "p", {"bottleneck": "detect"}, component="controller")
    old = (await apply(api, PIPELINES, namespace, "p", {"spec": {"sloP99": "250ms"}}, component="controller"))[
        "metadata"
    ]["resourceVersion"]
    now = await apply_status(
        api, PIPELINES, namespace, "p", {"bottleneck": "detect", "p99Seconds": 0.2}, component="controller"
    )
    assert (now["spec"], now["status"]) == ({"sloP99": "250ms"}, {"bottleneck": "detect", "p99Seconds": 0.2})
    # What is no longer applied is removed, as ownership by apply has it.
    now = await apply_status(api, PIPELINES, namespace, "p", {"bottleneck": "classify"}, component="controller")
    assert now["status"] == {"bottleneck": "classify"}
    with pytest.raises(Conflict):
        await apply_status(
            api, PIPELINES, namespace, "p", {"bottleneck": "x"}, component="controller", resource_version=old
        )
    with pytest.raises(Refused, match="sloP99"):
        await apply(api, PIPELINES, namespace, "p", {"spec": {"sloP99": "fast"}}, component="controller")


async def test_replicas_change_through_the_scale_subresource(api: Api, namespace: str) -> None:
    made = await api.create(DEPLOYMENTS.path(namespace), deployment("a", 1))
    now = await scale(api, DEPLOYMENTS, namespace, "a", 3, component="controller", uid=made["metadata"]["uid"])
    assert now["spec"]["replicas"] == 3
    assert (await read_scale(api, DEPLOYMENTS, namespace, "a"))["spec"]["replicas"] == 3
    current = now["metadata"]["resourceVersion"]
    await scale(api, DEPLOYMENTS, namespace, "a", 0, component="controller", resource_version=current)
    with pytest.raises(Conflict):
        await scale(api, DEPLOYMENTS, namespace, "a", 5, component="controller", resource_version=current)
    with pytest.raises(Conflict):
        await scale(api, DEPLOYMENTS, namespace, "a", 5, component="controller", uid=ANOTHER_UID)
    assert (await read_scale(api, DEPLOYMENTS, namespace, "a"))["spec"].get("replicas", 0) == 0


async def test_cpu_changes_in_place_and_memory_stays(api: Api, namespace: str) -> None:
    made = await api.create(PODS.path(namespace), pod("a"))
    now = await resize_cpu(
        api,
        namespace,
        "a",
        container="main",
        request=Millicores(300),
        limit=Millicores(600),
        component="controller",
        uid=made["metadata"]["uid"],
    )
    expected = {"requests": {"cpu": "300m", "memory": "64Mi"}, "limits": {"cpu": "600m", "memory": "64Mi"}}
    assert now["spec"]["containers"][0]["resources"] == expected
    now = await resize_cpu(api, namespace, "a", container="main", request=Millicores(250), component="controller")
    assert now["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "600m"
    assert now["metadata"]["uid"] == made["metadata"]["uid"]


async def test_a_resize_that_breaks_a_rule_or_a_precondition_is_refused(api: Api, namespace: str) -> None:
    await api.create(PODS.path(namespace), pod("a"))
    with pytest.raises(Refused, match="must be less than or equal to cpu limit"):
        await resize_cpu(api, namespace, "a", container="main", request=Millicores(900), component="controller")
    with pytest.raises(Conflict):
        await resize_cpu(
            api, namespace, "a", container="main", request=Millicores(210), component="controller", uid=ANOTHER_UID
        )
    with pytest.raises(Conflict):
        await resize_cpu(
            api, namespace, "a", container="main", request=Millicores(210), component="controller", resource_version="1"
        )
