"""From a pod that somebody wants to create to the pod SAIR lets them create, or to the reason why not. Pure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sair import wire
from sair.annotations import (
    CONTAINER,
    GPU_GRANTED,
    GPU_GRANTED_AT,
    GPU_INDEX,
    GPU_RATE,
    INJECTED,
    StageSpec,
    is_opted_in,
    parse_stage,
)
from sair.errors import AnnotationError, InvalidInput, WireError
from sair.pipeline import Pipeline
from sair.quantities import (
    GpuRate,
    Millicores,
    cpu_limit_beside,
    format_millicores,
    parse_cpu,
)
from sair.wishes import stage_wish
from webhook.injection import (
    CAPABILITIES,
    HOOK_CONTAINER,
    PRELOAD,
    RESERVED_PATHS,
    RESERVED_VARIABLES,
    RESERVED_VOLUMES,
    VISIBLE_DEVICES,
    init_container,
    mounts,
    preload,
    variables,
    volumes,
)
from webhook.patch import json_patch
from webhook.review import AdmissionRequest, Container, PodView, Verdict, view_pod
from webhook.settings import WebhookSettings

__all__ = ["Denied", "Mutated", "decide", "mutate", "stamped_cpu", "stamped_rate"]

DEFAULT_SCHEDULER: Final = "default-scheduler"
"""What the API server writes where the user chose no scheduler, before any webhook sees the pod."""

_GRANTS: Final = (GPU_GRANTED, GPU_GRANTED_AT, GPU_INDEX)
_NO_GPU: Final = frozenset(("", "none", "void"))
_VENDOR: Final = "nvidia.com/"


@dataclass(frozen=True, slots=True)
class Mutated:
    """The pod as it shall be created, and what its author should be told."""

    pod: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Denied:
    """Why the pod may not be created."""

    reason: str


def decide(
    request: AdmissionRequest, settings: WebhookSettings, find_pipeline: Callable[[str], Pipeline | None]
) -> Verdict:
    """Answer one request for admission; the same request gets the same answer, dry run or not.

    A pod is changed or refused. A Deployment or StatefulSet is refused if all of its pods would be, so that whoever applies it
    hears of it at once; else it stays as it is.

    Args:
        request: As it came over the wire.
        settings: What to inject.
        find_pipeline: Gives the last known Pipeline by ``namespace/name``, None if there is none.
    """
    if request.creates_pod:
        return _decide_pod(request.object, request.namespace, settings, find_pipeline)
    if request.writes_workload:
        template = wire.field(request.object or {}, "spec", "template")
        verdict = _decide_pod(template, request.namespace, settings, find_pipeline)
        where = f"spec.template of {request.resource.resource} {request.name}"
        # Only its pods are changed: a template that changes by itself would fight with whoever applies it.
        return Verdict(reason=verdict.reason and f"{where}: {verdict.reason}", code=verdict.code)
    return Verdict()


def _decide_pod(
    raw: Any, namespace: str, settings: WebhookSettings, find_pipeline: Callable[[str], Pipeline | None]
) -> Verdict:
    if raw is None:
        return Verdict(reason="request.object: None is not allowed; expected a pod or a pod template", code=400)
    try:
        view = view_pod(raw)
    except WireError as error:
        return Verdict(reason=str(error), code=400)
    if not is_opted_in(view.annotations):
        return Verdict()
    outcome = _outcome(raw, view, namespace, settings, find_pipeline)
    if isinstance(outcome, Denied):
        return Verdict(reason=outcome.reason)
    return Verdict(patch=json_patch(raw, outcome.pod), warnings=outcome.warnings)


def _outcome(
    raw: dict[str, Any],
    view: PodView,
    namespace: str,
    settings: WebhookSettings,
    find_pipeline: Callable[[str], Pipeline | None],
) -> Mutated | Denied:
    try:
        spec = parse_stage(view.annotations)
    except AnnotationError as error:
        return Denied(str(error))
    return mutate(raw, view, spec, settings, find_pipeline(f"{namespace}/{spec.pipeline}"))


def mutate(
    raw: dict[str, Any], view: PodView, spec: StageSpec, settings: WebhookSettings, pipeline: Pipeline | None
) -> Mutated | Denied:
    """Turn an annotated pod into the one to create; the argument is not changed, and a second pass changes nothing more.

    A stage without a GPU rate keeps its scheduler and gets no hook: only its annotations are put in order.

    Args:
        raw: The pod.
        view: The same pod, its shape checked.
        spec: What its annotations say.
        settings: What to inject.
        pipeline: The stage's Pipeline as last seen, None if it is unknown.
    """
    problem = next(_problems(view, spec, settings), None)
    if problem is not None:
        return Denied(str(problem))
    pod = copy.deepcopy(raw)
    annotations: dict[str, Any] = pod["metadata"]["annotations"]
    warnings = tuple(f"{key} removed: only SAIR's scheduler grants shares" for key in _GRANTS if key in annotations)
    for key in (*_GRANTS, INJECTED):
        annotations.pop(key, None)
    target = chosen_container(view, spec)
    annotations[CONTAINER] = target.name
    if spec.gpu_rate is not None:
        rate, doubt = stamped_rate(spec, pipeline)
        annotations |= {GPU_RATE: str(rate), INJECTED: settings.hook_version}
        warnings += doubt
        _inject(pod["spec"], target.name, spec, settings)
    cpu, doubt = stamped_cpu(spec, pipeline)
    warnings += doubt
    if cpu is not None:
        container = next(one for one in pod["spec"]["containers"] if one["name"] == target.name)
        warnings += _give_cpu(container, target, cpu)
    return Mutated(pod, warnings)


def chosen_container(view: PodView, spec: StageSpec) -> Container:
    """The container that the stage runs in: the annotated one, else the first.

    Written into the pod, because a sidecar that another webhook puts in front later would be the first one then.
    """
    return next((one for one in view.spec.containers if one.name == spec.container), view.spec.containers[0])


def stamped_rate(spec: StageSpec, pipeline: Pipeline | None) -> tuple[GpuRate, tuple[str, ...]]:
    """Choose the desired rate of a new replica, and say what was doubtful about it.

    The Pipeline's status knows what the stage's replicas have now; it counts while the pipeline is scaled automatically. In the
    other modes nobody but the user sets rates, so that the pod template does. The extender reads the same wish for live pods.
    """
    if spec.gpu_rate is None:
        raise InvalidInput("gpu_rate", None, "the rate of a GPU stage")
    try:
        wish = stage_wish(pipeline, spec.stage) if pipeline is not None else None
    except InvalidInput as error:
        return spec.gpu_rate, (f"initial rate kept: {error}",)
    return wish.within(spec.bounds) if wish is not None else spec.gpu_rate, ()


def stamped_cpu(spec: StageSpec, pipeline: Pipeline | None) -> tuple[Millicores | None, tuple[str, ...]]:
    """Choose the CPU request of a new replica, and say what was doubtful about it; None leaves what the user wrote.

    The Pipeline's status names one only where the controller has changed it; it counts as a rate does, see ``stamped_rate``.
    """
    stage = pipeline.status.stage(spec.stage) if pipeline is not None else None
    if pipeline is None or stage is None or stage.cpu is None:
        return None, ()
    if (pipeline.spec.mode or pipeline.status.mode or "auto") != "auto":
        return None, ()
    try:
        cpu = parse_cpu(stage.cpu, field=f"Pipeline {pipeline.key} status.stages[{stage.name}].cpu")
    except InvalidInput as error:
        return None, (f"initial CPU kept: {error}",)
    low, high = spec.bounds.cpu_min, spec.bounds.cpu_max
    if low is not None and cpu < low:
        cpu = low
    if high is not None and cpu > high:
        cpu = high
    return cpu, ()


def _give_cpu(container: dict[str, Any], seen: Container, cpu: Millicores) -> tuple[str, ...]:
    """Set a container's CPU request, and the limit where it has one, so that the pod's QoS class stays; one without CPU gets none."""
    resources = seen.resources
    requests, limits = (resources.requests or {}, resources.limits or {}) if resources else ({}, {})
    try:
        limit = parse_cpu(str(limits["cpu"]), field="limits.cpu") if "cpu" in limits else None
        request = parse_cpu(str(requests["cpu"]), field="requests.cpu") if "cpu" in requests else limit
    except InvalidInput as error:
        return (f"initial CPU kept: {error}",)
    if request is None:
        return ()
    made = container["resources"]
    made["requests"] = {**(made.get("requests") or {}), "cpu": format_millicores(cpu)}
    new_limit = cpu_limit_beside(cpu, was=request, limit=limit)
    if new_limit is not None and new_limit != limit:
        made["limits"] = {**(made.get("limits") or {}), "cpu": format_millicores(new_limit)}
    return ()


def _problems(view: PodView, spec: StageSpec, settings: WebhookSettings) -> Iterator[InvalidInput]:
    names = [container.name for container in view.spec.containers]
    if not names:
        yield WireError("spec.containers", [], "at least one container")
        return
    if spec.container is not None and spec.container not in names:
        yield AnnotationError(CONTAINER, spec.container, "one of the pod's containers: " + ", ".join(names))
        return
    if spec.gpu_rate is None:
        return
    yield from _placement_problems(view, settings)
    yield from _device_problems(view, spec)
    yield from _target_problems(view, spec)


def _placement_problems(view: PodView, settings: WebhookSettings) -> Iterator[InvalidInput]:
    allowed = (None, "", DEFAULT_SCHEDULER, settings.scheduler_name)
    if view.spec.scheduler_name not in allowed:
        wanted = f"none, or {settings.scheduler_name}: a share of a GPU ({GPU_RATE}) is placed by no other scheduler"
        yield WireError("spec.schedulerName", view.spec.scheduler_name, wanted)
    if view.spec.node_name:
        wanted = f"none: {settings.scheduler_name} chooses node and GPU; nodeAffinity narrows its choice"
        yield WireError("spec.nodeName", view.spec.node_name, wanted)


def _device_problems(view: PodView, spec: StageSpec) -> Iterator[InvalidInput]:
    """Nobody in the pod may have a GPU twice, or one that the ledger does not know of."""
    target = chosen_container(view, spec).name
    for path, container in _all_containers(view):
        resources = container.resources
        for kind in ("requests", "limits"):
            for key, amount in ((getattr(resources, kind) if resources else None) or {}).items():
                if key.startswith(_VENDOR):
                    wanted = f"no {_VENDOR}… resource beside {GPU_RATE}: the GPU would be counted twice"
                    yield WireError(f"{path}.resources.{kind}[{key}]", amount, wanted)
        for variable in container.env or ():
            sees_gpu = variable.value_from is not None or (variable.value or "").strip() not in _NO_GPU
            if variable.name == VISIBLE_DEVICES and container.name != target and sees_gpu:
                wanted = f"void: only the container {target} is hooked, see {CONTAINER}"
                yield WireError(f"{path}.env[{VISIBLE_DEVICES}]", variable.value or "valueFrom", wanted)


def _target_problems(view: PodView, spec: StageSpec) -> Iterator[InvalidInput]:
    target = chosen_container(view, spec)
    path = f"spec.containers[{target.name}]"
    for variable in target.env or ():
        if variable.name == PRELOAD and variable.value_from is not None:
            wanted = "a literal value: what is preloaded must be known to put the hook in front of it"
            yield WireError(f"{path}.env[{PRELOAD}].valueFrom", variable.value_from, wanted)
    if any(container.name == HOOK_CONTAINER for container in view.spec.containers):
        yield WireError("spec.containers", HOOK_CONTAINER, "another name: this one is reserved for the hook")
    if INJECTED in view.annotations:
        # It has been here before, as a restored backup has: what carries a reserved name is replaced, not refused.
        return
    yield from _reserved_names(view, target, path)


def _reserved_names(view: PodView, target: Container, path: str) -> Iterator[InvalidInput]:
    if any(container.name == HOOK_CONTAINER for container in view.spec.init_containers or ()):
        yield WireError("spec.initContainers", HOOK_CONTAINER, "another name: this one is reserved for the hook")
    for volume in view.spec.volumes or ():
        if volume.name in RESERVED_VOLUMES:
            yield WireError("spec.volumes", volume.name, "another name: this one is reserved for the hook")
    for mount in target.volume_mounts or ():
        if mount.name in RESERVED_VOLUMES or _is_reserved_path(mount.mount_path):
            wanted = "no mount in " + ", ".join(RESERVED_PATHS) + ": these are the hook's"
            yield WireError(f"{path}.volumeMounts", mount.mount_path, wanted)
    for variable in target.env or ():
        if variable.name in RESERVED_VARIABLES:
            wanted = "no such variable: SAIR sets it"
            yield WireError(f"{path}.env[{variable.name}]", variable.value or "valueFrom", wanted)


def _is_reserved_path(path: str) -> bool:
    return any(f"{path.rstrip('/')}/".startswith(f"{reserved}/") for reserved in RESERVED_PATHS)


def _all_containers(view: PodView) -> Iterator[tuple[str, Container]]:
    for container in view.spec.init_containers or ():
        yield f"spec.initContainers[{container.name}]", container
    for container in view.spec.containers:
        yield f"spec.containers[{container.name}]", container


def _inject(pod_spec: dict[str, Any], target: str, spec: StageSpec, settings: WebhookSettings) -> None:
    pod_spec["schedulerName"] = settings.scheduler_name
    if settings.runtime_class and not pod_spec.get("runtimeClassName"):
        pod_spec["runtimeClassName"] = settings.runtime_class
    pod_spec["volumes"] = [*_without(pod_spec.get("volumes"), RESERVED_VOLUMES), *volumes()]
    # Last, so that the places of the user's own init containers stay what they are.
    own = _without(pod_spec.get("initContainers"), frozenset((HOOK_CONTAINER,)))
    pod_spec["initContainers"] = [*own, init_container(settings)]
    container = next(one for one in pod_spec["containers"] if one["name"] == target)
    container["volumeMounts"] = [*_without(container.get("volumeMounts"), RESERVED_VOLUMES), *mounts()]
    env = _with_preload(_without(container.get("env"), RESERVED_VARIABLES))
    if all(variable["name"] != CAPABILITIES for variable in env):
        env.append({"name": CAPABILITIES, "value": "compute,utility"})
    container["env"] = [*env, *variables(spec.gpu_memory)]


def _with_preload(env: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a variable given twice the last one counts, for Kubernetes too."""
    places = [place for place, variable in enumerate(env) if variable["name"] == PRELOAD]
    if not places:
        return [*env, {"name": PRELOAD, "value": preload("")}]
    last = places[-1]
    changed = {**env[last], "value": preload(env[last].get("value") or "")}
    return [*env[:last], changed, *env[last + 1 :]]


def _without(items: list[dict[str, Any]] | None, names: frozenset[str]) -> list[dict[str, Any]]:
    return [item for item in items or () if item["name"] not in names]
