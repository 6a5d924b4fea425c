"""The time of the last event that was handled, kept on disk: from there the next client takes up the stream (C24).

RFC 3339 with nanoseconds, in a file that only this user may read, replaced at once. Several clients of one daemon share
it; each only moves it forward from what it has written itself, and what an earlier time costs is an event told again,
which nobody takes for a new one.
"""

from __future__ import annotations

import calendar
import contextlib
import logging
import os
import re
import time

from libctrd import ids

log = logging.getLogger("libctrd")

NAME = ".event-time"
NANOSECONDS = 1_000_000_000
LAST_SECOND = 253402300799
"""The end of the year 9999, the last one that RFC 3339 can write."""

_FORM = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))\n?", re.ASCII
)


def text_of(at: int) -> str:
    """A moment in nanoseconds since 1970 as RFC 3339 has it, in UTC."""
    seconds, nanoseconds = divmod(at, NANOSECONDS)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"


def parse(text: str) -> int:
    """A moment of RFC 3339 in nanoseconds since 1970. Raises `ValueError` for what is none."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:60]!r} is no time of RFC 3339")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    if not (year and 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]):
        raise ValueError(f"{text[:60]!r} names no day")
    if hour > 23 or minute > 59 or second > 60:
        raise ValueError(f"{text[:60]!r} names no time of the day")
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    if found[8]:
        if int(found[9]) > 23 or int(found[10]) > 59:
            raise ValueError(f"{text[:60]!r} has no such offset")
        offset = int(found[9]) * 3600 + int(found[10]) * 60
        seconds += offset if found[8] == "-" else -offset
    return seconds * NANOSECONDS + int((found[7] or "").ljust(9, "0"))


class KeptTime:
    """The time in the directory *root*. One thread moves it on."""

    def __init__(self, root: str) -> None:
        self._path = os.path.join(root, NAME)
        self.at_start = self._read()
        """What was kept when this client began, in nanoseconds since 1970; 0 for nothing: since ever."""
        self._written = self.at_start

    def _read(self) -> int:
        try:
            with open(
                self._path, encoding="ascii", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)
            ) as f:
                at = parse(f.read(100))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            log.warning("the time of the last event in %s cannot be read, all events count: %s", self._path, error)
            return 0
        if at > time.time_ns() + 60 * NANOSECONDS:
            log.warning("the time of the last event in %s has not come yet, all events count", self._path)
            return 0
        return max(0, at)

    def advance(self, at: int) -> None:
        """From now on *at* is kept, if it is later. A disk that takes it not is a warning, for the events went well."""
        if at <= self._written or at // NANOSECONDS > LAST_SECOND:
            return
        own = f"{self._path}.{ids.generate()}"
        try:
            fd = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, text_of(at).encode())
            finally:
                os.close(fd)
            os.rename(own, self._path)
        except FileNotFoundError:
            return  # the directory was taken away under us
        except OSError as error:
            log.warning("the time of the last event cannot be kept in %s: %s", self._path, error)
            with contextlib.suppress(OSError):
                os.unlink(own)
            return
        self._written = at
