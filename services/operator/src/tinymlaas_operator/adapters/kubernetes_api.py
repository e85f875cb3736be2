"""The cluster's API over HTTP, as far as the operator needs it: dictionaries in, dictionaries out.

https://kubernetes.io/docs/reference/using-api/api-concepts/. The official client weighs 126 MB, twenty times this image's own code.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

from ..core.objects import Object
from ..core.spec import GROUP, VERSION

MANAGER = "tinymlaas-operator"
APPLY = "application/apply-patch+yaml"  # JSON is YAML
MERGE = "application/merge-patch+json"
JSON = "application/json"
SECONDS = urllib3.Timeout(connect=5.0, read=20.0)
MAX_BYTES = 32 * 1024 * 1024
NOT_FOUND, CONFLICT = 404, 409
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PLURALS = {
    "Deployment": "deployments",
    "NetworkPolicy": "networkpolicies",
    "Pod": "pods",
    "Secret": "secrets",
    "Service": "services",
}
PLUGINS = (f"{GROUP}/{VERSION}", "compilerplugins")


class ApiError(OSError):
    """The API server answered with an error: its HTTP status and words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"the API server answered {status}: {words[:500]}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Server:
    """Where the API server is, and how this process shows who it is. The token is read for each call: kubelets renew it."""

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None


def find_server(url: str = "") -> Server:
    """The server of the cluster that this pod runs in, or `url`, such as that of `kubectl proxy`."""
    if url:
        return Server(url.rstrip("/"))
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    return Server(f"https://{host}:{port}", ACCOUNT / "token", ACCOUNT / "ca.crt")


def own_namespace() -> str:
    """Namespace of the pod, "default" outside of one."""
    file = ACCOUNT / "namespace"
    return file.read_text(encoding="ascii").strip() if file.exists() else "default"


class KubernetesCluster:
    """A Cluster over the API server; see its methods there. ApiError where the server refuses, OSError where it is away."""

    def __init__(self, server: Server, namespace: str) -> None:
        context = None if server.ca_file is None else ssl.create_default_context(cafile=str(server.ca_file))
        self._server = server
        self._namespace = namespace
        self._pool = urllib3.PoolManager(timeout=SECONDS, retries=False, ssl_context=context)

    def plugins(self) -> list[Mapping[str, Any]]:
        """See Cluster."""
        found: list[Mapping[str, Any]] = self._call("GET", self._path(*PLUGINS))["items"]
        return found

    def apply(self, wanted: Object) -> None:
        """See Cluster."""
        path = self._path(wanted["apiVersion"], PLURALS[wanted["kind"]], wanted["metadata"]["name"])
        query = urlencode({"fieldManager": MANAGER, "force": "true"})
        self._call("PATCH", f"{path}?{query}", wanted, APPLY)

    def ready_replicas(self, deployment: str) -> int:
        """See Cluster."""
        found = self._find(self._path("apps/v1", "deployments", deployment))
        return int((found or {}).get("status", {}).get("readyReplicas") or 0)

    def pods(self, plugin: str) -> Sequence[Mapping[str, Any]]:
        """See Cluster."""
        query = urlencode({"labelSelector": f"{GROUP}/plugin={plugin}"})
        found: list[Mapping[str, Any]] = self._call("GET", f"{self._path('v1', 'pods')}?{query}")["items"]
        return found

    def read_secret(self, name: str) -> dict[str, str]:
        """See Cluster."""
        data = (self._find(self._path("v1", "secrets", name)) or {}).get("data") or {}
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def write_secret(self, name: str, data: Mapping[str, str]) -> None:
        """See Cluster. Keys that are no longer wanted are removed."""
        kept = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        gone = {key: None for key in self.read_secret(name) if key not in data}
        self._call("PATCH", self._path("v1", "secrets", name), {"data": {**gone, **kept}}, MERGE)

    def create_secret(self, name: str, data: Mapping[str, str], labels: Mapping[str, str]) -> bool:
        """Make a Secret; False where it is there already."""
        metadata = {"name": name, "namespace": self._namespace, "labels": dict(labels)}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "stringData": dict(data)}
        try:
            self._call("POST", self._path("v1", "secrets"), body)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            return False
        return True

    def write_status(self, name: str, status: Mapping[str, Any]) -> None:
        """See Cluster."""
        self._call("PATCH", f"{self._path(*PLUGINS, name)}/status", {"status": dict(status)}, MERGE)

    def set_finalizers(self, name: str, finalizers: Sequence[str]) -> None:
        """See Cluster."""
        self._call("PATCH", self._path(*PLUGINS, name), {"metadata": {"finalizers": list(finalizers)}}, MERGE)

    def _path(self, api_version: str, plural: str, name: str = "") -> str:
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        path = f"{root}/namespaces/{quote(self._namespace, safe='')}/{plural}"
        return f"{path}/{quote(name, safe='')}" if name else path

    def _find(self, path: str) -> dict[str, Any] | None:
        try:
            return self._call("GET", path)
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    def _call(self, method: str, path: str, body: Object | None = None, content: str = JSON) -> dict[str, Any]:
        headers = {"Accept": JSON}
        if self._server.token_file is not None:
            headers["Authorization"] = f"Bearer {self._server.token_file.read_text(encoding='ascii').strip()}"
        if body is not None:
            headers["Content-Type"] = content
        sent = None if body is None else json.dumps(body).encode()
        try:
            answer = self._pool.request(
                method, self._server.url + path, body=sent, headers=headers, preload_content=False
            )
            try:
                data = answer.read(MAX_BYTES + 1)
            finally:
                answer.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise OSError(f"the API server cannot be reached: {error}") from error
        if len(data) > MAX_BYTES:
            raise OSError(f"the API server's answer is larger than {MAX_BYTES} bytes")
        if answer.status >= 400:
            raise ApiError(answer.status, data.decode("utf-8", "replace"))
        read: dict[str, Any] = json.loads(data)
        return read
