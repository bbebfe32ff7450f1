"""Kernel sums over all pairs of experiences: what leave-one-out expectations need, kept up as experiences come and go. Pure.

For each experience e, W = Σ K(e, o), S = Σ K(e, o) r_o and Q = Σ K(e, o) r_o² over the others o, with a Gaussian kernel K on context and
action. One experience more costs one pass over those that are there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.points import Bandwidths, Places, Points, Rows, Vector

__all__ = ["Everyone", "Sums"]

_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Sums:
    """W, S and Q of some experiences, without themselves."""

    weights: Vector
    rewards: Vector
    squares: Vector


class Everyone:
    """The sums of every experience, exact.

    Args:
        points: The experiences; those that are there already are summed up over all pairs.
        bandwidths: Of the kernel.
    """

    def __init__(self, points: Points, bandwidths: Bandwidths) -> None:
        self._points = points
        self._bandwidths = bandwidths
        self._sums = np.zeros((3, max(64, points.count)))
        self._sum_up()

    def added(self, place: int) -> None:
        """Account for the experience that was appended at ``place``, the last."""
        points, reward = self._points, self._points.reward[place]
        if points.count > self._sums.shape[1]:
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)], axis=1)
        kernel = points.kernel(points.context[place], points.action[place], self._bandwidths)[:place].astype(float)
        others = points.reward[:place]
        self._add(kernel, place, reward)
        self._sums[:, place] = kernel.sum(), kernel @ others, kernel @ (others * others)

    def leaving(self, place: int) -> None:
        """Account for the experience that is about to be removed; the last takes its place."""
        points, last = self._points, self._points.count - 1
        kernel = points.kernel(points.context[place], points.action[place], self._bandwidths).astype(float)
        kernel[place] = 0.0
        self._add(-kernel, points.count, points.reward[place])
        self._sums[:, place] = self._sums[:, last]
        np.maximum(self._sums[0, :last], 0.0, out=self._sums[0, :last])

    def of(self, rows: Places | slice) -> Sums:
        """The sums of some experiences."""
        return Sums(*self._sums[:, : self._points.count][:, rows])

    def _add(self, kernel: Vector, count: int, reward: float) -> None:
        self._sums[0, :count] += kernel
        kernel = kernel * reward
        self._sums[1, :count] += kernel
        kernel *= reward
        self._sums[2, :count] += kernel

    def _sum_up(self) -> None:
        points, (h, g) = self._points, self._bandwidths
        rows: Rows = np.hstack([points.context / np.float32(h), points.action / np.float32(g)])
        halves = np.einsum("ij,ij->i", rows, rows) * np.float32(0.5)
        columns = np.stack([np.ones(points.count), points.reward, points.reward**2])
        for start in range(0, points.count, _BLOCK):
            block = slice(start, min(start + _BLOCK, points.count))
            kernel = rows[block] @ rows.T
            kernel -= halves
            kernel -= halves[block, None]
            np.minimum(kernel, np.float32(0.0), out=kernel)
            np.exp(kernel, out=kernel)
            kernel[np.arange(block.stop - start), np.arange(start, block.stop)] = 0.0
            self._sums[:, block] = (kernel @ columns.T.astype(np.float32)).T
