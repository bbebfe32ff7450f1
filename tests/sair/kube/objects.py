"""Objects that the tests put into the API server, and how they read them back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sair.errors import WireError
from sair.kube.resources import Resource
from sair.wire import field

CONFIG_MAPS = Resource("", "v1", "configmaps", True, "ConfigMap")


@dataclass(frozen=True, slots=True)
class Setting:
    """A ConfigMap whose value must be a number: the smallest thing that can be well or ill formed."""

    name: str
    value: int


def parse_setting(raw: dict[str, Any]) -> Setting:
    text = field(raw, "data", "value", default="")
    if not text.isdigit():
        raise WireError("data.value", text, "digits")
    return Setting(raw["metadata"]["name"], int(text))


def setting(name: str, value: int | str, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, **metadata},
        "data": {"value": str(value)},
    }


def pod(name: str, **metadata: Any) -> dict[str, Any]:
    resources = {"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"cpu": "400m", "memory": "64Mi"}}
    spec = {"containers": [{"name": "main", "image": "image", "resources": resources}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata}, "spec": spec}


def node(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def deployment(name: str, replicas: int) -> dict[str, Any]:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "image"}]}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}
