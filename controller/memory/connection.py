"""Where Redis is: one server, a master behind Sentinels, or a cluster; each with TLS and ACL users, all from one URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import redis.asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialBackoff

from sair.errors import InvalidInput

__all__ = ["Address", "close", "connect", "parse_url", "without_password"]

_TIMEOUT_S: Final = 2.0
_FORMS: Final = (
    "redis://[user:password@]host[:port][/db], rediss://… for TLS, "
    "unix://[user:password@]/path/of/socket, "
    "redis+sentinel://host:port,host:port/<master>[/db] or redis+cluster://host:port,host:port"
)
_KINDS: Final[Mapping[str, tuple[Literal["single", "sentinel", "cluster"], bool]]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_DEFAULT_PORTS: Final = {"single": 6379, "sentinel": 26379, "cluster": 6379}
_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")
_DATABASES: Final = 16_384


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed URL."""

    kind: Literal["single", "sentinel", "cluster"]
    hosts: tuple[tuple[str, int], ...] = ()
    """The server, the Sentinels, or some nodes of the cluster."""
    socket: str = ""
    """Path of a Unix socket; then there are no hosts."""
    tls: bool = False
    database: int = 0
    master: str = ""
    """Name the Sentinels know the master by."""
    username: str | None = None
    password: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    """Paths of ssl_ca_certs, ssl_certfile and ssl_keyfile, as far as given."""
    sentinel_username: str | None = None
    sentinel_password: str | None = None


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    shown = re.sub(r"//[^/?#]*@", "//…@", url)
    return re.sub(r"(password=)[^&#]*", r"\1…", shown)


def parse_url(url: str) -> Address:
    """Read a Redis URL. Characters with a meaning in URLs are percent-encoded in user names and passwords.

    Raises:
        InvalidInput: Names the part that is wrong and what is allowed; never shows a password.
    """

    def wrong(part: str, value: object, allowed: str) -> InvalidInput:
        return InvalidInput(f"Redis URL {part}".rstrip(), value, allowed)

    shown = without_password(url)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise wrong("", shown, _FORMS) from error
    if parts.scheme == "unix":
        return _socket(parts, shown)
    if parts.scheme not in _KINDS or not parts.netloc:
        raise wrong("", shown, _FORMS)
    kind, tls = _KINDS[parts.scheme]
    credentials, _, hosts_text = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    hosts = []
    for each in hosts_text.split(","):
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?", each)
        port = int(found[2] or _DEFAULT_PORTS[kind]) if found else 0
        if not found or not 0 < port < 65_536:
            raise wrong("host", each, "host:port with a port from 1 to 65535")
        hosts.append((found[1].strip("[]"), port))
    if kind == "single" and len(hosts) > 1:
        raise wrong("host", hosts_text, "one host; several need redis+sentinel:// or redis+cluster://")
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    master = ""
    if kind == "sentinel":
        if not segments:
            raise wrong("path", parts.path, "the name of the master: redis+sentinel://host:port/<master>[/db]")
        master = segments.pop(0)
    database = segments.pop(0) if segments else "0"
    if segments or not database.isascii() or not database.isdigit() or int(database) >= _DATABASES:
        raise wrong("database", parts.path, "a whole number after the last /")
    if kind == "cluster" and database != "0":
        raise wrong("database", database, "0: a cluster has no other")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    allowed = (*(_FILES if tls else ()), *(_SENTINEL_OPTIONS if kind == "sentinel" else ()))
    for name in options:
        if name not in allowed:
            raise wrong("option", name, ", ".join(allowed) or "none with this scheme")
    return Address(
        kind=kind,
        hosts=tuple(hosts),
        tls=tls,
        database=int(database),
        master=master,
        username=unquote(username) or None,
        password=unquote(password) or None,
        files=tuple((name, options[name]) for name in _FILES if name in options),
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _socket(parts: SplitResult, shown: str) -> Address:
    credentials, _, host = parts.netloc.rpartition("@")
    if host or len(parts.path) < 2 or parts.query:
        raise InvalidInput("Redis URL path", shown, "unix://[user:password@]/path/of/socket")
    username, _, password = credentials.partition(":")
    return Address(
        kind="single",
        socket=unquote(parts.path),
        username=unquote(username) or None,
        password=unquote(password) or None,
    )


def connect(address: Address) -> redis.Redis:
    """A client that connects when it is first used and decodes responses.

    Raises:
        InvalidInput: If a TLS file does not exist; names the option.
    """
    for name, path in address.files:
        if not Path(path).is_file():
            raise InvalidInput(f"Redis URL {name}", path, "a file that exists")
    tls: dict[str, Any] = {"ssl": True, **dict(address.files)} if address.tls else {}
    common: dict[str, Any] = {
        "decode_responses": True,
        # Whatever is no UTF-8 must be refused as an entry, not raise from the middle of a reply.
        "encoding_errors": "replace",
        "socket_timeout": _TIMEOUT_S,
        "socket_connect_timeout": _TIMEOUT_S,
        # Once more for a connection that went stale; longer waits are the mirror's, not the loop's.
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.05), 1),
        **tls,
    }
    credentials: dict[str, Any] = {"username": address.username, "password": address.password}
    if address.kind == "cluster":
        nodes = [ClusterNode(host, port, **tls) for host, port in address.hosts]
        cluster = RedisCluster(startup_nodes=nodes, **common, **credentials)
        return cast(redis.Redis, cluster)
    if address.kind == "sentinel":
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            address.hosts,
            sentinel_kwargs={
                **common,
                "username": address.sentinel_username,
                "password": address.sentinel_password,
            },
            db=address.database,
            **common,
            **credentials,
        )
        return cast(redis.Redis, sentinel.master_for(address.master))
    if address.socket:
        return redis.Redis(unix_socket_path=address.socket, **common, **credentials)
    host, port = address.hosts[0]
    return redis.Redis(host=host, port=port, db=address.database, **common, **credentials)


async def close(client: redis.Redis) -> None:
    """Close a client's connections; those to Sentinels too, which redis-py leaves open."""
    pool = getattr(client, "connection_pool", None)
    await client.aclose()
    if isinstance(pool, SentinelConnectionPool):
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()
