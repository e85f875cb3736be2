"""A plugin: who it is and its roles. Workers import this too, so the server is imported only where one is asked for."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tinymlaas.plugin.v1 import identity_pb2

from .digests import CONTRACT_VERSION
from .jobs import Compiler, Function, Importer, Limits, Optimizer, Profiler

if TYPE_CHECKING:
    from tinymlaas_servicekit import ServiceSettings

    from .server import PluginServer

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)+")
MAX_NAME = 63


class Plugin:
    """One plugin: a reverse-DNS name, the vendor's version, and one or more roles.

    `warm` names functions without arguments that a worker calls before it is ready, to load what is heavy. `capabilities`
    are hints besides the roles. ValueError when the name is no reverse-DNS name of at most 63 characters or no role is given.
    """

    def __init__(
        self,
        name: str,
        vendor_version: str,
        *,
        compiler: Compiler | None = None,
        optimizer: Optimizer | None = None,
        importer: Importer | None = None,
        profiler: Profiler | None = None,
        limits: Limits | None = None,
        warm: Sequence[Function] = (),
        capabilities: Sequence[str] = (),
        display_name: str = "",
        licence: str = "",
        homepage: str = "",
    ) -> None:
        if not NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise ValueError(f"{name!r} is no reverse-DNS name of at most {MAX_NAME} characters")
        if not vendor_version:
            raise ValueError("a plugin needs a vendor_version")
        self.compiler, self.optimizer, self.importer, self.profiler = compiler, optimizer, importer, profiler
        self.limits = limits or Limits()
        self.warm = tuple(reference(function) for function in warm)
        roles = {"compiler": compiler, "optimizer": optimizer, "importer": importer, "profiler": profiler}
        offered = sorted(f"role.{role}" for role, given in roles.items() if given is not None)
        if not offered:
            raise ValueError("a plugin needs a role")
        self.info = identity_pb2.GetPluginInfoResponse(
            name=name,
            vendor_version=vendor_version,
            contract_version=CONTRACT_VERSION,
            display_name=display_name or name,
            licence=licence,
            homepage=homepage,
        )
        self.capabilities = identity_pb2.GetPluginCapabilitiesResponse(
            capabilities=sorted({*offered, *capabilities}),
            limits=identity_pb2.Limits(
                max_model_bytes=self.limits.max_model_bytes,
                max_concurrency=self.limits.max_concurrency,
                max_seconds=self.limits.max_seconds,
            ),
        )

    def functions(self) -> dict[str, str]:
        """References of the author's functions by job kind."""
        found: dict[str, Function] = {}
        if self.compiler is not None:
            found |= {"check": self.compiler.check, "compile": self.compiler.compile}
        if self.importer is not None:
            found["import"] = self.importer.convert
        if self.optimizer is not None:
            found["optimize"] = self.optimizer.optimize
        if self.profiler is not None:
            found["profile"] = self.profiler.profile
            if self.profiler.reference is not None:
                found["reference"] = self.profiler.reference
        return {kind: reference(function) for kind, function in found.items()}

    def server(self, settings: ServiceSettings, *, heartbeat_seconds: float | None = None) -> PluginServer:
        """A server of this plugin, not started yet."""
        from .server import PluginServer

        return PluginServer(self, settings, heartbeat_seconds)

    def main(self, settings: ServiceSettings | None = None) -> None:
        """The main function: serves until SIGTERM, configured by TINYMLAAS_* variables."""
        import asyncio

        from tinymlaas_servicekit import ServiceSettings, configure_logging, configure_tracing, serve_until_signal

        settings = settings or ServiceSettings()
        configure_logging(settings)
        configure_tracing(settings, self.info.name)
        asyncio.run(serve_until_signal(self.server(settings)))


def reference(function: Function) -> str:
    """How a worker finds a function: "module:name", or "/path/file.py:name" for one of the main program."""
    if isinstance(function, str):
        return function
    name: str = function.__qualname__
    if "<" in name:
        raise ValueError(f"{name} must be a function at the top of a module, so that a worker process can import it")
    if function.__module__ != "__main__":
        return f"{function.__module__}:{name}"
    main: Any = sys.modules["__main__"]
    if main.__spec__ is not None:  # started by python -m
        return f"{main.__spec__.name}:{name}"
    return f"{main.__file__}:{name}"
