"""What the controller asks of a cluster: shares for stages, CPU on live pods, replicas; and that pods which come later get the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from controller.cluster import PodState, Workload
from controller.discovery import Found
from controller.pods import PodIndex
from controller.state import Allocation, KnobOutcome, Limits
from controller.worlds.standing import Standing, given_cpu, is_given
from controller.worlds.wishing import write_rates
from sair.errors import ApiUnavailable, Conflict, InvalidInput, NotFound, PermanentError
from sair.kube.client import Api
from sair.kube.patch import resize_cpu, scale
from sair.kube.resources import DEPLOYMENTS, STATEFULSETS
from sair.quantities import GpuRate, Millicores, cpu_limit_beside, parse_cpu

__all__ = ["COMPONENT", "Actuator"]

COMPONENT: Final = "controller"

_POLL_S: Final = 0.05
_AT_ONCE: Final = 16

Knob = Literal["gpu_rate", "cpu"]


@dataclass(slots=True)
class _Asked:
    """One knob of one stage that was asked for, for all its pods."""

    stage: str
    knob: Knob
    wished: int
    """Thousandths of a GPU or of a core."""
    uids: set[str] = field(default_factory=set)
    """Pods that took the wish."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why, by uid."""
    unreachable: ApiUnavailable | None = None


class Actuator:
    """Acts for one term of leadership and remembers what it wished, from the Pipelines' status on.

    Args:
        api: Client.
        pods: All pods.
        newest: Gives the newest copy of a workload.
        now: The world's time, seconds.
        may_act: Whether this process leads at this moment.
        wait_s: How long grants, resizes and places for replicas are waited for before what is missing is recorded as such.
    """

    def __init__(
        self,
        api: Api,
        pods: PodIndex,
        newest: Callable[[Workload], Workload],
        now: Callable[[], float],
        *,
        may_act: Callable[[], bool] = lambda: True,
        wait_s: float = 2.0,
    ) -> None:
        self._api = api
        self._pods = pods
        self._newest = newest
        self._now = now
        self._may_act = may_act
        self._wait_s = wait_s
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._rates: dict[tuple[str, str], GpuRate] = {}
        self._cpus: dict[tuple[str, str], Millicores | None] = {}
        """None: nothing is wished, whatever the status says."""
        self._refused: set[tuple[str, Knob, int]] = set()
        """By uid: what a pod refused for good is not asked for again and again."""

    def wished_rate(self, found: Found, stage: str) -> GpuRate | None:
        """The share that replicas of a stage are to have; None where nobody but the user sets it."""
        view = found.view.stage(stage)
        if found.view.mode != "auto" or view is None or not view.uses_gpu:
            return None
        rate = self._rates.get((found.view.key, stage)) or _stated(found, stage)
        return (
            None if rate is None else GpuRate(_within(rate.milli, view.limits.gpu_milli_min, view.limits.gpu_milli_max))
        )

    def wished_cpu(self, found: Found, stage: str) -> Millicores | None:
        """The CPU request that replicas of a stage are to have; None if the controller never changed it."""
        view, place = found.view.stage(stage), (found.view.key, stage)
        if found.view.mode != "auto" or view is None:
            return None
        cpu = self._cpus[place] if place in self._cpus else _stated_cpu(found, stage)
        limits: Limits = view.limits
        return None if cpu is None else Millicores(_within(cpu, limits.cpu_min, limits.cpu_max))

    def keep_cpu(self, found: Found, stages: Iterable[str]) -> None:
        """Go on wishing for the CPU that is wished for now, though the Pipeline's status is about to name more, until pods take that."""
        for stage in stages:
            self._cpus.setdefault((found.view.key, stage), self.wished_cpu(found, stage))

    def forget(self, keys: set[str]) -> None:
        """Keep the wishes of these pipelines only, and what live pods refused."""
        self._rates = {place: rate for place, rate in self._rates.items() if place[0] in keys}
        self._cpus = {place: cpu for place, cpu in self._cpus.items() if place[0] in keys}
        if self._refused:
            uids = {pod.uid for key in keys for pod in self._pods.of(key).values()}
            self._refused = {each for each in self._refused if each[0] in uids}

    async def apply(
        self,
        found: Found,
        stages: Mapping[str, Standing],
        base: Mapping[str, Allocation],
        wanted: Mapping[str, Allocation],
    ) -> list[KnobOutcome]:
        """Ask for allocations: shares and CPU of live pods first, because they take effect at once, replicas last.

        Args:
            found: The pipeline.
            stages: As they stand now.
            base: What the wishes are relative to: knobs in which ``wanted`` does not differ are left alone.
            wanted: By stage.

        Raises:
            ApiUnavailable: If nothing could be asked for.
        """
        outcomes: list[KnobOutcome] = []
        rates = {
            name: want.gpu_rate
            for name, want in wanted.items()
            if want.gpu_rate is not None and want.gpu_rate != base[name].gpu_rate
        }
        asked = await self._ask_rates(found, stages, rates) if rates else []
        for name, want in wanted.items():
            if want.cpu != base[name].cpu:
                asked.append(await self._ask_cpu(found, stages[name], want.cpu))
        key = found.view.key
        await self._until(lambda: self._have_taken(key, [each for each in asked if each.unreachable is None]))
        outcomes += [self._outcome(key, each, stages[each.stage]) for each in asked]
        unreachable = [each.unreachable for each in asked if each.unreachable is not None]
        for name, want in wanted.items():
            if want.memory != base[name].memory:
                refused = "memory is not changed on live pods"
                outcomes.append(KnobOutcome(name, "memory", want.memory, base[name].memory, refused))
        scaled = []
        for name, want in wanted.items():
            if want.replicas != base[name].replicas:
                outcome, error = await self._replicas(stages[name], want.replicas)
                scaled.append(outcome)
                unreachable += [error] if error else []
        rises = [each for each in scaled if not each.reason and each.wished > base[each.stage].replicas]
        await self._until(lambda: all(_has_come(self._as_it_stands(key, stages[each.stage]), each) for each in rises))
        outcomes += [self._come(key, stages[each.stage], each) if each in rises else each for each in scaled]
        if unreachable and len(unreachable) == len(outcomes):
            raise unreachable[0]
        return outcomes

    async def settle(self, found: Found, stages: Mapping[str, Standing]) -> int:
        """Have the Pipeline say what is wished for, and pods that came since get the CPU the stage's replicas were given.

        Shares need no more than that: the webhook gives them to new pods, the extender to all others.

        Returns:
            How many things were changed.

        Raises:
            ApiUnavailable: If the API server cannot be reached.
        """
        rates = {name: rate for name in stages if (rate := self.wished_rate(found, name)) is not None}
        changed = sum(_stated(found, name) != rate for name, rate in rates.items())
        if changed:
            self._require_leadership()
            await write_rates(self._api, found, rates, component=COMPONENT)
        for name, stage in stages.items():
            cpu = self.wished_cpu(found, name)
            if cpu is None:
                continue
            others = [pod for pod in stage.pods if pod.container_cpu != cpu]
            asked = await self._on_pods(_Asked(name, "cpu", cpu), others, cpu)
            if asked.unreachable is not None:
                raise asked.unreachable
            if stage.pods and len(asked.refused) == len(stage.pods):
                # An earlier leader announced it and nobody took it: those that come would be refused as well.
                self._cpus[found.view.key, name] = _had(stage)
            changed += len(asked.uids)
        return changed

    async def _ask_rates(
        self, found: Found, stages: Mapping[str, Standing], rates: Mapping[str, GpuRate]
    ) -> list[_Asked]:
        """Write all stages' shares into the Pipeline's status at once, from where the extender grants them."""
        before = {name: self._rates.get((found.view.key, name)) for name in rates}
        # Before the write: whoever writes the status meanwhile must not take it back.
        self._rates |= {(found.view.key, name): rate for name, rate in rates.items()}
        asked = [_Asked(name, "gpu_rate", rate.milli) for name, rate in rates.items()]
        try:
            self._require_leadership()
            await write_rates(self._api, found, rates, component=COMPONENT)
        except (PermanentError, Conflict, ApiUnavailable) as error:
            for each in asked:
                each.refused = {pod.uid: str(error) for pod in stages[each.stage].pods}
                each.unreachable = error if isinstance(error, ApiUnavailable) else None
                _restore(self._rates, (found.view.key, each.stage), before[each.stage])
        else:
            for each in asked:
                each.uids = {pod.uid for pod in stages[each.stage].pods}
        return asked

    async def _ask_cpu(self, found: Found, stage: Standing, cpu: Millicores) -> _Asked:
        place, before = (found.view.key, stage.name), self.wished_cpu(found, stage.name)
        self._cpus[place] = cpu
        asked = await self._on_pods(_Asked(stage.name, "cpu", cpu), stage.pods, cpu)
        if asked.unreachable is not None or (stage.pods and not asked.uids):
            # Nobody took it, so those that come would not either, or would differ from those that are there.
            self._cpus[place] = _had(stage) if before == cpu else before
        return asked

    async def _on_pods(self, asked: _Asked, pods: Iterable[PodState], cpu: Millicores) -> _Asked:
        """Resize all pods; unreachable is set only if none took it and the API server was the reason."""
        unreachable: ApiUnavailable | None = None

        async def one(pod: PodState) -> None:
            nonlocal unreachable
            if (pod.uid, asked.knob, asked.wished) in self._refused:
                asked.refused[pod.uid] = "refused before"
                return
            try:
                async with self._slots:
                    self._require_leadership()
                    await self._patch_cpu(pod, cpu)
            except (NotFound, Conflict):
                return  # it is gone: nothing to change
            except PermanentError as error:
                self._refused.add((pod.uid, asked.knob, asked.wished))
                asked.refused[pod.uid] = str(error)
            except ApiUnavailable as error:
                unreachable = error
                asked.refused[pod.uid] = str(error)
            else:
                asked.uids.add(pod.uid)

        await asyncio.gather(*(one(pod) for pod in pods))
        asked.unreachable = None if asked.uids else unreachable
        return asked

    async def _patch_cpu(self, pod: PodState, cpu: Millicores) -> None:
        await resize_cpu(
            self._api,
            pod.namespace,
            pod.name,
            container=pod.container,
            request=cpu,
            limit=cpu_limit_beside(cpu, was=pod.container_cpu, limit=pod.container_limit),
            component=COMPONENT,
            uid=pod.uid,
        )

    async def _replicas(self, stage: Standing, replicas: int) -> tuple[KnobOutcome, ApiUnavailable | None]:
        workload = stage.workload
        resource = DEPLOYMENTS if workload.kind == "Deployment" else STATEFULSETS
        try:
            self._require_leadership()
            await scale(
                self._api,
                resource,
                workload.namespace,
                workload.name,
                replicas,
                component=COMPONENT,
                uid=workload.uid,
            )
        except (PermanentError, Conflict, ApiUnavailable) as error:
            outcome = KnobOutcome(stage.name, "replicas", replicas, workload.replicas, str(error))
            return outcome, error if isinstance(error, ApiUnavailable) else None
        return KnobOutcome(stage.name, "replicas", replicas, replicas), None

    async def _until(self, done: Callable[[], bool]) -> None:
        """Wait, but only briefly: for the extender's grants, the nodes' resizes, the scheduler's bindings."""
        deadline = self._now() + self._wait_s
        while not done() and self._now() < deadline:  # noqa: ASYNC110  # what is waited for happens in the cluster
            await asyncio.sleep(_POLL_S)

    def _have_taken(self, key: str, asked: list[_Asked]) -> bool:
        pods = {pod.uid: pod for pod in self._pods.of(key).values() if pod.alive}
        return all(_is_settled(pods[uid], each) for each in asked for uid in each.uids if uid in pods)

    def _as_it_stands(self, key: str, stage: Standing) -> Standing:
        pods = tuple(pod for pod in self._pods.of(key).values() if pod.alive and pod.stage == stage.name)
        return replace(stage, workload=self._newest(stage.workload), pods=pods)

    def _come(self, key: str, stage: Standing, outcome: KnobOutcome) -> KnobOutcome:
        """What became of more replicas; those of which nothing is known yet are on their way."""
        now = self._as_it_stands(key, stage)
        if not now.absent or now.workload.replicas != outcome.wished:
            return outcome
        reason = f"{len(now.absent)} of {outcome.wished} replicas: {now.absent[-1]}"
        return replace(outcome, granted=outcome.wished - len(now.absent), reason=reason)

    def _outcome(self, key: str, asked: _Asked, stage: Standing) -> KnobOutcome:
        pods = {pod.uid: pod for pod in self._pods.of(key).values() if pod.alive}
        mine = [
            pods[pod.uid]
            for pod in stage.pods
            if pod.uid in pods and (pod.uid in asked.uids or pod.uid in asked.refused)
        ]
        has: list[int] = []
        missing = dict(asked.refused)
        for pod in mine:
            if asked.knob == "gpu_rate":
                has.append(pod.granted.milli if pod.granted else 0 if pod.node else asked.wished)
                if pod.uid in asked.uids and not _is_settled(pod, asked):
                    missing[pod.uid] = "no share granted yet"
            elif pod.uid in asked.refused or pod.resize_problem:
                has.append(given_cpu(pod))
                missing.setdefault(pod.uid, pod.resize_problem)
            elif not _is_settled(pod, asked):
                has.append(given_cpu(pod))
                missing[pod.uid] = "the node has not resized it yet"
            else:
                has.append(asked.wished)
        if not missing:
            return KnobOutcome(asked.stage, asked.knob, asked.wished, asked.wished)
        reason = f"{len(missing)} of {len(mine)} replicas: {next(iter(missing.values()))}"
        # The one that is furthest from what was wished.
        return KnobOutcome(
            asked.stage, asked.knob, asked.wished, max(has, key=lambda one: abs(one - asked.wished), default=0), reason
        )

    def _require_leadership(self) -> None:
        if not self._may_act():
            raise ApiUnavailable("another controller leads now")


def _has_come(stage: Standing, outcome: KnobOutcome) -> bool:
    """Every replica has its place, or it is known why not."""
    placed = sum(pod.node is not None for pod in stage.pods)
    return stage.workload.replicas == outcome.wished and placed + len(stage.absent) >= outcome.wished


def _is_settled(pod: PodState, asked: _Asked) -> bool:
    if pod.node is None:
        return True  # it is granted its share when it is placed
    if asked.knob == "gpu_rate":
        return pod.granted is not None and pod.granted.milli == asked.wished
    return is_given(pod, Millicores(asked.wished)) or bool(pod.resize_problem)


def _stated(found: Found, stage: str) -> GpuRate | None:
    """The share that the Pipeline's status names for a stage."""
    status = found.status.stage(stage)
    try:
        return GpuRate.parse(status.gpu_rate) if status is not None and status.gpu_rate is not None else None
    except InvalidInput:
        return None


def _stated_cpu(found: Found, stage: str) -> Millicores | None:
    """The CPU that the Pipeline's status names for a stage."""
    status = found.status.stage(stage)
    try:
        return parse_cpu(status.cpu) if status is not None and status.cpu is not None else None
    except InvalidInput:
        return None


def _had(stage: Standing) -> Millicores | None:
    """What a stage's pods were given beyond what their template says, None if they have that."""
    given: Millicores = max((pod.container_cpu for pod in stage.pods), default=stage.workload.cpu)
    return None if given == stage.workload.cpu else given


def _within(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def _restore(wishes: dict[tuple[str, str], GpuRate], place: tuple[str, str], before: GpuRate | None) -> None:
    if before is None:
        wishes.pop(place, None)
    else:
        wishes[place] = before
