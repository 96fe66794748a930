"""Values for the model test, made from hints: what a hint says, and what it does not."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple, Optional, TypedDict, Union
from uuid import UUID

import pydantic
from hypothesis import strategies as st

import pymq


class Colour(enum.Enum):
    RED = "red"
    GREEN = (0, 255)


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: Any = None


class Movie(TypedDict):
    title: str
    year: int


@pymq.event
@dataclass
class Order:
    number: int
    price: Decimal
    notes: list[Any] = field(default_factory=list)


@pymq.event
@dataclass
class Rush(Order):
    by: Optional[datetime] = None  # noqa: UP045 - both ways of writing it are tested


class Model(pydantic.BaseModel):
    a: int
    b: str | None = None


@pymq.event
class Plain:
    def __init__(self, name: str, size: Any = 3) -> None:
        self.name = name
        self.size = size

    def __repr__(self) -> str:
        return f"Plain({self.name!r}, {self.size!r})"


texts = st.text(st.characters(exclude_categories=[]), max_size=5) | st.sampled_from(["~", "t", "v", "\0", "a" * 5000])
integers = st.integers() | st.sampled_from([0, -1, 2**63, 2**64, 10**400])
zones = st.sampled_from([None, timezone.utc, timezone(timedelta(hours=-3, minutes=-30))])

SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    int: integers,
    float: st.floats(),
    str: texts,
    bytes: st.binary(max_size=20),
    Decimal: st.decimals(),
    UUID: st.uuids(),
    date: st.dates(),
    time: st.times(timezones=zones),
    datetime: st.datetimes(timezones=zones),
    timedelta: st.timedeltas(),
    Colour: st.sampled_from(Colour),
    Level: st.sampled_from(Level),
}
HASHABLE = (bool, int, str, bytes, Decimal, UUID, date, Colour)


def key_safe(value: Any) -> bool:
    """A signalling NaN cannot be hashed."""
    return not (isinstance(value, Decimal) and value.is_snan())


anything = st.recursive(
    st.one_of(*SCALARS.values()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | integers | st.tuples(integers, texts), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.frozensets(texts | integers, max_size=3)
        | st.builds(Point, integers, inner)
        | st.builds(Rush, integers, st.decimals(), st.lists(inner, max_size=2), st.none())
        | st.builds(Plain, texts, inner)
    ),
    max_leaves=6,
)


@st.composite
def hints(draw: st.DrawFn, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    """A hint, and what makes values of it: subclasses of its classes among them."""
    if depth == 0 or draw(st.booleans()):
        hint = draw(st.sampled_from([*SCALARS, Any]))
        return hint, SCALARS.get(hint, anything)
    one, ones = draw(hints(depth - 1))
    other, others = draw(hints(depth - 1))
    key = draw(st.sampled_from(HASHABLE))
    keys = SCALARS[key].filter(key_safe)
    number, decimal = SCALARS[int], SCALARS[Decimal]
    rush = st.builds(Rush, number, decimal, st.lists(anything, max_size=2), st.none() | SCALARS[datetime])
    made: list[tuple[Any, st.SearchStrategy[Any]]] = [
        (list[one], st.lists(ones, max_size=3)),
        (tuple[one, ...], st.lists(ones, max_size=3).map(tuple)),
        (tuple[one, other], st.tuples(ones, others)),
        (dict[key, one], st.dictionaries(keys, ones, max_size=3)),
        (set[key], st.sets(keys, max_size=3)),
        (frozenset[key], st.frozensets(keys, max_size=3)),
        (Optional[one], ones | st.none()),  # noqa: UP045
        (Union[one, other], ones | others),  # noqa: UP007
        (Order, st.builds(Order, number, decimal, st.lists(anything, max_size=2)) | rush),
        (Rush, rush),
        (Model, st.builds(Model, a=st.integers(), b=st.none() | st.text())),
        (Point, st.builds(Point, number, anything)),
        (Movie, st.builds(lambda title, year: Movie(title=title, year=year), texts, number)),
        (Plain, st.builds(Plain, texts, anything)),
    ]
    return draw(st.sampled_from(made))


def same(a: Any, b: Any) -> bool:
    """Equal by type and repr, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(same(one, other) for other in b) for one in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, Order | Plain | Model):
        return same(vars(a), vars(b))
    return a == b or repr(a) == repr(b) if isinstance(a, int) else repr(a) == repr(b)
