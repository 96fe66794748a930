"""The commands, one function each."""

from __future__ import annotations

from typing import Annotated

import typer

import pymq
from pymq.cli import aws

app: typer.Typer = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Events, queues and remote calls between Python processes."
)

app.add_typer(aws.app, name="aws")


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"pymq {getattr(pymq, '__version__', 'of a checkout, not installed')}")
        raise typer.Exit


@app.callback()
def command(
    version: Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which it is.")] = False,
) -> None:
    """Keeps each command a word of its own: with a single one typer would drop the word."""


@app.command()
def demo() -> None:
    """Watch six processes exchange events, queue items and calls for a few seconds; ends by itself, leaves nothing behind."""
    from pymq.cli.demo.director import direct

    raise typer.Exit(direct())


@app.command()
def doctor() -> None:
    """Check this machine: shared memory, limits, leftovers, what PYMQ_URL names. Exit status 1 where something would fail."""
    from pymq.cli.doctor import doctor as examine
    from pymq.cli.output import console

    raise typer.Exit(examine(console()))


@app.command()
def clean(yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only say what there is.")] = False) -> None:
    """Remove what dead processes have left in the home of shm (PYMQ_HOME). Living processes and what waits in queues stay."""
    from pymq.cli.clean import clean as sweep
    from pymq.cli.output import console

    raise typer.Exit(sweep(console(), remove=yes))
