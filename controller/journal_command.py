"""``sair explain`` and ``sair replay``: what a controller did, and what another would have done."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from controller.explain import explain as told
from controller.history import FromFile, History, Pipeline, read_history
from controller.memory.console import DEFAULT_URL, RedisUrl, console, run
from controller.printing import printable
from controller.replay import POLICIES, Replay, parse_changes
from controller.replay import replay as decided_again
from sair.errors import InvalidInput

__all__ = ["explain", "replay"]

_DAMAGE_SHOWN = 10


def explain(
    pipeline: Pipeline,
    round_number: Annotated[int | None, typer.Argument(metavar="[ROUND]", help="The newest by default.", min=0)] = None,
    from_file: FromFile = None,
    redis_url: RedisUrl = DEFAULT_URL,
) -> None:
    """Tell a round in words: what was seen, remembered, offered, decided, let through, granted, and how it ended."""

    async def work() -> None:
        history = await read_history(pipeline, redis_url, from_file)
        for each in history.numbered(round_number):
            for line in told(each, printable(pipeline), newest=history.rounds[-1].round):
                typer.echo(line)
        _show_damage(history)

    run(work())


def replay(
    pipeline: Pipeline,
    from_file: FromFile = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter of the decision core, name=value; may be repeated.")
    ] = None,
    policy: Annotated[str, typer.Option(help=f"Who decides: {' or '.join(POLICIES)}.")] = "in-context",
    every_round: Annotated[bool, typer.Option("--all", help="Show rounds without a difference too.")] = False,
    redis_url: RedisUrl = DEFAULT_URL,
) -> None:
    """Decide recorded rounds again with another policy or other parameters, and show what would differ. Needs no cluster and no model."""

    async def work() -> None:
        if policy not in POLICIES:
            raise InvalidInput("--policy", policy, " or ".join(POLICIES))
        changes = parse_changes(settings or ())
        history = await read_history(pipeline, redis_url, from_file)
        result = await asyncio.to_thread(
            decided_again, history.rounds, history.experiences, policy=POLICIES[policy], changes=changes
        )
        _show_replay(result, policy, changes, every_round)
        _show_damage(history)

    run(work())


def _show_damage(history: History) -> None:
    """What could not be read: a round that is missing above may be among it."""
    for damage in history.damaged[:_DAMAGE_SHOWN]:
        typer.echo(f"unreadable: {printable(str(damage))}", err=True)
    if len(history.damaged) > _DAMAGE_SHOWN:
        typer.echo(f"unreadable: {len(history.damaged) - _DAMAGE_SHOWN} more", err=True)


def _show_replay(result: Replay, policy: str, changes: dict[str, str], every_round: bool) -> None:
    shown = [each for each in result.comparisons if each.differs or every_round]
    if shown:
        table = Table(
            "round", "load /s", "by", "done then", "would be done", "P99 then → would be", "$/h then → would be"
        )
        for each in shown:
            table.add_row(
                str(each.round),
                f"{each.arrivals_per_s:.1f}",
                Text(printable(each.policy)),
                Text(printable(str(each.done))),
                Text(printable(str(each.would)) if each.differs else "the same"),
                f"{_ms(each.done_p99_s)} → {_ms(each.would_p99_s)}",
                f"{_dollars(each.done_cost_per_hour)} → {_dollars(each.would_cost_per_hour)}",
            )
        console().print(table)
    what = ", ".join([policy, *(f"{name}={value}" for name, value in changes.items())])
    typer.echo(f"{len(result.comparisons)} rounds decided again ({what}): {result.different} would differ")
    known = [each.faithful for each in result.comparisons if each.faithful is not None]
    if known:
        typer.echo(f"what was known then was rebuilt exactly in {sum(known)} of {len(known)} rounds")
    reasons: dict[str, int] = {}
    for skipped in result.skipped:
        reasons[skipped.reason] = reasons.get(skipped.reason, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:10]:
        typer.echo(f"{count} {'round' if count == 1 else 'rounds'} not decided again: {printable(reason)}")
    typer.echo(
        "P99 and cost are the model's predictions for the round that was recorded, not of a run with this policy"
    )


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None or not seconds < 1e6 else f"{seconds * 1000:.0f} ms"


def _dollars(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"
