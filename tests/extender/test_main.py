"""`sair extender serve` as a process of its own."""

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

from extender.replica import Replica
from sair.kube.client import Api
from sair.quantities import GpuRate
from tests.e2e.cluster.control_plane import ControlPlane
from tests.extender.cluster import WAIT_S, Cluster, eventually

COMMAND = (sys.executable, "-c", "from sair.cli import main; main()", "extender", "serve")


def environment(**settings: str) -> dict[str, str]:
    return {**os.environ, "SAIR_EXTENDER_PORT": "0", "SAIR_EXTENDER_METRICS_PORT": "0", **settings}


class Process:
    """The extender's process and what it logged first: its ports."""

    def __init__(self, process: asyncio.subprocess.Process, ports: dict[str, Any]) -> None:
        self.process = process
        self._ports = ports

    async def bind(self, pod: Replica, node: str) -> str:
        body = {"PodName": pod.name, "PodNamespace": pod.namespace, "PodUID": pod.uid, "Node": node}
        url = f"http://127.0.0.1:{self._ports['port']}/bind"
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
            return str((await answer.json())["Error"])

    async def ready(self) -> bool:
        url = f"http://127.0.0.1:{self._ports['metrics_port']}/readyz"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status == 200


@contextlib.asynccontextmanager
async def started(control_plane: ControlPlane) -> AsyncIterator[Process]:
    settings = environment(SAIR_EXTENDER_KUBECONFIG=str(control_plane.kubeconfig))
    process = await asyncio.create_subprocess_exec(*COMMAND, env=settings, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(WAIT_S):
            ports: dict[str, Any] = {}
            while ports.get("event") != "serving":
                ports = json.loads(await process.stderr.readline())
        drained = asyncio.create_task(process.stderr.read())
        one = Process(process, ports)
        await eventually(one.ready)
        yield one
        drained.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_it_binds_ends_on_sigterm_and_a_successor_knows_everything(
    control_plane: ControlPlane, api: Api, cluster: Cluster
) -> None:
    node = await cluster.node("a", 1)
    one, two = await cluster.pod("one", "0.6"), await cluster.pod("two", "0.6")
    async with started(control_plane) as first:

        async def bound() -> bool:
            return await first.bind(one, node) == ""

        await eventually(bound)
        first.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(WAIT_S):
            assert await first.process.wait() == 0
    async with started(control_plane) as second:

        async def full() -> bool:
            return await second.bind(two, node) == "gpu 0: 0.4 of 0.6 free"

        await eventually(full)


async def test_a_raise_wished_for_while_it_was_killed_is_granted_by_its_successor(
    control_plane: ControlPlane, api: Api, cluster: Cluster
) -> None:
    node = await cluster.node("a", 1)
    pod = await cluster.pod("one", "0.3")
    async with started(control_plane) as first:

        async def bound() -> bool:
            return await first.bind(pod, node) == ""

        await eventually(bound)
        first.process.kill()
        await first.process.wait()
    await cluster.wish("one", "0.9")
    assert (await cluster.get("one")).granted == GpuRate(300)
    async with started(control_plane):
        await cluster.granted("one", "0.9")


async def test_a_setting_that_is_wrong_ends_it_with_one_line_that_names_it() -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, env=environment(SAIR_EXTENDER_HEADROOM_MILLI="lots"), stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()

    assert process.returncode == 2
    assert said.decode().startswith("sair: SAIR_EXTENDER_HEADROOM_MILLI: 'lots' is not allowed")
