"""The device's objects as values: 1, 3, 9 or 5, 42769 and one IPSO object for each peripheral of the board."""

from __future__ import annotations

from collections.abc import Sequence

from tinymlaas_lwm2m import (
    IPSO_FIRST,
    IPSO_LAST,
    ML_CAPABILITY,
    OBJECTS,
    DeviceRes,
    IpsoRes,
    MlRes,
    ObjectLink,
    Operations,
    Path,
    ServerRes,
    SoftwareRes,
    Value,
    Values,
    ml,
    software,
)
from tinymlaas_lwm2m.objects import DEVICE, FIRMWARE, SERVER, SOFTWARE
from tinymlaas_module import TENTHS, tenth

from .board import BoardSpec, Invocation, SlotState
from .lwm2m_board import BoardWorker
from .lwm2m_firmware import Firmware
from .lwm2m_software import Slot

SHORT_SERVER_ID = 1
BINDING = "U"


class ObjectTree:
    """Answers what a Read of a path gives, from the board's snapshot and the slots."""

    def __init__(self, worker: BoardWorker, slots: Sequence[Slot], firmware: Firmware | None = None) -> None:
        self._worker = worker
        self._slots = slots
        self._firmware = firmware
        self.lifetime_s = 60
        self.output: bytes | None = None
        self.latency_unit = ""
        self.last_error = ""
        # Runs of the module whose digest this is, by tenths of their confidence.
        self.confidence: tuple[bytes | None, list[int]] = (None, [])
        self.previous_slot: int | None = None

    def count(self, invocation: Invocation) -> None:
        """Take the outcome of a run: output, unit, and one more of its confidence."""
        self.output = invocation.output
        self.latency_unit = invocation.latency_unit
        if invocation.confidence is not None:
            counts = self._confidence() or [0] * TENTHS
            counts[tenth(invocation.confidence)] += 1
            self.confidence = (self._active_digest(), counts)

    def forget(self) -> None:
        """Drop what RAM held."""
        self.output = None
        self.last_error = ""
        self.confidence = (None, [])

    def _active_digest(self) -> bytes | None:
        snapshot = self._worker.snapshot
        return None if snapshot.active is None else snapshot.slots[snapshot.active].digest

    def _confidence(self) -> list[int]:
        """Counts of the module that is active now, empty where it has none."""
        digest, counts = self.confidence
        return counts if digest is not None and digest == self._active_digest() else []

    def links(self) -> list[ObjectLink]:
        """Objects and instances for the registration."""
        links = [ObjectLink(SERVER, 0), ObjectLink(DEVICE, 0)]
        links += [ObjectLink(SOFTWARE, slot.index) for slot in self._slots]
        if self._firmware is not None:
            links.append(ObjectLink(FIRMWARE, 0))
        links.append(ObjectLink(ML_CAPABILITY, 0))
        links += [ObjectLink(object_id, instance) for object_id, instance, _ in self._peripherals()]
        return links

    def read(self, path: Path) -> Values | None:
        """Values at or under a path, or None where there is nothing to read.

        The output is given only where it is asked for by its own path: it may be large, and a read of the whole object
        must stay short.
        """
        values: Values = {}
        if path.object_id == SERVER:
            values = self._server()
        elif path.object_id == DEVICE:
            values = self._device()
        elif path.object_id == SOFTWARE:
            for slot in self._slots:
                values |= self._software(slot)
        elif path.object_id == FIRMWARE and self._firmware is not None:
            values = self._firmware.values()
        elif path.object_id == ML_CAPABILITY:
            values = self._capabilities() | self._state()
            if path.resource_id == MlRes.OUTPUT and self.output is not None:
                values[ml(MlRes.OUTPUT)] = self.output
        else:
            for object_id, instance, kind in self._peripherals():
                values[Path(object_id, instance, IpsoRes.APPLICATION_TYPE)] = kind
        found = {at: value for at, value in values.items() if path.covers(at)}
        return found or None

    def discover(self, path: Path) -> list[Path] | None:
        """All paths at or under a path, also of what can only be written or executed; None where there is nothing."""
        found = {Path(link.object_id) for link in self.links()}
        found |= {Path(link.object_id, link.instance_id) for link in self.links()}
        for at in list(found):
            if at.instance_id is None:
                found |= set(self.read(at) or {})
                continue
            definition = OBJECTS.get(at.object_id)
            for resource in definition.resources.values() if definition else ():
                if resource.operations in (Operations.EXECUTE, Operations.WRITE):
                    found.add(at.child(resource.id))
        found |= {Path(at.object_id, at.instance_id, at.resource_id) for at in found if at.depth == 4}
        if path not in found:
            return None
        return [at for at in found if path.covers(at)]

    def _server(self) -> Values:
        def at(resource: ServerRes) -> Path:
            return Path(SERVER, 0, resource)

        return {
            at(ServerRes.SHORT_SERVER_ID): SHORT_SERVER_ID,
            at(ServerRes.LIFETIME): self.lifetime_s,
            at(ServerRes.NOTIFICATION_STORING): False,
            at(ServerRes.BINDING): BINDING,
        }

    def _device(self) -> Values:
        spec, snapshot = self._worker.spec, self._worker.snapshot
        found: dict[DeviceRes, Value] = {
            DeviceRes.MANUFACTURER: spec.manufacturer,
            DeviceRes.MODEL: spec.model,
            DeviceRes.SERIAL: spec.serial,
            DeviceRes.FIRMWARE_VERSION: self._firmware_version(),
            DeviceRes.MEMORY_FREE_KB: snapshot.flash_free // 1024,
            DeviceRes.BINDING: BINDING,
            DeviceRes.HARDWARE_VERSION: spec.hardware_version,
            DeviceRes.MEMORY_TOTAL_KB: spec.flash_total // 1024,
        }
        values: Values = {Path(DEVICE, 0, resource): value for resource, value in found.items()}
        values[Path(DEVICE, 0, DeviceRes.ERROR_CODE, 0)] = 0
        return values

    def _firmware_version(self) -> str:
        running = self._firmware.running if self._firmware is not None else None
        return running.version if running is not None else self._worker.spec.firmware_version

    def _software(self, slot: Slot) -> Values:
        status = self._worker.snapshot.slots[slot.index]
        return {
            software(slot.index, SoftwareRes.NAME): status.name,
            software(slot.index, SoftwareRes.VERSION): status.version,
            software(slot.index, SoftwareRes.UPDATE_STATE): int(slot.update_state),
            software(slot.index, SoftwareRes.UPDATE_RESULT): int(slot.memory.update_result),
            software(slot.index, SoftwareRes.ACTIVATION_STATE): status.state is SlotState.ACTIVE,
            software(slot.index, SoftwareRes.STATUS_REASON): slot.memory.status_reason,
        }

    def _capabilities(self) -> Values:
        """What does not change while the device runs, but for free memory."""
        spec, snapshot = self._worker.spec, self._worker.snapshot
        values: Values = {
            ml(MlRes.ISA): spec.isa,
            ml(MlRes.CLOCK): spec.clock_hz,
            ml(MlRes.RAM_TOTAL): spec.ram_total,
            ml(MlRes.RAM_FREE): snapshot.ram_free,
            ml(MlRes.FLASH_TOTAL): spec.flash_total,
            ml(MlRes.FLASH_FREE): snapshot.flash_free,
            ml(MlRes.EXECUTE_IN_PLACE): spec.execute_in_place,
            ml(MlRes.RTOS_NAME): spec.rtos,
            ml(MlRes.LOADER_ABI): spec.loader_abi,
            ml(MlRes.CPU): spec.cpu,
        }
        for index, runtime in enumerate(spec.runtimes):
            values[ml(MlRes.RUNTIME_NAME, index)] = runtime.name
            values[ml(MlRes.RUNTIME_VERSION, index)] = runtime.version
            values[ml(MlRes.RUNTIME_OPERATORS, index)] = ",".join(runtime.operators)
        lists: tuple[tuple[MlRes, Sequence[Value]], ...] = (
            (MlRes.ISA_FEATURES, spec.features),
            (MlRes.PAYLOAD_KINDS, spec.payload_kinds),
            (MlRes.KEY_IDS, spec.key_ids),
            (MlRes.SLOT_SIZE, () if spec.static_firmware else spec.slot_sizes),
        )
        for resource, items in lists:
            values |= {ml(resource, index): item for index, item in enumerate(items)}
        return values

    def _state(self) -> Values:
        """What changes: slots, tests, counters."""
        snapshot = self._worker.snapshot
        counters = snapshot.counters
        values: Values = {
            ml(MlRes.SECURITY_COUNTER): counters.security_counter,
            ml(MlRes.INVOCATIONS): counters.invocations,
            ml(MlRes.LAST_LATENCY): counters.last_latency,
            ml(MlRes.LATENCY_UNIT): self.latency_unit or counters.latency_unit,
            ml(MlRes.ERROR_COUNT): counters.errors,
        }
        values |= {ml(MlRes.CONFIDENCE, index): count for index, count in enumerate(self._confidence())}
        if self.last_error:
            values[ml(MlRes.LAST_ERROR)] = self.last_error
        if self.previous_slot is not None:
            values[ml(MlRes.PREVIOUS_SLOT)] = self.previous_slot
        digest = self._active_digest()
        if self._firmware is not None and digest is not None:
            values[ml(MlRes.MODULE_DIGEST, 0)] = digest
        for slot in self._slots:
            status = snapshot.slots[slot.index]
            values[ml(MlRes.SLOT_STATE, slot.index)] = int(slot.slot_state)
            values[ml(MlRes.RECEIVED_BYTES, slot.index)] = status.bytes_written
            values[ml(MlRes.SELF_TEST_RESULT, slot.index)] = int(slot.self_test)
            if status.digest is not None:
                values[ml(MlRes.MODULE_DIGEST, slot.index)] = status.digest
            elif slot.pending_digest is not None:
                values[ml(MlRes.MODULE_DIGEST, slot.index)] = slot.pending_digest
            if slot.test_result is not None and slot.test_result.detail:
                values[ml(MlRes.SELF_TEST_DETAIL, slot.index)] = slot.test_result.detail[:200]
        return values

    def _peripherals(self) -> list[tuple[int, int, str]]:
        """(object id, instance id, kind) of each peripheral that has an IPSO object."""
        return peripherals(self._worker.spec)


def peripherals(spec: BoardSpec) -> list[tuple[int, int, str]]:
    """(object id, instance id, kind); instances of one object are numbered in the board's order."""
    found: list[tuple[int, int, str]] = []
    for peripheral in spec.peripherals:
        if IPSO_FIRST <= peripheral.object_id <= IPSO_LAST:
            instance = sum(1 for object_id, _, _ in found if object_id == peripheral.object_id)
            found.append((peripheral.object_id, instance, peripheral.kind))
    return found
