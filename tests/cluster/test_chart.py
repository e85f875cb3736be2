"""The chart, rendered: strict lint, schema of its values, API versions, and rules that every rendered object keeps.

Needs helm (and kubeconform for the API versions) on PATH or in build/tools/bin; without it these tests skip and say so.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import yaml

from cluster_kit import CACHE, ROOT, tool

CHART = ROOT / "deploy" / "helm" / "tinymlaas"
HELM = tool("helm")
needs_helm = pytest.mark.skipif(HELM is None, reason="no helm to render the chart with: `make chart-tools` (needs Go)")
VARIANTS: dict[str, list[str]] = {
    "trial": [],
    "own-servers": [
        "postgresql.bundled=false",
        "postgresql.external.urlSecret=databases",
        "postgresql.external.cidrs={10.1.0.0/16}",
        "s3.bundled=false",
        "s3.external.endpoint=https://s3.example.com",
        "s3.external.secret=s3",
        "s3.external.caSecret=s3-ca",
        "s3.external.cidrs={10.2.0.0/16}",
        "secrets.existing=mine",
    ],
    "everything": [
        "gateway.replicas=2",
        "bridge.replicas=2",
        "bridge.plainCoap=true",
        "bridge.service.type=LoadBalancer",
        "registry.autoscaling.enabled=true",
        "plugins.compiler-tvm.replicas=3",
        "otlpEndpoint=http://collector.monitoring:4317",
        "metrics.port=9464",
        "metrics.podMonitor=true",
        "metrics.rules=true",
        "metrics.dashboards=true",
        "oidc.issuer=https://id.example.com",
        "oidc.audience=tinymlaas",
        "oidc.cidrs={10.3.0.0/16}",
        "tls.enabled=true",
    ],
}


def helm(*arguments: str) -> str:
    """What helm printed; AssertionError with its words when it fails."""
    assert HELM is not None
    done = subprocess.run([HELM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@lru_cache
def rendered(variant: str) -> str:
    """Manifests of a variant."""
    settings = [part for value in VARIANTS[variant] for part in ("--set", value)]
    return helm("template", "suite", str(CHART), "--namespace", "suite", *settings)


def objects(variant: str) -> list[dict[str, Any]]:
    """Objects of a variant."""
    return [each for each in yaml.safe_load_all(rendered(variant)) if each]


def pods(variant: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, labels and specification of every pod that a variant makes; volumes of claim templates are empty ones."""
    for each in objects(variant):
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "Pod":
            yield name, each["metadata"]["labels"], each["spec"]
        elif "template" in each.get("spec", {}):
            template = each["spec"]["template"]
            claims = [claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])]
            volumes = [*template["spec"].get("volumes", []), *({"name": claim, "emptyDir": {}} for claim in claims)]
            yield name, template["metadata"]["labels"], {**template["spec"], "volumes": volumes}


@needs_helm
@pytest.mark.parametrize("variant", VARIANTS)
def test_lint_is_strict_and_clean(variant: str) -> None:
    settings = [part for value in VARIANTS[variant] for part in ("--set", value)]
    helm("lint", "--strict", str(CHART), *settings)


@needs_helm
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_is_one_of_the_api_version_that_it_names(variant: str) -> None:
    conform = tool("kubeconform")
    schemas = sorted((CACHE / "schemas").glob("v1.3*-local-strict")) if (CACHE / "schemas").is_dir() else []
    if conform is None or not schemas:
        pytest.skip("kubeconform or its schemas are not there")
    version = schemas[-1].name.split("-")[0].removeprefix("v")
    location = str(
        CACHE / "schemas" / "{{.NormalizedKubernetesVersion}}-local-strict" / "{{.ResourceKind}}{{.KindSuffix}}.json"
    )
    command = [conform, "-strict", "-summary", "-skip", "PodMonitor,PrometheusRule", "-kubernetes-version", version]
    command += ["-schema-location", location]
    done = subprocess.run(command, input=rendered(variant), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_helm
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_pod_keeps_the_restricted_level_and_more(variant: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/ (restricted); read-only roots and limits beyond it."""
    for name, _, pod in pods(variant):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["seccompProfile"]["type"] == "RuntimeDefault", name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        assert all(set(volume) & {"emptyDir", "secret", "configMap", "projected"} for volume in pod["volumes"]), name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name
            assert not container["image"].endswith(":latest"), name
            assert re.search(r":[^/]+$|@sha256:", container["image"]), name


@needs_helm
@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_operator_and_the_job_that_makes_secrets_may_speak_to_the_api_server(variant: str) -> None:
    told = {name for name, _, pod in pods(variant) if pod["automountServiceAccountToken"] is not False}
    assert told == {"Deployment/suite-tinymlaas-operator", "Job/suite-tinymlaas-secrets"}


def arrows(variant: str) -> set[tuple[str, str]]:
    """Who may call whom, by component, as both ends' NetworkPolicies allow it; "*" is anybody."""
    found: dict[str, set[tuple[str, str]]] = {"ingress": set(), "egress": set()}
    for each in objects(variant):
        if each["kind"] != "NetworkPolicy":
            continue
        own = each["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component", "")
        for way, peers in (("ingress", "from"), ("egress", "to")):
            for rule in each["spec"].get(way) or []:
                if any(port.get("port") in (53, 9464, 7091) for port in rule.get("ports", [])):
                    continue
                for peer in rule.get(peers) or [{}]:
                    labels = peer.get("podSelector", {}).get("matchLabels", {})
                    other = labels.get("app.kubernetes.io/component", "*")
                    found[way].add((other, own) if way == "ingress" else (own, other))
    both = found["ingress"] & found["egress"]
    # What leaves the cluster, comes from outside of it, or ends at a pod that the operator makes has one end only.
    return both | {arrow for way in found.values() for arrow in way if {"*", "vendor-plugin"} & set(arrow)}


@needs_helm
def test_network_policies_allow_the_arrows_of_the_architecture_and_no_others() -> None:
    plugins = {"compiler-tvm", "compiler-tflm", "optimizer", "profiler"}
    assert arrows("trial") == {
        ("*", "gateway"),
        ("helm-test", "gateway"),
        ("gateway", "registry"),
        ("gateway", "bridge"),
        ("bridge", "registry"),
        *(("gateway", plugin) for plugin in plugins),
        ("gateway", "vendor-plugin"),
        ("operator", "vendor-plugin"),
        ("registry", "postgresql"),
        ("gateway", "postgresql"),
        ("bridge", "postgresql"),
        ("migrations", "postgresql"),
        ("registry", "minio"),
        ("*", "bridge"),  # devices
        ("bridge", "*"),
        ("operator", "*"),  # the API server
        ("secrets", "*"),
    }


@needs_helm
def test_a_policy_denies_whatever_the_others_do_not_allow() -> None:
    deny = [each for each in objects("trial") if each["metadata"]["name"] == "suite-tinymlaas-deny"]
    assert [each["spec"]["policyTypes"] for each in deny] == [["Ingress", "Egress"]]
    assert not {"ingress", "egress"} & deny[0]["spec"].keys()
    selected = deny[0]["spec"]["podSelector"]["matchLabels"].items()
    assert all(selected <= labels.items() for _, labels, _ in pods("trial"))


@needs_helm
def test_plugins_have_no_way_out_and_no_secret_but_their_own_token() -> None:
    for name, labels, pod in pods("trial"):
        if labels.get("tinymlaas.io/sandboxed") != "true":
            continue
        keys = [env["valueFrom"]["secretKeyRef"]["key"] for env in pod["containers"][0]["env"] if "valueFrom" in env]
        assert keys == ["plugin-token"], name
        component = labels["app.kubernetes.io/component"]
        policy = next(each for each in objects("trial") if each["metadata"]["name"] == f"suite-tinymlaas-{component}")
        assert policy["spec"]["egress"] is None, name
        assert {"cpu", "memory", "ephemeral-storage"} <= pod["containers"][0]["resources"]["limits"].keys(), name


@needs_helm
def test_own_servers_and_secrets_leave_nothing_bundled() -> None:
    names = {each["metadata"]["name"] for each in objects("own-servers")}
    assert not {name for name in names if "postgresql" in name or "minio" in name}
    registry = next(pod for name, _, pod in pods("own-servers") if name == "Deployment/suite-tinymlaas-registry")
    environment = {env["name"]: env for env in registry["containers"][0]["env"]}
    assert environment["TINYMLAAS_DATABASE_URL"]["valueFrom"]["secretKeyRef"] == {
        "name": "databases",
        "key": "registry",
    }
    assert environment["TINYMLAAS_S3_CA_FILE"]["value"] == "/etc/tinymlaas/s3/ca.crt"
    assert environment["TINYMLAAS_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "mine"


@needs_helm
def test_dashboards_and_alert_rules_are_those_of_the_chart() -> None:
    rules = next(each for each in objects("everything") if each["kind"] == "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((CHART / "alerts" / "tinymlaas.yaml").read_text(encoding="utf-8"))
    told = {
        name: json.loads(text)
        for each in objects("everything")
        if each["metadata"]["labels"].get("grafana_dashboard")
        for name, text in each["data"].items()
    }
    assert told == {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}


@needs_helm
def test_devices_source_addresses_reach_a_bridge_from_outside() -> None:
    service = next(
        each
        for each in objects("everything")
        if each["kind"] == "Service" and each["metadata"]["name"] == "suite-tinymlaas-bridge"
    )
    assert service["spec"]["externalTrafficPolicy"] == "Local"
    assert service["spec"]["sessionAffinity"] == "ClientIP"
    assert {port["protocol"] for port in service["spec"]["ports"]} == {"UDP"}


@needs_helm
@pytest.mark.parametrize(
    "wrong",
    [
        "gateway.replicas=0",
        "gateway.replica=2",
        "image.tag=latest",
        "postgresql.image=postgres:latest",
        "bridge.publicAddress=example.com",
        "digests.gateway=sha256:12",
        "registry.env.PATH=/",
        "oidc.issuer=https://id.example.com",
    ],
)
def test_values_that_are_wrong_are_refused_by_the_schema(wrong: str) -> None:
    assert HELM is not None
    done = subprocess.run(
        [HELM, "template", "suite", str(CHART), "--set", wrong], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "schema" in done.stderr


def test_every_value_is_in_the_schema_and_has_a_default() -> None:
    """Without helm: names of values.yaml and of values.schema.json are the same."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

    def compare(value: Any, node: dict[str, Any], path: str) -> None:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        properties = node.get("properties")
        if not isinstance(value, dict) or not properties or path.endswith(("resources", "env")):
            return
        optional = {"global", "env"} if path else {"global"}
        assert set(value) - optional == set(properties) - optional, path or "values"
        for key, child in value.items():
            compare(child, properties[key], f"{path}.{key}")

    compare(values, schema, "")


def test_the_crd_is_structural_and_its_names_agree() -> None:
    crd = yaml.safe_load((CHART / "crds" / "compilerplugins.yaml").read_text(encoding="utf-8"))
    assert crd["metadata"]["name"] == f"{crd['spec']['names']['plural']}.{crd['spec']['group']}"

    def walk(node: dict[str, Any], path: str) -> None:
        assert "type" in node, path
        for key, child in node.get("properties", {}).items():
            walk(child, f"{path}.{key}")
        if "items" in node:
            walk(node["items"], f"{path}[]")

    walk(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "")


def test_settings_of_the_chart_are_settings_of_the_services() -> None:
    """A variable that no service reads would be a wish."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((CHART / "templates").rglob("*.*")))
    told = set(re.findall(r"TINYMLAAS_[A-Z0-9_]+", text)) - {
        "TINYMLAAS_COAP_ADDRESS",
        "TINYMLAAS_BRIDGE_ADDRESS",
        "TINYMLAAS_STATUS_LISTEN",
    }
    sources = [
        *(ROOT / "services").glob("*/src/*/*settings.py"),
        ROOT / "packages/servicekit/src/tinymlaas_servicekit/settings.py",
    ]
    fields = set(
        re.findall(r"^    ([a-z0-9_]+): ", "".join(path.read_text(encoding="utf-8") for path in sources), re.MULTILINE)
    )
    unknown = {name for name in told if name.removeprefix("TINYMLAAS_").lower() not in fields}
    assert not unknown


@needs_helm
def test_services_are_probed_spread_and_kept_from_being_evicted_all_at_once() -> None:
    made = objects("everything")
    workloads = {
        each["metadata"]["labels"]["app.kubernetes.io/component"]: each["spec"]
        for each in made
        if each["kind"] in ("Deployment", "StatefulSet")
    }
    for component in ("gateway", "registry", "bridge"):
        pod = workloads[component]["template"]
        labels = pod["metadata"]["labels"]
        budgets = [each["spec"] for each in made if each["kind"] == "PodDisruptionBudget"]
        (budget,) = [each for each in budgets if each["selector"]["matchLabels"].items() <= labels.items()]
        assert budget.get("maxUnavailable") == 1, component
        (spread,) = pod["spec"]["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"].items() <= labels.items(), component
        container = pod["spec"]["containers"][0]
        assert all("grpc" in container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")), component
    (scaler,) = [each["spec"] for each in made if each["kind"] == "HorizontalPodAutoscaler"]
    assert scaler["scaleTargetRef"]["name"].endswith("-registry")
    assert "replicas" not in workloads["registry"]
