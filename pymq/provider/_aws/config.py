"""How to reach AWS: the configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from pymq.provider.aws import AwsProvider


@dataclass(frozen=True)
class AwsConfig:
    """The account of `session` (a `boto3.Session`; by default what the environment says), in `region`.

    `ordered`: FIFO topics and queues, which all participants must choose alike. `lease`: after how many seconds a process that
    does not answer is taken for dead. `refresh`: for how many seconds may be believed who serves a remote, and that nobody binds a
    pattern. `poll`: how many seconds SQS is asked to wait for messages, at most 20.
    """

    session: Any = None
    region: str | None = None
    endpoint_url: str | None = None
    namespace: str = "default"
    ordered: bool = False
    lease: float = 60.0
    refresh: float = 5.0
    poll: float = 20.0

    emulated = False

    def create(self) -> AwsProvider:
        """A new provider, not open yet."""
        from pymq.provider.aws import AwsProvider

        return AwsProvider(self)

    @classmethod
    def from_url(cls, url: str) -> AwsConfig:
        """`aws://region/namespace?lease=60&ordered=1&endpoint_url=http://...`, each part optional. Raises ValueError."""
        parts = urlsplit(url)
        namespace = unquote(parts.path.removeprefix("/"))
        if "/" in parts.path.removeprefix("/") or parts.fragment:
            raise ValueError(f"{url!r} has more than a region, a namespace and options; write a / of the namespace as %2F, a # as %23")
        given: dict[str, Any] = {name: _option(name, text, url) for name, text in parse_qsl(parts.query, keep_blank_values=True)}
        if parts.netloc:
            given["region"] = parts.netloc
        if namespace:
            given["namespace"] = namespace
        return cls(**given)


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "lease": float,
    "refresh": float,
    "poll": float,
    "ordered": lambda text: bool(int(text)),
    "endpoint_url": str,
}


def _option(name: str, text: str, url: str) -> Any:
    if name not in _OPTIONS:
        raise ValueError(f"unknown option {name!r} in {url!r}; known: {', '.join(sorted(_OPTIONS))}")
    try:
        return _OPTIONS[name](text)
    except ValueError:
        raise ValueError(f"option {name}={text!r} in {url!r} is not a number") from None


@dataclass(frozen=True, init=False)
class LocalstackConfig(AwsConfig):
    """An emulator of AWS on this machine; without credentials in the environment it is given some, since it checks none.

    The other arguments are those of `AwsConfig`, by name.
    """

    emulated = True

    def __init__(self, endpoint_url: str = "http://localhost:4566", region: str = "us-east-1", **others: Any) -> None:
        super().__init__(endpoint_url=endpoint_url, region=region, **others)
