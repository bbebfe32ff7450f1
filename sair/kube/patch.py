"""The ways in which SAIR writes to the cluster, each with the preconditions that make it safe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sair.kube.client import Api, PatchKind
from sair.kube.resources import PODS, Resource
from sair.quantities import Millicores, format_millicores

__all__ = ["apply", "apply_status", "field_manager", "merge_patch_annotations", "read_scale", "resize_cpu", "scale"]


def field_manager(component: str) -> str:
    """Name a component as the owner of fields: ``sair-<component>``."""
    return f"sair-{component}"


async def merge_patch_annotations(
    api: Api,
    resource: Resource,
    namespace: str | None,
    name: str,
    annotations: Mapping[str, str | None],
    *,
    component: str,
    uid: str | None = None,
    resource_version: str | None = None,
) -> dict[str, Any]:
    """Set annotations and touch nothing else.

    Args:
        api: Client.
        resource: Kind of the object.
        namespace: None for a cluster-wide object.
        name: The object.
        annotations: New values; None removes a key.
        component: Who writes.
        uid: Precondition: this very object, not one that took its name.
        resource_version: Precondition: nobody wrote since.

    Returns:
        The object as it is now, raw.

    Raises:
        Conflict: If a precondition does not hold.
        NotFound: If the object is gone.
    """
    body = {"metadata": {**_preconditions(uid, resource_version), "annotations": dict(annotations)}}
    return await api.patch(
        resource.path(namespace, name), body, PatchKind.MERGE, field_manager=field_manager(component)
    )


async def apply(
    api: Api,
    resource: Resource,
    namespace: str | None,
    name: str,
    body: Mapping[str, Any],
    *,
    component: str,
    force: bool = True,
    subresource: str | None = None,
    uid: str | None = None,
    resource_version: str | None = None,
) -> dict[str, Any]:
    """Server-side apply: make the object hold exactly these fields of ours; it is created if it does not exist.

    Args:
        api: Client.
        resource: Kind; its apiVersion and kind are put into the body.
        namespace: None for a cluster-wide object.
        name: The object.
        body: The fields this component owns, such as ``{"spec": …}``; those it applied before and leaves out now are removed.
        component: Who owns them.
        force: Take fields over from other owners instead of raising Conflict.
        subresource: Such as ``status``.
        uid: Precondition; with it nothing is created. The server ignores it for the status of custom resources.
        resource_version: Precondition.

    Returns:
        The object as it is now, raw.
    """
    metadata = {**dict(body.get("metadata") or {}), **_preconditions(uid, resource_version), "name": name}
    if namespace is not None:
        metadata["namespace"] = namespace
    whole = {**body, "apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
    path = resource.path(namespace, name, subresource)
    return await api.patch(path, whole, PatchKind.APPLY, field_manager=field_manager(component), force=force)


async def apply_status(
    api: Api,
    resource: Resource,
    namespace: str | None,
    name: str,
    status: Mapping[str, Any],
    *,
    component: str,
    resource_version: str | None = None,
) -> dict[str, Any]:
    """Server-side apply of the status alone; see ``apply``. The object must exist.

    The server ignores a uid here, so only a resource version guards against another object that took the name.

    Raises:
        NotFound: If the object is gone.
    """
    return await apply(
        api,
        resource,
        namespace,
        name,
        {"status": status},
        component=component,
        subresource="status",
        resource_version=resource_version,
    )


async def read_scale(api: Api, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
    """Read the scale subresource of a Deployment, StatefulSet or the like, raw."""
    return await api.get(resource.path(namespace, name, "scale"))


async def scale(
    api: Api,
    resource: Resource,
    namespace: str,
    name: str,
    replicas: int,
    *,
    component: str,
    uid: str | None = None,
    resource_version: str | None = None,
) -> dict[str, Any]:
    """Set the number of replicas through the scale subresource.

    Args:
        api: Client.
        resource: DEPLOYMENTS, STATEFULSETS or another kind with a scale.
        namespace: Of the workload.
        name: Of the workload.
        replicas: Wanted, at least 0.
        component: Who writes.
        uid: Precondition.
        resource_version: Precondition: the workload's (and its scale's) version.

    Returns:
        The Scale as it is now, raw.

    Raises:
        Conflict: If a precondition does not hold.
    """
    body = {"metadata": _preconditions(uid, resource_version), "spec": {"replicas": replicas}}
    return await api.patch(
        resource.path(namespace, name, "scale"), body, PatchKind.MERGE, field_manager=field_manager(component)
    )


async def resize_cpu(
    api: Api,
    namespace: str,
    name: str,
    *,
    container: str,
    request: Millicores | None = None,
    limit: Millicores | None = None,
    component: str,
    uid: str | None = None,
    resource_version: str | None = None,
) -> dict[str, Any]:
    """Change a running container's CPU in place through the resize subresource.

    The pod's QoS class must stay what it is, so a container whose request equals its limit needs both changed.

    Args:
        api: Client.
        namespace: Of the pod.
        name: Of the pod.
        container: Which container.
        request: New CPU request in thousandths of a core; None leaves it.
        limit: New CPU limit; None leaves it.
        component: Who writes.
        uid: Precondition.
        resource_version: Precondition.

    Returns:
        The pod, raw; whether the node could do it shows later in the conditions PodResizePending and PodResizeInProgress.

    Raises:
        Refused: If the resize is not allowed, for one because the QoS class would change.
        Conflict: If a precondition does not hold.
    """
    resources = {
        what: {"cpu": format_millicores(value)}
        for what, value in (("requests", request), ("limits", limit))
        if value is not None
    }
    body = {
        "metadata": _preconditions(uid, resource_version),
        "spec": {"containers": [{"name": container, "resources": resources}]},
    }
    return await api.patch(
        PODS.path(namespace, name, "resize"), body, PatchKind.STRATEGIC, field_manager=field_manager(component)
    )


def _preconditions(uid: str | None, resource_version: str | None) -> dict[str, str]:
    wanted = {"uid": uid, "resourceVersion": resource_version}
    return {name: value for name, value in wanted.items() if value is not None}
