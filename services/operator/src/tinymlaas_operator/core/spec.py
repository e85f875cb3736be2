"""What a CompilerPlugin resource asks for, and whether this cluster's owner allows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GROUP = "tinymlaas.io"
VERSION = "v1alpha1"
KIND = "CompilerPlugin"
FINALIZER = f"{GROUP}/drain"
ROLES = ("compiler", "importer", "optimizer", "profiler")
# A profiler and an optimizer decide on others' work: what is measured and what is compiled is what they say.
JUDGING_ROLES = frozenset({"optimizer", "profiler"})
OWN_NAMES = "io.tinymlaas."


class Refused(Exception):
    """A resource that is not started: `reason` for programs (CamelCase, as conditions have it), the message for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Resources:
    """Limits of one container, as Kubernetes quantities; also what is requested, but for the processor."""

    cpu: str = "1"
    memory: str = "2Gi"
    ephemeral_storage: str = "1Gi"
    cpu_request: str = "100m"
    memory_request: str = ""


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """One CompilerPlugin resource, read. Times in seconds."""

    name: str
    uid: str
    generation: int
    deleted: bool
    finalizers: tuple[str, ...]
    image: str
    roles: tuple[str, ...]
    trusted: bool
    replicas: int
    port: int
    resources: Resources
    drain_seconds: int
    image_pull_policy: str
    image_pull_secrets: tuple[str, ...]
    command: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    runtime_class: str
    status: Mapping[str, Any]


def read(resource: Mapping[str, Any]) -> PluginSpec:
    """Read a resource that the API server has checked against the CRD's schema."""
    meta, spec = resource["metadata"], resource["spec"]
    limits = spec.get("resources", {})
    return PluginSpec(
        name=meta["name"],
        uid=meta["uid"],
        generation=int(meta.get("generation", 1)),
        deleted=bool(meta.get("deletionTimestamp")),
        finalizers=tuple(meta.get("finalizers") or ()),
        image=spec["image"],
        roles=tuple(sorted(spec["roles"])),
        trusted=spec.get("trust", "Untrusted") == "Trusted",
        replicas=int(spec.get("replicas", 1)),
        port=int(spec.get("port", 7100)),
        resources=Resources(
            cpu=str(limits.get("cpu", Resources.cpu)),
            memory=str(limits.get("memory", Resources.memory)),
            ephemeral_storage=str(limits.get("ephemeralStorage", Resources.ephemeral_storage)),
            cpu_request=str(limits.get("cpuRequest", Resources.cpu_request)),
            memory_request=str(limits.get("memoryRequest", Resources.memory_request)),
        ),
        drain_seconds=int(spec.get("drainSeconds", 120)),
        image_pull_policy=spec.get("imagePullPolicy", "IfNotPresent"),
        image_pull_secrets=tuple(spec.get("imagePullSecrets", ())),
        command=tuple(spec.get("command", ())),
        arguments=tuple(spec.get("args", ())),
        environment=tuple((item["name"], item.get("value", "")) for item in spec.get("env", ())),
        runtime_class=spec.get("runtimeClassName", ""),
        status=resource.get("status") or {},
    )


def admit(spec: PluginSpec, trusted_images: Sequence[str]) -> None:
    """Refused where the resource claims a trust that its image does not have, or a role that needs it."""
    if spec.trusted and not any(spec.image.startswith(prefix) for prefix in trusted_images if prefix):
        raise Refused("ImageNotTrusted", f"{spec.image} begins with none of the image prefixes that the chart trusts")
    judging = sorted(JUDGING_ROLES.intersection(spec.roles))
    if judging and not spec.trusted:
        raise Refused("RoleNeedsTrust", f"the role {judging[0]} judges others' work and needs trust: Trusted")
    if any(name.startswith("TINYMLAAS_") for name, _ in spec.environment):
        raise Refused("EnvironmentReserved", "variables TINYMLAAS_* are set by the operator")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a plugin says of itself (PluginIdentity)."""

    name: str
    vendor_version: str
    contract_version: str
    roles: tuple[str, ...]
    ready: bool


def check_identity(spec: PluginSpec, identity: Identity, taken: Mapping[str, str]) -> None:
    """Refused where a plugin says that it is another, or more than its resource declares.

    `taken` maps plugin names to the resource that has each registered.
    """
    if not spec.trusted and identity.name.startswith(OWN_NAMES):
        raise Refused("NameReserved", f"names that begin with {OWN_NAMES} are the suite's own: {identity.name}")
    if taken.get(identity.name, spec.name) != spec.name:
        raise Refused("NameTaken", f"{identity.name} is registered by the CompilerPlugin {taken[identity.name]}")
    undeclared = sorted(set(identity.roles) - set(spec.roles))
    if undeclared:
        raise Refused(
            "RoleNotDeclared", f"the plugin offers the role {undeclared[0]}, which its resource does not name"
        )
    missing = sorted(set(spec.roles) - set(identity.roles))
    if missing:
        raise Refused("RoleMissing", f"the plugin does not offer the role {missing[0]} that its resource names")
