"""Object 9, LWM2M Software Management 1.0: one instance for each module slot."""

from __future__ import annotations

from enum import IntEnum

from .model import BOOLEAN, EXECUTE, INTEGER, OPAQUE, READ, STRING, WRITE, ResourceDef, define
from .values import Path

SOFTWARE = 9


class SoftwareRes(IntEnum):
    """Object 9, LWM2M Software Management."""

    NAME = 0
    VERSION = 1
    PACKAGE = 2
    PACKAGE_URI = 3
    INSTALL = 4
    UNINSTALL = 6
    UPDATE_STATE = 7
    UPDATE_RESULT = 9
    ACTIVATE = 10
    DEACTIVATE = 11
    ACTIVATION_STATE = 12
    STATUS_REASON = 16


class UpdateState(IntEnum):
    """/9/x/7."""

    INITIAL = 0
    DOWNLOAD_STARTED = 1
    DOWNLOADED = 2
    DELIVERED = 3
    INSTALLED = 4


class UpdateResult(IntEnum):
    """/9/x/9."""

    INITIAL = 0
    DOWNLOADING = 1
    INSTALLED = 2
    DOWNLOADED_AND_VERIFIED = 3
    NOT_ENOUGH_STORAGE = 50
    OUT_OF_MEMORY = 51
    CONNECTION_LOST = 52
    INTEGRITY_FAILURE = 53
    UNSUPPORTED_PACKAGE = 54
    INVALID_URI = 56
    DEVICE_ERROR = 57
    INSTALL_FAILURE = 58
    UNINSTALL_FAILURE = 59


SOFTWARE_DEF = define(
    SOFTWARE,
    "LWM2M Software Management",
    True,
    ResourceDef(SoftwareRes.NAME, "PkgName", READ, STRING, mandatory=True),
    ResourceDef(SoftwareRes.VERSION, "PkgVersion", READ, STRING, mandatory=True),
    ResourceDef(SoftwareRes.PACKAGE, "Package", WRITE, OPAQUE),
    ResourceDef(SoftwareRes.PACKAGE_URI, "Package URI", WRITE, STRING),
    ResourceDef(SoftwareRes.INSTALL, "Install", EXECUTE, None, mandatory=True),
    ResourceDef(SoftwareRes.UNINSTALL, "Uninstall", EXECUTE, None, mandatory=True),
    ResourceDef(SoftwareRes.UPDATE_STATE, "Update State", READ, INTEGER, mandatory=True, range="0..4"),
    ResourceDef(SoftwareRes.UPDATE_RESULT, "Update Result", READ, INTEGER, mandatory=True, range="0..200"),
    ResourceDef(SoftwareRes.ACTIVATE, "Activate", EXECUTE, None, mandatory=True),
    ResourceDef(SoftwareRes.DEACTIVATE, "Deactivate", EXECUTE, None, mandatory=True),
    ResourceDef(SoftwareRes.ACTIVATION_STATE, "Activation State", READ, BOOLEAN, mandatory=True),
    ResourceDef(SoftwareRes.STATUS_REASON, "Status Reason", READ, STRING),
)


def software(slot: int, resource: SoftwareRes) -> Path:
    """Path of a software management resource of a slot."""
    return Path(SOFTWARE, slot, resource)
