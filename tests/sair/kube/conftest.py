"""Fixtures of the Kubernetes adapter's tests: a client of a real API server, and a proxy before it that misbehaves."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from sair.kube.client import Api
from tests.fakes.api_proxy import ApiProxy


@pytest_asyncio.fixture
async def namespace(api: Api) -> str:
    """A namespace of this test alone."""
    name = f"kube-{secrets.token_hex(4)}"
    await api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


@pytest_asyncio.fixture
async def scripted(tmp_path: Path) -> AsyncIterator[ApiProxy]:
    """A server that does only what it is told."""
    async with ApiProxy(None, tmp_path) as standing:
        yield standing


@pytest_asyncio.fixture
async def scripted_api(scripted: ApiProxy) -> AsyncIterator[Api]:
    """A client of the scripted server."""
    async with await Api.from_environment(scripted.kubeconfig, timeout_s=2.0) as client:
        yield client
