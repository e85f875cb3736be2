"""The suite on a real cluster: the demo's journey, vendors' plugins, faults, upgrade and uninstall. `make test-cluster` runs it.

Takes the cluster of KUBECONFIG, which has the images already, or starts a kit's (cluster_kit.py). Tests run in the order of this
file in one namespace, each on what the one before left.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cluster_kit
from cluster_kit import ROOT
from suite_on_cluster import NAME, RELEASE, ZOO, DeployedSuite, ended, eventually, kws, rolled_out
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas.registry.v1 import plugins_pb2
from tinymlaas_client import AsyncClient
from tinymlaas_client.targets import named_target

BUILDS = int(os.environ.get("TINYMLAAS_CLUSTER_BUILDS", "8"))
HELLO = "com.example.hello-compiler"
pytestmark = [
    pytest.mark.skipif(not os.environ.get("TINYMLAAS_CLUSTER"), reason="`make test-cluster` runs this"),
    pytest.mark.xdist_group("cluster"),
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeployedSuite]:
    """The release; its namespace goes at the end, and a cluster that was started here too."""
    cluster = cluster_kit.start()
    if isinstance(cluster, str):
        pytest.skip(cluster)
    try:
        cluster_kit.provide_images(cluster)
        deployed = DeployedSuite(cluster, "tinymlaas-test", tmp_path_factory.mktemp("chart") / "values.yaml")
        deployed.install()
        yield deployed
        cluster.run("kubectl", "delete", "namespace", deployed.namespace, "--wait=false")
    finally:
        cluster.close()


def test_the_charts_own_test_passes(suite: DeployedSuite) -> None:
    assert "Phase:" in suite.helm("test", RELEASE, "--timeout", "5m")


async def test_a_model_travels_through_the_release_onto_boards_that_are_pods(suite: DeployedSuite) -> None:
    samples = np.load(ZOO / "kws" / "samples.npz")
    async with suite.client() as client:
        endpoints = {
            await suite.board(client, kind, f"{kind}-1")
            for kind in ("node-m4f", "riscv-node", "tflm-m4f", "chip-m0plus")
        }
        model, digest = await kws(client)
        begun = await client.create_deployment(model, devices=sorted(endpoints), samples_sha256=digest)
        deployment = await rolled_out(client, begun.name)
        states = {rollout.device.rsplit("/", 1)[-1]: rollout.state for rollout in deployment.rollouts}
        assert states.pop("chip-m0plus-1") == deployments_pb2.DeviceRollout.STATE_REJECTED
        assert set(states.values()) == {deployments_pb2.DeviceRollout.STATE_ACTIVE}, deployment
        for endpoint in states:
            answer = await client.infer(endpoint, [samples["input_int8"][0].tobytes()])
            assert answer.outputs.tensors[0] == samples["output_int8"][0].tobytes(), endpoint


def python_in(suite: DeployedSuite, component: str, code: str) -> str:
    """What Python prints in a pod of that component."""
    pod = suite.pods(component)[0]
    return suite.kubectl("exec", pod, "--", "/opt/tinymlaas/bin/python", "-c", code)


CONNECT = """
import socket
for host, port in {targets}:
    try:
        socket.create_connection((host, port), timeout=4).close()
        print(host, "open")
    except OSError as error:
        print(host, "closed")
"""


def test_a_plugin_reaches_nothing_and_holds_no_credentials(suite: DeployedSuite) -> None:
    address = {
        name: suite.get("service", f"{NAME}-{name}")["spec"]["clusterIP"]
        for name in ("registry", "gateway", "postgresql")
    }
    api = suite.cluster.run(
        "kubectl", "get", "service", "kubernetes", "-n", "default", "-o", "jsonpath={.spec.clusterIP}"
    )
    targets = [(address["registry"], 7001), (address["gateway"], 7000), (address["postgresql"], 5432), (api, 443)]
    told = python_in(suite, "compiler-tvm", CONNECT.format(targets=targets))
    assert "open" not in told, told
    assert told.count("closed") == len(targets)
    # The same code from the gateway reaches the registry, so it is the policy that closed the way.
    assert "open" in python_in(suite, "gateway", CONNECT.format(targets=targets[:1]))
    mounted = python_in(suite, "compiler-tvm", "import os; print(os.path.exists('/var/run/secrets/kubernetes.io'))")
    assert mounted.strip() == "False"


def vendor(name: str, **spec: Any) -> dict[str, Any]:
    """A CompilerPlugin whose image is compiler-tflm's, with a program of the vendor's own in its arguments."""
    program = (ROOT / "docs" / "examples" / "hello_compiler.py").read_text(encoding="utf-8")
    code = f"import sys; open('/tmp/hello_compiler.py', 'w').write({program!r}); import runpy; sys.argv = ['hello']; "
    code += "sys.path.insert(0, '/tmp'); import hello_compiler; hello_compiler.plugin.main()"
    return {
        "apiVersion": "tinymlaas.io/v1alpha1",
        "kind": "CompilerPlugin",
        "metadata": {"name": name},
        "spec": {
            "image": "tinymlaas/compiler-tflm:0.1.0",
            "command": ["/opt/tinymlaas/bin/python", "-c", code],
            "roles": ["compiler"],
            "drainSeconds": 5,
            "resources": {"cpu": "1", "memory": "512Mi", "cpuRequest": "20m", "memoryRequest": "64Mi"},
            **spec,
        },
    }


def condition(suite: DeployedSuite, name: str, kind: str) -> tuple[str, str]:
    """State and reason of a condition of a CompilerPlugin."""
    conditions = suite.get("compilerplugin", name).get("status", {}).get("conditions", [])
    found = {each["type"]: (each["status"], each["reason"]) for each in conditions}
    return found.get(kind, ("", ""))


async def test_a_vendors_plugin_comes_by_kubectl_apply_builds_and_goes_by_kubectl_delete(suite: DeployedSuite) -> None:
    suite.apply(vendor("hello"))

    async def registered() -> bool:
        return (await asyncio.to_thread(condition, suite, "hello", "Registered"))[0] == "True"

    await eventually(registered, "the operator has registered the plugin")
    async with suite.client() as client:

        async def state() -> int:
            found = {plugin.info.name: plugin.state for plugin in await client.list_plugins()}
            return found.get(HELLO, 0)

        async def ready() -> bool:
            return await state() == plugins_pb2.Plugin.STATE_READY

        await eventually(ready, "the gateway knows the plugin")
        model, digest = await kws(client)
        started = await client.create_build(model, named_target("cortex-m4"), samples_sha256=digest)
        build = await ended(client, started.name)
        assert f"plugins/{HELLO}" in {candidate.plugin for candidate in build.candidates}, build
        suite.kubectl("delete", "compilerplugin", "hello", "--timeout", "5m")

        async def gone() -> bool:
            return await state() == plugins_pb2.Plugin.STATE_UNREACHABLE

        await eventually(gone, "the gateway no longer counts on the plugin")
    assert not suite.get("deployments", "-l", "tinymlaas.io/plugin=hello")["items"]


async def test_a_plugin_that_eats_memory_is_killed_and_named(suite: DeployedSuite) -> None:
    eater = vendor(
        "eater", command=["/opt/tinymlaas/bin/python", "-c", "x = []\nwhile True: x.append(bytearray(1 << 20))"]
    )
    eater["spec"]["resources"] = {"memory": "64Mi", "memoryRequest": "16Mi", "cpuRequest": "10m"}
    suite.apply(eater)

    async def named() -> bool:
        return await asyncio.to_thread(condition, suite, "eater", "Healthy") == ("False", "OutOfMemory")

    await eventually(named, "the status names who was killed")
    assert condition(suite, "eater", "Registered")[0] == "False"
    suite.kubectl("delete", "compilerplugin", "eater", "--timeout", "5m")


async def test_a_plugin_that_asks_for_too_much_is_refused(suite: DeployedSuite) -> None:
    suite.apply(vendor("judge", roles=["profiler"]))

    async def refused() -> bool:
        return await asyncio.to_thread(condition, suite, "judge", "Accepted") == ("False", "RoleNeedsTrust")

    await eventually(refused, "the operator refuses the role")
    suite.kubectl("delete", "compilerplugin", "judge", "--timeout", "5m")
    with pytest.raises(AssertionError, match="tag other than latest"):
        suite.apply(vendor("moving", image="tinymlaas/compiler-tflm:latest"))


async def test_builds_and_a_rollout_survive_the_death_of_every_pod(suite: DeployedSuite) -> None:
    """Each kind of pod is killed in turn while builds and a rollout go on; nothing is lost and nothing is done twice."""
    order = random.Random(7)
    kinds = ["gateway", "registry", "bridge", "compiler-tvm", "compiler-tflm", "profiler", "postgresql", "minio"]
    order.shuffle(kinds)
    async with suite.client() as client:
        model, digest = await kws(client)
        names = []
        for number in range(BUILDS):
            target = named_target(order.choice(["cortex-m3", "cortex-m4", "cortex-m33", "cortex-m7"]))
            target.memory_regions[1].total_bytes -= 256 * number  # another target: nothing is answered from the cache
            names.append((await client.create_build(model, target, samples_sha256=digest)).name)
        devices = sorted(device.name.rsplit("/", 1)[-1] for device in await client.list_devices())
        begun = await client.create_deployment(model, devices=devices, samples_sha256=digest)
        for kind in kinds:
            for pod in suite.pods(kind)[:1]:
                suite.kill(pod)
            await suite.rolled_out()
        await rolled_out(client, begun.name)
        builds = [await ended(client, name) for name in names]
        assert len({build.name for build in builds}) == BUILDS
        for build in builds:
            assert build.state == builds_pb2.Build.STATE_SUCCEEDED, build
        listed = [module.name for module in await client.list_modules()]
        assert len(listed) == len(set(listed))
        active = await client.get_device("node-m4f-1")
        assert active.active_module


async def test_an_upgrade_under_load_fails_no_call_of_a_client(suite: DeployedSuite) -> None:
    failed: list[str] = []
    done = asyncio.Event()
    calls = 0

    async def load(client: AsyncClient) -> None:
        nonlocal calls
        while not done.is_set():
            try:
                await client.list_models()
                calls += 1
            except Exception as error:
                failed.append(repr(error))
            await asyncio.sleep(0.05)

    async with suite.client() as client:
        loader = asyncio.create_task(load(client))
        await asyncio.to_thread(suite.upgrade, "logLevel=debug")
        await suite.rolled_out()
        done.set()
        await loader
    assert calls
    assert not failed, failed[:3]


async def test_uninstall_keeps_the_data_and_a_new_install_finds_it(suite: DeployedSuite) -> None:
    async with suite.client() as client:
        before = {module.name for module in await client.list_modules()}
        token = suite.secret("client-token")
    suite.helm("uninstall", RELEASE, "--wait", "--timeout", "5m")
    assert suite.get("pvc")["items"]
    suite.install()
    assert suite.secret("client-token") == token
    async with suite.client() as client:
        assert {module.name for module in await client.list_modules()} == before
