"""What becomes of a wish is what the nodes did of it, and wishes are relative to what was seen last."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.granting import granted_of
from controller.state import Allocation, KnobOutcome
from sair.kube.client import PatchKind
from sair.kube.resources import DEPLOYMENTS
from sair.quantities import Millicores
from tests.controller.stages import Stages, eventually
from tests.controller.worlds.opening import Opened, apply, ready

pytestmark = pytest.mark.blocking_allowed  # reading a kubeconfig and its certificates, once


async def test_what_somebody_changed_since_the_last_look_at_metrics_is_rolled_back(
    stages: Stages, opened: Opened
) -> None:
    await stages.stage("resize", node=await stages.node())
    then = (await ready(opened, stages.key(), 1))["resize"]
    path = DEPLOYMENTS.path(stages.namespace, "resize")
    await stages.api.patch(path, {"spec": {"replicas": 5}}, PatchKind.MERGE)

    async def noticed() -> bool:
        # A rollback looks at this alone: there may be no metrics.
        return (await opened.world.allocations(stages.key()))["resize"].replicas == 5

    await eventually(noticed)
    outcomes = await apply(opened, stages.key(), "resize", then)
    assert outcomes == {"replicas": KnobOutcome("resize", "replicas", 1, 1)}
    assert await stages.replicas("resize") == 1


async def given(stages: Stages, opened: Opened, cpu: str, *conditions: dict[str, str]) -> Allocation:
    """A stage whose node says what it has given its pod."""
    await stages.stage("resize", node=await stages.node())
    allocation = (await ready(opened, stages.key(), 1))["resize"]
    container: dict[str, Any] = {"name": "main", "image": "example/app:1", "imageID": "", "ready": True}
    container |= {"restartCount": 0, "resources": {"requests": {"cpu": cpu}}}
    known = [{"type": "Ready", "status": "True"}, *conditions]
    await stages.status_of("resize-0", {"conditions": known, "containerStatuses": [container]})
    return allocation


async def test_a_resize_of_which_the_node_says_nothing_yet_is_not_granted(stages: Stages, opened: Opened) -> None:
    allocation = await given(stages, opened, "1")
    await eventually(lambda: has(opened, stages, 1000, 1000))
    outcome = (await apply(opened, stages.key(), "resize", replace(allocation, cpu=Millicores(1500))))["cpu"]
    assert outcome == KnobOutcome("resize", "cpu", 1500, 1000, "1 of 1 replicas: the node has not resized it yet")
    await eventually(lambda: has(opened, stages, 1500, 1000))


async def test_cpu_that_the_node_did_not_give_is_no_part_of_what_a_stage_has_and_costs(
    stages: Stages, opened: Opened
) -> None:
    pending = {"type": "PodResizePending", "status": "True", "reason": "Deferred", "message": "no room"}
    allocation = await given(stages, opened, "1", pending)
    before = await opened.world.observe(stages.key(), 2.0)
    outcome = (await apply(opened, stages.key(), "resize", replace(allocation, cpu=Millicores(1500))))["cpu"]
    assert outcome.granted == 1000
    await eventually(lambda: has(opened, stages, 1500, 1000))
    after = await opened.world.observe(stages.key(), 2.0)
    assert granted_of(after.stages[0]).cpu == 1000
    assert after.cost_per_hour == before.cost_per_hour


async def test_a_resize_that_the_node_has_done_is_what_a_stage_has(stages: Stages, opened: Opened) -> None:
    allocation = await given(stages, opened, "1500m")
    outcomes = await apply(opened, stages.key(), "resize", replace(allocation, cpu=Millicores(1500)))
    assert outcomes == {"cpu": KnobOutcome("resize", "cpu", 1500, 1500)}
    await eventually(lambda: has(opened, stages, 1500, 1500))


async def has(opened: Opened, stages: Stages, wished: int, granted: int) -> bool:
    seen = (await opened.world.observe(stages.key(), 2.0)).stages[0]
    assert not seen.gpu_measured, "nobody tells the GPU's use"
    return (seen.allocation.cpu, seen.granted_cpu) == (wished, granted)
