"""Handlers: what a user's function wants, checked when it is subscribed, and how it is called."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from dataclasses import InitVar
from typing import Any, NamedTuple, Union

from pymq.message import Message
from pymq.topics import check_channel, topic_of

EXAMPLE = "a handler takes the event and, if it likes, the message:\n    def on_order(event: OrderPlaced, message: pymq.Message): ..."

Handler = Callable[..., Any]


class Shape:
    """What a handler takes: the event's hint, and the message by a keyword, by position, or not at all.

    Raises TypeError, with a right one shown, for a function that cannot be called with an event.
    """

    __slots__ = ("hint", "is_async", "message_keyword", "message_position")

    def __init__(self, handler: Handler) -> None:
        if not callable(handler):
            raise TypeError(f"{handler!r} is not a function; {EXAMPLE}")
        if _is_without_object(handler):
            raise TypeError(
                f"{describe(handler)} is a method without its object: subscribe that of an object, as object.{handler.__name__}"
            )
        hints = hints_of(handler)
        positional, keywords = _parameters(handler)
        required = [p for p in positional if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
        by_hint = [p.name for p in (*positional[1:], *keywords) if Message in (hints.get(p.name), *typing.get_args(hints.get(p.name)))]
        left = [p.name for p in keywords if p.default is p.empty and p.name not in by_hint]
        if not positional or len(required) > 2 or left or (len(required) == 2 and by_hint and by_hint[0] != required[1].name):
            raise TypeError(f"{describe(handler)}{signature_of(handler)} cannot take an event; {EXAMPLE}")
        self.hint: Any = hints.get(positional[0].name, Any)
        self.message_position: bool = len(required) == 2
        self.message_keyword: str | None = None if self.message_position or not by_hint else by_hint[0]
        self.is_async: bool = is_async(handler)

    @property
    def wants_message(self) -> bool:
        """Whether a `Message` must be made for it."""
        return self.message_position or self.message_keyword is not None

    def arguments(self, event: Any, message: Message | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What to call it with."""
        if self.message_position:
            return (event, message), {}
        return (event,), {self.message_keyword: message} if self.message_keyword else {}


class Target(NamedTuple):
    """What a handler is subscribed to, and as what it takes the event."""

    callback: Handler
    shape: Shape
    hint: Any
    channel: str
    pattern: bool

    def is_of(self, callback: Handler, channel: str | None, pattern: bool) -> bool:
        """Whether `unsubscribe` with these arguments means this one."""
        return self.callback == callback and (channel is None or (channel, pattern) == (self.channel, self.pattern))


def targets_of(callback: Handler, channel: str | None, pattern: bool) -> list[Target]:
    """What `subscribe` with these arguments means: several where the hint is a Union. Raises TypeError and ValueError."""
    shape = Shape(callback)
    if pattern and channel is None:
        raise ValueError("pattern=True wants the pattern as the channel, as in subscribe(callback, 'sensors/*', pattern=True)")
    if channel is None and typing.is_typeddict(shape.hint):
        raise ValueError(f"{describe(callback)}: {shape.hint.__name__} is a plain dict when it is published; give channel=")
    named = [(channel, shape.hint)] if channel is not None else channels_of(shape.hint)
    if not named:
        raise ValueError(f"{describe(callback)} says no event class: annotate its first parameter with one, or give channel=")
    for name, _ in named:
        check_channel(name, pattern)
    return [Target(callback, shape, hint, name, pattern) for name, hint in named]


def channels_of(hint: Any) -> list[tuple[str, Any]]:
    """The channels, each with its class, that a hint stands for: several where it is a Union. Empty: none."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [found for part in typing.get_args(hint) for found in channels_of(part)]
    named = isinstance(hint, type) and hint not in (Any, object, type(None)) and typing.get_origin(hint) is None
    return [(topic_of(hint), hint)] if named else []


def is_async(function: Handler) -> bool:
    """Whether its calls are to be awaited: an `async def`, also in a partial or a staticmethod, or as the `__call__` of an object.

    Raises TypeError for a generator function, whose calls run nothing.
    """
    function = _unbound(function)
    forms = (function, _callee(function))
    if any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in forms):
        raise TypeError(f"{describe(function)} is a generator function: a call of it runs nothing; write it without `yield`")
    return any(map(inspect.iscoroutinefunction, forms))


def _is_without_object(function: Handler) -> bool:
    """Whether it was decorated, or taken, from within its class: its `self` would be the event, and its event the message."""
    if not inspect.isfunction(function):
        return False
    in_class = function.__qualname__.rpartition(".")[0]
    return bool(in_class) and not in_class.endswith("<locals>") and next(iter(signature_of(function).parameters), "") in ("self", "cls")


def unrun(function: Handler, result: Any) -> TypeError | None:
    """What to report where a call has run nothing: a lambda, or a decorator's wrapper, that returns the coroutine of another."""
    if not isinstance(result, Coroutine | Generator | AsyncGenerator):
        return None
    if isinstance(result, Coroutine):
        result.close()
    kind = type(result).__name__
    return TypeError(f"{describe(function)} returned a {kind}, which nothing runs: make it, or the decorator around it, `async def`")


def hints_of(function: Handler) -> dict[str, Any]:
    """The function's type hints, also of classes that are local to the callers (which a string hint cannot name alone)."""
    function = _unbound(function)
    target = function if inspect.isfunction(function) or inspect.ismethod(function) else _callee(inspect.unwrap(function))
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except NameError:
        hints = typing.get_type_hints(target, None, _names_in_callers(), include_extras=True)
    return or_none(hints, {name: parameter.default for name, parameter in signature_of(target).parameters.items()})


def hints_in_reach(function: Handler) -> dict[str, Any] | None:
    """Its hints where the callers' names say all of them: they are gone later. None: one is of a class that follows in its module."""
    try:
        return hints_of(function)
    except NameError:
        return None


def _unbound(function: Handler) -> Handler:
    """Without the arguments that it was given already. By their types: a mock has every attribute, `func` among them."""
    while isinstance(function, functools.partial | staticmethod):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    return function


def _callee(function: Handler) -> Handler:
    """What a call runs: the function itself, or an object's `__call__`, also where its class is a descriptor as functions are."""
    call: Handler = type(function).__call__
    is_object = not inspect.isclass(function) and (inspect.isfunction(call) or not inspect.isroutine(function))
    return call if is_object else function


def or_none(hints: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`note: str = None` says that None is one of its values, too. `get_type_hints` reads it so before Python 3.11, of functions."""
    return {name: hint if defaults.get(name, ...) is not None else _or_none(hint) for name, hint in hints.items()}


def _or_none(hint: Any) -> Any:
    try:
        hash(hint)
        return hint if hint is Any or isinstance(hint, InitVar) else Union[hint, None]  # noqa: UP007 - a text has no |
    except TypeError:  # notes that are no types, such as [int], and `Final`
        return hint


def _names_in_callers() -> dict[str, Any]:
    names: dict[str, Any] = {}
    frame = sys._getframe(1)
    while frame is not None:
        names = frame.f_locals | names if frame.f_locals is not frame.f_globals else names
        frame = frame.f_back  # type: ignore[assignment]
    return names


def describe(handler: Handler) -> str:
    """A name for log lines and errors."""
    return str(getattr(handler, "__qualname__", None) or repr(handler))


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Its signature; that of a builtin that tells none (`print` before Python 3.11, `dict.update`) is `(*args, **kwargs)`."""
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):  # TypeError: of an AsyncMock, before Python 3.11
        return inspect.signature(lambda *args, **kwargs: None)


def _parameters(handler: Handler) -> tuple[list[inspect.Parameter], list[inspect.Parameter]]:
    parameters = list(signature_of(handler).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    return positional, [p for p in parameters if p.kind is p.KEYWORD_ONLY]
