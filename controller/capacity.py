"""What the cluster can hold: whether an action fits, and how high a stage's knobs could go where its replicas are."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from controller.state import Action, Allocation, ClusterRoom, GpuRoom, NodeRoom, PipelineView, StageView, project

__all__ = ["Cards", "highest_cpu", "highest_rate", "misfit"]


@dataclass(slots=True)
class _Card:
    free_milli: int
    free_memory: int
    held: dict[str, int]


@dataclass(slots=True)
class _Node:
    free_cpu: int
    free_memory: int
    held: dict[str, int]
    gpus: list[_Card]


class _Nodes:
    """The nodes as they become; one is copied when something changes on it."""

    def __init__(self, room: ClusterRoom) -> None:
        self._nodes: list[NodeRoom | _Node] = list(room.nodes)

    def __iter__(self) -> Iterator[NodeRoom | _Node]:
        return iter(self._nodes)

    def holding(self, stage: str) -> list[_Node]:
        """Those with replicas of a stage."""
        return [self.own(place) for place, node in enumerate(self._nodes) if node.held.get(stage)]

    def own(self, place: int) -> _Node:
        """One, to be changed."""
        node = self._nodes[place]
        if not isinstance(node, _Node):
            cards = [_Card(card.free_milli, card.free_memory, dict(card.held)) for card in node.gpus]
            node = self._nodes[place] = _Node(node.free_cpu, node.free_memory, dict(node.held), cards)
        return node


def misfit(view: PipelineView, allocations: Mapping[str, Allocation], action: Action, room: ClusterRoom) -> str | None:
    """Why the cluster cannot hold an action, None if it can.

    Releases happen first, then replicas that stay are resized where they are, then new replicas go wherever there is most room,
    the largest first. What is wished but was never placed (held nowhere) takes no room here.
    """
    if not any(delta.is_up for delta in action.deltas):
        return None
    nodes = _Nodes(room)
    changed = [
        (stage, allocations[stage.name], action.on(stage.name)) for stage in view.stages if stage.name in allocations
    ]
    changed.sort(key=lambda each: each[2].is_up)
    for stage, before, delta in changed:
        reason = _resize(nodes, stage, before, project(before, delta), min(0, delta.replicas)) if delta else None
        if reason:
            return reason
    for stage, before, delta in changed:
        after = project(before, delta)
        for _ in range(max(0, delta.replicas)):
            if not _place(nodes, stage, after):
                share = f", {after.gpu_rate} of a GPU" if after.gpu_rate else ""
                return (
                    f"no node has room for one more replica of {stage.name} ({after.cpu}m CPU, {after.memory}Mi{share})"
                )
    return None


def _resize(nodes: _Nodes, stage: StageView, before: Allocation, after: Allocation, leaving: int) -> str | None:
    gpu_before = before.gpu_rate.milli if before.gpu_rate else 0
    gpu = (after.gpu_rate.milli if after.gpu_rate else 0) - gpu_before
    for _ in range(-leaving):
        _release(nodes, stage, before)
    for node in nodes.holding(stage.name):
        count = node.held[stage.name]
        node.free_cpu -= count * (after.cpu - before.cpu)
        node.free_memory -= count * (after.memory - before.memory)
        if after.cpu > before.cpu and node.free_cpu < 0:
            return f"a node lacks {-node.free_cpu}m CPU for {stage.name} at {after.cpu}m"
        if after.memory > before.memory and node.free_memory < 0:
            return f"a node lacks {-node.free_memory}Mi memory for {stage.name} at {after.memory}Mi"
        for card in node.gpus:
            count = card.held.get(stage.name, 0)
            card.free_milli -= count * gpu
            if count and gpu > 0 and card.free_milli < 0:
                return f"a GPU lacks {-card.free_milli / 1000:g} for {stage.name} at {after.gpu_rate}"
    return None


def _release(nodes: _Nodes, stage: StageView, allocation: Allocation) -> None:
    """Give back one replica, where it makes the most room."""
    holding = nodes.holding(stage.name)
    if not holding:
        return
    node = min(holding, key=lambda each: each.free_cpu)
    node.held[stage.name] -= 1
    node.free_cpu += allocation.cpu
    node.free_memory += allocation.memory
    cards = [card for card in node.gpus if card.held.get(stage.name, 0)]
    if allocation.gpu_rate and cards:
        card = min(cards, key=lambda each: each.free_milli)
        card.held[stage.name] -= 1
        card.free_milli += allocation.gpu_rate.milli
        card.free_memory += stage.gpu_memory


def _place(nodes: _Nodes, stage: StageView, allocation: Allocation) -> bool:
    best: tuple[int, int, int | None] | None = None
    rate = allocation.gpu_rate
    for place, node in enumerate(nodes):
        if node.free_cpu < allocation.cpu or node.free_memory < allocation.memory:
            continue
        if rate is None:
            if best is None or node.free_cpu > best[0]:
                best = (node.free_cpu, place, None)
            continue
        cards: Sequence[GpuRoom | _Card] = node.gpus
        for index, card in enumerate(cards):
            if card.free_milli < rate.milli or card.free_memory < stage.gpu_memory:
                continue
            if best is None or card.free_milli > best[0]:
                best = (card.free_milli, place, index)
    if best is None:
        return False
    _, place, index_or_none = best
    chosen = nodes.own(place)
    chosen.free_cpu -= allocation.cpu
    chosen.free_memory -= allocation.memory
    chosen.held[stage.name] = chosen.held.get(stage.name, 0) + 1
    if index_or_none is not None and rate is not None:
        card_of_it = chosen.gpus[index_or_none]
        card_of_it.free_milli -= rate.milli
        card_of_it.free_memory -= stage.gpu_memory
        card_of_it.held[stage.name] = card_of_it.held.get(stage.name, 0) + 1
    return True


class Cards:
    """What a stage's replicas could have on the cards, at whatever share they are placed.

    All replicas of a stage have one share. Each card offers what is free plus what this stage holds there. The worst is assumed of
    what others decide: replicas that are removed leave the widest card first, new ones go to the fullest card that holds them, as
    packing schedulers place them.

    Args:
        room: What is free and held.
        stage: Whose replicas.
        allocation: What they have now.
    """

    def __init__(self, room: ClusterRoom, stage: StageView, allocation: Allocation) -> None:
        self._own = allocation.gpu_rate.milli if allocation.gpu_rate else 0
        self._now = allocation.replicas
        self._limit = stage.limits.gpu_milli_max
        each = max(1, stage.gpu_memory)
        self._places = _Places(
            _Place(number, card.free_milli, card.held.get(stage.name, 0), card.free_memory // each)
            for number, card in enumerate(card for node in room.nodes for card in node.gpus)
        )

    def highest_rate(self, replicas: Sequence[int], share_milli: int | None = None) -> list[int]:
        """Highest share per replica, in thousandths, that the cards would allow if the stage had so many replicas.

        Bounded by the stage's own maximum; 0 where no card has room for that many.

        Args:
            replicas: The numbers asked for.
            share_milli: The share at which new replicas are placed, those that are there having been moved to it; None: the present one.
        """
        share = self._own if share_milli is None else share_milli
        places = self._places.touched(share, self._own - share, max([self._now, *replicas]))
        return _reach(places, share, replicas, self._limit, self._now)


def highest_rate(
    room: ClusterRoom, stage: StageView, allocation: Allocation, replicas: Sequence[int], share_milli: int | None = None
) -> list[int]:
    """The same, asked once."""
    return Cards(room, stage, allocation).highest_rate(replicas, share_milli)


def highest_cpu(room: ClusterRoom, stage: StageView, allocation: Allocation, replicas: Sequence[int]) -> list[int]:
    """The same for CPU, in millicores per replica over the nodes."""
    now, each = allocation.replicas, max(1, allocation.memory)
    nodes = _Places(
        _Place(number, node.free_cpu, node.held.get(stage.name, 0), node.free_memory // each)
        for number, node in enumerate(room.nodes)
    )
    places = nodes.touched(allocation.cpu, 0, max([now, *replicas]))
    return _reach(places, allocation.cpu, replicas, stage.limits.cpu_max, now)


@dataclass(slots=True)
class _Place:
    """A card or node: what is free, replicas of the stage there, and how many more its memory holds."""

    number: int
    free: int
    held: int
    more: int


class _Places:
    """All cards or nodes. Those that hold no replica of the stage are sorted, for of them only the first few ever matter."""

    def __init__(self, places: Iterable[_Place]) -> None:
        self._held: list[_Place] = []
        self._others: list[_Place] = []
        for place in places:
            if place.held:
                self._held.append(place)
            elif place.more > 0:
                self._others.append(place)
        self._others.sort(key=_free)

    def touched(self, share: int, moved: int, most: int) -> list[_Place]:
        """Copies of those that hold replicas or get any of ``most`` new ones, in their own order.

        Args:
            share: What a new replica takes.
            moved: What each replica that is there gives back.
            most: So many others at most.
        """
        first = bisect_left(self._others, share, key=_free)
        found = [_Place(p.number, p.free + p.held * moved, p.held, p.more) for p in self._held]
        found += [_Place(p.number, p.free, 0, p.more) for p in self._others[first : first + most]]
        found.sort(key=_number)
        return found


_free, _number = attrgetter("free"), attrgetter("number")


def _reach(places: list[_Place], own: int, replicas: Sequence[int], limit: int, now: int) -> list[int]:
    """What each replica could have in the tightest place, for each wanted number of replicas."""

    def tightest() -> int:
        least = limit
        for place in places:
            if place.held and place.free // place.held + own < least:
                least = place.free // place.held + own
        return max(0, least)

    def add() -> bool:
        fullest: _Place | None = None
        for place in places:
            if place.free >= own and place.more > 0 and (fullest is None or place.free < fullest.free):
                fullest = place
        if fullest is None:
            return False
        fullest.free -= own
        fullest.held += 1
        fullest.more -= 1
        return True

    # Replicas that are wished but placed nowhere yet will be placed like new ones.
    fits = all(add() for _ in range(max(0, now - sum(place.held for place in places))))
    start = [(place.free, place.held, place.more) for place in places]
    reach = {now: tightest() if fits else 0}
    for count in range(now + 1, max(replicas, default=now) + 1):
        fits = fits and add()
        reach[count] = tightest() if fits else 0
    for place, (free, held, more) in zip(places, start, strict=True):
        place.free, place.held, place.more = free, held, more
    for count in range(now - 1, min(replicas, default=now) - 1, -1):
        holding = [place for place in places if place.held]
        if holding:
            widest = max(holding, key=lambda place: place.free // place.held)
            widest.free += own
            widest.held -= 1
        reach[count] = tightest()
    return [reach.get(count, limit) for count in replicas]
