"""Pods, reviews and settings of which a test states only what it is about."""

from __future__ import annotations

from typing import Any

from sair.pipeline import Pipeline, parse_pipeline
from webhook.review import Verdict
from webhook.settings import WebhookSettings

SETTINGS = WebhookSettings(hook_image="example/sair-hook:1", hook_version="1")

GPU_STAGE = {"sair.dev/pipeline": "vision", "sair.dev/stage": "inference", "sair.dev/gpu-rate": "0.3"}
CPU_STAGE = {"sair.dev/pipeline": "vision", "sair.dev/stage": "preprocess"}


def pod(
    annotations: dict[str, str] | None = None, *, container: dict[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    """A pod with one container, as the API server shows it to webhooks."""
    main = {"name": "main", "image": "example/app:1", **(container or {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "inference-",
            "namespace": "shop",
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {"containers": [main], "schedulerName": "default-scheduler", "restartPolicy": "Always", **spec},
    }


def review(raw: Any, *, uid: str = "0c9d", dry_run: bool = False, **request: Any) -> dict[str, Any]:
    """The AdmissionReview for creating a pod."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": uid,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": raw,
            "oldObject": None,
            "dryRun": dry_run,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
            **request,
        },
    }


def pipeline(
    stage_rate: str | None = "0.6",
    *,
    cpu: str | None = None,
    mode: str | None = "auto",
    stage: str = "inference",
    spec_mode: str | None = None,
    bounds: dict[str, str] | None = None,
) -> Pipeline:
    """A Pipeline ``shop/vision`` whose controller has set a stage's rate, CPU or both."""
    set_to = {"gpuRate": stage_rate, "cpu": cpu}
    status: dict[str, Any] = {"stages": [{"name": stage, **{key: value for key, value in set_to.items() if value}}]}
    if mode is not None:
        status["mode"] = mode
    spec: dict[str, Any] = {"mode": spec_mode} if spec_mode else {}
    if bounds:
        spec["bounds"] = {stage: bounds}
    return parse_pipeline({"metadata": {"name": "vision", "namespace": "shop"}, "spec": spec, "status": status})


def reason(verdict: Verdict) -> str:
    """Why it was denied; fails if it was not."""
    assert verdict.reason is not None, verdict
    assert verdict.patch == ()
    return verdict.reason
