"""`ctrd doctor`: what it finds, what it makes of a host that lacks something, and that each fault comes with advice."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from libctrd import doctor, subids
from libctrd.doctor import Finding
from libctrd.engine import cgroups, criu
from libctrd.engine import runtime as runtimes
from libctrd.engine.runtime import Runtime
from libctrd.errors import NotFoundError, UnsupportedError

if TYPE_CHECKING:
    from cli_kit import Ctrd
    from engine_kit import Place

pytest_plugins = ["cli_kit"]


@pytest.mark.local("it looks at this host, and not at an engine")
def test_a_host_that_runs_containers_has_no_fault(ctrd: Ctrd) -> None:
    done = ctrd("doctor")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stdout.split(b"\n")[0].split() == [b"CHECK", b"STATE", b"FOUND"]
    found = [Finding(**one) for one in json.loads(ctrd("doctor", "--format", "json").stdout)]
    assert {one.check for one in found} >= {"system", "crun", "runc", "cgroups", "descriptors", "state", "checkpoints"}
    assert [one for one in found if one.state != "ok" and not one.advice] == []
    assert next(one for one in found if one.check == "state").found.startswith(ctrd.state_dir)


@pytest.mark.local("it looks at this host, and not at an engine")
def test_a_fault_is_told_by_the_exit_code_and_with_advice(ctrd: Ctrd, tmp_path: Path) -> None:
    named = {"env": {**ctrd.environment, "CONTAINERD_ADDRESS": f"{tmp_path}/none.sock"}}
    done = ctrd("doctor", **named)
    assert done.returncode == 1
    assert f"{tmp_path}/none.sock".encode() in done.stdout
    assert b"containerd: start it, or name the socket of one that runs" in done.stdout
    others = tmp_path / "others"
    others.mkdir(mode=0o777)
    others.chmod(0o777)
    done = ctrd("--state-dir", str(others), "doctor")
    assert done.returncode == 1
    assert b"state: name another with --state-dir, or mend this one" in done.stdout


@pytest.mark.containerd("a daemon is looked at by its socket")
def test_a_daemon_that_answers_is_told_of(engine: Place) -> None:
    (found,) = doctor.daemon(doctor.sockets(engine.address)[0])
    assert (found.check, found.state) == ("containerd", "ok")
    assert "containerd" in found.found


def only(found: list[Finding]) -> Finding:
    (one,) = found
    return one


def test_a_kernel_that_is_too_old_or_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Names:
        sysname, release = "Linux", "4.19.0-27-amd64"

    monkeypatch.setattr(os, "uname", Names)
    assert only(doctor.system()) == Finding(
        "system", "fault", "Linux 4.19.0-27-amd64: it has no pidfd_open(2)", "use Linux 5.3 or later"
    )
    monkeypatch.setattr("libctrd._checks.LINUX", False)
    assert only(doctor.system()).state == "fault"


def test_runtimes_that_are_not_there_do_not_work_or_lack_something(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> Runtime:
        if name == "crun":
            raise NotFoundError("there is no OCI runtime 'crun': install crun or runc")
        return answer

    monkeypatch.setattr(runtimes, "find", find)
    answer = Runtime("/bin/runc", False, why_not="it is broken")
    assert [(one.check, one.state) for one in doctor.oci_runtimes()] == [
        ("crun", "note"),
        ("runc", "note"),
        ("runtime", "fault"),
    ]
    answer = Runtime("/bin/runc", True, version="runc version 1.1", lacks_seccomp=True)
    found = doctor.oci_runtimes()
    assert [one.state for one in found] == ["note", "note"]
    assert found[1].found == "/bin/runc, runc version 1.1, without seccomp"


def test_cgroups_that_are_not_mounted_or_only_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cgroups, "unified", lambda: False)
    there: list[str] = []
    monkeypatch.setattr(os, "listdir", lambda _: there)
    assert only(doctor.control_groups()).state == "fault"
    there += ["memory", "cpu", "pids", "freezer"]
    assert "without devices" in only(doctor.control_groups()).found
    there.append("devices")
    assert only(doctor.control_groups()).state == "ok"
    monkeypatch.setattr(cgroups, "unified", lambda: True)
    assert only(doctor.control_groups()) == Finding("cgroups", "ok", "v2")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert only(doctor.control_groups()).state == "note"


def test_user_namespaces_that_are_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(subids, "missing", lambda: "")
    for name, bad, advice in doctor.SWITCHES:
        monkeypatch.setattr(doctor, "read", lambda path, name=name, bad=bad: bad if path.endswith(name) else "")
        found = only(doctor.namespaces())
        assert (found.state, found.advice) == ("fault", f"as root: {advice}")
    monkeypatch.setattr(doctor, "read", lambda _: "")
    assert only(doctor.namespaces()).state == "ok"
    monkeypatch.setattr(subids, "missing", lambda: "there is no newuidmap: install it (Debian: uidmap)")
    assert only(doctor.namespaces()).advice == "install it (Debian: uidmap)"


def test_limits_that_are_low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(doctor, "read", lambda _: "16")
    assert [(one.state, one.advice) for one in doctor.limits()] == [
        ("note", "ulimit -n 4096"),
        ("note", "as root: sysctl fs.inotify.max_user_instances=1024"),
    ]


def test_a_state_directory_without_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Room:
        f_bavail, f_frsize, f_files, f_favail = 10, 4096, 100, 100

    place = tmp_path / "state"
    assert only(doctor.state_directory(str(place))).state == "ok"
    monkeypatch.setattr(os, "statvfs", lambda _: Room)
    assert only(doctor.state_directory(str(place))).found.endswith("0 MiB and 100 inodes are left")


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("there is no program criu: install it", "install it"),
        ("vdso: it is broken", "see what `criu check` says, and try a later version of CRIU"),
        (None, ""),
    ],
)
def test_checkpoints_and_what_they_lack(said: str | None, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def require(_: Any) -> None:
        if said is not None:
            raise UnsupportedError(f"CRIU cannot run here: {said}")

    monkeypatch.setattr(criu, "require", require)
    monkeypatch.setattr(runtimes, "locate", lambda name: f"/bin/{name}")
    found = only(doctor.checkpoints())
    assert (found.state, found.advice) == ("ok" if said is None else "note", advice)


def test_the_sockets_that_are_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "CONTAINERD", (str(tmp_path), str(tmp_path / "none")))
    monkeypatch.setenv("CONTAINERD_ADDRESS", "/one")
    monkeypatch.delenv("CTRD_ADDRESS", raising=False)
    assert doctor.sockets("unix:///two") == ["/two", "/one", str(tmp_path)]
    assert doctor.sockets("local:/dir") == ["/one", str(tmp_path)]
