"""Fixtures of the extender's tests: a real API server, Node objects with GPUs on paper, and the extender as a kube-scheduler sees it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest_asyncio

from sair.kube.client import Api
from tests.extender.cluster import Cluster


@pytest_asyncio.fixture
async def cluster(api: Api) -> AsyncIterator[Cluster]:
    """A namespace and nodes of this test alone; all of it is gone afterwards, and no GPU was ever over-full."""
    token = secrets.token_hex(3)
    await api.create("/api/v1/namespaces", {"metadata": {"name": f"extender-{token}"}})
    async with Cluster(api, f"extender-{token}") as standing:
        yield standing
