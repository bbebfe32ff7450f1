"""The GPUs of a node: what the node agent says there is, and what is left of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sair.inventory import Card, parse_inventory
from sair.quantities import Mebibytes
from sair.wire import convert
from sair.wire import field as lookup

__all__ = ["Card", "CardView", "NodeCards", "Seat", "parse_node"]

Seat = tuple[str, int]
"""Node name and index of a GPU on it."""


@dataclass(frozen=True, slots=True)
class NodeCards:
    """A node and its GPUs, by index; none where the node agent has not said anything."""

    node: str
    cards: tuple[Card, ...] = ()


@dataclass(frozen=True, slots=True)
class CardView:
    """What placement may know of one card at one moment."""

    index: int
    memory_mi: Mebibytes
    """Memory of the whole card."""
    free_milli: int
    """Thousandths that a new replica may take: neither granted, nor about to be, nor kept for a raise that waits."""
    free_memory_mi: Mebibytes
    reserved_milli: int = 0
    """Thousandths that are free but kept for raises."""
    stages: Mapping[str, int] = field(default_factory=dict)
    """Replicas on the card by stage."""


def parse_node(raw: Mapping[str, Any]) -> NodeCards:
    """Read a raw Node's inventory annotation.

    Raises:
        WireError: If the annotation is no JSON list of cards with a positive ``memoryMi``, or the node has no name.
    """
    name = convert(lookup(raw, "metadata", "name"), str, what="Node metadata.name")
    return NodeCards(name, parse_inventory(raw))
