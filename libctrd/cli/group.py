"""The command ``ctrd`` itself: its global options, and which module each command is in."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

import libctrd
from libctrd import _log
from libctrd.cli import deferred, output, parts
from libctrd.cli.exits import FAILED

if TYPE_CHECKING:
    import logging

    from libctrd.client import Client

COMMANDS: Final = {
    "run": "Run a container and wait for its end.",
    "create": "Create a container without starting it.",
    "start": "Start containers that were created.",
    "exec": "Run a further process in a container.",
    "attach": "Connect to the streams of a container that runs.",
    "logs": "Show what a container has logged.",
    "wait": "Wait for the end of containers.",
    "kill": "Send a signal to containers.",
    "pause": "Freeze containers.",
    "resume": "Thaw containers that were paused.",
    "ps": "List containers.",
    "inspect": "Show all that is known of containers, as JSON.",
    "events": "Show what happens to containers, as it happens.",
    "stats": "Show what containers use, again and again.",
    "update": "Change the limits of containers that run.",
    "checkpoint": "Write the state of a container that runs to disk.",
    "restore": "Start a container from a checkpoint.",
    "rm": "Remove containers that have ended or never started.",
    "images": "List, import, pull and remove the images of a containerd.",
    "serve": "Serve the API of containerd 0.2 in front of the local engine.",
    "spec": "Print a spec to begin with, or check one.",
    "doctor": "Check what containers need on this host.",
    "info": "Show the engine and its OCI runtime.",
    "version": "Show the version of ctrd.",
    "completion": "Print what a shell needs to complete ctrd.",
}
"""Each command, in the order of a container's life. It is ``command`` in the module of its name."""


class Settings:
    """The global options, for every command."""

    def __init__(self, address: str | None, namespace: str | None, runtime: str | None, format: str) -> None:
        self.address = address
        self.namespace = namespace
        self.runtime = runtime
        self.format = format

    def connect(self) -> Client:
        """The client of the engine that was chosen."""
        from libctrd.engine import connect

        # What fails is told by us, in one line; gRPC would write lines of its own to stderr as well.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        return connect(self.address, runtime=self.runtime, namespace=self.namespace)


class Commands(parts.Group):
    """Finds a command by importing its module, and lists all without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        # msgspec takes from it, where it is there, what `typing` has as well, and it takes longer than all of msgspec.
        with deferred.without("typing_extensions"):
            import msgspec  # noqa: F401
        command = importlib.import_module(f"libctrd.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _show_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        output.write_line(f"ctrd {libctrd.__version__}")
        context.exit()


@parts.group("ctrd", Commands, no_args_is_help=False)
@parts.option(
    "--address",
    metavar="A",
    help="The engine: local: or local:/DIR; unix:///SOCKET of a containerd, or of what speaks the API of 0.2; "
    "containerd:/DIR or serve:/DIR for a private one of either. "
    "[env: CTRD_ADDRESS, CONTAINERD_ADDRESS; default: local:]",
)
@parts.option(
    "--namespace", metavar="N", help="The namespace in a containerd. [env: CONTAINERD_NAMESPACE; default: default]"
)
@parts.option("--state-dir", metavar="D", help="Keep the state of containers in the directory D; short for local:D.")
@parts.option(
    "--runtime",
    metavar="R",
    help="The OCI runtime, a path or a name. [default: crun if it works, else runc; with a containerd: runc]",
)
@parts.option("--format", type=click.Choice(["table", "json"]), default="table", help="How listings are shown.")
@parts.option("--debug", is_flag=True, help="Show what is going on, and where errors come from.")
@parts.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def ctrd(
    context: click.Context,
    address: str | None,
    namespace: str | None,
    state_dir: str | None,
    runtime: str | None,
    format: str,
    debug: bool,
) -> None:
    """Run containers, and never lose a byte of their output or an exit of theirs."""
    _say_what_is_logged(debug)
    if state_dir is not None:
        if address is not None:
            raise click.UsageError("--state-dir is short for --address: give one of them", context)
        if not state_dir:
            raise click.UsageError("--state-dir needs the name of a directory", context)
        address = "local:" + os.path.abspath(state_dir)
    context.obj = Settings(address, namespace, runtime, format)


def _say_what_is_logged(debug: bool) -> None:
    """Sends what the library logs to stderr, as our own lines: from now on, or once there is something."""

    def to_stderr(logger: logging.Logger) -> None:
        from libctrd.cli import loglines  # when there is: see `libctrd._log`

        loglines.to_stderr(logger)

    output.debug = debug
    _log.prepare(to_stderr)
    if debug:
        _log.log.setLevel("DEBUG")


def invoke(arguments: Sequence[str]) -> int:
    """Runs the command that *arguments* name; returns its exit code. Bad usage is one line, as every failure is."""
    if os.environ.get("_CTRD_COMPLETE"):  # a shell asks
        from libctrd.cli.completion import answer

        return answer(arguments)
    context: Any = None
    try:
        with ctrd.make_context("ctrd", list(arguments)) as context:
            result = ctrd.invoke(context)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "ctrd"
        output.complain(f"{error.format_message().rstrip('.')} (see `{where} --help`)")
        return FAILED
    except click.ClickException as error:
        output.complain(error.format_message())
        return FAILED
