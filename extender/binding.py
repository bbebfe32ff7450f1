"""Binding a pod: the ledger decides GPU and share and charges them, then one atomic call makes node, GPU and share true together."""

from __future__ import annotations

from collections.abc import Callable

from extender.entries import BindFailed, BindUnsure, PodGone, PodSeen, Refusal
from extender.granting import Granter
from extender.ledger import Ledger
from extender.replica import Replica, parse_replica
from extender.wire import BindingArgs
from sair.annotations import GPU_GRANTED, GPU_INDEX, GPU_RATE
from sair.errors import Conflict, NotFound, PermanentError, SairError, TemporaryError
from sair.kube import binding
from sair.kube.client import Api
from sair.kube.resources import PODS

__all__ = ["Binder"]

_ATTEMPTS = 3
"""A pod changes between decision and bind when its conditions are written or its wish is patched: seldom twice in a row."""


class Binder:
    """Answers the scheduler's bind requests.

    Args:
        api: Client.
        ledger: Decides; its ``assume`` is the one point through which all binds pass, one at a time.
        granter: Tells the ledger.
        known: Gives a pod as the watch last told it, by ``namespace/name``.
        monotonic: Local time in seconds, the ledger's clock.
    """

    def __init__(
        self,
        api: Api,
        ledger: Ledger,
        granter: Granter,
        known: Callable[[str], Replica | None],
        monotonic: Callable[[], float],
    ) -> None:
        self._api = api
        self._ledger = ledger
        self._granter = granter
        self._known = known
        self._monotonic = monotonic

    async def bind(self, args: BindingArgs) -> str | None:
        """Bind a pod to the node that the scheduler chose.

        Args:
            args: Pod and node.

        Returns:
            None if the pod is bound there now, otherwise why not; the scheduler tries again later.
        """
        try:
            replica = self._known(f"{args.pod_namespace}/{args.pod_name}")
            if replica is None or replica.uid != args.pod_uid:
                replica = parse_replica(await self._api.get(PODS.path(args.pod_namespace, args.pod_name)))
            if replica.uid != args.pod_uid:
                return f"pod {replica.key} is another one by now"
            for _ in range(_ATTEMPTS):
                if replica.node is not None:
                    # An earlier attempt got through although its answer was lost.
                    return (
                        None
                        if replica.node == args.node
                        else f"pod {replica.key} is bound to node {replica.node} already"
                    )
                try:
                    return await self._attempt(replica, args.node)
                except Conflict:
                    now = await self._granter.read(replica)
                    self._granter.tell(BindFailed(replica.uid))
                    if now is None:
                        return f"pod {replica.key} is gone"
                    replica = now
        except SairError as error:
            return str(error)
        return f"pod {replica.key} changed {_ATTEMPTS} times while it was being bound"

    async def _attempt(self, replica: Replica, node: str) -> str | None:
        if not replica.wants_gpu:
            await binding.bind(self._api, replica.namespace, replica.name, node, {}, uid=replica.uid)
            return None
        self._granter.tell(PodSeen(replica))
        decision = self._ledger.assume(replica.uid, node, self._monotonic())
        if isinstance(decision, Refusal):
            return decision.reason
        # The wish may be newer than the pod's own.
        share = str(decision.rate)
        annotations = {GPU_INDEX: str(decision.index), GPU_RATE: share, GPU_GRANTED: share}
        version = str(decision.replica.version)
        try:
            await binding.bind(
                self._api, replica.namespace, replica.name, node, annotations, uid=replica.uid, resource_version=version
            )
        except Conflict:
            raise
        except NotFound:
            self._granter.tell(PodGone(replica.uid))
            raise
        except PermanentError:
            self._granter.tell(BindFailed(replica.uid))
            raise
        except TemporaryError:
            self._granter.tell(BindUnsure(replica.uid))
            raise
        return None
