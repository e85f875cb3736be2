"""What the suite refuses: each time a clear error, nothing stored, and the suite goes on serving."""

from __future__ import annotations

import pytest

from suite_rig import ZOO, RunningSuite
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_client import AsyncClient
from tinymlaas_client.targets import named_target
from tinymlaas_servicekit.errors import ServiceError

pytestmark = pytest.mark.xdist_group("suite")


async def refusal(work: object) -> ServiceError:
    """The error that a call ends with."""
    with pytest.raises(ServiceError) as caught:
        await work  # type: ignore[misc]
    assert caught.value.help, "every refusal says what to do next"
    return caught.value


async def test_a_broken_model_is_refused_and_not_stored(client: AsyncClient) -> None:
    data = (ZOO / "kws" / "kws_float.onnx").read_bytes()[:5000]
    error = await refusal(client.import_model(data, "broken", tensor_pb2.MODEL_FORMAT_ONNX))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "MODEL_INVALID")
    missing = await refusal(client.get_model("broken"))
    assert missing.code == "NOT_FOUND"


async def test_a_wrong_token_is_refused(running: RunningSuite) -> None:
    async with AsyncClient(running.suite.gateway_address, token="not-the-token") as stranger:
        error = await refusal(stranger.list_models())
    assert (error.code, error.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")


async def test_an_unknown_device_is_named_in_the_refusal(client: AsyncClient) -> None:
    data = (ZOO / "kws" / "kws_int8.tflite").read_bytes()
    version = await client.import_model(data, "kws", tensor_pb2.MODEL_FORMAT_TFLITE)
    error = await refusal(client.create_deployment(version.name, devices=["nobody"]))
    assert error.code == "NOT_FOUND"
    assert "nobody" in error.message


async def test_an_unknown_option_is_refused_with_the_nearest_one(client: AsyncClient) -> None:
    data = (ZOO / "kws" / "kws_int8.tflite").read_bytes()
    version = await client.import_model(data, "kws", tensor_pb2.MODEL_FORMAT_TFLITE)
    options = {"io.tinymlaas.compiler-tvm": {"roundin": "tflite"}}
    error = await refusal(client.create_build(version.name, named_target("cortex-m4"), options=options))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "OPTION_UNKNOWN")
    assert error.metadata["nearest"] == "rounding"
