"""``sair rollback``: the allocations of before a round again; shown first, asked of the leading controller only when told to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from controller.history import FromFile, Pipeline, read_history
from controller.memory.console import DEFAULT_URL, RedisUrl, run
from controller.printing import printable
from controller.recorded import RecordedRound
from controller.replay import tuned
from controller.rollback import Plan, judged, plan_rollback
from controller.settings import load_settings
from controller.state import Allocation, ClusterRoom
from sair.errors import ApiUnavailable, EntryError, InvalidInput, NotFound, PermanentError
from sair.kube.client import Api, PatchKind
from sair.kube.resources import PIPELINES
from sair.pipeline import Pipeline as PipelineObject
from sair.pipeline import Rollback, RollbackStage, RollbackStatus, parse_pipeline
from sair.quantities import format_millicores, format_moment, parse_duration
from sair.wire import to_builtins

__all__ = ["rollback"]

_POLL_S: Final = 0.25
_FOREVER: Final = "forever"
_LONGEST_HOURS: Final = 87_600
"""Ten years: further on a moment has no name before long."""


def rollback(
    pipeline: Pipeline,
    round_number: Annotated[
        int | None, typer.Argument(metavar="ROUND", help="The round to undo, with all after it.", min=0)
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Do it: ask the controller, through the Pipeline object, and wait.")
    ] = False,
    hold: Annotated[
        str, typer.Option(help="How long nothing else is applied afterwards, such as 30m or 2h; or forever.")
    ] = "1h",
    auto: Annotated[
        bool, typer.Option("--auto", help="With --apply: set the pipeline's mode to auto as well, if it is another.")
    ] = False,
    timeout: Annotated[
        str, typer.Option(help="How long to wait for the controller; a standby takes over within half a minute.")
    ] = "60s",
    release: Annotated[
        bool, typer.Option("--release", help="Take the request back: the pipeline is scaled again from where it is.")
    ] = False,
    from_file: FromFile = None,
    redis_url: RedisUrl = DEFAULT_URL,
) -> None:
    """Show what it takes to have the allocations of before a round again; with --apply, have the controller do it and keep them."""

    async def work() -> None:
        if release:
            async with _cluster() as api:
                await _released(api, pipeline)
            typer.echo(f"{pipeline} is scaled again")
            return
        if round_number is None:
            raise InvalidInput("ROUND", None, "the round to undo; sair explain tells what each did")
        timeout_s = parse_duration(timeout, field="--timeout")
        hold_s = _hold_s(hold)
        history = await read_history(pipeline, redis_url, from_file)
        then, before = _before(history.numbered(round_number))
        newest = _newest(history.rounds)
        plan = plan_rollback(before, newest.allocations)
        typer.echo(f"{pipeline}: allocations of before round {round_number}, {printable(then.text('time'))}")
        typer.echo(f"compared with round {newest.of.round}, {printable(newest.of.text('time'))}")
        _show_plan(plan)
        if not apply:
            objections = _objections(plan, newest)
            if objections:
                raise PermanentError(f"it would be refused: {objections}")
            typer.echo("nothing was changed; --apply does it")
            return
        kept = {name: each for name, each in before.items() if name in newest.allocations}
        async with _cluster() as api:
            request = _request(round_number, kept, hold_s)
            answer = await _applied(api, pipeline, request, auto, timeout_s)
        typer.echo(f"round {answer.round} of the journal: {printable(answer.message)}")
        if answer.outcome == "Partly":
            typer.echo("not all of it was granted; what is missing stays wished for", err=True)
        until = "until sair rollback --release" if request.until is None else f"until {request.until}"
        typer.echo(f"held {until}; sair rollback {pipeline} --release ends that")

    run(work())


def _hold_s(text: str) -> float | None:
    """How long to hold, None for ever."""
    if text == _FOREVER:
        return None
    hold_s = parse_duration(text, field="--hold")
    if hold_s > _LONGEST_HOURS * 3600:
        raise InvalidInput("--hold", text, f"at most {_LONGEST_HOURS}h, or {_FOREVER}")
    return hold_s


@dataclass(frozen=True, slots=True)
class _Newest:
    """What the journal knows of the present."""

    of: RecordedRound
    allocations: Mapping[str, Allocation]


def _before(rounds: Sequence[RecordedRound]) -> tuple[RecordedRound, Mapping[str, Allocation]]:
    """The record that says what was there before a round; a number may occur twice, if the round held first."""
    problem: EntryError | None = None
    for each in rounds:
        try:
            before = each.allocations("before_json")
        except EntryError as error:
            problem = error
            continue
        if before:
            return each, before
    if problem is not None:
        raise problem
    why = rounds[-1].text("problem") or "its record says nothing of them"
    raise NotFound(f"round {rounds[-1].round} was not decided ({why}): there are no allocations of before it")


def _newest(rounds: Sequence[RecordedRound]) -> _Newest:
    for each in reversed(rounds):
        with contextlib.suppress(EntryError):
            after = each.allocations("after_json") if each.applied is not None else None
            observation = each.observation()
            now = after or (observation.allocations if observation else None) or each.allocations("before_json")
            if now:
                return _Newest(each, now)
    raise NotFound("the journal does not say what the allocations are now")


def _objections(plan: Plan, newest: _Newest) -> str:
    """What the guardrails would say of a plan, by what the journal knows; the controller looks again."""
    view, room = newest.of.view(), newest.of.room()
    if view is None or not plan.changes:
        return ""
    prices = tuned(newest.of.tuning(), {}).prices
    verdicts = judged(plan, view, newest.allocations, room or ClusterRoom(()), prices)
    known = [each for each in verdicts if room is not None or each.rule != "capacity"]
    return "; ".join(f"{each.rule}: {each.reason}" for each in known if each.outcome != "pass")


def _show_plan(plan: Plan) -> None:
    for change in plan.changes:
        typer.echo(f"  {printable(str(change))}")
    if not plan.changes:
        typer.echo("  nothing differs, as far as the journal knows")
    for note in plan.notes:
        typer.echo(f"  {printable(note)}")


def _request(number: int, before: Mapping[str, Allocation], hold_s: float | None) -> Rollback:
    now = time.time()
    return Rollback(
        at=format_moment(now),
        round=number,
        until=None if hold_s is None else format_moment(now + hold_s),
        stages=tuple(
            RollbackStage(
                name=name,
                replicas=each.replicas,
                cpu=format_millicores(each.cpu),
                gpu_rate=str(each.gpu_rate) if each.gpu_rate else None,
            )
            for name, each in sorted(before.items())
        ),
    )


@contextlib.asynccontextmanager
async def _cluster() -> Any:
    settings = load_settings(os.environ)
    async with await Api.from_environment(Path(settings.kubeconfig) if settings.kubeconfig else None) as api:
        yield api


async def _applied(api: Api, pipeline: str, request: Rollback, auto: bool, timeout_s: float) -> RollbackStatus:
    """Ask the leading controller and wait for its answer; what it refuses leaves the Pipeline as it was."""
    found = await _object(api, pipeline)
    _require_auto(found, auto)
    switched = auto and found.spec.mode != "auto"
    spec: dict[str, Any] = {"rollback": _replacing(found.spec.rollback, request)}
    if auto:
        spec["mode"] = "auto"
    await _written(api, pipeline, spec)
    typer.echo("asked; waiting for the controller")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        now = await _object(api, pipeline)
        answer = now.status.rollback
        if answer is not None and answer.at == request.at:
            if answer.outcome == "Refused":
                # A mode that somebody has set meanwhile is theirs.
                before = {"mode": found.spec.mode} if switched and now.spec.mode == "auto" else {}
                await _written(api, pipeline, {"rollback": None, **before})
                raise PermanentError(f"refused, nothing was changed: {answer.message}")
            return answer
        await asyncio.sleep(_POLL_S)
    raise ApiUnavailable(
        f"no controller answered within {timeout_s:g} s. The request stays and is carried out once one leads; "
        f"sair rollback {pipeline} --release takes it back" + (", and leaves the mode at auto" if switched else "")
    )


def _require_auto(found: PipelineObject, auto: bool) -> None:
    conflict = next((each for each in found.status.conditions if each.type == "Conflict"), None)
    if conflict is not None and conflict.status == "True":
        raise PermanentError(f"{found.key} is held in recommend by a conflict that goes first: {conflict.message}")
    mode = found.spec.mode or found.status.mode or "auto"
    if mode != "auto" and not auto:
        raise PermanentError(
            f"{found.key} is in mode {mode}, in which nothing is applied; with --auto it is set to auto in the same moment, "
            "and the rollback keeps everything else from being applied while it is held"
        )


def _replacing(old: Rollback | None, new: Rollback) -> dict[str, Any]:
    """A merge patch leaves what it does not name: what the request before had and this one has not is named."""
    gone: dict[str, Any] = dict.fromkeys(to_builtins(old) if old is not None else {})
    asked: dict[str, Any] = to_builtins(new)
    return gone | asked


async def _released(api: Api, pipeline: str) -> None:
    await _written(api, pipeline, {"rollback": None})


async def _object(api: Api, pipeline: str) -> PipelineObject:
    namespace, _, name = pipeline.partition("/")
    if not (namespace and name):
        raise InvalidInput("PIPELINE", pipeline, "namespace/name")
    try:
        return parse_pipeline(await api.get(PIPELINES.path(namespace, name)))
    except NotFound as error:
        raise NotFound(f"the cluster has no pipeline {pipeline}") from error


async def _written(api: Api, pipeline: str, spec: Mapping[str, Any]) -> None:
    namespace, _, name = pipeline.partition("/")
    try:
        await api.patch(PIPELINES.path(namespace, name), {"spec": spec}, PatchKind.MERGE, field_manager="sair-rollback")
    except NotFound as error:
        raise NotFound(f"the cluster has no pipeline {pipeline}") from error
