"""Manifests of the harness's own test workloads, and what is asked of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.images import BASE_IMAGE
from tests.e2e.rest import fetched

# What the Pod Security profile "restricted" demands.
RESTRICTED_POD = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}

_LOOK_S = 0.25
"""Some conditions cost a start of kubectl each time: as seldom as a test's duration allows."""
_SERVE_INFO = ["python3", "-u", "-m", "http.server", "8000", "--directory", "/info"]


def web(name: str, *, replicas: int = 1, annotations: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A Deployment that serves its pods' annotations, as files of the downward API, over HTTP."""
    container = {
        "name": "web",
        "image": BASE_IMAGE,
        "imagePullPolicy": "Never",
        "command": _SERVE_INFO,
        "ports": [{"containerPort": 8000}],
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}},
        "securityContext": RESTRICTED_CONTAINER,
        "volumeMounts": [{"name": "info", "mountPath": "/info"}],
    }
    info = [{"path": key, "fieldRef": {"fieldPath": f"metadata.annotations['{key}']"}} for key in (annotations or {})]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": dict(annotations or {})},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "automountServiceAccountToken": False,
                    "securityContext": RESTRICTED_POD,
                    "containers": [container],
                    "volumes": [{"name": "info", "downwardAPI": {"items": info}}],
                },
            },
        },
    }


def service(name: str) -> dict[str, Any]:
    """A Service in front of the Deployment `web(name)`."""
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8000}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def create(cluster: Cluster, namespace: str, *manifests: Mapping[str, Any]) -> None:
    """Apply manifests to a namespace."""
    cluster.apply(
        [{**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}} for manifest in manifests]
    )


def rollout(cluster: Cluster, namespace: str, name: str, timeout_s: float = 60.0) -> None:
    """Wait until a Deployment is complete.

    Raises:
        ClusterError: it is not in time; its notes end with the namespace's events.
    """
    cluster.wait_for("Deployment", namespace, name, timeout_s)


def scale(cluster: Cluster, namespace: str, name: str, replicas: int, *, kind: str = "Deployment") -> None:
    """Change how many replicas are wanted."""
    with cluster.api() as api:
        path = f"/apis/apps/v1/namespaces/{namespace}/{kind.lower()}s/{name}/scale"
        api.merge(path, {"spec": {"replicas": replicas}})


def annotate(cluster: Cluster, path: str, annotations: Mapping[str, str]) -> None:
    """Change annotations of the object at a path."""
    with cluster.api() as api:
        api.merge(path, {"metadata": {"annotations": dict(annotations)}})


def pods(cluster: Cluster, namespace: str, app: str | None = None) -> list[dict[str, Any]]:
    """The pods of an app, or of all, that are not being deleted."""
    return labelled(cluster, namespace, f"app={app}" if app is not None else "")


def labelled(cluster: Cluster, namespace: str, selector: str) -> list[dict[str, Any]]:
    """The pods with these labels that are not being deleted."""
    found = fetched(cluster, f"/api/v1/namespaces/{namespace}/pods?{urlencode({'labelSelector': selector})}")
    return [pod for pod in found["items"] if "deletionTimestamp" not in pod["metadata"]]


def ready(pod: Mapping[str, Any]) -> bool:
    """Whether a pod is Ready."""
    conditions = pod["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def execute(cluster: Cluster, namespace: str, pod: str, *command: str) -> str:
    """Run a command in a pod; returns its standard output."""
    return cluster.kubectl("exec", pod, f"--namespace={namespace}", "--", *command)


def eventually(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Wait until a condition holds; returns the seconds that took.

    Raises:
        AssertionError: it does not hold in time.
    """
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() < begin + timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(_LOOK_S)
    return time.monotonic() - begin
