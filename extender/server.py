"""The scheduler's side: /filter, /prioritize and /bind over loopback HTTP."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from extender.binding import Binder
from extender.filtering import Filtered, filter_nodes
from extender.ledger import Ledger
from extender.metrics import Metrics
from extender.packing import Need
from extender.replica import Replica, parse_replica
from extender.scoring import score
from extender.wire import BindingArgs, BindingResult, ExtenderArgs, FilterResult, HostPriority
from sair.errors import WireError
from sair.logs import get_logger
from sair.serving import new_application
from sair.wire import decode, encode

__all__ = ["Answers", "extender_application"]

_NO_NAMES = "the extender answers by node name only: set nodeCacheCapable: true in the scheduler's configuration"

_LOG = get_logger("extender")


class Answers:
    """Answers filter and prioritize from the ledger.

    Args:
        ledger: Knows what is free.
        catch_up: Waits until the watch knows a pod as the scheduler does.
        headroom_milli: As in packing.
    """

    def __init__(self, ledger: Ledger, catch_up: Callable[[Replica], Awaitable[None]], headroom_milli: int) -> None:
        self._ledger = ledger
        self._catch_up = catch_up
        self._headroom_milli = headroom_milli

    async def filter(self, args: ExtenderArgs) -> FilterResult:
        """Say which nodes can take the pod; all of them if it wants no GPU."""
        if args.node_names is None:
            return FilterResult(error=_NO_NAMES)
        asked = parse_replica(args.pod)
        if not asked.wants_gpu:
            return FilterResult(node_names=args.node_names)
        await self._catch_up(asked)
        need = Need.of(replica := self._newest(asked))
        if need is None:
            problem = replica.problem or "no share of a GPU is stated"
            return FilterResult(node_names=[], failed_and_unresolvable_nodes=dict.fromkeys(args.node_names, problem))
        reason = self._ledger.why_not_granting()
        if reason is not None:
            return FilterResult(error=reason)
        filtered: Filtered = filter_nodes(args.node_names, need, self._ledger.cards)
        return FilterResult(
            node_names=filtered.nodes, failed_nodes=filtered.failed, failed_and_unresolvable_nodes=filtered.unresolvable
        )

    def prioritize(self, args: ExtenderArgs) -> list[HostPriority]:
        """Score nodes for the pod; all alike if it wants no GPU."""
        names = args.node_names or []
        need = Need.of(self._newest(parse_replica(args.pod)))
        if need is None:
            return [HostPriority(host=name, score=0) for name in names]
        return [
            HostPriority(host=name, score=score(self._ledger.cards(name), need, self._headroom_milli)) for name in names
        ]

    def _newest(self, asked: Replica) -> Replica:
        """The pod as the watch knows it, if that is newer than what the scheduler sent, with what its stage is wished to have."""
        known = self._ledger.replica(asked.uid)
        return self._ledger.wished(known if known is not None and known.version > asked.version else asked)


def extender_application(answers: Answers, binder: Binder, metrics: Metrics) -> web.Application:
    """Make the application that kube-scheduler calls.

    A malformed request gets status 400, which the scheduler reports as a failed attempt.
    """

    async def filter_(request: web.Request) -> web.Response:
        began_s = time.monotonic()
        result = await answers.filter(decode(await request.read(), ExtenderArgs, what="ExtenderArgs"))
        outcome = "error" if result.error else "fits" if result.node_names else "does not fit"
        return _answer(result, "filter", outcome, began_s)

    async def prioritize(request: web.Request) -> web.Response:
        began_s = time.monotonic()
        result = answers.prioritize(decode(await request.read(), ExtenderArgs, what="ExtenderArgs"))
        return _answer(result, "prioritize", "scored", began_s)

    async def bind(request: web.Request) -> web.Response:
        began_s = time.monotonic()
        args = decode(await request.read(), BindingArgs, what="ExtenderBindingArgs")
        error = await binder.bind(args)
        if error is not None:
            _LOG.warning("not bound", pod=f"{args.pod_namespace}/{args.pod_name}", node=args.node, error=error)
        return _answer(BindingResult(error=error or ""), "bind", "error" if error else "bound", began_s)

    def _answer(result: object, verb: str, outcome: str, began_s: float) -> web.Response:
        metrics.requests_s.labels(verb, outcome).observe(time.monotonic() - began_s)
        return web.Response(body=encode(result), content_type="application/json")

    app = new_application()
    app.middlewares.append(_refuse_malformed)
    app.add_routes([web.post("/filter", filter_), web.post("/prioritize", prioritize), web.post("/bind", bind)])
    return app


@web.middleware
async def _refuse_malformed(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except WireError as error:
        _LOG.warning("malformed request", path=request.path, error=str(error))
        return web.Response(status=400, text=f"{error}\n")
