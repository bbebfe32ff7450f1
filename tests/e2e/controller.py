"""The controller with rounds so short that a minute holds several."""

import contextlib
from collections.abc import Iterator

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.pods import rollout

_NAMESPACE = "sair-system"
_FAST = {"SAIR_CONTROLLER_INTERVAL_S": "8", "SAIR_CONTROLLER_WINDOW_S": "5", "SAIR_CONTROLLER_REFLEX_INTERVAL_S": "1"}


@contextlib.contextmanager
def short_rounds(cluster: Cluster) -> Iterator[None]:
    """Rounds of 8 s and a reflex that looks every second; afterwards as it was."""
    _set(cluster, [f"{name}={value}" for name, value in _FAST.items()])
    try:
        yield
    finally:
        _set(cluster, [f"{name}-" for name in _FAST])


def redis(cluster: Cluster, *command: str) -> str:
    """Ask the controller's memory."""
    ask = ["redis-cli", "--user", "sair", "--no-auth-warning", *command]
    return cluster.kubectl("exec", "sair-redis-0", f"--namespace={_NAMESPACE}", "--container=redis", "--", *ask)


def _set(cluster: Cluster, variables: list[str]) -> None:
    cluster.kubectl("set", "env", "deployment/sair-controller", f"--namespace={_NAMESPACE}", *variables)
    rollout(cluster, _NAMESPACE, "sair-controller", timeout_s=90)
