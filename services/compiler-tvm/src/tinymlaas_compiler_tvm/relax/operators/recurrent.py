"""LSTM, GRU and RNN: unrolled over a static length; the kernels of all steps are one, since the step's number is an operand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinymlaas_compiler_tvm.relax.emit import (
    Converter,
    Emitter,
    Node,
    Refused,
    Value,
    choose,
    compute,
    external,
    is_constant,
    reduce_axis,
    reducer,
    shape_of,
)
from tinymlaas_compiler_tvm.relax.operators.elementwise import f, maximum, minimum
from tinymlaas_compiler_tvm.relax.operators.linear import dense
from tinymlaas_compiler_tvm.relax.operators.movement import concatenate, take_slice

Scalar = Callable[[Any], Any]
# Steps of an unrolled sequence; each costs a few calls in flash.
_LONGEST = 512


def _activation(name: str, alpha: float | None, beta: float | None, clip: float | None) -> Scalar:
    def bounded(x: Any) -> Any:
        return x if clip is None else maximum(f(-clip), minimum(f(clip), x))

    def of(default: float, given: float | None) -> Any:
        return f(default if given is None else given)

    functions: dict[str, Scalar] = {
        "sigmoid": lambda x: external("tim_sigmoidf", x),
        "tanh": lambda x: external("tim_tanhf", x),
        "relu": lambda x: maximum(f(0), x),
        "affine": lambda x: of(1.0, alpha) * x + of(0.0, beta),
        "leakyrelu": lambda x: choose(x < f(0), of(0.01, alpha) * x, x),
        "thresholdedrelu": lambda x: choose(x > of(1.0, alpha), x, f(0)),
        "scaledtanh": lambda x: of(1.0, alpha) * external("tim_tanhf", of(1.0, beta) * x),
        "hardsigmoid": lambda x: maximum(f(0), minimum(f(1), of(0.2, alpha) * x + of(0.5, beta))),
        "elu": lambda x: choose(x > f(0), x, of(1.0, alpha) * external("tim_expm1f", x)),
        "softsign": lambda x: x / (f(1) + external("tim_fabsf", x)),
        "softplus": lambda x: external("tim_softplusf", x),
    }
    if name.lower() not in functions:
        raise Refused(f"activation {name}")
    chosen = functions[name.lower()]
    return lambda x: chosen(bounded(x))


class _Sequence:
    """What the three operators share: operands of a direction, and the walk over the steps."""

    def __init__(self, e: Emitter, node: Node, gates: int, defaults: Sequence[str]) -> None:
        self.e, self.node, self.gates = e, node, gates
        self.batch_first = bool(node.attribute("layout", 0))
        x = node.inputs[0]
        self.x = e.transpose(x, (1, 0, 2)) if self.batch_first else x
        self.steps, self.batch, _ = shape_of(self.x)
        if self.steps > _LONGEST:
            raise Refused(f"a sequence of {self.steps} steps")
        self.directions = shape_of(node.inputs[1])[0]
        self.hidden = int(node.attribute("hidden_size", shape_of(node.inputs[2])[2]))
        names = [
            name.decode() if isinstance(name, bytes) else str(name) for name in node.attribute("activations") or []
        ]
        names = names or list(defaults) * self.directions
        alphas, betas = list(node.attribute("activation_alpha") or []), list(node.attribute("activation_beta") or [])
        clip = node.attribute("clip")
        # Parameters are listed for those functions only that have them, in order.
        self.functions = []
        for name in names:
            alpha = alphas.pop(0) if alphas and name.lower() in _WITH_ALPHA else None
            beta = betas.pop(0) if betas and name.lower() in _WITH_BETA else None
            self.functions.append(_activation(name, alpha, beta, float(clip) if clip else None))
        self.per_direction = len(defaults)
        lengths = node.input(4)
        self.lengths = None
        if lengths is not None and not (is_constant(lengths) and (lengths == self.steps).all()):
            self.lengths = e.reshape(lengths, (self.batch, 1))

    def backward(self, direction: int) -> bool:
        """Whether a direction walks from the end."""
        kind = str(self.node.attribute("direction", "forward"))
        return kind == "reverse" or (kind == "bidirectional" and direction == 1)

    def part(self, place: int, direction: int) -> Value | None:
        """An operand's slice for a direction, without that axis."""
        value = self.node.input(place)
        if value is None:
            return None
        if self.batch_first and place in (5, 6):
            value = self.e.transpose(value, (1, 0, 2))
        taken = take_slice(self.e, value, {0: (direction, 1, 1)})
        return self.e.reshape(taken, shape_of(taken)[1:])

    def state(self, place: int, direction: int) -> Value:
        """The initial state, zeros if not given."""
        given = self.part(place, direction)
        return np.zeros((self.batch, self.hidden), np.float32) if given is None else given

    def projected(self, direction: int, biases: Sequence[Value]) -> Value:
        """x times W for all steps at once, with biases: (steps, batch, gates * hidden)."""
        e = self.e
        rows = e.reshape(self.x, (self.steps * self.batch, shape_of(self.x)[2]))
        y = dense(e, rows, self.part(1, direction))
        for bias in biases:
            y = e.elementwise("add", lambda a, b: a + b, y, bias)
        return e.reshape(y, (self.steps, self.batch, self.gates * self.hidden))

    def biases(self, direction: int) -> tuple[Value | None, Value | None]:
        """(Wb, Rb) of a direction."""
        both = self.part(3, direction)
        if both is None:
            return None, None
        count = self.gates * self.hidden
        return take_slice(self.e, both, {0: (0, 1, count)}), take_slice(self.e, both, {0: (count, 1, count)})

    def given_biases(self, direction: int) -> list[Value]:
        """Those of (Wb, Rb) that there are."""
        return [bias for bias in self.biases(direction) if bias is not None]

    def gate(self, wide: Value, number: int, step: int | None = None) -> Value:
        """One gate of (batch, gates * hidden), or of a step of (steps, batch, gates * hidden)."""
        hidden = self.hidden
        if step is None:
            return take_slice(self.e, wide, {1: (number * hidden, 1, hidden)})

        def build(t: Any, s: Any) -> Any:
            return compute((self.batch, hidden), lambda b, h: t(s(0), b, h + number * hidden), "gate")

        return self.e.kernel("gate", build, wide, np.array([step], np.int32))

    def recurrent(self, h: Value, r: Value) -> Value:
        """h (batch, hidden) times the transpose of r."""
        if is_constant(h) and not h.any():
            return np.zeros((self.batch, shape_of(r)[0]), np.float32)
        hidden, count = self.hidden, shape_of(r)[0]

        def build(x: Any, w: Any) -> Any:
            k = reduce_axis(hidden)
            return compute((self.batch, count), lambda b, c: reducer("sum")(x(b, k.var) * w(c, k.var), axis=k), "dense")

        return self.e.kernel("dense", build, h, r)

    def walk(
        self, direction: int, states: list[Value], step: Callable[[int, list[Value]], list[Value]]
    ) -> tuple[list[Value], list[Value]]:
        """(outputs in the order of time, last states); steps past a sequence's length leave its state and give zeros."""
        e = self.e
        outputs: list[Value] = [None] * self.steps
        order = range(self.steps)
        for t in reversed(order) if self.backward(direction) else order:
            new = step(t, states)
            if self.lengths is None:
                states = new
                outputs[t] = new[0]
            else:
                number = np.array([t], np.int32)
                states = [
                    e.elementwise("hold", lambda n, m, a, b: choose(n < m, a, b), number, self.lengths, a, b)
                    for a, b in zip(new, states, strict=True)
                ]
                outputs[t] = e.elementwise("mask", lambda n, m, a: choose(n < m, a, f(0)), number, self.lengths, new[0])
        return outputs, states

    def results(self, outputs: list[list[Value]], states: list[list[Value]]) -> list[Value]:
        """Y, and the last states of all directions, in the layout asked for."""
        e = self.e
        found: list[Value] = []
        rows = [concatenate(e, [e.reshape(y, (1, 1, self.batch, self.hidden)) for y in each], 0) for each in outputs]
        y = concatenate(e, rows, 1)
        found.append(e.transpose(y, (2, 0, 1, 3)) if self.batch_first else y)
        for number in range(len(states[0])):
            last = concatenate(e, [e.reshape(each[number], (1, self.batch, self.hidden)) for each in states], 0)
            found.append(e.transpose(last, (1, 0, 2)) if self.batch_first else last)
        return found[: self.node.outputs]


_WITH_ALPHA = frozenset(("affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"))
_WITH_BETA = frozenset(("affine", "scaledtanh", "hardsigmoid"))


def rnn(e: Emitter, node: Node) -> list[Value]:
    """RNN: h = f(x W + h R + Wb + Rb)."""
    s = _Sequence(e, node, 1, ("Tanh",))
    outputs, states = [], []
    for d in range(s.directions):
        act = s.functions[d]
        gates = s.projected(d, s.given_biases(d))
        r = s.part(2, d)

        def step(t: int, given: list[Value], gates: Value = gates, r: Value = r, act: Scalar = act) -> list[Value]:
            return [e.elementwise("rnn", lambda a, b: act(a + b), s.gate(gates, 0, t), s.recurrent(given[0], r))]

        y, last = s.walk(d, [s.state(5, d)], step)
        outputs.append(y)
        states.append(last)
    return s.results(outputs, states)


def gru(e: Emitter, node: Node) -> list[Value]:
    """GRU, gates in the order z, r, h; `linear_before_reset` multiplies after the recurrent product."""
    s = _Sequence(e, node, 3, ("Sigmoid", "Tanh"))
    after = bool(node.attribute("linear_before_reset", 0))
    outputs, states = [], []
    for d in range(s.directions):
        act, new = s.functions[2 * d], s.functions[2 * d + 1]
        wb, rb = s.biases(d)
        gates = s.projected(d, [] if wb is None else [wb])
        r = s.part(2, d)
        hidden = s.hidden
        rest = take_slice(e, r, {0: (0, 1, 2 * hidden)})
        last_rows = take_slice(e, r, {0: (2 * hidden, 1, hidden)})
        bias = np.zeros(3 * hidden, np.float32) if rb is None else rb
        first_bias = take_slice(e, bias, {0: (0, 1, 2 * hidden)})
        last_bias = take_slice(e, bias, {0: (2 * hidden, 1, hidden)})

        def step(
            t: int, given: list[Value], act: Scalar = act, new: Scalar = new, gates: Value = gates,
            rest: Value = rest, last_rows: Value = last_rows, first_bias: Value = first_bias, last_bias: Value = last_bias,
        ) -> list[Value]:  # fmt: skip
            h = given[0]
            both = _added(e, s.recurrent(h, rest), first_bias)
            z = e.elementwise("gate_z", lambda a, b: act(a + b), s.gate(gates, 0, t), s.gate(both, 0))
            reset = e.elementwise("gate_r", lambda a, b: act(a + b), s.gate(gates, 1, t), s.gate(both, 1))
            if after:
                inner = _added(e, s.recurrent(h, last_rows), last_bias)
                n = e.elementwise("new", lambda a, q, b: new(a + q * b), s.gate(gates, 2, t), reset, inner)
            else:
                held = e.elementwise("reset", lambda a, b: a * b, reset, h)
                inner = _added(e, s.recurrent(held, last_rows), last_bias)
                n = e.elementwise("new", lambda a, b: new(a + b), s.gate(gates, 2, t), inner)
            return [e.elementwise("state", lambda a, b, c: (f(1) - a) * b + a * c, z, n, h)]

        y, last = s.walk(d, [s.state(5, d)], step)
        outputs.append(y)
        states.append(last)
    return s.results(outputs, states)


def _added(e: Emitter, a: Value, b: Value) -> Value:
    if is_constant(a) and is_constant(b):
        return a + b
    return e.elementwise("add", lambda x, y: x + y, a, b)


def lstm(e: Emitter, node: Node) -> list[Value]:
    """LSTM, gates in the order i, o, f, c; peepholes in the order i, o, f."""
    s = _Sequence(e, node, 4, ("Sigmoid", "Tanh", "Tanh"))
    outputs, states = [], []
    coupled = bool(node.attribute("input_forget", 0))
    for d in range(s.directions):
        act, cell, out = s.functions[3 * d : 3 * d + 3]
        gates = s.projected(d, s.given_biases(d))
        r = s.part(2, d)
        peep = s.part(7, d)
        p = [
            np.zeros((1, s.hidden), np.float32)
            if peep is None
            else e.reshape(take_slice(e, peep, {0: (number * s.hidden, 1, s.hidden)}), (1, s.hidden))
            for number in range(3)
        ]

        def step(
            t: int, given: list[Value], act: Scalar = act, cell: Scalar = cell, out: Scalar = out,
            gates: Value = gates, r: Value = r, p: list[Value] = p,
        ) -> list[Value]:  # fmt: skip
            h, c = given
            inner = s.recurrent(h, r)

            def gate(place: int, state: Value, peephole: Value) -> Value:
                sides = (s.gate(gates, place, t), s.gate(inner, place))
                return e.elementwise("gate", lambda a, b, w, q: act(a + b + w * q), *sides, peephole, state)

            i = gate(0, c, p[0])
            forget = e.elementwise("coupled", lambda a: f(1) - a, i) if coupled else gate(2, c, p[2])
            fresh = e.elementwise("cell", lambda a, b: cell(a + b), s.gate(gates, 3, t), s.gate(inner, 3))
            new = e.elementwise("state", lambda a, b, w, q: a * b + w * q, forget, c, i, fresh)
            o = gate(1, new, p[1])
            return [e.elementwise("hidden", lambda a, b: a * out(b), o, new), new]

        y, last = s.walk(d, [s.state(5, d), s.state(6, d)], step)
        outputs.append(y)
        states.append(last)
    return s.results(outputs, states)


CONVERTERS: dict[str, Converter] = {"GRU": gru, "LSTM": lstm, "RNN": rnn}
