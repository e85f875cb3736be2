"""Object 5, Firmware Update (LwM2M Core TS 1.1, appendix E.6): for devices whose runtime can't take a module alone."""

from __future__ import annotations

from enum import IntEnum

from .model import EXECUTE, INTEGER, OPAQUE, READ, READ_WRITE, STRING, WRITE, ResourceDef, define
from .values import Path

FIRMWARE = 5


class FirmwareRes(IntEnum):
    """Object 5, Firmware Update."""

    PACKAGE = 0
    PACKAGE_URI = 1
    UPDATE = 2
    STATE = 3
    UPDATE_RESULT = 5
    PACKAGE_NAME = 6
    PACKAGE_VERSION = 7
    PROTOCOLS = 8
    DELIVERY_METHOD = 9


class FirmwareState(IntEnum):
    """/5/0/3."""

    IDLE = 0
    DOWNLOADING = 1
    DOWNLOADED = 2
    UPDATING = 3


class FirmwareResult(IntEnum):
    """/5/0/5."""

    INITIAL = 0
    SUCCESS = 1
    NOT_ENOUGH_FLASH = 2
    OUT_OF_RAM = 3
    CONNECTION_LOST = 4
    INTEGRITY_FAILURE = 5
    UNSUPPORTED_PACKAGE = 6
    INVALID_URI = 7
    UPDATE_FAILED = 8
    UNSUPPORTED_PROTOCOL = 9
    CANCELLED = 10
    DEFERRED = 11


FIRMWARE_DEF = define(
    FIRMWARE,
    "Firmware Update",
    False,
    ResourceDef(FirmwareRes.PACKAGE, "Package", WRITE, OPAQUE, mandatory=True),
    ResourceDef(FirmwareRes.PACKAGE_URI, "Package URI", READ_WRITE, STRING, mandatory=True),
    ResourceDef(FirmwareRes.UPDATE, "Update", EXECUTE, None, mandatory=True),
    ResourceDef(FirmwareRes.STATE, "State", READ, INTEGER, mandatory=True, range="0..3"),
    ResourceDef(FirmwareRes.UPDATE_RESULT, "Update Result", READ, INTEGER, mandatory=True, range="0..11"),
    ResourceDef(FirmwareRes.PACKAGE_NAME, "PkgName", READ, STRING),
    ResourceDef(FirmwareRes.PACKAGE_VERSION, "PkgVersion", READ, STRING),
    ResourceDef(FirmwareRes.PROTOCOLS, "Firmware Update Protocol Support", READ, INTEGER, multiple=True),
    ResourceDef(
        FirmwareRes.DELIVERY_METHOD, "Firmware Update Delivery Method", READ, INTEGER, mandatory=True, range="0..2"
    ),
    version="1.1",
)


def firmware(resource: FirmwareRes, instance: int | None = None) -> Path:
    """Path of a firmware update resource, or of one of its instances."""
    return Path(FIRMWARE, 0, resource, instance)
