"""What commands are made of: click's own parts, without what only those need who ask for help.

click's own put the help of each option in shape with ``inspect`` when they are made, and look for a translation of what
the option ``--help`` says, with ``locale``: together a fifth of what ``ctrd run`` would import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


class Option(click.Option):
    """An option. Its *help* is one line, and taken as it is."""

    def __init__(self, *declared: Any, help: str | None = None, **more: Any) -> None:
        super().__init__(*declared, **more)
        self.help = help


def _show_help(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        click.echo(context.get_help())
        context.exit()


_HELP = Option(
    ["-h", "--help"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_help,
    help="Show this message and exit.",
)


class Command(click.Command):
    """A command."""

    def get_help_option(self, ctx: click.Context) -> click.Option:
        return _HELP


class Group(Command, click.Group):
    """A command that has further ones."""

    command_class = Command


def command(name: str, **settings: Any) -> Callable[[Callable[..., Any]], Command]:
    """Makes a command of a function, like ``click.command``."""
    return click.command(name, cls=Command, **settings)


def group(name: str, cls: type[Group] = Group, **settings: Any) -> Callable[[Callable[..., Any]], Group]:
    """Makes a command that has further ones of a function, like ``click.group``."""
    return click.command(name, cls=cls, **settings)


def option(*declared: str, **settings: Any) -> Callable[[Function], Function]:
    """Gives a command an option, like ``click.option``."""
    return click.option(*declared, cls=Option, **settings)
