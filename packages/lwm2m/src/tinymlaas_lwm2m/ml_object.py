"""Object 42769, ML capability, of spec/device-orchestration.md; `spec/objects/42769.xml` says the same in the OMA schema."""

from __future__ import annotations

from enum import IntEnum

from .model import BOOLEAN, EXECUTE, INTEGER, OPAQUE, READ, STRING, WRITE, Operations, ResourceDef, define
from .values import Kind, Path

ML_CAPABILITY = 42769
"""An id of the range that OMNA reserves for tests (42769 to 65534); a registered one would replace it here only."""


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
    CONFIDENCE = 37


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


_BY_SLOT = " The resource instance id is the slot: the instance id of object 9."


def _ml(
    resource: MlRes,
    name: str,
    kind: Kind | None,
    description: str,
    *,
    operations: Operations = READ,
    multiple: bool = False,
    mandatory: bool = False,
    units: str = "",
    range: str = "",
) -> ResourceDef:
    return ResourceDef(resource, name, operations, kind, multiple, mandatory, units, range, description)


ML_DEF = define(
    ML_CAPABILITY,
    "ML Capability",
    False,
    _ml(MlRes.ISA, "ISA", STRING, "Base instruction set, such as armv7e-m or rv32imc.", mandatory=True),
    _ml(MlRes.ISA_FEATURES, "ISA Features", STRING, "One feature each: thumb2, dsp, fpu-sp, mve, ...", multiple=True),
    _ml(MlRes.CLOCK, "Clock", INTEGER, "CPU clock while a module runs.", units="Hz"),
    _ml(MlRes.RAM_TOTAL, "RAM Total", INTEGER, "RAM of the whole device.", mandatory=True, units="B"),
    _ml(
        MlRes.RAM_FREE,
        "RAM Free",
        INTEGER,
        "RAM that a module can use for arena and stack, after RTOS and application.",
        mandatory=True,
        units="B",
    ),
    _ml(MlRes.FLASH_TOTAL, "Flash Total", INTEGER, "Flash of the whole device.", mandatory=True, units="B"),
    _ml(
        MlRes.FLASH_FREE,
        "Flash Free",
        INTEGER,
        "Flash that a module can use: what holds neither firmware nor a module in use.",
        mandatory=True,
        units="B",
    ),
    _ml(
        MlRes.SLOT_SIZE,
        "Slot Size",
        INTEGER,
        "Largest module image that the slot takes." + _BY_SLOT,
        multiple=True,
        mandatory=True,
        units="B",
    ),
    _ml(
        MlRes.SLOT_STATE,
        "Slot State",
        INTEGER,
        "0 empty, 1 receiving, 2 verified, 3 installed, 4 self-test passed, 5 active." + _BY_SLOT,
        multiple=True,
        mandatory=True,
        range="0..5",
    ),
    _ml(
        MlRes.MODULE_DIGEST,
        "Module Digest",
        OPAQUE,
        "SHA-256 of the module image that the slot holds or receives; no instance for an empty slot." + _BY_SLOT,
        multiple=True,
        mandatory=True,
        range="32",
    ),
    _ml(
        MlRes.RECEIVED_BYTES,
        "Received Bytes",
        INTEGER,
        "Bytes of the image that are stored durably; a resumed download starts here." + _BY_SLOT,
        multiple=True,
        units="B",
    ),
    _ml(MlRes.PREVIOUS_SLOT, "Previous Slot", INTEGER, "Slot that Rollback activates; absent where there is none."),
    _ml(MlRes.EXECUTE_IN_PLACE, "Execute In Place", BOOLEAN, "True where code runs from flash without a copy in RAM."),
    _ml(MlRes.RTOS_NAME, "RTOS Name", STRING, "none for bare metal."),
    _ml(MlRes.RTOS_VERSION, "RTOS Version", STRING, "Version of the RTOS."),
    _ml(MlRes.LOADER_ABI, "Loader ABI", INTEGER, "Native payload ABI of the loader; 0 for none.", mandatory=True),
    _ml(MlRes.RUNTIME_NAME, "Runtime Name", STRING, "One instance per model runtime: tflite-micro, ...", multiple=True),
    _ml(
        MlRes.RUNTIME_VERSION,
        "Runtime Version",
        STRING,
        "Version of the runtime with the same instance id.",
        multiple=True,
    ),
    _ml(
        MlRes.RUNTIME_OPERATORS,
        "Runtime Operators",
        STRING,
        "Operators of the runtime with the same instance id, separated by commas.",
        multiple=True,
    ),
    _ml(MlRes.ACCELERATORS, "Accelerators", STRING, "One instance per accelerator: ethos-u55-128, ...", multiple=True),
    _ml(
        MlRes.PAYLOAD_KINDS,
        "Payload Kinds",
        STRING,
        "Kinds of payload that the loader takes: NATIVE, TFLITE, ...",
        multiple=True,
        mandatory=True,
    ),
    _ml(MlRes.KEY_IDS, "Key IDs", OPAQUE, "Ids of the public keys that the loader trusts.", multiple=True, range="8"),
    _ml(
        MlRes.SECURITY_COUNTER,
        "Security Counter",
        INTEGER,
        "Modules with a smaller counter are refused as a downgrade.",
    ),
    _ml(
        MlRes.SELF_TEST,
        "Self-Test",
        None,
        "Runs the golden vectors of the module in a slot. Argument 0='slot', default 0.",
        operations=EXECUTE,
        mandatory=True,
    ),
    _ml(
        MlRes.SELF_TEST_RESULT,
        "Self-Test Result",
        INTEGER,
        "0 not run, 1 passed, 2 failed, 3 running." + _BY_SLOT,
        multiple=True,
        mandatory=True,
        range="0..3",
    ),
    _ml(MlRes.SELF_TEST_DETAIL, "Self-Test Detail", STRING, "Why the self-test failed." + _BY_SLOT, multiple=True),
    _ml(
        MlRes.INPUT,
        "Input",
        OPAQUE,
        "Values of all input tensors of the active module, one after the other in the order of its tensor table.",
        operations=WRITE,
    ),
    _ml(MlRes.INVOKE, "Invoke", None, "Runs the active module; answers when it has run.", operations=EXECUTE),
    _ml(
        MlRes.OUTPUT,
        "Output",
        OPAQUE,
        "Values of all output tensors of the last successful run, one after the other; absent before the first.",
    ),
    _ml(MlRes.INVOCATIONS, "Invocations", INTEGER, "Successful runs since the module became active."),
    _ml(MlRes.LAST_LATENCY, "Last Latency", INTEGER, "Cost of the last run, in the unit of resource 31."),
    _ml(MlRes.LATENCY_UNIT, "Latency Unit", STRING, "instructions, cycles or us; never a time derived from a count."),
    _ml(MlRes.ERROR_COUNT, "Error Count", INTEGER, "Runs and self-tests that failed since the last boot."),
    _ml(MlRes.LAST_ERROR, "Last Error", STRING, "Reason of the last failure; absent where there was none."),
    _ml(MlRes.CPU, "CPU", STRING, "CPU name, such as cortex-m4."),
    _ml(
        MlRes.ROLLBACK,
        "Rollback",
        None,
        "Activates the module of the previous slot again and deactivates the present one.",
        operations=EXECUTE,
    ),
    _ml(
        MlRes.EXPECTED_DIGEST,
        "Expected Digest",
        OPAQUE,
        "SHA-256 of the image that a push will bring; written before /9/slot/2." + _BY_SLOT,
        operations=WRITE,
        multiple=True,
        range="32",
    ),
    _ml(
        MlRes.CONFIDENCE,
        "Confidence",
        INTEGER,
        "Successful runs since the module became active, by the tenth of 0 to 1 that their confidence lies in. "
        "The resource instance id is the tenth, 0 to 9; absent where no run had one.",
        multiple=True,
    ),
)

ML_URN = f"urn:oma:lwm2m:x:{ML_CAPABILITY}"
ML_DESCRIPTION = (
    "What a device can do with machine learning models, and how the modules in its slots stand. "
    "Defined by spec/device-orchestration.md of TinyMLaaS; the id is one that OMNA reserves for tests."
)


def ml(resource: MlRes, slot: int | None = None) -> Path:
    """Path of an ML capability resource, or of its instance for a slot."""
    return Path(ML_CAPABILITY, 0, resource, slot)
