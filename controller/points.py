"""Experiences as rows of numbers: contexts, actions, rewards. Grows geometrically, forgets by moving the last row into the gap. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Bandwidths", "Places", "Points", "Rows", "Vector"]

Rows = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]
Bandwidths = tuple[float, float]
"""Standard deviations of the Gaussian kernels on the context and on the action."""


class Points:
    """Mutable arrays; the first ``count`` rows of each count.

    Args:
        context: Length of a context vector.
        action: Length of an action vector.
    """

    def __init__(self, context: int, action: int) -> None:
        self.count = 0
        self._context: Rows = np.zeros((0, context), dtype=np.float32)
        self._action: Rows = np.zeros((0, action), dtype=np.float32)
        self._squares: Rows = np.zeros(0, dtype=np.float32)
        self._action_squares: Rows = np.zeros(0, dtype=np.float32)
        self._reward: Vector = np.zeros(0)
        self._residual: Vector = np.zeros(0)
        self.total = 0.0
        """Σ of the rewards."""
        self.total_squares = 0.0
        """Σ of their squares."""

    @property
    def width(self) -> int:
        """Length of a context vector."""
        return int(self._context.shape[1])

    @property
    def context(self) -> Rows:
        """Contexts, (count, width)."""
        return self._context[: self.count]

    @property
    def action(self) -> Rows:
        """Actions, (count, length)."""
        return self._action[: self.count]

    @property
    def reward(self) -> Vector:
        """Rewards as they were at the time."""
        return self._reward[: self.count]

    @property
    def residual(self) -> Vector:
        """Reward minus what the model had predicted; 0 where it predicted nothing."""
        return self._residual[: self.count]

    def append(self, context: Rows, action: Rows, reward: Vector, residual: Vector) -> None:
        """Take rows in, (n, width), (n, length), (n,), (n,)."""
        first, self.count = self.count, self.count + len(reward)
        if self.count > len(self._reward):
            self._grow()
        inside = slice(first, self.count)
        self._context[inside], self._action[inside] = context, action
        self._squares[inside] = np.einsum("ij,ij->i", context, context)
        self._action_squares[inside] = np.einsum("ij,ij->i", action, action)
        self._reward[inside], self._residual[inside] = reward, residual
        self.total += float(reward.sum())
        self.total_squares += float(reward @ reward)

    def remove(self, place: int) -> None:
        """Forget a row; the last one takes its place."""
        last = self.count - 1
        self.total -= float(self._reward[place])
        self.total_squares -= float(self._reward[place] ** 2)
        for values in (
            self._context,
            self._action,
            self._squares,
            self._action_squares,
            self._reward,
            self._residual,
        ):
            values[place] = values[last]
        self.count = last

    def likeness(self, context: Rows, bandwidth: float, rows: Places | None = None) -> Rows:
        """exp(−‖x_e − x‖²/2h²) of all experiences, or of some, on the context alone."""
        contexts, squares = (self.context, self._squares[: self.count]) if rows is None else self._some(rows)
        return _gaussian(_squared(contexts, squares, context), bandwidth)

    def kernel(self, context: Rows, action: Rows, bandwidths: Bandwidths) -> Rows:
        """The same of all experiences on (context, action)."""
        h, g = bandwidths
        apart = _squared(self.context, self._squares[: self.count], context)
        apart *= np.float32((g / h) ** 2)
        apart += _squared(self.action, self._action_squares[: self.count], action)
        return _gaussian(apart, g)

    def apart(self, action: Rows, rows: Places | None = None) -> Rows:
        """‖a_e − a‖² of all experiences, or of some."""
        actions = self.action if rows is None else self._action[rows]
        difference = actions - action
        return np.asarray(np.einsum("ij,ij->i", difference, difference))

    def _some(self, rows: Places) -> tuple[Rows, Rows]:
        return self._context[rows], self._squares[rows]

    def _grow(self) -> None:
        size = max(64, 2 * len(self._reward), self.count)
        for name in ("_context", "_action", "_squares", "_action_squares", "_reward", "_residual"):
            old = getattr(self, name)
            new = np.zeros((size, *old.shape[1:]), dtype=old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)


def _squared(rows: Rows, squares: Rows, point: Rows) -> Rows:
    """‖row − point‖² of each row, whose own squared length is in ``squares``; rounding may leave it a little below 0."""
    apart = rows @ point
    apart *= np.float32(-2.0)
    apart += squares
    apart += point @ point
    return np.asarray(apart)


def _gaussian(square: Rows, bandwidth: float) -> Rows:
    """exp(−d²/2h²), in place."""
    np.maximum(square, np.float32(0.0), out=square)
    square *= np.float32(-0.5 / bandwidth**2)
    return np.asarray(np.exp(square, out=square))
