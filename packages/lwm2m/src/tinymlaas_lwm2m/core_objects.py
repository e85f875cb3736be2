"""Objects of LwM2M itself: 0 Security, 1 Server, 3 Device, 4 Connectivity Monitoring (Core TS 1.1, appendix EXECUTE)."""

from __future__ import annotations

from enum import IntEnum

from .model import BOOLEAN, EXECUTE, INTEGER, NO_OPERATION, OPAQUE, READ, READ_WRITE, STRING, ResourceDef, define

SECURITY = 0
SERVER = 1
DEVICE = 3
CONNECTIVITY = 4


class SecurityRes(IntEnum):
    """Object 0, LwM2M Security; only a bootstrap server writes it and nobody reads it."""

    SERVER_URI = 0
    BOOTSTRAP_SERVER = 1
    SECURITY_MODE = 2
    PUBLIC_KEY_OR_IDENTITY = 3
    SERVER_PUBLIC_KEY = 4
    SECRET_KEY = 5
    SHORT_SERVER_ID = 10
    CLIENT_HOLD_OFF_TIME = 11
    BOOTSTRAP_ACCOUNT_TIMEOUT = 12


class SecurityMode(IntEnum):
    """/0/x/2."""

    PSK = 0
    RPK = 1
    CERTIFICATE = 2
    NO_SEC = 3


class ServerRes(IntEnum):
    """Object 1, LwM2M Server."""

    SHORT_SERVER_ID = 0
    LIFETIME = 1
    NOTIFICATION_STORING = 6
    BINDING = 7
    REGISTRATION_UPDATE_TRIGGER = 8
    BOOTSTRAP_TRIGGER = 9


class DeviceRes(IntEnum):
    """Object 3, Device."""

    MANUFACTURER = 0
    MODEL = 1
    SERIAL = 2
    FIRMWARE_VERSION = 3
    REBOOT = 4
    BATTERY_LEVEL = 9
    MEMORY_FREE_KB = 10
    ERROR_CODE = 11
    BINDING = 16
    DEVICE_TYPE = 17
    HARDWARE_VERSION = 18
    SOFTWARE_VERSION = 19
    MEMORY_TOTAL_KB = 21


class ConnectivityRes(IntEnum):
    """Object 4, Connectivity Monitoring."""

    BEARER = 0
    AVAILABLE_BEARERS = 1
    SIGNAL_STRENGTH = 2
    LINK_QUALITY = 3
    IP_ADDRESSES = 4
    ROUTER_ADDRESSES = 5
    LINK_UTILIZATION = 6
    APN = 7


SECURITY_DEF = define(
    SECURITY,
    "LwM2M Security",
    True,
    ResourceDef(SecurityRes.SERVER_URI, "LwM2M Server URI", NO_OPERATION, STRING, mandatory=True),
    ResourceDef(SecurityRes.BOOTSTRAP_SERVER, "Bootstrap-Server", NO_OPERATION, BOOLEAN, mandatory=True),
    ResourceDef(SecurityRes.SECURITY_MODE, "Security Mode", NO_OPERATION, INTEGER, mandatory=True, range="0..4"),
    ResourceDef(SecurityRes.PUBLIC_KEY_OR_IDENTITY, "Public Key or Identity", NO_OPERATION, OPAQUE, mandatory=True),
    ResourceDef(SecurityRes.SERVER_PUBLIC_KEY, "Server Public Key", NO_OPERATION, OPAQUE, mandatory=True),
    ResourceDef(SecurityRes.SECRET_KEY, "Secret Key", NO_OPERATION, OPAQUE, mandatory=True),
    ResourceDef(SecurityRes.SHORT_SERVER_ID, "Short Server ID", NO_OPERATION, INTEGER, range="1..65534"),
    ResourceDef(SecurityRes.CLIENT_HOLD_OFF_TIME, "Client Hold Off Time", NO_OPERATION, INTEGER, units="s"),
    ResourceDef(
        SecurityRes.BOOTSTRAP_ACCOUNT_TIMEOUT, "Bootstrap-Server Account Timeout", NO_OPERATION, INTEGER, units="s"
    ),
    version="1.1",
)

SERVER_DEF = define(
    SERVER,
    "LwM2M Server",
    True,
    ResourceDef(ServerRes.SHORT_SERVER_ID, "Short Server ID", READ, INTEGER, mandatory=True, range="1..65534"),
    ResourceDef(ServerRes.LIFETIME, "Lifetime", READ_WRITE, INTEGER, mandatory=True, units="s"),
    ResourceDef(ServerRes.NOTIFICATION_STORING, "Notification Storing", READ_WRITE, BOOLEAN, mandatory=True),
    ResourceDef(ServerRes.BINDING, "Binding", READ_WRITE, STRING, mandatory=True),
    ResourceDef(ServerRes.REGISTRATION_UPDATE_TRIGGER, "Registration Update Trigger", EXECUTE, None, mandatory=True),
    ResourceDef(ServerRes.BOOTSTRAP_TRIGGER, "Bootstrap-Request Trigger", EXECUTE, None),
)

DEVICE_DEF = define(
    DEVICE,
    "Device",
    False,
    ResourceDef(DeviceRes.MANUFACTURER, "Manufacturer", READ, STRING),
    ResourceDef(DeviceRes.MODEL, "Model Number", READ, STRING),
    ResourceDef(DeviceRes.SERIAL, "Serial Number", READ, STRING),
    ResourceDef(DeviceRes.FIRMWARE_VERSION, "Firmware Version", READ, STRING),
    ResourceDef(DeviceRes.REBOOT, "Reboot", EXECUTE, None, mandatory=True),
    ResourceDef(DeviceRes.BATTERY_LEVEL, "Battery Level", READ, INTEGER, units="%", range="0..100"),
    ResourceDef(DeviceRes.MEMORY_FREE_KB, "Memory Free", READ, INTEGER, units="KiB"),
    ResourceDef(DeviceRes.ERROR_CODE, "Error Code", READ, INTEGER, multiple=True, mandatory=True),
    ResourceDef(DeviceRes.BINDING, "Supported Binding and Modes", READ, STRING, mandatory=True),
    ResourceDef(DeviceRes.DEVICE_TYPE, "Device Type", READ, STRING),
    ResourceDef(DeviceRes.HARDWARE_VERSION, "Hardware Version", READ, STRING),
    ResourceDef(DeviceRes.SOFTWARE_VERSION, "Software Version", READ, STRING),
    ResourceDef(DeviceRes.MEMORY_TOTAL_KB, "Memory Total", READ, INTEGER, units="KiB"),
)

CONNECTIVITY_DEF = define(
    CONNECTIVITY,
    "Connectivity Monitoring",
    False,
    ResourceDef(ConnectivityRes.BEARER, "Network Bearer", READ, INTEGER, mandatory=True),
    ResourceDef(
        ConnectivityRes.AVAILABLE_BEARERS, "Available Network Bearer", READ, INTEGER, multiple=True, mandatory=True
    ),
    ResourceDef(ConnectivityRes.SIGNAL_STRENGTH, "Radio Signal Strength", READ, INTEGER, mandatory=True, units="dBm"),
    ResourceDef(ConnectivityRes.LINK_QUALITY, "Link Quality", READ, INTEGER),
    ResourceDef(ConnectivityRes.IP_ADDRESSES, "IP Addresses", READ, STRING, multiple=True, mandatory=True),
    ResourceDef(ConnectivityRes.ROUTER_ADDRESSES, "Router IP Addresses", READ, STRING, multiple=True),
    ResourceDef(ConnectivityRes.LINK_UTILIZATION, "Link Utilization", READ, INTEGER, units="%", range="0..100"),
    ResourceDef(ConnectivityRes.APN, "APN", READ, STRING, multiple=True),
)
