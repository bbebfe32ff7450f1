"""The last resort: change nothing."""

from __future__ import annotations

from controller.decision import Proposal
from controller.menu import Menu
from controller.state import HOLD

__all__ = ["hold"]


def hold(menu: Menu, reason: str) -> Proposal:
    """Leave everything as it is.

    Args:
        menu: For the number of its hold candidate.
        reason: Why nothing better could be decided.
    """
    return Proposal(HOLD, "hold", reason, menu.hold.number)
