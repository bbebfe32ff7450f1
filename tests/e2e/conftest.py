"""The `cluster` fixture: a real Kubernetes with two nodes, and what its tests share."""

import contextlib
import os
import uuid
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.controlplane import give_up
from tests.e2e.bars import BARS, SUITE_S, Bar, Bars, busy_with_others
from tests.e2e.cluster import images
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import Unavailable
from tests.e2e.cluster.foreign import ForeignCluster
from tests.e2e.cluster.installation import EXAMPLE, Installation, archives, kustomization

_CLUSTER_READY_S = 15.0
_SAIR_READY_S = 60.0
_TIMEOUT_S = 900
"""The first test also waits for images to be built, which on a busy machine takes minutes."""
_LOADED: Final = pytest.StashKey[Future[None]]()
"""The images of SAIR and of the example, on their way onto the nodes."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    cluster: Cluster
    stays: bool
    """It ran before the session, and does afterwards."""


@pytest.fixture(scope="session")
def _chosen() -> _Chosen:
    cluster = ForeignCluster.from_environment(os.environ) or Cluster()
    return _Chosen(cluster, cluster.running)


@pytest.fixture(scope="session")
def bars(pytestconfig: pytest.Config) -> Bars:
    """What this session measures of the harness and of the installation; printed at its end."""
    return pytestconfig.stash.setdefault(BARS, {})


@pytest.fixture(scope="session")
def cluster(_chosen: _Chosen, bars: Bars, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster that SAIR_E2E_KUBECONFIG names, else the machine's own; the tests' images are on its nodes.

    One that is up already is used and left up; otherwise one comes up for this session and goes with it. Images of SAIR are
    imported while tests run that need none.
    """
    cluster = _chosen.cluster
    try:
        wanted = _wanted(cluster, request.session.items)
        if isinstance(cluster, ForeignCluster):
            cluster.require_fit()
            cluster.load(images.pause())
        elif _chosen.stays:
            cluster.ownership.take()
        else:
            others = busy_with_others()
            bars["cluster Ready"] = Bar(_CLUSTER_READY_S, cluster.up(), others)
    except Unavailable as reason:
        give_up(reason)
    try:
        if cluster.takes_images:
            cluster.import_archive(images.base_archive())
        with ThreadPoolExecutor(1) as beside:
            request.config.stash[_LOADED] = beside.submit(_load, cluster, wanted)
            yield cluster
    finally:
        if not _chosen.stays or isinstance(cluster, ForeignCluster):
            cluster.down()
        else:
            cluster.ownership.release()


@pytest.fixture(scope="session")
def harness(cluster: Cluster) -> Cluster:
    """The same, where it may be damaged: its nodes and its API server can be taken away."""
    if isinstance(cluster, ForeignCluster):
        # Only where somebody asks for it by SAIR_E2E_KUBECONFIG; what breaks nodes must not run there.
        pytest.skip("needs a cluster whose nodes and control plane it can stop; this one is somebody else's")
    return cluster


@pytest.fixture(scope="session")
def installation(cluster: Cluster, _chosen: _Chosen, bars: Bars, pytestconfig: pytest.Config) -> Iterator[Installation]:
    """SAIR on the cluster, every component Ready; gone again when the session ends, unless the cluster goes anyway."""
    installation = Installation(cluster, kustomization(os.environ))
    pytestconfig.stash[_LOADED].result()
    others = busy_with_others()
    installation.apply()
    bars["SAIR Ready"] = Bar(_SAIR_READY_S, installation.wait(), others)
    yield installation
    if _chosen.stays:
        installation.delete()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own, where the Pod Security profile "restricted" is enforced."""
    with _namespace(cluster) as name:
        yield name


@pytest.fixture(scope="module")
def shared_namespace(cluster: Cluster) -> Iterator[str]:
    """The same for all tests of a module that leave nothing in it, or nothing that another one minds."""
    with _namespace(cluster) as name:
        yield name


@contextlib.contextmanager
def _namespace(cluster: Cluster) -> Iterator[str]:
    # Nobody had that name before: a test that is run again does not find the namespace that is still going.
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}])
    yield name
    with cluster.api() as api:
        api.delete(f"/api/v1/namespaces/{name}")
        # No new ones are made in it any more.
        api.delete(f"/api/v1/namespaces/{name}/pods", grace_s=0)


def _needs_sair(item: pytest.Item) -> bool:
    return "installation" in getattr(item, "fixturenames", ())


def _wanted(cluster: Cluster, items: Sequence[pytest.Item]) -> list[Path]:
    """Archives of all images that these tests put onto nodes, built now."""
    if not cluster.takes_images or not any(map(_needs_sair, items)):
        return []
    return [*archives(cluster, kustomization(os.environ), EXAMPLE), images.archive(images.metrics_server())]


def _load(cluster: Cluster, wanted: Sequence[Path]) -> None:
    for archive in wanted:
        cluster.import_archive(archive)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """What a test finds out that the cluster lacks is a reason to skip it, as it is in a fixture."""
    try:
        return (yield)
    except Unavailable as reason:
        give_up(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the cluster is marked so, and has more time than a unit test has unless it says itself how much.

    Of this folder's tests those come first that need no SAIR.
    """
    places = [place for place, item in enumerate(items) if item.path.is_relative_to(Path(__file__).parent)]
    ordered = sorted((items[place] for place in places), key=_needs_sair)
    for place, item in zip(places, ordered, strict=True):
        items[place] = item
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.e2e)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(_TIMEOUT_S))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was measured against the bars."""
    bars = config.stash.get(BARS, {})
    if not bars:
        return
    here = os.path.relpath(Path(__file__).parent, config.rootpath)
    reports = [report for stage in terminalreporter.stats.values() for report in stage]
    took_s = sum(
        report.duration
        for report in reports
        if isinstance(report, pytest.TestReport) and report.nodeid.startswith(f"{here}/")
    )
    terminalreporter.section("bars of the real cluster")
    for name, bar in bars.items():
        terminalreporter.write_line(f"{name}: {bar}")
    terminalreporter.write_line(f"the tests on it that ran: {took_s:.0f} s; all of them may take {SUITE_S:g} s")
