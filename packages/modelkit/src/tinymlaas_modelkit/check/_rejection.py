"""Why a model file is refused: one exception, one table of problems, one table of what to do about each."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

_SHOWN = 120


class Code(StrEnum):
    """The gRPC status names that a refused model can get (google.rpc.Code)."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"


class Problem(StrEnum):
    """What is wrong with a model file; the status and reason of each follow from `CODES`."""

    EMPTY_FILE = "EMPTY_FILE"
    NOT_A_MODEL = "NOT_A_MODEL"
    FORMAT_MISMATCH = "FORMAT_MISMATCH"
    MALFORMED = "MALFORMED"
    CYCLE = "CYCLE"
    NO_SUCH_OP = "NO_SUCH_OP"
    SHAPE_NOT_STATIC = "SHAPE_NOT_STATIC"
    BAD_SHAPE = "BAD_SHAPE"
    SHAPE_MISMATCH = "SHAPE_MISMATCH"
    TYPE_MISMATCH = "TYPE_MISMATCH"
    EXTERNAL_DATA = "EXTERNAL_DATA"
    DATA_SIZE_MISMATCH = "DATA_SIZE_MISMATCH"
    DUPLICATE_NAME = "DUPLICATE_NAME"
    UNDEFINED_TENSOR = "UNDEFINED_TENSOR"
    NO_INPUT = "NO_INPUT"
    NO_OUTPUT = "NO_OUTPUT"
    BAD_VALUE = "BAD_VALUE"
    CHECKER_DIED = "CHECKER_DIED"
    MODEL_TOO_LARGE = "MODEL_TOO_LARGE"
    TENSOR_TOO_LARGE = "TENSOR_TOO_LARGE"
    TOO_MANY_NODES = "TOO_MANY_NODES"
    TOO_MANY_TENSORS = "TOO_MANY_TENSORS"
    CHECK_DEADLINE = "CHECK_DEADLINE"
    CHECK_MEMORY = "CHECK_MEMORY"
    OP_UNSUPPORTED = "OP_UNSUPPORTED"
    DTYPE_UNSUPPORTED = "DTYPE_UNSUPPORTED"
    OPSET_UNSUPPORTED = "OPSET_UNSUPPORTED"


_LIMIT: Final = frozenset(
    {
        Problem.MODEL_TOO_LARGE,
        Problem.TENSOR_TOO_LARGE,
        Problem.TOO_MANY_NODES,
        Problem.TOO_MANY_TENSORS,
        Problem.CHECK_DEADLINE,
        Problem.CHECK_MEMORY,
    }
)
_UNSUPPORTED: Final = frozenset({Problem.OP_UNSUPPORTED, Problem.DTYPE_UNSUPPORTED, Problem.OPSET_UNSUPPORTED})

CODES: Final[Mapping[Problem, Code]] = {
    problem: Code.RESOURCE_EXHAUSTED
    if problem in _LIMIT
    else Code.FAILED_PRECONDITION
    if problem in _UNSUPPORTED
    else Code.INVALID_ARGUMENT
    for problem in Problem
}

HELP: Final[Mapping[Problem, str]] = {
    Problem.EMPTY_FILE: "The upload has no bytes: send the model file again.",
    Problem.NOT_A_MODEL: "Send an ONNX or TFLite file; other formats come in through an importer.",
    Problem.FORMAT_MISMATCH: "Name the format that the file really has.",
    Problem.MALFORMED: "The file is damaged or was written wrongly: export the model again.",
    Problem.CYCLE: "Break the cycle: no operator and no function may depend on its own result.",
    Problem.NO_SUCH_OP: "Use an operator that the imported opset defines, or import the opset that has it.",
    Problem.SHAPE_NOT_STATIC: "Export with fixed shapes and batch 1, and fold constants.",
    Problem.BAD_SHAPE: "Give every dimension a positive size.",
    Problem.SHAPE_MISMATCH: "Correct the shapes: the operators do not compute what is declared.",
    Problem.TYPE_MISMATCH: "Correct the element types: the operators do not compute what is declared.",
    Problem.EXTERNAL_DATA: "Save the model with all of its weights inside the file.",
    Problem.DATA_SIZE_MISMATCH: "Write as many values as the tensor's shape says.",
    Problem.DUPLICATE_NAME: "Give every tensor one name and one writer.",
    Problem.UNDEFINED_TENSOR: "Make each tensor that is read an input, a constant or an earlier result.",
    Problem.NO_INPUT: "Give the graph at least one input.",
    Problem.NO_OUTPUT: "Give the graph at least one output.",
    Problem.BAD_VALUE: "Use finite weights, positive finite scales, and values inside the range of their type.",
    Problem.CHECKER_DIED: "The file makes a model library crash: export the model again with a current exporter.",
    Problem.MODEL_TOO_LARGE: "Use a smaller model, or ask the administrator to raise the limit.",
    Problem.TENSOR_TOO_LARGE: "Use smaller tensors: no device has memory for this one.",
    Problem.TOO_MANY_NODES: "Fuse or fold operators, or ask the administrator to raise the limit.",
    Problem.TOO_MANY_TENSORS: "Remove unused tensors, or ask the administrator to raise the limit.",
    Problem.CHECK_DEADLINE: "The check ran out of time: use a smaller model, or try later.",
    Problem.CHECK_MEMORY: "The check ran out of memory: use a smaller model.",
    Problem.OP_UNSUPPORTED: "Use standard operators without control flow.",
    Problem.DTYPE_UNSUPPORTED: "Convert the tensor to float32, int8, uint8, int16, int32, int64 or bool.",
    Problem.OPSET_UNSUPPORTED: "Convert the model to a version of the format that is supported.",
}


def safe_text(text: str, limit: int = _SHOWN) -> str:
    """The text on one line of printable ASCII, at most `limit` characters, so that no name can forge a log."""
    escaped = text[: limit + 1].encode("unicode_escape").decode("ascii")
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


class ModelRejected(Exception):
    """A model file that is not accepted: `code`, `reason`, `metadata` (problem, where, detail, ...) and `help`.

    `reason` is MODEL_INVALID with INVALID_ARGUMENT, LIMIT_EXCEEDED with RESOURCE_EXHAUSTED, and the problem itself with
    FAILED_PRECONDITION. All metadata is printable ASCII of bounded length.
    """

    def __init__(self, problem: Problem, where: str, detail: str, **more: str) -> None:
        self.problem = problem
        self.code = CODES[problem]
        self.reason = {
            Code.INVALID_ARGUMENT: "MODEL_INVALID",
            Code.RESOURCE_EXHAUSTED: "LIMIT_EXCEEDED",
            Code.FAILED_PRECONDITION: problem.value,
        }[self.code]
        fields = {"where": where, "detail": detail, **more}
        self.metadata: dict[str, str] = {"problem": problem.value}
        self.metadata.update(
            {key: safe_text(value, 400 if key == "detail" else _SHOWN) for key, value in fields.items()}
        )
        self.help = HELP[problem]
        super().__init__(f"{problem.value} at {self.metadata['where']}: {self.metadata['detail']}")

    def to_dict(self) -> dict[str, str]:
        """The problem and its metadata, for JSON."""
        return dict(self.metadata)

    @classmethod
    def from_dict(cls, fields: Mapping[str, str]) -> ModelRejected:
        """The rejection that `to_dict` described; ValueError or KeyError if it is none."""
        more = {str(k): str(v) for k, v in fields.items() if k not in ("problem", "where", "detail")}
        return cls(Problem(fields["problem"]), str(fields["where"]), str(fields["detail"]), **more)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by the metadata, since the constructor takes more than one argument."""
        return (ModelRejected.from_dict, (self.metadata,))
