"""One card's account: who is entitled to how much of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from extender.card import Card, CardView, Seat
from sair.quantities import MILLI_PER_GPU, Mebibytes

__all__ = ["Account", "Claim"]


@dataclass(frozen=True, slots=True)
class Claim:
    """What one replica takes of the card: granted, about to be granted, or assumed to be bound."""

    milli: int
    memory_mi: int
    stage_key: str


@dataclass(slots=True)
class Account:
    """Claims on one card; ``card`` is None while nobody reports such a GPU on the node."""

    seat: Seat
    card: Card | None = None
    claims: dict[str, Claim] = field(default_factory=dict)
    """By pod uid."""
    wished_milli: int = 0
    """Thousandths that waiting raises ask for beyond their claims."""
    problem: str = ""
    """What was last reported as wrong with it."""

    @property
    def share_milli(self) -> int:
        """Thousandths claimed."""
        return sum(claim.milli for claim in self.claims.values())

    @property
    def memory_mi(self) -> int:
        """MiB claimed."""
        return sum(claim.memory_mi for claim in self.claims.values())

    @property
    def room_milli(self) -> int:
        """Thousandths that nobody claims; negative on a card that holds too much."""
        return MILLI_PER_GPU - self.share_milli

    def view(self) -> CardView | None:
        """What is left for new replicas; None without a card."""
        if self.card is None:
            return None
        room_milli = max(0, self.room_milli)
        reserved_milli = min(room_milli, self.wished_milli)
        return CardView(
            index=self.seat[1],
            memory_mi=Mebibytes(self.card.memory_mi),
            free_milli=room_milli - reserved_milli,
            free_memory_mi=Mebibytes(max(0, self.card.memory_mi - self.memory_mi)),
            reserved_milli=reserved_milli,
            stages=Counter(claim.stage_key for claim in self.claims.values()),
        )

    def trouble(self) -> str:
        """Say what is wrong with it, if anything: it is gone under its replicas, or they hold more than there is."""
        if not self.claims:
            return ""
        if self.card is None:
            return f"no such GPU on the node any more, but {len(self.claims)} replicas hold shares of it"
        if self.share_milli > MILLI_PER_GPU:
            return f"{self.share_milli / MILLI_PER_GPU:g} of it granted"
        if self.memory_mi > self.card.memory_mi:
            return f"it has {self.card.memory_mi}Mi, its replicas are entitled to {self.memory_mi}Mi"
        return ""
