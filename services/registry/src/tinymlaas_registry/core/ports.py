"""What the core needs from the outside: records that last, and bytes by digest. All methods may block.

`adapters` implements them on SQLite or PostgreSQL, and on a folder or an S3 object store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from tinymlaas.registry.v1 import access_pb2, devices_pb2, models_pb2, modules_pb2, plugins_pb2


@dataclass(frozen=True)
class Page:
    """A request for at most `size` entries behind `cursor` (None: from the start)."""

    size: int
    cursor: str | None


class Incoming(Protocol):
    """Bytes on their way into the store; nothing is visible before `commit`."""

    def write(self, data: bytes) -> None:
        """Appends."""

    def read(self) -> bytes:
        """All bytes written so far."""

    def commit(self, sha256: str) -> None:
        """Makes the bytes durable and visible under their digest, as of now; the caller has checked it. Repeatable."""

    def abort(self) -> None:
        """Forgets the bytes unless they are committed."""


class ArtifactStore(Protocol):
    """Bytes by sha256 (hex); the same bytes are kept once. Any method may raise Unavailable where the store is away."""

    @property
    def shared(self) -> bool:
        """Whether other processes write to it too. Bytes that nothing refers to may then be on their way into a record
        of theirs, so only old ones are removed."""

    def begin(self) -> Incoming:
        """A place for bytes to arrive in."""

    def size(self, sha256: str) -> int | None:
        """Length of an artifact, None when there is none."""

    def open(self, sha256: str) -> BinaryIO:
        """The artifact, seekable; FileNotFoundError when there is none."""

    def delete(self, sha256: str) -> None:
        """Removes an artifact; no effect when there is none."""

    def digests(self, older_than_s: float = 0.0) -> Iterable[str]:
        """Every artifact; or those that nobody has committed for that long, in seconds."""


class Records(Protocol):
    """The catalogue's records. Names are full resource names; every method is one transaction."""

    def get_model(self, name: str) -> models_pb2.Model | None:
        """A model with its latest version's name."""

    def list_models(self, project: str, tag: str, page: Page) -> tuple[Sequence[models_pb2.Model], str | None]:
        """Models by id; the cursor of the next page, None at the end."""

    def delete_model(self, name: str) -> list[str] | None:
        """Deletes a model, its versions and their references; digests that nothing refers to any more. None: no model."""

    def get_version(self, name: str) -> models_pb2.ModelVersion | None:
        """A version; its id may be "latest"."""

    def list_versions(self, model: str, page: Page) -> tuple[Sequence[models_pb2.ModelVersion], str | None]:
        """Versions of a model, newest first."""

    def find_checked(self, sha256: str, format: int) -> models_pb2.ModelVersion | None:
        """Any version of these bytes in this format, of whichever project: its check need not be repeated."""

    def add_version(self, model: models_pb2.Model, version: models_pb2.ModelVersion) -> models_pb2.ModelVersion:
        """Writes the model and adds the version; the version that is there already, when there is one of that name.

        This, `add_module`, `add_reference` and `change_device` raise ResourceExhausted / QUOTA_EXCEEDED and write nothing where
        the project would have more than its quotas allow.
        """

    def get_module(self, name: str) -> modules_pb2.Module | None:
        """A module."""

    def list_modules(
        self, project: str, model_version: str, page: Page
    ) -> tuple[Sequence[modules_pb2.Module], str | None]:
        """Modules, newest first; `model_version` empty: of all."""

    def add_module(self, module: modules_pb2.Module) -> modules_pb2.Module:
        """Adds a module with references to its artifacts; the one that is there already, when there is one."""

    def change_device(
        self, name: str, change: Callable[[devices_pb2.Device | None], devices_pb2.Device]
    ) -> devices_pb2.Device:
        """Makes of a device's record what `change` does, None where there is none; the record that is there then.

        Nobody else writes it in between. `change` may be called more than once.
        """

    def get_device(self, name: str) -> devices_pb2.Device | None:
        """A device."""

    def list_devices(self, project: str, page: Page) -> tuple[Sequence[devices_pb2.Device], str | None]:
        """Devices by id."""

    def delete_device(self, name: str) -> bool:
        """Whether there was one."""

    def put_plugin(self, plugin: plugins_pb2.Plugin) -> None:
        """Writes a plugin."""

    def get_plugin(self, name: str) -> plugins_pb2.Plugin | None:
        """A plugin."""

    def list_plugins(self, page: Page) -> tuple[Sequence[plugins_pb2.Plugin], str | None]:
        """Plugins by id."""

    def delete_plugin(self, name: str) -> bool:
        """Whether there was one."""

    def add_reference(self, project: str, sha256: str, size_bytes: int) -> None:
        """Notes that a project wrote an artifact itself."""

    def check_room(self, project: str, sha256: str, size_bytes: int) -> None:
        """ResourceExhausted / QUOTA_EXCEEDED where the project may not have an artifact of that size besides what it has."""

    def unsized(self) -> set[str]:
        """Referenced digests whose sizes are not recorded: those of a database from before quotas."""

    def add_sizes(self, sizes: Mapping[str, int]) -> None:
        """Records sizes, in bytes by digest."""

    def owns(self, project: str, sha256: str) -> bool:
        """Whether anything of the project refers to the artifact."""

    def referenced(self) -> set[str]:
        """Every digest that anything refers to."""


@dataclass(frozen=True)
class AuditFilter:
    """Which entries are asked for; None and empty: whichever. Times are microseconds since the epoch."""

    project: str | None = None
    subject: str = ""
    method: str = ""
    start_us: int | None = None
    end_us: int | None = None


class AccessRecords(Protocol):
    """API keys, projects and the audit log. Every method is one transaction."""

    def add_api_key(self, key: access_pb2.ApiKey, secret_sha256: bytes, limit: int) -> access_pb2.ApiKey | None:
        """Adds a key; None when the project has `limit` keys."""

    def get_api_key(self, name: str) -> access_pb2.ApiKey | None:
        """A key."""

    def find_api_key(self, ident: str) -> tuple[access_pb2.ApiKey, bytes] | None:
        """The key of that id, of whichever project, with the digest of its secret."""

    def list_api_keys(self, project: str, page: Page) -> tuple[Sequence[access_pb2.ApiKey], str | None]:
        """Keys by id."""

    def delete_api_key(self, name: str) -> bool:
        """Whether there was one."""

    def get_project(self, project: str) -> access_pb2.Project:
        """What is recorded of a project, with its effective quotas and usage; of an unrecorded one these."""

    def list_projects(self, page: Page) -> tuple[Sequence[access_pb2.Project], str | None]:
        """Recorded projects by id, without usage."""

    def put_project(self, project: access_pb2.Project) -> None:
        """Writes name and quotas; the time of the first writing stays."""

    def append_audit(self, entries: Sequence[access_pb2.AuditEntry]) -> None:
        """Adds entries; those whose names are there already are left as they are."""

    def list_audit(self, wanted: AuditFilter, page: Page) -> tuple[Sequence[access_pb2.AuditEntry], str | None]:
        """Entries, newest first."""
