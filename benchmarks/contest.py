"""A row of the table: what we do, who else does it, and how the two should compare."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Measure: TypeAlias = Callable[[], float]
"""One run; returns the row's figure."""

Contestant: TypeAlias = "Callable[[float], AbstractContextManager[Measure]]"
"""Starts the processes that it takes and gives the measure; its argument scales the volumes (1.0 is the full one)."""


@dataclass(frozen=True)
class Rival:
    """Somebody to compare with; the ratio is ours / theirs, and `at_least` or `at_most` says what it should reach."""

    name: str
    contestant: Contestant
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table; `limit` is a bound on our figure itself, where there is nobody to compare with."""

    name: str
    title: str
    unit: str
    ours: Contestant
    rivals: tuple[Rival, ...] = ()
    limit: float | None = None
    runs: int | None = None
    """How many runs, where more than one tells nothing new."""


@dataclass(frozen=True)
class Comparison:
    """How we did against one rival."""

    rival: str
    theirs: float
    ratio: float
    reach: str
    met: bool | None


@dataclass(frozen=True)
class Outcome:
    """A row, measured."""

    row: Row
    ours: float
    comparisons: list[Comparison]
    runs: list[list[float]]
    """Per run the figures of all contestants, ours first."""
    error: str = ""
    skipped: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def within_limit(self) -> bool | None:
        """Whether our figure keeps the row's own bound; None where it has none."""
        return None if self.row.limit is None else self.ours <= self.row.limit


class Skipped(Exception):
    """This machine cannot run the row; says why."""


def run(row: Row, runs: int, scale: float) -> Outcome:
    """Measure all contestants of a row in turns (A B A B), so that a drift of the machine meets all of them alike."""
    try:
        with ExitStack() as stack:
            measures = [stack.enter_context(each(scale)) for each in (row.ours, *(rival.contestant for rival in row.rivals))]
            if row.runs is None:
                _warm_up(measures)
            figures = [[measure() for measure in measures] for _ in range(row.runs or runs)]
    except Skipped as reason:
        return Outcome(row, float("nan"), [], [], skipped=str(reason))
    except Exception as error:
        return Outcome(row, float("nan"), [], [], error=f"{type(error).__name__}: {error}")
    ours, *theirs = (statistics.median(column) for column in zip(*figures, strict=True))
    return Outcome(row, ours, [_compare(ours, their, rival) for their, rival in zip(theirs, row.rivals, strict=True)], figures)


def _warm_up(measures: list[Measure]) -> None:
    for measure in measures:
        measure()


def _compare(ours: float, theirs: float, rival: Rival) -> Comparison:
    ratio = ours / theirs
    if rival.at_least is not None:
        return Comparison(rival.name, theirs, ratio, f">= {rival.at_least:g}", ratio >= rival.at_least)
    if rival.at_most is not None:
        return Comparison(rival.name, theirs, ratio, f"<= {rival.at_most:g}", ratio <= rival.at_most)
    return Comparison(rival.name, theirs, ratio, "", None)
