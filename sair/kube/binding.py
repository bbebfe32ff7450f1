"""Binding a pod to a node, with annotations, in one atomic call."""

from __future__ import annotations

from collections.abc import Mapping

from sair.errors import InvalidInput
from sair.kube.client import Api
from sair.kube.resources import PODS

__all__ = ["bind"]


async def bind(
    api: Api,
    namespace: str,
    name: str,
    node: str,
    annotations: Mapping[str, str],
    *,
    uid: str,
    resource_version: str | None = None,
) -> None:
    """Bind a pod; the API server copies the Binding's annotations onto the pod in the same transaction.

    Args:
        api: Client.
        namespace: Of the pod.
        name: Of the pod.
        node: Where it is to run.
        annotations: To be set on the pod.
        uid: Precondition: this very pod.
        resource_version: Precondition: nobody changed the pod since; None binds whatever its version.

    Raises:
        InvalidInput: If the node has no name.
        Conflict: If a precondition does not hold or the pod is bound already.
        NotFound: If the pod is gone.
        Refused: If the Binding is not valid or not allowed.
        ApiUnavailable: If no answer came; the pod may or may not be bound.
    """
    if not node:
        # The server would answer 500, as if trying again could help.
        raise InvalidInput("node", node, "the name of a node")
    metadata: dict[str, object] = {"name": name, "namespace": namespace, "uid": uid, "annotations": dict(annotations)}
    if resource_version is not None:
        metadata["resourceVersion"] = resource_version
    target = {"apiVersion": "v1", "kind": "Node", "name": node}
    await api.create(
        PODS.path(namespace, name, "binding"),
        {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target},
    )
