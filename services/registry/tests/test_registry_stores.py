"""What every artifact store must do: the folder, and a bucket of a real MinIO server."""

from __future__ import annotations

import hashlib
import io
import ipaddress
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from minio_server import MinioServer, minio_running
from registry_rig import onnx_model, running

from tinymlaas_registry.adapters import FolderStore, S3Settings, S3Store
from tinymlaas_registry.app import sweep
from tinymlaas_registry.core.ports import ArtifactStore
from tinymlaas_servicekit import FailedPrecondition, InvalidArgument, Unavailable

DATA = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """A MinIO server."""
    with minio_running(tmp_path_factory.mktemp("minio")) as server:
        yield server


def private_authority(folder: Path) -> Path:
    """A certificate for 127.0.0.1 of an authority that nobody else knows, where MinIO looks for it; the authority's own."""
    folder.mkdir()
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("Private CA", "minio")]
    made = []
    for index, (key, name) in enumerate(zip(keys, names, strict=True)):
        builder = x509.CertificateBuilder(names[0], name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2120, 1, 1))
        builder = builder.add_extension(x509.BasicConstraints(ca=index == 0, path_length=None), critical=True)
        host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        made.append((builder if index == 0 else builder.add_extension(host, critical=False)).sign(keys[0], SHA256()))
    pem = serialization.Encoding.PEM
    private = keys[1].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "private.key").write_bytes(private)
    (folder / "public.crt").write_bytes(made[1].public_bytes(pem))
    (folder.parent / "ca.pem").write_bytes(made[0].public_bytes(pem))
    return folder.parent / "ca.pem"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """Each kind of store, empty."""
    if request.param == "folder":
        return FolderStore(tmp_path)
    return S3Store(request.getfixturevalue("minio").bucket())


@pytest.fixture(autouse=True)
def database() -> str:
    """Once is enough: the stores know nothing of databases."""
    return "sqlite"


def put(store: ArtifactStore, data: bytes) -> str:
    incoming = store.begin()
    try:
        for offset in range(0, len(data), 1 << 20):
            incoming.write(data[offset : offset + (1 << 20)])
        digest = hashlib.sha256(data).hexdigest()
        incoming.commit(digest)
    finally:
        incoming.abort()
    return digest


def test_bytes_come_back_whole_and_from_any_place(store: ArtifactStore) -> None:
    assert put(store, DATA) == DIGEST
    assert store.size(DIGEST) == len(DATA)
    with store.open(DIGEST) as file:
        assert file.read() == DATA
        file.seek(1_000_001)
        assert file.read(5000) == DATA[1_000_001:1_005_001]
        file.seek(-3, io.SEEK_END)
        assert file.read() == DATA[-3:]
        file.seek(0)
        assert file.read(2) == DATA[:2]


def test_an_empty_artifact_is_one(store: ArtifactStore) -> None:
    digest = put(store, b"")
    assert store.size(digest) == 0
    with store.open(digest) as file:
        assert file.read() == b""


def test_what_is_not_there_is_said_to_be_missing(store: ArtifactStore) -> None:
    assert store.size(DIGEST) is None
    with pytest.raises(FileNotFoundError):
        store.open(DIGEST)
    store.delete(DIGEST)
    for name in ("../../etc/passwd", "A" * 64, ""):
        with pytest.raises(ValueError):
            store.size(name)


def test_nothing_is_visible_before_the_commit_nor_after_an_abort(store: ArtifactStore) -> None:
    incoming = store.begin()
    incoming.write(DATA)
    assert incoming.read() == DATA
    assert list(store.digests()) == []
    incoming.abort()
    assert list(store.digests()) == []
    assert store.size(DIGEST) is None


def test_the_same_bytes_are_kept_once_and_can_be_removed(store: ArtifactStore) -> None:
    assert put(store, DATA) == put(store, DATA)
    assert list(store.digests()) == [DIGEST]
    store.delete(DIGEST)
    assert list(store.digests()) == []


def test_only_old_artifacts_are_told_of_where_an_age_is_asked_for(store: ArtifactStore) -> None:
    put(store, DATA)
    assert list(store.digests(older_than_s=3600)) == []
    assert list(store.digests(older_than_s=-3600)) == [DIGEST]


class Referring:
    """Records that refer to some digests."""

    def __init__(self, *digests: str) -> None:
        self.digests = set(digests)

    def referenced(self) -> set[str]:
        return self.digests


def test_the_sweep_removes_what_nothing_refers_to_and_is_old(store: ArtifactStore) -> None:
    kept, orphan = put(store, b"kept"), put(store, b"orphan")
    assert sweep(Referring(kept), store, 3600) == 0  # type: ignore[arg-type]  # a part of Records is enough
    assert sweep(Referring(kept), store, -3600) == 1  # type: ignore[arg-type]
    assert list(store.digests()) == [kept]
    assert store.size(orphan) is None


@pytest.mark.parametrize("endpoint", ["", "minio:9000", "ftp://minio", "http://minio/path"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidArgument):
        S3Store(S3Settings(endpoint, "bucket", "a", "b"))


def test_a_wrong_key_is_told_with_what_to_look_at(minio: MinioServer) -> None:
    with pytest.raises(FailedPrecondition) as error:
        S3Store(S3Settings(minio.endpoint, "bucket", "tests", "wrong"))
    assert error.value.reason == "BUCKET_UNAVAILABLE"
    assert "TINYMLAAS_S3_" in error.value.help


def test_a_bucket_behind_a_private_authority_is_trusted_by_its_certificate_only(tmp_path: Path) -> None:
    authority = private_authority(tmp_path / "certs")
    with minio_running(tmp_path, "https") as server:
        with pytest.raises(Unavailable) as refused:
            S3Store(server.bucket())
        assert refused.value.reason == "BUCKET_UNAVAILABLE"
        store = S3Store(replace(server.bucket(), ca_file=authority))
        assert put(store, DATA) == DIGEST
        with store.open(DIGEST) as file:
            assert file.read() == DATA


async def test_a_registry_on_a_bucket_takes_and_gives_models_and_leaves_shared_bytes(
    minio: MinioServer, tmp_path: Path
) -> None:
    bucket = minio.bucket()
    values = {
        "s3_endpoint": bucket.endpoint,
        "s3_bucket": bucket.bucket,
        "s3_access_key": bucket.access_key,
        "s3_secret_key": bucket.secret_key,
    }
    model = onnx_model()
    async with running(tmp_path / "one", **values) as client:
        version = await client.upload(model)
        assert await client.read(version.sha256) == model
        assert await client.write(DATA) == DIGEST
        assert await client.read(DIGEST, offset=1_000_000, limit=100) == DATA[1_000_000:1_000_100]
    async with running(tmp_path / "two", **values) as second:
        assert await second.write(DATA) == DIGEST
        assert await second.read(DIGEST) == DATA
