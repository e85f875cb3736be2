"""Recipes: what is done to a model, in order, as JSON (version 1). `SCHEMA` describes them, docs/guide-optimize.md explains.

A recipe has a canonical form, in which every default is written out; it is kept with what the recipe made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

import jsonschema

from tinymlaas_optimizer.errors import RecipeInvalid

VERSION: Final = 1
MAX_STEPS: Final = 8
MAX_NAMES: Final = 256
MAX_NAME: Final = 80


class Calibration(StrEnum):
    """How the range of a tensor follows from the values seen."""

    MINMAX = "minmax"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"


class Activations(StrEnum):
    """Element type of quantized activations."""

    INT8 = "int8"
    INT16 = "int16"


class Border(StrEnum):
    """Whether the optimized model's inputs and outputs are integers, as inside of it, or floats."""

    INTEGER = "integer"
    FLOAT32 = "float32"


class Fallback(StrEnum):
    """What a layer that quantization hurts becomes: float, or int8 weights with int16 activations."""

    FLOAT32 = "float32"
    INT16 = "int16"


class Kind(StrEnum):
    """What pruning removes: single weights, which become zero, or whole channels, which are gone."""

    WEIGHTS = "weights"
    CHANNELS = "channels"


class Scope(StrEnum):
    """Whether the share that is pruned holds for each layer, or for all together."""

    LAYER = "layer"
    MODEL = "model"


@dataclass(frozen=True)
class Layers:
    """Layers by the names that the report gives them: `only` these (empty: all) but not those in `skip`."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def chosen(self, names: Iterable[str]) -> list[str]:
        """The names that are meant, in their order."""
        return [name for name in names if (not self.only or name in self.only) and name not in self.skip]


@dataclass(frozen=True)
class Fold:
    """Fold constants and BatchNormalization, drop what does nothing. Every recipe begins with it."""


@dataclass(frozen=True)
class Prune:
    """Remove the `share` of weights (set to zero) or channels that is smallest in magnitude.

    `refit`: what reads pruned values gets weights that keep its outputs on the samples as they were, in the least
    squares sense. Channels are removed so that a multiple of `multiple_of` stays.
    """

    kind: Kind
    share: float
    scope: Scope = Scope.LAYER
    multiple_of: int = 1
    refit: bool = True
    layers: Layers = field(default_factory=Layers)


@dataclass(frozen=True)
class QuantizeWeights:
    """Store weights as integers of `bits` with a scale; everything is still computed in float."""

    bits: int = 8
    per_channel: bool = True
    layers: Layers = field(default_factory=Layers)


@dataclass(frozen=True)
class Mixed:
    """Keep the layers that quantization hurts most as `to`, most sensitive first, within the budget.

    At most `max_layers`, and at most `max_extra_bytes` more parameters than without; none any more once the outputs'
    signal to noise ratio reaches `min_snr_db`.
    """

    to: Fallback = Fallback.FLOAT32
    max_layers: int = 1
    max_extra_bytes: int | None = None
    min_snr_db: float | None = None


@dataclass(frozen=True)
class Quantize:
    """Weights and activations as integers, ranges of activations from the samples. The last step of a recipe."""

    calibration: Calibration = Calibration.MINMAX
    percentile: float = 99.999
    per_channel: bool = True
    symmetric_activations: bool = False
    activations: Activations = Activations.INT8
    io: Border = Border.INTEGER
    layers: Layers = field(default_factory=Layers)
    mixed: Mixed | None = None


Step = Fold | Prune | QuantizeWeights | Quantize
_STEPS: Final[Mapping[str, type[Any]]] = {
    "fold": Fold,
    "prune": Prune,
    "quantize_weights": QuantizeWeights,
    "quantize": Quantize,
}
_NAMES: Final = {kind: name for name, kind in _STEPS.items()}


@dataclass(frozen=True)
class Recipe:
    """A name for people and the steps, `Fold` first."""

    name: str = "int8"
    steps: tuple[Step, ...] = (Fold(), Quantize())

    @property
    def quantize(self) -> Quantize | None:
        """The step that quantizes weights and activations, if there is one."""
        return next((step for step in self.steps if isinstance(step, Quantize)), None)

    @property
    def fits(self) -> bool:
        """Whether it fits weights to the samples, so that these say too much good of the result."""
        return any(isinstance(step, Prune) and step.refit for step in self.steps)

    @property
    def needs_samples(self) -> bool:
        """Whether it can't be followed without samples."""
        return self.fits or self.quantize is not None

    def to_dict(self) -> dict[str, Any]:
        """The canonical form: values that JSON can hold, every default written out."""
        steps = [{"step": _NAMES[type(step)], **_values(asdict(step))} for step in self.steps]
        return {"version": VERSION, "name": self.name, "steps": steps}

    def to_json(self) -> bytes:
        """The canonical form as the bytes that are stored."""
        return (json.dumps(self.to_dict(), indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()

    @classmethod
    def parse(cls, given: Any, pointer: str = "") -> Recipe:
        """The recipe that JSON values describe; RecipeInvalid says what is wrong and where, as a JSON pointer.

        `pointer` is where `given` stands in a larger document.
        """
        errors = jsonschema.Draft202012Validator(SCHEMA).iter_errors(given)
        first = min(errors, key=lambda error: [str(part) for part in error.absolute_path], default=None)
        if first is not None:
            raise RecipeInvalid(pointer + _pointer(first.absolute_path), first.message)
        steps = [_step(values, f"{pointer}/steps/{index}") for index, values in enumerate(given["steps"])]
        if not steps or not isinstance(steps[0], Fold):
            steps.insert(0, Fold())
            shift = 1
        else:
            shift = 0
        for index, step in enumerate(steps):
            where = f"{pointer}/steps/{index - shift}/step"
            if index and isinstance(step, Fold):
                raise RecipeInvalid(where, "fold comes first")
            if isinstance(step, Quantize | QuantizeWeights) and index != len(steps) - 1:
                raise RecipeInvalid(where, f"{_NAMES[type(step)]} comes last: nothing works on integers")
        return cls(given.get("name", _default_name(steps)), tuple(steps))


def _step(values: Mapping[str, Any], pointer: str) -> Step:
    kind = _STEPS[values["step"]]
    fields: dict[str, Any] = {name: value for name, value in values.items() if name != "step"}
    layers = fields.get("layers")
    if layers is not None:
        fields["layers"] = Layers(tuple(layers.get("only", ())), tuple(layers.get("skip", ())))
    if fields.get("mixed") is not None:
        fields["mixed"] = Mixed(**{**fields["mixed"], "to": Fallback(fields["mixed"].get("to", Fallback.FLOAT32))})
    for name, choices in _CHOICES.items():
        if name in fields:
            fields[name] = choices(fields[name])
    step: Step = kind(**fields)
    if isinstance(step, Prune) and step.kind is Kind.CHANNELS and step.scope is not Scope.LAYER:
        raise RecipeInvalid(f"{pointer}/scope", "channels are pruned layer by layer")
    if isinstance(step, Prune) and step.kind is Kind.WEIGHTS and step.multiple_of != 1:
        raise RecipeInvalid(f"{pointer}/multiple_of", "it is about channels")
    mixed = step.mixed if isinstance(step, Quantize) and step.activations is Activations.INT16 else None
    if mixed is not None and mixed.to is Fallback.INT16:
        raise RecipeInvalid(f"{pointer}/mixed/to", "activations are int16 everywhere already")
    return step


def _default_name(steps: Iterable[Step]) -> str:
    words = []
    for step in steps:
        if isinstance(step, Prune):
            words.append(f"{step.share:.0%} of {step.kind} pruned".replace("%", " %"))
        elif isinstance(step, QuantizeWeights):
            words.append(f"int{step.bits} weights")
        elif isinstance(step, Quantize):
            mixed = "" if step.mixed is None else f" with {step.mixed.to}"
            words.append(f"{step.activations}{mixed}")
    name = ", ".join(words) or "folded"
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def _values(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _values(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value
        for name, value in fields.items()
    }


def _pointer(path: Iterable[Any]) -> str:
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


_CHOICES: Final[Mapping[str, type[StrEnum]]] = {
    "calibration": Calibration,
    "activations": Activations,
    "io": Border,
    "kind": Kind,
    "scope": Scope,
}
_BOOLEAN: Final = {"type": "boolean"}
_NAMED: Final = {"type": "array", "maxItems": MAX_NAMES, "items": {"type": "string", "minLength": 1, "maxLength": 256}}
_LAYERS: Final = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"only": _NAMED, "skip": _NAMED},
    "description": "Layers by the names in the report: only these (empty: all), but not those in skip.",
}


def _choice(choices: type[StrEnum], default: StrEnum, description: str) -> dict[str, Any]:
    return {"enum": [choice.value for choice in choices], "default": default.value, "description": description}


_PROPERTIES: Final[Mapping[str, Mapping[str, Any]]] = {
    "fold": {},
    "prune": {
        "kind": {"enum": [kind.value for kind in Kind], "description": "Single weights, or whole channels."},
        "share": {
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
            "description": "How much is removed.",
        },
        "scope": _choice(Scope, Scope.LAYER, "The share holds for each layer, or for all weights of the model."),
        "multiple_of": {
            "type": "integer",
            "minimum": 1,
            "maximum": 64,
            "default": 1,
            "description": "Keep a multiple of so many channels, as vector instructions like them.",
        },
        "refit": {
            **_BOOLEAN,
            "default": True,
            "description": "Fit the weights that are left to the outputs that the layer had on the samples.",
        },
        "layers": _LAYERS,
    },
    "quantize_weights": {
        "bits": {"enum": [4, 8], "default": 8, "description": "Bits of a weight."},
        "per_channel": {**_BOOLEAN, "default": True, "description": "One scale for each output channel."},
        "layers": _LAYERS,
    },
    "quantize": {
        "calibration": _choice(
            Calibration,
            Calibration.MINMAX,
            "How ranges of activations are found: all values seen, least information lost, or a percentile.",
        ),
        "percentile": {
            "type": "number",
            "exclusiveMinimum": 50,
            "maximum": 100,
            "default": 99.999,
            "description": "Share of the values that a range holds, in percent; used with calibration percentile.",
        },
        "per_channel": {**_BOOLEAN, "default": True, "description": "One scale for each output channel of a weight."},
        "symmetric_activations": {
            **_BOOLEAN,
            "default": False,
            "description": "Zero points of int8 activations are 0; costs a bit of resolution after Relu.",
        },
        "activations": _choice(Activations, Activations.INT8, "Type of activations; weights are int8 in any case."),
        "io": _choice(Border, Border.INTEGER, "Inputs and outputs of the model: integers, or float32."),
        "layers": _LAYERS,
        "mixed": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "default": None,
            "description": "Keep the layers that quantization hurts most in a wider type, within this budget.",
            "properties": {
                "to": _choice(Fallback, Fallback.FLOAT32, "What these layers become."),
                "max_layers": {"type": "integer", "minimum": 1, "maximum": MAX_NAMES, "default": 1},
                "max_extra_bytes": {"type": ["integer", "null"], "minimum": 0, "default": None},
                "min_snr_db": {"type": ["number", "null"], "default": None},
            },
        },
    },
}
SCHEMA: Final[Mapping[str, Any]] = {
    "title": "Recipe",
    "description": "What is done to a model, in order: fold, prune, quantize_weights or quantize.",
    "type": "object",
    "additionalProperties": False,
    "required": ["version", "steps"],
    "properties": {
        "version": {"const": VERSION},
        "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME, "pattern": r"^[^\x00-\x1f\x7f]*$"},
        "steps": {
            "type": "array",
            "maxItems": MAX_STEPS,
            "items": {
                "type": "object",
                "required": ["step"],
                "properties": {"step": {"enum": list(_STEPS)}},
                "allOf": [
                    {
                        "if": {"properties": {"step": {"const": name}}, "required": ["step"]},
                        "then": {
                            "additionalProperties": False,
                            "required": ["kind", "share"] if name == "prune" else [],
                            "properties": {"step": True, **properties},
                        },
                    }
                    for name, properties in _PROPERTIES.items()
                ],
            },
        },
    },
}
