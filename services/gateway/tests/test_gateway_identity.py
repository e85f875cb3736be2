"""Who may do what at a real gateway before a real registry, both with certificates: keys, tenancy, audit (spec/access.md)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certificate_authority import Authority
from tinymlaas.gateway.v1 import builds_pb2, builds_pb2_grpc, deployments_pb2, deployments_pb2_grpc
from tinymlaas.registry.v1 import artifacts_pb2, artifacts_pb2_grpc, models_pb2, models_pb2_grpc, modules_pb2_grpc
from tinymlaas.registry.v1 import modules_pb2 as modules
from tinymlaas_client import AsyncClient
from tinymlaas_servicekit import ServiceError, TlsFiles, connect, from_rpc_error

TOKEN = "installation-token"
AUDIENCE = "tinymlaas"
PATIENCE_SECONDS = 120.0
SIGNING = ec.generate_private_key(ec.SECP256R1())


@dataclass
class Place:
    """Where the gateway of these tests is, and how it is spoken to."""

    address: str
    tls: TlsFiles
    issuer: str
    folder: Path

    def client(self, token: str | None, project: str = "a") -> AsyncClient:
        return AsyncClient(self.address, token=token, project=project, tls=self.tls)

    def oidc(self, *roles: str, **changes: object) -> str:
        claims = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "ann",
            "exp": time.time() + 3600,
            "tinymlaas": list(roles),
        }
        return jwt.encode({**claims, **changes}, SIGNING, algorithm="ES256", headers={"kid": "k"})


class _Provider(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        issuer = f"http://127.0.0.1:{self.server.server_address[1]}"
        key = jwt.get_algorithm_by_name("ES256").to_jwk(SIGNING.public_key(), as_dict=True)
        keys = {"keys": [{**key, "kid": "k"}]}
        document = {"issuer": issuer, "jwks_uri": f"{issuer}/keys"} if "well-known" in self.path else keys
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def _process(folder: Path, module: str, files: TlsFiles, **settings: str) -> Iterator[str]:
    address_file = folder / f"{module}.address"
    environment = {
        "TINYMLAAS_LISTEN": "127.0.0.1:0",
        "TINYMLAAS_TOKEN": TOKEN,
        "TINYMLAAS_STATE_DIR": str(folder / module),
        "TINYMLAAS_ADDRESS_FILE": str(address_file),
        "TINYMLAAS_GRACE_SECONDS": "0.2",
        "TINYMLAAS_TLS_CA_FILE": str(files.ca),
        "TINYMLAAS_TLS_CERTIFICATE_FILE": str(files.certificate),
        "TINYMLAAS_TLS_KEY_FILE": str(files.key),
        **{f"TINYMLAAS_{name.upper()}": value for name, value in settings.items()},
    }
    log = folder / f"{module}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module], env={**os.environ, **environment}, stdout=output, stderr=output
        )
    try:
        end = time.monotonic() + PATIENCE_SECONDS
        while not address_file.exists():
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.05)
        yield address_file.read_text().strip()
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, authority = tmp_path_factory.mktemp("identity"), Authority()
    registry, gateway, public = (
        authority.issue(folder / name, host)
        for name, host in (
            ("r", "registry.tinymlaas.internal"),
            ("g", "gateway.tinymlaas.internal"),
            ("p", "localhost"),
        )
    )
    with HTTPServer(("127.0.0.1", 0), _Provider) as provider:
        thread = threading.Thread(target=provider.serve_forever)
        thread.start()
        try:
            issuer = f"http://127.0.0.1:{provider.server_port}"
            with (
                _process(folder, "tinymlaas_registry", registry) as registry_address,
                _process(
                    folder,
                    "tinymlaas_gateway",
                    gateway,
                    registry_address=registry_address,
                    public_tls_certificate_file=str(public.certificate),
                    public_tls_key_file=str(public.key),
                    identity_cache_seconds="0",
                    oidc_issuer=issuer,
                    oidc_audience=AUDIENCE,
                    oidc_role_map='{"engineers": ["a:operator"]}',
                ) as address,
            ):
                yield Place(f"localhost:{address.rsplit(':', 1)[1]}", TlsFiles(public.ca), issuer, folder)
        finally:
            provider.shutdown()
            thread.join()


async def _refused(awaitable) -> ServiceError:
    with pytest.raises((ServiceError, grpc.RpcError)) as caught:
        await awaitable
    return caught.value if isinstance(caught.value, ServiceError) else from_rpc_error(caught.value)


async def _key(place: Place, **roles: list[str]) -> str:
    async with place.client(TOKEN) as admin:
        return (await admin.create_api_key(roles, display_name="of a test")).secret


async def test_the_token_of_the_installation_is_admin_everywhere_and_no_service(place: Place) -> None:
    async with place.client(TOKEN, "whichever") as client:
        assert await client.list_models() == []
        assert (await client.get_project()).name == "projects/whichever"
        channel = client._channel
        request = modules.CreateModuleRequest(parent="projects/a", module=modules.Module(sha256="0" * 64))
        error = await _refused(modules_pb2_grpc.ModulesStub(channel).CreateModule(request))
    assert (error.code, error.reason) == ("PERMISSION_DENIED", "INTERNAL_CALL")


@pytest.mark.parametrize("token", [None, "wrong", "tml_0123456789abcdef_" + "x" * 43, "a.b.c"])
async def test_without_a_good_credential_nothing_is_told(place: Place, token: str | None) -> None:
    async with place.client(token) as client:
        assert (await _refused(client.list_models())).code == "UNAUTHENTICATED"


async def test_a_key_works_in_its_project_with_its_roles_and_nowhere_else(place: Place) -> None:
    secret = await _key(place, a=["operator"])
    async with place.client(secret, "a") as client, place.client(secret, "b") as elsewhere:
        digest = await client.write_artifact(b"of project a")
        assert await client.list_models() == []
        assert await client.list_plugins() == []
        errors = {
            "other project": await _refused(elsewhere.list_models()),
            "admin's": await _refused(client.delete_model("projects/a/models/m")),
            "make a key": await _refused(client.create_api_key({"a": ["viewer"]})),
            "quotas": await _refused(client.set_quotas((await client.get_project()).quotas)),
            "write elsewhere": await _refused(elsewhere.write_artifact(b"of project b")),
            "read elsewhere": await _refused(elsewhere.read_artifact(digest)),
        }
    assert {what: (error.code, error.reason) for what, error in errors.items()} == dict.fromkeys(
        errors, ("PERMISSION_DENIED", "PERMISSION_DENIED")
    )
    assert errors["other project"].metadata["project"] == "b"
    assert errors["admin's"].metadata["permission"] == "ADMINISTER"


async def test_another_projects_resources_cannot_be_named_in_any_field(place: Place) -> None:
    secret = await _key(place, a=["operator"])
    async with connect(place.address, secret, tls=place.tls) as channel:
        build = builds_pb2.Build(model_version="projects/b/models/m/versions/1")
        deployment = deployments_pb2.Deployment(
            model_version="projects/a/models/m/versions/1", devices=["projects/a/devices/d", "projects/b/devices/d"]
        )
        header = models_pb2.ImportModelHeader(parent="projects/a", derived_from="projects/b/models/m/versions/1")
        first = artifacts_pb2.WriteArtifactRequest(sha256="0" * 64, parent="projects/a")
        second = artifacts_pb2.WriteArtifactRequest(parent="projects/b")
        errors = [
            await _refused(call)
            for call in (
                builds_pb2_grpc.BuildsStub(channel).CreateBuild(
                    builds_pb2.CreateBuildRequest(parent="projects/a", build=build)
                ),
                deployments_pb2_grpc.DeploymentsStub(channel).CreateDeployment(
                    deployments_pb2.CreateDeploymentRequest(parent="projects/a", deployment=deployment)
                ),
                models_pb2_grpc.ModelsStub(channel).ImportModel(iter([models_pb2.ImportModelRequest(header=header)])),
                artifacts_pb2_grpc.ArtifactsStub(channel).WriteArtifact(iter([first, second])),
            )
        ]
    assert [(error.code, error.metadata.get("project")) for error in errors] == [("PERMISSION_DENIED", "b")] * 4


async def test_an_admin_of_a_project_cannot_give_away_more_than_that(place: Place) -> None:
    secret = await _key(place, a=["admin"])
    async with place.client(secret) as client:
        made = await client.create_api_key({"a": ["viewer"]})
        errors = [await _refused(client.create_api_key(roles)) for roles in ({"b": ["viewer"]}, {"-": ["viewer"]})]
        assert [error.code for error in errors] == ["PERMISSION_DENIED"] * 2
        assert made.api_key in await client.list_api_keys()
        await client.delete_api_key(made.api_key.name)
    assert made.api_key.creator.startswith("api-key:")


async def test_a_deleted_key_is_refused(place: Place) -> None:
    secret = await _key(place, a=["viewer"])
    async with place.client(secret) as client, place.client(TOKEN) as admin:
        assert await client.list_models() == []
        await admin.delete_api_key(secret[4:20])
        error = await _refused(client.list_models())
    assert (error.code, error.reason) == ("UNAUTHENTICATED", "API_KEY_INVALID")


async def test_tokens_of_the_provider_have_the_roles_of_their_claim(place: Place) -> None:
    async with place.client(place.oidc("a:viewer")) as viewer, place.client(place.oidc("engineers")) as engineer:
        assert await viewer.list_models() == await engineer.list_models() == []
        assert (await _refused(viewer.write_artifact(b"x"))).metadata["subject"] == "oidc:ann"
        await engineer.write_artifact(b"x")
    for token in (place.oidc("a:viewer", aud="other"), place.oidc("a:viewer", exp=1)):
        async with place.client(token) as client:
            assert (await _refused(client.list_models())).code == "UNAUTHENTICATED"


async def test_every_change_is_in_the_audit_log_with_who_what_and_outcome(place: Place) -> None:
    token, project = place.oidc("log:admin", sub="auditor"), "log"
    async with place.client(token, project) as client:
        made = await client.create_api_key({project: ["viewer"]}, display_name="audited")
        missing = await _refused(client.delete_model(f"projects/{project}/models/none"))
        await client.list_models()
        async with place.client(made.secret, project) as viewer:
            await _refused(viewer.write_artifact(b"not allowed"))
            await _refused(viewer.cancel_build(f"projects/{project}/builds/1"))
        entries = await client.list_audit_entries()
        mine = await client.list_audit_entries(subject="oidc:auditor", limit=1)
        everywhere = await _refused(client.list_audit_entries(everywhere=True))
    async with place.client(TOKEN) as admin:
        refused = await admin.list_audit_entries(everywhere=True, subject=f"api-key:{made.secret[4:20]}")
    seen = [(entry.subject, entry.method.rsplit("/", 1)[1], entry.code, entry.reason) for entry in entries]
    assert seen == [
        (f"api-key:{made.secret[4:20]}", "CancelBuild", "PERMISSION_DENIED", "PERMISSION_DENIED"),
        ("oidc:auditor", "DeleteModel", "NOT_FOUND", "NOT_FOUND"),
        ("oidc:auditor", "CreateApiKey", "OK", ""),
    ]
    # An upload is refused before it is looked into: its entry names no project.
    assert [entry.method.rsplit("/", 1)[1] for entry in refused] == ["CancelBuild", "WriteArtifact"]
    assert (missing.code, mine, everywhere.code) == ("NOT_FOUND", [entries[1]], "PERMISSION_DENIED")
    assert entries[1].resources == [f"projects/{project}/models/none"]
    assert (entries[2].proof, entries[2].project) == ("oidc", f"projects/{project}")
    assert json.loads(entries[2].request)["api_key"]["display_name"] == "audited"
    assert all(entry.peer and entry.HasField("time") for entry in entries)


async def test_secrets_are_neither_in_the_audit_log_nor_in_the_logs(place: Place) -> None:
    secret = await _key(place, a=["viewer"])
    async with place.client(secret) as client, place.client(TOKEN) as admin:
        await client.list_models()
        entries = await admin.list_audit_entries(everywhere=True, limit=1000)
    texts = [str(entry) for entry in entries] + [path.read_text() for path in place.folder.glob("*.log")]
    assert len(texts) > 2
    assert [hidden for hidden in (secret[21:], TOKEN) if any(hidden in text for text in texts)] == []


async def test_a_client_that_does_not_trust_the_gateways_authority_does_not_speak_to_it(
    place: Place, tmp_path: Path
) -> None:
    stranger = TlsFiles(Authority().issue(tmp_path / "other", "localhost").ca)
    async with AsyncClient(place.address, token=TOKEN, tls=stranger) as client:
        assert (await _refused(client.list_models())).code == "UNAVAILABLE"


def test_keys_quotas_and_the_audit_log_from_the_command_line(place: Place, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)

    def tinymlaas(*arguments: str) -> object:
        options = ("--address", place.address, "--token-file", str(token_file), "--ca-file", str(place.tls.ca))
        command = [sys.executable, "-c", "from tinymlaas_client.cli import main; main()", "--json", *options]
        done = subprocess.run([*command, "--project", "cli", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    made = tinymlaas(
        "api-keys", "create", "--role", "operator", "--role", "other:viewer", "--name", "ci", "--expires", "1d"
    )
    assert isinstance(made, dict)
    assert made["secret"].startswith("tml_")
    listed = tinymlaas("api-keys", "list")
    assert listed == [made["api_key"]]
    assert [grant["project"] for grant in made["api_key"]["grants"]] == ["projects/cli", "projects/other"]
    project = tinymlaas("projects", "quota", "--max-devices", "7")
    assert isinstance(project, dict)
    assert project["effective_quotas"] == {"max_devices": 7}
    tinymlaas("api-keys", "delete", made["secret"][4:20])
    entries = tinymlaas("audit", "list", "--since", "1h")
    assert isinstance(entries, list)
    assert [entry["method"].rsplit("/", 1)[1] for entry in entries] == ["DeleteApiKey", "UpsertProject", "CreateApiKey"]
