"""How well a node suits a replica, 0 to 10. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from extender.card import CardView
from extender.packing import Need, choose
from extender.wire import MAX_PRIORITY
from sair.quantities import MILLI_PER_GPU

__all__ = ["score"]

SPREAD, HEADROOM, FIT = 0.5, 0.3, 0.2
"""Weights of the three parts; they sum to 1. Ours, in the order of packing.Preference."""


def score(cards: Sequence[CardView], need: Need, headroom_milli: int) -> int:
    """Score a node: 10 · (0.5·spread + 0.3·headroom + 0.2·fit), rounded; 0 if the replica fits on none of its cards.

    With the card that placement would choose, spread = ½/(1 + siblings on the card) + ½/(1 + siblings on the node), headroom = the part
    of the headroom that would stay free, fit = 1 − the share that would stay free.

    Args:
        cards: The node's cards.
        need: Of the replica.
        headroom_milli: Thousandths of a card that are better left free for raises.
    """
    best = choose(cards, need, headroom_milli)
    if best is None:
        return 0
    siblings = sum(card.stages.get(need.stage_key, 0) for card in cards)
    spread = 0.5 / (1 + best.siblings) + 0.5 / (1 + siblings)
    headroom = 1 - best.short_milli / headroom_milli if headroom_milli else 1.0
    fit = 1 - best.rest_milli / MILLI_PER_GPU
    return round(MAX_PRIORITY * (SPREAD * spread + HEADROOM * headroom + FIT * fit))
