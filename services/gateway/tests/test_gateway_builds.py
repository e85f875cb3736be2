"""Builds over real gRPC: gateway and plugins are processes, the registry is a stand-in."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_fakes import PROJECT, toy_target
from gateway_world import World

from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas.type.v1 import measurement_pb2, tensor_pb2

pytestmark = pytest.mark.usefixtures("on_each_database")
Build = builds_pb2.Build
Candidate = builds_pb2.Candidate


def request(model: str, request_id: str = "", **fields: Any) -> builds_pb2.CreateBuildRequest:
    return builds_pb2.CreateBuildRequest(
        parent=PROJECT,
        build=Build(model_version=model, target=fields.pop("target", toy_target()), **fields),
        request_id=request_id,
    )


def started(operation: Any) -> builds_pb2.Build:
    build = Build()
    assert operation.metadata.Unpack(build)
    return build


async def finished(world: World, name: str) -> builds_pb2.Build:
    last = None
    async for build in world.builds.WatchBuild(builds_pb2.WatchBuildRequest(name=name), timeout=150):
        last = build
    assert last is not None
    return last


async def test_the_better_of_two_compilers_wins_and_both_are_sealed(world: World) -> None:
    model = world.registry.add_model("toy", b"\x05model", tensor_pb2.MODEL_FORMAT_TFLITE)
    world.add_plugin("big", roles="compiler")
    world.add_plugin("small", roles="compiler", mode="small")
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway()
    build = started(await world.builds.CreateBuild(request(model, objective=builds_pb2.OBJECTIVE_FLASH)))
    build = await finished(world, build.name)
    assert build.state == Build.STATE_SUCCEEDED, build
    by_plugin = {item.plugin: item for item in build.candidates}
    assert {item.state for item in build.candidates} == {Candidate.STATE_SEALED}
    assert build.module == by_plugin["plugins/io.example.small"].module
    module = world.registry.modules[build.module]
    assert module.manifest.plugin_name == "io.example.small"
    assert module.sha256 in world.registry.blobs
    figures = {figure.metric: figure for figure in by_plugin["plugins/io.example.small"].measurements}
    assert figures[measurement_pb2.METRIC_FLASH_BYTES].value == module.device_image_bytes
    assert all(figure.unit and figure.method and figure.tool for figure in figures.values())
