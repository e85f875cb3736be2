"""What a module of compiler-tvm must reach, and should: ratios to the peer, and bytes beyond the model's own weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinymlaas_client.comparison import peer_of
from tinymlaas_modelkit.graph import DType, OpKind
from tinymlaas_modelkit.tflite_reader import read_tflite

KIB = 1024
# Instructions against TFLite Micro + CMSIS-NN on the same CPU; M0+ against its Cortex-M3 build.
INSTRUCTIONS_MUST = {"cortex-m4": 0.50, "cortex-m3": 0.75, "cortex-m0plus": 0.75, "cortex-m55": 1.00}
INSTRUCTIONS_AIM = {
    ("kws", "cortex-m4"): 0.32,
    ("vww", "cortex-m4"): 0.32,
    ("ic", "cortex-m4"): 0.30,
    ("ad", "cortex-m4"): 0.40,
}
INSTRUCTIONS_AIM_M55 = 0.80
FLASH_MUST, FLASH_AIM = 24 * KIB, 12 * KIB
RAM_MUST = 0.80
RAM_AIM_OVER_LIVE = 1.05
WEIGHTS = (DType.INT8, DType.FLOAT32)


@dataclass(frozen=True)
class ModelFacts:
    """Bytes of the model's weights (int8 constants, or float32 ones), and the most that its activations have at one time."""

    weights_bytes: int
    live_bytes: int


@dataclass(frozen=True)
class Goal:
    """A figure with its limits, in its own unit: a ratio to the peer or bytes. None: there is no such limit."""

    name: str
    value: float
    must: float | None
    aim: float | None

    def verdict(self, limit: float | None) -> str:
        """Tell "yes" or "no", "–" without a limit."""
        return "–" if limit is None else "yes" if self.value <= limit else "no"


def model_facts(file: Path) -> ModelFacts:
    """Facts of a TFLite file: an activation lives from the operator that writes it to the last that reads it."""
    graph = read_tflite(file.read_bytes())
    tensors = graph.tensors
    constants = [tensor for tensor in tensors.values() if tensor.is_constant and tensor.dtype in WEIGHTS]
    steps = [op for op in graph.ops if op.kind is not OpKind.RESHAPE]  # a view of the same bytes
    first = dict.fromkeys(graph.inputs, 0)
    last = dict.fromkeys(graph.outputs, len(steps) - 1)
    for step, op in enumerate(steps):
        for name in op.outputs:
            first.setdefault(name, step)
        for read in op.inputs:
            if read is not None and read in first:
                last[read] = max(last.get(read, 0), step)
    live = [
        sum(tensors[name].nbytes for name in first if first[name] <= step <= last.get(name, first[name]))
        for step in range(len(steps))
    ]
    return ModelFacts(sum(tensor.nbytes for tensor in constants), max(live))


def goals(
    model: str,
    target: str,
    facts: ModelFacts,
    flash: int | None,
    arena: int | None,
    stack: int | None,
    instructions: int | None,
) -> list[Goal]:
    """The goals of a model on a target with what was reached; a goal without a figure, or without a peer, is left out."""
    found = []
    peer = peer_of(model, target)
    if peer is not None and instructions is not None:
        aim = INSTRUCTIONS_AIM_M55 if target == "cortex-m55" else INSTRUCTIONS_AIM.get((model, target))
        found.append(Goal("instructions", instructions / peer.instructions, INSTRUCTIONS_MUST.get(target), aim))
    if flash is not None:
        must = FLASH_MUST if target == "cortex-m4" else None
        found.append(Goal("flash", flash - facts.weights_bytes, must, FLASH_AIM if must else None))
    if peer is not None and arena is not None and stack is not None:
        must = RAM_MUST if target == "cortex-m4" else None
        aim = RAM_AIM_OVER_LIVE * facts.live_bytes / peer.arena_bytes if must else None
        found.append(Goal("arena + stack", (arena + stack) / peer.arena_bytes, must, aim))
    return found
