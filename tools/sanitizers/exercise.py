"""Makes and drops fifos, pumps and buffers of every kind, many times: what is left at the end is a leak."""

from __future__ import annotations

import os
import tempfile

from libctrd import open_fifo, relay


def once(path: str) -> None:
    reader = open_fifo(path, os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK)
    writer = open_fifo(path, os.O_WRONLY | os.O_NONBLOCK)
    kept = relay.buffer(reader)
    writer.write(b"x" * 10000)
    writer.close()
    kept.wait()
    os.unlink(path)
    source, feed = os.pipe()
    thrown = relay.discard(source)
    os.write(feed, b"y" * 1000)
    os.close(feed)
    thrown.wait()
    waiting = open_fifo(path, os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK)
    relay.discard(waiting).cancel()
    os.unlink(path)


with tempfile.TemporaryDirectory() as directory:
    for _ in range(200):
        once(f"{directory}/fifo")
