"""Requests to the API server without the tenth of a second that starting kubectl takes, for what is timed."""

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from sair.annotations import GPU_GRANTED, GPU_INDEX
from tests.e2e.cluster.cluster import Cluster

CONTROLLER = "system:serviceaccount:sair-system:sair-controller"


class Rest:
    """One connection to the API server, as the administrator or as somebody the administrator poses as."""

    def __init__(self, cluster: Cluster, *, user: str | None = None) -> None:
        """Prepare a connection.

        Args:
            cluster: whose API server.
            user: user to pose as, with nothing but that user's rights; None: the administrator.
        """
        self._connection = _connect(cluster)
        self._headers = {"Impersonate-User": user} if user else {}

    def wish(self, namespace: str, pipeline: str, rates: Mapping[str, str]) -> None:
        """Wish for shares for all of a pipeline's stages, as the controller does: in the Pipeline's status, in one change.

        Raises:
            AssertionError: the server refused.
        """
        stages = [{"name": stage, "gpuRate": rate} for stage, rate in rates.items()]
        body = {
            "apiVersion": "sair.dev/v1alpha1",
            "kind": "Pipeline",
            "metadata": {"name": pipeline, "namespace": namespace},
            "status": {"mode": "auto", "stages": stages},
        }
        path = f"/apis/sair.dev/v1alpha1/namespaces/{namespace}/pipelines/{pipeline}/status"
        query = "fieldManager=sair-controller&force=true"
        self._send("PATCH", f"{path}?{query}", body, "application/apply-patch+yaml")

    def create(self, namespace: str, pod: Mapping[str, Any]) -> None:
        """Create a pod.

        Raises:
            AssertionError: the server refused.
        """
        self._send("POST", f"/api/v1/namespaces/{namespace}/pods", pod, "application/json")

    def delete(self, namespace: str, pod: str) -> None:
        """Delete a pod without waiting for its node.

        Raises:
            AssertionError: the server refused.
        """
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
        self._send("DELETE", f"/api/v1/namespaces/{namespace}/pods/{pod}", body, "application/json")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _send(self, method: str, path: str, body: Mapping[str, Any], kind: str) -> None:
        self._connection.request(method, path, json.dumps(body), {**self._headers, "Content-Type": kind})
        answer = self._connection.getresponse()
        text = answer.read().decode()
        assert answer.status in (http.HTTPStatus.OK, http.HTTPStatus.CREATED), text


class PodWatch:
    """Every version of every pod of a namespace, with the time at which it arrived here."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        """Begin to watch in a thread of its own."""
        # Nothing may happen for as long as it likes.
        self._connection = _connect(cluster, timeout_s=None)
        self._connection.request("GET", f"/api/v1/namespaces/{namespace}/pods?watch=true")
        self._answer = self._connection.getresponse()
        self._changed = threading.Condition()
        self._versions: list[tuple[float, dict[str, Any]]] = []
        self._events: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def first(self, holds: Callable[[dict[str, Any]], bool], since: float, timeout_s: float = 20.0) -> float:
        """Time of the first version after `since` of which something holds; waits for it.

        Raises:
            AssertionError: there is none in time.
        """

        def found() -> float | None:
            return next((at for at, pod in self._versions if at >= since and holds(pod)), None)

        with self._changed:
            assert self._changed.wait_for(lambda: found() is not None, timeout_s), f"not within {timeout_s:g} s"
            at = found()
        assert at is not None
        return at

    def versions(self, pod: str) -> list[dict[str, Any]]:
        """Every version of a pod so far, oldest first."""
        with self._changed:
            return [seen for _, seen in self._versions if seen["metadata"]["name"] == pod]

    def fullest(self) -> Decimal:
        """The most that was granted on any GPU at any moment, over all versions of all pods of the namespace."""
        with self._changed:
            events = list(self._events)
        held: dict[str, tuple[tuple[str, str], Decimal]] = {}
        most = Decimal(0)
        for event in events:
            pod = event["object"]
            uid, annotations = pod["metadata"]["uid"], pod["metadata"].get("annotations", {})
            held.pop(uid, None)
            if event["type"] != "DELETED" and GPU_INDEX in annotations:
                held[uid] = ((pod["spec"]["nodeName"], annotations[GPU_INDEX]), Decimal(annotations[GPU_GRANTED]))
            shares: dict[tuple[str, str], Decimal] = {}
            for seat, share in held.values():
                shares[seat] = shares.get(seat, Decimal(0)) + share
            most = max([most, *shares.values()])
        return most

    def close(self) -> None:
        """Stop watching."""
        if self._connection.sock is not None:
            # Closing alone would not wake the thread that reads.
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._thread.join(timeout=20)

    def _read(self) -> None:
        try:
            for line in self._answer:
                at, event = time.time(), json.loads(line)
                with self._changed:
                    self._events.append(event)
                    self._versions.append((at, event["object"]))
                    self._changed.notify_all()
        except (OSError, ValueError, AttributeError):
            # The connection was closed under it.
            return


def _connect(cluster: Cluster, timeout_s: float | None = 15.0) -> http.client.HTTPSConnection:
    url = urlsplit(cluster.url)
    pki = cluster.directory / "pki"
    context = ssl.create_default_context(cafile=pki / "ca.crt")
    context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
    return http.client.HTTPSConnection(url.hostname or "", url.port, context=context, timeout=timeout_s)
