"""One record per round: what was seen, offered, wished, let through, granted and how it ended. Flat text fields, JSON where nested."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import msgspec

from controller.applying import Reflex
from controller.decision import Decision
from controller.experience import Experience
from controller.knowledge import Learned
from controller.llm.policy import Trace
from controller.menu import Menu
from controller.state import ClusterRoom, KnobOutcome, Observation, PipelineView
from controller.tuning import Tuning
from sair.pipeline import RollbackStatus

__all__ = [
    "CHECKPOINT_ROUNDS",
    "RoundReport",
    "concluded_record",
    "decision_record",
    "fingerprint",
    "outcome_record",
    "plain_allocations",
]

_MAX_REPLY = 4000
"""Characters of a language model's answers."""

CHECKPOINT_ROUNDS = 20
"""How often a record carries the learned state itself: some kilobytes, too much for every round of a journal of 10,000 records."""

_SMALL_BYTES = 2048
"""A learned state up to this size is written every round."""


@dataclass(slots=True)
class RoundReport:
    """Everything about one round, for the journal, the status of the Pipeline and the live view."""

    view: PipelineView
    round: int
    time_s: float
    observation: Observation | None = None
    experience: Experience | None = None
    """Of the round before, which this round's observation concluded."""
    menu: Menu | None = None
    decision: Decision | None = None
    outcomes: Sequence[KnobOutcome] = ()
    trace: Trace | None = None
    """None if no language model was asked."""
    fallback: str = ""
    """Why the language model did not decide."""
    discarded: bool = False
    """It had answered, but what it was told of had changed by then."""
    problem: str = ""
    """Why there was no decision."""
    missing: str = ""
    """What a round that held had to do without: metrics or cluster."""
    reflexes: list[Reflex] = field(default_factory=list)
    """What the reflex did since the round before."""
    room: ClusterRoom | None = None
    """What the cluster could hold when the round was decided."""
    learned: Learned | None = None
    """What was known when the round was decided."""
    tuning: Tuning | None = None
    """What it was decided with."""
    answers: Sequence[KnobOutcome] | None = None
    """What the world itself said, where that is not all of the outcomes."""
    unreachable: bool = False
    """The world could not be asked at all: it has refused nothing."""
    rollback: RollbackStatus | None = None
    """What became of the newest rollback."""
    resumed: str = ""
    """How a round was settled that an earlier leader had decided, in words."""

    @property
    def limited(self) -> str:
        """Which wishes were not granted in full, in words."""
        return "; ".join(f"{o.stage} {o.knob}: {o.reason}" for o in self.outcomes if o.granted != o.wished)


def decision_record(report: RoundReport) -> dict[str, str]:
    """What is written before the action is applied, so that a new leader knows what its predecessor was about to do."""
    record = _common(report, "decision")
    decision, menu = report.decision, report.menu
    if report.observation is not None:
        record["observation_json"] = _json(report.observation)
    record |= _replayable(report)
    if menu is not None:
        record["retrieved_json"] = _json(
            [{"id": r.experience.id, "score": r.score, "similarity": r.similarity} for r in menu.recollections]
        )
        record["menu_json"] = _json(
            [
                {"action": str(c.action), "origin": c.origin, "digest": c.digest, "leads_to_usd": c.leads_to_usd}
                for c in menu.candidates
            ]
        )
    if decision is not None:
        record |= {
            "policy": decision.policy,
            "wished": str(decision.wished),
            "action": str(decision.action),
            "before_json": _json(plain_allocations(decision.before)),
            "after_json": _json(plain_allocations(decision.after)),
            "verdicts_json": _json(decision.verdicts),
            "reason": decision.reason,
            "bottleneck": decision.bottleneck or "",
            "epsilon": f"{decision.epsilon:.4f}",
            # In full: another leader may have to go on from here.
            "predicted_p99_s": "" if decision.predicted_p99_s is None else repr(decision.predicted_p99_s),
            "predicted_reward": "" if decision.predicted_reward is None else repr(decision.predicted_reward),
        }
    if report.trace is not None:
        record |= {
            "model": report.trace.model,
            "prompt_sha256": report.trace.prompt_hash,
            "reply": "\n---\n".join(report.trace.replies)[:_MAX_REPLY],
            "tokens": str(report.trace.tokens_in + report.trace.tokens_out),
            "dollars": f"{report.trace.dollars:.6f}",
            "model_bottleneck": report.trace.bottleneck or "",
            "shown_json": _json(report.trace.shown),
            "model_seconds": f"{report.trace.duration_s:.3f}",
        }
        if report.trace.refusals:
            record["refusals_json"] = _json(report.trace.refusals)
    if report.fallback:
        record["fallback"] = report.fallback
    if report.problem:
        record["problem"] = report.problem
    if report.reflexes:
        record["reflex_json"] = _json(report.reflexes)
    return record


def outcome_record(report: RoundReport) -> dict[str, str]:
    """What is written once the world has answered; names each wish that was not granted in full."""
    record = _common(report, "applied")
    record["outcomes_json"] = _json(list(report.outcomes))
    if report.answers is not None:
        record["answers_json"] = _json(list(report.answers))
    if report.limited:
        record["limited"] = report.limited
    if report.resumed:
        record["resumed"] = report.resumed
    return record


def concluded_record(experience: Experience) -> dict[str, str]:
    """How an earlier round ended."""
    reward = experience.reward
    return {
        "kind": "concluded",
        "round": str(experience.round),
        "time_s": repr(experience.time_s),
        "experience": experience.id,
        "action": str(experience.action),
        "latency_ratio": f"{experience.outcome.latency_ratio:.4f}",
        "cost_ratio": f"{experience.outcome.cost_ratio:.4f}",
        "miss_ratio": f"{experience.outcome.miss_ratio:.4f}",
        "reward": f"{reward.total:.4f}",
        "reward_json": _json(reward),
        "surprisal": f"{experience.surprisal:.4f}",
    }


def _common(report: RoundReport, kind: str) -> dict[str, str]:
    time = dt.datetime.fromtimestamp(report.time_s, dt.UTC).isoformat(timespec="milliseconds")
    return {"kind": kind, "round": str(report.round), "time": time, "time_s": repr(report.time_s)}


def _replayable(report: RoundReport) -> dict[str, str]:
    """What deciding the round again needs beside the observation."""
    record = {"view_json": _json(report.view)}
    if report.room is not None:
        record["room_json"] = _json(report.room)
    if report.tuning is not None:
        record["tuning_json"] = _json(_changed(report.tuning))
    if report.learned is not None:
        text = _json(report.learned)
        record["learned_sha256"] = _digest(text)
        if len(text) <= _SMALL_BYTES or report.round % CHECKPOINT_ROUNDS == 0:
            record["learned_json"] = text
    return record


def fingerprint(learned: Learned) -> str:
    """What ``learned_sha256`` holds of a learned state: the first 16 hexadecimal digits."""
    return _digest(_json(learned))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _changed(tuning: Tuning) -> dict[str, Any]:
    """The parameters that differ from their defaults."""
    plain: dict[str, Any] = {}
    for each in fields(tuning):
        value = getattr(tuning, each.name)
        if value != getattr(Tuning(), each.name):
            plain[each.name] = msgspec.to_builtins(value) if is_dataclass(value) else value
    return plain


def plain_allocations(allocations: Mapping[str, Any]) -> dict[str, Any]:
    """Allocations as ``before_json`` and ``after_json`` hold them: CPU in millicores, memory in MiB, GPU share in thousandths."""
    return {
        name: {
            "replicas": a.replicas,
            "cpu_m": a.cpu,
            "memory_mi": a.memory,
            "gpu_milli": a.gpu_rate.milli if a.gpu_rate else None,
        }
        for name, a in allocations.items()
    }


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
