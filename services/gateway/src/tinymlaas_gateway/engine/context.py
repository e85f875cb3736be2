"""What every step of the engine has at hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import tinymlaas_module as tim
from tinymlaas.gateway.v1 import builds_pb2, deployments_pb2, routing_pb2
from tinymlaas.plugin.v1 import compiler_pb2

from .. import __version__
from ..adapters.catalogue import Catalogue
from ..adapters.deployments import Deployments
from ..adapters.group import Group
from ..adapters.memory import Derived
from ..adapters.store import New, Record, Refutations, Resources, Results
from .changes import Changes
from .fairness import FairPlaces
from .ports import Bridges, Plugins

TOOL = "tinymlaas-gateway"
TOOL_VERSION = __version__
KEPT_ANSWERS = 1024
CALLS_AT_ONCE = 256
CALLS_OF_A_PROJECT = 32
# gRPC hands over a call about every five rounds of the event loop (measured), so three come for each that is begun.
ROUNDS_BETWEEN_CALLS = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what plugins may take; seconds are per call."""

    check_seconds: float = 60.0
    compile_seconds: float = 900.0
    import_seconds: float = 600.0
    optimize_seconds: float = 900.0
    profile_seconds: float = 600.0
    compiles_at_once: int = 2
    plugin_tries: int = 3
    retry_pause_seconds: float = 1.0
    plugin_patience_seconds: float = 60.0
    plugin_busy_seconds: float = 900.0
    witness_patience_seconds: float = 10.0
    verification_samples: int = 8
    labelled_samples: int = 32
    golden_vectors: int = 1
    max_payload_bytes: int = 64 << 20
    cohort_look_seconds: float = 5.0
    feedback_pause_seconds: float = 5.0
    observed_at_once: int = 256


@dataclass(slots=True)
class Context:
    """Adapters and settings of one gateway process."""

    catalogue: Catalogue
    plugins: Plugins
    bridges: Bridges
    builds: Resources[builds_pb2.Build]
    deployments: Deployments
    results: Results
    refutations: Refutations
    build_changes: Changes[builds_pb2.Build]
    deployment_changes: Changes[deployments_pb2.Deployment]
    key: Ed25519PrivateKey
    limits: Limits = field(default_factory=Limits)
    # Seconds since 1970: what rollouts decide by.
    clock: Callable[[], float] = time.time
    # Id of the signing key, hex.
    key_id: str = field(init=False)
    # When this process began to see what happens.
    started: float = field(init=False)
    compile_places: FairPlaces = field(init=False)
    # Calls that are worked on while their caller waits.
    call_places: FairPlaces = field(
        default_factory=lambda: FairPlaces(CALLS_AT_ONCE, CALLS_OF_A_PROJECT, rounds=ROUNDS_BETWEEN_CALLS)
    )
    # CheckModel calls under way, by event loop and digest.
    checks: dict[tuple[int, str], asyncio.Task[compiler_pb2.CheckModelResult]] = field(default_factory=dict)
    # What is known of a request to build, and the verdicts on a target, as long as the plugins stay as they are.
    answered: Derived[builds_pb2.Build] = field(default_factory=lambda: Derived(KEPT_ANSWERS))
    judged: Derived[tuple[routing_pb2.Verdict, ...]] = field(default_factory=lambda: Derived(KEPT_ANSWERS))
    new_builds: Group[New[builds_pb2.Build], tuple[Record[builds_pb2.Build], bool]] = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()
        self.key_id = tim.key_id(tim.raw_public_key(self.key)).hex()
        self.compile_places = FairPlaces(self.limits.compiles_at_once)
        self.new_builds = Group(self.builds.create_many)

    async def build(self, name: str) -> Record[builds_pb2.Build]:
        """The record of a build that exists."""
        record = await asyncio.to_thread(self.builds.get, name)
        if record is None:
            raise KeyError(name)
        return record

    async def edit_build(self, name: str, *edits: Callable[[builds_pb2.Build], None]) -> Record[builds_pb2.Build]:
        """Apply edits to a build in one transaction."""

        def edit(build: builds_pb2.Build) -> None:
            for apply in edits:
                apply(build)

        return await asyncio.to_thread(self.builds.change, name, edit)

    async def deployment(self, name: str) -> Record[deployments_pb2.Deployment]:
        """The record of a deployment that exists."""
        record = await asyncio.to_thread(self.deployments.get, name)
        if record is None:
            raise KeyError(name)
        return record

    async def deployment_of(self, name: str, device: str) -> Record[deployments_pb2.Deployment]:
        """The record of a deployment that exists, with the rollout of this device only."""
        record = await asyncio.to_thread(self.deployments.get_device, name, device)
        if record is None:
            raise KeyError(name)
        return record

    async def edit_deployment(
        self, name: str, edit: Callable[[deployments_pb2.Deployment], None]
    ) -> Record[deployments_pb2.Deployment]:
        """Apply an edit to a deployment in one transaction."""
        return await asyncio.to_thread(self.deployments.change, name, edit)
