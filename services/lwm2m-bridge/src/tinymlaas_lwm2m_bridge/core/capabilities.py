"""From what a device answers, and a board catalogue, to its record: reported beats looked up, and the origin stays."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tinymlaas.registry.v1 import devices_pb2
from tinymlaas.type.v1 import target_pb2
from tinymlaas_lwm2m import (
    IPSO_FIRST,
    IPSO_LAST,
    IPSO_SENSORS,
    DeviceRes,
    MlRes,
    ObjectLibrary,
    ObjectLink,
    Path,
    SlotState,
    SoftwareRes,
    UpdateState,
    Value,
    ml,
    multiple,
    software,
)
from tinymlaas_lwm2m.objects import DEVICE, FIRMWARE, SOFTWARE

from .catalogue import Board, Catalogue

REPORTED = devices_pb2.SOURCE_REPORTED
LOOKED_UP = devices_pb2.SOURCE_LOOKED_UP

_SLOT_STATES = {
    SlotState.EMPTY: devices_pb2.Slot.STATE_EMPTY,
    SlotState.RECEIVING: devices_pb2.Slot.STATE_DOWNLOADING,
    SlotState.VERIFIED: devices_pb2.Slot.STATE_DELIVERED,
    SlotState.INSTALLED: devices_pb2.Slot.STATE_INSTALLED,
    SlotState.TESTED: devices_pb2.Slot.STATE_INSTALLED,
    SlotState.ACTIVE: devices_pb2.Slot.STATE_ACTIVE,
}
_UPDATE_STATES = {
    UpdateState.INITIAL: devices_pb2.Slot.STATE_EMPTY,
    UpdateState.DOWNLOAD_STARTED: devices_pb2.Slot.STATE_DOWNLOADING,
    UpdateState.DOWNLOADED: devices_pb2.Slot.STATE_DOWNLOADING,
    UpdateState.DELIVERED: devices_pb2.Slot.STATE_DELIVERED,
    UpdateState.INSTALLED: devices_pb2.Slot.STATE_INSTALLED,
}


def build_device(
    values: Mapping[Path, Value],
    objects: tuple[ObjectLink, ...],
    catalogue: Catalogue,
    library: ObjectLibrary | None = None,
) -> devices_pb2.Device:
    """The record of a device from decoded resources of objects 3, 9, 42769 and its object list.

    Fields that nobody knows stay unset; `capabilities.sources` has an entry for each field path that is set. Names,
    state, bridge and times are the caller's.
    """
    device = devices_pb2.Device(
        manufacturer=_text(values, Path(DEVICE, 0, DeviceRes.MANUFACTURER)),
        model=_text(values, Path(DEVICE, 0, DeviceRes.MODEL)),
        serial=_text(values, Path(DEVICE, 0, DeviceRes.SERIAL)),
        firmware_version=_text(values, Path(DEVICE, 0, DeviceRes.FIRMWARE_VERSION)),
    )
    board = catalogue.find(device.manufacturer, device.model)
    record = _Record(device.capabilities, values)
    record.cpu(board)
    record.memory(board)
    record.software(board)
    record.trust()
    _slots(device.capabilities, values)
    _limit_flash_to_slots(device.capabilities)
    _firmware(device.capabilities, values, objects)
    _peripherals(device.capabilities, objects, library or ObjectLibrary())
    return device


class _Record:
    """Fills one `Capabilities` message and notes the source of each value."""

    def __init__(self, capabilities: devices_pb2.Capabilities, values: Mapping[Path, Value]) -> None:
        self._capabilities = capabilities
        self._target = capabilities.target
        self._values = values

    def _source(self, field: str, source: devices_pb2.Source.ValueType) -> None:
        self._capabilities.sources[field] = source

    def cpu(self, board: Board | None) -> None:
        """CPU, instruction set, features, clock, accelerators."""
        target, values = self._target, self._values
        cpu, isa = _text(values, ml(MlRes.CPU)), _text(values, ml(MlRes.ISA))
        features = _texts(values, MlRes.ISA_FEATURES)
        clock = _size(values, ml(MlRes.CLOCK))
        accelerators = _texts(values, MlRes.ACCELERATORS)
        for field, reported, known in (
            ("cpu", cpu, board.cpu if board else ""),
            ("isa", isa, board.isa if board else ""),
        ):
            if reported or known:
                setattr(target, field, reported or known)
                self._source(f"target.{field}", REPORTED if reported else LOOKED_UP)
        # A device that names its instruction set but no features has none; only silence on both is filled in.
        if isa or features:
            target.features.extend(features)
            self._source("target.features", REPORTED)
        elif board:
            target.features.extend(board.features)
            self._source("target.features", LOOKED_UP)
        if clock or (board and board.clock_hz):
            target.clock_hz = clock or (board.clock_hz if board and board.clock_hz else 0)
            self._source("target.clock_hz", REPORTED if clock else LOOKED_UP)
        for name in accelerators or (board.accelerators if board else ()):
            target.accelerators.append(target_pb2.Accelerator(name=name))
            self._source("target.accelerators", REPORTED if accelerators else LOOKED_UP)
        target.name = target.cpu

    def memory(self, board: Board | None) -> None:
        """RAM and flash: total and free. Object 3's memory (KiB) counts where the ML object is silent."""
        kind = target_pb2.MemoryRegion
        total_kb = _size(self._values, Path(DEVICE, 0, DeviceRes.MEMORY_TOTAL_KB))
        free_kb = _size(self._values, Path(DEVICE, 0, DeviceRes.MEMORY_FREE_KB))
        self._region(
            "ram", kind.KIND_RAM, MlRes.RAM_TOTAL, MlRes.RAM_FREE, board.ram_bytes if board else None, None, None
        )
        self._region(
            "flash",
            kind.KIND_FLASH,
            MlRes.FLASH_TOTAL,
            MlRes.FLASH_FREE,
            board.flash_bytes if board else None,
            None if total_kb is None else total_kb * 1024,
            None if free_kb is None else free_kb * 1024,
        )

    def _region(
        self,
        name: str,
        kind: target_pb2.MemoryRegion.Kind.ValueType,
        total_id: MlRes,
        free_id: MlRes,
        known_total: int | None,
        device_total: int | None,
        device_free: int | None,
    ) -> None:
        reported = _size(self._values, ml(total_id))
        reported = device_total if reported is None else reported
        total = known_total if reported is None else reported
        if total is None:
            return
        region = self._target.memory_regions.add(name=name, kind=kind, total_bytes=total)
        path = f"target.memory_regions.{name}"
        self._source(f"{path}.total_bytes", LOOKED_UP if reported is None else REPORTED)
        free = _size(self._values, ml(free_id))
        free = device_free if free is None else free
        if free is not None:
            region.free_bytes = min(free, total)
            self._source(f"{path}.free_bytes", REPORTED)

    def software(self, board: Board | None) -> None:
        """Runtimes, payload kinds, loader, RTOS, execute in place."""
        target, values, capabilities = self._target, self._values, self._capabilities
        names = multiple(values, ml(MlRes.RUNTIME_NAME))
        versions = multiple(values, ml(MlRes.RUNTIME_VERSION))
        operators = multiple(values, ml(MlRes.RUNTIME_OPERATORS))
        for index, name in names.items():
            listed = str(operators.get(index, "")).split(",")
            target.runtimes.add(
                name=str(name),
                version=str(versions.get(index, "")),
                operators=[operator.strip() for operator in listed if operator.strip()],
            )
            self._source("target.runtimes", REPORTED)
        kinds = _texts(values, MlRes.PAYLOAD_KINDS)
        for text in kinds or (board.payload_kinds if board else ()):
            name = f"PAYLOAD_KIND_{text}"
            if text != "UNSPECIFIED" and name in target_pb2.PayloadKind.keys():  # noqa: SIM118 - an enum, no dict
                target.payload_kinds.append(target_pb2.PayloadKind.Value(name))
                self._source("target.payload_kinds", REPORTED if kinds else LOOKED_UP)
        abi = _size(values, ml(MlRes.LOADER_ABI))
        if abi is not None:
            target.loader_abi = min(abi, 0xFFFFFFFF)
            self._source("target.loader_abi", REPORTED)
        in_place = values.get(ml(MlRes.EXECUTE_IN_PLACE))
        if isinstance(in_place, bool):
            capabilities.execute_in_place = in_place
            self._source("execute_in_place", REPORTED)
        elif board and board.execute_in_place is not None:
            capabilities.execute_in_place = board.execute_in_place
            self._source("execute_in_place", LOOKED_UP)
        rtos = " ".join(filter(None, (_text(values, ml(MlRes.RTOS_NAME)), _text(values, ml(MlRes.RTOS_VERSION)))))
        if rtos or (board and board.rtos):
            capabilities.rtos = rtos or (board.rtos if board else "")
            self._source("rtos", REPORTED if rtos else LOOKED_UP)

    def trust(self) -> None:
        """Keys that the device trusts and its security counter."""
        for key in multiple(self._values, ml(MlRes.KEY_IDS)).values():
            if isinstance(key, bytes) and len(key) <= 64:
                self._capabilities.key_ids.append(key.hex())
                self._source("key_ids", REPORTED)
        counter = _size(self._values, ml(MlRes.SECURITY_COUNTER))
        if counter is not None:
            self._capabilities.security_counter = min(counter, 0xFFFFFFFF)
            self._source("security_counter", REPORTED)


def _limit_flash_to_slots(capabilities: devices_pb2.Capabilities) -> None:
    """A module lies in one slot, and may take the place of one that is not active: what is free is the largest of these.

    Free flash as a device counts it shrinks with every module that it keeps, also with those that the next one replaces.
    """
    usable = [slot.size_bytes for slot in capabilities.slots if slot.state != devices_pb2.Slot.STATE_ACTIVE]
    if not capabilities.slots or not all(slot.size_bytes for slot in capabilities.slots):
        return
    for region in capabilities.target.memory_regions:
        if region.kind == target_pb2.MemoryRegion.KIND_FLASH:
            region.free_bytes = min(max(usable, default=0), region.total_bytes)


def _slots(capabilities: devices_pb2.Capabilities, values: Mapping[Path, Value]) -> None:
    """One slot per instance of object 9 that the device answered for."""
    sizes, states = multiple(values, ml(MlRes.SLOT_SIZE)), multiple(values, ml(MlRes.SLOT_STATE))
    digests = multiple(values, ml(MlRes.MODULE_DIGEST))
    indices = {path.instance_id for path in values if path.object_id == SOFTWARE} | sizes.keys()
    for index in sorted(index for index in indices if index is not None):
        slot = capabilities.slots.add(index=index)
        size, state, digest = sizes.get(index), states.get(index), digests.get(index)
        if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 1 << 63:
            slot.size_bytes = size
        if isinstance(state, int) and state in _SLOT_STATES:
            slot.state = _SLOT_STATES[SlotState(state)]
        else:
            slot.state = _state_of_object_9(values, index)
        if isinstance(digest, bytes) and len(digest) == 32:
            slot.module_sha256 = digest.hex()
        capabilities.sources[f"slots.{index}"] = REPORTED


def _firmware(
    capabilities: devices_pb2.Capabilities, values: Mapping[Path, Value], objects: tuple[ObjectLink, ...]
) -> None:
    """Static firmware: object 5 and no slot. Module Digest 0 is then that of the package that runs."""
    if capabilities.slots or not any((link.object_id, link.instance_id) == (FIRMWARE, 0) for link in objects):
        return
    capabilities.firmware.SetInParent()
    digest = values.get(ml(MlRes.MODULE_DIGEST, 0))
    if isinstance(digest, bytes) and len(digest) == 32:
        capabilities.firmware.package_sha256 = digest.hex()
    capabilities.sources["firmware"] = REPORTED


def _state_of_object_9(values: Mapping[Path, Value], index: int) -> devices_pb2.Slot.State.ValueType:
    """State of a slot of a device without the ML object."""
    update_state = values.get(software(index, SoftwareRes.UPDATE_STATE))
    if update_state == UpdateState.INSTALLED and values.get(software(index, SoftwareRes.ACTIVATION_STATE)) is True:
        return devices_pb2.Slot.STATE_ACTIVE
    if isinstance(update_state, int) and update_state in _UPDATE_STATES:
        return _UPDATE_STATES[UpdateState(update_state)]
    return devices_pb2.Slot.STATE_UNSPECIFIED


def _peripherals(
    capabilities: devices_pb2.Capabilities, objects: tuple[ObjectLink, ...], library: ObjectLibrary
) -> None:
    """Each instance of an IPSO sensor object is something that a model may need as its input.

    One that is not known here is called as its definition says, where a user has added that.
    """
    for link in objects:
        if IPSO_FIRST <= link.object_id <= IPSO_LAST and link.instance_id is not None:
            kind = IPSO_SENSORS.get(link.object_id) or _kind_of_object(link.object_id, library)
            capabilities.peripherals.add(object_id=link.object_id, kind=kind, instance=link.instance_id)


def _kind_of_object(object_id: int, library: ObjectLibrary) -> str:
    definition = library.get(object_id)
    name = re.sub(r"[^a-z0-9]+", "_", definition.name.lower()).strip("_")[:64] if definition else ""
    return name or f"ipso-{object_id}"


def _text(values: Mapping[Path, Value], path: Path) -> str:
    value = values.get(path)
    return value[:256] if isinstance(value, str) else ""


def _texts(values: Mapping[Path, Value], resource: MlRes) -> list[str]:
    return [value[:256] for value in multiple(values, ml(resource)).values() if isinstance(value, str) and value]


def _size(values: Mapping[Path, Value], path: Path) -> int | None:
    """A count or size; negative and absurd ones are no answer."""
    value = values.get(path)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None
