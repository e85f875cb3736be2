"""The main job, end to end: a real model travels from a file into running microcontrollers."""

from __future__ import annotations

import json

import numpy as np
import pytest

from suite_rig import ZOO, RunningSuite, finished_build, finished_deployment
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas.registry.v1 import models_pb2
from tinymlaas.type.v1 import measurement_pb2, tensor_pb2
from tinymlaas_client import AsyncClient, model_format
from tinymlaas_client.targets import named_target
from tinymlaas_module import KeyRing, parse, verify

pytestmark = pytest.mark.xdist_group("suite")


async def imported(client: AsyncClient, model: str, file: str) -> models_pb2.ModelVersion:
    """A model of the zoo in the catalogue."""
    path = ZOO / model / file
    card = json.loads((ZOO / model / "card.json").read_text())
    return await client.import_model(
        path.read_bytes(),
        path.stem.replace("_", "-"),
        model_format(path),
        licence=card["licence"],
        labels=card["labels"],
    )


async def samples_of(client: AsyncClient, model: str) -> str:
    """The samples of a model of the zoo as an artifact."""
    return await client.write_artifact((ZOO / model / "samples.npz").read_bytes())


async def test_two_compilers_race_for_a_cortex_m4_and_the_winner_is_sealed_and_signed(
    running: RunningSuite, client: AsyncClient
) -> None:
    version = await imported(client, "kws", "kws_int8.tflite")
    started = await client.create_build(
        version.name, named_target("cortex-m4"), samples_sha256=await samples_of(client, "kws")
    )
    build = await finished_build(client, started.name)
    assert build.state == builds_pb2.Build.STATE_SUCCEEDED, build
    sealed = {c.plugin for c in build.candidates if c.state == builds_pb2.Candidate.STATE_SEALED}
    assert sealed == {"plugins/io.tinymlaas.compiler-tvm", "plugins/io.tinymlaas.compiler-tflm"}
    assert all(
        measurement.method != measurement_pb2.METHOD_UNSPECIFIED
        for candidate in build.candidates
        for measurement in candidate.measurements
    )
    module = await client.get_module(build.module)
    data = await client.read_artifact(module.sha256)
    assert verify(parse(data), KeyRing.of([running.suite.public_key]))


async def test_the_same_build_again_is_answered_from_what_is_known(client: AsyncClient) -> None:
    version = await imported(client, "kws", "kws_int8.tflite")
    samples = await samples_of(client, "kws")
    first = await client.create_build(version.name, named_target("cortex-m3"), samples_sha256=samples)
    done = await finished_build(client, first.name)
    again = await client.create_build(version.name, named_target("cortex-m3"), samples_sha256=samples)
    repeated = await finished_build(client, again.name)
    assert done.module
    assert repeated.cached
    assert repeated.module == done.module


async def test_a_deployment_reaches_every_board_that_can_take_it_and_leaves_out_the_one_that_cannot(
    running: RunningSuite, client: AsyncClient
) -> None:
    version = await imported(client, "kws", "kws_int8.tflite")
    samples = np.load(ZOO / "kws" / "samples.npz")
    admitted = {
        await running.board(client, kind, f"journey-{kind}")
        for kind in ("node-m4f", "secure-m33", "riscv-node", "tflm-m4f")
    }
    small = await running.board(client, "chip-m0plus", "journey-chip")
    begun = await client.create_deployment(
        version.name, devices=[*sorted(admitted), small], samples_sha256=await samples_of(client, "kws")
    )
    deployment = await finished_deployment(client, begun.name)
    states = {rollout.device.rsplit("/", 1)[-1]: rollout for rollout in deployment.rollouts}
    for endpoint in admitted:
        assert states[endpoint].state == deployments_pb2.DeviceRollout.STATE_ACTIVE, states[endpoint]
    assert states[small].state == deployments_pb2.DeviceRollout.STATE_REJECTED
    assert all(verdict.objections for verdict in states[small].verdicts)
    assert any(objection.metadata.get("need") for verdict in states[small].verdicts for objection in verdict.objections)
    for endpoint in admitted:
        for index in range(3):
            answer = await client.infer(endpoint, [samples["input_int8"][index].tobytes()])
            assert answer.outputs.tensors[0] == samples["output_int8"][index].tobytes(), (endpoint, index)


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("kws", "kws_int8.tflite"),
        ("kws", "kws_int8_qdq.onnx"),
        ("kws", "kws_float.tflite"),
        ("kws", "kws_float.onnx"),
        ("ad", "ad_int8.tflite"),
        ("ad", "ad_int8_qdq.onnx"),
        ("ad", "ad_float.tflite"),
        ("ad", "ad_float.onnx"),
    ],
)
async def test_every_form_of_kws_and_ad_compiles_with_both_compilers(
    client: AsyncClient, model: str, file: str
) -> None:
    version = await imported(client, model, file)
    target = named_target("cortex-m4")
    target.memory_regions[1].total_bytes = 2 * 1024 * 1024
    started = await client.create_build(version.name, target, samples_sha256=await samples_of(client, model))
    build = await finished_build(client, started.name)
    states = {c.plugin.rsplit(".", 1)[-1]: builds_pb2.Candidate.State.Name(c.state) for c in build.candidates}
    assert states == {"compiler-tvm": "STATE_SEALED", "compiler-tflm": "STATE_SEALED"}, build


@pytest.mark.parametrize("model", ["ic", "vww"])
async def test_ic_and_vww_compile_or_say_precisely_which_operator_is_missing(client: AsyncClient, model: str) -> None:
    version = await imported(client, model, f"{model}_int8.tflite")
    target = named_target("cortex-m4")
    started = await client.create_build(version.name, target, samples_sha256=await samples_of(client, model))
    build = await finished_build(client, started.name)
    for candidate in build.candidates:
        if candidate.state != builds_pb2.Candidate.STATE_SEALED:
            assert [objection.reason for objection in candidate.verdict.objections] == ["OP_UNSUPPORTED"], candidate
    assert build.state == builds_pb2.Build.STATE_SUCCEEDED


async def test_a_float_model_is_quantized_by_the_optimizer_plugin(client: AsyncClient) -> None:
    plugins = {plugin.info.name: plugin for plugin in await client.list_plugins()}
    assert "role.optimizer" in plugins["io.tinymlaas.optimizer"].capabilities
    assert "per_channel" in plugins["io.tinymlaas.optimizer"].optimizer_option_schema
    version = await imported(client, "kws", "kws_float.onnx")
    assert version.format == tensor_pb2.MODEL_FORMAT_ONNX
    assert not version.quantized


async def test_a_float_model_that_is_quantized_first_becomes_int8_modules_of_both_compilers(
    running: RunningSuite, client: AsyncClient
) -> None:
    version = await imported(client, "kws", "kws_float.onnx")
    started = await client.create_build(
        version.name, named_target("cortex-m4"), samples_sha256=await samples_of(client, "kws"), optimize={}
    )
    build = await finished_build(client, started.name)
    assert build.state == builds_pb2.Build.STATE_SUCCEEDED, build
    quantized = await client.get_model_version(build.optimized_model_version)
    assert quantized.quantized
    assert quantized.derived_from == version.name
    accuracy = {
        item.conditions["optimization"]: item.value
        for item in quantized.measurements
        if item.metric == measurement_pb2.METRIC_ACCURACY
    }
    assert accuracy["after"] >= accuracy["before"] - 0.1
    for candidate in build.candidates:
        assert candidate.state == builds_pb2.Candidate.STATE_SEALED, candidate
        manifest = (await client.get_module(candidate.module)).manifest
        tensors = [*manifest.inputs, *manifest.outputs]
        assert {tensor.dtype for tensor in tensors} == {tensor_pb2.DATA_TYPE_INT8}, candidate.plugin
        assert manifest.source_model_sha256 == version.sha256
    assert len(build.candidates) == 2


async def test_int16_activations_reach_a_board_that_interprets_them_and_keep_the_accuracy(
    running: RunningSuite, client: AsyncClient
) -> None:
    version = await imported(client, "kws", "kws_float.onnx")
    samples = np.load(ZOO / "kws" / "samples.npz")
    wide = {"recipes": [{"version": 1, "steps": [{"step": "quantize", "activations": "int16"}]}], "sensitivity": False}
    board = await running.board(client, "tflm-m4f", "journey-int16")
    begun = await client.create_deployment(
        version.name, devices=[board], samples_sha256=await samples_of(client, "kws"), optimize=wide
    )
    deployment = await finished_deployment(client, begun.name)
    (rollout,) = deployment.rollouts
    assert rollout.state == deployments_pb2.DeviceRollout.STATE_ACTIVE, rollout
    manifest = (await client.get_module(rollout.module)).manifest
    assert {tensor.dtype for tensor in (*manifest.inputs, *manifest.outputs)} == {tensor_pb2.DATA_TYPE_INT16}
    numerics = manifest.numerics
    assert getattr(numerics, "class") == tensor_pb2.Numerics.CLASS_BIT_EXACT
    accuracy = [item.value for item in manifest.measurements if item.metric == measurement_pb2.METRIC_ACCURACY]
    assert accuracy == [0.7], "of the float model, too"
    scale = manifest.inputs[0].scale
    for index in range(3):
        given = np.clip(np.rint(samples["input_float"][index] / scale), -32768, 32767).astype("<i2")
        answer = np.frombuffer((await client.infer(board, [given.tobytes()])).outputs.tensors[0], "<i2")
        assert answer.argmax() == samples["output_float"][index].argmax()
