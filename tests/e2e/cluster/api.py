"""Requests to an API server, without the tenth of a second of processor time that starting kubectl takes."""

import contextlib
import http.client
import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.e2e.cluster.errors import ClusterError

_DONE = (http.HTTPStatus.OK, http.HTTPStatus.CREATED, http.HTTPStatus.ACCEPTED)


class Api:
    """One connection to an API server, as the administrator or as somebody the administrator poses as; a context manager."""

    def __init__(self, connect: Callable[[], http.client.HTTPConnection], *, user: str | None = None) -> None:
        """Prepare a connection; the first request opens it.

        Args:
            connect: makes one with an administrator's rights.
            user: user to pose as, with nothing but that user's rights; None: the administrator.
        """
        self._connection = connect()
        self._headers = {"Impersonate-User": user} if user else {}
        self._kinds: dict[str, list[dict[str, Any]]] = {}

    def __enter__(self) -> "Api":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def get(self, path: str) -> Any:
        """What is at a path.

        Raises:
            ClusterError: the server is away, or refused.
        """
        return self._send("GET", path)

    def create(self, path: str, manifest: Mapping[str, Any]) -> None:
        """Create an object in a collection.

        Raises:
            ClusterError: the server is away, or refused.
        """
        self._send("POST", path, manifest)

    def apply(self, manifest: Mapping[str, Any]) -> None:
        """Apply a manifest, server-side.

        Raises:
            ClusterError: the server is away, or refused, or has no such kind.
        """
        self.apply_at(self._path_of(manifest), manifest, "fieldManager=kubectl")

    def apply_at(self, path: str, manifest: Mapping[str, Any], query: str) -> None:
        """Apply a manifest, server-side, to a path such as that of a subresource.

        Raises:
            ClusterError: the server is away, or refused.
        """
        self._send("PATCH", f"{path}?{query}", manifest, "application/apply-patch+yaml")

    def merge(self, path: str, change: Mapping[str, Any]) -> None:
        """Change some fields of what is at a path.

        Raises:
            ClusterError: the server is away, or refused.
        """
        self._send("PATCH", path, change, "application/merge-patch+json")

    def delete(self, path: str, *, grace_s: int | None = None) -> None:
        """Delete an object, or all of a collection, without waiting until they are gone; what is not there is fine.

        Args:
            path: of it.
            grace_s: what is left to a pod's processes; None: what its specification says.

        Raises:
            ClusterError: the server is away, or refused.
        """
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        self._send("DELETE", path, options, gone_is_fine=True)

    def _path_of(self, manifest: Mapping[str, Any]) -> str:
        version, kind, metadata = manifest["apiVersion"], manifest["kind"], manifest["metadata"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if root not in self._kinds:
            self._kinds[root] = self.get(root)["resources"]
        found = next((each for each in self._kinds[root] if each["kind"] == kind and "/" not in each["name"]), None)
        if found is None:
            raise ClusterError(f"{root} has no {kind}")
        folder = f"{root}/namespaces/{metadata['namespace']}" if found["namespaced"] else root
        return f"{folder}/{found['name']}/{metadata['name']}"

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        kind: str = "application/json",
        *,
        gone_is_fine: bool = False,
    ) -> Any:
        content = {"Content-Type": kind} if body is not None else {}
        sent = json.dumps(body) if body is not None else None
        try:
            self._connection.request(method, path, sent, {**self._headers, **content})
            answer = self._connection.getresponse()
            said = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ClusterError(f"{method} {path}: {error}") from error
        if answer.status in _DONE:
            return json.loads(said)
        if gone_is_fine and answer.status == http.HTTPStatus.NOT_FOUND:
            return None
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(said)["message"]
        raise ClusterError(f"{method} {path}: {answer.status} {said}")


def complete(workload: Mapping[str, Any]) -> bool:
    """Whether a Deployment, StatefulSet or DaemonSet is what its specification says, with nothing of an older one left."""
    metadata, spec, status = workload["metadata"], workload["spec"], workload.get("status", {})
    if status.get("observedGeneration", 0) < metadata["generation"]:
        return False
    if workload["kind"] == "DaemonSet":
        wanted = status["desiredNumberScheduled"]
        return all(status.get(key, 0) == wanted for key in ("updatedNumberScheduled", "numberAvailable"))
    wanted = spec.get("replicas", 1)
    if workload["kind"] == "StatefulSet":
        settled = wanted == 0 or status["currentRevision"] == status["updateRevision"]
        return bool(settled and status.get("readyReplicas", 0) == wanted)
    return all(status.get(key, 0) == wanted for key in ("replicas", "updatedReplicas", "availableReplicas"))
