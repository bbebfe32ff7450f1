"""Real servers beyond the embedded default's: replicas with a Sentinel, a cluster, TLS, ACL users. All on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import redis.asyncio as redis

from controller.memory.embedded import free_port, server_binary, server_process

__all__ = ["Replicated", "answers", "clustered", "eventually", "plain", "replicated"]

MASTER = "sair-master"


@dataclass
class Replicated:
    """A master, a replica and a Sentinel that watches them."""

    url: str
    master: asyncio.subprocess.Process
    sentinel_port: int

    async def master_port(self) -> int:
        _host, port = await asked(self.sentinel_port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        return int(port)


async def eventually(holds: Callable[[], Any], timeout_s: float = 30.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(timeout_s):
        while not await holds():  # noqa: ASYNC110  # another process does not set our events
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def plain(
    folder: Path, *arguments: str, port: int | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A server without a password, with more arguments."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    chosen = port or free_port()
    where = ("--port", str(chosen)) if port is None else ()
    async with server_process(
        await asyncio.to_thread(server_binary),
        *("--bind", "127.0.0.1", "--dir", str(folder), "--logfile", str(folder / "log"), "--save", "", *where),
        *arguments,
    ) as process:
        yield process, chosen


async def asked(port: int, *command: object) -> Any:
    """A command that redis-py has no method for."""
    async with redis.Redis(port=port, decode_responses=True) as client:
        # redis-py leaves this method untyped.
        return await client.execute_command(*command)  # type: ignore[no-untyped-call]


async def answers(port: int) -> bool:
    async with redis.Redis(port=port) as client:
        try:
            return bool(await client.ping())
        except redis.RedisError:
            return False


@contextlib.asynccontextmanager
async def replicated(folder: Path) -> AsyncIterator[Replicated]:
    """A master that a Sentinel replaces within two seconds of its death."""
    async with contextlib.AsyncExitStack() as stack:
        master, port = await stack.enter_async_context(plain(folder / "a"))
        await eventually(lambda: answers(port))
        _, second = await stack.enter_async_context(
            plain(folder / "b", "--replicaof", f"127.0.0.1 {port}", "--repl-diskless-sync-delay", "0")
        )
        await eventually(lambda: answers(second))
        sentinel_port = free_port()
        settings = folder / "sentinel.conf"
        settings.write_text(
            f"port {sentinel_port}\nbind 127.0.0.1\ndir {folder}\nlogfile {folder / 'sentinel.log'}\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {port} 1\nsentinel down-after-milliseconds {MASTER} 500\n"
            f"sentinel failover-timeout {MASTER} 2000\n"
        )
        binary = await asyncio.to_thread(server_binary)
        await stack.enter_async_context(server_process(binary, str(settings), "--sentinel"))
        await eventually(lambda: answers(sentinel_port))

        async def knows_the_replica() -> bool:
            found = await asked(sentinel_port, "SENTINEL", "REPLICAS", MASTER)
            async with redis.Redis(port=second, decode_responses=True) as replica:
                link = (await replica.info("replication"))["master_link_status"]
            return bool(found) and link == "up"

        await eventually(knows_the_replica)
        yield Replicated(f"redis+sentinel://127.0.0.1:{sentinel_port}/{MASTER}/0", master, sentinel_port)


@contextlib.asynccontextmanager
async def clustered(folder: Path) -> AsyncIterator[list[int]]:
    """Three masters with all slots between them; gives their ports."""
    async with contextlib.AsyncExitStack() as stack:
        ports = []
        for number in range(3):
            port = free_port()
            await stack.enter_async_context(
                plain(
                    folder / str(number),
                    *("--port", str(port), "--cluster-enabled", "yes", "--cluster-node-timeout", "2000"),
                    port=port,
                )
            )
            ports.append(port)
        for port in ports:
            await eventually(partial(answers, port))
        for number, port in enumerate(ports):
            first, last = 16_384 * number // 3, 16_384 * (number + 1) // 3 - 1
            await asked(port, "CLUSTER", "ADDSLOTSRANGE", first, last)
            await asked(port, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for other in ports[:number]:
                await asked(port, "CLUSTER", "MEET", "127.0.0.1", other)

        async def whole(port: int) -> bool:
            info = str(await asked(port, "CLUSTER", "INFO"))
            return "cluster_state:ok" in info and "cluster_known_nodes:3" in info

        for port in ports:
            await eventually(partial(whole, port))
        yield ports
