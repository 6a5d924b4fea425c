"""Writes libctrd/protos/wire.binpb, the descriptors of all our .proto files; with --check, only says if it is stale.

Needs the ``grpcio-tools`` package, which has the compiler. What it writes has no comments and no positions, and what
two versions of the compiler write may differ in bytes only: a check compares what is declared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "libctrd" / "protos"
WIRE = PROTOS / "wire.binpb"


def compiled() -> FileDescriptorSet:
    """The descriptors of every .proto file here and of what they import, each after those that it imports."""
    well_known = Path(protoc.__file__).parent / "_proto"
    names = sorted(str(path.relative_to(ROOT)) for path in PROTOS.glob("*.proto"))
    with tempfile.NamedTemporaryFile(suffix=".binpb") as written:
        arguments = [f"-I{ROOT}", f"-I{well_known}", "--include_imports", f"--descriptor_set_out={written.name}"]
        if protoc.main(["protoc", *arguments, *names]) != 0:
            raise SystemExit(f"the compiler refuses a file of {PROTOS}: it says above which and why")
        return FileDescriptorSet.FromString(Path(written.name).read_bytes())


def declared(descriptors: FileDescriptorSet) -> dict[str, str]:
    """What each file declares, as text, by the file's name. Options do not count: they advise generators of code."""
    for file in descriptors.file:
        file.ClearField("options")
    return {file.name: str(file) for file in descriptors.file}


def main() -> int:
    """Returns the exit code: 1 when the check finds that the set is stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 when it is stale")
    fresh = compiled()
    if not parser.parse_args().check:
        WIRE.write_bytes(fresh.SerializeToString(deterministic=True))
        return 0
    kept, wanted = declared(FileDescriptorSet.FromString(WIRE.read_bytes())), declared(fresh)
    stale = sorted(name for name in kept.keys() | wanted.keys() if kept.get(name) != wanted.get(name))
    for name in stale:
        print(f"{WIRE.name} is stale in {name}: run tools/gen_protos.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
