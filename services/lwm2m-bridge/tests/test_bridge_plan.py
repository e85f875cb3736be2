"""Decisions and records as pure functions: what to do next, which slot, what a device is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymlaas.registry.v1 import devices_pb2
from tinymlaas_lwm2m import (
    MlRes,
    ObjectDef,
    ObjectLibrary,
    ObjectLink,
    Path,
    SelfTestResult,
    UpdateResult,
    UpdateState,
    Value,
    ml,
)
from tinymlaas_lwm2m.objects import DEVICE, ML_DEF, SOFTWARE
from tinymlaas_lwm2m_bridge import BridgeError, Catalogue, InstallRequest, Reason
from tinymlaas_lwm2m_bridge.core.capabilities import build_device
from tinymlaas_lwm2m_bridge.core.catalogue import CatalogueError
from tinymlaas_lwm2m_bridge.core.errors import _TABLE, RESULT_REASONS, error_of_result
from tinymlaas_lwm2m_bridge.core.install_plan import Action, DeviceView, SlotView, choose_slot, next_action, read_view
from tinymlaas_lwm2m_bridge.core.install_record import InstallRecord

OURS, THEIRS = b"\x01" * 32, b"\x02" * 32
RECORD = InstallRecord(InstallRequest("i", "node", OURS.hex()), slot=0)
SENT = replace(RECORD, attempts=1, install_sent=True, test_sent=True)
CATALOGUE = Catalogue.builtin()
NOT_RUN, PASSED, FAILED, RUNNING = (int(result) for result in SelfTestResult)


def slot(state: UpdateState, digest: bytes | None = OURS, **changes: Any) -> SlotView:
    return SlotView(index=0, update_state=state, digest=digest, **changes)


@pytest.mark.parametrize(
    ("view", "action"),
    [
        (slot(UpdateState.INITIAL, None), Action.TRANSFER),
        (slot(UpdateState.INITIAL, None, update_result=UpdateResult.INTEGRITY_FAILURE), Action.TRANSFER),
        (slot(UpdateState.INITIAL, OURS, update_result=UpdateResult.CONNECTION_LOST), Action.TRANSFER),
        (slot(UpdateState.DOWNLOAD_STARTED), Action.WAIT),
        (slot(UpdateState.DOWNLOAD_STARTED, THEIRS), Action.CLEAR),
        (slot(UpdateState.DOWNLOADED), Action.WAIT),
        (slot(UpdateState.DELIVERED), Action.INSTALL),
        (slot(UpdateState.DELIVERED, THEIRS), Action.CLEAR),
        (slot(UpdateState.INSTALLED, self_test=NOT_RUN), Action.SELF_TEST),
        (slot(UpdateState.INSTALLED, self_test=RUNNING), Action.WAIT),
        (slot(UpdateState.INSTALLED, self_test=PASSED), Action.READY),
        (slot(UpdateState.INSTALLED, self_test=FAILED), Action.SELF_TEST),
        (slot(UpdateState.INSTALLED, THEIRS, self_test=PASSED), Action.CLEAR),
        (slot(UpdateState.INSTALLED, active=True, self_test=PASSED), Action.READY),
    ],
)
def test_a_new_install_takes_up_wherever_the_device_stands(view: SlotView, action: Action) -> None:
    """DO-INST-001."""
    assert next_action(RECORD, view, OURS) is action


@pytest.mark.parametrize("result", [50, 51, 52, 53, 54, 56, 57, 58, 59, 60, 200])
def test_every_failure_code_of_object_9_ends_a_download_with_its_reason(result: int) -> None:
    """DO-INST-011."""
    view = slot(UpdateState.INITIAL, None, update_result=result, status_reason="DOWNGRADE: counter 1 below 2")
    with pytest.raises(BridgeError) as caught:
        next_action(SENT, view, OURS)
    assert caught.value.reason == RESULT_REASONS.get(result, Reason.RESULT_UNKNOWN)
    assert caught.value.metadata["device_reason"] == "DOWNGRADE"
    assert caught.value.help


def test_a_failed_install_and_a_failed_self_test_end_the_install() -> None:
    with pytest.raises(BridgeError) as caught:
        next_action(SENT, slot(UpdateState.DELIVERED, update_result=UpdateResult.INSTALL_FAILURE), OURS)
    assert caught.value.reason == Reason.INSTALL_FAILED
    with pytest.raises(BridgeError) as caught:
        next_action(SENT, slot(UpdateState.INSTALLED, self_test=FAILED, self_test_detail="output 3"), OURS)
    assert (caught.value.reason, caught.value.detail) == (Reason.SELF_TEST_FAILED, "output 3")


def test_a_device_that_drops_an_image_after_a_failed_self_test_does_not_get_it_again() -> None:
    view = slot(UpdateState.INITIAL, None, update_result=UpdateResult.INSTALLED, self_test=FAILED)
    with pytest.raises(BridgeError) as caught:
        next_action(SENT, view, OURS)
    assert caught.value.reason == Reason.SELF_TEST_FAILED


def test_a_device_without_digests_is_believed_after_a_transfer_and_not_before() -> None:
    plain = slot(UpdateState.DELIVERED, None, knows_digests=False)
    assert next_action(RECORD, plain, OURS) is Action.CLEAR
    assert next_action(SENT, plain, OURS) is Action.INSTALL
    assert next_action(SENT, replace(plain, update_state=UpdateState.INSTALLED), OURS) is Action.READY


@settings(deadline=None)
@given(
    state=st.sampled_from(list(UpdateState)),
    result=st.integers(0, 255),
    digest=st.sampled_from([None, OURS, THEIRS]),
    test=st.sampled_from([None, 0, 1, 2, 3]),
    active=st.booleans(),
    attempts=st.integers(0, 3),
)
def test_nothing_but_a_passed_test_or_a_device_without_one_is_ready(
    state: UpdateState, result: int, digest: bytes | None, test: int | None, active: bool, attempts: int
) -> None:
    view = SlotView(0, state, result, active, "", digest, 1000, 0, test)
    try:
        action = next_action(replace(RECORD, attempts=attempts), view, OURS)
    except BridgeError:
        return
    if action is Action.READY:
        assert digest == OURS
        assert active or (state == UpdateState.INSTALLED and test in (None, PASSED))
    if digest == THEIRS and state != UpdateState.INITIAL:
        assert action is Action.CLEAR


def test_slots_are_chosen_in_the_order_that_costs_least() -> None:
    """DO-INST-015."""
    empty = SlotView(0, UpdateState.INITIAL, size=1000)
    active = SlotView(1, UpdateState.INSTALLED, active=True, digest=THEIRS, size=1000)
    rollback = SlotView(2, UpdateState.INSTALLED, digest=b"\x03" * 32, size=1000)
    idle = SlotView(3, UpdateState.INSTALLED, digest=b"\x04" * 32, size=1000)
    holding = SlotView(4, UpdateState.DELIVERED, digest=OURS, size=1000)
    for slots, chosen in (
        ((empty, active, rollback, idle, holding), 4),
        ((empty, active, rollback, idle), 0),
        ((active, rollback, idle), 3),
        ((active, rollback), 2),
    ):
        assert choose_slot(DeviceView(slots, previous_slot=2), OURS, 1000, None) == chosen
    with pytest.raises(BridgeError) as caught:
        choose_slot(DeviceView((active,)), OURS, 1000, None)
    assert caught.value.reason == Reason.NO_FREE_SLOT
    with pytest.raises(BridgeError) as caught:
        choose_slot(DeviceView((empty,)), OURS, 1001, None)
    assert caught.value.metadata == {"region": "slot", "need": "1001", "have": "1000"}


def test_a_wanted_slot_is_taken_or_refused_for_a_reason() -> None:
    view = DeviceView((SlotView(0, UpdateState.INSTALLED, active=True, digest=THEIRS, size=9), SlotView(1, 0, size=9)))
    assert choose_slot(view, OURS, 9, 1) == 1
    for wanted, size, reason in ((0, 9, Reason.SLOT_ACTIVE), (1, 10, Reason.DOES_NOT_FIT), (2, 9, Reason.SLOT_UNKNOWN)):
        with pytest.raises(BridgeError) as caught:
            choose_slot(view, OURS, size, wanted)
        assert caught.value.reason == reason
    assert choose_slot(view, THEIRS, 9, 0) == 0


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 40), st.one_of(st.integers(), st.text(), st.binary(), st.booleans())))
def test_any_answers_of_a_device_become_a_view_or_an_error(resources: dict[int, Any]) -> None:
    values: dict[Path, Value] = {Path(SOFTWARE, 0, resource): value for resource, value in resources.items()}
    values |= {Path(42769, 0, resource, 0): value for resource, value in resources.items()}
    try:
        view = read_view(values, [0])
    except BridgeError as error:
        assert error.reason == Reason.DEVICE_ANSWER_INVALID  # noqa: PT017
        return
    assert 0 <= view.slots[0].update_state <= 4


def test_every_reason_has_a_code_and_help_and_every_row_of_the_spec() -> None:
    spec = (FilePath(__file__).parents[3] / "spec" / "device-orchestration.md").read_text(encoding="utf-8")
    for reason in Reason:
        code, help_text = _TABLE[reason]
        assert help_text.endswith(".")
        assert f"| `{reason}` | {code} |" in spec, reason
    assert error_of_result(123, "", 0).reason == Reason.RESULT_UNKNOWN


OBJECTS = (ObjectLink(3, 0), ObjectLink(3324, 0), ObjectLink(3303, 1), ObjectLink(9, 0), ObjectLink(3399, 0))


def device_values(manufacturer: str, model: str) -> dict[Path, Value]:
    return {Path(DEVICE, 0, 0): manufacturer, Path(DEVICE, 0, 1): model, Path(SOFTWARE, 0, 7): 0}


@pytest.mark.parametrize(
    ("manufacturer", "model", "cpu", "ram"),
    [
        ("STMicroelectronics", "B-L475E-IOT01A", "cortex-m4", 128 << 10),
        ("stmicroelectronics", "nucleo f401re", "cortex-m4", 96 << 10),
        ("Nordic Semiconductor", "nRF9160", "cortex-m33", 256 << 10),
        ("Arduino", "Nano 33 BLE Sense", "cortex-m4", 256 << 10),
        ("Raspberry Pi", "Pico", "cortex-m0plus", 264 << 10),
        ("Arm", "Corstone-300", "cortex-m55", 4 << 20),
    ],
)
def test_an_ordinary_device_is_looked_up_and_marked_as_such(manufacturer: str, model: str, cpu: str, ram: int) -> None:
    record = build_device(device_values(manufacturer, model), OBJECTS, CATALOGUE)
    assert record.capabilities.target.cpu == cpu
    assert record.capabilities.target.memory_regions[0].total_bytes == ram
    assert not record.capabilities.target.memory_regions[0].HasField("free_bytes")
    assert record.capabilities.sources["target.cpu"] == devices_pb2.SOURCE_LOOKED_UP
    assert [(p.object_id, p.kind, p.instance) for p in record.capabilities.peripherals] == [
        (3324, "microphone", 0),
        (3303, "temperature", 1),
        (3399, "ipso-3399", 0),
    ]
    assert record.capabilities.slots[0].state == devices_pb2.Slot.STATE_EMPTY


def test_what_is_reported_beats_what_is_looked_up_value_by_value() -> None:
    """DO-CAP-001, DO-CAP-003, DO-CAP-004."""
    values = device_values("Raspberry Pi", "Pico")
    values |= {ml(MlRes.ISA): "armv8-m.main", ml(MlRes.RAM_TOTAL): 1000, ml(MlRes.RAM_FREE): 5000}
    capabilities = build_device(values, OBJECTS, CATALOGUE).capabilities
    assert (capabilities.target.isa, capabilities.target.cpu) == ("armv8-m.main", "cortex-m0plus")
    assert list(capabilities.target.features) == []
    ram = next(region for region in capabilities.target.memory_regions if region.name == "ram")
    assert (ram.total_bytes, ram.free_bytes) == (1000, 1000)
    assert capabilities.sources["target.isa"] == devices_pb2.SOURCE_REPORTED
    assert capabilities.sources["target.cpu"] == devices_pb2.SOURCE_LOOKED_UP
    assert capabilities.sources["target.memory_regions.ram.total_bytes"] == devices_pb2.SOURCE_REPORTED
    assert capabilities.sources["target.memory_regions.flash.total_bytes"] == devices_pb2.SOURCE_LOOKED_UP


def test_an_unknown_device_has_no_invented_values() -> None:
    """DO-CAP-002."""
    record = build_device(device_values("Nobody", "Thing"), (), CATALOGUE)
    assert not record.capabilities.target.ListFields()
    assert dict(record.capabilities.sources) == {"slots.0": devices_pb2.SOURCE_REPORTED}


@pytest.mark.parametrize("told", [bytes(32), None, b"short", 7])
def test_a_device_with_object_5_and_no_slot_has_static_firmware(told: Any) -> None:
    """DO-FW-007: with the digest of what runs where that is one, and never beside slots."""
    values: dict[Path, Value] = {Path(3, 0, 1): "static-m4"} | ({ml(MlRes.MODULE_DIGEST, 0): told} if told else {})
    objects = (ObjectLink(3, 0), ObjectLink(5, 0, "1.1"))
    capabilities = build_device(values, objects, CATALOGUE).capabilities
    assert capabilities.HasField("firmware")
    assert capabilities.firmware.package_sha256 == (told.hex() if told == bytes(32) else "")
    assert capabilities.sources["firmware"] == devices_pb2.SOURCE_REPORTED
    assert not build_device(values, (ObjectLink(3, 0),), CATALOGUE).capabilities.HasField("firmware")
    slots = values | {Path(9, 0, 7): 0}
    assert not build_device(slots, (*objects, ObjectLink(9, 0)), CATALOGUE).capabilities.HasField("firmware")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 40), st.none() | st.integers(0, 9)),
        st.one_of(st.integers(), st.floats(), st.text(), st.binary(), st.booleans()),
    )
)
def test_any_values_of_a_device_become_a_record(found: dict[tuple[int, int | None], Any]) -> None:
    values: dict[Path, Value] = {Path(42769, 0, resource, index): value for (resource, index), value in found.items()}
    build_device(values, OBJECTS, CATALOGUE).SerializeToString()


def test_a_peripheral_that_only_a_users_definition_knows_has_its_name() -> None:
    """DO-CAP-007."""
    library = ObjectLibrary([ObjectDef(3399, "Gas / VOC Sensor", True)])
    for known, kind in ((library, "gas_voc_sensor"), (None, "ipso-3399")):
        record = build_device({}, OBJECTS, CATALOGUE, known)
        assert (kind, 3399) in [(p.kind, p.object_id) for p in record.capabilities.peripherals]


def test_users_can_add_boards_and_mistakes_in_their_file_are_named(tmp_path: FilePath) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("boards: [{manufacturer: Me, models: [X1], cpu: cortex-m3, isa: armv7-m, ram: 20 KiB}]")
    board = Catalogue.builtin(file).find("ME", "x-1")
    assert board is not None
    assert board.ram_bytes == 20_480
    for text, detail in (
        ("boards: 1", "no list"),
        ("boards: [{models: [a]}]", "needs manufacturer"),
        ("boards: [{manufacturer: a, models: [b], cpu: c, isa: d, size: 1}]", "unknown field size"),
        ("boards: [{manufacturer: a, models: [b], cpu: c, isa: d, ram: lots}]", "ram must be a size"),
        ("boards: [{manufacturer: a, models: b, cpu: c, isa: d}]", "models must be a list"),
    ):
        file.write_text(text)
        with pytest.raises(CatalogueError, match=detail):
            Catalogue.load(file)


def test_the_table_of_the_ml_object_in_the_spec_says_what_the_code_says() -> None:
    """DO-ML-001."""
    spec = (FilePath(__file__).parents[3] / "spec" / "device-orchestration.md").read_text(encoding="utf-8")
    for resource in ML_DEF.resources.values():
        mark = " *" if resource.mandatory else ""
        instances = "many" if resource.multiple else "one"
        kind = resource.kind.value if resource.kind else "–"
        row = f"| {resource.id} | {resource.name}{mark} | {resource.operations.value} | {instances} | {kind} | "
        assert row + f"{resource.units} | {resource.description} |" in spec, resource
