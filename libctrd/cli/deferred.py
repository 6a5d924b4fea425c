"""Less to import: modules that are loaded when something of them is first used, and those that are done without.

`importlib.util.LazyLoader` would be the way, but a lazy module of its making loads already when the next ``import`` of
that name looks at its ``__spec__``: what is deferred for click would be loaded by click.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec
from typing import Any


def defer(name: str) -> None:
    """From now on ``import NAME`` gives a module that loads itself at the first look into it, in whichever thread.

    One that is imported already stays as it is. *name* is a module's at the top, such as ``inspect``.
    """
    spec = None if name in sys.modules else find_spec(name)
    if spec is None or spec.loader is None:
        return
    module, loader = module_from_spec(spec), spec.loader
    lock, begun = threading.RLock(), False

    def load(attribute: str) -> Any:
        nonlocal begun
        with lock:  # whoever looks meanwhile waits until it is whole; who loads it may look, and sees what is there
            if not begun:
                begun = True
                loader.exec_module(module)
                del module.__dict__["__getattr__"]
        try:
            return module.__dict__[attribute]
        except KeyError:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}") from None

    module.__dict__["__getattr__"] = load  # PEP 562
    sys.modules[name] = module


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Within it ``import NAME`` fails as if nobody had installed it. One that is imported already stays as it is."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what the import system takes for "there is none"
    try:
        yield
    finally:
        del sys.modules[name]
