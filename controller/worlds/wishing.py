"""Changing a Pipeline's status: there stands what stages are wished to have, the extender grants it, the webhook gives it to new pods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec.structs import replace

from controller.discovery import Found
from sair.errors import Conflict
from sair.kube.client import Api
from sair.kube.patch import apply_status
from sair.kube.resources import PIPELINES
from sair.pipeline import Pipeline, PipelineStatus, StageStatus, parse_pipeline
from sair.quantities import GpuRate
from sair.wire import to_builtins

__all__ = ["change_status", "write_rates"]

_ATTEMPTS: Final = 5
"""Others write a Pipeline seldom: its author, and this controller at the end of a round."""


async def change_status(
    api: Api, key: str, change: Callable[[Pipeline], PipelineStatus], *, component: str
) -> Pipeline:
    """Replace a Pipeline's status by one made from the Pipeline as it is at that moment, so that no two writers undo each other.

    Args:
        api: Client.
        key: ``namespace/name``.
        change: Gives the new status; called again if somebody else wrote meanwhile. The same status is not written.
        component: Who writes the status, all of it.

    Returns:
        The Pipeline that the status was made from.

    Raises:
        NotFound: If there is no such Pipeline (yet).
        Conflict: If others write it all the time.
        ApiUnavailable: If no answer came.
    """
    namespace, name = key.split("/")
    for attempt in range(_ATTEMPTS):
        current = parse_pipeline(await api.get(PIPELINES.path(namespace, name)))
        status = change(current)
        if status == current.status:
            return current
        version = current.metadata.resource_version
        try:
            await apply_status(
                api, PIPELINES, namespace, name, to_builtins(status), component=component, resource_version=version
            )
        except Conflict:
            if attempt == _ATTEMPTS - 1:
                raise
        else:
            break
    return current


async def write_rates(api: Api, found: Found, rates: Mapping[str, GpuRate], *, component: str) -> None:
    """Change the shares in a Pipeline's status and leave everything else in it as it is.

    Args:
        api: Client.
        found: The pipeline, scaled automatically.
        rates: By stage; stages that are not named keep theirs.
        component: Who writes the status, all of it.

    Raises:
        NotFound: If there is no Pipeline object (yet).
        Conflict: If others write it all the time.
        ApiUnavailable: If no answer came.
    """
    await change_status(
        api, found.view.key, lambda current: _with_rates(current.status, found, rates), component=component
    )


def _with_rates(status: PipelineStatus, found: Found, rates: Mapping[str, GpuRate]) -> PipelineStatus:
    known = {stage.name: stage for stage in status.stages}
    stages = []
    for view in found.view.stages:
        stage = known.get(view.name) or StageStatus(name=view.name, after=view.after)
        rate = rates.get(view.name)
        stages.append(stage if rate is None else replace(stage, gpu_rate=str(rate)))
    # Wishes count in this mode alone, and the status may be older than it.
    return replace(status, stages=tuple(stages), mode=found.view.mode)
