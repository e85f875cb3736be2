"""IPSO and OMA sensor objects (33xx): what a model may need as its input."""

from __future__ import annotations

from enum import IntEnum

from .model import FLOAT, READ, READ_WRITE, STRING, ResourceDef, define

IPSO_FIRST = 3300
IPSO_LAST = 3399


class IpsoRes(IntEnum):
    """Resources that IPSO sensor objects share."""

    MIN_RANGE = 5603
    MAX_RANGE = 5604
    VALUE = 5700
    UNITS = 5701
    X = 5702
    Y = 5703
    Z = 5704
    APPLICATION_TYPE = 5750


IPSO_SENSORS: dict[int, str] = {
    3300: "generic",
    3301: "illuminance",
    3302: "presence",
    3303: "temperature",
    3304: "humidity",
    3305: "power",
    3313: "accelerometer",
    3314: "magnetometer",
    3315: "barometer",
    3316: "voltage",
    3317: "current",
    3318: "frequency",
    3319: "depth",
    3320: "percentage",
    3321: "altitude",
    3322: "load",
    3323: "pressure",
    3324: "microphone",
    3325: "concentration",
    3326: "acidity",
    3327: "conductivity",
    3328: "power",
    3329: "power_factor",
    3330: "distance",
    3331: "energy",
    3332: "direction",
    3334: "gyroscope",
    3346: "rate",
    3347: "push_button",
    3348: "multistate",
    3349: "bitmap",
    3350: "stopwatch",
}
"""IPSO/OMA sensor objects by the name under which a model asks for such a peripheral."""

_IPSO_RESOURCES = (
    ResourceDef(IpsoRes.MIN_RANGE, "Min Range Value", READ, FLOAT),
    ResourceDef(IpsoRes.MAX_RANGE, "Max Range Value", READ, FLOAT),
    ResourceDef(IpsoRes.VALUE, "Sensor Value", READ, FLOAT),
    ResourceDef(IpsoRes.UNITS, "Sensor Units", READ, STRING),
    ResourceDef(IpsoRes.X, "X Value", READ, FLOAT),
    ResourceDef(IpsoRes.Y, "Y Value", READ, FLOAT),
    ResourceDef(IpsoRes.Z, "Z Value", READ, FLOAT),
    ResourceDef(IpsoRes.APPLICATION_TYPE, "Application Type", READ_WRITE, STRING),
)

IPSO_DEFS = tuple(define(sensor, f"IPSO {name}", True, *_IPSO_RESOURCES) for sensor, name in IPSO_SENSORS.items())
