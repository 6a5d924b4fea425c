"""``ctrd events``: what happens to containers, whoever started them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

import click

from libctrd.cli import options, output, parts
from libctrd.cli.group import Settings
from libctrd.state import EventType

if TYPE_CHECKING:
    from libctrd.state import StateInfo

KINDS: Final = ("id", "type", "process")


@parts.command("events")
@parts.option(
    "--filter",
    "filters",
    metavar="K=V",
    multiple=True,
    help="Only those of an id=, type= or process=. Of several for one of them any counts.",
)
@options.FORMAT
@click.pass_obj
def command(settings: Settings, filters: tuple[str, ...], format: str | None) -> None:
    """Show what happens to containers, as it happens, whoever started them, until it is interrupted.

    A line each; with --format json an object each, with the fields of libctrd.StateInfo and the id.
    """
    wanted = parse_filters(filters)
    as_json = (format or settings.format) == "json"
    with settings.connect() as client, client.events() as stream:
        client.watch_all()
        if not as_json:
            output.write_line(_line("TIME", "TYPE", "ID", "DETAILS"))
        with output.while_read(stream.close):
            for id, info in stream:
                if is_wanted(wanted, id, info):
                    output.write_line(_json(id, info) if as_json else _line(*_row(id, info)))


def parse_filters(filters: tuple[str, ...]) -> dict[str, set[str]]:
    """What ``--filter`` says, by kind."""
    wanted: dict[str, set[str]] = {}
    for text in filters:
        kind, equals, value = text.partition("=")
        if not equals or kind not in KINDS:
            raise click.UsageError(f"--filter {text!r} is none: say id=ID, type=TYPE or process=NAME")
        if kind == "type" and value not in get_args(EventType):
            raise click.UsageError(f"--filter {text!r}: the types are {', '.join(get_args(EventType))}")
        wanted.setdefault(kind, set()).add(value)
    return wanted


def is_wanted(wanted: dict[str, set[str]], id: str, info: StateInfo) -> bool:
    """Does that event pass every kind of filter?"""
    has = {"id": id, "type": info.type, "process": info.process}
    return all(has[kind] in values for kind, values in wanted.items())


def _json(id: str, info: StateInfo) -> str:
    import msgspec

    return msgspec.json.encode({"id": id, **msgspec.to_builtins(info)}).decode()


def _row(id: str, info: StateInfo) -> tuple[str, str, str, str]:
    details = [f"process={info.process}"] if info.process != "init" else []
    if info.pid:
        details.append(f"pid={info.pid}")
    if info.exit_code is not None:
        details.append(f"code={info.exit_code}")
    if info.oom_killed:
        details.append("out-of-memory")
    when = info.at.astimezone().isoformat(timespec="milliseconds") if info.at is not None else "-"
    return when, info.type, id, " ".join(details)


def _line(when: str, kind: str, id: str, details: str) -> str:
    return f"{when:<29}  {kind:<15}  {id:<20}  {details}".rstrip()
