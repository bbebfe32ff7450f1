"""Experiences as Redis hashes: readable fields, JSON only where nested; whatever is read back is checked field by field."""

from __future__ import annotations

import datetime as dt
import functools
import json
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec

from controller.experience import Experience, Outcome, RewardTerms
from controller.state import Action, Allocation, StageDelta
from sair.errors import EntryError, InvalidInput
from sair.quantities import GpuRate, Mebibytes, Millicores

__all__ = ["LARGEST", "allocations_from_json", "from_fields", "to_fields"]

T = TypeVar("T")

LARGEST: Final = 1e12
"""No quantity that SAIR stores comes near it; beyond it sums of squares would overflow."""

_MAX_TEXT = 2000
_MAX_CONTEXT = 256
_MAX_FEATURE = 1000.0
_MAX_STAGES = 100
_LATEST_S = 253_402_300_799.0

_Step = Annotated[int, msgspec.Meta(ge=-(10**9), le=10**9)]
_Amount = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


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


def to_fields(experience: Experience) -> dict[str, str]:
    """Write an experience as the fields of a Redis hash."""
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
        fields["note"] = experience.note[:_MAX_TEXT]
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

    def number(name: str) -> float:
        return read(name, _finite, f"a finite number of at most {LARGEST:g}")

    def ratio(name: str) -> float:
        return read(name, _ratio, f"a number from 0 to {LARGEST:g}")

    return Experience(
        id=identifier,
        pipeline=pipeline,
        round=read("round", _count, "a whole number of rounds"),
        time_s=read("time_s", _time, "seconds from 1970 to the year 9999"),
        context=read("context_json", _context, f"a JSON list of at most {_MAX_CONTEXT} numbers up to {_MAX_FEATURE:g}"),
        action=read("action_json", _action, "a JSON object of stages with replicas, cpu_m, memory_mi, gpu_milli"),
        before=read("before_json", _before, "a JSON object of stages with replicas, cpu_m, memory_mi, gpu_milli"),
        load_bucket=read("load_bucket", _bucket, "a whole number of at most six digits"),
        previous_latency_ratio=number("previous_latency_ratio"),
        outcome=Outcome(ratio("latency_ratio"), ratio("cost_ratio"), ratio("miss_ratio")),
        reward=RewardTerms(
            latency=number("reward_latency"),
            cost=number("reward_cost"),
            sla=number("reward_sla"),
            proactive=number("reward_proactive"),
            pareto=number("reward_pareto"),
        ),
        surprisal=number("surprisal"),
        predicted_reward=number("predicted_reward") if text("predicted_reward", default="") else None,
        policy=sys.intern(text("policy")[:_MAX_TEXT]),
        arrivals_per_s=number("arrivals_per_s"),
        bottleneck=sys.intern(text("bottleneck", default="")[:_MAX_TEXT]) or None,
        note=text("note", default="")[:_MAX_TEXT],
    )


def _finite(value: str) -> float:
    parsed = float(value)
    if not abs(parsed) <= LARGEST:
        raise ValueError(value)
    return parsed


def _ratio(value: str) -> float:
    """A negative one would stand on every frontier for good."""
    parsed = _finite(value)
    if parsed < 0:
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
