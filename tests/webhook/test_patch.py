"""Patches, for pods of every shape: applied they give the mutated pod, twice is once, and nothing of the user's is lost."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import jsonpatch
from hypothesis import given
from hypothesis import strategies as st

from sair import wire
from sair.annotations import parse_stage
from sair.pipeline import Pipeline
from tests.webhook.requests import SETTINGS, pipeline, review
from tests.webhook.strategies import admissible_pods
from webhook.mutation import Mutated, decide, mutate
from webhook.patch import json_patch
from webhook.review import AdmissionRequest, answer, view_pod

PIPELINES = st.none() | st.builds(
    pipeline, st.sampled_from(["0.05", "0.7", "1"]), mode=st.sampled_from(["auto", "off"])
)

OURS = {"sair-hook", "sair-grant", "sair-stats"}


def mutated(raw: dict[str, Any], found: Pipeline | None) -> dict[str, Any]:
    view = view_pod(raw)
    outcome = mutate(raw, view, parse_stage(view.annotations), SETTINGS, found)
    assert isinstance(outcome, Mutated), outcome
    return outcome.pod


@given(admissible_pods(), PIPELINES)
def test_the_patch_in_the_answer_applied_to_the_pod_gives_the_mutated_pod(
    raw: dict[str, Any], found: Pipeline | None
) -> None:
    request = wire.convert(review(raw)["request"], AdmissionRequest, what="request")

    response = json.loads(answer("u", decide(request, SETTINGS, lambda _key: found)))["response"]

    assert response["allowed"]
    patch = json.loads(base64.b64decode(response["patch"])) if "patch" in response else []
    assert jsonpatch.apply_patch(raw, patch) == mutated(raw, found)


@given(admissible_pods(), PIPELINES)
def test_a_mutated_pod_mutates_into_itself(raw: dict[str, Any], found: Pipeline | None) -> None:
    once = mutated(raw, found)

    assert mutated(once, found) == once
    assert json_patch(once, mutated(once, found)) == ()


@given(admissible_pods(), PIPELINES)
def test_nothing_the_user_wrote_is_lost(raw: dict[str, Any], found: Pipeline | None) -> None:
    before = copy.deepcopy(raw)
    made = mutated(raw, found)
    assert raw == before

    kept = {key: value for key, value in raw["metadata"]["annotations"].items() if not key.startswith("sair.dev/gpu-")}
    kept.pop("sair.dev/injected", None)
    assert kept.items() <= made["metadata"]["annotations"].items()
    for old, new in zip(raw["spec"]["containers"], made["spec"]["containers"], strict=True):
        assert {key: value for key, value in old.items() if key not in ("env", "volumeMounts")}.items() <= new.items()
        assert [one for one in new.get("volumeMounts") or () if one["name"] not in OURS] == (
            old.get("volumeMounts") or []
        )
        was, now = old.get("env") or [], (new.get("env") or [])[: len(old.get("env") or [])]
        assert [one["name"] for one in was] == [one["name"] for one in now]
        for one, other in zip(was, now, strict=True):
            assert other == one or other["value"] in (
                "/opt/sair/libsair_cuda.so:" + one["value"],
                "/opt/sair/libsair_cuda.so" + one["value"],
            )
    for field in ("volumes", "initContainers"):
        old_items = raw["spec"].get(field) or []
        assert (made["spec"].get(field) or [])[: len(old_items)] == old_items
    rest = raw["spec"].keys() - {"containers", "volumes", "initContainers", "schedulerName"}
    assert all(made["spec"][key] == raw["spec"][key] for key in rest)


@given(st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_two_objects_differ_by_a_patch_that_turns_one_into_the_other(value: Any) -> None:
    before, after = {"a": value, "b": [1, value]}, {"a": [value], "c": value, "b": [value, value]}

    # As text, because that is how they travel: in these objects values are shared, and applying would change all places.
    sent, patch = json.loads(json.dumps([before, json_patch(before, after)]))

    assert jsonpatch.apply_patch(sent, patch) == after
