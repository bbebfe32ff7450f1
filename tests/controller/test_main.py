"""`sair controller run` as processes of their own, with the controller's own rights, a real API server and a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from controller.memory.store import Store
from sair.kube.resources import LEASES
from tests.controller.stages import SERVICE_ACCOUNT, WAIT_S, Stages, eventually
from tests.e2e.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.blocking_allowed  # reading a kubeconfig and its certificates, once

COMMAND = (sys.executable, "-c", "from sair.cli import main; main()", "controller", "run")


@pytest_asyncio.fixture
async def stages(stages: Stages) -> AsyncIterator[Stages]:
    """Without the Lease of the controllers that ran."""
    yield stages
    with contextlib.suppress(Exception):
        await stages.api.delete(LEASES.path("sair-system", "sair-controller"))


class Process:
    """A controller's process and what it logged."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"event": line.decode()})

    async def logged(self, event: str) -> dict[str, Any]:
        async def is_so() -> bool:
            return any(line.get("event") == event for line in self.lines)

        await eventually(is_so, lambda: self.lines[-20:])
        return next(line for line in self.lines if line.get("event") == event)

    async def get(self, path: str) -> tuple[int, str]:
        port = (await self.logged("serving"))["port"]
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, await answer.text()

    async def ended(self) -> int:
        async with asyncio.timeout(WAIT_S):
            code = await self.process.wait()
            await self._reading
        return code


@contextlib.asynccontextmanager
async def started(cluster: ControlPlane, redis_url: str, **settings: str) -> AsyncIterator[Process]:
    own = {
        "SAIR_CONTROLLER_KUBECONFIG": str(cluster.client_kubeconfig(SERVICE_ACCOUNT)),
        "SAIR_CONTROLLER_REDIS_URL": redis_url,
        "SAIR_CONTROLLER_HOST": "127.0.0.1",
        "SAIR_CONTROLLER_PORT": "0",
        "SAIR_CONTROLLER_INTERVAL_S": "5",
        "SAIR_CONTROLLER_WINDOW_S": "2",
        "SAIR_CONTROLLER_REFLEX_INTERVAL_S": "0.5",
        **settings,
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SAIR_", "OPENAI_", "REDIS_"))}
    process = await asyncio.create_subprocess_exec(*COMMAND, env=kept | own, stderr=asyncio.subprocess.PIPE)
    one = Process(process)
    try:
        yield one
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await one.ended()


async def test_it_finds_a_pipeline_runs_rounds_and_ends_cleanly_on_sigterm(
    cluster: ControlPlane, stages: Stages, redis_url: str
) -> None:
    node = await stages.node()
    await stages.stage("detect", {"gpu-rate": "0.3", "mode": "recommend", "slo-p99": "300ms"}, node=node)
    await stages.stage("classify", {"after": "detect"}, node=node)
    async with started(cluster, redis_url, SAIR_CONTROLLER_LEASE_S="7") as first:
        await first.logged("leading")
        lease = await stages.api.get(LEASES.path("sair-system", "sair-controller"))
        assert lease["spec"]["leaseDurationSeconds"] == 7

        async def shown() -> bool:
            return bool((await stages.pipeline()).get("status", {}).get("lastDecision"))

        await eventually(shown, lambda: first.lines[-20:])
        assert (await first.get("/readyz"))[0] == 200
        metrics = (await first.get("/metrics"))[1]
        assert f'sair_pipeline_slo_seconds{{namespace="{stages.namespace}",pipeline="shop"}} 0.3' in metrics
        assert "sair_controller_leader 1.0" in metrics
        table = await asyncio.to_thread(cluster.run_kubectl, "get", "pipelines", "--namespace", stages.namespace)
        header, row = table.splitlines()
        assert header.split() == ["NAME", "MODE", "SLO", "P99", "COST/H", "BOTTLENECK", "DECISION", "AGE"]
        assert row.split()[:3] == ["shop", "recommend", "0.3"]
        first.process.send_signal(signal.SIGTERM)
        assert await first.ended() == 0
        assert first.lines[-1]["event"] in ("stopped", "leadership released", "leading no more")
        assert not [line for line in first.lines if line.get("level") == "error"], first.lines
    lease = await stages.api.get(LEASES.path("sair-system", "sair-controller"))
    assert lease["spec"].get("holderIdentity", "") == ""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
async def test_a_standby_goes_on_with_the_round_after_the_leaders_last_one(
    cluster: ControlPlane, stages: Stages, redis_url: str, store: Store, how: str
) -> None:
    await stages.stage("detect", {"gpu-rate": "0.3", "mode": "recommend"}, node=await stages.node())
    key = stages.key()

    async def rounds() -> list[int]:
        records = [fields for _id, fields in await store.decisions(key, 1000) if fields["kind"] == "decision"]
        return [int(fields["round"]) for fields in reversed(records) if fields.get("policy")]

    async with started(cluster, redis_url) as first:
        await first.logged("leading")
        async with started(cluster, redis_url) as second:
            assert (await second.logged("serving"))["port"]

            async def two_rounds() -> bool:
                return len((await store.load(key)).experiences) >= 1 and len(await rounds()) >= 2

            await eventually(two_rounds, lambda: first.lines[-20:])
            assert not [line for line in second.lines if line.get("event") == "leading"]
            before = await rounds()
            first.process.send_signal(signal.Signals[how])
            await first.ended()
            await second.logged("leading")

            async def goes_on() -> bool:
                return len((await store.load(key)).experiences) >= len(before) + 1

            await eventually(goes_on, lambda: second.lines[-20:])
    numbers = await rounds()
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "no round twice, none left out"
    concluded = [experience.round for experience in (await store.load(key)).experiences]
    assert concluded == numbers[: len(concluded)]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"SAIR_CONTROLLER_INTERVAL_S": "soon"}, "SAIR_CONTROLLER_INTERVAL_S: 'soon' is not allowed"),
        (
            {"SAIR_CONTROLLER_INTERVAL_S": "20", "SAIR_LLM_DEADLINE_S": "25", "SAIR_LLM_BASE_URL": "http://x/v1"},
            "SAIR_LLM_DEADLINE_S: 25.0 is not allowed; expected less than SAIR_CONTROLLER_INTERVAL_S, which is 20",
        ),
    ],
    ids=["no number", "a deadline that a round does not outlast"],
)
async def test_a_setting_that_is_wrong_ends_it_with_one_line_that_names_it(wrong: dict[str, str], told: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, env={**os.environ, **wrong}, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert said.decode().startswith(f"sair: {told}")


async def test_replicas_share_the_shards_and_one_takes_over_what_another_held(
    cluster: ControlPlane, stages: Stages, redis_url: str, store: Store
) -> None:
    await stages.stage("detect", {"gpu-rate": "0.3", "mode": "recommend"}, node=await stages.node())

    def held(one: Process) -> set[int]:
        shards: set[int] = set()
        for line in one.lines:
            if line.get("event") == "leading":
                shards.add(line["shard"])
            elif line.get("event") == "leading no more":
                shards.discard(line["shard"])
        return shards

    async def rounds() -> int:
        return len(
            [fields for _id, fields in await store.decisions(stages.key(), 1000) if fields["kind"] == "decision"]
        )

    async with started(cluster, redis_url, SAIR_CONTROLLER_SHARDS="2") as first:

        async def alone() -> bool:
            return held(first) == {0, 1}

        await eventually(alone, lambda: first.lines[-20:])
        async with started(cluster, redis_url, SAIR_CONTROLLER_SHARDS="2") as second:

            async def shared() -> bool:
                return len(held(first)) == len(held(second)) == 1 and held(first) != held(second)

            await eventually(shared, lambda: (first.lines[-20:], second.lines[-20:]))
            metrics = (await second.get("/metrics"))[1]
            assert "sair_controller_leader 1.0" in metrics
            assert "sair_controller_shards 1.0" in metrics

            async def decided() -> bool:
                return await rounds() >= 1

            await eventually(decided, lambda: (first.lines[-20:], second.lines[-20:]))
            first.process.kill()

            async def taken_over() -> bool:
                return held(second) == {0, 1}

            await eventually(taken_over, lambda: second.lines[-20:])
            before = await rounds()

            async def goes_on() -> bool:
                return await rounds() > before

            await eventually(goes_on, lambda: second.lines[-20:])
    for shard in range(2):
        with contextlib.suppress(Exception):
            await stages.api.delete(LEASES.path("sair-system", f"sair-controller-{shard}"))


async def test_metrics_may_come_from_a_prometheus_server_and_one_without_an_address_is_refused(
    cluster: ControlPlane, stages: Stages, redis_url: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, env={**os.environ, "SAIR_CONTROLLER_METRICS_SOURCE": "prometheus"}, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 2
    assert said.decode().startswith("sair: SAIR_CONTROLLER_PROMETHEUS_URL: '' is not allowed")
    await stages.stage("detect", {"mode": "recommend"}, node=await stages.node())
    nobody = {"SAIR_CONTROLLER_METRICS_SOURCE": "prometheus", "SAIR_CONTROLLER_PROMETHEUS_URL": "http://127.0.0.1:1"}
    async with started(cluster, redis_url, **nobody) as one:
        await one.logged("Prometheus cannot be read")

        async def told() -> bool:
            return "127.0.0.1:1" in (await stages.condition("MetricsAvailable")).get("message", "")

        await eventually(told, lambda: one.lines[-20:])
