"""Waiting for servers."""

import http
import http.client
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from tests.e2e.cluster.certificates import KeyPair
from tests.e2e.cluster.errors import ClusterError


def answers_200(host: str, port: int, path: str, authority: Path, client: KeyPair) -> bool:
    """Whether a server answers a GET with status 200; a failing /readyz says "ok" too, so the body is not looked at."""
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(client.certificate, client.key)
    connection = http.client.HTTPSConnection(host, port, context=context, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_until(condition: Callable[[], bool], timeout_s: float, describe: Callable[[], str]) -> None:
    """Return once `condition` holds.

    Raises:
        ClusterError: it does not within `timeout_s` seconds; the message ends with what `describe` says then.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"not ready after {timeout_s:g} s; {describe()}")
        time.sleep(0.05)
