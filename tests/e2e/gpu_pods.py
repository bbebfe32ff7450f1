"""Pods that keep a simulated GPU busy, held by the hook or by nothing, and what they and that GPU say."""

import base64
import json
import subprocess
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sair.annotations import GPU_MEMORY, GPU_RATE, PIPELINE, STAGE
from tests.e2e.cluster import images
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.pods import RESTRICTED_CONTAINER, RESTRICTED_POD, create, eventually, execute, pods, ready

PIPELINE_NAME = "e2e"
BIN_NS = 1_000_000

_IMAGE = "localhost/sair-example:development"
"""The example's own, so that it is built and imported once."""
_FILES = "gpu-files"
_OBSERVER = Path(__file__).with_name("observer.py")
DRIVER = "/opt/example/simulated/libcuda.so.1"
_COMMAND = ["/opt/example/venv/bin/python3", "/files/observer.py", DRIVER, "/files/libsimgpu.so"]
_ALLOCATE = """
import ctypes
from app.device import Device
Device("{driver}")  # makes a context
pointer = ctypes.c_uint64()
print(ctypes.CDLL("{driver}").cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t({size})))
"""


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
        "metadata": {"name": name, "labels": {"app": name}, "annotations": opted_in},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": RESTRICTED_POD,
            "containers": [container],
            "volumes": [{"name": "files", "configMap": {"name": _FILES}}],
            **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
        },
    }


def busy_stage(name: str, rate: str, memory: str) -> dict[str, Any]:
    """A Deployment of one such pod, as users write them; the controller looks on.

    Args:
        name: of the Deployment and the stage.
        rate: share to begin with.
        memory: GPU memory limit.
    """
    pod = busy_pod(name, rate)
    labels = pod["metadata"]["labels"]
    # A pipeline of its own, whose status is the controller's.
    opted_in = pod["metadata"]["annotations"] | {PIPELINE: name, GPU_MEMORY: memory, "sair.dev/mode": "off"}
    template = {"metadata": {"labels": labels, "annotations": opted_in}, "spec": pod["spec"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template},
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
    """Wait until the pods of these apps are Ready; returns where each can be asked."""

    def are_ready() -> bool:
        return set(names) <= {pod["metadata"]["labels"]["app"] for pod in pods(cluster, namespace) if ready(pod)}

    try:
        eventually(are_ready, 180, f"Ready pods of {', '.join(names)}")
    except AssertionError as error:
        error.add_note(cluster.kubectl("get", "pods,events", f"--namespace={namespace}", "--output=wide"))
        raise
    by_app = {pod["metadata"]["labels"]["app"]: pod["status"]["podIP"] for pod in pods(cluster, namespace)}
    return {name: by_app[name] for name in names}


def allocate(cluster: Cluster, namespace: str, pod: str, mebibytes: int) -> int:
    """What the CUDA driver answers in that pod to somebody who wants so much of the GPU's memory; 0 is yes."""
    ask = _ALLOCATE.format(driver=DRIVER, size=mebibytes << 20)
    return int(execute(cluster, namespace, pod, "/opt/example/venv/bin/python3", "-c", ask))


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
