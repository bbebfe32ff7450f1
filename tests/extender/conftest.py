"""Fixtures of the extender's tests: a real API server, Node objects with GPUs on paper, and the extender as a kube-scheduler sees it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sair.kube.client import Api
from tests.e2e.cluster.control_plane import ControlPlane
from tests.extender.cluster import Cluster

CRD = Path(__file__).parents[2] / "deploy" / "crds" / "pipelines.yaml"


@pytest.fixture(scope="module")
def pipelines(control_plane: ControlPlane) -> None:
    """Pipelines can be created."""
    control_plane.run_kubectl("apply", f"--filename={CRD}")
    control_plane.run_kubectl("wait", "--for=condition=Established", "crd/pipelines.sair.dev", "--timeout=20s")


@pytest_asyncio.fixture
async def cluster(pipelines: None, api: Api) -> AsyncIterator[Cluster]:
    """A namespace and nodes of this test alone; all of it is gone afterwards, and no GPU was ever over-full."""
    token = secrets.token_hex(3)
    await api.create("/api/v1/namespaces", {"metadata": {"name": f"extender-{token}"}})
    async with Cluster(api, f"extender-{token}") as standing:
        yield standing
