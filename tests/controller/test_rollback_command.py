"""`sair rollback` against a real API server, a real Redis and a fleet that goes on scaling all the while."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import pytest_asyncio
import typer
from typer.testing import CliRunner, Result

from controller.memory.store import Store
from controller.rollback_command import rollback
from sair.errors import SairError
from sair.kube.client import Api, PatchKind
from sair.kube.patch import merge_patch_annotations
from sair.kube.resources import EVENTS, PIPELINES, PODS
from tests.controller.fleets import Running, RunningFleet
from tests.controller.stages import EXTENDER, SERVICE_ACCOUNT, Stages, eventually, task
from tests.e2e.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.blocking_allowed  # reading a kubeconfig and its certificates, once

GPU = {
    "gpu-rate": "0.3",
    "gpu-rate-min": "0.3",
    "slo-p99": "300ms",
    "cpu-min": "1",
    "cpu-max": "1",
    "replicas-max": "1",
}
SRE = "sre"

app = typer.Typer()
app.command()(rollback)

Command = Callable[..., Coroutine[Any, Any, Result]]


@pytest_asyncio.fixture
async def controller(cluster: ControlPlane) -> AsyncIterator[Api]:
    """The API server with the controller's own rights."""
    async with await Api.from_environment(cluster.client_kubeconfig(SERVICE_ACCOUNT)) as api:
        yield api


@pytest_asyncio.fixture
async def running(controller: Api, store: Store) -> AsyncIterator[Running]:
    async with RunningFleet(controller, store) as one:
        yield one


@pytest_asyncio.fixture
async def sair(cluster: ControlPlane, stages: Stages, redis_url: str) -> Command:
    """The command, run by somebody who may look at and change this namespace's Pipelines and nothing else."""
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/" + stages.namespace
    rule = {"apiGroups": ["sair.dev"], "resources": ["pipelines"], "verbs": ["get", "patch"]}
    await stages.api.create(f"{rbac}/roles", {"metadata": {"name": SRE}, "rules": [rule]})
    group = "rbac.authorization.k8s.io"
    subject = {"kind": "User", "name": SRE, "apiGroup": group}
    role = {"kind": "Role", "name": SRE, "apiGroup": group}
    await stages.api.create(f"{rbac}/rolebindings", {"metadata": {"name": SRE}, "subjects": [subject], "roleRef": role})
    environment = {"SAIR_CONTROLLER_KUBECONFIG": str(cluster.client_kubeconfig(SRE)), "REDIS_URL": redis_url}

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, [stages.key(), *arguments], env=environment)

    return run


@pytest_asyncio.fixture(autouse=True)
async def extender(cluster: ControlPlane, stages: Stages) -> AsyncIterator[None]:
    """Grants every share that is wished for, as the extender does where there is room."""
    binding = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    group = "rbac.authorization.k8s.io"
    subject = {"kind": "User", "name": EXTENDER, "apiGroup": group}
    role = {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": group}
    body = {"metadata": {"name": stages.namespace}, "subjects": [subject], "roleRef": role}
    await stages.api.create(binding, body)
    async with await Api.from_environment(cluster.client_kubeconfig(EXTENDER)) as api:

        async def grant() -> None:
            granted = ""
            while True:
                wish = await stages.wish("detect") or GPU["gpu-rate"]
                if wish != granted:
                    with contextlib.suppress(SairError):  # the pod is not there yet, or not any more
                        shares: dict[str, str | None] = {f"sair.dev/gpu-{key}": wish for key in ("rate", "granted")}
                        shares["sair.dev/gpu-index"] = "0"
                        await merge_patch_annotations(
                            api, PODS, stages.namespace, "detect-0", shares, component="extender"
                        )
                        granted = wish
                await asyncio.sleep(0.1)

        async with task(grant()):
            yield
    await stages.api.delete(f"{binding}/{stages.namespace}")


async def share(stages: Stages) -> float:
    return float(await stages.wish("detect") or 0.3)


async def spec(stages: Stages, **fields: object) -> None:
    await stages.api.patch(PIPELINES.path(stages.namespace, "shop"), {"spec": fields}, PatchKind.MERGE)


async def last_round(stages: Stages) -> int:
    decision = (await stages.pipeline()).get("status", {}).get("lastDecision", {})
    return int(decision.get("round", -1))


async def some_rounds(stages: Stages, count: int) -> None:
    until = await last_round(stages) + count

    async def over() -> bool:
        return await last_round(stages) >= until

    await eventually(over)


async def overloaded(stages: Stages, store: Store) -> str:
    """A stage that the controller gives ever more of a GPU; gives the last round before which it had 0.3."""
    (exporter,) = await stages.stage("detect", GPU, node=await stages.node())

    async def calm() -> bool:
        return await last_round(stages) >= 1

    await eventually(calm)
    exporter.rate_per_s, exporter.service_s, exporter.latency_s, exporter.queue = 60.0, 0.025, 1.0, 30.0

    async def raised() -> bool:
        return await share(stages) >= 0.6

    await eventually(raised)
    for _id, fields in await store.decisions(stages.key(), 1000):
        before = json.loads(fields.get("before_json") or "{}")
        if before and before["detect"]["gpu_milli"] == 300:
            return fields["round"]
    raise AssertionError("no round began with 0.3 of a GPU")


async def test_a_share_is_what_it_was_and_stays_so_under_a_load_that_wants_more(
    stages: Stages, store: Store, running: Running, sair: Command
) -> None:
    bad = await overloaded(stages, store)
    shown = await sair(bad)
    assert shown.exit_code == 0, shown.stderr
    assert "→ 0.3" in shown.stdout
    assert await share(stages) >= 0.6, "nothing is changed before it is told to"
    done = await sair(bad, "--apply", "--hold", "1m")
    assert done.exit_code == 0, done.stderr
    assert await share(stages) == 0.3
    for _ in range(4):
        await some_rounds(stages, 1)
        assert await share(stages) == 0.3
        assert await stages.replicas("detect") == 1
    paused = await stages.condition("Paused")
    assert (paused["status"], paused["reason"]) == ("True", "RolledBack")
    assert f"before round {bad}" in paused["message"]
    decided = [fields for _id, fields in await store.decisions(stages.key(), 100) if fields.get("policy") == "rollback"]
    assert [fields["action"] for fields in decided].count("hold") == len(decided) - 1, "it is carried out once"
    released = await sair("--release")
    assert released.exit_code == 0, released.stderr

    async def raised() -> bool:
        return await share(stages) > 0.3

    await eventually(raised)
    await some_rounds(stages, 2)
    assert "rollback" not in (await stages.pipeline())["status"]
    assert (await stages.condition("Paused"))["status"] == "False"


async def test_another_leader_keeps_it(
    stages: Stages, store: Store, controller: Api, cluster: ControlPlane, sair: Command
) -> None:
    async with RunningFleet(controller, store):
        bad = await overloaded(stages, store)
        assert (await sair(bad, "--apply")).exit_code == 0
    async with RunningFleet(controller, store):
        await some_rounds(stages, 3)
        assert await share(stages) == 0.3


async def test_what_is_out_of_bounds_by_now_is_refused_with_its_name_and_the_request_is_gone(
    stages: Stages, store: Store, running: Running, sair: Command
) -> None:
    bad = await overloaded(stages, store)
    await spec(stages, bounds={"detect": {"gpuRateMin": "0.45"}})
    done = await sair(bad, "--apply")
    assert done.exit_code == 2
    assert done.stderr == (
        "sair: refused, nothing was changed: bounds: detect gpu_rate 0.3 is outside its bounds, 0.45 to 1\n"
    )
    assert "rollback" not in (await stages.pipeline())["spec"]
    assert await share(stages) >= 0.6
    await some_rounds(stages, 2)
    assert (await stages.condition("Paused"))["status"] == "False"

    async def told() -> bool:
        events = await stages.api.list(EVENTS.path(stages.namespace))
        return any(event["reason"] == "RollbackRefused" for event in events)

    await eventually(told)


async def test_a_pipeline_that_was_switched_off_in_a_hurry_is_rolled_back_when_told_to_set_auto(
    stages: Stages, store: Store, running: Running, sair: Command
) -> None:
    bad = await overloaded(stages, store)
    await spec(stages, mode="off")

    async def off() -> bool:
        return bool((await stages.pipeline())["status"]["mode"] == "off")

    await eventually(off)
    refused = await sair(bad, "--apply")
    assert refused.exit_code == 2
    assert "is in mode off, in which nothing is applied; with --auto" in refused.stderr
    done = await sair(bad, "--apply", "--auto", "--hold", "forever")
    assert done.exit_code == 0, done.stderr
    await some_rounds(stages, 3)
    assert await share(stages) == 0.3


async def test_a_refusal_leaves_a_pipeline_that_was_switched_off_switched_off(
    stages: Stages, store: Store, running: Running, sair: Command
) -> None:
    bad = await overloaded(stages, store)
    await spec(stages, mode="off", bounds={"detect": {"gpuRateMin": "0.45"}})

    async def off() -> bool:
        return bool((await stages.pipeline())["status"]["mode"] == "off")

    await eventually(off)
    before = (await stages.pipeline())["spec"]
    done = await sair(bad, "--apply", "--auto")
    assert done.exit_code == 2
    assert "refused, nothing was changed" in done.stderr
    assert (await stages.pipeline())["spec"] == before


async def test_a_refusal_leaves_a_pipeline_without_a_mode_without_one(
    stages: Stages, store: Store, running: Running, sair: Command
) -> None:
    bad = await overloaded(stages, store)
    await spec(stages, bounds={"detect": {"gpuRateMin": "0.45"}})
    before = (await stages.pipeline())["spec"]
    assert "mode" not in before
    assert "refused, nothing was changed" in (await sair(bad, "--apply", "--auto")).stderr
    assert (await stages.pipeline())["spec"] == before


@pytest.mark.parametrize("hold", ["999999999h", "87601h"])
def test_a_hold_that_no_calendar_has_is_refused_with_what_is_allowed(hold: str) -> None:
    done = CliRunner().invoke(app, ["default/vision", "3", "--apply", "--hold", hold])
    assert done.exit_code == 2
    assert done.stderr.startswith("sair: --hold: '")
    assert "expected at most 87600h, or forever" in done.stderr


async def test_without_a_controller_it_says_so_and_what_becomes_of_the_request(
    stages: Stages, store: Store, controller: Api, sair: Command
) -> None:
    async with RunningFleet(controller, store):
        bad = await overloaded(stages, store)
    waited = await sair(bad, "--apply", "--timeout", "1s")
    assert waited.exit_code == 2
    assert "no controller answered within 1 s" in waited.stderr
    async with RunningFleet(controller, store):

        async def rolled_back() -> bool:
            return await share(stages) == 0.3

        await eventually(rolled_back)


async def test_who_may_not_change_pipelines_and_what_is_not_there_is_one_line(
    stages: Stages, store: Store, running: Running, sair: Command, cluster: ControlPlane, redis_url: str
) -> None:
    bad = await overloaded(stages, store)
    environment = {"SAIR_CONTROLLER_KUBECONFIG": str(cluster.client_kubeconfig("nobody")), "REDIS_URL": redis_url}
    arguments = [stages.key(), bad, "--apply"]
    refused = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment)
    assert refused.exit_code == 2
    assert "forbidden" in refused.stderr
    assert refused.stderr.count("\n") == 1
    missing = await sair("123456", "--apply")
    assert missing.exit_code == 2
    assert "the journal has no round 123456" in missing.stderr
    assert await share(stages) >= 0.6
