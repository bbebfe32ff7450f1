"""Bringing clusters up and, above all, away again: whatever happens to the harness, nothing of it stays on the machine."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controlplane import give_up
from tests.e2e.cluster import binaries, dependencies, images
from tests.e2e.cluster.cluster import BINARIES, Cluster
from tests.e2e.cluster.errors import ClusterError, Unavailable
from tests.e2e.cluster.foreign import KUBECONFIG
from tests.e2e.cluster.network import INSTANCES
from tests.e2e.pods import create, pods, rollout, web

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

_OWNER = """
import os, time
from tests.e2e.cluster.cluster import Cluster
Cluster({instance}).up(report=lambda step: None)
print("up", flush=True)
os.close(1)
time.sleep(600)
"""


@pytest.fixture
def spare() -> Iterator[Cluster]:
    """A cluster beside the one that the other tests use; not up."""
    if os.environ.get(KUBECONFIG):
        # Whoever names a cluster may have no root here and wants none made; without that variable these tests run.
        pytest.skip(f"{KUBECONFIG} names a cluster to use; none is brought up here")
    try:
        dependencies.require()
        binaries.require(BINARIES)
    except Unavailable as reason:
        give_up(reason)
    cluster = Cluster(INSTANCES.stop - 1)
    cluster.down()
    # Clusters that somebody keeps on this machine are not for these tests to sweep away.
    taken = [Cluster(number).ownership for number in INSTANCES if number not in (cluster.instance, Cluster().instance)]
    for ownership in taken:
        with contextlib.suppress(ClusterError):
            ownership.take()
    yield cluster
    for ownership in taken:
        ownership.release()
    cluster.down()
    assert cluster.leftovers() == []


def test_one_beside_another_is_its_owners_until_that_is_killed_and_then_goes_without_a_trace(
    cluster: Cluster, spare: Cluster
) -> None:
    before = _machine()
    with _owner(spare.instance) as owner:
        # A cluster of its own, with pods on both of its nodes.
        assert cluster.url != spare.url
        cluster.kubectl("create", "configmap", "mine", "--namespace=default")
        try:
            with pytest.raises(ClusterError, match="not found"):
                spare.kubectl("get", "configmap", "mine", "--namespace=default")
        finally:
            cluster.kubectl("delete", "configmap", "mine", "--namespace=default")
        spare.import_archive(images.base_archive())
        create(spare, "default", web("pods", replicas=6))
        rollout(spare, "default", "pods")
        assert {pod["spec"]["nodeName"] for pod in pods(spare, "default", "pods")} == {
            node.name for node in spare.nodes
        }

        # While its owner lives, nobody takes it away by the way, and nobody brings it up anew.
        assert f"sair-cluster-{spare.instance} is in use by process {owner.pid}" in _by_hand("down")
        assert spare.running
        with pytest.raises(ClusterError, match=f"in use by process {owner.pid}"):
            spare.up()

    # It was killed.
    assert spare.running
    assert f"{spare.directory.name} removed" in _by_hand("down")

    assert spare.leftovers() == []
    assert _machine() == before
    # And the other one, whose owner is this process, is not concerned.
    assert cluster.running


@pytest.mark.parametrize(
    ("after_s", "lost"), [(0.3, None), (2.0, None), (5.0, "processes.json")], ids=["early", "late", "table lost"]
)
def test_a_harness_killed_on_the_way_up_leaves_nothing_after_the_next_down(
    cluster: Cluster, spare: Cluster, after_s: float, lost: str | None
) -> None:
    before = _machine()
    harness = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.cluster", f"--instance={spare.instance}", "up"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait_for(spare.directory)
    time.sleep(after_s)
    harness.kill()
    harness.wait()
    assert spare.leftovers() != []
    if lost is not None:
        (spare.directory / lost).unlink()

    _by_hand("down")

    assert spare.leftovers() == []
    assert _machine() == before
    assert cluster.running


def test_an_instance_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 9"):
        Cluster(10)


def _wait_for(path: Path, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)


@contextlib.contextmanager
def _owner(instance: int) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that brought a cluster up and lives on."""
    owner = subprocess.Popen([sys.executable, "-c", _OWNER.format(instance=instance)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    try:
        with owner.stdout as said:
            assert "up" in said.read().decode()
        yield owner
    finally:
        owner.kill()
        owner.wait()


def _by_hand(command: str) -> str:
    """What `python -m tests.e2e.cluster` says."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.cluster", command], capture_output=True, text=True, check=True
    )
    return done.stdout


def _machine() -> dict[str, list[str]]:
    """What a cluster must not change for good, looked at without the harness's own eyes."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout.splitlines()
    namespaces = Path("/run/netns")
    # The first named namespace makes a mount of that directory, which `ip` keeps for good.
    return {
        "mounts": sorted(mount for mount in mounts if not mount.startswith("/run/netns")),
        "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "routes": sorted(routes),
        "namespaces": sorted(path.name for path in namespaces.iterdir()) if namespaces.exists() else [],
        "cgroups": sorted(
            str(path) for depth in ("*", "*/*") for path in Path("/sys/fs/cgroup").glob(depth) if _ours(path)
        ),
        "processes": sorted(_commands("cluster-9/", "/run/netns/sair9-")),
    }


def _ours(cgroup: Path) -> bool:
    return cgroup.name.startswith("sair") and cgroup.is_dir()


def _commands(*words: str) -> list[str]:
    """Command lines of processes that hold one of these words."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [line] if any(word in line for word in words) else []
    return found
