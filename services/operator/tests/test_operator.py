"""The operator: what it admits, what a plugin becomes, and its rounds over a cluster that stands in memory.

The API server is a fake here, since it can't be had in a process; tests/cluster runs the same against a real one. The plugin is
real and asked over gRPC.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from certificate_authority import Authority
from tinymlaas_operator import secrets_job
from tinymlaas_operator.adapters.probe import GrpcProber
from tinymlaas_operator.core.manifest import MANIFEST_KEY
from tinymlaas_operator.core.objects import Surroundings, object_name, wanted
from tinymlaas_operator.core.spec import FINALIZER, Identity, PluginSpec, Refused, admit, check_identity, read
from tinymlaas_operator.reconcile import Reconciler
from tinymlaas_pluginkit import Compiler, Plugin
from tinymlaas_servicekit import ServiceSettings, TlsFiles, Unavailable

AROUND = Surroundings("suite", "tinymlaas", "vendor-plugins")
NAME = "io.example.fast"


def resource(name: str = "fast", **spec: Any) -> dict[str, Any]:
    """A CompilerPlugin as the API server gives it."""
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "generation": 1, "finalizers": []},
        "spec": {"image": "example.io/fast:1", "roles": ["compiler"], **spec},
        "status": {},
    }


@dataclass
class Memory:
    """A Cluster in memory."""

    resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[tuple[str, str], Any] = field(default_factory=dict)
    secret: dict[str, str] = field(default_factory=dict)
    ready: dict[str, int] = field(default_factory=dict)
    pod_list: list[Mapping[str, Any]] = field(default_factory=list)

    def plugins(self) -> list[Mapping[str, Any]]:
        return json.loads(json.dumps(list(self.resources.values())))  # type: ignore[no-any-return]

    def apply(self, wanted: Mapping[str, Any]) -> None:
        self.objects[wanted["kind"], wanted["metadata"]["name"]] = wanted

    def ready_replicas(self, deployment: str) -> int:
        return self.ready.get(deployment, 0)

    def pods(self, plugin: str) -> Sequence[Mapping[str, Any]]:
        return self.pod_list

    def read_secret(self, name: str) -> dict[str, str]:
        return dict(self.secret)

    def write_secret(self, name: str, data: Mapping[str, str]) -> None:
        self.secret = dict(data)

    def write_status(self, name: str, status: Mapping[str, Any]) -> None:
        self.resources[name]["status"] = json.loads(json.dumps(status))

    def set_finalizers(self, name: str, finalizers: Sequence[str]) -> None:
        self.resources[name]["metadata"]["finalizers"] = list(finalizers)
        if not finalizers and self.resources[name]["metadata"].get("deletionTimestamp"):
            del self.resources[name]

    def condition(self, name: str, kind: str) -> tuple[str, str]:
        """State and reason of a condition."""
        found = {each["type"]: each for each in self.resources[name]["status"]["conditions"]}
        return found[kind]["status"], found[kind]["reason"]

    def manifest(self) -> list[dict[str, str]]:
        """What gateways read."""
        entries: list[dict[str, str]] = json.loads(self.secret[MANIFEST_KEY])
        return entries


@dataclass
class Loopback:
    """A prober that asks a real plugin on loopback, wherever the Service would lead."""

    address: str
    tls: TlsFiles | None = None

    async def ask(self, spec: PluginSpec, address: str, token: str) -> Identity:
        if not self.address:
            raise Unavailable("the plugin does not answer", "NOT_UP")
        return await GrpcProber(self.tls).ask(spec, self.address, token)


@asynccontextmanager
async def plugin_at(tls: TlsFiles | None = None) -> AsyncIterator[str]:
    """A real plugin; yields its address."""
    compiler = Compiler("json:loads", "json:loads", [], [])
    files = (
        {} if tls is None else {"tls_ca_file": tls.ca, "tls_certificate_file": tls.certificate, "tls_key_file": tls.key}
    )
    settings = ServiceSettings(listen="127.0.0.1:0", **files)  # type: ignore[arg-type]
    async with Plugin(NAME, "1.2.3", compiler=compiler).server(settings) as server:
        yield server.address


def operator(
    memory: Memory, address: str = "", trusted: Sequence[str] = (), now: str = "2026-01-01T00:00:00Z"
) -> Reconciler:
    """An operator over that memory; no address: no plugin answers."""
    return Reconciler(memory, Loopback(address), AROUND, trusted, lambda: now)


@pytest.mark.parametrize(
    ("spec", "trusted", "reason"),
    [
        ({}, (), ""),
        ({"roles": ["compiler", "importer"]}, (), ""),
        ({"roles": ["profiler"]}, (), "RoleNeedsTrust"),
        ({"roles": ["compiler", "optimizer"]}, ("example.io/",), "RoleNeedsTrust"),
        ({"roles": ["profiler"], "trust": "Trusted"}, (), "ImageNotTrusted"),
        ({"roles": ["profiler"], "trust": "Trusted"}, ("",), "ImageNotTrusted"),
        ({"roles": ["profiler"], "trust": "Trusted"}, ("other.io/", "example.io/"), ""),
        ({"env": [{"name": "TINYMLAAS_TOKEN", "value": "x"}]}, (), "EnvironmentReserved"),
    ],
)
def test_what_a_resource_may_ask_for(spec: dict[str, Any], trusted: tuple[str, ...], reason: str) -> None:
    if not reason:
        admit(read(resource(**spec)), trusted)
        return
    with pytest.raises(Refused) as refused:
        admit(read(resource(**spec)), trusted)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (Identity(NAME, "1", "1.0", ("compiler",), True), ""),
        (Identity("io.tinymlaas.compiler-tvm", "1", "1.0", ("compiler",), True), "NameReserved"),
        (Identity("io.example.taken", "1", "1.0", ("compiler",), True), "NameTaken"),
        (Identity(NAME, "1", "1.0", ("compiler", "profiler"), True), "RoleNotDeclared"),
        (Identity(NAME, "1", "1.0", (), True), "RoleMissing"),
    ],
)
def test_what_a_plugin_may_say_of_itself(identity: Identity, reason: str) -> None:
    taken = {"io.example.taken": "another", NAME: "fast"}
    if not reason:
        check_identity(read(resource()), identity, taken)
        return
    with pytest.raises(Refused) as refused:
        check_identity(read(resource()), identity, taken)
    assert refused.value.reason == reason


def test_a_container_gets_nothing_but_its_token_and_a_scratch_folder() -> None:
    policy, service, deployment = wanted(read(resource(resources={"memory": "512Mi"})), AROUND)
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "512Mi", "ephemeral-storage": "1Gi"}
    assert [volume["name"] for volume in pod["volumes"]] == ["tmp", "token"]
    assert pod["volumes"][1]["secret"]["items"] == [{"key": "fast.token", "path": "token"}]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy["spec"]
    callers = policy["spec"]["ingress"][0]["from"]
    told = [caller["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for caller in callers]
    assert told == ["gateway", "operator"]
    template = deployment["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= template.items()
    assert service["spec"]["selector"].items() <= template.items()


async def test_a_plugin_is_started_probed_and_registered_with_a_token_of_its_own() -> None:
    memory = Memory({"fast": resource()})
    async with plugin_at() as address:
        await operator(memory, address).round()
        assert [kind for kind, _ in memory.objects] == ["NetworkPolicy", "Service", "Deployment"]
        assert memory.resources["fast"]["metadata"]["finalizers"] == [FINALIZER]
        assert memory.manifest() == []
        assert memory.condition("fast", "Registered") == ("False", "NotIdentified")
        token = memory.secret["fast.token"]
        memory.ready[object_name(read(memory.resources["fast"]))] = 1
        await operator(memory, address).round()
    assert memory.manifest() == [
        {"service": "plugin-fast.suite.svc:7100", "token_file": "fast.token", "resource": "fast", "plugin": NAME}
    ]
    assert memory.secret["fast.token"] == token
    assert len(token) >= 32
    assert memory.resources["fast"]["status"]["plugin"]["name"] == NAME
    for kind in ("Accepted", "Available", "Identified", "Registered", "Healthy"):
        assert memory.condition("fast", kind)[0] == "True"


async def test_with_mtls_a_plugin_proves_its_name_and_the_gateway_is_told_which(tmp_path: Path) -> None:
    authority = Authority()
    own = authority.issue(tmp_path / "operator", "operator.tinymlaas.internal")
    theirs = authority.issue(tmp_path / "plugin", "plugin-fast.tinymlaas.internal")
    around = Surroundings("suite", "tinymlaas", "vendor-plugins", tls_secret_prefix="tls-", tls_domain=own.domain)
    memory = Memory({"fast": resource(), "thief": resource("thief")}, ready={"plugin-fast": 1, "plugin-thief": 1})
    async with plugin_at(theirs) as address:
        await Reconciler(memory, Loopback(address, own), around).round()
    assert [(entry["resource"], entry["identity"]) for entry in memory.manifest()] == [("fast", "plugin-fast")]
    assert memory.condition("thief", "Identified") == ("False", "NoAnswer")  # the certificate is not its own
    pod = memory.objects["Deployment", "plugin-fast"]["spec"]["template"]["spec"]
    assert pod["volumes"][-1]["secret"]["secretName"] == "tls-plugin-fast"
    settings = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    mounted = pod["containers"][0]["volumeMounts"][-1]["mountPath"]
    assert settings["TINYMLAAS_TLS_CERTIFICATE_FILE"] == f"{mounted}/tls.crt"


async def test_a_plugin_that_takes_anothers_name_is_not_registered_and_the_first_one_stays() -> None:
    memory = Memory({"fast": resource(), "thief": resource("thief")}, ready={"plugin-fast": 1, "plugin-thief": 1})
    async with plugin_at() as address:
        await operator(memory, address).round()
    assert [entry["resource"] for entry in memory.manifest()] == ["fast"]
    assert memory.condition("thief", "Accepted") == ("False", "NameTaken")


async def test_a_plugin_that_stops_answering_stays_registered_and_the_status_says_why_it_is_not_there() -> None:
    memory = Memory({"fast": resource()}, ready={"plugin-fast": 1})
    async with plugin_at() as address:
        await operator(memory, address).round()
    await operator(memory).round()
    assert [entry["resource"] for entry in memory.manifest()] == ["fast"]
    assert memory.condition("fast", "Identified") == ("False", "NoAnswer")


async def test_a_plugin_that_was_killed_for_its_memory_is_named() -> None:
    ended = {"reason": "OOMKilled", "exitCode": 137, "finishedAt": "2026-01-01T00:00:00Z"}
    container = {"restartCount": 2, "state": {"running": {}}, "lastState": {"terminated": ended}}
    pod = {"metadata": {"name": "plugin-fast-x"}, "status": {"containerStatuses": [container]}}
    memory = Memory({"fast": resource()}, pod_list=[pod])
    await operator(memory).round()
    assert memory.condition("fast", "Healthy") == ("False", "OutOfMemory")
    assert memory.resources["fast"]["status"]["lastTermination"]["pod"] == "plugin-fast-x"
    assert memory.resources["fast"]["status"]["restarts"] == 2


async def test_a_deleted_plugin_leaves_the_manifest_at_once_and_its_container_after_the_drain() -> None:
    memory = Memory({"fast": resource(drainSeconds=60)}, ready={"plugin-fast": 1})
    async with plugin_at() as address:
        await operator(memory, address).round()
        memory.resources["fast"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        await operator(memory, address, now="2026-01-01T00:00:01Z").round()
        assert memory.manifest() == []
        assert memory.condition("fast", "Registered") == ("False", "Draining")
        await operator(memory, address, now="2026-01-01T00:00:59Z").round()
        assert "fast" in memory.resources
        await operator(memory, address, now="2026-01-01T00:01:01Z").round()
        assert memory.resources == {}
        await operator(memory, address, now="2026-01-01T00:01:02Z").round()
    assert set(memory.secret) == {MANIFEST_KEY}


async def test_one_resource_that_fails_does_not_hold_up_the_others() -> None:
    class Faulty(Memory):
        def apply(self, wanted: Mapping[str, Any]) -> None:
            if wanted["metadata"]["name"] == "plugin-fast":
                raise OSError("the API server says no")
            super().apply(wanted)

    memory = Faulty({"fast": resource(), "other": resource("other")})
    await operator(memory).round()
    assert ("Deployment", "plugin-other") in memory.objects


def test_generated_secrets_stay_and_the_key_pair_is_never_mixed() -> None:
    first = secrets_job.generate()
    assert secrets_job.complete(first) == first
    assert set(secrets_job.complete({})) == set(first)
    older = {key: value for key, value in first.items() if key != "plugin-token"}
    assert secrets_job.complete(older).items() >= older.items()
    without_public = {key: value for key, value in first.items() if key != "signing.pub"}
    assert "signing.pub" not in secrets_job.complete(without_public)
