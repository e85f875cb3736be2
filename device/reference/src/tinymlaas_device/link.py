"""`tinymlaas-firmware`: makes firmware of a board that takes no module alone, with a sealed native module or as a base."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tinymlaas_module import ModuleError, base_firmware, link_firmware

from .boards import board_models
from .firmware_build import FirmwareBuildError, build_application


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with 2 and a usage text where it is wrong."""
    boards = sorted(name for name, model in board_models().items() if model.spec.static_firmware)
    parser = argparse.ArgumentParser(
        "tinymlaas-firmware", description=f"Makes a firmware package. Boards: {', '.join(boards)}."
    )
    parser.add_argument("--board", required=True, choices=boards, metavar="BOARD")
    content = parser.add_mutually_exclusive_group(required=True)
    content.add_argument("--module", type=Path, metavar="FILE", help="sealed native module (.tim) to link in")
    content.add_argument("--base", action="store_true", help="without a module: what a deployment links modules into")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="Ed25519 private key, PEM")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the package goes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry; exit 1 with one line where no package can be made."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        key = load_pem_private_key(options.key.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{options.key} holds no Ed25519 key")
        application = build_application(board_models()[options.board])
        module = options.module
        package = (
            base_firmware(application, key) if module is None else link_firmware(application, module.read_bytes(), key)
        )
        options.output.write_bytes(package)
    except (OSError, ValueError, ModuleError, FirmwareBuildError) as error:
        print(f"tinymlaas-firmware: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"{options.output}: {len(package)} bytes, sha256 {hashlib.sha256(package).hexdigest()}")


if __name__ == "__main__":
    main()
