"""Requests to the API server without the tenth of a second that starting kubectl takes, for what is timed."""

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

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

    def annotate(self, namespace: str, pod: str, annotations: Mapping[str, str]) -> None:
        """Merge annotations into a pod's.

        Raises:
            AssertionError: the server refused.
        """
        body = json.dumps({"metadata": {"annotations": dict(annotations)}})
        headers = {**self._headers, "Content-Type": "application/merge-patch+json"}
        self._connection.request("PATCH", f"/api/v1/namespaces/{namespace}/pods/{pod}", body, headers)
        answer = self._connection.getresponse()
        text = answer.read().decode()
        assert answer.status == http.HTTPStatus.OK, text

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


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
                at = time.time()
                with self._changed:
                    self._versions.append((at, json.loads(line)["object"]))
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
