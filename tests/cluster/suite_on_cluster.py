"""The suite, installed by Helm on a cluster, and its virtual boards as pods."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cluster_kit import ROOT, Cluster
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2
from tinymlaas_client import AsyncClient, model_format

ZOO = ROOT / "zoo"
CHART = ROOT / "deploy" / "helm" / "tinymlaas"
RELEASE = "suite"
NAME = f"{RELEASE}-tinymlaas"
SECONDS = 300.0
# Small requests, since a test's node may have two processors; plain CoAP, since the boards are pods of the same cluster.
VALUES: dict[str, Any] = {
    "gateway": {"replicas": 2, "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}}},
    "registry": {"replicas": 2, "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}}},
    "bridge": {"plainCoap": True, "resources": {"requests": {"cpu": "50m", "memory": "96Mi"}}},
    "plugins": {
        name: {"resources": {"requests": {"cpu": "20m", "memory": "128Mi"}}}
        for name in ("compiler-tvm", "compiler-tflm", "optimizer", "profiler")
    },
    "postgresql": {"persistence": {"size": "1Gi"}},
    "s3": {"persistence": {"size": "1Gi"}},
}
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

    def install(self) -> None:
        """Make the namespace and install the chart; every pod is ready afterwards."""
        self.values.write_text(yaml.safe_dump(VALUES), encoding="utf-8")
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": labels}}
        self.cluster.run("kubectl", "apply", "-f", "-", stdin=yaml.safe_dump(namespace))
        self.helm("install", RELEASE, str(CHART), "-f", str(self.values), "--wait", "--timeout", "14m")

    def upgrade(self, *settings: str) -> None:
        """Upgrade the release with these settings besides."""
        extra = [part for setting in settings for part in ("--set", setting)]
        self.helm("upgrade", RELEASE, str(CHART), "-f", str(self.values), *extra, "--wait", "--timeout", "14m")

    def secret(self, key: str) -> str:
        """A text of the release's own Secret."""
        data: str = self.get("secret", f"{NAME}-generated")["data"][key]
        return base64.b64decode(data).decode().strip()

    def gateway_address(self) -> str:
        """host:port of the gateway as this machine reaches it: its cluster address, where this machine is the node."""
        service = self.get("service", f"{NAME}-gateway")["spec"]
        host, port = str(service["clusterIP"]), int(service["ports"][0]["port"])
        with socket.create_connection((host, port), timeout=20):
            return f"{host}:{port}"

    def client(self) -> AsyncClient:
        """A new connection to the gateway."""
        return AsyncClient(self.gateway_address(), token=self.secret("client-token"))

    def pods(self, component: str) -> list[str]:
        """Names of a component's pods."""
        found = self.get("pods", "-l", f"app.kubernetes.io/component={component}")
        return [pod["metadata"]["name"] for pod in found["items"]]

    def kill(self, pod: str) -> None:
        """End a pod without grace, as a node that dies does."""
        self.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")

    async def rolled_out(self) -> None:
        """Wait until every Deployment and StatefulSet is whole again."""

        async def whole() -> bool:
            found = await asyncio.to_thread(self.get, "deployments,statefulsets")
            return all(
                item["status"].get("readyReplicas", 0) == item["spec"]["replicas"]
                and item["status"].get("observedGeneration") == item["metadata"]["generation"]
                and item["status"].get("updatedReplicas", 0) == item["spec"]["replicas"]
                for item in found["items"]
            )

        await eventually(whole, "every workload is whole")

    async def board(self, client: AsyncClient, kind: str, endpoint: str) -> str:
        """Start a virtual board as a pod and wait until the catalogue knows it."""
        self.apply(self.board_pod(kind, endpoint))
        await self.registered(client, {endpoint})
        return endpoint

    async def registered(self, client: AsyncClient, endpoints: set[str]) -> None:
        """Wait until the catalogue knows these devices."""

        async def known() -> bool:
            return endpoints <= {device.name.rsplit("/", 1)[-1] for device in await client.list_devices()}

        await eventually(known, f"registered: {sorted(endpoints)}")

    def board_pod(self, kind: str, endpoint: str) -> dict[str, Any]:
        """A pod that is a virtual board; its flash survives a restart of the container."""
        arguments = ["--board", kind, "--name", endpoint, "--server", f"coap://{NAME}-bridge.{self.namespace}.svc:5683"]
        arguments += ["--trusted-key", self.secret("signing.pub"), "--host", "0.0.0.0", "--allow-plain-coap"]
        container = {
            "name": "board",
            "image": "tinymlaas/board:0.1.0",
            "imagePullPolicy": "IfNotPresent",
            "args": [*arguments, "--state", "/state/flash"],
            "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
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
            "metadata": {"name": f"board-{endpoint}", "labels": {"app.kubernetes.io/component": "board"}},
            "spec": {
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": 5,
                "securityContext": security,
                "containers": [container],
                "volumes": [{"name": "state", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
            },
        }


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
