"""A round in words: from the journal's records to lines that a person reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from controller.printing import knob_value, printable
from controller.recorded import RecordedRound
from controller.rollback import POLICY
from controller.state import Observation, StageObservation
from sair.errors import EntryError

__all__ = ["explain"]

_REMEMBERED_SHOWN = 15


def explain(recorded: RecordedRound, pipeline: str, *, newest: int | None = None) -> list[str]:
    """Tell a round: what was seen, remembered, offered, decided, let through, granted, and how it ended.

    A field that cannot be read is named in its place; the rest is told all the same.

    Args:
        recorded: The round.
        pipeline: ``namespace/name``, for the first line.
        newest: Number of the newest round in the journal, None if that is not known.
    """
    lines = [f"Round {recorded.round} of {pipeline}, {recorded.text('time') or 'at an unknown time'}"]
    ended = partial(_ended, over=newest is not None and newest > recorded.round)
    for part in (_seen, _remembered, _offered, _decided, _judged, _applied, ended):
        lines += _told(part, recorded)
    return [printable(line) for line in lines]


def _told(part: Callable[[RecordedRound], Iterator[str]], recorded: RecordedRound) -> list[str]:
    lines = []
    try:
        for line in part(recorded):
            lines.append(line)  # what was told before an unreadable field is kept
    except EntryError as error:
        lines.append(f"Cannot be told: {error}")
    return lines


def _seen(recorded: RecordedRound) -> Iterator[str]:
    reflexes = recorded.reflexes()
    acts = [each for each in reflexes if each.acted]
    if acts:
        yield f"Before it the reflex acted {len(acts)} times: " + "; ".join(
            f"{each.action} at {each.time_s:.0f} s" for each in acts
        )
    for each in reflexes:
        for short in each.short:
            wished, granted = (knob_value(short.knob, value) for value in (short.wished, short.granted))
            yield (
                f"  the reflex wished {short.stage} {short.knob} {wished} at {each.time_s:.0f} s: refused in part or whole, "
                f"{granted} granted, because {short.reason or 'no reason given'}"
            )
    seen = recorded.observation()
    if seen is None:
        yield (
            "Seen: no metrics, a rollback looks at none"
            if recorded.text("policy") == POLICY
            else "Seen: nothing, the metrics could not be had"
        )
        return
    yield _headline(seen)
    for stage in seen.stages:
        yield _stage(stage)


def _headline(seen: Observation) -> str:
    return (
        f"Seen: {seen.arrivals_per_s:.1f} requests/s (slope {seen.arrivals_slope:+.2f}/s², peak {seen.arrivals_peak_per_s:.1f}/s), "
        f"P50 {_ms(seen.p50_s)}, "
        f"P99 {_ms(seen.p99_s)} of {_ms(seen.slo_s)}, {seen.completed} requests done, {seen.missed} late or lost, "
        f"${seen.cost_per_hour:.2f}/h; metrics {seen.age_s:.0f} s old"
    )


def _stage(stage: StageObservation) -> str:
    a = stage.allocation
    rate = f", ρ {stage.granted or a.gpu_rate} of a GPU at {stage.gpu_utilisation:.0%}" if a.gpu_rate else ""
    starting = f" and {stage.starting} starting" if stage.starting else ""
    starting += f" and {stage.waiting} not to be had" if stage.waiting else ""
    return (
        f"  {stage.name}: {stage.ready} replicas{starting}, {a.cpu / 1000:g} cores at {stage.cpu_utilisation:.0%}, {a.memory} Mi{rate}, "
        f"queue {stage.queue_depth:.0f} ({stage.queue_slope:+.1f}/s), {stage.arrivals_per_s:.1f} tasks/s, service {_ms(stage.service_s)}"
    )


def _remembered(recorded: RecordedRound) -> Iterator[str]:
    retrieved = recorded.retrieved()
    if "retrieved_json" not in recorded.decision:
        return
    if not retrieved:
        yield "Remembered: no experience"
        return
    shown = recorded.shown()
    told = "" if shown is None else f", {len(shown)} of them shown to the language model"
    yield f"Remembered {len(retrieved)} experiences (score = likeness × surprisal){told}:"
    for each in retrieved[:_REMEMBERED_SHOWN]:
        yield f"  {each.id}: score {each.score:.3f}, likeness {each.similarity:.3f}"


def _offered(recorded: RecordedRound) -> Iterator[str]:
    menu = recorded.menu()
    if not menu:
        return
    yield f"Offered {len(menu)} actions:"
    for number, offer in enumerate(menu):
        d = offer.digest
        mark = "safe" if d.safe else "not safe"
        if offer.leads_to_usd is not None:
            mark += f", leads to {_dollars(offer.leads_to_usd)} with a replica less"
        yield (
            f"  {number}. {offer.action} ({offer.origin}): P99 {_ms(d.p99_s)}, {_dollars(d.cost_per_hour)}, reward {_signed(d.reward)} "
            f"± {_number(d.uncertainty)}, {d.support:.1f} experiences speak for it, {mark}"
        )


def _decided(recorded: RecordedRound) -> Iterator[str]:
    model, fallback = recorded.text("model"), recorded.text("fallback")
    if fallback:
        yield f"The language model {model} did not decide: {fallback}".replace("  ", " ")
    elif model:
        yield f"The language model {model} was asked (prompt {recorded.text('prompt_sha256')})"
    if recorded.number("tokens"):
        yield (
            f"  it took {recorded.text('tokens')} tokens, ${recorded.number('dollars') or 0.0:.4f}, "
            f"{recorded.text('model_seconds')} s"
        )
    if recorded.text("reply"):
        yield f"  it said: {recorded.text('reply')}"
    if recorded.text("model_bottleneck"):
        yield f"  it takes {recorded.text('model_bottleneck')} for the bottleneck"
    for each in recorded.refusals():
        yield f"  an answer was refused by the {each.rule}: {each.reason}"
    if not recorded.decided:
        yield f"Not decided: {recorded.text('problem') or 'no reason was recorded'}"
        return
    why = recorded.text("reason")
    who, what = (recorded.text(field) or "unknown: the record does not say" for field in ("policy", "wished"))
    yield f"Decided by {who}: {what}" + (f", because {why}" if why else "")
    if recorded.text("policy") == POLICY:
        return
    p99, reward = recorded.number("predicted_p99_s"), recorded.number("predicted_reward")
    yield (
        f"  suspected bottleneck {recorded.text('bottleneck') or 'none'}, predicted P99 {_ms(p99)}, predicted reward {_signed(reward)}, "
        f"ε {recorded.text('epsilon') or 'unknown'}"
    )


def _judged(recorded: RecordedRound) -> Iterator[str]:
    if not recorded.decided:
        return
    verdicts = recorded.verdicts()
    passed = [each.rule for each in verdicts if each.outcome == "pass"]
    if passed:
        yield f"Guardrails that let it pass: {', '.join(passed)}"
    for each in verdicts:
        if each.outcome != "pass":
            yield f"  {each.rule} {'refused' if each.outcome == 'rejected' else 'changed'} it: {each.reason or 'no reason given'}"
    if recorded.text("wished") and recorded.text("action") != recorded.text("wished"):
        yield f"What was left of it: {recorded.text('action')}"


def _applied(recorded: RecordedRound) -> Iterator[str]:
    if not recorded.decided:
        return
    outcomes = recorded.outcomes()
    if outcomes is None:
        if recorded.text("action") == "hold":
            yield "Applied: nothing was to be changed"
        else:
            yield f"Applied: {_why_unapplied(recorded)}"
        return
    resumed = recorded.text("resumed", recorded.applied)
    yield f"Applied, {resumed}:" if resumed else "Applied:"
    for each in outcomes:
        short = each.granted != each.wished
        because = f", because {each.reason}" if each.reason else ""
        wished, granted = (knob_value(each.knob, value) for value in (each.wished, each.granted))
        yield f"  {each.stage} {each.knob} {wished}" + (
            f": refused in part or whole, {granted} granted{because}" if short else ": granted"
        )


def _why_unapplied(recorded: RecordedRound) -> str:
    view = recorded.view()
    if view is not None and view.mode != "auto":
        return f"nothing, the pipeline was in mode {view.mode}"
    return "no record; the controller stopped before it was done"


def _ended(recorded: RecordedRound, over: bool) -> Iterator[str]:
    end, reward = recorded.concluded, recorded.reward()
    if end is None:
        if recorded.decided:
            yield "How it ended was not measured" if over else "How it ended is not known yet"
        return
    yield (
        f"It ended at P99/SLO {_number(recorded.number('latency_ratio', end))}, "
        f"cost/budget {_number(recorded.number('cost_ratio', end))}, misses {_share(recorded.number('miss_ratio', end))}; "
        f"in fact changed: {recorded.text('action', end)} (experience {recorded.text('experience', end)})"
    )
    if reward is not None:
        yield (
            f"Reward {reward.total:+.3f} = latency {reward.latency:+.3f}, cost {reward.cost:+.3f}, SLA {reward.sla:+.3f}, "
            f"proactive {reward.proactive:+.3f}, Pareto {reward.pareto:+.3f}; surprisal {_number(recorded.number('surprisal', end))}"
        )


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None or not seconds < 1e6 else f"{seconds * 1000:.0f} ms"


def _dollars(value: float | None) -> str:
    return "$?/h" if value is None else f"${value:.2f}/h"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.2f}"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2%}"
