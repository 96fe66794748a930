"""The table, as text or as the docs embed it, and the figures as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.contest import Comparison, Outcome

HEADINGS = ("what", "pymq", "beside", "theirs", "ratio", "reach", "")


def lines_of(outcome: Outcome) -> list[tuple[str, ...]]:
    """A row of the table per comparison and bound; the title and our figure in the first one only."""
    if outcome.error or outcome.skipped:
        return [(outcome.row.title, "-", f"failed: {outcome.error}" if outcome.error else outcome.skipped, "", "", "", "")]
    beside = [_compared(comparison) for comparison in outcome.comparisons]
    if outcome.row.limit is not None:
        beside.append(("", "", "", f"<= {outcome.row.limit:g} {outcome.row.unit}".rstrip(), _verdict(outcome.within_limit)))
    first = (outcome.row.title, f"{_number(outcome.ours)} {outcome.row.unit}".rstrip())
    return [(first if not index else ("", "")) + cells for index, cells in enumerate(beside or [("", "", "", "", "")])]


def _compared(comparison: Comparison) -> tuple[str, ...]:
    theirs, ratio = _number(comparison.theirs), f"{comparison.ratio:.2f}"
    return comparison.rival, theirs, ratio, comparison.reach, _verdict(comparison.met)


def _verdict(met: bool | None) -> str:
    return {None: "", True: "met", False: "not met"}[met]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def text(outcomes: Iterable[Outcome]) -> str:
    """The table in columns."""
    rows = [HEADINGS, *(line for outcome in outcomes for line in lines_of(outcome))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown(outcomes: Iterable[Outcome]) -> str:
    """The table as docs/performance.md embeds it, with the machine and the command."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *(line for outcome in outcomes for line in lines_of(outcome))]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{describe()}\n\n{table}"


def describe() -> str:
    """The machine and the versions in a line."""
    about = machine()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"Python {about['python']}, {about['processors']} processors ({about['model']}), Linux {about['kernel']}; {versions}."


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "python": platform.python_version(),
        "processors": len(os.sched_getaffinity(0)),
        "model": _model(),
        "kernel": platform.release(),
        "versions": _versions("pydantic", "pyzmq"),
    }


def _model() -> str:
    try:
        found = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in found.splitlines() if line.startswith("Model name")), "unknown")


def _versions(*names: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def write_json(path: Path, outcomes: Iterable[Outcome]) -> None:
    """All figures of all runs."""
    path.write_text(json.dumps({"machine": machine(), "command": sys.argv, "rows": [_plain(each) for each in outcomes]}, indent=1))


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.row.name,
        "title": outcome.row.title,
        "unit": outcome.row.unit,
        "ours": outcome.ours if outcome.runs else None,
        "limit": outcome.row.limit,
        "beside": [vars(comparison) for comparison in outcome.comparisons],
        "runs": outcome.runs,
        "error": outcome.error,
        "skipped": outcome.skipped,
    }
