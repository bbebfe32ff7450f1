"""Kernel sums at a thousand places instead of at every experience: what keeps a memory of a million within its time. Pure.

Each experience belongs to the cell whose centre is nearest. W, S and Q (see ``kernels``) are approximated twice:

- coarsely, for all experiences at once: those at the centre of the cell, less the experience's own part. Kept up at the centres alone,
  so that one experience more costs a pass over the centres;
- finely, for the few thousand that come into question: at the experience itself, with the members of each cell taken together at their
  mean. What is left out is of the second order in the size of a cell over the bandwidth.

Likeness, and with it what is most like a context, is computed exactly.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from controller.kernels import Sums
from controller.points import Bandwidths, Places, Points, Rows, Vector

__all__ = ["Cells"]

FIRST: Final = 1024
"""Centres to begin with, drawn from the experiences, so that they are dense where these are."""
MOST: Final = 2048
_FAR: Final = 0.5
"""An experience whose kernel at the nearest centre is less than this becomes a centre itself, while there is room."""
_CHUNK: Final = 8192
_SEEDS: Final = 2048
"""Candidates by their cells' likeness, whose exact scores set the mark that others must be able to pass."""
_EXAMINED_MOST: Final = 65_536
"""Experiences whose likeness is computed for one question at most."""
_FINE_MOST: Final = 4096
"""Experiences whose sums are taken finely at once."""
_SHORT: Final = 512
"""Candidates that are left after the coarse look."""
_NEAR_LEAST: Final = 4096
_NEAR_MOST: Final = 8192


class Cells:
    """Cells over all experiences.

    Args:
        points: The experiences that are there already.
        bandwidths: Of the kernel.
        seed: Of the choice of the centres.
    """

    def __init__(self, points: Points, bandwidths: Bandwidths, seed: int = 0) -> None:
        self._points = points
        self._bandwidths = bandwidths
        chosen = np.sort(np.random.default_rng(seed).choice(points.count, min(FIRST, points.count), replace=False))
        self._context: Rows = np.zeros((MOST, points.width), dtype=np.float32)
        self._action: Rows = np.zeros((MOST, points.action.shape[1]), dtype=np.float32)
        self.cells = len(chosen)
        """How many there are."""
        self._context[: self.cells], self._action[: self.cells] = points.context[chosen], points.action[chosen]
        self._sums = np.zeros((3, MOST))
        self._radius: Rows = np.zeros(MOST, dtype=np.float32)
        """Largest distance of a member's context from that of the centre, ever."""
        self._mass = np.zeros((3, MOST))
        """Of each cell's members: how many, Σ r, Σ r²."""
        self._middle = np.zeros((MOST, points.width + points.action.shape[1]))
        """Σ of their contexts and actions."""
        self._cell: Places = np.zeros(max(64, points.count), dtype=np.intp)
        self._own: Rows = np.zeros(len(self._cell), dtype=np.float32)
        """Kernel of each experience at its centre: its own part of the centre's sums."""
        for start in range(0, points.count, _CHUNK):
            self._take_in(slice(start, min(start + _CHUNK, points.count)))

    def added(self, place: int) -> None:
        """Account for the experience that was appended at ``place``, the last."""
        if place >= len(self._cell):
            self._cell = np.concatenate([self._cell, np.zeros_like(self._cell)])
            self._own = np.concatenate([self._own, np.zeros_like(self._own)])
        self._take_in(slice(place, place + 1))
        if self._own[place] < _FAR and self.cells < MOST:
            self._found(place)

    def leaving(self, place: int) -> None:
        """Account for the experience that is about to be removed; the last takes its place."""
        points, last = self._points, self._points.count - 1
        self._add(-self._at_centres(slice(place, place + 1)), points.reward[place : place + 1])
        np.maximum(self._sums[0], 0.0, out=self._sums[0])
        self._belongs(slice(place, place + 1), -1.0)
        self._cell[place], self._own[place] = self._cell[last], self._own[last]

    def of(self, rows: Places | slice) -> Sums:
        """The sums of some experiences, without themselves: finely where they are few."""
        points = self._points
        few = np.arange(points.count)[rows]
        if len(few) <= _FINE_MOST:
            return self._fine(few)
        cells, own, reward = self._cell[: points.count][rows], self._own[: points.count][rows], points.reward[rows]
        weights, rewards, squares = (values[cells] for values in self._sums)
        part = own * reward
        return Sums(np.maximum(weights - own, 0.0), rewards - part, squares - part * reward)

    def _fine(self, rows: Places) -> Sums:
        points, (h, g) = self._points, self._bandwidths
        scale = np.concatenate([np.full(points.width, 1.0 / h), np.full(points.action.shape[1], 1.0 / g)])
        there = np.flatnonzero(self._mass[0, : self.cells] > 0.5)
        means = ((self._middle[there] / self._mass[0, there, None]) * scale).astype(np.float32)
        own = (np.hstack([points.context[rows], points.action[rows]]) * scale).astype(np.float32)
        kernel = _kernel(own, means)
        position = np.zeros(MOST, dtype=np.intp)
        position[there] = np.arange(len(there))
        part = kernel[np.arange(len(rows)), position[self._cell[rows]]].astype(float)
        reward = points.reward[rows]
        weights, rewards, squares = self._mass[:, there] @ kernel.T.astype(float)
        return Sums(np.maximum(weights - part, 0.0), rewards - part * reward, squares - part * reward**2)

    def deviations(self, shrinkage: float) -> Rows:
        """|r_e − E[r | the others]| of all experiences, as ``surprisal`` defines it, in a few passes of single precision."""
        points, count = self._points, self._points.count
        cells, own = self._cell[:count], self._own[:count]
        reward = points.reward.astype(np.float32)
        share = shrinkage / max(1, count - 1)
        # E = (S_c − o·r + w (T − r)/(n − 1)) / (W_c − o + w), with what is the same for all members taken once per cell.
        above = (self._sums[1] + share * points.total).astype(np.float32)[cells]
        below = (self._sums[0] + shrinkage).astype(np.float32)[cells]
        below -= own
        np.maximum(below, np.float32(max(shrinkage, 1e-9)), out=below)
        part = own + np.float32(share)
        part *= reward
        above -= part
        above /= below
        above -= reward
        return np.asarray(np.abs(above, out=above))

    def like(self, context: Rows) -> tuple[Vector, Vector]:
        """Likeness of every cell's centre to a context, and the most that a member's may be; both by cell."""
        apart = self._apart(context)
        near = np.maximum(apart - self._radius[: self.cells], 0.0)
        scale = -0.5 / self._bandwidths[0] ** 2
        return np.exp(scale * apart.astype(float) ** 2), np.exp(scale * near.astype(float) ** 2)

    def near(self, context: Rows) -> Places:
        """Some thousands of experiences with contexts near one: the members of the nearest cells, of a crowded one an even part."""
        order = np.argsort(self._apart(context))
        until = int(np.searchsorted(np.cumsum(self._mass[0, order]), _NEAR_LEAST)) + 1
        rows = self._inside(order[:until])
        return rows if len(rows) <= _NEAR_MOST else rows[:: -(-len(rows) // _NEAR_MOST)]

    def promising(self, context: Rows, value: Rows, most: int) -> Places:
        """The few hundred experiences with the highest likeness × value.

        Exact as long as no more than 65,536 come into question: none is left out whose cell is near enough to let it pass the mark
        that the best candidates set. Of more, those that could score highest.

        Args:
            context: The question.
            value: Of each experience, 0 or more; 0 is never wanted.
            most: How many are needed at least.

        Returns:
            Indices, in no order.
        """
        most = max(most, min(_SHORT, len(value)))
        centre, bound = (likeness.astype(np.float32) for likeness in self.like(context))
        cells = self._cell[: self._points.count]
        guess = centre[cells]
        guess *= value
        seeds = _highest(guess, max(_SEEDS, most))
        exact = self._points.likeness(context, self._bandwidths[0], seeds) * value[seeds]
        mark = float(np.partition(exact, len(exact) - most)[len(exact) - most]) if len(exact) > most else 0.0
        could = bound[cells]
        could *= value
        rows = np.flatnonzero(could > np.float32(mark * (1 - 1e-5)))
        if len(rows) > _EXAMINED_MOST:
            rows = rows[np.argpartition(could[rows], len(rows) - _EXAMINED_MOST)[-_EXAMINED_MOST:]]
        if len(rows) > most:
            exact = self._points.likeness(context, self._bandwidths[0], rows) * value[rows]
            rows = rows[np.argpartition(exact, len(rows) - most)[-most:]]
        return rows

    def _apart(self, context: Rows) -> Rows:
        difference = self._context[: self.cells] - context
        return np.asarray(np.sqrt(np.einsum("ij,ij->i", difference, difference)))

    def _inside(self, cells: Places) -> Places:
        chosen = np.zeros(MOST, dtype=bool)
        chosen[cells] = True
        return np.flatnonzero(chosen[self._cell[: self._points.count]])

    def _at_centres(self, rows: slice) -> Rows:
        """Kernel of some experiences at every centre, (rows, cells)."""
        h, g = (np.float32(1.0 / width) for width in self._bandwidths)
        points = np.hstack([self._points.context[rows] * h, self._points.action[rows] * g])
        return _kernel(points, np.hstack([self._context[: self.cells] * h, self._action[: self.cells] * g]))

    def _take_in(self, rows: slice) -> None:
        kernel = self._at_centres(rows)
        nearest = kernel.argmax(axis=1)
        self._cell[rows] = nearest
        self._own[rows] = kernel[np.arange(len(nearest)), nearest]
        difference = self._points.context[rows] - self._context[nearest]
        np.maximum.at(self._radius, nearest, np.sqrt(np.einsum("ij,ij->i", difference, difference)))
        self._belongs(rows, 1.0)
        self._add(kernel, self._points.reward[rows])

    def _add(self, kernel: Rows, reward: Vector) -> None:
        columns = np.stack([np.ones(len(reward)), reward, reward**2])
        self._sums[:, : self.cells] += columns @ kernel.astype(float)

    def _belongs(self, rows: slice, sign: float) -> None:
        cells, points = self._cell[rows], self._points
        reward = points.reward[rows]
        for total, column in zip(self._mass, (np.ones(len(reward)), reward, reward**2), strict=True):
            np.add.at(total, cells, sign * column)
        np.add.at(self._middle, cells, sign * np.hstack([points.context[rows], points.action[rows]]).astype(float))

    def _found(self, place: int) -> None:
        """Make an experience the centre of a cell of its own: the one thing that takes a pass over all of them."""
        points, new = self._points, self.cells
        self._context[new], self._action[new] = points.context[place], points.action[place]
        kernel = points.kernel(points.context[place], points.action[place], self._bandwidths).astype(float)
        self.cells += 1
        reward = points.reward
        self._sums[:, new] = kernel.sum(), kernel @ reward, kernel @ (reward * reward)
        self._belongs(slice(place, place + 1), -1.0)
        self._cell[place], self._own[place] = new, 1.0
        self._belongs(slice(place, place + 1), 1.0)


def _highest(values: Rows, most: int) -> Places:
    """Indices of the highest values, at least ``most`` of them where there are so many, by the highest of each block."""
    if len(values) <= 4 * most:
        return np.flatnonzero(values > 0.0)
    width = max(1, len(values) // (4 * most))
    whole = len(values) // width * width
    tops = values[:whole].reshape(-1, width).max(axis=1)
    # The lowest of the ``most`` highest block maxima: at least as many values reach it.
    mark = np.partition(tops, len(tops) - most)[len(tops) - most]
    rows = np.flatnonzero(values >= mark)
    # Many equal values: an even part of them will do, they are as good as each other.
    rows = rows if len(rows) <= 8 * most else rows[:: len(rows) // (4 * most)]
    return rows[values[rows] > 0.0]


def _kernel(points: Rows, others: Rows) -> Rows:
    """exp(−‖p − o‖²/2) of every pair, (points, others); both in units of the bandwidths."""
    kernel: Rows = points @ others.T
    kernel -= np.einsum("ij,ij->i", others, others) * np.float32(0.5)
    kernel -= np.einsum("ij,ij->i", points, points)[:, None] * np.float32(0.5)
    np.minimum(kernel, np.float32(0.0), out=kernel)
    return np.asarray(np.exp(kernel, out=kernel))
