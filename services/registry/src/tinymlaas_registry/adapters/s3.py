"""Artifacts as objects of an S3 bucket (MinIO, or any store with the same API): sha256/ab/cdef...."""

from __future__ import annotations

import io
import re
import ssl
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Self, cast
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from tinymlaas_servicekit import FailedPrecondition, InvalidArgument, Unavailable

_PREFIX = "sha256/"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_IN_MEMORY = 4 * 1024 * 1024
_PART_BYTES = 16 * 1024 * 1024
# With `_Retries` a bucket that is not reached, or takes a call and is silent, is told of before a caller gives up (60 s), also
# where what was uploaded of an artifact is removed after its failure.
_CONNECT_S = 5.0
_SILENCE_S = 20.0
_PAUSE_S = 0.2
_MISSING = frozenset({"NoSuchKey", "NoSuchObject", "NoSuchBucket"})
_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_PASSING_CODES = frozenset({"RequestTimeout", "NoSuchUpload"})


@dataclass(frozen=True)
class S3Settings:
    """Where the bucket is. `endpoint` is http(s)://host[:port]; `ca_file` holds the certificate of a private authority."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str
    region: str = ""
    ca_file: Path | None = None


class S3Store:
    """An ArtifactStore in a bucket that several registries may share.

    Where the bucket is away or overloaded, every method, and every reading of an artifact, raises Unavailable /
    BUCKET_UNAVAILABLE; what it refuses (S3Error) passes as it is.
    """

    shared = True

    def __init__(self, settings: S3Settings) -> None:
        """Connect, and make the bucket where it is missing.

        Unavailable / BUCKET_UNAVAILABLE where it can't be reached, FailedPrecondition with that reason where it refuses us.
        """
        url = urlsplit(settings.endpoint)
        if url.scheme not in ("http", "https") or not url.netloc or url.path not in ("", "/"):
            raise InvalidArgument("an S3 endpoint is http(s)://host[:port]", "FIELD_INVALID", {"field": "s3_endpoint"})
        context = ssl.create_default_context(cafile=settings.ca_file) if url.scheme == "https" else None
        self._bucket = settings.bucket
        self._client = Minio(
            url.netloc,
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            secure=url.scheme == "https",
            region=settings.region or None,
            http_client=_Connections(
                maxsize=16,
                timeout=urllib3.Timeout(connect=_CONNECT_S, read=_SILENCE_S),
                retries=_Retries(
                    3,
                    backoff_factor=_PAUSE_S,
                    status_forcelist=(500, 502, 503, 504),
                    respect_retry_after_header=False,  # a MinIO that starts asks for minutes
                ),
                ssl_context=context,
            ),
        )
        try:
            with _reaching(self._bucket):
                if not self._client.bucket_exists(self._bucket):
                    self._client.make_bucket(self._bucket)
        except S3Error as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise FailedPrecondition(**_failure(error, self._bucket)) from error

    def begin(self) -> S3Incoming:
        """See ports.ArtifactStore."""
        return S3Incoming(self)

    def size(self, sha256: str) -> int | None:
        """See ports.ArtifactStore."""
        try:
            with _reaching(self._bucket):
                return self._client.stat_object(self._bucket, _key(sha256)).size
        except S3Error as error:
            if error.code in _MISSING:
                return None
            raise

    def open(self, sha256: str) -> BinaryIO:
        """See ports.ArtifactStore."""
        size = self.size(sha256)
        if size is None:
            raise FileNotFoundError(sha256)
        return cast(BinaryIO, io.BufferedReader(_ObjectReader(self._client, self._bucket, _key(sha256), size)))

    def delete(self, sha256: str) -> None:
        """See ports.ArtifactStore."""
        with _reaching(self._bucket):
            self._client.remove_object(self._bucket, _key(sha256))

    def digests(self, older_than_s: float = 0.0) -> Iterable[str]:
        """See ports.ArtifactStore."""
        newest = datetime.now(UTC) - timedelta(seconds=older_than_s)
        with _reaching(self._bucket):
            for found in self._client.list_objects(self._bucket, _PREFIX, recursive=True):
                digest = (found.object_name or "").removeprefix(_PREFIX).replace("/", "")
                old = found.last_modified is not None and found.last_modified <= newest
                if _SHA256.fullmatch(digest) and (old or not older_than_s):
                    yield digest

    def put(self, sha256: str, data: BinaryIO, size: int) -> None:
        """Writes an object, whole or not at all, also where it is there already: it counts as new then."""
        kind, key = "application/octet-stream", _key(sha256)
        with _reaching(self._bucket):
            # One part after the other: the first that fails is the last that is tried.
            self._client.put_object(self._bucket, key, data, size, kind, part_size=_PART_BYTES, num_parallel_uploads=1)


class _Retries(urllib3.Retry):
    """Repeats what failed at once, or was not connected, but waits only once for a bucket that is silent."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: urllib3.BaseHTTPResponse | None = None,
        error: Exception | None = None,
        *others: Any,
        **rest: Any,
    ) -> Self:
        aborted = error.args[-1] if isinstance(error, urllib3.exceptions.ProtocolError) else None  # what ended a send
        if error is not None and isinstance(aborted or error, (urllib3.exceptions.ReadTimeoutError, TimeoutError)):
            raise error
        return super().increment(method, url, response, error, *others, **rest)


class _Connections(urllib3.PoolManager):
    """Sends bodies in blocks: urllib3 bounds a send by the time to connect, which is short for a whole part of an upload."""

    def urlopen(self, method: str, url: str, body: Any = None, **rest: Any) -> urllib3.BaseHTTPResponse:  # type: ignore[override]
        return super().urlopen(method, url, body=io.BytesIO(body) if body and isinstance(body, bytes) else body, **rest)


class S3Incoming:
    """Bytes on their way into an S3Store: in memory while they are few, else in a temporary file."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  closed by abort

    def write(self, data: bytes) -> None:
        """See ports.Incoming."""
        self._file.write(data)

    def read(self) -> bytes:
        """See ports.Incoming."""
        self._file.seek(0)
        return self._file.read()

    def commit(self, sha256: str) -> None:
        """See ports.Incoming."""
        size = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        self._store.put(sha256, cast(BinaryIO, self._file), size)

    def abort(self) -> None:
        """See ports.Incoming."""
        self._file.close()


class _ObjectReader(io.RawIOBase):
    """An object as a seekable stream: one request from each place that was sought."""

    def __init__(self, client: Minio, bucket: str, key: str, size: int) -> None:
        self._client, self._bucket, self._key, self._size = client, bucket, key, size
        self._position = 0
        self._response: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset != self._position:
            self._position = base + offset
            self._release()
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        try:
            with _reaching(self._bucket):
                if self._response is None:
                    self._response = self._client.get_object(self._bucket, self._key, offset=self._position)
                data = self._response.read(len(buffer))
        except Exception:
            self._release()  # what is read next is asked for anew
            raise
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._release()
        super().close()

    def _release(self) -> None:
        if self._response is not None:
            # In this order: a connection on which the rest of the object is still to come must not be used again.
            self._response.close()
            self._response.release_conn()
            self._response = None


def _key(sha256: str) -> str:
    """Name of an object; ValueError when the digest is none, so that no name can lead elsewhere."""
    if not _SHA256.fullmatch(sha256):
        raise ValueError("no sha256 in hex")
    return f"{_PREFIX}{sha256[:2]}/{sha256[2:]}"


@contextmanager
def _reaching(bucket: str) -> Iterator[None]:
    """Turns what is raised where a bucket is away or overloaded into Unavailable; all else passes."""
    try:
        yield
    except (urllib3.exceptions.HTTPError, MinioException) as error:
        if not _passes(error):
            raise
        raise Unavailable(**_failure(error, bucket)) from error


def _passes(error: Exception) -> bool:
    """Whether the same call may succeed later: no whole answer came, or one that is not the store's or tells of its trouble."""
    if isinstance(error, S3Error):
        return error.response.status in _PASSING_STATUS or error.code in _PASSING_CODES
    if isinstance(error, ServerError):
        return error.status_code in _PASSING_STATUS
    return isinstance(error, (urllib3.exceptions.HTTPError, InvalidResponseError))


def _failure(error: Exception, bucket: str) -> dict[str, Any]:
    """The arguments of the error that a caller is told."""
    return {
        "message": f"the bucket {bucket} can't be used: {error}"[:500],
        "reason": "BUCKET_UNAVAILABLE",
        "metadata": {"bucket": bucket},
        "help": "Look whether the object store runs, and at its address, keys and certificate (TINYMLAAS_S3_*); then call again.",
    }
