"""``sair``: one command for everything. Components register theirs as entry points, so that this module imports none of them."""

from __future__ import annotations

import signal
import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import typer
import yaml

from sair.crd import custom_resource_definition
from sair.errors import SairError

__all__ = ["main"]

COMMAND_GROUP = "sair.commands"

app = typer.Typer(
    help="SAIR scales multi-stage ML inference pipelines on shared GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("sair"))
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def crd() -> None:
    """Print the CustomResourceDefinition of the Pipeline."""
    typer.echo(yaml.safe_dump(custom_resource_definition(), sort_keys=False, width=160), nl=False)


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Run the command line; an error that SAIR raised on purpose is one line on stderr and exit status 2."""
    # The first process of a container ignores a signal that it has no handler for, and a component has its own only after the seconds that
    # importing it takes: a pod that is deleted meanwhile would stay for its whole grace period.
    signal.signal(signal.SIGTERM, _end)
    commands = {entry.name: entry for entry in entry_points(group=COMMAND_GROUP)}
    first = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    # Only the component that is asked for is imported; --help lists all of them.
    for name in [first] if first in commands else sorted(commands):
        command = commands[name].load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    try:
        app()
    except SairError as error:
        typer.echo(f"sair: {error}", err=True)
        sys.exit(2)
