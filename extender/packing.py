"""Which GPU of a node a replica goes to. Pure and deterministic: the same cards and replica always give the same answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from extender.card import CardView
from extender.replica import Replica

__all__ = ["Need", "Preference", "choose", "fits", "preference"]


@dataclass(frozen=True, slots=True)
class Need:
    """What a replica takes of a card."""

    milli: int
    """Share of the card's time, in thousandths."""
    memory_mi: int
    """MiB; 0 for a replica without a limit, which is not counted."""
    stage_key: str

    @classmethod
    def of(cls, replica: Replica) -> Need | None:
        """Read it off a replica; None if it wants no GPU."""
        if replica.desired is None:
            return None
        return cls(replica.desired.milli, replica.memory, replica.stage_key)


class Preference(NamedTuple):
    """How good a card is for a replica; the smallest wins, field by field."""

    siblings: int
    """Replicas of the same stage on the card. They peak together, and one failing card should not take a stage down."""
    short_milli: int
    """How far the card's rest would fall below the headroom: a raise within it is granted in milliseconds, otherwise somebody must move."""
    rest_milli: int
    """What would stay free: the fullest card that still holds the replica, so that large replicas find whole cards elsewhere."""
    rest_memory_mi: int
    card: int
    """Its index; of equals the lowest."""


def fits(card: CardView, need: Need) -> bool:
    """Whether a card can take a replica now."""
    return need.milli <= card.free_milli and need.memory_mi <= card.free_memory_mi


def preference(card: CardView, need: Need, headroom_milli: int) -> Preference:
    """Say how good a card that fits is.

    Args:
        card: The card before the replica is on it.
        need: Of the replica.
        headroom_milli: Thousandths of a card that are better left free for raises.
    """
    rest_milli = card.free_milli - need.milli
    return Preference(
        siblings=card.stages.get(need.stage_key, 0),
        short_milli=max(0, headroom_milli - rest_milli),
        rest_milli=rest_milli,
        rest_memory_mi=card.free_memory_mi - need.memory_mi,
        card=card.index,
    )


def choose(cards: Iterable[CardView], need: Need, headroom_milli: int) -> Preference | None:
    """Choose the card of a node for a replica.

    Args:
        cards: The node's cards.
        need: Of the replica.
        headroom_milli: As in ``preference``.

    Returns:
        The best card with what spoke for it, or None if the replica fits on none.
    """
    return min((preference(card, need, headroom_milli) for card in cards if fits(card, need)), default=None)
