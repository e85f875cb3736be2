"""scripts/backup.py: what was saved of registry, gateway and bridge is there again after a restore into nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

import postgres_server
from tinymlaas.gateway.v1 import builds_pb2
from tinymlaas.registry.v1 import plugins_pb2
from tinymlaas_gateway.adapters import store as gateway_store
from tinymlaas_gateway.core import projection
from tinymlaas_lwm2m import ObjectLink
from tinymlaas_lwm2m_bridge import Registration, SqlStore
from tinymlaas_lwm2m_bridge.core.device_keys import DeviceKeys
from tinymlaas_lwm2m_bridge.key_store import SqlKeyStore, master_key
from tinymlaas_registry.adapters import FolderStore, SqlRecords, migrate, open_engine

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "backup.py"
DATA = bytes(range(256)) * 1000
PLUGIN = plugins_pb2.Plugin(name="plugins/io.example.one", detail="kept")
BUILD = builds_pb2.Build(name="projects/default/builds/one", model_version="v")
DEVICE = Registration(
    "id-1", "node-1", "coap://127.0.0.1:1", "coap://127.0.0.1:2", 60, "1.1", "U", False, (ObjectLink(3, 0),), 1.0, 2.0
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server.running() as url:
        yield url


@dataclass
class State:
    """A suite's databases, artifact folder and keys."""

    urls: dict[str, str]
    folder: Path

    @property
    def arguments(self) -> list[str]:
        databases = [f"--database={name}={url}" for name, url in self.urls.items()]
        files = [f"--file=master={self.folder / 'master'}", f"--artifacts={self.folder / 'artifacts'}"]
        return [*databases, *files, f"--pg-bin={postgres_server.PROGRAMS}"]

    def fill(self) -> str:
        """Put a record of each kind in; the digest of the artifact."""
        engine = open_engine(self.urls["registry"])
        migrate(engine)
        SqlRecords(engine).put_plugin(PLUGIN)
        engine.dispose()
        incoming = FolderStore(self.folder / "artifacts").begin()
        incoming.write(DATA)
        digest = hashlib.sha256(DATA).hexdigest()
        incoming.commit(digest)
        incoming.abort()
        engine = gateway_store.open_engine(self.urls["gateway"])
        gateway_store.Resources(engine, "build", builds_pb2.Build, projection.ended).create("default", BUILD, "f")
        if engine.dialect.name == "postgresql":
            with engine.begin() as connection:
                # Where DBOS keeps its records: in a schema of its own beside the gateway's tables.
                connection.execute(sa.text("CREATE SCHEMA dbos"))
                connection.execute(sa.text("CREATE TABLE dbos.workflow_status (workflow_uuid TEXT)"))
                connection.execute(sa.text("INSERT INTO dbos.workflow_status VALUES ('build:one')"))
        engine.dispose()
        bridge = SqlStore(self.urls["bridge"])
        bridge.put_registration(DEVICE)
        key = master_key(self.folder / "master", make=True)
        DeviceKeys(SqlKeyStore(bridge.engine, key), lambda: 1.0).create("node-1", b"0123456789abcdef")
        bridge.close()
        return digest

    def check(self, digest: str) -> None:
        """Everything is there."""
        engine = open_engine(self.urls["registry"])
        migrate(engine)
        assert SqlRecords(engine).get_plugin(PLUGIN.name) == PLUGIN
        engine.dispose()
        with FolderStore(self.folder / "artifacts").open(digest) as file:
            assert file.read() == DATA
        engine = gateway_store.open_engine(self.urls["gateway"])
        found = gateway_store.Resources(engine, "build", builds_pb2.Build, projection.ended).get(BUILD.name)
        assert found is not None
        assert found.body == BUILD
        if engine.dialect.name == "postgresql":
            with engine.connect() as connection:
                assert connection.scalar(sa.text("SELECT workflow_uuid FROM dbos.workflow_status")) == "build:one"
        engine.dispose()
        bridge = SqlStore(self.urls["bridge"])
        assert bridge.load_registrations() == [DEVICE]
        keys = DeviceKeys(SqlKeyStore(bridge.engine, master_key(self.folder / "master", make=False)), lambda: 1.0)
        (key,) = keys.of_endpoint("node-1")
        assert keys.resolve(key.identity.encode())[1] == b"0123456789abcdef"
        bridge.close()


def state(kind: str, folder: Path, request: pytest.FixtureRequest) -> State:
    folder.mkdir()
    names = ("registry", "gateway", "bridge")
    if kind == "sqlite":
        return State({name: f"sqlite:///{folder / name}.db" for name in names}, folder)
    url = request.getfixturevalue("server")
    return State({name: postgres_server.database(url, f"{folder}/{name}") for name in names}, folder)


def backup(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_restore_into_nothing_brings_everything_back(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before, after, saved = (
        state(kind, tmp_path / "a", request),
        state(kind, tmp_path / "b", request),
        tmp_path / "saved",
    )
    digest = before.fill()
    done = backup("save", str(saved), *before.arguments)
    assert done.returncode == 0, done.stderr
    assert saved.stat().st_mode & 0o077 == 0, "keys are in it"
    done = backup("restore", str(saved), *after.arguments)
    assert done.returncode == 0, done.stderr
    after.check(digest)
    before.check(digest)
    again = backup("restore", str(saved), *after.arguments)
    assert again.returncode == 1
    assert "not empty" in again.stderr


def test_a_damaged_or_cut_backup_is_refused_before_anything_is_written(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before, after, saved = (
        state("sqlite", tmp_path / "a", request),
        state("sqlite", tmp_path / "b", request),
        tmp_path / "saved",
    )
    digest = before.fill()
    assert backup("save", str(saved), *before.arguments).returncode == 0
    artifact = saved / "artifacts" / "objects" / digest[:2] / digest[2:]
    artifact.write_bytes(DATA[:-1])
    refused = backup("restore", str(saved), *after.arguments)
    assert refused.returncode == 1
    assert "damaged" in refused.stderr
    artifact.write_bytes(DATA)
    (saved / "manifest.json").rename(saved / "other.json")
    refused = backup("restore", str(saved), *after.arguments)
    assert refused.returncode == 1
    assert "no whole backup" in refused.stderr
    assert not any(Path(url.removeprefix("sqlite:///")).exists() for url in after.urls.values())
    assert backup("save", str(saved), *before.arguments).returncode == 1, "an older backup is not written over"
