"""What cgroups tell by processor, by device and line by line: v1 and v2, from files as the kernel writes them."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libctrd.engine import details, usage
from libctrd.engine.details import Counter, Device

V1 = {
    ("cpuacct", "cpuacct.usage"): "3000\n",
    ("cpuacct", "cpuacct.usage_percpu"): "1000 2000 \n",
    ("cpu", "cpu.stat"): "nr_periods 5\nnr_throttled 2\nthrottled_time 77\n",
    ("memory", "memory.usage_in_bytes"): "4096\n",
    ("memory", "memory.limit_in_bytes"): "9223372036854771712\n",
    ("memory", "memory.failcnt"): "3\n",
    ("memory", "memory.stat"): "cache 10\nrss 20\ntotal_cache 11\ntotal_rss 21\n",
    ("memory", "memory.memsw.usage_in_bytes"): "5000\n",
    ("memory", "memory.memsw.limit_in_bytes"): "8192\n",
    ("memory", "memory.oom_control"): "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
    ("pids", "pids.current"): "2\n",
    ("pids", "pids.max"): "max\n",
    ("blkio", "blkio.throttle.io_service_bytes_recursive"): "8:0 Read 512\n8:0 Write 0\n8:16 Read 1\nTotal 513\n",
}
V2 = {
    "cpu.stat": "usage_usec 8\nuser_usec 5\nsystem_usec 3\nnr_throttled 1\nthrottled_usec 2\n",
    "memory.current": "4096\n",
    "memory.max": "max\n",
    "memory.peak": "5000\n",
    "memory.swap.current": "100\n",
    "memory.swap.max": "0\n",
    "memory.stat": "anon 7\nfile 8\n",
    "memory.events": "low 0\nmax 6\noom 1\noom_kill 1\n",
    "pids.current": "3\n",
    "pids.max": "20\n",
    "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0\n8:16 rbytes=5 wbytes=0 rios=1 wios=0\n",
}
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def v1(controller: str, name: str) -> str:
    return V1.get((controller, name), "")


def v2(_: str, name: str) -> str:
    return V2.get(name, "")


def test_of_v1() -> None:  # C20
    found = usage.of_v1(v1, NOW)
    assert (found.cpu.total_ns, found.cpu.throttled_periods, found.cpu.throttled_ns) == (3000, 2, 77)
    assert (found.memory.usage, found.memory.limit, found.memory.swap, found.memory.swap_limit) == (
        4096,
        None,
        904,
        8192,
    )
    assert (found.memory.anonymous, found.memory.file, found.memory.oom_kills) == (21, 11, 4)
    assert (found.pids.current, found.pids.limit) == (2, None)
    assert (found.block_io.read_bytes, found.block_io.written_bytes) == (513, 0)
    more = details._v1(v1)
    assert more.by_processor == [1000, 2000]
    assert more.memory == {"cache": 10, "rss": 20, "total_cache": 11, "total_rss": 21}
    assert more.limit_failures == 3
    assert more.memory_and_swap == Counter(5000, 0, 8192, 0)
    assert more.transferred == [Device(8, 0, "Read", 512), Device(8, 0, "Write", 0), Device(8, 16, "Read", 1)]
    assert more.served == []


def test_of_v2(monkeypatch: pytest.MonkeyPatch) -> None:  # C20
    monkeypatch.setattr(details.os, "cpu_count", lambda: 4)
    found = usage.of_v2(v2, NOW)
    assert (found.cpu.total_ns, found.cpu.user_ns, found.cpu.system_ns) == (8000, 5000, 3000)
    assert (found.memory.usage, found.memory.limit, found.memory.peak, found.memory.swap_limit) == (4096, None, 5000, 0)
    assert (found.memory.anonymous, found.memory.file, found.memory.oom_kills) == (7, 8, 1)
    assert (found.pids.current, found.pids.limit) == (3, 20)
    assert (found.block_io.read_bytes, found.block_io.written_bytes, found.block_io.reads) == (15, 20, 2)
    more = details._v2(v2)
    assert more.by_processor == [2000] * 4
    assert more.limit_failures == 6
    assert more.memory_and_swap == Counter(4196, 0, None, 0)
    assert Device(8, 0, "Write", 20) in more.transferred
    assert [device.operation for device in more.served] == ["Read", "Write", "Read", "Write"]


def test_where_there_are_no_files_all_of_it_is_nothing() -> None:
    nothing = usage.of_v1(lambda *_: "", NOW)
    assert nothing == usage.of_v2(lambda *_: "", NOW)
    assert (nothing.memory.limit, nothing.pids.limit) == (None, None)


@given(st.text(alphabet="0123456789: \nReadWritemax=_-", max_size=200))
def test_no_file_of_whatever_content_is_an_error(text: str) -> None:
    for of in (usage.of_v1, usage.of_v2):
        of(lambda *_: text, NOW)
    for more in (details._v1, details._v2):
        more(lambda *_: text)
