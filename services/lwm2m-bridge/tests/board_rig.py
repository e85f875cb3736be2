"""What tests share that install signed images onto a virtual board: bridge, board, one install."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from certified_modules import PUBLIC_KEY
from lwm2m_rig import Artifacts, Rig, digest_of, run_install, within

from tinymlaas_device.boards import board_models
from tinymlaas_device.virtual_board import VirtualBoard
from tinymlaas_lwm2m_bridge import Bridge, InstallEvent, InstallRequest, InstallSettings, SignedImages, Transfer
from tinymlaas_module import key_id


def signed_rig(folder: Path) -> Rig:
    """A rig whose bridge wants images signed by `certified_modules.KEY`, and their evidence."""
    install = InstallSettings(poll_s=0.05, stuck_s=30.0, offline_s=60.0)
    return Rig(folder, Artifacts(), check=SignedImages(PUBLIC_KEY.hex()), install=install)


def board_of(name: str, state_file: Path | None = None) -> VirtualBoard:
    """A virtual board that trusts the same key and says so; the caller closes it."""
    model = board_models()[name]
    spec = dataclasses.replace(model.spec, serial="7", key_ids=(key_id(PUBLIC_KEY),))
    return VirtualBoard(dataclasses.replace(model, spec=spec), keys=[PUBLIC_KEY], state_file=state_file)


@asynccontextmanager
async def running(rig: Rig, board: VirtualBoard) -> AsyncIterator[Bridge]:
    """A bridge at which the board has registered as node-1."""
    bridge = await rig.bridge()
    device = await rig.device(board)  # type: ignore[arg-type]
    try:
        await within(device.registered.wait())
        yield bridge
    finally:
        # Also after a failure: the board must not be closed while its thread still runs it.
        await device.close()
        await bridge.close()


async def install(
    rig: Rig,
    bridge: Bridge,
    image: bytes,
    name: str,
    transfer: Transfer = Transfer.AUTO,
    slot: int | None = None,
) -> InstallEvent:
    """The last event of an install of the image onto node-1."""
    rig.artifacts.images[digest_of(image)] = image
    request = InstallRequest(name, "node-1", digest_of(image), slot=slot, transfer=transfer)
    return (await run_install(bridge, request))[-1]
