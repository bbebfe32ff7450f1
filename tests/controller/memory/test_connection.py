import asyncio
import datetime as dt
from pathlib import Path

import pytest
import redis.asyncio as redis

from controller.memory.connection import parse_url, without_password
from controller.memory.embedded import free_port, server_binary, server_process
from controller.memory.mirror import MirroredMemory
from controller.memory.store import Store
from sair.errors import InvalidInput, MemoryUnavailable
from sair.tls import issue_ca, issue_server
from tests.builders import experience
from tests.controller.memory.servers import answers, clustered, eventually, plain, replicated
from tests.controlplane import give_up
from tests.e2e.cluster.errors import Unavailable

PIPELINE = "default/vision"


def test_every_form_of_a_url_is_understood() -> None:
    single = parse_url("redis://sair:p%40ss@redis.example/3")
    assert (single.hosts, single.database, single.username, single.password) == (
        (("redis.example", 6379),),
        3,
        "sair",
        "p@ss",
    )
    tls = parse_url("rediss://[::1]:6380?ssl_ca_certs=/etc/ca.pem")
    assert tls.tls
    assert tls.hosts == (("::1", 6380),)
    assert tls.files == (("ssl_ca_certs", "/etc/ca.pem"),)
    sentinel = parse_url("redis+sentinel://:secret@a:1,b,c:3/mine/2?sentinel_username=u&sentinel_password=s")
    assert sentinel.hosts == (("a", 1), ("b", 26379), ("c", 3))
    assert (sentinel.master, sentinel.database, sentinel.username) == ("mine", 2, None)
    assert (sentinel.sentinel_username, sentinel.sentinel_password) == ("u", "s")
    cluster = parse_url("rediss+cluster://a:7000,b:7001")
    assert cluster.kind == "cluster"
    assert cluster.tls
    assert cluster.hosts == (("a", 7000), ("b", 7001))


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("", "expected redis://"),
        ("http://a", "expected redis://"),
        ("redis://", "expected redis://"),
        ("redis://a:0", "Redis URL host"),
        ("redis://a:99999", "Redis URL host"),
        ("redis://a:x", "Redis URL host"),
        ("redis://a,b", "several need redis\\+sentinel"),
        ("redis://a/one", "Redis URL database"),
        ("redis://a/1/2", "Redis URL database"),
        ("redis://a/²", "Redis URL database"),
        ("redis://[::1", "Redis URL"),
        ("redis://a?ssl_ca_certs=x", "none with this scheme"),
        ("rediss://a?verify=no", "ssl_ca_certs, ssl_certfile, ssl_keyfile"),
        ("redis+sentinel://a:1", "the name of the master"),
        ("redis+cluster://a:1/2", "a cluster has no other"),
    ],
)
def test_a_malformed_url_is_refused_with_the_part_that_is_wrong(url: str, part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        parse_url(url)


def test_a_password_is_never_shown() -> None:
    for url in ("http://me:hush@a", "redis://me:hush@a:x", "redis+sentinel://:hush@a/?sentinel_password=hush"):
        with pytest.raises(InvalidInput) as refused:
            parse_url(url)
        assert "hush" not in str(refused.value)
    assert without_password("redis://me:hush@a/0") == "redis://…@a/0"


async def test_a_tls_file_that_does_not_exist_is_named() -> None:
    url = "rediss://a?ssl_ca_certs=/nowhere/ca.pem"
    with pytest.raises(InvalidInput, match=r"ssl_ca_certs: '/nowhere/ca\.pem'"):
        await asyncio.to_thread(Store.from_url, url)


def certified(folder: Path) -> list[str]:
    """Certificates for loopback, and one of a stranger; gives a server's settings for them, names and values in turn."""
    now = dt.datetime.now(dt.UTC)
    authority, stranger = issue_ca("memory", now=now), issue_ca("stranger", now=now)
    server = issue_server(authority, ["127.0.0.1"], now=now)
    for name, content in {
        "ca.pem": authority.certificate,
        "other.pem": stranger.certificate,
        "server.pem": server.certificate,
        "server.key": server.key,
    }.items():
        (folder / name).write_bytes(content)
    files = {"tls-cert-file": "server.pem", "tls-key-file": "server.key", "tls-ca-cert-file": "ca.pem"}
    return [*(part for name, file in files.items() for part in (name, str(folder / file))), "tls-auth-clients", "no"]


async def test_memory_works_over_tls_and_refuses_a_server_that_another_authority_signed(tmp_path: Path) -> None:
    arguments = [f"--{part}" if at % 2 == 0 else part for at, part in enumerate(certified(tmp_path))]
    port = free_port()
    async with plain(tmp_path / "data", "--tls-port", str(port), *arguments) as (process, plain_port):

        async def up() -> bool:
            if process.returncode is not None and "TLS support" in (tmp_path / "data" / "log").read_text():
                give_up(Unavailable(f"{server_binary()} speaks no TLS; Debian's redis-server does"))
            return await answers(plain_port)

        await eventually(up)
        good = await asyncio.to_thread(Store.from_url, f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path / 'ca.pem'}")
        await good.restore(PIPELINE, [experience(1)], {}, {})
        assert (await good.load(PIPELINE)).experiences == (experience(1),)
        await good.close()
        other = await asyncio.to_thread(
            Store.from_url, f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path / 'other.pem'}"
        )
        with pytest.raises(MemoryUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await other.load(PIPELINE)
        await other.close()


async def test_a_master_is_found_through_a_sentinel_and_both_are_spoken_to_over_tls(tmp_path: Path) -> None:
    settings = certified(tmp_path)
    port, sentinel_port = free_port(), free_port()
    both = ["tls-replication", "yes", *settings]
    arguments = [f"--{part}" if at % 2 == 0 else part for at, part in enumerate(both)]
    lines = [f"{name} {value}" for name, value in zip(both[::2], both[1::2], strict=True)]
    sentinel = tmp_path / "sentinel.conf"
    sentinel.write_text(
        "\n".join([f"port 0\ntls-port {sentinel_port}\nbind 127.0.0.1\ndir {tmp_path}", *lines])
        + f"\nsentinel monitor mine 127.0.0.1 {port} 1\n"
    )
    binary = await asyncio.to_thread(server_binary)
    async with (
        plain(tmp_path / "data", "--port", "0", "--tls-port", str(port), *arguments, port=port) as (process, _),
        server_process(binary, str(sentinel), "--sentinel"),
    ):
        url = f"rediss+sentinel://127.0.0.1:{sentinel_port}/mine?ssl_ca_certs="
        store = await asyncio.to_thread(Store.from_url, f"{url}{tmp_path / 'ca.pem'}")

        async def up() -> bool:
            if process.returncode is not None and "TLS support" in (tmp_path / "data" / "log").read_text():
                give_up(Unavailable(f"{server_binary()} speaks no TLS; Debian's redis-server does"))
            try:
                await store.ensure_schema()
            except MemoryUnavailable:
                return False
            return True

        await eventually(up)
        await store.restore(PIPELINE, [experience(1)], {}, {})
        assert (await store.load(PIPELINE)).experiences == (experience(1),)
        await store.close()
        other = await asyncio.to_thread(Store.from_url, f"{url}{tmp_path / 'other.pem'}")
        with pytest.raises(MemoryUnavailable):
            await other.load(PIPELINE)
        await other.close()


async def test_an_acl_user_that_may_touch_nothing_but_sairs_keys_is_enough(tmp_path: Path) -> None:
    rules = "user sair on >hush ~sair:* +@all -@dangerous -@admin +keys"
    users = tmp_path / "users.acl"
    users.write_text(f"{rules}\nuser default off\n")
    async with plain(tmp_path / "data", "--aclfile", str(users)) as (_process, port):
        store = Store.from_url(f"redis://sair:hush@127.0.0.1:{port}/0")

        async def up() -> bool:
            try:
                await store.ensure_schema()
            except MemoryUnavailable:
                return False
            return True

        await eventually(up)
        memory = MirroredMemory(store)
        await memory.save([experience(1)], PIPELINE, {"round": "1"}, {})
        await memory.record(PIPELINE, {"kind": "decision"})
        assert memory.available
        assert (await store.load(PIPELINE)).experiences == (experience(1),)
        assert await store.pipelines() == (PIPELINE,)
        stranger = Store.from_url(f"redis://sair:wrong@127.0.0.1:{port}/0")
        with pytest.raises(MemoryUnavailable, match=r"(?i)auth|wrongpass"):
            await stranger.load(PIPELINE)
        await stranger.close()
        await store.close()


async def test_nothing_is_lost_when_sentinel_replaces_the_master_during_writes(tmp_path: Path) -> None:
    async with replicated(tmp_path) as servers:
        store = Store.from_url(servers.url)
        memory = MirroredMemory(store)
        for number in range(5):
            await memory.save([experience(number)], PIPELINE, {"round": str(number)}, {})
        assert memory.available
        old = await servers.master_port()
        servers.master.kill()
        await servers.master.wait()
        number = 5
        while await servers.master_port() == old or not memory.available or number < 10:
            await memory.save([experience(number)], PIPELINE, {"round": str(number)}, {})
            await memory.record(PIPELINE, {"kind": "decision", "round": str(number)})
            number += 1
            assert number < 1000
            await asyncio.sleep(0.1)
        await memory.save([experience(number)], PIPELINE, {"round": str(number)}, {})
        assert memory.unsaved == 0
        loaded = await store.load(PIPELINE)
        assert [e.round for e in loaded.experiences] == list(range(number + 1))
        assert len(await store.decisions(PIPELINE, 2000)) == number - 5
        await store.close()


@pytest.mark.blocking_allowed  # redis-py's cluster client holds threading locks, that nobody contends for
async def test_memory_works_on_a_cluster_where_pipelines_live_on_different_nodes(tmp_path: Path) -> None:
    pipelines = [f"default/p{number}" for number in range(12)]
    async with clustered(tmp_path) as ports:
        store = Store.from_url("redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports[:2]))
        memory = MirroredMemory(store)
        for pipeline in pipelines:
            await memory.load(pipeline)
            for number in range(3):
                await memory.save([experience(number, pipeline=pipeline)], pipeline, {"round": str(number)}, {})
            await memory.record(pipeline, {"kind": "decision"})
        assert memory.available
        assert memory.unsaved == 0
        assert await store.pipelines() == tuple(sorted(pipelines))
        for pipeline in pipelines:
            assert [e.round for e in (await store.load(pipeline)).experiences] == [0, 1, 2]
            assert len(await store.decisions(pipeline, 9)) == 1
        holding = 0
        for port in ports:
            async with redis.Redis(port=port, decode_responses=True) as client:
                holding += bool([key async for key in client.scan_iter(match="sair:{*}:controller")])
        assert holding == 3
        assert await store.forget(pipelines[0]) == 9
        assert pipelines[0] not in await store.pipelines()
        await store.close()


@pytest.mark.blocking_allowed  # redis-py's cluster client holds threading locks, that nobody contends for
async def test_a_node_of_a_cluster_that_was_flushed_is_filled_up_again(tmp_path: Path) -> None:
    async with clustered(tmp_path) as ports:
        store = Store.from_url(f"redis+cluster://127.0.0.1:{ports[0]}")
        memory = MirroredMemory(store)
        for number in range(3):
            await memory.save([experience(number)], PIPELINE, {"round": str(number)}, {})
        for port in ports:
            async with redis.Redis(port=port) as client:
                await client.flushall()
        await memory.save([experience(3)], PIPELINE, {"round": "3"}, {})
        assert [e.round for e in (await store.load(PIPELINE)).experiences] == [0, 1, 2, 3]
        await store.ensure_schema()
        await store.close()


def test_a_socket_is_a_server_too() -> None:
    address = parse_url("unix://sair:p%40ss@/run/redis/redis.sock")
    assert (address.socket, address.username, address.password) == ("/run/redis/redis.sock", "sair", "p@ss")


@pytest.mark.parametrize("url", ["unix://", "unix://host/run/redis.sock", "unix:///run/redis.sock?db=1"])
def test_a_malformed_socket_is_refused_with_the_form(url: str) -> None:
    with pytest.raises(InvalidInput, match="path/of/socket"):
        parse_url(url)
