"""Errors of the model kit.

ModelKitError
├── MalformedModel        the file is wrong, whoever compiles it            INVALID_ARGUMENT    MODEL_INVALID
└── UnsupportedOperator   operators that the graph cannot express           FAILED_PRECONDITION OP_UNSUPPORTED
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_TEXT = 200


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """Text from a file made safe for logs and messages: control characters escaped, cut at `limit` characters."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: limit + 1])
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


class ModelKitError(Exception):
    """Base of all errors: `code` is a gRPC status name, `reason` a stable word, `help` says what to do next."""

    code = "INVALID_ARGUMENT"
    reason = "MODEL_INVALID"
    help = "Check the model file with the tool that made it."

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        if help is not None:
            self.help = help


class MalformedModel(ModelKitError):
    """The file is no model or breaks its format's rules; `problem` is one word as in the table of broken files."""

    def __init__(self, problem: str, detail: str, where: str = "") -> None:
        where = printable(where)
        detail = printable(detail)
        metadata = {"problem": problem, "where": where, "detail": detail}
        super().__init__(f"{problem}: {detail}" + (f" (at {where})" if where else ""), metadata)
        self.problem = problem


@dataclass(frozen=True)
class OffendingOperator:
    """One kind of node that cannot be expressed: operator, first such node, element type, why, and how many there
    are."""

    op: str
    node: str
    dtype: str
    detail: str
    count: int = 1


class UnsupportedOperator(ModelKitError):
    """Operators that cannot be expressed; `operators` lists all of them, not only the first."""

    code = "FAILED_PRECONDITION"
    reason = "OP_UNSUPPORTED"
    help = "Change the model so that it does without these operators, or use another compiler."

    def __init__(self, operators: Iterable[OffendingOperator]) -> None:
        merged: dict[tuple[str, str, str], OffendingOperator] = {}
        for o in operators:
            safe = OffendingOperator(
                printable(o.op), printable(o.node), printable(o.dtype), printable(o.detail), o.count
            )
            key = (safe.op, safe.dtype, safe.detail)
            seen = merged.get(key)
            merged[key] = (
                safe
                if seen is None
                else OffendingOperator(seen.op, seen.node, seen.dtype, seen.detail, seen.count + safe.count)
            )
        self.operators: tuple[OffendingOperator, ...] = tuple(merged.values())
        first = self.operators[0]
        listed = ", ".join(f"{o.op} ({o.count}×, {o.dtype}): {o.detail}" for o in self.operators[:8])
        more = f" and {len(self.operators) - 8} more kinds" if len(self.operators) > 8 else ""
        metadata = {
            "op": first.op,
            "node": first.node,
            "dtype": first.dtype,
            "detail": first.detail,
            "count": str(sum(o.count for o in self.operators)),
            "ops": ",".join(sorted({o.op for o in self.operators}))[:1000],
        }
        super().__init__(f"not supported: {listed}{more}", metadata)
