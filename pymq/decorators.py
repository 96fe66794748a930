"""Decorators, and the options that they take: checked where they stand, with or without a bus."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypedDict, TypeVar

from pymq.groups import Options
from pymq.handlers import Target, describe, targets_of
from pymq.topics import instead_of

F = TypeVar("F", bound=Callable[..., Any])


class GroupOptions(TypedDict, total=False):
    """What `subscribe` takes beside the group, for type checkers."""

    retries: int | None
    backoff: float | None
    lease: float | None
    workers: int | None


class SubscribeOptions(GroupOptions, total=False):
    """What `@subscriber` takes by name, for type checkers."""

    channel: str | None
    pattern: bool
    group: str | None


def options_of(verb: Callable[..., Any], function: Callable[..., Any], given: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    """What `verb(function, …)` is given, by name. Raises TypeError, with the function's name, for what it does not take."""
    signature = inspect.signature(verb)
    try:
        _, *named = signature.bind(function, *given, **options).arguments.items()
    except TypeError as error:
        known = ", ".join([*signature.parameters][1:])
        raise TypeError(f"{describe(function)}: {error}; its options are {known}") from None
    return dict(named)


def check_subscription(function: Callable[..., Any], options: dict[str, Any]) -> list[Target]:
    """What the handler is subscribed to. Raises TypeError and ValueError as `subscribe` does, also while there is no bus."""
    Options.of(**{name: value for name, value in options.items() if name not in ("channel", "pattern")})
    return targets_of(function, options.get("channel"), options.get("pattern", False))


def decorator(apply: Callable[..., Any], given: Sequence[Any], options: dict[str, Any]) -> Any:
    """Make a decorator of `apply(function, …)` that works as `@d`, `@d("channel", …)`, `@d(channel="x", …)` and `d(function, …)`."""
    if given and given[0] is not None and not isinstance(given[0], str):
        apply(*given, **options)
        return given[0]

    def decorate(function: F) -> F:
        apply(function, *given, **options)
        return function

    return decorate


def subscriber_decorator(apply: Callable[..., Any], given: Sequence[Any], options: dict[str, Any]) -> Any:
    """The same for handlers. Raises TypeError for a class: it would be called as a handler, and stand in the place of the function."""
    if given and isinstance(given[0], type):
        raise TypeError(f"@subscriber decorates a function or takes a channel, which is a text, not {given[0]!r}{instead_of(given[0])}")
    return decorator(apply, given, options)


def apply_by_name(verb: Callable[..., None], function: Callable[..., Any], *given: Any, **options: Any) -> None:
    """`verb(function, …)`, with an error that names the function for what the verb does not take."""
    options_of(verb, function, given, options)
    verb(function, *given, **options)  # as they came: a subclass may have a verb of its own
