"""The ledger against a cluster that delays, repeats, reorders and loses whatever it can: never more than a GPU, never a lost wish."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from extender.card import NodeCards
from extender.entries import (
    Assumption,
    BindFailed,
    BindUnsure,
    Entry,
    GrantFailed,
    Granting,
    LookedUp,
    LookUp,
    NodeGone,
    NodeSeen,
    NodesListed,
    Order,
    PodGone,
    PodSeen,
    PodsListed,
    Tick,
    WishesListed,
    WishesSeen,
    WriteGrant,
    WriteWish,
)
from extender.ledger import Ledger
from extender.replica import Replica
from sair.quantities import GpuRate
from tests.extender.builders import MEMORY, node_cards, replica, wished

NODES = ("n", "m")
STAGES = ("detect", "rank")
RATES = st.sampled_from([200, 300, 500, 700])
UNRESOLVED_S = 120.0
Seat = tuple[str, int]


@dataclass
class Write:
    """A request on its way to the API server; it takes effect at most once, and only at the version it was made for."""

    uid: str
    version: int
    rate: GpuRate
    seat: tuple[str, int] | None
    """None: something on a live pod; else a bind."""
    grants: bool = True
    """Or a wish alone is written."""
    at_s: float = 0.0


class Cluster(RuleBasedStateMachine):
    """The API server's truth, what of it the ledger has been told, and requests in between."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.version = 1
        self.truth: dict[str, Replica] = {}
        self.names = 0
        self.cards: dict[str, NodeCards] = {node: node_cards(node, 1) for node in NODES}
        self.wishes: dict[str, int] = {}
        """Thousandths, by stage."""
        self.untold: list[Entry] = []
        """The watch of pods and nodes: in order, and late."""
        self.untold_wishes: list[WishesSeen] = []
        """The watch of Pipelines: in order, and late."""
        self.told: list[Entry] = []
        self.writes: list[Write] = []
        self.look_ups: list[Replica] = []
        self.active = True
        self.ledger = self._start()

    def _start(self) -> Ledger:
        ledger = Ledger(unresolved_s=UNRESOLVED_S)
        self.untold, self.told, self.writes, self.look_ups, self.untold_wishes = [], [], [], [], []
        entries: list[Entry] = [NodeSeen(node) for node in self.cards.values()]
        entries += [PodSeen(pod) for pod in self.truth.values()]
        entries += [PodsListed(frozenset(self.truth), self.version), NodesListed()]
        entries += [wished(**self.wishes), WishesListed(), Granting(self.active)]
        self.ledger = ledger
        for entry in entries:
            self._tell(entry)
        return ledger

    def _tell(self, entry: Entry) -> None:
        self._obey(self.ledger.fold(entry, self.now))

    def _obey(self, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case WriteGrant(pod, rate) | WriteWish(pod, rate):
                    assert self.active
                    assert pod.desired is not None
                    alone = isinstance(order, WriteWish)
                    self.writes.append(Write(pod.uid, pod.version, rate, None, not alone, self.now))
                case LookUp(pod):
                    self.look_ups.append(pod)

    def _change(self, pod: Replica) -> None:
        self.version += 1
        pod = replace(pod, version=self.version)
        self.truth[pod.uid] = pod
        self.untold.append(PodSeen(pod))

    def _read(self, uid: str) -> int | None:
        pod = self.truth.get(uid)
        self._tell(PodGone(uid) if pod is None else PodSeen(pod))
        return None if pod is None else pod.version

    def _take_effect(self, write: Write) -> bool:
        pod = self.truth.get(write.uid)
        if pod is None or pod.version != write.version or (write.seat is not None and pod.node is not None):
            return False
        changed = replace(pod, desired=write.rate, granted=write.rate if write.grants else pod.granted)
        if write.seat is not None:
            changed = replace(changed, node=write.seat[0], index=write.seat[1])
        self._change(changed)
        return True

    def _tell_all(self) -> None:
        while self.untold:
            self.told.append(self.untold[0])
            self._tell(self.untold.pop(0))

    def _assume(self, uid: str, node: str) -> bool:
        decision = self.ledger.assume(uid, node, self.now)
        if isinstance(decision, Assumption):
            seat = (decision.node, decision.index)
            self.writes.append(Write(uid, decision.replica.version, decision.rate, seat, at_s=self.now))
        return isinstance(decision, Assumption)

    def _some(self, data: st.DataObject, *, bound: bool | None = None) -> Replica | None:
        pods = [pod for pod in self.truth.values() if bound is None or (pod.node is not None) is bound]
        return data.draw(st.sampled_from(sorted(pods, key=lambda pod: pod.uid))) if pods else None

    # What users, the controller and the kubelets do.

    @initialize(rates=st.lists(RATES, min_size=2, max_size=5))
    def begin_with_some_load(self, rates: list[int]) -> None:
        for rate in rates:
            self.create(rate, "n", memory=0)

    @precondition(lambda self: len(self.truth) < 7)
    @rule(rate=RATES, node=st.sampled_from([*NODES, None]), memory=st.sampled_from([0, 0, 6_000]))
    def create(self, rate: int, node: str | None, memory: int) -> None:
        """Create a pod; with a node it is told and bound smoothly, so that cards are not empty."""
        self.names += 1
        uid = f"p{self.names}"
        self._change(replica(uid, rate, memory=memory, stage=STAGES[self.names % 2]))
        if node is not None:
            self._tell_all()
            if self._assume(uid, node):
                self._take_effect(self.writes.pop())

    @rule(data=st.data(), rates=st.lists(RATES, min_size=1, max_size=3), told=st.booleans())
    def wish(self, data: st.DataObject, rates: list[int], told: bool) -> None:
        for rate in rates:
            pod = self._some(data, bound=True)
            if pod is not None:
                self._change(replace(pod, desired=GpuRate(rate)))
                if told:
                    self._tell_all()

    @rule(stage=st.sampled_from(STAGES), rates=st.lists(st.one_of(st.none(), RATES), min_size=1, max_size=3))
    def wish_for_a_stage(self, stage: str, rates: list[int | None]) -> None:
        for rate in rates:
            self.wishes = {name: milli for name, milli in self.wishes.items() if name != stage}
            if rate is not None:
                self.wishes[stage] = rate
            self.untold_wishes.append(wished(**self.wishes))

    @precondition(lambda self: self.untold_wishes)
    @rule()
    def tell_of_wishes(self) -> None:
        self._tell(self.untold_wishes.pop(0))

    @rule(data=st.data(), what=st.sampled_from(["touch", "touch", "end", "delete"]))
    def meddle(self, data: st.DataObject, what: str) -> None:
        pod = self._some(data, bound=True if what == "end" else None)
        if pod is None:
            return
        if what != "delete":
            self._change(replace(pod, ended=pod.ended or what == "end"))
            return
        self.version += 1
        del self.truth[pod.uid]
        self.untold.append(PodGone(pod.uid))

    # What the scheduler does.

    @rule(data=st.data(), node=st.sampled_from(NODES))
    def bind(self, data: st.DataObject, node: str) -> None:
        pod = self._some(data, bound=False)
        if pod is None:
            return
        if data.draw(st.booleans()):
            self._read(pod.uid)
        self._assume(pod.uid, node)

    # What networks do.

    @precondition(lambda self: self.untold)
    @rule(count=st.integers(1, 5))
    def tell(self, count: int) -> None:
        for entry in self.untold[:count]:
            self.told.append(entry)
            self._tell(entry)
        self.untold = self.untold[count:]

    @precondition(lambda self: self.told)
    @rule(data=st.data())
    def repeat_old_news(self, data: st.DataObject) -> None:
        # Nodes have no versions in the ledger: their watch is one stream, in order.
        old = [entry for entry in self.told[-10:] if isinstance(entry, PodSeen | PodGone)]
        if old:
            self._tell(data.draw(st.sampled_from(old)))

    @precondition(lambda self: self.writes)
    @rule(data=st.data(), answer=st.sampled_from(["told", "lost"]), lost_request=st.booleans())
    def deliver(self, data: st.DataObject, answer: str, lost_request: bool) -> None:
        write = self.writes.pop(data.draw(st.integers(0, len(self.writes) - 1)))
        happened = not (lost_request and answer != "told") and self._take_effect(write)
        if answer == "told":
            self._answer(write, happened)
        elif write.seat is not None:
            self._tell(BindUnsure(write.uid))
        elif self._read(write.uid) is not None:
            self._tell(GrantFailed(write.uid))

    @precondition(lambda self: self.writes)
    @rule(data=st.data())
    def give_up_waiting_while_it_is_still_on_its_way(self, data: st.DataObject) -> None:
        write = data.draw(st.sampled_from(self.writes))
        if write.seat is not None:
            self._tell(BindUnsure(write.uid))
        elif self._read(write.uid) is not None:
            self._tell(GrantFailed(write.uid))

    def _answer(self, write: Write, happened: bool) -> None:
        if happened and write.seat is None:
            self._tell(PodSeen(self.truth[write.uid]))
        elif not happened:
            self._read(write.uid)
            self._tell(BindFailed(write.uid) if write.seat else GrantFailed(write.uid))

    @rule(data=st.data(), what=st.sampled_from(["relist", "wait", "wait long", "lead", "restart", "inventory"]))
    def upset(self, data: st.DataObject, what: str) -> None:
        match what:
            case "relist":
                self._relist()
            case "wait" | "wait long":
                self._wait(130.0 if what == "wait long" else 1.0)
            case "lead":
                self._lead(data.draw(st.sampled_from([True, True, True, False])))
            case "restart":
                self._restart({number for number in range(len(self.writes)) if data.draw(st.booleans())})
            case _:
                # Memory stays: that a card shrank below what its replicas hold is a test of its own.
                node, count = data.draw(st.sampled_from(NODES)), data.draw(st.sampled_from([1, 1, 1, 0]))
                self.cards[node] = node_cards(node, count)
                self.untold.append(NodeSeen(self.cards[node]) if count else NodeGone(node))

    def _relist(self) -> None:
        self.untold = [entry for entry in self.untold if isinstance(entry, NodeSeen | NodeGone)]
        for pod in list(self.truth.values()):
            self._tell(PodSeen(pod))
        self._tell(PodsListed(frozenset(self.truth), self.version))
        self.untold_wishes = []
        self._tell(wished(**self.wishes))

    def _wait(self, seconds: float) -> None:
        self.now += seconds
        # The API server ends a request after 60 s.
        self.writes = [write for write in self.writes if self.now - write.at_s < 60]
        self._tell(Tick())

    def _lead(self, active: bool) -> None:
        self.active = active
        self._tell(Granting(active))

    def _restart(self, arrived: set[int]) -> None:
        for number, write in enumerate(self.writes):
            if number in arrived:
                self._take_effect(write)
        self._start()

    @precondition(lambda self: self.look_ups)
    @rule()
    def look_up(self) -> None:
        pod = self.look_ups.pop(0)
        version = self._read(pod.uid)
        if version is not None:
            self._tell(LookedUp(pod.uid, version))

    # What must hold.

    def _held(self) -> Iterator[tuple[Seat, list[Replica]]]:
        seats: dict[Seat, list[Replica]] = {}
        for pod in self.truth.values():
            if pod.seat is not None and pod.granted is not None:
                seats.setdefault(pod.seat, []).append(pod)
        yield from seats.items()

    @invariant()
    def no_card_is_over_full(self) -> None:
        for seat, pods in self._held():
            assert sum(pod.granted.milli for pod in pods if pod.granted) <= 1000, (seat, pods)
            assert sum(pod.memory for pod in pods) <= MEMORY, (seat, pods)

    @invariant()
    def no_card_can_become_over_full_whatever_still_arrives(self) -> None:
        worst: dict[Seat, dict[str, int]] = {}
        for seat, pods in self._held():
            worst[seat] = {pod.uid: pod.granted.milli for pod in pods if pod.granted}
        for write in self.writes:
            pod = self.truth.get(write.uid)
            where = (pod.seat or write.seat) if pod is not None else None
            if pod is not None and where is not None and pod.version == write.version and write.grants:
                shares = worst.setdefault(where, {})
                shares[write.uid] = max(write.rate.milli, shares.get(write.uid, 0))
        for seat, shares in worst.items():
            assert sum(shares.values()) <= 1000, (seat, shares)

    @invariant()
    def the_ledger_charges_at_least_what_is_true(self) -> None:
        charged = {account.seat: account for account in self.ledger.accounts()}
        for account in charged.values():
            assert account.share_milli <= 1000
            assert account.memory_mi <= MEMORY
        unseen = {entry.replica.uid for entry in self.untold if isinstance(entry, PodSeen)}
        for seat, pods in self._held():
            for pod in pods:
                if pod.uid not in unseen and pod.granted is not None:
                    assert charged[seat].claims[pod.uid].milli >= pod.granted.milli

    def teardown(self) -> None:
        """Let everything arrive: then each wish that fits is granted, and what is not granted truly waits for room."""
        if not self.active:
            self._lead(True)
        self._come_to_rest()
        held = [pod for _, pods in self._held() for pod in pods]
        if held:
            # The largest leaves, and nothing else happens that might remind the ledger of the wishes beside it.
            largest = max(held, key=lambda pod: (pod.granted or GpuRate(1), pod.uid))
            del self.truth[largest.uid]
            self.version += 1
            self.untold.append(PodGone(largest.uid))
            self._come_to_rest()

    def _come_to_rest(self) -> None:
        for _ in range(1000):
            if self.untold:
                self._tell(self.untold.pop(0))
            elif self.untold_wishes:
                self.tell_of_wishes()
            elif self.writes:
                write = self.writes.pop(0)
                self._answer(write, self._take_effect(write))
            elif self.look_ups:
                self.look_up()
            elif any(
                claim.milli and not self._is_true(uid)
                for account in self.ledger.accounts()
                for uid, claim in account.claims.items()
            ):
                self._wait(2 * UNRESOLVED_S)
            else:
                break
        else:
            raise AssertionError("it never comes to rest")
        self.no_card_is_over_full()
        self.nothing_is_charged_without_reason()
        self.no_wish_is_lost()

    def _is_true(self, uid: str) -> bool:
        pod = self.truth.get(uid)
        return pod is not None and pod.seat is not None and not self._in_flight(uid)

    def _in_flight(self, uid: str) -> bool:
        """Whether the ledger charges for more than what is granted."""
        granted = self.truth[uid].granted
        claims = [account.claims[uid].milli for account in self.ledger.accounts() if uid in account.claims]
        return granted is not None and claims != [granted.milli]

    def nothing_is_charged_without_reason(self) -> None:
        true = {(seat, pod.uid): pod.granted.milli for seat, pods in self._held() for pod in pods if pod.granted}
        charged = {
            (account.seat, uid): claim.milli
            for account in self.ledger.accounts()
            for uid, claim in account.claims.items()
        }
        assert charged == true

    def no_wish_is_lost(self) -> None:
        waiting = [pod.uid for pod in self.ledger.waiting()]
        for (node, index), pods in self._held():
            free = 1000 - sum(pod.granted.milli for pod in pods if pod.granted)
            wishes = []
            for pod in pods:
                assert pod.granted is not None
                assert pod.desired is not None
                due = self.wishes.get(pod.stage, pod.desired.milli)
                assert pod.desired.milli == due, "what is wished for a stage shows on its pods"
                assert pod.granted <= pod.desired, "a lowering is always granted"
                if pod.granted < pod.desired:
                    assert pod.uid in waiting
                    wishes.append((waiting.index(pod.uid), pod.desired.milli - pod.granted.milli))
            if index < len(self.cards[node].cards) and wishes:
                assert min(wishes)[1] > free, "the first in the queue would fit"


# Cut off in the middle by the usual limit, a run on a busy machine would be told, and shrunk for minutes, as a failure of the ledger.
Cluster.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestAnyOrder = pytest.mark.timeout(900)(Cluster.TestCase)
