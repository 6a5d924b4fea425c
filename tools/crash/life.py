"""A client that starts a container, waits for its end, cleans it; and one that it starts for others, kills and cleans.

`crash` counts from the first name of its thread to the second.
"""

from __future__ import annotations

import ctypes
import sys

import libctrd
from libctrd.errors import CtrdError, UnavailableError

PR_SET_NAME = 15


def main(address: str, runtime: str, rootfs: str) -> int:
    libc = ctypes.CDLL(None)
    spec = libctrd.spec.default(["/bin/sh", "-c", "echo out; exit 7"], rootfs)
    waits = libctrd.spec.default(["/bin/sleep", "100"], rootfs)
    with libctrd.connect(address, runtime=runtime) as client:

        def live(first: str, second: str) -> None:
            container = client.create(first, spec)
            container.start(libctrd.PIPE)
            status = container.wait(60)
            if not status.known:
                raise UnavailableError("the exit code is not known")
            if status.code == 137:  # what was to become its program was killed in the last moment before
                raise UnavailableError("it was killed")
            assert status.code == 7, status
            other = client.create(second, waits)
            other.start(libctrd.DETACHED)
            other.clean(force=True)

        live("warm1", "warm2")  # so that nothing is imported or found out any more
        libc.prctl(PR_SET_NAME, b"crash-begin", 0, 0, 0)
        try:
            live("web", "other")
        except CtrdError as error:  # its shim or its runtime was killed
            print(error)
            return 3
        finally:
            libc.prctl(PR_SET_NAME, b"crash-end", 0, 0, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
