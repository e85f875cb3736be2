"""What the engine asks of plugins and bridges, as the adapters offer it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tinymlaas.bridge.v1 import bridge_pb2
from tinymlaas.plugin.v1 import compiler_pb2, importer_pb2, optimizer_pb2, profiler_pb2
from tinymlaas.registry.v1 import devices_pb2, plugins_pb2
from tinymlaas.type.v1 import tensor_pb2

# Called with a step in words, its fraction 0..1 (negative: unknown), or a line of the plugin's log.
Listener = Callable[["Sign"], None]


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of life of a plugin: progress, or a line of its log."""

    step: str = ""
    fraction: float = -1.0
    log: str = ""


@dataclass(frozen=True, slots=True)
class KnownPlugin:
    """A plugin as it answered: what the registry keeps, and what its Profiler role can run. A changed one is a new object."""

    plugin: plugins_pb2.Plugin
    profiler: profiler_pb2.ProfilerListTargetsResponse


class Plugins(Protocol):
    """Plugins known now, and their role calls. Every answer is checked; errors are ServiceErrors with a reason."""

    def known(self) -> Sequence[KnownPlugin]:
        """Plugins in the order of their names; where it is the same object as before, nothing about them has changed."""

    async def check_model(
        self, plugin: str, header: compiler_pb2.CompileHeader, model: bytes
    ) -> compiler_pb2.CheckModelResult:
        """Ask whether a model would be compiled."""

    async def compile(
        self, plugin: str, header: compiler_pb2.CompileHeader, model: bytes, listener: Listener
    ) -> tuple[compiler_pb2.CompileResult, bytes]:
        """Compile; return the parts and the payload, whose digest and size hold."""

    async def import_model(
        self, plugin: str, conversion: importer_pb2.Conversion, model: bytes, listener: Listener
    ) -> bytes:
        """Convert a model file."""

    async def optimize(
        self, plugin: str, header: optimizer_pb2.OptimizeHeader, model: bytes, calibration: bytes, listener: Listener
    ) -> tuple[optimizer_pb2.OptimizeResult, Mapping[str, bytes]]:
        """Optimize a model file with samples (npz); return the result and its checked blobs, "model" among them."""

    async def profile(
        self,
        plugin: str,
        header: profiler_pb2.ProfileHeader,
        payload: bytes,
        inputs: profiler_pb2.InputSet,
        listener: Listener,
    ) -> tuple[profiler_pb2.ProfileResult, profiler_pb2.InputSet]:
        """Run a payload on inputs; return measurements and outputs."""

    async def run_reference(
        self,
        plugin: str,
        form: tensor_pb2.ModelFormat.ValueType,
        reference: tensor_pb2.Reference.ValueType,
        model: bytes,
        inputs: profiler_pb2.InputSet,
        listener: Listener,
    ) -> tuple[profiler_pb2.RunReferenceResult, profiler_pb2.InputSet]:
        """Run a model with a reference executor; return tensor specs and outputs."""

    async def count_refutation(self, plugin: str, version: str, build: str) -> None:
        """Note that a claim of the plugin was refuted in a build; the third build puts it in quarantine."""

    async def release(self, plugin: str, version: str) -> plugins_pb2.Plugin:
        """Let a version of a plugin that is in quarantine take part again; return the plugin as it is now."""


class Bridges(Protocol):
    """The bridges that own devices. Repeatable calls wait for a bridge that is away; errors are ServiceErrors."""

    def install(self, request: bridge_pb2.InstallRequest) -> AsyncIterator[bridge_pb2.InstallResponse]:
        """Follow an install; resumed when the bridge went away, up to its patience."""

    async def cancel_install(self, device: str, install_id: str) -> None:
        """Stop an install at the next safe point."""

    async def activate(self, device: str, slot: int) -> devices_pb2.Device:
        """Make the module of a slot the active one."""

    async def deactivate(self, device: str, slot: int) -> devices_pb2.Device:
        """Stop the module of a slot."""

    async def rollback(self, device: str, leave: str) -> devices_pb2.Device:
        """Go back to the module that was active before, if the one with the digest `leave` is active."""

    async def read_capabilities(self, device: str) -> devices_pb2.Device:
        """Read a device afresh."""

    async def infer(self, device: str, inputs: tensor_pb2.TensorValues) -> bridge_pb2.InferResponse:
        """Run one inference with the active module."""

    def observe(self, device: str) -> AsyncIterator[bridge_pb2.ObserveResponse]:
        """What a device counts, now and at each change, until the bridge or the caller ends it."""
