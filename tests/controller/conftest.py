"""What stands on a real API server for one module, and for one test."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from sair.kube.client import Api
from tests.controller.stages import Stages, installed
from tests.e2e.cluster.control_plane import ControlPlane


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """With SAIR's objects; without them again after the module."""
    with installed(control_plane):
        yield control_plane


@pytest_asyncio.fixture
async def stages(cluster: ControlPlane) -> AsyncIterator[Stages]:
    """A namespace of the test's own."""
    async with (
        await Api.from_environment(cluster.kubeconfig) as api,
        Stages(api, f"test-{secrets.token_hex(3)}") as standing,
    ):
        yield standing
