"""`tinymlaas-device`: runs one reference device, which registers at a LwM2M server and takes modules from it."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import structlog

from .boards import board_names, make_board
from .lwm2m import DeviceSettings, LwM2mDevice

_DESCRIPTION = "Runs a reference device. Boards: {boards}. SIGTERM ends it; its flash stays in the state file."
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@runtime_checkable
class Closeable(Protocol):
    """A board that holds its state file open."""

    def close(self) -> None:
        """Switch off and let go of the state file."""
        ...


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 and a usage text where it is wrong."""
    parser = argparse.ArgumentParser(
        "tinymlaas-device", description=_DESCRIPTION.format(boards=", ".join(board_names()))
    )
    parser.add_argument("--board", required=True, choices=board_names(), metavar="BOARD", help="kind of board")
    parser.add_argument("--name", required=True, metavar="ENDPOINT", help="endpoint name to register as")
    parser.add_argument("--server", default="coap://127.0.0.1:5683", metavar="URI", help="LwM2M server (%(default)s)")
    parser.add_argument("--state", type=Path, metavar="FILE", help="flash of the board; none: it forgets everything")
    parser.add_argument(
        "--trusted-key", type=_key, action="append", default=[], metavar="HEX", help="Ed25519 public key; repeatable"
    )
    parser.add_argument("--serial", default="", help="serial number; default: derived from the name")
    parser.add_argument("--lifetime", type=int, default=60, metavar="SECONDS", help="of the registration (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="local address (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="local UDP port (0: a free one)")
    parser.add_argument("--allow-plain-coap", action="store_true", help="accept a server on another host: INSECURE")
    parser.add_argument("--bootstrap", action="store_true", help="the server is a bootstrap server: ask it for another")
    parser.add_argument("--queue-mode", action="store_true", help="tell the server to ask only shortly after updates")
    parser.add_argument("--log-level", default="info", choices=sorted(_LEVELS))
    return parser.parse_args(arguments)


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise argparse.ArgumentTypeError("a public key is 64 hex digits")
    return key


async def run(options: argparse.Namespace) -> None:
    """Make the board, register, serve until SIGTERM or SIGINT, then de-register."""
    serial = options.serial or hashlib.sha256(options.name.encode()).hexdigest()[:12]
    board = await asyncio.to_thread(
        make_board, options.board, serial=serial, keys=options.trusted_key, state_file=options.state
    )
    memory = options.state.with_name(options.state.name + ".lwm2m.json") if options.state is not None else None
    device = LwM2mDevice(
        board,
        DeviceSettings(
            endpoint=options.name,
            server=options.server,
            lifetime_s=options.lifetime,
            host=options.host,
            port=options.port,
            state_file=memory,
            allow_plain_coap=options.allow_plain_coap,
            queue_mode=options.queue_mode,
            bootstrap=options.bootstrap,
        ),
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await device.start()
        await stop.wait()
        await device.close()
    finally:
        if isinstance(board, Closeable):
            board.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry; exit 1 with one line where the device can't run."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[options.log_level]))
    try:
        asyncio.run(run(options))
    except (ValueError, OSError) as error:
        print(f"tinymlaas-device: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
