"""The family of errors: one sentence each, the operating system's number as cause."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libctrd import errors


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, errors.NotFoundError),
        (errno.EEXIST, errors.AlreadyExistsError),
        (errno.EINVAL, errors.InvalidArgumentError),
        (errno.ELOOP, errors.InvalidArgumentError),
        (errno.EACCES, errors.UnavailableError),
        (errno.EMFILE, errors.UnavailableError),
        (errno.ENOSPC, errors.UnavailableError),
        (errno.ENOSYS, errors.UnsupportedError),
        (errno.ETIMEDOUT, errors.DeadlineError),
    ],
)
def test_a_number_becomes_its_error(number: int, kind: type[errors.CtrdError]) -> None:
    error = errors.from_errno(number, "open fifo '/x' (open)")
    assert type(error) is kind
    assert error.errno == number
    assert isinstance(error.__cause__, OSError)
    assert str(error).startswith("could not open fifo '/x' (open): ")


@given(st.integers(0, 4000))
def test_any_number_becomes_one_line(number: int) -> None:
    error = errors.from_errno(number, "do it")
    assert isinstance(error, errors.CtrdError)
    assert "\n" not in str(error)
    assert os.strerror(number) in str(error)


def test_advice_can_be_given_for_the_place() -> None:
    assert str(errors.from_errno(errno.EMFILE, "x", "close some")).endswith("(close some)")
    assert "RLIMIT_NOFILE" in str(errors.from_errno(errno.EMFILE, "x"))


def test_a_caught_error_stays_the_cause() -> None:
    cause = OSError(errno.ENOENT, "gone")
    assert errors.from_os_error(cause, "x").__cause__ is cause


def test_people_may_catch_what_they_know() -> None:
    assert issubclass(errors.DeadlineError, TimeoutError)
    assert issubclass(errors.NotFoundError, LookupError)
    assert issubclass(errors.InvalidArgumentError, ValueError)
