"""Definitions that OMA has published, as Leshan brings them, read by our loader and compared with our own."""

from __future__ import annotations

import zipfile
from pathlib import Path

from leshan_peer import Leshan
from tinymlaas_lwm2m import OBJECTS, ObjectLibrary
from tinymlaas_lwm2m.definition import from_xml


def test_our_definitions_of_the_core_objects_agree_with_omas(leshan_build: Leshan, tmp_path: Path) -> None:
    """DO-CAP-007: ids, operations, types and multiplicity of every resource that we know."""
    jar = next(
        part for part in leshan_build.class_path.split(":") if "leshan-lwm2m-core" in part and "tests" not in part
    )
    with zipfile.ZipFile(jar) as archive:
        names = [name for name in archive.namelist() if name.startswith("models/") and name.endswith(".xml")]
        for name in names:
            (tmp_path / Path(name).name).write_bytes(archive.read(name))
    assert len(ObjectLibrary.of_folder(tmp_path)) > len(OBJECTS)
    compared = 0
    for name in ("0-1_1", "1-1_1", "3-1_1", "4-1_1", "5"):
        [theirs] = from_xml((tmp_path / f"{name}.xml").read_text(encoding="utf-8-sig"))
        object_id = theirs.id
        for resource in OBJECTS[object_id].resources.values():
            other = theirs.resources[resource.id]
            assert (resource.kind, resource.operations, resource.multiple) == (
                other.kind,
                other.operations,
                other.multiple,
            ), f"/{object_id}/x/{resource.id} {other.name}"
            compared += 1
    assert compared > 40
