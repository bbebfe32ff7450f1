"""A real Prometheus server, and pods for it to scrape."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from controller.memory.embedded import free_port
from sair.serving import serve
from tests.e2e.cluster import binaries

__all__ = ["Exporting", "Prometheus", "exporting", "prometheus_server"]

SCRAPE_INTERVAL_S = 0.5
_WAIT_S = 60.0


@dataclass
class Exporting:
    """A pod's endpoint: answers the text it has at that moment."""

    text: str = ""
    port: int = 0
    asked: int = 0

    async def answer(self, _request: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(text=self.text)


@contextlib.asynccontextmanager
async def exporting(text: str) -> AsyncIterator[Exporting]:
    """Serve on loopback while the context is open."""
    pod = Exporting(text)
    application = web.Application()
    application.router.add_get("/metrics", pod.answer)
    async with serve(application, host="127.0.0.1", port=0) as served:
        pod.port = served.port
        yield pod
    # The server is closed, its connections are once the loop has turned.
    await asyncio.sleep(0.05)


@dataclass
class Prometheus:
    """A server that scrapes what it is told to, twice a second."""

    url: str
    _targets: Path

    def scrape(self, pods: Mapping[tuple[str, str], Exporting], **labels: str) -> None:
        """Have it scrape pods, by namespace and name, from now on these and no others."""
        groups = [
            {"targets": [f"127.0.0.1:{pod.port}"], "labels": {"namespace": namespace, "pod": name, **labels}}
            for (namespace, name), pod in pods.items()
        ]
        fresh = self._targets.with_suffix(".new")
        fresh.write_text(json.dumps(groups))
        fresh.rename(self._targets)


@contextlib.asynccontextmanager
async def prometheus_server(folder: Path) -> AsyncIterator[Prometheus]:
    """Run one while the context is open.

    Raises:
        Unavailable: If there is none on this machine and none was built.
    """
    binary = binaries.require(["prometheus"])["prometheus"]
    targets, configuration, port = folder / "targets.json", folder / "prometheus.yml", free_port()
    targets.write_text("[]")
    found = {"files": [str(targets)], "refresh_interval": "1s"}
    interval = f"{SCRAPE_INTERVAL_S * 1000:.0f}ms"
    # Every JSON text is YAML.
    configuration.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": interval, "scrape_timeout": interval},
                "scrape_configs": [{"job_name": "pods", "file_sd_configs": [found]}],
            }
        )
    )
    arguments = (f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}")
    listening = f"--web.listen-address=127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            binary, *arguments, listening, stdout=log, stderr=log, cwd=folder
        )
    server = Prometheus(f"http://127.0.0.1:{port}", targets)
    try:
        await _ready(server.url, process, folder / "log")
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _ready(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(_WAIT_S), aiohttp.ClientSession() as session:
        while True:
            assert process.returncode is None, f"it ended; see {log}"
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/-/ready") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
