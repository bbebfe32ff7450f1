"""What the cluster can hold: whether an action fits, and how high a stage's knobs could go where its replicas are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controller.state import Action, Allocation, ClusterRoom, PipelineView, StageView, project

__all__ = ["highest_cpu", "highest_rate", "misfit"]


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
    cards: list[_Card]


def _copy(room: ClusterRoom) -> list[_Node]:
    return [
        _Node(
            node.free_cpu,
            node.free_memory,
            dict(node.held),
            [_Card(card.free_milli, card.free_memory, dict(card.held)) for card in node.gpus],
        )
        for node in room.nodes
    ]


def misfit(view: PipelineView, allocations: Mapping[str, Allocation], action: Action, room: ClusterRoom) -> str | None:
    """Why the cluster cannot hold an action, None if it can.

    Releases happen first, then replicas that stay are resized where they are, then new replicas go wherever there is most room,
    the largest first. What is wished but was never placed (held nowhere) takes no room here.
    """
    if not any(delta.is_up for delta in action.deltas):
        return None
    nodes = _copy(room)
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


def _resize(nodes: list[_Node], stage: StageView, before: Allocation, after: Allocation, leaving: int) -> str | None:
    gpu_before = before.gpu_rate.milli if before.gpu_rate else 0
    gpu = (after.gpu_rate.milli if after.gpu_rate else 0) - gpu_before
    for _ in range(-leaving):
        _release(nodes, stage, before)
    for node in nodes:
        count = node.held.get(stage.name, 0)
        node.free_cpu -= count * (after.cpu - before.cpu)
        node.free_memory -= count * (after.memory - before.memory)
        if count and after.cpu > before.cpu and node.free_cpu < 0:
            return f"a node lacks {-node.free_cpu}m CPU for {stage.name} at {after.cpu}m"
        if count and after.memory > before.memory and node.free_memory < 0:
            return f"a node lacks {-node.free_memory}Mi memory for {stage.name} at {after.memory}Mi"
        for card in node.cards:
            count = card.held.get(stage.name, 0)
            card.free_milli -= count * gpu
            if count and gpu > 0 and card.free_milli < 0:
                return f"a GPU lacks {-card.free_milli / 1000:g} for {stage.name} at {after.gpu_rate}"
    return None


def _release(nodes: list[_Node], stage: StageView, allocation: Allocation) -> None:
    """Give back one replica, where it makes the most room."""
    holding = [node for node in nodes if node.held.get(stage.name, 0)]
    if not holding:
        return
    node = min(holding, key=lambda each: each.free_cpu)
    node.held[stage.name] -= 1
    node.free_cpu += allocation.cpu
    node.free_memory += allocation.memory
    cards = [card for card in node.cards if card.held.get(stage.name, 0)]
    if allocation.gpu_rate and cards:
        card = min(cards, key=lambda each: each.free_milli)
        card.held[stage.name] -= 1
        card.free_milli += allocation.gpu_rate.milli
        card.free_memory += stage.gpu_memory


def _place(nodes: list[_Node], stage: StageView, allocation: Allocation) -> bool:
    best: tuple[int, _Node, _Card | None] | None = None
    for node in nodes:
        if node.free_cpu < allocation.cpu or node.free_memory < allocation.memory:
            continue
        if allocation.gpu_rate is None:
            if best is None or node.free_cpu > best[0]:
                best = (node.free_cpu, node, None)
            continue
        for card in node.cards:
            if card.free_milli < allocation.gpu_rate.milli or card.free_memory < stage.gpu_memory:
                continue
            if best is None or card.free_milli > best[0]:
                best = (card.free_milli, node, card)
    if best is None:
        return False
    _, node, card_or_none = best
    node.free_cpu -= allocation.cpu
    node.free_memory -= allocation.memory
    node.held[stage.name] = node.held.get(stage.name, 0) + 1
    if card_or_none is not None and allocation.gpu_rate is not None:
        card_or_none.free_milli -= allocation.gpu_rate.milli
        card_or_none.free_memory -= stage.gpu_memory
        card_or_none.held[stage.name] = card_or_none.held.get(stage.name, 0) + 1
    return True


def highest_rate(
    room: ClusterRoom, stage: StageView, allocation: Allocation, replicas: Sequence[int], share_milli: int | None = None
) -> list[int]:
    """Highest share per replica, in thousandths, that the cards would allow if the stage had this many replicas.

    All replicas of a stage have one share. Each card offers what is free plus what this stage holds there. The worst is assumed of
    what others decide: replicas that are removed leave the widest card first, new ones go to the fullest card that holds them, as
    packing schedulers place them. Bounded by the stage's own maximum; 0 where no card has room for that many.

    Args:
        room: What is free and held.
        stage: Whose replicas.
        allocation: What they have now.
        replicas: The numbers asked for.
        share_milli: The share at which new replicas are placed, those that are there having been moved to it; None: the present one.
    """
    own = allocation.gpu_rate.milli if allocation.gpu_rate else 0
    share = own if share_milli is None else share_milli
    cards = [
        _Place(
            card.free_milli + card.held.get(stage.name, 0) * (own - share),
            card.held.get(stage.name, 0),
            card.free_memory // max(1, stage.gpu_memory),
        )
        for node in room.nodes
        for card in node.gpus
    ]
    return _reach(cards, share, replicas, stage.limits.gpu_milli_max, allocation.replicas)


def highest_cpu(room: ClusterRoom, stage: StageView, allocation: Allocation, replicas: Sequence[int]) -> list[int]:
    """The same for CPU, in millicores per replica over the nodes."""
    nodes = [
        _Place(node.free_cpu, node.held.get(stage.name, 0), node.free_memory // max(1, allocation.memory))
        for node in room.nodes
    ]
    return _reach(nodes, allocation.cpu, replicas, stage.limits.cpu_max, allocation.replicas)


@dataclass(slots=True)
class _Place:
    """A card or node: what is free, replicas of the stage there, and how many more its memory holds."""

    free: int
    held: int
    more: int


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
