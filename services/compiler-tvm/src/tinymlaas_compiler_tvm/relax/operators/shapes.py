"""Operators that see the same elements in another shape or order: reshapes, transposes, blocks to depth and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinymlaas_compiler_tvm.relax.emit import (
    Converter,
    Emitter,
    Node,
    Refused,
    Value,
    axis_of,
    integers,
    known,
    shape_of,
)


def reshape(e: Emitter, node: Node) -> list[Value]:
    """Reshape: 0 keeps a dimension unless `allowzero`, -1 takes what is left."""
    x = node.inputs[0]
    own = shape_of(x)
    wanted = integers(node.input(1), "shape") if len(node.inputs) > 1 else list(node.attribute("shape"))
    if not node.attribute("allowzero", 0):
        wanted = [own[place] if extent == 0 else extent for place, extent in enumerate(wanted)]
    return [e.reshape(x, _complete(wanted, own))]


def _complete(wanted: Sequence[int], own: Sequence[int]) -> list[int]:
    elements = int(np.prod(own, dtype=np.int64))
    others = int(np.prod([extent for extent in wanted if extent != -1], dtype=np.int64))
    return [elements // max(others, 1) if extent == -1 else extent for extent in wanted]


def flatten(e: Emitter, node: Node) -> list[Value]:
    """Flatten into two dimensions."""
    own = shape_of(node.inputs[0])
    axis = int(node.attribute("axis", 1))
    axis = axis + len(own) if axis < 0 else axis
    before = int(np.prod(own[:axis], dtype=np.int64))
    return [e.reshape(node.inputs[0], (before, int(np.prod(own[axis:], dtype=np.int64))))]


def squeeze(e: Emitter, node: Node) -> list[Value]:
    """Squeeze."""
    own = shape_of(node.inputs[0])
    given = node.input(1)
    axes = integers(given, "axes") if given is not None else node.attribute("axes")
    if axes is None:
        axes = [axis for axis, extent in enumerate(own) if extent == 1]
    dropped = {axis_of(axis, len(own)) for axis in axes}
    return [e.reshape(node.inputs[0], [extent for axis, extent in enumerate(own) if axis not in dropped])]


def unsqueeze(e: Emitter, node: Node) -> list[Value]:
    """Unsqueeze."""
    own = list(shape_of(node.inputs[0]))
    given = node.input(1)
    axes = integers(given, "axes") if given is not None else list(node.attribute("axes"))
    rank = len(own) + len(axes)
    for axis in sorted(axis_of(axis, rank) for axis in axes):
        own.insert(axis, 1)
    return [e.reshape(node.inputs[0], own)]


def transpose(e: Emitter, node: Node) -> list[Value]:
    """Transpose."""
    rank = len(shape_of(node.inputs[0]))
    return [e.transpose(node.inputs[0], node.attribute("perm") or list(reversed(range(rank))))]


def identity(e: Emitter, node: Node) -> list[Value]:
    """Identity, and Dropout at inference: its mask is all true."""
    del e
    mask = np.ones(shape_of(node.inputs[0]), np.bool_)
    return [node.inputs[0], mask][: node.outputs]


def dropout(e: Emitter, node: Node) -> list[Value]:
    """Dropout at inference."""
    training = node.input(2)
    if training is not None and known(training, "training_mode").any():
        ratio = node.input(1)
        if ratio is None or known(ratio, "ratio").any():
            raise Refused("dropout in training mode")
    return identity(e, node)


def shape(e: Emitter, node: Node) -> list[Value]:
    """Shape: a constant."""
    del e
    own = shape_of(node.inputs[0])
    end = node.attribute("end")
    return [np.array(own[int(node.attribute("start", 0)) : end], np.int64)]


def size(e: Emitter, node: Node) -> list[Value]:
    """Size: a constant."""
    del e
    return [np.array(np.prod(shape_of(node.inputs[0]), dtype=np.int64), np.int64)]


def depth_to_space(e: Emitter, node: Node) -> list[Value]:
    """DepthToSpace in the modes DCR and CRD."""
    x = node.inputs[0]
    n, c, h, w = shape_of(x)
    block = int(node.attribute("blocksize"))
    depth = c // block**2
    if str(node.attribute("mode", "DCR")) == "DCR":
        x = e.transpose(e.reshape(x, (n, block, block, depth, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        x = e.transpose(e.reshape(x, (n, depth, block, block, h, w)), (0, 1, 4, 2, 5, 3))
    return [e.reshape(x, (n, depth, h * block, w * block))]


def space_to_depth(e: Emitter, node: Node) -> list[Value]:
    """SpaceToDepth (mode DCR; CRD where the file asks for it)."""
    x = node.inputs[0]
    n, c, h, w = shape_of(x)
    block = int(node.attribute("blocksize"))
    x = e.reshape(x, (n, c, h // block, block, w // block, block))
    order = (0, 1, 3, 5, 2, 4) if str(node.attribute("mode", "DCR")) == "CRD" else (0, 3, 5, 1, 2, 4)
    return [e.reshape(e.transpose(x, order), (n, c * block**2, h // block, w // block))]


CONVERTERS: dict[str, Converter] = {
    "DepthToSpace": depth_to_space,
    "Dropout": dropout,
    "Flatten": flatten,
    "Identity": identity,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "SpaceToDepth": space_to_depth,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
