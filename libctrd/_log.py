"""The logger of the library: what ``logging.getLogger("libctrd")`` gives, fetched when there is something to say.

``logging`` brings ``traceback``, ``tokenize`` and ``string`` along: a tenth of what ``ctrd run`` would import, for
words that hardly any container gives a reason for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

TYPE_CHECKING = False  # what type checkers take for true, as in the package's own module
if TYPE_CHECKING:
    import logging
    from typing import Any

    log: logging.Logger

_lock = threading.Lock()
_prepare: Callable[[logging.Logger], None] | None = None


def prepare(how: Callable[[logging.Logger], None]) -> None:
    """Has *how* called with the logger before its next word: for a program that says where the words go."""
    global _prepare
    with _lock:
        _prepare = how


class _Late:
    """Has all that the logger has. What is called is the logger's own method, so it finds its caller as ever."""

    def __getattr__(self, name: str) -> Any:
        global _prepare
        if name == "debug" and "logging" not in sys.modules:
            return _unheard  # nobody can have asked for it
        import logging  # see above

        logger = logging.getLogger("libctrd")
        with _lock:
            how, _prepare = _prepare, None
            if how is not None:
                how(logger)
        return getattr(logger, name)


def _unheard(*_: object, **__: object) -> None:
    """A word that is for nobody."""


if not TYPE_CHECKING:
    log = _Late()
