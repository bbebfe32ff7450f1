"""What the extender's decisions cost, and how full its placement gets GPUs: ``python -m benchmarks.extender [--quick]``.

Times are medians of CPU time in one process, without HTTP and without the API server: they are what the ledger itself adds to a
scheduling cycle. Packing quality is the share of all GPUs that is granted when the first replica finds no room, over random arrivals.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from extender.card import Card, CardView, NodeCards
from extender.entries import Assumption, Granting, NodeSeen, NodesListed, PodSeen, PodsListed, WishesListed
from extender.filtering import filter_nodes
from extender.ledger import Ledger
from extender.packing import Need, fits
from extender.packing import choose as packing_choose
from extender.replica import Replica
from extender.scoring import score
from extender.wire import ExtenderArgs, FilterResult, HostPriority
from sair.quantities import GpuRate, Mebibytes
from sair.wire import decode, encode

GPUS_PER_NODE = 8
MEMORY_MI = 81_920
HEADROOM_MILLI = 100
RATES_MILLI = (100, 150, 200, 250, 300, 350, 400, 500)


@dataclass(frozen=True, slots=True)
class Costs:
    """Medians at one size, in microseconds."""

    nodes: int
    pods: int
    rebuild_us: float
    """The whole ledger from its annotations, once."""
    filter_us: float
    prioritize_us: float
    wire_us: float
    """Reading both requests and writing both answers as JSON."""
    assume_us: float
    confirm_us: float
    """The watch event of a pod just bound."""
    raise_us: float
    """The watch event of a patched wish, up to the order to write it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two sizes and few repetitions")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    sizes, repetitions, runs = ((10, 100), 30, 5) if options.quick else ((10, 100, 1000), 200, 40)
    costs = [measure(nodes, repetitions, random.Random(options.seed)) for nodes in sizes]
    quality = {name: fill(choose, runs, options.seed) for name, choose in POLICIES.items()}
    if options.json:
        rows = [{field: getattr(row, field) for field in row.__slots__} for row in costs]
        json.dump({"costs": rows, "first_refusal_at": quality}, sys.stdout, indent=1)
        return
    heads = (
        "nodes",
        "pods",
        "rebuild ms",
        "filter µs",
        "prioritize µs",
        "JSON µs",
        "assume µs",
        "confirm µs",
        "raise µs",
    )
    print(" ".join(f"{head:>{width}}" for head, width in zip(heads, (6, 7, 11, 10, 14, 8, 10, 11, 9), strict=True)))
    for row in costs:
        print(
            f"{row.nodes:>6} {row.pods:>7} {row.rebuild_us / 1000:>11.1f} {row.filter_us:>10.0f} {row.prioritize_us:>14.0f} "
            f"{row.wire_us:>8.0f} {row.assume_us:>10.1f} {row.confirm_us:>11.1f} {row.raise_us:>9.1f}"
        )
    print(
        "\nshare of 32 GPUs granted when the first replica is refused (mean, and half the width of its 95 % interval)"
    )
    for name, values in quality.items():
        half = 1.96 * statistics.stdev(values) / len(values) ** 0.5
        print(f"{name:>28}: {statistics.mean(values):.3f} ± {half:.3f}")


def measure(nodes: int, repetitions: int, rng: random.Random) -> Costs:
    """Measure one size: GPUs about two thirds full, 2 to 4 replicas on each."""
    names = [f"node-{number:04d}" for number in range(nodes)]
    pods = list(_population(names, rng))
    began_s = time.thread_time()
    ledger = _ledger(names, pods)
    rebuild_us = (time.thread_time() - began_s) * 1e6
    pending = [_replica(f"new-{number}", 100, len(pods) + number + 1) for number in range(repetitions)]
    need = Need(100, 4096, pending[0].stage_key)
    raised = rng.sample(pods, min(repetitions, len(pods)))
    body = encode({"Pod": {"metadata": {"name": "a", "namespace": "b"}, "spec": {}}, "NodeNames": names})
    version = [10_000_000]
    decisions: list[Assumption] = []

    def assume(replica: Replica) -> None:
        # Spread, so that every one of them finds room.
        decision = ledger.assume(replica.uid, names[replica.version % nodes], 0.0)
        assert isinstance(decision, Assumption)
        decisions.append(decision)

    def confirm(decision: Assumption) -> None:
        version[0] += 1
        bound = replace(
            decision.replica, version=version[0], node=decision.node, index=decision.index, granted=decision.rate
        )
        ledger.fold(PodSeen(bound), 0.0)

    def wish(replica: Replica) -> None:
        version[0] += 1
        assert replica.desired is not None
        ledger.fold(PodSeen(replace(replica, version=version[0], desired=GpuRate(replica.desired.milli + 1))), 0.0)

    filter_us = _median_us(lambda _: filter_nodes(names, need, ledger.cards), range(min(repetitions, 50)))
    prioritize_us = _median_us(
        lambda _: [score(ledger.cards(name), need, HEADROOM_MILLI) for name in names], range(min(repetitions, 50))
    )

    def wire(_: int) -> None:
        decode(body, ExtenderArgs, what="ExtenderArgs")
        encode(FilterResult(node_names=names))
        decode(body, ExtenderArgs, what="ExtenderArgs")
        encode([HostPriority(host=name, score=5) for name in names])

    wire_us = _median_us(wire, range(min(repetitions, 50)))
    for replica in pending:
        ledger.fold(PodSeen(replica), 0.0)
    assume_us = _median_us(assume, pending)
    confirm_us = _median_us(confirm, decisions)
    return Costs(
        nodes, len(pods), rebuild_us, filter_us, prioritize_us, wire_us, assume_us, confirm_us, _median_us(wish, raised)
    )


def fill(choose: Callable[[Sequence[CardView], Need], int | None], runs: int, seed: int) -> list[float]:
    """Let replicas of random stages arrive on four nodes until one is refused; gives the share granted then, per run."""
    shares = []
    for run in range(runs):
        rng = random.Random(seed * 1000 + run)
        names = [f"node-{number}" for number in range(4)]
        free = {name: [1000] * GPUS_PER_NODE for name in names}
        stages: dict[tuple[str, int], dict[str, int]] = {
            (name, index): {} for name in names for index in range(GPUS_PER_NODE)
        }
        granted = 0
        while True:
            stage = rng.randrange(12)
            need = Need(RATES_MILLI[stage % len(RATES_MILLI)], 0, f"stage-{stage}")
            views = {
                name: [_view(index, free[name][index], stages[name, index]) for index in range(GPUS_PER_NODE)]
                for name in names
            }
            ranked = sorted(names, key=lambda name, views=views, need=need: -score(views[name], need, HEADROOM_MILLI))  # type: ignore[misc]
            found = next(((name, index) for name in ranked if (index := choose(views[name], need)) is not None), None)
            if found is None:
                shares.append(granted / (1000 * GPUS_PER_NODE * len(names)))
                break
            name, index = found
            free[name][index] -= need.milli
            stages[found][need.stage_key] = stages[found].get(need.stage_key, 0) + 1
            granted += need.milli
    return shares


def _ours(headroom_milli: int) -> Callable[[Sequence[CardView], Need], int | None]:
    def choose_card(cards: Sequence[CardView], need: Need) -> int | None:
        best = packing_choose(cards, need, headroom_milli)
        return None if best is None else best.card

    return choose_card


def _by(key: Callable[[CardView], float]) -> Callable[[Sequence[CardView], Need], int | None]:
    def choose_card(cards: Sequence[CardView], need: Need) -> int | None:
        best = min((card for card in cards if fits(card, need)), key=key, default=None)
        return None if best is None else best.index

    return choose_card


POLICIES: dict[str, Callable[[Sequence[CardView], Need], int | None]] = {
    "sair (headroom 0.1)": _ours(HEADROOM_MILLI),
    "sair (no headroom)": _ours(0),
    "best fit": _by(lambda card: card.free_milli),
    "first fit": _by(lambda card: card.index),
    "most free": _by(lambda card: -card.free_milli),
}


def _population(names: Iterable[str], rng: random.Random) -> Iterable[Replica]:
    number = 0
    for name in names:
        for index in range(GPUS_PER_NODE):
            for _ in range(rng.randint(2, 4)):
                number += 1
                milli = rng.choice((100, 150, 200))
                pod = _replica(f"pod-{number}", milli, number)
                yield replace(pod, node=name, index=index, granted=GpuRate(milli))


def _replica(uid: str, milli: int, version: int) -> Replica:
    stage = f"stage-{version % 50}"
    return Replica(uid, "default", uid, version, "vision", stage, GpuRate(milli), memory=Mebibytes(4096))


def _view(index: int, free_milli: int, stages: dict[str, int]) -> CardView:
    return CardView(index, Mebibytes(MEMORY_MI), free_milli, Mebibytes(MEMORY_MI), stages=stages)


def _ledger(names: Sequence[str], pods: Sequence[Replica]) -> Ledger:
    ledger = Ledger(headroom_milli=HEADROOM_MILLI)
    for name in names:
        ledger.fold(NodeSeen(NodeCards(name, (Card(memory_mi=MEMORY_MI),) * GPUS_PER_NODE)), 0.0)
    for pod in pods:
        ledger.fold(PodSeen(pod), 0.0)
    ledger.fold(PodsListed(frozenset(pod.uid for pod in pods), len(pods)), 0.0)
    ledger.fold(NodesListed(), 0.0)
    ledger.fold(WishesListed(), 0.0)
    ledger.fold(Granting(True), 0.0)
    return ledger


def _median_us(action: Callable[..., object], over: Iterable[object]) -> float:
    times = []
    for item in over:
        began_s = time.thread_time()
        action(item)
        times.append(time.thread_time() - began_s)
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    main()
