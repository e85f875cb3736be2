"""Rules that every image of the suite keeps, read from its Dockerfile and lock."""

from __future__ import annotations

import _sqlite3
import _ssl
import asyncio
import json
import re
import shutil
import sqlite3
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import root
import trim
from yaml import _yaml

import build_images
from environments import ENVIRONMENTS

ROOT = Path(__file__).resolve().parents[2]
LIGHT = ("registry", "gateway", "lwm2m-bridge", "operator")
IMAGES = build_images.images()
PYTHON = [image for image in IMAGES.values() if image.environment]
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^ ]+)", re.MULTILINE)
HASH = re.compile(r"sha256:[0-9a-f]{64}")


def pins(lock: Path) -> dict[str, tuple[str, frozenset[str]]]:
    """Version and hashes of each package of a lock file."""
    text = lock.read_text(encoding="utf-8")
    marks = list(PIN.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return {
        mark[1]: (mark[2], frozenset(HASH.findall(text[mark.end() : end])))
        for mark, end in zip(marks, ends, strict=True)
    }


def test_every_service_has_an_image_and_every_dockerfile_is_listed() -> None:
    services = {
        folder.name
        for folder in (ROOT / "services").iterdir()
        if (folder / "src").is_dir() or (folder / "cmd").is_dir()
    }
    assert services <= set(IMAGES)
    assert {path.name.removesuffix(".Dockerfile") for path in build_images.FOLDER.glob("*.Dockerfile")} == set(IMAGES)


@pytest.mark.parametrize("image", IMAGES.values(), ids=lambda image: image.name)
def test_an_image_runs_without_root_from_a_base_that_an_argument_pins(image: build_images.Image) -> None:
    lines = image.dockerfile.read_text(encoding="utf-8").splitlines()
    stages = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert len(stages) == 2
    assert all(stage in ("${BASE}", "${BUILDER}", "scratch") for stage in stages)
    assert "USER 10001:10001" in lines
    assert any(line.startswith('ENTRYPOINT ["') for line in lines)
    assert any("io.tinymlaas.sbom" in line for line in lines)
    assert not [line for line in lines if ":latest" in line or "<<" in line or line.startswith("ADD ")]


@pytest.mark.parametrize("image", PYTHON, ids=lambda image: image.name)
def test_an_image_holds_the_parts_that_the_catalogue_names(image: build_images.Image) -> None:
    text = image.dockerfile.read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (\S+) /build/\1$", text, re.MULTILINE)
    assert tuple(copied) == image.parts
    assert f"install.sh parts {' '.join(image.parts)}" in text


@pytest.mark.parametrize("name", [*LIGHT, "dtls-front"])
def test_a_light_service_has_neither_a_shell_nor_a_package_manager(name: str) -> None:
    lines = IMAGES[name].dockerfile.read_text(encoding="utf-8").splitlines()
    last = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert last[0] == "FROM scratch"
    copied = [line.split()[2:] for line in last if line.startswith("COPY --from=build")]
    assert copied in ([["/runtime", "/"], ["/opt/tinymlaas", "/opt/tinymlaas"]], [["/out/", "/"]])


def test_an_extension_without_what_debuggers_read_still_loads(tmp_path: Path) -> None:
    original = Path(_yaml.__file__)
    copy = tmp_path / original.name
    shutil.copy2(original, copy)
    trim.strip(copy)
    assert copy.stat().st_size < original.stat().st_size / 2
    cut = copy.read_bytes()
    trim.strip(copy)
    assert copy.read_bytes() == cut, "there is nothing more to cut off"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import _yaml; print(_yaml.get_version_string(), _yaml.__file__)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert told == [_yaml.get_version_string(), str(copy)]
    program = tmp_path / "program.py"
    program.write_text("print()")
    trim.strip(program)
    assert program.read_text() == "print()"


def test_files_come_into_an_images_root_with_the_links_on_their_way(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "usr" / "lib").mkdir(parents=True)
    (here / "usr" / "lib" / "libx.so.1").write_text("x")
    (here / "usr" / "lib" / "libx.so").symlink_to("libx.so.1")
    (here / "lib").symlink_to("usr/lib")
    made = root.Root(tmp_path / "root")
    made.take(here / "lib" / "libx.so")
    copied = made.at(here)
    assert (copied / "lib").readlink() == Path("usr/lib")
    assert (copied / "lib" / "libx.so").readlink() == Path("libx.so.1")
    assert (copied / "lib" / "libx.so").read_text() == "x"
    assert made.taken == {here / "usr" / "lib" / "libx.so", here / "usr" / "lib" / "libx.so.1"}


def test_of_the_base_a_service_gets_what_it_may_import_and_what_that_is_linked_with() -> None:
    files = set(root.standard_library())
    modules = {Path(each.__file__ or "") for each in (asyncio, json, ssl, sqlite3, _ssl, _sqlite3)}
    assert modules <= files
    assert not {"ensurepip", "idlelib", "test"} & {file.relative_to(root.LIBRARY).parts[0] for file in files}
    assert any(library.name.startswith("libc.so") for library in root.linked(Path(_ssl.__file__)) or ())


@pytest.mark.parametrize("image", PYTHON, ids=lambda image: image.name)
def test_the_lock_of_an_image_is_a_selection_of_its_environments_lock(image: build_images.Image) -> None:
    environment = next(each for each in ENVIRONMENTS if each.name == image.environment)
    chosen, whole = pins(image.lock), pins(environment.lock)
    assert chosen
    for name, (version, hashes) in chosen.items():
        assert whole.get(name) == (version, hashes), f"{name}: run scripts/build_images.py lock --only {image.name}"
    needed = {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0].lower() for line in image.requirements()}
    assert needed <= set(chosen), f"run scripts/build_images.py lock --only {image.name}"
    assert "index-url" not in image.lock.read_text(encoding="utf-8")


def test_a_bill_of_materials_lists_each_package_once_and_is_the_same_every_time() -> None:
    script = build_images.FOLDER / "sbom.py"
    first, second = (
        subprocess.run([sys.executable, str(script), "image"], capture_output=True, check=True).stdout for _ in range(2)
    )
    assert first == second
    assert first.count(b'"pkg:pypi/grpcio@') == 2  # its reference and its package URL
