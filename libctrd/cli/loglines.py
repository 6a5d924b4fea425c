"""What the library logs, as lines of ctrd's own on stderr."""

from __future__ import annotations

import logging

from libctrd.cli import output


class Lines(logging.Handler):
    """Tells each record in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        output.complain(self.format(record))


def to_stderr(logger: logging.Logger) -> None:
    """Has *logger* speak through us, and through nobody else: warnings, and with ``--debug`` all of it."""
    logger.setLevel(logging.DEBUG if output.debug else logging.WARNING)
    logger.handlers = [Lines()]
    logger.propagate = False
