"""The example of the guide works, and is as short as the guide says."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tinymlaas.plugin.v1 import compiler_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_pluginkit import PluginClient
from tinymlaas_servicekit import ServiceError

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "hello_compiler.py"


async def test_the_example_of_the_guide_compiles_a_model_of_the_zoo(tmp_path: Path) -> None:
    address = tmp_path / "address"
    environment = {**os.environ, "TINYMLAAS_ADDRESS_FILE": str(address), "TINYMLAAS_LISTEN": "127.0.0.1:0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    header = compiler_pb2.CompileHeader(model_format=tensor_pb2.MODEL_FORMAT_TFLITE)
    header.target.cpu, header.target.isa = "cortex-m4", "armv7e-m"
    model = (ROOT / "zoo" / "ad" / "ad_int8.tflite").read_bytes()
    try:
        async with asyncio.timeout(60):
            while not address.exists():  # noqa: ASYNC110 (another process makes it)
                await asyncio.sleep(0.02)
        async with PluginClient(address.read_text().strip()) as client:
            assert (await client.info()).name == "com.example.hello-compiler"
            verdict = (await client.check_model(header, model).finish()).result
            assert verdict.supported
            outcome = await client.compile(header, model).finish()
            assert outcome.blobs == {"payload": model}
            assert list(outcome.result.operators) == [o.operator for o in verdict.operators] == ["FULLY_CONNECTED"]
            with pytest.raises(ServiceError) as caught:
                await client.compile(header, model[:1000]).finish()
            assert caught.value.reason == "MODEL_INVALID"
    finally:
        process.terminate()
        async with asyncio.timeout(60):
            await process.wait()


def test_the_example_is_about_fifty_lines_of_code() -> None:
    lines = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 55
