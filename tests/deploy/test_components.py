"""Configuration that other programs read, tried on these programs: kube-scheduler and Redis, with the rights they get."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import typer
import yaml
from typer.testing import CliRunner

from controller.memory.embedded import server_binary
from controller.memory.store import Store
from sair.generated import generate_password
from tests.builders import experience
from tests.controlplane import give_up
from tests.deploy.rendered import DEPLOY, named, of_kind
from tests.e2e.cluster import binaries
from tests.e2e.cluster.control_plane import ControlPlane
from tests.e2e.cluster.errors import ClusterError, Unavailable

SCHEDULER = "system:serviceaccount:sair-system:sair-scheduler"
REDIS = "system:serviceaccount:sair-system:sair-redis"


@pytest.fixture(scope="module")
def rights(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The accounts' rights, and nothing that runs."""
    files = [f"--filename={DEPLOY / 'base' / part}" for part in ("scheduler/rbac.yaml", "redis/rbac.yaml")]
    control_plane.run_kubectl("apply", f"--filename={DEPLOY / 'base' / 'namespaces.yaml'}")
    control_plane.run_kubectl("apply", *files)
    yield control_plane
    control_plane.run_kubectl("delete", *files)


class TestTheScheduler:
    def test_starts_with_this_configuration_and_these_rights_and_takes_its_lease(
        self, rights: ControlPlane, tmp_path: Path
    ) -> None:
        config = self._configuration(rights.client_kubeconfig(SCHEDULER))
        path = tmp_path / "scheduler.yaml"
        path.write_text(yaml.safe_dump(config))
        program = binaries.find("kube-scheduler")
        if program is None:
            give_up(Unavailable("no kube-scheduler"))
        flags = self._flags()
        log = tmp_path / "log"
        with log.open("w") as output:
            process = subprocess.Popen([program, f"--config={path}", *flags], stdout=output, stderr=output)
        try:
            holder = self._wait_for_holder(rights, process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)

        assert holder.startswith(os.uname().nodename + "_")
        refused = [line for line in log.read_text().splitlines() if "forbidden" in line]
        assert refused == []

    def _configuration(self, kubeconfig: Path) -> dict[str, Any]:
        (found,) = (
            one for one in of_kind("base", "ConfigMap") if one["metadata"]["name"].startswith("sair-scheduler-config")
        )
        config: dict[str, Any] = yaml.safe_load(found["data"]["scheduler.yaml"])
        config["clientConnection"]["kubeconfig"] = str(kubeconfig)
        return config

    def _flags(self) -> list[str]:
        pod = named("base", "Deployment", "sair-scheduler")["spec"]["template"]["spec"]
        command: list[str] = pod["containers"][0]["command"]
        kept = [flag for flag in command if flag.startswith("--auth")]
        assert kept
        return [*kept, "--bind-address=127.0.0.1", "--secure-port=0"]

    def _wait_for_holder(self, cluster: ControlPlane, process: subprocess.Popen[bytes], log: Path) -> str:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                raw = cluster.run_kubectl("get", "lease", "sair-scheduler", "--namespace=sair-system", "--output=json")
            except ClusterError:
                time.sleep(0.2)
                continue
            return str(json.loads(raw)["spec"]["holderIdentity"])


class TestThePassword:
    def test_is_made_once_and_never_again(self, rights: ControlPlane) -> None:
        first = self._generate(rights)
        second = self._generate(rights)

        assert first == second
        assert len(first) > 40

    def test_of_somebody_else_is_out_of_reach(self, rights: ControlPlane) -> None:
        kubeconfig = rights.client_kubeconfig(REDIS)
        with pytest.raises(ClusterError, match="forbidden"):
            rights.run_kubectl(
                "get", "secret", "sair-webhook-tls", "--namespace=sair-system", f"--kubeconfig={kubeconfig}"
            )

    def _generate(self, cluster: ControlPlane) -> str:
        command = typer.Typer(add_completion=False)
        command.command()(generate_password)
        environment = {"KUBECONFIG": str(cluster.client_kubeconfig(REDIS)), "POD_NAMESPACE": "sair-system"}
        result = CliRunner().invoke(command, ["sair-redis"], env=environment, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        raw = json.loads(cluster.run_kubectl("get", "secret", "sair-redis", "--namespace=sair-system", "--output=json"))
        encoded: str = raw["data"]["password"]
        assert encoded not in result.output
        return encoded


class TestRedis:
    @pytest.fixture(scope="class")
    @classmethod
    def socket(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        """A server with the manifests' configuration, and users from the init container's own script."""
        server = server_binary()
        folder = tmp_path_factory.mktemp("redis")
        pod = named("base", "StatefulSet", "sair-redis")["spec"]["template"]["spec"]
        (users,) = (one for one in pod["initContainers"] if one["name"] == "users")
        script = users["command"][-1].replace("/run/redis", str(folder))
        subprocess.run(["sh", "-euc", script], env={**os.environ, "REDIS_PASSWORD": "correct-horse"}, check=True)
        (found,) = (
            one for one in of_kind("base", "ConfigMap") if one["metadata"]["name"].startswith("sair-redis-config")
        )
        text = found["data"]["redis.conf"].replace("/run/redis", str(folder)).replace("dir /data", f"dir {folder}")
        config = folder / "redis.conf"
        config.write_text(text.replace("port 6379", f"port 0\nunixsocket {folder}/socket"))
        process = subprocess.Popen([server, config], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not (folder / "socket").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        yield folder / "socket"
        process.terminate()
        process.wait(timeout=10)

    @pytest.fixture
    def client(self, socket: Path) -> Iterator[redis.Redis]:
        with redis.Redis(unix_socket_path=str(socket), username="sair", password="correct-horse") as client:
            yield client

    def test_serves_the_controllers_commands(self, client: redis.Redis) -> None:
        client.hset("sair:x", mapping={"a": "1"})
        client.xadd("sair:journal", {"a": "1"})
        client.zadd("sair:frontier", {"a": 1})
        assert list(client.scan_iter("sair:*"))
        assert client.eval("return redis.call('HGET', KEYS[1], 'a')", 1, "sair:x") == b"1"
        with client.pipeline(transaction=True) as pipeline:
            pipeline.incr("sair:n")
            pipeline.expire("sair:n", 10)
            assert pipeline.execute() == [1, True]
        assert client.info("server")["redis_version"]
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}

    async def test_takes_the_controllers_own_memory(self, socket: Path) -> None:
        store = Store.from_url(f"unix://sair:correct-horse@{socket}")
        try:
            await store.ensure_schema()
            await store.restore("default/vision", [experience()], {"round": "1"}, {})
            await store.append_decision("default/vision", {"action": "hold"})

            assert (await store.load("default/vision")).experiences == (experience(),)
            assert await store.pipelines() == ("default/vision",)
            assert await store.forget("default/vision") > 3
        finally:
            await store.close()

    @pytest.mark.parametrize(
        "command", [("FLUSHALL",), ("CONFIG", "SET", "dir", "/tmp"), ("KEYS", "*"), ("ACL", "LIST")]
    )
    def test_refuses_what_an_application_has_no_business_with(
        self, client: redis.Redis, command: tuple[str, ...]
    ) -> None:
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis has no types for it

    def test_lets_nobody_in_without_the_password(self, socket: Path) -> None:
        with redis.Redis(unix_socket_path=str(socket)) as stranger, pytest.raises(redis.exceptions.AuthenticationError):
            stranger.ping()
