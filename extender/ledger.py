"""The one ledger of GPU shares: a pure fold over what watches, reads and answers tell, and over the binds it decides itself.

What a card is charged for a replica is the most that may be in force: the share granted on the pod, or a raise or bind on its way that
has been decided and may yet turn out to have been written. So the sum over a card is at most 1 (unless others than this ledger grant, or
a card shrinks), at every moment and in whatever order things become known:

* Every write carries the pod's version as precondition. A newer version of the pod therefore settles it: the write either shows in that
  version or can never happen.
* A lowering is ordered at once; the share it frees counts as free when it is written.
* A raise is ordered if it fits. If not it waits, first come first served per card, and what it lacks is kept from new replicas.
* What a replica is to have is what its Pipeline says for its stage, or its own annotation where that says nothing. A wish is nothing
  but a difference between this and what is granted, so no failure can lose it.
* A grant is written together with the wish it grants, in one change of the pod: kubelet is slow to show a second one soon after the
  first. A wish is written alone only where it must wait, for everybody to see; not while a neighbour is just giving its share up.

Longer than 400 lines, in one module: every rule above holds because all of them change one state in one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from extender.account import Account, Claim
from extender.card import Card, CardView, NodeCards, Seat
from extender.entries import (
    Assumption,
    BindFailed,
    BindUnsure,
    CardProblem,
    Entry,
    GrantFailed,
    Granting,
    LookedUp,
    LookUp,
    NodeGone,
    NodeSeen,
    NodesListed,
    Order,
    Outcome,
    PodGone,
    PodSeen,
    PodsListed,
    Refusal,
    Report,
    Tick,
    WishesListed,
    WishesSeen,
    WriteGrant,
    WriteWish,
)
from extender.filtering import describe
from extender.packing import Need, choose
from extender.pod import Flight, Pod
from extender.reasons import why_never, why_not_bind, why_queued, why_unseated, why_waiting
from extender.replica import Replica
from extender.wishes import Wishes
from sair.quantities import GpuRate

__all__ = ["Ledger"]

_REMEMBER_GONE_S = 600.0
"""How long a deleted pod's late answers are recognised as such; requests live for 60 s."""


class Ledger:
    """See the module. ``fold`` is told what happened and returns what is to be done; ``assume`` decides a bind.

    Args:
        headroom_milli: Thousandths of a card that placement likes to leave free for raises.
        unresolved_s: Age of an unanswered write at which a look-up is ordered, in seconds.
    """

    def __init__(self, *, headroom_milli: int = 100, unresolved_s: float = 120.0) -> None:
        self._headroom_milli = headroom_milli
        self._unresolved_s = unresolved_s
        self._pods: dict[str, Pod] = {}
        self._assumed: dict[str, Assumption] = {}
        self._looked_up_s: dict[str, float] = {}
        self._gone_s: dict[str, float] = {}
        self._accounts: dict[str, dict[int, Account]] = {}
        self._seats: dict[str, set[Seat]] = {}
        self._views: dict[str, tuple[CardView, ...]] = {}
        self._dirty: set[Seat] = set()
        self._unseated: set[str] = set()
        self._wishes = Wishes()
        self._newest = 0
        self._active = self._pods_listed = self._nodes_listed = self._wishes_listed = False

    def fold(self, entry: Entry, now: float) -> list[Order]:
        """Take one entry in.

        Args:
            entry: What happened. Telling it twice, late, or after what it led to does no harm.
            now: Seconds on a monotonic clock.

        Returns:
            What is to be done now; nothing while this extender is not the one that grants.
        """
        orders: list[Order] = []
        match entry:
            case PodSeen(replica):
                self._see(replica)
            case PodGone(uid):
                self._forget(uid, now)
            case PodsListed(uids, version):
                self._keep_only(uids, version, now)
            case NodeSeen(node):
                self._take_stock(node)
            case NodeGone(name):
                self._take_stock(NodeCards(name))
            case WishesSeen(wishes):
                self._wish(self._wishes.take(wishes))
            case NodesListed() | WishesListed():
                self._nodes_listed |= isinstance(entry, NodesListed)
                self._wishes_listed |= isinstance(entry, WishesListed)
                self._touch_all()
            case Granting(active):
                self._active = active
                self._touch_all()
            case BindFailed(uid) | BindUnsure(uid):
                self._bind_answered(uid, sure=isinstance(entry, BindFailed))
            case GrantFailed(uid):
                self._repeat(uid)
            case LookedUp(uid, version):
                self._resolve(uid, version)
            case Tick():
                orders.extend(self._overdue(now))
        self._settle(now, orders)
        return orders

    def assume(self, uid: str, node: str, now: float) -> Assumption | Refusal:
        """Decide to bind a pod, and charge for it from now on. The pod must have been told as PodSeen.

        Args:
            uid: Of the pod.
            node: Where the scheduler wants it.
            now: Seconds on a monotonic clock.

        Returns:
            GPU and share to bind it with, provided it is still at the version of the replica returned; or why it cannot be bound now.
        """
        pod = self._pods.get(uid)
        refusal = self.why_not_granting() or why_not_bind(pod.replica if pod else None)
        if refusal is not None or pod is None or (rate := pod.desired) is None:
            return Refusal(refusal or "the pod wants no GPU")
        replica, need = pod.replica, Need(rate.milli, pod.replica.memory, pod.replica.stage_key)
        earlier = self._assumed.get(uid)
        if earlier is not None and earlier.node != node:
            return Refusal(f"whether an earlier attempt bound the pod to node {earlier.node} is not known yet")
        if earlier is not None:
            self._assumed[uid] = replace(earlier, since_s=now)
            return self._assumed[uid]
        cards = self.cards(node)
        best = choose(cards, need, self._headroom_milli)
        if best is None:
            return Refusal(describe(cards, need) if cards else f"no GPU known on node {node}")
        self._assumed[uid] = Assumption(replica, node, best.card, rate, now)
        self._place(uid)
        return self._assumed[uid]

    def cards(self, node: str) -> Sequence[CardView]:
        """What is left on each GPU of a node, by index; none for an unknown node."""
        views = self._views.get(node)
        if views is None:
            accounts = self._accounts.get(node, {})
            views = tuple(view for index in sorted(accounts) if (view := accounts[index].view()) is not None)
            self._views[node] = views
        return views

    def why_not_granting(self) -> str | None:
        """Say why nothing can be granted or bound now; None if it can."""
        if not (self._pods_listed and self._nodes_listed and self._wishes_listed):
            return "the GPU ledger is still being rebuilt from the cluster's annotations"
        return None if self._active else "this extender's scheduler does not hold the Lease"

    def accounts(self) -> Iterator[Account]:
        """Every card's account, for metrics and checks; not to be changed."""
        for by_index in self._accounts.values():
            yield from by_index.values()

    def waiting(self) -> list[Replica]:
        """Replicas whose raise has not been ordered yet, the longest-waiting first."""
        waiting = [
            pod
            for pod in self._pods.values()
            if pod.turn is not None and (pod.flight is None or pod.flight.grant is None)
        ]
        return [pod.replica for pod in sorted(waiting, key=lambda pod: pod.place)]

    def replica(self, uid: str) -> Replica | None:
        """A pod as the ledger last saw it."""
        pod = self._pods.get(uid)
        return pod.replica if pod else None

    def wished(self, replica: Replica) -> Replica:
        """The replica with what it is to have as its desired share: its stage's wish goes before its annotation."""
        return replace(replica, desired=self._wishes.desired(replica))

    # What is told.

    def _see(self, replica: Replica) -> None:
        uid = replica.uid
        pod = self._pods.get(uid)
        if uid in self._gone_s or (pod is not None and replica.version <= pod.replica.version):
            return
        if pod is None:
            if not replica.wants_gpu and not replica.holds_gpu:
                return
            pod = self._pods[uid] = Pod(replica)
            self._wishes.join(replica)
        elif pod.replica.stage_key != replica.stage_key:
            self._wishes.leave(pod.replica)
            self._wishes.join(replica)
        pod.replica = replica
        self._newest = max(self._newest, replica.version)
        # All writes were conditional on an older version: what of them does not show in this one never happens.
        pod.flight = None
        self._assumed.pop(uid, None)
        self._wish((uid,))

    def _wish(self, uids: Iterable[str]) -> None:
        for uid in uids:
            pod = self._pods[uid]
            pod.wish(self._wishes.desired(pod.replica), self._newest)
            self._place(uid)

    def _forget(self, uid: str, now: float) -> None:
        self._gone_s[uid] = now
        pod = self._pods.pop(uid, None)
        if pod is not None:
            self._wishes.leave(pod.replica)
        self._assumed.pop(uid, None)
        self._looked_up_s.pop(uid, None)
        self._place(uid)

    def _keep_only(self, uids: frozenset[str], version: int, now: float) -> None:
        self._newest = max(self._newest, version)
        if not self._pods_listed:
            # Wishes that had not been written onto their pods queue up behind all that had.
            for pod in self._pods.values():
                pod.turn = None
            self._wish(self._pods)
        self._pods_listed = True
        for uid in [uid for uid, pod in self._pods.items() if uid not in uids and pod.replica.version <= version]:
            self._forget(uid, now)
        self._touch_all()

    def _take_stock(self, node: NodeCards) -> None:
        accounts = self._accounts.setdefault(node.node, {})
        for index in accounts.keys() | set(range(len(node.cards))):
            card: Card | None = node.cards[index] if index < len(node.cards) else None
            accounts.setdefault(index, Account((node.node, index))).card = card
            self._touch((node.node, index))

    def _bind_answered(self, uid: str, *, sure: bool) -> None:
        assumption = self._assumed.get(uid)
        if assumption is None or (sure and assumption.unsure):
            return
        if sure:
            del self._assumed[uid]
        else:
            self._assumed[uid] = replace(assumption, unsure=True)
        self._place(uid)

    def _repeat(self, uid: str) -> None:
        pod = self._pods.get(uid)
        if pod is not None and pod.flight is not None:
            pod.flight.repeat = True
            self._place(uid)

    def _overdue(self, now: float) -> Iterator[Order]:
        for uid in [uid for uid, gone_s in self._gone_s.items() if now - gone_s > _REMEMBER_GONE_S]:
            del self._gone_s[uid]
        pending = {uid: pod.flight.since_s for uid, pod in self._pods.items() if pod.flight is not None}
        pending |= {uid: assumption.since_s for uid, assumption in self._assumed.items()}
        for uid, since_s in pending.items():
            if now - max(since_s, self._looked_up_s.get(uid, since_s)) > self._unresolved_s:
                self._looked_up_s[uid] = now
                yield LookUp(self._pods[uid].replica)

    def _resolve(self, uid: str, version: int) -> None:
        asked_s = self._looked_up_s.pop(uid, None)
        pod = self._pods.get(uid)
        if asked_s is None or pod is None or version != pod.replica.version:
            return
        if pod.flight is not None and asked_s - pod.flight.since_s > self._unresolved_s:
            pod.flight = None
        assumption = self._assumed.get(uid)
        if assumption is not None and asked_s - assumption.since_s > self._unresolved_s:
            del self._assumed[uid]
        self._place(uid)

    # What is charged.

    def _place(self, uid: str) -> None:
        claims: dict[Seat, Claim] = {}
        pod = self._pods.get(uid)
        if pod is not None and pod.replica.seat is not None and pod.most is not None:
            claims[pod.replica.seat] = Claim(pod.most.milli, pod.replica.memory, pod.replica.stage_key)
        assumption = self._assumed.get(uid)
        if assumption is not None:
            seat = (assumption.node, assumption.index)
            claims[seat] = Claim(assumption.rate.milli, assumption.replica.memory, assumption.replica.stage_key)
        before = self._seats.pop(uid, set())
        for seat in before - claims.keys():
            self._account(seat).claims.pop(uid, None)
        for seat, claim in claims.items():
            self._account(seat).claims[uid] = claim
        if claims:
            self._seats[uid] = set(claims)
        elif pod is not None:
            self._unseated.add(uid)
        for seat in before | claims.keys():
            self._touch(seat)

    def _account(self, seat: Seat) -> Account:
        return self._accounts.setdefault(seat[0], {}).setdefault(seat[1], Account(seat))

    def _touch(self, seat: Seat) -> None:
        self._dirty.add(seat)
        self._views.pop(seat[0], None)

    def _touch_all(self) -> None:
        for account in self.accounts():
            self._touch(account.seat)
        self._unseated.update(uid for uid in self._pods if uid not in self._seats)

    # What is ordered.

    def _settle(self, now: float, orders: list[Order]) -> None:
        granting = self.why_not_granting() is None
        dirty, self._dirty = self._dirty, set()
        for seat in sorted(dirty):
            self._settle_card(self._account(seat), now, granting, orders)
        unseated, self._unseated = self._unseated, set()
        for uid in sorted(unseated if granting else ()):
            pod = self._pods.get(uid)
            if pod is not None and uid not in self._seats and pod.replica.node is not None and not pod.replica.ended:
                self._tell(pod, Outcome.REFUSED, why_unseated(pod.replica), orders)

    def _settle_card(self, account: Account, now: float, granting: bool, orders: list[Order]) -> None:
        pods = [
            self._pods[uid]
            for uid in account.claims
            if uid in self._pods and self._pods[uid].replica.seat == account.seat
        ]
        if granting:
            for pod in pods:
                self._lower_or_repeat(pod, now, orders)
            waiting = sorted((pod for pod in pods if pod.turn is not None), key=lambda pod: pod.place)
            self._raise_in_turn(waiting, account, any(pod.is_giving_up for pod in pods), now, orders)
            trouble = account.trouble()
            if trouble != account.problem:
                account.problem = trouble
                orders.append(CardProblem(*account.seat, trouble))
        account.wished_milli = sum(pod.lacks_milli(account) for pod in pods)
        self._views.pop(account.seat[0], None)
        self._dirty.discard(account.seat)
        if account.card is None and not account.claims:
            node, index = account.seat
            del self._accounts[node][index]
            if not self._accounts[node]:
                del self._accounts[node]

    def _lower_or_repeat(self, pod: Pod, now: float, orders: list[Order]) -> None:
        replica, flight = pod.replica, pod.flight
        if replica.problem is not None:
            self._tell(pod, Outcome.REFUSED, replica.problem, orders)
        if flight is not None and flight.repeat and flight.grant is not None:
            self._order(pod, flight.grant, now, orders)
        elif flight is not None and flight.repeat:
            pod.flight = None  # a wish charges nothing: it is decided anew
        if pod.flight is not None or pod.desired is None or replica.granted is None:
            return
        if pod.desired < replica.granted:
            self._order(pod, pod.desired, now, orders)
        elif pod.desired == replica.granted:
            self._show(pod, now, orders)

    def _raise_in_turn(
        self, pods: list[Pod], account: Account, room_is_coming: bool, now: float, orders: list[Order]
    ) -> None:
        first: Pod | None = None
        for pod in pods:
            wished, lacks_milli = pod.wished, pod.lacks_milli(account)
            if pod.desired is None or lacks_milli == 0:
                continue
            refusal = why_never(wished, account)
            if refusal is not None:
                self._tell(pod, Outcome.REFUSED, refusal, orders)
                self._show(pod, now, orders)
                continue
            if first is None and pod.flight is None and lacks_milli <= account.room_milli:
                self._order(pod, pod.desired, now, orders)
                continue
            if pod.flight is None and not room_is_coming:
                why = why_waiting(wished, account, lacks_milli) if first is None else why_queued(wished, first.replica)
                self._tell(pod, Outcome.WAITING, why, orders)
                self._show(pod, now, orders)
            first = first or pod

    def _show(self, pod: Pod, now: float, orders: list[Order]) -> None:
        """Have a pod's annotation say what it is to have, if it does not."""
        if pod.flight is None and pod.desired is not None and pod.desired != pod.replica.desired:
            pod.flight = Flight(None, now)
            orders.append(WriteWish(pod.replica, pod.desired))

    def _order(self, pod: Pod, grant: GpuRate, now: float, orders: list[Order]) -> None:
        pod.flight = Flight(grant, now)
        pod.told = ""
        self._place(pod.replica.uid)
        orders.append(WriteGrant(pod.replica, grant))

    def _tell(self, pod: Pod, outcome: Outcome, text: str, orders: list[Order]) -> None:
        # What is free changes with every neighbour's move: a wish is reported once per outcome and desired share.
        what = f"{outcome} {pod.desired}"
        if pod.told != what:
            pod.told = what
            orders.append(Report(pod.wished, outcome, text))
