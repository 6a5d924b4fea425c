"""The exit codes of ctrd that are not a container's, and the exception by which a signal ends it."""

from __future__ import annotations

from typing import Final

FAILED: Final = 125
"""ctrd itself failed."""
SIGNALLED: Final = 128
"""Added to the number of the signal that ended ctrd."""


class Interrupted(BaseException):
    """A signal ended what ctrd was doing. ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
