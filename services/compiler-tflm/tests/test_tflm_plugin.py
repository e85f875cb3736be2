"""The service as a plugin: the contract over loopback, with the real server and its workers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinymlaas.plugin.v1 import compiler_pb2, importer_pb2
from tinymlaas.type.v1 import measurement_pb2, target_pb2, tensor_pb2
from tinymlaas_pluginkit import PluginClient, options_to_struct
from tinymlaas_servicekit import ServiceError

WAIT = 120


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the running service."""
    file = tmp_path_factory.mktemp("tflm") / "address"
    environment = {**os.environ, "TINYMLAAS_ADDRESS_FILE": str(file), "TINYMLAAS_GRACE_SECONDS": "0"}
    command = [sys.executable, "-m", "tinymlaas_compiler_tflm"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + WAIT
        while not file.exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.02)
        yield file.read_text().strip()
    finally:
        process.terminate()
        process.wait(WAIT)


async def until_ready(client: PluginClient) -> None:
    async with asyncio.timeout(WAIT):
        while not await client.probe():  # noqa: ASYNC110 (Probe is how the contract tells)
            await asyncio.sleep(0.05)


def header(
    model_format: tensor_pb2.ModelFormat.ValueType, ram: int = 0, **options: object
) -> compiler_pb2.CompileHeader:
    target = target_pb2.Target(cpu="cortex-m4", isa="armv7e-m", runtimes=[target_pb2.Runtime(name="tflite-micro")])
    if ram:
        target.memory_regions.add(name="sram", kind=target_pb2.MemoryRegion.KIND_RAM, total_bytes=ram)
    return compiler_pb2.CompileHeader(model_format=model_format, target=target, options=options_to_struct(options))


async def test_onnx_model_compiles_to_a_tflite_payload(address: str, zoo: Path) -> None:
    model = (zoo / "kws" / "kws_int8_qdq.onnx").read_bytes()
    async with PluginClient(address) as client:
        await until_ready(client)
        outcome = await client.compile(header(tensor_pb2.MODEL_FORMAT_ONNX), model).finish()
        again = await client.compile(header(tensor_pb2.MODEL_FORMAT_ONNX), model).finish()
    result = outcome.result
    assert outcome.blobs["payload"][4:8] == b"TFL3"
    assert again.blobs == outcome.blobs
    assert again.result == result
    assert result.payload_kind == target_pb2.PAYLOAD_KIND_TFLITE
    assert list(result.operators) == [
        "AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "RESHAPE", "SOFTMAX",
    ]  # fmt: skip
    assert getattr(result.numerics, "class") == tensor_pb2.Numerics.CLASS_BIT_EXACT
    assert result.numerics.reference == tensor_pb2.REFERENCE_TFLITE
    assert [list(spec.shape) for spec in (*result.inputs, *result.outputs)] == [[1, 49, 10, 1], [1, 12]]
    methods = {m.method for m in result.measurements if m.metric == measurement_pb2.METRIC_ARENA_BYTES}
    assert methods == {measurement_pb2.METHOD_SIMULATED, measurement_pb2.METHOD_ESTIMATED}


async def test_source_package_is_made_when_asked_for(address: str, zoo: Path) -> None:
    wanted = header(tensor_pb2.MODEL_FORMAT_TFLITE, symbol="ad")
    wanted.payload_kind = target_pb2.PAYLOAD_KIND_SOURCE_PACKAGE
    async with PluginClient(address) as client:
        await until_ready(client)
        outcome = await client.compile(wanted, (zoo / "ad" / "ad_int8.tflite").read_bytes()).finish()
    assert outcome.blobs["payload"][257:262] == b"ustar"
    assert outcome.result.payload_kind == target_pb2.PAYLOAD_KIND_SOURCE_PACKAGE


async def test_check_says_per_operator_what_is_refused(address: str, zoo: Path) -> None:
    model = (zoo / "kws" / "kws_hybrid.tflite").read_bytes()
    async with PluginClient(address) as client:
        await until_ready(client)
        result = (await client.check_model(header(tensor_pb2.MODEL_FORMAT_TFLITE), model).finish()).result
    assert not result.supported
    verdicts = {o.operator: o for o in result.operators}
    assert not verdicts["CONV_2D"].supported
    assert "Hybrid" in verdicts["CONV_2D"].detail
    assert verdicts["SOFTMAX"].supported


@pytest.mark.parametrize(
    ("model", "ram", "reason"),
    [
        (b"\x1c\x00\x00\x00TFL3" + bytes(40), 0, "MODEL_INVALID"),
        (b"no model at all", 0, "MODEL_INVALID"),
        (None, 4096, "DOES_NOT_FIT"),
    ],
    ids=["damaged", "text", "too large for the target"],
)
async def test_refusals_have_a_reason_and_the_service_goes_on(
    address: str, zoo: Path, model: bytes | None, ram: int, reason: str
) -> None:
    good = (zoo / "kws" / "kws_int8.tflite").read_bytes()
    async with PluginClient(address) as client:
        await until_ready(client)
        with pytest.raises(ServiceError) as caught:
            await client.compile(header(tensor_pb2.MODEL_FORMAT_TFLITE, ram), good if model is None else model).finish()
        assert caught.value.reason == reason
        outcome = await client.compile(header(tensor_pb2.MODEL_FORMAT_TFLITE), good).finish()
    assert outcome.blobs["payload"] == good


async def test_importer_turns_tflite_into_onnx(address: str, zoo: Path) -> None:
    conversion = importer_pb2.Conversion(
        **{"from": tensor_pb2.MODEL_FORMAT_TFLITE, "to": tensor_pb2.MODEL_FORMAT_ONNX}  # `from` is a word of Python
    )
    async with PluginClient(address) as client:
        await until_ready(client)
        assert conversion in await client.conversions()
        outcome = await client.import_model(
            importer_pb2.ImportHeader(conversion=conversion), (zoo / "ad" / "ad_int8.tflite").read_bytes()
        ).finish()
    assert len(outcome.blobs["model"]) > 270_000
