"""The Kubernetes world of one test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.controller.worlds.opening import Opened, opening
from tests.e2e.cluster.control_plane import ControlPlane


@pytest_asyncio.fixture
async def opened(cluster: ControlPlane) -> AsyncIterator[Opened]:
    """Synced, with the controller's own rights."""
    async with opening(cluster) as one:
        yield one
