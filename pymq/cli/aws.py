"""`pymq aws`: what a namespace owns in AWS, removing it, and the policy that its participants need."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.progress import track
from rich.table import Table

from pymq.cli.output import console
from pymq.exceptions import ProviderError

app: typer.Typer = typer.Typer(no_args_is_help=True, help="What a namespace owns in SNS and SQS.")

Namespace = Annotated[str, typer.Option(help="The namespace, as in the config.")]
Region = Annotated[str | None, typer.Option(help="The region; by default the environment's.")]
Endpoint = Annotated[str | None, typer.Option(help="The URL of an emulator.")]


@app.command("list")
def show(namespace: Namespace = "default", region: Region = None, endpoint_url: Endpoint = None) -> None:
    """Show everything that a namespace owns: queues, mailboxes of its processes, topics, subscriptions."""
    table = Table("kind", "name in AWS", "stands for", box=None, pad_edge=False)
    found = _owned(namespace, region, endpoint_url)
    for each in found:
        table.add_row(each.kind, each.name, _printable(each.stands_for))
    console().print(table if found else f"the namespace {namespace!r} owns nothing")


@app.command()
def purge(
    namespace: Namespace = "default",
    region: Region = None,
    endpoint_url: Endpoint = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only said what would be removed.")] = False,
) -> None:
    """Remove everything that a namespace owns, with all messages, also what its running processes use."""
    found = _owned(namespace, region, endpoint_url)
    if not yes:
        for each in found:
            typer.echo(f"would remove the {each.kind} {each.name} ({_printable(each.stands_for)})")
        return typer.echo(f"{len(found)} things; to remove them, say --yes")
    with _errors_in_one_line():
        for each in track(found, f"removing what {namespace!r} owns"):
            each.remove()
    return typer.echo(f"{len(found)} things removed")


@app.command()
def policy(namespace: Namespace = "default", region: str = "*", account: str = "*", partition: str = "aws") -> None:
    """Print the IAM policy that a participant needs."""
    from pymq.provider._aws.names import Names, access_policy

    typer.echo(json.dumps(access_policy(Names(namespace, ordered=False), partition, region, account), indent=2))


def _printable(name: str) -> str:
    """A group's queue has a NUL in its name."""
    return "".join(character if character.isprintable() else " " for character in name)


def _owned(namespace: str, region: str | None, endpoint_url: str | None) -> list[Any]:
    from pymq.provider.aws import AwsConfig, AwsProvider

    provider = AwsProvider(AwsConfig(region=region, endpoint_url=endpoint_url, namespace=namespace))
    with _errors_in_one_line():
        provider.open()
        return list(provider.sweeper.inventory())


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except ProviderError as error:
        typer.echo(f"pymq: {error}", err=True)
        raise typer.Exit(1) from None
