"""The field's situations of the end of a container: who waits, who removes, which client was killed meanwhile."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import threading

import pytest
from engine_kit import Place, leftovers
from field_kit import WAIT, Make, killed, nothing_in, output_of, python, said, side_by_side, until

import libctrd
from libctrd import DETACHED, NULL
from libctrd.client import Client
from libctrd.errors import NotFoundError, UnsupportedError

WAITER = """
    import contextlib, sys
    import libctrd
    with libctrd.connect(sys.argv[1]) as client:
        container = client.get(sys.argv[2])
        with contextlib.suppress(libctrd.DeadlineError):
            container.wait(0)  # from here on it is being told of the end
        print("here", flush=True)
        status = container.wait(60)
        print(status.code, status.known, flush=True)
"""
STARTER = """
    import signal, sys
    import libctrd
    from libctrd import DETACHED
    address, runtime, id, rootfs, script = sys.argv[1:]
    client = libctrd.connect(address, runtime=runtime)
    container = client.create(id, libctrd.spec.default(["/bin/sh", "-c", script], rootfs))
    container.start()
    print("started", flush=True)
    signal.pause()
"""


def begun(process: subprocess.Popen[str], word: str) -> subprocess.Popen[str]:
    """*process*, once it has said *word*."""
    assert said(process) == word
    return process


# ---- who waits -------------------------------------------------------------------------------------------------------


def test_everyone_who_waits_in_one_client_gets_the_code(
    client: Client, spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = client.create("web", spec("cat; exit 41"))
    container.start()
    with libctrd.connect(client.address) as other:
        waiters = [other.get("web") for _ in range(4)]  # four objects for the one container
        watched: list[object] = []
        watch = other._watch

        def watch_it(container: libctrd.Container) -> libctrd.Container:
            told = watch(container)
            watched.append(told)
            return told

        monkeypatch.setattr(other, "_watch", watch_it)
        codes: list[int] = []
        threads = [threading.Thread(target=lambda w=w: codes.append(w.wait(WAIT).code)) for w in waiters * 2]
        for thread in threads:
            thread.start()
        until(lambda: len(watched) == len(threads))  # who comes too late may be refused
        assert container.stdin is not None
        container.stdin.close()
        for thread in threads:
            thread.join(WAIT)
        assert codes == [41] * 8


def test_the_client_that_created_waits_for_what_another_has_started(client: Client, spec: Make) -> None:
    container = client.create("web", spec("cat; exit 42"))
    with libctrd.connect(client.address) as other:
        started = other.get("web")
        started.start()
        codes: list[int] = []
        with pytest.raises(libctrd.DeadlineError):
            container.wait(0)  # from here on it is being told of the end
        thread = threading.Thread(target=lambda: codes.append(container.wait(WAIT).code))
        thread.start()
        assert started.stdin is not None
        started.stdin.close()
        assert started.wait(WAIT).code == 42
        thread.join(WAIT)
    assert codes == [42]


def test_a_wait_that_runs_out_of_time_can_be_asked_again(client: Client, spec: Make) -> None:
    container = client.create("web", spec("cat; exit 43"))
    container.start()
    with libctrd.connect(client.address) as other:
        for waiter in (container, other.get("web"), other.get("web")):
            for _ in range(3):
                with pytest.raises(libctrd.DeadlineError, match=r"'web' did not end within 0\.01 s"):
                    waiter.wait(0.01)
        assert container.stdin is not None
        container.stdin.close()
        assert container.wait(WAIT).code == 43


# ---- wait while another hand removes the container -------------------------------------------------------------------


def test_every_wait_that_began_in_time_gets_the_true_code_though_another_hand_removes_the_container(
    client: Client, spec: Make, state_dir: str
) -> None:
    container = client.create("web", spec("cat; exit 44"))
    container.start(libctrd.Stdio(stdin=libctrd.PIPE, stdout=NULL, stderr=NULL))
    waiters = [begun(python(WAITER, client.address, "web"), "here") for _ in range(6)]
    with libctrd.connect(client.address) as other:
        other.get("web").clean(force=True)  # which ends it by SIGKILL and removes it at once
    for waiter in waiters:
        assert waiter.communicate(timeout=WAIT)[0] == "137 True\n"
    assert container.wait(WAIT).code == 137
    assert nothing_in(state_dir)


@pytest.mark.parametrize("remover", ["the owner", "another client"])
def test_a_wait_at_any_moment_gets_the_true_code_or_hears_that_it_is_gone(
    client: Client, spec: Make, state_dir: str, remover: str
) -> None:
    """Waits begin before, during and after the end and the removal. None hangs, none gets 0, -1 or 255."""
    waits_at_any_moment(client, spec, state_dir, remover)


@pytest.mark.cannot("containerd", "remove a container that has ended by itself", raises=UnsupportedError)
@pytest.mark.cannot("api", "remove a container that has ended by itself", raises=UnsupportedError)
def test_a_wait_on_what_removes_itself_gets_the_true_code_or_hears_that_it_is_gone(
    client: Client, spec: Make, state_dir: str
) -> None:
    waits_at_any_moment(client, spec, state_dir, "the shim itself")


def waits_at_any_moment(client: Client, spec: Make, state_dir: str, remover: str) -> None:
    got: set[int] = set()
    for round in range(20):
        id = f"r{round}"
        with libctrd.connect(client.address) as starter:
            container = starter.create(id, spec("exit 45"))
            if remover == "the owner":
                container.start(NULL)
            else:
                options = {"auto_remove": True} if remover == "the shim itself" else {}
                container.start(DETACHED, unattended="discard", **options)
            others = [libctrd.connect(client.address) for _ in range(4)]

            def wait(number: int, others: list[Client] = others, id: str = id) -> None:
                if number == 0 and remover == "another client":
                    others[0].get(id).clean(force=True)
                    return
                try:
                    status = others[number % 4].get(id).wait(WAIT)
                except NotFoundError:
                    return
                assert status.known, status
                got.add(status.code)

            side_by_side(8, wait)
            for other in others:
                other.close()
    assert got <= {45, 137} if remover == "another client" else got <= {45}
    until(lambda: not any(leftovers(state_dir).values()))  # a shim that removes its container ends a moment later


def test_more_who_wait_than_a_shim_has_places_for_get_the_code_too(
    any_client: Client, spec: Make, engine: Place
) -> None:
    container = any_client.create("web", spec("cat; exit 49"))
    container.start()
    others = [libctrd.connect(any_client.address) for _ in range(70)]
    codes: list[int] = []

    def wait(number: int) -> None:
        codes.append(others[number].get("web").wait(WAIT).code)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(len(others))]
    for thread in threads:
        thread.start()
    until(lambda: all(engine.watches(other, "web") for other in others), WAIT)  # who comes too late is refused
    container.signal("KILL")  # there is always room for a request, whoever waits
    assert container.wait(WAIT).code == 137
    for thread in threads:
        thread.join(WAIT)
    for other in others:
        other.close()
    assert codes == [137] * len(others)


# ---- the client is killed --------------------------------------------------------------------------------------------


def test_after_kill_9_of_its_client_a_new_process_waits_and_gets_the_code(
    client: Client, rootfs: str, runtime: str, state_dir: str
) -> None:
    script = "while [ ! -e /dev/shm/go ]; do usleep 10000; done; exit 46"
    starter = begun(python(STARTER, client.address, runtime, "web", rootfs, script), "started")
    killed(starter)
    container = client.get("web")
    assert container.status == "running"
    with open(f"/proc/{container.pid}/root/dev/shm/go", "wb"):
        pass
    assert output_of(WAITER, client.address, "web") == "here\n46 True\n"
    assert output_of(WAITER, client.address, "web") == "here\n46 True\n", (
        "and again: the record stays until it is removed"
    )
    container.clean()
    assert nothing_in(state_dir)


def test_kill_9_at_any_moment_of_a_start_leaves_what_can_be_removed(
    any_client: Client, engine: Place, rootfs: str, state_dir: str
) -> None:
    """The client dies somewhere between the directory and the container; a new one lists it and gets rid of it."""
    seen: set[str] = set()
    moments = range(0, 80, 4) if engine.kind == "local" else range(0, 160, 16)
    # How long a start takes is the host's to say: where the moments were badly chosen there are more, between them.
    for delay in itertools.chain(moments, range(1, 160)):
        if delay not in moments and len(seen) > (engine.kind == "local"):
            break
        process = python(
            """
            import os, sys, threading, time
            import libctrd
            address, rootfs, delay = sys.argv[1:]
            client = libctrd.connect(address)
            spec = libctrd.spec.default(["/bin/sh", "-c", "exit 47"], rootfs)
            client.create("warm", spec).clean()
            threading.Timer(int(delay) / 1000, os.kill, (os.getpid(), 9)).start()
            client.create("web", spec).start()
            time.sleep(10)
            """,
            any_client.address, rootfs, str(delay),
        )  # fmt: skip
        assert process.wait(WAIT) == -signal.SIGKILL
        process.stdout.close()
        for container in any_client.containers():
            until(lambda container=container: container.status in ("created", "running", "stopped"))
            seen.add(container.status)
            container.clean(force=True)
        any_client.create("web", libctrd.spec.default(["/bin/true"], rootfs)).clean()  # the id is free again
    until(lambda: not any(leftovers(state_dir).values()))
    # In containerd most of a start is the create, in which all moments look the same.
    assert len(seen) > (engine.kind == "local"), f"only {seen} was met: the moments are badly chosen"


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_name_can_be_reused_at_once(client: Client, spec: Make, state_dir: str) -> None:
    for code in range(40):
        assert libctrd.run(spec=spec(f"exit {code}"), id="x", client=client, stdout=NULL, stderr=NULL).exit_code == code
    assert nothing_in(state_dir)


def test_a_name_can_be_reused_at_once_by_another_process(engine: Place, state_dir: str, rootfs: str) -> None:
    script = """
        import os, sys, libctrd
        quiet = {"stdout": libctrd.NULL, "stderr": libctrd.NULL}
        done = libctrd.run(["/bin/sh", "-c", "exit 48"], rootfs=sys.argv[1], id="x", **quiet)
        os._exit(done.exit_code)  # at once: whatever is not clean by now will not be
    """
    for _ in range(6):
        process = python(script, rootfs, env={**os.environ, "CTRD_ADDRESS": engine.address})
        assert process.wait(WAIT) == 48
        process.stdout.close()
        assert nothing_in(state_dir)


def test_a_name_can_be_reused_from_within_the_listener_of_its_exit(client: Client, spec: Make) -> None:  # C10
    codes: list[int] = []
    done = threading.Event()

    class Again:
        def state_changed(self, id: str, info: libctrd.StateInfo) -> None:
            if info.type != "exit":
                return
            codes.append(info.exit_code or 0)
            if len(codes) < 10:
                client.create(id, spec(f"exit {len(codes) + 1}")).start(NULL)
            else:
                done.set()

    client.subscribe(Again())
    client.create("web", spec("exit 1")).start(NULL)
    assert done.wait(WAIT)
    assert codes == list(range(1, 11))
