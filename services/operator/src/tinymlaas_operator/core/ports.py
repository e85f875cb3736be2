"""What the operator's loop needs of the world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .objects import Object
from .spec import Identity, PluginSpec


class Cluster(Protocol):
    """The cluster's API, in one namespace. Every call may block and may fail with OSError-like errors of the client."""

    def plugins(self) -> list[Mapping[str, Any]]:
        """All CompilerPlugin resources."""

    def apply(self, wanted: Object) -> None:
        """Make an object as it is wanted (server-side apply)."""

    def ready_replicas(self, deployment: str) -> int:
        """Ready replicas of a Deployment, 0 while there is none."""

    def pods(self, plugin: str) -> Sequence[Mapping[str, Any]]:
        """Pods of a plugin."""

    def read_secret(self, name: str) -> dict[str, str]:
        """A Secret's texts; empty while it is not there."""

    def write_secret(self, name: str, data: Mapping[str, str]) -> None:
        """Replace a Secret's texts."""

    def write_status(self, name: str, status: Mapping[str, Any]) -> None:
        """Replace the status of a resource."""

    def set_finalizers(self, name: str, finalizers: Sequence[str]) -> None:
        """Replace the finalizers of a resource."""


class Prober(Protocol):
    """Asks a plugin who it is."""

    async def ask(self, spec: PluginSpec, address: str, token: str) -> Identity:
        """Its identity; ServiceError where it does not answer as the contract says."""
