"""Writes share/ctrd.1, the manual page of ctrd, from what the command says of itself; --check only says if it is stale.

What the commands and options are and do comes from ``libctrd.cli``; the frame around it stands here.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path

import click

import libctrd
from libctrd.cli.group import COMMANDS, ctrd

PAGE = Path(__file__).resolve().parent.parent / "share" / "ctrd.1"

DESCRIPTION = """
.B ctrd
runs containers and never loses a byte of their output or an exit of theirs. It starts them itself through an OCI
runtime
.RB ( crun "(1) or " runc (8)),
or through a containerd that is there already. With the same commands each client of an engine sees the containers of
all others.
"""
HELP = """.TP
.BR \\-h ,\\~ \\-\\-help
Show what a command takes; every command has it.
"""
EXIT_STATUS = """
.TP
.I N
Of a command that waited for a container or a process
.RB ( run ,\\~ "start -a" ,\\~ exec ,\\~ attach ,\\~ wait ):
its exit code; 128 + N when signal N ended it.
.TP
.B 125
.B ctrd
itself failed, and has said why in a line on stderr.
.TP
.B 128 + N
Signal N ended
.B ctrd
before there was a container.
.TP
.B 0
Anything else.
"""
ENVIRONMENT = """
.TP
.BR CTRD_ADDRESS ,\\~ CONTAINERD_ADDRESS
The engine, the first that is set, where
.B --address
is not given.
.TP
.B CONTAINERD_NAMESPACE
The namespace in a containerd, where
.B --namespace
is not given.
.TP
.B LIBCONTAINERD_NOCLEAN
When it is 1, the directories of containers are kept.
.TP
.B DOCKER_RAMDISK
When it is not empty, containers are started without pivot_root(2).
.TP
.B XDG_RUNTIME_DIR
Where the state of containers lies that are not root's.
"""
FILES = """
.TP
.I /run/ctrd
The state of root's containers of the local engine; on illumos
.IR /var/run/ctrd .
.TP
.I $XDG_RUNTIME_DIR/ctrd
The same of any other user's.
"""
EXAMPLES = """
.EX
ctrd run --rootfs rootfs -- sh -c 'echo hello; exit 3'
ctrd run -it --rootfs rootfs sh
id=$(ctrd run -d --rootfs rootfs sleep 60); ctrd kill $id; ctrd wait $id
ctrd --address unix:///run/containerd/containerd.sock ps
ctrd serve --address unix:///run/ctrd.sock
.EE
"""


def escaped(text: str) -> str:
    """*text* as roff shows it: a hyphen that may be typed, no escape, and no line that begins a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", text)


def paragraphs(text: str) -> str:
    """The help of a command: paragraphs, which an empty line parts."""
    parts = [" ".join(part.split()) for part in inspect.cleandoc(text).split("\n\n")]
    return "\n.PP\n".join(map(escaped, parts))


def usage(parameter: click.Parameter) -> str:
    """An argument, or the value of an option, as the usage has it."""
    if parameter.metavar is not None:
        return parameter.metavar
    kind = parameter.type
    name = "|".join(map(str, kind.choices)) if isinstance(kind, click.Choice) else parameter.name or ""
    return name if isinstance(kind, click.Choice) else name.upper()


def option(parameter: click.Option) -> str:
    """The entry of an option."""
    names = [f"\\fB{escaped(name)}\\fR" for name in (*parameter.opts, *parameter.secondary_opts)]
    names.sort(key=lambda name: name in {f"\\fB{escaped(other)}\\fR" for other in parameter.secondary_opts})
    takes = "" if parameter.is_flag or parameter.count else f" \\fI{escaped(usage(parameter))}\\fR"
    help = parameter.help or ""
    if parameter.show_default and parameter.default is not None:
        help += f" [default: {parameter.default}]"
    return f".TP\n{', '.join(names)}{takes}\n{escaped(' '.join(help.split()))}\n"


def options(command: click.Command) -> str:
    """The entries of all options but that for help, which each command has."""
    return "".join(option(one) for one in command.params if isinstance(one, click.Option) and not one.hidden)


def entries(name: str, command: click.Command) -> str:
    """The section of a command, and those of the commands in it."""
    arguments = [escaped(usage(one)) for one in command.params if isinstance(one, click.Argument)]
    words = [f"\\fB{escaped(name)}\\fR", "[\\fIOPTION\\fR]...", *(f"\\fI{one}\\fR" for one in arguments)]
    if isinstance(command, click.Group):
        words.append("\\fICOMMAND\\fR ...")
    text = f".SS {' '.join(words)}\n{paragraphs(command.help or '')}\n{options(command)}"
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            inner = {below: command.get_command(context, below) for below in command.list_commands(context)}
        text += "".join(entries(f"{name} {below}", found) for below, found in inner.items() if found is not None)
    return text


def page() -> str:
    """The manual page."""
    with click.Context(ctrd) as context:
        commands = {name: ctrd.get_command(context, name) for name in COMMANDS}
    sections = {
        "NAME": "ctrd \\- run containers, and never lose a byte of their output or an exit of theirs",
        "SYNOPSIS": ".B ctrd\n[\\fIOPTION\\fR]... \\fICOMMAND\\fR [\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]...",
        "DESCRIPTION": DESCRIPTION,
        "OPTIONS": f"{options(ctrd)}{HELP}",
        "COMMANDS": "".join(entries(name, command) for name, command in commands.items() if command is not None),
        "EXIT STATUS": EXIT_STATUS,
        "ENVIRONMENT": ENVIRONMENT,
        "FILES": FILES,
        "EXAMPLES": EXAMPLES,
        "SEE ALSO": ".BR crun (1),\n.BR runc (8),\n.BR containerd (8),\n.BR ctr (8)",
    }
    head = [
        '.\\" Written by tools/gen_man.py.',
        f'.TH CTRD 1 "" "libctrd {libctrd.__version__}" "User Commands"',
        ".nh",
    ]
    return "\n".join([*head, ".ad l", ""]) + "".join(
        f".SH {title}\n{text.strip()}\n" for title, text in sections.items()
    )


def main() -> int:
    """Returns the exit code: 1 when the check finds that the page is stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 when it is stale")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE.name} is stale: run tools/gen_man.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
