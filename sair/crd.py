"""The CustomResourceDefinition of the Pipeline; ``sair crd`` prints it and ``deploy/crds`` holds it."""

from __future__ import annotations

from typing import Any

from sair.pipeline import CONDITION_TYPES, GROUP, KIND, MODES, PLURAL, REPLICAS_MOST, VERSION

__all__ = ["custom_resource_definition"]

_LABEL = {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
_RATE = {"type": "string", "maxLength": 6, "pattern": r"^(0?\.\d{1,3}|0\.\d{1,3}|1(\.0{1,3})?)$"}
_QUANTITY = {"type": "string", "maxLength": 32, "pattern": r"^[0-9.]+([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$"}
_REPLICAS = {"type": "integer", "minimum": 1, "maximum": REPLICAS_MOST}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number"}
_TEXT = {"type": "string", "maxLength": 1024}
_TIME = {"type": "string", "format": "date-time"}


def custom_resource_definition() -> dict[str, Any]:
    """Build the CRD with its structural schema, printer columns and status subresource."""
    about = {"description": "A multi-stage inference pipeline that SAIR scales."}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": "pipeline",
                "shortNames": ["pl"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _columns(),
                    "schema": {"openAPIV3Schema": _object({"spec": _spec(), "status": _status()}, extra=about)},
                }
            ],
        },
    }


def _object(
    properties: dict[str, Any], *, required: tuple[str, ...] = (), extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", **(extra or {}), "properties": properties}
    if required:
        schema["required"] = list(required)
    return schema


def _spec() -> dict[str, Any]:
    bounds = {
        "gpuRateMin": _RATE,
        "gpuRateMax": _RATE,
        "replicasMin": _REPLICAS,
        "replicasMax": _REPLICAS,
        "cpuMin": _QUANTITY,
        "cpuMax": _QUANTITY,
    }
    ordered = "!has(self.replicasMin) || !has(self.replicasMax) || self.replicasMin <= self.replicasMax"
    rules = [{"rule": ordered, "message": "replicasMin must not exceed replicasMax"}]
    again = {"name": _LABEL, "replicas": _COUNT, "cpu": _QUANTITY, "gpuRate": _RATE}
    stages = {
        "type": "array",
        "maxItems": 64,
        "items": _object(again, required=("name", "replicas", "cpu")),
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    }
    rollback = {
        "at": _TIME | _described("When it was asked for; tells one request from another."),
        "round": _COUNT | _described("The round that is undone."),
        "until": _TIME | _described("Until when nothing else is applied; absent: until the request is taken back."),
        "stages": stages,
    }
    return _object(
        {
            "sloP99": {
                "type": "string",
                "maxLength": 24,
                "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$",
                **_described("Upper bound of the end-to-end P99 latency, such as 250ms."),
            },
            "mode": {
                "type": "string",
                "enum": list(MODES),
                **_described("off: only observed. recommend: decided and shown, never applied. auto: applied."),
            },
            "budgetPerHour": {
                "type": "number",
                "minimum": 0,
                "exclusiveMinimum": True,
                **_described("Cap of the projected cost, $/h."),
            },
            "preference": {
                "type": "number",
                "minimum": 0,
                "exclusiveMinimum": True,
                "maximum": 1,
                **_described("Fraction of the SLO that the predicted P99 may use; low is fast and dear. Default 0.85."),
            },
            "bounds": {
                "type": "object",
                "maxProperties": 64,
                "additionalProperties": _object(bounds, extra={"x-kubernetes-validations": rules}),
                **_described("Limits of the stages' knobs, by stage name."),
            },
            "rollback": _object(
                rollback,
                required=("at", "round", "stages"),
                extra=_described("Allocations to have again and to keep; sair rollback writes it."),
            ),
        },
        extra={"description": "What the user wants. Every field goes before what the stages' annotations say."},
    )


def _status() -> dict[str, Any]:
    stage = {
        "name": _LABEL,
        "after": {"type": "array", "maxItems": 16, "items": _LABEL},
        "workload": _TEXT,
        "replicas": _COUNT,
        "readyReplicas": _COUNT,
        "gpuRate": _RATE,
        "gpuGranted": _RATE,
        "cpu": _QUANTITY,
        "memory": _QUANTITY,
        "utilisation": _NUMBER,
        "queueDepth": _NUMBER,
    }
    decision = {"round": _COUNT, "time": _TIME, "policy": _TEXT, "action": _TEXT, "reason": _TEXT}
    rollback = {
        "at": _TIME,
        "outcome": {"type": "string", "enum": ["Done", "Partly", "Refused"]},
        "round": _COUNT,
        "message": _TEXT,
    }
    condition = {
        "type": {"type": "string", "enum": list(CONDITION_TYPES)},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "reason": {"type": "string", "maxLength": 128},
        "message": {"type": "string", "maxLength": 4096},
        "lastTransitionTime": _TIME,
        "observedGeneration": _COUNT,
    }
    return _object(
        {
            "observedGeneration": _COUNT,
            "stages": {
                "type": "array",
                "maxItems": 64,
                "items": _object(stage, required=("name",)),
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
            "bottleneck": _LABEL,
            "p99Seconds": _NUMBER,
            "sloSeconds": _NUMBER,
            "arrivalsPerSecond": _NUMBER,
            "costPerHour": _NUMBER,
            "mode": {"type": "string", "enum": list(MODES)},
            "lastDecision": _object(decision, required=("round", "time", "policy", "action")),
            "rollback": _object(rollback, required=("at", "outcome", "round")),
            "conditions": {
                "type": "array",
                "maxItems": 16,
                "items": _object(condition, required=("type", "status", "reason", "lastTransitionTime")),
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        },
        extra={"description": "What is; written by the controller alone."},
    )


def _columns() -> list[dict[str, Any]]:
    def column(name: str, kind: str, path: str, **extra: Any) -> dict[str, Any]:
        return {"name": name, "type": kind, "jsonPath": path, **extra}

    return [
        column("Mode", "string", ".status.mode"),
        column("SLO", "number", ".status.sloSeconds", description="seconds"),
        column("P99", "number", ".status.p99Seconds", description="seconds"),
        column("Cost/h", "number", ".status.costPerHour", description="dollars"),
        column("Bottleneck", "string", ".status.bottleneck"),
        column("Decision", "string", ".status.lastDecision.action"),
        column("By", "string", ".status.lastDecision.policy", priority=1),
        column("Age", "date", ".metadata.creationTimestamp"),
    ]


def _described(text: str) -> dict[str, str]:
    return {"description": text}
