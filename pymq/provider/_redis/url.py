"""Which server is meant: by redis-py's arguments, by a client of redis-py, by a URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pymq.provider import number, without_password

NAMES = {
    "host", "port", "db", "username", "password", "ssl", "credential_provider", "client_name", "path",
    "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options", "socket_type",
}  # fmt: skip
"""redis-py's arguments that say where the server is and how to be let in; with all that begin with `ssl_`. The others tell its
client how to behave, which is our affair."""

TUNING = {"max_pending": int, "publish_timeout": float, "max_message_bytes": int, "max_queue_bytes": int}
FLAGS = ("ssl_check_hostname", "ssl_validate_ocsp", "ssl_validate_ocsp_stapled")
SCHEMES = {"redis": "", "rediss": "", "unix": "", "redis+sentinel": "sentinel", "redis+cluster": "cluster"}
PORTS = {"sentinel": 26379}


def connection_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What of redis-py's arguments makes a connection. Raises TypeError for one that is none."""
    found = {"path" if name == "unix_socket_path" else name: value for name, value in arguments.items() if value is not None}
    for name in found:
        if not _is_known(name):
            raise TypeError(f"RedisConfig has no argument {name!r}; known of redis-py's: {', '.join(sorted(NAMES))}, ssl_…")
    return found


def _is_known(name: str) -> bool:
    return name in NAMES or name.startswith("ssl_")


def of_client(client: Any) -> dict[str, Any]:
    """The fields of a config that leads where a client of redis-py does; the client is only looked at."""
    if (nodes := getattr(client, "nodes_manager", None)) is not None:
        known = [(node.host, node.port) for node in (*nodes.startup_nodes.values(), *nodes.nodes_cache.values())]
        return {"mode": "cluster", "nodes": tuple(dict.fromkeys(known)), "connection": _kept(nodes.connection_kwargs)}
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        raise TypeError(f"RedisConfig takes a client of redis-py, not {client!r}; a URL goes to RedisConfig.from_url")
    found = {"connection": _kept(pool.connection_kwargs)}
    if "SSL" in pool.connection_class.__name__:
        found["connection"]["ssl"] = True
    manager = getattr(pool, "sentinel_manager", None)
    if manager is None:
        return found
    sentinels = [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
    nodes = tuple((each["host"], each["port"]) for each in sentinels)
    login = {name: value for name, value in sentinels[0].items() if name in ("username", "password") and value}
    return {**found, "mode": "sentinel", "nodes": nodes, "service": pool.service_name, "sentinel": login}


def _kept(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if _is_known(name) and value is not None}


def parse(url: str) -> dict[str, Any]:
    """The arguments of RedisConfig that a URL stands for. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or parts.fragment:
        raise ValueError(
            f"{without_password(url)!r} is no URL of a Redis server; write a # in it as %23. Schemes: {', '.join(SCHEMES)}"
        )
    mode = SCHEMES[parts.scheme]
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    found: dict[str, Any] = {"mode": mode, "username": unquote(username) or None, "password": unquote(password) or None}
    found |= {"ssl": True} if parts.scheme == "rediss" else {}
    segments = [unquote(segment) for segment in parts.path.strip("/").split("/") if segment]
    if parts.scheme == "unix":
        found["unix_socket_path"] = unquote(parts.path)
    else:
        nodes = tuple(_node(host, PORTS.get(mode, 6379), url) for host in hosts.split(",") if host)
        found |= {"nodes": nodes} if mode else dict(zip(("host", "port"), (*nodes[:1], ("localhost", 6379))[0]))
        found |= _path(segments, mode, url)
    return {**found, **_options(parts.query, url)}


def _path(segments: list[str], mode: str, url: str) -> dict[str, Any]:
    names = (["service"] if mode == "sentinel" else []) + ["db", "namespace"]
    if len(segments) > len(names) or (mode == "sentinel" and not segments):
        raise ValueError(f"the path of {without_password(url)!r} is not /{'/'.join(names)}; write a / of a name as %2F")
    found: dict[str, Any] = dict(zip(names, segments))
    if "db" in found:
        found["db"] = number("db", found["db"], int, url)
    return found


def _node(text: str, port: int, url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        return parts.hostname or "localhost", parts.port or port
    except ValueError:  # its own text may hold a part of the password
        raise ValueError(f"{without_password(url)!r} names no host and port; in a password write @ : / ? # % as %xx") from None


def _options(query: str, url: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in TUNING:
            found[name] = number(name, text, TUNING[name], url)
        elif name in ("db", "socket_connect_timeout"):
            found[name] = number(name, text, int if name == "db" else float, url)
        elif name in FLAGS:
            found[name] = _flag(name, text, url)
        elif name in ("namespace", "client_name", "username", "password") or name.startswith("ssl_"):
            found[name] = text
        else:
            known = sorted({*TUNING, "namespace", "db", "client_name", "username", "password", "socket_connect_timeout", "ssl_…"})
            raise ValueError(f"unknown option {name!r} in {without_password(url)!r}; known: {', '.join(known)}")
    return found


def _flag(name: str, text: str, url: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{name}={text!r} in {without_password(url)!r} is neither true nor false")
    return text.lower() == "true"
