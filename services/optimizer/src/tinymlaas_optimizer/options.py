"""Options of the optimizer, their JSON Schema, and how a request's options become values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import jsonschema

from tinymlaas_optimizer.errors import OptionInvalid, OptionUnknown
from tinymlaas_optimizer.recipe import SCHEMA as RECIPE_SCHEMA
from tinymlaas_optimizer.recipe import Recipe

MAX_RECIPES: Final = 24


class Task(StrEnum):
    """What the first output means: a score for each class, something else, or classes if a Softmax makes it."""

    AUTO = "auto"
    CLASSIFY = "classify"
    OTHER = "other"


@dataclass(frozen=True)
class Bound:
    """What a result must keep to be taken.

    `max_drop`: share of samples lost: labelled ones that are right no more, others that change their class.
    `min_snr_db`: signal to noise ratio of every output against the float model.
    """

    max_drop: float | None = None
    min_snr_db: float | None = None


# What is kept to when several recipes compete and nothing was said.
USUAL: Final = Bound(max_drop=0.01, min_snr_db=None)
USUAL_UNCLASSIFIED: Final = Bound(max_drop=None, min_snr_db=20.0)

SCHEMA: Final[Mapping[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Optimizer options",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "recipes": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_RECIPES,
            "items": RECIPE_SCHEMA,
            "default": [Recipe().to_dict()],
            "description": "What to try. Of several, the smallest result that keeps the bound is taken.",
        },
        "bound": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "default": None,
            "properties": {
                "max_drop": {"type": ["number", "null"], "minimum": 0, "maximum": 1, "default": None},
                "min_snr_db": {"type": ["number", "null"], "default": None},
            },
            "description": "What a result must keep: share of samples lost at most, signal to noise ratio at least. Without it one "
            "recipe is taken as it comes, and of several one that loses at most 0.01, or keeps 20 dB where no classes are.",
        },
        "sensitivity": {
            "type": "boolean",
            "default": True,
            "description": "Measure for the report what quantizing each layer alone costs.",
        },
        "task": {
            "enum": [task.value for task in Task],
            "default": "auto",
            "description": "Whether the first output has one score for each class, so that labels give an accuracy.",
        },
    },
}


@dataclass(frozen=True)
class Options:
    """What to do with a model; the defaults are those of `SCHEMA`."""

    recipes: tuple[Recipe, ...] = (Recipe(),)
    bound: Bound | None = None
    sensitivity: bool = True
    task: Task = Task.AUTO

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """The options of a request; OptionUnknown, OptionInvalid or RecipeInvalid names the first that is wrong."""
        known = list(SCHEMA["properties"])
        for name in given:
            if name not in known:
                raise OptionUnknown(str(name), known)
        recipes = given.get("recipes", SCHEMA["properties"]["recipes"]["default"])
        if not isinstance(recipes, list) or not 1 <= len(recipes) <= MAX_RECIPES:
            raise OptionInvalid("recipes", f"a list of 1 to {MAX_RECIPES} recipes is needed")
        parsed = tuple(Recipe.parse(recipe, f"/recipes/{index}") for index, recipe in enumerate(recipes))
        rest = {name: value for name, value in given.items() if name != "recipes"}
        errors = sorted(jsonschema.Draft202012Validator(SCHEMA).iter_errors(rest), key=lambda error: list(error.path))
        for error in errors:
            raise OptionInvalid(str(next(iter(error.absolute_path), "")), error.message)
        bound = rest.get("bound")
        return cls(
            parsed,
            None if bound is None else Bound(bound.get("max_drop"), bound.get("min_snr_db")),
            rest.get("sensitivity", True),
            Task(rest.get("task", "auto")),
        )
