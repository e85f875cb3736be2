"""Unstructured pruning: the weights of smallest magnitude become zero.

Sources: Han et al. 2015 (magnitude, layer by layer); Lee et al. 2021 (LAMP: magnitudes that compare across layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from tinymlaas_optimizer.layers import Layer, constant, set_constant
from tinymlaas_optimizer.recipe import Scope

Mask = npt.NDArray[np.bool_]


def prune_weights(model: ModelProto, layers: Sequence[Layer], share: float, scope: Scope) -> dict[str, Mask]:
    """Set weights to zero in place; the mask of each layer, by name, is true where a weight stays.

    Every constant must have one reader (`own_constants`). Of equal magnitudes the earlier weight goes first.
    """
    values = {layer.name: constant(model, layer.weights) for layer in layers}
    masks = {}
    if scope is Scope.LAYER:
        for name, array in values.items():
            masks[name] = _largest(np.abs(array).ravel(), share).reshape(array.shape)
    else:
        scores = {name: _comparable(array) for name, array in values.items()}
        every = np.concatenate([score.ravel() for score in scores.values()]) if scores else np.zeros(0)
        kept = _largest(every, share)
        start = 0
        for name, score in scores.items():
            masks[name] = kept[start : start + score.size].reshape(score.shape)
            start += score.size
    for layer in layers:
        set_constant(model, layer.weights, np.where(masks[layer.name], values[layer.name], np.float32(0)))
    return masks


def _largest(scores: npt.NDArray[Any], share: float) -> Mask:
    """True for all but the `share` that is smallest (rounded down to whole weights)."""
    mask = np.ones(scores.size, np.bool_)
    mask[np.argsort(scores, kind="stable")[: int(share * scores.size)]] = False
    return mask


def _comparable(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """LAMP: a weight's square over the sum of the squares of all weights of the layer that are no smaller."""
    squares = np.square(values.astype(np.float64)).ravel()
    order = np.argsort(squares, kind="stable")
    rest = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = squares[order] / np.maximum(rest, np.finfo(np.float64).tiny)
    return scores.reshape(values.shape)
