"""Arguments of Execute (LwM2M Core TS 1.1, clause 6.4.5): `0='7',1`."""

from __future__ import annotations

import re

from .values import CodecError

_ARGUMENT = re.compile(r"([0-9])(?:='([!#-&(-\[\]-~]*)')?")
MAX_BYTES = 256


def parse_arguments(payload: bytes) -> dict[int, str]:
    """Arguments by digit, "" for one without a value; `CodecError` where malformed."""
    if not payload:
        return {}
    if len(payload) > MAX_BYTES or not payload.isascii():
        raise CodecError("arguments", "are too long or not ASCII")
    found: dict[int, str] = {}
    for part in payload.decode("ascii").split(","):
        match = _ARGUMENT.fullmatch(part)
        if not match:
            raise CodecError("arguments", f"{part[:40]!r} is malformed")
        digit = int(match[1])
        if digit in found:
            raise CodecError("arguments", f"{digit} occurs twice")
        found[digit] = match[2] or ""
    return found


def format_arguments(arguments: dict[int, str]) -> bytes:
    """Payload of an Execute with these arguments."""
    return ",".join(
        f"{digit}='{value}'" if value else str(digit) for digit, value in sorted(arguments.items())
    ).encode()
