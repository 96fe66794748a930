"""The commands, one function each."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Events, queues and remote calls between Python processes.")


@app.callback()
def command() -> None:
    """Keeps each command a word of its own: with a single one typer would drop the word."""


@app.command()
def demo() -> None:
    """Watch six processes exchange events, queue items and calls for a few seconds; ends by itself, leaves nothing behind."""
    from pymq.cli.demo.director import direct

    raise typer.Exit(direct())
