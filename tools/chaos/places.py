"""Where the containers of a run are: in which engine, what is killed there, and what may not be left."""

from __future__ import annotations

import contextlib
from typing import Any

from engine_kit import Place

from libctrd.client import Client
from libctrd.errors import CtrdError


class LocalPlace:
    """A state directory of the local engine."""

    kind = "local"

    def __init__(self, runtime: str | None) -> None:
        self._place = self.make(runtime)
        self.root = self._place.root
        self.runtime_name = self._place.runtime_name or "of its choice"

    def make(self, runtime: str | None) -> Place:
        """A place of the tests' kit."""
        return Place(runtime)

    def connect(self) -> Client:
        """A client."""
        return self._place.connect()

    def of_clients(self) -> dict[str, Any]:
        """What a client in a process of its own has to know."""
        place = self._place
        names = ("address", "runtime", "namespace", "root", "kind")
        return {name: getattr(place, name) for name in names}

    def children(self) -> set[int]:
        """The processes that belong to the place itself."""
        return set()

    def restart(self) -> None:
        """Kills the daemon, and starts it again."""
        raise NotImplementedError("there is no daemon")

    has_daemon = False

    def id_of(self, words: list[str]) -> str | None:
        """For which container a process with that command line works; ``None``: for none of ours."""
        for word in words:
            if word.startswith(f"{self.root}/"):
                return word[len(self.root) + 1 :].partition("/")[0]
        return None

    def is_shim(self, words: list[str]) -> bool:
        """Is it a shim, and not a runtime?"""
        return words[0].endswith("ctrd-shim")

    def leftovers(self) -> dict[str, list[str]]:
        """All that there is of containers; names only."""
        return self._place.leftovers()

    def remove(self) -> None:
        """In the end, whatever is left: what is frozen would keep our namespace from its end."""
        with contextlib.suppress(CtrdError):
            self._place.remove()


def place_of(engine: str, runtime: str | None) -> LocalPlace:
    """That of an engine."""
    assert engine == "local"
    return LocalPlace(runtime)
