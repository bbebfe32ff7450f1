"""Pods that keep a simulated GPU busy, held by the hook or by nothing, and what they and that GPU say."""

import base64
import json
import subprocess
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sair.annotations import GPU_RATE, PIPELINE, STAGE
from tests.e2e.cluster import images
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.pods import RESTRICTED_CONTAINER, RESTRICTED_POD, create

PIPELINE_NAME = "e2e"
BIN_NS = 1_000_000

_IMAGE = "localhost/sair-e2e-gpu:1"
_FILES = "gpu-files"
_OBSERVER = Path(__file__).with_name("observer.py")
_COMMAND = [
    "/opt/example/venv/bin/python3",
    "/files/observer.py",
    "/opt/example/simulated/libcuda.so.1",
    "/files/libsimgpu.so",
]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the grant file, as a container saw it."""

    unix_s: float
    monotonic_ns: int
    rate: str


def prepare(cluster: Cluster, namespace: str) -> None:
    """Have on the cluster what these pods need.

    Raises:
        ClusterError: the simulated GPU's library does not build.
    """
    if cluster.takes_images:
        cluster.load(images.example(_IMAGE))
    driver = images.REPOSITORY / "cuda_hook" / "build" / "driver" / "libsimgpu.so"
    make = ["make", "--silent", f"--directory={images.REPOSITORY}", "--file=cuda_hook/tests/driver/driver.mk"]
    done = subprocess.run([*make, "driver"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"the simulated driver does not build:\n{done.stderr[-2000:]}")
    files = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": _FILES},
        "data": {"observer.py": _OBSERVER.read_text()},
        "binaryData": {"libsimgpu.so": base64.b64encode(driver.read_bytes()).decode()},
    }
    create(cluster, namespace, files)


def busy_pod(name: str, rate: str | None, *, node: str | None = None) -> dict[str, Any]:
    """A pod that asks its GPU for all it can give.

    Args:
        name: of the pod, and of the stage of which it is the only replica.
        rate: share to begin with; None for a pod of no pipeline.
        node: where it has to be.
    """
    opted_in = {PIPELINE: PIPELINE_NAME, STAGE: name, GPU_RATE: rate} if rate is not None else {}
    container = {
        "name": "busy",
        "image": _IMAGE,
        "imagePullPolicy": "Never",
        "command": _COMMAND,
        "ports": [{"containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/now", "port": 8000}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}},
        "securityContext": RESTRICTED_CONTAINER,
        "volumeMounts": [{"name": "files", "mountPath": "/files", "readOnly": True}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name, "busy": "yes"}, "annotations": opted_in},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": RESTRICTED_POD,
            "containers": [container],
            "volumes": [{"name": "files", "configMap": {"name": _FILES}}],
            **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
        },
    }


def pipeline() -> dict[str, Any]:
    """The Pipeline that bare pods belong to. No Deployment does, so the controller leaves its status to whoever writes it."""
    return {
        "apiVersion": "sair.dev/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": PIPELINE_NAME},
        "spec": {"mode": "auto"},
    }


def addresses(cluster: Cluster, namespace: str, names: Sequence[str]) -> dict[str, str]:
    """Wait until these pods are Ready; returns where each can be asked."""
    targets = [f"pod/{name}" for name in names]
    options = ["--for=condition=Ready", "--timeout=180s", f"--namespace={namespace}"]
    try:
        cluster.kubectl("wait", *targets, *options, timeout_s=190)
    except ClusterError as error:
        error.add_note(cluster.kubectl("get", "pods,events", f"--namespace={namespace}", "--output=wide"))
        raise
    found = cluster.kubectl("get", "pods", "--selector=busy=yes", f"--namespace={namespace}", "--output=json")
    by_name: Mapping[str, Any] = {pod["metadata"]["name"]: pod for pod in json.loads(found)["items"]}
    return {name: by_name[name]["status"]["podIP"] for name in names}


def changes(address: str) -> list[Change]:
    """Every change of the grant file in a container, oldest first."""
    return [Change(float(unix_s), int(ns), str(rate)) for unix_s, ns, rate in _ask(address, "grants")]


def now_ns(address: str) -> int:
    """The container's monotonic clock."""
    return int(_ask(address, "now"))


def busy(address: str, from_ns: int, count: int) -> list[int]:
    """What the simulated GPU counted: busy nanoseconds in each of `count` milliseconds from a moment of that clock on."""
    return [int(ns) for ns in _ask(address, f"busy?from={from_ns}&count={count}")]


def _ask(address: str, what: str) -> Any:
    with urllib.request.urlopen(f"http://{address}:8000/{what}", timeout=10) as answer:
        return json.load(answer)
