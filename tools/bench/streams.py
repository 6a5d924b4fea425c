"""How fast a container's output goes: read by the caller, moved by the relay, discarded; against raw pipes and others.

The same static program writes in every case, in blocks of 1 MiB, and the clock runs from the return of the start of the
writer to the end of file: what a start takes is measured elsewhere. (Only ``ctr run`` is taken as a whole.) A raw pipe
is one of 1 MiB between two processes, and nothing else.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import daemon
import peers
from bare import write_bundle
from measure import Bar, Result, Series, at_least_times, in_turns, ratio

import libctrd
from libctrd import relay

RAW = 0.9  # of the rate of a raw pipe
RELAYED = 0.67  # the same for bytes that are moved twice, from pipe to pipe
CTR = 3.0
SPLICE = 0.95
GO_CPU = 0.1  # of Go's processor time
BLOCK = 1 << 20
SINK = """
import os
buffer, got = [bytearray(1 << 20)], 0
while count := os.readv(0, buffer):
    got += count
print(got)
"""
_numbers = itertools.count()


class Streams:
    """The writers and readers, for *size* MiB. All return MiB a second."""

    def __init__(self, client: libctrd.Client, rootfs: str, writer: str, size: int, directory: Path) -> None:
        self.client = client
        self.mib = size
        self.size = size << 20
        self.writer = [writer, "write", str(size)]
        self.directory = directory
        shutil.copy2(writer, os.path.join(rootfs, "peer"))
        self.spec = libctrd.spec.default(["/peer", "write", str(size)], rootfs)
        self.cpu: dict[str, list[float]] = {"libctrd": [], "splice": [], "go": []}

    # ---- out of a container ----

    def raw_read(self) -> float:
        """Writer, a pipe of 1 MiB, a reader in this process."""
        reader, writer = self._pipe()
        process = subprocess.Popen(self.writer, stdout=writer)
        os.close(writer)
        begin = time.perf_counter()
        buffer, got = [bytearray(BLOCK)], 0
        while count := os.readv(reader, buffer):
            got += count
        rate = self._rate(begin, got)
        os.close(reader)
        process.wait()
        return rate

    def pipe_read(self) -> float:
        """Container, `PIPE`, a reader in this process."""
        container, begin = self._start(libctrd.Stdio(libctrd.NULL, libctrd.PIPE, libctrd.NULL))
        buffer, got = bytearray(BLOCK), 0
        assert isinstance(container.stdout, libctrd.Fifo)
        while count := container.stdout.readinto(buffer):
            got += count
        rate = self._rate(begin, got)
        container.stdout.close()
        self._end(container)
        return rate

    def raw_count(self) -> float:
        """Writer, a pipe of 1 MiB, another process that counts."""
        reader, writer = self._pipe()
        with _counter(reader) as sink, subprocess.Popen(self.writer, stdout=writer):
            begin = time.perf_counter()
            os.close(writer)
            count, _ = sink.communicate()
        return self._rate(begin, int(count))

    def inherit_count(self) -> float:
        """Container, the relay, a pipe, another process that counts: what `INHERIT` does when stdout is a pipe."""
        reader, writer = self._pipe()
        with _counter(reader) as sink:
            container, begin = self._start(libctrd.Stdio(libctrd.NULL, writer, libctrd.NULL))
            self._end(container)
            os.close(writer)
            count, _ = sink.communicate()
        return self._rate(begin, int(count))

    def unattended(self) -> float:
        """Container, its shim, nowhere: what nobody reads."""
        both = libctrd.Stdio(libctrd.NULL, libctrd.DETACHED, libctrd.NULL)
        container, begin = self._start(both, unattended="discard")
        self._end(container)
        rate = self._rate(begin, self.size)
        container.clean()
        return rate

    def ctr(self, host: daemon.Daemon, config: Path) -> float:
        """``ctr run | cat``, as a whole."""
        command = host.run_command(self.directory, config)
        begin = time.perf_counter()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as container:
            assert container.stdout is not None
            with open(os.devnull, "wb") as null:
                subprocess.run(["cat"], stdin=container.stdout, stdout=null, check=True)
        if container.returncode:
            raise SystemExit(f"ctr run ended with exit code {container.returncode}: see above")
        return self._rate(begin, self.size)

    # ---- out of a fifo ----

    def discard(self) -> float:
        """Writer, fifo, `relay.discard`."""
        path = self._fifo()
        before = time.process_time()
        pump = relay.discard(libctrd.open_fifo(path, os.O_RDONLY | os.O_NONBLOCK))
        with self._write(path):
            begin = time.perf_counter()
            pump.wait()
            rate = self._rate(begin, self.size)
        self.cpu["libctrd"].append(time.process_time() - before)
        return rate

    def discard_by(self, name: str, command: list[str]) -> float:
        """Writer, fifo, another program that discards and prints the nanoseconds of processor time it took."""
        path = self._fifo()
        with subprocess.Popen([*command, path], stdout=subprocess.PIPE) as reader, self._write(path):
            begin = time.perf_counter()
            told, _ = reader.communicate()
            rate = self._rate(begin, self.size)
        if reader.returncode:
            raise SystemExit(f"{command[0]} ended with exit code {reader.returncode}: see above")
        self.cpu[name].append(int(told) / 1e9)
        return rate

    def _fifo(self) -> str:
        path = str(self.directory / f"fifo{next(_numbers)}")
        os.mkfifo(path)
        return path

    def _write(self, path: str) -> subprocess.Popen[bytes]:
        """The writer on a fifo, which waits for its reader here."""
        fd = os.open(path, os.O_WRONLY)
        try:
            return subprocess.Popen(self.writer, stdout=fd)
        finally:
            os.close(fd)

    # ---- what they share ----

    @staticmethod
    def _pipe() -> tuple[int, int]:
        reader, writer = os.pipe()
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, BLOCK)
        return reader, writer

    def _start(self, stdio: libctrd.Stdio, unattended: str = "hold") -> tuple[libctrd.Container, float]:
        container = self.client.create(f"stream{next(_numbers)}", self.spec)
        container.start(stdio, unattended=unattended)  # type: ignore[arg-type]
        return container, time.perf_counter()

    @staticmethod
    def _end(container: libctrd.Container) -> None:
        code = container.wait().code
        if code:
            raise SystemExit(f"the container that writes ended with exit code {code}")

    def _rate(self, begin: float, got: int) -> float:
        seconds = time.perf_counter() - begin
        if got != self.size:
            raise SystemExit(f"{got} of {self.size} bytes came")
        return self.mib / seconds


def _counter(stdin: int) -> subprocess.Popen[bytes]:
    """A process that reads *stdin*, which it takes over, to the end and prints how many bytes came."""
    process = subprocess.Popen([sys.executable, "-IS", "-c", SINK], stdin=stdin, stdout=subprocess.PIPE)
    os.close(stdin)
    return process


def measure(rootfs: str, directory: Path, rounds: int, size: int, go_fifo: str | None) -> list[Result]:
    with ExitStack() as stack:
        client = stack.enter_context(libctrd.connect(f"local:{directory / 'state'}"))
        streams = Streams(client, rootfs, peers.c(directory), size, directory)
        missing = daemon.missing()
        takers = {
            "container, PIPE": streams.pipe_read,
            "a raw pipe, read by the same code": streams.raw_read,
            "container, relayed to a process": streams.inherit_count,
            "a raw pipe to that process": streams.raw_count,
            "container, nobody reads": streams.unattended,
        }
        if not missing:
            state = stack.enter_context(tempfile.TemporaryDirectory(prefix="ctrd-bench-", dir="/run"))
            host = stack.enter_context(daemon.Daemon(directory, state))
            config = write_bundle(directory / "ctr", streams.spec, "/ctrd-bench-stream") / "config.json"
            takers["ctr run | cat"] = lambda: streams.ctr(host, config)
        series = dict(zip(takers, in_turns(rounds, "MiB/s", takers), strict=True))
        pipe, raw_read, relayed, raw_count, unattended = list(series.values())[:5]
        results = [
            Result("pipe", f"{size} MiB of stdout, read by the caller", [pipe, raw_read], row="P4"),
            Result("inherit", f"{size} MiB of stdout, relayed into another process", [relayed, raw_count], row="P4"),
            Result("unattended", f"{size} MiB of stdout that nobody reads", [unattended, raw_count], row="P4"),
        ]
        for result, limit in zip(results, (RAW, RELAYED, RAW), strict=True):
            result.bars = [at_least_times(limit, *result.series)]
        if missing:
            results[0].without.append(f"ctr run: {missing}")
        else:
            ctr = series["ctr run | cat"]
            results[0].series.append(ctr)
            results[0].bars.append(at_least_times(CTR, pipe, ctr))
        results.append(_discards(streams, rounds, go_fifo))
    return results


def _discards(streams: Streams, rounds: int, go_fifo: str | None) -> Result:
    result = Result("discard", f"{streams.mib} MiB out of a fifo, thrown away; processor time of who does it", row="P5")
    splice = [peers.c(streams.directory), "splice"]
    takers = {
        "relay.discard": streams.discard,
        "splice to /dev/null in C": lambda: streams.discard_by("splice", splice),
    }
    if go_fifo is not None:
        takers["Go's containerd/fifo and io.Discard"] = lambda: streams.discard_by("go", [go_fifo, "discard"])
    rates = in_turns(rounds, "MiB/s", takers)
    gib = streams.mib / 1024
    spent = {
        name: Series(f"{name}: processor time", "ms/GiB", [s * 1e3 / gib for s in values[-rounds:]])
        for name, values in streams.cpu.items()
        if values
    }
    result.series = [*rates, *spent.values()]
    result.bars = [at_least_times(SPLICE, *rates[:2])]
    if go_fifo is not None:
        found = ratio(spent["libctrd"], spent["go"])
        result.bars.append(at_least_times(1.0, rates[0], rates[2]))
        result.bars.append(Bar(f"at most {GO_CPU:g} of Go's processor time", f"{found:.2f}", found <= GO_CPU))
    else:
        result.without.append(peers.NO_GO_FIFO)
    return result
