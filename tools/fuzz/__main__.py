"""Drives one target of tests/fuzz_targets.py by coverage, with atheris; `tools/fuzz/run` calls it.

What crashes is written down, as crash-…, in the directory of findings; libFuzzer says on what. With --planted, which
wants the build with planted.h, the target has to find a planted word of four bytes, to which only coverage leads: then
the exit code is 91. "python" is a target for that alone, of plain Python; for the others the word lies in what is
compiled.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOUND = 91  # as in planted.h
WORD = b"cTrD"
LONGEST_TEXT = 200


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/fuzz", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="how long (default: 60)")
    parser.add_argument("--corpus", required=True, metavar="DIR", help="what it has found out so far is kept there")
    parser.add_argument("--findings", required=True, metavar="DIR", help="where what crashes is kept")
    parser.add_argument("--library", required=True, metavar="FILE", help="libFuzzer, as a library")
    parser.add_argument("--planted", action="store_true", help="the planted word is what is looked for")
    return parser.parse_args()


given = arguments()
# Before all that is instrumented, which looks there for what counts: compiled code calls it by name.
ctypes.CDLL(given.library, ctypes.RTLD_GLOBAL)
sys.path.insert(0, str(ROOT / "tests"))
import atheris  # noqa: E402

with atheris.instrument_imports(include=["libctrd", "fuzz_targets", "fuzz_containerd"]):
    import fuzz_targets

    from libctrd.errors import CtrdError


@atheris.instrument_func
def planted(data: bytes) -> None:
    """The proof that coverage of Python leads on: byte after byte of a word."""
    for place, byte in enumerate(WORD):
        if len(data) <= place or data[place] != byte:
            return
    os._exit(FOUND)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Each part of a document, as what holds it and the key there."""
    found: list[tuple[Any, Any]] = []
    pending = [document]
    while pending:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            found.append((holder, key))
            pending.append(holder[key])
    return found


def changed(document: Any, chance: random.Random) -> None:
    """Changes one part of a document: what it is, where it is, or by what name."""
    holder, key = chance.choice(places(document))
    value, how = holder[key], chance.random()
    if how < 0.1:
        del holder[key]
    elif how < 0.2 and isinstance(holder, dict):
        holder[chance.choice(["type", "name", "path", "size", "id", "x"])] = holder.pop(key)
    elif how < 0.3:
        holder[key] = chance.choice([None, True, 0, -1, 1 << 63, 1.5, "", [], {}, [value], {"type": value}])
    elif how < 0.4:
        other, there = chance.choice(places(document))
        holder[key] = json.loads(json.dumps(other[there]))
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        holder[key] = atheris.Mutate(text, max(LONGEST_TEXT, len(text))).decode("utf-8", "replace")
    elif isinstance(value, int):
        holder[key] = value + chance.choice([-1, 1, 1 << 31, -(1 << 31)])


def change_json(data: bytes, most: int, seed: int) -> bytes:
    """A custom mutator: half of the time a part of a document, of each line one, and else bytes, as libFuzzer does."""
    chance = random.Random(seed)
    lines = data.split(b"\n")
    number = chance.randrange(len(lines))
    if chance.random() < 0.5:
        with contextlib.suppress(ValueError, RecursionError, IndexError):
            document = json.loads(lines[number])
            changed(document, chance)
            lines[number] = json.dumps(document).encode()
            made = b"\n".join(lines)
            if len(made) <= most:
                return made
    return bytes(atheris.Mutate(data, most))


def main() -> None:
    targets = {**fuzz_targets.TARGETS, "python": planted}
    target = targets[given.target]
    corpus, findings = Path(given.corpus), Path(given.findings)
    for directory in (corpus, findings):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(fuzz_targets.SEEDS.get(given.target, [])):
        (corpus / f"seed{number}").write_bytes(seed)
    if given.planted:
        os.environ["CTRD_PLANTED"] = "1"

    def one(data: bytes) -> None:
        with contextlib.suppress(CtrdError):
            target(data)

    options = [f"-max_total_time={given.seconds}", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"]
    mutator = {"custom_mutator": change_json} if given.target in fuzz_targets.JSON else {}
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={findings}/{given.target}-", str(corpus)], one, **mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
