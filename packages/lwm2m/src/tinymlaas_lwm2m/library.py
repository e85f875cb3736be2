"""Object definitions to go by: this project's own, and OMA files that a user adds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path as FilePath

from .definition import MAX_BYTES, from_xml
from .model import ObjectDef
from .objects import OBJECTS
from .values import CodecError, Kind

MAX_FILES = 2_000


class ObjectLibrary:
    """Definitions by object id. Where files tell of an object that is known here, they add resources and change none:
    what this project does with an object does not depend on a file. Of several versions of one object all resources count,
    with the type in the highest version that has them.
    """

    def __init__(self, added: Iterable[ObjectDef] = ()) -> None:
        self._objects: dict[int, ObjectDef] = {}
        for definition in sorted(added, key=_version):
            before = self._objects.get(definition.id)
            resources = {**(before.resources if before else {}), **definition.resources}
            self._objects[definition.id] = replace(definition, resources=resources)
        for own in OBJECTS.values():
            before = self._objects.get(own.id)
            resources = {**(before.resources if before else {}), **own.resources}
            self._objects[own.id] = replace(own, resources=resources)

    @staticmethod
    def of_folder(folder: FilePath) -> ObjectLibrary:
        """The library with every `*.xml` file of a folder, in the schema of the OMA registry, as published there.

        `CodecError` names the file that can't be read; OSError where the folder can't.
        """
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml")
        if len(files) > MAX_FILES:
            raise CodecError(folder.name, f"holds more than {MAX_FILES} definitions")
        definitions: list[ObjectDef] = []
        for file in files:
            if file.stat().st_size > MAX_BYTES:
                raise CodecError(file.name, f"is longer than {MAX_BYTES} bytes")
            try:
                definitions += from_xml(file.read_text(encoding="utf-8-sig"))
            except (CodecError, UnicodeDecodeError) as error:
                raise CodecError(file.name, str(error)) from error
        return ObjectLibrary(definitions)

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, object_id: int) -> ObjectDef | None:
        """The definition of an object, or None where nobody has told of it."""
        return self._objects.get(object_id)

    def kind_of(self, object_id: int, resource_id: int) -> Kind | None:
        """Type of a resource; None where it is unknown, and then its bytes pass as they are, or where it is an executable."""
        definition = self._objects.get(object_id)
        resource = definition.resources.get(resource_id) if definition else None
        return resource.kind if resource else None


def _version(definition: ObjectDef) -> tuple[int, int, int]:
    major, _, minor = definition.version.partition(".")
    numbers = (int(part) if part.isascii() and part.isdecimal() and len(part) < 4 else 0 for part in (major, minor))
    return (definition.id, *numbers)  # type: ignore[return-value]
