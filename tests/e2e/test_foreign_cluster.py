"""Somebody else's cluster, known by a kubeconfig: what the tests may do with it and what they leave alone."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import images
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.control_plane import ControlPlane
from tests.e2e.cluster.errors import ClusterError, Unavailable
from tests.e2e.cluster.foreign import KUBECONFIG, LOAD, ForeignCluster
from tests.e2e.pods import create, ready, rollout, web
from tests.e2e.rest import PodWatch, Rest


@pytest.fixture
def foreign(harness: Cluster) -> Iterator[ForeignCluster]:
    """The tests' own cluster, of which nothing but the kubeconfig is told, and a command that takes images to its nodes."""
    load = [sys.executable, "-m", "tests.e2e.cluster", f"--instance={harness.instance}", "import", "{}"]
    found = ForeignCluster.from_environment({KUBECONFIG: str(harness.kubeconfig), LOAD: shlex.join(load)})
    assert found is not None
    yield found
    found.down()
    assert not found.directory.exists()


def test_its_kubeconfig_is_enough_to_run_tests_on_it(harness: Cluster, foreign: ForeignCluster, namespace: str) -> None:
    assert foreign.running
    assert [node.name for node in foreign.nodes] == [node.name for node in harness.nodes]

    foreign.load(images.pause())
    create(foreign, namespace, web("plain"))
    rollout(foreign, namespace, "plain")

    with PodWatch(foreign, namespace) as watch:
        watch.first(lambda pod: ready(pod) and pod["metadata"]["name"].startswith("plain-"), since=0.0)


def test_a_token_in_its_kubeconfig_is_enough_for_clients_besides_kubectl(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    control_plane.run_kubectl("create", "serviceaccount", "tester", "--namespace=default")
    grant = ["create", "clusterrolebinding", "tester", "--clusterrole=cluster-admin", "--serviceaccount=default:tester"]
    control_plane.run_kubectl(*grant)
    token = control_plane.run_kubectl("create", "token", "tester", "--namespace=default")
    kubeconfig = tmp_path / "token.yaml"
    server = {"server": control_plane.url, "certificate-authority": str(control_plane.authority)}
    context = {"cluster": "it", "user": "tester"}
    config = {
        "clusters": [{"name": "it", "cluster": server}],
        "users": [{"name": "tester", "user": {"token": token.strip()}}],
        "contexts": [{"name": "it", "context": context}],
        "current-context": "it",
    }
    kubeconfig.write_text(json.dumps(config))
    found = ForeignCluster(kubeconfig)
    try:
        with PodWatch(found, "default") as watch:
            admin, nobody = Rest(found), Rest(found, user="nobody-in-particular")
            admin.create_pod("default", _paper_pod("mine"))
            watch.first(lambda pod: pod["metadata"]["name"] == "mine", since=0.0)
            # Who poses as somebody has that one's rights.
            with pytest.raises(ClusterError, match='User "nobody-in-particular" cannot delete'):
                nobody.delete_pod("default", "mine")
            admin.delete_pod("default", "mine")
            for one in (admin, nobody):
                one.close()
    finally:
        found.down()
        control_plane.run_kubectl("delete", "clusterrolebinding/tester", "serviceaccount/tester", "--namespace=default")


def _paper_pod(name: str) -> dict[str, Any]:
    spec = {"containers": [{"name": "none", "image": "none"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def test_its_nodes_and_its_control_plane_are_never_taken_away(foreign: ForeignCluster) -> None:
    foreign.down()

    assert foreign.running
    with pytest.raises(Unavailable, match="somebody else's"):
        foreign.stop("kube-apiserver")
    with pytest.raises(Unavailable, match="somebody else's"):
        foreign.kill_node(0)


def test_an_archive_that_the_command_refuses_is_an_error(foreign: ForeignCluster, tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_text("no archive")

    with pytest.raises(ClusterError, match="import"):
        foreign.import_archive(tmp_path / "image.tar")


def test_kubeconfig_alone_points_no_test_at_a_cluster(tmp_path: Path) -> None:
    work = tmp_path / "work"

    assert ForeignCluster.from_environment({"KUBECONFIG": str(work)}) is None
    with pytest.raises(ClusterError, match="no kubeconfig"):
        ForeignCluster.from_environment({KUBECONFIG: "1", "KUBECONFIG": str(work)})
