"""Instances of classes as their state and back, and values held against hints.

A class travels as its attributes. It is rebuilt by calling it with those that its `__init__` has parameters for, so that its own
checks run, and by then setting every attribute to what was sent, so that whatever its `__init__` computes it is the value sent.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import MemberDescriptorType
from typing import Any, TypeAlias, cast, get_args, get_origin
from uuid import UUID

from pydantic import AliasChoices, AliasPath, BaseModel, TypeAdapter
from pydantic_core import to_json

from pymq._hints import bare, cached, hints_of, is_own_class, is_union
from pymq.exceptions import CodecError

EXACT = -1
"""How freely a value may be made to fit: not at all, and not even an int is a float."""
FIELD = 0
"""Not at all: it is the attribute of an instance, and stays what it was."""
VALUE = 1
"""A dict may become an instance, and an int a float: it stands for itself, in an event or an argument."""
JSON = 2
"""Also text a date or a Decimal, and a list a tuple: it comes from a dict, whose author had only JSON to write it in."""

Fitter: TypeAlias = Callable[[Any, int], Any]

_JSON_TEXT = (Decimal, UUID, datetime, date, time, timedelta)
_ITERABLES = (list, set, frozenset, tuple)


def fit(value: Any, hint: Any, freedom: int = VALUE) -> Any:
    """The value as the hint wants it. Raises CodecError where it is neither that nor may become it."""
    try:
        fitter = _fitter(hint)
    except TypeError:  # a hint that cannot be hashed, such as Annotated[int, {}]
        fitter = _fitter(bare(hint))
    return fitter(value, freedom)


@cached
def _fitter(hint: Any) -> Fitter:
    hint = bare(hint)
    cls = get_origin(hint) or hint
    if is_union(hint):
        return _one_of(get_args(hint))
    if cls is typing.Literal:
        return _literal(get_args(hint))
    if typing.is_typeddict(cls):
        return _typed_dict(cls)
    if cls is Any or not isinstance(cls, type) or getattr(cls, "_is_protocol", False):
        return lambda value, freedom: value  # Any, and what only a type checker can check
    if hasattr(cls, "__get_pydantic_core_schema__") and not issubclass(cls, BaseModel):
        return lambda value, freedom: value  # pydantic's markers, such as EmailStr: the model checks them
    return _contents(cls, get_args(hint), _instance(cls))


def _refuse(value: Any, hint: Any) -> CodecError:
    name = hint.__qualname__ if isinstance(hint, type) else str(hint)
    return CodecError(f"{_brief(value)} is {type(value).__qualname__}, not {name}")


def _brief(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        return "a value without a repr"
    return text if len(text) < 100 else text[:100] + "…"


def _one_of(choices: tuple[Any, ...]) -> Fitter:
    def fit_union(value: Any, freedom: int) -> Any:
        for allowed in (EXACT, freedom):
            for choice in choices:
                try:
                    return fit(value, choice, allowed)
                except CodecError:
                    continue
        raise _refuse(value, " | ".join(getattr(choice, "__qualname__", str(choice)) for choice in choices))

    return fit_union


def _literal(allowed: tuple[Any, ...]) -> Fitter:
    def fit_literal(value: Any, freedom: int) -> Any:
        if any(type(value) is type(one) and value == one for one in allowed):
            return value
        raise _refuse(value, f"one of {allowed}")

    return fit_literal


def _typed_dict(cls: Any) -> Fitter:
    def fit_typed_dict(value: Any, freedom: int) -> Any:
        if type(value) is not dict or not cls.__required_keys__ <= value.keys() <= cls.__required_keys__ | cls.__optional_keys__:
            raise _refuse(value, cls)
        return {key: _fit_field(cls, key, item, freedom) for key, item in value.items()}

    return fit_typed_dict


def _instance(cls: type) -> Fitter:
    def fit_instance(value: Any, freedom: int) -> Any:
        if isinstance(value, cls) and (type(value) is not bool or cls is not int):
            return value
        if cls is float and type(value) is int and freedom >= FIELD:
            return value if freedom == FIELD else _exact_float(value)
        if freedom >= VALUE and type(value) is dict and is_own_class(cls) and not issubclass(cls, enum.Enum):
            return construct(cls, value)
        if freedom >= JSON:
            return _from_json(cls, value)
        raise _refuse(value, cls)

    return fit_instance


def _exact_float(value: int) -> float:
    if abs(value) > 1 << 53 and (abs(value).bit_length() > 1023 or int(float(value)) != value):
        raise CodecError(f"an int of {value.bit_length()} bits does not fit into a float")
    return float(value)


def _from_json(cls: Any, value: Any) -> Any:
    """What somebody who had only JSON meant, where it can mean only one thing."""
    try:
        if issubclass(cls, enum.Enum):
            return cls(value)
        if cls in _JSON_TEXT and type(value) in (str, int, float):
            return _adapter(cls).validate_json(to_json(value), strict=True)
    except ValueError as error:
        raise _refuse(value, cls) from error
    if cls in _ITERABLES and type(value) is list:
        return cls(value)
    raise _refuse(value, cls)


_adapter = cached(TypeAdapter)


def _contents(cls: type, args: tuple[Any, ...], instance: Fitter) -> Fitter:
    """Also fit what is inside `list[int]`, `dict[str, Order]`, `tuple[int, ...]`; a user's generic class checks its own fields."""
    if not args or is_own_class(cls):
        return instance

    def fit_contents(value: Any, freedom: int) -> Any:
        if issubclass(cls, tuple) and freedom >= JSON and type(value) is list:
            value = tuple(value)
        value = instance(value, freedom)
        if type(value) is dict and len(args) == 2:
            return {fit(key, args[0], freedom): fit(item, args[1], freedom) for key, item in value.items()}
        if type(value) is tuple and cls is tuple and args[-1] is not Ellipsis:
            if len(value) != len(args):
                raise _refuse(value, f"a tuple of {len(args)}")
            return tuple(map(fit, value, args, [freedom] * len(args)))
        if type(value) in _ITERABLES:
            return type(value)(fit(item, args[0], freedom) for item in value)
        return value

    return fit_contents


def _fit_field(cls: type, name: str, value: Any, freedom: int) -> Any:
    try:
        return fit(value, hints_of(cls).get(name, Any), freedom)
    except CodecError as error:
        raise CodecError(f"{cls.__qualname__}.{name}: {error}") from error


def construct(cls: Any, data: Mapping[Any, Any]) -> Any:
    """An instance made of a dict, as its author would have written it: what is missing has its default, nothing is left over."""
    if issubclass(cls, BaseModel):
        return cls.model_validate_json(to_json(data), strict=True)
    parameters = dict.fromkeys(cls._fields) if is_named_tuple(cls) else _parameters(cls)
    unknown = [name for name in data if name not in parameters and name not in hints_of(cls)]
    if unknown:
        raise CodecError(f"{cls.__qualname__} has no {', '.join(map(str, unknown))}")
    fitted = {name: _fit_field(cls, name, value, JSON) for name, value in data.items()}
    if is_named_tuple(cls):
        return cls(**fitted)
    value = _call(cls, fitted)
    for name in fitted.keys() - parameters.keys():
        object.__setattr__(value, name, fitted[name])
    return value


def is_named_tuple(cls: Any) -> bool:
    """Whether it was made by NamedTuple or namedtuple (and not subclassed into something with other attributes)."""
    return issubclass(cls, tuple) and hasattr(cls, "_fields") and not cls.__dictoffset__


def is_plain(cls: Any) -> bool:
    """Whether the attributes are all there is to an instance: every base is written in Python and none makes it in its own way."""
    return (
        cls is not object
        and cls.__new__ is object.__new__
        and all(
            "__slots__" in vars(base) or "__dict__" in vars(base) or base.__dictoffset__ or base is typing.Generic
            for base in cls.__mro__[:-1]
        )
    )


@cached
def _slots(cls: type) -> tuple[str, ...]:
    names = [name for base in cls.__mro__ for name, it in vars(base).items() if isinstance(it, MemberDescriptorType)]
    return tuple(name for name in names if isinstance(getattr(cls, name), MemberDescriptorType))  # no class attribute hides it


@cached
def _parameters(cls: Any) -> dict[str, inspect.Parameter]:
    """What can be passed to the class: of a plain one, the parameters of `__init__` that are not *args or **kwargs."""
    parameters = inspect.signature(cls).parameters.values()
    return {it.name: it for it in parameters if it.kind not in (it.VAR_POSITIONAL, it.VAR_KEYWORD)}


def state_of(value: Any) -> dict[str, Any]:
    """All attributes of an instance. Raises CodecError where they are not enough, or not right, to build it again."""
    cls: Any = type(value)
    if is_named_tuple(cls):
        state = dict(zip(cls._fields, value, strict=True))
    else:
        state = dict(getattr(value, "__dict__", ()))
        state.update((name, getattr(value, name)) for name in _slots(cls) if hasattr(value, name))
        state.pop("__orig_class__", None)  # left by Box[int](1): a typing artefact, no part of the value
        _require(cls, state)
    check(cls, state)
    return state


def _require(cls: type, state: dict[str, Any]) -> None:
    missing = _needed(cls) - state.keys()
    if missing:
        raise CodecError(f"{cls.__qualname__} cannot be built again: it keeps no attribute {', '.join(sorted(missing))}")


@cached
def _needed(cls: type) -> frozenset[str]:
    if issubclass(cls, BaseModel):
        return frozenset(cls.model_fields)
    every = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    fields = [it for it in every if it.init or it.default is dataclasses.MISSING]  # the other defaults stay in the class
    required = [it.name for it in _parameters(cls).values() if it.default is it.empty]
    return frozenset([*(it.name for it in fields), *required])


def check(cls: type, state: Mapping[str, Any]) -> None:
    """Raises CodecError where an attribute is not of its declared type."""
    for name, value in state.items():
        _fit_field(cls, name, value, FIELD)


def rebuild(cls: Any, state: dict[str, Any]) -> Any:
    """The instance that had this state, exactly. Raises CodecError, or whatever its own `__init__` does."""
    check(cls, state)
    if is_named_tuple(cls):
        known = cls._field_defaults | state  # what the sender does not have yet keeps its default
        return tuple.__new__(cls, [known[name] for name in cls._fields])
    if issubclass(cls, BaseModel):
        return _set_state(cls.model_validate(_input(cls, _copied(state))), state, cls.model_fields)
    return _set_state(_call(cls, _copied(state)), state, hints_of(cls))


def _copied(value: Any) -> Any:
    """For an `__init__` or a validator, which may change the containers it is given: the instance then gets what was sent."""
    cls = type(value)
    if cls is dict:
        return {key: _copied(item) for key, item in value.items()}
    if cls is list or cls is tuple:
        return cls(map(_copied, value))
    return cls(value) if cls is set or cls is bytearray else value


def _call(cls: type, state: Mapping[str, Any]) -> Any:
    parameters = [it for name, it in _parameters(cls).items() if name in state]
    positional = [state[it.name] for it in parameters if it.kind is it.POSITIONAL_ONLY]
    return cls(*positional, **{it.name: state[it.name] for it in parameters if it.kind is not it.POSITIONAL_ONLY})


def _set_state(value: Any, state: Mapping[str, Any], declared: Mapping[str, Any]) -> Any:
    """Set exactly these attributes, also of frozen classes; a declared one that the sender does not have yet keeps its default."""
    cls = type(value)
    attributes = getattr(value, "__dict__", {})
    for name in attributes.keys() - state.keys() - declared.keys():
        del attributes[name]
    for name, item in state.items():
        if name in _slots(cls):
            object.__setattr__(value, name, item)
        elif hasattr(value, "__dict__"):
            attributes[name] = item
        else:
            raise CodecError(f"{cls.__qualname__} has no attribute {name}")
    return value


def _input(cls: type[BaseModel], state: Mapping[str, Any]) -> Any:
    """What the model's own validation takes: its fields under their aliases, and the extra ones."""
    if cls.__pydantic_root_model__:
        return state["root"]
    taken = dict(cast("dict[str, Any]", state.get("__pydantic_extra__") or {}))
    for name, field in cls.model_fields.items():
        if name in state:
            *outer, last = _alias_of(name, field.validation_alias)
            place = taken
            for step in outer:
                place = place.setdefault(step, {})  # for an index, too: pydantic looks it up as a key
            place[last] = state[name]
    return taken


def _alias_of(name: str, alias: str | AliasPath | AliasChoices | None) -> Sequence[Any]:
    """Where a model looks first for the value of a field."""
    if isinstance(alias, AliasChoices):
        alias = alias.choices[0]
    return alias.path if isinstance(alias, AliasPath) else [alias or name]
