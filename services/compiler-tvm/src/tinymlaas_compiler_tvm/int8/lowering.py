"""From a quantized graph to a program: layouts, buffers (shared where an operator works in place), one step an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tinymlaas_compiler_tvm import arithmetic, float_arithmetic
from tinymlaas_compiler_tvm.errors import OpUnsupported
from tinymlaas_compiler_tvm.int8 import c_general, c_real, c_sparse, c_strided, c_winograd
from tinymlaas_compiler_tvm.int8.c_kernels import COPY_BYTES, COPY_FAST, KERNELS
from tinymlaas_compiler_tvm.int8.mve_layouts import planar_tensors
from tinymlaas_compiler_tvm.int8.variants import signature
from tinymlaas_compiler_tvm.int16 import c_layers, c_simple
from tinymlaas_compiler_tvm.native.program import Access, Buffer, BufferKind, CKernel, Program, Step
from tinymlaas_compiler_tvm.target import Machine
from tinymlaas_modelkit.graph import Activation, DType, Graph, Op, OpKind, Tensor

_KERNELS = KERNELS | {
    made.name: made
    for module in (c_strided, c_real, c_general, c_sparse, c_winograd, c_layers, c_simple)
    for made in vars(module).values()
    if isinstance(made, CKernel)
}

ELEMENTWISE = frozenset(
    {
        OpKind.ADD, OpKind.SUB, OpKind.MUL, OpKind.QUANTIZE, OpKind.RELU, OpKind.RELU6, OpKind.LEAKY_RELU, OpKind.LOGISTIC,
        OpKind.TANH, OpKind.HARD_SWISH, OpKind.DIV, OpKind.MINIMUM, OpKind.MAXIMUM, OpKind.PRELU, OpKind.TABLE,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What the options mean for lowering: how far loops unroll, whether operators may work in place,
    whether fully connected layers do without a widened copy of their input, whether convolutions do without parameters that
    only save time (but for operators with outputs in `faster`), whose rounding the kernels follow, how far the loops of a
    layer unroll that has a variant of its own (by `variants.signature`), by which objective layers leave out their single
    zeros (empty: none does), and outputs of the convolutions that go by Winograd."""

    unroll: int = 8
    in_place: bool = True
    scratch_free_dense: bool = False
    compact: bool = False
    faster: frozenset[str] = frozenset()
    rounding: str = "tflite"
    variants: Mapping[str, int] = field(default_factory=dict)
    zeros: str = "balanced"
    winograd: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie: a buffer, and whether channels come first (planes) in it."""

    buffer: Buffer
    planar: bool


def image(tensor: Tensor) -> tuple[int, int, int]:
    """(height, width, channels) of an NHWC tensor of batch 1; (1, 1, n) of one with fewer dimensions."""
    if len(tensor.shape) == 4 and tensor.shape[0] == 1:
        return tensor.shape[1], tensor.shape[2], tensor.shape[3]
    return 1, 1, tensor.elements


@dataclass(frozen=True)
class Snapshot:
    """A lowering's state before an operator: (buffers, steps), places, planar tensors, graph, whether floats are used."""

    counts: tuple[int, int]
    places: Mapping[str, Place]
    planar: set[str]
    graph: Graph
    uses_float: bool


@dataclass
class Lowering:
    """State while operators become steps."""

    graph: Graph
    machine: Machine
    settings: Settings
    program: Program = field(default_factory=Program)
    places: dict[str, Place] = field(default_factory=dict)
    planar: set[str] = field(default_factory=set)
    last_use: dict[str, int] = field(default_factory=dict)
    current: int = 0

    def snapshot(self) -> Snapshot:
        """What a lowering that fails half-way must give back."""
        counts = len(self.program.buffers), len(self.program.steps)
        return Snapshot(counts, dict(self.places), set(self.planar), self.graph, self.program.uses_float)

    def restore(self, before: Snapshot) -> None:
        """Forget what was added since; constants stay until nothing refers to them."""
        buffers, steps = before.counts
        del self.program.buffers[buffers:], self.program.steps[steps:]
        self.places, self.planar, self.graph = dict(before.places), set(before.planar), before.graph
        self.program.uses_float = before.uses_float

    def tensor(self, name: str | None) -> Tensor:
        """A tensor of the graph; the operator's check has made sure that it is there."""
        if name is None:
            raise ValueError("operand is missing")
        return self.graph.tensor(name)

    def place(self, name: str) -> Place:
        """Where a live tensor lies."""
        return self.places[name]

    def strides(self, name: str) -> tuple[int, int]:
        """(bytes between pixels, bytes between channels) of a tensor where it lies."""
        height, width, channels = image(self.tensor(name))
        return (1, height * width) if self.places[name].planar else (channels, 1)

    def lies_as(self, name: str, out_name: str) -> bool:
        """Whether a tensor lies in the order of memory that an output of its shape will have."""
        height, width, channels = image(self.tensor(name))
        return self.places[name].planar == (out_name in self.planar) or channels == 1 or height * width == 1

    def output(self, name: str, over: str | None = None) -> Place:
        """A place for an operator's output: over the bytes of input `over` where that input ends here, else a new buffer."""
        tensor = self.tensor(name)
        planar = name in self.planar
        if over is not None and self.can_overwrite(over, tensor.nbytes):
            buffer = self.places[over].buffer
            buffer.tensors.append(name)
        else:
            buffer = self.program.buffer(tensor.nbytes, BufferKind.TENSOR, name)
        place = Place(buffer, planar)
        self.places[name] = place
        return place

    def can_overwrite(self, name: str, size: int) -> bool:
        """Whether the bytes of `name` are free for an output of this operator."""
        if not self.settings.in_place or self.tensor(name).is_constant:
            return False
        buffer = self.places[name].buffer
        if self.last_use[name] > self.current or name in self.graph.outputs:
            return False
        # Another name of the same bytes (a reshape's) may live on.
        shared = any(
            place.buffer is buffer and (self.last_use.get(other, -1) > self.current or other in self.graph.outputs)
            for other, place in self.places.items()
            if other != name
        )
        return not shared and size <= buffer.size

    def activation_range(self, activation: Activation, scale: float, zero_point: int) -> tuple[int, int]:
        """The int8 clamp of a fused activation."""
        if self.settings.rounding == "onnx":
            return float_arithmetic.activation_range(activation, scale, zero_point)
        return arithmetic.activation_range(activation, scale, zero_point)

    def unroll(self) -> int:
        """How far the loops of the operator at hand may unroll."""
        chosen = self.settings.variants
        return chosen.get(signature(self.graph, self.graph.ops[self.current]), self.settings.unroll)

    @property
    def compact(self) -> bool:
        """Whether the operator at hand does without parameters that only save time."""
        return self.settings.compact and self.graph.ops[self.current].outputs[0] not in self.settings.faster

    def constant(self, data: bytes, alignment: int = 4) -> int:
        """Offset of a constant."""
        return self.program.constants.add(data, alignment)

    def use(self, *names: str) -> None:
        """Take C kernels, and what they need, into the program."""
        for name in names:
            kernel = _KERNELS[name] if name in _KERNELS else self._copy_kernel()
            if kernel.name in self.program.c_kernels:
                continue
            if kernel.name == "conv_common":
                self.use("copy")
            self.use(*kernel.needs)
            self.program.c_kernels[kernel.name] = kernel

    def _copy_kernel(self) -> CKernel:
        fast = self.machine.arm and self.machine.isa != "armv6-m"
        return COPY_FAST if fast else COPY_BYTES

    def define(self, name: str, text: str, *needs: str) -> None:
        """A C kernel made for this program."""
        if name not in self.program.c_kernels:
            self.use(*needs)
            self.program.c_kernels[name] = CKernel(name, text.replace("@NAME@", name).strip() + "\n")

    def step(
        self,
        kind: str,
        op: Op,
        body: str,
        reads: list[str],
        writes: list[str],
        workspaces: list[Buffer] | None = None,
        constant_bytes: int = 0,
        macs: int = 0,
        note: str = "",
        grown: Buffer | None = None,
    ) -> None:
        """Append a step that reads and writes whole tensors and whole workspaces.

        `grown` is a buffer that the step fills beyond the tensor in it: more is written than was there to be read.
        """
        scratch = [Access(buffer, 0, buffer.size) for buffer in workspaces or []]
        touched_in = [Access(self.places[name].buffer, 0, self.tensor(name).nbytes) for name in reads]
        # Kernels that store words, or channels in fours, may touch the buffer up to its rounded size.
        touched_out = [Access(self.places[name].buffer, 0, -(-self.tensor(name).nbytes // 4) * 4) for name in writes]
        if grown is not None:
            touched_out.append(Access(grown, 0, grown.size))
        index = len(self.program.steps)
        self.program.steps.append(
            Step(
                index, kind, (op.origin,), body, touched_in + scratch, touched_out + scratch, constant_bytes, macs, note
            )
        )


Lower = Callable[[Lowering, Op], None]


def choose_layouts(graph: Graph) -> set[str]:
    """Names of the tensors that lie plane by plane: those that a depthwise convolution reads or writes, and their equals.

    Elementwise operators keep a layout. Graph inputs and outputs, and whatever is read as a flat list, keep NHWC.
    """
    parent = {name: name for name in graph.tensors}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    wanted: set[str] = set()
    fixed = set(graph.inputs) | set(graph.outputs)
    free = {
        OpKind.CONV_2D, OpKind.DEPTHWISE_CONV_2D, OpKind.AVERAGE_POOL_2D, OpKind.MAX_POOL_2D, OpKind.MEAN, *ELEMENTWISE,
    }  # fmt: skip
    for op in graph.ops:
        names = [n for n in (*op.inputs, *op.outputs) if n is not None and not graph.tensor(n).is_constant]
        if any(graph.tensor(name).dtype is not DType.INT8 for name in names):
            fixed.update(names)
        if op.kind in ELEMENTWISE:
            for name in names[1:]:
                parent[find(name)] = find(names[0])
        if op.kind is OpKind.DEPTHWISE_CONV_2D:
            wanted.update(names)
        if op.kind not in free:
            fixed.update(names)
    fixed_roots = {find(name) for name in fixed}
    wanted_roots = {find(name) for name in wanted} - fixed_roots
    for op in graph.ops:
        # A pointwise layer over planes writes planes too, over its own input, where its reader takes either layout.
        if (
            op.kind is OpKind.CONV_2D
            and find(str(op.inputs[0])) in wanted_roots
            and graph.tensor(str(op.inputs[1])).shape[1:3] == (1, 1)
            and find(op.outputs[0]) not in fixed_roots
        ):
            wanted_roots.add(find(op.outputs[0]))
    shapes = {name: graph.tensor(name).shape for name in graph.tensors}
    return {name for name, shape in shapes.items() if find(name) in wanted_roots and len(shape) == 4 and shape[0] == 1}


@dataclass(frozen=True)
class Refusal:
    """An operator that has no kernel in its form."""

    op: Op
    error: OpUnsupported


def lower_graph(graph: Graph, machine: Machine, settings: Settings, table: dict[OpKind, Lower]) -> Program:
    """A program for a graph; OpUnsupported for the first operator that can't be lowered, with the count of its like."""
    program, refusals = try_lower(graph, machine, settings, table)
    if refusals:
        first = refusals[0]
        same = [refusal for refusal in refusals if refusal.op.kind is first.op.kind]
        first.error.metadata = {**first.error.metadata, "count": str(len(same))}
        raise first.error
    return program


def try_lower(
    graph: Graph, machine: Machine, settings: Settings, table: dict[OpKind, Lower]
) -> tuple[Program, list[Refusal]]:
    """A program and the operators that are missing from it."""
    from tinymlaas_compiler_tvm.islands import in_runs, lower_island, on_reals

    graph = in_runs(graph)
    state = Lowering(graph, machine, settings)
    state.planar = planar_tensors(graph) if machine.mve else choose_layouts(graph)
    for index, op in enumerate(graph.ops):
        for name in op.inputs:
            if name is not None:
                state.last_use[name] = index
    for name in graph.inputs:
        buffer = state.program.buffer(graph.tensor(name).nbytes, BufferKind.TENSOR, name)
        state.places[name] = Place(buffer, planar=False)
        state.program.inputs.append(buffer)
    refusals: list[Refusal] = []
    index = 0
    while index < len(graph.ops):
        run = 1
        if on_reals(graph, graph.ops[index]):
            while index + run < len(graph.ops) and on_reals(graph, graph.ops[index + run]):
                run += 1
        ops = graph.ops[index : index + run]
        index += run
        state.current = index - 1
        try:
            if on_reals(graph, ops[0]):
                lower_island(state, ops)
            else:
                _lower_one(state, ops[0], table)
        except OpUnsupported as error:
            node = error.metadata.get("node", "")
            refusals.append(Refusal(next((op for op in ops if op.origin == node), ops[0]), error))
            for name in (name for op in ops for name in op.outputs):
                if name not in state.places:
                    buffer = state.program.buffer(graph.tensor(name).nbytes, BufferKind.TENSOR, name)
                    state.places[name] = Place(buffer, name in state.planar)
    for name in graph.outputs:
        state.program.outputs.append(state.places[name].buffer)
    return state.program, refusals


def _lower_one(state: Lowering, op: Op, table: dict[OpKind, Lower]) -> None:
    """An integer kernel, or an island of its own where no kernel takes the operator's form and reals may be computed."""
    from tinymlaas_compiler_tvm.islands import lower_island

    lower = table.get(op.kind)
    before = state.snapshot()
    try:
        if lower is None:
            raise unsupported(op, f"no integer kernel for {op.kind}")
        lower(state, op)
    except OpUnsupported:
        if state.settings.rounding != "onnx":
            raise
        state.restore(before)
        lower_island(state, [op])


def row_major_name(state: Lowering, op: Op, name: str) -> str:
    """The tensor itself if it lies in the order of its axes, else a copy that does."""
    from tinymlaas_compiler_tvm.int8.simple import as_planar

    return as_planar(state, op, name, planar=False)


def quantized(state: Lowering, op: Op, name: str | None, dtype: DType = DType.INT8) -> tuple[Tensor, float, int]:
    """(tensor, scale, zero point) of a tensor of that type with one scale; OpUnsupported otherwise."""
    tensor = state.tensor(name)
    quantization = tensor.quantization
    if tensor.dtype is not dtype or quantization is None or quantization.scales.size != 1:
        raise OpUnsupported(
            f"operand is not {dtype} with one scale", op=op.kind, node=op.origin, dtype=tensor.dtype, count=1
        )
    return tensor, quantization.scale, quantization.zero_point


def memory_strides(state: Lowering, tensor: Tensor) -> list[int]:
    """Elements between neighbours along each axis of a tensor where it lies."""
    if state.place(tensor.name).planar:
        height, width, channels = image(tensor)
        return [channels * height * width, width, 1, height * width]
    return row_major(tensor.shape)


def row_major(shape: tuple[int, ...]) -> list[int]:
    """Elements between neighbours along each axis, the last axis without gaps."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * shape[i + 1]
    return strides


def activation_of(op: Op) -> Activation:
    """The activation fused into an operator."""
    return Activation(str(op.attributes.get("activation", Activation.NONE)))


def unsupported(op: Op, message: str, dtype: str = "int8") -> OpUnsupported:
    """The error for a form of an operator that has no kernel."""
    return OpUnsupported(message, op=op.kind, node=op.origin, dtype=dtype, count=1)


def pointer(buffer: Buffer, ctype: str = "int8_t") -> str:
    """C for a buffer's address."""
    return f"({ctype} *){buffer.macro}"


def words(values: list[int]) -> bytes:
    """Little-endian 32-bit words, modulo 2**32."""
    return (np.array([value & 0xFFFFFFFF for value in values], np.uint32)).tobytes()
