"""Definitions from OMA files beside this project's own."""

from __future__ import annotations

from pathlib import Path as FilePath

import pytest

from tinymlaas_lwm2m import CodecError, Kind, ObjectDef, ObjectLibrary, Operations, ResourceDef, kind_of
from tinymlaas_lwm2m.definition import to_xml


def write(folder: FilePath, definition: ObjectDef, name: str = "") -> None:
    text = to_xml(definition, description="", urn=f"urn:oma:lwm2m:x:{definition.id}")
    (folder / (name or f"{definition.id}.xml")).write_text(text, encoding="utf-8")


def one(object_id: int, kind: Kind, *, version: str = "1.0", resource: int = 77) -> ObjectDef:
    resources = {resource: ResourceDef(resource, "Something", Operations.READ, kind)}
    return ObjectDef(object_id, "Vendor Object", True, resources, version)


def test_a_users_file_tells_the_types_of_an_object_that_nobody_here_knows(tmp_path: FilePath) -> None:
    write(tmp_path, one(30_000, Kind.FLOAT))
    library = ObjectLibrary.of_folder(tmp_path)
    assert library.kind_of(30_000, 77) is Kind.FLOAT
    definition = library.get(30_000)
    assert definition is not None
    assert definition.name == "Vendor Object"
    assert library.kind_of(30_001, 0) is None


def test_a_users_file_adds_to_a_known_object_and_changes_nothing_of_it(tmp_path: FilePath) -> None:
    write(tmp_path, one(3, Kind.TIME, resource=13))
    write(tmp_path, one(3, Kind.INTEGER, resource=0, version="1.2"), "3-later.xml")
    library = ObjectLibrary.of_folder(tmp_path)
    assert library.kind_of(3, 13) is Kind.TIME
    assert library.kind_of(3, 0) is kind_of(3, 0) is Kind.STRING


def test_the_highest_version_of_an_object_tells_the_type(tmp_path: FilePath) -> None:
    write(tmp_path, one(30_000, Kind.STRING, version="1.10"), "a.xml")
    write(tmp_path, one(30_000, Kind.INTEGER, version="1.9"), "b.xml")
    write(tmp_path, one(30_000, Kind.OPAQUE, version="1.0", resource=5), "c.xml")
    library = ObjectLibrary.of_folder(tmp_path)
    assert (library.kind_of(30_000, 77), library.kind_of(30_000, 5)) == (Kind.STRING, Kind.OPAQUE)


@pytest.mark.parametrize(
    "text", ["", "<LWM2M>", "<!DOCTYPE x><LWM2M/>", "<LWM2M><Object><ObjectID>x</ObjectID></Object></LWM2M>"]
)
def test_a_file_that_is_no_definition_is_named(tmp_path: FilePath, text: str) -> None:
    (tmp_path / "bad.xml").write_text(text, encoding="utf-8")
    with pytest.raises(CodecError, match=r"bad\.xml"):
        ObjectLibrary.of_folder(tmp_path)
