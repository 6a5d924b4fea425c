"""Containers whose every byte and exit code is known beforehand: made from a seed and the container's id alone.

So whoever knows the id knows what has to come: the client that starts it, the one that takes it over, the ledger.
"""

from __future__ import annotations

import random
from typing import NamedTuple

LINE = 9
"""The bytes of a line of output: eight digits, counting up, and an end of line. So a part says where it belongs."""
KINDS = ("plain", "cat", "host", "kill", "force", "leave", "attach", "pause", "capture", "trap")
ENDS_BY_ITSELF = ("plain", "capture")
UNCERTAIN = (255, 137)
"""Codes that no program here ends with: not known, and killed."""


class Lines(NamedTuple):
    """So many lines that count up from *first*."""

    first: int
    count: int

    @property
    def data(self) -> bytes:
        """All of it."""
        return b"".join(b"%d\n" % number for number in range(self.first, self.first + self.count))

    @property
    def command(self) -> str:
        """What prints it."""
        return f"seq {self.first} {self.first + self.count - 1}" if self.count else ":"


class Life(NamedTuple):
    """What one process does: *out* and *err* are printed first, then it goes on as its kind says, and ends with *code*.

    ``cat``: it copies its stdin, which is *fed*, to stdout. ``trap``: it ends on SIGTERM, which it heeds before the
    first byte. ``plain`` and ``capture``: it ends by itself. The others: it ends once its stdin has ended.
    """

    kind: str
    out: Lines
    err: Lines
    fed: Lines
    code: int
    execs: tuple[str, ...]

    @property
    def script(self) -> str:
        """The shell script that does it."""
        trap = f"trap 'exit {self.code}' TERM; " if self.kind == "trap" else ""
        then = {"cat": "cat; ", "trap": "sleep 1000 & wait; "}.get(self.kind, "read x; ")
        then = "" if self.kind in ENDS_BY_ITSELF else then
        return f"{trap}{self.out.command}; {self.err.command} >&2; {then}exit {self.code}"

    def expected(self, stream: str) -> bytes:
        """All that it prints there."""
        if stream == "stderr":
            return self.err.data
        return self.out.data + (self.fed.data if self.kind == "cat" else b"")


def _code(dice: random.Random) -> int:
    while (code := dice.randrange(256)) in UNCERTAIN:
        pass
    return code


def life(seed: int, id: str, process: str = "init") -> Life:
    """That of a container, or of a further process in it."""
    dice = random.Random(f"{seed}/{id}/{process}")
    kind = dice.choice(KINDS) if process == "init" else dice.choice(("plain", "cat"))
    much = dice.choice((0, 1, 20, 20, 3000, 30_000, 150_000 if process == "init" else 3000))
    # Where it goes on after its output, that has to fit into a pipe: else it would never come so far before it is read.
    if kind in ("host", "kill", "force", "trap"):
        much = min(much, 3000)
    out = Lines(dice.randrange(10_000_000, 99_000_000), much)
    err = Lines(dice.randrange(10_000_000, 99_000_000), dice.choice((0, 1, 200)))
    fed = Lines(out.first + out.count, dice.choice((1, 100, 2000)))
    execs = tuple(f"e{number}" for number in range(dice.randrange(1, 4))) if kind == "host" else ()
    return Life(kind, out, err, fed, _code(dice), execs)
