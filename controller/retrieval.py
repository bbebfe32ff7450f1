"""The working copy of a pipeline's memory: likeness, surprisal, choice of the experiences to show, and kernel means.

Everything a kernel mean needs is kept up as experiences come and go; nothing is ever recomputed over all pairs in a round. Up to 16,384
experiences all of it is exact; beyond, expectations are those of a thousand cells (see ``cells``) and the rest stays exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from controller.cells import Cells
from controller.experience import Experience
from controller.features import action_vector
from controller.frontier import Frontiers
from controller.kernels import Everyone
from controller.points import Places, Points, Rows, Vector
from controller.standing import Standings, median
from controller.state import Action
from controller.tuning import Tuning

__all__ = ["EXACT_MOST", "Memory", "Prediction", "Recollection"]

Mask = npt.NDArray[np.bool_]

EXACT_MOST = 16_384
"""Experiences up to which expectations are kept up for each of them."""
_FIRST_BANDWIDTHS = (0.5, 1.0)
_BANDWIDTH_SIZES = (32, 128, 512)
"""Bandwidths (median distances) are taken anew at these sizes and kept from then on."""
_SHORTLIST = 96
"""Experiences with the highest scores that the choice is made among."""
_NEIGHBOURS = 512
"""Nearest contexts that a kernel mean is taken over; further ones weigh next to nothing."""
_SUPPORT = 0.1
_MEDIAN_DRIFT = 256
"""The median reward is taken anew after one in so many rewards has changed."""
_RESIDUAL_MOST = 25.0
"""A residual counts no further. The SLO's term spans 18, the others a few: more is a damaged memory, and must not drown kernel means."""


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
    """All experiences of one pipeline, in no particular order. Mutable for speed; not thread-safe.

    Args:
        stages: The pipeline's stages, which fix the length of the vectors.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        self.stages = tuple(stages)
        self.bandwidths = _FIRST_BANDWIDTHS
        """Standard deviations of the kernels on the context and on the action."""
        self._experiences: list[Experience] = []
        self._index: dict[str, int] = {}
        self._points = Points(0, 0)
        self._standings = Standings()
        self._upkeep: Everyone | Cells = Everyone(self._points, self.bandwidths)
        self._median: float | None = None
        self._between = (np.inf, -np.inf)
        self._changed = 0

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
        row = self._row(experience)
        if row is None:
            return 0.0
        if experience.id in self._index:
            self.remove(experience.id)
        place = len(self)
        self._append([experience], row)
        if len(self) in _BANDWIDTH_SIZES:
            self._measure_bandwidths()
        elif len(self) == EXACT_MOST + 1 and isinstance(self._upkeep, Everyone):
            self._upkeep = Cells(self._points, self.bandwidths)
        else:
            self._upkeep.added(place)
        return float(self._surprisals(slice(place, place + 1), tuning)[0])

    def remove(self, identity: str) -> bool:
        """Forget an experience; False if it is not there."""
        place = self._index.pop(identity, None)
        if place is None:
            return False
        self._upkeep.leaving(place)
        self._points.remove(place)
        self._standings.remove(place)
        moved = self._experiences.pop()
        if place != len(self._experiences):
            self._experiences[place] = moved
            self._index[moved.id] = place
        self._changed += 1
        return True

    def load(self, experiences: Iterable[Experience], tuning: Tuning) -> None:
        """Take many in, as at a warm start: as if one by one, but the sums are taken once, over all pairs or at the cells."""
        waiting = iter(experiences)
        for experience in islice(waiting, max(0, _BANDWIDTH_SIZES[-1] - len(self))):
            self.add(experience, tuning)
        fresh: dict[str, tuple[Experience, tuple[Rows, Rows, float, float]]] = {}
        again: list[Experience] = []
        for experience in waiting:
            row = self._row(experience)
            if experience.id in self._index:
                again.append(experience)
            elif row is not None:
                fresh[experience.id] = experience, row
        if fresh:
            contexts, actions, rewards, residuals = zip(*(row for _, row in fresh.values()), strict=True)
            rows = np.stack(contexts), np.stack(actions), np.array(rewards), np.array(residuals)
            self._append([experience for experience, _ in fresh.values()], rows)
            kind = Everyone if len(self) <= EXACT_MOST and isinstance(self._upkeep, Everyone) else Cells
            self._upkeep = kind(self._points, self.bandwidths)
        for experience in again:
            self.add(experience, tuning)

    def _row(self, experience: Experience) -> tuple[Rows, Rows, float, float] | None:
        """Context, action, reward and residual; None for what cannot be taken in."""
        context = np.asarray(experience.context, dtype=np.float32)
        reward = experience.reward.total
        width = self._points.width if len(self) else context.size
        if context.size != width or not np.isfinite(context).all() or not np.isfinite(reward):
            return None
        action = np.asarray(action_vector(experience.action, self.stages), dtype=np.float32)
        predicted = experience.predicted_reward
        residual = reward - predicted if predicted is not None and np.isfinite(predicted) else 0.0
        return context, action, reward, min(_RESIDUAL_MOST, max(-_RESIDUAL_MOST, residual))

    def _append(
        self, experiences: Sequence[Experience], row: tuple[Rows, Rows, float | Vector, float | Vector]
    ) -> None:
        context, action, reward, residual = row
        if not len(self) and context.shape[-1] != self._points.width:
            self._points = Points(context.shape[-1], action.shape[-1])
            self._upkeep = Everyone(self._points, self.bandwidths)
        self._points.append(
            np.atleast_2d(context),
            np.atleast_2d(action),
            np.atleast_1d(np.asarray(reward, dtype=float)),
            np.atleast_1d(np.asarray(residual, dtype=float)),
        )
        self._standings.append(experiences)
        for place, experience in enumerate(experiences, len(self)):
            self._index[experience.id] = place
        self._experiences.extend(experiences)
        self._changed += len(experiences)

    def _measure_bandwidths(self) -> None:
        """Median distances over all pairs; then the sums of the kernels once over all pairs (at most 512²)."""
        upper = np.triu_indices(len(self), 1)
        found = []
        for rows, fallback in ((self._points.context, 0.5), (self._points.action, 1.0)):
            wide = rows.astype(float)
            norms = (wide**2).sum(axis=1)
            square = np.maximum(norms[:, None] + norms[None, :] - 2.0 * wide @ wide.T, 0.0)
            distances = np.sqrt(square[upper])
            apart = distances[distances > 1e-6]
            found.append(max(float(np.median(apart)), 0.05) if apart.size else fallback)
        self.bandwidths = (found[0], found[1])
        self._upkeep = Everyone(self._points, self.bandwidths)

    # Kernels

    def surprisals(self, tuning: Tuning) -> Vector:
        """|r_e − E[r | memory without e]| of every experience.

        E[r] is a Gaussian-kernel mean on (context, action), shrunk to the mean of the other rewards, which weighs ``shrinkage``.
        With a Gaussian predictive of one width this ranks as −log p(r_e). With ``local_deviation`` the width is that of the
        neighbourhood, shrunk to the whole memory's in the same way, and surprisal is in units of the latter.
        """
        return self._surprisals(slice(None), tuning)

    def _surprisals(self, rows: Places | slice, tuning: Tuning) -> Vector:
        count, points, weight = len(self), self._points, tuning.shrinkage
        rewards = points.reward[rows]
        if count < 2:
            return np.abs(rewards)
        sums = self._upkeep.of(rows)
        prior = (points.total - rewards) / (count - 1)
        total = np.maximum(sums.weights + weight, 1e-12)
        expected = (sums.rewards + weight * prior) / total
        apart = np.abs(rewards - expected)
        if tuning.local_deviation:
            whole = max(points.total_squares / count - (points.total / count) ** 2, 1e-12)
            around = sums.squares - 2.0 * expected * sums.rewards + expected**2 * sums.weights
            apart *= np.sqrt(whole / np.maximum((around + weight * whole) / total, 1e-4 * whole))
        return apart

    def predict(self, context: Sequence[float], actions: Sequence[Action], tuning: Tuning) -> list[Prediction]:
        """What rewards near (context, action) deviated from what the model had predicted, for several actions at once.

        The mean is shrunk to 0, the model being the prior.
        """
        count, points = len(self), self._points
        if not count or len(context) != points.width:
            return [Prediction(0.0, 1.0, 0.0) for _ in actions]
        question = np.asarray(context, dtype=np.float32)
        near = self._upkeep.near(question) if isinstance(self._upkeep, Cells) else np.arange(count)
        likeness = points.likeness(question, self.bandwidths[0], None if len(near) == count else near).astype(float)
        if near.size > _NEIGHBOURS:
            nearest = np.argpartition(-likeness, _NEIGHBOURS)[:_NEIGHBOURS]
            near, likeness = near[nearest], likeness[nearest]
        near, likeness = near[likeness > 1e-3], likeness[likeness > 1e-3]
        residual = points.residual[near]
        predictions = []
        for action in actions:
            vector = np.asarray(action_vector(action, self.stages), dtype=np.float32)
            apart = points.apart(vector, near).astype(float)
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
        nothing is gained any more. Only rewards above ``least_reward`` are shown, and all are taken with the Pareto term of today's
        frontier. Surprisal is how far a reward fell from what was expected of it, both as they were at the time.
        """
        count = len(self)
        if not count or tuning.examples_max <= 0 or len(context) != self._points.width:
            return []
        size = min(count, max(_SHORTLIST, 4 * tuning.examples_max))
        reward, judged = self._standings.rewards(frontiers, tuning)
        self._changed += judged
        least = tuning.least_reward
        shown = reward >= self._median_of(reward) if least is None else reward > least
        question = np.asarray(context, dtype=np.float32)
        rows = self._promising(question, shown, size, tuning)
        similarity = self._points.likeness(question, self.bandwidths[0], rows).astype(float)
        surprisal = self._surprisals(slice(None) if rows is None else rows, tuning)
        score = similarity * surprisal if tuning.surprisal_in_score else similarity
        # Before the cut: those that are not shown must not take the places of those that are.
        score = np.where(shown if rows is None else shown[rows], score, -1.0)
        short = np.argpartition(-score, size - 1)[:size] if size < len(score) else np.arange(len(score))
        short = short[score[short] > 0.0]
        place = short if rows is None else rows[short]
        chosen = self._diverse(place, score[short], tuning)
        return [
            Recollection(
                self._experiences[place[row]],
                float(similarity[short[row]]),
                float(surprisal[short[row]]),
                float(score[short[row]]),
                float(reward[place[row]]),
            )
            for row in chosen
        ]

    def _promising(self, question: Rows, shown: Mask, size: int, tuning: Tuning) -> Places | None:
        """Those that may be among the ``size`` with the highest scores; None for all."""
        if not isinstance(self._upkeep, Cells):
            return None
        points = self._points
        if not tuning.surprisal_in_score:
            value = np.ones(points.count, dtype=np.float32)
        elif tuning.local_deviation:
            value = self._surprisals(slice(None), tuning).astype(np.float32)
        else:
            value = self._upkeep.deviations(tuning.shrinkage)
        value *= shown
        return self._upkeep.promising(question, value, size)

    def _diverse(self, short: Places, score: Vector, tuning: Tuning) -> list[int]:
        """Rows of ``short`` in the order chosen."""
        if not short.size:
            return []
        rows = np.hstack(
            [self._points.context[short] / self.bandwidths[0], self._points.action[short] / self.bandwidths[1]]
        )
        norms = (rows * rows).sum(axis=1)
        alike = np.exp(-0.5 * np.maximum(norms[:, None] + norms[None, :] - 2.0 * rows @ rows.T, 0.0))
        # What an experience that is already chosen takes from each of the others.
        alike *= np.float32(tuning.diversity * float(score.max()))
        left, gain = score.copy(), score
        taken = np.zeros(short.size, dtype=alike.dtype)
        chosen: list[int] = []
        while len(chosen) < tuning.examples_max:
            best = int(gain.argmax())
            if not gain[best] > 0.0:
                break
            chosen.append(best)
            left[best] = -np.inf
            np.maximum(taken, alike[best], out=taken)
            gain = left - taken
        return chosen

    def _median_of(self, reward: Vector) -> float:
        if self._median is None or self._changed > len(self) // _MEDIAN_DRIFT:
            (self._median, self._between), self._changed = median(reward, self._between), 0
        return self._median
