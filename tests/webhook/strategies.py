"""Hypothesis strategies for annotated pods of many shapes, all of which are admitted."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.webhook.requests import pod

_NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True).filter(lambda name: not name.startswith("sair-"))
_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
# Fields the webhook does not know must survive, so that their content is arbitrary.
_UNKNOWN = st.dictionaries(st.sampled_from(["livenessProbe", "x/y~z", "workingDir", "lifecycle"]), _VALUES, max_size=2)


def _variables() -> st.SearchStrategy[list[dict[str, Any]]]:
    plain = st.builds(lambda name, value: {"name": name, "value": value}, st.sampled_from(["HOME", "A", "B"]), _TEXT)
    preload = st.builds(
        lambda value: {"name": "LD_PRELOAD", "value": value}, st.sampled_from(["", "a.so", "a.so:b.so"])
    )
    reference = st.just({"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    return st.lists(plain | preload | reference, max_size=4)


@st.composite
def containers(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A container of that name."""
    container: dict[str, Any] = {"name": name, "image": draw(_NAMES), **draw(_UNKNOWN)}
    if draw(st.booleans()):
        container["env"] = draw(st.none() | _variables())
    if draw(st.booleans()):
        mounts = [{"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/optional"}]
        container["volumeMounts"] = draw(st.none() | st.just(mounts))
    return container


@st.composite
def admissible_pods(draw: st.DrawFn) -> dict[str, Any]:
    """A pod of one stage, with or without a GPU."""
    names = draw(st.lists(_NAMES, min_size=1, max_size=3, unique=True))
    annotations = {"sair.dev/pipeline": "vision", "sair.dev/stage": "inference", "note": draw(_TEXT)}
    if draw(st.booleans()):
        annotations["sair.dev/gpu-rate"] = draw(st.sampled_from(["0.3", ".25", "1", "0.50"]))
        if draw(st.booleans()):
            annotations["sair.dev/gpu-memory"] = draw(st.sampled_from(["1Gi", "512Mi"]))
        if draw(st.booleans()):
            annotations["sair.dev/gpu-rate-max"] = "1"
    if draw(st.booleans()):
        annotations["sair.dev/container"] = draw(st.sampled_from(names))
    for key in draw(st.sets(st.sampled_from(["gpu-granted", "gpu-granted-at", "gpu-index", "injected"]))):
        annotations[f"sair.dev/{key}"] = draw(_TEXT)
    spec: dict[str, Any] = {"containers": [draw(containers(name)) for name in names], **draw(_UNKNOWN)}
    if draw(st.booleans()):
        spec["volumes"] = draw(st.none() | st.just([{"name": "data", "emptyDir": {}}]))
    if draw(st.booleans()):
        spec["initContainers"] = [draw(containers("warm-up"))]
    return pod(annotations, **spec)
