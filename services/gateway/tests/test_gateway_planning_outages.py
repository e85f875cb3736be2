"""Plans and builds while plugins are away: they wait for them, and leave no device out for good because of a restart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gateway_fakes import toy_target
from gateway_world import HERE, World, until
from test_gateway_builds import Build, Candidate, request
from test_gateway_builds import finished as finished_build
from test_gateway_builds import started as started_build
from test_gateway_deployments import Deployment, Rollout, device_in, finished, model_in, rollouts, started, wanted
from test_gateway_rollouts import policy, reason, seen

from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas.plugin.v1 import compiler_pb2, importer_pb2
from tinymlaas.registry.v1 import plugins_pb2
from tinymlaas.type.v1 import target_pb2, tensor_pb2
from tinymlaas_gateway.core import routing
from tinymlaas_servicekit import Unavailable

AWAY = "plugins that are away"
NEVER = "2100-01-01T00:00:00Z"


def onnx_in(world: World, data: bytes) -> str:
    return world.registry.add_model("toy", data, tensor_pb2.MODEL_FORMAT_ONNX)


def add(world: World, name: str, address: str = "", script: str = "gateway_sample_plugin.py", **settings: str) -> None:
    """As `World.add_plugin`, of other scripts and at an address that stays, as a Service of a cluster does."""
    settings = {"name": f"io.example.{name}", "counter": str(world.folder / "counter"), **settings}
    environment = {f"TINYMLAAS_SAMPLE_{key.upper()}": value for key, value in settings.items()}
    world._spawn(name, [str(HERE / script)], {**environment, **({"TINYMLAAS_LISTEN": address} if address else {})})
    manifest = world.folder / "plugins.json"
    entry = {"address": address} if address else {"address_file": f"{name}.addr"}
    entries = json.loads(manifest.read_text()) if manifest.exists() else []
    if entry not in entries:
        world.plugins.append(name)
        manifest.write_text(json.dumps([*entries, entry]))


async def gone(world: World, name: str) -> None:
    """Kill a plugin; returns once the gateway has found that it is away."""
    world.processes[name].kill()
    known = world.registry.plugins
    await until(
        lambda: known[f"plugins/io.example.{name}"].state == plugins_pb2.Plugin.STATE_UNREACHABLE, f"{name} is away"
    )


def limits(**values: float) -> dict[str, str]:
    """Of a gateway that is started with them."""
    return {"command": str(HERE / "gateway_with_limits.py"), "TINYMLAAS_TEST_LIMITS": json.dumps(values)}


def waits_or_ended(now: deployments_pb2.Deployment) -> bool:
    return now.waits_for == AWAY or now.HasField("end_time")


async def test_a_deployment_waits_for_compilers_that_nobody_has_heard_of_yet(world: World) -> None:
    """As when all is started anew at once."""
    device_in(world, "a")
    await world.start_gateway()
    operation = await world.deployments.CreateDeployment(wanted(model_in(world)))
    await seen(world, started(operation).name, waits_or_ended, "the plan waits")
    world.add_plugin("compiler", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    deployment = await finished(world, started(operation).name)
    assert deployment.state == Deployment.STATE_SUCCEEDED, deployment
    assert deployment.waits_for == ""
    assert rollouts(deployment)["a"].verdicts[0].plugin == "plugins/io.example.compiler"


async def test_a_deployment_waits_for_the_compiler_that_it_names_and_for_an_importer(
    world: World, unused_tcp_port: int
) -> None:
    device_in(world, "a")
    world.add_plugin("compiler", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    address = f"127.0.0.1:{unused_tcp_port}"
    add(world, "importer", address, roles="importer")
    await world.start_gateway()
    await gone(world, "importer")
    plan = await world.deployments.CreateDeployment(wanted(onnx_in(world, b"\x05"), validate_only=True))
    (item,) = started(plan).rollouts
    assert [o.reason for o in item.verdicts[0].objections] == ["PLUGIN_UNAVAILABLE"], "a plan alone waits for nobody"
    operation = await world.deployments.CreateDeployment(wanted(onnx_in(world, b"\x05")))
    await seen(world, started(operation).name, waits_or_ended, "the plan waits for the importer")
    add(world, "importer", address, roles="importer")
    deployment = await finished(world, started(operation).name)
    assert deployment.state == Deployment.STATE_SUCCEEDED, deployment
    named = ["io.example.compiler", "io.example.later"]
    device_in(world, "tiny", ram=2048)  # of which the one that is there says that it is too small
    operation = await world.deployments.CreateDeployment(wanted(model_in(world, b"\x06model"), plugins=named))
    await until(lambda: world.counted("io.example.compiler check") == 2, "the one that is there is asked")
    add(world, "later", roles="compiler", arena="512")
    deployment = await finished(world, started(operation).name)
    assert [len(item.verdicts) for item in deployment.rollouts] == [2, 2]
    assert rollouts(deployment)["a"].state == Rollout.STATE_ACTIVE


async def test_a_plugin_that_stays_away_is_waited_for_no_longer_than_the_patience(world: World) -> None:
    device_in(world, "a")
    world.add_plugin("compiler", roles="compiler")
    await world.start_gateway(**limits(plugin_patience_seconds=0.5))
    await gone(world, "compiler")
    deployment = started(await world.deployments.CreateDeployment(wanted(model_in(world))))
    deployment = await finished(world, deployment.name)
    assert deployment.state == Deployment.STATE_FAILED
    assert reason(deployment.error) == "NO_DEVICE_ADMITTED"
    (objection,) = rollouts(deployment)["a"].verdicts[0].objections
    assert (objection.reason, objection.remedy) == ("PLUGIN_UNAVAILABLE", routing.AWAY_REMEDY)


async def test_a_compiler_that_dies_of_a_question_is_asked_again(world: World) -> None:
    """For each of two targets, which share the plugin but no question."""
    device_in(world, "a")
    device_in(world, "b", ram=32768)
    breaks = world.folder / "breaks"
    breaks.touch()
    world.add_plugin("witness", roles="profiler")
    add(world, "compiler", script="gateway_breaking_plugin.py", roles="compiler", breaks=str(breaks))
    await world.start_gateway(**limits(retry_pause_seconds=0.1))
    deployment = started(await world.deployments.CreateDeployment(wanted(model_in(world))))

    async def asked_again() -> bool:
        now = await world.deployments.GetDeployment(deployments_pb2.GetDeploymentRequest(name=deployment.name))
        return now.HasField("end_time") or world.counted("io.example.compiler broken check") >= 4

    await until(asked_again, "it is asked twice for each target")
    breaks.unlink()
    deployment = await finished(world, deployment.name)
    assert {name: item.state for name, item in rollouts(deployment).items()} == {
        "a": Rollout.STATE_ACTIVE,
        "b": Rollout.STATE_ACTIVE,
    }


class Listed(dict[str, Any]):
    """Devices of a registry, that counts how often they are listed."""

    times = 0

    def items(self) -> Any:
        self.times += 1
        return super().items()


async def test_a_device_that_registers_while_the_compiler_is_away_joins_when_it_is_back(world: World) -> None:
    """DO-ROLL-010: one that no compiler serves is left out at once."""
    device_in(world, "a")
    world.registry.devices = listed = Listed(world.registry.devices)
    world.add_plugin("compiler", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway(**limits(cohort_look_seconds=0.2))
    rolling = policy(query={"names": ["*"]}, openUntil=NEVER)
    name = started(await world.deployments.CreateDeployment(wanted(model_in(world), policy=rolling))).name
    await seen(world, name, lambda now: now.waits_for == "devices that join", "it waits for devices")
    await gone(world, "compiler")
    device_in(world, "later")
    device_in(world, "tiny", ram=512)
    looks = listed.times
    await until(lambda: listed.times >= looks + 3, "it has looked at them")
    now = await seen(world, name, lambda now: "tiny" in rollouts(now), "whoever can't join is told so")
    assert rollouts(now)["tiny"].state == Rollout.STATE_REJECTED
    assert "later" not in rollouts(now)
    world.add_plugin("compiler", roles="compiler")
    now = await seen(
        world,
        name,
        lambda now: "later" in rollouts(now) and rollouts(now)["later"].state == Rollout.STATE_ACTIVE,
        "it joins",
    )
    assert [event.step for event in rollouts(now)["later"].timeline][:2] == ["planned", "joined"]


async def test_a_candidate_waits_for_an_importer_that_restarts_and_takes_one_that_is_there(
    world: World, unused_tcp_port: int
) -> None:
    world.add_plugin("compiler", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    address = f"127.0.0.1:{unused_tcp_port}"
    add(world, "importer-a", address, roles="importer")
    await world.start_gateway(**limits(plugin_patience_seconds=10))
    await gone(world, "importer-a")
    build = started_build(await world.builds.CreateBuild(request(onnx_in(world, b"\x05"))))

    async def checking() -> bool:
        now = await world.builds.GetBuild(builds_pb2.GetBuildRequest(name=build.name))
        return bool(now.candidates[0].state >= Candidate.STATE_CHECKING)

    await until(checking, "the candidate is looked at")
    add(world, "importer-a", address, roles="importer")
    build = await finished_build(world, build.name)
    assert build.state == Build.STATE_SUCCEEDED, build
    assert world.counted("io.example.importer-a import") == 1
    add(world, "importer-b", roles="importer")
    await until(lambda: world._ready("plugins/io.example.importer-b"), "the other importer is there")
    await gone(world, "importer-a")
    build = started_build(await world.builds.CreateBuild(request(onnx_in(world, b"\x06"))))
    build = await finished_build(world, build.name)
    assert build.state == Build.STATE_SUCCEEDED, build
    assert world.counted("io.example.importer-b import") == 1


class Unread(dict[str, Any]):
    """Devices of a registry that cannot be read one by one from when a compiler has been asked, until that is `over`."""

    def __init__(self, world: World) -> None:
        super().__init__(world.registry.devices)
        self._world = world
        self.over = False

    def __contains__(self, name: object) -> bool:
        if not self.over and self._world.counted("io.example.compiler check"):
            raise Unavailable("the registry restarts")
        return super().__contains__(name)


async def test_a_gateway_that_is_killed_before_it_builds_finds_the_compilers_again_first(world: World) -> None:
    device_in(world, "a")
    world.registry.devices = unread = Unread(world)
    world.add_plugin("compiler", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    await world.start_gateway()
    name = started(await world.deployments.CreateDeployment(wanted(model_in(world)))).name
    planned = await seen(world, name, lambda now: bool(now.waves), "it is planned")
    assert not planned.rollouts[0].build
    for process in ("gateway", "compiler", "witness"):
        world.processes[process].kill()
    unread.over = True
    world.plugins.clear()
    (world.folder / "plugins.json").write_text("[]")
    await world.start_gateway()
    world.add_plugin("compiler", roles="compiler")
    world.add_plugin("witness", roles="profiler")
    deployment = await finished(world, name)
    assert deployment.state == Deployment.STATE_SUCCEEDED, deployment
    assert deployment.rollouts[0].build


CONVERSION = importer_pb2.Conversion(to=tensor_pb2.MODEL_FORMAT_TFLITE)
setattr(CONVERSION, "from", tensor_pb2.MODEL_FORMAT_ONNX)
LOADING = plugins_pb2.Plugin.STATE_LOADING
READY = plugins_pb2.Plugin.STATE_READY


@pytest.mark.parametrize(
    ("state", "ram", "here", "away", "reasons", "waits"),
    [
        (READY, 65536, [CONVERSION], [], [], False),
        (READY, 65536, [], [], ["FORMAT_UNSUPPORTED"], False),
        (READY, 65536, [], [CONVERSION], ["PLUGIN_UNAVAILABLE"], True),
        (LOADING, 65536, [CONVERSION], [], ["PLUGIN_UNAVAILABLE"], True),
        (LOADING, 65536, [], [CONVERSION], ["PLUGIN_UNAVAILABLE"] * 2, True),
        (LOADING, 65536, [], [], ["PLUGIN_UNAVAILABLE", "FORMAT_UNSUPPORTED"], False),
        (READY, 512, [], [CONVERSION], ["PLUGIN_UNAVAILABLE", "DOES_NOT_FIT"], False),
    ],
)
def test_only_an_absence_may_end(
    state: Any, ram: int, here: list[Any], away: list[Any], reasons: list[str], waits: bool
) -> None:
    constraint = target_pb2.TargetConstraint(
        payload_kind=target_pb2.PAYLOAD_KIND_TFLITE, runtime="tflite-micro", min_ram_bytes=1024
    )
    offered = compiler_pb2.ListTargetsResponse(targets=[constraint], model_formats=[tensor_pb2.MODEL_FORMAT_TFLITE])
    plugin = plugins_pb2.Plugin(name="plugins/io.example.one", state=state, compiler=offered)
    model = routing.ModelFacts(tensor_pb2.MODEL_FORMAT_ONNX)
    verdict = routing.judge(0, toy_target(ram=ram), plugin, model, here, away=away)
    assert [item.reason for item in verdict.objections] == reasons
    assert routing.only_away(verdict) == waits
