"""AdmissionReviews at the wire."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.webhook.requests import GPU_STAGE, pod, review
from webhook.review import MalformedReview, Verdict, answer, parse_request


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_a_review_of_the_api_server_is_read() -> None:
    request = parse_request(encoded(review(pod(GPU_STAGE), uid="0c9d-11", dry_run=True)))

    assert (request.uid, request.namespace, request.operation, request.dry_run) == ("0c9d-11", "shop", "CREATE", True)
    assert request.creates_pod
    assert request.object == pod(GPU_STAGE)


@pytest.mark.parametrize(
    ("body", "uid", "says"),
    [
        (b"", None, "AdmissionReview"),
        (b"{", None, "AdmissionReview"),
        (b"\xff\xfe", None, "AdmissionReview"),
        (b"[]", None, "AdmissionReview"),
        (b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}', None, "request"),
        (encoded({**review(pod()), "apiVersion": "admission.k8s.io/v1beta1"}), "0c9d", "v1beta1"),
        (encoded({**review(pod()), "kind": "TokenReview"}), "0c9d", "TokenReview"),
        (encoded(review("not a pod")), "0c9d", "AdmissionReview.request.object"),
        (encoded(review(pod(), operation=None)), "0c9d", "AdmissionReview.request.operation"),
        (encoded(review(pod(), uid="")), None, "uid"),
    ],
)
def test_anything_else_is_malformed_and_the_uid_is_kept_where_there_is_one(
    body: bytes, uid: str | None, says: str
) -> None:
    with pytest.raises(MalformedReview, match=says) as caught:
        parse_request(body)

    assert caught.value.uid == uid


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_worse(body: bytes) -> None:
    with pytest.raises(MalformedReview):
        parse_request(body)


def test_an_answer_carries_the_uid_and_the_patch() -> None:
    patch = {"op": "add", "path": "/metadata/labels", "value": {"a": "ü"}}

    whole = json.loads(answer("0c9d", Verdict(patch=(patch,), warnings=("w" * 300,))))

    assert (whole["apiVersion"], whole["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response = whole["response"]
    assert (response["uid"], response["allowed"], response["patchType"]) == ("0c9d", True, "JSONPatch")
    assert json.loads(base64.b64decode(response["patch"])) == [patch]
    assert response["warnings"] == ["w" * 256]


def test_an_answer_without_a_change_has_no_patch_at_all() -> None:
    assert json.loads(answer("0c9d", Verdict()))["response"] == {"uid": "0c9d", "allowed": True}


def test_a_denial_says_why_and_changes_nothing() -> None:
    response = json.loads(answer("0c9d", Verdict(patch=({"op": "remove", "path": "/x"},), reason="because", code=422)))[
        "response"
    ]

    assert response == {"uid": "0c9d", "allowed": False, "status": {"code": 422, "message": "because"}}
