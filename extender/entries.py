"""What is told to the ledger, and what it orders."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from extender.card import NodeCards
from extender.replica import Replica
from extender.wishes import PipelineWishes
from sair.quantities import GpuRate

__all__ = [
    "Assumption",
    "BindFailed",
    "BindUnsure",
    "CardProblem",
    "Entry",
    "GrantFailed",
    "Granting",
    "LookUp",
    "LookedUp",
    "NodeGone",
    "NodeSeen",
    "NodesListed",
    "Order",
    "Outcome",
    "PodGone",
    "PodSeen",
    "PodsListed",
    "Refusal",
    "Report",
    "Tick",
    "WishesListed",
    "WishesSeen",
    "WriteGrant",
    "WriteWish",
]


@dataclass(frozen=True, slots=True)
class PodSeen:
    """A pod, at some version, was told by a watch, a read, or the answer to a write."""

    replica: Replica


@dataclass(frozen=True, slots=True)
class PodGone:
    """A pod does not exist any more."""

    uid: str


@dataclass(frozen=True, slots=True)
class PodsListed:
    """All pods that existed at ``version`` have been told."""

    uids: frozenset[str]
    version: int


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A node's inventory, as it is now."""

    node: NodeCards


@dataclass(frozen=True, slots=True)
class NodeGone:
    """A node does not exist any more."""

    name: str


@dataclass(frozen=True, slots=True)
class NodesListed:
    """All nodes have been told."""


@dataclass(frozen=True, slots=True)
class WishesSeen:
    """What a pipeline's stages are wished to have, as it is now; no stages if it does not exist any more."""

    wishes: PipelineWishes


@dataclass(frozen=True, slots=True)
class WishesListed:
    """All Pipelines have been told."""


@dataclass(frozen=True, slots=True)
class Granting:
    """Whether this extender is the one that grants."""

    active: bool


@dataclass(frozen=True, slots=True)
class BindFailed:
    """The API server refused a bind: that request did not happen and never will."""

    uid: str


@dataclass(frozen=True, slots=True)
class BindUnsure:
    """The answer to a bind was lost: it may have happened, or happen yet."""

    uid: str


@dataclass(frozen=True, slots=True)
class GrantFailed:
    """A grant or a wish was not written, or nobody knows whether it was; what the pod is like now has been told, as far as it could
    be read."""

    uid: str


@dataclass(frozen=True, slots=True)
class LookedUp:
    """Answer to LookUp: the pod was read after the order was given, and told as PodSeen or PodGone."""

    uid: str
    version: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Entry: TypeAlias = (
    PodSeen
    | PodGone
    | PodsListed
    | NodeSeen
    | NodeGone
    | NodesListed
    | WishesSeen
    | WishesListed
    | Granting
    | BindFailed
    | BindUnsure
    | GrantFailed
    | LookedUp
    | Tick
)


@dataclass(frozen=True, slots=True)
class WriteGrant:
    """Write a pod's granted share, and with it the wish that it grants, provided the pod is still at this version."""

    replica: Replica
    rate: GpuRate


@dataclass(frozen=True, slots=True)
class WriteWish:
    """Write what a pod is to have and cannot be granted now, provided it is still at this version."""

    replica: Replica
    rate: GpuRate


class Outcome(StrEnum):
    """What became of a wish; the values are the reasons of the Events on the pod."""

    GRANTED = "GpuRateGranted"
    WAITING = "GpuRateWaiting"
    REFUSED = "GpuRateRefused"


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the pod's owner what became of its wish."""

    replica: Replica
    outcome: Outcome
    text: str


@dataclass(frozen=True, slots=True)
class CardProblem:
    """A card holds more than it has, or is gone under its replicas; an empty text says that this is over."""

    node: str
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class LookUp:
    """Read a pod whose last write stayed unanswered for too long, tell it as PodSeen or PodGone, then LookedUp."""

    replica: Replica


Order: TypeAlias = WriteGrant | WriteWish | Report | CardProblem | LookUp


@dataclass(frozen=True, slots=True)
class Assumption:
    """A bind that was decided: from this moment on it counts."""

    replica: Replica
    node: str
    index: int
    rate: GpuRate
    since_s: float
    unsure: bool = False
    """An answer was lost."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a bind cannot be decided now; the scheduler is to try again."""

    reason: str
