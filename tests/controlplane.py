"""The `control_plane` fixture, a real Kubernetes API for tests that need no node, and ways to reach it.

Imported by `tests/conftest.py`; the harness behind it is `tests.e2e.cluster`.
"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import pytest_asyncio

from sair.kube.client import Api
from tests.e2e.cluster.control_plane import ControlPlane, temporary_control_plane
from tests.e2e.cluster.errors import Unavailable
from tests.fakes.api_proxy import ApiProxy

REQUIRE = "SAIR_REQUIRE_CLUSTER"
"""Environment variable that turns "skipped, because the cluster is unavailable" into a failure."""


def give_up(reason: Unavailable) -> NoReturn:
    """What a test needs cannot be had here: skip loudly, or fail where it is required."""
    message = f"NOT TESTED HERE: {reason}"
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


@pytest_asyncio.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[Api]:
    """A client with an administrator's rights."""
    async with await Api.from_environment(control_plane.kubeconfig) as client:
        yield client


@pytest_asyncio.fixture
async def proxy(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[ApiProxy]:
    """A proxy before the real API server."""
    async with ApiProxy(control_plane.kubeconfig, tmp_path) as standing:
        yield standing


@pytest_asyncio.fixture
async def proxied(proxy: ApiProxy) -> AsyncIterator[Api]:
    """A client that speaks through the proxy."""
    async with await Api.from_environment(proxy.kubeconfig, timeout_s=5.0) as client:
        yield client
