"""The package as a whole: what it says of itself, what it costs to import, and that its parts know only those below."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import io
import os
import re
import stat
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from portable_kit import sources

import libctrd

ROOT = sources("pyproject.toml").parent
PACKAGE = ROOT / "libctrd"
COMPILED = ("fifo", "relay", "shape")
MOST_LINES = 500

# From the lowest layer up. A module may import those of its own layer and of the layers before it.
LAYERS = (
    ("_log", "errors", "ids"),
    ("protos", "engine.diagnosis"),
    ("_checks", "_proc", "_signals", "_spawn", "_worker", "_xattr", "inotify", "locks", "proc", "shape"),
    ("state",),
    ("engine.channel",),
    ("fifo",),
    ("relay",),
    (
        "reactor",
        "directory",
        "seccomp",
        "subids",
        "spec",
        "_spec_check",
        "_spec_default",
        "_spec_exec",
        "_spec_json",
        "_spec_parse",
        "_spec_schema",
    ),
    ("stdio",),
    ("engine.base", "events"),
    ("logs", "owning", "text", "unread"),
    ("process",),
    ("attaching", "changes", "starting", "telling"),
    ("asking",),
    ("container",),
    ("handling",),
    ("client", "restoring"),
    ("engine.ttrpc",),
    (
        "engine.cgroups",
        "engine.late",
        "engine.remembered",
        "engine.rootless",
        "engine.sealed",
        "engine.shim",
        "engine.metrics",
        "engine.taskio",
        "engine.taskshim",
    ),
    (
        "engine.runtime",
        "engine.exitfile",
        "engine.exits",
        "engine.memory",
        "engine.orphans",
        "engine.launch",
        "engine.operations",
        "engine.pidfile",
        "engine.startmark",
        "engine.usage",
        "engine.details",
        "engine.criu",
    ),
    ("engine.further", "engine.newcomers"),
    ("engine.localops",),
    ("engine.latecomer",),
    ("engine.filters",),
    ("engine.runc", "engine.local", "engine.daemon"),
    ("engine.cutstart", "engine.store", "engine.private", "engine.privateserve"),
    ("images.reference", "images.platforms", "images.compression", "images.documents"),
    (
        "images.content",
        "images.layers",
        "images.leases",
        "images.login",
        "images.snapshots",
        "images.store",
        "images.config",
    ),
    ("images.intake",),
    ("images.archive", "images.http"),
    ("images.naming", "images.registry"),
    ("images.transfer",),
    ("images", "images.images"),
    ("engine.rootfs",),
    ("engine.containerd",),
    ("engine.apitime", "engine.apiwire"),
    ("engine.apifeed", "engine.apioperations", "engine.apistart"),
    ("engine.apihistory",),
    ("engine.api",),
    ("engine",),
    ("once",),
    ("aio.loop",),
    ("aio.mirror", "aio.streams"),
    ("aio.containers",),
    ("aio.clients",),
    ("aio", "doctor", "testing"),
    ("serve.changes", "serve.eventlog", "serve.keeper", "serve.metrics", "serve.sockets"),
    ("serve.wire",),
    ("serve.checkpoints", "serve.descriptions"),
    ("serve.service",),
    ("serve.server",),
    ("serve",),
    ("cli",),
)
LAYER = {module: number for number, modules in enumerate(LAYERS) for module in modules}

# The rows of the contract that version 0.1 holds, and in which a test must be found.
ROWS = [*range(1, 29)]

# What is imported of each distribution that pyproject.toml asks for. cffi is needed by what it has compiled, `_proc`.
DEPENDENCIES = {
    "backports.zstd": "backports",
    "click": "click",
    "grpcio": "grpc",
    "msgspec": "msgspec",
    "protobuf": "google",
    "rich": "rich",
    "urllib3": "urllib3",
}

# What `import libctrd` must not bring along, and what no public name needs: only the command and some engines do.
UNWANTED = ("asyncio", "click", "google", "grpc", "multiprocessing", "rich", "subprocess", "urllib3")
NEVER_WANTED = ("asyncio", "click", "google", "grpc", "rich", "urllib3")


def texts() -> dict[str, str]:
    """Every file of the project that was written by hand, by its name in the clone; no test data, nothing built."""
    texts = ("README.md", "EXAMPLES.md", "CHANGELOG.md", "RELIABILITY.md", "SECURITY.md")
    found = [ROOT / name for name in ("setup.py", "pyproject.toml", "MANIFEST.in", *texts)]
    for directory in ("libctrd", "pyx", "share", "tests", "tools", ".ci"):
        found += [path for path in (ROOT / directory).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in found
        if path.suffix not in (".so", ".pyc", ".binpb") and path.name != "ctrd-shim" and path.exists()
    }


# ---- what it says of itself ------------------------------------------------------------------------------------------


def test_every_place_tells_the_same_version() -> None:
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert declared is not None
    assert libctrd.__version__ == declared[1]
    assert importlib.metadata.version("libctrd") == declared[1]
    assert f"## [{declared[1]}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_what_is_imported_is_asked_for_at_installation_and_nothing_else_is() -> None:
    required = importlib.metadata.requires("libctrd") or []
    asked = {re.split(r"[^\w.-]", text)[0] for text in required if "extra ==" not in text}
    assert asked == {*DEPENDENCIES, "cffi"}
    imported = {
        other.split(".")[0]
        for name, text in texts().items()
        if name.startswith("libctrd/") and name.endswith(".py")
        for other in imported_by_python(text)
    }
    # For the option of `ctrd serve` that says so when it is missing, and for who writes tests with `libctrd.testing`.
    extra = {"prometheus_client", "pytest"}
    assert imported - sys.stdlib_module_names - {"libctrd", "compression"} == set(DEPENDENCIES.values()) | extra


def test_every_public_name_can_be_had_and_is_listed() -> None:
    for name in libctrd.__all__:
        assert getattr(libctrd, name) is not None
        assert name in dir(libctrd)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = libctrd.no_such_name


def test_type_checkers_and_python_see_the_same_public_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    branch = next(node for node in tree.body if isinstance(node, ast.If))
    seen = [alias.asname for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(filter(None, seen)) == sorted(libctrd.__all__)


def undocumented(thing: object, name: str) -> Iterator[str]:
    """The names, from *thing* down, of what is public and has no docstring."""
    if not inspect.getdoc(thing):
        yield name
    if inspect.isclass(thing):
        for member, value in vars(thing).items():
            function = value.fget if isinstance(value, property) else value
            if not member.startswith("_") and callable(function) and not inspect.getdoc(function):
                yield f"{name}.{member}"


def test_every_public_name_is_documented() -> None:
    assert [fault for name in libctrd.__all__ for fault in undocumented(getattr(libctrd, name), name)] == []


def test_every_module_opens_with_a_paragraph() -> None:
    without = [
        name
        for name, text in texts().items()
        if name.endswith(".py") and text.strip() and not ast.get_docstring(ast.parse(text))
    ]
    assert without == []


# ---- types -----------------------------------------------------------------------------------------------------------


def names_of(nodes: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a stub, or a class in it, declares. Names that begin with an underscore are nobody's business."""
    declared: dict[str, ast.stmt] = {}
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            declared[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            declared[node.target.id] = node
    return {name: node for name, node in declared.items() if not name.startswith("_")}


def own_names(module: ModuleType) -> set[str]:
    """What a compiled module defines itself: what it has imported comes from elsewhere."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


@pytest.mark.parametrize("name", COMPILED)
def test_a_stub_declares_what_its_module_has(name: str) -> None:
    module = importlib.import_module(f"libctrd.{name}")
    stub = ast.parse((PACKAGE / f"{name}.pyi").read_text(encoding="utf-8"))
    declared = names_of(stub.body)
    assert own_names(module) - declared.keys() == set()
    assert {missing for missing in declared if not hasattr(module, missing)} == set()
    for class_name, node in declared.items():
        if isinstance(node, ast.ClassDef):
            real = {member for member in vars(getattr(module, class_name)) if not member.startswith("_")}
            assert real - names_of(node.body).keys() == set()
            lacking = {m for m in names_of(node.body) if not hasattr(getattr(module, class_name), m)}
            assert lacking == set()


def test_the_stub_of_the_cffi_module_declares_what_it_has() -> None:
    module = importlib.import_module("libctrd._proc")
    stub = ast.parse((PACKAGE / "_proc.pyi").read_text(encoding="utf-8"))
    lib = next(node for node in stub.body if isinstance(node, ast.ClassDef) and node.name == "_Lib")
    assert set(names_of(lib.body)) == {name for name in dir(module.lib) if not name.startswith("_")}


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


# ---- layers ----------------------------------------------------------------------------------------------------------


def imported_by_python(text: str) -> Iterator[str]:
    """Every module that Python code may import, also later and in functions; not what is for type checkers alone."""
    pending: list[ast.AST] = [ast.parse(text)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            pending += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            pending += ast.iter_child_nodes(node)


def imported_by_cython(text: str) -> Iterator[str]:
    """Every module that Cython code imports, or of which it includes the header."""
    for source, names in re.findall(r"^\s*from\s+([\w.]+)\s+c?import\s+([^#\n]+)", text, re.MULTILINE):
        yield source
        yield from (f"{source}.{name.strip()}" for name in names.split(","))
    yield from re.findall(r"^\s*c?import\s+([\w.]+)", text, re.MULTILINE)


def uses() -> Iterator[tuple[str, str]]:
    """Pairs of a module of the package and one that it imports."""
    for name, text in texts().items():
        path = Path(name)
        if path.parts[0] == "libctrd" and path.suffix == ".py" and name != "libctrd/__init__.py":
            module = ".".join(path.with_suffix("").parts[1:]).removesuffix(".__init__")
            imported = imported_by_python(text)
        elif path.parts[0] == "pyx" and path.suffix == ".pyx":
            module, imported = path.stem, imported_by_cython(text)
        else:
            continue
        inner = {other.removeprefix("libctrd.") for other in imported if other.startswith("libctrd.")}
        inner = {other for other in inner if layer_of(other) is not None}
        for other in sorted(inner):
            # `from libctrd.engine import shim` is an import of the module, and not of what the package itself has.
            if not any(module.startswith(f"{other}.") for module in inner):
                yield module, other


def layer_of(module: str) -> int | None:
    """The number of its layer; the modules of the command are all in the command's."""
    return LAYER["cli"] if module.split(".")[0] == "cli" else LAYER.get(module)


def test_every_module_has_its_layer() -> None:
    for name in texts():
        path = Path(name)
        if path.parts[0] == "libctrd" and path.suffix == ".py" and name != "libctrd/__init__.py":
            module = ".".join(path.with_suffix("").parts[1:]).removesuffix(".__init__")
            assert layer_of(module) is not None, f"{module} is in no layer: say in which, in LAYERS"


def test_no_import_points_up() -> None:
    pairs = list(uses())
    assert len(pairs) > 50
    assert [
        f"{module} imports {other}, which is above it"
        for module, other in pairs
        if (layer_of(other) or 0) > (layer_of(module) or 0)
    ] == []


# ---- what an import costs --------------------------------------------------------------------------------------------


def python(code: str) -> str:
    """What *code* prints in a Python of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_import_brings_nothing_heavy_along() -> None:
    loaded = python("import sys; before = set(sys.modules); import libctrd; print(*set(sys.modules) - before)")
    assert {name.split(".")[0] for name in loaded.split()} & set(UNWANTED) == set()


def test_no_public_name_needs_what_only_the_command_needs() -> None:
    loaded = python("import sys, libctrd; [getattr(libctrd, n) for n in libctrd.__all__]; print(*sys.modules)")
    assert {name.split(".")[0] for name in loaded.split()} & set(NEVER_WANTED) == set()


def test_the_import_takes_little_time() -> None:
    def seconds(code: str) -> float:
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
        _, status, used = os.wait4(pid, 0)
        assert status == 0
        return used.ru_utime + used.ru_stime

    # Of the processor, not of the clock, in turns, and the least of each: whatever else the host does only adds.
    taken = [(seconds("pass"), seconds("import libctrd")) for _ in range(10)]
    bare, ours = (min(times) for times in zip(*taken, strict=True))
    assert ours < 1.5 * bare


# ---- the tree --------------------------------------------------------------------------------------------------------


def test_no_file_is_long() -> None:
    written = {name: text for name, text in texts().items() if name != "share/ctrd.1"}  # that is made by gen_man.py
    lengths = {name: text.count("\n") for name, text in written.items()}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_file_names_a_place_of_one_machine() -> None:
    # Written so that this file does not find itself.
    place = re.compile(
        r"(?<![\w.-])/(?:home|Users|work|workspace|builds)" + r"/\w|/\.py" + r"env/|site" + r"-packages/"
    )
    assert {name: place.findall(text) for name, text in texts().items() if place.search(text)} == {}
    assert [name for name, text in texts().items() if len(ROOT.parts) > 2 and f"{ROOT}/" in text] == []


def test_every_script_can_be_run_and_read_by_bash() -> None:
    scripts = [name for name, text in texts().items() if text.startswith("#!")]
    assert {"tools/quickstart", "tools/test"} <= set(scripts)
    for name in scripts:
        assert stat.S_IMODE((ROOT / name).stat().st_mode) & 0o111 == 0o111, f"{name} may not be run"
        subprocess.run(["bash", "-n", name], cwd=ROOT, check=True)


def rows_in_tests() -> set[int]:
    """The rows of the contract that a comment in some test names."""
    found: set[int] = set()
    for name, text in texts().items():
        if name.startswith("tests/") and name.endswith(".py"):
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                if token.type == tokenize.COMMENT:
                    found.update(int(row) for row in re.findall(r"\bC(\d+)\b", token.string))
    return found


def test_every_row_of_the_contract_is_held_by_a_test() -> None:
    named = rows_in_tests()
    assert [f"C{row}" for row in ROWS if row not in named] == []


def test_the_manual_page_says_what_the_command_says() -> None:
    subprocess.run([sys.executable, ROOT / "tools" / "gen_man.py", "--check"], check=True)


def test_the_shim_is_installed_beside_the_modules_and_may_be_run() -> None:
    shim = Path(libctrd.__file__).parent / "ctrd-shim"
    assert os.access(shim, os.X_OK)
