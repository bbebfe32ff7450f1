"""The agent against a real API server: it announces the GPUs on its Node and names pods by their annotations."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from cuda_hook.accuracy.ground_truth import BUILD, GroundTruth
from cuda_hook.agent.__main__ import parse_pod, running
from cuda_hook.agent.metrics import PodName
from cuda_hook.agent.settings import AgentSettings
from sair.annotations import GPUS
from sair.kube.client import Api
from sair.kube.resources import NODES
from tests.e2e.cluster.control_plane import ControlPlane


async def test_the_node_is_annotated_with_its_gpus(
    control_plane: ControlPlane, gpu: GroundTruth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAIR_SIMGPU_PATH", str(gpu.path))  # which GPU the simulated NVML shows
    async with await Api.from_environment(control_plane.kubeconfig) as api:
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "agent-test"}}
        await api.create(NODES.path(), node)
        settings = AgentSettings(
            node_name="agent-test",
            host="127.0.0.1",
            port=0,
            pods_path=str(tmp_path),
            nvml_library=str(BUILD / "driver" / "libnvidia-ml.so.1"),
        )
        try:
            async with running(settings, api, registry=CollectorRegistry()) as agent:
                found = None
                for _ in range(200):
                    found = (await api.get(NODES.path(None, "agent-test")))["metadata"].get("annotations", {}).get(GPUS)
                    if found:
                        break
                    assert not agent.work.done(), agent.work.exception()
                    await asyncio.sleep(0.05)
                (card,) = json.loads(found or "[]")
                assert card["memoryMi"] == 81920
                assert card["uuid"].startswith("GPU-")
        finally:
            await api.delete(NODES.path(None, "agent-test"))


async def test_without_nvml_an_inventory_that_an_administrator_wrote_stays(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    by_hand = '[{"memoryMi":16000,"model":"by hand","uuid":"GPU-0"}]'
    async with await Api.from_environment(control_plane.kubeconfig) as api:
        metadata = {"name": "static-inventory", "annotations": {GPUS: by_hand}}
        await api.create(NODES.path(), {"apiVersion": "v1", "kind": "Node", "metadata": metadata})
        settings = AgentSettings(
            node_name="static-inventory",
            host="127.0.0.1",
            port=0,
            pods_path=str(tmp_path),
            nvml_library="libno-nvml-here.so.1",
            inventory_s=0.05,
        )
        try:
            async with running(settings, api, registry=CollectorRegistry()) as agent:
                # An inventory would be announced at once.
                await asyncio.sleep(1.0)
                assert not agent.work.done()
                node = await api.get(NODES.path(None, "static-inventory"))
            assert node["metadata"]["annotations"][GPUS] == by_hand
        finally:
            await api.delete(NODES.path(None, "static-inventory"))


def test_a_pod_is_named_with_its_pipeline_and_stage() -> None:
    raw = {
        "metadata": {
            "uid": "u-1",
            "namespace": "shop",
            "name": "detect-0",
            "annotations": {"sair.dev/pipeline": "images", "sair.dev/stage": "detect"},
        }
    }
    assert parse_pod(raw) == ("u-1", PodName("shop", "detect-0", "images", "detect"))
    assert parse_pod({"metadata": {"uid": "u-2", "namespace": "a", "name": "b"}}) == ("u-2", PodName("a", "b"))
