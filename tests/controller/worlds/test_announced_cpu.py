"""CPU that is announced in a Pipeline's status before pods are asked stays a wish only if they take it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from controller.decision import Decision
from controller.journal import RoundReport
from controller.llm.settings import ModelSettings
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.metrics import ControllerMetrics
from controller.state import Action, Allocation, StageDelta
from controller.status import StatusWriter
from sair.kube.client import PatchKind
from sair.kube.events import Recorder
from sair.kube.resources import PIPELINES
from sair.quantities import Millicores
from tests.controller.stages import Stages, eventually
from tests.controller.worlds.opening import Opened, apply, opening, ready
from tests.e2e.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.blocking_allowed  # reading a kubeconfig and its certificates, once


@pytest_asyncio.fixture
async def status(opened: Opened, store: Store) -> StatusWriter:
    return writer(opened, store)


def writer(opened: Opened, store: Store) -> StatusWriter:
    recorder = Recorder(opened.api, "controller", "test")
    metrics = ControllerMetrics(CollectorRegistry())
    return StatusWriter(opened.api, opened.world, recorder, MirroredMemory(store), ModelSettings(), metrics)


async def at_most_one_core(stages: Stages) -> None:
    one = {"cpu": "1"}
    limits = [{"type": "Container", "max": one, "default": one, "defaultRequest": one}]
    path = f"/api/v1/namespaces/{stages.namespace}/limitranges"
    await stages.api.create(path, {"metadata": {"name": "most"}, "spec": {"limits": limits}})


def raising(opened: Opened, key: str, now: Allocation, cpu: int) -> RoundReport:
    """A round that decided to give the stage more."""
    action, after = Action((StageDelta("resize", cpu=cpu - now.cpu),)), replace(now, cpu=Millicores(cpu))
    decision = Decision(key, 7, 1.8e9, "llm", action, action, {"resize": now}, {"resize": after}, ())
    return RoundReport(opened.world.found()[key].view, 7, 1.8e9, decision=decision)


async def stated(stages: Stages) -> str | None:
    found: list[dict[str, Any]] = (await stages.pipeline())["status"]["stages"]
    return next((one.get("cpu") for one in found if one["name"] == "resize"), None)


async def shows(opened: Opened, stages: Stages, cpu: str | None) -> bool:
    """The controller's copy of the Pipeline has followed."""
    stage = opened.world.found()[stages.key()].status.stage("resize")
    return stage is not None and stage.cpu == cpu


@pytest.mark.parametrize(("wished", "taken_back"), [(None, None), ("750m", "750m")], ids=["none before", "one before"])
async def test_a_rise_that_the_api_server_refuses_is_taken_back_from_the_status(
    stages: Stages, opened: Opened, status: StatusWriter, wished: str | None, taken_back: str | None
) -> None:
    await at_most_one_core(stages)
    await stages.object()
    await stages.stage("resize", node=await stages.node(), cpu=wished or "1", limit="1")
    now = (await ready(opened, stages.key(), 1))["resize"]
    before = raising(opened, stages.key(), now, now.cpu)
    if wished is not None:
        state = {"status": {"stages": [{"name": "resize", "cpu": wished}]}}
        await stages.api.patch(PIPELINES.path(stages.namespace, "shop", "status"), state, PatchKind.MERGE)
        await eventually(lambda: shows(opened, stages, wished))
    await status.round_ended(before)
    await status.about_to_act(raising(opened, stages.key(), now, 1500))
    assert await stated(stages) == "1500m"
    await eventually(lambda: shows(opened, stages, "1500m"))
    outcome = (await apply(opened, stages.key(), "resize", replace(now, cpu=Millicores(1500))))["cpu"]
    assert outcome.granted == now.cpu
    assert "maximum cpu usage" in outcome.reason
    assert opened.world.wished_cpu(stages.key(), "resize") == (None if wished is None else 750)
    await status.round_ended(before)
    assert await stated(stages) == taken_back


async def test_what_was_announced_and_never_asked_for_is_no_wish(
    stages: Stages, opened: Opened, status: StatusWriter
) -> None:
    await stages.object()
    await stages.stage("resize", node=await stages.node())
    now = (await ready(opened, stages.key(), 1))["resize"]
    await status.round_ended(raising(opened, stages.key(), now, now.cpu))
    await status.about_to_act(raising(opened, stages.key(), now, 1500))
    await eventually(lambda: shows(opened, stages, "1500m"))
    await opened.world.settle(stages.key())
    assert await stages.cpu("resize-0") == {"requests": "1"}
    await status.round_ended(raising(opened, stages.key(), now, now.cpu))
    assert await stated(stages) is None


async def test_a_rise_that_pods_take_stays_a_wish(stages: Stages, opened: Opened, status: StatusWriter) -> None:
    await stages.object()
    await stages.stage("resize", node=await stages.node())
    now = (await ready(opened, stages.key(), 1))["resize"]
    await status.round_ended(raising(opened, stages.key(), now, now.cpu))
    await status.about_to_act(raising(opened, stages.key(), now, 1500))
    await apply(opened, stages.key(), "resize", replace(now, cpu=Millicores(1500)))
    await status.round_ended(raising(opened, stages.key(), now, 1500))
    assert opened.world.wished_cpu(stages.key(), "resize") == 1500
    assert await stated(stages) == "1500m"


async def test_what_an_earlier_leader_announced_and_every_pod_refuses_is_no_wish(
    stages: Stages, opened: Opened, status: StatusWriter, cluster: ControlPlane, store: Store
) -> None:
    await at_most_one_core(stages)
    await stages.object()
    await stages.stage("resize", node=await stages.node(), cpu="1", limit="1")
    now = (await ready(opened, stages.key(), 1))["resize"]
    async with opening(cluster) as earlier:
        await ready(earlier, stages.key(), 1)
        before = writer(earlier, store)
        await before.round_ended(raising(earlier, stages.key(), now, now.cpu))
        await before.about_to_act(raising(earlier, stages.key(), now, 1500))
    await eventually(lambda: shows(opened, stages, "1500m"))
    assert opened.world.wished_cpu(stages.key(), "resize") == 1500
    await opened.world.settle(stages.key())
    assert opened.world.wished_cpu(stages.key(), "resize") is None
    await status.round_ended(raising(opened, stages.key(), now, now.cpu))
    assert await stated(stages) is None
