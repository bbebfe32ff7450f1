"""Raw Kubernetes objects of which a test states only what it is about."""

from __future__ import annotations

from typing import Any

from controller.cluster import Workload, parse_workload

__all__ = ["raw_node", "raw_pod", "raw_workload", "workload"]


def raw_workload(
    name: str, annotations: dict[str, str] | None = None, *, pipeline: str = "shop", replicas: int = 2, **container: Any
) -> dict[str, Any]:
    """A Deployment that is the stage of its name; annotations without the prefix."""
    own = {
        f"sair.dev/{key}": value for key, value in {"pipeline": pipeline, "stage": name, **(annotations or {})}.items()
    }
    main = {"name": "main", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}, **container}
    return {
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
        "spec": {"replicas": replicas, "template": {"metadata": {"annotations": own}, "spec": {"containers": [main]}}},
    }


def workload(
    name: str, annotations: dict[str, str] | None = None, *, raw: dict[str, Any] | None = None, **more: Any
) -> Workload:
    """The same, or another raw one, parsed."""
    return parse_workload(raw or raw_workload(name, annotations, **more), "Deployment")


def raw_pod(
    annotations: dict[str, str] | None = None, spec: dict[str, Any] | None = None, **status: Any
) -> dict[str, Any]:
    """A running, ready pod; annotations without the prefix."""
    main = {"name": "main", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}
    return {
        "metadata": {
            "name": "detect-0",
            "namespace": "default",
            "uid": "uid-0",
            "annotations": {f"sair.dev/{key}": value for key, value in (annotations or {}).items()},
        },
        "spec": {"nodeName": "node-a", "containers": [main], **(spec or {})},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True"}],
            **status,
        },
    }


def raw_node(
    spec: dict[str, Any] | None = None, annotations: dict[str, str] | None = None, ready: str = "True"
) -> dict[str, Any]:
    """A node with 8 cores and 32 GiB."""
    return {
        "metadata": {"name": "node-a", "annotations": annotations or {}},
        "spec": spec or {},
        "status": {
            "allocatable": {"cpu": "7910m", "memory": "32Gi"},
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }
