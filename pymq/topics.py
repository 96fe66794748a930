"""Topics: the channel of a class, glob matching in linear time, and the table of who is bound to what.

A glob has `*` (any run of characters, also across `/` and `.`), `?` (any one), `[abc]`, `[a-z]`, `[!a]` or `[^a]` (one of, none
of), and a backslash that takes the next character literally. A `[` that is never closed stands for itself.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import PurePath
from typing import TypeVar

WORDS = "=e/"
"""A binding of a temporary queue to `=e/logs.=.+` is to words with dots between them: `=` is one word, `+` one or more. No glob can
say so, and with one that says more, publishers would count receivers that do not want the message."""

MOST_TOPICS = 10_000
"""For how many topics something is remembered that can be found out again: a program may ask for ever new ones."""

T = TypeVar("T")

EVENT_NAME = "__pymq_event__"
"""The attribute in which `@pymq.event("name")` leaves a class's own channel; looked up in the class itself, never in its bases."""


def topic_of(cls: type) -> str:
    """The channel of a class: `module.qualname`, the same in every process of a program, or what `@pymq.event` said."""
    return str(cls.__dict__.get(EVENT_NAME) or qualified_name(cls))


def topics_of(cls: type) -> list[str]:
    """The channels that an event of this class reaches: its own and those of its bases."""
    return [topic_of(base) for base in cls.__mro__ if base is not object or cls is object]


def qualified_name(target: object) -> str:
    """`module.qualname` of a class or function, with the program's own name in the place of `__main__`."""
    module = str(getattr(target, "__module__", None) or "builtins")
    if module in ("__main__", "__mp_main__"):
        module = _main_name()
    return f"{module}.{getattr(target, '__qualname__', type(target).__qualname__)}"


def _main_name() -> str:
    """The name of the program: `python -m package.mod` is `package.mod`, `python path/app.py` is `app`, in its children too.

    multiprocessing's spawn runs the script again as `__mp_main__` and leaves the parent's file or spec name there.
    """
    main = sys.modules.get("__mp_main__") or sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name not in ("__main__", "__mp_main__"):
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return PurePath(file).stem if file else "__main__"


@lru_cache(maxsize=4096)
def matcher(pattern: str) -> Callable[[str], bool]:
    """A function that tells whether a topic matches the glob, in time linear in len(topic) * len(pattern).

    The pieces between the stars have a fixed length, so each is found by one search for its leftmost place: there is nothing to
    try again, which is what makes `a*a*a*…b` exponential elsewhere (one publish took over 8 s in formix-pubsub).
    """
    try:
        pieces = [(re.compile("".join(atoms), re.DOTALL), len(atoms)) for atoms in _pieces(pattern)]
    except re.error as error:
        raise ValueError(f"not a glob: {pattern!r} ({error}); write a literal [ as \\[") from error
    (first, _), middle, (last, last_length) = pieces[0], pieces[1:-1], pieces[-1]
    if len(pieces) == 1:
        return lambda topic: first.fullmatch(topic) is not None

    def matches(topic: str) -> bool:
        found = first.match(topic)
        for piece, _ in middle:
            found = found and piece.search(topic, found.end())
        tail = len(topic) - last_length
        return found is not None and tail >= found.end() and last.match(topic, tail) is not None

    return matches


def _pieces(pattern: str) -> list[list[str]]:
    """The glob cut at its stars, each piece as regular expressions of one character each."""
    pieces: list[list[str]] = [[]]
    position = 0
    while position < len(pattern):
        atom, position = _atom(pattern, position)
        if atom == "*":
            pieces.append([])
        else:
            pieces[-1].append(atom)
    return pieces


def _atom(pattern: str, position: int) -> tuple[str, int]:
    """The regular expression for what stands at this position ("*" for a star), and the position behind it."""
    character = pattern[position]
    if character == "*":
        return "*", position + 1
    if character == "?":
        return ".", position + 1
    if character == "[" and (found := _CLASS.match(pattern, position)):
        negated, members = found.groups()
        return f"[{'^' if negated else ''}{_members(members)}]", found.end()
    if character == "\\" and position + 1 < len(pattern):
        return re.escape(pattern[position + 1]), position + 2
    return re.escape(character), position + 1


_CLASS = re.compile(r"\[([!^]?)(\]?(?:\\.|[^\]\\])*)\]", re.DOTALL)


def _members(members: str) -> str:
    """The inside of a character class, where only `-` and the backslash mean something."""
    return re.sub(r"\\(.)|([\[\]&~|^])", lambda found: "\\" + (found[1] or found[2]), members, flags=re.DOTALL)


def words_matcher(pattern: str) -> Callable[[str], bool]:
    """As `matcher`, for words with dots between them, of which `=` stands for any one and `+` for one or more. Linear in the same way:
    the places in the pattern that can be reached are carried from word to word.
    """
    wanted = pattern.split(".")

    def matches(topic: str) -> bool:
        reached = {0}
        for word in topic.split("."):
            further = {place + 1 for place in reached if place < len(wanted) and wanted[place] in ("=", "+", word)}
            reached = further | {place for place in reached if place and wanted[place - 1] == "+"}
        return len(wanted) in reached

    return matches


@lru_cache(maxsize=4096)
def _binding_matcher(pattern: str) -> Callable[[str], bool]:
    if not pattern.startswith(WORDS):
        return matcher(pattern)
    matches, space = words_matcher(pattern[len(WORDS) :]), WORDS[1:]
    return lambda topic: topic.startswith(space) and matches(topic[len(space) :])


def check_channel(name: str, pattern: bool) -> None:
    """Raises TypeError for what is no text, ValueError for what is no pattern."""
    if not isinstance(name, str):
        raise TypeError(f"a channel is a text, not {name!r:.100}{instead_of(name)}")
    if pattern:
        matcher(name)


def instead_of(channel: object) -> str:
    """What to do instead, for the error about a class that was given as a channel."""
    if not isinstance(channel, type):
        return ""
    name = channel.__name__
    return f": leave it out, a class needs none: `publish({name}(...))`, and `subscribe(handler)` of a `def handler(event: {name})`"


class Bindings:
    """Which queues are bound to which topics. Not thread-safe: its owner holds a lock, or is the only one to change it."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, None]] = {}
        self._patterns: dict[str, dict[str, None]] = {}

    def bind(self, queue: str, pattern: str, exact: bool) -> None:
        """Add one; a second time changes nothing."""
        self._table(exact).setdefault(pattern, {})[queue] = None

    def unbind(self, queue: str, pattern: str, exact: bool) -> None:
        """Remove one, if it is there."""
        table = self._table(exact)
        queues = table.get(pattern, {})
        queues.pop(queue, None)
        if not queues:
            table.pop(pattern, None)

    def drop(self, queue: str) -> None:
        """Remove all of a queue's."""
        for _, pattern, exact in self.of(queue):
            self.unbind(queue, pattern, exact)

    def of(self, queue: str | None = None) -> list[tuple[str, str, bool]]:
        """All (queue, pattern, exact) of one queue, or of all."""
        return [
            (name, pattern, exact)
            for exact in (True, False)
            for pattern, queues in self._table(exact).items()
            for name in queues
            if queue in (None, name)
        ]

    def bound(self, topic: str) -> list[str]:
        """The queues that are bound to exactly this topic."""
        return list(self._exact.get(topic, ()))

    def matching(self, topics: Iterable[str]) -> list[str]:
        """The queues that get what is published to these topics, each once."""
        found: dict[str, None] = {}
        for topic in topics:
            found.update(self._exact.get(topic, {}))
            for pattern, queues in self._patterns.items():
                if _binding_matcher(pattern)(topic):
                    found.update(queues)
        return list(found)

    def _table(self, exact: bool) -> dict[str, dict[str, None]]:
        return self._exact if exact else self._patterns


class Remembered(dict[str, T]):
    """What was found out about topics and can be again: forgotten when it is of too many."""

    def __setitem__(self, topic: str, found: T) -> None:
        if len(self) >= MOST_TOPICS:
            self.clear()
        super().__setitem__(topic, found)


class Turns(Remembered[Iterator[int]]):
    """Who of equals is the first this time, for each topic by itself: `next(turns[topic])`."""

    def __missing__(self, topic: str) -> Iterator[int]:
        self[topic] = turn = itertools.count()
        return turn
