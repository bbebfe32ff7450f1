"""The API resources that SAIR speaks of, and their paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from sair.errors import InvalidInput
from sair.pipeline import GROUP, KIND, PLURAL, VERSION

__all__ = [
    "DEPLOYMENTS",
    "EVENTS",
    "HPAS",
    "LEASES",
    "NODES",
    "PIPELINES",
    "PODS",
    "REPLICASETS",
    "SCALEDOBJECTS",
    "STATEFULSETS",
    "Resource",
]


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object as the API server files it; ``group`` is empty for the core group."""

    group: str
    version: str
    plural: str
    namespaced: bool
    kind: str = ""

    @property
    def api_version(self) -> str:
        """``v1`` or ``apps/v1``, as objects carry it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Build the path of a collection, an object or a subresource.

        Args:
            namespace: None for a cluster-wide resource, or for the collection over all namespaces.
            name: None for the collection.
            subresource: Such as ``status``, ``scale``, ``binding`` or ``resize``; needs a name.

        Raises:
            InvalidInput: If a part is empty or a path step, or if the resource's scope and the namespace do not fit.
        """
        if namespace is not None and not self.namespaced:
            raise InvalidInput("namespace", namespace, f"none: {self.plural} are cluster-wide")
        if namespace is None and name is not None and self.namespaced:
            raise InvalidInput("namespace", namespace, f"the namespace of {self.plural} {name}")
        if subresource is not None and name is None:
            raise InvalidInput("name", name, f"the object whose {subresource} is meant")
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{_step('namespace', namespace)}" if namespace is not None else ""
        steps = "".join(
            f"/{_step(what, step)}" for what, step in (("name", name), ("subresource", subresource)) if step is not None
        )
        return f"{root}{scope}/{self.plural}{steps}"

    def key(self, namespace: str | None, name: str) -> str:
        """``namespace/name``, or the bare name of a cluster-wide object: how stores and logs name objects."""
        return f"{namespace}/{name}" if namespace else name


def _step(what: str, value: str) -> str:
    if value in ("", ".", "..") or "/" in value:
        raise InvalidInput(what, value, "a single non-empty path segment")
    return quote(value, safe="")


PODS: Final = Resource("", "v1", "pods", True, "Pod")
NODES: Final = Resource("", "v1", "nodes", False, "Node")
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", True, "Deployment")
STATEFULSETS: Final = Resource("apps", "v1", "statefulsets", True, "StatefulSet")
REPLICASETS: Final = Resource("apps", "v1", "replicasets", True, "ReplicaSet")
HPAS: Final = Resource("autoscaling", "v2", "horizontalpodautoscalers", True, "HorizontalPodAutoscaler")
SCALEDOBJECTS: Final = Resource("keda.sh", "v1alpha1", "scaledobjects", True, "ScaledObject")
PIPELINES: Final = Resource(GROUP, VERSION, PLURAL, True, KIND)
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", True, "Lease")
EVENTS: Final = Resource("events.k8s.io", "v1", "events", True, "Event")
