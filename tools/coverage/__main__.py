"""Says which lines were reached, from the counts of `tools/coverage/run`, and holds them against the file `unreached`.

Counted are the lines of Python by coverage.py, and those of C by gcov; a line of Cython counts when the first C that
was made of it was run: so the code of the relay's thread, which never has the GIL and which no trace could follow,
counts like all other. In the files that are held to it, each line is reached or explained: what is neither fails, and
so does an explanation whose line is reached, or gone.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HELD = re.compile(r"libctrd/container\.py|pyx/(fifo\.pyx|relay\.pyx|\w+\.pxi|shim\w*\.c)")
"""The files of which every line is reached or explained."""
FUNCTION = re.compile(r"(?:    )?(?:cdef|cpdef|def)\b[^=]*?(\w+)\(|[A-Za-z_][^=;]*?\b(\w+)\(.*[^;]$")
"""Where one begins, in Cython, Python or C."""
MARK = re.compile(r'/\* "(?:.*/)?(pyx/[\w.]+)":(\d+)$')
Lines = dict[int, int]


class Explained(NamedTuple):
    """A line that needs not be reached. *sometimes* it is. *place*: its file and the function that it is in."""

    place: str
    text: str
    sometimes: bool
    where: int

    def is_of(self, place: str, text: str) -> bool:
        """Is it about that line? It may be cut short: then "…" is its end."""
        begins, cut, _ = self.text.partition("…")
        return place == self.place and (text.startswith(begins) if cut else text == self.text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/coverage/run", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--build", required=True, help="the directory of the sources that were built")
    parser.add_argument("--python", required=True, help="what coverage.py found, as JSON")
    parser.add_argument("--list", action="store_true", help="list every line that was not reached, in all files")
    given = parser.parse_args()
    build = Path(given.build)
    found: dict[str, Lines] = defaultdict(dict)
    of_python(Path(given.python), found)
    for counts in sorted(build.rglob("*.gcda")):
        of_c(build, counts, found)
    explained = list(explanations())
    faults = [fault for file in sorted(found) if HELD.fullmatch(file) for fault in held(file, found[file], explained)]
    names = {Path(file).name for file in found}
    gone = (reason for reason in explained if reason.place.split()[0] not in names)
    faults += [f"unreached:{reason.where}: there is no such file: {reason.place}" for reason in gone]
    table(found)
    if given.list:
        for file, lines in sorted(found.items()):
            text = (ROOT / file).read_text(encoding="utf-8").splitlines()
            print(*(f"{file}:{line}: {text[line - 1].strip()}" for line in sorted(lines) if not lines[line]), sep="\n")
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults" if faults else "every line of the files that are held to it is reached or explained")
    return int(bool(faults))


def of_python(path: Path, found: dict[str, Lines]) -> None:
    for name, file in json.loads(path.read_text(encoding="utf-8"))["files"].items():
        lines = found["libctrd/" + name.rpartition("/libctrd/")[2]]
        lines.update(dict.fromkeys(file["executed_lines"], 1))
        lines.update(dict.fromkeys(file["missing_lines"], 0))


def of_c(build: Path, counts: Path, found: dict[str, Lines]) -> None:
    command = ["gcov", "--json-format", "--stdout", "-o", counts, counts]
    said = subprocess.run(command, capture_output=True, check=True, cwd=build, text=True).stdout
    for file in json.loads(said)["files"]:
        path = file["file"]
        lines = {line["line_number"]: line for line in file["lines"]}
        if path.startswith("pyx/"):
            for number, line in lines.items():
                found[path][number] = found[path].get(number, 0) + line["count"]
        elif "cython" in path and path.endswith(".c"):
            of_cython(build / path, lines, found)


def of_cython(path: Path, lines: dict[int, dict[str, int]], found: dict[str, Lines]) -> None:
    """The comments in what Cython has made say of which line it is; the first C behind one is where that line begins.

    Of a ``finally`` there are copies behind one comment, for each way that leads there: any of them counts.
    """
    at: tuple[str, int] | None = None
    copies = False
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        mark = MARK.search(text)
        if mark:
            at, copies = (mark[1], int(mark[2])), False
        elif "/* function exit code */" in text:
            at = None
        elif "/*finally:*/" in text:
            copies = True
        elif at is not None and number in lines:
            file, line = at
            found[file][line] = found[file].get(line, 0) + lines[number]["count"]
            at = at if copies else None


def explanations() -> Iterator[Explained]:
    """Those of the file `unreached`: a reason, behind "never:" or "sometimes:", and then its lines, indented."""
    sometimes = False
    for number, line in enumerate((HERE / "unreached").read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith(("never:", "sometimes:")):
            sometimes = line.startswith("sometimes:")
        elif line.startswith("\t"):
            place, _, text = line.strip().partition(": ")
            yield Explained(place, text, sometimes, number)


def held(file: str, lines: Lines, explained: Iterable[Explained]) -> Iterator[str]:
    """What is wrong with that file."""
    name = Path(file).name
    reasons = [reason for reason in explained if reason.place.split()[0] == name]
    there: dict[tuple[str, str], list[int]] = defaultdict(list)
    function = "-"
    for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), 1):
        if begins := FUNCTION.match(line):
            function = begins[1] or begins[2]
        if number in lines:
            there[f"{name} {function}", line.strip()].append(number)
    for (place, text), numbers in there.items():
        missing = [number for number in numbers if not lines[number]]
        reason = next((one for one in reasons if one.is_of(place, text)), None)
        if missing and reason is None:
            yield f"{file}:{missing[0]}: neither reached nor explained: {place}: {text}"
        elif reason is not None and not missing and not reason.sometimes:
            yield f"unreached:{reason.where}: explained, and yet reached: {place}: {text}"
    for reason in reasons:
        if not any(reason.is_of(*line) for line in there):
            yield f"unreached:{reason.where}: there is no such line: {reason.place}: {reason.text}"


def table(found: dict[str, Lines]) -> None:
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for file, lines in sorted(found.items()):
        names = [file] if HELD.fullmatch(file) else []
        for name in [*names, "all of Python" if file.endswith(".py") else "all of Cython and C"]:
            sums[name][0] += sum(map(bool, lines.values()))
            sums[name][1] += len(lines)
    for name, (reached, there) in sorted(sums.items(), key=lambda item: item[0].startswith("all")):
        print(f"{name:28} {reached:6} of {there:6} lines, {100 * reached / there:5.1f} %")


if __name__ == "__main__":
    sys.exit(main())
