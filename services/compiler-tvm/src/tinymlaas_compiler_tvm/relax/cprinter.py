"""Lowered TIR as C: exact float constants (hexadecimal), generated names, buffers over 256 bytes as workspaces.

A function's small buffers become local arrays, which clang keeps in registers once loops over them are unrolled. Index
expressions are 32 bits wide, values have the types that TIR gives them; what the printer doesn't know is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_LOCAL_LIMIT = 256
_TYPES = {
    "float32": "float", "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t", "int32": "int32_t",
    "uint32": "uint32_t", "int64": "int64_t", "bool": "uint8_t",
}  # fmt: skip
_NARROW = frozenset(("int8", "uint8", "int16", "uint16"))
_BINARY = {
    "Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "EQ": "==", "NE": "!=", "LT": "<", "LE": "<=", "GT": ">", "GE": ">=",
    "And": "&&", "Or": "||", "BitwiseAnd": "&", "BitwiseOr": "|", "BitwiseXor": "^", "LShift": "<<", "RShift": ">>",
}  # fmt: skip
_MATH = {
    "exp": "tim_expf", "tanh": "tim_tanhf", "sqrt": "tim_sqrtf", "sigmoid": "tim_sigmoidf", "log": "tim_logf",
    "floor": "tim_floorf", "ceil": "tim_ceilf", "nearbyint": "tim_rintf", "round": "tim_rintf", "fabs": "tim_fabsf",
    "erf": "tim_erff", "rsqrt": "tim_rsqrtf", "pow": "tim_powf", "sin": "tim_sinf", "cos": "tim_cosf",
}  # fmt: skip


class Unprintable(Exception):
    """A construct of TIR that has no C here; the text names it."""


@dataclass
class Printed:
    """A C function: its text, the workspaces that it takes as further pointers (bytes each), and math that it calls.

    `overwritable` holds the positions of parameters that the output may lie over: each of their values is read only by the
    statement that writes the output at the same index.
    """

    text: str
    workspaces: list[int] = field(default_factory=list)
    math: set[str] = field(default_factory=set)
    overwritable: tuple[int, ...] = ()


class _Printer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[Any, str] = {}
        self.workspaces: list[tuple[str, str, int]] = []
        self.math: set[str] = set()
        # For each pointer read: the (pointer, index) that the reading statement writes, and the index read.
        self.reads: dict[str, set[tuple[str, str, str]]] = {}
        self.writing: tuple[str, str] = ("", "")
        # How often each pointer is stored to, by the extents of the loops around.
        self.stores: dict[str, int] = {}
        self.turns = 1

    def name(self, var: Any) -> str:
        if var not in self.names:
            self.names[var] = f"v{len(self.names)}"
        return self.names[var]

    def ctype(self, dtype: str) -> str:
        if str(dtype) not in _TYPES:
            raise Unprintable(f"element type {dtype}")
        return _TYPES[str(dtype)]

    def expr(self, e: Any) -> str:
        kind = type(e).__name__
        if kind == "IntImm":
            return _integer(int(e.value))
        if kind == "FloatImm":
            return self._float(float(e.value), _dtype(e))
        if kind in ("Var", "SizeVar"):
            return self.name(e)
        if kind in _BINARY:
            text = f"({self.expr(e.a)} {_BINARY[kind]} {self.expr(e.b)})"
            # C computes narrow types in 32 bits: back to what wraps.
            return f"(({_TYPES[_dtype(e)]}){text})" if _dtype(e) in _NARROW else text
        if kind in ("FloorDiv", "FloorMod", "Mod"):
            helper = {"FloorDiv": "tim_floordiv", "FloorMod": "tim_floormod", "Mod": "tim_mod"}[kind]
            # Of indices always: values are divided by functions of their own.
            self.math.add(helper)
            return f"{helper}({self.expr(e.a)}, {self.expr(e.b)})"
        if kind in ("Min", "Max"):
            helper = f"tim_{kind.lower()}{'f' if _dtype(e) == 'float32' else '64' if _wide(e) else ''}"
            self.math.add(helper)
            return f"{helper}({self.expr(e.a)}, {self.expr(e.b)})"
        if kind == "BitwiseNot":
            return f"(({self.ctype(_dtype(e))})~{self.expr(e.a)})"
        if kind == "Not":
            return f"(!{self.expr(e.a)})"
        if kind == "Select":
            return f"({self.expr(e.condition)} ? {self.expr(e.true_value)} : {self.expr(e.false_value)})"
        if kind == "Cast":
            return f"(({self.ctype(_dtype(e))}){self.expr(e.value)})"
        if kind == "StringImm":
            raise Unprintable("text")
        if kind in ("BufferLoad", "TensorLoad"):
            if len(e.indices) != 1:
                raise Unprintable("load with several indices")
            pointer = self.name(e.source if kind == "TensorLoad" else e.buffer)
            index = self.expr(e.indices[0])
            self.reads.setdefault(pointer, set()).add((*self.writing, index))
            return f"{pointer}[{index}]"
        if kind == "Let":
            raise Unprintable("let expression")
        if kind == "Call":
            return self._call(e)
        raise Unprintable(kind)

    def _float(self, value: float, dtype: str) -> str:
        if dtype != "float32":
            raise Unprintable(f"constant of type {dtype}")
        if value != value:
            return '__builtin_nanf("")'
        if value in (float("inf"), float("-inf")):
            return "(-__builtin_inff())" if value < 0 else "__builtin_inff()"
        return f"({value.hex()}f)"

    def _call(self, e: Any) -> str:
        op = str(getattr(e.op, "name", e.op)).split(".")[-1]
        args = list(e.args)
        if op == "if_then_else":
            return f"({self.expr(args[0])} ? {self.expr(args[1])} : {self.expr(args[2])})"
        if op in ("call_pure_extern", "call_extern"):
            name = str(args[0].value)
            self.math.add(name)
            return f"{name}({', '.join(self.expr(a) for a in args[1:])})"
        if op == "bitwise_not":
            return f"(({self.ctype(_dtype(e))})~{self.expr(args[0])})"
        if op == "likely":
            return self.expr(args[0])
        binary = {"bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^", "shift_left": "<<", "shift_right": ">>"}
        if op in binary:
            text = f"({self.expr(args[0])} {binary[op]} {self.expr(args[1])})"
            return f"(({_TYPES[_dtype(e)]}){text})" if _dtype(e) in _NARROW else text
        if op in _MATH and _dtype(e) == "float32":
            self.math.add(_MATH[op])
            return f"{_MATH[op]}({', '.join(self.expr(a) for a in args)})"
        raise Unprintable(f"call of {op}")

    def stmt(self, s: Any, indent: str) -> None:
        kind = type(s).__name__
        if kind == "SeqStmt":
            for each in s.seq:
                self.stmt(each, indent)
        elif kind == "For":
            var, low = self.name(s.loop_var), self.expr(s.min)
            self.lines.append(f"{indent}for (int32_t {var} = {low}; {var} < {low} + {self.expr(s.extent)}; ++{var}) {{")
            around, extent = self.turns, getattr(s.extent, "value", None)
            self.turns *= int(extent) if extent is not None else 1 << 40
            self.stmt(s.body, indent + "  ")
            self.turns = around
            self.lines.append(f"{indent}}}")
        elif kind == "IfThenElse":
            self.lines.append(f"{indent}if ({self.expr(s.condition)}) {{")
            self.stmt(s.then_case, indent + "  ")
            if s.else_case is not None:
                self.lines.append(f"{indent}}} else {{")
                self.stmt(s.else_case, indent + "  ")
            self.lines.append(f"{indent}}}")
        elif kind == "BufferStore":
            if len(s.indices) != 1:
                raise Unprintable("store with several indices")
            pointer, index = self.name(s.buffer), self.expr(s.indices[0])
            self.writing = (pointer, index)
            self.stores[pointer] = self.stores.get(pointer, 0) + self.turns
            self.lines.append(f"{indent}{pointer}[{index}] = {self.expr(s.value)};")
            self.writing = ("", "")
        elif kind == "AllocBuffer":
            self._allocate(s.buffer, indent)
            self._body(s, indent)
        elif kind == "DeclBuffer":
            self._alias(s)
            self._body(s, indent)
        elif kind in ("Bind", "LetStmt"):
            self.lines.append(f"{indent}const {self.ctype(_dtype(s.var))} {self.name(s.var)} = {self.expr(s.value)};")
            self._body(s, indent)
        elif kind == "AttrStmt":
            self._body(s, indent)
        elif kind == "Evaluate":
            pass
        else:
            raise Unprintable(kind)

    def _body(self, s: Any, indent: str) -> None:
        body = getattr(s, "body", None)
        if body is not None:
            self.stmt(body, indent)

    def _alias(self, s: Any) -> None:
        """A flat view of a buffer: the same pointer under the same name."""
        source = s.data
        while type(source).__name__ == "Call":
            source = source.args[0]
        if _dtype(s.buffer) != _dtype(source):
            raise Unprintable("view of another element type")
        self.names[s.buffer] = self.name(source)

    def _allocate(self, buffer: Any, indent: str) -> None:
        elements = 1
        for extent in buffer.shape:
            elements *= int(extent)
        ctype, name = self.ctype(_dtype(buffer)), self.name(buffer)
        size = elements * _ITEM[ctype]
        if size <= _LOCAL_LIMIT:
            self.lines.append(f"{indent}{ctype} {name}[{elements}];")
        else:
            self.workspaces.append((ctype, name, size))


def _integer(value: int) -> str:
    if -(1 << 31) < value < 1 << 31:
        return str(value) if value >= 0 else f"({value})"
    return f"({value + 1}ll - 1)" if value == -(1 << 63) else f"({value}ll)"


def _wide(e: Any) -> bool:
    """Whether a Min or Max is of 64 bits."""
    return _dtype(e) == "int64"


_ITEM = {"float": 4, "int32_t": 4, "uint32_t": 4, "int64_t": 8, "int16_t": 2, "uint16_t": 2, "int8_t": 1, "uint8_t": 1}


def _dtype(e: Any) -> str:
    dtype = getattr(e, "dtype", None)
    if dtype is None:
        dtype = e.ty.dtype
    return str(dtype)


def _elements(buffer: Any) -> int:
    elements = 1
    for extent in buffer.shape:
        elements *= int(extent)
    return elements


def print_function(function: Any, name: str) -> Printed:
    """`function`, lowered and flat, as a C function `name(buffers in order of the parameters, then workspaces)`."""
    printer = _Printer()
    buffers = list(function.params)
    names = [printer.name(buffer) for buffer in buffers]
    printer.stmt(function.body, "  ")
    out = len(buffers) - 1
    # Written once each and never read: then a value read by its own store is still the argument's.
    once = printer.stores.get(names[out], 0) == _elements(buffers[out]) and names[out] not in printer.reads
    overwritable = tuple(
        position
        for position, (buffer, variable) in enumerate(zip(buffers, names, strict=True))
        if once
        and position != out
        and _dtype(buffer) == _dtype(buffers[out])
        and all(target == names[out] and index == read for target, index, read in printer.reads.get(variable, ()))
    )
    parameters = []
    for position, buffer in enumerate(buffers):
        const = "" if position == out else "const "
        # `restrict` would promise that the output lies elsewhere.
        restrict = "" if overwritable and (position == out or position in overwritable) else "restrict "
        parameters.append(f"{const}{printer.ctype(_dtype(buffer))} *{restrict}{names[position]}")
    for ctype, variable, _ in printer.workspaces:
        parameters.append(f"{ctype} *restrict {variable}")
    body = "\n".join(printer.lines)
    text = f"static NOINLINE void {name}({', '.join(parameters)}) {{\n{body}\n}}\n"
    return Printed(text, [size for _, _, size in printer.workspaces], printer.math, overwritable)
