"""Object definitions in the OMA schema for LwM2M objects (LWM2M-v1_1.xsd), as written and as read."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.sax.saxutils import escape

from .model import ObjectDef, Operations, ResourceDef
from .values import CodecError, Kind

MAX_BYTES = 1_000_000


def to_xml(definition: ObjectDef, *, description: str, urn: str) -> str:
    """The definition as the text of an OMA XML file; the same text for the same definition."""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<LWM2M xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:noNamespaceSchemaLocation="http://openmobilealliance.org/tech/profiles/LWM2M-v1_1.xsd">',
        '  <Object ObjectType="MODefinition">',
        f"    <Name>{escape(definition.name)}</Name>",
        f"    <Description1><![CDATA[{description}]]></Description1>",
        f"    <ObjectID>{definition.id}</ObjectID>",
        f"    <ObjectURN>{escape(urn)}</ObjectURN>",
        "    <LWM2MVersion>1.1</LWM2MVersion>",
        f"    <ObjectVersion>{definition.version}</ObjectVersion>",
        f"    <MultipleInstances>{'Multiple' if definition.multiple else 'Single'}</MultipleInstances>",
        "    <Mandatory>Optional</Mandatory>",
        "    <Resources>",
    ]
    for resource in sorted(definition.resources.values(), key=lambda resource: resource.id):
        lines += [
            f'      <Item ID="{resource.id}">',
            f"        <Name>{escape(resource.name)}</Name>",
            f"        <Operations>{resource.operations.value}</Operations>",
            f"        <MultipleInstances>{'Multiple' if resource.multiple else 'Single'}</MultipleInstances>",
            f"        <Mandatory>{'Mandatory' if resource.mandatory else 'Optional'}</Mandatory>",
            f"        <Type>{resource.kind.value if resource.kind else ''}</Type>",
            f"        <RangeEnumeration>{escape(resource.range)}</RangeEnumeration>",
            f"        <Units>{escape(resource.units)}</Units>",
            f"        <Description><![CDATA[{resource.description}]]></Description>",
            "      </Item>",
        ]
    lines += ["    </Resources>", "    <Description2></Description2>", "  </Object>", "</LWM2M>", ""]
    return "\n".join(lines)


def from_xml(text: str) -> list[ObjectDef]:
    """Object definitions of an OMA XML file; `CodecError` where it does not follow the schema."""
    if len(text) > MAX_BYTES or "<!DOCTYPE" in text:
        raise CodecError("definition", f"is longer than {MAX_BYTES} bytes or declares a document type")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - without a document type there are no entities to expand
    except ElementTree.ParseError as error:
        raise CodecError("definition", f"is not XML: {error}") from error
    return [_object(element) for element in root.iter("Object")]


def _object(element: ElementTree.Element) -> ObjectDef:
    resources = [_resource(item) for item in element.iter("Item")]
    return ObjectDef(
        id=_number(element.findtext("ObjectID", ""), "ObjectID"),
        name=element.findtext("Name", "").strip(),
        multiple=element.findtext("MultipleInstances", "").strip() == "Multiple",
        resources={resource.id: resource for resource in resources},
        version=element.findtext("ObjectVersion", "").strip() or "1.0",
    )


def _resource(item: ElementTree.Element) -> ResourceDef:
    identifier = _number(item.get("ID", ""), "Item ID")
    kind = item.findtext("Type", "").strip()
    try:
        return ResourceDef(
            id=identifier,
            name=item.findtext("Name", "").strip(),
            operations=Operations(item.findtext("Operations", "").strip()),
            kind=Kind(kind) if kind else None,
            multiple=item.findtext("MultipleInstances", "").strip() == "Multiple",
            mandatory=item.findtext("Mandatory", "").strip() == "Mandatory",
            units=item.findtext("Units", "").strip(),
            range=item.findtext("RangeEnumeration", "").strip(),
            description=item.findtext("Description", "").strip(),
        )
    except ValueError as error:
        raise CodecError(f"Item {identifier}", str(error)) from error


def _number(text: str, where: str) -> int:
    if not text.strip().isascii() or not text.strip().isdecimal() or int(text) > 65_534:
        raise CodecError(where, f"{text[:20]!r} is not an id")
    return int(text)
