"""What a round leaves in the Pipeline's status, whatever a model or an error said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import cast

import pytest
import pytest_asyncio

from controller.decision import Decision
from controller.discovery import Found
from controller.journal import RoundReport
from controller.knowledge import Learned
from controller.llm.policy import Trace
from controller.llm.settings import ModelSettings
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from controller.metrics import ControllerMetrics
from controller.state import HOLD, Action, Allocation, KnobOutcome, StageDelta, project
from controller.status import StatusWriter
from controller.worlds.kubernetes import KubernetesWorld
from sair.kube.client import Api
from sair.kube.events import Recorder
from sair.pipeline import Condition, Metadata, Pipeline, PipelineStatus
from sair.quantities import Mebibytes, Millicores
from tests.controller.fleets import Running, RunningFleet
from tests.controller.situations import chain, observation
from tests.controller.stages import SERVICE_ACCOUNT, Stages, eventually
from tests.e2e.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.blocking_allowed  # reading a kubeconfig and its certificates, once


@pytest_asyncio.fixture
async def running(cluster: ControlPlane, store: Store, stages: Stages) -> AsyncIterator[Running]:
    async with (
        await Api.from_environment(cluster.client_kubeconfig(SERVICE_ACCOUNT)) as api,
        RunningFleet(api, store) as one,
    ):
        # Off, so that the fleet's own rounds decide nothing, and without pods, so that they see nothing.
        await stages.deployment("a", {"mode": "off"})

        async def there() -> bool:
            return bool(await stages.pipeline())

        await eventually(there)
        yield one


def report(running: Running, stages: Stages, reason: str = "", **more: object) -> RoundReport:
    view = running.world.found()[stages.key()].view
    decision = Decision(view.key, 7, 1.8e9, "llm", HOLD, HOLD, {}, {}, (), reason=reason, bottleneck="a")
    made = RoundReport(replace(view, mode="auto"), 7, 1.8e9, decision=decision)
    for name, value in more.items():
        setattr(made, name, value)
    return made


async def last(stages: Stages) -> dict[str, str]:
    decision: dict[str, str] = (await stages.pipeline())["status"]["lastDecision"]
    return decision


async def test_a_models_words_are_bounded_and_cannot_play_with_a_terminal(stages: Stages, running: Running) -> None:
    await running.status.round_ended(report(running, stages, "\x1b[2Jbecause\r\n\x00 " + "so " * 100_000))
    reason = (await last(stages))["reason"]
    assert reason.startswith("[2Jbecause so so")
    assert len(reason) == 1000
    assert reason.isprintable()


async def test_an_endless_error_of_a_model_is_bounded_too(stages: Stages, running: Running) -> None:
    writer: StatusWriter = running.status
    await writer.round_ended(report(running, stages, trace=Trace(), fallback="no " * 100_000))
    for kind in ("FallbackActive", "LLMReady"):
        assert len((await stages.condition(kind)).get("message", "")) <= 1000


async def test_a_wish_that_was_not_granted_limits_scaling_and_says_which(stages: Stages, running: Running) -> None:
    outcomes = [KnobOutcome("a", "gpu_rate", 500, 0, "1 of 1 replicas: no share granted yet")]
    await running.status.round_ended(report(running, stages, outcomes=outcomes))
    condition = await stages.condition("ScalingLimited")
    assert (condition["status"], condition["reason"]) == ("True", "NotGranted")
    assert condition["message"] == "a gpu_rate: 1 of 1 replicas: no share granted yet"


async def test_a_rise_of_cpu_stands_in_the_status_before_the_pods_are_asked_and_a_fall_does_not(
    stages: Stages, running: Running
) -> None:
    await running.status.round_ended(report(running, stages))

    def turning(cpu: int) -> RoundReport:
        delta = StageDelta("a", cpu=cpu)
        before = Allocation(1, Millicores(1000), Mebibytes(512), None)
        action = Action((delta,))
        after = {"a": project(before, delta)}
        decision = Decision("", 7, 1.8e9, "llm", action, action, {"a": before}, after, ())
        return report(running, stages, decision=decision)

    async def announced(cpu: int) -> str | None:
        await running.status.about_to_act(turning(cpu))
        wish: str | None = (await stages.pipeline())["status"]["stages"][0].get("cpu")
        return wish

    async def risen() -> bool:  # the fleet's own rounds, which know nothing of this decision, write as well
        return await announced(500) == "1500m"

    await eventually(risen)
    assert await announced(-500) in ("1500m", None)


async def test_a_model_that_is_off_its_forecasts_is_a_condition_and_an_event(stages: Stages, running: Running) -> None:
    await running.status.round_ended(report(running, stages, learned=Learned("", residual=0.7)))
    condition = await stages.condition("ModelDrift")
    assert (condition["status"], condition["reason"]) == ("True", "SlowerThanModel")

    async def told() -> bool:
        return any("times what the model predicts" in note for note in await stages.notes("ModelDrift"))

    await eventually(told)
    assert f'sair_pipeline_model_residual{{namespace="{stages.namespace}",pipeline="shop"}} 0.7' in running.metrics()
    await running.status.round_ended(report(running, stages, learned=Learned("", residual=0.1)))
    assert (await stages.condition("ModelDrift"))["status"] == "False"


async def test_a_transition_time_moves_only_with_its_status(stages: Stages, running: Running) -> None:
    await running.status.round_ended(report(running, stages))
    before = await stages.condition("ScalingLimited")
    later = report(running, stages)
    later.time_s += 3600
    await running.status.round_ended(later)
    assert await stages.condition("ScalingLimited") == before


def conditions(report: RoundReport, model: ModelSettings, *standing: Condition) -> dict[str, tuple[str, str]]:
    """Status and reason of each condition after a round."""
    memory, world = MirroredMemory(Store.from_url("redis://127.0.0.1:1/0")), cast(KubernetesWorld, None)
    writer = StatusWriter(cast(Api, None), world, cast(Recorder, None), memory, model, cast(ControllerMetrics, None))
    current = Pipeline(metadata=Metadata(name="chain", namespace="test"), status=PipelineStatus(conditions=standing))
    found = Found(report.view, {}, ())
    return {each.type: (each.status, each.reason) for each in writer._conditions(report, found, current)}


def held(missing: str) -> RoundReport:
    """A round in which nothing was decided."""
    return RoundReport(chain(mode="off"), 3, 1.8e9, observation=observation(), problem="held", missing=missing)


def test_a_model_that_is_configured_by_now_is_not_called_unconfigured_any_more() -> None:
    standing = conditions(held(""), ModelSettings())
    assert standing["LLMReady"] == ("False", "NotConfigured")
    before = (
        Condition(type="LLMReady", status="False", reason="NotConfigured", last_transition_time=""),
        Condition(type="FallbackActive", status="False", reason="NotNeeded", last_transition_time=""),
    )
    after = conditions(held(""), ModelSettings(base_url="http://127.0.0.1:9/v1"), *before)
    assert (after["LLMReady"], after["FallbackActive"]) == (("Unknown", "NotAskedYet"), ("Unknown", "NotAskedYet"))
    answered = Condition(type="LLMReady", status="True", reason="ModelAnswered", last_transition_time="")
    kept = conditions(held(""), ModelSettings(base_url="http://127.0.0.1:9/v1"), answered)
    assert kept["LLMReady"] == ("True", "ModelAnswered")


@pytest.mark.parametrize("missing", ["metrics", "cluster"])
def test_a_round_that_held_for_want_of_something_leaves_it_open_whether_scaling_is_limited(missing: str) -> None:
    before = Condition(type="ScalingLimited", status="True", reason="NotGranted", last_transition_time="")
    assert conditions(held(missing), ModelSettings(), before)["ScalingLimited"] == ("True", "NotGranted")
    assert conditions(held(""), ModelSettings(), before)["ScalingLimited"] == ("False", "Granted")
