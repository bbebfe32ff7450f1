"""``sair memory``: look at what the controller remembers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from controller.memory.embedded import embedded_server
from controller.memory.store import Store
from sair.errors import MemoryUnavailable
from sair.serving import stop_signal

__all__ = ["app"]

app = typer.Typer(help="Look at what the controller remembers.", no_args_is_help=True)

RedisUrl = Annotated[
    str, typer.Option(envvar="REDIS_URL", help="redis://[user:password@]host:port/db; rediss:// for TLS.")
]
_DEFAULT_URL = "redis://127.0.0.1:6379/0"


@app.command("ls")
def list_pipelines(redis_url: RedisUrl = _DEFAULT_URL) -> None:
    """List the pipelines that memory knows, with how many experiences it has of each."""

    async def run() -> None:
        store = Store.from_url(redis_url)
        try:
            table = Table("pipeline", "experiences", "best reward")
            for pipeline in await store.pipelines():
                best = await store.top(pipeline, "rewards", 1)
                table.add_row(pipeline, str(await store.count(pipeline)), f"{best[0][1]:+.2f}" if best else "-")
            Console().print(table)
        finally:
            await store.close()

    asyncio.run(run())


@app.command()
def show(
    pipeline: Annotated[str, typer.Argument(help="namespace/name")],
    count: Annotated[int, typer.Option(help="How many of the newest experiences.", min=1)] = 20,
    redis_url: RedisUrl = _DEFAULT_URL,
) -> None:
    """Show a pipeline's newest experiences."""

    async def run() -> None:
        store = Store.from_url(redis_url)
        try:
            loaded = await store.load(pipeline, count)
        finally:
            await store.close()
        table = Table("round", "by", "load /s", "action", "P99/SLO", "cost/budget", "misses", "reward", "surprisal")
        for e in loaded.experiences:
            table.add_row(
                str(e.round),
                e.policy,
                f"{e.arrivals_per_s:.1f}",
                str(e.action),
                f"{e.outcome.latency_ratio:.2f}",
                f"{e.outcome.cost_ratio:.3f}",
                f"{e.outcome.miss_ratio:.1%}",
                f"{e.reward.total:+.2f}",
                f"{e.surprisal:.2f}",
            )
        Console().print(table)
        for damage in loaded.damaged:
            Console(stderr=True).print(f"unreadable: {damage}", style="red", markup=False)

    asyncio.run(run())


@app.command()
def serve(
    folder: Annotated[
        Path, typer.Argument(help="Folder of an embedded server, such as out/demo/redis.", exists=True, file_okay=False)
    ],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 6399,
) -> None:
    """Serve the data of an embedded server until Ctrl-C."""

    async def run() -> None:
        stop = stop_signal()
        async with embedded_server(folder, port=port) as url:
            password = url.split(":")[2].split("@")[0]
            typer.echo(
                f"export REDISCLI_AUTH={password}; redis-cli -p {port} KEYS 'sair:*'\nREDIS_URL={url}\nCtrl-C ends it."
            )
            await stop.wait()

    try:
        asyncio.run(run())
    except MemoryUnavailable as error:
        typer.echo(f"sair: {error}", err=True)
        raise typer.Exit(2) from error
