"""The local engine without root: a user made for it, crun and runc, one mapped id and many."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import APPLETS
from engine_kit import need_runtime

from libctrd import subids
from libctrd.errors import UnsupportedError

WAIT = 60.0
START, SIZE = 500_000, 65_536
LIBRARY = str(Path(__file__).parents[1])

# In a mount namespace of its own the user sees the Python that runs these tests, wherever it lies.
ENTER = """
set -e
prefix=$1 top=$2; shift 2
case $prefix in
/usr*) ;;
*)
    hold=$(mktemp -d)
    mount --bind "$prefix" "$hold"
    first=/$(echo "$prefix" | cut -d/ -f2)
    [ "$first" != /tmp ] || first=$prefix
    mount -t tmpfs -o mode=755 none "$first"
    mkdir -p "$prefix"
    mount --move "$hold" "$prefix"
    rmdir "$hold"
    ;;
esac
eval "$BEFORE"
cd "$top"
exec "$@"
"""
SAY = """
import json, os, sys
import libctrd
from libctrd.errors import CtrdError
runtime, rootfs = sys.argv[1:3]
def told(call):
    try:
        return repr(call())
    except CtrdError as error:
        return f"{type(error).__name__}: {error}"
"""

pytestmark = [
    pytest.mark.local("it is about the local engine"),
    pytest.mark.skipif(os.geteuid() != 0, reason="these tests make users: run the suite as root"),
]


class User(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str
    rootfs: str

    def run(
        self, code: str, *words: str, before: str = "", runtime_dir: bool = True, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Python *code* as this user; *before* is what root does in the mount namespace first."""
        env = {"HOME": self.home, "USER": self.name, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": LIBRARY}
        if runtime_dir:
            env["XDG_RUNTIME_DIR"] = f"{self.home}/run"
        who = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        python = [sys.executable, "-c", SAY + textwrap.dedent(code), *words]
        enter = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "bash",
            "-c",
            ENTER,
            "enter",
            sys.base_prefix,
            self.home,
        ]
        done = subprocess.run(
            [*enter, *who, "env", "-i", *(f"{name}={value}" for name, value in env.items()), *python],
            capture_output=True, text=True, timeout=WAIT, env={**os.environ, "BEFORE": before}, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    def says(self, code: str, *words: str, **settings: Any) -> Any:
        """What *code* prints, as JSON."""
        done = self.run(code, *words, **settings)
        return json.loads(done.stdout)

    def left(self) -> list[str]:
        """What is still there of containers of this user, but for what waits for init to collect it."""
        ps = subprocess.run(["ps", "-u", str(self.uid), "-o", "args="], capture_output=True, text=True, check=False)
        processes = [line for line in ps.stdout.splitlines() if "<defunct>" not in line]
        state = Path(self.home, "run", "ctrd")
        return [*processes, *(os.listdir(state) if state.exists() else ())]


@pytest.fixture
def user() -> Iterator[User]:
    """A user with subordinate ids, a home and a root file system; nothing of its containers may be left."""
    for program, package in {"newuidmap": "uidmap", "useradd": "passwd", "setpriv": "util-linux"}.items():
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            pytest.skip(f"{program} is missing on this host: apt-get install {package}")
    name = f"ctrd-test-{uuid.uuid4().hex[:8]}"
    home = tempfile.mkdtemp(prefix="ctrd-user-", dir="/tmp")
    subprocess.run(
        ["useradd", "--system", "--no-create-home", "--home-dir", home, "--shell", "/bin/sh", name], check=True
    )
    try:
        ids = f"{START}-{START + SIZE - 1}"
        subprocess.run(["usermod", "--add-subuids", ids, "--add-subgids", ids, name], check=True)
        entry = pwd.getpwnam(name)
        rootfs = Path(home, "rootfs")
        for directory in ("bin", "proc", "sys", "dev", "tmp", "etc"):
            (rootfs / directory).mkdir(parents=True)
        shutil.copy("/bin/busybox", rootfs / "bin/busybox")
        for applet in (*APPLETS, "chown", "touch"):
            if not (rootfs / "bin" / applet).is_symlink():
                (rootfs / "bin" / applet).symlink_to("busybox")
        Path(home, "run").mkdir()
        for path in (home, rootfs, f"{home}/run"):
            os.chown(path, entry.pw_uid, entry.pw_gid)
            os.chmod(path, 0o755)
        os.chmod(f"{home}/run", 0o700)
        made = User(name, entry.pw_uid, entry.pw_gid, home, str(rootfs))
        may = ["setpriv", f"--reuid={made.uid}", f"--regid={made.gid}", "--clear-groups", "unshare", "--user", "true"]
        if (said := subprocess.run(may, capture_output=True, text=True, check=False, cwd="/")).returncode:
            pytest.skip(f"this host lets an ordinary user make no user namespace: {said.stderr.strip()}")
        yield made
        assert made.left() == []
    finally:
        subprocess.run(["userdel", "--force", name], check=True, capture_output=True)
        shutil.rmtree(home)


@pytest.mark.parametrize("id_map", ["one", "many"])
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_user_runs_a_container(user: User, runtime: str, id_map: str) -> None:
    """With all of its output and its code; root inside is the user; with many ids it can give files away."""
    need_runtime(runtime)
    code = """
        client = libctrd.connect(runtime=runtime)
        mounts = [{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}]
        script = "cat /proc/self/uid_map; id -u; touch /tmp/x; chown 5:5 /tmp/x 2>&-; echo $?; echo err >&2; exit 7"
        done = libctrd.run(["sh", "-c", script], rootfs=rootfs, mounts=mounts, id_map=sys.argv[3], client=client,
                           capture_output=True)
        print(json.dumps([done.exit_code, done.stdout.decode(), done.stderr.decode()]))
    """
    code_, out, err = user.says(code, runtime, user.rootfs, id_map)
    *maps, inside, given = out.splitlines()
    assert (code_, err, inside) == (7, "err\n", "0")
    wanted = [[0, user.uid, 1], [1, START, SIZE]][: 1 if id_map == "one" else 2]
    assert [[int(word) for word in line.split()] for line in maps] == wanted
    assert (given == "0") is (id_map == "many")


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_it_is_attached_to_executed_in_and_killed(user: User, runtime: str) -> None:
    """A detached container, seen by another process; a further process in it; a terminal; signals; its end."""
    need_runtime(runtime)
    start = """
        client = libctrd.connect(runtime=runtime)
        client.create("web", libctrd.spec.default(["sh", "-c", "trap 'exit 9' TERM; sleep 100 & wait"], rootfs)).start(
            libctrd.DETACHED)
        print(json.dumps(client.get("web").status))
    """
    assert user.says(start, runtime, user.rootfs) == "running"
    rest = """
        client = libctrd.connect(runtime=runtime)
        web = client.get("web")
        process = web.exec(["sh", "-c", "id -u; exit 3"], stdio=libctrd.PIPE)
        out = process.stdout.read().decode()
        code = process.wait().code
        terminal = libctrd.run(["tty"], rootfs=rootfs, terminal=True, client=client, capture_output=True)
        web.signal("TERM")
        print(json.dumps([out, code, terminal.stdout.decode(), web.wait(20).code]))
        web.clean()
    """
    assert user.says(rest, runtime, user.rootfs) == ["0\n", 3, "/dev/pts/0\r\n", 9]


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_what_needs_a_cgroup_is_refused_before_anything_is_made(user: User, runtime: str) -> None:
    """crun would start the container and ignore its limits."""
    need_runtime(runtime)
    code = """
        client = libctrd.connect(runtime=runtime)
        limits = [{"memory": "10m"}, {"cpus": 1}, {"pids_limit": 5}]
        made = [told(lambda: client.create("x", libctrd.spec.default(["true"], rootfs, **one))) for one in limits]
        made.append(os.listdir(os.environ["XDG_RUNTIME_DIR"] + "/ctrd"))
        web = client.create("web", libctrd.spec.default(["sleep", "100"], rootfs))
        web.start(libctrd.NULL)
        made += [told(call) for call in (web.pause, web.resume, web.stats, web.pids)]
        made.append(told(lambda: web.update({"pids": {"limit": 5}})))
        made.append(web.status)
        web.clean(force=True)
        print(json.dumps(made))
    """
    *refused, made, one, two, three, four, five, status = user.says(code, runtime, user.rootfs)
    assert (made, status) == ([], "running")
    assert len(refused) == 3
    for text in (*refused, one, two, three, four, five):
        assert text.startswith("UnsupportedError: the local engine cannot"), text
        assert "cgroup" in text


def test_without_a_runtime_dir_the_state_is_in_a_directory_of_the_users_own(user: User) -> None:
    """Under /tmp, closed to others; and not used when somebody else was there first."""
    need_runtime("runc")
    place = Path(f"/tmp/ctrd-{user.uid}")
    code = """
        print(json.dumps(told(lambda: libctrd.run(["true"], rootfs=rootfs, runtime="runc").exit_code)))
    """
    try:
        assert user.says(code, "runc", user.rootfs, runtime_dir=False) == "0"
        status = place.stat()
        assert (status.st_uid, status.st_mode & 0o777, os.listdir(place)) == (user.uid, 0o700, [])
        os.chown(place, 0, 0)
        os.chmod(place, 0o755)
        assert "belongs to user 0" in user.says(code, "runc", user.rootfs, runtime_dir=False)
        os.chown(place, user.uid, user.gid)
        os.chmod(place, 0o777)
        assert "others may write" in user.says(code, "runc", user.rootfs, runtime_dir=False)
    finally:
        shutil.rmtree(place)
        for path in Path("/tmp").glob(f"ctrd-{user.uid}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_missing_newuidmap_is_named(user: User) -> None:
    """Asked for many ids that is an error; not asked, one is mapped."""
    need_runtime("runc")
    code = """
        many = told(lambda: libctrd.spec.default(["true"], rootfs, id_map="many"))
        given = libctrd.spec.default(["true"], rootfs)
        more = given["linux"]["uidMappings"] + [{"containerID": 1, "hostID": 500000, "size": 9}]
        spec = {**given, "linux": {**given["linux"], "uidMappings": more}}
        client = libctrd.connect(runtime=runtime)
        print(json.dumps([many, len(given["linux"]["uidMappings"]), told(lambda: client.create("x", spec)),
                          told(lambda: libctrd.run(["true"], rootfs=rootfs, client=client).exit_code)]))
    """
    hide = "mount --bind /dev/null /usr/bin/newuidmap"
    many, count, refused, code_ = user.says(code, "runc", user.rootfs, before=hide)
    for text in (many, refused):
        assert text.startswith("UnsupportedError: more than one id cannot be mapped: there is no newuidmap: install it")
    assert (count, code_) == (1, "0")


def test_a_spec_without_a_user_namespace_is_refused(user: User) -> None:
    """In words that say what to do."""
    need_runtime("runc")
    code = """
        spec = libctrd.spec.default(["true"], rootfs, rootless=False)
        print(json.dumps(told(lambda: libctrd.connect(runtime=runtime).create("x", spec))))
    """
    assert "needs a user namespace" in user.says(code, "runc", user.rootfs)


# ---- subordinate ids -------------------------------------------------------------------------------------------------


def test_ranges_are_those_of_the_user_by_name_or_number(tmp_path: Path) -> None:
    """In the order of the file; what is malformed, empty or somebody else's is passed over."""
    name = pwd.getpwuid(0).pw_name
    file = tmp_path / "subuid"
    lines = [f"{name}:1000:10", "0:5000:5", "other:1:9", f"{name}:7:0", "0:x:1", "0:1", "", "# 0:1:1", f"{name}:-3:4"]
    file.write_text("\n".join(lines))
    assert subids.ranges(str(file), 0) == [(1000, 10), (5000, 5)]
    assert subids.ranges(str(tmp_path / "missing"), 0) == []


def test_a_user_without_subordinate_ids_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the file that lacks its line."""
    monkeypatch.setattr(subids, "_FILES", (str(tmp_path / "subuid"), str(tmp_path / "subgid")))
    monkeypatch.setattr(subids, "_PROGRAMS", ())
    with pytest.raises(UnsupportedError, match="subuid gives no ids to user 0: add a line for it"):
        subids.require()
    (tmp_path / "subuid").write_text("0:1000:10\n")
    (tmp_path / "subgid").write_text("0:2000:10\n0:9000:10\n")
    subids.require()
    uids, gids = subids.mappings(True)
    assert [(m["containerID"], m["hostID"], m["size"]) for m in uids] == [(0, 0, 1), (1, 1000, 10)]
    assert [(m["containerID"], m["hostID"], m["size"]) for m in gids] == [(0, 0, 1), (1, 2000, 10), (11, 9000, 10)]
    assert subids.identity() == ("0 0 1 1000 1000 10", "0 0 1 2000 2000 10 9000 9000 10")
