"""``sair memory``: look at what the controller remembers, take it along, cut it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller.memory.archive import Archive, frontier_of
from controller.memory.console import DEFAULT_URL, RedisUrl, console, moment, opened, run
from controller.memory.embedded import embedded_server
from controller.memory.eviction import NEWEST_KEPT, victims
from controller.memory.exchange import Archived, header, parse, sifted, written
from controller.memory.keeping import REMEDY, evicting
from controller.memory.keys import SCHEMA
from controller.memory.statistics import QUANTILES, statistics_of
from controller.memory.store import Store
from controller.memory.transfer import EVERYTHING, collect, merge, read_file, replacing
from controller.printing import printable
from sair.errors import InvalidInput, NotFound, PermanentError, SchemaVersionError
from sair.serving import stop_signal

__all__ = ["app"]

app = typer.Typer(help="Look at what the controller remembers, take it along, cut it.", no_args_is_help=True)

_REFUSED_SHOWN: Final = 20

Pipeline = Annotated[str, typer.Argument(help="namespace/name")]


@app.command("ls")
def list_pipelines(redis_url: RedisUrl = DEFAULT_URL) -> None:
    """List the pipelines that memory knows, with how many experiences it has of each."""

    async def work() -> None:
        async with opened(redis_url) as store:
            table = Table("pipeline", "experiences", "best reward")
            for pipeline in await store.pipelines():
                if _tells_what_is_in_the_way(await store.misplaced(pipeline)):
                    table.add_row(Text(printable(pipeline)), "damaged", "-")
                    continue
                best = await store.top(pipeline, "rewards", 1)
                shown = f"{best[0][1]:+.2f}" if best else "-"
                table.add_row(Text(printable(pipeline)), str(await store.count(pipeline)), shown)
            console().print(table)

    run(work())


@app.command()
def show(
    pipeline: Pipeline,
    count: Annotated[int, typer.Option(help="How many of the newest experiences.", min=1)] = 20,
    redis_url: RedisUrl = DEFAULT_URL,
) -> None:
    """Show a pipeline's newest experiences."""

    async def work() -> None:
        async with opened(redis_url) as store:
            loaded = await store.load(pipeline, count)
        if not (loaded.experiences or loaded.damaged or loaded.state):
            raise NotFound(f"memory knows no pipeline {pipeline}; sair memory ls lists those it knows")
        table = Table("round", "by", "load /s", "action", "P99/SLO", "cost/budget", "misses", "reward", "surprisal")
        for e in loaded.experiences:
            table.add_row(
                str(e.round),
                Text(printable(e.policy)),
                f"{e.arrivals_per_s:.1f}",
                Text(printable(str(e.action))),
                f"{e.outcome.latency_ratio:.2f}",
                f"{e.outcome.cost_ratio:.3f}",
                f"{e.outcome.miss_ratio:.1%}",
                f"{e.reward.total:+.2f}",
                f"{e.surprisal:.2f}",
            )
        console().print(table)
        for damage in loaded.damaged:
            Console(stderr=True).print(f"unreadable: {printable(str(damage))}", style="red", markup=False)

    run(work())


@app.command()
def stats(
    pipeline: Annotated[str | None, typer.Argument(help="namespace/name; all by default")] = None,
    redis_url: RedisUrl = DEFAULT_URL,
) -> None:
    """Count experiences, bytes, frontier points and unreadable entries, with the quantiles of rewards and surprisals."""

    async def work() -> None:
        async with opened(redis_url) as store:
            for name in await _chosen(store, pipeline):
                if pipeline is None and _tells_what_is_in_the_way(await store.misplaced(name)):
                    continue
                loaded = await store.load(name, EVERYTHING)
                size = await Archive(store).size(name)
                found = statistics_of(loaded.experiences)
                table = Table(title=Text(printable(name)), show_header=False, title_justify="left")
                by = ", ".join(f"{printable(who)} {count}" for who, count in found.policies)
                for label, value in (
                    ("experiences", f"{found.experiences}" + (f" ({by})" if by else "")),
                    ("unreadable entries", str(len(loaded.damaged))),
                    ("frontier points", f"{found.frontier} in {found.load_buckets} load buckets"),
                    ("journal records", str(size.journal_records)),
                    ("keys", str(size.keys)),
                    ("bytes in Redis", f"{size.memory_bytes:,}"),
                    ("oldest", moment(found.oldest_s)),
                    ("newest", moment(found.newest_s)),
                    (f"rewards at {_percent()}", _spread(found.rewards)),
                    (f"surprisals at {_percent()}", _spread(found.surprisals)),
                ):
                    table.add_row(label, Text(value))
                console().print(table)
            if policy := await evicting(store.client):
                _tell(f"maxmemory-policy is {policy}: Redis evicts keys by itself where it is full; {REMEDY}")

    run(work())


@app.command("export")
def export_memory(
    pipelines: Annotated[list[str] | None, typer.Argument(help="namespace/name …; all by default")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; standard output by default.")] = None,
    journal: Annotated[bool, typer.Option(help="Write the journal too; sair replay needs it.")] = True,
    redis_url: RedisUrl = DEFAULT_URL,
) -> None:
    """Write memory as JSON Lines: a header with the schema version, then a line per entry."""

    async def work() -> None:
        async with opened(redis_url) as store:
            await _check_schema(Archive(store))
            chosen = tuple(dict.fromkeys(pipelines)) if pipelines else await store.pipelines()
            async with contextlib.nullcontext(sys.stdout) if output is None else replacing(output) as target:
                await asyncio.to_thread(target.write, header())
                for pipeline in chosen:
                    try:
                        found = await _exported(store, pipeline, journal=journal)
                    except PermanentError as error:
                        if pipelines:
                            raise
                        _tell(f"left out: {error}")
                        continue
                    await asyncio.to_thread(target.writelines, written(pipeline, found))

    run(work())


@app.command("import")
def import_memory(
    file: Annotated[Path, typer.Argument(help="As sair memory export wrote it; - for standard input.")],
    dry_run: Annotated[bool, typer.Option(help="Check the file and write nothing.")] = False,
    redis_url: RedisUrl = DEFAULT_URL,
) -> None:
    """Take a file over. It is checked whole before anything is written; what Redis has newer stays."""

    async def work() -> None:
        found = await asyncio.to_thread(_parsed, file)
        if dry_run:
            for pipeline, archived in found.items():
                _tell(
                    f"{pipeline}: {len(archived.experiences)} experiences, {len(archived.decisions)} journal records: valid"
                )
            return
        async with opened(redis_url) as store:
            await store.ensure_schema()
            taken = False
            for pipeline, archived in found.items():
                merged = await merge(store, pipeline, archived)
                _tell(
                    f"{pipeline}: {merged.added} added, {merged.repaired} repaired, {merged.kept} kept as they were, "
                    f"{merged.decisions} journal records, state {'taken over' if merged.state else 'kept'}"
                )
                taken = taken or merged.changed
            if taken:
                _tell(
                    "a controller that leads any of them by now takes this over only when it begins anew; see docs/memory.md"
                )

    run(work())


@app.command()
def prune(
    pipeline: Pipeline,
    keep: Annotated[int, typer.Option(help="How many experiences may stay.", min=0)],
    unreadable: Annotated[bool, typer.Option(help="Delete entries that cannot be read too.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Say what would go and delete nothing.")] = False,
    redis_url: RedisUrl = DEFAULT_URL,
) -> None:
    """Delete the experiences that taught least; never a frontier point, never the newest 50."""

    async def work() -> None:
        async with opened(redis_url) as store:
            await _check_schema(Archive(store))
            loaded = await store.load(pipeline, EVERYTHING)
            if not (loaded.experiences or loaded.damaged):
                raise NotFound(f"memory knows no experience of {pipeline}; sair memory ls lists what it knows")
            frontier = frontier_of(loaded.experiences)
            gone = list(victims(loaded.experiences, frontier, keep))
            broken = await _unreadable(store, pipeline, {e.id for e in loaded.experiences}) if unreadable else []
            if not dry_run:
                await Archive(store).remove(pipeline, [*gone, *broken])
        left = len(loaded.experiences) - len(gone)
        typer.echo(
            f"{pipeline}: {len(gone)} of {len(loaded.experiences)} experiences "
            f"{'would go' if dry_run else 'are gone'}, {left} stay"
            + (f"; unreadable entries: {len(broken)}" if unreadable else "")
        )
        if left > keep:
            typer.echo(
                f"more than {keep} stay: {len(frontier)} are frontier points, the newest {NEWEST_KEPT} always stay"
            )

    run(work())


@app.command()
def migrate(
    to: Annotated[str, typer.Option(help="Version of the layout.")],
    redis_url: RedisUrl = DEFAULT_URL,
) -> None:
    """Bring memory to another version of the layout. So far there is only version 1."""

    async def work() -> None:
        if to != SCHEMA:
            raise InvalidInput("--to", to, f"{SCHEMA}, the only version there is")
        async with opened(redis_url) as store:
            found = await Archive(store).schema()
        if found is None:
            typer.echo(
                f"Redis has no memory of SAIR; a controller that starts gives it version {SCHEMA}. Nothing to do."
            )
        elif found == SCHEMA:
            typer.echo(f"memory has version {SCHEMA}, the only one there is. Nothing to do.")
        else:
            raise InvalidInput(
                "sair:schema", found, f"{SCHEMA}: this program knows no way from there; use the one that wrote it"
            )

    run(work())


@app.command()
def serve(
    folder: Annotated[
        Path, typer.Argument(help="Folder of an embedded server, such as out/demo/redis.", exists=True, file_okay=False)
    ],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 6399,
) -> None:
    """Serve the data of an embedded server until Ctrl-C."""

    async def work() -> None:
        stop = stop_signal()
        async with embedded_server(folder, port=port) as url:
            password = url.split(":")[2].split("@")[0]
            typer.echo(
                f"export REDISCLI_AUTH={password}; redis-cli -p {port} KEYS 'sair:*'\nREDIS_URL={url}\nCtrl-C ends it."
            )
            await stop.wait()

    run(work())


async def _chosen(store: Store, pipeline: str | None) -> tuple[str, ...]:
    known = await store.pipelines()
    if pipeline is None:
        return known
    if pipeline not in known and not await store.count(pipeline):
        raise NotFound(f"memory knows no pipeline {pipeline}; sair memory ls lists those it knows")
    return (pipeline,)


async def _check_schema(archive: Archive) -> None:
    found = await archive.schema()
    if found not in (None, SCHEMA):
        raise SchemaVersionError(str(found), SCHEMA, f"sair memory migrate --to {SCHEMA}")


async def _unreadable(store: Store, pipeline: str, readable: set[str]) -> list[str]:
    return [name for name, _ in await store.top(pipeline, "experiences", EVERYTHING) if name not in readable]


async def _exported(store: Store, pipeline: str, *, journal: bool) -> Archived:
    """What goes into a file; tells it, and what is left out. NotFound if there is nothing, EntryError if import knows no such name."""
    archived, damaged = await collect(store, pipeline, journal=journal)
    if not (archived.experiences or archived.state or archived.decisions or damaged):
        raise NotFound(f"memory knows nothing of a pipeline {pipeline}; sair memory ls lists those it knows")
    kept, refused = sifted(pipeline, archived, time.time())
    left_out = len(damaged) + len(refused)
    _tell(
        f"{pipeline}: {len(kept.experiences)} experiences, {len(kept.decisions)} journal records"
        + (f"; {left_out} unreadable entries left out" if left_out else "")
    )
    for each in refused[:_REFUSED_SHOWN]:
        _tell(f"left out, for import would refuse it: {each}")
    return kept


def _parsed(path: Path) -> dict[str, Archived]:
    if str(path) != "-":
        return read_file(path)
    try:
        return parse("standard input", sys.stdin, time.time())
    except UnicodeDecodeError as error:
        raise InvalidInput("standard input", str(error), "UTF-8 text") from error


def _tells_what_is_in_the_way(misplaced: Sequence[str]) -> bool:
    for each in misplaced:
        Console(stderr=True).print(f"damaged: {printable(each)}", style="red", markup=False)
    return bool(misplaced)


def _tell(text: str) -> None:
    typer.echo(printable(text), err=True)


def _percent() -> str:
    return "/".join(f"{quantile:.0%}" for quantile in QUANTILES)


def _spread(values: tuple[float, ...]) -> str:
    return " / ".join(f"{value:+.3f}" for value in values) or "-"
