"""Hostile bytes for every decoder of the LwM2M interface: mutations of valid messages, the same ones for the same seed.

Nothing but the decoder's own error may come out, no input may take long, and the process's memory is capped.
"""

from __future__ import annotations

import random
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiocoap
from aiocoap.error import UnparsableMessage

from tinymlaas_lwm2m import (
    CodecError,
    Format,
    Kind,
    MlRes,
    Path,
    SoftwareRes,
    Values,
    decode,
    decode_composite,
    decode_paths,
    encode,
    encode_composite,
    encode_paths,
    format_arguments,
    ml,
    parse_discovery,
    parse_registration,
    software,
)
from tinymlaas_lwm2m.execute import parse_arguments
from tinymlaas_lwm2m.text import decode as decode_text
from tinymlaas_lwm2m_bridge import BridgeError
from tinymlaas_lwm2m_bridge.coap.packets import parse_request, plausible
from tinymlaas_lwm2m_bridge.core.registration import parse_register, parse_update

MAX_INPUT = 20_000
HANG_S = 10
MEMORY_BYTES = 1 << 30
"""Address space that may be added while fuzzing; a decoder that wants more gets MemoryError, which fails."""

VALUES: Values = {
    Path(3, 0, 0): "Maker",
    Path(3, 0, 9): 87,
    Path(3, 0, 11, 0): 0,
    Path(3, 0, 11, 1): 3,
    software(0, SoftwareRes.UPDATE_STATE): 3,
    software(1, SoftwareRes.ACTIVATION_STATE): True,
    ml(MlRes.MODULE_DIGEST, 0): bytes(range(32)),
    ml(MlRes.ISA_FEATURES, 0): "thumb2",
    ml(MlRes.RAM_TOTAL): 262_144,
    Path(3303, 0, 5700): -21.5,
}
BASES = (Path(3, 0), Path(9), Path(42769, 0), Path(3303, 0, 5700), Path(3, 0, 11), Path(3, 0, 11, 1))
LINKS = (
    b'</>;rt="oma.lwm2m";ct="60 110 112 11542 11544",</1/0>,</3/0>,</9/0>,</9/1>,</42769/0>;ver=1.0',
    b"</3>;ver=1.1,</3/0>,</3303/0>;pmin=1;pmax=60,</3/0/11>;dim=2",
)


@dataclass(frozen=True)
class Target:
    """One decoder, valid inputs to begin with, and the errors that it may raise."""

    name: str
    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    allowed: tuple[type[Exception], ...] = (CodecError,)


@dataclass
class Report:
    """What came of fuzzing one target; `failures` are (input, what was raised instead of an allowed error).

    `slowest_s` is processor time, so that other work on the machine does not count.
    """

    name: str
    inputs: int = 0
    accepted: int = 0
    slowest_s: float = 0.0
    slowest: bytes = b""
    failures: list[tuple[bytes, str]] = field(default_factory=list)


def targets() -> list[Target]:
    """All decoders that read what a device or anybody else on the network sent."""
    found = [
        Target("CoAP, short way", parse_request, _packets(), ()),
        Target("CoAP, aiocoap", _long_way, _packets(), (UnparsableMessage, UnicodeDecodeError)),
        Target("link format, registration", parse_registration, LINKS),
        Target("link format, discovery", parse_discovery, LINKS),
        Target("execute arguments", parse_arguments, (format_arguments({0: "7", 1: "a b"}), b"0='x',1,2='y'")),
        Target(
            "registration parameters", _parameters, (b"ep=node-1&lt=60&lwm2m=1.1&b=UQ&Q", b"lt=86400"), (BridgeError,)
        ),
        Target("text", _text, (b"87", b"-21.5e3", b"1", b"3:0", b"aGVsbG8=")),
    ]
    for content_format in (Format.TLV, Format.SENML_JSON, Format.SENML_CBOR, Format.LWM2M_CBOR, Format.CBOR):
        found.append(Target(content_format.name, _reader(content_format), _seeds(content_format)))
    for content_format in (Format.SENML_JSON, Format.SENML_CBOR, Format.LWM2M_CBOR):
        seeds = (encode_composite(content_format, VALUES),)
        found.append(Target(f"{content_format.name}, composite", _composite(content_format), seeds))
    for content_format in (Format.SENML_JSON, Format.SENML_CBOR):
        seeds = (encode_paths(content_format, BASES),)
        found.append(Target(f"{content_format.name}, paths", _paths(content_format), seeds))
    return found


def fuzz(target: Target, count: int, seed: int) -> Report:
    """Run one target on `count` inputs, first its seeds as they are; gives up after 20 failures."""
    source = random.Random(f"{seed}/{target.name}")
    report = Report(target.name)
    with _bounded():
        for data in _inputs(target.seeds, source, count):
            report.inputs += 1
            signal.setitimer(signal.ITIMER_VIRTUAL, HANG_S)
            began = time.process_time()
            try:
                target.run(data)
                report.accepted += 1
            except target.allowed:
                pass
            except Exception as error:
                report.failures.append((data, f"{type(error).__name__}: {error}"))
                if len(report.failures) >= 20:
                    break
            spent = time.process_time() - began
            if spent > report.slowest_s:
                report.slowest_s, report.slowest = spent, data
    return report


@contextmanager
def _bounded() -> Iterator[None]:
    """Cap the memory of this process, and make an input that hangs raise TimeoutError (see `fuzz`)."""

    def hang(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"an input took more than {HANG_S} s of processor time")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGVTALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (present + MEMORY_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _inputs(seeds: Sequence[bytes], source: random.Random, count: int) -> Iterator[bytes]:
    for number in range(count):
        if number < len(seeds):
            yield seeds[number]
            continue
        data = bytearray(source.choice(seeds))
        for _ in range(source.choice((1, 1, 1, 2, 2, 3, 5, 8))):
            data = source.choice(_MUTATIONS)(data, source, seeds)
        yield bytes(data[:MAX_INPUT])


def _flip(data: bytearray, source: random.Random, seeds: Sequence[bytes]) -> bytearray:
    if data:
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return data


def _set(data: bytearray, source: random.Random, seeds: Sequence[bytes]) -> bytearray:
    """A byte to one that ends, begins or doubles something in one of the formats."""
    if data:
        interesting = b'\x00\x01\x0f\x1f\x7f\x80\x9f\xbf\xc8\xd8\xf0\xff"[]{},<>/;=\\'
        data[source.randrange(len(data))] = source.choice(interesting)
    return data


def _insert(data: bytearray, source: random.Random, seeds: Sequence[bytes]) -> bytearray:
    at = source.randint(0, len(data))
    return data[:at] + source.randbytes(source.randint(1, 8)) + data[at:]


def _delete(data: bytearray, source: random.Random, seeds: Sequence[bytes]) -> bytearray:
    start = source.randint(0, len(data))
    return data[:start] + data[start + source.randint(1, 16) :]


def _cut(data: bytearray, source: random.Random, seeds: Sequence[bytes]) -> bytearray:
    return data[: source.randint(0, len(data))]


def _repeat(data: bytearray, source: random.Random, seeds: Sequence[bytes]) -> bytearray:
    """Deep nesting, long lists and doubled entries."""
    start = source.randint(0, len(data))
    part = data[start : start + source.randint(1, 24)]
    times = source.choice((2, 3, 20, 400))
    return data[:start] + (part * times)[:MAX_INPUT] + data[start:]


def _splice(data: bytearray, source: random.Random, seeds: Sequence[bytes]) -> bytearray:
    other = source.choice(seeds)
    return data[: source.randint(0, len(data))] + other[source.randint(0, len(other)) :]


def _noise(data: bytearray, source: random.Random, seeds: Sequence[bytes]) -> bytearray:
    return bytearray(source.randbytes(source.randint(0, 64)))


_MUTATIONS = (_flip, _flip, _set, _set, _insert, _delete, _cut, _repeat, _splice, _noise)


def _packets() -> tuple[bytes, ...]:
    register = (
        b"\x44\x02\x00\x01\xaa\xbb\xcc\xdd\xb2rd\x11\x28\x39ep=node-1\x05lt=60\x09lwm2m=1.1\x03b=U\xff" + LINKS[0]
    )
    update = b"\x41\x02\x00\x02\x01\xb2rd\x080123abcd\x45lt=60"
    block = b"\x42\x01\x00\x03\x01\x02\xb1p\x0d\x33" + b"ab" * 32 + b"\xc1\x26"
    answer = b"\x62\x45\x00\x04\x01\x02\x48\xde\xad\xbe\xef\x00\x01\x02\x03\x81\x2a\xb1\x0e\xff" + bytes(64)
    return register, update, block, answer


def _bases(content_format: Format) -> list[Path]:
    return [base for base in BASES if content_format is not Format.CBOR or base.depth >= 3]


def _seeds(content_format: Format) -> tuple[bytes, ...]:
    """Each begins with a byte that says what was asked for."""
    if content_format is Format.CBOR:
        return tuple(b"\x00" + encode(Format.CBOR, {path: value}, path) for path, value in VALUES.items())
    return tuple(
        bytes([index]) + encode(content_format, {at: value for at, value in VALUES.items() if base.covers(at)}, base)
        for index, base in enumerate(BASES)
        if any(base.covers(at) for at in VALUES)
    )


def _long_way(data: bytes) -> object:
    """As the bridge's intake hands datagrams on."""
    if not plausible(data):
        raise UnparsableMessage
    return aiocoap.Message.decode(data)


def _reader(content_format: Format) -> Callable[[bytes], object]:
    bases = _bases(content_format)
    return lambda data: decode(content_format, data[1:], bases[data[0] % len(bases) if data else 0])


def _composite(content_format: Format) -> Callable[[bytes], object]:
    return lambda data: decode_composite(content_format, data)


def _paths(content_format: Format) -> Callable[[bytes], object]:
    return lambda data: decode_paths(content_format, data)


def _text(data: bytes) -> object:
    kinds = (None, *Kind)
    return decode_text(data, kinds[len(data) % len(kinds)], "/3/0/0")


def _parameters(data: bytes) -> object:
    query = data.decode("utf-8", errors="replace").split("&")
    parse_update(part for part in query if not part.startswith("ep="))
    return parse_register(query)
