"""Chart and operator against a real API server (and etcd), without nodes: schemas, rules of the CRD, admission, rights.

Needs etcd, kube-apiserver and kubectl on PATH or in a kit's cache (and helm for what the chart renders); skips and says so else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import api_server
from api_server import ApiServer
from test_chart import CHART, needs_helm, objects, pods
from tinymlaas_operator.adapters.kubernetes_api import KubernetesCluster, Server
from tinymlaas_operator.core.objects import Surroundings, wanted
from tinymlaas_operator.core.spec import FINALIZER, Identity, PluginSpec, read
from tinymlaas_operator.reconcile import Reconciler
from tinymlaas_operator.secrets_job import run as make_secrets

NAMESPACE = "suite"
AROUND = Surroundings(NAMESPACE, "suite", "suite-tinymlaas-vendor-plugins")
OPERATOR = "suite-tinymlaas-operator"
missing = api_server.missing()
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"{missing} is not on PATH: no API server is started"),
    pytest.mark.xdist_group("api-server"),
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server with the CRD, and a namespace at the restricted level that has the release's own Secrets."""
    folder = tmp_path_factory.mktemp("api")
    with api_server.running(folder) as server:
        applied(server, (CHART / "crds" / "compilerplugins.yaml").read_text(encoding="utf-8"))
        done = server.kubectl(
            "wait", "--for=condition=Established", "crd/compilerplugins.tinymlaas.io", "--timeout=60s"
        )
        assert done.returncode == 0, done.stderr
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        applied(server, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
        owned = {"app.kubernetes.io/instance": "suite"}
        make_secrets(cluster(server, folder), "suite-tinymlaas-generated", AROUND.manifest_secret, owned)
        yield server


def applied(api: ApiServer, *what: str | dict[str, Any], dry: bool = False) -> None:
    """Apply objects; AssertionError with the server's words where one is refused."""
    text = "---\n".join(each if isinstance(each, str) else yaml.safe_dump(each) for each in what)
    arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-", *(["--dry-run=server"] if dry else [])]
    done = api.kubectl("-n", NAMESPACE, *arguments, stdin=text)
    assert done.returncode == 0, done.stderr


def resource(name: str, **spec: Any) -> dict[str, Any]:
    """A CompilerPlugin."""
    return {
        "apiVersion": "tinymlaas.io/v1alpha1",
        "kind": "CompilerPlugin",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"image": "example.io/fast:1", "roles": ["compiler"], **spec},
    }


def cluster(api: ApiServer, folder: Path, token: str = "") -> KubernetesCluster:
    """The operator's adapter, as the administrator or with another token."""
    file = folder / "token"
    file.write_text(token or api.token, encoding="ascii")
    return KubernetesCluster(Server(api.url, file, api.certificate), NAMESPACE)


class Answers:
    """A prober whose plugins answer as their resource says."""

    async def ask(self, spec: PluginSpec, address: str, token: str) -> Identity:
        """See Prober."""
        return Identity(f"io.example.{spec.name}", "1.0", "1.0", spec.roles, True)


def get(api: ApiServer, *arguments: str) -> dict[str, Any]:
    """What kubectl gets, as JSON."""
    done = api.kubectl("-n", NAMESPACE, "get", *arguments, "-o", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"image": "example.io/fast"}, "an image needs a tag other than latest, or a digest"),
        ({"image": "example.io:5000/fast:latest"}, "an image needs a tag other than latest, or a digest"),
        ({"roles": ["judge"]}, "Unsupported value"),
        ({"roles": []}, "roles"),
        ({"port": 80}, "1024"),
        ({"env": [{"name": "A B"}]}, "should match"),
        ({"privileged": True}, "unknown field"),
    ],
)
def test_the_crd_refuses_what_makes_no_sense_in_words(api: ApiServer, spec: dict[str, Any], words: str) -> None:
    done = api.kubectl("create", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(resource("wrong", **spec)))
    assert done.returncode != 0
    assert words in done.stderr


def test_images_by_digest_and_by_tag_are_taken(api: ApiServer) -> None:
    for image in ("example.io:5000/fast:1.2", f"example.io/fast@sha256:{'0' * 64}"):
        applied(api, resource("image", image=image), dry=True)


def restricted(api: ApiServer, named: Sequence[tuple[str, dict[str, Any], dict[str, Any]]]) -> None:
    """Every pod is admitted in a namespace where the restricted level is enforced."""
    for index, (name, labels, pod) in enumerate(named):
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{index}", "labels": labels}, "spec": pod}
        done = api.kubectl("-n", NAMESPACE, "create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(body))
        assert done.returncode == 0, f"{name}: {done.stderr}"


async def test_a_resource_becomes_objects_that_the_server_takes_and_a_pod_that_is_restricted(
    api: ApiServer, tmp_path: Path
) -> None:
    adapter = cluster(api, tmp_path)
    applied(api, resource("fast", runtimeClassName="", replicas=2))
    await Reconciler(adapter, Answers(), AROUND).round()
    template = get(api, "deployment", "plugin-fast")["spec"]["template"]
    restricted(api, [("plugin-fast", template["metadata"]["labels"], template["spec"])])
    owner = get(api, "networkpolicy", "plugin-fast")["metadata"]["ownerReferences"][0]
    plugin = get(api, "compilerplugin", "fast")
    assert owner["uid"] == plugin["metadata"]["uid"]
    assert plugin["metadata"]["finalizers"] == [FINALIZER]
    told = {each["type"]: each["status"] for each in plugin["status"]["conditions"]}
    assert told["Accepted"] == "True"
    assert told["Available"] == "False"
    assert set(adapter.read_secret(AROUND.manifest_secret)) == {"vendor.json", "fast.token"}
    # The status that was read back is the one that was written: nothing was dropped by the schema.
    again = plugin["status"]
    await Reconciler(adapter, Answers(), AROUND).round()
    assert get(api, "compilerplugin", "fast")["status"] == again


async def test_a_round_without_changes_changes_nothing(api: ApiServer, tmp_path: Path) -> None:
    adapter = cluster(api, tmp_path)
    applied(api, resource("still"))
    await Reconciler(adapter, Answers(), AROUND).round()
    await Reconciler(adapter, Answers(), AROUND).round()
    before = {kind: get(api, kind, "plugin-still")["metadata"]["resourceVersion"] for kind in ("deployment", "service")}
    await Reconciler(adapter, Answers(), AROUND).round()
    after = {kind: get(api, kind, "plugin-still")["metadata"]["resourceVersion"] for kind in ("deployment", "service")}
    assert before == after


async def test_a_deleted_resource_stays_until_it_has_drained(api: ApiServer, tmp_path: Path) -> None:
    adapter = cluster(api, tmp_path)
    applied(api, resource("leaving", drainSeconds=60))
    await Reconciler(adapter, Answers(), AROUND).round()
    assert api.kubectl("-n", NAMESPACE, "delete", "compilerplugin", "leaving", "--wait=false").returncode == 0
    await Reconciler(adapter, Answers(), AROUND, clock=lambda: "2026-01-01T00:00:00Z").round()
    assert get(api, "compilerplugin", "leaving")["status"]["drainingSince"] == "2026-01-01T00:00:00Z"
    await Reconciler(adapter, Answers(), AROUND, clock=lambda: "2026-01-01T00:01:00Z").round()
    assert api.kubectl("-n", NAMESPACE, "get", "compilerplugin", "leaving").returncode != 0


@needs_helm
@pytest.mark.parametrize("variant", ["trial", "own-servers", "everything"])
def test_the_server_takes_every_object_of_the_chart(api: ApiServer, variant: str) -> None:
    applied(api, *[each for each in objects(variant) if not each["apiVersion"].startswith("monitoring.")], dry=True)
    restricted(api, list(pods(variant)))


@needs_helm
async def test_the_operators_role_is_enough_for_its_work_and_for_nothing_more(api: ApiServer, tmp_path: Path) -> None:
    rights = [
        each for each in objects("trial") if each["metadata"]["name"] == OPERATOR and each["kind"] != "Deployment"
    ]
    assert {each["kind"] for each in rights} >= {"ServiceAccount", "Role", "RoleBinding"}
    applied(api, *rights)
    done = api.kubectl("-n", NAMESPACE, "create", "token", OPERATOR)
    assert done.returncode == 0, done.stderr
    token = done.stdout.strip()
    applied(api, resource("rights"))
    await Reconciler(cluster(api, tmp_path, token), Answers(), AROUND).round()
    assert get(api, "deployment", "plugin-rights")
    assert get(api, "compilerplugin", "rights")["status"]["conditions"]
    assert api.kubectl("-n", NAMESPACE, "delete", "compilerplugin", "rights", "--wait=false").returncode == 0
    for moment in ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"):
        await Reconciler(cluster(api, tmp_path, token), Answers(), AROUND, clock=lambda moment=moment: moment).round()
    assert api.kubectl("-n", NAMESPACE, "get", "compilerplugin", "rights").returncode != 0
    for verb, what in (
        ("get", "secret/suite-tinymlaas-generated"),
        ("list", "secrets"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("delete", "deployments"),
        ("create", "roles"),
        ("get", "nodes"),
    ):
        told = api.kubectl("-n", NAMESPACE, "auth", "can-i", verb, what, token=token)
        assert told.stdout.strip() == "no", f"{verb} {what}"


def test_what_the_operator_makes_keeps_its_own_selectors(api: ApiServer) -> None:
    body = {**resource("selected"), "metadata": {"name": "selected", "uid": "u", "namespace": NAMESPACE}}
    for each in wanted(read(body), AROUND):
        each["metadata"].pop("ownerReferences")
        applied(api, each, dry=True)
