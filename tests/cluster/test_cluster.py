"""The suite on a real cluster: the demo's journey, vendors' plugins, faults, upgrade and uninstall. `make test-cluster` runs it.

Takes the cluster of KUBECONFIG, which has the images already, or starts a kit's (cluster_kit.py). Tests run in the order of this
file in one namespace, each on what the one before left.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

import cluster_kit
from certificate_authority import Authority
from suite_on_cluster import (
    CHART,
    HELLO,
    NAME,
    PYTHON,
    RELEASE,
    ZOO,
    DeployedSuite,
    Load,
    begin_builds,
    certificate,
    condition,
    ended,
    eventually,
    executors,
    glutton,
    known,
    kws,
    owners,
    previous_chart,
    rolled_out,
    vendor,
)
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas_client import AsyncClient
from tinymlaas_client.targets import named_target
from tinymlaas_servicekit import TlsFiles

BUILDS = 8
KINDS_OF_BOARDS = ("node-m4f", "riscv-node", "tflm-m4f", "chip-m0plus")
TOO_SMALL = "chip-m0plus-1"
PLUGINS = ("compiler-tvm", "compiler-tflm", "optimizer", "profiler")
SERVICES = ("gateway", "registry", "lwm2m-bridge", "dtls-front", "operator", *PLUGINS)
DOMAIN = "tinymlaas.internal"
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
        folder = tmp_path_factory.mktemp("chart")
        deployed = DeployedSuite(cluster, "tinymlaas-test", folder / "values.yaml")
        deployed.remove()
        deployed.install(previous_chart(folder) or CHART)
        yield deployed
        deployed.remove(wait=False)
    finally:
        cluster.close()


def all_active_but_the_small_one(deployment: deployments_pb2.Deployment) -> None:
    """Every device has the module, but for the one that it does not fit."""
    rejected = deployments_pb2.DeviceRollout.STATE_REJECTED
    wanted = {item.device: deployments_pb2.DeviceRollout.STATE_ACTIVE for item in deployment.rollouts}
    wanted[f"projects/default/devices/{TOO_SMALL}"] = rejected
    others = [str(item) for item in deployment.rollouts if item.state != wanted[item.device]]
    assert not others, "\n".join(others)


async def test_an_upgrade_from_the_version_before_fails_no_call_and_ends_a_running_rollout(
    suite: DeployedSuite,
) -> None:
    """The release was installed from the chart of the version before, where the tree's history has it."""
    endpoints = [f"{kind}-1" for kind in KINDS_OF_BOARDS]
    async with suite.client() as client:
        for kind, endpoint in zip(KINDS_OF_BOARDS, endpoints, strict=True):
            suite.apply(suite.board_pod(kind, endpoint))
        await suite.registered(client, set(endpoints))
        model, digest = await kws(client)
        async with Load(suite) as load:
            begun = await client.create_deployment(model, devices=endpoints, samples_sha256=digest, concurrency=1)
            await asyncio.to_thread(suite.upgrade)
            await suite.rolled_out()
            deployment = await rolled_out(client, begun.name)
        all_active_but_the_small_one(deployment)
    assert load.calls
    assert not load.failed, load.failed[:3]


def test_the_charts_own_test_passes(suite: DeployedSuite) -> None:
    assert "Succeeded" in suite.helm("test", RELEASE, "--timeout", "5m")


async def test_boards_that_are_pods_compute_what_the_model_computes(suite: DeployedSuite) -> None:
    samples = np.load(ZOO / "kws" / "samples.npz")
    async with suite.client() as client:
        for kind in KINDS_OF_BOARDS[:3]:
            answer = await client.infer(f"{kind}-1", [samples["input_int8"][0].tobytes()])
            assert answer.outputs.tensors[0] == samples["output_int8"][0].tobytes(), kind


def python_in(suite: DeployedSuite, component: str, code: str) -> str:
    """What Python prints in a pod of that component."""
    return suite.kubectl("exec", suite.pods(component)[0], "--", PYTHON, "-c", code)


def reach(targets: list[tuple[str, int]]) -> str:
    """A program that prints each host and whether a connection to its port opens."""
    return f"""
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
    told = python_in(suite, "compiler-tvm", reach(targets))
    assert "open" not in told, told
    assert told.count("closed") == len(targets)
    # The same code from the gateway reaches the registry, so it is the policy that closed the way.
    assert "open" in python_in(suite, "gateway", reach(targets[:1]))
    mounted = python_in(suite, "compiler-tvm", "import os; print(os.path.exists('/var/run/secrets/kubernetes.io'))")
    assert mounted.strip() == "False"


async def test_a_vendors_plugin_comes_by_kubectl_apply_builds_and_goes_by_kubectl_delete(suite: DeployedSuite) -> None:
    suite.apply(vendor("hello"))

    async def registered() -> bool:
        return (await asyncio.to_thread(condition, suite, "hello", "Registered"))[0] == "True"

    await eventually(registered, "the operator has registered the plugin")
    (pod,) = suite.get("pods", "-l", "tinymlaas.io/plugin=hello")["items"]
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert set(pod["spec"]["containers"][0]["resources"]["limits"]) == {"cpu", "memory", "ephemeral-storage"}
    async with suite.client() as client:
        await known(suite, HELLO)
        address = suite.get("service", f"{NAME}-registry")["spec"]["clusterIP"]
        told = suite.kubectl("exec", pod["metadata"]["name"], "--", PYTHON, "-c", reach([(address, 7001)]))
        assert told.split() == [address, "closed"]
        model, digest = await kws(client)
        started = await client.create_build(model, named_target("cortex-m4"), samples_sha256=digest)
        build = await ended(client, started.name)
        assert f"plugins/{HELLO}" in {candidate.plugin for candidate in build.candidates}, build
        suite.kubectl("delete", "compilerplugin", "hello", "--timeout", "5m")
        await known(suite, HELLO, gone=True)
    assert not suite.get("deployments", "-l", "tinymlaas.io/plugin=hello")["items"]


async def test_a_plugin_that_eats_memory_while_it_starts_is_killed_and_named(suite: DeployedSuite) -> None:
    eater = vendor("eater", command=[PYTHON, "-c", "x = []\nwhile True: x.append(bytearray(1 << 20))"])
    eater["spec"]["resources"] = {"memory": "64Mi", "memoryRequest": "16Mi", "cpuRequest": "10m"}
    suite.apply(eater)

    async def named() -> bool:
        return await asyncio.to_thread(condition, suite, "eater", "Healthy") == ("False", "OutOfMemory")

    await eventually(named, "the status names who was killed")
    assert condition(suite, "eater", "Registered")[0] == "False"
    suite.kubectl("delete", "compilerplugin", "eater", "--timeout", "5m")


async def test_a_plugin_that_eats_memory_while_it_compiles_is_killed_and_named_in_the_builds_answer(
    suite: DeployedSuite,
) -> None:
    suite.apply(glutton())
    try:
        async with suite.client() as client:
            await known(suite, HELLO)
            (name,) = await begin_builds(client, 1, 50)
            build = await ended(client, name)
    finally:
        suite.kubectl("delete", "compilerplugin", "glutton", "--timeout", "5m")
    assert build.state == builds_pb2.Build.STATE_SUCCEEDED, build  # the others' candidates were not harmed
    (failed,) = [each for each in build.candidates if each.plugin == f"plugins/{HELLO}"]
    assert failed.state == builds_pb2.Candidate.STATE_FAILED, failed
    assert HELLO in str(failed.error), failed
    await known(suite, HELLO, gone=True)


async def test_a_plugin_that_asks_for_too_much_is_refused(suite: DeployedSuite) -> None:
    suite.apply(vendor("judge", roles=["profiler"]))

    async def refused() -> bool:
        return await asyncio.to_thread(condition, suite, "judge", "Accepted") == ("False", "RoleNeedsTrust")

    await eventually(refused, "the operator refuses the role")
    suite.kubectl("delete", "compilerplugin", "judge", "--timeout", "5m")
    with pytest.raises(AssertionError, match="tag other than latest"):
        suite.apply(vendor("moving", image="tinymlaas/compiler-tflm:latest"))


async def all_succeeded(client: AsyncClient, names: list[str]) -> None:
    """Every build ends well, under its own name, and no module is listed twice."""
    assert len(set(names)) == len(names)
    for name in names:
        build = await ended(client, name)
        assert build.state == builds_pb2.Build.STATE_SUCCEEDED, build
    listed = [module.name for module in await client.list_modules()]
    assert len(listed) == len(set(listed))


async def test_gateways_and_replicas_of_a_plugin_share_the_work(suite: DeployedSuite) -> None:
    first, second = suite.pods("gateway")
    async with suite.client(first) as one, suite.client(second) as other:
        before = suite.calls("compiler-tflm", "Compile")
        names = await begin_builds(one, 4, 100) + await begin_builds(other, 4, 104)
        await all_succeeded(other, names[:4])  # either answers for what the other one works on
        await all_succeeded(one, names[4:])
    assert executors(suite, names) == {first: 4, second: 4}
    after = suite.calls("compiler-tflm", "Compile")
    assert len([pod for pod in after if after[pod] > before.get(pod, 0)]) == 3, (before, after)


async def test_bridges_share_the_devices(suite: DeployedSuite) -> None:
    """Devices stay with the bridge that their address was given; with each further board chances halve that all had one."""
    async with suite.client() as client:
        for number in range(12):
            if len(owners(suite)) == 2:
                break
            await suite.board(client, "tflm-m4f", f"shared-{number}")
    assert set(owners(suite)) == set(suite.pods("bridge"))


async def test_a_bridge_sees_the_address_that_a_device_has(suite: DeployedSuite) -> None:
    """Datagrams keep their source on their way through the Service: by it a bridge knows a device, and calls it there."""
    async with suite.client() as client:
        await suite.board(client, "tflm-m4f", "addressed")
    told = dict(suite.sql("bridge", "SELECT endpoint, body::json->>'address' FROM registrations"))
    assert "addressed" in told
    for endpoint, address in told.items():
        pod = suite.get("pod", f"board-{endpoint}")
        assert urlsplit(address).hostname == pod["status"]["podIP"], endpoint


async def test_builds_and_a_rollout_survive_the_death_of_every_pod(suite: DeployedSuite) -> None:
    """Each kind of pod is killed in turn while builds and a rollout go on; nothing is lost and nothing is done twice."""
    order = random.Random(7)
    kinds = ["gateway", "registry", "bridge", "compiler-tvm", "compiler-tflm", "profiler", "postgresql", "minio"]
    order.shuffle(kinds)
    async with suite.client() as client:
        names = await begin_builds(client, BUILDS, 200)
        model, digest = await kws(client)
        devices = sorted(device.name.rsplit("/", 1)[-1] for device in await client.list_devices())
        begun = await client.create_deployment(
            model, devices=devices, samples_sha256=digest, objective=builds_pb2.OBJECTIVE_FLASH
        )
        for kind in kinds:
            suite.kill(order.choice(suite.pods(kind)))
            await suite.rolled_out()
        await all_succeeded(client, names)
        done = await rolled_out(client, begun.name)
        all_active_but_the_small_one(done)
        assert len(done.rollouts) == len(devices)


async def test_a_drained_node_fails_no_call_and_everything_comes_back(suite: DeployedSuite) -> None:
    async with suite.client() as client, Load(suite) as load:
        names = await begin_builds(client, 2, 300)
        assert await suite.drain() > 0, "no budget held an eviction back"
        await all_succeeded(client, names)
    assert load.calls
    assert not load.failed, load.failed[:3]


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


async def test_under_mtls_a_build_reaches_a_device_and_a_plugin_needs_its_own_certificate(
    suite: DeployedSuite, tmp_path: Path
) -> None:
    """`tls.enabled`: from then on every arrow of the drawing is a connection whose two ends have proved their names."""
    authority = Authority()
    address = suite.get("service", f"{NAME}-gateway")["spec"]["clusterIP"]
    for name in SERVICES:
        also = (address,) if name == "gateway" else ()
        suite.apply(certificate(authority.issue(tmp_path / name, f"{name}.{DOMAIN}", *also), name))
    await asyncio.to_thread(suite.upgrade, "tls.enabled=true")
    await suite.rolled_out()
    assert "Succeeded" in suite.helm("test", RELEASE, "--timeout", "5m")
    for name, shown in (("hello", "hello"), ("impostor", "hello")):
        files = authority.issue(tmp_path / name, f"plugin-{shown}.{DOMAIN}")
        suite.apply(certificate(files, f"plugin-{name}"), vendor(name))

    async def registered() -> bool:
        return (await asyncio.to_thread(condition, suite, "hello", "Registered"))[0] == "True"

    async def doubted() -> bool:
        told = await asyncio.to_thread(condition, suite, "impostor", "Identified")
        return told[0] == "False" and (await asyncio.to_thread(condition, suite, "impostor", "Available"))[0] == "True"

    await eventually(registered, "the operator has registered the plugin")
    await eventually(doubted, "the operator does not believe the other one")
    assert condition(suite, "impostor", "Registered")[0] == "False"
    async with suite.client(tls=TlsFiles(ca=tmp_path / "gateway" / "ca.pem")) as client:

        async def called() -> bool:
            return f"plugins/{HELLO}" in {plugin.name for plugin in await client.list_plugins()}

        await eventually(called, "a gateway calls the plugin")
        await all_succeeded(client, await begin_builds(client, 2, 400))
        model, digest = await kws(client)
        device = await suite.board(client, "node-m4f", "under-mtls")
        begun = await client.create_deployment(model, devices=[device], samples_sha256=digest)
        all_active_but_the_small_one(await rolled_out(client, begun.name))
    suite.kubectl("delete", "compilerplugin", "hello", "impostor", "--timeout", "5m")
