"""What reading pods costs, against the models of kubernetes_asyncio: ``python -m benchmarks.kube_reflector [--quick] [--json FILE]``.

Both read the same pages of 500 pods, as the API server sends them, from bytes in memory, so that no network is measured. Times are
CPU time in one process: the median of three runs, of one at the largest size. ``models`` is what a client pays for a list by the
generated API classes; ``reflector`` is decoding, typed parsing and folding into the store; ``re-list`` is the same list again, nothing
changed; ``event`` is one watch event from its line to the typed change.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from kubernetes_asyncio.client import ApiClient
from kubernetes_asyncio.client.rest import RESTResponse

from sair.kube.fold import Fold, Listing
from sair.kube.lines import Lines
from sair.kube.page import decode_page
from sair.wire import convert

PAGE = 500
SIZES = (500, 5_000, 50_000)
EVENTS = 2_000


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    namespace: str
    uid: str
    annotations: dict[str, str] = {}


class _Spec(msgspec.Struct, frozen=True, rename="camel"):
    node_name: str | None = None
    scheduler_name: str | None = None


class _Status(msgspec.Struct, frozen=True, rename="camel"):
    phase: str = "Pending"


class PodFacts(msgspec.Struct, frozen=True):
    """What a component needs of a pod; the rest is dropped."""

    metadata: _Metadata
    spec: _Spec
    status: _Status


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU times at one size, in milliseconds unless the name says otherwise."""

    pods: int
    megabytes: float
    models_ms: float
    json_ms: float
    """Only decoding, by the standard library."""
    reflector_ms: float
    relist_ms: float
    event_us: float

    @property
    def ratio(self) -> float:
        """How many times the models cost what the reflector does."""
        return self.models_ms / self.reflector_ms


class Answer(RESTResponse):
    """An answer without a connection."""

    def __init__(self, data: bytes) -> None:
        self.data = data


def pod(number: int) -> dict[str, Any]:
    """A scheduled, running pod of a usual size: about 3.5 kB of JSON."""
    stamp = "2026-01-01T00:00:00Z"
    name = f"classify-7d9c8b6f5-{number:05d}"
    condition = {"lastProbeTime": None, "lastTransitionTime": stamp, "status": "True"}
    container = {
        "name": "main",
        "image": "registry/classify:1.4.2",
        "env": [{"name": f"SETTING_{index}", "value": f"value-{index}"} for index in range(8)],
        "resources": {"limits": {"cpu": "2", "memory": "4Gi"}, "requests": {"cpu": "1", "memory": "4Gi"}},
        "volumeMounts": [
            {"name": "models", "mountPath": "/models", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": 8080, "scheme": "HTTP"},
            "periodSeconds": 5,
            "timeoutSeconds": 1,
        },
        "imagePullPolicy": "IfNotPresent",
    }
    state = {
        "name": "main",
        "ready": True,
        "restartCount": 0,
        "image": "registry/classify:1.4.2",
        "imageID": "sha256:" + "a" * 64,
    }
    annotations = {
        "sair.dev/pipeline": "images",
        "sair.dev/stage": "classify",
        "sair.dev/gpu-rate": "0.35",
        "sair.dev/gpu-granted": "0.35",
    }
    managed: dict[str, Any] = {
        "f:metadata": {"f:annotations": {f"f:{key}": {} for key in annotations}},
        "f:spec": {"f:containers": {"k:main": {}}},
    }
    return {
        "metadata": {
            "name": name,
            "generateName": "classify-7d9c8b6f5-",
            "namespace": "inference",
            "uid": f"00000000-0000-0000-0000-{number:012d}",
            "resourceVersion": str(1000 + number),
            "creationTimestamp": stamp,
            "labels": {"app": "classify", "pod-template-hash": "7d9c8b6f5"},
            "annotations": annotations,
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": "classify-7d9c8b6f5",
                    "uid": "u",
                    "controller": True,
                }
            ],
            "managedFields": [
                {
                    "manager": "kubelet",
                    "operation": "Update",
                    "apiVersion": "v1",
                    "time": stamp,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": managed,
                }
            ],
        },
        "spec": {
            "volumes": [{"name": "models", "emptyDir": {}}, {"name": "tmp", "emptyDir": {"medium": "Memory"}}],
            "containers": [container],
            "restartPolicy": "Always",
            "nodeName": f"node-{number % 100}",
            "schedulerName": "sair-scheduler",
            "tolerations": [
                {
                    "key": "node.kubernetes.io/not-ready",
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": 300,
                }
            ],
        },
        "status": {
            "phase": "Running",
            "conditions": [
                {**condition, "type": kind} for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
            ],
            "hostIP": "10.0.0.1",
            "podIP": "10.244.0.1",
            "podIPs": [{"ip": "10.244.0.1"}],
            "startTime": stamp,
            "containerStatuses": [
                {**state, "state": {"running": {"startedAt": stamp}}, "lastState": {}, "started": True}
            ],
            "qosClass": "Burstable",
        },
    }


def pages_of(count: int) -> list[bytes]:
    """The pages of a list as they come over the wire."""
    return [
        json.dumps(
            {
                "kind": "PodList",
                "apiVersion": "v1",
                "metadata": {"resourceVersion": "9"},
                "items": [pod(n) for n in range(start, min(count, start + PAGE))],
            }
        ).encode()
        for start in range(0, count, PAGE)
    ]


def parse(raw: dict[str, Any]) -> PodFacts:
    """Keep what is needed."""
    return convert(raw, PodFacts, what="Pod")


def fold_in(fold: Fold[PodFacts], pages: Iterable[bytes]) -> None:
    """A whole list, as the reflector reads it."""
    listing: Listing[PodFacts] = Listing()
    for page in pages:
        fold.collect(listing, decode_page(page, "benchmark").items or ())
    fold.replace(listing, "100000")


def cpu_ms(work: Callable[[], object], runs: int) -> float:
    """Median CPU time of some runs, in milliseconds."""
    times = []
    for _ in range(runs):
        began = time.process_time()
        work()
        times.append(1000 * (time.process_time() - began))
    return statistics.median(times)


async def measure(count: int, runs: int) -> Costs:
    """Measure one size."""
    pages = pages_of(count)
    client = ApiClient()
    try:
        models_ms = cpu_ms(lambda: [client.deserialize(Answer(page), "V1PodList") for page in pages], runs)
    finally:
        await client.close()
    json_ms = cpu_ms(lambda: [json.loads(page) for page in pages], runs)
    reflector_ms = cpu_ms(lambda: fold_in(Fold(parse), pages), runs)
    fold = Fold(parse)
    fold_in(fold, pages)
    if len(fold.snapshot()) != count:
        raise SystemExit("the store does not hold what was listed")
    relist_ms = cpu_ms(lambda: fold_in(fold, pages), runs)
    return Costs(count, sum(map(len, pages)) / 1e6, models_ms, json_ms, reflector_ms, relist_ms, event_us(fold, count))


def event_us(fold: Fold[PodFacts], count: int) -> float:
    """One watch event: cut into lines, decoded, parsed, folded; in microseconds."""
    lines = []
    for index in range(EVENTS):
        changed = pod(index % count)
        changed["metadata"]["resourceVersion"] = str(200_000 + index)
        lines.append(json.dumps({"type": "MODIFIED", "object": changed}).encode() + b"\n")
    stream = b"".join(lines)
    cutter, told = Lines(), 0
    began = time.process_time()
    for start in range(0, len(stream), 65_536):
        for line in cutter.feed(stream[start : start + 65_536]):
            told += len(fold.apply(msgspec.json.decode(line)))
    spent = time.process_time() - began
    if told != EVENTS:
        raise SystemExit(f"{told} of {EVENTS} events were told")
    return 1e6 * spent / EVENTS


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave the largest size out")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    chosen = parser.parse_args(arguments)
    rows = []
    print(
        f"{'pods':>7} {'MB':>7} {'models ms':>10} {'json ms':>9} {'reflector ms':>13} {'re-list ms':>11} {'event µs':>9} {'ratio':>6}"
    )
    for size in SIZES[:-1] if chosen.quick else SIZES:
        row = asyncio.run(measure(size, 1 if size == SIZES[-1] else 3))
        rows.append({**asdict(row), "ratio": row.ratio})
        print(
            f"{row.pods:7d} {row.megabytes:7.1f} {row.models_ms:10.1f} {row.json_ms:9.1f} {row.reflector_ms:13.1f} "
            f"{row.relist_ms:11.1f} {row.event_us:9.1f} {row.ratio:6.1f}",
            flush=True,
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
