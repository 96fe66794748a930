"""Which classes this process has named, and what the type hints of a class say.

A message may only become an instance of a class that this process has *named*: in a hint, with `type=`, by `@pymq.event`, or by
sending an instance. A subclass that the program has defined of a class in a hint counts as named, too. Nothing is ever looked
up outside of this table, so no text in a message can import or build anything else.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, ForwardRef, NewType, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from pymq.handlers import or_none
from pymq.topics import topic_of

Find: typing.TypeAlias = "Callable[[str], type | None]"

_WRAPPERS = {"Annotated", "Required", "NotRequired", "ReadOnly", "Final", "ClassVar"}
_MODEL_STATE = {
    "__pydantic_fields_set__": set[str],
    "__pydantic_extra__": dict[str, Any] | None,
    "__pydantic_private__": dict[str, Any] | None,
}

_named: dict[str, type] = {}
_in_hints: dict[type, None] = {}
_hints: dict[type, dict[str, Any]] = {}

Function = TypeVar("Function", bound=Callable[..., Any])


def cached(function: Function) -> Function:
    """lru_cache that keeps the signature for type checkers."""
    return cast("Function", lru_cache(maxsize=1024)(function))


def bare(hint: Any) -> Any:
    """The hint without what says nothing about the value: Annotated, NewType, Final, aliases, an unbound TypeVar (Any)."""
    if hint is None or hint is object or hint is inspect.Parameter.empty or isinstance(hint, (str, ForwardRef)):
        return Any
    if isinstance(hint, NewType):
        return bare(hint.__supertype__)
    if isinstance(hint, TypeVar):
        return bare(hint.__bound__)
    if isinstance(hint, dataclasses.InitVar):
        return bare(hint.type)
    if type(hint).__name__ == "TypeAliasType":
        return bare(hint.__value__)
    if get_origin(hint) is typing.Annotated or getattr(get_origin(hint), "_name", "") in _WRAPPERS:
        return bare(get_args(hint)[0])
    return hint


def hints_of(cls: type) -> dict[str, Any]:
    """The hints of a class's attributes and of the parameters of its `__init__`; {} while they cannot be resolved."""
    hints = _hints.get(cls)
    if hints is None:
        hints = _read_hints(cls)
        if hints is None:  # a class that they mention may yet be defined
            return {}
        _hints[cls] = hints
    return hints


def _read_hints(cls: Any) -> dict[str, Any] | None:
    if issubclass(cls, BaseModel):
        return {name: field.annotation for name, field in cls.model_fields.items()} | _MODEL_STATE
    of_init, of_class = {} if dataclasses.is_dataclass(cls) else _resolved(cls.__init__), _resolved(cls)
    hints = dict(of_init or {})
    hints.update((name, hint) for name, hint in (of_class or {}).items() if get_origin(hint) is not typing.ClassVar)
    hints.pop("return", None)
    if not hints:
        return None if of_init is None or of_class is None else {}
    return or_none(hints, _defaults(cls))


def _defaults(cls: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(cls.__init__).parameters.values()
    except (TypeError, ValueError):  # one of C
        return {}
    of_init = {it.name: it.default for it in parameters}
    return {**vars(cls), **of_init, **getattr(cls, "_field_defaults", {})}


def _resolved(target: Any) -> dict[str, Any] | None:
    try:
        return get_type_hints(target, include_extras=True)
    except Exception:  # a name that only type checkers import: whatever the field holds travels by its own type
        return None


def is_own_class(cls: Any) -> bool:
    """Whether instances of it travel under its name: a class of the program, not one of Python's or pydantic's."""
    if not isinstance(cls, type) or getattr(cls, "_is_protocol", False):
        return False
    return cls.__module__ not in _LIBRARIES or _is_made(cls)


def _is_made(cls: type) -> bool:
    """Whether the program had it made by `make_dataclass`, which before Python 3.12 gives no other module than `types`."""
    return cls.__module__ == "types" and "__dataclass_fields__" in vars(cls)


_LIBRARIES = {
    *("builtins", "typing", "types", "abc", "enum", "datetime", "decimal", "_decimal", "_pydecimal", "_pydatetime", "uuid"),
    *("zoneinfo", "collections", "collections.abc", "numbers"),
}


def classes_in(hint: Any) -> Iterator[type]:
    """Every class of the program inside a hint, those in the fields of the classes included."""
    seen: set[type] = set()
    waiting = [hint]
    while waiting:
        hint = bare(waiting.pop())
        waiting.extend(arg for arg in get_args(hint) if arg is not Ellipsis and get_origin(hint) is not typing.Literal)
        cls = get_origin(hint) or hint
        if is_own_class(cls) and cls not in seen:
            seen.add(cls)
            yield cls
            if not issubclass(cls, enum.Enum):
                waiting.extend(hints_of(cls).values())


def name_type(hint: Any) -> None:
    """Messages may become instances of every class inside the hint, of the classes in their fields, and of subclasses.

    Idempotent; from any thread.
    """
    for cls in classes_in(hint):
        _named[topic_of(cls)] = cls
        _in_hints[cls] = None


def name_class(cls: type) -> None:
    """Messages may become instances of this class and, since it cannot be built without, of those in its hints."""
    if is_own_class(cls):
        _named[topic_of(cls)] = cls
        if not issubclass(cls, enum.Enum):
            for hint in hints_of(cls).values():
                name_type(hint)


def find_named(name: str) -> type | None:
    """The class that this process has named so, or a subclass, defined by now, of a class in one of its hints."""
    cls = _named.get(name)
    return _search(name) if cls is None else cls


def _search(name: str) -> type | None:
    for base in list(_in_hints):
        name_type(base)  # what its hints mention may have been defined meanwhile
        for sub in _subclasses(base):
            if topic_of(sub) == name:
                name_class(sub)
    return _named.get(name)


def _subclasses(cls: type) -> Iterator[type]:
    subclasses: list[type] = type.__subclasses__(cls)
    for sub in subclasses:
        yield sub
        yield from _subclasses(sub)


def finder(hint: Any) -> Find:
    """`find_named` for a receiver with that hint: of two classes with the same name, it gets the one that it asked for."""
    wanted = {topic_of(cls): cls for cls in classes_in(hint)}
    return lambda name: wanted.get(name) or find_named(name)


def is_union(hint: Any) -> bool:
    """Whether it is `A | B` or `Union[A, B]`."""
    return get_origin(hint) in (typing.Union, types.UnionType)
