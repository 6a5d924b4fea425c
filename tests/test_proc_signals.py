"""Tests of the names and numbers of signals (`libctrd.proc`)."""

from __future__ import annotations

import errno
import signal

import pytest
from examples_kit import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from proc_kit import (
    GONE,
    nothing_left,  # noqa: F401 (fixtures)
)

from libctrd import proc
from libctrd.errors import (
    InvalidArgumentError,
    NotFoundError,
)


@pytest.mark.parametrize("sig", [15, "15", "TERM", "SIGTERM", "term", "SigTerm", signal.SIGTERM])
def test_a_signal_is_known_by_number_and_by_each_spelling_of_its_name(sig: int | str) -> None:
    assert proc.signal_number(sig) == 15


def test_real_time_signals_count_from_both_ends() -> None:
    assert proc.signal_number("RTMIN+3") == signal.SIGRTMIN + 3
    assert proc.signal_number("sigrtmax-1") == signal.SIGRTMAX - 1
    assert proc.signal_number("RTMIN") == signal.SIGRTMIN
    assert proc.signal_name(signal.SIGRTMIN + 3) == "SIGRTMIN+3"
    assert proc.signal_name(signal.SIGRTMAX - 1) == "SIGRTMAX-1"


NO_SIGNALS = [
    0, -1, 65, 10**30, True, 1.0, None, b"TERM", "", "0", "65", "9" * 5000, "+15", "-15", "0x0f", "\u0661",
    "SIG", "SIGSIGTERM", "TERM ", "\u017fIGTERM", "SIG_DFL", "RTMIN-1", "RTMAX+1", "RTMIN+31", "RTMIN+",
    "RTMIN++1", "RTMIN+9999999999",
]  # fmt: skip


@pytest.mark.parametrize("sig", NO_SIGNALS, ids=lambda sig: repr(sig)[:20])
def test_what_is_no_signal_is_refused_with_what_is_accepted(sig: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"number from 1 to \d+, a name like 'TERM'") as caught:
        proc.signal_number(sig)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300


@given(st.integers(1, int(signal.SIGRTMAX)))
def test_every_signal_is_found_again_by_its_name(number: int) -> None:
    name = proc.signal_name(number)
    assert proc.signal_number(name) == proc.signal_number(name.lower()) == number
    assert proc.signal_number(name.removeprefix("SIG")) == number


SPELLING = st.text() | st.from_regex(r"(?i)(sig)?(rt(min|max)|term|[a-z]{2,6})([+-]?\d{0,5})", fullmatch=True)


@given(SPELLING | st.integers())
@settings(max_examples=examples(500))
def test_anything_else_is_a_signal_in_range_or_one_clear_error(sig: int | str) -> None:
    try:
        number = proc.signal_number(sig)
    except InvalidArgumentError:
        return
    assert 1 <= number <= signal.SIGRTMAX
    if isinstance(sig, str) and not sig.isdigit():
        assert sig.upper().removeprefix("SIG").rstrip("0123456789+-") in proc.signal_name(number) or (
            sig.upper().removeprefix("SIG")[:5] in ("RTMIN", "RTMAX", "IOT", "CLD", "POLL")
        )


@pytest.mark.parametrize("pid", [0, -1, 2**31, True, 1.5, "1"])
def test_a_pid_that_would_mean_a_group_or_everybody_is_refused(pid: int) -> None:
    for call in (lambda: proc.kill(pid, "TERM"), lambda: proc.start_time(pid), lambda: proc.reap(pid)):
        with pytest.raises(InvalidArgumentError, match="is no process id"):
            call()


def test_killing_nobody_says_so() -> None:
    with pytest.raises(NotFoundError, match=f"send SIGTERM to process {GONE} .*it has ended") as caught:
        proc.kill(GONE, "TERM")
    assert caught.value.errno == errno.ESRCH
    assert isinstance(caught.value.__cause__, ProcessLookupError)
