"""The suite, installed by Helm on a cluster, and its virtual boards as pods."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cluster_kit import ROOT, Cluster
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas_client import AsyncClient, model_format
from tinymlaas_client.targets import named_target
from tinymlaas_servicekit import TlsFiles, Unavailable

ZOO = ROOT / "zoo"
CHART = ROOT / "deploy" / "helm" / "tinymlaas"
RELEASE = "suite"
NAME = f"{RELEASE}-tinymlaas"
SECONDS = 300.0
PYTHON = "/opt/tinymlaas/bin/python"  # in each of the suite's images
HELLO = "com.example.hello-compiler"
# Small requests, since a test's node may have two processors; plain CoAP, since the boards are pods of the same cluster.
VALUES: dict[str, Any] = {
    "metrics": {"port": 9464},
    "gateway": {
        "replicas": 2,
        "compilesAtOnce": 4,
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
    },
    "registry": {"replicas": 2, "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}}},
    "bridge": {"replicas": 2, "plainCoap": True, "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}}},
    "plugins": {
        name: {"replicas": replicas, "resources": {"requests": {"cpu": "20m", "memory": "128Mi"}}}
        for name, replicas in (("compiler-tvm", 1), ("compiler-tflm", 3), ("optimizer", 1), ("profiler", 1))
    },
    "postgresql": {"persistence": {"size": "1Gi"}},
    "s3": {"persistence": {"size": "1Gi"}},
}
# Several boards in one process: each as its own program would run it, with its own endpoint, socket and flash.
BOARDS = """
import asyncio, json, sys
from tinymlaas_device.__main__ import parse_arguments, run
async def main():
    await asyncio.gather(*(run(parse_arguments(json.loads(each))) for each in sys.argv[1:]))
asyncio.run(main())
"""
T = TypeVar("T")


async def eventually(condition: Callable[[], Awaitable[T]], what: str, *, seconds: float = SECONDS) -> T:
    """The first true answer of a condition; AssertionError that says what was waited for when there is none in time."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                answer = await condition()
                if answer:
                    return answer
                await asyncio.sleep(0.25)
    except TimeoutError:
        raise AssertionError(f"waited {seconds:.0f} s for: {what}") from None


@dataclass
class DeployedSuite:
    """A release in a namespace of its own, where the restricted Pod Security level is enforced."""

    cluster: Cluster
    namespace: str
    values: Path

    def kubectl(self, *arguments: str, stdin: str | None = None, seconds: float = 600.0) -> str:
        """kubectl in the namespace."""
        return self.cluster.run("kubectl", "-n", self.namespace, *arguments, stdin=stdin, seconds=seconds)

    def get(self, *arguments: str) -> Any:
        """What `kubectl get` tells, as JSON."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def helm(self, *arguments: str, seconds: float = 900.0) -> str:
        """helm in the namespace."""
        return self.cluster.run("helm", *arguments, "-n", self.namespace, seconds=seconds)

    def install(self, chart: Path = CHART) -> None:
        """Make the namespace and install a version of the chart; every pod is ready afterwards."""
        self.values.write_text(yaml.safe_dump(VALUES), encoding="utf-8")
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": labels}}
        self.cluster.run("kubectl", "apply", "-f", "-", stdin=yaml.safe_dump(namespace))
        self._helm("install", chart)

    def remove(self, *, wait: bool = True) -> None:
        """Delete the namespace, with plugins whose operator is gone: nobody else would take their finalizers away."""
        crd = self.cluster.run(
            "kubectl", "get", "crd", "compilerplugins.tinymlaas.io", "--ignore-not-found", "-o", "name"
        )
        for plugin in self.get("compilerplugins")["items"] if crd else ():
            patch = json.dumps({"metadata": {"finalizers": None}})
            self.kubectl("patch", "compilerplugin", plugin["metadata"]["name"], "--type", "merge", "-p", patch)
        waiting = ["--timeout=5m"] if wait else ["--wait=false"]
        self.cluster.run("kubectl", "delete", "namespace", self.namespace, "--ignore-not-found", *waiting)

    def upgrade(self, *settings: str) -> None:
        """Upgrade the release to this tree's chart, with these settings besides, as the chart's README says."""
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CHART / "crds"))
        self._helm("upgrade", CHART, *(part for setting in settings for part in ("--set", setting)))

    def _helm(self, action: str, chart: Path, *extra: str) -> None:
        try:
            self.helm(action, RELEASE, str(chart), "-f", str(self.values), *extra, "--wait", "--timeout", "8m")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from None

    def told(self) -> str:
        """Pods and latest events, for a failure's message."""
        pods = self.kubectl("get", "pods", "-o", "wide")
        events = self.kubectl("get", "events", "--field-selector", "type=Warning", "--sort-by", ".lastTimestamp")
        return f"{pods}\n{events[-6000:]}"

    def secret(self, key: str) -> str:
        """A text of the release's own Secret."""
        data: str = self.get("secret", f"{NAME}-generated")["data"][key]
        return base64.b64decode(data).decode().strip()

    def gateway_address(self) -> str:
        """host:port of the gateway as this machine reaches it: its cluster address, where this machine is the node."""
        service = self.get("service", f"{NAME}-gateway")["spec"]
        host, port = str(service["clusterIP"]), int(service["ports"][0]["port"])
        end = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection((host, port), timeout=20):
                    return f"{host}:{port}"
            except ConnectionRefusedError:  # kube-proxy hears of a pod that is ready a moment later
                if time.monotonic() > end:
                    raise
            time.sleep(0.5)

    def client(self, gateway: str = "", tls: TlsFiles | None = None) -> AsyncClient:
        """A new connection to the gateway's service, or to the pod of that name."""
        address = f"{self.get('pod', gateway)['status']['podIP']}:7000" if gateway else self.gateway_address()
        return AsyncClient(address, token=self.secret("client-token"), tls=tls)

    def found(self, component: str) -> list[dict[str, Any]]:
        """A component's pods that have not been told to end."""
        pods = self.get("pods", "-l", f"app.kubernetes.io/component={component}")["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def pods(self, component: str) -> list[str]:
        """Names of a component's pods."""
        return [pod["metadata"]["name"] for pod in self.found(component)]

    def kill(self, pod: str) -> None:
        """End a pod without grace, as a node that dies does."""
        self.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false", "--ignore-not-found")

    def evict(self, pod: str) -> bool:
        """Ask for a pod to be evicted; False where its PodDisruptionBudget refuses that now."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace}}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        try:
            self.cluster.run("kubectl", "create", "--raw", path, "-f", "-", stdin=json.dumps(body))
        except AssertionError as error:
            if "disruption budget" in str(error):
                return False
            raise
        return True

    async def drain(self) -> int:
        """Empty the node of the release as `kubectl drain` does, budget by budget; how many evictions budgets put off.

        On the only node a budget would hold up the drain for good, since what was evicted has nowhere to go: so the node is
        opened again after each round, and closed for the next one when everything is whole.
        """
        (node,) = {pod["spec"]["nodeName"] for pod in self.found("gateway")}
        before = {pod["metadata"]["uid"] for pod in self._release()}
        refused = 0
        while left := [pod["metadata"]["name"] for pod in self._release() if pod["metadata"]["uid"] in before]:
            await asyncio.to_thread(self.cluster.run, "kubectl", "cordon", node)
            try:
                told = await asyncio.gather(*(asyncio.to_thread(self.evict, pod) for pod in left))
            finally:
                await asyncio.to_thread(self.cluster.run, "kubectl", "uncordon", node)
            refused += told.count(False)
            await self.rolled_out()
        return refused

    def _release(self) -> list[dict[str, Any]]:
        pods = self.get("pods", "-l", f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component!=helm-test")
        return [pod for pod in pods["items"] if "deletionTimestamp" not in pod["metadata"]]

    async def rolled_out(self) -> None:
        """Wait until every Deployment and StatefulSet has all of its pods, ready and of its latest version."""

        def whole() -> bool:
            ready = Counter(
                pod["metadata"]["labels"]["app.kubernetes.io/component"]
                for pod in self._release()
                if any(
                    each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ())
                )
            )
            return all(
                ready[item["metadata"]["labels"]["app.kubernetes.io/component"]] >= item["spec"]["replicas"]
                and item["status"].get("readyReplicas", 0) == item["spec"]["replicas"]
                and item["status"].get("observedGeneration") == item["metadata"]["generation"]
                and item["status"].get("updatedReplicas", 0) == item["spec"]["replicas"]
                for item in self.get("deployments,statefulsets", "-l", f"app.kubernetes.io/instance={RELEASE}")["items"]
            )

        try:
            await eventually(lambda: asyncio.to_thread(whole), "every workload is whole")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told()}") from None

    def sql(self, database: str, query: str) -> list[list[str]]:
        """Rows of a query to the bundled PostgreSQL server."""
        (pod,) = self.pods("postgresql")
        told = self.kubectl("exec", pod, "--", "psql", "-U", "tinymlaas", "-d", database, "-AtF", "|", "-c", query)
        return [line.split("|") for line in told.splitlines()]

    def calls(self, component: str, method: str) -> dict[str, int]:
        """How many calls of a method each of a component's pods has answered, from their metrics."""
        counted = {}
        for pod in self.found(component):
            url = f"http://{pod['status']['podIP']}:{VALUES['metrics']['port']}/metrics"
            with urllib.request.urlopen(url, timeout=20) as answer:  # the address is the cluster's
                text = answer.read().decode()
            lines = [line for line in text.splitlines() if re.match(r"tinymlaas_rpc_duration\w*_count\{", line)]
            found = [int(float(line.split()[-1])) for line in lines if f'method="{method}"' in line]
            counted[pod["metadata"]["name"]] = sum(found)
        return counted

    async def board(self, client: AsyncClient, kind: str, endpoint: str) -> str:
        """Start a virtual board as a pod and wait until the catalogue knows it."""
        self.apply(self.board_pod(kind, endpoint))
        await self.registered(client, {endpoint})
        return endpoint

    async def registered(self, client: AsyncClient, endpoints: set[str]) -> None:
        """Wait until the catalogue knows these devices and what they can do."""

        async def known() -> bool:
            told = [device for device in await client.list_devices() if device.capabilities.slots]
            return endpoints <= {device.name.rsplit("/", 1)[-1] for device in told}

        await eventually(known, f"registered: {sorted(endpoints)}")

    def board_pod(self, kind: str, *endpoints: str) -> dict[str, Any]:
        """A pod with a process that is these virtual boards; their flash survives a restart of the container."""
        common = ["--board", kind, "--server", f"coap://{NAME}-bridge.{self.namespace}.svc:5683", "--host", "0.0.0.0"]
        common += ["--trusted-key", self.secret("signing.pub"), "--allow-plain-coap", "--log-level", "warning"]
        boards = [[*common, "--name", each, "--state", f"/state/{each}"] for each in endpoints]
        container = {
            "name": "board",
            "image": "tinymlaas/board:0.1.0",
            "imagePullPolicy": "IfNotPresent",
            "command": [PYTHON, "-c", BOARDS, *(json.dumps(board) for board in boards)],
            "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "2Gi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "state", "mountPath": "/state"}, {"name": "tmp", "mountPath": "/tmp"}],
        }
        security = {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"board-{endpoints[0]}", "labels": {"app.kubernetes.io/component": "board"}},
            "spec": {
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": 5,
                "securityContext": security,
                "containers": [container],
                "volumes": [{"name": "state", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
            },
        }


class Load:
    """Callers that ask without a pause while something happens: with nothing but the client's own retries (service config).

    `calls`: those that were answered; `failed`: the errors of the others; `slowest`: seconds of the slowest answer.
    """

    def __init__(self, suite: DeployedSuite, callers: int = 3) -> None:
        self._suite, self._callers = suite, callers
        self._tasks: list[asyncio.Task[None]] = []
        self._done = asyncio.Event()
        self.calls, self.slowest = 0, 0.0
        self.failed: list[str] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(self._callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._done.set()
        await asyncio.gather(*self._tasks)

    async def _call(self, number: int) -> None:
        async with self._suite.client() as client:
            questions: Sequence[Callable[[], Awaitable[object]]] = (
                client.list_models,
                client.list_devices,
                client.list_builds,
                client.list_plugins,
            )
            while not self._done.is_set():
                question = questions[(self.calls + number) % len(questions)]
                began = time.monotonic()
                try:
                    await question()
                    self.calls += 1
                except Exception as error:
                    self.failed.append(f"{question.__name__} after {time.monotonic() - began:.1f} s: {error!r}")
                self.slowest = max(self.slowest, time.monotonic() - began)
                await asyncio.sleep(0.05)


def previous_chart(folder: Path) -> Path | None:
    """The chart as it was before its version became the present one, from the tree's history; None without history."""

    def git(*arguments: str) -> bytes:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
        return done.stdout if done.returncode == 0 else b""

    chart = CHART.relative_to(ROOT)
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["version"]
    commit = git("log", "-1", "--format=%H", f"-Sversion: {version}", "--", str(chart / "Chart.yaml")).decode().strip()
    packed = git("archive", f"{commit or 'HEAD'}^", "--", str(chart))
    if not packed:
        return None
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder / chart


async def kws(client: AsyncClient) -> tuple[str, str]:
    """Keyword spotting in the catalogue: name of the version, digest of its samples."""
    path = ZOO / "kws" / "kws_int8.tflite"
    version = await client.import_model(path.read_bytes(), "kws-int8", model_format(path))
    return version.name, await client.write_artifact((ZOO / "kws" / "samples.npz").read_bytes())


async def ended(client: AsyncClient, name: str, seconds: float = 900.0) -> builds_pb2.Build:
    """A build when it has ended, asked again and again: a stream may be cut by whatever the test does."""

    async def look() -> builds_pb2.Build | None:
        build = await client.get_build(name)
        return build if build.state in (builds_pb2.Build.STATE_SUCCEEDED, builds_pb2.Build.STATE_FAILED) else None

    found = await eventually(look, f"{name} has ended", seconds=seconds)
    assert found is not None
    return found


async def rolled_out(client: AsyncClient, name: str, seconds: float = 900.0) -> deployments_pb2.Deployment:
    """A deployment when it has ended."""

    async def look() -> deployments_pb2.Deployment | None:
        deployment = await client.get_deployment(name)
        return deployment if deployment.HasField("end_time") else None

    found = await eventually(look, f"{name} has ended", seconds=seconds)
    assert found is not None
    return found


VENDORS_PROGRAM = (ROOT / "docs" / "examples" / "hello_compiler.py").read_text(encoding="utf-8")


def vendor(name: str, program: str = VENDORS_PROGRAM, **spec: Any) -> dict[str, Any]:
    """A CompilerPlugin whose image is compiler-tflm's, with a program of the vendor's own in its arguments."""
    code = f"import sys; open('/tmp/hello_compiler.py', 'w').write({program!r}); import runpy; sys.argv = ['hello']; "
    code += "sys.path.insert(0, '/tmp'); import hello_compiler; hello_compiler.plugin.main()"
    return {
        "apiVersion": "tinymlaas.io/v1alpha1",
        "kind": "CompilerPlugin",
        "metadata": {"name": name},
        "spec": {
            "image": "tinymlaas/compiler-tflm:0.1.0",
            "command": [PYTHON, "-c", code],
            "roles": ["compiler"],
            "drainSeconds": 5,
            "resources": {"cpu": "1", "memory": "512Mi", "cpuRequest": "20m", "memoryRequest": "64Mi"},
            **spec,
        },
    }


def certificate(files: TlsFiles, name: str) -> dict[str, Any]:
    """The Secret with a service's certificate, as the chart's values name it."""
    assert files.ca is not None
    assert files.certificate is not None
    assert files.key is not None
    parts = {"ca.crt": files.ca, "tls.crt": files.certificate, "tls.key": files.key}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"tinymlaas-tls-{name}"},
        "type": "kubernetes.io/tls",
        "stringData": {key: path.read_text(encoding="ascii") for key, path in parts.items()},
    }


def condition(suite: DeployedSuite, name: str, kind: str) -> tuple[str, str]:
    """State and reason of a condition of a CompilerPlugin."""
    conditions = suite.get("compilerplugin", name).get("status", {}).get("conditions", [])
    found = {each["type"]: (each["status"], each["reason"]) for each in conditions}
    return found.get(kind, ("", ""))


def glutton() -> dict[str, Any]:
    """The vendor's plugin, whose compilations take memory without end."""
    eat = 'held = [b"x" * (1 << 20) for _ in range(1 << 14)]'
    return vendor("glutton", VENDORS_PROGRAM.replace("report.progress", f"{eat}; report.progress", 1))


async def known(suite: DeployedSuite, plugin: str, *, gone: bool = False) -> None:
    """Wait until every gateway counts on a plugin, or on it no longer: each reads its manifest when its kubelet brings it."""
    for gateway in suite.pods("gateway"):

        async def is_so(gateway: str = gateway) -> bool:
            try:
                async with suite.client(gateway) as client:
                    model, _ = await kws(client)
                    told = await client.explain(model, targets=[named_target("cortex-m4")], routing_only=True)
            except Unavailable:  # its container is being started again
                return False
            return (f"plugins/{plugin}" in {verdict.plugin for verdict in told.verdicts}) is not gone

        await eventually(is_so, f"{gateway} {'has forgotten' if gone else 'knows'} {plugin}")


async def begin_builds(client: AsyncClient, count: int, first: int) -> list[str]:
    """Start builds for as many targets that nobody has built for: nothing is answered from what is known."""
    model, digest = await kws(client)
    cpus = ("cortex-m3", "cortex-m4", "cortex-m33", "cortex-m7")
    names = []
    for number in range(first, first + count):
        target = named_target(cpus[number % len(cpus)])
        target.memory_regions[1].total_bytes -= 16 * number
        names.append((await client.create_build(model, target, samples_sha256=digest)).name)
    return names


def owners(suite: DeployedSuite) -> dict[str, int]:
    """How many devices each bridge has."""
    told = suite.sql("bridge", "SELECT owner, count(*) FROM registrations GROUP BY 1 ORDER BY 1")
    return {owner: int(count) for owner, count in told}


def executors(suite: DeployedSuite, builds: list[str]) -> dict[str, int]:
    """How many of these builds each gateway has as its own work."""
    ids = ", ".join(f"'build:{name}'" for name in builds)
    query = (
        f"SELECT executor_id, count(*) FROM dbos.workflow_status WHERE workflow_uuid IN ({ids}) GROUP BY 1 ORDER BY 1"
    )
    return {executor: int(count) for executor, count in suite.sql("gateway", query)}


def latest_install(suite: DeployedSuite) -> float:
    """When a bridge began its latest install, in seconds since 1970; 0 where there was none."""
    return float(suite.sql("bridge", "SELECT coalesce(max(created_at), 0) FROM installs")[0][0])


def twice_installed(suite: DeployedSuite, since: float) -> int:
    """Installs begun after that moment on devices that had another one begun after it."""
    query = f"SELECT count(*) - count(DISTINCT endpoint) FROM installs WHERE created_at > {since}"
    return int(suite.sql("bridge", query)[0][0])
