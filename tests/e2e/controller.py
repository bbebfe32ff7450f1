"""The controller with rounds so short that a minute holds several, and what it remembers."""

import json
import urllib.request
from collections.abc import Sequence

from controller.recorded import RecordedRound, rounds_in
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.pods import rollout

NAMESPACE = "sair-system"
ROUND_S = 5


def short_rounds(cluster: Cluster) -> None:
    """From now on rounds of ``ROUND_S``; where it is so already, nothing happens."""
    wanted = {"INTERVAL_S": f"{ROUND_S}", "WINDOW_S": f"{ROUND_S - 1}"}
    variables = [f"SAIR_CONTROLLER_{name}={value}" for name, value in wanted.items()]
    cluster.kubectl("set", "env", "deployment/sair-controller", f"--namespace={NAMESPACE}", *variables)
    rollout(cluster, NAMESPACE, "sair-controller", timeout_s=90)


def redis(cluster: Cluster, *command: str) -> str:
    """Ask the controller's memory."""
    ask = ["redis-cli", "--user", "sair", "--no-auth-warning", *command]
    return cluster.kubectl("exec", "sair-redis-0", f"--namespace={NAMESPACE}", "--container=redis", "--", *ask)


def journal(cluster: Cluster, pipeline: str, latest: int) -> Sequence[RecordedRound]:
    """The newest rounds, oldest first.

    Args:
        cluster: where SAIR is.
        pipeline: namespace/name.
        latest: records to look at, a few for each round.

    Raises:
        ClusterError: Redis cannot be asked.
    """
    key = f"sair:{{{pipeline}}}:decisions"
    said = redis(cluster, "--json", "XREVRANGE", key, "+", "-", "COUNT", str(latest))
    records = [(identifier, dict(zip(flat[::2], flat[1::2], strict=True))) for identifier, flat in json.loads(said)]
    rounds, _ = rounds_in(key, reversed(records))
    return rounds


def metric(address: str, name: str) -> float:
    """The sum of a metric's samples, as the component at that address tells them."""
    with urllib.request.urlopen(f"http://{address}:8080/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))
