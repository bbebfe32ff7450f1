"""What is asked of the API server again and again, or timed."""

import bisect
import contextlib
import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final, Self

from sair.annotations import GPU_GRANTED, GPU_INDEX
from tests.e2e.cluster.api import Api
from tests.e2e.cluster.cluster import Cluster

ENDED: Final = ("Succeeded", "Failed")
"""Phases of pods that hold nothing any more."""
_ANEW: Final = "ANEW"
"""In place of an event: what was known of pods is void."""

CONTROLLER = "system:serviceaccount:sair-system:sair-controller"


def fetched(cluster: Cluster, path: str) -> Any:
    """What the API server has at a path, asked by the administrator.

    Raises:
        ClusterError: it is away, or has not that.
    """
    with cluster.api() as api:
        return api.get(path)


class Rest(Api):
    """What tests ask of the API server again and again, as the administrator or as somebody the administrator poses as."""

    def __init__(self, cluster: Cluster, *, user: str | None = None) -> None:
        """Prepare a connection.

        Args:
            cluster: whose API server.
            user: user to pose as, with nothing but that user's rights; None: the administrator.
        """
        super().__init__(cluster.connection, user=user)

    def wish(self, namespace: str, pipeline: str, rates: Mapping[str, str]) -> None:
        """Wish for shares for all of a pipeline's stages, as the controller does: in the Pipeline's status, in one change.

        Raises:
            ClusterError: the server is away, or refused.
        """
        stages = [{"name": stage, "gpuRate": rate} for stage, rate in rates.items()]
        body = {
            "apiVersion": "sair.dev/v1alpha1",
            "kind": "Pipeline",
            "metadata": {"name": pipeline, "namespace": namespace},
            "status": {"mode": "auto", "stages": stages},
        }
        path = f"/apis/sair.dev/v1alpha1/namespaces/{namespace}/pipelines/{pipeline}/status"
        self.apply_at(path, body, "fieldManager=sair-controller&force=true")

    def create_pod(self, namespace: str, pod: Mapping[str, Any]) -> None:
        """Create a pod.

        Raises:
            ClusterError: the server is away, or refused.
        """
        self.create(f"/api/v1/namespaces/{namespace}/pods", pod)

    def delete_pod(self, namespace: str, pod: str) -> None:
        """Delete a pod without waiting for its node.

        Raises:
            ClusterError: the server is away, or refused.
        """
        self.delete(f"/api/v1/namespaces/{namespace}/pods/{pod}", grace_s=0)

    def pods(self) -> list[dict[str, Any]]:
        """The pods of all namespaces.

        Raises:
            ClusterError: the server is away, or refused.
        """
        listed: list[dict[str, Any]] = self.get("/api/v1/pods")["items"]
        return listed


class PodWatch:
    """Every version of every pod of a namespace, or of all, with the time at which it arrived here. It outlives outages of the server."""

    def __init__(self, cluster: Cluster, namespace: str | None = None) -> None:
        """Begin to watch in a thread of its own.

        Args:
            cluster: whose pods.
            namespace: None: all of them.
        """
        self._cluster = cluster
        self._path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._versions: list[tuple[float, dict[str, Any]]] = []
        self._events: list[dict[str, Any]] = []
        self._connect()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def first(self, holds: Callable[[dict[str, Any]], bool], since: float, timeout_s: float = 20.0) -> float:
        """Time of the first version after `since` of which something holds; waits for it.

        Raises:
            AssertionError: there is none in time.
        """

        def found() -> float | None:
            later = itertools.islice(
                self._versions, bisect.bisect_left(self._versions, since, key=lambda seen: seen[0]), None
            )
            return next((at for at, pod in later if holds(pod)), None)

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
        """The most that was granted on any GPU at any moment, over all versions of all these pods."""
        with self._changed:
            events = list(self._events)
        held: dict[str, tuple[tuple[str, str], Decimal]] = {}
        most = Decimal(0)
        for event in events:
            if event["type"] == _ANEW:
                held.clear()
                continue
            pod = event["object"]
            uid, annotations = pod["metadata"]["uid"], pod["metadata"].get("annotations", {})
            held.pop(uid, None)
            # A pod that has ended holds no share.
            if event["type"] != "DELETED" and pod["status"]["phase"] not in ENDED and GPU_INDEX in annotations:
                held[uid] = ((pod["spec"]["nodeName"], annotations[GPU_INDEX]), Decimal(annotations[GPU_GRANTED]))
            shares: dict[tuple[str, str], Decimal] = {}
            for seat, share in held.values():
                shares[seat] = shares.get(seat, Decimal(0)) + share
            most = max([most, *shares.values()])
        return most

    def restarts(self, namespace: str) -> int:
        """The most that any container of a pod of that namespace was restarted."""
        with self._changed:
            seen = [pod for _, pod in self._versions if pod["metadata"]["namespace"] == namespace]
        counts = (each["restartCount"] for pod in seen for each in pod["status"].get("containerStatuses", ()))
        return max(counts, default=0)

    def close(self) -> None:
        """Stop watching."""
        self._closing.set()
        if self._connection.sock is not None:
            # Closing alone would not wake the thread that reads.
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=20)
        self._disconnect()

    def _disconnect(self) -> None:
        self._answer.close()
        self._connection.close()

    def _connect(self) -> None:
        # Nothing may happen for as long as it likes.
        self._connection = self._cluster.connection(timeout_s=None)
        try:
            self._connection.request("GET", f"{self._path}?watch=true")
            self._answer = self._connection.getresponse()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise

    def _read(self) -> None:
        while not self._closing.is_set():
            try:
                for line in self._answer:
                    at, event = time.time(), json.loads(line)
                    with self._changed:
                        self._events.append(event)
                        self._versions.append((at, event["object"]))
                        self._changed.notify_all()
            except (OSError, ValueError, AttributeError, http.client.HTTPException):
                pass  # the server is away, or the connection was closed under it
            self._again()

    def _again(self) -> None:
        """Watch anew: every pod there is arrives again, and those that are gone in between do not."""
        while not self._closing.wait(0.2):
            self._disconnect()
            try:
                self._connect()
            except (OSError, http.client.HTTPException):
                continue
            if self._answer.status == http.HTTPStatus.OK:
                with self._changed:
                    self._events.append({"type": _ANEW})
                return
