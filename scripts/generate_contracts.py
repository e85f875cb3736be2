"""Generate packages/contracts from protos/, or with --check compare what is there with what would be generated."""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

import google.api.field_behavior_pb2 as googleapis
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = ROOT / "packages" / "contracts" / "src" / "tinymlaas"
GOOGLE_PROTOS = ("api/field_behavior", "api/resource", "api/annotations", "api/http", "rpc/status")


def collect_sources(folder: Path) -> None:
    """Copy our protos and the googleapis protos that they import into `folder`, each under its canonical name."""
    shutil.copytree(PROTOS, folder, dirs_exist_ok=True)
    google = Path(googleapis.__file__).resolve().parents[1]
    for name in GOOGLE_PROTOS:
        target = folder / "google" / f"{name}.proto"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(google / f"{name}.proto", target)
    # googleapis-common-protos ships this one under another name, and its module under the canonical name.
    (folder / "google" / "longrunning").mkdir(exist_ok=True)
    operations = (google / "longrunning" / "operations_proto.proto").read_text()
    operations = operations.replace('import "google/api/client.proto";\n', "").replace(
        '  option (google.api.default_host) = "longrunning.googleapis.com";\n', ""
    )
    lines = [line for line in operations.splitlines(keepends=True) if "method_signature" not in line]
    (folder / "google" / "longrunning" / "operations.proto").write_text("".join(lines))


def generate(sources: Path, folder: Path) -> None:
    """Write the Python modules and type stubs of every proto below `sources`/tinymlaas into `folder`."""
    files = sorted(str(path.relative_to(sources)) for path in (sources / "tinymlaas").rglob("*.proto"))
    includes = [f"-I{sources}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    outputs = [
        f"--python_out={folder}",
        f"--grpc_python_out={folder}",
        f"--mypy_out=quiet:{folder}",
        f"--mypy_grpc_out=quiet:{folder}",
    ]
    plugins = [
        f"--plugin=protoc-gen-{name}={Path(sys.executable).parent}/protoc-gen-{name}" for name in ("mypy", "mypy_grpc")
    ]
    if protoc.main(["protoc", *includes, *plugins, *outputs, *files]) != 0:
        raise SystemExit("protoc failed")
    for stub in folder.rglob("*_pb2_grpc.py"):
        if "Stub" not in stub.read_text():
            stub.unlink()
            stub.with_suffix(".pyi").unlink(missing_ok=True)


def differences(left: Path, right: Path) -> list[str]:
    """Paths that are only in one of two folders, or differ."""
    names = {
        path.relative_to(root)
        for root in (left, right)
        for path in root.rglob("*.py*")
        if "__pycache__" not in path.parts
    }
    return sorted(
        str(name)
        for name in names
        if not (
            (left / name).is_file()
            and (right / name).is_file()
            and filecmp.cmp(left / name, right / name, shallow=False)
        )
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 when the tree is out of date")
    parser.add_argument(
        "--sources", type=Path, help="only collect the protos with their imports into this folder (for buf)"
    )
    arguments = parser.parse_args()
    if arguments.sources:
        collect_sources(arguments.sources)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        sources, fresh = Path(scratch) / "sources", Path(scratch) / "fresh"
        fresh.mkdir()
        collect_sources(sources)
        generate(sources, fresh)
        if arguments.check:
            stale = differences(fresh / "tinymlaas", GENERATED)
            for name in stale:
                print(f"out of date: {name}; run `make contracts`", file=sys.stderr)
            return 1 if stale else 0
        shutil.rmtree(GENERATED, ignore_errors=True)
        shutil.copytree(fresh / "tinymlaas", GENERATED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
