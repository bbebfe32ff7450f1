"""Fixtures of the extender's tests: a real API server, Node objects with GPUs on paper, and the extender as a kube-scheduler sees it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from sair.kube.client import Api
from tests.e2e.cluster.control_plane import ControlPlane
from tests.extender.cluster import Cluster
from tests.fakes.api_proxy import ApiProxy


@pytest_asyncio.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[Api]:
    """A client with an administrator's rights."""
    async with await Api.from_environment(control_plane.kubeconfig) as client:
        yield client


@pytest_asyncio.fixture
async def cluster(api: Api) -> AsyncIterator[Cluster]:
    """A namespace and nodes of this test alone; all of it is gone afterwards, and no GPU was ever over-full."""
    token = secrets.token_hex(3)
    await api.create("/api/v1/namespaces", {"metadata": {"name": f"extender-{token}"}})
    async with Cluster(api, f"extender-{token}") as standing:
        yield standing


@pytest_asyncio.fixture
async def proxy(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[ApiProxy]:
    """A proxy before the real API server."""
    async with ApiProxy(control_plane.kubeconfig, tmp_path) as standing:
        yield standing


@pytest_asyncio.fixture
async def proxied(proxy: ApiProxy) -> AsyncIterator[Api]:
    """A client that speaks through the proxy."""
    async with await Api.from_environment(proxy.kubeconfig, timeout_s=4.0) as client:
        yield client
