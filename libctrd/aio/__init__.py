"""libctrd for asyncio: the names of `libctrd`, where what may take time is a coroutine (uvloop will do as well).

::

    done = await libctrd.aio.run(["echo", "hi"], rootfs="rootfs", capture_output=True)

    async with libctrd.aio.connect() as client:
        container = await client.create("web", libctrd.spec.default(["sh"], "rootfs"))
        await container.start()
        async for line in container.stdout: ...
        status = await container.wait()

No thread is spent on a container or on a call: the relay moves the bytes, and it and the client's events wake the loop
through one descriptor (`libctrd.aio.loop`). Starts are made by a thread for each processor, so that a thousand at once
queue.

Whoever is cancelled while he starts something, or in `run`, finds it killed and cleaned when the cancellation goes on;
one who waits, or reads, stops to do so, and nothing else. Everything else, errors first of all, is as in `libctrd`.
"""

from libctrd.aio.clients import Client, EventStream, Images, connect, run
from libctrd.aio.containers import Container, Process
from libctrd.aio.streams import Reader, Writer
from libctrd.once import Completed
from libctrd.state import ExitStatus
from libctrd.stdio import DETACHED, INHERIT, NULL, PIPE, IOPipe, Stdio

__all__ = [
    "DETACHED",
    "INHERIT",
    "NULL",
    "PIPE",
    "Client",
    "Completed",
    "Container",
    "EventStream",
    "ExitStatus",
    "IOPipe",
    "Images",
    "Process",
    "Reader",
    "Stdio",
    "Writer",
    "connect",
    "run",
]
