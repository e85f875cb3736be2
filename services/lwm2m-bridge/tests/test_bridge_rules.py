"""Rules of spec/device-orchestration.md about what a device shows and what a bridge confirms, each by its id."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiocoap import Code, Message
from aiocoap.optiontypes import BlockOption
from board_rig import board_of
from certified_modules import PUBLIC_KEY, certified_for
from fault_board import FaultBoard
from lwm2m_rig import Artifacts, Rig, digest_of, eventually, image_of, run_install, within

from tinymlaas_device.board import Board
from tinymlaas_device.lwm2m import LwM2mDevice
from tinymlaas_device.virtual_board import VirtualBoard
from tinymlaas_lwm2m import Format, MlRes, SoftwareRes, ml, multiple, software
from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m_bridge import Bridge, BridgeError, InstallRequest, Reason, SignedImages, Step
from tinymlaas_lwm2m_bridge.core.registration import Registration

IMAGE, OTHER = image_of(20_000), image_of(18_000, seed=1)
INSTANCE = LwPath(42769, 0)
Start = Callable[..., Awaitable[tuple[Bridge, LwM2mDevice]]]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Artifacts(IMAGE, OTHER))


@pytest.fixture
async def started(rig: Rig) -> AsyncIterator[Start]:
    """Starts a bridge and a registered device on a board; all are closed at the end, the board last."""
    made: list[Any] = []
    boards: list[VirtualBoard] = []

    async def start(board: Board | None = None) -> tuple[Bridge, LwM2mDevice]:
        bridge = await rig.bridge()
        device = await rig.device(board)  # type: ignore[arg-type]
        made.extend((device, bridge))
        boards.extend([board] if isinstance(board, VirtualBoard) else [])
        await within(device.registered.wait())
        return bridge, device

    yield start
    for each in made:
        await each.close()
    for one in boards:
        one.close()


async def active(bridge: Bridge, image: bytes, name: str = "i-1") -> int:
    """Install an image and activate it; its slot."""
    last = (await run_install(bridge, InstallRequest(name, "node-1", digest_of(image))))[-1]
    assert last.step is Step.READY, last
    assert last.slot is not None
    await within(bridge.activate("node-1", last.slot))
    return last.slot


async def read(bridge: Bridge, path: LwPath) -> Any:
    return await within(bridge.endpoint.link.read(bridge.registration("node-1"), path))


async def answer_of(bridge: Bridge, path: LwPath) -> str:
    """The code with which the device answers a Read."""
    message = Message(code=Code.GET, uri=f"{bridge.registration('node-1').address}{path}")
    return str((await within(bridge.endpoint._context.request(message).response)).code.dotted)


async def test_what_a_device_does_not_have_is_4_04_alone_and_left_out_of_the_instance(started: Start) -> None:
    """DO-ML-002."""
    bridge, _ = await started()
    missing = [ml(MlRes.PREVIOUS_SLOT), ml(MlRes.OUTPUT), ml(MlRes.MODULE_DIGEST, 0), LwPath(42769, 0, 999)]
    assert [await answer_of(bridge, path) for path in missing] == ["4.04"] * len(missing)
    assert not set(missing) & set(await read(bridge, INSTANCE))
    await active(bridge, IMAGE)
    await active(bridge, OTHER, "i-2")
    assert (await read(bridge, INSTANCE))[ml(MlRes.PREVIOUS_SLOT)] == 0
    assert await answer_of(bridge, ml(MlRes.PREVIOUS_SLOT)) == "2.05"


async def test_an_output_is_told_to_who_asks_for_it_alone(started: Start) -> None:
    """DO-ML-003."""
    bridge, _ = await started()
    await active(bridge, IMAGE)
    device = bridge.registration("node-1")
    await within(bridge.endpoint.link.write(device, ml(MlRes.INPUT), b"x" * 100))
    await within(bridge.endpoint.link.execute(device, ml(MlRes.INVOKE)))
    assert len((await read(bridge, ml(MlRes.OUTPUT)))[ml(MlRes.OUTPUT)]) == 12
    for path in (INSTANCE, LwPath(42769)):
        assert ml(MlRes.OUTPUT) not in await read(bridge, path)


@pytest.mark.parametrize("sizes", [(8192,), (131_072, 131_072), (4096, 8192, 4096, 16_384)])
async def test_slots_are_numbered_as_the_instances_of_object_9(started: Start, sizes: tuple[int, ...]) -> None:
    """DO-ML-004."""
    bridge, _ = await started(FaultBoard(slot_sizes=sizes))
    instances = [item.instance_id for item in bridge.registration("node-1").objects if item.object_id == 9]
    values = await read(bridge, INSTANCE)
    assert instances == list(range(len(sizes)))
    assert multiple(values, ml(MlRes.SLOT_SIZE)) == dict(enumerate(sizes))
    assert list(multiple(values, ml(MlRes.SLOT_STATE))) == instances


async def test_free_memory_is_what_one_module_can_use_whichever_is_active(
    rig: Rig, started: Start, tmp_path: Path
) -> None:
    """DO-ML-005, DO-CAP-006: without what firmware, RTOS and application keep of the virtual board's memory."""
    board = board_of("node-m4f", tmp_path / "flash")
    rig.check = SignedImages(PUBLIC_KEY.hex())
    bridge, _ = await started(board)
    empty = await read(bridge, INSTANCE)
    assert 0 < empty[ml(MlRes.RAM_FREE)] < empty[ml(MlRes.RAM_TOTAL)] == board.spec.ram_total
    assert sum(board.spec.slot_sizes) == empty[ml(MlRes.FLASH_FREE)] < empty[ml(MlRes.FLASH_TOTAL)]
    image = certified_for("cortex-m4", add=1)
    rig.artifacts.images[digest_of(image)] = image
    await active(bridge, image)
    full = await read(bridge, INSTANCE)
    assert full[ml(MlRes.RAM_FREE)] == empty[ml(MlRes.RAM_FREE)], "modules take turns in one pool"
    assert full[ml(MlRes.FLASH_FREE)] == sum(board.spec.slot_sizes[1:])


@pytest.mark.parametrize("unit", ["instructions", "cycles", "us"])
async def test_a_count_is_told_in_the_unit_in_which_it_was_counted(started: Start, unit: str) -> None:
    """DO-ML-006."""

    class Counting(FaultBoard):
        def invoke(self, data: bytes) -> Any:
            return dataclasses.replace(super().invoke(data), latency_unit=unit)

    bridge, _ = await started(Counting())
    await active(bridge, IMAGE)
    device = bridge.registration("node-1")
    await within(bridge.endpoint.link.write(device, ml(MlRes.INPUT), b"x" * 7))
    await within(bridge.endpoint.link.execute(device, ml(MlRes.INVOKE)))
    values = await read(bridge, INSTANCE)
    assert (values[ml(MlRes.LAST_LATENCY)], values[ml(MlRes.LATENCY_UNIT)]) == (70, unit)
    events = bridge.observe("node-1")
    seen = await within(anext(events))
    assert (seen.last_latency, seen.latency_unit) == (70, unit)


async def test_a_push_that_does_not_begin_at_byte_0_or_leaves_a_gap_is_answered_with_4_08(started: Start) -> None:
    """DO-INST-009."""
    bridge, _ = await started()
    registration = bridge.registration("node-1")
    path = software(0, SoftwareRes.PACKAGE)

    async def send(number: int) -> str:
        part = IMAGE[number * 1024 : number * 1024 + 1024]
        message = Message(code=Code.PUT, uri=f"{registration.address}{path}", payload=part)
        message.opt.content_format = Format.OPAQUE
        message.opt.block1 = BlockOption.BlockwiseTuple(number, True, 6)
        message.opt.size1 = len(IMAGE)
        answer = await within(bridge.endpoint._context.request(message, handle_blockwise=False).response)
        return str(answer.code.dotted)

    digest = bytes.fromhex(digest_of(IMAGE))
    for blocks, codes in (((1,), ["4.08"]), ((0, 1, 3), ["2.31", "2.31", "4.08"])):
        await within(bridge.endpoint.link.write(registration, ml(MlRes.EXPECTED_DIGEST, 0), digest))
        assert [await send(number) for number in blocks] == codes
    await active(bridge, IMAGE)


async def test_a_change_of_modules_that_a_device_only_says_it_made_is_no_success(
    started: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DO-BRIDGE-009."""
    bridge, _ = await started()
    await active(bridge, IMAGE)
    second = (await run_install(bridge, InstallRequest("i-2", "node-1", digest_of(OTHER))))[-1].slot
    assert second is not None
    link, executed = bridge.endpoint.link, list[str]()
    execute = link.execute

    async def nothing(device: Registration, path: LwPath, arguments: Any = None) -> None:
        executed.append(str(path))

    async def refusal(change: Awaitable[None]) -> str:
        monkeypatch.setattr(link, "execute", nothing)
        try:
            with pytest.raises(BridgeError) as caught:
                await within(change)
        finally:
            monkeypatch.setattr(link, "execute", execute)
        return str(caught.value.reason)

    assert await refusal(bridge.activate("node-1", second)) == Reason.ACTIVATION_FAILED
    assert await refusal(bridge.deactivate("node-1", 0)) == Reason.ACTIVATION_FAILED
    assert await refusal(bridge.uninstall("node-1", second)) == Reason.UNINSTALL_FAILED
    await within(bridge.activate("node-1", second))
    assert await refusal(bridge.rollback("node-1")) == Reason.ACTIVATION_FAILED
    assert executed == ["/9/1/10", "/9/0/11", "/9/1/6", str(ml(MlRes.ROLLBACK))]


async def test_two_inferences_on_a_device_run_one_after_the_other(rig: Rig, started: Start, tmp_path: Path) -> None:
    """DO-INF-003: the second one's input is not written before the first one's output was read."""
    board = board_of("node-m4f", tmp_path / "flash")
    rig.check = SignedImages(PUBLIC_KEY.hex())
    image = certified_for("cortex-m4", add=3)
    rig.artifacts.images[digest_of(image)] = image
    gate, running = threading.Event(), threading.Event()
    invoke = board.invoke

    def held(data: bytes) -> Any:
        running.set()
        assert gate.wait(60)
        return invoke(data)

    bridge, _ = await started(board)
    await active(bridge, image)
    board.invoke = held  # type: ignore[method-assign]
    inputs = [bytes([number] * 16) for number in range(1, 5)]
    tasks = [asyncio.create_task(bridge.infer("node-1", (data,))) for data in inputs]
    await eventually(running.is_set, "the first one runs")
    gate.set()
    results = [await within(task) for task in tasks]
    assert [result.outputs[0] for result in results] == [bytes([number + 3] * 16) for number in range(1, 5)]
