"""Object and resource ids, in this one place, with the type of each resource.

Sources: LwM2M Core TS 1.1 appendix E (objects 1, 3), LWM2M Software Management 1.0 (object 9), the IPSO Smart
Object registry (33xx), and spec/device-orchestration.md of this project (ML capability). `spec/objects/42769.xml` says the same
in the OMA schema; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from .values import Kind, Path

SECURITY = 0
SERVER = 1
DEVICE = 3
CONNECTIVITY = 4
FIRMWARE = 5
SOFTWARE = 9
ML_CAPABILITY = 42769
"""An id of the range that OMNA reserves for tests (42769 to 65534); a registered one would replace it here only."""

IPSO_FIRST = 3300
IPSO_LAST = 3399


class Operations(StrEnum):
    """What a server may do with a resource."""

    NONE = ""
    READ = "R"
    WRITE = "W"
    READ_WRITE = "RW"
    EXECUTE = "E"


@dataclass(frozen=True)
class ResourceDef:
    """One resource of an object definition. `kind` is None for executables."""

    id: int
    name: str
    operations: Operations
    kind: Kind | None
    multiple: bool = False
    mandatory: bool = False
    units: str = ""
    range: str = ""
    description: str = ""


@dataclass(frozen=True)
class ObjectDef:
    """One object definition; resources by id."""

    id: int
    name: str
    multiple: bool
    resources: dict[int, ResourceDef] = field(default_factory=dict)


class ServerRes(IntEnum):
    """Object 1, LwM2M Server."""

    SHORT_SERVER_ID = 0
    LIFETIME = 1
    NOTIFICATION_STORING = 6
    BINDING = 7
    REGISTRATION_UPDATE_TRIGGER = 8


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


class MlRes(IntEnum):
    """Object 42769, ML capability. Resources 7 to 10, 24, 25 and 36 are indexed by slot."""

    ISA = 0
    ISA_FEATURES = 1
    CLOCK = 2
    RAM_TOTAL = 3
    RAM_FREE = 4
    FLASH_TOTAL = 5
    FLASH_FREE = 6
    SLOT_SIZE = 7
    SLOT_STATE = 8
    MODULE_DIGEST = 9
    RECEIVED_BYTES = 10
    PREVIOUS_SLOT = 11
    EXECUTE_IN_PLACE = 12
    RTOS_NAME = 13
    RTOS_VERSION = 14
    LOADER_ABI = 15
    RUNTIME_NAME = 16
    RUNTIME_VERSION = 17
    RUNTIME_OPERATORS = 18
    ACCELERATORS = 19
    PAYLOAD_KINDS = 20
    KEY_IDS = 21
    SECURITY_COUNTER = 22
    SELF_TEST = 23
    SELF_TEST_RESULT = 24
    SELF_TEST_DETAIL = 25
    INPUT = 26
    INVOKE = 27
    OUTPUT = 28
    INVOCATIONS = 29
    LAST_LATENCY = 30
    LATENCY_UNIT = 31
    ERROR_COUNT = 32
    LAST_ERROR = 33
    CPU = 34
    ROLLBACK = 35
    EXPECTED_DIGEST = 36


class SlotState(IntEnum):
    """/42769/0/8/x: what a module slot holds."""

    EMPTY = 0
    RECEIVING = 1
    VERIFIED = 2
    INSTALLED = 3
    TESTED = 4
    ACTIVE = 5


class SelfTestResult(IntEnum):
    """/42769/0/24/x: outcome of the last golden self-test of the module in the slot."""

    NOT_RUN = 0
    PASSED = 1
    FAILED = 2
    RUNNING = 3


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

_E, _R, _W, _RW = Operations.EXECUTE, Operations.READ, Operations.WRITE, Operations.READ_WRITE
_S, _I, _F, _B, _O, _T = Kind.STRING, Kind.INTEGER, Kind.FLOAT, Kind.BOOLEAN, Kind.OPAQUE, Kind.TIME


def _define(object_id: int, name: str, multiple: bool, *resources: ResourceDef) -> ObjectDef:
    return ObjectDef(object_id, name, multiple, {resource.id: resource for resource in resources})


SERVER_DEF = _define(
    SERVER,
    "LwM2M Server",
    True,
    ResourceDef(ServerRes.SHORT_SERVER_ID, "Short Server ID", _R, _I, mandatory=True, range="1..65534"),
    ResourceDef(ServerRes.LIFETIME, "Lifetime", _RW, _I, mandatory=True, units="s"),
    ResourceDef(ServerRes.NOTIFICATION_STORING, "Notification Storing", _RW, _B, mandatory=True),
    ResourceDef(ServerRes.BINDING, "Binding", _RW, _S, mandatory=True),
    ResourceDef(ServerRes.REGISTRATION_UPDATE_TRIGGER, "Registration Update Trigger", _E, None, mandatory=True),
)

DEVICE_DEF = _define(
    DEVICE,
    "Device",
    False,
    ResourceDef(DeviceRes.MANUFACTURER, "Manufacturer", _R, _S),
    ResourceDef(DeviceRes.MODEL, "Model Number", _R, _S),
    ResourceDef(DeviceRes.SERIAL, "Serial Number", _R, _S),
    ResourceDef(DeviceRes.FIRMWARE_VERSION, "Firmware Version", _R, _S),
    ResourceDef(DeviceRes.REBOOT, "Reboot", _E, None, mandatory=True),
    ResourceDef(DeviceRes.BATTERY_LEVEL, "Battery Level", _R, _I, units="%", range="0..100"),
    ResourceDef(DeviceRes.MEMORY_FREE_KB, "Memory Free", _R, _I, units="KiB"),
    ResourceDef(DeviceRes.ERROR_CODE, "Error Code", _R, _I, multiple=True, mandatory=True),
    ResourceDef(DeviceRes.BINDING, "Supported Binding and Modes", _R, _S, mandatory=True),
    ResourceDef(DeviceRes.DEVICE_TYPE, "Device Type", _R, _S),
    ResourceDef(DeviceRes.HARDWARE_VERSION, "Hardware Version", _R, _S),
    ResourceDef(DeviceRes.SOFTWARE_VERSION, "Software Version", _R, _S),
    ResourceDef(DeviceRes.MEMORY_TOTAL_KB, "Memory Total", _R, _I, units="KiB"),
)

SOFTWARE_DEF = _define(
    SOFTWARE,
    "LWM2M Software Management",
    True,
    ResourceDef(SoftwareRes.NAME, "PkgName", _R, _S, mandatory=True),
    ResourceDef(SoftwareRes.VERSION, "PkgVersion", _R, _S, mandatory=True),
    ResourceDef(SoftwareRes.PACKAGE, "Package", _W, _O),
    ResourceDef(SoftwareRes.PACKAGE_URI, "Package URI", _W, _S),
    ResourceDef(SoftwareRes.INSTALL, "Install", _E, None, mandatory=True),
    ResourceDef(SoftwareRes.UNINSTALL, "Uninstall", _E, None, mandatory=True),
    ResourceDef(SoftwareRes.UPDATE_STATE, "Update State", _R, _I, mandatory=True, range="0..4"),
    ResourceDef(SoftwareRes.UPDATE_RESULT, "Update Result", _R, _I, mandatory=True, range="0..200"),
    ResourceDef(SoftwareRes.ACTIVATE, "Activate", _E, None, mandatory=True),
    ResourceDef(SoftwareRes.DEACTIVATE, "Deactivate", _E, None, mandatory=True),
    ResourceDef(SoftwareRes.ACTIVATION_STATE, "Activation State", _R, _B, mandatory=True),
    ResourceDef(SoftwareRes.STATUS_REASON, "Status Reason", _R, _S),
)

_BY_SLOT = " The resource instance id is the slot: the instance id of object 9."


def _ml(
    resource: MlRes,
    name: str,
    kind: Kind | None,
    description: str,
    *,
    operations: Operations = _R,
    multiple: bool = False,
    mandatory: bool = False,
    units: str = "",
    range: str = "",
) -> ResourceDef:
    return ResourceDef(resource, name, operations, kind, multiple, mandatory, units, range, description)


ML_DEF = _define(
    ML_CAPABILITY,
    "ML Capability",
    False,
    _ml(MlRes.ISA, "ISA", _S, "Base instruction set, such as armv7e-m or rv32imc.", mandatory=True),
    _ml(MlRes.ISA_FEATURES, "ISA Features", _S, "One feature each: thumb2, dsp, fpu-sp, mve, ...", multiple=True),
    _ml(MlRes.CLOCK, "Clock", _I, "CPU clock while a module runs.", units="Hz"),
    _ml(MlRes.RAM_TOTAL, "RAM Total", _I, "RAM of the whole device.", mandatory=True, units="B"),
    _ml(
        MlRes.RAM_FREE,
        "RAM Free",
        _I,
        "RAM that a module can use for arena and stack, after RTOS and application.",
        mandatory=True,
        units="B",
    ),
    _ml(MlRes.FLASH_TOTAL, "Flash Total", _I, "Flash of the whole device.", mandatory=True, units="B"),
    _ml(
        MlRes.FLASH_FREE,
        "Flash Free",
        _I,
        "Flash that a module can use: what holds neither firmware nor a module in use.",
        mandatory=True,
        units="B",
    ),
    _ml(
        MlRes.SLOT_SIZE,
        "Slot Size",
        _I,
        "Largest module image that the slot takes." + _BY_SLOT,
        multiple=True,
        mandatory=True,
        units="B",
    ),
    _ml(
        MlRes.SLOT_STATE,
        "Slot State",
        _I,
        "0 empty, 1 receiving, 2 verified, 3 installed, 4 self-test passed, 5 active." + _BY_SLOT,
        multiple=True,
        mandatory=True,
        range="0..5",
    ),
    _ml(
        MlRes.MODULE_DIGEST,
        "Module Digest",
        _O,
        "SHA-256 of the module image that the slot holds or receives; no instance for an empty slot." + _BY_SLOT,
        multiple=True,
        mandatory=True,
        range="32",
    ),
    _ml(
        MlRes.RECEIVED_BYTES,
        "Received Bytes",
        _I,
        "Bytes of the image that are stored durably; a resumed download starts here." + _BY_SLOT,
        multiple=True,
        units="B",
    ),
    _ml(MlRes.PREVIOUS_SLOT, "Previous Slot", _I, "Slot that Rollback activates; absent where there is none."),
    _ml(MlRes.EXECUTE_IN_PLACE, "Execute In Place", _B, "True where code runs from flash without a copy in RAM."),
    _ml(MlRes.RTOS_NAME, "RTOS Name", _S, "none for bare metal."),
    _ml(MlRes.RTOS_VERSION, "RTOS Version", _S, "Version of the RTOS."),
    _ml(MlRes.LOADER_ABI, "Loader ABI", _I, "Native payload ABI of the loader; 0 for none.", mandatory=True),
    _ml(MlRes.RUNTIME_NAME, "Runtime Name", _S, "One instance per model runtime: tflite-micro, ...", multiple=True),
    _ml(
        MlRes.RUNTIME_VERSION, "Runtime Version", _S, "Version of the runtime with the same instance id.", multiple=True
    ),
    _ml(
        MlRes.RUNTIME_OPERATORS,
        "Runtime Operators",
        _S,
        "Operators of the runtime with the same instance id, separated by commas.",
        multiple=True,
    ),
    _ml(MlRes.ACCELERATORS, "Accelerators", _S, "One instance per accelerator: ethos-u55-128, ...", multiple=True),
    _ml(
        MlRes.PAYLOAD_KINDS,
        "Payload Kinds",
        _S,
        "Kinds of payload that the loader takes: NATIVE, TFLITE, ...",
        multiple=True,
        mandatory=True,
    ),
    _ml(MlRes.KEY_IDS, "Key IDs", _O, "Ids of the public keys that the loader trusts.", multiple=True, range="8"),
    _ml(MlRes.SECURITY_COUNTER, "Security Counter", _I, "Modules with a smaller counter are refused as a downgrade."),
    _ml(
        MlRes.SELF_TEST,
        "Self-Test",
        None,
        "Runs the golden vectors of the module in a slot. Argument 0='slot', default 0.",
        operations=_E,
        mandatory=True,
    ),
    _ml(
        MlRes.SELF_TEST_RESULT,
        "Self-Test Result",
        _I,
        "0 not run, 1 passed, 2 failed, 3 running." + _BY_SLOT,
        multiple=True,
        mandatory=True,
        range="0..3",
    ),
    _ml(MlRes.SELF_TEST_DETAIL, "Self-Test Detail", _S, "Why the self-test failed." + _BY_SLOT, multiple=True),
    _ml(
        MlRes.INPUT,
        "Input",
        _O,
        "Values of all input tensors of the active module, one after the other in the order of its tensor table.",
        operations=_W,
    ),
    _ml(MlRes.INVOKE, "Invoke", None, "Runs the active module; answers when it has run.", operations=_E),
    _ml(
        MlRes.OUTPUT,
        "Output",
        _O,
        "Values of all output tensors of the last successful run, one after the other; absent before the first.",
    ),
    _ml(MlRes.INVOCATIONS, "Invocations", _I, "Successful runs since the module became active."),
    _ml(MlRes.LAST_LATENCY, "Last Latency", _I, "Cost of the last run, in the unit of resource 31."),
    _ml(MlRes.LATENCY_UNIT, "Latency Unit", _S, "instructions, cycles or us; never a time derived from a count."),
    _ml(MlRes.ERROR_COUNT, "Error Count", _I, "Runs and self-tests that failed since the last boot."),
    _ml(MlRes.LAST_ERROR, "Last Error", _S, "Reason of the last failure; absent where there was none."),
    _ml(MlRes.CPU, "CPU", _S, "CPU name, such as cortex-m4."),
    _ml(
        MlRes.ROLLBACK,
        "Rollback",
        None,
        "Activates the module of the previous slot again and deactivates the present one.",
        operations=_E,
    ),
    _ml(
        MlRes.EXPECTED_DIGEST,
        "Expected Digest",
        _O,
        "SHA-256 of the image that a push will bring; written before /9/slot/2." + _BY_SLOT,
        operations=_W,
        multiple=True,
        range="32",
    ),
)

ML_URN = f"urn:oma:lwm2m:x:{ML_CAPABILITY}"
ML_DESCRIPTION = (
    "What a device can do with machine learning models, and how the modules in its slots stand. "
    "Defined by spec/device-orchestration.md of TinyMLaaS; the id is one that OMNA reserves for tests."
)

_IPSO_RESOURCES = (
    ResourceDef(IpsoRes.MIN_RANGE, "Min Range Value", _R, _F),
    ResourceDef(IpsoRes.MAX_RANGE, "Max Range Value", _R, _F),
    ResourceDef(IpsoRes.VALUE, "Sensor Value", _R, _F),
    ResourceDef(IpsoRes.UNITS, "Sensor Units", _R, _S),
    ResourceDef(IpsoRes.X, "X Value", _R, _F),
    ResourceDef(IpsoRes.Y, "Y Value", _R, _F),
    ResourceDef(IpsoRes.Z, "Z Value", _R, _F),
    ResourceDef(IpsoRes.APPLICATION_TYPE, "Application Type", _RW, _S),
)

OBJECTS: dict[int, ObjectDef] = {
    definition.id: definition
    for definition in (
        SERVER_DEF,
        DEVICE_DEF,
        SOFTWARE_DEF,
        ML_DEF,
        *(_define(sensor, f"IPSO {name}", True, *_IPSO_RESOURCES) for sensor, name in IPSO_SENSORS.items()),
    )
}
"""Every object that this project knows."""


def kind_of(object_id: int, resource_id: int) -> Kind | None:
    """Type of a resource, or None where the object or resource is unknown or is an executable."""
    definition = OBJECTS.get(object_id)
    resource = definition.resources.get(resource_id) if definition else None
    return resource.kind if resource else None


def ml(resource: MlRes, slot: int | None = None) -> Path:
    """Path of an ML capability resource, or of its instance for a slot."""
    return Path(ML_CAPABILITY, 0, resource, slot)


def software(slot: int, resource: SoftwareRes) -> Path:
    """Path of a software management resource of a slot."""
    return Path(SOFTWARE, slot, resource)
