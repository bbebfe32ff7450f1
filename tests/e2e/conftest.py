"""The `cluster` fixture: a real Kubernetes with two nodes, and what its tests share."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.controlplane import give_up
from tests.e2e.cluster import images
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError, Unavailable
from tests.e2e.cluster.installation import Installation

_LONG = {"test_live_rates", "test_outages", "test_scaling"}
"""Minutes each, and of what a busy machine does to a whole cluster; `make e2e` runs them, `make test` leaves them out."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The machine's cluster, with the bare base image on its nodes.

    One that is up already is used and left up; otherwise one comes up for this session and goes with it.
    """
    cluster = Cluster()
    kept = cluster.running
    try:
        if not kept:
            cluster.up()
    except Unavailable as reason:
        give_up(reason)
    try:
        cluster.import_archive(images.base_archive())
        yield cluster
    finally:
        if not kept:
            cluster.down()


@pytest.fixture(scope="session")
def installation(cluster: Cluster) -> Iterator[Installation]:
    """SAIR on the cluster, every component Ready; gone again when the session ends, unless the cluster goes anyway."""
    installation = Installation(cluster)
    installation.load_images()
    installation.apply()
    installation.wait()
    yield installation
    installation.delete()


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, where the Pod Security profile "restricted" is enforced."""
    name = f"e2e-{abs(hash(request.node.nodeid)) % 10**8:08d}"
    cluster.apply(
        [
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
            }
        ]
    )
    yield name
    with contextlib.suppress(ClusterError):
        cluster.kubectl("delete", "pods", "--all", f"--namespace={name}", "--force", "--grace-period=0", "--wait=false")
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the cluster is marked so, and has more time than a unit test has."""
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.e2e)
            # The first one also waits for images to be built, which on a busy machine takes minutes.
            item.add_marker(pytest.mark.timeout(900), append=False)
        if item.path.stem in _LONG:
            item.add_marker(pytest.mark.long)
