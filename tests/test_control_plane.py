"""The control plane on loopback, and that nothing of it outlives its owner."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.cluster.control_plane import ControlPlane, discard, temporary_control_plane
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.cluster.processes import Identity, ProcessTable


def test_it_serves_the_version_that_clients_expect(control_plane: ControlPlane) -> None:
    version = json.loads(control_plane.run_kubectl("version", "--output=json"))

    assert version["serverVersion"]["gitVersion"].startswith("v1.34.")
    assert version["clientVersion"]["minor"] == version["serverVersion"]["minor"]


def test_objects_survive_an_outage_and_the_address_stays(control_plane: ControlPlane) -> None:
    control_plane.run_kubectl("create", "configmap", "kept", "--from-literal=key=value")
    url = control_plane.url
    try:
        control_plane.stop()
        assert not control_plane.ready()
        with pytest.raises(ClusterError, match="refused"):
            control_plane.run_kubectl("get", "configmap", "kept")
    finally:
        control_plane.start()

    assert control_plane.url == url
    assert control_plane.run_kubectl("get", "configmap", "kept", "--output=jsonpath={.data.key}") == "value"
    control_plane.run_kubectl("delete", "configmap", "kept")


def test_a_user_without_a_role_may_read_nothing(control_plane: ControlPlane) -> None:
    kubeconfig = control_plane.client_kubeconfig("nobody-in-particular", "visitors")

    with pytest.raises(ClusterError, match='User "nobody-in-particular" cannot list resource "secrets"'):
        control_plane.run_kubectl("get", "secrets", f"--kubeconfig={kubeconfig}")


def test_secrets_are_readable_by_their_owner_only(control_plane: ControlPlane) -> None:
    secrets = [control_plane.kubeconfig, *control_plane.directory.glob("pki/*.key")]

    assert len(secrets) > 5
    assert {path.stat().st_mode & 0o077 for path in secrets} == {0}


def test_the_controllers_make_pods_of_a_deployment_and_the_scheduler_binds_them(tmp_path: Path) -> None:
    with ControlPlane(tmp_path / "plane") as server:
        server.start_controllers()
        server.start_scheduler()
        server.run_kubectl("create", "--filename=-", stdin=json.dumps(_node("paper")))
        # The status is a subresource, and a node that never reported is tainted by the node lifecycle controller.
        server.run_kubectl("patch", "node", "paper", "--subresource=status", "--patch", json.dumps({"status": _READY}))
        server.run_kubectl("create", "deployment", "web", "--image=none", "--replicas=2")

        pods = _wait_for_bound_pods(server, 2)

    assert {pod["spec"]["nodeName"] for pod in pods} == {"paper"}


def test_closing_leaves_no_process_and_no_file_and_leaves_foreign_files_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    server = ControlPlane(tmp_path)
    server.start()
    processes = ProcessTable(server.directory, bound_to_this_process=False).running()

    server.close()

    assert {process.name for process in processes} == {"etcd", "kube-apiserver"}
    assert not any(process.alive for process in processes)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_killed_owner_takes_its_servers_along_and_the_next_run_sweeps_its_files(tmp_path: Path) -> None:
    directory = tmp_path / "sair-control-plane-killed"
    owner = _start_by_hand("control-plane", "--dir", str(directory))
    processes = ProcessTable(directory, bound_to_this_process=False).running()
    owner.kill()
    owner.wait()

    _wait_until_dead(processes)
    # The next run in that directory clears it away and begins anew.
    assert (directory / "etcd").exists()
    server = ControlPlane(directory)
    assert not (directory / "etcd").exists()
    server.close()
    assert not directory.exists()


def test_a_live_owner_is_never_robbed(tmp_path: Path) -> None:
    directory = tmp_path / "plane"
    owner = _start_by_hand("control-plane", "--dir", str(directory))
    try:
        with pytest.raises(ClusterError, match="belongs to a control plane that runs"):
            ControlPlane(directory)
    finally:
        owner.send_signal(signal.SIGINT)
        owner.wait(timeout=20)

    assert not directory.exists()


def test_a_detached_one_outlives_its_command_and_is_discarded_later(tmp_path: Path) -> None:
    directory = tmp_path / "plane"
    owner = _start_by_hand("control-plane", "--detach", "--dir", str(directory))
    assert owner.wait(timeout=20) == 0
    processes = ProcessTable(directory, bound_to_this_process=False).running()
    assert len(processes) == 2

    discard(directory)

    assert not any(process.alive for process in processes)
    assert not directory.exists()


def test_a_missing_binary_is_named_together_with_the_command_that_builds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)

    with pytest.raises(ClusterError, match=r"no etcd, kube-apiserver, kubectl: .* build etcd kube-apiserver kubectl"):
        temporary_control_plane()


def test_a_recycled_pid_is_not_mistaken_for_the_process_that_had_it() -> None:
    itself = Identity.of("this test", os.getpid())
    predecessor = Identity("its predecessor", itself.pid, itself.started - 1)

    predecessor.kill()

    assert itself.alive
    assert not predecessor.alive


_READY = {
    "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
    "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
    "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "a node on paper"}],
}


def _node(name: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def _wait_for_bound_pods(server: ControlPlane, count: int, timeout_s: float = 30.0) -> list[dict[str, dict[str, str]]]:
    deadline = time.monotonic() + timeout_s
    while True:
        pods: list[dict[str, dict[str, str]]] = json.loads(server.run_kubectl("get", "pods", "--output=json"))["items"]
        if len([pod for pod in pods if pod["spec"].get("nodeName")]) == count:
            return pods
        assert time.monotonic() < deadline, server.run_kubectl("get", "events")
        time.sleep(0.1)


def _wait_until_dead(processes: list[Identity], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while any(process.alive for process in processes):
        assert time.monotonic() < deadline, f"still alive: {processes}"
        time.sleep(0.02)


def _start_by_hand(*arguments: str) -> "subprocess.Popen[str]":
    """Run the command line and return once it has printed the kubeconfig's path."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.cluster", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # What is started in the background of a script ignores SIGINT, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # no threads here
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline().startswith("export KUBECONFIG=")
    return process
