"""Which variant of a kernel a layer gets: the shipped database's choice for its shapes, else the objective's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from tinymlaas_compiler_tvm.target import Machine
from tinymlaas_modelkit.graph import Graph, Op, OpKind

LAYERS = frozenset({OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.FULLY_CONNECTED})
DATABASE = "tuned.json"


def signature(graph: Graph, op: Op) -> str:
    """What a layer's best variant depends on: operator and shapes of input, weights and output."""
    names = (op.inputs[0], op.inputs[1], op.outputs[0])
    shapes = ["x".join(map(str, graph.tensor(str(name)).shape)) for name in names]
    return " ".join([str(op.kind), *shapes])


def kernel_class(machine: Machine) -> str:
    """Machines of one class run the same kernels."""
    return "dsp" if machine.dsp else machine.isa


@cache
def _database() -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    text = files("tinymlaas_compiler_tvm.int8").joinpath(DATABASE).read_text(encoding="utf-8")
    loaded: Mapping[str, Mapping[str, Mapping[str, int]]] = json.loads(text)
    return loaded


def shipped(machine: Machine, objective: str) -> Mapping[str, int]:
    """How far loops unroll, by layer signature, as `tune` found it for the zoo's shapes."""
    return _database().get(kernel_class(machine), {}).get(objective, {})
