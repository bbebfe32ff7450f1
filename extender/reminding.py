"""A second change of a pod some time after its grant, for a kubelet that did not take up the first.

Kubelet writes downward-API files when it looks at a pod: at each change of it and else once in a minute or more. Now and then a
change does not reach the files at once (probably one that arrives while they are being written), and the container's share
stays what it was until the next look: measured, twice in a few hundred grants, by up to 87 s. The reminder is such a look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from extender.replica import Replica
from sair.annotations import GPU_GRANTED_AT
from sair.errors import Conflict, NotFound, SairError
from sair.kube.client import Api
from sair.kube.patch import merge_patch_annotations
from sair.kube.resources import PODS
from sair.logs import get_logger

__all__ = ["Reminder"]


class Reminder:
    """Writes onto pods when they were granted their share.

    Args:
        api: Client.
        component: Whose change it is, for the pod's managed fields and the log.
        after_s: Seconds from a grant to its reminder.
        utc: Wall-clock time in UTC.
    """

    def __init__(self, api: Api, component: str, *, after_s: float, utc: Callable[[], datetime]) -> None:
        self._api = api
        self._component = component
        self._after_s = after_s
        self._utc = utc
        self._newest: dict[str, object] = {}

    async def remind(self, replica: Replica) -> None:
        """Wait, and write when ``replica`` was granted its share, which is now; nothing where it is granted another meanwhile.

        A reminder that fails is not repeated: kubelet looks by itself, later.
        """
        granted_at, mine = self._utc(), object()
        self._newest[replica.uid] = mine
        await asyncio.sleep(self._after_s)
        if self._newest.get(replica.uid) is not mine:
            return
        del self._newest[replica.uid]
        annotations = {GPU_GRANTED_AT: granted_at.isoformat(timespec="milliseconds")}
        try:
            await merge_patch_annotations(
                self._api,
                PODS,
                replica.namespace,
                replica.name,
                annotations,
                component=self._component,
                uid=replica.uid,
            )
        except (NotFound, Conflict):
            pass  # the pod is gone, and perhaps another one has its name
        except SairError as error:
            get_logger(self._component).warning("kubelet not reminded of a grant", pod=replica.key, error=str(error))
