"""Between the messages of `types.API` and what the local engine has: there and back nothing is lost (C20, C25)."""

from __future__ import annotations

import errno
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from fuzz_messages import is_list
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from libctrd import spec as specs
from libctrd.engine import apiwire
from libctrd.engine.base import ExecRequest, Record
from libctrd.engine.details import Counter, Details, Device
from libctrd.errors import (
    AlreadyExistsError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
    UnavailableError,
    from_errno,
)
from libctrd.serve import wire
from libctrd.serve.eventlog import Entry
from libctrd.state import CPU, BlockIO, Memory, Pids, Stats

API = wire.API
BILLION = 10**9
words = st.integers(0, (1 << 64) - 1)
small = st.integers(0, (1 << 62) - 1)
counts = st.integers(1, (1 << 62) - 1)
names = st.text('abcXYZ019_-. \n"\\\u00e9\u20ac\U0001f433', min_size=1, max_size=12)
plain = st.text("abcXYZ019_./- ", max_size=20)


def there_and_back(message: Any) -> Any:
    """As it comes out at the other end."""
    return type(message).FromString(message.SerializeToString())


# ---- events ----------------------------------------------------------------------------------------------------------

entries = st.builds(
    Entry,
    st.sampled_from(("start-container", "start-process", "pause", "resume", "oom", "exit")),
    names,
    small,
    st.one_of(st.just(""), names),
    st.integers(0, (1 << 32) - 1),
)


@given(entries)
def test_an_event_is_what_was_logged(entry: Entry) -> None:
    event = there_and_back(wire.event(entry))
    assert (event.type, event.id, event.pid, event.status) == (entry.type, entry.id, entry.pid, entry.status)
    assert 0 <= event.timestamp.nanos < BILLION
    assert apiwire.nanoseconds(event.timestamp) == entry.at
    assert wire.nanoseconds(event.timestamp) == entry.at, "a client asks for what is after the last one that it had"


@given(st.integers(0, 1 << 62))
def test_a_time_that_a_client_asks_from(since: int) -> None:
    """0 is none."""
    request = there_and_back(apiwire.events_request(since, "c", True))
    assert wire.nanoseconds(request.timestamp) == since


INT64, INT32 = (1 << 63) - 1, (1 << 31) - 1


@given(st.integers(-INT64 - 1, INT64), st.integers(-INT32 - 1, INT32))
def test_any_time_is_one_or_is_refused(seconds: int, nanos: int) -> None:
    """Those of the years 1 to 9999 are times (google/protobuf/timestamp.proto)."""
    timestamp = API.EventsRequest(timestamp={"seconds": seconds, "nanos": nanos}).timestamp
    first, end = (int(datetime(year, 1, 1, tzinfo=timezone.utc).timestamp()) for year in (1, 9999))
    if 0 <= nanos < BILLION and first <= seconds < end + 365 * 86400:
        found = wire.nanoseconds(timestamp)
        assert found == (seconds * BILLION + nanos if seconds >= 0 else 1) or (seconds, nanos, found) == (first, 0, 0)
    else:
        with pytest.raises(ValueError, match="a time with"):
            wire.nanoseconds(timestamp)


@pytest.mark.parametrize(
    ("seconds", "nanos", "found"),
    [
        (0, 0, 0),
        (0, 1, 1),
        (-1, 0, 1),
        (-1, 999_999_999, 1),
        (-62_135_596_800, 0, 0),
        (-62_135_596_800, 1, 1),
        (253_402_300_799, 999_999_999, 253_402_300_800 * BILLION - 1),
    ],
)
def test_times_at_the_edge(seconds: int, nanos: int, found: int) -> None:
    """One before 1970 is before every event, and not none; what Go has for none is none."""
    assert wire.nanoseconds(API.EventsRequest(timestamp={"seconds": seconds, "nanos": nanos}).timestamp) == found


# ---- processes -------------------------------------------------------------------------------------------------------

limits = st.integers(0, (1 << 64) - 1)
processes = st.fixed_dictionaries(
    {
        "terminal": st.booleans(),
        "user": st.fixed_dictionaries(
            {"uid": st.integers(0, (1 << 32) - 1), "gid": st.integers(0, (1 << 32) - 1)},
            optional={"additionalGids": st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=3)},
        ),
        "args": st.lists(names, min_size=1, max_size=4),
        "env": st.lists(st.builds("{}={}".format, st.text("AB_", min_size=1), plain), max_size=3),
        "cwd": plain.map("/{}".format),
        "noNewPrivileges": st.booleans(),
    },
    optional={
        "capabilities": st.lists(st.sampled_from(("CAP_KILL", "CAP_CHOWN", "CAP_SETUID")), min_size=1, unique=True).map(
            lambda some: dict.fromkeys(("bounding", "effective", "inheritable", "permitted"), some)
        ),
        "apparmorProfile": names,
        "selinuxLabel": names,
        "rlimits": st.lists(
            st.tuples(st.sampled_from(("RLIMIT_NOFILE", "RLIMIT_AS")), limits, limits).map(
                lambda limit: {"type": limit[0], "soft": min(limit[1:]), "hard": max(limit[1:])}
            ),
            min_size=1,
            max_size=2,
            unique_by=lambda limit: limit["type"],
        ),
    },
)
paths = st.one_of(st.just(""), plain.map("/{}".format))
three_paths = st.tuples(paths, paths, paths)
RECORD = Record("c", "/b", datetime(2024, 1, 1, tzinfo=timezone.utc), "crun")


@given(processes, three_paths)
def test_a_further_process_comes_through_as_it_was_asked_for(
    settings: dict[str, Any], stdio: tuple[str, str, str]
) -> None:
    """From our client's settings to the document that the runtime gets, and that is a valid one."""
    asked = ExecRequest(RECORD, "p", settings, settings["terminal"], *stdio)
    request = there_and_back(apiwire.add_process(asked, asked.stderr))
    assert (request.id, request.pid, request.stdin, request.stdout, request.stderr) == ("c", "p", *stdio)
    assert wire.document(request) == settings
    specs.validate({"ociVersion": "1.0.0", "root": {"path": "/"}, "process": wire.document(request)})


@given(processes, three_paths)
def test_a_process_is_listed_as_it_was_asked_for(settings: dict[str, Any], stdio: tuple[str, str, str]) -> None:
    process = there_and_back(wire.process_of_spec(settings, name="p", system_pid=77, stdio=stdio))
    assert (process.pid, process.systemPid) == ("p", 77)
    assert (process.stdin, process.stdout, process.stderr) == tuple(path or "/dev/null" for path in stdio)
    request = API.AddProcessRequest()
    for field in request.DESCRIPTOR.fields:  # the two messages have the same fields for the same
        if field.name in process.DESCRIPTOR.fields_by_name and field.name not in ("pid", "stdin", "stdout", "stderr"):
            value = getattr(process, field.name)
            if is_list(field):
                getattr(request, field.name).extend(value)
            elif field.message_type is not None:
                getattr(request, field.name).CopyFrom(value)
            else:
                setattr(request, field.name, value)
    assert wire.document(request) == settings


@pytest.mark.parametrize("document", [{}, {"user": None, "args": None, "env": None, "rlimits": None}, {"user": {}}])
def test_a_process_of_which_hardly_anything_is_known_is_listed(document: dict[str, Any]) -> None:
    process = there_and_back(wire.process_of_spec(document, name="init", system_pid=0, stdio=("", "", "")))
    assert (process.pid, list(process.args), process.user.uid, process.stdout) == ("init", [], 0, "/dev/null")


def test_a_request_that_says_hardly_anything_is_a_process_of_root() -> None:
    assert wire.document(API.AddProcessRequest(args=["true"])) == {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": ["true"],
        "env": [],
        "cwd": "/",
        "noNewPrivileges": False,
    }


# ---- limits ----------------------------------------------------------------------------------------------------------

_SIGNED = st.one_of(st.just(-1), st.integers(1, (1 << 63) - 1))
_DEVICE = {"major": st.integers(0, 4095), "minor": st.integers(0, 1 << 20)}
_RATES = st.lists(st.fixed_dictionaries({**_DEVICE, "rate": words}), min_size=1, max_size=2)
_WEIGHT = st.integers(1, 1000)


def some(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


resources = some(
    {
        "memory": some(dict.fromkeys(("limit", "swap", "reservation", "kernel", "kernelTCP"), _SIGNED)),
        "cpu": some(
            {"shares": counts, "period": counts, "quota": _SIGNED, "cpus": st.just("0-1"), "mems": st.just("0")}
        ),
        "pids": some({"limit": _SIGNED}),
        "blockIO": some(
            {
                "weight": _WEIGHT,
                "leafWeight": _WEIGHT,
                "weightDevice": st.lists(
                    st.fixed_dictionaries({**_DEVICE, "weight": _WEIGHT, "leafWeight": _WEIGHT}), min_size=1, max_size=2
                ),
                "throttleReadBpsDevice": _RATES,
                "throttleWriteBpsDevice": _RATES,
                "throttleReadIOPSDevice": _RATES,
                "throttleWriteIOPSDevice": _RATES,
            }
        ),
    }
).map(lambda groups: {name: limits for name, limits in groups.items() if limits})


@given(resources)
def test_limits_come_through_as_they_were_asked_for(limits: dict[str, Any]) -> None:
    """From our client to the runtime; "no limit" too, which is -1 here and there."""
    update = there_and_back(apiwire.resources(limits))
    assert wire.resources(update) == limits
    if limits:
        assert specs.check_resources(wire.resources(update)) == limits


@pytest.mark.parametrize("dropped", [field.name for field in API.UpdateResource.DESCRIPTOR.fields])
def test_every_field_of_an_update_is_one_limit(dropped: str) -> None:
    """None is left out, and no two are the same one."""
    update = API.UpdateResource()
    for number, field in enumerate(update.DESCRIPTOR.fields, 1):
        if is_list(field):
            device = {"blkIODevice": {"major": number, "minor": 1}}
            getattr(update, field.name).add(**device, **({"rate": 7} if "Throttle" in field.name else {"weight": 7}))
        else:
            setattr(update, field.name, str(number) if field.type == FieldDescriptor.TYPE_STRING else number)
    whole = leaves(wire.resources(update))
    assert len(whole) == len(update.DESCRIPTOR.fields) == len(set(whole))
    assert apiwire.resources(wire.resources(update)) == update
    update.ClearField(dropped)
    assert len(leaves(wire.resources(update))) == len(whole) - 1


def leaves(limits: dict[str, Any]) -> list[str]:
    return [f"{group}.{name}={value}" for group, values in limits.items() for name, value in values.items()]


def test_an_update_that_says_nothing_is_none() -> None:
    assert wire.resources(API.UpdateResource()) == {}


# ---- statistics ------------------------------------------------------------------------------------------------------

moments = st.integers(0, 1 << 33).map(lambda us: datetime(1980, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=us))
maybe = st.one_of(st.none(), counts)
OPERATIONS = ("Read", "Write")
block = st.fixed_dictionaries(dict.fromkeys(OPERATIONS, small.map(lambda value: value >> 2)))


@given(
    st.builds(
        Stats,
        moments,
        st.builds(CPU, small, small, small, small, small),
        st.builds(Memory, small, maybe, maybe, small, maybe, small, small, small),
        st.builds(Pids, small, maybe),
    ),
    st.lists(small, max_size=4),
    words,
    st.lists(block, max_size=2),
    st.lists(block, max_size=2),
)
def test_what_a_container_uses_comes_through(
    measured: Stats, processors: list[int], system: int, moved: list[dict[str, int]], served: list[dict[str, int]]
) -> None:
    """From the cgroups to our client: the numbers that this API has a place for, and the lines of memory.stat."""
    memory = measured.memory
    lines = {"rss": memory.anonymous, "cache": memory.file, "swap": memory.swap, "oom_kill": memory.oom_kills}
    more = Details(
        processors,
        lines,
        3,
        Counter(memory.usage + memory.swap, 0, memory.swap_limit, 4),
        Counter(5, 6, None, 7),
        [Device(8, disk, name, disks[name]) for disk, disks in enumerate(moved) for name in OPERATIONS],
        [Device(8, disk, name, disks[name]) for disk, disks in enumerate(served) for name in OPERATIONS],
    )
    reply = there_and_back(wire.stats(measured, more, system))
    group = reply.cgroup_stats
    assert list(group.cpu_stats.cpu_usage.percpu_usage) == processors
    assert group.cpu_stats.system_usage == system
    assert dict(group.memory_stats.stats) == lines
    assert (group.memory_stats.usage.failcnt, group.memory_stats.swap_usage.failcnt) == (3, 4)
    kernel = group.memory_stats.kernel_usage
    assert (kernel.usage, kernel.max_usage, kernel.limit, kernel.failcnt) == (5, 6, (1 << 64) - 1, 7)
    sums = [sum(disks[name] for disks in listed) for listed in (moved, served) for name in OPERATIONS]
    expected = Stats(measured.at, measured.cpu, memory, measured.pids, BlockIO(*sums))
    assert apiwire.stats(reply) == expected


def test_this_host_has_processors_and_memory() -> None:
    machine = wire.machine()
    assert machine.cpus >= 1
    assert 1 << 4 < machine.memory < 1 << 24, "in MiB"
    assert wire.host_cpu_time() > BILLION


# ---- errors ----------------------------------------------------------------------------------------------------------

KINDS = (
    AlreadyExistsError,
    CtrdError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    RuntimeFailedError,
    UnavailableError,
)
RUNNING = ("UpdateContainer", "Signal", "UpdateProcess", "AddProcess", "Stats")
PHRASES = ("executable file not found", "no such file or directory", "permission denied", "not a directory")


@given(st.sampled_from(KINDS), st.sampled_from((*RUNNING, "CreateContainer", "ListCheckpoint")), st.text(max_size=4000))
def test_every_error_has_a_text_that_a_status_can_have(kind: type[CtrdError], call: str, said: str) -> None:
    text = wire.failure(kind(said), call)
    assert text.startswith(("containerd: ", "oci runtime error: ", "shim error: "))
    assert len(text.encode()) <= 2200
    assert (kind is RuntimeFailedError) == text.startswith("oci runtime error: ")
    if kind is AlreadyExistsError and len(said) < 400:
        assert text == f"containerd: {said}: file exists"


@pytest.mark.parametrize("phrase", PHRASES)
@given(st.text("ab ", max_size=3000), st.text("ab ", max_size=3000))
def test_the_phrases_that_clients_look_for_are_never_cut_out(phrase: str, before: str, after: str) -> None:
    said = f"{before}{phrase.title()}{after}" if phrase[0] != "e" else f'{before}exec: "x": not found{after}'
    assert phrase in wire.failure(RuntimeFailedError("x", output=said), "AddProcess")


@given(st.sampled_from(RUNNING))
def test_our_client_has_the_error_back(call: str) -> None:
    """What the local engine raised is raised at the other end."""
    for error in (
        NotFoundError("container 'c' is not running any more"),
        AlreadyExistsError("container 'c' has a process 'p' already"),
        DeadlineError("it took too long"),
    ):
        found = apiwire.error_of(RuntimeFailedError(wire.failure(error, call)))
        assert type(found) is type(error), found
    failed = apiwire.error_of(RuntimeFailedError(wire.failure(RuntimeFailedError("x", output="it broke"), call)))
    assert isinstance(failed, RuntimeFailedError)
    assert "it broke" in str(failed)


def test_a_file_that_is_missing_is_no_container_that_is_missing() -> None:
    text = wire.failure(from_errno(errno.ENOENT, "open '/fifo'"), "AddProcess")
    assert "container not found" not in text
    assert "no such file or directory" in text
