"""A float ONNX model as a program: TVM's Relax front end and fusion, scheduled TIR, one step a fused function."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinymlaas_compiler_tvm.errors import OpUnsupported
from tinymlaas_compiler_tvm.native.assemble import Interface
from tinymlaas_compiler_tvm.native.program import Access, Buffer, BufferKind, CKernel, Program, Step
from tinymlaas_compiler_tvm.relax import floatmath
from tinymlaas_compiler_tvm.relax.cprinter import Printed, Unprintable, print_function
from tinymlaas_compiler_tvm.relax.frontend import import_model
from tinymlaas_compiler_tvm.relax.schedule import schedule_function

_ALIASES = ("reshape", "squeeze", "expand_dims", "flatten")
_ITEM = {"float32": 4, "int32": 4, "int64": 8, "int8": 1, "uint8": 1, "int16": 2, "bool": 1}


def fused_model(model: Any) -> Any:
    """The fused Relax module of an ONNX model; OpUnsupported if an operator has no kernel."""
    import tvm
    from tvm.relax import transform

    module = import_model(model)
    return tvm.transform.Sequential(
        [
            transform.AnnotateTIROpPattern(),
            transform.FuseOps(),
            transform.FuseTIR(),
            transform.DeadCodeElimination(),
        ]
    )(module)


def lower_function(function: Any, name: str) -> Printed:
    """A fused TIR function, scheduled, lowered and printed as C; as TVM made it where the schedule does not lower."""
    plain = function.with_attr("global_symbol", "main")
    try:
        return print_function(_lower(schedule_function(plain)), name)
    except RuntimeError:
        return print_function(_lower(plain), name)


def _lower(function: Any) -> Any:
    import tvm
    from tvm import s_tir, tirx

    st = s_tir.transform
    passes = [
        st.CanonicalizeLoop(), st.LowerInitBlock(), st.PlanAndUpdateBufferAllocationLocation(), st.ConvertBlocksToOpaque(),
        st.CompactBufferAllocation(), st.LowerMatchBuffer(), st.StmtSimplify(), st.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(), tirx.transform.NarrowDataType(32), st.LoopPartition(), tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(), tirx.transform.RemoveNoOp(),
    ]  # fmt: skip
    with tvm.target.Target("llvm"):
        return tvm.transform.Sequential(passes)(tvm.IRModule({"main": function}))["main"]


class _Lowering:
    def __init__(self, module: Any) -> None:
        self.module = module
        self.program = Program(origin_of_kernels="TVM", uses_float=True)
        self.buffers: dict[Any, Buffer] = {}
        self.constants: dict[Any, int] = {}
        self.printed: dict[str, tuple[str, Printed]] = {}
        # Variables that each binding reads, in order, and which binding is being lowered.
        self.uses: list[list[Any]] = []
        self.position = 0

    def size(self, struct: Any) -> int:
        total = 1
        for extent in struct.shape:
            total *= int(extent)
        dtype = str(getattr(struct, "dtype", "float32"))
        if dtype not in _ITEM:
            raise OpUnsupported("element type has no kernels", op="graph", node="", dtype=dtype, count=1)
        return total * _ITEM[dtype]

    def function(self, global_var: Any) -> tuple[str, Printed]:
        """The C kernel of a TIR function, printed once."""
        hint = str(global_var.name_hint)
        if hint not in self.printed:
            name = f"tim_tir_{len(self.printed)}"
            try:
                printed = lower_function(self.module[global_var], name)
            except Unprintable as error:
                raise OpUnsupported(
                    f"TIR construct without C: {error}", op=hint, node="", dtype="float32", count=1
                ) from error
            for number, text in enumerate(floatmath.functions(printed.math)):
                key = f"math {text.splitlines()[0]}"
                self.program.c_kernels.setdefault(key, CKernel(key, text + "\n"))
                del number
            self.program.c_kernels[name] = CKernel(name, printed.text)
            self.printed[hint] = (name, printed)
        return self.printed[hint]

    def argument(self, value: Any, size: int) -> tuple[str, Access | None, int]:
        """(C pointer, what is read, bytes of constant) of an argument of a call."""
        if type(value).__name__ == "GenericConst":
            data = np.ascontiguousarray(value.value.numpy())
            offset = self.program.constants.add(data.tobytes(), 4)
            return f"(const void *)W({offset})", None, data.nbytes
        buffer = self.buffers[value]
        return f"(void *){buffer.macro}", Access(buffer, 0, size), 0

    def output(self, arguments: list[Any], shapes: list[Any], overwritable: tuple[int, ...], size: int) -> Buffer:
        """A buffer for a result: over an argument that is read here for the last time, where the kernel allows it."""
        label = f"value {len(self.program.buffers)}"
        for position in overwritable:
            value = arguments[position]
            buffer = self.buffers.get(value)
            if buffer is None or self.size(shapes[position]) != size or buffer.size < size:
                continue
            users = [i for i, names in enumerate(self.uses) if any(self.buffers.get(v) is buffer for v in names)]
            twice = sum(self.buffers.get(v) is buffer for v in arguments) > 1
            if max(users, default=-1) <= self.position and not twice:
                buffer.tensors.append(label)
                return buffer
        return self.program.buffer(size, BufferKind.TENSOR, label)

    def own_output(self, buffer: Buffer, name: str) -> Buffer:
        """A buffer for an output: a copy where the value is an input of the model, or an output already."""
        if buffer not in self.program.inputs and buffer not in self.program.outputs:
            return buffer
        copy = self.program.buffer(buffer.size, BufferKind.TENSOR, name)
        self.program.steps.append(
            Step(
                len(self.program.steps), "copy", ("copy",),
                f"memcpy((void *){copy.macro}, (const void *){buffer.macro}, {buffer.size});",
                [Access(buffer, 0, buffer.size)], [Access(copy, 0, copy.size)],
            )
        )  # fmt: skip
        return copy

    def call(self, var: Any, call: Any) -> None:
        """A step for `var = call_tir(function, args)`; none for a reshape."""
        global_var, arguments = call.args[0], list(call.args[1].fields)
        hint = str(global_var.name_hint)
        out_size = self.size(var.struct_info if hasattr(var, "struct_info") else var.ty)
        if hint.rstrip("0123456789") in _ALIASES and len(arguments) == 1 and arguments[0] in self.buffers:
            self.buffers[var] = self.buffers[arguments[0]]
            return
        name, printed = self.function(global_var)
        pointers, reads, constant_bytes = [], [], 0
        function = self.module[global_var]
        shapes = list(function.params)
        for value, buffer in zip(arguments, shapes, strict=False):
            pointer, access, size = self.argument(value, self.size(buffer))
            pointers.append(pointer)
            constant_bytes += size
            if access is not None:
                reads.append(access)
        out = self.output(arguments, shapes, printed.overwritable, out_size)
        self.buffers[var] = out
        pointers.append(f"(void *){out.macro}")
        scratch = [self.program.workspace(size) for size in printed.workspaces]
        pointers += [f"(void *){buffer.macro}" for buffer in scratch]
        touched = [Access(buffer, 0, buffer.size) for buffer in scratch]
        self.program.steps.append(
            Step(
                len(self.program.steps), hint, (hint,), f"{name}({', '.join(pointers)});",
                reads + touched, [Access(out, 0, out_size), *touched], constant_bytes,
            )
        )  # fmt: skip


def lower_model(onnx_bytes: bytes) -> tuple[Program, list[Interface], list[Interface]]:
    """(program, inputs, outputs) of a float ONNX model with static shapes."""
    import onnx
    from tvm import relax

    model = onnx.load_from_string(onnx_bytes)
    module = fused_model(model)
    state = _Lowering(module)
    main = module["main"]
    constant_names = {initializer.name for initializer in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in constant_names]
    inputs = []
    for name, parameter in zip(names, main.params, strict=True):
        struct = parameter.struct_info if hasattr(parameter, "struct_info") else parameter.ty
        buffer = state.program.buffer(state.size(struct), BufferKind.TENSOR, name)
        state.buffers[parameter] = buffer
        state.program.inputs.append(buffer)
        inputs.append(_interface(name, struct, buffer))
    body = main.body
    bindings = [binding for block in body.blocks for binding in block.bindings]
    state.uses = [_variables(binding.value) for binding in bindings]
    state.uses.append(_variables(body.body))
    for position, binding in enumerate(bindings):
        state.position = position
        value = binding.value
        if isinstance(value, relax.Var):
            state.buffers[binding.var] = state.buffers[value]
        elif isinstance(value, relax.Tuple):
            state.buffers[binding.var] = value
        elif isinstance(value, relax.Call) and str(getattr(value.op, "name", "")) == "relax.call_tir":
            state.call(binding.var, value)
        else:
            raise OpUnsupported(
                "Relax construct is not a call of a kernel",
                op=type(value).__name__,
                node="",
                dtype="float32",
                count=1,
            )
    results = state.buffers.get(body.body, body.body)
    values = list(results.fields) if isinstance(results, relax.Tuple) else [body.body]
    outputs = []
    for described, value in zip(model.graph.output, values, strict=True):
        buffer = state.own_output(state.buffers[value], described.name)
        state.program.outputs.append(buffer)
        outputs.append(
            _interface(described.name, value.struct_info if hasattr(value, "struct_info") else value.ty, buffer)
        )
    return state.program, inputs, outputs


def _variables(value: Any) -> list[Any]:
    """Variables that a Relax expression of a binding reads."""
    kind = type(value).__name__
    if kind in ("Var", "DataflowVar"):
        return [value]
    if kind == "Tuple":
        return [variable for each in value.fields for variable in _variables(each)]
    if kind == "Call":
        return [variable for each in value.args for variable in _variables(each)]
    return []


def _interface(name: str, struct: Any, buffer: Buffer) -> Interface:
    shape = tuple(int(extent) for extent in struct.shape)
    dtype = str(struct.dtype)
    count = 1
    for extent in shape:
        count *= extent
    return Interface(name, dtype, shape, 0.0, 0, count * _ITEM[dtype], buffer)
