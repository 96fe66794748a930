"""What callables are taken for: their hints, and whether their calls are awaited."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec

import pytest

from pymq.handlers import Shape, hints_of, is_async, unrun


class Order:
    pass


def plain(event: Order) -> None: ...


async def awaited(event: Order) -> None: ...


def after_another(label: str, event: Order) -> None: ...


async def awaited_after_another(label: str, event: Order) -> None: ...


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class Traced:
    """A decorator that works on methods, too."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __get__(self, instance: object, owner: type) -> Any:
        return functools.partial(self, instance)


class Callable_:
    label: str = "this is no hint of its call"

    def __call__(self, event: Order) -> None: ...


class Inherited(Callable_):
    pass


class Awaited:
    async def __call__(self, event: Order) -> None: ...


class InheritedAwaited(Awaited):
    @staticmethod
    async def static(event: Order) -> None: ...

    @classmethod
    async def of_class(cls, event: Order) -> None: ...

    async def method(self, event: Order) -> None: ...


PLAIN: dict[str, Callable[..., Any]] = {
    "function": plain,
    "partial": functools.partial(after_another, "a"),
    "nested partial": functools.partial(functools.partial(after_another), "a"),
    "partial of an object": functools.partial(Callable_()),
    "staticmethod": staticmethod(plain),
    "object": Callable_(),
    "inherited": Inherited(),
    "method": Callable_().__call__,
    "wrapper": traced(plain),
    "wrapping object": Traced(plain),
    "cached": functools.lru_cache(plain),
    "object wrapping an object": Traced(Callable_().__call__),
}
AWAITED: dict[str, Callable[..., Any]] = {
    "function": awaited,
    "partial": functools.partial(awaited_after_another, "a"),
    "partial of an object": functools.partial(Awaited()),
    "staticmethod": InheritedAwaited.__dict__["static"],
    "partial of a staticmethod": functools.partial(staticmethod(awaited)),
    "object": Awaited(),
    "inherited": InheritedAwaited(),
    "method": InheritedAwaited().method,
    "method of a class": InheritedAwaited.of_class,
    "static method": InheritedAwaited.static,
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain(name: str) -> None:
    shape = Shape(PLAIN[name])
    assert (shape.hint, shape.is_async) == (Order, False)


@pytest.mark.parametrize("name", AWAITED)
def test_awaited(name: str) -> None:
    shape = Shape(AWAITED[name])
    assert (shape.hint, shape.is_async) == (Order, True)


def test_a_decorator_that_awaits() -> None:
    class Awaiting(Traced):
        async def __call__(self, *args: Any) -> Any:
            return await self.function(*args)

    assert is_async(Awaiting(awaited))
    assert not is_async(Traced(awaited))


@pytest.mark.parametrize("mock", [Mock(), MagicMock(), AsyncMock(), Mock(spec=functools.partial)])
def test_mocks(mock: Mock) -> None:
    """They have every attribute that one asks for."""
    shape = Shape(mock)
    assert (shape.hint, shape.is_async) == (Any, isinstance(mock, AsyncMock))


def test_a_mock_of_a_function() -> None:
    assert Shape(create_autospec(plain)).arguments(1, None) == ((1,), {})


@pytest.mark.parametrize("function", [len, print, int, max, {}.update])
def test_builtins_and_classes(function: Callable[..., Any]) -> None:
    assert not is_async(function)
    assert set(hints_of(function)) <= {"return"}


def _generator(event: Order) -> Iterator[int]:
    yield 1


async def _async_generator(event: Order) -> AsyncIterator[int]:
    yield 1


class Generating:
    def __call__(self, event: Order) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize("function", [_generator, _async_generator, Generating(), functools.partial(_generator)])
def test_generators_are_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="is a generator function"):
        Shape(function)


def test_a_method_without_its_object_is_refused() -> None:
    class Desk:
        def on_plain(self, event: object) -> None: ...

        async def on_async(self, event: object) -> None: ...

        @classmethod
        def on_class(cls, event: object) -> None: ...

        @staticmethod
        def on_static(event: object) -> None: ...

    for method in (Desk.on_plain, Desk.on_async, Desk.on_class.__func__):
        with pytest.raises(TypeError, match=r"Desk\.on_\w+ is a method without its object: .* object\.on_"):
            Shape(method)
    for method in (Desk().on_plain, Desk().on_async, Desk.on_class, Desk.on_static):
        assert not Shape(method).wants_message


@pytest.mark.parametrize("function", [traced(awaited), Traced(awaited), traced(_generator), traced(_async_generator)])
def test_what_only_returns_something_to_run_has_not_run(function: Callable[..., Any]) -> None:
    """Nothing is left to be awaited, of which Python would warn."""
    assert not Shape(function).is_async
    assert "which nothing runs" in str(unrun(function, function(Order())))


@pytest.mark.parametrize("result", [1, [], iter([])])
def test_results(result: Any) -> None:
    assert unrun(plain, result) is None
