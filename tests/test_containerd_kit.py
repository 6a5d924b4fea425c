"""The tests' own containerd: it answers, it dies and comes back, and nothing of a container is overlooked."""

from __future__ import annotations

from collections.abc import Callable

from containerd_kit import Containerd, left_behind, new_namespace, nothing_left


def test_every_trace_of_a_container_is_found_and_none_stays(containerd: Containerd, rootfs: str) -> None:
    namespace = new_namespace()
    assert left_behind(containerd, namespace) == {}
    pid = containerd.run(namespace, "one", rootfs, "/bin/sleep", "1000")
    found = left_behind(containerd, namespace)
    assert found.keys() >= {
        "tasks",
        "containers",
        "bundles",
        "runc roots",
        "cgroups",
        "shim sockets",
        "shims",
    }
    assert pid > 0
    assert found["tasks"] == found["containers"] == ["one"]
    assert left_behind(containerd, new_namespace()) == {}, "that of one namespace is not that of another"
    containerd.ctr("tasks", "rm", "--force", "one", namespace=namespace)
    containerd.ctr("containers", "rm", "one", namespace=namespace)
    nothing_left(containerd, namespace)


def test_a_lease_is_found(containerd: Containerd) -> None:
    namespace = new_namespace()
    containerd.ctr("leases", "create", "--id", "mine", namespace=namespace)
    assert left_behind(containerd, namespace) == {"leases": ["mine"]}
    containerd.ctr("leases", "rm", "mine", namespace=namespace)
    assert left_behind(containerd, namespace) == {}


def test_a_killed_daemon_comes_back_and_knows_its_containers(
    new_containerd: Callable[[], Containerd], rootfs: str
) -> None:
    daemon, namespace = new_containerd(), new_namespace()
    first = daemon.pid
    pid = daemon.run(namespace, "one", rootfs, "/bin/sleep", "1000")
    daemon.restart()
    assert daemon.pid != first
    assert str(pid) in daemon.ctr("tasks", "ls", namespace=namespace)
