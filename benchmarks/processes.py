"""Work in processes of its own, which end with the one that began them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import TypeVar

from controller.lifeline import die_with_parent

__all__ = ["in_processes"]

Task = TypeVar("Task")
Result = TypeVar("Result")


def in_processes(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> list[Result]:
    """Do each task once, in this process where one worker is enough; results in the order of the tasks."""
    if workers == 1:
        return [work(task) for task in tasks]
    with multiprocessing.get_context("spawn").Pool(workers, initializer=die_with_parent) as pool:
        return pool.map(work, tasks, chunksize=1)
