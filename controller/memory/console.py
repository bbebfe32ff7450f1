"""What the commands that read a memory share: the option of the URL, one line for an error, times for people."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any

import typer
from rich.console import Console

from controller.memory.store import Store
from controller.printing import printable
from sair.errors import SairError

__all__ = ["DEFAULT_URL", "RedisUrl", "console", "moment", "opened", "run"]

DEFAULT_URL = "redis://127.0.0.1:6379/0"
RedisUrl = Annotated[
    str,
    typer.Option(
        envvar="REDIS_URL",
        help="redis://[user:password@]host:port/db, rediss:// for TLS, redis+sentinel://… or redis+cluster://…",
    ),
]


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a command; an error that SAIR raises on purpose is one line on stderr and exit status 2."""
    try:
        asyncio.run(work)
    except SairError as error:
        typer.echo(f"sair: {' '.join(printable(str(error)).split())}", err=True)
        raise typer.Exit(2) from error


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    """A store that is closed at the end."""
    store = Store.from_url(url)
    try:
        yield store
    finally:
        await store.close()


def console() -> Console:
    """Standard output; a pipe has no width, and whole lines are easier to search than wrapped cells."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=200)


def moment(time_s: float | None) -> str:
    """A time for people; simulated times begin at 0."""
    if time_s is None:
        return "-"
    try:
        return dt.datetime.fromtimestamp(time_s, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{time_s:g} s"
