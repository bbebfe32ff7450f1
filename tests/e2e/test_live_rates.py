"""A wish for another share of a GPU, on its way from the API server to the file that the hook reads."""

import statistics
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from sair.annotations import GPU_GRANTED, GPU_RATE
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.images import BASE_IMAGE
from tests.e2e.cluster.installation import Installation
from tests.e2e.pods import RESTRICTED_CONTAINER, create, eventually, pods, rollout
from tests.e2e.rest import CONTROLLER, PodWatch, Rest
from tests.e2e.stages import give_gpus, overbooked, seats, stage

REPLICAS, ROUNDS = 10, 10
# kubelet takes up a second change of a pod only after its next look at all containers, one second after the last. A controller
# that decides every few seconds meets a kubelet at rest, so the rounds here are as far apart.
_PAUSE_S = 1.5
# The wish and the grant are two changes of one pod within milliseconds. When kubelet is still writing the file for the first
# as the second arrives, it now and then forgets the second until its next regular look at the pod, about a minute later.
_KUBELET_FORGETS_FOR_S = 100.0
# Looks at the grant every 2 ms, which is far below what is measured, writes down when it changed, and tells whoever asks.
_OBSERVER = """
import http.server, threading, time
seen = []
class Tell(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(''.join(seen).encode())
    def log_message(self, *_):
        pass
threading.Thread(target=http.server.HTTPServer(('', 8000), Tell).serve_forever, daemon=True).start()
last = None
while True:
    now = open('/etc/sair/gpu-granted').read()
    if now != last:
        last = now
        seen.append(f'{time.time()} {now}\\n')
    time.sleep(0.002)
"""


@pytest.fixture(autouse=True)
def _a_gpu(cluster: Cluster, installation: Installation) -> Iterator[None]:
    give_gpus(cluster, per_node=4)
    yield
    assert overbooked(cluster) == {}
    give_gpus(cluster, per_node=0)


def test_a_changed_wish_reaches_the_container_in_a_fraction_of_a_second(
    cluster: Cluster, namespace: str, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    create(cluster, namespace, _observer("live", REPLICAS))
    rollout(cluster, namespace, "live", timeout_s=120)
    addresses = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in pods(cluster, namespace, "live")}

    controller = Rest(cluster, user=CONTROLLER)
    watch = PodWatch(cluster, namespace)
    to_grant: list[float] = []
    to_file: list[float] = []
    try:
        for round_ in range(ROUNDS):
            time.sleep(_PAUSE_S)
            rate = f"0.{2 + round_ % 3}"
            granted: dict[str, float] = {}
            for name in addresses:
                asked = time.time()
                controller.annotate(namespace, name, {GPU_RATE: rate})
                granted[name] = watch.first(partial(_has, name, GPU_GRANTED, rate), asked)
                to_grant.append(granted[name] - asked)
            for name, address in addresses.items():
                eventually(partial(_shows, address, rate), _KUBELET_FORGETS_FOR_S, f"{rate} in the file")
                to_file.append(_seen(address)[-1][0] - granted[name])
    finally:
        watch.close()
        controller.close()

    for leg, seconds in (("patch to grant", to_grant), ("grant to file", to_file)):
        figures = f"median {_ms(statistics.median(seconds))}, p99 {_ms(statistics.quantiles(seconds, n=100)[-1])}"
        record_property(leg, figures)
        with capsys.disabled():
            print(f"\n{leg}: {figures} over {len(seconds)} changes")
    assert statistics.median(to_grant) < 0.25
    assert statistics.median(to_file) < 1.5


def test_a_raise_that_does_not_fit_is_not_granted_until_there_is_room(cluster: Cluster, namespace: str) -> None:
    give_gpus(cluster, per_node=1)
    create(
        cluster,
        namespace,
        stage("wide", {"gpu-rate": "0.6"}, replicas=2),
        stage("narrow", {"gpu-rate": "0.3"}, replicas=2),
    )
    eventually(lambda: _placed(cluster, namespace, "wide", "narrow") == 4, 60, "four pods on GPUs")
    raised = pods(cluster, namespace, "narrow")[0]
    seat = next(iter(seats([raised])))
    (neighbour,) = [pod for pod in pods(cluster, namespace, "wide") if next(iter(seats([pod]))) == seat]
    controller = Rest(cluster, user=CONTROLLER)
    try:
        controller.annotate(namespace, raised["metadata"]["name"], {GPU_RATE: "0.7"})
        time.sleep(3)
        assert _granted(cluster, namespace, "narrow", raised) == "0.3"
        assert overbooked(cluster) == {}

        # The neighbour gives way, and the wish that waited is granted.
        controller.annotate(namespace, neighbour["metadata"]["name"], {GPU_RATE: "0.3"})
        eventually(lambda: _granted(cluster, namespace, "narrow", raised) == "0.7", 20, "the raise")
    finally:
        controller.close()


def _observer(name: str, replicas: int) -> dict[str, Any]:
    deployment = stage(name, {"gpu-rate": "0.1"}, replicas=replicas)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container |= {
        "image": BASE_IMAGE,
        "command": ["python3", "-c", _OBSERVER],
        "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}},
        "securityContext": RESTRICTED_CONTAINER,
    }
    return deployment


def _seen(address: str) -> list[tuple[float, str]]:
    """When the file in the container changed, and to what."""
    with urllib.request.urlopen(f"http://{address}:8000/", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return [(float(at), rate) for at, _, rate in (line.partition(" ") for line in lines)]


def _shows(address: str, rate: str) -> bool:
    return _seen(address)[-1][1] == rate


def _has(name: str, annotation: str, value: str, pod: dict[str, Any]) -> bool:
    return bool(pod["metadata"]["name"] == name and pod["metadata"]["annotations"].get(annotation) == value)


def _placed(cluster: Cluster, namespace: str, *apps: str) -> int:
    return sum(sum(seats(pods(cluster, namespace, app)).values()) for app in apps)


def _granted(cluster: Cluster, namespace: str, app: str, wanted: dict[str, Any]) -> str:
    names = {pod["metadata"]["name"]: pod for pod in pods(cluster, namespace, app)}
    return str(names[wanted["metadata"]["name"]]["metadata"]["annotations"][GPU_GRANTED])


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
