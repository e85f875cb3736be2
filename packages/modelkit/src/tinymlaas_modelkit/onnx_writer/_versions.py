"""Whether a node means the same under a later version of ONNX's operator set, as far as the operators' schemas tell."""

from __future__ import annotations

from onnx import defs

_REQUIRED = defs.OpSchema.FormalParameterOption.Single


def means_the_same(operator: str, before: int, after: int) -> bool:
    """Whether a node written for version `before` may stand in a file of version `after`.

    It may where its operator kept every attribute with its default and every input at its place, and asks for no more
    inputs: what versions add otherwise has a neutral default (ONNX's docs/Versioning.md).
    """
    try:
        old, new = (defs.get_schema(operator, version) for version in (before, after))
    except defs.SchemaError:
        return False
    if old.since_version == new.since_version:
        return True
    inputs = [[given.option == _REQUIRED for given in schema.inputs] for schema in (old, new)]
    kept = all(
        name in new.attributes and new.attributes[name].default_value == attribute.default_value
        for name, attribute in old.attributes.items()
    )
    return kept and not new.deprecated and len(inputs[1]) >= len(inputs[0]) and sum(inputs[1]) <= sum(inputs[0])
