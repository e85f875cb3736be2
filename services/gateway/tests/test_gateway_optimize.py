"""Optimizing before the race, over real gRPC: gateway and plugins are processes, registry and bridge are stand-ins."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import grpc
import numpy as np
import pytest
from gateway_fakes import PROJECT
from gateway_world import World, until
from google.protobuf import struct_pb2
from test_gateway_builds import Build, Candidate, finished, request, started
from test_gateway_deployments import Deployment, device_in, wanted
from test_gateway_deployments import finished as deployed
from test_gateway_deployments import started as begun

from tinymlaas.gateway.v1 import builds_pb2, optimizations_pb2
from tinymlaas.type.v1 import tensor_pb2
from tinymlaas_servicekit import from_rpc_error

NO_OPTIONS = struct_pb2.Struct()


def samples_in(world: World) -> str:
    data = io.BytesIO()
    np.savez(data, input_int8=np.full((2, 16), 99, np.int8), input_float=np.full((2, 16), 3.0, np.float32))
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    world.registry.blobs[digest] = data.getvalue()
    return digest


def float_model(world: World, data: bytes = b"\x05model") -> str:
    return world.registry.add_model("toy", data, tensor_pb2.MODEL_FORMAT_ONNX)


def add_plugins(world: World, **optimizer: str) -> None:
    world.add_plugin("compiler", roles="compiler,importer")
    world.add_plugin("witness", roles="profiler")
    world.add_plugin("quantizer", roles="optimizer", **optimizer)


def options(**values: Any) -> struct_pb2.Struct:
    result = struct_pb2.Struct()
    result.update(values)
    return result


async def refused(world: World, wish: builds_pb2.CreateBuildRequest) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.builds.CreateBuild(wish)
    error = from_rpc_error(caught.value)
    assert error is not None
    assert error.help
    return error.reason


async def test_the_race_is_run_with_the_version_that_the_optimizer_made(world: World) -> None:
    model, samples = float_model(world), samples_in(world)
    add_plugins(world)
    await world.start_gateway()
    wish = request(model, samples_sha256=samples, optimize=options(per_channel=True))
    build = await finished(world, started(await world.builds.CreateBuild(wish)).name)
    assert build.state == Build.STATE_SUCCEEDED, build
    assert build.model_version == model
    made = world.registry.versions[build.optimized_model_version]
    assert world.registry.blobs[made.sha256] == b"\x05qmodel"
    assert (made.derived_from, made.derived_by) == (model, "io.example.quantizer 1.0")
    assert {item.conditions["optimization"]: item.value for item in made.measurements} == {"before": 6, "after": 7}
    assert [item.name for item in made.attachments] == ["recipe.json", "report.json", "picture.svg"]
    assert world.registry.blobs[made.attachments[0].sha256] == b'{"version": 1}'
    module = world.registry.modules[build.module]
    assert module.model_version == made.name
    assert module.manifest.source_model_sha256 == world.registry.versions[model].sha256
    assert world.registry.models[f"{PROJECT}/models/toy"].latest_version == model


async def test_the_same_wish_again_is_known_and_other_options_are_another_wish(world: World) -> None:
    model, samples = float_model(world), samples_in(world)
    add_plugins(world)
    await world.start_gateway()
    builds = []
    for wish in (None, NO_OPTIONS, NO_OPTIONS, options(per_channel=False)):
        operation = await world.builds.CreateBuild(request(model, samples_sha256=samples, optimize=wish))
        builds.append(await finished(world, started(operation).name))
    plain, first, again, other = builds
    assert not plain.optimized_model_version
    assert not first.cached
    assert again.cached
    assert not other.cached
    assert again.optimized_model_version == first.optimized_model_version
    assert (again.module, other.module) == (first.module, first.module), "equal bytes are one version and one module"
    assert plain.module != first.module
    assert len({item.request_sha256 for item in builds}) == 3
    assert world.counted("io.example.quantizer optimize") == 2


async def test_what_cannot_be_optimized_is_refused_at_once(world: World) -> None:
    model, samples = float_model(world), samples_in(world)
    add_plugins(world)
    await world.start_gateway()
    assert await refused(world, request(model, optimize=NO_OPTIONS)) == "CALIBRATION_MISSING"
    wish = request(model, samples_sha256=samples, optimize=options(per_canal=True))
    assert await refused(world, wish) == "OPTION_UNKNOWN"
    assert world.counted("io.example.quantizer optimize") == 0


async def test_without_an_optimizer_the_answer_says_so(world: World) -> None:
    model, samples = float_model(world), samples_in(world)
    world.add_plugin("compiler", roles="compiler,importer")
    await world.start_gateway()
    assert await refused(world, request(model, samples_sha256=samples, optimize=NO_OPTIONS)) == "NO_OPTIMIZER"


async def test_the_optimizers_own_refusal_is_the_builds_error_and_no_compiler_is_asked(world: World) -> None:
    model, samples = float_model(world, b"\x05qmodel"), samples_in(world)
    add_plugins(world)
    await world.start_gateway()
    wish = request(model, samples_sha256=samples, optimize=NO_OPTIONS)
    build = await finished(world, started(await world.builds.CreateBuild(wish)).name)
    assert build.state == Build.STATE_FAILED
    assert "quantized already" in build.error.message
    assert b"MODEL_NOT_FLOAT" in build.error.SerializeToString()
    assert [item.state for item in build.candidates] == [Candidate.STATE_FAILED]
    assert world.counted("io.example.compiler check") == 0


async def test_a_build_killed_while_it_is_optimized_goes_on(world: World) -> None:
    model, samples = float_model(world), samples_in(world)
    add_plugins(world, seconds="1")
    await world.start_gateway()
    wish = request(model, samples_sha256=samples, optimize=NO_OPTIONS)
    build = started(await world.builds.CreateBuild(wish))
    await until(lambda: world.counted("io.example.quantizer optimize") == 1, "the optimizer is at work")
    world.processes["gateway"].kill()
    await world.start_gateway()
    build = await finished(world, build.name)
    assert build.state == Build.STATE_SUCCEEDED, build
    assert build.optimized_model_version
    assert len(world.registry.modules) == 1
    assert world.counted("io.example.quantizer optimize") == 2, "the step that was cut is done again, once"


def asked(model: str, samples: str, **values: Any) -> optimizations_pb2.OptimizeModelRequest:
    return optimizations_pb2.OptimizeModelRequest(
        model_version=model, samples_sha256=samples, options=options(**values)
    )


async def test_a_model_is_optimized_without_a_build_and_the_same_wish_is_answered_from_the_record(world: World) -> None:
    model, samples = float_model(world), samples_in(world)
    add_plugins(world, seconds="0.3")
    await world.start_gateway()
    first, again = [
        [answer async for answer in world.optimizations.OptimizeModel(asked(model, samples))] for _ in range(2)
    ]
    assert [answer.progress.step for answer in first[:-1]].count("calibrate") >= 1
    result = first[-1].result
    assert world.registry.blobs[result.model_version.sha256] == b"\x05qmodel"
    assert [item.media_type for item in result.attachments] == ["application/json", "application/json", "image/svg+xml"]
    assert all(item.size_bytes == len(world.registry.blobs[item.sha256]) for item in result.attachments)
    assert (result.cached, again[-1].result.cached) == (False, True)
    assert again[-1].result.model_version == result.model_version
    assert again[-1].result.attachments == result.attachments
    assert world.counted("io.example.quantizer optimize") == 1


async def test_what_an_optimizer_refuses_or_does_wrong_ends_the_call_with_its_reason(world: World) -> None:
    model, samples = float_model(world), samples_in(world)
    add_plugins(world, mode="script")
    await world.start_gateway()

    async def reason(request: optimizations_pb2.OptimizeModelRequest) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in world.optimizations.OptimizeModel(request):
                pass
        error = from_rpc_error(caught.value)
        assert error is not None
        return error.reason

    assert await reason(asked(model, samples, per_canal=True)) == "OPTION_UNKNOWN"
    assert await reason(asked(model, samples)) == "PLUGIN_PROTOCOL"  # a picture with a script is not kept
    quantized = float_model(world, b"\x05qmodel")
    assert await reason(asked(quantized, samples)) == "MODEL_NOT_FLOAT"


async def test_a_caller_who_goes_away_cancels_the_optimizers_work(world: World) -> None:
    model, samples = float_model(world), samples_in(world)
    add_plugins(world, seconds="600")
    await world.start_gateway()
    call = world.optimizations.OptimizeModel(asked(model, samples))
    async for answer in call:
        if answer.progress.step == "calibrate":
            break
    call.cancel()
    # Two places for workers: a third call comes to work only if the first one's worker was freed.
    for wish in (1, 2, 3):
        call = world.optimizations.OptimizeModel(asked(model, samples))
        async for answer in call:
            if answer.progress.step == "calibrate":
                break
        call.cancel()
        await until(lambda wish=wish: world.counted("io.example.quantizer optimize") == wish + 1, "it is at work")


async def test_a_deployment_plans_and_installs_the_optimized_model(world: World) -> None:
    model, samples = float_model(world), samples_in(world)
    device_in(world, "board")
    add_plugins(world)
    await world.start_gateway()
    wish = wanted(model, samples_sha256=samples, optimize=NO_OPTIONS)
    deployment = await deployed(world, begun(await world.deployments.CreateDeployment(wish)).name)
    assert deployment.state == Deployment.STATE_SUCCEEDED, deployment
    module = world.registry.modules[deployment.rollouts[0].module]
    assert module.model_version == deployment.optimized_model_version != model
    assert world.counted("io.example.quantizer optimize") == 1


async def test_a_plan_asks_no_optimizer(world: World) -> None:
    device_in(world, "a")
    model, samples = float_model(world), samples_in(world)
    add_plugins(world)
    await world.start_gateway()
    wish = wanted(model, validate_only=True, samples_sha256=samples, optimize=NO_OPTIONS)
    plan = begun(await world.deployments.CreateDeployment(wish))
    assert plan.optimized_model_version == ""
    assert [item.device for item in plan.rollouts] == [f"{PROJECT}/devices/a"]
    assert world.counted("io.example.quantizer optimize") == 0


async def test_a_deployment_of_a_model_that_the_optimizer_refuses_fails_with_its_words(world: World) -> None:
    model, samples = float_model(world, b"\x05qmodel"), samples_in(world)
    device_in(world, "board")
    add_plugins(world)
    await world.start_gateway()
    wish = wanted(model, samples_sha256=samples, optimize=NO_OPTIONS)
    deployment = await deployed(world, begun(await world.deployments.CreateDeployment(wish)).name)
    assert deployment.state == Deployment.STATE_FAILED
    assert "quantized already" in deployment.error.message
    assert not deployment.rollouts
    assert not world.bridge.log
