"""Errors of the optimizer.

OptimizerError
├── OptionUnknown     an option that there is not                   INVALID_ARGUMENT     OPTION_UNKNOWN
├── OptionInvalid     an option with a value it can't have          INVALID_ARGUMENT     OPTION_INVALID
├── RecipeInvalid     a recipe that can't be followed               INVALID_ARGUMENT     RECIPE_INVALID
├── SamplesInvalid    calibration samples that don't fit the model  INVALID_ARGUMENT     SAMPLES_INVALID
├── NotFloat          the model is quantized already                FAILED_PRECONDITION  MODEL_NOT_FLOAT
├── NotQuantizable    no int8 form exists that all targets share    FAILED_PRECONDITION  NOT_QUANTIZABLE
├── BoundMissed       no recipe keeps what was asked for            FAILED_PRECONDITION  BOUND_MISSED
└── LimitExceeded     right, but more than the service takes        RESOURCE_EXHAUSTED   LIMIT_EXCEEDED

A model that is refused before any of this raises `tinymlaas_modelkit.check.ModelRejected`, which has the same four
fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from tinymlaas_modelkit.check import safe_text


class OptimizerError(Exception):
    """Base of all errors: `code` is a gRPC status name, `reason` a stable word, `help` says what to do next."""

    code = "INVALID_ARGUMENT"
    reason = "OPTIMIZER_ERROR"
    help = ""

    def __init__(self, message: str, **metadata: str) -> None:
        self.message = safe_text(message, 400)
        self.metadata = {key: safe_text(value) for key, value in metadata.items()}
        super().__init__(self.message)


class OptionUnknown(OptimizerError):
    """An option that the schema does not have; `nearest` is the one probably meant, or empty."""

    reason = "OPTION_UNKNOWN"
    help = "Ask GetOptionSchema for the options."

    def __init__(self, option: str, known: Sequence[str]) -> None:
        nearest = (get_close_matches(option, known, 1) or [""])[0]
        super().__init__(f"there is no option {option}", option=option, nearest=nearest)


class OptionInvalid(OptimizerError):
    """An option whose value the schema does not allow."""

    reason = "OPTION_INVALID"
    help = "Give the option a value that GetOptionSchema allows."

    def __init__(self, option: str, detail: str) -> None:
        super().__init__(f"option {option}: {detail}", option=option, detail=detail)


class RecipeInvalid(OptimizerError):
    """A recipe that its schema does not allow, or that says what can't be done; `pointer` is a JSON pointer into it."""

    reason = "RECIPE_INVALID"
    help = "Mend the recipe at the pointer; GetOptionSchema has the schema of recipes."

    def __init__(self, pointer: str, detail: str, **metadata: str) -> None:
        super().__init__(f"recipe at {pointer or '/'}: {detail}", pointer=pointer, detail=detail, **metadata)


class SamplesInvalid(OptimizerError):
    """Samples that can't be read, or that are not what the model takes."""

    reason = "SAMPLES_INVALID"
    help = "Send real inputs, one array for each input of the model, sample first and without the batch dimension."

    def __init__(self, detail: str, where: str = "") -> None:
        super().__init__(f"samples: {detail}", detail=detail, where=where)


class NotFloat(OptimizerError):
    """A model that holds quantized operators already."""

    code = "FAILED_PRECONDITION"
    reason = "MODEL_NOT_FLOAT"
    help = "Send the float model that this one was made of, or compile this one as it is."


class NotQuantizable(OptimizerError):
    """A model, or a tensor in it, that has no int8 form."""

    code = "FAILED_PRECONDITION"
    reason = "NOT_QUANTIZABLE"
    help = "Change the operator that is named, or use a recipe that does not quantize it."


class BoundMissed(OptimizerError):
    """No recipe gave a result within the bound; `best` says which came nearest, and how near."""

    code = "FAILED_PRECONDITION"
    reason = "BOUND_MISSED"
    help = "Allow more loss, or add a recipe that changes less: mixed precision, int16 activations, a smaller share."

    def __init__(self, bound: str, best: str) -> None:
        super().__init__(f"no recipe keeps {bound}; the nearest is {best}", bound=bound, best=best)


class LimitExceeded(OptimizerError):
    """More samples, bytes or constants than the service takes."""

    code = "RESOURCE_EXHAUSTED"
    reason = "LIMIT_EXCEEDED"
    help = "Send fewer samples or a smaller model."

    def __init__(self, limit: str, value: int, most: int) -> None:
        super().__init__(f"{limit}: {value}, the limit is {most}", limit=limit, value=str(value), most=str(most))
