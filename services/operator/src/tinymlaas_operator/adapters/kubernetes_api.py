"""The cluster's API through the official client: dictionaries in, dictionaries out."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kubernetes import client, config, dynamic

from ..core.objects import Object
from ..core.spec import GROUP, KIND, VERSION

MANAGER = "tinymlaas-operator"
MERGE = "application/merge-patch+json"
SECONDS = 20
NOT_FOUND, CONFLICT = 404, 409
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def connect_cluster() -> client.ApiClient:
    """A client with the pod's service account, or the KUBECONFIG of whoever runs this outside."""
    if SERVICE_ACCOUNT.exists():
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    else:
        config.load_kube_config()  # type: ignore[no-untyped-call]
    return client.ApiClient()


def own_namespace() -> str:
    """Namespace of the pod, "default" outside of one."""
    return SERVICE_ACCOUNT.read_text(encoding="ascii").strip() if SERVICE_ACCOUNT.exists() else "default"


class KubernetesCluster:
    """A Cluster over the API server; see its methods there."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._client = dynamic.DynamicClient(api)  # type: ignore[no-untyped-call]
        self._namespace = namespace

    def _resource(self, api_version: str, kind: str) -> Any:
        return self._client.resources.get(api_version=api_version, kind=kind)

    def _plugins(self) -> Any:
        return self._resource(f"{GROUP}/{VERSION}", KIND)

    def plugins(self) -> list[Mapping[str, Any]]:
        """See Cluster."""
        found = self._plugins().get(namespace=self._namespace, _request_timeout=SECONDS)
        return [item.to_dict() for item in found.items]

    def apply(self, wanted: Object) -> None:
        """See Cluster."""
        self._resource(wanted["apiVersion"], wanted["kind"]).server_side_apply(
            body=wanted,
            name=wanted["metadata"]["name"],
            namespace=self._namespace,
            field_manager=MANAGER,
            force_conflicts=True,
            _request_timeout=SECONDS,
        )

    def ready_replicas(self, deployment: str) -> int:
        """See Cluster."""
        found = self._get("apps/v1", "Deployment", deployment)
        return int((found or {}).get("status", {}).get("readyReplicas") or 0)

    def pods(self, plugin: str) -> Sequence[Mapping[str, Any]]:
        """See Cluster."""
        found = self._resource("v1", "Pod").get(
            namespace=self._namespace, label_selector=f"{GROUP}/plugin={plugin}", _request_timeout=SECONDS
        )
        return [item.to_dict() for item in found.items]

    def read_secret(self, name: str) -> dict[str, str]:
        """See Cluster."""
        data = (self._get("v1", "Secret", name) or {}).get("data") or {}
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def write_secret(self, name: str, data: Mapping[str, str]) -> None:
        """See Cluster. Keys that are no longer wanted are removed, others of the object stay as they are."""
        kept = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        gone = {key: None for key in self.read_secret(name) if key not in data}
        self._patch("v1", "Secret", name, {"data": {**gone, **kept}})

    def create_secret(self, name: str, data: Mapping[str, str], labels: Mapping[str, str]) -> bool:
        """Make a Secret; False where it is there already."""
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": self._namespace, "labels": dict(labels)},
            "type": "Opaque",
            "stringData": dict(data),
        }
        try:
            self._resource("v1", "Secret").create(body=body, namespace=self._namespace, _request_timeout=SECONDS)
        except client.ApiException as error:
            if error.status != CONFLICT:
                raise
            return False
        return True

    def write_status(self, name: str, status: Mapping[str, Any]) -> None:
        """See Cluster."""
        self._plugins().status.patch(
            name=name,
            namespace=self._namespace,
            body={"status": dict(status)},
            content_type=MERGE,
            _request_timeout=SECONDS,
        )

    def set_finalizers(self, name: str, finalizers: Sequence[str]) -> None:
        """See Cluster."""
        self._patch(f"{GROUP}/{VERSION}", KIND, name, {"metadata": {"finalizers": list(finalizers)}})

    def _get(self, api_version: str, kind: str, name: str) -> dict[str, Any] | None:
        try:
            found = self._resource(api_version, kind).get(
                name=name, namespace=self._namespace, _request_timeout=SECONDS
            )
        except client.ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise
        return dict(found.to_dict())

    def _patch(self, api_version: str, kind: str, name: str, body: Mapping[str, Any]) -> None:
        self._resource(api_version, kind).patch(
            name=name, namespace=self._namespace, body=dict(body), content_type=MERGE, _request_timeout=SECONDS
        )
