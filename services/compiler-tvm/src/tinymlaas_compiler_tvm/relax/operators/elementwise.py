"""Operators that compute each element from the elements at the same place: arithmetic, comparisons, activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from tinymlaas_compiler_tvm.relax.emit import (
    Converter,
    Emitter,
    Node,
    Refused,
    Value,
    choose,
    dtype_of,
    external,
    is_constant,
    literal,
    shape_of,
)

FLOAT_FUNCTIONS = {
    "Acos": "tim_acosf", "Acosh": "tim_acoshf", "Asin": "tim_asinf", "Asinh": "tim_asinhf", "Atan": "tim_atanf",
    "Atanh": "tim_atanhf", "Ceil": "tim_ceilf", "Cos": "tim_cosf", "Cosh": "tim_coshf", "Erf": "tim_erff",
    "Exp": "tim_expf", "Floor": "tim_floorf", "Log": "tim_logf", "Round": "tim_rintf", "Sigmoid": "tim_sigmoidf",
    "Sin": "tim_sinf", "Sinh": "tim_sinhf", "Softplus": "tim_softplusf", "Sqrt": "tim_sqrtf", "Tan": "tim_tanf",
    "Tanh": "tim_tanhf",
}  # fmt: skip


def f(value: float) -> Any:
    """A float literal."""
    return literal(np.float32(value), "float32")


def need_float(node: Node) -> None:
    """Refuse operands that are not float32."""
    for value in node.inputs:
        if value is not None and dtype_of(value) != "float32":
            raise Refused(f"element type {dtype_of(value)}")


def float_function(name: str) -> Converter:
    """A converter for a function of one float."""

    def convert(e: Emitter, node: Node) -> list[Value]:
        need_float(node)
        return [e.elementwise(node.op.lower(), lambda x: external(name, x), node.inputs[0])]

    return convert


def unary(body: Callable[[Any, str, Node], Any]) -> Converter:
    """A converter for a function of one scalar; `body` also gets the element type and the node."""

    def convert(e: Emitter, node: Node) -> list[Value]:
        dtype = dtype_of(node.inputs[0])
        return [e.elementwise(node.op.lower(), lambda x: body(x, dtype, node), node.inputs[0])]

    return convert


def binary(body: Callable[[Any, Any, str], Any]) -> Converter:
    """A converter for a function of two scalars of one type."""

    def convert(e: Emitter, node: Node) -> list[Value]:
        dtype = dtype_of(node.inputs[0])
        if dtype != dtype_of(node.inputs[1]):
            raise Refused(f"operands of types {dtype} and {dtype_of(node.inputs[1])}")
        return [e.elementwise(node.op.lower(), lambda a, b: body(a, b, dtype), node.inputs[0], node.inputs[1])]

    return convert


def many(body: Callable[[Any, Any, str], Any]) -> Converter:
    """A converter that folds any number of operands."""

    def convert(e: Emitter, node: Node) -> list[Value]:
        dtype = dtype_of(node.inputs[0])
        if len(node.inputs) == 1:
            return [node.inputs[0]]
        return [e.elementwise(node.op.lower(), lambda *xs: reduce(lambda a, b: body(a, b, dtype), xs), *node.inputs)]

    return convert


def minimum(a: Any, b: Any) -> Any:
    """The lesser of two."""
    from tvm import tirx

    return tirx.min(a, b)


def maximum(a: Any, b: Any) -> Any:
    """The greater of two."""
    from tvm import tirx

    return tirx.max(a, b)


def divide(a: Any, b: Any, dtype: str) -> Any:
    """Division; integers round towards zero (ONNX), and a division by zero gives zero."""
    if dtype == "float32":
        return a / b
    if dtype == "int64":
        return external("tim_div64", a, b, dtype="int64")
    wide = "int32"
    return external("tim_divi", a.astype(wide), b.astype(wide), dtype=wide).astype(dtype)


def remainder(a: Any, b: Any, dtype: str) -> Any:
    """Python's modulo: the sign of the divisor."""
    if dtype == "float32":
        return external("tim_modf", a, b)
    if dtype == "int64":
        return external("tim_mod64", a, b, dtype="int64")
    return external("tim_modi", a.astype("int32"), b.astype("int32"), dtype="int32").astype(dtype)


def modulo(e: Emitter, node: Node) -> list[Value]:
    """Mod; with `fmod` C's remainder, with the sign of the dividend."""
    dtype = dtype_of(node.inputs[0])
    a, b = node.inputs[0], node.inputs[1]
    if not node.attribute("fmod", 0):
        return [e.elementwise("mod", lambda x, y: remainder(x, y, dtype), a, b)]
    if dtype == "float32":
        return [e.elementwise("fmod", lambda x, y: external("tim_fmodf", x, y), a, b)]
    if dtype == "int64":
        return [e.elementwise("fmod", lambda x, y: x - y * divide(x, y, dtype), a, b)]
    return [e.elementwise("fmod", lambda x, y: (x - y * divide(x, y, dtype)).astype(dtype), a, b)]


def power(e: Emitter, node: Node) -> list[Value]:
    """Pow; small integer exponents that are known become products."""
    a, b = node.inputs[0], node.inputs[1]
    base, exponent = dtype_of(a), dtype_of(b)
    if is_constant(b) and b.size == 1 and base == "float32":
        fixed = float(b.reshape(-1)[0])
        if fixed == int(fixed) and 1 <= fixed <= 4:
            return [e.elementwise("pow", lambda x: reduce(lambda p, _: p * x, range(int(fixed) - 1), x), a)]
        if fixed == 0.5:
            return [e.elementwise("sqrt", lambda x: external("tim_sqrtf", x), a)]
    if base == "float32":
        return [e.elementwise("pow", lambda x, y: external("tim_powf", x, y.astype("float32")), a, b)]
    if exponent == "float32":
        return [e.elementwise("pow", lambda x, y: external("tim_powf", x.astype("float32"), y).astype(base), a, b)]
    wide = "int64"
    return [
        e.elementwise(
            "pow", lambda x, y: external("tim_powi", x.astype(wide), y.astype(wide), dtype=wide).astype(base), a, b
        )
    ]


def comparison(body: Callable[[Any, Any], Any]) -> Converter:
    """A converter for a comparison."""
    return binary(lambda a, b, _: body(a, b))


def bit_shift(e: Emitter, node: Node) -> list[Value]:
    """BitShift: by the type's width or more, nothing is left but a negative number's sign."""
    left = str(node.attribute("direction")).upper() == "LEFT"
    dtype = dtype_of(node.inputs[0])
    bits = np.dtype(dtype).itemsize * 8
    word = "int64" if bits == 64 else "int32"

    def shift(a: Any, b: Any) -> Any:
        wide, by = a.astype(word), b.astype(word)
        if left:
            return choose(by < bits, wide << by, literal(0, word)).astype(dtype)
        return (wide >> minimum(by, literal(63 if bits == 64 else 31, word))).astype(dtype)

    return [e.elementwise("shift", shift, node.inputs[0], node.inputs[1])]


def clip(e: Emitter, node: Node) -> list[Value]:
    """Clip: limits as attributes up to operator set 10, as inputs from 11 on."""
    x = node.inputs[0]
    dtype_of(x)
    low, high = node.input(1), node.input(2)
    if "min" in node.attributes:
        low = np.array(node.attributes["min"], np.float32)
    if "max" in node.attributes:
        high = np.array(node.attributes["max"], np.float32)
    if low is not None:
        x = e.elementwise("clip_low", lambda a, b: maximum(a, b), x, low)
    if high is not None:
        x = e.elementwise("clip_high", lambda a, b: minimum(a, b), x, high)
    return [x]


def cast(e: Emitter, node: Node) -> list[Value]:
    """Cast and CastLike."""
    import onnx

    if node.op == "Cast":
        want = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(node.attribute("to")))))
    else:
        want = dtype_of(node.inputs[1])
    if want not in ("float32", "int8", "uint8", "int16", "int32", "int64", "bool"):
        raise Refused(f"element type {want}")
    return [e.cast(node.inputs[0], want)]


def parametric_relu(e: Emitter, node: Node) -> list[Value]:
    """PRelu: the slope broadcasts to the input, one way."""
    if np.broadcast_shapes(shape_of(node.inputs[0]), shape_of(node.inputs[1])) != shape_of(node.inputs[0]):
        raise Refused("slope that broadcasts the input")
    dtype = dtype_of(node.inputs[0])
    zero = literal(0, dtype)
    return [e.elementwise("prelu", lambda x, s: choose(x < zero, x * s, x), node.inputs[0], node.inputs[1])]


def gelu(x: Any, dtype: str, node: Node) -> Any:
    """Gelu, exact by erf or approximated by tanh."""
    del dtype
    if str(node.attribute("approximate", "none")) == "tanh":
        inner = f(np.sqrt(2 / np.pi)) * (x + f(0.044715) * x * x * x)
        return f(0.5) * x * (f(1) + external("tim_tanhf", inner))
    return f(0.5) * x * (f(1) + external("tim_erff", x * f(np.sqrt(0.5))))


def where(e: Emitter, node: Node) -> list[Value]:
    """Where."""
    return [e.elementwise("where", choose, *node.inputs)]


def mean(e: Emitter, node: Node) -> list[Value]:
    """Mean of any number of operands."""
    need_float(node)
    share = f(1.0 / len(node.inputs))
    return [e.elementwise("mean", lambda *xs: reduce(lambda a, b: a + b, xs) * share, *node.inputs)]


def is_infinite(x: Any, dtype: str, node: Node) -> Any:
    """IsInf, of either sign or both."""
    del dtype
    up, down = x == f(np.inf), x == f(-np.inf)
    if not node.attribute("detect_positive", 1):
        return down if node.attribute("detect_negative", 1) else literal(0, "bool")
    return up | down if node.attribute("detect_negative", 1) else up


def _sign(x: Any, dtype: str, node: Node) -> Any:
    del node
    zero = literal(0, dtype)
    return choose(x > zero, literal(1, dtype), choose(x < zero, literal(-1, dtype) if dtype != "uint8" else zero, x))


def _absolute(x: Any, dtype: str, node: Node) -> Any:
    del node
    if dtype == "float32":
        return external("tim_fabsf", x)
    return x if dtype == "uint8" else choose(x < literal(0, dtype), (-x).astype(dtype), x)


def _a(node: Node, name: str, default: float) -> Any:
    return f(float(node.attribute(name, default)))


def _relu(x: Any, dtype: str, node: Node) -> Any:
    del node
    return choose(x > literal(0, dtype), x, literal(0, dtype))


def _exp(x: Any) -> Any:
    return external("tim_expf", x)


def _expm1(x: Any) -> Any:
    return external("tim_expm1f", x)


def _shrink(x: Any, dtype: str, node: Node) -> Any:
    bias, limit = float(node.attribute("bias", 0.0)), float(node.attribute("lambd", 0.5))
    if dtype != "float32":
        raise Refused(f"element type {dtype}")
    return choose(x < f(-limit), x + f(bias), choose(x > f(limit), x - f(bias), f(0)))


def _hard_sigmoid(x: Any, alpha: Any, beta: Any) -> Any:
    return maximum(f(0), minimum(f(1), alpha * x + beta))


def _selu(x: Any, dtype: str, node: Node) -> Any:
    del dtype
    alpha, gamma = _a(node, "alpha", 1.67326319217681884765625), _a(node, "gamma", 1.05070102214813232421875)
    return choose(x > f(0), gamma * x, gamma * alpha * _expm1(x))


def _swish(x: Any, dtype: str, node: Node) -> Any:
    del dtype
    return x * external("tim_sigmoidf", _a(node, "alpha", 1.0) * x)


def _mish(x: Any, dtype: str, node: Node) -> Any:
    del dtype, node
    return x * external("tim_tanhf", external("tim_softplusf", x))


def _bitwise(symbol: str) -> Converter:
    from operator import and_, or_, xor

    body = {"&": and_, "|": or_, "^": xor}[symbol]
    return binary(lambda a, b, _: body(a, b))


CONVERTERS: dict[str, Converter] = {
    **{op: float_function(name) for op, name in FLOAT_FUNCTIONS.items()},
    "Abs": unary(_absolute),
    "Add": binary(lambda a, b, _: a + b),
    "And": binary(lambda a, b, _: a & b),
    "BitShift": bit_shift,
    "BitwiseAnd": _bitwise("&"),
    "BitwiseNot": unary(lambda x, dtype, _: (literal(-1, "int32") - x.astype("int32")).astype(dtype)),
    "BitwiseOr": _bitwise("|"),
    "BitwiseXor": _bitwise("^"),
    "Cast": cast,
    "CastLike": cast,
    "Celu": unary(lambda x, _, n: choose(x > f(0), x, _a(n, "alpha", 1.0) * _expm1(x / _a(n, "alpha", 1.0)))),
    "Clip": clip,
    "Div": binary(divide),
    "Elu": unary(lambda x, _, n: choose(x > f(0), x, _a(n, "alpha", 1.0) * _expm1(x))),
    "Equal": comparison(lambda a, b: a == b),
    "Gelu": unary(gelu),
    "Greater": comparison(lambda a, b: a > b),
    "GreaterOrEqual": comparison(lambda a, b: a >= b),
    "HardSigmoid": unary(lambda x, _, n: _hard_sigmoid(x, _a(n, "alpha", 0.2), _a(n, "beta", 0.5))),
    "HardSwish": unary(lambda x, _, n: x * _hard_sigmoid(x, f(1 / 6), f(0.5))),
    "IsInf": unary(is_infinite),
    "IsNaN": unary(lambda x, _, n: external("tim_isnanf", x, dtype="bool")),
    "LeakyRelu": unary(lambda x, _, n: choose(x < f(0), x * _a(n, "alpha", 0.01), x)),
    "Less": comparison(lambda a, b: a < b),
    "LessOrEqual": comparison(lambda a, b: a <= b),
    "Max": many(lambda a, b, _: maximum(a, b)),
    "Mean": mean,
    "Min": many(lambda a, b, _: minimum(a, b)),
    "Mish": unary(_mish),
    "Mod": modulo,
    "Mul": binary(lambda a, b, _: a * b),
    "Neg": unary(lambda x, dtype, _: (-x).astype(dtype)),
    "Not": unary(lambda x, _, n: choose(x, literal(0, "bool"), literal(1, "bool"))),
    "Or": binary(lambda a, b, _: a | b),
    "PRelu": parametric_relu,
    "Pow": power,
    "Reciprocal": unary(lambda x, _, n: f(1) / x),
    "Relu": unary(_relu),
    "Selu": unary(_selu),
    "Shrink": unary(_shrink),
    "Sign": unary(_sign),
    "Softsign": unary(lambda x, _, n: x / (f(1) + external("tim_fabsf", x))),
    "Sub": binary(lambda a, b, _: a - b),
    "Sum": many(lambda a, b, _: a + b),
    "Swish": unary(_swish),
    "ThresholdedRelu": unary(lambda x, _, n: choose(x > _a(n, "alpha", 1.0), x, f(0))),
    "Where": where,
    "Xor": binary(lambda a, b, _: a != b),
}
