"""The reference device as a server sees it: each operation in each state, who may ask, what survives a reboot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import aiocoap
import pytest
from aiocoap import Code, Message
from fault_board import FaultBoard
from lwm2m_rig import Artifacts, Rig, digest_of, eventually, image_of, run_install, within

from tinymlaas_device.board import BoardReason, SlotState
from tinymlaas_device.lwm2m import DeviceSettings, LwM2mDevice, PlainCoapError
from tinymlaas_device.lwm2m_download import Fetcher
from tinymlaas_device.lwm2m_state import Memory
from tinymlaas_lwm2m import (
    DeviceRes,
    Format,
    MlRes,
    SelfTestResult,
    ServerRes,
    SoftwareRes,
    UpdateResult,
    UpdateState,
    ml,
    software,
)
from tinymlaas_lwm2m import Path as LwPath
from tinymlaas_lwm2m_bridge import Bridge, BridgeError, InstallRequest, Reason

IMAGE = image_of(20_000)
DIGEST = digest_of(IMAGE)
OTHER = image_of(12_000, seed=1)
REQUEST = InstallRequest("i-1", "node-1", DIGEST)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, Artifacts(IMAGE, OTHER))


async def execute(bridge: Bridge, path: LwPath, arguments: dict[int, str] | None = None) -> str:
    """CoAP code that the device answers an Execute with."""
    try:
        await within(bridge.endpoint.link.execute(bridge.registration("node-1"), path, arguments))
    except BridgeError as error:
        return error.metadata["coap_code"]
    return "2.04"


async def write(bridge: Bridge, path: LwPath, value: str | bytes | int) -> str:
    """CoAP code that the device answers a Write with."""
    try:
        await within(bridge.endpoint.link.write(bridge.registration("node-1"), path, value))
    except BridgeError as error:
        return error.metadata["coap_code"]
    return "2.04"


async def value(bridge: Bridge, path: LwPath) -> object:
    return (await within(bridge.endpoint.link.read(bridge.registration("node-1"), path))).get(path)


OPERATIONS = {
    "uri": None,
    "install": software(0, SoftwareRes.INSTALL),
    "uninstall": software(0, SoftwareRes.UNINSTALL),
    "activate": software(0, SoftwareRes.ACTIVATE),
    "deactivate": software(0, SoftwareRes.DEACTIVATE),
    "self_test": ml(MlRes.SELF_TEST),
    "invoke": ml(MlRes.INVOKE),
    "rollback": ml(MlRes.ROLLBACK),
}
ALLOWED = {
    "initial": {"uri", "uninstall"},
    "delivered": {"install", "uninstall"},
    "installed": {"uninstall", "self_test"},
    "tested": {"uninstall", "activate", "self_test"},
    "active": {"activate", "deactivate", "invoke"},
}


@pytest.mark.parametrize("state", ALLOWED)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_each_operation_is_allowed_in_its_states_and_answered_with_4_05_elsewhere(
    rig: Rig, state: str, operation: str
) -> None:
    """DO-INST-012, DO-ACT-001, DO-ACT-004, DO-INF-001."""
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    packages = bridge.endpoint.packages
    packages.offer(DIGEST, IMAGE)
    uri = packages.uri(DIGEST, bridge.registration("node-1"))
    reached = list(ALLOWED).index(state)
    if reached >= 1:
        assert await write(bridge, software(0, SoftwareRes.PACKAGE_URI), uri) == "2.04"
        await eventually(lambda: _state(device) is UpdateState.DELIVERED, "delivered")
    if reached >= 2:
        assert await execute(bridge, software(0, SoftwareRes.INSTALL)) == "2.04"
    if reached >= 3:
        assert await execute(bridge, ml(MlRes.SELF_TEST), {0: "0"}) == "2.04"
        await eventually(lambda: _test(device) is SelfTestResult.PASSED, "tested")
    if reached >= 4:
        assert await execute(bridge, software(0, SoftwareRes.ACTIVATE)) == "2.04"
    path = OPERATIONS[operation]
    if path is None:
        code = await write(bridge, software(0, SoftwareRes.PACKAGE_URI), uri)
    else:
        code = await execute(bridge, path)
    assert code == ("2.04" if operation in ALLOWED[state] else "4.05")
    await device.close()
    await bridge.close()


def _state(device: LwM2mDevice) -> UpdateState:
    path = software(0, SoftwareRes.UPDATE_STATE)
    return UpdateState(int(str((device.read(path) or {})[path])))


def _test(device: LwM2mDevice) -> SelfTestResult:
    path = ml(MlRes.SELF_TEST_RESULT, 0)
    return SelfTestResult(int(str((device.read(path) or {})[path])))


async def test_only_the_server_that_it_registered_at_may_ask(rig: Rig) -> None:
    """DO-REG-008."""
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    stranger = await aiocoap.Context.create_client_context(transports=["udp6"])
    for code, path in ((Code.GET, "3/0"), (Code.GET, ".well-known/core"), (Code.POST, "3/0/4"), (Code.PUT, "9/0/3")):
        answer = await within(stranger.request(Message(code=code, uri=f"coap://{device.address}/{path}")).response)
        assert answer.code is Code.UNAUTHORIZED
    await stranger.shutdown()
    await device.close()
    await bridge.close()


@pytest.mark.parametrize(
    ("uri", "usable"),
    [
        (f"coap://127.0.0.1:5683/p/{DIGEST}", True),
        (f"coap://[::1]/{DIGEST}", True),
        (f"coaps://127.0.0.1/p/{DIGEST}", False),
        (f"http://127.0.0.1/p/{DIGEST}", False),
        (f"coap://127.0.0.1/p/{DIGEST[:-1]}", False),
        (f"coap://127.0.0.1/p/{DIGEST.upper()}", False),
        (f"coap://127.0.0.1/p/{DIGEST}?x", False),
        (f"coap://user@127.0.0.1/p/{DIGEST}", False),
        (f"coap:///p/{DIGEST}", False),
        (f"coap://127.0.0.1:99999/p/{DIGEST}", False),
        (f"coap://h/{'a' * 64}/{'b' * 64}/{'c' * 64}/{DIGEST}", False),
        ("", False),
    ],
)
def test_package_uris_are_used_or_refused(uri: str, usable: bool) -> None:
    """DO-INST-003."""
    assert (Fetcher.digest(uri) is not None) is usable


async def test_an_unusable_uri_is_result_56_and_the_state_stays_initial(rig: Rig) -> None:
    """DO-INST-007."""
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    assert await write(bridge, software(0, SoftwareRes.PACKAGE_URI), "http://h/x") == "2.04"
    assert await value(bridge, software(0, SoftwareRes.UPDATE_RESULT)) == UpdateResult.INVALID_URI
    assert _state(device) is UpdateState.INITIAL
    missing = f"coap://127.0.0.1:{rig.port}/p/{'ab' * 32}"
    assert await write(bridge, software(0, SoftwareRes.PACKAGE_URI), missing) == "2.04"
    await eventually(lambda: _state(device) is UpdateState.INITIAL, "the download ends")
    assert await value(bridge, software(0, SoftwareRes.UPDATE_RESULT)) == UpdateResult.INVALID_URI
    await device.close()
    await bridge.close()


async def test_another_image_under_the_digest_is_result_53(rig: Rig) -> None:
    """DO-INST-006, DO-INST-010."""
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    packages = bridge.endpoint.packages
    packages.offer(DIGEST, OTHER)
    await write(bridge, software(0, SoftwareRes.PACKAGE_URI), packages.uri(DIGEST, bridge.registration("node-1")))
    await eventually(lambda: _state(device) is UpdateState.INITIAL and "verify" in board.calls, "the download ends")
    assert await value(bridge, software(0, SoftwareRes.UPDATE_RESULT)) == UpdateResult.INTEGRITY_FAILURE
    assert str(await value(bridge, software(0, SoftwareRes.STATUS_REASON))).startswith("DIGEST_MISMATCH")
    assert board.slot(0).state is SlotState.EMPTY
    await device.close()
    await bridge.close()


async def test_a_push_without_the_expected_digest_is_answered_with_4_12(rig: Rig) -> None:
    """DO-INST-008."""
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    assert await write(bridge, software(0, SoftwareRes.PACKAGE), IMAGE) == "4.12"
    assert await write(bridge, ml(MlRes.EXPECTED_DIGEST, 0), b"short") == "4.00"
    assert await write(bridge, ml(MlRes.EXPECTED_DIGEST, 7), bytes(32)) == "4.04"
    await device.close()
    await bridge.close()


@pytest.mark.parametrize("content_format", [Format.TLV, Format.SENML_JSON, Format.SENML_CBOR])
async def test_every_object_is_read_in_every_format(rig: Rig, content_format: Format) -> None:
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    link, registration = bridge.endpoint.link, bridge.registration("node-1")
    link._formats["node-1"] = content_format
    for object_id in (1, 3, 9, 3313, 3324, 42769):
        path = LwPath(object_id)
        assert await within(link.read(registration, path)) == device.read(path)
    await device.close()
    await bridge.close()


async def test_reboot_keeps_the_flash_and_registers_anew(rig: Rig) -> None:
    """DO-ACT-006."""
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    await run_install(bridge, REQUEST)
    await within(bridge.activate("node-1", 0))
    before = bridge.registration("node-1").id
    assert await execute(bridge, LwPath(3, 0, DeviceRes.REBOOT)) == "2.04"
    await eventually(lambda: bridge.registration("node-1").id != before, "the device registers anew")
    assert board.calls.count("reboot") == 1
    record = await within(bridge.read_capabilities("node-1"))
    assert record.capabilities.slots[0].module_sha256 == DIGEST
    assert await execute(bridge, ml(MlRes.INVOKE)) == "2.04"
    await device.close()
    await bridge.close()


async def test_the_server_can_change_the_lifetime_and_ask_for_an_update(rig: Rig) -> None:
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    assert await write(bridge, LwPath(1, 0, ServerRes.LIFETIME), 300) == "2.04"
    await eventually(lambda: bridge.registration("node-1").lifetime_s == 300, "the update arrives")
    assert await write(bridge, LwPath(1, 0, ServerRes.LIFETIME), 0) == "4.05"
    seen = bridge.registration("node-1").updated_at
    rig.clock.now += 1
    assert await execute(bridge, LwPath(1, 0, ServerRes.REGISTRATION_UPDATE_TRIGGER)) == "2.04"
    await eventually(lambda: bridge.registration("node-1").updated_at > seen, "the update arrives")
    await device.close()
    await bridge.close()


async def test_inference_runs_the_active_module_and_failures_are_counted_and_named(rig: Rig) -> None:
    """DO-INF-001, DO-INF-002."""
    bridge = await rig.bridge()
    board = FaultBoard()
    device = await rig.device(board)
    await within(device.registered.wait())
    await run_install(bridge, REQUEST)
    await within(bridge.activate("node-1", 0))
    for size in (1, 1024, 5000):
        assert await write(bridge, ml(MlRes.INPUT), IMAGE[:size]) == "2.04"
        assert await execute(bridge, ml(MlRes.INVOKE)) == "2.04"
        assert await value(bridge, ml(MlRes.LAST_LATENCY)) == size * 10
        output = await value(bridge, ml(MlRes.OUTPUT))
        assert isinstance(output, bytes)
        assert len(output) == 12
    board.fail["invoke"] = BoardReason.INVOKE_FAILED
    assert await execute(bridge, ml(MlRes.INVOKE)) == "5.00"
    assert await value(bridge, ml(MlRes.OUTPUT)) is None
    assert str(await value(bridge, ml(MlRes.LAST_ERROR))).startswith("INVOKE_FAILED")
    await device.close()
    await bridge.close()


async def test_a_client_that_infers_on_a_device_without_module_is_told(rig: Rig) -> None:
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    with pytest.raises(BridgeError) as caught:
        await within(bridge.infer("node-1", (b"x",)))
    assert caught.value.reason == Reason.NO_ACTIVE_MODULE
    await device.close()
    await bridge.close()


async def test_malformed_requests_are_answered_and_change_nothing(rig: Rig) -> None:
    bridge = await rig.bridge()
    device = await rig.device()
    await within(device.registered.wait())
    registration = bridge.registration("node-1")
    context = bridge.endpoint._context
    for path, payload, content_format, code in (
        ("9/0/3", b"\xff", 0, "4.00"),
        ("9/0/3", b"x" * 5000, 0, "4.13"),
        ("9/9/3", b"coap://h", 0, "4.04"),
        ("9/0/2", b"x", 0, "4.15"),
        ("9/0", b"\xc1", 11542, "4.00"),
        ("3/0/0", b"x", 0, "4.05"),
        ("x/0", b"x", 0, "4.00"),
    ):
        message = Message(code=Code.PUT, uri=f"{registration.address}/{path}", payload=payload)
        message.opt.content_format = content_format
        assert (await within(context.request(message).response)).code.dotted == code, path
    assert await execute(bridge, ml(MlRes.SELF_TEST), {0: "9"}) == "4.00"
    assert _state(device) is UpdateState.INITIAL
    await device.close()
    await bridge.close()


def test_memory_survives_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    memory = Memory.load(file, 60)
    memory.slot(1).uri = "coap://h/x"
    memory.previous_slot = 1
    memory.save()
    again = Memory.load(file, 30)
    assert (again.lifetime_s, again.previous_slot, again.slot(1).uri) == (60, 1, "coap://h/x")
    file.write_text("{")
    with pytest.raises(ValueError):
        Memory.load(file, 60)


def test_plain_coap_to_another_host_is_refused_without_the_flag() -> None:
    """DO-SEC-001."""
    for server in ("coap://192.0.2.1", "coap://example.org:5683"):
        with pytest.raises(PlainCoapError):
            LwM2mDevice(FaultBoard(), DeviceSettings("a", server))
    with pytest.raises(ValueError, match="coap://"):
        LwM2mDevice(FaultBoard(), DeviceSettings("a", "http://127.0.0.1"))


def test_the_command_names_its_boards_and_refuses_wrong_keys() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tinymlaas_device", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert "node-m4f" in run("--help").stdout
    wrong = run("--board", "node-m4f", "--name", "a", "--trusted-key", "00")
    assert wrong.returncode == 2
    assert "64 hex digits" in wrong.stderr
