"""Providers: what carries the messages. `config_from` finds one by its name or by a URL."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from pymq.exceptions import ProviderError

if TYPE_CHECKING:
    from pymq.provider.base import Provider

_REDIS = dict.fromkeys(("redis", "rediss", "unix", "redis+sentinel", "redis+cluster"), "pymq.provider.redis:RedisConfig")
_BUILT_IN = {
    "shm": "pymq.provider.shm:ShmConfig",
    "simple": "pymq.provider.simple:SimpleConfig",
    "ipc": "pymq.provider.ipc:IpcConfig",
    "aws": "pymq.provider.aws:AwsConfig",
    **_REDIS,
}
"""Found without the package's metadata, so that a checkout works where it is not installed."""

ConfigClass = TypeVar("ConfigClass")


class Config(Protocol):
    """How to reach a provider. A class that is named in an entry point has a classmethod `from_url(url)` as well."""

    def create(self) -> Provider:
        """A new provider, not open yet."""


def configured(target: Config | str | None) -> Config:
    """What was given as a config: that of a URL, or of shared memory for None. Raises TypeError for anything else, ValueError."""
    if target is None:
        from pymq.provider.shm import ShmConfig

        return ShmConfig()
    if isinstance(target, str):
        return config_from(target)
    if not is_config(target):
        raise TypeError(f"a bus wants a config or a URL, such as RedisConfig(client) or 'redis://host/0', not {target!r:.100}")
    return target


def is_config(target: object) -> bool:
    """Whether it makes a provider; the class of a config does not."""
    return hasattr(target, "create") and not isinstance(target, type)


def config_from(target: str) -> Config:
    """The config that a URL ("shm://namespace?option=value") or a provider's bare name ("simple") stands for.

    A scheme is the name of an entry point in the group `pymq.providers`. Raises ValueError, with the known names, for another,
    ProviderError where the entry point names what is not there.
    """
    scheme, separator, _ = target.partition("://")
    chosen = _config_class(scheme, target)
    if separator and not hasattr(chosen, "from_url"):
        raise ValueError(f"{chosen.__qualname__}, the config of {scheme!r}, has no from_url(url), so no URL means it")
    config: Config = chosen.from_url(target) if separator else chosen()
    return config


def _config_class(name: str, target: str) -> Any:
    from importlib.metadata import EntryPoint, entry_points

    if name in _BUILT_IN:
        return EntryPoint(name, _BUILT_IN[name], "pymq.providers").load()
    found = {entry.name: entry for entry in entry_points(group="pymq.providers")}
    if name not in found:
        raise ValueError(
            f"no provider is called {name!r} (in {without_password(target)!r}); known: {', '.join(sorted(_BUILT_IN | found.keys()))}"
        )
    try:
        return found[name].load()
    except (ImportError, AttributeError) as error:
        raise ProviderError(f"the provider {name!r} cannot be loaded: its entry point says {found[name].value!r}: {error}") from error


def without_password(url: str) -> str:
    """The URL as people may read it."""
    url = re.sub(r"([?&]\w*password=)[^&]*", r"\1…", url)
    login, at, rest = url.rpartition("@")
    start, separator, user = login.partition("://")
    return f"{start}{separator}{user.partition(':')[0]}{at}{rest}" if at else url


def dataclass_from_url(config: type[ConfigClass], url: str) -> ConfigClass:
    """The dataclass `config` with the namespace and the options of `scheme://namespace?option=number`.

    An option is a field with a number as its default, or a `float | None`. Raises ValueError for what is none, or does not fit.
    """
    parts = urlsplit(url)
    if parts.path.strip("/") or parts.fragment or "@" in parts.netloc:
        parts_of_names = "a / of the namespace as %2F, a # as %23 and an @ as %40"
        raise ValueError(f"{without_password(url)!r} has more than a namespace and options; write {parts_of_names}")
    fields: tuple[Any, ...] = dataclasses.fields(config)  # type: ignore[arg-type]
    kinds = {field.name: type(field.default) for field in fields if isinstance(field.default, (int, float))}
    kinds |= {field.name: float for field in fields if field.type == "float | None"}
    options = {name: _option(name, text, kinds, url) for name, text in parse_qsl(parts.query, keep_blank_values=True)}
    return config(**({"namespace": unquote(parts.netloc)} if parts.netloc else {}), **options)


def _option(name: str, text: str, kinds: dict[str, type], url: str) -> Any:
    if name not in kinds:
        raise ValueError(f"unknown option {name!r} in {url!r}; known: {', '.join(sorted(kinds))}")
    return number(f"option {name}", text, kinds[name], url)


def number(name: str, text: str, kind: type, url: str) -> Any:
    """The number that a text in a URL stands for. Raises ValueError, naming what it is of, where it is none."""
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={text!r} in {without_password(url)!r} is not a number of type {kind.__name__}, 0 or more")
    return value
