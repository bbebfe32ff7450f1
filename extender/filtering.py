"""Which nodes can take a replica, and in words that read well in a FailedScheduling event, why the others cannot. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from extender.card import CardView
from extender.packing import Need, fits
from sair.quantities import MILLI_PER_GPU

__all__ = ["Filtered", "describe", "filter_nodes"]

SHOWN_CARDS = 2
"""Cards described per node: an event's text is cut at 1024 characters."""

DETAILED_NODES = 6
"""Up to so many nodes are described card by card; beyond, a text that is the same for all, which kube-scheduler then counts."""

# kube-scheduler puts the number of nodes before each reason: "0/3 nodes are available: 2 node(s) without …".
NO_INVENTORY = "node(s) without a known GPU (the node agent reports none)"


@dataclass(frozen=True, slots=True)
class Filtered:
    """The outcome: nodes in the order asked, and reasons by node."""

    nodes: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Full now: a replica that leaves would help."""
    unresolvable: dict[str, str] = field(default_factory=dict)
    """Nothing that leaves would help: no GPU, or none large enough."""


def filter_nodes(names: Iterable[str], need: Need, cards_of: Callable[[str], Sequence[CardView]]) -> Filtered:
    """Split candidate nodes into those with a card for the replica and the others.

    Args:
        names: Candidates.
        need: Of the replica.
        cards_of: Gives a node's cards; none for an unknown node.
    """
    result = Filtered()
    full: list[tuple[str, Sequence[CardView]]] = []
    for name in names:
        cards = cards_of(name)
        if any(fits(card, need) for card in cards):
            result.nodes.append(name)
        elif not cards:
            result.unresolvable[name] = NO_INVENTORY
        elif need.memory_mi > max(card.memory_mi for card in cards):
            largest = max(card.memory_mi for card in cards)
            result.unresolvable[name] = f"node(s) whose largest GPU has {largest}Mi of the {need.memory_mi}Mi needed"
        else:
            full.append((name, cards))
    for name, cards in full:
        detail = f" ({describe(cards, need)})" if len(full) <= DETAILED_NODES else ""
        result.failed[name] = f"node(s) without a GPU with room{detail or _in_general(need)}"
    return result


def describe(cards: Sequence[CardView], need: Need) -> str:
    """Say what each of the closest cards has of what is needed, such as ``gpu 0: 0.3 of 0.5 free, 12000Mi of 16000Mi free``."""
    closest = sorted(cards, key=lambda card: (*_missing(card, need), card.index))
    shown = [_one(card, need) for card in closest[:SHOWN_CARDS]]
    if len(closest) > SHOWN_CARDS:
        shown.append(f"{len(closest) - SHOWN_CARDS} others are no closer")
    return "; ".join(shown)


def _one(card: CardView, need: Need) -> str:
    parts = [f"{_share(card.free_milli)} of {_share(need.milli)} free"]
    if card.reserved_milli:
        parts[0] += f" ({_share(card.reserved_milli)} kept for waiting raises)"
    if need.memory_mi:
        parts.append(f"{card.free_memory_mi}Mi of {need.memory_mi}Mi free")
    return f"gpu {card.index}: " + ", ".join(parts)


def _in_general(need: Need) -> str:
    memory = f" and {need.memory_mi}Mi" if need.memory_mi else ""
    return f" for {_share(need.milli)}{memory}"


def _missing(card: CardView, need: Need) -> tuple[float, float]:
    """The larger, then the sum, of the missing parts; each relative to a whole card, so that share and memory can be compared."""
    share = max(0, need.milli - card.free_milli) / MILLI_PER_GPU
    memory = max(0, need.memory_mi - card.free_memory_mi) / card.memory_mi
    return max(share, memory), share + memory


def _share(milli: int) -> str:
    return f"{milli / MILLI_PER_GPU:g}"
