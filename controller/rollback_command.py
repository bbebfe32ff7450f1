"""``sair rollback``: the allocations of before a round again, shown first and asked of the cluster only when told to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from controller.history import FromFile, Pipeline, read_history
from controller.memory.console import DEFAULT_URL, RedisUrl, run
from controller.observe.fetching import Fetcher
from controller.observe.scraper import Scraper
from controller.printing import printable
from controller.recorded import RecordedRound
from controller.rollback import Plan, plan_rollback
from controller.settings import load_settings
from controller.state import Allocation, KnobOutcome
from controller.watching import Watching
from controller.worlds.kubernetes import KubernetesWorld, WallClock
from sair.errors import ApiUnavailable, EntryError, NotFound
from sair.kube.client import Api

__all__ = ["rollback"]

_SYNC_S = 20.0


def rollback(
    pipeline: Pipeline,
    round_number: Annotated[int, typer.Argument(metavar="ROUND", help="The round to undo, with all after it.", min=0)],
    apply: Annotated[bool, typer.Option("--apply", help="Do it, through the Kubernetes API.")] = False,
    from_file: FromFile = None,
    redis_url: RedisUrl = DEFAULT_URL,
) -> None:
    """Show what it takes to have the allocations of before a round again; with --apply, ask the cluster for them."""

    async def work() -> None:
        history = await read_history(pipeline, redis_url, from_file)
        then = next((each for each in history.numbered(round_number) if each.text("before_json")), None)
        if then is None:
            raise NotFound(f"round {round_number} was not decided: there are no allocations of before it")
        before = then.allocations("before_json") or {}
        plan = plan_rollback(before, _newest_allocations(history.rounds))
        typer.echo(f"{pipeline}: allocations of before round {round_number}, {printable(then.text('time'))}")
        _show_plan(plan)
        if not apply:
            typer.echo("nothing was changed; --apply does it")
            return
        for outcome in await _applied(pipeline, before, f"rollback to before round {round_number}"):
            short = outcome.granted != outcome.wished
            typer.echo(
                f"{outcome.stage} {outcome.knob} {outcome.wished}: "
                + (f"{outcome.granted} granted, {printable(outcome.reason)}" if short else "granted")
            )

    run(work())


def _newest_allocations(rounds: Sequence[RecordedRound]) -> dict[str, Allocation]:
    for each in reversed(rounds):
        with contextlib.suppress(EntryError):
            after = each.allocations("after_json") if each.applied is not None else None
            observation = each.observation()
            if after or observation:
                return after or dict(observation.allocations if observation else {})
    raise NotFound("the journal does not say what the allocations are now")


def _show_plan(plan: Plan) -> None:
    for change in plan.changes:
        typer.echo(f"  {printable(str(change))}")
    if not plan.changes:
        typer.echo("  nothing differs, as far as the journal knows")
    for stage in plan.gone:
        typer.echo(f"  {printable(stage)} does not exist any more")
    for stage in plan.new:
        typer.echo(f"  {printable(stage)} did not exist then and stays as it is")


async def _applied(pipeline: str, before: dict[str, Allocation], reason: str) -> Sequence[KnobOutcome]:
    settings = load_settings(os.environ)
    async with contextlib.AsyncExitStack() as stack:
        kubeconfig = Path(settings.kubeconfig) if settings.kubeconfig else None
        api = await stack.enter_async_context(await Api.from_environment(kubeconfig))
        await api.get("/version")
        fetcher = await stack.enter_async_context(Fetcher())
        watching = Watching(api)
        task = asyncio.create_task(watching.run())
        stack.push_async_callback(_ended, task)
        await _synced(watching.why_not_synced)
        clock = WallClock()
        world = KubernetesWorld(api, watching, Scraper(fetcher, clock.now), settings.prices, clock=clock)
        view = next((each for each in await world.pipelines() if each.key == pipeline), None)
        if view is None:
            raise NotFound(f"the cluster has no pipeline {pipeline}")
        if view.mode == "auto":
            typer.echo(f"{pipeline} is in mode auto: its controller goes on from here and may scale it again", err=True)
        wanted = {name: each for name, each in before.items() if view.stage(name) is not None}
        return await world.apply(pipeline, wanted, reason=reason)


async def _synced(why_not: Callable[[], str | None]) -> None:
    deadline = time.monotonic() + _SYNC_S
    while (reason := why_not()) is not None:
        if time.monotonic() > deadline:
            raise ApiUnavailable(f"the cluster could not be read within {_SYNC_S:g} s: {reason}")
        await asyncio.sleep(0.05)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
