"""Where an image goes on a device: a slot of object 9, or the firmware of object 5; one course of install for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinymlaas_lwm2m import (
    FirmwareRes,
    FirmwareResult,
    FirmwareState,
    MlRes,
    Path,
    SoftwareRes,
    UpdateResult,
    UpdateState,
    Value,
    firmware,
    ml,
    software,
)


@dataclass(frozen=True)
class Target:
    """Resources of a place for an image. `expected_digest` and `uninstall` are None where the object has none such."""

    package: Path
    package_uri: Path
    install: Path
    expected_digest: Path | None = None
    uninstall: Path | None = None


FIRMWARE_TARGET = Target(firmware(FirmwareRes.PACKAGE), firmware(FirmwareRes.PACKAGE_URI), firmware(FirmwareRes.UPDATE))


def slot_target(index: int) -> Target:
    """The resources of a slot of object 9."""
    return Target(
        software(index, SoftwareRes.PACKAGE),
        software(index, SoftwareRes.PACKAGE_URI),
        software(index, SoftwareRes.INSTALL),
        ml(MlRes.EXPECTED_DIGEST, index),
        software(index, SoftwareRes.UNINSTALL),
    )


FIRMWARE_RESULTS: dict[FirmwareResult, tuple[UpdateResult, str]] = {
    FirmwareResult.INITIAL: (UpdateResult.INITIAL, ""),
    FirmwareResult.SUCCESS: (UpdateResult.INSTALLED, ""),
    FirmwareResult.NOT_ENOUGH_FLASH: (UpdateResult.NOT_ENOUGH_STORAGE, "not enough flash for the firmware package"),
    FirmwareResult.OUT_OF_RAM: (UpdateResult.OUT_OF_MEMORY, "out of RAM during the download"),
    FirmwareResult.CONNECTION_LOST: (UpdateResult.CONNECTION_LOST, "connection lost during the download"),
    FirmwareResult.INTEGRITY_FAILURE: (UpdateResult.INTEGRITY_FAILURE, "integrity check failed"),
    FirmwareResult.UNSUPPORTED_PACKAGE: (UpdateResult.UNSUPPORTED_PACKAGE, "unsupported package type"),
    FirmwareResult.INVALID_URI: (UpdateResult.INVALID_URI, "invalid URI"),
    FirmwareResult.UPDATE_FAILED: (UpdateResult.INSTALL_FAILURE, "the update failed; the former firmware runs"),
    FirmwareResult.UNSUPPORTED_PROTOCOL: (UpdateResult.INVALID_URI, "unsupported protocol"),
    FirmwareResult.CANCELLED: (UpdateResult.DEVICE_ERROR, "cancelled on the device"),
    FirmwareResult.DEFERRED: (UpdateResult.DOWNLOADED_AND_VERIFIED, "deferred by the device"),
}
"""Each result of object 5 (/5/0/5) as the one of object 9 that says the same, and what it means in words."""


@dataclass(frozen=True)
class FirmwareView:
    """What a device shows of its firmware, in the terms of object 9. `busy` while it applies an image or puts it off.

    An update that it puts off (`deferred`) can still be taken back.
    """

    update_state: UpdateState
    update_result: int
    reason: str
    busy: bool
    deferred: bool = False


def read_firmware(values: Mapping[Path, Value]) -> FirmwareView | None:
    """View of object 5; None where its state or result is missing or undefined.

    A device that is idle after a success has installed what it was given. One that updates, or has deferred the update, is
    waited for.
    """
    state, result = values.get(firmware(FirmwareRes.STATE)), values.get(firmware(FirmwareRes.UPDATE_RESULT))
    try:
        known_state, known_result = FirmwareState(state), FirmwareResult(result)  # type: ignore[arg-type]
    except ValueError:
        return None
    meaning, reason = FIRMWARE_RESULTS[known_result]
    states = {
        FirmwareState.IDLE: UpdateState.INITIAL,
        FirmwareState.DOWNLOADING: UpdateState.DOWNLOAD_STARTED,
        FirmwareState.DOWNLOADED: UpdateState.DELIVERED,
        FirmwareState.UPDATING: UpdateState.INSTALLED,
    }
    shown = states[known_state]
    if known_state is FirmwareState.IDLE and known_result is FirmwareResult.SUCCESS:
        shown = UpdateState.INSTALLED
    deferred = known_state is FirmwareState.DOWNLOADED and known_result is FirmwareResult.DEFERRED
    if deferred:
        shown = UpdateState.INSTALLED
    return FirmwareView(shown, int(meaning), reason, known_state is FirmwareState.UPDATING or deferred, deferred)
