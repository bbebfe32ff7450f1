"""Immutable builders of what a round sees; a test states only what it is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from controller import round as rounds
from controller.decision import Situation
from controller.guardrails import Case
from controller.knowledge import Knowledge
from controller.model import ServiceCurve
from controller.prediction import PipelineModel
from controller.state import (
    Allocation,
    ClusterRoom,
    GpuRoom,
    Limits,
    NodeRoom,
    Observation,
    PipelineView,
    StageObservation,
    StageView,
)
from controller.tuning import Tuning
from sair.quantities import GpuRate, Mebibytes, Millicores

LIMITS = Limits(replicas_max=12, cpu_max=Millicores(4000))

CURVES = {
    "pre": ServiceCurve(0.002, 0.010, 0.0, 0.3),
    "infer": ServiceCurve(0.001, 0.001, 0.008, 0.3),
    "post": ServiceCurve(0.001, 0.002, 0.0, 0.3),
}
"""What the stages really need; a calm pipeline at 40 requests/s."""


def chain(**changes: Any) -> PipelineView:
    """pre → infer (GPU) → post with an SLO of 250 ms."""
    stages = (
        StageView("pre", (), uses_gpu=False, limits=LIMITS),
        StageView("infer", ("pre",), uses_gpu=True, limits=LIMITS, gpu_memory=Mebibytes(4096)),
        StageView("post", ("infer",), uses_gpu=False, limits=LIMITS),
    )
    values: dict[str, Any] = {"key": "test/chain", "stages": stages, "slo_s": 0.25, "budget_per_hour": 20.0}
    return PipelineView(**{**values, **changes})


def allocations(
    pre: int = 2, infer: int = 2, post: int = 1, gpu_milli: int = 500, cpu: int = 1000
) -> dict[str, Allocation]:
    """Replicas of each stage, the share and the CPU of each replica."""
    return {
        "pre": Allocation(pre, Millicores(cpu), Mebibytes(512), None),
        "infer": Allocation(infer, Millicores(1000), Mebibytes(4096), GpuRate(gpu_milli)),
        "post": Allocation(post, Millicores(cpu), Mebibytes(256), None),
    }


def stage_observation(name: str, allocation: Allocation, arrivals: float = 40.0, **changes: Any) -> StageObservation:
    """A calm stage, measured at what its allocation really does."""
    rate = allocation.gpu_rate
    share = rate.fraction if rate else 1.0
    service = float(CURVES[name].service_s(allocation.cpu / 1000, share))
    busy = min(1.0, arrivals * service / allocation.replicas)
    values: dict[str, Any] = {
        "name": name,
        "allocation": allocation,
        "ready": allocation.replicas,
        "starting": 0,
        "granted": rate,
        "queue_depth": 0.0,
        "queue_slope": 0.0,
        "arrivals_per_s": arrivals,
        "departures_per_s": arrivals,
        "cpu_utilisation": busy,
        "gpu_utilisation": busy if rate else 0.0,
        "service_s": service,
        "service_scv": CURVES[name].scv,
        "p99_s": 4 * service,
    }
    return StageObservation(**{**values, **changes})


def observation(
    at: dict[str, Allocation] | None = None,
    arrivals: float = 40.0,
    stages: dict[str, dict[str, Any]] | None = None,
    **changes: Any,
) -> Observation:
    """A calm pipeline: P99 of 100 ms of 250 ms, nothing queued, metrics fresh."""
    chosen = at or allocations()
    per_stage = stages or {}
    values: dict[str, Any] = {
        "pipeline": "test/chain",
        "time_s": 300.0,
        "window_s": 15.0,
        "age_s": 0.0,
        "stages": tuple(
            stage_observation(name, each, arrivals, **per_stage.get(name, {})) for name, each in chosen.items()
        ),
        "arrivals_per_s": arrivals,
        "arrivals_slope": 0.0,
        "arrivals_peak_per_s": arrivals,
        "p50_s": 0.04,
        "p99_s": 0.1,
        "slo_s": 0.25,
        "goodput_per_s": arrivals,
        "completed": 600,
        "missed": 0,
        "cost_per_hour": 2.5,
    }
    return Observation(**{**values, **changes})


def room(
    free_milli: int = 1000, cards: int = 4, free_cpu: int = 32000, held: dict[str, int] | None = None
) -> ClusterRoom:
    """One node whose cards have so much free each; ``held`` counts the pipeline's replicas, GPU ones on the first card."""
    counts = held if held is not None else {"pre": 2, "infer": 2, "post": 1}
    gpus = tuple(
        GpuRoom(free_milli, Mebibytes(65536), {"infer": counts.get("infer", 0)} if card == 0 else {})
        for card in range(cards)
    )
    return ClusterRoom((NodeRoom("node-1", Millicores(free_cpu), Mebibytes(131072), counts, gpus),))


def packed_room(at: dict[str, Allocation], on_cards: tuple[int, ...] | None = None) -> ClusterRoom:
    """One node whose six cards hold the GPU stage's replicas, packed unless told otherwise; what they do not hold is free."""
    share = at["infer"].gpu_rate
    milli = share.milli if share else 0
    counts = on_cards or placed((0,) * 6, at["infer"].replicas, milli)
    gpus = tuple(GpuRoom(1000 - count * milli, Mebibytes(65536), {"infer": count} if count else {}) for count in counts)
    used = sum(each.replicas * each.cpu for each in at.values())
    held = {name: each.replicas for name, each in at.items()}
    return ClusterRoom((NodeRoom("node-1", Millicores(64000 - used), Mebibytes(131072), held, gpus),))


def placed(on_cards: tuple[int, ...], replicas: int, milli: int) -> tuple[int, ...]:
    """So many replicas in all: new ones go to the fullest card with room, the last card's leave first; nobody moves."""
    counts = list(on_cards)
    while sum(counts) < replicas:
        fitting = [card for card, count in enumerate(counts) if 1000 - count * milli >= milli]
        counts[max(fitting, key=lambda card: counts[card])] += 1
    while sum(counts) > replicas:
        counts[max(card for card, count in enumerate(counts) if count)] -= 1
    return tuple(counts)


def experienced(
    seen: Observation | None = None, rounds_seen: int = 3, tuning: Tuning | None = None, **view: Any
) -> Knowledge:
    """Knowledge after some rounds of one observation, 30 s apart, the last at its time."""
    seen, tuning = seen or observation(), tuning or Tuning()
    pipeline = chain(**view)
    knowledge = rounds.begin(pipeline)
    for ago in range(rounds_seen - 1, -1, -1):
        knowledge = rounds.observe(knowledge, pipeline, replace(seen, time_s=seen.time_s - 30 * ago), tuning)
    return knowledge


def case(
    seen: Observation | None = None,
    at_room: ClusterRoom | None = None,
    tuning: Tuning | None = None,
    knowledge: Knowledge | None = None,
    **view: Any,
) -> Case:
    """What a guard judges by; what is known comes from calm rounds of the same allocation."""
    seen, tuning = seen or observation(), tuning or Tuning()
    calm = observation(seen.allocations, seen.arrivals_per_s or 40.0) if len(seen.stages) == 3 else observation()
    knowledge = knowledge or experienced(calm, tuning=tuning)
    situation = Situation(chain(**view), seen, at_room or room(), seen.time_s)
    return Case(situation, knowledge.learned, PipelineModel.of(knowledge, situation, tuning))
