"""Where the commands print."""

from __future__ import annotations

from rich.console import Console

WIDTH = 400
"""Of what is no terminal: each line stays one, for grep, and no path is cut."""


def console() -> Console:
    """Standard output: as wide as the terminal; elsewhere at least WIDTH."""
    made = Console()
    if not made.is_terminal:
        made.width = max(made.width, WIDTH)
    return made
