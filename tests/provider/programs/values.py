"""Values of every kind that may travel, with the hint a program would write for them, and values that may not."""
# ruff: noqa: UP007, UP045 (both ways of writing a union are tested)

import enum
import threading
from dataclasses import InitVar, dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Generic, NamedTuple, Optional, TypedDict, TypeVar, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic

from programs.participant import Participant


class Colour(enum.Enum):
    RED = "red"
    GREEN = (0, 255, 0)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 10


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Movie(TypedDict, total=False):
    title: str
    year: int


@dataclass(frozen=True)
class Frozen:
    number: int
    names: tuple[str, ...] = ()


@dataclass
class Slotted:
    __slots__ = ("first", "second")
    first: int
    second: str


@dataclass(kw_only=True)
class Tree:
    value: Any
    children: list["Tree"] = field(default_factory=list)
    derived: int = field(init=False, default=7)


@dataclass
class Everything:
    number: int
    ratio: float
    text: str
    raw: bytes
    when: datetime
    identity: UUID
    price: Decimal
    colour: Colour
    maybe: int | None
    either: Union[int, str]
    point: Point
    frozen: Frozen
    by_name: dict[str, list[int]]
    unique: set[int]


class Model(pydantic.BaseModel):
    number: int
    when: datetime
    tags: frozenset[str] = frozenset()
    inner: Optional["Model"] = None


T = TypeVar("T")


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Plain:
    """A plain annotated class: rebuilt by its own __init__."""

    name: str
    size: int

    def __init__(self, name: str, size: int = 3) -> None:
        self.name = name
        self.size = size
        self.built_by_init = True

    def __eq__(self, other: object) -> bool:
        return type(other) is Plain and vars(self) == vars(other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"Plain({vars(self)})"


WHEN = datetime(2024, 2, 29, 12, 30, 15, 123456)
EVERYTHING = Everything(
    1, 0.1, "ä", b"\xff", WHEN, UUID(int=5), Decimal("1.10"), Colour.GREEN, None, "5", Point(1), Frozen(1), {"a": [1]}, {3}
)  # fmt: skip

VALUES: list[tuple[Any, Any]] = [
    (Any, None),
    (bool, True),
    (int, 0),
    (int, -(2**200)),
    (float, 0.1),
    (float, -0.0),
    (float, float("nan")),
    (float, float("inf")),
    (float, 1.0),
    (str, ""),
    (str, "ä\n\0\U0001f600"),
    (bytes, b""),
    (bytes, bytes(range(256))),
    (list[int], [1, 2]),
    (list[Any], [1, 1.0, True, None, "1", [], {}, ()]),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (Any, (1, (2, ()))),
    (set[int], {1, 2}),
    (frozenset[str], frozenset("ab")),
    (Any, {frozenset({1}), (2, 3)}),
    (dict[str, int], {"a": 1, "": 2}),
    (dict[int, str], {1: "a", -1: "b"}),
    (dict[tuple[int, int], str], {(1, 2): "a"}),
    (Any, {None: 1, True: 2, 2.5: 3, "x": 4, (1, (2,)): 5, "1": 6, 10: 7}),
    (dict[str, Any], {"__type__": "x", "$type": 1, "type": "int", "py/object": "os.system", "~t": [1], "": None}),
    (Any, [{"t": "tuple", "v": [1]}, {"tuple": [1]}, {"!": 1}, {"$": 1}, {"__tuple__": [1]}]),
    (datetime, WHEN),
    (datetime, WHEN.replace(tzinfo=timezone.utc)),
    (datetime, WHEN.replace(tzinfo=timezone(timedelta(hours=5, minutes=30)))),
    (Any, WHEN.replace(tzinfo=ZoneInfo("Europe/Vienna"))),
    (date, date(2024, 2, 29)),
    (time, time(1, 2, 3, 4)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (UUID, UUID(int=2**127)),
    (Decimal, Decimal("1E+2")),
    (Decimal, Decimal("0.10")),
    (Decimal, Decimal("-0")),
    (Colour, Colour.RED),
    (Colour, Colour.GREEN),
    (Level, Level.HIGH),
    (Right, Right.READ | Right.WRITE),
    (Point, Point(1, 2.5)),
    (Movie, {"title": "a", "year": 1}),
    (Movie, {"title": "a"}),
    (Frozen, Frozen(1, ("a", "b"))),
    (Slotted, Slotted(1, "a")),
    (Tree, Tree(value=(1,), children=[Tree(value=Point(1)), Tree(value=None)])),
    (Everything, EVERYTHING),
    (Model, Model(number=1, when=WHEN, tags=frozenset({"a"}), inner=Model(number=2, when=WHEN))),
    (Page[int], Page[int](items=[1, 2])),
    (Plain, Plain("a", 5)),
    (Optional[int], None),
    (Optional[Point], Point(1)),
    (int | str, "1"),
    (int | str, 1),
    (Union[Point, Frozen, None], Frozen(2)),
    (list[Point | Frozen], [Point(1), Frozen(1)]),
    (dict[str, Optional[list[Decimal]]], {"a": None, "b": [Decimal("1.0")]}),
    (dict[int, dict[str, tuple[Point, ...]]], {1: {"a": (Point(1), Point(2))}}),
]


@dataclass
class Strict:
    number: int
    name: str = ""


@dataclass
class NeedsMore:
    given: int
    not_kept: InitVar[int] = 0


class Forgetful:
    """Its __init__ needs what no attribute holds."""

    def __init__(self, secret: str) -> None:
        self.other = secret


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


REFUSED: dict[str, Any] = {
    "object": object(),
    "function": _circle,
    "lambda": lambda: None,
    "class": Strict,
    "module": enum,
    "lock": threading.Lock(),
    "generator": (number for number in ()),
    "complex in a list": [1, memoryview(b"")],
    "circle": _circle(),
    "forgetful": Forgetful("x"),
    "nested object": {"a": [object()]},
    "exception": ValueError("x"),
}

MISFITS: dict[str, Any] = {
    "text for int": Strict("one"),
    "float for int": Strict(1.5),
    "bool for int": Strict(True),
    "None for int": Strict(None),
    "int for text": Strict(1, 5),
    "list for text": Strict(1, ["a"]),
}
"""Values that are not of their declared type: refused by the sender or by the receiver, and never changed."""


def typed_handler(me: Participant, number: int, hint: Any) -> Any:
    """A handler of exactly that annotation, which says what it got for which number: order is kept within a channel only."""

    def handler(value):
        me.say((number, value))

    handler.__annotations__ = {"value": hint}
    return handler


def subscribe_to_all(me: Participant, typed: bool) -> None:
    """A subscription per value, on the channel of its number."""
    for number, (hint, _) in enumerate(VALUES):
        me.bus.subscribe(typed_handler(me, number, hint if typed else Any), str(number))


def expose_all(me: Participant) -> None:
    """An echo per value, hinted both ways."""
    for number, (hint, _) in enumerate(VALUES):

        def echo(value):
            return value

        echo.__annotations__ = {"value": hint, "return": hint}
        me.bus.expose(echo, str(number))


def publish_all(me: Participant) -> list[int]:
    return [me.bus.publish(value, str(number)) for number, (_, value) in enumerate(VALUES)]


def put_all(me: Participant, name: str) -> None:
    for _, value in VALUES:
        me.bus.queue(name).put(value)
