"""How many examples a test takes: as many as it says, or in the profile "deep" many times that (see conftest.py)."""

from __future__ import annotations

from hypothesis import settings

USUAL = 100
"""What a test that says nothing takes in the profile "ci"."""


def examples(number: int) -> int:
    """*number* of them in the profile "ci"."""
    return number * settings.default.max_examples // USUAL
