"""The `control_plane` fixture: a real Kubernetes API for tests that need no node.

Imported by `tests/conftest.py`; the harness behind it is `tests.e2e.cluster`.
"""

import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from tests.e2e.cluster.control_plane import ControlPlane, temporary_control_plane
from tests.e2e.cluster.errors import Unavailable

REQUIRE = "SAIR_REQUIRE_CLUSTER"
"""Environment variable that turns "skipped, because the cluster is unavailable" into a failure."""


def give_up(reason: Unavailable) -> NoReturn:
    """There can be no cluster here: skip loudly, or fail where one is required."""
    message = f"NO REAL KUBERNETES: {reason}"
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(message, pytrace=False)
    # No Go, no root or no Debian: nothing here can stand in for a real API server.
    pytest.skip(message)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A running API server, shared by the session; a test that stops it starts it again."""
    try:
        server = temporary_control_plane()
    except Unavailable as reason:
        give_up(reason)
    with server:
        yield server
