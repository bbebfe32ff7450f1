"""Why a wish is not granted or a bind not decided, in words for Events and logs. Pure."""

from __future__ import annotations

from extender.account import Account
from extender.replica import Replica
from sair.annotations import GPUS, LOWEST_RATE
from sair.quantities import MILLI_PER_GPU

__all__ = ["why_never", "why_not_bind", "why_queued", "why_unseated", "why_waiting"]


def why_not_bind(replica: Replica | None) -> str | None:
    """Say why a pod cannot be bound wherever it goes; None if it can."""
    if replica is None:
        return "the pod is not known, or gone"
    if replica.node is not None:
        return f"the pod is bound to node {replica.node} already"
    return replica.problem


def why_never(replica: Replica, account: Account) -> str | None:
    """Say why nothing is raised on a card however much of it is free; None if it is."""
    if account.card is None:
        return f"gpu {replica.index} is not in the inventory of node {replica.node} ({GPUS})"
    if account.memory_mi > account.card.memory_mi:
        return f"gpu {replica.index}: {account.trouble()}"
    return None


def why_waiting(replica: Replica, account: Account, lacks_milli: int) -> str:
    """Say what a raise waits for."""
    room, lack = max(0, account.room_milli) / MILLI_PER_GPU, lacks_milli / MILLI_PER_GPU
    return f"{replica.granted} → {replica.desired}: gpu {replica.index} has {room:g} of the {lack:g} more that it takes; kept for it"


def why_queued(replica: Replica, first: Replica) -> str:
    """Say whose raise a raise waits for."""
    return f"{replica.granted} → {replica.desired}: gpu {replica.index} serves the earlier wish of {first.key} first"


def why_unseated(replica: Replica) -> str:
    """Say why a bound pod that wants a GPU holds none."""
    if replica.problem is not None:
        return replica.problem
    return f"bound to {replica.node} by another scheduler: no GPU was granted, its hook holds it at {LOWEST_RATE}"
