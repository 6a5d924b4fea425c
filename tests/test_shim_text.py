"""The shim's own `print` against the C library's snprintf(3)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

SOURCE = Path(__file__).parents[1] / "pyx" / "shim_text.c"
C_LIBRARY = ctypes.CDLL(None)


def whole(bits: int) -> st.SearchStrategy[int]:
    """The numbers of a C type, its ends among them."""
    least, most = -(1 << bits - 1), (1 << bits - 1) - 1
    return st.integers(least, most) | st.sampled_from([least, least + 1, -1, 0, 9, 10, most])


words = st.binary(max_size=40).map(lambda word: word.replace(b"\0", b""))
pieces = st.one_of(
    st.tuples(st.just(b"%s"), words.map(ctypes.c_char_p)),
    st.tuples(st.just(b"%d"), whole(32).map(ctypes.c_int)),
    st.tuples(st.just(b"%ld"), whole(8 * ctypes.sizeof(ctypes.c_long)).map(ctypes.c_long)),
    st.tuples(st.just(b"%lld"), whole(64).map(ctypes.c_longlong)),
    st.tuples(st.just(b"%%"), st.none()),
    st.tuples(words.map(lambda word: word.replace(b"%", b"")), st.none()),
)


@pytest.fixture(scope="module")
def shim_text(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """That part of the shim, as a library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is missing on this host: apt-get install gcc")
    library = tmp_path_factory.mktemp("shim") / "text.so"
    subprocess.run([compiler, "-std=gnu11", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    return ctypes.CDLL(str(library))


@given(parts=st.lists(pieces, max_size=6), size=st.integers(0, 200))
def test_print_writes_what_snprintf_does(shim_text: ctypes.CDLL, parts: list[tuple[bytes, object]], size: int) -> None:
    """The same bytes, the same length, nothing behind the end; also where there is not room for all."""
    form = b"".join(form for form, _ in parts)
    values = [value for _, value in parts if value is not None]
    found, wanted = (ctypes.create_string_buffer(b"\xff" * 256, 256) for _ in range(2))
    assert shim_text.print(found, ctypes.c_size_t(size), form, *values) == C_LIBRARY.snprintf(
        wanted, ctypes.c_size_t(size), form, *values
    )
    assert found.raw == wanted.raw
