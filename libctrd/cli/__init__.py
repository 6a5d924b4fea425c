"""The command line, ``ctrd``: what people type, in front of the library, with no powers of its own.

Its exit codes: that of the container or process where a command waited for one (``run``, ``start -a``, ``exec``,
``wait``), 125 when ctrd itself failed, with one line on stderr, 128 + N when signal N ended it before there was a
container, else 0.

Little is imported here, and each command only when it is called: most of what ``ctrd run`` takes is imports.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that *arguments* name; returns its exit code.

    Without *arguments* it is the program: it takes the process's own, and the process ends with the command.
    """
    if arguments is not None:
        return _run(arguments)
    # What is imported is here to stay. To look through it for garbage again and again while it grows takes a twentieth
    # of `ctrd run`, which does not come to this number of objects; what runs for long and makes garbage does.
    gc.set_threshold(50_000)
    code = _run(sys.argv[1:])
    # Nothing is left to be done: the containers are cleaned or on their own, and what was said is out. To take the
    # interpreter down in order takes as long as a sixth of `ctrd run`.
    os._exit(code)


def _run(arguments: Sequence[str]) -> int:
    _fill_standard_streams()
    from libctrd.cli import deferred, exits, output

    deferred.defer("inspect")  # click imports it, and uses it for texts of help alone
    deferred.defer("textwrap")  # msgspec imports it, and uses it for texts of schemas alone
    try:
        from libctrd.cli.group import invoke

        code = invoke(arguments)
        output.flush()
        return code
    except KeyboardInterrupt:
        return exits.SIGNALLED + 2
    except exits.Interrupted as interrupted:
        return exits.SIGNALLED + interrupted.number
    except Exception as error:  # noqa: BLE001 - the last resort: whatever failed, people get a line and not a traceback
        return output.fail(error)


def _fill_standard_streams() -> None:
    """Opens ``/dev/null`` where descriptor 0, 1 or 2 is closed: a fifo or socket there would be taken for a stream."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
