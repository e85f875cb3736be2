"""The operator's calls to an API server: paths, content types and errors, against an HTTP server that keeps what it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tinymlaas_operator import secrets_job
from tinymlaas_operator.adapters.kubernetes_api import APPLY, MANAGER, ApiError, KubernetesCluster, Server, find_server
from tinymlaas_operator.core.manifest import MANIFEST_KEY

ROOT = "/namespaces/suite"


def merge(target: Any, patch: Any) -> Any:
    """JSON Merge Patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    made = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = merge(made.get(key), value)
    return made


@dataclass
class Api:
    """What the server holds by path, and what it was asked: method, path, query, content type, authorization."""

    objects: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, list[str]], str, str]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def api() -> Iterator[Api]:
    """A server that stores objects as the API server does, without any of its checks."""
    held = Api()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            parts = urlsplit(self.path)
            told = self.headers
            held.asked.append(
                (
                    self.command,
                    parts.path,
                    parse_qs(parts.query),
                    told.get("Content-Type", ""),
                    told.get("Authorization", ""),
                )
            )
            body = json.loads(self.rfile.read(int(told.get("Content-Length", 0))) or "null")
            status, made = self.store(parts.path.removesuffix("/status"), body)
            data = json.dumps(made).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = answer  # names of http.server

        def store(self, path: str, body: Any) -> tuple[int, Any]:
            if self.command == "POST":
                path = f"{path}/{body['metadata']['name']}"
                if path in held.objects:
                    return 409, {"reason": "AlreadyExists"}
                held.objects[path] = body
            elif self.command == "PATCH":
                held.objects[path] = merge(held.objects.get(path), body)
            elif path not in held.objects:
                listed = [value for key, value in held.objects.items() if key.startswith(path + "/")]
                return (200, {"items": listed}) if path.endswith(("plugins", "pods")) else (404, {"reason": "NotFound"})
            return 200, held.objects[path]

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    held.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield held
    finally:
        server.shutdown()
        thread.join(60)
        server.server_close()


def test_an_object_is_applied_by_the_server_itself_under_the_operators_name(api: Api) -> None:
    cluster = KubernetesCluster(Server(api.url), "suite")
    wanted = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "plugin-fast"},
        "status": {"readyReplicas": 2},
    }
    cluster.apply(wanted)
    method, path, query, content, _ = api.asked[0]
    assert (method, path, content) == ("PATCH", f"/apis/apps/v1{ROOT}/deployments/plugin-fast", APPLY)
    assert query == {"fieldManager": [MANAGER], "force": ["true"]}
    assert cluster.ready_replicas("plugin-fast") == 2
    assert cluster.ready_replicas("plugin-slow") == 0


def test_status_and_finalizers_are_merged_into_a_resource(api: Api) -> None:
    api.objects[f"/apis/tinymlaas.io/v1alpha1{ROOT}/compilerplugins/fast"] = {"metadata": {"name": "fast"}, "spec": {}}
    cluster = KubernetesCluster(Server(api.url), "suite")
    cluster.set_finalizers("fast", ["tinymlaas.io/drain"])
    cluster.write_status("fast", {"restarts": 1})
    assert cluster.plugins() == [
        {"metadata": {"name": "fast", "finalizers": ["tinymlaas.io/drain"]}, "spec": {}, "status": {"restarts": 1}}
    ]
    assert api.asked[1][1].endswith("/compilerplugins/fast/status")


def test_a_secret_keeps_only_the_keys_that_are_wanted(api: Api) -> None:
    cluster = KubernetesCluster(Server(api.url), "suite")
    assert cluster.read_secret("vendor") == {}
    cluster.write_secret("vendor", {"a.token": "1", "b.token": "ü"})
    cluster.write_secret("vendor", {"b.token": "ü"})
    assert cluster.read_secret("vendor") == {"b.token": "ü"}


def test_the_job_makes_secrets_once_and_a_second_run_changes_nothing(api: Api) -> None:
    cluster = KubernetesCluster(Server(api.url), "suite")
    secrets_job.run(cluster, "generated", "vendor", {"app.kubernetes.io/instance": "suite"})
    first = dict(api.objects[f"/api/v1{ROOT}/secrets/generated"]["stringData"])
    assert api.objects[f"/api/v1{ROOT}/secrets/vendor"]["stringData"] == {MANIFEST_KEY: "[]\n"}
    assert len(first["signing.pub"]) == 65
    # The real server turns stringData into data.
    cluster.write_secret("generated", first)
    secrets_job.run(cluster, "generated", "vendor", {})
    assert cluster.read_secret("generated") == first


def test_a_refusal_and_a_server_that_is_away_are_errors_that_say_so(api: Api) -> None:
    cluster = KubernetesCluster(Server(api.url), "suite")
    with pytest.raises(ApiError, match="404"):
        cluster._call("GET", "/nothing")
    with pytest.raises(OSError, match="cannot be reached"):
        KubernetesCluster(Server("http://127.0.0.1:1"), "suite").plugins()


def test_a_pod_shows_its_token_which_is_read_anew_for_each_call(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    cluster = KubernetesCluster(Server(api.url, token), "suite")
    for text in ("first", "second"):
        token.write_text(text, encoding="ascii")
        cluster.plugins()
    assert [asked[4] for asked in api.asked] == ["Bearer first", "Bearer second"]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    assert find_server().url == "https://[fd00::1]:443"
