"""The test cases: which of ONNX's are in scope, and how each is turned into a model that a compiler can take.

ONNX's cases give every operand as an input of the graph. What an operator needs at compile time (shapes, axes, pads, scales and
the like) becomes an initializer here, as it is in models of people; everything else stays an input that is fed at run time.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]

_STRINGS = "text is not for microcontrollers"
_SEQUENCES = "sequences, maps and optional values have no place in a static arena"
_TRAINING = "training"
_RANDOM = "random results"
_CLASSIC = "domain ai.onnx.ml (classic machine learning)"
LEFT_OUT_OPERATORS: Mapping[str, str] = {
    **dict.fromkeys(("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer"), _STRINGS),
    **dict.fromkeys(
        ("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
         "SequenceMap", "SplitToSequence", "ConcatFromSequence", "ReverseSequenceMap", "Optional", "OptionalGetElement",
         "OptionalHasElement"),
        _SEQUENCES,
    ),
    **dict.fromkeys(
        ("Adagrad", "Adam", "Momentum", "Gradient", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), _TRAINING
    ),
    **dict.fromkeys(
        ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), _RANDOM
    ),
    **dict.fromkeys(("ArrayFeatureExtractor", "Binarizer", "LabelEncoder", "TreeEnsemble"), _CLASSIC),
    "ImageDecoder": "image files are decoded before they reach a model",
}  # fmt: skip
# Places of the inputs that an operator needs at compile time.
CONSTANT_INPUTS: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "CastLike": (1,), "CenterCropPad": (1,), "Col2Im": (1, 2), "ConstantOfShape": (0,),
    "CumSum": (1,), "CumProd": (1,),
    "DFT": (1, 2), "DequantizeLinear": (1, 2), "Dropout": (1, 2), "Expand": (1,), "MaxUnpool": (2,),
    "HammingWindow": (0,), "HannWindow": (0,), "BlackmanWindow": (0,), "MelWeightMatrix": (0, 1, 2, 3, 4),
    "OneHot": (1,), "Pad": (1, 2, 3), "QuantizeLinear": (1, 2), "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7), "ConvInteger": (2, 3), "MatMulInteger": (2, 3), "Range": (0, 1, 2),
    "ReduceL1": (1,), "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,), "ReduceMax": (1,),
    "ReduceMean": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceSum": (1,), "ReduceSumSquare": (1,),
    "Reshape": (1,), "Resize": (1, 2, 3), "STFT": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,),
    "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,), "LSTM": (4,), "GRU": (4,), "RNN": (4,),
    "Attention": (6,), "TensorScatter": (), "Loop": (0, 1),
}  # fmt: skip
_OLDEST_OPSET = 7
_ZERO = "zero_at_run_time"


@dataclass(frozen=True)
class Case:
    """A model with inputs, the outputs that are expected, and the tolerance of the comparison.

    `lsb` is None for float cases (then `rtol` and `atol` hold, as in ONNX's runner), else the steps an int8 output may be off.
    """

    name: str
    operator: str
    model: bytes
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    rtol: float
    atol: float
    lsb: int | None = None


@dataclass(frozen=True)
class LeftOut:
    """A case that is not run, and why."""

    name: str
    operator: str
    why: str


def collect(operators: Iterable[str] = ()) -> tuple[list[Case], list[LeftOut]]:
    """All cases in the order of their names, or those of some operators; and those that are left out."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    wanted = set(operators)
    operator_of = {case.name: case.model.graph.node[0].op_type for case in found if len(case.model.graph.node) == 1}
    cases: list[Case] = []
    left_out: list[LeftOut] = []
    for case in sorted(found, key=lambda each: str(each.name)):
        operator = operator_of.get(re.sub(r"_expanded(_ver\d+)?$", "", case.name)) or _main_operator(case.model)
        if wanted and operator not in wanted:
            continue
        why = _reason_to_leave_out(operator, case)
        if why:
            left_out.append(LeftOut(case.name, operator, why))
        else:
            cases.append(_prepared(case, operator))
    return cases, left_out


def _main_operator(model: onnx.ModelProto) -> str:
    return str(model.graph.node[0].op_type)


def _reason_to_leave_out(operator: str, case: Any) -> str:
    if operator in LEFT_OUT_OPERATORS:
        return LEFT_OUT_OPERATORS[operator]
    graph = case.model.graph
    if any(opset.domain.startswith("ai.onnx.ml") for opset in case.model.opset_import):
        return _CLASSIC
    if any(not value.type.HasField("tensor_type") for value in (*graph.input, *graph.output)):
        return _SEQUENCES
    text = onnx.TensorProto.STRING
    if any(value.type.tensor_type.elem_type == text for value in (*graph.input, *graph.output)):
        return _STRINGS
    attributes = {a.name: helper.get_attribute_value(a) for node in graph.node for a in node.attribute}
    if attributes.get("training_mode") == 1 or "training" in case.name or case.name.startswith("test_dropout_random"):
        return _TRAINING
    if operator == "Dropout" and len(graph.output) > 0 and "training" in case.name:
        return _TRAINING
    return ""


def as_array(value: Any) -> Array:
    """A case's tensor as an array."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _prepared(case: Any, operator: str) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    given, expected = case.data_sets[0]
    names = [value.name for value in graph.input]
    raw = dict(zip(names, given, strict=True))
    constant = _constant_names(graph, operator, case)
    inputs = []
    for name in names:
        if name in constant:
            value = raw[name]
            tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value), name)
            made = graph.initializer.add()
            made.CopyFrom(tensor)
            made.name = name
        else:
            inputs.append(as_array(raw[name]))
    kept = [value for value in graph.input if value.name not in constant]
    del graph.input[:]
    graph.input.extend(kept)
    outputs = [as_array(value) for value in expected]
    _declare(graph.output, outputs)
    if not kept:
        inputs.append(_add_zero(graph, outputs))
    _raise_old_opset(model)
    return Case(case.name, operator, model.SerializeToString(), tuple(inputs), tuple(outputs), case.rtol, case.atol)


def _raise_old_opset(model: onnx.ModelProto) -> None:
    """Operators that are the same in operator set 7, the oldest that a compiler takes, are tested in that."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version < _OLDEST_OPSET:
            names = {node.op_type for node in model.graph.node}
            versions = [
                (onnx.defs.get_schema(name, entry.version).since_version, onnx.defs.get_schema(name, _OLDEST_OPSET))
                for name in names
            ]
            if all(old == new.since_version for old, new in versions):
                entry.version = _OLDEST_OPSET


def _declare(values: Any, arrays: list[Array]) -> None:
    """Static shapes for the outputs: those of the expected values."""
    for value, array in zip(values, arrays, strict=True):
        if value.type.tensor_type.elem_type in (onnx.TensorProto.STRING, 0):
            continue
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.shape.SetInParent()
        for extent in array.shape:
            value.type.tensor_type.shape.dim.add().dim_value = extent


def _constant_names(graph: onnx.GraphProto, operator: str, case: Any) -> set[str]:
    """Names of graph inputs that operators need at compile time; in expanded cases those of the operator that was expanded."""
    inputs = [value.name for value in graph.input]
    found: set[str] = set()
    for node in graph.node:
        for place in CONSTANT_INPUTS.get(node.op_type, ()):
            if place < len(node.input) and node.input[place] in inputs:
                found.add(node.input[place])
    if "_expanded" in case.name:
        found |= {inputs[place] for place in CONSTANT_INPUTS.get(operator, ()) if place < len(inputs)}
    return found


def _add_zero(graph: onnx.GraphProto, outputs: list[Array]) -> Array:
    """Make outputs of a graph without inputs depend on one: `zero` is added to each (a model must have an input)."""
    dtype = outputs[0].dtype
    graph.input.append(helper.make_tensor_value_info(_ZERO, helper.np_dtype_to_tensor_dtype(dtype), [1]))
    renamed = {value.name: f"{value.name}_constant" for value in graph.output}
    for node in graph.node:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in graph.output:
        graph.node.append(helper.make_node("Add", [renamed[value.name], _ZERO], [value.name]))
    return np.zeros(1, dtype)
