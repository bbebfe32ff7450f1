"""The simulated cluster: nodes with cards, replicas placed on them, and the ledger of granted GPU shares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from controller.cost import Prices
from controller.state import ClusterRoom, GpuRoom, NodeRoom
from sair.quantities import MILLI_PER_GPU, Mebibytes, Millicores

__all__ = ["Cluster", "NodePlan", "Replica", "cards_needed"]

HEADROOM_MILLI: Final = 100
"""Thousandths of a card that are better left free for raises: the default of the extender."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node and its cards, all of one kind."""

    name: str
    cpu: Millicores
    memory: Mebibytes
    cards: int = 0
    card_memory: Mebibytes = Mebibytes(81920)


@dataclass(slots=True)
class Replica:
    """A replica and what it holds; ``node`` is None while it waits for room."""

    server: int
    stage: str
    cpu: Millicores
    memory: Mebibytes
    desired_milli: int
    """Wished share of a card; 0 for a CPU stage."""
    granted_milli: int
    gpu_memory: Mebibytes
    node: int | None = None
    card: int | None = None
    ready_at: float = float("inf")
    retiring: bool = False


@dataclass(slots=True)
class Cluster:
    """Who holds what. A raise of a share that does not fit is reserved: no new replica may take what it waits for."""

    plans: tuple[NodePlan, ...]
    replicas: dict[int, Replica] = field(default_factory=dict)
    """Placed replicas by server number, retiring ones included until they are gone."""

    def free_cpu(self, node: int) -> int:
        """Millicores nobody holds."""
        return self.plans[node].cpu - sum(one.cpu for one in self.replicas.values() if one.node == node)

    def free_memory(self, node: int) -> int:
        """MiB nobody holds."""
        return self.plans[node].memory - sum(one.memory for one in self.replicas.values() if one.node == node)

    def free_share(self, node: int, card: int, *, reserved: bool) -> int:
        """Thousandths of a card that nobody was granted, less what raises are waiting for if ``reserved``."""
        return MILLI_PER_GPU - sum(
            max(one.granted_milli, one.desired_milli) if reserved else one.granted_milli for one in self._on(node, card)
        )

    def _on(self, node: int, card: int) -> list[Replica]:
        return [one for one in self.replicas.values() if one.node == node and one.card == card]

    def free_card_memory(self, node: int, card: int) -> int:
        """MiB of a card's memory nobody was promised."""
        return self.plans[node].card_memory - sum(one.gpu_memory for one in self._on(node, card))

    def place(self, replica: Replica) -> str:
        """Bind a replica to the place it fits best.

        A GPU replica goes, as the scheduler's extender has it, to the card with the fewest replicas of its own stage (they peak together),
        then to one that keeps some headroom for raises, then to the fullest that holds it. A CPU replica goes to the node with the
        fewest cards, then the least CPU left.

        Returns:
            Empty if it was placed, else the reason why not.
        """
        fitting: list[tuple[tuple[int, ...], int, int | None]] = []
        for node, plan in enumerate(self.plans):
            left = self.free_cpu(node) - replica.cpu
            if left < 0 or self.free_memory(node) < replica.memory:
                continue
            if not replica.desired_milli:
                fitting.append(((plan.cards, left, node), node, None))
                continue
            for card in range(plan.cards):
                room = self.free_share(node, card, reserved=True) - replica.desired_milli
                if room >= 0 and self.free_card_memory(node, card) >= replica.gpu_memory:
                    siblings = sum(one.stage == replica.stage for one in self._on(node, card))
                    short = max(0, HEADROOM_MILLI - room)
                    fitting.append(((siblings, short, room, node, card), node, card))
        if not fitting:
            wanted = f"{replica.cpu}m CPU and {replica.memory}Mi"
            if replica.desired_milli:
                wanted += f" beside a card with {replica.desired_milli / MILLI_PER_GPU:g} and {replica.gpu_memory}Mi"
            return f"no node has room for {wanted}"
        _, replica.node, replica.card = min(fitting, key=lambda place: place[0])
        self.replicas[replica.server] = replica
        return ""

    def settle_shares(self) -> list[Replica]:
        """Grant what was wished wherever it fits, lowerings first; returns the replicas whose grant changed."""
        changed = []
        open_wishes = [one for one in self.replicas.values() if one.granted_milli != one.desired_milli]
        for one in sorted(open_wishes, key=lambda one: (one.desired_milli > one.granted_milli, one.server)):
            more = one.desired_milli - one.granted_milli
            assert one.node is not None and one.card is not None  # noqa: S101 - only placed GPU replicas are in the ledger
            if more <= self.free_share(one.node, one.card, reserved=False):
                one.granted_milli = one.desired_milli
                changed.append(one)
        return changed

    def room(self) -> ClusterRoom:
        """What is left, what is wished but not granted counted as taken."""
        nodes = []
        for node, plan in enumerate(self.plans):
            here = [one for one in self.replicas.values() if one.node == node]
            cards: list[list[Replica]] = [[] for _ in range(plan.cards)]
            for one in here:
                if one.card is not None:
                    cards[one.card].append(one)
            gpus = tuple(
                GpuRoom(
                    max(0, MILLI_PER_GPU - sum([max(one.granted_milli, one.desired_milli) for one in card])),
                    Mebibytes(plan.card_memory - sum([one.gpu_memory for one in card])),
                    _count(card),
                )
                for card in cards
            )
            cpu, memory = sum([one.cpu for one in here]), sum([one.memory for one in here])
            nodes.append(
                NodeRoom(plan.name, Millicores(plan.cpu - cpu), Mebibytes(plan.memory - memory), _count(here), gpus)
            )
        return ClusterRoom(tuple(nodes))

    def cost(self, prices: Prices, *, whole_cards: bool) -> float:
        """Dollars per hour of all that is held.

        Args:
            prices: Dollars per hour.
            whole_cards: Bill as many whole cards as the replicas need when packed by best fit, as if nobody else bought the rest of a
                card; else the shares alone.
        """
        total = 0.0
        held = []
        for one in self.replicas.values():
            total += one.cpu / 1000 * prices.vcpu + one.memory / 1024 * prices.gibibyte
            if one.granted_milli:
                held.append((one.granted_milli, int(one.gpu_memory)))
        if not whole_cards:
            return total + sum(milli for milli, _ in held) / MILLI_PER_GPU * prices.gpu
        memory = max((plan.card_memory for plan in self.plans if plan.cards), default=Mebibytes(0))
        return total + cards_needed(tuple(sorted(held, reverse=True)), memory) * prices.gpu

    def copy(self) -> Cluster:
        """An independent copy."""
        return Cluster(self.plans, {server: replace(one) for server, one in self.replicas.items()})


@lru_cache(maxsize=4096)
def cards_needed(held: tuple[tuple[int, int], ...], card_memory: Mebibytes) -> int:
    """How many cards hold these replicas, packed by best fit in the given order.

    Args:
        held: (thousandths of a card, MiB of its memory) of each replica, largest first.
        card_memory: MiB of one card.
    """
    cards: list[tuple[int, int]] = []
    for milli, memory in held:
        fitting = [card for card in cards if card[0] >= milli and card[1] >= memory]
        free = min(fitting, default=(MILLI_PER_GPU, int(card_memory)))
        if fitting:
            cards.remove(free)
        cards.append((free[0] - milli, free[1] - memory))
    return len(cards)


def _count(replicas: Iterable[Replica]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in replicas:
        if not one.retiring:
            counts[one.stage] = counts.get(one.stage, 0) + 1
    return counts
