"""Writers of one device's record each name what they write; the record keeps the rest, on SQLite and on PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from registry_rig import error_of, running
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from tinymlaas.registry.v1 import access_pb2, devices_pb2
from tinymlaas_registry.adapters import SqlRecords
from tinymlaas_registry.core.devices import WRITABLE, written

NAME = "projects/p/devices/d"
LATER = 4_000_000_000


def device(**fields: object) -> devices_pb2.Device:
    return devices_pb2.Device(name=NAME, **fields)


def request(told: devices_pb2.Device, *paths: str) -> devices_pb2.UpsertDeviceRequest:
    return devices_pb2.UpsertDeviceRequest(device=told, update_mask=FieldMask(paths=paths))


def full() -> devices_pb2.Device:
    """A device with something in every field."""
    found = device(
        state=devices_pb2.Device.STATE_REGISTERED,
        manufacturer="m",
        model="k",
        serial="s",
        firmware_version="1",
        bridge="b",
        last_seen_time=Timestamp(seconds=10),
        active_module="projects/p/modules/a",
    )
    found.capabilities.target.cpu, found.capabilities.target.isa = "cortex-m4", "armv7e-m"
    found.capabilities.key_ids[:] = ["k1", "k2"]
    found.capabilities.sources["target.cpu"] = devices_pb2.SOURCE_REPORTED
    return found


async def test_a_mask_writes_its_fields_as_a_whole_and_leaves_the_others(tmp_path: Path) -> None:
    assert {field.name for field, _ in full().ListFields()} - {"name"} == set(WRITABLE)
    async with running(tmp_path) as client:
        await client.devices.UpsertDevice(request(full()))
        told = device(firmware_version="2", active_module="other")
        told.capabilities.target.CopyFrom(full().capabilities.target)
        told.capabilities.key_ids[:] = ["k3"]
        answer = await client.devices.UpsertDevice(
            request(told, "capabilities", "firmware_version", "serial", "serial")
        )
        expected = full()
        expected.capabilities.CopyFrom(told.capabilities)  # its map and its list are replaced, not merged
        expected.firmware_version, expected.serial = "2", ""
        assert answer == expected
        assert await client.devices.GetDevice(devices_pb2.GetDeviceRequest(name=NAME)) == expected
        answer = await client.devices.UpsertDevice(request(device(), "capabilities", "last_seen_time", "state"))
        assert answer == expected, "what is told as of no time is out of date"
        answer = await client.devices.UpsertDevice(request(device(), "capabilities", "state"))
        assert (answer.HasField("capabilities"), answer.active_module) == (False, full().active_module)
        assert await client.devices.UpsertDevice(request(told)) == told, "without a mask the record is replaced"


async def test_a_device_that_is_not_recorded_is_made_with_the_fields_of_the_mask_and_counts(tmp_path: Path) -> None:
    async with running(tmp_path, default_max_devices=1) as client:
        answer = await client.devices.UpsertDevice(request(full(), "serial", "state"))
        assert answer == device(serial="s", state=devices_pb2.Device.STATE_REGISTERED)
        another = full()
        another.name = "projects/p/devices/e"
        error = await error_of(client.devices.UpsertDevice(request(another, "serial")))
        assert (error.reason, error.metadata["quota"]) == ("QUOTA_EXCEEDED", "devices")
        project = await client.projects.GetProject(access_pb2.GetProjectRequest(name="projects/p"))
        assert project.usage.devices == 1


@pytest.mark.parametrize(
    "path", ["name", "", "*", "nothing", "capabilities.slots", "State", "serial,model", "x" * 4000]
)
async def test_other_masks_are_refused_and_write_nothing(tmp_path: Path, path: str) -> None:
    async with running(tmp_path) as client:
        await client.devices.UpsertDevice(request(full()))
        error = await error_of(client.devices.UpsertDevice(request(device(serial="t"), "serial", path)))
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "UPDATE_MASK_INVALID")
        assert error.metadata == {"field": "update_mask", "path": path[:64]}
        assert [violation.field for violation in error.violations] == ["update_mask"]
        assert "active_module" in error.help
        assert await client.devices.GetDevice(devices_pb2.GetDeviceRequest(name=NAME)) == full()


async def test_what_is_told_too_late_writes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as client:

        async def tell(seconds: int, model: str) -> devices_pb2.Device:
            told = device(last_seen_time=Timestamp(seconds=seconds), model=model)
            return await client.devices.UpsertDevice(request(told, "last_seen_time", "model"))

        assert (await tell(20, "first")).model == "first"
        assert (await tell(20, "same time")).model == "same time"
        assert (await tell(19, "late")).model == "same time"
        module = device(last_seen_time=Timestamp(seconds=1), active_module="m")
        answer = await client.devices.UpsertDevice(request(module, "active_module"))
        assert (answer.active_module, answer.last_seen_time.seconds) == ("m", 20), "whoever tells no time is never late"
        assert (await tell(LATER, "wrong clock")).model == "wrong clock"
        assert (await tell(30, "right clock")).model == "right clock", "a time to come refuses nothing"


async def test_the_same_holds_to_the_nanosecond() -> None:
    now = Timestamp(seconds=100)

    def after(before: tuple[int, int], at: tuple[int, int]) -> str:
        known, told = (
            device(last_seen_time=Timestamp(seconds=s, nanos=n), model=model)
            for (s, n), model in ((before, "known"), (at, "told"))
        )
        return written(known, told, ("model", "last_seen_time"), now).model

    assert after((5, 1), (5, 0)) == "known"
    assert after((5, 0), (5, 0)) == after((5, 0), (5, 1)) == "told"
    assert after((100, 0), (99, 999_999_999)) == "known"
    assert after((100, 1), (100, 0)) == "told"


def impatient(engine: Engine) -> None:
    """New connections give up at once where they would wait for another's lock."""
    setting = "PRAGMA busy_timeout=1" if engine.dialect.name == "sqlite" else "SET lock_timeout = '1ms'"

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.execute(setting)
        connection.commit()

    engine.dispose()


@pytest.mark.parametrize("recorded", [True, False])
async def test_nobody_else_writes_a_device_between_its_reading_and_writing(tmp_path: Path, recorded: bool) -> None:
    """Two registries on one database: while one has read and not written, the other one can't; then it sees what was written."""
    async with running(tmp_path) as one, running(tmp_path) as other:
        first, second = (SqlRecords(client.registry._engine) for client in (one, other))
        if recorded:
            first.change_device(NAME, lambda known: full())
        impatient(other.registry._engine)

        def model(known: devices_pb2.Device | None) -> devices_pb2.Device:
            return written(known, device(model="second"), ("model",), Timestamp())

        def serial(known: devices_pb2.Device | None) -> devices_pb2.Device:
            assert (known is not None) == recorded
            with pytest.raises(OperationalError):
                SqlRecords.change_device.__wrapped__(second, NAME, model)  # without its patience
            return written(known, device(serial="first"), ("serial",), Timestamp())

        first.change_device(NAME, serial)
        found = second.change_device(NAME, model)
        assert (found.serial, found.model, found.firmware_version) == ("first", "second", "1" if recorded else "")
        assert first.get_device(NAME) == found
