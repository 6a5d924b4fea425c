"""Drives the targets of tests/fuzz_targets.py by coverage, with atheris: TARGET, and how many seconds.

What crashes is written to the directory of the corpus, as crash-…; libFuzzer says on what. The target "planted" ends
with exit code 77 when it has found a word of four bytes to which only coverage leads: a fuzzer that cannot is blind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
with atheris.instrument_imports(include=["libctrd", "fuzz_targets"]):
    import fuzz_targets

    from libctrd.errors import CtrdError

PLANTED = b"ctrd"
FOUND = 77


@atheris.instrument_func
def planted(data: bytes) -> None:
    """The proof that coverage leads on: byte after byte of a word."""
    for place, byte in enumerate(PLANTED):
        if len(data) <= place or data[place] != byte:
            return
    os._exit(FOUND)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/fuzz/python", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("target", choices=["planted", *fuzz_targets.TARGETS])
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="how long (default: 60)")
    parser.add_argument("--corpus", required=True, metavar="DIR", help="what it has found out so far is kept there")
    given = parser.parse_args()
    corpus = Path(given.corpus, given.target)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(fuzz_targets.SEEDS.get(given.target, [])):
        (corpus / f"seed{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        if given.target == "planted":
            planted(data)
            return
        with contextlib.suppress(CtrdError):
            fuzz_targets.TARGETS[given.target](data)

    options = [f"-max_total_time={given.seconds}", "-timeout=20", "-rss_limit_mb=2048", f"-artifact_prefix={corpus}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
