"""Experiences as Redis hashes: readable fields, JSON only where nested; whatever is read back is checked field by field.

What is written is within what is read, whatever the metrics said: see ``bounded``.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, TypeVar

import msgspec

from controller.experience import Experience, Outcome, RewardTerms
from controller.features import PIPELINE_FEATURES, STAGE_FEATURES
from controller.frontier import LEAST_RATIO, REFERENCE
from controller.reward import LATENCY_RATIO_CAP
from controller.state import Action, Allocation, StageDelta
from sair.errors import EntryError, InvalidInput
from sair.quantities import GpuRate, Mebibytes, Millicores

__all__ = ["LARGEST", "allocations_from_json", "bounded", "from_fields", "to_fields"]

T = TypeVar("T")

LARGEST: Final = 1e12
"""No quantity that SAIR stores comes near it; beyond it sums of squares would overflow."""

_MAX_TEXT = 2000
_MAX_STAGES = 100
_MAX_CONTEXT = len(PIPELINE_FEATURES) + len(STAGE_FEATURES) * _MAX_STAGES
_MAX_FEATURE = 1000.0
_LATEST_S = 253_402_300_799.0
_WEIGHT_MOST: Final = 10.0
"""No weight of the reward comes near it."""
_COST_RATIO_MOST: Final = 1000.0
_PARETO_MOST: Final = 1.0 + REFERENCE[0] * REFERENCE[1]
_REWARD_MOST: Final = 2 * _WEIGHT_MOST + _PARETO_MOST
_REWARD_LEAST: Final = -_WEIGHT_MOST * (1.0 + _COST_RATIO_MOST + (LATENCY_RATIO_CAP - 1.0) ** 2)
_SURPRISAL_MOST: Final = _REWARD_MOST - _REWARD_LEAST

_Step = Annotated[int, msgspec.Meta(ge=-(2**43), le=2**43)]
_Amount = Annotated[int, msgspec.Meta(ge=0, le=2**43)]
"""Up to the largest quantity of Kubernetes, 2⁶³ bytes, in MiB."""
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
_Range = tuple[float, float]


class _Delta(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    replicas: _Step = 0
    cpu_m: _Step = 0
    memory_mi: _Step = 0
    gpu_milli: _Step = 0


class _Allocation(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    replicas: _Amount
    cpu_m: _Amount
    memory_mi: _Amount
    gpu_milli: _Amount | None = None


def bounded(experience: Experience) -> Experience:
    """An experience as it can be read back: itself, unless a hostile metric or a budget of next to nothing put a number beyond its bounds.

    Such a number becomes the nearest that is within them; an arrival rate that is none becomes 0.
    """
    arrivals_per_s = _nearest(experience.arrivals_per_s, (0.0, LARGEST))
    seen, given = experience.outcome, experience.reward
    outcome = Outcome(
        _nearest(seen.latency_ratio, _latencies(arrivals_per_s)),
        _nearest(seen.cost_ratio, (LEAST_RATIO, _COST_RATIO_MOST)),
        _nearest(seen.miss_ratio, (0.0, 1.0)),
    )
    terms = {name: _nearest(getattr(given, name), allowed) for name, allowed in _rewards(outcome).items()}
    predicted = experience.predicted_reward
    return replace(
        experience,
        time_s=_nearest(experience.time_s, (0.0, _LATEST_S)),
        policy=experience.policy[:_MAX_TEXT],
        arrivals_per_s=arrivals_per_s,
        previous_latency_ratio=_nearest(experience.previous_latency_ratio, (0.0, LARGEST)),
        outcome=outcome,
        reward=RewardTerms(**terms),
        surprisal=_nearest(experience.surprisal, (0.0, _SURPRISAL_MOST)),
        predicted_reward=None if predicted is None else _nearest(predicted, (_REWARD_LEAST, _REWARD_MOST)),
        bottleneck=experience.bottleneck and experience.bottleneck[:_MAX_TEXT],
        note=experience.note[:_MAX_TEXT],
    )


def _nearest(value: float, allowed: _Range) -> float:
    """Within a range; what is no number becomes its lower end."""
    low, high = allowed
    return value if low <= value <= high else high if value > high else low


def _latencies(arrivals_per_s: float) -> _Range:
    """What P99/SLO can be: nothing only where no requests arrive."""
    return (LEAST_RATIO if arrivals_per_s > 0 else 0.0), LATENCY_RATIO_CAP


def _rewards(outcome: Outcome) -> dict[str, _Range]:
    """What each term of the reward can be at an outcome; see ``reward.reward_terms``."""
    late = max(0.0, outcome.latency_ratio - 1.0)
    return {
        "latency": (-_WEIGHT_MOST, _WEIGHT_MOST),
        "cost": (-_WEIGHT_MOST * outcome.cost_ratio, 0.0),
        "sla": (-_WEIGHT_MOST * late**2, 0.0),
        "proactive": (0.0, _WEIGHT_MOST),
        "pareto": (0.0, _PARETO_MOST),
    }


def to_fields(experience: Experience) -> dict[str, str]:
    """Write an experience, as ``bounded`` has it, as the fields of a Redis hash."""
    experience = bounded(experience)
    reward, outcome = experience.reward, experience.outcome
    deltas = {d.stage: _Delta(d.replicas, d.cpu, d.memory, d.gpu_milli) for d in experience.action.deltas}
    before = {
        name: _Allocation(a.replicas, a.cpu, a.memory, a.gpu_rate.milli if a.gpu_rate else None)
        for name, a in experience.before
    }
    fields = {
        "round": str(experience.round),
        "time": dt.datetime.fromtimestamp(experience.time_s, dt.UTC).isoformat(timespec="seconds"),
        "time_s": repr(experience.time_s),
        "policy": experience.policy,
        "action": str(experience.action),
        "action_json": msgspec.json.encode(deltas).decode(),
        "before_json": msgspec.json.encode(before).decode(),
        "bottleneck": experience.bottleneck or "",
        "arrivals_per_s": repr(experience.arrivals_per_s),
        "load_bucket": str(experience.load_bucket),
        "latency_ratio": repr(outcome.latency_ratio),
        "previous_latency_ratio": repr(experience.previous_latency_ratio),
        "cost_ratio": repr(outcome.cost_ratio),
        "miss_ratio": repr(outcome.miss_ratio),
        "reward": repr(reward.total),
        "reward_latency": repr(reward.latency),
        "reward_cost": repr(reward.cost),
        "reward_sla": repr(reward.sla),
        "reward_proactive": repr(reward.proactive),
        "reward_pareto": repr(reward.pareto),
        "predicted_reward": "" if experience.predicted_reward is None else repr(experience.predicted_reward),
        "surprisal": repr(experience.surprisal),
        "context_json": json.dumps([round(value, 6) for value in experience.context]),
    }
    if experience.note:
        fields["note"] = experience.note
    return fields


def from_fields(key: str, pipeline: str, identifier: str, fields: Mapping[str, str]) -> Experience:
    """Read an experience back.

    Args:
        key: The Redis key, for the error message.
        pipeline: ``namespace/name``.
        identifier: Id of the experience.
        fields: All fields of the hash.

    Raises:
        EntryError: Names the key and the field, the value and what is allowed.
    """

    def text(name: str, *, default: str | None = None) -> str:
        value = fields.get(name, default)
        if value is None:
            raise EntryError(f"{key} {name}", None, "the field to be there")
        if len(value) > _MAX_TEXT * 50:
            raise EntryError(f"{key} {name}", value, f"at most {_MAX_TEXT * 50} characters")
        return value

    def read(name: str, parse: Callable[[str], T], allowed: str) -> T:
        value = text(name)
        try:
            return parse(value)
        except (ValueError, TypeError, InvalidInput, msgspec.MsgspecError, RecursionError) as error:
            raise EntryError(f"{key} {name}", value, allowed) from error

    def number(name: str, allowed: _Range) -> float:
        low, high = allowed
        return read(name, lambda value: _within(value, allowed), f"a number from {low:g} to {high:g}")

    count = read("round", _count, "a whole number of rounds")
    arrivals_per_s = number("arrivals_per_s", (0.0, LARGEST))
    outcome = Outcome(
        number("latency_ratio", _latencies(arrivals_per_s)),
        number("cost_ratio", (LEAST_RATIO, _COST_RATIO_MOST)),
        number("miss_ratio", (0.0, 1.0)),
    )
    terms = {name: number(f"reward_{name}", allowed) for name, allowed in _rewards(outcome).items()}
    predicted = text("predicted_reward", default="")
    return Experience(
        id=identifier,
        pipeline=pipeline,
        round=count,
        time_s=read("time_s", _time, "seconds from 1970 to the year 9999"),
        context=read("context_json", _context, f"a JSON list of at most {_MAX_CONTEXT} numbers up to {_MAX_FEATURE:g}"),
        action=read("action_json", _action, "a JSON object of stages with replicas, cpu_m, memory_mi, gpu_milli"),
        before=read("before_json", _before, "a JSON object of stages with replicas, cpu_m, memory_mi, gpu_milli"),
        load_bucket=read("load_bucket", _bucket, "a whole number of at most six digits"),
        previous_latency_ratio=number("previous_latency_ratio", (0.0, LARGEST)),
        outcome=outcome,
        reward=RewardTerms(**terms),
        surprisal=number("surprisal", (0.0, _SURPRISAL_MOST)),
        predicted_reward=number("predicted_reward", (_REWARD_LEAST, _REWARD_MOST)) if predicted else None,
        policy=sys.intern(text("policy")[:_MAX_TEXT]),
        arrivals_per_s=arrivals_per_s,
        bottleneck=sys.intern(text("bottleneck", default="")[:_MAX_TEXT]) or None,
        note=text("note", default="")[:_MAX_TEXT],
    )


def _within(value: str, allowed: _Range) -> float:
    parsed = float(value)
    if not allowed[0] <= parsed <= allowed[1]:
        raise ValueError(value)
    return parsed


def _time(value: str) -> float:
    parsed = float(value)
    if not 0 <= parsed <= _LATEST_S:
        raise ValueError(value)
    return parsed


def _bucket(value: str) -> int:
    parsed = int(value)
    if abs(parsed) > 999_999:
        raise ValueError(value)
    return parsed


def _count(value: str) -> int:
    parsed = int(value)
    if not 0 <= parsed <= LARGEST:
        raise ValueError(value)
    return parsed


def _context(value: str) -> tuple[float, ...]:
    parsed: Any = msgspec.json.decode(value, type=list[float])
    if len(parsed) > _MAX_CONTEXT or not all(abs(value) <= _MAX_FEATURE for value in parsed):
        raise ValueError(value)
    return tuple(parsed)


def _few(stages: Mapping[str, object]) -> None:
    if len(stages) > _MAX_STAGES:
        raise ValueError(f"{len(stages)} stages")


# What was granted and what was there before repeat from round to round: a working copy holds each once.
@functools.lru_cache(maxsize=1024)
def _action(value: str) -> Action:
    deltas = msgspec.json.decode(value, type=dict[_Name, _Delta])
    _few(deltas)
    return Action.of(StageDelta(name, d.replicas, d.cpu_m, d.memory_mi, d.gpu_milli) for name, d in deltas.items())


def allocations_from_json(value: str) -> dict[str, Allocation]:
    """Read ``before_json``: stages with replicas, cpu_m, memory_mi, gpu_milli.

    Raises:
        ValueError: If it is no such JSON (msgspec's errors are ValueErrors).
        InvalidInput: If a share is out of range.
    """
    return dict(_before(value))


@functools.lru_cache(maxsize=1024)
def _before(value: str) -> tuple[tuple[str, Allocation], ...]:
    raw = msgspec.json.decode(value, type=dict[_Name, _Allocation])
    _few(raw)
    return tuple(
        (
            name,
            Allocation(
                replicas=a.replicas,
                cpu=Millicores(a.cpu_m),
                memory=Mebibytes(a.memory_mi),
                gpu_rate=None if a.gpu_milli is None else GpuRate(a.gpu_milli),
            ),
        )
        for name, a in raw.items()
    )
