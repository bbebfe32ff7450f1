"""Stages of pipelines as users write them, and GPUs that exist on paper."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sair.annotations import GPU_GRANTED, GPU_INDEX, GPUS, PIPELINE, STAGE
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.node import PAUSE_IMAGE
from tests.e2e.pods import RESTRICTED_CONTAINER, RESTRICTED_POD, annotate

GPU_MEMORY_MI = 16_000


def give_gpus(cluster: Cluster, per_node: int) -> None:
    """Announce GPUs on every node, as a node agent with a driver under it would."""
    card = {"memoryMi": GPU_MEMORY_MI, "model": "paper"}
    for node in cluster.nodes:
        cards = [{**card, "uuid": f"GPU-{node.name}-{index}"} for index in range(per_node)]
        annotate(cluster, f"/api/v1/nodes/{node.name}", {GPUS: json.dumps(cards)})


def stage(
    name: str, annotations: Mapping[str, str], *, replicas: int = 1, pod: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A Deployment that is one stage of the pipeline `e2e`; its container only sleeps.

    Args:
        name: of the Deployment and of the stage.
        annotations: of the pod template, besides pipeline and stage, without the prefix `sair.dev/`.
        replicas: how many.
        pod: fields of the pod's specification to add.
    """
    # The controller looks on: what these tests change, they change themselves.
    own = {f"sair.dev/{key}": value for key, value in {"mode": "off", **annotations}.items()}
    container = {
        "name": "sleep",
        "image": PAUSE_IMAGE,
        "imagePullPolicy": "Never",
        "resources": {"requests": {"cpu": "1m", "memory": "4Mi"}},
        "securityContext": RESTRICTED_CONTAINER,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": {PIPELINE: "e2e", STAGE: name, **own}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "automountServiceAccountToken": False,
                    "securityContext": RESTRICTED_POD,
                    "containers": [container],
                    **(pod or {}),
                },
            },
        },
    }


def replica(name: str, rate: str, *, pipeline: str = "e2e", node: str | None = None) -> dict[str, Any]:
    """A pod on its own that is the only replica of the stage of its name.

    Args:
        name: of the pod and the stage.
        rate: share to begin with.
        pipeline: of the stage.
        node: where it has to be.
    """
    template = stage(name, {"gpu-rate": rate})["spec"]["template"]
    own = template["metadata"]["annotations"] | {PIPELINE: pipeline}
    where = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}, "annotations": own},
        "spec": template["spec"] | where,
    }


def seats(pods: list[dict[str, Any]]) -> "Counter[tuple[str, str]]":
    """How many of these pods each GPU has, by node and index; those without a GPU are not counted."""
    placed = [pod for pod in pods if GPU_INDEX in pod["metadata"].get("annotations", {})]
    return Counter((pod["spec"]["nodeName"], pod["metadata"]["annotations"][GPU_INDEX]) for pod in placed)


def granted(pods: list[dict[str, Any]]) -> list[str]:
    """The shares granted to these pods."""
    return [pod["metadata"].get("annotations", {}).get(GPU_GRANTED, "") for pod in pods]
