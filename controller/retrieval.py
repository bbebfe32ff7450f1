"""The working copy of a pipeline's memory: likeness, surprisal, choice of the experiences to show, and kernel means.

Everything a kernel mean needs is kept up as experiences come and go; nothing is ever recomputed over all pairs in a round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controller.experience import Experience, Outcome
from controller.features import action_vector
from controller.frontier import GLOBAL, Frontier, Frontiers
from controller.reward import pareto_term
from controller.state import Action
from controller.tuning import Tuning

__all__ = ["Memory", "Prediction", "Recollection"]

Rows = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]

_FIRST_BANDWIDTHS = (0.5, 1.0)
_BANDWIDTH_SIZES = (32, 128, 512)
"""Bandwidths (median distances) are taken anew at these sizes and kept from then on."""
_SHORTLIST = 96
"""Experiences with the highest scores that the choice is made among."""
_NEIGHBOURS = 512
"""Nearest contexts that a kernel mean is taken over; further ones weigh next to nothing."""
_SUPPORT = 0.1


@dataclass(frozen=True, slots=True)
class Recollection:
    """One experience chosen to be shown."""

    experience: Experience
    similarity: float
    surprisal: float
    score: float
    reward: float
    """With the Pareto term against today's frontier."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A kernel mean at one (context, action)."""

    mean: float
    deviation: float
    """Standard deviation of the neighbours around their mean, the prior's 1 mixed in."""
    support: float
    """Weight of the neighbours, in experiences."""
    nearest: int | None = None
    """Index of the nearest neighbour if it is near."""


class Memory:
    """Arrays over all experiences of one pipeline, in no particular order.

    Mutable for speed: adding one experience to n costs one pass over them (about 0.3 ms at 10⁴). Not thread-safe.

    Args:
        stages: The pipeline's stages, which fix the length of the vectors.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        self.stages = tuple(stages)
        self.bandwidths = _FIRST_BANDWIDTHS
        """Standard deviations of the kernels on the context and on the action."""
        self._experiences: list[Experience] = []
        self._index: dict[str, int] = {}
        self._measured = 0
        self._context: Rows = np.zeros((0, 0), dtype=np.float32)
        self._action: Rows = np.zeros((0, 0), dtype=np.float32)
        self._squares: Rows = np.zeros(0, dtype=np.float32)
        self._reward: Vector = np.zeros(0)
        self._residual: Vector = np.zeros(0)
        self._weights: Vector = np.zeros(0)
        """Σ over the others of K(e, other); with ``_sums`` what leave-one-out needs."""
        self._sums: Vector = np.zeros(0)
        self._total = 0.0
        self._median: float | None = None

    def __len__(self) -> int:
        return len(self._experiences)

    def __contains__(self, identity: str) -> bool:
        return identity in self._index

    @property
    def experiences(self) -> tuple[Experience, ...]:
        """All of them, in no particular order."""
        return tuple(self._experiences)

    def get(self, identity: str) -> Experience | None:
        """One experience by its id."""
        place = self._index.get(identity)
        return None if place is None else self._experiences[place]

    # Upkeep

    def add(self, experience: Experience, tuning: Tuning) -> float:
        """Take an experience in and return its surprisal |r − E[r | the others]|; an id that is already there is replaced.

        An experience whose context has another length (the pipeline's stages changed) or is not finite is left out, surprisal 0.
        """
        context = np.asarray(experience.context, dtype=np.float32)
        reward = experience.reward.total
        width = self._context.shape[1] if len(self) else context.size
        if context.size != width or not np.isfinite(context).all() or not np.isfinite(reward):
            return 0.0
        if experience.id in self._index:
            self.remove(experience.id)
        action = np.asarray(action_vector(experience.action, self.stages), dtype=np.float32)
        count = len(self)
        self._grow(count + 1, context.size, action.size)
        kernel = self._kernel(context, action)
        others = self._reward[:count]
        self._weights[:count] += kernel
        self._sums[:count] += kernel * reward
        self._weights[count] = kernel.sum()
        self._sums[count] = kernel @ others
        self._context[count], self._action[count] = context, action
        self._squares[count] = context @ context
        self._reward[count] = reward
        predicted = experience.predicted_reward
        self._residual[count] = reward - predicted if predicted is not None and np.isfinite(predicted) else 0.0
        self._experiences.append(experience)
        self._index[experience.id] = count
        self._total += reward
        self._median = None
        if len(self) in _BANDWIDTH_SIZES:
            self._measure_bandwidths()
        return float(self.surprisals(tuning)[count])

    def remove(self, identity: str) -> bool:
        """Forget an experience; False if it is not there."""
        place = self._index.pop(identity, None)
        if place is None:
            return False
        count = len(self)
        kernel = self._kernel(self._context[place], self._action[place])
        kernel[place] = 0.0
        reward = self._reward[place]
        self._weights[:count] -= kernel
        self._sums[:count] -= kernel * reward
        self._total -= reward
        self._median = None
        last = count - 1
        for rows in (self._context, self._action):
            rows[place] = rows[last]
        for values in (self._squares, self._reward, self._residual, self._weights, self._sums):
            values[place] = values[last]
        moved = self._experiences.pop()
        if place != last:
            self._experiences[place] = moved
            self._index[moved.id] = place
        np.maximum(self._weights[:last], 0.0, out=self._weights[:last])
        return True

    def load(self, experiences: Iterable[Experience], tuning: Tuning) -> None:
        """Take many in, as at a warm start."""
        for experience in experiences:
            self.add(experience, tuning)

    def _grow(self, count: int, context: int, action: int) -> None:
        room = self._reward.size
        if count <= room:
            return
        size = max(64, 2 * room)

        def larger(old: npt.NDArray[np.floating], shape: tuple[int, ...]) -> npt.NDArray[np.floating]:
            new = np.zeros(shape, dtype=old.dtype)
            if old.size:
                new[: old.shape[0]] = old
            return new

        self._context = larger(self._context, (size, context)).astype(np.float32, copy=False)
        self._action = larger(self._action, (size, action)).astype(np.float32, copy=False)
        self._squares = larger(self._squares, (size,)).astype(np.float32, copy=False)
        for name in ("_reward", "_residual", "_weights", "_sums"):
            setattr(self, name, larger(getattr(self, name), (size,)))

    def _measure_bandwidths(self) -> None:
        """Median distances over all pairs; then the sums of the kernels once over all pairs (at most 512²)."""
        count = len(self)
        upper = np.triu_indices(count, 1)
        found = []
        squares = []
        for rows, fallback in ((self._context[:count], 0.5), (self._action[:count], 1.0)):
            wide = rows.astype(float)
            norms = (wide**2).sum(axis=1)
            square = np.maximum(norms[:, None] + norms[None, :] - 2.0 * wide @ wide.T, 0.0)
            distances = np.sqrt(square[upper])
            apart = distances[distances > 1e-6]
            found.append(max(float(np.median(apart)), 0.05) if apart.size else fallback)
            squares.append(square)
        self.bandwidths = (found[0], found[1])
        kernel = np.exp(-squares[0] / (2 * found[0] ** 2) - squares[1] / (2 * found[1] ** 2))
        np.fill_diagonal(kernel, 0.0)
        self._weights[:count] = kernel.sum(axis=1)
        self._sums[:count] = kernel @ self._reward[:count]

    # Kernels

    def _likeness(self, context: Rows) -> Vector:
        """exp(−‖x_e − x‖²/2h²) of every experience, on the context alone."""
        count = len(self)
        if not count:
            return np.zeros(0)
        square = self._squares[:count] - 2.0 * (self._context[:count] @ context) + context @ context
        np.maximum(square, 0.0, out=square)
        return np.asarray(np.exp(square * np.float32(-0.5 / self.bandwidths[0] ** 2)), dtype=float)

    def _kernel(self, context: Rows, action: Rows) -> Vector:
        """The same on (context, action)."""
        count = len(self._experiences)
        if not count:
            return np.zeros(0)
        apart = ((self._action[:count] - action) ** 2).sum(axis=1)
        return np.asarray(self._likeness(context) * np.exp(-0.5 * apart.astype(float) / self.bandwidths[1] ** 2))

    def surprisals(self, tuning: Tuning) -> Vector:
        """|r_e − E[r | memory without e]| of every experience.

        E[r] is a Gaussian-kernel mean on (context, action), shrunk to the mean of the other rewards, which weighs ``shrinkage``.
        With a Gaussian predictive of one width this ranks as −log p(r_e).
        """
        count = len(self)
        rewards = self._reward[:count]
        prior = (self._total - rewards) / max(1, count - 1)
        weight = tuning.shrinkage
        expected = (self._sums[:count] + weight * prior) / (self._weights[:count] + weight)
        return np.abs(rewards - expected) if count > 1 else np.abs(rewards)

    def predict(self, context: Sequence[float], actions: Sequence[Action], tuning: Tuning) -> list[Prediction]:
        """What rewards near (context, action) deviated from what the model had predicted, for several actions at once.

        The mean is shrunk to 0, the model being the prior.
        """
        count = len(self)
        if not count or len(context) != self._context.shape[1]:
            return [Prediction(0.0, 1.0, 0.0) for _ in actions]
        likeness = self._likeness(np.asarray(context, dtype=np.float32))
        if count > _NEIGHBOURS:
            near = np.argpartition(-likeness, _NEIGHBOURS)[:_NEIGHBOURS]
            near = near[likeness[near] > 1e-3]
        else:
            near = np.flatnonzero(likeness > 1e-3)
        likeness, residual = likeness[near], self._residual[near]
        predictions = []
        for action in actions:
            vector = np.asarray(action_vector(action, self.stages), dtype=np.float32)
            apart = ((self._action[near] - vector) ** 2).sum(axis=1).astype(float)
            weights = likeness * np.exp(-0.5 * apart / self.bandwidths[1] ** 2)
            support = float(weights.sum())
            total = support + tuning.shrinkage
            mean = float(weights @ residual) / total
            variance = (float(weights @ (residual - mean) ** 2) + tuning.shrinkage) / total
            best = int(weights.argmax()) if near.size else -1
            found = near.size > 0 and weights[best] > _SUPPORT and apart[best] < 1e-6
            predictions.append(Prediction(mean, variance**0.5, support, int(near[best]) if found else None))
        return predictions

    def at(self, place: int) -> Experience:
        """The experience behind an index of a Prediction."""
        return self._experiences[place]

    # Retrieval

    def retrieve(self, context: Sequence[float], frontiers: Frontiers, tuning: Tuning) -> list[Recollection]:
        """Choose up to M experiences by similarity × surprisal, diverse, best first.

        Greedy: each choice maximises score − λ · (highest likeness to one already chosen) · its score's scale; it stops when
        nothing is gained any more. Only rewards above ``least_reward`` are shown; their Pareto term is that of today's frontier.
        """
        count = len(self)
        if not count or tuning.examples_max <= 0 or len(context) != self._context.shape[1]:
            return []
        similarity = self._likeness(np.asarray(context, dtype=np.float32))
        surprisal = self.surprisals(tuning)
        score = similarity * surprisal if tuning.surprisal_in_score else similarity
        least = tuning.least_reward
        threshold = self._median_reward() if least is None else least
        score = np.where(self._reward[:count] >= threshold, score, -1.0) if least is None else score
        size = min(count, max(_SHORTLIST, 4 * tuning.examples_max))
        short = np.argpartition(-score, size - 1)[:size] if size < count else np.arange(count)
        allowed = score[short] > 0.0
        if least is not None:
            current = [self._current_reward(int(place), frontiers, tuning) for place in short]
            allowed &= np.array(current) > threshold
        short = short[allowed]
        chosen = self._diverse(short, score[short], tuning)
        return [
            Recollection(
                self._experiences[short[row]],
                float(similarity[short[row]]),
                float(surprisal[short[row]]),
                float(score[short[row]]),
                self._current_reward(int(short[row]), frontiers, tuning),
            )
            for row in chosen
        ]

    def _diverse(self, short: npt.NDArray[np.intp], score: Vector, tuning: Tuning) -> list[int]:
        """Rows of ``short`` in the order chosen."""
        if not short.size:
            return []
        rows = np.hstack([self._context[short] / self.bandwidths[0], self._action[short] / self.bandwidths[1]])
        norms = (rows * rows).sum(axis=1)
        alike = np.exp(-0.5 * np.maximum(norms[:, None] + norms[None, :] - 2.0 * rows @ rows.T, 0.0))
        scale = float(score.max())
        gain = score.copy()
        closest = np.zeros(short.size)
        chosen: list[int] = []
        while len(chosen) < tuning.examples_max:
            best = int(gain.argmax())
            if not gain[best] > 0.0:
                break
            chosen.append(best)
            np.maximum(closest, alike[best], out=closest)
            gain = score - tuning.diversity * scale * closest
            gain[chosen] = -np.inf
        return chosen

    def _median_reward(self) -> float:
        if self._median is None:
            self._median = float(np.median(self._reward[: len(self)]))
        return self._median

    def _current_reward(self, place: int, frontiers: Frontiers, tuning: Tuning) -> float:
        experience = self._experiences[place]
        terms = experience.reward
        key = GLOBAL if tuning.frontier_scope == "global" else experience.load_bucket
        return terms.total - terms.pareto + _member_term(experience.outcome, frontiers.at(key), tuning)


def _member_term(outcome: Outcome, frontier: Frontier, tuning: Tuning) -> float:
    return pareto_term(outcome, frontier, tuning.distance)
