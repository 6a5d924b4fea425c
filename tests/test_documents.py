"""That what SECURITY.md and RELIABILITY.md say is held by a test names one that there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from naive_kit import NAIVE

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("RELIABILITY.md", "SECURITY.md")
NAMED = re.compile(r"`(?:tests/)?(test_\w+\.py)(?:::(test_\w+))?`")


def names_in(file: str) -> set[str]:
    """The tests in a file of tests."""
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_tests_that_it_names_are_there(document: str) -> None:
    named = NAMED.findall((ROOT / document).read_text(encoding="utf-8"))
    assert len(named) > 10
    missing = [f"{file}::{name}" for file, name in named if not (ROOT / "tests" / file).is_file()]
    missing += [f"{file}::{name}" for file, name in named if name and not missing and name not in names_in(file)]
    assert missing == []


def test_those_with_a_star_are_run_the_naive_way_too() -> None:
    text = (ROOT / "RELIABILITY.md").read_text(encoding="utf-8")
    starred = {f"{file}::{name}" for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)` \\\*", text)}
    run = {naive.test for naive in NAIVE.values()}
    assert starred <= run
    assert {test for test in run - starred if "hostile" not in test and "directory" not in test} == set()
