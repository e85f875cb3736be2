"""The objects that a plugin becomes: a Deployment in a sandbox, its Service, and a NetworkPolicy with one way in and none out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .spec import GROUP, KIND, VERSION, PluginSpec

Object = dict[str, Any]
USER = 10001
SCRATCH = "/tmp"  # noqa: S108  # a volume of the container, nothing of this process
TOKEN_FOLDER = "/etc/tinymlaas"  # noqa: S105  # a folder, no token
TLS_FOLDER = "/etc/tinymlaas-tls"
GRACE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the operator's own release is: its namespace, label values, and the Secret with manifest and tokens.

    `tls_secret_prefix`: plugins prove their names by the certificates of Secrets whose names begin so; empty: no mTLS.
    """

    namespace: str
    instance: str
    manifest_secret: str
    runtime_class: str = ""
    max_replicas: int = 10
    tls_secret_prefix: str = ""
    tls_domain: str = ""


def object_name(spec: PluginSpec) -> str:
    """Name of the plugin's Deployment, Service and NetworkPolicy."""
    return f"plugin-{spec.name}"


def identity(spec: PluginSpec, around: Surroundings) -> str:
    """Name of the plugin in its certificate, without the domain; empty without mTLS."""
    return object_name(spec) if around.tls_secret_prefix else ""


def address(spec: PluginSpec, around: Surroundings) -> str:
    """host:port of the headless Service; its name resolves to every replica, which is what the manifest says with "service"."""
    return f"{object_name(spec)}.{around.namespace}.svc:{spec.port}"


def token_key(name: str) -> str:
    """Key of a plugin's token in the manifest's Secret."""
    return f"{name}.token"


def labels(spec: PluginSpec, around: Surroundings) -> dict[str, str]:
    """Labels of everything that a plugin becomes."""
    return {
        "app.kubernetes.io/name": "compiler-plugin",
        "app.kubernetes.io/instance": around.instance,
        "app.kubernetes.io/component": "vendor-plugin",
        "app.kubernetes.io/managed-by": "tinymlaas-operator",
        f"{GROUP}/plugin": spec.name,
    }


def wanted(spec: PluginSpec, around: Surroundings) -> list[Object]:
    """Every object of a plugin, NetworkPolicy first: its container never runs outside of it."""
    return [_network_policy(spec, around), _service(spec, around), _deployment(spec, around)]


def _meta(spec: PluginSpec, around: Surroundings) -> Object:
    owner = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "name": spec.name,
        "uid": spec.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": object_name(spec),
        "namespace": around.namespace,
        "labels": labels(spec, around),
        "ownerReferences": [owner],
    }


def _selector(spec: PluginSpec, around: Surroundings) -> dict[str, str]:
    return {"app.kubernetes.io/instance": around.instance, f"{GROUP}/plugin": spec.name}


def _network_policy(spec: PluginSpec, around: Surroundings) -> Object:
    callers = [
        {
            "podSelector": {
                "matchLabels": {
                    "app.kubernetes.io/instance": around.instance,
                    "app.kubernetes.io/component": component,
                }
            }
        }
        for component in ("gateway", "operator")
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _meta(spec, around),
        "spec": {
            "podSelector": {"matchLabels": _selector(spec, around)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": callers, "ports": [{"protocol": "TCP", "port": spec.port}]}],
        },
    }


def _service(spec: PluginSpec, around: Surroundings) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(spec, around),
        "spec": {
            "clusterIP": "None",
            "selector": _selector(spec, around),
            "ports": [{"name": "grpc", "port": spec.port, "targetPort": "grpc", "appProtocol": "kubernetes.io/h2c"}],
        },
    }


def _deployment(spec: PluginSpec, around: Surroundings) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(spec, around),
        "spec": {
            "replicas": min(spec.replicas, around.max_replicas),
            "selector": {"matchLabels": _selector(spec, around)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": labels(spec, around)}, "spec": _pod(spec, around)},
        },
    }


def _pod(spec: PluginSpec, around: Surroundings) -> Object:
    pod: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, around)],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": spec.resources.ephemeral_storage}},
            {
                "name": "token",
                "secret": {
                    "secretName": around.manifest_secret,
                    "items": [{"key": token_key(spec.name), "path": "token"}],
                    "defaultMode": 0o440,
                },
            },
        ],
    }
    if around.tls_secret_prefix:
        secret = {"secretName": around.tls_secret_prefix + object_name(spec), "defaultMode": 0o440}
        pod["volumes"].append({"name": "tls", "secret": secret})
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in spec.image_pull_secrets]
    runtime = spec.runtime_class or ("" if spec.trusted else around.runtime_class)
    if runtime:
        pod["runtimeClassName"] = runtime
    return pod


def _container(spec: PluginSpec, around: Surroundings) -> Object:
    limits = spec.resources
    settings = {
        "TINYMLAAS_LISTEN": f"0.0.0.0:{spec.port}",
        "TINYMLAAS_TOKEN_FILE": f"{TOKEN_FOLDER}/token",
        "TINYMLAAS_LOG_FORMAT": "json",
        "HOME": SCRATCH,
        **(_tls_settings(around) if around.tls_secret_prefix else {}),
        **dict(spec.environment),
    }
    container: Object = {
        "name": "plugin",
        "image": spec.image,
        "imagePullPolicy": spec.image_pull_policy,
        "env": [{"name": name, "value": value} for name, value in settings.items()],
        "ports": [{"name": "grpc", "containerPort": spec.port}],
        # The contract knows no health service, so this asks only whether the server listens; the operator asks Probe.
        "startupProbe": {"tcpSocket": {"port": "grpc"}, "periodSeconds": 2, "failureThreshold": 60},
        "readinessProbe": {"tcpSocket": {"port": "grpc"}, "periodSeconds": 5},
        "livenessProbe": {"tcpSocket": {"port": "grpc"}, "periodSeconds": 20, "failureThreshold": 3},
        "resources": {
            "requests": {"cpu": limits.cpu_request, "memory": limits.memory_request or limits.memory},
            "limits": {
                "cpu": limits.cpu,
                "memory": limits.memory,
                "ephemeral-storage": limits.ephemeral_storage,
            },
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "tmp", "mountPath": SCRATCH},
            {"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True},
        ],
    }
    if around.tls_secret_prefix:
        container["volumeMounts"].append({"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True})
    if spec.command:
        container["command"] = list(spec.command)
    if spec.arguments:
        container["args"] = list(spec.arguments)
    return container


def _tls_settings(around: Surroundings) -> dict[str, str]:
    return {
        "TINYMLAAS_TLS_CERTIFICATE_FILE": f"{TLS_FOLDER}/tls.crt",
        "TINYMLAAS_TLS_KEY_FILE": f"{TLS_FOLDER}/tls.key",
        "TINYMLAAS_TLS_CA_FILE": f"{TLS_FOLDER}/ca.crt",
        "TINYMLAAS_TLS_DOMAIN": around.tls_domain,
    }
