"""What the controller knows about one pipeline between two rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from controller.analogues import Analogues
from controller.experience import Experience
from controller.frontier import Frontiers, point_of
from controller.identification import StageFit, given_fit
from controller.model import ServiceCurve
from controller.peak import Peaks
from controller.plausible import check_learned
from controller.retrieval import Memory
from controller.state import HOLD, Action, Allocation, KnobOutcome, PipelineView
from controller.tuning import Tuning
from sair.errors import InvalidInput

__all__ = ["Knowledge", "Learned", "Pending", "Refusal", "begin", "learn", "moved_by", "restore", "stored"]

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Pending:
    """A round whose outcome is still to be seen; kept so that another leader can finish it."""

    round: int
    time_s: float
    policy: str
    context: tuple[float, ...]
    before: tuple[tuple[str, Allocation], ...]
    action: Action
    """As granted."""
    latency_ratio: float
    arrivals_per_s: float
    predicted_reward: float | None = None
    bottleneck: str | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A wish that was not granted in full: not to be wished again before ``until_round``."""

    stage: str
    knob: str
    until_round: int


@dataclass(frozen=True, slots=True)
class Learned:
    """The part that goes to and comes from Redis: small, plain, and useful to another leader."""

    pipeline: str
    round: int = 0
    fits: dict[str, StageFit] = field(default_factory=dict)
    """Service time of each stage."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Tasks that arrive at a stage per task that leaves its upstreams, smoothed."""
    peaks: Peaks = field(default_factory=Peaks)
    analogues: Analogues = field(default_factory=Analogues)
    pending: Pending | None = None
    last_action: Action = HOLD
    """What the last round's decision changed, for rule 7."""
    refusals: tuple[Refusal, ...] = ()
    frozen_until_s: float = 0.0
    """No downward step before: the reflex acted."""
    foreseen_per_s: float = 0.0
    """Arrival rate that analogues expect soon, requests per second; 0 where they expect nothing. The reflex raises to it beforehand."""
    residual: float = 0.0
    """Smoothed log(observed P99 / predicted P99): 0 while the model holds; a drift alarm."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Learned state, frontiers and the working copy of the memory. The memory is mutable and shared between versions."""

    learned: Learned
    frontiers: Frontiers
    memory: Memory

    @property
    def pipeline(self) -> str:
        """``namespace/name``."""
        return self.learned.pipeline


def begin(view: PipelineView, priors: Mapping[str, ServiceCurve] | None = None, *, certain: bool = False) -> Knowledge:
    """Nothing known yet but, where given, a belief about some stages' service times.

    Args:
        view: The pipeline.
        priors: By stage.
        certain: They are the truth; the first measurements do not move them.
    """
    gpu = {stage.name: stage.uses_gpu for stage in view.stages}
    fits = {name: given_fit(curve, gpu[name], certain=certain) for name, curve in (priors or {}).items() if name in gpu}
    return Knowledge(Learned(view.key, fits=fits), Frontiers({}), Memory([stage.name for stage in view.stages]))


def stored(knowledge: Knowledge) -> dict[str, Any]:
    """Everything but the experiences and the frontiers, which have keys of their own, as plain JSON-ready values."""
    plain: dict[str, Any] = msgspec.to_builtins(knowledge.learned, str_keys=True)
    return {"version": _VERSION, **plain}


def moved_by(learned: Learned, seconds: float) -> Learned:
    """The same on another clock: every moment in it ``seconds`` later. What waits for an outcome is dropped: nobody will see it."""
    peaks, analogues = learned.peaks, learned.analogues

    def moved(moment: float | None) -> float | None:
        return None if moment is None else moment + seconds

    return replace(
        learned,
        fits={name: replace(fit, updated_s=fit.updated_s + seconds) for name, fit in learned.fits.items()},
        peaks=replace(
            peaks,
            recent=tuple((at + seconds, value) for at, value in peaks.recent),
            remembered_s=peaks.remembered_s + seconds,
            first_s=moved(peaks.first_s),
            updated_s=peaks.updated_s + seconds,
            burst_s=moved(peaks.burst_s),
        ),
        analogues=replace(analogues, times_s=tuple(at + seconds for at in analogues.times_s)),
        pending=None,
        frozen_until_s=learned.frozen_until_s + seconds,
    )


def restore(view: PipelineView, raw: Mapping[str, Any] | None, experiences: Any, tuning: Tuning) -> Knowledge:
    """Rebuild knowledge from what was stored; frontiers and surprisals are rebuilt from the experiences.

    Args:
        view: The pipeline as it is now; what is known of stages that are gone is dropped.
        raw: ``stored``'s answer, None if there is none.
        experiences: An iterable of Experience.
        tuning: As always.

    Raises:
        InvalidInput: If ``raw`` is of another version, malformed, or holds a number that cannot be; names the field.
    """
    learned = Learned(view.key)
    if raw is not None:
        values = dict(raw)
        version = values.pop("version", None)
        if version != _VERSION:
            raise InvalidInput("controller state version", version, str(_VERSION))
        try:
            learned = msgspec.convert(values, Learned, strict=False)
        except (msgspec.ValidationError, ValueError) as error:
            raise InvalidInput("controller state", str(error), "what this version of SAIR stored") from error
        check_learned(learned)
    names = {stage.name for stage in view.stages}
    learned = replace(
        learned,
        pipeline=view.key,
        fits={name: fit for name, fit in learned.fits.items() if name in names},
        ratios={name: ratio for name, ratio in learned.ratios.items() if name in names},
    )
    memory, frontiers, known = Memory([stage.name for stage in view.stages]), Frontiers({}), list(experiences)
    memory.load(known, tuning)
    for experience in known:
        frontiers = frontiers.add(experience.load_bucket, point_of(experience.outcome))
    return Knowledge(learned, frontiers, memory)


def learn(knowledge: Knowledge, experience: Experience, tuning: Tuning) -> tuple[Knowledge, float]:
    """Take an experience into memory and frontiers.

    Returns:
        The new knowledge, and the experience's surprisal against all others.
    """
    surprisal = knowledge.memory.add(experience, tuning)
    frontiers = knowledge.frontiers.add(experience.load_bucket, point_of(experience.outcome))
    return replace(knowledge, frontiers=frontiers), surprisal


def refused(outcomes: list[KnobOutcome], round_number: int, rounds: int = 3) -> tuple[Refusal, ...]:
    """What was not granted in full, to be left alone for some rounds."""
    return tuple(
        Refusal(outcome.stage, outcome.knob, round_number + rounds)
        for outcome in outcomes
        if outcome.granted != outcome.wished
    )
