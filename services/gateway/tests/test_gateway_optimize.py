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

from tinymlaas.gateway.v1 import builds_pb2
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
