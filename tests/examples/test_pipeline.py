"""The example's three stages as processes on a real Redis, with the simulated driver and the hook under the one with a GPU."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import redis.asyncio as redis
from prometheus_client.parser import text_string_to_metric_families

from controller.observe.exposition import Scrape, parse_exposition
from sair.annotations import MetricsEndpoint

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "deploy" / "examples"
GPU_MS = 8.0

Stage = asyncio.subprocess.Process


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def hook_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hook and the simulated driver, built once."""
    assert shutil.which("make") and shutil.which("gcc"), "make and gcc are needed to build the simulated driver"
    build = tmp_path_factory.mktemp("hook")
    wanted = [f"{build}/libsair_cuda.so", f"{build}/driver/libcuda.so.1"]
    make = await asyncio.create_subprocess_exec(
        "make", "-s", "-C", str(ROOT / "cuda_hook"), f"BUILD={build}", *wanted, stderr=asyncio.subprocess.PIPE
    )
    _, said = await make.communicate()
    assert make.returncode == 0, said.decode()
    return build


class Bench:
    """Starts the example's commands in processes that share a Redis; none outlives the test."""

    def __init__(self, url: str, folder: Path, build: Path, exits: AsyncExitStack) -> None:
        self.folder = folder
        self.grant = folder / "gpu-granted"
        self.client = redis.from_url(url, decode_responses=True)
        self._url, self._build, self._exits = url, build, exits

    async def stage(self, name: str, following: str, *, gpu: bool = False) -> tuple[Stage, int]:
        """Start a stage and wait until it answers; gives the process and the port of its metrics."""
        port = _free_port()
        arguments = [f"--name={name}", f"--next={following}", f"--port={port}", "--cpu-ms=1", f"--gpu-ms={GPU_MS:g}"]
        environment = {}
        if gpu:
            arguments.append("--device=simulated")
            environment = {
                "EXAMPLE_SIMULATED_DRIVER": f"{self._build}/driver/libcuda.so.1",
                "SAIR_SIMGPU_PATH": str(self.folder / "card"),
                "LD_PRELOAD": f"{self._build}/libsair_cuda.so",
                "SAIR_GRANT_FILE": str(self.grant),
                "SAIR_STATS_PATH": str(self.folder / "stats"),
            }
        process = await self.start(["stage", *arguments], environment)
        await until(lambda: _answers(port), 30, f"stage {name} answers")
        return process, port

    async def load(self, first: str, trace: str) -> Stage:
        """Start a client that replays a trace once."""
        path = self.folder / "trace.txt"
        path.write_text(trace)
        return await self.start(["load", f"--first={first}", f"--trace={path}", "--once"], {})

    async def start(self, command: list[str], environment: dict[str, str]) -> Stage:
        """Start a command of the example."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", *command),
            env={**os.environ, "PYTHONPATH": str(EXAMPLES), "EXAMPLE_REDIS_URL": self._url, **environment},
            stdout=asyncio.subprocess.PIPE,
        )
        self._exits.push_async_callback(_end, process)
        return process


@pytest_asyncio.fixture
async def bench(redis_url: str, tmp_path: Path, hook_build: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as exits:
        made = Bench(redis_url, tmp_path, hook_build, exits)
        exits.push_async_callback(made.client.aclose)
        yield made


async def test_every_request_passes_all_stages_and_every_stage_says_so(bench: Bench) -> None:
    bench.grant.write_text("0.9")
    ports = {
        "first": (await bench.stage("first", "second"))[1],
        "second": (await bench.stage("second", "third", gpu=True))[1],
        "third": (await bench.stage("third", ""))[1],
    }
    client = await bench.load("first", "0 10\n4 0\n")
    await until(lambda: _length(bench, "first", 20), 20, "twenty requests were sent")
    client.send_signal(signal.SIGSTOP)
    sent = await bench.client.xlen("stage:first")
    await until(lambda: _done(ports["third"], sent), 30, f"{sent} requests reach the end")

    for name, port in ports.items():
        # What the controller reads, with what it reads it with.
        said = await scrape(port)
        assert sum(each.total for each in said.latency.values()) == sent, name
        assert _services(said) == sent, name
        assert sum(each.total for each in said.pipeline.values()) == (sent if name == "third" else 0), name
    for name, port in ports.items():
        # Told twice a second.
        await until(lambda port=port: _idle(port), 10, f"an empty queue of {name}")  # type: ignore[misc]  # bound here
    # A new replica counts what was added since it first looked, so the few requests of its first half second may lack.
    assert sum((await scrape(ports["third"])).arrivals.values()) >= sent / 2
    served = await scrape(ports["second"])
    assert sum(each.sum for each in served.services.values()) / sent >= GPU_MS / 1000


async def test_the_stage_with_a_gpu_gets_the_share_in_its_grant_file_and_no_more(bench: Bench) -> None:
    bench.grant.write_text("0.2")
    _, port = await bench.stage("only", "", gpu=True)
    # Twice what a whole card could do.
    client = await bench.load("only", f"0 {2000 / GPU_MS:g}\n")
    await until(lambda: _done(port, 20), 30, "it works")

    narrow = await _gpu_share(port, 4.0)
    temporary = bench.folder / "next"
    temporary.write_text("0.6")
    temporary.replace(bench.grant)
    await asyncio.sleep(1)
    wide = await _gpu_share(port, 4.0)
    assert (await scrape(port)).queue > 0
    client.kill()

    assert narrow <= 0.23
    assert wide <= 0.63
    # A busy machine takes CPU time from the stage, never from this comparison's direction.
    assert wide > 1.5 * narrow


async def test_work_that_a_killed_replica_had_taken_is_done_by_another(bench: Bench) -> None:
    # A replica that took three requests and died over them, as a lost node leaves it.
    await bench.client.xgroup_create("stage:only", "stage", id="0", mkstream=True)
    now = repr(time.time())
    for _ in range(3):
        await bench.client.xadd("stage:only", {"born": now, "queued": now})
    await bench.client.xreadgroup("stage", "dead", {"stage:only": ">"}, count=3)
    taken: list[Any] = [
        each["message_id"] for each in await bench.client.xpending_range("stage:only", "stage", "-", "+", 10)
    ]
    await bench.client.xclaim("stage:only", "stage", "dead", 0, taken, idle=60_000)

    _, port = await bench.stage("only", "")

    await until(lambda: _done(port, 3), 30, "all three are done")
    assert (await bench.client.xpending("stage:only", "stage"))["pending"] == 0


async def test_a_stage_finishes_what_it_has_begun_and_leaves(bench: Bench) -> None:
    process, port = await bench.stage("only", "")
    client = await bench.load("only", "0 100\n")
    await until(lambda: _done(port, 10), 30, "it works")

    process.terminate()
    assert await asyncio.wait_for(process.wait(), 10) == 0
    client.kill()

    assert (await bench.client.xpending("stage:only", "stage"))["pending"] == 0
    assert await bench.client.xinfo_consumers("stage:only", "stage") == []


async def scrape(port: int) -> Scrape:
    """What a stage exports, read as the controller reads it."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as reply:
        text = await reply.text()
    assert list(text_string_to_metric_families(text))
    return parse_exposition(text, MetricsEndpoint(), time.time())


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float, what: str) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it does not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not await holds():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.05)


async def _answers(port: int) -> bool:
    try:
        await scrape(port)
    except aiohttp.ClientError:
        return False
    return True


async def _done(port: int, count: int) -> bool:
    return _services(await scrape(port)) >= count


def _services(said: Scrape) -> float:
    return sum(each.count for each in said.services.values())


async def _idle(port: int) -> bool:
    return (await scrape(port)).queue == 0


async def _length(bench: Bench, stage: str, count: int) -> bool:
    return int(await bench.client.xlen(f"stage:{stage}")) >= count


async def _gpu_share(port: int, seconds: float) -> float:
    """Share of the card that a stage used for so long, by the requests it finished."""
    before, began = await scrape(port), time.monotonic()
    await asyncio.sleep(seconds)
    after, ended = await scrape(port), time.monotonic()
    finished = _services(after) - _services(before)
    return finished * GPU_MS / 1000 / (ended - began)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _end(process: Stage) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
