"""The cheapest allocation that the identified model finds good enough, and single steps towards it."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from controller.capacity import misfit
from controller.cost import effective_cost
from controller.model import Array, gamma_quantile, paths
from controller.prediction import REPLICAS_AHEAD, Forecast, PipelineModel, StageModel
from controller.state import (
    CPU_STEP,
    GPU_STEP_MILLI,
    GPU_STEPS_MOST,
    Action,
    Allocation,
    ClusterRoom,
    StageDelta,
    project_all,
)
from sair.quantities import GpuRate, Millicores

__all__ = ["NOTHING", "Exchange", "Plan", "cheapest", "exchange", "steps_towards", "thinned", "violation"]

NOTHING: Final = 1e-6
"""A violation up to this is none."""

_MOVE_PENALTY: Final = 0.03
"""What adding or removing a replica must save at least, as a share of the stage's cost: replicas are slow to come back."""

_NEARLY: Final = 0.05
_VALUES_MOST: Final = 40
"""Of one knob of one stage."""
_NEIGHBOURS: Final = 8
_EXCHANGE_RAISES: Final = 2
"""Rounds that a share may rise before the replica goes."""
_EXCHANGE_SAVES: Final = 0.05
"""What that must save in the end, as a share of the pipeline's cost: until then it costs more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """An allocation to work towards."""

    targets: dict[str, Allocation]
    p99_s: float
    """Predicted at the rate that the knobs are set for."""
    cost_per_hour: float
    feasible: bool
    """Keeps the latency limit and the reserve."""


class Exchange(NamedTuple):
    """A replica for a larger share of the others, in two or three rounds."""

    stage: str
    action: Action
    """The first step."""
    cost_per_hour: float
    """Once the replica is gone."""


@dataclass(frozen=True, slots=True)
class _Options:
    """Allocations of one stage worth considering, cheapest first, each with a shorter tail than the one before."""

    replicas: npt.NDArray[np.int64]
    cpu: npt.NDArray[np.int64]
    milli: npt.NDArray[np.int64]
    cost: Array
    mean: Array
    variance: Array
    sound: bool
    """They cover the reserve and stay below the highest utilisation."""


def cheapest(model: PipelineModel, current: Mapping[str, Allocation], limit_s: float, room: ClusterRoom) -> Plan:
    """Choose replicas, GPU shares and CPU of all stages jointly: least cost with predicted P99 ≤ ``limit_s`` and the reserve covered.

    Each stage's options are cut to its own Pareto set of (cost, tail); the stages are combined by taking, again and again, the
    upgrade that shortens the pipeline's P99 most per dollar, and finally whatever turned out to be superfluous is taken back.
    Stages that were never measured stay as they are. Where replicas are still starting, knobs are set for those that are ready.

    Args:
        model: Identified model with the loads.
        current: Allocations now.
        limit_s: What predicted P99 may use.
        room: For what is really there; options that no card or node could hold are left out.
    """
    names = [stage.name for stage in model.view.stages if stage.name in model.stages]
    options = [_options(model, model.stages[name]) for name in names]
    chosen, p99 = _combine(model, names, options, limit_s)
    targets = dict(current)
    for name, option, pick in zip(names, options, chosen, strict=True):
        targets[name] = _allocation(current[name], option, pick)
    targets = _bridge(model, current, targets, limit_s)
    sound = all(option.sound for option in options)
    return Plan(
        targets, p99, effective_cost(targets.values(), model.tuning.prices), sound and p99 <= limit_s * (1.0 + 1e-9)
    )


def _allocation(current: Allocation, option: _Options, pick: int) -> Allocation:
    rate = GpuRate(int(option.milli[pick])) if current.gpu_rate else None
    return replace(current, replicas=int(option.replicas[pick]), cpu=Millicores(int(option.cpu[pick])), gpu_rate=rate)


def _grid(now: int, step: int, low: int, high: int) -> list[int]:
    """What can be reached from ``now`` in whole steps and by clamping to the bounds."""
    return sorted(
        {min(high, max(low, now + step * k)) for k in range(-((high - low) // step) - 2, (high - low) // step + 3)}
    )


def thinned(values: Sequence[int], now: int) -> Sequence[int]:
    """At most so many that a tenant's bounds cannot make a plan dear: those next to ``now``, of the others some, evenly, and both ends."""
    if len(values) <= _VALUES_MOST:
        return values
    at = bisect.bisect_left(values, now)
    near = values[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS + 1]
    apart = -(-len(values) // (_VALUES_MOST - len(near) - 1))
    return sorted({*near, *values[::apart], values[-1]})


def _options(model: PipelineModel, stage: StageModel) -> _Options:
    limits, now = stage.view.limits, stage.allocation
    top = min(limits.replicas_max, max(now.replicas, limits.replicas_min) + REPLICAS_AHEAD)
    replicas = thinned(range(limits.replicas_min, max(limits.replicas_min, top) + 1), now.replicas)
    cpus = thinned(_grid(now.cpu, CPU_STEP, limits.cpu_min, limits.cpu_max), now.cpu)
    rates = (
        _grid(now.gpu_rate.milli, GPU_STEP_MILLI, limits.gpu_milli_min, limits.gpu_milli_max)
        if now.gpu_rate
        else [1000]
    )
    counts, cores, shares = (each.ravel() for each in np.meshgrid(replicas, cpus, rates, indexing="ij"))
    # What is there already is not measured against the room again.
    held = now.gpu_rate.milli if now.gpu_rate else 1000
    fits, lacking = np.ones((len(replicas), len(rates)), dtype=bool), model.shortfalls(stage, replicas, rates)
    if now.gpu_rate:
        kept = np.where(np.array(replicas) <= now.replicas, held, 0)
        fits = np.array(rates) <= np.maximum(stage.highest_milli(replicas, rates), kept[:, None])
    reach_cpu = np.array([max(stage.highest_cpu(count), now.cpu if count <= now.replicas else 0) for count in replicas])
    rows, columns = np.searchsorted(replicas, counts), np.searchsorted(rates, shares)
    possible, lack = (cores <= reach_cpu[rows]) & fits[rows, columns], lacking[rows, columns]
    if not possible.any():
        possible = (counts == now.replicas) & (cores == now.cpu) & (shares == held)
        if not possible.any():
            possible = np.ones(counts.size, dtype=bool)
    # Where nothing covers the reserve, what comes near to the most there is will do: the last per cent can cost many replicas.
    least = float(lack[possible].min())
    enough = possible & (lack <= (least + _NEARLY if least > 1e-9 else 1e-9))
    counts, cores, shares = counts[enough], cores[enough], shares[enough]
    extra = stage.backlog / model.round_s / stage.visits
    mean, variance, used = stage.sojourn(
        model.arrivals_per_s + extra, counts, cores / 1000, shares / 1000, model.tuning.caution
    )
    prices = model.tuning.prices
    each = cores / 1000 * prices.vcpu + now.memory / 1024 * prices.gibibyte
    if now.gpu_rate:
        each = each + shares / 1000 * prices.gpu
    cost = counts * each
    stage_cost = effective_cost([now], prices)
    penalised = cost + _MOVE_PENALTY * stage_cost * np.abs(counts - now.replicas)
    calm = used <= model.tuning.utilisation_limit
    sound = least <= 1e-9 and bool(calm.any())
    tail = mean + 2.33 * np.sqrt(variance) + np.where(calm, 0.0, 1e3 * np.maximum(used, 1.0))
    order = np.lexsort((tail, penalised))
    best = np.minimum.accumulate(tail[order])
    keep = order[np.concatenate(([True], best[1:] < best[:-1]))]
    if calm.any():
        keep = keep[calm[keep]]
    return _Options(counts[keep], cores[keep], shares[keep], penalised[keep], mean[keep], variance[keep], sound)


def _combine(
    model: PipelineModel, names: list[str], options: list[_Options], limit_s: float
) -> tuple[list[int], float]:
    place = {name: row for row, name in enumerate(names)}
    stages = model.view.stages
    routes = [
        [place[stages[index].name] for index in route if stages[index].name in place] for route in paths(model.view)
    ]
    probability = 1.0 - 0.01 / max(1, len(routes))
    chosen = [0] * len(options)

    limit_s /= model.correction

    def p99(row: int | None) -> Array:
        """Of the choice as it stands, or for each option of one stage."""
        worst: Array = np.zeros(1)
        for route in routes:
            mean: Array = np.zeros(1)
            variance: Array = np.zeros(1)
            for each in route:
                pick = slice(None) if each == row else slice(chosen[each], chosen[each] + 1)
                mean = mean + options[each].mean[pick]
                variance = variance + options[each].variance[pick]
            worst = np.maximum(worst, gamma_quantile(mean, variance, probability))
        return worst

    if not options:
        return chosen, 0.0
    now = float(p99(None)[0])
    while now > limit_s:
        best: tuple[float, int, int] | None = None
        for row, option in enumerate(options):
            if chosen[row] + 1 >= option.cost.size:
                continue
            later = slice(chosen[row] + 1, None)
            gain = np.minimum(now - np.broadcast_to(p99(row), option.cost.shape)[later], now - limit_s)
            price = np.maximum(option.cost[later] - option.cost[chosen[row]], 1e-9)
            worth = gain / price
            pick = int(worth.argmax())
            if worth[pick] > 0 and (best is None or worth[pick] > best[0]):
                best = (float(worth[pick]), row, chosen[row] + 1 + pick)
        if best is None:
            break
        chosen[best[1]] = best[2]
        now = float(p99(None)[0])
    if now <= limit_s:
        for row in sorted(range(len(options)), key=lambda each: -float(options[each].cost[chosen[each]])):
            enough = np.flatnonzero(np.broadcast_to(p99(row), options[row].cost.shape) <= limit_s)
            if enough.size and enough[0] < chosen[row]:
                chosen[row] = int(enough[0])
        now = float(p99(None)[0])
    return chosen, now * model.correction


def _bridge(
    model: PipelineModel, current: Mapping[str, Allocation], targets: dict[str, Allocation], limit_s: float
) -> dict[str, Allocation]:
    """Until starting replicas are ready, no knob of their stage goes below what the ready ones need."""
    bridged = dict(targets)
    for name, stage in model.stages.items():
        if targets[name].replicas <= stage.ready:
            continue
        now, target = current[name], targets[name]
        standing = max(1, now.replicas)
        while True:
            ahead = {**bridged, name: target}
            forecast = model.forecast(ahead, only_ready=True)
            if forecast.p99_s <= limit_s and forecast.utilisations[name] <= model.tuning.utilisation_limit:
                break
            if target.gpu_rate:
                most = int(stage.highest_milli([standing], [now.gpu_rate.milli if now.gpu_rate else 1])[0, 0])
                if target.gpu_rate.milli >= most:
                    break
                target = replace(target, gpu_rate=GpuRate(min(most, target.gpu_rate.milli + GPU_STEP_MILLI)))
            elif target.cpu < stage.highest_cpu(standing):
                target = replace(target, cpu=Millicores(min(stage.highest_cpu(standing), target.cpu + CPU_STEP)))
            else:
                break
        bridged[name] = target
    return bridged


def _toward(now: int, target: int, step: int, most: int) -> int:
    """Whole steps from ``now`` towards ``target``, at most ``most`` of them; a remainder counts as a step."""
    gap = target - now
    return int(math.copysign(min(most, math.ceil(abs(gap) / step)) * step, gap)) if gap else 0


def _delta(name: str, now: Allocation, target: Allocation) -> StageDelta:
    gpu = (
        _toward(now.gpu_rate.milli, target.gpu_rate.milli, GPU_STEP_MILLI, GPU_STEPS_MOST)
        if now.gpu_rate and target.gpu_rate
        else 0
    )
    return StageDelta(
        name,
        replicas=max(-1, min(2, target.replicas - now.replicas)),
        cpu=_toward(now.cpu, target.cpu, CPU_STEP, 1),
        gpu_milli=gpu,
    )


def _variants(delta: StageDelta, uses_gpu: bool) -> Iterator[StageDelta]:
    """The delta, its knobs one by one, its rises alone and its falls alone; a replica less also with the most that a share may rise."""
    yield delta
    for knob in ("replicas", "cpu", "gpu_milli"):
        yield StageDelta(delta.stage, **{knob: getattr(delta, knob)})
    yield StageDelta(delta.stage, max(0, delta.replicas), max(0, delta.cpu), 0, max(0, delta.gpu_milli))
    yield StageDelta(delta.stage, min(0, delta.replicas), min(0, delta.cpu), 0, min(0, delta.gpu_milli))
    if abs(delta.gpu_milli) > GPU_STEP_MILLI:
        yield replace(delta, gpu_milli=int(delta.gpu_milli / 2 / GPU_STEP_MILLI) * GPU_STEP_MILLI)
    if delta.replicas < 0 and uses_gpu:
        yield replace(delta, gpu_milli=GPU_STEPS_MOST * GPU_STEP_MILLI)


def violation(model: PipelineModel, forecast: Forecast, limit_s: float) -> float:
    """How far a forecast misses: P99 over its limit, utilisation over its limit, reserve not covered; 0 if it misses nowhere."""
    busiest = max(forecast.utilisations.values(), default=0.0)
    return (
        max(0.0, forecast.p99_s / limit_s - 1.0)
        + max(0.0, busiest - model.tuning.utilisation_limit)
        + forecast.reserve_shortfall
    )


def steps_towards(
    model: PipelineModel, current: Mapping[str, Allocation], plan: Plan, limit_s: float, room: ClusterRoom
) -> list[Action]:
    """Actions of one round towards a plan, best first: at most two stages, at most one of them downwards, holdable by the cluster.

    Ordered by how little they miss (P99, utilisation, reserve), then by cost.
    """
    whole = [_delta(stage.name, current[stage.name], plan.targets[stage.name]) for stage in model.view.stages]
    parts = [
        list(dict.fromkeys(each for each in _variants(delta, stage.uses_gpu) if each))
        for delta, stage in zip(whole, model.view.stages, strict=True)
    ]
    singles = [(each,) for variants in parts for each in variants]
    pairs = [
        pair
        for first, second in itertools.combinations(parts, 2)
        for pair in itertools.product(first, second)
        if not (pair[0].is_down and pair[1].is_down)
    ]
    ranked = []
    for deltas in [*singles, *pairs]:
        action = Action.of(deltas)
        forecast = model.forecast(_bounded(model, project_all(current, action)), only_ready=True)
        lacking = round(violation(model, forecast, limit_s), 3)
        ranked.append((lacking, forecast.cost_per_hour, len(action.deltas), action))
    ranked.sort(key=lambda each: each[:3])
    return [action for *_, action in ranked[:12] if misfit(model.view, current, action, room) is None]


def exchange(
    model: PipelineModel, current: Mapping[str, Allocation], plan: Plan, limit_s: float, room: ClusterRoom
) -> Exchange | None:
    """The way to a plan's fewer replicas with a larger share each, where it begins with a step that costs more.

    A share rises by at most 0.2 in a round, and no replica may go before the others can do without it: what is cheaper lies behind what is
    dearer, so that no comparison of single steps gets there.
    """
    best: Exchange | None = None
    ceiling = (1.0 - _EXCHANGE_SAVES) * effective_cost(current.values(), model.tuning.prices)
    for name, now in current.items():
        target = plan.targets[name]
        if now.gpu_rate is None or target.replicas >= now.replicas:
            continue
        at, first = dict(current), None
        for _ in range(_EXCHANGE_RAISES):
            wanted = _delta(name, at[name], target)
            rise = StageDelta(name, cpu=max(0, wanted.cpu), gpu_milli=wanted.gpu_milli)
            if rise.gpu_milli <= 0:
                break
            first = first or Action((rise,))
            at = _bounded(model, project_all(at, Action((rise,))))
            usd = _least_usd(model, at, _delta(name, at[name], target), limit_s)
            if usd < ceiling:
                if misfit(model.view, current, first, room) is None:
                    best, ceiling = Exchange(name, first, usd), usd
                break
    return best


def _least_usd(model: PipelineModel, at: Mapping[str, Allocation], step: StageDelta, limit_s: float) -> float:
    """$/h after a step, or after it with the highest share that one may add, whichever misses nothing; infinite if neither does."""
    least = math.inf
    for share in (step.gpu_milli, GPU_STEPS_MOST * GPU_STEP_MILLI):
        after = _bounded(model, project_all(at, Action((replace(step, gpu_milli=share),))))
        forecast = model.forecast(after, only_ready=True)
        if violation(model, forecast, limit_s) <= NOTHING:
            least = min(least, forecast.cost_per_hour)
    return least


def _bounded(model: PipelineModel, allocations: dict[str, Allocation]) -> dict[str, Allocation]:
    """Steps overshoot bounds that lie off the grid; the guardrails clamp them, and so must their forecast."""
    bounded = {}
    for stage in model.view.stages:
        allocation, limits = allocations[stage.name], stage.limits
        rate = allocation.gpu_rate
        bounded[stage.name] = replace(
            allocation,
            replicas=min(limits.replicas_max, max(limits.replicas_min, allocation.replicas)),
            cpu=min(limits.cpu_max, max(limits.cpu_min, allocation.cpu)),
            gpu_rate=rate and GpuRate(min(limits.gpu_milli_max, max(limits.gpu_milli_min, rate.milli))),
        )
    return bounded
